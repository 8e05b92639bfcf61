//! What a replica lacks, as far as anybody knows: from what the others keep for it and from the
//! comparisons with them.

use crate::dynamo::node::Uid;
use std::collections::BTreeMap;

/// What one node keeps for another, as that one last told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Keys.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// No hint is older, Unix milliseconds; 0: there is none.
    pub since_ms: u64,
    /// There was no room for another.
    pub overflowed: bool,
}

/// How a node's copies last compared with another's, as one of the two tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Check {
    /// When all was found equal, or made so, Unix milliseconds; `None`: not since it started.
    pub matched_at_ms: Option<u64>,
    /// Keys that the last try found unlike, and could not make equal.
    pub differing: u64,
    /// When that ended, Unix milliseconds; 0: none has.
    pub tried_at_ms: u64,
}

/// What a node last told of itself and the others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// What it keeps, and for whom.
    pub kept: BTreeMap<Uid, Kept>,
    /// Its comparisons: every node it shares copies with is named.
    pub checks: BTreeMap<Uid, Check>,
}

/// What a node is known to lack.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    /// Since when, Unix milliseconds, at the earliest; 0: nothing is known to be missing.
    pub since_ms: u64,
    /// Writes kept for it, each key once for every node that keeps it.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// More is missing than is kept: somewhere there was no room.
    pub more: bool,
    /// Nodes that have not told lately. With any, nothing missing is not known to be nothing.
    pub unheard: Vec<String>,
    /// The longest ago that a comparison with one of those it shares copies with found all equal,
    /// Unix milliseconds; `None`: of one of them that is not known.
    pub checked_at_ms: Option<u64>,
    /// Keys that comparisons found unlike and could not make equal.
    pub differing: u64,
}

/// The lag of `of`, from what every member last told; `None`: it was not heard lately.
pub fn reckon(of: Uid, told: &[(Uid, String, Option<Told>)]) -> Lag {
    let mut lag = Lag::default();
    for (_, name, told) in told.iter().filter(|(node, ..)| *node != of) {
        let Some(told) = told else {
            lag.unheard.push(name.clone());
            continue;
        };
        let Some(kept) = told.kept.get(&of) else { continue };
        lag.keys += kept.keys;
        lag.bytes += kept.bytes;
        lag.more |= kept.overflowed;
        lag.since_ms = earlier(lag.since_ms, kept.since_ms);
    }
    let checks = checks(of, told);
    lag.differing = checks.values().map(|check| check.differing).sum();
    let unsure =
        told.iter().any(|(node, _, told)| *node == of && told.is_none()) && !lag.unheard.is_empty();
    if !unsure {
        lag.checked_at_ms = checks.values().map(|check| check.matched_at_ms).min().flatten();
    }
    if lag.differing > 0 {
        // Since when they differ nobody knows: not before all was equal.
        let unlike = checks.values().filter(|check| check.differing > 0);
        let since = unlike.filter_map(|check| check.matched_at_ms).min();
        lag.since_ms = earlier(lag.since_ms, since.unwrap_or(0));
        lag.more |= since.is_none();
    }
    lag
}

/// How `of` compares with each that it shares copies with. Both of a pair do rounds: the later
/// match counts, and what the later try left unlike.
pub(super) fn checks(of: Uid, told: &[(Uid, String, Option<Told>)]) -> BTreeMap<Uid, Check> {
    let mut checks: BTreeMap<Uid, Check> = BTreeMap::new();
    let mut add = |other: Uid, check: &Check| {
        let known = checks.entry(other).or_insert(*check);
        known.matched_at_ms = known.matched_at_ms.max(check.matched_at_ms);
        if check.tried_at_ms > known.tried_at_ms {
            (known.tried_at_ms, known.differing) = (check.tried_at_ms, check.differing);
        }
    };
    for (node, _, told) in told {
        let Some(told) = told else { continue };
        match *node == of {
            true => told.checks.iter().for_each(|(other, check)| add(*other, check)),
            false => told.checks.get(&of).into_iter().for_each(|check| add(*node, check)),
        }
    }
    checks
}

