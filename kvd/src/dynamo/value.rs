//! One value as it is kept: the bytes a client sent, or those bytes compressed. Here they are bytes
//! with a label; `kvd/src/cluster/value.rs` compresses and restores them.

use bytes::Bytes;

/// What compresses the values of a keyspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// LZ4, a bare block: quick.
    Lz4,
    /// Zstandard, a frame: smaller.
    Zstd,
}

impl Codec {
    /// The byte that stands for it in objects and layouts; 0 for none.
    pub(super) fn to_byte(codec: Option<Self>) -> u8 {
        match codec {
            None => 0,
            Some(Self::Lz4) => 1,
            Some(Self::Zstd) => 2,
        }
    }

    /// What `byte` stands for; the byte itself, if that is nothing this kvd knows.
    pub(super) fn from_byte(byte: u8) -> Result<Option<Self>, u8> {
        match byte {
            0 => Ok(None),
            1 => Ok(Some(Self::Lz4)),
            2 => Ok(Some(Self::Zstd)),
            unknown => Err(unknown),
        }
    }
}

/// A value on replicas, links and disks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// As the client sent it.
    Plain(Bytes),
    /// Compressed by the coordinator of its put, and shorter for it.
    Compressed {
        /// By what.
        codec: Codec,
        /// What it made.
        bytes: Bytes,
        /// Length of what the client sent, bytes.
        length: u32,
    },
}

impl Value {
    /// The bytes that are stored and sent between nodes.
    pub fn stored(&self) -> &Bytes {
        match self {
            Self::Plain(bytes) | Self::Compressed { bytes, .. } => bytes,
        }
    }

    /// Length of what the client sent, bytes.
    pub fn length(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Compressed { length, .. } => *length as usize,
        }
    }

    /// What it is compressed by, if it is.
    pub fn codec(&self) -> Option<Codec> {
        match self {
            Self::Plain(_) => None,
            Self::Compressed { codec, .. } => Some(*codec),
        }
    }
}
