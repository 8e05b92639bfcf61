//! Real faults under real nodes: full disks, failing calls, torn writes, power cuts, wrong clocks.
//! What each test needs of the machine is in docs/contributing.md; without it the test says so and
//! does nothing.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::error::detail;
use proto::v1::{ErrorCode, GetRequest, Outcome, PutRequest};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use tests::eventually;
use tests::faults::{Failing, Mount, Neighbour, Shim};
use tests::ledger::Ledger;
use tests::process::{Cluster, ok, run, text};
use tonic::{Code, Status};

/// All that is acknowledged, and no more than was tried, is what node `position` answers.
fn assert_nothing_lost(cluster: &Cluster, position: usize, r: Option<u32>, ledger: &Ledger) {
    let client = cluster.client(position);
    let lost = cluster.block_on(ledger.lost(&client, r));
    assert!(lost.is_empty(), "lost: {lost:#?}");
}

/// Writes that failed with the disk say why, and that they may have been applied.
fn assert_in_doubt(failed: &[Status], why: &str) {
    for status in failed {
        // Without a detail: the connection went with the node.
        let Some(error) = detail(status) else { continue };
        let of_storage = matches!(error.code(), ErrorCode::StorageFailed | ErrorCode::QuorumUnmet);
        let in_doubt = of_storage && error.outcome() == Outcome::Unknown;
        assert!(in_doubt && error.why.contains(why), "{error:?}");
    }
}

#[test]
fn a_node_whose_disk_a_neighbour_fills_fails_in_words_and_keeps_every_acknowledged_write() {
    // The log itself meets the end of the disk, or a checkpoint does.
    for (write_buffer_mib, value_bytes) in [("32", 16 * 1024), ("1", 256 * 1024)] {
        let Some(disk) = Mount::tmpfs(256) else { return };
        let mut cluster = Cluster::start_with(1, |node| {
            node.data_dir = disk.path().join("data");
            node.env = vec![("KVD_WRITE_BUFFER_MIB", write_buffer_mib.into())];
        });
        let mut ledger = Ledger::new(4, value_bytes);
        let client = cluster.client(0);
        // It takes all there is, and the reserve too as soon as that is given up.
        let neighbour = Neighbour::fill(disk.path());
        let failed = cluster.block_on(ledger.write(&client, None, usize::MAX));
        let of_disk = |status: &Status| {
            detail(status).is_none_or(|error| error.code() != ErrorCode::DiskFull)
        };
        let failed: Vec<Status> = failed.into_iter().filter(of_disk).collect();
        assert_in_doubt(&failed, "No space left on device");
        let node = &mut cluster.nodes[0];
        if failed.is_empty() {
            node.kill(); // it was quick enough to refuse puts, and lives
        } else {
            let status = node.wait_for_end();
            assert_eq!(status.code(), Some(1), "{}", node.log());
        }

        // With no room it may not start, and then says what to do: nothing that would give up what
        // it holds.
        let told = node.log().len();
        if node.try_start() {
            node.kill();
        } else {
            let why = node.log().split_off(told);
            assert!(why.contains("No space left on device"), "{why}");
            assert!(!why.contains("backup") && !why.contains("remove"), "{why}");
        }
        drop(neighbour);
        node.start();
        assert_nothing_lost(&cluster, 0, None, &ledger);
    }
}

