//! The checkers against a model of a right store, and against the same model with one thing wrong.
//!
//! The model: one key on three replicas that hold dotted sets, quorums of two, messages that are
//! late or lost, nodes that go silent, writes that are tried twice. A seed decides all of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use tests::check::{self, c4};
use tests::history::{Action, Answer, Dot, History, Op, Outcome, Run, Version};
use tests::rng::Rng;

const REPLICAS: usize = 3;
const QUORUM: usize = 2;
const SESSIONS: usize = 4;
const STEPS: usize = 250;

/// Histories of the right store that all have to be found sound.
const RIGHT_RUNS: u64 = 1_000;
/// Histories with a fault.
const FAULTY_RUNS: u64 = 200;

/// What is wrong with the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Nothing.
    None,
    /// An acknowledged put is stored nowhere.
    AcknowledgesWithoutStoring,
    /// Of two concurrent values a merge keeps one.
    MergeDropsASibling,
    /// The reply to a put gives a context that covers what others had stored on that replica.
    ContextCoversStrangers,
    /// A put removes all that its coordinator holds, covered or not.
    PutReplacesAll,
    /// A read asks one replica.
    ReadAsksOne,
    /// A strict read answers before replicas are level.
    ReadSkipsRepair,
    /// A read returns a value that nobody put.
    ReadInvents,
    /// A put that was refused is stored.
    RefusedPutIsStored,
    /// A put that timed out is said to have failed.
    TimeoutIsCalledFailure,
    /// A replica forgets a key that is deleted, while others still hold values of it.
    TombstoneIsReapedEarly,
    /// A replica loses its copy and its count with it, and names writes as others were named.
    DotsAreMintedTwice,
}

type Clock = BTreeSet<Dot>;

/// A replica's copy. Nothing is summed up: the clock is the set of all dots that were seen.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Object {
    clock: Clock,
    /// Tombstones are `None`.
    siblings: BTreeMap<Dot, Option<String>>,
}

impl Object {
    fn merge(&mut self, other: &Self) {
        self.siblings
            .retain(|dot, _| other.siblings.contains_key(dot) || !other.clock.contains(dot));
        for (dot, value) in &other.siblings {
            if !self.clock.contains(dot) {
                self.siblings.insert(*dot, value.clone());
            }
        }
        self.clock.extend(&other.clock);
    }

    /// Of a write that is stored twice only the first is shown.
    fn shown(&self) -> Vec<Version> {
        let mut names = BTreeSet::new();
        let live = self.siblings.iter().filter_map(|(dot, value)| Some((*dot, value.clone()?)));
        let first = live.filter(|(_, value)| names.insert(value.clone()));
        first.map(|(dot, value)| Version { value, dot }).collect()
    }
}

#[derive(Clone, Default)]
struct Session {
    context: Clock,
    covers: Vec<Version>,
    doing: Option<Doing>,
}

#[derive(Clone)]
enum Doing {
    Write(Write),
    Read(Read),
}

#[derive(Clone)]
struct Write {
    op: usize,
    context: Clock,
    /// Of the last try, once a replica has taken it.
    stored: Option<(Dot, Clock)>,
    acks: BTreeSet<usize>,
}

#[derive(Clone)]
struct Read {
    op: usize,
    order: Vec<usize>,
    copies: BTreeMap<usize, Object>,
    holding: BTreeSet<usize>,
}

/// Something on its way to a replica.
enum Message {
    /// A write's object.
    Merge { to: usize, object: Object, session: usize, dot: Dot },
    /// A write whose client has given up before it began.
    Late { to: usize, op: usize, context: Clock },
}

struct Model {
    rng: Rng,
    fault: Fault,
    now_ns: u64,
    replicas: Vec<Object>,
    counters: Vec<u64>,
    sessions: Vec<Session>,
    messages: Vec<Message>,
    ops: Vec<Op>,
}

