//! Commands that change the cluster, as scripts see them: nothing is changed unasked, what is
//! applied is what was shown, and every wait ends with a code of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod stub;

use proto::v1::change::Change as Wanted;
use proto::v1::*;
use std::process::Output;
use std::time::{Duration, Instant};
use stub::*;

/// Every command that makes a plan.
const CHANGES: [&[&str]; 9] = [
    &["nodes", "add", "n2=h:1", "--zone", "b"],
    &["nodes", "remove", "n1"],
    &["nodes", "remove", "n1", "--dead", "--force=data-loss"],
    &["nodes", "replace", "n1", "--with", "n2=h:1"],
    &["nodes", "set", "n1", "--weight", "2"],
    &["rebalance"],
    &["keyspaces", "delete", "logs"],
    &["quorum", "set", "-k", "billing", "--w", "2"],
    &["ops", "cancel", "op-00000001"],
];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

fn changes(node: &Node) -> Vec<Wanted> {
    let plans = node.plans.lock().unwrap();
    let made = plans.made.last().unwrap();
    made.changes.iter().filter_map(|change| change.change.clone()).collect()
}

fn stderr(output: &Output) -> &str {
    text(&output.stderr)
}

#[test]
fn without_a_terminal_nothing_is_applied_and_the_command_to_do_it_is_printed() {
    let node = Node::start(1);
    for args in CHANGES {
        let output = run(&node.address, args);
        fails(&output, 9);
        let command = format!("  try    kvctl {} --yes\n", args.join(" "));
        assert!(stderr(&output).ends_with(&command), "{}", stderr(&output));
        assert!(
            stderr(&output).starts_with("plan 01010101 for fake on ring 1 (nothing changed yet)\n")
        );
        assert!(node.plans.lock().unwrap().applied.is_empty(), "{args:?}");
    }
    for args in [&["nodes", "drain", "n1"], &["nodes", "undrain", "n1"]] {
        fails(&run(&node.address, args), 9);
        assert!(node.plans.lock().unwrap().drained.is_empty(), "{args:?}");
    }
    let json = run(&node.address, &["nodes", "remove", "n1", "-o", "json"]);
    fails(&json, 9);
    let error = &self::json(&json.stderr)["error"];
    assert_eq!(error["code"], "CONFIRMATION_NEEDED");
    assert_eq!(error["command"], "kvctl nodes remove n1 -o json --yes");
    assert_eq!(error["plan"]["copies_moved"], "2");
}

#[test]
fn with_yes_what_was_shown_is_applied_and_waited_for() {
    let node = Node::start(1);
    for (at, args) in CHANGES.iter().enumerate() {
        let output = run(&node.address, &with(args, &["--yes"]));
        exits(&output, 0);
        let id = format!("op-{:08x}", at + 1);
        assert!(text(&output.stdout).starts_with(&format!("{id}  done in ")), "{args:?}");
        let plans = node.plans.lock().unwrap();
        assert_eq!(plans.applied.len(), at + 1, "{args:?}");
        let applied = plans.applied.last().unwrap();
        assert_eq!(applied.digest, vec![1; 16], "{args:?}");
        assert_eq!(applied.changes, plans.made.last().unwrap().changes, "{args:?}");
        assert!(applied.by.contains('@') && applied.op_id.starts_with("kvctl-"));
    }
}

