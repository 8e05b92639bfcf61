//! Whose directory this is, and which life of the node this start begins.
//!
//! `identity.toml` says it outside the database, the database's `meta` table inside; they must
//! match. `LOCK` keeps a second process out and holds the process id of the one inside.
//!
//! The incarnation goes on only after a clean stop, and only if nothing was put back since: a node
//! that may have lost writes must not use the actors that named them. So a clean stop leaves the
//! same random mark in both places as its last act; a start that finds them alike takes both away
//! and may resume the incarnation. It begins one of its own all the same, and resumes the last only
//! when the other members have confirmed that no later start was seen ([`crate::dynamo::start`]):
//! that the whole directory is no older copy, it cannot know.
//!
//! Every start also leaves a new random number in both places, the life. A database that names
//! another than the last was put back from an older copy, or this file was: acknowledged writes may
//! be missing. So they may where the log is damaged, the database is gone, or peers saw later starts
//! or were told of more than the log holds.
//! The directory then remembers that it lost data until the node is level with its replicas
//! ([`crate::dynamo::vote`]).

use crate::clock;
use crate::dynamo::node::{Incarnation, Uid};
use crate::dynamo::start::Start;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Version of the directory's layout. Version 1 has no lives, and is read.
pub const FORMAT: u32 = 2;

const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "identity.toml";
/// Log and database, within the directory.
pub const STORE_DIR: &str = "store";

/// Why a data directory cannot be used. Each text ends in what to try.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process has it.
    #[error(
        "data directory {0} is locked: another kvd runs on it; stop that one, or give this one its own --data-dir"
    )]
    Locked(PathBuf),
    /// It holds something else.
    #[error(
        "{0} is not a kvd data directory: it holds {1} but no {IDENTITY_FILE}; give kvd an empty or new --data-dir"
    )]
    Foreign(PathBuf, String),
    /// Files of two nodes were mixed.
    #[error(
        "data directory {path} mixes two nodes: {IDENTITY_FILE} names node {outside}, the database node {inside}; restore the files of one of them, or start with an empty --data-dir"
    )]
    Mixed {
        /// The directory.
        path: PathBuf,
        /// Node in the identity file.
        outside: Uid,
        /// Node in the database.
        inside: Uid,
    },
    /// A file of the database is gone, or is empty.
    #[error(
        "data directory {0} has lost {STORE_DIR}/{1}: {IDENTITY_FILE} is there, that file is missing or empty; restore it, or empty {STORE_DIR}/ to start with nothing: the node then fills from its replicas before it votes"
    )]
    DatabaseMissing(PathBuf, String),
    /// Made by a newer kvd.
    #[error(
        "data directory {path} has format {found}, this kvd reads formats 1 to {FORMAT}; use the kvd that wrote it"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The identity file is damaged.
    #[error("{0} cannot be read: {1}; restore it from a backup")]
    Damaged(PathBuf, String),
    /// The disk says no.
    #[error("data directory {path}: {action} failed")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What came back.
        source: io::Error,
    },
}

/// What `identity.toml` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    format: u32,
    uid: String,
    incarnation: String,
    /// Starts so far.
    starts: u64,
    /// What the last clean stop left here and in the database. Taken away by the next start.
    stop_mark: Option<String>,
    /// The database exists. False only until the very first start got that far.
    born: bool,
    /// Lives of which the database may name any: the last start's, and while one is being written
    /// into its files, what they named before. Empty if an older kvd was the last to start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lives: Vec<String>,
    /// Acknowledged writes may be missing here, and have not come back from replicas yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lost_data: bool,
}

/// A locked directory and who lives in it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    facts: Facts,
    uid: Uid,
    /// The one in use.
    incarnation: Incarnation,
    /// The one this start began.
    begun: Incarnation,
    /// The last start's, if it ended cleanly and nobody has confirmed or denied it yet.
    resumable: Option<Incarnation>,
    /// How far the log had got by what this start found of it.
    recovered: u64,
    /// This start knows that data was lost, whether or not that has come back meanwhile.
    knows_loss: bool,
    _lock: File,
}

