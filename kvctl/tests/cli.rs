//! `kvctl` as scripts see it: exit codes, stdout, stderr. What needs a cluster runs against one
//! node in this process that keeps values in memory and tells siblings apart by a counter.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod stub;

use std::io::Read;
use std::time::{Duration, Instant};
use stub::*;

#[test]
fn wrong_usage_exits_2() {
    for args in [
        &[] as &[&str],
        &["frobnicate"],
        &["get"],
        &["get", ""],
        &["get", "a", "b"],
        &["get", "a", "--sibling", "all"],
        &["get", "--key-hex", "xyz"],
        &["put", "k", "v", "--value-file", "f"],
        &["put", "k", "v", "--strict", "--sloppy"],
        &["put", "k", "--value-b64", "*"],
        &["--timeout", "soon", "status"],
        &["help", "frobnicate"],
        &["load", "/nonexistent/file"],
    ] {
        let output = run(NOWHERE, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn an_unreachable_cluster_exits_6_quickly_and_in_words() {
    let start = Instant::now();
    let output = run(NOWHERE, &["status"]);
    fails(&output, 6);
    assert!(start.elapsed() < Duration::from_secs(5));
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("error[UNREACHABLE]: no node reachable\n"), "{stderr}");
    assert!(stderr.contains(NOWHERE) && stderr.contains("  try "), "{stderr}");
    assert!(!stderr.contains('\x1b'), "no colour in a pipe");
}

#[test]
fn with_json_a_failure_is_one_line_of_json() {
    for (args, exit) in [
        (&["get", "k", "-o", "json"] as &[&str], 6),
        (&["nodes", "list", "-o", "jsonl"], 6),
        (&["get", "-o", "json"], 2),
        (&["get", "k", "-o", "json", "--timeout", "x"], 2),
    ] {
        let output = run(NOWHERE, args);
        fails(&output, exit);
        assert_eq!(text(&output.stderr).lines().count(), 1, "{args:?}");
        let error = &json(&output.stderr)["error"];
        assert_eq!(error["exit"], exit, "{args:?}");
        for field in ["code", "what", "why", "state", "try"] {
            assert!(error[field].is_string(), "{args:?} {field}");
        }
        assert!(error.get("outcome").is_some());
    }
}

#[test]
fn help_is_data_and_lists_the_exit_codes() {
    for args in [
        &["--help"] as &[&str],
        &["help"],
        &["help", "put"],
        &["help", "nodes", "list"],
        &["get", "--help"],
        &["--version"],
    ] {
        let output = run(NOWHERE, args);
        exits(&output, 0);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    let help = run(NOWHERE, &["help", "put"]);
    assert!(text(&help.stdout).contains("Examples:"));
    let codes = run(NOWHERE, &["help", "exit-codes"]);
    exits(&codes, 0);
    for code in ["0 ", "5 ", "12 ", "141 "] {
        assert!(text(&codes.stdout).lines().any(|line| line.starts_with(code)));
    }
}

#[test]
fn completions_and_version_need_no_cluster() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(NOWHERE, &["completions", shell]);
        exits(&output, 0);
        assert!(text(&output.stdout).contains("keyspaces"), "{shell}");
    }
    let output = run(NOWHERE, &["version", "-o", "json"]);
    exits(&output, 0);
    let version = json(&output.stdout);
    assert_eq!(version["data"]["kvctl"], env!("CARGO_PKG_VERSION"));
    assert!(version["data"]["kvd"].is_null());
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    for args in [&["completions", "bash"] as &[&str], &["--help"], &["help", "exit-codes"]] {
        let home = tempfile::tempdir().unwrap();
        let mut command = kvctl(home.path(), NOWHERE, args);
        // The reading end is closed before kvctl starts, so the first write must fail.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command.stdout(writer).spawn().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(141), "{args:?}");
        assert_eq!(stderr, "", "{args:?}");
    }
}

#[test]
fn a_context_kvctl_did_not_print_exits_4() {
    for context in ["nonsense", "kvc1.*", "kvc2.AAAA"] {
        let output = run(NOWHERE, &["put", "k", "v", "--context", context]);
        fails(&output, 4);
        assert!(text(&output.stderr).starts_with("error[CONTEXT_INVALID]"));
    }
}

#[test]
fn without_a_terminal_init_wants_yes_and_prints_the_command() {
    let args = ["cluster", "init", "--name", "it's", "n1=127.0.0.1:1", "--zone", "a"];
    let output = run(NOWHERE, &args);
    fails(&output, 9);
    let command = r"kvctl cluster init --name 'it'\''s' n1=127.0.0.1:1 --zone a --yes";
    assert!(text(&output.stderr).contains(command), "{}", text(&output.stderr));
    let confirmed = [&args[..], &["--yes"]].concat();
    fails(&run(NOWHERE, &confirmed), 6);
}

#[test]
fn a_config_file_that_cannot_be_read_exits_2() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/kvctl");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), "keyspace = [").unwrap();
    fails(&kvctl(home.path(), NOWHERE, &["status"]).output().unwrap(), 2);
}

#[test]
fn values_come_back_byte_for_byte() {
    let node = Node::start(1);
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for value in [&every_byte[..], b"", b"text", b"\n", b"a\r\n\0"] {
        let put = run_with_stdin(&node.address, &["put", "k"], value);
        exits(&put, 0);
        assert!(put.stdout.is_empty() && put.stderr.is_empty());
        let get = run(&node.address, &["get", "k"]);
        exits(&get, 0);
        assert!(get.stdout == value);
    }
    exits(&run(&node.address, &["put", "k", "-5"]), 0);
    assert_eq!(run(&node.address, &["get", "k"]).stdout, b"-5");
    exits(&run(&node.address, &["put", "--key-hex", "00ff", "--value-b64", "AP8="]), 0);
    assert_eq!(run(&node.address, &["get", "--key-b64", "AP8="]).stdout, b"\0\xff");
    exits(&run(&node.address, &["put", "--key-hex", "00ff", "plain"]), 0);
    assert_eq!(run(&node.address, &["get", "--key-hex", "00ff"]).stdout, b"plain");
}

#[test]
fn a_missing_key_is_not_an_empty_value() {
    let node = Node::start(1);
    fails(&run(&node.address, &["get", "k"]), 3);
    fails(&run(&node.address, &["get", "k", "-o", "json"]), 3);
    exits(&run(&node.address, &["exists", "k"]), 3);
    exits(&run_with_stdin(&node.address, &["put", "k"], b""), 0);
    exits(&run(&node.address, &["get", "k"]), 0);
    exits(&run(&node.address, &["exists", "k"]), 0);
    exits(&run(&node.address, &["delete", "k", "--must-exist"]), 0);
    exits(&run(&node.address, &["exists", "k"]), 3);
    exits(&run(&node.address, &["delete", "k"]), 0);
    fails(&run(&node.address, &["delete", "k", "--must-exist"]), 3);
}

#[test]
fn of_siblings_none_is_picked_and_none_is_lost() {
    let node = Node::start(1);
    let at = node.address.as_str();
    exits(&run(at, &["put", "k", "one", "--blind"]), 0);
    exits(&run(at, &["put", "k", "three", "--blind"]), 0);

    let get = run(at, &["get", "k"]);
    fails(&get, 4);
    let stderr = text(&get.stderr);
    assert!(stderr.starts_with("error[SIBLINGS]: k has 2 concurrent values\n"), "{stderr}");
    assert!(stderr.contains("\n  0  3 B  sha256:7692c3ad3540"), "{stderr}");
    assert!(stderr.contains("three"), "{stderr}");

    let all = run(at, &["get", "k", "-o", "json"]);
    exits(&all, 0);
    let answer = json(&all.stdout);
    assert_eq!(answer["schema"], "kvctl.get/v1");
    assert_eq!(answer["siblings"].as_array().unwrap().len(), 2);
    assert_eq!(answer["siblings"][0]["value_b64"], "b25l");
    assert!(answer["siblings"][0]["dot"]["counter"].is_string());
    assert!(answer["context"].as_str().unwrap().starts_with("kvc1."));

    assert_eq!(run(at, &["get", "k", "--sibling", "1"]).stdout, b"three");
    assert_eq!(run(at, &["get", "k", "--sibling", "newest"]).stdout, b"three");
    fails(&run(at, &["get", "k", "--sibling", "2"]), 3);
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().to_str().unwrap();
    exits(&run(at, &["get", "k", "--sibling", "all", "--out-dir", into]), 0);
    assert_eq!(std::fs::read(folder.path().join("k~1")).unwrap(), b"three");

    fails(&run(at, &["put", "k", "mine"]), 4);
    fails(&run(at, &["delete", "k"]), 4);
    exits(&run(at, &["put", "k", "merged", "--resolve"]), 0);
    assert_eq!(run(at, &["get", "k"]).stdout, b"merged");
}

#[test]
fn read_change_write_replaces_only_what_was_read() {
    let node = Node::start(1);
    let at = node.address.as_str();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (context, value) = (file("c"), file("v"));
    let from_file = format!("@{context}");
    exits(&run(at, &["put", "k", "1"]), 0);
    exits(&run(at, &["get", "k", "--context-out", &context, "--out", &value]), 0);
    assert_eq!(std::fs::read(&value).unwrap(), b"1");
    exits(&run(at, &["put", "k", "2", "--context", &from_file]), 0);
    assert_eq!(run(at, &["get", "k"]).stdout, b"2");

    // The context is of the time before "2", so "3" does not replace it.
    let put = run(at, &["put", "k", "3", "--context", &from_file]);
    exits(&put, 0);
    assert_eq!(text(&put.stderr), "note: k now has 2 concurrent values\n");
    fails(&run(at, &["get", "k", "--out", &value]), 4);
    assert_eq!(std::fs::read(&value).unwrap(), b"1", "a failed get leaves the file");
}

#[test]
fn several_keys_are_told_apart() {
    let node = Node::start(1);
    let at = node.address.as_str();
    exits(&run(at, &["put", "a", "1"]), 0);
    exits(&run(at, &["put", "x/y", "2"]), 0);
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().to_str().unwrap();
    exits(&run(at, &["get", "a", "x/y", "--out-dir", into]), 0);
    assert_eq!(std::fs::read(folder.path().join("x%2Fy")).unwrap(), b"2");
    let partly = run(at, &["get", "a", "nope", "-o", "jsonl"]);
    exits(&partly, 12);
    assert_eq!(json(&partly.stdout)["key"], "a");
    assert_eq!(json(&partly.stderr)["error"]["code"], "NOT_FOUND");
}

#[test]
fn a_damaged_value_is_not_handed_out() {
    let node = Node::start(1);
    exits(&run(&node.address, &["put", "damaged", "v"]), 0);
    let get = run(&node.address, &["get", "damaged"]);
    fails(&get, 1);
    assert!(text(&get.stderr).starts_with("error[CHECKSUM_MISMATCH]"));
}

#[test]
fn a_typed_error_keeps_its_code_and_words() {
    let node = Node::start(1);
    let put = run(&node.address, &["put", "k", "v", "--w", "9", "-o", "json"]);
    fails(&put, 2);
    let error = &json(&put.stderr)["error"];
    assert_eq!(error["code"], "QUORUM_INVALID");
    assert_eq!(error["outcome"], "not_applied");
}

#[test]
fn repair_tells_when_nodes_last_had_all_the_same_and_never_makes_a_time_up() {
    let node = Node::start(1);
    let all = run(&node.address, &["repair", "status", "-o", "json"]);
    assert_eq!(all.status.code(), Some(11), "n3 cannot be compared with");
    let pairs = &json(&all.stdout)["data"][0]["pairs"];
    assert_eq!(pairs[0]["matched_at"], "1970-01-01T00:00:00.005Z");
    assert_eq!(pairs[1]["matched_at"], serde_json::Value::Null);
    assert_eq!((&pairs[0]["state"], &pairs[1]["state"]), (&"matched".into(), &"failed".into()));

    let one = run(&node.address, &["repair", "start", "--node", "n1"]);
    exits(&one, 0);
    assert!(text(&one.stdout).starts_with("NODE  PEER  STATE"), "{}", text(&one.stdout));
}

#[test]
fn dump_and_load_round_trip_siblings_into_another_cluster() {
    let (from, to) = (Node::start(1), Node::start(2));
    for n in 0..5 {
        let line = format!(
            "{{\"key\":\"key {n}\",\"value\":\"value {n}\"}}
"
        );
        exits(&run_with_stdin(&from.address, &["load", "-"], line.as_bytes()), 0);
    }
    exits(&run(&from.address, &["put", "s", "1", "--blind"]), 0);
    exits(&run(&from.address, &["put", "s", "2", "--blind"]), 0);
    let dump = run(&from.address, &["dump", "--page", "2"]);
    exits(&dump, 0);
    assert_eq!(text(&dump.stdout).lines().count(), 7);
    for _ in 0..2 {
        let load = run_with_stdin(&to.address, &["load", "-"], &dump.stdout);
        exits(&load, 0);
        assert!(text(&load.stderr).starts_with("loaded 6 keys, "), "{}", text(&load.stderr));
        assert!(load.stdout.is_empty());
    }
    let hashes = |node: &Node| run(&node.address, &["dump", "--hash", "-q"]).stdout;
    assert_eq!(text(&hashes(&from)), text(&hashes(&to)));
    let again = run_with_stdin(&to.address, &["load", "-", "--on-conflict", "skip"], &dump.stdout);
    exits(&again, 0);
    assert!(text(&again.stderr).contains("6 skipped"), "{}", text(&again.stderr));
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let node = Node::start(1);
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(from.path().join("d")).unwrap();
    std::fs::write(from.path().join("d/empty"), b"").unwrap();
    std::fs::write(from.path().join("d/bytes"), b"\0\xff").unwrap();
    std::fs::write(from.path().join("top"), b"t").unwrap();
    let path = |folder: &tempfile::TempDir| folder.path().to_str().unwrap().to_owned();
    let load = ["load", "--tree", &path(&from), "--prefix", "p/"];
    exits(&run(&node.address, &load), 0);
    assert_eq!(run(&node.address, &["get", "p/d/bytes"]).stdout, b"\0\xff");
    let dump = ["dump", "--tree", &path(&to), "--prefix", "p/"];
    exits(&run(&node.address, &dump), 0);
    for name in ["d/empty", "d/bytes", "top"] {
        let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read(&from), read(&to), "{name}");
    }
    exits(&run(&node.address, &["put", "p/../escape", "x"]), 0);
    let escaped = run(&node.address, &dump);
    exits(&escaped, 12);
    assert!(text(&escaped.stderr).contains("error[KEY_NOT_A_PATH]"));
}

