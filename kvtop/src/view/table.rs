//! A row for each node, or for something else: as many columns as fit, the least important go
//! first.

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
    /// Now, on this machine's.
    pub(super) shown: Millis,
    pub(super) cluster: &'a Cluster,
}

impl<'a> At<'a> {
    pub(super) fn of(app: &App, cluster: &'a Cluster) -> Self {
        let shown = app.shown_now();
        Self { now: cluster.viewpoint_now(shown), shown, cluster }
    }
}

pub(super) struct Column<Row = Node> {
    pub(super) title: &'static str,
    /// The greatest goes first when it gets narrow; 0 stays.
    pub(super) rank: u8,
    /// Width it has even when its content is short, so that columns do not wander.
    pub(super) least: usize,
    pub(super) right: bool,
    pub(super) cell: fn(&Row, &At<'_>) -> (String, Level),
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
    let at = At::of(app, cluster);
    let nodes = app.nodes();
    let selected = app.selected_row();
    let shown = Shown::of(nodes.len(), usize::from(area.height) - 1, selected);
    let visible = &nodes[shown.from..shown.from + shown.rows];
    let here = selected.and_then(|row| row.checked_sub(shown.from));
    draw(visible, here, columns, &at, theme, area, buf);
    if shown.rest > 0 {
        let text = rest(&nodes, &shown);
        put(buf, area, area.x + 1, area.y + 1 + shown.rows as u16, &text, theme.dim());
    }
}

/// Rows that are no nodes, shown from number `from` on.
pub(super) struct List<'a, Row: 'static> {
    pub(super) rows: &'a [Row],
    pub(super) from: usize,
    /// What they are.
    pub(super) what: &'static str,
    pub(super) columns: &'static [Column<Row>],
}

impl<Row> List<'_, Row> {
    /// Draws as many as there are lines, and how many there are besides.
    pub(super) fn draw(&self, at: &At<'_>, theme: &Theme, area: Rect, buf: &mut Buffer) {
        let room = usize::from(area.height).saturating_sub(1);
        let fits = self.rows.len() <= room;
        let taken = if fits { self.rows.len() } else { room.saturating_sub(1) };
        let from = self.from.min(self.rows.len() - taken);
        let visible: Vec<&Row> = self.rows[from..from + taken].iter().collect();
        draw(&visible, None, self.columns, at, theme, area, buf);
        if !fits && room > 0 {
            let above = if from > 0 { format!(", {from} of them above") } else { String::new() };
            let text = format!("… {} more {}{above}", self.rows.len() - taken, self.what);
            put(buf, area, area.x + 1, area.bottom() - 1, &text, theme.dim());
        }
    }
}

/// Head and rows, the row number `here` as the selected one.
fn draw<Row>(
    rows: &[&Row],
    here: Option<usize>,
    columns: &'static [Column<Row>],
    at: &At<'_>,
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
) {
    let columns = fitting(columns, rows, at, usize::from(area.width));
    head(&columns, area, theme, buf);
    for (line, row) in rows.iter().enumerate() {
        let y = area.y + 1 + line as u16;
        let place = Rect { y, height: 1, ..area }.intersection(area);
        draw_row(*row, &columns, at, here == Some(line), theme, place, buf);
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
fn fitting<Row>(
    columns: &'static [Column<Row>],
    rows: &[&Row],
    at: &At<'_>,
    room: usize,
) -> Vec<(&'static Column<Row>, usize)> {
    let measured = |column: &Column<Row>| {
        let cells = rows.iter().map(|row| width(&(column.cell)(row, at).0));
        cells.max().unwrap_or(0).max(column.least).max(width(column.title))
    };
    let mut columns: Vec<_> = columns.iter().map(|column| (column, measured(column))).collect();
    let total = |columns: &[(&Column<Row>, usize)]| {
        columns.iter().map(|(_, width)| width + GAP).sum::<usize>()
    };
    while total(&columns) > room + GAP - 1 {
        let worst = columns.iter().map(|(column, _)| column.rank).max().unwrap_or(0);
        if worst == 0 {
            break;
        }
        columns.retain(|(column, _)| column.rank != worst);
    }
    columns
}

fn head<Row>(columns: &[(&Column<Row>, usize)], area: Rect, theme: &Theme, buf: &mut Buffer) {
    let mut x = area.x + 1;
    for (column, width) in columns {
        put(buf, area, x, area.y, &aligned(column.title, *width, column.right), theme.dim());
        x = x.saturating_add((width + GAP) as u16);
    }
}

fn draw_row<Row>(
    row: &Row,
    columns: &[(&Column<Row>, usize)],
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
        let (text, level) = (column.cell)(row, at);
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
