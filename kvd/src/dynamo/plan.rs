//! The planner: which nodes hold which partitions.
//!
//! Integers only and no order but that of uids, so every node that plans the same cluster gets the
//! same table. The constraints (a partition never twice on one node, and at most so many copies in
//! one zone) form a flow network from nodes over zones to partitions, as in Garage's and our own
//! flow formulation. The fractional plan "every partition gives a node share/Q" meets them all, so
//! any whole targets near the shares can be met exactly:
//!
//! 1. *Shares*: what each node should hold, by weight, under the caps of nodes and zones.
//! 2. *Targets*: whole numbers near the shares; a node already within a band keeps what it has.
//! 3. *Fill*, *take*, *augment*: holes are filled, surplus is taken, and whatever those direct
//!    moves cannot reach is reached along shortest augmenting paths.

use crate::dynamo::layout::{Member, Table};
use crate::dynamo::node::Uid;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, VecDeque};

/// A place in a row that no node fills. Only while planning, and in what [`Table::relabelled`]
/// gives the planner as the previous table.
pub const EMPTY: u16 = u16::MAX;

/// Half the width of the band in which a node keeps what it has: its share divided by this. A
/// hundredth keeps rounding from moving data when the shares hardly changed.
const BAND: u64 = 100;

/// Most a node keeps of what it has, in millionths of its share.
const KEPT_PPM_MAX: u64 = 1_050_000;

/// Why a table cannot be planned.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// A row of distinct nodes cannot be made.
    #[error("N={n} needs {n} nodes, there are {members}")]
    TooFewMembers { n: u8, members: usize },
    /// A slot is 16 bits, one value of which means "none".
    #[error("{members} nodes are above the {max} a table can name")]
    TooManyMembers { members: usize, max: usize },
    /// N of zero.
    #[error("N=0 would keep no copy")]
    NoCopies,
    /// A ring has 2 to 2^20 partitions.
    #[error("2^{bits} partitions are not within 2^1 and 2^20")]
    Bits { bits: u32 },
    /// The previous table cuts the ring otherwise.
    #[error("the previous table has {found} partitions, not {expected}")]
    PreviousPartitions { found: usize, expected: usize },
}

/// A node's fair share: how many of the Q·N replicas it should hold, as the fraction `num/den`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Numerator, above zero.
    pub num: u64,
    /// Denominator, above zero.
    pub den: u64,
}

impl Share {
    /// `load` over this share, in millionths: 1 000 000 is exactly fair.
    pub fn load_ppm(self, load: u32) -> u64 {
        let ppm = 1_000_000 * u128::from(load) * u128::from(self.den) / u128::from(self.num);
        u64::try_from(ppm).unwrap_or(u64::MAX)
    }

    fn floor(self) -> u64 {
        self.num / self.den
    }

    fn ceil(self) -> u64 {
        self.num.div_ceil(self.den)
    }

    /// Which of two nodes is relatively fuller: compares mine/self with theirs/other.
    fn compare(self, mine: u64, other: Self, theirs: u64) -> Ordering {
        let left = u128::from(mine) * u128::from(self.den) * u128::from(other.num);
        let right = u128::from(theirs) * u128::from(other.den) * u128::from(self.num);
        left.cmp(&right)
    }
}

/// Plans the table of `n` copies over 2^`bits` partitions; slots are positions in `members`.
///
/// `previous` is the table so far in the slots of `members` (see [`Table::relabelled`]); what it
/// says is kept where fairness and zones allow. Its N may differ. Every target is met exactly, no
/// partition is ever short, and no zone holds more than [`zone_cap`] copies of one.
///
/// # Errors
/// When `n`, `bits` or the number of members allow no table, or `previous` has other partitions.
pub fn plan(
    previous: Option<&Table>,
    members: &[Member],
    n: u8,
    bits: u32,
    _spread: u8,
) -> Result<Table, PlanError> {
    check(previous, members, n, bits)?;
    let mut plan = Plan::empty(members, n, bits);
    if let Some(previous) = previous {
        plan.keep(previous);
        plan.evict();
    }
    plan.set_targets();
    plan.fill_holes();
    plan.take_surplus();
    while plan.augment() {}
    Ok(plan.finish())
}

/// The fair share of every member, in the order of `members`: weighted max-min fairness where no
/// node holds a partition twice and no zone more than [`zone_cap`] copies of it. The shares sum to
/// exactly n·2^`bits`.
///
/// # Errors
/// As [`plan`].
pub fn fair_shares(
    members: &[Member],
    n: u8,
    bits: u32,
    _spread: u8,
) -> Result<Vec<Share>, PlanError> {
    check(None, members, n, bits)?;
    Ok(shares(&Zones::of(members, n), members, n, bits))
}

