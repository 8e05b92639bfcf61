//! Changes of the cluster that meet something else: a node that dies for good, a coordinator that is
//! cut off, another change, a bound. Real processes; `elastic.rs` has the changes by themselves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::client::Client;
use proto::error::detail;
use proto::v1::{
    DeleteRequest, ErrorCode, GetClusterRequest, GetRequest, LayoutView, OpState, OpsAction, Plan,
    PutRequest,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::Duration;
use tests::eventually;
use tests::load::Options;
use tests::net;
use tests::process::{Cluster, free_address, ok, run, text};
use tests::scenario::{Ended, Scenario, prepare};
use tests::topology::{
    add, cancel, change, drop_keyspace, layout, op, plan, remove, reweight, rezone, spread, steer,
    throttle, try_apply, try_apply_as, try_plan, tune, wait_until_done, wait_until_percent,
    wait_until_settled,
};

/// Bytes a second that a node fetches, so that some hundred small values take seconds.
const SLOWLY: u64 = 32 * 1024;

// === helpers ===

/// No request failed that a second try did not mend.
fn all_answered(ended: &Ended) {
    for summary in [&ended.sloppy, &ended.strict] {
        for kind in ["get", "put"] {
            let counts = summary.of_kind(kind);
            assert!(counts.ok > 20, "too few to say anything\n{summary}");
            assert_eq!(counts.failed + counts.indeterminate, 0, "{kind}s failed\n{summary}");
        }
    }
}

/// Values and keys enough, and a rate so low, that moving them takes some seconds.
fn slow(nodes: usize, quorum: (u32, u32, u32)) -> Scenario {
    let cluster = Cluster::start_with(nodes, prepare);
    let scenario = Scenario::with_quorum(cluster, quorum, |options| Options {
        keys: 80,
        value_bytes: 2000,
        sessions: 4,
        per_second: Some(80),
        ..options
    });
    scenario.pass(300);
    throttle(&scenario.cluster, &scenario.cluster.client(0), SLOWLY);
    scenario
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().map(|node| node.name.clone()).collect()
}

/// Waits until every node sees every other up.
fn wait_until_all_up(cluster: &Cluster) {
    let names = names(cluster);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    (0..cluster.nodes.len()).for_each(|via| cluster.wait_until_up(via, &names));
}

fn weight(layout: &LayoutView, node: &str) -> u32 {
    layout.members.iter().find(|member| member.name == node).map_or(0, |member| member.weight)
}

fn has_member(layout: &LayoutView, node: &str) -> bool {
    layout.members.iter().any(|member| member.name == node)
}

/// Names of the replicas of every partition of the table of `n` copies.
fn rows(layout: &LayoutView, n: u32) -> Vec<Vec<&str>> {
    let table = layout.tables.iter().find(|table| table.n == n).unwrap();
    let name = |slot: &u32| layout.members[*slot as usize].name.as_str();
    table.slots.chunks(n as usize).map(|row| row.iter().map(name).collect()).collect()
}

/// In how many zones the copies of a partition are: fewest of all.
fn fewest_zones(layout: &LayoutView, n: u32) -> usize {
    let zones: BTreeMap<&str, &str> =
        layout.members.iter().map(|it| (it.name.as_str(), it.zone.as_str())).collect();
    let touched = |row: Vec<&str>| row.iter().map(|name| zones[name]).collect::<BTreeSet<_>>();
    rows(layout, n).into_iter().map(|row| touched(row).len()).min().unwrap()
}

fn put(
    cluster: &Cluster,
    client: &Client,
    keyspace: &str,
    (key, value): (&str, Vec<u8>),
    w: Option<u32>,
) -> Result<(), tonic::Status> {
    let (keyspace, key, value) = (keyspace.into(), key.to_owned().into(), value.into());
    let ask = PutRequest { keyspace, key, value, w, ..Default::default() };
    cluster.block_on(async { client.kv().put(ask).await }).map(|_| ())
}

fn get(
    cluster: &Cluster,
    client: &Client,
    keyspace: &str,
    key: &str,
    r: Option<u32>,
) -> Result<Vec<Vec<u8>>, tonic::Status> {
    let ask = GetRequest {
        keyspace: keyspace.into(),
        key: key.to_owned().into(),
        r,
        ..Default::default()
    };
    let reply = cluster.block_on(async { client.kv().get(ask).await })?.into_inner();
    Ok(reply.siblings.into_iter().map(|it| it.value.to_vec()).collect())
}

fn key(i: usize) -> String {
    format!("key-{i}")
}

fn put_all(cluster: &Cluster, client: &Client, keyspace: &str, count: usize, value: &str) {
    for i in 0..count {
        let value = format!("{value}-{i}").into_bytes();
        put(cluster, client, keyspace, (&key(i), value), None).unwrap();
    }
}

/// Every key is there once, at this R, through every node.
fn all_there(cluster: &Cluster, keyspace: &str, count: usize, value: &str, r: u32) {
    for i in 0..count {
        let client = cluster.client(i % cluster.nodes.len());
        let found = get(cluster, &client, keyspace, &key(i), Some(r)).unwrap();
        assert_eq!(found, [format!("{value}-{i}").into_bytes()], "{keyspace}/{}", key(i));
    }
}

fn code(status: &tonic::Status) -> ErrorCode {
    detail(status).map_or(ErrorCode::Unspecified, |detail| detail.code())
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("no JSON: {}", text(bytes)))
}

/// Ended with this exit code.
fn exits(output: &Output, code: i32) {
    let said = || format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{}", said());
}

/// Records that each member says it has, hints and all, by name.
fn records(cluster: &Cluster, client: &Client) -> Option<BTreeMap<String, u64>> {
    let ask = GetClusterRequest::default();
    let view = cluster.block_on(async { client.admin().get_cluster(ask).await }).ok()?;
    let nodes = view.into_inner().nodes.into_iter();
    nodes.map(|node| Some((node.name, node.stats?.keys))).collect()
}

// === nodes that die for good while copies move ===

