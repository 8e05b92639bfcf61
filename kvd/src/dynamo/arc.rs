//! How far each replica of a partition is behind, from what all nodes tell arc by arc.

use crate::dynamo::lag::{Check, Kept, Told, checks, earlier};
use crate::dynamo::node::Uid;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What is kept for a node is counted in 2^this equal arcs of the ring, whatever the number of
/// partitions is.
pub const ARC_BITS: u32 = 10;

/// What one node told of what it keeps, and for whom, in each arc.
pub type Arcs = BTreeMap<Uid, BTreeMap<u16, Kept>>;

/// A member, and what it told just now; `None`: it could not be asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who.
    pub node: Uid,
    /// Its name.
    pub name: String,
    /// Of itself and the others.
    pub told: Option<(Told, Arcs)>,
}

/// What a replica is known to lack in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReplicaLag {
    /// Since when, Unix milliseconds, at the earliest; 0: nothing is kept for it.
    pub since_ms: u64,
    /// Writes kept for it.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// That is all, as far as anybody knows.
    pub known: bool,
    /// The longest ago that a comparison with another replica of the partition found all equal;
    /// `None`: with one of them that is not known.
    pub checked_at_ms: Option<u64>,
    /// Keys those comparisons left unlike, wherever on the ring.
    pub differing: u64,
}

/// All that was told, ready to be asked about any partition.
#[derive(Debug)]
pub struct Joined<'a> {
    asked: &'a [Asked],
    /// How each node compares with the others.
    checks: BTreeMap<Uid, BTreeMap<Uid, Check>>,
}

impl<'a> Joined<'a> {
    /// Joins what the members told.
    pub fn of(asked: &'a [Asked]) -> Self {
        let told: Vec<_> = asked
            .iter()
            .map(|it| (it.node, it.name.clone(), it.told.as_ref().map(|(told, _)| told.clone())))
            .collect();
        let checks = asked.iter().map(|it| (it.node, checks(it.node, &told))).collect();
        Self { asked, checks }
    }

    /// The lag of `of` in a partition that `replicas` hold, of 2^`bits`. Where partitions are
    /// smaller than arcs, an arc's lag counts in each partition of it.
    pub fn lag(&self, of: Uid, partition: u32, bits: u32, replicas: &[Uid]) -> ReplicaLag {
        let mut lag = ReplicaLag { known: true, ..ReplicaLag::default() };
        for asked in self.asked.iter().filter(|asked| asked.node != of) {
            let Some((told, arcs)) = &asked.told else {
                lag.known = false;
                continue;
            };
            let Some(total) = told.kept.get(&of) else { continue };
            lag.known &= !total.overflowed;
            match arcs.get(&of) {
                None => lag.known &= total.keys == 0, // not counted yet
                Some(arcs) => {
                    for (_, kept) in arcs.range(arcs_of(partition, bits)) {
                        lag.keys += kept.keys;
                        lag.bytes += kept.bytes;
                        lag.since_ms = earlier(lag.since_ms, kept.since_ms);
                    }
                }
            }
        }
        let known = self.checks.get(&of);
        let others = replicas.iter().filter(|other| **other != of);
        let checks = others.map(|other| known.and_then(|known| known.get(other)).copied());
        let checks: Vec<Check> = checks.map(Option::unwrap_or_default).collect();
        lag.differing = checks.iter().map(|check| check.differing).sum();
        lag.known &= lag.differing == 0;
        lag.checked_at_ms = checks.iter().map(|check| check.matched_at_ms).min().flatten();
        lag
    }
}

