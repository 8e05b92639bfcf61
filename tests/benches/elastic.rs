//! What adding a node takes, what clients notice of it, and how load follows weight: real nodes,
//! N=3 R=2 W=2.
//!
//! `cargo build --release --workspace && cargo bench -p tests --bench elastic [-- SECTION]`
//!
//! Sections: `grow`, `weight`. From the environment:
//!
//! | variable | what | unless it says |
//! |---|---|---|
//! | `KVD_BENCH_MIB` | values that three nodes hold before a fourth comes | 1024 |
//! | `KVD_BENCH_RATE`, `KVD_BENCH_CLIENTS` | requests a second meanwhile, and who makes them | 500, 8 |
//! | `KVD_BENCH_THROTTLE_MIB` | what a node may receive a second: all of it once more, like that | not done |
//! | `KVD_BENCH_OPS` | requests of each way to ask | 50000 |
//!
//! Rates and latencies are of this run on this machine; compare those of one run with each other.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use bytes::Bytes;
use proto::client::Client;
use proto::token::Token;
use proto::v1::replica_answer::Verdict;
use proto::v1::{
    Change, GetClusterRequest, GetLayoutRequest, GetRequest, LayoutView, NodeStats, NodeView, Op,
    PutRequest, ReplicaAnswer,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::measure::{cpu_us, cpu_us_of_all, fill, key, machine, number_from_env, quantile_ms};
use tests::process::Cluster;
use tests::random_bytes;
use tests::rng::Rng;
use tests::topology::wait_until_done;
use tests::topology::{add, change, op, place, plan, reweight, spread, throttle, try_apply};
use tokio::task::JoinHandle;

const MIB: f64 = 1024.0 * 1024.0;

fn main() {
    let wanted = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    let sections: [(&str, fn()); 2] = [("grow", grow), ("weight", weight)];
    println!("{}", machine());
    for (name, run) in sections {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            println!("\n== {name}");
            run();
        }
    }
    println!("\n{}", machine());
}

// === a fourth node ===

/// Length of the values that move.
const MOVED_BYTES: usize = 16 * 1024;

/// Length of those that clients put meanwhile, and how many keys each client has for them.
const PUT_BYTES: usize = 1024;
const KEYS_OF_A_CLIENT: usize = 500;

/// The load goes on for so long before anything is measured, and is then measured for so long
/// before and after the change.
const LEAD_IN: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(20);

/// How far the copies are is looked at so often, and no change may take longer than this.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const GIVE_UP_AFTER: Duration = Duration::from_secs(1800);

fn grow() {
    grow_at(None);
    let mib = number_from_env("KVD_BENCH_THROTTLE_MIB", 0);
    if mib > 0 {
        println!();
        grow_at(Some(mib));
    }
}

