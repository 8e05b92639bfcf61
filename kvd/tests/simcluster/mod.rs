//! A cluster without clock, disk and network, around the code that decides: its nodes have real
//! histories, and its requests are driven by the real machines, as the daemon drives them.
//!
//! A run is a seed. One step at a time, one of the things that may happen happens: a message of
//! those on their way arrives, twice, or never; a node crashes, links are cut, somebody commits a
//! change, puts, gets, or works on what the layouts want. A key's copy is a set of writes, a bit
//! each, that only grows; it is on disk once stored, as a history is once it has grown.
//!
//! After that everything is healed, and has to settle with nothing lost.

mod changes;
mod moves;
mod replica;
mod requests;

use kvd::dynamo::history::{History, Part};
use kvd::dynamo::layout::{DEFAULT_KEYSPACE, Keyspace, Layout, Member, Mode, VALUE_BYTES_MAX};
use kvd::dynamo::node::{KeyspaceId, LayoutId, Uid};
use proto::token::Token;
use requests::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nodes there are.
const NODES: usize = 8;

/// Keys of a run.
const KEYS: usize = 2;

/// Writes of a run at most: a bit each.
const WRITES_MAX: usize = 64;

/// Steps of a run before everything is healed.
const STEPS: usize = 500;

/// Rounds of everybody's work within which a healed cluster has to be settled.
const ROUNDS_MAX: usize = 60;

/// N, W and R of the keyspace at first, and who there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    /// Copies.
    pub(crate) n: u8,
    /// Acknowledgements of a write.
    pub(crate) w: u8,
    /// Answers of a read.
    pub(crate) r: u8,
    /// Nodes that are members.
    pub(crate) members: usize,
}

/// A mistake that the simulated shell makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// A get reads the newest config, whether it is readable or not.
    ReadBeforeSync,
    /// A put goes to the newest config alone.
    WriteOnlyNew,
    /// Nobody closes, and yet writers leave out what a readable config is above of.
    NoClose,
    /// A node gives up its copies while it is still read under the config it had them for.
    DropBeforeRefusing,
    /// A replica acknowledges the write of a coordinator that does not know all configs.
    StaleAccepted,
    /// A fallback's copy counts in a strict write.
    SloppyCounted,
}

/// What a run comes to, if not to a failure.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    /// Writes acknowledged.
    pub(crate) acked: u64,
    /// Gets answered.
    pub(crate) read: u64,
    /// Of those, gets of a key with several configs.
    pub(crate) read_moving: u64,
    /// Changes committed.
    pub(crate) commits: u64,
    /// Layouts gone beyond by the end, merges among them.
    pub(crate) layouts: u64,
    /// Copies given up.
    pub(crate) given_up: u64,
}

impl Counts {
    /// The sum.
    pub(crate) fn add(&mut self, other: &Self) {
        self.acked += other.acked;
        self.read += other.read;
        self.read_moving += other.read_moving;
        self.commits += other.commits;
        self.layouts += other.layouts;
        self.given_up += other.given_up;
    }
}

/// How a run fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// A strict get missed what had been acknowledged, or got, before it began.
    Stale(String),
    /// An acknowledged write is not where it should be after healing.
    Lost(String),
    /// Healed, and yet a request is not served.
    Refused(String),
    /// Healed, it does not come to an end.
    Stuck(String),
}

/// Chance, as a seed determines it (SplitMix64).
pub(crate) struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at + 1));
        }
    }
}

/// A set of writes.
type Held = u64;

struct Node {
    is_up: bool,
    /// Never up again, and removed as lost.
    is_dead: bool,
    history: Arc<History>,
    copies: Vec<Held>,
    /// Copies kept for others. No strict get sees them.
    hints: Vec<Held>,
    sync: Option<moves::Sync>,
    giving: Option<moves::Giving>,
}

/// What a put knows of the layouts: the newest, and those that began the sets it goes to.
type Known = (LayoutId, Arc<[LayoutId]>);

