//! Layouts as they come and go, by example and by property.

use super::*;
use crate::dynamo::layout::Change;
use crate::dynamo::layout::samples::{keyspace, layout, members};
use crate::dynamo::node::KeyspaceId;
use proptest::prelude::*;
use proto::token::Token;

fn default_id() -> KeyspaceId {
    KeyspaceId::of("default")
}

/// Three nodes, and a fourth that is not a member yet.
fn three_and_one() -> (History, Member) {
    let first = layout(&[1, 1, 1], 1);
    let mut fourth = members(&[1; 4], 1, 0);
    fourth.retain(|member| first.member(member.uid).is_none());
    (History::new(first), fourth.remove(0))
}

fn child(history: &History, change: Change) -> Layout {
    history.head().changed(&[change], Vec::new(), None).unwrap()
}

/// A node does all that it can, as if every comparison succeeded.
fn work(history: &History, me: Uid) -> History {
    let tasks = history.to_sync(me);
    let mut next = history.with_synced(me, &tasks);
    if let Some(closed) = next.with_closed(me) {
        next = closed;
    }
    if next.head().member(me).is_none() && next.left().get(&me) != Some(&next.head().id()) {
        let open = (0..1 << next.bits()).any(|p| next.holds(me, default_id(), p));
        if !open {
            next = next.with_left(me);
        }
    }
    next.settle(7);
    next
}

fn work_all(mut history: History) -> History {
    for _ in 0..8 {
        let everybody: Vec<Uid> = history.members().iter().map(|member| member.uid).collect();
        for me in everybody {
            history = work(&history, me);
        }
    }
    history
}

#[test]
fn a_node_more_is_learned_synced_flipped_and_closed() {
    let (first, fourth) = three_and_one();
    let next = first.with_child(child(&first, Change::Add(fourth.clone()))).unwrap();
    assert_eq!(next.layouts().len(), 2);
    let token = (0..256).map(|p| Token::range(p, 8).0);
    let moved = token.clone().find(|token| next.configs(default_id(), *token).len() == 2);
    let moved = moved.expect("the fourth gets something");
    let kept = token.clone().find(|token| next.configs(default_id(), *token).len() == 1);
    let kept = kept.expect("somebody keeps something");

    // Learn: who does not know the new one may not write where it matters.
    let old = first.head().id();
    assert_eq!(next.covers((old, &[]), default_id(), moved), Coverage::Stale);
    assert_eq!(next.covers((old, &[]), default_id(), kept), Coverage::Known);
    assert_eq!(first.covers((next.head().id(), &[]), default_id(), kept), Coverage::Ahead);

    // Sync: the fourth has to have it from two of the three.
    let tasks = next.to_sync(fourth.uid);
    let task = tasks.iter().find(|task| Token::range(task.partition, 8).0 == moved).unwrap();
    assert_eq!((task.needed, task.candidates.len(), task.is_new), (2, 3, true));
    assert_eq!((task.origin, task.under), (next.head().id(), old));
    let new = |history: &History| history.configs(default_id(), moved)[1].clone();
    let once = next.with_synced(fourth.uid, &tasks);
    assert!(!new(&once).flipped, "one of W=2");

    // Flip.
    let kept_by = new(&once).members.iter().copied().find(|uid| *uid != fourth.uid).unwrap();
    let twice = once.with_synced(kept_by, &once.to_sync(kept_by));
    assert!(new(&twice).flipped && !twice.configs(default_id(), moved)[0].certified);

    // Close: by those that are of the old set.
    let closed = twice.with_closed(kept_by).unwrap();
    assert_eq!(closed.may_read(kept_by, old, default_id(), moved), Coverage::Stale);
    let new_id = next.head().id();
    assert_eq!(closed.may_read(kept_by, new_id, default_id(), moved), Coverage::Known);
    let said = closed.with_closed(fourth.uid).unwrap();
    assert_eq!(said.marks(), closed.marks(), "it is of the new one alone");
    assert!(said.with_closed(fourth.uid).is_none());
    let mut leaver = first.head().members().iter().map(|it| it.uid);
    let leaver = leaver.find(|uid| !new(&twice).members.contains(uid)).unwrap();
    let closed = closed.with_closed(leaver).unwrap();
    assert!(closed.configs(default_id(), moved)[0].certified, "two of three: W");

    // Settled once everybody is done.
    let end = work_all(next);
    assert!(end.is_settled());
    assert_eq!(end.head().id(), new_id);
    assert_eq!(end.settled()[&new_id].past[0].id, old);
    assert!(end.marks().is_empty() && end.knows(old));
    assert_eq!(end.covers((old, &[]), default_id(), kept), Coverage::Stale);
}

