//! redb, and the one writer that commits groups of writes. Nothing outside this file knows redb.
//!
//! All waiting writes are taken together: read, merged, written and committed in one transaction
//! with one fsync, and each caller is answered when it is done. There is no timer: an idle store
//! commits a lone write at once.

use super::identity::{DATABASE_FILE, Directory, DirectoryError};
use super::{StoreError, record};
use crate::clock;
use crate::dynamo::clock::{Counter, HybridClock};
use crate::dynamo::key::Key;
use crate::dynamo::node::{Incarnation, KeyspaceId, Uid};
use crate::dynamo::object::{Intent, Minter, Object};
use crate::dynamo::scan::{Page, Place};
use crate::dynamo::version::{Actor, Dot};
use bytes::Bytes;
use proto::token::Token;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const META_UID: &str = "uid";
const META_STARTS: &str = "starts";
const META_STOP_MARK: &str = "stop_mark";
const META_CEILING: &str = "clock_ceiling";

/// Writes committed together, at most. More wait for the next group.
const GROUP_WRITES_MAX: usize = 512;

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
    /// Memory redb may use for pages, bytes.
    pub cache_bytes: usize,
}

/// A node's records and its few facts, on its own disk. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    path: PathBuf,
    incarnation: Incarnation,
    jobs: Mutex<Option<mpsc::Sender<Queued>>>,
    room: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Why the store stopped; `None` while it works.
    stopped: watch::Sender<Option<String>>,
    bad_records: AtomicU64,
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

/// Sizes, for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Records stored, tombstones included.
    pub keys: u64,
    /// Length of the database file, bytes.
    pub data_bytes: u64,
    /// Records found bad since the start.
    pub bad_records: u64,
}

/// A file system's room. Zero total: unknown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// In all.
    pub total_bytes: u64,
    /// Of that, what kvd may still use.
    pub free_bytes: u64,
}

type Synced = oneshot::Sender<Result<(), StoreError>>;

/// Comes when the store has got so far.
pub type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

/// A job and the room it takes in the queue.
type Queued = (Job, OwnedSemaphorePermit);

enum Job {
    Coordinate {
        key: Key,
        intent: Intent,
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
    Meta {
        name: &'static str,
        value: Vec<u8>,
        synced: Synced,
    },
}

impl Store {
    /// Opens, or on the very first start makes, the database in `directory`, and checks that both
    /// are of the same node.
    pub fn open(directory: &mut Directory, options: &StoreOptions) -> Result<Self, OpenError> {
        let path = directory.path().join(DATABASE_FILE);
        let mut builder = redb::Builder::new();
        builder.set_cache_size(options.cache_bytes);
        // `open` on every later start: `create` would take an emptied file for a new database.
        let database = match directory.is_new() {
            true => builder.create(&path),
            false => builder.open(&path),
        };
        let database =
            database.map_err(|error| OpenError::Database(path.clone(), error.to_string()))?;
        let ceiling = settle_identity(directory, &database)
            .map_err(|error| error.unwrap_or_database(&path))?;
        Ok(Self::start(database, path, directory.incarnation(), ceiling))
    }

    fn start(
        database: Database,
        path: PathBuf,
        incarnation: Incarnation,
        ceiling: Counter,
    ) -> Self {
        let (jobs, waiting) = mpsc::channel(QUEUE_WRITES_MAX);
        let inner = Arc::new(Inner {
            database,
            path,
            incarnation,
            jobs: Mutex::new(Some(jobs)),
            room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
            writer: Mutex::new(None),
            stopped: watch::Sender::new(None),
            bad_records: AtomicU64::new(0),
        });
        let writer = Writer { store: Arc::downgrade(&inner), clock: HybridClock::resume(ceiling) };
        let thread = std::thread::Builder::new().name("kvd-writer".into());
        let thread = thread.spawn(move || writer.run(waiting)).expect("a thread can be started");
        *lock(&inner.writer) = Some(thread);
        Self { inner }
    }

    /// This node's copy of `key`; [`StoreError::BadRecord`] if its checksum fails.
    pub fn read(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        self.working()?;
        let stored_key = record::stored_key(key);
        let found = self.inner.read_record(&stored_key).map_err(|error| self.inner.stop(&error))?;
        match found {
            None => Ok(None),
            Some(bytes) => {
                self.inner.believe(&stored_key, bytes).map(Some).ok_or(StoreError::BadRecord)
            }
        }
    }