/// TEMP
pub fn fullest_ppm(_m: &[Member], _n: u8, _b: u32, _s: u8) -> Result<u64, PlanError> {
    Ok(1_000_000)
}

/// TEMP
pub fn bits_wanted(members: usize, n: u8, bits: u32) -> u32 {
    let mut bits = bits;
    while bits < 20 && ((1usize << bits) * usize::from(n)) / members < 64 {
        bits += 1;
    }
    bits
}

/// Most copies of one partition in one zone: as few as `n` copies over these zones allow.
///
/// # Errors
/// As [`plan`].
pub fn zone_cap(members: &[Member], n: u8) -> Result<u8, PlanError> {
    check(None, members, n, 1)?;
    let cap = Zones::of(members, n).cap;
    Ok(u8::try_from(cap).expect("no cap is above N"))
}

fn check(previous: Option<&Table>, members: &[Member], n: u8, bits: u32) -> Result<(), PlanError> {
    let count = members.len();
    if n == 0 {
        return Err(PlanError::NoCopies);
    }
    if !(1..=20).contains(&bits) {
        return Err(PlanError::Bits { bits });
    }
    if count < usize::from(n) {
        return Err(PlanError::TooFewMembers { n, members: count });
    }
    if count > usize::from(EMPTY) {
        return Err(PlanError::TooManyMembers { members: count, max: usize::from(EMPTY) });
    }
    let (found, expected) = (previous.map_or(1 << bits, Table::partitions), 1 << bits);
    if found != expected {
        return Err(PlanError::PreviousPartitions { found, expected });
    }
    Ok(())
}

/// The zones of a cluster, numbered in the order of their names.
struct Zones {
    /// Zone of each slot.
    of_slot: Vec<usize>,
    /// Nodes in each zone.
    sizes: Vec<usize>,
    /// Most copies of a partition in one zone.
    cap: usize,
}

impl Zones {
    fn of(members: &[Member], n: u8) -> Self {
        let mut numbers: BTreeMap<&str, usize> =
            members.iter().map(|member| (member.zone.as_str(), 0)).collect();
        for (number, zone) in numbers.values_mut().enumerate() {
            *zone = number;
        }
        let of_slot: Vec<usize> =
            members.iter().map(|member| numbers[member.zone.as_str()]).collect();
        let mut sizes = vec![0; numbers.len()];
        for &zone in &of_slot {
            sizes[zone] += 1;
        }
        let n = usize::from(n);
        let mut cap = n.div_ceil(n.min(sizes.len()));
        // A zone of one node cannot take two copies: the others then have to.
        while sizes.iter().map(|&size| size.min(cap)).sum::<usize>() < n {
            cap += 1;
        }
        Self { of_slot, sizes, cap }
    }

    /// Most replicas zone `zone` can hold when the ring has `q` partitions.
    fn room(&self, zone: usize, q: usize) -> usize {
        self.cap.min(self.sizes[zone]) * q
    }
}

/// How high the water stands: a node's share is weight·num/den, at most Q.
#[derive(Clone, Copy)]
struct Level {
    num: u128,
    den: u128,
}

impl Level {
    /// The level at which nodes of these weights hold `amount` together, each at most `q`.
    fn pour(amount: usize, mut weights: Vec<u32>, q: usize) -> Self {
        assert!(amount <= q * weights.len(), "no more is poured than the nodes can hold");
        weights.sort_unstable_by_key(|&weight| Reverse(weight));
        let (mut rest, q) = (amount as u128, q as u128);
        let mut open: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        for weight in weights.into_iter().map(u128::from) {
            // The heaviest fills up first; once it does not, none does.
            if weight * rest < q * open {
                break;
            }
            rest -= q;
            open -= weight;
        }
        if open == 0 {
            return Self { num: q, den: 1 }; // All are full: at this level even weight 1 is.
        }
        Self { num: rest, den: open }
    }

    fn share(self, weight: u32, q: usize) -> Share {
        let num = (u128::from(weight) * self.num).min(q as u128 * self.den);
        let fits = |value: u128| u64::try_from(value).expect("weights are at most 10^6");
        Share { num: fits(num), den: fits(self.den) }
    }
}

