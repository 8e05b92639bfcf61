//! What is under way: how far, how fast, between whom, what is stuck and why; and what was.

use super::frame::Band;
use super::number::{UNKNOWN, bytes, bytes_of, clock, duration};
use super::ownership::before_now_after;
use super::screen::{self, Room, Said, below, boxes, lines, outdated, top};
use super::table::{At, Column, List};
use super::theme::{MOVING, Theme, sign};
use super::{put, shorten, width};
use crate::app::App;
use crate::state::{
    Cluster, Level, Millis, Moves, is_changing, is_moving, is_there, progress, stuck,
    summary_progress,
};
use proto::v1::{MoveNode, MovePair, Moving, Op, OpState, OpSummary, Stuck};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Columns of the bar of one copy.
const BAR: usize = 6;

/// Columns of a state. Why a pair is stuck stands in full among what is stuck.
const WORDS_MAX: usize = 25;

/// Who did it is told only beside so many columns of what.
const WHAT_LEAST: usize = 16;

const PAIRS: [Column<Pair>; 6] = [
    Column { title: "from → to", rank: 0, least: 9, right: false, cell: who },
    Column { title: "copies", rank: 1, least: 6, right: true, cell: copies },
    Column { title: "done/total", rank: 4, least: 10, right: true, cell: amount },
    Column { title: "rate", rank: 2, least: 8, right: true, cell: pace },
    Column { title: "ETA", rank: 3, least: 6, right: true, cell: to_go },
    Column { title: "state", rank: 0, least: 16, right: false, cell: state },
];

const ENDED: [Column<Op>; 6] = [
    Column {
        title: "op",
        rank: 0,
        least: 11,
        right: false,
        cell: |op, _| (op.id.clone(), Level::Ok),
    },
    Column {
        title: "what",
        rank: 0,
        least: 12,
        right: false,
        cell: |op, _| (what(op, 36), Level::Ok),
    },
    Column {
        title: "state",
        rank: 0,
        least: 4,
        right: false,
        cell: |op, _| (op_word(op.state()).into(), Level::Ok),
    },
    Column { title: "ended", rank: 1, least: 8, right: false, cell: ended },
    Column { title: "took", rank: 2, least: 6, right: true, cell: took },
    Column {
        title: "by",
        rank: 3,
        least: 4,
        right: false,
        cell: |op, _| (shorten(&op.by, 20), Level::Ok),
    },
];

/// Draws the view.
pub(super) fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    match Room::of(area) {
        Room::Tiny => screen::tiny(app, theme, area, buf, glance),
        Room::Brief => screen::brief(app, theme, area, true, buf, |at, rest, buf| {
            in_words(at, theme, rest, buf);
        }),
        Room::Pane => screen::pane(app, theme, area, "Moves", buf, |at, inside, buf| {
            in_words(at, theme, inside, buf);
        }),
        Room::Full => {
            let Some((cluster, body)) = top(app, theme, area, true, [1, 0, 0], buf) else {
                return;
            };
            let at = At::of(app, cluster);
            match at
                .cluster
                .moves(at.shown)
                .and_then(|moves| Some((moves, moves.under_way().next()?)))
            {
                Some((moves, op)) => running(app, moves, op, &at, theme, body, buf),
                None => still(app, &at, theme, body, buf),
            }
            outdated(app, body, buf);
        }
    }
}

