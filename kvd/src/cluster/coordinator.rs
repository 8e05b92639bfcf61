//! One client request: drives `dynamo::read` and `dynamo::write` over the store and the peers.
//!
//! A put goes to a replica, since only a replica has an actor to name it with: a node that is not
//! one forwards it. A get is coordinated by whichever node was asked.

use super::errors::{self, Failure, Unmet};
use super::peers::CallError;
use super::{Cluster, Node, deadline};
use crate::clock;
use crate::dynamo::key::Key;
use crate::dynamo::layout::{Keyspace, Mode};
use crate::dynamo::node::{KeyspaceId, RequestId, Uid};
use crate::dynamo::object::{Intent, Object, Record};
use crate::dynamo::preference::preference;
use crate::dynamo::quorum::Quorum;
use crate::dynamo::read::{Read, ReadSpec, ReadStep};
use crate::dynamo::version::{Actor, Clock, Dot};
use crate::dynamo::write::{Write, WriteSpec, WriteStep};
use crate::storage::record::value_checksum;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::v1::{
    self, CoordinateCall, DeleteRequest, GetReply, GetRequest, MergeCall, Outcome, PutRequest,
    ReadCall, ReplicaAnswer, Sibling, WriteReply, answer, call, coordinate_call, replica_answer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A get turns to one more replica when those asked take four times their usual, but not sooner.
const HEDGE_MIN: Duration = Duration::from_millis(10);
const HEDGE_MAX: Duration = Duration::from_millis(200);

/// Looks up a keyspace by the name a client gave; none means `default`.
pub fn keyspace<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Keyspace, Failure> {
    let name = if name.is_empty() { "default" } else { name };
    cluster.layout.keyspace(name).ok_or_else(|| {
        let known: Vec<&str> = cluster
            .layout
            .keyspaces()
            .values()
            .map(|k| k.name.as_str())
            .collect();
        errors::keyspace_unknown(name, &known)
    })
}

/// This node's own copy of a key, or another's: a raw read, unmerged and unrepaired.
pub async fn read_copy(
    node: &Arc<Node>,
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    deadline: Instant,
) -> Result<Option<Object>, CallError> {
    if on == node.uid {
        return node
            .store
            .read(key)
            .map_err(|error| CallError::Lost(error.to_string()));
    }
    let peer = cluster
        .peers
        .get(&on)
        .ok_or_else(|| CallError::NotSent("is no member".into()))?;
    let body = call::Body::Read(ReadCall {
        keyspace: key.keyspace().0,
        key: key.bytes().clone(),
    });
    match peer.call(body, key.bytes().len(), deadline).await? {
        answer::Body::Read(answer) if answer.object.is_empty() => Ok(None),
        answer::Body::Read(answer) => Object::decode(answer.object)
            .map(Some)
            .map_err(|error| CallError::Lost(format!("sent a copy that is {error}"))),
        _ => Err(CallError::Lost("answered something else".into())),
    }
}

/// Sends `encoded` to be merged into a replica's copy, and waits until it is on its disk.
async fn merge_on(
    node: &Node,
    cluster: &Cluster,
    on: Uid,
    key: &Key,
    object: &Object,
    encoded: Bytes,
    deadline: Instant,
) -> Result<(), CallError> {
    if on == node.uid {
        let synced = node
            .store
            .merge(key.clone(), object.clone().with_mine(None));
        return match synced.await {
            Ok(done) => done.map_err(|error| CallError::Lost(error.to_string())),
            Err(_) => Err(CallError::Lost("storage stopped".into())),
        };
    }
    let peer = cluster
        .peers
        .get(&on)
        .ok_or_else(|| CallError::NotSent("is no member".into()))?;
    let bytes = encoded.len();
    let (keyspace, key) = (key.keyspace().0, key.bytes().clone());
    let body = call::Body::Merge(MergeCall {
        keyspace,
        key,
        object: encoded,
    });
    match peer.call(body, bytes, deadline).await? {
        answer::Body::Merge(_) => Ok(()),
        _ => Err(CallError::Lost("answered something else".into())),
    }
}

// === get ===

/// Every live value of a key.
pub async fn get(node: &Arc<Node>, request: GetRequest) -> Result<GetReply, Failure> {
    let started = clock::now();
    let _admitted = admit(node)?;
    let outcome = get_admitted(node, request, started).await;
    node.stats.gets.add();
    match &outcome {
        Ok(reply) => {
            node.stats.get_latency.add(started.elapsed());
            if reply.siblings.len() > 1 {
                node.stats.siblings_seen.add();
            }
        }
        Err(failure) => count_failure(node, failure),
    }
    outcome
}

async fn get_admitted(
    node: &Arc<Node>,
    request: GetRequest,
    started: Instant,
) -> Result<GetReply, Failure> {
    let cluster = node.cluster()?;
    let keyspace = keyspace(&cluster, &request.keyspace)?;
    let key = Key::new(keyspace.id(), request.key).map_err(|error| errors::key(&error))?;
    let quorum = Quorum::new(keyspace.n, "R", request.r, keyspace.r);
    let quorum = quorum.map_err(|error| errors::quorum_invalid(&error))?;
    let homes = preference(&cluster.layout, keyspace.n, key.token()).homes;
    let spec = ReadSpec {
        quorum,
        order: quickest_first(node, &cluster, &homes),
        repair_first: (keyspace.mode == Mode::Strict).then_some(keyspace.w),
    };
    let (read, steps) = Read::start(spec);
    let mut get = Get {
        node: Arc::clone(node),
        cluster,
        key,
        homes,
        quorum,
        read,
        under_way: FuturesUnordered::new(),
        heard: BTreeMap::new(),
        started,
        deadline: deadline(request.timeout_ms),
    };
    match get.run(steps).await {
        ReadStep::Answer => {
            let reply = get.reply(request.explain);
            get.finish_behind_the_answer();
            reply
        }
        _ => Err(get.unmet()),
    }
}

/// This node first (it costs no trip), then those that answer, quickest first, then the rest.
fn quickest_first(node: &Node, cluster: &Cluster, homes: &[Uid]) -> Vec<Uid> {
    let mut order = homes.to_vec();
    order.sort_by_cached_key(|uid| match cluster.peers.get(uid) {
        _ if *uid == node.uid => (0, 0),
        // Coarsely, so that equals keep the key's own rotation and share the load.
        Some(peer) if peer.is_usable() => (1, peer.latency_us().max(1).ilog2() / 2),
        _ => (2, 0),
    });
    order
}

enum Heard {
    Copy(Uid, Result<Object, CallError>, Duration),
    Repaired(Uid, Result<(), CallError>),
}

struct Get {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    key: Key,
    homes: Vec<Uid>,
    quorum: Quorum,
    read: Read,
    under_way: FuturesUnordered<BoxFuture<'static, Heard>>,
    /// How long each took, and why it failed.
    heard: BTreeMap<Uid, (Duration, Option<String>)>,
    started: Instant,
    deadline: Instant,
}

impl Get {
    /// Runs until there is an answer, or none can come.
    async fn run(&mut self, steps: Vec<ReadStep>) -> ReadStep {
        let mut end = self.take(steps);
        let hedge = tokio::time::sleep(self.hedge_delay());
        let deadline = tokio::time::sleep_until(self.deadline.into());
        tokio::pin!(hedge, deadline);
        let mut hedged = false;
        loop {
            if let Some(end) = end {
                return end;
            }
            let steps = tokio::select! {
                biased;
                Some(heard) = self.under_way.next() => self.feed(heard),
                () = &mut hedge, if !hedged => {
                    hedged = true;
                    self.read.hedge()
                }
                () = &mut deadline => self.read.expire(),
            };
            end = self.take(steps);
        }
    }

    /// Late replies still tell who is behind, and repairs under way are seen through.
    fn finish_behind_the_answer(mut self) {
        if self.read.is_over() {
            return;
        }
        let node = Arc::clone(&self.node);
        node.spawn(async move {
            let deadline = self.deadline.into();
            while let Ok(Some(heard)) =
                tokio::time::timeout_at(deadline, self.under_way.next()).await
            {
                let steps = self.feed(heard);
                self.take(steps);
                if self.read.is_over() {
                    return;
                }
            }
        });
    }

    fn feed(&mut self, heard: Heard) -> Vec<ReadStep> {
        match heard {
            Heard::Copy(from, Ok(copy), took) => {
                self.heard.insert(from, (took, None));
                self.read.reply(from, copy)
            }
            Heard::Copy(from, Err(error), took) => {
                self.heard.insert(from, (took, Some(error.text())));
                self.read.fail(from)
            }
            Heard::Repaired(on, outcome) => self.read.repair_ended(on, outcome.is_ok()),
        }
    }

    /// Sets the steps going; returns the end, if it is among them.
    fn take(&mut self, steps: Vec<ReadStep>) -> Option<ReadStep> {
        let mut encoded = None;
        let mut end = None;
        for step in steps {
            match step {
                ReadStep::Ask(on) => self.under_way.push(self.ask(on)),
                ReadStep::Repair(on) => {
                    let bytes: &Bytes =
                        encoded.get_or_insert_with(|| self.read.joined().encode().into());
                    self.node.stats.read_repairs.add();
                    self.under_way.push(self.repair(on, bytes.clone()));
                }
                ReadStep::Answer | ReadStep::Fail => end = Some(step),
            }
        }
        end
    }

    fn ask(&self, on: Uid) -> BoxFuture<'static, Heard> {
        let (node, cluster, key) = (
            Arc::clone(&self.node),
            Arc::clone(&self.cluster),
            self.key.clone(),
        );
        let deadline = self.deadline;
        Box::pin(async move {
            let asked = clock::now();
            let copy = read_copy(&node, &cluster, on, &key, deadline).await;
            Heard::Copy(on, copy.map(Option::unwrap_or_default), asked.elapsed())
        })
    }

    fn repair(&self, on: Uid, encoded: Bytes) -> BoxFuture<'static, Heard> {
        let (node, cluster, key) = (
            Arc::clone(&self.node),
            Arc::clone(&self.cluster),
            self.key.clone(),
        );
        let (object, deadline) = (self.read.joined().clone(), self.deadline);
        Box::pin(async move {
            let done = merge_on(&node, &cluster, on, &key, &object, encoded, deadline).await;
            Heard::Repaired(on, done)
        })
    }

    fn hedge_delay(&self) -> Duration {
        let usual = self
            .homes
            .iter()
            .filter_map(|uid| self.cluster.peers.get(uid));
        let usual = usual
            .filter(|peer| peer.is_usable())
            .map(|peer| peer.latency_us())
            .max();
        Duration::from_micros(usual.unwrap_or(0) * 4).clamp(HEDGE_MIN, HEDGE_MAX)
    }

    fn reply(&self, explain: bool) -> Result<GetReply, Failure> {
        let (key, joined) = (&self.key, self.read.joined());
        let mut siblings = Vec::new();
        for (dot, record) in joined.live() {
            let value = record.value.clone().unwrap_or_default();
            if value_checksum(key.bytes(), Some(&value)) != record.checksum {
                let what = format!(
                    "a value of {} is not what was put",
                    key.bytes().escape_ascii()
                );
                return Err(errors::internal(what));
            }
            let context = self
                .cluster
                .sealer
                .seal(key, &joined.context_of(dot))
                .into();
            siblings.push(sibling(dot, record, value, context));
        }
        let context = match joined.clock() {
            clock if clock.is_empty() => Bytes::new(),
            clock => self.cluster.sealer.seal(key, clock).into(),
        };
        let replied: BTreeSet<Uid> = self.read.copies().keys().copied().collect();
        let repaired: BTreeSet<Uid> = self.read.repaired() | self.read.repairing();
        Ok(GetReply {
            siblings,
            context,
            quorum: Some(self.quorum(&replied, &repaired)),
            replicas: if explain { self.answers() } else { Vec::new() },
            coordinator: self.cluster.name_of(self.node.uid),
        })
    }

    fn quorum(&self, replied: &BTreeSet<Uid>, repaired: &BTreeSet<Uid>) -> v1::Quorum {
        v1::Quorum {
            n: self.quorum.n.into(),
            needed: self.quorum.needed.into(),
            replied: self.cluster.names_of(replied),
            missing: self
                .cluster
                .names_of(self.homes.iter().filter(|uid| !replied.contains(uid))),
            repaired: self.cluster.names_of(repaired),
        }
    }

    /// What each replica said.
    fn answers(&self) -> Vec<ReplicaAnswer> {
        use replica_answer::Verdict;
        let joined = self.read.joined();
        let answer = |uid: &Uid| {
            let (took, error) = self.heard.get(uid).cloned().unwrap_or_default();
            let copy = self.read.copies().get(uid);
            let repaired =
                self.read.repaired().contains(uid) || self.read.repairing().contains(uid);
            let verdict = match copy {
                _ if error.is_some() => Verdict::Failed,
                Some(copy) if repaired && !copy.clock().is_empty() => Verdict::Behind,
                Some(copy) if copy.clock().is_empty() && copy.siblings().is_empty() => {
                    Verdict::Absent
                }
                Some(copy) if copy.agrees_with(joined) => Verdict::Match,
                Some(_) => Verdict::Behind,
                None if self.heard.contains_key(uid) => Verdict::Failed,
                None if self.under_way.is_empty() => Verdict::NotAsked,
                None => Verdict::Pending,
            };
            ReplicaAnswer {
                node: self.cluster.name_of(*uid),
                verdict: verdict.into(),
                latency_us: took.as_micros() as u64,
                clock: copy
                    .map(|copy| copy.clock().to_string())
                    .unwrap_or_default(),
                error: error.unwrap_or_default(),
                repaired,
            }
        };
        self.homes.iter().map(answer).collect()
    }

    fn unmet(&self) -> Failure {
        let mut replicas = self.answers();
        mark_silent(&mut replicas, self.started.elapsed());
        errors::quorum_unmet(Unmet {
            verb: "get",
            key: self.key.bytes(),
            quorum: ("R", self.quorum.needed),
            acks: self.cluster.names_of(self.read.copies().keys()),
            replicas,
            waited_ms: self.started.elapsed().as_millis(),
            outcome: None,
        })
    }
}

