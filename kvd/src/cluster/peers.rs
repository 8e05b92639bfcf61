//! Another member, and the two links to it: one for requests, one for what is done in the
//! background. The first is kept up always, and while it is broken every call fails at once: a dead
//! peer never makes a request wait. The second is made when there is something to send, and ends
//! with the first.

use super::lane::{CallError, Lane, Queue, Waiting};
use super::latency::Latency;
use super::link::{self, Connection, End, Link, SUSPECT_AFTER};
use super::{Node, detector, membership, repair, witness};
use crate::clock;
use crate::dynamo::node::{LayoutId, Uid};
use crate::dynamo::start::Remembered;
use crate::storage::HintTotals;
use proto::v1::{Beat, HintTotal, LayoutRef, NodeStats, Stamp, answer, call};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a peer said of its disk counts for so long.
const BEAT_GOOD_FOR: Duration = Duration::from_secs(5);

/// A member that was never linked to is new for so long, and after that down.
const NEW_FOR: Duration = Duration::from_secs(5);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A link for bulk that broke is made again so much later, if it is needed then.
const BULK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What is known of a peer at the end of its link. Whether it is up is another question: see
/// [`super::detector`].
#[derive(Clone, Debug)]
pub struct Health {
    /// When the connection was made, Unix milliseconds; 0: there is none.
    pub connected_ms: u64,
    /// Why it is not usable.
    pub why: String,
    /// The layout it last named.
    pub layout: Option<LayoutRef>,
    /// What it last said of itself, and when.
    pub beat: Option<(Beat, u64)>,
}

/// Another member, and the links to it.
pub struct Peer {
    /// Who it is.
    pub uid: Uid,
    /// Where it is.
    pub address: String,
    /// The newest start of it that this node has on its disk. Locked while a newer one is brought
    /// there.
    pub start: tokio::sync::Mutex<Option<Remembered>>,
    /// The same, with how far its log has got since, as it told.
    seen: Mutex<Option<Remembered>>,
    /// It has seen no later start of this node.
    pub(super) confirmed: AtomicBool,
    requests: Queue,
    bulk: Queue,
    usable: AtomicBool,
    /// Of all that clients wait for, and of reads alone: these wait for no disk.
    latency: Latency,
    reads: Latency,
    /// It was just heard of: no use waiting before the next try to connect.
    back: Notify,
    /// The link for requests broke: that for bulk ends with it.
    gone: Notify,
    /// It is no member any more, or one somewhere else: its links end.
    retired: CancellationToken,
    /// Layouts are being exchanged with it.
    pub(super) exchanging: AtomicBool,
    /// When it was made a member, as this node learned, and whether it was ever linked to since.
    made: Instant,
    ever_usable: AtomicBool,
    /// What tells apart what it last said to know of the layouts; 0: it has not said.
    history: AtomicU64,
    /// The layouts it last named as those that count.
    layouts: Mutex<BTreeSet<LayoutId>>,
    health: Mutex<Health>,
}

/// A peer that is not linked to yet.
pub struct Unlinked {
    peer: Arc<Peer>,
    requests: Waiting,
    bulk: Waiting,
}

impl Unlinked {
    /// Links to it, again and again, until `node` stops.
    pub fn link(self, node: &Arc<Node>) {
        let Self { peer, requests, bulk } = self;
        let (retired, this) = (peer.retired.clone(), Arc::clone(node));
        node.spawn(async move {
            let links = async {
                tokio::join!(
                    Arc::clone(&peer).run(Arc::clone(&this), requests),
                    Arc::clone(&peer).run_bulk(Arc::clone(&this), bulk),
                )
            };
            retired.run_until_cancelled(links).await;
        });
    }
}