/// The operations under way in a line, as every view of the cluster tells them; `None`: there are
/// none.
pub(super) fn summary(cluster: &Cluster, now: Millis, room: usize) -> Option<String> {
    let op = cluster.view.ops.first()?;
    let mut parts = vec![format!("{MOVING} {}", op.id), summary_amount(op)];
    let more = match op.more_lines {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    parts.insert(1, shorten(&op.line, 32) + &more);
    parts.push(match op.paused {
        true => "paused".into(),
        false => format!("running {}", duration(now.saturating_sub(op.at_ms))),
    });
    if cluster.view.ops.len() > 1 {
        parts.push(format!("+{} more", cluster.view.ops.len() - 1));
    }
    let mut text = String::new();
    for part in parts {
        let longer = if text.is_empty() { part } else { format!("{text}  {part}") };
        if width(&longer) <= room || text.is_empty() {
            text = longer;
        }
    }
    Some(shorten(&text, room))
}

fn summary_amount(op: &OpSummary) -> String {
    let percent = (summary_progress(op) * 100.0) as u64;
    format!("{percent}% {}/{} copies", op.copies_done, op.copies_total)
}

/// The state of an operation as a word.
pub fn op_word(state: OpState) -> &'static str {
    match state {
        OpState::Running => "running",
        OpState::Paused => "paused",
        OpState::Done => "done",
        OpState::Cancelled => "cancelled",
        OpState::Unspecified => "unknown",
    }
}

/// The most that fits into a corner.
fn glance(at: &At<'_>) -> Said {
    let Some(moves) = at.cluster.moves(at.shown) else {
        return match at.cluster.view.ops.first() {
            Some(op) => vec![(summary_amount(op), Level::Ok)],
            None => vec![("nothing moves".into(), Level::Ok)],
        };
    };
    let Some(op) = moves.under_way().next() else {
        return vec![("nothing moves".into(), Level::Ok)];
    };
    let mut said = vec![
        (format!("{MOVING} {}", op.id), Level::Ok),
        (format!("{} {}/{} copies", percent(op), op.copies_done, op.copies_total), Level::Ok),
    ];
    said.extend(stuck_count(op));
    said.push((eta(op), Level::Ok));
    said
}

/// All of it in lines, where there is no room for panes.
fn in_words(at: &At<'_>, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some((moves, op)) =
        at.cluster.moves(at.shown).and_then(|moves| Some((moves, moves.under_way().next()?)))
    else {
        let said = nothing(at);
        lines(&said, theme, area, buf);
        return ended_ops(at, theme, below(area, said.len() as u16 + 1), buf);
    };
    let room = usize::from(area.width).saturating_sub(2);
    let mut said = title(op, at, room);
    said.push((format!("{}  {}", percent(op), amounts(op)), Level::Ok));
    said.push((speed(op, room), Level::Ok));
    said.extend(obstacles(op, at).into_iter().take(2));
    lines(&said, theme, area, buf);
    let rows = pairs(moves, op);
    let rest = below(area, said.len() as u16);
    List { rows: &rows, from: 0, what: "pairs", columns: &PAIRS }.draw(at, theme, rest, buf);
}

/// Why there is nothing to draw.
fn nothing(at: &At<'_>) -> Said {
    match (at.cluster.moves(at.shown), at.cluster.view.ops.is_empty()) {
        (Some(_), _) => vec![(format!("{} nothing moves", sign(Level::Ok)), Level::Ok)],
        (None, true) => vec![("nothing moves, as far as the viewpoint knows".into(), Level::Ok)],
        (None, false) => {
            let now = at.now;
            let told = summary(at.cluster, now, 200).unwrap_or_default();
            vec![(told, Level::Ok), ("? how it goes is not told yet".into(), Level::Unknown)]
        }
    }
}

fn still(app: &App, at: &At<'_>, theme: &Theme, body: Rect, buf: &mut Buffer) {
    let mut said = nothing(at);
    said.push(("to change something: kvctl nodes, quorum, rebalance, plan".into(), Level::Ok));
    let shown = said.len() as u16;
    for (y, (text, level)) in (body.y..).zip(&said) {
        put(buf, body, body.x, y, &shorten(text, usize::from(body.width)), theme.level(*level));
    }
    let rest = below(body, shown);
    let bands = [Band::one("Ended, the last first", rest.height.saturating_sub(2))];
    let inside = boxes(app, &bands, true, rest, theme, buf);
    ended_ops(at, theme, inside[0], buf);
}

