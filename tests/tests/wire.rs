//! What the open port of a node withstands, on real processes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::client::Client;
use proto::v1::{ErrorCode, GetClusterRequest, GetRequest, PutRequest, WatchClusterRequest};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tests::eventually;
use tests::load::{Load, Options, Summary};
use tests::process::{Cluster, Node, ok, own_address, text};
use tests::rng::seed_of_run;
use tests::wire::{ATTACKS, Siege, ask_for_all, talks};

/// How long the siege lasts.
const SIEGE: Duration = Duration::from_secs(60);

fn memory_kib(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn open_files(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count()
}

#[test]
fn a_cluster_under_siege_serves_who_behaves_and_keeps_nothing_of_it() {
    let cluster = Cluster::start(3);
    for via in 0..3 {
        cluster.wait_until_up(via, &["n1", "n2", "n3"]);
    }
    let (recorded, large) = talks(&cluster);
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    let options = Options { per_second: Some(200), ..Options::default() };
    let before = {
        let load = Load::start(&cluster.nodes, options.clone());
        eventually("the load to go on", || (load.begun() > 1000).then_some(()));
        Summary::of(&load.stop())
    };
    let files_before: Vec<usize> = cluster.nodes.iter().map(open_files).collect();

    let load = Load::start(&cluster.nodes, options);
    let siege = Siege::begin(&ATTACKS, addresses, recorded, large, seed_of_run());
    let began = Instant::now();
    let mut memory = vec![0; 3];
    while began.elapsed() < SIEGE {
        for (most, node) in memory.iter_mut().zip(&cluster.nodes) {
            *most = memory_kib(node).max(*most);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let connections = siege.connections();
    drop(siege);
    let during = Summary::of(&load.stop());
    // Figures are for people: how quick a machine is that runs many things is no test.
    println!("{connections} connections of attackers; memory at most {memory:?} KiB");
    println!("before:\n{before}\nunder siege:\n{during}");

    assert!(connections > 500, "{connections} are no siege");
    for kind in ["get", "put", "delete"] {
        let counts = during.of_kind(kind);
        assert!(counts.ok > 20, "too few to say anything\n{during}");
        assert_eq!(counts.failed + counts.indeterminate, 0, "{kind}s failed\n{during}");
    }
    for (position, node) in cluster.nodes.iter().enumerate() {
        assert!(!node.log().contains("panicked"), "{}", node.log());
        eventually("connections to be given back", || {
            (open_files(node) <= files_before[position] + 8).then_some(())
        });
        // What a node is given (16 MiB of pages, four layers of writes) and what clients may take.
        assert!(memory[position] < 700 * 1024, "{memory:?} KiB");
        cluster.wait_until_up(position, &["n1", "n2", "n3"]);
    }
    let status = text(&ok(cluster.kvctl(&["status"])));
    assert!(status.contains("agreed by 3 of 3"), "{status}");
}

/// So much nicer than those of nodes.
const NICER_BY: i32 = 5;

/// Of a process's or a thread's `stat`, the fields after its name.
fn after_name(stat: &str) -> (&str, Vec<&str>) {
    let (name, rest) = stat.rsplit_once(')').unwrap();
    (name, rest.split_whitespace().collect())
}

/// Nodes inherit it.
fn own_niceness() -> i32 {
    after_name(&fs::read_to_string("/proc/self/stat").unwrap()).1[16].parse().unwrap()
}

/// Of a node's threads for clients: how nice they are, and the processor time they have used, ticks.
fn client_threads(node: &Node) -> Vec<(i32, u64)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    let stat = |task: std::io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?; // it may have ended
        let (name, fields) = after_name(&stat);
        let number = |at: usize| fields[at].parse::<i64>().unwrap();
        let used = (number(11) + number(12)) as u64;
        name.ends_with("(kvd-clients").then_some((number(16) as i32, used))
    };
    tasks.filter_map(stat).collect()
}

#[test]
fn clients_are_served_by_threads_that_let_those_of_nodes_go_first() {
    let secured = Cluster::secured_with(2, |_| {});
    // In the clear, by their addresses.
    let clear = Cluster::start_with(2, own_address);
    for cluster in [secured, clear] {
        let used = |node: &Node| client_threads(node).iter().map(|(_, used)| used).sum::<u64>();
        let (asked, other) = (&cluster.nodes[0], &cluster.nodes[1]);
        let threads = client_threads(asked);
        let nicer = NICER_BY + own_niceness();
        assert!(!threads.is_empty() && threads.iter().all(|it| it.0 == nicer), "{threads:?}");
        let client = cluster.client(0);
        let before = (used(asked), used(other));
        eventually("requests to take time of clients' threads", || {
            let get = |number: u32| {
                let key = format!("k{number}").into_bytes().into();
                let mut kv = client.kv();
                async move { kv.get(GetRequest { key, ..Default::default() }).await }
            };
            let gets = cluster.block_on(futures_util::future::join_all((0..100).map(get)));
            assert!(gets.iter().all(Result::is_ok), "{gets:?}");
            (used(asked) >= before.0 + 100).then_some(())
        });
        // The other one answered for half of the keys, and had no client.
        let others = used(other).saturating_sub(before.1); // a thread may have ended
        assert!(others <= 3, "{others} ticks: links are served by the threads of clients");
    }
}

#[test]
fn members_that_are_known_by_names_are_told_by_the_addresses_these_lead_to() {
    let named = |address: &str| address.replace("127.0.0.1:", "localhost:");
    let mut cluster = Cluster::blank_with(2, |node| {
        node.env.push(("KVD_ADVERTISE", named(&node.address)));
    });
    cluster.nodes.iter_mut().for_each(|node| node.address = named(&node.address));
    let cluster = cluster.init();
    let asked = &cluster.nodes[0];
    let used = || client_threads(asked).iter().map(|(_, used)| used).sum::<u64>();
    // Clients come from there too.
    eventually("requests to be served by the threads of nodes", || {
        let (client, before) = (cluster.client(0), used());
        let get = |number: u32| {
            let key = format!("k{number}").into_bytes().into();
            let mut kv = client.kv();
            async move { kv.get(GetRequest { key, ..Default::default() }).await }
        };
        for _ in 0..5 {
            let gets = cluster.block_on(futures_util::future::join_all((0..100).map(get)));
            assert!(gets.iter().all(Result::is_ok), "{gets:?}");
        }
        (used() <= before + 1).then_some(())
    });
}

/// Connects, says something, and returns what is heard until the node closes the connection.
fn until_closed(address: &str, says: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(tests::PATIENCE)).unwrap();
    stream.write_all(says).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    heard
}