impl Peer {
    /// A member at `address`, and its link, to be made once the node's cluster has this member.
    pub fn new(node: &Node, uid: Uid, address: String) -> (Arc<Self>, Unlinked) {
        let (to_requests, requests) = Queue::new(Lane::Requests);
        let (to_bulk, bulk) = Queue::new(Lane::Bulk);
        let start = witness::remembered(node, uid);
        let peer = Arc::new(Self {
            uid,
            address,
            seen: Mutex::new(start),
            start: tokio::sync::Mutex::new(start),
            confirmed: AtomicBool::new(false),
            requests: to_requests,
            bulk: to_bulk,
            usable: AtomicBool::new(false),
            latency: Latency::default(),
            reads: Latency::default(),
            back: Notify::new(),
            gone: Notify::new(),
            retired: CancellationToken::new(),
            exchanging: AtomicBool::new(false),
            made: clock::now(),
            ever_usable: AtomicBool::new(false),
            history: AtomicU64::new(0),
            layouts: Mutex::default(),
            health: Mutex::new(Health {
                connected_ms: 0,
                why: "not reached yet".into(),
                layout: None,
                beat: None,
            }),
        });
        (Arc::clone(&peer), Unlinked { peer, requests, bulk })
    }

    /// Whether requests should be sent its way.
    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// Recent round trip of requests, microseconds; 0 before the first.
    pub fn latency_us(&self) -> u64 {
        self.latency.recent_us()
    }

    /// How quick it is to be read from, by what is known; 0: not known.
    pub fn read_us(&self) -> u64 {
        self.reads.known_us()
    }

    /// The same with puts.
    pub fn write_us(&self) -> u64 {
        self.latency.known_us()
    }

    /// Whether it is busy with requests: what can wait should.
    pub fn is_busy(&self) -> bool {
        self.latency.is_busy()
    }

    /// Whether it should be sent a client's put: usable, and by its own last word not full.
    pub fn takes_puts(&self) -> bool {
        self.is_usable() && !self.is_full()
    }

    /// What it last said of itself and when, Unix milliseconds, if that was lately.
    pub fn stats(&self) -> Option<(NodeStats, u64)> {
        let health = lock(&self.health);
        let (beat, at_ms) = health.beat.as_ref()?;
        let fresh = clock::now_ms().saturating_sub(*at_ms) < BEAT_GOOD_FOR.as_millis() as u64;
        Some((beat.stats.clone().filter(|_| fresh)?, *at_ms))
    }

    fn is_full(&self) -> bool {
        self.said(|stats| stats.disk_full)
    }

    /// Whether it takes no client requests, by its own last word.
    pub fn is_draining(&self) -> bool {
        self.said(|stats| stats.draining)
    }

    /// Whether it lost data and is not level with its replicas yet, by its own last word.
    pub fn has_lost_data(&self) -> bool {
        self.said(|stats| stats.lost_data)
    }

    /// Whether it said so lately.
    fn said(&self, what: impl FnOnce(&NodeStats) -> bool) -> bool {
        let health = lock(&self.health);
        let Some((beat, at_ms)) = &health.beat else { return false };
        let fresh = clock::now_ms().saturating_sub(*at_ms) < BEAT_GOOD_FOR.as_millis() as u64;
        fresh && beat.stats.as_ref().is_some_and(what)
    }

    /// Why it is not usable, or takes no puts, in a few words.
    pub fn why_not(&self) -> String {
        if self.is_usable() && self.is_full() {
            return "its disk is full".into();
        }
        let health = lock(&self.health);
        if health.why.is_empty() { "does not answer".into() } else { health.why.clone() }
    }

    /// The newest start of it that this node remembers, and how far its log has got in it.
    pub fn seen(&self) -> Option<Remembered> {
        *lock(&self.seen)
    }

    /// This is now its newest start.
    pub fn has_started(&self, start: Remembered) {
        *lock(&self.seen) = Some(start);
    }

    /// In start `count` its log has got so far.
    pub fn has_logged(&self, count: u64, position: u64) {
        if let Some(seen) = &mut *lock(&self.seen)
            && seen.count == count
        {
            seen.position = seen.position.max(position);
        }
    }

    /// Whether it has seen no later start of this node.
    pub fn has_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// The layout it last named.
    pub(super) fn layout(&self) -> Option<LayoutRef> {
        lock(&self.health).layout.clone()
    }

    /// What is known of it.
    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    /// It has connected to this node, so it is there: connects to it at once.
    pub fn is_back(&self) {
        if !self.is_usable() {
            self.back.notify_one();
        }
    }

    /// The layouts it has, as far as is known.
    pub fn layouts(&self) -> BTreeSet<LayoutId> {
        lock(&self.layouts).clone()
    }

    /// It has these.
    pub fn has_layouts(&self, layouts: BTreeSet<LayoutId>) {
        *lock(&self.layouts) = layouts;
    }