/// Pours Q·N over all nodes; zones that would overflow are closed at their cap and the rest is
/// poured again over the others, until none overflows. Closing a zone only raises the level, so a
/// zone once closed stays closed.
fn shares(zones: &Zones, members: &[Member], n: u8, bits: u32) -> Vec<Share> {
    let q = 1_usize << bits;
    let mut weights = vec![Vec::new(); zones.sizes.len()];
    for (member, &zone) in members.iter().zip(&zones.of_slot) {
        weights[zone].push(member.weight);
    }
    let mut levels: Vec<Option<Level>> = vec![None; weights.len()];
    let mut rest = usize::from(n) * q;
    let common = loop {
        let open = weights.iter().zip(&levels).filter(|(_, level)| level.is_none());
        let level = Level::pour(rest, open.flat_map(|(weights, _)| weights.clone()).collect(), q);
        let before = rest;
        for (zone, closed) in levels.iter_mut().enumerate().filter(|(_, level)| level.is_none()) {
            let room = zones.room(zone, q);
            if overflows(level, &weights[zone], room, q) {
                *closed = Some(Level::pour(room, weights[zone].clone(), q));
                rest -= room;
            }
        }
        if rest == before {
            break level;
        }
    };
    let slots = members.iter().zip(&zones.of_slot);
    slots.map(|(member, &zone)| levels[zone].unwrap_or(common).share(member.weight, q)).collect()
}

/// Whether nodes of these weights would hold more than `room` together.
fn overflows(level: Level, weights: &[u32], room: usize, q: usize) -> bool {
    let full = q as u128 * level.den;
    let held: u128 = weights.iter().map(|&w| (u128::from(w) * level.num).min(full)).sum();
    held > room as u128 * level.den
}

/// A table in the making. Loads and targets are replicas.
struct Plan<'a> {
    members: &'a [Member],
    zones: Zones,
    n: usize,
    q: usize,
    fair: Vec<Share>,
    target: Vec<usize>,
    load: Vec<usize>,
    /// Q rows of n places, each a slot or [`EMPTY`].
    places: Vec<u16>,
}

impl<'a> Plan<'a> {
    fn empty(members: &'a [Member], n: u8, bits: u32) -> Self {
        let zones = Zones::of(members, n);
        let fair = shares(&zones, members, n, bits);
        let (n, q) = (usize::from(n), 1 << bits);
        let zero = vec![0; members.len()];
        let (target, load) = (zero.clone(), zero);
        Self { members, zones, n, q, fair, target, load, places: vec![EMPTY; q * n] }
    }

    /// Takes over the rows of `previous`, as far as they name members.
    fn keep(&mut self, previous: &Table) {
        for partition in 0..self.q {
            let row = previous.row(partition as u32).iter().map(|&slot| usize::from(slot));
            let known = row.filter(|&slot| slot < self.members.len());
            for (place, slot) in known.take(self.n).enumerate() {
                self.set(partition, place, Some(slot));
            }
        }
    }

    /// Makes holes where a zone holds too many copies: the fullest of its nodes gives its copy up.
    fn evict(&mut self) {
        for partition in 0..self.q {
            while let Some(zone) = self.crowded_zone(partition) {
                let in_zone = self.slots(partition).filter(|&s| self.zones.of_slot[s] == zone);
                let fullest = in_zone.max_by(|&a, &b| self.by_fullness(a, b, &self.load, 0));
                let slot = fullest.expect("a crowded zone has a copy");
                self.set(partition, self.place_of(partition, slot), None);
            }
        }
    }

    fn crowded_zone(&self, partition: usize) -> Option<usize> {
        let mut zones = self.slots(partition).map(|slot| self.zones.of_slot[slot]);
        zones.find(|&zone| self.copies_in(partition, zone) > self.zones.cap)
    }

    /// Whole targets that sum to Q·N under the caps. A node within its band keeps its load, one
    /// below aims at its share, one above at the band's end; what is then over or missing is taken
    /// from the relatively fullest and dealt to the relatively emptiest.
    fn set_targets(&mut self) {
        let bands: Vec<_> = (0..self.members.len()).map(|slot| self.band(slot)).collect();
        let mut in_zone = vec![0; self.zones.sizes.len()];
        for (slot, &(low, high)) in bands.iter().enumerate() {
            let aim = self.aim(slot, low, high);
            self.target[slot] = aim;
            in_zone[self.zones.of_slot[slot]] += aim;
        }
        for (zone, held) in in_zone.iter_mut().enumerate() {
            while *held > self.zones.room(zone, self.q) {
                self.lower_fullest(&bands, |in_zone| in_zone == zone);
                *held -= 1;
            }
        }
        let (wanted, mut sum) = (self.n * self.q, in_zone.iter().sum::<usize>());
        while sum > wanted {
            self.lower_fullest(&bands, |_| true);
            sum -= 1;
        }
        // If any was lowered above, none is raised here, and the counts by zone still hold.
        while sum < wanted {
            let zone = self.raise_emptiest(&bands, &in_zone);
            in_zone[zone] += 1;
            sum += 1;
        }
        assert_eq!(self.target.iter().sum::<usize>(), wanted, "targets are all replicas");
    }