#[test]
fn a_joiner_that_dies_for_good_is_removed() {
    let mut scenario = slow(3, (3, 2, 2));
    let new = scenario.cluster.more();
    let client = scenario.cluster.client(0);
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let added = change(&scenario.cluster, &client, vec![change_it]);
    wait_until_percent(&scenario.cluster, &client, &added.id, 25);
    scenario.cluster.nodes[new].kill();
    let mut dead = scenario.cluster.forget("n4");
    scenario.cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let plan = plan(&scenario.cluster, &client, vec![remove("n4", true)]);
    assert_eq!(plan.forces, [""; 0], "W others have all it acknowledged: {:?}", plan.warnings);
    let removed = try_apply(&scenario.cluster, &client, &plan, &[]).unwrap();
    throttle(&scenario.cluster, &client, 0);
    for op in [&removed, &added] {
        wait_until_done(&scenario.cluster, &client, &op.id);
    }
    wait_until_settled(&scenario.cluster, "three nodes", |layout| layout.members.len() == 3);
    dead.try_start(); // it may have ended by then
    assert_eq!(dead.wait_for_end().code(), Some(0), "{}", dead.log());
    scenario.pass(50);
    all_answered(&scenario.end());
}

#[test]
fn an_old_owner_that_dies_for_good_is_removed() {
    let mut scenario = slow(3, (3, 2, 2));
    let new = scenario.cluster.more();
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let added = change(&scenario.cluster, &scenario.cluster.client(1), vec![change_it]);
    let client = scenario.cluster.client(1);
    wait_until_percent(&scenario.cluster, &client, &added.id, 25);
    scenario.cluster.nodes[0].kill();
    drop(scenario.cluster.forget("n1"));
    scenario.cluster.wait_until_up(0, &["n2", "n3", "n4"]);
    let plan = plan(&scenario.cluster, &client, vec![remove("n1", true)]);
    assert_eq!(plan.forces, [""; 0], "W others have all it acknowledged: {:?}", plan.warnings);
    let removed = try_apply(&scenario.cluster, &client, &plan, &[]).unwrap();
    throttle(&scenario.cluster, &client, 0);
    for op in [&removed, &added] {
        wait_until_done(&scenario.cluster, &client, &op.id);
    }
    let three = |layout: &LayoutView| layout.members.len() == 3 && !has_member(layout, "n1");
    wait_until_settled(&scenario.cluster, "n4 in the place of n1", three);
    scenario.pass(50);
    all_answered(&scenario.end());
}

/// A node that is leaving dies for good on its way: removed a second time, as dead.
#[test]
fn a_leaver_that_dies_for_good_is_removed() {
    let mut scenario = slow(4, (3, 2, 2));
    let client = scenario.cluster.client(0);
    let leaving = change(&scenario.cluster, &client, vec![remove("n4", false)]);
    wait_until_percent(&scenario.cluster, &client, &leaving.id, 25);
    scenario.cluster.nodes[3].kill();
    drop(scenario.cluster.forget("n4"));
    eventually("n4 to be down", || {
        let plan = try_plan(&scenario.cluster, &client, vec![remove("n4", true)]).ok()?;
        try_apply(&scenario.cluster, &client, &plan, &[]).ok()
    });
    throttle(&scenario.cluster, &client, 0);
    wait_until_done(&scenario.cluster, &client, &leaving.id);
    wait_until_settled(&scenario.cluster, "three nodes", |layout| layout.members.len() == 3);
    scenario.pass(50);
    all_answered(&scenario.end());
}

/// Nobody asks for anything while it leaves, so nothing delays its end.
#[test]
fn who_leaves_an_idle_cluster_has_told_the_others_that_it_has() {
    let mut cluster = Cluster::start_with(5, prepare);
    for name in ["n5", "n4"] {
        let leave = ["nodes", "remove", name, "--yes", "--timeout", "60s", "-o", "json"];
        exits(&run(cluster.kvctl_via(0, &leave)), 0);
        let left = ["nodes", "wait", name, "--for", "left", "--timeout", "60s"];
        exits(&run(cluster.kvctl_via(0, &left)), 0);
        assert_eq!(cluster.forget(name).wait_for_end().code(), Some(0));
    }
    wait_until_settled(&cluster, "three nodes", |layout| layout.members.len() == 3);
}

// === coordinators that are cut off ===

/// Who made the change was cut off, and died having told nobody.
#[test]
fn a_change_that_only_a_dead_node_knows_takes_effect_when_it_is_back() {
    net::within(|net| {
        let mut cluster = net.cluster_with(4, prepare);
        put_all(&cluster, &cluster.client(0), "default", 30, "v");
        let (one, alone) = (cluster.client(0), cluster.client(3));
        let kept = plan(&cluster, &alone, vec![reweight("n1", 3)]);
        net.split(&[3], &[0, 1, 2]);
        let kept = try_apply_as("kept", &cluster, &alone, &kept, &["minority"]).unwrap();
        cluster.nodes[3].kill();
        cluster.wait_until_up(0, &["n1", "n2", "n3"]);
        assert!(op(&cluster, &one, "kept").is_none(), "nobody has heard of it");
        exits(&run(cluster.kvctl_via(0, &["ops", "wait", "kept", "--timeout", "30s"])), 3);
        let other = change(&cluster, &one, vec![reweight("n2", 2)]);
        // Not before: what a dead process had sent its system goes on sending.
        net.heal();
        cluster.nodes[3].start();
        wait_until_settled(&cluster, "both changes", |layout| {
            (weight(layout, "n1"), weight(layout, "n2")) == (3, 2)
        });
        for (via, id) in [(0, "kept"), (3, &kept.id), (3, &other.id), (1, &other.id)] {
            let wait = ["ops", "wait", id, "--timeout", "60s"];
            exits(&run(cluster.kvctl_via(via, &wait)), 0);
        }
        all_there(&cluster, "default", 30, "v", 3);
    });
}

