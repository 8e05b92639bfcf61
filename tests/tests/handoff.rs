//! Always writable: what is written while nodes are down reaches them when they are back, without
//! anybody reading it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::v1::LocateRequest;
use tests::eventually;
use tests::process::{Cluster, ok, run, text};

fn hints(cluster: &Cluster, via: usize) -> Vec<serde_json::Value> {
    // Exit 12: a node that is down cannot be asked, and is listed so.
    let listed = run(cluster.kvctl_via(via, &["hints", "list", "-o", "json"]));
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["data"].as_array().unwrap().clone()
}

/// Keys kept for `target`, as `node` says of itself.
fn kept(cluster: &Cluster, position: usize, target: &str) -> u64 {
    let name = format!("n{}", position + 1);
    let hints = hints(cluster, position);
    let of = hints.iter().filter(|hint| hint["node"] == name && hint["target"] == target);
    of.map(|hint| hint["keys"].as_str().unwrap().parse::<u64>().unwrap()).sum()
}

/// What `nodes show` tells of n3's lag.
fn lag(cluster: &Cluster) -> serde_json::Value {
    let shown = ok(cluster.kvctl_via(0, &["nodes", "show", "n3", "-o", "json"]));
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    shown["data"]["lag"].clone()
}

/// Keys that n3 lacks by `ring show`, summed over the partitions, and whether that is all.
fn lag_by_partition(cluster: &Cluster) -> (u64, bool) {
    let shown = ok(cluster.kvctl_via(0, &["ring", "show", "-o", "json"]));
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let partitions = shown["data"]["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 256);
    let replicas = partitions.iter().flat_map(|it| it["replicas"].as_array().unwrap());
    let of: Vec<_> = replicas.filter(|replica| replica["node"] == "n3").collect();
    let keys = of.iter().map(|it| it["keys"].as_str().unwrap().parse::<u64>().unwrap()).sum();
    (keys, of.iter().all(|replica| replica["lag_known"] == true))
}

/// A key whose homes are nodes of these positions and no other.
fn key_of(cluster: &Cluster, homes: &[usize]) -> String {
    let client = cluster.client(homes[0]);
    let mut wanted: Vec<String> = homes.iter().map(|home| format!("n{}", home + 1)).collect();
    wanted.sort();
    (0..)
        .map(|i| format!("key-{i}"))
        .find(|key| {
            let request = LocateRequest { key: key.clone().into(), ..Default::default() };
            let located = cluster.block_on(async { client.admin().locate(request).await });
            let located = located.unwrap().into_inner().preference.into_iter();
            let mut found: Vec<String> =
                located.filter(|it| !it.fallback).map(|it| it.node).collect();
            found.sort();
            found == wanted
        })
        .unwrap()
}

fn wait_until_down(cluster: &Cluster, via: usize, count: usize) {
    eventually("the dead to be seen", || {
        let down = run(cluster.kvctl_via(via, &["nodes", "list", "--state", "down", "-o", "name"]));
        (text(&down.stdout).split_whitespace().count() == count).then_some(())
    });
}

#[test]
fn a_node_that_was_away_is_given_what_it_missed_without_anybody_reading() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[2].kill();
    wait_until_down(&cluster, 0, 1);
    for i in 0..40 {
        ok(cluster.kvctl_via(i % 2, &["put", &format!("k{i}"), &format!("v{i}")]));
    }
    ok(cluster.kvctl_via(0, &["delete", "k0"]));
    // Whoever coordinated a write keeps it. Paused, so that a holder can be killed in between.
    eventually("a hint for every write", || {
        (kept(&cluster, 0, "n3") + kept(&cluster, 1, "n3") == 40).then_some(())
    });
    eventually("what n3 lacks to be told", || {
        let lag = lag(&cluster);
        (lag["keys"] == "40" && lag["since"].is_string()).then_some(())
    });
    assert_eq!(lag_by_partition(&cluster), (40, true));
    for holder in ["n1", "n2"] {
        ok(cluster.kvctl_via(0, &["hints", "pause", "--node", holder]));
    }
    cluster.nodes[2].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    assert_eq!(kept(&cluster, 0, "n3") + kept(&cluster, 1, "n3"), 40);
    // Its hints survive the holder, and it goes on by itself.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.wait_until_up(1, &["n1", "n2", "n3"]);
    eventually("n1 to hand over its own", || (kept(&cluster, 0, "n3") == 0).then_some(()));
    assert!(kept(&cluster, 1, "n3") > 0, "n2 is still told to wait");
    ok(cluster.kvctl_via(0, &["hints", "resume"]));
    eventually("no hint to be left", || hints(&cluster, 0).is_empty().then_some(()));
    eventually("n3 to be told level", || {
        let lag = lag(&cluster);
        let level = lag["since"].is_null() && lag["unheard"] == serde_json::json!([]);
        level.then_some(())
    });
    eventually("no partition to lag", || (lag_by_partition(&cluster) == (0, true)).then_some(()));
    for i in 0..40 {
        let key = format!("k{i}");
        let [one, three] = ["n1", "n3"].map(|on| cluster.copy(0, on, key.as_bytes()));
        assert!(three.present, "{key}");
        assert_eq!(one.digest, three.digest, "{key}");
    }
}

