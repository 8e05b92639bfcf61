//! Strict puts and gets, driven as `kvd/src/cluster/put.rs` and `get.rs` drive them.

use super::*;
use kvd::dynamo::clock::Counter;
use kvd::dynamo::history::{Config, Coverage};
use kvd::dynamo::node::RequestId;
use kvd::dynamo::object::{Object, Record};
use kvd::dynamo::preference::{self, Parties};
use kvd::dynamo::quorum::Quorum;
use kvd::dynamo::read::{Read, ReadSpec, ReadStep};
use kvd::dynamo::version::{Actor, Clock, Dot};
use kvd::dynamo::write::{Write, WriteSet, WriteSpec, WriteStep};

/// Times a request sets out.
const TRIES_MAX: u8 = 6;

/// A request under way.
pub(super) struct Op {
    pub(super) at: usize,
    key: usize,
    tries: u8,
    /// What its coordinator knew when it set out.
    known: Arc<History>,
    /// The layouts that began the sets it goes to.
    sets: Arc<[LayoutId]>,
    work: Work,
}

enum Work {
    Put { copy: Held, write: Write },
    Get { must: Held, under: LayoutId, is_kept: bool, read: Box<Read> },
}

/// How a put or a get that is fed goes on.
enum Next {
    Waits,
    Answers,
    Fails,
    /// Sets out anew, with what this node knows.
    Anew(Option<usize>),
}

impl Sim {
    pub(super) fn parties(&self, history: &History, key: usize) -> Option<Parties> {
        let token = self.keys[key];
        let mut parties = preference::parties(history, self.keyspace, token, None)?;
        let configs = history.configs(self.keyspace, token);
        match self.bug {
            Some(Bug::ReadBeforeSync) => {
                let newest = configs.last().expect("there is one");
                parties.under = newest.origin;
                parties.read = newest.readable().collect();
                parties.r = newest.r;
            }
            Some(Bug::WriteOnlyNew) => {
                let newest = configs.last().expect("there is one");
                parties.write.sort_by_key(|set| set.members != newest.members);
                parties.write.truncate(1);
            }
            Some(Bug::NoClose) => {
                let flipped = |config: &Config| {
                    configs.iter().any(|it| it.flipped && config.is_below(it, &configs))
                };
                let of_old = |set: &WriteSet| {
                    configs.iter().any(|it| it.members == set.members && flipped(it))
                };
                let read = parties.write[0].clone();
                parties.write.retain(|set| *set == read || !of_old(set));
            }
            _ => {}
        }
        Some(parties)
    }

    // === puts ===

    pub(super) fn begin_put(&mut self) {
        let (acting, key) = (self.acting(), self.rng.below(KEYS));
        if self.writes == WRITES_MAX {
            return;
        }
        let homes =
            self.rng.pick(&acting).and_then(|at| self.parties(&self.nodes[at].history, key));
        let Some(homes) = homes.map(|parties| parties.homes) else { return };
        // Whom it is forwarded to knows better who is a home.
        let Some(at) = self.rng.pick(&homes).map(node_of).filter(|at| self.nodes[*at].is_up) else {
            return;
        };
        let known = Arc::clone(&self.nodes[at].history);
        let Some(parties) = self.parties(&known, key).filter(|it| it.homes.contains(&uid(at)))
        else {
            return;
        };
        let copy = 1 << self.writes;
        let spec = self.write_spec(at, key, &known, &parties);
        let Ok((write, steps)) = Write::start(spec) else { return };
        self.writes += 1;
        let id = self.id();
        self.note(|_| format!("n{at} puts k{key} {copy:b}, op {id}: {:?}", parties.write));
        self.nodes[at].copies[key] |= copy;
        let (tries, sets, work) = (1, parties.sets.into(), Work::Put { copy, write });
        self.ops.insert(id, Op { at, key, tries, known, sets, work });
        self.send(at, at, Body::Stored { op: id, is_stale: false });
        self.take_write(id, steps);
    }

    fn write_spec(
        &mut self,
        at: usize,
        key: usize,
        known: &History,
        parties: &Parties,
    ) -> WriteSpec {
        let homes = parties.homes.clone();
        let is_home = homes.contains(&uid(at));
        let is_sloppy = self.bug == Some(Bug::SloppyCounted);
        // Who is believed down is, mostly.
        let believes = is_sloppy || !self.rng.one_in(4);
        let is_down = |home: &Uid| {
            !is_home || (believes && *home != uid(at) && !self.reaches(at, node_of(*home)))
        };
        let down = homes.iter().copied().filter(is_down).collect();
        let (mut mode, mut fallbacks) = (Mode::Strict, Vec::new());
        if is_sloppy {
            mode = Mode::Sloppy;
            let (head, id, token) = (known.head(), self.keyspace, self.keys[key]);
            fallbacks = preference::stand_ins(head, id, token, &homes);
            fallbacks.retain(|uid| node_of(*uid) != at && self.reaches(at, node_of(*uid)));
        }
        let (sets, coordinator) = (parties.write.clone(), uid(at));
        WriteSpec { sets, mode, coordinator, homes, down, fallbacks }
    }

