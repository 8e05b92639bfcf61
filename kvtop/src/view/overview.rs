//! The overview: can I read and write, what is at risk, what next. One picture for each class of
//! screen, from two hundred columns down to one.

use super::frame::{self, Band};
use super::screen::{self, boxes, hints, outdated, top};
use super::theme::Theme;
use super::{log, moves, nodes, put, requests, ring, small};
use crate::app::App;
use crate::state::Cluster;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Lines of the table of nodes that are worth a box: its head, a node, how many more there are.
const TABLE_MIN: u16 = 3;

/// Draws the overview.
pub(super) fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    match (area.width, area.height) {
        (..30, _) | (_, ..6) => small::tiny(app, theme, area, buf),
        (..50, _) | (_, ..12) => small::brief(app, theme, area, buf),
        (..72, _) | (_, ..20) => one_pane(app, theme, area, buf),
        (120.., 36..) => full(app, theme, area, buf),
        _ => standard(app, theme, area, buf),
    }
}

/// What is under way, if anything is; returns the room below.
fn moves_line(app: &App, cluster: &Cluster, theme: &Theme, body: Rect, buf: &mut Buffer) -> Rect {
    const LABEL: &str = "  moves   ";
    let room = usize::from(body.width).saturating_sub(LABEL.len());
    let now = cluster.viewpoint_now(app.shown_now());
    let Some(text) = moves::summary(cluster, now, room) else { return body };
    put(buf, body, body.x, body.y, &format!("{LABEL}{text}"), theme.note());
    screen::below(body, 1)
}

fn one_pane(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some((cluster, body)) = top(app, theme, area, false, [1, 3, 2], buf) else {
        return;
    };
    let body = moves_line(app, cluster, theme, body, buf);
    pane(app, cluster, theme, false, body, buf);
}

/// Rates and copies in a line each, and the table of nodes.
fn pane(
    app: &App,
    cluster: &Cluster,
    theme: &Theme,
    with_tabs: bool,
    body: Rect,
    buf: &mut Buffer,
) {
    let room = usize::from(body.width);
    put(buf, body, body.x, body.y, &requests::brief(app, cluster, room), Style::new());
    put(buf, body, body.x, body.y + 1, &ring::brief(cluster), Style::new());
    let table = Rect { y: body.y + 2, height: body.height.saturating_sub(2), ..body };
    let bands = [Band::one("Nodes", table.height.saturating_sub(2))];
    let inside = frame::draw(table, &bands, &hints(app, room, with_tabs), theme, buf);
    nodes::render(app, cluster, theme, inside[0], false, buf);
    outdated(app, body, buf);
}

fn standard(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some((cluster, body)) = top(app, theme, area, true, [2, 3, 2], buf) else {
        return;
    };
    let body = moves_line(app, cluster, theme, body, buf);
    let copies = ring::copies_wanted(cluster).clamp(4, 6);
    let strip = 1;
    if body.height < 5 + copies + strip + TABLE_MIN {
        return pane(app, cluster, theme, true, body, buf);
    }
    let free = body.height.saturating_sub(5 + copies + strip);
    let table = nodes::wanted(app).min(free.saturating_sub(2)).max(TABLE_MIN);
    let events = free.saturating_sub(table);
    let bands = [
        Band::two(ring::copies_title(cluster), requests::title(app, cluster, false), copies),
        Band::one("Nodes", table),
        Band::one(strip_title(cluster, body, strip), strip),
        Band::one("Log, newest first", events),
    ];
    let inside = boxes(app, &bands, true, body, theme, buf);
    ring::copies(cluster, theme, inside[0], buf);
    requests::render(app, cluster, theme, inside[1], false, buf);
    nodes::render(app, cluster, theme, inside[2], false, buf);
    ring::strip(cluster, theme, inside[3], buf);
    log::render(cluster, theme, inside[4], buf);
    outdated(app, body, buf);
}

fn full(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some((cluster, body)) = top(app, theme, area, true, [2, 3, 2], buf) else {
        return;
    };
    let body = moves_line(app, cluster, theme, body, buf);
    let copies = ring::copies_wanted(cluster).clamp(4, 8);
    let strip = ring::strip_wanted(cluster, body.width.saturating_sub(2)).min(8);
    let free = body.height.saturating_sub(5 + copies + strip);
    let table = nodes::wanted(app).min(free.saturating_sub(5)).max(TABLE_MIN);
    let events = free.saturating_sub(table);
    let bands = [
        Band::one("Nodes, problems first", table),
        Band::two(ring::copies_title(cluster), requests::title(app, cluster, true), copies),
        Band::one(strip_title(cluster, body, strip), strip),
        Band::one("Log, newest first", events),
    ];
    let inside = boxes(app, &bands, true, body, theme, buf);
    nodes::render(app, cluster, theme, inside[0], false, buf);
    ring::copies(cluster, theme, inside[1], buf);
    requests::render(app, cluster, theme, inside[2], true, buf);
    ring::strip(cluster, theme, inside[3], buf);
    log::render(cluster, theme, inside[4], buf);
    outdated(app, body, buf);
}

fn strip_title(cluster: &Cluster, body: Rect, rows: u16) -> String {
    let room = usize::from(body.width).saturating_sub(6);
    ring::strip_title(cluster, body.width.saturating_sub(2), rows, room)
}
