//! Who holds what, and whether that is fair: the ring of one node's copies beside all shares. Of
//! many nodes [`shares`] has the picture.

use super::frame::Band;
use super::nodes::{BAR_HALF, bar, state};
use super::number::{self, UNKNOWN, deviation};
use super::screen::{self, Room, Said, below, boxes, lines, outdated, top};
use super::table::{self, At, Column, List};
use super::theme::{MOVING, SPARKS, Theme, sign};
use super::{put, ring, shares, shorten, width};
use crate::app::App;
use crate::state::{Level, Node, Ring};
use proto::v1::{MoveNode, NodeState};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::collections::BTreeMap;

/// Of more nodes a ring and a list say little.
const NODES_MAX: usize = 24;

/// Longer names would leave no room for the ring.
const NAME_MAX: usize = 11;

/// Lines of the ring's pane that are not ring: what its signs mean.
const LEGEND: u16 = 1;

/// Lines of the ring: at least those that the facts inside take.
const RING_LINES: (u16, u16) = (8, 18);

/// Cells of the ring at most: more are wider than they are worth.
const CELLS_MAX: usize = 256;

const COLUMNS: [Column; 6] = [
    NAME,
    Column { title: "zone", rank: 2, least: 4, right: false, cell: zone },
    Column {
        title: "share",
        rank: 1,
        least: 5,
        right: true,
        cell: |node, at| (share_of(node.seen.share_ratio, at), Level::Ok),
    },
    Column { title: "dev ", rank: 0, least: 5, right: true, cell: dev },
    Column {
        title: "vs fair",
        rank: 4,
        least: 2 * BAR_HALF + 1,
        right: false,
        cell: |node, _| (bar(node), node.share_level()),
    },
    Column {
        title: "copies",
        rank: 3,
        least: 6,
        right: true,
        cell: |node, _| (node.seen.copies.to_string(), Level::Ok),
    },
];

/// While something changes, how the share does matters more than how fair it is.
const CHANGING: [Column; 7] = [
    NAME,
    Column {
        title: "was",
        rank: 1,
        least: 3,
        right: true,
        cell: |node, at| share(node, at, |it| it.share_before),
    },
    Column {
        title: "now",
        rank: 0,
        least: 3,
        right: true,
        cell: |node, at| share(node, at, |it| it.share_now),
    },
    Column { title: "then ", rank: 0, least: 4, right: true, cell: then },
    Column { title: "waiting", rank: 3, least: 7, right: true, cell: waiting },
    Column { title: "zone", rank: 2, least: 4, right: false, cell: zone },
    Column { title: "dev ", rank: 4, least: 5, right: true, cell: dev },
];

const NAME: Column = Column {
    title: "node",
    rank: 0,
    least: 3,
    right: false,
    cell: |node, _| (shorten(&node.seen.name, NAME_MAX), Level::Ok),
};

const PARTITIONS: [Column<Held>; 4] = [
    Column { title: "part", rank: 0, least: 4, right: true, cell: |it, _| (it.part(), Level::Ok) },
    Column {
        title: "token range",
        rank: 2,
        least: 13,
        right: false,
        cell: |it, _| (it.range.clone(), Level::Ok),
    },
    Column {
        title: "copies 1st 2nd ..",
        rank: 1,
        least: 17,
        right: false,
        cell: |it, _| (it.holders.clone(), Level::Ok),
    },
    Column { title: "live", rank: 0, least: 5, right: false, cell: |it, _| it.live() },
];

/// Draws the view.
pub(super) fn render(app: &App, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let table = |at: &At<'_>, inside: Rect, buf: &mut Buffer| nodes(app, at, theme, inside, buf);
    match Room::of(area) {
        Room::Tiny => screen::tiny(app, theme, area, buf, |at| furthest(app, at)),
        Room::Brief => screen::brief(app, theme, area, true, buf, table),
        Room::Pane => {
            screen::pane(app, theme, area, "Share of copies, least fair first", buf, table);
        }
        Room::Full => {
            let Some((cluster, body)) = top(app, theme, area, true, [1, 0, 0], buf) else {
                return;
            };
            let at = At::of(app, cluster);
            let (text, level) = summary(app, &at, usize::from(body.width));
            put(buf, body, body.x, body.y, &text, theme.level(level));
            let rest = below(body, 1);
            match cluster.nodes.len() {
                ..=NODES_MAX => standard(app, &at, theme, rest, buf),
                _ => shares::render(app, &at, theme, rest, buf),
            }
            outdated(app, body, buf);
        }
    }
}

