//! What every coordinated request needs: a place among those under way, its keyspace, one
//! replica's copy, a merge on one replica.

use super::errors::{self, Failure};
use super::peers::CallError;
use super::{Cluster, Node, handoff};
use crate::clock;
use crate::dynamo::key::Key;
use crate::dynamo::layout::Keyspace;
use crate::dynamo::node::{KeyspaceId, Uid};
use crate::dynamo::object::{Object, Record};
use crate::dynamo::version::Dot;
use bytes::Bytes;
use proto::v1::{
    self, HintCall, MergeCall, ReadCall, ReplicaAnswer, Sibling, answer, call, replica_answer,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Looks up a keyspace by the name a client gave; none means `default`.
pub fn keyspace<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Keyspace, Failure> {
    let name = if name.is_empty() { "default" } else { name };
    cluster.layout.keyspace(name).ok_or_else(|| {
        let known: Vec<&str> =
            cluster.layout.keyspaces().values().map(|k| k.name.as_str()).collect();
        errors::keyspace_unknown(name, &known)
    })
}

/// What a node that is no replica of a key keeps of it for those who are.
pub async fn read_hints(
    node: &Arc<Node>,
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    deadline: Instant,
) -> Result<Option<Object>, CallError> {
    if on == node.uid {
        return Ok(handoff::kept_for_homes(node, cluster, key));
    }
    read_on(cluster, on, key, true, deadline).await
}

/// This node's own copy of a key, or another's: a raw read, unmerged and unrepaired.
pub async fn read_copy(
    node: &Arc<Node>,
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    deadline: Instant,
) -> Result<Option<Object>, CallError> {
    if on == node.uid {
        return node.store.read(key).map_err(|error| CallError::Refused(errors::storage(&error)));
    }
    read_on(cluster, on, key, false, deadline).await
}

async fn read_on(
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    with_hints: bool,
    deadline: Instant,
) -> Result<Option<Object>, CallError> {
    let peer = cluster.peers.get(&on).ok_or_else(|| CallError::NotSent("is no member".into()))?;
    let keyspace = key.keyspace().0;
    let body = call::Body::Read(ReadCall { keyspace, key: key.bytes().clone(), with_hints });
    match peer.call(body, key.bytes().len(), deadline).await? {
        answer::Body::Read(answer) if answer.object.is_empty() => Ok(None),
        answer::Body::Read(answer) => Object::decode(answer.object)
            .map(Some)
            .map_err(|error| CallError::Lost(format!("sent a copy that is {error}"))),
        _ => Err(CallError::Lost("answered something else".into())),
    }
}

/// Sends an encoded object to be merged into another replica's copy, and waits until it is on its
/// disk.
pub async fn merge_on(
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    object: Bytes,
    deadline: Instant,
) -> Result<(), CallError> {
    let bytes = object.len();
    let (keyspace, key) = (key.keyspace().0, key.bytes().clone());
    let body = call::Body::Merge(MergeCall { keyspace, key, object });
    stored_on(cluster, on, body, bytes, deadline).await
}

/// Has a fallback keep an encoded object for `home`, and waits until it is on its disk.
pub async fn hint_on(
    cluster: &Cluster,
    on: Uid,
    home: Uid,
    key: &Key,
    object: Bytes,
    deadline: Instant,
) -> Result<(), CallError> {
    let bytes = object.len();
    let (keyspace, key) = (key.keyspace().0, key.bytes().clone());
    let home_uid = home.to_bytes().to_vec().into();
    let body = call::Body::Hint(HintCall { home_uid, keyspace, key, object });
    stored_on(cluster, on, body, bytes, deadline).await
}

/// Sends a call that stores something, and waits until it is on disk there.
async fn stored_on(
    cluster: &Cluster,
    on: Uid,
    body: call::Body,
    bytes: usize,
    deadline: Instant,
) -> Result<(), CallError> {
    let peer = cluster.peers.get(&on).ok_or_else(|| CallError::NotSent("is no member".into()))?;
    match peer.call(body, bytes, deadline).await? {
        answer::Body::Merge(_) | answer::Body::Hint(_) => Ok(()),
        _ => Err(CallError::Lost("answered something else".into())),
    }
}

/// Keeps an object here for `home`, and waits until it is on disk.
pub async fn keep_hint_here(
    node: &Node,
    home: Uid,
    key: &Key,
    object: Object,
) -> Result<(), Failure> {
    let synced = node.store.keep_hint(home, key.clone(), object, clock::now_ms()).await;
    synced.map_err(|_| errors::storage_dropped())?.map_err(|error| errors::storage(&error))
}

/// Merges an object into this node's own copy, and waits until it is on disk.
pub async fn merge_here(node: &Node, key: &Key, object: Object) -> Result<(), Failure> {
    let synced = node.store.merge(key.clone(), object).await;
    synced.map_err(|_| errors::storage_dropped())?.map_err(|error| errors::storage(&error))
}

/// This node first (it costs no trip), then those that answer, quickest first, then the rest.
pub fn quickest_first(node: &Node, cluster: &Cluster, homes: &[Uid]) -> Vec<Uid> {
    let mut order = homes.to_vec();
    order.sort_by_cached_key(|uid| match cluster.peers.get(uid) {
        _ if *uid == node.uid => (0, 0),
        // Coarsely, so that equals keep the key's own rotation and share the load.
        Some(peer) if peer.is_usable() => (1, peer.latency_us().max(1).ilog2() / 2),
        _ => (2, 0),
    });
    order
}

/// Once the deadline has passed, says of replicas that were asked and said nothing that they did.
pub fn mark_silent(replicas: &mut [ReplicaAnswer], started: Instant, deadline: Instant) {
    if clock::now() < deadline {
        return; // the others' failures ended it before these had their time
    }
    let waited = started.elapsed().as_millis();
    for replica in replicas {
        if replica.verdict() == replica_answer::Verdict::Pending {
            replica.error = format!("gave no answer in {waited} ms");
        }
    }
}

/// One value as a client sees it.
pub fn sibling(dot: Dot, record: &Record, value: Bytes, context: Bytes) -> Sibling {
    Sibling {
        value,
        dot: Some(wire_dot(dot)),
        written_at_ms: dot.counter.ms(),
        checksum: record.checksum,
        context,
    }
}

/// A dot on the wire.
pub fn wire_dot(dot: Dot) -> v1::Dot {
    v1::Dot { actor: dot.actor.0, counter: dot.counter.0 }
}

/// A place among the requests under way, or the refusal of one too many.
pub fn admit(node: &Node) -> Result<tokio::sync::SemaphorePermit<'_>, Failure> {
    if node.draining.load(Ordering::Relaxed) {
        return Err(errors::draining());
    }
    node.requests.try_acquire().map_err(|_| errors::overloaded("too many requests are under way"))
}

pub fn count_failure(node: &Node, failure: &v1::ErrorDetail) {
    use v1::ErrorCode::{Internal, Overloaded, QuorumUnmet, StorageFailed};
    if matches!(failure.code(), QuorumUnmet | StorageFailed | Overloaded | Internal) {
        node.stats.failures.add();
    }
}

/// A key of the keyspace a peer named by id. The peer may know a keyspace this node does not yet.
pub fn key_from_peer(keyspace: u64, key: Bytes) -> Result<Key, Failure> {
    Key::new(KeyspaceId(keyspace), key).map_err(|error| errors::key(&error))
}
