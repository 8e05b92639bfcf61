//! The database: one redb file for each range of tokens. Nothing outside this file and `disk`
//! knows redb.
//!
//! It is written only by checkpoints, whole layers at a time and in key order, with redb's own
//! durable commit and quick repair: a database that was killed opens at once. Several files, since
//! redb has one writer a file, and so that a file can be compacted by writing it anew (`copy`) with
//! little room.

mod copy;
mod tables;

pub use copy::Copy;
use tables::table;

use super::disk::{Backend, Disk};
use super::recent::Layer;
use super::wal::Space;
use crate::dynamo::merkle::{Leaf, Span};
use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::ops::{Bound, Deref};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Files. A power of two: a key's top bits choose its file.
pub const SHARDS: usize = 4;

/// Bytes of the uid before the stored key of a hint.
pub const UID_BYTES: usize = 16;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const META_UID: &str = "uid";
const META_SHARD: &str = "shard";
const META_STOP_MARK: &str = "stop_mark";
const META_LIFE: &str = "life";
const META_APPLIED: &str = "log_applied";

/// An error of the database, in words.
pub type DatabaseError = redb::Error;

/// The error of the operating system that an error of the database is, if it is one: a full disk
/// says nothing about the file.
pub fn refusal(error: &DatabaseError) -> Option<&io::Error> {
    match error {
        DatabaseError::Io(error) if error.raw_os_error().is_some() => Some(error),
        _ => None,
    }
}

/// All files, open.
pub struct Shards {
    /// Each replaced whole by a compaction. The lock is held to take a handle, never while reading.
    databases: Vec<RwLock<Arc<Shard>>>,
    /// Memory a file may use for pages, bytes.
    cache_bytes: usize,
    first_error: Arc<OnceLock<String>>,
}

/// What the files say of themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signs {
    /// The node each names; `None` for one that is new.
    pub uids: Vec<Option<[u8; 16]>>,
    /// What the last clean stop left, if all files hold the same.
    pub stop_mark: Option<u128>,
    /// Up to which segment of the log each has everything.
    pub applied: Vec<u64>,
    /// Which start last wrote its number into each.
    pub lives: Vec<Option<u128>>,
}

/// Why a file cannot be opened.
#[derive(Debug)]
pub enum ShardError {
    /// It is gone, or empty, though the node is not new.
    Missing(String),
    /// redb cannot use it.
    Unusable(String, String),
    /// The operating system refuses a call on it.
    Refused(String),
    /// It is another range's file.
    Misplaced(String),
}

impl Shards {
    /// Opens every file; makes them if the node `is_new`. After a clean stop the system's cache `is
    /// trusted` to be as the disk.
    pub fn open(
        disk: &dyn Disk,
        (is_new, is_trusted): (bool, bool),
        cache_bytes: usize,
    ) -> Result<Self, ShardError> {
        let first_error = Arc::new(OnceLock::new());
        let cache_bytes = cache_bytes / SHARDS;
        let refused = |error: io::Error| ShardError::Refused(error.to_string());
        copy::remove_leftovers(disk).map_err(refused)?;
        let open = |index| {
            let name = shard_name(index);
            let shard =
                open_shard(disk, (index, &name), (is_new, is_trusted), cache_bytes, &first_error)?;
            Ok(RwLock::new(Arc::new(shard)))
        };
        let databases = (0..SHARDS).map(open).collect::<Result<_, _>>()?;
        if is_new {
            disk.sync_names().map_err(refused)?;
        }
        Ok(Self { databases, cache_bytes, first_error })
    }

    /// A file as it is now, whatever replaces it meanwhile.
    fn shard(&self, index: usize) -> Arc<Shard> {
        Arc::clone(&self.databases[index].read().unwrap_or_else(PoisonError::into_inner))
    }

    fn all(&self) -> impl Iterator<Item = Arc<Shard>> {
        (0..SHARDS).map(|index| self.shard(index))
    }

    /// The first error of a disk, in its own words.
    pub fn first_error(&self) -> Option<&str> {
        self.first_error.get().map(String::as_str)
    }