fn furthest(app: &App, at: &At<'_>) -> Said {
    let line = |node: &Node| {
        let (text, level) = dev(node, at);
        (format!("{} {}", node.seen.name, text.trim()), level)
    };
    app.nodes().into_iter().map(line).collect()
}

fn standard(app: &App, at: &At<'_>, theme: &Theme, body: Rect, buf: &mut Buffer) {
    let right = match (body.width, is_changing(at)) {
        (110.., _) => 48,
        (_, true) => 22,
        (_, false) => 19,
    };
    let left = body.width.saturating_sub(3 + right);
    let free = body.height.saturating_sub(3);
    let circle = at.cluster.ring().and_then(|ring| {
        Circle::fitting(ring.partitions(), left.saturating_sub(2), free.saturating_sub(LEGEND + 3))
    });
    let lines = circle.as_ref().map_or(RING_LINES.0, |circle| circle.height) + LEGEND;
    let nodes_wanted = table::wanted(app).min(free.saturating_sub(8));
    let upper = lines.max(nodes_wanted).min(free);
    let subject = subject(app);
    let name = subject.map_or("", |node| node.seen.name.as_str());
    let shares = if is_changing(at) { "Share in %" } else { "Share of copies" };
    let bands = [
        Band::two(format!("default: copies held by {name}, clockwise from 00"), shares, upper)
            .with_left(left),
        Band::one(format!("Partitions where {name} holds a copy, least live first"), free - upper),
    ];
    let inside = boxes(app, &bands, true, body, theme, buf);
    nodes(app, at, theme, inside[1], buf);
    let (Some(ring), Some(node)) = (at.cluster.ring(), subject) else {
        return untold(theme, inside[0], buf);
    };
    held_by(node, ring, circle, at, theme, inside[0], buf);
    partitions(node, ring, at, theme, inside[2], buf);
}

/// The node whose copies are shown: the selected, else the first on the list.
pub(super) fn subject(app: &App) -> Option<&Node> {
    app.node().or_else(|| app.nodes().into_iter().next())
}

pub(super) fn untold(theme: &Theme, area: Rect, buf: &mut Buffer) {
    put(buf, area, area.x + 1, area.y, "? who holds what is not told yet", theme.dim());
}

/// The table of nodes, with what matters at the moment.
pub(super) fn nodes(app: &App, at: &At<'_>, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let columns = if is_changing(at) { &CHANGING[..] } else { &COLUMNS[..] };
    table::render(app, at.cluster, columns, theme, area, buf);
}

