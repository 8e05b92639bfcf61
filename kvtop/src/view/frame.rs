//! Boxes that share their borders, as `├─ Title ──┬─ Title ──┤`.

use super::put;
use super::theme::Theme;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// One row of boxes: one or two titles, and the number of lines inside.
#[derive(Debug)]
pub(super) struct Band {
    pub(super) titles: Vec<String>,
    pub(super) height: u16,
}

impl Band {
    pub(super) fn one(title: impl Into<String>, height: u16) -> Self {
        Self { titles: vec![title.into()], height }
    }

    pub(super) fn two(left: impl Into<String>, right: impl Into<String>, height: u16) -> Self {
        Self { titles: vec![left.into(), right.into()], height }
    }

    fn split(&self) -> bool {
        self.titles.len() == 2
    }
}

/// Lines that `bands` fill, borders included.
pub(super) fn height(bands: &[Band]) -> u16 {
    bands.iter().map(|band| band.height + 1).sum::<u16>() + 1
}

/// Draws the borders, with `foot` in the last, and returns what is inside, from left to right and
/// top to bottom.
pub(super) fn draw(
    area: Rect,
    bands: &[Band],
    foot: &str,
    theme: &Theme,
    buf: &mut Buffer,
) -> Vec<Rect> {
    let mut inside = Vec::new();
    let mut y = area.y;
    let mut above: Option<&Band> = None;
    for band in bands {
        rule(area, y, above, Some(band), theme, buf);
        titles(area, y, &band.titles, theme, buf);
        sides(area, y + 1, band, theme, buf);
        inside.extend(insides(area, y + 1, band));
        y += band.height + 1;
        above = Some(band);
    }
    rule(area, y, above, None, theme, buf);
    titles(area, y, &[foot.to_owned()], theme, buf);
    inside
}

fn middle(area: Rect) -> u16 {
    area.x + area.width / 2
}

fn insides(area: Rect, y: u16, band: &Band) -> Vec<Rect> {
    let boxed = |from: u16, to: u16| {
        Rect::new(from, y, to.saturating_sub(from), band.height).intersection(area)
    };
    let right = area.right().saturating_sub(1);
    if band.split() {
        return vec![boxed(area.x + 1, middle(area)), boxed(middle(area) + 1, right)];
    }
    vec![boxed(area.x + 1, right)]
}

fn sides(area: Rect, y: u16, band: &Band, theme: &Theme, buf: &mut Buffer) {
    for y in y..y + band.height {
        put(buf, area, area.x, y, "│", theme.dim());
        put(buf, area, area.right().saturating_sub(1), y, "│", theme.dim());
        if band.split() {
            put(buf, area, middle(area), y, "│", theme.dim());
        }
    }
}

fn rule(
    area: Rect,
    y: u16,
    above: Option<&Band>,
    below: Option<&Band>,
    theme: &Theme,
    buf: &mut Buffer,
) {
    let (left, right) = match (above, below) {
        (None, _) => ("┌", "┐"),
        (_, None) => ("└", "┘"),
        _ => ("├", "┤"),
    };
    let split = |band: Option<&Band>| band.is_some_and(Band::split);
    let joint = match (split(above), split(below)) {
        (false, false) => "─",
        (true, false) => "┴",
        (false, true) => "┬",
        (true, true) => "┼",
    };
    put(buf, area, area.x, y, &"─".repeat(usize::from(area.width)), theme.dim());
    put(buf, area, area.x, y, left, theme.dim());
    put(buf, area, middle(area), y, joint, theme.dim());
    put(buf, area, area.right().saturating_sub(1), y, right, theme.dim());
}

fn titles(area: Rect, y: u16, titles: &[String], theme: &Theme, buf: &mut Buffer) {
    let ends = [middle(area), area.right().saturating_sub(1)];
    for (position, title) in titles.iter().enumerate() {
        let from = if position == 0 { area.x } else { middle(area) } + 2;
        let to = if titles.len() == 2 { ends[position] } else { ends[1] };
        let room = Rect::new(from, y, to.saturating_sub(from), 1).intersection(area);
        if !title.is_empty() {
            let title = super::shorten(&format!(" {title} "), usize::from(room.width));
            put(buf, room, from, y, &title, theme.bold());
        }
    }
}