/// Killed at any moment of an apply, a node has stored the change or has not, and all others come to
/// say the same.
#[test]
fn a_change_whose_coordinator_is_killed_over_it_is_made_everywhere_or_nowhere() {
    let mut cluster = Cluster::start_with(4, prepare);
    let mut made = 0;
    for (round, delay_ms) in [1, 4, 8, 15, 30, 60].into_iter().enumerate() {
        let (weight_now, name) = (round as u32 + 2, format!("ci-{round}"));
        let alone = cluster.client(3);
        let wanted = eventually("a plan", || {
            try_plan(&cluster, &alone, vec![reweight("n1", weight_now)]).ok()
        });
        let address = cluster.nodes[3].address.clone();
        let asking = {
            let (wanted, name) = (wanted.clone(), name.clone());
            std::thread::spawn(move || apply_at(&address, &name, &wanted))
        };
        // Chance is what this is about: nothing waits for it.
        std::thread::sleep(Duration::from_millis(delay_ms));
        cluster.nodes[3].kill();
        let answered = asking.join().unwrap();
        cluster.nodes[3].start();
        wait_until_all_up(&cluster);
        let after = wait_until_settled(&cluster, "it or not", |_| true);
        let is_made = weight(&after, "n1") == weight_now;
        assert!(is_made || !answered, "an answered change is gone: {name}");
        made += u32::from(is_made);
        for via in 0..4 {
            let waited = run(cluster.kvctl_via(via, &["ops", "wait", &name, "--timeout", "60s"]));
            exits(&waited, if is_made { 0 } else { 3 });
        }
    }
    eprintln!("{made} of 6 were made");
}

/// Asks one node alone to apply a plan, on a runtime of its own. Whether it said that it did.
fn apply_at(address: &str, op_id: &str, plan: &Plan) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let patience = Duration::from_secs(10);
        let Ok(client) = Client::connect(&[address.to_owned()], patience).await else {
            return false;
        };
        let ask = proto::v1::ApplyPlanRequest {
            changes: plan.changes.clone(),
            digest: plan.digest.clone(),
            op_id: op_id.to_owned(),
            ..Default::default()
        };
        client.admin().apply_plan(ask).await.is_ok()
    })
}

/// Both sides of a cut change the same things, and other things.
#[test]
fn changes_that_contradict_each_other_across_a_cut_end_as_one() {
    net::within(|net| {
        let mut cluster = net.cluster_with(4, prepare);
        put_all(&cluster, &cluster.client(0), "default", 30, "v");
        let new = cluster.more();
        let (here, there) = (cluster.client(0), cluster.client(3));
        net.split(&[0, 1, 2], &[3]);
        cluster.wait_until_up(3, &["n4"]);
        cluster.wait_until_up(0, &["n1", "n2", "n3"]);
        let joins = add(&cluster.nodes[new], "", 0);
        let ours = plan(&cluster, &here, vec![reweight("n1", 5), joins]);
        let theirs = vec![reweight("n1", 3), tune("default", 3, 3, 1)];
        let theirs = plan(&cluster, &there, theirs);
        let ours = try_apply(&cluster, &here, &ours, &[]).unwrap();
        let refused = try_apply(&cluster, &there, &theirs, &[]).unwrap_err();
        assert_eq!(code(&refused), ErrorCode::PlanRefused, "{refused}");
        let theirs = try_apply(&cluster, &there, &theirs, &["minority"]).unwrap();
        net.heal();
        for (op, told) in [(&ours, &there), (&theirs, &here)] {
            eventually("the other side to hear of it", || {
                tests::topology::op(&cluster, told, &op.id)
            });
        }
        for op in [&ours, &theirs] {
            wait_until_done(&cluster, &here, &op.id);
        }
        let one = wait_until_settled(&cluster, "all that does not contradict", |layout| {
            let default = layout.keyspaces.iter().find(|it| it.name == "default").unwrap();
            let same = [3, 5].contains(&weight(layout, "n1"));
            same && has_member(layout, "n5") && (default.r, default.w) == (3, 1)
        });
        eprintln!("n1 weighs {}", weight(&one, "n1"));
        wait_until_all_up(&cluster);
        all_there(&cluster, "default", 30, "v", 3);
    });
}

// === bounds and refusals ===

#[test]
fn at_the_bound_of_open_layouts_a_change_is_refused_and_a_removal_goes() {
    let mut cluster = Cluster::start_with(4, prepare);
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 30, "v");
    cluster.nodes[3].kill();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let mut ops = Vec::new();
    let refused = loop {
        assert!(ops.len() < 20, "there is no bound");
        let wanted = vec![reweight("n1", ops.len() as u32 % 2 + 2)];
        let wanted = plan(&cluster, &client, wanted);
        match try_apply(&cluster, &client, &wanted, &[]) {
            Ok(op) => ops.push(op),
            Err(refused) => break refused,
        }
    };
    assert_eq!(ops.len(), 15, "with the one they all come from 16");
    assert_eq!(code(&refused), ErrorCode::PlanRefused, "{refused}");
    let told = detail(&refused).unwrap();
    let told = format!("{}; {}; {}", told.what, told.why, told.advice);
    assert!(told.contains("kvctl ops list"), "{told}");
    let set = ["nodes", "set", "n1", "--weight", "9", "--yes", "--timeout", "30s"];
    let set = run(cluster.kvctl_via(0, &set));
    exits(&set, 8);
    assert!(text(&set.stderr).contains("kvctl ops list"), "{}", text(&set.stderr));
    // Whoever looks there is told whom it waits for.
    let listed = json(&ok(cluster.kvctl_via(0, &["ops", "list", "-o", "json"])));
    let open = listed["data"].as_array().unwrap().iter().filter(|op| op["ended_at"].is_null());
    let waits_for_n4 = |op: &Value| {
        let unheard = op["unheard"].as_array().unwrap();
        let stuck = op["stuck"].as_array().unwrap();
        unheard.iter().any(|it| it == "n4") || stuck.iter().any(|it| it["from"] == "n4")
    };
    assert!(open.clone().count() > 0 && open.clone().any(waits_for_n4), "{listed:#}");
    // A way out of it: a removal goes.
    let removal = plan(&cluster, &client, vec![remove("n3", false)]);
    let removal = try_apply(&cluster, &client, &removal, &[]).unwrap();
    all_there_through(&cluster, &client, 30);
    eventually("n3 to have given all away", || {
        (*records(&cluster, &client)?.get("n3")? == 0).then_some(())
    });
    cluster.nodes[3].start();
    ops.push(removal);
    for op in &ops {
        wait_until_done(&cluster, &client, &op.id);
    }
    let mut left = cluster.forget("n3");
    assert_eq!(left.wait_for_end().code(), Some(0), "{}", left.log());
    wait_until_settled(&cluster, "three nodes", |layout| !has_member(layout, "n3"));
    all_there(&cluster, "default", 30, "v", 3);
}

