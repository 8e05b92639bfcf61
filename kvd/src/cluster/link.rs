//! One connection to a peer: a stream on which calls are matched with their answers by id, and sent
//! in the batches they happen to come in. What is heard on that for requests says how the peer is;
//! the one for bulk only carries.

use super::lane::{Lane, Sent, Unanswered, Waiting};
use super::peers::{Peer, node_stats, version};
use super::{Node, membership, witness};
use crate::clock;
use crate::dynamo::start::{Verdict, judge};
use proto::MESSAGE_BYTES_MAX;
use proto::client::root_cause;
use proto::v1::replica_client::ReplicaClient;
use proto::v1::{Beat, Call, ErrorCode, LinkReply, LinkRequest, Stamp, call};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// A message is sent once it holds so many bytes, so that a large value delays few others.
const BATCH_BYTES: usize = 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const BEAT_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// With calls unanswered and nothing heard for so long, a beat is sent at once.
const ASK_AFTER: Duration = Duration::from_millis(200);

/// With a beat unanswered (or impossible to send) and nothing heard for so long, the peer is
/// passed over until it says anything. Only a beat is held against it: it is answered without
/// touching a disk, so its silence is no slow fsync.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(500);

/// With nothing heard for so long, though a beat is due every second, the link is broken. So is one
/// for bulk if a call on it had no answer by its deadline: nothing is due there but answers.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// A link that has lived long enough and could not be followed by another yet goes on for so long
/// before the next try.
const SUCCESSOR_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What was sent on a link that was followed by another has so long to be answered there.
const FINISH_MAX: Duration = Duration::from_secs(20);

/// The id of every beat: one is under way at a time, and nobody waits for it.
const BEAT_ID: u64 = 0;

/// A connection that was made.
pub struct Connection {
    requests: mpsc::Sender<LinkRequest>,
    replies: Streaming<LinkReply>,
}

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
    /// When the newest call was sent that had no answer by its deadline.
    given_up: Option<Instant>,
}

impl Signs {
    fn new(now: Instant) -> Self {
        Self {
            heard: now,
            ever_heard: false,
            beat_pending: None,
            last_beat: None,
            sending: None,
            given_up: None,
        }
    }
}

/// How a link came to its end.
pub enum End {
    /// It broke, for this reason. Whether the peer ever said anything on it.
    Broke(String, bool),
    /// It has lived long enough: calls go by this one from now on, and what was sent is still answered
    /// on the old.
    Succeeded(Box<Connection>),
}

/// One connection's life.
pub struct Link {
    node: Arc<Node>,
    peer: Arc<Peer>,
    lane: Lane,
    sent: Sent,
    signs: Mutex<Signs>,
    beat_wanted: Notify,
}

impl Link {
    /// A link to `peer` for the calls of a lane.
    pub fn new(node: &Arc<Node>, peer: &Arc<Peer>, lane: Lane) -> Self {
        Self {
            node: Arc::clone(node),
            peer: Arc::clone(peer),
            lane,
            sent: Sent::new(lane, BEAT_ID + 1),
            signs: Mutex::new(Signs::new(clock::now())),
            beat_wanted: Notify::new(),
        }
    }

    /// Sends, receives and watches until the link breaks, or another takes its place.
    ///
    /// Side by side: were reading to wait for writing, two nodes could each wait for the other to
    /// take its answers; were watching to wait for writing, a peer that stops reading would never
    /// be noticed.
    pub async fn drive(self, connection: Connection, waiting: &mut Waiting) -> End {
        let Connection { requests, mut replies } = connection;
        let why = tokio::select! {
            why = self.read(&mut replies) => why,
            why = self.write(&requests, waiting) => why,
            why = self.watch() => why,
            next = self.successor() => {
                let node = Arc::clone(&self.node);
                node.spawn(self.finish(requests, replies));
                return End::Succeeded(Box::new(next));
            }
        };
        self.sent.lose(&why);
        let ever_heard = lock(&self.signs).ever_heard;
        End::Broke(why, ever_heard)
    }

