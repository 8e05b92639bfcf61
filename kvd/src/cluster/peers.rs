//! The link to another node: one long-lived stream, on which calls are multiplexed by id and sent
//! in the batches they happen to come in. It reconnects by itself, and while it is broken every
//! call fails at once: a dead peer never makes a request wait.

use super::{Node, detector, membership, repair, witness};
use crate::clock;
use crate::dynamo::node::Uid;
use crate::dynamo::start::Start;
use crate::storage::HintTotals;
use proto::MESSAGE_BYTES_MAX;
use proto::client::root_cause;
use proto::v1::replica_client::ReplicaClient;
use proto::v1::{
    Answer, Beat, Call, ErrorCode, ErrorDetail, HintTotal, LayoutRef, LinkReply, LinkRequest,
    NodeStats, Outcome, Stamp, answer, call,
};
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Calls in one message, at most.
const BATCH_CALLS_MAX: usize = 64;

/// A message is sent once it holds so many bytes, so that a large value delays few others.
const BATCH_BYTES: usize = 1024 * 1024;

/// Calls waiting to be sent to one peer, at most. One more fails at once, as if the peer were down.
const QUEUE_CALLS_MAX: usize = 4096;

/// Kibibytes of objects waiting to be sent to or answered by one peer, at most; then as above.
const QUEUE_KIB_MAX: usize = 128 * 1024;

/// Calls sent and not answered, at most; then as above.
const PENDING_MAX: usize = 16 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// What a peer said of its disk counts for so long.
const BEAT_GOOD_FOR: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// With calls unanswered and nothing heard for so long, a beat is sent at once.
const ASK_AFTER: Duration = Duration::from_millis(200);

/// With a beat unanswered (or impossible to send) and nothing heard for so long, the peer is
/// passed over until it says anything. Only a beat is held against it: it is answered without
/// touching a disk, so its silence is no slow fsync.
const SUSPECT_AFTER: Duration = Duration::from_millis(500);

/// With nothing heard for so long, though a beat is due every second, the link is broken.
const SILENT_AFTER: Duration = Duration::from_secs(3);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub enum CallError {
    /// It was never sent: nothing happened.
    NotSent(String),
    /// It was sent, and what became of it is unknown.
    Lost(String),
    /// The peer refused it.
    Refused(Box<ErrorDetail>),
}

impl CallError {
    /// Whether the replica's copy is damaged: it has no vote, and needs repair.
    pub fn is_damaged_copy(&self) -> bool {
        matches!(self, Self::Refused(detail) if detail.code() == ErrorCode::RecordBad)
    }

    /// Whether the peer may have done what it was asked.
    pub fn may_have_been_applied(&self) -> bool {
        match self {
            Self::NotSent(_) => false,
            Self::Lost(_) => true,
            Self::Refused(detail) => detail.outcome() == Outcome::Unknown,
        }
    }

    /// In a few words, for the list of what each replica said.
    pub fn text(&self) -> String {
        match self {
            Self::NotSent(why) | Self::Lost(why) => why.clone(),
            Self::Refused(detail) => match detail.why.as_str() {
                "" => detail.what.clone(),
                why => format!("{}: {why}", detail.what),
            },
        }
    }
}

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

/// Another member, and the link to it.
pub struct Peer {
    /// Who it is.
    pub uid: Uid,
    /// Where it is.
    pub address: String,
    /// The newest start of it this node remembers. Locked while a newer one is brought to disk.
    pub start: tokio::sync::Mutex<Option<Start>>,
    /// The count of that start.
    starts_seen: AtomicU64,
    /// It has seen no later start of this node.
    confirmed: AtomicBool,
    calls: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    usable: AtomicBool,
    latency_us: AtomicU64,
    /// It was just heard of: no use waiting before the next try to connect.
    back: Notify,
    /// Layouts are being exchanged with it.
    exchanging: AtomicBool,
    health: Mutex<Health>,
}

/// A peer that is not linked to yet.
pub struct Unlinked {
    peer: Arc<Peer>,
    waiting: mpsc::Receiver<Outgoing>,
}

impl Unlinked {
    /// Links to it; the link lives until `node` stops.
    pub fn link(self, node: &Arc<Node>) {
        node.spawn(self.peer.run(Arc::clone(node), self.waiting));
    }
}

