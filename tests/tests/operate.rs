//! What an operator asks before a change, and what comes of those that give nodes up: real processes,
//! and `kvctl` as a script runs it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::v1::{GetLayoutRequest, LayoutView};
use serde_json::Value;
use std::process::Output;
use tests::eventually;
use tests::process::{Cluster, Node, ok, run, text};
use tests::scenario::prepare;
use tests::topology::wait_until_settled;

const KEYS: usize = 40;

/// No comparison brings a node what it missed.
fn no_repair(node: &mut Node) {
    node.env.push(("KVD_REPAIR_EVERY", "off".into()));
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("no JSON: {}", text(bytes)))
}

/// Ended with this exit code.
fn exits(output: &Output, code: i32) {
    let said = || format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{}", said());
}

fn key(i: usize) -> String {
    format!("key-{i}")
}

fn put_all(cluster: &Cluster, via: usize, keyspace: &str, value: &str) {
    let line = |i| format!("{{\"key\":\"{}\",\"value\":\"{value}\"}}\n", key(i));
    let lines: String = (0..KEYS).map(line).collect();
    ok(cluster.kvctl_via(via, &["load", "-", "-k", keyspace]).stdin(lines.as_bytes()));
}

fn layout(cluster: &Cluster, via: usize) -> LayoutView {
    let client = cluster.client(via);
    let view = cluster.block_on(async { client.admin().get_layout(GetLayoutRequest {}).await });
    view.unwrap().into_inner()
}

/// Names of the replicas of each partition.
fn rows(layout: &LayoutView, n: u32) -> Vec<Vec<&str>> {
    let table = layout.tables.iter().find(|table| table.n == n).unwrap();
    let name = |slot: &u32| layout.members[*slot as usize].name.as_str();
    table.slots.chunks(n as usize).map(|row| row.iter().map(name).collect()).collect()
}

fn weight(layout: &LayoutView, node: &str) -> u32 {
    layout.members.iter().find(|member| member.name == node).map_or(0, |member| member.weight)
}

// === plans that change nothing, and back ===

#[test]
fn a_balanced_cluster_plans_no_move_and_what_was_done_is_undone() {
    let cluster = Cluster::start_with(4, prepare);
    put_all(&cluster, 0, "default", "v");
    let before = layout(&cluster, 0);
    let balanced = || {
        let plan = json(&ok(cluster.kvctl(&["rebalance", "--dry-run", "-o", "json"])));
        assert_eq!(plan["data"]["copies_moved"], "0", "{plan:#}");
        let done = run(cluster.kvctl(&["rebalance", "--yes"]));
        exits(&done, 0);
        assert!(text(&done.stdout).starts_with("nothing to change"), "{}", text(&done.stdout));
    };
    balanced();
    assert_eq!(layout(&cluster, 0).layout, before.layout, "no layout more");

    let set = ["nodes", "set", "n1", "--weight", "3", "--op-id", "heavier", "--yes"];
    exits(&run(cluster.kvctl(&[&set[..], &["--timeout", "60s"]].concat())), 0);
    wait_until_settled(&cluster, "n1 heavier", |layout| weight(layout, "n1") == 3);
    balanced();

    let file = cluster.dir().join("undo.json").display().to_string();
    let undo = ["plan", "create", "--undo", "heavier", "--out", &file, "-o", "json"];
    let undo = json(&ok(cluster.kvctl(&undo)));
    assert_ne!(undo["data"]["copies_moved"], "0", "{undo:#}");
    assert_eq!(weight(&layout(&cluster, 0), "n1"), 3, "a plan changes nothing");
    let apply = ["plan", "apply", &file, "--yes", "--timeout", "60s"];
    exits(&run(cluster.kvctl_via(2, &apply)), 0);
    let after = wait_until_settled(&cluster, "n1 as it was", |layout| weight(layout, "n1") == 1);
    let copies = |layout: &LayoutView, node: &str| {
        rows(layout, 3).iter().filter(|row| row.contains(&node)).count()
    };
    for node in ["n1", "n2", "n3", "n4"] {
        let (was, is) = (copies(&before, node), copies(&after, node));
        assert!(was.abs_diff(is) <= 2, "{node} had {was} copies and has {is}");
    }
    balanced();
    exits(&run(cluster.kvctl(&["plan", "create", "--undo", "op-00000000"])), 3);
    for i in 0..KEYS {
        assert_eq!(ok(cluster.kvctl_via(i % 4, &["get", &key(i), "--r", "3"])), b"v", "{}", key(i));
    }
}

