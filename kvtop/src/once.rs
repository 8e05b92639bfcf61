//! One frame for scripts: collected, then printed as text, with colours, or as JSON.

use crate::app::App;
use crate::event::{Event, Feed};
use crate::feed;
use crate::state::{Cluster, Lag, Level, Millis, Node, progress, worst_lags};
use crate::view::{self, theme::Theme};
use proto::v1::{Membership, NodeState, Op, OpSummary};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Wait this long for a first answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Wait this much longer than asked for the second sample, without which there are no rates, and for
/// what the view asks for besides.
const RATES_MAX: Duration = Duration::from_secs(3);

/// Follows the cluster for `sampling`, or tells why that was not possible.
pub async fn collect(
    mut app: App,
    mut feed: feed::Handle,
    sampling: Duration,
    clock: fn() -> Millis,
) -> Result<App, String> {
    let mut until = Instant::now() + ANSWER_MAX;
    let mut rates_until = until;
    loop {
        let event = match timeout_at(until, feed.events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) | Err(_) if app.samples == 0 => return Err(why(&app)),
            Ok(None) => return Ok(app),
            Err(_) if !is_complete(&app) && Instant::now() < rates_until => {
                until = rates_until;
                continue;
            }
            Err(_) => return Ok(app),
        };
        let first = app.samples == 0;
        let exhausted = matches!(event, Event::Feed(Feed::Exhausted));
        app.update(event, clock());
        if exhausted && first {
            return Err(why(&app));
        }
        if first && app.samples > 0 {
            until = Instant::now() + sampling;
            rates_until = until + RATES_MAX;
        } else if until == rates_until && is_complete(&app) {
            return Ok(app);
        }
    }
}

