//! A node in this process for `kvctl` to talk to, and how tests run it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use proto::v1::admin_server::{Admin, AdminServer};
use proto::v1::kv_server::{Kv, KvServer};
use proto::v1::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// An address where nothing listens: port 1 is reserved.
pub(crate) const NOWHERE: &str = "127.0.0.1:1";

pub(crate) fn kvctl(home: &Path, endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command
        .env_clear()
        .env("HOME", home)
        .env("KVCTL_ENDPOINTS", endpoint)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn run(endpoint: &str, args: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    kvctl(home.path(), endpoint, args).output().unwrap()
}

/// A kvctl under way, whose words are read as they come.
pub(crate) struct Going {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: Vec<u8>,
}

impl Going {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, said: Vec::new() }
    }

    /// Waits until it says a line with these words on standard error.
    pub(crate) fn says(&mut self, words: &str) {
        loop {
            let before = self.said.len();
            let read = self.stderr.read_until(b'\n', &mut self.said).unwrap();
            assert!(read > 0, "it ended without {words:?}: {}", text(&self.said));
            if text(&self.said[before..]).contains(words) {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Output {
        self.stderr.read_to_end(&mut self.said).unwrap();
        Output { stderr: self.said, ..self.child.wait_with_output().unwrap() }
    }
}

pub(crate) fn run_with_stdin(endpoint: &str, args: &[&str], stdin: &[u8]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = kvctl(home.path(), endpoint, args);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
pub(crate) fn exits(output: &Output, code: i32) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "stderr: {stderr}");
}

#[track_caller]
pub(crate) fn fails(output: &Output, code: i32) {
    exits(output, code);
    assert!(output.stdout.is_empty(), "a failed command prints no data");
    assert!(!output.stderr.is_empty(), "a failed command says why");
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

pub(crate) fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

/// What a server says first: settings, all as usual.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// An address where HTTP/2 is spoken, and nothing more said than that.
pub(crate) fn says_nothing() -> String {
    speaks_first(|_| std::thread::sleep(Duration::from_secs(60)))
}

/// An address where HTTP/2 is spoken, and hung up on the first request.
pub(crate) fn hangs_up() -> String {
    speaks_first(|mut stream| {
        // The preface, then what the client wants.
        let mut heard = 0;
        while let Ok(read @ 1..) = stream.read(&mut [0; 1024]) {
            heard += read;
            if heard > 100 {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    })
}

fn speaks_first(then: impl Fn(std::net::TcpStream) + Send + std::marker::Copy + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.write_all(SETTINGS);
                then(stream);
            });
        }
    });
    address
}

/// A node that lives as long as the test.
pub(crate) struct Node {
    pub(crate) address: String,
    /// What it was asked to change, and how it takes it.
    pub(crate) plans: Arc<Mutex<Plans>>,
    _runtime: tokio::runtime::Runtime,
}

impl Node {
    pub(crate) fn start(cluster: u8) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let plans: Arc<Mutex<Plans>> = Arc::default();
        let fake = || Fake {
            cluster,
            address: address.clone(),
            values: Mutex::default(),
            plans: plans.clone(),
        };
        let (kv, admin) = (KvServer::new(fake()), AdminServer::new(fake()));
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(kv)
                .add_service(admin)
                .serve_with_incoming(incoming),
        );
        Self { address, plans, _runtime: runtime }
    }
}

struct Fake {
    cluster: u8,
    address: String,
    values: Mutex<State>,
    plans: Arc<Mutex<Plans>>,
}

#[derive(Default)]
struct State {
    counter: u64,
    /// Request id of the put that was turned away.
    drained: Option<bytes::Bytes>,
    keys: BTreeMap<Vec<u8>, Vec<Sibling>>,
}

fn refusal(code: ErrorCode, what: &str) -> Status {
    proto::error::status(&ErrorDetail {
        code: code as i32,
        what: what.into(),
        outcome: Outcome::NotApplied as i32,
        ..Default::default()
    })
}

