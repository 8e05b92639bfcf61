//! Bytes on disk: what the rest of kvd may ask of storage.
//!
//! | file | noun |
//! |---|---|
//! | `identity` | the data directory: lock, who lives in it, which life this is |
//! | `record` | the bytes of one record (pure) |
//! | `engine` | the store: reads, and the one writer that makes groups of writes durable |
//! | `wal` | the write-ahead log: one write and one sync for a group |
//! | `recent` | what is in the log and not yet in the database |
//! | `shards` | the database: one redb file for each range of tokens |
//! | `reserve` | room on the disk for when there is none |
//! | `disk` | the files, as the log and the database see them |
//!
//! **Invariant: a write is answered only when it is fsynced.** **Invariant: any error of the disk
//! stops the store for good**: the write in hand may or may not be on disk, and a database handle
//! that has failed once proves nothing any more. The process says why and exits; the next start
//! is another incarnation.

pub mod disk;
mod engine;
pub mod identity;
pub mod recent;
pub mod record;
pub mod reserve;
pub mod shards;
pub mod wal;

pub use engine::{
    Answer, Compaction, Digests, Facts, HintTotals, OpenError, Prepared, Proven, Store,
    StoreOptions,
};

use crate::dynamo::object::WriteRefused;

/// Why storage did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk failed. Writes under way are in doubt.
    #[error("storage stopped: {0}")]
    Stopped(String),
    /// Too much waits to be written. Nothing was done.
    #[error("too many writes wait for the disk")]
    Overloaded,
    /// The record's checksum fails. It is logged and counted.
    #[error("the copy failed its checksum")]
    BadRecord,
    /// There is no room for another hint for that node. Nothing was done.
    #[error("the hints for that node take all the room they may")]
    HintsFull,
    /// A client write over a limit. Nothing was done.
    #[error(transparent)]
    Refused(#[from] WriteRefused),
}