    /// It said this of itself.
    pub fn heard(&self, beat: Beat, layout: LayoutRef) {
        let mut health = lock(&self.health);
        health.beat = Some((beat, clock::now_ms()));
        health.layout = Some(layout);
    }

    /// Sends a request that carries about `bytes`, and waits for the answer until `deadline`.
    pub async fn call(
        &self,
        body: call::Body,
        bytes: usize,
        deadline: Instant,
    ) -> Result<answer::Body, CallError> {
        self.call_on(Lane::Requests, body, bytes, deadline).await
    }

    /// The same of a call that goes by `lane`.
    pub async fn call_on(
        &self,
        lane: Lane,
        body: call::Body,
        bytes: usize,
        deadline: Instant,
    ) -> Result<answer::Body, CallError> {
        if !self.is_usable() {
            return Err(CallError::NotSent(self.why_not()));
        }
        if lane == Lane::Bulk {
            return self.bulk.call(body, bytes, deadline).await;
        }
        use call::Body::{Coordinate, Hint, Merge, Read};
        // Of the others some wait for nothing and some for much: they say nothing of how quick the
        // peer is with requests.
        let is_telling = matches!(body, Coordinate(_) | Hint(_) | Merge(_) | Read(_));
        let is_read = matches!(body, Read(_));
        let started = clock::now();
        let outcome = self.requests.call(body, bytes, deadline).await;
        if is_telling && matches!(outcome, Ok(_) | Err(CallError::Refused(_))) {
            self.latency.note(started.elapsed());
        }
        if is_read && outcome.is_ok() {
            self.reads.note(started.elapsed());
        }
        outcome
    }

    // === the links ===

