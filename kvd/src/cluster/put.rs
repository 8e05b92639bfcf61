//! One client put or delete: drives `dynamo::write` over the store and the peers.
//!
//! It is coordinated by a replica, since only a replica has an actor to name it with: a node that
//! is not one forwards it.

use super::coordinator::{
    Known, admit, catch_up, count_failure, covers, hint_on, is_foreign, is_of_layout,
    keep_hint_here, keeps_no_more, keyspace, mark_silent, merge_on, quickest_first, wire_dot,
};
use super::errors::{self, Failure, Unmet};
use super::lane::{CallError, Lane};
use super::peers::Peer;
use super::{Cluster, Node, deadline, value};
use crate::clock;
use crate::dynamo::history::Coverage;
use crate::dynamo::key::Key;
use crate::dynamo::layout::{Keyspace, Mode};
use crate::dynamo::node::{RequestId, Uid};
use crate::dynamo::object::{Intent, Object, Record};
use crate::dynamo::preference::{self, Parties};
use crate::dynamo::quorum::Quorum;
use crate::dynamo::value::{Codec, Value};
use crate::dynamo::version::{Actor, Clock, Dot};
use crate::dynamo::write::{Write, WriteSpec, WriteStep};
use crate::storage::record::value_checksum;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::v1::{
    self, CoordinateCall, DeleteRequest, Outcome, PutRequest, ReplicaAnswer, WriteReply, answer,
    call, coordinate_call, replica_answer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two looks whether a node that has just been made a member is linked to.
const LINK_PAUSE: Duration = Duration::from_millis(20);

/// Before a write sets out anew though nothing new was learned.
const LAYOUT_PAUSE: Duration = Duration::from_millis(10);

/// Stores a value, as was asked at `started`.
pub async fn put(
    node: &Arc<Node>,
    request: PutRequest,
    started: Instant,
) -> Result<WriteReply, Failure> {
    let outcome = of_a_client(node, ClientWrite::Put(request), started).await;
    node.stats.puts.add();
    outcome
}

/// Leaves a tombstone, as was asked at `started`.
pub async fn delete(
    node: &Arc<Node>,
    request: DeleteRequest,
    started: Instant,
) -> Result<WriteReply, Failure> {
    let outcome = of_a_client(node, ClientWrite::Delete(request), started).await;
    node.stats.deletes.add();
    outcome
}

async fn of_a_client(
    node: &Arc<Node>,
    request: ClientWrite,
    started: Instant,
) -> Result<WriteReply, Failure> {
    let outcome = write(node, request, true, started).await;
    match &outcome {
        Ok(_) => node.stats.put_latency.add(started.elapsed()),
        Err(failure) => count_failure(node, failure),
    }
    outcome
}

/// Coordinates a write another node forwarded; the node the client spoke to counts it. It is not
/// forwarded again: were two nodes to disagree about who is a replica, it would go round for ever.
pub async fn coordinate(
    node: &Arc<Node>,
    write_call: CoordinateCall,
) -> Result<WriteReply, Failure> {
    let admitted = admit(node)?;
    let request = match write_call.write {
        Some(coordinate_call::Write::Put(request)) => ClientWrite::Put(request),
        Some(coordinate_call::Write::Delete(request)) => ClientWrite::Delete(request),
        None => return Err(errors::argument("the forwarded write is empty", "")),
    };
    write(node, request, false, admitted.since).await
}

/// A put or a delete, as it came.
enum ClientWrite {
    Put(PutRequest),
    Delete(DeleteRequest),
}

/// The same, checked.
struct Checked {
    verb: &'static str,
    cluster: Arc<Cluster>,
    key: Key,
    quorum: Quorum,
    /// W, if the client says how many.
    w: Option<u8>,
    mode: Mode,
    /// The mode, if the client says which.
    strict: Option<bool>,
    compression: Option<Codec>,
    intent: Intent,
    /// What the client had seen: the base of the context it gets back.
    seen: Clock,
    explain: bool,
    started: Instant,
    deadline: Instant,
}

async fn write(
    node: &Arc<Node>,
    mut request: ClientWrite,
    may_forward: bool,
    started: Instant,
) -> Result<WriteReply, Failure> {
    let cluster = node.cluster()?;
    let request_id = request.settle_id()?;
    let checked = request.check(cluster, request_id, started)?;
    let parties = checked.parties()?;
    let reachable = |checked: &Checked| {
        let usable = |home| checked.cluster.peers.get(home).is_some_and(|peer| peer.is_usable());
        parties.homes.iter().any(usable)
    };
    // Not one that leaves, and keeps nothing for others any more.
    let stands_in = |checked: &Checked| {
        checked.mode == Mode::Sloppy && !reachable(checked) && !keeps_no_more(node)
    };
    // A delete covers what its coordinator holds: better one that holds all.
    let holds_all = parties.read.contains(&node.uid) && node.vote.is_given();
    let is_home =
        parties.homes.contains(&node.uid) && (holds_all || !may_forward || !reachable(&checked));
    // Forwarded here it goes on to none: whoever forwards it is to turn to one that does.
    let others = |home: &Uid| checked.cluster.peers.get(home).is_some_and(|peer| peer.is_usable());
    if !may_forward && !holds_all && checked.is_blind_delete() && parties.read.iter().any(others) {
        return Err(errors::layout_stale());
    }
    match (is_home, may_forward) {
        (true, _) => coordinate_here(node, checked, parties).await,
        (false, true) if stands_in(&checked) => coordinate_here(node, checked, parties).await,
        (false, true) => match forward(node, &checked, &request, &parties).await {
            // The last of them went just now, and none was sent anything.
            Err(failure) if failure.outcome() == Outcome::NotApplied && stands_in(&checked) => {
                coordinate_here(node, checked, parties).await
            }
            outcome => outcome,
        },
        (false, false) => Err(errors::layout_stale()),
    }
}

impl ClientWrite {
    /// The client's id for the write, or a new one: with it a retry through another node is known
    /// as the same write.
    fn settle_id(&mut self) -> Result<RequestId, Failure> {
        let id = match self {
            Self::Put(request) => &mut request.request_id,
            Self::Delete(request) => &mut request.request_id,
        };
        if id.is_empty() {
            *id = clock::random_u128().to_be_bytes().to_vec().into();
        }
        RequestId::from_slice(id).ok_or_else(|| {
            errors::argument("the request id is not allowed", "it has 16 bytes, or none")
        })
    }

    fn check(
        &self,
        cluster: Arc<Cluster>,
        request: RequestId,
        started: Instant,
    ) -> Result<Checked, Failure> {
        let (verb, keyspace_name, key, value, context, w, strict, timeout_ms, explain) = match self
        {
            Self::Put(put) => (
                "put",
                &put.keyspace,
                &put.key,
                Some(&put.value),
                &put.context,
                put.w,
                put.strict,
                put.timeout_ms,
                put.explain,
            ),
            Self::Delete(del) => (
                "delete",
                &del.keyspace,
                &del.key,
                None,
                &del.context,
                del.w,
                del.strict,
                del.timeout_ms,
                del.explain,
            ),
        };
        let keyspace = keyspace(&cluster, keyspace_name)?.clone();
        let key = Key::new(keyspace.id(), key.clone()).map_err(|error| errors::key(&error))?;
        let bytes = value.map_or(0, Bytes::len);
        if bytes > keyspace.value_bytes_max as usize {
            return Err(errors::value_too_large(bytes, keyspace.value_bytes_max, &keyspace.name));
        }
        let quorum = Quorum::new(keyspace.n, "W", w, keyspace.w);
        let quorum = quorum.map_err(|error| errors::quorum_invalid(&error))?;
        let seen = cluster.sealer.open(&key, context);
        let seen = seen.map_err(|error| errors::context(&error))?;
        let mode = mode(strict, &keyspace);
        let record = Record {
            value: value.cloned().map(Value::Plain),
            request,
            checksum: value_checksum(key.bytes(), value.map(|value| &value[..])),
        };
        let blind_delete = value.is_none() && context.is_empty();
        let intent = Intent { context: (!blind_delete).then(|| seen.clone()), record };
        Ok(Checked {
            verb,
            cluster,
            key,
            quorum,
            w: w.map(|_| quorum.needed),
            mode,
            strict,
            compression: keyspace.compression,
            intent,
            seen,
            explain,
            started,
            deadline: deadline(started, timeout_ms),
        })
    }

    fn forwarded(&self, timeout: Duration) -> CoordinateCall {
        let timeout_ms = timeout.as_millis().max(1) as u32;
        let write = match self {
            Self::Put(put) => coordinate_call::Write::Put(PutRequest { timeout_ms, ..put.clone() }),
            Self::Delete(delete) => {
                coordinate_call::Write::Delete(DeleteRequest { timeout_ms, ..delete.clone() })
            }
        };
        CoordinateCall { write: Some(write) }
    }
}

fn mode(strict: Option<bool>, keyspace: &Keyspace) -> Mode {
    match strict {
        Some(true) => Mode::Strict,
        Some(false) => Mode::Sloppy,
        None => keyspace.mode,
    }
}

impl Checked {
    /// Goes on with what is known by now of the layouts: N, W and mode may be others there. A W that
    /// the client asked for and that has become too large is all there are.
    fn goes_on_with(&mut self, cluster: Arc<Cluster>) {
        if let Some(keyspace) = cluster.layout.keyspace_by_id(self.key.keyspace()) {
            let needed = self.w.unwrap_or(keyspace.w).min(keyspace.n);
            self.quorum = Quorum { n: keyspace.n, needed };
            self.mode = mode(self.strict, keyspace);
        }
        self.cluster = cluster;
    }

    /// Whether it covers what its coordinator holds, whatever that is.
    fn is_blind_delete(&self) -> bool {
        self.intent.context.is_none()
    }

    /// Whether it may wait for nodes that have just been made members, as long as there is time to
    /// tell the client that they did not come.
    fn may_wait(&self) -> bool {
        self.has_time() && self.cluster.peers.values().any(|peer| peer.is_new())
    }

    /// Whether less than half of its time is over.
    fn has_time(&self) -> bool {
        self.deadline.saturating_duration_since(clock::now()) > self.started.elapsed()
    }

    /// Who has a part in it, by the layouts as they are known.
    fn parties(&self) -> Result<Parties, Failure> {
        let (keyspace, token) = (self.key.keyspace(), self.key.token());
        let parties = preference::parties(&self.cluster.history, keyspace, token, self.w);
        parties.ok_or_else(errors::layout_stale)
    }

    /// What it knows of the layouts, given who has a part in it.
    fn known(&self, parties: &Parties) -> Known {
        Known { newest: self.cluster.layout.id(), sets: parties.sets.clone().into() }
    }

    /// Whether a replica takes this write: one with a full disk takes deletes.
    fn is_taken_by(&self, peer: &Peer) -> bool {
        match self.is_put() {
            true => peer.takes_puts(),
            false => peer.is_usable(),
        }
    }

    fn is_put(&self) -> bool {
        self.intent.record.value.is_some()
    }

    /// What the write sets out with at this node.
    fn spec(&self, node: &Node, parties: &Parties) -> WriteSpec {
        let homes = &parties.homes;
        let takes = |uid: &Uid| {
            let peer = self.cluster.peers.get(uid);
            peer.map_or(*uid == node.uid, |peer| self.is_taken_by(peer))
        };
        let is_home = homes.contains(&node.uid);
        let down: BTreeSet<Uid> =
            homes.iter().filter(|home| !is_home || !takes(home)).copied().collect();
        let fallbacks = match self.mode {
            Mode::Sloppy if !down.is_empty() || !is_home => {
                let (keyspace, token) = (self.key.keyspace(), self.key.token());
                let layout = &self.cluster.layout;
                let others = preference::stand_ins(layout, keyspace, token, homes);
                let others = others.into_iter().filter(|uid| *uid != node.uid);
                others.filter(takes).collect()
            }
            _ => Vec::new(),
        };
        WriteSpec {
            sets: parties.write.clone(),
            mode: self.mode,
            coordinator: node.uid,
            down,
            homes: homes.clone(),
            fallbacks,
        }
    }
}

/// Gives the write to a replica: the first that takes it. A try that got lost is made again
/// elsewhere under the same request id, so both are one write.
async fn forward(
    node: &Node,
    checked: &Checked,
    request: &ClientWrite,
    parties: &Parties,
) -> Result<WriteReply, Failure> {
    let bytes = checked.intent.record.value.as_ref().map_or(0, Value::length);
    let (mut why, mut sent) = (Vec::new(), false);
    let quickest = |homes: &[Uid]| quickest_first(node, &checked.cluster, homes, Peer::write_us);
    let order = match checked.is_blind_delete() {
        false => quickest(&parties.homes),
        // It covers what its coordinator holds: those that only now get their copies come last.
        true => {
            let read = quickest(&parties.read);
            let others = quickest(&parties.homes).into_iter().filter(|uid| !read.contains(uid));
            read.iter().copied().chain(others.collect::<Vec<Uid>>()).collect()
        }
    };
    for home in order {
        let Some(peer) = checked.cluster.peers.get(&home) else {
            continue;
        };
        let left = checked.deadline.saturating_duration_since(clock::now());
        // Half of what is left, so that one which hangs leaves time for another.
        let patience = left / 2;
        let body = call::Body::Coordinate(request.forwarded(patience));
        let name = checked.cluster.name_of(home);
        match peer.call(body, bytes, clock::now() + patience).await {
            Ok(answer::Body::Coordinate(reply)) => return Ok(reply),
            Ok(_) => why.push(format!("{name} answered something else")),
            Err(CallError::Refused(detail)) if !worth_another_try(&detail) => {
                return Err(if sent { errors::in_doubt(detail) } else { detail });
            }
            Err(error) => {
                sent |= error.may_have_been_applied();
                why.push(format!("{name} {}", error.text()));
            }
        }
    }
    Err(errors::forward_failed(checked.verb, checked.key.bytes(), &why, sent))
}

/// Whether another replica may take what this one refused.
fn worth_another_try(detail: &v1::ErrorDetail) -> bool {
    use v1::ErrorCode::{DiskFull, Draining, LayoutStale, Overloaded, StorageFailed};
    matches!(detail.code(), DiskFull | Draining | LayoutStale | Overloaded | StorageFailed)
}

/// The coordinator's own disk.
type OwnDisk = Shared<BoxFuture<'static, Result<(), String>>>;

async fn coordinate_here(
    node: &Arc<Node>,
    mut checked: Checked,
    mut parties: Parties,
) -> Result<WriteReply, Failure> {
    if checked.is_put() && node.disk_full.load(Ordering::Relaxed) {
        return Err(errors::disk_full(&checked.cluster.name_of(node.uid)));
    }
    let (write, mut steps, stand_in_for) = loop {
        let spec = checked.spec(node, &parties);
        let stand_in_for = spec.stands_in_for();
        match Write::start(spec) {
            Ok((write, steps)) => break (write, steps, stand_in_for),
            Err(_too_few) if !checked.may_wait() => {
                return Err(refused_at_once(&checked, &parties.homes));
            }
            // Who has just been made a member is linked to in a moment.
            Err(_too_few) => tokio::time::sleep(LINK_PAUSE).await,
        }
        checked.goes_on_with(node.cluster()?);
        parties = checked.parties()?;
    };
    if let Some(Value::Plain(sent)) = &checked.intent.record.value {
        let kept = value::keep(checked.compression, sent.clone(), checked.deadline).await?;
        checked.intent.record.value = Some(kept);
    }
    let fresh_actor = Actor(clock::random_u64());
    let now_ms = clock::now_ms();
    let (prepared, synced) = node.store.coordinate(
        checked.key.clone(),
        checked.intent.clone(),
        stand_in_for,
        now_ms,
        fresh_actor,
    );
    let prepared = tokio::time::timeout_at(checked.deadline.into(), prepared).await;
    let prepared = match prepared {
        Ok(Ok(outcome)) => outcome.map_err(|error| errors::storage(&error))?,
        Ok(Err(_)) => return Err(errors::storage_dropped()),
        Err(_) => {
            let mut put = Put::new(node, checked, parties, write, (Bytes::new(), 0));
            put.heard
                .insert(node.uid, (put.checked.started.elapsed(), Some("its disk is slow".into())));
            return Err(put.unmet());
        }
    };
    let synced = async move {
        match synced.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err("storage stopped".into()),
        }
    };
    let own_disk: OwnDisk = synced.boxed().shared();
    let object = (prepared.encoded, prepared.siblings);
    let mut put = Put::new(node, checked, parties, write, object);
    put.waits_for(own_disk.clone());
    loop {
        match put.run(steps).await {
            End::Met => {
                let reply = put.reply(prepared.dot);
                put.finish_behind_the_answer();
                return Ok(reply);
            }
            End::Unmet => match put.who_is_back().await {
                Back::Home(home) => steps = put.write.is_back(home),
                Back::Maybe => steps = put.begin_again(None, own_disk.clone()).await?,
                Back::Nobody => return Err(put.unmet()),
            },
            // Somebody knows of replicas that this write does not: they have to have it too.
            End::Stale(with) => steps = put.begin_again(with, own_disk.clone()).await?,
        }
    }
}

