//! What every coordinated request needs: a place among those under way, its keyspace, one
//! replica's copy, a merge on one replica.

use super::errors::{self, Failure};
use super::lane::{CallError, Lane};
use super::peers::Peer;
use super::{Cluster, Node, handoff, membership};
use crate::clock;
use crate::dynamo::history::Coverage;
use crate::dynamo::key::Key;
use crate::dynamo::layout::Keyspace;
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::object::{Object, Record};
use crate::dynamo::version::Dot;
use bytes::Bytes;
use proto::v1::{
    self, HintCall, MergeCall, ReadAnswer, ReadCall, ReplicaAnswer, Sibling, answer, call,
    replica_answer,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Peers that answer within this are as quick as each other: they share the load.
const QUICK_US: u64 = 1000;

/// Looks up a keyspace by the name a client gave; none means `default`.
pub fn keyspace<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Keyspace, Failure> {
    let name = if name.is_empty() { "default" } else { name };
    cluster.layout.keyspace(name).ok_or_else(|| {
        let known: Vec<&str> =
            cluster.layout.keyspaces().values().map(|k| k.name.as_str()).collect();
        errors::keyspace_unknown(name, &known)
    })
}

/// Whether this node, as a replica, may be read under the config that layout `under` has of a key.
pub fn may_read(node: &Node, key: &Key, under: LayoutId) -> Coverage {
    let Ok(cluster) = node.cluster() else { return Coverage::Ahead };
    cluster.history.may_read(node.uid, under, key.keyspace(), key.token())
}

/// Whether this node is no replica of a key, as far as it knows: see [`History::is_foreign`].
///
/// [`History::is_foreign`]: crate::dynamo::history::History::is_foreign
pub fn is_foreign(node: &Node, key: &Key) -> bool {
    let Ok(cluster) = node.cluster() else { return false };
    cluster.history.is_foreign(node.uid, key.keyspace(), key.token())
}

/// Whether this node keeps nothing for others any more: it leaves, and gives away what it has.
pub fn keeps_no_more(node: &Node) -> bool {
    node.cluster().is_ok_and(|cluster| cluster.layout.member(node.uid).is_none())
}

/// What a write knows of the layouts.
#[derive(Clone, Debug)]
pub struct Known {
    /// The newest.
    pub newest: LayoutId,
    /// The layouts that began the sets of replicas it goes to; none while nothing moves.
    pub sets: Arc<[LayoutId]>,
}

/// Whether a coordinator that knows this knows every replica of a key that this node knows.
pub fn covers(node: &Node, key: &Key, known: &Known) -> Coverage {
    let Ok(cluster) = node.cluster() else { return Coverage::Ahead };
    cluster.history.covers((known.newest, &known.sets), key.keyspace(), key.token())
}

/// Whether an error says that the layout has changed: with what is known by now, the same may
/// succeed.
pub fn is_of_layout(error: &CallError) -> bool {
    use v1::ErrorCode::{LayoutStale, ReplicaClosed};
    match error {
        CallError::Refused(detail) => matches!(detail.code(), LayoutStale | ReplicaClosed),
        _ => false,
    }
}

/// Has this node know what a peer does of the layouts, which said that it knows more. Once in a
/// while it is this node that knows more: then the peer does after this.
pub async fn catch_up(node: &Arc<Node>, cluster: &Cluster, with: Option<Uid>) {
    match with.and_then(|uid| cluster.peers.get(&uid)) {
        Some(peer) => membership::exchange_for_a_request(node, peer).await,
        None => tokio::task::yield_now().await,
    }
}

/// One replica's copy of a key; an absent one is an empty object.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// What it holds.
    pub object: Object,
    /// Whether that is all it should hold: not of a node that lost data.
    pub votes: bool,
}

/// What a node that is no replica of a key keeps of it for those who are.
pub async fn read_hints(
    node: &Arc<Node>,
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    deadline: Instant,
) -> Result<Held, CallError> {
    if on == node.uid {
        let object = handoff::kept_for_homes(node, cluster, key).unwrap_or_default();
        return Ok(Held { object, votes: true });
    }
    read_on(cluster, (Lane::Requests, on), key, (true, None), deadline).await
}

/// This node's own copy of a key, or another's, had by `lane`: a raw read, unmerged and unrepaired.
/// `under`: as a replica of that layout, or refused; `None`: whatever it holds.
pub async fn read_copy(
    node: &Arc<Node>,
    cluster: &Cluster,
    (lane, on): (Lane, Uid),
    key: &Key,
    under: Option<LayoutId>,
    deadline: Instant,
) -> Result<Held, CallError> {
    if on == node.uid {
        let had_vote = node.vote.is_given(); // before it is read
        let object = node.store.read(key);
        let object = object.map_err(|error| CallError::Refused(errors::storage(&error)))?;
        if under.is_some_and(|under| may_read(node, key, under) != Coverage::Known) {
            return Err(CallError::Refused(errors::replica_closed()));
        }
        let votes = had_vote && node.vote.is_given();
        return Ok(Held { object: object.unwrap_or_default(), votes });
    }
    read_on(cluster, (lane, on), key, (false, under), deadline).await
}

