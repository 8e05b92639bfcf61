//! The configs of one partition, and what is to be done for them.

use super::{Bits, History, Mark, Marks, Parts};
use crate::dynamo::layout::{Keyspace, Layout};
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use proto::token::Token;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Replicas of a partition of a keyspace, with R and W, and how far they have come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The layout that began it, by which it is known.
    pub origin: LayoutId,
    /// Its replicas, as in the layout's row.
    pub members: Vec<Uid>,
    /// Answers a read waits for.
    pub r: u8,
    /// Acknowledgements a write waits for.
    pub w: u8,
    /// Of its replicas, those that hold all that was written before.
    pub synced: Vec<Uid>,
    /// Of its replicas, those that are not read under it any more.
    pub closed: Vec<Uid>,
    /// Of its replicas, those that are dead and removed.
    pub lost: Vec<Uid>,
    /// Whether it may be read.
    pub flipped: bool,
    /// Whether it need not be heeded any more: too few are left to be read from.
    pub certified: bool,
    /// Whether nothing was before it.
    initial: bool,
    /// Configs below it, as bits of their positions.
    below: Bits,
}

impl Config {
    /// N.
    pub fn n(&self) -> u8 {
        self.members.len() as u8
    }

    /// Acknowledgements a write has to have here, given who is lost.
    pub fn write_quorum(&self, asked: u8) -> u8 {
        asked.min((self.members.len() - self.lost.len()) as u8)
    }

    /// Whether nothing was before it.
    pub fn is_initial(&self) -> bool {
        self.initial
    }

    /// Whether it is below `other`, one of these too.
    pub fn is_below(&self, other: &Self, all: &[Self]) -> bool {
        let at = all.iter().position(|config| config.origin == self.origin);
        at.is_some_and(|at| other.below >> at & 1 == 1)
    }

    /// Replicas that may be read under it.
    pub fn readable(&self) -> impl Iterator<Item = Uid> {
        let off = |uid: &Uid| self.closed.contains(uid) || self.lost.contains(uid);
        self.members.iter().copied().filter(move |uid| !off(uid))
    }

    /// Whether so many are synced that every R of those left meet one: W, or all that are left. Who
    /// is lost counts for W, since what is flipped stays so, but not for all.
    fn has_enough_synced(&self) -> bool {
        let is_off = |uid: &Uid| self.synced.contains(uid) || self.lost.contains(uid);
        self.synced.len() >= self.w.into() || self.members.iter().all(is_off)
    }

    /// Of how many replicas another must have all, to have every write that W of these have.
    fn whole_quorum(&self) -> usize {
        (self.members.len() + 1).saturating_sub(self.w.into())
    }

    /// The same, or all that are left.
    fn sync_quorum(&self) -> usize {
        self.whole_quorum().min(self.members.len() - self.lost.len())
    }
}

/// A partition, of 2^[`History::bits`], of a keyspace.
pub type Part = (KeyspaceId, u32);

/// Whether a coordinator's view of a partition will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// It knows all that counts.
    Known,
    /// Something counts that it does not know, or counts no more.
    Stale,
    /// It knows a layout that this node does not.
    Ahead,
}

/// A copy that a node has to bring level before it counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncTask {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The partition, of 2^`bits`.
    pub partition: u32,
    /// How fine the ring was cut when this was found out: it may be cut finer by the time it is done.
    pub bits: u32,
    /// The config it is for.
    pub origin: LayoutId,
    /// The config it is level with.
    pub under: LayoutId,
    /// Replicas of that which it may compare with, itself perhaps among them.
    pub candidates: Vec<Uid>,
    /// With how many of them it has to, itself counted.
    pub needed: usize,
    /// And what it has to be level with besides: the same keyspace made on two sides of a split has
    /// two sets of replicas to begin with, and each has what the other lacks.
    pub also: Vec<Source>,
    /// It held nothing of the partition: a copy is quicker than a comparison.
    pub is_new: bool,
}