#[test]
fn with_two_homes_down_fallbacks_count_and_serve_and_hand_over() {
    let mut cluster = Cluster::start(5);
    let key = key_of(&cluster, &[0, 1, 2]);
    ok(cluster.kvctl_via(0, &["put", &key, "before"]));
    for dead in [1, 2] {
        cluster.nodes[dead].kill();
    }
    [0, 3, 4].into_iter().for_each(|via| wait_until_down(&cluster, via, 2));
    // W is 2: one home, and a fallback.
    let put = ok(cluster.kvctl_via(3, &["put", &key, "after", "-o", "json"]));
    let put: serde_json::Value = serde_json::from_slice(&put).unwrap();
    let hinted = &put["quorum"]["hinted"];
    assert!(hinted.as_array().is_some_and(|hinted| !hinted.is_empty()), "{put}");
    assert_eq!(put["quorum"]["replied"], serde_json::json!(["n1"]), "{put}");
    for via in [0, 3, 4] {
        assert_eq!(ok(cluster.kvctl_via(via, &["get", &key])), b"after");
    }
    for dead in [1, 2] {
        cluster.nodes[dead].start();
    }
    eventually("no hint to be left", || hints(&cluster, 0).is_empty().then_some(()));
    let copies = ["n1", "n2", "n3"].map(|on| cluster.copy(0, on, key.as_bytes()).digest);
    assert!(copies.iter().all(|copy| *copy == copies[0] && !copy.is_empty()));
}

#[test]
fn with_every_home_down_sloppy_takes_writes_and_strict_refuses_in_words() {
    let mut cluster = Cluster::start(5);
    ok(cluster.kvctl(&["keyspaces", "create", "exact", "--mode", "strict"]));
    let key = key_of(&cluster, &[0, 1, 2]);
    for dead in 0..3 {
        cluster.nodes[dead].kill();
    }
    [3, 4].into_iter().for_each(|via| wait_until_down(&cluster, via, 3));
    ok(cluster.kvctl_via(3, &["put", &key, "sloppy", "--blind", "--w", "1"]));
    ok(cluster.kvctl_via(4, &["put", &key, "both", "--blind", "--w", "2"]));
    let read = run(cluster.kvctl_via(4, &["get", &key, "--sibling", "all", "-o", "json"]));
    assert!(text(&read.stdout).contains("value"), "{}", text(&read.stderr));
    let refused =
        run(cluster.kvctl_via(3, &["put", &key, "v", "--blind", "--w", "1", "-k", "exact"]));
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused.stderr));
    let missing = run(cluster.kvctl_via(3, &["get", "never-written", "--r", "1"]));
    assert!(!missing.status.success());
    for dead in 0..3 {
        cluster.nodes[dead].start();
    }
    eventually("no hint to be left", || hints(&cluster, 3).is_empty().then_some(()));
    // Each blind put is a sibling, on every home.
    let copies = ["n1", "n2", "n3"].map(|on| cluster.copy(3, on, key.as_bytes()));
    for copy in &copies {
        assert_eq!((copy.copies.len(), &copy.digest), (2, &copies[0].digest));
    }
}

#[test]
fn at_its_bound_a_hint_store_refuses_no_write_and_comparing_finds_the_rest() {
    const KEYS: usize = 60;
    let mut cluster = Cluster::start_with(3, |node| {
        node.env = vec![("KVD_HINT_MIB", "1".into()), ("KVD_REPAIR_EVERY", "off".into())];
    });
    cluster.nodes[2].kill();
    wait_until_down(&cluster, 0, 1);
    wait_until_down(&cluster, 1, 1);
    let value = "v".repeat(100_000);
    for i in 0..KEYS {
        ok(cluster.kvctl_via(i % 2, &["put", &format!("k{i}"), &value]));
    }
    let overflowed = |hint: &serde_json::Value| hint["overflowed"] == true;
    eventually("both stores to be full", || {
        (hints(&cluster, 0).iter().filter(|hint| overflowed(hint)).count() == 2).then_some(())
    });
    assert!(kept(&cluster, 0, "n3") < KEYS as u64 / 2, "not all fit");
    assert_eq!(lag(&cluster)["more"], true);

    cluster.nodes[2].start();
    eventually("what was kept to be handed over", || {
        (kept(&cluster, 0, "n3") + kept(&cluster, 1, "n3") == 0).then_some(())
    });
    // Nobody knows what else is missing, and it is said so, until the copies were compared.
    assert_eq!(lag(&cluster)["more"], true);
    let missing = |key: usize| !cluster.copy(0, "n3", format!("k{key}").as_bytes()).present;
    assert!((0..KEYS).any(missing));
    ok(cluster.kvctl_via(0, &["repair", "start"]));
    eventually("nothing more to be missing", || {
        (hints(&cluster, 0).is_empty() && lag(&cluster)["more"] == false).then_some(())
    });
    assert!(!(0..KEYS).any(missing));
}
