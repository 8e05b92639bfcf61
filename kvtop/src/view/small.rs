//! Screens too small for boxes: the verdict, the problems, the rates, in what room there is.

use super::number::{deviation, duration, duration_short, rate_per_s};
use super::screen::below;
use super::theme::{Theme, sign};
use super::{fade, header, moves, nodes, put, requests, ring, shorten, verdict, width};
use crate::app::App;
use crate::state::{Cluster, Level, Node};
use proto::v1::NodeState;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Header, verdict, rates, and the nodes that have a problem.
pub(super) fn brief(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    header::render(app, theme, area, buf);
    let room = usize::from(area.width);
    let mut rest = below(area, 1);
    let said = verdict::lines(app, theme, room, [2, 3, 2]);
    rest = below(rest, verdict::draw(&said, rest, buf));
    let Some(cluster) = app.cluster() else { return };
    let old = rest;
    put(buf, rest, rest.x, rest.y, &requests::brief(app, cluster, room), Style::new());
    let copies = ring::brief(cluster);
    if width(&copies) <= room {
        put(buf, rest, rest.x, rest.y + 1, &copies, Style::new());
        rest = below(rest, 1);
    }
    rest = below(rest, 1);
    let now = cluster.viewpoint_now(app.shown_now());
    if let Some(text) = moves::summary(cluster, now, room) {
        put(buf, rest, rest.x, rest.y, &text, theme.note());
        rest = below(rest, 1);
    }
    problems(app, cluster, theme, rest, buf);
    if app.stale() {
        fade(old, buf);
    }
}

/// The verdict in few words, then rates.
pub(super) fn tiny(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let (level, glance) = glance(app, usize::from(area.width));
    put(buf, area, area.x, area.y, &glance, theme.level(level).patch(theme.bold()));
    let Some(cluster) = app.cluster() else { return };
    let rates = cluster.totals().0;
    let lines = [
        format!("get  {:>8}", rate_per_s(rates.map(|rates| rates.gets))),
        format!("put  {:>8}", rate_per_s(rates.map(|rates| rates.puts))),
        format!("fail {:>8}", rate_per_s(rates.map(|rates| rates.failures))),
        format!("up {}/{}", cluster.up(), cluster.nodes.len()),
    ];
    let mut rest = below(area, 1);
    for line in lines.iter().filter(|line| width(line) <= usize::from(area.width)) {
        put(buf, rest, rest.x, rest.y, line, Style::new());
        rest = below(rest, 1);
    }
    problems(app, cluster, theme, rest, buf);
    if app.stale() {
        fade(below(area, 1), buf);
    }
}

/// `▲ n7 3m`: the sign of the verdict and the first problem, in `room` columns.
pub(super) fn glance(app: &App, room: usize) -> (Level, String) {
    let (level, forms) = glance_forms(app);
    let forms = forms.into_iter().map(|form| format!("{} {form}", sign(level)));
    let fits = forms.into_iter().find(|form| width(form) <= room);
    (level, fits.unwrap_or_else(|| sign(level).to_owned()))
}

fn glance_forms(app: &App) -> (Level, Vec<String>) {
    let Some(cluster) = app.cluster() else {
        return (Level::Unknown, vec!["connecting".into(), "connect".into()]);
    };
    if app.stale() {
        let age = app.age().unwrap_or(0);
        let short = duration_short(age);
        return (
            Level::Unknown,
            vec![format!("STALE {}", duration(age)), format!("STALE {short}"), short],
        );
    }
    let level = cluster.level();
    let not_up: Vec<&Node> =
        app.nodes().into_iter().filter(|node| node.state() != NodeState::Up).collect();
    let now = cluster.viewpoint_now(app.shown_now());
    let forms = match not_up[..] {
        [] => vec![
            format!("{}  {} up", verdict::word(level), cluster.up()),
            format!("{} up", cluster.up()),
        ],
        [node] => {
            let (name, age) = (&node.seen.name, now.saturating_sub(node.seen.since_ms));
            let long = match node.state() {
                NodeState::Down => format!("{name} down {}", duration(age)),
                NodeState::Suspect => format!("{name} suspect"),
                _ => format!("{name} not heard"),
            };
            vec![long, format!("{name} {}", duration_short(age)), name.clone(), "1 down".into()]
        }
        _ => vec![
            format!("{} of {} down", not_up.len(), cluster.nodes.len()),
            format!("{} down", not_up.len()),
        ],
    };
    (level, forms)
}

fn problems(app: &App, cluster: &Cluster, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let now = cluster.viewpoint_now(app.shown_now());
    let selected = app.selected.as_ref();
    let listed: Vec<&Node> = app
        .nodes()
        .into_iter()
        .filter(|node| node.level() > Level::Ok || selected == Some(&node.uid))
        .collect();
    if listed.is_empty() {
        let text = format!("{} all {} nodes up", sign(Level::Ok), cluster.nodes.len());
        if width(&text) <= usize::from(area.width) && !cluster.nodes.is_empty() {
            put(buf, area, area.x, area.y, &text, Style::new());
        }
    }
    let chosen = listed.iter().position(|node| selected == Some(&node.uid));
    let from = chosen.map_or(0, |row| (row + 1).saturating_sub(usize::from(area.height)));
    for (y, node) in (area.y..area.bottom()).zip(&listed[from..]) {
        problem(node, now, selected == Some(&node.uid), theme, Rect { y, height: 1, ..area }, buf);
    }
}

fn problem(node: &Node, now: u64, selected: bool, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let (state, _) = nodes::state(node, now);
    let (mark, state) = state.split_once(' ').unwrap_or(("", &state));
    let level = node.level();
    let mark = if level == Level::Ok { mark } else { sign(level) };
    let text = format!(" {mark} {} {state}{}  {}", node.seen.name, oddities(node), node.seen.why);
    put(
        buf,
        area,
        area.x,
        area.y,
        &shorten(text.trim_end(), usize::from(area.width)),
        theme.level(level),
    );
    if selected {
        put(buf, area, area.x, area.y, ">", Style::new());
        buf.set_style(area.intersection(buf.area), theme.reversed());
    }
}

/// What is wrong with a node besides its state.
fn oddities(node: &Node) -> String {
    let mut text = String::new();
    if let (Some(by), true) = (node.deviation(), node.share_level() > Level::Ok) {
        text += &format!(", share {}", deviation(by));
    }
    if let (Some(used), true) = (node.disk_used(), node.disk_level() > Level::Ok) {
        text += &format!(", disk {:.0}%", used * 100.0);
    }
    text
}