#[test]
fn a_quorum_changes_like_a_set_of_replicas() {
    let first = History::new(layout(&[1, 1, 1], 1));
    let mut tuned = first.head().keyspace("default").unwrap().clone();
    (tuned.r, tuned.w) = (1, 3);
    let next = first.with_child(child(&first, Change::SetKeyspace(tuned))).unwrap();
    let configs = next.configs(default_id(), Token(0));
    assert_eq!(configs.len(), 2);
    assert_eq!((configs[0].r, configs[0].w, configs[1].r, configs[1].w), (2, 2, 1, 3));
    assert!(configs[0].flipped && !configs[1].flipped);
    let me = configs[0].members[0];
    let task = &next.to_sync(me)[0];
    assert_eq!((task.needed, task.is_new), (2, false));
    assert!(task.candidates.contains(&me), "it is one of them itself");
    assert!(work_all(next).is_settled());
}

#[test]
fn who_is_removed_leaves_last_and_who_is_lost_is_not_waited_for() {
    let first = History::new(layout(&[1, 1, 1, 1], 1));
    let goes = first.head().members()[1].uid;
    let next = first.with_child(child(&first, Change::Remove { uid: goes, lost: false })).unwrap();
    assert_eq!(next.members().len(), 4, "it has a part until it has given all away");
    let mut others = next.clone();
    for _ in 0..4 {
        for member in others.members().iter().filter(|member| member.uid != goes) {
            others = work(&others, member.uid);
        }
    }
    assert!(!others.is_settled());
    let end = work_all(others);
    assert!(end.is_settled() && end.members().len() == 3);

    let lost = first.with_child(child(&first, Change::Remove { uid: goes, lost: true })).unwrap();
    assert_eq!(lost.members().len(), 3);
    assert!(work_all(lost).is_settled());

    // It was to leave by itself, and died over it.
    let died = next.with_child(child(&next, Change::Remove { uid: goes, lost: true })).unwrap();
    let mut others = died;
    for _ in 0..4 {
        for member in others.members() {
            others = work(&others, member.uid);
        }
    }
    assert!(others.is_settled());
}

#[test]
fn two_sides_of_a_split_make_one_history() {
    let (first, fourth) = three_and_one();
    let left = first.with_child(child(&first, Change::Add(fourth))).unwrap();
    let right = child(&first, Change::CreateKeyspace(keyspace("k", 2)));
    let right = first.with_child(right).unwrap();
    let both = left.join(&right).unwrap();
    assert_eq!(both, right.join(&left).unwrap());
    assert_eq!(both.layouts().len(), 4);
    assert_eq!(both.head().parents().len(), 2);
    assert_eq!((both.head().members().len(), both.head().keyspaces().len()), (4, 2));
    assert_eq!(both.join(&left).unwrap(), both);
    let end = work_all(both);
    assert!(end.is_settled());
    assert_eq!(end.join(&left).unwrap().head().id(), end.head().id(), "what is late says nothing");
}