/// A config that a copy is level with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The layout that began it.
    pub under: LayoutId,
    /// Replicas of it which may be compared with, who asks perhaps among them.
    pub candidates: Vec<Uid>,
    /// With how many of them, who asks counted.
    pub needed: usize,
}

impl Source {
    fn of(config: &Config) -> Self {
        let (candidates, needed) = (config.readable().collect(), config.sync_quorum());
        Self { under: config.origin, candidates, needed }
    }
}

impl History {
    /// Every config of a partition of a keyspace that the layouts have: what is below first; the
    /// last is that of the newest layout, if it has the keyspace.
    pub fn configs(&self, keyspace: KeyspaceId, token: Token) -> Vec<Config> {
        self.configs_by_layout(keyspace, token).0
    }

    /// The same of partition `partition`, of 2^[`History::bits`].
    pub fn configs_of(&self, keyspace: KeyspaceId, partition: u32) -> Vec<Config> {
        self.configs(keyspace, Token::range(partition, self.bits()).0)
    }

    /// And which of them each layout has.
    fn configs_by_layout(
        &self,
        keyspace: KeyspaceId,
        token: Token,
    ) -> (Vec<Config>, Vec<Option<usize>>) {
        if let Some(mut config) = self.only_config(keyspace, token) {
            config.lost = config.members.iter().copied().filter(|it| self.is_lost(*it)).collect();
            return (vec![config], vec![Some(0); self.layouts.len()]);
        }
        let (configs, of_layout) = self.lineage(keyspace, token);
        let configs = self.judged(configs, &of_layout, keyspace, token);
        (configs, of_layout)
    }

    /// The config of a partition of which all layouts say the same, with nothing to be done for it.
    /// By far the most are so: none of them is worth going through everything.
    fn only_config(&self, keyspace: KeyspaceId, token: Token) -> Option<Config> {
        let (first, others) = self.layouts.split_first()?;
        let policy = first.keyspace_by_id(keyspace)?;
        let slots = first.row(policy.n, first.partition_of(token));
        let is_kept = |(layout, below): (&Arc<Layout>, &Bits)| {
            let theirs = layout.keyspace_by_id(keyspace);
            let same = |it: &Keyspace| (it.n, it.r, it.w) == (policy.n, policy.r, policy.w);
            below & 1 == 1 && theirs.is_some_and(same) && {
                let theirs = layout.row(policy.n, layout.partition_of(token));
                uids(first, slots).all(|uid| uids(layout, theirs).any(|it| it == uid))
            }
        };
        let all_keep_it = others.iter().zip(&self.below[1..]).all(is_kept);
        all_keep_it.then(|| Config::new(first, policy, slots, 0))
    }

    /// The configs, yet without what nodes have done for them.
    fn lineage(&self, keyspace: KeyspaceId, token: Token) -> (Vec<Config>, Vec<Option<usize>>) {
        let mut configs: Vec<Config> = Vec::with_capacity(1);
        let mut of_layout: Vec<Option<usize>> = Vec::with_capacity(self.layouts.len());
        for (at, layout) in self.layouts.iter().enumerate() {
            let Some(policy) = layout.keyspace_by_id(keyspace) else {
                of_layout.push(None);
                continue;
            };
            let lower = (0..at).filter(|one| self.below[at] >> one & 1 == 1);
            let all =
                lower.filter_map(|one| of_layout[one]).fold(0, |all: Bits, one| all | 1 << one);
            let covered = (0..configs.len()).filter(|one| all >> one & 1 == 1);
            let covered = covered.fold(0, |covered, one| covered | configs[one].below);
            let newest = all & !covered;
            let only = (newest.count_ones() == 1).then(|| newest.trailing_zeros() as usize);
            let slots = layout.row(policy.n, layout.partition_of(token));
            let kept = only.filter(|only| configs[*only].is(layout, policy, slots));
            of_layout.push(Some(kept.unwrap_or(configs.len())));
            if kept.is_none() {
                let below = configs_below(&configs, all);
                configs.push(Config::new(layout, policy, slots, below));
            }
        }
        (configs, of_layout)
    }

