//! `scrub start|status`: the walk that proves every record's checksum.

use super::jobs::{self, at, error};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::table::{Cell, Table, Tone};
use crate::value::size;
use proto::v1::{ScrubReply, ScrubRequest, ScrubView};
use serde::Serialize;

/// One node's scrub, as scripts read it.
#[derive(Debug, Serialize)]
struct ScrubJson {
    node: String,
    state: &'static str,
    started_at: Option<String>,
    ended_at: Option<String>,
    progress_ratio: f64,
    records: String,
    bytes: String,
    bad: String,
    healed: String,
    full_at: Option<String>,
    due_at: Option<String>,
    error: Option<String>,
}

pub(crate) async fn start(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, true, node).await?;
    print(settings, "kvctl.scrub.start/v1", &reply)?;
    let unasked = reply.nodes.iter().filter(|view| !view.running).count();
    Ok(if unasked == 0 { Exit::Ok } else { Exit::Partial })
}

pub(crate) async fn status(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, false, node).await?;
    print(settings, "kvctl.scrub.status/v1", &reply)?;
    let unhealed = reply.nodes.iter().any(|view| view.bad > view.healed);
    Ok(if unhealed { Exit::No } else { Exit::Ok })
}

async fn ask(
    connection: &Connection,
    start: bool,
    node: Option<String>,
) -> Result<ScrubReply, Failure> {
    let doing = if start { "starting scrubs" } else { "asking how scrubs are going" };
    let node = node.unwrap_or_default();
    connection
        .call(doing, Kind::Read, |client, budget| {
            let request = timed(ScrubRequest { start, node: node.clone() }, budget);
            async move { client.admin().scrub(request).await }
        })
        .await
}

fn print(settings: &Settings, schema: &'static str, reply: &ScrubReply) -> Result<(), Failure> {
    let table = table(&reply.nodes);
    jobs::print(settings, schema, &reply.nodes, |view| &view.node, json, table)
}

fn table(nodes: &[ScrubView]) -> Table {
    let titles = [
        "NODE",
        "STATE",
        "PROGRESS",
        "RECORDS",
        "BYTES",
        "BAD",
        "HEALED",
        "LAST FULL",
        "NEXT DUE",
        "ERROR",
    ];
    let mut table = Table::new(&titles);
    for view in nodes {
        let bad = if view.bad > view.healed { Tone::Alarm } else { Tone::Plain };
        table.row(vec![
            view.node.as_str().into(),
            state(view).into(),
            format!("{:.0}%", view.progress_ratio * 100.0).into(),
            view.records.to_string().into(),
            size(view.bytes).into(),
            Cell::toned(view.bad.to_string(), bad),
            view.healed.to_string().into(),
            at(view.full_at_ms).unwrap_or_else(|| "-".into()).into(),
            at(view.due_at_ms).unwrap_or_else(|| "-".into()).into(),
            view.error.as_str().into(),
        ]);
    }
    table
}

fn json(view: &ScrubView) -> ScrubJson {
    ScrubJson {
        node: view.node.clone(),
        state: state(view),
        started_at: at(view.started_at_ms),
        ended_at: at(view.ended_at_ms),
        progress_ratio: view.progress_ratio,
        records: view.records.to_string(),
        bytes: view.bytes.to_string(),
        bad: view.bad.to_string(),
        healed: view.healed.to_string(),
        full_at: at(view.full_at_ms),
        due_at: at(view.due_at_ms),
        error: error(&view.error),
    }
}

fn state(view: &ScrubView) -> &'static str {
    match view {
        ScrubView { running: true, .. } => "running",
        ScrubView { error, started_at_ms: 0, .. } if !error.is_empty() => "unknown",
        ScrubView { error, .. } if !error.is_empty() => "failed",
        ScrubView { ended_at_ms: 0, full_at_ms: 0, .. } => "never",
        ScrubView { ended_at_ms: 0, .. } => "idle",
        _ => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_has_one_of_six_states() {
        let of = |running, started_at_ms, ended_at_ms, error: &str| {
            let error = error.to_owned();
            state(&ScrubView { running, started_at_ms, ended_at_ms, error, ..Default::default() })
        };
        assert_eq!(of(true, 5, 0, ""), "running");
        assert_eq!(of(false, 5, 9, ""), "done");
        assert_eq!(of(false, 5, 9, "storage stopped"), "failed");
        assert_eq!(of(false, 0, 0, "connection refused"), "unknown");
        assert_eq!(of(false, 0, 0, ""), "never");
        let before_the_start = ScrubView { full_at_ms: 3, ..Default::default() };
        assert_eq!(state(&before_the_start), "idle");
    }
}
