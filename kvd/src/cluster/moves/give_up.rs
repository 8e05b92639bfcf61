//! Giving up copies that are to be elsewhere, or nowhere; and handing over what another should hold.

use super::level::{self, Levelled, Need};
use super::{PAGE_RECORDS, lock};
use crate::cluster::coordinator::{merge_here, merge_on};
use crate::cluster::errors::Failure;
use crate::cluster::lane::{CallError, Lane};
use crate::cluster::{Cluster, Node, handoff, tree};
use crate::dynamo::key::Key;
use crate::dynamo::merkle::{Digest, LEAF_BITS, LEAVES, Span};
use crate::dynamo::node::{KeyspaceId, Uid};
use crate::dynamo::object::Object;
use crate::dynamo::preference;
use crate::dynamo::write::WriteSet;
use crate::storage::record;
use bytes::Bytes;
use futures_util::future::join_all;
use proto::token::Token;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Gives up the copies that no layout has this node hold, once those who hold them are level with
/// it. `fresh`: also those that came since the last checkpoint.
pub(super) async fn give_up_what_is_not_ours(node: &Arc<Node>, fresh: bool) -> Result<(), String> {
    let cluster = node.cluster().map_err(|failure| failure.what)?;
    let bits = cluster.history.bits();
    if fresh {
        tree::freshen(node).await.map_err(|failure| failure.what)?;
    }
    let mut owed = Vec::new();
    for keyspace in cluster.history.keyspaces() {
        for partition in foreign(node, &cluster, keyspace).await? {
            let configs = cluster.history.configs_of(keyspace, partition);
            let Some(newest) = configs.last() else { continue };
            owed.push(Need {
                keyspace,
                partition,
                origin: None,
                under: newest.origin,
                candidates: newest.members.clone(),
                needed: newest.write_quorum(newest.w).into(),
            });
        }
    }
    let Levelled { done, why } = level::bring_level(node, &cluster, &owed).await;
    for it in owed.iter().zip(&done).filter_map(|(it, done)| done.then_some(it)) {
        // Not while the layouts change: it may have become a replica again meanwhile, and what it
        // has acknowledged since as one must stay.
        let _unchanging = node.changing.lock().await;
        let now = node.cluster().map_err(|failure| failure.what)?;
        if now.history.bits() == bits && !now.history.holds(node.uid, it.keyspace, it.partition) {
            give_up(node, it.keyspace, Token::range(it.partition, bits)).await?;
            node.moves.got_on();
        }
    }
    give_up_what_was_dropped(node).await?;
    match done.iter().filter(|done| !**done).count() {
        0 => Ok(()),
        left => {
            let why: Vec<String> = why.into_values().collect();
            Err(format!("{left} partitions have too few level replicas: {}", why.join("; ")))
        }
    }
}

/// Whether there are keyspaces that were dropped, and of which something may be left.
pub(super) fn is_any_dropped(node: &Node) -> bool {
    let Ok(cluster) = node.cluster() else { return false };
    let gone = lock(&node.moves.dropped);
    cluster.layout.dropped().any(|keyspace| !gone.contains(&keyspace))
}

/// Removes what is left of keyspaces that were dropped, until nothing was found any more: a page or a
/// hint may have been on its way. Not before everybody knows: who does not may have changed one of
/// them, and then it stays.
async fn give_up_what_was_dropped(node: &Arc<Node>) -> Result<(), String> {
    let cluster = node.cluster().map_err(|failure| failure.what)?;
    if !cluster.history.is_settled() {
        return Ok(());
    }
    for keyspace in cluster.layout.dropped() {
        let found = give_up(node, keyspace, (Token(0), Token(u128::MAX))).await?;
        if found == 0 {
            lock(&node.moves.dropped).insert(keyspace);
        }
    }
    Ok(())
}