fn ended_ops(at: &At<'_>, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let Some(moves) = at.cluster.moves(at.shown) else {
        put(buf, area, area.x + 1, area.y, "? what was is not told yet", theme.dim());
        return;
    };
    let ended: Vec<Op> = moves.ended().into_iter().take(64).cloned().collect();
    if ended.is_empty() {
        put(buf, area, area.x + 1, area.y, "none that the cluster remembers", theme.dim());
        return;
    }
    List { rows: &ended, from: 0, what: "operations", columns: &ENDED }.draw(at, theme, area, buf);
}

fn running(
    app: &App,
    moves: &Moves,
    op: &Op,
    at: &At<'_>,
    theme: &Theme,
    body: Rect,
    buf: &mut Buffer,
) {
    let room = usize::from(body.width);
    let rest = head(moves, op, at, theme, body, buf);
    let rows = pairs(moves, op);
    let (shares, obstacles) = (shares(op, at, room.saturating_sub(4)), obstacles(op, at));
    let waiting: u64 = op.nodes.iter().map(|node| node.waiting).fold(0, u64::saturating_add);
    let queue = [queue(op), obstacles].concat();
    let heights = heights(rest.height, rows.len(), shares.len(), queue.len(), moves.ended().len());
    let mut bands = vec![
        Band::one("Moves by pair", heights[0]),
        Band::one("Share of copies: before, now, after", heights[1]),
        Band::one(format!("Waiting in queue: {waiting} copies"), heights[2]),
    ];
    if heights[3] > 0 {
        bands.push(Band::one("Ended, the last first", heights[3]));
    }
    let inside = boxes(app, &bands, true, rest, theme, buf);
    List { rows: &rows, from: app.moves_from, what: "pairs", columns: &PAIRS }
        .draw(at, theme, inside[0], buf);
    lines(&shares_shown(shares, heights[1]), theme, inside[1], buf);
    lines(&queue, theme, inside[2], buf);
    if heights[3] > 0 {
        ended_ops(at, theme, inside[3], buf);
    }
}

/// Lines of pairs, of shares, of the queue and of what ended, together with their borders `all`.
fn heights(all: u16, pairs: usize, shares: usize, queue: usize, ended: usize) -> [u16; 4] {
    let wanted = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let with_ended = ended > 0 && all >= 28;
    let free = all.saturating_sub(if with_ended { 5 } else { 4 });
    let last = if with_ended { wanted(ended + 1).min(6) } else { 0 };
    let free = free - last;
    // What is stuck comes first, then who gains; pairs take what is left.
    let queue = wanted(queue).clamp(1, (free / 3).max(1));
    let shares = wanted(shares).clamp(1, (free / 4).max(1));
    let rest = free.saturating_sub(queue + shares);
    // What pairs do not need, the queue may have: it is what people wait for.
    let spare = rest.saturating_sub(wanted(pairs).saturating_add(1).max(4));
    [rest - spare, shares, queue + spare, last]
}

/// What it is, how far, how fast.
fn head(moves: &Moves, op: &Op, at: &At<'_>, theme: &Theme, body: Rect, buf: &mut Buffer) -> Rect {
    let room = usize::from(body.width);
    let mut y = body.y;
    for (text, level) in title(op, at, room) {
        put(buf, body, body.x, y, &text, theme.level(level).patch(theme.bold()));
        y += 1;
    }
    let amounts = format!(" {:>4}  {}", percent(op), amounts(op));
    let columns = room.saturating_sub(width(&amounts)).min(60);
    let full = (progress(op) * columns as f64) as usize;
    let x = put(buf, body, body.x, y, &"█".repeat(full), Style::new());
    let x = put(buf, body, x, y, &"░".repeat(columns - full), theme.dim());
    put(buf, body, x, y, &amounts, Style::new());
    let others = moves.under_way().count() - 1;
    let others = match others {
        0 => String::new(),
        others => format!("   {others} more under way"),
    };
    let room = room.saturating_sub(width(&others));
    put(buf, body, body.x, y + 1, &(speed(op, room) + &others), Style::new());
    below(body, y + 2 - body.y)
}