/// The same, but the member that is down stays away: its removal is what ends it.
#[test]
fn at_the_bound_of_open_layouts_the_dead_node_they_wait_for_is_removed() {
    let mut cluster = Cluster::start_with(4, prepare);
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 30, "v");
    cluster.nodes[3].kill();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let mut ops = Vec::new();
    for step in 0..15 {
        ops.push(change(&cluster, &client, vec![reweight("n2", step % 2 + 2)]));
    }
    ops.push(change(&cluster, &client, vec![remove("n4", true)]));
    drop(cluster.forget("n4"));
    for op in &ops {
        wait_until_done(&cluster, &client, &op.id);
    }
    wait_until_settled(&cluster, "three nodes", |layout| layout.members.len() == 3);
    all_there(&cluster, "default", 30, "v", 3);
}

fn all_there_through(cluster: &Cluster, client: &Client, count: usize) {
    for i in 0..count {
        let found = get(cluster, client, "default", &key(i), None).unwrap();
        assert_eq!(found, [format!("v-{i}").into_bytes()], "{}", key(i));
    }
}

#[test]
fn what_cannot_be_is_refused_and_what_is_said_twice_is_done_once() {
    let cluster = Cluster::start_with(3, prepare);
    let client = cluster.client(0);
    let refused = |changes| code(&try_plan(&cluster, &client, changes).unwrap_err());
    assert_eq!(refused(vec![remove("n3", false)]), ErrorCode::PlanRefused, "fewer nodes than N");
    assert_eq!(refused(vec![tune("default", 4, 2, 2)]), ErrorCode::PlanRefused, "N above nodes");
    assert_eq!(refused(vec![tune("default", 3, 4, 2)]), ErrorCode::ArgumentInvalid, "R above N");
    assert_eq!(refused(vec![remove("n9", false)]), ErrorCode::NodeUnknown);
    assert_eq!(refused(vec![reweight("n9", 2)]), ErrorCode::NodeUnknown);
    assert_eq!(refused(vec![drop_keyspace("none")]), ErrorCode::KeyspaceUnknown);
    assert_eq!(refused(vec![remove("n3", true)]), ErrorCode::PlanRefused, "it is up");
    assert_eq!(refused(Vec::new()), ErrorCode::ArgumentInvalid);
    let taken = add(&cluster.nodes[1], "", 0);
    assert_eq!(refused(vec![taken]), ErrorCode::ClusterExists, "it is a member");
    // The same as a script meets them.
    for (args, exit) in [
        (&["nodes", "remove", "n3"][..], 8),
        (&["nodes", "remove", "n9"], 3),
        (&["nodes", "set", "n9", "--weight", "2"], 3),
        (&["quorum", "set", "--n", "4"], 8),
        (&["quorum", "set", "--r", "4"], 2),
        (&["nodes", "remove", "n3", "--dead"], 8),
        (&["keyspaces", "delete", "none"], 3),
        (&["ops", "wait", "op-00000000"], 3),
    ] {
        let output = run(cluster.kvctl(&[args, &["--yes"]].concat()));
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {}", text(&output.stderr));
    }
    let before = layout(&cluster, &client).unwrap();
    assert_eq!(before.members.len(), 3);

    // Another change in between: it is said that there was, and nothing is done.
    let dir = cluster.dir().to_owned();
    let file = dir.join("plan.json");
    let file = file.to_str().unwrap();
    let topology = dir.join("topology.toml");
    let nodes = cluster.nodes.iter().map(|node| {
        let weight = if node.name == "n1" { 4 } else { 1 };
        format!(
            "[[nodes]]\nname = {:?}\naddress = {:?}\nweight = {weight}\n",
            node.name, node.address
        )
    });
    std::fs::write(&topology, nodes.collect::<String>()).unwrap();
    ok(cluster.kvctl(&["plan", "create", "-f", topology.to_str().unwrap(), "--out", file]));
    let shown = plan(&cluster, &client, vec![reweight("n1", 3)]);
    let done = change(&cluster, &client, vec![reweight("n2", 2)]);
    let stale = try_apply(&cluster, &client, &shown, &[]).unwrap_err();
    assert_eq!(code(&stale), ErrorCode::PlanStale, "{stale}");
    let apply = run(cluster.kvctl(&["plan", "apply", file, "--yes"]));
    exits(&apply, 4);
    let said = text(&apply.stderr);
    assert!(said.contains("PLAN_STALE") && said.contains("n2"), "it says what differs: {said}");
    wait_until_done(&cluster, &client, &done.id);
    let same = wait_until_settled(&cluster, "n2 alone", |layout| weight(layout, "n2") == 2);
    assert_eq!(weight(&same, "n1"), 1);

    // Said twice, by anybody, under way or done: one operation.
    let wanted = plan(&cluster, &client, vec![reweight("n1", 3)]);
    let first = try_apply_as("once", &cluster, &client, &wanted, &[]).unwrap();
    let again = try_apply_as("once", &cluster, &cluster.client(2), &wanted, &[]).unwrap();
    assert_eq!(first.id, again.id);
    wait_until_done(&cluster, &client, "once");
    let two = cluster.client(1);
    eventually("n2 to say that it is done", || {
        let later = try_apply_as("once", &cluster, &two, &wanted, &[]).unwrap();
        assert_eq!(later.id, first.id);
        (later.state() == OpState::Done).then_some(())
    });
    let once = wait_until_settled(&cluster, "n1 too", |layout| weight(layout, "n1") == 3);
    assert_eq!(
        once.layout.as_ref().unwrap().depth,
        same.layout.as_ref().unwrap().depth + 1,
        "one layout more"
    );
    let over = try_plan(&cluster, &client, vec![cancel(&done)]).unwrap_err();
    assert_eq!(code(&over), ErrorCode::PlanRefused, "it is done: {over}");
}

