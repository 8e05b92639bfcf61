//! The scrub: walks every record this node holds, proves its checksum, and brings what is bad back
//! from the other replicas. It runs when asked, and by itself once in a while: a copy that nobody
//! reads would otherwise rot unseen until it is the last one.

use super::coordinator::{merge_here, read_copy};
use super::errors::{self, Failure};
use super::{Node, deadline};
use crate::clock;
use crate::dynamo::key::Key;
use crate::dynamo::object::Object;
use crate::dynamo::preference;
use crate::storage::record;
use bytes::Bytes;
use proto::v1::{Level, ScrubCall, ScrubReply, ScrubRequest, ScrubView, answer, call};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How often a scrub runs by itself.
const EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Bytes proven a second, at most: requests go first.
const BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// A node's scrub.
#[derive(Debug, Default)]
pub struct Scrub {
    view: Mutex<ScrubView>,
    wanted: Notify,
}

impl Scrub {
    /// Has a scrub start, unless one is under way.
    pub fn start(&self) {
        let mut view = lock(&self.view);
        if !view.running {
            *view =
                ScrubView { running: true, started_at_ms: clock::now_ms(), ..Default::default() };
            self.wanted.notify_one();
        }
    }

    /// How it is going.
    pub fn view(&self, node: &Node) -> ScrubView {
        ScrubView { node: node.name(), ..lock(&self.view).clone() }
    }
}

/// Runs scrubs as long as the node runs.
pub async fn run(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.scrub.wanted.notified() => {}
            () = tokio::time::sleep(EVERY) => {
                node.scrub.start();
                continue;
            }
        }
        let outcome = walk(&node).await;
        let mut view = lock(&node.scrub.view);
        (view.running, view.ended_at_ms) = (false, clock::now_ms());
        match outcome {
            Ok(()) => view.progress_ratio = 1.0,
            Err(failure) => view.error = failure.what,
        }
        let (records, bad, healed) = (view.records, view.bad, view.healed);
        drop(view);
        let level = if bad > healed { Level::Degraded } else { Level::Ok };
        node.events
            .add(level, format!("scrub ended: {records} records, {bad} bad, {healed} healed"));
    }
}

async fn walk(node: &Arc<Node>) -> Result<(), Failure> {
    let mut from = Vec::new();
    loop {
        let (store, start) = (node.store.clone(), from);
        // Off the threads that serve requests: a page is thousands of cold records.
        let page = tokio::task::spawn_blocking(move || store.prove(&start)).await;
        let page = page.map_err(|_| errors::internal("the scrub was broken off"))?;
        let page = page.map_err(|error| errors::storage(&error))?;
        for stored_key in &page.bad {
            let healed = heal(node, stored_key).await;
            let mut view = lock(&node.scrub.view);
            view.bad += 1;
            view.healed += u64::from(healed);
        }
        {
            let mut view = lock(&node.scrub.view);
            view.records += page.records;
            view.bytes += page.bytes;
        }
        let Some(next) = page.next else { return Ok(()) };
        if let Some((token, ..)) = record::parse_key(&next) {
            lock(&node.scrub.view).progress_ratio = token.0 as f64 / u128::MAX as f64;
        }
        from = next;
        tokio::time::sleep(Duration::from_secs_f64(page.bytes as f64 / BYTES_PER_SECOND as f64))
            .await;
    }
}

/// Joins what the other replicas hold of a bad record's key into this node's place for it.
async fn heal(node: &Arc<Node>, stored_key: &[u8]) -> bool {
    let (Ok(cluster), Some((_, keyspace, key))) = (node.cluster(), record::parse_key(stored_key))
    else {
        return false;
    };
    let Some(policy) = cluster.layout.keyspace_by_id(keyspace) else { return false };
    let Ok(key) = Key::new(keyspace, Bytes::copy_from_slice(key)) else { return false };
    let mut joined = Object::default();
    for home in preference::homes(&cluster.layout, policy.n, key.token()) {
        if home != node.uid
            && let Ok(Some(copy)) = read_copy(node, &cluster, home, &key, deadline(0)).await
        {
            joined.merge(&copy);
        }
    }
    !joined.clock().is_empty() && merge_here(node, &key, joined).await.is_ok()
}

/// Starts scrubs, or says how they are going, on every node or on one.
pub async fn everywhere(node: &Arc<Node>, request: ScrubRequest) -> Result<ScrubReply, Failure> {
    let cluster = node.cluster()?;
    let known = request.node.is_empty() || cluster.layout.member_named(&request.node).is_some();
    if !known {
        return Err(errors::node_unknown(&request.node));
    }
    let named = cluster.layout.members().iter();
    let named = named.filter(|member| request.node.is_empty() || member.name == request.node);
    let asking = named.map(|member| {
        let cluster = &cluster;
        async move {
            let Some(peer) = cluster.peers.get(&member.uid) else {
                return here(node, ScrubCall { start: request.start });
            };
            let body = call::Body::Scrub(ScrubCall { start: request.start });
            let error = match peer.call(body, 0, deadline(0)).await {
                Ok(answer::Body::Scrub(view)) => return view,
                Ok(_) => "answered something else".into(),
                Err(error) => error.text(),
            };
            ScrubView { node: member.name.clone(), error, ..Default::default() }
        }
    });
    let mut nodes = futures_util::future::join_all(asking).await;
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(ScrubReply { nodes })
}

/// The same on this node alone.
pub fn here(node: &Node, ask: ScrubCall) -> ScrubView {
    if ask.start {
        node.scrub.start();
    }
    node.scrub.view(node)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
