//! Real clusters under load and faults, judged by the checkers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use tests::check;
use tests::eventually;
use tests::history::History;
use tests::load::{Load, Options, Summary};
use tests::process::{Cluster, ok};
use tests::rng::seed_of_run;

/// Waits until `more` operations have been begun from now on.
fn pass(load: &Load, more: usize) {
    let enough = load.begun() + more;
    eventually("the load to go on", || (load.begun() >= enough).then_some(()));
}

/// Ends the load, checks what it recorded, and that all was answered again.
fn judge(cluster: &Cluster, load: Load) -> Summary {
    let history = load.stop_and_read_all(3);
    check::expect_sound(&history, cluster.dir());
    let summary = Summary::of(&history);
    eprintln!("{}:\n{summary}", history.run.keyspace);
    for kind in ["get", "put", "delete"] {
        let counts = summary.of_kind(kind);
        assert!(counts.ok > 20, "too few to say anything\n{summary}");
        // That of all tries together, and room for a machine that stands still.
        assert!(counts.quantile_us(1.0) < 6_000_000, "past the deadline\n{summary}");
    }
    summary
}

#[test]
fn what_clients_saw_while_one_of_three_was_killed_twice_is_what_was_promised() {
    let seed = seed_of_run();
    let mut cluster = Cluster::start(3);
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    let sloppy = Options { seed, ..Options::default() };
    // Another seed: values of one keyspace that show in the other are then noticed. One try: writes
    // whose node is killed stay in doubt.
    let strict = Options {
        seed: seed + 1,
        keyspace: "strict".into(),
        strict: true,
        tries: 1,
        ..Options::default()
    };
    let loads = [sloppy, strict].map(|options| Load::start(&cluster.nodes, options));
    let [first, _] = &loads;
    for victim in [1, 2] {
        pass(first, 400);
        cluster.nodes[victim].kill();
        pass(first, 400);
        cluster.nodes[victim].start();
    }
    pass(first, 400);
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    for load in loads {
        judge(&cluster, load);
    }
}

#[test]
fn a_keyspace_that_promises_less_is_caught_by_c2_and_still_loses_nothing() {
    let seed = seed_of_run();
    // Nothing but gets brings n2 what it missed.
    let off = || vec![("KVD_REPAIR_EVERY", "off".to_owned())];
    let mut cluster = Cluster::start_with(3, |node| node.env = off());
    ok(cluster.kvctl(&["keyspaces", "create", "one", "--r", "1", "--w", "1"]));
    let options = Options { seed, keyspace: "one".into(), keys: 60, ..Options::default() };
    let load = Load::start(&cluster.nodes, options);
    pass(&load, 400);
    cluster.nodes[1].kill();
    cluster.wait_until_up(0, &["n1", "n3"]);
    cluster.wait_until_up(2, &["n1", "n3"]);
    for holder in ["n1", "n3"] {
        ok(cluster.kvctl_via(0, &["hints", "pause", "--node", holder]));
    }
    pass(&load, 800);
    cluster.nodes[1].start(); // behind, and asked alone
    pass(&load, 800);
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let history = load.stop_and_read_all(3);
    check::expect_sound(&history, cluster.dir());
    assert!(!check::c2::regular(&history).is_empty(), "R + W = 2 passed for regular");
}

/// `KVD_HISTORY=FILE cargo test -p tests --test histories -- --ignored --nocapture kept`
#[test]
#[ignore = "wants the file of a kept history in KVD_HISTORY"]
fn a_kept_history_is_checked_again() {
    let path = std::env::var("KVD_HISTORY").expect("KVD_HISTORY names a file");
    let history = History::load(Path::new(&path)).unwrap();
    eprintln!("{:?}\n{}", history.run, Summary::of(&history));
    let found = check::all(&history);
    assert!(found.is_empty(), "\n{}", check::listed(&found));
}
