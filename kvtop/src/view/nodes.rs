//! The table of nodes: as many columns as fit, the least important go first.

use super::frame::Band;
use super::number::{UNKNOWN, bytes, count, deviation, duration, latency, percent, rate};
use super::table::{self, At, Column};
use super::theme::{MOVING, Theme, sign};
use super::{put, screen, shorten, small, width};
use crate::app::App;
use crate::state::{Cluster, Lag, Level, Load, Millis, Node};
use proto::v1::{Membership, NodeState};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// Names longer than this are shortened.
const NAME_MAX: usize = 20;

/// Half the width of the bar that compares a share with the fair one; it stands for 25%.
pub(super) const BAR_HALF: usize = 4;

/// The first so many are in the overview too.
const OVERVIEW_COLUMNS: usize = 17;

const COLUMNS: [Column; 22] = [
    Column {
        title: "node",
        rank: 0,
        least: 4,
        right: false,
        cell: |node, _| (shorten(&node.seen.name, NAME_MAX), Level::Ok),
    },
    Column {
        title: "zone",
        rank: 10,
        least: 4,
        right: false,
        cell: |node, _| (shorten(&node.seen.zone, NAME_MAX), Level::Ok),
    },
    Column {
        title: "state",
        rank: 0,
        least: 4,
        right: false,
        cell: |node, at| state(node, at.now),
    },
    Column {
        title: "share",
        rank: 4,
        least: 5,
        right: true,
        cell: |node, _| (percent(node.seen.share_ratio), Level::Ok),
    },
    Column { title: "dev  ", rank: 5, least: 6, right: true, cell: dev },
    Column {
        title: "vs fair",
        rank: 9,
        least: 2 * BAR_HALF + 1,
        right: false,
        cell: |node, _| (bar(node), node.share_level()),
    },
    Column {
        title: "lag",
        rank: 3,
        least: 6,
        right: true,
        cell: |node, at| lag_cell(node.lag(), at.now),
    },
    Column { title: "checked", rank: 7, least: 7, right: true, cell: checked },
    Column { title: "rtt", rank: 8, least: 6, right: true, cell: rtt },
    Column {
        title: "get/s",
        rank: 1,
        least: 5,
        right: true,
        cell: |node, _| load(node, |load| rate(load.rates.gets)),
    },
    Column {
        title: "put/s",
        rank: 2,
        least: 5,
        right: true,
        cell: |node, _| load(node, |load| rate(load.rates.puts)),
    },
    Column {
        title: "p99get",
        rank: 12,
        least: 6,
        right: true,
        cell: |node, _| load(node, |load| none_or(load.get_p99())),
    },
    Column {
        title: "p99put",
        rank: 13,
        least: 6,
        right: true,
        cell: |node, _| load(node, |load| none_or(load.put_p99())),
    },
    Column { title: "fail/s", rank: 11, least: 6, right: true, cell: failures },
    Column { title: "disk  ", rank: 6, least: 6, right: true, cell: disk },
    Column {
        title: "data",
        rank: 14,
        least: 6,
        right: true,
        cell: |node, _| stat(node, |stats| bytes(stats.data_bytes)),
    },
    Column {
        title: "keys",
        rank: 15,
        least: 5,
        right: true,
        cell: |node, _| stat(node, |stats| count(stats.keys)),
    },
    Column {
        title: "keeps",
        rank: 16,
        least: 5,
        right: true,
        cell: |node, _| stat(node, |stats| count(kept(stats))),
    },
    Column {
        title: "copies",
        rank: 17,
        least: 6,
        right: true,
        cell: |node, _| (node.seen.copies.to_string(), Level::Ok),
    },
    Column {
        title: "weight",
        rank: 18,
        least: 6,
        right: true,
        cell: |node, _| (node.seen.weight.to_string(), Level::Ok),
    },
    Column {
        title: "address",
        rank: 19,
        least: 7,
        right: false,
        cell: |node, _| (shorten(&node.seen.address, NAME_MAX), Level::Ok),
    },
    Column {
        title: "kvd",
        rank: 20,
        least: 3,
        right: false,
        cell: |node, _| match node.seen.version.as_str() {
            "" => (UNKNOWN.into(), Level::Ok),
            version => (shorten(version, NAME_MAX), Level::Ok),
        },
    },
];