/// `op-7f3a  + n13 zone a, ..  by alice  running 16m48s  1 stuck`: what it does is shortened first.
fn title(op: &Op, at: &At<'_>, room: usize) -> Said {
    let age = duration(at.now.saturating_sub(op.at_ms));
    let mut tail = format!("  {} {age}", op_word(op.state()));
    let stuck = stuck_count(op);
    let level = stuck.as_ref().map_or(Level::Ok, |(_, level)| *level);
    tail += &stuck.map(|(text, _)| format!("  {text}")).unwrap_or_default();
    let by = format!("  by {}", shorten(&op.by, 16));
    let left = room.saturating_sub(width(&op.id) + 2 + width(&tail));
    let (left, tail) = match left.saturating_sub(width(&by)) {
        rest @ WHAT_LEAST.. if !op.by.is_empty() => (rest, by + &tail),
        _ => (left, tail),
    };
    let text = match left {
        ..8 => format!("{}{tail}", op.id),
        left => format!("{}  {}{tail}", op.id, what(op, left)),
    };
    vec![(shorten(&text, room), level)]
}

fn what(op: &Op, room: usize) -> String {
    match op.lines[..] {
        [] => "?".into(),
        [ref line] => shorten(line, room),
        [ref first, ref more @ ..] => {
            let all = op.lines.join(", ");
            let counted = format!(" and {} more", more.len());
            match width(&all) <= room {
                true => all,
                false => shorten(first, room.saturating_sub(width(&counted))) + &counted,
            }
        }
    }
}

fn stuck_count(op: &Op) -> Option<(String, Level)> {
    let words = match (op.needs_attention, stuck(op)) {
        (false, 0) => return None,
        (true, 0) => "stands still".to_owned(),
        (true, stuck) => format!("{stuck} stuck, stands still"),
        (false, stuck) => format!("{stuck} stuck"),
    };
    let level = if op.needs_attention { Level::Critical } else { Level::Warn };
    Some((format!("{} {words}", sign(level)), level))
}

fn percent(op: &Op) -> String {
    format!("{}%", (progress(op) * 100.0) as u64)
}

/// `48/77 copies  57.1/91.6GiB`.
fn amounts(op: &Op) -> String {
    match (op.copies_total, op.transitions_total) {
        (0, 0) => "no copies".into(),
        (0, total) => format!("{}/{total} partitions", op.transitions_closed),
        (total, _) => {
            format!(
                "{}/{total} copies  {}",
                op.copies_done,
                bytes_of(op.bytes_done, op.bytes_total)
            )
        }
    }
}

/// How fast, what for, how long: as much as there is room for.
fn speed(op: &Op, room: usize) -> String {
    let bound = match op.throttle {
        0 => "no bound".to_owned(),
        throttle => format!("each node at most {}/s", bytes(throttle)),
    };
    let parts = [
        format!("{}/s, {bound}", bytes(op.bytes_per_second)),
        eta(op),
        match op.transitions_total {
            0 => String::new(),
            total => format!("switched {}/{total}", op.transitions_flipped),
        },
        match op.transitions_total {
            0 => String::new(),
            total => format!("closed {}/{total}", op.transitions_closed),
        },
    ];
    let mut text = String::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let longer = if text.is_empty() { part } else { format!("{text}   {part}") };
        if width(&longer) <= room {
            text = longer;
        }
    }
    text
}

fn eta(op: &Op) -> String {
    match (op.state(), op.eta_ms) {
        (OpState::Paused, _) => "paused".into(),
        (_, 0) => format!("ETA {UNKNOWN}"),
        (_, eta) => format!("ETA {}", duration(eta)),
    }
}