#[test]
fn a_side_that_settled_by_itself_does_not_bring_back_what_it_closed() {
    let (first, fourth) = three_and_one();
    let settled = first.with_child(child(&first, Change::Add(fourth.clone()))).unwrap();
    let settled = work_all(settled);
    assert!(settled.is_settled());
    let other = child(&first, Change::CreateKeyspace(keyspace("k", 2)));
    let other = first.with_child(other).unwrap();
    let both = settled.join(&other).unwrap();
    assert_eq!(both, other.join(&settled).unwrap());
    // Where the fourth came in, the first set is closed though the other side never heard of it.
    let moved = (0..256)
        .map(|p| Token::range(p, 8).0)
        .find(|token| settled.configs(default_id(), *token)[0].members.contains(&fourth.uid));
    let configs = both.configs(default_id(), moved.unwrap());
    assert!(configs[0].certified && !configs[0].members.contains(&fourth.uid));
    assert!(configs[1].flipped && !configs[1].certified);
    assert!(work_all(both).is_settled());
}

#[test]
fn a_layout_settles_only_once_every_member_knows_it() {
    let (first, fourth) = three_and_one();
    let change = || Change::CreateKeyspace(keyspace("k", 2));
    let one = first.with_child(child(&first, change())).unwrap();
    let me = one.head().members()[0].uid;
    let said = work(&one, me);
    assert!(!said.is_settled(), "another may just make a change of its own");
    // They do, and what they close there was closed of what this one would have begun anew.
    let mut other = first.with_child(child(&first, Change::Add(fourth))).unwrap();
    for _ in 0..8 {
        for member in other.members().iter().filter(|member| member.uid != me) {
            other = work(&other, member.uid);
        }
    }
    assert!(!other.is_settled());
    let both = said.join(&other).unwrap();
    let base = first.head().id();
    assert!(both.layouts().iter().any(|layout| layout.id() == base), "it tells what is whose");
    assert!(work_all(both).is_settled());
    assert!(work_all(said).is_settled());
}

#[test]
fn of_two_words_of_a_node_the_later_counts() {
    // Merges of the same changes by other ways: the later need not have the greater id.
    let first = History::new(layout(&[1, 1, 1, 1], 1));
    let side = |name: &str| {
        let change = Change::CreateKeyspace(keyspace(name, 2));
        first.with_child(child(&first, change)).unwrap()
    };
    let me = first.head().members()[0].uid;
    for names in ["abc", "def", "ghi", "jkl", "mno", "pqr"] {
        let [one, two, three] = [0, 1, 2].map(|at| side(&names[at..=at]));
        let early = one.join(&two).unwrap().with_closed(me).unwrap();
        let late = early.join(&three).unwrap().with_closed(me).unwrap();
        let told = late.join(&early).unwrap();
        assert!(told.has_left(me) && told == early.join(&late).unwrap());
    }
}

/// A history, with two changes of it merged, and with three by somebody who has not heard of that.
fn merges() -> (History, History, History) {
    let first = History::new(layout(&[1; 5], 1));
    let mut more = members(&[1; 8], 1, 0);
    more.retain(|member| first.head().member(member.uid).is_none());
    let side = |at: usize| first.with_child(child(&first, Change::Add(more[at].clone()))).unwrap();
    let (one, two, three) = (side(0), side(1), side(2));
    let less = one.join(&two).unwrap();
    let all = three.join(&two).unwrap().join(&one).unwrap();
    (first, less, all)
}

#[test]
fn a_merge_of_more_does_not_stand_for_a_merge_of_less_that_its_maker_did_not_know() {
    let (first, less, all) = merges();
    assert!(!all.knows(less.head().id()));
    let replica = less.join(&all).unwrap();
    assert_eq!(replica.head().id(), all.head().id());
    let me = first.head().members()[0].uid;
    let mut missed = 0;
    for token in (0..256).map(|p| Token::range(p, 8).0) {
        let told = all.configs(default_id(), token);
        let open = replica.configs(default_id(), token);
        let is_told = |config: &Config| told.iter().any(|it| it.origin == config.origin);
        if open.iter().any(|config| !config.certified && !is_told(config)) {
            missed += 1;
            let covers = replica.covers((all.head().id(), &[]), default_id(), token);
            assert_eq!(covers, Coverage::Stale);
            // Nor may it be compared with for what it has not heard of.
            let origin = open.iter().find(|config| !is_told(config)).unwrap().origin;
            let may = |history: &History, under: &Config| {
                history.may_compare(me, (origin, under.origin), default_id(), token)
            };
            assert_eq!(may(&all, &told[0]), Coverage::Ahead);
            assert_eq!(may(&replica, &open[0]), Coverage::Known);
            // Who does know them and writes to them says so: the newest layout does not tell.
            let parties = crate::dynamo::preference::parties(&replica, default_id(), token, None);
            let known = (replica.head().id(), &parties.unwrap().sets[..]);
            assert_eq!(replica.covers(known, default_id(), token), Coverage::Known);
        }
    }
    assert!(missed > 0, "it has replicas of its own somewhere");
}

