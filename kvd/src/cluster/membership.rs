//! Making a cluster, being given one, and agreeing on its layout.
//!
//! Nobody leads. A new layout is stored by the node that makes it, pushed to every peer that is
//! up, and pulled by the others: every message names its sender's layout, and whoever sees another
//! than its own exchanges documents with that peer and joins them.

use super::errors::{self, Failure};
use super::lane::CallError;
use super::peers::Peer;
use super::{Cluster, Node, detector};
use crate::clock;
use crate::dynamo::context::Sealer;
use crate::dynamo::layout::{Joined, Keyspace, Layout, LayoutError, Member, Mode};
use crate::dynamo::node::{ClusterId, Uid};
use crate::dynamo::value::Codec;
use crate::storage::StoreError;
use proto::client::root_cause;
use proto::v1::replica_client::ReplicaClient;
use proto::v1::{
    AdoptRequest, IdentifyReply, IdentifyRequest, InitClusterRequest, LayoutAnswer, LayoutCall,
    Level, NewMember, Outcome, answer, call,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// A blank node is asked, and given its cluster, within so long.
const INVITE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long making a cluster waits for its nodes to reach each other.
const MEET_TIMEOUT: Duration = Duration::from_secs(10);

const FACT_CLUSTER: &str = "cluster";
const FACT_LAYOUT: &str = "layout";

/// Takes up the cluster this node was in when it stopped, if any.
pub fn resume(node: &Arc<Node>) -> Result<(), String> {
    let fact = |name| node.store.fact(name).map_err(|error: StoreError| error.to_string());
    let (Some(cluster), Some(layout)) = (fact(FACT_CLUSTER)?, fact(FACT_LAYOUT)?) else {
        return Ok(());
    };
    let (id, secret) = cluster.split_at_checked(16).ok_or("the stored cluster is damaged")?;
    let id = ClusterId::from_slice(id).ok_or("the stored cluster is damaged")?;
    let secret = secret.try_into().map_err(|_| "the stored cluster is damaged")?;
    let layout = Layout::decode(&layout)
        .map_err(|error| format!("the stored layout is damaged: {error}"))?;
    install(node, id, secret, layout);
    Ok(())
}

/// Replaces the node's cluster. Links to members that stay are kept.
fn install(node: &Arc<Node>, id: ClusterId, secret: [u8; 16], layout: Layout) {
    let before = node.cluster.load_full();
    let (mut peers, mut unlinked) = (BTreeMap::new(), Vec::new());
    for member in layout.members().iter().filter(|member| member.uid != node.uid) {
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
    let layout = Arc::new(layout);
    let cluster = Arc::new(Cluster { id, sealer, secret, layout, peers });
    node.cluster.store(Some(Arc::clone(&cluster)));
    detector::take_members(node, &cluster);
    // Not before: a link asks the node for its cluster.
    unlinked.into_iter().for_each(|peer| peer.link(node));
}

/// Stores the cluster and its layout, then installs them.
async fn settle(
    node: &Arc<Node>,
    id: ClusterId,
    secret: [u8; 16],
    layout: Layout,
) -> Result<(), Failure> {
    let mut cluster = id.to_bytes().to_vec();
    cluster.extend(secret);
    // The cluster first: a layout without one is not taken up.
    for (name, value) in [(FACT_CLUSTER, cluster), (FACT_LAYOUT, layout.encode())] {
        let stored = node.store.put_fact(name, value).await;
        stored.map_err(|_| errors::storage_dropped())?.map_err(|error| errors::storage(&error))?;
    }
    install(node, id, secret, layout);
    Ok(())
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
    if !members.iter().any(|member| member.uid == node.uid) {
        let why = format!("ask one of them, or add this node, {}", node.address);
        return Err(errors::argument("the node that is asked is not among the members", why));
    }
    let default = default_keyspace(request.default_keyspace, members.len())?;
    let layout =
        Layout::genesis(&request.name, members, default).map_err(|e| layout_refused(&e))?;
    let id = ClusterId(clock::random_u128());
    let secret = clock::random_u128().to_be_bytes();
    settle(node, id, secret, layout).await?;
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

async fn identify_all(node: &Node, members: &[NewMember]) -> Result<Vec<Member>, Failure> {
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
        Ok(Member {
            uid,
            name: member.name.clone(),
            address: member.address.clone(),
            zone: if member.zone.is_empty() { "default".into() } else { member.zone.clone() },
            weight: member.weight.max(1),
        })
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
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| "is not HOST:PORT".to_owned())?
        .local_address(node.outgoing_to(address))
        .connect_timeout(INVITE_TIMEOUT)
        .timeout(INVITE_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|error| root_cause(&error))?;
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
        layout: cluster.layout.encode().into(),
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
    let layout = Layout::decode(&request.layout).map_err(|error| layout_refused(&error))?;
    if request.expected_uid[..] != node.uid.to_bytes() || layout.member(node.uid).is_none() {
        return Err(errors::stranger("the invitation is for another node"));
    }
    let _changing = node.changing.lock().await;
    if let Ok(cluster) = node.cluster() {
        if cluster.id == id {
            return learn_locked(node, &cluster, layout).await;
        }
        return Err(errors::cluster_exists("this node already belongs to another cluster"));
    }
    settle(node, id, secret, layout).await?;
    node.events.add(Level::Ok, format!("joined cluster {}, id {id}", request.cluster_name));
    Ok(())
}

// === the layout ===

/// Joins this node's layout with a peer's: both end with the same.
pub async fn exchange_layouts(node: &Arc<Node>, peer: &Peer) {
    let Ok(cluster) = node.cluster() else { return };
    if let Err(error) = push_layout(node, &cluster, peer, clock::now() + INVITE_TIMEOUT).await {
        tracing::warn!(peer = cluster.name_of(peer.uid), why = error, "could not exchange layouts");
    }
}

async fn push_layout(
    node: &Arc<Node>,
    cluster: &Cluster,
    peer: &Peer,
    until: Instant,
) -> Result<(), String> {
    let ours = cluster.layout.encode();
    let bytes = ours.len();
    let body = call::Body::Layout(LayoutCall { layout: ours.into() });
    match peer.call(body, bytes, until).await.map_err(|error: CallError| error.text())? {
        answer::Body::Layout(LayoutAnswer { layout }) => {
            let theirs = Layout::decode(&layout).map_err(|error| error.to_string())?;
            learn(node, theirs).await.map_err(|failure| failure.what)
        }
        _ => Err("answered something else".into()),
    }
}

/// A peer shows its layout and asks for ours.
pub async fn layout_shown(node: &Arc<Node>, shown: LayoutCall) -> Result<LayoutAnswer, Failure> {
    if !shown.layout.is_empty() {
        let theirs = Layout::decode(&shown.layout).map_err(|error| layout_refused(&error))?;
        learn(node, theirs).await?;
    }
    Ok(LayoutAnswer { layout: node.cluster()?.layout.encode().into() })
}

async fn learn(node: &Arc<Node>, theirs: Layout) -> Result<(), Failure> {
    let _changing = node.changing.lock().await;
    let cluster = node.cluster()?;
    learn_locked(node, &cluster, theirs).await
}

async fn learn_locked(node: &Arc<Node>, cluster: &Cluster, theirs: Layout) -> Result<(), Failure> {
    let joined = cluster.layout.join(&theirs);
    let joined = match joined.map_err(|error| errors::stranger(error.to_string()))? {
        Joined::Ours => return Ok(()),
        Joined::Theirs => theirs,
        Joined::Merged(merged) => merged,
    };
    let depth = joined.depth();
    settle(node, cluster.id, cluster.secret, joined).await?;
    node.events.add(Level::Ok, format!("ring {depth}"));
    Ok(())
}

/// Adds a keyspace, and returns once every peer that is up knows it.
pub async fn create_keyspace(
    node: &Arc<Node>,
    asked: proto::v1::Keyspace,
) -> Result<Keyspace, Failure> {
    let keyspace = keyspace_from(asked)?;
    let changing = node.changing.lock().await;
    let before = node.cluster()?;
    let layout = before.layout.with_keyspace(keyspace.clone()).map_err(|e| layout_refused(&e))?;
    let depth = layout.depth();
    settle(node, before.id, before.secret, layout).await?;
    drop(changing);
    node.events.add(Level::Ok, format!("ring {depth}: keyspace {} created", keyspace.name));
    let cluster = node.cluster()?;
    let until = clock::now() + INVITE_TIMEOUT;
    let pushes = cluster.peers.values().filter(|peer| peer.is_usable()).map(|peer| async {
        if let Err(why) = push_layout(node, &cluster, peer, until).await {
            tracing::warn!(
                peer = cluster.name_of(peer.uid),
                why,
                "could not be shown the new layout"
            );
        }
    });
    futures_util::future::join_all(pushes).await;
    Ok(keyspace)
}

/// A keyspace as a client describes it; zeros stand for the usual.
fn keyspace_from(asked: proto::v1::Keyspace) -> Result<Keyspace, Failure> {
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
    };
    keyspace.check().map_err(|error| layout_refused(&error))?;
    Ok(keyspace)
}

fn layout_refused(error: &LayoutError) -> Failure {
    match error {
        LayoutError::KeyspaceExists { name } => errors::keyspace_exists(name),
        other => errors::argument("the layout would not be valid", other.to_string()),
    }
}