/// The history of one run.
fn run(seed: u64, fault: Fault) -> History {
    let mut model = Model {
        rng: Rng::new(seed),
        fault,
        now_ns: 0,
        replicas: vec![Object::default(); REPLICAS],
        counters: vec![0; REPLICAS],
        sessions: vec![Session::default(); SESSIONS],
        messages: Vec::new(),
        ops: Vec::new(),
    };
    (0..STEPS).for_each(|_| model.step());
    model.end();
    let run = Run { seed, keyspace: "model".into(), strict: true };
    History { run, ops: model.ops }
}

impl Model {
    fn step(&mut self) {
        self.now_ns += 1 + self.rng.below(5) as u64;
        if !self.messages.is_empty() && self.rng.percent(40) {
            return self.deliver_one();
        }
        let session = self.rng.below(SESSIONS);
        match self.sessions[session].doing.take() {
            None => self.begin(session),
            Some(Doing::Write(write)) => self.go_on_writing(session, write),
            Some(Doing::Read(read)) => self.go_on_reading(session, read),
        }
        if self.strikes(Fault::DotsAreMintedTwice, 2) {
            let replica = self.rng.below(REPLICAS);
            (self.replicas[replica], self.counters[replica]) = (Object::default(), 0);
        }
    }

    /// All that is under way arrives or is lost; then all replicas are read.
    fn end(&mut self) {
        while !self.messages.is_empty() {
            self.now_ns += 1;
            self.deliver_one();
        }
        let op = self.invoke(SESSIONS, Action::Final);
        let joined = join(&self.replicas);
        let answer = Answer { versions: joined.shown(), ..Default::default() };
        self.finish(op, Outcome::Ok(answer));
    }

    fn invoke(&mut self, session: usize, action: Action) -> usize {
        self.now_ns += 1;
        let id = self.ops.len();
        self.ops.push(Op {
            id: id as u64,
            session: session as u32,
            key: "k".into(),
            action,
            invoked_ns: self.now_ns,
            ended_ns: None,
            nodes: Vec::new(),
            outcome: Outcome::Indeterminate("no answer".into()),
        });
        id
    }

    fn finish(&mut self, op: usize, outcome: Outcome) {
        self.now_ns += 1;
        (self.ops[op].ended_ns, self.ops[op].outcome) = (Some(self.now_ns), outcome);
    }

    fn strikes(&mut self, fault: Fault, percent: u8) -> bool {
        self.fault == fault && self.rng.percent(percent)
    }

    fn begin(&mut self, session: usize) {
        let Session { context, covers, .. } = self.sessions[session].clone();
        let name = format!("w{}", self.ops.len());
        let blind = self.rng.percent(25);
        let (action, context) = match self.rng.below(10) {
            0..5 => {
                let op = self.invoke(session, Action::Get);
                let order = self.shuffled();
                let (copies, holding) = (BTreeMap::new(), BTreeSet::new());
                let read = Read { op, order, copies, holding };
                self.sessions[session].doing = Some(Doing::Read(read));
                return;
            }
            5 if !context.is_empty() => {
                (Action::Delete { covers, context: String::new() }, context)
            }
            _ => {
                let (covers, sent) = if blind { Default::default() } else { (covers, context) };
                (Action::Put { value: name, covers, context: String::new() }, sent)
            }
        };
        let op = self.invoke(session, action);
        let write = Write { op, context, stored: None, acks: BTreeSet::new() };
        self.sessions[session].doing = Some(Doing::Write(write));
    }