/// The earlier of two moments of which 0 is none.
pub(super) fn earlier(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, at) | (at, 0) => at,
        (one, other) => one.min(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(keys: u64, since_ms: u64) -> Kept {
        Kept { keys, bytes: keys * 10, since_ms, overflowed: false }
    }

    /// What node `i` of `told` keeps for node 9 and when it last matched with it.
    fn lag(told: &[Option<(Kept, Option<u64>)>]) -> Lag {
        let one = |(i, told): (usize, &Option<(Kept, Option<u64>)>)| {
            let told = told.map(|(kept, matched_at_ms)| Told {
                kept: [(Uid(9), kept)].into(),
                checks: [(Uid(9), Check { matched_at_ms, ..Check::default() })].into(),
            });
            (Uid(i as u128), format!("n{i}"), told)
        };
        reckon(Uid(9), &told.iter().enumerate().map(one).collect::<Vec<_>>())
    }

    #[test]
    fn lag_is_the_oldest_of_all_and_the_unheard_make_it_unknown() {
        let m = Some(100);
        let all = lag(&[Some((kept(3, 700), m)), Some((kept(2, 500), m)), Some((kept(0, 0), m))]);
        assert_eq!((all.since_ms, all.keys, all.bytes, all.unheard.len()), (500, 5, 50, 0));
        let level = lag(&[Some((kept(0, 0), m))]);
        assert_eq!(level, Lag { checked_at_ms: m, ..Lag::default() });
        let unknown = lag(&[Some((kept(0, 0), m)), None]);
        assert_eq!((unknown.since_ms, unknown.unheard), (0, vec!["n1".to_owned()]));
        assert!(lag(&[Some((Kept { overflowed: true, ..kept(0, 0) }, m))]).more);
    }

    #[test]
    fn checked_is_the_oldest_match_and_one_that_never_was_makes_it_unknown() {
        let at = |matched: &[Option<u64>]| {
            let told: Vec<_> = matched.iter().map(|at| Some((kept(0, 0), *at))).collect();
            lag(&told).checked_at_ms
        };
        assert_eq!(at(&[Some(300), Some(200)]), Some(200));
        assert_eq!(at(&[Some(300), None]), None, "never compared with one of them");
        assert_eq!(at(&[]), None, "shares nothing");
        // The node itself was heard and says the same, later.
        let check = |at| Check { matched_at_ms: Some(at), ..Check::default() };
        let own = Told { checks: [(Uid(1), check(400))].into(), ..Told::default() };
        let other = Told { checks: [(Uid(9), check(300))].into(), ..Told::default() };
        let told = [(Uid(9), "n9".into(), Some(own)), (Uid(1), "n1".into(), Some(other.clone()))];
        assert_eq!(reckon(Uid(9), &told).checked_at_ms, Some(400));
        // Neither it nor one of the others was heard: whether they match, nobody knows.
        let told = [
            (Uid(9), "n9".into(), None),
            (Uid(1), "n1".into(), Some(other)),
            (Uid(2), "n2".into(), None),
        ];
        assert_eq!(reckon(Uid(9), &told).checked_at_ms, None);
    }

    #[test]
    fn keys_that_still_differ_are_lag_since_the_last_match() {
        let check = Check { matched_at_ms: Some(50), differing: 4, tried_at_ms: 90 };
        let told = Told { checks: [(Uid(9), check)].into(), ..Told::default() };
        let lag = reckon(Uid(9), &[(Uid(1), "n1".into(), Some(told))]);
        assert_eq!((lag.differing, lag.since_ms, lag.more), (4, 50, false));
        // The other side matched before that, and then tried again.
        let differing = |tried_at_ms| {
            let own = Check { matched_at_ms: Some(70), differing: 0, tried_at_ms };
            let own = Told { checks: [(Uid(1), own)].into(), ..Told::default() };
            let other = Told { checks: [(Uid(9), check)].into(), ..Told::default() };
            let told = [(Uid(9), "n9".into(), Some(own)), (Uid(1), "n1".into(), Some(other))];
            reckon(Uid(9), &told).differing
        };
        assert_eq!((differing(80), differing(100)), (4, 0));
    }
}