/// Who may make up for replicas that failed.
enum Back {
    /// This home, which was not asked.
    Home(Uid),
    /// Whoever the layouts have as replicas by now.
    Maybe,
    Nobody,
}

/// How a try ends.
enum End {
    /// W of every set have it on disk.
    Met,
    /// They cannot, or the time is up.
    Unmet,
    /// The layout has changed, as this replica says; `None`: as this node has learned meanwhile.
    Stale(Option<Uid>),
}

/// Fewer than W up: the client is told so with nothing written.
fn refused_at_once(checked: &Checked, homes: &[Uid]) -> Failure {
    let replicas = homes.iter().map(|uid| {
        let peer = checked.cluster.peers.get(uid).filter(|peer| !peer.takes_puts());
        let error = peer.map(|peer| peer.why_not());
        ReplicaAnswer {
            node: checked.cluster.name_of(*uid),
            verdict: replica_answer::Verdict::NotAsked.into(),
            error: error.unwrap_or_default(),
            ..Default::default()
        }
    });
    errors::quorum_unmet(Unmet {
        verb: checked.verb,
        key: checked.key.bytes(),
        quorum: ("W", checked.quorum.needed),
        acks: Vec::new(),
        replicas: replicas.collect(),
        waited_ms: checked.started.elapsed().as_millis(),
        outcome: Some(Outcome::NotApplied),
    })
}

