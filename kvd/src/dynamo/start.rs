//! What the members of a cluster remember of each other's starts.
//!
//! A node's own disk cannot tell that its whole directory was put back from an older copy: file and
//! database agree. Its peers can. Each keeps the newest start it saw of every other member, and a
//! node takes up its last incarnation again only once every other member has said that it saw no
//! later one. Until then, and after any doubt, it names writes under an incarnation of this start
//! alone, which costs an actor for each key written and can destroy nothing.
//!
//! A copy made while the node ran is of the very start that is remembered, and what is started on it
//! is a later one. So each peer also remembers how far the node told that its log had got, synced. A
//! start that begins with less has forgotten what it acknowledged.

use crate::dynamo::node::Incarnation;
use std::cmp::Ordering;

/// One start of a node, as it tells the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// How often the node had been started, this time included.
    pub count: u64,
    /// The incarnation this start began: tells two starts with one count apart.
    pub incarnation: Incarnation,
    /// How far its log had got by what this start found of it; 0: not told.
    pub recovered: u64,
    /// It knows that it lost data.
    pub knows_loss: bool,
}

/// The newest start of a node that a member remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// How often the node had been started.
    pub count: u64,
    /// The incarnation that start began.
    pub incarnation: Incarnation,
    /// How far its log has got, as it told: all up to there was synced.
    pub position: u64,
}

/// What a member that remembers makes of a start it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is later than all before: to be remembered before the node is answered.
    Newer,
    /// It is the one that is remembered.
    Known,
    /// The node has been started later than this, or by another copy of its directory: it has
    /// forgotten what it did since. With the count it must go beyond.
    Forgotten(u64),
    /// It is later than all before, and begins with less than the node had synced. To be told so, and
    /// not remembered before it knows: else nobody would tell it after a kill -9.
    ForgottenData,
}

/// Judges the start a node tells by the newest that is `remembered` of it.
pub fn judge(remembered: Option<Remembered>, told: Start) -> Verdict {
    let Some(remembered) = remembered else { return Verdict::Newer };
    let is_the_same = remembered.incarnation == told.incarnation;
    match remembered.count.cmp(&told.count) {
        Ordering::Equal if is_the_same => Verdict::Known,
        Ordering::Equal | Ordering::Greater => Verdict::Forgotten(remembered.count),
        Ordering::Less if forgets(remembered.position, told) => Verdict::ForgottenData,
        Ordering::Less => Verdict::Newer,
    }
}

/// Whether a later start begins with less than was synced, and does not know it.
fn forgets(position: u64, told: Start) -> bool {
    told.recovered != 0 && told.recovered < position && !told.knows_loss
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(count: u64, incarnation: u128) -> Start {
        let incarnation = Incarnation(incarnation);
        Start { count, incarnation, recovered: 70, knows_loss: false }
    }

    fn seen(count: u64, incarnation: u128) -> Option<Remembered> {
        Some(Remembered { count, incarnation: Incarnation(incarnation), position: 70 })
    }

    #[test]
    fn a_start_is_newer_known_or_forgotten() {
        assert_eq!(judge(None, start(1, 7)), Verdict::Newer);
        assert_eq!(judge(seen(1, 7), start(1, 7)), Verdict::Known);
        assert_eq!(judge(seen(1, 7), start(2, 8)), Verdict::Newer);
        assert_eq!(judge(seen(5, 7), start(2, 8)), Verdict::Forgotten(5));
        // An older copy, started as often as the directory it was taken from.
        assert_eq!(judge(seen(5, 7), start(5, 8)), Verdict::Forgotten(5));
    }

    #[test]
    fn a_later_start_with_less_than_was_synced_has_forgotten_it() {
        let less = Start { recovered: 69, ..start(2, 8) };
        assert_eq!(judge(seen(1, 7), less), Verdict::ForgottenData);
        assert_eq!(judge(seen(1, 7), Start { knows_loss: true, ..less }), Verdict::Newer);
        assert_eq!(judge(seen(1, 7), Start { recovered: 71, ..less }), Verdict::Newer);
        assert_eq!(judge(seen(1, 7), Start { recovered: 0, ..less }), Verdict::Newer, "not told");
        assert_eq!(judge(None, less), Verdict::Newer);
        // The position is of a start's whole life: while it lasts it is above what it began with.
        assert_eq!(judge(seen(2, 8), less), Verdict::Known);
    }
}
