//! One node: its state, who thinks what of it, its load and lag, and what happened to it.

use super::frame::Band;
use super::lag::{listed, sparks, waiting};
use super::nodes::{checked, kept, lag_cell, state};
use super::number::{UNKNOWN, bytes, clock, count, duration, latency, percent, rate};
use super::screen::{self, Room, Said, below, boxes, lines, outdated, top};
use super::table::At;
use super::theme::{Theme, sign};
use super::{put, shorten, width, wrap};
use crate::app::App;
use crate::state::{Cluster, Level, Millis, Node, STATS_AGE_MAX, live_elsewhere};
use proto::v1::NodeState;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Lines of each pair of panes.
const PANES: u16 = 5;

/// Draws the selected node.
pub(super) fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let node = app.node();
    let title = node.map_or_else(|| "Nodes".into(), |node| format!("Nodes > {}", node.seen.name));
    match Room::of(area) {
        Room::Tiny => screen::tiny(app, theme, area, buf, |at| {
            node.map(|node| glance(node, at, area.width)).unwrap_or_default()
        }),
        Room::Brief => screen::brief(app, theme, area, false, buf, |at, rest, buf| {
            let said = node.map(|node| {
                [title_line(node, rest.width), whole(node, at.now), facts(node, at)].concat()
            });
            // A column to the left, as inside a box.
            let wide = Rect { x: rest.x.saturating_sub(1), width: rest.width + 2, ..rest };
            let wide = wide.intersection(Rect { width: rest.width, ..rest });
            lines(&said.unwrap_or_default(), theme, wide, buf);
        }),
        Room::Pane => screen::pane(app, theme, area, &title, buf, |at, inside, buf| {
            let said = node.map(|node| {
                let seen_by = seen_by(node, inside.width);
                [whole(node, at.now), facts(node, at), seen_by, timeline(at.cluster, node)].concat()
            });
            lines(&said.unwrap_or_default(), theme, inside, buf);
        }),
        Room::Full => standard(app, theme, area, buf),
    }
}

/// Its state and lag in a line each.
fn glance(node: &Node, at: &At<'_>, area_width: u16) -> Said {
    let (state, level) = state(node, at.now);
    let (lag, lag_level) = lag_cell(node.lag(), at.now);
    let said = [(format!("{} {state}", node.seen.name), level), (format!("lag {lag}"), lag_level)];
    said.map(|(text, level)| (shorten(&text, usize::from(area_width)), level)).into()
}

fn standard(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some((cluster, body)) = top(app, theme, area, true, [1, 0, 0], buf) else {
        return;
    };
    let Some(node) = app.node() else { return };
    let now = cluster.viewpoint_now(app.shown_now());
    let mut rest = body;
    for (text, level) in [title_line(node, body.width), whole(node, now)].concat() {
        let room = usize::from(rest.width);
        let style = if level == Level::Ok { Style::new() } else { theme.level(level) };
        put(buf, rest, rest.x, rest.y, &shorten(&text, room), style);
        rest = below(rest, 1);
    }
    let copies = copies(app, cluster, node);
    let free = rest.height.saturating_sub(4 + PANES);
    let below_panes = PANES.max(copies.len().min(8) as u16).min(free);
    let events = free - below_panes;
    let bands = [
        Band::two("Seen by peers (who thinks what)", load_title(node, now), PANES),
        Band::two(copies_title(node), "Lag", below_panes),
        Band::one(format!("Log, where it names {}", node.seen.name), events),
    ];
    let inside = boxes(app, &bands, true, rest, theme, buf);
    lines(&seen_by(node, inside[0].width), theme, inside[0], buf);
    lines(&load(node, now), theme, inside[1], buf);
    draw_copies(&copies, theme, inside[2], buf);
    lines(&lag(node, &At::of(app, cluster), inside[3].width), theme, inside[3], buf);
    lines(&timeline(cluster, node), theme, inside[4], buf);
    outdated(app, body, buf);
}

/// Which node, as much as there is room for.
fn title_line(node: &Node, room: u16) -> Said {
    let seen = &node.seen;
    let uid: String = node.uid.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let parts = [
        seen.address.clone(),
        format!("zone {}", seen.zone),
        format!("weight {}", seen.weight),
        format!("kvd {}", if seen.version.is_empty() { UNKNOWN } else { &seen.version }),
        format!("id {uid}"),
    ];
    let mut text = format!("Nodes > {}", shorten(&seen.name, 20));
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if width(&text) + 3 + width(part) <= usize::from(room) {
            text = text + "   " + part;
        }
    }
    vec![(text, Level::Ok)]
}

