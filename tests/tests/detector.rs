//! Who is up, in everybody's opinion: nodes that die, are paused, or cannot reach each other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::v1::{ClusterView, GetClusterRequest, NodeState, PutRequest};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::net;
use tests::process::{Cluster, ok, text};
use tests::{eventually, one_of_three};

/// A dead node is down for everybody after so long.
const DOWN_WITHIN: Duration = Duration::from_secs(5);

/// One that leaves a request unanswered is sent no more after so long: a second, and half of one for
/// this test to notice.
const PASSED_OVER_WITHIN: Duration = Duration::from_millis(1_500);

/// One that can be reached again is up for everybody after so long.
const UP_WITHIN: Duration = Duration::from_secs(3);

fn put(key: &str, w: u32) -> PutRequest {
    let (key, value) = (key.to_owned().into(), "v".into());
    PutRequest { key, value, w: Some(w), ..Default::default() }
}

/// What node `via` sees.
fn view(cluster: &Cluster, via: usize) -> ClusterView {
    let client = cluster.client(via);
    let request = GetClusterRequest::default();
    let view = cluster.block_on(async { client.admin().get_cluster(request).await });
    view.unwrap().into_inner()
}

/// Whether node `via` sees node `about` in this state.
fn sees(cluster: &Cluster, via: usize, about: usize, state: NodeState) -> bool {
    let name = &cluster.nodes[about].name;
    view(cluster, via).nodes.iter().any(|node| node.name == *name && node.state() == state)
}

/// Waits until every node of `by` sees every other of `about` so, and returns how long it took.
fn wait_until_seen(cluster: &Cluster, by: &[usize], about: &[usize], state: NodeState) -> Duration {
    let since = Instant::now();
    for (via, about) in pairs(by, about) {
        let what = format!("n{} to see n{} {}", via + 1, about + 1, state.as_str_name());
        eventually(&what, || sees(cluster, via, about, state).then_some(()));
    }
    since.elapsed()
}

/// Every node of one set with every other one of the second.
fn pairs(by: &[usize], about: &[usize]) -> Vec<(usize, usize)> {
    let all = by.iter().flat_map(|via| about.iter().map(move |about| (*via, *about)));
    all.filter(|(via, about)| via != about).collect()
}

/// How often each node has changed its mind about each other, as the events of its log tell.
fn changes(cluster: &Cluster) -> Vec<((usize, usize), usize)> {
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    let changes = pairs(&all, &all).into_iter().map(|(via, about)| {
        let events = view(cluster, via).events;
        let (up, down) = (format!("n{} up", about + 1), format!("n{} down: ", about + 1));
        let about_it = events.iter().filter(|e| e.text == up || e.text.starts_with(&down));
        ((via, about), about_it.count())
    });
    changes.collect()
}

/// That it took no longer than it may.
fn within(what: &str, took: Duration, limit: Duration) -> Result<(), String> {
    if took < limit { Ok(()) } else { Err(format!("{what} after {took:?}")) }
}

/// That each has changed its mind about each other so often since `before`, as `expected` says.
fn changed(
    cluster: &Cluster,
    before: &[((usize, usize), usize)],
    expected: impl Fn((usize, usize)) -> Option<usize>,
) -> Result<(), String> {
    for ((pair, before), (_, after)) in before.iter().zip(changes(cluster)) {
        let Some(expected) = expected(*pair) else { continue };
        if after - before != expected {
            let (via, about) = (pair.0 + 1, pair.1 + 1);
            let times = after - before;
            return Err(format!("n{via} changed its mind about n{about} {times} times"));
        }
    }
    Ok(())
}

/// Fails if a node has changed its mind about another more than once since `before`.
fn expect_calm(cluster: &Cluster, before: &[((usize, usize), usize)]) {
    for ((pair, before), (_, after)) in before.iter().zip(changes(cluster)) {
        let (via, about) = (pair.0 + 1, pair.1 + 1);
        let changes = after - before;
        eprintln!("n{via} changed its mind about n{about} {changes} times");
        assert!(changes <= 1, "n{via} changed its mind about n{about} {changes} times");
    }
}

/// What `kvctl nodes show` tells through node `via`.
fn shown(cluster: &Cluster, via: usize, name: &str) -> Value {
    let shown = ok(cluster.kvctl_via(via, &["nodes", "show", name, "-o", "json"]));
    serde_json::from_slice::<Value>(&shown).unwrap()["data"].clone()
}

