//! Three nodes in 512 MB of memory together, and four times the requests they can answer: how much
//! they still answer, how early they refuse the rest, how much memory they take, and how soon they
//! are as quick as before.
//!
//! `cargo build --release --workspace && cargo bench -p tests --bench overload`
//!
//! Requests come at their rate whether answered or not, from this process, on a core of its own. A second
//! cluster, which is never overloaded, is asked in turn with the first before and after: so what the
//! machine does meanwhile is told apart from what the overload left behind.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use proto::client::Client;
use proto::v1::{ErrorCode, GetRequest, PutRequest};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tests::measure::{cpu_us, keep_apart, number_from_env};
use tests::process::{Cluster, own_address};
use tests::random_bytes;

const MEMORY_BYTES: u64 = 512 * 1024 * 1024;
/// More than requests can be under way.
const KEYS: u64 = 10_000;
const CONCURRENCY: usize = 64;
/// `KVD_BENCH_TIMES`.
const TIMES: u64 = 4;
/// Until files have grown to what they will be, and checkpoints come as they go.
const WARM: Duration = Duration::from_secs(40);
const OVERLOAD: Duration = Duration::from_secs(60);
/// Either cluster is asked for so long, then the other, and so on: so often before, and after.
const TURN: Duration = Duration::from_secs(10);
const TURNS_BEFORE: u64 = 2;
const TURNS_AFTER: u64 = 3;
const DEADLINE_MS: u32 = 1000;
/// Requests that this process has under way at most. More are counted as not made.
const UNDER_WAY_MAX: u64 = 6_000;
const CONNECTIONS_PER_NODE: usize = 8;

/// A memory cgroup of this run; taken away when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(pids: &[u32]) -> Option<Self> {
        let dir = PathBuf::from(format!("/sys/fs/cgroup/memory/kvd-bench-{}", pids[0]));
        fs::create_dir(&dir).ok()?;
        let group = Self(dir);
        fs::write(group.0.join("memory.limit_in_bytes"), MEMORY_BYTES.to_string()).ok()?;
        for pid in pids {
            fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
        }
        Some(group)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let parent = self.0.parent().unwrap().join("cgroup.procs");
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&parent, pid); // it may have ended
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    overloaded: AtomicU64,
    failed: AtomicU64,
    not_made: AtomicU64,
    under_way: AtomicU64,
    refused_us: AtomicU64,
    latencies_us: Mutex<Vec<u64>>,
    /// Of the nodes, while it lasted.
    cpu_us: AtomicU64,
    why: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counts {
    fn line(&self, what: &str, took: Duration, peak: f64) -> f64 {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let goodput = load(&self.ok) as f64 / took.as_secs_f64();
        let mut latencies = self.latencies_us.lock().unwrap().clone();
        latencies.sort_unstable();
        let quantile = |q: f64| {
            latencies
                .get((latencies.len().saturating_sub(1) as f64 * q) as usize)
                .copied()
                .unwrap_or(0)
        };
        let refused = load(&self.overloaded);
        println!(
            "{what:<22} {goodput:>8.0} {:>5.0}% {:>8.0} {:>9.0} {:>7} {:>8} {:>8.1} {:>8.1} {:>10.1}",
            if peak > 0.0 { goodput / peak * 100.0 } else { 100.0 },
            load(&self.cpu_us) as f64 / load(&self.ok).max(1) as f64,
            refused as f64 / took.as_secs_f64(),
            load(&self.failed),
            load(&self.not_made),
            quantile(0.5) as f64 / 1000.0,
            quantile(0.99) as f64 / 1000.0,
            load(&self.refused_us) as f64 / refused.max(1) as f64 / 1000.0,
        );
        for (why, count) in &*self.why.lock().unwrap() {
            println!("{:<22} {count} {why}", "");
        }
        goodput
    }
}

/// What was last heard of each key; one request at a time is made of it, so that puts replace what is
/// there and ask nothing before.
type Contexts = Arc<Vec<tokio::sync::Mutex<bytes::Bytes>>>;