/// Who gains and loses, the most first, as many in a line as fit.
fn shares(op: &Op, at: &At<'_>, room: usize) -> Said {
    let mut changing: Vec<&MoveNode> = op.nodes.iter().filter(|node| is_changing(node)).collect();
    let by = |node: &MoveNode| (node.share_after - node.share_before).abs();
    changing.sort_by(|a, b| by(b).total_cmp(&by(a)));
    if changing.is_empty() {
        return vec![("no share changes".into(), Level::Ok)];
    }
    let cell = |node: &&MoveNode| {
        let mark = if is_moving(node) { MOVING } else { " " };
        format!("{:<5} {}{mark}", shorten(&node.node, 16), before_now_after(node, at))
    };
    let cells: Vec<String> = changing.iter().map(cell).collect();
    let widest = cells.iter().map(|cell| width(cell)).max().unwrap_or(0) + 2;
    let per_line = ((room + 2) / widest).max(1);
    let line = |cells: &[String]| {
        let pad = |cell: &String| cell.clone() + &" ".repeat(widest - width(cell));
        (cells.iter().map(pad).collect::<String>().trim_end().to_owned(), Level::Ok)
    };
    cells.chunks(per_line).map(line).collect()
}

/// The last line tells how many there are besides, if there are.
fn shares_shown(mut shares: Said, height: u16) -> Said {
    let height = usize::from(height);
    if shares.len() > height && height > 1 {
        let hidden = shares.len() + 1 - height;
        shares.truncate(height - 1);
        shares.push((format!("… {hidden} more lines of nodes"), Level::Ok));
    }
    shares
}

/// What waits, and how to do something about it.
fn queue(op: &Op) -> Said {
    let begun: usize = op.pairs.iter().map(|pair| pair.moving.len()).sum();
    let verbs = match op.state() {
        OpState::Paused => "show|resume|throttle|cancel",
        _ => "show|pause|throttle|cancel",
    };
    vec![(format!("in parallel {begun}   kvctl ops {verbs} {}", op.id), Level::Ok)]
}

/// Everything that keeps it from getting on, a line each.
fn obstacles(op: &Op, at: &At<'_>) -> Said {
    let mut said: Said = Vec::new();
    if op.state() == OpState::Paused {
        said.push((
            format!("{} paused: nothing moves until it is resumed", sign(Level::Warn)),
            Level::Warn,
        ));
    }
    let line =
        |it: &Stuck| (format!("{} {}", sign(Level::Warn), stuck_words(it, at.now)), Level::Warn);
    said.extend(op.stuck.iter().map(line));
    if !op.unheard.is_empty() {
        said.push((format!("? not heard: {}", op.unheard.join(" ")), Level::Unknown));
    }
    said
}

