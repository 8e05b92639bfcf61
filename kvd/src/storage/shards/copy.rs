//! Compaction: a file of the database written anew, without the pages that are free in it, beside
//! the old one, which goes on serving until the new one takes its name.
//!
//! It is made in steps, each from the old file as it is by then, in key order. What a checkpoint
//! brings into the old file meanwhile is either still ahead of the copy, which meets it there, or
//! behind it and brought into both. So checkpoints and writes never wait for a whole file to be
//! copied. A crash leaves the old file, or by its name the new one, which held the same; a copy that
//! was not finished is removed when the node opens.

use super::tables::{self, HINTS, RECORDS, table};
use super::{
    DatabaseError, META, META_STOP_MARK, SHARDS, Shard, Shards, guarded, open_shard, part,
    shard_name,
};
use crate::storage::disk::{Backend, Disk};
use crate::storage::recent::Layer;
use crate::storage::wal::Space;
use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

const ENDING: &str = ".new";

/// Memory for pages of the file being written, bytes: it is written in order.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// How often it is looked whether somebody still reads a file that was replaced.
const RETIRE_LOOK: Duration = Duration::from_millis(1);

/// A file being written anew.
pub struct Copy {
    index: usize,
    database: Shard,
    /// What is being copied: first records, and with them what is reckoned from them, then hints.
    space: Space,
    /// The last key of it that was copied.
    through: Option<Bytes>,
    complete: bool,
}

impl Copy {
    /// Begins the new file of a part of the ring.
    pub fn begin(disk: &dyn Disk, index: usize) -> Result<Self, DatabaseError> {
        let begun = guarded(|| {
            let file = disk.open(&copy_name(index))?;
            file.set_len(0)?;
            // Errors of its own: giving it up is no error of the database.
            let backend = Backend { file, first_error: Arc::new(OnceLock::new()) };
            let mut builder = redb::Builder::new();
            builder.set_cache_size(CACHE_BYTES);
            let database = Shard(Some(builder.create_with_backend(backend)?));
            let transaction = database.begin_write()?;
            tables::create(&transaction)?;
            transaction.commit()?;
            Ok(Self { index, database, space: Space::Records, through: None, complete: false })
        });
        if begun.is_err() {
            let _ = disk.remove(&copy_name(index)); // else it is removed at the next start
        }
        begun
    }

    /// Copies about `bytes_max` more; returns how many bytes it were.
    pub fn step(&mut self, shards: &Shards, bytes_max: u64) -> Result<u64, DatabaseError> {
        guarded(|| {
            let from = shards.shard(self.index).begin_read()?.open_table(table(self.space))?;
            let start = self.through.as_ref().map_or(Bound::Unbounded, |k| Bound::Excluded(&k[..]));
            let (mut bytes, mut page, mut ended) = (0, Vec::new(), false);
            let mut records = from.range::<&[u8]>((start, Bound::Unbounded))?;
            while bytes < bytes_max && !ended {
                let Some(record) = records.next() else {
                    ended = true;
                    continue;
                };
                let (key, value) = record?;
                bytes += (key.value().len() + value.value().len()) as u64;
                page.push((key, value));
            }
            let transaction = self.database.begin_write()?;
            let records = page.iter().map(|(key, value)| (key.value(), value.value()));
            write(&transaction, self.space, records)?;
            transaction.commit()?;
            if let Some((key, _)) = page.last() {
                self.through = Some(Bytes::copy_from_slice(key.value()));
            }
            match self.space {
                Space::Records if ended => (self.space, self.through) = (Space::Hints, None),
                Space::Hints if ended => self.complete = true,
                _ => {}
            }
            Ok(bytes)
        })
    }

