//! The store: opens, reads, and hands writes to the writer.
//!
//! All waiting writes are taken together: read, merged, appended to the log with one sync, and put
//! into the recent layer; then each caller is answered. There is no timer: an idle store commits a
//! lone write at once. When the recent layer has grown enough, or is old enough, it is frozen and
//! a second thread brings it into the database while writes go on; then its part of the log is
//! used again. A read looks into the recent layer, the frozen one, and the database, in that order.

mod arcs;
mod checkpoint;
mod compaction;
mod hints;
mod tree;
mod writer;

pub use compaction::Compaction;
pub use hints::HintTotals;
pub use tree::Digests;

use arcs::Arcs;

use super::disk::{Disk, Room};
use super::identity::{Directory, DirectoryError};
use super::recent::{Layer, Recent};
use super::reserve::{self, Reserve};
use super::shards::{self, DatabaseError, ShardError, Shards};
use super::wal::{self, Log, Space};
use super::{StoreError, record};
use crate::clock;
use crate::dynamo::clock::{Counter, HybridClock};
use crate::dynamo::key::Key;
use crate::dynamo::merkle::Digest;
use crate::dynamo::node::{Incarnation, KeyspaceId, Uid};
use crate::dynamo::object::{Intent, Object};
use crate::dynamo::scan::{Page, Place};
use crate::dynamo::version::{Actor, Dot};
use bytes::Bytes;
use proto::token::Token;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use writer::Writer;

const FACT_CEILING: &str = "clock_ceiling";

/// Writes waiting for the writer, at most. One more is refused as overload.
const QUEUE_WRITES_MAX: usize = 4096;

/// Kibibytes of objects waiting for the writer, at most. Beyond it writes are refused as overload.
const QUEUE_KIB_MAX: usize = 128 * 1024;

/// A page of a scan ends after so many bytes of objects.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A page of a scan ends after so many records looked at, whether or not they were asked for.
const PAGE_LOOKS_MAX: usize = 16 * 1024;

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Memory the database may use for pages, bytes.
    pub cache_bytes: usize,
    /// The recent layer is checkpointed when it holds so many bytes. At twice as many, with the
    /// checkpoint before still under way, writes wait for it: memory holds at most four times as
    /// much.
    pub write_buffer_bytes: usize,
    /// Bytes of hints kept for one other node, at most. One more is not kept; what then is missing
    /// there is found by comparing.
    pub hint_bytes_max: u64,
}

/// A node's records and its few facts, on its own disk. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    reserve: Reserve,
    shards: Shards,
    recent: RwLock<Recent>,
    options: StoreOptions,
    /// When there was last no room for a hint for a node; not known of before the store was opened.
    overflows: Mutex<BTreeMap<Uid, Instant>>,
    opened: Instant,
    /// How much is kept for other nodes. Changed by the writer alone.
    hints: Mutex<BTreeMap<Uid, HintTotals>>,
    /// The same by arc of the ring. Locked after `hints` where both are.
    arcs: Mutex<Arcs>,
    /// Under which the writer names writes; changes when the last one is resumed or denied.
    incarnation: RwLock<Incarnation>,
    jobs: Mutex<Option<mpsc::Sender<Queued>>>,
    room: Arc<Semaphore>,
    compaction: watch::Sender<Compaction>,
    /// The writer, then the one that makes checkpoints.
    threads: Mutex<Vec<JoinHandle<()>>>,
    checkpoint: Mutex<Checkpoint>,
    /// Notified whenever `checkpoint` changes.
    checkpoint_changed: Condvar,
    /// Why the store stopped; `None` while it works.
    stopped: watch::Sender<Option<String>>,
    keys: AtomicU64,
    bad_records: AtomicU64,
    /// How far the log has got.
    position: AtomicU64,
}

/// The checkpoint that is to be made, or is being made.
#[derive(Default)]
struct Checkpoint {
    /// Segments of the log that hold the frozen layer and nothing newer.
    segments: Option<Vec<u64>>,
    waiting: Vec<Synced>,
    /// A compaction is wanted, or under way.
    compact: bool,
    /// No more will come.
    closing: bool,
}

/// A client write, merged into the coordinator's copy and ready to be sent, though not synced yet.
#[derive(Debug)]
pub struct Prepared {
    /// The encoded object, for the other replicas.
    pub encoded: Bytes,
    /// Live values it holds.
    pub siblings: u32,
    /// The write's name.
    pub dot: Dot,
}

/// A page of records, proven.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proven {
    /// How many.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Stored keys of those whose checksum failed.
    pub bad: Vec<Bytes>,
    /// Where the next page starts; `None`: that was all.
    pub next: Option<Vec<u8>>,
}

/// Sizes, for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Records stored, tombstones included.
    pub keys: u64,
    /// What its files take on the disk, log included and reserve not, bytes.
    pub data_bytes: u64,
    /// Records found bad since the start, and groups of the log found damaged at it.
    pub bad_records: u64,
}

/// Comes when the store has got so far.
pub type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

type Synced = oneshot::Sender<Result<(), StoreError>>;

/// A job and the room it takes in the queue.
type Queued = (Job, OwnedSemaphorePermit);

enum Job {
    Coordinate {
        key: Key,
        intent: Intent,
        /// This node is no replica of the key and keeps the write as a hint for this one, which is.
        stand_in_for: Option<Uid>,
        now_ms: u64,
        fresh_actor: Actor,
        prepared: oneshot::Sender<Result<Prepared, StoreError>>,
        synced: Synced,
    },
    Merge {
        key: Key,
        object: Object,
        synced: Synced,
    },
    Reap {
        key: Key,
        digest: Digest,
        only_tombstone: bool,
        synced: Synced,
    },
    KeepHint {
        target: Uid,
        key: Key,
        object: Object,
        now_ms: u64,
        synced: Synced,
    },
    DropHint {
        target: Uid,
        key: Key,
        digest: Option<Digest>,
        synced: Synced,
    },
    ForgetOverflow {
        target: Uid,
        synced: Synced,
    },
    Fact {
        name: String,
        value: Vec<u8>,
        synced: Synced,
    },
    CountHints {
        done: oneshot::Sender<Result<bool, StoreError>>,
    },
    Checkpoint {
        done: Synced,
    },
}

