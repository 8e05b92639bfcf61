//! The write-ahead log: what makes a group of writes durable with one write and one sync.
//!
//! It is a run of segments, files of fixed length that are filled with zeros when made and used
//! again and again, so that a sync has no length or block map to bring to disk. A group starts on
//! a block of its own: writing one never touches a block that an earlier, acknowledged one is in,
//! so a torn write can only hurt the group that was not yet acknowledged.
//!
//! segment:  block 0: magic "KVDW" · format u8 = 1 · number u64 · groups in the segment before u32 ·
//!           salt u64 · crc32 u32
//! group:    magic "GRUP" · segment u64 · index u32 · length u32 · crc32 u32 · length bytes
//! entry:    kind u8 (1 record, 2 fact) · key length u16 · value length u32 · key · value
//!
//! Integers big-endian. A group's checksum covers its segment's number and random salt, so neither
//! what a segment held in an earlier use, nor a client's value that looks like a group, is ever
//! taken for part of the log. Drawn again in docs/storage-format.md.
//!
//! Only one group is under way at a time. Hence an unreadable one with nothing readable after it
//! is the torn tail of a write nobody was told of, and the log ends there; with a readable one
//! after it, or when the next segment says that there were more, it is damage to something
//! acknowledged, and is reported.

use super::disk::{Disk, DiskFile};
use crate::clock;
use bytes::{Buf, BufMut, Bytes};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Unit in which groups are placed, bytes: no smaller write of a disk or page cache spans two.
const BLOCK: usize = 4096;

/// Length of a segment, bytes. A group that does not fit gets a longer one of its own.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// Segments kept for use again; more are removed.
const SPARES_MAX: usize = 8;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 4 + 1 + 8 + 4 + 8 + 4;
const SEGMENT_MAGIC: &[u8; 4] = b"KVDW";
const GROUP_MAGIC: &[u8; 4] = b"GRUP";
const GROUP_HEAD_BYTES: usize = 4 + 8 + 4 + 4 + 4;
const ENTRY_HEAD_BYTES: usize = 1 + 2 + 4;
/// In a segment's header: the segment before was not read, so how much it held is not known.
const UNKNOWN: u32 = u32::MAX;
/// Bits of a position that count groups: a segment has fewer blocks.
const POSITION_GROUP_BITS: u32 = 16;
const RECORD: u8 = 1;
const FACT: u8 = 2;
const HINT: u8 = 3;

/// What a stored record is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// This node's own copy, under the stored key.
    Records,
    /// What another node is to be given, under that node's uid and the stored key.
    Hints,
}

/// Something the log carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A record under its key: the whole new state of the key.
    Record {
        /// What it is for.
        space: Space,
        /// Its key there.
        key: Bytes,
        /// Record; empty: the key is gone.
        value: Bytes,
    },
    /// A fact of the node.
    Fact {
        /// Its name.
        name: String,
        /// Its value; empty: the fact is gone.
        value: Bytes,
    },
}

/// A group of entries being put together.
#[derive(Debug)]
pub struct Group {
    bytes: Vec<u8>,
}

impl Default for Group {
    fn default() -> Self {
        Self { bytes: vec![0; GROUP_HEAD_BYTES] }
    }
}

impl Group {
    /// Adds a record.
    pub fn record(&mut self, space: Space, key: &[u8], value: &[u8]) {
        let kind = match space {
            Space::Records => RECORD,
            Space::Hints => HINT,
        };
        self.entry(kind, key, value);
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: &str, value: &[u8]) {
        self.entry(FACT, name.as_bytes(), value);
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == GROUP_HEAD_BYTES
    }

    fn entry(&mut self, kind: u8, key: &[u8], value: &[u8]) {
        assert!(key.len() <= usize::from(u16::MAX), "a stored key is at most some 4 KiB");
        assert!(value.len() < u32::MAX as usize, "a record is at most some hundred MiB");
        self.bytes.put_u8(kind);
        self.bytes.put_u16(key.len() as u16);
        self.bytes.put_u32(value.len() as u32);
        self.bytes.put_slice(key);
        self.bytes.put_slice(value);
    }

