//! The cluster changes while it serves: real processes, and clients that write and read throughout.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::client::Client;
use proto::v1::{GetClusterRequest, GetLayoutRequest, LayoutView, OpState, OpsAction};
use tests::eventually;
use tests::load::Options;
use tests::net;
use tests::process::{Cluster, free_address, run};
use tests::scenario::{Ended, Scenario, prepare};
use tests::topology::{
    add, cancel, change, op, plan, remove, replace, reweight, steer, throttle, try_apply, tune,
    wait_until_done, wait_until_percent,
};

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
    let mut scenario = Scenario::start(5);
    let client = scenario.cluster.client(0);
    // Clients go on asking both, and then the next one: not the two side by side, for it is one more
    // try that has to mend it.
    let changes = vec![remove("n3", false), remove("n5", false)];
    let op = change(&scenario.cluster, &client, changes);
    wait_until_done(&scenario.cluster, &client, &op.id);
    for name in ["n3", "n5"] {
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

/// Who is replaced is drained: clients go on asking it, and the next one mends it.
#[test]
fn a_node_that_is_up_is_replaced_and_exits() {
    let mut scenario = Scenario::start(4);
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(0);
    let change_it = replace("n3", &scenario.cluster.nodes[new], false);
    let op = change(&scenario.cluster, &client, vec![change_it]);
    wait_until_done(&scenario.cluster, &client, &op.id);
    let mut left = scenario.cluster.forget("n3");
    assert_eq!(left.wait_for_end().code(), Some(0), "{}", left.log());
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

/// Values and keys enough, and a rate so low, that moving them takes a while.
fn slow(nodes: usize) -> Scenario {
    let scenario =
        Scenario::start_with(nodes, |options| Options { keys: 400, value_bytes: 2000, ..options });
    scenario.pass(1500);
    let client = scenario.cluster.client(0);
    throttle(&scenario.cluster, &client, SLOWLY);
    scenario
}

/// Bytes a second that a node fetches: a few hundred keys then take some ten seconds.
const SLOWLY: u64 = 256 * 1024;

/// Kills and starts a node each time that so many copies of a hundred are there.
fn killed_at_every_stage(scenario: &mut Scenario, victim: &str, op: &str) {
    let at = scenario.cluster.nodes.iter().position(|node| node.name == victim).unwrap();
    // Through one that stays.
    let via = usize::from(at == 0);
    for percent in [0, 25, 50, 75, 100] {
        let client = scenario.cluster.client(via);
        wait_until_percent(&scenario.cluster, &client, op, percent);
        scenario.cluster.nodes[at].kill();
        scenario.pass(50);
        // One that has left by then is told so, and does not come back.
        if !scenario.cluster.nodes[at].try_start() {
            break;
        }
    }
}

#[test]
fn a_joiner_is_killed_at_every_stage() {
    let mut scenario = slow(3);
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(0);
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let op = change(&scenario.cluster, &client, vec![change_it]);
    killed_at_every_stage(&mut scenario, "n4", &op.id);
    wait_until_done(&scenario.cluster, &client, &op.id);
    scenario.pass(100);
    all_answered(&scenario.end());
}

/// Who was away while the others went on has a long list of copies it can fetch no more as it
/// thought; that must not keep it from those it can.
#[test]
fn a_joiner_is_away_while_the_others_go_on() {
    let mut scenario = slow(3);
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(0);
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let op = change(&scenario.cluster, &client, vec![change_it]);
    scenario.cluster.nodes[new].kill();
    scenario.pass(1500);
    scenario.cluster.nodes[new].start();
    wait_until_percent(&scenario.cluster, &client, &op.id, 25);
    wait_until_done(&scenario.cluster, &client, &op.id);
    all_answered(&scenario.end());
}

#[test]
fn an_old_owner_is_killed_at_every_stage() {
    let mut scenario = slow(3);
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(1);
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let op = change(&scenario.cluster, &client, vec![change_it]);
    killed_at_every_stage(&mut scenario, "n1", &op.id);
    wait_until_done(&scenario.cluster, &client, &op.id);
    scenario.pass(100);
    all_answered(&scenario.end());
}

#[test]
fn a_leaver_is_killed_at_every_stage() {
    let mut scenario = slow(4);
    let client = scenario.cluster.client(0);
    let op = change(&scenario.cluster, &client, vec![remove("n4", false)]);
    killed_at_every_stage(&mut scenario, "n4", &op.id);
    wait_until_done(&scenario.cluster, &client, &op.id);
    let mut left = scenario.cluster.forget("n4");
    assert_eq!(left.wait_for_end().code(), Some(0), "{}", left.log());
    scenario.pass(100);
    all_answered(&scenario.end());
}

#[test]
fn what_is_paused_stands_still_and_what_is_cancelled_goes_back() {
    let mut scenario = slow(3);
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(0);
    throttle(&scenario.cluster, &client, SLOWLY / 8);
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let added = change(&scenario.cluster, &client, vec![change_it]);
    wait_until_percent(&scenario.cluster, &client, &added.id, 1);
    steer(&scenario.cluster, &client, OpsAction::Pause);
    let paused = op(&scenario.cluster, &client, &added.id).unwrap();
    assert_eq!(paused.state(), OpState::Paused);
    scenario.pass(200);
    let later = op(&scenario.cluster, &client, &added.id).unwrap();
    assert!(later.copies_done < later.copies_total, "{later:#?}");
    steer(&scenario.cluster, &client, OpsAction::Resume);
    let back = change(&scenario.cluster, &client, vec![cancel(&added)]);
    throttle(&scenario.cluster, &client, 0);
    wait_until_done(&scenario.cluster, &client, &back.id);
    let cancelled = op(&scenario.cluster, &client, &added.id).unwrap();
    assert_eq!(cancelled.state(), OpState::Cancelled);
    let mut gone = scenario.cluster.forget("n4");
    assert_eq!(gone.wait_for_end().code(), Some(0), "{}", gone.log());
    scenario.pass(100);
    all_answered(&scenario.end());
}

/// Nobody is told anything: it finds the others where they were, and they learn from it.
#[test]
fn a_node_started_elsewhere_is_where_it_says() {
    let mut cluster = Cluster::start(3);
    let address = |cluster: &Cluster, via: usize| {
        let client = cluster.client(via);
        let view = cluster.block_on(async { client.admin().get_layout(GetLayoutRequest {}).await });
        let members = view.map(|view| view.into_inner().members).unwrap_or_default();
        members.into_iter().find(|member| member.name == "n2").map(|member| member.address)
    };
    for _ in 0..2 {
        // It remembers where it was once it has served there.
        let before = cluster.nodes[1].address.clone();
        eventually("n2 to be known", || (address(&cluster, 0)? == before).then_some(()));
        cluster.wait_until_up(0, &["n1", "n2", "n3"]);
        assert_eq!(cluster.nodes[1].stop().code(), Some(0));
        cluster.nodes[1].address = free_address();
        cluster.nodes[1].start();
        let moved = cluster.nodes[1].address.clone();
        for via in 0..3 {
            eventually("n2's new address", || (address(&cluster, via)? == moved).then_some(()));
        }
        cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    }
    eventually("a cluster without a fault", || {
        let checked = run(cluster.kvctl_via(0, &["check"]));
        checked.status.success().then_some(())
    });
}

#[test]
fn the_network_is_cut_while_copies_move() {
    net::within(|net| {
        let scenario = Scenario::on(net.cluster_with(5, prepare), |options| options);
        let client = scenario.cluster.client(0);
        let op = change(&scenario.cluster, &client, vec![reweight("n2", 4), reweight("n5", 3)]);
        net.split(&[0, 1, 2], &[3, 4]);
        scenario.pass(600);
        net.heal();
        wait_until_done(&scenario.cluster, &client, &op.id);
        scenario.pass(200);
        scenario.end();
    });
}

#[test]
fn plans_applied_on_both_sides_of_a_cut_both_take_effect() {
    net::within(|net| {
        let scenario = Scenario::on(net.cluster_with(5, prepare), |options| options);
        let cluster = &scenario.cluster;
        let (here, there) = (cluster.client(0), cluster.client(4));
        net.split(&[0, 1, 2], &[3, 4]);
        cluster.wait_until_up(4, &["n4", "n5"]);
        cluster.wait_until_up(0, &["n1", "n2", "n3"]);
        let ours = plan(cluster, &here, vec![reweight("n1", 3)]);
        let theirs = plan(cluster, &there, vec![reweight("n5", 2), tune("strict", 3, 3, 1)]);
        try_apply(cluster, &here, &ours, &[]).unwrap();
        let refused = try_apply(cluster, &there, &theirs, &[]).unwrap_err();
        assert!(refused.message().contains("2 of 5 nodes are up"), "{refused}");
        try_apply(cluster, &there, &theirs, &["minority"]).unwrap();
        scenario.pass(200);
        net.heal();
        one_layout_with(&scenario, &here, &there, |layout| {
            let weight = |name: &str| {
                let member = layout.members.iter().find(|member| member.name == name);
                member.unwrap().weight
            };
            let strict = layout.keyspaces.iter().find(|keyspace| keyspace.name == "strict");
            (weight("n1"), weight("n5"), strict.unwrap().r) == (3, 2, 3)
        });
        scenario.end();
    });
}

#[test]
fn of_two_plans_applied_at_once_none_is_silently_gone() {
    let scenario = Scenario::start(4);
    let cluster = &scenario.cluster;
    let (one, other) = (cluster.client(0), cluster.client(3));
    for round in 2..6 {
        let first = plan(cluster, &one, vec![reweight("n1", round)]);
        let second = plan(cluster, &other, vec![reweight("n4", round)]);
        let ask = |plan: &proto::v1::Plan| proto::v1::ApplyPlanRequest {
            changes: plan.changes.clone(),
            digest: plan.digest.clone(),
            ..Default::default()
        };
        let (first, second) = (ask(&first), ask(&second));
        let (first, second) = cluster.block_on(async {
            futures_util::future::join(
                one.admin().apply_plan(first),
                other.admin().apply_plan(second),
            )
            .await
        });
        assert!(first.is_ok() || second.is_ok());
        one_layout_with(&scenario, &one, &other, |layout| {
            let weight = |name: &str| {
                let member = layout.members.iter().find(|member| member.name == name);
                member.unwrap().weight
            };
            // What was refused is not there, what was not is.
            (weight("n1") == round) == first.is_ok() && (weight("n4") == round) == second.is_ok()
        });
    }
    scenario.end();
}

/// Waits until two nodes have the same settled layout, and it is so.
fn one_layout_with(
    scenario: &Scenario,
    one: &Client,
    other: &Client,
    is_so: impl Fn(&LayoutView) -> bool,
) {
    let layout = |client: &Client| {
        let ask = GetLayoutRequest {};
        let view = scenario.cluster.block_on(async { client.admin().get_layout(ask).await });
        view.ok().map(|view| view.into_inner())
    };
    eventually("one layout, with every change", || {
        let (ours, theirs) = (layout(one)?, layout(other)?);
        let none_open = |client: &Client| {
            let ask = GetClusterRequest::default();
            let view = scenario.cluster.block_on(async { client.admin().get_cluster(ask).await });
            view.is_ok_and(|view| view.into_inner().ops.is_empty())
        };
        let same = ours.layout == theirs.layout && is_so(&ours);
        (same && none_open(one) && none_open(other)).then_some(())
    });
}