/// A node that has just been added answers quickest as long as nobody has measured it, and holds
/// nothing: a delete that covers what its coordinator holds is not for it to coordinate.
#[test]
fn a_delete_without_a_context_covers_what_was_there_while_a_node_comes() {
    let mut cluster = Cluster::start_with(4, prepare);
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    let (client, keys) = (cluster.client(0), 80);
    put_all(&cluster, &client, "strict", keys, "v");
    steer(&cluster, &client, OpsAction::Pause);
    let fifth = cluster.more();
    let added = change(&cluster, &client, vec![add(&cluster.nodes[fifth], "", 0)]);
    wait_until_all_up(&cluster);
    for i in 0..keys {
        let client = cluster.client(i % cluster.nodes.len());
        let ask =
            DeleteRequest { keyspace: "strict".into(), key: key(i).into(), ..Default::default() };
        cluster.block_on(async { client.kv().delete(ask).await }).unwrap();
        let left = get(&cluster, &client, "strict", &key(i), None).unwrap();
        assert!(left.is_empty(), "{} is deleted, and shows {} values", key(i), left.len());
    }
    assert_eq!(op(&cluster, &client, &added.id).unwrap().copies_done, 0, "it got nothing yet");
    steer(&cluster, &client, OpsAction::Resume);
    wait_until_done(&cluster, &client, &added.id);
}

/// What cannot be, or is something else than it seems, is said before anything moves.
#[test]
fn what_cannot_be_is_refused_and_what_is_known_is_shown_before_anything_moves() {
    let mut cluster = Cluster::start_with(3, prepare);
    let client = cluster.client(0);
    let nowhere = try_plan(&cluster, &client, vec![spread(3)]).unwrap_err();
    assert_eq!(code(&nowhere), ErrorCode::PlanRefused, "all are in one zone: {nowhere}");
    let new = cluster.more();
    let added = plan(&cluster, &client, vec![add(&cluster.nodes[new], "", 0)]);
    let shown = added.nodes.iter().find(|it| it.node == cluster.nodes[new].name).unwrap();
    assert!(shown.disk_ratio_after > 0.0, "it is not a member, and was asked: {shown:?}");

    let heavier = plan(&cluster, &client, vec![reweight("n1", 2)]);
    let mine = try_apply_as("mine", &cluster, &client, &heavier, &[]).unwrap();
    wait_until_done(&cluster, &client, &mine.id);
    let other = plan(&cluster, &client, vec![reweight("n2", 2)]);
    let taken = try_apply_as("mine", &cluster, &client, &other, &[]).unwrap_err();
    assert_eq!(code(&taken), ErrorCode::PlanRefused, "its name is another's: {taken}");
    let again = try_apply_as("mine", &cluster, &client, &heavier, &[]).unwrap();
    assert_eq!(again.id, mine.id);

    ok(cluster.kvctl(&["keyspaces", "create", "logs"]));
    let ops = text(&ok(cluster.kvctl(&["ops", "list"])));
    assert!(ops.contains("keyspace logs"), "a keyspace is a change like any other: {ops}");
}

/// A command that is said again while the first is still being answered, through the same node.
#[test]
fn an_operation_asked_for_twice_at_once_is_one() {
    let cluster = Cluster::start_with(3, prepare);
    let client = cluster.client(0);
    for round in 2..6 {
        let wanted = plan(&cluster, &client, vec![reweight("n1", round)]);
        let ask = || proto::v1::ApplyPlanRequest {
            changes: wanted.changes.clone(),
            digest: wanted.digest.clone(),
            op_id: format!("twice-{round}"),
            ..Default::default()
        };
        let (one, other) = (client.clone(), client.clone());
        let (first, second) = cluster.block_on(async {
            futures_util::future::join(
                one.admin().apply_plan(ask()),
                other.admin().apply_plan(ask()),
            )
            .await
        });
        let (first, second) = (first.unwrap().into_inner(), second.unwrap().into_inner());
        assert_eq!(first.id, second.id);
        wait_until_done(&cluster, &client, &first.id);
    }
}

// === keyspaces ===

#[test]
fn a_keyspace_is_dropped_while_its_partitions_move() {
    let mut cluster = Cluster::start_with(3, prepare);
    ok(cluster.kvctl(&["keyspaces", "create", "doomed"]));
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 40, "v");
    let long = "x".repeat(2000);
    put_all(&cluster, &client, "doomed", 300, &long);
    throttle(&cluster, &client, SLOWLY);
    let new = cluster.more();
    let joins = add(&cluster.nodes[new], "", 0);
    let added = change(&cluster, &client, vec![joins]);
    wait_until_percent(&cluster, &client, &added.id, 10);
    let wanted = plan(&cluster, &cluster.client(1), vec![drop_keyspace("doomed")]);
    let unforced = try_apply(&cluster, &client, &wanted, &[]).unwrap_err();
    assert_eq!(code(&unforced), ErrorCode::PlanRefused, "{unforced}");
    let under_way = op(&cluster, &client, &added.id).unwrap();
    let dropped = try_apply(&cluster, &client, &wanted, &["data-loss"]).unwrap();
    throttle(&cluster, &client, 0);
    for op in [&added, &dropped] {
        wait_until_done(&cluster, &client, &op.id);
    }
    eprintln!("dropped at {} of {}", under_way.copies_done, under_way.copies_total);
    wait_until_settled(&cluster, "one keyspace", |layout| {
        layout.keyspaces.len() == 1 && layout.members.len() == 4
    });
    all_there(&cluster, "default", 40, "v", 3);
    for via in 0..4 {
        let gone = get(&cluster, &cluster.client(via), "doomed", &key(1), None).unwrap_err();
        assert_eq!(code(&gone), ErrorCode::KeyspaceUnknown, "{gone}");
    }
    let mut last = None;
    eventually("nothing of it on any disk", || {
        let records = records(&cluster, &client)?;
        let gone = records.values().sum::<u64>() == 40 * 3;
        if last.as_ref() != Some(&records) {
            eprintln!("{records:?}");
            last = Some(records);
        }
        gone.then_some(())
    });
}

