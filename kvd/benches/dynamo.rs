//! What the decisions on every request's way cost: `cargo bench -p kvd`.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use bytes::Bytes;
use divan::{Bencher, black_box};
use kvd::dynamo::clock::{Counter, HybridClock};
use kvd::dynamo::compare::Descent;
use kvd::dynamo::context::Sealer;
use kvd::dynamo::key::Key;
use kvd::dynamo::layout::{Keyspace, Layout, Member, Mode};
use kvd::dynamo::merkle::{self, Digest, LEAVES, Leaf, Span};
use kvd::dynamo::node::{ClusterId, Incarnation, KeyspaceId, RequestId, Uid};
use kvd::dynamo::object::{Intent, Minter, Object, Record};
use kvd::dynamo::preference::preference;
use kvd::dynamo::value::Value;
use kvd::dynamo::version::{Actor, Clock};
use kvd::storage::record;
use proto::token::Token;

fn main() {
    divan::main();
}

fn key() -> Key {
    Key::new(KeyspaceId::of("default"), Bytes::from_static(b"user:00000000000000042")).unwrap()
}

fn layout(nodes: u128) -> Layout {
    let member = |i: u128| Member {
        uid: Uid(i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)),
        name: format!("n{i}"),
        address: format!("10.0.{}.{}:7400", i / 250, i % 250),
        zone: format!("z{}", i % 3),
        weight: 1 + i as u32 % 4,
    };
    let keyspace = Keyspace {
        name: "default".into(),
        n: 3,
        r: 2,
        w: 2,
        mode: Mode::Sloppy,
        compression: None,
        value_bytes_max: proto::VALUE_BYTES_MAX,
        stamp: 1,
        generation: 0,
    };
    Layout::genesis("bench", (1..=nodes).map(member).collect(), keyspace).unwrap()
}

/// An object of `siblings` values of 1 KiB, one by each of so many coordinators.
fn object(siblings: u64) -> Object {
    let mut all = Object::default();
    for i in 1..=siblings {
        let mut clock = HybridClock::resume(Counter::at_ms(1_700_000_000_000));
        all.merge(&put(None, Some(Clock::new()), i, &mut clock));
    }
    all
}

fn put(local: Option<Object>, context: Option<Clock>, by: u64, clock: &mut HybridClock) -> Object {
    let value = Some(Value::Plain(vec![7; 1024].into()));
    let record = Record { value, request: RequestId(u128::from(by)), checksum: 0 };
    let minter = Minter {
        incarnation: Incarnation(u128::from(by)),
        clock,
        now_ms: 1_700_000_000_000,
        fresh_actor: Actor(by),
    };
    Object::coordinate(local, &Intent { context, record }, minter).unwrap().object
}

#[divan::bench(args = [16, 64, 1024])]
fn token(bencher: Bencher<'_, '_>, key_bytes: usize) {
    let key = vec![b'k'; key_bytes];
    bencher.bench_local(|| Token::of(black_box(&key)));
}

#[divan::bench(args = [3, 12, 100])]
fn locate(bencher: Bencher<'_, '_>, nodes: u128) {
    let layout = layout(nodes);
    let mut token = Token::of(b"k");
    bencher.bench_local(|| {
        token.0 = token.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        preference(black_box(&layout), 3, token)
    });
}

#[divan::bench(args = [3, 12, 100])]
fn plan(nodes: u128) -> Layout {
    layout(nodes)
}

#[divan::bench(args = [1, 3])]
fn merge(bencher: Bencher<'_, '_>, siblings: u64) {
    let (a, b) = (object(siblings), object(siblings + 1));
    bencher.with_inputs(|| a.clone()).bench_local_values(|mut a| {
        a.merge(black_box(&b));
        a
    });
}

#[divan::bench]
fn coordinate(bencher: Bencher<'_, '_>) {
    let mut clock = HybridClock::resume(Counter::default());
    let local = object(1);
    let context = local.clock().clone();
    bencher
        .with_inputs(|| (local.clone(), context.clone()))
        .bench_local_values(|(local, context)| put(Some(local), Some(context), 9, &mut clock));
}

#[divan::bench(args = [1, 3])]
fn encode(bencher: Bencher<'_, '_>, siblings: u64) {
    let object = object(siblings);
    bencher.bench_local(|| black_box(&object).encode());
}

#[divan::bench(args = [1, 3])]
fn decode(bencher: Bencher<'_, '_>, siblings: u64) {
    let bytes = Bytes::from(object(siblings).encode());
    bencher.bench_local(|| Object::decode(black_box(bytes.clone())).unwrap());
}

#[divan::bench]
fn record_encode_1_kib(bencher: Bencher<'_, '_>) {
    let (key, object) = (record::stored_key(&key()), object(1));
    bencher.bench_local(|| record::encode(black_box(&key), black_box(&object)));
}

#[divan::bench]
fn record_decode_1_kib(bencher: Bencher<'_, '_>) {
    let key = record::stored_key(&key());
    let bytes = Bytes::from(record::encode(&key, &object(1)));
    bencher.bench_local(|| record::decode(black_box(&key), bytes.clone()).unwrap());
}

#[divan::bench]
fn context_seal(bencher: Bencher<'_, '_>) {
    let (sealer, key, clock) =
        (Sealer::new(ClusterId(1), [7; 16]), key(), object(3).clock().clone());
    bencher.bench_local(|| sealer.seal(black_box(&key), black_box(&clock)));
}

#[divan::bench]
fn context_open(bencher: Bencher<'_, '_>) {
    let (sealer, key) = (Sealer::new(ClusterId(1), [7; 16]), key());
    let context = Bytes::from(sealer.seal(&key, object(3).clock()));
    bencher.bench_local(|| sealer.open(black_box(&key), &context).unwrap());
}

/// What a put adds to its leaf: the digest of the record it was, and of the one it is, cost as much.
#[divan::bench(args = [1, 3])]
fn merkle_digest(bencher: Bencher<'_, '_>, siblings: u64) {
    let object = object(siblings);
    bencher.bench(|| Digest::of(black_box(b"user:0000000000000000000"), black_box(&object)));
}

/// Two replicas of a million keys, of which so many differ, from the partitions they share down to
/// the leaves: the part of a comparison that is not disk or network.
#[divan::bench(args = [0, 10, 10_000])]
fn merkle_compare_a_million(bencher: Bencher<'_, '_>, differing: u32) {
    const KEYS: u32 = 1_000_000;
    let mut ours = vec![Leaf::default(); LEAVES as usize];
    let mut theirs = ours.clone();
    for i in 0..KEYS {
        // As good as hashed.
        let digest = Digest(u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let place = (digest.0 >> 110) as usize;
        ours[place].add(digest);
        if i >= differing {
            theirs[place].add(digest);
        }
    }
    let place = |leaves: Vec<Leaf>| (0..LEAVES).zip(leaves).collect::<Vec<(u32, Leaf)>>();
    let (ours, theirs) = (place(ours), place(theirs));
    let partitions: Vec<Span> = (0..256).map(|p| Span::of_partition(p, 256)).collect();
    bencher.bench(|| {
        let mut descent = Descent::new(partitions.clone());
        let mut found = 0;
        loop {
            let asked = descent.ask();
            let (Some(first), Some(last)) = (asked.first(), asked.last()) else { break };
            // As the store walks: from the first leaf asked for to the last.
            let walked = first.first as usize..last.end() as usize;
            let sums = |side: &[(u32, Leaf)]| merkle::sums(&asked, side[walked.clone()].to_vec());
            found += descent.tell(&asked, &sums(&ours), &sums(&theirs)).len();
        }
        found
    });
}
