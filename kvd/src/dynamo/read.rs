//! One get, as a machine: it is fed replies and says whom to ask, whom to repair, and when to
//! answer. It knows no clock and sends nothing (after basho's `riak_kv_get_core`).
//!
//! It asks R replicas, one more for each that fails and for each hedge, joins what they hold, and
//! answers at R. Replicas found behind are sent the join. With blocking repair (strict keyspaces)
//! the join is on a write quorum before the answer goes out, so that what one completed get
//! returned no later one misses (the second phase of Attiya, Bar-Noy and Dolev, 1995). That holds
//! where R is at least W: copies that agree are not written back, and with a smaller R they may be
//! fewer than a write quorum.
//!
//! While copies move, a key has several sets of replicas. A get reads one; what a strict get returns
//! has to be on a write quorum of every other first, or a later one that reads there might miss it.

use crate::dynamo::node::Uid;
use crate::dynamo::object::Object;
use crate::dynamo::quorum::Quorum;
use crate::dynamo::write::WriteSet;
use std::collections::{BTreeMap, BTreeSet};

/// What a get sets out with.
#[derive(Clone, Debug)]
pub struct ReadSpec {
    /// N and R.
    pub quorum: Quorum,
    /// The key's replicas in the order they are to be asked.
    pub order: Vec<Uid>,
    /// Nodes that may keep hints for them, asked after them (none in a strict keyspace). One that
    /// keeps nothing of the key makes up the number, but is no proof that the key is absent.
    pub fallbacks: Vec<Uid>,
    /// With blocking repair: how many replicas must hold the join before the answer. `None`:
    /// repair goes on behind the answer.
    pub repair_first: Option<u8>,
    /// With blocking repair: other sets of replicas that count, and how many of each have to hold
    /// what is answered.
    pub also: Vec<WriteSet>,
}

/// What the caller is to do next. `Answer` or `Fail` comes exactly once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadStep {
    /// Ask this replica for its copy.
    Ask(Uid),
    /// Send this replica the join.
    Repair(Uid),
    /// Answer the client with the join.
    Answer,
    /// Tell the client that R cannot be met.
    Fail,
}

/// One get under way.
#[derive(Debug)]
pub struct Read {
    spec: ReadSpec,
    next: usize,
    waiting: BTreeSet<Uid>,
    copies: BTreeMap<Uid, Object>,
    failed: BTreeSet<Uid>,
    /// Of those whose copy came, homes that have no vote.
    voteless: BTreeSet<Uid>,
    /// Of those that failed, replicas whose copy is damaged: to be sent the join.
    damaged: BTreeSet<Uid>,
    joined: Object,
    repairing: BTreeSet<Uid>,
    repaired: BTreeSet<Uid>,
    /// Sets that must hold the join before the answer, once it is known.
    must_hold: Vec<WriteSet>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Asking,
    RepairingFirst,
    Over,
}

impl Read {
    /// Begins: asks the first R replicas.
    pub fn start(spec: ReadSpec) -> (Self, Vec<ReadStep>) {
        assert!(spec.order.len() >= usize::from(spec.quorum.needed), "R is at most N");
        assert!(
            spec.fallbacks.is_empty() || spec.repair_first.is_none(),
            "a strict get counts homes alone"
        );
        let mut read = Self {
            next: 0,
            waiting: BTreeSet::new(),
            copies: BTreeMap::new(),
            failed: BTreeSet::new(),
            voteless: BTreeSet::new(),
            damaged: BTreeSet::new(),
            joined: Object::default(),
            repairing: BTreeSet::new(),
            repaired: BTreeSet::new(),
            must_hold: Vec::new(),
            phase: Phase::Asking,
            spec,
        };
        let steps = (0..read.spec.quorum.needed).flat_map(|_| read.ask_next()).collect();
        (read, steps)
    }

    /// A replica's copy came. An absent key is an empty object.
    pub fn reply(&mut self, from: Uid, copy: Object) -> Vec<ReadStep> {
        if !self.waiting.remove(&from) {
            return Vec::new();
        }
        // While the join is being brought to a write quorum it must not grow: what is answered has
        // to be what those replicas were sent.
        if self.phase != Phase::RepairingFirst {
            self.joined.merge(&copy);
        }
        self.copies.insert(from, copy);
        match self.phase {
            Phase::Asking if self.is_met() => self.quorum_met(),
            Phase::Over => self.repair_behind(),
            Phase::RepairingFirst => self.repair_until_quorum(),
            // None that can tell made up the number, and none has anything.
            Phase::Asking if self.waiting.is_empty() && self.is_number_there() => {
                match self.ask_next() {
                    none if none.is_empty() => self.end(ReadStep::Fail),
                    another => another,
                }
            }
            Phase::Asking => Vec::new(),
        }
    }

