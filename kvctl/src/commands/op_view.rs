//! An operation in words: how far, how fast, what is stuck and why.

use crate::commands::nodes::percent;
use crate::config::Settings;
use crate::output::printable;
use crate::table::{Cell, Table, Tone};
use crate::time::{for_people, rfc3339};
use crate::units::{counted, of_bytes};
use crate::value::size;
use proto::v1::{MoveNode, MovePair, Moving, Op, OpState, Stuck};
use serde::Serialize;
use std::time::Duration;

/// How names begin that kvctl makes up.
pub(super) const MADE_UP: &str = "kvctl-";

/// An operation, as scripts read it.
#[derive(Debug, Serialize)]
pub(crate) struct OpJson {
    /// Its id.
    op: String,
    op_id: String,
    by: String,
    state: &'static str,
    lines: Vec<String>,
    at: String,
    ended_at: Option<String>,
    ring: Option<String>,
    progress_ratio: f64,
    copies_total: String,
    copies_done: String,
    bytes_total: String,
    bytes_done: String,
    bytes_per_second: String,
    /// Null: no bound.
    throttle_bytes_per_second: Option<String>,
    /// Null: not known, or done.
    eta_ms: Option<u64>,
    transitions: Transitions,
    needs_attention: bool,
    stuck: Vec<StuckJson>,
    pairs: Vec<PairJson>,
    nodes: Vec<NodeJson>,
    unheard: Vec<String>,
}

/// Partitions that go from one set of replicas, or one quorum, to another.
#[derive(Debug, Serialize)]
struct Transitions {
    total: String,
    flipped: String,
    closed: String,
}

/// What does not get on, as scripts read it.
#[derive(Debug, Serialize)]
pub(crate) struct StuckJson {
    keyspace: String,
    partition: u32,
    node: String,
    from: String,
    step: String,
    why: String,
    since: Option<String>,
    more: u32,
}

#[derive(Debug, Serialize)]
struct PairJson {
    from: String,
    to: String,
    copies_total: String,
    copies_done: String,
    bytes_total: String,
    bytes_done: String,
    bytes_per_second: String,
    eta_ms: Option<u64>,
    why: String,
    moving: Vec<MovingJson>,
}

#[derive(Debug, Serialize)]
struct MovingJson {
    keyspace: String,
    partition: u32,
    state: String,
    bytes_done: String,
    progress_ratio: f64,
}

#[derive(Debug, Serialize)]
struct NodeJson {
    node: String,
    share_ratio_before: f64,
    share_ratio_now: f64,
    share_ratio_after: f64,
    copies_waiting: String,
}

impl OpJson {
    pub(crate) fn of(op: &Op) -> Self {
        Self {
            op: op.id.clone(),
            op_id: op.op_id.clone(),
            by: op.by.clone(),
            state: state_name(op.state()),
            lines: op.lines.clone(),
            at: rfc3339(op.at_ms),
            ended_at: (op.ended_at_ms > 0).then(|| rfc3339(op.ended_at_ms)),
            ring: op.layout.as_ref().map(|layout| layout.depth.to_string()),
            progress_ratio: progress(op),
            copies_total: op.copies_total.to_string(),
            copies_done: op.copies_done.to_string(),
            bytes_total: op.bytes_total.to_string(),
            bytes_done: op.bytes_done.to_string(),
            bytes_per_second: op.bytes_per_second.to_string(),
            throttle_bytes_per_second: (op.throttle > 0).then(|| op.throttle.to_string()),
            eta_ms: (op.eta_ms > 0).then_some(op.eta_ms),
            transitions: Transitions {
                total: op.transitions_total.to_string(),
                flipped: op.transitions_flipped.to_string(),
                closed: op.transitions_closed.to_string(),
            },
            needs_attention: op.needs_attention,
            stuck: op.stuck.iter().map(StuckJson::of).collect(),
            pairs: op.pairs.iter().map(PairJson::of).collect(),
            nodes: op.nodes.iter().map(NodeJson::of).collect(),
            unheard: op.unheard.clone(),
        }
    }
}