impl Directory {
    /// Locks `path` (made if it is not there) and reads who lives in it. The store then begins a
    /// life in it, once it has seen what the database says.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        fs::create_dir_all(path).map_err(io_error(path, "making it"))?;
        if let Ok(parent) = path.canonicalize().map(|path| path.join("..")) {
            let synced = File::open(&parent).and_then(|parent| parent.sync_all());
            synced.map_err(io_error(path, "making it for good"))?;
        }
        let lock = lock(path)?;
        let facts = match read_facts(path)? {
            Some(facts) => facts,
            None => new_facts(path)?,
        };
        let uid = parse_hex(path, &facts.uid).map(Uid)?;
        let incarnation = parse_hex(path, &facts.incarnation).map(Incarnation)?;
        let directory = Self {
            path: path.to_owned(),
            recovered: 0,
            knows_loss: facts.lost_data,
            facts,
            uid,
            incarnation,
            begun: incarnation,
            resumable: None,
            _lock: lock,
        };
        if directory.is_new() {
            directory.write_facts()?; // before there is a database that names this node
        }
        Ok(directory)
    }

    /// Begins a life on a database that names these `lives`, one in each of its files. If the last
    /// one ended cleanly, which `mark_inside`, what the database says that stop left, tells, its
    /// incarnation may be resumed. Returns the number to be written into every file; then
    /// [`Directory::life_begun`].
    pub fn begin_life(
        &mut self,
        mark_inside: Option<u128>,
        lives: &[Option<u128>],
    ) -> Result<u128, DirectoryError> {
        let mark_outside = self.facts.stop_mark.take();
        let mark_outside = mark_outside.and_then(|mark| u128::from_str_radix(&mark, 16).ok());
        let ended_cleanly = mark_outside.is_some() && mark_outside == mark_inside;
        self.resumable = Some(self.incarnation).filter(|_| ended_cleanly);
        let known = |life: &Option<u128>| self.facts.lives.contains(&life_name(*life));
        if self.facts.born {
            // The mark is left inside before it is outside, and taken away outside before it is
            // inside: one outside that is not inside as well is of a database that was replaced.
            let replaced = mark_outside.is_some() && !ended_cleanly;
            if replaced || (!self.facts.lives.is_empty() && !lives.iter().all(known)) {
                self.note_lost_data("the database is from another time than its directory");
            }
            self.begin();
        }
        let life = clock::random_u128();
        // Killed before it is in every file, the next start finds some of these.
        let may_be_found = lives.iter().copied().chain([Some(life)]);
        let may_be_found: BTreeSet<String> = may_be_found.map(life_name).collect();
        self.facts.lives = may_be_found.into_iter().collect();
        self.facts.born = true;
        self.facts.starts += 1;
        self.write_facts()?;
        Ok(life)
    }

    /// Whether a life was begun here to the end: there is a log. Asked before the next begins.
    pub fn has_begun(&self) -> bool {
        self.facts.born && matches!(&self.facts.lives[..], [life] if *life != life_name(None))
    }

    /// The database names `life` in every file, and there is a log: one that names an earlier is from now on an older
    /// copy.
    pub fn life_begun(&mut self, life: u128) -> Result<(), DirectoryError> {
        self.facts.lives = vec![life_name(Some(life))];
        self.write_facts()
    }

    /// The database is gone, all of it: this start makes a new one, and another incarnation.
    pub fn wiped(&mut self) -> Result<(), DirectoryError> {
        self.begin();
        self.facts.born = false;
        self.lost_data("the store is empty, though this node had one")
    }

    /// Acknowledged writes may be missing, says `why`. Remembered until [`Directory::is_level`].
    pub fn lost_data(&mut self, why: &str) -> Result<(), DirectoryError> {
        self.note_lost_data(why);
        self.write_facts()
    }

    fn note_lost_data(&mut self, why: &str) {
        (self.facts.lost_data, self.knows_loss) = (true, true);
        tracing::error!(
            why,
            "acknowledged writes may be missing here: no vote until they are back"
        );
    }

    /// All that may have been missing has come back from replicas.
    pub fn is_level(&mut self) -> Result<(), DirectoryError> {
        self.facts.lost_data = false;
        self.write_facts()
    }

    /// Whether acknowledged writes may be missing.
    pub fn has_lost_data(&self) -> bool {
        self.facts.lost_data
    }

    /// Every other member has confirmed that it saw no later start: goes on with the last life, if
    /// it can be. Returns it.
    pub fn resume(&mut self) -> Option<Incarnation> {
        self.incarnation = self.resumable.take()?;
        Some(self.incarnation)
    }

    /// Another member has seen `later` starts of this node: this directory is an older copy, and
    /// has forgotten writes. Begins another life, beyond them.
    pub fn forgot(&mut self, later: u64) -> Result<Incarnation, DirectoryError> {
        self.resumable = None;
        self.begin();
        self.facts.starts = self.facts.starts.max(later) + 1;
        self.lost_data("peers have seen later starts of this node")?;
        Ok(self.incarnation)
    }

    /// Another member was told of more than the log holds: it is from a copy made while the node ran,
    /// or its end is gone. False if this start knows already that data was lost.
    pub fn forgot_data(&mut self) -> Result<bool, DirectoryError> {
        if self.knows_loss {
            return Ok(false);
        }
        self.resumable = None;
        self.lost_data("peers were told of more than is left").map(|()| true)
    }

    /// The log had got so far, by what is left of it.
    pub fn recovered(&mut self, position: u64) {
        self.recovered = position;
    }

    fn begin(&mut self) {
        self.begun = Incarnation(clock::random_u128());
        self.incarnation = self.begun;
        self.facts.incarnation = self.begun.to_string();
    }

    /// Everything is on disk, and the database holds `mark`: the next start may go on with this
    /// life.
    pub fn stopped_cleanly(&mut self, mark: u128) -> Result<(), DirectoryError> {
        self.facts.incarnation = self.incarnation.to_string();
        self.facts.stop_mark = Some(format!("{mark:032x}"));
        self.write_facts()
    }

    /// The node that lives here.
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// This life of it.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// This start, as it is told to the other members.
    pub fn start(&self) -> Start {
        Start {
            count: self.facts.starts,
            incarnation: self.begun,
            recovered: self.recovered,
            knows_loss: self.knows_loss,
        }
    }

    /// Whether the database is still to be made.
    pub fn is_new(&self) -> bool {
        !self.facts.born
    }

    /// Whether the last stop was clean, by the file alone. True until a life begins.
    pub fn says_stopped_cleanly(&self) -> bool {
        self.facts.stop_mark.is_some()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file whole: a crash leaves the old one or the new one.
    fn write_facts(&self) -> Result<(), DirectoryError> {
        let target = self.path.join(IDENTITY_FILE);
        let temporary = self.path.join("identity.toml.new");
        let text = toml::to_string(&self.facts).expect("a flat struct is valid TOML");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &target)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(io_error(&target, "writing it"))
    }
}

