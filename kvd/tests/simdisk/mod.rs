//! A disk that loses power: every file has what is on the platter and what is in the cache.
//!
//! What was not synced is lost or kept sector by sector, names are kept up to any point in the
//! order they changed in, a length may stay behind, a cache may be written back at any time. A
//! sync that fails leaves its sectors clean and lost, as Linux does. Nothing here reads a clock or
//! the system's random source: the same calls from one thread give the same disk.

use kvd::storage::disk::{Disk, DiskFile, Room, write_zeros};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes whole or not at all, bytes.
const SECTOR: usize = 512;

/// What is shared between the two images of a file until it is written, bytes.
const PAGE: usize = 4096;

const SECTORS_OF_PAGE: usize = PAGE / SECTOR;

/// One write in so many makes the cache write something back by itself.
const WRITE_BACK_ONE_IN: u64 = 16;

/// Errors of the operating system.
pub(crate) const EIO: i32 = 5;
/// No room.
pub(crate) const ENOSPC: i32 = 28;
/// No error of the operating system: whoever calls panics.
pub(crate) const PANIC: i32 = -1;

/// A small random source that a seed determines (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The source that `seed` determines.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `from`.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// A handle on the disk; all clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<usize, File>,
    files_made: usize,
    names: BTreeMap<String, usize>,
    names_durable: BTreeMap<String, usize>,
    /// What was done to names since they were last synced, in order.
    names_changed: Vec<NameChange>,
    rng: Option<Rng>,
    dead: bool,
    lies: bool,
    /// Operations that change something, counted; the power fails at the one numbered so.
    operations: u64,
    crash_at: Option<u64>,
    faults: Vec<Fault>,
    /// One of them has been met.
    hurt: bool,
    capacity: Option<u64>,
}