#[test]
fn what_load_could_not_store_is_listed() {
    let node = Node::start(1);
    let lines = b"nonsense\n{\"key\":\"a\",\"value\":\"1\"}\n";
    let load = run_with_stdin(&node.address, &["load", "-"], lines);
    exits(&load, 12);
    let failed = json(&load.stdout);
    assert_eq!((&failed["error"], &failed["line"]), (&"USAGE".into(), &1.into()));
    let load = run_with_stdin(NOWHERE, &["load", "-"], &lines[9..]);
    exits(&load, 6);
}

#[test]
fn a_member_seen_once_stands_in_for_a_dead_seed() {
    let (node, home) = (Node::start(1), tempfile::tempdir().unwrap());
    let both = format!("{NOWHERE},{}", node.address);
    // Endpoints as a set name the cache: found through the second, kept for both.
    exits(&kvctl(home.path(), &both, &["exists", "k"]).output().unwrap(), 3);
    let seeds = home.path().join(".local/state/kvctl/seeds");
    let kept: Vec<_> = std::fs::read_dir(&seeds).unwrap().map(Result::unwrap).collect();
    assert_eq!(kept.len(), 1);
    let text = std::fs::read_to_string(kept[0].path()).unwrap();
    assert!(text.contains(&node.address), "{text}");

    // An address that has passed to another cluster since is refused, whatever was asked.
    let (dead, other) = (node.address.clone(), Node::start(2));
    exits(&kvctl(home.path(), &dead, &["exists", "k"]).output().unwrap(), 3);
    for entry in std::fs::read_dir(&seeds).unwrap().map(Result::unwrap) {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        std::fs::write(entry.path(), text.replace(&dead, &other.address)).unwrap();
    }
    drop(node);
    let refused = kvctl(home.path(), &dead, &["put", "k", "v"]).output().unwrap();
    fails(&refused, 8);
    assert!(self::text(&refused.stderr).starts_with("error[CLUSTER_MISMATCH]"));

    // One of the same cluster is taken.
    let successor = Node::start(1);
    for entry in std::fs::read_dir(&seeds).unwrap().map(Result::unwrap) {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        std::fs::write(entry.path(), text.replace(&other.address, &successor.address)).unwrap();
    }
    exits(&kvctl(home.path(), &dead, &["put", "k", "v"]).output().unwrap(), 0);
    assert_eq!(run(&successor.address, &["get", "k"]).stdout, b"v");
}

