//! Where a key lies on the ring.

use md5::{Digest, Md5};
use std::fmt;

/// A point on the ring: MD5 of the key, read big-endian (Dynamo, SOSP'07, section 4.1).
///
/// `printf %s KEY | md5sum` prints the same 32 digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u128);

impl Token {
    /// The token of `key`.
    pub fn of(key: &[u8]) -> Self {
        Self(u128::from_be_bytes(Md5::digest(key).into()))
    }

    /// The partition this token falls in when the ring has 2^`bits` of them: its top `bits` bits.
    pub fn partition(self, bits: u32) -> u32 {
        assert!((1..=20).contains(&bits), "a ring has 2 to 2^20 partitions");
        (self.0 >> (128 - bits)) as u32
    }

    /// First and last token of `partition` when the ring has 2^`bits` of them.
    pub fn range(partition: u32, bits: u32) -> (Self, Self) {
        let first = u128::from(partition) << (128 - bits);
        (Self(first), Self(first | (u128::MAX >> bits)))
    }

    /// Big-endian bytes, the order storage keeps records in.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_md5sum_prints() {
        assert_eq!(Token::of(b"user:42").to_string(), "56dadf1868c3ba340467c942a86c29de");
        assert_eq!(Token::of(b"").to_string(), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn a_partition_is_the_top_bits_and_its_range_holds_them_all() {
        for bits in [1, 8, 20] {
            let token = Token::of(b"k");
            let partition = token.partition(bits);
            let (first, last) = Token::range(partition, bits);
            assert!(first <= token && token <= last);
            assert_eq!((first.partition(bits), last.partition(bits)), (partition, partition));
        }
        assert_eq!(Token::range(255, 8).1, Token(u128::MAX));
    }
}
