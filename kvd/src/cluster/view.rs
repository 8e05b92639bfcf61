//! The cluster as this node sees it: what kvctl and kvtop show.

use super::detector::{self, Opinion};
use super::peers::{Peer, node_stats, version};
use super::{Cluster, Node, ops};
use crate::clock;
use crate::dynamo::lag::{self, Check, Kept, Lag, Told};
use crate::dynamo::layout::{Keyspace, Layout, Member, Mode};
use crate::dynamo::node::Uid;
use crate::dynamo::opinion::State;
use crate::dynamo::safety::{self, Present};
use crate::dynamo::value::Codec;
use crate::dynamo::verdict::{self, Level, Margins, Missing};
use proto::v1::{
    self, ClusterView, HintTotal, KeyspaceView, LayoutRef, LayoutView, Membership, NodeState,
    NodeStats, NodeView, PairCheck, SeenBy, Verdict,
};
use std::collections::BTreeSet;

/// The keyspace whose copies stand for the ring where one is shown.
const SHOWN: &str = "default";

/// The cluster, with the events after `events_since`.
pub fn cluster_view(node: &Node, events_since: u64) -> ClusterView {
    let Ok(cluster) = node.cluster() else {
        return blank_view(node, events_since);
    };
    let layout = &cluster.layout;
    let shown = layout.keyspace(SHOWN).expect("every layout has the default keyspace");
    let mut nodes = node_views(node, &cluster, shown.n);
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let up: BTreeSet<Uid> = nodes
        .iter()
        .filter(|n| n.state() == NodeState::Up)
        .filter_map(|n| Uid::from_slice(&n.uid))
        .collect();
    let lost_data = |n: &&NodeView| n.stats.as_ref().is_some_and(|stats| stats.lost_data);
    let losers: Vec<&NodeView> =
        nodes.iter().filter(|n| n.state() == NodeState::Up).filter(lost_data).collect();
    let voteless: BTreeSet<Uid> = losers.iter().filter_map(|n| Uid::from_slice(&n.uid)).collect();
    let losers: Vec<String> = losers.iter().map(|n| n.name.clone()).collect();
    let present = Present { voting: up.difference(&voteless).copied().collect(), up };
    let ours = layout_ref(layout);
    let agreed =
        nodes.iter().filter(|n| n.state() == NodeState::Up && n.layout.as_ref() == Some(&ours));
    let keyspaces: Vec<(&Keyspace, Margins)> = layout
        .keyspaces()
        .values()
        .map(|k| {
            let (writers, readers) = safety::counted(&cluster.history, k, &present);
            (k, verdict::margins(k, &writers, &readers))
        })
        .collect();
    let missing: Vec<Missing> =
        nodes.iter().filter(|n| n.state() != NodeState::Up).map(missing).collect();
    ClusterView {
        name: layout.cluster_name().to_owned(),
        id: cluster.id.to_bytes().to_vec().into(),
        viewpoint: cluster.name_of(node.uid),
        observed_at_ms: clock::now_ms(),
        layout_agreed: agreed.count() as u32,
        layout: Some(ours),
        verdict: Some(wire_verdict(verdict::verdict(nodes.len(), &missing, &losers, &keyspaces))),
        live_copies: safety::copies(&cluster.history, shown, &present.up).into(),
        keyspaces: keyspace_views(&keyspaces),
        nodes,
        events: node.events.since(events_since),
        version: version(),
        ops: ops::summaries(&cluster),
        partition_bits: layout.partition_bits(),
    }
}

/// The whole layout.
pub fn layout_view(cluster: &Cluster) -> LayoutView {
    let layout = &cluster.layout;
    let member = |m: &Member| v1::Member {
        uid: m.uid.to_bytes().to_vec().into(),
        name: m.name.clone(),
        address: m.address.clone(),
        zone: m.zone.clone(),
        weight: m.weight,
    };
    let table = |n: u8| v1::Table {
        n: n.into(),
        slots: (0..layout.partitions())
            .flat_map(|p| layout.row(n, p))
            .map(|slot| u32::from(*slot))
            .collect(),
    };
    LayoutView {
        layout: Some(layout_ref(layout)),
        parents: layout.parents().iter().map(|id| id.to_bytes().to_vec().into()).collect(),
        cluster_name: layout.cluster_name().to_owned(),
        cluster_id: cluster.id.to_bytes().to_vec().into(),
        partition_bits: layout.partition_bits(),
        members: layout.members().iter().map(member).collect(),
        keyspaces: layout.keyspaces().values().map(wire_keyspace).collect(),
        tables: layout.tables().keys().map(|n| table(*n)).collect(),
        spread: layout.spread().into(),
    }
}

