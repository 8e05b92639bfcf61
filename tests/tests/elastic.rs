//! The cluster changes while it serves: real processes, and clients that write and read throughout.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tests::load::Options;
use tests::scenario::{Ended, Scenario};
use tests::topology::{add, change, remove, replace, reweight, tune, wait_until_done};

/// No request failed that a second try did not mend.
fn all_answered(ended: &Ended) {
    for summary in [&ended.sloppy, &ended.strict] {
        for kind in ["get", "put", "delete"] {
            let counts = summary.of_kind(kind);
            assert!(counts.ok > 20, "too few to say anything\n{summary}");
            assert_eq!(counts.failed + counts.indeterminate, 0, "{kind}s failed\n{summary}");
        }
    }
}

#[test]
fn three_become_five_in_one_plan() {
    let mut scenario = Scenario::start(3);
    let (a, b) = (scenario.cluster.more(), scenario.cluster.more());
    let client = scenario.cluster.client(0);
    let changes = [a, b].map(|at| add(&scenario.cluster.nodes[at], "", 0));
    let op = change(&scenario.cluster, &client, changes.to_vec());
    let op = wait_until_done(&scenario.cluster, &client, &op.id);
    assert_eq!(op.copies_total, 0, "an ended one tells no more: {op:#?}");
    scenario.pass(200);
    all_answered(&scenario.end());
}

#[test]
fn five_become_three_and_who_leaves_exits() {
    // A client that goes on asking those that have left needs another try for each of them.
    let mut scenario = Scenario::start_with(5, |options| Options { tries: 4, ..options });
    let client = scenario.cluster.client(0);
    let changes = vec![remove("n4", false), remove("n5", false)];
    let op = change(&scenario.cluster, &client, changes);
    wait_until_done(&scenario.cluster, &client, &op.id);
    for name in ["n4", "n5"] {
        let mut left = scenario.cluster.forget(name);
        assert_eq!(left.wait_for_end().code(), Some(0), "{}", left.log());
    }
    scenario.pass(200);
    all_answered(&scenario.end());
}

#[test]
fn a_dead_node_is_replaced() {
    let mut scenario = Scenario::start(3);
    let victim = scenario.cluster.nodes[2].name.clone();
    scenario.cluster.nodes[2].kill();
    scenario.cluster.wait_until_up(0, &["n1", "n2"]);
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(0);
    let change_it = replace(&victim, &scenario.cluster.nodes[new], true);
    let op = change(&scenario.cluster, &client, vec![change_it]);
    wait_until_done(&scenario.cluster, &client, &op.id);
    // Whoever comes back with the old directory is told, and does not stay.
    let mut returned = scenario.cluster.forget("n3");
    returned.start();
    assert_eq!(returned.wait_for_end().code(), Some(0), "{}", returned.log());
    assert!(returned.log().contains("was removed from cluster"), "{}", returned.log());
    scenario.pass(200);
    all_answered(&scenario.end());
}

#[test]
fn a_node_gets_another_weight() {
    let scenario = Scenario::start(4);
    let client = scenario.cluster.client(0);
    let op = change(&scenario.cluster, &client, vec![reweight("n2", 4)]);
    wait_until_done(&scenario.cluster, &client, &op.id);
    scenario.pass(200);
    all_answered(&scenario.end());
}

#[test]
fn quorums_are_tuned_under_load() {
    let scenario = Scenario::start(3);
    let client = scenario.cluster.client(0);
    for (r, w) in [(1, 3), (3, 1), (2, 2)] {
        let op = change(&scenario.cluster, &client, vec![tune("strict", 3, r, w)]);
        scenario.pass(50);
        wait_until_done(&scenario.cluster, &client, &op.id);
        scenario.pass(100);
    }
    all_answered(&scenario.end());
}

#[test]
fn n_goes_from_three_to_five_and_back() {
    let scenario = Scenario::start(5);
    let client = scenario.cluster.client(0);
    for (n, r, w) in [(5, 3, 3), (3, 2, 2)] {
        let op = change(&scenario.cluster, &client, vec![tune("strict", n, r, w)]);
        scenario.pass(50);
        wait_until_done(&scenario.cluster, &client, &op.id);
        scenario.pass(100);
    }
    all_answered(&scenario.end());
}
