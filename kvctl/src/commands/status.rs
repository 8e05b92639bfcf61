//! `status`: how the cluster is, in a few lines. It reports, it does not judge.

use crate::commands::keyspaces;
use crate::commands::nodes::{Node, disagreements, table};
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope, printable};
use crate::table::Tone;
use crate::value::hex;
use proto::v1::{ClusterView, Level, NodeState, Verdict};
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Status {
    verdict: VerdictJson,
    nodes_up: usize,
    layout_agreed: u32,
    version: String,
    nodes: Vec<Node>,
    keyspaces: Vec<keyspaces::KeyspaceJson>,
}

#[derive(Debug, Serialize)]
struct VerdictJson {
    level: &'static str,
    headline: String,
    impact: String,
    next: String,
}

pub(crate) async fn run(settings: &Settings, connection: &Connection) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let verdict = view.verdict.clone().unwrap_or_default();
    let status = Status {
        nodes_up: up(&view),
        layout_agreed: view.layout_agreed,
        version: view.version.clone(),
        nodes: view.nodes.iter().map(|node| Node::of(node, view.observed_at_ms)).collect(),
        keyspaces: view.keyspaces.iter().map(keyspaces::KeyspaceJson::of).collect(),
        verdict: VerdictJson {
            level: level(verdict.level()).0,
            headline: verdict.headline.clone(),
            impact: verdict.impact.clone(),
            next: verdict.next.clone(),
        },
    };
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.status/v1", &view, status),
        heading: cluster_line(&view)
            + &verdict_lines(settings, &verdict)
            + &disagreements(settings, &view),
        table: table(settings, view.observed_at_ms, &view.nodes),
        names: vec![view.name.clone()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

/// Which cluster this is, on which ring, and who says so.
pub(crate) fn cluster_line(view: &ClusterView) -> String {
    let id = hex(&view.id);
    let depth =
        view.layout.as_ref().map_or_else(|| "?".to_owned(), |layout| layout.depth.to_string());
    format!(
        "cluster {} ({})  ring {depth}, agreed by {} of {} live nodes  seen via {}\n",
        printable(&view.name),
        id.get(..8).unwrap_or(&id),
        view.layout_agreed,
        up(view),
        printable(&view.viewpoint),
    )
}

fn verdict_lines(settings: &Settings, verdict: &Verdict) -> String {
    let (name, sign, plain, tone) = level(verdict.level());
    let sign = if settings.ascii { plain } else { sign };
    let (on, off) = match tone.sequence() {
        on if settings.color_stdout && !on.is_empty() => (on, "\x1b[0m"),
        _ => ("", ""),
    };
    let word = name.to_uppercase();
    let mut text = format!("{on}{sign} {word}{off}  {}", printable(&verdict.headline));
    if !verdict.impact.is_empty() {
        text += &format!(": {}", printable(&verdict.impact));
    }
    text.push('\n');
    if !verdict.next.is_empty() {
        text += &format!("  next  {}\n", printable(&verdict.next));
    }
    text
}

fn up(view: &ClusterView) -> usize {
    let up = |node: &&proto::v1::NodeView| node.state() == NodeState::Up;
    view.nodes.iter().filter(up).count()
}

/// Name, sign, ASCII sign and colour.
fn level(level: Level) -> (&'static str, &'static str, &'static str, Tone) {
    match level {
        Level::Ok => ("ok", "●", "*", Tone::Plain),
        Level::Degraded => ("degraded", "▲", "!", Tone::Warning),
        Level::Critical => ("critical", "✖", "X", Tone::Alarm),
        Level::Unspecified => ("unknown", "?", "?", Tone::Warning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;
    use proto::v1::{LayoutRef, NodeView};

    #[test]
    fn the_head_says_which_cluster_and_how_it_is() {
        let node = |name: &str, state: NodeState| NodeView {
            name: name.into(),
            state: state as i32,
            ..Default::default()
        };
        let view = ClusterView {
            name: "prod".into(),
            id: vec![0x5d; 16].into(),
            viewpoint: "n1".into(),
            layout: Some(LayoutRef { depth: 3, ..Default::default() }),
            layout_agreed: 1,
            nodes: vec![node("n1", NodeState::Up), node("n2", NodeState::Down)],
            ..Default::default()
        };
        assert_eq!(
            cluster_line(&view),
            "cluster prod (5d5d5d5d)  ring 3, agreed by 1 of 1 live nodes  seen via n1\n"
        );
        let verdict = Verdict {
            level: Level::Degraded as i32,
            headline: "n2 down 12s".into(),
            impact: "reads ok".into(),
            next: "restart n2".into(),
        };
        let settings = Settings::resolve(&Global::default(), &|_| None).unwrap();
        assert_eq!(
            verdict_lines(&settings, &verdict),
            "▲ DEGRADED  n2 down 12s: reads ok\n  next  restart n2\n"
        );
    }
}