    fn shuffled(&mut self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..REPLICAS).collect();
        (1..REPLICAS).for_each(|at| order.swap(at, self.rng.below(at + 1)));
        order
    }

    // === writes ===

    fn go_on_writing(&mut self, session: usize, mut write: Write) {
        let to = self.rng.below(REPLICAS);
        if write.stored.is_none() && self.rng.percent(5) {
            if self.strikes(Fault::RefusedPutIsStored, 30) {
                self.coordinate(session, to, write.op, &write.context);
            }
            return self.finish(write.op, Outcome::DefiniteFail("refused".into()));
        }
        if self.rng.percent(5) {
            if write.stored.is_none() {
                self.messages.push(Message::Late { to, op: write.op, context: write.context });
            }
            let why = "timeout".to_owned();
            let outcome = match self.strikes(Fault::TimeoutIsCalledFailure, 100) {
                true => Outcome::DefiniteFail(why),
                false => Outcome::Indeterminate(why),
            };
            return self.finish(write.op, outcome);
        }
        if let Some((dot, context)) = write.stored.clone().filter(|_| write.acks.len() >= QUORUM) {
            let known = &mut self.sessions[session];
            known.context = context;
            known.covers = match self.ops[write.op].value() {
                Some(value) => vec![Version { value: value.into(), dot }],
                None => self.ops[write.op].covers().to_vec(),
            };
            let answer = Answer { dot: Some(dot), ..Default::default() };
            return self.finish(write.op, Outcome::Ok(answer));
        }
        if write.stored.is_none() || self.rng.percent(10) {
            write.acks = BTreeSet::from([to]);
            if self.strikes(Fault::AcknowledgesWithoutStoring, 10) {
                let dot = self.mint(to);
                write.stored = Some((dot, Clock::from([dot])));
                write.acks = (0..REPLICAS).collect();
            } else {
                write.stored = Some(self.coordinate(session, to, write.op, &write.context));
            }
        }
        self.sessions[session].doing = Some(Doing::Write(write));
    }

    fn mint(&mut self, at: usize) -> Dot {
        self.counters[at] += 1;
        Dot { actor: at as u64, counter: self.counters[at] }
    }

    /// Stores a write at one replica and sends it to the others. Returns its dot and the context
    /// its writer gets.
    fn coordinate(
        &mut self,
        session: usize,
        at: usize,
        op: usize,
        context: &Clock,
    ) -> (Dot, Clock) {
        let value = self.ops[op].value().map(str::to_owned);
        let own = self.replicas[at].clone();
        let again = own.siblings.iter().find(|(_, held)| value.is_some() && **held == value);
        if let Some((dot, _)) = again {
            return (*dot, context.iter().copied().chain([*dot]).collect());
        }
        let dot = self.mint(at);
        let mut reply: Clock = context.iter().copied().chain([dot]).collect();
        let replaces_all = self.strikes(Fault::PutReplacesAll, 10);
        if self.strikes(Fault::ContextCoversStrangers, 100) {
            reply.extend(&own.clock);
        }
        let object = &mut self.replicas[at];
        object.siblings.retain(|dot, _| !context.contains(dot) && !replaces_all);
        object.siblings.insert(dot, value);
        object.clock.extend(context);
        object.clock.insert(dot);
        let object = object.clone();
        for to in (0..REPLICAS).filter(|to| *to != at) {
            self.messages.push(Message::Merge { to, object: object.clone(), session, dot });
        }
        (dot, reply)
    }

    fn deliver_one(&mut self) {
        let one = self.rng.below(self.messages.len());
        let lost = self.rng.percent(15);
        match self.messages.swap_remove(one) {
            _ if lost => {}
            Message::Late { to, op, context } => {
                self.coordinate(SESSIONS, to, op, &context);
            }
            Message::Merge { to, object, session, dot } => {
                self.merge(to, &object);
                // Counts if its writer still waits for it.
                let waiting = self.sessions.get_mut(session).and_then(|it| it.doing.as_mut());
                if let Some(Doing::Write(write)) = waiting
                    && write.stored.as_ref().is_some_and(|(stored, _)| *stored == dot)
                {
                    write.acks.insert(to);
                }
            }
        }
    }

    fn merge(&mut self, to: usize, object: &Object) {
        self.replicas[to].merge(object);
        let live = self.replicas[to].shown();
        if live.len() > 1 && self.strikes(Fault::MergeDropsASibling, 20) {
            self.replicas[to].siblings.remove(&live[0].dot);
        }
        let siblings = &self.replicas[to].siblings;
        let deleted = !siblings.is_empty() && siblings.values().all(Option::is_none);
        if deleted && self.strikes(Fault::TombstoneIsReapedEarly, 100) {
            self.replicas[to] = Object::default();
        }
    }

    // === reads ===

    fn go_on_reading(&mut self, session: usize, mut read: Read) {
        if self.rng.percent(2) {
            return self.finish(read.op, Outcome::DefiniteFail("timeout".into()));
        }
        let needed = if self.fault == Fault::ReadAsksOne { 1 } else { QUORUM };
        if read.copies.len() < needed {
            let from = read.order[read.copies.len()];
            read.copies.insert(from, self.replicas[from].clone());
        }
        if read.copies.len() >= needed {
            let joined = join(read.copies.values());
            read.holding.extend(read.copies.iter().filter(|it| *it.1 == joined).map(|it| it.0));
            let level = read.copies.len() == read.holding.len() || read.holding.len() >= QUORUM;
            if level || self.fault == Fault::ReadSkipsRepair {
                return self.answer(session, read.op, &joined);
            }
            let behind = read.order.iter().copied().find(|it| !read.holding.contains(it)).unwrap();
            self.merge(behind, &joined);
            read.holding.insert(behind);
        }
        self.sessions[session].doing = Some(Doing::Read(read));
    }

    fn answer(&mut self, session: usize, op: usize, joined: &Object) {
        let mut versions = joined.shown();
        let known = &mut self.sessions[session];
        (known.context, known.covers) = (joined.clock.clone(), versions.clone());
        if self.strikes(Fault::ReadInvents, 5) {
            versions.push(Version { value: "x".into(), dot: Dot { actor: 9, counter: 9 } });
        }
        self.finish(op, Outcome::Ok(Answer { versions, ..Default::default() }));
    }
}

