//! How often one address may connect: the generic cell rate algorithm (ITU-T I.371), which keeps one
//! instant for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who connects how often.
pub struct Pace {
    interval: Duration,
    /// What may come at once is over after so long at that pace.
    burst: Duration,
    /// When all that an address did would be over at that pace. Whose is past is as good as unknown.
    over: Mutex<HashMap<IpAddr, Instant>>,
}

impl Pace {
    /// `per_second` of each address, and `burst` more at once of one that has not come for a while.
    pub fn new(per_second: NonZeroU32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        Self { interval, burst: interval * burst, over: Mutex::default() }
    }

    /// One more of `address` comes `now`: how long it is to wait. Where that is more than `most` it does
    /// not count, and is not to be taken in at all.
    pub fn wait(&self, address: IpAddr, now: Instant, most: Duration) -> Option<Duration> {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let known = over.get(&address).copied();
        // Those that are past go before one more would take more room.
        if known.is_none() && over.len() == over.capacity() {
            over.retain(|_, at| *at > now);
        }
        let at = known.map_or(now, |at| now.max(at)) + self.interval;
        let wait = at.duration_since(now).saturating_sub(self.burst);
        if wait > most {
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
        let (pace, begun) = (Pace::new(NonZeroU32::new(10).unwrap(), 3), Instant::now());
        let come = |address, after| pace.wait(address, begun + after, 250 * MS);
        let waits: Vec<_> = (0..6).map(|_| come(address(1), Duration::ZERO)).collect();
        let ms = |ms: u32| Some(ms * MS);
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(100), ms(200), None]);
        assert_eq!(come(address(2), Duration::ZERO), ms(0), "another waits for nobody");
        // Who was sent away took no place; a second later the five that came are over, and all is as new.
        assert_eq!(come(address(1), 100 * MS), ms(200));
        let waits: Vec<_> = (0..4).map(|_| come(address(1), 600 * MS)).collect();
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(100)]);
    }

    #[test]
    fn of_who_came_long_ago_nothing_is_kept() {
        let (pace, begun) = (Pace::new(NonZeroU32::new(1000).unwrap(), 1), Instant::now());
        for number in 0..100_000 {
            assert_eq!(
                pace.wait(address(number), begun + number * MS, MS),
                Some(Duration::ZERO),
                "{number}"
            );
        }
        assert!(pace.over.lock().unwrap().capacity() < 100);
    }
}
