//! The one thread that writes: it makes groups, appends them to the log, answers, and freezes the
//! recent layer when it has grown enough.

use super::arcs::Change;
use super::hints::{self, HintTotals, hint_key};
use super::{FACT_CEILING, Inner, Job, Prepared, Queued, Synced, lock, read, write};
use crate::clock;
use crate::dynamo::clock::HybridClock;
use crate::dynamo::key::Key;
use crate::dynamo::merkle::Digest;
use crate::dynamo::node::{Incarnation, Uid};
use crate::dynamo::object::{Intent, Minter, Object};
use crate::dynamo::version::Actor;
use crate::storage::recent::Layer;
use crate::storage::wal::{Entry, Group, Log, Space};
use crate::storage::{StoreError, record};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use tokio::sync::{mpsc, oneshot};

/// Writes committed together, at most. More wait for the next group.
const GROUP_WRITES_MAX: usize = 512;

/// A recent layer is also checkpointed when its part of the log is so many times the write buffer:
/// it bounds what a restart reads back.
const LOG_BYTES_A_LAYER_BYTE: usize = 4;

/// The one thread that writes.
pub(super) struct Writer {
    pub(super) store: Weak<Inner>,
    pub(super) log: Log,
    pub(super) clock: HybridClock,
}

/// A group being made: what goes to the log, its newest states, and who is to be told.
#[derive(Default)]
struct Batch {
    log: Group,
    layer: Layer,
    new_keys: u64,
    gone_keys: u64,
    /// How much is kept for the nodes this group is about, once it is done.
    hints: BTreeMap<Uid, HintTotals>,
    /// What changes of it, hint by hint.
    changes: Vec<Change>,
    synced: Vec<Synced>,
    /// Who waits for a page of hints to be counted.
    counting: Vec<oneshot::Sender<Result<bool, StoreError>>>,
    checkpoints: Vec<Synced>,
}