struct Put {
    node: Arc<Node>,
    checked: Checked,
    homes: Vec<Uid>,
    /// What the write knows of the layouts.
    known: Known,
    write: Write,
    /// The object, for the other replicas, and how many live values it holds.
    object: (Bytes, u32),
    under_way: FuturesUnordered<BoxFuture<'static, (Uid, Result<(), CallError>)>>,
    sent: BTreeSet<Uid>,
    heard: BTreeMap<Uid, (Duration, Option<String>)>,
    /// A replica that knows more of the layout.
    stale: Option<Uid>,
}

impl Put {
    fn new(
        node: &Arc<Node>,
        checked: Checked,
        parties: Parties,
        write: Write,
        object: (Bytes, u32),
    ) -> Self {
        let (known, homes) = (checked.known(&parties), parties.homes);
        let (under_way, heard) = (FuturesUnordered::new(), BTreeMap::new());
        let (sent, stale, node) = (BTreeSet::new(), None, Arc::clone(node));
        Self { node, checked, homes, known, write, object, under_way, sent, heard, stale }
    }

    fn waits_for(&mut self, own_disk: OwnDisk) {
        let me = self.node.uid;
        let own = own_disk.map(move |outcome| (me, outcome.map_err(CallError::Lost)));
        self.under_way.push(Box::pin(own));
    }