#[test]
fn a_put_is_said_again_under_the_same_id() {
    let node = Node::start(1);
    exits(&run(&node.address, &["put", "draining", "v", "--blind"]), 0);
    assert_eq!(run(&node.address, &["get", "draining"]).stdout, b"v");
}

#[test]
fn a_lost_connection_is_made_good_by_another_node() {
    let (bad, good) = (hangs_up(), Node::start(1));
    let both = format!("{bad},{}", good.address);
    exits(&run(&both, &["put", "k", "v", "--blind"]), 0);
    assert_eq!(run(&both, &["get", "k"]).stdout, b"v");
    assert_eq!(run(&good.address, &["get", "k"]).stdout, b"v");
}

#[test]
fn a_put_that_was_lost_on_the_way_has_an_unknown_outcome() {
    let bad = hangs_up();
    let put = run(&bad, &["put", "k", "v", "--blind", "-o", "json"]);
    fails(&put, 6);
    assert_eq!(json(&put.stderr)["error"]["outcome"], "unknown");
    let get = run(&bad, &["get", "k", "-o", "json"]);
    fails(&get, 6);
    assert!(json(&get.stderr)["error"]["outcome"].is_null());
}

#[test]
fn a_node_that_never_answers_exits_7() {
    let address = says_nothing();
    let start = Instant::now();
    let put = run(&address, &["put", "k", "v", "--blind", "--timeout", "300ms", "-o", "json"]);
    assert!(start.elapsed() < Duration::from_secs(3));
    fails(&put, 7);
    assert_eq!(json(&put.stderr)["error"]["outcome"], "unknown");
}

