//! What clients who behave notice of attackers: three nodes, a steady load, and each kind of attack by
//! itself, then all at once.
//!
//! `cargo build --release --workspace && cargo bench -p tests --bench siege`
//!
//! Attackers have what nodes and clients leave of the processors: as from elsewhere, they take time from
//! the nodes by what they send and not by what they compute. With `KVD_BENCH_APART=1` nodes have one core
//! and the rest is on the others; where that core is full all queue for it. Ratios within one run are
//! what counts.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use rustix::process::setpriority_process;
use rustix::thread::gettid;
use std::time::Duration;
use tests::load::{Load, Options, Summary};
use tests::measure::{cpu_us, cpu_us_of_all, keep_apart, number_from_env};
use tests::process::{Cluster, own_address};
use tests::wire::{ATTACKS, Attack, Siege, talks};

/// The nicest.
const LEAST_PRIORITY: i32 = 19;

fn main() {
    let seconds = |name, or| Duration::from_secs(number_from_env(name, or));
    let (each, all) = (seconds("KVD_BENCH_EACH_SECONDS", 10), seconds("KVD_BENCH_ALL_SECONDS", 60));
    let cluster = Cluster::start_with(3, own_address);
    for via in 0..3 {
        cluster.wait_until_up(via, &["n1", "n2", "n3"]);
    }
    if number_from_env("KVD_BENCH_APART", 0) == 1 {
        keep_apart(&cluster.nodes.iter().map(|node| node.pid()).collect::<Vec<_>>());
    }
    let (recorded, large) = talks(&cluster);
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    println!(
        "{:<14} {:>7} {:>9} {:>9} {:>9} {:>9} {:>12} {:>9} {:>9}",
        "attack",
        "failed",
        "get p50",
        "get p99",
        "put p50",
        "put p99",
        "connections",
        "nodes",
        "machine"
    );
    let measure = |what: &str, attacks: &[Attack], time: Duration| {
        let options = Options { per_second: Some(200), ..Options::default() };
        let load = Load::start(&cluster.nodes, options);
        let siege = (!attacks.is_empty()).then(|| {
            let begin = || {
                // A thread inherits it from the one that starts it.
                setpriority_process(Some(gettid()), LEAST_PRIORITY).unwrap();
                Siege::begin(attacks, addresses.clone(), recorded.clone(), large.clone(), 7)
            };
            std::thread::scope(|scope| scope.spawn(begin).join().unwrap())
        });
        let cpu = || cluster.nodes.iter().map(|node| cpu_us(node.pid())).sum::<u64>();
        let (of_nodes, of_all) = (cpu(), cpu_us_of_all());
        std::thread::sleep(time); // the time that is measured
        let (of_nodes, of_all) = (cpu() - of_nodes, cpu_us_of_all() - of_all);
        let connections = siege.as_ref().map_or(0, Siege::connections);
        let history = load.stop();
        drop(siege);
        let summary = Summary::of(&history);
        let failed = ["get", "put", "delete"].map(|kind| {
            let counts = summary.of_kind(kind);
            counts.failed + counts.indeterminate
        });
        let ms = |kind, part| summary.of_kind(kind).quantile_us(part) as f64 / 1000.0;
        let cores = |us: u64| us as f64 / time.as_micros() as f64;
        println!(
            "{what:<14} {:>7} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {connections:>12} {:>9.2} {:>9.2}",
            failed.iter().sum::<usize>(),
            ms("get", 0.5),
            ms("get", 0.99),
            ms("put", 0.5),
            ms("put", 0.99),
            cores(of_nodes),
            cores(of_all),
        );
    };
    measure("warming up", &[], each);
    measure("none", &[], each);
    for attack in ATTACKS {
        measure(&format!("{attack:?}"), &[attack], each);
    }
    measure("none", &[], each);
    measure("all at once", &ATTACKS, all);
    measure("none", &[], each);
    let downs: usize = cluster.nodes.iter().map(|node| node.log().matches(" down: ").count()).sum();
    println!("ms; cores used by nodes and by all; nodes were thought down {downs} times");
}
