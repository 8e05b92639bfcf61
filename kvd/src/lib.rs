//! The daemon. Every node is the same: there is no leader and no special node.
//!
//! The way of a put: [`api`] `kv.rs` → [`cluster`] `put.rs`, which asks [`dynamo`]
//! `write.rs` what to do → [`storage`] here and, over `cluster/link.rs`, `api/replica.rs` →
//! `storage` there. The reply retraces it.

pub mod api;
pub mod certs;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod dev;
pub mod door;
pub mod dynamo;
pub mod server;
pub mod storage;
pub mod telemetry;
pub mod threads;
pub mod tls;