    /// Another connection to the peer, once this one has lived long enough, or certificates are in
    /// force that it was not made with.
    async fn successor(&self) -> Connection {
        let security = &self.node.security;
        let reloaded = async {
            match security.tls.as_ref().map(|tls| tls.reloads()) {
                Some(mut reloads) => reloads.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(security.link_age) => {}
            true = reloaded => {}
        }
        loop {
            match connect(&self.node, &self.peer.address).await {
                Ok(next) => return next,
                Err(refused) => {
                    let why = refused.why;
                    tracing::debug!(why, "no new link to {} yet", self.peer.name(&self.node));
                }
            }
            tokio::time::sleep(SUCCESSOR_AGAIN_AFTER).await;
        }
    }

    /// Hears the answers to what was sent. `requests` stays open meanwhile, or the peer would take
    /// this side for gone.
    async fn finish(self, requests: mpsc::Sender<LinkRequest>, mut replies: Streaming<LinkReply>) {
        let answered = async {
            let mut look = tokio::time::interval(LOOK_EVERY);
            while self.sent.look().oldest.is_some() {
                look.tick().await;
            }
            "succeeded by another link".to_owned()
        };
        let why = tokio::select! {
            why = self.read(&mut replies) => why,
            why = answered => why,
            () = tokio::time::sleep(FINISH_MAX) => "its link was too old".to_owned(),
        };
        self.sent.lose(&why);
        drop(requests);
    }

    async fn read(&self, replies: &mut Streaming<LinkReply>) -> String {
        loop {
            match replies.message().await {
                Ok(Some(reply)) => {
                    let stamp = reply.stamp.unwrap_or_default();
                    if let Err(why) = check_stamp(&self.node, &self.peer, &stamp) {
                        return why;
                    }
                    if self.lane == Lane::Requests
                        && let Err(why) = self.hear(&stamp).await
                    {
                        return why;
                    }
                    {
                        let mut signs = lock(&self.signs);
                        if !signs.ever_heard {
                            self.node.moves.is_welcome(self.peer.uid);
                        }
                        (signs.heard, signs.ever_heard) = (clock::now(), true);
                        if reply.answers.iter().any(|answer| answer.id == BEAT_ID) {
                            signs.beat_pending = None;
                        }
                    }
                    if self.lane == Lane::Requests {
                        self.peer.came_up();
                        self.peer.names_layout(&stamp);
                    }
                    reply.answers.into_iter().for_each(|answer| self.sent.settle(answer));
                }
                Ok(None) => return "closed the connection".to_owned(),
                Err(status) => {
                    if says_removed(&status) {
                        self.node.moves.was_removed(self.peer.uid);
                    }
                    return status_text(&status);
                }
            }
        }
    }

    /// Heeds what the peer says of this node's starts.
    async fn hear(&self, stamp: &Stamp) -> Result<(), String> {
        if stamp.forgot_starts > 0 {
            let who = self.peer.name(&self.node);
            witness::forgot(&self.node, &who, stamp.forgot_starts).await;
            return Err("has seen later starts of this node".into());
        }
        if stamp.forgot_data {
            let who = self.peer.name(&self.node);
            witness::forgot_data(&self.node, &who).await;
            return Err("was told of more than this node holds".into());
        }
        if !self.peer.confirmed.swap(true, Ordering::AcqRel) {
            witness::confirmed(&self.node);
        }
        Ok(())
    }

    async fn write(&self, requests: &mpsc::Sender<LinkRequest>, waiting: &mut Waiting) -> String {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                () = waiting.some() => {}
                () = self.beat_wanted.notified() => batch.push(self.beat()),
            }
            let mut bytes = 0;
            for outgoing in waiting.take() {
                bytes += outgoing.bytes;
                batch.extend(self.sent.register(outgoing));
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
        let beat = Beat { stats: Some(node_stats(&self.node)), version: version() };
        let mut signs = lock(&self.signs);
        signs.last_beat = Some(clock::now());
        signs.beat_pending.get_or_insert_with(clock::now);
        let deadline_ms = SILENT_AFTER.as_millis() as u32;
        Call { id: BEAT_ID, deadline_ms, body: Some(call::Body::Beat(beat)) }
    }

    async fn send(&self, requests: &mpsc::Sender<LinkRequest>, calls: Vec<Call>) -> bool {
        let Ok(cluster) = self.node.cluster() else { return false };
        let stamp = Some(cluster.stamp(&self.node, self.peer.uid));
        lock(&self.signs).sending = Some(clock::now());
        let sent = requests
            .send(LinkRequest { stamp, calls, bulk: self.lane == Lane::Bulk })
            .await
            .is_ok();
        lock(&self.signs).sending = None;
        sent
    }

    async fn watch(&self) -> String {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let unanswered = self.sent.look();
            let broken = match self.lane {
                Lane::Requests => self.judge(unanswered),
                Lane::Bulk => self.judge_bulk(unanswered),
            };
            if let Err(why) = broken {
                return why;
            }
        }
    }

