//! C9: no read returns what nobody put, what was refused, or one dot for two writes.
//!
//! Holds at every level of consistency, for every read. Time n log n.

use super::Violation;
use super::graph::versions;
use crate::history::{Dot, History, Op, Outcome};
use std::collections::BTreeMap;

/// Values in reads that no put of this key had asked for by then, or only one that was told
/// "nothing was stored"; dots that name two writes.
pub fn phantoms(history: &History) -> Vec<Violation> {
    let puts = history.ops.iter().filter_map(|op| Some(((&op.key[..], op.value()?), op)));
    let puts: BTreeMap<(&str, &str), &Op> = puts.collect();
    let mut named = BTreeMap::new();
    let mut found = Vec::new();
    for op in &history.ops {
        found.extend(named_twice(op, &mut named));
        for version in versions(op) {
            let put = puts.get(&(&op.key[..], &version.value[..]));
            if let Some(why) = why_phantom(put.copied(), op) {
                let words = format!("{op} returned {version}, which {why}");
                let (key, value) = (op.key.clone(), version.value.clone());
                found.push(Violation { check: "C9", key, value, words });
            }
        }
    }
    found
}

fn why_phantom(put: Option<&Op>, read: &Op) -> Option<String> {
    let put = match put {
        None => return Some("nobody put there".into()),
        Some(put) => put,
    };
    match (&put.outcome, read.ended_ns) {
        (Outcome::DefiniteFail(why), _) => Some(format!("was refused: {put}: {why}")),
        (_, Some(ended_ns)) if put.invoked_ns > ended_ns => Some(format!("came later: {put}")),
        _ => None,
    }
}

/// Notes the dots an operation tells of; those that were another write's are violations.
fn named_twice<'a>(
    op: &'a Op,
    named: &mut BTreeMap<(&'a str, Dot), (String, &'a Op)>,
) -> Vec<Violation> {
    let own = op.answer().and_then(|answer| answer.dot);
    let own_name = op.value().map_or_else(|| format!("the delete of op {}", op.id), str::to_owned);
    let read = versions(op).iter().map(|version| (version.dot, version.value.clone()));
    let mut found = Vec::new();
    for (dot, name) in read.chain(own.map(|dot| (dot, own_name))) {
        let (before, by) = named.entry((&op.key, dot)).or_insert_with(|| (name.clone(), op));
        if *before != name {
            let words = format!("the dot {dot} names {before} in {by}, and {name} in {op}");
            found.push(Violation { check: "C9", key: op.key.clone(), value: name, words });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::script::{history, values};
    use crate::history::Action;

    #[test]
    fn values_that_were_put_or_may_have_been_are_no_phantoms() {
        let sound = "
            0-10 s1 put a
            20-? s1 put b over a
            15-18 s2 get a
            30-40 s2 get a b
            50-60 s9 final b";
        assert_eq!(phantoms(&history(sound)), []);
    }

    #[test]
    fn a_value_that_nobody_put_is_a_phantom() {
        let found = phantoms(&history("0-10 s1 put a\n20-30 s2 get a x\n40-50 s9 final x"));
        assert_eq!(values(&found), ["x", "x"]);
        assert!(found[0].words.contains("returned x@18:1, which nobody put there"), "{}", found[0]);
    }

    #[test]
    fn a_value_of_another_key_is_a_phantom() {
        let mut history = history("0-10 s1 put a\n20-30 s2 get a");
        history.ops[0].key = "other".into();
        assert_eq!(values(&phantoms(&history)), ["a"]);
    }

    #[test]
    fn a_value_whose_put_was_refused_is_a_phantom() {
        let found = phantoms(&history("0-10! s1 put a\n20-30 s2 get a"));
        assert_eq!(values(&found), ["a"]);
        assert!(found[0].words.contains("was refused: the put of a (op 0"), "{}", found[0]);
    }

    #[test]
    fn a_value_read_before_it_was_put_is_a_phantom() {
        assert_eq!(values(&phantoms(&history("0-10 s2 get a\n20-30 s1 put a"))), ["a"]);
    }

    #[test]
    fn one_dot_for_two_writes_is_told() {
        let mut history = history("0-10 s1 put a\n20-30 s1 put b\n40-50 s1 delete over a");
        assert_eq!(phantoms(&history), []);
        let first = history.ops[0].outcome.clone();
        history.ops[1].outcome = first;
        let found = phantoms(&history);
        assert_eq!(values(&found), ["b"]);
        assert!(found[0].words.starts_with("the dot 1:1 names a in the put of a"), "{}", found[0]);
        assert!(matches!(history.ops[2].action, Action::Delete { .. }));
    }
}