    /// Keeps the link for requests up as long as the node runs.
    async fn run(self: Arc<Self>, node: Arc<Node>, mut waiting: Waiting) {
        let mut backoff = BACKOFF_MIN;
        loop {
            match link::connect(&node, &self.address).await {
                Ok(connection) => {
                    let (why, ever_heard) =
                        self.carry(&node, Lane::Requests, connection, &mut waiting).await;
                    if ever_heard {
                        backoff = BACKOFF_MIN;
                    }
                    self.broke(&node, why);
                    witness::remember_position(&node, &self).await;
                }
                // It missed the invitation, or lost its disk: then it is another node now.
                Err(refused) if refused.blank => {
                    if let Err(why) = membership::invite(&node, &self).await {
                        self.broke(&node, why);
                    }
                }
                Err(refused) => self.broke(&node, refused.why),
            }
            let jitter = clock::random_u64() % (backoff.as_millis() as u64 / 2 + 1);
            let pause = tokio::time::sleep(backoff / 2 + Duration::from_millis(jitter));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = self.back.notified() => break,
                    () = waiting.some() => waiting.refuse(&self.why_not()),
                }
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Links for bulk when there is something to send and the other link is up. Not always: most of
    /// the time there is nothing, and a link that cannot be made then need not be tried.
    async fn run_bulk(self: Arc<Self>, node: Arc<Node>, mut waiting: Waiting) {
        loop {
            waiting.some().await;
            let gone = self.gone.notified();
            if !self.is_usable() {
                waiting.refuse(&self.why_not());
                continue;
            }
            let carry = async {
                match link::connect(&node, &self.address).await {
                    Ok(connection) => {
                        self.carry(&node, Lane::Bulk, connection, &mut waiting).await.0
                    }
                    Err(refused) => refused.why,
                }
            };
            let (why, pause) = tokio::select! {
                why = carry => (why, BULK_AGAIN_AFTER),
                () = gone => (self.why_not(), Duration::ZERO),
            };
            tracing::debug!(why, "the link for bulk to {} broke", self.name(&node));
            waiting.refuse(&why);
            tokio::time::sleep(pause).await;
        }
    }

    /// Carries calls by this connection and those that follow it. Why the last of them broke, and
    /// whether the peer said anything on one.
    async fn carry(
        self: &Arc<Self>,
        node: &Arc<Node>,
        lane: Lane,
        mut connection: Connection,
        waiting: &mut Waiting,
    ) -> (String, bool) {
        let mut heard_before = false;
        loop {
            match Link::new(node, self, lane).drive(connection, waiting).await {
                End::Broke(why, ever_heard) => return (why, ever_heard || heard_before),
                End::Succeeded(next) => (connection, heard_before) = (*next, true),
            }
        }
    }

    /// Whether it has only just been made a member, and is linked to in a moment.
    pub fn is_new(&self) -> bool {
        !self.ever_usable.load(Ordering::Relaxed) && self.made.elapsed() < NEW_FOR
    }

    /// Ends its links: another has its place, or none.
    pub fn retire(&self) {
        self.usable.store(false, Ordering::Relaxed);
        self.retired.cancel();
    }

    /// It said something on the link for requests.
    pub(super) fn came_up(&self) {
        self.ever_usable.store(true, Ordering::Relaxed);
        if !self.usable.swap(true, Ordering::Relaxed) {
            let mut health = lock(&self.health);
            health.why.clear();
            if health.connected_ms == 0 {
                health.connected_ms = clock::now_ms();
            }
        }
    }

    /// Passed over until it says anything.
    pub(super) fn fell_silent(&self) {
        if self.usable.swap(false, Ordering::Relaxed) {
            lock(&self.health).why = format!("silent for {} ms", SUSPECT_AFTER.as_millis());
        }
    }

    fn broke(&self, node: &Node, why: String) {
        self.usable.store(false, Ordering::Relaxed);
        self.gone.notify_waiters();
        let mut health = lock(&self.health);
        let broke = std::mem::take(&mut health.connected_ms) != 0;
        health.why.clone_from(&why);
        drop(health);
        if broke {
            tracing::info!(why, "the link to {} broke", self.name(node));
        }
    }

    /// What tells apart what it knows of the layouts, by its own last word.
    pub(super) fn history(&self) -> Option<u64> {
        Some(self.history.load(Ordering::Relaxed)).filter(|digest| *digest != 0)
    }

    /// It named its layout.
    pub(super) fn names_layout(&self, stamp: &Stamp) {
        self.history.store(stamp.history, Ordering::Relaxed);
        let mut health = lock(&self.health);
        if health.layout.as_ref().is_none_or(|known| known.id != stamp.layout_id) {
            health.layout =
                Some(LayoutRef { id: stamp.layout_id.clone(), depth: stamp.layout_depth });
        }
    }

    pub(super) fn name(&self, node: &Node) -> String {
        node.cluster().map_or_else(|_| self.uid.to_string(), |cluster| cluster.name_of(self.uid))
    }
}

/// The version every node tells.
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// What is kept for others, on the wire.
pub fn wire_totals(totals: BTreeMap<Uid, HintTotals>) -> Vec<HintTotal> {
    let total = |(target, totals): (Uid, HintTotals)| HintTotal {
        target_uid: target.to_bytes().to_vec().into(),
        keys: totals.keys,
        bytes: totals.bytes,
        since_ms: totals.since_ms,
        overflowed: totals.overflowed,
    };
    totals.into_iter().map(total).collect()
}

/// What a node says of itself.
pub fn node_stats(node: &Node) -> NodeStats {
    let facts = node.store.facts();
    let (stats, disk) = (&node.stats, node.store.room());
    NodeStats {
        gets: stats.gets.get(),
        puts: stats.puts.get(),
        deletes: stats.deletes.get(),
        failures: stats.failures.get(),
        read_repairs: stats.read_repairs.get(),
        siblings_seen: stats.siblings_seen.get(),
        get_latency: Some(stats.get_latency.counts()),
        put_latency: Some(stats.put_latency.counts()),
        keys: facts.keys,
        data_bytes: facts.data_bytes,
        disk_total_bytes: disk.total_bytes,
        disk_free_bytes: disk.free_bytes,
        started_at_ms: node.started_at_ms,
        bad_records: facts.bad_records,
        hints: wire_totals(node.store.hint_totals()),
        checks: repair::checks(node),
        lost_data: !node.vote.is_given(),
        opinions: detector::told(node),
        disk_full: node.disk_full.load(Ordering::Relaxed),
        incarnation: node.store.incarnation().to_bytes().to_vec().into(),
        log_position: node.store.log_position(),
        draining: node.drained.load(Ordering::Relaxed) || node.draining.load(Ordering::Relaxed),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