/// Who leaves holds a part of what nobody needs any more, and leaves all the same.
#[test]
fn a_node_leaves_while_a_keyspace_is_dropped() {
    let mut cluster = Cluster::start_with(4, prepare);
    ok(cluster.kvctl(&["keyspaces", "create", "doomed"]));
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 40, "v");
    put_all(&cluster, &client, "doomed", 40, "v");
    let wanted = plan(&cluster, &client, vec![drop_keyspace("doomed"), remove("n4", false)]);
    let op = try_apply(&cluster, &client, &wanted, &["data-loss"]).unwrap();
    wait_until_done(&cluster, &client, &op.id);
    let mut left = cluster.forget("n4");
    assert_eq!(left.wait_for_end().code(), Some(0), "{}", left.log());
    all_there(&cluster, "default", 40, "v", 3);
}

/// Nothing moves over it, so it is settled at once.
#[test]
fn a_keyspace_dropped_in_an_idle_cluster_is_gone_from_every_disk() {
    let cluster = Cluster::start_with(3, prepare);
    let client = cluster.client(0);
    for round in 0..6 {
        let name = format!("doomed-{round}");
        ok(cluster.kvctl(&["keyspaces", "create", &name]));
        put_all(&cluster, &client, &name, 20, "v");
        wait_until_settled(&cluster, "it", |layout| layout.keyspaces.len() == 2);
        ok(cluster.kvctl(&["keyspaces", "delete", &name, "--yes", "--force=data-loss"]));
        eventually(&format!("nothing of {name} on any disk"), || {
            (records(&cluster, &client)?.values().sum::<u64>() == 0).then_some(())
        });
    }
}

/// A name that is used again stands for another keyspace.
#[test]
fn a_keyspace_made_anew_is_empty() {
    let cluster = Cluster::start_with(3, prepare);
    let client = cluster.client(0);
    for round in 0..3 {
        ok(cluster.kvctl(&["keyspaces", "create", "again"]));
        for i in 0..40 {
            let found = get(&cluster, &client, "again", &key(i), Some(3)).unwrap();
            assert!(found.is_empty(), "round {round}: {} of the one before is there", key(i));
        }
        put_all(&cluster, &client, "again", 40, "v");
        ok(cluster.kvctl(&["keyspaces", "delete", "again", "--yes", "--force=data-loss"]));
    }
}

/// Nobody takes what is put there for what is left of the one before.
#[test]
fn a_keyspace_made_anew_keeps_what_is_put() {
    // No comparison brings back what a node took away.
    let cluster = Cluster::start_with(3, |node| node.env.push(("KVD_REPAIR_EVERY", "off".into())));
    let client = cluster.client(0);
    ok(cluster.kvctl(&["keyspaces", "create", "again"]));
    for round in 0..12 {
        let drop_it = plan(&cluster, &client, vec![drop_keyspace("again")]);
        try_apply(&cluster, &client, &drop_it, &["data-loss"]).unwrap();
        ok(cluster.kvctl(&["keyspaces", "create", "again"]));
        let new = |i: usize| format!("round-{round}-{i}");
        for i in 0..30 {
            let value = b"v".to_vec();
            put(&cluster, &client, "again", (&new(i), value), Some(3)).unwrap();
        }
        wait_until_settled(&cluster, "it", |layout| layout.keyspaces.len() == 2);
        for (i, on) in (0..30).flat_map(|i| ["n1", "n2", "n3"].map(|on| (i, on))) {
            let copy = cluster.copy_in("again", 0, on, new(i).as_bytes());
            assert!(!copy.clock.is_empty(), "{on} has lost {}, which it acknowledged", new(i));
        }
    }
}

// === quorums other than 2 of 3 ===

/// An owner is killed while copies move, and comes back.
fn an_owner_is_killed_and_comes_back(nodes: usize, quorum: (u32, u32, u32)) -> Ended {
    let mut scenario = slow(nodes, quorum);
    let new = scenario.cluster.more();
    let change_it = add(&scenario.cluster.nodes[new], "", 0);
    let client = scenario.cluster.client(1);
    let added = change(&scenario.cluster, &client, vec![change_it]);
    wait_until_percent(&scenario.cluster, &client, &added.id, 25);
    scenario.cluster.nodes[0].kill();
    scenario.pass(100);
    throttle(&scenario.cluster, &client, 0);
    scenario.pass(100);
    scenario.cluster.nodes[0].start();
    wait_until_done(&scenario.cluster, &client, &added.id);
    scenario.pass(50);
    scenario.end()
}

#[test]
fn five_three_three_while_an_owner_is_killed() {
    all_answered(&an_owner_is_killed_and_comes_back(5, (5, 3, 3)));
}

#[test]
fn two_two_one_while_an_owner_is_killed() {
    // R = N: gets of what the dead one holds fail while it is dead. What is answered is right.
    an_owner_is_killed_and_comes_back(3, (2, 2, 1));
}

/// W = N: a dead owner holds the change up, and nothing else.
#[test]
fn three_one_three_while_an_owner_is_killed() {
    an_owner_is_killed_and_comes_back(3, (3, 1, 3));
}

// === Q ===

