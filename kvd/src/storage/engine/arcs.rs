//! What this node keeps for others, by arc of the ring: where each of them is behind, and since
//! when.
//!
//! The writer alone counts: what it writes from the start on, and page by page what was there
//! before. So no hint is counted twice or not at all, whatever is written while that goes on.

use super::hints::{HintTotals, parse_hint_key};
use super::{Answer, Inner, Job, Store, lock};
use crate::dynamo::arc::ARC_BITS;
use crate::dynamo::lag::Kept;
use crate::dynamo::node::Uid;
use crate::storage::StoreError;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use tokio::sync::oneshot;

/// Arcs of all nodes together that are counted, at most: 3 MiB. A node for which one more is
/// needed is not counted by arc until nothing is kept for it any more.
const ARCS_MAX: usize = 64 * 1024;

/// Hints that were there before the start are counted so many at a time. Writes wait that long.
const PAGE: usize = 256;

/// Counts by node and arc.
#[derive(Clone, Default, Debug)]
pub(super) struct Arcs {
    counted: BTreeMap<Uid, BTreeMap<u16, Kept>>,
    /// How many arcs that is.
    len: usize,
    /// Nodes with more arcs than there is room for.
    crowded: BTreeSet<Uid>,
    progress: Progress,
}

/// How far what was there at the start is counted.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
enum Progress {
    /// All that is kept for nodes before this one, and for this one through this hint, if any.
    Through(Uid, Bytes),
    /// To the end.
    #[default]
    Done,
}

/// One hint more, one less, or one of another size.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) hint_key: Bytes,
    pub(super) keys: i64,
    pub(super) bytes: i64,
    pub(super) now_ms: u64,
}

impl Arcs {
    /// To begin with, when `totals` are kept from earlier.
    pub(super) fn of(totals: &BTreeMap<Uid, HintTotals>) -> Self {
        let some = totals.values().any(|totals| totals.keys > 0);
        let progress = some.then(|| Progress::before(totals, Bound::Unbounded));
        Self { progress: progress.unwrap_or_default(), ..Self::default() }
    }

    /// Takes in a change that is in the store now. One beyond what is counted will be found there.
    pub(super) fn change(&mut self, change: &Change) {
        // Hints of a node that comes later begin with its uid, which is greater.
        let beyond = |through: &Bytes| change.hint_key > *through;
        if matches!(&self.progress, Progress::Through(_, through) if beyond(through)) {
            return;
        }
        self.add(change);
    }

    fn add(&mut self, change: &Change) {
        let Some((target, token)) = parse_hint_key(&change.hint_key) else { return };
        if self.crowded.contains(&target) {
            return;
        }
        let arcs = self.counted.entry(target).or_default();
        let arc = token.partition(ARC_BITS) as u16;
        if !arcs.contains_key(&arc) {
            if change.keys <= 0 {
                return;
            }
            if self.len >= ARCS_MAX {
                self.len -= arcs.len();
                self.counted.remove(&target);
                self.crowded.insert(target);
                return;
            }
            self.len += 1;
            arcs.insert(arc, Kept { since_ms: change.now_ms, ..Kept::default() });
        }
        let kept = arcs.get_mut(&arc).expect("it is there or was made just now");
        kept.keys = kept.keys.saturating_add_signed(change.keys);
        kept.bytes = kept.bytes.saturating_add_signed(change.bytes);
        if kept.keys == 0 {
            arcs.remove(&arc);
            self.len -= 1;
        }
    }

    /// Forgets the nodes for which nothing is kept any more.
    pub(super) fn keep_only(&mut self, totals: &BTreeMap<Uid, HintTotals>) {
        let some = |target: &Uid| totals.get(target).is_some_and(|totals| totals.keys > 0);
        self.crowded.retain(some);
        self.counted.retain(|target, _| some(target));
        self.len = self.counted.values().map(BTreeMap::len).sum();
    }
}

impl Progress {
    /// Before the first hint of the first node there is in `after`.
    fn before(totals: &BTreeMap<Uid, HintTotals>, after: Bound<Uid>) -> Self {
        let next = totals.range((after, Bound::Unbounded)).next();
        next.map_or(Self::Done, |(target, _)| {
            Self::Through(*target, target.to_bytes().to_vec().into())
        })
    }
}

impl Store {
    /// Counts some more of the hints that were there at the start; whether there are more.
    pub fn count_hints(&self) -> Answer<bool> {
        let (done, when_done) = oneshot::channel();
        self.submit(Job::CountHints { done }, 0);
        when_done
    }