/// A keyspace on the wire.
pub fn wire_keyspace(keyspace: &Keyspace) -> v1::Keyspace {
    let mode = match keyspace.mode {
        Mode::Sloppy => v1::Mode::Sloppy,
        Mode::Strict => v1::Mode::Strict,
    };
    let compression = match keyspace.compression {
        None => v1::Compression::Off,
        Some(Codec::Lz4) => v1::Compression::Lz4,
        Some(Codec::Zstd) => v1::Compression::Zstd,
    };
    v1::Keyspace {
        name: keyspace.name.clone(),
        n: keyspace.n.into(),
        r: keyspace.r.into(),
        w: keyspace.w.into(),
        mode: mode.into(),
        value_bytes_max: keyspace.value_bytes_max,
        compression: compression.into(),
    }
}

/// A layout's name on the wire.
pub fn layout_ref(layout: &Layout) -> LayoutRef {
    LayoutRef { id: layout.id().to_bytes().to_vec().into(), depth: layout.depth() }
}

/// Whether a member is up, as this node sees it.
pub fn state_of(node: &Node, cluster: &Cluster, uid: Uid) -> NodeState {
    match cluster.peers.get(&uid) {
        _ if uid == node.uid => NodeState::Up,
        Some(_) => detector::wire(node.detector.opinion(uid).state.settled()),
        None => NodeState::Unknown,
    }
}

fn blank_view(node: &Node, events_since: u64) -> ClusterView {
    ClusterView {
        viewpoint: node.address.clone(),
        observed_at_ms: clock::now_ms(),
        verdict: Some(Verdict {
            level: v1::Level::Degraded.into(),
            headline: "this node has not been given a cluster".into(),
            impact: "it serves nothing".into(),
            next: "kvctl cluster init --name NAME n1=HOST:PORT …".into(),
        }),
        events: node.events.since(events_since),
        version: version(),
        ..Default::default()
    }
}

fn node_views(node: &Node, cluster: &Cluster, n: u8) -> Vec<NodeView> {
    let layout = &cluster.layout;
    let (copies, fair) = (layout.copies(n), layout.fair_ratio(n));
    let all = f64::from(layout.partitions()) * f64::from(n);
    let heard = all_heard(node, cluster);
    let told = all_told(&heard);
    // Who leaves holds nothing of the newest layout.
    let fair = fair.into_iter().map(|fair| fair.num as f64 / fair.den as f64);
    let placed = copies.into_iter().zip(fair).chain(std::iter::repeat((0, 0.0)));
    parties(cluster)
        .iter()
        .zip(placed)
        .map(|(member, (copies, fair))| {
            let placed = NodeView {
                name: member.name.clone(),
                uid: member.uid.to_bytes().to_vec().into(),
                address: member.address.clone(),
                zone: member.zone.clone(),
                weight: member.weight,
                share_ratio: f64::from(copies) / all,
                fair_ratio: fair / all,
                copies,
                ..Default::default()
            };
            let view = match cluster.peers.get(&member.uid) {
                None => own_view(node, cluster, placed),
                Some(peer) => peer_view(node, peer, placed),
            };
            let lag = Some(wire_lag(lag::reckon(member.uid, &told)));
            let draining = view.stats.as_ref().is_some_and(|stats| stats.draining);
            let membership = membership_of(cluster, member.uid).into();
            let seen_by = seen_by(member.uid, &heard);
            NodeView { lag, seen_by, membership, draining, ..view }
        })
        .collect()
}

/// Everybody who has a part, the members first: of who leaves the newest layout says nothing.
fn parties(cluster: &Cluster) -> Vec<Member> {
    let layout = &cluster.layout;
    let leaving = cluster.history.members().into_iter();
    let leaving = leaving.filter(|member| layout.member(member.uid).is_none());
    layout.members().iter().cloned().chain(leaving).collect()
}

fn membership_of(cluster: &Cluster, uid: Uid) -> Membership {
    let is_in = |layout: &Layout| layout.member(uid).is_some();
    match () {
        () if !is_in(&cluster.layout) => Membership::Leaving,
        () if cluster.history.layouts().iter().all(|layout| is_in(layout)) => Membership::Member,
        () => Membership::Joining,
    }
}

/// A member, and what it last said of itself and when, if that was lately.
type Heard = (Uid, String, Option<(NodeStats, u64)>);

fn all_heard(node: &Node, cluster: &Cluster) -> Vec<Heard> {
    let members = parties(cluster).into_iter();
    let heard = members.map(|member| {
        let stats = match cluster.peers.get(&member.uid) {
            None => Some((node_stats(node), clock::now_ms())),
            Some(peer) => peer.stats(),
        };
        (member.uid, member.name, stats)
    });
    heard.collect()
}

/// What every member told lately of what others lack.
fn all_told(heard: &[Heard]) -> Vec<(Uid, String, Option<Told>)> {
    let of = |(uid, name, stats): &Heard| {
        (*uid, name.clone(), stats.as_ref().map(|(it, at_ms)| told(&it.hints, &it.checks, *at_ms)))
    };
    heard.iter().map(of).collect()
}