/// Of replicas that were asked and said nothing, says so.
fn mark_silent(replicas: &mut [ReplicaAnswer], waited: Duration) {
    for replica in replicas {
        if replica.verdict() == replica_answer::Verdict::Pending {
            replica.error = format!("gave no answer in {} ms", waited.as_millis());
        }
    }
}

/// One value as a client sees it.
pub fn sibling(dot: Dot, record: &Record, value: Bytes, context: Bytes) -> Sibling {
    Sibling {
        value,
        dot: Some(wire_dot(dot)),
        written_at_ms: dot.counter.ms(),
        checksum: record.checksum,
        context,
    }
}

/// A dot on the wire.
pub fn wire_dot(dot: Dot) -> v1::Dot {
    v1::Dot {
        actor: dot.actor.0,
        counter: dot.counter.0,
    }
}

// === put, delete ===

/// Stores a value.
pub async fn put(node: &Arc<Node>, request: PutRequest) -> Result<WriteReply, Failure> {
    let outcome = write(node, ClientWrite::Put(request), true).await;
    node.stats.puts.add();
    outcome
}

/// Leaves a tombstone.
pub async fn delete(node: &Arc<Node>, request: DeleteRequest) -> Result<WriteReply, Failure> {
    let outcome = write(node, ClientWrite::Delete(request), true).await;
    node.stats.deletes.add();
    outcome
}