    /// The copy of a replica that has no vote came: it lost data, and what it holds is right but
    /// may not be all. In a strict keyspace it counts for nothing. In a sloppy one it counts as a
    /// fallback's: it is no proof that the key is absent.
    pub fn reply_without_vote(&mut self, from: Uid, copy: Object) -> Vec<ReadStep> {
        if self.waiting.contains(&from) {
            self.voteless.insert(from);
        }
        match self.spec.repair_first {
            None => self.reply(from, copy),
            Some(_) => self.fail(from),
        }
    }

    /// A replica did not answer, or said that it cannot.
    pub fn fail(&mut self, from: Uid) -> Vec<ReadStep> {
        if !self.waiting.remove(&from) {
            return Vec::new();
        }
        // One without a vote can still be sent the join.
        if !self.voteless.contains(&from) {
            self.failed.insert(from);
        }
        if self.phase != Phase::Asking {
            return Vec::new();
        }
        let steps = self.ask_next();
        let possible = self.copies.len() + self.waiting.len();
        let over = self.waiting.is_empty() && !self.is_met();
        if possible < usize::from(self.spec.quorum.needed) || over {
            self.end(ReadStep::Fail)
        } else {
            steps
        }
    }

    /// A replica's copy failed its checksum. It has no vote: taken for an absent key it could
    /// outvote a value. It is sent the join once there is one.
    pub fn damaged(&mut self, from: Uid) -> Vec<ReadStep> {
        if !self.waiting.contains(&from) {
            return Vec::new();
        }
        self.damaged.insert(from);
        let mut steps = self.fail(from);
        if self.phase == Phase::Over && !self.copies.is_empty() {
            steps.extend(self.repair_behind());
        }
        steps
    }

    /// Those asked, or being repaired, take long: turns to one more.
    pub fn hedge(&mut self) -> Vec<ReadStep> {
        match self.phase {
            Phase::Asking if self.next < self.spec.order.len() => self.ask_next(),
            Phase::RepairingFirst => {
                let all: Vec<Uid> =
                    self.must_hold.iter().flat_map(|set| set.members.clone()).collect();
                self.repair_idle(1, &all)
            }
            Phase::Asking => Vec::new(),
            Phase::Over => Vec::new(),
        }
    }

    /// A replica has the join on disk, or could not take it.
    pub fn repair_ended(&mut self, on: Uid, stored: bool) -> Vec<ReadStep> {
        self.repairing.remove(&on);
        if stored {
            self.repaired.insert(on);
        } else {
            self.failed.insert(on);
        }
        if self.phase != Phase::RepairingFirst {
            return Vec::new();
        }
        if stored {
            self.copies.insert(on, self.joined.clone());
        }
        self.repair_until_quorum()
    }

    /// The deadline passed.
    pub fn expire(&mut self) -> Vec<ReadStep> {
        self.end(ReadStep::Fail)
    }

    /// The join of every copy that came.
    pub fn joined(&self) -> &Object {
        &self.joined
    }

    /// The copies that came, each as its replica sent it (or, once repaired, the join).
    pub fn copies(&self) -> &BTreeMap<Uid, Object> {
        &self.copies
    }

    /// Replicas that were sent the join and stored it.
    pub fn repaired(&self) -> &BTreeSet<Uid> {
        &self.repaired
    }

    /// Replicas that were asked and have not answered.
    pub fn waiting(&self) -> &BTreeSet<Uid> {
        &self.waiting
    }

    /// Replicas that hold the join.
    pub fn holding(&self) -> impl Iterator<Item = Uid> {
        self.copies.iter().filter(|(_, copy)| copy.agrees_with(&self.joined)).map(|(uid, _)| *uid)
    }

    /// Replicas being sent the join.
    pub fn repairing(&self) -> &BTreeSet<Uid> {
        &self.repairing
    }