    /// The finished bytes, padded to whole blocks.
    fn seal(&mut self, salt: u64, segment: u64, index: u32) -> &[u8] {
        let length = (self.bytes.len() - GROUP_HEAD_BYTES) as u32;
        let (mut head, body) = self.bytes.split_at_mut(GROUP_HEAD_BYTES);
        head.put_slice(GROUP_MAGIC);
        head.put_u64(segment);
        head.put_u32(index);
        head.put_u32(length);
        head.put_u32(group_checksum(salt, segment, index, body));
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        &self.bytes
    }
}

fn group_checksum(salt: u64, segment: u64, index: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_be_bytes());
    hasher.update(&segment.to_be_bytes());
    hasher.update(&index.to_be_bytes());
    hasher.update(&(body.len() as u32).to_be_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// How far a log has got that has so many groups in segment `number`: greater after every group, and
/// after every start, since segments are numbered on.
fn position(number: u64, groups: u32) -> u64 {
    let groups = u64::from(groups).min((1 << POSITION_GROUP_BITS) - 1);
    (number << POSITION_GROUP_BITS) | groups
}

/// Damage to something that had been acknowledged. What is readable around it was applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file.
    pub segment: String,
    /// Where in it; `None`: groups are missing at its end.
    pub offset: Option<u64>,
}

/// What was found when the log was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Groups applied.
    pub groups: u64,
    /// Acknowledged groups that could not be read.
    pub damage: Vec<Damage>,
}

/// The log, as its one writer holds it.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    spares: Arc<Spares>,
    /// Segments that ended and are not yet given up.
    ended: Vec<u64>,
    number: u64,
    file: Box<dyn DiskFile>,
    salt: u64,
    length: u64,
    offset: u64,
    index: u32,
    appended: u64,
    recovered: u64,
}

impl Log {
    /// Reads every segment after number `applied` in order, hands each entry on with its segment's
    /// number, and begins a new segment.
    ///
    /// With `has_begun` a log was begun here before: there is a segment after `applied`, and none is
    /// missing between two.
    pub fn open(
        disk: Arc<dyn Disk>,
        applied: u64,
        has_begun: bool,
        mut apply: impl FnMut(u64, Entry),
    ) -> io::Result<(Self, Replayed)> {
        let mut replayed = Replayed::default();
        let (mut numbers, mut spares) = (Vec::new(), Vec::new());
        for name in disk.list()? {
            match (name.strip_prefix("log-").map(str::parse), name.starts_with("spare-")) {
                (Some(Ok(number)), _) => numbers.push(number),
                (_, true) if disk.len(&name)? == SEGMENT_BYTES => spares.push(name),
                (_, true) => disk.remove(&name)?, // its making was cut short
                _ => {}
            }
        }
        numbers.sort_unstable();
        let last = numbers.last().copied().unwrap_or(0).max(applied);
        let (old, live): (Vec<u64>, Vec<u64>) = numbers.into_iter().partition(|n| *n <= applied);
        let mut before = None;
        let mut next = applied + 1;
        for &number in &live {
            if has_begun && number != next {
                replayed.damage.push(Damage { segment: segment_name(next), offset: None });
            }
            next = number + 1;
            let segment = Segment::read(&*disk, number)?;
            if let Some((previous, groups)) = before
                && previous + 1 == number
                && segment.head().is_some_and(|(before, _)| before > groups)
            {
                let segment = segment_name(previous);
                replayed.damage.push(Damage { segment, offset: None });
            }
            before = Some((number, segment.replay(has_begun, &mut replayed, &mut apply)));
        }
        if has_begun && live.is_empty() {
            replayed.damage.push(Damage { segment: segment_name(next), offset: None });
        }
        // All that was in `applied` and before it is in the database.
        let recovered = before.map_or(0, |(number, groups)| position(number, groups));
        let recovered = recovered.max(position(applied, u32::MAX));
        let spares = Arc::new(Spares { disk: Arc::clone(&disk), names: Mutex::new(spares) });
        for number in old {
            spares.recycle(number)?;
        }
        let number = last + 1;
        let groups_before =
            before.filter(|(n, _)| *n == last).map_or(UNKNOWN, |(_, groups)| groups);
        let (file, salt, length) =
            begin_segment(&*disk, &spares, number, groups_before, SEGMENT_BYTES)?;
        let log = Self {
            disk,
            spares,
            ended: live,
            number,
            salt,
            file,
            length,
            offset: BLOCK as u64,
            index: 0,
            appended: 0,
            recovered,
        };
        Ok((log, replayed))
    }

