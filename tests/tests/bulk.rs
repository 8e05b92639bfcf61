//! What nodes do in the background does not get in the way of requests: each has a link of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::v1::{GetRequest, PutRequest};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::eventually;
use tests::process::{Cluster, ok, run, text};

/// Hints, and how long each is.
const HINTS: usize = 40;
const HINT_BYTES: usize = 512 * 1024;

/// Who is stuck behind bulk waits for so long at least: then its link is given up.
const FOUND_DEAD_WITHIN: Duration = Duration::from_secs(5);

/// Of a request. Longer than that, so that it is not its own deadline that ends it.
const PATIENCE_MS: u32 = 20_000;

/// The way to a node. While it is narrow, what connects gets stuck once it has sent a little.
struct Way {
    address: String,
    narrow: Arc<AtomicBool>,
    stuck: Arc<AtomicUsize>,
}

impl Way {
    fn to(node: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (narrow, stuck) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let way = Self { address, narrow: Arc::clone(&narrow), stuck: Arc::clone(&stuck) };
        thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(to) = TcpStream::connect(&node) else { continue };
                let (back, forth) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                thread::spawn(move || pass(&to, &back, usize::MAX));
                let left = if narrow.load(Ordering::SeqCst) { HINT_BYTES / 2 } else { usize::MAX };
                let stuck = Arc::clone(&stuck);
                thread::spawn(move || {
                    if pass(&from, &forth, left) {
                        stuck.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(Duration::from_secs(600)); // both ends stay open
                    }
                });
            }
        });
        way
    }
}

/// Passes bytes on until either side leaves; true: until `left` were passed.
fn pass(mut from: &TcpStream, mut to: &TcpStream, mut left: usize) -> bool {
    let mut buffer = [0; 16 * 1024];
    while left > 0 {
        let read = from.read(&mut buffer).unwrap_or(0);
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            let _ = from.shutdown(std::net::Shutdown::Both);
            let _ = to.shutdown(std::net::Shutdown::Both);
            return false;
        }
        left = left.saturating_sub(read);
    }
    true
}

/// Keys n1 keeps for n3.
fn kept(cluster: &Cluster) -> usize {
    let listed = run(cluster.kvctl_via(0, &["hints", "list", "--node", "n1", "-o", "json"]));
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let of_n3 = listed["data"].as_array().unwrap().iter().filter(|hint| hint["target"] == "n3");
    of_n3.map(|hint| hint["keys"].as_str().unwrap().parse::<usize>().unwrap()).sum()
}

#[test]
fn requests_go_on_at_their_speed_while_bulk_to_the_same_node_is_stuck() {
    let off = [("KVD_REPAIR_EVERY", "off".to_owned()), ("KVD_GC_AFTER", "off".to_owned())];
    let mut cluster = Cluster::blank_with(3, |node| node.env = off.to_vec());
    let way = Way::to(cluster.nodes[2].address.clone());
    let member = |at: usize| format!("n{}={}", at + 1, cluster.nodes[at].address);
    let members = [member(0), member(1), format!("n3={}", way.address)];
    ok(cluster.kvctl(&["cluster", "init", "--name", "test", "--yes"]).args_of(&members));

    cluster.nodes[2].kill();
    cluster.wait_until_up(0, &["n1", "n2"]);
    let client = cluster.client(0);
    for i in 0..HINTS {
        let value = vec![i as u8; HINT_BYTES].into();
        let put = PutRequest { key: format!("large{i}").into(), value, ..Default::default() };
        cluster.block_on(async { client.kv().put(put).await }).unwrap();
    }
    eventually("a hint for every write", || (kept(&cluster) == HINTS).then_some(()));
    ok(cluster.kvctl_via(0, &["hints", "pause", "--node", "n1"]));
    cluster.nodes[2].start();
    cluster.wait_until_up(0, &["n1", "n2", "n3"]);

    let told = cluster.nodes[0].log().len();
    way.narrow.store(true, Ordering::SeqCst);
    ok(cluster.kvctl_via(0, &["hints", "resume", "--node", "n1"]));
    eventually("the hints to be stuck", || (way.stuck.load(Ordering::SeqCst) > 0).then_some(()));
    let (began, mut slowest, mut done) = (Instant::now(), Duration::ZERO, 0);
    // As long as it takes to find out that a link is dead.
    while began.elapsed() < FOUND_DEAD_WITHIN || done < 50 {
        let key = format!("k{}", done % 10);
        let put = PutRequest {
            key: key.clone().into(),
            value: vec![b'v'; 1000].into(),
            w: Some(3),
            timeout_ms: PATIENCE_MS,
            ..Default::default()
        };
        let (r, timeout_ms) = (Some(3), PATIENCE_MS);
        let get = GetRequest { key: key.into(), r, timeout_ms, ..Default::default() };
        let started = Instant::now();
        cluster.block_on(async {
            // Siblings would pile up: each put follows what the last get saw.
            let seen = client.kv().get(get).await.unwrap().into_inner();
            client.kv().put(PutRequest { context: seen.context, ..put }).await.unwrap();
        });
        slowest = slowest.max(started.elapsed());
        done += 1;
    }
    eprintln!("{done} puts and gets, the slowest pair {slowest:?}");
    assert!(slowest < FOUND_DEAD_WITHIN, "the slowest of {done} took {slowest:?}");
    assert_eq!(kept(&cluster), HINTS, "they were stuck all the while");
    let up = ok(cluster.kvctl_via(0, &["nodes", "list", "--state", "up", "-o", "name"]));
    assert_eq!(text(&up).split_whitespace().count(), 3, "bulk says nothing of a node");

    // The stuck link is given up, and another is made.
    way.narrow.store(false, Ordering::SeqCst);
    eventually("all hints to be handed over", || (kept(&cluster) == 0).then_some(()));
    let [one, three] = ["n1", "n3"].map(|on| cluster.copy(0, on, b"large0"));
    assert!(three.present && one.digest == three.digest);
    let log = cluster.nodes[0].log();
    assert!(!log[told..].contains("the link to n3 broke"), "that for requests is whole: {log}");
}