/// What a node told at `at_ms`.
pub(super) fn told(hints: &[HintTotal], checks: &[PairCheck], at_ms: u64) -> Told {
    let kept = hints.iter().filter_map(|total| {
        let kept = Kept {
            keys: total.keys,
            bytes: total.bytes,
            since_ms: total.since_ms,
            overflowed: total.overflowed,
        };
        Some((Uid::from_slice(&total.target_uid)?, kept))
    });
    let checks = checks.iter().filter_map(|check| {
        let matched_at_ms = check.ever.then(|| at_ms.saturating_sub(check.ago_ms));
        let uid = Uid::from_slice(&check.peer_uid)?;
        let tried_at_ms = match check.tried_ago_ms {
            0 => 0,
            ago_ms => at_ms.saturating_sub(ago_ms),
        };
        Some((uid, Check { matched_at_ms, differing: check.differing, tried_at_ms }))
    });
    Told { kept: kept.collect(), checks: checks.collect() }
}

fn wire_lag(lag: Lag) -> v1::Lag {
    let Lag { since_ms, keys, bytes, more, unheard, checked_at_ms, differing } = lag;
    let checked_at_ms = checked_at_ms.unwrap_or(0);
    v1::Lag { since_ms, keys, bytes, more, unheard, checked_at_ms, differing }
}

/// What every other member says of `target`. One that was not heard lately does not agree with
/// anybody: its word is unknown.
fn seen_by(target: Uid, heard: &[Heard]) -> Vec<SeenBy> {
    let others = heard.iter().filter(|(uid, ..)| *uid != target);
    let say = |(_, name, stats): &Heard| {
        let mut opinions = stats.iter().flat_map(|(stats, _)| &stats.opinions);
        let opinion = opinions.find(|opinion| opinion.uid[..] == target.to_bytes());
        let unknown = SeenBy { state: NodeState::Unknown.into(), ..Default::default() };
        let said = opinion.map_or(unknown, |opinion| SeenBy {
            state: opinion.state,
            since_ms: opinion.since_ms,
            linked: opinion.linked,
            ..Default::default()
        });
        SeenBy { node: name.clone(), ..said }
    };
    let mut said: Vec<SeenBy> = others.map(say).collect();
    said.sort_by(|a, b| a.node.cmp(&b.node));
    said
}

fn own_view(node: &Node, cluster: &Cluster, placed: NodeView) -> NodeView {
    NodeView {
        state: NodeState::Up.into(),
        since_ms: node.started_at_ms,
        layout: Some(layout_ref(&cluster.layout)),
        stats: Some(node_stats(node)),
        stats_at_ms: clock::now_ms(),
        version: version(),
        ..placed
    }
}

fn peer_view(node: &Node, peer: &Peer, placed: NodeView) -> NodeView {
    let health = peer.health();
    let Opinion { state, since_ms, linked } = node.detector.opinion(peer.uid);
    let why = match (state.settled(), linked) {
        (State::Up, true) => String::new(),
        (State::Up, false) => format!("{} has no link to it: {}", node.name(), health.why),
        _ => health.why,
    };
    let (beat, stats_at_ms) = health.beat.unzip();
    let beat = beat.unwrap_or_default();
    NodeView {
        state: detector::wire(state.settled()).into(),
        since_ms,
        why,
        layout: health.layout,
        stats: beat.stats,
        stats_at_ms: stats_at_ms.unwrap_or(0),
        latency_us: peer.latency_us(),
        version: beat.version,
        ..placed
    }
}

fn missing(view: &NodeView) -> Missing {
    Missing {
        name: view.name.clone(),
        for_ms: clock::now_ms().saturating_sub(view.since_ms),
        known: view.state() == NodeState::Down && view.stats.is_some(),
    }
}

fn keyspace_views(keyspaces: &[(&Keyspace, Margins)]) -> Vec<KeyspaceView> {
    let view = |(keyspace, margins): &(&Keyspace, Margins)| KeyspaceView {
        keyspace: Some(wire_keyspace(keyspace)),
        partitions: margins.partitions,
        gets_fail: margins.gets_fail,
        puts_fail: margins.puts_fail,
        no_margin: margins.no_margin,
    };
    let mut views: Vec<KeyspaceView> = keyspaces.iter().map(view).collect();
    views.sort_by(|a, b| {
        a.keyspace.as_ref().map(|k| &k.name).cmp(&b.keyspace.as_ref().map(|k| &k.name))
    });
    views
}

fn wire_verdict(verdict: verdict::Verdict) -> Verdict {
    let level = match verdict.level {
        Level::Ok => v1::Level::Ok,
        Level::Degraded => v1::Level::Degraded,
        Level::Critical => v1::Level::Critical,
    };
    Verdict {
        level: level.into(),
        headline: verdict.headline,
        impact: verdict.impact,
        next: verdict.next,
    }
}