    /// Makes a group durable. On an error nothing more may be appended: whether the group is on
    /// disk is unknown.
    pub fn append(&mut self, group: &mut Group) -> io::Result<()> {
        let needed = group.bytes.len().next_multiple_of(BLOCK) as u64;
        if self.offset + needed > self.length {
            self.begin_next(needed)?;
        }
        let bytes = group.seal(self.salt, self.number, self.index);
        self.file.write_at(self.offset, bytes)?;
        self.file.sync()?;
        self.offset += needed;
        self.index += 1;
        self.appended += needed;
        Ok(())
    }

    /// How far it had got when it was opened, by what was found of it: at least as far as
    /// [`Log::position`] ever said, unless something is missing.
    pub fn recovered(&self) -> u64 {
        self.recovered
    }

    /// How far it has got: all up to there is durable. It never goes back.
    pub fn position(&self) -> u64 {
        self.recovered.max(position(self.number, self.index))
    }

    /// What appending a group takes of the room on the disk, bytes: a segment, if there is none to
    /// be used again.
    pub fn room_for(&self, group: &Group) -> u64 {
        let needed = group.bytes.len().next_multiple_of(BLOCK) as u64;
        match self.offset + needed > self.length {
            true if needed + BLOCK as u64 > SEGMENT_BYTES => needed + BLOCK as u64,
            true => self.room_for_next(),
            false => 0,
        }
    }

    /// The same of [`Log::rotate`].
    pub fn room_for_next(&self) -> u64 {
        if self.spares.names().is_empty() { SEGMENT_BYTES } else { 0 }
    }

    /// Begins a new segment; returns the numbers of all that ended since this was last called.
    /// They are the caller's to [`Spares::recycle`] once all they hold is in the database.
    pub fn rotate(&mut self) -> io::Result<Vec<u64>> {
        self.begin_next(0)?;
        self.appended = 0;
        Ok(std::mem::take(&mut self.ended))
    }

    /// Numbers of the segments that were read when the log was opened, for the caller to
    /// [`Spares::recycle`] once all they hold is in the database.
    pub fn take_ended(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ended)
    }

    /// Bytes appended since [`Log::rotate`] was last called: what a restart would read back.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// The segments to be used again: shared with whoever finds out which ones are.
    pub fn spares(&self) -> Arc<Spares> {
        Arc::clone(&self.spares)
    }

    fn begin_next(&mut self, needed: u64) -> io::Result<()> {
        let length = SEGMENT_BYTES.max(needed + BLOCK as u64);
        let (disk, next) = (&*self.disk, self.number + 1);
        (self.file, self.salt, self.length) =
            begin_segment(disk, &self.spares, next, self.index, length)?;
        self.ended.push(self.number);
        self.number += 1;
        (self.offset, self.index) = (BLOCK as u64, 0);
        Ok(())
    }
}

/// Segments to be used again.
#[derive(Debug)]
pub struct Spares {
    disk: Arc<dyn Disk>,
    names: Mutex<Vec<String>>,
}

