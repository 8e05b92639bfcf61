//! The ring: how many live copies its partitions have, and where they are few.

use super::number::percent;
use super::theme::{Theme, sign};
use super::{put, width};
use crate::state::{Cluster, Copies, Level};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use std::ops::Range;

/// Title of the box that counts live copies.
pub(super) fn copies_title(cluster: &Cluster) -> String {
    match cluster.copies() {
        Some(copies) => format!("Live copies of {} partitions", copies.partitions()),
        None => "Live copies".into(),
    }
}

/// Lines that box wants.
pub(super) fn copies_wanted(cluster: &Cluster) -> u16 {
    cluster.copies().map_or(1, |copies| copies.n as u16 + 1)
}

/// Draws a line for each number of live copies, the best first.
pub(super) fn copies(cluster: &Cluster, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some(copies) = cluster.copies() else {
        put(buf, area, area.x + 1, area.y, "? no partitions", theme.dim());
        return;
    };
    for (y, group) in (area.y..).zip(groups(&copies, usize::from(area.height))) {
        copies_line(&copies, &group, theme, Rect { y, height: 1, ..area }.intersection(area), buf);
    }
}

/// The counts in one line, `copies 3/3 96  2/3 ▲ 32`, leaving out what there is none of.
pub(super) fn brief(cluster: &Cluster) -> String {
    let Some(copies) = cluster.copies() else {
        return "copies ?".into();
    };
    let counted: Vec<String> = (0..=copies.n)
        .rev()
        .filter(|live| copies.count[*live] > 0)
        .map(|live| {
            let level = copies.level(live);
            let mark = if level == Level::Ok { "" } else { sign(level) };
            format!("{live}/{}{mark} {}", copies.n, copies.count[live])
        })
        .collect();
    format!("copies {}", counted.join("  "))
}

/// Title of the strip, with its legend as far as `room` goes.
pub(super) fn strip_title(cluster: &Cluster, area_width: u16, rows: u16, room: usize) -> String {
    let Some(copies) = cluster.copies() else {
        return "Ring".into();
    };
    let what = match each(copies.partitions(), area_width, rows) {
        0 | 1 => "Ring 00..ff".to_owned(),
        each => format!("Ring 00..ff, cell = worst of {each}"),
    };
    let full = format!("{what}   {}", legend(&copies));
    if width(&full) <= room { full } else { what }
}

/// Lines in which every partition has its own cell.
pub(super) fn strip_wanted(cluster: &Cluster, width: u16) -> u16 {
    rows_wanted(cluster.view.live_copies.len(), width)
}

/// The same for so many partitions.
pub(super) fn rows_wanted(partitions: usize, width: u16) -> u16 {
    u16::try_from(partitions.div_ceil(per_row(width))).unwrap_or(u16::MAX).max(1)
}

/// Partitions a cell stands for.
pub(super) fn each(partitions: usize, width: u16, rows: u16) -> usize {
    partitions.div_ceil(cells(partitions, width, rows).max(1))
}

/// Draws the ring as rows of cells, each the worst of its partitions.
pub(super) fn strip(cluster: &Cluster, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let (Some(copies), false) = (cluster.copies(), area.is_empty()) else {
        return;
    };
    let live = &cluster.view.live_copies;
    draw_cells(live.len(), theme, area, buf, |part| {
        let worst = usize::from(live[part].iter().copied().min().unwrap_or(0)).min(copies.n);
        (glyph(&copies, worst), theme.level(copies.level(worst)))
    });
}

