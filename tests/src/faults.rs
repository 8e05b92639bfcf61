//! Faults of a real machine: a disk that is small, fails, tears writes, loses power or lies about
//! syncs, and a clock that is wrong. Whatever is set up here is undone when it is dropped.
//!
//! What a machine does not have it cannot do. Everything here that may be missing returns `None`
//! then, once it has said why on standard error, and the test ends there. Under CI (the environment
//! variable `CI` is set) a missing tool is a failure, since `.ci/run` installs it; only where that
//! could not be done (`KVD_CI_NO_REAL_FAULTS` is set) is it not. What the kernel or a sandbox
//! refuses, a mount or a trace, is never a failure.

use crate::eventually;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// More environment of a node: see [`Shim`].
pub type Environment = Vec<(&'static str, String)>;

// === what the machine can do ===

/// Whether `tool` can be run; if not, says so.
///
/// # Panics
/// If it is missing under CI.
pub fn need(tool: &str) -> Option<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()) {
        return Some(());
    }
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let must = set("CI") && !set("KVD_CI_NO_REAL_FAULTS");
    assert!(!must, "{tool} is missing, and CI has to have it: see the tools step of .ci/run");
    skip(&format!("{tool} is not installed"))
}

/// The Python that has these modules: that of `KVD_PYTHON`, else `python3`. If there is none, says so.
///
/// # Panics
/// If it is missing under CI.
pub fn need_module(modules: &[&str]) -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let python = set("KVD_PYTHON").unwrap_or_else(|| "python3".to_owned());
    let import = format!("import {}", modules.join(", "));
    let tried = Command::new(&python).args(["-c", &import]).output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        return Some(python);
    }
    let must = set("CI").is_some() && set("KVD_CI_NO_PYTHON").is_none();
    let why = format!("{python} does not have {}", modules.join(" and "));
    assert!(!must, "{why}, and CI has to: see the tools step of .ci/run");
    skip(&why)
}

/// Says why a test does nothing. Past the test harness, which hides what a passing test prints.
pub(crate) fn skip<T>(why: &str) -> Option<T> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(io::stderr(), "{test} is skipped: {why}"); // nobody may be reading
    None
}

/// Runs a command that the machine may refuse.
///
/// # Panics
/// If it fails for another reason.
pub(crate) fn attempt(command: &mut Command) -> Option<()> {
    const REFUSALS: [&str; 6] = [
        "permission denied",
        "operation not permitted",
        "must be superuser",
        "unknown filesystem type",
        "failed to setup loop device",
        "cannot find an unused loop device",
    ];
    let Output { status, stderr, .. } = command.output().expect("the tool was found before");
    if status.success() {
        return Some(());
    }
    let error = String::from_utf8_lossy(&stderr).trim().to_owned();
    let refused = REFUSALS.iter().any(|refusal| error.to_lowercase().contains(refusal));
    assert!(refused, "{command:?}: {status}: {error}");
    skip(&error)
}

/// Runs a command that can do what it is asked.
pub(crate) fn must(command: &mut Command) {
    let Output { status, stderr, .. } = command.output().expect("the tool was found before");
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
}

// === file systems ===

/// Somebody else on the same disk, who takes every byte that is free until this is dropped.
pub struct Neighbour {
    file: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Fills the file system at `path`, and keeps it full.
    pub fn fill(path: &Path) -> Self {
        let file = path.join("neighbour");
        let ballast = File::create(&file).expect("a file beside the node's");
        let over = Arc::new(AtomicBool::new(false));
        let (stop, on) = (Arc::clone(&over), path.to_owned());
        let take = move || {
            let mut taken = 0;
            while !stop.load(Ordering::Relaxed) {
                let room = statvfs(&on).expect("a mounted file system");
                let free = room.f_bavail * room.f_frsize;
                // Somebody else may have been faster.
                if free > 0 && fallocate(&ballast, FallocateFlags::empty(), taken, free).is_ok() {
                    taken += free;
                }
                std::thread::sleep(Duration::from_millis(1)); // one core less busy
            }
        };
        Self { file, over, thread: Some(std::thread::spawn(take)) }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join); // it does nothing but take
        let _ = fs::remove_file(&self.file); // with the mount, if not now
    }
}

/// A file system of its own, unmounted at the end.
pub struct Mount {
    at: TempDir,
    /// Of a disk: where its bytes are.
    image: Option<(TempDir, Cut)>,
}