/// A life as the file names it; a new database names none.
fn life_name(life: Option<u128>) -> String {
    life.map_or_else(|| "none".into(), |life| format!("{life:032x}"))
}

fn lock(path: &Path) -> Result<File, DirectoryError> {
    let file = path.join(LOCK_FILE);
    let lock = File::options().create(true).truncate(false).write(true).open(&file);
    let lock = lock.map_err(io_error(&file, "opening it"))?;
    match lock.try_lock() {
        Ok(()) => {
            let process_id = format!("{}\n", std::process::id());
            let written = lock.set_len(0).and_then(|()| (&lock).write_all(process_id.as_bytes()));
            written.map(|()| lock).map_err(io_error(&file, "writing it"))
        }
        Err(TryLockError::WouldBlock) => Err(DirectoryError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(&file, "locking it")(source)),
    }
}

fn read_facts(path: &Path) -> Result<Option<Facts>, DirectoryError> {
    let file = path.join(IDENTITY_FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&file, "reading it")(error)),
    };
    let facts: Facts = toml::from_str(&text)
        .map_err(|error| DirectoryError::Damaged(file, error.message().to_owned()))?;
    match facts.format {
        1..=FORMAT => Ok(Some(Facts { format: FORMAT, ..facts })),
        found => Err(DirectoryError::Format { path: path.to_owned(), found }),
    }
}

