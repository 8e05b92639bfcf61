//! What would become of requests if a node stopped, or with another N, R, W.

use crate::cli::{ModeArg, QuorumFlags};
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::table::{Cell, Tone};
use crate::units::counted;
use proto::v1::{GetSafetyRequest, Mode, NodeSafety, SafetyReply};
use serde::Serialize;

/// Whether a node may be stopped, as scripts read it. Null: it is down already, or nobody knows.
#[derive(Debug, Default, Serialize)]
pub(crate) struct SafeToStop {
    ok: Option<bool>,
    blocked_partitions: u32,
    blocked_keyspaces: Vec<String>,
}

impl SafeToStop {
    pub(crate) fn of(safety: &NodeSafety) -> Self {
        Self {
            ok: (!safety.down).then_some(safety.safe),
            blocked_partitions: safety.partitions,
            blocked_keyspaces: safety.keyspaces.clone(),
        }
    }
}

/// Asks which nodes may be stopped.
pub(super) async fn of_nodes(connection: &Connection) -> Result<SafetyReply, Failure> {
    ask(connection, GetSafetyRequest::default()).await
}

/// Asks what a keyspace's quorum means now, and what another would.
pub(super) async fn of_quorum(
    connection: &Connection,
    keyspace: &str,
    QuorumFlags { n, r, w, mode }: QuorumFlags,
) -> Result<SafetyReply, Failure> {
    let mode = mode.map(|mode| mode_of(mode).into());
    ask(connection, GetSafetyRequest { keyspace: keyspace.to_owned(), n, r, w, mode }).await
}

async fn ask(connection: &Connection, request: GetSafetyRequest) -> Result<SafetyReply, Failure> {
    connection
        .call("asking what is safe", Kind::Read, |client, budget| {
            let request = timed(request.clone(), budget);
            async move { client.admin().get_safety(request).await }
        })
        .await
}

/// A mode as the contract has it.
pub(super) fn mode_of(mode: ModeArg) -> Mode {
    match mode {
        ModeArg::Sloppy => Mode::Sloppy,
        ModeArg::Strict => Mode::Strict,
    }
}

/// Whether a node may be stopped, in words.
pub(super) fn words(safety: &NodeSafety) -> String {
    match safety {
        NodeSafety { down: true, .. } => "-".to_owned(),
        NodeSafety { safe: true, .. } => "yes".to_owned(),
        NodeSafety { partitions, .. } => {
            format!("no: {} would fall below", counted(u64::from(*partitions), "partition"))
        }
    }
}

/// The same in a column; `?` if it was not told.
pub(super) fn cell(safety: Option<&NodeSafety>) -> Cell {
    match safety {
        None => "?".into(),
        Some(safety) if safety.safe || safety.down => words(safety).into(),
        Some(safety) => Cell::toned(words(safety), Tone::Warning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_be_stopped_or_not_or_is_down_already() {
        let of = |down, safe, partitions| {
            let safety = NodeSafety { down, safe, partitions, ..Default::default() };
            let json = serde_json::to_value(SafeToStop::of(&safety)).unwrap();
            (words(&safety), json["ok"].clone())
        };
        assert_eq!(of(false, true, 0), ("yes".into(), true.into()));
        let no = "no: 7 partitions would fall below";
        assert_eq!(of(false, false, 7), (no.into(), false.into()));
        assert_eq!(of(true, false, 0), ("-".into(), serde_json::Value::Null));
        assert_eq!(cell(None), "?".into());
    }
}