#[test]
fn each_command_asks_for_its_change() {
    let node = Node::start(1);
    let asked = |args: &[&str]| {
        exits(&run(&node.address, &with(args, &["--dry-run"])), 0);
        changes(&node)
    };
    let member = |name: &str, zone: &str, weight| NewMember {
        name: name.into(),
        address: "h:7400".into(),
        zone: zone.into(),
        weight,
    };
    assert_eq!(
        asked(&["nodes", "add", "n2=h", "n3=h", "--zone", "a,b", "--weight", "2"]),
        [Wanted::Add(member("n2", "a", 2)), Wanted::Add(member("n3", "b", 2))]
    );
    assert_eq!(
        asked(&["nodes", "remove", "n1", "n2", "--dead"]),
        ["n1", "n2"].map(|node| Wanted::Remove(RemoveNode { node: node.into(), dead: true }))
    );
    let with = Some(member("n2", "", 0));
    assert_eq!(
        asked(&["nodes", "replace", "n1", "--with", "n2=h", "--dead"]),
        [Wanted::Replace(ReplaceNode { node: "n1".into(), with, dead: true })]
    );
    let address = Some("h:7400".to_owned());
    let set = SetNode { node: "n1".into(), weight: Some(3), zone: None, address };
    assert_eq!(
        asked(&["nodes", "set", "n1", "--weight", "3", "--address", "h"]),
        [Wanted::Set(set)]
    );
    assert_eq!(asked(&["rebalance"]), [Wanted::Rebalance(Rebalance {})]);
    assert_eq!(asked(&["keyspaces", "delete", "logs"]), [Wanted::DropKeyspace("logs".into())]);
    let (n, r, w) = (None, Some(1), Some(3));
    let mode = Some(Mode::Strict as i32);
    assert_eq!(
        asked(&["quorum", "set", "-k", "logs", "--r", "1", "--w", "3", "--mode", "strict"]),
        [Wanted::SetKeyspace(SetKeyspace { name: "logs".into(), n, r, w, mode })]
    );
    assert_eq!(asked(&["ops", "cancel", "op-1"]), [Wanted::Cancel("op-1".into())]);
}

#[test]
fn a_dry_run_is_the_plan_on_stdout_and_a_plan_of_nothing_is_not_applied() {
    let node = Node::start(1);
    let args = ["nodes", "add", "n2=h:1", "--dry-run"];
    let shown = run(&node.address, &args);
    exits(&shown, 0);
    let expected = "\
plan 01010101 for fake on ring 1 (nothing changed yet)
  ~ a change
  moves    2 of 4 copies, 2.0 GiB
  safety   live copies never drop
  time     about 40s at 60.0 MiB/s
  undo     kvctl plan create --undo OP
NODE  SHARE           COPIES  DATA AFTER  DISK AFTER
n1    100.0% → 50.0%  4 → 3   1.0 GiB     ?
";
    assert_eq!(text(&shown.stdout), expected);
    let plan = json(&run(&node.address, &with(&args, &["-o", "json"])).stdout);
    assert_eq!((&plan["schema"], &plan["ring"]), (&"kvctl.plan/v1".into(), &"1".into()));
    assert_eq!(plan["cluster"]["id"], "01".repeat(16));
    assert_eq!(plan["data"]["digest"], "01".repeat(16));
    assert_eq!(plan["data"]["bytes_moved"], (2_u64 << 30).to_string());
    assert_eq!(plan["data"]["changes"][0]["add"]["name"], "n2");
    assert!(plan["data"]["op"].is_null() && plan["data"]["nodes"][0]["disk_ratio_after"].is_null());

    node.plans.lock().unwrap().idle = true;
    let nothing = run(&node.address, &["rebalance"]);
    exits(&nothing, 0);
    assert_eq!(text(&nothing.stdout), "nothing to change: cluster fake on ring 1 is so already\n");
    assert!(node.plans.lock().unwrap().applied.is_empty());
}

#[test]
fn a_stale_plan_exits_4_and_says_what_differs() {
    let node = Node::start(1);
    node.plans.lock().unwrap().restless = true;
    let stale = run(&node.address, &["nodes", "remove", "n1", "--yes", "-q"]);
    fails(&stale, 4);
    let expected = "\
error[PLAN_STALE]: the ring has changed since the plan was made
  ring: was 1; now 2
  n1: was 50.0% of all, 3 copies; now 50.0% of all, 4 copies
  state  nothing was changed
  try    look at what differs, and plan again
";
    assert_eq!(stderr(&stale), expected);
    let stale = run(&node.address, &["rebalance", "--yes", "-o", "json"]);
    fails(&stale, 4);
    assert_eq!(json(&stale.stderr)["error"]["differences"][0], "ring: was 3; now 4");
    assert!(node.plans.lock().unwrap().applied.is_empty());
}

#[test]
fn what_cannot_be_is_refused_and_what_loses_data_has_to_be_forced() {
    let node = Node::start(1);
    let refused = run(&node.address, &["nodes", "remove", "toofew", "--yes"]);
    fails(&refused, 8);
    assert!(stderr(&refused).starts_with("error[PLAN_REFUSED]: fewer nodes than N"));
    fails(&run(&node.address, &["nodes", "remove", "n9", "--yes"]), 3);

    let dead = ["nodes", "remove", "n1", "--dead", "--yes"];
    let refused = run(&node.address, &dead);
    fails(&refused, 8);
    assert!(stderr(&refused).contains("with --force=data-loss\n"), "{}", stderr(&refused));
    fails(&run(&node.address, &with(&dead, &["--force=disk"])), 8);
    assert!(node.plans.lock().unwrap().applied.is_empty());
    exits(&run(&node.address, &with(&dead, &["--force=data-loss"])), 0);
    assert_eq!(node.plans.lock().unwrap().applied[0].force, ["data-loss"]);
}

