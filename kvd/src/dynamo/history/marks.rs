//! What nodes have done for the configs that a layout begins.

use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use std::collections::BTreeMap;

/// A set of partitions of a ring of 2^bits. The empty set has no bits at all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parts {
    bits: u32,
    bytes: Vec<u8>,
}

impl Parts {
    /// Of stored or told bytes; `None` if these are not a set of 2^`bits`.
    pub fn from_bytes(bits: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let fits = (3..=20).contains(&bits) && bytes.len() == 1 << (bits - 3);
        fits.then(|| Self { bits, bytes: bytes.to_vec() })
    }

    /// A bit a partition, lowest first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    /// Whether all of `partition`, of 2^`bits`, is in it.
    pub fn has(&self, bits: u32, partition: u32) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        if bits >= self.bits {
            return self.bit(partition >> (bits - self.bits));
        }
        let parts = 1 << (self.bits - bits);
        (partition * parts..(partition + 1) * parts).all(|part| self.bit(part))
    }

    fn bit(&self, partition: u32) -> bool {
        self.bytes[partition as usize / 8] >> (partition % 8) & 1 == 1
    }

    /// Puts `partition`, of 2^`bits`, into it. Says whether it was not there.
    pub fn insert(&mut self, bits: u32, partition: u32) -> bool {
        if self.has(bits, partition) {
            return false;
        }
        self.refine(bits);
        let parts = 1 << (self.bits - bits);
        for part in partition * parts..(partition + 1) * parts {
            self.bytes[part as usize / 8] |= 1 << (part % 8);
        }
        true
    }

    /// The same of a ring cut at least so fine; the empty set stays as it is.
    pub fn refined(&self, bits: u32) -> Self {
        let mut fine = self.clone();
        if !fine.bytes.is_empty() && bits > 0 {
            fine.refine(bits);
        }
        fine
    }

    /// Cuts the ring at least so fine.
    fn refine(&mut self, bits: u32) {
        assert!((3..=20).contains(&bits), "a ring has 2^3 to 2^20 partitions");
        if self.bytes.is_empty() {
            (self.bits, self.bytes) = (bits, vec![0; 1 << (bits - 3)]);
        }
        while self.bits < bits {
            let coarse = std::mem::take(self);
            (self.bits, self.bytes) = (coarse.bits + 1, vec![0; coarse.bytes.len() * 2]);
            for partition in (0..1 << coarse.bits).filter(|partition| coarse.bit(*partition)) {
                for part in [2 * partition, 2 * partition + 1] {
                    self.bytes[part as usize / 8] |= 1 << (part % 8);
                }
            }
        }
    }

    fn join(&mut self, other: &Self) {
        if other.bytes.is_empty() {
            return;
        }
        self.refine(other.bits);
        let mut other = other.clone();
        other.refine(self.bits);
        self.bytes.iter_mut().zip(&other.bytes).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// How fine the ring is cut.
    pub fn bits(&self) -> u32 {
        self.bits
    }
}

/// What one node has done for the configs that one layout begins, in one keyspace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// It holds all that was written before.
    pub synced: Parts,
    /// It is not read there any more.
    pub closed: Parts,
}

/// Whose, of the configs of which layout, in which keyspace.
type MarkKey = (LayoutId, KeyspaceId, Uid);

/// What all nodes have done, as far as known. Only grows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Marks {
    all: BTreeMap<MarkKey, Mark>,
}

impl Marks {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&MarkKey, &Mark)> {
        self.all.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Puts in a mark as it was told.
    pub fn put(&mut self, key: (LayoutId, KeyspaceId, Uid), mark: &Mark) {
        let ours = self.all.entry(key).or_default();
        ours.synced.join(&mark.synced);
        ours.closed.join(&mark.closed);
    }

    /// Whose copies of a partition, of 2^`bits`, are marked so for this layout's config.
    pub(super) fn who(
        &self,
        (layout, keyspace): (LayoutId, KeyspaceId),
        (bits, partition): (u32, u32),
        which: impl Fn(&Mark) -> &Parts,
    ) -> Vec<Uid> {
        let range = (layout, keyspace, Uid(0))..=(layout, keyspace, Uid(u128::MAX));
        let marked = self.all.range(range).filter(|(_, mark)| which(mark).has(bits, partition));
        marked.map(|((.., uid), _)| *uid).collect()
    }

    pub(super) fn synced(
        &mut self,
        key: (LayoutId, KeyspaceId, Uid),
        bits: u32,
        partition: u32,
    ) -> bool {
        self.all.entry(key).or_default().synced.insert(bits, partition)
    }

    pub(super) fn closed(
        &mut self,
        key: (LayoutId, KeyspaceId, Uid),
        bits: u32,
        partition: u32,
    ) -> bool {
        self.all.entry(key).or_default().closed.insert(bits, partition)
    }

    pub(super) fn join(&mut self, other: &Self) {
        other.all.iter().for_each(|(key, mark)| self.put(*key, mark));
    }
}
