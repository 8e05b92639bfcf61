//! The contract of kvd and the client that speaks it.
//!
//! - [`v1`] is generated from `kv.proto`, `admin.proto` and `replica.proto`.
//! - [`token`] places a key on the ring.
//! - [`client`] connects to any node of a cluster.
//! - [`dial`] makes one connection to one node; [`tls`] what it is secured with.
//! - [`error`] packs and unpacks the typed detail every failed call carries.
//! - [`profile`] is how kvctl and kvtop are told where clusters are.
//! - [`histogram`] says what the buckets of a latency histogram span.

pub mod client;
pub mod dial;
pub mod error;
pub mod histogram;
pub mod profile;
pub mod tls;
pub mod token;

/// Messages, clients and servers of package `kvd.v1`.
pub mod v1 {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::unwrap_used,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("kvd.v1");
}

/// The compiled contract, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("kvd_descriptor");

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 4 * 1024;

/// Longest value a keyspace allows unless it says otherwise, bytes.
pub const VALUE_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// Largest message any kvd reads, bytes. A replica's copy of a key is held to 32 MiB, compressed
/// values counted as what they were, by refusing client writes that would grow it further, and a
/// merge joins at most seven such copies (N is at most 7), so the largest legal object fits every
/// path it must travel, stored or restored.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Port of a node unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 7400;
