//! Augmenting: moves that reach what direct ones cannot, along shortest paths.
//!
//! The network has a vertex for each node, for each partition and for each zone of a partition. A
//! path starts at a node that lacks a replica: it enters a partition there and pushes another node
//! out, which enters another partition, and so on, until a hole is filled or a node with too many
//! was pushed out. Entering costs 1 move, or 0 where the node held the partition before; pushing
//! out gives a move back if the one pushed out had moved there.
//!
//! A zone below its cap and its partition reach each other at no cost, so they are one vertex here,
//! the *open* part of a row; a zone at its cap is a *part* of its own, which the open part reaches
//! and which leads only to the nodes of that zone.
//!
//! Labels are distances to the nearest end, found backwards from all ends (Dijkstra by buckets,
//! with labels corrected where a move is given back). Along arcs on which the labels fall by just
//! the cost, depth-first search then finds many shortest paths at once, no two through one row: a
//! blocking flow, as in Dinic's and the primal-dual algorithms (Ahuja, Magnanti, Orlin, *Network
//! Flows*, ch. 9). No label is ever below 0, as no arc costs less than nothing before the first
//! move and shortest paths only ever lengthen.

use super::{EMPTY, Plan};
use std::collections::BTreeMap;

/// How far a vertex is from the nearest end: in moves, then in arcs. Counting arcs too keeps a path
/// from wandering through rows at no cost that other paths could use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Far {
    moves: u32,
    arcs: u32,
}

impl Far {
    const END: Self = Self { moves: 0, arcs: 0 };
    /// No end was found.
    const NEVER: Self = Self { moves: u32::MAX, arcs: u32::MAX };

    /// One arc farther from the end, by an arc of so many moves.
    fn before(self, moves: u32) -> Self {
        Self { moves: self.moves + moves, arcs: self.arcs + 1 }
    }

    /// One arc farther from the end, by an arc that gives a move back.
    fn before_back(self) -> Self {
        debug_assert!(self.moves > 0, "no way to an end costs less than nothing");
        Self { moves: self.moves.saturating_sub(1), arcs: self.arcs + 1 }
    }
}

/// Makes moves until no node lacks a replica, or no path of at most `moves_max` moves is left.
pub(super) fn augment(plan: &mut Plan<'_>, moves_max: u32) {
    if !plan.lacking().any(|_| true) {
        return;
    }
    let mut network = Network::of(plan);
    while let Some((labels, moves)) = network.label(moves_max, false) {
        if !network.block(&labels, moves) {
            let all = network.label(moves_max, true);
            let found = all.is_some_and(|(labels, moves)| network.block(&labels, moves));
            assert!(found, "what has a label of a whole search has a path");
        }
    }
    let left = network.plan.lacking().count();
    assert!(
        left == 0 || moves_max < u32::MAX,
        "flow theory: any targets under the caps can be met"
    );
}

impl Plan<'_> {
    fn lacking(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|&slot| self.lacks(slot) > 0)
    }
}

/// A vertex of the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vertex {
    /// A node, by slot.
    Node(u32),
    /// Part of a row: 0 is the open part, k the full zone whose first node is at place k - 1.
    Part(u32, u8),
}

/// The residual graph. Its arcs are not stored: only, to find them, the partitions of each node.
struct Network<'p, 'a> {
    plan: &'p mut Plan<'a>,
    /// Partitions of each node that it held before the plan. May name some it no longer holds.
    kept: Vec<Vec<u32>>,
    /// Partitions of each node that it gained. May name some it no longer holds.
    gained: Vec<Vec<u32>>,
    /// Partitions of each node that it lost. May name some it holds again.
    lost: Vec<Vec<u32>>,
}

impl<'p, 'a> Network<'p, 'a> {
    fn of(plan: &'p mut Plan<'a>) -> Self {
        let empty = vec![Vec::new(); plan.members.len()];
        let mut network = Self { plan, kept: empty.clone(), gained: empty.clone(), lost: empty };
        for partition in 0..network.plan.q {
            for place in 0..network.plan.n {
                let slot = network.plan.row(partition)[place];
                if slot != EMPTY {
                    network.note(partition, usize::from(slot));
                }
            }
            if let Some(previous) = network.plan.previous {
                for &slot in previous.row(partition as u32) {
                    if network.is_lost(partition, usize::from(slot)) {
                        network.lost[usize::from(slot)].push(partition as u32);
                    }
                }
            }
        }
        network
    }