    fn judged(
        &self,
        mut configs: Vec<Config>,
        of_layout: &[Option<usize>],
        keyspace: KeyspaceId,
        token: Token,
    ) -> Vec<Config> {
        // By far the most common: nothing is under way.
        if self.layouts.len() == 1 && self.marks.is_empty() {
            return configs;
        }
        let bits = self.bits();
        let place = (bits, token.partition(bits));
        let settled: Vec<usize> = (0..self.layouts.len())
            .filter(|at| self.settled.contains_key(&self.layouts[*at].id()))
            .filter_map(|at| of_layout[at])
            .collect();
        for (at, config) in configs.iter_mut().enumerate() {
            let key = (config.origin, keyspace);
            let ours = |uid: &Uid| config.members.contains(uid);
            config.synced = self.marks.who(key, place, |mark: &Mark| &mark.synced);
            config.closed = self.marks.who(key, place, |mark: &Mark| &mark.closed);
            config.synced.retain(ours);
            config.closed.retain(ours);
            config.lost = config.members.iter().copied().filter(|uid| self.is_lost(*uid)).collect();
            config.flipped = config.initial || settled.contains(&at) || config.has_enough_synced();
            let gone = |uid: &&Uid| config.closed.contains(uid) || config.lost.contains(uid);
            config.certified = config.members.iter().filter(gone).count() >= usize::from(config.w)
                && (!config.closed.is_empty() || config.lost.len() == config.members.len());
        }
        // What is below a settled one is closed, whoever told.
        for above in settled {
            let below = configs[above].below;
            for at in (0..configs.len()).filter(|at| below >> at & 1 == 1) {
                configs[at].certified = true;
            }
        }
        configs
    }

    /// The config that a layout has of a partition.
    fn config_at(&self, layout: LayoutId, keyspace: KeyspaceId, token: Token) -> Option<Config> {
        let at = self.position(layout)?;
        let (mut configs, of_layout) = self.configs_by_layout(keyspace, token);
        Some(configs.swap_remove(of_layout[at]?))
    }

    /// The layout that began that config.
    fn origin_at(&self, layout: LayoutId, keyspace: KeyspaceId, token: Token) -> Option<LayoutId> {
        let at = self.position(layout)?;
        if let Some(config) = self.only_config(keyspace, token) {
            return Some(config.origin);
        }
        let (configs, of_layout) = self.lineage(keyspace, token);
        Some(configs[of_layout[at]?].origin)
    }

    /// Whether a coordinator whose newest layout is `theirs` knows every config of this key that
    /// this node knows and that still counts. If not, its write does not. `sets`: the layouts that
    /// began those it goes to.
    ///
    /// That a layout is below another does not mean that who knows this one knows that: a merge of
    /// more is above a merge of less that its maker may never have heard of. So only what `theirs`
    /// descends from is taken for known, and what is named.
    pub fn covers(
        &self,
        (theirs, sets): (LayoutId, &[LayoutId]),
        keyspace: KeyspaceId,
        token: Token,
    ) -> Coverage {
        if self.is_settled() && theirs == self.head().id() {
            return Coverage::Known;
        }
        let Some(at) = self.position(theirs) else {
            return if self.is_past(theirs) { Coverage::Stale } else { Coverage::Ahead };
        };
        let line = self.line(at);
        let known = |config: &Config| {
            let origin = self.position(config.origin).expect("a config is of a layout that counts");
            line >> origin & 1 == 1 || sets.contains(&config.origin)
        };
        let counting = self.configs(keyspace, token);
        let mut counting = counting.iter().filter(|config| !config.certified);
        if counting.all(known) { Coverage::Known } else { Coverage::Stale }
    }

