//! Nodes that lost data, and count in no get until they are level: real clusters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::process::Signal;
use serde_json::Value;
use std::path::Path;
use tests::eventually;
use tests::process::{Cluster, ok, run, text};

const KEYS: usize = 40;

/// Three nodes, a strict keyspace, and keys in it whose newest value is on n1 and n2 alone. n1 and
/// n3 are down.
fn written_to_two() -> Cluster {
    // Nothing but the vote makes n2 compare.
    let mut cluster = all_off();
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    put_all(&cluster, "old");
    cluster.nodes[2].kill();
    put_all(&cluster, "new");
    cluster.nodes[0].kill();
    cluster
}

fn put_all(cluster: &Cluster, value: &str) {
    for i in 0..KEYS {
        ok(cluster.kvctl_via(1, &["put", "-k", "strict", &format!("k{i}"), value]));
    }
}

fn get(cluster: &Cluster, via: usize, i: usize) -> (Option<i32>, Vec<u8>) {
    let get = ["get", "-k", "strict", &format!("k{i}"), "--timeout", "2s"];
    let got = run(cluster.kvctl_via(via, &get));
    (got.status.code(), got.stdout)
}

/// Starts n2 on what is left of its data, with n3, which missed the newest values: no get may show
/// an older one or none. Then n1, which has them, returns.
fn no_get_forgets(cluster: &mut Cluster) {
    cluster.nodes[2].start();
    cluster.nodes[1].start();
    cluster.wait_until_up(1, &["n2", "n3"]);
    // Through the node itself, and through one that asks it.
    for (i, via) in (0..KEYS).flat_map(|i| [(i, 1), (i, 2)]) {
        let (code, shown) = get(cluster, via, i);
        // Refused, or, on a machine that stands still, too late.
        let none = [Some(5), Some(7)].contains(&code) && shown.is_empty();
        assert!(none || shown == b"new", "k{i}: {code:?} {}", text(&shown));
    }
    for via in [1, 2] {
        let dump = run(cluster.kvctl_via(via, &["dump", "-k", "strict", "--timeout", "5s"]));
        assert_ne!(dump.status.code(), Some(0), "a walk that lacks writes says so");
    }
    let status = text(&ok(cluster.kvctl_via(1, &["status"])));
    assert!(status.contains("n2 lost data and has no vote until it is level"), "{status}");

    cluster.nodes[0].start();
    eventually("n2 to vote again", || {
        let shown = run(cluster.kvctl_via(2, &["nodes", "show", "n2", "-o", "json"]));
        let shown: Value = serde_json::from_slice(&shown.stdout).ok()?;
        (shown["data"]["lost_data"] == false).then_some(())
    });
    // Without n1, n2 holds what it had lost.
    cluster.nodes[0].kill();
    for i in 0..KEYS {
        let shown = eventually("a get through n2 and n3", || {
            let (code, shown) = get(cluster, 1, i);
            (code == Some(0)).then_some(shown)
        });
        assert_eq!(text(&shown), "new", "k{i}");
    }
    let log = cluster.nodes[1].log();
    assert!(log.contains("gets count this node again"), "{log}");
}

#[test]
fn a_wiped_node_has_no_vote_until_it_is_level() {
    let mut cluster = written_to_two();
    assert!(cluster.nodes[1].stop().success());
    std::fs::remove_dir_all(cluster.nodes[1].data_dir.join("store")).unwrap();
    no_get_forgets(&mut cluster);
}

#[test]
fn a_node_on_an_older_database_has_no_vote_until_it_is_level() {
    let mut cluster = all_off();
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    put_all(&cluster, "old");
    let store = cluster.nodes[1].data_dir.join("store");
    let backup = tempfile::tempdir().unwrap();
    assert!(cluster.nodes[1].stop().success());
    copy_files(&store, backup.path());
    cluster.nodes[1].start();
    cluster.wait_until_up(1, &["n1", "n2", "n3"]);
    cluster.nodes[2].kill();
    put_all(&cluster, "new");
    cluster.nodes[0].kill();
    // Not the whole directory: its peers could tell nothing from how often it was started.
    cluster.nodes[1].kill();
    std::fs::remove_dir_all(&store).unwrap();
    copy_files(backup.path(), &store);
    no_get_forgets(&mut cluster);
}

#[test]
fn a_node_put_back_from_a_copy_made_while_it_ran_has_no_vote_until_it_is_level() {
    let mut cluster = all_off();
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    put_all(&cluster, "old");
    let (data, backup) = (cluster.nodes[1].data_dir.clone(), tempfile::tempdir().unwrap());
    copy_all(&data, backup.path());
    put_all(&cluster, "newer");
    // n3 hears how far n2 has got, and remembers it when its link to n2 breaks.
    eventually("n3 to have heard of all puts", || {
        let shown = run(cluster.kvctl_via(2, &["nodes", "show", "n2", "-o", "json"]));
        let shown: Value = serde_json::from_slice(&shown.stdout).ok()?;
        let puts: usize = shown["data"]["stats"]["puts"].as_str()?.parse().ok()?;
        (puts == 2 * KEYS).then_some(())
    });
    cluster.nodes[1].signal(Signal::STOP);
    cluster.wait_until_up(2, &["n1", "n3"]);
    cluster.nodes[1].signal(Signal::CONT);
    (0..3).for_each(|via| cluster.wait_until_up(via, &["n1", "n2", "n3"]));
    cluster.nodes[2].kill();
    put_all(&cluster, "new");
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_all(backup.path(), &data);
    no_get_forgets(&mut cluster);
    let log = cluster.nodes[1].log();
    assert!(log.contains("this node lost writes that were on its disk: n3 was told"), "{log}");
}