    /// What the files say of themselves.
    pub fn signs(&self) -> Result<Signs, DatabaseError> {
        guarded(|| {
            let (mut uids, mut marks, mut applied) = (Vec::new(), Vec::new(), Vec::new());
            let mut lives = Vec::new();
            for database in self.all() {
                let meta = database.begin_read()?.open_table(META)?;
                uids.push(array(&meta, META_UID)?);
                marks.push(array(&meta, META_STOP_MARK)?.map(u128::from_be_bytes));
                applied.push(array(&meta, META_APPLIED)?.map_or(0, u64::from_be_bytes));
                lives.push(array(&meta, META_LIFE)?.map(u128::from_be_bytes));
            }
            let stop_mark = marks[0].filter(|mark| marks.iter().all(|other| *other == Some(*mark)));
            Ok(Signs { uids, stop_mark, applied, lives })
        })
    }

    /// Writes into every file whose it is and which life begins, and takes away the last stop's
    /// mark.
    pub fn begin_life(&self, uid: [u8; 16], life: u128) -> Result<(), DatabaseError> {
        self.sign(|meta| {
            meta.insert(META_UID, &uid[..])?;
            meta.insert(META_LIFE, &life.to_be_bytes()[..])?;
            meta.remove(META_STOP_MARK)?;
            Ok(())
        })
    }

    /// Leaves the mark of a clean stop in every file.
    pub fn end_life(&self, stop_mark: u128) -> Result<(), DatabaseError> {
        self.sign(|meta| {
            meta.insert(META_STOP_MARK, &stop_mark.to_be_bytes()[..])?;
            Ok(())
        })
    }

