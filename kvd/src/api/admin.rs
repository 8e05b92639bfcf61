//! What operators call, through kvctl and kvtop.

use super::{respond, respond_to_read};
use crate::cluster::errors::{self, Failure};
use crate::cluster::lane::Lane;
use crate::cluster::{
    Node, certs, compact, coordinator, deadline, gc, handoff, membership, ops, partitions, plans,
    repair, safety, scrub, value, view,
};
use crate::door::access::{self, Right};
use crate::door::session::Session;
use crate::dynamo::key::Key;
use crate::dynamo::object::Object;
use crate::dynamo::preference::preference;
use bytes::Bytes;
use futures_util::Stream;
use prost::Message;
use proto::token::Token;
use proto::v1::admin_server::Admin;
use proto::v1::{
    ApplyPlanRequest, CertsReply, CertsRequest, ClusterView, CompactReply, CompactRequest, Copy,
    CreateKeyspaceRequest, DrainReply, DrainRequest, GcReply, GcRequest, GetClusterRequest,
    GetLayoutRequest, GetPartitionsRequest, GetSafetyRequest, HintAction, HintsReply, HintsRequest,
    InitClusterRequest, Keyspace, LayoutView, LocateReply, LocateRequest, LocatedNode,
    MakePlanRequest, Op, OpsAction, OpsReply, OpsRequest, PartitionsReply, Plan, ReadCopyReply,
    ReadCopyRequest, RepairReply, RepairRequest, SafetyReply, ScrubReply, ScrubRequest,
    WatchClusterRequest,
};
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Serves `kvd.v1.Admin`.
pub struct AdminService {
    node: Arc<Node>,
    watches: Arc<Semaphore>,
}

/// Watches of the cluster at once, at most. One more is refused.
const WATCHES_MAX: usize = 256;

