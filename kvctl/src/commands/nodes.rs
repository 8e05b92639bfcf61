//! `nodes list|show`: what one node knows of every node.

use crate::cli::{NodeOrder, NodeStateFilter};
use crate::commands::lag;
use crate::commands::safety::SafeToStop;
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope, printable};
use crate::table::{Cell, Table, Tone};
use crate::time::{for_people, rfc3339};
use crate::value::{hex, size};
use proto::histogram::{dense, quantile};
use proto::v1::{ClusterView, Histogram, Membership, NodeState, NodeStats, NodeView, SeenBy};
use serde::Serialize;
use std::time::Duration;

/// A share this far from fair, relative to it, is marked.
const DEVIATION_MARKED: f64 = 0.10;

/// A node, as scripts read it. What was never heard is null, never zero.
#[derive(Debug, Serialize)]
pub(crate) struct Node {
    name: String,
    uid: String,
    address: String,
    zone: String,
    weight: u32,
    state: &'static str,
    membership: &'static str,
    /// It takes no client requests, as it last said.
    draining: bool,
    since: Option<String>,
    why: String,
    share_ratio: f64,
    fair_ratio: f64,
    copies: u32,
    version: String,
    ring: Option<String>,
    layout: Option<String>,
    round_trip_us: Option<u64>,
    /// Null: none is known to be missing, which is 0 only with `lag_known`.
    lag_ms: Option<u64>,
    lag_known: bool,
    checked_ms: Option<u64>,
    lag: Option<Lag>,
    hints: Option<Hints>,
    /// It has no vote in gets until it is level with its replicas. Null: not heard.
    lost_data: Option<bool>,
    views: Views,
    stats: Option<Stats>,
    stats_at: Option<String>,
    /// Only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    safe_to_stop: Option<SafeToStop>,
}

/// What is known to be missing on a node.
#[derive(Debug, Serialize)]
struct Lag {
    /// Null with `unheard` empty: nothing is.
    since: Option<String>,
    keys: String,
    bytes: String,
    more: bool,
    unheard: Vec<String>,
    /// When it last matched with each that it shares copies with; null: with one, not known.
    checked_at: Option<String>,
    differing: String,
}

/// What it keeps for others.
#[derive(Debug, Serialize)]
struct Hints {
    count: String,
    bytes: String,
}

/// What every other member says of a node: names. Suspect is up, with a doubt.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Views {
    up: Vec<String>,
    suspect: Vec<String>,
    down: Vec<String>,
    /// Those that cannot say, or were not heard lately.
    unknown: Vec<String>,
    /// Of all these, those that cannot send it requests, as far as they told.
    unlinked: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Stats {
    gets: String,
    puts: String,
    deletes: String,
    failures: String,
    read_repairs: String,
    siblings_seen: String,
    get_latency: Latency,
    put_latency: Latency,
    keys: String,
    data_bytes: String,
    disk_total_bytes: String,
    disk_free_bytes: String,
    bad_records: String,
    started_at: String,
    incarnation: String,
}