struct Outgoing {
    body: call::Body,
    bytes: usize,
    deadline: Instant,
    reply: oneshot::Sender<Result<answer::Body, CallError>>,
    room: OwnedSemaphorePermit,
}

struct Pending {
    since: Instant,
    reply: oneshot::Sender<Result<answer::Body, CallError>>,
    _room: OwnedSemaphorePermit,
}

impl Peer {
    /// A member at `address`, and its link, to be made once the node's cluster has this member.
    pub fn new(node: &Node, uid: Uid, address: String) -> (Arc<Self>, Unlinked) {
        let (calls, waiting) = mpsc::channel(QUEUE_CALLS_MAX);
        let start = witness::remembered(node, uid);
        let peer = Arc::new(Self {
            uid,
            address,
            starts_seen: AtomicU64::new(start.map_or(0, |start| start.count)),
            start: tokio::sync::Mutex::new(start),
            confirmed: AtomicBool::new(false),
            calls,
            room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
            usable: AtomicBool::new(false),
            latency_us: AtomicU64::new(0),
            back: Notify::new(),
            exchanging: AtomicBool::new(false),
            health: Mutex::new(Health {
                connected_ms: 0,
                why: "not reached yet".into(),
                layout: None,
                beat: None,
            }),
        });
        (Arc::clone(&peer), Unlinked { peer, waiting })
    }

