//! `repair start|status`: the rounds in which nodes compare their copies and make them equal.

use super::jobs::{self, age, at, error};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::table::{Cell, Table, Tone};
use crate::time::now_ms;
use proto::v1::{PairView, RepairReply, RepairRequest, RepairView};
use serde::Serialize;

/// One node and those it compares with, as scripts read it.
#[derive(Debug, Serialize)]
struct RepairJson {
    node: String,
    pairs: Vec<PairJson>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct PairJson {
    peer: String,
    state: &'static str,
    matched_at: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
    rounds: String,
    repaired: String,
    repaired_last: String,
    leaves_set_right: String,
    error: Option<String>,
}

pub(crate) async fn start(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, true, node).await?;
    print(settings, "kvctl.repair.start/v1", &reply)?;
    let unasked = reply.nodes.iter().any(|view| !view.error.is_empty());
    Ok(if unasked { Exit::Partial } else { Exit::Ok })
}

pub(crate) async fn status(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, false, node).await?;
    print(settings, "kvctl.repair.status/v1", &reply)?;
    let mut pairs = reply.nodes.iter().flat_map(|view| &view.pairs);
    let behind = pairs.any(|pair| state(pair) == "failed");
    Ok(if behind { Exit::No } else { Exit::Ok })
}

async fn ask(
    connection: &Connection,
    start: bool,
    node: Option<String>,
) -> Result<RepairReply, Failure> {
    let doing = if start { "starting repair" } else { "asking how repair is going" };
    let node = node.unwrap_or_default();
    connection
        .call(doing, Kind::Read, |client, budget| {
            let request = timed(RepairRequest { start, node: node.clone() }, budget);
            async move { client.admin().repair(request).await }
        })
        .await
}

fn print(settings: &Settings, schema: &'static str, reply: &RepairReply) -> Result<(), Failure> {
    let table = table(&reply.nodes, now_ms());
    jobs::print(settings, schema, &reply.nodes, |view| &view.node, json, table)
}

fn table(nodes: &[RepairView], now_ms: u64) -> Table {
    let mut table =
        Table::new(&["NODE", "PEER", "STATE", "LAST MATCH", "REPAIRED", "LAST ROUND", "ERROR"]);
    for view in nodes {
        if !view.error.is_empty() {
            let unknown = ["?", "unknown", "?", "?", "?"].map(Cell::from);
            let error = Cell::toned(view.error.clone(), Tone::Alarm);
            table.row([vec![view.node.as_str().into()], unknown.into(), vec![error]].concat());
        }
        for pair in &view.pairs {
            table.row(vec![
                view.node.as_str().into(),
                pair.peer.as_str().into(),
                state(pair).into(),
                age(pair.matched_at_ms, now_ms).into(),
                pair.repaired.to_string().into(),
                pair.repaired_last.to_string().into(),
                Cell::toned(pair.error.clone(), Tone::Alarm),
            ]);
        }
    }
    table
}

fn json(view: &RepairView) -> RepairJson {
    let pair = |pair: &PairView| PairJson {
        peer: pair.peer.clone(),
        state: state(pair),
        matched_at: at(pair.matched_at_ms),
        started_at: at(pair.started_at_ms),
        ended_at: at(pair.ended_at_ms),
        rounds: pair.rounds.to_string(),
        repaired: pair.repaired.to_string(),
        repaired_last: pair.repaired_last.to_string(),
        leaves_set_right: pair.leaves_set_right.to_string(),
        error: error(&pair.error),
    };
    RepairJson {
        node: view.node.clone(),
        pairs: view.pairs.iter().map(pair).collect(),
        error: error(&view.error),
    }
}

fn state(pair: &PairView) -> &'static str {
    match pair {
        PairView { running: true, .. } => "running",
        PairView { error, .. } if !error.is_empty() => "failed",
        PairView { matched_at_ms: 0, .. } => "never",
        _ => "matched",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_one_of_four_states() {
        let of = |running, matched_at_ms, error: &str| {
            let error = error.to_owned();
            state(&PairView { running, matched_at_ms, error, ..Default::default() })
        };
        assert_eq!(of(true, 5, ""), "running");
        assert_eq!(of(false, 5, ""), "matched");
        assert_eq!(of(false, 5, "not up: connection refused"), "failed");
        assert_eq!(of(false, 0, ""), "never");
    }

    #[test]
    fn a_match_that_never_was_has_no_time() {
        assert_eq!(json(&RepairView::default()).error, None);
        let pair = PairView { peer: "n2".into(), ..Default::default() };
        let view = RepairView { pairs: vec![pair], ..Default::default() };
        let shown = serde_json::to_value(json(&view)).unwrap();
        assert!(shown["pairs"][0]["matched_at"].is_null(), "{shown}");
    }
}
