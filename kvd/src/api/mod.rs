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

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{GetReply, WriteReply};

    #[test]
    fn only_what_changed_nothing_may_be_refused_for_want_of_memory() {
        let needs_memory =
            |extensions: &tonic::Extensions| extensions.get::<AnswerBytes>().is_some();
        assert!(needs_memory(respond_to_read(Ok(GetReply::default())).unwrap().extensions()));
        assert!(!needs_memory(respond(Ok(WriteReply::default())).unwrap().extensions()));
    }
}
