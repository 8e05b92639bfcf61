//! What is only asked for while a view shows it: partitions, how repair goes, layout, operations.

use super::{Cluster, Lag, Millis, Moves, Ring};
use proto::v1::{PairView, PartitionView, PartitionsReply, RepairReply};

/// An answer older than this says nothing about now.
const AGE_MAX: Millis = 10_000;

/// What a view needs besides the cluster itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub partitions: bool,
    pub repair: bool,
    pub layout: bool,
    pub ops: bool,
}

impl Wanted {
    /// Whether it is anything.
    pub fn some(self) -> bool {
        self != Self::default()
    }
}

/// The last answers, and when they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Details {
    pub(super) partitions: Option<(PartitionsReply, Millis)>,
    pub(super) repair: Option<(RepairReply, Millis)>,
    pub(super) ring: Option<Ring>,
    pub(super) moves: Option<(Moves, Millis)>,
}

impl Cluster {
    /// Takes in who holds what.
    pub fn take_partitions(&mut self, reply: PartitionsReply, now: Millis) {
        self.details.partitions = Some((reply, now));
    }

    /// Takes in how repair goes.
    pub fn take_repair(&mut self, reply: RepairReply, now: Millis) {
        self.details.repair = Some((reply, now));
    }

    /// Who holds what, unless it was not told lately.
    pub fn partitions(&self, now: Millis) -> Option<&PartitionsReply> {
        fresh(self.details.partitions.as_ref(), now)
    }

    /// How repair goes, unless it was not told lately.
    pub fn repair(&self, now: Millis) -> Option<&RepairReply> {
        fresh(self.details.repair.as_ref(), now)
    }
}

pub(super) fn fresh<T>(told: Option<&(T, Millis)>, now: Millis) -> Option<&T> {
    told.filter(|(_, at)| now.saturating_sub(*at) <= AGE_MAX).map(|(told, _)| told)
}

/// The worst lag of a partition's copies, and whose it is.
pub fn worst(partition: &PartitionView, now: Millis) -> Option<(Lag, &str)> {
    let lags = partition.replicas.iter().map(|it| (Lag::of_replica(it), it.node.as_str()));
    lags.max_by_key(|(lag, _)| lag.badness(now))
}

/// For each number of live copies elsewhere, how many partitions of `node` have so many; and how
/// many each should have, itself included.
pub fn live_elsewhere(reply: &PartitionsReply, node: &str) -> Vec<usize> {
    let mut count = vec![0; (reply.n as usize).clamp(1, 255)];
    for partition in &reply.partitions {
        if !partition.replicas.iter().any(|replica| replica.node == node) {
            continue;
        }
        let others = partition.replicas.iter().filter(|replica| replica.node != node);
        let live = others.filter(|replica| replica.state() == proto::v1::NodeState::Up).count();
        let most = count.len() - 1;
        count[live.min(most)] += 1;
    }
    count
}

/// What all rounds of repair together tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rounds {
    /// Pairs that compare now, each once.
    pub running: Vec<(String, String)>,
    /// Keys brought level in the last round of each pair, and in all of them.
    pub repaired_last: u64,
    pub repaired: u64,
    /// Rounds that ended.
    pub ended: u64,
    /// The first that could not be asked or whose last round failed, and why.
    pub failed: Option<(String, String)>,
}

impl Rounds {
    /// Sums up an answer.
    pub fn of(reply: &RepairReply) -> Self {
        let mut all = Self::default();
        for view in &reply.nodes {
            if !view.error.is_empty() {
                all.failed.get_or_insert_with(|| (view.node.clone(), view.error.clone()));
            }
            for pair in &view.pairs {
                all.add(&view.node, pair);
            }
        }
        all
    }

    fn add(&mut self, node: &str, pair: &PairView) {
        let two = match node <= pair.peer.as_str() {
            true => (node.to_owned(), pair.peer.clone()),
            false => (pair.peer.clone(), node.to_owned()),
        };
        if pair.running && !self.running.contains(&two) {
            self.running.push(two);
        } else if !pair.error.is_empty() {
            let whom = format!("{node}~{}", pair.peer);
            self.failed.get_or_insert_with(|| (whom, pair.error.clone()));
        }
        self.repaired_last = self.repaired_last.saturating_add(pair.repaired_last);
        self.repaired = self.repaired.saturating_add(pair.repaired);
        self.ended = self.ended.saturating_add(pair.rounds);
    }
}

/// The worst lag of each partition, in ring order.
pub fn worst_lags(reply: &PartitionsReply, now: Millis) -> Vec<Lag> {
    let lag = |partition| worst(partition, now).map_or(Lag::Unknown, |(lag, _)| lag);
    reply.partitions.iter().map(lag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{NodeState, RepairView, ReplicaView};

    #[test]
    fn copies_elsewhere_are_those_that_are_up() {
        let replica = |node: &str, state: NodeState| ReplicaView {
            node: node.into(),
            state: state.into(),
            ..Default::default()
        };
        let partition = |states: [NodeState; 3]| PartitionView {
            replicas: ["n1", "n2", "n3"].iter().zip(states).map(|(n, s)| replica(n, s)).collect(),
            ..Default::default()
        };
        let (up, down) = (NodeState::Up, NodeState::Down);
        let partitions = vec![partition([down, up, up]), partition([up, up, down])];
        let reply = PartitionsReply { n: 3, partitions, ..Default::default() };
        assert_eq!(live_elsewhere(&reply, "n1"), [0, 1, 1]);
        assert_eq!(live_elsewhere(&reply, "n9"), [0, 0, 0]);
    }

    #[test]
    fn a_pair_that_both_sides_tell_of_runs_once() {
        let pair = |peer: &str| PairView {
            peer: peer.into(),
            running: true,
            repaired: 4,
            repaired_last: 1,
            ..Default::default()
        };
        let view = |node: &str, peer: &str| RepairView {
            node: node.into(),
            pairs: vec![pair(peer)],
            ..Default::default()
        };
        let lost = RepairView { node: "n3".into(), error: "gone".into(), ..Default::default() };
        let reply = RepairReply { nodes: vec![view("n2", "n1"), view("n1", "n2"), lost] };
        let rounds = Rounds::of(&reply);
        assert_eq!(rounds.running, [("n1".to_owned(), "n2".to_owned())]);
        assert_eq!((rounds.repaired, rounds.repaired_last), (8, 2));
        assert_eq!(rounds.failed, Some(("n3".into(), "gone".into())));
    }
}
