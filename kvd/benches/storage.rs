//! The store beside redb as its own log and fjall: `cargo bench -p kvd --bench storage`.
//!
//! Durable groups of random 1 KiB puts over a set larger than the caches, then point reads. Every
//! engine does what a replica must: read the key's object, merge, write. The machine is shared:
//! compare the columns of one run, not runs.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use bytes::Bytes;
use kvd::dynamo::clock::Counter;
use kvd::dynamo::key::Key;
use kvd::dynamo::node::{KeyspaceId, RequestId};
use kvd::dynamo::object::{Object, Record};
use kvd::dynamo::value::Value;
use kvd::dynamo::version::{Actor, Clock, Dot};
use kvd::storage::disk::RealDisk;
use kvd::storage::identity::Directory;
use kvd::storage::{Store, StoreOptions, record};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const KEYS: u64 = 200_000;
const CACHE_BYTES: usize = 64 << 20;
const RUN: Duration = Duration::from_secs(3);
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

/// Something that makes a group of puts durable, and reads.
trait Engine {
    fn put(&mut self, keys: &[u64], version: u64);
    fn get(&self, key: u64) -> bool;
    /// Does what it has put off.
    fn settle(&self) {}
}

fn key(i: u64) -> Key {
    Key::new(KeyspaceId::of("default"), Bytes::from(format!("user:{i:019}"))).unwrap()
}

/// The same bytes for every engine: what a replica stores for a 1 KiB value.
fn object(version: u64) -> Object {
    let dot = Dot { actor: Actor(7), counter: Counter(version) };
    let mut clock = Clock::new();
    clock.advance(dot);
    let mut value = vec![0; 1024];
    let mut state = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in value.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    let value = Some(Value::Plain(value.into()));
    let record = Record { value, request: RequestId(version.into()), checksum: 0 };
    Object::from_parts(clock, [(dot, record)])
}

fn stored_key(i: u64) -> Vec<u8> {
    record::stored_key(&key(i))
}

/// The old record, its checksum proven, with the new object merged in; as a record.
fn merged(old: Option<Bytes>, new: &Object) -> Vec<u8> {
    let mut object = old.map_or_else(Object::default, |bytes| record::decode(&[], bytes).unwrap());
    object.merge(new);
    record::encode(&[], &object)
}

struct Ours {
    store: Store,
    _directory: Directory,
}

impl Ours {
    fn open(path: &Path) -> Self {
        let mut directory = Directory::open(path).unwrap();
        let disk = Arc::new(RealDisk::new(&path.join("store")).unwrap());
        let options = StoreOptions {
            cache_bytes: CACHE_BYTES,
            write_buffer_bytes: 32 << 20,
            hint_bytes_max: 1 << 30,
        };
        let store = Store::open(&mut directory, disk, &options).unwrap();
        Self { store, _directory: directory }
    }
}

impl Engine for Ours {
    fn put(&mut self, keys: &[u64], version: u64) {
        let object = object(version);
        let waiting: Vec<_> =
            keys.iter().map(|k| self.store.merge(key(*k), object.clone())).collect();
        waiting.into_iter().for_each(|synced| synced.blocking_recv().unwrap().unwrap());
    }

    fn get(&self, i: u64) -> bool {
        self.store.read(&key(i)).unwrap().is_some()
    }

    fn settle(&self) {
        self.store.checkpoint().blocking_recv().unwrap().unwrap();
    }
}

struct Redb(redb::Database);