fn keyspace() -> Keyspace {
    Keyspace {
        name: "default".into(),
        n: 1,
        r: 1,
        w: 1,
        mode: Mode::Sloppy as i32,
        value_bytes_max: 0,
        compression: 0,
    }
}

impl Fake {
    /// A context is the cluster and the last counter seen.
    fn context(&self, counter: u64) -> Vec<u8> {
        let mut context = vec![self.cluster];
        context.extend(counter.to_be_bytes());
        context
    }

    fn seen(&self, context: &[u8]) -> Result<u64, Status> {
        match context {
            [] => Ok(0),
            [cluster, counter @ ..] if *cluster == self.cluster => {
                Ok(u64::from_be_bytes(counter.try_into().unwrap()))
            }
            _ => Err(refusal(ErrorCode::ContextMismatch, "of another cluster")),
        }
    }

    fn covering(&self, siblings: &[Sibling]) -> Vec<u8> {
        let last = siblings.iter().filter_map(|s| s.dot).map(|dot| dot.counter).max();
        last.map_or_else(Vec::new, |last| self.context(last))
    }

    fn write(
        &self,
        key: &[u8],
        context: &[u8],
        value: Option<bytes::Bytes>,
    ) -> Result<WriteReply, Status> {
        let seen = self.seen(context)?;
        let mut state = self.values.lock().unwrap();
        state.counter += 1;
        let counter = state.counter;
        let dot = Dot { actor: 7, counter };
        let siblings = state.keys.entry(key.to_vec()).or_default();
        siblings.retain(|sibling| sibling.dot.is_some_and(|dot| dot.counter > seen));
        if let Some(value) = value {
            let damage = u32::from(key == b"damaged");
            siblings.push(Sibling {
                checksum: crc32fast::hash(&[key, &value].concat()) ^ damage,
                value,
                dot: Some(dot),
                written_at_ms: counter,
                context: self.context(counter).into(),
            });
        }
        Ok(WriteReply {
            context: self.context(counter).into(),
            dot: Some(dot),
            siblings: siblings.len() as u32,
            ..Default::default()
        })
    }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let state = self.values.lock().unwrap();
        let siblings = state.keys.get(request.get_ref().key.as_ref()).cloned();
        let siblings = siblings.unwrap_or_default();
        Ok(Response::new(GetReply {
            context: self.covering(&siblings).into(),
            siblings,
            coordinator: "n1".into(),
            ..Default::default()
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<WriteReply>, Status> {
        let put = request.into_inner();
        assert_eq!(put.request_id.len(), 16);
        if put.w.is_some_and(|w| w > 3) {
            return Err(refusal(ErrorCode::QuorumInvalid, "W must be at most N"));
        }
        if put.key == "draining" {
            let first = self.values.lock().unwrap().drained.replace(put.request_id.clone());
            match first {
                Some(first) => assert_eq!(first, put.request_id),
                None => return Err(refusal(ErrorCode::Draining, "n1 is leaving")),
            }
        }
        self.write(&put.key, &put.context, Some(put.value)).map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<WriteReply>, Status> {
        let delete = request.into_inner();
        self.write(&delete.key, &delete.context, None).map(Response::new)
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanReply>, Status> {
        let scan = request.into_inner();
        let state = self.values.lock().unwrap();
        let mut rest = state
            .keys
            .iter()
            .filter(|(key, _)| key.starts_with(&scan.prefix) && key[..] > scan.cursor[..]);
        let page: Vec<_> = rest.by_ref().take(scan.limit as usize).collect();
        let more = rest.next().is_some();
        let next = page.last().filter(|_| more).map(|(key, _)| (*key).clone());
        let items = page.iter().map(|(key, siblings)| ScanItem {
            key: (*key).clone().into(),
            siblings: (*siblings).clone(),
            context: self.covering(siblings).into(),
        });
        Ok(Response::new(ScanReply {
            items: items.collect(),
            next: next.unwrap_or_default().into(),
            complete: true,
            missing: Vec::new(),
        }))
    }
}

type Watch = std::pin::Pin<
    Box<dyn futures_util::Stream<Item = Result<ClusterView, Status>> + Send + 'static>,
>;

#[tonic::async_trait]
impl Admin for Fake {
    type WatchClusterStream = Watch;

    async fn get_cluster(
        &self,
        _: Request<GetClusterRequest>,
    ) -> Result<Response<ClusterView>, Status> {
        let (verdict, ops, node) = {
            let plans = self.plans.lock().unwrap();
            (plans.verdict.clone(), plans.summaries(), plans.node.clone())
        };
        Ok(Response::new(ClusterView {
            name: "fake".into(),
            id: vec![self.cluster; 16].into(),
            viewpoint: "n1".into(),
            layout: Some(LayoutRef { depth: 1, ..Default::default() }),
            layout_agreed: 1,
            nodes: vec![NodeView {
                name: "n1".into(),
                address: self.address.clone(),
                state: NodeState::Up as i32,
                ..node
            }],
            version: "0.0.0-fake".into(),
            verdict: Some(verdict),
            ops,
            partition_bits: 2,
            observed_at_ms: 1_000_000,
            keyspaces: vec![KeyspaceView {
                keyspace: Some(keyspace()),
                partitions: 4,
                no_margin: 4,
                ..Default::default()
            }],
            live_copies: vec![1, 1, 0, 1].into(),
            ..Default::default()
        }))
    }

    async fn init_cluster(
        &self,
        request: Request<InitClusterRequest>,
    ) -> Result<Response<ClusterView>, Status> {
        let init = request.into_inner();
        if init.name == "taken" {
            return Err(refusal(ErrorCode::ClusterExists, "n1 has a cluster"));
        }
        assert_eq!(init.members.len(), 1);
        self.get_cluster(Request::new(GetClusterRequest::default())).await
    }

    async fn watch_cluster(
        &self,
        _: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn get_layout(
        &self,
        request: Request<GetLayoutRequest>,
    ) -> Result<Response<LayoutView>, Status> {
        let _ = request;
        Ok(Response::new(LayoutView {
            layout: Some(LayoutRef::default()),
            partition_bits: 2,
            members: vec![Member {
                name: "n1".into(),
                address: self.address.clone(),
                zone: "a".into(),
                weight: 1,
                ..Default::default()
            }],
            keyspaces: vec![keyspace()],
            tables: vec![Table { n: 1, slots: vec![0; 4] }],
            ..Default::default()
        }))
    }

    async fn locate(
        &self,
        request: Request<LocateRequest>,
    ) -> Result<Response<LocateReply>, Status> {
        let token = proto::token::Token::of(&request.get_ref().key);
        let partition = token.partition(2);
        let (first, last) = proto::token::Token::range(partition, 2);
        Ok(Response::new(LocateReply {
            token: token.to_bytes().to_vec().into(),
            partition,
            range_start: first.to_bytes().to_vec().into(),
            range_end: last.to_bytes().to_vec().into(),
            preference: vec![LocatedNode {
                node: "n1".into(),
                zone: "a".into(),
                address: "here:1".into(),
                state: NodeState::Up as i32,
                fallback: false,
            }],
            layout: Some(LayoutRef::default()),
            viewpoint: "n1".into(),
        }))
    }

    async fn create_keyspace(
        &self,
        request: Request<CreateKeyspaceRequest>,
    ) -> Result<Response<Keyspace>, Status> {
        let keyspace = request.into_inner().keyspace.unwrap();
        match keyspace.name.as_str() {
            "default" => Err(refusal(ErrorCode::KeyspaceExists, "there is one called default")),
            _ => Ok(Response::new(keyspace)),
        }
    }

    async fn scrub(&self, _: Request<ScrubRequest>) -> Result<Response<ScrubReply>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn hints(&self, _: Request<HintsRequest>) -> Result<Response<HintsReply>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn certs(&self, request: Request<CertsRequest>) -> Result<Response<CertsReply>, Status> {
        let error = match request.get_ref().reload {
            true => "n1.pem cannot be read".into(),
            false => String::new(),
        };
        let view = CertsView { node: "n1".into(), error, ..Default::default() };
        Ok(Response::new(CertsReply { nodes: vec![view] }))
    }

    async fn compact(&self, _: Request<CompactRequest>) -> Result<Response<CompactReply>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn gc(&self, _: Request<GcRequest>) -> Result<Response<GcReply>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn repair(
        &self,
        request: Request<RepairRequest>,
    ) -> Result<Response<RepairReply>, Status> {
        let request = request.into_inner();
        let matched = PairView { peer: "n2".into(), matched_at_ms: 5, ..Default::default() };
        let down = PairView { peer: "n3".into(), error: "not up".into(), ..Default::default() };
        let pairs = if request.node == "n1" { vec![matched] } else { vec![matched, down] };
        let nodes = vec![RepairView { node: "n1".into(), pairs, ..Default::default() }];
        Ok(Response::new(RepairReply { nodes }))
    }

    async fn get_partitions(
        &self,
        request: Request<GetPartitionsRequest>,
    ) -> Result<Response<PartitionsReply>, Status> {
        let partition = |partition: u32| {
            let (first, last) = proto::token::Token::range(partition, 2);
            let replica = ReplicaView {
                node: "n1".into(),
                state: if partition == 2 { NodeState::Down } else { NodeState::Up } as i32,
                since_ms: if partition == 1 { 808_000 } else { 0 },
                known: partition != 3,
                checked_at_ms: if partition == 2 { 0 } else { 940_000 },
                ..Default::default()
            };
            PartitionView {
                partition,
                range_start: first.to_bytes().to_vec().into(),
                range_end: last.to_bytes().to_vec().into(),
                live: u32::from(partition != 2),
                replicas: vec![replica],
            }
        };
        assert!(request.get_ref().node.is_empty() || request.get_ref().node == "n1");
        Ok(Response::new(PartitionsReply {
            observed_at_ms: 1_000_000,
            keyspace: "default".into(),
            n: 1,
            partition_bits: 2,
            arc_bits: 10,
            partitions: (0..4).map(partition).collect(),
            ..Default::default()
        }))
    }

    async fn read_copy(
        &self,
        _: Request<ReadCopyRequest>,
    ) -> Result<Response<ReadCopyReply>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn make_plan(&self, request: Request<MakePlanRequest>) -> Result<Response<Plan>, Status> {
        self.plans.lock().unwrap().make(request.into_inner()).map(Response::new)
    }

    async fn apply_plan(&self, request: Request<ApplyPlanRequest>) -> Result<Response<Op>, Status> {
        self.plans.lock().unwrap().apply(request.into_inner()).map(Response::new)
    }

    async fn ops(&self, request: Request<OpsRequest>) -> Result<Response<OpsReply>, Status> {
        let ops = self.plans.lock().unwrap().ops(request.into_inner())?;
        Ok(Response::new(OpsReply { ops, viewpoint: "n1".into(), ..Default::default() }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let mut plans = self.plans.lock().unwrap();
        plans.drained.push(request.into_inner());
        plans.requests = plans.requests.saturating_sub(1);
        Ok(Response::new(DrainReply { requests: plans.requests }))
    }

    async fn get_safety(
        &self,
        request: Request<GetSafetyRequest>,
    ) -> Result<Response<SafetyReply>, Status> {
        let asked = request.into_inner();
        let mut plans = self.plans.lock().unwrap();
        plans.safety_asked += 1;
        let safe = plans.safe;
        drop(plans);
        let now = QuorumMeaning {
            n: 3,
            r: 2,
            w: 3,
            mode: Mode::Strict as i32,
            puts_fail: 1,
            ..Default::default()
        };
        let then = QuorumMeaning {
            w: asked.w.unwrap_or(now.w),
            r: asked.r.unwrap_or(now.r),
            puts_fail: 0,
            puts_survive: 1,
            overlaps: true,
            ..now
        };
        if asked.keyspace == "nope" {
            return Err(refusal(ErrorCode::KeyspaceUnknown, "there is no keyspace nope"));
        }
        let node = NodeSafety {
            node: "n1".into(),
            safe,
            partitions: if safe { 0 } else { 7 },
            keyspaces: if safe { vec![] } else { vec!["default".into()] },
            ..Default::default()
        };
        Ok(Response::new(SafetyReply {
            nodes: vec![node],
            now: Some(now),
            then: Some(then),
            partitions: 4,
            ..Default::default()
        }))
    }
}

/// What the node was asked to change. Plans are stale once `ring` is another; an operation gets
/// on by a copy whenever it is looked at, unless it is stuck.
pub(crate) struct Plans {
    pub(crate) ring: u64,
    /// The ring changes after every plan that is made.
    pub(crate) restless: bool,
    /// Plans change nothing.
    pub(crate) idle: bool,
    pub(crate) stuck: bool,
    /// The node is of the cluster no more.
    pub(crate) removed: bool,
    pub(crate) safe: bool,
    /// How often it was asked what is safe.
    pub(crate) safety_asked: u32,
    pub(crate) requests: u32,
    pub(crate) verdict: Verdict,
    pub(crate) node: NodeView,
    pub(crate) made: Vec<MakePlanRequest>,
    pub(crate) applied: Vec<ApplyPlanRequest>,
    pub(crate) steered: Vec<OpsRequest>,
    pub(crate) drained: Vec<DrainRequest>,
    pub(crate) running: Vec<Op>,
}

impl Default for Plans {
    fn default() -> Self {
        Self {
            ring: 1,
            restless: false,
            idle: false,
            stuck: false,
            removed: false,
            safe: true,
            safety_asked: 0,
            requests: 0,
            verdict: Verdict {
                level: Level::Ok as i32,
                headline: "all 1 nodes up".into(),
                ..Default::default()
            },
            node: NodeView::default(),
            made: Vec::new(),
            applied: Vec::new(),
            steered: Vec::new(),
            drained: Vec::new(),
            running: Vec::new(),
        }
    }
}

/// Whether a change loses what only a dead node has.
fn loses(change: &Change) -> bool {
    matches!(&change.change, Some(change::Change::Remove(remove)) if remove.dead)
}

impl Plans {
    fn digest(&self) -> bytes::Bytes {
        vec![self.ring as u8; 16].into()
    }

    fn make(&mut self, asked: MakePlanRequest) -> Result<Plan, Status> {
        let names = |change: &Change| match &change.change {
            Some(change::Change::Add(member)) => member.name.clone(),
            Some(change::Change::Remove(remove)) => remove.node.clone(),
            _ => String::new(),
        };
        let named: Vec<String> = asked.changes.iter().map(names).collect();
        if named.iter().any(|name| name == "n9") {
            return Err(refusal(ErrorCode::NodeUnknown, "there is no node n9"));
        }
        if named.iter().any(|name| name == "toofew") {
            return Err(refusal(ErrorCode::PlanRefused, "fewer nodes than N would be left"));
        }
        let dead = asked.changes.iter().any(loses);
        let lines = asked.changes.iter().map(|_| "~ a change".to_owned());
        let plan = Plan {
            digest: self.digest(),
            base: Some(LayoutRef { depth: self.ring, id: self.digest() }),
            cluster: "fake".into(),
            lines: if self.idle { Vec::new() } else { lines.collect() },
            changes: asked.changes.clone(),
            nodes: vec![PlanNode {
                node: "n1".into(),
                weight: 1,
                weight_after: 1,
                share_ratio: 1.0,
                share_ratio_after: 0.5,
                copies: 4,
                copies_after: 2 + self.ring as u32,
                bytes_after: 1 << 30,
                ..Default::default()
            }],
            copies_moved: 2,
            copies_total: 4,
            bytes_moved: 2 << 30,
            seconds: 40,
            bytes_per_second: 60 << 20,
            zones_distinct: true,
            forces: if dead { vec!["data-loss".into()] } else { Vec::new() },
            losses: Vec::new(),
            ..Default::default()
        };
        self.made.push(asked);
        self.ring += u64::from(self.restless);
        Ok(plan)
    }

    fn apply(&mut self, asked: ApplyPlanRequest) -> Result<Op, Status> {
        let known = self.running.iter().find(|op| op.op_id == asked.op_id);
        if let Some(known) = known.filter(|_| !asked.op_id.is_empty()) {
            return Ok(known.clone());
        }
        if asked.digest != self.digest() {
            return Err(refusal(
                ErrorCode::PlanStale,
                "the ring has changed since the plan was made",
            ));
        }
        if asked.changes.iter().any(loses) && !asked.force.contains(&"data-loss".to_owned()) {
            return Err(refusal(ErrorCode::PlanRefused, "data would be lost"));
        }
        let moving = Moving {
            partition: 1,
            state: "copying".into(),
            progress_ratio: 0.5,
            ..Default::default()
        };
        let op = Op {
            id: format!("op-{:08x}", self.running.len() + 1),
            op_id: asked.op_id.clone(),
            by: asked.by.clone(),
            at_ms: 5,
            lines: vec!["~ a change".into()],
            state: OpState::Running as i32,
            copies_total: 3,
            bytes_total: 3 << 20,
            pairs: vec![MovePair {
                from: "n1".into(),
                to: "n2".into(),
                copies_total: 3,
                moving: vec![moving],
                ..Default::default()
            }],
            ..Default::default()
        };
        self.applied.push(asked);
        self.running.push(op.clone());
        Ok(op)
    }

    fn ops(&mut self, asked: OpsRequest) -> Result<Vec<Op>, Status> {
        let (stuck, action) = (self.stuck, asked.action());
        if self.removed {
            return Err(refusal(ErrorCode::Removed, "n1 was removed"));
        }
        if action != OpsAction::List {
            self.steered.push(asked.clone());
        }
        let wanted =
            |op: &&mut Op| asked.op.is_empty() || op.id == asked.op || op.op_id == asked.op;
        let found: Vec<Op> = self
            .running
            .iter_mut()
            .filter(wanted)
            .map(|op| {
                match action {
                    OpsAction::Pause => op.state = OpState::Paused as i32,
                    OpsAction::Resume => op.state = OpState::Running as i32,
                    OpsAction::Throttle => op.throttle = asked.bytes_per_second.unwrap(),
                    _ => look(op, stuck),
                }
                op.clone()
            })
            .collect();
        match found.is_empty() && !asked.op.is_empty() {
            true => Err(refusal(ErrorCode::OpUnknown, "there is no such operation")),
            false => Ok(found),
        }
    }

    fn summaries(&self) -> Vec<OpSummary> {
        let going = |op: &&Op| op.state() != OpState::Done;
        let summary = |op: &Op| OpSummary {
            id: op.id.clone(),
            line: op.lines.join(", "),
            copies_total: op.copies_total,
            copies_done: op.copies_done,
            ..Default::default()
        };
        self.running.iter().filter(going).map(summary).collect()
    }
}

/// An operation gets on by one copy.
fn look(op: &mut Op, stuck: bool) {
    if stuck {
        op.stuck = vec![Stuck {
            keyspace: "default".into(),
            partition: 2,
            node: "n2".into(),
            from: "n1".into(),
            step: "sync".into(),
            why: "disk queue full".into(),
            ..Default::default()
        }];
        return;
    }
    op.copies_done = (op.copies_done + 1).min(op.copies_total);
    op.bytes_done = op.copies_done << 20;
    if op.copies_done == op.copies_total {
        op.state = OpState::Done as i32;
        op.ended_at_ms = 10;
        op.pairs[0].copies_done = op.copies_total;
        op.pairs[0].moving.clear();
    }
}
