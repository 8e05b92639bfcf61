//! C2: a regular register with siblings. For strict keyspaces, where R + W > N.
//!
//! A read that begins after a write was acknowledged returns it, or what took its place, and
//! nothing it had covered. Time: see `sweep.rs`.

use super::graph::Graph;
use super::sweep::{Finding, Settled, sweep};
use super::{Violation, returned};
use crate::history::History;

/// Reads that miss a write acknowledged before they began, or return what it had covered. That
/// they return nothing nobody put is for [`phantoms`](super::c9::phantoms) to tell.
pub fn regular(history: &History) -> Vec<Violation> {
    Graph::of_keys(history).iter().flat_map(of_key).collect()
}

fn of_key(graph: &Graph<'_>) -> Vec<Violation> {
    let acked = graph.writes.iter().filter_map(|write| {
        let since_ns = write.ok_ns()?;
        Some(Settled { write, since_ns, by: write })
    });
    let told = sweep(graph, acked.collect(), &graph.gets).into_iter().map(|finding| {
        let (value, words) = match finding {
            Finding::Missing(read, Settled { write, .. }) => (
                write.value().unwrap_or_default(),
                format!(
                    "{read} returned {}, which does not account for {write}, acknowledged before",
                    returned(read)
                ),
            ),
            Finding::Replaced(read, version, Settled { write, .. }) => (
                &version.value[..],
                format!("{read} returned {version}, covered by {write}, acknowledged before"),
            ),
        };
        Violation { check: "C2", key: graph.key.into(), value: value.into(), words }
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::script::{history, values};

    #[test]
    fn a_read_returns_what_was_acknowledged_before_or_what_took_its_place() {
        let regular = "
            0-10 s1 put a
            20-30 s2 get a
            40-50 s1 put b over a
            60-? s2 put c over b
            70-80 s3 get c
            90-95 s3 get b
            100-110 s2 delete over c
            120-130 s3 get";
        assert_eq!(regular_of(regular), [""; 0]);
    }

    #[test]
    fn a_read_that_overlaps_a_write_may_miss_it() {
        assert_eq!(regular_of("0-30 s1 put a\n20-40 s2 get\n30-50 s3 get"), [""; 0]);
    }

    #[test]
    fn a_stale_read_is_caught_once() {
        let stale = "
            0-10 s1 put a
            20-30 s1 put b over a
            40-50 s2 get a
            60-70 s2 get";
        let found = regular(&history(stale));
        assert_eq!(values(&found), ["b", "a"]);
        assert!(
            found[0].words.contains("returned [a@1:1], which does not account for the put of b"),
            "{}",
            found[0]
        );
        assert!(found[1].words.contains("returned a@1:1, covered by the put of b"), "{}", found[1]);
    }

    #[test]
    fn a_sibling_that_a_read_lacks_is_missing() {
        assert_eq!(regular_of("0-10 s1 put a\n0-10 s2 put b\n20-30 s3 get b"), ["a"]);
    }

    #[test]
    fn what_covers_must_have_been_asked_for_before_the_read_ended() {
        let late = "0-10 s1 put a\n20-30 s2 get\n40-50 s1 delete over a";
        assert_eq!(regular_of(late), ["a"]);
        assert_eq!(regular_of(&late.replace("40-50", "25-50")), [""; 0]);
    }

    #[test]
    fn a_refused_write_is_no_excuse_and_one_in_doubt_is() {
        let story = |end: &str| format!("0-10 s1 put a\n{end} s1 delete over a\n40-50 s2 get");
        assert_eq!(regular_of(&story("20-30!")), ["a"]);
        assert_eq!(regular_of(&story("20-30?")), [""; 0]);
    }

    #[test]
    fn a_put_acknowledged_after_the_one_that_covered_it_counts_as_covered() {
        let read_early = "
            0-90 s1 put a
            20-30 s2 get a
            40-50 s2 put b over a
            100-110 s3 get b";
        assert_eq!(regular_of(read_early), [""; 0]);
        assert_eq!(regular_of(&read_early.replace("get b", "get a b")), ["a"]);
    }

    fn regular_of(script: &str) -> Vec<String> {
        values(&regular(&history(script)))
    }
}
