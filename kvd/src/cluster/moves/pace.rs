//! How fast copies are fetched, so that requests come first.

use std::time::{Duration, Instant};

/// So often the share of the rate changes, at most: a request's round trip has to show it first.
const STEP: Duration = Duration::from_millis(250);

/// Halved so often at most: what stands back for requests that never cease must still end.
const HALVINGS_MAX: u32 = 6;

/// Never below this, bytes a second, for requests' sake.
const FLOOR: u64 = 1024 * 1024;

/// What a rate without a bound is taken for once requests are slow.
const BOUNDLESS: u64 = 1024 * 1024 * 1024;

/// The rate is halved as long as requests take much longer than they can, and doubled, up to what
/// is ordered, as long as they do not.
#[derive(Debug, Default)]
pub(super) struct Pace {
    halvings: u32,
    stepped: Option<Instant>,
    /// What was fetched is paid for by then.
    paid: Option<Instant>,
}

impl Pace {
    /// When `bytes` more, just fetched, are paid for, at `ordered` bytes a second (0: no bound).
    pub(super) fn pay(&mut self, now: Instant, ordered: u64, is_busy: bool, bytes: u64) -> Instant {
        self.step(now, is_busy);
        let rate = self.rate(ordered);
        let from = self.paid.unwrap_or(now).max(now);
        let until = match rate {
            0 => now,
            rate => from + Duration::from_secs_f64(bytes as f64 / rate as f64),
        };
        self.paid = Some(until);
        until
    }

    fn step(&mut self, now: Instant, is_busy: bool) {
        if self.stepped.is_some_and(|at| now.duration_since(at) < STEP) {
            return;
        }
        self.stepped = Some(now);
        self.halvings = match is_busy {
            true => (self.halvings + 1).min(HALVINGS_MAX),
            false => self.halvings.saturating_sub(1),
        };
    }

    fn rate(&self, ordered: u64) -> u64 {
        match (self.halvings, ordered) {
            (0, ordered) => ordered,
            (halvings, 0) => BOUNDLESS >> halvings,
            (halvings, ordered) => (ordered >> halvings).max(FLOOR.min(ordered)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_rate_is_paid_off_by_all_pages_together() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.pay(now, MIB, false, MIB), now + Duration::from_secs(1));
        assert_eq!(pace.pay(now, MIB, false, MIB), now + Duration::from_secs(2));
        let later = now + Duration::from_secs(9);
        assert_eq!(pace.pay(later, MIB, false, MIB), later + Duration::from_secs(1));
        assert_eq!(pace.pay(later, 0, false, MIB), later, "no bound");
    }

    #[test]
    fn slow_requests_halve_it_step_by_step_and_quick_ones_give_it_back() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut rate_after = |is_busy: bool| {
            now += STEP;
            pace.step(now, is_busy);
            pace.step(now, is_busy); // no more than once in a while
            [64 * MIB, MIB / 2, 0].map(|ordered| pace.rate(ordered))
        };
        assert_eq!(rate_after(true), [32 * MIB, MIB / 2, 512 * MIB]);
        assert_eq!(rate_after(true), [16 * MIB, MIB / 2, 256 * MIB]);
        let lowest = (0..10).map(|_| rate_after(true)).last();
        assert_eq!(lowest, Some([MIB, MIB / 2, 16 * MIB]), "it goes on");
        let highest = (0..10).map(|_| rate_after(false)).last();
        assert_eq!(highest, Some([64 * MIB, MIB / 2, 0]));
    }
}
