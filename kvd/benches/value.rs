//! What compressing and restoring a value costs. Run with `cargo bench -p kvd --bench value`.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use kvd::cluster::value::{compress, restore};
use kvd::dynamo::value::Codec;

/// Values of 1 KiB, 64 KiB and 1 MiB.
const LENGTHS: [usize; 3] = [1 << 10, 64 << 10, 1 << 20];

fn main() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        for length in LENGTHS {
            let kept = compress(codec, &records(length)).stored().len();
            println!("{codec:?}: {length} bytes of records become {kept}");
        }
    }
    divan::main();
}

/// A step of a generator of numbers that look random.
fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    *state >> 33
}

/// JSON as services keep it: names that repeat, numbers that do not.
fn records(length: usize) -> Bytes {
    let (mut text, mut state) = (String::new(), 7);
    while text.len() < length {
        let (user, amount, at) = (step(&mut state), step(&mut state) % 10_000, step(&mut state));
        text += &format!(r#"{{"user_id":{user},"state":"active","amount":{amount},"at":{at}}},"#);
    }
    text.truncate(length);
    text.into()
}

/// Bytes nothing compresses.
fn noise(length: usize) -> Bytes {
    let mut state = 7;
    std::iter::repeat_with(|| step(&mut state) as u8).take(length).collect()
}

fn compressing(bencher: Bencher<'_, '_>, codec: Codec, value: Bytes) {
    let bencher = bencher.counter(BytesCount::new(value.len()));
    bencher.bench_local(|| compress(codec, black_box(&value)));
}

fn restoring(bencher: Bencher<'_, '_>, codec: Codec, length: usize) {
    let kept = compress(codec, &records(length));
    let bencher = bencher.counter(BytesCount::new(length));
    bencher.bench_local(|| restore(black_box(&kept)));
}

#[divan::bench(args = LENGTHS)]
fn lz4_compress(bencher: Bencher<'_, '_>, length: usize) {
    compressing(bencher, Codec::Lz4, records(length));
}

#[divan::bench(args = LENGTHS)]
fn lz4_compress_noise(bencher: Bencher<'_, '_>, length: usize) {
    compressing(bencher, Codec::Lz4, noise(length));
}

#[divan::bench(args = LENGTHS)]
fn lz4_restore(bencher: Bencher<'_, '_>, length: usize) {
    restoring(bencher, Codec::Lz4, length);
}

#[divan::bench(args = LENGTHS)]
fn zstd_compress(bencher: Bencher<'_, '_>, length: usize) {
    compressing(bencher, Codec::Zstd, records(length));
}

#[divan::bench(args = LENGTHS)]
fn zstd_compress_noise(bencher: Bencher<'_, '_>, length: usize) {
    compressing(bencher, Codec::Zstd, noise(length));
}

#[divan::bench(args = LENGTHS)]
fn zstd_restore(bencher: Bencher<'_, '_>, length: usize) {
    restoring(bencher, Codec::Zstd, length);
}
