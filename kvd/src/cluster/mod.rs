//! The shell: drives the decisions of `dynamo/` over the network. A file is a loop, a send, a
//! deadline.
//!
//! | file | noun |
//! |---|---|
//! | `mod` | the node: who it is, its store, its cluster; one immutable snapshot for every reader |
//! | `peers` | another node, and the two links to it |
//! | `link` | one of those: connect, batch, notice that it broke |
//! | `lane` | the calls that go by one, and their room |
//! | `latency` | how quickly a peer answers requests |
//! | `detector` | who is up: drives the protocol by which nodes find out, and `dynamo::opinion` |
//! | `get`, `put` | one client request: drives `dynamo::read`, `dynamo::write` |
//! | `coordinator` | what both need |
//! | `room` | the room on the disk: watermarks, and the reserve |
//! | `value` | values on their way in and out: compressed, restored, proven |
//! | `scan` | one page of a keyspace |
//! | `scrub` | proves every record, heals what is bad |
//! | `handoff` | gives others what was kept for them |
//! | `partitions` | who holds each partition, and how far behind |
//! | `repair` | compares copies with every peer's, makes them equal |
//! | `vote` | whether this node's copies count in gets |
//! | `gc` | takes away tombstones that every home holds |
//! | `tree` | this node's side of a comparison: sums, digests, fresh checkpoints |
//! | `witness` | what peers remember of each other's starts |
//! | `compact` | has the store give back what is free in its files |
//! | `certs` | which certificates are in force, and reading them again |
//! | `survey` | asking the same of every member |
//! | `membership` | making a cluster, adopting one, exchanging layouts, keyspaces |
//! | `documents` | what is known of the layouts, as it is stored and told |
//! | `moves` | brings copies where the newest layout wants them |
//! | `plans` | what changes would do, and doing it |
//! | `ops` | how that is going |
//! | `overload` | how many requests this node works on at once |
//! | `safety` | which node may be stopped, what other quorums would mean |
//! | `view` | the cluster as this node sees it |
//! | `errors` | every error a client can see |

pub mod address;
pub mod certs;
pub mod compact;
pub mod coordinator;
pub mod detector;
pub mod documents;
pub mod errors;
pub mod gc;
pub mod get;
pub mod handoff;
pub mod lane;
pub mod latency;
pub mod link;
pub mod membership;
pub mod moves;
pub mod ops;
pub mod overload;
pub mod partitions;
pub mod peers;
pub mod plans;
pub mod put;
pub mod repair;
pub mod room;
pub mod safety;
pub mod scan;
pub mod scrub;
pub mod survey;
pub mod tree;
pub mod value;
pub mod view;
pub mod vote;
pub mod whereabouts;
pub mod witness;

use crate::clock;
use crate::door::access::Access;
use crate::door::audit::Audit;
use crate::dynamo::admission;
use crate::dynamo::context::Sealer;
use crate::dynamo::history::History;
use crate::dynamo::layout::Layout;
use crate::dynamo::node::{ClusterId, Uid};
use crate::dynamo::start::Start;
use crate::storage::Store;
use crate::storage::identity::Directory;
use crate::telemetry::{Events, Stats};
use arc_swap::{ArcSwap, ArcSwapOption};
use errors::Failure;
use peers::Peer;
use proto::dial::Dial;
use proto::v1::Stamp;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Client requests this node works on at once, at most. One more is refused as overload; so it is
/// before, where it would wait for too long.
const REQUESTS_MAX: usize = 4096;

/// With so many under way the node is busy, and what it does in the background lets them go first.
const REQUESTS_BUSY: usize = 256;

/// Before each piece of such work it lets them go first for so long, at most: it gets slow, and does
/// not stand still.
const YIELD_MAX: Duration = Duration::from_millis(500);
const YIELD_STEP: Duration = Duration::from_millis(25);

/// How long a request may take when its caller does not say.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(2);