impl Store {
    /// Opens, or on the very first start makes, the files on `disk`, checks that they are of the
    /// node of `directory`, begins a life of it, and replays the log.
    pub fn open(
        directory: &mut Directory,
        disk: Arc<dyn Disk>,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        let place = disk.place();
        let in_words = |error| OpenError::of_database(&place, &error);
        let refused = |error: io::Error| OpenError::Refused(place.clone(), error.to_string());
        let is_ours = |name: &String| shards::is_one(name) || wal::is_segment(name);
        if !directory.is_new() && !disk.list().map_err(refused)?.iter().any(is_ours) {
            directory.wiped()?;
        }
        let reserve = Reserve::open(Arc::clone(&disk), options.write_buffer_bytes);
        let reserve = reserve.map_err(refused)?;
        reserve.make_way(0).map_err(refused)?;
        let shards = Shards::open(
            &*disk,
            (directory.is_new(), directory.says_stopped_cleanly()),
            options.cache_bytes,
        )
        .map_err(|error| OpenError::of_shard(directory, error))?;
        let signs = shards.signs().map_err(in_words)?;
        let uid = directory.uid().to_bytes();
        if let Some(inside) = signs.uids.iter().flatten().find(|inside| **inside != uid) {
            return Err(OpenError::mixed(directory, *inside));
        }
        let has_begun = directory.has_begun();
        let life = directory.begin_life(signs.stop_mark, &signs.lives)?;
        shards.begin_life(uid, life).map_err(in_words)?;

        let mut layer = Layer::default();
        // Everything up to the least is in every file; of what is between, some files hold newer
        // states, which the rest of the log brings back.
        let applied = signs.applied.iter().copied().min().unwrap_or(0);
        let log = Log::open(Arc::clone(&disk), applied, has_begun, |_, entry| layer.insert(entry));
        let (mut log, replayed) = log.map_err(refused)?;
        directory.life_begun(life)?; // there is a log now
        directory.recovered(log.recovered());
        if !replayed.damage.is_empty() {
            directory.lost_data("the log is damaged")?; // before the log, which shows it, is given up
        }
        reserve.make_way(reserve::checkpoint_bytes(layer.bytes())).map_err(refused)?;
        bring_back(&shards, &mut log, &layer).map_err(in_words)?;
        reserve.tend().map_err(refused)?;
        for damage in &replayed.damage {
            tracing::error!(
                ?damage,
                "the log is damaged: acknowledged writes are lost here and must come back from replicas"
            );
        }
        let started = Self::start(directory, (disk, reserve), shards, log, options);
        let store = started.map_err(in_words)?;
        store.inner.bad_records.store(replayed.damage.len() as u64, Ordering::Relaxed);
        Ok(store)
    }

    fn start(
        directory: &Directory,
        (disk, reserve): (Arc<dyn Disk>, Reserve),
        shards: Shards,
        log: Log,
        options: &StoreOptions,
    ) -> Result<Self, DatabaseError> {
        let keys = shards.records()?;
        let hints = hints::load(&shards)?;
        let ceiling = shards.fact(FACT_CEILING)?;
        let ceiling = ceiling.and_then(|bytes| bytes[..].try_into().ok());
        let ceiling = ceiling.map_or(Counter::default(), |c| Counter(u64::from_be_bytes(c)));
        let (jobs, waiting) = mpsc::channel(QUEUE_WRITES_MAX);
        let inner = Arc::new(Inner {
            disk,
            reserve,
            shards,
            recent: RwLock::new(Recent::default()),
            options: options.clone(),
            overflows: Mutex::default(),
            opened: clock::now(),
            arcs: Mutex::new(Arcs::of(&hints)),
            hints: Mutex::new(hints),
            incarnation: RwLock::new(directory.incarnation()),
            jobs: Mutex::new(Some(jobs)),
            room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
            compaction: watch::Sender::default(),
            threads: Mutex::new(Vec::new()),
            checkpoint: Mutex::new(Checkpoint::default()),
            checkpoint_changed: Condvar::new(),
            stopped: watch::Sender::new(None),
            keys: AtomicU64::new(keys),
            bad_records: AtomicU64::new(0),
            position: AtomicU64::new(log.recovered()),
        });
        let spares = log.spares();
        let writer =
            Writer { store: Arc::downgrade(&inner), log, clock: HybridClock::resume(ceiling) };
        let checkpointer = Arc::downgrade(&inner);
        *lock(&inner.threads) = vec![
            thread("kvd-writer", move || writer.run(waiting)),
            thread("kvd-checkpoint", move || checkpoint::run(&checkpointer, &spares)),
        ];
        Ok(Self { inner })
    }

    /// This node's copy of `key`; [`StoreError::BadRecord`] if its checksum fails.
    pub fn read(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        self.working()?;
        self.inner.proven(key, record::decode)
    }

    /// The same, still encoded: what a peer that asks is sent.
    pub fn read_encoded(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        self.working()?;
        self.inner.proven(key, |stored_key, bytes| Ok(record::open(stored_key, bytes)?.1))
    }

    /// A page of this node's copies in `keyspace`, from after `from` through token `to`, only keys
    /// that start with `prefix`.
    pub fn scan(
        &self,
        keyspace: KeyspaceId,
        from: &Place,
        to: Token,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.working()?;
        let mut start = from.0.to_bytes().to_vec();
        loop {
            let records = self.inner.records_from(&start);
            let (records, more) = records.map_err(|error| self.inner.stop(&error))?;
            let last = records.last_key_value().map(|(key, _)| key.clone());
            let page = self.inner.page(records, more, (keyspace, from, to), prefix, limit);
            match (last, &page.through) {
                // All it read lies at or before `from`: a large record, or other keyspaces' of the
                // same token. A page must get on, or whoever asks would ask for it for ever.
                (Some(last), Some(through)) if through <= from => {
                    start = [&last[..], &[0]].concat()
                }
                _ => return Ok(page),
            }
        }
    }

    /// Proves the checksums of the records from stored key `from` on, a page of them.
    pub fn prove(&self, from: &[u8]) -> Result<Proven, StoreError> {
        self.working()?;
        let records = self.inner.records_from(from);
        let (records, more) = records.map_err(|error| self.inner.stop(&error))?;
        let mut proven = Proven::default();
        for (stored_key, bytes) in records {
            proven.next = more.then(|| [&stored_key[..], &[0]].concat());
            if bytes.is_empty() {
                continue; // gone
            }
            proven.records += 1;
            proven.bytes += bytes.len() as u64;
            if let Err(why) = record::open(&stored_key, bytes) {
                self.inner.note_bad_record(&stored_key, &why);
                proven.bad.push(stored_key.clone());
            }
        }
        Ok(proven)
    }

