//! Tombstones that go, and those that must stay: real clusters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use tests::eventually;
use tests::process::{Cluster, ok, run};

/// Nodes that look for tombstones every second and, so that a test need not wait for minutes, take
/// those away that all have held for one.
fn start(nodes: usize, repair_every: &str) -> Cluster {
    Cluster::start_with(nodes, |node| {
        node.env =
            vec![("KVD_GC_AFTER", "1s".into()), ("KVD_REPAIR_EVERY", repair_every.to_owned())];
    })
}

/// `kvctl gc status`, all nodes.
fn gc_status(cluster: &Cluster) -> Vec<Value> {
    let status = run(cluster.kvctl(&["gc", "status", "-o", "json"]));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    status["data"].as_array().unwrap().clone()
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_str().unwrap().parse().unwrap()
}

/// Has every node look until some of them walked twice more, from beginning to end.
fn two_walks(cluster: &Cluster) -> Vec<Value> {
    let ended =
        |status: &[Value]| status.iter().map(|it| it["ended_at"].clone()).collect::<Vec<_>>();
    let mut last = ended(&gc_status(cluster));
    for _ in 0..2 {
        ok(cluster.kvctl(&["gc", "run"]));
        last = eventually("every node to walk", || {
            let now = ended(&gc_status(cluster));
            now.iter().zip(&last).all(|(now, last)| now != last).then_some(now)
        });
    }
    gc_status(cluster)
}

/// Waits until no node holds anything of these keys.
fn all_reaped(cluster: &Cluster, keys: &[String]) {
    let nodes: Vec<String> = (1..=cluster.nodes.len()).map(|i| format!("n{i}")).collect();
    let held =
        |key: &String| nodes.iter().any(|node| cluster.copy(0, node, key.as_bytes()).present);
    eventually("every tombstone to go", || {
        ok(cluster.kvctl(&["gc", "run"]));
        (!keys.iter().any(held)).then_some(())
    });
    let status = two_walks(cluster);
    assert!(status.iter().all(|node| number(node, "tombstones") == 0), "{status:?}");
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("k{i}")).collect()
}

#[test]
fn tombstones_go_on_every_node_and_comparing_does_not_bring_them_back() {
    let cluster = start(3, "1s");
    let keys = keys(30);
    for key in &keys {
        ok(cluster.kvctl(&["put", key, "v", "--w", "3"]));
        ok(cluster.kvctl(&["delete", key]));
    }
    all_reaped(&cluster, &keys);
    let reaped: u64 = gc_status(&cluster).iter().map(|node| number(node, "reaped")).sum();
    assert_eq!(reaped, 30, "each key is seen to by one node");

    let rounds = || {
        let status = run(cluster.kvctl(&["repair", "status", "-o", "json"]));
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let nodes = status["data"].as_array().unwrap().clone();
        let pairs: Vec<Value> =
            nodes.iter().flat_map(|node| node["pairs"].as_array().unwrap().clone()).collect();
        let sum = |name: &str| -> u64 { pairs.iter().map(|pair| number(pair, name)).sum() };
        (pairs.iter().map(|pair| number(pair, "rounds")).min().unwrap(), sum("repaired"))
    };
    let (before, _) = rounds();
    let (before, repaired) = eventually("a round of all pairs", || {
        let now = rounds();
        (now.0 >= before + 2).then_some(now)
    });
    let after = eventually("two more", || {
        let (now, repaired) = rounds();
        (now >= before + 2).then_some(repaired)
    });
    assert_eq!(after, repaired, "nothing is left to repair");
    for key in &keys {
        assert!(!cluster.copy(0, "n2", key.as_bytes()).present, "{key} came back");
    }
}