/// Partitions of which this node has copies that it should not.
async fn foreign(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    keyspace: KeyspaceId,
) -> Result<Vec<u32>, String> {
    let (history, me) = (Arc::clone(&cluster.history), node.uid);
    let bits = history.bits();
    let not_held = tokio::task::spawn_blocking(move || {
        (0..1_u32 << bits).filter(|p| !history.holds(me, keyspace, *p)).collect::<Vec<u32>>()
    });
    let not_held = not_held.await.map_err(|_| "looking for copies failed")?;
    let spans: Vec<Span> =
        not_held.iter().map(|partition| Span::of_partition(*partition, 1 << bits)).collect();
    if bits > LEAF_BITS {
        return Ok(Vec::new()); // a leaf would tell of several partitions
    }
    let mut found = Vec::new();
    for (partitions, spans) in not_held.chunks(1024).zip(spans.chunks(1024)) {
        let sums = tree::sums(node, keyspace, spans.to_vec()).await;
        let sums = sums.map_err(|failure| failure.what)?;
        let there = partitions.iter().zip(sums).filter(|(_, sum)| *sum != 0);
        found.extend(there.map(|(partition, _)| *partition));
    }
    Ok(found)
}

/// Removes this node's copies in a range, each as it was seen. Returns how many it found.
async fn give_up(
    node: &Arc<Node>,
    keyspace: KeyspaceId,
    (first, last): (Token, Token),
) -> Result<usize, String> {
    let (mut from, mut found) = ((first, Bytes::new()), 0);
    loop {
        let (store, place) = (node.store.clone(), from.clone());
        let page = tokio::task::spawn_blocking(move || {
            store.scan(keyspace, &place, last, &[], PAGE_RECORDS as usize)
        });
        let page = page.await.map_err(|_| "looking for copies failed")?;
        let page = page.map_err(|error| error.to_string())?;
        found += page.entries.len();
        let gone = page.entries.iter().filter_map(|(key, object)| {
            let key = Key::new(keyspace, key.clone()).ok()?;
            let digest = Digest::of(&record::stored_key(&key), object);
            Some(node.store.give_up(key, digest))
        });
        for gone in join_all(gone.collect::<Vec<_>>()).await {
            gone.map_err(|_| "storage stopped")?.map_err(|error| error.to_string())?;
        }
        match page.through {
            Some(through) => from = through,
            None => return Ok(found),
        }
    }
}

/// Whether this node, which leaves, has given all away: copies, and what it keeps for others.
pub(super) async fn holds_nothing(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
) -> Result<bool, Failure> {
    let (history, me) = (Arc::clone(&cluster.history), node.uid);
    let part = tokio::task::spawn_blocking(move || {
        // What was dropped nobody needs: see `History::waits_for_any`.
        let keyspaces: Vec<_> = history.head().keyspaces().keys().copied().collect();
        let mut all = keyspaces.iter().flat_map(|k| (0..1 << history.bits()).map(move |p| (k, p)));
        all.any(|(keyspace, partition)| history.holds(me, *keyspace, partition))
    });
    if part.await.unwrap_or(true) {
        return Ok(false);
    }
    handoff::pass_on(node, cluster).await;
    if !node.store.hint_totals().values().all(|totals| totals.keys == 0) {
        return Ok(false);
    }
    tree::freshen(node).await?;
    for keyspace in cluster.layout.keyspaces().keys().copied() {
        let sums = tree::sums(node, keyspace, vec![Span { first: 0, leaves: LEAVES }]).await?;
        if sums != [0] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Has the replicas of a key hold this, a write quorum of each set at least.
pub async fn hand_over(
    node: &Arc<Node>,
    cluster: &Cluster,
    key: &Key,
    object: &Object,
    until: Instant,
) -> Result<(), String> {
    let parties = preference::parties(&cluster.history, key.keyspace(), key.token(), None);
    let Some(parties) = parties else { return Ok(()) }; // its keyspace was dropped
    let encoded: Bytes = object.encode().into();
    let sent = parties.homes.iter().map(|home| {
        let (key, encoded) = (key.clone(), encoded.clone());
        async move {
            let merged = match *home == node.uid {
                true => merge_here(node, &key, object.clone()).await.map_err(CallError::Refused),
                false => {
                    let lane = (Lane::Bulk, *home);
                    merge_on(cluster, lane, &key, encoded, None, until).await
                }
            };
            (*home, merged)
        }
    });
    let stored: BTreeSet<Uid> = join_all(sent)
        .await
        .into_iter()
        .filter_map(|(home, merged)| merged.is_ok().then_some(home))
        .collect();
    let met = |set: &WriteSet| {
        set.members.iter().filter(|uid| stored.contains(uid)).count() >= set.needed.into()
    };
    match parties.write.iter().all(met) {
        true => Ok(()),
        false => Err("too few of its replicas took it".into()),
    }
}
