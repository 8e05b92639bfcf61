//! What a node does when its disk is not what it was: real files of real processes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::client::Client;
use proto::v1::{DeleteRequest, GetClusterRequest, GetReply, GetRequest, NodeStats, PutRequest};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tests::process::{Cluster, ok, run, text};
use tests::{eventually, one_of_three};

/// A value that can be found again among a file's bytes.
fn value(i: usize) -> String {
    format!("needle-{i:04}-{}", "hay".repeat(50))
}

/// Flips one bit inside value `i`, in every file below `dir` that holds it; returns in how many.
fn damage(dir: &Path, i: usize) -> usize {
    let needle = value(i).into_bytes();
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let damage_in = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let at = bytes.windows(needle.len()).position(|window| window == needle);
        let Some(at) = at else { return false };
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[bytes[at + 20] ^ 4], at as u64 + 20).unwrap();
        true
    };
    files.filter(|path| damage_in(path)).count()
}

#[test]
fn a_flipped_bit_is_never_served_and_a_scrub_heals_it_from_a_replica() {
    let mut cluster = Cluster::start(3);
    for i in 0..40 {
        ok(cluster.kvctl_via(i % 3, &["put", &format!("k{i}"), &value(i)]));
    }
    for i in 0..40 {
        eventually("every copy on every node", || {
            cluster.copy(1, "n2", format!("k{i}").as_bytes()).present.then_some(())
        });
    }
    // A clean stop leaves everything in the shards.
    assert!(cluster.nodes[1].stop().success());
    let store = cluster.nodes[1].data_dir.join("store");
    for i in 0..10 {
        assert!(damage(&store, i) >= 1, "value {i} is not on n2's disk");
    }
    cluster.nodes[1].start();
    cluster.wait_until_up(1, &["n1", "n2", "n3"]);

    // Read through the damaged node, which is asked first: another replica's copy is served, and
    // what was read is healed by that alone.
    for i in 0..5 {
        assert_eq!(ok(cluster.kvctl_via(1, &["get", &format!("k{i}")])), value(i).as_bytes());
    }
    let started = ok(cluster.kvctl_via(0, &["scrub", "start"]));
    assert_eq!(text(&started).matches("running").count(), 3, "{}", text(&started));
    let found = eventually("the scrub of n2 to end", || {
        let status = ok(cluster.kvctl_via(0, &["scrub", "status", "-o", "json"]));
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        let nodes = status["data"].as_array().unwrap().clone();
        let done = nodes.iter().all(|node| node["state"] == "done");
        done.then(|| nodes.into_iter().find(|node| node["node"] == "n2").unwrap())
    });
    assert_eq!(found["records"], "40", "{found}");
    assert_eq!(found["bad"], found["healed"], "{found}");
    assert!(["5", "6", "7", "8", "9", "10"].contains(&found["bad"].as_str().unwrap()), "{found}");
    for i in 0..40 {
        let key = format!("k{i}");
        eventually("n2's copy to be as n1's", || {
            let [one, two] = ["n1", "n2"].map(|on| cluster.copy(0, on, key.as_bytes()));
            (two.present && one.digest == two.digest).then_some(())
        });
    }
    let shown = text(&ok(cluster.kvctl(&["nodes", "show", "n2"])));
    assert!(shown.contains("bad records"), "{shown}");
}

#[test]
fn damage_under_a_running_node_is_never_served() {
    let cluster = Cluster::start(3);
    for i in 0..10 {
        ok(cluster.kvctl_via(0, &["put", &format!("k{i}"), &value(i), "--w", "3"]));
    }
    // In the log of a running node: what it serves comes from memory, and it goes on.
    let store = cluster.nodes[2].data_dir.join("store");
    for i in 0..10 {
        assert!(damage(&store, i) >= 1);
        assert_eq!(ok(cluster.kvctl_via(2, &["get", &format!("k{i}")])), value(i).as_bytes());
    }
}