impl Spares {
    /// Gives up a segment whose entries are all in the database.
    pub fn recycle(&self, number: u64) -> io::Result<()> {
        let (name, spare) = (segment_name(number), format!("spare-{number:020}"));
        let keep = {
            let names = self.names();
            names.len() < SPARES_MAX && self.disk.len(&name)? == SEGMENT_BYTES
        };
        if !keep {
            return self.disk.remove(&name);
        }
        self.disk.rename(&name, &spare)?;
        self.names().push(spare);
        Ok(())
    }

    /// Makes sure there is a segment ready, so that the writer need not wait for one to be made.
    pub fn prepare(&self) -> io::Result<()> {
        if !self.names().is_empty() {
            return Ok(());
        }
        let spare = new_spare();
        fill(&*self.disk.open(&spare)?, SEGMENT_BYTES)?;
        self.disk.sync_names()?;
        self.names().push(spare);
        Ok(())
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a file is one of the log's, by its name.
pub fn is_segment(name: &str) -> bool {
    name.starts_with("log-")
}

fn segment_name(number: u64) -> String {
    format!("log-{number:020}")
}

/// Zeros, on disk: later syncs then have no metadata to write. A block at a time: a longer write
/// makes the page cache keep the file in longer pieces, and each is then written whole again.
fn fill(file: &dyn DiskFile, length: u64) -> io::Result<()> {
    let zeros = [0; BLOCK];
    for at in (0..length).step_by(BLOCK) {
        file.write_at(at, &zeros)?;
    }
    file.set_len(length)?;
    file.sync()
}

fn begin_segment(
    disk: &dyn Disk,
    spares: &Spares,
    number: u64,
    groups_before: u32,
    length: u64,
) -> io::Result<(Box<dyn DiskFile>, u64, u64)> {
    let spare = if length == SEGMENT_BYTES { spares.names().pop() } else { None };
    let (spare, file) = match spare {
        Some(spare) => (spare.clone(), disk.open(&spare)?),
        None => {
            let spare = new_spare();
            let file = disk.open(&spare)?;
            fill(&*file, length)?;
            (spare, file)
        }
    };
    let salt = clock::random_u64();
    file.write_at(0, &segment_head(number, groups_before, salt))?;
    file.sync()?;
    // Not before: a segment without a header is a damaged one.
    let name = segment_name(number);
    disk.rename(&spare, &name)?;
    disk.sync_names()?;
    Ok((disk.open(&name)?, salt, length))
}

/// A name of its own: another thread may be about to take, and rename, one made before.
fn new_spare() -> String {
    format!("spare-{:016x}", clock::random_u64())
}

/// The first block of a segment.
fn segment_head(number: u64, groups_before: u32, salt: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(BLOCK);
    head.put_slice(SEGMENT_MAGIC);
    head.put_u8(FORMAT);
    head.put_u64(number);
    head.put_u32(groups_before);
    head.put_u64(salt);
    head.put_u32(crc32fast::hash(&head));
    head.resize(BLOCK, 0);
    head
}

/// A segment being read.
struct Segment {
    number: u64,
    bytes: Bytes,
}

impl Segment {
    fn read(disk: &dyn Disk, number: u64) -> io::Result<Self> {
        let file = disk.open(&segment_name(number))?;
        // What is counted as there has to be on the disk: the next segment's header says how many
        // groups this one has, and a group that was in the cache alone would be missed later.
        file.sync()?;
        file.forget_cached()?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_at(0, &mut bytes)?;
        Ok(Self { number, bytes: bytes.into() })
    }

    /// How many groups the segment before this one held (0: not known), and the salt of this one;
    /// nothing if its header is not, or no more, that of this segment.
    fn head(&self) -> Option<(u32, u64)> {
        let mut head = self.bytes.get(..HEAD_BYTES)?;
        let sound = crc32fast::hash(&head[..HEAD_BYTES - 4]) == (&head[HEAD_BYTES - 4..]).get_u32();
        let ours = head.copy_to_bytes(4)[..] == SEGMENT_MAGIC[..] && head.get_u8() == FORMAT;
        let (number, groups, salt) = (head.get_u64(), head.get_u32(), head.get_u64());
        let groups = if groups == UNKNOWN { 0 } else { groups };
        (sound && ours && number == self.number).then_some((groups, salt))
    }

    /// Whether some block begins as a group of this segment does.
    fn looks_used(&self) -> bool {
        let start = [&GROUP_MAGIC[..], &self.number.to_be_bytes()].concat();
        self.bytes.chunks(BLOCK).any(|block| block.starts_with(&start))
    }

    /// Applies its groups; returns how many there must have been. With `has_begun` it was given its
    /// name by a kvd that writes the header before.
    fn replay(
        &self,
        has_begun: bool,
        replayed: &mut Replayed,
        apply: &mut impl FnMut(u64, Entry),
    ) -> u32 {
        let (mut at, mut expected, mut unread) = (BLOCK, 0, None);
        let Some((_, salt)) = self.head() else {
            // Nothing in it can be proven.
            if has_begun || self.looks_used() {
                let segment = segment_name(self.number);
                replayed.damage.push(Damage { segment, offset: Some(0) });
            }
            return 0;
        };
        if (self.bytes.len() as u64) < SEGMENT_BYTES {
            // It was filled with zeros before it was begun.
            let segment = segment_name(self.number);
            replayed.damage.push(Damage { segment, offset: None });
        }
        while at + GROUP_HEAD_BYTES <= self.bytes.len() {
            match parse_group(&self.bytes.slice(at..), salt, self.number) {
                Some((index, entries, length)) if index >= expected => {
                    // Something readable after something that was not: that was no torn tail.
                    if let Some(offset) = unread.take() {
                        let segment = segment_name(self.number);
                        replayed.damage.push(Damage { segment, offset: Some(offset) });
                    }
                    entries.into_iter().for_each(|entry| apply(self.number, entry));
                    replayed.groups += 1;
                    expected = index + 1;
                    at += length;
                }
                _ => {
                    unread.get_or_insert(at as u64);
                    at += BLOCK;
                }
            }
        }
        expected
    }
}

/// A group of segment `number` at the start of `bytes`: its index, entries, and length in whole
/// blocks.
fn parse_group(bytes: &Bytes, salt: u64, number: u64) -> Option<(u32, Vec<Entry>, usize)> {
    let mut head = bytes.get(..GROUP_HEAD_BYTES)?;
    if head.copy_to_bytes(4)[..] != GROUP_MAGIC[..] || head.get_u64() != number {
        return None;
    }
    let (index, length, checksum) = (head.get_u32(), head.get_u32() as usize, head.get_u32());
    let end = GROUP_HEAD_BYTES.checked_add(length).filter(|end| *end <= bytes.len())?;
    let mut body = bytes.slice(GROUP_HEAD_BYTES..end);
    if group_checksum(salt, number, index, &body) != checksum {
        return None;
    }
    let mut entries = Vec::new();
    while !body.is_empty() {
        entries.push(parse_entry(&mut body)?);
    }
    Some((index, entries, end.next_multiple_of(BLOCK)))
}

fn parse_entry(body: &mut Bytes) -> Option<Entry> {
    if body.len() < ENTRY_HEAD_BYTES {
        return None;
    }
    let (kind, key, value) = (body.get_u8(), body.get_u16() as usize, body.get_u32() as usize);
    if body.len() < key.checked_add(value)? {
        return None;
    }
    // Copied: a slice would keep its whole segment in memory.
    let key = Bytes::copy_from_slice(&body.split_to(key));
    let value = Bytes::copy_from_slice(&body.split_to(value));
    match kind {
        RECORD => Some(Entry::Record { space: Space::Records, key, value }),
        HINT => Some(Entry::Record { space: Space::Hints, key, value }),
        FACT => Some(Entry::Fact { name: String::from_utf8(key.to_vec()).ok()?, value }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    fn record(key: &str, value: &[u8]) -> Entry {
        let key = Bytes::copy_from_slice(key.as_bytes());
        Entry::Record { space: Space::Records, key, value: Bytes::copy_from_slice(value) }
    }

    fn open(dir: &std::path::Path, applied: u64) -> (Log, Replayed, Vec<Entry>) {
        let mut entries = Vec::new();
        let disk = Arc::new(RealDisk::new(dir).unwrap());
        let (log, replayed) =
            Log::open(disk, applied, true, |_, entry| entries.push(entry)).expect("the log opens");
        (log, replayed, entries)
    }

    fn append(log: &mut Log, entries: &[(&str, &[u8])]) {
        let mut group = Group::default();
        entries.iter().for_each(|(key, value)| group.record(Space::Records, key.as_bytes(), value));
        log.append(&mut group).unwrap();
    }

    fn damage(path: &std::path::Path, offset: u64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    #[test]
    fn what_was_appended_is_replayed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        append(&mut log, &[("a", b"1"), ("b", b"2")]);
        let mut facts = Group::default();
        facts.fact("colour", b"blue");
        log.append(&mut facts).unwrap();
        append(&mut log, &[("a", &[7; 10_000])]);
        drop(log);
        let (_, replayed, entries) = open(dir.path(), 0);
        assert_eq!(replayed, Replayed { groups: 3, damage: vec![] });
        let colour = Entry::Fact { name: "colour".into(), value: "blue".into() };
        let long = record("a", &[7; 10_000]);
        assert_eq!(entries, [record("a", b"1"), record("b", b"2"), colour, long]);
    }

    #[test]
    fn a_segment_that_is_gone_or_cut_short_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        for key in ["a", "b", "c"] {
            let mut group = Group::default();
            group.record(Space::Records, key.as_bytes(), b"value");
            log.append(&mut group).unwrap();
            log.rotate().unwrap();
        }
        drop(log);
        let damaged = |replayed: Replayed| -> Vec<String> {
            replayed.damage.into_iter().map(|damage| damage.segment).collect()
        };
        let replay = |files: &[u64]| {
            let copy = tempfile::tempdir().unwrap();
            for number in files {
                let name = segment_name(*number);
                std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
            }
            (damaged(open(copy.path(), 0).1), copy)
        };
        assert_eq!(replay(&[1, 2, 3, 4]).0, [""; 0]);
        assert_eq!(replay(&[2, 3, 4]).0, [segment_name(1)]);
        assert_eq!(replay(&[1, 3, 4]).0, [segment_name(2)]);
        assert_eq!(replay(&[]).0, [segment_name(1)], "all of it");
        for length in [0, 3 * BLOCK as u64] {
            let copy = tempfile::tempdir().unwrap();
            let name = segment_name(1);
            std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
            let file = std::fs::File::options().write(true).open(copy.path().join(&name)).unwrap();
            file.set_len(length).unwrap();
            assert_eq!(damaged(open(copy.path(), 0).1), [name], "cut to {length}");
        }
    }

    /// A sample as those of `kvd/tests/formats.rs`: never changed.
    #[test]
    fn a_segment_of_format_1_is_read_and_written() {
        let sample = include_bytes!("../../tests/formats/log-segment-v1.bin");
        let mut group = Group::default();
        group.record(Space::Records, b"key", b"value");
        group.fact("colour", b"blue");
        let (number, salt) = (3, 0x0123_4567_89ab_cdef);
        let written = [&segment_head(number, UNKNOWN, salt)[..], group.seal(salt, number, 0)];
        assert!(written.concat() == sample, "another format, and so another version");

        let dir = tempfile::tempdir().unwrap();
        // As it is on the disk: filled with zeros to its end.
        let mut segment = sample.to_vec();
        segment.resize(SEGMENT_BYTES as usize, 0);
        std::fs::write(dir.path().join(segment_name(number)), segment).unwrap();
        let (_, replayed, entries) = open(dir.path(), number - 1);
        assert_eq!(replayed, Replayed { groups: 1, damage: vec![] });
        let colour = Entry::Fact { name: "colour".into(), value: "blue".into() };
        assert_eq!(entries, [record("key", b"value"), colour]);
    }

    #[test]
    fn a_torn_tail_is_cut_and_damage_before_it_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        for value in [b"1", b"2", b"3"] {
            append(&mut log, &[("k", value)]);
        }
        let number = log.number;
        drop(log);
        let path = dir.path().join(segment_name(number));
        damage(&path, 3 * BLOCK as u64 + 30);
        let (_, replayed, entries) = open(dir.path(), 0);
        assert_eq!((replayed.groups, replayed.damage.len(), entries.len()), (2, 0, 2));

        damage(&path, BLOCK as u64 + 30);
        let (_, replayed, entries) = open(dir.path(), 0);
        let at = Damage { segment: segment_name(number), offset: Some(BLOCK as u64) };
        assert_eq!((replayed.groups, replayed.damage), (1, vec![at]));
        assert_eq!(entries, [record("k", b"2")]);
    }

    #[test]
    fn a_segment_whose_header_is_damaged_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        append(&mut log, &[("k", b"1")]);
        let segment = segment_name(log.number);
        drop(log);
        damage(&dir.path().join(&segment), 9);
        let (_, replayed, entries) = open(dir.path(), 0);
        assert_eq!(
            (entries.len(), replayed.damage),
            (0, vec![Damage { segment, offset: Some(0) }])
        );
    }

    #[test]
    fn groups_missing_at_the_end_of_a_segment_that_ended_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        append(&mut log, &[("k", b"1")]);
        append(&mut log, &[("k", b"2")]);
        let ended = log.rotate().unwrap()[0];
        append(&mut log, &[("k", b"3")]);
        drop(log);
        damage(&dir.path().join(segment_name(ended)), 2 * BLOCK as u64 + 30);
        let (_, replayed, _) = open(dir.path(), 0);
        assert_eq!(replayed.damage, [Damage { segment: segment_name(ended), offset: None }]);
    }