    /// Applies a client's write under this node's actor. The first result comes when the object is
    /// made, the second when it is on disk.
    ///
    /// With `stand_in_for`, this node is no replica of the key: the write is named by an actor of its
    /// own and kept as a hint for that one, which is.
    pub fn coordinate(
        &self,
        key: Key,
        intent: Intent,
        stand_in_for: Option<Uid>,
        now_ms: u64,
        fresh_actor: Actor,
    ) -> (Answer<Prepared>, Answer<()>) {
        let bytes = intent.record.value.as_ref().map_or(0, |value| value.stored().len());
        let (prepared, when_prepared) = oneshot::channel();
        let (synced, when_synced) = oneshot::channel();
        let job =
            Job::Coordinate { key, intent, stand_in_for, now_ms, fresh_actor, prepared, synced };
        self.submit(job, bytes);
        (when_prepared, when_synced)
    }

    /// Merges another replica's object into this node's copy. The result comes when it is on disk.
    pub fn merge(&self, key: Key, object: Object) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        let bytes = object.encoded_len();
        self.submit(Job::Merge { key, object, synced }, bytes);
        when_synced
    }

    /// Takes away this node's copy of a key, if it is a tombstone and has not changed from `digest`.
    pub fn reap(&self, key: Key, digest: Digest) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        self.submit(Job::Reap { key, digest, only_tombstone: true, synced }, 0);
        when_synced
    }

    /// Takes away this node's copy of a key that it is to hold no more, if it has not changed from
    /// `digest`.
    pub fn give_up(&self, key: Key, digest: Digest) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        self.submit(Job::Reap { key, digest, only_tombstone: false, synced }, 0);
        when_synced
    }

    /// Keeps a fact of the node: its cluster, its layout.
    pub fn put_fact(&self, name: &str, value: Vec<u8>) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        self.submit(Job::Fact { name: name.to_owned(), value, synced }, 0);
        when_synced
    }

    /// A fact kept by [`Store::put_fact`].
    pub fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.working()?;
        let recent = read(&self.inner.recent).fact(name).cloned();
        let found = match recent {
            Some(value) => Some(value),
            None => self.inner.shards.fact(name).map_err(|error| self.inner.stop(&error))?,
        };
        Ok(found.filter(|value| !value.is_empty()).map(|value| value.to_vec()))
    }

    /// Brings what is recent into the database. The result comes when it is there.
    pub fn checkpoint(&self) -> Answer<()> {
        let (done, when_done) = oneshot::channel();
        self.submit(Job::Checkpoint { done }, 0);
        when_done
    }

    /// The incarnation of the node under which it names writes.
    pub fn incarnation(&self) -> Incarnation {
        *read(&self.inner.incarnation)
    }

    /// From now on names writes under this incarnation of the node.
    pub fn live_as(&self, incarnation: Incarnation) {
        *write(&self.inner.incarnation) = incarnation;
    }

    /// Sizes as they are now.
    pub fn facts(&self) -> Facts {
        Facts {
            keys: self.inner.keys.load(Ordering::Relaxed),
            data_bytes: self.inner.data_bytes().unwrap_or(0),
            bad_records: self.inner.bad_records.load(Ordering::Relaxed),
        }
    }

    /// How far its log has got: all up to there is on disk. It never goes back, over restarts too,
    /// unless something is lost.
    pub fn log_position(&self) -> u64 {
        self.inner.position.load(Ordering::Acquire)
    }

    /// Has every file of the database written anew, without the pages that are free in it, one
    /// after the other, unless that is under way.
    pub fn compact(&self) {
        let begin = |compaction: &mut Compaction| {
            let begins = !compaction.running;
            if begins {
                let started_at_ms = clock::now_ms();
                *compaction = Compaction { running: true, started_at_ms, ..Default::default() };
            }
            begins
        };
        // The lock first: what ended must not be taken for what begins.
        let mut checkpoint = lock(&self.inner.checkpoint);
        if self.inner.compaction.send_if_modified(begin) {
            checkpoint.compact = true;
            self.inner.checkpoint_changed.notify_all();
        }
    }

    /// How compaction is going.
    pub fn compaction(&self) -> watch::Receiver<Compaction> {
        self.inner.compaction.subscribe()
    }

    /// Makes the reserve again once there is room for it. Whether it is whole: while it is not,
    /// nothing should be taken in that can wait.
    pub fn tend_reserve(&self) -> Result<bool, StoreError> {
        self.working()?;
        self.inner.reserve.tend().map_err(|error| self.inner.stop(&error))
    }

    /// The file system it is on.
    pub fn room(&self) -> Room {
        self.inner.disk.room()
    }

    /// Changes to the reason once the store has stopped.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.inner.stopped.subscribe()
    }

    /// Does what waits, brings everything into the database, ends, and leaves a mark as the last
    /// thing on disk. Returns the mark, or nothing if the store has stopped and not all is on disk.
    pub fn close(&self) -> Option<u128> {
        let (done, brought_in) = oneshot::channel();
        // The last job there is; it waits for its place, and takes none of the room for objects.
        let jobs = lock(&self.inner.jobs).take()?;
        let no_room = Arc::clone(&self.inner.room).try_acquire_many_owned(0).ok()?;
        let _ = jobs.blocking_send((Job::Checkpoint { done }, no_room)); // its answer tells
        drop(jobs);
        // The writer first: as long as it works it may wait for a checkpoint.
        let mut threads = std::mem::take(&mut *lock(&self.inner.threads)).into_iter();
        let _ = threads.next().map(JoinHandle::join); // a panic there has stopped the store
        lock(&self.inner.checkpoint).closing = true;
        self.inner.checkpoint_changed.notify_all();
        threads.for_each(|thread| drop(thread.join()));
        let done = brought_in.blocking_recv();
        done.ok()?.ok()?;
        self.working().ok()?;
        self.inner.make_way(0).ok()?;
        let mark = clock::random_u128();
        let left = self.inner.shards.end_life(mark);
        left.map_err(|error| self.inner.stop(&error)).ok()?;
        Some(mark)
    }

    /// Hands a job to the writer.
    fn submit(&self, job: Job, bytes: usize) {
        if let Err(error) = self.working() {
            return job.refuse(error);
        }
        let kib = (bytes / 1024 + 1).min(QUEUE_KIB_MAX) as u32;
        let Ok(room) = Arc::clone(&self.inner.room).try_acquire_many_owned(kib) else {
            return job.refuse(StoreError::Overloaded);
        };
        let jobs = lock(&self.inner.jobs).clone();
        let (job, error) = match jobs {
            None => (job, StoreError::Stopped("the node is shutting down".into())),
            Some(jobs) => match jobs.try_send((job, room)) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full((job, _))) => (job, StoreError::Overloaded),
                Err(mpsc::error::TrySendError::Closed((job, _))) => {
                    (job, StoreError::Stopped("the writer ended".into()))
                }
            },
        };
        job.refuse(error);
    }

    fn working(&self) -> Result<(), StoreError> {
        match &*self.inner.stopped.borrow() {
            None => Ok(()),
            Some(why) => Err(StoreError::Stopped(why.clone())),
        }
    }
}

