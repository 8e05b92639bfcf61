//! Which node may be stopped, what other quorums would mean, and a node that takes no requests.

use super::errors::{self, Failure};
use super::{Cluster, Node, deadline, view};
use crate::clock;
use crate::dynamo::history::History;
use crate::dynamo::layout::{Change, Keyspace, Mode};
use crate::dynamo::node::Uid;
use crate::dynamo::opinion::State;
use crate::dynamo::safety::{Present, meaning, without_each};
use proto::v1::{
    DrainCall, DrainReply, DrainRequest, GetSafetyRequest, Level, NodeSafety, QuorumMeaning,
    SafetyReply, answer, call,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Nodes with a part in the cluster that are up, by this node's opinion.
pub fn up(node: &Node, cluster: &Cluster) -> BTreeSet<Uid> {
    let is_up = |uid: &Uid| {
        let state = node.detector.opinion(*uid).state;
        *uid == node.uid || matches!(state, State::Up | State::Suspect)
    };
    cluster.history.members().iter().map(|member| member.uid).filter(is_up).collect()
}

/// The same, and who of them has a vote.
fn present(node: &Node, cluster: &Cluster) -> Present {
    let up = up(node, cluster);
    let votes = |uid: &Uid| match cluster.peers.get(uid) {
        Some(peer) => !peer.has_lost_data(),
        None => node.vote.is_given(),
    };
    Present { voting: up.iter().copied().filter(votes).collect(), up }
}

/// Which nodes may be stopped, and what other values would mean for a keyspace.
pub fn everything(node: &Node, request: &GetSafetyRequest) -> Result<SafetyReply, Failure> {
    let cluster = node.cluster()?;
    let (history, present) = (&cluster.history, present(node, &cluster));
    let without = without_each(history, &present);
    let members = history.members();
    let nodes = members.iter().map(|member| match without.get(&member.uid) {
        Some(safety) => NodeSafety {
            node: member.name.clone(),
            safe: safety.is_safe(),
            down: false,
            partitions: safety.partitions,
            keyspaces: safety.keyspaces.iter().cloned().collect(),
        },
        None => NodeSafety { node: member.name.clone(), down: true, ..NodeSafety::default() },
    });
    let mut nodes: Vec<NodeSafety> = nodes.collect();
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let (mut now, mut then) = (None, None);
    if !request.keyspace.is_empty() {
        let keyspace = super::coordinator::keyspace(&cluster, &request.keyspace)?;
        let other = otherwise(keyspace, request)?;
        now = Some(in_words(history, keyspace, &present)?);
        then = Some(in_words(history, &other, &present)?);
    }
    Ok(SafetyReply {
        viewpoint: node.name(),
        layout: Some(view::layout_ref(&cluster.layout)),
        nodes,
        now,
        then,
        partitions: 1 << history.bits(),
    })
}

fn otherwise(keyspace: &Keyspace, request: &GetSafetyRequest) -> Result<Keyspace, Failure> {
    let asked = |asked: Option<u32>, now: u8| match asked {
        Some(asked) => u8::try_from(asked).unwrap_or(u8::MAX),
        None => now,
    };
    let mode = match request.mode.map(proto::v1::Mode::try_from) {
        Some(Ok(proto::v1::Mode::Sloppy)) => Mode::Sloppy,
        Some(Ok(proto::v1::Mode::Strict)) => Mode::Strict,
        _ => keyspace.mode,
    };
    let (n, r, w) = (keyspace.n, keyspace.r, keyspace.w);
    let (n, r, w) = (asked(request.n, n), asked(request.r, r), asked(request.w, w));
    let other = Keyspace { n, r, w, mode, ..keyspace.clone() };
    other.check().map_err(|error| errors::argument("that cannot be", error.to_string()))?;
    Ok(other)
}

fn in_words(
    history: &History,
    keyspace: &Keyspace,
    present: &Present,
) -> Result<QuorumMeaning, Failure> {
    let head = history.head();
    let has_its_n = head.keyspace_by_id(keyspace.id()).is_some_and(|it| it.n == keyspace.n);
    let meaning = match has_its_n {
        true => meaning(history, keyspace, present),
        // Where the copies of another N would be is for a plan to say.
        false => {
            let planned = head.changed(&[Change::SetKeyspace(keyspace.clone())], Vec::new(), None);
            let planned =
                planned.map_err(|error| errors::argument("that cannot be", error.to_string()))?;
            meaning(&History::new(planned), keyspace, present)
        }
    };
    let mode = match keyspace.mode {
        Mode::Sloppy => proto::v1::Mode::Sloppy,
        Mode::Strict => proto::v1::Mode::Strict,
    };
    Ok(QuorumMeaning {
        n: keyspace.n.into(),
        r: keyspace.r.into(),
        w: keyspace.w.into(),
        mode: mode.into(),
        gets_fail: meaning.gets_fail,
        puts_fail: meaning.puts_fail,
        gets_survive: meaning.gets_survive.into(),
        puts_survive: meaning.puts_survive.into(),
        overlaps: keyspace.r + keyspace.w > keyspace.n && keyspace.mode == Mode::Strict,
    })
}

// === draining ===

/// Has a node take no client requests, or take them again.
pub async fn drain(node: &Arc<Node>, request: DrainRequest) -> Result<DrainReply, Failure> {
    let cluster = node.cluster()?;
    let member = cluster.layout.member_named(&request.node);
    let member = member.ok_or_else(|| errors::node_unknown(&request.node))?;
    let ask = DrainCall { on: request.on };
    let Some(peer) = cluster.peers.get(&member.uid) else { return Ok(drain_here(node, ask)) };
    match peer.call(call::Body::Drain(ask), 0, deadline(clock::now(), 0)).await {
        Ok(answer::Body::Drain(reply)) => Ok(reply),
        Ok(_) => Err(errors::internal("a node answered something else")),
        Err(error) => Err(errors::node_unreachable(&request.node, &error.text())),
    }
}

/// The same of this node.
pub fn drain_here(node: &Node, ask: DrainCall) -> DrainReply {
    if node.drained.swap(ask.on, Ordering::Relaxed) != ask.on {
        let text = match ask.on {
            true => "drained: it takes no client requests, and stays a replica",
            false => "takes client requests again",
        };
        node.events.add(Level::Ok, text.to_owned());
    }
    DrainReply { requests: node.requests_under_way() }
}
