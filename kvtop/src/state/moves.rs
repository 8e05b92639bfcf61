//! Operations: how far those under way are, whom they move, what does not get on.

use super::{Cluster, Millis};
use proto::v1::{MoveNode, MovePair, Op, OpState, OpSummary, OpsReply};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A rate is of the answers of so long, or of two if they are further apart.
const RATE_SPAN: Millis = 10_000;

/// Pairs whose rate is followed. Of more no rate is known.
const PAIRS_MAX: usize = 4_096;

/// A share that differs by less is the same: it went through a division.
const SHARE_LEAST: f64 = 1e-6;

/// Operations as last told, and what follows from earlier answers.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    pub reply: OpsReply,
    /// Who gains and loses by the newest operation under way.
    nodes: BTreeMap<String, MoveNode>,
    paces: BTreeMap<(String, String), Pace>,
}

/// When, and how many bytes there were.
type Pace = VecDeque<(Millis, u64)>;

impl Moves {
    /// Takes in the next answer.
    pub(super) fn take(&mut self, reply: OpsReply) {
        self.reply = reply;
        let newest = self.under_way().next().cloned().unwrap_or_default();
        self.nodes = newest.nodes.into_iter().map(|node| (node.node.clone(), node)).collect();
        let now = self.reply.observed_at_ms;
        let mut paces = BTreeMap::new();
        for pair in newest.pairs.into_iter().take(PAIRS_MAX) {
            let key = (pair.from, pair.to);
            let mut pace = self.paces.remove(&key).unwrap_or_default();
            follow(&mut pace, now, pair.bytes_done);
            paces.insert(key, pace);
        }
        self.paces = paces;
    }

    /// Those that are not over, the newest first.
    pub fn under_way(&self) -> impl Iterator<Item = &Op> {
        self.reply.ops.iter().filter(|op| !is_over(op))
    }

    /// Those that are, the last to end first.
    pub fn ended(&self) -> Vec<&Op> {
        let mut ended: Vec<&Op> = self.reply.ops.iter().filter(|op| is_over(op)).collect();
        ended.sort_by_key(|op| std::cmp::Reverse((op.ended_at_ms, op.at_ms)));
        ended
    }

    /// Bytes a second of a pair: as told, else by what it had before. `None`: not known.
    pub fn rate(&self, pair: &MovePair) -> Option<f64> {
        if pair.bytes_per_second > 0 {
            return Some(pair.bytes_per_second as f64);
        }
        let pace = self.paces.get(&(pair.from.clone(), pair.to.clone()))?;
        let ((from, before), (to, after)) = (pace.front()?, pace.back()?);
        let passed = to.saturating_sub(*from) as f64 / 1000.0;
        (passed > 0.0).then(|| after.saturating_sub(*before) as f64 / passed)
    }
}

fn follow(pace: &mut Pace, now: Millis, bytes: u64) {
    // A node that started anew counts anew.
    if pace.back().is_some_and(|(at, before)| *at >= now || *before > bytes) {
        pace.clear();
    }
    pace.push_back((now, bytes));
    while pace.len() > 2 && pace.front().is_some_and(|(at, _)| now.saturating_sub(*at) > RATE_SPAN)
    {
        pace.pop_front();
    }
}

/// Whether it has ended.
pub fn is_over(op: &Op) -> bool {
    matches!(op.state(), OpState::Done | OpState::Cancelled)
}

/// How far it is, 0 to 1. By copies, which are counted, and not by bytes, which are guessed; what
/// moves no copies goes by its transitions. All of it is only reached by what is over.
pub fn progress(op: &Op) -> f64 {
    if op.state() == OpState::Done {
        return 1.0;
    }
    let moving = op.pairs.iter().flat_map(|pair| &pair.moving);
    let moving: f64 = moving.map(|it| it.progress_ratio).filter(|it| it.is_finite()).sum();
    match (op.copies_total, op.transitions_total) {
        (0, total) => part(op.transitions_closed as f64, total),
        (total, _) => part(op.copies_done as f64 + moving, total),
    }
}