    fn take_write(&mut self, id: u64, steps: Vec<WriteStep>) {
        let Some(op) = self.ops.get(&id) else { return };
        let (at, key) = (op.at, op.key);
        let known = (op.known.head().id(), Arc::clone(&op.sets));
        let Work::Put { copy, .. } = op.work else { return };
        let mut next = Next::Waits;
        for step in steps {
            match step {
                WriteStep::Send(to) => {
                    self.send(
                        at,
                        node_of(to),
                        Body::Store { op: id, key, copy, known: known.clone() },
                    );
                }
                WriteStep::SendHinted { to, .. } => {
                    self.send(at, node_of(to), Body::Hint { op: id, key, copy });
                }
                WriteStep::KeepHint(_) => {}
                WriteStep::Answer if self.covers(at, key, &known) == Coverage::Known => {
                    next = Next::Answers;
                }
                WriteStep::Answer => next = Next::Anew(None),
                WriteStep::Fail => next = Next::Fails,
            }
        }
        match next {
            Next::Waits => {}
            Next::Answers => {
                self.note(|_| format!("op {id} is acknowledged"));
                self.acked[key] |= copy;
                self.counts.acked += 1;
                self.ops.remove(&id);
            }
            Next::Fails => drop(self.ops.remove(&id)),
            Next::Anew(with) => self.put_anew(id, with),
        }
    }

    /// With what it has learned the write sets out anew: what its own disk has it has.
    fn put_anew(&mut self, id: u64, with: Option<usize>) {
        let Some(mut op) = self.ops.remove(&id) else { return };
        let Work::Put { copy, .. } = op.work else { return };
        let (at, key) = (op.at, op.key);
        op.tries += 1;
        if op.tries > TRIES_MAX {
            return;
        }
        if let Some(with) = with {
            self.exchange(at, with);
        }
        op.known = Arc::clone(&self.nodes[at].history);
        let Some(parties) = self.parties(&op.known, key) else { return };
        let spec = self.write_spec(at, key, &op.known, &parties);
        let Ok((write, steps)) = Write::start(spec) else { return };
        (op.sets, op.work) = (parties.sets.clone().into(), Work::Put { copy, write });
        let anew = self.id();
        self.note(|_| format!("op {id} is op {anew}: {:?}", parties.write));
        self.ops.insert(anew, op);
        self.send(at, at, Body::Stored { op: anew, is_stale: false });
        self.take_write(anew, steps);
    }

