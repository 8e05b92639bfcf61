//! `check`: whether all is as it must be, for scripts.

use super::ring;
use super::safety;
use crate::cli::Check;
use crate::commands::{lag, nodes};
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope};
use crate::patience::Patience;
use crate::table::{Cell, Table, Tone};
use crate::time::{for_people, parse_duration};
use crate::units::counted;
use proto::v1::{ClusterView, Keyspace, Level, NodeSafety, NodeState, NodeView};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Every rule, as the refusal of an unknown one lists them.
const RULES: &str =
    "healthy, ring-agreed, margin>=N, lag<TIME, checked<TIME, no-ops, safe-to-stop:NODE";

/// Something that must be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Healthy,
    RingAgreed,
    Margin(u32),
    Lag(Duration),
    Checked(Duration),
    NoOps,
    SafeToStop(String),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::RingAgreed => f.write_str("ring-agreed"),
            Self::Margin(nodes) => write!(f, "margin>={nodes}"),
            Self::Lag(limit) => write!(f, "lag<{}", for_people(*limit)),
            Self::Checked(limit) => write!(f, "checked<{}", for_people(*limit)),
            Self::NoOps => f.write_str("no-ops"),
            Self::SafeToStop(node) => write!(f, "safe-to-stop:{node}"),
        }
    }
}

/// Reads a rule.
pub(crate) fn parse_rule(text: &str) -> Result<Rule, String> {
    let text = text.trim();
    let unknown = || format!("is no rule; the rules are {RULES}");
    match text {
        "healthy" => return Ok(Rule::Healthy),
        "ring-agreed" => return Ok(Rule::RingAgreed),
        "no-ops" => return Ok(Rule::NoOps),
        _ => {}
    }
    if let Some(nodes) = text.strip_prefix("margin>=") {
        return nodes.parse().map(Rule::Margin).map_err(|_| unknown());
    }
    if let Some(limit) = text.strip_prefix("lag<") {
        return parse_duration(limit).map(Rule::Lag);
    }
    if let Some(limit) = text.strip_prefix("checked<") {
        return parse_duration(limit).map(Rule::Checked);
    }
    match text.strip_prefix("safe-to-stop:") {
        Some(node) if !node.is_empty() => Ok(Rule::SafeToStop(node.to_owned())),
        _ => Err(unknown()),
    }
}

/// What became of a rule, as scripts read it.
#[derive(Debug, Serialize)]
struct Finding {
    rule: String,
    ok: bool,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    rules: Vec<Finding>,
}

/// All that the rules are judged by; what no rule needs is not asked for.
struct Facts {
    view: ClusterView,
    safety: Vec<NodeSafety>,
    margins: Vec<Margin>,
}

/// Replicas that the worst partition of a keyspace has beyond what R and W need; below 0: some
/// requests fail.
struct Margin {
    keyspace: String,
    partition: usize,
    spare: i64,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Check,
) -> Result<Exit, Failure> {
    let mut patience = Patience::new(settings.wait_timeout);
    loop {
        let facts = gather(connection, &args.require).await;
        let facts = match args.wait {
            true => patience.bear(connection, facts).await?,
            false => Some(facts?),
        };
        let findings = facts.as_ref().map(|facts| judge_all(facts, &args.require)).transpose()?;
        let ok = findings.iter().flatten().all(|finding| finding.ok) && findings.is_some();
        if !ok && args.wait && patience.pause().await {
            continue;
        }
        return match (facts, findings) {
            (Some(facts), Some(findings)) => print(settings, &facts.view, findings),
            _ => Err(Failure::new(Exit::TimedOut, "WAIT_TIMED_OUT", "no node answers in time")),
        };
    }
}

async fn gather(connection: &Connection, rules: &[Rule]) -> Result<Facts, Failure> {
    let view = connection.view().await?;
    let needs = |wanted: fn(&Rule) -> bool| rules.iter().any(wanted);
    let safety = match needs(|rule| matches!(rule, Rule::SafeToStop(_))) {
        true => safety::of_nodes(connection).await?.nodes,
        false => Vec::new(),
    };
    let margins = match needs(|rule| matches!(rule, Rule::Margin(_))) {
        true => margins(connection, &view).await?,
        false => Vec::new(),
    };
    Ok(Facts { view, safety, margins })
}