#[test]
fn a_port_where_nothing_is_said_is_no_node_and_nothing_is_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let put = run(&address, &["put", "k", "v", "--blind", "--timeout", "300ms", "-o", "json"]);
    fails(&put, 6);
    let error = &json(&put.stderr)["error"];
    assert!(error["outcome"].is_null(), "{error}");
    assert!(error["why"].as_str().unwrap().contains("did not answer"), "{error}");
}

#[test]
fn status_and_nodes_come_from_one_view() {
    let node = Node::start(1);
    let status = run(&node.address, &["status"]);
    exits(&status, 0);
    let shown = text(&status.stdout);
    assert!(shown.starts_with(
        "cluster fake (01010101)  ring 1, agreed by 1 of 1 live nodes  seen via n1\n"
    ));
    assert!(shown.contains("\nNODE  ZONE"), "{shown}");
    assert!(!shown.contains('\x1b'));
    let coloured = run(&node.address, &["--color", "always", "status"]);
    assert!(text(&coloured.stdout).contains('\x1b'));
    let names = run(&node.address, &["nodes", "list", "-o", "name"]);
    assert_eq!(names.stdout, b"n1\n");
    let list = json(&run(&node.address, &["nodes", "list", "-o", "json"]).stdout);
    assert_eq!(list["schema"], "kvctl.nodes.list/v1");
    assert_eq!((&list["viewpoint"], &list["ring"]), (&"n1".into(), &"1".into()));
    assert!(list["data"][0]["stats"].is_null(), "never heard is not zero");
    fails(&run(&node.address, &["nodes", "show", "n9"]), 3);
    let version = json(&run(&node.address, &["version", "-o", "json"]).stdout);
    assert_eq!(version["data"]["kvd"], "0.0.0-fake");
}