    /// Where a node's target starts, given its band.
    fn aim(&self, slot: usize, low: usize, high: usize) -> usize {
        let (fair, kept) = (self.fair[slot], self.load[slot].min(high));
        // To a node that should hold a few, even one more than its share is much.
        let much = fair.load_ppm(kept as u32) > KEPT_PPM_MAX;
        if kept < low || much { fair.floor() as usize } else { kept }
    }

    /// Least and most a node may hold: its share rounded, and a little on either side.
    fn band(&self, slot: usize) -> (usize, usize) {
        let (floor, ceil) = (self.fair[slot].floor(), self.fair[slot].ceil());
        let slack = floor / BAND;
        ((floor - slack) as usize, ((ceil + slack) as usize).min(self.q))
    }

    fn lower_fullest(&mut self, bands: &[(usize, usize)], zone: impl Fn(usize) -> bool) {
        let able = (0..self.members.len())
            .filter(|&slot| zone(self.zones.of_slot[slot]) && self.target[slot] > bands[slot].0);
        let fullest = able.max_by(|&a, &b| self.by_fullness(a, b, &self.target, 0));
        self.target[fullest.expect("the lower ends of the bands fit under every cap")] -= 1;
    }

    /// Raises the target of one node and returns its zone.
    fn raise_emptiest(&mut self, bands: &[(usize, usize)], in_zone: &[usize]) -> usize {
        let open = |zone: usize| in_zone[zone] < self.zones.room(zone, self.q);
        let able = (0..self.members.len())
            .filter(|&slot| open(self.zones.of_slot[slot]) && self.target[slot] < bands[slot].1);
        let emptiest = able.min_by(|&a, &b| self.by_fullness(a, b, &self.target, 1));
        let emptiest = emptiest.expect("the upper ends of the bands hold every replica");
        self.target[emptiest] += 1;
        self.zones.of_slot[emptiest]
    }

    /// Orders two nodes by (load + `more`)/share, ties by uid hash: by order of uids, the same
    /// nodes would win every tie.
    fn by_fullness(&self, a: usize, b: usize, load: &[usize], more: usize) -> Ordering {
        let [mine, theirs] = [a, b].map(|slot| (load[slot] + more) as u64);
        let hash = |slot: usize| mix(self.members[slot].uid, mine);
        self.fair[a].compare(mine, self.fair[b], theirs).then_with(|| hash(a).cmp(&hash(b)))
    }

    /// Phase A: each hole draws a node that fits, with a chance proportional to what the nodes
    /// still lack. So heavy nodes meet all others instead of each other in the first rows.
    fn fill_holes(&mut self) {
        for partition in 0..self.q {
            for place in 0..self.n {
                if self.row(partition)[place] == EMPTY
                    && let Some(slot) = self.draw(partition, place)
                {
                    self.set(partition, place, Some(slot));
                }
            }
        }
    }

    fn draw(&self, partition: usize, place: usize) -> Option<usize> {
        let fitting: Vec<(usize, u64)> = (0..self.members.len())
            .filter(|&slot| self.lacks(slot) > 0 && self.fits(partition, slot, None))
            .map(|slot| (slot, self.lacks(slot) as u64))
            .collect();
        let total: u64 = fitting.iter().map(|&(_, lacks)| lacks).sum();
        let mut ball = scramble((partition * self.n + place) as u64).checked_rem(total)?;
        for (slot, lacks) in fitting {
            match ball.checked_sub(lacks) {
                Some(beyond) => ball = beyond,
                None => return Some(slot),
            }
        }
        unreachable!("the ball is below the sum of all")
    }

    /// Phase B: nodes that still lack replicas take them from nodes above their target, in their
    /// own zone first, so that zones keep what they have.
    fn take_surplus(&mut self) {
        for slot in 0..self.members.len() {
            for partition in self.probe(slot) {
                if self.lacks(slot) == 0 {
                    break;
                }
                if let Some(donor) = self.donor(partition, slot) {
                    self.set(partition, self.place_of(partition, donor), Some(slot));
                }
            }
        }
    }

