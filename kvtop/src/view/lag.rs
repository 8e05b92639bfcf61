//! What each replica lacks, since when, whether it gets less, and when that was last proven.

use super::frame::Band;
use super::nodes::{checked, lag_cell};
use super::number::{UNKNOWN, bytes, count, duration, rate};
use super::requests::sparkline;
use super::screen::{self, Room, Said, below, boxes, lines, outdated, top};
use super::table::{self, At, Column};
use super::theme::{Theme, sign};
use super::{put, ring, shorten, width};
use crate::app::App;
use crate::state::{Cluster, LAG, Lag, LagTrack, Level, Millis, Node, Rounds, worst, worst_lags};
use proto::v1::NodeState;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Cells of the sparkline: 75 seconds each.
const SPARKS: usize = 12;

/// Lines of what is kept, and of comparing.
const PANES: u16 = 4;

const COLUMNS: [Column; 10] = [
    Column {
        title: "node",
        rank: 0,
        least: 4,
        right: false,
        cell: |node, _| (shorten(&node.seen.name, 20), Level::Ok),
    },
    Column {
        title: "zone",
        rank: 7,
        least: 4,
        right: false,
        cell: |node, _| (shorten(&node.seen.zone, 20), Level::Ok),
    },
    Column { title: "state", rank: 3, least: 6, right: false, cell: state },
    Column {
        title: "lag",
        rank: 0,
        least: 6,
        right: true,
        cell: |node, at| lag_cell(node.lag(), at.now),
    },
    Column { title: "missing", rank: 1, least: 7, right: true, cell: missing },
    Column { title: "bytes", rank: 5, least: 6, right: true, cell: bytes_missing },
    Column { title: "last 15 min", rank: 6, least: SPARKS, right: false, cell: sparks },
    Column { title: "drain", rank: 2, least: 6, right: true, cell: drain },
    Column { title: "to go", rank: 8, least: 6, right: true, cell: to_go },
    Column { title: "checked", rank: 4, least: 7, right: true, cell: checked },
];

/// Draws the view.
pub(super) fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let table = |at: &At<'_>, inside: Rect, buf: &mut Buffer| {
        table::render(app, at.cluster, &COLUMNS, theme, inside, buf);
    };
    match Room::of(area) {
        Room::Tiny => screen::tiny(app, theme, area, buf, |at| worst_first(app, at)),
        Room::Brief => screen::brief(app, theme, area, true, buf, table),
        Room::Pane => screen::pane(app, theme, area, "Lag by node, worst first", buf, table),
        Room::Full => standard(app, theme, area, buf),
    }
}

fn worst_first(app: &App, at: &At<'_>) -> Said {
    let line = |node: &Node| {
        let (text, level) = lag_cell(node.lag(), at.now);
        (format!("{} lag {text}", node.seen.name), level)
    };
    app.nodes().into_iter().map(line).collect()
}

fn standard(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some((cluster, body)) = top(app, theme, area, true, [1, 0, 0], buf) else {
        return;
    };
    let body = explain(theme, body, buf);
    let inner = body.width.saturating_sub(2);
    let partitions = cluster.view.live_copies.len();
    // Borders, two panes, one line of words and one of cells at least.
    let free = body.height.saturating_sub(4 + PANES + 2);
    let table = table::wanted(app).min(free).max(free.min(4));
    let strip = ring::rows_wanted(partitions, inner).min(1 + free - table).min(8);
    let table = free + 1 - strip;
    let now = cluster.viewpoint_now(app.shown_now());
    let subject = app.node().or_else(|| app.nodes().into_iter().next());
    let each = ring::each(partitions, inner, strip);
    let bands = [
        Band::one("Replica lag by node, worst first", table),
        Band::two(waiting_title(subject), "Anti-entropy", PANES),
        Band::one(strip_title(each, usize::from(body.width).saturating_sub(6)), strip + 1),
    ];
    let inside = boxes(app, &bands, true, body, theme, buf);
    table::render(app, cluster, &COLUMNS, theme, inside[0], buf);
    if let Some(node) = subject {
        let kept = waiting(cluster, node, inside[1].width);
        let said: Vec<_> = oldest(node, now).into_iter().chain(kept).collect();
        lines(&said, theme, inside[1], buf);
    }
    lines(&comparing(app, cluster, now, inside[2].width), theme, inside[2], buf);
    strip_of(app, cluster, theme, inside[3], buf);
    outdated(app, body, buf);
}

