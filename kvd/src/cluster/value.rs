//! Values on their way in and out: compressed once, by the coordinator of their put, and restored
//! and proven where a client is shown them. In between, on every link and disk, they stay as they
//! are: repair, scrubs and scans between nodes look at stored bytes alone.

use super::errors::{self, Failure};
use crate::dynamo::key::Key;
use crate::dynamo::object::Record;
use crate::dynamo::value::{Codec, Value};
use crate::storage::record::value_checksum;
use bytes::Bytes;
use std::cell::RefCell;
use std::time::Instant;
use zstd::bulk::{Compressor, Decompressor};

/// Shorter values are stored as they are: there is nothing to win on them.
pub const TRIED_BYTES_MIN: usize = 64;

/// Of 22. Level 3 takes half as long again and makes records of JSON no smaller.
const ZSTD_LEVEL: i32 = 1;

/// Above so many bytes the work leaves the threads that serve requests, which it would hold up
/// for milliseconds.
const INLINE_BYTES_MAX: usize = 256 * 1024;

thread_local! {
    // Kept, for they take several times as long to make as a value of 1 KiB to compress or restore.
    // None for want of memory.
    static ZSTD_COMPRESSOR: RefCell<Option<Compressor<'static>>> =
        RefCell::new(Compressor::new(ZSTD_LEVEL).ok());
    static ZSTD_DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> =
        RefCell::new(Decompressor::new().ok());
}

/// Stored bytes that are not what a client sent, compressed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored bytes are not a compressed value of the length they say")]
pub struct NotCompressed;

/// A client's value as it is to be stored: compressed, if that saves at least an eighth.
pub fn compress(codec: Codec, value: &Bytes) -> Value {
    let plain = || Value::Plain(value.clone());
    if value.len() < TRIED_BYTES_MIN {
        return plain();
    }
    let compressed = match codec {
        Codec::Lz4 => Some(lz4_flex::block::compress(value)),
        // It fails for want of memory; the value is as good uncompressed.
        Codec::Zstd => ZSTD_COMPRESSOR.with_borrow_mut(|zstd| zstd.as_mut()?.compress(value).ok()),
    };
    match (compressed, u32::try_from(value.len())) {
        (Some(bytes), Ok(length)) if bytes.len() <= value.len() - value.len() / 8 => {
            // A copy: the compressor's buffer is as long as the worst case.
            Value::Compressed { codec, bytes: Bytes::copy_from_slice(&bytes), length }
        }
        _ => plain(),
    }
}

/// What the client sent. Never longer than the value says it was, whatever its bytes unfold to.
pub fn restore(value: &Value) -> Result<Bytes, NotCompressed> {
    let Value::Compressed { codec, bytes, length } = value else {
        return Ok(value.stored().clone());
    };
    let mut out = vec![0; *length as usize];
    let written = match codec {
        Codec::Lz4 => lz4_flex::block::decompress_into(bytes, &mut out).ok(),
        Codec::Zstd => ZSTD_DECOMPRESSOR
            .with_borrow_mut(|zstd| zstd.as_mut()?.decompress_to_buffer(bytes, &mut out[..]).ok()),
    };
    if written == Some(out.len()) { Ok(out.into()) } else { Err(NotCompressed) }
}

/// A client's value as a keyspace with this compression stores it.
pub async fn keep(codec: Option<Codec>, value: Bytes, deadline: Instant) -> Result<Value, Failure> {
    match codec {
        None => Ok(Value::Plain(value)),
        Some(codec) => within(deadline, value.len(), move || compress(codec, &value)).await,
    }
}

/// The values of `records` as their clients sent them, each proven; empty for a tombstone.
pub async fn show(
    key: &Key,
    records: Vec<Record>,
    deadline: Instant,
) -> Result<Vec<Bytes>, Failure> {
    let compressed = records.iter().filter_map(|record| record.value.as_ref());
    let compressed = compressed.filter(|value| value.codec().is_some());
    let bytes = compressed.map(Value::length).sum();
    let key = key.clone();
    within(deadline, bytes, move || records.iter().map(|record| prove(&key, record)).collect())
        .await?
}

/// The value of `record` as its client sent it, held to the checksum its coordinator took then.
pub fn prove(key: &Key, record: &Record) -> Result<Bytes, Failure> {
    let Some(value) = &record.value else { return Ok(Bytes::new()) };
    match restore(value) {
        Ok(value) if value_checksum(key.bytes(), Some(&value)) == record.checksum => Ok(value),
        _ => {
            let what = format!("a value of {} is not what was put", key.bytes().escape_ascii());
            Err(errors::internal(what))
        }
    }
}

