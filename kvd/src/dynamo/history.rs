//! The layouts that count: the newest, and those before it that requests still have to heed while
//! copies move. A change of who holds a key, or of how many must answer, never makes a read miss a
//! write, and waits for nobody but the replicas concerned.
//!
//! For a partition of a keyspace, a layout has a *config*: its replicas, R and W. A layout that says
//! the same as the only newest config below it keeps that; else it begins a new one, which goes
//! through these steps:
//!
//! 1. *Learn*: a replica refuses the writes of a coordinator that does not know one of the configs
//!    the replica knows. From then on a write needs W acknowledgements in every config.
//! 2. *Sync*: each new replica compares its copies with N-W+1 replicas of a readable config that have
//!    learned of the new one. Those have, between them, every write acknowledged before.
//! 3. *Flip*: once W replicas of the new config are synced, it is readable.
//! 4. *Close*: a replica that knows a readable config above its own refuses to be read under its
//!    own. Once W have, too few are left to be read from or synced from: writers drop the config.
//!
//! What a replica has done (synced, closed) it remembers on its disk before it tells; nothing is
//! ever taken back, so what nodes know of each other only grows, and they may hear of it in any
//! order. When every config but those of the newest layout is closed, everybody who holds a
//! partition is synced, who leaves has given away all and who stays has said that it knows, the
//! newest layout is *settled* and the others are forgotten.
//!
//! Layouts form a lattice: a merge stands for the set of changes it merges. So nodes that know the
//! same changes have the same newest layout, whatever way they heard of them.
//!
//! The four steps are those of the design's transition protocol, in the line of Garage's layout
//! history and of RAMBO's reconfiguration (Lynch and Shvartsman, DISC 2002).

mod config;
mod marks;

pub use config::{Config, Coverage, Part, Source, SyncTask};
pub use marks::{Mark, Marks, Parts};

use crate::dynamo::layout::{Layout, LayoutError, Member, PARENTS_MAX};
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// Most layouts that count at once. At this bound a change is refused, but for one that removes a
/// node: that is how an operator gets out of it.
pub const OPEN_MAX: usize = 16;

/// The same for a change of nothing but addresses: nodes make it by themselves, and must not be cut
/// off by another that stays away.
pub const ADDRESSES_MAX: usize = 32;

/// Most that a node can know of: as many as a set of them has bits. Sides of a split may each come
/// to [`OPEN_MAX`]; and of changes made at once every node makes the merges of those it has heard of
/// so far, which may be others than its neighbours' and stay until all is settled.
const LAYOUTS_MAX: usize = Bits::BITS as usize;

/// A set of layouts, or of configs, by their positions.
type Bits = u128;

/// Layouts gone beyond whose ids are remembered. A node that was away for longer has to be
/// removed and added.
pub const PAST_MAX: usize = 1024;

/// Of those, so many keep what was said of them.
pub const NOTES_MAX: usize = 64;

/// Why what a node knows cannot grow by this.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// The layouts do not go together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Above [`OPEN_MAX`], or the number a node can know of.
    #[error(
        "{found} layouts count at once, above the {allowed} allowed: \
             `kvctl ops list` has them, and `kvctl ops show` what each waits for"
    )]
    TooMany {
        /// So many.
        found: usize,
        /// At most so many.
        allowed: usize,
    },
    /// Nothing at all is known.
    #[error("no layout is told")]
    Empty,
}

/// A layout gone beyond.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Past {
    /// Which.
    pub id: LayoutId,
    /// How deep.
    pub depth: u64,
    /// What its maker said of it.
    pub note: Vec<u8>,
    /// When it was gone beyond, Unix milliseconds.
    pub ended_at_ms: u64,
}

/// A settled layout.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Since when, Unix milliseconds.
    pub at_ms: u64,
    /// What came before it, oldest first.
    pub past: Vec<Past>,
}

/// How moves should go.
///
/// Of two, the greater counts: that of the later stamp, and of two said at once the same one
/// everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Control {
    /// How often orders were given.
    pub stamp: u64,
    /// Nothing is to move.
    pub paused: bool,
    /// Bytes a second that a node may receive; 0: no bound; `None`: as it was started.
    pub bytes_per_second: Option<u64>,
}

