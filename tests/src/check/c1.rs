//! C1: no acknowledged write is lost, and none that was replaced comes back.
//!
//! Compares all writes with the final reads: every replica joined, after all else. Holds at every
//! level of consistency. Time n log n.

use super::graph::{Graph, versions};
use super::{Violation, returned};
use crate::history::{History, Op, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Acknowledged values that the final reads neither return nor account for; values they return
/// although an acknowledged write had covered them; keys that were written and have no final read.
pub fn lost_writes(history: &History) -> Vec<Violation> {
    Graph::of_keys(history).iter().flat_map(of_key).collect()
}

fn of_key(graph: &Graph<'_>) -> Vec<Violation> {
    let Some(last) = graph.finals.last() else {
        let acked = graph.writes.iter().filter(|write| write.ok_ns().is_some()).count();
        let words = format!("{acked} writes were acknowledged, and no final read succeeded");
        return if acked > 0 { vec![violation(graph, "", words)] } else { Vec::new() };
    };
    let mut found = lost(graph, last);
    found.extend(come_back(graph, last));
    found
}

fn lost(graph: &Graph<'_>, last: &Op) -> Vec<Violation> {
    let mut there: BTreeSet<&str> = BTreeSet::new();
    let shown = versions(last).iter().filter_map(|version| graph.put_of(&version.value));
    // A delete leaves nothing to see: if it may have been stored, so may what it replaced be gone.
    let deletes = graph.writes.iter().copied();
    let deletes = deletes.filter(|write| write.value().is_none() && write.may_have_been_stored());
    for write in shown.chain(deletes) {
        graph.covered_below(write, &mut there, |_| {});
    }
    there.extend(versions(last).iter().map(|version| &version.value[..]));

    let acked = graph.writes.iter().filter(|write| write.ok_ns().is_some());
    let acked = acked.filter_map(|write| Some((write, write.value()?)));
    let missing = acked.filter(|(_, value)| !there.contains(value));
    let told = missing.map(|(write, value)| {
        let returned = returned(last);
        let words = format!("{write} is lost: {last} returned {returned}, none of which covers it");
        violation(graph, value, words)
    });
    told.collect()
}

fn come_back(graph: &Graph<'_>, last: &Op) -> Vec<Violation> {
    let mut replaced: BTreeMap<&Version, &Op> = BTreeMap::new();
    let before = |write: &&&Op| write.ok_ns().is_some_and(|at| at < last.invoked_ns);
    for write in graph.writes.iter().filter(before) {
        replaced.extend(write.covers().iter().map(|version| (version, *write)));
    }
    let back = versions(last).iter().filter_map(|version| {
        let by = replaced.get(version)?;
        let words = format!("{last} returned {version}, which {by} had covered");
        Some(violation(graph, &version.value, words))
    });
    back.collect()
}

fn violation(graph: &Graph<'_>, value: &str, words: String) -> Violation {
    Violation { check: "C1", key: graph.key.into(), value: value.into(), words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::script::{history, values};

    #[test]
    fn what_is_there_or_covered_by_what_is_there_is_not_lost() {
        let kept = "
            0-10 s1 put a
            20-30 s2 put b
            40-50 s1 put c over a
            60-70 s1 put d over c
            80-90 s9 final b d";
        assert_eq!(lost_writes(&history(kept)), []);
    }

    #[test]
    fn an_acknowledged_value_that_nothing_covered_is_lost() {
        let lost = "
            0-10 s1 put a
            20-30 s2 put b
            80-90 s9 final b";
        let found = lost_writes(&history(lost));
        assert_eq!(values(&found), ["a"]);
        let words = found[0].to_string();
        assert!(
            words.starts_with("C1 key k: the put of a (op 0, session 1, from 0.0000"),
            "{words}"
        );
        assert!(words.contains("is lost: the final read (op 2"), "{words}");
        assert!(words.contains("returned [b@2:1], none of which covers it"), "{words}");
    }

    #[test]
    fn a_chain_of_covering_writes_must_end_in_something_that_is_there() {
        let broken = "
            0-10 s1 put a
            20-30 s1 put b over a
            40-50 s1 put c over b
            80-90 s9 final";
        assert_eq!(values(&lost_writes(&history(broken))), ["a", "b", "c"]);
    }

    #[test]
    fn a_put_without_an_answer_excuses_what_it_covered_only_if_it_shows() {
        let stored = "
            0-10 s1 put a
            20-? s1 put b over a
            80-90 s9 final b";
        assert_eq!(lost_writes(&history(stored)), []);
        let not_stored = stored.replace("final b", "final a");
        assert_eq!(lost_writes(&history(&not_stored)), []);
        let neither = stored.replace("final b", "final");
        assert_eq!(values(&lost_writes(&history(&neither))), ["a"]);
    }

    #[test]
    fn a_delete_excuses_what_it_covered_unless_it_was_refused() {
        for (end, lost) in [("20-30", &[][..]), ("20-?", &[]), ("20-30!", &["a"])] {
            let deleted = format!(
                "0-10 s1 put a
                {end} s2 delete over a
                80-90 s9 final"
            );
            assert_eq!(values(&lost_writes(&history(&deleted))), lost, "{end}");
        }
    }

    #[test]
    fn a_refused_put_covers_nothing() {
        let refused = "
            0-10 s1 put a
            20-30! s1 put b over a
            80-90 s9 final";
        assert_eq!(values(&lost_writes(&history(refused))), ["a"]);
    }

    #[test]
    fn what_an_acknowledged_write_covered_does_not_come_back() {
        let back = "
            0-10 s1 put a
            20-30 s2 delete over a
            80-90 s9 final a";
        let found = lost_writes(&history(back));
        assert_eq!(values(&found), ["a"]);
        assert!(found[0].words.contains("which the delete (op 1"), "{}", found[0]);
        let beside = "
            0-10 s1 put a
            20-30 s2 put b over a
            80-90 s9 final a b";
        assert_eq!(values(&lost_writes(&history(beside))), ["a"]);
        let in_doubt = back.replace("20-30", "20-?");
        assert_eq!(lost_writes(&history(&in_doubt)), []);
    }

    #[test]
    fn the_other_try_of_a_write_may_show_again() {
        // a' is a under another dot: the context that covered a had not seen it.
        let twin = "
            0-10 s1 put a
            20-30 s2 delete over a
            80-90 s9 final a'";
        assert_eq!(lost_writes(&history(twin)), []);
    }

    #[test]
    fn a_key_without_a_final_read_is_not_taken_for_sound() {
        assert_eq!(lost_writes(&history("0-10 s1 put a")).len(), 1);
        assert_eq!(lost_writes(&history("0-10! s1 put a\n20-30 s1 get")), []);
    }
}
