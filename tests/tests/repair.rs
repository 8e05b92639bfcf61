//! Replicas that missed writes, and come to hold them though nobody reads: real clusters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::v1::ReadCopyRequest;
use serde_json::Value;
use tests::eventually;
use tests::process::{Cluster, ok, run};

/// Three nodes that compare every second, and a strict keyspace beside `default`.
fn start() -> Cluster {
    let cluster = Cluster::start_with(3, |node| node.env = vec![("KVD_REPAIR_EVERY", "1s".into())]);
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    cluster
}

/// What `kvctl repair status` says of each node and peer.
fn pairs(cluster: &Cluster, via: usize) -> Vec<(String, Value)> {
    let status = run(cluster.kvctl_via(via, &["repair", "status", "-o", "json"]));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let nodes = status["data"].as_array().unwrap().clone();
    let of = |node: Value| {
        let name = node["node"].as_str().unwrap().to_owned();
        let pairs = node["pairs"].as_array().unwrap().clone();
        pairs.into_iter().map(move |pair| (name.clone(), pair)).collect::<Vec<_>>()
    };
    nodes.into_iter().flat_map(of).collect()
}

fn number(pair: &Value, name: &str) -> u64 {
    pair[name].as_str().unwrap().parse().unwrap()
}

/// Waits until each of three nodes has begun and ended a round with each other since now, with
/// nothing left to do; returns how many keys were repaired in those rounds.
fn a_round_of_all(cluster: &Cluster) -> u64 {
    let before = pairs(cluster, 0);
    eventually("every pair to do two more rounds and match", || {
        let now = pairs(cluster, 0);
        let done = before.iter().zip(&now).all(|((_, before), (_, now))| {
            // The first of them may have begun before.
            number(now, "rounds") >= number(before, "rounds") + 2 && now["state"] != "failed"
        });
        let repaired = |pairs: &[(String, Value)]| -> u64 {
            pairs.iter().map(|(_, pair)| number(pair, "repaired")).sum()
        };
        (done && now.len() == 6).then(|| repaired(&now) - repaired(&before))
    })
}

/// Whether every node holds the same copy of a key. A node that just started may not be asked yet.
fn all_alike(cluster: &Cluster, keyspace: &str, key: &str) -> bool {
    let client = cluster.client(0);
    let copy = |on: &str| {
        let (node, keyspace) = (on.into(), keyspace.into());
        let request = ReadCopyRequest { node, keyspace, key: key.as_bytes().to_vec().into() };
        let copy = cluster.block_on(async { client.admin().read_copy(request).await });
        copy.ok().map(|copy| copy.into_inner()).filter(|copy| copy.present)
    };
    let [one, two, three] = ["n1", "n2", "n3"].map(|on| copy(on).map(|copy| copy.digest));
    one.is_some() && one == two && two == three
}

/// From now on these nodes hand no hints over: what is missing must be found by comparing.
fn without_handoff(cluster: &Cluster, via: usize, nodes: &[&str]) {
    for node in nodes {
        ok(cluster.kvctl_via(via, &["hints", "pause", "--node", node]));
    }
}