impl StuckJson {
    pub(crate) fn of(stuck: &Stuck) -> Self {
        Self {
            keyspace: stuck.keyspace.clone(),
            partition: stuck.partition,
            node: stuck.node.clone(),
            from: stuck.from.clone(),
            step: stuck.step.clone(),
            why: stuck.why.clone(),
            since: (stuck.since_ms > 0).then(|| rfc3339(stuck.since_ms)),
            more: stuck.more,
        }
    }
}

impl PairJson {
    fn of(pair: &MovePair) -> Self {
        Self {
            from: pair.from.clone(),
            to: pair.to.clone(),
            copies_total: pair.copies_total.to_string(),
            copies_done: pair.copies_done.to_string(),
            bytes_total: pair.bytes_total.to_string(),
            bytes_done: pair.bytes_done.to_string(),
            bytes_per_second: pair.bytes_per_second.to_string(),
            eta_ms: (pair.eta_ms > 0).then_some(pair.eta_ms),
            why: pair.why.clone(),
            moving: pair.moving.iter().map(MovingJson::of).collect(),
        }
    }
}

impl MovingJson {
    fn of(moving: &Moving) -> Self {
        Self {
            keyspace: moving.keyspace.clone(),
            partition: moving.partition,
            state: moving.state.clone(),
            bytes_done: moving.bytes_done.to_string(),
            progress_ratio: moving.progress_ratio,
        }
    }
}

impl NodeJson {
    fn of(node: &MoveNode) -> Self {
        Self {
            node: node.node.clone(),
            share_ratio_before: node.share_before,
            share_ratio_now: node.share_now,
            share_ratio_after: node.share_after,
            copies_waiting: node.waiting.to_string(),
        }
    }
}

/// A state as scripts read it.
pub(super) fn state_name(state: OpState) -> &'static str {
    match state {
        OpState::Running => "running",
        OpState::Paused => "paused",
        OpState::Done => "done",
        OpState::Cancelled => "cancelled",
        OpState::Unspecified => "unknown",
    }
}

/// Whether it is over.
pub(super) fn is_over(op: &Op) -> bool {
    matches!(op.state(), OpState::Done | OpState::Cancelled)
}

/// How far it is, 0 to 1. By copies, which are counted, and not by bytes, which are guessed; what
/// moves no copies goes by its transitions. All of it is only reached by what is over.
pub(super) fn progress(op: &Op) -> f64 {
    if op.state() == OpState::Done {
        return 1.0;
    }
    let moving: f64 =
        op.pairs.iter().flat_map(|pair| &pair.moving).map(|moving| moving.progress_ratio).sum();
    let (done, total) = match (op.copies_total, op.transitions_total) {
        (0, 0) => return 0.0,
        (0, total) => (op.transitions_closed as f64, total),
        (total, _) => (op.copies_done as f64 + moving, total),
    };
    (done / total as f64).clamp(0.0, 0.99)
}

/// The same in whole percent.
pub(super) fn progress_percent(op: &Op) -> u64 {
    (progress(op) * 100.0) as u64
}

/// Copies, bytes, rate and what is left, for a bar: `48/77 copies  57.1/91.6 GiB  58.0 MiB/s`.
pub(super) fn amounts(op: &Op) -> String {
    let mut parts = Vec::new();
    if op.copies_total > 0 {
        parts.push(format!("{}/{} copies", op.copies_done, op.copies_total));
        parts.push(of_bytes(op.bytes_done, op.bytes_total));
    }
    if op.transitions_total > 0 && op.copies_done >= op.copies_total {
        parts.push(format!("{}/{} partitions closed", op.transitions_closed, op.transitions_total));
    }
    if !is_over(op) && op.copies_total > 0 {
        parts.push(format!("{}/s", size(op.bytes_per_second)));
    }
    if op.throttle > 0 && !is_over(op) {
        parts.push(format!("of {}/s a node", size(op.throttle)));
    }
    if op.eta_ms > 0 {
        parts.push(format!("ETA {}", for_people(Duration::from_millis(op.eta_ms))));
    }
    parts.join("  ")
}