#[test]
fn what_was_compared_for_a_config_that_is_anothers_by_now_is_noted_under_that() {
    let (_, less, all) = merges();
    let mut renamed = 0;
    for member in all.head().members() {
        // It began to compare before it heard of the merge of less, and has done so after.
        let tasks = all.to_sync(member.uid);
        let done = all.join(&less).unwrap().with_synced(member.uid, &tasks);
        let of_less = |((layout, ..), _): (&(LayoutId, _, _), _)| *layout == less.head().id();
        renamed += done.marks().iter().filter(|it| of_less(*it)).count();
        // Whoever is told of it notes the same: else the two would exchange layouts for ever.
        let (layouts, settled) = (done.layouts().to_vec(), done.settled().clone());
        let (marks, left) = (done.marks().clone(), done.left().clone());
        let told = History::from_parts(layouts, settled, marks, left, done.control()).unwrap();
        assert_eq!(told, done);
        assert_eq!(told.join(&done).unwrap(), done.join(&told).unwrap());
    }
    assert!(renamed > 0, "it has replicas of its own somewhere");
}

#[test]
fn a_copy_of_a_lost_replica_does_not_make_a_config_readable() {
    let mut tuned = keyspace("default", 3);
    (tuned.r, tuned.w) = (1, 3);
    let default = crate::dynamo::layout::Keyspace { name: "default".into(), ..tuned };
    let first = Layout::genesis("test", members(&[1; 5], 1, 0), default).unwrap();
    let mut more = members(&[1; 6], 1, 0);
    more.retain(|member| first.member(member.uid).is_none());
    let first = History::new(first);
    let next = first.with_child(child(&first, Change::Add(more.remove(0)))).unwrap();
    let token = (0..256).map(|p| Token::range(p, 8).0);
    let mut open = token.filter(|token| next.configs(default_id(), *token).len() == 2);
    let moved = open.next().expect("the sixth gets something");
    let of = |history: &History| history.configs(default_id(), moved)[1].clone();
    let [dies, synced, empty] = of(&next).members[..] else { panic!("N is 3") };
    let next = next.with_synced(dies, &next.to_sync(dies));
    let next = next.with_synced(synced, &next.to_sync(synced));
    assert!(!of(&next).flipped);
    let next = next.with_child(child(&next, Change::Remove { uid: dies, lost: true })).unwrap();
    assert_eq!(of(&next).write_quorum(3), 2);
    assert!(!of(&next).flipped, "R=1 might ask the one that has nothing");
    let next = next.with_synced(empty, &next.to_sync(empty));
    assert!(of(&next).flipped);
}

