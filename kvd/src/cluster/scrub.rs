//! The scrub: walks every record this node holds, proves its checksum, and brings what is bad back
//! from the other replicas. It runs when asked, and by itself once in a while: a copy that nobody
//! reads would otherwise rot unseen until it is the last one.

use super::coordinator::{merge_here, read_copy};
use super::errors::{self, Failure};
use super::lane::Lane;
use super::{Node, deadline, survey};
use crate::clock;
use crate::dynamo::key::Key;
use crate::dynamo::object::Object;
use crate::dynamo::preference;
use crate::storage::{Store, StoreError, record};
use bytes::{Buf, Bytes};
use proto::v1::{Level, ScrubCall, ScrubReply, ScrubRequest, ScrubView, answer, call};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The fact that remembers the cycle.
const FACT_CYCLE: &str = "scrub_cycle";

/// At least so often it is looked whether a scrub is due: the wall clock may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How a node scrubs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// How often one begins by itself; `None`: never.
    pub every: Option<Duration>,
    /// Bytes proven a second, at most: requests go first.
    pub bytes_per_second: u64,
}

/// A node's scrub.
#[derive(Debug, Default)]
pub struct Scrub {
    view: Mutex<ScrubView>,
    wanted: Notify,
}

/// Where in the cycle of scrubs a node is, Unix milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cycle {
    /// When one last came to its end; 0: never.
    full_at_ms: u64,
    /// From when on the time to the next is counted: that, or when the node was made.
    counted_from_ms: u64,
}

impl Cycle {
    /// What was remembered; on the first start a cycle begins.
    async fn recall(store: &Store, now_ms: u64) -> Result<Self, StoreError> {
        if let Some(kept) = store.fact(FACT_CYCLE)?
            && let Ok(kept) = <[u8; 16]>::try_from(kept)
        {
            let mut kept = &kept[..];
            return Ok(Self { full_at_ms: kept.get_u64(), counted_from_ms: kept.get_u64() });
        }
        let begun = Self { full_at_ms: 0, counted_from_ms: now_ms };
        begun.remember(store).await;
        Ok(begun)
    }

    async fn remember(self, store: &Store) {
        let bytes = [self.full_at_ms.to_be_bytes(), self.counted_from_ms.to_be_bytes()].concat();
        let _ = store.put_fact(FACT_CYCLE, bytes).await; // else the next comes sooner
    }

    /// When the next is due. A clock that was set back does not put it off.
    fn due_at_ms(self, every: Option<Duration>, now_ms: u64) -> Option<u64> {
        let every = every?.as_millis() as u64;
        Some(self.counted_from_ms.min(now_ms).saturating_add(every))
    }
}

impl Scrub {
    /// Has a scrub start, unless one is under way.
    pub fn start(&self) {
        let mut view = lock(&self.view);
        if !view.running {
            *view = ScrubView {
                running: true,
                started_at_ms: clock::now_ms(),
                full_at_ms: view.full_at_ms,
                due_at_ms: view.due_at_ms,
                ..Default::default()
            };
            self.wanted.notify_one();
        }
    }

    /// How it is going.
    pub fn view(&self, node: &Node) -> ScrubView {
        ScrubView { node: node.name(), ..lock(&self.view).clone() }
    }
}

/// Runs scrubs as long as the node runs.
pub async fn run(node: Arc<Node>, pace: Pace) {
    let Ok(mut cycle) = Cycle::recall(&node.store, clock::now_ms()).await else { return };
    loop {
        let now = clock::now_ms();
        let due = cycle.due_at_ms(pace.every, now);
        {
            let mut view = lock(&node.scrub.view);
            (view.full_at_ms, view.due_at_ms) = (cycle.full_at_ms, due.unwrap_or(0));
        }
        let left = due.map(|due| Duration::from_millis(due.saturating_sub(now)));
        tokio::select! {
            () = node.scrub.wanted.notified() => {}
            () = tokio::time::sleep(left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) => {
                if left.is_some_and(|left| left <= LOOK_EVERY) {
                    node.scrub.start();
                }
                continue;
            }
        }
        let outcome = walk(&node, pace.bytes_per_second).await;
        cycle.counted_from_ms = clock::now_ms();
        if outcome.is_ok() {
            cycle.full_at_ms = cycle.counted_from_ms;
            cycle.remember(&node.store).await;
        }
        end(&node, outcome, cycle.counted_from_ms);
    }
}

fn end(node: &Node, outcome: Result<(), Failure>, now_ms: u64) {
    let mut view = lock(&node.scrub.view);
    (view.running, view.ended_at_ms) = (false, now_ms);
    match outcome {
        Ok(()) => (view.progress_ratio, view.full_at_ms) = (1.0, now_ms),
        Err(failure) => view.error = failure.what,
    }
    let (records, bad, healed) = (view.records, view.bad, view.healed);
    drop(view);
    let level = if bad > healed { Level::Degraded } else { Level::Ok };
    node.events.add(level, format!("scrub ended: {records} records, {bad} bad, {healed} healed"));
}

async fn walk(node: &Arc<Node>, bytes_per_second: u64) -> Result<(), Failure> {
    let mut from = Vec::new();
    loop {
        node.yield_to_requests().await;
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
        tokio::time::sleep(Duration::from_secs_f64(page.bytes as f64 / bytes_per_second as f64))
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
            && let Ok(copy) =
                read_copy(node, &cluster, (Lane::Bulk, home), &key, None, deadline(clock::now(), 0))
                    .await
        {
            joined.merge(&copy.object);
        }
    }
    !joined.clock().is_empty() && merge_here(node, &key, joined).await.is_ok()
}

/// Starts scrubs, or says how they are going, on every node or on one.
pub async fn everywhere(node: &Arc<Node>, request: ScrubRequest) -> Result<ScrubReply, Failure> {
    let ask = ScrubCall { start: request.start };
    let understand = |answer| match answer {
        answer::Body::Scrub(view) => Some(view),
        _ => None,
    };
    let body = call::Body::Scrub(ask);
    let answers = survey::ask(node, &request.node, body, || here(node, ask), understand).await?;
    let view = |(node, outcome): (String, Result<ScrubView, String>)| {
        outcome.unwrap_or_else(|error| ScrubView { node, error, ..Default::default() })
    };
    Ok(ScrubReply { nodes: answers.into_iter().map(view).collect() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_scrub_is_due_a_cycle_after_the_last_whatever_the_wall_clock_did() {
        let cycle = Cycle { full_at_ms: 5_000, counted_from_ms: 5_000 };
        let every = Some(Duration::from_secs(10));
        assert_eq!(cycle.due_at_ms(every, 6_000), Some(15_000));
        assert_eq!(cycle.due_at_ms(every, 90_000), Some(15_000), "overdue, so at once");
        assert_eq!(cycle.due_at_ms(every, 1_000), Some(11_000), "set back");
        assert_eq!(cycle.due_at_ms(None, 6_000), None);
    }
}