impl Writer {
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Queued>) {
        let mut group = Vec::new();
        while waiting.blocking_recv_many(&mut group, GROUP_WRITES_MAX) > 0 {
            let Some(store) = self.store.upgrade() else { return };
            let stopped = store.stopped.borrow().clone();
            if let Some(why) = stopped {
                let refuse = |(job, _): Queued| job.refuse(StoreError::Stopped(why.clone()));
                group.drain(..).for_each(refuse);
                continue;
            }
            let mut batch = Batch::default();
            let outcome = match catch_unwind(AssertUnwindSafe(|| {
                self.commit(&store, &mut group, &mut batch)
            })) {
                Ok(outcome) => outcome,
                Err(_) => Err(store.stop(&"the writer panicked")),
            };
            for caller in batch.synced {
                let _ = caller.send(outcome.clone()); // the caller may have left
            }
            for caller in batch.counting {
                let counted = outcome.clone().and_then(|()| store.count_page());
                let _ = caller.send(counted); // the caller may have left
            }
            match outcome {
                Ok(()) => self.freeze(&store, batch.checkpoints),
                Err(error) => {
                    answer_all(batch.checkpoints, &Err(error.clone()));
                    group.drain(..).for_each(|(job, _)| job.refuse(error.clone()));
                }
            }
        }
    }

    /// Applies a group and makes it durable. Whoever is to be told of it is in `batch`.
    fn commit(
        &mut self,
        store: &Inner,
        group: &mut Vec<Queued>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        group.reverse(); // taken from the end, so that what an error leaves can still be answered
        while let Some((job, _room)) = group.pop() {
            match job {
                Job::Coordinate {
                    key,
                    intent,
                    stand_in_for,
                    now_ms,
                    fresh_actor,
                    prepared,
                    synced,
                } => {
                    let chance = (now_ms, fresh_actor);
                    let done = match stand_in_for {
                        None => self.coordinate(store, batch, &key, &intent, chance),
                        Some(home) => self.stand_in(store, batch, (home, &key), &intent, chance),
                    };
                    match done {
                        Ok(done) => {
                            batch.synced.push(synced);
                            let _ = prepared.send(Ok(done)); // the caller may have left
                        }
                        Err(refused @ (StoreError::Refused(_) | StoreError::HintsFull)) => {
                            let _ = prepared.send(Err(refused.clone()));
                            let _ = synced.send(Err(refused));
                        }
                        Err(stopped) => {
                            batch.synced.push(synced);
                            let _ = prepared.send(Err(stopped.clone()));
                            return Err(stopped);
                        }
                    }
                }
                Job::Merge { key, object, synced } => {
                    batch.synced.push(synced);
                    merge(store, batch, &key, &object)?;
                }
                Job::Reap { key, digest, only_tombstone, synced } => {
                    batch.synced.push(synced);
                    reap(store, batch, (&key, digest), only_tombstone)?;
                }
                Job::KeepHint { target, key, object, now_ms, synced } => {
                    match keep_hint(store, batch, (target, &key), &object, now_ms) {
                        Ok(()) => batch.synced.push(synced),
                        Err(full @ StoreError::HintsFull) => drop(synced.send(Err(full))),
                        Err(stopped) => {
                            batch.synced.push(synced);
                            return Err(stopped);
                        }
                    }
                }
                Job::DropHint { target, key, digest, synced } => {
                    batch.synced.push(synced);
                    drop_hint(store, batch, (target, &key), digest)?;
                }
                Job::ForgetOverflow { target, synced } => {
                    batch.synced.push(synced);
                    batch.totals(store, target).overflowed = false;
                }
                Job::Fact { name, value, synced } => {
                    batch.synced.push(synced);
                    batch.fact(&name, value.into());
                }
                Job::CountHints { done } => batch.counting.push(done),
                Job::Checkpoint { done } => batch.checkpoints.push(done),
            }
        }
        for (target, totals) in batch.hints.clone() {
            let (name, value) = hints::fact_of(target, totals);
            batch.fact(&name, value);
        }
        if batch.log.is_empty() {
            return Ok(());
        }
        store.make_way(self.log.room_for(&batch.log))?;
        self.log.append(&mut batch.log).map_err(|error| store.stop(&error))?;
        store.position.store(self.log.position(), Ordering::Release);
        let mut recent = write(&store.recent);
        let layer = std::mem::take(&mut batch.layer);
        let Layer { records, hints, facts, .. } = layer;
        for (space, records) in [(Space::Records, records), (Space::Hints, hints)] {
            let entries = records.into_iter();
            let entries = entries.map(|(key, value)| Entry::Record { space, key, value });
            entries.for_each(|entry| recent.active.insert(entry));
        }
        let facts = facts.into_iter().map(|(name, value)| Entry::Fact { name, value });
        facts.for_each(|entry| recent.active.insert(entry));
        drop(recent);
        store.keys.fetch_add(batch.new_keys, Ordering::Relaxed);
        store.keys.fetch_sub(batch.gone_keys, Ordering::Relaxed);
        let mut hints = lock(&store.hints);
        hints.extend(std::mem::take(&mut batch.hints));
        hints.retain(|_, totals| !totals.is_nothing());
        if !batch.changes.is_empty() {
            let mut arcs = lock(&store.arcs);
            batch.changes.drain(..).for_each(|change| arcs.change(&change));
            arcs.keep_only(&hints);
        }
        Ok(())
    }

    fn coordinate(
        &mut self,
        store: &Inner,
        batch: &mut Batch,
        key: &Key,
        intent: &Intent,
        (now_ms, fresh_actor): (u64, Actor),
    ) -> Result<Prepared, StoreError> {
        let stored_key = Bytes::from(record::stored_key(key));
        let (local, is_new) = batch.current(store, &stored_key)?;
        let incarnation = *read(&store.incarnation);
        let minter = Minter { incarnation, clock: &mut self.clock, now_ms, fresh_actor };
        let done = Object::coordinate(local, intent, minter)?;
        let bytes = Bytes::from(record::encode(&stored_key, &done.object));
        let object_at = bytes.len() - done.object.encoded_len();
        let encoded = bytes.slice(object_at..);
        batch.record(stored_key, bytes, is_new);
        if let Some(ceiling) = done.ceiling {
            batch.fact(FACT_CEILING, Bytes::copy_from_slice(&ceiling.0.to_be_bytes()));
        }
        Ok(Prepared { encoded, siblings: done.object.live().len() as u32, dot: done.dot })
    }

    /// Coordinates a write of a key this node is no replica of, since no replica can be reached. It
    /// has no copy and so no actor for the key: each such write is named by an actor of its own, and
    /// covers what its client has seen and nothing else.
    fn stand_in(
        &mut self,
        store: &Inner,
        batch: &mut Batch,
        (home, key): (Uid, &Key),
        intent: &Intent,
        (now_ms, fresh_actor): (u64, Actor),
    ) -> Result<Prepared, StoreError> {
        let incarnation = Incarnation(0); // none: the actor is not used again
        let minter = Minter { incarnation, clock: &mut self.clock, now_ms, fresh_actor };
        let done = Object::coordinate(None, intent, minter)?;
        if let Some(ceiling) = done.ceiling {
            batch.fact(FACT_CEILING, Bytes::copy_from_slice(&ceiling.0.to_be_bytes()));
        }
        let object = done.object.with_mine(None);
        keep_hint(store, batch, (home, key), &object, now_ms)?;
        let siblings = object.live().len() as u32;
        Ok(Prepared { encoded: object.encode().into(), siblings, dot: done.dot })
    }

    /// Freezes the recent layer if it is large, or if somebody asks for a checkpoint.
    fn freeze(&mut self, store: &Inner, asked: Vec<Synced>) {
        let bytes = read(&store.recent).active.bytes();
        // A key written again and again makes the log grow, though not the layer.
        let fill = bytes.max(self.log.appended() as usize / LOG_BYTES_A_LAYER_BYTE);
        let limit = store.options.write_buffer_bytes;
        if asked.is_empty() && fill < limit {
            return;
        }
        let mut checkpoint = lock(&store.checkpoint);
        if asked.is_empty() && checkpoint.segments.is_some() && fill < 2 * limit {
            return; // the one before is under way, and there is still room
        }
        while checkpoint.segments.is_some() && store.stopped.borrow().is_none() {
            let changed = store.checkpoint_changed.wait(checkpoint);
            checkpoint = changed.unwrap_or_else(PoisonError::into_inner);
        }
        let stopped = store.stopped.borrow().clone();
        if let Some(why) = stopped {
            return answer_all(asked, &Err(StoreError::Stopped(why)));
        }
        if read(&store.recent).active.is_empty() {
            return answer_all(asked, &Ok(()));
        }
        let rotated = store
            .make_way(self.log.room_for_next())
            .and_then(|()| self.log.rotate().map_err(|error| store.stop(&error)));
        match rotated {
            Err(error) => answer_all(asked, &Err(error)),
            Ok(segments) => {
                let mut recent = write(&store.recent);
                recent.frozen = Some(Arc::new(std::mem::take(&mut recent.active)));
                drop(recent);
                checkpoint.segments = Some(segments);
                checkpoint.waiting.extend(asked);
                drop(checkpoint);
                store.checkpoint_changed.notify_all();
            }
        }
    }
}

