//! A partition of many pages goes from one node to another, and either is killed between two of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::client::Client;
use proto::token::Token;
use proto::v1::{LayoutView, PutRequest};
use tests::process::{Cluster, ok};
use tests::topology::{change, layout, op, throttle, tune, wait_until_done};
use tests::{eventually, random_bytes};

/// A page ends once it holds so many bytes of values.
const PAGE: u64 = 2 * 1024 * 1024;

/// All in one partition: six pages.
const KEYS: usize = 60;
const VALUE_BYTES: usize = 200_000;

/// Bytes a second: a page, and a little more, takes over 4 s. How far a copy has come is stored every
/// 2 s, so all pages but the newest are.
const SLOWLY: u64 = PAGE / 4;

/// Keys of one partition.
fn keys_of(partition: u32, bits: u32) -> Vec<String> {
    let all = (0..).map(|i| format!("key-{i}"));
    let there = all.filter(|key| Token::of(key.as_bytes()).partition(bits) == partition);
    there.take(KEYS).collect()
}

/// Position of the only replica of a partition.
fn owner(layout: &LayoutView, partition: u32) -> usize {
    let table = layout.tables.iter().find(|table| table.n == 1).unwrap();
    let name = &layout.members[table.slots[partition as usize] as usize].name;
    usize::from(name == "n2")
}

/// Bytes of this partition that its new replica has fetched, while it fetches.
fn fetched(cluster: &Cluster, client: &Client, id: &str, partition: u32) -> Option<u64> {
    let op = op(cluster, client, id)?;
    let mut moving = op.pairs.iter().flat_map(|pair| &pair.moving);
    moving
        .find(|it| (it.keyspace.as_str(), it.partition) == ("big", partition))
        .map(|it| it.bytes_done)
}

#[test]
fn a_copy_goes_on_at_the_page_where_either_side_was_killed() {
    // Nothing but the transfer brings a copy.
    let off = || vec![("KVD_REPAIR_EVERY", "off".to_owned())];
    let mut cluster = Cluster::start_with(2, |node| node.env = off());
    ok(cluster.kvctl(&["keyspaces", "create", "big", "--n", "1", "--r", "1", "--w", "1"]));
    let client = cluster.client(0);
    let before = layout(&cluster, &client).unwrap();
    let (partition, bits) = (77, before.partition_bits);
    let source = owner(&before, partition);
    let receiver = 1 - source;
    let keys = keys_of(partition, bits);
    for key in &keys {
        let put = PutRequest {
            keyspace: "big".into(),
            key: key.clone().into(),
            value: random_bytes(VALUE_BYTES).into(),
            timeout_ms: 60_000,
            ..Default::default()
        };
        cluster.block_on(async { client.kv().put(put).await }).unwrap();
    }
    throttle(&cluster, &client, SLOWLY);
    let op = change(&cluster, &client, vec![tune("big", 2, 1, 2)]);
    let come = |cluster: &Cluster, pages: u64| {
        let client = cluster.client(receiver);
        eventually(&format!("{pages} pages"), || {
            let bytes = fetched(cluster, &client, &op.id, partition)?;
            (bytes >= pages * PAGE).then_some(bytes)
        })
    };
    let now = |cluster: &Cluster| {
        let client = cluster.client(receiver);
        eventually("the copy to go on", || fetched(cluster, &client, &op.id, partition))
    };

    // Who fetches is killed: it knows of two pages at least, when it has had no time to fetch two.
    let before = come(&cluster, 3);
    cluster.nodes[receiver].kill();
    cluster.nodes[receiver].start();
    let after = now(&cluster);
    eprintln!("the receiver was killed at {before} bytes and goes on at {after}");
    assert!(after >= 2 * PAGE, "of {before} bytes it knows of {after}");

    // Who gives is killed: what has come stays.
    let before = come(&cluster, 4);
    cluster.nodes[source].kill();
    let meanwhile = now(&cluster);
    cluster.nodes[source].start();
    let after = now(&cluster);
    eprintln!("the source was killed at {before} bytes, it goes on at {after}");
    assert!(before <= meanwhile && meanwhile <= after, "{before} {meanwhile} {after}");

    let client = cluster.client(receiver);
    let (mut last, all) = (after, (KEYS * VALUE_BYTES) as u64);
    throttle(&cluster, &client, 0);
    eventually("the copy to be whole", || {
        let Some(bytes) = fetched(&cluster, &client, &op.id, partition) else { return Some(()) };
        assert!(bytes >= last, "it began again: {bytes} after {last}");
        assert!(bytes < all + PAGE / 2, "a page came twice: {bytes} of {all}");
        last = bytes;
        None
    });
    wait_until_done(&cluster, &client, &op.id);
    for key in &keys {
        let [one, other] =
            ["n1", "n2"].map(|on| cluster.copy_in("big", receiver, on, key.as_bytes()));
        assert!(one.present && one.digest == other.digest, "{key}");
    }
}
