//! What nodes say to each other.

use super::respond;
use crate::cluster::errors::{self, Failure};
use crate::cluster::peers::version;
use crate::cluster::{
    Cluster, Node, certs, compact, coordinator, detector, documents, gc, handoff, membership,
    moves, partitions, put, repair, safety, scan, scrub, tree, witness,
};
use crate::door::access;
use crate::dynamo::history::Coverage;
use crate::dynamo::node::Uid;
use crate::dynamo::object::Object;
use crate::dynamo::start::Verdict;
use futures_util::Stream;
use prost::Message;
use proto::v1::replica_server::Replica;
use proto::v1::{
    AdoptReply, AdoptRequest, Answer, BeatAnswer, Call, GossipAnswer, GossipCall, HintAnswer,
    HintCall, IdentifyReply, IdentifyRequest, LayoutRef, LinkReply, LinkRequest, MergeAnswer,
    MergeCall, ReadAnswer, ReadCall, Stamp, answer, call,
};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Calls of one peer worked on at once. At the bound its stream is not read further, which HTTP/2
/// flow control tells the peer.
const CALLS_MAX: usize = 2048;

/// The same of its link for bulk.
const BULK_CALLS_MAX: usize = 256;

/// Writes of one peer coordinated here at once. One more is refused: were it to wait, two nodes
/// that forward to each other could wait for each other.
const COORDINATED_MAX: usize = 1024;

/// Answers in one message, at most.
const BATCH_ANSWERS_MAX: usize = 64;

/// A message is sent once it holds so many bytes.
const BATCH_BYTES: usize = 1024 * 1024;

/// Kibibytes of answers waiting to be sent to one peer, at most. At the bound its stream is not
/// read further.
const ANSWERS_KIB_MAX: usize = 64 * 1024;

/// The same of its link for bulk.
const BULK_ANSWERS_KIB_MAX: usize = 16 * 1024;