    fn donor(&self, partition: usize, taker: usize) -> Option<usize> {
        let zone = self.zones.of_slot[taker];
        let able = self.slots(partition).filter(|&donor| {
            self.load[donor] > self.target[donor] && self.fits(partition, taker, Some(donor))
        });
        able.max_by_key(|&donor| {
            let surplus = self.load[donor] - self.target[donor];
            let hash = mix(self.members[donor].uid, partition as u64);
            (self.zones.of_slot[donor] == zone, surplus, hash)
        })
    }

    /// Phase C: one shortest path of moves from nodes that lack a replica to a hole or a node
    /// above its target. False when no node lacks one.
    fn augment(&mut self) -> bool {
        let lacking = (0..self.members.len()).filter(|&slot| self.lacks(slot) > 0);
        let sources: Vec<Vertex> = lacking.map(Vertex::Node).collect();
        if sources.is_empty() {
            return false;
        }
        let path = self.shortest_path(&sources);
        self.apply(&path.expect("flow theory: any targets under the caps can be met"));
        true
    }

    fn shortest_path(&self, sources: &[Vertex]) -> Option<Vec<Vertex>> {
        let mut search = Search::new(self.members.len(), self.zones.sizes.len(), self.q);
        for &source in sources {
            search.reach(source, source);
        }
        while let Some(vertex) = search.queue.pop_front() {
            let end = match vertex {
                Vertex::Node(slot) => self.load[slot] > self.target[slot],
                Vertex::Zone(..) => false,
                Vertex::Partition(partition) => self.row(partition).contains(&EMPTY),
            };
            if end {
                return Some(search.path_to(vertex));
            }
            self.expand(vertex, &mut search);
        }
        None
    }

    /// The arcs of the residual graph, never stored: a node enters the zone of a partition it does
    /// not hold; a zone below its cap passes on to the partition; a partition, or a zone at its
    /// cap, pushes out one it holds.
    fn expand(&self, vertex: Vertex, search: &mut Search) {
        match vertex {
            Vertex::Node(slot) => {
                let zone = self.zones.of_slot[slot];
                for partition in self.probe(slot).filter(|&p| !self.holds(p, slot)) {
                    search.reach(Vertex::Zone(partition, zone), vertex);
                }
            }
            Vertex::Zone(partition, zone) => {
                if self.copies_in(partition, zone) < self.zones.cap {
                    search.reach(Vertex::Partition(partition), vertex);
                }
                for slot in self.slots(partition).filter(|&s| self.zones.of_slot[s] == zone) {
                    search.reach(Vertex::Node(slot), vertex);
                }
            }
            Vertex::Partition(partition) => {
                for slot in self.slots(partition) {
                    search.reach(Vertex::Zone(partition, self.zones.of_slot[slot]), vertex);
                }
            }
        }
    }

    /// Each node on the path takes, in the partition between them, the place of the next node; the
    /// last may take a hole.
    fn apply(&mut self, path: &[Vertex]) {
        let (mut taker, mut at) = (None, 0);
        for &vertex in path {
            match vertex {
                Vertex::Node(slot) => {
                    if let Some(taker) = taker {
                        self.set(at, self.place_of(at, slot), Some(taker));
                    }
                    taker = Some(slot);
                }
                Vertex::Zone(partition, _) | Vertex::Partition(partition) => at = partition,
            }
        }
        if let Some(&Vertex::Partition(partition)) = path.last() {
            let hole = self.row(partition).iter().position(|&slot| slot == EMPTY);
            self.set(partition, hole.expect("such a path ends at a hole"), taker);
        }
    }

    fn finish(self) -> Table {
        for partition in 0..self.q {
            let slots: Vec<usize> = self.slots(partition).collect();
            assert_eq!(slots.len(), self.n, "no partition is short");
            for (place, &slot) in slots.iter().enumerate() {
                assert!(!slots[..place].contains(&slot), "no node holds a partition twice");
            }
            assert!(self.crowded_zone(partition).is_none(), "zones are kept apart");
        }
        assert_eq!(self.load, self.target, "every target is met");
        Table::new(self.n as u8, self.places)
    }

    fn row(&self, partition: usize) -> &[u16] {
        &self.places[partition * self.n..][..self.n]
    }