impl Redb {
    fn open(path: &Path) -> Self {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create(path.join("redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(TABLE).unwrap();
        transaction.commit().unwrap();
        Self(database)
    }
}

impl Engine for Redb {
    fn put(&mut self, keys: &[u64], version: u64) {
        let new = object(version);
        let transaction = self.0.begin_write().unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            for i in keys {
                let stored = stored_key(*i);
                let old = table.get(&stored[..]).unwrap();
                let old = old.map(|bytes| Bytes::copy_from_slice(bytes.value()));
                let merged = merged(old, &new);
                table.insert(&stored[..], &merged[..]).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    fn get(&self, i: u64) -> bool {
        let table = self.0.begin_read().unwrap().open_table(TABLE).unwrap();
        let stored = stored_key(i);
        let found = table.get(&stored[..]).unwrap();
        found
            .is_some_and(|bytes| record::decode(&[], Bytes::copy_from_slice(bytes.value())).is_ok())
    }
}

struct Fjall {
    database: fjall::Database,
    keyspace: fjall::Keyspace,
}

impl Fjall {
    fn open(path: &Path) -> Self {
        let database = fjall::Database::builder(path.join("fjall"))
            .cache_size(CACHE_BYTES as u64)
            .open()
            .unwrap();
        let keyspace = database.keyspace("records", fjall::KeyspaceCreateOptions::default).unwrap();
        Self { database, keyspace }
    }
}

impl Engine for Fjall {
    fn put(&mut self, keys: &[u64], version: u64) {
        let new = object(version);
        let mut batch = self.database.batch().durability(Some(fjall::PersistMode::SyncData));
        for i in keys {
            let stored = stored_key(*i);
            let old = self.keyspace.get(&stored).unwrap();
            let merged = merged(old.map(|bytes| Bytes::copy_from_slice(&bytes)), &new);
            batch.insert(&self.keyspace, stored, &merged[..]);
        }
        batch.commit().unwrap();
    }

    fn get(&self, i: u64) -> bool {
        let found = self.keyspace.get(stored_key(i)).unwrap();
        found.is_some_and(|bytes| record::decode(&[], Bytes::copy_from_slice(&bytes)).is_ok())
    }
}

#[derive(Clone, Copy)]
struct Used {
    cpu_us: u64,
    written: u64,
}

fn used() -> Used {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    Used { cpu_us: ticks * 10_000, written: written.parse().unwrap() }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % KEYS
}

fn measure(name: &str, engine: &mut dyn Engine) {
    let all: Vec<u64> = (0..KEYS).collect();
    all.chunks(500).for_each(|chunk| engine.put(chunk, 1));
    engine.settle();
    let (mut state, mut version) = (0x2545_f491_4f6c_dd1d, 2);
    for group in [1, 8, 32, 128] {
        let (before, started) = (used(), Instant::now());
        let mut latencies = Vec::new();
        while started.elapsed() < RUN {
            let keys: Vec<u64> = (0..group).map(|_| random(&mut state)).collect();
            let at = Instant::now();
            engine.put(&keys, version);
            latencies.push(at.elapsed().as_micros() as u64);
            version += 1;
        }
        let took = started.elapsed();
        engine.settle(); // counted: what a put costs later is a cost of the put
        let after = used();
        let puts = latencies.len() * group;
        latencies.sort_unstable();
        let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
        println!(
            "{name:<6} put x{group:<4} {:>9.0} puts/s {:>8} us p50 {:>8} us p99 {:>7.1} CPU us/put {:>7.1} B written/B",
            puts as f64 / took.as_secs_f64(),
            quantile(0.5),
            quantile(0.99),
            (after.cpu_us - before.cpu_us) as f64 / puts as f64,
            (after.written - before.written) as f64 / (puts as f64 * 1100.0),
        );
    }
    for (what, span) in [("hot", 10_000), ("all", KEYS)] {
        for i in 0..span {
            engine.get(i);
        }
        let (before, started, mut gets) = (used(), Instant::now(), 0);
        while started.elapsed() < RUN {
            for _ in 0..1000 {
                assert!(engine.get(random(&mut state) % span));
            }
            gets += 1000;
        }
        let cpu = used().cpu_us - before.cpu_us;
        println!(
            "{name:<6} get {what:<5} {:>9.0} gets/s {:>38.2} CPU us/get",
            gets as f64 / started.elapsed().as_secs_f64(),
            cpu as f64 / gets as f64
        );
    }
}

fn main() {
    let dir = tempfile::tempdir_in(
        std::env::var_os("TMPDIR").map_or("/tmp".into(), std::path::PathBuf::from),
    )
    .unwrap();
    println!("{KEYS} keys of 1 KiB, caches of {} MiB", CACHE_BYTES >> 20);
    // `cargo bench -p kvd --bench storage -- kvd redb` runs these two alone.
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &&str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    for name in ["kvd", "redb", "fjall"].into_iter().filter(wanted) {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        match name {
            "kvd" => measure(name, &mut Ours::open(&path)),
            "redb" => measure(name, &mut Redb::open(&path)),
            _ => measure(name, &mut Fjall::open(&path)),
        }
        std::fs::remove_dir_all(&path).unwrap();
    }
}
