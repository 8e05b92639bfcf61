//! Who holds each partition, and how far behind: every member is asked what it keeps for whom.

use super::errors::{self, Failure};
use super::view::{layout_ref, state_of, told};
use super::{Cluster, Node, coordinator, peers, repair, survey};
use crate::clock;
use crate::dynamo::arc::{ARC_BITS, Arcs, Asked, Joined, ReplicaLag};
use crate::dynamo::lag::{Kept, Told};
use crate::dynamo::layout::Member;
use crate::dynamo::node::Uid;
use crate::storage::StoreError;
use proto::token::Token;
use proto::v1::{
    ArcsKept, GetPartitionsRequest, NodePartitions, NodeState, PartitionView, PartitionsCall,
    PartitionsReply, ReplicaView, answer, call,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// While hints of earlier are counted by arc, the writes of clients have the writer so long between
/// two pages.
const COUNT_PAUSE: Duration = Duration::from_millis(20);

/// Counts by arc what was kept before the start, in the background.
pub async fn count(node: Arc<Node>) {
    // A store that has stopped, or closes, answers nothing any more.
    while let Ok(counted) = node.store.count_hints().await {
        match counted {
            Ok(false) | Err(StoreError::Stopped(_)) => return,
            Ok(true) | Err(_) => tokio::time::sleep(COUNT_PAUSE).await,
        }
    }
}

/// The partitions of a keyspace, as all members together tell.
pub async fn everywhere(
    node: &Arc<Node>,
    request: GetPartitionsRequest,
) -> Result<PartitionsReply, Failure> {
    let cluster = node.cluster()?;
    let layout = &cluster.layout;
    let keyspace = coordinator::keyspace(&cluster, &request.keyspace)?;
    let wanted = match request.node.as_str() {
        "" => None,
        name => Some(layout.member_named(name).ok_or_else(|| errors::node_unknown(name))?.uid),
    };
    let asked = ask(node, &cluster).await?;
    let joined = Joined::of(&asked);
    let states: BTreeMap<Uid, NodeState> =
        layout.members().iter().map(|it| (it.uid, state_of(node, &cluster, it.uid))).collect();
    let (bits, n) = (layout.partition_bits(), keyspace.n);
    let view = |partition: u32| {
        let members: Vec<&Member> = layout.replicas(n, partition).collect();
        let uids: Vec<Uid> = members.iter().map(|member| member.uid).collect();
        let replica = |member: &&Member| {
            let lag = joined.lag(member.uid, partition, bits, &uids);
            replica_view(member, states[&member.uid], lag)
        };
        let replicas: Vec<ReplicaView> = members.iter().map(replica).collect();
        let live = replicas.iter().filter(|replica| replica.state() == NodeState::Up);
        let (first, last) = Token::range(partition, bits);
        PartitionView {
            partition,
            range_start: first.to_bytes().to_vec().into(),
            range_end: last.to_bytes().to_vec().into(),
            live: live.count() as u32,
            replicas,
        }
    };
    let holds =
        |p: &u32| wanted.is_none_or(|uid| layout.replicas(n, *p).any(|member| member.uid == uid));
    Ok(PartitionsReply {
        viewpoint: node.name(),
        observed_at_ms: clock::now_ms(),
        layout: Some(layout_ref(layout)),
        keyspace: keyspace.name.clone(),
        n: n.into(),
        partition_bits: bits,
        arc_bits: ARC_BITS,
        unheard: asked.iter().filter(|it| it.told.is_none()).map(|it| it.name.clone()).collect(),
        partitions: (0..layout.partitions()).filter(holds).map(view).collect(),
    })
}

/// What this node alone can tell.
pub fn here(node: &Node) -> NodePartitions {
    let (totals, arcs) = node.store.hint_arcs();
    let kept = |(target, arcs): (Uid, BTreeMap<u16, Kept>)| ArcsKept {
        target_uid: target.to_bytes().to_vec().into(),
        arc: arcs.keys().copied().map(u32::from).collect(),
        keys: arcs.values().map(|kept| kept.keys).collect(),
        bytes: arcs.values().map(|kept| kept.bytes).collect(),
        since_ms: arcs.values().map(|kept| kept.since_ms).collect(),
    };
    NodePartitions {
        hints: peers::wire_totals(totals),
        arcs: arcs.into_iter().map(kept).collect(),
        checks: repair::checks(node),
    }
}

async fn ask(node: &Arc<Node>, cluster: &Cluster) -> Result<Vec<Asked>, Failure> {
    let understand = |answer| match answer {
        answer::Body::Partitions(told) => Some(told),
        _ => None,
    };
    let body = call::Body::Partitions(PartitionsCall {});
    let answers = survey::ask(node, "", body, || here(node), understand).await?;
    let asked = answers.into_iter().filter_map(|(name, outcome)| {
        let uid = cluster.layout.member_named(&name)?.uid;
        Some(Asked { node: uid, name, told: outcome.ok().map(understood) })
    });
    Ok(asked.collect())
}

fn understood(answer: NodePartitions) -> (Told, Arcs) {
    let arcs = answer.arcs.iter().filter_map(|kept| {
        let arcs = kept.arc.iter().zip(&kept.keys).zip(&kept.bytes).zip(&kept.since_ms);
        let arcs = arcs.filter_map(|(((arc, keys), bytes), since_ms)| {
            let arc = u16::try_from(*arc).ok()?;
            Some((arc, Kept { keys: *keys, bytes: *bytes, since_ms: *since_ms, overflowed: false }))
        });
        Some((Uid::from_slice(&kept.target_uid)?, arcs.collect()))
    });
    (told(&answer.hints, &answer.checks, clock::now_ms()), arcs.collect())
}

fn replica_view(member: &Member, state: NodeState, lag: ReplicaLag) -> ReplicaView {
    let ReplicaLag { since_ms, keys, bytes, known, checked_at_ms, differing } = lag;
    ReplicaView {
        node: member.name.clone(),
        state: state.into(),
        since_ms,
        keys,
        bytes,
        known,
        checked_at_ms: checked_at_ms.unwrap_or(0),
        differing,
    }
}