/// What the two words mean: both are read wrongly easily.
fn explain(theme: &Theme, area: Rect, buf: &mut Buffer) -> Rect {
    let words = [
        "lag = age of the oldest write known to be missing there; + or more, ? unknown",
        "checked = age of its oldest last comparison that left nothing unlike",
    ];
    for (y, text) in (area.y..).zip(words) {
        put(buf, area, area.x, y, &shorten(text, usize::from(area.width)), theme.dim());
    }
    below(area, words.len() as u16)
}

fn waiting_title(node: Option<&Node>) -> String {
    let Some(node) = node else { return "Hints".into() };
    let keys = match (node.lag(), node.seen.lag.as_ref()) {
        (Lag::Unknown, _) | (_, None) => UNKNOWN.into(),
        (_, Some(lag)) => count(lag.keys) + plus(node.lag()),
    };
    format!("Hints waiting for {}: {keys}", shorten(&node.seen.name, 16))
}

/// Since when, and how much.
fn oldest(node: &Node, now: Millis) -> Option<(String, Level)> {
    let lag @ Lag::Since { .. } = node.lag() else { return None };
    let (age, level) = lag_cell(lag, now);
    let bytes = bytes(node.seen.lag.as_ref()?.bytes);
    Some((format!("oldest   {age}, {bytes} in all"), level))
}

/// Who keeps what for `node`, whether it gets less, and what is not known of it.
pub(super) fn waiting(cluster: &Cluster, node: &Node, area_width: u16) -> Said {
    let mut said = Vec::new();
    let lag = node.lag();
    let told = node.seen.lag.clone().unwrap_or_default();
    let room = usize::from(area_width).saturating_sub(2);
    match keepers(cluster, node)[..] {
        [] if lag == Lag::Nothing => said.push(("nobody keeps any".into(), Level::Ok)),
        [] => {}
        ref keepers => said.push((listed("held by  ", keepers, room), Level::Ok)),
    }
    if let Some(track) = cluster.lag_track(node) {
        let (rate, eta) = (drain_text(track, lag), eta_text(track, node));
        match (rate, eta) {
            (Some(rate), Some(eta)) => {
                let to_go = if rate.starts_with('-') { " to go" } else { "" };
                said.push((format!("drain    {rate}, {eta}{to_go}"), Level::Ok));
            }
            (Some(rate), None) => said.push((format!("drain    {rate}"), Level::Ok)),
            _ => {}
        }
    }
    if !told.unheard.is_empty() {
        let names = shorten(&told.unheard.join(" "), room.saturating_sub(10));
        said.push((format!("? unheard {names}, may keep more"), Level::Unknown));
    }
    if told.more {
        said.push((format!("{} more is missing than is kept", sign(Level::Warn)), Level::Warn));
    }
    if told.differing > 0 {
        let text = format!("{} {} keys unlike after comparing", sign(Level::Warn), told.differing);
        said.push((text, Level::Warn));
    }
    said
}

/// `n12 2.2k`: who keeps how many for `node`, the most first; with `?` as last heard.
fn keepers(cluster: &Cluster, node: &Node) -> Vec<String> {
    let kept = |keeper: &Node| -> Option<(u64, String)> {
        let stats = keeper.seen.stats.as_ref()?;
        let kept = stats.hints.iter().filter(|kept| kept.target_uid[..] == node.uid[..]);
        let keys = kept.map(|kept| kept.keys).fold(0, u64::saturating_add);
        let old = if keeper.state() == NodeState::Up { "" } else { UNKNOWN };
        (keys > 0).then(|| (keys, format!("{} {}{old}", keeper.seen.name, count(keys))))
    };
    let mut keepers: Vec<_> = cluster.nodes.iter().filter_map(kept).collect();
    keepers.sort_by_key(|(keys, _)| std::cmp::Reverse(*keys));
    keepers.into_iter().map(|(_, text)| text).collect()
}