// === what is safe ===

/// What is said of each node, and of a quorum, is counted here from the table of replicas, and tried.
#[test]
fn who_may_be_stopped_and_what_a_quorum_means_is_what_comes_of_it() {
    let mut cluster = Cluster::start(5);
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    put_all(&cluster, 0, "strict", "v");
    let layout = layout(&cluster, 0);
    let rows = rows(&layout, 3);
    let may_stop = |cluster: &Cluster, node: &str| {
        let rule = format!("safe-to-stop:{node}");
        run(cluster.kvctl_via(0, &["check", "--require", &rule]))
    };
    for node in ["n1", "n2", "n3", "n4", "n5"] {
        exits(&may_stop(&cluster, node), 0);
    }

    cluster.nodes[4].kill();
    cluster.wait_until_up(0, &["n1", "n2", "n3", "n4"]);
    let status = json(&ok(cluster.kvctl_via(0, &["status", "-o", "json"])));
    for node in ["n1", "n2", "n3", "n4"] {
        let shared = rows.iter().filter(|row| row.contains(&"n5") && row.contains(&node)).count();
        let told = status["data"]["nodes"].as_array().unwrap().iter();
        let told = &told.clone().find(|it| it["name"] == node).unwrap()["safe_to_stop"];
        assert_eq!(
            (&told["ok"], &told["blocked_partitions"]),
            (&(shared == 0).into(), &shared.into()),
            "{node}: {told}"
        );
        exits(&may_stop(&cluster, node), if shared == 0 { 0 } else { 11 });
    }

    // Another W, without setting it.
    let without_n5 = rows.iter().filter(|row| row.contains(&"n5")).count();
    let what_if = |cluster: &Cluster, w: &str| {
        let tried = ["quorum", "what-if", "-k", "strict", "--w", w, "-o", "json"];
        json(&ok(cluster.kvctl_via(0, &tried)))["data"].clone()
    };
    let three = what_if(&cluster, "3");
    assert_eq!((&three["now"]["puts_fail"], &three["now"]["puts_survive"]), (&0.into(), &0.into()));
    assert_eq!(three["then"]["puts_fail"], without_n5, "{three:#}");
    let one = what_if(&cluster, "1");
    assert_eq!((&one["then"]["puts_fail"], &one["then"]["puts_survive"]), (&0.into(), &1.into()));
    assert_eq!((&one["now"]["overlaps"], &one["then"]["overlaps"]), (&true.into(), &false.into()));
    let shown = json(&ok(cluster.kvctl_via(0, &["quorum", "show", "-k", "strict", "-o", "json"])));
    assert_eq!(
        (&shown["data"]["now"]["w"], &shown["data"]["now"]["puts_fail"]),
        (&2.into(), &0.into())
    );

    // And so it comes: with W=3 a put fails where n5 is a replica and nowhere else, with two.
    for i in 0..KEYS {
        let located =
            json(&ok(cluster.kvctl_via(0, &["locate", &key(i), "-k", "strict", "-o", "json"])));
        let partition = located["data"]["partition"].as_u64().unwrap() as usize;
        let put = |w: &str| {
            let put = ["put", "-k", "strict", &key(i), "v", "--blind", "--w", w];
            run(cluster.kvctl_via(0, &put)).status.code()
        };
        assert_eq!(put("2"), Some(0), "{}", key(i));
        let is_short = rows[partition].contains(&"n5");
        assert_eq!(put("3"), Some(if is_short { 5 } else { 0 }), "{}", key(i));
    }
}

// === the dead, and what goes with them ===

/// A key whose replicas, of two, are these.
fn key_on(cluster: &Cluster, via: usize, keyspace: &str, nodes: [&str; 2]) -> String {
    let layout = layout(cluster, via);
    let rows = rows(&layout, 2);
    let place = |key: &String| {
        let located = ["locate", key, "-k", keyspace, "-o", "json"];
        let located = json(&ok(cluster.kvctl_via(via, &located)));
        located["data"]["partition"].as_u64().unwrap() as usize
    };
    let mut keys = (0..).map(|i| format!("lone-{i}"));
    keys.find(|key| nodes.iter().all(|node| rows[place(key)].contains(node))).unwrap()
}