/// What a node knows of the layouts; see the module's head.
#[derive(Clone, Debug)]
pub struct History {
    /// What is below comes before.
    layouts: Vec<Arc<Layout>>,
    /// Of each, the set of those strictly below it, as bits.
    below: Vec<Bits>,
    /// Position of the newest.
    head: usize,
    settled: BTreeMap<LayoutId, Settled>,
    marks: Marks,
    /// Who knows a layout as the newest, and, if it is no member of that, has given everything away.
    left: BTreeMap<Uid, LayoutId>,
    control: Control,
    /// The partitions that the layouts have more than one config of, once somebody has asked: a
    /// change concerns few of them, and what nodes do for it changes nothing of that.
    open: Arc<OnceLock<Vec<Part>>>,
}

impl PartialEq for History {
    fn eq(&self, other: &Self) -> bool {
        self.ids().eq(other.ids())
            && self.settled == other.settled
            && self.marks == other.marks
            && self.left == other.left
            && self.control == other.control
    }
}

impl History {
    /// Of a cluster that has had one layout.
    pub fn new(first: Layout) -> Self {
        let settled = BTreeMap::from([(first.id(), Settled::default())]);
        Self {
            layouts: vec![Arc::new(first)],
            below: vec![0],
            head: 0,
            settled,
            marks: Marks::default(),
            left: BTreeMap::new(),
            control: Control::default(),
            open: Arc::default(),
        }
    }

    /// Of what was told or stored.
    ///
    /// # Errors
    /// No layout, too many, or layouts that do not go together.
    pub fn from_parts(
        layouts: Vec<Arc<Layout>>,
        settled: BTreeMap<LayoutId, Settled>,
        marks: Marks,
        left: BTreeMap<Uid, LayoutId>,
        control: Control,
    ) -> Result<Self, HistoryError> {
        let layouts = layouts.into_iter().map(|layout| (layout.id(), layout)).collect();
        Self::build(layouts, settled, marks, left, control)
    }

    fn build(
        mut layouts: BTreeMap<LayoutId, Arc<Layout>>,
        settled: BTreeMap<LayoutId, Settled>,
        marks: Marks,
        left: BTreeMap<Uid, LayoutId>,
        control: Control,
    ) -> Result<Self, HistoryError> {
        let mut history = loop {
            let mut all: Vec<Arc<Layout>> = layouts.values().cloned().collect();
            all.sort_by_key(|layout| (layout.depth(), layout.id()));
            let (found, allowed) = (all.len(), LAYOUTS_MAX);
            if found > allowed {
                return Err(HistoryError::TooMany { found, allowed });
            }
            let (all, below) = ordered(all, &settled);
            let heads = maximal(&below);
            match heads[..] {
                [] => return Err(HistoryError::Empty),
                [head] => {
                    let (marks, left) = (Marks::default(), left.clone());
                    let settled = settled.clone();
                    let open = Arc::default();
                    break Self { layouts: all, below, head, settled, marks, left, control, open };
                }
                _ => {
                    let parents = changes_below(&all, &below, &heads);
                    let merged = Layout::merge(&parents)?;
                    layouts.insert(merged.id(), Arc::new(merged));
                }
            }
        };
        let known: BTreeSet<LayoutId> = history.layouts.iter().map(|it| it.id()).collect();
        history.settled.retain(|id, _| known.contains(id));
        history.marks = history.normalized(&marks);
        history.prune();
        history.tidy();
        Ok(history)
    }

    /// The newest layout.
    pub fn head(&self) -> &Arc<Layout> {
        &self.layouts[self.head]
    }

    /// All that count, what is below first.
    pub fn layouts(&self) -> &[Arc<Layout>] {
        &self.layouts
    }

    /// Whether nothing counts but the newest.
    pub fn is_settled(&self) -> bool {
        self.layouts.len() == 1
    }

    /// Settled layouts, by id.
    pub fn settled(&self) -> &BTreeMap<LayoutId, Settled> {
        &self.settled
    }

    /// What nodes have done.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Who has left under which layout, or, as a member of it, knows it.
    pub fn left(&self) -> &BTreeMap<Uid, LayoutId> {
        &self.left
    }

    /// How moves should go.
    pub fn control(&self) -> Control {
        self.control
    }

    /// Whether this layout counts, or did.
    pub fn knows(&self, id: LayoutId) -> bool {
        self.position(id).is_some() || self.is_past(id)
    }

    fn is_past(&self, id: LayoutId) -> bool {
        self.settled.values().any(|settled| settled.past.iter().any(|past| past.id == id))
    }

    fn position(&self, id: LayoutId) -> Option<usize> {
        self.layouts.iter().position(|layout| layout.id() == id)
    }