#[test]
fn a_node_that_missed_writes_gets_them_though_nobody_reads() {
    let mut cluster = start();
    let keyspaces = ["default", "strict"];
    // Values that are there before n3 goes, so that it misses overwrites and deletes too.
    let lines = |range: std::ops::Range<usize>, text: &str| -> Vec<u8> {
        let line = |i| format!("{{\"key\":\"k{i}\",\"value\":\"{text} {i}\"}}\n");
        range.map(line).collect::<String>().into_bytes()
    };
    for keyspace in keyspaces {
        ok(cluster.kvctl(&["load", "-", "-k", keyspace]).stdin(&lines(0..60, "old")));
        for key in ["k0", "k59"] {
            eventually("the old values on all", || {
                all_alike(&cluster, keyspace, key).then_some(())
            });
        }
    }
    cluster.nodes[2].kill();
    cluster.wait_until_up(0, &["n1", "n2"]);
    cluster.wait_until_up(1, &["n1", "n2"]);
    without_handoff(&cluster, 0, &["n1", "n2"]);
    for (via, keyspace) in keyspaces.into_iter().enumerate() {
        ok(cluster.kvctl_via(via, &["load", "-", "-k", keyspace]).stdin(&lines(20..200, "new")));
        let keys: Vec<String> = (40..80).map(|i| format!("k{i}")).collect();
        ok(cluster.kvctl_via(via, &["delete", "-k", keyspace]).args_of(&keys));
    }
    eventually("n1 to say that it cannot compare with n3", || {
        let down = pairs(&cluster, 0);
        let to_n3 = down.iter().find(|(node, pair)| node == "n1" && pair["peer"] == "n3")?;
        (to_n3.1["state"] == "failed").then_some(())
    });

    cluster.nodes[2].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    for keyspace in keyspaces {
        for i in 0..200 {
            let key = format!("k{i}");
            eventually(&format!("{keyspace}/{key} to be alike on all"), || {
                all_alike(&cluster, keyspace, &key).then_some(())
            });
        }
        let gone = cluster.copy_in(keyspace, 0, "n3", b"k50");
        assert!(gone.copies.iter().all(|copy| copy.tombstone), "{gone:?}");
        let new = cluster.copy_in(keyspace, 0, "n3", b"k150");
        assert_eq!(new.copies[0].value, "new 150");
    }
    let repaired: u64 = pairs(&cluster, 0).iter().map(|(_, pair)| number(pair, "repaired")).sum();
    assert!(repaired > 0, "somebody repaired it");

    a_round_of_all(&cluster); // what was under way comes to its end
    assert_eq!(a_round_of_all(&cluster), 0, "with nothing to repair nothing is repaired");
    for (node, pair) in pairs(&cluster, 0) {
        assert!(pair["matched_at"].is_string(), "{node} {pair}");
        assert_eq!(pair["error"], Value::Null, "{node} {pair}");
        assert_eq!(pair["leaves_set_right"], "0", "{node} {pair}");
    }
}

#[test]
fn a_value_that_one_node_alone_has_spreads_to_all() {
    let mut cluster = start();
    ok(cluster.kvctl(&["keyspaces", "create", "loose", "--w", "1", "--r", "1"]));
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    cluster.wait_until_up(2, &["n3"]);
    without_handoff(&cluster, 2, &["n3"]);
    ok(cluster.kvctl_via(2, &["put", "lone", "value", "-k", "loose", "--blind"]));
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    eventually("the lone value to be on all", || {
        all_alike(&cluster, "loose", "lone").then_some(())
    });
}

#[test]
fn repair_can_be_off_and_asked_for() {
    let mut cluster =
        Cluster::start_with(3, |node| node.env = vec![("KVD_REPAIR_EVERY", "off".into())]);
    cluster.nodes[2].kill();
    cluster.wait_until_up(0, &["n1", "n2"]);
    without_handoff(&cluster, 0, &["n1", "n2"]);
    ok(cluster.kvctl_via(0, &["put", "k", "v", "--blind"]));
    cluster.nodes[2].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    for (node, pair) in pairs(&cluster, 0) {
        assert_eq!(pair["state"], "never", "{node} {pair}");
        assert_eq!(pair["matched_at"], Value::Null, "{node} {pair}");
    }
    assert!(!cluster.copy(0, "n3", b"k").present);
    ok(cluster.kvctl(&["repair", "start", "--node", "n1"]));
    eventually("n1 to have brought n3 level", || {
        let now = pairs(&cluster, 0);
        let to_n3 = now.iter().find(|(node, pair)| node == "n1" && pair["peer"] == "n3").unwrap();
        (to_n3.1["state"] == "matched").then(|| assert_eq!(to_n3.1["repaired"], "1"))
    });
    assert!(all_alike(&cluster, "default", "k"));
}