    /// The same, still encoded: what a peer that asks is sent.
    pub fn read_encoded(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        self.working()?;
        let stored_key = record::stored_key(key);
        let found = self.inner.read_record(&stored_key).map_err(|error| self.inner.stop(&error))?;
        let Some(bytes) = found else { return Ok(None) };
        match record::open(&stored_key, bytes) {
            Ok((_mine, object)) => Ok(Some(object)),
            Err(why) => {
                self.inner.note_bad_record(&stored_key, &why);
                Err(StoreError::BadRecord)
            }
        }
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
        self.inner.scan(keyspace, from, to, prefix, limit).map_err(|error| self.inner.stop(&error))
    }

    /// Applies a client's write under this node's actor. The first result comes when the object is
    /// made, the second when it is on disk.
    pub fn coordinate(
        &self,
        key: Key,
        intent: Intent,
        now_ms: u64,
        fresh_actor: Actor,
    ) -> (Answer<Prepared>, Answer<()>) {
        let bytes = intent.record.value.as_ref().map_or(0, Bytes::len);
        let (prepared, when_prepared) = oneshot::channel();
        let (synced, when_synced) = oneshot::channel();
        let job = Job::Coordinate { key, intent, now_ms, fresh_actor, prepared, synced };
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

    /// Keeps a fact of the node: its cluster, its layout.
    pub fn put_fact(&self, name: &'static str, value: Vec<u8>) -> Answer<()> {
        let (synced, when_synced) = oneshot::channel();
        self.submit(Job::Meta { name, value, synced }, 0);
        when_synced
    }

    /// A fact kept by [`Store::put_fact`].
    pub fn fact(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        read_meta(&self.inner.database, name).map_err(|error| self.inner.stop(&error))
    }

    /// Sizes as they are now.
    pub fn facts(&self) -> Facts {
        let keys = || -> Result<u64, redb::Error> {
            Ok(self.inner.database.begin_read()?.open_table(RECORDS)?.len()?)
        };
        Facts {
            keys: keys().unwrap_or(0),
            data_bytes: std::fs::metadata(&self.inner.path).map_or(0, |meta| meta.len()),
            bad_records: self.inner.bad_records.load(Ordering::Relaxed),
        }
    }

    /// The file system it is on.
    pub fn disk(&self) -> Disk {
        match rustix::fs::statvfs(&self.inner.path) {
            Ok(fs) => Disk {
                total_bytes: fs.f_blocks * fs.f_frsize,
                free_bytes: fs.f_bavail * fs.f_frsize,
            },
            Err(_) => Disk::default(), // shown as unknown
        }
    }

    /// Changes to the reason once the store has stopped.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.inner.stopped.subscribe()
    }

    /// Ends the writer once it has done what waits, and leaves a mark as the last thing on disk.
    /// Returns the mark, or nothing if the store has stopped and not all is on disk.
    pub fn close(&self) -> Option<u128> {
        lock(&self.inner.jobs).take();
        if let Some(thread) = lock(&self.inner.writer).take() {
            let _ = thread.join(); // a panic there has stopped the store, which is seen below
        }
        self.working().ok()?;
        let mark = clock::random_u128();
        let leave = || -> Result<(), redb::Error> {
            let transaction = self.inner.database.begin_write()?;
            transaction.open_table(META)?.insert(META_STOP_MARK, &mark.to_be_bytes()[..])?;
            Ok(transaction.commit()?)
        };
        leave().map_err(|error| self.inner.stop(&error)).ok()?;
        Some(mark)
    }

    /// Hands a job to the writer. If it cannot take it, dropping the job's channels is not enough:
    /// the caller must learn whether it was refused or is in doubt.
    fn submit(&self, job: Job, bytes: usize) {
        if let Err(error) = self.working() {
            return job.refuse(error);
        }
        let kib = (bytes / 1024 + 1).min(QUEUE_KIB_MAX) as u32;
        let Ok(room) = Arc::clone(&self.inner.room).try_acquire_many_owned(kib) else {
            return job.refuse(StoreError::Overloaded);
        };
        let jobs = lock(&self.inner.jobs).clone();
        let refused = match jobs {
            None => Some((job, StoreError::Stopped("the node is shutting down".into()))),
            Some(jobs) => match jobs.try_send((job, room)) {
                Ok(()) => None,
                Err(mpsc::error::TrySendError::Full((job, _))) => {
                    Some((job, StoreError::Overloaded))
                }
                Err(mpsc::error::TrySendError::Closed((job, _))) => {
                    Some((job, StoreError::Stopped("the writer ended".into())))
                }
            },
        };
        if let Some((job, error)) = refused {
            job.refuse(error);
        }
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
            Self::Merge { synced, .. } | Self::Meta { synced, .. } => {
                let _ = synced.send(Err(error));
            }
        }
    }
}

