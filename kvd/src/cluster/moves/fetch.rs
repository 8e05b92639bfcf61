//! Fetching partitions, page after page, from who has them; and giving pages.

use super::pace::Pace;
use super::{CopyId, PAGE_RECORDS, lock};
use crate::clock;
use crate::cluster::errors::{self, Failure};
use crate::cluster::lane::{CallError, Lane};
use crate::cluster::peers::Peer;
use crate::cluster::{Cluster, Node};
use crate::dynamo::history::SyncTask;
use crate::dynamo::key::Key;
use crate::dynamo::node::{KeyspaceId, Uid};
use crate::dynamo::object::Object;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use proto::token::Token;
use proto::v1::{ScanAnswer, ScanCall, answer, call};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Partitions fetched at once.
const IN_MAX: usize = 2;

/// A source answers from its disk.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// While a page is paid for, it is looked so often whether another rate was ordered.
const PAY_STEP: Duration = Duration::from_millis(500);

/// After a page that failed, the next try.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Fetches these, a few at a time, beside everything else; unless some are being fetched: then these
/// have their turn after them.
pub(super) fn fetch_all(node: &Arc<Node>, tasks: Vec<(CopyId, SyncTask)>) {
    if node.moves.fetching.swap(true, Ordering::AcqRel) {
        return;
    }
    let this = Arc::clone(node);
    node.spawn(async move {
        let fetches = futures_util::stream::iter(tasks).map(|(id, task)| {
            let node = Arc::clone(&this);
            async move {
                let Ok(cluster) = node.cluster() else { return };
                // As it is now: what was readable when the list was made may be closed by now, and
                // a long list of refusals would keep what can be fetched waiting.
                if cluster.history.bits() != id.1 {
                    return; // the ring was cut finer: it is another part of it now
                }
                let part = [(task.keyspace, task.partition)];
                let tasks = cluster.history.to_sync_of(node.uid, part);
                let Some(task) = tasks.into_iter().find(|now| now.origin == task.origin) else {
                    return;
                };
                node.moves.with(id, |copy| copy.running = true);
                fetch(&node, &cluster, id, &task).await;
                node.moves.with(id, |copy| copy.running = false);
            }
        });
        fetches.buffer_unordered(IN_MAX).for_each(|()| std::future::ready(())).await;
        this.moves.fetching.store(false, Ordering::Release);
        this.moves.look();
    });
}

/// From whom it fetches a partition: not all from the same one.
pub(super) fn source(node: &Node, cluster: &Cluster, task: &SyncTask) -> Option<Uid> {
    let others = task.candidates.iter().copied().filter(|uid| *uid != node.uid);
    let others: Vec<Uid> = others.collect();
    let usable = |uid: &Uid| cluster.peers.get(uid).is_some_and(|peer| peer.is_usable());
    let turn = task.partition as usize % others.len().max(1);
    let mut in_turn = others.iter().cycle().skip(turn).take(others.len());
    in_turn.clone().copied().find(usable).or_else(|| in_turn.next().copied())
}