/// The view says how many copies are live only of keyspace "default"; of others every member has
/// to be asked.
async fn margins(connection: &Connection, view: &ClusterView) -> Result<Vec<Margin>, Failure> {
    let mut margins = Vec::new();
    for keyspace in view.keyspaces.iter().filter_map(|view| view.keyspace.as_ref()) {
        let live: Vec<u32> = match keyspace.name.as_str() {
            "default" => view.live_copies.iter().map(|live| u32::from(*live)).collect(),
            name => {
                let reply = ring::partitions(connection, name, None).await?;
                reply.partitions.iter().map(|partition| partition.live).collect()
            }
        };
        margins.extend(margin(keyspace, &live));
    }
    Ok(margins)
}

fn margin(keyspace: &Keyspace, live: &[u32]) -> Option<Margin> {
    let needed = i64::from(keyspace.r.max(keyspace.w));
    let worst = live.iter().enumerate().min_by_key(|(_, live)| **live);
    worst.map(|(partition, live)| Margin {
        keyspace: keyspace.name.clone(),
        partition,
        spare: i64::from(*live) - needed,
    })
}

fn judge_all(facts: &Facts, rules: &[Rule]) -> Result<Vec<Finding>, Failure> {
    let finding = |rule: &Rule| {
        let (ok, reason) = judge(facts, rule)?;
        Ok(Finding { rule: rule.to_string(), ok, reason })
    };
    rules.iter().map(finding).collect()
}

fn judge(facts: &Facts, rule: &Rule) -> Result<(bool, String), Failure> {
    let view = &facts.view;
    Ok(match rule {
        Rule::Healthy => healthy(view),
        Rule::RingAgreed => {
            let up = view.nodes.iter().filter(|node| node.state() == NodeState::Up).count();
            let agreed = view.layout_agreed as usize;
            (agreed >= up, format!("agreed by {agreed} of {up} live nodes"))
        }
        Rule::Margin(wanted) => margin_of(&facts.margins, *wanted),
        Rule::Lag(limit) => of_nodes(view, |node| lags(view, node, *limit), "no node lags as much"),
        Rule::Checked(limit) => {
            of_nodes(view, |node| unchecked(view, node, *limit), "every node was, within the time")
        }
        Rule::NoOps => match view.ops.as_slice() {
            [] => (true, "nothing is under way".to_owned()),
            ops => {
                let ids: Vec<&str> = ops.iter().map(|op| op.id.as_str()).collect();
                (false, format!("under way: {}", ids.join(", ")))
            }
        },
        Rule::SafeToStop(node) => safe_to_stop(facts, node)?,
    })
}

fn healthy(view: &ClusterView) -> (bool, String) {
    let verdict = view.verdict.clone().unwrap_or_default();
    let reason = match verdict.impact.as_str() {
        "" => verdict.headline.clone(),
        impact => format!("{}: {impact}", verdict.headline),
    };
    (verdict.level() == Level::Ok, reason)
}

fn margin_of(margins: &[Margin], wanted: u32) -> (bool, String) {
    let Some(worst) = margins.iter().min_by_key(|margin| margin.spare) else {
        return (false, "it is not known how many copies are live".to_owned());
    };
    let Margin { keyspace, partition, spare } = worst;
    let reason = match *spare {
        below if below < 0 => {
            format!(
                "{keyspace} #{partition} is {} short of what R and W need",
                below.unsigned_abs()
            )
        }
        spare => format!("{keyspace} #{partition} has a margin of {spare}"),
    };
    (*spare >= i64::from(wanted), reason)
}

/// So if it is of every node: the others are named, each with what it lacks.
fn of_nodes(
    view: &ClusterView,
    lacking: impl Fn(&NodeView) -> Option<String>,
    so: &str,
) -> (bool, String) {
    let lacking: Vec<String> = view
        .nodes
        .iter()
        .filter_map(|node| lacking(node).map(|what| format!("{} {what}", node.name)))
        .collect();
    match lacking.is_empty() {
        true => (true, so.to_owned()),
        false => (false, lacking.join(", ")),
    }
}