#[test]
fn a_node_whose_log_is_damaged_has_no_vote_until_it_is_level() {
    let mut cluster = written_to_two();
    cluster.nodes[1].kill();
    let store = cluster.nodes[1].data_dir.join("store");
    let mut damaged = 0;
    for entry in std::fs::read_dir(&store).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("log-") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        // Every group with a new value but the last: that one would be taken for a torn tail.
        let new: Vec<usize> =
            bytes.windows(3).enumerate().filter(|(_, it)| it == b"new").map(|(at, _)| at).collect();
        for at in new.iter().rev().skip(1) {
            bytes[*at] ^= 1;
            damaged += 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > KEYS / 2, "the values are in the log: {damaged}");
    no_get_forgets(&mut cluster);
}

/// Wipes n2, and leaves it up alone: its cluster was given to it again, and nothing of `k` is back.
fn wiped_and_alone(cluster: &mut Cluster) {
    for node in [0, 2] {
        assert!(cluster.nodes[node].stop().success());
    }
    // It is filled within a second or so. If n1 was not gone by then, once more.
    eventually("n2 to have its cluster and no data", || {
        cluster.nodes[1].kill();
        std::fs::remove_dir_all(cluster.nodes[1].data_dir.join("store")).unwrap();
        cluster.nodes[1].start();
        cluster.nodes[0].start();
        eventually("n2 to be given its cluster", || {
            run(cluster.kvctl_via(1, &["ring", "show"])).status.success().then_some(())
        });
        cluster.nodes[0].kill();
        (!cluster.copy(1, "n2", b"k").present).then_some(())
    });
}

/// Puts through n2 once it sees that the others are gone.
fn put_alone(cluster: &Cluster, value: &str) {
    eventually("n2 to take a write alone", || {
        let put = ["put", "k", value, "--blind", "--w", "1"];
        run(cluster.kvctl_via(1, &put)).status.success().then_some(())
    });
    assert!(cluster.copy(1, "n2", b"k").present);
}

fn all_back(cluster: &mut Cluster) {
    cluster.nodes[0].start();
    cluster.nodes[2].start();
    (0..3).for_each(|via| cluster.wait_until_up(via, &["n1", "n2", "n3"]));
}

fn all_off() -> Cluster {
    Cluster::start_with(3, |node| node.env = vec![("KVD_REPAIR_EVERY", "off".into())])
}

/// riak_kv#679: a coordinator that lost its copy names a write as it named one before, which then
/// seems to be seen already and is dropped everywhere.
#[test]
fn a_wiped_coordinator_reuses_no_causal_history() {
    let mut cluster = all_off();
    let seen = cluster.dir().join("seen").display().to_string();
    ok(cluster.kvctl_via(1, &["put", "k", "first", "--w", "3"]));
    ok(cluster.kvctl_via(1, &["get", "k", "--context-out", &seen]));
    let context = format!("@{seen}");
    ok(cluster.kvctl_via(1, &["put", "k", "second", "--w", "3", "--context", &context]));
    wiped_and_alone(&mut cluster);
    put_alone(&cluster, "third");
    all_back(&mut cluster);
    for via in 0..3 {
        eventually("both values", || {
            let got = run(cluster.kvctl_via(via, &["get", "k", "--r", "3", "-o", "json"]));
            let got: Value = serde_json::from_slice(&got.stdout).ok()?;
            (got["siblings"].as_array()?.len() == 2).then_some(())
        });
    }
}

/// The same, with the tombstone that others still have: it must not cover a key made anew by one
/// that has forgotten it.
#[test]
fn a_tombstone_elsewhere_never_dooms_a_key_made_anew() {
    let mut cluster = all_off();
    ok(cluster.kvctl_via(1, &["put", "k", "first", "--w", "3"]));
    ok(cluster.kvctl_via(1, &["delete", "k", "--w", "3"]));
    wiped_and_alone(&mut cluster);
    put_alone(&cluster, "second");
    all_back(&mut cluster);
    for via in 0..3 {
        assert_eq!(ok(cluster.kvctl_via(via, &["get", "k", "--r", "3"])), b"second");
    }
}

fn copy_all(from: &Path, to: &Path) {
    copy_files(&from.join("store"), &to.join("store"));
    std::fs::copy(from.join("identity.toml"), to.join("identity.toml")).unwrap();
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
