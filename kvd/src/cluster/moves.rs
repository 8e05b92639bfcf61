//! Brings copies where the newest layout wants them: drives [`crate::dynamo::history`].
//!
//! Whoever is to hold a partition fetches it: page after page from one who has it, and then a
//! comparison with as many as the history asks for. Whoever holds one no more compares once more,
//! so that nothing it alone knows of is lost, and gives it up. All goes by the second link, as fast
//! as it may and requests leave room for.

mod fetch;
mod give_up;
mod level;
mod pace;
mod progress;
mod stored;

pub use fetch::{place_out, rate_in_force};
pub use give_up::hand_over;
pub use level::may_compare;
pub use progress::here;

use super::errors::{self, Failure};
use super::peers::Peer;
use super::{Cluster, Node, handoff, membership};
use crate::clock;
use crate::dynamo::history::{History, SyncTask};
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use bytes::Bytes;
use pace::Pace;
use progress::Waits;
use proto::token::Token;
use proto::v1::Level;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};

/// So often it is looked what there is to do while copies move, and when they do not.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_SELDOM: Duration = Duration::from_secs(5);

/// So often it is looked, though nothing moves, whether this node holds what it should not.
const SWEEP_EVERY: Duration = Duration::from_secs(300);

/// Between two such looks while copies move.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Pages given at once.
const OUT_MAX: usize = 2;

/// Records of a page, at most.
const PAGE_RECORDS: u32 = 1024;

/// After a look that failed, the next.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How far a copy has come is stored so often, at most.
const STORE_EVERY: Duration = Duration::from_secs(2);

/// Who leaves looks for somebody to tell it to for so long, so often.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);
const LEAVE_PAUSE: Duration = Duration::from_millis(50);

/// A rate is that of so long.
const RATE_OVER: Duration = Duration::from_secs(5);

/// A copy: of which keyspace and partition (of how many bits), for which layout.
type CopyId = (KeyspaceId, u32, u32, LayoutId);

/// A node's moving of copies.
#[derive(Debug)]
pub struct Moves {
    wanted: Notify,
    to_tell: Notify,
    /// Who says that this node was removed.
    removed: Mutex<BTreeSet<Uid>>,
    /// Partitions are being fetched.
    fetching: AtomicBool,
    /// Ends the process.
    gone: Notify,
    /// Bytes a second without an order.
    usual_rate: AtomicU64,
    out: Arc<Semaphore>,
    copies: Mutex<BTreeMap<CopyId, Copy>>,
    waits: Mutex<Waits>,
    /// When so many bytes came from whom, lately.
    received: Mutex<Vec<(Instant, Uid, u64)>>,
    pace: Mutex<Pace>,
    /// A copy was stored that this node is to hold no more, since it was last looked for such.
    has_stray: AtomicBool,
    /// Keyspaces that were dropped and of which nothing is left here.
    dropped: Mutex<BTreeSet<KeyspaceId>>,
    moved_at_ms: AtomicU64,
    /// What keeps this node from giving away what it has, and since when.
    keeps: Mutex<Option<(String, u64)>>,
    /// How often copies were compared.
    turns: AtomicUsize,
}

impl Default for Moves {
    fn default() -> Self {
        Self {
            wanted: Notify::new(),
            to_tell: Notify::new(),
            removed: Mutex::default(),
            fetching: AtomicBool::new(false),
            gone: Notify::new(),
            usual_rate: AtomicU64::new(0),
            out: Arc::new(Semaphore::new(OUT_MAX)),
            copies: Mutex::default(),
            waits: Mutex::default(),
            received: Mutex::default(),
            pace: Mutex::default(),
            has_stray: AtomicBool::new(false),
            dropped: Mutex::default(),
            moved_at_ms: AtomicU64::new(0),
            keeps: Mutex::default(),
            turns: AtomicUsize::new(0),
        }
    }
}

/// How far a copy has come.
#[derive(Clone, Debug, Default)]
struct Copy {
    from: Option<Uid>,
    /// Everything through this place is here.
    cursor: Option<(Token, Bytes)>,
    bytes: u64,
    whole: bool,
    synced: bool,
    running: bool,
    /// Why it does not get on, and since when.
    why: String,
    since_ms: u64,
}

impl Moves {
    /// The layouts have changed, or how far somebody has come.
    pub fn look(&self) {
        self.wanted.notify_one();
    }

    /// A copy was stored, and this node is to hold none of it: else it would stay until the next look of
    /// those that come seldom.
    pub fn note_stray(&self) {
        self.has_stray.store(true, Ordering::Relaxed);
    }

