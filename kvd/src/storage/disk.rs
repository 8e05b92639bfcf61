//! The files of one data directory, as the log and the database see them: a real directory, or in
//! tests a simulated one that loses power, tears writes and lies about syncs.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A flat set of named files.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Every file's name, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file; makes an empty one if it is not there.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file another name. Durable only after [`Disk::sync_names`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable only after [`Disk::sync_names`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes files that were made, renamed or removed so for good.
    fn sync_names(&self) -> io::Result<()>;
    /// Length of a file, bytes.
    fn len(&self, name: &str) -> io::Result<u64> {
        self.open(name)?.len()
    }
    /// What a file takes on the disk, bytes: less than its length where it has holes.
    fn used(&self, name: &str) -> io::Result<u64> {
        self.len(name)
    }
    /// What room there is.
    fn room(&self) -> Room {
        Room::default()
    }
    /// Where it is, for messages.
    fn place(&self) -> String;
}

/// A file system's room. Zero total: unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// In all, bytes.
    pub total_bytes: u64,
    /// Of that, what kvd may still use.
    pub free_bytes: u64,
}

/// One file.
#[allow(clippy::len_without_is_empty, reason = "a file is no collection")]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `out` from `offset` on.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`. Durable only after [`DiskFile::sync`].
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes all writes durable, and the length.
    fn sync(&self) -> io::Result<()>;
    /// Has the next reads come from the disk and not from the system's cache, as far as it can be
    /// had: after a sync that failed, what was to be synced is in the cache, marked clean, and not on
    /// the disk (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }
    /// Makes it `len` bytes of zeros that take their room on the disk at once.
    fn allocate(&self, len: u64) -> io::Result<()>;
}

/// [`DiskFile::allocate`] where nothing better is known.
pub fn write_zeros(file: &dyn DiskFile, len: u64) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    file.set_len(0)?;
    for at in (0..len).step_by(ZEROS.len()) {
        file.write_at(at, &ZEROS[..ZEROS.len().min((len - at) as usize)])?;
    }
    Ok(())
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
}

impl RealDisk {
    /// The directory at `path`, made if it is not there.
    pub fn new(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { path: path.to_owned() })
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name()));
        names.map(|name| name.map(|name| name.to_string_lossy().into_owned())).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path.join(name);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        // Not by opening it: that would make a file again that was just renamed.
        Ok(fs::metadata(self.path.join(name))?.len())
    }

    fn used(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.path.join(name))?.blocks() * 512)
    }

    fn room(&self) -> Room {
        match rustix::fs::statvfs(&self.path) {
            Ok(fs) => Room {
                total_bytes: fs.f_blocks * fs.f_frsize,
                free_bytes: fs.f_bavail * fs.f_frsize,
            },
            Err(_) => Room::default(), // shown as unknown
        }
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    #[cfg(target_os = "linux")]
    fn forget_cached(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(0)?;
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, len),
            outcome => Ok(outcome?),
        }
    }
}

/// A file as redb wants it. The first error is kept: redb tells it once, and from then on only
/// that there was one.
#[derive(Debug)]
pub struct Backend {
    /// The file.
    pub file: Box<dyn DiskFile>,
    /// Shared with whoever wants to say what went wrong.
    pub first_error: Arc<OnceLock<String>>,
}

impl Backend {
    fn noted<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &outcome {
            self.first_error.get_or_init(|| error.to_string());
        }
        outcome
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.noted(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.noted(self.file.read_at(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.noted(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.noted(self.file.sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted(self.file.write_at(offset, data))
    }
}