impl Job {
    fn refuse(self, error: StoreError) {
        match self {
            Self::Coordinate { prepared, synced, .. } => {
                let _ = prepared.send(Err(error.clone())); // the caller may have left
                let _ = synced.send(Err(error));
            }
            Self::CountHints { done } => {
                let _ = done.send(Err(error));
            }
            Self::Merge { synced, .. }
            | Self::Reap { synced, .. }
            | Self::KeepHint { synced, .. }
            | Self::DropHint { synced, .. }
            | Self::ForgetOverflow { synced, .. }
            | Self::Fact { synced, .. }
            | Self::Checkpoint { done: synced } => {
                let _ = synced.send(Err(error));
            }
        }
    }
}

impl Inner {
    fn record(&self, stored_key: &[u8]) -> Result<Option<Bytes>, DatabaseError> {
        self.newest(Space::Records, stored_key)
    }

    fn newest(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, DatabaseError> {
        // The database second: what leaves the recent layer in between is in it by then.
        let recent = read(&self.recent).record(space, key).cloned();
        match recent {
            Some(recent) => Ok(Some(recent).filter(|record| !record.is_empty())), // else it is gone
            None => self.shards.record(space, key),
        }
    }

    /// A key's record, its checksum proven by `open`.
    fn proven<T>(
        &self,
        key: &Key,
        open: impl FnOnce(&[u8], Bytes) -> Result<T, record::BadRecord>,
    ) -> Result<Option<T>, StoreError> {
        let stored_key = record::stored_key(key);
        let found = self.record(&stored_key).map_err(|error| self.stop(&error))?;
        found.map(|bytes| open(&stored_key, bytes)).transpose().map_err(|why| {
            self.note_bad_record(&stored_key, &why);
            StoreError::BadRecord
        })
    }

    /// Records from `start` on, those that are gone as empty ones, and whether there are more.
    fn records_from(&self, start: &[u8]) -> Result<(BTreeMap<Bytes, Bytes>, bool), DatabaseError> {
        self.records_in((start, Bound::Unbounded))
    }

    /// The same up to an end, which is not before the start.
    fn records_in(
        &self,
        range: (&[u8], Bound<&[u8]>),
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool), DatabaseError> {
        let recent = read(&self.recent).page(Space::Records, range, PAGE_LOOKS_MAX);
        let older = self.shards.page(Space::Records, range, PAGE_LOOKS_MAX, PAGE_BYTES_MAX)?;
        Ok(merged(recent, older))
    }

    fn page(
        &self,
        records: BTreeMap<Bytes, Bytes>,
        more: bool,
        (keyspace, from, to): (KeyspaceId, &Place, Token),
        prefix: &[u8],
        limit: usize,
    ) -> Page {
        let (mut entries, mut bytes, mut walked) = (Vec::new(), 0, from.clone());
        for (looks, (stored_key, value)) in records.into_iter().enumerate() {
            let Some((token, of, key)) = record::parse_key(&stored_key) else { continue };
            if token > to {
                return Page { entries, through: None };
            }
            let key = Bytes::copy_from_slice(key);
            // All before it is walked. Of another keyspace's key only its token may be said: ours
            // may have the same key, still to come.
            let through = if of == keyspace { (token, key.clone()) } else { (token, Bytes::new()) };
            let is_ours = of == keyspace && through > *from && key.starts_with(prefix);
            if is_ours && !value.is_empty() {
                bytes += value.len();
                if let Some(object) = self.believe(&stored_key, value) {
                    entries.push((key, object));
                }
            }
            walked = walked.max(through);
            let full = entries.len() >= limit || bytes >= PAGE_BYTES_MAX || looks >= PAGE_LOOKS_MAX;
            if full && walked > *from {
                return Page { entries, through: Some(walked) };
            }
        }
        Page { entries, through: more.then_some(walked) }
    }

    /// The object in `bytes`, or nothing: a bad record is counted, logged and then absent, and
    /// read repair brings a healthy copy back.
    fn believe(&self, stored_key: &[u8], bytes: Bytes) -> Option<Object> {
        match record::decode(stored_key, bytes) {
            Ok(object) => Some(object),
            Err(why) => {
                self.note_bad_record(stored_key, &why);
                None
            }
        }
    }

    fn note_bad_record(&self, stored_key: &[u8], why: &record::BadRecord) {
        self.bad_records.fetch_add(1, Ordering::Relaxed);
        let key = record::parse_key(stored_key).map(|(_, _, key)| key.escape_ascii().to_string());
        tracing::error!(key = key.as_deref().unwrap_or("?"), %why, "bad record, taken as absent");
    }

    /// Sees to it that `bytes` more fit on the disk, with the reserve if it must be.
    fn make_way(&self, bytes: u64) -> Result<(), StoreError> {
        self.reserve.make_way(bytes).map_err(|error| self.stop(&error))
    }

    fn data_bytes(&self) -> io::Result<u64> {
        let used = |name: &String| match self.disk.used(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0), // renamed just now
            used => used,
        };
        self.disk.list()?.iter().filter(|name| *name != reserve::NAME).map(used).sum()
    }

    /// Stops the store for good, the first reason kept.
    fn stop(&self, error: &dyn fmt::Display) -> StoreError {
        let why = match self.shards.first_error() {
            Some(first) => format!("{}: {first}", self.disk.place()),
            None => format!("{}: {error}", self.disk.place()),
        };
        self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            stopped.get_or_insert_with(|| why.clone());
            first
        });
        self.checkpoint_changed.notify_all();
        StoreError::Stopped(why)
    }
}

/// Two pages as one, the recent one over the older, and whether there is more.
fn merged(
    (recent, more_recent): (Vec<(Bytes, Bytes)>, bool),
    (older, more_older): (Vec<(Bytes, Bytes)>, bool),
) -> (BTreeMap<Bytes, Bytes>, bool) {
    let end = |page: &[(Bytes, Bytes)], more: bool| {
        page.last().filter(|_| more).map(|(key, _)| key.clone())
    };
    let ends = [end(&recent, more_recent), end(&older, more_older)];
    let mut merged: BTreeMap<Bytes, Bytes> = older.into_iter().collect();
    merged.extend(recent);
    // Beyond the end of the shorter page, the other may hide what it does not hold.
    let end = ends.into_iter().flatten().min();
    if let Some(end) = &end {
        merged.retain(|key, _| key <= end);
    }
    (merged, end.is_some())
}