    /// The layout at `at` and those it descends from, as bits.
    fn line(&self, at: usize) -> Bits {
        let (mut line, mut to_visit): (Bits, _) = (1 << at, vec![at]);
        while let Some(at) = to_visit.pop() {
            let layout = &self.layouts[at];
            let past = self.settled.get(&layout.id()).into_iter().flat_map(|it| &it.past);
            let before = layout.parents().iter().copied().chain(past.map(|past| past.id));
            for one in before.filter_map(|id| self.position(id)) {
                if line >> one & 1 == 0 {
                    line |= 1 << one;
                    to_visit.push(one);
                }
            }
        }
        line
    }

    /// Whether `me` may be read, or compared with, as a replica of the config that layout `under` has
    /// of this key.
    pub fn may_read(
        &self,
        me: Uid,
        under: LayoutId,
        keyspace: KeyspaceId,
        token: Token,
    ) -> Coverage {
        if self.layouts.len() == 1 && under == self.head().id() {
            return Coverage::Known;
        }
        if self.position(under).is_none() {
            return if self.is_past(under) { Coverage::Stale } else { Coverage::Ahead };
        }
        match self.config_at(under, keyspace, token) {
            Some(config) if config.certified || config.closed.contains(&me) => Coverage::Stale,
            Some(_) => Coverage::Known,
            None => Coverage::Stale,
        }
    }

    /// Whether `me` may be compared with for the config that layout `origin` began, as a replica of
    /// the one that `under` has of this key: it has to know the new one, or might go on
    /// acknowledging what the new one does not get.
    pub fn may_compare(
        &self,
        me: Uid,
        (origin, under): (LayoutId, LayoutId),
        keyspace: KeyspaceId,
        token: Token,
    ) -> Coverage {
        match self.knows(origin) {
            true => self.may_read(me, under, keyspace, token),
            false => Coverage::Ahead,
        }
    }

    // === what a node has to do ===

    /// Copies that `me` has to bring level, and can as far as is known.
    pub fn to_sync(&self, me: Uid) -> Vec<SyncTask> {
        self.to_sync_of(me, self.open_parts().iter().copied())
    }

    /// Of these copies, those that `me` has to bring level, and can as far as is known.
    pub fn to_sync_of(&self, me: Uid, parts: impl IntoIterator<Item = Part>) -> Vec<SyncTask> {
        let mut tasks = Vec::new();
        self.each_open_of(parts, |keyspace, partition, configs| {
            for (at, config) in configs.iter().enumerate() {
                if config.certified
                    || !config.members.contains(&me)
                    || config.synced.contains(&me)
                    || config.initial
                {
                    continue;
                }
                let place = (keyspace, partition, self.bits());
                tasks.extend(sync_task(me, place, configs, at));
            }
        });
        tasks
    }

    /// Of the config a task is for, replicas that held nothing of the partition before and are not
    /// level yet. Until they are, it is better not to flip: whoever gives its copy up then leaves as
    /// many whole ones as there were.
    pub fn newcomers(&self, task: &SyncTask) -> Vec<Uid> {
        let configs = self.configs(task.keyspace, Token::range(task.partition, task.bits).0);
        let held = |uid: &Uid| {
            let readable = configs.iter().filter(|it| it.flipped && it.origin != task.origin);
            readable.into_iter().any(|config| config.members.contains(uid))
        };
        let config = configs.iter().find(|config| config.origin == task.origin);
        let members = config
            .into_iter()
            .flat_map(|config| config.members.iter().filter(|uid| !config.synced.contains(uid)));
        members.copied().filter(|uid| !held(uid)).collect()
    }

    /// With these copies level: `me` has compared them as their tasks say.
    pub fn with_synced(&self, me: Uid, done: &[SyncTask]) -> Self {
        let mut next = self.clone();
        for task in done {
            // The config may be another's by now: of a layout below, heard of since.
            let token = Token::range(task.partition, task.bits).0;
            let origin = self.origin_at(task.origin, task.keyspace, token);
            if let Some(origin) = origin.filter(|origin| !self.is_simple(*origin)) {
                next.marks.synced((origin, task.keyspace, me), task.bits, task.partition);
            }
        }
        next
    }