#[test]
fn puts_are_refused_before_the_disk_is_full_and_taken_again_once_there_is_room() {
    let Some(disk) = Mount::tmpfs(256) else { return };
    let cluster = Cluster::start_with(1, |node| {
        node.data_dir = disk.path().join("data");
        node.disk_full_percent = 95; // as it is unless somebody says otherwise
    });
    ok(cluster.kvctl(&["put", "before", "v"]));
    ok(cluster.kvctl(&["put", "doomed", "v"]));
    // Something else fills the disk: 250 of 256 MiB are used.
    let ballast = fs::File::create(disk.path().join("ballast")).unwrap();
    let used = statvfs(disk.path()).unwrap();
    let used = (used.f_blocks - used.f_bfree) * used.f_frsize;
    fallocate(&ballast, FallocateFlags::empty(), 0, (250 << 20) - used).unwrap();
    let refused = eventually("puts to be refused", || {
        let put = run(cluster.kvctl(&["put", "k", "v", "--blind"]));
        (!put.status.success()).then_some(put)
    });
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{error}");
    assert!(error.contains("DISK_FULL") && error.contains("nothing was stored"), "{error}");
    let client = cluster.client(0);
    let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let status = cluster.block_on(async { client.kv().put(put).await }).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");

    // Everything else goes on.
    assert_eq!(ok(cluster.kvctl(&["get", "before"])), b"v");
    ok(cluster.kvctl(&["delete", "doomed"]));
    assert_eq!(run(cluster.kvctl(&["get", "doomed"])).status.code(), Some(3));

    disk.resize(512);
    eventually("puts to be taken", || {
        run(cluster.kvctl(&["put", "after", "v"])).status.success().then_some(())
    });
    assert_eq!(ok(cluster.kvctl(&["get", "before"])), b"v");
}

#[test]
fn a_node_whose_syncs_or_writes_fail_stops_and_the_others_serve() {
    // The log, or a checkpoint, is what fails first.
    for (call, part) in
        [("fdatasync", None), ("pwrite64", None), ("pwrite64", Some("shard-2.redb"))]
    {
        let mut cluster = Cluster::start_with(3, |node| {
            node.env = vec![("KVD_WRITE_BUFFER_MIB", "1".into())];
        });
        let mut ledger = Ledger::new(4, 8 * 1024);
        let (n1, n2) = (cluster.client(0), cluster.client(1));
        let failed = cluster.block_on(ledger.write(&n1, None, 50));
        assert!(failed.is_empty(), "{failed:?}");
        let store = cluster.nodes[1].data_dir.join("store");
        let file = part.map(|part| store.join(part));
        let file = file.as_deref();
        let Some(failing) = Failing::calls(cluster.nodes[1].pid(), call, "EIO", file) else {
            return;
        };
        // Who waits for the failing disk is told that the outcome is not known.
        if part.is_none() {
            let put = PutRequest {
                key: "all three".into(),
                value: "v".into(),
                w: Some(3),
                ..Default::default()
            };
            let status = cluster.block_on(async { n2.kv().put(put).await }).unwrap_err();
            assert_in_doubt(&[status], "Input/output error");
        }
        // Who asks another node notices nothing.
        let failed = cluster.block_on(ledger.write(&n1, None, 300));
        assert!(failed.is_empty(), "{call} {part:?}: {failed:?}");
        let status = cluster.nodes[1].wait_for_end();
        let log = cluster.nodes[1].log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("storage stopped") && log.contains("Input/output error"), "{log}");
        let failed = cluster.block_on(ledger.write(&n1, None, 50));
        assert!(failed.is_empty(), "{call} {part:?}: {failed:?}");
        drop(failing);

        cluster.nodes[1].start();
        cluster.wait_until_up(1, &["n1", "n2", "n3"]);
        assert_nothing_lost(&cluster, 1, None, &ledger);
        assert_nothing_lost(&cluster, 0, Some(3), &ledger);
    }
}

