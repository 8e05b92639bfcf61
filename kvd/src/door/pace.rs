//! How often one address may connect: the generic cell rate algorithm (ITU-T I.371), which keeps one
//! instant for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Nobody is let wait for longer, however slow the pace.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Who connects how often.
pub struct Pace {
    interval: Duration,
    /// What may come at once is over after so long at that pace.
    burst: Duration,
    /// Nobody waits for longer.
    wait_max: Duration,
    /// When all that an address did would be over at that pace. Whose is past is as good as unknown.
    over: Mutex<HashMap<IpAddr, Instant>>,
}

impl Pace {
    /// `per_second` of each address, and `burst` more at once of one that has not come for a while. After
    /// these so many wait.
    pub fn new(per_second: NonZeroU32, burst: u32, waiting_max: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        let wait_max = WAIT_MAX.min(interval * waiting_max);
        Self { interval, burst: interval * burst, wait_max, over: Mutex::default() }
    }

    /// One more of `address` comes `now`: how long it has to wait. None: too many wait before it, and it
    /// does not count.
    pub fn book(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let known = over.get(&address).copied();
        // Those that are past go before one more would take more room.
        if known.is_none() && over.len() == over.capacity() {
            over.retain(|_, at| *at > now);
        }
        let at = known.map_or(now, |at| now.max(at)) + self.interval;
        let wait = at.duration_since(now).saturating_sub(self.burst);
        if wait > self.wait_max {
            return None;
        }
        over.insert(address, at);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    #[test]
    fn a_burst_comes_at_once_and_what_follows_in_its_time() {
        let (pace, begun) = (Pace::new(NonZeroU32::new(10).unwrap(), 3, 2), Instant::now());
        let come = |address, after| pace.book(address, begun + after);
        let waits: Vec<_> = (0..6).map(|_| come(address(1), Duration::ZERO)).collect();
        let ms = |ms: u32| Some(ms * MS);
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(100), ms(200), None]);
        assert_eq!(come(address(2), Duration::ZERO), ms(0), "another waits for nobody");
        // Who was sent away took no place: the six that came are over 600 ms after the first, and all is as new.
        assert_eq!(come(address(1), 100 * MS), ms(200));
        let waits: Vec<_> = (0..4).map(|_| come(address(1), 600 * MS)).collect();
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(100)]);
    }

    #[test]
    fn of_who_came_long_ago_nothing_is_kept() {
        let (pace, begun) = (Pace::new(NonZeroU32::new(1000).unwrap(), 1, 1), Instant::now());
        for number in 0..100_000 {
            assert_eq!(pace.book(address(number), begun + number * MS), Some(Duration::ZERO));
        }
        assert!(pace.over.lock().unwrap().capacity() < 100);
    }
}