#[test]
fn too_many_at_once_are_refused_but_a_removal_is_not() {
    let mut history = History::new(layout(&[1, 1, 1, 1], 1));
    for i in 1..OPEN_MAX {
        let keyspace = keyspace(&format!("k{i}"), 3);
        history = history.with_child(child(&history, Change::CreateKeyspace(keyspace))).unwrap();
    }
    let more = child(&history, Change::CreateKeyspace(keyspace("more", 3)));
    assert!(matches!(history.with_child(more), Err(HistoryError::TooMany { found: 17, .. })));
    let uid = history.head().members()[0].uid;
    let removal = child(&history, Change::Remove { uid, lost: true });
    assert!(history.with_child(removal).is_ok());
    // A node that came back elsewhere has to be found; there is an end to that too.
    let mut elsewhere = history.head().members()[0].clone();
    for i in 0..=ADDRESSES_MAX - OPEN_MAX {
        elsewhere.address = format!("10.9.9.{i}:7400");
        let next = history.with_child(child(&history, Change::Set(elsewhere.clone())));
        assert_eq!(next.is_ok(), i < ADDRESSES_MAX - OPEN_MAX);
        history = next.unwrap_or(history);
    }
    let heavier = Member { weight: 2, ..elsewhere };
    let heavier = child(&history, Change::Set(heavier));
    assert!(matches!(history.with_child(heavier), Err(HistoryError::TooMany { .. })));
}

#[test]
fn a_ring_cut_finer_keeps_every_config() {
    let first = History::new(layout(&[1; 12], 3));
    let mut more = members(&[1; 13], 3, 0);
    more.retain(|member| first.head().member(member.uid).is_none());
    let next = first.with_child(child(&first, Change::Add(more.remove(0)))).unwrap();
    assert_eq!((next.head().partition_bits(), next.bits()), (9, 9));
    let mut open = 0;
    next.each_open(|_, _, _| open += 1);
    assert!((1..=140).contains(&open), "{open} of 512 move for one node in thirteen");
    assert!(work_all(next).is_settled());
}

#[test]
fn what_was_synced_stays_where_it_was_when_the_ring_is_cut_finer_meanwhile() {
    let first = History::new(layout(&[1; 12], 3));
    let mut more = members(&[1; 13], 3, 0);
    more.retain(|member| first.head().member(member.uid).is_none());
    let mut tuned = first.head().keyspace("default").unwrap().clone();
    (tuned.r, tuned.w) = (1, 3);
    let next = first.with_child(child(&first, Change::SetKeyspace(tuned))).unwrap();
    let me = next.head().members()[0].uid;
    let task = next.to_sync(me).into_iter().find(|task| task.partition > 1).unwrap();
    // It compares, and learns of a node more while it does.
    let finer = next.with_child(child(&next, Change::Add(more.remove(0)))).unwrap();
    assert_eq!((next.bits(), finer.bits()), (8, 9));
    let done = finer.with_synced(me, std::slice::from_ref(&task));
    for partition in 0..512 {
        let configs = done.configs_of(default_id(), partition);
        let config = configs.iter().find(|config| config.origin == task.origin).unwrap();
        let is_there = config.synced.contains(&me);
        assert_eq!(is_there, partition / 2 == task.partition, "{partition} of {task:?}");
    }
}

#[test]
fn a_config_that_nobody_is_left_of_is_not_waited_for() {
    let default = crate::dynamo::layout::Keyspace { n: 1, r: 1, w: 1, ..keyspace("default", 3) };
    let first = Layout::genesis("test", members(&[1; 4], 1, 0), default.clone()).unwrap();
    let first = History::new(first);
    let dies = first.head().members()[1].uid;
    let lost = first.with_child(child(&first, Change::Remove { uid: dies, lost: true })).unwrap();
    assert!(work_all(lost.clone()).is_settled());
    // Of two that are both gone.
    let two = crate::dynamo::layout::Keyspace { n: 2, r: 1, w: 2, ..default };
    let first = Layout::genesis("test", members(&[1; 4], 1, 0), two).unwrap();
    let mut history = History::new(first);
    for at in [1, 0] {
        let uid = history.head().members()[at].uid;
        let dies = child(&history, Change::Remove { uid, lost: true });
        history = history.with_child(dies).unwrap();
    }
    assert!(work_all(history).is_settled());
}

