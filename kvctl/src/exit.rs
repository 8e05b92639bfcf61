//! Exit codes, and the only place that decides which failure ends with which.

use proto::v1::ErrorCode;
use std::process::ExitCode;
use tonic::{Code, Status};

/// How kvctl ends. Small numbers, since clap owns 2 and scripts test small integers.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    Ok = 0,
    Internal = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    QuorumUnmet = 5,
    Unreachable = 6,
    TimedOut = 7,
    Refused = 8,
    Unconfirmed = 9,
    NotPermitted = 10,
    No = 11,
    Partial = 12,
    Interrupted = 130,
    BrokenPipe = 141,
    Terminated = 143,
}

/// Every exit code and what it means, as `kvctl help exit-codes` prints it.
pub(crate) const MEANINGS: [(Exit, &str); 16] = [
    (Exit::Ok, "done"),
    (Exit::Internal, "unexpected failure; please report it"),
    (Exit::Usage, "usage or configuration"),
    (Exit::NotFound, "no such key, node, keyspace, plan or operation"),
    (
        Exit::Conflict,
        "conflict: several concurrent values, a context that does not fit, a name that is taken, a stale plan",
    ),
    (Exit::QuorumUnmet, "quorum not met; see the outcome"),
    (Exit::Unreachable, "no node reachable, or connection lost"),
    (Exit::TimedOut, "timed out or stalled; an operation in the cluster goes on"),
    (
        Exit::Refused,
        "refused by a safety check; the message names the --force that lifts it, if one does",
    ),
    (Exit::Unconfirmed, "confirmation needed (no terminal and no --yes) or declined"),
    (Exit::NotPermitted, "not permitted"),
    (Exit::No, "the answer is no: a check failed, a plan differs"),
    (Exit::Partial, "partly done; what failed is listed"),
    (Exit::Interrupted, "interrupted"),
    (Exit::BrokenPipe, "the reader of the output went away"),
    (Exit::Terminated, "terminated"),
];

impl Exit {
    /// The exit code of a typed error.
    pub(crate) fn of_code(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Unspecified | ErrorCode::Internal => Self::Internal,
            ErrorCode::KeyInvalid
            | ErrorCode::ValueTooLarge
            | ErrorCode::QuorumInvalid
            | ErrorCode::ArgumentInvalid => Self::Usage,
            ErrorCode::KeyspaceUnknown | ErrorCode::NodeUnknown | ErrorCode::OpUnknown => {
                Self::NotFound
            }
            ErrorCode::ContextInvalid
            | ErrorCode::ContextMismatch
            | ErrorCode::KeyspaceExists
            | ErrorCode::ClusterExists
            | ErrorCode::TooManySiblings
            | ErrorCode::PlanStale
            | ErrorCode::ReplicaClosed
            | ErrorCode::LayoutStale => Self::Conflict,
            ErrorCode::QuorumUnmet
            | ErrorCode::RecordBad
            | ErrorCode::StorageFailed
            | ErrorCode::Overloaded
            | ErrorCode::DiskFull => Self::QuorumUnmet,
            ErrorCode::Draining | ErrorCode::NodeUnreachable => Self::Unreachable,
            ErrorCode::Blank | ErrorCode::ObjectTooLarge | ErrorCode::PlanRefused => Self::Refused,
            ErrorCode::Stranger
            | ErrorCode::Removed
            | ErrorCode::NotPermitted
            | ErrorCode::CertificateWanted => Self::NotPermitted,
        }
    }

    /// The exit code of a failed call.
    pub(crate) fn of_status(status: &Status) -> Self {
        if let Some(detail) = proto::error::detail(status) {
            return Self::of_code(detail.code());
        }
        match status.code() {
            // tonic reports a deadline that passed on this side as Cancelled.
            Code::DeadlineExceeded | Code::Cancelled => Self::TimedOut,
            Code::Unavailable => Self::Unreachable,
            Code::PermissionDenied | Code::Unauthenticated => Self::NotPermitted,
            // A status of the transport, not of the server: the connection broke.
            _ if std::error::Error::source(status).is_some() => Self::Unreachable,
            _ => Self::Internal,
        }
    }

    /// The exit code of a command that did several things: the failures' own if all failed in the
    /// same way, "partly done" otherwise.
    pub(crate) fn of_many(done: u64, failed: &[Self]) -> Self {
        match failed {
            [] => Self::Ok,
            [first, rest @ ..] if done == 0 && rest.iter().all(|exit| exit == first) => *first,
            _ => Self::Partial,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ErrorDetail;

    #[test]
    fn every_error_code_has_its_exit_code() {
        let expected = [
            (0, 1),
            (1, 1),
            (2, 2),
            (3, 2),
            (4, 8),
            (5, 4),
            (6, 2),
            (7, 2),
            (8, 3),
            (9, 4),
            (10, 4),
            (11, 4),
            (12, 5),
            (13, 5),
            (14, 5),
            (15, 6),
            (16, 8),
            (17, 4),
            (18, 3),
            (19, 6),
            (20, 10),
            (21, 4),
            (22, 5),
            (23, 5),
            (24, 4),
            (25, 8),
            (26, 3),
            (27, 4),
            (28, 10),
            (29, 10),
            (30, 10),
        ];
        for (code, exit) in expected {
            let code = ErrorCode::try_from(code).unwrap();
            assert_eq!(Exit::of_code(code) as u8, exit, "{code:?}");
            let detail = ErrorDetail { code: code as i32, ..Default::default() };
            let status = proto::error::status(&detail);
            assert_eq!(Exit::of_status(&status) as u8, exit, "{code:?}");
        }
        // One more code in the contract must get a line above.
        assert!(ErrorCode::try_from(31).is_err());
    }

    #[test]
    fn a_status_without_detail_goes_by_its_grpc_code() {
        let exit = |code| Exit::of_status(&Status::new(code, "x"));
        assert_eq!(exit(Code::DeadlineExceeded), Exit::TimedOut);
        assert_eq!(exit(Code::Cancelled), Exit::TimedOut);
        assert_eq!(exit(Code::Unavailable), Exit::Unreachable);
        assert_eq!(exit(Code::PermissionDenied), Exit::NotPermitted);
        assert_eq!(exit(Code::Unimplemented), Exit::Internal);
    }

    #[test]
    fn several_failures_keep_their_code_only_if_all_failed_alike() {
        use Exit::{NotFound, Ok, Partial, QuorumUnmet};
        assert_eq!(Exit::of_many(5, &[]), Ok);
        assert_eq!(Exit::of_many(0, &[QuorumUnmet, QuorumUnmet]), QuorumUnmet);
        assert_eq!(Exit::of_many(0, &[QuorumUnmet, NotFound]), Partial);
        assert_eq!(Exit::of_many(1, &[QuorumUnmet]), Partial);
    }

    #[test]
    fn each_code_is_listed_once() {
        let codes: Vec<u8> = MEANINGS.iter().map(|(exit, _)| *exit as u8).collect();
        let mut sorted = codes.clone();
        sorted.dedup();
        assert!(codes.is_sorted() && sorted == codes);
    }
}