    /// The slots in a row, holes left out.
    fn slots(&self, partition: usize) -> impl Iterator<Item = usize> {
        let row = self.row(partition).iter();
        row.filter(|&&slot| slot != EMPTY).map(|&slot| usize::from(slot))
    }

    fn holds(&self, partition: usize, slot: usize) -> bool {
        self.slots(partition).any(|held| held == slot)
    }

    fn place_of(&self, partition: usize, slot: usize) -> usize {
        let place = self.row(partition).iter().position(|&held| usize::from(held) == slot);
        place.expect("asked only of a slot in the row")
    }

    fn copies_in(&self, partition: usize, zone: usize) -> usize {
        self.slots(partition).filter(|&slot| self.zones.of_slot[slot] == zone).count()
    }

    fn lacks(&self, slot: usize) -> usize {
        self.target[slot].saturating_sub(self.load[slot])
    }

    /// Whether `slot` may enter the row, in the place of `leaving` if that is given.
    fn fits(&self, partition: usize, slot: usize, leaving: Option<usize>) -> bool {
        let zone = self.zones.of_slot[slot];
        let makes_room = leaving.is_some_and(|leaving| self.zones.of_slot[leaving] == zone);
        !self.holds(partition, slot)
            && (makes_room || self.copies_in(partition, zone) < self.zones.cap)
    }

    fn set(&mut self, partition: usize, place: usize, slot: Option<usize>) {
        let place = &mut self.places[partition * self.n + place];
        if *place != EMPTY {
            self.load[usize::from(*place)] -= 1;
        }
        *place = slot.map_or(EMPTY, |slot| slot as u16);
        if let Some(slot) = slot {
            self.load[slot] += 1;
        }
    }

    /// All partitions, in an order of the node's own: with one order for all, nodes would take
    /// neighbouring partitions from the same donors.
    fn probe(&self, slot: usize) -> impl Iterator<Item = usize> + use<> {
        let uid = self.members[slot].uid;
        let (start, step, q) = (mix(uid, 0) as usize, mix(uid, 1) as usize | 1, self.q);
        // An odd step visits every residue of a power of two once.
        (0..q).map(move |k| start.wrapping_add(k.wrapping_mul(step)) % q)
    }
}

/// A vertex of the flow network.
#[derive(Clone, Copy)]
enum Vertex {
    /// A node, by slot.
    Node(usize),
    /// The copies of a partition in a zone: (partition, zone).
    Zone(usize, usize),
    /// A partition.
    Partition(usize),
}

/// A breadth-first search in progress.
struct Search {
    queue: VecDeque<Vertex>,
    /// Where each reached vertex was reached from; a source from itself.
    from: Vec<Option<Vertex>>,
    zones: usize,
    q: usize,
}

impl Search {
    fn new(nodes: usize, zones: usize, q: usize) -> Self {
        Self { queue: VecDeque::new(), from: vec![None; q + q * zones + nodes], zones, q }
    }

    fn index(&self, vertex: Vertex) -> usize {
        match vertex {
            Vertex::Partition(partition) => partition,
            Vertex::Zone(partition, zone) => self.q + partition * self.zones + zone,
            Vertex::Node(slot) => self.q + self.q * self.zones + slot,
        }
    }

    fn reach(&mut self, vertex: Vertex, from: Vertex) {
        let index = self.index(vertex);
        if self.from[index].is_none() {
            self.from[index] = Some(from);
            self.queue.push_back(vertex);
        }
    }

    fn path_to(&self, end: Vertex) -> Vec<Vertex> {
        let mut path = vec![end];
        let mut vertex = end;
        while let Some(from) = self.from[self.index(vertex)] {
            if self.index(from) == self.index(vertex) {
                break;
            }
            path.push(from);
            vertex = from;
        }
        path.reverse();
        path
    }
}