/// Waits until `kvctl nodes show` tells through node `via` that the others think so.
fn wait_for_views(cluster: &Cluster, via: usize, name: &str, expected: &Value) {
    let mut last = Value::Null;
    let until = Instant::now() + Duration::from_secs(20);
    while last != *expected {
        assert!(Instant::now() < until, "{name} as n{} shows it: {last}", via + 1);
        last = shown(cluster, via, name)["views"].clone();
    }
}

#[test]
fn a_killed_node_is_down_for_everybody_in_5_s_and_up_again_once_it_is_back() {
    let mut cluster = Cluster::start(3);
    wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
    one_of_three("down once, up once, in time", || {
        let before = changes(&cluster);
        cluster.nodes[2].kill();
        let took = wait_until_seen(&cluster, &[0, 1], &[2], NodeState::Down);
        let down = json!({
            "up": [], "suspect": [], "down": ["n1", "n2"], "unknown": [], "unlinked": ["n1", "n2"],
        });
        wait_for_views(&cluster, 0, "n3", &down);
        // Who is dead says nothing, and is not taken to agree.
        let mute = json!({
            "up": ["n2"], "suspect": [], "down": [], "unknown": ["n3"], "unlinked": [],
        });
        for via in [0, 1] {
            wait_for_views(&cluster, via, "n1", &mute);
        }
        let table = text(&ok(cluster.kvctl_via(0, &["nodes", "show", "n1"])));
        assert!(table.contains("up n2 · unknown n3"), "{table}");

        cluster.nodes[2].start();
        let back = wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
        eprintln!("killed: down for all after {took:?}, up for all {back:?} after it served");
        within("down", took, DOWN_WITHIN)?;
        within("up", back, UP_WITHIN)?;
        changed(&cluster, &before, |pair| match pair {
            (2, _) => None, // it forgot
            (_, 2) => Some(2),
            _ => Some(0),
        })
    });
}

#[test]
fn a_paused_node_is_down_for_everybody_in_5_s_and_up_again_once_it_goes_on() {
    let cluster = Cluster::start(3);
    wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
    let client = cluster.client(0);
    one_of_three("passed over, down and up in time", || {
        let before = changes(&cluster);
        cluster.nodes[1].signal(Signal::STOP);
        let since = Instant::now();
        // Requests do not wait for that: n2 is passed over as soon as it leaves one unanswered.
        let linked = || {
            cluster.block_on(async { client.kv().put(put("k", 2)).await }).unwrap();
            let nodes = view(&cluster, 0).nodes;
            let n2 = nodes.into_iter().find(|node| node.name == "n2").unwrap();
            n2.seen_by.iter().any(|said| said.node == "n1" && said.linked)
        };
        eventually("n1 to pass n2 over", || (!linked()).then_some(()));
        let passed_over = since.elapsed();
        wait_until_seen(&cluster, &[0, 2], &[1], NodeState::Down);
        let took = since.elapsed();
        cluster.nodes[1].signal(Signal::CONT);
        let back = wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
        eprintln!(
            "paused: passed over after {passed_over:?}, down for all after {took:?}, up {back:?}"
        );
        within("passed over", passed_over, PASSED_OVER_WITHIN)?;
        within("down", took, DOWN_WITHIN)?;
        within("up", back, UP_WITHIN)?;
        // What it could not hear while it was away it holds against nobody.
        changed(&cluster, &before, |(via, _)| (via == 1).then_some(0))
    });
}

#[test]
fn a_node_that_only_one_other_cannot_reach_stays_up_and_writes_go_on() {
    net::within(|net| {
        let cluster = net.cluster(3);
        wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
        let before = changes(&cluster);
        let clients = [0, 1, 2].map(|via| cluster.client(via));
        net.cut_one_way(0, 1);
        let since = Instant::now();
        let mut written = 0;
        while since.elapsed() < Duration::from_secs(15) {
            for (via, client) in clients.iter().enumerate() {
                let put = put(&format!("k{written}"), 2);
                let done = cluster.block_on(async { client.kv().put(put).await });
                done.unwrap_or_else(|status| panic!("through n{}: {status}", via + 1));
                written += 1;
            }
        }
        eprintln!("{written} writes went through");
        expect_calm(&cluster, &before);
        for (via, about) in [(0, "n2"), (1, "n1")] {
            let (me, shown) = (&cluster.nodes[via].name, shown(&cluster, via, about));
            assert_eq!(shown["state"], "up");
            let why = shown["why"].as_str().unwrap();
            assert!(why.starts_with(&format!("{me} has no link to it: ")), "{why}");
            assert!(shown["views"]["unlinked"].as_array().unwrap().contains(&json!(me)));
        }
        let status = text(&ok(cluster.kvctl_via(2, &["status"])));
        assert!(status.contains("not everybody reaches n2: up n1 (no link) n3"), "{status}");
        net.heal();
        let linked = json!({
            "up": ["n1", "n3"], "suspect": [], "down": [], "unknown": [], "unlinked": [],
        });
        wait_for_views(&cluster, 0, "n2", &linked);
    });
}