    /// Learns of the layout what `with` knows, and sets out anew with the same object: who has it
    /// already stores nothing.
    async fn begin_again(
        &mut self,
        with: Option<Uid>,
        own_disk: OwnDisk,
    ) -> Result<Vec<WriteStep>, Failure> {
        if clock::now() >= self.checked.deadline {
            return Err(self.unmet());
        }
        let before = self.checked.cluster.digest;
        catch_up(&self.node, &self.checked.cluster, with).await;
        self.checked.goes_on_with(self.node.cluster()?);
        if self.checked.cluster.digest == before {
            tokio::time::sleep(LAYOUT_PAUSE).await; // another is just exchanging with it
            self.checked.goes_on_with(self.node.cluster()?);
        }
        let (write, steps, parties) = loop {
            let parties = self.checked.parties()?;
            match Write::start(self.checked.spec(&self.node, &parties)) {
                Ok((write, steps)) => break (write, steps, parties),
                Err(_too_few) if !self.checked.may_wait() => return Err(self.unmet()),
                Err(_too_few) => tokio::time::sleep(LINK_PAUSE).await,
            }
            self.checked.goes_on_with(self.node.cluster()?);
        };
        self.known = self.checked.known(&parties);
        if is_foreign(&self.node, &self.checked.key) {
            self.node.moves.note_stray(); // the copy that this write began with
        }
        (self.write, self.homes, self.stale) = (write, parties.homes, None);
        self.under_way = FuturesUnordered::new();
        self.sent.clear();
        self.waits_for(own_disk);
        Ok(steps)
    }

