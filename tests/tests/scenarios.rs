//! What may happen to a cluster under load, and what must be so after it: real processes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::eventually;
use tests::load::Options;
use tests::net::{self, Net};
use tests::process::{Cluster, ok, run, text};
use tests::scenario::Scenario;

fn all_answered(ended: &tests::scenario::Ended) {
    for summary in [&ended.sloppy, &ended.strict] {
        for kind in ["get", "put", "delete"] {
            let counts = summary.of_kind(kind);
            assert!(counts.ok > 20, "too few to say anything\n{summary}");
            assert_eq!(counts.failed + counts.indeterminate, 0, "{kind}s failed\n{summary}");
        }
    }
}

#[test]
fn one_of_three_is_killed_twice() {
    let mut scenario = Scenario::start(3);
    for victim in [1, 2] {
        scenario.cluster.nodes[victim].kill();
        scenario.pass(400);
        scenario.cluster.nodes[victim].start();
        scenario.pass(200);
    }
    scenario.end();
}

#[test]
fn one_of_five_is_killed() {
    let mut scenario = Scenario::start(5);
    scenario.cluster.nodes[3].kill();
    scenario.pass(600);
    scenario.cluster.nodes[3].start();
    scenario.pass(200);
    scenario.end();
}

#[test]
fn with_two_of_three_killed_sloppy_goes_on_and_strict_refuses_in_words() {
    let mut scenario = Scenario::start(3);
    scenario.cluster.nodes[1].kill();
    scenario.cluster.nodes[2].kill();
    let cluster = &scenario.cluster;
    eventually("a strict put to be refused at once", || {
        let put = ["put", "-k", "strict", "refused", "v", "--blind"];
        let put = run(cluster.kvctl_via(0, &put));
        let said = text(&put.stderr);
        assert_eq!(put.status.code(), Some(5), "{said}");
        said.contains("nothing was stored and nothing was sent").then_some(())
    });
    for i in 0..20 {
        let key = format!("alone{i}");
        ok(cluster.kvctl_via(0, &["put", &key, "v", "--blind", "--w", "1"]));
        assert_eq!(ok(cluster.kvctl_via(0, &["get", &key, "--r", "1"])), b"v");
    }
    (0..20).for_each(|i| scenario.put_besides(&format!("alone{i}")));
    scenario.pass(100);
    scenario.cluster.nodes[1].start();
    scenario.cluster.nodes[2].start();
    scenario.pass(300);
    scenario.end();
}

#[test]
fn all_are_killed_at_once() {
    let mut scenario = Scenario::start(3);
    scenario.pass(300);
    scenario.cluster.nodes.iter_mut().for_each(tests::process::Node::kill);
    scenario.cluster.nodes.iter_mut().for_each(tests::process::Node::start);
    scenario.pass(300);
    scenario.end();
}

#[test]
fn one_of_three_stands_still_for_ten_seconds() {
    let scenario = Scenario::start(3);
    scenario.cluster.nodes[1].signal(Signal::STOP);
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        scenario.pass(50);
    }
    scenario.cluster.nodes[1].signal(Signal::CONT);
    scenario.pass(300);
    all_answered(&scenario.end());
}

#[test]
fn a_node_that_keeps_hints_is_killed_while_it_hands_them_over() {
    let mut scenario = Scenario::start_with(3, |options| Options { keys: 300, ..options });
    scenario.cluster.nodes[2].kill();
    scenario.pass(800);
    let cluster = &scenario.cluster;
    eventually("n1 to keep something for n3", || (kept(cluster, "n1", "n3") > 0).then_some(()));
    ok(cluster.kvctl_via(0, &["hints", "pause", "--node", "n1"]));
    scenario.cluster.nodes[2].start();
    let cluster = &scenario.cluster;
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let before = kept(cluster, "n1", "n3");
    ok(cluster.kvctl_via(0, &["hints", "resume", "--node", "n1"]));
    let left = eventually("a hint to be handed over", || {
        let left = kept(cluster, "n1", "n3");
        (left < before).then_some(left)
    });
    eprintln!("killed with {left} of {before} hints left");
    scenario.cluster.nodes[0].kill();
    scenario.pass(100);
    scenario.cluster.nodes[0].start();
    scenario.pass(200);
    scenario.end();
}

