//! `gc run|status`: the tombstones of deleted keys, and what keeps them.

use super::jobs::{self, age, at, error};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::table::{Cell, Table, Tone};
use crate::time::now_ms;
use proto::v1::{GcReply, GcRequest, GcView};
use serde::Serialize;

/// One node's tombstones, as scripts read it.
#[derive(Debug, Serialize)]
struct GcJson {
    node: String,
    state: &'static str,
    started_at: Option<String>,
    ended_at: Option<String>,
    tombstones: Option<String>,
    waiting: Option<String>,
    reaped: Option<String>,
    stays: Vec<String>,
    error: Option<String>,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, true, node).await?;
    print(settings, "kvctl.gc.run/v1", &reply)?;
    let unasked = reply.nodes.iter().any(is_unasked);
    Ok(if unasked { Exit::Partial } else { Exit::Ok })
}

pub(crate) async fn status(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, false, node).await?;
    print(settings, "kvctl.gc.status/v1", &reply)?;
    let broken = reply.nodes.iter().any(|view| !view.error.is_empty());
    Ok(if broken { Exit::No } else { Exit::Ok })
}

async fn ask(connection: &Connection, run: bool, node: Option<String>) -> Result<GcReply, Failure> {
    let doing = if run { "having tombstones looked at" } else { "asking about tombstones" };
    let node = node.unwrap_or_default();
    connection
        .call(doing, Kind::Read, |client, budget| {
            let request = timed(GcRequest { run, node: node.clone() }, budget);
            async move { client.admin().gc(request).await }
        })
        .await
}

fn print(settings: &Settings, schema: &'static str, reply: &GcReply) -> Result<(), Failure> {
    let table = table(&reply.nodes, now_ms());
    jobs::print(settings, schema, &reply.nodes, |view| &view.node, json, table)
}

fn table(nodes: &[GcView], now_ms: u64) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "LAST WALK",
        "TOMBSTONES",
        "WAITING",
        "REAPED",
        "WHY OTHERS STAY",
    ]);
    for view in nodes {
        let why = match view.error.as_str() {
            "" => Cell::from(view.stays.join("; ")),
            error => Cell::toned(error.to_owned(), Tone::Warning),
        };
        table.row(vec![
            view.node.as_str().into(),
            state(view).into(),
            age(view.ended_at_ms, now_ms).into(),
            known(view, view.tombstones).unwrap_or_else(|| "?".into()).into(),
            known(view, view.waiting).unwrap_or_else(|| "?".into()).into(),
            known(view, view.reaped).unwrap_or_else(|| "?".into()).into(),
            why,
        ]);
    }
    table
}

fn json(view: &GcView) -> GcJson {
    GcJson {
        node: view.node.clone(),
        state: state(view),
        started_at: at(view.started_at_ms),
        ended_at: at(view.ended_at_ms),
        tombstones: known(view, view.tombstones),
        waiting: known(view, view.waiting),
        reaped: known(view, view.reaped),
        stays: view.stays.clone(),
        error: error(&view.error),
    }
}

/// A number that a node told, if it could be asked.
fn known(view: &GcView, number: u64) -> Option<String> {
    (!is_unasked(view)).then(|| number.to_string())
}

/// A node that answers says when it began, if it fails.
fn is_unasked(view: &GcView) -> bool {
    view.started_at_ms == 0 && !view.error.is_empty()
}

fn state(view: &GcView) -> &'static str {
    match view {
        GcView { running: true, .. } => "running",
        view if is_unasked(view) => "unknown",
        GcView { error, .. } if !error.is_empty() => "waiting",
        GcView { ended_at_ms: 0, .. } => "never",
        _ => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_has_one_of_five_states_and_a_node_not_asked_has_no_numbers() {
        let of = |running, started_at_ms, ended_at_ms, error: &str| {
            let error = error.to_owned();
            let view = GcView { running, started_at_ms, ended_at_ms, error, ..Default::default() };
            (state(&view), known(&view, 0).is_some())
        };
        assert_eq!(of(true, 5, 0, ""), ("running", true));
        assert_eq!(of(false, 5, 9, ""), ("done", true));
        assert_eq!(of(false, 5, 9, "waits for n3"), ("waiting", true));
        assert_eq!(of(false, 0, 0, ""), ("never", true));
        assert_eq!(of(false, 0, 0, "connection refused"), ("unknown", false));
    }
}
