//! What operators commit, anywhere and at any moment.

use super::*;
use kvd::dynamo::layout::Change;

/// N, W and R that a keyspace may be given: W-writes meet R-reads.
const QUORUMS: [(u8, u8, u8); 15] = [
    (2, 2, 1),
    (2, 1, 2),
    (2, 2, 2),
    (3, 2, 2),
    (3, 3, 1),
    (3, 1, 3),
    (3, 3, 2),
    (3, 2, 3),
    (4, 3, 2),
    (4, 2, 3),
    (5, 3, 3),
    (5, 4, 2),
    (5, 2, 4),
    (5, 5, 1),
    (5, 1, 5),
];

impl Sim {
    pub(super) fn change(&mut self) {
        let acting = self.acting();
        let Some(at) = self.rng.pick(&acting).filter(|_| self.commits_left > 0) else { return };
        match self.rng.below(12) {
            0..3 => self.add(at),
            3..5 => self.remove(at),
            5 => self.lose(at),
            6..8 => self.replace(at),
            8..10 => self.set_quorum(at),
            _ => self.cancel(at),
        }
    }

    fn commit(&mut self, at: usize, changes: &[Change], before: Option<&Layout>) -> bool {
        let history = Arc::clone(&self.nodes[at].history);
        let base = before.map(|before| (before.members(), before.tables()));
        // The note makes two of one kind two layouts.
        let note = vec![at as u8, self.commits_left as u8];
        let Ok(child) = history.head().changed(changes, note, base) else { return false };
        if self.is_at_risk(&child) || self.removes_too_many(&child) {
            return false;
        }
        let Ok(next) = history.with_child(child) else { return false };
        self.commits_left -= 1;
        self.counts.commits += 1;
        self.note(|_| format!("n{at} commits {changes:?}"));
        self.grow(at, next);
        true
    }

    /// Whether the dead could be all who have a write under it.
    fn is_at_risk(&self, child: &Layout) -> bool {
        let keyspace = child.keyspace_by_id(self.keyspace).expect("it is never dropped");
        self.keys.iter().any(|token| {
            let row = child.replicas(keyspace.n, child.partition_of(*token));
            let dead = row.filter(|member| self.nodes[node_of(member.uid)].is_dead).count();
            dead >= keyspace.w.into()
        })
    }

    /// Whether with what others remove hardly anybody would be left: of nobody there is no layout.
    fn removes_too_many(&self, child: &Layout) -> bool {
        let layouts = || self.nodes.iter().flat_map(|node| node.history.layouts());
        let is_gone = |uid: Uid| layouts().any(|layout| layout.removed().contains_key(&uid));
        child.members().iter().filter(|member| !is_gone(member.uid)).count() < 2
    }

    /// One that nobody has had as a member.
    fn spare(&mut self) -> Option<Member> {
        let is_new = |at: &usize| {
            let had = |node: &Node| {
                let mut layouts = node.history.layouts().iter();
                layouts
                    .any(|it| it.member(uid(*at)).is_some() || it.removed().contains_key(&uid(*at)))
            };
            !self.nodes.iter().any(had)
        };
        let spare: Vec<usize> = (0..NODES).filter(is_new).collect();
        self.rng.pick(&spare).map(member)
    }

    fn someone(&mut self, at: usize) -> Option<Uid> {
        let members = self.nodes[at].history.head().members();
        let uids: Vec<Uid> = members.iter().map(|member| member.uid).collect();
        self.rng.pick(&uids)
    }

    fn add(&mut self, at: usize) {
        if let Some(member) = self.spare() {
            self.commit(at, &[Change::Add(member)], None);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some(uid) = self.someone(at) {
            self.commit(at, &[Change::Remove { uid, lost: false }], None);
        }
    }

    /// One dies, and is removed as lost.
    ///
    /// By somebody who knows what it knew: else another may have a copy from it alone, for a change
    /// that the remaining replicas never heard of, and miss what they acknowledge without it.
    fn lose(&mut self, at: usize) {
        let Some(victim) = self.someone(at).filter(|victim| *victim != uid(at)) else { return };
        if self.nodes.iter().any(|node| node.is_dead) {
            return;
        }
        let dying = node_of(victim);
        let ours = &self.nodes[at].history;
        if ours.join(&self.nodes[dying].history).is_ok_and(|both| both != **ours) {
            return;
        }
        self.nodes[dying].is_dead = true;
        let change = [Change::Remove { uid: victim, lost: true }];
        // Now and then what is lost with it is accepted.
        let loses = self.too_many_dead();
        if (loses && !self.rng.one_in(4)) || !self.commit(at, &change, None) {
            self.nodes[dying].is_dead = false;
            return;
        }
        self.has_lost_data |= loses;
        self.nodes[dying].is_up = false;
        self.forget(dying);
    }

    fn replace(&mut self, at: usize) {
        if let (Some(uid), Some(with)) = (self.someone(at), self.spare()) {
            self.commit(at, &[Change::Replace { uid, with, lost: false }], None);
        }
    }

    fn set_quorum(&mut self, at: usize) {
        let now = self.nodes[at].history.head().keyspace_by_id(self.keyspace);
        let now = now.expect("it is never dropped").clone();
        // Rather than N, R and W.
        let same_n = self.rng.one_in(3);
        let fits = |it: &&(u8, u8, u8)| (it.0 == now.n) != same_n && *it != &(now.n, now.w, now.r);
        let fitting: Vec<(u8, u8, u8)> = QUORUMS.iter().filter(fits).copied().collect();
        let Some((n, w, r)) = self.rng.pick(&fitting) else { return };
        self.commit(at, &[Change::SetKeyspace(Keyspace { n, w, r, ..now })], None);
    }

    /// Undoes a change under way: back to where copies were.
    fn cancel(&mut self, at: usize) {
        let history = Arc::clone(&self.nodes[at].history);
        let of_one = |layout: &&Arc<Layout>| layout.parents().len() == 1;
        let layouts: Vec<&Arc<Layout>> = history.layouts().iter().filter(of_one).collect();
        let Some(of_op) = self.rng.pick(&layouts) else { return };
        let parent = of_op.parents()[0];
        let Some(before) = history.layouts().iter().find(|it| it.id() == parent) else { return };
        let (head, mut undo) = (history.head(), Vec::new());
        for member in before.members().iter().filter(|it| of_op.member(it.uid).is_none()) {
            if head.member(member.uid).is_none() && !self.nodes[node_of(member.uid)].is_dead {
                undo.push(Change::Add(member.clone()));
            }
        }
        for uid in of_op.members().iter().map(|it| it.uid) {
            if before.member(uid).is_none() && head.member(uid).is_some() {
                undo.push(Change::Remove { uid, lost: false });
            }
        }
        let policy = |layout: &Layout| {
            let policy = layout.keyspace_by_id(self.keyspace).expect("it is never dropped");
            Keyspace { stamp: 0, ..policy.clone() }
        };
        if policy(before) != policy(of_op) {
            undo.push(Change::SetKeyspace(policy(before)));
        }
        if !undo.is_empty() {
            self.commit(at, &undo, Some(before));
        }
    }
}