/// The longest deadline a caller may ask for.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// One node of a cluster, or a blank one that waits for a cluster.
pub struct Node {
    /// Its identity, made with its data directory.
    pub uid: Uid,
    /// Where the others reach it.
    pub address: String,
    /// The address its connections to others come from; none: whichever the system takes.
    outgoing: Option<IpAddr>,
    /// What secures its connections.
    pub security: certs::Security,
    /// Which client may do what.
    pub access: ArcSwap<Access>,
    /// What operators did here.
    pub audit: Audit,
    /// Its records.
    pub store: Store,
    /// What it counts.
    pub stats: Stats,
    /// What it saw happen.
    pub events: Events,
    /// Its scrub.
    pub scrub: scrub::Scrub,
    /// What it thinks of the others.
    pub detector: detector::Detector,
    /// What delivers what it keeps for others.
    pub handoff: handoff::Handoff,
    /// Its reaping of tombstones.
    pub gc: gc::Gc,
    /// Whether its copies count in gets.
    pub vote: vote::Vote,
    /// Its comparing of copies with the others.
    pub repair: repair::Repair,
    /// Its moving of copies.
    pub moves: moves::Moves,
    /// What reads of its tree share.
    pub tree: tree::Tree,
    /// Client requests under way.
    pub requests: Semaphore,
    /// How many of them it takes now: see [`overload`].
    pub admitted: AtomicUsize,
    /// How many it has seen through.
    pub answered: AtomicU64,
    /// When it started, Unix milliseconds.
    pub started_at_ms: u64,
    /// The same, for reckoning.
    pub started: Instant,
    /// Set when the node is on its way out: client requests are refused, those under way go on.
    pub draining: AtomicBool,
    /// An operator wants it to take no client requests; it stays a replica.
    pub drained: AtomicBool,
    /// The disk is past its watermark: client puts are refused.
    pub disk_full: AtomicBool,
    /// Ends every loop.
    pub stop: CancellationToken,
    /// The threads on which nodes speak to each other.
    threads: Handle,
    /// Its data directory, and which life of it this is. Locked while a file of it is written: what
    /// every message tells is in `start`.
    directory: Mutex<Directory>,
    start: ArcSwap<Start>,
    cluster: ArcSwapOption<Cluster>,
    /// Held while the cluster or its layout is replaced, so that two changes do not cross.
    changing: tokio::sync::Mutex<()>,
}

/// A node's cluster at one moment. Replaced whole when anything changes.
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its secret, and the id: what contexts are sealed with.
    pub sealer: Sealer,
    secret: [u8; 16],
    /// The facts of the cluster: the newest layout.
    pub layout: Arc<Layout>,
    /// All layouts that count, and how far the nodes have come with them.
    pub history: Arc<History>,
    /// Tells apart what nodes know of them.
    pub digest: u64,
    /// Every other node that has a part: who joins and who leaves too.
    pub peers: BTreeMap<Uid, Arc<Peer>>,
}

