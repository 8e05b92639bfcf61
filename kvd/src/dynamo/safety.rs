//! Which node may be stopped, what a quorum means, and what goes with nodes that are dead, as things
//! are: while copies move, by every set of replicas that requests have to heed.

use crate::dynamo::history::History;
use crate::dynamo::layout::{Keyspace, Layout, Mode};
use crate::dynamo::node::{KeyspaceId, Uid};
use crate::dynamo::preference::{self, Parties};
use proto::token::Token;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that are there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Present {
    /// Those that are up.
    pub up: BTreeSet<Uid>,
    /// Of them, those that have not lost data, or are level again.
    pub voting: BTreeSet<Uid>,
}

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

/// Replicas of a partition that are there.
struct Live {
    /// Those that are read and count, and how many have to.
    readers: Vec<Uid>,
    r: usize,
    /// Of every set that is written to, those that take it, and how many have to.
    writers: Vec<(Vec<Uid>, usize)>,
}

/// Of each partition of a keyspace, who is there. `keyspace`: as the newest layout has it, or with
/// another R and W.
fn live<'a>(
    history: &'a History,
    keyspace: &'a Keyspace,
    present: &'a Present,
) -> impl Iterator<Item = Live> + 'a {
    let (id, bits, head) = (keyspace.id(), history.bits(), history.head());
    let counts = match keyspace.mode {
        Mode::Strict => &present.voting,
        // What one without a vote holds counts there.
        Mode::Sloppy => &present.up,
    };
    let asked = |it: &Keyspace| (it.r, it.w);
    let as_it_is = head.keyspace_by_id(id).is_some_and(|it| asked(it) == asked(keyspace));
    let one = |row: &[Uid]| Live {
        readers: row.iter().copied().filter(|uid| counts.contains(uid)).collect(),
        r: keyspace.r.into(),
        writers: vec![(up(row, present), keyspace.w.into())],
    };
    let of = move |parties: Parties| {
        let there = parties.write[0].members.len() as u8;
        let r = if as_it_is { parties.r } else { keyspace.r.min(there) };
        let sets = parties.write.iter().map(|set| (up(&set.members, present), set.needed.into()));
        let readers = parties.read.iter().copied().filter(|uid| counts.contains(uid));
        Live { readers: readers.collect(), r: r.into(), writers: sets.collect() }
    };
    (0..1_u32 << bits).map(move |partition| {
        let token = Token::range(partition, bits).0;
        // By far the most have one set.
        if history.open_parts().binary_search(&(id, partition)).is_err() {
            let row = head.replicas(keyspace.n, head.partition_of(token));
            return one(&row.map(|member| member.uid).collect::<Vec<Uid>>());
        }
        let w = (!as_it_is).then_some(keyspace.w);
        let parties = preference::parties(history, id, token, w);
        of(parties.expect("the newest layout has the keyspace"))
    })
}

fn up(members: &[Uid], present: &Present) -> Vec<Uid> {
    members.iter().copied().filter(|uid| present.up.contains(uid)).collect()
}