/// What is not known is no pass: a node that nobody told about may lack anything.
fn lags(view: &ClusterView, node: &NodeView, limit: Duration) -> Option<String> {
    let known = node.lag.as_ref().is_some_and(lag::is_known);
    let since_ms = node.lag.as_ref().map_or(0, |lag| lag.since_ms);
    match lag::millis(since_ms, known, view.observed_at_ms).map(Duration::from_millis) {
        Some(age) if age >= limit => Some(format!("lags {}", for_people(age))),
        Some(_) if known => None,
        _ => Some("is not known to lack nothing".to_owned()),
    }
}

fn unchecked(view: &ClusterView, node: &NodeView, limit: Duration) -> Option<String> {
    // There is nobody to be compared with.
    if view.nodes.len() == 1 {
        return None;
    }
    match node.lag.as_ref().map_or(0, |lag| lag.checked_at_ms) {
        0 => Some("was not found equal to all its peers".to_owned()),
        at => {
            let age = Duration::from_millis(view.observed_at_ms.saturating_sub(at));
            (age >= limit).then(|| format!("was found equal {} ago", for_people(age)))
        }
    }
}

fn safe_to_stop(facts: &Facts, name: &str) -> Result<(bool, String), Failure> {
    nodes::find(&facts.view, name)?;
    let Some(safety) = facts.safety.iter().find(|safety| safety.node == name) else {
        return Ok((false, format!("nothing is known of {name}")));
    };
    Ok(match safety {
        NodeSafety { down: true, .. } => (true, format!("{name} is down already")),
        NodeSafety { safe: true, .. } => (true, "no partition would fall below".to_owned()),
        NodeSafety { partitions, keyspaces, .. } => {
            let count = counted(u64::from(*partitions), "partition");
            let reason = format!("{count} would fall below in {}", keyspaces.join(", "));
            (false, reason)
        }
    })
}