/// With one copy of everything five nodes are enough for it.
#[test]
fn the_ring_is_cut_finer_under_load() {
    let mut scenario = slow(4, (1, 1, 1));
    let client = scenario.cluster.client(0);
    assert_eq!(layout(&scenario.cluster, &client).unwrap().partition_bits, 8);
    let new = scenario.cluster.more();
    let joins = add(&scenario.cluster.nodes[new], "", 0);
    let wanted = plan(&scenario.cluster, &client, vec![joins]);
    assert_eq!((wanted.partition_bits_before, wanted.partition_bits_after), (8, 9));
    let added = try_apply(&scenario.cluster, &client, &wanted, &[]).unwrap();
    // Who is away meanwhile comes back to a ring that is finer than its own.
    wait_until_percent(&scenario.cluster, &client, &added.id, 25);
    assert!(scenario.cluster.nodes[1].stop().success());
    scenario.cluster.nodes[1].start();
    throttle(&scenario.cluster, &client, 0);
    wait_until_done(&scenario.cluster, &client, &added.id);
    let finer = wait_until_settled(&scenario.cluster, "512 partitions", |layout| {
        layout.partition_bits == 9 && layout.members.len() == 5
    });
    let mut copies: BTreeMap<&str, usize> = BTreeMap::new();
    rows(&finer, 1).into_iter().flatten().for_each(|name| *copies.entry(name).or_default() += 1);
    assert!(copies.values().all(|count| count.abs_diff(512 / 5) <= 3), "{copies:?}");
    scenario.pass(50);
    scenario.end();
}

// === zones ===

#[test]
fn copies_follow_the_zones() {
    let cluster = Cluster::blank_with(6, prepare);
    let members = cluster.nodes.iter().map(|node| format!("{}={}", node.name, node.address));
    let members: Vec<String> = members.collect();
    let init = ["cluster", "init", "--name", "test", "--yes", "--zone", "a,b,c,a,b,c"];
    ok(cluster.kvctl(&init).args_of(&members));
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 40, "v");
    let first = layout(&cluster, &client).unwrap();
    assert_eq!((first.spread, fewest_zones(&first, 3)), (3, 3));

    // n6 goes from c to a: n3 alone is left in c, and gets a copy of everything.
    let wanted = plan(&cluster, &client, vec![rezone("n6", "a")]);
    assert!(wanted.zones_distinct && wanted.copies_moved > 0, "{wanted:#?}");
    let moved = try_apply(&cluster, &client, &wanted, &[]).unwrap();
    wait_until_done(&cluster, &client, &moved.id);
    let rezoned = wait_until_settled(&cluster, "n6 in zone a", |layout| {
        layout.members.iter().any(|it| it.name == "n6" && it.zone == "a")
    });
    assert_eq!(fewest_zones(&rezoned, 3), 3);
    assert!(rows(&rezoned, 3).iter().all(|row| row.contains(&"n3")));
    all_there(&cluster, "default", 40, "v", 3);
    for i in 0..40 {
        let copy = cluster.copy(1, "n3", key(i).as_bytes());
        assert!(!copy.clock.is_empty(), "n3 has {}", key(i));
    }

    // Zone c goes, with its node or without it: the plan says that copies are in fewer zones than
    // they were to be.
    for one_zone_less in [remove("n3", false), rezone("n3", "b")] {
        let wanted = plan(&cluster, &client, vec![one_zone_less]);
        assert!(wanted.warnings.iter().any(|it| it.contains("zones")), "{:?}", wanted.warnings);
    }
    change(&cluster, &client, vec![rezone("n3", "b")]);
    let two = wait_until_settled(&cluster, "no zone c", |layout| {
        layout.members.iter().all(|it| it.zone != "c")
    });
    assert_eq!(fewest_zones(&two, 3), 2);
    all_there(&cluster, "default", 40, "v", 3);
}

// === addresses ===

#[test]
fn a_node_goes_on_at_another_address() {
    let mut cluster = Cluster::start_with(3, prepare);
    put_all(&cluster, &cluster.client(0), "default", 40, "v");
    assert!(cluster.nodes[2].stop().success());
    cluster.wait_until_up(0, &["n1", "n2"]);
    cluster.nodes[2].address = free_address();
    let address = cluster.nodes[2].address.clone();
    cluster.nodes[2].start();
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 40, "w");
    let set = ["nodes", "set", "n3", "--address", &address, "--yes", "--timeout", "60s"];
    exits(&run(cluster.kvctl_via(0, &set)), 0);
    let settled = wait_until_settled(&cluster, "n3 there", |layout| {
        layout.members.iter().any(|it| it.name == "n3" && it.address == address)
    });
    assert_eq!(settled.members.len(), 3);
    wait_until_all_up(&cluster);
    for via in 0..3 {
        let value = b"w".to_vec();
        put(&cluster, &cluster.client(via), "default", ("all", value), Some(3)).unwrap();
    }
    // All of it after a restart of everybody else too.
    for at in 0..2 {
        cluster.nodes[at].kill();
        cluster.nodes[at].start();
        wait_until_all_up(&cluster);
    }
    put(&cluster, &cluster.client(1), "default", ("all", b"w".to_vec()), Some(3)).unwrap();
    ok(cluster.kvctl(&["check", "--wait", "--timeout", "60s"]));
}

// === drain ===

