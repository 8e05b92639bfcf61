//! Hinted handoff: what this node keeps for others is given to them once they answer again, at the
//! rate they can take (SOSP'07, section 4.6).

use super::coordinator::{hint_on, is_of_layout, merge_on};
use super::errors::{self, Failure};
use super::lane::Lane;
use super::{Cluster, Node, moves, survey};
use crate::clock;
use crate::dynamo::key::Key;
use crate::dynamo::merkle::Digest;
use crate::dynamo::node::Uid;
use crate::dynamo::object::Object;
use crate::dynamo::preference;
use crate::storage::{HintTotals, record};
use proto::v1::{
    HintAction, HintView, HintsCall, HintsReply, HintsRequest, Level, NodeHints, answer, call,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often it is looked whether somebody for whom something is kept answers again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Hints read from disk at once, and sent at once to a node that keeps up.
const WINDOW_MAX: usize = 64;

/// Hints sent at once to begin with.
const WINDOW_START: usize = 8;

/// A round of hints that takes longer than this makes the next one half as large: clients' writes
/// wait for the same disk. So does one during which requests wait for the node.
const ROUND_SLOW: Duration = Duration::from_millis(50);

/// Many large ones take their time.
const GIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What delivers a node's hints.
#[derive(Debug, Default)]
pub struct Handoff {
    paused: AtomicBool,
    /// Nodes that are being given theirs.
    under_way: Mutex<BTreeSet<Uid>>,
    wanted: Notify,
}

/// Delivers hints as long as the node runs.
pub async fn run(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.handoff.wanted.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Ok(cluster) = node.cluster() else { continue };
        for (target, totals) in node.store.hint_totals() {
            if totals.overflowed
                && is_level_since(&cluster, target, node.store.overflowed_at(target))
            {
                drop(node.store.forget_overflow(target)); // else at the next look
            }
            let member = cluster.peers.contains_key(&target);
            let usable = cluster.peers.get(&target).is_some_and(|peer| peer.is_usable());
            let ready = !member || (usable && !node.handoff.paused.load(Ordering::Relaxed));
            if ready && lock(&node.handoff.under_way).insert(target) {
                let (this, cluster) = (Arc::clone(&node), Arc::clone(&cluster));
                node.spawn(async move {
                    if member {
                        deliver(&this, &cluster, target).await;
                    } else {
                        rehome(&this, &cluster, target).await; // it was removed, and never returns
                    }
                    lock(&this.handoff.under_way).remove(&target);
                });
            }
        }
    }
}

/// Whether `target` has compared all it shares with every other replica since `at`, by its own last
/// word: then it has what there was no room to keep for it.
fn is_level_since(cluster: &Cluster, target: Uid, at: Instant) -> bool {
    let told = cluster.peers.get(&target).and_then(|peer| peer.stats());
    let Some((stats, told_at_ms)) = told else { return false };
    let told_ago_ms = clock::now_ms().saturating_sub(told_at_ms);
    let since_ms = at.elapsed().as_millis() as u64;
    stats.checks.iter().all(|check| check.ever && check.ago_ms + told_ago_ms < since_ms)
}

/// Gives `target` what is kept for it, until nothing is left or it does not take more.
async fn deliver(node: &Arc<Node>, cluster: &Arc<Cluster>, target: Uid) {
    let (mut after, mut window, mut delivered) = (None::<Key>, WINDOW_START, 0_u64);
    loop {
        let Some(page) = page(node, target, after.take()).await else { break };
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        let mut rest = &page[..];
        while !rest.is_empty() {
            let (round, more) = rest.split_at(window.min(rest.len()));
            rest = more;
            let started = clock::now();
            let sent = round.iter().map(|hint| give(node, cluster, target, hint));
            let taken = futures_util::future::join_all(sent).await;
            let took = started.elapsed();
            delivered += taken.iter().filter(|taken| **taken).count() as u64;
            if taken.contains(&false) || node.handoff.paused.load(Ordering::Relaxed) {
                return told(node, cluster, target, delivered);
            }
            let busy = cluster.peers.get(&target).is_some_and(|peer| peer.is_busy());
            if busy || took > ROUND_SLOW {
                window = (window / 2).max(1);
                tokio::time::sleep(took.max(ROUND_SLOW)).await; // half the time is the clients'
            } else {
                window = (window + WINDOW_START).min(WINDOW_MAX);
            }
        }
    }
    told(node, cluster, target, delivered);
}

