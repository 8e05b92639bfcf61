//! The link to another node: one long-lived stream, on which calls are multiplexed by id and sent
//! in the batches they happen to come in. It reconnects by itself, and while it is broken every
//! call fails at once: a dead peer never makes a request wait.

use super::{Node, membership};
use crate::clock;
use crate::dynamo::node::Uid;
use bytes::Bytes;
use proto::MESSAGE_BYTES_MAX;
use proto::client::root_cause;
use proto::v1::replica_client::ReplicaClient;
use proto::v1::{
    Answer, Beat, Call, ErrorCode, ErrorDetail, LayoutRef, Level, LinkReply, LinkRequest,
    NodeState, NodeStats, Stamp, answer, call,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
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
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// With calls unanswered for so long and nothing heard, the peer is passed over until it answers.
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

/// What is known of a peer.
#[derive(Clone, Debug)]
pub struct Health {
    /// Up, down, or not heard of since this node started.
    pub state: NodeState,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// Why it is not up.
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
    calls: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    usable: AtomicBool,
    latency_us: AtomicU64,
    health: Mutex<Health>,
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
    reply: Option<oneshot::Sender<Result<answer::Body, CallError>>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Peer {
    /// A member at `address`; its link lives until `node` stops.
    pub fn start(node: &Arc<Node>, uid: Uid, address: String) -> Arc<Self> {
        let (calls, waiting) = mpsc::channel(QUEUE_CALLS_MAX);
        let peer = Arc::new(Self {
            uid,
            address,
            calls,
            room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
            usable: AtomicBool::new(false),
            latency_us: AtomicU64::new(0),
            health: Mutex::new(Health {
                state: NodeState::Unknown,
                since_ms: clock::now_ms(),
                why: "not reached yet".into(),
                layout: None,
                beat: None,
            }),
        });
        node.spawn(Arc::clone(&peer).run(Arc::clone(node), waiting));
        peer
    }

    /// Whether requests should be sent its way.
    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// Recent round trip, microseconds; 0 before the first.
    pub fn latency_us(&self) -> u64 {
        self.latency_us.load(Ordering::Relaxed)
    }

    /// What is known of it.
    pub fn health(&self) -> Health {
        lock(&self.health).clone()
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
            let health = lock(&self.health);
            let why = if health.why.is_empty() { "does not answer" } else { &health.why };
            return Err(CallError::NotSent(why.to_owned()));
        }
        let full = || CallError::NotSent("has too much waiting for it".into());
        let kib = (bytes / 1024 + 1).min(QUEUE_KIB_MAX) as u32;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).map_err(|_| full())?;
        let (reply, answer) = oneshot::channel();
        let started = clock::now();
        let outgoing = Outgoing { body, bytes, deadline, reply, room };
        self.calls.try_send(outgoing).map_err(|_| full())?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => {
                self.note_latency(started.elapsed());
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

    async fn run(self: Arc<Self>, node: Arc<Node>, mut calls: mpsc::Receiver<Outgoing>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let mut blank = false;
            let why = match connect(&self.address).await {
                Ok((requests, replies)) => {
                    let mut link = Link { peer: &self, node: &node, heard: None, next_id: 0 };
                    let why = link.drive(requests, replies, &mut calls).await;
                    if link.heard.is_some() {
                        backoff = BACKOFF_MIN;
                    }
                    why
                }
                Err(refused) => {
                    blank = refused.blank;
                    refused.why
                }
            };
            if blank {
                membership::invite(&node, &self).await;
            } else {
                self.broke(&node, why);
            }
            let jitter = clock::random_u64() % (backoff.as_millis() as u64 / 2 + 1);
            let pause = tokio::time::sleep(backoff / 2 + Duration::from_millis(jitter));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    call = calls.recv() => match call {
                        Some(call) => {
                            let why = lock(&self.health).why.clone();
                            let _ = call.reply.send(Err(CallError::NotSent(why)));
                        }
                        None => return,
                    },
                }
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn came_up(&self, node: &Node) {
        self.usable.store(true, Ordering::Relaxed);
        let mut health = lock(&self.health);
        if health.state != NodeState::Up {
            (health.state, health.since_ms) = (NodeState::Up, clock::now_ms());
            health.why.clear();
            drop(health);
            node.events.add(Level::Ok, format!("{} up", self.name(node)));
        }
    }

    fn broke(&self, node: &Node, why: String) {
        self.usable.store(false, Ordering::Relaxed);
        let mut health = lock(&self.health);
        let went_down = health.state != NodeState::Down;
        if went_down {
            (health.state, health.since_ms) = (NodeState::Down, clock::now_ms());
        }
        health.why.clone_from(&why);
        drop(health);
        if went_down {
            node.events.add(Level::Degraded, format!("{} down: {why}", self.name(node)));
        }
    }

    fn name(&self, node: &Node) -> String {
        node.cluster().map_or_else(|_| self.uid.to_string(), |cluster| cluster.name_of(self.uid))
    }
}

/// One connection's life.
struct Link<'a> {
    peer: &'a Arc<Peer>,
    node: &'a Arc<Node>,
    /// When it last said anything; `None` until it did.
    heard: Option<Instant>,
    next_id: u64,
}

type Calls = HashMap<u64, Pending>;

impl Link<'_> {
    /// Sends and receives until the link breaks; returns why.
    async fn drive(
        &mut self,
        requests: mpsc::Sender<LinkRequest>,
        mut replies: Streaming<LinkReply>,
        calls: &mut mpsc::Receiver<Outgoing>,
    ) -> String {
        let pending = Mutex::new(Calls::new());
        let heard = Mutex::new(clock::now());
        let (peer, node) = (self.peer, self.node);
        let mut ever_heard = false;
        let reading = async {
            loop {
                match replies.message().await {
                    Ok(Some(reply)) => {
                        if let Err(why) = check_stamp(node, peer, reply.stamp.as_ref()) {
                            return why;
                        }
                        *lock(&heard) = clock::now();
                        ever_heard = true;
                        peer.came_up(node);
                        note_layout(node, peer, reply.stamp.as_ref());
                        reply.answers.into_iter().for_each(|answer| settle(&pending, answer));
                    }
                    Ok(None) => return "closed the connection".to_owned(),
                    Err(status) => return status_text(&status),
                }
            }
        };
        let writing = write_loop(peer, node, &requests, calls, &pending, &heard, &mut self.next_id);
        // Side by side: were reading to wait for writing, two nodes could each wait for the other
        // to take its answers.
        let why = tokio::select! { why = reading => why, why = writing => why };
        if ever_heard {
            self.heard = Some(*lock(&heard));
        }
        for (_, call) in lock(&pending).drain() {
            if let Some(reply) = call.reply {
                let _ = reply.send(Err(CallError::Lost(why.clone()))); // the caller may have left
            }
        }
        why
    }
}

