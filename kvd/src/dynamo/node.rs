//! Who a node is, and the other 128-bit names of a cluster.

use std::fmt;

/// Defines a 128-bit name that prints as 32 hexadecimal digits.
macro_rules! name_128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// Big-endian bytes.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// From big-endian bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// From a message's field; `None` unless it has 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_bytes(bytes.try_into().ok()?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

name_128! {
    /// A node: made with its data directory, never reused.
    Uid
}
name_128! {
    /// A node's life with intact memory. A new one begins when the data directory is new or the
    /// last stop was not clean, and voids every actor minted in an earlier one.
    Incarnation
}
name_128! {
    /// A cluster, from the day it was made.
    ClusterId
}
name_128! {
    /// A layout: the first 16 bytes of the SHA-256 of its encoding.
    LayoutId
}
name_128! {
    /// One client write, the same for each of its retries.
    RequestId
}

/// A keyspace. Derived from its name, so that the same name made on two sides of a split is one
/// keyspace, and records need no renumbering when the sides meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyspaceId(pub u64);

impl KeyspaceId {
    /// First eight bytes of MD5(`name`).
    pub fn of(name: &str) -> Self {
        Self((proto::token::Token::of(name.as_bytes()).0 >> 64) as u64)
    }
}