/// Its state, since when and why; and whether it votes.
fn whole(node: &Node, now: Millis) -> Said {
    let (text, level) = state(node, now);
    let since = match node.state() {
        NodeState::Up => duration(now.saturating_sub(node.seen.since_ms)),
        _ => clock(node.seen.since_ms),
    };
    let text = match node.state() {
        NodeState::Up if node.lost_data() => {
            let sign = sign(level);
            format!("{sign} up for {since}, no vote in gets until it is level again: it lost data")
        }
        NodeState::Up if !node.is_passing() && !node.seen.draining => format!("{text} for {since}"),
        NodeState::Up => format!("{text}; up for {since}"),
        NodeState::Down | NodeState::Suspect => format!("{text} since {since}"),
        NodeState::Unknown | NodeState::Unspecified => text,
    };
    let why = if node.seen.why.is_empty() { "" } else { "   " };
    vec![(format!("{text}{why}{}", node.seen.why), level)]
}

/// What matters most, a line each, where there is no room for panes.
fn facts(node: &Node, at: &At<'_>) -> Said {
    let now = at.now;
    let ((lag, level), (checked, checked_level)) = (lag_cell(node.lag(), now), checked(node, at));
    let keys = node.seen.lag.as_ref().filter(|lag| lag.keys > 0);
    let missing = keys.map(|lag| format!(", {} keys, {}", count(lag.keys), bytes(lag.bytes)));
    let copies = format!("copies   {}, share {}", node.seen.copies, percent(node.seen.share_ratio));
    let mut said = vec![
        (format!("lag      {lag}{}", missing.unwrap_or_default()), level),
        (format!("checked  {checked}{}", ago(&checked)), checked_level),
        (copies, Level::Ok),
    ];
    said.extend(load(node, now));
    said
}

fn ago(age: &str) -> &'static str {
    if age == UNKNOWN { "" } else { " ago" }
}

/// Who thinks what of it.
fn seen_by(node: &Node, area_width: u16) -> Said {
    if node.seen.seen_by.is_empty() {
        return vec![("(not told)".into(), Level::Unknown)];
    }
    let words = [
        (NodeState::Down, "down", Level::Critical),
        (NodeState::Suspect, "suspect", Level::Warn),
        (NodeState::Up, "up", Level::Ok),
        (NodeState::Unknown, "unheard", Level::Unknown),
    ];
    let room = usize::from(area_width).saturating_sub(2);
    let mut said = Vec::new();
    for (state, word, level) in words {
        let of = node.seen.seen_by.iter().filter(|seen| seen.state() == state);
        let names: Vec<String> = of.map(|seen| seen.node.clone()).collect();
        let mark = if level == Level::Ok { "" } else { sign(level) };
        let label = format!("{word} {mark}");
        let gap = " ".repeat(10_usize.saturating_sub(width(&label)));
        let text = match names[..] {
            [] => continue,
            ref names => names.join(" "),
        };
        let lines = wrap(&text, room.saturating_sub(10), 3);
        for (at, line) in lines.into_iter().enumerate() {
            let lead = if at == 0 { format!("{label}{gap}") } else { " ".repeat(10) };
            said.push((lead + &line, level));
        }
    }
    let unlinked = node.seen.seen_by.iter().filter(|seen| !seen.linked);
    let unlinked: Vec<String> = unlinked.map(|seen| seen.node.clone()).collect();
    if !unlinked.is_empty() {
        said.push((listed("no link   ", &unlinked, room), Level::Ok));
    }
    said
}

fn load_title(node: &Node, now: Millis) -> String {
    let age = now.saturating_sub(node.seen.stats_at_ms);
    match &node.seen.stats {
        None => "Load: never told".into(),
        Some(_) if age > STATS_AGE_MAX => format!("As last told, {} ago", duration(age)),
        Some(_) => "Load".into(),
    }
}

/// Rates are of now or not known; sizes are as last told.
fn load(node: &Node, now: Millis) -> Said {
    let old = now.saturating_sub(node.seen.stats_at_ms) > STATS_AGE_MAX;
    let p99 = |micros: Option<u64>| micros.map_or_else(|| "-".into(), latency);
    let mut said = match &node.load {
        None => vec![("requests ?".to_owned(), Level::Unknown)],
        Some(load) => {
            let rates = load.rates;
            let failing = if rates.failures > 0.0 { Level::Warn } else { Level::Ok };
            let line = |what: &str, per_s: f64, micros| {
                format!("{what}  {:>7}  p99 {:>6}", rate(per_s) + "/s", p99(micros))
            };
            let fails = format!("   fail {}/s", rate(rates.failures));
            vec![
                (line("get", rates.gets, load.get_p99()), Level::Ok),
                (line("put", rates.puts, load.put_p99()) + &fails, failing),
            ]
        }
    };
    let Some(stats) = &node.seen.stats else { return said };
    let mark = if old { UNKNOWN } else { "" };
    if let Some(used) = node.disk_used() {
        let free = bytes(stats.disk_free_bytes);
        let full = if stats.disk_full { ", takes no puts" } else { "" };
        let text = format!("disk {:.0}%{mark}  {free} free{full}", used * 100.0);
        said.push((text, node.disk_level()));
    }
    let (keys, data) = (count(stats.keys), bytes(stats.data_bytes));
    said.push((format!("keys {keys}{mark}  data {data}{mark}"), Level::Ok));
    let bad = match stats.bad_records {
        0 => String::new(),
        bad => format!("  bad records {}", count(bad)),
    };
    let level = if bad.is_empty() { Level::Ok } else { Level::Warn };
    let ring = node.seen.layout.as_ref().map_or_else(|| UNKNOWN.into(), |it| it.depth.to_string());
    let differs =
        if node.ring_differs { format!(" {} differs", sign(Level::Warn)) } else { String::new() };
    said.push((
        format!("keeps {} hints{mark}  ring {ring}{differs}{bad}", count(kept(stats))),
        level,
    ));
    said
}

