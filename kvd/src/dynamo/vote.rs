//! When a node that lost data may vote again.
//!
//! A replica that was wiped, put back from an older copy, or whose log was damaged answers "absent"
//! for writes it once acknowledged. Counted in a quorum, it would outvote them. So its copies have no
//! vote in gets, until it is level with enough other replicas that none of those writes can be
//! missing.

use crate::dynamo::layout::Layout;
use crate::dynamo::node::Uid;
use std::collections::BTreeSet;

/// Whether `node`, which lost data, is level: since then it has compared all it shares with each of
/// `matched`, and made it equal.
///
/// All other replicas of each of its partitions are wanted. N - W + 1 of them have any write that
/// this node acknowledged under the keyspace's W; but a request may have chosen a smaller one, and
/// one of those may have lost data too. From all of them comes all that is left.
pub fn is_level(layout: &Layout, node: Uid, matched: &BTreeSet<Uid>) -> bool {
    let Some(slot) = layout.slot(node) else { return true };
    let has_matched = |slot: &u16| matched.contains(&layout.members()[usize::from(*slot)].uid);
    layout.keyspaces().values().all(|keyspace| {
        let rows = (0..layout.partitions()).map(|partition| layout.row(keyspace.n, partition));
        let mut ours = rows.filter(|row| row.contains(&slot));
        ours.all(|row| row.iter().all(|other| *other == slot || has_matched(other)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::{Keyspace, Member, Mode};

    fn layout(members: u128, n: u8, w: u8) -> Layout {
        let member = |i: u128| Member {
            uid: Uid(i),
            name: format!("n{i}"),
            address: format!("127.0.0.1:{i}"),
            zone: "z".into(),
            weight: 1,
        };
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
        Layout::genesis("test", (1..=members).map(member).collect(), keyspace).unwrap()
    }

    fn level(layout: &Layout, matched: &[u128]) -> bool {
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
}