#[test]
fn a_command_said_again_under_its_name_attaches_to_the_same_operation() {
    let node = Node::start(1);
    let args = ["nodes", "add", "n2=h:1", "--yes", "--op-id", "deploy-812", "-o", "json"];
    let first = run(&node.address, &args);
    exits(&first, 0);
    let op = json(&first.stdout);
    assert_eq!(op["schema"], "kvctl.ops.show/v1");
    assert_eq!(
        (&op["data"]["op"], &op["data"]["op_id"]),
        (&"op-00000001".into(), &"deploy-812".into())
    );
    assert_eq!((&op["data"]["state"], &op["data"]["copies_done"]), (&"done".into(), &"3".into()));
    let made = node.plans.lock().unwrap().made.len();
    let again = run(&node.address, &args);
    exits(&again, 0);
    assert_eq!(json(&again.stdout)["data"]["op"], "op-00000001");
    assert_eq!(node.plans.lock().unwrap().made.len(), made, "no plan is made anew");
    assert_eq!(node.plans.lock().unwrap().applied.len(), 1);
    fails(&run(&node.address, &["rebalance", "--op-id", "a b"]), 2);
}

#[test]
fn who_does_not_wait_gets_the_id_and_may_wait_later() {
    let node = Node::start(1);
    let started = run(&node.address, &["rebalance", "--yes", "--no-wait", "--throttle", "60MiB/s"]);
    exits(&started, 0);
    assert_eq!(text(&started.stdout), "op-00000001\n");
    let steered = node.plans.lock().unwrap().steered[0].clone();
    assert_eq!((steered.op.as_str(), steered.bytes_per_second), ("op-00000001", Some(60 << 20)));
    let waited = run(&node.address, &["ops", "wait", "op-00000001"]);
    exits(&waited, 0);
    assert!(
        text(&waited.stdout).contains("\n  100%  3/3 copies  3.0/3.0 MiB\n"),
        "{}",
        text(&waited.stdout)
    );
    assert!(text(&waited.stdout).ends_with("\nn1    n2  3/3     0/0 B  -     -    done\n"));
    fails(&run(&node.address, &["ops", "wait", "op-9"]), 3);
}

#[test]
fn a_wait_that_is_too_long_exits_7_and_one_that_stalls_lists_why() {
    let node = Node::start(1);
    node.plans.lock().unwrap().stuck = true;
    // Enough for the plan and its start, which it covers too.
    let late = run(&node.address, &["rebalance", "--yes", "--timeout", "3s"]);
    fails(&late, 7);
    let said = stderr(&late);
    assert!(said.contains("error[WAIT_TIMED_OUT]: op-00000001 is not done after 3s\n"), "{said}");
    assert!(said.contains("  state  the operation goes on in the cluster\n"), "{said}");
    assert!(said.contains("  try    kvctl ops wait op-00000001, or kvctl ops show op-00000001\n"));

    let args = ["ops", "wait", "op-00000001", "--stall-timeout", "300ms"];
    let stalled = run(&node.address, &args);
    fails(&stalled, 7);
    let said = stderr(&stalled);
    assert!(said.contains("error[WAIT_STALLED]: op-00000001 has not got on for 300ms\n"), "{said}");
    assert!(said.contains("\n  default #2 n1→n2 sync: disk queue full\n"), "{said}");
    let stalled = run(&node.address, &with(&args, &["-o", "json", "-q"]));
    fails(&stalled, 7);
    let error = &json(&stalled.stderr)["error"];
    assert_eq!((&error["op"], &error["exit"]), (&"op-00000001".into(), &7.into()));
    assert_eq!(error["stuck"][0]["why"], "disk queue full");
    node.plans.lock().unwrap().stuck = false;
    exits(&run(&node.address, &["ops", "wait", "op-00000001"]), 0);
}