// === opening ===

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is not one it can use.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its files cannot be used.
    #[error(
        "the files in {0} cannot be opened: {1}; restore them from a backup, or remove the data directory and let this node join as a new one"
    )]
    Files(String, String),
    /// The operating system refuses to read or write them; that says nothing about what is in them.
    #[error(
        "the files in {0} cannot be used now: {1}; see that its disk works, has room and can be written to, then start this node again: nothing was given up"
    )]
    Refused(String, String),
}

impl OpenError {
    fn of_shard(directory: &Directory, error: ShardError) -> Self {
        let path = directory.path().to_owned();
        match error {
            ShardError::Missing(name) => DirectoryError::DatabaseMissing(path, name).into(),
            ShardError::Unusable(name, why) => {
                Self::Files(format!("{}/{name}", path.display()), why)
            }
            ShardError::Refused(why) => Self::Refused(path.display().to_string(), why),
            ShardError::Misplaced(name) => {
                let why = format!("{name} is the file of another part of the ring");
                Self::Files(path.display().to_string(), why)
            }
        }
    }

    fn of_database(place: &str, error: &DatabaseError) -> Self {
        match shards::refusal(error) {
            Some(refusal) => Self::Refused(place.to_owned(), refusal.to_string()),
            None => Self::Files(place.to_owned(), error.to_string()),
        }
    }

    fn mixed(directory: &Directory, inside: [u8; 16]) -> Self {
        let (path, outside) = (directory.path().to_owned(), directory.uid());
        let inside = crate::dynamo::node::Uid::from_bytes(inside);
        DirectoryError::Mixed { path, outside, inside }.into()
    }
}

