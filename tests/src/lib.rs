//! The kit for tests that need more than one crate: real `kvd` processes, the real `kvctl`.
//!
//! - [`process`] runs clusters; everything it starts is killed when it is dropped.
//! - [`load`] puts such a cluster under load and records a [`history`]; [`check`] judges it.
//! - [`scenario`] is a cluster under load to which something is done, and what must be so after it.
//! - [`faults`] breaks the disks, syncs, writes and clocks under them; [`ledger`] knows what they
//!   must not lose by it.
//! - [`measure`] is what the benchmarks share.
//! - [`pki`] makes certificates, right ones and wrong ones.
//! - [`net`] gives a cluster a network of its own, and cuts it.
//! - [`wire`] lays siege to its ports.
//! - [`eventually`] polls with a deadline: no test sleeps and hopes.
//! - [`one_of_three`] is for what has a time limit of its own, on machines that may stand still.

pub mod check;
pub mod faults;
pub mod history;
pub mod ledger;
pub mod load;
pub mod measure;
pub mod net;
pub mod pki;
pub mod process;
pub mod readme;
pub mod rng;
pub mod scenario;
pub mod topology;
pub mod wire;

use std::time::{Duration, Instant};

/// How long anything may take to come true before a test gives up on it. Generous: the machines
/// that run tests are shared.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Polls until `look` finds something, and returns it. The longer it takes the less often: who looks
/// takes time from what is looked at.
///
/// # Panics
/// When [`PATIENCE`] is over; `what` says what was waited for.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let waited = begun.elapsed();
        assert!(waited < PATIENCE, "waited {} s in vain for {what}", PATIENCE.as_secs());
        std::thread::sleep((waited / 20).clamp(PAUSE, 10 * PAUSE));
    }
}

/// Tries what has to come off within a time of its own, three times at most: a machine that stands
/// still spoils one, what is wrong spoils each. What an attempt changed it has to put back itself.
///
/// # Panics
/// When none came off, with what was wrong with each.
pub fn one_of_three<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let mut wrong = Vec::new();
    while wrong.len() < 3 {
        match attempt() {
            Ok(found) => return found,
            Err(why) => {
                eprintln!("{what}, attempt {}: {why}", wrong.len() + 1);
                wrong.push(why);
            }
        }
    }
    panic!("{what}: {wrong:?}");
}

/// Random bytes of the operating system; what they are never matters to a test.
pub fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("the operating system's random source works");
    bytes
}
