//! Compaction, as the checkpoint thread works at it: one file of the database after the other, a
//! step at a time, checkpoints first.

use super::{Answer, Inner, Store};
use crate::clock;
use crate::storage::StoreError;
use crate::storage::disk::Room;
use crate::storage::recent::Layer;
use crate::storage::shards::{Copy, DatabaseError, SHARDS, shard_name};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot::error::TryRecvError;

/// Bytes of records copied a second, at most: requests go first.
const BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// A step copies at most so many bytes, and one part in so many of the write buffer: a checkpoint
/// waits for one.
const STEP_BYTES_MAX: usize = 8 * 1024 * 1024;
const STEP_PARTS: usize = 4;

/// How often it is looked whether what is recent was brought in.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How compaction is going, for people.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Compaction {
    /// One is under way.
    pub running: bool,
    /// The one under way, or the last, Unix milliseconds; 0: none since the store was opened.
    pub started_at_ms: u64,
    /// 0: not ended.
    pub ended_at_ms: u64,
    /// Files that are done.
    pub files_done: usize,
    /// Part of all that is done.
    pub ratio: f64,
    /// What the files that are done took before, bytes.
    pub bytes_before: u64,
    /// What they take now, bytes.
    pub bytes_after: u64,
    /// Why it broke off; empty: it did not.
    pub error: String,
}

impl Compaction {
    /// Files in all.
    pub const FILES: usize = SHARDS;
}

/// A compaction under way.
pub(super) enum Compacting {
    /// First what is recent is brought in: what it supersedes need not be copied.
    Checkpoint(Answer<()>, Instant),
    /// A file is written anew; when the next step may be made.
    Copy(Copy, Instant),
}

/// Why a copy is not gone on with.
enum Obstacle {
    /// There is no room, or too much else to do. Nothing is lost.
    GiveUp(String),
    /// The disk failed.
    Failed(DatabaseError),
}

impl From<DatabaseError> for Obstacle {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                Self::GiveUp("there was no room left on the disk".into())
            }
            error => Self::Failed(error),
        }
    }
}

impl From<io::Error> for Obstacle {
    fn from(error: io::Error) -> Self {
        DatabaseError::Io(error).into()
    }
}

impl Compacting {
    /// When the next step may be made.
    pub(super) fn due(&self) -> Instant {
        match self {
            Self::Checkpoint(_, due) | Self::Copy(_, due) => *due,
        }
    }

    /// Begins, or makes one more step. Nothing is returned once all is done, or it had to break
    /// off, which is no failure of the store.
    pub(super) fn go_on(
        before: Option<Self>,
        store: &Arc<Inner>,
    ) -> Result<Option<Self>, StoreError> {
        let outcome = match before {
            None => {
                let checkpoint = Store { inner: Arc::clone(store) }.checkpoint();
                Ok(Some(Self::Checkpoint(checkpoint, clock::now() + LOOK_EVERY)))
            }
            Some(Self::Checkpoint(mut checkpoint, _)) => match checkpoint.try_recv() {
                Ok(Ok(())) => Self::begin(store, 0).map(Some),
                Ok(Err(error)) => Err(Obstacle::GiveUp(error.to_string())),
                Err(TryRecvError::Empty) => {
                    Ok(Some(Self::Checkpoint(checkpoint, clock::now() + LOOK_EVERY)))
                }
                Err(TryRecvError::Closed) => Err(Obstacle::GiveUp("the writer ended".into())),
            },
            Some(Self::Copy(copy, _)) if copy.is_complete() => Self::finish(copy, store),
            Some(Self::Copy(copy, _)) => Self::step(copy, store).map(Some),
        };
        match outcome {
            Ok(Some(compacting)) => return Ok(Some(compacting)),
            Ok(None) => ended(store, String::new()),
            Err(Obstacle::GiveUp(why)) => ended(store, why),
            Err(Obstacle::Failed(error)) => return Err(store.stop(&error)),
        }
        Ok(None)
    }

    fn begin(store: &Inner, index: usize) -> Result<Self, Obstacle> {
        let name = shard_name(index);
        let needed = store.disk.used(&name)?;
        is_room(store.disk.room(), needed, store.reserve.size()).map_err(|why| {
            Obstacle::GiveUp(format!("there is no room for a copy of store/{name}: {why}"))
        })?;
        Ok(Self::Copy(Copy::begin(&*store.disk, index)?, clock::now()))
    }