    fn sign(
        &self,
        write: impl Fn(&mut Table<'_, &str, &[u8]>) -> Result<(), DatabaseError>,
    ) -> Result<(), DatabaseError> {
        guarded(|| {
            for database in self.all() {
                let mut transaction = database.begin_write()?;
                transaction.set_quick_repair(true);
                write(&mut transaction.open_table(META)?)?;
                transaction.commit()?;
            }
            Ok(())
        })
    }

    /// The record under a key of a space.
    pub fn record(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, DatabaseError> {
        guarded(|| {
            let table = self.shard(shard_of(space, key)).begin_read()?.open_table(table(space))?;
            Ok(table.get(key)?.map(|guard| Bytes::copy_from_slice(guard.value())))
        })
    }

    /// A fact of the node.
    pub fn fact(&self, name: &str) -> Result<Option<Bytes>, DatabaseError> {
        guarded(|| {
            let meta = self.shard(0).begin_read()?.open_table(META)?;
            Ok(meta
                .get(fact_key(name).as_str())?
                .map(|guard| Bytes::copy_from_slice(guard.value())))
        })
    }

    /// The node's facts whose names begin with `prefix`.
    pub fn facts_from(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, DatabaseError> {
        guarded(|| {
            let meta = self.shard(0).begin_read()?.open_table(META)?;
            let mut facts = Vec::new();
            for entry in meta.range(fact_key(prefix).as_str()..)? {
                let (name, value) = entry?;
                match name.value().strip_prefix(&fact_key("")) {
                    Some(name) if name.starts_with(prefix) => {
                        facts.push((name.to_owned(), Bytes::copy_from_slice(value.value())));
                    }
                    _ => break,
                }
            }
            Ok(facts)
        })
    }

    /// Records of a space in `range`, ascending, up to `limit` of them or about `bytes_max`, and
    /// whether there are more. A range of hints must be of one node's, or they do not ascend.
    pub fn page(
        &self,
        space: Space,
        range: (&[u8], Bound<&[u8]>),
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, bool), DatabaseError> {
        guarded(|| {
            let (start, end) = range;
            let (mut page, mut bytes) = (Vec::new(), 0);
            for database in self.all().skip(shard_of(space, start)) {
                let table = database.begin_read()?.open_table(table(space))?;
                for entry in table.range::<&[u8]>((Bound::Included(start), end))? {
                    if page.len() >= limit || bytes >= bytes_max {
                        return Ok((page, true));
                    }
                    let (key, value) = entry?;
                    let value = Bytes::copy_from_slice(value.value());
                    bytes += value.len();
                    page.push((Bytes::copy_from_slice(key.value()), value));
                }
            }
            Ok((page, false))
        })
    }

    /// The leaves of a keyspace's tree in `span` that are not empty, ascending, as the last
    /// checkpoint left them.
    pub fn leaves(&self, keyspace: u64, span: Span) -> Result<Vec<(u32, Leaf)>, DatabaseError> {
        guarded(|| {
            let start = tables::TreeKey::new(span.first, 0);
            let last = tables::TreeKey::new(span.end() - 1, u64::MAX);
            let mut leaves = Vec::new();
            for database in self.all().skip(shard_of(Space::Records, &start.0)) {
                let tree = database.begin_read()?.open_table(tables::TREE)?;
                for entry in tree.range(&start.0[..]..=&last.0[..])? {
                    let (key, value) = entry?;
                    let place = tables::TreeKey::parse(key.value());
                    let place = place.filter(|(_, of)| *of == keyspace).map(|(place, _)| place);
                    leaves.extend(place.zip(tables::parse_leaf(value.value())));
                }
            }
            Ok(leaves)
        })
    }

    /// Reckons leaves of a keyspace anew from their records; returns how many were wrong.
    pub fn set_right(&self, keyspace: u64, places: &[u32]) -> Result<u64, DatabaseError> {
        let keys = places.iter().map(|place| tables::TreeKey::new(*place, keyspace));
        let keys: BTreeSet<tables::TreeKey> = keys.collect();
        guarded(|| {
            let mut wrong = 0;
            for (index, database) in self.all().enumerate() {
                let here = |key: &&tables::TreeKey| shard_of(Space::Records, &key.0) == index;
                let keys: BTreeSet<_> = keys.iter().filter(here).copied().collect();
                if keys.is_empty() {
                    continue;
                }
                let mut transaction = database.begin_write()?;
                transaction.set_quick_repair(true);
                wrong += tables::set_right(&transaction, &keys)?;
                transaction.commit()?;
            }
            Ok(wrong)
        })
    }

    /// Stored keys of tombstones from `start` on, ascending, up to `limit`, as the last checkpoint
    /// left them.
    pub fn tombstones(&self, start: &[u8], limit: usize) -> Result<Vec<Bytes>, DatabaseError> {
        guarded(|| {
            let mut found = Vec::new();
            for database in self.all().skip(shard_of(Space::Records, start)) {
                let table = database.begin_read()?.open_table(tables::TOMBSTONES)?;
                for entry in table.range(start..)?.take(limit - found.len()) {
                    found.push(Bytes::copy_from_slice(entry?.0.value()));
                }
            }
            Ok(found)
        })
    }

    /// Tombstones in all.
    pub fn tombstone_count(&self) -> Result<u64, DatabaseError> {
        guarded(|| {
            let mut sum = 0;
            for database in self.all() {
                sum += database.begin_read()?.open_table(tables::TOMBSTONES)?.len()?;
            }
            Ok(sum)
        })
    }

    /// Records stored.
    pub fn records(&self) -> Result<u64, DatabaseError> {
        guarded(|| {
            let mut sum = 0;
            for database in self.all() {
                sum += database.begin_read()?.open_table(tables::RECORDS)?.len()?;
            }
            Ok(sum)
        })
    }

    /// Brings a layer, which holds everything of the log through segment `through`, to disk.
    ///
    /// A crash in between leaves some files ahead of others. That is well: the log is given up only
    /// when all are done, and replaying it writes the same states again.
    pub fn checkpoint(&self, layer: &Layer, through: u64) -> Result<(), DatabaseError> {
        guarded(|| {
            for (index, database) in self.all().enumerate() {
                let mut transaction = database.begin_write()?;
                transaction.set_quick_repair(true);
                tables::write_records(&transaction, part(layer, Space::Records, index))?;
                tables::write_hints(&transaction, part(layer, Space::Hints, index))?;
                {
                    let mut meta = transaction.open_table(META)?;
                    if index == 0 {
                        put_facts(&mut meta, layer)?;
                    }
                    meta.insert(META_APPLIED, &through.to_be_bytes()[..])?;
                }
                transaction.commit()?;
            }
            Ok(())
        })
    }
}

/// What a layer has of a space for one file.
fn part(layer: &Layer, space: Space, index: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
    let records = layer.of(space).iter().filter(move |(key, _)| shard_of(space, key) == index);
    records.map(|(key, value)| (&key[..], &value[..]))
}

/// One file. Closing it is guarded too: redb writes then, and a handle that has panicked once may
/// panic again.
struct Shard(Option<Database>);

impl Deref for Shard {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("it is taken out only to be closed")
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        let database = self.0.take();
        let closed = guarded(|| {
            drop(database);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::error!(%error, "closing a file of the database failed");
        }
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside redb, where a panic is taken for an error of the disk: a damaged
/// page can make redb panic.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

fn guarded<T>(work: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, DatabaseError> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    let panicked = || DatabaseError::Corrupted("redb panicked on a damaged page".into());
    outcome.unwrap_or_else(|_| Err(panicked()))
}

fn put_facts(meta: &mut Table<'_, &str, &[u8]>, layer: &Layer) -> Result<(), redb::StorageError> {
    for (name, value) in &layer.facts {
        match value.is_empty() {
            true => meta.remove(fact_key(name).as_str())?,
            false => meta.insert(fact_key(name).as_str(), &value[..])?,
        };
    }
    Ok(())
}

/// Facts are kept apart from what the files say of themselves.
fn fact_key(name: &str) -> String {
    format!("fact:{name}")
}

/// A key's file, by its token. A hint's key has the uid it is for before that.
fn shard_of(space: Space, key: &[u8]) -> usize {
    const SHIFT: u32 = 8 - SHARDS.ilog2();
    let token_at = match space {
        Space::Records => 0,
        Space::Hints => UID_BYTES,
    };
    key.get(token_at).map_or(0, |first| usize::from(first >> SHIFT))
}

/// Name of the file of a part of the ring.
pub fn shard_name(index: usize) -> String {
    format!("shard-{index}.redb")
}

/// Whether a file is one of the database's, by its name.
pub fn is_one(name: &str) -> bool {
    (0..SHARDS).any(|index| name == shard_name(index))
}

fn open_shard(
    disk: &dyn Disk,
    (index, name): (usize, &str),
    (is_new, is_trusted): (bool, bool),
    cache_bytes: usize,
    first_error: &Arc<OnceLock<String>>,
) -> Result<Shard, ShardError> {
    let refused = |error: io::Error| ShardError::Refused(error.to_string());
    let unusable = |error: DatabaseError| match refusal(&error) {
        Some(error) => ShardError::Refused(error.to_string()),
        None => ShardError::Unusable(name.to_owned(), error.to_string()),
    };
    let file = disk.open(name).map_err(refused)?;
    if is_new {
        // A first start that was cut short may have left half a file.
        file.set_len(0).map_err(refused)?;
    } else if file.len().map_err(refused)? == 0 {
        return Err(ShardError::Missing(name.to_owned()));
    }
    // What a killed process wrote and did not sync is in the page cache, where redb would take it
    // for durable, and build on it over pages that the last durable state still needs: a power cut
    // before the next sync then leaves neither.
    file.sync().map_err(refused)?;
    if !is_trusted {
        // And what a sync that failed left there is taken for durable though it was synced since.
        file.forget_cached().map_err(refused)?;
    }
    let open = || -> Result<Shard, DatabaseError> {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(cache_bytes);
        let backend = Backend { file, first_error: Arc::clone(first_error) };
        let database = Shard(Some(builder.create_with_backend(backend)?));
        let is_old = !is_new && tables::is_old(&database.begin_read()?)?;
        let transaction = database.begin_write()?;
        match is_old {
            true => tables::upgrade(&transaction)?,
            false => tables::create(&transaction)?,
        }
        {
            let mut meta = transaction.open_table(META)?;
            if is_new {
                meta.insert(META_SHARD, &[index as u8][..])?;
            }
        }
        transaction.commit()?;
        Ok(database)
    };
    let database = guarded(open).map_err(unusable)?;
    let of = || -> Result<Option<[u8; 1]>, DatabaseError> {
        Ok(array(&database.begin_read()?.open_table(META)?, META_SHARD)?)
    };
    match guarded(of).map_err(unusable)? {
        Some([of]) if usize::from(of) == index => Ok(database),
        _ => Err(ShardError::Misplaced(name.to_owned())),
    }
}

fn array<const N: usize>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<[u8; N]>, redb::StorageError> {
    Ok(meta.get(name)?.and_then(|guard| guard.value().try_into().ok()))
}