async fn read_on(
    cluster: &Cluster,
    (lane, on): (Lane, Uid),
    key: &Key,
    (with_hints, under): (bool, Option<LayoutId>),
    deadline: Instant,
) -> Result<Held, CallError> {
    let peer = cluster.peers.get(&on).ok_or_else(|| CallError::NotSent("is no member".into()))?;
    let keyspace = key.keyspace().0;
    let (key, layout_id) = (key.bytes().clone(), wire_layout(under));
    let bytes = key.len();
    let body = call::Body::Read(ReadCall { keyspace, key, with_hints, layout_id });
    match peer.call_on(lane, body, bytes, deadline).await? {
        answer::Body::Read(ReadAnswer { object, no_vote }) => {
            let object = match object.is_empty() {
                true => Ok(Object::default()),
                false => Object::decode(object),
            };
            let bad = |error| CallError::Lost(format!("sent a copy that is {error}"));
            Ok(Held { object: object.map_err(bad)?, votes: !no_vote })
        }
        _ => Err(CallError::Lost("answered something else".into())),
    }
}

/// Sends an encoded object, by `lane`, to be merged into another replica's copy, and waits until it
/// is on its disk. `known`: what the write knows of the layouts; refused, though it may be stored, if
/// the replica knows of others that have to have it. `None`: no client's write.
pub async fn merge_on(
    cluster: &Cluster,
    (lane, on): (Lane, Uid),
    key: &Key,
    object: Bytes,
    known: Option<Known>,
    deadline: Instant,
) -> Result<(), CallError> {
    let bytes = object.len();
    let (keyspace, key) = (key.keyspace().0, key.bytes().clone());
    let sets = known.iter().flat_map(|known| known.sets.iter());
    let sets = sets.map(|id| wire_layout(Some(*id))).collect();
    let layout_id = wire_layout(known.map(|known| known.newest));
    let body = call::Body::Merge(MergeCall { keyspace, key, object, layout_id, sets });
    stored_on(cluster, (lane, on), body, bytes, deadline).await
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
    let body =
        call::Body::Hint(HintCall { home_uid, keyspace, key, object, layout_id: Bytes::new() });
    stored_on(cluster, (Lane::Requests, on), body, bytes, deadline).await
}

fn wire_layout(layout: Option<LayoutId>) -> Bytes {
    layout.map(|id| id.to_bytes().to_vec().into()).unwrap_or_default()
}

/// Sends a call that stores something, and waits until it is on disk there.
async fn stored_on(
    cluster: &Cluster,
    (lane, on): (Lane, Uid),
    body: call::Body,
    bytes: usize,
    deadline: Instant,
) -> Result<(), CallError> {
    let peer = cluster.peers.get(&on).ok_or_else(|| CallError::NotSent("is no member".into()))?;
    match peer.call_on(lane, body, bytes, deadline).await? {
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

/// This node first (it costs no trip), then those that answer, quickest first by `took_us`, then
/// those that lost data or are drained (their copies are as good as any, but they are to be spared),
/// then the rest.
pub fn quickest_first(
    node: &Node,
    cluster: &Cluster,
    homes: &[Uid],
    took_us: impl Fn(&Peer) -> u64,
) -> Vec<Uid> {
    let mut order = homes.to_vec();
    order.sort_by_cached_key(|uid| match cluster.peers.get(uid) {
        None if node.vote.is_given() => (0, 0),
        Some(peer) if !peer.is_usable() => (3, 0),
        Some(peer) if !peer.has_lost_data() && !peer.is_draining() => {
            // Coarsely, so that equals keep the key's own rotation and share the load.
            (1, took_us(peer).max(QUICK_US).ilog2() / 2)
        }
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

/// A place among the requests under way.
pub struct Admitted<'a> {
    /// When it was taken.
    pub since: Instant,
    node: &'a Node,
    _place: tokio::sync::SemaphorePermit<'a>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.node.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// A place among the requests under way, or the refusal of one too many.
pub fn admit(node: &Node) -> Result<Admitted<'_>, Failure> {
    has_place(node)?;
    let place = node.requests.try_acquire().map_err(|_| overloaded())?;
    Ok(Admitted { since: clock::now(), node, _place: place })
}

/// Whether there is one now; why not.
pub fn has_place(node: &Node) -> Result<(), Failure> {
    if node.draining.load(Ordering::Relaxed) {
        return Err(errors::draining());
    }
    if node.drained.load(Ordering::Relaxed) {
        return Err(errors::drained());
    }
    match node.requests_under_way() as usize >= node.admitted.load(Ordering::Relaxed) {
        true => Err(overloaded()),
        false => Ok(()),
    }
}

fn overloaded() -> Failure {
    errors::overloaded("more requests are under way than it answers in time")
}

/// Counts a failed request, if it is not the client's doing.
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
