//! The gRPC services. A handler is decode, call, encode: no decision, no loop, no retry.

mod admin;
mod kv;
mod replica;

pub use admin::AdminService;
pub use kv::KvService;
pub use replica::ReplicaService;

use crate::cluster::errors::Failure;
use tonic::{Response, Status};

/// A reply, or the status with the typed detail inside.
fn respond<T>(outcome: Result<T, Failure>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|failure| proto::error::status(&failure))
}