fn grow_at(throttle_mib: Option<u64>) {
    let mib = number_from_env("KVD_BENCH_MIB", 1024);
    let mut cluster = Cluster::start(3);
    let clients: Vec<Client> = (0..3).map(|at| cluster.client(at)).collect();
    let keys = mib * 1024 * 1024 / MOVED_BYTES as u64;
    let began = Instant::now();
    fill(&cluster, &clients, 0..keys, MOVED_BYTES);
    let took = began.elapsed().as_secs_f64();
    println!("filled with {mib} MiB in {took:.1} s: {:.1} MiB/s", mib as f64 / took);
    let n4 = cluster.more();
    if let Some(mib) = throttle_mib {
        throttle(&cluster, &clients[0], mib << 20);
    }
    let addresses = cluster.nodes[..3].iter().map(|node| node.address.clone()).collect();
    let load = Load::start(addresses);
    std::thread::sleep(LEAD_IN);
    let before = Moment::now(&cluster);
    std::thread::sleep(WINDOW);
    // A new one: nobody drove the connections of the others meanwhile, and they are given up.
    let client = cluster.client(0);
    let plan = plan(&cluster, &client, vec![add(&cluster.nodes[n4], "", 0)]);
    let applied = Moment::now(&cluster);
    let started = try_apply(&cluster, &client, &plan, &[]).expect("an operation");
    let moved = watch(&cluster, &client, started, applied.at);
    std::thread::sleep(WINDOW);
    let after = Moment::now(&cluster);
    let (requests, late) = load.stop();
    let held = own_view(&cluster, n4).1.data_bytes;

    let copying = (moved.copied.at - applied.at).as_secs_f64();
    let all = (moved.settled.at - applied.at).as_secs_f64();
    let rate = match moved.throttle {
        0 => "no bound".to_owned(),
        rate => format!("{:.0} MiB/s at most", rate as f64 / MIB),
    };
    println!(
        "n4 fetched {:.0} MiB in {copying:.1} s: {:.1} MiB/s ({rate}); planned {:.0} MiB in {} s; settled after {all:.1} s",
        moved.bytes as f64 / MIB,
        moved.bytes as f64 / MIB / copying,
        plan.bytes_moved as f64 / MIB,
        plan.seconds,
    );
    println!(
        "{} of {} copies moved; n4's files take {:.0} MiB",
        moved.copies,
        plan.copies_total,
        held as f64 / MIB,
    );
    let (rate, workers) = Load::size();
    println!("clients: {workers}, together {rate} requests a second, half gets, half puts");
    println!(
        "{:<22} {:>6} {:>6} {:>6} {:>7}   {:>5} {:>6} {:>6} {:>8} {:>8} {:>8}   {:>6} {:>6}",
        "",
        "s",
        "nodes",
        "others",
        "late ms",
        "",
        "asked",
        "failed",
        "p50 ms",
        "p99 ms",
        "worst",
        "p50 x",
        "p99 x"
    );
    let phases = [
        ("before", &before, &applied),
        ("during", &applied, &moved.settled),
        ("  while copies come", &applied, &moved.copied),
        ("  until it is settled", &moved.copied, &moved.settled),
        ("after", &moved.settled, &after),
    ];
    for (name, from, to) in phases {
        for kind in [Kind::Get, Kind::Put] {
            let usual = Seen::of(&requests, kind, &before, &applied);
            let seen = Seen::of(&requests, kind, from, to);
            let (name, about) = match kind {
                Kind::Get => {
                    (name, format!("{} {:>7.1}", from.until(to), latest_ms(&late, from, to)))
                }
                Kind::Put => ("", String::new()),
            };
            println!("{name:<22} {about:>28}   {}", seen.row(kind, &usual));
        }
    }
    println!("nodes, others: cores that the nodes, and that processes of somebody else, kept busy");
    println!(
        "late: how late a thread of the benchmark woke that only sleeps, at worst; x: times before"
    );
    let during = |it: &&Request| it.due >= applied.at && it.due < moved.settled.at;
    if let Some(longest) = requests.iter().filter(during).max_by_key(|it| it.took) {
        println!(
            "the longest request during it took {:.0} ms, {:.1} s after the plan was applied",
            longest.took.as_secs_f64() * 1000.0,
            (longest.due - applied.at).as_secs_f64(),
        );
    }
    failures(&requests);
}

/// A moment, and the processor time used until then.
struct Moment {
    at: Instant,
    nodes_us: u64,
    others_us: u64,
}

impl Moment {
    fn now(cluster: &Cluster) -> Self {
        let nodes_us = cluster.nodes.iter().map(|node| cpu_us(node.pid())).sum();
        let ours_us = nodes_us + cpu_us(std::process::id());
        Self { at: Instant::now(), nodes_us, others_us: cpu_us_of_all().saturating_sub(ours_us) }
    }