fn told(node: &Node, cluster: &Cluster, target: Uid, delivered: u64) {
    if delivered > 0 {
        let name = cluster.name_of(target);
        node.events.add(Level::Ok, format!("{delivered} hints were handed to {name}"));
    }
}

/// Whether `target` has it now. A hint that grew meanwhile is kept.
async fn give(node: &Arc<Node>, cluster: &Cluster, target: Uid, hint: &(Key, Object)) -> bool {
    let (key, object) = hint;
    let (to, until) = ((Lane::Bulk, target), clock::now() + GIVE_TIMEOUT);
    match merge_on(cluster, to, key, object.encode().into(), None, until).await {
        Ok(()) => {}
        // It is no replica of the key any more: those that are have to have it.
        Err(error) if is_of_layout(&error) => {
            let Ok(now) = node.cluster() else { return false };
            if moves::hand_over(node, &now, key, object, until).await.is_err() {
                return false;
            }
        }
        Err(_) => return false,
    }
    let digest = Digest::of(&record::stored_key(key), object);
    let dropped = node.store.drop_hint(target, key.clone(), Some(digest)).await;
    matches!(dropped, Ok(Ok(())))
}

async fn page(node: &Arc<Node>, target: Uid, after: Option<Key>) -> Option<Vec<(Key, Object)>> {
    let store = node.store.clone();
    // Off the threads that serve requests: it reads a disk.
    let page = move || store.hints(target, after.as_ref(), WINDOW_MAX);
    tokio::task::spawn_blocking(page).await.ok()?.ok() // a store that fails stops the node
}

async fn drop_all(node: &Arc<Node>, target: Uid) {
    while let Some(page) = page(node, target, None).await
        && !page.is_empty()
    {
        for (key, _) in page {
            if !matches!(node.store.drop_hint(target, key, None).await, Ok(Ok(()))) {
                return;
            }
        }
    }
    let _ = node.store.forget_overflow(target).await; // else at the next look
}

/// Gives what is kept for a node that is gone to those who hold its keys now.
async fn rehome(node: &Arc<Node>, cluster: &Arc<Cluster>, target: Uid) {
    let mut handed = 0_u64;
    let mut after = None::<Key>;
    while let Some(page) = page(node, target, after.take()).await
        && let Some((last, _)) = page.last()
    {
        after = Some(last.clone());
        for (key, object) in &page {
            let until = clock::now() + GIVE_TIMEOUT;
            if moves::hand_over(node, cluster, key, object, until).await.is_err() {
                continue; // the next look tries again
            }
            let digest = Digest::of(&record::stored_key(key), object);
            let dropped = node.store.drop_hint(target, key.clone(), Some(digest)).await;
            handed += u64::from(matches!(dropped, Ok(Ok(()))));
        }
        if node.handoff.paused.load(Ordering::Relaxed) {
            break;
        }
    }
    let _ = node.store.forget_overflow(target).await; // else at the next look
    if handed > 0 {
        let name = cluster.name_of(target);
        let text = format!("{handed} hints for {name}, which is gone, were handed to its heirs");
        node.events.add(Level::Ok, text);
    }
}

/// Gives away all that this node, which leaves, keeps for others: to whom it is for, if that one is
/// up, and else to the other replicas, and to one more who keeps it from now on.
pub async fn pass_on(node: &Arc<Node>, cluster: &Arc<Cluster>) {
    for target in node.store.hint_totals().into_keys() {
        let peer = cluster.peers.get(&target);
        if peer.is_some_and(|peer| peer.is_usable()) {
            continue; // it is being delivered
        }
        let mut after = None::<Key>;
        while let Some(page) = page(node, target, after.take()).await
            && let Some((last, _)) = page.last()
        {
            after = Some(last.clone());
            for (key, object) in &page {
                if pass_on_one(node, cluster, target, (key, object)).await.is_none() {
                    return; // the next look tries again
                }
            }
        }
        let _ = node.store.forget_overflow(target).await; // else at the next look
    }
}

/// Why this node does not get rid of what it keeps for others, if it is an operator who wants it so.
pub fn held_back(node: &Node) -> Option<String> {
    let kept = || node.store.hint_totals().values().any(|totals| totals.keys > 0);
    let held = node.handoff.paused.load(Ordering::Relaxed) && kept();
    held.then(|| "what it keeps for others is paused: kvctl hints resume".into())
}

