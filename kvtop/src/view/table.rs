//! A row for each node: as many columns as fit, the least important go first.

use super::theme::Theme;
use super::{put, width};
use crate::app::App;
use crate::state::{Cluster, Level, Millis, Node};
use proto::v1::NodeState;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Columns between two columns.
const GAP: usize = 2;

/// What a cell may look at besides its node.
pub(super) struct At<'a> {
    /// Now, on the viewpoint's clock.
    pub(super) now: Millis,
    pub(super) cluster: &'a Cluster,
}

pub(super) struct Column {
    pub(super) title: &'static str,
    /// The greatest goes first when it gets narrow; 0 stays.
    pub(super) rank: u8,
    /// Width it has even when its content is short, so that columns do not wander.
    pub(super) least: usize,
    pub(super) right: bool,
    pub(super) cell: fn(&Node, &At<'_>) -> (String, Level),
}

/// Lines that have a row for every node, and the head.
pub(super) fn wanted(app: &App) -> u16 {
    u16::try_from(app.nodes().len()).unwrap_or(u16::MAX - 2) + 1
}

/// Draws the nodes in their order on screen into `area`.
pub(super) fn render(
    app: &App,
    cluster: &Cluster,
    columns: &'static [Column],
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
) {
    if area.is_empty() {
        return;
    }
    let at = At { now: cluster.viewpoint_now(app.shown_now()), cluster };
    let nodes = app.nodes();
    let selected = app.selected_row();
    let shown = Shown::of(nodes.len(), usize::from(area.height) - 1, selected);
    let visible = &nodes[shown.from..shown.from + shown.rows];
    let columns = fitting(columns, visible, &at, usize::from(area.width));
    head(&columns, area, theme, buf);
    for (line, node) in (1..).zip(visible) {
        let row = Rect { y: area.y + line, height: 1, ..area }.intersection(area);
        let here = selected == Some(shown.from + usize::from(line) - 1);
        draw_row(node, &columns, &at, here, theme, row, buf);
    }
    if shown.rest > 0 {
        let text = rest(&nodes, &shown);
        put(buf, area, area.x + 1, area.y + 1 + shown.rows as u16, &text, theme.dim());
    }
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

/// The columns there is room for, each with its width.
fn fitting(
    columns: &'static [Column],
    nodes: &[&Node],
    at: &At<'_>,
    room: usize,
) -> Vec<(&'static Column, usize)> {
    let measured = |column: &Column| {
        let cells = nodes.iter().map(|node| width(&(column.cell)(node, at).0));
        cells.max().unwrap_or(0).max(column.least).max(width(column.title))
    };
    let mut columns: Vec<_> = columns.iter().map(|column| (column, measured(column))).collect();
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

fn draw_row(
    node: &Node,
    columns: &[(&Column, usize)],
    at: &At<'_>,
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
        let (text, level) = (column.cell)(node, at);
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