/// A dated line's words: `op-7f3a 62% 48/77 57.1/91.6GiB 58.0MiB/s eta=10m05s stuck=1`.
pub(super) fn line(op: &Op) -> String {
    let mut text = format!("{} {}%", op.id, progress_percent(op));
    if op.copies_total > 0 {
        let bytes = of_bytes(op.bytes_done, op.bytes_total);
        let amounts = format!("{bytes} {}/s", size(op.bytes_per_second).replace(' ', ""));
        let amounts = amounts.replacen(' ', "", 1);
        text += &format!(" {}/{} {amounts}", op.copies_done, op.copies_total);
    }
    if op.transitions_total > 0 {
        text += &format!(" closed={}/{}", op.transitions_closed, op.transitions_total);
    }
    if op.eta_ms > 0 {
        text += &format!(" eta={}", for_people(Duration::from_millis(op.eta_ms)));
    }
    if op.state() == OpState::Paused {
        text += " paused";
    }
    text + &format!(" stuck={}", stuck_count(op))
}

/// Copies and steps that do not get on.
pub(super) fn stuck_count(op: &Op) -> u64 {
    op.stuck.iter().map(|stuck| 1 + u64::from(stuck.more)).sum()
}

/// `default #30 n12→n15 sync: disk queue full, for 1m40s, and 2 partitions more`.
pub(super) fn stuck_words(settings: &Settings, stuck: &Stuck, now_ms: u64) -> String {
    let arrow = if settings.ascii { "->" } else { "→" };
    let who = match stuck.from.as_str() {
        "" => stuck.node.clone(),
        from => format!("{from}{arrow}{}", stuck.node),
    };
    let why = if stuck.why.is_empty() { "no reason is known" } else { &stuck.why };
    let mut words = format!("{} #{} {who} {}: {why}", stuck.keyspace, stuck.partition, stuck.step);
    if stuck.since_ms > 0 {
        let age = Duration::from_millis(now_ms.saturating_sub(stuck.since_ms));
        words += &format!(", for {}", for_people(age));
    }
    if stuck.more > 0 {
        words += &format!(", and {} more", counted(u64::from(stuck.more), "partition"));
    }
    words
}

/// Everything that keeps an operation from getting on, a line each; one line if nobody knows.
pub(super) fn obstacles(settings: &Settings, op: &Op, now_ms: u64) -> Vec<String> {
    let arrow = if settings.ascii { "->" } else { "→" };
    let mut lines: Vec<String> =
        op.stuck.iter().map(|stuck| stuck_words(settings, stuck, now_ms)).collect();
    let waiting = op.pairs.iter().filter(|pair| !pair.why.is_empty());
    lines.extend(waiting.map(|pair| {
        let left = pair.copies_total.saturating_sub(pair.copies_done);
        format!("{}{arrow}{}: {left} copies wait: {}", pair.from, pair.to, pair.why)
    }));
    if !op.unheard.is_empty() {
        lines.push(format!("not heard: {}", op.unheard.join(", ")));
    }
    if op.state() == OpState::Paused {
        lines.push(format!("it is paused; to go on: kvctl ops resume {}", op.id));
    }
    if lines.is_empty() {
        lines.push("no node gives a reason".to_owned());
    }
    lines
}