/// Lines the table wants, its head included.
pub(super) fn wanted(app: &App) -> u16 {
    table::wanted(app) + u16::from(app.selected_row().is_some())
}

/// Draws the table into `area`; `all` its columns, as many as fit.
pub(super) fn render(
    app: &App,
    cluster: &Cluster,
    theme: &Theme,
    area: Rect,
    all: bool,
    buf: &mut Buffer,
) {
    let now = cluster.viewpoint_now(app.shown_now());
    let mut rows = area;
    if let (Some(row), 4..) = (app.selected_row(), area.height) {
        rows.height -= 1;
        let text = detail(app.nodes()[row], now, usize::from(area.width).saturating_sub(2));
        put(buf, area, area.x + 1, area.bottom() - 1, &text, theme.note());
    }
    let columns = if all { &COLUMNS[..] } else { &COLUMNS[..OVERVIEW_COLUMNS] };
    table::render(app, cluster, columns, theme, rows, buf);
}

/// The list of nodes, with as many columns as there is room for.
pub(super) fn render_list(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    match (area.width, area.height) {
        (..30, _) | (_, ..6) => return small::tiny(app, theme, area, buf),
        (..50, _) | (_, ..12) => return small::brief(app, theme, area, buf),
        _ => {}
    }
    let roomy = area.width >= 72 && area.height >= 20;
    let lines = if roomy { [2, 3, 2] } else { [1, 0, 0] };
    let Some((cluster, body)) = screen::top(app, theme, area, roomy, lines, buf) else {
        return;
    };
    let bands = [Band::one("Nodes, problems first", body.height.saturating_sub(2))];
    let inside = screen::boxes(app, &bands, roomy, body, theme, buf);
    render(app, cluster, theme, inside[0], true, buf);
    screen::outdated(app, body, buf);
}

/// Word for a state, with how long it lasts unless all is well.
pub(super) fn state(node: &Node, now: Millis) -> (String, Level) {
    let since = || duration(now.saturating_sub(node.seen.since_ms));
    let (text, level) = match node.state() {
        NodeState::Down => (format!("down {}", since()), Level::Critical),
        NodeState::Unknown | NodeState::Unspecified => {
            ("never heard of".to_owned(), Level::Unknown)
        }
        NodeState::Suspect => (format!("suspect {}", since()), Level::Warn),
        NodeState::Up if node.lost_data() => ("up, no vote".to_owned(), Level::Warn),
        NodeState::Up if node.ring_differs => {
            let depth = node.seen.layout.as_ref().map_or(0, |layout| layout.depth);
            (format!("up, ring {depth}"), Level::Warn)
        }
        NodeState::Up if bad_records(node) > 0 => {
            (format!("up, {} bad records", count(bad_records(node))), Level::Warn)
        }
        NodeState::Up => (format!("up{}", passing(node)), Level::Ok),
    };
    let mark = if text.starts_with("up, ") && level == Level::Ok { MOVING } else { sign(level) };
    (format!("{mark} {text}"), level)
}

/// What a node that is up is about to do.
fn passing(node: &Node) -> String {
    let word = match node.membership() {
        Membership::Joining => ", joining",
        Membership::Leaving => ", leaving",
        Membership::Member | Membership::Unspecified => "",
    };
    let draining = if node.seen.draining { ", draining" } else { "" };
    format!("{word}{draining}")
}

/// What is known of a node besides the columns, as much as `room` holds.
fn detail(node: &Node, now: Millis, room: usize) -> String {
    let seen = &node.seen;
    let since = duration(now.saturating_sub(seen.since_ms));
    let up = node.state() == NodeState::Up;
    let parts = [
        if up { format!("up for {since}") } else { seen.why.clone() },
        format!("zone {}", seen.zone),
        format!("weight {}", seen.weight),
        format!("{} copies", seen.copies),
        format!("kvd {}", if seen.version.is_empty() { UNKNOWN } else { &seen.version }),
    ];
    let mut text = format!("{}  {}", seen.name, seen.address);
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if width(&text) + 2 + width(part) <= room {
            text = text + "  " + part;
        }
    }
    shorten(&text, room)
}