    /// Runs until W have it on disk, or cannot.
    async fn run(&mut self, steps: Vec<WriteStep>) -> End {
        let mut end = self.take(steps);
        let deadline = tokio::time::sleep_until(self.checked.deadline.into());
        tokio::pin!(deadline);
        loop {
            match end {
                Some(WriteStep::Answer) if self.covers_all() => return End::Met,
                Some(WriteStep::Answer) => return End::Stale(None),
                Some(_) => return End::Unmet,
                None => {}
            }
            if let Some(with) = self.stale.take() {
                return End::Stale(Some(with));
            }
            let steps = tokio::select! {
                biased;
                Some((from, outcome)) = self.under_way.next() => self.feed(from, outcome),
                () = &mut deadline => self.write.expire(),
            };
            end = self.take(steps);
        }
    }

    /// Waits for a home that was not asked and takes this write now, as long as one is just being linked
    /// to and there is time to tell the client if it does not help.
    async fn who_is_back(&mut self) -> Back {
        while self.checked.has_time() {
            // What is known of peers is known anew with a layout.
            if self.node.cluster().is_ok_and(|now| now.digest != self.checked.cluster.digest) {
                return Back::Maybe;
            }
            let away = self.homes.iter().filter(|uid| !self.sent.contains(uid));
            let peers = &self.checked.cluster.peers;
            let away: Vec<_> = away.filter_map(|uid| Some((*uid, peers.get(uid)?))).collect();
            if let Some((home, _)) = away.iter().find(|(_, peer)| self.checked.is_taken_by(peer)) {
                return Back::Home(*home);
            }
            if !away.iter().any(|(_, peer)| peer.is_new()) {
                break;
            }
            tokio::time::sleep(LINK_PAUSE).await;
        }
        Back::Nobody
    }

