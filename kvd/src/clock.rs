//! The only reader of time and chance. Decisions get both as arguments.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The wall clock, Unix milliseconds. For people and for counters, never for decisions.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The monotonic clock: deadlines and latencies.
pub fn now() -> Instant {
    Instant::now()
}

/// 64 random bits from the operating system.
pub fn random_u64() -> u64 {
    u64::from_be_bytes(random())
}

/// 128 random bits from the operating system.
pub fn random_u128() -> u128 {
    u128::from_be_bytes(random())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random source works");
    bytes
}
