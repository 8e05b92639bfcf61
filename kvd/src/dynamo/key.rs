//! Keys.

use crate::dynamo::node::KeyspaceId;
use bytes::Bytes;
use proto::KEY_BYTES_MAX;
use proto::token::Token;

/// A key within its keyspace: 1 B to 4 KiB of anything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    keyspace: KeyspaceId,
    token: Token,
    bytes: Bytes,
}

/// A key of no bytes, or of more than 4 KiB.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {0}")]
pub struct KeyLengthError(pub usize);

impl Key {
    /// Checks the length and places the key on the ring.
    pub fn new(keyspace: KeyspaceId, bytes: Bytes) -> Result<Self, KeyLengthError> {
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return Err(KeyLengthError(bytes.len()));
        }
        Ok(Self { keyspace, token: Token::of(&bytes), bytes })
    }

    /// The keyspace it belongs to.
    pub fn keyspace(&self) -> KeyspaceId {
        self.keyspace
    }

    /// Its place on the ring. The same in every keyspace.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The client's bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_checked_at_both_ends() {
        let keyspace = KeyspaceId::of("default");
        let of = |len: usize| Key::new(keyspace, vec![7; len].into());
        assert_eq!(of(0), Err(KeyLengthError(0)));
        assert_eq!(of(4097), Err(KeyLengthError(4097)));
        assert!(of(1).is_ok() && of(4096).is_ok());
    }
}