    /// Whether this node has learned of no other replicas since the write set out. Were it not
    /// asked, the write might be where nobody reads.
    fn covers_all(&self) -> bool {
        covers(&self.node, &self.checked.key, &self.known) == Coverage::Known
    }

    /// The remaining replicas get it too.
    fn finish_behind_the_answer(mut self) {
        if self.write.is_over() {
            return;
        }
        let node = Arc::clone(&self.node);
        node.spawn_here(async move {
            let deadline = self.checked.deadline.into();
            while let Ok(Some((from, outcome))) =
                tokio::time::timeout_at(deadline, self.under_way.next()).await
            {
                let steps = self.feed(from, outcome);
                self.take(steps);
            }
            let steps = self.write.expire();
            self.take(steps);
        });
    }

    fn feed(&mut self, from: Uid, outcome: Result<(), CallError>) -> Vec<WriteStep> {
        let error = outcome.as_ref().err().map(CallError::text);
        self.heard.insert(from, (self.checked.started.elapsed(), error));
        if outcome.as_ref().is_err_and(is_of_layout) {
            self.stale = Some(from);
            return Vec::new();
        }
        if outcome.is_ok() { self.write.ack(from) } else { self.write.fail(from) }
    }

    fn take(&mut self, steps: Vec<WriteStep>) -> Option<WriteStep> {
        let mut end = None;
        for step in steps {
            match step {
                WriteStep::Send(to) => {
                    self.sent.insert(to);
                    self.under_way.push(self.send(to));
                }
                WriteStep::SendHinted { to, home } => {
                    self.sent.insert(to);
                    self.under_way.push(self.send_hinted(to, home));
                }
                WriteStep::KeepHint(home) => self.keep_hint(home),
                WriteStep::Answer | WriteStep::Fail => end = Some(step),
            }
        }
        end
    }