    #[test]
    fn a_segment_used_again_shows_nothing_of_its_earlier_use() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        for _ in 0..5 {
            append(&mut log, &[("old", b"x")]);
        }
        let ended = log.rotate().unwrap()[0];
        log.spares().recycle(ended).unwrap();
        log.rotate().unwrap(); // takes the spare
        append(&mut log, &[("new", b"y")]);
        drop(log);
        assert!(!dir.path().join(segment_name(ended)).exists());
        let (_, replayed, entries) = open(dir.path(), ended);
        assert_eq!((entries, replayed.damage), (vec![record("new", b"y")], vec![]));
    }

    #[test]
    fn a_group_larger_than_a_segment_gets_one_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        let large = vec![9; SEGMENT_BYTES as usize + 5];
        append(&mut log, &[("large", &large)]);
        append(&mut log, &[("small", b"s")]);
        drop(log);
        let (_, _, entries) = open(dir.path(), 0);
        assert_eq!(entries, [record("large", &large), record("small", b"s")]);
    }

    #[test]
    fn segments_that_are_applied_are_not_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, _) = open(dir.path(), 0);
        append(&mut log, &[("k", b"1")]);
        let ended = log.rotate().unwrap()[0];
        append(&mut log, &[("k", b"2")]);
        drop(log);
        let (_, _, entries) = open(dir.path(), ended);
        assert_eq!(entries, [record("k", b"2")]);
    }
}
