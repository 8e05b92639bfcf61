//! How many requests a node works on at once. By Little's law what is under way is what is answered
//! in a second times how long that takes; so bounding it by the rate bounds how long a request waits,
//! whatever it is that is slow, and what is beyond is refused at once, while clients still have time
//! to go elsewhere (the idea of Netflix's concurrency-limits, and of CoDel for queues).

/// Under overload a request that is taken waits about so long, milliseconds.
const WAIT_MS: u64 = 250;

/// So many are always taken: a burst on an idle node is no overload.
pub const AT_LEAST: usize = 256;

/// What a node answered lately, and what it takes because of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    at_most: usize,
    per_second: u64,
}

impl Admission {
    /// Of a node that has answered nothing yet. Never more than `at_most`.
    pub fn new(at_most: usize) -> Self {
        Self { at_most, per_second: 0 }
    }

    /// In the last `ms` milliseconds it answered so many.
    pub fn answered(&mut self, requests: u64, ms: u64) {
        let now = requests.saturating_mul(1000) / ms.max(1);
        // A quick look up, a slow one down: one pause of a disk is not the end of its pace.
        self.per_second = match now >= self.per_second {
            true => self.per_second / 2 + now / 2 + 1,
            false => self.per_second - (self.per_second - now) / 8,
        };
    }

    /// How many may be under way.
    pub fn limit(&self) -> usize {
        let by_rate = self.per_second.saturating_mul(WAIT_MS) / 1000;
        usize::try_from(by_rate).unwrap_or(usize::MAX).max(AT_LEAST).min(self.at_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_what_is_answered_in_a_quarter_of_a_second() {
        let mut admission = Admission::new(4096);
        assert_eq!(admission.limit(), AT_LEAST, "an idle node takes a burst");
        for _ in 0..40 {
            admission.answered(2000, 250);
        }
        assert!((1950..=2010).contains(&admission.limit()), "{admission:?}");
        admission.answered(0, 250);
        assert!(admission.limit() > 1500, "one pause changes little");
        for _ in 0..80 {
            admission.answered(0, 250);
        }
        assert_eq!(admission.limit(), AT_LEAST);
        admission.answered(u64::MAX, 0);
        assert_eq!(admission.limit(), 4096, "there is an end to it");
    }
}
