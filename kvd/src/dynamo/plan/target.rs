//! Targets: whole numbers near the shares that add up to all replicas.
//!
//! A target t of a node of share s always keeps ⌊s⌋ - ⌊s⌋/100 <= t <= ⌈s⌉ + ⌊s⌋/100 (whole
//! division). So t <= max(⌈s⌉, 1.025·s), and t >= 0.92·s from s = 12.5 on.

use super::mix;
use super::share::{Share, Zones};
use crate::dynamo::node::Uid;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Half the width of the band in which a node keeps what it has: its share divided by this. A
/// hundredth keeps rounding from moving data when the shares hardly changed.
const BAND: u64 = 100;

/// Most a node keeps of what it has, in millionths of its share.
const KEPT_PPM_MAX: u64 = 1_025_000;

/// What targets are made of; all slices are by slot, loads in replicas.
pub(super) struct Facts<'a> {
    pub(super) uids: Vec<Uid>,
    pub(super) zones: &'a Zones,
    pub(super) fair: &'a [Share],
    pub(super) load: &'a [usize],
    /// Partitions.
    pub(super) q: usize,
    /// Replicas in all, Q·N.
    pub(super) replicas: usize,
}

/// Whole targets that sum to Q·N under the caps. A node within its band keeps its load, one below
/// aims at its share, one above at the band's end; what is then over or missing is taken from the
/// relatively fullest and dealt to the relatively emptiest.
pub(super) fn targets(facts: &Facts<'_>) -> Vec<usize> {
    let mut targets = Targets::aim(facts);
    for zone in 0..targets.in_zone.len() {
        let over = targets.in_zone[zone].saturating_sub(facts.zones.room(zone, facts.q));
        if over > 0 {
            targets.lower_fullest(over, |slot| facts.zones.of_node(slot) == zone);
        }
    }
    let sum: usize = targets.in_zone.iter().sum();
    targets.lower_fullest(sum.saturating_sub(facts.replicas), |_| true);
    targets.raise_emptiest(facts.replicas.saturating_sub(sum));
    assert_eq!(targets.of.iter().sum::<usize>(), facts.replicas, "targets are all replicas");
    targets.of
}

/// Targets in the making.
struct Targets<'a> {
    facts: &'a Facts<'a>,
    /// Least and most a node may hold: its share rounded, and a little on either side.
    bands: Vec<(usize, usize)>,
    of: Vec<usize>,
    /// Sum of the targets of each zone.
    in_zone: Vec<usize>,
}

impl<'a> Targets<'a> {
    fn aim(facts: &'a Facts<'a>) -> Self {
        let bands: Vec<_> = facts.fair.iter().map(|&share| band(share, facts.q)).collect();
        let aimed = facts.load.iter().zip(facts.fair).zip(&bands);
        let of: Vec<usize> = aimed.map(|((&load, &fair), &band)| aim(load, fair, band)).collect();
        let mut in_zone = vec![0; facts.zones.sizes.len()];
        for (slot, target) in of.iter().enumerate() {
            in_zone[facts.zones.of_node(slot)] += target;
        }
        Self { facts, bands, of, in_zone }
    }

    /// Takes `over` replicas from the targets of the nodes `among`.
    fn lower_fullest(&mut self, over: usize, among: impl Fn(usize) -> bool) {
        if over == 0 {
            return;
        }
        let able = |slot: &usize| self.of[*slot] > self.bands[*slot].0;
        let slots = (0..self.of.len()).filter(|&slot| among(slot)).filter(able);
        let mut fullest: BinaryHeap<Fill> = slots.map(|slot| self.fill(slot, 0)).collect();
        for _ in 0..over {
            let slot = fullest.pop().expect("the lower ends of the bands fit under every cap").slot;
            self.of[slot] -= 1;
            self.in_zone[self.facts.zones.of_node(slot)] -= 1;
            if self.of[slot] > self.bands[slot].0 {
                fullest.push(self.fill(slot, 0));
            }
        }
    }

    /// Adds `missing` replicas to the targets, zones at their cap left out.
    fn raise_emptiest(&mut self, missing: usize) {
        if missing == 0 {
            return;
        }
        let able = (0..self.of.len()).filter(|&slot| self.of[slot] < self.bands[slot].1);
        let mut emptiest: BinaryHeap<Reverse<Fill>> =
            able.map(|slot| Reverse(self.fill(slot, 1))).collect();
        for _ in 0..missing {
            let slot = loop {
                let Reverse(fill) =
                    emptiest.pop().expect("the upper ends of the bands hold every replica");
                let zone = self.facts.zones.of_node(fill.slot);
                // A full zone stays full here, so its nodes are not put back.
                if self.in_zone[zone] < self.facts.zones.room(zone, self.facts.q) {
                    self.in_zone[zone] += 1;
                    break fill.slot;
                }
            };
            self.of[slot] += 1;
            if self.of[slot] < self.bands[slot].1 {
                emptiest.push(Reverse(self.fill(slot, 1)));
            }
        }
    }

    fn fill(&self, slot: usize, more: usize) -> Fill {
        let held = (self.of[slot] + more) as u64;
        let hash = mix(self.facts.uids[slot], held);
        Fill { held, fair: self.facts.fair[slot], hash, slot }
    }
}

/// Least and most a node of this share may hold.
pub(super) fn band(share: Share, q: usize) -> (usize, usize) {
    let (floor, ceil) = (share.floor(), share.ceil());
    let slack = floor / BAND;
    ((floor - slack) as usize, ((ceil + slack) as usize).min(q))
}

/// Where a node's target starts.
fn aim(load: usize, fair: Share, (low, high): (usize, usize)) -> usize {
    let kept = load.min(high);
    // To a node that should hold a few, even one more than its share is much.
    let much = fair.load_ppm(kept as u32) > KEPT_PPM_MAX;
    if kept < low || much { fair.floor() as usize } else { kept }
}

/// How full a node is, held/fair; ties by uid hash: by order of uids, the same nodes would win
/// every tie.
pub(super) struct Fill {
    pub(super) held: u64,
    pub(super) fair: Share,
    pub(super) hash: u64,
    pub(super) slot: usize,
}

impl Ord for Fill {
    fn cmp(&self, other: &Self) -> Ordering {
        let fullness = self.fair.compare(self.held, other.fair, other.held);
        fullness.then(self.hash.cmp(&other.hash)).then(self.slot.cmp(&other.slot))
    }
}

impl PartialOrd for Fill {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Fill {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Fill {}
