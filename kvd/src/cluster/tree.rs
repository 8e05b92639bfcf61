//! This node's side of a comparison: its sums, exact as of a checkpoint, and the digests in a leaf.
//! Both read the database, so they are had on threads that may wait, and few at a time.

use super::errors::{self, Failure};
use super::{Node, coordinator};
use crate::clock;
use crate::dynamo::compare::SPANS_MAX;
use crate::dynamo::merkle::{self, Digest, Leaf, Span};
use crate::dynamo::node::KeyspaceId;
use crate::storage::{Digests, Store, StoreError};
use bytes::Bytes;
use proto::v1::{DigestsAnswer, DigestsCall, KeyDigest, TreeAnswer, TreeCall};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore};

/// Of the time, checkpoints that comparing asks for may take one part in so many: each costs a sync
/// of every file.
const CHECKPOINT_SHARE: u32 = 10;

/// Between two of them, at least and, however long one takes, at most.
const CHECKPOINT_PAUSE_MIN: Duration = Duration::from_millis(250);
const CHECKPOINT_PAUSE_MAX: Duration = Duration::from_secs(3);

/// Reads of the tree at once, at most; one more waits. Requests need the disk too.
const READS_MAX: usize = 4;

/// What reads of a node's tree share.
#[derive(Debug)]
pub struct Tree {
    /// When the last checkpoint that comparing asked for began, and how long it took.
    checkpointed: Mutex<Option<(Instant, Duration)>>,
    reads: Semaphore,
}

impl Default for Tree {
    fn default() -> Self {
        Self { checkpointed: Mutex::default(), reads: Semaphore::new(READS_MAX) }
    }
}

/// Returns once the sums have in them all that was acknowledged before the call. Who comes while
/// another's checkpoint is being made waits for the next, together with all others.
pub async fn freshen(node: &Node) -> Result<(), Failure> {
    let came = clock::now();
    let mut last = node.tree.checkpointed.lock().await;
    if let Some((last, took)) = *last {
        if last >= came {
            return Ok(());
        }
        let pause = (took * CHECKPOINT_SHARE).clamp(CHECKPOINT_PAUSE_MIN, CHECKPOINT_PAUSE_MAX);
        tokio::time::sleep_until((last + pause).into()).await;
    }
    let began = clock::now();
    let done = node.store.checkpoint().await;
    done.map_err(|_| errors::storage_dropped())?.map_err(|error| errors::storage(&error))?;
    *last = Some((began, began.elapsed()));
    Ok(())
}

/// The sums of `spans` of a keyspace's tree.
pub async fn sums(
    node: &Node,
    keyspace: KeyspaceId,
    spans: Vec<Span>,
) -> Result<Vec<u128>, Failure> {
    read(node, move |store| store.sums(keyspace, &spans)).await
}

/// All digests in a leaf, page after page.
pub async fn digests(node: &Node, keyspace: KeyspaceId, place: u32) -> Result<Digests, Failure> {
    read(node, move |store| {
        let mut all = Digests::default();
        loop {
            let last = all.records.last().map(|(key, _)| key.clone());
            let after = last.and_then(|key| coordinator::key_from_peer(keyspace.0, key).ok());
            let page = store.digests(keyspace, place, after.as_ref())?;
            all.records.extend(page.records);
            if !page.more {
                return Ok(all);
            }
        }
    })
    .await
}

/// Whether the tree's sum of a leaf is not that of what is in it now: it is wrong, or there was a
/// write after the last checkpoint.
pub async fn seems_wrong(node: &Node, keyspace: KeyspaceId, place: u32) -> Result<bool, Failure> {
    let span = Span { first: place, leaves: 1 };
    let stored = sums(node, keyspace, vec![span]).await?;
    let mut leaf = Leaf::default();
    let listed = digests(node, keyspace, place).await?;
    listed.records.iter().for_each(|(_, digest)| leaf.add(*digest));
    Ok(stored != merkle::sums(&[span], [(place, leaf)]))
}

/// Reckons leaves anew from their records; returns how many were wrong.
pub async fn set_right(
    node: &Node,
    keyspace: KeyspaceId,
    places: Vec<u32>,
) -> Result<u64, Failure> {
    read(node, move |store| store.set_leaves_right(keyspace, &places)).await
}

/// Reads the store on a thread that may wait, few at a time.
pub async fn read<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    let _place = node.tree.reads.acquire().await;
    let store = node.store.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.map_err(|_| errors::internal("a look at the tree was broken off"))?
        .map_err(|error| errors::storage(&error))
}

// === asked by a peer ===

/// Answers a peer that compares.
pub async fn sums_asked(node: &Arc<Node>, ask: TreeCall) -> Result<TreeAnswer, Failure> {
    let spans = ask.spans.iter().map(|span| Span::checked(span.first, span.leaves));
    let spans: Option<Vec<Span>> = spans.collect();
    let fit = |spans: &Vec<Span>| {
        spans.len() <= SPANS_MAX && spans.is_sorted_by(|span, next| span.end() <= next.first)
    };
    let spans = spans.filter(fit).ok_or_else(|| {
        errors::argument("the spans are no spans", "too many, out of order, or beyond the ring")
    })?;
    if ask.fresh {
        freshen(node).await?;
    }
    let sums = sums(node, KeyspaceId(ask.keyspace), spans).await?;
    let sums = sums.into_iter().map(|sum| Bytes::copy_from_slice(&sum.to_be_bytes()));
    Ok(TreeAnswer { sums: sums.collect() })
}

/// Answers a peer that has found a leaf unlike its own.
pub async fn digests_asked(node: &Arc<Node>, ask: DigestsCall) -> Result<DigestsAnswer, Failure> {
    let keyspace = KeyspaceId(ask.keyspace);
    if Span::checked(ask.place, 1).is_none() {
        return Err(errors::argument("there is no such leaf", ask.place.to_string()));
    }
    let after = match ask.after_key.is_empty() {
        true => None,
        false => Some(coordinator::key_from_peer(ask.keyspace, ask.after_key)?),
    };
    let page = read(node, move |store| store.digests(keyspace, ask.place, after.as_ref())).await?;
    let record = |(key, digest): (Bytes, Digest)| KeyDigest {
        key,
        digest: Bytes::copy_from_slice(&digest.0.to_be_bytes()),
    };
    Ok(DigestsAnswer { records: page.records.into_iter().map(record).collect(), more: page.more })
}