/// What requests are made with.
#[derive(Clone)]
struct Requests {
    clients: Arc<Vec<Client>>,
    value: bytes::Bytes,
    contexts: Contexts,
    made: Arc<AtomicU64>,
    nodes: Arc<Vec<u32>>,
}

impl Requests {
    fn cpu_us(&self) -> u64 {
        self.nodes.iter().map(|pid| cpu_us(*pid)).sum()
    }
}

async fn once(requests: &Requests, counts: &Counts) {
    let number = requests.made.fetch_add(1, Ordering::Relaxed);
    let mut kv = requests.clients[number as usize % requests.clients.len()].kv();
    // Each is put and got.
    let keys = (0..).map(|next| ((number / 2).wrapping_mul(7919) + next) % KEYS);
    let (at, mut context) = keys
        .filter_map(|at| Some((at, requests.contexts[at as usize].try_lock().ok()?)))
        .next()
        .unwrap();
    let key = format!("user:{at:019}").into_bytes().into();
    let started = Instant::now();
    let outcome = if number.is_multiple_of(2) {
        let put = PutRequest {
            key,
            value: requests.value.clone(),
            context: context.clone(),
            timeout_ms: DEADLINE_MS,
            ..Default::default()
        };
        kv.put(put).await.map(|reply| reply.into_inner().context)
    } else {
        let get = GetRequest { key, timeout_ms: DEADLINE_MS, ..Default::default() };
        kv.get(get).await.map(|reply| reply.into_inner().context)
    };
    let outcome = outcome.map(|heard| *context = heard);
    drop(context);
    let took = started.elapsed().as_micros() as u64;
    match outcome {
        Ok(()) => {
            counts.ok.fetch_add(1, Ordering::Relaxed);
            counts.latencies_us.lock().unwrap().push(took);
        }
        Err(status) => {
            let code = proto::error::detail(&status).map(|detail| detail.code());
            if code == Some(ErrorCode::Overloaded) {
                counts.overloaded.fetch_add(1, Ordering::Relaxed);
                counts.refused_us.fetch_add(took, Ordering::Relaxed);
            } else {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                let why = code.map_or("no answer", |code| code.as_str_name());
                *counts.why.lock().unwrap().entry(why).or_default() += 1;
            }
        }
    }
}