    fn step(mut copy: Copy, store: &Inner) -> Result<Self, Obstacle> {
        let part = store.options.write_buffer_bytes / STEP_PARTS;
        let step_bytes = part.min(STEP_BYTES_MAX) as u64;
        let room = is_room(store.disk.room(), 2 * step_bytes, store.reserve.size());
        let copied = room.map_err(Obstacle::GiveUp);
        match copied.and_then(|()| Ok(copy.step(&store.shards, step_bytes)?)) {
            Ok(bytes) => {
                let pause = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64);
                let ratio = (copy.index() as f64 + copy.ratio()) / SHARDS as f64;
                store.compaction.send_modify(|compaction| compaction.ratio = ratio);
                Ok(Self::Copy(copy, clock::now() + pause))
            }
            Err(obstacle) => {
                copy.abandon(&*store.disk)?;
                Err(obstacle)
            }
        }
    }

    /// Puts the new file in the place of the old one, and begins with the next.
    fn finish(copy: Copy, store: &Inner) -> Result<Option<Self>, Obstacle> {
        let index = copy.index();
        let name = shard_name(index);
        let before = store.disk.used(&name)?;
        copy.finish(&store.shards, &*store.disk)?;
        let after = store.disk.used(&name)?;
        store.compaction.send_modify(|compaction| {
            compaction.files_done += 1;
            compaction.bytes_before += before;
            compaction.bytes_after += after;
        });
        match index + 1 {
            SHARDS => Ok(None),
            next => Self::begin(store, next).map(Some),
        }
    }

    /// Takes in a layer that was just brought into the database.
    pub(super) fn take_in(self, store: &Inner, layer: &Layer) -> Result<Option<Self>, StoreError> {
        let (mut copy, due) = match self {
            Self::Copy(copy, due) => (copy, due),
            // Most likely that is what is waited for.
            Self::Checkpoint(done, _) => return Ok(Some(Self::Checkpoint(done, clock::now()))),
        };
        match copy.take_in(layer).map_err(Obstacle::from) {
            Ok(()) => Ok(Some(Self::Copy(copy, due))),
            Err(Obstacle::Failed(error)) => Err(store.stop(&error)),
            Err(Obstacle::GiveUp(why)) => {
                copy.abandon(&*store.disk).map_err(|error| store.stop(&error))?;
                ended(store, why);
                Ok(None)
            }
        }
    }

    /// Breaks off, for the store closes.
    pub(super) fn break_off(self, store: &Inner) {
        if let Self::Copy(copy, _) = self {
            let _ = copy.abandon(&*store.disk); // else it is removed at the next start
        }
        ended(store, "the node was stopped".into());
    }
}

/// No more is to be done, and why if it is not done.
fn ended(store: &Inner, error: String) {
    // Under the lock: one that is asked for now begins anew.
    let mut checkpoint = super::lock(&store.checkpoint);
    checkpoint.compact = false;
    store.compaction.send_modify(|compaction| {
        if error.is_empty() {
            compaction.ratio = 1.0;
        }
        (compaction.running, compaction.ended_at_ms) = (false, clock::now_ms());
        compaction.error = error;
    });
}

/// Whether `needed` bytes more may be taken, with `kept` left for the log and checkpoints.
fn is_room(room: Room, needed: u64, kept: u64) -> Result<(), String> {
    const MIB: u64 = 1024 * 1024;
    let needed = needed.saturating_add(kept);
    if room.total_bytes == 0 || room.free_bytes >= needed {
        return Ok(());
    }
    let (needed, free) = (needed.div_ceil(MIB), room.free_bytes / MIB);
    Err(format!("it takes {needed} MiB with what is kept for the log, and {free} MiB are free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_leaves_room_for_the_log_and_the_unknown_is_no_obstacle() {
        let room = |free_bytes| Room { total_bytes: 1 << 40, free_bytes };
        assert_eq!(is_room(room(300), 200, 100), Ok(()));
        let why = is_room(room(299), 200, 100).unwrap_err();
        assert_eq!(why, "it takes 1 MiB with what is kept for the log, and 0 MiB are free");
        assert_eq!(is_room(Room::default(), 200, 100), Ok(()));
    }
}