struct Envelope {
    from: usize,
    to: usize,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Gossip(Arc<History>),
    /// A put's object, or a repair's.
    Store {
        op: u64,
        key: usize,
        copy: Held,
        known: Known,
    },
    Hint {
        op: u64,
        key: usize,
        copy: Held,
    },
    Stored {
        op: u64,
        is_stale: bool,
    },
    Read {
        op: u64,
        key: usize,
        under: LayoutId,
    },
    /// `None`: refused.
    Copy {
        op: u64,
        copy: Option<Held>,
    },
    Compare(moves::Compare),
    Compared {
        compare: moves::Compare,
        /// `None`: refused.
        copy: Option<Held>,
    },
    Rescue {
        giving: u64,
        key: usize,
        copy: Held,
    },
    Rescued {
        giving: u64,
        copy: Held,
    },
    /// To itself: removes what is there.
    Drop {
        giving: u64,
    },
}

/// One run.
pub(crate) struct Sim {
    rng: Rng,
    bug: Option<Bug>,
    keyspace: KeyspaceId,
    keys: Vec<Token>,
    nodes: Vec<Node>,
    /// Nodes in the same group reach each other.
    group: Vec<u8>,
    net: Vec<Envelope>,
    ops: BTreeMap<u64, Op>,
    next_id: u64,
    /// Of each key, the writes acknowledged so far.
    acked: Vec<Held>,
    /// Of each key, what gets have returned that no later one may miss.
    seen: Vec<Held>,
    writes: usize,
    commits_left: usize,
    /// The greater, the longer nodes know different things.
    gossips_one_in: usize,
    /// One that is told nothing of layouts unless it asks, if there is such a node.
    deaf: usize,
    /// Whether what one get returned the next may not miss: `KVD_SIM_MONO`.
    monotonic: bool,
    healed: bool,
    /// An operator has removed the last who had something.
    has_lost_data: bool,
    counts: Counts,
    failure: Option<Failure>,
    trace: Option<Vec<String>>,
}

/// The first layout of a setting: planned once.
pub(crate) fn first_layout(setting: Setting) -> Layout {
    let Setting { n, w, r, members } = setting;
    let default = Keyspace {
        name: DEFAULT_KEYSPACE.into(),
        n,
        r,
        w,
        mode: Mode::Strict,
        compression: None,
        value_bytes_max: VALUE_BYTES_MAX,
        stamp: 0,
        generation: 0,
    };
    Layout::genesis("sim", (0..members).map(member).collect(), default).unwrap()
}

fn member(at: usize) -> Member {
    Member {
        uid: uid(at),
        name: format!("n{at}"),
        address: format!("10.0.0.{at}:7400"),
        zone: "z".into(),
        weight: 1,
    }
}

fn uid(at: usize) -> Uid {
    Uid(at as u128 + 1)
}

fn node_of(uid: Uid) -> usize {
    (uid.0 - 1) as usize
}

/// Runs `seed`; with `traced`, says what happened.
pub(crate) fn run(
    first: &Arc<History>,
    seed: u64,
    bug: Option<Bug>,
    traced: bool,
) -> (Result<Counts, Failure>, Vec<String>) {
    let mut sim = Sim::new(first, seed, bug, traced);
    for _ in 0..STEPS {
        sim.step();
        if sim.failure.is_some() {
            break;
        }
    }
    // What a bug is to be caught by is what clients see: that it may end in no settled layout is
    // another matter.
    if sim.failure.is_none() && bug.is_none() {
        sim.heal();
    }
    let trace = sim.trace.take().unwrap_or_default();
    match sim.failure {
        Some(failure) => (Err(failure), trace),
        None => (Ok(sim.counts), trace),
    }
}

