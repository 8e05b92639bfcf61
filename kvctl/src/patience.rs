//! Asking again and again until something is so: how often, how long, and through which failures.

use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use std::time::{Duration, Instant};

/// Pauses between two questions. The first are short: much is done at once.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(1);

/// Failures in a row that are borne. Each has already tried every known node.
const FAILURES_MAX: u32 = 5;

/// How long somebody still waits.
pub(crate) struct Patience {
    deadline: Option<Instant>,
    pause: Duration,
    failures: u32,
}

impl Patience {
    /// Waits as long as `limit`; without one, as long as it takes.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { deadline, pause: PAUSE_FIRST, failures: 0 }
    }

    /// Pauses; false: the time is up.
    pub(crate) async fn pause(&mut self) -> bool {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return false;
        }
        tokio::time::sleep(self.pause.min(left.unwrap_or(PAUSE_LAST))).await;
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        true
    }

    /// The answer, if there was one. A node that is lost or too slow is left for another, and
    /// only when that has not helped for a while the failure is one.
    pub(crate) async fn bear<T>(
        &mut self,
        connection: &Connection,
        answer: Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        match answer {
            Ok(answer) => {
                self.failures = 0;
                Ok(Some(answer))
            }
            Err(failure) if passes(&failure) && self.failures < FAILURES_MAX => {
                self.failures += 1;
                connection.leave_node().await;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Whether it may be over with another node, or soon. A node that has not heard of an operation
/// yet is no proof that there is none, and one that was removed meanwhile can be asked no more.
fn passes(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Unreachable | Exit::TimedOut)
        || matches!(failure.code(), "OP_UNKNOWN" | "REMOVED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_that_is_up_is_not_waited_for() {
        let mut patience = Patience::new(Some(Duration::from_millis(20)));
        let start = Instant::now();
        while patience.pause().await {}
        assert!((20..2_000).contains(&start.elapsed().as_millis()));
        assert!(Patience::new(None).pause().await);
    }

    #[test]
    fn only_what_may_pass_is_borne() {
        let failure = |exit, code| Failure::new(exit, code, "x");
        assert!(passes(&failure(Exit::Unreachable, "CONNECTION_LOST")));
        assert!(passes(&failure(Exit::TimedOut, "DEADLINE_EXCEEDED")));
        assert!(passes(&failure(Exit::NotFound, "OP_UNKNOWN")));
        assert!(passes(&failure(Exit::NotPermitted, "REMOVED")));
        assert!(!passes(&failure(Exit::NotPermitted, "STRANGER")));
        assert!(!passes(&failure(Exit::NotFound, "NODE_UNKNOWN")));
        assert!(!passes(&failure(Exit::Refused, "BLANK")));
    }
}