/// Serves `kvd.v1.Replica`.
pub struct ReplicaService {
    /// The node it speaks for.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Replica for ReplicaService {
    async fn identify(
        &self,
        _: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyReply>, Status> {
        let cluster = self.node.cluster().ok();
        let cluster_id = cluster.map(|c| c.id.to_bytes().to_vec().into()).unwrap_or_default();
        let uid = self.node.uid.to_bytes().to_vec().into();
        let disk = self.node.store.room();
        respond(Ok(IdentifyReply {
            uid,
            cluster_id,
            version: version(),
            disk_total_bytes: disk.total_bytes,
            disk_free_bytes: disk.free_bytes,
        }))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptReply>, Status> {
        respond(membership::adopt(&self.node, request.into_inner()).await.map(|()| AdoptReply {}))
    }

    type LinkStream = Pin<Box<dyn Stream<Item = Result<LinkReply, Status>> + Send>>;

    async fn link(
        &self,
        calls: Request<Streaming<LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        self.node.cluster().map_err(|blank| proto::error::status(&blank))?;
        if let Some(session) = access::session(&calls) {
            session.carries_link();
        }
        let (replies, stream) = mpsc::channel(4);
        let node = Arc::clone(&self.node);
        self.node.spawn(serve_link(node, calls.into_inner(), replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

type Replies = mpsc::Sender<Result<LinkReply, Status>>;

/// Serves one of a peer's links until it leaves, or shows itself a stranger. Each has room of its
/// own: whatever one brings, the other is read on.
async fn serve_link(node: Arc<Node>, mut calls: Streaming<LinkRequest>, replies: Replies) {
    let Ok(Some(first)) = calls.message().await else {
        return;
    };
    let from = first.stamp.as_ref().and_then(|stamp| Uid::from_slice(&stamp.uid)).unwrap_or(Uid(0));
    let (calls_max, answers_kib) = match first.bulk {
        false => (CALLS_MAX, ANSWERS_KIB_MAX),
        true => (BULK_CALLS_MAX, BULK_ANSWERS_KIB_MAX),
    };
    let (answers, waiting) = mpsc::channel(calls_max);
    let served = Served {
        node: Arc::clone(&node),
        from,
        is_bulk: first.bulk,
        answers,
        calls_room: Arc::new(Semaphore::new(calls_max)),
        answers_kib,
        answers_room: Arc::new(Semaphore::new(answers_kib)),
        coordinating: Arc::new(Semaphore::new(COORDINATED_MAX)),
    };
    match served.hear(&first).await {
        Err(stranger) => return send_away(stranger, &replies).await,
        Ok(verdict @ (Verdict::Forgotten(_) | Verdict::ForgottenData)) => {
            let Ok(cluster) = node.cluster() else { return };
            let mut stamp = cluster.stamp(&node, from);
            match verdict {
                Verdict::Forgotten(count) => stamp.forgot_starts = count,
                _ => stamp.forgot_data = true,
            }
            let reply = LinkReply { stamp: Some(stamp), answers: Vec::new() };
            let _ = replies.send(Ok(reply)).await; // it may be gone
            return;
        }
        Ok(Verdict::Newer | Verdict::Known) => {}
    }
    let stranger = tokio::select! {
        stranger = served.take_calls(first, calls) => stranger,
        () = send_answers(&node, from, waiting, &replies) => None,
    };
    if let Some(stranger) = stranger {
        send_away(stranger, &replies).await;
    }
}

async fn send_away(stranger: Failure, replies: &Replies) {
    tracing::warn!(why = stranger.why, "a stranger's link is refused");
    let _ = replies.send(Err(proto::error::status(&stranger))).await; // it may be gone
}

/// An answer and the room it takes until it is sent.
type Waiting = (Answer, OwnedSemaphorePermit);

/// Sends answers in the batches they happen to come in.
async fn send_answers(
    node: &Node,
    from: Uid,
    mut waiting: mpsc::Receiver<Waiting>,
    replies: &Replies,
) {
    let mut ready = Vec::with_capacity(BATCH_ANSWERS_MAX);
    while waiting.recv_many(&mut ready, BATCH_ANSWERS_MAX).await > 0 {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut rest = ready.drain(..).peekable();
        while let Some((answer, _room)) = rest.next() {
            bytes += answer.encoded_len();
            batch.push(answer);
            if bytes < BATCH_BYTES && rest.peek().is_some() {
                continue;
            }
            bytes = 0;
            let Ok(cluster) = node.cluster() else { return };
            let stamp = Some(cluster.stamp(node, from));
            let reply = LinkReply { stamp, answers: std::mem::take(&mut batch) };
            if replies.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }
}

struct Served {
    node: Arc<Node>,
    from: Uid,
    is_bulk: bool,
    answers: mpsc::Sender<Waiting>,
    calls_room: Arc<Semaphore>,
    answers_kib: usize,
    answers_room: Arc<Semaphore>,
    coordinating: Arc<Semaphore>,
}

impl Served {
    /// Judges the start of the peer that its first message tells.
    async fn hear(&self, first: &LinkRequest) -> Result<Verdict, Failure> {
        let cluster = self.node.cluster()?;
        let stamp = first.stamp.clone().unwrap_or_default();
        check_stamp(&self.node, &cluster, self.from, &stamp)?;
        let told = witness::from_wire(stamp.start.as_ref());
        let told = told.ok_or_else(|| errors::stranger("the message does not tell its start"))?;
        let peer = cluster.peers.get(&self.from);
        let peer = peer.ok_or_else(|| errors::stranger("the sender is not a member"))?;
        match self.is_bulk {
            false => witness::hear(&self.node, &cluster, peer, told).await,
            true if witness::knows(peer, told) => Ok(Verdict::Known),
            true => Err(errors::stranger("a link for bulk comes after the one for requests")),
        }
    }

    /// Returns when the peer leaves or starts anew; with the reason, if it is sent away.
    async fn take_calls(
        &self,
        first: LinkRequest,
        mut calls: Streaming<LinkRequest>,
    ) -> Option<Failure> {
        let start = first.stamp.as_ref().and_then(|stamp| stamp.start.clone());
        let mut next = Some(first);
        // The second link says nothing that the first has not.
        if !self.is_bulk
            && let Some(peer) = self.node.cluster().ok()?.peers.get(&self.from)
        {
            peer.is_back();
        }
        while let Some(request) = next {
            let cluster = self.node.cluster().ok()?;
            let stamp = request.stamp.unwrap_or_default();
            if let Err(stranger) = check_stamp(&self.node, &cluster, self.from, &stamp) {
                return Some(stranger);
            }
            if !witness::is_one(stamp.start.as_ref(), start.as_ref()) {
                return None; // it has begun another incarnation, and makes another link
            }
            for call in request.calls {
                self.take(&cluster, &stamp, call).await;
            }
            next = calls.message().await.ok()?;
        }
        None
    }

    /// What is quick is answered on the spot; what waits for a disk or a peer gets a task.
    async fn take(&self, cluster: &Cluster, stamp: &Stamp, call: Call) {
        let Call { id, body, deadline_ms } = call;
        let patience = Duration::from_millis(deadline_ms.into());
        let node = Arc::clone(&self.node);
        match body {
            Some(call::Body::Read(ask)) => match read(&node, cluster, &ask) {
                Some(outcome) => self.answer(id, outcome).await,
                None => {
                    let from = self.from;
                    let work = async move { read_learning(&node, from, ask).await };
                    self.later(id, patience, work).await;
                }
            },
            Some(call::Body::Hints(ask)) => {
                self.answer(id, Ok(answer::Body::Hints(handoff::here(&node, &ask)))).await;
            }
            Some(call::Body::Hint(ask)) => {
                self.later(id, patience, async move { keep_hint(&node, ask).await }).await;
            }
            Some(call::Body::Scrub(ask)) => {
                self.answer(id, Ok(answer::Body::Scrub(scrub::here(&node, ask)))).await;
            }
            Some(call::Body::Compact(ask)) => {
                self.answer(id, Ok(answer::Body::Compact(compact::here(&node, ask)))).await;
            }
            Some(call::Body::Partitions(_)) => {
                self.answer(id, Ok(answer::Body::Partitions(partitions::here(&node)))).await;
            }
            Some(call::Body::Repair(ask)) => {
                self.answer(id, Ok(answer::Body::Repair(repair::here(&node, ask)))).await;
            }
            Some(call::Body::Tree(ask)) => {
                let from = self.from;
                let work = async move {
                    moves::may_compare(&node, from, &ask).await?;
                    let sums = tree::sums_asked(&node, ask.clone()).await?;
                    moves::may_compare(&node, from, &ask).await?;
                    Ok(answer::Body::Tree(sums))
                };
                self.later(id, patience, work).await;
            }
            Some(call::Body::Digests(ask)) => {
                let work =
                    async move { tree::digests_asked(&node, ask).await.map(answer::Body::Digests) };
                self.later(id, patience, work).await;
            }
            Some(call::Body::Reap(ask)) => {
                let work = async move { gc::asked(&node, ask).await.map(answer::Body::Reap) };
                self.later(id, patience, work).await;
            }
            Some(call::Body::Gc(ask)) => {
                self.answer(id, Ok(answer::Body::Gc(gc::here(&node, ask)))).await;
            }
            Some(call::Body::Moves(_)) => {
                self.answer(id, Ok(answer::Body::Moves(moves::here(&node)))).await;
            }
            Some(call::Body::Certs(ask)) => {
                let view = tokio::task::block_in_place(|| certs::here(&node, ask)); // it reads files
                self.answer(id, Ok(answer::Body::Certs(view))).await;
            }
            Some(call::Body::Drain(ask)) => {
                self.answer(id, Ok(answer::Body::Drain(safety::drain_here(&node, ask)))).await;
            }
            Some(call::Body::Gossip(GossipCall { packet })) => {
                let heard = detector::hear(&node, cluster, self.from, &packet);
                self.answer(id, heard.map(|()| answer::Body::Gossip(GossipAnswer {}))).await;
            }
            Some(call::Body::Beat(beat)) => {
                if let Some(peer) = cluster.peers.get(&self.from) {
                    let count = stamp.start.as_ref().map_or(0, |start| start.count);
                    let position = beat.stats.as_ref().map_or(0, |stats| stats.log_position);
                    peer.has_logged(count, position);
                    let (id, depth) = (stamp.layout_id.clone(), stamp.layout_depth);
                    peer.heard(beat, LayoutRef { id, depth });
                }
                self.answer(id, Ok(answer::Body::Beat(BeatAnswer {}))).await;
            }
            Some(call::Body::Merge(ask)) => {
                let from = self.from;
                self.later(id, patience, async move { merge(&node, from, ask).await }).await;
            }
            Some(call::Body::Coordinate(ask)) => {
                match Arc::clone(&self.coordinating).try_acquire_owned() {
                    Err(_) => {
                        self.answer(
                            id,
                            Err(errors::overloaded("too many writes are forwarded to it")),
                        )
                        .await
                    }
                    Ok(place) => {
                        let work = async move {
                            let _place = place;
                            put::coordinate(&node, ask).await.map(answer::Body::Coordinate)
                        };
                        self.later(id, patience, work).await;
                    }
                }
            }
            Some(call::Body::Scan(ask)) => {
                let from = self.from;
                self.later(id, patience, async move {
                    if let Some(under) = documents::named(&ask.layout_id) {
                        membership::learn_of(&node, from, under).await;
                    }
                    scan::scan_here(&node, from, ask).await.map(answer::Body::Scan)
                })
                .await;
            }
            Some(call::Body::Layout(shown)) => {
                let work = async move {
                    membership::layout_shown(&node, shown).await.map(answer::Body::Layout)
                };
                self.later(id, patience, work).await;
            }
            None => {
                self.answer(id, Err(errors::argument("the call is unknown", "a newer kvd made it")))
                    .await
            }
        }
    }

    async fn answer(&self, id: u64, outcome: Result<answer::Body, Failure>) {
        let (answers, room) = (&self.answers, &self.answers_room);
        send_answer(answers, (room, self.answers_kib), id, outcome).await;
    }

    /// Works in a task of its own, as long as the caller waits for it.
    async fn later(
        &self,
        id: u64,
        patience: Duration,
        work: impl Future<Output = Result<answer::Body, Failure>> + Send + 'static,
    ) {
        let Ok(place) = Arc::clone(&self.calls_room).acquire_owned().await else { return };
        let (answers, room) = (self.answers.clone(), Arc::clone(&self.answers_room));
        let room_kib = self.answers_kib;
        self.node.spawn(async move {
            if let Ok(outcome) = tokio::time::timeout(patience, work).await {
                send_answer(&answers, (&room, room_kib), id, outcome).await;
            }
            drop(place);
        });
    }
}

async fn send_answer(
    answers: &mpsc::Sender<Waiting>,
    (room, room_kib): (&Arc<Semaphore>, usize),
    id: u64,
    outcome: Result<answer::Body, Failure>,
) {
    let body = Some(outcome.unwrap_or_else(|failure| answer::Body::Refused(*failure)));
    let answer = Answer { id, body };
    let kib = (answer.encoded_len() / 1024 + 1).min(room_kib) as u32;
    let Ok(room) = Arc::clone(room).acquire_many_owned(kib).await else { return };
    let _ = answers.send((answer, room)).await; // the link may be gone
}

/// This node's copy, or what it keeps of the key for others. Refused if the asker reads it as a
/// replica that it is not any more; `None`: the asker knows a layout that this node does not.
fn read(node: &Node, cluster: &Cluster, ask: &ReadCall) -> Option<Result<answer::Body, Failure>> {
    let key = match coordinator::key_from_peer(ask.keyspace, ask.key.clone()) {
        Ok(key) => key,
        Err(failure) => return Some(Err(failure)),
    };
    if ask.with_hints {
        let kept = handoff::kept_for_homes(node, cluster, &key);
        let object = kept.map(|object| object.encode().into()).unwrap_or_default();
        return Some(Ok(answer::Body::Read(ReadAnswer { object, no_vote: false })));
    }
    // Before it is read: a vote given back meanwhile is not this copy's.
    let no_vote = !node.vote.is_given();
    let copy = match node.store.read_encoded(&key) {
        Ok(copy) => copy,
        Err(error) => return Some(Err(errors::storage(&error))),
    };
    // After it is read: what was closed meanwhile may have been written to elsewhere.
    match documents::named(&ask.layout_id).map(|under| coordinator::may_read(node, &key, under)) {
        None | Some(Coverage::Known) => {}
        Some(Coverage::Stale) => return Some(Err(errors::replica_closed())),
        Some(Coverage::Ahead) => return None,
    }
    let no_vote = no_vote || !node.vote.is_given();
    let object = copy.unwrap_or_default();
    Some(Ok(answer::Body::Read(ReadAnswer { object, no_vote })))
}

async fn read_learning(
    node: &Arc<Node>,
    from: Uid,
    ask: ReadCall,
) -> Result<answer::Body, Failure> {
    if let Some(under) = documents::named(&ask.layout_id) {
        membership::learn_of(node, from, under).await;
    }
    let cluster = node.cluster()?;
    read(node, &cluster, &ask).unwrap_or_else(|| Err(errors::replica_closed()))
}

async fn merge(node: &Arc<Node>, from: Uid, ask: MergeCall) -> Result<answer::Body, Failure> {
    let key = coordinator::key_from_peer(ask.keyspace, ask.key)?;
    let object = Object::decode(ask.object)
        .map_err(|error| errors::argument("the object is damaged", error.to_string()))?;
    coordinator::merge_here(node, &key, object).await?;
    let is_foreign = coordinator::is_foreign(node, &key);
    if is_foreign {
        node.moves.note_stray();
    }
    // Once it is stored: a layout learned before that may have this copy read elsewhere already.
    if let Some(newest) = documents::named(&ask.layout_id) {
        let sets = ask.sets.iter().filter_map(|id| documents::named(id)).collect();
        let known = coordinator::Known { newest, sets };
        let mut covers = coordinator::covers(node, &key, &known);
        if covers == Coverage::Ahead && membership::learn_of(node, from, newest).await {
            covers = coordinator::covers(node, &key, &known);
        }
        if covers != Coverage::Known {
            return Err(errors::write_stale());
        }
    } else if is_foreign {
        // It may be giving up its copies, and this one with them: whoever has it is not rid of it.
        return Err(errors::layout_stale());
    }
    Ok(answer::Body::Merge(MergeAnswer {}))
}

async fn keep_hint(node: &Node, ask: HintCall) -> Result<answer::Body, Failure> {
    let key = coordinator::key_from_peer(ask.keyspace, ask.key)?;
    let home = Uid::from_slice(&ask.home_uid)
        .ok_or_else(|| errors::argument("the hint is for nobody", "a uid has 16 bytes"))?;
    let object = Object::decode(ask.object)
        .map_err(|error| errors::argument("the object is damaged", error.to_string()))?;
    coordinator::keep_hint_here(node, home, &key, object).await?;
    // Once it is stored: what was kept before is passed on.
    if coordinator::keeps_no_more(node) {
        return Err(errors::layout_stale());
    }
    Ok(answer::Body::Hint(HintAnswer {}))
}

/// Whether this message comes from the member it says, and is meant for this node.
fn check_stamp(node: &Node, cluster: &Cluster, from: Uid, stamp: &Stamp) -> Result<(), Failure> {
    match stamp {
        _ if stamp.cluster_id[..] != cluster.id.to_bytes() => {
            Err(errors::stranger("the message is from another cluster"))
        }
        _ if stamp.to_uid[..] != node.uid.to_bytes() => {
            Err(errors::stranger(format!("the message is for another node; this is {}", node.uid)))
        }
        _ if !cluster.peers.contains_key(&from) && cluster.layout.removed().contains_key(&from) => {
            Err(errors::removed(&cluster.name_of(from)))
        }
        _ if stamp.uid[..] != from.to_bytes() || !cluster.peers.contains_key(&from) => {
            Err(errors::stranger("the sender is not a member of this cluster"))
        }
        _ => Ok(()),
    }
}
