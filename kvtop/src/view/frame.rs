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
    /// Columns inside the left of two; half of all if not given.
    left: Option<u16>,
}

impl Band {
    pub(super) fn one(title: impl Into<String>, height: u16) -> Self {
        Self { titles: vec![title.into()], height, left: None }
    }

    pub(super) fn two(left: impl Into<String>, right: impl Into<String>, height: u16) -> Self {
        Self { titles: vec![left.into(), right.into()], height, left: None }
    }

    /// The same with so many columns inside the left one.
    pub(super) fn with_left(self, columns: u16) -> Self {
        Self { left: Some(columns), ..self }
    }

    /// Where the border between two boxes is.
    fn middle(&self, area: Rect) -> Option<u16> {
        let middle = self.left.map_or(area.width / 2, |columns| columns.saturating_add(1));
        (self.titles.len() == 2).then(|| area.x.saturating_add(middle))
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
        titles(area, y, &band.titles, band.middle(area), theme, buf);
        sides(area, y + 1, band, theme, buf);
        inside.extend(insides(area, y + 1, band));
        y += band.height + 1;
        above = Some(band);
    }
    rule(area, y, above, None, theme, buf);
    titles(area, y, &[foot.to_owned()], None, theme, buf);
    inside
}

fn insides(area: Rect, y: u16, band: &Band) -> Vec<Rect> {
    let boxed = |from: u16, to: u16| {
        Rect::new(from, y, to.saturating_sub(from), band.height).intersection(area)
    };
    let right = area.right().saturating_sub(1);
    match band.middle(area) {
        Some(middle) => vec![boxed(area.x + 1, middle), boxed(middle + 1, right)],
        None => vec![boxed(area.x + 1, right)],
    }
}

fn sides(area: Rect, y: u16, band: &Band, theme: &Theme, buf: &mut Buffer) {
    for y in y..y + band.height {
        put(buf, area, area.x, y, "│", theme.dim());
        put(buf, area, area.right().saturating_sub(1), y, "│", theme.dim());
        if let Some(middle) = band.middle(area) {
            put(buf, area, middle, y, "│", theme.dim());
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
    put(buf, area, area.x, y, &"─".repeat(usize::from(area.width)), theme.dim());
    put(buf, area, area.x, y, left, theme.dim());
    let middle = |band: Option<&Band>| band.and_then(|band| band.middle(area));
    match (middle(above), middle(below)) {
        (Some(above), Some(below)) if above == below => {
            put(buf, area, above, y, "┼", theme.dim());
        }
        (above, below) => {
            for (x, joint) in [(above, "┴"), (below, "┬")] {
                x.map(|x| put(buf, area, x, y, joint, theme.dim()));
            }
        }
    }
    put(buf, area, area.right().saturating_sub(1), y, right, theme.dim());
}

fn titles(
    area: Rect,
    y: u16,
    titles: &[String],
    middle: Option<u16>,
    theme: &Theme,
    buf: &mut Buffer,
) {
    let right = area.right().saturating_sub(1);
    let starts = [area.x, middle.unwrap_or(right)];
    let ends = [middle.unwrap_or(right), right];
    for ((title, start), to) in titles.iter().zip(starts).zip(ends) {
        let from = start + 2;
        let room = Rect::new(from, y, to.saturating_sub(from), 1).intersection(area);
        if !title.is_empty() {
            let title = super::shorten(&format!(" {title} "), usize::from(room.width));
            put(buf, room, from, y, &title, theme.bold());
        }
    }
}
