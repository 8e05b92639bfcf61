//! Rates: differences between two reports of one node's counters.

use super::Millis;
use proto::histogram::{BUCKETS, dense, quantile};
use proto::v1::{Histogram, NodeStats};
use std::ops::Add;

/// Reports closer together than this are not compared: the difference would be mostly noise.
const APART_MIN: Millis = 200;

/// Requests per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub gets: f64,
    /// Puts and deletes.
    pub puts: f64,
    pub failures: f64,
    pub read_repairs: f64,
    pub siblings: f64,
}

impl Add for Rates {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            gets: self.gets + other.gets,
            puts: self.puts + other.puts,
            failures: self.failures + other.failures,
            read_repairs: self.read_repairs + other.read_repairs,
            siblings: self.siblings + other.siblings,
        }
    }
}

/// Requests counted by latency.
pub(super) type Latency = Box<[u64; BUCKETS]>;

/// What a node did between its last two reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    pub rates: Rates,
    pub gets: Latency,
    pub puts: Latency,
}

impl Load {
    /// Microseconds that 99% of its gets did not exceed.
    pub fn get_p99(&self) -> Option<u64> {
        quantile(&self.gets, 0.99)
    }

    /// Microseconds that 99% of its puts did not exceed.
    pub fn put_p99(&self) -> Option<u64> {
        quantile(&self.puts, 0.99)
    }
}

/// One node's counters as last reported, to compare the next report with.
#[derive(Clone, Debug)]
pub(super) struct Track {
    base: NodeStats,
    base_at: Millis,
    pub(super) load: Option<Load>,
}

impl Track {
    pub(super) fn new(stats: &NodeStats, at: Millis) -> Self {
        Self { base: stats.clone(), base_at: at, load: None }
    }

    /// Takes in a report made at `at`; true when it tells something new. After a restart, or when
    /// more than `gap_max` went by, it is only the start for the next.
    pub(super) fn report(&mut self, stats: &NodeStats, at: Millis, gap_max: Millis) -> bool {
        let passed = at.saturating_sub(self.base_at);
        if restarted(&self.base, stats) || passed > gap_max {
            *self = Self::new(stats, at);
            return false;
        }
        if passed < APART_MIN {
            return false;
        }
        self.load = Some(between(&self.base, stats, passed as f64 / 1000.0));
        (self.base, self.base_at) = (stats.clone(), at);
        true
    }
}

fn restarted(before: &NodeStats, after: &NodeStats) -> bool {
    let counters =
        |s: &NodeStats| [s.gets, s.puts, s.deletes, s.failures, s.read_repairs, s.siblings_seen];
    before.started_at_ms != after.started_at_ms
        || before.incarnation != after.incarnation
        || counters(before).iter().zip(counters(after)).any(|(b, a)| a < *b)
}

fn between(before: &NodeStats, after: &NodeStats, seconds: f64) -> Load {
    let rate = |count: fn(&NodeStats) -> u64| (count(after) - count(before)) as f64 / seconds;
    Load {
        rates: Rates {
            gets: rate(|s| s.gets),
            puts: rate(|s| s.puts) + rate(|s| s.deletes),
            failures: rate(|s| s.failures),
            read_repairs: rate(|s| s.read_repairs),
            siblings: rate(|s| s.siblings_seen),
        },
        gets: counted(before.get_latency.as_ref(), after.get_latency.as_ref()),
        puts: counted(before.put_latency.as_ref(), after.put_latency.as_ref()),
    }
}

fn counted(before: Option<&Histogram>, after: Option<&Histogram>) -> Latency {
    let dense = |histogram: Option<&Histogram>| histogram.map_or([0; BUCKETS], dense);
    let mut counts = Box::new(dense(after));
    for (count, old) in counts.iter_mut().zip(dense(before)) {
        *count = count.saturating_sub(old);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(gets: u64, started_at_ms: u64) -> NodeStats {
        NodeStats { gets, started_at_ms, ..Default::default() }
    }

    fn gets(track: &Track) -> Option<f64> {
        track.load.as_ref().map(|load| load.rates.gets)
    }

    #[test]
    fn a_rate_needs_two_reports_and_uses_the_time_between_them() {
        let mut track = Track::new(&stats(100, 1), 1_000);
        assert_eq!(gets(&track), None);
        assert!(track.report(&stats(400, 1), 4_000, 10_000));
        assert_eq!(gets(&track), Some(100.0));
    }

    #[test]
    fn a_repeated_report_keeps_the_rate() {
        let mut track = Track::new(&stats(0, 1), 1_000);
        track.report(&stats(50, 1), 2_000, 10_000);
        assert!(!track.report(&stats(50, 1), 2_000, 10_000));
        assert_eq!(gets(&track), Some(50.0));
    }

    #[test]
    fn a_restart_is_unknown_until_the_next_report_and_never_negative() {
        let mut track = Track::new(&stats(1_000, 1), 1_000);
        track.report(&stats(1_100, 1), 2_000, 10_000);
        track.report(&stats(5_000, 2), 3_000, 10_000);
        assert_eq!(gets(&track), None, "it started anew");
        track.report(&stats(5_010, 2), 4_000, 10_000);
        assert_eq!(gets(&track), Some(10.0));
        track.report(&stats(3, 2), 5_000, 10_000);
        assert_eq!(gets(&track), None, "a counter went down");
    }

    #[test]
    fn reports_too_far_apart_are_not_compared() {
        let mut track = Track::new(&stats(0, 1), 1_000);
        track.report(&stats(9_000, 1), 91_000, 10_000);
        assert_eq!(gets(&track), None);
        track.report(&stats(9_010, 1), 92_000, 10_000);
        assert_eq!(gets(&track), Some(10.0));
    }

    #[test]
    fn latency_counts_only_what_came_between() {
        let with = |count: u64| NodeStats {
            get_latency: Some(Histogram { index: vec![40], count: vec![count] }),
            ..Default::default()
        };
        let mut track = Track::new(&with(7), 1_000);
        track.report(&with(9), 2_000, 10_000);
        let load = track.load.clone().unwrap();
        assert_eq!(load.gets[40], 2);
        assert_eq!(load.put_p99(), None);
        assert!(load.get_p99().is_some());
    }
}
