//! Keyspaces that compress: real clusters, and the bytes on their disks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::error::detail;
use proto::v1::{ErrorCode, GetRequest, PutRequest, ScanRequest};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tests::process::{Cluster, ok, text};
use tests::{eventually, random_bytes};

/// A keyspace for each setting, and what its compressed values say they are compressed by.
const KEYSPACES: [(&str, Option<u8>); 3] = [("off", None), ("lz4", Some(1)), ("zstd", Some(2))];

/// Three nodes and the keyspaces.
fn start() -> Cluster {
    let cluster = Cluster::start(3);
    for (codec, _) in KEYSPACES {
        ok(cluster.kvctl(&["keyspaces", "create", codec, "--compression", codec]));
    }
    cluster
}

/// A value, and the request that put it, by which it is found among a file's bytes.
struct Stored {
    keyspace: &'static str,
    key: String,
    value: Vec<u8>,
    request: Vec<u8>,
    /// What it should be compressed by.
    codec: Option<u8>,
}

/// Puts values of all kinds through every node in turn, on every replica's disk.
fn fill(cluster: &Cluster) -> Vec<Stored> {
    let sentence = b"to be compressed or not to be, that is the question; ";
    let words = |length| sentence.iter().copied().cycle().take(length).collect::<Vec<u8>>();
    let mut all = Vec::new();
    for (keyspace, codec) in KEYSPACES {
        let values = [
            ("page", words(4000), codec),
            ("book", words(1 << 20), codec),
            ("noise", random_bytes(4000), None),
            ("word", words(20), None),
            ("nothing", Vec::new(), None),
        ];
        for (key, value, codec) in values {
            let (key, request) = (format!("{keyspace}/{key}"), random_bytes(16));
            all.push(Stored { keyspace, key, value, request, codec });
        }
    }
    for (i, stored) in all.iter().enumerate() {
        let put = PutRequest {
            keyspace: stored.keyspace.into(),
            key: stored.key.clone().into(),
            value: stored.value.clone().into(),
            request_id: stored.request.clone().into(),
            w: Some(3),
            ..Default::default()
        };
        let client = cluster.client(i % 3);
        cluster.block_on(async { client.kv().put(put).await }).unwrap();
    }
    all
}

/// What node `via` shows of a key.
fn get(cluster: &Cluster, via: usize, stored: &Stored) -> Vec<u8> {
    let (keyspace, key) = (stored.keyspace.into(), stored.key.clone().into());
    let request = GetRequest { keyspace, key, ..Default::default() };
    let client = cluster.client(via);
    let reply = cluster.block_on(async { client.kv().get(request).await }).unwrap().into_inner();
    assert_eq!(reply.siblings.len(), 1, "{}", stored.key);
    reply.siblings[0].value.to_vec()
}

/// Where the stored bytes of a value are in `file`, what compresses them, and how many they are;
/// see docs/storage-format.md.
fn places(file: &[u8], stored: &Stored) -> Vec<(usize, u8, usize)> {
    let u32_at = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let found = file.windows(16).enumerate().filter(|(_, window)| *window == stored.request);
    let place = |(request, _): (usize, &[u8])| match stored.codec {
        None => (request + 24, 0, u32_at(request + 20)),
        Some(_) => {
            assert_eq!(u32_at(request + 25), stored.value.len(), "{}", stored.key);
            (request + 29, file[request + 20], u32_at(request + 21))
        }
    };
    found.map(place).collect()
}

/// Every file of a store.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir.join("store")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn values_come_back_as_they_were_put_and_take_less_room() {
    let mut cluster = start();
    let all = fill(&cluster);
    for stored in &all {
        for via in 0..3 {
            assert!(get(&cluster, via, stored) == stored.value, "{} by n{}", stored.key, via + 1);
        }
        let copy = cluster.copy_in(stored.keyspace, 0, "n3", stored.key.as_bytes());
        assert!(copy.copies[0].value == stored.value, "{}", stored.key);
    }
    for (keyspace, _) in KEYSPACES {
        let client = cluster.client(1);
        let request = ScanRequest { keyspace: keyspace.into(), ..Default::default() };
        let page = cluster.block_on(async { client.kv().scan(request).await });
        let page = page.unwrap().into_inner();
        let items = page.items.iter().map(|item| (&item.key[..], &item.siblings[0].value[..]));
        let mut shown: Vec<(&[u8], &[u8])> = items.collect();
        shown.sort();
        let here = all.iter().filter(|stored| stored.keyspace == keyspace);
        let mut put: Vec<_> = here.map(|it| (it.key.as_bytes(), &it.value[..])).collect();
        put.sort();
        assert!(shown == put, "a scan of {keyspace}");
    }

    // A clean stop leaves everything in the shards.
    assert!(cluster.nodes[1].stop().success());
    let store: Vec<u8> = files(&cluster.nodes[1].data_dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "redb"))
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect();
    for stored in &all {
        let places = places(&store, stored);
        assert!(!places.is_empty(), "{} is not on n2's disk", stored.key);
        for (at, codec, length) in places {
            let as_it_was = length == stored.value.len() && store[at..][..length] == stored.value;
            assert_eq!(as_it_was, stored.codec.is_none(), "{}", stored.key);
            assert_eq!(codec, stored.codec.unwrap_or(0), "{}", stored.key);
            assert!(as_it_was || length < stored.value.len() / 8, "{}: {length}", stored.key);
        }
    }

    // And what a log says after a crash.
    cluster.nodes[1].start();
    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);
    for stored in &all {
        let copies = ["n1", "n2", "n3"]
            .map(|on| cluster.copy_in(stored.keyspace, 0, on, stored.key.as_bytes()));
        assert!(copies.iter().all(|copy| copy.copies[0].value == stored.value), "{}", stored.key);
        assert!(copies.iter().all(|copy| copy.digest == copies[0].digest), "{}", stored.key);
    }
}

