//! One comparison of two replicas, step by step: from the spans they share down to the leaves that
//! differ, and from two lists of a leaf's digests to the keys that do.

use crate::dynamo::layout::Layout;
use crate::dynamo::merkle::{self, Digest, Span};
use crate::dynamo::node::{KeyspaceId, Uid};
use bytes::Bytes;
use proto::token::Token;
use std::collections::{BTreeMap, BTreeSet};

/// Spans asked for at once, at most.
pub const SPANS_MAX: usize = 4096;

/// Of spans that differ, so many are cut at once: their parts fit one question.
const CUT_MAX: usize = SPANS_MAX / merkle::FAN_OUT as usize;

/// Keys found unlike that are remembered, each by its place.
const UNLIKE_MAX: usize = 1024;

/// The leaves of the partitions of which both are replicas, in keyspaces of `n` copies: ascending,
/// each once.
pub fn shared(layout: &Layout, n: u8, one: Uid, other: Uid) -> Vec<Span> {
    let (Some(one), Some(other)) = (layout.slot(one), layout.slot(other)) else {
        return Vec::new();
    };
    let both = |partition: &u32| {
        let row = layout.row(n, *partition);
        row.contains(&one) && row.contains(&other)
    };
    let partitions = layout.partitions();
    let mut spans: Vec<Span> = (0..partitions)
        .filter(both)
        .map(|partition| Span::of_partition(partition, partitions))
        .collect();
    spans.dedup(); // more partitions than leaves
    spans
}

/// What a comparison of many partitions leaves unlike. One key that cannot be mended, or one set of
/// partitions that is closed meanwhile, says nothing of the others.
#[derive(Debug)]
pub struct Unlike<Work: Ord> {
    /// Keys, by their places.
    keys: BTreeSet<(KeyspaceId, Token)>,
    /// Whether there are more than are remembered.
    is_full: bool,
    /// What could not be compared at all.
    works: BTreeSet<Work>,
}

impl<Work: Ord> Default for Unlike<Work> {
    fn default() -> Self {
        Self { keys: BTreeSet::new(), is_full: false, works: BTreeSet::new() }
    }
}

impl<Work: Ord> Unlike<Work> {
    /// A key is.
    pub fn add_key(&mut self, keyspace: KeyspaceId, token: Token) {
        match self.keys.len() < UNLIKE_MAX {
            true => _ = self.keys.insert((keyspace, token)),
            false => self.is_full = true,
        }
    }

    /// All of this may be.
    pub fn add_work(&mut self, work: Work) {
        self.works.insert(work);
    }

    /// Whether a partition, of 2^`bits`, that was compared as part of `work` is all equal.
    pub fn is_level(
        &self,
        work: &Work,
        keyspace: KeyspaceId,
        (partition, bits): (u32, u32),
    ) -> bool {
        let (first, last) = Token::range(partition, bits);
        let mut inside = self.keys.range((keyspace, first)..=(keyspace, last));
        !self.is_full && !self.works.contains(work) && inside.next().is_none()
    }
}

/// The way down to the leaves that differ. Depth first, so that what is still to be looked at stays
/// small however much differs.
#[derive(Debug)]
pub struct Descent {
    /// To be asked for; the last first.
    to_ask: Vec<Span>,
    /// Differ, and are to be cut; the last first.
    to_cut: Vec<Span>,
}

impl Descent {
    /// From these spans, ascending and none over another.
    pub fn new(mut spans: Vec<Span>) -> Self {
        spans.reverse();
        Self { to_ask: spans, to_cut: Vec::new() }
    }

    /// The spans whose sums are to be had of both sides next, ascending, at most [`SPANS_MAX`];
    /// none: all is compared.
    pub fn ask(&mut self) -> Vec<Span> {
        let mut next = match self.to_cut.is_empty() {
            false => {
                let cut = self.to_cut.split_off(self.to_cut.len().saturating_sub(CUT_MAX));
                cut.into_iter().flat_map(Span::parts).collect()
            }
            true => self.to_ask.split_off(self.to_ask.len().saturating_sub(SPANS_MAX)),
        };
        next.sort_unstable();
        next
    }

    /// What became of that: both sides' sums. Returns the leaves that differ.
    pub fn tell(&mut self, asked: &[Span], ours: &[u128], theirs: &[u128]) -> Vec<u32> {
        let differing = merkle::differing(asked, ours, theirs);
        let (leaves, wider): (Vec<Span>, Vec<Span>) =
            differing.into_iter().partition(|span| span.is_leaf());
        self.to_cut.extend(wider.into_iter().rev());
        leaves.into_iter().map(|leaf| leaf.first).collect()
    }
}

