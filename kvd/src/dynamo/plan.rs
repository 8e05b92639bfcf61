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
//! 3. *Return*, *fill*, *take*, *augment*: what was dropped is taken back where that costs nothing,
//!    holes are filled, surplus is taken, and whatever those direct moves cannot reach is reached
//!    along shortest augmenting paths.
//!
//! A replica on a node that did not hold the partition before is a move. Each step of 3 takes only
//! paths as short as any there is (no move; one move; what is left, shortest first), so by the
//! theory of successive shortest paths no table with these targets moves fewer replicas.

mod flow;
mod share;
mod target;
#[cfg(test)]
mod tests;

pub use share::Share;

use crate::dynamo::layout::{Member, Table};
use crate::dynamo::node::Uid;
use share::{Zones, shares};
use target::{Facts, Fill};

/// A place in a row that no node fills. Only while planning, and in what [`Table::relabelled`]
/// gives the planner as the previous table.
pub const EMPTY: u16 = u16::MAX;

/// A ring has at most 2^this partitions.
pub const BITS_MAX: u32 = 20;

/// Fewest replicas a node holds on average before the ring is cut finer. With 64 to 128 the shares
/// round to within a few per cent, a lost node is rebuilt from and to most others, and there are
/// few distinct sets of nodes whose common loss loses data.
const REPLICAS_PER_NODE_MIN: u64 = 64;

/// Random draws for a hole before all that is left to deal is looked through.
const DRAWS_MAX: usize = 16;

/// Most of what is left to deal that is looked through for one hole; augmenting finds the rest.
const DEAL_LOOK_MAX: usize = 4096;

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
    /// Copies are in one zone at least.
    #[error("spread=0 would keep copies in no zone")]
    NoSpread,
    /// A ring has 2 to 2^20 partitions.
    #[error("2^{bits} partitions are not within 2^1 and 2^{BITS_MAX}")]
    Bits { bits: u32 },
    /// The previous table cuts the ring otherwise.
    #[error("the previous table has {found} partitions, not {expected}")]
    PreviousPartitions { found: usize, expected: usize },
}

/// Plans the table of `n` copies over 2^`bits` partitions; slots are positions in `members`, and
/// the copies of a partition are in at least `spread` zones, or as many as there are (see
/// [`zone_cap`]).
///
/// `previous` is the table so far in the slots of `members` (see [`Table::relabelled`]); what it
/// says is kept where fairness and zones allow. Its N may differ. Every target is met exactly, no
/// partition is ever short, and no zone holds more than [`zone_cap`] copies of one.
///
/// # Errors
/// When `n`, `bits`, `spread` or the number of members allow no table, or `previous` has other
/// partitions.
pub fn plan(
    previous: Option<&Table>,
    members: &[Member],
    n: u8,
    bits: u32,
    spread: u8,
) -> Result<Table, PlanError> {
    check(previous, members, n, bits, spread)?;
    let mut plan = Plan::start(previous, members, n, bits, spread);
    plan.solve();
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
    spread: u8,
) -> Result<Vec<Share>, PlanError> {
    check(None, members, n, bits, spread)?;
    Ok(shares(&Zones::of(members, n, spread), members, n, bits))
}

/// Most copies of one partition in one zone: as few as let `n` copies touch `spread` zones, or as
/// many as there are, and more where zones are too small for that.
///
/// # Errors
/// As [`plan`].
pub fn zone_cap(members: &[Member], n: u8, spread: u8) -> Result<u8, PlanError> {
    check(None, members, n, 1, spread)?;
    let cap = Zones::of(members, n, spread).cap;
    Ok(u8::try_from(cap).expect("no cap is above N"))
}

/// What the zone rule costs: how much more the fullest node holds than its weight alone would
/// give it, in millionths (1 000 000: no node more). Before `spread` is raised an operator should
/// see this for the spread that is and the one that would be: a lone node in one more zone can
/// come to hold a copy of everything.
///
/// # Errors
/// As [`plan`].
pub fn fullest_ppm(members: &[Member], n: u8, bits: u32, spread: u8) -> Result<u64, PlanError> {
    let shares = fair_shares(members, n, bits, spread)?;
    let weights = members.iter().map(|member| u64::from(member.weight)).sum();
    let over = members.iter().zip(shares);
    let over =
        over.map(|(m, share)| share.over_weight_ppm(m.weight, weights, u64::from(n) << bits));
    Ok(over.max().unwrap_or_default())
}