    /// Takes in what a checkpoint has just brought into the old file, as far as it was copied.
    pub fn take_in(&mut self, layer: &Layer) -> Result<(), DatabaseError> {
        let passed = |key: &[u8]| self.through.as_ref().is_some_and(|through| *key <= through[..]);
        let is_behind = |space: Space, key: &[u8]| match (space, self.space) {
            (Space::Records, Space::Hints) => true,
            (Space::Hints, Space::Records) => false,
            _ => self.complete || passed(key),
        };
        guarded(|| {
            let transaction = self.database.begin_write()?;
            for space in [Space::Records, Space::Hints] {
                let behind =
                    part(layer, space, self.index).filter(|(key, _)| is_behind(space, key));
                write(&transaction, space, behind)?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Whether every record is copied.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Which part of the ring it is of.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How much of its part of the ring is copied.
    pub fn ratio(&self) -> f64 {
        if self.complete || self.space == Space::Hints {
            return 1.0;
        }
        let first = self.through.as_ref().and_then(|key| key.first_chunk::<8>());
        let place = first.map_or(0.0, |first| u64::from_be_bytes(*first) as f64 / u64::MAX as f64);
        (place * SHARDS as f64 - self.index as f64).clamp(0.0, 1.0)
    }

    /// Gives the new file the old one's name and place. No checkpoint may come between the last
    /// [`Copy::step`] and this that [`Copy::take_in`] has not seen.
    pub fn finish(self, shards: &Shards, disk: &dyn Disk) -> Result<(), DatabaseError> {
        let (index, name) = (self.index, copy_name(self.index));
        let old = shards.shard(index);
        self.seal(&old)?;
        let as_corrupt = |error: super::ShardError| DatabaseError::Corrupted(format!("{error:?}"));
        let (cache, errors) = (shards.cache_bytes, &shards.first_error);
        let new =
            open_shard(disk, (index, &name), (false, true), cache, errors).map_err(as_corrupt)?;
        disk.rename(&name, &shard_name(index))?;
        // Before anything is brought into it and the log of that given up.
        disk.sync_names()?;
        *shards.databases[index].write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        retire(old);
        Ok(())
    }

    /// Brings over what the old file says of itself, and closes the new one, proven to be as
    /// large.
    fn seal(mut self, old: &Shard) -> Result<(), DatabaseError> {
        guarded(|| {
            let old = old.begin_read()?;
            let mut transaction = self.database.begin_write()?;
            transaction.set_quick_repair(true);
            let (expected, found) = {
                let (from, mut to) = (old.open_table(META)?, transaction.open_table(META)?);
                for entry in from.iter()? {
                    let (name, value) = entry?;
                    if name.value() != META_STOP_MARK {
                        to.insert(name.value(), value.value())?;
                    }
                }
                let expected = (old.open_table(RECORDS)?.len()?, old.open_table(HINTS)?.len()?);
                let found = (
                    transaction.open_table(RECORDS)?.len()?,
                    transaction.open_table(HINTS)?.len()?,
                );
                (expected, found)
            };
            if expected != found {
                let what = format!(
                    "a copy has {found:?} records and hints, and {expected:?} were to be copied"
                );
                return Err(DatabaseError::Corrupted(what));
            }
            transaction.commit()?;
            // Not by dropping it: an error would go unseen.
            Ok(self.database.0.take().expect("it is open").close()?)
        })
    }

    /// Gives the new file up.
    pub fn abandon(self, disk: &dyn Disk) -> io::Result<()> {
        let name = copy_name(self.index);
        drop(self);
        disk.remove(&name)
    }
}

fn write<'a>(
    transaction: &WriteTransaction,
    space: Space,
    records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), DatabaseError> {
    match space {
        Space::Records => tables::write_records(transaction, records),
        Space::Hints => tables::write_hints(transaction, records),
    }
}

/// Waits until nobody reads a file that was replaced, and closes it here: that takes a moment, and
/// is not for a thread that serves a request.
fn retire(mut old: Arc<Shard>) {
    while let Err(read) = Arc::try_unwrap(old) {
        old = read;
        std::thread::sleep(RETIRE_LOOK);
    }
}

/// Removes copies that were not finished.
pub(super) fn remove_leftovers(disk: &dyn Disk) -> io::Result<()> {
    let names = disk.list()?;
    let leftovers = (0..SHARDS).map(copy_name).filter(|name| names.contains(name));
    leftovers.into_iter().try_for_each(|name| disk.remove(&name))
}

fn copy_name(index: usize) -> String {
    shard_name(index) + ENDING
}
