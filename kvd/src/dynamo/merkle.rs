//! What two replicas compare to find out where they differ, at the cost of the difference
//! (Merkle trees as in Dynamo, SOSP'07, section 4.7; with leaves that are sums, so that a write
//! changes one leaf without looking at the others in it).
//!
//! The ring is cut into [`LEAVES`] equal spans. A leaf is the sum of the digests of the records in
//! it, one leaf for each keyspace. The sum of a wider span is that of its leaves, each mixed with
//! its place, so a tree needs no inner nodes: any span's sum is one walk over its leaves.

use crate::dynamo::object::Object;
use proto::token::Token;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// A leaf is chosen by so many top bits of the token. Fixed, whatever the number of partitions:
/// two replicas compare trees under layouts that differ.
pub const LEAF_BITS: u32 = 18;

/// Leaves of a whole ring.
pub const LEAVES: u32 = 1 << LEAF_BITS;

/// A span that differs is looked at in so many parts.
pub const FAN_OUT: u32 = 32;

/// What stands for one record in a comparison: equal digests, equal siblings and history. Values
/// are not looked at, a dot names one value for good; that its bytes are whole is the scrub's
/// concern.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Digest(pub u128);

impl Digest {
    /// Of the `object` stored under `stored_key`.
    pub fn of(stored_key: &[u8], object: &Object) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(&(stored_key.len() as u32).to_be_bytes());
        hasher.write(stored_key);
        let clock = object.clock();
        for dots in [clock.upto().len(), clock.dots().len()] {
            hasher.write(&(dots as u32).to_be_bytes());
        }
        for (actor, counter) in clock.upto() {
            hasher.write(&actor.0.to_be_bytes());
            hasher.write(&counter.0.to_be_bytes());
        }
        for dot in clock.dots().iter().chain(object.siblings().keys()) {
            hasher.write(&dot.actor.0.to_be_bytes());
            hasher.write(&dot.counter.0.to_be_bytes());
        }
        Self(hasher.finish128().as_u128())
    }
}

/// The sum of the records in one leaf.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Leaf {
    /// Of their digests, modulo 2^128.
    pub sum: u128,
    /// How many they are.
    pub records: u64,
}

impl Leaf {
    /// A record joined it.
    pub fn add(&mut self, digest: Digest) {
        self.sum = self.sum.wrapping_add(digest.0);
        self.records += 1;
    }

    /// A record left it.
    pub fn remove(&mut self, digest: Digest) {
        self.sum = self.sum.wrapping_sub(digest.0);
        self.records = self.records.wrapping_sub(1);
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Some leaves that lie side by side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// The first.
    pub first: u32,
    /// How many.
    pub leaves: u32,
}

impl Span {
    /// The leaf of a token.
    pub fn leaf_of(token: Token) -> Self {
        Self { first: (token.0 >> (128 - LEAF_BITS)) as u32, leaves: 1 }
    }

    /// The leaves of `partition`, one of `partitions`, a power of two. A ring of more partitions
    /// than leaves has several of them in one.
    pub fn of_partition(partition: u32, partitions: u32) -> Self {
        let first = (u64::from(partition) * u64::from(LEAVES) / u64::from(partitions)) as u32;
        Self { first, leaves: (LEAVES / partitions).max(1) }
    }

    /// A span as it came in a message; nothing if there is no such.
    pub fn checked(first: u32, leaves: u32) -> Option<Self> {
        let end = first.checked_add(leaves)?;
        (leaves > 0 && end <= LEAVES).then_some(Self { first, leaves })
    }

    /// Its first token.
    pub fn token(self) -> Token {
        Token(u128::from(self.first) << (128 - LEAF_BITS))
    }

    /// One past its last leaf.
    pub fn end(self) -> u32 {
        self.first + self.leaves
    }

    /// Whether it cannot be cut further.
    pub fn is_leaf(self) -> bool {
        self.leaves == 1
    }

    /// Its parts, [`FAN_OUT`] of them or as many as it has leaves.
    pub fn parts(self) -> impl Iterator<Item = Self> {
        let width = self.leaves.div_ceil(FAN_OUT).max(1);
        (self.first..self.end())
            .step_by(width as usize)
            .map(move |first| Self { first, leaves: width.min(self.end() - first) })
    }

    /// Tokens in it: the first and the last.
    pub fn tokens(self) -> (Token, Token) {
        let start = |leaf: u32| u128::from(leaf) << (128 - LEAF_BITS);
        let last = match self.end() {
            LEAVES => u128::MAX,
            end => start(end) - 1,
        };
        (Token(start(self.first)), Token(last))
    }
}

/// The sums of `spans`, which ascend and do not overlap, from the leaves that are not empty, also
/// ascending.
pub fn sums(spans: &[Span], leaves: impl IntoIterator<Item = (u32, Leaf)>) -> Vec<u128> {
    let mut sums = vec![0_u128; spans.len()];
    for (place, leaf) in leaves {
        let at = spans.partition_point(|span| span.end() <= place);
        if let Some(span) = spans.get(at)
            && span.first <= place
            && !leaf.is_empty()
        {
            sums[at] = sums[at].wrapping_add(mixed(place, leaf));
        }
    }
    sums
}

/// A leaf's share of a wider sum. Mixed with its place, so that records in one leaf too few and in
/// another too many do not even out.
fn mixed(place: u32, leaf: Leaf) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write(&place.to_be_bytes());
    hasher.write(&leaf.sum.to_be_bytes());
    hasher.write(&leaf.records.to_be_bytes());
    hasher.finish128().as_u128()
}

