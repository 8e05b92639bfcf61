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
fn respond<T: Message>(outcome: Result<T, Failure>) -> Result<Response<T>, Status> {
    let reply = outcome.map_err(|failure| proto::error::status(&failure))?;
    let bytes = AnswerBytes(reply.encoded_len());
    let mut response = Response::new(reply);
    response.extensions_mut().insert(bytes);
    Ok(response)
}