/// The keys that one side lacks or both have unlike.
pub fn differing_keys(ours: &[(Bytes, Digest)], theirs: &[(Bytes, Digest)]) -> Vec<Bytes> {
    let map = |side: &[(Bytes, Digest)]| side.iter().cloned().collect::<BTreeMap<_, _>>();
    let (ours, theirs) = (map(ours), map(theirs));
    let all: BTreeSet<&Bytes> = ours.keys().chain(theirs.keys()).collect();
    all.into_iter().filter(|key| ours.get(*key) != theirs.get(*key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::samples::layout;
    use crate::dynamo::merkle::{LEAVES, Leaf, sums};
    use proptest::prelude::*;

    #[test]
    fn what_is_unlike_in_one_partition_is_not_in_another() {
        let (one, other) = (KeyspaceId(1), KeyspaceId(2));
        let mut unlike: Unlike<u8> = Unlike::default();
        unlike.add_key(one, Token::range(3, 8).1);
        unlike.add_work(7);
        assert!(!unlike.is_level(&0, one, (3, 8)) && !unlike.is_level(&0, one, (7, 9)));
        assert!(unlike.is_level(&0, one, (6, 9)) && unlike.is_level(&0, one, (4, 8)));
        assert!(unlike.is_level(&0, other, (3, 8)) && !unlike.is_level(&7, other, (3, 8)));
        (0..UNLIKE_MAX as u128).for_each(|at| unlike.add_key(other, Token(at)));
        assert!(!unlike.is_level(&0, one, (4, 8)), "more than is remembered may be anywhere");
    }

    #[test]
    fn three_of_three_share_the_whole_ring_and_a_stranger_nothing() {
        let layout = layout(&[1, 1, 1], 1);
        let [one, other] = [0, 1].map(|at: usize| layout.members()[at].uid);
        let spans = shared(&layout, 3, one, other);
        let leaves: u32 = spans.iter().map(|span| span.leaves).sum();
        assert_eq!(leaves, LEAVES);
        assert!(spans.is_sorted_by(|a, b| a.end() <= b.first));
        assert_eq!(shared(&layout, 3, one, Uid(0)), []);
    }

    #[test]
    fn what_two_of_many_share_is_where_both_are_in_the_row() {
        let layout = layout(&[1; 8], 4);
        let [one, other] = [0, 5].map(|at: usize| layout.members()[at].uid);
        let spans = shared(&layout, 3, one, other);
        assert!(!spans.is_empty() && (spans.len() as u32) < layout.partitions());
        for partition in 0..layout.partitions() {
            let row: Vec<Uid> = layout.replicas(3, partition).map(|member| member.uid).collect();
            let span = Span::of_partition(partition, layout.partitions());
            assert_eq!(row.contains(&one) && row.contains(&other), spans.contains(&span));
        }
    }

    #[test]
    fn keys_differ_that_one_side_lacks_or_both_have_unlike() {
        let list = |text: &str| -> Vec<(Bytes, Digest)> {
            let record = |word: &str| {
                let (key, digest) = word.split_once('=').unwrap();
                (Bytes::from(key.to_owned()), Digest(digest.parse().unwrap()))
            };
            text.split_whitespace().map(record).collect()
        };
        let differing = |ours: &str, theirs: &str| differing_keys(&list(ours), &list(theirs));
        assert_eq!(differing("a=1 c=3", "a=1 c=3"), Vec::<Bytes>::new());
        assert_eq!(differing("a=1 b=2 c=3", "a=1 c=4 d=5"), ["b", "c", "d"]);
        assert_eq!(differing("", "z=1"), ["z"]);
        // Listed in the order of their tokens, not of themselves.
        assert_eq!(differing("c=3 a=1", "c=3 a=1 b=2"), ["b"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_descent_ends_with_exactly_the_leaves_that_differ_and_never_asks_for_too_much(
            common in prop::collection::btree_set(0..LEAVES, 0..40),
            differ in prop::collection::btree_set(0..LEAVES, 0..40),
            dense: bool,
            partitions in prop::sample::select(vec![1_u32, 256, LEAVES]),
        ) {
            let differ: BTreeSet<u32> =
                if dense { (0..6_000).collect() } else { differ };
            let leaf = |sum: u128| Leaf { sum, records: 1 };
            let side = |own: u128| -> BTreeMap<u32, Leaf> {
                let common = common.iter().map(|place| (*place, leaf(7)));
                common.chain(differ.iter().map(|place| (*place, leaf(own)))).collect()
            };
            let (a, b) = (side(1), side(2));
            let spans = (0..partitions).map(|p| Span::of_partition(p, partitions)).collect();
            let mut descent = Descent::new(spans);
            let mut found = Vec::new();
            loop {
                let asked = descent.ask();
                if asked.is_empty() {
                    break;
                }
                prop_assert!(asked.len() <= SPANS_MAX);
                prop_assert!(asked.is_sorted_by(|a, b| a.end() <= b.first));
                let of = |side: &BTreeMap<u32, Leaf>| {
                    sums(&asked, side.iter().map(|(at, leaf)| (*at, *leaf)))
                };
                found.extend(descent.tell(&asked, &of(&a), &of(&b)));
            }
            prop_assert_eq!(found.len(), differ.len(), "each once");
            prop_assert_eq!(found.into_iter().collect::<BTreeSet<u32>>(), differ);
        }
    }
}