impl Node {
    /// A node on this store. It is blank until [`membership`] gives it a cluster. What nodes say to
    /// each other goes by the runtime this is called on.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(
        directory: Directory,
        address: String,
        outgoing: Option<IpAddr>,
        store: Store,
        security: certs::Security,
        access: Access,
    ) -> Arc<Self> {
        Arc::new(Self {
            security,
            access: ArcSwap::from_pointee(access),
            audit: Audit::new(directory.path()),
            uid: directory.uid(),
            vote: vote::Vote::of(&directory),
            start: ArcSwap::from_pointee(directory.start()),
            directory: Mutex::new(directory),
            address,
            outgoing,
            store,
            stats: Stats::default(),
            events: Events::default(),
            scrub: scrub::Scrub::default(),
            detector: detector::Detector::default(),
            handoff: handoff::Handoff::default(),
            repair: repair::Repair::default(),
            gc: gc::Gc::default(),
            moves: moves::Moves::default(),
            tree: tree::Tree::default(),
            requests: Semaphore::new(REQUESTS_MAX),
            admitted: AtomicUsize::new(admission::AT_LEAST),
            answered: AtomicU64::new(0),
            started_at_ms: clock::now_ms(),
            started: clock::now(),
            draining: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
            stop: CancellationToken::new(),
            threads: Handle::current(),
            cluster: ArcSwapOption::empty(),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// Its data directory.
    pub fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This start of it, as it is told to the other members.
    pub fn start(&self) -> Start {
        **self.start.load()
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> Result<Arc<Cluster>, Failure> {
        self.cluster.load_full().ok_or_else(errors::blank)
    }

    /// Its name in the cluster; its address while it is blank.
    pub fn name(&self) -> String {
        let cluster = self.cluster.load();
        let name = cluster.as_ref().map(|cluster| cluster.name_of(self.uid));
        name.unwrap_or_else(|| self.address.clone())
    }

    /// Where a connection to `address` comes from. A name is left to the system, since it may lead to
    /// addresses of another family, and so is an address of one.
    fn outgoing_to(&self, address: &str) -> Option<IpAddr> {
        let to: SocketAddr = address.parse().ok()?;
        self.outgoing.filter(|from| from.is_ipv4() == to.is_ipv4())
    }

    /// How it connects to the node at `address`.
    pub fn dial(&self, address: &str) -> Dial {
        let tls = self.security.tls.as_ref().map(|tls| tls.now().client.clone());
        Dial { tls, from: self.outgoing_to(address) }
    }

    /// Refuses new client requests, and waits for those under way, at most `patience`.
    pub async fn drain(&self, patience: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        let all = self.requests.acquire_many(REQUESTS_MAX as u32);
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("requests are still under way and will be cut off");
        }
    }

    /// Client requests under way.
    pub fn requests_under_way(&self) -> u32 {
        (REQUESTS_MAX - self.requests.available_permits()) as u32
    }

    /// Whether many client requests are under way.
    pub fn is_busy(&self) -> bool {
        REQUESTS_MAX - self.requests.available_permits() >= REQUESTS_BUSY
    }

    /// Waits as long as many client requests are under way, and no longer than half a second.
    pub async fn yield_to_requests(&self) {
        let until = clock::now() + YIELD_MAX;
        while self.is_busy() && clock::now() < until {
            tokio::time::sleep(YIELD_STEP).await;
        }
    }

    /// Runs `task` until it ends or the node stops, on the threads of nodes.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.threads.spawn(async move { stop.run_until_cancelled(task).await });
    }

    /// Runs `work` on the threads of nodes, whether anybody waits for it or not: for what is done to
    /// the cluster, and holds up others meanwhile.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.threads.spawn(work)
    }

    /// As [`Self::spawn`] where the caller runs: for what a request leaves to be done behind its answer. A
    /// client's then stays on the threads of clients.
    pub fn spawn_here(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(task).await });
    }
}

impl Cluster {
    /// The name of a member; the uid of anyone else.
    pub fn name_of(&self, uid: Uid) -> String {
        let named = |layout: &Arc<Layout>| {
            let removed = || layout.removed().get(&uid).map(|removed| removed.name.clone());
            layout.member(uid).map(|member| member.name.clone()).or_else(removed)
        };
        let name = self.history.layouts().iter().rev().find_map(named);
        name.unwrap_or_else(|| uid.to_string())
    }

    /// The names of members, in the order given.
    pub fn names_of<'a>(&self, uids: impl IntoIterator<Item = &'a Uid>) -> Vec<String> {
        uids.into_iter().map(|uid| self.name_of(*uid)).collect()
    }

    /// What every message from `node` to `to` carries.
    pub fn stamp(&self, node: &Node, to: Uid) -> Stamp {
        Stamp {
            cluster_id: self.id.to_bytes().to_vec().into(),
            uid: node.uid.to_bytes().to_vec().into(),
            start: Some(witness::to_wire(node.start())),
            forgot_starts: 0,
            forgot_data: false,
            layout_id: self.layout.id().to_bytes().to_vec().into(),
            layout_depth: self.layout.depth(),
            to_uid: to.to_bytes().to_vec().into(),
            history: self.digest,
        }
    }
}

/// When a request that came at `since` and says `timeout_ms` (0: nothing) must be answered.
pub fn deadline(since: Instant, timeout_ms: u32) -> Instant {
    let timeout = match timeout_ms {
        0 => DEADLINE_DEFAULT,
        ms => Duration::from_millis(ms.into()).min(DEADLINE_MAX),
    };
    since + timeout
}