/// Coordinates a write another node forwarded. It is not forwarded again: were two nodes to
/// disagree about who is a replica, it would go round for ever.
pub async fn coordinate(
    node: &Arc<Node>,
    write_call: CoordinateCall,
) -> Result<WriteReply, Failure> {
    match write_call.write {
        Some(coordinate_call::Write::Put(request)) => {
            write(node, ClientWrite::Put(request), false).await
        }
        Some(coordinate_call::Write::Delete(request)) => {
            write(node, ClientWrite::Delete(request), false).await
        }
        None => Err(errors::argument("the forwarded write is empty", "")),
    }
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
    mode: Mode,
    intent: Intent,
    /// What the client had seen: the base of the context it gets back.
    seen: Clock,
    explain: bool,
    started: Instant,
    deadline: Instant,
}

async fn write(
    node: &Arc<Node>,
    request: ClientWrite,
    may_forward: bool,
) -> Result<WriteReply, Failure> {
    let started = clock::now();
    let _admitted = admit(node)?;
    let outcome = write_admitted(node, request, may_forward, started).await;
    match &outcome {
        Ok(_) if may_forward => node.stats.put_latency.add(started.elapsed()),
        Ok(_) => {}
        Err(failure) => count_failure(node, failure),
    }
    outcome
}