fn new_facts(path: &Path) -> Result<Facts, DirectoryError> {
    for entry in fs::read_dir(path).map_err(io_error(path, "listing it"))? {
        let name = entry.map_err(io_error(path, "listing it"))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name != LOCK_FILE && name != "identity.toml.new" {
            return Err(DirectoryError::Foreign(path.to_owned(), name));
        }
    }
    Ok(Facts {
        format: FORMAT,
        uid: Uid(clock::random_u128()).to_string(),
        incarnation: Incarnation(clock::random_u128()).to_string(),
        starts: 0,
        stop_mark: None,
        born: false,
        lives: Vec::new(),
        lost_data: false,
    })
}

fn parse_hex(path: &Path, digits: &str) -> Result<u128, DirectoryError> {
    u128::from_str_radix(digits, 16).map_err(|_| {
        let why = format!("{digits:?} is not 32 hexadecimal digits");
        DirectoryError::Damaged(path.join(IDENTITY_FILE), why)
    })
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts on a database that says it was left with `mark`.
    fn start(path: &Path, mark: Option<u128>) -> Directory {
        let mut directory = Directory::open(path).unwrap();
        let lives = directory.facts.lives.clone();
        let lives = lives.iter().map(|life| u128::from_str_radix(life, 16).ok());
        let life = directory.begin_life(mark, &lives.collect::<Vec<_>>()).unwrap();
        directory.life_begun(life).unwrap();
        directory
    }

    #[test]
    fn a_database_that_names_an_older_life_has_lost_data() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Directory::open(dir.path()).unwrap();
        let killed = open().begin_life(None, &[None, None]).unwrap();
        let mut first = open();
        let life = first.begin_life(None, &[Some(killed), None]).unwrap();
        assert!(!first.has_lost_data(), "killed before a new database named any");
        first.life_begun(life).unwrap();
        drop(first);
        let first = life;
        // Killed while the second was being written into the files: nothing is lost.
        let second = open().begin_life(None, &[Some(first), Some(first)]).unwrap();
        let mut third = open();
        let life = third.begin_life(None, &[Some(second), Some(first)]).unwrap();
        assert!(!third.has_lost_data());
        third.life_begun(life).unwrap();
        drop(third);
        for older in [Some(second), None] {
            let mut directory = open();
            let next = directory.begin_life(None, &[Some(life), older]).unwrap();
            assert!(directory.has_lost_data(), "a file names {older:?}");
            directory.life_begun(next).unwrap();
            drop(directory);
            assert!(open().has_lost_data(), "until it is level");
            open().is_level().unwrap();
            open().life_begun(life).unwrap();
        }
    }

    #[test]
    fn a_wiped_node_stays_who_it_is_and_begins_another_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        let first = start(dir.path(), None);
        let (uid, incarnation) = (first.uid(), first.incarnation());
        drop(first);
        let mut wiped = Directory::open(dir.path()).unwrap();
        wiped.wiped().unwrap();
        assert!(wiped.is_new(), "also for a start after one that was killed here");
        let begun = wiped.incarnation();
        wiped.begin_life(None, &[None]).unwrap();
        assert_eq!((wiped.uid(), wiped.start().count), (uid, 2));
        assert!(wiped.incarnation() == begun && begun != incarnation && wiped.has_lost_data());
        assert_eq!(wiped.resume(), None);
    }

    #[test]
    fn the_incarnation_goes_on_after_a_clean_stop_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = start(dir.path(), None);
        let (uid, incarnation) = (first.uid(), first.incarnation());
        first.stopped_cleanly(7).unwrap();
        drop(first);
        let mut second = start(dir.path(), Some(7));
        assert_ne!(second.incarnation(), incarnation, "nobody has confirmed it yet");
        assert_eq!(second.resume(), Some(incarnation));
        assert_eq!((second.uid(), second.incarnation()), (uid, incarnation));
        drop(second); // as after a kill -9
        let mut third = start(dir.path(), None);
        assert_eq!(third.uid(), uid);
        assert_eq!(third.resume(), None);
        assert_ne!(third.incarnation(), incarnation);
        assert_eq!(third.start().count, 3);
    }

    #[test]
    fn a_database_of_another_time_begins_another_life() {
        let dir = tempfile::tempdir().unwrap();
        for (left, found) in [(7, Some(6)), (8, None)] {
            let mut before = start(dir.path(), None);
            let incarnation = before.incarnation();
            before.stopped_cleanly(left).unwrap();
            drop(before);
            assert_eq!(start(dir.path(), found).resume(), None, "{incarnation} goes on");
        }
        // And an identity of another time: the database was left, this file was not.
        drop(start(dir.path(), None));
        assert_eq!(start(dir.path(), Some(9)).resume(), None);
    }

    #[test]
    fn a_directory_that_peers_saw_later_begins_another_life_beyond_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let mut before = start(dir.path(), None);
        before.stopped_cleanly(7).unwrap();
        drop(before);
        let mut older = start(dir.path(), Some(7));
        let told = older.start();
        let begun = older.forgot(9).unwrap();
        assert_eq!((older.start().count, older.incarnation()), (10, begun));
        assert_ne!(begun, told.incarnation);
        assert_eq!(older.resume(), None);
        older.stopped_cleanly(8).unwrap();
        drop(older);
        assert_eq!(start(dir.path(), Some(8)).start().count, 11, "it is remembered");
    }

    /// Samples as those of `kvd/tests/formats.rs`: never changed.
    #[test]
    fn an_identity_of_every_format_is_read_and_written_as_the_newest() {
        let facts = Facts {
            format: FORMAT,
            uid: "82f5894678cbc30cc23f7bb21190e9be".into(),
            incarnation: "36ad8ed443a323ce5aed81514b54f986".into(),
            starts: 2,
            stop_mark: Some("5b0e3a1d7c42f986e2f1a90b8d37c614".into()),
            born: true,
            lives: Vec::new(),
            lost_data: false,
        };
        let lives = vec!["07f2c1b4e95d4a60b1c88e3f5a9d2604".into()];
        let newer = Facts { lives, lost_data: true, ..facts.clone() };
        let v1 = include_str!("../../tests/formats/identity-v1.toml");
        let v2 = include_str!("../../tests/formats/identity-v2.toml");
        for (sample, facts) in [(v1, &facts), (v2, &newer)] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(IDENTITY_FILE);
            fs::write(&file, sample).unwrap();
            assert_eq!(read_facts(dir.path()).unwrap().as_ref(), Some(facts));
            Directory::open(dir.path()).unwrap().write_facts().unwrap();
            let written = fs::read_to_string(&file).unwrap();
            assert_eq!(written, sample.replace("format = 1", "format = 2"));
        }
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _held = start(dir.path(), None);
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::Locked(_))));
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::Foreign(..))));
        assert_eq!(fs::read_to_string(dir.path().join("thesis.tex")).unwrap(), "years of work");
    }

    #[test]
    fn a_damaged_or_newer_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(start(dir.path(), None));
        let file = dir.path().join(IDENTITY_FILE);
        let newer = fs::read_to_string(&file).unwrap().replace("format = 2", "format = 3");
        fs::write(&file, newer).unwrap();
        assert!(matches!(
            Directory::open(dir.path()),
            Err(DirectoryError::Format { found: 3, .. })
        ));
        fs::write(&file, "nonsense").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::Damaged(..))));
    }
}