#[test]
fn a_copy_comes_from_a_set_that_is_whole_before_one_that_lost_too_many() {
    let default = crate::dynamo::layout::Keyspace { n: 1, r: 1, w: 1, ..keyspace("default", 3) };
    let first = Layout::genesis("test", members(&[1; 3], 1, 0), default).unwrap();
    let mut more = members(&[1; 4], 1, 0);
    more.retain(|member| first.member(member.uid).is_none());
    let first = History::new(first);
    let fourth = more.remove(0);
    let next = first.with_child(child(&first, Change::Add(fourth.clone()))).unwrap();
    // It has its copies, they may be read, and the old ones are not closed: then it dies.
    let flipped = next.with_synced(fourth.uid, &next.to_sync(fourth.uid));
    let dies = Change::Remove { uid: fourth.uid, lost: true };
    let dead = flipped.with_child(child(&flipped, dies)).unwrap();
    let mut again = 0;
    for member in dead.head().members() {
        for task in dead.to_sync(member.uid) {
            let token = Token::range(task.partition, task.bits).0;
            let old = &dead.configs(default_id(), token)[0];
            assert_eq!((task.under, task.needed), (old.origin, 1), "{task:?}");
            again += 1;
        }
    }
    assert!(again > 0, "somebody takes over what the fourth had");
    assert!(work_all(dead).is_settled());
}

#[test]
fn orders_for_moves_are_joined_alike_and_end_with_what_they_were_given_for() {
    let (first, fourth) = three_and_one();
    let open = first.with_child(child(&first, Change::Add(fourth))).unwrap();
    let (paused, slow) = (open.with_control(Some(true), None), open.with_control(None, Some(7)));
    let both = paused.join(&slow).unwrap();
    assert_eq!(both, slow.join(&paused).unwrap());
    assert_eq!(both.control(), both.join(&slow).unwrap().join(&paused).unwrap().control());
    // What is said while nothing is under way is for what comes next.
    let ahead = first.with_control(None, Some(7));
    assert_eq!(ahead.join(&first).unwrap().control().bytes_per_second, Some(7));
    let end = work_all(both.clone());
    assert!(end.is_settled());
    let control = end.control();
    assert_eq!((control.paused, control.bytes_per_second), (false, None));
    assert_eq!(end.join(&both).unwrap().control(), control, "what is late says nothing");
}

#[test]
fn who_is_removed_by_most_of_those_that_stay_is_gone_however_many_leave() {
    let first = History::new(layout(&[1; 5], 1));
    let uids: Vec<Uid> = first.head().members().iter().map(|member| member.uid).collect();
    let leave = uids[2..].iter().map(|uid| Change::Remove { uid: *uid, lost: false });
    let leave: Vec<Change> = leave.collect();
    let mut default = first.head().keyspace("default").unwrap().clone();
    (default.n, default.r, default.w) = (2, 1, 2);
    let mut changes = vec![Change::SetKeyspace(default)];
    changes.extend(leave);
    let two = first.with_child(first.head().changed(&changes, Vec::new(), None).unwrap()).unwrap();
    let told = |at: &[usize]| at.iter().map(|at| uids[*at]).collect::<BTreeSet<Uid>>();
    assert!(two.is_removed_by(uids[4], &told(&[0, 1])), "the two who stay say so");
    assert!(!two.is_removed_by(uids[4], &told(&[0])), "one alone may not know");
    assert!(!two.is_removed_by(uids[4], &told(&[2, 3])), "they leave themselves");
    // Who has not heard of it counts all it knows of.
    assert!(!first.is_removed_by(uids[4], &told(&[0, 1])));
    assert!(first.is_removed_by(uids[4], &told(&[0, 1, 2])));
    assert!(!first.is_removed_by(uids[4], &told(&[])));
}

