//! What the whole cluster did lately, for sparklines and latencies.

use super::rates::Latency;
use super::{Load, Millis, Rates};
use proto::histogram::{BUCKETS, quantile};
use std::collections::VecDeque;

/// Points kept. The oldest goes when it is full: 2.5 minutes at the shortest interval.
const POINTS_MAX: usize = 600;

/// The time between two samples.
#[derive(Clone, Debug)]
pub struct Point {
    from: Millis,
    to: Millis,
    rates: Option<Rates>,
    gets: Latency,
    puts: Latency,
}

impl Point {
    pub(super) fn new(from: Millis, to: Millis) -> Self {
        let none = || Box::new([0; BUCKETS]);
        Self { from, to, rates: None, gets: none(), puts: none() }
    }

    /// Adds a node. Without `news` its latencies are those already counted in the point before.
    pub(super) fn add(&mut self, load: &Load, news: bool) {
        self.rates = Some(self.rates.unwrap_or_default() + load.rates);
        if news {
            merge(&mut self.gets, &load.gets);
            merge(&mut self.puts, &load.puts);
        }
    }
}

/// Points in order of time; where none lies, nothing is known.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<Point>,
}

impl History {
    pub(super) fn push(&mut self, point: Point) {
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// Number of points that know a rate.
    pub fn known(&self) -> usize {
        self.points.iter().filter(|point| point.rates.is_some()).count()
    }

    /// Mean rate in each of `columns` equal slices of `span` milliseconds up to `end`, the oldest
    /// first; `None` where nothing is known.
    pub fn slices(
        &self,
        end: Millis,
        span: Millis,
        columns: usize,
        what: fn(&Rates) -> f64,
    ) -> Vec<Option<f64>> {
        let edge = |column: usize| {
            let back = u128::from(span) * (columns - column) as u128 / columns as u128;
            end.saturating_sub(back as u64)
        };
        (0..columns).map(|column| self.mean(edge(column), edge(column + 1), what)).collect()
    }

    /// Latency, in microseconds, that a share `q` of the gets since `since` did not exceed.
    pub fn get_latency(&self, since: Millis, q: f64) -> Option<u64> {
        self.latency(since, q, |point| &point.gets)
    }

    /// The same of puts and deletes.
    pub fn put_latency(&self, since: Millis, q: f64) -> Option<u64> {
        self.latency(since, q, |point| &point.puts)
    }

    fn mean(&self, from: Millis, to: Millis, what: fn(&Rates) -> f64) -> Option<f64> {
        let (mut weighed, mut covered) = (0.0, 0.0);
        for point in
            self.points.iter().rev().skip_while(|p| p.from >= to).take_while(|p| p.to > from)
        {
            let overlap = point.to.min(to).saturating_sub(point.from.max(from)) as f64;
            if let Some(rates) = &point.rates {
                weighed += what(rates) * overlap;
                covered += overlap;
            }
        }
        (covered > 0.0).then(|| weighed / covered)
    }

    fn latency(&self, since: Millis, q: f64, of: fn(&Point) -> &Latency) -> Option<u64> {
        let mut sum = [0; BUCKETS];
        for point in self.points.iter().rev().take_while(|point| point.to > since) {
            merge(&mut sum, of(point));
        }
        quantile(&sum, q)
    }
}

fn merge(into: &mut [u64; BUCKETS], from: &[u64; BUCKETS]) {
    for (sum, count) in into.iter_mut().zip(from) {
        *sum = sum.saturating_add(*count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(from: Millis, to: Millis, gets: Option<f64>) -> Point {
        let rates = gets.map(|gets| Rates { gets, ..Default::default() });
        Point { rates, ..Point::new(from, to) }
    }

    #[test]
    fn a_slice_is_the_mean_of_what_lies_in_it_and_a_gap_is_none() {
        let mut history = History::default();
        history.push(point(0, 1_000, Some(10.0)));
        history.push(point(1_000, 2_000, Some(30.0)));
        history.push(point(2_000, 3_000, None));
        history.push(point(9_000, 10_000, Some(5.0)));
        let slices = history.slices(10_000, 10_000, 5, |rates| rates.gets);
        assert_eq!(slices, [Some(20.0), None, None, None, Some(5.0)]);
        assert_eq!(history.slices(10_000, 10_000, 0, |r| r.gets), []);
    }

    #[test]
    fn an_interval_longer_than_a_slice_leaves_no_false_gaps() {
        let mut history = History::default();
        history.push(point(0, 5_000, Some(10.0)));
        history.push(point(5_000, 10_000, Some(20.0)));
        let slices = history.slices(10_000, 10_000, 10, |rates| rates.gets);
        assert!(slices.iter().all(Option::is_some));
    }

    #[test]
    fn points_are_bounded() {
        let mut history = History::default();
        (0..2_000).for_each(|i| history.push(point(i, i + 1, Some(1.0))));
        assert_eq!(history.known(), POINTS_MAX);
    }
}