pub(super) fn answer_all(callers: Vec<Synced>, outcome: &Result<(), StoreError>) {
    for caller in callers {
        let _ = caller.send(outcome.clone()); // the caller may have left
    }
}

impl Batch {
    /// A key's newest copy, and whether the store has had none so far. A bad record is absent: its
    /// actor is not used again.
    fn current(&self, store: &Inner, key: &Bytes) -> Result<(Option<Object>, bool), StoreError> {
        let found = self.newest(store, Space::Records, key)?;
        let is_new = found.is_none();
        Ok((found.and_then(|bytes| store.believe(key, bytes)), is_new))
    }

    fn newest(
        &self,
        store: &Inner,
        space: Space,
        key: &Bytes,
    ) -> Result<Option<Bytes>, StoreError> {
        match self.layer.of(space).get(key) {
            Some(bytes) => Ok(Some(bytes.clone()).filter(|bytes| !bytes.is_empty())),
            None => store.newest(space, key).map_err(|error| store.stop(&error)),
        }
    }

    fn record(&mut self, key: Bytes, value: Bytes, is_new: bool) {
        self.new_keys += u64::from(is_new);
        self.write(Space::Records, key, value);
    }

    fn write(&mut self, space: Space, key: Bytes, value: Bytes) {
        self.log.record(space, &key, &value);
        self.layer.insert(Entry::Record { space, key, value });
    }