impl Inner {
    fn read_record(&self, stored_key: &[u8]) -> Result<Option<Bytes>, redb::Error> {
        let table = self.database.begin_read()?.open_table(RECORDS)?;
        Ok(table.get(stored_key)?.map(|guard| Bytes::copy_from_slice(guard.value())))
    }

    fn scan(
        &self,
        keyspace: KeyspaceId,
        from: &Place,
        to: Token,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Page, redb::Error> {
        let table = self.database.begin_read()?.open_table(RECORDS)?;
        // A token's keys are few, and of all keyspaces: start at the token and pass over them.
        let start = from.0.to_bytes();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (looks, entry) in table.range(start.as_slice()..)?.enumerate() {
            let (stored_key, value) = entry?;
            let stored_key = stored_key.value();
            let Some((token, of, key)) = record::parse_key(stored_key) else { continue };
            if token > to {
                break;
            }
            let key = Bytes::copy_from_slice(key);
            // All before it is walked. Of another keyspace's key only its token may be said: ours
            // may have the same key, still to come.
            let through = if of == keyspace { (token, key.clone()) } else { (token, Bytes::new()) };
            if of == keyspace && through > *from && key.starts_with(prefix) {
                let value = Bytes::copy_from_slice(value.value());
                bytes += value.len();
                if let Some(object) = self.believe(stored_key, value) {
                    entries.push((key, object));
                }
            }
            let full = entries.len() >= limit || bytes >= PAGE_BYTES_MAX || looks >= PAGE_LOOKS_MAX;
            if full && through > *from {
                return Ok(Page { entries, through: Some(through) });
            }
        }
        Ok(Page { entries, through: None })
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

    /// Stops the store for good, the first reason kept.
    fn stop(&self, error: &dyn std::fmt::Display) -> StoreError {
        let why = format!("{}: {error}", self.path.display());
        self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            stopped.get_or_insert_with(|| why.clone());
            first
        });
        StoreError::Stopped(why)
    }
}

/// The one thread that writes.
struct Writer {
    store: std::sync::Weak<Inner>,
    clock: HybridClock,
}

type Waiting = mpsc::Receiver<Queued>;

impl Writer {
    fn run(mut self, mut waiting: Waiting) {
        let mut group = Vec::new();
        while waiting.blocking_recv_many(&mut group, GROUP_WRITES_MAX) > 0 {
            let Some(store) = self.store.upgrade() else {
                return;
            };
            let stopped = store.stopped.borrow().clone();
            if let Some(why) = stopped {
                let refuse = |(job, _): (Job, _)| job.refuse(StoreError::Stopped(why.clone()));
                group.drain(..).for_each(refuse);
                continue;
            }
            let mut synced = Vec::with_capacity(group.len());
            let outcome = self.commit(&store, &mut group, &mut synced);
            let outcome = outcome.map_err(|error| store.stop(&error));
            for caller in synced {
                let _ = caller.send(outcome.clone()); // the caller may have left
            }
        }
    }