#[test]
fn who_says_nothing_in_time_is_not_waited_for() {
    let clear = Cluster::start(1);
    until_closed(&clear.nodes[0].address, b"PRI * HTTP/2");
    let secured = Cluster::secured_with(1, |_| {});
    let node = &secured.nodes[0];
    until_closed(&node.address, b"\x16\x03\x01");
    eventually("the log to say so", || {
        node.log().contains("no handshake within 5 s").then_some(())
    });
    // In the words of who does not speak HTTP/2.
    let heard = until_closed(&node.address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    let heard = text(&heard);
    assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("speaks TLS"), "{heard}");
}

#[test]
fn a_large_request_is_refused_in_words_and_its_connection_goes_on() {
    let cluster = Cluster::start(3);
    let client = cluster.client(0);
    ok(cluster.kvctl_via(1, &["nodes", "drain", "n1", "--yes"]));
    let value = bytes::Bytes::from(vec![3; 1024 * 1024]);
    let put = |number: u32| {
        let (mut kv, value) = (client.kv(), value.clone());
        let key = format!("k{number}").into_bytes().into();
        async move { kv.put(PutRequest { key, value, ..Default::default() }).await }
    };
    // Refused before they are heard, they must not be errors of the connection.
    let outcomes = cluster.block_on(futures_util::future::join_all((0..200).map(put)));
    for outcome in outcomes {
        let refused = outcome.unwrap_err();
        let detail = proto::error::detail(&refused).unwrap_or_else(|| panic!("{refused:?}"));
        assert_eq!(detail.code(), ErrorCode::Draining, "{refused:?}");
    }
}

#[test]
fn who_does_not_take_what_it_asked_for_is_cut_off() {
    let cluster = Cluster::start(1);
    let (_, large) = talks(&cluster);
    let node = &cluster.nodes[0];
    let files = open_files(node);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    ask_for_all(&mut stream, &large).unwrap();
    eventually("the log to say so", || {
        node.log().contains("it takes what it asked for too slowly").then_some(())
    });
    eventually("its file to be given back", || (open_files(node) <= files).then_some(()));
    drop(stream); // it was there until now
}

#[test]
fn who_begins_handshakes_and_ends_none_keeps_nobody_else_out() {
    let cluster = Cluster::secured_with(1, |_| {});
    let node = &cluster.nodes[0];
    let silent = |_| TcpStream::connect(&node.address).unwrap();
    let silent: Vec<TcpStream> = (0..40).map(silent).collect();
    eventually("the log to say so", || {
        node.log().contains("it connects too often at once").then_some(())
    });
    // They all come from here: it is the next one's turn once they are over.
    drop(silent);
    eventually("a place", || {
        let dial = cluster.dial();
        let address = [node.address.clone()];
        cluster.block_on(Client::connect_by(&dial, &address, Duration::from_secs(5))).ok()
    });
}