#[test]
fn a_log_damaged_while_the_node_was_dead_is_reported_and_its_keys_come_back() {
    let mut cluster = Cluster::start(3);
    for i in 0..10 {
        ok(cluster.kvctl_via(0, &["put", &format!("k{i}"), &value(i), "--w", "3"]));
    }
    cluster.nodes[2].kill();
    let store = cluster.nodes[2].data_dir.join("store");
    assert!(damage(&store, 3) >= 1);
    cluster.nodes[2].start();
    eventually("n3 to report the damage", || {
        cluster.nodes[2].log().contains("the log is damaged").then_some(())
    });
    cluster.wait_until_up(2, &["n1", "n2", "n3"]);
    for i in 0..10 {
        let key = format!("k{i}");
        assert_eq!(ok(cluster.kvctl_via(2, &["get", &key])), value(i).as_bytes());
        eventually("n3's copy to be as n1's", || {
            let [one, three] = ["n1", "n3"].map(|on| cluster.copy(0, on, key.as_bytes()));
            (three.present && one.digest == three.digest).then_some(())
        });
    }
}

#[test]
fn an_emptied_or_swapped_database_file_is_refused_and_the_others_serve() {
    let mut cluster = Cluster::start(3);
    ok(cluster.kvctl(&["put", "k", "v"]));
    assert!(cluster.nodes[1].stop().success());
    let store = cluster.nodes[1].data_dir.join("store");
    let shard = store.join("shard-1.redb");
    let healthy = std::fs::read(&shard).unwrap();
    let other = std::fs::read(cluster.nodes[0].data_dir.join("store/shard-1.redb")).unwrap();
    for (content, why) in [(Vec::new(), "has lost store/shard-1.redb"), (other, "mixes two nodes")]
    {
        std::fs::write(&shard, content).unwrap();
        let kvd = std::process::Command::new(tests::process::binary("kvd"))
            .args(["--listen", &cluster.nodes[1].address, "--data-dir"])
            .arg(&cluster.nodes[1].data_dir)
            .output()
            .unwrap();
        let error = text(&kvd.stderr);
        assert_eq!(kvd.status.code(), Some(1), "{error}");
        assert!(error.contains(why), "{error}");
        assert_eq!(run(cluster.kvctl_via(0, &["get", "k"])).stdout, b"v");
    }
    std::fs::write(&shard, healthy).unwrap();
    cluster.nodes[1].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
}

#[test]
fn a_full_disk_refuses_puts_and_everything_else_goes_on() {
    // Neither a comparison nor a hint brings n2 what it did not take.
    let off = || vec![("KVD_REPAIR_EVERY", "off".to_owned())];
    let mut cluster = Cluster::start_with(3, |node| node.env = off());
    for holder in ["n1", "n3"] {
        ok(cluster.kvctl(&["hints", "pause", "--node", holder]));
    }
    ok(cluster.kvctl(&["put", "before", "v", "--w", "3"]));
    ok(cluster.kvctl(&["put", "doomed", "v", "--w", "3"]));
    // Any disk is more than 1 % full.
    cluster.nodes[1].stop();
    cluster.nodes[1].disk_full_percent = 1;
    cluster.nodes[1].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    eventually("n2 to refuse puts", || {
        let put = run(cluster.kvctl_via(1, &["put", "k", "v", "--blind"]));
        let refused = text(&put.stderr).contains("DISK_FULL");
        assert!(!refused || put.status.code() == Some(5), "{}", text(&put.stderr));
        refused.then_some(())
    });
    assert_eq!(ok(cluster.kvctl_via(1, &["get", "before"])), b"v");
    ok(cluster.kvctl_via(1, &["delete", "doomed"]));
    assert_eq!(run(cluster.kvctl_via(0, &["get", "doomed"])).status.code(), Some(3));

    // The others do not send it puts, and count it as one that cannot take them.
    eventually("n1 to know", || {
        let all = run(cluster.kvctl_via(0, &["put", "all", "v", "--blind", "--w", "3"]));
        text(&all.stderr).contains("its disk is full").then_some(())
    });
    ok(cluster.kvctl_via(0, &["put", "two", "v"]));
    assert!(!cluster.copy(0, "n2", b"two").present);

    cluster.nodes[1].stop();
    cluster.nodes[1].disk_full_percent = 101;
    cluster.nodes[1].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    // Not of "all": each put of it above that failed may have left a sibling.
    eventually("n2 to take puts again", || {
        run(cluster.kvctl_via(0, &["put", "after", "v", "--w", "3"])).status.success().then_some(())
    });
}