enum NameChange {
    Made(String, usize),
    Renamed(String, String),
    Removed(String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Read,
    Write,
    Sync,
}

struct Fault {
    operation: Operation,
    /// In the names of the files that are hurt.
    name_part: String,
    /// Operations that still go well.
    skip: u64,
    errno: i32,
}

/// A file, whatever its name.
#[derive(Default)]
struct File {
    durable: Image,
    cached: Image,
    /// Sectors written since the last sync: a bit each, by page.
    dirty: BTreeMap<usize, u8>,
    /// Lengths since the last sync. A crash leaves one of them.
    lengths: Vec<u64>,
}

#[derive(Clone, Default)]
struct Image {
    len: u64,
    /// `None`: a hole, which reads as zeros and takes no room.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl SimDisk {
    /// An empty disk. The seed decides what its cache writes back by itself and how writes tear.
    pub(crate) fn new(seed: u64) -> Self {
        let state = State { rng: Some(Rng::new(seed)), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The power fails. What is left is the new disk; this one answers nothing but errors.
    pub(crate) fn power_loss(&self, rng: &mut Rng) -> Self {
        let mut state = self.state();
        let keep_of_all = *rng.pick(&[0, 0, 10, 50, 90, 100, 100]);
        let each_its_own = rng.one_in(3);
        let changes = std::mem::take(&mut state.names_changed);
        let kept = match rng.below(3) {
            0 => 0,
            1 => changes.len(),
            _ => rng.below(changes.len() as u64 + 1) as usize,
        };
        let mut names = std::mem::take(&mut state.names_durable);
        changes.into_iter().take(kept).for_each(|change| change.apply(&mut names));
        let mut files = std::mem::take(&mut state.files);
        files.retain(|id, _| names.values().any(|named| named == id));
        for file in files.values_mut() {
            let keep = if each_its_own { *rng.pick(&[0, 50, 100]) } else { keep_of_all };
            file.lose_power(rng, keep);
        }
        state.become_new(files, names.clone(), names, Vec::new())
    }

    /// The process is killed: nothing is lost, nothing is synced. This handle is of the old
    /// process, and answers nothing but errors.
    pub(crate) fn restart(&self) -> Self {
        let mut state = self.state();
        let files = std::mem::take(&mut state.files);
        let names = std::mem::take(&mut state.names);
        let durable = std::mem::take(&mut state.names_durable);
        let changed = std::mem::take(&mut state.names_changed);
        state.become_new(files, names, durable, changed)
    }

    /// From now on syncs say they did it, and do nothing.
    pub(crate) fn lie_about_syncs(&self, lies: bool) {
        self.state().lies = lies;
    }

    /// Lets `operations` more succeed that write, sync, cut or name; then the power fails in the
    /// middle of one. A write is torn between two of its sectors.
    pub(crate) fn crash_after(&self, operations: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.operations + operations + 1);
    }

    /// Takes back [`SimDisk::crash_after`] and all faults; what has happened, has.
    pub(crate) fn hurt_no_more(&self) {
        let mut state = self.state();
        state.crash_at = None;
        state.faults.clear();
        state.capacity = None;
    }

    /// Whether the power has failed, or a fault was met.
    pub(crate) fn is_hurt(&self) -> bool {
        let state = self.state();
        state.dead || state.hurt
    }

    /// After `skip` more writes to files named so, each fails, and what it wrote is anyone's
    /// guess.
    pub(crate) fn fail_writes(&self, name_part: &str, skip: u64, errno: i32) {
        self.fault(Operation::Write, name_part, skip, errno);
    }

    /// After `skip` more syncs of files named so, each fails, and what was to be synced is lost.
    /// An empty `name_part` is in every name, and means the syncs of names too.
    pub(crate) fn fail_syncs(&self, name_part: &str, skip: u64, errno: i32) {
        self.fault(Operation::Sync, name_part, skip, errno);
    }

    /// Reads of files named so fail.
    pub(crate) fn fail_reads(&self, name_part: &str) {
        self.fault(Operation::Read, name_part, 0, EIO);
    }

    /// What all files together may take, bytes.
    pub(crate) fn capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    /// What all files together take, bytes. Holes take none.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Turns one bit over, on the platter and in the cache.
    pub(crate) fn flip_bit(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        let id = state.names[name];
        let file = state.files.get_mut(&id).expect("a name is of a file");
        for image in [&mut file.durable, &mut file.cached] {
            let mut byte = [0];
            if offset < image.len {
                image.read(offset, &mut byte);
                image.write(offset, &[byte[0] ^ 1 << bit]);
            }
        }
    }

    /// What a file holds now.
    pub(crate) fn bytes_of(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        let file = &state.files[&state.names[name]];
        let mut bytes = vec![0; file.cached.len as usize];
        file.cached.read(0, &mut bytes);
        bytes
    }

    fn fault(&self, operation: Operation, name_part: &str, skip: u64, errno: i32) {
        let name_part = name_part.to_owned();
        self.state().faults.push(Fault { operation, name_part, skip, errno });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl State {
    fn become_new(
        &mut self,
        files: BTreeMap<usize, File>,
        names: BTreeMap<String, usize>,
        names_durable: BTreeMap<String, usize>,
        names_changed: Vec<NameChange>,
    ) -> SimDisk {
        self.dead = true;
        SimDisk(Arc::new(Mutex::new(State {
            files,
            files_made: self.files_made,
            names,
            names_durable,
            names_changed,
            rng: self.rng.take(),
            lies: self.lies,
            capacity: self.capacity,
            ..State::default()
        })))
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power failed")) } else { Ok(()) }
    }

    /// Counts an operation that changes something. Whether the power fails in the middle of it.
    fn begin(&mut self) -> io::Result<bool> {
        self.alive()?;
        self.operations += 1;
        self.dead = self.crash_at == Some(self.operations);
        Ok(self.dead)
    }

    /// As [`State::begin`], for what happens whole or not at all.
    fn begin_whole(&mut self) -> io::Result<()> {
        self.begin()?;
        self.alive()
    }

    /// Whether an operation on a file, or with `None` on the names, meets a fault.
    fn fault(&mut self, operation: Operation, id: Option<usize>) -> io::Result<()> {
        let (names, faults) = (&self.names, &mut self.faults);
        for fault in faults.iter_mut().filter(|fault| fault.operation == operation) {
            let part = &fault.name_part;
            let mut named = names.iter().filter(|(_, of)| Some(**of) == id);
            if !part.is_empty() && !named.any(|(name, _)| name.contains(part)) {
                continue;
            }
            if fault.skip == 0 {
                self.hurt = true;
                assert!(fault.errno != PANIC, "a panic that a test asked for");
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
            fault.skip -= 1;
        }
        Ok(())
    }

    fn file(&mut self, id: usize) -> &mut File {
        self.files.get_mut(&id).expect("a file stays while its disk does")
    }

    fn random(&mut self) -> &mut Rng {
        self.rng.as_mut().expect("a living disk has its source")
    }

    fn used_bytes(&self) -> u64 {
        let pages = |id| self.files[id].cached.pages.iter().flatten().count();
        self.names.values().map(|id| (pages(id) * PAGE) as u64).sum()
    }

    /// How much of a write of `length` bytes there is room for.
    fn room(&self, id: usize, offset: u64, length: usize) -> usize {
        let Some(capacity) = self.capacity else { return length };
        let mut free = capacity.saturating_sub(self.used_bytes()) / PAGE as u64;
        let pages = &self.files[&id].cached.pages;
        for page in offset as usize / PAGE..(offset as usize + length).div_ceil(PAGE) {
            if pages.get(page).is_none_or(Option::is_none) {
                if free == 0 {
                    return (page * PAGE).saturating_sub(offset as usize);
                }
                free -= 1;
            }
        }
        length
    }

    /// What the cache does when nobody asked.
    fn write_back_some(&mut self, id: usize) {
        if !self.random().one_in(WRITE_BACK_ONE_IN) {
            return;
        }
        let mask = self.random().bits() as u8;
        let from = self.random().bits() as usize;
        let file = self.file(id);
        let Some(last) = file.dirty.last_key_value().map(|(page, _)| *page) else { return };
        let page = file.dirty.range(from % (last + 1)..).next().map(|(page, _)| *page);
        if let Some(page) = page {
            file.write_back(page, mask);
        }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Made(name, id) => {
                names.insert(name, id);
            }
            Self::Renamed(from, to) => {
                let id = names.remove(&from).expect("changes are kept in order");
                names.insert(to, id);
            }
            Self::Removed(name) => {
                names.remove(&name);
            }
        }
    }
}

impl File {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let (old, new) = (self.cached.len, offset + data.len() as u64);
        if new > old {
            // A write grows a file as it goes on.
            let between = (old + (new - old) / 2).next_multiple_of(SECTOR as u64).min(new);
            self.lengths.extend([between, new]);
        }
        self.cached.write(offset, data);
        self.mark_dirty(offset, offset + data.len() as u64);
    }

    fn set_len(&mut self, len: u64) {
        // What is cut away may still be on the platter after a crash.
        self.mark_dirty(len, self.cached.len);
        self.lengths.push(len);
        self.cached.set_len(len);
    }

    fn mark_dirty(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (first, last) = (from as usize / SECTOR, (to as usize - 1) / SECTOR);
        for page in first / SECTORS_OF_PAGE..=last / SECTORS_OF_PAGE {
            let start = first.saturating_sub(page * SECTORS_OF_PAGE);
            let end = (last - page * SECTORS_OF_PAGE).min(SECTORS_OF_PAGE - 1);
            let mask = (0xff_u8 << start) & (0xff_u8 >> (SECTORS_OF_PAGE - 1 - end));
            *self.dirty.entry(page).or_default() |= mask;
        }
    }

    fn sync(&mut self) {
        for (page, mask) in std::mem::take(&mut self.dirty) {
            copy_sectors(&self.cached, &mut self.durable, page, mask);
        }
        self.lengths.clear();
        self.durable.set_len(self.cached.len);
    }

    /// What is clean is read from the platter again.
    fn forget_cached(&mut self) {
        for page in 0..self.cached.pages.len() {
            let dirty = self.dirty.get(&page).copied().unwrap_or(0);
            copy_sectors(&self.durable, &mut self.cached, page, !dirty);
        }
    }

    /// Writes the dirty ones of these sectors back, without a promise.
    fn write_back(&mut self, page: usize, mask: u8) {
        let Some(dirty) = self.dirty.get_mut(&page) else { return };
        let mask = mask & *dirty;
        *dirty &= !mask;
        if *dirty == 0 {
            self.dirty.remove(&page);
        }
        copy_sectors(&self.cached, &mut self.durable, page, mask);
    }

    fn lose_power(&mut self, rng: &mut Rng, keep_percent: u64) {
        for (page, dirty) in std::mem::take(&mut self.dirty) {
            let kept = (0..SECTORS_OF_PAGE).filter(|_| rng.below(100) < keep_percent);
            let mask = kept.fold(0, |mask, sector| mask | 1 << sector);
            copy_sectors(&self.cached, &mut self.durable, page, mask & dirty);
        }
        let lengths = std::mem::take(&mut self.lengths);
        let len = match rng.below(3) {
            0 => self.durable.len,
            1 => self.cached.len,
            _ if lengths.is_empty() => self.durable.len,
            _ => *rng.pick(&lengths),
        };
        self.durable.set_len(len);
        self.cached = self.durable.clone();
    }
}

impl Image {
    fn read(&self, offset: u64, out: &mut [u8]) {
        let mut offset = offset as usize;
        let mut out = out;
        while !out.is_empty() {
            let (page, at) = (offset / PAGE, offset % PAGE);
            let (now, rest) = out.split_at_mut(out.len().min(PAGE - at));
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(page) => now.copy_from_slice(&page[at..at + now.len()]),
                None => now.fill(0),
            }
            offset += now.len();
            out = rest;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        let (mut offset, mut data) = (offset as usize, data);
        while !data.is_empty() {
            let (page, at) = (offset / PAGE, offset % PAGE);
            let (now, rest) = data.split_at(data.len().min(PAGE - at));
            let page = self.page(page);
            if at == 0 && now == zeros().as_slice() {
                *page = Some(Arc::clone(zeros())); // whole files are filled so
            } else {
                let bytes = Arc::make_mut(page.get_or_insert_with(|| Arc::clone(zeros())));
                bytes[at..at + now.len()].copy_from_slice(now);
            }
            offset += now.len();
            data = rest;
        }
    }

    fn set_len(&mut self, len: u64) {
        // Sectors may have been written back from beyond the end.
        self.pages.truncate((len as usize).div_ceil(PAGE));
        let at = len as usize % PAGE;
        if at != 0
            && let Some(Some(page)) = self.pages.get_mut(len as usize / PAGE)
        {
            Arc::make_mut(page)[at..].fill(0);
        }
        self.len = len;
    }

    fn page(&mut self, page: usize) -> &mut Option<Arc<[u8; PAGE]>> {
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        &mut self.pages[page]
    }
}

/// Puts what `from` has in these sectors of a page into `to`. Lengths stay.
fn copy_sectors(from: &Image, to: &mut Image, page: usize, mask: u8) {
    let source = from.pages.get(page).and_then(Option::as_ref);
    match mask {
        0 => {}
        u8::MAX => *to.page(page) = source.cloned(),
        _ => {
            let source = source.unwrap_or(zeros());
            let target = to.page(page).get_or_insert_with(|| Arc::clone(zeros()));
            let target = Arc::make_mut(target);
            for sector in (0..SECTORS_OF_PAGE).filter(|sector| mask >> sector & 1 == 1) {
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                target[bytes.clone()].copy_from_slice(&source[bytes]);
            }
        }
    }
}

fn zeros() -> &'static Arc<[u8; PAGE]> {
    static ZEROS: std::sync::OnceLock<Arc<[u8; PAGE]>> = std::sync::OnceLock::new();
    ZEROS.get_or_init(|| Arc::new([0; PAGE]))
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.alive()?;
        let id = match state.names.get(name) {
            Some(id) => *id,
            None => {
                state.begin_whole()?;
                state.files_made += 1;
                let id = state.files_made;
                state.files.insert(id, File::default());
                state.names.insert(name.to_owned(), id);
                state.names_changed.push(NameChange::Made(name.to_owned(), id));
                id
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin_whole()?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), id);
        state.names_changed.push(NameChange::Renamed(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin_whole()?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.names_changed.push(NameChange::Removed(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        state.begin_whole()?;
        state.fault(Operation::Sync, None)?;
        if !state.lies {
            state.names_durable = state.names.clone();
            state.names_changed.clear();
        }
        Ok(())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        let state = self.state();
        state.alive()?;
        let id = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[id].cached.len)
    }

    fn room(&self) -> Room {
        let state = self.state();
        let known = |total_bytes: u64| Room {
            total_bytes,
            free_bytes: total_bytes.saturating_sub(state.used_bytes()),
        };
        state.capacity.map_or(Room::default(), known)
    }

    fn place(&self) -> String {
        "a simulated disk".to_owned()
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.alive()?;
        Ok(state.file(self.id).cached.len)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.alive()?;
        state.fault(Operation::Read, Some(self.id))?;
        let file = state.file(self.id);
        if offset + out.len() as u64 > file.cached.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.cached.read(offset, out);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let torn = state.begin()?;
        let failed = state.fault(Operation::Write, Some(self.id));
        let room = state.room(self.id, offset, data.len());
        let mut written = room;
        if torn || failed.is_err() {
            // Whole sectors, from the first on.
            let sectors = state.random().below((data.len() / SECTOR) as u64 + 1) as usize;
            let to_sector = SECTOR - offset as usize % SECTOR;
            let prefix = if sectors == 0 { 0 } else { to_sector + (sectors - 1) * SECTOR };
            written = written.min(prefix);
        }
        state.file(self.id).write(offset, &data[..written]);
        state.alive()?;
        failed?;
        if room < data.len() {
            state.hurt = true;
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        state.write_back_some(self.id);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin_whole()?;
        state.file(self.id).set_len(len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin_whole()?;
        let failed = state.fault(Operation::Sync, Some(self.id));
        let lies = state.lies;
        let file = state.file(self.id);
        if failed.is_err() {
            file.dirty.clear(); // marked clean, never written: so does Linux
        } else if !lies {
            file.sync();
        }
        failed
    }

    fn forget_cached(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.alive()?;
        state.file(self.id).forget_cached();
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        write_zeros(self, len)
    }
}
