//! What happened, the newest first.

use super::number::clock;
use super::theme::{Theme, sign};
use super::{put, shorten};
use crate::state::Cluster;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// Draws as many entries as there are lines.
pub(super) fn render(cluster: &Cluster, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let room = usize::from(area.width).saturating_sub(2);
    for (y, entry) in (area.y..area.bottom()).zip(cluster.log.newest()) {
        let text = format!("{}  {}  {}", clock(entry.at_ms), sign(entry.level), entry.text);
        put(buf, area, area.x + 1, y, &shorten(&text, room), theme.level(entry.level));
    }
}
