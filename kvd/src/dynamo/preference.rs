//! The preference list of a key: the nodes that should hold it, then those that stand in.

use crate::dynamo::history::{Config, History};
use crate::dynamo::layout::Layout;
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::write::WriteSet;
use proto::token::Token;

/// Most fallbacks named. A write needs at most one for each of its N replicas, so 16 survive the
/// loss of all 7 homes and 9 fallbacks; beyond that the write fails rather than ask its way through
/// a cluster that is not there. It also bounds what a request allocates.
pub const FALLBACKS_MAX: usize = 16;

/// Whom to ask for a key, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preference {
    /// The replicas. The first coordinates, as long as it is up.
    pub homes: Vec<Uid>,
    /// Who takes a write in place of a home that is down; at most [`FALLBACKS_MAX`].
    pub fallbacks: Vec<Uid>,
}

/// The preference list of `token` in keyspaces of `n` copies, `n` being that of a keyspace of
/// `layout`.
///
/// Fallbacks are the members that are no home, in the order met walking the next rows, as Dynamo
/// walks the ring (SOSP'07, section 4.6); neighbouring partitions meet others first, so the hints
/// of a node that is down spread over many. Members that hold nothing come last, in order of uid.
pub fn preference(layout: &Layout, n: u8, token: Token) -> Preference {
    let homes = home_slots(layout, n, token);
    let fallbacks = fallbacks(layout, n, layout.partition_of(token), &homes);
    Preference { homes: uids(layout, &homes), fallbacks: uids(layout, &fallbacks) }
}

/// The homes of [`preference`] alone: all that a request needs while they are up.
///
/// They are the row of the token's partition, turned by bits of the token that do not choose the
/// partition. So the keys of a partition are coordinated by all its nodes alike, without a role
/// that a table would have to store and a planner to balance.
pub fn homes(layout: &Layout, n: u8, token: Token) -> Vec<Uid> {
    uids(layout, &home_slots(layout, n, token))
}

/// Who has a part in the requests for a key, as long as copies move or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parties {
    /// The layout whose replicas are read.
    pub under: LayoutId,
    /// Those replicas, the first in turn first, without whoever is not read there any more.
    pub read: Vec<Uid>,
    /// How many of them a read waits for.
    pub r: u8,
    /// How many of them hold what was acknowledged.
    pub w: u8,
    /// Every set of replicas that a write has to be in: those that are read come first.
    pub write: Vec<WriteSet>,
    /// The layouts that began these sets; none while nothing moves.
    pub sets: Vec<LayoutId>,
    /// All replicas of any set, those that are read first.
    pub homes: Vec<Uid>,
}

/// Who has a part in the requests for a key; `None`: no layout has the keyspace. `w`: how many
/// acknowledgements a write waits for, if not as many as its keyspace says.
///
/// A read goes to the newest config that is readable and has enough replicas left that answer
/// under it: an older one is about to be closed.
pub fn parties(
    history: &History,
    keyspace: KeyspaceId,
    token: Token,
    w: Option<u8>,
) -> Option<Parties> {
    let configs = history.configs(keyspace, token);
    let readable = || configs.iter().rev().filter(|config| config.flipped && !config.certified);
    let has_enough = |config: &&Config| config.readable().count() >= config.r.into();
    let read = readable().find(has_enough).or_else(|| readable().next()).or(configs.last())?;
    let mut order = read.members.clone();
    let turn = (token.0 as u64 % order.len() as u64) as usize;
    order.rotate_left(turn);
    let open = configs.iter().filter(|config| !config.certified && config.origin != read.origin);
    let mut homes = order.clone();
    let (mut write, mut sets) = (Vec::with_capacity(1), Vec::new());
    for config in std::iter::once(read).chain(open) {
        let members = config.members.iter().copied().filter(|uid| !config.lost.contains(uid));
        let members: Vec<Uid> = members.collect();
        homes.extend(members.iter().filter(|uid| !homes.contains(uid)).collect::<Vec<_>>());
        write.push(WriteSet { members, needed: config.write_quorum(w.unwrap_or(config.w)) });
        if !history.is_settled() {
            sets.push(config.origin);
        }
    }
    homes.retain(|uid| !read.lost.contains(uid));
    order.retain(|uid| !read.closed.contains(uid) && !read.lost.contains(uid));
    let there = (read.members.len() - read.lost.len()) as u8;
    let (r, w) = (read.r.min(there), write[0].needed);
    Some(Parties { under: read.origin, read: order, r, w, write, sets, homes })
}