    /// Seconds, and the cores kept busy meanwhile by the nodes and by others.
    fn until(&self, to: &Self) -> String {
        let seconds = (to.at - self.at).as_secs_f64();
        let cores = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6 / seconds;
        let (nodes, others) =
            (cores(self.nodes_us, to.nodes_us), cores(self.others_us, to.others_us));
        format!("{seconds:>6.1} {nodes:>6.2} {others:>6.2}")
    }
}

/// What became of the change.
struct Moved {
    /// When all copies were there, and when nothing of what was before counted any more.
    copied: Moment,
    settled: Moment,
    copies: u64,
    /// As its nodes last told.
    bytes: u64,
    throttle: u64,
}

fn watch(cluster: &Cluster, client: &Client, started: Op, applied: Instant) -> Moved {
    let (mut copied, mut copies, mut bytes) = (None, 0, 0);
    loop {
        let now = op(cluster, client, &started.id).expect("the operation is known");
        copies = copies.max(now.copies_total);
        bytes = bytes.max(now.bytes_done);
        let ended = now.ended_at_ms > 0;
        if copied.is_none() && (ended || copies > 0 && now.copies_done >= copies) {
            copied = Some(Moment::now(cluster));
        }
        if ended && let Some(copied) = copied {
            let settled = Moment::now(cluster);
            return Moved { copied, settled, copies, bytes, throttle: now.throttle };
        }
        assert!(applied.elapsed() < GIVE_UP_AFTER, "it does not end: {now:#?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What a node says of itself: what others know of it is older.
fn own_view(cluster: &Cluster, position: usize) -> (NodeView, NodeStats) {
    let client = cluster.client(position);
    let ask = GetClusterRequest::default();
    let view = cluster.block_on(async { client.admin().get_cluster(ask).await }).unwrap();
    let view = view.into_inner();
    let own = view.nodes.into_iter().find(|node| node.name == view.viewpoint).unwrap();
    let stats = own.stats.clone().unwrap();
    (own, stats)
}

// === a steady load ===

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Get,
    Put,
}

struct Request {
    kind: Kind,
    /// When it was due: one that had to wait for the one before it has been waited for.
    due: Instant,
    took: Duration,
    failed: Option<String>,
}

/// Requests at a steady rate, on threads of their own, whatever becomes of them.
struct Load {
    runtime: tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Vec<Request>>>,
    sleeper: std::thread::JoinHandle<Vec<Late>>,
}

/// When a thread that only sleeps woke, and how much too late: what the machine alone adds.
type Late = (Instant, Duration);

fn sleep_until(stop: &AtomicBool) -> Vec<Late> {
    const NAP: Duration = Duration::from_millis(5);
    let mut late = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + NAP;
        std::thread::sleep(NAP);
        late.push((due, due.elapsed()));
    }
    late
}

fn latest_ms(late: &[Late], from: &Moment, to: &Moment) -> f64 {
    let within = late.iter().filter(|(due, _)| *due >= from.at && *due < to.at);
    within.map(|(_, late)| late.as_secs_f64() * 1000.0).fold(0.0, f64::max)
}

impl Load {
    /// Requests a second, and clients that make them.
    fn size() -> (u32, u32) {
        let number = |name, or| number_from_env(name, or).max(1) as u32;
        (number("KVD_BENCH_RATE", 500), number("KVD_BENCH_CLIENTS", 8))
    }

    /// Returns once every client has put its keys.
    fn start(addresses: Vec<String>) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (rate, clients) = Self::size();
        let every = Duration::from_secs(1) * clients / rate;
        let ready = Arc::new(tokio::sync::Barrier::new(clients as usize + 1));
        let start = |number: u32| {
            let address = addresses[number as usize % addresses.len()].clone();
            let (stop, ready) = (Arc::clone(&stop), Arc::clone(&ready));
            runtime.spawn(async move {
                let mut asker = Asker::new(number, address).await;
                asker.put_all().await;
                ready.wait().await;
                asker.run(every * number / clients, every, &stop).await
            })
        };
        let workers = (0..clients).map(start).collect();
        runtime.block_on(ready.wait());
        let sleeper = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || sleep_until(&stop))
        };
        Self { runtime, stop, workers, sleeper }
    }

    /// All that was asked, once the last is answered, and how the machine was meanwhile.
    fn stop(self) -> (Vec<Request>, Vec<Late>) {
        self.stop.store(true, Ordering::Relaxed);
        let workers = self.workers.into_iter();
        let requests = workers.flat_map(|worker| self.runtime.block_on(worker).unwrap()).collect();
        (requests, self.sleeper.join().unwrap())
    }
}