impl Sim {
    fn new(first: &Arc<History>, seed: u64, bug: Option<Bug>, traced: bool) -> Self {
        let mut rng = Rng(seed);
        let node = || Node {
            is_up: true,
            is_dead: false,
            history: Arc::clone(first),
            copies: vec![0; KEYS],
            hints: vec![0; KEYS],
            sync: None,
            giving: None,
        };
        // Of different partitions: the first bit is the key's number.
        let mut token = |key: usize| {
            let any = u128::from(rng.bits()) << 64 | u128::from(rng.bits());
            Token((key as u128) << 127 | any >> 1)
        };
        let keys = (0..KEYS).map(&mut token).collect();
        Self {
            keys,
            commits_left: 1 + rng.below(6),
            deaf: rng.below(2 * first.head().members().len()),
            gossips_one_in: 1 << (2 * rng.below(4)),
            monotonic: std::env::var("KVD_SIM_MONO").is_ok(),
            rng,
            bug,
            keyspace: KeyspaceId::of(DEFAULT_KEYSPACE),
            nodes: (0..NODES).map(|_| node()).collect(),
            group: vec![0; NODES],
            net: Vec::new(),
            ops: BTreeMap::new(),
            next_id: 0,
            acked: vec![0; KEYS],
            seen: vec![0; KEYS],
            writes: 0,
            healed: false,
            has_lost_data: false,
            counts: Counts::default(),
            failure: None,
            trace: traced.then(Vec::new),
        }
    }

    fn note(&mut self, say: impl FnOnce(&Self) -> String) {
        let line = self.trace.is_some().then(|| say(self));
        if let Some(trace) = &mut self.trace {
            trace.extend(line);
        }
    }