/// Keys that one node keeps for another.
fn kept(cluster: &Cluster, node: &str, target: &str) -> u64 {
    let listed = run(cluster.kvctl_via(0, &["hints", "list", "--node", node, "-o", "json"]));
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let hints = listed["data"].as_array().unwrap().iter();
    let of = hints.filter(|hint| hint["target"] == target);
    of.map(|hint| hint["keys"].as_str().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_node_is_wiped() {
    let mut scenario = Scenario::start(3);
    scenario.pass(200);
    scenario.cluster.nodes[1].kill();
    std::fs::remove_dir_all(scenario.cluster.nodes[1].data_dir.join("store")).unwrap();
    scenario.pass(200);
    scenario.cluster.nodes[1].start();
    scenario.pass(400);
    scenario.end();
}

#[test]
fn a_node_is_put_back_from_an_older_copy() {
    // No deletes: what was deleted and reaped since the copy was made is back with it, as a write
    // that this node alone has.
    let change = |options| Options { delete_percent: 0, ..options };
    let mut scenario = Scenario::start_with(3, change);
    let data = scenario.cluster.nodes[1].data_dir.clone();
    let backup = tempfile::tempdir().unwrap();
    assert!(scenario.cluster.nodes[1].stop().success());
    copy_dir(&data, backup.path());
    scenario.cluster.nodes[1].start();
    scenario.pass(400);
    scenario.cluster.nodes[1].kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_dir(backup.path(), &data);
    scenario.cluster.nodes[1].start();
    scenario.pass(400);
    scenario.end();
}

#[test]
fn keys_are_deleted_while_a_replica_is_away() {
    let change = |options| Options { delete_percent: 60, keys: 60, ..options };
    let mut scenario = Scenario::start_with(3, change);
    scenario.pass(200);
    scenario.cluster.nodes[2].kill();
    scenario.pass(800);
    scenario.cluster.nodes[2].start();
    scenario.pass(200);
    scenario.end();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

// === in a network of their own ===

/// Load on nodes in a private network.
fn start_in(net: &Net, nodes: usize) -> Scenario {
    Scenario::on(net.cluster_with(nodes, tests::scenario::prepare), |options| options)
}

#[test]
fn halves_are_cut_apart_and_both_take_writes() {
    net::within(|net| {
        let mut scenario = start_in(net, 4);
        scenario.put_besides("both");
        net.split(&[0, 1], &[2, 3]);
        for (via, value) in [(0, "one side"), (2, "the other")] {
            // Two nodes are W of any key, whichever are its homes.
            eventually("a write on each side", || {
                let put = ["put", "both", value, "--blind", "--w", "2"];
                run(scenario.cluster.kvctl_via(via, &put)).status.success().then_some(())
            });
        }
        scenario.pass(800);
        net.heal();
        scenario.pass(200);
        eventually("both values on every side", || {
            let got =
                run(scenario.cluster.kvctl_via(3, &["get", "both", "--r", "3", "-o", "json"]));
            let got: serde_json::Value = serde_json::from_slice(&got.stdout).ok()?;
            (got["siblings"].as_array()?.len() >= 2).then_some(())
        });
        let ended = scenario.end();
        let kept = ended.sloppy.of_kind("put");
        assert!(kept.ok > 50 * (kept.failed + kept.indeterminate), "{}", ended.sloppy);
    });
}

#[test]
fn what_one_node_sends_another_is_lost() {
    net::within(|net| {
        let scenario = start_in(net, 3);
        net.cut_one_way(0, 1);
        scenario.pass(1200);
        net.heal();
        scenario.pass(200);
        all_answered(&scenario.end());
    });
}

#[test]
fn only_one_node_reaches_all_others() {
    net::within(|net| {
        let scenario = start_in(net, 5);
        net.split(&[0, 1], &[3, 4]);
        scenario.pass(800);
        net.heal();
        scenario.pass(200);
        scenario.end();
    });
}

#[test]
fn a_fifth_of_all_packets_is_lost() {
    net::within(|net| {
        let scenario = start_in(net, 3);
        net.lossy(20);
        scenario.pass(400);
        net.heal();
        scenario.pass(200);
        scenario.end();
    });
}