    /// Applies and commits a group. Who is to be told of the outcome is put in `synced`.
    fn commit(
        &mut self,
        store: &Inner,
        group: &mut Vec<Queued>,
        synced: &mut Vec<Synced>,
    ) -> Result<(), redb::Error> {
        let transaction = store.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            let mut meta = transaction.open_table(META)?;
            for (job, _room) in group.drain(..) {
                match job {
                    Job::Coordinate {
                        key,
                        intent,
                        now_ms,
                        fresh_actor,
                        prepared,
                        synced: caller,
                    } => {
                        let mint = (now_ms, fresh_actor);
                        match self.coordinate(
                            store,
                            &mut records,
                            &mut meta,
                            &key,
                            &intent,
                            mint,
                        )? {
                            Ok(done) => {
                                synced.push(caller);
                                let _ = prepared.send(Ok(done)); // the caller may have left
                            }
                            Err(refused) => {
                                let _ = prepared.send(Err(refused.clone()));
                                let _ = caller.send(Err(refused));
                            }
                        }
                    }
                    Job::Merge { key, object, synced: caller } => {
                        synced.push(caller);
                        merge(store, &mut records, &key, &object)?;
                    }
                    Job::Meta { name, value, synced: caller } => {
                        synced.push(caller);
                        meta.insert(name, value.as_slice())?;
                    }
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn coordinate(
        &mut self,
        store: &Inner,
        records: &mut Table<'_, &[u8], &[u8]>,
        meta: &mut Table<'_, &str, &[u8]>,
        key: &Key,
        intent: &Intent,
        (now_ms, fresh_actor): (u64, Actor),
    ) -> Result<Result<Prepared, StoreError>, redb::Error> {
        let stored_key = record::stored_key(key);
        let local = current(store, records, &stored_key)?;
        let incarnation = store.incarnation;
        let minter = Minter { incarnation, clock: &mut self.clock, now_ms, fresh_actor };
        let done = match Object::coordinate(local, intent, minter) {
            Ok(done) => done,
            Err(refused) => return Ok(Err(refused.into())),
        };
        let bytes = Bytes::from(record::encode(&stored_key, &done.object));
        records.insert(stored_key.as_slice(), &bytes[..])?;
        if let Some(ceiling) = done.ceiling {
            meta.insert(META_CEILING, ceiling.0.to_be_bytes().as_slice())?;
        }
        let object_at = bytes.len() - done.object.encoded_len();
        let siblings = done.object.live().len() as u32;
        Ok(Ok(Prepared { encoded: bytes.slice(object_at..), siblings, dot: done.dot }))
    }
}

fn merge(
    store: &Inner,
    records: &mut Table<'_, &[u8], &[u8]>,
    key: &Key,
    object: &Object,
) -> Result<(), redb::Error> {
    let stored_key = record::stored_key(key);
    let mut copy = current(store, records, &stored_key)?.unwrap_or_default();
    if copy.merge(object) {
        let bytes = record::encode(&stored_key, &copy);
        records.insert(stored_key.as_slice(), bytes.as_slice())?;
    } // else it is on disk already: a repair that raced another
    Ok(())
}

fn current(
    store: &Inner,
    records: &Table<'_, &[u8], &[u8]>,
    stored_key: &[u8],
) -> Result<Option<Object>, redb::Error> {
    let bytes = records.get(stored_key)?.map(|guard| Bytes::copy_from_slice(guard.value()));
    Ok(bytes.and_then(|bytes| store.believe(stored_key, bytes)))
}

// === opening ===

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is not one it can use.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// redb cannot use the file.
    #[error(
        "database {0} cannot be opened: {1}; restore it from a backup, or remove the data directory and let this node join as a new one"
    )]
    Database(PathBuf, String),
}

enum SettleError {
    Directory(DirectoryError),
    Database(redb::Error),
}

