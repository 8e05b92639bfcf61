//! The table of nodes: as many columns as fit, the least important go first.

use super::number::{UNKNOWN, bytes, count, deviation, duration, latency, percent, rate};
use super::theme::{Theme, sign};
use super::{put, shorten, width};
use crate::app::App;
use crate::state::{Cluster, Level, Load, Millis, Node};
use proto::v1::NodeState;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Names longer than this are shortened.
const NAME_MAX: usize = 20;

/// Half the width of the bar that compares a share with the fair one; it stands for 25%.
const BAR_HALF: usize = 4;

/// Columns between two columns.
const GAP: usize = 2;

struct Column {
    title: &'static str,
    /// The greatest goes first when it gets narrow; 0 stays.
    rank: u8,
    /// Width it has even when its content is short, so that columns do not wander.
    least: usize,
    right: bool,
    cell: fn(&Node, Millis) -> (String, Level),
}

const COLUMNS: [Column; 15] = [
    Column {
        title: "node",
        rank: 0,
        least: 4,
        right: false,
        cell: |node, _| (shorten(&node.seen.name, NAME_MAX), Level::Ok),
    },
    Column {
        title: "zone",
        rank: 8,
        least: 4,
        right: false,
        cell: |node, _| (shorten(&node.seen.zone, NAME_MAX), Level::Ok),
    },
    Column { title: "state", rank: 0, least: 4, right: false, cell: state },
    Column {
        title: "share",
        rank: 3,
        least: 5,
        right: true,
        cell: |node, _| (percent(node.seen.share_ratio), Level::Ok),
    },
    Column { title: "dev  ", rank: 4, least: 6, right: true, cell: dev },
    Column {
        title: "vs fair",
        rank: 7,
        least: 2 * BAR_HALF + 1,
        right: false,
        cell: |node, _| (bar(node), node.share_level()),
    },
    Column { title: "rtt", rank: 6, least: 6, right: true, cell: rtt },
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
        rank: 10,
        least: 6,
        right: true,
        cell: |node, _| load(node, |load| none_or(load.get_p99())),
    },
    Column {
        title: "p99put",
        rank: 11,
        least: 6,
        right: true,
        cell: |node, _| load(node, |load| none_or(load.put_p99())),
    },
    Column { title: "fail/s", rank: 9, least: 6, right: true, cell: failures },
    Column { title: "disk  ", rank: 5, least: 6, right: true, cell: disk },
    Column {
        title: "data",
        rank: 12,
        least: 6,
        right: true,
        cell: |node, _| stat(node, |stats| bytes(stats.data_bytes)),
    },
    Column {
        title: "keys",
        rank: 13,
        least: 5,
        right: true,
        cell: |node, _| stat(node, |stats| count(stats.keys)),
    },
];

/// Lines the table wants, its head included.
pub(super) fn wanted(app: &App) -> u16 {
    let detail = u16::from(app.selected_row().is_some());
    u16::try_from(app.nodes().len()).unwrap_or(u16::MAX - 2) + 1 + detail
}

/// Draws the table into `area`.
pub(super) fn render(app: &App, cluster: &Cluster, theme: &Theme, area: Rect, buf: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let now = cluster.viewpoint_now(app.shown_now());
    let nodes = app.nodes();
    let selected = app.selected_row();
    let mut rows = usize::from(area.height).saturating_sub(1);
    if let (Some(row), true) = (selected, rows > 2) {
        rows -= 1;
        let text = detail(nodes[row], now, usize::from(area.width).saturating_sub(2));
        put(buf, area, area.x + 1, area.bottom() - 1, &text, theme.note());
    }
    let shown = Shown::of(nodes.len(), rows, selected);
    let visible = &nodes[shown.from..shown.from + shown.rows];
    let columns = fitting(visible, now, usize::from(area.width));
    head(&columns, area, theme, buf);
    for (line, node) in (1..).zip(visible) {
        let at = Rect { y: area.y + line, height: 1, ..area }.intersection(area);
        let here = selected == Some(shown.from + usize::from(line) - 1);
        row(node, &columns, now, here, theme, at, buf);
    }
    if shown.rest > 0 {
        let text = rest(&nodes, &shown);
        put(buf, area, area.x + 1, area.y + 1 + shown.rows as u16, &text, theme.dim());
    }
}