#[test]
fn the_ring_shows_owners_what_is_live_and_what_is_behind() {
    let node = Node::start(1);
    let ring = run(&node.address, &["ring", "show", "--ascii"]);
    exits(&ring, 0);
    let expected = "\
layout   4 partitions  keyspace default N=1
  #0      ..X.
  . 1/1 live  o one missing  ! more missing  X none live
PART  TOKENS       REPLICAS  LIVE  LAG       CHECKED
#0    000..-3ff..  n1        1/1   0         1m00s
#1    400..-7ff..  n1        1/1   n1 3m12s  1m00s
#2    800..-bff..  n1X       0/1   0         ?
#3    c00..-fff..  n1        1/1   n1 ?      1m00s
";
    let (_, rest) = text(&ring.stdout).split_once('\n').unwrap();
    assert_eq!(rest, expected);
    let lagging = run(&node.address, &["ring", "show", "--lagging", "--node", "n1", "-o", "name"]);
    assert_eq!(text(&lagging.stdout), "1\n3\n");
    let ring = run(&node.address, &["ring", "show", "--ascii", "--by", "node"]);
    exits(&ring, 0);
    let expected = "\
layout   4 partitions  keyspace default N=1
  #0      ..X.
  . 1/1 live  o one missing  ! more missing  X none live
NODE  ZONE  WEIGHT  STATE  COPIES  FIRST  SHARE   FAIR  DEV
n1    a     1       up     4       4      100.0%  0.0%  -
";
    let (head, rest) = text(&ring.stdout).split_once('\n').unwrap();
    assert!(head.starts_with("cluster fake"));
    assert_eq!(rest, expected);
    let ring = json(&run(&node.address, &["ring", "show", "-o", "json"]).stdout);
    assert_eq!(ring["data"]["partitions"][2]["live"], 0);
    assert_eq!(ring["data"]["partitions"][2]["nodes"][0], "n1");
    let replica = |partition: usize| &ring["data"]["partitions"][partition]["replicas"][0];
    assert_eq!((&replica(1)["lag_ms"], &replica(1)["lag_known"]), (&192_000.into(), &true.into()));
    assert!(replica(2)["checked_ms"].is_null() && replica(3)["lag_ms"].is_null());
    let wide = run(&node.address, &["ring", "show", "-o", "tsv"]);
    assert_eq!(text(&wide.stdout).lines().count(), 5);
    fails(&run(&node.address, &["ring", "show", "-k", "nope"]), 3);
}