pub(super) fn dev(node: &Node, _: &At<'_>) -> (String, Level) {
    let text = node.deviation().map_or_else(|| UNKNOWN.into(), deviation);
    marked(text, node.share_level())
}

/// How far behind: `0`, `3m12s`, `3m12s+` for so much or more, `?`.
pub(super) fn lag_cell(lag: Lag, now: Millis) -> (String, Level) {
    let text = match lag {
        Lag::Unknown => UNKNOWN.into(),
        Lag::Nothing => "0".into(),
        Lag::Since { at_ms, more } => {
            let more = if more { "+" } else { "" };
            duration(now.saturating_sub(at_ms)) + more
        }
    };
    (text, lag.level(now))
}

/// The age of its oldest last comparison.
pub(super) fn checked(node: &Node, at: &At<'_>) -> (String, Level) {
    let age = node.checked_at().map(|then| duration(at.now.saturating_sub(then)));
    (age.unwrap_or_else(|| UNKNOWN.into()), node.checked_level(at.now))
}

/// Keys it keeps for others.
pub(super) fn kept(stats: &proto::v1::NodeStats) -> u64 {
    stats.hints.iter().map(|hints| hints.keys).fold(0, u64::saturating_add)
}

fn disk(node: &Node, _: &At<'_>) -> (String, Level) {
    let old = if node.state() == NodeState::Up { "" } else { UNKNOWN };
    let text = node
        .disk_used()
        .map_or_else(|| UNKNOWN.into(), |used| format!("{:.0}%{old}", used * 100.0));
    marked(text, node.disk_level())
}

/// With the sign behind it, or the room for one, so that numbers stay in line.
fn marked(text: String, level: Level) -> (String, Level) {
    let mark = if level == Level::Ok { " " } else { sign(level) };
    (format!("{text} {mark}"), level)
}

/// The bar of a node's distance from its fair share, `██▌┊     `.
pub(super) fn bar(node: &Node) -> String {
    let Some(deviation) = node.deviation() else {
        return UNKNOWN.into();
    };
    let halves = (deviation.abs() / 0.25 * (2 * BAR_HALF) as f64).round();
    let halves = halves.min((2 * BAR_HALF) as f64) as usize;
    let (full, half) = (halves / 2, halves % 2);
    let blank = " ".repeat(BAR_HALF - full - half);
    if deviation < 0.0 {
        let bar = if half == 1 { "▐" } else { "" };
        format!("{blank}{bar}{}┊{}", "█".repeat(full), " ".repeat(BAR_HALF))
    } else {
        let bar = if half == 1 { "▌" } else { "" };
        format!("{}┊{}{bar}{blank}", " ".repeat(BAR_HALF), "█".repeat(full))
    }
}

fn rtt(node: &Node, _: &At<'_>) -> (String, Level) {
    let text = match node.seen.latency_us {
        _ if node.viewpoint => "itself".into(),
        0 => UNKNOWN.into(),
        _ if node.state() != NodeState::Up => UNKNOWN.into(),
        micros => latency(micros),
    };
    (text, Level::Ok)
}

fn failures(node: &Node, _: &At<'_>) -> (String, Level) {
    let (text, _) = load(node, |load| rate(load.rates.failures));
    let failing = node.load.as_ref().is_some_and(|load| load.rates.failures > 0.0);
    (text, if failing { Level::Warn } else { Level::Ok })
}

fn load(node: &Node, text: fn(&Load) -> String) -> (String, Level) {
    (node.load.as_ref().map_or_else(|| UNKNOWN.into(), text), Level::Ok)
}

fn stat(node: &Node, text: fn(&proto::v1::NodeStats) -> String) -> (String, Level) {
    let fresh = node.seen.stats.as_ref().filter(|_| node.state() == NodeState::Up);
    (fresh.map_or_else(|| UNKNOWN.into(), text), Level::Ok)
}

/// `-` when there was no request to measure, which is not the same as not knowing.
fn none_or(micros: Option<u64>) -> String {
    micros.map_or_else(|| "-".into(), latency)
}

fn bad_records(node: &Node) -> u64 {
    node.seen.stats.as_ref().map_or(0, |stats| stats.bad_records)
}
