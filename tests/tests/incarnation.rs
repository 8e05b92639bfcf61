//! Which start of a node goes on with its last life: real processes, real directories.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use tests::eventually;
use tests::process::{Cluster, ok};

fn incarnation(cluster: &Cluster, node: &str) -> String {
    let via = usize::from(node == "n1"); // what another node was told
    let shown = ok(cluster.kvctl_via(via, &["nodes", "show", node, "-o", "json"]));
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    shown["data"]["stats"]["incarnation"].as_str().unwrap_or_default().to_owned()
}

/// Stops node `position` cleanly and starts it again, with `meanwhile` in between.
fn restart(cluster: &mut Cluster, position: usize, meanwhile: impl FnOnce(&Path)) {
    assert!(cluster.nodes[position].stop().success());
    meanwhile(&cluster.nodes[position].data_dir.clone());
    cluster.nodes[position].start();
    for via in 0..3 {
        cluster.wait_until_up(via, &["n1", "n2", "n3"]);
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn an_incarnation_goes_on_after_a_clean_stop_and_not_after_a_kill() {
    let mut cluster = Cluster::start(3);
    let first = eventually("n2's incarnation", || {
        Some(incarnation(&cluster, "n2")).filter(|shown| !shown.is_empty())
    });
    restart(&mut cluster, 1, |_| {});
    eventually("n2 to go on in its incarnation", || {
        (incarnation(&cluster, "n2") == first).then_some(())
    });
    cluster.nodes[1].kill();
    cluster.nodes[1].start();
    eventually("n2 to live another life", || {
        let shown = incarnation(&cluster, "n2");
        (!shown.is_empty() && shown != first).then_some(())
    });
}

#[test]
fn a_directory_put_back_from_an_older_copy_erases_nothing() {
    let mut cluster = Cluster::start(3);
    let key = &["get", "k"];
    ok(cluster.kvctl_via(1, &["put", "k", "first"]));
    let backup = tempfile::tempdir().unwrap();
    restart(&mut cluster, 1, |data| copy_dir(data, backup.path()));
    let first = eventually("n2's incarnation", || {
        Some(incarnation(&cluster, "n2")).filter(|shown| !shown.is_empty())
    });
    // n2 replaces the value, under the actor its copy has from before.
    let seen = cluster.dir().join("seen").display().to_string();
    ok(cluster.kvctl_via(1, &["get", "k", "--context-out", &seen]));
    ok(cluster.kvctl_via(1, &["put", "k", "second", "--context", &format!("@{seen}")]));
    assert_eq!(ok(cluster.kvctl_via(0, key)), b"second");

    // Both stops were clean, and its file and database agree: n2 itself cannot know.
    restart(&mut cluster, 1, |data| {
        std::fs::remove_dir_all(data).unwrap();
        copy_dir(backup.path(), data);
    });
    ok(cluster.kvctl_via(1, &["put", "k", "third", "--blind"])); // blind, and coordinated on the older copy
    eventually("both values on every node", || {
        (0..3)
            .all(|via| cluster.copy(0, &format!("n{}", via + 1), b"k").copies.len() == 2)
            .then_some(())
    });
    eventually("n2 to live another life", || {
        let shown = incarnation(&cluster, "n2");
        (!shown.is_empty() && shown != first).then_some(())
    });
    // The first peer it tells its start says so. It then begins another, and the second peer may hear
    // of that one alone.
    let says = |node: usize, what: &str| cluster.nodes[node].log().contains(what);
    eventually("a peer to say that n2 runs on an older copy", || {
        [0, 2].into_iter().any(|peer| says(peer, "n2 runs on an older copy")).then_some(())
    });
    eventually("n2 to say the same of itself", || {
        says(1, "this data directory is an older copy").then_some(())
    });
}
