//! The verdict in words: what is, what it means, what to do.

use super::number::{UNKNOWN, duration};
use super::theme::{Theme, sign};
use super::{put, wrap};
use crate::app::{App, Link};
use crate::state::{Cluster, Level};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

const IMPACT: &str = "  impact  ";
const WHY: &str = "  why     ";

/// A line and how it looks.
pub(super) struct Line {
    text: String,
    style: Style,
}

/// The verdict as lines of `room` columns: headline in at most `lines[0]`, impact in `lines[1]`,
/// next step in `lines[2]`.
pub(super) fn lines(app: &App, theme: &Theme, room: usize, lines: [usize; 3]) -> Vec<Line> {
    let said = say(app);
    let head = format!("{} {}", sign(said.level), said.headline);
    let mut out = Vec::new();
    let mut add = |text: &str, label: &str, most: usize, style: Style| {
        let label = if room >= 50 { label } else { "" };
        let indent = " ".repeat(label.len());
        for (position, part) in
            wrap(text, room.saturating_sub(label.len()), most).into_iter().enumerate()
        {
            let lead = if position == 0 { label } else { &indent };
            out.push(Line { text: format!("{lead}{part}"), style });
        }
    };
    let bold = theme.level(said.level).patch(theme.bold());
    add(&head, "", lines[0], if said.level == Level::Ok { Style::new() } else { bold });
    add(&said.impact, said.label, lines[1], Style::new());
    add(&said.next, "  next    ", lines[2], Style::new());
    out
}

/// Draws `lines` from the top of `area`; returns how many it drew.
pub(super) fn draw(lines: &[Line], area: Rect, buf: &mut Buffer) -> u16 {
    let mut drawn = 0;
    for line in lines.iter().take(usize::from(area.height)) {
        put(buf, area, area.x, area.y + drawn, &line.text, line.style);
        drawn += 1;
    }
    drawn
}

struct Said {
    level: Level,
    headline: String,
    /// What stands before `impact`: it is not always one.
    label: &'static str,
    impact: String,
    next: String,
}

fn say(app: &App) -> Said {
    match (app.cluster(), &app.link) {
        (None, _) => connecting(app),
        (Some(cluster), Link::Lost { endpoint, why }) => lost(app, cluster, endpoint, why),
        (Some(cluster), _) => seen(cluster),
    }
}

fn seen(cluster: &Cluster) -> Said {
    let verdict = cluster.view.verdict.clone().unwrap_or_default();
    let level = cluster.level();
    let headline = format!("{}  {}", word(level), or_unknown(&verdict.headline));
    Said { level, headline, label: IMPACT, impact: verdict.impact, next: verdict.next }
}

/// The last verdict is of the past: now nobody tells.
fn lost(app: &App, cluster: &Cluster, endpoint: &str, why: &str) -> Said {
    let was = cluster.view.verdict.clone().unwrap_or_default();
    let age = duration(app.age().unwrap_or(0));
    Said {
        level: Level::Unknown,
        headline: format!(
            "UNKNOWN  nothing heard for {age}; was {}, {}",
            word(cluster.level()),
            or_unknown(&was.headline)
        ),
        label: WHY,
        impact: format!("{} gave no more samples: {why}", app.name_of(endpoint)),
        next: "kvtop goes on trying every node it knows".into(),
    }
}

fn connecting(app: &App) -> Said {
    let at = |endpoint: &str| format!("connecting to {endpoint}");
    let headline = match (&app.attempt, &app.failure) {
        (Some(attempt), _) => {
            format!("{} ({} of {})", at(&attempt.endpoint), attempt.position, attempt.total)
        }
        (None, Some((endpoint, _))) => format!("{}, trying again", at(endpoint)),
        (None, None) => "connecting".into(),
    };
    let (impact, next) = match &app.failure {
        Some((endpoint, why)) => (
            format!("{endpoint}: {why}"),
            "start kvd there, or name another node with --endpoint HOST:PORT".into(),
        ),
        None => (String::new(), String::new()),
    };
    Said { level: Level::Unknown, headline, label: WHY, impact, next }
}

/// The level as a word.
pub fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "OK",
        Level::Unknown => "UNKNOWN",
        Level::Warn => "DEGRADED",
        Level::Critical => "CRITICAL",
    }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}
