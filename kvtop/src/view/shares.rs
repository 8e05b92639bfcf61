//! The shares of many nodes: a sign each, how many are how far from fair, and the furthest.

use super::frame::Band;
use super::number::percent;
use super::ownership::{facts, mark, nodes, partitions, strip_title, subject, untold};
use super::screen::{boxes, lines};
use super::table::At;
use super::theme::{MOVING, SPARKS, Theme, sign};
use super::{put, ring, shorten, width};
use crate::app::App;
use crate::state::{Level, Node};
use proto::v1::NodeState;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use std::collections::BTreeMap;

/// Edges between the lines of the histogram.
const EDGES: [f64; 6] = [-0.09, -0.06, -0.03, 0.03, 0.06, 0.09];
const LABELS: [&str; 7] = ["< -9%", "-9..-6", "-6..-3", "-3..+3", "+3..+6", "+6..+9", "> +9%"];

/// Lines of the histogram.
const BARS: u16 = LABELS.len() as u16;

/// Closer to the fair share than this is a dot: only what differs is drawn.
const FAIR: f64 = 0.025;

/// What one step of a sign's height means.
const STEP: f64 = 0.05;

/// Signs that stand together.
const GROUP: usize = 10;

/// Draws the view below its summary.
pub(super) fn render(app: &App, at: &At<'_>, theme: &Theme, body: Rect, buf: &mut Buffer) {
    let tall = body.height >= 28;
    let inner = body.width.saturating_sub(2);
    let strip = if tall { ring::strip_wanted(at.cluster, inner).min(8) } else { 0 };
    let free = body.height.saturating_sub(if tall { 5 } else { 4 } + strip);
    let grid = Grid::fitting(at, usize::from(inner), if tall { 8 } else { 4 });
    let rows = (grid.rows() as u16).min(free.saturating_sub(BARS + 2));
    let list = if tall { BARS + 2 } else { BARS }.min(free.saturating_sub(rows));
    let subject = subject(app);
    let name = subject.map_or("", |node| node.seen.name.as_str());
    let held = format!("Partitions where {name} holds a copy, least live first");
    let mut bands = vec![
        Band::one(grid.title(usize::from(inner).saturating_sub(4)), rows),
        Band::two("Share vs fair: how many nodes", "Down, and furthest from fair", list),
    ];
    if strip > 0 {
        bands.push(Band::one(strip_title(at, body.width, strip), strip));
    }
    bands.push(Band::one(held, free.saturating_sub(rows + list)));
    let inside = boxes(app, &bands, true, body, theme, buf);
    grid.draw(app, at, theme, inside[0], buf);
    histogram(at, theme, inside[1], buf);
    nodes(app, at, theme, inside[2], buf);
    let last = inside[inside.len() - 1];
    if strip > 0 {
        ring::strip(at.cluster, theme, inside[3], buf);
    }
    let (Some(ring), Some(node)) = (at.cluster.ring(), subject) else {
        return untold(theme, last, buf);
    };
    let orders = ring.slot(&node.uid).map(|slot| ring.orders(slot)).unwrap_or_default();
    let facts = facts(node, ring, &orders, at, usize::from(last.width));
    // In the little room below there are partitions worth more than all that can be said.
    let said = usize::from(last.height.saturating_sub(4)).clamp(1, facts.len());
    lines(&facts[..said], theme, last, buf);
    partitions(node, ring, at, theme, super::screen::below(last, said as u16), buf);
}

/// Every node as a sign, a zone in its own lines.
struct Grid<'a> {
    zones: BTreeMap<&'a str, Vec<&'a Node>>,
    /// Nodes a sign stands for.
    each: usize,
    /// Signs in a line.
    per_line: usize,
    /// Columns before the signs.
    label: usize,
}

impl<'a> Grid<'a> {
    /// With as few nodes a sign as fit into so many lines.
    fn fitting(at: &At<'a>, room: usize, lines: usize) -> Self {
        let mut zones: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
        for node in &at.cluster.nodes {
            zones.entry(&node.seen.zone).or_default().push(node);
        }
        let mut grid = Self { zones, each: 1, per_line: GROUP, label: 0 };
        let labels = grid.zones.iter().map(|(zone, nodes)| width(&Self::label(zone, nodes)));
        grid.label = labels.max().unwrap_or(0) + 2;
        grid.per_line = ((room.saturating_sub(grid.label + 2) + 1) / (GROUP + 1)).max(1) * GROUP;
        while grid.rows() > lines.max(grid.zones.len()) {
            grid.each += 1;
        }
        grid
    }

