//! Histories for the tests of the checkers, in a form that can be checked by hand.
//!
//! A line is `FROM-TO sSESSION put VALUE`, `… put VALUE over VALUES`, `… delete over VALUES`,
//! `… get VALUES` or `… final VALUES`. The times are in microseconds. `TO` may be `?` (no answer),
//! or end in `?` (given up, nobody knows) or `!` (refused). A value is a letter, stored under a dot
//! of its own; with a `'` it is the same value under another dot.

use super::Violation;
use crate::history::{Action, Answer, Dot, History, Op, Outcome, Run, Version};

/// The history a script tells of one key.
pub(super) fn history(script: &str) -> History {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let ops = lines.enumerate().map(|(id, line)| op(id as u64, line));
    let run = Run { seed: 0, keyspace: "script".into(), strict: true };
    History { run, ops: ops.collect() }
}

/// The values of violations.
pub(super) fn values(found: &[Violation]) -> Vec<String> {
    found.iter().map(|violation| violation.value.clone()).collect()
}

fn op(id: u64, line: &str) -> Op {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (from, to) = words[0].split_once('-').unwrap();
    let (kind, named) = (words[2], &words[3..]);
    let over = named.iter().position(|word| *word == "over");
    let covers: Vec<Version> = named[over.map_or(0, |at| at + 1)..].iter().map(version).collect();
    let mut answer = Answer::default();
    let context = String::new();
    let action = match kind {
        "put" => {
            answer.dot = Some(version(&named[0]).dot);
            let covers = if over.is_some() { covers } else { Vec::new() };
            Action::Put { value: named[0].into(), covers, context }
        }
        "delete" => {
            answer.dot = Some(Dot { actor: 1000 + id, counter: 1 });
            Action::Delete { covers, context }
        }
        "get" | "final" => {
            answer.versions = covers;
            if kind == "get" { Action::Get } else { Action::Final }
        }
        other => panic!("{other:?} in {line:?}"),
    };
    let outcome = match to.chars().last() {
        Some('?') => Outcome::Indeterminate("lost".into()),
        Some('!') => Outcome::DefiniteFail("draining".into()),
        _ => Outcome::Ok(answer),
    };
    let ns = |us: &str| us.trim_end_matches(['?', '!']).parse::<u64>().ok().map(|us| us * 1000);
    Op {
        id,
        session: words[1][1..].parse().unwrap(),
        key: "k".into(),
        action,
        invoked_ns: ns(from).unwrap(),
        ended_ns: ns(to),
        nodes: vec!["n1".into()],
        outcome,
    }
}

fn version(word: &&str) -> Version {
    let value = word.trim_end_matches('\'');
    let actor = u64::from(value.bytes().next().unwrap() - b'a' + 1);
    let counter = if *word == value { 1 } else { 2 };
    Version { value: value.to_owned(), dot: Dot { actor, counter } }
}