    /// An answer to a put's object, or a repair's.
    pub(super) fn stored(&mut self, id: u64, from: usize, is_stale: bool) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        match &mut op.work {
            Work::Put { .. } if is_stale => self.put_anew(id, Some(from)),
            Work::Put { write, .. } => {
                let steps = write.ack(uid(from));
                self.take_write(id, steps);
            }
            Work::Get { .. } if is_stale => self.get_anew(id, from),
            Work::Get { read, .. } => {
                let steps = read.repair_ended(uid(from), true);
                self.take_read(id, steps);
            }
        }
    }

    // === gets ===

    pub(super) fn begin_get(&mut self) {
        let (acting, key) = (self.acting(), self.rng.below(KEYS));
        if let Some(at) = self.rng.pick(&acting) {
            self.begin_get_at(at, key);
        }
    }

    pub(super) fn begin_get_at(&mut self, at: usize, key: usize) {
        self.set_out_get(at, key, self.acked[key] | self.seen[key], 1);
    }

    fn set_out_get(&mut self, at: usize, key: usize, must: Held, tries: u8) {
        let known = Arc::clone(&self.nodes[at].history);
        let Some(parties) = self.parties(&known, key) else { return };
        let needed = parties.r.min(parties.write[0].members.len() as u8);
        if usize::from(needed) > parties.read.len() {
            return;
        }
        let mut order = parties.read.clone();
        self.rng.shuffle(&mut order);
        let quorum = Quorum { n: order.len() as u8, needed };
        let also = parties.write[1..].to_vec();
        let (fallbacks, repair_first) = (Vec::new(), Some(parties.w));
        let (under, is_kept) = (parties.under, needed >= parties.w);
        let (read, steps) = Read::start(ReadSpec { quorum, order, fallbacks, repair_first, also });
        let id = self.id();
        self.note(|_| {
            format!(
                "n{at} gets k{key}, op {id}: {:?} of {:?} and {:?}",
                parties.r, parties.read, parties.write
            )
        });
        self.ops.insert(
            id,
            Op {
                at,
                key,
                tries,
                known,
                sets: parties.sets.into(),
                work: Work::Get { must, under, is_kept, read: Box::new(read) },
            },
        );
        self.take_read(id, steps);
    }

    fn get_anew(&mut self, id: u64, with: usize) {
        let Some(op) = self.ops.remove(&id) else { return };
        let Work::Get { must, .. } = op.work else { return };
        if op.tries < TRIES_MAX {
            self.exchange(op.at, with);
            self.set_out_get(op.at, op.key, must, op.tries + 1);
        }
    }

    fn take_read(&mut self, id: u64, steps: Vec<ReadStep>) {
        let Some(op) = self.ops.get(&id) else { return };
        let (at, key) = (op.at, op.key);
        let known = (op.known.head().id(), Arc::clone(&op.sets));
        let Work::Get { under, ref read, .. } = op.work else { return };
        let copy = writes_in(read.joined());
        let mut next = Next::Waits;
        for step in steps {
            match step {
                ReadStep::Ask(on) => self.send(at, node_of(on), Body::Read { op: id, key, under }),
                ReadStep::Repair(on) => {
                    self.send(
                        at,
                        node_of(on),
                        Body::Store { op: id, key, copy, known: known.clone() },
                    );
                }
                ReadStep::Answer if self.covers(at, key, &known) == Coverage::Known => {
                    next = Next::Answers;
                }
                ReadStep::Answer => next = Next::Anew(Some(at)),
                ReadStep::Fail => next = Next::Fails,
            }
        }
        match next {
            Next::Waits => {}
            Next::Answers => self.answer_get(id, copy),
            Next::Fails => drop(self.ops.remove(&id)),
            Next::Anew(_) => self.get_anew(id, at),
        }
    }

    fn answer_get(&mut self, id: u64, copy: Held) {
        let Some(op) = self.ops.remove(&id) else { return };
        let Work::Get { must, is_kept, .. } = op.work else { return };
        self.note(|_| format!("op {id} returns {copy:b}"));
        self.counts.read += 1;
        let is_moving = op.known.configs(self.keyspace, self.keys[op.key]).len() > 1;
        self.counts.read_moving += u64::from(is_moving);
        if is_kept && self.monotonic {
            self.seen[op.key] |= copy;
        }
        let missed = must & !copy;
        if missed != 0 {
            let what = match missed & self.acked[op.key] {
                0 => "what an earlier get returned",
                _ => "what was acknowledged before",
            };
            self.fails(Failure::Stale(format!(
                "op {id} at n{} misses {missed:b} of k{}, {what}",
                op.at, op.key
            )));
        }
    }

    pub(super) fn copy_came(&mut self, id: u64, from: usize, copy: Option<Held>) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let Work::Get { read, .. } = &mut op.work else { return };
        match copy {
            None => self.get_anew(id, from),
            Some(copy) => {
                let steps = read.reply(uid(from), object_of(copy));
                self.take_read(id, steps);
            }
        }
    }

    // === what does not come ===

    /// A request takes one that is silent for dead, turns to another, or gives up.
    pub(super) fn lose_patience(&mut self) {
        let ids: Vec<u64> = self.ops.keys().copied().collect();
        let Some(id) = self.rng.pick(&ids) else { return };
        if self.rng.one_in(4) {
            self.ops.remove(&id);
            return;
        }
        let (hedges, silent) = (self.rng.one_in(2), uid(self.rng.below(NODES)));
        let Some(op) = self.ops.get_mut(&id) else { return };
        match &mut op.work {
            Work::Put { write, .. } => {
                let steps = write.fail(silent);
                self.take_write(id, steps);
            }
            Work::Get { read, .. } => {
                let steps = match () {
                    () if hedges => read.hedge(),
                    () if read.repairing().contains(&silent) => read.repair_ended(silent, false),
                    () => read.fail(silent),
                };
                self.take_read(id, steps);
            }
        }
    }
}

/// An object of these writes, each by its own actor, all siblings.
fn object_of(copy: Held) -> Object {
    let writes = (0..WRITES_MAX as u64).filter(|write| copy >> write & 1 == 1);
    let dot = |write| Dot { actor: Actor(write), counter: Counter(1) };
    let record = |write: u64| Record { value: None, request: RequestId(write.into()), checksum: 0 };
    let upto = writes.clone().map(|write| (Actor(write), Counter(1))).collect();
    Object::from_parts(
        Clock::from_parts(upto, BTreeSet::new()),
        writes.map(|write| (dot(write), record(write))),
    )
}

fn writes_in(object: &Object) -> Held {
    object.clock().upto().keys().fold(0, |copy, actor| copy | 1 << actor.0)
}
