//! Three nodes in 512 MB of memory together, and four times the requests they can answer: how much
//! they still answer, how early they refuse the rest, how much memory they take, and how soon they
//! are as quick as before.
//!
//! `cargo build --release --workspace && cargo bench -p tests --bench overload`
//!
//! Requests come at their rate whether answered or not, from this process, on a core of its own. Ratios
//! within one run are what counts.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use proto::client::Client;
use proto::v1::{ErrorCode, GetRequest, PutRequest};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tests::measure::number_from_env;
use tests::process::{Cluster, own_address};
use tests::random_bytes;

const MEMORY_BYTES: u64 = 512 * 1024 * 1024;
/// More than requests can be under way.
const KEYS: u64 = 10_000;
const CONCURRENCY: usize = 64;
/// `KVD_BENCH_TIMES`; 0: no overload, only the time it takes, for comparison.
const TIMES: u64 = 4;
/// Until files have grown to what they will be, and checkpoints come as they go.
const WARM: Duration = Duration::from_secs(90);
const BASELINE: Duration = Duration::from_secs(20);
const OVERLOAD: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(5);
const DEADLINE_MS: u32 = 1000;
/// Requests that this process has under way at most. More are counted as not made.
const UNDER_WAY_MAX: u64 = 6_000;
const CONNECTIONS_PER_NODE: usize = 8;

/// A memory cgroup of this run; taken away when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(pids: &[u32]) -> Option<Self> {
        let dir = PathBuf::from(format!("/sys/fs/cgroup/memory/kvd-bench-{}", std::process::id()));
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
            "{what:<22} {goodput:>8.0} {:>5.0}% {:>9.0} {:>7} {:>8} {:>8.1} {:>8.1} {:>10.1}",
            if peak > 0.0 { goodput / peak * 100.0 } else { 100.0 },
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
}

async fn once(requests: &Requests, counts: &Counts) {
    let number = requests.made.fetch_add(1, Ordering::Relaxed);
    let mut kv = requests.clients[number as usize % requests.clients.len()].kv();
    let keys = (0..).map(|next| (number.wrapping_mul(7919) + next) % KEYS);
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
    let started = Instant::now();
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
    (Arc::into_inner(counts).unwrap(), took)
}

/// So many a second, whatever becomes of them.
async fn open(requests: &Requests, rate: f64, time: Duration) -> (Counts, Duration) {
    let counts = Arc::new(Counts::default());
    let (started, mut made) = (Instant::now(), 0_u64);
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

/// Nodes on the first core, who makes requests on the others: else what it makes would be taken from
/// what they can do, and it would see its own delays. Where that cannot be it says so.
fn keep_apart(nodes: &[u32]) {
    let pin = |cores: &str, pid: u32| {
        let pinned = Command::new("taskset").args(["-acp", cores, &pid.to_string()]).output();
        pinned.is_ok_and(|output| output.status.success())
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let others = format!("1-{}", cores - 1);
    let apart =
        cores > 1 && nodes.iter().all(|pid| pin("0", *pid)) && pin(&others, std::process::id());
    match apart {
        true => println!("nodes have one core, who makes requests the other {}", cores - 1),
        false => println!("nodes and who makes requests share the cores"),
    }
}

fn main() {
    let times = number_from_env("KVD_BENCH_TIMES", TIMES);
    let cluster = Arc::new(Cluster::start_with(3, |node| {
        own_address(node);
        node.env.push(("KVD_WRITE_BUFFER_MIB", "4".into()));
        node.env.push(("KVD_CLIENT_MIB", "64".into()));
    }));
    let pids: Vec<u32> = cluster.nodes.iter().map(|node| node.pid()).collect();
    let group = Cgroup::new(&pids);
    match &group {
        Some(_) => println!("all nodes together have {} MiB", MEMORY_BYTES >> 20),
        None => println!("no memory cgroup can be made here: memory is not limited, only measured"),
    }
    let stop = Arc::new(AtomicBool::new(false));
    let most = {
        let (cluster, stop) = (Arc::clone(&cluster), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = memory_mib(&cluster).max(most);
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        })
    };
    keep_apart(&pids);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for number in 0..CONNECTIONS_PER_NODE * addresses.len() {
            let address = [addresses[number % addresses.len()].clone()];
            clients.push(Client::connect(&address, Duration::from_secs(5)).await.unwrap());
        }
        let requests = Requests {
            clients: Arc::new(clients),
            value: random_bytes(1024).into(),
            contexts: Arc::new((0..KEYS).map(|_| tokio::sync::Mutex::default()).collect()),
            made: Arc::default(),
        };
        println!("                       goodput        refused/s  failed not made   p50 ms   p99 ms  refused in");
        closed(&requests, WARM).await; // files grow, checkpoints begin
        let (counts, took) = closed(&requests, BASELINE).await;
        let peak = counts.line("64 at once", took, 0.0);
        let (counts, took) = match times {
            0 => closed(&requests, OVERLOAD).await,
            _ => open(&requests, peak * times as f64, OVERLOAD).await,
        };
        counts.line(&format!("{times} times that, {} s", OVERLOAD.as_secs()), took, peak);
        for window in 0..6 {
            let (counts, took) = closed(&requests, WINDOW).await;
            let from = window * WINDOW.as_secs();
            counts.line(&format!("{from} to {} s after", from + WINDOW.as_secs()), took, peak);
        }
    });
    stop.store(true, Ordering::Relaxed);
    println!("memory of all nodes, at most: {} MiB", most.join().unwrap());
    assert_eq!(pids.iter().filter(|pid| fs::exists(format!("/proc/{pid}")).unwrap()).count(), 3);
    drop(group);
}
