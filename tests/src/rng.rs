//! Chance that a seed determines, and the seed of a run.

use crate::random_bytes;

/// A small random source that a seed determines (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The source that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, of_hundred: u8) -> bool {
        self.below(100) < usize::from(of_hundred)
    }
}

/// The seed of this run: `KVD_SEED`, or a new one. It is printed, so that a failed test tells it.
///
/// # Panics
/// If `KVD_SEED` is not a number.
pub fn seed_of_run() -> u64 {
    let seed = match std::env::var("KVD_SEED") {
        Ok(given) => given.parse().expect("KVD_SEED is a number"),
        // Short: it is in the name of every value.
        Err(_) => random_bytes(3).iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte)),
    };
    eprintln!("seed {seed} (KVD_SEED={seed} for the same choices again)");
    seed
}