/// Since the node started; null if nothing was counted.
#[derive(Debug, Serialize)]
struct Latency {
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

pub(crate) async fn list(
    settings: &Settings,
    connection: &Connection,
    state: Option<NodeStateFilter>,
    zone: Option<String>,
    order: NodeOrder,
) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let wanted = |node: &&NodeView| {
        state.is_none_or(|state| state_of(state) == node.state())
            && zone.as_ref().is_none_or(|zone| *zone == node.zone)
    };
    let mut nodes: Vec<NodeView> = view.nodes.iter().filter(wanted).cloned().collect();
    sort(&mut nodes, order);
    let data: Vec<Node> = nodes.iter().map(|node| Node::of(node, view.observed_at_ms)).collect();
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.nodes.list/v1", &view, data),
        heading: String::new(),
        table: table(settings, view.observed_at_ms, &nodes),
        names: nodes.iter().map(|node| node.name.clone()).collect(),
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

pub(crate) async fn show(
    settings: &Settings,
    connection: &Connection,
    name: &str,
) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let node = find(&view, name)?;
    let answer = Answer {
        envelope: &Envelope::of_view(
            "kvctl.nodes.show/v1",
            &view,
            Node::of(node, view.observed_at_ms),
        ),
        heading: String::new(),
        table: details(settings, view.observed_at_ms, node),
        names: vec![node.name.clone()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

/// The node of this name.
pub(crate) fn find<'a>(view: &'a ClusterView, name: &str) -> Result<&'a NodeView, Failure> {
    view.nodes.iter().find(|node| node.name == name).ok_or_else(|| unknown(view, name))
}

/// The table of nodes, which `status` shows too.
pub(crate) fn table(settings: &Settings, now_ms: u64, nodes: &[NodeView]) -> Table {
    let mut table = Table::new(&[
        "NODE", "ZONE", "STATE", "SHARE", "FAIR", "DEV", "LAG", "CHECKED", "KEYS", "DISK",
        "ADDRESS", "+FOR", "+GETS", "+PUTS", "+GET P99", "+PUT P99", "+HINTS", "+DATA", "+VERSION",
        "+WHY",
    ]);
    for node in nodes {
        let stats = node.stats.as_ref();
        let known = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "?".to_owned()));
        let p99 = |of: fn(&NodeStats) -> &Option<Histogram>| {
            known(stats.map(|stats| millis(latency(of(stats).as_ref()).p99_us)))
        };
        table.row(vec![
            node.name.clone().into(),
            node.zone.clone().into(),
            node_state_cell(settings, node),
            percent(node.share_ratio).into(),
            percent(node.fair_ratio).into(),
            deviation_cell(settings, node.share_ratio, node.fair_ratio),
            lag::node_cell(node.lag.as_ref(), now_ms),
            lag::age_cell(checked_at(node), now_ms),
            known(stats.map(|stats| stats.keys.to_string())),
            known(stats.and_then(disk_used).map(|used| format!("{:.0}%", used * 100.0))),
            node.address.clone().into(),
            known(lasting(now_ms, node.since_ms)),
            known(stats.map(|stats| stats.gets.to_string())),
            known(stats.map(|stats| (stats.puts + stats.deletes).to_string())),
            p99(|stats| &stats.get_latency),
            p99(|stats| &stats.put_latency),
            known(stats.map(|stats| held(stats).0.to_string())),
            known(stats.map(|stats| size(stats.data_bytes))),
            known(some_text(&node.version)),
            or_dash(&node.why).into(),
        ]);
    }
    table
}

/// A state as scripts read it.
pub(crate) fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
        NodeState::Unknown | NodeState::Unspecified => "unknown",
    }
}

/// What most nodes are.
pub(crate) const MEMBER: &str = "member";

/// Whether a node has come to stay, as scripts read it.
pub(crate) fn membership_name(membership: Membership) -> &'static str {
    match membership {
        // A kvd that does not say knows members only.
        Membership::Member | Membership::Unspecified => MEMBER,
        Membership::Joining => "joining",
        Membership::Leaving => "leaving",
    }
}

/// The state of a node with its sign, whether it may vote, and whether it comes or goes.
pub(crate) fn node_state_cell(settings: &Settings, node: &NodeView) -> Cell {
    let mut cell = match lost_data(node) {
        Some(true) if node.state() == NodeState::Up => Cell::toned("up, no vote", Tone::Warning),
        _ => state_cell(settings, node.state()),
    };
    if membership_name(node.membership()) != MEMBER {
        cell = cell.and(membership_name(node.membership()));
    }
    if node.draining {
        cell = cell.and("draining");
    }
    cell
}

/// A state with its sign.
pub(crate) fn state_cell(settings: &Settings, state: NodeState) -> Cell {
    let name = state_name(state);
    match state {
        NodeState::Up => name.into(),
        NodeState::Down => {
            let sign = if settings.ascii { "X" } else { "✖" };
            Cell::toned(format!("{name} {sign}"), Tone::Alarm)
        }
        NodeState::Suspect => {
            let sign = if settings.ascii { "!" } else { "▲" };
            Cell::toned(format!("{name} {sign}"), Tone::Warning)
        }
        NodeState::Unknown | NodeState::Unspecified => {
            Cell::toned(format!("{name} ?"), Tone::Warning)
        }
    }
}