/// One operation above its table of pairs.
pub(super) fn heading(settings: &Settings, op: &Op, now_ms: u64) -> String {
    let until = if op.ended_at_ms > 0 { op.ended_at_ms } else { now_ms };
    let age = for_people(Duration::from_millis(until.saturating_sub(op.at_ms)));
    let mut head = format!("{}  {} {age}", op.id, described(op));
    if !op.by.is_empty() {
        head += &format!("  by {}", op.by);
    }
    if let Some(name) = given_name(op) {
        head += &format!("  named {name}");
    }
    if let Some(layout) = &op.layout {
        head += &format!("  ring {}", layout.depth);
    }
    let mut lines = vec![head];
    lines.extend(op.lines.iter().map(|line| format!("  {line}")));
    lines.push(format!("  {}%  {}", progress_percent(op), amounts(op)).trim_end().to_owned());
    let (warning, arrow) = if settings.ascii { ("!", "->") } else { ("▲", "→") };
    let share = |node: &MoveNode| {
        let shares = [node.share_before, node.share_now, node.share_after].map(percent);
        format!("  share  {}  {}", node.node, shares.join(&format!(" {arrow} ")))
    };
    lines.extend(op.nodes.iter().map(share));
    let stuck =
        |stuck: &Stuck| format!("  {warning} stuck  {}", stuck_words(settings, stuck, now_ms));
    lines.extend(op.stuck.iter().map(stuck));
    if !op.unheard.is_empty() {
        lines.push(format!("  {warning} not heard  {}", op.unheard.join(", ")));
    }
    lines.iter().map(|line| printable(line) + "\n").collect()
}

/// The name somebody gave it. Who does not get one made up, which says nothing to anybody.
pub(super) fn given_name(op: &Op) -> Option<&str> {
    let made_up = op.op_id.is_empty() || op.op_id.starts_with(MADE_UP);
    (!made_up).then_some(op.op_id.as_str())
}

fn described(op: &Op) -> &'static str {
    match op.state() {
        OpState::Done => "done in",
        OpState::Cancelled => "cancelled after",
        OpState::Paused => "paused, for",
        OpState::Running | OpState::Unspecified => "running for",
    }
}

/// Who gives whom how much.
pub(super) fn pairs(settings: &Settings, op: &Op) -> Table {
    let mut table = Table::new(&["FROM", "TO", "COPIES", "DATA", "RATE", "ETA", "STATE"]);
    for pair in &op.pairs {
        let done = pair.copies_done >= pair.copies_total;
        let eta = (pair.eta_ms > 0).then(|| for_people(Duration::from_millis(pair.eta_ms)));
        table.row(vec![
            pair.from.as_str().into(),
            pair.to.as_str().into(),
            format!("{}/{}", pair.copies_done, pair.copies_total).into(),
            of_bytes(pair.bytes_done, pair.bytes_total).into(),
            if done { "-".to_owned() } else { format!("{}/s", size(pair.bytes_per_second)) }.into(),
            eta.unwrap_or_else(|| if done { "-" } else { "?" }.to_owned()).into(),
            pair_state(settings, pair),
        ]);
    }
    table
}

fn pair_state(settings: &Settings, pair: &MovePair) -> Cell {
    if pair.copies_done >= pair.copies_total {
        return "done".into();
    }
    if !pair.why.is_empty() {
        let sign = if settings.ascii { "!" } else { "▲" };
        return Cell::toned(format!("{sign} {}", pair.why), Tone::Warning);
    }
    match pair.moving.as_slice() {
        [] => "waiting".into(),
        moving => moving.iter().map(moving_words).collect::<Vec<_>>().join(", ").into(),
    }
}