async fn pass_on_one(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    target: Uid,
    (key, object): (&Key, &Object),
) -> Option<()> {
    let until = clock::now() + GIVE_TIMEOUT;
    moves::hand_over(node, cluster, key, object, until).await.ok()?;
    if cluster.layout.member(target).is_some() {
        let members = cluster.layout.members().iter().map(|member| member.uid);
        let mut keepers = members.filter(|uid| *uid != target && *uid != node.uid);
        let up = |uid: &Uid| cluster.peers.get(uid).is_some_and(|peer| peer.is_usable());
        let keeper = keepers.find(up)?;
        let encoded = object.encode().into();
        hint_on(cluster, keeper, target, key, encoded, until).await.ok()?;
    }
    let digest = Digest::of(&record::stored_key(key), object);
    node.store.drop_hint(target, key.clone(), Some(digest)).await.ok()?.ok()
}

/// The object kept here of a key for any of its homes: what this node, which is none, knows of it.
pub fn kept_for_homes(node: &Node, cluster: &Cluster, key: &Key) -> Option<Object> {
    let held = node.store.hint_totals();
    if held.is_empty() {
        return None;
    }
    let keyspace = cluster.layout.keyspace_by_id(key.keyspace())?;
    let parties = preference::parties(&cluster.history, keyspace.id(), key.token(), None)?;
    let homes = parties.homes;
    let mut joined = Object::default();
    for home in homes.iter().filter(|home| held.contains_key(home)) {
        if let Ok(Some(object)) = node.store.hint(*home, key) {
            joined.merge(&object);
        }
    }
    Some(joined).filter(|joined| !joined.clock().is_empty())
}

// === what operators see and do ===

/// Says what every node, or one, keeps for others, or changes it.
pub async fn everywhere(node: &Arc<Node>, request: HintsRequest) -> Result<HintsReply, Failure> {
    let cluster = node.cluster()?;
    let target = match request.target.as_str() {
        "" => Vec::new(),
        name => {
            let member = cluster.layout.member_named(name);
            let member = member.ok_or_else(|| errors::node_unknown(name))?;
            member.uid.to_bytes().to_vec()
        }
    };
    let ask = HintsCall { action: request.action, target_uid: target.into() };
    let understand = |answer| match answer {
        answer::Body::Hints(view) => Some(view),
        _ => None,
    };
    let body = call::Body::Hints(ask.clone());
    let here = || here(node, &ask);
    let answers = survey::ask(node, &request.node, body, here, understand).await?;
    let view = |(node, outcome): (String, Result<NodeHints, String>)| {
        outcome.unwrap_or_else(|error| NodeHints { node, error, ..Default::default() })
    };
    Ok(HintsReply { nodes: answers.into_iter().map(view).collect() })
}

/// The same on this node alone.
pub fn here(node: &Arc<Node>, ask: &HintsCall) -> NodeHints {
    let target = Uid::from_slice(&ask.target_uid);
    match ask.action() {
        HintAction::Unspecified | HintAction::List => {}
        HintAction::Pause => node.handoff.paused.store(true, Ordering::Relaxed),
        HintAction::Resume | HintAction::Replay => {
            node.handoff.paused.store(false, Ordering::Relaxed);
            node.handoff.wanted.notify_one();
        }
        HintAction::Drop => {
            for target in target.into_iter() {
                let this = Arc::clone(node);
                node.spawn(async move { drop_all(&this, target).await });
            }
        }
    }
    let totals = node.store.hint_totals();
    let name = |uid| node.cluster().map_or_else(|_| format!("{uid}"), |it| it.name_of(uid));
    let under_way = lock(&node.handoff.under_way).clone();
    let kept = totals.into_iter().filter(|(uid, _)| target.is_none_or(|target| target == *uid));
    let view = |(uid, totals): (Uid, HintTotals)| HintView {
        target: name(uid),
        keys: totals.keys,
        bytes: totals.bytes,
        since_ms: totals.since_ms,
        overflowed: totals.overflowed,
        delivering: under_way.contains(&uid),
    };
    NodeHints {
        node: node.name(),
        paused: node.handoff.paused.load(Ordering::Relaxed),
        hints: kept.map(view).collect(),
        error: String::new(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