/// How far a share is from fair, relative to it, with a sign if that is far.
pub(crate) fn deviation_cell(settings: &Settings, share: f64, fair: f64) -> Cell {
    let Some(deviation) = deviation(share, fair) else {
        return "-".into();
    };
    // Rounded first: -0.2% is no deviation and must not read -0%.
    let text = match (deviation * 100.0).round() as i64 {
        0 => "0%".to_owned(),
        rounded => format!("{rounded:+}%"),
    };
    if deviation.abs() < DEVIATION_MARKED {
        return text.into();
    }
    let sign = if settings.ascii { "!" } else { "▲" };
    Cell::toned(format!("{text} {sign}"), Tone::Warning)
}

/// A ratio as a percentage.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.1}%", ratio * 100.0)
}

fn deviation(share: f64, fair: f64) -> Option<f64> {
    (fair > 0.0).then(|| share / fair - 1.0)
}

fn unknown(view: &ClusterView, name: &str) -> Failure {
    let names: Vec<&str> = view.nodes.iter().map(|node| node.name.as_str()).collect();
    Failure::new(Exit::NotFound, "NODE_UNKNOWN", format!("there is no node {name}")).why(format!(
        "cluster {} has: {}",
        view.name,
        names.join(", ")
    ))
}

fn state_of(filter: NodeStateFilter) -> NodeState {
    match filter {
        NodeStateFilter::Up => NodeState::Up,
        NodeStateFilter::Down => NodeState::Down,
        NodeStateFilter::Unknown => NodeState::Unknown,
    }
}

/// Stable, from the order by name that the cluster gives.
fn sort(nodes: &mut [NodeView], order: NodeOrder) {
    let keys = |node: &NodeView| node.stats.as_ref().map(|stats| stats.keys);
    let disk = |node: &NodeView| node.stats.as_ref().and_then(disk_used).unwrap_or(-1.0);
    let far = |node: &NodeView| deviation(node.share_ratio, node.fair_ratio).map_or(-1.0, f64::abs);
    match order {
        NodeOrder::Name => nodes.sort_by(|a, b| a.name.cmp(&b.name)),
        NodeOrder::Zone => nodes.sort_by(|a, b| a.zone.cmp(&b.zone)),
        // Those that are not up come first: they are what one looks for.
        NodeOrder::State => nodes.sort_by_key(|node| std::cmp::Reverse(node.state)),
        NodeOrder::Share => nodes.sort_by(|a, b| b.share_ratio.total_cmp(&a.share_ratio)),
        NodeOrder::Dev => nodes.sort_by(|a, b| far(b).total_cmp(&far(a))),
        // What is known to be missing, the oldest first; then what nobody knows; then nothing.
        NodeOrder::Lag => nodes.sort_by_key(|node| match node.lag.as_ref() {
            Some(lag) if lag.since_ms > 0 => (0, lag.since_ms),
            Some(lag) if lag::is_known(lag) => (2, 0),
            _ => (1, 0),
        }),
        NodeOrder::Keys => nodes.sort_by_key(|node| std::cmp::Reverse(keys(node))),
        NodeOrder::Disk => nodes.sort_by(|a, b| disk(b).total_cmp(&disk(a))),
    }
}

