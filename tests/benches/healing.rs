//! What healing takes, and what clients notice of it: three real nodes, N=3 R=2 W=2.
//!
//! `cargo build --release --workspace && cargo bench -p tests --bench healing [-- SECTION]`
//!
//! Sections: `pause`, `overload`, `hints`, `converge`, `compare`. Rates and latencies are of this run on this
//! machine; compare those of one run with each other.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use proto::client::Client;
use proto::v1::{
    GetRequest, HintAction, HintsRequest, NodeState, PairView, PutRequest, RepairRequest,
};
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tests::measure::{cpu_us, fill, key};
use tests::process::Cluster;
use tests::random_bytes;

const WINDOW: Duration = Duration::from_secs(10);

/// Workers of the load that notices, and how often each does something: 2,000 operations a second.
const WORKERS: usize = 16;
const EVERY: Duration = Duration::from_millis(8);

/// Nothing is compared by itself: the benchmark says when.
fn start() -> Cluster {
    Cluster::start_with(3, |node| node.env = vec![("KVD_REPAIR_EVERY", "off".into())])
}

fn main() {
    let wanted = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    let sections: [(&str, fn()); 5] = [
        ("pause", pause),
        ("overload", overload),
        ("hints", hints),
        ("converge", converge),
        ("compare", compare),
    ];
    for (name, run) in sections {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            println!("== {name}");
            run();
        }
    }
}

// === a replica stands still ===

fn pause() {
    let cluster = start();
    let clients = [cluster.client(0), cluster.client(2)];
    fill(&cluster, &clients, 0..10_000, 1024);
    let healthy = notice(&clients, 10_000, Instant::now);
    healthy.print("all up");
    cluster.nodes[1].signal(Signal::STOP);
    let paused = notice(&clients, 10_000, Instant::now);
    cluster.nodes[1].signal(Signal::CONT);
    paused.print("one stands still");
    println!("p99 {:.1} times that with all up", paused.p99() / healthy.p99());
    notice(&clients, 10_000, Instant::now).print("it goes on");
}

// === far more than the cluster can do ===

/// So many requests at once are what it does best; so many more are far too many: those that are
/// refused are asked again at once.
const ENOUGH: usize = 64;
const TOO_MANY: usize = 12_000;

fn overload() {
    const STEADY: Duration = Duration::from_secs(30);
    let cluster = start();
    // Its second half: a cluster that has just begun has no checkpoints to make.
    let before = rush(&cluster, ENOUGH, STEADY * 2, 0);
    let usual = mean(&before.by_second[30..60]);
    println!("{ENOUGH} at once: {usual:.0} answered a second");
    let during = rush(&cluster, TOO_MANY, Duration::from_secs(60), 1);
    println!(
        "{TOO_MANY} at once for 60 s: {:.0} % of that, {:.0} a second refused as overload, {:.0} failed otherwise",
        mean(&during.by_second[..60]) / usual * 100.0,
        during.refused as f64 / 60.0,
        during.failed as f64 / 60.0,
    );
    let after = rush(&cluster, ENOUGH, STEADY * 2, 2);
    for (from, to) in [(0, 1), (1, 5), (5, 10), (10, 20), (20, 30), (30, 60)] {
        let part = mean(&after.by_second[from..to]) / usual * 100.0;
        println!("{from:>3} to {to} s later: {part:.0} %");
    }
}

fn mean(counts: &[u64]) -> f64 {
    counts.iter().sum::<u64>() as f64 / counts.len() as f64
}

#[derive(Default)]
struct Rush {
    /// Answered, in each second.
    by_second: Vec<u64>,
    refused: u64,
    failed: u64,
}

/// Half gets, half puts, of so many workers that never rest.
fn rush(cluster: &Cluster, workers: usize, time: Duration, run: u64) -> Rush {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let started = Instant::now();
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    let mut sum = Rush { by_second: vec![0; time.as_secs() as usize + 1], ..Rush::default() };
    let seconds = sum.by_second.len();
    runtime.block_on(async {
        let mut clients = Vec::new();
        // No connection has room for more than some thousand requests.
        for at in 0..workers.div_ceil(1000).max(3) {
            let address = [addresses[at % addresses.len()].clone()];
            clients.push(Client::connect(&address, Duration::from_secs(10)).await.unwrap());
        }
        let worker = |number: usize| {
            let mut kv = clients[number % clients.len()].kv();
            let value = bytes::Bytes::from(vec![7; 1024]);
            tokio::spawn(async move {
                let mut rush = Rush { by_second: vec![0; seconds], ..Rush::default() };
                for step in 0_u64.. {
                    if started.elapsed() > time {
                        break;
                    }
                    let key = key((step * 7919 + number as u64 * 104_729 + run) % 100_000);
                    let outcome = match step % 2 {
                        0 => kv.get(GetRequest { key, ..Default::default() }).await.map(drop),
                        _ => {
                            let key = format!("{run}:{number}:{step}").into();
                            let put =
                                PutRequest { key, value: value.clone(), ..Default::default() };
                            kv.put(put).await.map(drop)
                        }
                    };
                    match outcome {
                        Ok(()) => {
                            let second = started.elapsed().as_secs() as usize;
                            rush.by_second[second.min(seconds - 1)] += 1;
                        }
                        Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                            rush.refused += 1;
                        }
                        Err(_) => rush.failed += 1,
                    }
                }
                rush
            })
        };
        for worker in (0..workers).map(worker).collect::<Vec<_>>() {
            let rush = worker.await.unwrap();
            sum.by_second.iter_mut().zip(rush.by_second).for_each(|(sum, count)| *sum += count);
            sum.refused += rush.refused;
            sum.failed += rush.failed;
        }
    });
    sum
}

