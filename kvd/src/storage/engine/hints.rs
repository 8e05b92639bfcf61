//! What this node keeps for others: hints, and how much of them.

use super::{Answer, Inner, Job, Store, lock, read};
use crate::dynamo::key::Key;
use crate::dynamo::merkle::Digest;
use crate::dynamo::node::Uid;
use crate::dynamo::object::Object;
use crate::storage::shards::{DatabaseError, Shards, UID_BYTES};
use crate::storage::wal::Space;
use crate::storage::{StoreError, record};
use bytes::{Buf, BufMut, Bytes};
use proto::token::Token;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Instant;
use tokio::sync::oneshot;

/// Facts under this name say how much is kept for a node.
const FACT: &str = "hints/";

/// Hints looked at for one page, at most.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What is kept for one node.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HintTotals {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and objects.
    pub bytes: u64,
    /// Since when there has been any, Unix milliseconds: no hint for the node is older.
    pub since_ms: u64,
    /// There was no room for another: what is missing there is not all known here, and must be
    /// found by comparing.
    pub overflowed: bool,
}

impl HintTotals {
    /// Whether there is nothing to say.
    pub fn is_nothing(&self) -> bool {
        self.keys == 0 && !self.overflowed
    }
}

/// The name and value of the fact that keeps `totals`.
pub(super) fn fact_of(target: Uid, totals: HintTotals) -> (String, Bytes) {
    let mut value = Vec::new();
    if !totals.is_nothing() {
        value.put_u64(totals.keys);
        value.put_u64(totals.bytes);
        value.put_u64(totals.since_ms);
        value.put_u8(totals.overflowed.into());
    }
    (format!("{FACT}{target}"), value.into())
}

fn parse_fact(name: &str, mut value: &[u8]) -> Option<(Uid, HintTotals)> {
    let target = u128::from_str_radix(name.strip_prefix(FACT)?, 16).ok()?;
    let totals = HintTotals {
        keys: value.try_get_u64().ok()?,
        bytes: value.try_get_u64().ok()?,
        since_ms: value.try_get_u64().ok()?,
        overflowed: value.try_get_u8().ok()? != 0,
    };
    Some((Uid(target), totals))
}

/// What was kept when the store was closed.
pub(super) fn load(shards: &Shards) -> Result<BTreeMap<Uid, HintTotals>, DatabaseError> {
    let facts = shards.facts_from(FACT)?;
    Ok(facts.iter().map_while(|(name, value)| parse_fact(name, value)).collect())
}

/// Where the hint for `target` of a stored key is kept.
pub(super) fn hint_key(target: Uid, stored_key: &[u8]) -> Bytes {
    [&target.to_bytes()[..], stored_key].concat().into()
}

/// For whom a hint is kept, and where on the ring its key is.
pub(super) fn parse_hint_key(hint_key: &[u8]) -> Option<(Uid, Token)> {
    let (target, stored_key) = hint_key.split_at_checked(UID_BYTES)?;
    let (token, ..) = record::parse_key(stored_key)?;
    Some((Uid::from_slice(target)?, token))
}

impl Store {
    /// Keeps `object` for `target`, joined with what is kept of the key for it already. The result
    /// comes when it is on disk; [`StoreError::HintsFull`] if there is no room for it, which is then
    /// remembered.
    pub fn keep_hint(&self, target: Uid, key: Key, object: Object, now_ms: u64) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        let bytes = object.encoded_len();
        self.submit(Job::KeepHint { target, key, object, now_ms, synced }, bytes);
        when_synced
    }

    /// `target` has what is kept of a key for it: drops it, unless it has changed from `digest`
    /// meanwhile. Without a digest it is dropped whatever it is.
    pub fn drop_hint(&self, target: Uid, key: Key, digest: Option<Digest>) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        self.submit(Job::DropHint { target, key, digest, synced }, 0);
        when_synced
    }

    /// Everything that was missing at `target` has been found by comparing: forgets that there was
    /// no room for a hint.
    pub fn forget_overflow(&self, target: Uid) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        self.submit(Job::ForgetOverflow { target, synced }, 0);
        when_synced
    }

    /// What is kept of a key for `target`.
    pub fn hint(&self, target: Uid, key: &Key) -> Result<Option<Object>, StoreError> {
        self.working()?;
        let stored_key = hint_key(target, &record::stored_key(key));
        let found = self.inner.newest(Space::Hints, &stored_key);
        let found = found.map_err(|error| self.inner.stop(&error))?;
        Ok(found.and_then(|bytes| self.inner.believe(&stored_key, bytes)))
    }

    /// A page of what is kept for `target`, in key order, after `after` (nothing: from the first):
    /// up to `limit` keys. Empty: that was all.
    pub fn hints(
        &self,
        target: Uid,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Object)>, StoreError> {
        self.working()?;
        let mut start = match after {
            None => target.to_bytes().to_vec(),
            Some(key) => [&hint_key(target, &record::stored_key(key))[..], &[0]].concat(),
        };
        loop {
            let records = self.inner.page_of_hints(target, &start, limit);
            let (records, more) = records.map_err(|error| self.inner.stop(&error))?;
            let last = records.last_key_value().map(|(key, _)| key.clone());
            let page: Vec<_> = records
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .filter_map(|(stored_key, value)| {
                    let (_, keyspace, key) = record::parse_key(stored_key.get(UID_BYTES..)?)?;
                    let key = Key::new(keyspace, Bytes::copy_from_slice(key)).ok()?;
                    Some((key, self.inner.believe(&stored_key, value)?))
                })
                .collect();
            match last {
                // All of it is gone or damaged, and there is more.
                Some(last) if page.is_empty() && more => start = [&last[..], &[0]].concat(),
                _ => return Ok(page),
            }
        }
    }

    /// When there was last no room for a hint for `target`: at the latest when the store was opened.
    pub fn overflowed_at(&self, target: Uid) -> Instant {
        lock(&self.inner.overflows).get(&target).copied().unwrap_or(self.inner.opened)
    }

    /// How much is kept, for whom.
    pub fn hint_totals(&self) -> BTreeMap<Uid, HintTotals> {
        lock(&self.inner.hints).clone()
    }
}

impl Inner {
    /// A page of what is kept for `target`, those that are gone as empty ones, and whether there is
    /// more.
    pub(super) fn page_of_hints(
        &self,
        target: Uid,
        start: &[u8],
        limit: usize,
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool), DatabaseError> {
        let end = target.0.checked_add(1).map(u128::to_be_bytes);
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        let recent = read(&self.recent).page(Space::Hints, (start, end), limit);
        let older = self.shards.page(Space::Hints, (start, end), limit, PAGE_BYTES_MAX)?;
        Ok(super::merged(recent, older))
    }
}
