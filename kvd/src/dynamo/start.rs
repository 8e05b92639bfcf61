//! What the members of a cluster remember of each other's starts.
//!
//! A node's own disk cannot tell that its whole directory was put back from an older copy: file and
//! database agree. Its peers can. Each keeps the newest start it saw of every other member, and a
//! node takes up its last incarnation again only once every other member has said that it saw no
//! later one. Until then, and after any doubt, it names writes under an incarnation of this start
//! alone, which costs an actor for each key written and can destroy nothing.

use crate::dynamo::node::Incarnation;

/// One start of a node, as it tells the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// How often the node had been started, this time included.
    pub count: u64,
    /// The incarnation this start began: tells two starts with one count apart.
    pub incarnation: Incarnation,
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
}

/// Judges the start a node tells by the newest that is `remembered` of it.
pub fn judge(remembered: Option<Start>, told: Start) -> Verdict {
    match remembered {
        Some(remembered) if remembered == told => Verdict::Known,
        Some(remembered) if remembered.count >= told.count => Verdict::Forgotten(remembered.count),
        _ => Verdict::Newer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(count: u64, incarnation: u128) -> Start {
        Start { count, incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn a_start_is_newer_known_or_forgotten() {
        assert_eq!(judge(None, start(1, 7)), Verdict::Newer);
        assert_eq!(judge(Some(start(1, 7)), start(1, 7)), Verdict::Known);
        assert_eq!(judge(Some(start(1, 7)), start(2, 8)), Verdict::Newer);
        assert_eq!(judge(Some(start(5, 7)), start(2, 8)), Verdict::Forgotten(5));
        // An older copy, started as often as the directory it was taken from.
        assert_eq!(judge(Some(start(5, 7)), start(5, 8)), Verdict::Forgotten(5));
    }
}
