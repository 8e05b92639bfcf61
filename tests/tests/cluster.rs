//! Real clusters of three and five: put, get, kill a node, keep going.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::error::detail;
use proto::v1::{ErrorCode, GetRequest, Outcome, PutRequest, ScanRequest};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::process::{Cluster, ok, run, text};
use tests::{eventually, one_of_three, random_bytes};

/// A tree of files of many sizes, with names that are awkward in shells and tables.
fn make_tree(dir: &Path, files: usize) -> BTreeMap<String, Vec<u8>> {
    let mut tree = BTreeMap::new();
    for i in 0..files {
        let len = match i {
            0 => 0,
            1 => 1 << 20,
            _ => (i * 7919) % 9000,
        };
        let name = match i % 4 {
            0 => format!("src/{i}.rs"),
            1 => format!("deep/er/and/deeper/{i}"),
            2 => format!("with space/ü {i}.txt"),
            _ => format!("top{i}"),
        };
        let value = random_bytes(len);
        let path = dir.join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &value).unwrap();
        tree.insert(name, value);
    }
    tree
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_tree_loaded_through_one_node_is_read_through_another_while_the_third_is_dead() {
    let mut cluster = Cluster::start(3);
    let source = tempfile::tempdir().unwrap();
    let tree = make_tree(source.path(), 300);
    let dir = source.path().to_str().unwrap();
    ok(cluster.kvctl_via(0, &["load", "--tree", dir]));

    cluster.nodes[1].kill();
    // Through the third, at once: no waiting for anyone to notice.
    let back = tempfile::tempdir().unwrap();
    ok(cluster.kvctl_via(2, &["dump", "--tree", back.path().to_str().unwrap()]));
    for (name, value) in &tree {
        let read = fs::read(back.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(hash(&read), hash(value), "{name}");
    }

    // Overwrite some while it is away, so that it comes back behind.
    for name in tree.keys().take(20) {
        ok(cluster.kvctl_via(2, &["put", name]).stdin(b"changed while n2 was away"));
    }
    cluster.nodes[1].start();
    cluster.wait_until_up(2, &["n1", "n2", "n3"]);
    let client = cluster.client(2);
    let get_of_all = |name: &String| {
        let request =
            GetRequest { key: name.clone().into_bytes().into(), r: Some(3), ..Default::default() };
        cluster.block_on(async { client.kv().get(request).await })
    };
    // That n2 is up n3 may have heard from n1 before it is linked to n2 itself.
    eventually("n3 to reach n2", || get_of_all(tree.keys().next()?).ok());
    for name in tree.keys() {
        assert_eq!(get_of_all(name).unwrap().into_inner().siblings.len(), 1, "{name}");
    }
    for name in tree.keys().take(25) {
        eventually("a get to have repaired n2", || {
            let [one, two] = ["n1", "n2"].map(|on| cluster.copy(2, on, name.as_bytes()));
            (two.present && one.digest == two.digest).then_some(())
        });
    }
}

#[test]
fn two_puts_with_one_context_are_two_siblings_on_every_node() {
    let cluster = Cluster::start(3);
    let context = cluster.dir().join("context");
    let context_arg = format!("@{}", context.display());
    let live = |expected: usize| {
        for on in ["n1", "n2", "n3"] {
            eventually(&format!("{expected} values on {on}"), || {
                let copy = cluster.copy(0, on, b"cart");
                let live = copy.copies.iter().filter(|copy| !copy.tombstone).count();
                (live == expected).then_some(())
            });
        }
    };
    ok(cluster.kvctl(&["put", "cart", "base"]));
    ok(cluster.kvctl(&["get", "cart", "--context-out", context.to_str().unwrap()]));
    ok(cluster.kvctl_via(0, &["put", "cart", "one", "--context", &context_arg]));
    ok(cluster.kvctl_via(1, &["put", "cart", "two", "--context", &context_arg]));
    live(2);
    let get = run(cluster.kvctl_via(2, &["get", "cart"]));
    assert_eq!((get.status.code(), get.stdout.len()), (Some(4), 0), "{}", text(&get.stderr));

    // The joined context resolves both.
    let joined = ok(cluster.kvctl_via(
        2,
        &[
            "get",
            "cart",
            "--sibling",
            "all",
            "-o",
            "json",
            "--context-out",
            context.to_str().unwrap(),
        ],
    ));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&joined).unwrap()["siblings"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    ok(cluster.kvctl_via(2, &["put", "cart", "both", "--context", &context_arg]));
    live(1);
    assert_eq!(ok(cluster.kvctl_via(0, &["get", "cart"])), b"both");

    // The context of one of two deletes that one.
    ok(cluster.kvctl_via(1, &["put", "cart", "other", "--blind"]));
    live(2);
    let json = ok(cluster.kvctl(&["get", "cart", "-o", "json"]));
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let both = "Ym90aA=="; // "both"
    let sibling =
        json["siblings"].as_array().unwrap().iter().find(|s| s["value_b64"] == both).unwrap();
    ok(cluster.kvctl(&["delete", "cart", "--context", sibling["context"].as_str().unwrap()]));
    live(1);
    assert_eq!(ok(cluster.kvctl_via(2, &["get", "cart"])), b"other");
}

#[test]
fn a_put_reply_covers_the_writers_own_value_and_no_strangers() {
    let cluster = Cluster::start(3);
    let mine = cluster.dir().join("mine");
    ok(cluster.kvctl_via(0, &["put", "k", "strangers", "--blind"]));
    ok(cluster
        .kvctl_via(0, &["put", "k", "mine", "--blind", "--context-out", mine.to_str().unwrap()]));
    let again = format!("@{}", mine.display());
    ok(cluster.kvctl_via(1, &["put", "k", "mine again", "--context", &again]));
    let json = ok(cluster.kvctl_via(2, &["get", "k", "-o", "json"]));
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let values: Vec<&str> = json["siblings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["value_b64"].as_str().unwrap())
        .collect();
    assert_eq!(values.len(), 2, "{values:?}");
    assert!(values.contains(&"c3RyYW5nZXJz") && values.contains(&"bWluZSBhZ2Fpbg=="), "{values:?}");
}

#[test]
fn any_bytes_go_through_a_pipe_and_back() {
    let cluster = Cluster::start(3);
    for (i, len) in [0, 1, 4096, 1 << 20].into_iter().enumerate() {
        let value = random_bytes(len);
        let key = format!("k{i}");
        ok(cluster.kvctl_via(i % 3, &["put", &key]).stdin(&value));
        assert!(ok(cluster.kvctl_via((i + 1) % 3, &["get", &key])) == value, "{len} bytes");
    }
    let missing = run(cluster.kvctl(&["get", "nothing"]));
    assert_eq!((missing.status.code(), missing.stdout.len()), (Some(3), 0));
    ok(cluster.kvctl(&["delete", "k1"]));
    assert_eq!(run(cluster.kvctl_via(2, &["get", "k1"])).status.code(), Some(3));
}

#[test]
fn with_two_of_three_dead_a_quorum_is_refused_in_words_and_in_time() {
    let mut cluster = Cluster::start(3);
    ok(cluster.kvctl(&["keyspaces", "create", "strict", "--mode", "strict"]));
    ok(cluster.kvctl(&["put", "-k", "strict", "k", "v"]));
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    for args in [&["get", "-k", "strict", "k"][..], &["put", "-k", "strict", "k", "w", "--blind"]] {
        one_of_three("an answer in time", || {
            let started = Instant::now();
            let failed = run(cluster.kvctl_via(0, &[args, &["--timeout", "5s"]].concat()));
            let (error, took) = (text(&failed.stderr), started.elapsed());
            assert!(failed.stdout.is_empty());
            if failed.status.code() == Some(7) || took > Duration::from_secs(6) {
                return Err(format!("after {took:?}: {error}"));
            }
            assert_eq!(failed.status.code(), Some(5), "{error}");
            assert!(
                error.contains("QUORUM_UNMET") && error.contains("n2") && error.contains("n3"),
                "{error}"
            );
            Ok(())
        });
    }
    // Once they are known to be down, a strict put is refused before anything is written.
    cluster.wait_until_up(0, &["n1"]);
    let client = cluster.client(0);
    let request = PutRequest {
        keyspace: "strict".into(),
        key: "k".into(),
        value: "w".into(),
        ..Default::default()
    };
    let status = cluster.block_on(async { client.kv().put(request).await }).unwrap_err();
    let error = detail(&status).unwrap();
    assert_eq!((error.code(), error.outcome()), (ErrorCode::QuorumUnmet, Outcome::NotApplied));

    cluster.nodes[1].start();
    cluster.wait_until_up(0, &["n1", "n2"]);
    assert_eq!(ok(cluster.kvctl(&["get", "-k", "strict", "k"])).len(), 1);
}

#[test]
fn no_request_fails_while_one_of_three_is_killed_and_comes_back() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client(0);
    let mut put_and_get = |i: usize| {
        let key = format!("k{i}");
        let put = PutRequest {
            key: key.clone().into(),
            value: key.clone().into(),
            timeout_ms: 5_000,
            ..Default::default()
        };
        let get = GetRequest { key: key.clone().into(), timeout_ms: 5_000, ..Default::default() };
        cluster.block_on(async {
            client.kv().put(put).await.unwrap_or_else(|e| panic!("put {i}: {e}"));
            let reply = client.kv().get(get).await.unwrap_or_else(|e| panic!("get {i}: {e}"));
            assert_eq!(reply.into_inner().siblings[0].value, key.as_bytes());
        });
        if i == 50 {
            cluster.nodes[1].kill();
        }
        if i == 150 {
            cluster.nodes[1].start();
        }
    };
    (0..250).for_each(&mut put_and_get);
}

#[test]
fn a_paused_node_costs_no_request() {
    let mut cluster = Cluster::start(3);
    ok(cluster.kvctl(&["put", "k", "v"]));
    cluster.nodes[2].signal(Signal::STOP);
    for i in 0..20 {
        let started = Instant::now();
        ok(cluster.kvctl_via(i % 2, &["put", &format!("k{i}"), "v"]));
        ok(cluster.kvctl_via((i + 1) % 2, &["get", &format!("k{i}")]));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    cluster.wait_until_up(0, &["n1", "n2"]);
    cluster.nodes[2].signal(Signal::CONT);
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    assert!(cluster.nodes[2].has_ended().is_none());
}

#[test]
fn all_killed_at_once_lose_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(3);
    for i in 0..30 {
        ok(cluster.kvctl_via(i % 3, &["put", &format!("k{i}"), &format!("v{i}")]));
    }
    cluster.nodes.iter_mut().for_each(|node| node.kill());
    cluster.nodes.iter_mut().for_each(|node| node.start());
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    for i in 0..30 {
        let value = ok(cluster.kvctl_via((i + 1) % 3, &["get", &format!("k{i}"), "--r", "3"]));
        assert_eq!(value, format!("v{i}").as_bytes());
    }
    // Another life coordinates under another actor, and still supersedes what it reads.
    ok(cluster.kvctl_via(0, &["put", "k0", "after"]));
    assert_eq!(ok(cluster.kvctl_via(1, &["get", "k0"])), b"after");
}

#[test]
fn sigterm_drains_and_exits_0() {
    let mut cluster = Cluster::start(3);
    ok(cluster.kvctl(&["put", "k", "v"]));
    for node in &mut cluster.nodes {
        let status = node.stop();
        assert!(status.success(), "{status}: {}", node.log());
    }
    cluster.nodes.iter_mut().for_each(|node| node.start());
    cluster.wait_until_up(2, &["n1", "n2", "n3"]);
    assert_eq!(ok(cluster.kvctl(&["get", "k"])), b"v");
}

#[test]
fn a_node_that_is_not_a_replica_forwards_puts_and_coordinates_gets() {
    let mut cluster = Cluster::start(5);
    let keys: Vec<String> = (0..25).map(|i| format!("key {i}")).collect();
    for (i, key) in keys.iter().enumerate() {
        ok(cluster.kvctl_via(i % 5, &["put", key, &format!("v{i}")]));
        assert_eq!(ok(cluster.kvctl_via((i + 2) % 5, &["get", key])), format!("v{i}").as_bytes());
    }
    // Copies are on the three nodes that locate names, and on no other.
    let located = ok(cluster.kvctl(&["locate", &keys[0], "-o", "json"]));
    let located: serde_json::Value = serde_json::from_slice(&located).unwrap();
    let homes: Vec<String> = located["data"]["preference"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["fallback"] == false)
        .map(|node| node["node"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(homes.len(), 3, "{located}");
    for on in ["n1", "n2", "n3", "n4", "n5"] {
        eventually("copies where they belong", || {
            let present = cluster.copy(0, on, keys[0].as_bytes()).present;
            (present == homes.iter().any(|home| home == on)).then_some(())
        });
    }
    // Any one node dead: every key is still read and written through every other.
    cluster.nodes[4].kill();
    for (i, key) in keys.iter().enumerate() {
        ok(cluster.kvctl_via(i % 4, &["put", key, "again"]));
        assert_eq!(ok(cluster.kvctl_via((i + 1) % 4, &["get", key])), b"again");
    }
}

#[test]
fn malformed_requests_get_a_typed_error_and_store_nothing() {
    let mut cluster = Cluster::start(3);
    ok(cluster.kvctl(&["put", "source", "v"]));
    let json = ok(cluster.kvctl(&["get", "source", "-o", "json"]));
    assert!(!json.is_empty());
    let client = cluster.client(0);
    let of_source = GetRequest { key: "source".into(), ..Default::default() };
    let of_source =
        cluster.block_on(async { client.kv().get(of_source).await }).unwrap().into_inner();
    let put =
        |key: Vec<u8>| PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    let cases = [
        (put(vec![]), ErrorCode::KeyInvalid),
        (put(vec![b'k'; 4097]), ErrorCode::KeyInvalid),
        (
            PutRequest { value: vec![0; (8 << 20) + 1].into(), ..put(b"k".into()) },
            ErrorCode::ValueTooLarge,
        ),
        (PutRequest { w: Some(4), ..put(b"k".into()) }, ErrorCode::QuorumInvalid),
        (PutRequest { w: Some(0), ..put(b"k".into()) }, ErrorCode::QuorumInvalid),
        (PutRequest { keyspace: "nowhere".into(), ..put(b"k".into()) }, ErrorCode::KeyspaceUnknown),
        (
            PutRequest { context: of_source.context.clone(), ..put(b"k".into()) },
            ErrorCode::ContextMismatch,
        ),
        (
            PutRequest { context: random_bytes(60).into(), ..put(b"k".into()) },
            ErrorCode::ContextInvalid,
        ),
        (PutRequest { request_id: "short".into(), ..put(b"k".into()) }, ErrorCode::ArgumentInvalid),
    ];
    for (request, expected) in cases {
        let status = cluster.block_on(async { client.kv().put(request).await }).unwrap_err();
        let error = detail(&status).unwrap_or_else(|| panic!("{expected:?}: untyped {status}"));
        assert_eq!(error.code(), expected, "{error:?}");
        assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
    }
    let scan = ScanRequest { cursor: "x".into(), ..Default::default() };
    let status = cluster.block_on(async { client.kv().scan(scan).await }).unwrap_err();
    assert_eq!(detail(&status).unwrap().code(), ErrorCode::ArgumentInvalid);

    // Random bytes on the port: the connection is closed, the node stays.
    for _ in 0..20 {
        let mut raw = std::net::TcpStream::connect(&cluster.nodes[0].address).unwrap();
        raw.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = raw.write_all(&random_bytes(2000)); // it may close before all is sent
        let _ = raw.read(&mut [0; 100]);
    }
    assert!(cluster.nodes[0].has_ended().is_none(), "{}", cluster.nodes[0].log());
    let keys = ok(cluster.kvctl(&["dump", "--hash"]));
    assert_eq!(text(&keys).lines().count(), 1, "only what was put: {}", text(&keys));
}

#[test]
fn a_node_of_another_cluster_at_a_members_address_is_refused_with_the_reason() {
    let mut ours = Cluster::start(3);
    let mut theirs = Cluster::start(1);
    ours.nodes[1].stop();
    theirs.nodes[0].stop();
    theirs.nodes[0].address.clone_from(&ours.nodes[1].address);
    theirs.nodes[0].start();
    eventually("n1 to say who answers at n2's address", || {
        let shown = ok(ours.kvctl_via(0, &["nodes", "show", "n2"]));
        text(&shown).contains("another cluster").then_some(())
    });
    ok(ours.kvctl_via(0, &["put", "k", "v"]));
    theirs.nodes[0].kill();
    ours.nodes[1].start();
    ours.wait_until_up(0, &["n1", "n2", "n3"]);
}

#[test]
fn keyspaces_made_on_two_nodes_at_once_are_both_known_everywhere() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[2].kill();
    std::thread::scope(|scope| {
        for (position, name) in [(0, "left"), (1, "right")] {
            let cluster = &cluster;
            let create = ["keyspaces", "create", name, "--w", "3", "--mode", "strict"];
            scope.spawn(move || ok(cluster.kvctl_via(position, &create)));
        }
    });
    cluster.nodes[2].start();
    for position in 0..3 {
        eventually("both keyspaces on every node", || {
            let list = ok(cluster.kvctl_via(position, &["keyspaces", "list", "-o", "name"]));
            (text(&list).split_whitespace().collect::<Vec<_>>() == ["default", "left", "right"])
                .then_some(())
        });
    }
    eventually("one layout", || {
        let status = text(&ok(cluster.kvctl(&["status"])));
        status.contains("agreed by 3 of 3").then_some(())
    });
    let again = run(cluster.kvctl(&["keyspaces", "create", "left"]));
    assert_eq!(again.status.code(), Some(4), "{}", text(&again.stderr));
}

#[test]
fn a_blank_node_says_so_and_a_member_cannot_be_made_a_member_again() {
    let cluster = Cluster::blank(1);
    let get = run(cluster.kvctl(&["get", "k"]));
    assert_eq!(get.status.code(), Some(8), "{}", text(&get.stderr));
    assert!(text(&get.stderr).contains("kvctl cluster init"), "{}", text(&get.stderr));

    let other = Cluster::start(1);
    let members =
        [format!("a={}", cluster.nodes[0].address), format!("b={}", other.nodes[0].address)];
    let init = cluster.kvctl(&["cluster", "init", "--name", "x", "--yes"]).args_of(&members);
    let refused = run(init);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused.stderr));
    // Nothing was changed: the blank one is blank still.
    assert_eq!(run(cluster.kvctl(&["get", "k"])).status.code(), Some(8));
}