/// The arcs of which a partition has at least a part.
fn arcs_of(partition: u32, bits: u32) -> RangeInclusive<u16> {
    let (first, last) = match bits <= ARC_BITS {
        true => {
            let each = ARC_BITS - bits;
            (partition << each, ((partition + 1) << each) - 1)
        }
        false => (partition >> (bits - ARC_BITS), partition >> (bits - ARC_BITS)),
    };
    first as u16..=last as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Uid = Uid(9);

    fn kept(keys: u64, since_ms: u64) -> Kept {
        Kept { keys, bytes: keys * 10, since_ms, overflowed: false }
    }

    /// Node `i` keeps `arcs` for node 9, and was level with it at 100 + i.
    fn asked(i: u64, arcs: &[(u16, Kept)]) -> Asked {
        let total = Kept { keys: arcs.iter().map(|(_, kept)| kept.keys).sum(), ..kept(0, 1) };
        let check = Check { matched_at_ms: Some(100 + i), ..Check::default() };
        let told = Told { kept: [(AWAY, total)].into(), checks: [(AWAY, check)].into() };
        let arcs = [(AWAY, arcs.iter().copied().collect())].into();
        Asked { node: Uid(i.into()), name: format!("n{i}"), told: Some((told, arcs)) }
    }

    fn unheard(i: u64) -> Asked {
        Asked { node: Uid(i.into()), name: format!("n{i}"), told: None }
    }

    #[test]
    fn a_partition_has_the_arcs_it_covers_or_the_one_it_is_part_of() {
        assert_eq!(arcs_of(255, 8), 1020..=1023);
        assert_eq!(arcs_of(3, 10), 3..=3);
        assert_eq!(arcs_of(1, 1), 512..=1023);
        assert_eq!((arcs_of(7, 12), arcs_of(8, 12)), (1..=1, 2..=2));
    }

    #[test]
    fn what_all_keep_in_a_partition_is_summed_and_elsewhere_is_nothing() {
        let all = [
            asked(1, &[(4, kept(2, 700)), (9, kept(5, 300))]),
            asked(2, &[(7, kept(1, 500))]),
            unheard(9), // what the lagging one itself would say is not needed
        ];
        let joined = Joined::of(&all);
        let replicas = [Uid(1), AWAY, Uid(2)];
        let lag = joined.lag(AWAY, 1, 8, &replicas);
        assert_eq!((lag.since_ms, lag.keys, lag.bytes, lag.known), (500, 3, 30, true));
        let none = joined.lag(AWAY, 0, 8, &replicas);
        assert_eq!((none.since_ms, none.keys, none.known), (0, 0, true));
    }

    #[test]
    fn whoever_was_not_heard_or_has_not_counted_makes_it_unknown() {
        let replicas = [Uid(1), AWAY];
        let lag = |all: &[Asked]| Joined::of(all).lag(AWAY, 1, 8, &replicas);
        assert!(!lag(&[asked(1, &[]), unheard(2)]).known);
        let partly = lag(&[asked(1, &[(4, kept(2, 700))]), unheard(2)]);
        assert_eq!((partly.since_ms, partly.known), (700, false), "so much or more");
        let mut counting = asked(1, &[(4, kept(2, 700))]);
        counting.told.as_mut().unwrap().1.clear();
        assert!(!lag(&[counting]).known);
        let mut full = asked(1, &[]);
        full.told.as_mut().unwrap().0.kept.get_mut(&AWAY).unwrap().overflowed = true;
        assert!(!lag(&[full]).known);
    }

    #[test]
    fn checked_is_the_oldest_match_with_the_other_replicas_of_this_partition() {
        let all = [asked(1, &[]), asked(2, &[]), unheard(9)];
        let joined = Joined::of(&all);
        let checked = |replicas: &[Uid]| joined.lag(AWAY, 0, 8, replicas).checked_at_ms;
        assert_eq!(checked(&[Uid(1), AWAY, Uid(2)]), Some(101));
        assert_eq!(checked(&[AWAY, Uid(2)]), Some(102));
        assert_eq!(checked(&[AWAY, Uid(2), Uid(3)]), None, "never compared with one");
        let mut unlike = asked(1, &[]);
        unlike.told.as_mut().unwrap().0.checks.get_mut(&AWAY).unwrap().differing = 4;
        let lag = Joined::of(&[unlike, unheard(9)]).lag(AWAY, 0, 8, &[Uid(1), AWAY]);
        assert_eq!((lag.differing, lag.known), (4, false));
    }
}