/// Does work on so many bytes: here, or if they are many on a thread that serves no requests.
pub async fn within<T: Send + 'static>(
    deadline: Instant,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    if bytes <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    match tokio::time::timeout_at(deadline.into(), tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(errors::internal("a large value was dropped half way")),
        Err(_) => Err(errors::overloaded("there was no time left to compress or restore a value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::node::{KeyspaceId, RequestId};
    use proptest::prelude::*;
    use proto::v1::ErrorCode;

    const CODECS: [Codec; 2] = [Codec::Lz4, Codec::Zstd];

    fn text(length: usize) -> Bytes {
        b"to be compressed or not to be ".iter().copied().cycle().take(length).collect()
    }

    /// Bytes nothing compresses: each the low byte of another step of a generator.
    fn noise(length: usize) -> Bytes {
        let mut state = 1u64;
        let step = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(step).take(length).collect()
    }

    fn declared(value: &Value, length: u32) -> Value {
        let codec = value.codec().expect("it is compressed");
        Value::Compressed { codec, bytes: value.stored().clone(), length }
    }

    #[test]
    fn what_compresses_is_stored_compressed_and_what_does_not_as_it_is() {
        for codec in CODECS {
            for length in [TRIED_BYTES_MIN, 1000, 1 << 20] {
                let kept = compress(codec, &text(length));
                assert_eq!((kept.codec(), kept.length()), (Some(codec), length));
                assert_eq!(restore(&kept), Ok(text(length)));
            }
            for value in [Bytes::new(), text(TRIED_BYTES_MIN - 1), noise(64), noise(1 << 20)] {
                assert_eq!(compress(codec, &value), Value::Plain(value));
            }
        }
    }

    #[test]
    fn an_eighth_must_be_saved() {
        for codec in CODECS {
            let mixed =
                |zeros: usize| Bytes::from([&vec![0; zeros], &noise(8192 - zeros)[..]].concat());
            assert_eq!(compress(codec, &mixed(900)).codec(), None, "{codec:?}");
            let kept = compress(codec, &mixed(1400));
            assert!(kept.stored().len() <= 8192 / 8 * 7, "{codec:?}");
            assert_eq!(kept.codec(), Some(codec));
        }
    }

    #[test]
    fn a_value_never_unfolds_to_more_or_less_than_it_says() {
        for codec in CODECS {
            let kept = compress(codec, &vec![0; 8 << 20].into());
            assert!(kept.stored().len() < 100_000, "a bomb");
            assert_eq!(restore(&declared(&kept, 1 << 20)), Err(NotCompressed));
            assert_eq!(restore(&declared(&kept, (8 << 20) - 1)), Err(NotCompressed));
            assert_eq!(restore(&declared(&kept, (8 << 20) + 1)), Err(NotCompressed));
        }
    }

    #[test]
    fn a_value_that_is_not_what_was_put_is_never_shown() {
        let key = Key::new(KeyspaceId::of("default"), Bytes::from_static(b"k")).unwrap();
        let checksum = value_checksum(key.bytes(), Some(&text(1000)));
        let shown = |value| {
            let record = Record { value: Some(value), request: RequestId(1), checksum };
            prove(&key, &record).map_err(|failure| failure.code())
        };
        for codec in CODECS {
            assert_eq!(shown(compress(codec, &text(1000))), Ok(text(1000)));
            assert_eq!(shown(compress(codec, &text(1001))), Err(ErrorCode::Internal));
            let kept = compress(codec, &text(1000));
            for bit in 0..kept.stored().len() * 8 {
                let mut bytes = kept.stored().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let flipped = Value::Compressed { codec, bytes: bytes.into(), length: 1000 };
                // What a bit stands for may not matter to the codec; the value always does.
                if let Ok(value) = shown(flipped) {
                    assert_eq!(value, text(1000), "{codec:?}, bit {bit}");
                }
            }
        }
    }

    #[tokio::test]
    async fn large_values_go_another_way_and_come_to_the_same() {
        let key = Key::new(KeyspaceId::of("default"), Bytes::from_static(b"k")).unwrap();
        let later = crate::clock::now() + std::time::Duration::from_secs(60);
        for value in [text(100), text(INLINE_BYTES_MAX * 2), noise(INLINE_BYTES_MAX * 2)] {
            for codec in [None, Some(Codec::Lz4), Some(Codec::Zstd)] {
                let kept = keep(codec, value.clone(), later).await.unwrap();
                let checksum = value_checksum(key.bytes(), Some(&value));
                let record = Record { value: Some(kept), request: RequestId(1), checksum };
                let tombstone = Record { value: None, ..record.clone() };
                let shown = show(&key, vec![record, tombstone], later).await.unwrap();
                assert_eq!(shown, [value.clone(), Bytes::new()]);
            }
        }
    }

    proptest! {
        #[test]
        fn every_value_comes_back(
            chunks in prop::collection::vec((any::<u8>(), 1usize..300, any::<bool>()), 0..60)
        ) {
            let runs = chunks.iter().map(|&(byte, length, same)| match same {
                true => vec![byte; length],
                false => noise(length + usize::from(byte))[usize::from(byte)..].to_vec(),
            });
            let value = Bytes::from(runs.collect::<Vec<_>>().concat());
            for codec in CODECS {
                let kept = compress(codec, &value);
                prop_assert!(kept.stored().len() <= value.len());
                prop_assert_eq!(restore(&kept), Ok(value.clone()));
            }
        }

        #[test]
        fn random_bytes_are_an_error_and_never_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0u32..10_000
        ) {
            for codec in CODECS {
                let value = Value::Compressed { codec, bytes: bytes.clone().into(), length };
                if let Ok(restored) = restore(&value) {
                    prop_assert_eq!(restored.len(), length as usize);
                }
            }
        }

        #[test]
        fn damaged_bytes_never_panic(
            spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            for codec in CODECS {
                let kept = compress(codec, &[text(2000), noise(300)].concat().into());
                let mut bytes = kept.stored().to_vec();
                for (spot, byte) in &spots {
                    *spot.get_mut(&mut bytes) = *byte;
                }
                let length = kept.length() as u32;
                let restored = restore(&Value::Compressed { codec, bytes: bytes.into(), length });
                prop_assert!(restored.is_err() || restored.is_ok_and(|r| r.len() == 2300));
            }
        }
    }
}
