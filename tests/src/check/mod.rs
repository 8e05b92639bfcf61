//! Checkers: pure functions from a [`History`] to what is wrong with it.
//!
//! They know one thing about the store: a write takes the place of exactly what its context
//! covered. So a value may be absent only if a write that covered it is there, or one that covered
//! that, and so on; or if the chain ends in a delete, which leaves nothing to see. A put that got
//! no answer is no excuse by itself: had it taken the value's place, it or its successor would
//! show. A delete that got no answer is one, since nobody can see whether it was stored.
//!
//! Each write has a value of its own, and what a context covered is what the get or put that gave
//! it showed. Values are covered by name, and come back by dot: a write that was tried twice may
//! be stored twice, and show again when only one of the two was replaced.

pub mod c1;
pub mod c2;
pub mod c4;
pub mod c9;
mod graph;
mod sweep;

use crate::history::{History, Op};
use std::fmt;
use std::path::Path;

/// Violations that are printed; the rest are counted.
const SHOWN_MAX: usize = 20;

/// A promise that was not kept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Violation {
    /// The checker: `C1`, …
    pub check: &'static str,
    /// The key.
    pub key: String,
    /// The value; empty when it is about no single one.
    pub value: String,
    /// What is wrong, with the operations and their times.
    pub words: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} key {}: {}", self.check, self.key, self.words)
    }
}

/// All that holds for the keyspace of this history: C1 and C9; C2 and C4 if it is strict.
pub fn all(history: &History) -> Vec<Violation> {
    let mut found = c1::lost_writes(history);
    found.extend(c9::phantoms(history));
    if history.run.strict {
        found.extend(c2::regular(history));
        found.extend(c4::monotonic(history, c4::Across::Clients));
    }
    found
}

/// Ends the test if [`all`] finds anything, and then keeps the history in `dir`.
///
/// # Panics
/// With the violations, the seed, and where the history is.
pub fn expect_sound(history: &History, dir: &Path) {
    let found = all(history);
    if found.is_empty() {
        return;
    }
    let path = dir.join(format!("history-{}.jsonl", history.run.keyspace));
    let kept = match history.save(&path) {
        Ok(()) => format!("kept in {}", path.display()),
        Err(error) => format!("not kept: {error:#}"),
    };
    let (seed, keyspace) = (history.run.seed, &history.run.keyspace);
    panic!("keyspace {keyspace}, seed {seed}; the history is {kept}\n{}", listed(&found));
}

/// The first of them, a line each.
pub fn listed(found: &[Violation]) -> String {
    let shown = found.iter().take(SHOWN_MAX).map(|violation| format!("{violation}\n"));
    let rest = found.len().saturating_sub(SHOWN_MAX);
    let rest = (rest > 0).then(|| format!("and {rest} more\n"));
    shown.chain(rest).collect()
}

/// What a read returned, in words.
fn returned(read: &Op) -> String {
    let versions = read.answer().map(|answer| &answer.versions[..]).unwrap_or_default();
    let names: Vec<String> = versions.iter().map(ToString::to_string).collect();
    format!("[{}]", names.join(", "))
}

#[cfg(test)]
mod script;