    /// Judges the peer's silence, has beats sent, and sees that both sides' layouts meet.
    fn judge(&self, unanswered: Unanswered) -> Result<(), String> {
        let signs = lock(&self.signs);
        let silent = signs.heard.elapsed();
        if silent > SILENT_AFTER {
            return Err(format!("silent for {} s", SILENT_AFTER.as_secs()));
        }
        let for_long =
            |since: Option<Instant>| since.is_some_and(|at| at.elapsed() > SUSPECT_AFTER);
        if silent > SUSPECT_AFTER && (for_long(signs.beat_pending) || for_long(signs.sending)) {
            self.peer.fell_silent();
        }
        let due = signs.last_beat.is_none_or(|at| at.elapsed() >= BEAT_EVERY);
        let ask = silent > ASK_AFTER
            && unanswered.oldest.is_some_and(|since| since.elapsed() > ASK_AFTER);
        if due || (ask && signs.beat_pending.is_none()) {
            self.beat_wanted.notify_one();
        }
        drop(signs);
        self.exchange_layouts();
        Ok(())
    }

    /// How long the peer may be silent here only the calls can tell: some wait for a checkpoint, and
    /// nothing else is answered. It is stuck if one was given up and nothing was heard since it was
    /// sent.
    fn judge_bulk(&self, unanswered: Unanswered) -> Result<(), String> {
        let mut signs = lock(&self.signs);
        signs.given_up = signs.given_up.max(unanswered.expired);
        let in_vain = signs.given_up.is_some_and(|sent| sent > signs.heard);
        match in_vain && signs.heard.elapsed() > SILENT_AFTER {
            true => Err(format!("silent for {} s", signs.heard.elapsed().as_secs())),
            false => Ok(()),
        }
    }

    /// As long as the peer knows something else of the layouts than we do, the two are joined again:
    /// were it done only when that is first seen, one failed try would leave them apart for ever.
    fn exchange_layouts(&self) {
        let (Ok(cluster), Some(theirs)) = (self.node.cluster(), self.peer.history()) else {
            return;
        };
        let differs = theirs != cluster.digest;
        if differs && !self.peer.exchanging.swap(true, Ordering::Relaxed) {
            let (node, peer) = (Arc::clone(&self.node), Arc::clone(&self.peer));
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
        // What it answers from an older copy of its data counts for nothing before it knows. It is
        // told so on its own link.
        _ => match witness::from_wire(stamp.start.as_ref()).map(|told| judge(peer.seen(), told)) {
            Some(Verdict::Forgotten(_)) => {
                Err("runs on an older copy of its data directory".into())
            }
            Some(Verdict::ForgottenData) => Err("has lost writes that were on its disk".into()),
            Some(Verdict::Newer | Verdict::Known) | None => Ok(()),
        },
    }
}

/// Why a link could not be made.
pub struct Unconnected {
    /// In a few words.
    pub why: String,
    /// The node is there, but has not been given its cluster: it missed the invitation.
    pub blank: bool,
}

/// Whether a peer says that this node was removed from the cluster.
fn says_removed(status: &tonic::Status) -> bool {
    proto::error::detail(status).is_some_and(|detail| detail.code() == ErrorCode::Removed)
}

impl From<String> for Unconnected {
    fn from(why: String) -> Self {
        Self { why, blank: false }
    }
}

/// Connects to a peer.
pub async fn connect(node: &Node, address: &str) -> Result<Connection, Unconnected> {
    let connecting = async {
        let dial = node.dial(address);
        let windows = |endpoint: Endpoint| {
            endpoint
                .initial_stream_window_size(4 * 1024 * 1024)
                .initial_connection_window_size(8 * 1024 * 1024)
        };
        let channel = dial.channel(address, CONNECT_TIMEOUT, windows).await;
        let channel = channel.map_err(|refused| plain(&refused.why))?;
        let (requests, outgoing) = mpsc::channel(4);
        let mut client = ReplicaClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        match client.link(ReceiverStream::new(outgoing)).await {
            Ok(replies) => Ok(Connection { requests, replies: replies.into_inner() }),
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
    let lower = text.to_ascii_lowercase();
    let gone = ["broken pipe", "connection reset", "stream closed", "connection error"];
    if gone.iter().any(|part| lower.contains(part)) {
        return "connection lost".to_owned();
    }
    let mut text = text.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase(); // it follows a name
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