    /// Without an order it fetches so many bytes a second at most.
    pub fn goes_at(&self, bytes_per_second: u64) {
        self.usual_rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// There is something the others do not know.
    pub fn tell(&self) {
        self.to_tell.notify_one();
    }

    /// Returns once there is.
    pub async fn to_tell(&self) {
        self.to_tell.notified().await;
    }

    /// A peer says that this node was removed.
    pub fn was_removed(&self, peer: Uid) {
        lock(&self.removed).insert(peer);
        self.wanted.notify_one();
    }

    /// A peer takes this node for a member, whatever it said before.
    pub fn is_welcome(&self, peer: Uid) {
        lock(&self.removed).remove(&peer);
    }

    /// Returns once this node has no part in its cluster any more.
    pub async fn gone(&self) {
        self.gone.notified().await;
    }

    /// What keeps this node from giving away what it has; `None`: nothing does.
    fn is_kept_by(&self, why: Option<String>) {
        let mut keeps = lock(&self.keeps);
        let since_ms = keeps.as_ref().map_or_else(clock::now_ms, |(_, since_ms)| *since_ms);
        *keeps = why.map(|why| (why, since_ms));
    }

    fn got_on(&self) {
        self.moved_at_ms.store(clock::now_ms(), Ordering::Relaxed);
    }

    fn with<T>(&self, id: CopyId, work: impl FnOnce(&mut Copy) -> T) -> T {
        work(lock(&self.copies).entry(id).or_default())
    }

    fn note_received(&self, from: Uid, bytes: u64) {
        let mut received = lock(&self.received);
        let now = clock::now();
        received.retain(|(at, ..)| now.duration_since(*at) < RATE_OVER);
        received.push((now, from, bytes));
    }

    /// Bytes a second that came of late, by source.
    fn rates(&self) -> BTreeMap<Uid, u64> {
        let (now, received) = (clock::now(), lock(&self.received));
        let mut rates: BTreeMap<Uid, u64> = BTreeMap::new();
        for (_, from, bytes) in received.iter().filter(|it| now.duration_since(it.0) < RATE_OVER) {
            *rates.entry(*from).or_default() += bytes;
        }
        rates.values_mut().for_each(|bytes| *bytes /= RATE_OVER.as_secs());
        rates
    }
}

/// Moves copies as long as the node runs.
pub async fn run(node: Arc<Node>) {
    stored::restore(&node);
    let mut stored = clock::now();
    loop {
        let settled = node.cluster().is_ok_and(|cluster| cluster.history.is_settled());
        let pause = if settled { LOOK_SELDOM } else { LOOK_EVERY };
        tokio::select! {
            () = node.moves.wanted.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let Ok(cluster) = node.cluster() else { continue };
        if leaves_for_good(&node, &cluster) {
            take_leave(&node).await;
            return;
        }
        if let Err(failure) = step(&node).await {
            tracing::warn!(why = failure.why, "{}", failure.what);
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        if !cluster.history.is_settled() && stored.elapsed() > STORE_EVERY {
            stored = clock::now();
            stored::store(&node).await;
        }
    }
}

/// Gives up copies that this node is to hold no more, as long as it runs.
pub async fn sweep(node: Arc<Node>) {
    let mut swept: Option<Instant> = None;
    // Nothing that came since the last checkpoint can be too much here if no copy moves.
    let mut has_moved = false;
    loop {
        tokio::time::sleep(SWEEP_PAUSE).await;
        let is_open = node.cluster().is_ok_and(|cluster| !cluster.history.is_settled());
        // A write that was under way when all was settled.
        let has_stray = node.moves.has_stray.swap(false, Ordering::Relaxed);
        has_moved |= is_open || has_stray;
        // Once more after all is settled.
        let due = has_stray
            || swept.is_none_or(|at| at.elapsed() > SWEEP_EVERY)
            || give_up::is_any_dropped(&node);
        if !is_open && !due {
            continue;
        }
        match give_up::give_up_what_is_not_ours(&node, has_moved).await {
            Ok(()) if !is_open => {
                node.moves.is_kept_by(None);
                (swept, has_moved) = (Some(clock::now()), false);
            }
            Ok(()) => {
                node.moves.is_kept_by(handoff::held_back(&node));
                swept = None;
            }
            Err(why) => {
                tracing::debug!(why, "what is held no more is not given up yet");
                node.moves.is_kept_by(Some(why));
                swept = None;
            }
        }
        node.moves.look();
    }
}

/// Whether this node is a member no more, and nobody waits for it.
fn leaves_for_good(node: &Node, cluster: &Cluster) -> bool {
    let is_member = cluster.layout.member(node.uid).is_some();
    let settled = cluster.history.is_settled() && !is_member;
    let told = cluster.history.is_removed_by(node.uid, &lock(&node.moves.removed));
    let gone = settled || told;
    if gone {
        let text = format!("{} was removed from the cluster, and stops", node.name());
        node.events.add(Level::Degraded, text);
        tracing::warn!(
            "this node was removed from cluster {}: it stops. To come back it needs a new, empty \
             data directory",
            cluster.layout.cluster_name()
        );
    }
    gone
}

/// Ends the process once somebody who stays knows that this node has left: else all would wait for
/// it for ever.
async fn take_leave(node: &Arc<Node>) {
    let until = clock::now() + LEAVE_TIMEOUT;
    while clock::now() < until && lock(&node.moves.removed).is_empty() {
        membership::tell_all(node).await;
        let Ok(cluster) = node.cluster() else { break };
        let mut peers = cluster.peers.values();
        if peers.any(|peer| peer.is_usable() && peer.history() == Some(cluster.digest)) {
            break;
        }
        tokio::time::sleep(LEAVE_PAUSE).await;
    }
    node.moves.gone.notify_one();
}

/// Does what can be done now.
async fn step(node: &Arc<Node>) -> Result<(), Failure> {
    let me = node.uid;
    // Closing first: it is what writers wait for.
    membership::grow(node, |history| Ok(history.with_closed(me))).await?;
    let cluster = node.cluster()?;
    if cluster.history.is_settled() {
        lock(&node.moves.waits).clear();
        if !std::mem::take(&mut *lock(&node.moves.copies)).is_empty() {
            stored::store(node).await;
        }
        return Ok(());
    }
    let history = Arc::clone(&cluster.history);
    let tasks = tokio::task::spawn_blocking(move || history.to_sync(me));
    let tasks = tasks.await.map_err(|_| errors::internal("looking for copies failed"))?;
    sync(node, &cluster, tasks).await?;
    let leaves = cluster.layout.member(me).is_none() && !cluster.history.has_left(me);
    if leaves && give_up::holds_nothing(node, &cluster).await? {
        // Only of the layout it was judged by; and what it took to keep for others until it knew of
        // that it has to pass on first.
        let (head, store) = (cluster.layout.id(), node.store.clone());
        let kept = move || store.hint_totals().values().any(|totals| totals.keys > 0);
        membership::grow(node, |history| {
            let is_so = history.head().id() == head && !kept();
            Ok(is_so.then(|| history.with_left(me)))
        })
        .await?;
    }
    let now_ms = clock::now_ms();
    let settles = move |history: &History| {
        let mut next = history.clone();
        next.settle(now_ms).then_some(next)
    };
    let history = Arc::clone(&node.cluster()?.history);
    let next = tokio::task::spawn_blocking(move || settles(&history).is_some());
    if next.await.unwrap_or(false) {
        membership::grow(node, |history| Ok(settles(history))).await?;
    }
    Ok(())
}

// === getting copies ===

/// Has copies fetched that are, and compares those that are here.
async fn sync(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    tasks: Vec<SyncTask>,
) -> Result<(), Failure> {
    let me = node.uid;
    let control = cluster.history.control();
    let bits = cluster.history.bits();
    lock(&node.moves.waits).begin();
    progress::stuck_by_others(node, cluster);
    let (mut ready, mut to_fetch) = (Vec::new(), Vec::new());
    for task in tasks {
        let id = (task.keyspace, bits, task.partition, task.origin);
        if !task.is_new {
            // Who is to get a copy gets it first, if it is there: see `History::newcomers`.
            let comes = |peer: &Arc<Peer>| peer.is_usable() || peer.is_new();
            let is_up = |uid: &Uid| cluster.peers.get(uid).is_some_and(comes);
            if !cluster.history.newcomers(&task).iter().any(is_up) {
                ready.push(task);
            }
            continue;
        }
        match node.moves.with(id, |copy| copy.whole) {
            true => ready.push(task),
            false => {
                node.moves.with(id, |copy| {
                    copy.from = copy.from.or_else(|| fetch::source(node, cluster, &task));
                });
                to_fetch.push((id, task));
            }
        }
    }
    if !control.paused && !to_fetch.is_empty() {
        fetch::fetch_all(node, to_fetch);
    }
    let done = level::compare(node, cluster, &ready).await;
    lock(&node.moves.waits).end();
    if done.is_empty() {
        return Ok(());
    }
    for task in done.iter().filter(|task| task.is_new) {
        let id = (task.keyspace, bits, task.partition, task.origin);
        node.moves.with(id, |copy| (copy.synced, copy.whole) = (true, true));
    }
    node.moves.got_on();
    membership::grow(node, |history| Ok(Some(history.with_synced(me, &done)))).await?;
    node.moves.look();
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