async fn write_loop(
    peer: &Peer,
    node: &Arc<Node>,
    requests: &mpsc::Sender<LinkRequest>,
    calls: &mut mpsc::Receiver<Outgoing>,
    pending: &Mutex<Calls>,
    heard: &Mutex<Instant>,
    next_id: &mut u64,
) -> String {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_beat: Option<Instant> = None;
    let mut waiting = Vec::with_capacity(BATCH_CALLS_MAX);
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            count = calls.recv_many(&mut waiting, BATCH_CALLS_MAX) => {
                if count == 0 {
                    return "this node stops".into();
                }
            }
            _ = look.tick() => {
                if let Err(why) = look_after(peer, pending, *lock(heard)) {
                    return why;
                }
                if last_beat.is_none_or(|at| at.elapsed() >= BEAT_EVERY) {
                    last_beat = Some(clock::now());
                    let beat = Beat { stats: Some(node_stats(node)), version: version() };
                    batch.push(register(pending, next_id, call::Body::Beat(beat), SILENT_AFTER, None, None));
                }
            }
        }
        let mut bytes = 0;
        for outgoing in waiting.drain(..) {
            let left = outgoing.deadline.saturating_duration_since(clock::now());
            let gone = outgoing.reply.is_closed() || left.is_zero();
            if gone {
                continue;
            }
            if lock(pending).len() >= PENDING_MAX {
                let full = CallError::NotSent("leaves too much unanswered".into());
                let _ = outgoing.reply.send(Err(full));
                continue;
            }
            bytes += outgoing.bytes;
            let (reply, room) = (Some(outgoing.reply), Some(outgoing.room));
            batch.push(register(pending, next_id, outgoing.body, left, reply, room));
            if bytes >= BATCH_BYTES {
                bytes = 0;
                if !send(node, peer, requests, std::mem::take(&mut batch)).await {
                    return "closed the connection".into();
                }
            }
        }
        if !batch.is_empty() && !send(node, peer, requests, batch).await {
            return "closed the connection".into();
        }
    }
}