    /// The ring is cut into 2^this partitions at the finest.
    pub fn bits(&self) -> u32 {
        let bits = self.layouts.iter().map(|layout| layout.partition_bits()).max();
        bits.expect("there is a layout")
    }

    /// Everybody who has a part: the members of the newest layout, and of the others who is not
    /// lost. In order of uid.
    pub fn members(&self) -> Vec<Member> {
        let mut all: BTreeMap<Uid, &Member> = BTreeMap::new();
        for layout in &self.layouts {
            for member in layout.members() {
                all.insert(member.uid, member); // the newest layout's word comes last
            }
        }
        let there = all.into_values().filter(|member| !self.is_lost(member.uid));
        there.cloned().collect()
    }

    /// Whether this node is dead and removed: nobody waits for it.
    pub fn is_lost(&self, uid: Uid) -> bool {
        self.layouts.iter().any(|layout| layout.is_lost(uid))
    }

    /// Whether `me` is to take it from these, who say that it was removed, that it has no part any
    /// more: from more than half of the members of the newest layout it knows. One alone may not
    /// know that it is to stay after all; and who leaves as it does may be gone before it is asked.
    pub fn is_removed_by(&self, me: Uid, told_by: &BTreeSet<Uid>) -> bool {
        let stay = self.head().members().iter().map(|member| member.uid).filter(|uid| *uid != me);
        let told = stay.clone().filter(|uid| told_by.contains(uid)).count();
        told * 2 > stay.count()
    }

    /// All keyspaces that any layout has.
    pub fn keyspaces(&self) -> BTreeSet<KeyspaceId> {
        self.layouts.iter().flat_map(|layout| layout.keyspaces().keys().copied()).collect()
    }

    // === how it grows ===

    /// With a child of the newest layout.
    ///
    /// # Errors
    /// Too many count at once, unless it removes a node.
    pub fn with_child(&self, child: Layout) -> Result<Self, HistoryError> {
        let (found, head) = (self.layouts.len() + 1, self.head());
        let allowed = if child.differs_by_addresses(head) { ADDRESSES_MAX } else { OPEN_MAX };
        let removes = child.removed().len() > self.head().removed().len()
            || child.removed().values().any(|removed| removed.stamp == child.depth());
        if found > allowed && !removes {
            return Err(HistoryError::TooMany { found, allowed });
        }
        let mut layouts = self.by_id();
        layouts.insert(child.id(), Arc::new(child));
        let (settled, marks, left) = (self.settled.clone(), self.marks.clone(), self.left.clone());
        Self::build(layouts, settled, marks, left, self.control)
    }

    /// All that this node and another know: commutative, and never less than either.
    ///
    /// # Errors
    /// The layouts are of two clusters, or together too many.
    pub fn join(&self, other: &Self) -> Result<Self, HistoryError> {
        if self == other {
            return Ok(self.clone());
        }
        let control = self.control.max(other.control);
        if self.ids().eq(other.ids()) && self.settled == other.settled {
            // By far the most common: somebody has done more for what both know.
            let mut next = Self { control, ..self.clone() };
            next.marks.join(&other.marks);
            next.join_left(&other.left);
            return Ok(next);
        }
        let mut layouts = self.by_id();
        layouts.extend(other.by_id());
        let mut settled = self.settled.clone();
        for (id, theirs) in &other.settled {
            settled
                .entry(*id)
                .and_modify(|ours| ours.join(theirs))
                .or_insert_with(|| theirs.clone());
        }
        // What counts no more on one side is left out, unless the other has come another way.
        let mut marks = self.marks.clone();
        marks.join(&other.marks);
        let mut next = Self::build(layouts, settled, marks, self.left.clone(), control)?;
        if next.below == self.below && next.ids().eq(self.ids()) {
            next.open = Arc::clone(&self.open);
        }
        next.join_left(&other.left);
        Ok(next)
    }

    /// Of two words of one node the later counts: it is of the layout that is above. That need be
    /// neither the deeper one nor the one of the greater id.
    fn join_left(&mut self, other: &BTreeMap<Uid, LayoutId>) {
        for (uid, theirs) in other {
            let ours = self.left.get(uid).and_then(|ours| self.position(*ours));
            if ours < self.position(*theirs) {
                self.left.insert(*uid, *theirs);
            }
        }
        self.tidy();
    }

    /// With other orders for moves.
    pub fn with_control(&self, paused: Option<bool>, bytes_per_second: Option<u64>) -> Self {
        let mut next = self.clone();
        next.control.stamp += 1;
        next.control.paused = paused.unwrap_or(self.control.paused);
        next.control.bytes_per_second = bytes_per_second.or(self.control.bytes_per_second);
        next
    }

