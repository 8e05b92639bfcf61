//! Comparing copies with as many replicas as the history asks for, and letting others compare.

use crate::cluster::errors::{self, Failure};
use crate::cluster::{Cluster, Node, documents, membership, repair};
use crate::dynamo::history::{Coverage, SyncTask};
use crate::dynamo::merkle::{LEAVES, Span};
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::partners::partners;
use futures_util::future::join_all;
use proto::token::Token;
use proto::v1::TreeCall;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A partition that has to be made level with others.
pub(super) struct Need {
    pub(super) keyspace: KeyspaceId,
    pub(super) partition: u32,
    /// The layout that began the new set of replicas it is for, if it is for one.
    pub(super) origin: Option<LayoutId>,
    /// As a replica of which layout the others are asked.
    pub(super) under: LayoutId,
    /// Who may be asked, this node left out.
    pub(super) candidates: Vec<Uid>,
    /// With how many of them.
    pub(super) needed: usize,
}

/// Which partitions are level, and what is wrong with those that could not be compared with.
pub(super) struct Levelled {
    pub(super) done: Vec<bool>,
    pub(super) why: BTreeMap<Uid, String>,
}

/// Compares these copies with as many others as each needs, and makes them equal.
pub(super) async fn bring_level(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    needs: &[Need],
) -> Levelled {
    let bits = cluster.history.bits();
    let partitions = 1 << bits;
    let mut why: BTreeMap<Uid, String> = BTreeMap::new();
    let mut there: Vec<Vec<Uid>> = Vec::with_capacity(needs.len());
    for need in needs {
        let mut up = Vec::with_capacity(need.candidates.len());
        for uid in &need.candidates {
            match cluster.peers.get(uid) {
                Some(peer) if peer.is_usable() => up.push(*uid),
                Some(peer) if peer.is_new() => {} // it is linked to in a moment
                Some(peer) => _ = why.entry(*uid).or_insert_with(|| peer.why_not()),
                None => _ = why.entry(*uid).or_insert_with(|| "is no member".into()),
            }
        }
        there.push(up);
    }
    let wanted = there.iter().zip(needs).map(|(there, need)| (&there[..], need.needed));
    let chosen = partners(wanted, node.moves.turns.fetch_add(1, Ordering::Relaxed));
    let comparing = chosen.into_iter().filter_map(|(uid, wanted)| {
        let peer = cluster.peers.get(&uid)?;
        let mut work: repair::Work = BTreeMap::new();
        for need in wanted.iter().map(|at| &needs[*at]) {
            let spans = work.entry((need.keyspace, need.under, need.origin)).or_default();
            spans.push(Span::of_partition(need.partition, partitions));
        }
        Some(async move { (uid, wanted, repair::level(node, cluster, peer, work).await) })
    });
    // Beside each other: they wait for the same checkpoints.
    let mut level = vec![0; needs.len()];
    for (uid, wanted, outcome) in join_all(comparing.collect::<Vec<_>>()).await {
        let (unlike, text) = match outcome {
            Ok(outcome) => outcome,
            Err(text) => {
                why.insert(uid, text);
                continue;
            }
        };
        for at in wanted {
            let need = &needs[at];
            let work = (need.keyspace, need.under, need.origin);
            let is_level = unlike.is_level(&work, need.keyspace, (need.partition, bits));
            level[at] += usize::from(is_level);
        }
        if !text.is_empty() {
            why.insert(uid, text);
        }
    }
    let done = level.into_iter().zip(needs).map(|(level, need)| level >= need.needed);
    Levelled { done: done.collect(), why }
}

/// Compares copies as their tasks say; returns those that are level.
pub(super) async fn compare(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    ready: &[SyncTask],
) -> Vec<SyncTask> {
    let mut needs = Vec::with_capacity(ready.len());
    let mut of_task = Vec::with_capacity(ready.len());
    for task in ready {
        let first = needs.len();
        needs.push(need_of(node, task, &task.under, (&task.candidates, task.needed)));
        let also = task.also.iter();
        needs.extend(also.map(|it| need_of(node, task, &it.under, (&it.candidates, it.needed))));
        of_task.push(first..needs.len());
    }
    let Levelled { done, why } = bring_level(node, cluster, &needs).await;
    let mut level = Vec::new();
    for (task, of_it) in ready.iter().zip(of_task) {
        if done[of_it].iter().all(|done| *done) {
            level.push(task.clone());
            continue;
        }
        let mut asked =
            task.candidates.iter().chain(task.also.iter().flat_map(|it| &it.candidates));
        if let Some(uid) = asked.find(|uid| why.contains_key(uid)) {
            super::progress::note_stuck(node, cluster, task, *uid, &why[uid]);
        }
    }
    level
}

fn need_of(
    node: &Node,
    task: &SyncTask,
    under: &LayoutId,
    (candidates, needed): (&[Uid], usize),
) -> Need {
    let others = candidates.iter().copied().filter(|uid| *uid != node.uid);
    // What it holds itself it need not ask for, if that is all it should. Of its own config it is
    // one too: W others are level there, and it asks N-W of them.
    let counts = candidates.contains(&node.uid) && node.vote.is_given();
    Need {
        keyspace: task.keyspace,
        partition: task.partition,
        origin: Some(task.origin),
        under: *under,
        candidates: others.collect(),
        needed: needed.saturating_sub(counts.into()),
    }
}

/// Whether this node may be compared with for a new set of replicas: it knows of them, has lost
/// nothing, and is still read under the layout that they come from.
pub async fn may_compare(node: &Arc<Node>, from: Uid, ask: &TreeCall) -> Result<(), Failure> {
    let (Some(origin), Some(under)) =
        (documents::named(&ask.layout_id), documents::named(&ask.under))
    else {
        return Ok(()); // no more than a repair
    };
    if !membership::learn_of(node, from, origin).await {
        return Err(errors::layout_stale());
    }
    if !node.vote.is_given() {
        return Err(errors::argument("it lost data", "it is not level yet"));
    }
    let cluster = node.cluster()?;
    let history = &cluster.history;
    let keyspace = KeyspaceId(ask.keyspace);
    let bits = history.bits();
    for span in ask.spans.iter().filter_map(|span| Span::checked(span.first, span.leaves)) {
        let place = |leaf: u32| (u64::from(leaf) << bits) / u64::from(LEAVES);
        let (first, end) = (place(span.first), place(span.end() - 1) + 1);
        for partition in first..end {
            let token = Token::range(partition as u32, bits).0;
            let may = history.may_compare(node.uid, (origin, under), keyspace, token);
            if may != Coverage::Known {
                return Err(errors::replica_closed());
            }
        }
    }
    Ok(())
}
