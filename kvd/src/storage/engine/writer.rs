//! The one thread that writes: it makes groups, appends them to the log, answers, and freezes the
//! recent layer when it has grown enough.

use super::{FACT_CEILING, Inner, Job, Prepared, Queued, Synced, lock, read, write};
use crate::dynamo::clock::HybridClock;
use crate::dynamo::key::Key;
use crate::dynamo::object::{Intent, Minter, Object};
use crate::dynamo::version::Actor;
use crate::storage::recent::Layer;
use crate::storage::wal::{Entry, Group, Log};
use crate::storage::{StoreError, record};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use tokio::sync::mpsc;

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
    synced: Vec<Synced>,
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
                Job::Coordinate { key, intent, now_ms, fresh_actor, prepared, synced } => {
                    match self.coordinate(store, batch, &key, &intent, (now_ms, fresh_actor)) {
                        Ok(done) => {
                            batch.synced.push(synced);
                            let _ = prepared.send(Ok(done)); // the caller may have left
                        }
                        Err(refused @ StoreError::Refused(_)) => {
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
                Job::Fact { name, value, synced } => {
                    batch.synced.push(synced);
                    batch.fact(&name, value.into());
                }
                Job::Checkpoint { done } => batch.checkpoints.push(done),
            }
        }
        if batch.log.is_empty() {
            return Ok(());
        }
        store.make_way(self.log.room_for(&batch.log))?;
        self.log.append(&mut batch.log).map_err(|error| store.stop(&error))?;
        let mut recent = write(&store.recent);
        let layer = std::mem::take(&mut batch.layer);
        let records = layer.records.into_iter().map(|(key, value)| Entry::Record { key, value });
        let facts = layer.facts.into_iter().map(|(name, value)| Entry::Fact { name, value });
        records.chain(facts).for_each(|entry| recent.active.insert(entry));
        store.keys.fetch_add(batch.new_keys, Ordering::Relaxed);
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
        let found = match self.layer.records.get(key) {
            Some(bytes) => Some(bytes.clone()),
            None => store.record(key).map_err(|error| store.stop(&error))?,
        };
        let is_new = found.is_none();
        Ok((found.and_then(|bytes| store.believe(key, bytes)), is_new))
    }

    fn record(&mut self, key: Bytes, value: Bytes, is_new: bool) {
        self.log.record(&key, &value);
        self.new_keys += u64::from(is_new);
        self.layer.insert(Entry::Record { key, value });
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
