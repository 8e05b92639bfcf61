//! C4: monotonic reads. What a completed read returned is not missing from later ones.
//!
//! Across clients in strict keyspaces, whose reads bring replicas level before they answer; within
//! one session, with its own writes, where sessions are promised. Time: see
//! `sweep.rs`, and as much as all reads returned together.

use super::graph::{Graph, versions};
use super::sweep::{Finding, Settled, sweep};
use super::{Violation, returned};
use crate::history::{History, Op, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Whose reads are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Across {
    /// All: what one client read no later read of another misses.
    Clients,
    /// Each session's by themselves; and it reads what it wrote.
    Session,
}

/// Reads that lack what a read completed before they began had returned, or return what that had
/// found covered or gone.
pub fn monotonic(history: &History, across: Across) -> Vec<Violation> {
    let graphs = Graph::of_keys(history);
    let of_key = |graph: &Graph<'_>| match across {
        Across::Clients => among(graph, &graph.gets, Vec::new()),
        Across::Session => {
            let sessions: BTreeSet<u32> = graph.gets.iter().map(|get| get.session).collect();
            sessions.into_iter().flat_map(|session| within(graph, session)).collect()
        }
    };
    graphs.iter().flat_map(of_key).collect()
}

fn within(graph: &Graph<'_>, session: u32) -> Vec<Violation> {
    let gets = graph.gets.iter().copied().filter(|get| get.session == session);
    let gets: Vec<&Op> = gets.collect();
    let mut written = Vec::new();
    for write in graph.writes.iter().filter(|write| write.session == session) {
        written.extend(write.ok_ns().map(|since_ns| Settled { write, since_ns, by: write }));
    }
    among(graph, &gets, written)
}

/// `reads` against each other, and against what is `settled` already.
fn among<'a>(graph: &Graph<'a>, reads: &[&'a Op], mut settled: Vec<Settled<'a>>) -> Vec<Violation> {
    let mut shown: BTreeMap<&str, Settled<'_>> = BTreeMap::new();
    for (read, version) in returns(reads) {
        // A value that nobody put is not to be expected again; C9 tells of it.
        let (Some(write), Some(since_ns)) = (graph.put_of(&version.value), read.ok_ns()) else {
            continue;
        };
        let first = shown.entry(&version.value).or_insert(Settled { write, since_ns, by: read });
        if since_ns < first.since_ns {
            *first = Settled { write, since_ns, by: read };
        }
    }
    settled.extend(shown.into_values());
    let told = sweep(graph, settled, reads).into_iter().map(|finding| match finding {
        Finding::Missing(read, Settled { write, by, .. }) => {
            let (value, returned) = (write.value().unwrap_or_default(), returned(read));
            let words = format!("{read} returned {returned}, and before {by} had shown {value}");
            violation(graph, value, words)
        }
        Finding::Replaced(read, version, Settled { write, by, .. }) => {
            let words = format!("{read} returned {version}, covered by {write}, shown by {by}");
            violation(graph, &version.value, words)
        }
    });
    let mut found: Vec<Violation> = told.collect();
    found.extend(come_back(graph, reads));
    found
}

/// Versions that a read returned, a later one did not, and a still later one did.
fn come_back(graph: &Graph<'_>, reads: &[&Op]) -> Vec<Violation> {
    let mut seen: BTreeMap<&Version, (u64, &Op)> = BTreeMap::new();
    for (read, version) in returns(reads) {
        let Some(ended_ns) = read.ok_ns() else { continue };
        let (first_ns, last) = seen.entry(version).or_insert((ended_ns, read));
        *first_ns = ended_ns.min(*first_ns);
        *last = read; // reads come in the order they were invoked
    }
    let back = seen.into_iter().filter_map(|(version, (first_ns, last))| {
        let from = reads.partition_point(|read| read.invoked_ns <= first_ns);
        let to = reads.partition_point(|read| read.invoked_ns < last.invoked_ns);
        let between = reads.get(from..to)?.iter();
        let lacking = |read: &&Op| {
            read.ok_ns().is_some_and(|ended_ns| ended_ns < last.invoked_ns)
                && versions(read).iter().all(|other| other.value != version.value)
        };
        let gone = between.copied().find(lacking)?;
        let words = format!("{last} returned {version}, which was gone when {gone} returned");
        let words = format!("{words} {}, after it had been shown", returned(gone));
        Some(violation(graph, &version.value, words))
    });
    back.collect()
}

fn returns<'a>(reads: &[&'a Op]) -> impl Iterator<Item = (&'a Op, &'a Version)> {
    reads.iter().flat_map(|&read| versions(read).iter().map(move |version| (read, version)))
}

fn violation(graph: &Graph<'_>, value: &str, words: String) -> Violation {
    Violation { check: "C4", key: graph.key.into(), value: value.into(), words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::script::{history, values};

    fn across_clients(script: &str) -> Vec<String> {
        values(&monotonic(&history(script), Across::Clients))
    }

    fn within_sessions(script: &str) -> Vec<String> {
        values(&monotonic(&history(script), Across::Session))
    }

    #[test]
    fn a_value_stays_until_something_takes_its_place() {
        let sound = "
            0-? s1 put a
            20-30 s2 get a
            40-50 s3 get a
            60-? s2 put b over a
            70-80 s3 get a
            90-100 s3 get b
            110-? s2 delete over b
            120-130 s3 get";
        assert_eq!(across_clients(sound), [""; 0]);
    }

    #[test]
    fn new_then_old_across_clients_is_caught() {
        let story = "
            0-10 s1 put a
            20-? s1 put b over a
            30-40 s2 get b
            50-60 s3 get a";
        assert_eq!(across_clients(story), ["b", "a"]);
        assert_eq!(within_sessions(story), [""; 0], "they are two sessions");
        assert_eq!(within_sessions(&story.replace("s3", "s2")), ["b", "a"]);
        let found = monotonic(&history(story), Across::Clients);
        assert!(found[0].words.contains("before the get (op 2, session 2"), "{}", found[0]);
    }

    #[test]
    fn reads_that_overlap_may_each_see_another() {
        assert_eq!(across_clients("0-? s1 put a\n20-50 s2 get a\n30-60 s3 get"), [""; 0]);
    }

    #[test]
    fn a_session_reads_what_it_wrote() {
        let story = "0-10 s1 put a\n20-30 s1 get\n20-30 s2 get";
        assert_eq!(within_sessions(story), ["a"]);
        assert_eq!(across_clients(story), [""; 0], "nobody had read it");
    }

    #[test]
    fn what_was_gone_does_not_come_back() {
        let story = "
            0-10 s1 put a
            20-30 s2 get a
            40-? s2 delete over a
            50-60 s3 get
            70-80 s3 get a";
        assert_eq!(across_clients(story), ["a"]);
        assert_eq!(across_clients(&story.replace("50-60", "50-75")), [""; 0]);
        // The other try of the put was not covered.
        assert_eq!(across_clients(&story.replace("70-80 s3 get a", "70-80 s3 get a'")), [""; 0]);
    }
}