/// For each of the nodes that are up, what would become of requests without it, all else as it is.
/// Fallbacks are not counted: that a write may be kept elsewhere for a while is no reason to stop a
/// node.
pub fn without_each(history: &History, present: &Present) -> BTreeMap<Uid, Safety> {
    let mut all: BTreeMap<Uid, Safety> =
        present.up.iter().map(|uid| (*uid, Safety::default())).collect();
    let mut falls: BTreeSet<(Uid, u32)> = BTreeSet::new();
    for keyspace in history.head().keyspaces().values() {
        for (partition, live) in (0..).zip(live(history, keyspace, present)) {
            // Where one more or less makes no difference nothing falls.
            let reads = Some(&live.readers).filter(|readers| readers.len() == live.r);
            let writes = live.writers.iter().filter(|(live, needed)| live.len() == *needed);
            for uid in reads.into_iter().chain(writes.map(|(live, _)| live)).flatten() {
                let Some(safety) = all.get_mut(uid) else { continue };
                safety.partitions += u32::from(falls.insert((*uid, partition)));
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

/// What the R and W of `keyspace` mean, with its copies where they are. Its N is that of the newest
/// layout.
pub fn meaning(history: &History, keyspace: &Keyspace, present: &Present) -> Meaning {
    let (writers, readers) = counted(history, keyspace, present);
    let below = |live: &[u8], needed: u8| live.iter().filter(|live| **live < needed).count() as u32;
    let least = |live: &[u8]| live.iter().min().copied().unwrap_or(0);
    Meaning {
        gets_fail: below(&readers, keyspace.r),
        puts_fail: below(&writers, keyspace.w),
        gets_survive: least(&readers).saturating_sub(keyspace.r),
        puts_survive: least(&writers).saturating_sub(keyspace.w),
    }
}

/// Of each partition of a keyspace, how many replicas take its puts, and how many answer its gets.
/// Where other sets than the newest layout's count, as many as there are above or below what they
/// need, counted from the W and R of the keyspace.
pub fn counted(history: &History, keyspace: &Keyspace, present: &Present) -> (Vec<u8>, Vec<u8>) {
    let from = |usual: u8, live: usize, needed: usize| -> u8 {
        (usize::from(usual) + live).saturating_sub(needed) as u8
    };
    let count = |live: Live| {
        let sets = live.writers.iter();
        let least = sets.map(|(live, needed)| from(keyspace.w, live.len(), *needed)).min();
        (least.unwrap_or(0), from(keyspace.r, live.readers.len(), live.r))
    };
    live(history, keyspace, present).map(count).unzip()
}

/// Of each partition of a keyspace, how many copies there are that hold what they should, on nodes
/// that are up.
pub fn copies(history: &History, keyspace: &Keyspace, up: &BTreeSet<Uid>) -> Vec<u8> {
    let present = Present { up: up.clone(), voting: up.clone() };
    live(history, keyspace, &present).map(|live| live.readers.len() as u8).collect()
}

/// Fewest copies of any partition of any keyspace on nodes that are up and not among these.
pub fn least_copies(history: &History, up: &BTreeSet<Uid>, dead: &[Uid]) -> u32 {
    let left = up.iter().copied().filter(|uid| !dead.contains(uid)).collect();
    let keyspaces = history.head().keyspaces().values();
    let least = keyspaces.flat_map(|keyspace| copies(history, keyspace, &left)).min();
    least.unwrap_or(0).into()
}

/// The same once `child` is what the newest layout is: who comes is taken to be up.
pub fn least_copies_after(
    history: &History,
    child: &Layout,
    up: &BTreeSet<Uid>,
    dead: &[Uid],
) -> u32 {
    let is_there = |uid: Uid| {
        let comes = history.head().member(uid).is_none();
        (up.contains(&uid) || comes) && !dead.contains(&uid)
    };
    let copies = |n: u8, p: u32| child.replicas(n, p).filter(|it| is_there(it.uid)).count() as u32;
    let all = child.tables().keys();
    all.flat_map(|n| (0..child.partitions()).map(move |p| copies(*n, p))).min().unwrap_or(0)
}

/// What goes with nodes that are dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loss {
    /// Partitions of which no live copy is left.
    pub gone: u32,
    /// Of which fewer replicas are left than together have every write that W of all acknowledged.
    pub thin: u32,
}

/// What goes with `dead`, by every set that may be read: the oldest may be of no account by now, as
/// its copies are gone.
pub fn loss(
    history: &History,
    keyspace: KeyspaceId,
    up: &BTreeSet<Uid>,
    dead: &BTreeSet<Uid>,
) -> Loss {
    let mut loss = Loss::default();
    for partition in 0..1_u32 << history.bits() {
        let configs = history.configs_of(keyspace, partition);
        let (mut is_hit, mut is_thin, mut is_gone) = (false, false, true);
        for config in configs.iter().filter(|config| config.flipped && !config.certified) {
            let is_left = |uid: &&Uid| !dead.contains(uid) && !config.lost.contains(uid);
            let left = config.members.iter().filter(is_left);
            is_gone &= !left.clone().any(|uid| up.contains(uid));
            if config.members.iter().any(|uid| dead.contains(uid)) {
                is_hit = true;
                is_thin |= left.count() < config.members.len() + 1 - usize::from(config.w);
            }
        }
        loss.gone += u32::from(is_hit && is_gone);
        loss.thin += u32::from(is_hit && !is_gone && is_thin);
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::samples::{keyspace, layout, members};
    use crate::dynamo::layout::{Change, Member};

    fn default_of(history: &History) -> Keyspace {
        history.head().keyspace("default").unwrap().clone()
    }

    fn all_of(history: &History) -> Present {
        let up: BTreeSet<Uid> = history.members().iter().map(|member| member.uid).collect();
        Present { voting: up.clone(), up }
    }

    fn without(present: &Present, gone: Uid) -> Present {
        let mut left = present.clone();
        left.up.remove(&gone);
        left.voting.remove(&gone);
        left
    }

    fn with_quorum(n: u8, r: u8, w: u8, nodes: usize) -> History {
        let default = Keyspace { n, r, w, mode: Mode::Strict, ..keyspace("default", 3) };
        let members = members(&vec![1; nodes], 1, 0);
        History::new(Layout::genesis("test", members, default).unwrap())
    }

    /// Three nodes with R=W=2 and a fourth just added, which has nothing yet.
    fn joining() -> (History, Member) {
        let first = layout(&[1, 1, 1], 1);
        let mut fourth = members(&[1; 4], 1, 0);
        fourth.retain(|member| first.member(member.uid).is_none());
        let fourth = fourth.remove(0);
        let first = History::new(first);
        let child = first.head().changed(&[Change::Add(fourth.clone())], Vec::new(), None);
        (first.with_child(child.unwrap()).unwrap(), fourth)
    }

    #[test]
    fn of_three_nodes_one_may_stop_and_then_none() {
        let history = History::new(layout(&[1, 1, 1], 1));
        let all = all_of(&history);
        assert!(without_each(&history, &all).values().all(Safety::is_safe));
        let down = *all.up.first().unwrap();
        let two = without(&all, down);
        let each = without_each(&history, &two);
        assert!(!each.contains_key(&down));
        for safety in each.values() {
            assert_eq!((safety.partitions, safety.keyspaces.len()), (256, 1));
        }
        let one = without(&two, *two.up.first().unwrap());
        let last = *one.up.first().unwrap();
        assert!(without_each(&history, &one)[&last].is_safe(), "nothing is left to fall");
    }

    #[test]
    fn the_smaller_quorum_may_fall_where_the_larger_has() {
        // With one of three down puts of W=3 fail already; gets of R=2 would without another.
        for (r, w) in [(2, 3), (3, 2)] {
            let history = with_quorum(3, r, w, 3);
            let all = all_of(&history);
            let two = without(&all, *all.up.first().unwrap());
            for (uid, safety) in without_each(&history, &two) {
                assert_eq!(safety.partitions, 256, "{uid}: R={r} W={w}");
            }
        }
    }

    #[test]
    fn who_has_no_vote_does_not_answer_for_another() {
        let history = History::new(layout(&[1, 1, 1], 1));
        let mut present = all_of(&history);
        let voteless = present.voting.pop_first().unwrap();
        let strict = Keyspace { mode: Mode::Strict, ..default_of(&history) };
        let asked = meaning(&history, &strict, &present);
        assert_eq!((asked.gets_survive, asked.puts_survive), (0, 1));
        let sloppy = Keyspace { mode: Mode::Sloppy, ..strict.clone() };
        assert_eq!(meaning(&history, &sloppy, &present).gets_survive, 1);
        let history = with_quorum(3, 2, 2, 3);
        for (uid, safety) in without_each(&history, &present) {
            assert_eq!(safety.is_safe(), uid == voteless, "{uid}");
        }
    }

    #[test]
    fn the_old_set_is_needed_until_it_is_closed_and_the_new_one_is_no_copy_yet() {
        let (history, fourth) = joining();
        let all = all_of(&history);
        let open = history.open_parts().len() as u32;
        let old = history.head().members().iter().find(|it| it.uid != fourth.uid).unwrap().uid;
        // Of the old set {1,2,3} with one down, writes need both others: the fourth is no help.
        let three = without(&all, old);
        let each = without_each(&history, &three);
        for (uid, safety) in &each {
            match *uid == fourth.uid {
                true => assert!(safety.partitions < open, "where the new set has two of three"),
                false => assert!(safety.partitions >= open, "{uid}: {safety:?} of {open}"),
            }
        }
        assert_eq!(least_copies(&history, &three.up, &[]), 2);
        assert_eq!(meaning(&history, &default_of(&history), &three).puts_survive, 0);
        let two = least_copies(&history, &all.up, &[old]);
        assert_eq!((two, least_copies(&history, &all.up, &[fourth.uid])), (2, 3));
    }

    #[test]
    fn fewer_copies_are_fewer_live_copies() {
        let history = with_quorum(5, 3, 3, 6);
        let fewer = Keyspace { n: 3, r: 2, w: 2, ..default_of(&history) };
        let child = history.head().changed(&[Change::SetKeyspace(fewer)], Vec::new(), None);
        let (child, up) = (child.unwrap(), all_of(&history).up);
        assert_eq!(least_copies(&history, &up, &[]), 5);
        assert_eq!(least_copies_after(&history, &child, &up, &[]), 3);
    }

    #[test]
    fn what_goes_with_the_dead_is_what_those_sets_have_that_are_read() {
        let (history, fourth) = joining();
        let id = default_of(&history).id();
        // All it got is here and its old place is closed: of N=3 W=2 two are as good as all.
        let mut moved = history.clone();
        for _ in 0..3 {
            for member in moved.members() {
                moved = moved.with_synced(member.uid, &moved.to_sync(member.uid));
                moved = moved.with_closed(member.uid).unwrap_or(moved);
            }
        }
        let up = all_of(&moved).up;
        let loss_of = |history: &History, dead: &[Uid]| {
            loss(history, id, &up, &dead.iter().copied().collect())
        };
        let of_one = Loss::default();
        assert_eq!(loss_of(&moved, &[fourth.uid]), of_one);
        let other = moved.head().members().iter().find(|it| it.uid != fourth.uid).unwrap().uid;
        let both = loss_of(&moved, &[fourth.uid, other]);
        let rows = 0..256_u32;
        let has = |uid: Uid, p: u32| moved.head().replicas(3, p).any(|it| it.uid == uid);
        let shared = rows.filter(|p| has(fourth.uid, *p) && has(other, *p)).count() as u32;
        assert_eq!((both.gone, both.thin), (0, shared));
        // Before it had anything it takes nothing with it.
        assert_eq!(loss_of(&history, &[fourth.uid]), Loss::default());
    }

    #[test]
    fn a_quorum_means_what_the_worst_partition_says() {
        let history = with_quorum(3, 2, 3, 6);
        let (strict, all) = (default_of(&history), all_of(&history));
        let before = meaning(&history, &strict, &all);
        assert_eq!((before.puts_fail, before.gets_survive, before.puts_survive), (0, 1, 0));
        let now = meaning(&history, &strict, &without(&all, *all.up.first().unwrap()));
        assert_eq!((now.gets_fail, now.gets_survive), (0, 0));
        assert!((100..=160).contains(&now.puts_fail), "half of all: {}", now.puts_fail);
        let what_if = Keyspace { r: 1, w: 1, ..strict };
        assert_eq!(meaning(&history, &what_if, &all).puts_survive, 2);
    }
}