    /// Whether requests should be sent its way.
    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// Recent round trip, microseconds; 0 before the first.
    pub fn latency_us(&self) -> u64 {
        self.latency_us.load(Ordering::Relaxed)
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

    fn starts_seen(&self) -> u64 {
        self.starts_seen.load(Ordering::Acquire)
    }

    /// It has been started so often, at least.
    pub fn has_started(&self, count: u64) {
        self.starts_seen.fetch_max(count, Ordering::AcqRel);
    }

    /// Whether it has seen no later start of this node.
    pub fn has_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
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

    /// It said this of itself.
    pub fn heard(&self, beat: Beat, layout: LayoutRef) {
        let mut health = lock(&self.health);
        health.beat = Some((beat, clock::now_ms()));
        health.layout = Some(layout);
    }

    /// Sends a call that carries about `bytes`, and waits for the answer until `deadline`.
    pub async fn call(
        &self,
        body: call::Body,
        bytes: usize,
        deadline: Instant,
    ) -> Result<answer::Body, CallError> {
        if !self.is_usable() {
            return Err(CallError::NotSent(self.why_not()));
        }
        let full = || CallError::NotSent("has too much waiting for it".into());
        let kib = (bytes / 1024 + 1).min(QUEUE_KIB_MAX) as u32;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).map_err(|_| full())?;
        let (reply, answer) = oneshot::channel();
        // Some wait for a checkpoint, gossip for nothing: they say nothing of how quick it is with
        // requests.
        let is_telling =
            !matches!(body, call::Body::Tree(_) | call::Body::Digests(_) | call::Body::Gossip(_));
        let started = clock::now();
        let outgoing = Outgoing { body, bytes, deadline, reply, room };
        self.calls.try_send(outgoing).map_err(|_| full())?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => {
                if is_telling {
                    self.note_latency(started.elapsed());
                }
                answer
            }
            Ok(Err(_)) => Err(CallError::Lost("connection lost".into())),
            Err(_) => {
                let waited = started.elapsed().as_millis();
                Err(CallError::Lost(format!("gave no answer in {waited} ms")))
            }
        }
    }

    /// An eighth of each new sample: quick enough to follow a node that slows down.
    fn note_latency(&self, latest: Duration) {
        let latest = latest.as_micros() as u64;
        let mean = match self.latency_us() {
            0 => latest,
            mean => mean - mean / 8 + latest / 8,
        };
        self.latency_us.store(mean.max(1), Ordering::Relaxed);
    }

    // === the link ===

    /// Connects, again and again, as long as the node runs.
    async fn run(self: Arc<Self>, node: Arc<Node>, mut calls: mpsc::Receiver<Outgoing>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            match connect(&node, &self.address).await {
                Ok((requests, replies)) => {
                    let (why, ever_heard) = self.drive(&node, requests, replies, &mut calls).await;
                    if ever_heard {
                        backoff = BACKOFF_MIN;
                    }
                    self.broke(&node, why);
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
                    Some(call) = calls.recv() => {
                        let _ = call.reply.send(Err(CallError::NotSent(self.why_not())));
                    }
                }
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Sends, receives and watches until the link breaks; returns why, and whether the peer ever
    /// said anything on it.
    ///
    /// Side by side: were reading to wait for writing, two nodes could each wait for the other to
    /// take its answers; were watching to wait for writing, a peer that stops reading would never
    /// be noticed.
    async fn drive(
        self: &Arc<Self>,
        node: &Arc<Node>,
        requests: mpsc::Sender<LinkRequest>,
        replies: Streaming<LinkReply>,
        calls: &mut mpsc::Receiver<Outgoing>,
    ) -> (String, bool) {
        let link = Link {
            peer: self,
            node,
            pending: Mutex::new(Calls::new()),
            signs: Mutex::new(Signs::new(clock::now())),
            next_id: AtomicU64::new(BEAT_ID + 1),
            beat_wanted: Notify::new(),
        };
        let why = tokio::select! {
            why = link.read(replies) => why,
            why = link.write(&requests, calls) => why,
            why = link.watch() => why,
        };
        for (_, call) in lock(&link.pending).drain() {
            let _ = call.reply.send(Err(CallError::Lost(why.clone()))); // the caller may have left
        }
        let ever_heard = lock(&link.signs).ever_heard;
        (why, ever_heard)
    }

    fn came_up(&self) {
        if !self.usable.swap(true, Ordering::Relaxed) {
            let mut health = lock(&self.health);
            health.why.clear();
            if health.connected_ms == 0 {
                health.connected_ms = clock::now_ms();
            }
        }
    }

    /// Passed over until it says anything.
    fn fell_silent(&self) {
        if self.usable.swap(false, Ordering::Relaxed) {
            lock(&self.health).why = format!("silent for {} ms", SUSPECT_AFTER.as_millis());
        }
    }

    fn broke(&self, node: &Node, why: String) {
        self.usable.store(false, Ordering::Relaxed);
        let mut health = lock(&self.health);
        let broke = std::mem::take(&mut health.connected_ms) != 0;
        health.why.clone_from(&why);
        drop(health);
        if broke {
            tracing::info!(why, "the link to {} broke", self.name(node));
        }
    }

    fn names_layout(&self, stamp: &Stamp) {
        let mut health = lock(&self.health);
        if health.layout.as_ref().is_none_or(|known| known.id != stamp.layout_id) {
            health.layout =
                Some(LayoutRef { id: stamp.layout_id.clone(), depth: stamp.layout_depth });
        }
    }

    fn name(&self, node: &Node) -> String {
        node.cluster().map_or_else(|_| self.uid.to_string(), |cluster| cluster.name_of(self.uid))
    }
}

type Calls = HashMap<u64, Pending>;

/// The id of every beat: one is under way at a time, and nobody waits for it.
const BEAT_ID: u64 = 0;

/// Signs of life on one connection.
struct Signs {
    /// When the peer last said anything, or the connection was made.
    heard: Instant,
    ever_heard: bool,
    /// When the beat that is unanswered was sent.
    beat_pending: Option<Instant>,
    last_beat: Option<Instant>,
    /// Since when a message has been waiting for the peer to take it.
    sending: Option<Instant>,
}

impl Signs {
    fn new(now: Instant) -> Self {
        Self { heard: now, ever_heard: false, beat_pending: None, last_beat: None, sending: None }
    }
}

/// One connection's life.
struct Link<'a> {
    peer: &'a Arc<Peer>,
    node: &'a Arc<Node>,
    pending: Mutex<Calls>,
    signs: Mutex<Signs>,
    next_id: AtomicU64,
    beat_wanted: Notify,
}

