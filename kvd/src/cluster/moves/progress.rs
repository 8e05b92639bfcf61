//! How far copies have come, and what keeps them.

use super::{Copy, CopyId, lock};
use crate::clock;
use crate::cluster::peers::Peer;
use crate::cluster::{Cluster, Node};
use crate::dynamo::history::SyncTask;
use crate::dynamo::node::{KeyspaceId, Uid};
use proto::token::Token;
use proto::v1::{Move, MoveRate, NodeMoves, Stuck};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What does not get on. A look gathers it anew; shown is what the last whole look found.
#[derive(Debug, Default)]
pub(super) struct Waits {
    shown: Vec<Stuck>,
    found: Vec<Stuck>,
}

impl Waits {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn begin(&mut self) {
        self.found.clear();
    }

    /// Partitions that wait for the same are told as one.
    fn add(&mut self, it: Stuck) {
        match self.found.iter_mut().find(|other| is_same(other, &it)) {
            Some(same) => same.more += 1 + it.more,
            None => self.found.push(it),
        }
    }

    pub(super) fn end(&mut self) {
        for it in &mut self.found {
            let before = self.shown.iter().find(|other| is_same(other, it));
            it.since_ms = before.map_or_else(clock::now_ms, |before| before.since_ms);
        }
        self.shown = std::mem::take(&mut self.found);
    }
}

fn is_same(one: &Stuck, other: &Stuck) -> bool {
    (&one.node, &one.from, &one.step, &one.why)
        == (&other.node, &other.from, &other.step, &other.why)
}

pub(super) fn note_stuck(node: &Node, cluster: &Cluster, task: &SyncTask, from: Uid, why: &str) {
    let keyspace = cluster.layout.keyspace_by_id(task.keyspace);
    lock(&node.moves.waits).add(Stuck {
        keyspace: keyspace.map(|keyspace| keyspace.name.clone()).unwrap_or_default(),
        partition: task.partition,
        node: node.name(),
        from: cluster.name_of(from),
        step: "sync".into(),
        why: why.into(),
        since_ms: 0,
        more: 0,
    });
}

/// Others, down, that have a step to do for which everybody waits.
pub(super) fn stuck_by_others(node: &Node, cluster: &Cluster) {
    // One that has just been made a member is linked to in a moment.
    let is_down = |peer: &&Arc<Peer>| !peer.is_usable() && !peer.is_new();
    let down = cluster.peers.values().filter(is_down);
    let down: BTreeMap<Uid, String> = down.map(|peer| (peer.uid, peer.why_not())).collect();
    if down.is_empty() {
        return;
    }
    let mut waits: BTreeMap<(Uid, &'static str), (KeyspaceId, u32, u32)> = BTreeMap::new();
    cluster.history.each_open(|keyspace, partition, configs| {
        let Some((newest, before)) = configs.split_last() else { return };
        let mut note = |uid: &Uid, step| {
            if down.contains_key(uid) {
                let first = waits.entry((*uid, step)).or_insert((keyspace, partition, 0));
                first.2 += 1;
            }
        };
        let unsynced = newest.members.iter().filter(|uid| !newest.synced.contains(uid));
        unsynced.for_each(|uid| note(uid, "sync"));
        for config in before.iter().filter(|config| !config.certified && newest.flipped) {
            config.readable().for_each(|uid| note(&uid, "close"));
        }
    });
    let leaving = cluster.history.members().into_iter().filter(|member| {
        cluster.layout.member(member.uid).is_none() && !cluster.history.has_left(member.uid)
    });
    for member in leaving.filter(|member| down.contains_key(&member.uid)) {
        waits.entry((member.uid, "hand over")).or_insert((KeyspaceId(0), 0, 1));
    }
    let mut found = lock(&node.moves.waits);
    for ((uid, step), (keyspace, partition, count)) in waits {
        let keyspace = cluster.layout.keyspace_by_id(keyspace);
        let name = cluster.name_of(uid);
        found.add(Stuck {
            keyspace: keyspace.map(|keyspace| keyspace.name.clone()).unwrap_or_default(),
            partition,
            node: name.clone(),
            from: String::new(),
            step: step.into(),
            why: format!("{name} is down: {}", down[&uid]),
            since_ms: 0,
            more: count - 1,
        });
    }
}

/// How far this node is with its moves.
pub fn here(node: &Node) -> NodeMoves {
    let Ok(cluster) = node.cluster() else { return NodeMoves::default() };
    let name = |id: KeyspaceId| {
        let keyspace = cluster.layout.keyspace_by_id(id);
        keyspace.map(|keyspace| keyspace.name.clone()).unwrap_or_default()
    };
    let one = |((keyspace, bits, partition, _), copy): (&CopyId, &Copy)| {
        let (first, last) = Token::range(*partition, *bits);
        let walked = copy.cursor.as_ref().map_or(0, |(token, _)| token.0.saturating_sub(first.0));
        let ratio = if copy.whole { 1.0 } else { walked as f64 / (last.0 - first.0) as f64 };
        Move {
            keyspace: name(*keyspace),
            partition: *partition,
            from_uid: copy.from.map(|uid| uid.to_bytes().to_vec().into()).unwrap_or_default(),
            done: copy.synced,
            begun: copy.running || copy.cursor.is_some() || copy.whole,
            bytes_done: copy.bytes,
            progress_ratio: ratio,
            state: if copy.whole { "comparing" } else { "copying" }.into(),
            why: copy.why.clone(),
        }
    };
    let moves = lock(&node.moves.copies).iter().map(one).collect();
    let mut stuck = lock(&node.moves.waits).shown.clone();
    for it in lock(&node.moves.copies).iter().filter(|(_, copy)| !copy.why.is_empty()) {
        let ((keyspace, _, partition, _), copy) = it;
        stuck.push(Stuck {
            keyspace: name(*keyspace),
            partition: *partition,
            node: node.name(),
            from: copy.from.map(|uid| cluster.name_of(uid)).unwrap_or_default(),
            step: "sync".into(),
            why: copy.why.clone(),
            since_ms: copy.since_ms,
            more: 0,
        });
    }
    // While it stays nobody waits for it to be rid of that.
    let leaves = cluster.layout.member(node.uid).is_none();
    if let Some((why, since_ms)) = lock(&node.moves.keeps).clone().filter(|_| leaves) {
        let (node, step) = (node.name(), "hand over".into());
        stuck.push(Stuck { node, step, why, since_ms, ..Stuck::default() });
    }
    let rates = node.moves.rates();
    let rate_of = |from: Uid, bytes_per_second| {
        let from_uid = from.to_bytes().to_vec().into();
        MoveRate { from_uid, bytes_per_second }
    };
    NodeMoves {
        node: node.name(),
        moves,
        bytes_per_second: rates.values().sum(),
        stuck,
        rates: rates.into_iter().map(|(from, rate)| rate_of(from, rate)).collect(),
        moved_at_ms: node.moves.moved_at_ms.load(Ordering::Relaxed),
    }
}