impl Mount {
    /// One in memory, that holds so much.
    pub fn tmpfs(mib: u32) -> Option<Self> {
        need("mount")?;
        let at = tempfile::tempdir().expect("a temporary directory");
        let size = format!("size={mib}m");
        attempt(
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "kvd-test"]).arg(at.path()),
        )?;
        Some(Self { at, image: None })
    }

    /// One on a disk whose power can be cut: ext4 on a loop device on a sparse file.
    pub fn disk(mib: u32) -> Option<Self> {
        ["mount", "mkfs.ext4"].into_iter().try_for_each(need)?;
        let beside = tempfile::tempdir().expect("a temporary directory");
        let cut = Cut::build(beside.path())?;
        let image = beside.path().join("image");
        let file = File::create(&image).expect("a file for the disk");
        file.set_len(u64::from(mib) << 20).expect("a sparse file");
        must(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let at = tempfile::tempdir().expect("a temporary directory");
        attempt(Command::new("mount").args(["-o", "loop"]).args([&image, at.path()]))?;
        Some(Self { at, image: Some((beside, cut)) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.at.path()
    }

    /// Gives one in memory another size.
    pub fn resize(&self, mib: u32) {
        let size = format!("remount,size={mib}m");
        must(Command::new("mount").args(["-o", &size]).arg(self.path()));
    }

    /// Cuts the power: from here on every write and sync fails, and what was not synced is lost.
    pub fn cut_power(&self) {
        let (_, cut) = self.image.as_ref().expect("only a disk has power");
        must(Command::new(&cut.0).arg(self.path()));
    }

    /// Power again: mounts what the disk still holds. Nobody may have a file open there.
    pub fn power_on(&self) {
        let (beside, _) = self.image.as_ref().expect("only a disk has power");
        must(Command::new("umount").arg(self.path()));
        let image = beside.path().join("image");
        must(Command::new("mount").args(["-o", "loop"]).args([&image, self.path()]));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let umount = |lazily: &[&str]| {
            let done = Command::new("umount").args(lazily).arg(self.at.path()).output();
            done.is_ok_and(|done| done.status.success())
        };
        // A test that panicked may still have a file open there.
        if !umount(&[]) && !umount(&["--lazy"]) {
            let _ = writeln!(io::stderr(), "{} is still mounted", self.path().display());
        }
    }
}

/// A program that cuts the power of a file system.
struct Cut(PathBuf);

impl Cut {
    fn build(dir: &Path) -> Option<Self> {
        compile(dir, "cut", include_str!("faults/cut.c"), &[]).map(Self)
    }
}

fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    need("cc")?;
    let (from, to) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&from, source).expect("a place for the source");
    must(Command::new("cc").args(["-O2", "-Wall"]).args(flags).arg("-o").args([&to, &from]));
    Some(to)
}

// === a node's own calls ===

/// A library that makes a node's disk or clock be wrong, by the environment it is started with.
pub struct Shim {
    library: PathBuf,
}

impl Shim {
    /// Compiles it into `dir`.
    pub fn build(dir: &Path) -> Option<Self> {
        let library = compile(dir, "shim.so", include_str!("faults/shim.c"), &["-shared", "-fPIC"]);
        Some(Self { library: library? })
    }

    /// Half of the `nth` write to a file whose path contains `part` is made; then the process is
    /// killed.
    pub fn torn_write(&self, part: &str, nth: u32) -> Environment {
        self.with("KVD_SHIM_TEAR", format!("{part}:{nth}"))
    }

    /// Syncs do nothing, and say that all is well.
    pub fn lying_sync(&self) -> Environment {
        self.with("KVD_SHIM_LYING_SYNC", "1".into())
    }

    /// The wall clock is so many days ahead; negative: behind.
    pub fn clock_ahead(&self, days: i64) -> Environment {
        self.with("KVD_SHIM_CLOCK_S", (days * 24 * 60 * 60).to_string())
    }

    fn with(&self, name: &'static str, value: String) -> Environment {
        let library = self.library.to_str().expect("temporary directories have plain names");
        vec![("LD_PRELOAD", library.into()), (name, value)]
    }
}

/// Makes every system call of one kind that a process makes fail, until it is dropped.
pub struct Failing {
    strace: Child,
    _log: TempDir,
}

impl Failing {
    /// From when this returns on, every `call` (such as `fdatasync`) of process `pid` fails with
    /// `error` (such as `EIO`); if there is a `file`, only those on it.
    pub fn calls(pid: u32, call: &str, error: &str, file: Option<&Path>) -> Option<Self> {
        need("strace")?;
        let log = tempfile::tempdir().expect("a temporary directory");
        let errors = log.path().join("errors");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-p", &pid.to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:error={error}")])
            .arg("-o")
            .arg(log.path().join("calls"));
        if let Some(file) = file {
            strace.arg("-P").arg(file);
        }
        strace
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors).expect("a file for what strace says"));
        let mut failing = Self { strace: strace.spawn().expect("strace starts"), _log: log };
        let attached = eventually("strace to attach to every thread", || {
            if failing.strace.try_wait().expect("it is our child").is_some() {
                return Some(false);
            }
            is_traced(pid).then_some(true)
        });
        if attached {
            return Some(failing);
        }
        let why = fs::read_to_string(&errors).unwrap_or_default();
        assert!(why.contains("not permitted"), "strace ended: {why}");
        skip(&why)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // Ended, it lets go of the process, which runs on if it is still there.
        let _ = self.strace.kill(); // it may have ended with the process
        let _ = self.strace.wait();
    }
}

/// Whether every thread of a process is traced.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    })
}
