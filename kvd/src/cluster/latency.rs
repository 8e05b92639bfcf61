//! How quickly a peer answers requests. Those that stand back for requests go by it.

use crate::clock;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A peer that takes so many times as long to answer as it can is busy with requests.
const BUSY_FACTOR: u64 = 4;

/// Round trips under this are quick, whatever the quickest was: a merge waits for a disk.
const QUICK_US: u64 = 10_000;

/// Without a request for so long, how long the last took says nothing of now.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Who is passed over since it was slow has no request to show that it is not any more. After so long
/// without one it is taken for as quick as any.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// Round trips of requests to one peer.
#[derive(Debug, Default)]
pub struct Latency {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// What they lately took; 0 before the first.
    recent_us: u64,
    /// The least that has been.
    quickest_us: u64,
    last: Option<Instant>,
}

impl Latency {
    /// A request took `latest`. An eighth of each new sample: quick enough to follow a node that
    /// slows down.
    pub fn note(&self, latest: Duration) {
        lock(&self.seen).note(latest.as_micros() as u64, clock::now());
    }

    /// Recent round trip, microseconds; 0 before the first.
    pub fn recent_us(&self) -> u64 {
        lock(&self.seen).recent_us
    }

    /// The same of one that was asked lately; else 0.
    pub fn known_us(&self) -> u64 {
        lock(&self.seen).known_us(clock::now())
    }

    /// Whether requests are under way, and take much longer than they can.
    pub fn is_busy(&self) -> bool {
        lock(&self.seen).is_busy(clock::now())
    }
}

impl Seen {
    fn note(&mut self, latest_us: u64, now: Instant) {
        // Of long ago, and one sample in eight would hardly change it.
        let is_old = self.known_us(now) == 0;
        let mean_us = match self.recent_us {
            _ if is_old => latest_us,
            mean_us => mean_us - mean_us / 8 + latest_us / 8,
        };
        self.recent_us = mean_us.max(1);
        self.quickest_us = match self.quickest_us {
            0 => self.recent_us,
            quickest_us => quickest_us.min(self.recent_us),
        };
        self.last = Some(now);
    }

    fn known_us(&self, now: Instant) -> u64 {
        let lately = self.last.is_some_and(|last| now.duration_since(last) < SLOW_FOR);
        if lately { self.recent_us } else { 0 }
    }

    fn is_busy(&self, now: Instant) -> bool {
        let lately = self.last.is_some_and(|last| now.duration_since(last) < GOOD_FOR);
        lately && self.recent_us > BUSY_FACTOR * self.quickest_us.max(QUICK_US)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_busy_while_requests_take_much_longer_than_they_can() {
        let now = clock::now();
        let seen = |recent_us, quickest_us| Seen { recent_us, quickest_us, last: Some(now) };
        assert!(!Seen::default().is_busy(now), "not known");
        assert!(!seen(120_000, 30_000).is_busy(now) && seen(120_001, 30_000).is_busy(now));
        let quick = BUSY_FACTOR * QUICK_US;
        assert!(!seen(quick, 200).is_busy(now) && seen(quick + 1, 200).is_busy(now));
        assert!(!seen(quick + 1, 200).is_busy(now + GOOD_FOR), "nobody waits for it any more");
    }

    #[test]
    fn a_peer_that_nobody_asks_is_not_slow_for_ever() {
        let (mut seen, now) = (Seen::default(), clock::now());
        assert_eq!(seen.known_us(now), 0);
        seen.note(16_000, now);
        assert_eq!(seen.known_us(now + SLOW_FOR / 2), 16_000);
        assert_eq!(seen.known_us(now + SLOW_FOR), 0);
    }

    #[test]
    fn the_mean_follows_and_the_quickest_stays() {
        let (mut seen, now) = (Seen::default(), clock::now());
        seen.note(8_000, now);
        assert_eq!((seen.recent_us, seen.quickest_us), (8_000, 8_000));
        seen.note(800_000, now);
        assert_eq!((seen.recent_us, seen.quickest_us), (107_000, 8_000));
        assert!(seen.is_busy(now));
    }
}