impl Link<'_> {
    async fn read(&self, mut replies: Streaming<LinkReply>) -> String {
        loop {
            match replies.message().await {
                Ok(Some(reply)) => {
                    let stamp = reply.stamp.unwrap_or_default();
                    if let Err(why) = check_stamp(self.node, self.peer, &stamp) {
                        return why;
                    }
                    if stamp.forgot_starts > 0 {
                        let who = self.peer.name(self.node);
                        witness::forgot(self.node, &who, stamp.forgot_starts).await;
                        return "has seen later starts of this node".into();
                    }
                    if !self.peer.confirmed.swap(true, Ordering::AcqRel) {
                        witness::confirmed(self.node);
                    }
                    {
                        let mut signs = lock(&self.signs);
                        (signs.heard, signs.ever_heard) = (clock::now(), true);
                    }
                    self.peer.came_up();
                    self.peer.names_layout(&stamp);
                    reply.answers.into_iter().for_each(|answer| self.settle(answer));
                }
                Ok(None) => return "closed the connection".to_owned(),
                Err(status) => return status_text(&status),
            }
        }
    }

    fn settle(&self, answer: Answer) {
        if answer.id == BEAT_ID {
            lock(&self.signs).beat_pending = None;
            return;
        }
        let Some(call) = lock(&self.pending).remove(&answer.id) else { return };
        let outcome = match answer.body {
            Some(answer::Body::Refused(detail)) => Err(CallError::Refused(Box::new(detail))),
            Some(body) => Ok(body),
            None => Err(CallError::Lost("answered in a way this node does not know".into())),
        };
        let _ = call.reply.send(outcome); // the caller may have left
    }

    async fn write(
        &self,
        requests: &mpsc::Sender<LinkRequest>,
        calls: &mut mpsc::Receiver<Outgoing>,
    ) -> String {
        let mut waiting = Vec::with_capacity(BATCH_CALLS_MAX);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                _ = calls.recv_many(&mut waiting, BATCH_CALLS_MAX) => {}
                () = self.beat_wanted.notified() => batch.push(self.beat()),
            }
            let mut bytes = 0;
            for outgoing in waiting.drain(..) {
                bytes += outgoing.bytes;
                batch.extend(self.register(outgoing));
                if bytes >= BATCH_BYTES {
                    bytes = 0;
                    if !self.send(requests, std::mem::take(&mut batch)).await {
                        return "closed the connection".into();
                    }
                }
            }
            if !batch.is_empty() && !self.send(requests, batch).await {
                return "closed the connection".into();
            }
        }
    }

    fn beat(&self) -> Call {
        let beat = Beat { stats: Some(node_stats(self.node)), version: version() };
        let mut signs = lock(&self.signs);
        signs.last_beat = Some(clock::now());
        signs.beat_pending.get_or_insert_with(clock::now);
        let deadline_ms = SILENT_AFTER.as_millis() as u32;
        Call { id: BEAT_ID, deadline_ms, body: Some(call::Body::Beat(beat)) }
    }

    /// Notes a call as sent and puts it in its envelope; nothing if nobody waits for it any more.
    fn register(&self, outgoing: Outgoing) -> Option<Call> {
        let Outgoing { body, deadline, reply, room, .. } = outgoing;
        let left = deadline.saturating_duration_since(clock::now());
        if reply.is_closed() || left.is_zero() {
            return None;
        }
        let mut pending = lock(&self.pending);
        if pending.len() >= PENDING_MAX {
            let _ = reply.send(Err(CallError::NotSent("leaves too much unanswered".into())));
            return None;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        pending.insert(id, Pending { since: clock::now(), reply, _room: room });
        let deadline_ms = left.as_millis().clamp(1, u32::MAX.into()) as u32;
        Some(Call { id, deadline_ms, body: Some(body) })
    }

    async fn send(&self, requests: &mpsc::Sender<LinkRequest>, calls: Vec<Call>) -> bool {
        let Ok(cluster) = self.node.cluster() else { return false };
        let stamp = Some(cluster.stamp(self.node, self.peer.uid));
        lock(&self.signs).sending = Some(clock::now());
        let sent = requests.send(LinkRequest { stamp, calls }).await.is_ok();
        lock(&self.signs).sending = None;
        sent
    }

    /// Judges the peer's silence, has beats sent, and sees that both sides' layouts meet.
    async fn watch(&self) -> String {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let oldest = self.drop_abandoned();
            let signs = lock(&self.signs);
            let silent = signs.heard.elapsed();
            if silent > SILENT_AFTER {
                return format!("silent for {} s", SILENT_AFTER.as_secs());
            }
            let for_long =
                |since: Option<Instant>| since.is_some_and(|at| at.elapsed() > SUSPECT_AFTER);
            if silent > SUSPECT_AFTER && (for_long(signs.beat_pending) || for_long(signs.sending)) {
                self.peer.fell_silent();
            }
            let due = signs.last_beat.is_none_or(|at| at.elapsed() >= BEAT_EVERY);
            let ask = silent > ASK_AFTER && oldest.is_some_and(|since| since.elapsed() > ASK_AFTER);
            if due || (ask && signs.beat_pending.is_none()) {
                self.beat_wanted.notify_one();
            }
            drop(signs);
            self.exchange_layouts();
        }
    }

    /// Forgets calls nobody waits for any more; returns since when the oldest is unanswered.
    fn drop_abandoned(&self) -> Option<Instant> {
        let mut pending = lock(&self.pending);
        pending.retain(|_, call| !call.reply.is_closed());
        pending.values().map(|call| call.since).min()
    }

    /// As long as the peer names another layout than ours, the two are joined again: were it done
    /// only when a new one is first named, one failed try would leave them apart for ever.
    fn exchange_layouts(&self) {
        let (Ok(cluster), theirs) = (self.node.cluster(), lock(&self.peer.health).layout.clone())
        else {
            return;
        };
        let differs = theirs.is_some_and(|theirs| theirs.id[..] != cluster.layout.id().to_bytes());
        if differs && !self.peer.exchanging.swap(true, Ordering::Relaxed) {
            let (node, peer) = (Arc::clone(self.node), Arc::clone(self.peer));
            self.node.spawn(async move {
                membership::exchange_layouts(&node, &peer).await;
                peer.exchanging.store(false, Ordering::Relaxed);
            });
        }
    }
}