/// Draws a ring of so many partitions as rows of cells; `cell` is asked for the sign of each, which
/// stands for a range of them.
pub(super) fn draw_cells(
    partitions: usize,
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
    cell: impl Fn(Range<usize>) -> (&'static str, Style),
) {
    let cells = cells(partitions, area.width, area.height);
    let per_row = per_row(area.width).min(cells).max(1);
    for at in 0..cells {
        let (x, y) = ((at % per_row) as u16, (at / per_row) as u16);
        let (sign, style) = cell(at * partitions / cells..(at + 1) * partitions / cells);
        put(buf, area, area.x + 4 + x, area.y + y, sign, style);
    }
    for row in 0..cells.div_ceil(per_row) {
        let y = area.y + row as u16;
        let byte = |cell: usize| format!("{:02x}", (cell * 256 / cells).min(255));
        let last = (((row + 1) * per_row).min(cells) * 256 / cells).saturating_sub(1);
        put(buf, area, area.x + 1, y, &byte(row * per_row), theme.dim());
        put(buf, area, area.x + 5 + per_row as u16, y, &format!("{last:02x}"), theme.dim());
    }
}

/// Numbers of live copies counted together in one line, from the least to the most.
struct Group {
    from: usize,
    to: usize,
    count: usize,
}

/// One group for each number, unless there are more than `lines`: then the last has the rest.
fn groups(copies: &Copies, lines: usize) -> Vec<Group> {
    if lines == 0 {
        return Vec::new();
    }
    let single = if copies.n < lines { copies.n + 1 } else { lines - 1 };
    let mut groups: Vec<Group> = (0..=copies.n)
        .rev()
        .take(single)
        .map(|live| Group { from: live, to: live, count: copies.count[live] })
        .collect();
    if let Some(to) = (copies.n + 1).checked_sub(single + 1) {
        groups.push(Group { from: 0, to, count: copies.count[..=to].iter().sum() });
    }
    groups
}

fn copies_line(copies: &Copies, group: &Group, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let level = match group.count {
        0 => Level::Ok,
        _ => {
            copies.level((group.from..=group.to).find(|live| copies.count[*live] > 0).unwrap_or(0))
        }
    };
    let mark = if level == Level::Ok { " " } else { sign(level) };
    let label = if group.from == group.to {
        group.to.to_string()
    } else {
        format!("{}-{}", group.from, group.to)
    };
    let head = format!(" {label}/{} {mark} ", copies.n);
    let share = group.count as f64 / copies.partitions().max(1) as f64;
    let digits = copies.partitions().to_string().len();
    let tail = format!(" {:>digits$} {:>6}", group.count, percent(share));
    let room = usize::from(area.width).saturating_sub(width(&head) + width(&tail) + 1);
    let full = ((share * room as f64).round() as usize)
        .clamp(usize::from(group.count > 0), room.max(1))
        .min(room);
    let style = theme.level(level);
    let x = put(buf, area, area.x, area.y, &head, style);
    let x = put(buf, area, x, area.y, &"█".repeat(full), style);
    let x = put(buf, area, x, area.y, &"░".repeat(room - full), theme.dim());
    put(buf, area, x, area.y, &tail, if group.count > 0 { style } else { Style::new() });
}

/// Cells a row has: a power of two, so that a cell's place can be read as a prefix.
fn per_row(width: u16) -> usize {
    let room = usize::from(width).saturating_sub(8);
    if room == 0 { 1 } else { 1 << room.ilog2() }
}

fn cells(partitions: usize, width: u16, rows: u16) -> usize {
    partitions.min(per_row(width) * usize::from(rows))
}

fn glyph(copies: &Copies, live: usize) -> &'static str {
    match copies.level(live) {
        Level::Ok => "·",
        Level::Warn => "o",
        _ if live > 0 => "!",
        _ => "X",
    }
}

fn legend(copies: &Copies) -> String {
    let n = copies.n;
    let span = |from: usize, to: usize| {
        if from == to { format!("{to}/{n}") } else { format!("{from}-{to}/{n}") }
    };
    let quorum = copies.quorum.clamp(1, n);
    let mut parts = vec![format!("· {n}/{n}")];
    if quorum < n {
        parts.push(format!("o {}", span(quorum, n - 1)));
    }
    if quorum > 1 {
        parts.push(format!("! {}", span(1, quorum - 1)));
    }
    parts.push(format!("X 0/{n}"));
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copies_of(n: usize, quorum: usize) -> Copies {
        Copies { n, quorum, count: vec![1; n + 1] }
    }

    #[test]
    fn the_legend_names_every_number_of_copies_once() {
        assert_eq!(legend(&copies_of(3, 2)), "· 3/3  o 2/3  ! 1/3  X 0/3");
        assert_eq!(legend(&copies_of(1, 1)), "· 1/1  X 0/1");
        assert_eq!(legend(&copies_of(2, 2)), "· 2/2  ! 1/2  X 0/2");
        assert_eq!(legend(&copies_of(5, 3)), "· 5/5  o 3-4/5  ! 1-2/5  X 0/5");
    }

    #[test]
    fn every_partition_is_counted_however_few_lines_there_are() {
        for lines in 1..8 {
            let counted: usize =
                groups(&copies_of(5, 3), lines).iter().map(|group| group.count).sum();
            assert_eq!(counted, 6, "{lines} lines");
        }
    }
}