/// The whole table in a line, as much of it as there is room for.
fn summary(app: &App, at: &At<'_>, room: usize) -> (String, Level) {
    let mut parts = Vec::new();
    let mut level = Level::Ok;
    if let Some(ring) = at.cluster.ring() {
        parts.push(format!("{} partitions x {} copies", ring.partitions(), ring.n));
        let narrow = match ring.narrow {
            0 => "yes".into(),
            narrow => format!("no, {narrow} are not {}", sign(Level::Warn)),
        };
        // Every copy is in a zone.
        if ring.zones_wanted > 1 {
            parts.push(format!("all in {} zones: {narrow}", ring.zones_wanted));
        }
        level = if ring.narrow > 0 { Level::Warn } else { level };
    }
    let leaving = at.cluster.leaving(at.shown);
    parts.extend(leaving.first().map(|node| {
        let more = match leaving.len() {
            1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        let (now, name) = (share_of(node.share_now, at), shorten(&node.node, NAME_MAX));
        format!("{MOVING} {name} leaves, has {now}{more}")
    }));
    let known = app.nodes().into_iter().filter_map(|node| Some((node.deviation()?, node)));
    let known: Vec<(f64, &Node)> = known.filter(|(by, _)| by.is_finite()).collect();
    let least = known.iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let most = known.iter().max_by(|a, b| a.0.total_cmp(&b.0));
    if let (Some(least), Some(most)) = (least, most) {
        let end = |(by, node): &(f64, &Node)| {
            format!("{} {}", deviation(*by), shorten(&node.seen.name, NAME_MAX))
        };
        parts.push(format!("dev {} .. {}", end(least), end(most)));
    }
    if at.cluster.ring_is_old() && at.cluster.ring().is_some() {
        parts.insert(1, format!("{} as of an older ring", sign(Level::Warn)));
    }
    let mut text = String::new();
    for part in parts {
        let longer = if text.is_empty() { part } else { format!("{text}   {part}") };
        if width(&longer) <= room {
            text = longer;
        }
    }
    (text, level)
}

/// One node's copies along a closed ring, and what there is to say of it inside.
fn held_by(
    node: &Node,
    ring: &Ring,
    circle: Option<Circle>,
    at: &At<'_>,
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
) {
    let orders = ring.slot(&node.uid).map(|slot| ring.orders(slot)).unwrap_or_default();
    let facts = facts(node, ring, &orders, at, usize::from(area.width));
    let Some(circle) = circle.filter(|_| !orders.is_empty()) else {
        return lines(&facts, theme, area, buf);
    };
    let each = ring.partitions() / circle.cells;
    // Where every node has a copy of everything, only who comes first differs.
    let holds_all = each > 1 && orders.iter().all(Option::is_some);
    let counts = |order: &usize| !holds_all || *order == 0;
    let orders: Vec<Option<usize>> = orders.into_iter().map(|it| it.filter(counts)).collect();
    for cell in 0..circle.cells {
        let sign = held_sign(&orders[cell * each..(cell + 1) * each]);
        let style = if sign == "·" { theme.dim() } else { theme.bold() };
        let (x, y) = circle.place(cell);
        put(buf, area, area.x + 1 + x, area.y + y, sign, style);
    }
    let within = circle.room_for_words(area);
    lines(&facts, theme, within.intersection(area), buf);
    let legend = match each {
        1 => "1 2 3 = it is 1st 2nd 3rd copy   · = not there".to_owned(),
        each if holds_all => {
            format!("cell = {each} partitions   · = 1st of none .. █ = 1st of all")
        }
        each => format!("cell = {each} partitions   · = none there .. █ = all"),
    };
    let room = usize::from(area.width).saturating_sub(2);
    let y = area.y + circle.height;
    put(buf, area, area.x + 1, y, &shorten(&legend, room), theme.dim());
}

/// Which copy it has there; of several partitions, of how many it has one.
fn held_sign(orders: &[Option<usize>]) -> &'static str {
    const DIGITS: [&str; 9] = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let held = orders.iter().flatten().count();
    match (orders, held) {
        (_, 0) => "·",
        ([Some(order)], _) => DIGITS.get(*order).unwrap_or(&"+"),
        _ => SPARKS[(held * SPARKS.len()).div_ceil(orders.len()) - 1],
    }
}

/// What is known of a node's copies.
pub(super) fn facts(
    node: &Node,
    ring: &Ring,
    orders: &[Option<usize>],
    at: &At<'_>,
    room: usize,
) -> Said {
    let (state, level) = state(node, at.now);
    let seen = &node.seen;
    let name = shorten(&seen.name, 16);
    let mut said = vec![(format!("{name}  zone {}   {state}", shorten(&seen.zone, 12)), level)];
    if let Some(change) = at.cluster.change(&seen.name, at.shown) {
        said.push((change_words(change, at), Level::Ok));
    }
    if let Some(slot) = ring.slot(&node.uid) {
        // The layout is of afterwards.
        let holds = if at.cluster.is_moving(node, at.shown) { "will hold" } else { "holds" };
        said.push((format!("{holds:<10}{}", held_words(ring, orders)), Level::Ok));
        let names = ring.shared_with(slot);
        let names: Vec<String> =
            names.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if !names.is_empty() {
            let room = room.saturating_sub(10);
            said.push((super::lag::listed("shares    ", &names, room), Level::Ok));
        }
    }
    let by = node.deviation().map_or_else(|| UNKNOWN.into(), deviation);
    let (share, fair) = (share_of(seen.share_ratio, at), share_of(seen.fair_ratio, at));
    let text = format!("share     {share}   fair {fair}   dev {by}");
    said.push((text, node.share_level()));
    said
}

fn held_words(ring: &Ring, orders: &[Option<usize>]) -> String {
    let held = orders.iter().flatten().count();
    let ordinal = |order: usize| match order {
        0 => "1st".to_owned(),
        1 => "2nd".to_owned(),
        2 => "3rd".to_owned(),
        order => format!("{}th", order + 1),
    };
    let count = |order: usize| orders.iter().filter(|it| **it == Some(order)).count();
    let by_order = (0..ring.n).map(|order| format!("{} {}", ordinal(order), count(order)));
    let by_order: Vec<String> = by_order.collect();
    format!("{held} of {}: {}", ring.partitions(), by_order.join("  "))
}

/// `9.4% → 7.6% → 6.8%`, and how many copies wait.
fn change_words(change: &MoveNode, at: &At<'_>) -> String {
    let waits = match change.waiting {
        0 => String::new(),
        waiting => format!("   {MOVING} {waiting} to get"),
    };
    format!("changes   {}{waits}", before_now_after(change, at))
}