/// The output step of splitmix64 (Steele, Lea, Flood, OOPSLA'14): scatters neighbouring inputs.
fn scramble(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of a node and a number.
fn mix(uid: Uid, salt: u64) -> u64 {
    let (high, low) = ((uid.0 >> 64) as u64, uid.0 as u64);
    scramble(scramble(scramble(salt) ^ high) ^ low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::samples::members;
    use proptest::prelude::*;

    const BITS: u32 = 8;

    fn fresh(members: &[Member], n: u8) -> Table {
        plan(None, members, n, BITS, 7).unwrap()
    }

    fn loads(table: &Table, members: usize) -> Vec<u32> {
        let mut loads = vec![0; members];
        for partition in 0..table.partitions() {
            for &slot in table.row(partition as u32).iter().filter(|&&slot| slot != EMPTY) {
                loads[usize::from(slot)] += 1;
            }
        }
        loads
    }

    /// Checks a table from outside and returns the worst load/share in millionths.
    fn worst(table: &Table, members: &[Member], n: u8) -> u64 {
        let cap = usize::from(zone_cap(members, n).unwrap());
        for partition in 0..table.partitions() {
            let row = table.row(partition as u32);
            assert_eq!(row.len(), usize::from(n));
            for (place, &slot) in row.iter().enumerate() {
                assert!(!row[..place].contains(&slot), "{row:?}");
                let zone = &members[usize::from(slot)].zone;
                let beside = row.iter().filter(|&&s| members[usize::from(s)].zone == *zone);
                assert!(beside.count() <= cap, "{row:?}");
            }
        }
        let fair = fair_shares(members, n, BITS, 7).unwrap();
        let loads = loads(table, members.len());
        loads.iter().zip(fair).map(|(&load, fair)| fair.load_ppm(load)).max().unwrap()
    }

    fn moved(before: &Table, after: &Table) -> usize {
        let rows = 0..before.partitions() as u32;
        rows.map(|p| after.row(p).iter().filter(|s| !before.row(p).contains(s)).count()).sum()
    }

    /// Checks that the table after a change is fair and that little more moved than had to.
    fn changes_little(from: &[Member], to: &[Member]) {
        // Another zone cap breaks up rows that were well before.
        let few = from.len().min(to.len()) < 3;
        if few || zone_cap(from, 3) != zone_cap(to, 3) {
            return;
        }
        let before = fresh(from, 3).relabelled(from, to);
        let after = plan(Some(&before), to, 3, BITS, 7).unwrap();
        assert!(worst(&after, to, 3) <= 1_050_000);
        let mut must = 0;
        let fair = fair_shares(to, 3, BITS, 7).unwrap();
        for (load, fair) in loads(&before, to.len()).into_iter().zip(fair) {
            must += fair.ceil().saturating_sub(u64::from(load)) as usize;
        }
        let moved = moved(&before, &after);
        assert!(moved <= must + must / 2 + 16, "{moved} moved, {must} must");
    }

    fn shares_of(weights: &[u32], zones: &[&str], n: u8) -> Vec<(u64, u64)> {
        let mut members = members(weights, 1, 7);
        for (member, zone) in members.iter_mut().zip(zones) {
            member.zone = (*zone).to_owned();
        }
        let shares = fair_shares(&members, n, BITS, 7).unwrap();
        shares.iter().map(|share| (share.floor(), share.ceil())).collect()
    }

    #[test]
    fn shares_follow_weights_until_a_node_or_a_zone_is_full() {
        // 768 over 4 nodes of one zone each: nobody is full.
        let zones = ["a", "b", "c", "d"];
        assert_eq!(shares_of(&[1, 1, 1, 1], &zones, 3), vec![(192, 192); 4]);
        // The heavy one cannot hold a partition twice; the others share the remaining 512.
        let full = (256, 256);
        assert_eq!(shares_of(&[9, 1, 1, 1], &zones, 3), [full, (170, 171), (170, 171), (170, 171)]);
        // Three zones for three copies: a zone holds 256, whatever its weight.
        let zones = ["a", "a", "b", "c"];
        assert_eq!(shares_of(&[3, 1, 1, 1], &zones, 3), [(192, 192), (64, 64), full, full]);
        // Two zones for three copies: b holds two of them, though it has the weight for more.
        let zones = ["a", "b", "b", "b"];
        assert_eq!(shares_of(&[1, 1, 1, 1], &zones, 3), [full, (170, 171), (170, 171), (170, 171)]);
    }

    #[test]
    fn a_zone_of_one_node_makes_the_others_take_more_copies() {
        let mut cluster = members(&[1; 5], 1, 3);
        cluster[0].zone = "alone".into();
        assert_eq!(zone_cap(&cluster, 5).unwrap(), 4);
        assert_eq!(worst(&fresh(&cluster, 5), &cluster, 5), 1_000_000);
    }

    #[test]
    fn what_allows_no_table_is_refused() {
        let cluster = members(&[1, 1], 1, 1);
        let refused = |previous, n, bits| plan(previous, &cluster, n, bits, 7).unwrap_err();
        assert_eq!(refused(None, 0, BITS), PlanError::NoCopies);
        assert_eq!(refused(None, 3, BITS), PlanError::TooFewMembers { n: 3, members: 2 });
        assert_eq!(refused(None, 1, 21), PlanError::Bits { bits: 21 });
        let coarse = plan(None, &cluster, 1, 4, 7).unwrap();
        let other = PlanError::PreviousPartitions { found: 16, expected: 256 };
        assert_eq!(refused(Some(&coarse), 1, BITS), other);
    }

    #[test]
    fn a_hundred_nodes_are_fair() {
        let weights: Vec<u32> = (0..100).map(|i| 1 + scramble(i) as u32 % 8).collect();
        for zones in [1, 3, 5, 100] {
            let cluster = members(&weights, zones, 11);
            let table = fresh(&cluster, 3);
            // The lightest should hold 1.6 or so: a whole number is as near as it gets.
            assert!(worst(&table, &cluster, 3) < 1_700_000);
            let fair = fair_shares(&cluster, 3, BITS, 7).unwrap();
            for (load, fair) in loads(&table, 100).into_iter().zip(fair) {
                assert!((fair.floor()..=fair.ceil()).contains(&u64::from(load)));
            }
        }
    }

    #[test]
    fn a_plan_of_a_fair_table_moves_nothing() {
        let cluster = members(&[1, 5, 8, 2, 2, 7], 3, 5);
        let table = fresh(&cluster, 3);
        assert_eq!(plan(Some(&table), &cluster, 3, BITS, 7).unwrap(), table);
    }

    #[test]
    fn replicas_meet_many_others() {
        let cluster = members(&[1, 1, 1, 1, 1, 1, 8, 8, 8, 8, 8, 8], 3, 2);
        let table = fresh(&cluster, 3);
        let mut sets: Vec<Vec<u16>> = (0..256).map(|p| table.row(p).to_vec()).collect();
        sets.iter_mut().for_each(|set| set.sort_unstable());
        sets.sort_unstable();
        sets.dedup();
        assert!(sets.len() > 24, "{} distinct replica sets", sets.len());
    }

    prop_compose! {
        /// 3 to 12 nodes of weight 1 to 8 in 1 to 5 zones.
        fn clusters()(
            weights in prop::collection::vec(1u32..=8, 3..=12),
            zones in 1usize..=5,
            seed: u64,
        ) -> Vec<Member> {
            members(&weights, zones, seed)
        }
    }

    proptest! {
        #[test]
        fn any_small_cluster_is_fair_and_whole(cluster in clusters()) {
            let table = fresh(&cluster, 3);
            prop_assert!(worst(&table, &cluster, 3) <= 1_050_000);
            prop_assert_eq!(&table, &fresh(&cluster, 3));
        }

        #[test]
        fn any_n_makes_a_whole_table(cluster in clusters(), n in 1u8..=7) {
            let n = n.min(cluster.len() as u8);
            worst(&fresh(&cluster, n), &cluster, n);
        }

        #[test]
        fn shares_are_all_replicas(
            weights in prop::collection::vec(1u32..=1_000_000, 3..=40),
            zones in 1usize..=6,
        ) {
            let cluster = members(&weights, zones, 4);
            // No common denominator: compared in millionths of a replica, rounded down.
            let shares = fair_shares(&cluster, 3, BITS, 7).unwrap();
            let micro = |s: Share| 1_000_000 * u128::from(s.num) / u128::from(s.den);
            let sum: u128 = shares.iter().map(|&share| micro(share)).sum();
            let all = 3 * 256 * 1_000_000;
            prop_assert!((all - shares.len() as u128..=all).contains(&sum), "{}", sum);
            worst(&fresh(&cluster, 3), &cluster, 3);
        }

        #[test]
        fn a_join_moves_about_the_share_of_the_new_node(cluster in clusters(), new in 0usize..12) {
            let mut fewer = cluster.clone();
            fewer.remove(new % cluster.len());
            changes_little(&fewer, &cluster);
        }

        #[test]
        fn a_leave_moves_about_what_the_node_held(cluster in clusters(), old in 0usize..12) {
            let mut fewer = cluster.clone();
            fewer.remove(old % cluster.len());
            changes_little(&cluster, &fewer);
        }

        #[test]
        fn a_weight_moves_about_what_it_changes(
            cluster in clusters(),
            slot in 0usize..12,
            weight in 1u32..=8,
        ) {
            let mut other = cluster.clone();
            other[slot % cluster.len()].weight = weight;
            changes_little(&cluster, &other);
        }
    }
}