/// Brings what was read back from the log into the database before anything is served. After a
/// kill or a failed sync it may have been in the page cache alone, and what a node has shown must
/// not go; and a node that is killed again and again must not pile up log.
fn bring_back(shards: &Shards, log: &mut Log, layer: &Layer) -> Result<(), DatabaseError> {
    let ended = log.take_ended();
    if let Some(last) = ended.iter().copied().max() {
        // Also when they held nothing whole: a segment that is used again before its new name is on
        // disk would else be read under the old one, and what it then holds taken for damage.
        shards.checkpoint(layer, last)?;
    }
    let spares = log.spares();
    Ok(ended.into_iter().try_for_each(|segment| spares.recycle(segment))?)
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let named = std::thread::Builder::new().name(name.into());
    named.spawn(work).expect("a thread can be started")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::super::identity::STORE_DIR;
    use super::super::wal::Entry;
    use super::*;
    use crate::dynamo::merkle::{self, LEAVES, Leaf, Span};
    use crate::dynamo::node::RequestId;
    use crate::dynamo::object::Record;
    use crate::dynamo::value::Value;
    use crate::dynamo::version::Clock;
    use std::path::Path;

    const OPTIONS: StoreOptions =
        StoreOptions { cache_bytes: 8 << 20, write_buffer_bytes: 1 << 20, hint_bytes_max: 1 << 20 };
    const SHARD: &str = "store/shard-0.redb";

    fn try_open(path: &Path) -> (Directory, Result<Store, OpenError>) {
        let mut directory = Directory::open(path).unwrap();
        let disk = Arc::new(RealDisk::new(&path.join(STORE_DIR)).unwrap());
        let store = Store::open(&mut directory, disk, &OPTIONS);
        (directory, store)
    }

    /// As when every other member confirms that it saw no later start.
    fn open(path: &Path) -> (Directory, Store) {
        let (mut directory, store) = try_open(path);
        let store = store.unwrap();
        directory.resume().into_iter().for_each(|incarnation| store.live_as(incarnation));
        (directory, store)
    }

    /// As when the process ends. Threads let go of the files some time after; two stores of one process
    /// must not meet there. The room goes after the files do.
    fn let_go(directory: Directory, store: Store) {
        let room = Arc::clone(&store.inner.room);
        drop((store, directory));
        let until = clock::now() + std::time::Duration::from_secs(60);
        while Arc::strong_count(&room) > 1 {
            assert!(clock::now() < until, "a store is never let go of");
            std::thread::yield_now();
        }
    }

    /// Every file of the store in `from`, put in place of those in `to`.
    fn copy_store(from: &Path, to: &Path) {
        std::fs::remove_dir_all(to).ok();
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    fn key(name: &str) -> Key {
        Key::new(KeyspaceId::of("default"), Bytes::copy_from_slice(name.as_bytes())).unwrap()
    }

    fn put(store: &Store, name: &str, value: &str, request: u128) -> Dot {
        let record = Record {
            value: Some(Value::Plain(Bytes::copy_from_slice(value.as_bytes()))),
            request: RequestId(request),
            checksum: 0,
        };
        let intent = Intent { context: Some(Clock::new()), record };
        let (prepared, synced) =
            store.coordinate(key(name), intent, None, 1000, Actor(request as u64));
        synced.blocking_recv().unwrap().unwrap();
        prepared.blocking_recv().unwrap().unwrap().dot
    }

    #[test]
    fn what_is_synced_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        put(&store, "k", "v", 1);
        store.put_fact("colour", b"blue".to_vec()).blocking_recv().unwrap().unwrap();
        assert!(store.close().is_some());
        let_go(directory, store);
        let (_directory, store) = open(dir.path());
        assert_eq!(store.read(&key("k")).unwrap().unwrap().live().len(), 1);
        assert_eq!(store.fact("colour").unwrap().unwrap(), b"blue");
        assert_eq!(store.facts().keys, 1);
        assert!(store.read(&key("other")).unwrap().is_none());
    }

    #[test]
    fn a_counter_is_never_minted_twice_though_the_wall_clock_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Counter::default();
        for start in 0..3 {
            let (_directory, store) = open(dir.path());
            for write in 0..3 {
                let dot = put(&store, "k", "v", start * 10 + write + 1);
                assert!(dot.counter > last);
                last = dot.counter;
            }
            store.close();
        }
    }

    #[test]
    fn the_logs_position_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = 0;
        for start in 0..6 {
            let (directory, store) = open(dir.path());
            let recovered = directory.start().recovered;
            assert!(recovered >= last && store.log_position() == recovered);
            last = recovered;
            for write in 0..3 {
                put(&store, "k", "v", start * 10 + write + 1);
                assert!(store.log_position() > last);
                last = store.log_position();
            }
            if start % 3 == 0 {
                store.checkpoint().blocking_recv().unwrap().unwrap();
                assert_eq!(store.log_position(), last, "nothing more was written");
            }
            if start % 2 == 0 {
                store.close();
            }
            let_go(directory, store);
        }
    }

    #[test]
    fn another_life_coordinates_under_another_actor() {
        let dir = tempfile::tempdir().unwrap();
        let (mut directory, store) = open(dir.path());
        let first = put(&store, "k", "v", 1).actor;
        let mark = store.close().unwrap();
        directory.stopped_cleanly(mark).unwrap();
        let_go(directory, store);
        let (directory, store) = open(dir.path());
        assert_eq!(put(&store, "k", "v", 2).actor, first, "a clean stop voids nothing");
        store.close();
        let_go(directory, store); // not stopped cleanly
        let (_directory, store) = open(dir.path());
        assert_ne!(put(&store, "k", "v", 3).actor, first);
    }

    #[test]
    fn a_flipped_bit_is_absent_counted_and_replaced_under_a_new_actor() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let first = put(&store, "k", "precious", 1);
        let healthy = store.read(&key("k")).unwrap().unwrap();
        let stored_key = Bytes::from(record::stored_key(&key("k")));
        let mut bytes = store.inner.record(&stored_key).unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let damaged = Entry::Record { space: Space::Records, key: stored_key, value: bytes.into() };
        write(&store.inner.recent).active.insert(damaged);

        assert_eq!(store.read(&key("k")), Err(StoreError::BadRecord));
        assert_eq!(store.facts().bad_records, 1);
        let second = put(&store, "k", "new", 2);
        assert_ne!(second.actor, first.actor, "the lost copy's actor must not be used again");
        store.merge(key("k"), healthy).blocking_recv().unwrap().unwrap();
        assert_eq!(store.read(&key("k")).unwrap().unwrap().live().len(), 2);
    }

    #[test]
    fn a_scan_walks_one_keyspace_in_token_order_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let names: Vec<String> = (0..50).map(|i| format!("key{i}")).collect();
        for (i, name) in names.iter().enumerate() {
            put(&store, name, "v", i as u128 + 1);
        }
        let elsewhere = Key::new(KeyspaceId::of("other"), Bytes::from_static(b"key1")).unwrap();
        let copy = store.read(&key("key1")).unwrap().unwrap();
        store.merge(elsewhere, copy).blocking_recv().unwrap().unwrap();

        let keyspace = KeyspaceId::of("default");
        let (mut from, mut seen) = ((Token(0), Bytes::new()), Vec::new());
        loop {
            let page = store.scan(keyspace, &from, Token(u128::MAX), b"key", 7).unwrap();
            assert!(page.entries.len() <= 7);
            seen.extend(page.entries.into_iter().map(|(key, _)| key));
            match page.through {
                Some(place) => from = place,
                None => break,
            }
        }
        let mut expected: Vec<Bytes> = names.into_iter().map(Bytes::from).collect();
        expected.sort_by_key(|key| Token::of(key));
        assert_eq!(seen, expected);
        assert_eq!(
            store
                .scan(keyspace, &(Token(0), Bytes::new()), Token(u128::MAX), b"key4", 99)
                .unwrap()
                .entries
                .len(),
            11
        );
    }

    #[test]
    fn files_of_two_nodes_are_not_mixed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &two] {
            let (_directory, store) = open(dir.path());
            store.close();
        }
        std::fs::copy(two.path().join(SHARD), one.path().join(SHARD)).unwrap();
        let error = try_open(one.path()).1.err().unwrap();
        assert!(matches!(error, OpenError::Directory(DirectoryError::Mixed { .. })), "{error}");
    }

    #[test]
    fn files_of_two_parts_of_the_ring_are_not_swapped() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        store.close();
        let_go(directory, store);
        std::fs::copy(dir.path().join("store/shard-1.redb"), dir.path().join(SHARD)).unwrap();
        let error = try_open(dir.path()).1.err().unwrap();
        assert!(error.to_string().contains("another part of the ring"), "{error}");
    }

    #[test]
    fn a_lost_database_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        store.close();
        let_go(directory, store);
        std::fs::write(dir.path().join(SHARD), "").unwrap();
        let error = try_open(dir.path()).1.err().unwrap();
        let missing = DirectoryError::DatabaseMissing(dir.path().into(), "shard-0.redb".into());
        assert_eq!(error.to_string(), missing.to_string());
    }

    #[test]
    fn an_older_database_put_back_begins_another_life() {
        let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let clean_start = || {
            let (mut directory, store) = open(dir.path());
            let request = 7 + u128::from(directory.start().count);
            let actor = put(&store, "k", "v", request).actor;
            let mark = store.close().unwrap();
            directory.stopped_cleanly(mark).unwrap();
            actor
        };
        let first = clean_start();
        copy_store(&dir.path().join(STORE_DIR), &backup.path().join("old"));
        assert_eq!(clean_start(), first);
        copy_store(&backup.path().join("old"), &dir.path().join(STORE_DIR));
        assert_ne!(clean_start(), first, "the copy lacks what the last run wrote under it");
    }

    #[test]
    fn a_scan_cut_at_another_keyspaces_key_does_not_skip_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let ids = [KeyspaceId(1), KeyspaceId(u64::MAX)];
        put(&store, "seed", "v", 1);
        let copy = store.read(&key("seed")).unwrap().unwrap();
        for i in 0..20 {
            for id in ids {
                let key = Key::new(id, Bytes::from(format!("k{i}"))).unwrap();
                store.merge(key, copy.clone()).blocking_recv().unwrap().unwrap();
            }
        }
        for id in ids {
            let (mut from, mut seen) = ((Token(0), Bytes::new()), 0);
            loop {
                let page = store.scan(id, &from, Token(u128::MAX), b"", 1).unwrap();
                seen += page.entries.len();
                match page.through {
                    Some(place) => from = place,
                    None => break,
                }
            }
            assert_eq!(seen, 20);
        }
    }

    #[test]
    fn a_file_that_is_no_database_is_an_error_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        store.close();
        let_go(directory, store);
        std::fs::write(dir.path().join(SHARD), vec![7; 4096]).unwrap();
        let error = try_open(dir.path()).1.err().unwrap();
        assert!(matches!(error, OpenError::Files(..)), "{error}");
    }

    #[test]
    fn a_scan_gets_past_a_value_larger_than_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let large = "x".repeat(3 << 20);
        for i in 0..6 {
            put(&store, &format!("k{i}"), if i % 2 == 0 { &large } else { "small" }, i + 1);
        }
        // The same keys in a keyspace that comes after, as large.
        for i in 0..6 {
            let copy = store.read(&key(&format!("k{i}"))).unwrap().unwrap();
            let other = Key::new(KeyspaceId(u64::MAX), Bytes::from(format!("k{i}"))).unwrap();
            store.merge(other, copy).blocking_recv().unwrap().unwrap();
        }
        store.checkpoint().blocking_recv().unwrap().unwrap();
        for id in [KeyspaceId::of("default"), KeyspaceId(u64::MAX)] {
            let (mut from, mut seen) = ((Token(0), Bytes::new()), 0);
            while let Page { entries, through: Some(place) } =
                store.scan(id, &from, Token(u128::MAX), b"", 100).unwrap()
            {
                assert!(place > from, "a page that does not get on");
                seen += entries.len();
                from = place;
            }
            let rest = store.scan(id, &from, Token(u128::MAX), b"", 100).unwrap();
            assert_eq!(seen + rest.entries.len(), 6);
        }
    }

    #[test]
    fn starting_again_and_again_does_not_pile_up_log() {
        let dir = tempfile::tempdir().unwrap();
        for start in 0..6 {
            let (_directory, store) = open(dir.path());
            if start % 2 == 0 {
                put(&store, "k", "v", start + 1);
            } // else idle
            drop(store); // not closed
        }
        let names = std::fs::read_dir(dir.path().join(STORE_DIR)).unwrap();
        let files = names.filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            name.starts_with("log-")
        });
        assert!(files.count() <= 2);
    }

    #[test]
    fn one_key_written_again_and_again_does_not_grow_the_log_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let value = "x".repeat(20_000);
        let copy = || {
            put(&store, "k", &value, 1);
            store.read(&key("k")).unwrap().unwrap()
        };
        let first = copy();
        let segments = || {
            let names = std::fs::read_dir(dir.path().join(STORE_DIR)).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let numbers = names.filter_map(|name| name.strip_prefix("log-")?.parse::<u64>().ok());
            numbers.max().unwrap()
        };
        let before = segments();
        for request in 2..400 {
            let context = Some(store.read(&key("k")).unwrap().unwrap().clock().clone());
            let value = Some(Value::Plain(value.clone().into()));
            let record = Record { value, request: RequestId(request), checksum: 0 };
            let intent = Intent { context, record };
            let (_, synced) = store.coordinate(key("k"), intent, None, 1000, Actor(9));
            synced.blocking_recv().unwrap().unwrap();
        }
        assert!(segments() > before, "8 MB of log over a buffer of 1 MB, and no checkpoint");
        assert_ne!(store.read(&key("k")).unwrap().unwrap(), first);
    }

    #[test]
    fn writes_survive_checkpoints_and_the_log_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        let value = "x".repeat(50_000);
        for i in 0..100 {
            put(&store, &format!("k{}", i % 60), &value, i + 1);
        }
        store.checkpoint().blocking_recv().unwrap().unwrap();
        put(&store, "last", "in the log alone", 1000);
        let names = std::fs::read_dir(dir.path().join(STORE_DIR)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let logs = names.filter(|name| name.starts_with("log-")).count();
        assert_eq!(logs, 1, "all but the segment in use were given up");
        assert_eq!(store.facts().keys, 61);
        let_go(directory, store); // as after a kill -9
        let (_directory, store) = open(dir.path());
        assert_eq!(store.facts().keys, 61);
        for name in (0..60).map(|i| format!("k{i}")).chain(["last".into()]) {
            assert!(store.read(&key(&name)).unwrap().is_some(), "{name}");
        }
    }

    #[test]
    fn hints_are_joined_counted_paged_and_dropped_only_as_they_were_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        for i in 0..30 {
            put(&store, &format!("k{i}"), "v", i + 1);
        }
        let (one, two) = (Uid(1), Uid(2));
        let copy =
            |i: u32| (key(&format!("k{i}")), store.read(&key(&format!("k{i}"))).unwrap().unwrap());
        let keep = |target, i| {
            let (key, object) = copy(i);
            store.keep_hint(target, key, object, 7).blocking_recv().unwrap()
        };
        (0..20).for_each(|i| keep(one, i).unwrap());
        (20..30).for_each(|i| keep(two, i).unwrap());
        keep(one, 0).unwrap(); // the same again
        let totals = store.hint_totals();
        assert_eq!((totals[&one].keys, totals[&two].keys, totals[&one].since_ms), (20, 10, 7));

        let all = |store: &Store, target| {
            let (mut seen, mut after): (Vec<Key>, Option<Key>) = (Vec::new(), None);
            loop {
                let page = store.hints(target, after.as_ref(), 3).unwrap();
                let Some((last, _)) = page.last() else { return seen };
                after = Some(last.clone());
                seen.extend(page.into_iter().map(|(key, _)| key));
            }
        };
        assert_eq!((all(&store, one).len(), all(&store, two).len()), (20, 10));
        store.checkpoint().blocking_recv().unwrap().unwrap();

        // It grew since it was read for delivery: it stays.
        let (k0, delivered) = copy(0);
        let stored = record::stored_key(&k0);
        put(&store, "k0", "newer", 99);
        keep(one, 0).unwrap();
        let drop_as = |key: &Key, object: &Object| {
            let digest = Digest::of(&record::stored_key(key), object);
            store.drop_hint(one, key.clone(), Some(digest)).blocking_recv().unwrap().unwrap();
        };
        drop_as(&k0, &delivered);
        assert_eq!(store.hint(one, &k0).unwrap().unwrap().live().len(), 2);
        for i in 1..20 {
            let (key, object) = copy(i);
            drop_as(&key, &object);
        }
        assert_eq!(all(&store, one), std::slice::from_ref(&k0));
        let_go(directory, store); // as after a kill -9
        let (_directory, store) = open(dir.path());
        assert_eq!(store.hint_totals()[&one].keys, 1);
        let kept = store.hint(one, &k0).unwrap().unwrap();
        let digest = Digest::of(&stored, &kept);
        store.drop_hint(one, k0, Some(digest)).blocking_recv().unwrap().unwrap();
        assert!(!store.hint_totals().contains_key(&one));
        assert_eq!(all(&store, two).len(), 10);
    }

    #[test]
    fn what_is_kept_is_counted_by_arc_and_after_a_restart_counted_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        let keep = |store: &Store, target, i: u32, now_ms| {
            put(store, &format!("k{i}"), "v", i as u128 + 1);
            let key = key(&format!("k{i}"));
            let copy = store.read(&key).unwrap().unwrap();
            store.keep_hint(target, key, copy, now_ms).blocking_recv().unwrap().unwrap();
        };
        (0..700).for_each(|i| keep(&store, Uid(1), i, 7));
        (700..720).for_each(|i| keep(&store, Uid(2), i, 8));
        store.drop_hint(Uid(1), key("k0"), None).blocking_recv().unwrap().unwrap();
        let sums = |store: &Store| {
            let (totals, arcs) = store.hint_arcs();
            for (target, arcs) in &arcs {
                let keys: u64 = arcs.values().map(|kept| kept.keys).sum();
                let bytes: u64 = arcs.values().map(|kept| kept.bytes).sum();
                assert_eq!((keys, bytes), (totals[target].keys, totals[target].bytes));
            }
            arcs
        };
        let before = sums(&store);
        assert_eq!(before.len(), 2);
        assert!(before[&Uid(1)].len() > 300, "keys lie all over the ring");

        let_go(directory, store); // as after a kill -9
        let (_directory, store) = open(dir.path());
        assert!(sums(&store).is_empty(), "not counted yet, which is not nothing");
        let count = || store.count_hints().blocking_recv().unwrap().unwrap();
        assert!(count(), "one page of several");
        // While that goes on hints come and go, before and after where it is.
        (800..840).for_each(|i| keep(&store, Uid(1), i, 9));
        (1..40).for_each(|i| {
            let dropped = store.drop_hint(Uid(1), key(&format!("k{i}")), None);
            dropped.blocking_recv().unwrap().unwrap();
        });
        while count() {}
        let after = sums(&store);
        assert_eq!(after[&Uid(2)], before[&Uid(2)]);
        assert_eq!(store.hint_totals()[&Uid(1)].keys, 700);
    }

    #[test]
    fn past_its_bound_a_hint_is_refused_and_that_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        put(&store, "k", &"x".repeat(600 << 10), 1);
        let copy = store.read(&key("k")).unwrap().unwrap();
        let keep = |store: &Store, name| {
            store.keep_hint(Uid(1), key(name), copy.clone(), 7).blocking_recv().unwrap()
        };
        keep(&store, "a").unwrap();
        assert_eq!(keep(&store, "b"), Err(StoreError::HintsFull));
        store.close();
        let_go(directory, store);
        let (_directory, store) = open(dir.path());
        let totals = store.hint_totals()[&Uid(1)];
        assert_eq!((totals.keys, totals.overflowed), (1, true));
        store.drop_hint(Uid(1), key("a"), None).blocking_recv().unwrap().unwrap();
        assert!(store.hint_totals()[&Uid(1)].overflowed, "what was refused is still missing");
        store.forget_overflow(Uid(1)).blocking_recv().unwrap().unwrap();
        assert!(store.hint_totals().is_empty());
    }

    #[test]
    fn a_tombstone_is_listed_and_reaped_only_as_it_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let delete = |name: &str, request| {
            let record = Record { value: None, request: RequestId(request), checksum: 0 };
            let intent = Intent { context: None, record };
            let (_, synced) = store.coordinate(key(name), intent, None, 1000, Actor(5));
            synced.blocking_recv().unwrap().unwrap();
        };
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            put(&store, name, "v", i as u128 + 1);
        }
        delete("a", 11);
        delete("b", 12);
        let checkpoint = || store.checkpoint().blocking_recv().unwrap().unwrap();
        let listed = || {
            checkpoint();
            let mut keys = store.tombstones(None, 9).unwrap();
            keys.sort_by_key(|key| key.bytes().clone());
            keys
        };
        assert_eq!(listed(), [key("a"), key("b")]);
        let digest = |name| {
            let copy = store.read(&key(name)).unwrap().unwrap();
            Digest::of(&record::stored_key(&key(name)), &copy)
        };
        let reap = |name, digest| store.reap(key(name), digest).blocking_recv().unwrap().unwrap();
        let (a, b, c) = (digest("a"), digest("b"), digest("c"));
        put(&store, "b", "again", 20);
        reap("a", a);
        reap("b", b);
        reap("c", c);
        assert!(store.read(&key("a")).unwrap().is_none());
        assert_eq!(store.facts().keys, 2);
        assert_eq!(listed(), []);
        assert!(store.read(&key("a")).unwrap().is_none(), "gone from the database too");
        assert_eq!(store.read(&key("b")).unwrap().unwrap().live().len(), 1);
        assert_eq!(store.read(&key("c")).unwrap().unwrap().live().len(), 1);
        let whole = Span { first: 0, leaves: LEAVES };
        let rest: Vec<_> =
            ["b", "c"].map(|name| (Span::leaf_of(key(name).token()).first, digest(name))).into();
        let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
        rest.iter().for_each(|(place, digest)| leaves.entry(*place).or_default().add(*digest));
        let expected = merkle::sums(&[whole], leaves);
        assert_eq!(store.sums(KeyspaceId::of("default"), &[whole]).unwrap(), expected);
    }

    #[test]
    fn the_tree_of_a_store_is_that_of_its_records_and_is_set_right_when_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, store) = open(dir.path());
        for round in 0..3 {
            for i in 0..40 {
                put(&store, &format!("k{i}"), "v", round * 100 + i + 1);
            }
            store.checkpoint().blocking_recv().unwrap().unwrap();
        }
        let keyspace = KeyspaceId::of("default");
        let whole = [Span { first: 0, leaves: LEAVES }];
        let reckoned = |store: &Store| {
            let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
            for i in 0..40 {
                let key = key(&format!("k{i}"));
                let place = Span::leaf_of(key.token()).first;
                let listed = store.digests(keyspace, place, None).unwrap();
                let (_, digest) = listed.records.iter().find(|(k, _)| k == key.bytes()).unwrap();
                leaves.entry(place).or_default().add(*digest);
            }
            merkle::sums(&whole, leaves)
        };
        assert_eq!(store.sums(keyspace, &whole).unwrap(), reckoned(&store));
        // Replaying the log over what is there changes nothing.
        put(&store, "k0", "more", 1000);
        let_go(directory, store);
        let (_directory, store) = open(dir.path());
        assert_eq!(store.sums(keyspace, &whole).unwrap(), reckoned(&store));
        let places: Vec<u32> =
            (0..40).map(|i| Span::leaf_of(key(&format!("k{i}")).token()).first).collect();
        assert_eq!(store.set_leaves_right(keyspace, &places).unwrap(), 0);
    }

    #[test]
    fn a_leaf_is_listed_to_its_end_and_after_a_key_beyond_it_there_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let names: Vec<String> = (0..200).map(|i| format!("k{i}")).collect();
        for name in &names {
            put(&store, name, "v", 1);
        }
        let keyspace = KeyspaceId::of("default");
        for name in &names {
            let key = key(name);
            let place = Span::leaf_of(key.token()).first;
            let listed = store.digests(keyspace, place, None).unwrap();
            assert!(listed.records.iter().any(|(listed, _)| listed == key.bytes()), "{name}");
            if let Some(before) = place.checked_sub(1) {
                assert_eq!(
                    store.digests(keyspace, before, Some(&key)).unwrap(),
                    Default::default()
                );
            }
        }
        assert_eq!(store.digests(keyspace, LEAVES - 1, None).unwrap(), Default::default());
    }
}