// === hints ===

fn hints() {
    const KEYS: u64 = 20_000;
    let mut cluster = start();
    let clients = [cluster.client(0), cluster.client(1)];
    cluster.nodes[2].kill();
    wait_for_state(&cluster, &clients[0], NodeState::Down);
    fill(&cluster, &clients, 0..KEYS, 1024);
    cluster.nodes[2].start();
    wait_for_state(&cluster, &clients[0], NodeState::Up);
    let started = Instant::now();
    until(|| kept(&cluster, &clients[0]) == 0);
    let took = started.elapsed().as_secs_f64();
    println!(
        "{KEYS} hints of 1 KiB handed over in {took:.1} s: {:.0} a second",
        KEYS as f64 / took
    );
}

// === a replica lacks what no hint was kept for ===

fn converge() {
    const KEYS: u64 = 100_000;
    let mut cluster = start();
    let clients = [cluster.client(0), cluster.client(1)];
    fill(&cluster, &clients, 0..KEYS, 1024);
    let healthy = notice(&clients, KEYS, Instant::now);
    for (from, missing) in [(KEYS, 5_000), (2 * KEYS, 50_000)] {
        lose(&mut cluster, &clients, from..from + missing, 1024);
        let started = Instant::now();
        repair_start(&cluster, &clients[0], "");
        let busy = notice(&clients, KEYS, || {
            until(|| all_matched(&cluster, &clients[0], started));
            Instant::now()
        });
        let took = (busy.ended - started).as_secs_f64();
        println!("{missing} of {KEYS} keys missing on one: all pairs equal after {took:.1} s");
        healthy.print("before it");
        busy.print("meanwhile");
        println!("p99 {:.1} times that before", busy.p99() / healthy.p99());
    }
}

// === what a comparison costs ===

fn compare() {
    const KEYS: u64 = 1_000_000;
    let mut cluster = start();
    let clients = [cluster.client(0), cluster.client(1)];
    fill(&cluster, &clients, 0..KEYS, 64);
    println!("differing of {KEYS}   round n1~n3 s   CPU of all nodes s   repaired");
    for (from, differing) in [(KEYS, 0), (KEYS, 10), (2 * KEYS, 10_000)] {
        lose(&mut cluster, &clients, from..from + differing, 64);
        // One round before, so that no checkpoint of the load is left to be made.
        if differing == 0 {
            a_round(&cluster, &clients[0]);
        }
        let cpu = cpu_us_of(&cluster);
        let round = a_round(&cluster, &clients[0]);
        println!(
            "{differing:>12}           {:>8.2}   {:>16.2}   {:>12}",
            (round.ended_at_ms - round.started_at_ms) as f64 / 1000.0,
            (cpu_us_of(&cluster) - cpu) as f64 / 1e6,
            round.repaired_last,
        );
    }
}

/// Has n1 compare with its peers; returns the round with n3.
fn a_round(cluster: &Cluster, client: &Client) -> PairView {
    let pair = || pairs(cluster, client).into_iter().find(|(n, p)| n == "n1" && p.peer == "n3");
    let before = pair().unwrap().1.rounds;
    repair_start(cluster, client, "n1");
    until(|| pair().is_some_and(|(_, pair)| pair.rounds > before && !pair.running));
    let (_, round) = pair().unwrap();
    assert!(round.error.is_empty(), "{}", round.error);
    round
}

// === what the sections share ===

/// Writes keys while n3 is away, and drops what is kept of them for it.
fn lose(cluster: &mut Cluster, clients: &[Client], keys: std::ops::Range<u64>, bytes: usize) {
    cluster.nodes[2].kill();
    wait_for_state(cluster, &clients[0], NodeState::Down);
    fill(cluster, clients, keys, bytes);
    for node in ["n1", "n2"] {
        let action = HintAction::Drop.into();
        let ask = HintsRequest { action, node: node.into(), target: "n3".into() };
        cluster.block_on(async { clients[0].admin().hints(ask).await }).unwrap();
    }
    until(|| kept(cluster, &clients[0]) == 0);
    cluster.nodes[2].start();
    wait_for_state(cluster, &clients[0], NodeState::Up);
    wait_for_state(cluster, &clients[1], NodeState::Up);
}

