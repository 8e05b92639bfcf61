//! `status`: how the cluster is, in a few lines. It reports, it does not judge.

use crate::commands::keyspaces;
use crate::commands::nodes::{Node, disagreements, table};
use crate::commands::safety::{self, SafeToStop};
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope, printable};
use crate::table::{Table, Tone};
use crate::time::rfc3339;
use crate::value::hex;
use proto::v1::{ClusterView, Level, NodeSafety, NodeState, OpSummary, Verdict};
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Status {
    verdict: VerdictJson,
    nodes_up: usize,
    layout_agreed: u32,
    version: String,
    nodes: Vec<Node>,
    keyspaces: Vec<keyspaces::KeyspaceJson>,
    ops: Vec<OpJson>,
}

/// An operation under way, as far as the viewpoint knows; `ops show` asks every node.
#[derive(Debug, Serialize)]
struct OpJson {
    op: String,
    line: String,
    more_lines: u32,
    state: &'static str,
    at: String,
    copies_total: String,
    copies_done: String,
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
    // A node that cannot say what is safe says how it is all the same.
    let safety = safety::of_nodes(connection).await.map(|reply| reply.nodes).unwrap_or_default();
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.status/v1", &view, status(&view, &safety)),
        heading: cluster_line(&view)
            + &verdict_lines(settings, &view.verdict.clone().unwrap_or_default())
            + &ops_lines(settings, &view.ops)
            + &disagreements(settings, &view),
        table: nodes(settings, &view, &safety),
        names: vec![view.name.clone()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

fn status(view: &ClusterView, safety: &[NodeSafety]) -> Status {
    let verdict = view.verdict.clone().unwrap_or_default();
    let node = |node: &proto::v1::NodeView| {
        let safe = of_node(safety, &node.name).map(SafeToStop::of).unwrap_or_default();
        Node::of(node, view.observed_at_ms).with_safety(safe)
    };
    Status {
        nodes_up: up(view),
        layout_agreed: view.layout_agreed,
        version: view.version.clone(),
        nodes: view.nodes.iter().map(node).collect(),
        keyspaces: view.keyspaces.iter().map(keyspaces::KeyspaceJson::of).collect(),
        ops: view.ops.iter().map(OpJson::of).collect(),
        verdict: VerdictJson {
            level: level(verdict.level()).0,
            headline: verdict.headline,
            impact: verdict.impact,
            next: verdict.next,
        },
    }
}

impl OpJson {
    fn of(op: &OpSummary) -> Self {
        Self {
            op: op.id.clone(),
            line: op.line.clone(),
            more_lines: op.more_lines,
            state: if op.paused { "paused" } else { "running" },
            at: rfc3339(op.at_ms),
            copies_total: op.copies_total.to_string(),
            copies_done: op.copies_done.to_string(),
        }
    }
}

/// The table of nodes, with whether each may be stopped by the R and W of keyspace "default".
fn nodes(settings: &Settings, view: &ClusterView, safety: &[NodeSafety]) -> Table {
    let mut table = table(settings, view.observed_at_ms, &view.nodes);
    let keyspaces = view.keyspaces.iter().filter_map(|view| view.keyspace.as_ref());
    let mut default = keyspaces.filter(|keyspace| keyspace.name == "default");
    let title = match default.next() {
        Some(keyspace) => format!("SAFE TO STOP (R{}/W{})", keyspace.r, keyspace.w),
        None => "SAFE TO STOP".to_owned(),
    };
    let cells = view.nodes.iter().map(|node| safety::cell(of_node(safety, &node.name)));
    table.insert("ADDRESS", title, cells.collect());
    table
}

fn of_node<'a>(safety: &'a [NodeSafety], name: &str) -> Option<&'a NodeSafety> {
    safety.iter().find(|safety| safety.node == name)
}

/// `» op-7f3a1b2c + n13 zone a, 2 more  62%  48/77 copies`, a line for each operation under way.
fn ops_lines(settings: &Settings, ops: &[OpSummary]) -> String {
    let sign = if settings.ascii { ">" } else { "»" };
    let (on, off) = if settings.color_stdout { ("\x1b[36m", "\x1b[0m") } else { ("", "") };
    let line = |op: &OpSummary| {
        let mut words = format!("{} {}", op.id, op.line);
        if op.more_lines > 0 {
            words += &format!(", {} more", op.more_lines);
        }
        if let Some(percent) = (op.copies_done * 100).checked_div(op.copies_total) {
            words += &format!("  {percent}%  {}/{} copies", op.copies_done, op.copies_total);
        }
        if op.paused {
            words += "  paused";
        }
        format!("{on}{sign}{off} {}\n", printable(&words))
    };
    ops.iter().map(line).collect()
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
    fn what_is_under_way_has_a_line() {
        let settings = Settings::resolve(&Global::default(), &|_| None).unwrap();
        let op = OpSummary {
            id: "op-7f3a1b2c".into(),
            line: "+ n13 zone a".into(),
            copies_total: 77,
            copies_done: 48,
            paused: true,
            more_lines: 2,
            ..Default::default()
        };
        let quorum =
            OpSummary { id: "op-1".into(), line: "~ logs W 2".into(), ..Default::default() };
        assert_eq!(
            ops_lines(&settings, &[op, quorum]),
            "» op-7f3a1b2c + n13 zone a, 2 more  62%  48/77 copies  paused\n» op-1 ~ logs W 2\n"
        );
    }

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
