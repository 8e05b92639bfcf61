//! What a node answers as a replica; see `kvd/src/api/replica.rs`.

use super::*;
use kvd::dynamo::history::Coverage;

impl Sim {
    /// Stores, and then sees whether the write may count.
    pub(super) fn store(
        &mut self,
        (from, to): (usize, usize),
        op: u64,
        (key, copy): (usize, Held),
        known: Known,
    ) {
        self.nodes[to].copies[key] |= copy;
        let mut covers = self.covers(to, key, &known);
        if covers == Coverage::Ahead && self.exchange(to, from) {
            covers = self.covers(to, key, &known);
        }
        let is_stale = covers != Coverage::Known && self.bug != Some(Bug::StaleAccepted);
        self.note(|_| format!("n{to} stores k{key} {copy:b} of n{from}, op {op}: {covers:?}"));
        self.send(to, from, Body::Stored { op, is_stale });
    }

    pub(super) fn covers(&self, at: usize, key: usize, known: &Known) -> Coverage {
        self.nodes[at].history.covers((known.0, &known.1), self.keyspace, self.keys[key])
    }

    /// Its copy, if it is a replica of that layout's config still.
    pub(super) fn read(
        &mut self,
        (from, to): (usize, usize),
        op: u64,
        key: usize,
        under: LayoutId,
    ) {
        let copy = self.copy_under((from, to), key, under);
        self.note(|_| format!("n{to} is read k{key} by n{from}, op {op}: {copy:?}"));
        self.send(to, from, Body::Copy { op, copy });
    }

    fn copy_under(
        &mut self,
        (from, to): (usize, usize),
        key: usize,
        under: LayoutId,
    ) -> Option<Held> {
        let mut may = self.may_read(to, key, under);
        if may == Coverage::Ahead && self.exchange(to, from) {
            may = self.may_read(to, key, under);
        }
        (may == Coverage::Known).then(|| self.nodes[to].copies[key])
    }

    fn may_read(&self, at: usize, key: usize, under: LayoutId) -> Coverage {
        self.nodes[at].history.may_read(uid(at), under, self.keyspace, self.keys[key])
    }

    /// Half of a comparison: see `moves::may_compare`, which is asked before and after.
    pub(super) fn compare(&mut self, (from, to): (usize, usize), compare: moves::Compare) {
        self.nodes[to].copies[compare.key] |= compare.copy;
        let may = |sim: &Self| {
            let (of, key) = ((compare.origin, compare.under), sim.keys[compare.key]);
            sim.nodes[to].history.may_compare(uid(to), of, sim.keyspace, key)
        };
        if may(self) == Coverage::Ahead {
            self.exchange(to, from);
        }
        let may = may(self) == Coverage::Known;
        let copy = may.then(|| self.nodes[to].copies[compare.key]);
        self.note(|_| format!("n{to} is compared with n{from}: {compare:?} {copy:?}"));
        self.send(to, from, Body::Compared { compare, copy });
    }
}