/// A client with keys that nobody else writes.
struct Asker {
    number: u32,
    client: Client,
    rng: Rng,
    rest_of_value: Vec<u8>,
    puts: u64,
    keys: Vec<Known>,
}

/// What it knows of one of its keys.
#[derive(Clone, Default)]
struct Known {
    context: Bytes,
    /// The last put that was acknowledged.
    put: u64,
}

impl Asker {
    async fn new(number: u32, address: String) -> Self {
        let client = Client::connect(&[address], Duration::from_secs(5)).await.unwrap();
        let rng = Rng::new(Rng::new(number.into()).bits());
        let (rest_of_value, keys) =
            (random_bytes(PUT_BYTES - 8), vec![Known::default(); KEYS_OF_A_CLIENT]);
        Self { number, client, rng, rest_of_value, puts: 0, keys }
    }

    async fn put_all(&mut self) {
        for key in 0..KEYS_OF_A_CLIENT {
            assert_eq!(self.put(key).await, None);
        }
    }

    async fn run(mut self, first: Duration, every: Duration, stop: &AtomicBool) -> Vec<Request> {
        let (mut due, mut requests) = (Instant::now() + first, Vec::new());
        let mut free = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep_until(due.into()).await;
            // That a timer wakes late is not the cluster's doing; that the last took long is.
            let began = if free > due { due } else { Instant::now() };
            let (key, get) = (self.rng.below(KEYS_OF_A_CLIENT), self.rng.percent(50));
            let (kind, failed) = match get {
                true => (Kind::Get, self.get(key).await),
                false => (Kind::Put, self.put(key).await),
            };
            free = Instant::now();
            requests.push(Request { kind, due, took: free - began, failed });
            due += every;
        }
        requests
    }

    fn name(&self, key: usize) -> Bytes {
        format!("client:{}:{key}", self.number).into()
    }

    /// Why it failed, if it did.
    async fn get(&mut self, at: usize) -> Option<String> {
        let ask = GetRequest { key: self.name(at), ..Default::default() };
        match self.client.kv().get(ask).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                let known = &mut self.keys[at];
                known.context = reply.context;
                let put = |value: &Bytes| u64::from_be_bytes(value[..8].try_into().unwrap());
                let newest = reply.siblings.iter().map(|it| put(&it.value)).max();
                let stale = newest.is_none_or(|newest| newest < known.put);
                stale.then(|| "a get did not return what was put".to_owned())
            }
            Err(status) => Some(format!("get: {:?}: {}", status.code(), status.message())),
        }
    }

    async fn put(&mut self, at: usize) -> Option<String> {
        self.puts += 1;
        let value = [&self.puts.to_be_bytes()[..], &self.rest_of_value].concat().into();
        let (key, context) = (self.name(at), self.keys[at].context.clone());
        let ask = PutRequest { key, value, context, ..Default::default() };
        match self.client.kv().put(ask).await {
            Ok(reply) => {
                self.keys[at] = Known { context: reply.into_inner().context, put: self.puts };
                None
            }
            Err(status) => Some(format!("put: {:?}: {}", status.code(), status.message())),
        }
    }
}

/// What clients saw of one kind of request in one phase.
struct Seen {
    sorted_us: Vec<u64>,
    failed: usize,
}