#[test]
fn health_and_reflection_are_served() {
    let cluster = Cluster::start(1);
    let uri = format!("http://{}", cluster.nodes[0].address);
    cluster.block_on(async {
        let channel =
            tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let request = tonic_health::pb::HealthCheckRequest { service: "kvd.v1.Kv".into() };
        let reply = health.check(request).await.unwrap().into_inner();
        assert_eq!(reply.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_response::MessageResponse,
        };
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut replies = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::iter([ask]))
            .await
            .unwrap()
            .into_inner();
        let Some(MessageResponse::ListServicesResponse(list)) =
            replies.message().await.unwrap().unwrap().message_response
        else {
            panic!("no list")
        };
        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        for name in ["kvd.v1.Kv", "kvd.v1.Admin", "kvd.v1.Replica"] {
            assert!(names.iter().any(|found| found == name), "{names:?}");
        }
    });
}

#[test]
fn many_large_values_read_at_once_break_no_link() {
    let cluster = Cluster::start(3);
    let client = cluster.client(0);
    let value = random_bytes(4 << 20);
    let put = |i: usize| PutRequest {
        key: format!("k{i}").into(),
        value: value.clone().into(),
        timeout_ms: 60_000,
        ..Default::default()
    };
    let get = |i: usize| GetRequest {
        key: format!("k{}", i % 4).into(),
        r: Some(3),
        timeout_ms: 60_000,
        ..Default::default()
    };
    cluster.block_on(async {
        for i in 0..4 {
            client.kv().put(put(i)).await.unwrap();
        }
        // More at once than one message between nodes may hold.
        let gets: Vec<_> = (0..80)
            .map(|i| {
                let (mut kv, request) = (client.kv(), get(i));
                tokio::spawn(async move { kv.get(request).await })
            })
            .collect();
        for get in gets {
            let reply = get.await.unwrap().unwrap().into_inner();
            assert_eq!(reply.siblings[0].value.len(), 4 << 20);
        }
    });
    // A peer that is busy with all that may be late to answer; nothing else may have broken a link.
    let log = cluster.nodes[0].log();
    let is_broken = |line: &&str| line.contains(" broke") && !line.contains("silent for");
    let broken: Vec<&str> = log.lines().filter(is_broken).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_peer_that_stops_taking_messages_is_noticed_under_load() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[2].signal(Signal::STOP);
    let client = cluster.client(0);
    let value = random_bytes(2 << 20);
    cluster.block_on(async {
        let puts: Vec<_> = (0..24)
            .map(|i| {
                let request = PutRequest {
                    key: format!("k{i}").into(),
                    value: value.clone().into(),
                    timeout_ms: 60_000,
                    ..Default::default()
                };
                let mut kv = client.kv();
                tokio::spawn(async move { kv.put(request).await })
            })
            .collect();
        for put in puts {
            put.await.unwrap().unwrap();
        }
    });
    cluster.wait_until_up(0, &["n1", "n2"]);
    cluster.nodes[2].signal(Signal::CONT);
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    assert!(cluster.nodes[2].has_ended().is_none());
}

#[test]
fn a_node_paused_while_a_keyspace_is_made_learns_it_when_it_goes_on() {
    let cluster = Cluster::start(3);
    cluster.nodes[1].signal(Signal::STOP);
    ok(cluster.kvctl_via(0, &["keyspaces", "create", "billing"]));
    cluster.nodes[1].signal(Signal::CONT);
    eventually("n2 to know the keyspace", || {
        let list = run(cluster.kvctl_via(1, &["keyspaces", "list", "-o", "name"]));
        text(&list.stdout).contains("billing").then_some(())
    });
}