/// A share before, now, and after a change.
pub(super) fn before_now_after(change: &MoveNode, at: &At<'_>) -> String {
    let shares = [change.share_before, change.share_now, change.share_after];
    shares.map(|share| share_of(share, at)).join(" → ")
}

fn share_of(ratio: f64, at: &At<'_>) -> String {
    number::share(ratio, at.cluster.nodes.len()) + "%"
}

/// Where a node has a copy, who else has, and how many of them live.
pub(super) fn partitions(
    node: &Node,
    ring: &Ring,
    at: &At<'_>,
    theme: &Theme,
    area: Rect,
    buf: &mut Buffer,
) {
    let Some(slot) = ring.slot(&node.uid) else { return };
    let by_uid: BTreeMap<&[u8], &Node> =
        at.cluster.nodes.iter().map(|node| (&node.uid[..], node)).collect();
    let member = |slot: &usize| by_uid.get(&ring.members[*slot].uid[..]).copied();
    let is_up = |slot: &&usize| member(slot).is_some_and(|node| node.state() == NodeState::Up);
    let holder = |slot: &usize| {
        let mark = match member(slot).map(Node::state) {
            Some(NodeState::Up) => "",
            Some(NodeState::Down) => sign(Level::Critical),
            _ => UNKNOWN,
        };
        format!("{:<5}", format!("{}{mark}", shorten(&ring.members[*slot].name, NAME_MAX)))
    };
    let held = ring.orders(slot).into_iter().enumerate().filter(|(_, order)| order.is_some());
    let mut rows: Vec<Held> = held
        .map(|(partition, _)| {
            let row = ring.row(partition);
            let (first, last) = ring.range(partition);
            Held {
                partition,
                range: format!("{first}… – {last}…"),
                holders: row.iter().map(holder).collect::<Vec<_>>().join(" "),
                live: row.iter().filter(is_up).count(),
                copies: ring.n,
            }
        })
        .collect();
    rows.sort_by_key(|held| (held.live, held.partition));
    List { rows: &rows, from: 0, what: "partitions", columns: &PARTITIONS }
        .draw(at, theme, area, buf);
}

/// A partition of which a node has a copy.
struct Held {
    partition: usize,
    range: String,
    holders: String,
    live: usize,
    copies: usize,
}

impl Held {
    fn part(&self) -> String {
        self.partition.to_string()
    }

    fn live(&self) -> (String, Level) {
        // Whether a quorum is left differs between keyspaces; without any nobody has one.
        let level = match self.live {
            0 => Level::Critical,
            live if live < self.copies => Level::Warn,
            _ => Level::Ok,
        };
        let mark = if level == Level::Ok { "" } else { sign(level) };
        (format!("{}/{} {mark}", self.live, self.copies), level)
    }
}

/// A closed ring of cells, clockwise from the top left.
#[derive(Debug)]
struct Circle {
    width: u16,
    height: u16,
    cells: usize,
}

impl Circle {
    /// With as many cells as there is room for, a power of two, so that each stands for the same
    /// number of partitions; `None` if that is too small to be one.
    fn fitting(partitions: usize, width: u16, height: u16) -> Option<Self> {
        let height = height.min(RING_LINES.1);
        let room = 2 * usize::from(width) + 2 * usize::from(height.checked_sub(2)?);
        let cells = 1 << room.max(1).ilog2();
        let cells = cells.min(CELLS_MAX).min(partitions);
        // As flat as it can be.
        let flat = (cells / 2 + 2).saturating_sub(usize::from(width)) as u16;
        let height = flat.max(RING_LINES.0).min(height);
        let width = (cells / 2 + 2).checked_sub(usize::from(height))? as u16;
        (width >= 2 && height >= RING_LINES.0).then_some(Self { width, height, cells })
    }

    /// Inside, or beside it where it is too narrow for that.
    fn room_for_words(&self, area: Rect) -> Rect {
        let beside = area.width.saturating_sub(self.width + 2);
        match self.width >= beside {
            true => Rect {
                x: area.x + 4,
                y: area.y + 2,
                width: self.width.saturating_sub(6),
                height: self.height.saturating_sub(3),
            },
            false => Rect { x: area.x + self.width + 2, width: beside, ..area },
        }
    }