/// As many as fit, and how many more there are.
pub(super) fn listed(label: &str, items: &[String], room: usize) -> String {
    let mut text = label.to_owned();
    for (at, item) in items.iter().enumerate() {
        let gap = if at == 0 { "" } else { "  " };
        let rest = items.len() - at - 1;
        let tail = if rest > 0 { width("  +999 more") } else { 0 };
        if at > 0 && width(&text) + width(gap) + width(item) + tail > room {
            return format!("{text}  +{} more", rest + 1);
        }
        text = text + gap + item;
    }
    text
}

/// When nodes were last level, who compares now, and what that found.
fn comparing(app: &App, cluster: &Cluster, now: Millis, area_width: u16) -> Said {
    let room = usize::from(area_width).saturating_sub(2);
    let oldest = cluster.nodes.iter().filter_map(|node| Some((node.checked_at()?, node)));
    let matched = match oldest.min_by_key(|(at, _)| *at) {
        Some((at, node)) => {
            let age = duration(now.saturating_sub(at));
            format!("oldest match  {} {age} ago", node.seen.name)
        }
        None => "oldest match  ?".into(),
    };
    let never: Vec<&Node> = cluster.nodes.iter().filter(|it| it.checked_at().is_none()).collect();
    let matched = match never[..] {
        [] => matched,
        [node] => format!("{matched}; {} ?", node.seen.name),
        _ if never.len() == cluster.nodes.len() => matched,
        _ => format!("{matched}; ? of {}", never.len()),
    };
    let mut said = vec![(matched, Level::Ok)];
    let Some(rounds) = cluster.repair(app.shown_now()).map(Rounds::of) else {
        said.push(("comparing     ? not told yet".into(), Level::Unknown));
        return said;
    };
    let running: Vec<String> = rounds.running.iter().map(|(a, b)| format!("{a}~{b}")).collect();
    said.push(match running[..] {
        [] => ("comparing     none now".into(), Level::Ok),
        ref running => (listed("comparing     ", running, room), Level::Ok),
    });
    said.push((format!("last rounds   {} keys repaired", count(rounds.repaired_last)), Level::Ok));
    said.push(match rounds.failed {
        Some((whom, why)) => (format!("{} {whom}: {why}", sign(Level::Warn)), Level::Warn),
        None => (
            format!(
                "since start   {} keys, {} rounds",
                count(rounds.repaired),
                count(rounds.ended)
            ),
            Level::Ok,
        ),
    });
    said
}

fn strip_title(each: usize, room: usize) -> String {
    let what = match each {
        0 | 1 => "Lag on the ring 00..ff".to_owned(),
        each => format!("Lag, cell = worst of {each}"),
    };
    let (warn, critical) = (LAG.0 / 1000, LAG.1 / 1000);
    let full = format!("{what}   · 0  o <{warn}s  ! <{critical}s  X more  ? unknown");
    if width(&full) <= room { full } else { what }
}

/// A cell for each partition or some, and what is the matter in words.
fn strip_of(app: &App, cluster: &Cluster, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let now = cluster.viewpoint_now(app.shown_now());
    let Some(reply) = cluster.partitions(app.shown_now()) else {
        put(buf, area, area.x + 1, area.y, "? who lacks what where is not told yet", theme.dim());
        return;
    };
    let lags = worst_lags(reply, now);
    let cells = Rect { height: area.height.saturating_sub(1), ..area };
    ring::draw_cells(lags.len(), theme, cells, buf, |part| {
        let worst = lags[part].iter().max_by_key(|lag| lag.badness(now)).copied();
        glyph(worst.unwrap_or(Lag::Unknown), now, theme)
    });
    let (behind, unknown) = lags.iter().fold((0, 0), |(behind, unknown), lag| match lag {
        Lag::Since { .. } => (behind + 1, unknown),
        Lag::Unknown => (behind, unknown + 1),
        Lag::Nothing => (behind, unknown),
    });
    let mut text = format!("a copy lags in {behind}/{} partitions", lags.len());
    if unknown > 0 {
        text += &format!(", not known of {unknown} more");
    }
    let worst = reply.partitions.iter().filter_map(|it| Some((it.partition, worst(it, now)?)));
    // Of several the first.
    let worst = worst.rev().max_by_key(|(_, (lag, _))| lag.badness(now));
    if let Some((partition, (lag @ Lag::Since { .. }, node))) = worst {
        let worst = format!("   worst #{partition} {node} {}", lag_cell(lag, now).0);
        if width(&text) + width(&worst) + 2 <= usize::from(area.width) {
            text += &worst;
        }
    }
    let y = area.bottom().saturating_sub(1);
    put(buf, area, area.x + 1, y, &text, Style::new());
}