#[test]
fn progress_off_a_terminal_is_a_dated_line() {
    let node = Node::start(1);
    node.plans.lock().unwrap().stuck = true;
    exits(&run(&node.address, &["rebalance", "--yes", "--no-wait"]), 0);
    let home = tempfile::tempdir().unwrap();
    let args = ["ops", "wait", "op-00000001"];
    let mut going = Going::start(kvctl(home.path(), &node.address, &args));
    going.says(" stuck=1");
    node.plans.lock().unwrap().stuck = false;
    let waited = going.ended();
    exits(&waited, 0);
    let said = stderr(&waited);
    assert!(said.starts_with(
        "op-00000001 is under way; to wait for it elsewhere: kvctl ops wait op-00000001\n"
    ));
    let line = said.lines().nth(1).unwrap();
    assert!(line.contains("Z op-00000001 ") && line.ends_with(" stuck=1"), "{said}");
    assert!(!said.contains('\x1b') && !said.contains('\r'));
}

#[test]
fn a_signal_detaches_and_says_how_to_come_back() {
    let node = Node::start(1);
    node.plans.lock().unwrap().stuck = true;
    let home = tempfile::tempdir().unwrap();
    let mut going = Going::start(kvctl(home.path(), &node.address, &["rebalance", "--yes"]));
    going.says("op-00000001 is under way");
    going.signal("-INT");
    let output = going.ended();
    fails(&output, 130);
    let expected = "op-00000001 goes on; to wait for it again: kvctl ops wait op-00000001\n";
    assert!(stderr(&output).ends_with(expected), "{}", stderr(&output));
}

#[test]
fn a_wait_outlives_the_node_it_began_with() {
    let (bad, node) = (hangs_up(), Node::start(1));
    node.plans.lock().unwrap().stuck = true;
    exits(&run(&node.address, &["rebalance", "--yes", "--no-wait"]), 0);
    node.plans.lock().unwrap().stuck = false;
    let both = format!("{bad},{}", node.address);
    exits(&run(&both, &["ops", "wait", "op-00000001"]), 0);

    let (alone, home) = (Node::start(1), tempfile::tempdir().unwrap());
    alone.plans.lock().unwrap().stuck = true;
    exits(&run(&alone.address, &["rebalance", "--yes", "--no-wait"]), 0);
    let args = ["ops", "wait", "op-00000001", "--connect-timeout", "2s"];
    let mut going = Going::start(kvctl(home.path(), &alone.address, &args));
    going.says("op-00000001 is under way");
    drop(alone);
    let lost = going.ended();
    fails(&lost, 6);
    assert!(stderr(&lost).contains("  state  the operation goes on in the cluster\n"));
}

#[test]
fn a_wait_through_the_node_that_is_removed_ends_through_another() {
    let (leaving, stays) = (Node::start(1), Node::start(1));
    for node in [&leaving, &stays] {
        node.plans.lock().unwrap().stuck = true;
        exits(&run(&node.address, &["nodes", "remove", "n1", "--yes", "--no-wait"]), 0);
    }
    let both = format!("{},{}", leaving.address, stays.address);
    let home = tempfile::tempdir().unwrap();
    let args = ["ops", "wait", "op-00000001"];
    let mut going = Going::start(kvctl(home.path(), &both, &args));
    going.says("op-00000001 is under way");
    leaving.plans.lock().unwrap().removed = true;
    stays.plans.lock().unwrap().stuck = false;
    exits(&going.ended(), 0);
}