/// The frame as text, without trailing spaces.
pub fn text(app: &App, theme: &Theme, size: (u16, u16)) -> String {
    let buf = frame(app, theme, size);
    let mut text = String::new();
    for row in rows(&buf) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The frame with its colours and modifiers.
pub fn ansi(app: &App, theme: &Theme, size: (u16, u16)) -> String {
    let buf = frame(app, theme, size);
    let mut text = String::new();
    for row in rows(&buf) {
        let mut style = String::new();
        for cell in row {
            let wanted = codes(cell.fg, cell.modifier);
            if wanted != style {
                // Writing to a string cannot fail.
                let _ = write!(text, "\x1b[0{wanted}m");
                style = wanted;
            }
            text.push_str(cell.symbol());
        }
        text.push_str(if style.is_empty() { "\n" } else { "\x1b[0m\n" });
    }
    text
}

/// What the frame is made of. What is not known is `null`; 64-bit ids are text.
pub fn json(app: &App) -> Value {
    let Some(cluster) = app.cluster() else {
        return Value::Null;
    };
    let view = &cluster.view;
    let verdict = view.verdict.clone().unwrap_or_default();
    let (rates, counted) = cluster.totals();
    let since = cluster.received_at.saturating_sub(10_000);
    json!({
        "cluster": view.name,
        "id": hex(&view.id),
        "viewpoint": view.viewpoint,
        "observed_at_ms": view.observed_at_ms,
        "stale": app.stale(),
        "verdict": {
            "level": view::word(cluster.level()),
            "headline": verdict.headline,
            "impact": verdict.impact,
            "next": verdict.next,
        },
        "ring": {
            "depth": view.layout.as_ref().map(|layout| layout.depth),
            "id": view.layout.as_ref().map(|layout| hex(&layout.id)),
            "agreed": view.layout_agreed,
            "up": cluster.up(),
        },
        "live_copies": copies(cluster),
        "requests": {
            "nodes_counted": counted,
            "gets_per_s": rates.map(|rates| rates.gets),
            "puts_per_s": rates.map(|rates| rates.puts),
            "failures_per_s": rates.map(|rates| rates.failures),
            "get_p50_us": cluster.history.get_latency(since, 0.5),
            "get_p99_us": cluster.history.get_latency(since, 0.99),
            "put_p50_us": cluster.history.put_latency(since, 0.5),
            "put_p99_us": cluster.history.put_latency(since, 0.99),
        },
        "nodes": app.nodes().into_iter().map(|it| node(cluster, it)).collect::<Vec<_>>(),
        "lagging_partitions": cluster.partitions(app.now).map(|reply| {
            let lags = worst_lags(reply, view.observed_at_ms);
            lags.iter().filter(|lag| matches!(lag, Lag::Since { .. })).count()
        }),
        "ops": view.ops.iter().map(summary).collect::<Vec<_>>(),
        "moves": cluster.moves(app.now).map(|moves| {
            moves.reply.ops.iter().map(op).collect::<Vec<_>>()
        }),
        "placement": cluster.ring().map(|ring| json!({
            "ring": ring.depth,
            "partitions": ring.partitions(),
            "copies": ring.n,
            "zones_wanted": ring.zones_wanted,
            "partitions_in_too_few_zones": ring.narrow,
        })),
        "events": cluster.log.newest().map(|entry| json!({
            "at_ms": entry.at_ms, "level": view::word(entry.level), "text": entry.text,
        })).collect::<Vec<_>>(),
    })
}

/// Rates are known, and what the view asks for has come.
fn is_complete(app: &App) -> bool {
    let wanted = app.wants();
    app.cluster().is_some_and(|cluster| {
        cluster.totals().0.is_some()
            && !wanted.layout
            && (!wanted.ops || cluster.moves(app.now).is_some())
            && (!wanted.partitions || cluster.partitions(app.now).is_some())
            && (!wanted.repair || cluster.repair(app.now).is_some())
    })
}

fn why(app: &App) -> String {
    match &app.failure {
        Some((endpoint, why)) => format!("no node reachable: {endpoint} {why}"),
        None => "no node reachable".into(),
    }
}

fn frame(app: &App, theme: &Theme, (columns, rows): (u16, u16)) -> Buffer {
    let area = Rect::new(0, 0, columns, rows);
    let mut buf = Buffer::empty(area);
    view::render(app, theme, area, &mut buf);
    buf
}

fn rows(buf: &Buffer) -> impl Iterator<Item = &[ratatui::buffer::Cell]> {
    buf.content.chunks(usize::from(buf.area.width.max(1)))
}

/// Parameters of a select-graphic-rendition sequence, each with its `;` before it.
fn codes(fg: Color, modifier: Modifier) -> String {
    let modifiers = [(Modifier::BOLD, ";1"), (Modifier::DIM, ";2"), (Modifier::REVERSED, ";7")];
    let mut codes: String = modifiers
        .into_iter()
        .filter(|(m, _)| modifier.contains(*m))
        .map(|(_, code)| code)
        .collect();
    match fg {
        Color::Rgb(r, g, b) => codes += &format!(";38;2;{r};{g};{b}"),
        Color::Indexed(index) => codes += &format!(";38;5;{index}"),
        Color::Yellow => codes += ";33",
        Color::Cyan => codes += ";36",
        Color::LightRed => codes += ";91",
        _ => {}
    }
    codes
}

fn copies(cluster: &Cluster) -> Value {
    let Some(copies) = cluster.copies() else {
        return Value::Null;
    };
    json!({ "wanted": copies.n, "partitions": copies.partitions(), "by_live_copies": copies.count })
}

/// What every view of the cluster tells of an operation under way.
fn summary(op: &OpSummary) -> Value {
    json!({
        "op": op.id,
        "line": op.line,
        "more_lines": op.more_lines,
        "at_ms": op.at_ms,
        "copies_total": op.copies_total,
        "copies_done": op.copies_done,
        "paused": op.paused,
    })
}

/// What is told besides. Totals of bytes, rate and time to go are `null` while they are not known.
fn op(op: &Op) -> Value {
    let known = |value: u64| (value > 0).then_some(value);
    json!({
        "op": op.id,
        "op_id": op.op_id,
        "by": op.by,
        "lines": op.lines,
        "state": view::op_word(op.state()),
        "at_ms": op.at_ms,
        "ended_at_ms": known(op.ended_at_ms),
        "progress": progress(op),
        "copies_total": op.copies_total,
        "copies_done": op.copies_done,
        "bytes_total": known(op.bytes_total),
        "bytes_done": op.bytes_done,
        "bytes_per_s": known(op.bytes_per_second),
        "eta_ms": known(op.eta_ms),
        "needs_attention": op.needs_attention,
        "unheard": op.unheard,
        "stuck": op.stuck.iter().map(|it| json!({
            "keyspace": it.keyspace,
            "partition": it.partition,
            "node": it.node,
            "from": it.from,
            "step": it.step,
            "why": it.why,
            "since_ms": known(it.since_ms),
            "more": it.more,
        })).collect::<Vec<_>>(),
    })
}

fn node(cluster: &Cluster, node: &Node) -> Value {
    let now = cluster.view.observed_at_ms;
    let lag = seen_lag(node);
    let seen = &node.seen;
    let load = node.load.as_ref();
    let stats = seen.stats.as_ref();
    json!({
        "name": seen.name,
        "uid": hex(&seen.uid),
        "address": seen.address,
        "zone": seen.zone,
        "weight": seen.weight,
        "state": match node.state() {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
            NodeState::Unknown | NodeState::Unspecified => "unknown",
        },
        "membership": match node.membership() {
            Membership::Joining => "joining",
            Membership::Leaving => "leaving",
            Membership::Member | Membership::Unspecified => "member",
        },
        "draining": seen.draining,
        "level": view::word(node.level().max(Level::Ok)),
        "since_ms": seen.since_ms,
        "why": seen.why,
        "share": seen.share_ratio,
        "fair": seen.fair_ratio,
        "copies": seen.copies,
        "lag_ms": node.lag().age(now),
        "lag_known": lag.is_some_and(|lag| !lag.more && lag.unheard.is_empty()),
        "lag_keys": lag.map(|lag| lag.keys),
        "lag_bytes": lag.map(|lag| lag.bytes),
        "lag_drain_per_s": cluster.lag_track(node).and_then(|track| track.drain()),
        "checked_ms": node.checked_at().map(|at| now.saturating_sub(at)),
        "lost_data": stats.map(|stats| stats.lost_data),
        "rtt_us": (seen.latency_us > 0).then_some(seen.latency_us),
        "gets_per_s": load.map(|load| load.rates.gets),
        "puts_per_s": load.map(|load| load.rates.puts),
        "failures_per_s": load.map(|load| load.rates.failures),
        "get_p99_us": load.and_then(|load| load.get_p99()),
        "put_p99_us": load.and_then(|load| load.put_p99()),
        "disk_used": node.disk_used(),
        "data_bytes": stats.map(|stats| stats.data_bytes),
        "keys": stats.map(|stats| stats.keys),
        "stats_at_ms": stats.map(|_| seen.stats_at_ms),
        "version": seen.version,
    })
}

fn seen_lag(node: &Node) -> Option<&proto::v1::Lag> {
    node.seen.lag.as_ref()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