fn print(settings: &Settings, view: &ClusterView, rules: Vec<Finding>) -> Result<Exit, Failure> {
    let mut table = Table::new(&["RULE", "OK", "REASON"]);
    for finding in &rules {
        let ok = if finding.ok { "yes".into() } else { Cell::toned("no", Tone::Alarm) };
        table.row(vec![finding.rule.as_str().into(), ok, finding.reason.as_str().into()]);
    }
    let ok = rules.iter().all(|finding| finding.ok);
    let failed = rules.iter().filter(|finding| !finding.ok);
    let answer = Answer {
        names: failed.map(|finding| finding.rule.clone()).collect(),
        envelope: &Envelope::of_view("kvctl.check/v1", view, Report { ok, rules }),
        heading: String::new(),
        table,
    };
    answer.print(settings)?;
    Ok(if ok { Exit::Ok } else { Exit::No })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Lag, OpSummary, Verdict};

    fn facts(node: NodeView) -> Facts {
        let node = NodeView { name: "n1".into(), state: NodeState::Up as i32, ..node };
        let other = NodeView { name: "n2".into(), state: NodeState::Down as i32, ..node.clone() };
        let view = ClusterView {
            nodes: vec![node, other],
            layout_agreed: 1,
            observed_at_ms: 100_000,
            verdict: Some(Verdict {
                level: Level::Degraded as i32,
                headline: "n2 down 12s".into(),
                impact: "reads ok".into(),
                next: String::new(),
            }),
            ..Default::default()
        };
        Facts { view, safety: Vec::new(), margins: Vec::new() }
    }

    fn found(facts: &Facts, rule: &str) -> (bool, String) {
        judge(facts, &parse_rule(rule).unwrap()).unwrap()
    }

    #[test]
    fn every_rule_is_read_and_named_as_it_is_typed() {
        for rule in [
            "healthy",
            "ring-agreed",
            "margin>=1",
            "lag<10s",
            "checked<15m00s",
            "no-ops",
            "safe-to-stop:n4",
        ] {
            let typed = rule.replace("m00s", "m");
            assert_eq!(parse_rule(&typed).unwrap().to_string(), rule);
        }
        for bad in [
            "",
            "Healthy",
            "margin>1",
            "margin>=",
            "margin>=-1",
            "lag<10",
            "lag>10s",
            "safe-to-stop:",
        ] {
            assert!(parse_rule(bad).is_err(), "{bad}");
        }
        assert!(parse_rule("frobnicate").unwrap_err().contains(RULES));
    }

    #[test]
    fn health_agreement_and_rest_are_as_the_view_says() {
        let mut facts = facts(NodeView::default());
        assert_eq!(found(&facts, "healthy"), (false, "n2 down 12s: reads ok".into()));
        assert_eq!(found(&facts, "ring-agreed"), (true, "agreed by 1 of 1 live nodes".into()));
        assert!(found(&facts, "no-ops").0);
        facts.view.layout_agreed = 0;
        assert!(!found(&facts, "ring-agreed").0);
        facts.view.ops = vec![OpSummary { id: "op-1".into(), ..Default::default() }];
        assert_eq!(found(&facts, "no-ops"), (false, "under way: op-1".into()));
    }

    #[test]
    fn lag_that_is_not_known_is_no_pass() {
        let lag = |since_ms, more| {
            let lag = Some(Lag { since_ms, more, checked_at_ms: 40_000, ..Default::default() });
            facts(NodeView { lag, ..Default::default() })
        };
        assert!(found(&lag(0, false), "lag<10s").0);
        assert!(found(&lag(95_000, false), "lag<10s").0);
        assert!(!found(&lag(90_000, false), "lag<10s").0);
        assert!(!found(&lag(95_000, true), "lag<10s").0, "it may be more");
        assert!(!found(&lag(0, true), "lag<10s").0);
        assert!(!found(&facts(NodeView::default()), "lag<10s").0);
        assert!(found(&lag(0, false), "checked<61s").0);
        let (ok, reason) = found(&lag(0, false), "checked<1m");
        assert!(!ok && reason.contains("n1 was found equal 1m00s ago"), "{reason}");
    }

    #[test]
    fn the_margin_is_that_of_the_worst_partition_of_any_keyspace() {
        let keyspace =
            |name: &str, w| Keyspace { name: name.into(), n: 3, r: 2, w, ..Default::default() };
        let mut facts = facts(NodeView::default());
        assert!(!found(&facts, "margin>=0").0, "nothing is known");
        facts.margins.extend(margin(&keyspace("default", 2), &[3, 2, 3]));
        assert_eq!(found(&facts, "margin>=0"), (true, "default #1 has a margin of 0".into()));
        assert!(!found(&facts, "margin>=1").0);
        facts.margins.extend(margin(&keyspace("billing", 3), &[2, 3, 3]));
        assert_eq!(
            found(&facts, "margin>=0"),
            (false, "billing #0 is 1 short of what R and W need".into())
        );
    }

    #[test]
    fn a_node_may_be_stopped_if_nothing_falls_below() {
        let mut facts = facts(NodeView::default());
        let safety = |down, safe, partitions| NodeSafety {
            node: "n1".into(),
            down,
            safe,
            partitions,
            keyspaces: vec!["default".into()],
        };
        assert!(!found(&facts, "safe-to-stop:n1").0, "nothing is known");
        facts.safety = vec![safety(false, false, 7)];
        let expected = (false, "7 partitions would fall below in default".to_owned());
        assert_eq!(found(&facts, "safe-to-stop:n1"), expected);
        facts.safety = vec![safety(false, true, 0)];
        assert!(found(&facts, "safe-to-stop:n1").0);
        facts.safety = vec![safety(true, false, 0)];
        assert!(found(&facts, "safe-to-stop:n1").0);
        let unknown = judge(&facts, &parse_rule("safe-to-stop:n9").unwrap());
        assert_eq!(unknown.unwrap_err().exit, Exit::NotFound);
    }
}