#[test]
fn so_many_watch_a_node_and_then_no_more() {
    let cluster = Cluster::start(1);
    // One has 128 streams at most.
    let clients = [0, 0, 0].map(|node| cluster.client(node));
    let ask = WatchClusterRequest { interval_ms: 60_000, ..Default::default() };
    let mut watches = Vec::new();
    let refused = (0..300).find_map(|number| {
        let mut admin = clients[number % clients.len()].admin();
        match cluster.block_on(admin.watch_cluster(ask)) {
            Ok(watch) => watches.push(watch),
            Err(refused) => return Some(refused),
        }
        None
    });
    let refused = refused.unwrap_or_else(|| panic!("{} watch it", watches.len()));
    assert_eq!(proto::error::detail(&refused).unwrap().code(), ErrorCode::Overloaded);
    assert_eq!(watches.len(), 256);
    // Who leaves makes room.
    watches.pop();
    eventually("a place", || {
        let mut admin = clients[0].admin();
        cluster.block_on(admin.watch_cluster(ask)).ok()
    });
}

#[test]
fn one_address_has_so_many_connections_and_then_no_more() {
    let cluster = Cluster::secured_with(1, |node| {
        node.env.push(("KVD_CONNECTIONS_PER_ADDRESS_MAX", "8".into()));
    });
    let (dial, address) = (cluster.dial(), [cluster.nodes[0].address.clone()]);
    let connect = || cluster.block_on(Client::connect_by(&dial, &address, Duration::from_secs(5)));
    // That of the kvctl which made the cluster may not be given back yet.
    let mut held: Vec<Client> = (0..8).map(|_| eventually("a place", || connect().ok())).collect();
    assert!(connect().is_err());
    let says = "it has 8 connections, as many as one address may have";
    eventually("the log to say so", || cluster.nodes[0].log().contains(says).then_some(()));
    // A place that is given up is somebody else's.
    held.pop();
    held.push(eventually("a place", || connect().ok()));
}

#[test]
fn who_connects_again_and_again_waits_and_is_served() {
    const BURST: u32 = 8;
    const PER_SECOND: u32 = 20;
    const TIMES: u32 = 60;
    let cluster = Cluster::start_with(1, |node| {
        own_address(node); // a member's address does not wait
        node.env.push(("KVD_CONNECTIONS_PER_ADDRESS_MAX", BURST.to_string()));
        node.env.push(("KVD_CONNECTS_PER_SECOND_MAX", PER_SECOND.to_string()));
    });
    let node = &cluster.nodes[0];
    let begun = Instant::now();
    for _ in 0..TIMES {
        let mut stream = TcpStream::connect(&node.address).unwrap();
        stream.set_read_timeout(Some(tests::PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        stream.read_exact(&mut [0; 9]).expect("the node's settings");
    }
    let at_least = Duration::from_secs(1) * (TIMES - BURST - 1) / PER_SECOND;
    assert!(begun.elapsed() >= at_least, "{:?}", begun.elapsed());
    let says = format!("waits: it connects more than {PER_SECOND} times a second");
    assert!(node.log().contains(&says), "{}", node.log());
    // So many wait, and no more.
    let connect = |_| TcpStream::connect(&node.address).unwrap();
    let at_once: Vec<TcpStream> = (0..3 * BURST + 64).map(connect).collect();
    let says = format!("is refused: it connects more than {PER_SECOND} times a second");
    eventually("the log to say so", || node.log().contains(&says).then_some(()));
    drop(at_once);
}

#[test]
fn what_clients_send_takes_no_more_memory_than_there_is_for_it() {
    let cluster = Cluster::start_with(1, |node| node.env.push(("KVD_CLIENT_MIB", "64".into())));
    let client = cluster.client(0);
    let value = bytes::Bytes::from(vec![3; 8 * 1024 * 1024]);
    let puts =
        (0..24).map(|number| {
            let (mut kv, value) = (client.kv(), value.clone());
            let key = format!("k{number}").into_bytes().into();
            async move {
                kv.put(PutRequest { key, value, timeout_ms: 30_000, ..Default::default() }).await
            }
        });
    let outcomes = cluster.block_on(futures_util::future::join_all(puts));
    let refused: Vec<&tonic::Status> = outcomes.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!((1..24).contains(&refused.len()), "some fit");
    for status in &refused {
        let detail = proto::error::detail(status).unwrap_or_else(|| panic!("{status:?}"));
        assert_eq!(detail.code(), ErrorCode::Overloaded, "{status:?}");
    }
    println!("{} of 24 refused", refused.len());
    let ask = GetClusterRequest::default();
    let view = cluster.block_on(async { client.admin().get_cluster(ask).await }).unwrap();
    let stats = view.into_inner().nodes[0].stats.clone().unwrap();
    assert_eq!(stats.failures, refused.len() as u64, "refusals are failures");
    // It is there again.
    let mut kv = client.kv();
    let key = b"after".as_slice().into();
    let put = PutRequest { key, value, ..Default::default() };
    cluster.block_on(async { kv.put(put).await }).unwrap();
    assert!(memory_kib(&cluster.nodes[0]) < 600 * 1024);
}