/// The same of what every view of the cluster tells.
pub fn summary_progress(op: &OpSummary) -> f64 {
    part(op.copies_done as f64, op.copies_total)
}

fn part(done: f64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { (done / total as f64).clamp(0.0, 0.99) }
}

/// Copies and steps that do not get on.
pub fn stuck(op: &Op) -> u64 {
    op.stuck.iter().map(|stuck| 1 + u64::from(stuck.more)).fold(0, u64::saturating_add)
}

/// Nothing more of it has to move.
pub fn is_there(pair: &MovePair) -> bool {
    pair.copies_done >= pair.copies_total
}

/// Gets or gives copies still.
pub fn is_moving(node: &MoveNode) -> bool {
    node.waiting > 0 || (node.share_now - node.share_after).abs() > SHARE_LEAST
}

/// Has another share afterwards, or something to get.
pub fn is_changing(node: &MoveNode) -> bool {
    node.waiting > 0 || (node.share_before - node.share_after).abs() > SHARE_LEAST
}

impl Cluster {
    /// Takes in what is under way and what was.
    pub fn take_ops(&mut self, reply: OpsReply, now: Millis) {
        let (mut moves, _) = self.details.moves.take().unwrap_or_default();
        moves.take(reply);
        self.details.moves = Some((moves, now));
    }

    /// Operations, unless they were not told lately.
    pub fn moves(&self, now: Millis) -> Option<&Moves> {
        super::details::fresh(self.details.moves.as_ref(), now)
    }

    /// A node's share before, now and after the newest operation under way.
    pub fn change(&self, name: &str, now: Millis) -> Option<&MoveNode> {
        self.moves(now)?.nodes.get(name)
    }

    /// Those that the newest operation under way names and the view of the cluster does not: they
    /// are no members any more, and hand on what they hold.
    pub fn leaving(&self, now: Millis) -> Vec<&MoveNode> {
        let members: BTreeSet<&str> = self.nodes.iter().map(|it| it.seen.name.as_str()).collect();
        let named = self.moves(now).into_iter().flat_map(|moves| moves.nodes.values());
        named.filter(|node| is_moving(node) && !members.contains(node.node.as_str())).collect()
    }

    /// Whether a node's copies are on their way, to it or from it.
    pub fn is_moving(&self, node: &super::Node, now: Millis) -> bool {
        node.is_passing() || self.change(&node.seen.name, now).is_some_and(is_moving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(at: Millis, bytes_done: u64) -> OpsReply {
        let pair =
            MovePair { from: "n1".into(), to: "n2".into(), bytes_done, ..Default::default() };
        let op = Op { state: OpState::Running.into(), pairs: vec![pair], ..Default::default() };
        OpsReply { ops: vec![op], observed_at_ms: at, ..Default::default() }
    }

    #[test]
    fn a_rate_that_is_not_told_is_of_two_answers() {
        let mut moves = Moves::default();
        let rate = |moves: &Moves| moves.rate(&moves.reply.ops[0].pairs[0]);
        moves.take(reply(1_000, 0));
        assert_eq!(rate(&moves), None, "one answer tells none");
        moves.take(reply(3_000, 4_000));
        assert_eq!(rate(&moves), Some(2_000.0));
        moves.take(reply(5_000, 100));
        assert_eq!(rate(&moves), None, "it counts anew");
        (6..40).for_each(|second| moves.take(reply(second * 1_000, 100)));
        assert_eq!(rate(&moves), Some(0.0));
        assert!(moves.paces.values().all(|pace| pace.len() <= 11));
    }

    #[test]
    fn all_of_it_is_reached_only_by_what_is_over() {
        let mut op = Op { copies_total: 4, copies_done: 4, ..Default::default() };
        assert_eq!(progress(&op), 0.99);
        op.state = OpState::Done.into();
        assert_eq!(progress(&op), 1.0);
        assert_eq!(progress(&Op::default()), 0.0);
        let quorum = Op { transitions_total: 4, transitions_closed: 1, ..Default::default() };
        assert_eq!(progress(&quorum), 0.25);
    }
}