    /// With everything closed that `me` should no longer be read under, and having said that it
    /// knows the newest layout; `None`: there is nothing.
    pub fn with_closed(&self, me: Uid) -> Option<Self> {
        self.with_closed_of(me, self.open_parts().iter().copied())
    }

    /// The same among these partitions.
    pub fn with_closed_of(&self, me: Uid, parts: impl IntoIterator<Item = Part>) -> Option<Self> {
        let (mut next, bits, mut any) = (self.clone(), self.bits(), false);
        self.each_open_of(parts, |keyspace, partition, configs| {
            let flipped = configs.iter().filter(|config| config.flipped);
            let outdone = flipped.fold(0, |outdone, config| outdone | config.below);
            for (at, config) in configs.iter().enumerate() {
                let ours = config.members.contains(&me) && !config.closed.contains(&me);
                if ours && outdone >> at & 1 == 1 {
                    any |= next.marks.closed((config.origin, keyspace, me), bits, partition);
                }
            }
        });
        if !self.is_settled() && self.head().member(me).is_some() && !self.has_left(me) {
            next.left.insert(me, self.head().id());
            any = true;
        }
        any.then_some(next)
    }

    /// With `me` having given away all it held.
    pub fn with_left(&self, me: Uid) -> Self {
        let mut next = self.clone();
        next.left.insert(me, self.head().id());
        next
    }

    /// Whether `me` has said that it knows the newest layout and, if it is no member of that, has
    /// nothing left.
    pub fn has_left(&self, me: Uid) -> bool {
        self.left.get(&me) == Some(&self.head().id())
    }

    /// Whether `me` is a replica of this partition in any config that counts.
    pub fn holds(&self, me: Uid, keyspace: KeyspaceId, partition: u32) -> bool {
        let configs = self.configs_of(keyspace, partition);
        configs.iter().any(|config| !config.certified && config.members.contains(&me))
    }

    /// The partitions of a keyspace, of 2^[`History::bits`], of which both are replicas in one config
    /// that counts.
    pub fn shared(&self, keyspace: KeyspaceId, one: Uid, other: Uid) -> Vec<u32> {
        let both = |config: &Config| {
            let has = |uid| config.members.contains(&uid) && !config.lost.contains(&uid);
            !config.certified && has(one) && has(other)
        };
        let is_shared = |partition: &u32| self.configs_of(keyspace, *partition).iter().any(both);
        (0..1 << self.bits()).filter(is_shared).collect()
    }

    /// Whether `me` is a replica of this key in no config that counts, though there are some: what
    /// it is given of it, and not as a write that names its sets, it may be about to give up.
    pub fn is_foreign(&self, me: Uid, keyspace: KeyspaceId, token: Token) -> bool {
        let configs = self.configs(keyspace, token);
        let has_part = |config: &Config| !config.certified && config.members.contains(&me);
        !configs.is_empty() && !configs.iter().any(has_part)
    }

    /// Whether something from before the newest layout still counts, or somebody has yet to hear
    /// of it, or to get or to give away what it says.
    ///
    /// Everybody has to have heard of it: who has not may be of another change that closes what
    /// this one leaves as it is. Of two settled layouts one is always below the other.
    pub(super) fn waits_for_any(&self, parts: impl IntoIterator<Item = Part>) -> bool {
        let mut waits = self.members().iter().any(|it| !self.has_left(it.uid));
        if waits {
            return true;
        }
        self.each_of(parts, |keyspace, _, configs| {
            let Some((newest, before)) = configs.split_last() else { return };
            waits |= before.iter().any(|config| !config.certified);
            if self.head().keyspace_by_id(keyspace).is_none() {
                return; // dropped: nobody needs it
            }
            let is_synced = |uid: &Uid| newest.synced.contains(uid) || newest.lost.contains(uid);
            waits |= !newest.initial && !newest.members.iter().all(is_synced);
        });
        waits
    }

