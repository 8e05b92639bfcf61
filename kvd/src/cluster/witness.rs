//! The members of a cluster as witnesses of each other's starts: drives `dynamo::start`.

use super::errors::{self, Failure};
use super::peers::Peer;
use super::{Cluster, Node};
use crate::dynamo::node::{Incarnation, Uid};
use crate::dynamo::start::{Start, Verdict, judge};
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
pub fn remembered(node: &Node, of: Uid) -> Option<Start> {
    let fact = node.store.fact(&fact_name(of)).ok()??; // a store that fails stops the node
    let (count, incarnation) = fact.split_at_checked(8)?;
    let count = u64::from_be_bytes(count.try_into().ok()?);
    Some(Start { count, incarnation: Incarnation::from_slice(incarnation)? })
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
    let verdict = judge(*newest, told);
    match verdict {
        Verdict::Known => {}
        Verdict::Newer => {
            let mut fact = told.count.to_be_bytes().to_vec();
            fact.extend(told.incarnation.to_bytes());
            let stored = node.store.put_fact(&fact_name(peer.uid), fact).await;
            let stored = stored.map_err(|_| errors::storage_dropped())?;
            stored.map_err(|error| errors::storage(&error))?;
            *newest = Some(told);
            peer.has_started(told.count);
        }
        Verdict::Forgotten(count) => {
            let name = cluster.name_of(peer.uid);
            let what = format!(
                "{name} runs on an older copy of its data directory: it tells start {}, start {count} was seen",
                told.count
            );
            node.events.add(Level::Degraded, what);
        }
    }
    Ok(verdict)
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

/// A start as it travels.
pub fn to_wire(start: Start) -> NodeStart {
    let incarnation = start.incarnation.to_bytes().to_vec().into();
    NodeStart { count: start.count, incarnation }
}

/// The same, read; nothing if it is malformed.
pub fn from_wire(start: Option<&NodeStart>) -> Option<Start> {
    let start = start?;
    Some(Start { count: start.count, incarnation: Incarnation::from_slice(&start.incarnation)? })
}