fn check_stamp(node: &Node, peer: &Peer, stamp: &Stamp) -> Result<(), String> {
    let cluster = node.cluster().map_err(|blank| blank.what)?;
    match stamp {
        _ if stamp.cluster_id[..] != cluster.id.to_bytes() => {
            Err(format!("at {} is a node of another cluster", peer.address))
        }
        _ if stamp.uid[..] != peer.uid.to_bytes() => {
            Err(format!("at {} is another node of this cluster", peer.address))
        }
        // What it answers from an older copy of its data counts for nothing. It is told on its own
        // link, and goes beyond.
        _ if stamp.start.as_ref().is_some_and(|start| start.count < peer.starts_seen()) => {
            Err("runs on an older copy of its data directory".into())
        }
        _ => Ok(()),
    }
}

/// Why a link could not be made.
struct Unconnected {
    why: String,
    /// The node is there, but has not been given its cluster: it missed the invitation.
    blank: bool,
}

impl From<String> for Unconnected {
    fn from(why: String) -> Self {
        Self { why, blank: false }
    }
}

async fn connect(
    node: &Node,
    address: &str,
) -> Result<(mpsc::Sender<LinkRequest>, Streaming<LinkReply>), Unconnected> {
    let connecting = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| format!("{address} is not HOST:PORT"))?
            .local_address(node.outgoing_to(address))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024);
        let channel = endpoint.connect().await.map_err(|error| plain(&root_cause(&error)))?;
        let (requests, outgoing) = mpsc::channel(4);
        let mut client = ReplicaClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        match client.link(ReceiverStream::new(outgoing)).await {
            Ok(replies) => Ok((requests, replies.into_inner())),
            Err(status) => {
                let blank =
                    proto::error::detail(&status).is_some_and(|d| d.code() == ErrorCode::Blank);
                Err(Unconnected { why: status_text(&status), blank })
            }
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT * 2, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("did not answer within {} s", CONNECT_TIMEOUT.as_secs() * 2).into()),
    }
}

fn status_text(status: &tonic::Status) -> String {
    match proto::error::detail(status) {
        Some(detail) => format!("{}: {}", detail.what, detail.why),
        None => plain(&match std::error::Error::source(status) {
            Some(source) => root_cause(source),
            None => status.message().to_owned(),
        }),
    }
}

/// The many words of a transport for a peer that went away are "connection lost".
fn plain(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    if text.contains("deadline has elapsed") {
        return format!("did not answer within {} s", CONNECT_TIMEOUT.as_secs());
    }
    let gone = ["broken pipe", "connection reset", "stream closed", "connection error"];
    if gone.iter().any(|part| text.contains(part)) { "connection lost".to_owned() } else { text }
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
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
