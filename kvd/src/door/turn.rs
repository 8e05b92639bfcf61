//! When a request is begun. Who asks alone has all at once worked on; where others ask too, of each
//! connection a few at a time, so that a burst keeps them waiting for as long as a few take.

use crate::clock;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests of one connection that are worked on at once where others ask too, for each processor; and
/// the least there are.
const AT_WORK_PER_PROCESSOR: usize = 4;
const AT_WORK_MIN: usize = 8;

/// Who has asked in so long asks too.
const LATELY: Duration = Duration::from_secs(1);

/// A request waits so long for its turn at most: time enough for a burst to be done in pieces, and too
/// little to matter where those before it wait for a disk or a peer.
const TURN_MAX: Duration = Duration::from_millis(20);

/// The connections that ask one node.
pub struct Company {
    at_work_max: usize,
    lately: Duration,
    joined: AtomicU64,
    last: Mutex<Option<Last>>,
}

/// Who asked last, and when; and when last somebody else did.
struct Last {
    who: u64,
    at: Instant,
    others_at: Option<Instant>,
}

/// The turns of one connection's requests.
pub struct Turns {
    company: Arc<Company>,
    who: u64,
    free: Arc<Semaphore>,
}

impl Company {
    /// Nobody yet. Of each as many requests are worked on as this machine's processors allow.
    pub fn new() -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self::of(AT_WORK_MIN.max(AT_WORK_PER_PROCESSOR * processors), LATELY)
    }

    fn of(at_work_max: usize, lately: Duration) -> Arc<Self> {
        Arc::new(Self { at_work_max, lately, joined: AtomicU64::new(0), last: Mutex::default() })
    }

    /// One connection more.
    pub fn join(self: &Arc<Self>) -> Turns {
        let who = self.joined.fetch_add(1, Ordering::Relaxed);
        let free = Arc::new(Semaphore::new(self.at_work_max));
        Turns { company: Arc::clone(self), who, free }
    }

    /// `who` asks `now`: whether nobody else has lately.
    fn asks_alone(&self, who: u64, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Of all others, who asked right before this one began to is the last.
        let others_at = match &*last {
            Some(last) if last.who == who => last.others_at,
            Some(last) => Some(last.at),
            None => None,
        };
        *last = Some(Last { who, at: now, others_at });
        others_at.is_none_or(|at| now.saturating_duration_since(at) > self.lately)
    }
}

impl Turns {
    /// The turn of one request, as long as it is held; none: it needs none, or has waited long enough.
    pub async fn next(&self) -> Option<OwnedSemaphorePermit> {
        if self.company.asks_alone(self.who, clock::now()) {
            // It counts all the same: somebody may come meanwhile.
            return Arc::clone(&self.free).try_acquire_owned().ok();
        }
        let turn = Arc::clone(&self.free).acquire_owned();
        tokio::time::timeout(TURN_MAX, turn).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_has_its_turn_when_one_before_it_is_done_and_waits_no_longer_than_that_matters()
     {
        let company = Company::of(2, Duration::MAX);
        let (turns, others) = (company.join(), company.join());
        others.next().await;
        let (first, second) = (turns.next().await.unwrap(), turns.next().await.unwrap());
        let began = clock::now();
        assert!(turns.next().await.is_none() && began.elapsed() >= TURN_MAX);
        let ((), third) = tokio::join!(async { drop(first) }, turns.next());
        assert!(third.is_some());
        drop((second, third));
        assert_eq!(turns.free.available_permits(), 2, "who waited for long enough holds none");
    }

    #[test]
    fn one_asks_alone_unless_another_has_lately() {
        let (company, begun) = (Company::of(1, LATELY), Instant::now());
        let is_alone =
            |who, after_ms| company.asks_alone(who, begun + Duration::from_millis(after_ms));
        assert!(is_alone(1, 0) && is_alone(1, 10), "there is nobody else");
        assert!(!is_alone(2, 20) && !is_alone(2, 900), "the first has lately");
        assert!(!is_alone(1, 950), "so has the second");
        assert!(!is_alone(1, 1900), "at 900");
        assert!(is_alone(1, 1901), "longer ago than that");
        assert!(!is_alone(3, 2000) && !is_alone(2, 2900) && is_alone(1, 9000));
    }
}