fn copies_title(node: &Node) -> String {
    format!("Copies held: {}, {} of all", node.seen.copies, percent(node.seen.share_ratio))
}

/// For each number of live copies elsewhere, how many of its partitions; empty if not told.
fn copies(app: &App, cluster: &Cluster, node: &Node) -> Vec<usize> {
    let told = cluster.partitions(app.shown_now());
    told.map(|reply| live_elsewhere(reply, &node.seen.name)).unwrap_or_default()
}

fn draw_copies(count: &[usize], theme: &Theme, area: Rect, buf: &mut Buffer) {
    if count.is_empty() {
        let text = "? where else they are is not told yet";
        put(buf, area, area.x + 1, area.y, text, theme.dim());
        return;
    }
    let (n, all) = (count.len(), count.iter().sum::<usize>().max(1));
    let digits = all.to_string().len();
    for (y, (live, partitions)) in (area.y..area.bottom()).zip(count.iter().enumerate().rev()) {
        let head = format!(" {live}/{n} live elsewhere ");
        let tail = format!(" {partitions:>digits$}");
        let room = usize::from(area.width).saturating_sub(width(&head) + width(&tail) + 1);
        let full = (partitions * room).div_ceil(all).min(room);
        // Without this node they are all there is.
        let level = match (partitions, live) {
            (0, _) => Level::Ok,
            (_, 0) if n > 1 => Level::Critical,
            (_, live) if live + 1 < n => Level::Warn,
            _ => Level::Ok,
        };
        let style = theme.level(level);
        let x = put(buf, area, area.x, y, &head, style);
        let x = put(buf, area, x, y, &"█".repeat(full), style);
        let x = put(buf, area, x, y, &"░".repeat(room - full), theme.dim());
        put(buf, area, x, y, &tail, style);
    }
}

fn lag(node: &Node, at: &At<'_>, area_width: u16) -> Said {
    let (cluster, now) = (at.cluster, at.now);
    let ((lag, level), (checked, checked_level)) = (lag_cell(node.lag(), now), checked(node, at));
    let keys = node.seen.lag.as_ref().filter(|lag| lag.keys > 0);
    let missing = keys.map(|lag| format!(", {} keys", count(lag.keys))).unwrap_or_default();
    let in_words = format!("lag      {lag}{missing}");
    let with_sparks = format!("{in_words}  {}", sparks(node, at).0);
    let fits = width(&with_sparks) + 2 <= usize::from(area_width);
    let with_sparks = if fits { with_sparks } else { in_words };
    let mut said =
        vec![(with_sparks, level), (format!("checked  {checked}{}", ago(&checked)), checked_level)];
    said.extend(waiting(cluster, node, area_width));
    said
}

/// What the viewpoint's log tells of it, the newest first.
fn timeline(cluster: &Cluster, node: &Node) -> Said {
    let entries = cluster.log.newest().filter(|entry| names(&entry.text, &node.seen.name));
    let line = |entry: &crate::state::Entry| {
        let text = format!("{}  {}  {}", clock(entry.at_ms), sign(entry.level), entry.text);
        (text, entry.level)
    };
    let said: Said = entries.take(64).map(line).collect();
    if said.is_empty() {
        vec![("nothing since the viewpoint started".into(), Level::Ok)]
    } else {
        said
    }
}

/// Whether a text names a node: `n7` is not in `n71 down`.
fn names(text: &str, name: &str) -> bool {
    let apart = |c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    !name.is_empty() && text.split(apart).any(|word| word.trim_end_matches('.') == name)
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn an_event_names_a_node_only_as_a_whole_word() {
        assert!(names("n7 down: refused", "n7") && names("hints were handed to n7", "n7"));
        assert!(names("repaired with n7.", "n7") && names("n7: back", "n7"));
        assert!(!names("n71 down", "n7") && !names("kvn7", "n7") && !names("", ""));
    }
}