/// The spans whose sums are not alike.
pub fn differing(spans: &[Span], ours: &[u128], theirs: &[u128]) -> Vec<Span> {
    let sums = ours.iter().zip(theirs);
    spans.iter().zip(sums).filter(|(_, (a, b))| a != b).map(|(span, _)| *span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::clock::Counter;
    use crate::dynamo::version::{Actor, Clock, Dot};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn digest(key: &str, write: u64) -> Digest {
        let mut clock = Clock::new();
        clock.advance(Dot { actor: Actor(1), counter: Counter(write) });
        Digest::of(key.as_bytes(), &Object::from_parts(clock, []))
    }

    /// Leaves of records given as (leaf, key number, write).
    fn leaves(records: &BTreeSet<(u32, u8, u64)>) -> BTreeMap<u32, Leaf> {
        let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
        for (leaf, key, write) in records {
            leaves.entry(*leaf).or_default().add(digest(&format!("{leaf}/{key}"), *write));
        }
        leaves
    }

    /// Goes down from the whole ring to the leaves that differ; also says how many sums it took.
    fn compare(a: &BTreeMap<u32, Leaf>, b: &BTreeMap<u32, Leaf>) -> (BTreeSet<u32>, usize) {
        let mut spans = vec![Span { first: 0, leaves: LEAVES }];
        let (mut found, mut asked) = (BTreeSet::new(), 0);
        while !spans.is_empty() {
            asked += spans.len();
            let of = |leaves: &BTreeMap<u32, Leaf>| {
                sums(&spans, leaves.iter().map(|(at, leaf)| (*at, *leaf)))
            };
            let differ = differing(&spans, &of(a), &of(b));
            found.extend(differ.iter().filter(|span| span.is_leaf()).map(|span| span.first));
            spans = differ.into_iter().filter(|s| !s.is_leaf()).flat_map(Span::parts).collect();
        }
        (found, asked)
    }

    #[test]
    fn a_digest_tells_keys_histories_and_siblings_apart() {
        assert_eq!(digest("k", 1), digest("k", 1));
        assert_ne!(digest("k", 1), digest("l", 1));
        assert_ne!(digest("k", 1), digest("k", 2));
    }

    #[test]
    fn partitions_cover_the_leaves_and_leaves_the_ring() {
        for partitions in [1, 256, LEAVES] {
            let spans = (0..partitions).map(|p| Span::of_partition(p, partitions));
            let end = spans.fold(0, |end, span| {
                assert_eq!(span.first, end);
                span.end()
            });
            assert_eq!(end, LEAVES);
        }
        assert_eq!(Span { first: 0, leaves: LEAVES }.tokens(), (Token(0), Token(u128::MAX)));
        let third = Span { first: 2, leaves: 1 };
        assert_eq!(Span::leaf_of(third.tokens().0), third);
        assert_eq!(Span::leaf_of(third.tokens().1), third);
        assert_eq!(Span::checked(LEAVES - 1, 2), None);
        assert_eq!(Span::checked(5, 0), None);
    }

    #[test]
    fn one_record_moved_to_another_leaf_does_not_even_out() {
        let (mut here, mut there) = (Leaf::default(), Leaf::default());
        here.add(digest("k", 1));
        there.add(digest("k", 1));
        let all = [Span { first: 0, leaves: LEAVES }];
        assert_ne!(sums(&all, [(3, here)]), sums(&all, [(4, there)]));
    }

    proptest! {
        #[test]
        fn exactly_the_leaves_that_differ_are_found(
            common in prop::collection::btree_set((0..LEAVES, 0u8..4, 1u64..3), 0..60),
            mine in prop::collection::btree_set((0..LEAVES, 4u8..8, 1u64..3), 0..6),
            theirs in prop::collection::btree_set((0..LEAVES, 8u8..12, 1u64..3), 0..6),
        ) {
            let a = leaves(&(&common | &mine));
            let b = leaves(&(&common | &theirs));
            let expected: BTreeSet<u32> =
                mine.iter().chain(&theirs).map(|(leaf, ..)| *leaf).collect();
            let (found, asked) = compare(&a, &b);
            // Four levels of at most 32 parts each, for every leaf that differs.
            prop_assert!(asked <= 1 + expected.len() * 4 * FAN_OUT as usize);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_record_added_and_removed_leaves_no_trace(keys in prop::collection::vec(any::<u64>(), 1..20)) {
            let mut leaf = Leaf::default();
            for key in &keys {
                leaf.add(Digest(u128::from(*key).wrapping_mul(u128::MAX / 7)));
            }
            for key in keys.iter().rev() {
                leaf.remove(Digest(u128::from(*key).wrapping_mul(u128::MAX / 7)));
            }
            prop_assert!(leaf.is_empty());
        }
    }
}