/// Notes a call as sent, and puts it in its envelope.
fn register(
    pending: &Mutex<Calls>,
    next_id: &mut u64,
    body: call::Body,
    left: Duration,
    reply: Option<oneshot::Sender<Result<answer::Body, CallError>>>,
    room: Option<OwnedSemaphorePermit>,
) -> Call {
    *next_id += 1;
    lock(pending).insert(*next_id, Pending { since: clock::now(), reply, _room: room });
    let deadline_ms = left.as_millis().clamp(1, u32::MAX.into()) as u32;
    Call { id: *next_id, deadline_ms, body: Some(body) }
}

async fn send(
    node: &Node,
    peer: &Peer,
    requests: &mpsc::Sender<LinkRequest>,
    calls: Vec<Call>,
) -> bool {
    let Ok(cluster) = node.cluster() else {
        return false;
    };
    let stamp = Some(cluster.stamp(node, peer.uid));
    requests.send(LinkRequest { stamp, calls }).await.is_ok()
}

fn settle(pending: &Mutex<Calls>, answer: Answer) {
    let Some(call) = lock(pending).remove(&answer.id) else {
        return;
    };
    let Some(reply) = call.reply else { return };
    let outcome = match answer.body {
        Some(answer::Body::Refused(detail)) => Err(CallError::Refused(Box::new(detail))),
        Some(body) => Ok(body),
        None => Err(CallError::Lost("answered in a way this node does not know".into())),
    };
    let _ = reply.send(outcome); // the caller may have left
}

/// Drops calls nobody waits for any more, and judges the peer's silence.
fn look_after(peer: &Peer, pending: &Mutex<Calls>, heard: Instant) -> Result<(), String> {
    let mut pending = lock(pending);
    let oldest = pending.values().map(|call| call.since).min();
    let silent = heard.elapsed();
    if silent > SILENT_AFTER {
        return Err(format!("silent for {} s", SILENT_AFTER.as_secs()));
    }
    if silent > SUSPECT_AFTER && oldest.is_some_and(|since| since.elapsed() > SUSPECT_AFTER) {
        peer.usable.store(false, Ordering::Relaxed);
    }
    // Kept for a while after the caller left: they are the evidence of silence.
    pending.retain(|_, call| {
        call.since.elapsed() < SILENT_AFTER
            || call.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    });
    Ok(())
}

fn check_stamp(node: &Node, peer: &Peer, stamp: Option<&Stamp>) -> Result<(), String> {
    let cluster = node.cluster().map_err(|blank| blank.what)?;
    let stamp = stamp.ok_or("sent a message without a stamp")?;
    match stamp {
        _ if stamp.cluster_id[..] != cluster.id.to_bytes() => {
            Err(format!("at {} is a node of another cluster", peer.address))
        }
        _ if stamp.uid[..] != peer.uid.to_bytes() => {
            Err(format!("at {} is another node of this cluster", peer.address))
        }
        _ => Ok(()),
    }
}

fn note_layout(node: &Arc<Node>, peer: &Arc<Peer>, stamp: Option<&Stamp>) {
    let Some(stamp) = stamp else { return };
    let layout = LayoutRef { id: stamp.layout_id.clone(), depth: stamp.layout_depth };
    let mut health = lock(&peer.health);
    if health.layout.as_ref() == Some(&layout) {
        return;
    }
    health.layout = Some(layout.clone());
    drop(health);
    let ours =
        node.cluster().map(|cluster| Bytes::copy_from_slice(&cluster.layout.id().to_bytes()));
    if ours.is_ok_and(|ours| ours != layout.id) {
        node.spawn(membership::exchange_layouts(Arc::clone(node), Arc::clone(peer)));
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
    address: &str,
) -> Result<(mpsc::Sender<LinkRequest>, Streaming<LinkReply>), Unconnected> {
    let connecting = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| format!("{address} is not HOST:PORT"))?
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

/// "Connection refused (os error 111)" is "connection refused", and the many words of a transport
/// for a peer that went away are "connection lost".
fn plain(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or(text).to_ascii_lowercase();
    let gone = ["broken pipe", "connection reset", "stream closed", "connection error"];
    if gone.iter().any(|part| text.contains(part)) { "connection lost".to_owned() } else { text }
}

/// The version every node tells.
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// What a node says of itself.
pub fn node_stats(node: &Node) -> NodeStats {
    let facts = node.store.facts();
    let (stats, disk) = (&node.stats, node.store.disk());
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
        incarnation: node.incarnation.to_bytes().to_vec().into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
