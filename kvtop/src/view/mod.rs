//! The picture. It only reads.

mod frame;
mod header;
mod help;
mod lag;
mod log;
mod moves;
mod node;
mod nodes;
pub mod number;
mod overview;
mod ownership;
mod requests;
mod ring;
mod screen;
mod shares;
mod small;
mod table;
pub mod theme;
mod verdict;

use crate::app::{App, Screen};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use theme::Theme;
use unicode_width::UnicodeWidthStr;

pub use moves::op_word;
pub use verdict::word;

/// Draws the dashboard into `area`.
pub fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let area = area.intersection(buf.area);
    if area.is_empty() {
        return;
    }
    match app.help {
        Some(from) => help::render(app, from, theme, area, buf),
        None => match app.screen {
            Screen::Overview => overview::render(app, theme, area, buf),
            Screen::Ring => ownership::render(app, theme, area, buf),
            Screen::Lag => lag::render(app, theme, area, buf),
            Screen::Nodes => nodes::render_list(app, theme, area, buf),
            Screen::Moves => moves::render(app, theme, area, buf),
            Screen::Node => node::render(app, theme, area, buf),
        },
    }
    theme.finish(buf);
}

/// Writes `text` at `x`, `y`, as much of it as lies in `area`; returns where it ends.
fn put(buf: &mut Buffer, area: Rect, x: u16, y: u16, text: &str, style: Style) -> u16 {
    let area = area.intersection(buf.area);
    if x < area.x || x >= area.right() || y < area.y || y >= area.bottom() {
        return x;
    }
    buf.set_stringn(x, y, text, usize::from(area.right() - x), style).0
}

/// Columns `text` takes.
fn width(text: &str) -> usize {
    text.width()
}

/// `text` cut to `room` columns, with `…` where it was cut. Not for numbers.
fn shorten(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let mut cut = String::new();
    for c in text.chars() {
        let longer = format!("{cut}{c}…");
        if width(&longer) > room {
            break;
        }
        cut.push(c);
    }
    if room > 0 { cut + "…" } else { cut }
}

/// `text` broken into at most `lines` lines of `room` columns, between words where it can be.
fn wrap(text: &str, room: usize, lines: usize) -> Vec<String> {
    let mut wrapped: Vec<String> = Vec::new();
    // Two spaces stay two: they set a word apart.
    let mut words = text.trim().split(' ').peekable();
    if text.trim().is_empty() {
        return wrapped;
    }
    while wrapped.len() < lines && words.peek().is_some() {
        let mut line = String::new();
        let last = wrapped.len() + 1 == lines;
        while let Some(word) = words.peek() {
            let joined =
                if line.is_empty() { (*word).to_owned() } else { format!("{line} {word}") };
            if width(&joined) > room && !line.is_empty() && !last {
                break;
            }
            line = joined;
            words.next();
        }
        wrapped.push(shorten(&line, room));
    }
    wrapped
}

/// Marks all of `area` as no longer true.
fn fade(area: Rect, buf: &mut Buffer) {
    let area = area.intersection(buf.area);
    buf.set_style(area, Style::new().add_modifier(Modifier::DIM));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words_and_shortened_only_at_the_end() {
        assert_eq!(wrap("one two three four", 9, 3), ["one two", "three", "four"]);
        assert_eq!(wrap("one two three four", 9, 2), ["one two", "three fo…"]);
        assert_eq!(wrap("unbreakable", 5, 2), ["unbr…"]);
        assert_eq!(wrap("", 5, 2), Vec::<String>::new());
        assert_eq!(shorten("abc", 0), "");
    }
}