#[test]
fn a_key_is_located_by_its_md5() {
    let node = Node::start(1);
    let located = run(&node.address, &["locate", "user:42"]);
    exits(&located, 0);
    let shown = text(&located.stdout);
    assert!(shown.contains("token      56dadf1868c3ba340467c942a86c29de\n"), "{shown}");
    assert!(shown.contains("partition  #1  tokens 40000000… to 7fffffff…\n"), "{shown}");
    let located = json(&run(&node.address, &["locate", "user:42", "-o", "json"]).stdout);
    assert_eq!(located["data"]["preference"][0]["state"], "up");
    assert_eq!(located["data"]["token"], "56dadf1868c3ba340467c942a86c29de");
}

#[test]
fn keyspaces_are_made_and_shown() {
    let node = Node::start(1);
    let list = run(&node.address, &["keyspaces", "list"]);
    exits(&list, 0);
    assert!(text(&list.stdout).contains("\ndefault   1  1  1  sloppy  8.0 MiB    off          4 "));
    exits(&run(&node.address, &["keyspaces", "show", "default"]), 0);
    fails(&run(&node.address, &["keyspaces", "show", "nope"]), 3);
    fails(&run(&node.address, &["keyspaces", "create", "default"]), 4);
    let create = ["keyspaces", "create", "b", "--w", "3", "--mode", "strict", "-o", "json"];
    let made = json(&run(&node.address, &create).stdout);
    assert_eq!((&made["data"]["r"], &made["data"]["w"]), (&2.into(), &3.into()));
    assert_eq!(made["data"]["mode"], "strict");
    assert_eq!(made["data"]["compression"], "off");
    for codec in ["off", "lz4", "zstd"] {
        let create = ["keyspaces", "create", "c", "--compression", codec];
        let table = run(&node.address, &create);
        assert!(text(&table.stdout).contains(&format!("8.0 MiB    {codec}\n")), "{codec}");
        let made = json(&run(&node.address, &[&create[..], &["-o", "json"]].concat()).stdout);
        assert_eq!(made["data"]["compression"], codec);
    }
    fails(&run(&node.address, &["keyspaces", "create", "c", "--compression", "gzip"]), 2);
}

#[test]
fn a_cluster_is_made_through_its_first_member() {
    let node = Node::start(1);
    let member = format!("n1={}", node.address);
    let made = run(NOWHERE, &["cluster", "init", "--name", "fake", &member, "--yes"]);
    exits(&made, 0);
    assert!(text(&made.stdout).starts_with("cluster fake (01010101)"));
    fails(&run(NOWHERE, &["cluster", "init", "--name", "taken", &member, "--yes"]), 4);
}