/// Keys kept for n3, by n1 and n2.
fn kept(cluster: &Cluster, client: &Client) -> u64 {
    let ask = HintsRequest { action: HintAction::List.into(), ..Default::default() };
    let reply = cluster.block_on(async { client.admin().hints(ask).await }).unwrap().into_inner();
    reply.nodes.iter().flat_map(|node| &node.hints).map(|hint| hint.keys).sum()
}

fn wait_for_state(cluster: &Cluster, client: &Client, state: NodeState) {
    until(|| {
        let ask = proto::v1::GetClusterRequest::default();
        let view = cluster.block_on(async { client.admin().get_cluster(ask).await }).unwrap();
        view.get_ref().nodes.iter().any(|node| node.name == "n3" && node.state() == state)
    });
}

fn repair_start(cluster: &Cluster, client: &Client, node: &str) {
    let ask = RepairRequest { start: true, node: node.into() };
    cluster.block_on(async { client.admin().repair(ask).await }).unwrap();
}

fn pairs(cluster: &Cluster, client: &Client) -> Vec<(String, PairView)> {
    let ask = RepairRequest::default();
    let reply = cluster.block_on(async { client.admin().repair(ask).await }).unwrap().into_inner();
    let of = |node: proto::v1::RepairView| {
        let name = node.node;
        node.pairs.into_iter().map(move |pair| (name.clone(), pair)).collect::<Vec<_>>()
    };
    reply.nodes.into_iter().flat_map(of).collect()
}

/// Whether every pair has found all equal in a round that began after `since`.
fn all_matched(cluster: &Cluster, client: &Client, since: Instant) -> bool {
    let since = std::time::SystemTime::now() - since.elapsed();
    let since = since.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let pairs = pairs(cluster, client);
    pairs.len() == 6 && pairs.iter().all(|(_, pair)| pair.matched_at_ms >= since)
}

fn until(mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(300);
    while !is_so() {
        assert!(Instant::now() < give_up, "waited in vain");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn cpu_us_of(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().map(|node| cpu_us(node.pid())).sum()
}

/// What clients saw for a while.
struct Noticed {
    ended: Instant,
    latencies_us: Vec<u64>,
    failed: usize,
}

impl Noticed {
    fn quantile(&self, q: f64) -> f64 {
        let at = ((self.latencies_us.len() - 1) as f64 * q) as usize;
        self.latencies_us[at] as f64 / 1000.0
    }

    fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    fn print(&self, when: &str) {
        println!(
            "{when:<18} {:>6} operations, {} failed, p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
            self.latencies_us.len(),
            self.failed,
            self.quantile(0.5),
            self.p99(),
            self.quantile(1.0),
        );
    }
}

/// Half gets of `keys` keys, half puts of new ones, 2,000 a second, for [`WINDOW`] and as long as `meanwhile`
/// takes.
fn notice(clients: &[Client], keys: u64, meanwhile: impl FnOnce() -> Instant) -> Noticed {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let run = std::time::UNIX_EPOCH.elapsed().unwrap();
    let (started, stop) = (Instant::now(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let addresses: Vec<String> = clients.iter().map(|it| it.endpoint().to_owned()).collect();
    let worker = |number: usize| {
        let (address, stop) = (addresses[number % addresses.len()].clone(), Arc::clone(&stop));
        runtime.spawn(async move {
            let client = Client::connect(&[address], Duration::from_secs(5)).await.unwrap();
            let (mut kv, value) = (client.kv(), bytes::Bytes::from(random_bytes(1024)));
            let (mut latencies, mut failed) = (Vec::new(), 0);
            let mut tick = tokio::time::interval(EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for step in 0.. {
                tick.tick().await;
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = match step % 2 {
                    0 => key((step * 7919 + number as u64 * 104_729) % keys),
                    _ => format!("{}:{number}:{step}", run.as_nanos()).into(),
                };
                let began = Instant::now();
                let ok = match step % 2 {
                    0 => kv.get(GetRequest { key, ..Default::default() }).await.is_ok(),
                    _ => {
                        let value = value.clone();
                        kv.put(PutRequest { key, value, ..Default::default() }).await.is_ok()
                    }
                };
                latencies.push(began.elapsed().as_micros() as u64);
                failed += usize::from(!ok);
            }
            (latencies, failed)
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(worker).collect();
    let ended = meanwhile();
    std::thread::sleep(WINDOW.saturating_sub(started.elapsed()));
    stop.store(true, Ordering::Relaxed);
    let (mut latencies_us, mut failed) = (Vec::new(), 0);
    for worker in workers {
        let (latencies, failures) = runtime.block_on(worker).unwrap();
        latencies_us.extend(latencies);
        failed += failures;
    }
    latencies_us.sort_unstable();
    Noticed { ended, latencies_us, failed }
}
