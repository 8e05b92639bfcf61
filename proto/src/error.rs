//! The typed detail that every failed call carries, packed as gRPC's richer error model wants it:
//! a `google.rpc.Status` in the `grpc-status-details-bin` trailer, so that any language's gRPC
//! library can unpack it.

use crate::v1::{ErrorCode, ErrorDetail};
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

const TYPE_URL: &str = "type.googleapis.com/kvd.v1.ErrorDetail";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// A failed call's status, with `detail` inside.
pub fn status(detail: &ErrorDetail) -> Status {
    let code = grpc_code(detail.code());
    let message = match detail.why.as_str() {
        "" => detail.what.clone(),
        why => format!("{}: {why}", detail.what),
    };
    let packed = RpcStatus {
        code: code as i32,
        message: message.clone(),
        details: vec![Any { type_url: TYPE_URL.to_owned(), value: detail.encode_to_vec().into() }],
    };
    Status::with_details(code, message, packed.encode_to_vec().into())
}

/// The detail inside a failed call's status, if kvd put one there.
pub fn detail(status: &Status) -> Option<ErrorDetail> {
    let packed = RpcStatus::decode(status.details()).ok()?;
    let any = packed.details.into_iter().find(|any| any.type_url == TYPE_URL)?;
    ErrorDetail::decode(any.value).ok()
}

/// The gRPC status code that each error goes out under. The only mapping.
pub fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::Unspecified | ErrorCode::Internal => Code::Internal,
        ErrorCode::KeyInvalid
        | ErrorCode::ValueTooLarge
        | ErrorCode::QuorumInvalid
        | ErrorCode::ArgumentInvalid
        | ErrorCode::ContextInvalid
        | ErrorCode::ContextMismatch => Code::InvalidArgument,
        ErrorCode::KeyspaceUnknown | ErrorCode::NodeUnknown | ErrorCode::OpUnknown => {
            Code::NotFound
        }
        ErrorCode::KeyspaceExists | ErrorCode::ClusterExists => Code::AlreadyExists,
        ErrorCode::ObjectTooLarge
        | ErrorCode::TooManySiblings
        | ErrorCode::Blank
        | ErrorCode::PlanRefused => Code::FailedPrecondition,
        ErrorCode::PlanStale => Code::Aborted,
        ErrorCode::QuorumUnmet
        | ErrorCode::StorageFailed
        | ErrorCode::Draining
        | ErrorCode::NodeUnreachable
        | ErrorCode::LayoutStale
        | ErrorCode::ReplicaClosed
        | ErrorCode::RecordBad => Code::Unavailable,
        ErrorCode::Overloaded | ErrorCode::DiskFull => Code::ResourceExhausted,
        ErrorCode::Stranger | ErrorCode::Removed | ErrorCode::NotPermitted => {
            Code::PermissionDenied
        }
        ErrorCode::CertificateWanted => Code::Unauthenticated,
    }
}

/// The name of an error as people and scripts see it: `QUORUM_UNMET`.
pub fn code_name(code: ErrorCode) -> &'static str {
    let name = code.as_str_name();
    name.strip_prefix("ERROR_CODE_").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_survives_the_trip_through_a_status() {
        let sent = ErrorDetail {
            code: ErrorCode::QuorumUnmet as i32,
            what: "put k needed W=2, got 1".into(),
            why: "n2 is down".into(),
            acks: 1,
            needed: 2,
            ..Default::default()
        };
        let status = status(&sent);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "put k needed W=2, got 1: n2 is down");
        assert_eq!(detail(&status), Some(sent));
        assert_eq!(detail(&Status::internal("plain")), None);
        assert_eq!(code_name(ErrorCode::QuorumUnmet), "QUORUM_UNMET");
    }
}
