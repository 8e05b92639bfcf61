//! Fair shares: what each node should hold, by weight, as far as zones are kept apart.

use crate::dynamo::layout::Member;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

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

    /// This share over what a node of `weight` among `weights` in all would hold of `replicas` if
    /// nothing but weight counted, in millionths.
    pub(super) fn over_weight_ppm(self, weight: u32, weights: u64, replicas: u64) -> u64 {
        let held = 1_000_000 * u128::from(self.num) * u128::from(weights);
        // At most 2^63 · 2^36 · 2^20 above, and in what it is divided by 2^36 · 2^20 · 2^23.
        let due = u128::from(self.den) * u128::from(weight) * u128::from(replicas);
        u64::try_from(held / due).unwrap_or(u64::MAX)
    }

    /// The whole replicas in this share.
    pub(super) fn floor(self) -> u64 {
        self.num / self.den
    }

    /// The fewest whole replicas that are no less than this share.
    pub(super) fn ceil(self) -> u64 {
        self.num.div_ceil(self.den)
    }

    /// Which of two nodes is relatively fuller: compares mine/self with theirs/other.
    pub(super) fn compare(self, mine: u64, other: Self, theirs: u64) -> Ordering {
        let left = u128::from(mine) * u128::from(self.den) * u128::from(other.num);
        let right = u128::from(theirs) * u128::from(other.den) * u128::from(self.num);
        left.cmp(&right)
    }
}

/// The zones of a cluster, numbered in the order of their names.
pub(super) struct Zones {
    /// Zone of each slot.
    pub(super) of_slot: Vec<u16>,
    /// Nodes in each zone.
    pub(super) sizes: Vec<usize>,
    /// Most copies of a partition in one zone.
    pub(super) cap: usize,
}

impl Zones {
    /// The zones of `members`, and the least cap at which a row of `n` copies touches `spread`
    /// zones, or as many as there are.
    pub(super) fn of(members: &[Member], n: u8, spread: u8) -> Self {
        let mut numbers: BTreeMap<&str, u16> =
            members.iter().map(|member| (member.zone.as_str(), 0)).collect();
        for (number, zone) in (0..).zip(numbers.values_mut()) {
            *zone = number;
        }
        let of_slot: Vec<u16> =
            members.iter().map(|member| numbers[member.zone.as_str()]).collect();
        let mut sizes = vec![0; numbers.len()];
        for &zone in &of_slot {
            sizes[usize::from(zone)] += 1;
        }
        let (n, spread) = (usize::from(n), usize::from(spread));
        let mut cap = n.div_ceil(n.min(spread).min(sizes.len()));
        // A zone of one node cannot take two copies: the others then have to.
        while sizes.iter().map(|&size| size.min(cap)).sum::<usize>() < n {
            cap += 1;
        }
        Self { of_slot, sizes, cap }
    }

    /// Zone of a slot.
    pub(super) fn of_node(&self, slot: usize) -> usize {
        usize::from(self.of_slot[slot])
    }

    /// Most replicas zone `zone` can hold when the ring has `q` partitions.
    pub(super) fn room(&self, zone: usize, q: usize) -> usize {
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
pub(super) fn shares(zones: &Zones, members: &[Member], n: u8, bits: u32) -> Vec<Share> {
    let q = 1_usize << bits;
    let mut weights = vec![Vec::new(); zones.sizes.len()];
    for (slot, member) in members.iter().enumerate() {
        weights[zones.of_node(slot)].push(member.weight);
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
    let level_of = |slot| levels[zones.of_node(slot)].unwrap_or(common);
    let slots = members.iter().enumerate();
    slots.map(|(slot, member)| level_of(slot).share(member.weight, q)).collect()
}

/// Whether nodes of these weights would hold more than `room` together.
fn overflows(level: Level, weights: &[u32], room: usize, q: usize) -> bool {
    let full = q as u128 * level.den;
    let held: u128 = weights.iter().map(|&w| (u128::from(w) * level.num).min(full)).sum();
    held > room as u128 * level.den
}