#[test]
fn a_drained_node_takes_no_requests_and_stays_a_replica() {
    let mut cluster = Cluster::start_with(5, prepare);
    put_all(&cluster, &cluster.client(0), "default", 40, "v");
    let unasked = run(cluster.kvctl(&["nodes", "drain", "n2"]));
    exits(&unasked, 9);
    exits(&run(cluster.kvctl(&["nodes", "drain", "n9", "--yes"])), 3);
    let drained = ok(cluster.kvctl(&["nodes", "drain", "n2", "--wait", "--yes", "-o", "json"]));
    let drained = json(&drained);
    assert_eq!(
        (&drained["data"]["draining"], &drained["data"]["requests"]),
        (&true.into(), &0.into())
    );
    let client = cluster.client(1);
    let refused = get(&cluster, &client, "default", &key(0), None).unwrap_err();
    assert_eq!(code(&refused), ErrorCode::Draining, "{refused}");
    let refused = put(&cluster, &client, "default", (&key(0), b"v-0".to_vec()), None).unwrap_err();
    assert_eq!(code(&refused), ErrorCode::Draining, "{refused}");
    // A command that is pointed at it goes elsewhere, or says so.
    let got = run(cluster.kvctl_via(1, &["get", &key(0)]));
    assert!([Some(0), Some(6)].contains(&got.status.code()), "{}", text(&got.stderr));
    // It holds what it held, and is written to: every key at W = 3, wherever its replicas are.
    for via in [0, 2, 3, 4] {
        for i in 0..40 {
            let value = format!("v{via}-{i}").into_bytes();
            put(&cluster, &cluster.client(via), "default", (&key(i), value), Some(3)).unwrap();
        }
    }
    // With one more drained too: a key has three replicas, so one of them is left.
    ok(cluster.kvctl(&["nodes", "drain", "n3", "--wait", "--yes"]));
    let one = cluster.client(0);
    for i in 0..40 {
        let value = format!("last-{i}").into_bytes();
        put(&cluster, &one, "default", (&key(i), value), Some(3)).unwrap();
        assert!(!get(&cluster, &one, "default", &key(i), Some(3)).unwrap().is_empty());
    }
    eventually("both to be listed so", || {
        let listed = json(&ok(cluster.kvctl(&["nodes", "list", "-o", "json"])));
        let draining = listed["data"].as_array()?.iter().filter(|it| it["draining"] == true);
        (draining.count() == 2).then_some(())
    });
    for name in ["n2", "n3"] {
        ok(cluster.kvctl(&["nodes", "undrain", name, "--yes"]));
    }
    for via in 1..3 {
        let client = cluster.client(via);
        eventually("it to take requests again", || {
            get(&cluster, &client, "default", &key(0), None).ok()
        });
    }
    // What one is drained for: a restart.
    assert!(cluster.nodes[4].stop().success());
    exits(&run(cluster.kvctl_via(0, &["nodes", "drain", "n5", "--yes"])), 6);
    cluster.nodes[4].start();
    let client = cluster.client(4);
    eventually("it to take requests", || get(&cluster, &client, "default", &key(0), None).ok());
}

// === scripts ===

#[test]
fn a_script_changes_the_cluster_by_exit_codes() {
    let mut cluster = Cluster::start_with(3, prepare);
    let client = cluster.client(0);
    put_all(&cluster, &client, "default", 40, "v");
    let new = cluster.more();
    let joins = format!("n4={}", cluster.nodes[new].address);
    let add_it = ["nodes", "add", &joins, "--op-id", "deploy-1", "-o", "json"];
    let yes = ["--yes", "--timeout", "60s"];
    exits(&run(cluster.kvctl_via(0, &add_it)), 9);
    let dry = run(cluster.kvctl_via(0, &[&add_it[..], &["--dry-run"]].concat()));
    exits(&dry, 0);
    assert_eq!(json(&dry.stdout)["schema"], "kvctl.plan/v1");
    let added = run(cluster.kvctl_via(0, &[&add_it[..], &yes].concat()));
    exits(&added, 0);
    let added = json(&added.stdout);
    assert_eq!(added["schema"], "kvctl.ops.show/v1");
    assert_eq!(
        (&added["data"]["state"], &added["data"]["op_id"]),
        (&"done".into(), &"deploy-1".into())
    );
    // The same job once more, from another machine.
    let again = run(cluster.kvctl_via(2, &[&add_it[..], &yes].concat()));
    exits(&again, 0);
    assert_eq!(json(&again.stdout)["data"]["op"], added["data"]["op"]);
    let waits = ["nodes", "wait", "n4", "--for", "in-sync", "--timeout", "60s"];
    exits(&run(cluster.kvctl(&waits)), 0);
    let gate = ["check", "--require", "healthy,no-ops,ring-agreed", "--wait", "--timeout", "60s"];
    exits(&run(cluster.kvctl(&gate)), 0);

    // What stands still.
    steer(&cluster, &client, OpsAction::Pause);
    let set = ["nodes", "set", "n1", "--weight", "3", "--op-id", "deploy-2", "-o", "json", "--yes"];
    let late = run(cluster.kvctl(&[&set[..], &["--timeout", "2s"]].concat()));
    exits(&late, 7);
    assert_eq!(json(&late.stderr_line())["error"]["code"], "WAIT_TIMED_OUT");
    let stalls = ["ops", "wait", "deploy-2", "--stall-timeout", "1s", "-o", "json"];
    let stalled = run(cluster.kvctl(&stalls));
    exits(&stalled, 7);
    assert_eq!(json(&stalled.stderr_line())["error"]["code"], "WAIT_STALLED");
    exits(&run(cluster.kvctl(&["check", "--require", "no-ops"])), 11);
    ok(cluster.kvctl(&["ops", "resume", "deploy-2"]));
    exits(&run(cluster.kvctl(&["ops", "wait", "deploy-2", "--timeout", "60s"])), 0);
    exits(&run(cluster.kvctl(&[&set[..], &["--timeout", "60s"]].concat())), 0);

    // What is cancelled.
    steer(&cluster, &client, OpsAction::Pause);
    let set = ["nodes", "set", "n2", "--weight", "5", "--op-id", "deploy-3", "--no-wait", "--yes"];
    let started = run(cluster.kvctl(&set));
    exits(&started, 0);
    let id = text(&started.stdout).trim().to_owned();
    let cancel = ["ops", "cancel", "deploy-3", "--yes", "--no-wait"];
    exits(&run(cluster.kvctl(&cancel)), 0);
    ok(cluster.kvctl(&["ops", "resume", &id]));
    exits(&run(cluster.kvctl(&["ops", "wait", "deploy-3", "--timeout", "60s"])), 11);
    wait_until_settled(&cluster, "n2 as it was", |layout| weight(layout, "n2") == 1);
    exits(&run(cluster.kvctl(&["ops", "cancel", "deploy-2", "--yes"])), 8);
    all_there(&cluster, "default", 40, "v", 3);
}

/// The last line a command said on standard error: with JSON output its error.
trait StderrLine {
    fn stderr_line(&self) -> Vec<u8>;
}

impl StderrLine for Output {
    fn stderr_line(&self) -> Vec<u8> {
        text(&self.stderr).lines().last().unwrap_or_default().as_bytes().to_vec()
    }
}