    fn rows(&self) -> usize {
        let lines = |nodes: &Vec<&Node>| nodes.len().div_ceil(self.each).div_ceil(self.per_line);
        self.zones.values().map(lines).sum()
    }

    fn label(zone: &str, nodes: &[&Node]) -> String {
        let share: f64 = nodes.iter().map(|node| node.seen.share_ratio).sum();
        let up = nodes.iter().filter(|node| node.state() == NodeState::Up).count();
        format!("{} {:>5} {up}/{} up", shorten(zone, 12), percent(share), nodes.len())
    }

    fn title(&self, room: usize) -> String {
        let what = match self.each {
            1 => "Every node by zone".to_owned(),
            each => format!("Nodes by zone, sign = worst of {each}"),
        };
        let full = format!("{what}   · fair  ▁ -15%  █ +20%  ✖ down  » gets copies");
        if width(&full) <= room { full } else { what }
    }

    fn draw(&self, app: &App, at: &At<'_>, theme: &Theme, area: Rect, buf: &mut Buffer) {
        let mut y = area.y;
        let fits = self.rows() <= usize::from(area.height);
        for (at_zone, (zone, nodes)) in self.zones.iter().enumerate() {
            if !fits && y + 1 >= area.bottom() {
                let text = format!("… {} more zones", self.zones.len() - at_zone);
                put(buf, area, area.x + 1, y, &text, theme.dim());
                return;
            }
            put(buf, area, area.x + 1, y, &Self::label(zone, nodes), Style::new());
            let cells: Vec<&[&Node]> = nodes.chunks(self.each).collect();
            for line in cells.chunks(self.per_line) {
                let start = area.x + 1 + self.label as u16;
                for (place, cell) in line.iter().enumerate() {
                    let x = start + (place + place / GROUP) as u16;
                    let (sign, style) = cell_sign(app, cell, at, theme);
                    put(buf, area, x, y, sign, style);
                }
                y += 1;
            }
        }
    }
}

/// The sign of the worst of some nodes; reversed with the selected node among them.
fn cell_sign(app: &App, nodes: &[&Node], at: &At<'_>, theme: &Theme) -> (&'static str, Style) {
    let Some(worst) = nodes.iter().max_by_key(|node| node.unfairness()) else {
        return (" ", Style::new());
    };
    let (special, level) = mark(worst, at, Level::Ok);
    let level = level.max(worst.share_level());
    // Nearly all give something to whoever comes: only those that get are marked.
    let gets = |node: &&Node| {
        let change = at.cluster.change(&node.seen.name, at.shown);
        node.is_passing() || change.is_some_and(|change| change.waiting > 0)
    };
    let sign = match special {
        " " | MOVING if nodes.iter().any(gets) => MOVING,
        " " | MOVING => height(worst),
        special => special,
    };
    let style = if sign == "·" { theme.dim() } else { theme.level(level) };
    let selected = nodes.iter().any(|node| app.selected.as_ref() == Some(&node.uid));
    (sign, if selected { style.patch(theme.reversed()) } else { style })
}

fn height(node: &Node) -> &'static str {
    match node.deviation() {
        None => sign(Level::Unknown),
        Some(by) if by.abs() < FAIR => "·",
        // Three steps below fair is the least there is.
        Some(by) => SPARKS[((by / STEP).round() + 3.0).clamp(0.0, 7.0) as usize],
    }
}

fn histogram(at: &At<'_>, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let mut count = [0; LABELS.len()];
    for by in at.cluster.nodes.iter().filter_map(Node::deviation) {
        count[EDGES.iter().filter(|edge| by >= **edge).count()] += 1;
    }
    let most = count.iter().copied().max().unwrap_or(0).max(1);
    let digits = most.to_string().len();
    let room = usize::from(area.width).saturating_sub(10 + digits + 1);
    for (y, (label, count)) in (area.y..area.bottom()).zip(LABELS.iter().zip(count)) {
        let bar = (count * room).div_ceil(most).min(room);
        put(buf, area, area.x + 1, y, label, theme.dim());
        let x = put(buf, area, area.x + 9, y, &"█".repeat(bar), Style::new());
        let gap = if bar > 0 { 1 } else { 0 };
        put(buf, area, x.max(area.x + 9) + gap, y, &count.to_string(), Style::new());
    }
}