fn join<'a>(copies: impl IntoIterator<Item = &'a Object>) -> Object {
    let mut joined = Object::default();
    copies.into_iter().for_each(|copy| joined.merge(copy));
    joined
}

// === what the checkers make of it ===

#[test]
fn nothing_is_found_wrong_with_a_right_store() {
    let (mut acked, mut unknown, mut covering) = (0, 0, 0);
    for seed in 0..RIGHT_RUNS {
        let history = run(seed, Fault::None);
        let mut found = check::all(&history);
        found.extend(c4::monotonic(&history, c4::Across::Session));
        assert!(found.is_empty(), "seed {seed}\n{}", check::listed(&found));
        let writes = history.ops.iter().filter(|op| op.is_write());
        for write in writes {
            acked += usize::from(write.ok_ns().is_some());
            unknown += usize::from(matches!(write.outcome, Outcome::Indeterminate(_)));
            covering += usize::from(!write.covers().is_empty());
        }
    }
    // Or it would say little.
    assert!(acked > 8_000 && unknown > 1_000 && covering > 4_000, "{acked} {unknown} {covering}");
}

#[test]
fn every_acknowledged_value_taken_out_of_a_final_read_is_missed() {
    let mut taken = 0;
    for seed in 0..200 {
        let mut history = run(seed, Fault::None);
        let covered: BTreeSet<String> = history
            .ops
            .iter()
            .filter(|op| op.may_have_been_stored())
            .flat_map(|op| op.covers().iter().map(|version| version.value.clone()))
            .collect();
        let acked = history.ops.iter().filter(|op| op.ok_ns().is_some());
        let acked: BTreeSet<String> =
            acked.filter_map(|op| op.value()).map(str::to_owned).collect();
        let Some(Op { outcome: Outcome::Ok(last), .. }) = history.ops.last_mut() else {
            panic!("the last is the final read")
        };
        let sure =
            |version: &Version| acked.contains(&version.value) && !covered.contains(&version.value);
        let Some(at) = last.versions.iter().position(sure) else { continue };
        let value = last.versions.remove(at).value;
        let missed = check::c1::lost_writes(&history);
        assert!(missed.iter().any(|violation| violation.value == value), "seed {seed}: {value}");
        taken += 1;
    }
    assert!(taken > 50, "{taken}");
}