async fn write_admitted(
    node: &Arc<Node>,
    mut request: ClientWrite,
    may_forward: bool,
    started: Instant,
) -> Result<WriteReply, Failure> {
    let cluster = node.cluster()?;
    let request_id = request.settle_id()?;
    let checked = request.check(cluster, request_id, started)?;
    let homes = preference(
        &checked.cluster.layout,
        checked.quorum.n,
        checked.key.token(),
    )
    .homes;
    match (homes.contains(&node.uid), may_forward) {
        (true, _) => coordinate_here(node, checked, homes).await,
        (false, true) => forward(node, &checked, &request, &homes).await,
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
            return Err(errors::value_too_large(
                bytes,
                keyspace.value_bytes_max,
                &keyspace.name,
            ));
        }
        let quorum = Quorum::new(keyspace.n, "W", w, keyspace.w);
        let quorum = quorum.map_err(|error| errors::quorum_invalid(&error))?;
        let seen = cluster.sealer.open(&key, context, clock::now_ms());
        let seen = seen.map_err(|error| errors::context(&error))?;
        let mode = match strict {
            Some(true) => Mode::Strict,
            Some(false) => Mode::Sloppy,
            None => keyspace.mode,
        };
        let record = Record {
            value: value.cloned(),
            request,
            checksum: value_checksum(key.bytes(), value.map(|value| &value[..])),
        };
        let blind_delete = value.is_none() && context.is_empty();
        let intent = Intent {
            context: (!blind_delete).then(|| seen.clone()),
            record,
        };
        let deadline = deadline(timeout_ms);
        Ok(Checked {
            verb,
            cluster,
            key,
            quorum,
            mode,
            intent,
            seen,
            explain,
            started,
            deadline,
        })
    }

    fn forwarded(&self, timeout: Duration) -> CoordinateCall {
        let timeout_ms = timeout.as_millis().max(1) as u32;
        let write = match self {
            Self::Put(put) => coordinate_call::Write::Put(PutRequest {
                timeout_ms,
                ..put.clone()
            }),
            Self::Delete(delete) => coordinate_call::Write::Delete(DeleteRequest {
                timeout_ms,
                ..delete.clone()
            }),
        };
        CoordinateCall { write: Some(write) }
    }
}