impl AdminService {
    /// That of a node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, watches: Arc::new(Semaphore::new(WATCHES_MAX)) }
    }

    /// What changes something is for admins, and goes into the audit log, refused or not. `on` is what
    /// it is about, `made` what came of it.
    ///
    /// In a task of its own: what was begun is seen through and noted, though who asked may be gone.
    async fn act<T, R, F>(
        &self,
        request: Request<T>,
        what: &str,
        on: String,
        act: impl FnOnce(Arc<Node>, T) -> F + Send + 'static,
        made: impl FnOnce(&R) -> String + Send + 'static,
    ) -> Result<Response<R>, Status>
    where
        T: Send + 'static,
        R: Message + 'static,
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let (node, what) = (Arc::clone(&self.node), what.to_owned());
        let work = self.node.run(async move {
            let session = access::session(&request).cloned();
            let outcome = match access::check_admin(&node, &request) {
                Ok(()) => respond(act(Arc::clone(&node), request.into_inner()).await),
                Err(refused) => Err(refused),
            };
            let on = match &outcome {
                Ok(reply) => format!("{on} {}", made(reply.get_ref())),
                Err(_) => on,
            };
            let name = session.as_ref().and_then(|session| session.name());
            // Strangers are refused by the thousand, and fill no log.
            if outcome.is_ok() || node.access.load().knows(name) {
                let heard = outcome.as_ref().map(|_| ());
                // It waits for a disk.
                tokio::task::block_in_place(|| {
                    node.audit.add(session.as_deref(), &what, on.trim(), heard);
                });
            }
            outcome
        });
        work.await.unwrap_or_else(|_| Err(proto::error::status(&errors::stopped_midway())))
    }

    /// The same of what is looked at, or changed if `acts`.
    async fn act_if<T, R, F>(
        &self,
        acts: bool,
        request: Request<T>,
        (what, on): (&str, String),
        act: impl FnOnce(Arc<Node>, T) -> F + Send + 'static,
    ) -> Result<Response<R>, Status>
    where
        T: Send + 'static,
        R: Message + 'static,
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        if acts {
            return self.act(request, what, on, act, |_| String::new()).await;
        }
        access::check_known(&self.node, &request)?;
        respond(act(Arc::clone(&self.node), request.into_inner()).await)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn init_cluster(
        &self,
        request: Request<InitClusterRequest>,
    ) -> Result<Response<ClusterView>, Status> {
        let name = request.get_ref().name.clone();
        let act = |node: Arc<Node>, asked| async move {
            membership::init(&node, asked).await?;
            Ok(view::cluster_view(&node, 0))
        };
        self.act(request, "init cluster", name, act, |_| String::new()).await
    }

    async fn get_cluster(
        &self,
        request: Request<GetClusterRequest>,
    ) -> Result<Response<ClusterView>, Status> {
        access::check_known(&self.node, &request)?;
        respond_to_read(Ok(view::cluster_view(&self.node, request.into_inner().events_since)))
    }

    type WatchClusterStream = Pin<Box<dyn Stream<Item = Result<ClusterView, Status>> + Send>>;

    async fn watch_cluster(
        &self,
        request: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        access::check_known(&self.node, &request)?;
        let Ok(place) = Arc::clone(&self.watches).try_acquire_owned() else {
            let many = errors::overloaded("as many watch it as may");
            return Err(proto::error::status(&errors::of_a_read(many)));
        };
        let session = access::session(&request).cloned();
        let request = request.into_inner();
        let interval = match request.interval_ms {
            0 => 1000,
            ms => ms.clamp(250, 60_000),
        };
        // One view ahead at most: a slow reader gets the next one late, not a queue of old ones.
        let (views, stream) = mpsc::channel(1);
        let node = Arc::clone(&self.node);
        let every = Duration::from_millis(interval.into());
        self.node.spawn_here(async move {
            watch(node, views, every, (request.events_since, session)).await;
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_layout(
        &self,
        request: Request<GetLayoutRequest>,
    ) -> Result<Response<LayoutView>, Status> {
        access::check_known(&self.node, &request)?;
        respond_to_read(self.node.cluster().map(|cluster| view::layout_view(&cluster)))
    }

    async fn locate(
        &self,
        request: Request<LocateRequest>,
    ) -> Result<Response<LocateReply>, Status> {
        access::check_known(&self.node, &request)?;
        respond_to_read(locate(&self.node, request.into_inner()))
    }

    async fn create_keyspace(
        &self,
        request: Request<CreateKeyspaceRequest>,
    ) -> Result<Response<Keyspace>, Status> {
        let name = request.get_ref().keyspace.as_ref().map_or(String::new(), |it| it.name.clone());
        let act = |node: Arc<Node>, asked: CreateKeyspaceRequest| async move {
            let asked = asked.keyspace.unwrap_or_default();
            let created = membership::create_keyspace(&node, asked).await;
            created.map(|keyspace| view::wire_keyspace(&keyspace))
        };
        self.act(request, "create keyspace", name, act, |_| String::new()).await
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<ScrubReply>, Status> {
        let (acts, on) = (request.get_ref().start, request.get_ref().node.clone());
        let act = |node: Arc<Node>, asked| async move { scrub::everywhere(&node, asked).await };
        self.act_if(acts, request, ("scrub", on), act).await
    }

    async fn hints(&self, request: Request<HintsRequest>) -> Result<Response<HintsReply>, Status> {
        let asked = request.get_ref();
        let acts = !matches!(asked.action(), HintAction::Unspecified | HintAction::List);
        let what =
            asked.action().as_str_name().to_ascii_lowercase().replace("hint_action_", "hints ");
        let on = format!("{} {}", asked.node, asked.target);
        let act = |node: Arc<Node>, asked| async move { handoff::everywhere(&node, asked).await };
        self.act_if(acts, request, (&what, on), act).await
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcReply>, Status> {
        let acts = request.get_ref().run;
        let act = |node: Arc<Node>, asked| async move { gc::everywhere(&node, asked).await };
        self.act_if(acts, request, ("gc", String::new()), act).await
    }

    async fn compact(
        &self,
        request: Request<CompactRequest>,
    ) -> Result<Response<CompactReply>, Status> {
        let (acts, on) = (request.get_ref().start, request.get_ref().node.clone());
        let act = |node: Arc<Node>, asked| async move { compact::everywhere(&node, asked).await };
        self.act_if(acts, request, ("compact", on), act).await
    }

    async fn certs(&self, request: Request<CertsRequest>) -> Result<Response<CertsReply>, Status> {
        let (acts, on) = (request.get_ref().reload, request.get_ref().node.clone());
        let act = |node: Arc<Node>, asked| async move { certs::everywhere(&node, asked).await };
        if !acts {
            return self.act_if(false, request, ("", on), act).await;
        }
        let failed = |reply: &CertsReply| {
            let failed = reply.nodes.iter().filter(|view| !view.error.is_empty());
            let failed: Vec<String> =
                failed.map(|view| format!("not on {}: {}", view.node, view.error)).collect();
            failed.join("; ")
        };
        self.act(request, "reload certs", on, act, failed).await
    }

    async fn get_partitions(
        &self,
        request: Request<GetPartitionsRequest>,
    ) -> Result<Response<PartitionsReply>, Status> {
        access::check_known(&self.node, &request)?;
        respond_to_read(partitions::everywhere(&self.node, request.into_inner()).await)
    }

    async fn repair(
        &self,
        request: Request<RepairRequest>,
    ) -> Result<Response<RepairReply>, Status> {
        let (acts, on) = (request.get_ref().start, request.get_ref().node.clone());
        let act = |node: Arc<Node>, asked| async move { repair::everywhere(&node, asked).await };
        self.act_if(acts, request, ("repair", on), act).await
    }

    async fn make_plan(&self, request: Request<MakePlanRequest>) -> Result<Response<Plan>, Status> {
        access::check_known(&self.node, &request)?;
        respond_to_read(plans::make(&self.node, request.into_inner()).await)
    }

    async fn apply_plan(&self, request: Request<ApplyPlanRequest>) -> Result<Response<Op>, Status> {
        let asked = request.get_ref();
        let digest: String = asked.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let on = format!("plan {digest} {} by {}", asked.op_id, asked.by);
        let act = |node: Arc<Node>, asked| async move { plans::apply(&node, asked).await };
        let made = |op: &Op| format!("{}: {}", op.id, op.lines.join("; "));
        self.act(request, "apply plan", on, act, made).await
    }

    async fn ops(&self, request: Request<OpsRequest>) -> Result<Response<OpsReply>, Status> {
        let asked = request.get_ref();
        let acts = !matches!(asked.action(), OpsAction::Unspecified | OpsAction::List);
        let what = asked.action().as_str_name().to_ascii_lowercase().replace("ops_action_", "ops ");
        let on = asked.op.clone();
        let act = |node: Arc<Node>, asked| async move { ops::handle(&node, asked).await };
        self.act_if(acts, request, (&what, on), act).await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let what = if request.get_ref().on { "drain" } else { "undrain" };
        let on = request.get_ref().node.clone();
        let act = |node: Arc<Node>, asked| async move { safety::drain(&node, asked).await };
        self.act(request, what, on, act, |_| String::new()).await
    }

    async fn get_safety(
        &self,
        request: Request<GetSafetyRequest>,
    ) -> Result<Response<SafetyReply>, Status> {
        access::check_known(&self.node, &request)?;
        respond_to_read(safety::everything(&self.node, &request.into_inner()))
    }

    async fn read_copy(
        &self,
        request: Request<ReadCopyRequest>,
    ) -> Result<Response<ReadCopyReply>, Status> {
        access::check(&self.node, &request, Right::Read, &request.get_ref().keyspace)?;
        let admitted = coordinator::admit(&self.node)
            .map_err(|refused| proto::error::status(&errors::of_a_read(refused)))?;
        let until = deadline(admitted.since, 0);
        respond_to_read(read_copy(&self.node, request.into_inner(), until).await)
    }
}

async fn watch(
    node: Arc<Node>,
    views: mpsc::Sender<Result<ClusterView, Status>>,
    every: Duration,
    (mut seen, session): (u64, Option<Arc<Session>>),
) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = views.closed() => return, // the reader left, and somebody may wait for its place
        }
        // Its right may have been withdrawn since.
        if let Err(refused) = access::check_known_to(&node, session.as_deref()) {
            let _ = views.send(Err(refused)).await; // the reader may have left
            return;
        }
        let view = view::cluster_view(&node, seen);
        seen = view.events.last().map_or(seen, |event| event.seq);
        if views.send(Ok(view)).await.is_err() {
            return; // the reader left
        }
    }
}

fn locate(node: &Node, request: LocateRequest) -> Result<LocateReply, Failure> {
    let cluster = node.cluster()?;
    let keyspace = coordinator::keyspace(&cluster, &request.keyspace)?;
    let key = Key::new(keyspace.id(), request.key).map_err(|error| errors::key(&error))?;
    let layout = &cluster.layout;
    let partition = layout.partition_of(key.token());
    let (first, last) = Token::range(partition, layout.partition_bits());
    let order = preference(layout, keyspace.n, key.token());
    let homes = order.homes.iter().map(|uid| (uid, false));
    let fallbacks = order.fallbacks.iter().map(|uid| (uid, true));
    let located = homes.chain(fallbacks).filter_map(|(uid, fallback)| {
        let member = layout.member(*uid)?;
        Some(LocatedNode {
            node: member.name.clone(),
            zone: member.zone.clone(),
            address: member.address.clone(),
            state: view::state_of(node, &cluster, *uid).into(),
            fallback,
        })
    });
    Ok(LocateReply {
        token: key.token().to_bytes().to_vec().into(),
        partition,
        range_start: first.to_bytes().to_vec().into(),
        range_end: last.to_bytes().to_vec().into(),
        preference: located.collect(),
        layout: Some(view::layout_ref(layout)),
        viewpoint: cluster.name_of(node.uid),
    })
}

async fn read_copy(
    node: &Arc<Node>,
    request: ReadCopyRequest,
    until: Instant,
) -> Result<ReadCopyReply, Failure> {
    let cluster = node.cluster()?;
    let keyspace = coordinator::keyspace(&cluster, &request.keyspace)?;
    let key = Key::new(keyspace.id(), request.key).map_err(|error| errors::key(&error))?;
    let on = match request.node.as_str() {
        "" => node.uid,
        name => cluster.layout.member_named(name).ok_or_else(|| errors::node_unknown(name))?.uid,
    };
    let name = cluster.name_of(on);
    let lane = (Lane::Requests, on);
    let copy = coordinator::read_copy(node, &cluster, lane, &key, None, until).await;
    let copy = copy.map_err(|error| errors::node_unreachable(&name, &error.text()))?;
    let records = copy.object.siblings().values().cloned().collect();
    let values = value::show(&key, records, until).await?;
    Ok(copy_reply(name, &copy.object, values))
}

/// What the caller is told; `values` are those of all the copy's siblings.
fn copy_reply(node: String, copy: &Object, values: Vec<Bytes>) -> ReadCopyReply {
    let copies = copy.siblings().iter().zip(values).map(|((dot, record), value)| Copy {
        dot: Some(coordinator::wire_dot(*dot)),
        tombstone: record.value.is_none(),
        value,
        written_at_ms: dot.counter.ms(),
    });
    ReadCopyReply {
        node,
        present: !copy.clock().is_empty(),
        copies: copies.collect(),
        clock: copy.clock().to_string(),
        digest: Sha256::digest(copy.encode()).to_vec().into(),
    }
}