/// How finely a ring now of 2^`bits` partitions should be cut for so many members: doubled until a
/// node holds 64 replicas on average, up to [`BITS_MAX`], and never less than it is. `n` is the
/// largest N in use.
pub fn bits_wanted(members: usize, n: u8, bits: u32) -> u32 {
    let enough = REPLICAS_PER_NODE_MIN * members as u64;
    let mut wanted = bits;
    while wanted < BITS_MAX && u64::from(n) << wanted < enough {
        wanted += 1;
    }
    wanted
}

fn check(
    previous: Option<&Table>,
    members: &[Member],
    n: u8,
    bits: u32,
    spread: u8,
) -> Result<(), PlanError> {
    let count = members.len();
    if n == 0 {
        return Err(PlanError::NoCopies);
    }
    if spread == 0 {
        return Err(PlanError::NoSpread);
    }
    if !(1..=BITS_MAX).contains(&bits) {
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

/// A table in the making. Loads and targets are replicas.
struct Plan<'a> {
    members: &'a [Member],
    /// What was before: a replica it has costs nothing.
    previous: Option<&'a Table>,
    zones: Zones,
    n: usize,
    q: usize,
    fair: Vec<Share>,
    target: Vec<usize>,
    load: Vec<usize>,
    /// Q rows of n places, each a slot or [`EMPTY`].
    places: Vec<u16>,
    /// Whether a replica of a member was dropped, so that it may be taken back.
    dropped: bool,
}

impl<'a> Plan<'a> {
    /// What `previous` leaves under the rules of now, and the targets to reach from there.
    fn start(
        previous: Option<&'a Table>,
        members: &'a [Member],
        n: u8,
        bits: u32,
        spread: u8,
    ) -> Self {
        let zones = Zones::of(members, n, spread);
        let fair = shares(&zones, members, n, bits);
        let (n, q) = (usize::from(n), 1 << bits);
        let zero = vec![0; members.len()];
        let (target, load, places) = (zero.clone(), zero, vec![EMPTY; q * n]);
        let dropped = false;
        let mut plan = Self { members, previous, zones, n, q, fair, target, load, places, dropped };
        if let Some(previous) = previous {
            plan.keep(previous);
            plan.evict();
        }
        plan.target = target::targets(&Facts {
            uids: members.iter().map(|member| member.uid).collect(),
            zones: &plan.zones,
            fair: &plan.fair,
            load: &plan.load,
            q,
            replicas: n * q,
        });
        plan
    }

    /// Meets the targets with as few moves as can be.
    fn solve(&mut self) {
        if self.dropped {
            // Which replica of a crowded row was dropped was a guess: mended first, since paths
            // without a move are no longer the shortest once a move was made beside them.
            flow::augment(self, 0);
        }
        self.fill_holes();
        self.take_surplus();
        flow::augment(self, u32::MAX);
    }

    /// Takes over the rows of `previous`, as far as they name members.
    fn keep(&mut self, previous: &Table) {
        for partition in 0..self.q {
            let mut place = 0;
            for &slot in previous.row(partition as u32) {
                let slot = usize::from(slot);
                if slot >= self.members.len() || self.holds(partition, slot) {
                    continue;
                }
                if place == self.n {
                    self.dropped = true; // N is smaller than it was.
                    break;
                }
                self.set(partition, place, Some(slot));
                place += 1;
            }
        }
    }

    /// Makes holes where a zone holds too many copies: the fullest of its nodes gives its copy up.
    fn evict(&mut self) {
        for partition in 0..self.q {
            while let Some(zone) = self.crowded_zone(partition) {
                let in_zone = self.slots(partition).filter(|&s| self.zones.of_node(s) == zone);
                let fullest = in_zone.map(|slot| self.fill(slot)).max();
                let slot = fullest.expect("a crowded zone has a copy").slot;
                self.set(partition, self.place_of(partition, slot), None);
                self.dropped = true;
            }
        }
    }

    fn fill(&self, slot: usize) -> Fill {
        let held = self.load[slot] as u64;
        Fill { held, fair: self.fair[slot], hash: mix(self.members[slot].uid, held), slot }
    }

    fn crowded_zone(&self, partition: usize) -> Option<usize> {
        let mut zones = self.slots(partition).map(|slot| self.zones.of_node(slot));
        zones.find(|&zone| self.copies_in(partition, zone) > self.zones.cap)
    }

    /// Each hole draws a node that fits, with a chance proportional to what the nodes still lack.
    /// So heavy nodes meet all others instead of each other in the first rows.
    fn fill_holes(&mut self) {
        let mut deal = self.shuffled_lacks();
        for partition in 0..self.q {
            for place in 0..self.n {
                if self.row(partition)[place] == EMPTY
                    && let Some(slot) = self.draw(&mut deal, partition, place)
                {
                    self.set(partition, place, Some(slot));
                }
            }
        }
    }

    /// Every lacking node, once for each replica it lacks, in an order of chance.
    fn shuffled_lacks(&self) -> Vec<u16> {
        let lacking = (0..self.members.len()).filter(|&slot| self.lacks(slot) > 0);
        let mut deal: Vec<u16> =
            lacking.flat_map(|slot| std::iter::repeat_n(slot as u16, self.lacks(slot))).collect();
        for end in (1..deal.len()).rev() {
            deal.swap(end, (scramble(end as u64) % (end as u64 + 1)) as usize);
        }
        deal
    }

    /// Takes a node for this place out of `deal`; none if none is found that fits.
    fn draw(&self, deal: &mut Vec<u16>, partition: usize, place: usize) -> Option<usize> {
        if deal.is_empty() {
            return None;
        }
        let hole = (partition * self.n + place) as u64;
        let chance = |attempt: usize| {
            let chance = scramble(hole.wrapping_mul(DRAWS_MAX as u64).wrapping_add(attempt as u64));
            (chance % deal.len() as u64) as usize
        };
        let start = chance(0);
        let look = deal.len().min(DEAL_LOOK_MAX);
        let mut all = (0..DRAWS_MAX).map(chance).chain((0..look).map(|i| (start + i) % deal.len()));
        let found = all.find(|&at| self.fits(partition, usize::from(deal[at]), None))?;
        Some(usize::from(deal.swap_remove(found)))
    }

    /// Nodes that still lack replicas take them from nodes above their target, in their own zone
    /// first, so that zones keep what they have.
    fn take_surplus(&mut self) {
        let over = |slot: usize| self.load[slot].saturating_sub(self.target[slot]);
        let mut surplus: usize = (0..self.members.len()).map(over).sum();
        for slot in 0..self.members.len() {
            let mut probe = self.probe(slot);
            while surplus > 0 && self.lacks(slot) > 0 {
                let Some(partition) = probe.next() else { break };
                if let Some(donor) = self.donor(partition, slot) {
                    self.set(partition, self.place_of(partition, donor), Some(slot));
                    surplus -= 1;
                }
            }
        }
    }

    fn donor(&self, partition: usize, taker: usize) -> Option<usize> {
        let over = |slot: usize| self.load[slot].saturating_sub(self.target[slot]);
        let able = self.slots(partition).filter(|&donor| over(donor) > 0);
        let able = able.filter(|&donor| self.fits(partition, taker, Some(donor)));
        let zone = self.zones.of_node(taker);
        able.max_by_key(|&donor| {
            let hash = mix(self.members[donor].uid, partition as u64);
            (self.zones.of_node(donor) == zone, over(donor), hash)
        })
    }

    fn finish(self) -> Table {
        for partition in 0..self.q {
            let row = self.row(partition);
            assert!(!row.contains(&EMPTY), "no partition is short");
            let twice = (1..row.len()).any(|place| row[..place].contains(&row[place]));
            assert!(!twice, "no node holds a partition twice");
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
        self.row(partition).contains(&(slot as u16))
    }

    /// Whether `slot` held `partition` before the plan, so that it moves nothing to hold it.
    fn held_before(&self, partition: usize, slot: usize) -> bool {
        self.previous.is_some_and(|table| table.row(partition as u32).contains(&(slot as u16)))
    }

    fn place_of(&self, partition: usize, slot: usize) -> usize {
        let place = self.row(partition).iter().position(|&held| usize::from(held) == slot);
        place.expect("asked only of a slot in the row")
    }

    fn copies_in(&self, partition: usize, zone: usize) -> usize {
        self.slots(partition).filter(|&slot| self.zones.of_node(slot) == zone).count()
    }

    fn lacks(&self, slot: usize) -> usize {
        self.target[slot].saturating_sub(self.load[slot])
    }

    /// Whether `slot` may enter the row, in the place of `leaving` if that is given.
    fn fits(&self, partition: usize, slot: usize, leaving: Option<usize>) -> bool {
        let zone = self.zones.of_node(slot);
        let makes_room = leaving.is_some_and(|leaving| self.zones.of_node(leaving) == zone);
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