    fn place(&self, cell: usize) -> (u16, u16) {
        let (right, bottom) = (self.width - 1, self.height - 1);
        let cell = cell as u16;
        match cell {
            cell if cell <= right => (cell, 0),
            cell if cell <= right + bottom => (right, cell - right),
            cell if cell <= 2 * right + bottom => (2 * right + bottom - cell, bottom),
            cell => (0, 2 * (right + bottom) - cell),
        }
    }
}

/// Whether an operation under way tells how shares change.
pub(super) fn is_changing(at: &At<'_>) -> bool {
    let moves = at.cluster.moves(at.shown);
    moves.is_some_and(|moves| moves.under_way().any(|op| !op.nodes.is_empty()))
}

/// Title of the strip of live copies, and how many lines it wants.
pub(super) fn strip_title(at: &At<'_>, area_width: u16, rows: u16) -> String {
    let room = usize::from(area_width).saturating_sub(6);
    ring::strip_title(at.cluster, area_width.saturating_sub(2), rows, room)
}

// === cells ===

fn zone(node: &Node, _: &At<'_>) -> (String, Level) {
    (shorten(&node.seen.zone, NAME_MAX), Level::Ok)
}

/// Distance from the fair share, with the sign of whatever is the matter with the node.
fn dev(node: &Node, at: &At<'_>) -> (String, Level) {
    let text = node.deviation().map_or_else(|| UNKNOWN.into(), deviation);
    let (mark, level) = mark(node, at, node.share_level());
    (text + mark, level)
}

/// The worst of what a node's sign has to tell; a blank if that is nothing.
pub(super) fn mark(node: &Node, at: &At<'_>, share: Level) -> (&'static str, Level) {
    let state = match node.state() {
        NodeState::Up => Level::Ok,
        NodeState::Down => Level::Critical,
        NodeState::Suspect => Level::Warn,
        NodeState::Unknown | NodeState::Unspecified => Level::Unknown,
    };
    match state.max(share) {
        Level::Ok if at.cluster.is_moving(node, at.shown) => (MOVING, Level::Ok),
        Level::Ok => (" ", Level::Ok),
        level if state > Level::Ok => (sign(state), level),
        level if at.cluster.is_moving(node, at.shown) => (MOVING, level),
        level => (sign(level), level),
    }
}

/// In percent, without saying so in every cell.
fn share(node: &Node, at: &At<'_>, of: fn(&MoveNode) -> f64) -> (String, Level) {
    let change = at.cluster.change(&node.seen.name, at.shown);
    let ratio = change.map_or(node.seen.share_ratio, of);
    (number::share(ratio, at.cluster.nodes.len()), Level::Ok)
}

/// While shares change their distance from fair is none of anybody's fault.
fn then(node: &Node, at: &At<'_>) -> (String, Level) {
    let (mark, level) = mark(node, at, Level::Ok);
    (share(node, at, |it| it.share_after).0 + mark, level)
}

fn waiting(node: &Node, at: &At<'_>) -> (String, Level) {
    let change = at.cluster.change(&node.seen.name, at.shown);
    (change.map_or_else(String::new, |it| it.waiting.to_string()), Level::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_ring_is_closed_and_every_cell_has_a_place_of_its_own() {
        for (partitions, width, height) in
            [(128, 56, 12), (256, 73, 18), (8192, 53, 13), (64, 30, 9)]
        {
            let circle = Circle::fitting(partitions, width, height).unwrap();
            assert!(circle.width <= width && circle.height <= height, "{circle:?}");
            let places: Vec<(u16, u16)> =
                (0..circle.cells).map(|cell| circle.place(cell)).collect();
            assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), circle.cells, "{circle:?}");
            let apart = |((ax, ay), (bx, by)): (&(u16, u16), &(u16, u16))| {
                ax.abs_diff(*bx) + ay.abs_diff(*by)
            };
            let next = places.iter().cycle().skip(1);
            assert!(places.iter().zip(next).all(|two| apart(two) == 1), "{circle:?}");
        }
        assert!(Circle::fitting(128, 56, 3).is_none() && Circle::fitting(4, 56, 12).is_none());
    }

    #[test]
    fn a_cell_of_several_partitions_is_as_high_as_those_it_has() {
        assert_eq!(held_sign(&[Some(2)]), "3");
        assert_eq!(held_sign(&[Some(11)]), "+");
        assert_eq!(held_sign(&[None, None]), "·");
        assert_eq!(held_sign(&[Some(0), None]), "▄");
        assert_eq!(held_sign(&[Some(0); 16]), "█");
        let mut one = [None; 64];
        one[9] = Some(1);
        assert_eq!(held_sign(&one), "▁");
    }
}