    /// How much is kept for a node, this group included.
    fn totals(&mut self, store: &Inner, target: Uid) -> &mut HintTotals {
        let before = || lock(&store.hints).get(&target).copied().unwrap_or_default();
        self.hints.entry(target).or_insert_with(before)
    }

    fn fact(&mut self, name: &str, value: Bytes) {
        self.log.fact(name, &value);
        self.layer.insert(Entry::Fact { name: name.to_owned(), value });
    }
}

fn merge(store: &Inner, batch: &mut Batch, key: &Key, object: &Object) -> Result<(), StoreError> {
    let stored_key = Bytes::from(record::stored_key(key));
    let (local, is_new) = batch.current(store, &stored_key)?;
    let mut copy = local.unwrap_or_default();
    if copy.merge(object) {
        let bytes = record::encode(&stored_key, &copy).into();
        batch.record(stored_key, bytes, is_new);
    } // else it is on disk already: a repair that raced another
    Ok(())
}

/// Takes away a tombstone that every replica has, or whatever this node is to hold no more. Its actor
/// goes with it: the next write of the key is named by another.
fn reap(
    store: &Inner,
    batch: &mut Batch,
    (key, digest): (&Key, Digest),
    only_tombstone: bool,
) -> Result<(), StoreError> {
    let stored_key = Bytes::from(record::stored_key(key));
    let (Some(copy), _) = batch.current(store, &stored_key)? else { return Ok(()) };
    let deleted = copy.siblings().values().all(|sibling| sibling.value.is_none());
    if (deleted || !only_tombstone) && Digest::of(&stored_key, &copy) == digest {
        batch.gone_keys += 1;
        batch.write(Space::Records, stored_key, Bytes::new());
    }
    Ok(())
}

fn keep_hint(
    store: &Inner,
    batch: &mut Batch,
    (target, key): (Uid, &Key),
    object: &Object,
    now_ms: u64,
) -> Result<(), StoreError> {
    let hint_key = hint_key(target, &record::stored_key(key));
    let before = batch.newest(store, Space::Hints, &hint_key)?;
    let bytes_before = before.as_ref().map_or(0, |bytes| hint_key.len() + bytes.len());
    let mut kept = before.and_then(|bytes| store.believe(&hint_key, bytes)).unwrap_or_default();
    if !kept.merge(object) {
        return Ok(());
    }
    let bytes = Bytes::from(record::encode(&hint_key, &kept));
    let bytes_now = hint_key.len() + bytes.len();
    let hint_bytes_max = store.options.hint_bytes_max;
    let totals = batch.totals(store, target);
    let after = totals.bytes + bytes_now as u64 - bytes_before as u64;
    if after > hint_bytes_max {
        totals.overflowed = true;
        lock(&store.overflows).insert(target, clock::now());
        return Err(StoreError::HintsFull);
    }
    if totals.keys == 0 {
        totals.since_ms = now_ms;
    }
    totals.keys += u64::from(bytes_before == 0);
    totals.bytes = after;
    batch.changes.push(Change {
        hint_key: hint_key.clone(),
        keys: i64::from(bytes_before == 0),
        bytes: bytes_now as i64 - bytes_before as i64,
        now_ms,
    });
    batch.write(Space::Hints, hint_key, bytes);
    Ok(())
}

fn drop_hint(
    store: &Inner,
    batch: &mut Batch,
    (target, key): (Uid, &Key),
    digest: Option<Digest>,
) -> Result<(), StoreError> {
    let stored_key = record::stored_key(key);
    let hint_key = hint_key(target, &stored_key);
    let Some(bytes) = batch.newest(store, Space::Hints, &hint_key)? else { return Ok(()) };
    let length = (hint_key.len() + bytes.len()) as u64;
    if let Some(digest) = digest
        && let Some(kept) = store.believe(&hint_key, bytes)
        && Digest::of(&stored_key, &kept) != digest
    {
        return Ok(()); // it has grown meanwhile
    }
    let totals = batch.totals(store, target);
    totals.keys = totals.keys.saturating_sub(1);
    totals.bytes = totals.bytes.saturating_sub(length);
    let gone = Change { hint_key: hint_key.clone(), keys: -1, bytes: -(length as i64), now_ms: 0 };
    batch.changes.push(gone);
    batch.write(Space::Hints, hint_key, Bytes::new());
    Ok(())
}