#[test]
fn a_keyspace_made_on_two_sides_takes_what_both_have() {
    let first = History::new(layout(&[1; 4], 1));
    let side = |r: u8, w: u8| {
        let made = crate::dynamo::layout::Keyspace { r, w, ..keyspace("k", 3) };
        first.with_child(child(&first, Change::CreateKeyspace(made))).unwrap()
    };
    let (left, right) = (side(2, 2), side(1, 3));
    let both = left.join(&right).unwrap();
    let id = both.head().keyspace("k").unwrap().id();
    let me = both.head().members()[0].uid;
    let tasks: Vec<SyncTask> =
        both.to_sync(me).into_iter().filter(|task| task.keyspace == id).collect();
    assert!(!tasks.is_empty());
    for task in &tasks {
        let mut from: Vec<LayoutId> = task.also.iter().map(|source| source.under).collect();
        from.push(task.under);
        let made = BTreeSet::from([left.head().id(), right.head().id()]);
        assert_eq!(from.into_iter().collect::<BTreeSet<_>>(), made);
        assert!(task.also.iter().all(|source| source.needed > 0));
    }
    assert!(both.to_sync(me).iter().all(|task| task.keyspace == id || task.also.is_empty()));
    assert!(work_all(both).is_settled());
}

#[test]
fn many_nodes_that_change_something_at_once_come_together() {
    // Each hears of the others' changes one by one, in another order, and merges as it does.
    let first = History::new(layout(&[1; 3], 1));
    let side = |at: usize| {
        let change = Change::CreateKeyspace(keyspace(&format!("k{at}"), 3));
        first.with_child(child(&first, change)).unwrap()
    };
    let nodes = 11;
    let sides: Vec<History> = (0..nodes).map(side).collect();
    let heard = |me: usize| {
        let stride = 1 + me % (nodes - 1); // 11 is prime: each once
        let order = (1..nodes).map(|step| (me + step * stride) % nodes);
        order.fold(sides[me].clone(), |all, at| all.join(&sides[at]).unwrap())
    };
    let mut all = heard(0);
    for me in 1..nodes {
        all = all.join(&heard(me)).unwrap();
    }
    assert!(all.layouts().len() > 64, "{} layouts", all.layouts().len());
    assert!((0..nodes).all(|me| heard(me).head().id() == all.head().id()));
    assert!(work_all(all).is_settled());
}

#[test]
fn who_gives_its_copy_up_is_no_replica_to_give_it_one() {
    let (first, fourth) = three_and_one();
    let next = first.with_child(child(&first, Change::Add(fourth.clone()))).unwrap();
    let token = |part: &Part| Token::range(part.1, 8).0;
    let moved = next.open_parts().iter().map(token).next().unwrap();
    let old = next.configs(default_id(), moved)[0].members.clone();
    let new = next.configs(default_id(), moved)[1].members.clone();
    let leaver = *old.iter().find(|uid| !new.contains(uid)).unwrap();
    let foreign = |history: &History, uid| history.is_foreign(uid, default_id(), moved);
    assert!(!foreign(&next, leaver), "it is read still");
    assert!(foreign(&first, fourth.uid) && !foreign(&next, fourth.uid));
    let end = work_all(next);
    assert!(foreign(&end, leaver) && new.iter().all(|uid| !foreign(&end, *uid)));
    // Of a keyspace it has not heard of it cannot tell.
    assert!(!end.is_foreign(leaver, KeyspaceId(7), moved));
}

#[test]
fn any_number_of_changes_at_once_is_merged() {
    let first = History::new(layout(&[1; 3], 1));
    let side = |at: usize| {
        let change = Change::CreateKeyspace(keyspace(&format!("k{at}"), 3));
        first.with_child(child(&first, change)).unwrap()
    };
    let sides: Vec<History> = (0..PARENTS_MAX + 4).map(side).collect();
    let all = |order: &mut dyn Iterator<Item = &History>| {
        let first = order.next().unwrap().clone();
        order.fold(first, |all, one| all.join(one).unwrap())
    };
    let layouts = sides.iter().flat_map(|it| it.layouts().iter().cloned()).collect();
    let settled = first.settled().clone();
    let (marks, left, control) = Default::default();
    let at_once = History::from_parts(layouts, settled, marks, left, control).unwrap();
    assert_eq!(at_once.head().keyspaces().len(), sides.len() + 1);
    let (up, down) = (all(&mut sides.iter()), all(&mut sides.iter().rev()));
    let both = up.join(&down).unwrap();
    assert_eq!(both, down.join(&up).unwrap());
    assert_eq!(both.head().keyspaces().len(), sides.len() + 1);
    assert!(work_all(both.join(&at_once).unwrap()).is_settled());
}

