//! Latency buckets: four to the octave, so a quantile is off by at most 1/8 of its value.

use crate::v1::Histogram;

/// Number of buckets. The last holds everything from about 67 s on.
pub const BUCKETS: usize = 104;

/// The bucket a latency of `micros` falls in.
pub fn bucket(micros: u64) -> usize {
    if micros < 4 {
        return micros as usize;
    }
    let octave = micros.ilog2() as usize;
    let quarter = (micros >> (octave - 2)) as usize & 3;
    ((octave - 1) * 4 + quarter).min(BUCKETS - 1)
}

/// The smallest latency, in microseconds, that falls in bucket `index`.
pub fn lower_bound(index: usize) -> u64 {
    if index < 4 {
        return index as u64;
    }
    let (octave, quarter) = (index / 4 + 1, index as u64 % 4);
    (4 + quarter) << (octave - 2)
}

/// The latency, in microseconds, that a share `q` (0 to 1) of the counted requests did not exceed;
/// the middle of its bucket. `None` when nothing was counted.
pub fn quantile(counts: &[u64; BUCKETS], q: f64) -> Option<u64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    for (index, count) in counts.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return Some(lower_bound(index).midpoint(lower_bound(index + 1).max(1) - 1));
        }
    }
    None
}

/// Every bucket's count, from the sparse form on the wire. Unknown buckets are dropped.
pub fn dense(histogram: &Histogram) -> [u64; BUCKETS] {
    let mut counts = [0; BUCKETS];
    for (index, count) in histogram.index.iter().zip(&histogram.count) {
        if let Some(slot) = counts.get_mut(*index as usize) {
            *slot = *count;
        }
    }
    counts
}

/// The sparse form on the wire.
pub fn sparse(counts: &[u64; BUCKETS]) -> Histogram {
    let (index, count) =
        counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, n)| (i as u32, *n)).unzip();
    Histogram { index, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_between_the_bounds_of_its_bucket() {
        for micros in (0..5_000).chain((12..40).map(|shift| (1 << shift) + 3)) {
            let index = bucket(micros);
            assert!(lower_bound(index) <= micros, "{micros} in bucket {index}");
            assert!(index == BUCKETS - 1 || micros < lower_bound(index + 1), "{micros}");
        }
    }

    #[test]
    fn a_quantile_is_within_an_eighth() {
        let mut counts = [0; BUCKETS];
        (1..=10_000).for_each(|micros| counts[bucket(micros)] += 1);
        for (q, exact) in [(0.5, 5_000_f64), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let got = quantile(&counts, q).unwrap() as f64;
            assert!((got - exact).abs() / exact <= 0.125, "q {q}: {got}");
        }
        assert_eq!(quantile(&[0; BUCKETS], 0.5), None);
    }

    #[test]
    fn the_wire_form_loses_nothing() {
        let mut counts = [0; BUCKETS];
        (counts[3], counts[77]) = (5, 9);
        assert_eq!(dense(&sparse(&counts)), counts);
    }
}
