//! What this node's copies come to, for comparing them with another's: sums of leaves, the digests
//! in a leaf, and the tombstones.

use super::{PAGE_LOOKS_MAX, Store};
use crate::dynamo::key::Key;
use crate::dynamo::merkle::{self, Digest, Span};
use crate::dynamo::node::KeyspaceId;
use crate::storage::{StoreError, record};
use bytes::Bytes;
use std::ops::Bound;

/// Digests of a page, at most.
const DIGESTS_MAX: usize = 4096;

/// A page of one leaf's records, digested.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Digests {
    /// Each key and its digest, in key order.
    pub records: Vec<(Bytes, Digest)>,
    /// There are more, after the last.
    pub more: bool,
}

impl Store {
    /// The sums of `spans`, which ascend and do not overlap, of a keyspace's tree as the last
    /// checkpoint left it: ask for one before comparing.
    pub fn sums(&self, keyspace: KeyspaceId, spans: &[Span]) -> Result<Vec<u128>, StoreError> {
        self.working()?;
        let mut sums = Vec::with_capacity(spans.len());
        // What lies side by side is one walk.
        for run in spans.chunk_by(|span, next| span.end() == next.first) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let whole = Span { first: first.first, leaves: last.end() - first.first };
            let leaves = self.inner.shards.leaves(keyspace.0, whole);
            let leaves = leaves.map_err(|error| self.inner.stop(&error))?;
            sums.extend(merkle::sums(run, leaves));
        }
        Ok(sums)
    }

    /// The digests of a keyspace's records in a leaf, as they are now, after key `after` (nothing:
    /// from the first). A damaged record has none: it is missing.
    pub fn digests(
        &self,
        keyspace: KeyspaceId,
        place: u32,
        after: Option<&Key>,
    ) -> Result<Digests, StoreError> {
        self.working()?;
        let (first, last) = Span { first: place, leaves: 1 }.tokens();
        let mut start = match after {
            Some(key) => [&record::stored_key(key)[..], &[0]].concat(),
            None => first.to_bytes().to_vec(),
        };
        // No further: of what lies beyond the leaf a page would be thousands of records.
        let end = last.0.checked_add(1).map(u128::to_be_bytes);
        let end = end.as_ref().map(|end| &end[..]);
        let mut page = Digests::default();
        loop {
            if end.is_some_and(|end| &start[..] >= end) {
                return Ok(page);
            }
            let records =
                self.inner.records_in((&start, end.map_or(Bound::Unbounded, Bound::Excluded)));
            let (records, more) = records.map_err(|error| self.inner.stop(&error))?;
            let looked_at = records.last_key_value().map(|(key, _)| key.clone());
            for (stored_key, value) in records {
                let Some((token, of, key)) = record::parse_key(&stored_key) else { continue };
                if token > last {
                    return Ok(page);
                }
                if of != keyspace || value.is_empty() {
                    continue;
                }
                if page.records.len() >= DIGESTS_MAX {
                    page.more = true;
                    return Ok(page);
                }
                let key = Bytes::copy_from_slice(key);
                if let Some(object) = self.inner.believe(&stored_key, value) {
                    page.records.push((key, Digest::of(&stored_key, &object)));
                }
            }
            match looked_at.filter(|_| more) {
                Some(last) => start = [&last[..], &[0]].concat(),
                None => return Ok(page),
            }
        }
    }

    /// Reckons leaves of a keyspace's tree anew from the records, because they are believed wrong;
    /// returns how many were.
    pub fn set_leaves_right(
        &self,
        keyspace: KeyspaceId,
        places: &[u32],
    ) -> Result<u64, StoreError> {
        self.working()?;
        let done = self.inner.shards.set_right(keyspace.0, places);
        done.map_err(|error| self.inner.stop(&error))
    }

    /// Keys that are tombstones, as the last checkpoint left them, after `after` (nothing: from the
    /// first): up to `limit`. Empty: that was all.
    pub fn tombstones(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.working()?;
        let start =
            after.map_or_else(Vec::new, |key| [&record::stored_key(key)[..], &[0]].concat());
        let found = self.inner.shards.tombstones(&start, limit.min(PAGE_LOOKS_MAX));
        let found = found.map_err(|error| self.inner.stop(&error))?;
        let key = |stored: &Bytes| {
            let (_, keyspace, key) = record::parse_key(stored)?;
            Key::new(keyspace, Bytes::copy_from_slice(key)).ok()
        };
        Ok(found.iter().filter_map(key).collect())
    }

    /// Tombstones kept, as the last checkpoint left them.
    pub fn tombstone_count(&self) -> Result<u64, StoreError> {
        self.working()?;
        self.inner.shards.tombstone_count().map_err(|error| self.inner.stop(&error))
    }
}
