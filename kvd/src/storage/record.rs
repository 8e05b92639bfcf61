//! The bytes of one stored record, and the order records are kept in. Pure.
//!
//! key:   token (16 B) · keyspace id (8 B) · client's key: hash order, so a partition is a range.
//! value: format u8 = 1 · crc32 u32 · flags u8 · [incarnation u128 · actor u64] · object
//!
//! The checksum covers the key and everything after itself: a flipped bit, a torn page and a
//! record under another's key are all noticed. Drawn again in docs/storage-format.md.

use crate::dynamo::key::Key;
use crate::dynamo::node::{Incarnation, KeyspaceId};
use crate::dynamo::object::{Mine, Object};
use crate::dynamo::version::Actor;
use bytes::{Buf, BufMut, Bytes};
use proto::token::Token;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 1 + 4 + 1;
const HAS_MINE: u8 = 1;

/// A record that must not be believed. It counts as absent: its coordinator mints a new actor,
/// and a healthy replica's copy replaces it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// The stored bytes are not those that were written.
    #[error("checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// Of the bytes as they are.
        found: u32,
        /// As it was written.
        expected: u32,
    },
    /// Too short to be one, or of a format this kvd does not read.
    #[error("not a record of format {FORMAT}")]
    Format,
    /// The checksum holds, and still it is no object: a kvd wrote nonsense.
    #[error("its object is {0}")]
    Object(#[from] crate::dynamo::object::DecodeError),
}

/// Where a key's record is stored.
pub fn stored_key(key: &Key) -> Vec<u8> {
    stored_place(key.token(), key.keyspace(), key.bytes())
}

/// Where the record of `key`, whose token is `token`, is stored.
pub fn stored_place(token: Token, keyspace: KeyspaceId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + 8 + key.len());
    out.put_slice(&token.to_bytes());
    out.put_u64(keyspace.0);
    out.put_slice(key);
    out
}

/// Token, keyspace and client's key of a stored key; `None` if it is too short to be one.
pub fn parse_key(mut stored: &[u8]) -> Option<(Token, KeyspaceId, &[u8])> {
    let token = Token(stored.try_get_u128().ok()?);
    let keyspace = KeyspaceId(stored.try_get_u64().ok()?);
    Some((token, keyspace, stored))
}

/// The bytes to store under `stored_key`.
pub fn encode(stored_key: &[u8], object: &Object) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + 24 + object.encoded_len());
    out.put_u8(FORMAT);
    out.put_u32(0); // the checksum, below
    match object.mine() {
        None => out.put_u8(0),
        Some(mine) => {
            out.put_u8(HAS_MINE);
            out.put_u128(mine.incarnation.0);
            out.put_u64(mine.actor.0);
        }
    }
    object.encode_into(&mut out);
    let checksum = checksum(stored_key, &out[5..]);
    out[1..5].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// The object in `record`, once its checksum is proven.
pub fn decode(stored_key: &[u8], record: Bytes) -> Result<Object, BadRecord> {
    let (mine, object) = open(stored_key, record)?;
    Ok(Object::decode(object)?.with_mine(mine))
}

/// The actor and the encoded object in `record`, once its checksum is proven. The object shares
/// its memory, and can be sent as it is.
pub fn open(stored_key: &[u8], mut record: Bytes) -> Result<(Option<Mine>, Bytes), BadRecord> {
    if record.len() < HEAD_BYTES || record.get_u8() != FORMAT {
        return Err(BadRecord::Format);
    }
    let expected = record.get_u32();
    let found = checksum(stored_key, &record);
    if found != expected {
        return Err(BadRecord::Checksum { found, expected });
    }
    let mine = match record.get_u8() {
        0 => None,
        HAS_MINE if record.len() >= 24 => {
            let incarnation = Incarnation(record.get_u128());
            Some(Mine { incarnation, actor: Actor(record.get_u64()) })
        }
        _ => return Err(BadRecord::Format),
    };
    Ok((mine, record))
}

/// What a coordinator takes of a client's key and value, before it compresses the value, and every
/// later coordinator and client can check: CRC-32 (IEEE) of key, then value.
pub fn value_checksum(key: &[u8], value: Option<&[u8]>) -> u32 {
    checksum(key, value.unwrap_or_default())
}

fn checksum(first: &[u8], second: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(first);
    hasher.update(second);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::clock::Counter;
    use crate::dynamo::node::RequestId;
    use crate::dynamo::object::Record;
    use crate::dynamo::value::Value;
    use crate::dynamo::version::{Clock, Dot};
    use proptest::prelude::*;

    fn key() -> Vec<u8> {
        stored_key(&Key::new(KeyspaceId::of("default"), Bytes::from_static(b"k")).unwrap())
    }

    fn object() -> Object {
        let dot = Dot { actor: Actor(5), counter: Counter::at_ms(9) };
        let mut clock = Clock::new();
        clock.advance(dot);
        let record = Record {
            value: Some(Value::Plain("value".into())),
            request: RequestId(3),
            checksum: 1,
        };
        let mine = Mine { incarnation: Incarnation(8), actor: Actor(5) };
        Object::from_parts(clock, [(dot, record)]).with_mine(Some(mine))
    }

    #[test]
    fn a_record_reads_back_with_its_actor() {
        let bytes = encode(&key(), &object());
        assert_eq!(decode(&key(), bytes.into()), Ok(object()));
        let foreign = object().with_mine(None);
        assert_eq!(decode(&key(), encode(&key(), &foreign).into()), Ok(foreign));
    }

    #[test]
    fn a_record_under_anothers_key_is_not_believed() {
        let mut elsewhere = key();
        elsewhere[0] ^= 1;
        let bytes = encode(&key(), &object());
        assert!(matches!(decode(&elsewhere, bytes.into()), Err(BadRecord::Checksum { .. })));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = encode(&key(), &object());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&key(), bytes.into()).is_err());
        }

        #[test]
        fn random_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(decode(&key(), bytes.into()).is_err());
        }
    }
}