    fn ids(&self) -> impl Iterator<Item = LayoutId> {
        self.layouts.iter().map(|layout| layout.id())
    }

    fn by_id(&self) -> BTreeMap<LayoutId, Arc<Layout>> {
        self.layouts.iter().map(|layout| (layout.id(), Arc::clone(layout))).collect()
    }

    /// Settles the newest layout, if nothing from before it counts any more. Says whether it did.
    pub fn settle(&mut self, now_ms: u64) -> bool {
        let waits = self.is_settled() || self.waits_for_any(self.open_parts().iter().copied());
        !waits && self.settle_now(now_ms)
    }

    /// The same as if the ring had these partitions alone: for those who simulate only some of it.
    pub fn settle_of(&mut self, now_ms: u64, parts: impl IntoIterator<Item = Part>) -> bool {
        let waits = self.is_settled() || self.waits_for_any(parts);
        !waits && self.settle_now(now_ms)
    }

    fn settle_now(&mut self, now_ms: u64) -> bool {
        let id = self.head().id();
        self.settled.insert(id, Settled { at_ms: now_ms, past: Vec::new() });
        // Orders were for what is done now: the next change is not to find itself paused.
        if self.control.paused || self.control.bytes_per_second.is_some() {
            self.control = Control { stamp: self.control.stamp + 1, ..Control::default() };
        }
        self.prune();
        true
    }

    /// Forgets what is below a settled layout that everything else is above.
    fn prune(&mut self) {
        let base = (0..self.layouts.len()).rev().find(|&at| {
            let others = (0..self.layouts.len()).filter(|&other| other != at);
            self.settled.contains_key(&self.layouts[at].id())
                && others.into_iter().all(|other| {
                    self.below[at] >> other & 1 == 1 || self.below[other] >> at & 1 == 1
                })
        });
        let Some(base) = base.filter(|_| self.layouts.len() > 1) else { return };
        let gone = self.below[base];
        if gone == 0 {
            return;
        }
        // First, while what is to go still tells which config is whose.
        let root = self.layouts[base].id();
        let marks = self.marks_renamed(base, gone);
        let mut settled = self.settled.get(&root).cloned().unwrap_or_default();
        for at in (0..self.layouts.len()).filter(|at| gone >> at & 1 == 1) {
            let layout = &self.layouts[at];
            let below = self.settled.remove(&layout.id());
            let ended_at_ms = below.as_ref().map_or(settled.at_ms, |it| it.at_ms);
            let ended_at_ms = if ended_at_ms == 0 { settled.at_ms } else { ended_at_ms };
            settled.past.extend(below.unwrap_or_default().past);
            let (id, depth, note) = (layout.id(), layout.depth(), layout.note().to_vec());
            settled.past.push(Past { id, depth, note, ended_at_ms });
        }
        settled.tidy();
        self.settled.insert(root, settled);
        self.open = Arc::default();
        let head = self.head().id();
        let kept = |at: &usize| gone >> at & 1 == 0;
        let left = (0..self.layouts.len()).filter(kept).map(|at| Arc::clone(&self.layouts[at]));
        (self.layouts, self.below) = ordered(left.collect(), &self.settled);
        self.head = self.position(head).expect("the newest is never below another");
        self.marks = self.normalized(&marks);
        self.tidy();
    }

    /// Once nothing is under way, what was done for it is of no more use.
    fn tidy(&mut self) {
        let known: BTreeSet<LayoutId> = self.layouts.iter().map(|it| it.id()).collect();
        self.left.retain(|_, id| known.contains(id));
        if self.is_settled() {
            self.left.clear();
            self.marks = Marks::default();
        }
    }
}

impl Settled {
    fn join(&mut self, other: &Self) {
        self.at_ms = match (self.at_ms, other.at_ms) {
            (0, at) | (at, 0) => at,
            (ours, theirs) => ours.min(theirs),
        };
        self.past.extend(other.past.iter().cloned());
        self.tidy();
    }

    fn tidy(&mut self) {
        // Of two words on one the earlier end, and the note that is still there.
        self.past.sort_by_key(|it| (it.depth, it.id, it.note.is_empty(), it.ended_at_ms));
        self.past.dedup_by_key(|it| it.id);
        let over = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..over);
        let bare = self.past.len().saturating_sub(NOTES_MAX);
        self.past[..bare].iter_mut().for_each(|past| past.note.clear());
    }
}

