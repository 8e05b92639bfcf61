//! The reserve: room on the disk that is this node's already, kept in a file of nothing. Whoever
//! else fills the disk, a checkpoint, the log of deletes and repairs and a clean stop still find
//! room. It is given up just before something is written that would not fit, never upon an error:
//! a database that has failed once stops the store. From then on the node takes no client puts,
//! until there is room to make the reserve again.

use super::disk::{Disk, Room};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Its file.
pub const NAME: &str = "reserve";

/// For segments of the log and what is small, bytes.
const LOG_BYTES: u64 = 64 * 1024 * 1024;

/// Of a disk, at most one part in so many, unless that is less than the margin.
const DISK_PARTS: u64 = 50;

/// What is left free beside what a write is known to need, bytes: two segments of the log.
const MARGIN_BYTES: u64 = 32 * 1024 * 1024;

/// How much a checkpoint may grow the database for each byte it brings in: small records are
/// written with the pages they are in.
const GROWTH: u64 = 4;

/// Room kept back.
#[derive(Debug)]
pub struct Reserve {
    disk: Arc<dyn Disk>,
    size: u64,
    whole: Mutex<bool>,
}

impl Reserve {
    /// Finds what is there of it. It is made by [`Reserve::tend`].
    pub fn open(disk: Arc<dyn Disk>, write_buffer_bytes: usize) -> io::Result<Self> {
        let size = size(disk.room(), write_buffer_bytes as u64);
        let there = disk.list()?.iter().any(|name| name == NAME);
        let whole = there && disk.len(NAME)? == size && disk.used(NAME)? >= size;
        if there && !whole {
            disk.open(NAME)?.set_len(0)?;
        }
        Ok(Self { disk, size, whole: Mutex::new(whole) })
    }

    /// Its size when whole, bytes; 0 where the room on the disk is not known.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes it if it is not there and fits. Whether it is whole.
    pub fn tend(&self) -> io::Result<bool> {
        let mut whole = self.lock();
        if self.size == 0 || *whole {
            return Ok(true);
        }
        if !fits(self.disk.room(), self.size) {
            return Ok(false);
        }
        let file = self.disk.open(NAME)?;
        match file.allocate(self.size).and_then(|()| file.sync()) {
            Ok(()) => *whole = true,
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => file.set_len(0)?,
            Err(error) => return Err(error),
        }
        self.disk.sync_names()?;
        Ok(*whole)
    }

    /// Makes sure, as far as it can, that `bytes` more fit on the disk: gives itself up if not.
    pub fn make_way(&self, bytes: u64) -> io::Result<()> {
        let mut whole = self.lock();
        if !*whole || !is_short(self.disk.room(), self.size, bytes) {
            return Ok(());
        }
        *whole = false;
        let file = self.disk.open(NAME)?;
        file.set_len(0)?;
        file.sync()?; // a file system may hold on to what was freed until then
        tracing::error!(bytes = self.size, "the disk is full: the reserve is given up");
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What bringing a layer of so many bytes into the database may take, bytes.
pub fn checkpoint_bytes(layer_bytes: usize) -> u64 {
    GROWTH * layer_bytes as u64
}

/// A layer at its largest, and some of the log; little of a small disk. 0 where nothing is known.
fn size(room: Room, write_buffer_bytes: u64) -> u64 {
    match room.total_bytes {
        0 => 0,
        total => (2 * write_buffer_bytes + LOG_BYTES).min((total / DISK_PARTS).max(MARGIN_BYTES)),
    }
}

/// Whether a reserve of `size` has to go, so that `bytes` can be written. Where nothing is known of
/// the room, it stays.
fn is_short(room: Room, size: u64, bytes: u64) -> bool {
    room.total_bytes > 0 && room.free_bytes < (MARGIN_BYTES + bytes).min(size)
}

/// Whether a reserve of `size` can be made again: with as much left as would make it go, or it
/// would come and go.
fn fits(room: Room, size: u64) -> bool {
    room.free_bytes >= 2 * size
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn room(total_mib: u64, free_mib: u64) -> Room {
        Room { total_bytes: total_mib * MIB, free_bytes: free_mib * MIB }
    }

    #[test]
    fn it_holds_a_layer_and_some_log_and_little_of_a_small_disk() {
        assert_eq!(size(room(1 << 20, 0), 32 * MIB), 128 * MIB);
        assert_eq!(size(room(2000, 0), 32 * MIB), 40 * MIB);
        assert_eq!(size(room(100, 0), 32 * MIB), 32 * MIB);
        assert_eq!(size(Room::default(), 32 * MIB), 0);
    }

    #[test]
    fn it_goes_when_what_comes_next_would_not_fit() {
        let size = 128 * MIB;
        assert!(!is_short(room(1 << 20, 33), size, MIB));
        assert!(is_short(room(1 << 20, 32), size, MIB));
        assert!(!is_short(room(1 << 20, 128), size, 1000 * MIB), "it could not help");
        assert!(is_short(room(1 << 20, 127), size, 1000 * MIB));
        assert!(!is_short(Room::default(), size, MIB), "unknown");
    }

    #[test]
    fn once_given_up_it_does_not_come_back_for_its_own_room() {
        for size in [1, 20 * MIB, 128 * MIB] {
            for free in (0..400 * MIB).step_by(MIB as usize / 2) {
                let before = Room { total_bytes: u64::MAX, free_bytes: free };
                let after = Room { free_bytes: free + size, ..before };
                let goes = is_short(before, size, u64::MAX / 2);
                assert!(!goes || !fits(after, size), "{size} comes and goes at {free}");
                let made = Room { free_bytes: free.saturating_sub(size), ..before };
                assert!(!fits(before, size) || !is_short(made, size, u64::MAX / 2));
            }
        }
    }
}
