//! The gRPC services. A handler is decode, call, encode: no decision, no loop, no retry.

mod admin;
mod kv;
mod replica;

pub use admin::AdminService;
pub use kv::KvService;
pub use replica::ReplicaService;

use crate::cluster::errors::Failure;
use crate::door::room::AnswerBytes;
use prost::Message;
use tonic::{Response, Status};

/// A reply, or the status with the typed detail inside.
fn respond<T>(outcome: Result<T, Failure>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|failure| proto::error::status(&failure))
}

/// The same of what changed nothing: it may be large, and is refused where there is no memory for it.
fn respond_to_read<T: Message>(outcome: Result<T, Failure>) -> Result<Response<T>, Status> {
    let mut response = respond(outcome)?;
    let bytes = AnswerBytes(response.get_ref().encoded_len());
    response.extensions_mut().insert(bytes);
    Ok(response)
}
