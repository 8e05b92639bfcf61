//! A real cluster under load: three nodes, N=3 R=2 W=2, 1 KiB values.
//!
//! `cargo build --release --workspace && cargo bench -p tests`
//!
//! CPU per operation, summed over the server processes, is the figure that holds on a shared
//! machine; rates and latencies are of this run on this machine.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use proto::client::Client;
use proto::v1::{GetRequest, PutRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::measure::cpu_us;
use tests::process::Cluster;
use tests::random_bytes;

const RUN: Duration = Duration::from_secs(5);

/// What the servers used.
#[derive(Clone, Copy, Default)]
struct Used {
    cpu_us: u64,
    written_bytes: u64,
}

fn used(cluster: &Cluster) -> Used {
    let mut sum = Used::default();
    for node in &cluster.nodes {
        sum.cpu_us += cpu_us(node.pid());
        let io = std::fs::read_to_string(format!("/proc/{}/io", node.pid())).unwrap();
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
        sum.written_bytes += written.parse::<u64>().unwrap();
    }
    sum
}

#[derive(Clone, Copy, PartialEq)]
enum Op {
    Put,
    Get,
}

/// Puts are of new keys; gets go round those that were put.
struct Load {
    op: Op,
    until: Instant,
    put_so_far: AtomicU64,
    got_so_far: AtomicU64,
}

impl Load {
    async fn work(self: Arc<Self>, client: Client, value: Vec<u8>) -> Vec<u64> {
        let (mut kv, mut latencies) = (client.kv(), Vec::new());
        let key = |i: u64| format!("user:{i:019}").into();
        while Instant::now() < self.until {
            let started = Instant::now();
            match self.op {
                Op::Put => {
                    let key = key(self.put_so_far.fetch_add(1, Ordering::Relaxed));
                    let value = value.clone().into();
                    kv.put(PutRequest { key, value, ..Default::default() }).await.unwrap();
                }
                Op::Get => {
                    let i = self.got_so_far.fetch_add(7919, Ordering::Relaxed);
                    let key = key(i % self.put_so_far.load(Ordering::Relaxed));
                    let got = kv.get(GetRequest { key, ..Default::default() }).await.unwrap();
                    assert_eq!(got.get_ref().siblings.len(), 1);
                }
            }
            latencies.push(started.elapsed().as_micros() as u64);
        }
        latencies
    }
}

fn main() {
    // In the clear, then secured: the difference is what TLS costs.
    for (how, cluster) in
        [("in the clear", Cluster::start(3)), ("by TLS", Cluster::secured_with(3, |_| {}))]
    {
        let clients: Vec<Client> = (0..3).map(|at| cluster.client(at)).collect();
        println!("{how}");
        println!("op    conc     ops/s   p50 us   p99 us   server CPU us/op   bytes written/op");
        let mut put = 0;
        for concurrency in [1, 16, 64] {
            put = measure(&cluster, &clients, Op::Put, concurrency, put);
        }
        for concurrency in [1, 16, 64] {
            measure(&cluster, &clients, Op::Get, concurrency, put);
        }
    }
}

/// One line of the table; returns how many keys there are now.
fn measure(cluster: &Cluster, clients: &[Client], op: Op, concurrency: usize, put: u64) -> u64 {
    let before = used(cluster);
    let started = Instant::now();
    let load = Arc::new(Load {
        op,
        until: started + RUN,
        put_so_far: AtomicU64::new(put),
        got_so_far: AtomicU64::new(0),
    });
    let mut latencies = cluster.block_on(async {
        let start = |at: usize| {
            let client = clients[at % clients.len()].clone();
            tokio::spawn(Arc::clone(&load).work(client, random_bytes(1024)))
        };
        let workers: Vec<_> = (0..concurrency).map(start).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await.unwrap());
        }
        all
    });
    let (took, after) = (started.elapsed(), used(cluster));
    latencies.sort_unstable();
    let ops = latencies.len();
    let quantile = |q: f64| latencies[((ops - 1) as f64 * q) as usize];
    println!(
        "{:<5} {concurrency:>4} {:>9.0} {:>8} {:>8} {:>18.1} {:>18}",
        if op == Op::Put { "put" } else { "get" },
        ops as f64 / took.as_secs_f64(),
        quantile(0.5),
        quantile(0.99),
        (after.cpu_us - before.cpu_us) as f64 / ops as f64,
        (after.written_bytes - before.written_bytes) / ops as u64,
    );
    load.put_so_far.load(Ordering::Relaxed)
}