/// Gives the write to a replica: the first that takes it. A try that got lost is made again
/// elsewhere under the same request id, so both are one write.
async fn forward(
    node: &Node,
    checked: &Checked,
    request: &ClientWrite,
    homes: &[Uid],
) -> Result<WriteReply, Failure> {
    let bytes = checked.intent.record.value.as_ref().map_or(0, Bytes::len);
    let (mut why, mut sent) = (Vec::new(), false);
    for home in quickest_first(node, &checked.cluster, homes) {
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
            Err(CallError::Refused(detail)) if !worth_another_try(&detail) => return Err(detail),
            Err(error) => {
                sent |= matches!(error, CallError::Lost(_));
                why.push(format!("{name} {}", error.text()));
            }
        }
    }
    Err(errors::forward_failed(
        checked.verb,
        checked.key.bytes(),
        &why,
        sent,
    ))
}

/// Whether another replica may take what this one refused.
fn worth_another_try(detail: &v1::ErrorDetail) -> bool {
    use v1::ErrorCode::{Draining, LayoutStale, Overloaded, StorageFailed};
    matches!(
        detail.code(),
        Draining | LayoutStale | Overloaded | StorageFailed
    )
}

async fn coordinate_here(
    node: &Arc<Node>,
    checked: Checked,
    homes: Vec<Uid>,
) -> Result<WriteReply, Failure> {
    let down = homes.iter().filter(|uid| {
        checked
            .cluster
            .peers
            .get(uid)
            .is_some_and(|p| !p.is_usable())
    });
    let spec = WriteSpec {
        quorum: checked.quorum,
        mode: checked.mode,
        coordinator: node.uid,
        down: down.copied().collect(),
        homes: homes.clone(),
        // None until fallbacks keep hints: an acknowledgement from a copy that no home would ever
        // be given must not count.
        fallbacks: Vec::new(),
    };
    let (write, steps) = match Write::start(spec) {
        Ok(started) => started,
        Err(_too_few) => return Err(refused_at_once(&checked, &homes)),
    };
    let fresh_actor = Actor(clock::random_u64());
    let now_ms = clock::now_ms();
    let (prepared, synced) = node.store.coordinate(
        checked.key.clone(),
        checked.intent.clone(),
        now_ms,
        fresh_actor,
    );
    let prepared = tokio::time::timeout_at(checked.deadline.into(), prepared).await;
    let prepared = match prepared {
        Ok(Ok(outcome)) => outcome.map_err(|error| errors::storage(&error))?,
        Ok(Err(_)) => return Err(errors::internal("storage dropped a write")),
        Err(_) => {
            let mut put = Put::new(node, checked, homes, write, Object::default());
            put.heard.insert(
                node.uid,
                (
                    put.checked.started.elapsed(),
                    Some("its disk is slow".into()),
                ),
            );
            return Err(put.unmet());
        }
    };
    let mut put = Put::new(node, checked, homes, write, prepared.object);
    let me = node.uid;
    put.under_way.push(Box::pin(async move {
        let outcome = match synced.await {
            Ok(outcome) => outcome.map_err(|error| CallError::Lost(error.to_string())),
            Err(_) => Err(CallError::Lost("storage stopped".into())),
        };
        (me, outcome)
    }));
    match put.run(steps).await {
        WriteStep::Answer => {
            let reply = put.reply(prepared.dot);
            put.finish_behind_the_answer();
            Ok(reply)
        }
        _ => Err(put.unmet()),
    }
}

