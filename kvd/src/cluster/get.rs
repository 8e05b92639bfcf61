//! One client get: drives `dynamo::read` over the store and the peers. Any node coordinates it.

use super::coordinator::{
    Held, Known, catch_up, count_failure, covers, is_of_layout, keyspace, mark_silent, merge_here,
    merge_on, quickest_first, read_copy, read_hints, sibling,
};
use super::errors::{self, Failure, Unmet};
use super::lane::{CallError, Lane};
use super::peers::Peer;
use super::{Cluster, Node, deadline, value};
use crate::clock;
use crate::dynamo::history::Coverage;
use crate::dynamo::key::Key;
use crate::dynamo::layout::Mode;
use crate::dynamo::node::{LayoutId, Uid};
use crate::dynamo::preference;
use crate::dynamo::quorum::Quorum;
use crate::dynamo::read::{Read, ReadSpec, ReadStep};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::v1::{self, GetReply, GetRequest, ReplicaAnswer, replica_answer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A get turns to one more replica when those asked take four times their usual, but not sooner.
const HEDGE_MIN: Duration = Duration::from_millis(4);
const HEDGE_MAX: Duration = Duration::from_millis(200);

/// Before a get begins anew though nothing new was learned.
const LAYOUT_PAUSE: Duration = Duration::from_millis(10);

/// Every live value of a key, asked for at `started`.
pub async fn get(
    node: &Arc<Node>,
    request: GetRequest,
    started: Instant,
) -> Result<GetReply, Failure> {
    let outcome = try_to_get(node, request, started).await.map_err(errors::of_a_read);
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

async fn try_to_get(
    node: &Arc<Node>,
    request: GetRequest,
    started: Instant,
) -> Result<GetReply, Failure> {
    let until = deadline(started, request.timeout_ms);
    loop {
        let mut get = Get::new(node, &request, started, until)?;
        match get.run().await {
            End::Met => {
                let live = get.read.joined().live().into_iter().map(|(_, record)| record.clone());
                let values = value::show(&get.key, live.collect(), get.deadline).await;
                let reply = values.map(|values| get.reply(values, request.explain));
                get.finish_behind_the_answer();
                return reply;
            }
            // Who has just been made a member is linked to in a moment.
            End::Unmet if get.may_wait() => tokio::time::sleep(LAYOUT_PAUSE).await,
            End::Unmet => return Err(get.unmet()),
            // The replicas are others by now: the get begins anew, with what is known then.
            End::Stale(with) => {
                if clock::now() >= until {
                    return Err(get.unmet());
                }
                catch_up(node, &get.cluster, Some(with)).await;
                if node.cluster()?.digest == get.cluster.digest {
                    tokio::time::sleep(LAYOUT_PAUSE).await; // another is just exchanging with it
                }
            }
        }
    }
}

/// How a try ends.
enum End {
    Met,
    Unmet,
    /// The layout has changed, as this replica says.
    Stale(Uid),
}

enum Heard {
    Copy(Uid, Result<Held, CallError>, Duration),
    Repaired(Uid, Result<(), CallError>),
}

struct Get {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    key: Key,
    /// The layout whose replicas are read.
    under: LayoutId,
    /// What it knows of the layouts.
    known: Known,
    homes: Vec<Uid>,
    quorum: Quorum,
    /// Replicas that must hold the join before a strict keyspace answers.
    repair_first: Option<u8>,
    read: Read,
    /// What it sets out with, until it does.
    first: Vec<ReadStep>,
    /// A replica that knows more of the layout.
    stale: Option<Uid>,
    under_way: FuturesUnordered<BoxFuture<'static, Heard>>,
    /// How long each took, and why it failed.
    heard: BTreeMap<Uid, (Duration, Option<String>)>,
    started: Instant,
    deadline: Instant,
}

impl Get {
    /// A get by the layouts as they are known.
    fn new(
        node: &Arc<Node>,
        request: &GetRequest,
        started: Instant,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let cluster = node.cluster()?;
        let keyspace = keyspace(&cluster, &request.keyspace)?;
        let key = Key::new(keyspace.id(), request.key.clone());
        let key = key.map_err(|error| errors::key(&error))?;
        let quorum = Quorum::new(keyspace.n, "R", request.r, keyspace.r);
        let quorum = quorum.map_err(|error| errors::quorum_invalid(&error))?;
        let parties = preference::parties(&cluster.history, keyspace.id(), key.token(), None);
        let parties = parties.ok_or_else(errors::layout_stale)?;
        // As many as the replicas that are read have to be, whatever the newest layout says.
        let asked = request.r.map_or(parties.r, |_| quorum.needed);
        let there = parties.read.len() as u8;
        let needed = asked.min(parties.write[0].members.len() as u8);
        if needed > there {
            return Err(errors::too_few_readable(request.key.as_ref(), there, needed));
        }
        let quorum = Quorum { n: quorum.n, needed };
        let repair_first = (keyspace.mode == Mode::Strict).then_some(parties.w);
        let order = quickest_first(node, &cluster, &parties.read, Peer::read_us);
        let unreachable = |uid: &Uid| cluster.peers.get(uid).is_some_and(|peer| !peer.is_usable());
        // Only then may a fallback know of a write that no home has.
        let fallbacks = match keyspace.mode {
            Mode::Sloppy if parties.homes.iter().any(unreachable) => {
                let (layout, id, token) = (&cluster.layout, keyspace.id(), key.token());
                let others = preference::stand_ins(layout, id, token, &parties.homes);
                others.into_iter().filter(|uid| !unreachable(uid)).collect()
            }
            _ => Vec::new(),
        };
        let also = match repair_first {
            Some(_) => parties.write[1..].to_vec(),
            None => Vec::new(),
        };
        let (read, first) = Read::start(ReadSpec { quorum, order, fallbacks, repair_first, also });
        let known = Known { newest: cluster.layout.id(), sets: parties.sets.into() };
        Ok(Self {
            node: Arc::clone(node),
            known,
            cluster,
            key,
            under: parties.under,
            homes: parties.homes,
            quorum,
            repair_first,
            read,
            first,
            stale: None,
            under_way: FuturesUnordered::new(),
            heard: BTreeMap::new(),
            started,
            deadline,
        })
    }

    /// Runs until there is an answer, or none can come.
    async fn run(&mut self) -> End {
        let steps = std::mem::take(&mut self.first);
        let mut end = self.take(steps);
        let delay = self.hedge_delay();
        let hedge = tokio::time::sleep(delay);
        let deadline = tokio::time::sleep_until(self.deadline.into());
        tokio::pin!(hedge, deadline);
        loop {
            match end {
                Some(ReadStep::Answer) if self.covers_all() => return End::Met,
                Some(ReadStep::Answer) => return End::Stale(self.node.uid),
                Some(_) => return End::Unmet,
                None => {}
            }
            if let Some(with) = self.stale.take() {
                return End::Stale(with);
            }
            let steps = tokio::select! {
                biased;
                Some(heard) = self.under_way.next() => self.feed(heard),
                () = &mut hedge => {
                    hedge.as_mut().reset((clock::now() + delay).into());
                    self.read.hedge()
                }
                () = &mut deadline => self.read.expire(),
            };
            end = self.take(steps);
        }
    }

    /// Whether it may wait for nodes that have just been made members, as long as there is time to
    /// tell the client that they did not come.
    fn may_wait(&self) -> bool {
        let left = self.deadline.saturating_duration_since(clock::now());
        left > self.started.elapsed() && self.cluster.peers.values().any(|peer| peer.is_new())
    }

    /// Whether what a strict get returns is on all sets of replicas that this node knows of by now.
    fn covers_all(&self) -> bool {
        self.repair_first.is_none() || covers(&self.node, &self.key, &self.known) == Coverage::Known
    }

    /// Late replies still tell who is behind, and repairs under way are seen through.
    fn finish_behind_the_answer(mut self) {
        if self.read.is_over() {
            return;
        }
        let node = Arc::clone(&self.node);
        node.spawn_here(async move {
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
            Heard::Copy(from, Ok(Held { object, votes: true }), took) => {
                self.heard.insert(from, (took, None));
                self.read.reply(from, object)
            }
            Heard::Copy(from, Ok(Held { object, votes: false }), took) => {
                let counts = self.repair_first.is_none();
                let why = "has no vote: it lost data, and is not level with its replicas yet";
                self.heard.insert(from, (took, (!counts).then(|| why.into())));
                self.read.reply_without_vote(from, object)
            }
            Heard::Copy(from, Err(error), _) if is_of_layout(&error) => {
                self.stale = Some(from);
                Vec::new()
            }
            Heard::Repaired(on, Err(error))
                if is_of_layout(&error) && self.repair_first.is_some() =>
            {
                self.stale = Some(on);
                Vec::new()
            }
            Heard::Copy(from, Err(error), took) => {
                self.heard.insert(from, (took, Some(error.text())));
                if error.is_damaged_copy() { self.read.damaged(from) } else { self.read.fail(from) }
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
        let (node, cluster, key) =
            (Arc::clone(&self.node), Arc::clone(&self.cluster), self.key.clone());
        let (deadline, is_home) = (self.deadline, self.homes.contains(&on));
        let under = Some(self.under);
        Box::pin(async move {
            let asked = clock::now();
            let copy = match is_home {
                true => {
                    read_copy(&node, &cluster, (Lane::Requests, on), &key, under, deadline).await
                }
                false => read_hints(&node, &cluster, on, &key, deadline).await,
            };
            Heard::Copy(on, copy, asked.elapsed())
        })
    }

    fn repair(&self, on: Uid, encoded: Bytes) -> BoxFuture<'static, Heard> {
        let (node, cluster) = (Arc::clone(&self.node), Arc::clone(&self.cluster));
        let (key, object, deadline) = (self.key.clone(), self.read.joined().clone(), self.deadline);
        // Behind the answer it promises nothing, and may go to whom the layout has no more.
        let known = self.repair_first.map(|_| self.known.clone());
        Box::pin(async move {
            let done = match on == node.uid {
                true => merge_here(&node, &key, object).await.map_err(CallError::Refused),
                false => {
                    merge_on(&cluster, (Lane::Requests, on), &key, encoded, known, deadline).await
                }
            };
            Heard::Repaired(on, done)
        })
    }

    fn hedge_delay(&self) -> Duration {
        let usual = self.homes.iter().filter_map(|uid| self.cluster.peers.get(uid));
        let usual = usual.filter(|peer| peer.is_usable()).map(|peer| peer.read_us()).max();
        Duration::from_micros(usual.unwrap_or(0) * 4).clamp(HEDGE_MIN, HEDGE_MAX)
    }

    /// What the client is told; `values` are those of the join's live siblings.
    fn reply(&self, values: Vec<Bytes>, explain: bool) -> GetReply {
        let (key, joined) = (&self.key, self.read.joined());
        let siblings = joined.live().into_iter().zip(values).map(|((dot, record), value)| {
            let context = self.cluster.sealer.seal(key, &joined.context_of(dot)).into();
            sibling(dot, record, value, context)
        });
        let context = match joined.clock() {
            clock if clock.is_empty() => Bytes::new(),
            clock => self.cluster.sealer.seal(key, clock).into(),
        };
        let replied: BTreeSet<Uid> = self.read.copies().keys().copied().collect();
        let repaired: BTreeSet<Uid> = self.read.repaired() | self.read.repairing();
        GetReply {
            siblings: siblings.collect(),
            context,
            quorum: Some(self.quorum(&replied, &repaired)),
            replicas: if explain { self.answers() } else { Vec::new() },
            coordinator: self.cluster.name_of(self.node.uid),
        }
    }

    fn quorum(&self, replied: &BTreeSet<Uid>, repaired: &BTreeSet<Uid>) -> v1::Quorum {
        v1::Quorum {
            n: self.quorum.n.into(),
            needed: self.quorum.needed.into(),
            replied: self.cluster.names_of(replied),
            missing: self.cluster.names_of(self.homes.iter().filter(|uid| !replied.contains(uid))),
            repaired: self.cluster.names_of(repaired),
            hinted: Vec::new(),
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
                None if self.read.waiting().contains(uid) => Verdict::Pending,
                None => Verdict::NotAsked,
            };
            ReplicaAnswer {
                node: self.cluster.name_of(*uid),
                verdict: verdict.into(),
                latency_us: took.as_micros() as u64,
                clock: copy.map(|copy| copy.clock().to_string()).unwrap_or_default(),
                error: error.unwrap_or_default(),
                repaired,
            }
        };
        self.homes.iter().map(answer).collect()
    }

    fn unmet(&self) -> Failure {
        let mut replicas = self.answers();
        mark_silent(&mut replicas, self.started, self.deadline);
        let met = self.read.copies().len() >= usize::from(self.quorum.needed);
        if let Some(w) = self.repair_first.filter(|_| met) {
            let held: Vec<Uid> = self.read.holding().collect();
            return errors::repair_unmet(
                self.key.bytes(),
                self.cluster.names_of(&held),
                w,
                replicas,
            );
        }
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