fn details(settings: &Settings, now_ms: u64, node: &NodeView) -> Table {
    let mut table = Table::new(&["FIELD", "VALUE"]);
    let mut field = |name: &str, value: Cell| table.row(vec![name.into(), value]);
    field("name", node.name.clone().into());
    field("uid", hex(&node.uid).into());
    field("address", node.address.clone().into());
    field("zone", node.zone.clone().into());
    field("weight", node.weight.to_string().into());
    field("state", node_state_cell(settings, node));
    let lasting = lasting(now_ms, node.since_ms);
    field("for", lasting.unwrap_or_else(|| "?".into()).into());
    field("why", or_dash(&node.why).into());
    field("seen by", seen_by(settings, &node.seen_by).into());
    field("share", percent(node.share_ratio).into());
    field("fair", percent(node.fair_ratio).into());
    field("dev", deviation_cell(settings, node.share_ratio, node.fair_ratio));
    field("copies", node.copies.to_string().into());
    let ring = node.layout.as_ref().map(|layout| format!("{} ({})", layout.depth, hex(&layout.id)));
    field("ring", ring.unwrap_or_else(|| "?".into()).into());
    field("lag", lag_in_full(now_ms, node.lag.as_ref()).into());
    field("checked", checked(now_ms, node).into());
    let round_trip = (node.latency_us > 0).then_some(node.latency_us);
    field("round trip", millis(round_trip).into());
    field("version", some_text(&node.version).unwrap_or_else(|| "?".into()).into());
    let Some(stats) = &node.stats else {
        field("stats", "? (never heard)".into());
        return table;
    };
    let (get, put) = (latency(stats.get_latency.as_ref()), latency(stats.put_latency.as_ref()));
    let disk = disk_used(stats).map_or_else(
        || "?".to_owned(),
        |used| {
            let (free, total) = (size(stats.disk_free_bytes), size(stats.disk_total_bytes));
            format!("{:.0}%, {free} of {total} free", used * 100.0)
        },
    );
    let (hints, hint_bytes) = held(stats);
    let up = self::lasting(now_ms, stats.started_at_ms).map(|for_| format!(" ({for_} ago)"));
    let started = some_time(stats.started_at_ms).unwrap_or_else(|| "?".into());
    for (name, value) in [
        ("incarnation", hex(&stats.incarnation)),
        ("started", started + &up.unwrap_or_default()),
        ("gets", stats.gets.to_string()),
        ("puts", stats.puts.to_string()),
        ("deletes", stats.deletes.to_string()),
        ("failures", stats.failures.to_string()),
        ("get p50, p99", format!("{}, {}", millis(get.p50_us), millis(get.p99_us))),
        ("put p50, p99", format!("{}, {}", millis(put.p50_us), millis(put.p99_us))),
        ("read repairs", stats.read_repairs.to_string()),
        ("siblings seen", stats.siblings_seen.to_string()),
        ("keys", stats.keys.to_string()),
        ("hints held", format!("{hints}, {}", size(hint_bytes))),
        ("data", size(stats.data_bytes)),
        ("disk", disk),
        ("bad records", stats.bad_records.to_string()),
        ("heard at", some_time(node.stats_at_ms).unwrap_or_else(|| "?".into())),
    ] {
        field(name, value.into());
    }
    table
}

/// A member that was heard, and cannot send the node requests.
fn has_no_link(said: &SeenBy) -> bool {
    !said.linked && !matches!(said.state(), NodeState::Unknown | NodeState::Unspecified)
}

/// `up n1 n3 · down n2 (no link)`.
fn seen_by(settings: &Settings, said: &[SeenBy]) -> String {
    let separator = if settings.ascii { " | " } else { " · " };
    let order = [NodeState::Up, NodeState::Suspect, NodeState::Down, NodeState::Unknown];
    let groups = order.into_iter().filter_map(|state| {
        let same = said.iter().filter(|said| state_name(said.state()) == state_name(state));
        let names: Vec<String> = same
            .map(|said| match has_no_link(said) {
                true => format!("{} (no link)", said.node),
                false => said.node.clone(),
            })
            .collect();
        (!names.is_empty()).then(|| format!("{} {}", state_name(state), names.join(" ")))
    });
    or_dash(&groups.collect::<Vec<_>>().join(separator))
}

/// What live nodes do not agree about, in a line for each such node; empty: they agree.
pub(crate) fn disagreements(settings: &Settings, view: &ClusterView) -> String {
    let is_up = |name: &str| {
        view.nodes.iter().any(|node| node.name == name && node.state() == NodeState::Up)
    };
    let mut lines = String::new();
    for node in &view.nodes {
        let live: Vec<SeenBy> =
            node.seen_by.iter().filter(|said| is_up(&said.node)).cloned().collect();
        let says = |state: NodeState| live.iter().any(|said| said.state() == state);
        let up = says(NodeState::Up) || says(NodeState::Suspect);
        let disagree = up && says(NodeState::Down);
        if disagree || (up && live.iter().any(has_no_link)) {
            let what = if disagree { "nodes disagree about" } else { "not everybody reaches" };
            let said = printable(&seen_by(settings, &live));
            lines += &format!("  views  {what} {}: {said}\n", printable(&node.name));
        }
    }
    lines
}