#[test]
fn a_read_that_fails_is_never_taken_for_absence_and_stops_the_node() {
    let mut cluster = Cluster::start(3);
    let mut ledger = Ledger::new(2, 300 * 1024);
    let n1 = cluster.client(0);
    let failed = cluster.block_on(ledger.write(&n1, Some(3), 100));
    assert!(failed.is_empty(), "{failed:?}");
    // After a restart what it holds is on its disk and nowhere else.
    assert!(cluster.nodes[1].stop().success());
    cluster.nodes[1].start();
    cluster.wait_until_up(1, &["n1", "n2", "n3"]);
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    let n2 = cluster.client(1);
    let Some(failing) = Failing::calls(cluster.nodes[1].pid(), "pread64", "EIO", None) else {
        return;
    };
    let mut answered = 0;
    for i in 0..50 {
        let get = |r| GetRequest { key: format!("w0-k{i}").into(), r, ..Default::default() };
        for (client, r) in [(&n2, None), (&n2, Some(1)), (&n1, Some(3))] {
            match cluster.block_on(async { client.kv().get(get(r)).await }) {
                Ok(reply) => assert_eq!(reply.into_inner().siblings.len(), 1, "key {i}"),
                Err(_) => continue, // never the same as: there is no such key
            }
            answered += 1;
        }
    }
    assert!(answered > 0);
    let status = cluster.nodes[1].wait_for_end();
    let log = cluster.nodes[1].log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("storage stopped") && log.contains("Input/output error"), "{log}");
    drop(failing);
    assert_nothing_lost(&cluster, 2, None, &ledger);

    cluster.nodes[1].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    assert_nothing_lost(&cluster, 0, Some(3), &ledger);
}

#[test]
fn a_torn_write_at_any_point_loses_nothing_that_was_acknowledged() {
    // A segment of the log is filled by 4096 writes; then come its header and its groups. A shard
    // is written when it is opened, and then by checkpoints.
    let cuts = [
        ("identity", 1),
        ("log-", 1),
        ("log-", 2000),
        ("log-", 4096),
        ("log-", 4096 + 1),
        ("log-", 4096 + 2),
        ("log-", 4096 + 3),
        ("log-", 4096 + 100),
        ("shard-0", 1),
        ("shard-1", 6),
        ("shard-2", 20),
        ("shard-3", 60),
    ];
    let mut cluster = Cluster::start_with(1, |node| {
        node.env = vec![("KVD_WRITE_BUFFER_MIB", "1".into())];
    });
    let Some(shim) = Shim::build(cluster.dir()) else { return };
    let mut ledger = Ledger::new(4, 8 * 1024);
    let failed = cluster.block_on(ledger.write(&cluster.client(0), None, 200));
    assert!(failed.is_empty(), "{failed:?}");
    let sound = cluster.nodes[0].env.clone();
    for (part, nth) in cuts {
        cluster.nodes[0].kill();
        remove_spares(&cluster.nodes[0].data_dir.join("store"));
        cluster.nodes[0].env.extend(shim.torn_write(part, nth));
        if cluster.nodes[0].try_start() {
            // It may end between the start and the connection.
            if let Some(client) = cluster.try_client(0) {
                cluster.block_on(ledger.write(&client, None, usize::MAX));
            }
        }
        let status = cluster.nodes[0].wait_for_end();
        assert_eq!(status.signal(), Some(9), "{part} {nth}: {status}: {}", cluster.nodes[0].log());
        cluster.nodes[0].env = sound.clone();
        cluster.nodes[0].start();
        assert_nothing_lost(&cluster, 0, None, &ledger);
    }
}

/// Removes the log's segments that are kept for use again, so that the next is made.
fn remove_spares(store: &Path) {
    for entry in fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("spare-") {
            fs::remove_file(path).unwrap();
        }
    }
}

/// A cluster of one on a disk whose power can be cut.
fn on_a_disk(disk: &Mount) -> Cluster {
    Cluster::start_with(1, |node| {
        node.data_dir = disk.path().join("data");
        node.env = vec![("KVD_WRITE_BUFFER_MIB", "1".into())];
    })
}

/// Writes, and cuts the power after so many acknowledged writes more. Returns once the node is
/// gone, and the disk has power again.
fn cut_power_after(writes: usize, cluster: &mut Cluster, disk: &Mount, ledger: &mut Ledger) {
    let client = cluster.client(0);
    let acknowledged = ledger.acknowledged();
    let until = acknowledged.load(Ordering::Relaxed) + writes;
    let cut = || {
        eventually("enough writes", || {
            (acknowledged.load(Ordering::Relaxed) >= until).then_some(())
        });
        disk.cut_power();
    };
    std::thread::scope(|scope| {
        scope.spawn(cut);
        cluster.block_on(ledger.write(&client, None, usize::MAX));
    });
    let node = &mut cluster.nodes[0];
    assert_eq!(node.wait_for_end().code(), Some(1), "{}", node.log());
    disk.power_on();
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let Some(disk) = Mount::disk(256) else { return };
    let mut cluster = on_a_disk(&disk);
    let mut ledger = Ledger::new(4, 8 * 1024);
    for writes in [20, 150, 700] {
        cut_power_after(writes, &mut cluster, &disk, &mut ledger);
        cluster.nodes[0].start();
        assert_nothing_lost(&cluster, 0, None, &ledger);
    }
}