#[test]
fn a_node_that_was_away_never_brings_a_deleted_key_back() {
    let mut cluster = start(3, "off");
    let keys = keys(20);
    for key in &keys {
        ok(cluster.kvctl(&["put", key, "v", "--w", "3"]));
    }
    cluster.nodes[2].kill();
    eventually("n3 to be passed over", || {
        run(cluster.kvctl(&["put", "probe", "v", "--blind", "--w", "2"]))
            .status
            .success()
            .then_some(())
    });
    for key in &keys {
        ok(cluster.kvctl(&["delete", key]));
    }
    let away = two_walks_of_two(&cluster);
    assert!(away.iter().all(|error| error.contains("waits for n3")), "{away:?}");

    // Back with the old values, and nobody has what it missed: what a hint would do, only comparing
    // can.
    for holder in ["n1", "n2"] {
        ok(cluster.kvctl(&["hints", "drop", "--for", "n3", "--node", holder, "--yes"]));
    }
    cluster.nodes[2].start();
    for via in 0..3 {
        cluster.wait_until_up(via, &["n1", "n2", "n3"]);
    }
    let status = two_walks(&cluster);
    let stays = status.iter().map(|node| node["stays"].to_string()).collect::<String>();
    assert!(stays.contains("n3 does not hold the same"), "{stays}");
    assert_eq!(status.iter().map(|node| number(node, "reaped")).sum::<u64>(), 0);

    ok(cluster.kvctl(&["repair", "start"]));
    all_reaped(&cluster, &keys);
    for key in &keys {
        assert_eq!(run(cluster.kvctl(&["get", key, "--r", "3"])).status.code(), Some(3), "{key}");
    }
}

/// What n1 and n2 say after walking once more while n3 is away.
fn two_walks_of_two(cluster: &Cluster) -> Vec<String> {
    ["n1", "n2"]
        .map(|name| {
            run(cluster.kvctl(&["gc", "run", "--node", name]));
            eventually("a walk that waits", || {
                let status = run(cluster.kvctl(&["gc", "status", "--node", name, "-o", "json"]));
                let status: Value = serde_json::from_slice(&status.stdout).ok()?;
                status["data"][0]["error"].as_str().map(str::to_owned)
            })
        })
        .to_vec()
}

#[test]
fn a_hint_older_than_the_delete_keeps_the_tombstone() {
    let mut cluster = start(4, "off");
    let located = ok(cluster.kvctl(&["locate", "k", "-o", "json"]));
    let located: Value = serde_json::from_slice(&located).unwrap();
    let preference = located["data"]["preference"].as_array().unwrap();
    let position = |at: usize| -> usize {
        preference[at]["node"].as_str().unwrap()[1..].parse::<usize>().unwrap() - 1
    };
    let (home, other) = (position(1), position(0));
    let name = format!("n{}", home + 1);
    cluster.nodes[home].kill();
    let via = |args: &[&str]| run(cluster.kvctl_via(other, args));
    eventually("a fallback to keep the value", || {
        via(&["put", "k", "old", "--blind"]);
        let hints = via(&["hints", "list", "-o", "json"]);
        let hints: Value = serde_json::from_slice(&hints.stdout).ok()?;
        hints["data"].as_array()?.iter().any(|hint| hint["target"] == name.as_str()).then_some(())
    });
    assert!(via(&["hints", "pause"]).status.code().is_some_and(|code| code == 0 || code == 12));
    cluster.nodes[home].start();
    for at in 0..4 {
        cluster.wait_until_up(at, &["n1", "n2", "n3", "n4"]);
    }
    // Every home is given the delete, and the fallback still has the value.
    eventually("a delete on every home", || {
        let delete = run(cluster.kvctl_via(other, &["delete", "k", "--w", "3"]));
        delete.status.success().then_some(())
    });
    let status = two_walks(&cluster);
    let stays = status.iter().map(|node| node["stays"].to_string()).collect::<String>();
    assert!(stays.contains("keeps hints for it"), "{stays}");
    assert_eq!(status.iter().map(|node| number(node, "reaped")).sum::<u64>(), 0);

    ok(cluster.kvctl(&["hints", "resume"]));
    all_reaped(&cluster, &["k".to_owned()]);
    for node in ["n1", "n2", "n3", "n4"] {
        assert!(!cluster.copy(0, node, b"k").present, "the value came back on {node}");
    }
    assert_eq!(run(cluster.kvctl(&["get", "k", "--r", "3"])).status.code(), Some(3));
}
