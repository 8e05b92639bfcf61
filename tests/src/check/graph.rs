//! One key's operations, and which write covered which value.

use crate::history::{Action, History, Op, Version};
use std::collections::{BTreeMap, BTreeSet};

/// One key of a history.
pub(super) struct Graph<'a> {
    pub(super) key: &'a str,
    /// Successful gets, by when they were invoked; no final reads.
    pub(super) gets: Vec<&'a Op>,
    /// Successful final reads.
    pub(super) finals: Vec<&'a Op>,
    /// All puts and deletes, by when they were invoked.
    pub(super) writes: Vec<&'a Op>,
    puts: BTreeMap<&'a str, &'a Op>,
    /// For each value the writes that covered it and may have been stored.
    covering: BTreeMap<&'a str, Vec<&'a Op>>,
}

impl<'a> Graph<'a> {
    /// All keys of a history, by name.
    pub(super) fn of_keys(history: &'a History) -> Vec<Self> {
        let mut by_key: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
        for op in &history.ops {
            by_key.entry(&op.key).or_default().push(op);
        }
        by_key.into_iter().map(|(key, ops)| Self::of_key(key, ops)).collect()
    }

    fn of_key(key: &'a str, mut ops: Vec<&'a Op>) -> Self {
        ops.sort_by_key(|op| op.invoked_ns);
        let (gets, finals, writes) = (Vec::new(), Vec::new(), Vec::new());
        let (puts, covering) = (BTreeMap::new(), BTreeMap::new());
        let mut graph = Self { key, gets, finals, writes, puts, covering };
        for op in ops {
            match &op.action {
                Action::Get => graph.gets.extend(op.ok_ns().map(|_| op)),
                Action::Final => graph.finals.extend(op.ok_ns().map(|_| op)),
                Action::Put { .. } | Action::Delete { .. } => graph.add_write(op),
            }
        }
        graph
    }

    fn add_write(&mut self, op: &'a Op) {
        self.writes.push(op);
        if let Some(value) = op.value() {
            let before = self.puts.insert(value, op);
            assert!(before.is_none(), "two operations put {value}: the checkers need it unique");
        }
        if op.may_have_been_stored() {
            for version in op.covers() {
                self.covering.entry(&version.value).or_default().push(op);
            }
        }
    }

    /// The operation that put this value.
    pub(super) fn put_of(&self, value: &str) -> Option<&'a Op> {
        self.puts.get(value).copied()
    }

    /// All that `from` covered, directly and through what it covered. Each value is handed over
    /// once, for as long as the same `seen` is given.
    pub(super) fn covered_below(
        &self,
        from: &'a Op,
        seen: &mut BTreeSet<&'a str>,
        mut each: impl FnMut(&'a str),
    ) {
        let mut below: Vec<&Version> = from.covers().iter().collect();
        while let Some(version) = below.pop() {
            if seen.insert(&version.value) {
                each(&version.value);
                below.extend(self.put_of(&version.value).into_iter().flat_map(|op| op.covers()));
            }
        }
    }

    /// Whether a read returned this value, or one that took its place, or may have found it
    /// deleted. Looks only at writes that were invoked before the read ended.
    pub(super) fn accounts_for(&self, read: &'a Op, value: &'a str) -> bool {
        let until_ns = read.ended_ns.unwrap_or(u64::MAX);
        let (mut seen, mut above) = (BTreeSet::from([value]), vec![value]);
        while let Some(value) = above.pop() {
            if versions(read).iter().any(|version| version.value == value) {
                return true;
            }
            let covering = self.covering.get(value).into_iter().flatten();
            for write in covering.filter(|write| write.invoked_ns < until_ns) {
                match write.value() {
                    None => return true,
                    Some(by) if seen.insert(by) => above.push(by),
                    Some(_) => {}
                }
            }
        }
        false
    }
}

/// What a read returned.
pub(super) fn versions(read: &Op) -> &[Version] {
    read.answer().map(|answer| &answer.versions[..]).unwrap_or_default()
}