    /// Whether nothing more can come of it: answered, and no reply or repair outstanding.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over && self.waiting.is_empty() && self.repairing.is_empty()
    }

    fn ask_next(&mut self) -> Vec<ReadStep> {
        let mut nodes = self.spec.order.iter().chain(&self.spec.fallbacks);
        let Some(&node) = nodes.nth(self.next) else {
            return Vec::new();
        };
        self.next += 1;
        self.waiting.insert(node);
        vec![ReadStep::Ask(node)]
    }

    fn end(&mut self, step: ReadStep) -> Vec<ReadStep> {
        if self.phase == Phase::Over {
            return Vec::new();
        }
        self.phase = Phase::Over;
        vec![step]
    }

    fn quorum_met(&mut self) -> Vec<ReadStep> {
        let all_agree = self.behind().next().is_none();
        if let Some(needed) = self.spec.repair_first {
            if !all_agree {
                let members = self.spec.order.clone();
                self.must_hold.push(WriteSet { members, needed });
            }
            if !self.joined.clock().is_empty() {
                self.must_hold.extend(self.spec.also.iter().cloned());
            }
        }
        if !self.must_hold.is_empty() {
            self.phase = Phase::RepairingFirst;
            return self.repair_until_quorum();
        }
        let mut steps = self.end(ReadStep::Answer);
        steps.extend(self.repair_behind());
        steps
    }

    fn is_number_there(&self) -> bool {
        self.copies.len() >= usize::from(self.spec.quorum.needed)
    }

    /// R answered, and if nobody has the key, a home that votes is among those who say so.
    fn is_met(&self) -> bool {
        let votes = |uid: &Uid| self.spec.order.contains(uid) && !self.voteless.contains(uid);
        let of_home = || self.copies.keys().any(votes);
        self.is_number_there() && (!self.joined.clock().is_empty() || of_home())
    }

    /// Homes whose copy lacks something of the join.
    fn behind(&self) -> impl Iterator<Item = Uid> {
        let behind = self.copies.iter().filter(|(_, copy)| !copy.agrees_with(&self.joined));
        behind.map(|(uid, _)| *uid).filter(|uid| self.spec.order.contains(uid))
    }

    fn repair_behind(&mut self) -> Vec<ReadStep> {
        let damaged = std::mem::take(&mut self.damaged);
        let behind = self.behind().filter(|uid| !self.failed.contains(uid)).chain(damaged);
        let behind: Vec<Uid> = behind.filter(|uid| !self.repairing.contains(uid)).collect();
        self.repairing.extend(&behind);
        behind.into_iter().map(ReadStep::Repair).collect()
    }

    /// Brings the join to a write quorum of each set: first those found behind, then, as far as
    /// needed, those not asked yet.
    fn repair_until_quorum(&mut self) -> Vec<ReadStep> {
        let mut steps = self.repair_behind();
        let (mut met, mut possible) = (true, true);
        for set in self.must_hold.clone() {
            let needed = usize::from(set.needed);
            let holding = self.holding().filter(|uid| set.members.contains(uid)).count();
            if holding >= needed {
                continue;
            }
            met = false;
            let under_way = self.repairing.iter().filter(|uid| set.members.contains(uid)).count();
            let more = needed.saturating_sub(holding + under_way);
            let idle = self.repair_idle(more, &set.members);
            possible &= idle.len() >= more;
            steps.extend(idle);
        }
        match () {
            () if met => steps.extend(self.end(ReadStep::Answer)),
            () if !possible => steps.extend(self.end(ReadStep::Fail)),
            () => {}
        }
        steps
    }

    /// Sends the join to as many of these replicas that neither hold it nor are being sent it.
    fn repair_idle(&mut self, count: usize, among: &[Uid]) -> Vec<ReadStep> {
        let busy = |uid: &Uid| {
            self.copies.contains_key(uid)
                || self.repairing.contains(uid)
                || self.failed.contains(uid)
        };
        let idle: Vec<Uid> = among.iter().copied().filter(|uid| !busy(uid)).take(count).collect();
        self.repairing.extend(&idle);
        idle.into_iter().map(ReadStep::Repair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::clock::Counter;
    use crate::dynamo::node::RequestId;
    use crate::dynamo::object::Record;
    use crate::dynamo::value::Value;
    use crate::dynamo::version::{Actor, Clock, Dot};
    use proptest::prelude::*;

    const A: Uid = Uid(1);
    const B: Uid = Uid(2);
    const C: Uid = Uid(3);

    fn start(r: u8, repair_first: Option<u8>) -> (Read, Vec<ReadStep>) {
        let quorum = Quorum { n: 3, needed: r };
        let order = vec![A, B, C];
        Read::start(ReadSpec {
            quorum,
            order,
            fallbacks: Vec::new(),
            repair_first,
            also: Vec::new(),
        })
    }

    /// An object of the writes 1..=`writes`, each by its own actor, all siblings.
    fn copy(writes: u64) -> Object {
        let mut object = Object::default();
        for write in 1..=writes {
            object.merge(&one(write));
        }
        object
    }

    fn one(write: u64) -> Object {
        let dot = Dot { actor: Actor(write), counter: Counter(1) };
        let mut clock = Clock::new();
        clock.advance(dot);
        let record = Record {
            value: Some(Value::Plain("v".into())),
            request: RequestId(write.into()),
            checksum: 0,
        };
        Object::from_parts(clock, [(dot, record)])
    }

    #[test]
    fn r_replicas_are_asked_and_r_replies_answer() {
        let (mut read, steps) = start(2, None);
        assert_eq!(steps, [ReadStep::Ask(A), ReadStep::Ask(B)]);
        assert_eq!(read.reply(A, copy(1)), []);
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Answer]);
        assert!(read.is_over());
    }

    #[test]
    fn fallbacks_are_asked_when_homes_fail_and_prove_no_absence_alone() {
        let fallen_back = |r| {
            let quorum = Quorum { n: 3, needed: r };
            let (order, fallbacks) = (vec![A, B, C], vec![Uid(10), Uid(11)]);
            let (mut read, _) = Read::start(ReadSpec {
                quorum,
                order,
                fallbacks,
                repair_first: None,
                also: Vec::new(),
            });
            assert_eq!(read.fail(B), [ReadStep::Ask(C)]);
            assert_eq!(read.hedge(), [], "a fallback is no hedge");
            assert_eq!(read.fail(C), [ReadStep::Ask(Uid(10))]);
            read
        };
        // A hint makes a vote, and whoever keeps it is not repaired.
        let mut read = fallen_back(2);
        assert_eq!(read.reply(A, copy(2)), []);
        assert_eq!(read.reply(Uid(10), copy(1)), [ReadStep::Answer]);
        // Nothing kept: the home that answered says what there is.
        let mut read = fallen_back(2);
        assert_eq!(read.reply(Uid(10), copy(0)), []);
        assert_eq!(read.reply(A, copy(0)), [ReadStep::Answer]);
        // No home answers, and nothing is kept: not found would be a guess.
        let mut read = fallen_back(2);
        assert_eq!(read.reply(Uid(10), copy(0)), []);
        assert_eq!(read.fail(A), [ReadStep::Ask(Uid(11))]);
        assert_eq!(read.reply(Uid(11), copy(0)), [ReadStep::Fail]);
    }

    #[test]
    fn without_a_vote_what_a_copy_holds_counts_and_what_it_lacks_does_not() {
        let (mut read, _) = start(1, None);
        assert_eq!(read.reply_without_vote(A, copy(0)), [ReadStep::Ask(B)], "another may have it");
        assert_eq!(read.reply(B, copy(1))[0], ReadStep::Answer);
        let (mut read, _) = start(1, None);
        assert_eq!(read.reply_without_vote(A, copy(1)), [ReadStep::Answer]);
        let (mut read, _) = start(1, None);
        for (uid, then) in [(A, ReadStep::Ask(B)), (B, ReadStep::Ask(C)), (C, ReadStep::Fail)] {
            assert_eq!(read.reply_without_vote(uid, copy(0)), [then], "nobody can tell");
        }
    }

    #[test]
    fn in_a_strict_get_a_copy_without_a_vote_counts_for_nothing_and_takes_the_join() {
        let (mut read, _) = start(2, Some(2));
        assert_eq!(read.reply_without_vote(A, copy(0)), [ReadStep::Ask(C)]);
        assert_eq!(read.reply(B, copy(1)), []);
        assert_eq!(read.reply(C, copy(0)), [ReadStep::Repair(C)]);
        assert_eq!(read.repair_ended(C, false), [ReadStep::Repair(A)], "its disk is a disk");
        assert_eq!(read.repair_ended(A, true), [ReadStep::Answer]);
    }

    #[test]
    fn a_failed_replica_is_replaced_by_the_next() {
        let (mut read, _) = start(2, None);
        assert_eq!(read.fail(A), [ReadStep::Ask(C)]);
        assert_eq!(read.reply(B, copy(1)), []);
        assert_eq!(read.fail(C), [ReadStep::Fail]);
        assert_eq!(read.reply(C, copy(1)), [], "too late, and not waited for");
    }

    #[test]
    fn a_replica_found_behind_is_sent_the_join_behind_the_answer() {
        let (mut read, _) = start(2, None);
        read.reply(A, copy(2));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Answer, ReadStep::Repair(B)]);
        assert_eq!(read.joined(), &copy(2));
        assert_eq!(read.repair_ended(B, true), []);
        assert!(read.is_over() && read.repaired().contains(&B));
    }

    #[test]
    fn a_late_reply_is_still_repaired_and_may_repair_others() {
        let (mut read, _) = start(2, None);
        assert_eq!(read.hedge(), [ReadStep::Ask(C)]);
        read.reply(A, copy(1));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Answer]);
        assert_eq!(read.reply(C, copy(2)), [ReadStep::Repair(A), ReadStep::Repair(B)]);
    }

    #[test]
    fn a_strict_get_answers_once_a_write_quorum_holds_the_join() {
        let (mut read, _) = start(2, Some(2));
        read.reply(A, copy(2));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Repair(B)]);
        assert_eq!(read.repair_ended(B, true), [ReadStep::Answer]);
    }

    #[test]
    fn what_a_strict_get_returns_is_on_a_write_quorum_of_every_set() {
        let (d, e) = (Uid(4), Uid(5));
        let begin = || {
            let quorum = Quorum { n: 3, needed: 2 };
            let also = vec![WriteSet { members: vec![B, d, e], needed: 2 }];
            let (order, repair_first) = (vec![A, B, C], Some(2));
            Read::start(ReadSpec { quorum, order, fallbacks: Vec::new(), repair_first, also }).0
        };
        // The copies agree, and B is of both sets: one more of the other is wanted.
        let mut read = begin();
        read.reply(A, copy(1));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Repair(d)]);
        assert_eq!(read.repair_ended(d, false), [ReadStep::Repair(e)]);
        assert_eq!(read.repair_ended(e, true), [ReadStep::Answer]);
        // Nothing is there: nothing has to be.
        let mut read = begin();
        read.reply(A, copy(0));
        assert_eq!(read.reply(B, copy(0)), [ReadStep::Answer]);
        // They differ: both sets have to have it.
        let mut read = begin();
        read.reply(A, copy(2));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Repair(B), ReadStep::Repair(d)]);
        assert_eq!(read.repair_ended(d, true), []);
        assert_eq!(read.repair_ended(B, true), [ReadStep::Answer]);
    }

    #[test]
    fn a_strict_get_turns_to_a_replica_not_asked_when_a_repair_fails() {
        let (mut read, _) = start(2, Some(2));
        read.reply(A, copy(2));
        read.reply(B, copy(1));
        assert_eq!(read.repair_ended(B, false), [ReadStep::Repair(C)]);
        assert_eq!(read.repair_ended(C, false), [ReadStep::Fail]);
    }

    #[test]
    fn a_strict_get_is_not_held_up_by_one_repair_that_hangs() {
        let (mut read, _) = start(2, Some(2));
        assert_eq!(read.hedge(), [ReadStep::Ask(C)]);
        read.reply(A, copy(2));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Repair(B)]);
        assert_eq!(read.reply(C, copy(2)), [ReadStep::Answer], "A and C are a write quorum");

        let (mut read, _) = start(2, Some(2));
        read.reply(A, copy(2));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Repair(B)]);
        assert_eq!(read.hedge(), [ReadStep::Repair(C)]);
        assert_eq!(read.repair_ended(C, true), [ReadStep::Answer]);
    }

    #[test]
    fn a_strict_get_that_finds_agreement_repairs_nothing() {
        let (mut read, _) = start(2, Some(2));
        read.reply(A, copy(1));
        assert_eq!(read.reply(B, copy(1)), [ReadStep::Answer]);
    }

    #[test]
    fn a_damaged_copy_has_no_vote_and_is_sent_the_join() {
        let (mut read, _) = start(2, None);
        assert_eq!(read.damaged(A), [ReadStep::Ask(C)]);
        assert_eq!(read.reply(B, Object::default()), [], "one absent copy is no quorum");
        assert_eq!(
            read.reply(C, copy(1)),
            [ReadStep::Answer, ReadStep::Repair(B), ReadStep::Repair(A)]
        );
        assert_eq!(read.joined(), &copy(1));
    }

    #[test]
    fn the_deadline_ends_a_get_once() {
        let (mut read, _) = start(3, None);
        read.reply(A, copy(1));
        assert_eq!(read.expire(), [ReadStep::Fail]);
        assert_eq!(read.expire(), []);
    }

    #[derive(Clone, Debug)]
    enum Move {
        Reply(usize, u64),
        ReplyWithoutVote(usize, u64),
        Fail(usize),
        Hedge,
        RepairEnded(usize, bool),
    }

    fn a_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            4 => (0usize..5, 0u64..4).prop_map(|(node, writes)| Move::Reply(node, writes)),
            1 => (0usize..5, 0u64..4)
                .prop_map(|(node, writes)| Move::ReplyWithoutVote(node, writes)),
            2 => (0usize..5).prop_map(Move::Fail),
            1 => Just(Move::Hedge),
            3 => (0usize..5, any::<bool>()).prop_map(|(node, ok)| Move::RepairEnded(node, ok)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn whatever_comes_in_whatever_order(
            n in 1u8..=5, r in 1u8..=5, w in prop::option::of(1u8..=5),
            moves in prop::collection::vec(a_move(), 0..40)
        ) {
            let (r, w) = (r.min(n), w.map(|w| w.min(n)));
            let order: Vec<Uid> = (0..u128::from(n)).map(Uid).collect();
            let quorum = Quorum { n, needed: r };
            let spec = ReadSpec { quorum, order, fallbacks: Vec::new(), repair_first: w, also: Vec::new() };
            let (mut read, steps) = Read::start(spec);
            let mut asked: BTreeSet<Uid> = BTreeSet::new();
            let mut replied = BTreeSet::new();
            let mut repairing = BTreeSet::new();
            let mut ends = 0;
            let mut check = |read: &Read, steps: Vec<ReadStep>, replied: &BTreeSet<Uid>| {
                for step in steps {
                    match step {
                        ReadStep::Ask(node) => assert!(asked.insert(node), "asked twice"),
                        ReadStep::Repair(node) => { repairing.insert(node); }
                        ReadStep::Answer => {
                            ends += 1;
                            assert!(replied.len() >= usize::from(r));
                            let mut voters = read.copies().keys().filter(|uid| !read.voteless.contains(uid));
                            let absent = read.joined().clock().is_empty();
                            assert!(!absent || voters.next().is_some(), "nobody who can tell says so");
                            let agree = read.copies().values().filter(|c| c.agrees_with(read.joined()));
                            let agree = agree.count();
                            let differed = agree < replied.len() || !read.repaired().is_empty();
                            if let (Some(w), true) = (w, differed) {
                                assert!(agree >= usize::from(w), "answered before the join was safe");
                            }
                        }
                        ReadStep::Fail => ends += 1,
                    }
                }
                (asked.clone(), repairing.clone(), ends)
            };
            let (mut now_asked, mut now_repairing, _) = check(&read, steps, &replied);
            for m in moves {
                let steps = match m {
                    Move::Reply(node, writes) => {
                        let node = Uid(node as u128);
                        if now_asked.contains(&node) && read.waiting.contains(&node) {
                            replied.insert(node);
                        }
                        read.reply(node, copy(writes))
                    }
                    Move::ReplyWithoutVote(node, writes) => {
                        let node = Uid(node as u128);
                        // In a strict keyspace it counts for nothing.
                        if w.is_none() && now_asked.contains(&node) && read.waiting.contains(&node) {
                            replied.insert(node);
                        }
                        read.reply_without_vote(node, copy(writes))
                    }
                    Move::Fail(node) => read.fail(Uid(node as u128)),
                    Move::Hedge => read.hedge(),
                    Move::RepairEnded(node, ok) if read.repairing.contains(&Uid(node as u128)) => {
                        read.repair_ended(Uid(node as u128), ok)
                    }
                    Move::RepairEnded(..) => Vec::new(),
                };
                (now_asked, now_repairing, _) = check(&read, steps, &replied);
            }
            let steps = read.expire();
            let (_, _, ends) = check(&read, steps, &replied);
            prop_assert_eq!(ends, 1, "a get ends exactly once");
            prop_assert!(now_repairing.iter().all(|uid| uid.0 < u128::from(n)));
        }
    }
}