    /// Whether a slot that held a partition is of a member and holds it no longer.
    fn is_lost(&self, partition: usize, slot: usize) -> bool {
        slot < self.plan.members.len() && !self.plan.holds(partition, slot)
    }

    fn note(&mut self, partition: usize, slot: usize) {
        let before = self.plan.held_before(partition, slot);
        let list = if before { &mut self.kept } else { &mut self.gained };
        list[slot].push(partition as u32);
    }

    /// Whether zone `zone` of a row is at its cap.
    fn full(&self, partition: usize, zone: usize) -> bool {
        self.plan.copies_in(partition, zone) >= self.plan.zones.cap
    }

    /// The part of a row that nodes of `zone` enter and leave.
    fn part(&self, partition: usize, zone: usize) -> u8 {
        if !self.full(partition, zone) {
            return 0;
        }
        let row = self.plan.row(partition).iter();
        let of = |slot: u16| slot != EMPTY && self.plan.zones.of_node(usize::from(slot)) == zone;
        1 + row.take_while(|&&slot| !of(slot)).count() as u8
    }

    /// The zone of a full part.
    fn zone_of(&self, partition: usize, part: u8) -> usize {
        let first = self.plan.row(partition)[usize::from(part) - 1];
        self.plan.zones.of_node(usize::from(first))
    }

    fn is_hole(&self, partition: usize) -> bool {
        self.plan.row(partition).contains(&EMPTY)
    }

    fn is_over(&self, slot: usize) -> bool {
        self.plan.load[slot] > self.plan.target[slot]
    }

    /// Distances to the ends, and the moves from the nearest lacking node; none if they are above
    /// `moves_max`.
    ///
    /// Unless the search is `whole`, it stops looking at what is as far as that node but for moves
    /// given back. In a rare case a label is then left that was derived from one lowered since.
    fn label(&self, moves_max: u32, whole: bool) -> Option<(Labels, u32)> {
        let mut labels = Labels::new(self.plan);
        for partition in (0..self.plan.q).filter(|&partition| self.is_hole(partition)) {
            labels.lower_part(partition, 0, Far::END);
        }
        for slot in (0..self.plan.members.len()).filter(|&slot| self.is_over(slot)) {
            labels.lower_node(slot, Far::END);
        }
        let mut nearest = u32::MAX;
        while let Some((far, vertex)) = labels.next()
            && far.moves <= moves_max.min(nearest)
        {
            // Once a path is known, only others as short are of use, and mostly a move given back
            // leads on to them. Paths of no move have none to give back: there all is looked at.
            let last = far.moves == nearest && nearest > 0 && !whole;
            match vertex {
                Vertex::Node(slot) => self.label_from_node(&mut labels, slot as usize, far, last),
                Vertex::Part(..) if last => {}
                Vertex::Part(p, part) => self.label_from_part(&mut labels, p as usize, part, far),
            }
            nearest = labels.nearest.moves;
        }
        (nearest <= moves_max && nearest < u32::MAX).then_some((labels, nearest))
    }

    /// What can push `slot` out is as near as it, or nearer by the move that this gives back.
    fn label_from_node(&self, labels: &mut Labels, slot: usize, far: Far, back_only: bool) {
        let zone = self.plan.zones.of_node(slot);
        let mut lower = |partitions: &[u32], label: fn(Far) -> Far| {
            for partition in partitions.iter().map(|&partition| partition as usize) {
                if self.plan.holds(partition, slot) {
                    labels.lower_part(partition, self.part(partition, zone), label(far));
                }
            }
        };
        lower(&self.gained[slot], Far::before_back);
        if !back_only {
            lower(&self.kept[slot], |far| far.before(0));
        }
    }

    /// What can enter a part of a row is farther than it by one move, or as near if it held the
    /// partition before; and the open part leads to the full ones.
    fn label_from_part(&self, labels: &mut Labels, partition: usize, part: u8, far: Far) {
        if part > 0 {
            labels.lower_part(partition, 0, far.before(0));
        }
        let only = (part > 0).then(|| self.zone_of(partition, part));
        labels.reach(far, partition, part, only);
        let enters = |zone| only.map_or_else(|| !self.full(partition, zone), |only| only == zone);
        let fits = |slot| !self.plan.holds(partition, slot);
        labels.enter(far.before(1), only, enters, fits);
        let Some(previous) = self.plan.previous else {
            return;
        };
        for &slot in previous.row(partition as u32) {
            let slot = usize::from(slot);
            if self.is_lost(partition, slot) && enters(self.plan.zones.of_node(slot)) {
                labels.lower_node(slot, far.before(0));
            }
        }
    }