#[test]
fn operations_are_listed_shown_and_steered() {
    let node = Node::start(1);
    node.plans.lock().unwrap().stuck = true;
    let empty = run(&node.address, &["ops", "list"]);
    exits(&empty, 0);
    assert_eq!(text(&empty.stdout).lines().count(), 1);
    exits(&run(&node.address, &["rebalance", "--yes", "--no-wait", "--op-id", "me"]), 0);
    let list = json(&run(&node.address, &["ops", "list", "-o", "json"]).stdout);
    assert_eq!(list["schema"], "kvctl.ops.list/v1");
    assert_eq!(
        (&list["data"][0]["op"], &list["data"][0]["state"]),
        (&"op-00000001".into(), &"running".into())
    );
    assert_eq!(run(&node.address, &["ops", "list", "-o", "name"]).stdout, b"op-00000001\n");

    let show = run(&node.address, &["ops", "show", "me", "--ascii"]);
    exits(&show, 0);
    let shown = text(&show.stdout);
    assert!(shown.contains("  ! stuck  default #2 n1->n2 sync: disk queue full\n"), "{shown}");
    assert!(shown.contains("\nFROM  TO  COPIES"), "{shown}");
    fails(&run(&node.address, &["ops", "show", "op-9"]), 3);

    let paused = json(&run(&node.address, &["ops", "pause", "me", "-o", "json"]).stdout);
    assert_eq!(paused["data"]["state"], "paused");
    exits(&run(&node.address, &["ops", "resume", "me"]), 0);
    let bounded = run(&node.address, &["ops", "throttle", "me", "30MiB/s", "-o", "json"]);
    assert_eq!(json(&bounded.stdout)["data"]["throttle_bytes_per_second"], (30 << 20).to_string());
    exits(&run(&node.address, &["ops", "throttle", "me", "none"]), 0);
    fails(&run(&node.address, &["ops", "throttle", "me", "fast"]), 2);
    let rates: Vec<_> =
        node.plans.lock().unwrap().steered.iter().map(|asked| asked.bytes_per_second).collect();
    assert_eq!(rates, [None, None, Some(30 << 20), Some(0)]);

    let status = run(&node.address, &["status"]);
    assert!(text(&status.stdout).contains("\n» op-00000001 ~ a change  0%  0/3 copies\n"));
}

#[test]
fn a_plan_is_a_file_that_is_shown_applied_and_discarded() {
    let (node, folder) = (Node::start(1), tempfile::tempdir().unwrap());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (topology, plan) = (file("t.toml"), file("p.json"));
    let listed = format!(
        "[[nodes]]\nname = \"n1\"\naddress = \"{}\"\n[[nodes]]\nname = \"n2\"\naddress = \"h:1\"\n",
        node.address
    );
    std::fs::write(&topology, listed).unwrap();
    let created = run(&node.address, &["plan", "create", "-f", &topology, "--out", &plan]);
    exits(&created, 0);
    assert!(text(&created.stdout).starts_with("plan 01010101 for fake"));
    assert!(stderr(&created).contains(&format!("kvctl plan apply {plan}")));
    assert!(matches!(&changes(&node)[..], [Wanted::Add(member)] if member.name == "n2"));
    assert!(node.plans.lock().unwrap().applied.is_empty());

    let shown = run(NOWHERE, &["plan", "show", &plan]);
    exits(&shown, 0);
    assert_eq!(shown.stdout, created.stdout);
    fails(&run(&node.address, &["plan", "apply", &plan]), 9);
    fails(&run(&Node::start(2).address, &["plan", "apply", &plan, "--yes"]), 8);
    exits(&run(&node.address, &["plan", "apply", &plan, "--yes"]), 0);
    let applied = node.plans.lock().unwrap().applied[0].clone();
    assert_eq!((applied.digest, applied.changes.len()), (vec![1; 16].into(), 1));

    // One more change joins those of the file; the cluster has moved on since the file was made.
    let both = ["quorum", "set", "--w", "1", "--from", &plan, "--dry-run"];
    exits(&run(&node.address, &both), 0);
    assert!(matches!(&changes(&node)[..], [Wanted::Add(_), Wanted::SetKeyspace(_)]));
    node.plans.lock().unwrap().ring = 2;
    let stale = run(&node.address, &["plan", "apply", &plan, "--yes"]);
    fails(&stale, 4);
    assert!(stderr(&stale).contains("  ring: was 1; now 2\n"), "{}", stderr(&stale));

    exits(&run(NOWHERE, &["plan", "discard", &plan]), 0);
    for verb in ["show", "apply", "discard"] {
        fails(&run(&node.address, &["plan", verb, &plan]), 3);
    }
    fails(&run(NOWHERE, &["plan", "discard", &topology]), 2);
    assert!(std::fs::exists(&topology).unwrap(), "only a plan is discarded");

    let undo = run(&node.address, &["plan", "create", "--undo", "op-00000001", "-o", "json"]);
    exits(&undo, 0);
    assert_eq!(json(&undo.stdout)["data"]["changes"][0]["undo"]["op"], "op-00000001");
}