/// Word for a state, with how long it lasts unless all is well.
pub(super) fn state(node: &Node, now: Millis) -> (String, Level) {
    let since = || duration(now.saturating_sub(node.seen.since_ms));
    let (text, level) = match node.state() {
        NodeState::Down => (format!("down {}", since()), Level::Critical),
        NodeState::Suspect | NodeState::Unknown | NodeState::Unspecified => {
            ("never heard of".to_owned(), Level::Unknown)
        }
        NodeState::Up if node.ring_differs => {
            let depth = node.seen.layout.as_ref().map_or(0, |layout| layout.depth);
            (format!("up, ring {depth}"), Level::Warn)
        }
        NodeState::Up if bad_records(node) > 0 => {
            (format!("up, {} bad records", count(bad_records(node))), Level::Warn)
        }
        NodeState::Up => ("up".to_owned(), Level::Ok),
    };
    (format!("{} {text}", sign(level)), level)
}

/// Which rows are visible.
struct Shown {
    from: usize,
    rows: usize,
    /// Nodes for which there is no row; one line tells their number.
    rest: usize,
}

impl Shown {
    fn of(nodes: usize, rows: usize, selected: Option<usize>) -> Self {
        if nodes <= rows {
            return Self { from: 0, rows: nodes, rest: 0 };
        }
        let rows = rows.saturating_sub(1);
        let from = selected.map_or(0, |row| (row + 1).saturating_sub(rows)).min(nodes - rows);
        Self { from, rows, rest: nodes - rows }
    }
}

fn rest(nodes: &[&Node], shown: &Shown) -> String {
    let hidden = nodes[..shown.from].iter().chain(&nodes[shown.from + shown.rows..]);
    let up = hidden.filter(|node| node.state() == NodeState::Up).count();
    match shown.rest - up {
        0 => format!("… {} more, all up", shown.rest),
        not_up => format!("… {} more, {not_up} of them not up", shown.rest),
    }
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

/// The columns there is room for, each with its width.
fn fitting(nodes: &[&Node], now: Millis, room: usize) -> Vec<(&'static Column, usize)> {
    let measured = |column: &Column| {
        let cells = nodes.iter().map(|node| width(&(column.cell)(node, now).0));
        cells.max().unwrap_or(0).max(column.least).max(width(column.title))
    };
    let mut columns: Vec<_> = COLUMNS.iter().map(|column| (column, measured(column))).collect();
    let total =
        |columns: &[(&Column, usize)]| columns.iter().map(|(_, width)| width + GAP).sum::<usize>();
    while total(&columns) > room + GAP - 1 {
        let worst = columns.iter().map(|(column, _)| column.rank).max().unwrap_or(0);
        if worst == 0 {
            break;
        }
        columns.retain(|(column, _)| column.rank != worst);
    }
    columns
}

fn head(columns: &[(&Column, usize)], area: Rect, theme: &Theme, buf: &mut Buffer) {
    let mut x = area.x + 1;
    for (column, width) in columns {
        put(buf, area, x, area.y, &aligned(column.title, *width, column.right), theme.dim());
        x = x.saturating_add((width + GAP) as u16);
    }
}

fn row(
    node: &Node,
    columns: &[(&Column, usize)],
    now: Millis,
    selected: bool,
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
) {
    if area.is_empty() {
        return;
    }
    let mut x = area.x + 1;
    for (column, width) in columns {
        let (text, level) = (column.cell)(node, now);
        put(buf, area, x, area.y, &aligned(&text, *width, column.right), theme.level(level));
        x = x.saturating_add((width + GAP) as u16);
    }
    if selected {
        put(buf, area, area.x, area.y, ">", Style::new());
        buf.set_style(area, theme.reversed());
    }
}

fn aligned(text: &str, room: usize, right: bool) -> String {
    let gap = " ".repeat(room.saturating_sub(width(text)));
    if right { gap + text } else { text.to_owned() + &gap }
}

fn dev(node: &Node, _: Millis) -> (String, Level) {
    let text = node.deviation().map_or_else(|| UNKNOWN.into(), deviation);
    marked(text, node.share_level())
}

fn disk(node: &Node, _: Millis) -> (String, Level) {
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
fn bar(node: &Node) -> String {
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

fn rtt(node: &Node, _: Millis) -> (String, Level) {
    let text = match node.seen.latency_us {
        _ if node.viewpoint => "itself".into(),
        0 => UNKNOWN.into(),
        _ if node.state() != NodeState::Up => UNKNOWN.into(),
        micros => latency(micros),
    };
    (text, Level::Ok)
}

fn failures(node: &Node, _: Millis) -> (String, Level) {
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
