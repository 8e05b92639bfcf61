//! The members of a cluster as witnesses of each other's starts: drives `dynamo::start`.

use super::errors::{self, Failure};
use super::peers::Peer;
use super::{Cluster, Node};
use crate::dynamo::node::{Incarnation, Uid};
use crate::dynamo::start::{Remembered, Start, Verdict, judge};
use proto::v1::{Level, NodeStart};
use std::sync::Arc;
use std::time::Duration;

/// So long after its start a node may take up its last incarnation again. Later it has named many
/// writes under a new one already, and each of their keys would change its actor twice.
const RESUME_WITHIN: Duration = Duration::from_secs(30);

fn fact_name(of: Uid) -> String {
    format!("start/{of}")
}

/// The newest start this node remembers of a member.
pub fn remembered(node: &Node, of: Uid) -> Option<Remembered> {
    let fact = node.store.fact(&fact_name(of)).ok()??; // a store that fails stops the node
    let (count, rest) = fact.split_at_checked(8)?;
    let (incarnation, position) = rest.split_at_checked(16)?;
    let count = u64::from_be_bytes(count.try_into().ok()?);
    // An older kvd remembered no position.
    let position = position.try_into().map_or(0, u64::from_be_bytes);
    Some(Remembered { count, incarnation: Incarnation::from_slice(incarnation)?, position })
}

async fn remember(node: &Node, of: Uid, it: Remembered) -> Result<(), Failure> {
    let mut fact = it.count.to_be_bytes().to_vec();
    fact.extend(it.incarnation.to_bytes());
    fact.extend(it.position.to_be_bytes());
    let stored = node.store.put_fact(&fact_name(of), fact).await;
    let stored = stored.map_err(|_| errors::storage_dropped())?;
    stored.map_err(|error| errors::storage(&error))
}

/// The link to `peer` broke: how far its log had got is brought to this node's disk. Not with every
/// beat, which would cost a sync each.
pub async fn remember_position(node: &Node, peer: &Peer) {
    let mut newest = peer.start.lock().await;
    let Some(before) = *newest else { return };
    if let Some(it) = peer.seen()
        && it.position > before.position
        && remember(node, peer.uid, it).await.is_ok()
    {
        *newest = Some(it);
    }
}

/// Judges the start that `peer` tells, as the first thing on its link. One that is newer is on this
/// node's disk before it is answered: forgotten by a kill -9, it could not be witnessed.
pub async fn hear(
    node: &Arc<Node>,
    cluster: &Cluster,
    peer: &Peer,
    told: Start,
) -> Result<Verdict, Failure> {
    let mut newest = peer.start.lock().await;
    let verdict = judge(peer.seen(), told);
    match verdict {
        Verdict::Known => {}
        Verdict::Newer => {
            let Start { count, incarnation, recovered: position, .. } = told;
            let it = Remembered { count, incarnation, position };
            remember(node, peer.uid, it).await?;
            *newest = Some(it);
            peer.has_started(it);
        }
        Verdict::Forgotten(count) => {
            let name = cluster.name_of(peer.uid);
            let what = format!(
                "{name} runs on an older copy of its data directory: it tells start {}, start {count} was seen",
                told.count
            );
            node.events.add(Level::Degraded, what);
        }
        Verdict::ForgottenData => {
            let name = cluster.name_of(peer.uid);
            let what = format!(
                "{name} has lost writes that were on its disk: start {} begins before what it had told",
                told.count
            );
            node.events.add(Level::Degraded, what);
        }
    }
    Ok(verdict)
}

/// Whether this is the start of `peer` that is remembered. A link for bulk tells nothing new: it is
/// made where the one for requests has been answered.
pub fn knows(peer: &Peer, told: Start) -> bool {
    judge(peer.seen(), told) == Verdict::Known
}

/// A peer has answered, and so has seen no later start of this node. Once all have, the node goes
/// on in the incarnation of its last start, if that one ended cleanly.
pub fn confirmed(node: &Node) {
    let Ok(cluster) = node.cluster() else { return };
    let in_time = node.started.elapsed() < RESUME_WITHIN;
    let all = cluster.peers.values().all(|peer| peer.has_confirmed());
    // Alone, there is no witness.
    if !in_time || !all || cluster.peers.is_empty() {
        return;
    }
    if let Some(incarnation) = node.directory().resume() {
        node.store.live_as(incarnation);
        tracing::info!(%incarnation, "every member confirms the last start: its incarnation goes on");
    }
}

/// A peer has seen `later` starts of this node: its directory was put back from an older copy.
pub async fn forgot(node: &Arc<Node>, who: &str, later: u64) {
    let told = node.start().count;
    if told > later {
        return; // said on a link made before the node went beyond it
    }
    let this = Arc::clone(node);
    let begun = tokio::task::spawn_blocking(move || {
        let mut directory = this.directory();
        let begun = directory.forgot(later);
        begun.map(|incarnation| {
            this.start.store(Arc::new(directory.start()));
            this.store.live_as(incarnation);
            this.vote.withdraw();
        })
    });
    match begun.await {
        Ok(Ok(())) => node.events.add(
            Level::Critical,
            format!(
                "this data directory is an older copy: {who} saw start {later} of this node, this is start {told}; another incarnation begins, and gets do not count this node until it is level"
            ),
        ),
        Ok(Err(error)) => tracing::error!(%error, "cannot begin another incarnation"),
        Err(_) => {} // the node stops
    }
}

/// A peer was told of more than this start found of the log: the directory was put back from a copy
/// made while the node ran, or the end of its log is gone.
pub async fn forgot_data(node: &Arc<Node>, who: &str) {
    let this = Arc::clone(node);
    let noted = tokio::task::spawn_blocking(move || {
        let mut directory = this.directory();
        let noted = directory.forgot_data();
        if matches!(noted, Ok(true)) {
            this.start.store(Arc::new(directory.start()));
            this.vote.withdraw();
        }
        noted
    });
    match noted.await {
        Ok(Ok(true)) => node.events.add(
            Level::Critical,
            format!(
                "this node lost writes that were on its disk: {who} was told of more than is left. Is this a copy made while the node ran? Gets do not count this node until it is level"
            ),
        ),
        Ok(Ok(false)) | Err(_) => {} // it is known, or the node stops
        Ok(Err(error)) => tracing::error!(%error, "cannot remember that data was lost"),
    }
}

/// Whether two messages of a node tell the same start of it.
pub fn is_one(start: Option<&NodeStart>, other: Option<&NodeStart>) -> bool {
    let name = |start: &NodeStart| (start.count, start.incarnation.clone());
    start.map(name) == other.map(name)
}

/// A start as it travels.
pub fn to_wire(start: Start) -> NodeStart {
    let Start { count, incarnation, recovered, knows_loss } = start;
    NodeStart { count, incarnation: incarnation.to_bytes().to_vec().into(), recovered, knows_loss }
}

/// The same, read; nothing if it is malformed.
pub fn from_wire(start: Option<&NodeStart>) -> Option<Start> {
    let NodeStart { count, incarnation, recovered, knows_loss } = start?;
    let incarnation = Incarnation::from_slice(incarnation)?;
    Some(Start { count: *count, incarnation, recovered: *recovered, knows_loss: *knows_loss })
}
