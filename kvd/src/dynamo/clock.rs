//! Hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014): counters that grow
//! with the wall clock but never repeat or step back, whatever that clock does.
//!
//! Only uniqueness and growth are relied on. The milliseconds inside are for people: the time a
//! value was written, the age of a write a replica lacks.

use std::fmt;

/// How far ahead of this node's clock a counter it sees may be to be followed, milliseconds. Beyond
/// it some node's wall clock is or was wrong, and following would spread that to every node.
pub const DRIFT_MS_MAX: u64 = 10 * 60 * 1000;

const COUNT_BITS: u32 = 16;

/// A reading: 48 bits of Unix milliseconds, then 16 bits that count readings within one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Counter(pub u64);

impl Counter {
    /// The first reading of millisecond `ms`.
    pub fn at_ms(ms: u64) -> Self {
        Self(ms << COUNT_BITS)
    }

    /// The Unix milliseconds inside.
    pub fn ms(self) -> u64 {
        self.0 >> COUNT_BITS
    }

    /// Whether a clock that now reads `now_ms` does not follow this.
    fn is_too_far_ahead(self, now_ms: u64) -> bool {
        self.ms() > now_ms.saturating_add(DRIFT_MS_MAX)
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.0 & 0xffff)
    }
}

/// One node's source of counters.
///
/// The ceiling is what makes them unique over restarts: it is persisted before any counter up to
/// it is used, and a restarted node starts above it.
#[derive(Debug)]
pub struct HybridClock {
    last: Counter,
    ceiling: Counter,
}

/// How far above the counter just minted the next ceiling is put, milliseconds. It is written once
/// in so long, with a write that goes to disk anyway.
const CEILING_STEP_MS: u64 = 10_000;

impl HybridClock {
    /// A clock that resumes above `ceiling`, the value last persisted.
    pub fn resume(ceiling: Counter) -> Self {
        Self { last: ceiling, ceiling }
    }

    /// A counter above every earlier one and above `seen`, and the new ceiling if it must be
    /// persisted together with whatever uses the counter.
    ///
    /// A `seen` too far ahead is not followed. Nothing but the time shown for a write depends on
    /// it: one supersedes another by its context, and a counter is compared with those of its own
    /// node alone.
    pub fn mint(&mut self, now_ms: u64, seen: Counter) -> (Counter, Option<Counter>) {
        let followed = !seen.is_too_far_ahead(now_ms.max(self.last.ms()));
        let floor = if followed { self.last.max(seen) } else { self.last }.0 + 1;
        let counter = Counter(Counter::at_ms(now_ms).0.max(floor));
        self.last = counter;
        if counter <= self.ceiling {
            return (counter, None);
        }
        self.ceiling = Counter::at_ms(counter.ms() + CEILING_STEP_MS);
        (counter, Some(self.ceiling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counters_grow_whatever_the_wall_clock_does(
            readings in prop::collection::vec((0u64..1 << 47, 0u64..1 << 62), 1..200),
            restarts in prop::collection::vec(any::<bool>(), 200),
        ) {
            let mut persisted = Counter::default();
            let mut clock = HybridClock::resume(persisted);
            let mut last = Counter::default();
            for ((now, seen), restart) in readings.into_iter().zip(restarts) {
                if restart {
                    clock = HybridClock::resume(persisted);
                }
                let seen = Counter(seen % (last.0 + 1000));
                let (counter, ceiling) = clock.mint(now, seen);
                persisted = ceiling.unwrap_or(persisted);
                prop_assert!(counter > last);
                prop_assert!(counter > seen || seen.is_too_far_ahead(now.max(last.ms())));
                prop_assert!(counter <= persisted, "used a counter no restart would skip");
                last = counter;
            }
        }
    }

    #[test]
    fn a_clock_that_is_far_ahead_somewhere_is_not_followed() {
        let mut clock = HybridClock::resume(Counter::default());
        let now = 1_700_000_000_000;
        let (first, _) = clock.mint(now, Counter::at_ms(now + DRIFT_MS_MAX));
        assert_eq!(first.ms(), now + DRIFT_MS_MAX, "what is near is followed");
        for far in [Counter::at_ms(now + 3 * DRIFT_MS_MAX), Counter(u64::MAX)] {
            let (second, _) = clock.mint(now, far);
            assert_eq!(second.ms(), first.ms());
        }
        // A node set back itself goes by what it minted before, not by what its wall clock says.
        let (third, _) = clock.mint(0, Counter::at_ms(first.ms() + DRIFT_MS_MAX));
        assert_eq!(third.ms(), first.ms() + DRIFT_MS_MAX);
    }

    #[test]
    fn a_counter_tells_its_millisecond() {
        let (counter, _) =
            HybridClock::resume(Counter::default()).mint(1_700_000_000_000, Counter(0));
        assert_eq!(counter.ms(), 1_700_000_000_000);
        assert!(!counter.is_too_far_ahead(1_700_000_000_000 - DRIFT_MS_MAX));
        assert!(counter.is_too_far_ahead(1_699_999_999_999 - DRIFT_MS_MAX));
    }
}