/// `#77 copying 68%`.
pub(super) fn moving_words(moving: &Moving) -> String {
    let percent = moving.progress_ratio * 100.0;
    format!("#{} {} {percent:.0}%", moving.partition, moving.state)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::Global;
    use proto::v1::LayoutRef;

    /// Half of a node's copies are there, and one does not come.
    pub(crate) fn sample() -> Op {
        let moving = Moving {
            partition: 77,
            progress_ratio: 0.68,
            state: "copying".into(),
            ..Default::default()
        };
        let pair = |from: &str, done, why: &str, moving: &[Moving]| MovePair {
            from: from.into(),
            to: "n13".into(),
            copies_total: 10,
            copies_done: done,
            bytes_total: 11 << 30,
            bytes_done: done << 30,
            bytes_per_second: 9 << 20,
            moving: moving.to_vec(),
            why: why.into(),
            ..Default::default()
        };
        Op {
            id: "op-7f3a1b2c".into(),
            op_id: "deploy-812".into(),
            by: "alice@ops1".into(),
            at_ms: 1_000_000,
            lines: vec!["+ n13 zone a".into()],
            state: OpState::Running as i32,
            layout: Some(LayoutRef { depth: 119, ..Default::default() }),
            copies_total: 77,
            copies_done: 48,
            bytes_total: 98_354_753_536,
            bytes_done: 61_310_658_151,
            bytes_per_second: 58 << 20,
            eta_ms: 605_000,
            pairs: vec![
                pair("n10", 7, "", &[moving]),
                pair("n7", 10, "", &[]),
                pair("n12", 3, "disk queue full", &[]),
            ],
            stuck: vec![Stuck {
                keyspace: "default".into(),
                partition: 30,
                node: "n13".into(),
                from: "n12".into(),
                step: "sync".into(),
                why: "disk queue full".into(),
                since_ms: 1_900_000,
                more: 2,
            }],
            nodes: vec![MoveNode {
                node: "n13".into(),
                share_now: 0.052,
                share_after: 0.065,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn settings(ascii: bool) -> Settings {
        let flags = Global { ascii, ..Global::default() };
        Settings::resolve(&flags, &|_| None).unwrap()
    }

    #[test]
    fn a_line_says_how_far_how_fast_and_whether_something_is_stuck() {
        assert_eq!(
            line(&sample()),
            "op-7f3a1b2c 63% 48/77 57.1/91.6GiB 58.0MiB/s eta=10m05s stuck=3"
        );
        let quorum = Op {
            id: "op-1".into(),
            transitions_total: 4,
            transitions_closed: 1,
            state: OpState::Paused as i32,
            ..Default::default()
        };
        assert_eq!(line(&quorum), "op-1 25% closed=1/4 paused stuck=0");
    }

    #[test]
    fn all_of_it_is_done_only_when_the_cluster_says_so() {
        let mut op = Op { copies_total: 4, copies_done: 4, ..Default::default() };
        assert_eq!(progress_percent(&op), 99);
        op.state = OpState::Done as i32;
        assert_eq!(progress_percent(&op), 100);
        assert_eq!(progress_percent(&Op::default()), 0);
    }

    #[test]
    fn an_operation_is_shown_with_its_pairs_and_what_is_stuck() {
        let expected = "\
op-7f3a1b2c  running for 16m40s  by alice@ops1  named deploy-812  ring 119
  + n13 zone a
  63%  48/77 copies  57.1/91.6 GiB  58.0 MiB/s  ETA 10m05s
  share  n13  0.0% → 5.2% → 6.5%
  ▲ stuck  default #30 n12→n13 sync: disk queue full, for 1m40s, and 2 partitions more
FROM  TO   COPIES  DATA           RATE       ETA  STATE
n10   n13  7/10    7.0/11.0 GiB   9.0 MiB/s  ?    #77 copying 68%
n7    n13  10/10   10.0/11.0 GiB  -          -    done
n12   n13  3/10    3.0/11.0 GiB   9.0 MiB/s  ?    ▲ disk queue full
";
        let (settings, op) = (settings(false), sample());
        let text =
            heading(&settings, &op, 2_000_000) + &pairs(&settings, &op).aligned(false, false);
        assert_eq!(text, expected);
    }

    #[test]
    fn what_stands_still_always_has_a_reason_or_says_that_there_is_none() {
        let settings = settings(true);
        assert_eq!(
            obstacles(&settings, &sample(), 2_000_000),
            [
                "default #30 n12->n13 sync: disk queue full, for 1m40s, and 2 partitions more",
                "n12->n13: 7 copies wait: disk queue full",
            ]
        );
        assert_eq!(obstacles(&settings, &Op::default(), 0), ["no node gives a reason"]);
        let paused = Op { id: "op-1".into(), state: OpState::Paused as i32, ..Default::default() };
        assert_eq!(
            obstacles(&settings, &paused, 0),
            ["it is paused; to go on: kvctl ops resume op-1"]
        );
    }
}