/// Each of so many asks again as soon as it has its answer.
async fn closed(requests: &Requests, time: Duration) -> (Counts, Duration) {
    let counts = Arc::new(Counts::default());
    let (started, cpu_before) = (Instant::now(), requests.cpu_us());
    let workers = (0..CONCURRENCY).map(|_| {
        let (requests, counts) = (requests.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            while started.elapsed() < time {
                once(&requests, &counts).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let took = started.elapsed();
    counts.cpu_us.store(requests.cpu_us() - cpu_before, Ordering::Relaxed);
    (Arc::into_inner(counts).unwrap(), took)
}

/// So many a second, whatever becomes of them.
async fn open(requests: &Requests, rate: f64, time: Duration) -> (Counts, Duration) {
    let counts = Arc::new(Counts::default());
    let (started, cpu_before) = (Instant::now(), requests.cpu_us());
    let mut made = 0_u64;
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    while started.elapsed() < time {
        tick.tick().await;
        let due = (started.elapsed().as_secs_f64() * rate) as u64;
        while made < due {
            made += 1;
            if counts.under_way.load(Ordering::Relaxed) >= UNDER_WAY_MAX {
                counts.not_made.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            counts.under_way.fetch_add(1, Ordering::Relaxed);
            let (requests, counts) = (requests.clone(), Arc::clone(&counts));
            tokio::spawn(async move {
                once(&requests, &counts).await;
                counts.under_way.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    while counts.under_way.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = started.elapsed();
    counts.cpu_us.store(requests.cpu_us() - cpu_before, Ordering::Relaxed);
    (Arc::into_inner(counts).unwrap(), took)
}

fn memory_mib(cluster: &Cluster) -> u64 {
    let rss = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    };
    cluster.nodes.iter().map(|node| rss(node.pid())).sum::<u64>() / 1024
}

/// A cluster in memory of its own, and what it is asked with.
struct Side {
    cluster: Cluster,
    requests: Requests,
    _group: Option<Cgroup>,
}

impl Side {
    async fn start() -> Self {
        let cluster = Cluster::start_with(3, |node| {
            own_address(node);
            node.env.push(("KVD_WRITE_BUFFER_MIB", "4".into()));
            node.env.push(("KVD_CLIENT_MIB", "64".into()));
        });
        let nodes: Vec<u32> = cluster.nodes.iter().map(|node| node.pid()).collect();
        let group = Cgroup::new(&nodes);
        match &group {
            Some(_) => println!("all nodes together have {} MiB", MEMORY_BYTES >> 20),
            None => println!("no memory cgroup can be made here: memory is only measured"),
        }
        let mut clients = Vec::new();
        for number in 0..CONNECTIONS_PER_NODE * cluster.nodes.len() {
            let address = [cluster.nodes[number % cluster.nodes.len()].address.clone()];
            clients.push(Client::connect(&address, Duration::from_secs(5)).await.unwrap());
        }
        let requests = Requests {
            clients: Arc::new(clients),
            value: random_bytes(1024).into(),
            contexts: Arc::new((0..KEYS).map(|_| tokio::sync::Mutex::default()).collect()),
            made: Arc::default(),
            nodes: Arc::new(nodes),
        };
        Self { cluster, requests, _group: group }
    }
}

/// Asks both in turn; how much each answered in a second.
async fn both_in_turn(sides: [&Side; 2], turns: u64, when: &str, peaks: [f64; 2]) -> [Vec<f64>; 2] {
    let mut goodputs = [Vec::new(), Vec::new()];
    let began = Instant::now();
    for _ in 0..turns {
        for (at, name) in ["it", "the other"].into_iter().enumerate() {
            let from = began.elapsed().as_secs();
            let (counts, took) = closed(&sides[at].requests, TURN).await;
            goodputs[at].push(counts.line(&format!("{name}, {from} s {when}"), took, peaks[at]));
        }
    }
    goodputs
}

fn mean(all: &[f64]) -> f64 {
    all.iter().sum::<f64>() / all.len() as f64
}

fn main() {
    let times = number_from_env("KVD_BENCH_TIMES", TIMES);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let side = || runtime.block_on(Side::start());
    let (it, other) = (side(), side());
    keep_apart(&[&it.requests.nodes[..], &other.requests.nodes[..]].concat());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = memory_mib(&it.cluster).max(most);
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        });
        runtime.block_on(run([&it, &other], times));
        stop.store(true, Ordering::Relaxed);
        println!("memory of all nodes, at most: {} MiB", most.join().unwrap());
    });
    let lives = |pid: &&u32| fs::exists(format!("/proc/{pid}")).unwrap();
    assert_eq!(it.requests.nodes.iter().filter(lives).count(), 3);
}

async fn run(sides: [&Side; 2], times: u64) {
    println!(
        "                       goodput          cpu us refused/s  failed not made   p50 ms   p99 ms  refused in"
    );
    for side in sides {
        closed(&side.requests, WARM).await; // files grow, checkpoints begin
    }
    let before = both_in_turn(sides, TURNS_BEFORE, "before", [0.0; 2]).await;
    let peaks = [mean(&before[0]), mean(&before[1])];
    let (counts, took) = open(&sides[0].requests, peaks[0] * times as f64, OVERLOAD).await;
    counts.line(&format!("{times} times that, {} s", OVERLOAD.as_secs()), took, peaks[0]);
    let after = both_in_turn(sides, TURNS_AFTER, "after", peaks).await;
    for (turn, goodput) in after[0].iter().enumerate() {
        // Between what the other did just before and just after.
        let beside = mean(&after[1][turn.saturating_sub(1)..=turn]);
        let from = 2 * TURN.as_secs() * turn as u64;
        println!(
            "{from} to {} s after, beside the other: {:.0}%",
            from + TURN.as_secs(),
            goodput / beside * peaks[1] / peaks[0] * 100.0
        );
    }
}