    /// Every partition of every keyspace of the newest layout.
    pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let keyspaces: Vec<KeyspaceId> = self.head().keyspaces().keys().copied().collect();
        let partitions = 1_u32 << self.bits();
        keyspaces.into_iter().flat_map(move |id| (0..partitions).map(move |at| (id, at)))
    }

    /// Those of them that the layouts have more than one config of.
    pub fn open_parts(&self) -> &[Part] {
        self.open.get_or_init(|| {
            let is_open = |part: &Part| {
                let token = Token::range(part.1, self.bits()).0;
                self.only_config(part.0, token).is_none() && self.lineage(part.0, token).0.len() > 1
            };
            self.parts().filter(is_open).collect()
        })
    }

    /// Visits the configs of every partition of every keyspace of the newest layout, where there is
    /// more than one.
    pub fn each_open(&self, visit: impl FnMut(KeyspaceId, u32, &[Config])) {
        self.each_open_of(self.open_parts().iter().copied(), visit);
    }

    fn each_of(
        &self,
        parts: impl IntoIterator<Item = Part>,
        mut visit: impl FnMut(KeyspaceId, u32, &[Config]),
    ) {
        for (keyspace, partition) in parts {
            visit(keyspace, partition, &self.configs_of(keyspace, partition));
        }
    }

    fn each_open_of(
        &self,
        parts: impl IntoIterator<Item = Part>,
        mut visit: impl FnMut(KeyspaceId, u32, &[Config]),
    ) {
        if self.is_settled() {
            return;
        }
        self.each_of(parts, |keyspace, partition, configs| {
            if configs.len() > 1 {
                visit(keyspace, partition, configs);
            }
        });
    }

    // === marks as layouts come and go ===

    /// Whether nothing is below it to be level with.
    fn is_simple(&self, layout: LayoutId) -> bool {
        self.position(layout).is_some_and(|at| self.below[at] == 0)
    }

    /// Marks by the layouts that now begin their configs: all that there are in a history are so.
    pub(super) fn normalized(&self, marks: &Marks) -> Marks {
        let mut out = Marks::default();
        // Many nodes have marks of the same partitions: who began their configs is found out once.
        let mut origins: BTreeMap<(LayoutId, KeyspaceId, u32, u32), Option<LayoutId>> =
            BTreeMap::new();
        for ((layout, keyspace, uid), mark) in marks.iter() {
            if self.position(*layout).is_none() {
                continue;
            }
            if self.is_simple(*layout) {
                // Nothing is below it to be level with.
                let mark = Mark { synced: Parts::default(), closed: mark.closed.clone() };
                if !mark.closed.is_empty() {
                    out.put((*layout, *keyspace, *uid), &mark);
                }
                continue;
            }
            let bits = self.bits().max(mark.synced.bits()).max(mark.closed.bits());
            for partition in 0..1 << bits {
                let which = (mark.synced.has(bits, partition), mark.closed.has(bits, partition));
                if which == (false, false) {
                    continue;
                }
                let origin = origins.entry((*layout, *keyspace, bits, partition));
                let origin = origin.or_insert_with(|| {
                    self.origin_at(*layout, *keyspace, Token::range(partition, bits).0)
                });
                if let Some(origin) = *origin {
                    put(&mut out, (origin, *keyspace, *uid), (bits, partition), which);
                }
            }
        }
        out
    }

    /// Marks once the layouts in `gone` are: those of a config that layout `base` still has are then
    /// known by `base`.
    pub(super) fn marks_renamed(&self, base: usize, gone: Bits) -> Marks {
        let root = self.layouts[base].id();
        let mut out = Marks::default();
        for ((layout, keyspace, uid), mark) in self.marks.iter() {
            let at = self.position(*layout);
            if at.is_none_or(|at| gone >> at & 1 == 0) {
                out.put((*layout, *keyspace, *uid), mark);
                continue;
            }
            // Only where it is the config that remains.
            let bits = self.bits();
            for partition in 0..1 << bits {
                let (synced, closed) =
                    (mark.synced.has(bits, partition), mark.closed.has(bits, partition));
                if !synced && !closed {
                    continue;
                }
                let token = Token::range(partition, bits).0;
                if self.origin_at(root, *keyspace, token) == Some(*layout) {
                    put(&mut out, (root, *keyspace, *uid), (bits, partition), (synced, closed));
                }
            }
        }
        out
    }
}