    fn send(&self, to: Uid) -> BoxFuture<'static, (Uid, Result<(), CallError>)> {
        let cluster = Arc::clone(&self.checked.cluster);
        let (key, object) = (self.checked.key.clone(), self.object.0.clone());
        let (deadline, known) = (self.checked.deadline, Some(self.known.clone()));
        Box::pin(async move {
            let lane = (Lane::Requests, to);
            (to, merge_on(&cluster, lane, &key, object, known, deadline).await)
        })
    }

    fn send_hinted(&self, to: Uid, home: Uid) -> BoxFuture<'static, (Uid, Result<(), CallError>)> {
        let cluster = Arc::clone(&self.checked.cluster);
        let (key, object) = (self.checked.key.clone(), self.object.0.clone());
        let deadline = self.checked.deadline;
        Box::pin(async move { (to, hint_on(&cluster, to, home, &key, object, deadline).await) })
    }

    /// Behind the answer: it counts for nothing. Without room for it, that is remembered.
    fn keep_hint(&self, home: Uid) {
        let (node, key) = (Arc::clone(&self.node), self.checked.key.clone());
        let Ok(object) = Object::decode(self.object.0.clone()) else { return };
        self.node.spawn_here(async move {
            if let Err(failure) = keep_hint_here(&node, home, &key, object).await {
                tracing::debug!(why = failure.why, "a hint is not kept");
            }
        });
    }

    fn reply(&self, dot: Dot) -> WriteReply {
        let (cluster, acked) = (&self.checked.cluster, self.write.acked());
        let mut seen = self.checked.seen.clone();
        seen.add_dot(dot);
        let quorum = v1::Quorum {
            n: self.checked.quorum.n.into(),
            needed: self.checked.quorum.needed.into(),
            replied: cluster.names_of(acked),
            missing: cluster.names_of(self.homes.iter().filter(|uid| !acked.contains(uid))),
            repaired: Vec::new(),
            hinted: cluster.names_of(self.write.hinted().keys()),
        };
        WriteReply {
            context: cluster.sealer.seal(&self.checked.key, &seen).into(),
            dot: Some(wire_dot(dot)),
            quorum: Some(quorum),
            siblings: self.object.1,
            replicas: if self.checked.explain { self.answers() } else { Vec::new() },
            coordinator: cluster.name_of(self.node.uid),
        }
    }

    fn answers(&self) -> Vec<ReplicaAnswer> {
        use replica_answer::Verdict;
        let answer = |uid: &Uid| {
            let heard = self.heard.get(uid);
            let peer = self.checked.cluster.peers.get(uid);
            let (took, error) = heard.cloned().unwrap_or_default();
            let (verdict, error) = match heard {
                Some((_, Some(_))) => (Verdict::Failed, error),
                Some((_, None)) => (Verdict::Acked, None),
                None if self.sent.contains(uid) => (Verdict::Pending, None),
                None => (Verdict::NotAsked, peer.filter(|p| !p.takes_puts()).map(|p| p.why_not())),
            };
            ReplicaAnswer {
                node: self.checked.cluster.name_of(*uid),
                verdict: verdict.into(),
                latency_us: took.as_micros() as u64,
                error: error.unwrap_or_default(),
                ..Default::default()
            }
        };
        self.homes.iter().map(answer).collect()
    }

    fn unmet(&self) -> Failure {
        let mut replicas = self.answers();
        mark_silent(&mut replicas, self.checked.started, self.checked.deadline);
        errors::quorum_unmet(Unmet {
            verb: self.checked.verb,
            key: self.checked.key.bytes(),
            quorum: ("W", self.checked.quorum.needed),
            acks: self.checked.cluster.names_of(self.write.acked()),
            replicas,
            waited_ms: self.checked.started.elapsed().as_millis(),
            outcome: Some(Outcome::Unknown),
        })
    }
}