// === compaction ===

/// A node of its own with a small write buffer, so that what is written is soon in its files, and
/// a client of it.
fn lone_node() -> (Cluster, Client) {
    let mut cluster = Cluster::start(1);
    assert!(cluster.nodes[0].stop().success());
    cluster.nodes[0].env = vec![("KVD_WRITE_BUFFER_MIB", "1".into())];
    cluster.nodes[0].start();
    cluster.wait_until_up(0, &["n1"]);
    let client = cluster.client(0);
    (cluster, client)
}

/// A large value that no other write of a test has.
fn large(i: usize, version: usize, length: usize) -> Vec<u8> {
    format!("<{i}:{version}>").bytes().cycle().take(length).collect()
}

fn get(cluster: &Cluster, client: &Client, i: usize) -> GetReply {
    let request =
        GetRequest { key: format!("k{i}").into(), timeout_ms: 20_000, ..Default::default() };
    cluster.block_on(async { client.kv().get(request).await }).unwrap().into_inner()
}

fn put(cluster: &Cluster, client: &Client, i: usize, value: Vec<u8>) {
    let request = PutRequest {
        key: format!("k{i}").into(),
        value: value.into(),
        context: get(cluster, client, i).context,
        timeout_ms: 20_000,
        ..Default::default()
    };
    cluster.block_on(async { client.kv().put(request).await }).unwrap();
}

fn holds(cluster: &Cluster, client: &Client, i: usize, expected: Option<&[u8]>) {
    let found = get(cluster, client, i);
    let values: Vec<&[u8]> = found.siblings.iter().map(|sibling| &sibling.value[..]).collect();
    assert!(values.iter().copied().eq(expected), "k{i}: {} values, or another", values.len());
}

fn stats(cluster: &Cluster, client: &Client) -> NodeStats {
    let view = cluster.block_on(async {
        client.admin().get_cluster(GetClusterRequest::default()).await.unwrap().into_inner()
    });
    view.nodes.into_iter().next().unwrap().stats.unwrap()
}

/// What `kvctl compact status` says of n1.
fn compaction(cluster: &Cluster) -> serde_json::Value {
    let status = run(cluster.kvctl(&["compact", "status", "-o", "json"]));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    status["data"][0].clone()
}

/// The files of a compaction that are there.
fn copies(store: &Path) -> Vec<String> {
    let names = std::fs::read_dir(store).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".new")).collect()
}

#[test]
fn a_compaction_gives_room_back_while_the_node_serves() {
    const KEYS: usize = 200;
    let (mut cluster, client) = lone_node();
    for i in 0..KEYS {
        put(&cluster, &client, i, large(i, 1, 150_000));
    }
    // A quarter stays as it is, a quarter becomes small, half goes.
    for i in 0..KEYS / 4 {
        put(&cluster, &client, i, large(i, 2, 100));
    }
    for i in KEYS / 2..KEYS {
        let request = DeleteRequest { key: format!("k{i}").into(), ..Default::default() };
        cluster.block_on(async { client.kv().delete(request).await }).unwrap();
    }
    let as_it_should_be = |cluster: &Cluster, client: &Client| {
        for i in 0..KEYS {
            let expected = match i {
                _ if i < KEYS / 4 => Some(large(i, 2, 100)),
                _ if i < KEYS / 2 => Some(large(i, 1, 150_000)),
                _ => None,
            };
            holds(cluster, client, i, expected.as_deref());
        }
    };
    assert_eq!(compaction(&cluster)["state"], "never");
    let before = stats(&cluster, &client).data_bytes;
    ok(cluster.kvctl(&["compact", "start"]));
    let mut round = 0;
    let done = eventually("the compaction to end", || {
        // All it holds is served, and it takes writes.
        as_it_should_be(&cluster, &client);
        round += 1;
        put(&cluster, &client, KEYS, large(KEYS, round, 50_000));
        holds(&cluster, &client, KEYS, Some(&large(KEYS, round, 50_000)));
        let now = compaction(&cluster);
        (now["state"] != "running").then_some(now)
    });
    assert_eq!((&done["state"], &done["files_done"]), (&"done".into(), &4.into()), "{done}");
    let bytes = |name: &str| done[name].as_str().unwrap().parse::<u64>().unwrap();
    assert!(bytes("bytes_after") < bytes("bytes_before") / 2, "{done}");
    let given_back = bytes("bytes_before") - bytes("bytes_after");
    let after = eventually("the files to be smaller", || {
        let after = stats(&cluster, &client).data_bytes;
        (after + given_back / 2 < before).then_some(after)
    });
    assert!(after > 0);
    let shown = text(&ok(cluster.kvctl(&["compact", "status"])));
    assert!(shown.contains("4/4"), "{shown}");

    as_it_should_be(&cluster, &client);
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    let client = cluster.client(0);
    as_it_should_be(&cluster, &client);
    holds(&cluster, &client, KEYS, Some(&large(KEYS, round, 50_000)));
}

