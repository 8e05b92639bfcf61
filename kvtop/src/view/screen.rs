//! What every view has: header, the other views, verdict, the keys in the last line; and its
//! pictures for little room.

use super::frame::{self, Band};
use super::number::interval;
use super::table::At;
use super::theme::Theme;
use super::{fade, header, put, shorten, small, verdict, width};
use crate::app::{App, Screen};
use crate::keymap::{Action, BINDINGS};
use crate::state::{Cluster, Level};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// How much of a view there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Words of the one thing that matters most.
    Tiny,
    /// No boxes.
    Brief,
    /// One box.
    Pane,
    Full,
}

impl Room {
    pub(super) fn of(area: Rect) -> Self {
        match (area.width, area.height) {
            (..30, _) | (_, ..6) => Self::Tiny,
            (..50, _) | (_, ..12) => Self::Brief,
            (..72, _) | (_, ..20) => Self::Pane,
            _ => Self::Full,
        }
    }
}

/// Lines of text, each with its level.
pub(super) type Said = Vec<(String, Level)>;

/// The verdict in few words, and below it what `say` says: lines that do not fit are left out.
pub(super) fn tiny(
    app: &App,
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
    say: impl FnOnce(&At<'_>) -> Said,
) {
    let room = usize::from(area.width);
    let (level, glance) = small::glance(app, room);
    put(buf, area, area.x, area.y, &glance, theme.level(level).patch(theme.bold()));
    let Some(cluster) = app.cluster() else { return };
    let rest = below(area, 1);
    let said = say(&At::of(app, cluster));
    for (y, (text, level)) in
        (rest.y..rest.bottom()).zip(said.iter().filter(|(text, _)| width(text) <= room))
    {
        put(buf, rest, rest.x, y, text, theme.level(*level));
    }
    outdated(app, rest, buf);
}

/// Header, headline of the verdict if `judged`, and below it what `paint` paints.
pub(super) fn brief(
    app: &App,
    theme: &Theme,
    area: Rect,
    judged: bool,
    buf: &mut Buffer,
    paint: impl FnOnce(&At<'_>, Rect, &mut Buffer),
) {
    header::render(app, theme, area, buf);
    let said = verdict::lines(app, theme, usize::from(area.width), [usize::from(judged), 0, 0]);
    let rest = below(area, 1);
    let rest = below(rest, verdict::draw(&said, rest, buf));
    let Some(cluster) = app.cluster() else { return };
    paint(&At::of(app, cluster), rest, buf);
    outdated(app, rest, buf);
}

/// Header, headline of the verdict, and one box that `paint` fills.
pub(super) fn pane(
    app: &App,
    theme: &Theme,
    area: Rect,
    title: &str,
    buf: &mut Buffer,
    paint: impl FnOnce(&At<'_>, Rect, &mut Buffer),
) {
    let Some((cluster, body)) = top(app, theme, area, false, [1, 0, 0], buf) else {
        return;
    };
    let bands = [Band::one(title, body.height.saturating_sub(2))];
    let inside = boxes(app, &bands, false, body, theme, buf);
    paint(&At::of(app, cluster), inside[0], buf);
    outdated(app, body, buf);
}

/// Draws lines of text a column away from the left.
pub(super) fn lines(lines: &[(String, Level)], theme: &Theme, area: Rect, buf: &mut Buffer) {
    let room = usize::from(area.width).saturating_sub(2);
    for (y, (text, level)) in (area.y..area.bottom()).zip(lines) {
        put(buf, area, area.x + 1, y, &shorten(text, room), theme.level(*level));
    }
}

/// Header and verdict; returns the cluster and the room below, if there is a cluster to show.
pub(super) fn top<'a>(
    app: &'a App,
    theme: &Theme,
    area: Rect,
    with_tabs: bool,
    lines: [usize; 3],
    buf: &mut Buffer,
) -> Option<(&'a Cluster, Rect)> {
    header::render(app, theme, area, buf);
    let mut rest = below(area, 1);
    if with_tabs {
        tabs(app, theme, rest, buf);
        rest = below(rest, 1);
    }
    let said = verdict::lines(app, theme, usize::from(area.width), lines);
    let rest = below(rest, verdict::draw(&said, rest, buf));
    let Some(cluster) = app.cluster() else {
        let keys = hints(app, usize::from(area.width), with_tabs);
        put(buf, area, area.x, area.bottom() - 1, &keys, theme.dim());
        return None;
    };
    Some((cluster, rest))
}

pub(super) fn boxes(
    app: &App,
    bands: &[Band],
    with_tabs: bool,
    body: Rect,
    theme: &Theme,
    buf: &mut Buffer,
) -> Vec<Rect> {
    debug_assert!(frame::height(bands) <= body.height, "the boxes fit");
    frame::draw(body, bands, &hints(app, usize::from(body.width), with_tabs), theme, buf)
}

/// Draws the views there are, the open one in brackets, into the first line of `area`.
pub(super) fn tabs(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let open = |screens: &[Screen]| screens.contains(&app.screen);
    let views = [
        ("1Overview", open(&[Screen::Overview])),
        ("2Ring", open(&[Screen::Ring])),
        ("3Lag", open(&[Screen::Lag])),
        ("4Nodes", open(&[Screen::Nodes, Screen::Node])),
        ("7Moves", open(&[Screen::Moves])),
        ("?", false),
    ];
    let mut x = area.x;
    for (name, open) in views {
        let (text, style) = match open {
            true => (format!("[{name}]"), theme.bold()),
            false => (format!(" {name} "), theme.dim()),
        };
        x = put(buf, area, x, area.y, &text, style) + 1;
    }
}

/// What is left of `area` without its first lines.
pub(super) fn below(area: Rect, lines: u16) -> Rect {
    let lines = lines.min(area.height);
    Rect { y: area.y + lines, height: area.height - lines, ..area }
}

/// What was true at the last sample is dimmed when it no longer is; header and verdict are not.
pub(super) fn outdated(app: &App, body: Rect, buf: &mut Buffer) {
    if app.stale() {
        fade(body, buf);
    }
}

/// The most used keys, as many as `room` holds; those of the views only where they have no line of
/// their own.
pub(super) fn hints(app: &App, room: usize, with_tabs: bool) -> String {
    let is_open = |action| {
        let views = [
            (Action::Overview, Screen::Overview),
            (Action::Ring, Screen::Ring),
            (Action::Lag, Screen::Lag),
            (Action::Nodes, Screen::Nodes),
            (Action::Moves, Screen::Moves),
        ];
        views.into_iter().find(|(view, _)| *view == action).map(|(_, it)| it == app.screen)
    };
    let mut wanted: Vec<(usize, String)> = Vec::new();
    for (place, binding) in BINDINGS.iter().enumerate().filter(|(_, it)| !it.hint.is_empty()) {
        let hint = match binding.action {
            action if is_open(action).is_some_and(|open| open || with_tabs) => continue,
            Action::Enter if app.screen == Screen::Node => "Esc back".to_owned(),
            Action::Enter if app.screen == Screen::Moves => continue,
            Action::Down if app.screen == Screen::Moves => "j/k scroll".to_owned(),
            Action::Pause if app.paused_since().is_some() => "Space go on".to_owned(),
            Action::Slower => format!("{} {}", binding.hint, interval(app.interval)),
            _ => binding.hint.to_owned(),
        };
        wanted.push((place, hint));
    }
    // Help and the way out first, then the other views, then what one can do without.
    let rank = |place: usize| match BINDINGS[place].action {
        Action::Pause | Action::Slower => 2,
        action if is_open(action).is_some() => 1,
        _ => 0,
    };
    wanted.sort_by_key(|(place, _)| rank(*place));
    let mut taken: Vec<(usize, String)> = Vec::new();
    let mut length = 0;
    for (place, hint) in wanted {
        let longer = length + width(&hint) + 2;
        if longer + 4 <= room {
            length = longer;
            taken.push((place, hint));
        }
    }
    taken.sort_by_key(|(place, _)| *place);
    taken.into_iter().map(|(_, hint)| hint).collect::<Vec<_>>().join("  ")
}