/// How far a node is behind; what is not known is never zero.
fn lag_in_full(now_ms: u64, lag: Option<&proto::v1::Lag>) -> String {
    let Some(lag) = lag else { return "?".into() };
    let unheard = lag.unheard.join(", ");
    match lasting(now_ms, lag.since_ms) {
        None if !unheard.is_empty() => format!("? ({unheard} not heard)"),
        None if lag.more => "? (no room to keep all it missed)".into(),
        None => "0".into(),
        Some(age) => {
            let more = if lag.more || !unheard.is_empty() { " or more" } else { "" };
            format!("{age}{more}, {} keys, {} kept for it", lag.keys, size(lag.bytes))
        }
    }
}

/// The age of its oldest last match with one of those it shares copies with.
fn checked(now_ms: u64, node: &NodeView) -> String {
    let differing = node.lag.as_ref().map_or(0, |lag| lag.differing);
    let unlike = if differing > 0 { format!(", {differing} keys unlike") } else { String::new() };
    let age = lasting(now_ms, checked_at(node)).map(|age| format!("{age} ago"));
    age.unwrap_or_else(|| "?".into()) + &unlike
}

fn checked_at(node: &NodeView) -> u64 {
    node.lag.as_ref().map_or(0, |lag| lag.checked_at_ms)
}

/// Keys and bytes it keeps for others.
fn held(stats: &NodeStats) -> (u64, u64) {
    let sum = |of: fn(&proto::v1::HintTotal) -> u64| stats.hints.iter().map(of).sum();
    (sum(|hints| hints.keys), sum(|hints| hints.bytes))
}

fn lost_data(node: &NodeView) -> Option<bool> {
    node.stats.as_ref().map(|stats| stats.lost_data)
}

fn lasting(now_ms: u64, since_ms: u64) -> Option<String> {
    (since_ms > 0).then(|| for_people(Duration::from_millis(now_ms.saturating_sub(since_ms))))
}