    /// Moves along shortest paths, no two through one row, until no more are found. Whether any was.
    fn block(&mut self, labels: &Labels, moves: u32) -> bool {
        let mut walk = Walk::new(self.plan, labels);
        let sources: Vec<usize> = self.plan.lacking().collect();
        for slot in sources.into_iter().filter(|&slot| labels.node[slot].moves == moves) {
            while self.plan.lacks(slot) > 0
                && let Some(path) = walk.path(self, slot)
            {
                self.apply(&path);
                walk.use_up(&path);
            }
        }
        walk.found
    }

    /// Each node on the path takes, in the partition between them, the place of the next node; the
    /// last may take a hole.
    fn apply(&mut self, path: &[Vertex]) {
        let (mut taker, mut at) = (None, 0);
        for &vertex in path {
            match vertex {
                Vertex::Node(slot) => {
                    let slot = slot as usize;
                    if let Some(taker) = taker {
                        self.place(at, self.plan.place_of(at, slot), taker);
                    }
                    taker = Some(slot);
                }
                Vertex::Part(partition, _) => at = partition as usize,
            }
        }
        if let Some(Vertex::Part(..)) = path.last() {
            let hole = self.plan.row(at).iter().position(|&slot| slot == EMPTY);
            let hole = hole.expect("such a path ends at a hole");
            self.place(at, hole, taker.expect("a path starts at a node"));
        }
    }

    fn place(&mut self, partition: usize, place: usize, slot: usize) {
        let pushed = usize::from(self.plan.row(partition)[place]);
        self.plan.set(partition, place, Some(slot));
        self.note(partition, slot);
        if self.is_lost(partition, pushed) && self.plan.held_before(partition, pushed) {
            self.lost[pushed].push(partition as u32);
        }
    }
}

/// Distances to the nearest end. They are upper bounds until the search is over.
struct Labels {
    node: Vec<Far>,
    /// By row and part, n + 1 to a row.
    part: Vec<Far>,
    width: usize,
    /// What still leads on, by distance.
    buckets: BTreeMap<Far, Vec<Vertex>>,
    /// Least label of a lacking node.
    nearest: Far,
    lacking: Vec<bool>,
    /// Number of zones, and that of each slot.
    zones: usize,
    of_slot: Vec<u16>,
    /// By distance: what is left to label at that distance.
    farther: BTreeMap<Far, Farther>,
    /// By distance, then by list: the open parts of that label, and the full ones of each zone.
    reached: BTreeMap<Far, Vec<Vec<(u32, u8)>>>,
}

/// The nodes whose labels are above a distance, by zone. Nearly all of a zone can enter nearly any
/// row, so the first few rows label them all; what is left are the nodes those rows hold.
struct Farther {
    by_zone: Vec<Vec<u32>>,
    /// Zones that have any.
    zones: Vec<usize>,
}

impl Labels {
    fn new(plan: &Plan<'_>) -> Self {
        let nodes = plan.members.len();
        Self {
            node: vec![Far::NEVER; nodes],
            part: vec![Far::NEVER; plan.q * (plan.n + 1)],
            width: plan.n + 1,
            buckets: BTreeMap::new(),
            nearest: Far::NEVER,
            lacking: (0..nodes).map(|slot| plan.lacks(slot) > 0).collect(),
            zones: plan.zones.sizes.len(),
            of_slot: plan.zones.of_slot.clone(),
            farther: BTreeMap::new(),
            reached: BTreeMap::new(),
        }
    }

    fn index(&self, partition: usize, part: u8) -> usize {
        partition * self.width + usize::from(part)
    }

    fn lower_node(&mut self, slot: usize, label: Far) {
        if label < self.node[slot] {
            self.node[slot] = label;
            if self.lacking[slot] {
                self.nearest = self.nearest.min(label);
            }
            self.buckets.entry(label).or_default().push(Vertex::Node(slot as u32));
        }
    }

    fn lower_part(&mut self, partition: usize, part: u8, label: Far) {
        let index = self.index(partition, part);
        if label < self.part[index] {
            self.part[index] = label;
            self.buckets.entry(label).or_default().push(Vertex::Part(partition as u32, part));
        }
    }

