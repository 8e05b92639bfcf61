//! What the benchmarks share: keys, a fill, quantiles, and a line about the machine.

use crate::process::Cluster;
use crate::random_bytes;
use bytes::Bytes;
use proto::client::Client;
use proto::v1::PutRequest;
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Puts of a fill that are under way at once.
const FILL_AT_ONCE: usize = 64;

/// A fill goes as fast as the disks do: a put may have to wait for them.
const FILL_TIMEOUT_MS: u32 = 60_000;

/// The key of this number.
pub fn key(i: u64) -> Bytes {
    format!("user:{i:019}").into()
}

/// Puts keys anew, each with so many bytes that no compression makes fewer.
///
/// # Panics
/// If a put fails.
pub fn fill(cluster: &Cluster, clients: &[Client], keys: Range<u64>, bytes: usize) {
    let next = Arc::new(AtomicU64::new(keys.start));
    cluster.block_on(async {
        let worker = |at: usize| {
            let (mut kv, next) = (clients[at % clients.len()].kv(), Arc::clone(&next));
            let (end, value) = (keys.end, Bytes::from(random_bytes(bytes)));
            tokio::spawn(async move {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= end {
                        return;
                    }
                    let (key, value, timeout_ms) = (key(i), value.clone(), FILL_TIMEOUT_MS);
                    let put = PutRequest { key, value, timeout_ms, ..Default::default() };
                    kv.put(put).await.expect("a put of the fill");
                }
            })
        };
        for worker in (0..FILL_AT_ONCE).map(worker).collect::<Vec<_>>() {
            worker.await.expect("a worker of the fill ends by itself");
        }
    });
}

/// In milliseconds, what a share `q` (0 to 1) of these did not exceed: microseconds, sorted. Not a
/// number if there are none.
pub fn quantile_ms(sorted_us: &[u64], q: f64) -> f64 {
    let at = (sorted_us.len().saturating_sub(1) as f64 * q) as usize;
    sorted_us.get(at).map_or(f64::NAN, |us| *us as f64 / 1000.0)
}

/// A number that the environment gives, or else this one.
///
/// # Panics
/// If it is none.
pub fn number_from_env(name: &str, or: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(or, |given| given.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Nodes on the first core, this process on the others: else what it does would be taken from what
/// they can do, and it would see its own delays. Where that cannot be it says so.
pub fn keep_apart(nodes: &[u32]) {
    let pin = |cores: &str, pid: u32| {
        let pinned = Command::new("taskset").args(["-acp", cores, &pid.to_string()]).output();
        pinned.is_ok_and(|output| output.status.success())
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let others = format!("1-{}", cores - 1);
    let apart =
        cores > 1 && nodes.iter().all(|pid| pin("0", *pid)) && pin(&others, std::process::id());
    match apart {
        true => println!("nodes have one core, this process the other {}", cores - 1),
        false => println!("nodes and this process share the cores"),
    }
}

/// Microseconds of processor time that a process has used so far.
///
/// # Panics
/// If it has ended.
pub fn cpu_us(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // After the command's name: field 14 and 15 are user and system time.
    let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    ticks(fields[11]) + ticks(fields[12])
}

/// The same of all processes of the machine together.
///
/// # Panics
/// Where there is no `/proc`.
pub fn cpu_us_of_all() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let fields: Vec<&str> = stat.lines().next().unwrap_or_default().split_whitespace().collect();
    // user, nice, system; after idle and waiting: interrupts.
    [1, 2, 3, 6, 7].into_iter().map(|at| ticks(fields[at])).sum()
}

/// Ticks of 10 ms, in microseconds.
fn ticks(text: &str) -> u64 {
    text.parse::<u64>().expect("a number of ticks") * 10_000
}

/// What figures were measured on, and what else that had to do.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
    };
    let kib = after(&memory, "MemTotal");
    let kib: u64 = kib.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    format!(
        "{cores} cores ({}), {} GiB of memory, load average {}",
        after(&cpu, "model name"),
        kib >> 20,
        load.join(" "),
    )
}