    fn fails(&mut self, failure: Failure) {
        self.note(|_| format!("{failure:?}"));
        // What is on lost nodes alone is lost by right; that it goes on is not too much to ask.
        let is_of_data = matches!(failure, Failure::Stale(_) | Failure::Lost(_));
        let by_right = is_of_data && (self.has_lost_data || self.too_many_dead());
        if self.failure.is_none() && !by_right {
            self.failure = Some(failure);
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn is_member(&self, at: usize) -> bool {
        self.nodes[at].history.layouts().iter().any(|layout| layout.member(uid(at)).is_some())
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.nodes[from].is_up && self.nodes[to].is_up && self.group[from] == self.group[to]
    }

    /// Nodes that are up and have a part in the cluster, as they know.
    fn acting(&self) -> Vec<usize> {
        (0..NODES).filter(|at| self.nodes[*at].is_up && self.is_member(*at)).collect()
    }

    fn parts(&self, history: &History) -> Vec<Part> {
        let bits = history.bits();
        self.keys.iter().map(|token| (self.keyspace, token.partition(bits))).collect()
    }

    fn key_of(&self, history: &History, partition: u32) -> usize {
        let bits = history.bits();
        let key = (0..KEYS).find(|key| self.keys[*key].partition(bits) == partition);
        key.expect("only partitions of keys are asked for")
    }

    // === what may happen ===

    fn step(&mut self) {
        match self.rng.below(100) {
            0..55 => self.deliver_some(),
            55..63 => self.begin_put(),
            63..73 => self.begin_get(),
            73..79 if self.rng.one_in(self.gossips_one_in) => self.gossip(),
            73..90 => self.work_somewhere(),
            90..94 => self.change(),
            94..95 => self.cut(),
            95..96 => self.crash(),
            96..97 => self.restart(),
            _ => self.lose_patience(),
        }
    }

    fn send(&mut self, from: usize, to: usize, body: Body) {
        self.net.push(Envelope { from, to, body });
    }

    fn deliver_some(&mut self) {
        if self.net.is_empty() {
            return self.work_somewhere();
        }
        // The oldest, or any.
        let at = if self.rng.one_in(3) { 0 } else { self.rng.below(self.net.len()) };
        let envelope = self.net.remove(at);
        let is_own = envelope.from == envelope.to;
        if !is_own && self.rng.one_in(30) {
            return; // lost
        }
        if !is_own && self.rng.one_in(30) {
            let (from, to, body) = (envelope.from, envelope.to, envelope.body.clone());
            self.net.push(Envelope { from, to, body });
        }
        self.deliver(envelope);
    }

    fn deliver(&mut self, Envelope { from, to, body }: Envelope) {
        if !self.nodes[to].is_up || self.group[from] != self.group[to] {
            return;
        }
        let tells = matches!(body, Body::Gossip(_) | Body::Compare(_));
        if tells && self.deaf == to && !self.healed {
            return;
        }
        match body {
            Body::Gossip(history) => self.learn(to, &history),
            Body::Store { op, key, copy, known } => self.store((from, to), op, (key, copy), known),
            Body::Hint { op, key, copy } => {
                self.nodes[to].hints[key] |= copy;
                self.send(to, from, Body::Stored { op, is_stale: false });
            }
            Body::Stored { op, is_stale } => self.stored(op, from, is_stale),
            Body::Read { op, key, under } => self.read((from, to), op, key, under),
            Body::Copy { op, copy } => self.copy_came(op, from, copy),
            Body::Compare(compare) => self.compare((from, to), compare),
            Body::Compared { compare, copy } => self.compared(to, from, &compare, copy),
            Body::Rescue { giving, key, copy } => {
                self.nodes[to].copies[key] |= copy;
                let copy = self.nodes[to].copies[key];
                self.send(to, from, Body::Rescued { giving, copy });
            }
            Body::Rescued { giving, copy } => self.rescued(to, from, giving, copy),
            Body::Drop { giving } => self.drop_copies(to, giving),
        }
    }

    fn gossip(&mut self) {
        let acting = self.acting();
        let Some(from) = self.rng.pick(&acting) else { return };
        let history = Arc::clone(&self.nodes[from].history);
        let to = self.rng.below(NODES);
        let is_of_it = history.layouts().iter().any(|layout| layout.member(uid(to)).is_some());
        if to != from && is_of_it {
            self.send(from, to, Body::Gossip(history));
        }
    }

    /// Grows what a node knows, on its disk.
    fn learn(&mut self, at: usize, other: &Arc<History>) {
        let ours = &self.nodes[at].history;
        if Arc::ptr_eq(ours, other) || **ours == **other {
            return;
        }
        let joined = ours.join(other).unwrap();
        self.grow(at, joined);
    }

    fn grow(&mut self, at: usize, next: History) {
        if next == *self.nodes[at].history {
            return;
        }
        self.nodes[at].history = Arc::new(next);
        self.note(|sim| format!("n{at} knows {}", sim.show(&sim.nodes[at].history)));
    }

    /// Both know what either does; says whether they could speak.
    fn exchange(&mut self, one: usize, other: usize) -> bool {
        if one == other {
            return true;
        }
        if !self.reaches(one, other) || (!self.healed && self.rng.one_in(8)) {
            return false;
        }
        let theirs = Arc::clone(&self.nodes[other].history);
        self.learn(one, &theirs);
        let ours = Arc::clone(&self.nodes[one].history);
        let theirs = &self.nodes[other].history;
        if **theirs != *ours {
            self.nodes[other].history = ours;
            self.note(|sim| format!("n{other} knows {}", sim.show(&sim.nodes[other].history)));
        }
        true
    }

    fn cut(&mut self) {
        let sides = 1 + self.rng.below(3);
        for at in 0..NODES {
            self.group[at] = self.rng.below(sides) as u8;
        }
        self.note(|sim| format!("links: {:?}", sim.group));
    }

    fn crash(&mut self) {
        let at = self.rng.below(NODES);
        if self.nodes[at].is_up {
            self.note(|_| format!("n{at} crashes"));
            self.nodes[at].is_up = false;
            self.forget(at);
        }
    }

    /// What a node had in memory is gone.
    fn forget(&mut self, at: usize) {
        self.ops.retain(|_, op| op.at != at);
        (self.nodes[at].sync, self.nodes[at].giving) = (None, None);
    }

    fn restart(&mut self) {
        let down: Vec<usize> =
            (0..NODES).filter(|at| !self.nodes[*at].is_up && !self.nodes[*at].is_dead).collect();
        if let Some(at) = self.rng.pick(&down) {
            self.note(|_| format!("n{at} is back"));
            self.nodes[at].is_up = true;
        }
    }

    // === healing ===

    fn heal(&mut self) {
        self.note(|_| "all is healed".into());
        self.healed = true;
        self.group = vec![0; NODES];
        self.nodes.iter_mut().for_each(|node| node.is_up = !node.is_dead);
        for _ in 0..ROUNDS_MAX {
            self.round();
            self.serves();
            if self.failure.is_some() || self.is_level() {
                break;
            }
        }
        if self.failure.is_some() {
            return;
        }
        if !self.is_level() {
            let state: Vec<String> = (0..NODES)
                .map(|at| {
                    format!(
                        "n{at}: {:?} {}",
                        self.nodes[at].copies,
                        self.show(&self.nodes[at].history)
                    )
                })
                .collect();
            return self.fails(Failure::Stuck(state.join("\n")));
        }
        self.check_copies();
        for key in 0..KEYS {
            for at in self.acting() {
                self.begin_get_at(at, key);
            }
        }
        self.drain();
    }

    fn round(&mut self) {
        let acting = self.acting();
        for at in &acting {
            let other = self.rng.pick(&acting).expect("somebody acts");
            self.exchange(*at, other);
        }
        // A node that is new, or that all others have left behind, is told by whoever knows it.
        for to in 0..NODES {
            let knows = |from: &usize| {
                let layouts = self.nodes[*from].history.layouts();
                layouts.iter().any(|layout| layout.member(uid(to)).is_some())
            };
            let told_by: Vec<usize> = acting.iter().copied().filter(knows).collect();
            if let Some(from) = self.rng.pick(&told_by) {
                self.exchange(from, to);
            }
        }
        for at in self.acting() {
            (self.nodes[at].sync, self.nodes[at].giving) = (None, None);
            self.work(at);
        }
        if self.rng.one_in(2) {
            self.begin_get();
        }
        self.drain();
    }

    /// Once all who act know the same, whatever is under way, a put and a get are served.
    fn serves(&mut self) {
        let acting = self.acting();
        let known = |at: &usize| &self.nodes[*at].history;
        let Some(first) = acting.first() else { return };
        if self.failure.is_some() || acting.iter().any(|at| known(at) != known(first)) {
            return;
        }
        // A node that is dead for good stays a member if one side changed it after the other had removed
        // it. Whoever needs it is not served, and rightly so.
        let acts = |uid: &Uid| acting.contains(&node_of(*uid));
        let is_whole = |key: usize| {
            self.parties(known(first), key).is_some_and(|parties| {
                let written = parties.write.iter().flat_map(|set| &set.members);
                parties.homes.iter().chain(&parties.read).chain(written).all(acts)
            })
        };
        if !(0..KEYS).all(is_whole) {
            return;
        }
        let before = (self.counts.read, self.counts.acked, self.writes);
        self.begin_get();
        self.begin_put();
        let gets = usize::from(!self.acting().is_empty()) as u64;
        let puts = (self.writes - before.2) as u64;
        self.drain();
        let served = (self.counts.read - before.0, self.counts.acked - before.1);
        if self.failure.is_none() && served != (gets, puts) {
            let at = self.acting()[0];
            let why = format!("{served:?}: {}", self.show(&self.nodes[at].history));
            self.fails(Failure::Refused(why));
        }
    }

    fn drain(&mut self) {
        while !self.net.is_empty() && self.failure.is_none() {
            let at = self.rng.below(self.net.len());
            let envelope = self.net.swap_remove(at);
            self.deliver(envelope);
        }
        self.ops.clear();
    }

    /// Whether all members know the same, and nothing is under way.
    fn is_level(&self) -> bool {
        let up = self.nodes.iter().filter(|node| node.is_up).map(|node| &node.history);
        // Who was removed and has left may never hear how it ended.
        let newest = up.max_by_key(|history| (history.is_settled(), history.head().depth()));
        let newest = newest.expect("somebody is up");
        // A removal as lost may have been undone by who did not know of it.
        let level = |member: &Member| {
            let node = &self.nodes[node_of(member.uid)];
            node.is_dead || node.is_up && node.history.is_settled() && *node.history == **newest
        };
        newest.head().members().iter().all(level) && newest.is_settled()
    }

    /// Everything acknowledged is on every replica.
    fn check_copies(&mut self) {
        let Some(at) = self.acting().into_iter().max_by_key(|at| {
            let head = self.nodes[*at].history.head();
            (self.nodes[*at].history.is_settled(), head.depth(), head.member(uid(*at)).is_some())
        }) else {
            return;
        };
        let history = Arc::clone(&self.nodes[at].history);
        self.counts.layouts +=
            history.settled().values().map(|it| it.past.len() as u64).sum::<u64>();
        for key in 0..KEYS {
            let config = history.configs(self.keyspace, self.keys[key]).remove(0);
            // Whichever R are asked, one of them has it.
            let acked = self.acked[key];
            for write in (0..WRITES_MAX).filter(|write| acked >> write & 1 == 1) {
                let copy = |uid: &Uid| self.nodes[node_of(*uid)].copies[key];
                let is_dead = |uid: &Uid| self.nodes[node_of(*uid)].is_dead;
                let lacks = |uid: &&Uid| !is_dead(uid) && copy(uid) >> write & 1 == 0;
                let lacking = config.members.iter().filter(lacks).count();
                if lacking >= usize::from(config.r) {
                    let what = format!("write {write} of k{key}: {lacking} replicas lack it");
                    self.fails(Failure::Lost(what));
                }
            }
        }
    }

    /// Whether so many replicas of a config are lost that what they alone had may be.
    fn too_many_dead(&self) -> bool {
        let dead = |uid: &&Uid| self.nodes[node_of(**uid)].is_dead;
        let mut seen: BTreeSet<*const History> = BTreeSet::new();
        self.nodes.iter().any(|node| {
            seen.insert(Arc::as_ptr(&node.history))
                && self.keys.iter().any(|token| {
                    let configs = node.history.configs(self.keyspace, *token);
                    configs.iter().any(|config| {
                        config.members.iter().filter(dead).count() >= usize::from(config.w)
                    })
                })
        })
    }

    // === in words ===

    fn show(&self, history: &History) -> String {
        let name = |id: LayoutId| format!("{id}")[..4].to_string();
        let nodes =
            |all: &[Uid]| all.iter().map(|uid| node_of(*uid).to_string()).collect::<String>();
        let mut out: Vec<String> = Vec::new();
        for layout in history.layouts() {
            let parents: Vec<String> = layout.parents().iter().map(|id| name(*id)).collect();
            out.push(format!("{}({})", name(layout.id()), parents.join(" ")));
        }
        for (key, token) in self.keys.iter().enumerate() {
            for config in history.configs(self.keyspace, *token) {
                out.push(format!(
                    "k{key}@{}[{} w{} r{}{}{} synced {} closed {}{}]",
                    name(config.origin),
                    nodes(&config.members),
                    config.w,
                    config.r,
                    if config.flipped { " flipped" } else { "" },
                    if config.certified { " certified" } else { "" },
                    nodes(&config.synced),
                    nodes(&config.closed),
                    if config.lost.is_empty() {
                        String::new()
                    } else {
                        format!(" lost {}", nodes(&config.lost))
                    },
                ));
            }
        }
        out.join(" ")
    }
}