    /// The nearest vertex that was not looked at with its label of now.
    fn next(&mut self) -> Option<(Far, Vertex)> {
        loop {
            let mut bucket = self.buckets.first_entry()?;
            let far = *bucket.key();
            let Some(vertex) = bucket.get_mut().pop() else {
                bucket.remove();
                continue;
            };
            let label = match vertex {
                Vertex::Node(slot) => self.node[slot as usize],
                Vertex::Part(partition, part) => self.part[self.index(partition as usize, part)],
            };
            if label == far {
                return Some((label, vertex));
            }
        }
    }

    /// Notes a part among those of its distance; `zone` is that of a full one.
    fn reach(&mut self, far: Far, partition: usize, part: u8, zone: Option<usize>) {
        let lists = self.reached.entry(far).or_default();
        lists.resize(self.zones + 1, Vec::new());
        lists[zone.map_or(0, |zone| zone + 1)].push((partition as u32, part));
    }

    /// Lowers to `label` the nodes that fit a row, of the zones that may enter it; `only` is the
    /// zone if it is but one.
    fn enter(
        &mut self,
        label: Far,
        only: Option<usize>,
        enters: impl Fn(usize) -> bool,
        fits: impl Fn(usize) -> bool,
    ) {
        let mut farther = self.farther.remove(&label).unwrap_or_else(|| self.farther(label));
        let mut lower = |nodes: &mut Vec<u32>| {
            nodes.retain(|&slot| {
                let fits = fits(slot as usize);
                if fits {
                    self.lower_node(slot as usize, label);
                }
                !fits
            });
        };
        match only {
            Some(zone) => lower(&mut farther.by_zone[zone]),
            None => farther.zones.retain(|&zone| {
                if enters(zone) {
                    lower(&mut farther.by_zone[zone]);
                }
                !farther.by_zone[zone].is_empty()
            }),
        }
        self.farther.insert(label, farther);
    }

    /// All nodes whose labels are above `label`.
    fn farther(&self, label: Far) -> Farther {
        let mut by_zone = vec![Vec::new(); self.zones];
        for (slot, &zone) in self.of_slot.iter().enumerate() {
            if self.node[slot] > label {
                by_zone[usize::from(zone)].push(slot as u32);
            }
        }
        Farther { by_zone, zones: (0..self.zones).collect() }
    }
}

/// A depth-first search along labels. What was seen without a path onward is not looked at again.
struct Walk<'l> {
    labels: &'l Labels,
    node_seen: Vec<bool>,
    part_seen: Vec<bool>,
    /// Rows that a path went through: their labels hold no longer.
    row_used: Vec<bool>,
    /// How far each list of [`Labels::reached`] was gone through: by its distance, the zone of the
    /// nodes that went, and its number.
    cursors: BTreeMap<(Far, usize, usize), Cursor>,
    /// Whether there was any path.
    found: bool,
}

/// How far the nodes of one zone went through a list. What none of them can use any more is not
/// looked at twice.
#[derive(Default)]
struct Cursor {
    next: usize,
    /// Passed over because the node that came by held the partition; another may not.
    passed: Vec<usize>,
}

/// A vertex on the way, and how far its arcs were looked at.
struct Frame {
    vertex: Vertex,
    step: u8,
    next: usize,
}

impl Frame {
    fn at(vertex: Vertex) -> Self {
        Self { vertex, step: 0, next: 0 }
    }
}

impl<'l> Walk<'l> {
    fn new(plan: &Plan<'_>, labels: &'l Labels) -> Self {
        Self {
            labels,
            node_seen: vec![false; plan.members.len()],
            part_seen: vec![false; labels.part.len()],
            row_used: vec![false; plan.q],
            cursors: BTreeMap::new(),
            found: false,
        }
    }

    /// A shortest path from `slot`, through rows and vertices not seen yet.
    fn path(&mut self, network: &Network<'_, '_>, slot: usize) -> Option<Vec<Vertex>> {
        let mut way = vec![Frame::at(Vertex::Node(slot as u32))];
        if self.node_seen[slot] {
            return None;
        }
        self.node_seen[slot] = true;
        while let Some(frame) = way.last_mut() {
            let next = match frame.vertex {
                Vertex::Node(slot) => self.entered(network, slot as usize, frame),
                Vertex::Part(p, part) => self.pushed(network, p as usize, part, &mut frame.next),
            };
            let Some(vertex) = next else {
                way.pop();
                continue;
            };
            way.push(Frame::at(vertex));
            if self.see(network, vertex) {
                return Some(way.into_iter().map(|frame| frame.vertex).collect());
            }
        }
        None
    }