#[test]
fn a_bit_flipped_in_a_compressed_value_is_never_served_and_a_scrub_heals_it() {
    let mut cluster = start();
    let all = fill(&cluster);
    let compressed: Vec<&Stored> = all.iter().filter(|stored| stored.codec.is_some()).collect();
    assert!(cluster.nodes[1].stop().success());
    for path in files(&cluster.nodes[1].data_dir) {
        let bytes = std::fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for (at, _, length) in compressed.iter().flat_map(|stored| places(&bytes, stored)) {
            let at = at + length / 2;
            file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        }
    }
    cluster.nodes[1].start();
    cluster.wait_until_up(1, &["n1", "n2", "n3"]);
    for stored in &compressed[..2] {
        assert!(get(&cluster, 1, stored) == stored.value, "{}", stored.key);
    }
    ok(cluster.kvctl_via(0, &["scrub", "start"]));
    eventually("the scrubs to end, with all that is bad healed", || {
        let status = ok(cluster.kvctl_via(0, &["scrub", "status", "-o", "json"]));
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        let nodes = status["data"].as_array().unwrap();
        nodes.iter().all(|node| node["state"] == "done").then(|| {
            for node in nodes {
                let bad: u64 = node["bad"].as_str().unwrap().parse().unwrap();
                assert_eq!(node["bad"], node["healed"], "{node}");
                assert!(if node["node"] == "n2" { bad >= 2 } else { bad == 0 }, "{node}");
            }
        })
    });
    for stored in &all {
        eventually("n2's copy to be as n1's", || {
            let [one, two] = ["n1", "n2"]
                .map(|on| cluster.copy_in(stored.keyspace, 0, on, stored.key.as_bytes()));
            (two.present && one.digest == two.digest).then_some(())
        });
    }
}

#[test]
fn replies_are_bounded_by_what_they_show_not_by_what_is_stored() {
    let cluster = start();
    let client = cluster.client(0);
    let put = |key: &str, bytes: usize| PutRequest {
        keyspace: "zstd".into(),
        key: key.to_owned().into(),
        value: vec![0; bytes].into(),
        timeout_ms: 20_000,
        ..Default::default()
    };
    let refused = cluster.block_on(async {
        for i in 0..8 {
            client.kv().put(put(&format!("k{i}"), 2 << 20)).await.unwrap();
        }
        for _ in 0..3 {
            client.kv().put(put("k", 8 << 20)).await.unwrap();
        }
        client.kv().put(put("k", 8 << 20)).await.unwrap_err()
    });
    assert_eq!(detail(&refused).unwrap().code(), ErrorCode::ObjectTooLarge);
    let request = GetRequest { keyspace: "zstd".into(), key: "k".into(), ..Default::default() };
    let reply = cluster.block_on(async { client.kv().get(request).await }).unwrap().into_inner();
    assert_eq!(reply.siblings.len(), 3);
    assert!(reply.siblings.iter().all(|sibling| *sibling.value == vec![0; 8 << 20]));

    let (mut keys, mut next) = (0, Default::default());
    loop {
        let scan = ScanRequest { keyspace: "zstd".into(), cursor: next, ..Default::default() };
        let page = cluster.block_on(async { client.kv().scan(scan).await }).unwrap().into_inner();
        let siblings = page.items.iter().flat_map(|item| &item.siblings);
        let bytes: usize = siblings.map(|sibling| sibling.value.len()).sum();
        assert!(bytes <= (4 << 20) + 3 * (8 << 20), "a page of {bytes} bytes");
        keys += page.items.len();
        next = page.next;
        if next.is_empty() {
            break;
        }
    }
    assert_eq!(keys, 9);
}

#[test]
fn a_keyspace_says_what_it_compresses_with() {
    let cluster = start();
    for (codec, _) in KEYSPACES {
        let shown = ok(cluster.kvctl_via(2, &["keyspaces", "show", codec, "-o", "json"]));
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        assert_eq!(shown["data"]["compression"], codec);
    }
    let listed = text(&ok(cluster.kvctl(&["keyspaces", "list"])));
    assert!(listed.lines().next().unwrap().contains("  COMPRESSION  "), "{listed}");
}
