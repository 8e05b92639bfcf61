//! Making a cluster, being given one, and agreeing on its layout.
//!
//! Nobody leads. A new layout is stored by the node that makes it, pushed to every peer that is
//! up, and pulled by the others: every message tells apart what its sender knows of the layouts, and
//! whoever knows something else exchanges documents with that peer and joins them.

use super::documents::{self, Heard};
use super::errors::{self, Failure};
use super::lane::CallError;
use super::peers::Peer;
use super::{Cluster, Node, detector, plans};
use crate::clock;
use crate::dynamo::context::Sealer;
use crate::dynamo::history::{History, HistoryError, OPEN_MAX};
use crate::dynamo::layout::{Change, Keyspace, Layout, LayoutError, Member, Mode};
use crate::dynamo::node::{ClusterId, LayoutId, Uid};
use crate::dynamo::value::Codec;
use crate::storage::StoreError;
use proto::v1::replica_client::ReplicaClient;
use proto::v1::{
    AdoptRequest, IdentifyReply, IdentifyRequest, InitClusterRequest, LayoutAnswer, LayoutCall,
    Level, NewMember, Outcome, answer, call,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// A blank node is asked, and given its cluster, within so long.
const INVITE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long making a cluster waits for its nodes to reach each other.
const MEET_TIMEOUT: Duration = Duration::from_secs(10);

const FACT_CLUSTER: &str = "cluster";
/// What a node knew before several layouts could count at once.
const FACT_LAYOUT: &str = "layout";
const FACT_HISTORY: &str = "history";

/// Each layout is stored once, however often what is done for it changes.
fn layout_fact(id: LayoutId) -> String {
    format!("layout {id}")
}

/// So long a change waits for room among the layouts that count, and looks so often.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// News for the others is gathered for so long.
const TELL_AFTER: Duration = Duration::from_millis(20);

/// Takes up the cluster this node was in when it stopped, if any.
pub fn resume(node: &Arc<Node>) -> Result<(), String> {
    let fact = |name| node.store.fact(name).map_err(|error: StoreError| error.to_string());
    let Some(cluster) = fact(FACT_CLUSTER)? else { return Ok(()) };
    let damaged = |error: String| format!("the stored layouts are damaged: {error}");
    let history = match (fact(FACT_HISTORY)?, fact(FACT_LAYOUT)?) {
        (Some(history), _) => {
            let stored = |id| {
                let bytes = node.store.fact(&layout_fact(id)).ok().flatten()?;
                Layout::decode(&bytes).ok().map(Arc::new)
            };
            documents::decode(&history, stored).map_err(damaged)?
        }
        (None, Some(layout)) => {
            History::new(Layout::decode(&layout).map_err(|error| damaged(error.to_string()))?)
        }
        (None, None) => return Ok(()),
    };
    let (id, secret) = cluster.split_at_checked(16).ok_or("the stored cluster is damaged")?;
    let id = ClusterId::from_slice(id).ok_or("the stored cluster is damaged")?;
    let secret = secret.try_into().map_err(|_| "the stored cluster is damaged")?;
    let digest = documents::encode(&history).1;
    install(node, id, secret, (history, digest));
    Ok(())
}

/// Replaces the node's cluster. Links to members that stay are kept.
fn install(node: &Arc<Node>, id: ClusterId, secret: [u8; 16], (history, digest): (History, u64)) {
    let before = node.cluster.load_full();
    let (mut peers, mut unlinked) = (BTreeMap::new(), Vec::new());
    for member in history.members().into_iter().filter(|member| member.uid != node.uid) {
        let kept = before.as_ref().and_then(|cluster| cluster.peers.get(&member.uid));
        let kept = kept.filter(|peer| peer.address == member.address).cloned();
        let peer = kept.unwrap_or_else(|| {
            let (peer, link) = Peer::new(node, member.uid, member.address.clone());
            unlinked.push(link);
            peer
        });
        peers.insert(member.uid, peer);
    }
    let sealer = Sealer::new(id, secret);
    let layout = Arc::clone(history.head());
    let history = Arc::new(history);
    let cluster = Arc::new(Cluster { id, sealer, secret, layout, history, digest, peers });
    node.cluster.store(Some(Arc::clone(&cluster)));
    detector::take_members(node, &cluster);
    node.moves.look();
    // Not before: a link asks the node for its cluster.
    unlinked.into_iter().for_each(|peer| peer.link(node));
    let before = before.iter().flat_map(|cluster| cluster.peers.values());
    let stays =
        |peer: &Arc<Peer>| cluster.peers.get(&peer.uid).is_some_and(|now| Arc::ptr_eq(now, peer));
    before.filter(|peer| !stays(peer)).for_each(|peer| peer.retire());
}

/// Stores the cluster and its layouts, then installs them.
async fn settle(
    node: &Arc<Node>,
    id: ClusterId,
    secret: [u8; 16],
    history: History,
) -> Result<(), Failure> {
    let mut cluster = id.to_bytes().to_vec();
    cluster.extend(secret);
    let (encoded, digest) = documents::encode(&history);
    let before = node.cluster().ok();
    // The layouts first, then what names them; the cluster before that, and once: what is known of
    // layouts is not taken up without one, and it never changes.
    for layout in history.layouts() {
        let name = layout_fact(layout.id());
        let there = node.store.fact(&name).map_err(|error| errors::storage(&error))?;
        if there.is_none() {
            put_fact(node, &name, layout.encode()).await?;
        }
    }
    if before.is_none() {
        put_fact(node, FACT_CLUSTER, cluster).await?;
    }
    put_fact(node, FACT_HISTORY, encoded).await?;
    let stays: BTreeSet<LayoutId> = history.layouts().iter().map(|it| it.id()).collect();
    install(node, id, secret, (history, digest));
    // After it is installed, whoever waits here being cut off or not: else the next to come would
    // take for stored what is about to go. Nobody needs to wait for it.
    let before = before.iter().flat_map(|cluster| cluster.history.layouts());
    for gone in before.filter(|layout| !stays.contains(&layout.id())) {
        drop(node.store.put_fact(&layout_fact(gone.id()), Vec::new()));
    }
    Ok(())
}

async fn put_fact(node: &Node, name: &str, value: Vec<u8>) -> Result<(), Failure> {
    let stored = node.store.put_fact(name, value).await;
    stored.map_err(|_| errors::storage_dropped())?.map_err(|error| errors::storage(&error))
}

// === making a cluster ===

/// Makes a cluster of blank nodes, this one among them.
pub async fn init(node: &Arc<Node>, request: InitClusterRequest) -> Result<(), Failure> {
    let changing = node.changing.lock().await;
    if let Ok(cluster) = node.cluster() {
        let what =
            format!("this node already belongs to cluster {}", cluster.layout.cluster_name());
        return Err(errors::cluster_exists(what));
    }
    let members = identify_all(node, &request.members).await?;
    let members: Vec<Member> = members.into_iter().map(|(member, _)| member).collect();
    if !members.iter().any(|member| member.uid == node.uid) {
        let why = format!("ask one of them, or add this node, {}", node.address);
        return Err(errors::argument("the node that is asked is not among the members", why));
    }
    let default = default_keyspace(request.default_keyspace, members.len())?;
    let layout =
        Layout::genesis(&request.name, members, default).map_err(|e| layout_refused(&e))?;
    let id = ClusterId(clock::random_u128());
    let secret = clock::random_u128().to_be_bytes();
    settle(node, id, secret, History::new(layout)).await?;
    let cluster = node.cluster()?;
    node.events.add(Level::Ok, format!("cluster {} made, id {id}", request.name));
    drop(changing);
    // Each link finds its peer blank, and invites it.
    wait_until_met(&cluster).await
}

async fn wait_until_met(cluster: &Cluster) -> Result<(), Failure> {
    let until = clock::now() + MEET_TIMEOUT;
    loop {
        let Some(absent) = cluster.peers.values().find(|peer| !peer.is_usable()) else {
            return Ok(());
        };
        if clock::now() > until {
            let name = cluster.name_of(absent.uid);
            let mut failure = errors::node_unreachable(&name, &absent.health().why);
            failure.outcome = Outcome::Applied.into();
            failure.state =
                format!("the cluster is made; {name} is given it as soon as it answers");
            return Err(failure);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bytes of a node's disk, and of those, used; no bytes: not known.
pub type Disk = (u64, u64);

/// The nodes at these addresses, as members, and their disks; they have to be blank.
pub async fn identify_all(
    node: &Node,
    members: &[NewMember],
) -> Result<Vec<(Member, Disk)>, Failure> {
    let asking = members.iter().map(|member| async move {
        let identity = identify(node, &member.address).await;
        let who = format!("{} at {}", member.name, member.address);
        let identity: IdentifyReply =
            identity.map_err(|why| errors::node_unreachable(&who, &why))?;
        if !identity.cluster_id.is_empty() {
            return Err(errors::cluster_exists(format!("{who} already belongs to a cluster")));
        }
        let uid =
            Uid::from_slice(&identity.uid).ok_or_else(|| errors::internal("a uid has 16 bytes"))?;
        let (total, free) = (identity.disk_total_bytes, identity.disk_free_bytes);
        let zone = if member.zone.is_empty() { "default".into() } else { member.zone.clone() };
        let (name, address) = (member.name.clone(), member.address.clone());
        let member = Member { uid, name, address, zone, weight: member.weight.max(1) };
        Ok((member, (total, total.saturating_sub(free))))
    });
    futures_util::future::join_all(asking).await.into_iter().collect()
}

fn default_keyspace(
    asked: Option<proto::v1::Keyspace>,
    members: usize,
) -> Result<Keyspace, Failure> {
    let asked = asked.unwrap_or_default();
    let n = if asked.n == 0 { members.clamp(1, 3) as u32 } else { asked.n };
    let majority = n / 2 + 1;
    keyspace_from(proto::v1::Keyspace {
        name: "default".into(),
        n,
        r: if asked.r == 0 { majority } else { asked.r },
        w: if asked.w == 0 { majority } else { asked.w },
        ..asked
    })
}

async fn replica_client(node: &Node, address: &str) -> Result<ReplicaClient<Channel>, String> {
    let dial = node.dial(address);
    let channel = dial.channel(address, INVITE_TIMEOUT, |it| it.timeout(INVITE_TIMEOUT)).await;
    let channel = channel.map_err(|refused| refused.why)?;
    Ok(ReplicaClient::new(channel))
}

async fn identify(node: &Node, address: &str) -> Result<IdentifyReply, String> {
    let mut client = replica_client(node, address).await?;
    let reply = client.identify(IdentifyRequest {}).await;
    Ok(reply.map_err(|status| status.message().to_owned())?.into_inner())
}

/// Gives a blank member the cluster; says why it could not.
pub async fn invite(node: &Arc<Node>, peer: &Peer) -> Result<(), String> {
    let cluster = node.cluster().map_err(|blank| blank.what)?;
    let request = AdoptRequest {
        cluster_id: cluster.id.to_bytes().to_vec().into(),
        cluster_name: cluster.layout.cluster_name().to_owned(),
        secret: cluster.secret.to_vec().into(),
        history: Some(documents::told(&cluster.history, &BTreeSet::new())),
        expected_uid: peer.uid.to_bytes().to_vec().into(),
    };
    let mut client = replica_client(node, &peer.address).await?;
    client.adopt(request).await.map_err(|status| status.message().to_owned())?;
    Ok(())
}

/// Takes the cluster another node gives this blank one.
pub async fn adopt(node: &Arc<Node>, request: AdoptRequest) -> Result<(), Failure> {
    let malformed = |what| errors::argument("the invitation is malformed", what);
    let id =
        ClusterId::from_slice(&request.cluster_id).ok_or_else(|| malformed("its cluster id"))?;
    let secret = request.secret[..].try_into().map_err(|_| malformed("its secret"))?;
    let history = request.history.ok_or_else(|| malformed("its layouts"))?;
    let history = match documents::heard(&history, |_| None) {
        Ok(Heard::All(history)) => history,
        Ok(Heard::Missing(_)) => return Err(malformed("its layouts")),
        Err(why) => return Err(errors::argument("the invitation is malformed", why)),
    };
    let is_member = history.members().iter().any(|member| member.uid == node.uid);
    if request.expected_uid[..] != node.uid.to_bytes() || !is_member {
        return Err(errors::stranger("the invitation is for another node"));
    }
    let _changing = node.changing.lock().await;
    if let Ok(cluster) = node.cluster() {
        if cluster.id == id {
            return learn_locked(node, &cluster, &history).await;
        }
        return Err(errors::cluster_exists("this node already belongs to another cluster"));
    }
    settle(node, id, secret, history).await?;
    node.events.add(Level::Ok, format!("joined cluster {}, id {id}", request.cluster_name));
    Ok(())
}

// === the layouts ===

/// Joins what this node knows with what a peer does: both end with the same.
pub async fn exchange_layouts(node: &Arc<Node>, peer: &Peer) {
    let Ok(cluster) = node.cluster() else { return };
    if let Err(error) = push_layouts(node, &cluster, peer, clock::now() + INVITE_TIMEOUT).await {
        tracing::warn!(peer = cluster.name_of(peer.uid), why = error, "could not exchange layouts");
    }
}

/// The same on the threads of nodes: others wait in line behind it, and not for those of clients.
pub async fn exchange_for_a_request(node: &Arc<Node>, peer: &Arc<Peer>) {
    let (this, peer) = (Arc::clone(node), Arc::clone(peer));
    let exchange = node.run(async move { exchange_layouts(&this, &peer).await });
    let _ = exchange.await; // the node may be stopping
}

async fn push_layouts(
    node: &Arc<Node>,
    cluster: &Cluster,
    peer: &Peer,
    until: Instant,
) -> Result<(), String> {
    // Twice at most: what it was thought to have and has not is told the second time.
    for _ in 0..2 {
        let history = documents::told(&cluster.history, &peer.layouts());
        let told = history.layouts.iter().chain(history.deltas.iter().map(|it| &it.delta));
        let bytes = told.map(|bytes| bytes.len()).sum();
        let body = call::Body::Layout(LayoutCall { history: Some(history) });
        let answer = peer.call(body, bytes, until).await;
        let (theirs, missing) = match answer.map_err(|error: CallError| error.text())? {
            answer::Body::Layout(LayoutAnswer { history: Some(theirs), missing }) => {
                (theirs, missing)
            }
            _ => return Err("answered something else".into()),
        };
        peer.has_layouts(documents::names(&theirs));
        if let Heard::All(theirs) = documents::heard(&theirs, |id| have(cluster, id))? {
            learn(node, &theirs).await.map_err(|failure| failure.what)?;
        }
        if missing.is_empty() {
            return Ok(());
        }
    }
    Err("lacks layouts that it was told".into())
}

fn have(cluster: &Cluster, id: LayoutId) -> Option<Arc<Layout>> {
    cluster.history.layouts().iter().find(|layout| layout.id() == id).cloned()
}

/// A peer shows what it knows and asks for the same.
pub async fn layout_shown(node: &Arc<Node>, shown: LayoutCall) -> Result<LayoutAnswer, Failure> {
    let (mut theirs, mut missing) = (BTreeSet::new(), Vec::new());
    if let Some(shown) = shown.history {
        let cluster = node.cluster()?;
        theirs = documents::names(&shown);
        let malformed = |why| errors::argument("the layouts are malformed", why);
        match documents::heard(&shown, |id| have(&cluster, id)).map_err(malformed)? {
            Heard::All(shown) => learn(node, &shown).await?,
            Heard::Missing(ids) => missing = ids,
        }
    }
    let ours = documents::told(&node.cluster()?.history, &theirs);
    let missing = missing.into_iter().map(|id| id.to_bytes().to_vec().into());
    Ok(LayoutAnswer { history: Some(ours), missing: missing.collect() })
}

async fn learn(node: &Arc<Node>, theirs: &History) -> Result<(), Failure> {
    // Most that is told is known: nobody need wait in line for that.
    let cluster = node.cluster()?;
    if cluster.history.join(theirs).is_ok_and(|joined| joined == *cluster.history) {
        return Ok(());
    }
    let _changing = node.changing.lock().await;
    let cluster = node.cluster()?;
    learn_locked(node, &cluster, theirs).await
}

async fn learn_locked(
    node: &Arc<Node>,
    cluster: &Cluster,
    theirs: &History,
) -> Result<(), Failure> {
    let joined = cluster.history.join(theirs);
    let joined = joined.map_err(|error| errors::stranger(error.to_string()))?;
    if joined == *cluster.history {
        return Ok(());
    }
    replace(node, cluster, joined).await
}

/// Puts what is now known in the place of what was.
async fn replace(node: &Arc<Node>, cluster: &Cluster, next: History) -> Result<(), Failure> {
    let (before, depth) = (cluster.layout.id(), next.head().depth());
    let (was_settled, is_settled) = (cluster.history.is_settled(), next.is_settled());
    let is_new = next.head().id() != before;
    settle(node, cluster.id, cluster.secret, next).await?;
    if is_new {
        node.events.add(Level::Ok, format!("ring {depth}"));
    }
    if !was_settled && is_settled {
        node.events.add(Level::Ok, format!("ring {depth} is settled: nothing is left to move"));
    }
    node.moves.tell();
    Ok(())
}

/// Changes what this node knows, on its disk too, and has the others told. `grow` is given what is
/// known; `None`: nothing is to change. Says whether anything did.
pub async fn grow(
    node: &Arc<Node>,
    grow: impl FnOnce(&History) -> Result<Option<History>, Failure>,
) -> Result<bool, Failure> {
    let _changing = node.changing.lock().await;
    let cluster = node.cluster()?;
    match grow(&cluster.history)? {
        Some(next) if next != *cluster.history => {
            replace(node, &cluster, next).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Tells every peer that is up what this node knows, and returns once they know it.
pub async fn tell_all(node: &Arc<Node>) {
    let Ok(cluster) = node.cluster() else { return };
    let until = clock::now() + INVITE_TIMEOUT;
    let behind = cluster.peers.values().filter(|peer| peer.is_usable());
    let behind = behind.filter(|peer| peer.history() != Some(cluster.digest));
    let pushes = behind.map(|peer| async {
        if let Err(why) = push_layouts(node, &cluster, peer, until).await {
            tracing::warn!(
                peer = cluster.name_of(peer.uid),
                why,
                "could not be shown the new layout"
            );
        }
    });
    futures_util::future::join_all(pushes).await;
}

/// Tells the others whatever changes here, as long as the node runs.
pub async fn keep_telling(node: Arc<Node>) {
    loop {
        node.moves.to_tell().await;
        tokio::time::sleep(TELL_AFTER).await;
        tell_all(&node).await;
    }
}

/// Has this node know a layout that a peer named, if the peer tells it. Says whether it does.
pub async fn learn_of(node: &Arc<Node>, peer: Uid, layout: LayoutId) -> bool {
    let knows = |node: &Node| node.cluster().is_ok_and(|cluster| cluster.history.knows(layout));
    if !knows(node)
        && let Ok(cluster) = node.cluster()
        && let Some(peer) = cluster.peers.get(&peer)
    {
        exchange_for_a_request(node, peer).await;
    }
    knows(node)
}

/// Makes a child of the newest layout, and returns once every peer that is up knows it. `make` is
/// given what is known, and gives the child.
pub async fn commit(
    node: &Arc<Node>,
    make: impl FnOnce(&History) -> Result<Layout, Failure>,
) -> Result<LayoutId, Failure> {
    let mut id = LayoutId(0);
    // Most are settled within a second: whoever makes many waits for that, not for an error.
    let until = clock::now() + ROOM_TIMEOUT;
    while node.cluster()?.history.layouts().len() >= OPEN_MAX && clock::now() < until {
        tokio::time::sleep(ROOM_PAUSE).await;
    }
    grow(node, |history| {
        let child = make(history)?;
        id = child.id();
        let next = history.with_child(child).map_err(|error| match &error {
            HistoryError::Layout(error) => layout_refused(error),
            _ => errors::plan_refused(error.to_string(), "wait until one of them is done"),
        })?;
        Ok(Some(next))
    })
    .await?;
    tell_all(node).await;
    Ok(id)
}

/// Adds a keyspace, and returns once every peer that is up knows it.
pub async fn create_keyspace(
    node: &Arc<Node>,
    asked: proto::v1::Keyspace,
) -> Result<Keyspace, Failure> {
    let keyspace = keyspace_from(asked)?;
    plans::require_majority_up(&*node.cluster()?)?;
    let note = plans::note_of_keyspace(&keyspace);
    let made = commit(node, |history| {
        let change = [Change::CreateKeyspace(keyspace.clone())];
        let child = history.head().changed(&change, note, None);
        child.map_err(|error| layout_refused(&error))
    });
    made.await?;
    let depth = node.cluster()?.layout.depth();
    node.events.add(Level::Ok, format!("ring {depth}: keyspace {} created", keyspace.name));
    Ok(keyspace)
}

/// A keyspace as a client describes it; zeros stand for the usual.
pub fn keyspace_from(asked: proto::v1::Keyspace) -> Result<Keyspace, Failure> {
    use proto::v1::Compression;
    use proto::v1::Mode::{Sloppy, Strict, Unspecified};
    let mode = match asked.mode() {
        Unspecified | Sloppy => Mode::Sloppy,
        Strict => Mode::Strict,
    };
    let compression = match asked.compression() {
        Compression::Unspecified | Compression::Off => None,
        Compression::Lz4 => Some(Codec::Lz4),
        Compression::Zstd => Some(Codec::Zstd),
    };
    let usual = |asked: u32, usual: u32| {
        let asked = if asked == 0 { usual } else { asked };
        u8::try_from(asked).unwrap_or(u8::MAX) // refused below, as any number above N
    };
    let n = usual(asked.n, 3);
    let majority = u32::from(n) / 2 + 1;
    let keyspace = Keyspace {
        name: asked.name,
        n,
        r: usual(asked.r, majority),
        w: usual(asked.w, majority),
        mode,
        compression,
        value_bytes_max: if asked.value_bytes_max == 0 {
            proto::VALUE_BYTES_MAX
        } else {
            asked.value_bytes_max
        },
        stamp: 1,
        generation: 0,
    };
    keyspace.check().map_err(|error| layout_refused(&error))?;
    Ok(keyspace)
}

/// A layout that cannot be, as a client is told.
pub fn layout_refused(error: &LayoutError) -> Failure {
    match error {
        LayoutError::KeyspaceExists { name } => errors::keyspace_exists(name),
        other => errors::argument("the layout would not be valid", other.to_string()),
    }
}