    /// Marks a vertex as seen. True if a path may end there.
    fn see(&mut self, network: &Network<'_, '_>, vertex: Vertex) -> bool {
        match vertex {
            Vertex::Node(slot) => {
                self.node_seen[slot as usize] = true;
                network.is_over(slot as usize)
            }
            Vertex::Part(partition, part) => {
                let index = self.labels.index(partition as usize, part);
                self.part_seen[index] = true;
                part == 0 && network.is_hole(partition as usize)
            }
        }
    }

    /// After a path: others may pass its nodes, but not its rows.
    fn use_up(&mut self, path: &[Vertex]) {
        self.found = true;
        for &vertex in path {
            match vertex {
                Vertex::Node(slot) => self.node_seen[slot as usize] = false,
                Vertex::Part(partition, _) => self.row_used[partition as usize] = true,
            }
        }
    }

    /// The next part of a row that a node enters on its way to the nearest end.
    fn entered(
        &mut self,
        network: &Network<'_, '_>,
        slot: usize,
        frame: &mut Frame,
    ) -> Option<Vertex> {
        let (label, zone) = (self.labels.node[slot], network.plan.zones.of_node(slot));
        let back = Far { arcs: label.arcs.checked_sub(1)?, ..label };
        if frame.step == 0 {
            let lost = network.lost[slot].iter().skip(frame.next);
            for &partition in lost {
                frame.next += 1;
                let part = network.part(partition as usize, zone);
                if self.open(partition as usize, part, back)
                    && !network.plan.holds(partition as usize, slot)
                {
                    return Some(Vertex::Part(partition, part));
                }
            }
            (frame.step, frame.next) = (1, 0);
        }
        let next = Far { moves: label.moves.checked_sub(1)?, arcs: label.arcs.checked_sub(1)? };
        while frame.step < 3 {
            let list = if frame.step == 1 { 0 } else { 1 + zone };
            if let Some(vertex) = self.listed(network, slot, next, list, &mut frame.next) {
                return Some(vertex);
            }
            (frame.step, frame.next) = (frame.step + 1, 0);
        }
        None
    }

    /// The next part of one list that a node fits; `tried` are those passed over before.
    fn listed(
        &mut self,
        network: &Network<'_, '_>,
        slot: usize,
        far: Far,
        list: usize,
        tried: &mut usize,
    ) -> Option<Vertex> {
        let parts = self.labels.reached.get(&far)?.get(list)?;
        let zone = network.plan.zones.of_node(slot);
        let mut cursor = self.cursors.remove(&(far, zone, list)).unwrap_or_default();
        let found = loop {
            let new = *tried == cursor.passed.len();
            let at = if new { cursor.next } else { cursor.passed[*tried] };
            let Some(&(row, part)) = parts.get(at) else { break None };
            let partition = row as usize;
            let usable = self.open(partition, part, far) && network.part(partition, zone) == part;
            let held = network.plan.holds(partition, slot);
            if new {
                cursor.next += 1;
                cursor.passed.extend((usable && held).then_some(at));
            }
            *tried += usize::from(!new || (usable && held));
            if usable && !held {
                break Some(Vertex::Part(row, part));
            }
        };
        self.cursors.insert((far, zone, list), cursor);
        found
    }

    /// Whether a part of this label may still be gone through.
    fn open(&self, partition: usize, part: u8, label: Far) -> bool {
        let index = self.labels.index(partition, part);
        !self.row_used[partition] && !self.part_seen[index] && self.labels.part[index] == label
    }

    /// The next vertex that is pushed out of a part, on the way to the nearest end.
    fn pushed(
        &self,
        network: &Network<'_, '_>,
        partition: usize,
        part: u8,
        place: &mut usize,
    ) -> Option<Vertex> {
        let label = self.labels.part[self.labels.index(partition, part)];
        while let Some(&slot) = network.plan.row(partition).get(*place) {
            *place += 1;
            if slot == EMPTY {
                continue;
            }
            let slot = usize::from(slot);
            let own = network.part(partition, network.plan.zones.of_node(slot));
            if own != part {
                let next = Far { arcs: label.arcs.checked_sub(1)?, ..label };
                if part == 0 && self.open(partition, own, next) {
                    return Some(Vertex::Part(partition as u32, own));
                }
                continue;
            }
            let back = u32::from(!network.plan.held_before(partition, slot));
            let next = Far { moves: label.moves + back, arcs: label.arcs.checked_sub(1)? };
            if !self.node_seen[slot] && self.labels.node[slot] == next {
                return Some(Vertex::Node(slot as u32));
            }
        }
        None
    }
}