/// Who is in these slots of a layout.
fn uids(layout: &Layout, slots: &[u16]) -> impl Iterator<Item = Uid> {
    slots.iter().map(|slot| layout.members()[usize::from(*slot)].uid)
}

fn put(
    out: &mut Marks,
    key: (LayoutId, KeyspaceId, Uid),
    (bits, partition): (u32, u32),
    (synced, closed): (bool, bool),
) {
    if synced {
        out.synced(key, bits, partition);
    }
    if closed {
        out.closed(key, bits, partition);
    }
}

/// From whom `me` may have the config at `at`: of the newest readable config at or below it, if
/// enough of its replicas are left.
fn sync_task(
    me: Uid,
    (keyspace, partition, bits): (KeyspaceId, u32, u32),
    configs: &[Config],
    at: usize,
) -> Option<SyncTask> {
    let config = &configs[at];
    let sources = (0..=at).rev().filter(|one| *one == at || config.below >> one & 1 == 1);
    let sources: Vec<&Config> =
        sources.map(|one| &configs[one]).filter(|source| source.flipped).collect();
    let has = |source: &&&Config, needed: usize| source.readable().count() >= needed;
    // One that nothing is lost of, rather than what is left of a newer one.
    let whole = sources.iter().find(|source| has(source, source.whole_quorum()));
    let source = whole.or_else(|| sources.iter().find(|source| has(source, source.sync_quorum())));
    let source = source?;
    let has_its_writes = |other: &Config| {
        let at_other = configs.iter().position(|it| it.origin == other.origin);
        other.origin == source.origin || at_other.is_some_and(|it| source.below >> it & 1 == 1)
    };
    let also = (0..at).filter(|one| config.below >> one & 1 == 1).map(|one| &configs[one]);
    let also = also.filter(|it| it.initial && !it.certified && !has_its_writes(it));
    let also: Vec<Source> = also.map(Source::of).collect();
    if also.iter().any(|source| source.candidates.len() < source.needed) {
        return None;
    }
    let held = |other: &&Config| {
        other.origin != config.origin && other.flipped && other.members.contains(&me)
    };
    let is_new = !configs.iter().any(|other| held(&other));
    Some(SyncTask {
        keyspace,
        partition,
        bits,
        origin: config.origin,
        under: source.origin,
        candidates: source.readable().collect(),
        needed: source.sync_quorum(),
        also,
        is_new,
    })
}

fn configs_below(configs: &[Config], all: Bits) -> Bits {
    let under = (0..configs.len()).filter(|one| all >> one & 1 == 1);
    under.fold(all, |below, one| below | configs[one].below)
}

impl Config {
    fn new(layout: &Arc<Layout>, policy: &Keyspace, slots: &[u16], below: Bits) -> Self {
        Self {
            origin: layout.id(),
            members: uids(layout, slots).collect(),
            r: policy.r,
            w: policy.w,
            synced: Vec::new(),
            closed: Vec::new(),
            lost: Vec::new(),
            flipped: below == 0,
            certified: false,
            initial: below == 0,
            below,
        }
    }

    /// Whether a layout says just this.
    fn is(&self, layout: &Layout, policy: &Keyspace, slots: &[u16]) -> bool {
        (self.r, self.w) == (policy.r, policy.w)
            && self.members.len() == slots.len()
            && uids(layout, slots).all(|uid| self.members.contains(&uid))
    }
}
