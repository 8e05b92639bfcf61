//! `compact start|status`: the nodes' files written anew without what is free in them.

use super::jobs::{self, at, error};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::table::{Cell, Table, Tone};
use crate::value::size;
use proto::v1::{CompactReply, CompactRequest, CompactView};
use serde::Serialize;

/// One node's compaction, as scripts read it.
#[derive(Debug, Serialize)]
struct CompactJson {
    node: String,
    state: &'static str,
    started_at: Option<String>,
    ended_at: Option<String>,
    progress_ratio: f64,
    files_done: u32,
    files: u32,
    bytes_before: String,
    bytes_after: String,
    error: Option<String>,
}

pub(crate) async fn start(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, true, node).await?;
    print(settings, "kvctl.compact.start/v1", &reply)?;
    // A small one may be done by now.
    let unasked = reply.nodes.iter().filter(|view| view.started_at_ms == 0).count();
    Ok(if unasked == 0 { Exit::Ok } else { Exit::Partial })
}

pub(crate) async fn status(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, false, node).await?;
    print(settings, "kvctl.compact.status/v1", &reply)?;
    let broken = reply.nodes.iter().any(|view| state(view) == "failed");
    Ok(if broken { Exit::No } else { Exit::Ok })
}

async fn ask(
    connection: &Connection,
    start: bool,
    node: Option<String>,
) -> Result<CompactReply, Failure> {
    let doing = if start { "starting compactions" } else { "asking how compactions are going" };
    let node = node.unwrap_or_default();
    connection
        .call(doing, Kind::Read, |client, budget| {
            let request = timed(CompactRequest { start, node: node.clone() }, budget);
            async move { client.admin().compact(request).await }
        })
        .await
}

fn print(settings: &Settings, schema: &'static str, reply: &CompactReply) -> Result<(), Failure> {
    let table = table(&reply.nodes);
    jobs::print(settings, schema, &reply.nodes, |view| &view.node, json, table)
}

fn table(nodes: &[CompactView]) -> Table {
    let mut table =
        Table::new(&["NODE", "STATE", "PROGRESS", "FILES", "BEFORE", "AFTER", "ENDED", "ERROR"]);
    for view in nodes {
        table.row(vec![
            view.node.as_str().into(),
            state(view).into(),
            format!("{:.0}%", view.progress_ratio * 100.0).into(),
            format!("{}/{}", view.files_done, view.files).into(),
            size(view.bytes_before).into(),
            size(view.bytes_after).into(),
            at(view.ended_at_ms).unwrap_or_else(|| "-".into()).into(),
            Cell::toned(view.error.clone(), Tone::Alarm),
        ]);
    }
    table
}

fn json(view: &CompactView) -> CompactJson {
    CompactJson {
        node: view.node.clone(),
        state: state(view),
        started_at: at(view.started_at_ms),
        ended_at: at(view.ended_at_ms),
        progress_ratio: view.progress_ratio,
        files_done: view.files_done,
        files: view.files,
        bytes_before: view.bytes_before.to_string(),
        bytes_after: view.bytes_after.to_string(),
        error: error(&view.error),
    }
}

fn state(view: &CompactView) -> &'static str {
    match view {
        CompactView { running: true, .. } => "running",
        CompactView { error, started_at_ms: 0, .. } if !error.is_empty() => "unknown",
        CompactView { error, .. } if !error.is_empty() => "failed",
        CompactView { ended_at_ms: 0, .. } => "never",
        _ => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compaction_has_one_of_five_states() {
        let of = |running, started_at_ms, ended_at_ms, error: &str| {
            let error = error.to_owned();
            state(&CompactView { running, started_at_ms, ended_at_ms, error, ..Default::default() })
        };
        assert_eq!(of(true, 5, 0, ""), "running");
        assert_eq!(of(false, 5, 9, ""), "done");
        assert_eq!(of(false, 5, 9, "no room"), "failed");
        assert_eq!(of(false, 0, 0, "connection refused"), "unknown");
        assert_eq!(of(false, 0, 0, ""), "never");
    }
}
