//! When a node that lost data may vote again.
//!
//! A replica that was wiped, put back from an older copy, or whose log was damaged answers "absent"
//! for writes it once acknowledged. Counted in a quorum, it would outvote them. So its copies have no
//! vote in gets, until it is level with enough other replicas that none of those writes can be
//! missing.

use crate::dynamo::history::History;
use crate::dynamo::node::Uid;
use std::collections::BTreeSet;

/// Whether `node`, which lost data, is level: since then it has compared all it shares with each of
/// `matched`, and made it equal.
///
/// All other replicas of each of its partitions are wanted, of every set that counts: while copies
/// move, those of the newest layout alone need not have what was lost. They are not waited for to
/// have moved, since they may wait for this node to be compared with. N - W + 1 of them have any
/// write that this node acknowledged under the keyspace's W; but a request may have chosen a smaller
/// one, and one of those may have lost data too. From all of them comes all that is left.
pub fn is_level(history: &History, node: Uid, matched: &BTreeSet<Uid>) -> bool {
    history.head().keyspaces().keys().all(|keyspace| {
        (0..1 << history.bits()).all(|partition| {
            let configs = history.configs_of(*keyspace, partition);
            let ours = configs.iter().filter(|it| !it.certified && it.members.contains(&node));
            ours.flat_map(|config| config.members.iter().filter(|it| !config.lost.contains(it)))
                .all(|other| *other == node || matched.contains(other))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::{Change, Keyspace, Layout, Member, Mode};

    fn member(i: u128) -> Member {
        Member {
            uid: Uid(i),
            name: format!("n{i}"),
            address: format!("127.0.0.1:{i}"),
            zone: "z".into(),
            weight: 1,
        }
    }

    fn layout(members: u128, n: u8, w: u8) -> History {
        let keyspace = Keyspace {
            name: "default".into(),
            n,
            r: n,
            w,
            mode: Mode::Strict,
            compression: None,
            value_bytes_max: 1024,
            stamp: 1,
            generation: 0,
        };
        let members = (1..=members).map(member).collect();
        History::new(Layout::genesis("test", members, keyspace).unwrap())
    }

    fn level(layout: &History, matched: &[u128]) -> bool {
        is_level(layout, Uid(1), &matched.iter().map(|uid| Uid(*uid)).collect())
    }

    #[test]
    fn a_node_is_level_once_it_has_what_all_other_replicas_have() {
        for w in 1..=3 {
            let layout = layout(3, 3, w);
            assert!(!level(&layout, &[]) && !level(&layout, &[2]) && !level(&layout, &[3]));
            assert!(level(&layout, &[2, 3]));
        }
        assert!(!level(&layout(5, 5, 3), &[2, 3, 5]) && level(&layout(5, 5, 3), &[2, 3, 4, 5]));
        assert!(level(&layout(3, 1, 1), &[]), "nobody else has a copy");
    }

    #[test]
    fn every_partition_it_holds_has_to_be_level() {
        let layout = layout(6, 3, 2);
        assert!(!level(&layout, &[2, 3, 4, 5]), "some partition is shared with node 6");
        assert!(level(&layout, &[2, 3, 4, 5, 6]));
    }

    #[test]
    fn while_copies_move_the_old_replicas_are_wanted_too_and_the_lost_are_not() {
        let first = layout(3, 3, 1);
        let add = |history: &History, change| {
            history
                .with_child(history.head().changed(&[change], Vec::new(), None).unwrap())
                .unwrap()
        };
        let next = add(&first, Change::Add(member(4)));
        assert!(!level(&next, &[2, 4]) && !level(&next, &[2, 3]) && level(&next, &[2, 3, 4]));
        let dead = add(&next, Change::Remove { uid: Uid(3), lost: true });
        assert!(level(&dead, &[2, 4]));
        let ours = next.shared(next.head().keyspace("default").unwrap().id(), Uid(1), Uid(3));
        assert_eq!(ours.len(), 256, "what moves is shared until it has");
    }
}