#[test]
fn a_node_killed_in_a_compaction_has_everything_and_no_leftover() {
    const KEYS: usize = 300;
    let (mut cluster, client) = lone_node();
    for i in 0..KEYS {
        put(&cluster, &client, i, large(i, 1, 150_000));
    }
    let store = cluster.nodes[0].data_dir.join("store");
    // Until it is killed in the middle: a file may just have been finished.
    one_of_three("a kill in a compaction", || {
        ok(cluster.kvctl(&["compact", "start"]));
        eventually("a file to be written anew", || (!copies(&store).is_empty()).then_some(()));
        cluster.nodes[0].kill();
        if copies(&store).is_empty() {
            cluster.nodes[0].start();
            return Err("it had just ended".into());
        }
        Ok(())
    });
    cluster.nodes[0].start();
    cluster.wait_until_up(0, &["n1"]);
    assert!(copies(&store).is_empty());
    assert_eq!(compaction(&cluster)["state"], "never", "it is not gone on with");
    let client = cluster.client(0);
    for i in 0..KEYS {
        holds(&cluster, &client, i, Some(&large(i, 1, 150_000)));
    }
}

// === scrubs that come by themselves ===

/// What `kvctl scrub status` says of n1.
fn scrub(cluster: &Cluster) -> serde_json::Value {
    let status = ok(cluster.kvctl(&["scrub", "status", "-o", "json"]));
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    status["data"][0].clone()
}

#[test]
fn a_scrub_comes_by_itself_and_a_restart_does_not_begin_its_cycle_anew() {
    let mut cluster = Cluster::start(1);
    ok(cluster.kvctl(&["put", "k", "v"]));
    let new = scrub(&cluster);
    assert_eq!((&new["state"], &new["full_at"]), (&"never".into(), &().into()), "{new}");
    assert!(new["due_at"].is_string(), "{new}");

    let restart = |cluster: &mut Cluster, every: &str| {
        assert!(cluster.nodes[0].stop().success());
        cluster.nodes[0].env = vec![("KVD_SCRUB_EVERY", every.into())];
        cluster.nodes[0].start();
        cluster.wait_until_up(0, &["n1"]);
    };
    restart(&mut cluster, "1s");
    eventually("a scrub that nobody asked for", || {
        let now = scrub(&cluster);
        (now["full_at"].is_string() && now["records"] == "1").then_some(())
    });
    restart(&mut cluster, "off");
    let last = scrub(&cluster);
    assert_eq!((&last["state"], &last["due_at"]), (&"idle".into(), &().into()), "{last}");
    assert!(last["full_at"].is_string(), "{last}");
    // Due a cycle after the last, however often the node is started.
    for _ in 0..2 {
        restart(&mut cluster, "365d");
        let again = scrub(&cluster);
        assert_eq!((&again["state"], &again["full_at"]), (&"idle".into(), &last["full_at"]));
        let year = |at: &serde_json::Value| at.as_str().unwrap()[..4].parse::<u32>().unwrap();
        assert!(year(&again["due_at"]) <= year(&last["full_at"]) + 1, "{again}");
        assert_ne!(again["due_at"], again["full_at"]);
    }
}