#[test]
fn a_node_that_the_last_witness_vouched_for_goes_down_with_it() {
    net::within(|net| {
        let mut cluster = net.cluster(3);
        one_of_three("down in time", || {
            wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
            net.cut(0, 1);
            let vouched_for = json!({
                "up": ["n1", "n3"], "suspect": [], "down": [], "unknown": [], "unlinked": ["n1"],
            });
            wait_for_views(&cluster, 2, "n2", &vouched_for);
            cluster.nodes[2].kill();
            let took = wait_until_seen(&cluster, &[0, 1], &[0, 1, 2], NodeState::Down);
            eprintln!("the last witness killed: down for both after {took:?}");
            net.heal();
            cluster.nodes[2].start();
            within("down", took, DOWN_WITHIN)
        });
    });
}

#[test]
fn a_network_that_loses_a_fifth_of_all_packets_brings_nobody_down() {
    net::within(|net| {
        let cluster = net.cluster(3);
        wait_until_seen(&cluster, &[0, 1, 2], &[0, 1, 2], NodeState::Up);
        let before = changes(&cluster);
        net.lossy(20);
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            for (via, about) in pairs(&[0, 1, 2], &[0, 1, 2]) {
                assert!(
                    !sees(&cluster, via, about, NodeState::Down),
                    "n{} takes n{} for down",
                    via + 1,
                    about + 1
                );
            }
        }
        expect_calm(&cluster, &before);
    });
}

#[test]
fn two_halves_that_took_each_other_for_dead_are_whole_again_soon_after_they_meet() {
    net::within(|net| {
        let cluster = net.cluster(4);
        let (one, other, all) = ([0, 1], [2, 3], [0, 1, 2, 3]);
        wait_until_seen(&cluster, &all, &all, NodeState::Up);
        for round in ["first", "second"] {
            one_of_three("whole again in time", || {
                net.split(&one, &other);
                let since = Instant::now();
                wait_until_seen(&cluster, &one, &other, NodeState::Down);
                wait_until_seen(&cluster, &other, &one, NodeState::Down);
                let took = since.elapsed();
                let friends = [(0, 1), (1, 0), (2, 3), (3, 2)];
                let whole = friends.iter().all(|(a, b)| sees(&cluster, *a, *b, NodeState::Up));
                net.heal();
                let back = wait_until_seen(&cluster, &all, &all, NodeState::Up);
                eprintln!("{round} split: down for all after {took:?}, up {back:?} after it");
                if !whole {
                    return Err("halves that were not cut fell apart".into());
                }
                within("up", back, UP_WITHIN)
            });
        }
        // Not only those with a link know it: the others vouch for who is cut off from one.
        let before = changes(&cluster);
        net.cut(0, 2);
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            assert!(sees(&cluster, 0, 2, NodeState::Up) && sees(&cluster, 2, 0, NodeState::Up));
        }
        expect_calm(&cluster, &before);
    });
}

#[test]
fn of_two_nodes_each_goes_by_what_it_sees_itself() {
    net::within(|net| {
        let cluster = net.cluster(2);
        wait_until_seen(&cluster, &[0, 1], &[0, 1], NodeState::Up);
        one_of_three("down once, up once, in time", || {
            let before = changes(&cluster);
            net.cut(0, 1);
            let took = wait_until_seen(&cluster, &[0, 1], &[0, 1], NodeState::Down);
            net.heal();
            let back = wait_until_seen(&cluster, &[0, 1], &[0, 1], NodeState::Up);
            eprintln!("two nodes: down for both after {took:?}, up {back:?} after it");
            within("down", took, DOWN_WITHIN)?;
            within("up", back, UP_WITHIN)?;
            changed(&cluster, &before, |_| Some(2))
        });
    });
}