/// Runs a store with this fault: each of these checks finds something in at least so many of a
/// hundred runs, which is half of what it was when this was written, and no other check does.
fn expect_caught(fault: Fault, by: &[(&str, u64)]) {
    let mut found_in: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..FAULTY_RUNS {
        let history = run(seed, fault);
        let found = check::all(&history);
        let checks: BTreeSet<&str> = found.iter().map(|violation| violation.check).collect();
        checks.into_iter().for_each(|check| *found_in.entry(check).or_default() += 1);
    }
    found_in.values_mut().for_each(|runs| *runs = *runs * 100 / FAULTY_RUNS);
    eprintln!("{fault:?}: found in {found_in:?} % of the runs");
    for (check, at_least) in by {
        let percent = found_in.get(check).copied().unwrap_or(0);
        assert!(percent >= *at_least, "{check} finds {fault:?} in {percent} % of the runs");
    }
    let expected: BTreeSet<&str> = by.iter().map(|(check, _)| *check).collect();
    assert!(found_in.keys().all(|check| expected.contains(check)), "{fault:?}: {found_in:?}");
}

#[test]
fn an_acknowledged_put_that_is_stored_nowhere_is_caught() {
    expect_caught(Fault::AcknowledgesWithoutStoring, &[("C1", 30), ("C2", 35), ("C4", 0)]);
}

#[test]
fn a_sibling_dropped_in_a_merge_is_caught() {
    expect_caught(Fault::MergeDropsASibling, &[("C1", 45), ("C2", 45), ("C4", 45)]);
}

#[test]
fn a_context_that_covers_what_its_holder_never_saw_is_caught() {
    expect_caught(Fault::ContextCoversStrangers, &[("C1", 35), ("C2", 40), ("C4", 35)]);
}

#[test]
fn a_put_that_replaces_what_its_context_does_not_cover_is_caught() {
    expect_caught(Fault::PutReplacesAll, &[("C1", 30), ("C2", 30), ("C4", 25)]);
}

#[test]
fn a_stale_read_is_caught_and_is_no_lost_write() {
    expect_caught(Fault::ReadAsksOne, &[("C2", 35), ("C4", 40)]);
}

#[test]
fn a_read_that_repairs_nothing_is_regular_and_not_monotonic() {
    expect_caught(Fault::ReadSkipsRepair, &[("C4", 5)]);
}

#[test]
fn an_invented_value_is_caught() {
    expect_caught(Fault::ReadInvents, &[("C9", 35), ("C4", 0)]);
}

#[test]
fn a_refused_put_that_is_stored_is_caught() {
    expect_caught(Fault::RefusedPutIsStored, &[("C9", 14), ("C1", 0), ("C2", 0), ("C4", 0)]);
}

#[test]
fn a_write_in_doubt_that_is_called_a_failure_is_caught() {
    expect_caught(Fault::TimeoutIsCalledFailure, &[("C9", 45), ("C1", 0), ("C2", 0), ("C4", 0)]);
}

#[test]
fn a_deleted_value_that_comes_back_is_caught() {
    expect_caught(Fault::TombstoneIsReapedEarly, &[("C2", 1), ("C1", 0), ("C4", 0), ("C9", 0)]);
}

#[test]
fn a_dot_that_names_two_writes_is_caught() {
    expect_caught(Fault::DotsAreMintedTwice, &[("C9", 45), ("C1", 40), ("C2", 40), ("C4", 30)]);
}