impl Seen {
    fn of(requests: &[Request], kind: Kind, from: &Moment, to: &Moment) -> Self {
        let within = |it: &&Request| it.kind == kind && it.due >= from.at && it.due < to.at;
        let within: Vec<&Request> = requests.iter().filter(within).collect();
        let mut sorted_us: Vec<u64> = within.iter().map(|it| it.took.as_micros() as u64).collect();
        sorted_us.sort_unstable();
        Self { sorted_us, failed: within.iter().filter(|it| it.failed.is_some()).count() }
    }

    fn row(&self, kind: Kind, usual: &Self) -> String {
        let [now, then] =
            [self, usual].map(|seen| [0.5, 0.99, 1.0].map(|q| quantile_ms(&seen.sorted_us, q)));
        format!(
            "{:>5} {:>6} {:>6} {:>8.2} {:>8.2} {:>8.1}   {:>6.2} {:>6.2}",
            if kind == Kind::Get { "gets" } else { "puts" },
            self.sorted_us.len(),
            self.failed,
            now[0],
            now[1],
            now[2],
            now[0] / then[0],
            now[1] / then[1],
        )
    }
}

/// Each way of failing, with how often.
fn failures(requests: &[Request]) {
    let mut ways: BTreeMap<&str, usize> = BTreeMap::new();
    for why in requests.iter().filter_map(|it| it.failed.as_deref()) {
        *ways.entry(why).or_default() += 1;
    }
    println!("{} requests failed in all", ways.values().sum::<usize>());
    ways.iter().take(10).for_each(|(why, count)| println!("  {count} x {why}"));
}

// === load follows weight ===

/// Workers that ask, and bytes of a value.
const AT_ONCE: usize = 32;
const SMALL_BYTES: usize = 128;

/// How a client finds the node that it asks.
#[derive(Clone, Copy)]
enum Way {
    /// The first of its list that answers, as `proto::client` and kvctl do: all have one list.
    First,
    /// Every node in turn, as behind a balancer that knows nothing of weights.
    InTurn,
    /// The first replica of the key, by the layout.
    Replica,
}

const WAYS: [(&str, Way); 3] = [
    ("first of the list", Way::First),
    ("each in turn", Way::InTurn),
    ("key's first replica", Way::Replica),
];

fn weight() {
    println!("of 5 nodes, in one zone:");
    let changes = |weights: &[u32]| {
        let one = |(at, weight): (usize, &u32)| reweight(&format!("n{}", at + 1), *weight);
        weights.iter().enumerate().map(one).collect()
    };
    follow(&[1, 2, 4, 1, 2], changes);
    println!("\nof 12 nodes, in three zones, a copy in each:");
    let changes = |weights: &[u32]| {
        let zone = |at: usize| ["a", "b", "c"][at / 4];
        let one = |(at, weight): (usize, &u32)| place(&format!("n{}", at + 1), zone(at), *weight);
        weights.iter().enumerate().map(one).chain([spread(3)]).collect()
    };
    follow(&[1, 2, 4].repeat(4), changes);
    println!(
        "\nA get is coordinated by the node that is asked, a put by that node if it holds the key, or\n\
         else by the quickest of those that do (of equals by the first in the key's own turn). Which\n\
         copies a get reads goes by how quickly their nodes lately answered the one that was asked. So\n\
         weights govern what nodes hold and write; what they coordinate and read is governed by whom\n\
         clients ask, too. A client that is given one list asks its first node that answers."
    );
}