/// `stuck 1m40s default #30 n12 → n15 sync: disk queue full, and 2 more`.
fn stuck_words(it: &Stuck, now: Millis) -> String {
    let since = match it.since_ms {
        0 => String::new(),
        since => format!(" {}", duration(now.saturating_sub(since))),
    };
    let who = match it.from.as_str() {
        "" => it.node.clone(),
        from => format!("{from} → {}", it.node),
    };
    let why = if it.why.is_empty() { "no reason is known" } else { &it.why };
    let more = match it.more {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("stuck{since} {} #{} {who} {}: {why}{more}", it.keyspace, it.partition, it.step)
}

// === pairs ===

/// Who gives whom, and how fast.
struct Pair {
    pair: MovePair,
    rate: Option<f64>,
    /// What is stuck between them.
    stuck_since: Option<Millis>,
}

impl Pair {
    /// Done, or not begun: there is no rate to speak of.
    fn is_idle(&self) -> bool {
        is_there(&self.pair) || self.pair.why.is_empty() && self.pair.moving.is_empty()
    }
}

/// What is stuck first, then what moves, what waits, what is done.
fn pairs(moves: &Moves, op: &Op) -> Vec<Pair> {
    let stuck_since = |pair: &MovePair| {
        let stuck = op.stuck.iter().find(|it| it.node == pair.to && it.from == pair.from);
        stuck.map(|it| it.since_ms)
    };
    let mut rows: Vec<Pair> = op
        .pairs
        .iter()
        .map(|pair| Pair {
            pair: pair.clone(),
            rate: moves.rate(pair),
            stuck_since: stuck_since(pair),
        })
        .collect();
    rows.sort_by_key(|row| match () {
        () if is_there(&row.pair) => 3,
        () if !row.pair.why.is_empty() => 0,
        () if row.pair.moving.is_empty() => 2,
        () => 1,
    });
    rows
}

fn who(row: &Pair, _: &At<'_>) -> (String, Level) {
    let name = |name: &str| if name.is_empty() { UNKNOWN.into() } else { shorten(name, 16) };
    (format!("{:<4} → {}", name(&row.pair.from), name(&row.pair.to)), Level::Ok)
}

fn copies(row: &Pair, _: &At<'_>) -> (String, Level) {
    (format!("{}/{}", row.pair.copies_done, row.pair.copies_total), Level::Ok)
}

fn amount(row: &Pair, _: &At<'_>) -> (String, Level) {
    (bytes_of(row.pair.bytes_done, row.pair.bytes_total), Level::Ok)
}

fn pace(row: &Pair, _: &At<'_>) -> (String, Level) {
    let text = match row.rate {
        _ if row.is_idle() => String::new(),
        Some(per_second) => format!("{}/s", bytes(per_second as u64)),
        None => UNKNOWN.into(),
    };
    (text, Level::Ok)
}

fn to_go(row: &Pair, _: &At<'_>) -> (String, Level) {
    let text = match row.pair.eta_ms {
        _ if row.is_idle() => String::new(),
        0 => UNKNOWN.into(),
        eta => duration(eta),
    };
    (text, Level::Ok)
}

fn state(row: &Pair, at: &At<'_>) -> (String, Level) {
    if is_there(&row.pair) {
        return ("done".into(), Level::Ok);
    }
    if !row.pair.why.is_empty() {
        let since = row.stuck_since.filter(|since| *since > 0);
        let since = since
            .map_or_else(String::new, |it| format!(" {}", duration(at.now.saturating_sub(it))));
        let text = format!("{} stuck{since}: {}", sign(Level::Warn), row.pair.why);
        return (shorten(&text, WORDS_MAX), Level::Warn);
    }
    let text = match row.pair.moving[..] {
        [] => "waits".into(),
        [ref one] => moving_words(one),
        [ref first, ref more @ ..] => format!("{} +{}", moving_words(first), more.len()),
    };
    (text, Level::Ok)
}

/// `#77 ████░░ 68%`.
fn moving_words(moving: &Moving) -> String {
    let ratio = moving.progress_ratio.clamp(0.0, 1.0);
    let full = (ratio * BAR as f64) as usize;
    let bar = "█".repeat(full) + &"░".repeat(BAR - full);
    match moving.state.as_str() {
        "copying" | "" => format!("#{} {bar} {:.0}%", moving.partition, ratio * 100.0),
        state => format!("#{} {}", moving.partition, shorten(state, 12)),
    }
}

// === what was ===

fn ended(op: &Op, at: &At<'_>) -> (String, Level) {
    const DAY: Millis = 86_400_000;
    let text = match op.ended_at_ms {
        0 => UNKNOWN.into(),
        then if at.now.saturating_sub(then) < DAY => clock(then),
        then => format!("{} ago", duration(at.now.saturating_sub(then))),
    };
    (text, Level::Ok)
}

fn took(op: &Op, _: &At<'_>) -> (String, Level) {
    let text = match op.ended_at_ms {
        0 => UNKNOWN.into(),
        ended => duration(ended.saturating_sub(op.at_ms)),
    };
    (text, Level::Ok)
}
