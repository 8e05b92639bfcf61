//! Which node may be stopped, and what a quorum means, as things are.

use crate::dynamo::layout::{Keyspace, Layout};
use crate::dynamo::node::Uid;
use std::collections::{BTreeMap, BTreeSet};

/// What would become of requests if a node stopped.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Safety {
    /// Partitions that would fall below R or W of some keyspace, and are not below now.
    pub partitions: u32,
    /// The keyspaces in which, by name.
    pub keyspaces: BTreeSet<String>,
}

impl Safety {
    /// Whether nothing would fall below.
    pub fn is_safe(&self) -> bool {
        self.partitions == 0
    }
}

/// For each of the nodes that are `up`, what would become of requests without it, all else as it is.
/// Fallbacks are not counted: that a write may be kept elsewhere for a while is no reason to stop a
/// node.
pub fn without_each(layout: &Layout, up: &BTreeSet<Uid>) -> BTreeMap<Uid, Safety> {
    let mut all: BTreeMap<Uid, Safety> = up.iter().map(|uid| (*uid, Safety::default())).collect();
    for partition in 0..layout.partitions() {
        let mut counted = BTreeSet::new();
        for keyspace in layout.keyspaces().values() {
            let live = || layout.replicas(keyspace.n, partition).filter(|it| up.contains(&it.uid));
            if live().count() != usize::from(keyspace.r.max(keyspace.w)) {
                continue; // one less is enough, or there are too few already
            }
            for member in live() {
                let Some(safety) = all.get_mut(&member.uid) else { continue };
                safety.partitions += u32::from(counted.insert(member.uid));
                safety.keyspaces.insert(keyspace.name.clone());
            }
        }
    }
    all
}

/// What R and W mean for the requests of a keyspace, as nodes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meaning {
    /// Partitions of which fewer than R replicas are up.
    pub gets_fail: u32,
    /// Of which fewer than W are.
    pub puts_fail: u32,
    /// So many more nodes may go down, whichever they are, before a get fails.
    pub gets_survive: u8,
    /// The same for a put.
    pub puts_survive: u8,
}

/// What the R and W of `keyspace` mean, were its copies where this layout has those of its N.
/// `None`: the layout has no table for that N.
pub fn meaning(layout: &Layout, keyspace: &Keyspace, up: &BTreeSet<Uid>) -> Option<Meaning> {
    layout.tables().get(&keyspace.n)?;
    let live = |p| layout.replicas(keyspace.n, p).filter(|it| up.contains(&it.uid)).count() as u8;
    let live: Vec<u8> = (0..layout.partitions()).map(live).collect();
    let below = |needed: u8| live.iter().filter(|live| **live < needed).count() as u32;
    let least = live.iter().min().copied().unwrap_or(0);
    Some(Meaning {
        gets_fail: below(keyspace.r),
        puts_fail: below(keyspace.w),
        gets_survive: least.saturating_sub(keyspace.r),
        puts_survive: least.saturating_sub(keyspace.w),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::samples::{keyspace, layout};

    #[test]
    fn of_three_nodes_one_may_stop_and_then_none() {
        let layout = layout(&[1, 1, 1], 1);
        let all: BTreeSet<Uid> = layout.members().iter().map(|member| member.uid).collect();
        assert!(without_each(&layout, &all).values().all(Safety::is_safe));
        let mut two = all.clone();
        let down = two.pop_first().unwrap();
        let without = without_each(&layout, &two);
        assert!(!without.contains_key(&down));
        for safety in without.values() {
            assert_eq!((safety.partitions, safety.keyspaces.len()), (256, 1));
        }
        let mut one = two;
        one.pop_first();
        assert!(
            without_each(&layout, &one)[one.first().unwrap()].is_safe(),
            "nothing is left to fall"
        );
    }

    #[test]
    fn a_quorum_means_what_the_worst_partition_says() {
        let layout = layout(&[1; 6], 1);
        let mut up: BTreeSet<Uid> = layout.members().iter().map(|member| member.uid).collect();
        let mut strict = keyspace("default", 3);
        (strict.r, strict.w) = (2, 3);
        let before = meaning(&layout, &strict, &up).unwrap();
        assert_eq!((before.puts_fail, before.gets_survive, before.puts_survive), (0, 1, 0));
        up.pop_first();
        let now = meaning(&layout, &strict, &up).unwrap();
        assert_eq!((now.gets_fail, now.gets_survive), (0, 0));
        assert!((100..=160).contains(&now.puts_fail), "half of all: {}", now.puts_fail);
        assert_eq!(meaning(&layout, &keyspace("default", 5), &up), None);
    }
}