/// The layouts in an order in which what is below comes before, and of each those below it.
fn ordered(
    mut all: Vec<Arc<Layout>>,
    settled: &BTreeMap<LayoutId, Settled>,
) -> (Vec<Arc<Layout>>, Vec<Bits>) {
    all.sort_by_key(|layout| (layout.depth(), layout.id()));
    let below_each = below(&all, settled);
    let mut order: Vec<usize> = (0..all.len()).collect();
    // A merge of more may be no deeper than one of less. Whatever is above has more below it.
    order.sort_by_key(|at| (below_each[*at].count_ones(), *at));
    let place = |bits: Bits| {
        let moved = order.iter().enumerate().filter(|(_, at)| bits >> **at & 1 == 1);
        moved.fold(0, |all, (to, _)| all | 1 << to)
    };
    let below = order.iter().map(|at| place(below_each[*at])).collect();
    (order.iter().map(|at| Arc::clone(&all[*at])).collect(), below)
}

/// Of each layout those strictly below it. One is below another if all its changes are among the
/// other's; of two that have the same ones, the lesser is below.
fn below(all: &[Arc<Layout>], settled: &BTreeMap<LayoutId, Settled>) -> Vec<Bits> {
    // Ids of everything each descends from, itself included.
    let mut lines: Vec<BTreeSet<LayoutId>> = Vec::with_capacity(all.len());
    for (at, layout) in all.iter().enumerate() {
        let mut line = BTreeSet::from([layout.id()]);
        line.extend(layout.parents());
        if let Some(settled) = settled.get(&layout.id()) {
            line.extend(settled.past.iter().map(|past| past.id));
        }
        for before in 0..at {
            if line.contains(&all[before].id()) {
                line.extend(lines[before].clone());
            }
        }
        lines.push(line);
    }
    // Parents may come in any order of a line, and a merge of merges says what one of all their
    // changes does: until nothing is added.
    let is_within = |one: &Layout, line: &BTreeSet<LayoutId>| {
        line.contains(&one.id())
            || (one.parents().len() > 1 && one.parents().iter().all(|parent| line.contains(parent)))
    };
    loop {
        let mut grew = false;
        for at in 0..all.len() {
            for other in 0..all.len() {
                if at != other && is_within(&all[other], &lines[at]) {
                    let mut more = lines[other].clone();
                    more.insert(all[other].id());
                    let size = lines[at].len();
                    lines[at].extend(more);
                    grew |= lines[at].len() > size;
                }
            }
        }
        if !grew {
            break;
        }
    }
    let within = |one: usize, other: usize| is_within(&all[one], &lines[other]);
    let is_below = |one: usize, other: usize| {
        one != other && within(one, other) && (!within(other, one) || one < other)
    };
    (0..all.len())
        .map(|at| (0..all.len()).filter(|&one| is_below(one, at)).map(|one| 1 << one).sum())
        .collect()
}

fn maximal(below: &[Bits]) -> Vec<usize> {
    let covered = below.iter().fold(0, |all, below| all | below);
    (0..below.len()).filter(|at| covered >> at & 1 == 0).collect()
}

/// The newest changes that these heads stand for: merges are taken apart, so that the same changes
/// make the same merge.
fn changes_below<'a>(all: &'a [Arc<Layout>], below: &[Bits], heads: &[usize]) -> Vec<&'a Layout> {
    let position = |id: &LayoutId| all.iter().position(|layout| layout.id() == *id);
    let mut changes: BTreeSet<usize> = heads.iter().copied().collect();
    loop {
        let merge = changes.iter().copied().find_map(|at| {
            let parents = all[at].parents();
            let known: Vec<usize> = parents.iter().filter_map(position).collect();
            (parents.len() > 1 && known.len() == parents.len()).then_some((at, known))
        });
        let Some((at, parents)) = merge else { break };
        changes.remove(&at);
        changes.extend(parents);
    }
    let is_newest =
        |at: &usize| !changes.iter().any(|other| other != at && below[*other] >> at & 1 == 1);
    let mut newest: Vec<usize> = changes.iter().copied().filter(is_newest).collect();
    // More than a layout can name: some of them make one, which is merged with the rest as it is.
    if newest.len() > PARENTS_MAX {
        newest = heads.to_vec();
        newest.truncate(PARENTS_MAX);
    }
    newest.into_iter().map(|at| &*all[at]).collect()
}

#[cfg(test)]
mod tests;