#[test]
fn a_declared_topology_differs_or_not() {
    let (node, folder) = (Node::start(1), tempfile::tempdir().unwrap());
    let path = folder.path().join("t.toml");
    let file = path.to_str().unwrap();
    std::fs::write(&path, "spread = 0\n[[keyspaces]]\nname = \"default\"\nw = 1\n").unwrap();
    let same = run(&node.address, &["plan", "diff", "-f", file, "--exit-code"]);
    exits(&same, 0);
    assert!(same.stdout.is_empty());
    assert_eq!(stderr(&same), "cluster fake is as declared\n");
    let nothing = run(&node.address, &["plan", "create", "-f", file]);
    exits(&nothing, 0);
    assert!(text(&nothing.stdout).starts_with("nothing to change"));

    std::fs::write(&path, "[[keyspaces]]\nname = \"default\"\nw = 2\n").unwrap();
    let other = run(&node.address, &["plan", "diff", "-f", file, "--exit-code"]);
    exits(&other, 11);
    assert_eq!(text(&other.stdout), "DIFFERENCE\n~ keyspace default W 1 -> 2\n");
    let other = run(&node.address, &["plan", "diff", "-f", file, "-o", "json"]);
    exits(&other, 0);
    assert_eq!(json(&other.stdout)["data"][0]["change"]["set_keyspace"]["w"], 2);
    std::fs::write(&path, "[[nodes]]\nname = 1\n").unwrap();
    fails(&run(&node.address, &["plan", "diff", "-f", file]), 2);
}

#[test]
fn a_node_is_drained_and_waited_for() {
    let node = Node::start(1);
    node.plans.lock().unwrap().requests = 3;
    let drained = run(&node.address, &["nodes", "drain", "n1", "--wait", "--yes", "-o", "json"]);
    exits(&drained, 0);
    let answer = json(&drained.stdout);
    assert_eq!(
        (&answer["schema"], &answer["data"]["requests"]),
        (&"kvctl.nodes.drain/v1".into(), &0.into())
    );
    assert_eq!(node.plans.lock().unwrap().drained.len(), 3, "asked until nothing was under way");
    node.plans.lock().unwrap().requests = 1_000_000;
    let args = ["nodes", "drain", "n1", "--wait", "--yes", "--timeout", "300ms"];
    fails(&run(&node.address, &args), 7);
    exits(&run(&node.address, &["nodes", "undrain", "n1", "--yes"]), 0);
    assert!(!node.plans.lock().unwrap().drained.last().unwrap().on);
    fails(&run(&node.address, &["nodes", "drain", "n9", "--yes"]), 3);

    exits(&run(&node.address, &["nodes", "wait", "n1", "--for", "up"]), 0);
    exits(&run(&node.address, &["nodes", "wait", "n9", "--for", "left"]), 0);
    fails(&run(&node.address, &["nodes", "wait", "n9", "--for", "up"]), 3);
    let args = ["nodes", "wait", "n1", "--for", "in-sync", "--timeout", "300ms"];
    let late = run(&node.address, &args);
    fails(&late, 7);
    assert!(stderr(&late).contains("  why    is not known to lack nothing\n"), "{}", stderr(&late));
    let member = Membership::Joining as i32;
    node.plans.lock().unwrap().node = NodeView {
        membership: member,
        draining: true,
        lag: Some(Lag::default()),
        ..Default::default()
    };
    let list = run(&node.address, &["nodes", "list"]);
    assert!(text(&list.stdout).contains("up, joining, draining"), "{}", text(&list.stdout));
    assert!(stderr(&run(&node.address, &args)).contains("  why    is joining\n"));
    node.plans.lock().unwrap().node.membership = Membership::Member as i32;
    exits(&run(&node.address, &args), 0);
}

#[test]
fn check_exits_0_or_11_and_gives_each_rule_its_reason() {
    let node = Node::start(1);
    let check = |require: &str| run(&node.address, &["check", "--require", require]);
    exits(&run(&node.address, &["check"]), 0);
    exits(&check("healthy, ring-agreed,no-ops,safe-to-stop:n1"), 0);
    let margin = check("no-ops,margin>=0,lag<10s");
    exits(&margin, 11);
    let expected = "\
RULE       OK   REASON
no-ops     yes  nothing is under way
margin>=0  no   default #2 is 1 short of what R and W need
lag<10s    no   n1 is not known to lack nothing
";
    assert_eq!(text(&margin.stdout), expected);
    node.plans.lock().unwrap().safe = false;
    let unsafe_ = run(&node.address, &["check", "--require", "safe-to-stop:n1", "-o", "json"]);
    exits(&unsafe_, 11);
    let report = json(&unsafe_.stdout);
    assert_eq!(
        (&report["schema"], &report["data"]["ok"]),
        (&"kvctl.check/v1".into(), &false.into())
    );
    assert_eq!(report["data"]["rules"][0]["reason"], "7 partitions would fall below in default");
    fails(&check("safe-to-stop:n9"), 3);
    let unknown = check("healthy,frobnicate");
    fails(&unknown, 2);
    assert!(
        stderr(&unknown).contains("healthy, ring-agreed, margin>=N, lag<TIME"),
        "{}",
        stderr(&unknown)
    );
}