/// Who takes a write in place of these homes, in order; at most [`FALLBACKS_MAX`], and nobody if the
/// layout has no such keyspace. As many copies as it has *there* say who: a request may have begun
/// when it had more or fewer.
pub fn stand_ins(layout: &Layout, keyspace: KeyspaceId, token: Token, homes: &[Uid]) -> Vec<Uid> {
    let Some(n) = layout.keyspace_by_id(keyspace).map(|keyspace| keyspace.n) else {
        return Vec::new();
    };
    let homes: Vec<u16> = homes.iter().filter_map(|uid| layout.slot(*uid)).collect();
    uids(layout, &fallbacks(layout, n, layout.partition_of(token), &homes))
}

fn home_slots(layout: &Layout, n: u8, token: Token) -> Vec<u16> {
    let mut homes = layout.row(n, layout.partition_of(token)).to_vec();
    homes.rotate_left((token.0 as u64 % u64::from(n)) as usize);
    homes
}

fn uids(layout: &Layout, slots: &[u16]) -> Vec<Uid> {
    slots.iter().map(|&slot| layout.members()[usize::from(slot)].uid).collect()
}

fn fallbacks(layout: &Layout, n: u8, partition: u32, homes: &[u16]) -> Vec<u16> {
    let others = layout.members().len().saturating_sub(homes.len());
    let wanted = others.min(FALLBACKS_MAX);
    let q = layout.partitions();
    let walked = (1..q).flat_map(|step| layout.row(n, (partition + step) % q).iter().copied());
    let rest = 0..layout.members().len() as u16;
    let mut found = Vec::with_capacity(wanted);
    for slot in walked.chain(rest) {
        // Checked first: where every member is a home, nothing is walked.
        if found.len() == wanted {
            break;
        }
        if !homes.contains(&slot) && !found.contains(&slot) {
            found.push(slot);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::Keyspace;
    use crate::dynamo::layout::samples::layout;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn three_nodes_are_all_homes_and_nobody_is_left_to_fall_back_to() {
        let layout = layout(&[1, 1, 1], 1);
        let list = preference(&layout, 3, Token::of(b"user:42"));
        let all: Vec<Uid> = layout.members().iter().map(|member| member.uid).collect();
        let homes: BTreeSet<Uid> = list.homes.iter().copied().collect();
        assert!(homes.iter().eq(&all));
        assert_eq!(list.fallbacks, []);
    }

    #[test]
    fn the_first_place_follows_the_load_of_replicas() {
        let layout = layout(&[1, 2, 3, 4, 5, 6, 7, 8], 3);
        let keys: u64 = 100_000;
        let mut first: BTreeMap<Uid, u64> = BTreeMap::new();
        for key in 0..keys {
            let list = preference(&layout, 3, Token::of(&key.to_be_bytes()));
            *first.entry(list.homes[0]).or_default() += 1;
        }
        let replicas = 3 << layout.partition_bits();
        for (member, copies) in layout.members().iter().zip(layout.copies(3)) {
            let expected = keys * u64::from(copies) / replicas;
            let off = first[&member.uid].abs_diff(expected);
            // Keys are chance too: they alone move the lightest by a percent or two.
            assert!(off * 100 <= expected * 5, "{}: {off} of {expected}", member.name);
        }
    }

    #[test]
    fn a_member_that_holds_nothing_still_falls_back_last() {
        let layout = layout(&[1_000_000, 1_000_000, 1_000_000, 1_000_000, 1], 1);
        let idle = layout.member_named("n4").unwrap().uid;
        assert_eq!(layout.copies(3)[usize::from(layout.slot(idle).unwrap())], 0);
        let list = preference(&layout, 3, Token::of(b"k"));
        assert_eq!((list.fallbacks.len(), list.fallbacks[1]), (2, idle));
    }

    #[test]
    fn who_stands_in_is_for_the_newest_layout_to_say() {
        use crate::dynamo::layout::{Change, DEFAULT_KEYSPACE};
        let before = layout(&[1; 8], 1);
        let default = before.keyspace(DEFAULT_KEYSPACE).unwrap().clone();
        let (id, token) = (default.id(), Token::of(b"k"));
        // A write set out when there were three copies, and has learned that there are five.
        let change = Change::SetKeyspace(Keyspace { n: 5, r: 3, w: 3, ..default });
        let after = before.changed(&[change], Vec::new(), None).unwrap();
        assert!(!after.tables().contains_key(&3));
        let history = History::new(before).with_child(after).unwrap();
        let homes = parties(&history, id, token, None).unwrap().homes;
        let others = stand_ins(history.head(), id, token, &homes);
        assert_eq!(others.len(), 8 - homes.len());
        assert!(others.iter().all(|uid| !homes.contains(uid)));
        let gone = history.head().changed(&[Change::DropKeyspace(id)], Vec::new(), None);
        assert!(gone.is_err(), "the default stays");
        assert_eq!(stand_ins(history.head(), KeyspaceId(7), token, &homes), []);
    }

    #[test]
    fn fallbacks_follow_the_next_rows_and_stop_at_the_bound() {
        let layout = layout(&[1; 40], 5);
        let list = preference(&layout, 3, Token(0));
        assert_eq!(list.fallbacks.len(), FALLBACKS_MAX);
        let mut met = layout.replicas(3, 1).map(|member| member.uid);
        let next = met.find(|uid| !list.homes.contains(uid));
        assert!(next.is_none_or(|next| next == list.fallbacks[0]));
    }

    #[test]
    fn the_fallbacks_of_a_node_are_many() {
        let layout = layout(&[1; 12], 3);
        let down = layout.members()[0].uid;
        let mut stand_ins = BTreeSet::new();
        for partition in 0..layout.partitions() {
            let (token, _) = Token::range(partition, layout.partition_bits());
            let list = preference(&layout, 3, token);
            if list.homes.contains(&down) {
                stand_ins.insert(list.fallbacks[0]);
            }
        }
        assert_eq!(stand_ins.len(), 11);
    }

    proptest! {
        #[test]
        fn homes_are_the_row_and_fallbacks_are_others(
            weights in prop::collection::vec(1u32..=8, 3..=30),
            zones in 1usize..=5,
            token: u128,
        ) {
            let layout = layout(&weights, zones);
            let list = preference(&layout, 3, Token(token));
            let partition = layout.partition_of(Token(token));
            let row: BTreeSet<Uid> = layout.replicas(3, partition).map(|m| m.uid).collect();
            let homes: BTreeSet<Uid> = list.homes.iter().copied().collect();
            prop_assert_eq!(list.homes.len(), 3);
            prop_assert_eq!(&homes, &row);
            let fallbacks: BTreeSet<Uid> = list.fallbacks.iter().copied().collect();
            prop_assert_eq!(fallbacks.len(), list.fallbacks.len());
            prop_assert_eq!(fallbacks.len(), FALLBACKS_MAX.min(weights.len() - 3));
            prop_assert!(fallbacks.is_disjoint(&homes));
            prop_assert_eq!(list, preference(&layout.clone(), 3, Token(token)));
        }
    }
}