/// The test above can fail: with a disk that lies about syncs, it does.
#[test]
fn a_power_cut_under_a_disk_that_lies_about_syncs_is_seen_to_lose_writes() {
    let Some(disk) = Mount::disk(256) else { return };
    let mut cluster = on_a_disk(&disk);
    let Some(shim) = Shim::build(cluster.dir()) else { return };
    assert!(cluster.nodes[0].stop().success());
    let sound = cluster.nodes[0].env.clone();
    cluster.nodes[0].env.extend(shim.lying_sync());
    cluster.nodes[0].start();
    let mut ledger = Ledger::new(4, 8 * 1024);
    cut_power_after(200, &mut cluster, &disk, &mut ledger);
    cluster.nodes[0].env = sound;
    cluster.nodes[0].start();
    let lost = cluster.block_on(ledger.lost(&cluster.client(0), None));
    assert!(!lost.is_empty(), "200 writes were acknowledged and none was synced, yet none is lost");
}

#[test]
fn puts_supersede_what_they_saw_however_wrong_the_clocks_of_the_nodes_are() {
    let mut cluster = Cluster::start(3);
    let Some(shim) = Shim::build(cluster.dir()) else { return };
    let context = cluster.dir().join("context");
    let (context, seen) = (context.to_str().unwrap(), format!("@{}", context.display()));
    ok(cluster.kvctl(&["put", "k", "0", "--context-out", context]));
    let (mut count, mut dots) = (0, BTreeSet::new());
    // n1 is set back, then forward, then right again; then each node is wrong in its own way.
    let days = [[0, 0, 0], [-10, 0, 0], [10, 0, 0], [0, 0, 0], [-10, 0, 10], [10, -10, 0]];
    for days_ahead in days {
        for (position, days_ahead) in days_ahead.into_iter().enumerate() {
            set_clock(&mut cluster, position, &shim, days_ahead);
        }
        for position in 0..3 {
            cluster.wait_until_up(position, &["n1", "n2", "n3"]);
        }
        // Read through one, write through one: every pair of them.
        for (read, write) in (0..3).flat_map(|read| (0..3).map(move |write| (read, write))) {
            count += 1;
            let value = count.to_string();
            ok(cluster.kvctl_via(read, &["get", "k", "--r", "3", "--context-out", context]));
            ok(cluster.kvctl_via(write, &["put", "k", &value, "--context", &seen]));
            let shown = ok(cluster.kvctl_via(read, &["get", "k", "--r", "3", "-o", "json"]));
            let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
            let siblings = shown["siblings"].as_array().unwrap();
            let way = format!("n{} to n{}, days ahead {days_ahead:?}", read + 1, write + 1);
            assert_eq!(siblings.len(), 1, "{way}: {shown}");
            assert_eq!(ok(cluster.kvctl_via(read, &["get", "k"])), value.as_bytes(), "{way}");
            let dot = siblings[0]["dot"].to_string();
            assert!(dots.insert(dot.clone()), "{way}: {dot} was minted twice");
        }
    }
}

/// Gives a node a wall clock so many days ahead.
fn set_clock(cluster: &mut Cluster, position: usize, shim: &Shim, days_ahead: i64) {
    let (node, clock) = (&mut cluster.nodes[position], shim.clock_ahead(days_ahead));
    if node.env == clock {
        return;
    }
    assert!(node.stop().success());
    node.env = clock;
    node.start();
}