fn glyph(lag: Lag, now: Millis, theme: &Theme) -> (&'static str, Style) {
    let level = lag.level(now);
    let sign = match (lag, level) {
        (Lag::Nothing, _) => "·",
        (Lag::Unknown, _) => UNKNOWN,
        (_, Level::Critical) => "X",
        (_, Level::Warn) => "!",
        _ => "o",
    };
    (sign, theme.level(level))
}

// === cells ===

fn state(node: &Node, _: &At<'_>) -> (String, Level) {
    let (word, level) = match node.state() {
        NodeState::Up if node.lost_data() => ("up, no vote", Level::Warn),
        NodeState::Up => ("up", Level::Ok),
        NodeState::Down => ("down", Level::Critical),
        NodeState::Suspect => ("suspect", Level::Warn),
        NodeState::Unknown | NodeState::Unspecified => ("unheard", Level::Unknown),
    };
    (format!("{} {word}", sign(level)), level)
}

/// `+` behind what is so much or more.
fn plus(lag: Lag) -> &'static str {
    if matches!(lag, Lag::Since { more: true, .. }) { "+" } else { "" }
}

fn missing(node: &Node, _: &At<'_>) -> (String, Level) {
    let text = match (node.lag(), node.seen.lag.as_ref()) {
        (Lag::Unknown, _) | (_, None) => UNKNOWN.into(),
        (lag, Some(told)) => count(told.keys) + plus(lag),
    };
    (text, Level::Ok)
}

fn bytes_missing(node: &Node, _: &At<'_>) -> (String, Level) {
    let text = match (node.lag(), node.seen.lag.as_ref()) {
        (Lag::Unknown, _) | (_, None) => UNKNOWN.into(),
        (Lag::Nothing, _) => "0".into(),
        (lag, Some(told)) => bytes(told.bytes) + plus(lag),
    };
    (text, Level::Ok)
}

/// How lag went lately, relative to the most; blank where it was not known.
pub(super) fn sparks(node: &Node, at: &At<'_>) -> (String, Level) {
    let end = at.cluster.view.observed_at_ms;
    let slices = at.cluster.lag_track(node).map(|track| track.slices(end, SPARKS));
    (slices.map(|slices| sparkline(&slices)).unwrap_or_default(), Level::Ok)
}

fn drain(node: &Node, at: &At<'_>) -> (String, Level) {
    let text = match node.lag() {
        Lag::Nothing => String::new(),
        lag => {
            let track = at.cluster.lag_track(node);
            track.and_then(|track| drain_text(track, lag)).unwrap_or_else(|| UNKNOWN.into())
        }
    };
    (text, Level::Ok)
}

fn to_go(node: &Node, at: &At<'_>) -> (String, Level) {
    let eta = at.cluster.lag_track(node).and_then(|track| eta_text(track, node));
    (eta.unwrap_or_default(), Level::Ok)
}

/// `-40/s`, with `+` if it lacks more and more.
fn drain_text(track: &LagTrack, lag: Lag) -> Option<String> {
    let Lag::Since { .. } = lag else { return None };
    let by = track.drain()?;
    let sign = if by > 0.0 { "+" } else { "-" };
    Some(if by == 0.0 { "0/s".into() } else { format!("{sign}{}/s", rate(by.abs())) })
}

/// How long until nothing is missing at the rate of the last seconds, or a word why it will not be.
fn eta_text(track: &LagTrack, node: &Node) -> Option<String> {
    let Lag::Since { .. } = node.lag() else { return None };
    let by = track.drain()?;
    let keys = node.seen.lag.as_ref()?.keys as f64;
    Some(match by {
        by if by > 0.0 => "grows".into(),
        by if by < 0.0 => duration((keys / -by * 1000.0) as Millis),
        _ => "stands".into(),
    })
}
