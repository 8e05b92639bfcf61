//! Samples of every version of every format that outlives a process or leaves it: today's code
//! reads each to what it was made from, and writes the same bytes. A sample is never changed; a
//! change that breaks one needs a new version, with a sample of its own. Two formats are private to
//! their files, whose own tests hold their samples to the same: `kvd/src/storage/wal.rs` and
//! `kvd/src/storage/identity.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use kvd::cluster::value;
use kvd::dynamo::clock::Counter;
use kvd::dynamo::context::Sealer;
use kvd::dynamo::key::Key;
use kvd::dynamo::layout::{Change, Keyspace, Layout, Member, Mode};
use kvd::dynamo::node::{ClusterId, Incarnation, KeyspaceId, RequestId, Uid};
use kvd::dynamo::object::{Mine, Object, Record};
use kvd::dynamo::value::{Codec, Value};
use kvd::dynamo::version::{Actor, Clock, Dot};
use kvd::storage::record;
use std::path::Path;

/// The sample called `name`, which `written` has to be the same as.
fn sample(name: &str, written: &[u8]) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(name);
    let sample = std::fs::read(path).unwrap();
    assert_eq!(written.escape_ascii().to_string(), sample.escape_ascii().to_string(), "{name}");
    sample.into()
}

fn key() -> Key {
    Key::new(KeyspaceId::of("default"), Bytes::from_static(b"k")).unwrap()
}

fn dot(actor: u64, ms: u64) -> Dot {
    Dot { actor: Actor(actor), counter: Counter::at_ms(ms) }
}

fn record(value: Option<Value>, request: u128, checksum: u32) -> Record {
    Record { value, request: RequestId(request), checksum }
}

fn plain() -> Option<Value> {
    Some(Value::Plain("value".into()))
}

/// A clock that has seen all of actor 5 up to 9 ms, and of actor 6 one write.
fn clock() -> Clock {
    let mut clock = Clock::of_dots([dot(6, 20)]);
    clock.advance(dot(5, 9));
    clock
}

#[test]
fn object_version_1() {
    let siblings = [(dot(5, 9), record(plain(), 3, 0x1234_5678)), (dot(6, 20), record(None, 4, 7))];
    let object = Object::from_parts(clock(), siblings);
    assert_eq!(Object::decode(sample("object-v1.bin", &object.encode())), Ok(object));
}

/// A hundred times `a`: an LZ4 block made by hand, a Zstandard frame made by release 1.5.4. What
/// compresses today may make other bytes of them; it has to restore these.
fn compressed(codec: Codec) -> Option<Value> {
    let bytes: &[u8] = match codec {
        Codec::Lz4 => b"\x1fa\x01\x00\x4b\x50aaaaa",
        Codec::Zstd => b"\x28\xb5\x2f\xfd\x20\x64\x45\x00\x00\x10aa\x01\x00\x3f\x01\x2c",
    };
    Some(Value::Compressed { codec, bytes: Bytes::from_static(bytes), length: 100 })
}

#[test]
fn object_version_2() {
    let sibling = |actor, value| (dot(actor, 9), record(value, actor.into(), 7));
    let siblings = [
        sibling(1, compressed(Codec::Lz4)),
        sibling(2, compressed(Codec::Zstd)),
        sibling(3, None),
        sibling(4, plain()),
    ];
    let clock = Clock::of_dots(siblings.iter().map(|(dot, _)| *dot));
    let object = Object::from_parts(clock, siblings);
    let read = Object::decode(sample("object-v2.bin", &object.encode()));
    assert_eq!(read, Ok(object));
    for (_, record) in read.unwrap().live() {
        let shown = value::restore(record.value.as_ref().unwrap()).unwrap();
        assert!(shown == [b'a'; 100][..] || shown == "value", "{shown:?}");
    }
}

#[test]
fn record_format_1() {
    let place = record::stored_key(&key());
    let mut clock = Clock::new();
    clock.advance(dot(5, 9));
    let mine = Mine { incarnation: Incarnation(8), actor: Actor(5) };
    let object = Object::from_parts(clock, [(dot(5, 9), record(plain(), 3, 1))]);
    let object = object.with_mine(Some(mine));
    let sample = sample("record-v1.bin", &record::encode(&place, &object));
    assert_eq!(record::decode(&place, sample), Ok(object));
}

#[test]
fn context_version_1() {
    let sealer = Sealer::new(ClusterId(1), [7; 16]);
    let sample = sample("context-v1.bin", &sealer.seal(&key(), &clock()));
    assert_eq!(sealer.open(&key(), &sample), Ok(clock()));
}

fn keyspace(name: &str, n: u8, mode: Mode, compression: Option<Codec>) -> Keyspace {
    let (name, value_bytes_max) = (name.to_owned(), 1 << 20);
    Keyspace { name, n, r: 1, w: n, mode, compression, value_bytes_max, stamp: 0, generation: 0 }
}

fn layout() -> Layout {
    let member = |i: u8| Member {
        uid: Uid(u128::from(i) << 64),
        name: format!("n{i}"),
        address: format!("10.0.0.{i}:7400"),
        zone: format!("z{i}"),
        weight: u32::from(i),
    };
    let default = keyspace("default", 2, Mode::Sloppy, None);
    let first = Layout::genesis("test", vec![member(1), member(2), member(3)], default).unwrap();
    first.with_keyspace(keyspace("logs", 1, Mode::Strict, None)).unwrap()
}

/// What layouts of before the spread said is read as it was, and written as it was.
fn old_layout(name: &str, depth: u64, keyspaces: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(name);
    let sample = std::fs::read(path).unwrap();
    let layout = Layout::decode(&sample).unwrap();
    assert_eq!(layout.encode(), sample, "{name}");
    assert_eq!((layout.depth(), layout.members()), (depth, self::layout().members()));
    assert_eq!(layout.keyspaces().len(), keyspaces.len());
    assert!(keyspaces.iter().all(|name| layout.keyspace(name).is_some()));
}

#[test]
fn layout_version_1() {
    old_layout("layout-v1.bin", 2, &["default", "logs"]);
}

#[test]
fn layout_version_2() {
    old_layout("layout-v2.bin", 4, &["default", "logs", "lz4", "zstd"]);
}

#[test]
fn layout_version_3() {
    let first = layout();
    let mut heavier = first.members()[0].clone();
    heavier.weight = 9;
    let uid = first.members()[2].uid;
    let changes = [
        Change::Set(heavier),
        Change::Remove { uid, lost: true },
        Change::DropKeyspace(KeyspaceId::of("logs")),
        Change::Spread(2),
    ];
    let layout = first.changed(&changes, b"a note".to_vec(), None).unwrap();
    assert_eq!(Layout::decode(&sample("layout-v3.bin", &layout.encode())), Ok(layout));
}

#[test]
fn layout_version_4() {
    let anew = |name: &str| Change::CreateKeyspace(keyspace(name, 2, Mode::Strict, None));
    let drop_it = |layout: &Layout| {
        let id = layout.keyspace("logs").unwrap().id();
        layout.changed(&[Change::DropKeyspace(id)], Vec::new(), None).unwrap()
    };
    let dropped = drop_it(&layout());
    let again = dropped.changed(&[anew("logs")], Vec::new(), None).unwrap();
    let layout = drop_it(&again).changed(&[anew("logs")], Vec::new(), None).unwrap();
    assert_eq!(Layout::decode(&sample("layout-v4.bin", &layout.encode())), Ok(layout));
}