#[test]
fn a_dead_node_that_takes_data_along_is_removed_only_by_force() {
    let mut cluster = Cluster::start_with(4, prepare);
    let create = ["keyspaces", "create", "thin", "--mode", "strict"];
    ok(cluster.kvctl(&[&create[..], &["--n", "2", "--r", "2", "--w", "1"]].concat()));
    for keyspace in ["default", "thin"] {
        put_all(&cluster, 0, keyspace, "v");
    }
    for (i, on) in (0..KEYS).flat_map(|i| ["n1", "n2", "n3"].map(|on| (i, on))) {
        let located = ["locate", &key(i), "-k", "thin", "-o", "json"];
        let located = json(&ok(cluster.kvctl(&located)));
        let homes = located["data"]["preference"].as_array().unwrap().iter();
        if homes.clone().any(|home| home["node"] == on && home["fallback"] == false) {
            eventually("each replica to have it", || {
                cluster.copy_in("thin", 0, on, key(i).as_bytes()).present.then_some(())
            });
        }
    }
    // What n4 alone has acknowledged goes with it.
    cluster.nodes[2].kill();
    cluster.wait_until_up(3, &["n1", "n2", "n4"]);
    let lost = key_on(&cluster, 3, "thin", ["n3", "n4"]);
    ok(cluster.kvctl_via(3, &["put", &lost, "v", "-k", "thin", "--blind"]));
    cluster.nodes[3].kill();
    drop(cluster.forget("n4"));
    cluster.nodes[2].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);

    let before = layout(&cluster, 0);
    let with_n4 = rows(&before, 2).iter().filter(|row| row.contains(&"n4")).count();
    let remove = ["nodes", "remove", "n4", "--dead"];
    let dry = [&remove[..], &["--dry-run", "-o", "json"]].concat();
    let dry = json(&ok(cluster.kvctl(&dry)));
    let losses = dry["data"]["losses"].as_array().unwrap();
    assert_eq!(losses.len(), 1, "W others have all of the other keyspace: {losses:#?}");
    assert_eq!(
        (&losses[0]["keyspace"], &losses[0]["thin"], &losses[0]["node"]),
        (&"thin".into(), &with_n4.into(), &"n4".into()),
        "{losses:#?}"
    );
    let remove = [&remove[..], &["--yes", "--timeout", "60s"]].concat();
    for force in [&[][..], &["--force=disk"]] {
        let refused = run(cluster.kvctl(&[&remove[..], force].concat()));
        exits(&refused, 8);
        let said = text(&refused.stderr);
        assert!(said.contains("--force=data-loss") && said.contains("thin"), "{said}");
        assert_eq!(layout(&cluster, 0).layout, before.layout, "nothing was changed");
    }
    exits(&run(cluster.kvctl(&[&remove[..], &["--force=data-loss"]].concat())), 0);
    wait_until_settled(&cluster, "three nodes", |layout| layout.members.len() == 3);
    let gone = run(cluster.kvctl(&["get", &lost, "-k", "thin"]));
    assert_eq!(gone.status.code(), Some(3), "as was said: {}", text(&gone.stderr));
    for i in 0..KEYS {
        for (keyspace, r) in [("default", "3"), ("thin", "2")] {
            let get = ["get", &key(i), "-k", keyspace, "--r", r];
            assert_eq!(ok(cluster.kvctl_via(i % 3, &get)), b"v", "{keyspace}/{}", key(i));
        }
    }
}

#[test]
fn a_removal_ends_although_nobody_is_left_of_some_copies() {
    let mut cluster = Cluster::start_with(4, prepare);
    let one = ["--mode", "strict", "--n", "1", "--r", "1", "--w", "1"];
    ok(cluster.kvctl(&[&["keyspaces", "create", "single"], &one[..]].concat()));
    put_all(&cluster, 0, "single", "v");
    cluster.nodes[3].kill();
    drop(cluster.forget("n4"));
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let remove = ["nodes", "remove", "n4", "--dead", "--yes"];
    exits(&run(cluster.kvctl(&remove)), 8);
    exits(&run(cluster.kvctl(&[&remove[..], &["--force=data-loss"]].concat())), 0);
    wait_until_settled(&cluster, "three nodes", |layout| layout.members.len() == 3);
    let found = (0..KEYS).filter(|i| {
        let got = run(cluster.kvctl(&["get", &key(*i), "-k", "single"]));
        assert!(matches!(got.status.code(), Some(0 | 3)), "there or gone: {}", text(&got.stderr));
        got.status.success()
    });
    let found = found.count();
    assert!(found > KEYS / 2 && found < KEYS, "{found} of {KEYS} were elsewhere");
    ok(cluster.kvctl(&["put", &key(0), "new", "-k", "single", "--blind"]));
}