fn follow(weights: &[u32], changes: impl Fn(&[u32]) -> Vec<Change>) {
    let cluster = Cluster::start(weights.len());
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let clients: Vec<Client> = (0..names.len()).map(|at| cluster.client(at)).collect();
    let all_at_once = change(&cluster, &clients[0], changes(weights));
    wait_until_done(&cluster, &clients[0], &all_at_once.id);
    let layout =
        cluster.block_on(async { clients[0].admin().get_layout(GetLayoutRequest {}).await });
    let layout = Arc::new(layout.unwrap().into_inner());
    let ops = number_from_env("KVD_BENCH_OPS", 50_000);
    let mut tallies = Vec::new();
    for (run, (_, way)) in WAYS.into_iter().enumerate() {
        tallies.push(ask(&cluster, &clients, &layout, way, run as u64 * ops, ops / 2));
    }
    let of_each: Vec<(NodeView, NodeStats)> =
        (0..names.len()).map(|at| own_view(&cluster, at)).collect();

    // A column: what its figures are, and the share of each node.
    let shares = |counts: &[u64]| {
        let sum = counts.iter().sum::<u64>() as f64;
        counts.iter().map(|count| *count as f64 / sum).collect::<Vec<f64>>()
    };
    let fair: Vec<f64> = of_each.iter().map(|(view, _)| view.fair_ratio).collect();
    let copies: Vec<f64> = of_each.iter().map(|(view, _)| view.share_ratio).collect();
    let records: Vec<u64> = of_each.iter().map(|(_, stats)| stats.keys).collect();
    let by_weight: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
    let mut columns = vec![shares(&by_weight), fair.clone(), copies, shares(&records)];
    for tally in &tallies {
        columns.extend(tally.columns().map(shares));
    }
    let head = |of: [&str; 3]| format!("  | {:^31}", of.concat());
    print!("{:<24}{:>31}", "share of each node, %", "");
    WAYS.iter().for_each(|(name, _)| print!("{}", head(["asked: ", name, ""])));
    print!(
        "\n{:<6}{:>6}{:>11}{:>8}{:>8}{:>9}       ",
        "", "weight", "of weights", "fair", "copies", "records"
    );
    WAYS.iter().for_each(|_| {
        print!("  | {:>7}{:>8}{:>8}{:>8}", "asked", "coord.", "reads", "writes");
    });
    println!();
    let line = |name: &str, weight: &str, cells: &[String]| {
        print!(
            "{name:<6}{weight:>6}{:>11}{:>8}{:>8}{:>9}       ",
            cells[0], cells[1], cells[2], cells[3]
        );
        for four in cells[4..].chunks(4) {
            print!("  | {:>7}{:>8}{:>8}{:>8}", four[0], four[1], four[2], four[3]);
        }
        println!();
    };
    for (at, name) in names.iter().enumerate() {
        let cells: Vec<String> =
            columns.iter().map(|column| format!("{:.2}", column[at] * 100.0)).collect();
        line(name, &weights[at].to_string(), &cells);
    }
    let off = |column: &Vec<f64>| {
        let off = column.iter().zip(&fair).map(|(share, fair)| (share / fair - 1.0).abs());
        format!("{:.1}", off.fold(0.0, f64::max) * 100.0)
    };
    line("off", "", &columns.iter().map(off).collect::<Vec<_>>());
    let least = fair.iter().copied().fold(f64::MAX, f64::min);
    println!(
        "off: furthest from fair, % of the fair share. Chance alone puts the lightest node {:.1} % off in \
         {} coordinated puts, {:.1} % in as many keys' writes (two standard deviations)",
        200.0 * ((1.0 - least) / least / (ops / 2) as f64).sqrt(),
        ops / 2,
        200.0 * ((1.0 - least * 3.0) / (least * 3.0) / (ops / 2) as f64).sqrt(),
    );
}

/// How often each node had a part in requests, by position.
struct Tally {
    /// What it counts itself, which kvtop shows: client requests that came to it.
    asked: Vec<u64>,
    /// Puts that it named and sent to the others; a get is coordinated by the node that is asked.
    coordinated: Vec<u64>,
    /// Copies it read for gets, and wrote for puts.
    reads: Vec<u64>,
    writes: Vec<u64>,
}

impl Tally {
    fn columns(&self) -> [&[u64]; 4] {
        [&self.asked, &self.coordinated, &self.reads, &self.writes]
    }
}