#[test]
fn check_waits_until_it_is_so_or_the_time_is_up() {
    let node = Node::start(1);
    node.plans.lock().unwrap().safe = false;
    let args = ["check", "--require", "safe-to-stop:n1", "--wait", "--timeout", "400ms"];
    let start = Instant::now();
    exits(&run(&node.address, &args), 11);
    assert!(start.elapsed() >= Duration::from_millis(400));
    let home = tempfile::tempdir().unwrap();
    let args = ["check", "--require", "safe-to-stop:n1", "--wait", "--timeout", "20s"];
    let asked = || node.plans.lock().unwrap().safety_asked;
    let before = asked();
    let going = Going::start(kvctl(home.path(), &node.address, &args));
    let deadline = Instant::now() + Duration::from_secs(20);
    while asked() == before {
        assert!(Instant::now() < deadline, "it does not ask");
        std::thread::sleep(Duration::from_millis(10)); // between two looks
    }
    node.plans.lock().unwrap().safe = true;
    exits(&going.ended(), 0);
}

#[test]
fn a_quorum_is_shown_and_tried() {
    let node = Node::start(1);
    let show = run(&node.address, &["quorum", "show", "-k", "billing"]);
    exits(&show, 0);
    let expected = "\
KEYSPACE  N  R  W  MODE    GETS FAIL  PUTS FAIL  GETS SURVIVE  PUTS SURVIVE  R+W>N
billing   3  2  3  strict  0/4        1/4        0             0             no
";
    assert_eq!(text(&show.stdout), expected);
    let tried = run(&node.address, &["quorum", "what-if", "-k", "billing", "--w", "2"]);
    exits(&tried, 0);
    assert!(text(&tried.stdout).starts_with(
        "W3 strict → W2 strict   gets failing now 0/4 → 0/4   puts failing now 1/4 → 0/4   "
    ));
    let tried = run(&node.address, &["quorum", "what-if", "--w", "2", "-o", "json"]);
    let answer = json(&tried.stdout);
    assert_eq!((&answer["data"]["now"]["w"], &answer["data"]["then"]["w"]), (&3.into(), &2.into()));
    fails(&run(&node.address, &["quorum", "show", "-k", "nope"]), 3);
    fails(&run(&node.address, &["quorum", "what-if"]), 2);
}

#[test]
fn status_says_who_may_be_stopped() {
    let node = Node::start(1);
    node.plans.lock().unwrap().safe = false;
    let status = run(&node.address, &["status"]);
    let shown = text(&status.stdout);
    assert!(shown.contains("SAFE TO STOP (R1/W1)"), "{shown}");
    assert!(shown.contains("no: 7 partitions would fall below"), "{shown}");
    let status = json(&run(&node.address, &["status", "-o", "json"]).stdout);
    let safe = &status["data"]["nodes"][0]["safe_to_stop"];
    assert_eq!((&safe["ok"], &safe["blocked_partitions"]), (&false.into(), &7.into()));
    assert_eq!(status["data"]["nodes"][0]["membership"], "member");
}

#[test]
fn little_is_rebalanced_only_beyond_the_threshold() {
    let node = Node::start(1);
    let near = NodeView { share_ratio: 0.52, fair_ratio: 0.5, ..Default::default() };
    node.plans.lock().unwrap().node = near;
    let done = run(&node.address, &["rebalance", "--threshold", "5%"]);
    exits(&done, 0);
    assert!(
        stderr(&done).contains("further from its fair share than n1: 4.0%"),
        "{}",
        stderr(&done)
    );
    assert!(node.plans.lock().unwrap().made.is_empty());
    fails(&run(&node.address, &["rebalance", "--threshold", "1%"]), 9);
}