impl SettleError {
    fn unwrap_or_database(self, path: &Path) -> OpenError {
        match self {
            Self::Directory(error) => OpenError::Directory(error),
            Self::Database(error) => OpenError::Database(path.to_owned(), error.to_string()),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for SettleError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

/// Checks that the database is of the directory's node, begins a life of it, and returns the
/// clock's ceiling.
fn settle_identity(directory: &mut Directory, database: &Database) -> Result<Counter, SettleError> {
    let transaction = database.begin_write()?;
    let ceiling = {
        transaction.open_table(RECORDS)?;
        let mut meta = transaction.open_table(META)?;
        let inside = get_array::<16>(&meta, META_UID)?.map(Uid::from_bytes);
        if let Some(inside) = inside.filter(|inside| *inside != directory.uid()) {
            let (path, outside) = (directory.path().to_owned(), directory.uid());
            return Err(SettleError::Directory(DirectoryError::Mixed { path, outside, inside }));
        }
        let mark = get_array::<16>(&meta, META_STOP_MARK)?.map(u128::from_be_bytes);
        directory.begin_life(mark).map_err(SettleError::Directory)?;
        meta.remove(META_STOP_MARK)?;
        meta.insert(META_UID, directory.uid().to_bytes().as_slice())?;
        meta.insert(META_STARTS, directory.starts().to_be_bytes().as_slice())?;
        get_array::<8>(&meta, META_CEILING)?
            .map_or(Counter::default(), |c| Counter(u64::from_be_bytes(c)))
    };
    transaction.commit()?;
    Ok(ceiling)
}

fn get_array<const N: usize>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<[u8; N]>, redb::StorageError> {
    Ok(meta.get(name)?.and_then(|guard| guard.value().try_into().ok()))
}

fn read_meta(database: &Database, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get(name)?.map(|guard| guard.value().to_vec()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::node::RequestId;
    use crate::dynamo::object::Record;
    use crate::dynamo::version::Clock;

    const OPTIONS: StoreOptions = StoreOptions { cache_bytes: 8 << 20 };

    fn open(path: &Path) -> (Directory, Store) {
        let mut directory = Directory::open(path).unwrap();
        let store = Store::open(&mut directory, &OPTIONS).unwrap();
        (directory, store)
    }

    fn key(name: &str) -> Key {
        Key::new(KeyspaceId::of("default"), Bytes::copy_from_slice(name.as_bytes())).unwrap()
    }

    fn put(store: &Store, name: &str, value: &str, request: u128) -> Dot {
        let record = Record {
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            request: RequestId(request),
            checksum: 0,
        };
        let intent = Intent { context: Some(Clock::new()), record };
        let (prepared, synced) = store.coordinate(key(name), intent, 1000, Actor(request as u64));
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
        drop((store, directory));
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
    fn another_life_coordinates_under_another_actor() {
        let dir = tempfile::tempdir().unwrap();
        let (mut directory, store) = open(dir.path());
        let first = put(&store, "k", "v", 1).actor;
        directory.stopped_cleanly(store.close().unwrap()).unwrap();
        drop((store, directory));
        let (directory, store) = open(dir.path());
        assert_eq!(put(&store, "k", "v", 2).actor, first, "a clean stop voids nothing");
        store.close();
        drop((store, directory)); // not stopped cleanly
        let (_directory, store) = open(dir.path());
        assert_ne!(put(&store, "k", "v", 3).actor, first);
    }

    #[test]
    fn a_flipped_bit_is_absent_counted_and_replaced_under_a_new_actor() {
        let dir = tempfile::tempdir().unwrap();
        let (_directory, store) = open(dir.path());
        let first = put(&store, "k", "precious", 1);
        let healthy = store.read(&key("k")).unwrap().unwrap();
        let stored_key = record::stored_key(&key("k"));
        let transaction = store.inner.database.begin_write().unwrap();
        {
            let mut records = transaction.open_table(RECORDS).unwrap();
            let mut bytes = records.get(stored_key.as_slice()).unwrap().unwrap().value().to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            records.insert(stored_key.as_slice(), bytes.as_slice()).unwrap();
        }
        transaction.commit().unwrap();

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
        std::fs::copy(two.path().join(DATABASE_FILE), one.path().join(DATABASE_FILE)).unwrap();
        let mut directory = Directory::open(one.path()).unwrap();
        let error = Store::open(&mut directory, &OPTIONS).err().unwrap();
        assert!(matches!(error, OpenError::Directory(DirectoryError::Mixed { .. })), "{error}");
    }

    #[test]
    fn an_older_database_put_back_begins_another_life() {
        let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let clean_start = || {
            let (mut directory, store) = open(dir.path());
            let request = 7 + u128::from(directory.starts());
            let actor = put(&store, "k", "v", request).actor;
            directory.stopped_cleanly(store.close().unwrap()).unwrap();
            actor
        };
        let first = clean_start();
        std::fs::copy(dir.path().join(DATABASE_FILE), backup.path().join("old")).unwrap();
        assert_eq!(clean_start(), first);
        std::fs::copy(backup.path().join("old"), dir.path().join(DATABASE_FILE)).unwrap();
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
        let (_, store) = open(dir.path());
        store.close();
        drop(store);
        std::fs::write(dir.path().join(DATABASE_FILE), vec![7; 4096]).unwrap();
        let mut directory = Directory::open(dir.path()).unwrap();
        assert!(matches!(Store::open(&mut directory, &OPTIONS), Err(OpenError::Database(..))));
    }
}