/// Puts so many new keys and gets each of them.
fn ask(
    cluster: &Cluster,
    clients: &[Client],
    layout: &Arc<LayoutView>,
    way: Way,
    first: u64,
    count: u64,
) -> Tally {
    let asked = || (0..clients.len()).map(|at| own_view(cluster, at).1).map(|it| it.gets + it.puts);
    let before: Vec<u64> = asked().collect();
    let mut tally = Tally {
        asked: Vec::new(),
        coordinated: vec![0; clients.len()],
        reads: vec![0; clients.len()],
        writes: vec![0; clients.len()],
    };
    let positions: BTreeMap<String, usize> =
        cluster.nodes.iter().enumerate().map(|(at, node)| (node.name.clone(), at)).collect();
    for kind in [Kind::Put, Kind::Get] {
        let next = Arc::new(AtomicU64::new(first));
        cluster.block_on(async {
            let worker = |_| {
                let (clients, next) = (clients.to_vec(), Arc::clone(&next));
                let (layout, positions) = (Arc::clone(layout), positions.clone());
                tokio::spawn(async move {
                    let (mut coordinators, mut parts) = (Vec::new(), Vec::new());
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= first + count {
                            return (coordinators, parts);
                        }
                        let at = match way {
                            Way::First => 0,
                            Way::InTurn => i as usize % clients.len(),
                            Way::Replica => positions[first_replica(&layout, &key(i))],
                        };
                        let (coordinator, replicas) = send(&clients[at], kind, key(i)).await;
                        coordinators.push(positions[&coordinator]);
                        let had_a_part = |it: &&ReplicaAnswer| {
                            !matches!(it.verdict(), Verdict::NotAsked | Verdict::Unspecified)
                        };
                        let names = replicas.iter().filter(had_a_part).map(|it| &it.node);
                        parts.extend(names.map(|name| positions[name]));
                    }
                })
            };
            for worker in (0..AT_ONCE).map(worker).collect::<Vec<_>>() {
                let (coordinators, parts) = worker.await.unwrap();
                if kind == Kind::Put {
                    coordinators.into_iter().for_each(|at| tally.coordinated[at] += 1);
                }
                let counts = if kind == Kind::Get { &mut tally.reads } else { &mut tally.writes };
                parts.into_iter().for_each(|at| counts[at] += 1);
            }
        });
    }
    tally.asked = asked().zip(before).map(|(now, before)| now - before).collect();
    assert_eq!(tally.asked.iter().sum::<u64>(), 2 * count, "nobody else asks");
    tally
}

/// Who coordinated it, and what became of it at each replica.
async fn send(client: &Client, kind: Kind, key: Bytes) -> (String, Vec<ReplicaAnswer>) {
    let (mut kv, explain, timeout_ms) = (client.kv(), true, 30_000);
    match kind {
        Kind::Get => {
            let get = GetRequest { key, explain, timeout_ms, ..Default::default() };
            let reply = kv.get(get).await.unwrap().into_inner();
            assert_eq!(reply.siblings.len(), 1);
            (reply.coordinator, reply.replicas)
        }
        Kind::Put => {
            let value = vec![7; SMALL_BYTES].into();
            let put = PutRequest { key, value, explain, timeout_ms, ..Default::default() };
            let reply = kv.put(put).await.unwrap().into_inner();
            (reply.coordinator, reply.replicas)
        }
    }
}

/// The replica whose turn it is: the partition's row, turned by the token.
fn first_replica<'a>(layout: &'a LayoutView, key: &[u8]) -> &'a str {
    let token = Token::of(key);
    let table = layout.tables.iter().find(|table| table.n == 3).unwrap();
    let partition = token.partition(layout.partition_bits) as usize;
    let turn = (token.0 as u64 % 3) as usize;
    let slot = table.slots[partition * 3 + turn];
    &layout.members[slot as usize].name
}
