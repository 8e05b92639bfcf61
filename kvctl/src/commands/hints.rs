//! `hints list|pause|resume|replay|drop`: what nodes keep for others that were down.

use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope};
use crate::table::{Cell, Table, Tone};
use crate::time::{for_people, now_ms, rfc3339};
use crate::value::size;
use proto::v1::{HintAction, HintView, HintsReply, HintsRequest, NodeHints};
use serde::Serialize;
use std::time::Duration;

/// What one node keeps for another, as scripts read it.
#[derive(Debug, Serialize)]
struct HintJson {
    node: String,
    target: Option<String>,
    state: &'static str,
    keys: String,
    bytes: String,
    since: Option<String>,
    overflowed: bool,
    error: Option<String>,
}

/// Which hints.
pub(crate) struct Which {
    /// Who keeps them.
    pub(crate) node: Option<String>,
    /// Whom they are for.
    pub(crate) target: Option<String>,
}

/// Does `action` with them, and says what is kept.
pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    action: HintAction,
    which: Which,
) -> Result<Exit, Failure> {
    if action == HintAction::Drop && !settings.yes {
        let what = "dropping hints needs a confirmation: what they hold is missing on their node until it is found by comparing";
        return Err(Failure::new(Exit::Unconfirmed, "CONFIRMATION_NEEDED", what)
            .state("nothing was sent")
            .advice("the same command with --yes"));
    }
    let node = which.node.unwrap_or_default();
    let target = which.target.unwrap_or_default();
    let reply: HintsReply = connection
        .call("asking for hints", Kind::Read, |client, budget| {
            let (node, target) = (node.clone(), target.clone());
            let request = timed(HintsRequest { action: action.into(), node, target }, budget);
            async move { client.admin().hints(request).await }
        })
        .await?;
    print(settings, &reply)?;
    let unasked = reply.nodes.iter().any(|node| !node.error.is_empty());
    Ok(if unasked { Exit::Partial } else { Exit::Ok })
}

fn print(settings: &Settings, reply: &HintsReply) -> Result<(), Failure> {
    let data: Vec<HintJson> = reply.nodes.iter().flat_map(json).collect();
    let mut table = Table::new(&["NODE", "FOR", "STATE", "KEYS", "SIZE", "SINCE", "ERROR"]);
    for row in reply.nodes.iter().flat_map(rows) {
        table.row(row);
    }
    let answer = Answer {
        names: data.iter().map(|hint| hint.node.clone()).collect(),
        envelope: &Envelope::bare("kvctl.hints/v1", data),
        heading: String::new(),
        table,
    };
    answer.print(settings)
}

fn json(node: &NodeHints) -> Vec<HintJson> {
    let unasked = (!node.error.is_empty()).then(|| HintJson {
        node: node.node.clone(),
        target: None,
        state: "unknown",
        keys: "0".into(),
        bytes: "0".into(),
        since: None,
        overflowed: false,
        error: Some(node.error.clone()),
    });
    let hints = node.hints.iter().map(|hint| HintJson {
        node: node.node.clone(),
        target: Some(hint.target.clone()),
        state: state(node, hint),
        keys: hint.keys.to_string(),
        bytes: hint.bytes.to_string(),
        since: (hint.since_ms > 0).then(|| rfc3339(hint.since_ms)),
        overflowed: hint.overflowed,
        error: None,
    });
    unasked.into_iter().chain(hints).collect()
}

fn rows(node: &NodeHints) -> Vec<Vec<Cell>> {
    if !node.error.is_empty() {
        let error = Cell::toned(node.error.clone(), Tone::Alarm);
        let unknown = || Cell::from("?");
        return vec![vec![
            node.node.as_str().into(),
            unknown(),
            "unknown".into(),
            unknown(),
            unknown(),
            unknown(),
            error,
        ]];
    }
    let row = |hint: &HintView| {
        let age = Duration::from_millis(now_ms().saturating_sub(hint.since_ms));
        let since = if hint.since_ms > 0 { for_people(age) } else { "-".into() };
        vec![
            node.node.as_str().into(),
            hint.target.as_str().into(),
            Cell::toned(state(node, hint), Tone::Warning),
            hint.keys.to_string().into(),
            size(hint.bytes).into(),
            since.into(),
            if hint.overflowed { "no room for more" } else { "" }.into(),
        ]
    };
    node.hints.iter().map(row).collect()
}

fn state(node: &NodeHints, hint: &HintView) -> &'static str {
    match hint {
        HintView { delivering: true, .. } => "delivering",
        _ if node.paused => "paused",
        _ => "waiting",
    }
}