    /// How much is kept for whom, and in which arcs of the ring. A node for which something is kept
    /// that is not counted by arc yet has no arcs.
    pub fn hint_arcs(&self) -> (BTreeMap<Uid, HintTotals>, BTreeMap<Uid, BTreeMap<u16, Kept>>) {
        let totals = lock(&self.inner.hints);
        let arcs = lock(&self.inner.arcs);
        let counted = match arcs.progress {
            Progress::Done => arcs.counted.clone(),
            Progress::Through(..) => BTreeMap::new(),
        };
        (totals.clone(), counted)
    }
}

impl Inner {
    /// One page more. Called by the writer between two groups: nothing changes meanwhile.
    pub(super) fn count_page(&self) -> Result<bool, StoreError> {
        let Progress::Through(target, through) = lock(&self.arcs).progress.clone() else {
            return Ok(false);
        };
        let page = self.page_of_hints(target, &[&through[..], &[0]].concat(), PAGE);
        let (records, more) = page.map_err(|error| self.stop(&error))?;
        let totals = lock(&self.hints);
        let mut arcs = lock(&self.arcs);
        for (hint_key, value) in records.iter().filter(|(_, value)| !value.is_empty()) {
            arcs.add(&Change {
                keys: 1,
                bytes: (hint_key.len() + value.len()) as i64,
                // When it was kept is not stored with it: not before there was any for its node.
                now_ms: totals.get(&target).map_or(0, |totals| totals.since_ms),
                hint_key: hint_key.clone(),
            });
        }
        arcs.progress = match records.into_iter().next_back() {
            Some((last, _)) if more => Progress::Through(target, last),
            _ => Progress::before(&totals, Bound::Excluded(target)),
        };
        Ok(arcs.progress != Progress::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::node::KeyspaceId;
    use crate::storage::engine::hints::hint_key;
    use crate::storage::record::stored_place;
    use proto::token::Token;

    fn change(target: u128, arc: u128, name: &str, keys: i64, now_ms: u64) -> Change {
        let token = Token(arc << (128 - ARC_BITS));
        let stored = stored_place(token, KeyspaceId(1), name.as_bytes());
        let hint_key = hint_key(Uid(target), &stored);
        Change { hint_key, keys, bytes: keys * 10, now_ms }
    }

    #[test]
    fn an_arc_is_behind_since_it_was_last_empty() {
        let mut arcs = Arcs::default();
        arcs.change(&change(1, 7, "a", 1, 100));
        arcs.change(&change(1, 7, "b", 1, 200));
        arcs.change(&change(1, 8, "c", 1, 300));
        let kept = |keys, since_ms| Kept { keys, bytes: keys * 10, since_ms, overflowed: false };
        assert_eq!(arcs.counted[&Uid(1)], [(7, kept(2, 100)), (8, kept(1, 300))].into());
        arcs.change(&change(1, 7, "a", -1, 0));
        assert_eq!(arcs.counted[&Uid(1)][&7], kept(1, 100));
        arcs.change(&change(1, 7, "b", -1, 0));
        arcs.change(&change(1, 7, "a", 1, 400));
        assert_eq!(arcs.counted[&Uid(1)][&7], kept(1, 400));
        assert_eq!(arcs.len, 2);
    }

    #[test]
    fn what_is_not_counted_yet_is_left_to_be_found() {
        let mut arcs = Arcs {
            progress: Progress::Through(Uid(1), change(1, 500, "m", 1, 0).hint_key),
            ..Arcs::default()
        };
        arcs.change(&change(1, 400, "a", 1, 5));
        arcs.change(&change(1, 600, "a", 1, 5));
        arcs.change(&change(2, 1, "a", 1, 5));
        assert!(!arcs.counted.contains_key(&Uid(2)));
        assert_eq!(arcs.counted[&Uid(1)].keys().collect::<Vec<_>>(), [&400]);
    }

    #[test]
    fn a_node_beyond_the_bound_is_not_counted_and_costs_the_others_nothing() {
        let mut arcs = Arcs::default();
        for target in 0..64 {
            (0..1024).for_each(|arc| arcs.change(&change(target, arc, "a", 1, 5)));
        }
        arcs.change(&change(99, 1, "a", 1, 5));
        assert!(arcs.crowded.contains(&Uid(99)) && arcs.len == ARCS_MAX);
        let some = HintTotals { keys: 1, ..HintTotals::default() };
        arcs.keep_only(&[(Uid(3), some)].into());
        assert_eq!((arcs.len, arcs.crowded.len()), (1024, 0));
        arcs.change(&change(99, 1, "a", 1, 5));
        assert_eq!(arcs.counted[&Uid(99)].len(), 1);
    }
}