#[test]
fn parts_are_a_set_at_any_fineness() {
    let mut parts = Parts::default();
    assert!(parts.insert(8, 3) && !parts.insert(8, 3));
    assert!(parts.has(8, 3) && parts.has(9, 6) && parts.has(9, 7) && !parts.has(9, 8));
    assert!(!parts.has(7, 1), "only half of it");
    assert!(parts.insert(9, 4) && parts.has(9, 4) && !parts.has(8, 2) && parts.has(8, 3));
    assert!(parts.insert(8, 2) && parts.has(7, 1));
    assert_eq!(Parts::from_bytes(9, parts.as_bytes()), Some(parts));
    assert_eq!(Parts::from_bytes(9, &[1, 2, 3]), None);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Create { node: usize, number: u8 },
    Remove { node: usize, which: usize },
    Steer { node: usize, paused: bool, rate: Option<u64> },
    Work { node: usize },
    Tell { from: usize, to: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0usize..5, 0u8..4).prop_map(|(node, number)| Event::Create { node, number }),
        (0usize..5, 0usize..5).prop_map(|(node, which)| Event::Remove { node, which }),
        (0usize..5, any::<bool>(), prop::option::of(1u64..3))
            .prop_map(|(node, paused, rate)| Event::Steer { node, paused, rate }),
        (0usize..5).prop_map(|node| Event::Work { node }),
        (0usize..5, 0usize..5).prop_map(|(from, to)| Event::Tell { from, to }),
        (0usize..5, 0usize..5).prop_map(|(from, to)| Event::Tell { from, to }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn whatever_is_changed_wherever_all_end_with_one_layout(
        events in prop::collection::vec(event(), 0..14)
    ) {
        let first = History::new(layout(&[1; 5], 2));
        let uids: Vec<Uid> = first.head().members().iter().map(|member| member.uid).collect();
        let mut nodes = vec![first; 5];
        for event in events {
            match event {
                Event::Create { node, number } => {
                    let change = Change::CreateKeyspace(keyspace(&format!("k{number}"), 1 + number));
                    if let Ok(child) = nodes[node].head().changed(&[change], vec![node as u8], None) {
                        nodes[node] = nodes[node].with_child(child).unwrap();
                    }
                }
                Event::Remove { node, which } => {
                    let change = Change::Remove { uid: uids[which], lost: false };
                    if let Ok(child) = nodes[node].head().changed(&[change], vec![node as u8], None) {
                        nodes[node] = nodes[node].with_child(child).unwrap();
                    }
                }
                Event::Steer { node, paused, rate } => {
                    nodes[node] = nodes[node].with_control(Some(paused), rate);
                }
                Event::Work { node } => nodes[node] = work(&nodes[node], uids[node]),
                Event::Tell { from, to } => {
                    let joined = nodes[to].join(&nodes[from]).unwrap();
                    prop_assert_eq!(&joined, &nodes[from].join(&nodes[to]).unwrap());
                    prop_assert_eq!(&joined.join(&nodes[from]).unwrap(), &joined);
                    prop_assert_eq!(&joined.join(&nodes[to]).unwrap(), &joined);
                    nodes[to] = joined;
                }
            }
        }
        for round in 0..30 {
            for to in 0..5 {
                for from in 0..5 {
                    nodes[to] = nodes[to].join(&nodes[from]).unwrap();
                }
            }
            if nodes.iter().all(|it| *it == nodes[0]) && nodes[0].is_settled() {
                return Ok(());
            }
            for node in 0..5 {
                nodes[node] = work(&nodes[node], uids[node]);
            }
            prop_assert!(round < 29, "no end: {} layouts", nodes[0].layouts().len());
        }
    }
}