// === who leaves while another is down ===

/// Keys that one node keeps for another.
fn kept(cluster: &Cluster, node: &str, target: &str) -> Option<u64> {
    let listed = run(cluster.kvctl_via(1, &["hints", "list", "--node", node, "-o", "json"]));
    let listed: Value = serde_json::from_slice(&listed.stdout).ok()?;
    let hints = listed["data"].as_array()?.iter().filter(|hint| hint["target"] == target);
    hints.map(|hint| hint["keys"].as_str()?.parse::<u64>().ok()).sum()
}

#[test]
fn who_leaves_hands_on_what_it_keeps_for_a_node_that_is_down() {
    // Who is down is a replica of everything, before and after: nothing waits for it.
    let mut cluster = Cluster::blank_with(5, no_repair);
    let members = cluster.nodes.iter().map(|node| format!("{}={}", node.name, node.address));
    let members: Vec<String> = members.collect();
    let init = ["cluster", "init", "--name", "test", "--yes", "--weight", "8,1,1,1,1"];
    ok(cluster.kvctl(&init).args_of(&members));
    put_all(&cluster, 0, "default", "old");
    cluster.nodes[0].kill();
    for via in 1..5 {
        cluster.wait_until_up(via, &["n2", "n3", "n4", "n5"]);
    }
    put_all(&cluster, 4, "default", "new");
    let before = layout(&cluster, 4);
    assert!(rows(&before, 3).iter().all(|row| row.contains(&"n1")));
    let by_n5 = eventually("n5 to keep something for n1", || {
        let all = ["n2", "n3", "n4", "n5"].map(|node| kept(&cluster, node, "n1"));
        let all_told: u64 = all.iter().copied().sum::<Option<u64>>()?;
        all[3].filter(|keys| *keys > 0 && all_told == KEYS as u64)
    });
    let leave = ["nodes", "remove", "n5", "--op-id", "leave", "--yes", "--no-wait"];
    exits(&run(cluster.kvctl_via(1, &leave)), 0);
    // It is no member any more, so nobody tells of it: the others have to keep that much more.
    eventually("the others to keep all of it for n1", || {
        let others = ["n2", "n3", "n4"].map(|node| kept(&cluster, node, "n1"));
        let now: u64 = others.into_iter().sum::<Option<u64>>()?;
        (now == KEYS as u64).then_some(())
    });
    eprintln!("n5 has handed on {by_n5} keys that it kept for n1");

    cluster.nodes[0].start();
    let wait = ["ops", "wait", "leave", "--timeout", "100s"];
    exits(&run(cluster.kvctl_via(1, &wait)), 0);
    let mut left = cluster.forget("n5");
    assert_eq!(left.wait_for_end().code(), Some(0), "{}", left.log());
    let after = wait_until_settled(&cluster, "four nodes", |layout| layout.members.len() == 4);
    let (before, after) = (rows(&before, 3), rows(&after, 3));
    let mut unmoved = 0;
    for i in 0..KEYS {
        let located = json(&ok(cluster.kvctl(&["locate", &key(i), "-o", "json"])));
        let partition = located["data"]["partition"].as_u64().unwrap() as usize;
        // Where nothing moved, only a hint brings it.
        unmoved += u32::from(before[partition] == after[partition]);
        eventually(&format!("n1 to have the newest {}", key(i)), || {
            let copy = cluster.copy(0, "n1", key(i).as_bytes());
            let newest = copy.copies.len() == 1 && copy.copies[0].value[..] == b"new"[..];
            newest.then_some(())
        });
    }
    eprintln!("{unmoved} of {KEYS} keys are where they were");
    assert!(unmoved > 0, "of 40 keys some are");
}
