//! What a node does for the layouts; see `kvd/src/cluster/moves.rs`.

use super::*;
use kvd::dynamo::history::SyncTask;

/// Comparisons under way.
pub(super) struct Sync {
    id: u64,
    /// What to do, and who was compared with.
    tasks: Vec<(SyncTask, BTreeSet<Uid>)>,
}

/// One message of a comparison.
#[derive(Clone, Debug)]
pub(super) struct Compare {
    pub(super) sync: u64,
    pub(super) task: usize,
    pub(super) key: usize,
    pub(super) origin: LayoutId,
    pub(super) under: LayoutId,
    /// What the asker has.
    pub(super) copy: Held,
    /// The second time tells that nothing was closed meanwhile.
    pub(super) is_second: bool,
}

/// Copies about to be given up.
pub(super) struct Giving {
    id: u64,
    key: usize,
    needed: usize,
    level: BTreeSet<usize>,
}

impl Sim {
    pub(super) fn work_somewhere(&mut self) {
        let acting = self.acting();
        if let Some(at) = self.rng.pick(&acting) {
            self.work(at);
        }
    }

    /// One look at what there is to do.
    pub(super) fn work(&mut self, at: usize) {
        let me = uid(at);
        let parts = self.parts(&self.nodes[at].history);
        if !self.leaves_open(at)
            && let Some(next) = self.nodes[at].history.with_closed_of(me, parts.clone())
        {
            self.grow(at, next);
        }
        // One that hangs is begun anew some time.
        if self.nodes[at].sync.is_none() || self.rng.one_in(4) {
            self.begin_sync(at);
        }
        if self.nodes[at].giving.is_none() || self.rng.one_in(4) {
            self.begin_giving(at);
        }
        self.leave(at);
        let history = &self.nodes[at].history;
        if !history.is_settled() {
            let mut next = (**history).clone();
            if next.settle_of(7, parts) {
                self.grow(at, next);
            }
        }
    }

    fn begin_sync(&mut self, at: usize) {
        let (me, history) = (uid(at), Arc::clone(&self.nodes[at].history));
        self.nodes[at].sync = None;
        let tasks = history.to_sync_of(me, self.parts(&history));
        if tasks.is_empty() {
            return;
        }
        let id = self.id();
        let mut under_way = Sync { id, tasks: Vec::new() };
        for (number, task) in tasks.into_iter().enumerate() {
            let mut level = BTreeSet::new();
            if task.candidates.contains(&me) {
                level.insert(me);
            }
            let mut others = task.candidates.clone();
            others.retain(|uid| *uid != me);
            self.rng.shuffle(&mut others);
            if !self.healed && !self.rng.one_in(4) {
                others.truncate(task.needed.saturating_sub(level.len()));
            }
            let key = self.key_of(&history, task.partition);
            for to in &others {
                let compare = Compare {
                    sync: id,
                    task: number,
                    key,
                    origin: task.origin,
                    under: task.under,
                    copy: self.nodes[at].copies[key],
                    is_second: false,
                };
                self.send(at, node_of(*to), Body::Compare(compare));
            }
            under_way.tasks.push((task, level));
        }
        self.nodes[at].sync = Some(under_way);
        self.end_sync(at);
    }

    pub(super) fn compared(
        &mut self,
        at: usize,
        from: usize,
        compare: &Compare,
        copy: Option<Held>,
    ) {
        let Some(copy) = copy else { return };
        self.nodes[at].copies[compare.key] |= copy;
        let ours = self.nodes[at].copies[compare.key];
        let Some(sync) = self.nodes[at].sync.as_mut().filter(|sync| sync.id == compare.sync) else {
            return;
        };
        if !compare.is_second {
            let again = Compare { copy: ours, is_second: true, ..compare.clone() };
            return self.send(at, from, Body::Compare(again));
        }
        sync.tasks[compare.task].1.insert(uid(from));
        self.end_sync(at);
    }

    /// Marks what is level.
    fn end_sync(&mut self, at: usize) {
        let Some(sync) = self.nodes[at].sync.as_mut() else { return };
        let is_done = |(task, level): &(SyncTask, BTreeSet<Uid>)| level.len() >= task.needed;
        let done: Vec<SyncTask> =
            sync.tasks.iter().filter(|it| is_done(it)).map(|(task, _)| task.clone()).collect();
        if !done.is_empty() {
            let next = self.nodes[at].history.with_synced(uid(at), &done);
            self.grow(at, next);
        }
        if self.nodes[at].sync.as_ref().is_some_and(|sync| sync.tasks.iter().all(is_done)) {
            self.nodes[at].sync = None;
        }
    }

    // === giving up ===

    /// Whether a bug has it close nothing.
    fn leaves_open(&self, at: usize) -> bool {
        match self.bug {
            Some(Bug::NoClose) => true,
            Some(Bug::DropBeforeRefusing) => (0..KEYS).any(|key| self.is_foreign(at, key)),
            _ => false,
        }
    }

    fn is_foreign(&self, at: usize, key: usize) -> bool {
        let history = &self.nodes[at].history;
        let part = self.keys[key].partition(history.bits());
        if self.bug == Some(Bug::DropBeforeRefusing) {
            let configs = history.configs(self.keyspace, self.keys[key]);
            let newest = configs.last().expect("the keyspace is there");
            return newest.flipped && !newest.members.contains(&uid(at));
        }
        !history.holds(uid(at), self.keyspace, part)
    }

    fn begin_giving(&mut self, at: usize) {
        self.nodes[at].giving = None;
        let foreign = |key: &usize| self.nodes[at].copies[*key] != 0 && self.is_foreign(at, *key);
        let Some(key) = (0..KEYS).find(foreign) else { return };
        let configs = self.nodes[at].history.configs(self.keyspace, self.keys[key]);
        let newest = configs.last().expect("the keyspace is there");
        let (id, needed) = (self.id(), usize::from(newest.write_quorum(newest.w)));
        self.nodes[at].giving = Some(Giving { id, key, needed, level: BTreeSet::new() });
        let copy = self.nodes[at].copies[key];
        for to in &newest.members {
            self.send(at, node_of(*to), Body::Rescue { giving: id, key, copy });
        }
    }

    pub(super) fn rescued(&mut self, at: usize, from: usize, giving: u64, copy: Held) {
        let node = &mut self.nodes[at];
        let Some(under_way) = node.giving.as_mut().filter(|it| it.id == giving) else { return };
        node.copies[under_way.key] |= copy;
        under_way.level.insert(from);
        if under_way.level.len() == under_way.needed {
            self.send(at, at, Body::Drop { giving });
        }
    }

    pub(super) fn drop_copies(&mut self, at: usize, giving: u64) {
        let Some(under_way) = self.nodes[at].giving.take_if(|it| it.id == giving) else { return };
        let key = under_way.key;
        // It may have become a replica again while it was comparing.
        if !self.is_foreign(at, key) {
            return;
        }
        self.note(|sim| format!("n{at} gives up k{key} {:b}", sim.nodes[at].copies[key]));
        self.nodes[at].copies[key] = 0;
        self.counts.given_up += 1;
    }

    /// Says that it has nothing left, if so.
    fn leave(&mut self, at: usize) {
        let (me, history) = (uid(at), &self.nodes[at].history);
        let leaves = history.head().member(me).is_none() && !history.has_left(me);
        let parts = self.parts(history);
        let holds = |(keyspace, part): &Part| history.holds(me, *keyspace, *part);
        if leaves && !parts.iter().any(holds) && self.nodes[at].copies.iter().all(|copy| *copy == 0)
        {
            let next = history.with_left(me);
            self.grow(at, next);
        }
    }
}