/// Fewer than W up: the client is told so with nothing written.
fn refused_at_once(checked: &Checked, homes: &[Uid]) -> Failure {
    let replicas = homes.iter().map(|uid| {
        let peer = checked
            .cluster
            .peers
            .get(uid)
            .filter(|peer| !peer.is_usable());
        let error = peer.map(|peer| peer.health().why);
        let error = error.map(|why| {
            if why.is_empty() {
                "does not answer".into()
            } else {
                why
            }
        });
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
    write: Write,
    object: Object,
    under_way: FuturesUnordered<BoxFuture<'static, (Uid, Result<(), CallError>)>>,
    heard: BTreeMap<Uid, (Duration, Option<String>)>,
}

impl Put {
    fn new(
        node: &Arc<Node>,
        checked: Checked,
        homes: Vec<Uid>,
        write: Write,
        object: Object,
    ) -> Self {
        let (under_way, heard) = (FuturesUnordered::new(), BTreeMap::new());
        Self {
            node: Arc::clone(node),
            checked,
            homes,
            write,
            object,
            under_way,
            heard,
        }
    }

    /// Runs until W have it on disk, or cannot.
    async fn run(&mut self, steps: Vec<WriteStep>) -> WriteStep {
        let mut end = self.take(steps);
        let deadline = tokio::time::sleep_until(self.checked.deadline.into());
        tokio::pin!(deadline);
        loop {
            if let Some(end) = end {
                return end;
            }
            let steps = tokio::select! {
                biased;
                Some((from, outcome)) = self.under_way.next() => self.feed(from, outcome),
                () = &mut deadline => self.write.expire(),
            };
            end = self.take(steps);
        }
    }

    /// The remaining replicas get it too.
    fn finish_behind_the_answer(mut self) {
        if self.write.is_over() {
            return;
        }
        let node = Arc::clone(&self.node);
        node.spawn(async move {
            let deadline = self.checked.deadline.into();
            while let Ok(Some((from, outcome))) =
                tokio::time::timeout_at(deadline, self.under_way.next()).await
            {
                let steps = self.feed(from, outcome);
                self.take(steps);
            }
        });
    }

    fn feed(&mut self, from: Uid, outcome: Result<(), CallError>) -> Vec<WriteStep> {
        let error = outcome.as_ref().err().map(CallError::text);
        self.heard
            .insert(from, (self.checked.started.elapsed(), error));
        if outcome.is_ok() {
            self.write.ack(from)
        } else {
            self.write.fail(from)
        }
    }

    fn take(&mut self, steps: Vec<WriteStep>) -> Option<WriteStep> {
        let mut encoded = None;
        let mut end = None;
        for step in steps {
            match step {
                WriteStep::Send(to) | WriteStep::SendHinted { to, .. } => {
                    let bytes: &Bytes = encoded.get_or_insert_with(|| self.object.encode().into());
                    self.under_way.push(self.send(to, bytes.clone()));
                }
                WriteStep::Answer | WriteStep::Fail => end = Some(step),
            }
        }
        end
    }

    fn send(&self, to: Uid, encoded: Bytes) -> BoxFuture<'static, (Uid, Result<(), CallError>)> {
        let (node, cluster) = (Arc::clone(&self.node), Arc::clone(&self.checked.cluster));
        let (key, deadline) = (self.checked.key.clone(), self.checked.deadline);
        let object = Object::default(); // never merged here: `to` is another node
        Box::pin(async move {
            (
                to,
                merge_on(&node, &cluster, to, &key, &object, encoded, deadline).await,
            )
        })
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
        };
        WriteReply {
            context: cluster.sealer.seal(&self.checked.key, &seen).into(),
            dot: Some(wire_dot(dot)),
            quorum: Some(quorum),
            siblings: self.object.live().len() as u32,
            replicas: if self.checked.explain {
                self.answers()
            } else {
                Vec::new()
            },
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
                None if peer.is_some_and(|peer| !peer.is_usable()) => {
                    (Verdict::NotAsked, peer.map(|peer| peer.health().why))
                }
                None => (Verdict::Pending, None),
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
        mark_silent(&mut replicas, self.checked.started.elapsed());
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

// === admission ===

/// A place among the requests under way, or the refusal of one too many.
pub fn admit(node: &Node) -> Result<tokio::sync::SemaphorePermit<'_>, Failure> {
    if node.draining.load(Ordering::Relaxed) {
        return Err(errors::draining());
    }
    node.requests
        .try_acquire()
        .map_err(|_| errors::overloaded("too many requests are under way"))
}

fn count_failure(node: &Node, failure: &v1::ErrorDetail) {
    use v1::ErrorCode::{Internal, Overloaded, QuorumUnmet, StorageFailed};
    if matches!(
        failure.code(),
        QuorumUnmet | StorageFailed | Overloaded | Internal
    ) {
        node.stats.failures.add();
    }
}

/// A key of the keyspace a peer named by id. The peer may know a keyspace this node does not yet.
pub fn key_from_peer(keyspace: u64, key: Bytes) -> Result<Key, Failure> {
    Key::new(KeyspaceId(keyspace), key).map_err(|error| errors::key(&error))
}