fn some_time(unix_ms: u64) -> Option<String> {
    (unix_ms > 0).then(|| rfc3339(unix_ms))
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn or_dash(text: &str) -> String {
    some_text(text).unwrap_or_else(|| "-".to_owned())
}

fn disk_used(stats: &NodeStats) -> Option<f64> {
    let total = stats.disk_total_bytes;
    (total > 0).then(|| total.saturating_sub(stats.disk_free_bytes) as f64 / total as f64)
}

fn latency(histogram: Option<&Histogram>) -> Latency {
    let counts = histogram.map(dense);
    let at = |q| counts.as_ref().and_then(|counts| quantile(counts, q));
    Latency { p50_us: at(0.50), p99_us: at(0.99) }
}

fn millis(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{:.1}ms", us as f64 / 1e3))
}

impl Node {
    /// A node of the view, as of `now_ms`.
    pub(crate) fn of(node: &NodeView, now_ms: u64) -> Self {
        let lag = node.lag.clone().unwrap_or_default();
        let lag_known = node.lag.as_ref().is_some_and(lag::is_known);
        let hints = node.stats.as_ref().map(held);
        Self {
            name: node.name.clone(),
            uid: hex(&node.uid),
            address: node.address.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            state: state_name(node.state()),
            membership: membership_name(node.membership()),
            draining: node.draining,
            since: some_time(node.since_ms),
            why: node.why.clone(),
            share_ratio: node.share_ratio,
            fair_ratio: node.fair_ratio,
            copies: node.copies,
            version: node.version.clone(),
            ring: node.layout.as_ref().map(|layout| layout.depth.to_string()),
            layout: node.layout.as_ref().map(|layout| hex(&layout.id)),
            round_trip_us: (node.latency_us > 0).then_some(node.latency_us),
            lag_ms: lag::millis(lag.since_ms, lag_known, now_ms),
            lag_known,
            checked_ms: (lag.checked_at_ms > 0).then(|| now_ms.saturating_sub(lag.checked_at_ms)),
            hints: hints
                .map(|(count, bytes)| Hints { count: count.to_string(), bytes: bytes.to_string() }),
            lost_data: node.stats.as_ref().map(|stats| stats.lost_data),
            lag: node.lag.as_ref().map(|lag| Lag {
                since: some_time(lag.since_ms),
                keys: lag.keys.to_string(),
                bytes: lag.bytes.to_string(),
                more: lag.more,
                unheard: lag.unheard.clone(),
                checked_at: some_time(lag.checked_at_ms),
                differing: lag.differing.to_string(),
            }),
            views: Views::of(node),
            stats: node.stats.as_ref().map(Stats::of),
            stats_at: some_time(node.stats_at_ms),
            safe_to_stop: None,
        }
    }
}

impl Node {
    /// The same, and whether it may be stopped.
    pub(crate) fn with_safety(self, safe: SafeToStop) -> Self {
        Self { safe_to_stop: Some(safe), ..self }
    }
}

impl Views {
    fn of(node: &NodeView) -> Self {
        let mut views = Self::default();
        for said in &node.seen_by {
            let same = match said.state() {
                NodeState::Up => &mut views.up,
                NodeState::Suspect => &mut views.suspect,
                NodeState::Down => &mut views.down,
                NodeState::Unknown | NodeState::Unspecified => &mut views.unknown,
            };
            same.push(said.node.clone());
            if has_no_link(said) {
                views.unlinked.push(said.node.clone());
            }
        }
        views
    }
}

impl Stats {
    fn of(stats: &NodeStats) -> Self {
        Self {
            gets: stats.gets.to_string(),
            puts: stats.puts.to_string(),
            deletes: stats.deletes.to_string(),
            failures: stats.failures.to_string(),
            read_repairs: stats.read_repairs.to_string(),
            siblings_seen: stats.siblings_seen.to_string(),
            get_latency: latency(stats.get_latency.as_ref()),
            put_latency: latency(stats.put_latency.as_ref()),
            keys: stats.keys.to_string(),
            data_bytes: stats.data_bytes.to_string(),
            disk_total_bytes: stats.disk_total_bytes.to_string(),
            disk_free_bytes: stats.disk_free_bytes.to_string(),
            bad_records: stats.bad_records.to_string(),
            started_at: rfc3339(stats.started_at_ms),
            incarnation: hex(&stats.incarnation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;

    fn settings() -> Settings {
        let flags = Global { ascii: true, ..Global::default() };
        Settings::resolve(&flags, &|_| None).unwrap()
    }

    fn node(name: &str, share: f64, state: NodeState) -> NodeView {
        NodeView {
            name: name.into(),
            zone: "a".into(),
            share_ratio: share,
            fair_ratio: 0.5,
            state: state as i32,
            ..Default::default()
        }
    }

    fn said(node: &str, state: NodeState, linked: bool) -> SeenBy {
        SeenBy { node: node.into(), state: state as i32, linked, ..Default::default() }
    }

    #[test]
    fn who_says_what_of_a_node_is_told_and_who_was_not_heard_never_agrees() {
        let mut n4 = node("n4", 0.2, NodeState::Up);
        n4.seen_by = vec![
            said("n1", NodeState::Up, true),
            said("n2", NodeState::Down, false),
            said("n3", NodeState::Up, false),
            said("n5", NodeState::Unknown, false),
        ];
        let words = "up n1 n3 (no link) | down n2 (no link) | unknown n5";
        assert_eq!(seen_by(&settings(), &n4.seen_by), words);
        let views = serde_json::to_value(Views::of(&n4)).unwrap();
        assert_eq!(views["up"], serde_json::json!(["n1", "n3"]));
        assert_eq!(views["down"], serde_json::json!(["n2"]));
        assert_eq!(views["suspect"], serde_json::json!([]));
        assert_eq!(views["unknown"], serde_json::json!(["n5"]));
        assert_eq!(views["unlinked"], serde_json::json!(["n2", "n3"]));
    }

    #[test]
    fn only_live_nodes_can_disagree() {
        let mut n1 = node("n1", 0.5, NodeState::Up);
        let (n2, mut n3) = (node("n2", 0.5, NodeState::Up), node("n3", 0.5, NodeState::Down));
        n1.seen_by = vec![said("n2", NodeState::Up, true), said("n3", NodeState::Down, false)];
        let view = |nodes: &[&NodeView]| ClusterView {
            nodes: nodes.iter().map(|node| (*node).clone()).collect(),
            ..Default::default()
        };
        assert_eq!(disagreements(&settings(), &view(&[&n1, &n2, &n3])), "", "n3 is down itself");
        n3.state = NodeState::Up as i32;
        assert_eq!(
            disagreements(&settings(), &view(&[&n1, &n2, &n3])),
            "  views  nodes disagree about n1: up n2 | down n3 (no link)\n"
        );
        n1.seen_by[1].state = NodeState::Up as i32;
        assert_eq!(
            disagreements(&settings(), &view(&[&n1, &n2, &n3])),
            "  views  not everybody reaches n1: up n2 n3 (no link)\n"
        );
    }

    #[test]
    fn what_was_never_heard_is_a_question_mark_and_null() {
        let silent = node("n1", 0.5, NodeState::Unknown);
        let row = table(&settings(), 0, std::slice::from_ref(&silent)).tsv();
        assert!(row.contains("n1\ta\tunknown ?\t50.0%\t50.0%\t0%\t?\t?\t?\t?\t"), "{row}");
        let json = serde_json::to_value(Node::of(&silent, 5)).unwrap();
        assert!(json["stats"].is_null() && json["round_trip_us"].is_null());
        assert_eq!(json["state"], "unknown");
        assert!(
            json["lag_ms"].is_null() && json["checked_ms"].is_null() && json["hints"].is_null()
        );
        assert_eq!(json["lag_known"], false);
    }

    #[test]
    fn a_node_says_how_far_it_is_behind_and_whether_it_votes() {
        let mut seen = node("n1", 0.5, NodeState::Up);
        let checked_at_ms = 40_000;
        seen.lag = Some(proto::v1::Lag { since_ms: 8_000, checked_at_ms, ..Default::default() });
        let hints = vec![proto::v1::HintTotal { keys: 3, bytes: 500, ..Default::default() }];
        seen.stats = Some(NodeStats { hints, lost_data: true, ..Default::default() });
        let row = table(&settings(), 200_000, std::slice::from_ref(&seen)).tsv();
        assert!(row.contains("n1\ta\tup, no vote\t50.0%\t50.0%\t0%\t3m12s\t2m40s\t"), "{row}");
        let json = serde_json::to_value(Node::of(&seen, 200_000)).unwrap();
        assert_eq!((&json["lag_ms"], &json["lag_known"]), (&192_000.into(), &true.into()));
        assert_eq!((&json["checked_ms"], &json["lost_data"]), (&160_000.into(), &true.into()));
        assert_eq!(json["hints"], serde_json::json!({"count": "3", "bytes": "500"}));
    }

    #[test]
    fn nodes_are_sorted_by_what_is_asked_for() {
        let mut nodes = vec![
            node("n1", 0.5, NodeState::Up),
            node("n2", 0.3, NodeState::Down),
            node("n3", 0.6, NodeState::Up),
        ];
        let mut sorted = |order| {
            sort(&mut nodes, order);
            nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(sorted(NodeOrder::Share), ["n3", "n1", "n2"]);
        assert_eq!(sorted(NodeOrder::Dev), ["n2", "n3", "n1"]);
        assert_eq!(sorted(NodeOrder::Name), ["n1", "n2", "n3"]);
        assert_eq!(sorted(NodeOrder::State)[0], "n2");
        let lag = |since_ms| Some(proto::v1::Lag { since_ms, ..Default::default() });
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        (nodes[0].lag, nodes[1].lag, nodes[2].lag) = (lag(0), None, lag(5));
        sort(&mut nodes, NodeOrder::Lag);
        assert_eq!(nodes.iter().map(|node| &node.name).collect::<Vec<_>>(), ["n3", "n2", "n1"]);
    }

    #[test]
    fn a_deviation_is_relative_and_marked_when_it_is_large() {
        let cell = |share, fair| deviation_cell(&settings(), share, fair);
        assert_eq!(cell(0.44, 0.5), Cell::toned("-12% !", Tone::Warning));
        assert_eq!(cell(0.499, 0.5), "0%".into());
        assert_eq!(cell(0.5, 0.0), "-".into());
    }
}