/// Fetches a partition, page after page, from who has it.
async fn fetch(node: &Arc<Node>, cluster: &Arc<Cluster>, id: CopyId, task: &SyncTask) {
    let (first, last) = Token::range(task.partition, cluster.history.bits());
    let Some(from) = source(node, cluster, task) else {
        // Nobody else is left to be read: what it has is all there is.
        node.moves.with(id, |copy| copy.whole = true);
        return;
    };
    node.moves.with(id, |copy| copy.from = Some(from));
    loop {
        if node.draining.load(Ordering::Relaxed) || is_paused(node) {
            return;
        }
        let Ok(now) = node.cluster() else { return };
        if now.history.layouts().iter().all(|layout| layout.id() != task.origin) {
            return; // it is wanted no more
        }
        let Some(peer) = now.peers.get(&from) else { return };
        let cursor = node.moves.with(id, |copy| copy.cursor.clone());
        let (from_token, after_key) = cursor.unwrap_or((first, Bytes::new()));
        let ask = ScanCall {
            keyspace: task.keyspace.0,
            from_token: from_token.to_bytes().to_vec().into(),
            after_key,
            to_token: last.to_bytes().to_vec().into(),
            limit: PAGE_RECORDS,
            prefix: Bytes::new(),
            layout_id: task.under.to_bytes().to_vec().into(),
            transfer: true,
        };
        let until = clock::now() + PAGE_TIMEOUT;
        let page = match peer.call_on(Lane::Bulk, call::Body::Scan(ask), 0, until).await {
            Ok(answer::Body::Scan(page)) => keep_page(node, task.keyspace, page).await,
            Ok(_) => Err("answered something else".into()),
            Err(error) if is_busy(&error) => {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            Err(error) => Err(error.text()),
        };
        match page {
            Ok((bytes, through)) => {
                node.moves.note_received(from, bytes);
                node.moves.got_on();
                node.moves.with(id, |copy| {
                    copy.bytes += bytes;
                    copy.whole = through.is_none();
                    copy.cursor = through.clone();
                    copy.why.clear();
                });
                pay(node, peer, bytes).await;
                if through.is_none() {
                    return;
                }
            }
            Err(why) => {
                let now_ms = clock::now_ms();
                let why = if peer.is_new() { String::new() } else { why };
                node.moves.with(id, |copy| {
                    if copy.why.is_empty() {
                        copy.since_ms = now_ms;
                    }
                    copy.why = why;
                });
                tokio::time::sleep(AGAIN_AFTER).await;
                return; // another may be asked
            }
        }
    }
}

/// How many bytes came, and through which place; `None`: to the end.
type PageKept = (u64, Option<(Token, Bytes)>);

async fn keep_page(
    node: &Arc<Node>,
    keyspace: KeyspaceId,
    page: ScanAnswer,
) -> Result<PageKept, String> {
    if page.no_vote {
        return Err("lost data, and is not level yet".into());
    }
    let (mut bytes, mut merging) = (0, Vec::with_capacity(page.entries.len()));
    for entry in page.entries {
        bytes += (entry.key.len() + entry.object.len()) as u64;
        let key = Key::new(keyspace, entry.key).map_err(|error| error.to_string())?;
        let object = Object::decode(entry.object);
        let object = object.map_err(|error| format!("sent a copy that is {error}"))?;
        merging.push(node.store.merge(key, object));
    }
    for merged in join_all(merging).await {
        merged.map_err(|_| "storage stopped")?.map_err(|error| error.to_string())?;
    }
    let through = page.through_token.first_chunk::<16>();
    let through = through.map(|token| Token(u128::from_be_bytes(*token)));
    Ok((bytes, through.map(|token| (token, page.through_key))))
}

fn is_busy(error: &CallError) -> bool {
    use proto::v1::ErrorCode::Overloaded;
    matches!(error, CallError::Refused(detail) if detail.code() == Overloaded)
}

fn is_paused(node: &Node) -> bool {
    node.cluster().is_ok_and(|cluster| cluster.history.control().paused)
}

/// Waits as long as these bytes take at the rate in force, less while requests are slow. All that a
/// node fetches shares it.
async fn pay(node: &Node, from: &Peer, bytes: u64) {
    let is_busy = node.is_busy() || from.is_busy();
    let until = lock(&node.moves.pace).pay(clock::now(), rate_in_force(node), is_busy, bytes);
    // In steps: whoever orders another rate, or stops it, waits no longer than one.
    let ordered = rate_in_force(node);
    while clock::now() < until && rate_in_force(node) == ordered && !is_paused(node) {
        tokio::time::sleep_until(until.min(clock::now() + PAY_STEP).into()).await;
    }
    if rate_in_force(node) != ordered {
        *lock(&node.moves.pace) = Pace::default();
    }
}

/// Bytes a second that this node may fetch; 0: no bound.
pub fn rate_in_force(node: &Node) -> u64 {
    let ordered = node.cluster().ok().and_then(|it| it.history.control().bytes_per_second);
    ordered.unwrap_or_else(|| node.moves.usual_rate.load(Ordering::Relaxed))
}

/// A place among the pages that are given at once.
///
/// # Errors
/// There is none: the asker comes back.
pub fn place_out(node: &Node) -> Result<OwnedSemaphorePermit, Failure> {
    let place = Arc::clone(&node.moves.out).try_acquire_owned();
    place.map_err(|_| errors::overloaded("it gives as many pages as it may"))
}
