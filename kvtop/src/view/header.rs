//! The first line: which cluster, seen through whom, and how fresh that is.

use super::number::{clock, duration};
use super::theme::{Theme, sign};
use super::{put, width};
use crate::app::{App, Link};
use crate::state::{Cluster, Level};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

/// A piece of the line; pieces with the greatest `rank` are the first to go when it gets narrow.
struct Piece {
    text: String,
    rank: u8,
    style: Style,
}

/// Draws the header into the first line of `area`.
pub(super) fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let (mut left, mut right) = (left(app, theme), right(app, theme, usize::from(area.width)));
    let room = usize::from(area.width);
    while total(&left, &right) > room && drop_one(&mut left, &mut right) {}
    let mut x = area.x;
    for piece in &left {
        x = put(buf, area, x, area.y, &piece.text, piece.style) + 2;
    }
    let mut x = area.right().saturating_sub(length(&right) as u16).max(area.x);
    for piece in &right {
        x = put(buf, area, x, area.y, &piece.text, piece.style) + 2;
    }
}

fn left(app: &App, theme: &Theme) -> Vec<Piece> {
    let plain = Style::new();
    let mut pieces = vec![Piece { text: "kvtop".into(), rank: 6, style: theme.bold() }];
    let Some(cluster) = app.cluster() else {
        return pieces;
    };
    let name = if cluster.view.name.is_empty() { "(no cluster)" } else { &cluster.view.name };
    let nodes = match cluster.nodes.len() {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    };
    let (ring, agreed) = ring(cluster);
    pieces.push(Piece { text: name.to_owned(), rank: 1, style: theme.bold() });
    pieces.push(Piece { text: nodes, rank: 4, style: plain });
    pieces.push(Piece { text: ring, rank: 3, style: theme.level(agreed) });
    if !cluster.view.viewpoint.is_empty() {
        pieces.push(Piece {
            text: format!("via {}", cluster.view.viewpoint),
            rank: 5,
            style: plain,
        });
    }
    pieces
}

fn ring(cluster: &Cluster) -> (String, Level) {
    let Some(layout) = &cluster.view.layout else {
        return ("ring ?".into(), Level::Unknown);
    };
    let (agreed, up) = (cluster.view.layout_agreed as usize, cluster.up());
    let level = if agreed < up { Level::Warn } else { Level::Ok };
    let mark = if level == Level::Ok { String::new() } else { format!(" {}", sign(level)) };
    (format!("ring {} agreed {agreed}/{up}{mark}", layout.depth), level)
}

fn right(app: &App, theme: &Theme, room: usize) -> Vec<Piece> {
    let style = Style::new();
    let (text, loud) = status(app, room);
    let state = if loud { theme.reversed().add_modifier(Modifier::BOLD) } else { style };
    vec![
        Piece { text: "RO".into(), rank: 8, style: theme.dim() },
        Piece { text, rank: 0, style: state },
        Piece { text: format!("{}Z", clock(app.now)), rank: 7, style },
    ]
}

/// LIVE, PAUSED, STALE or connecting, in as many words as there is room for.
fn status(app: &App, room: usize) -> (String, bool) {
    let age = duration(app.age().unwrap_or(0));
    let trying = |brief: bool| match &app.attempt {
        Some(attempt) if brief => format!(", trying {}", app.name_of(&attempt.endpoint)),
        Some(attempt) => format!(
            ", trying {} ({} of {})",
            app.name_of(&attempt.endpoint),
            attempt.position,
            attempt.total
        ),
        None => ", waiting to try again".into(),
    };
    match &app.link {
        Link::Live => match app.paused_since() {
            Some(since) => (format!("PAUSED {}", duration(app.now.saturating_sub(since))), true),
            None => (format!("LIVE {age}"), false),
        },
        Link::Connecting => {
            let waited = duration(app.now.saturating_sub(app.started_at));
            longest(
                [format!("connecting {waited}{}", trying(false)), format!("connecting {waited}")],
                room,
                false,
            )
        }
        Link::Lost { endpoint, .. } => {
            let whom = app.name_of(endpoint);
            let forms = [
                format!("STALE {age}, {whom} unreachable{}", trying(false)),
                format!("STALE {age}{}", trying(false)),
                format!("STALE {age}{}", trying(true)),
                format!("STALE {age}"),
            ];
            longest(forms, room, true)
        }
    }
}

fn longest<const N: usize>(forms: [String; N], room: usize, loud: bool) -> (String, bool) {
    let shortest = forms[N - 1].clone();
    let fits = forms.into_iter().find(|form| width(form) + 8 <= room);
    (fits.unwrap_or(shortest), loud)
}

fn length(pieces: &[Piece]) -> usize {
    let gaps = 2 * pieces.len().saturating_sub(1);
    pieces.iter().map(|piece| width(&piece.text)).sum::<usize>() + gaps
}

fn total(left: &[Piece], right: &[Piece]) -> usize {
    let gap = if left.is_empty() || right.is_empty() { 0 } else { 2 };
    length(left) + gap + length(right)
}

/// Takes out the least important piece of both; false when nothing may go.
fn drop_one(left: &mut Vec<Piece>, right: &mut Vec<Piece>) -> bool {
    let Some(worst) = left.iter().chain(right.iter()).map(|piece| piece.rank).max() else {
        return false;
    };
    left.retain(|piece| piece.rank != worst);
    right.retain(|piece| piece.rank != worst);
    true
}
