//! TLS on real processes: what is refused, and that both sides say why; certificates that are
//! replaced under load; who may do what.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::client::Client;
use proto::dial::Dial;
use proto::tls::{ClientFiles, ClientTls, certificates, key_for};
use proto::v1::replica_client::ReplicaClient;
use proto::v1::{ErrorCode, IdentifyRequest, WatchClusterRequest};
use rustix::process::Signal;
use rustls::ServerConfig;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tests::eventually;
use tests::load::{Load, Options, Summary};
use tests::pki::{Ca, Leaf, put};
use tests::process::{Cluster, Kvctl, Node, binary, client_files, make_certs, ok, run, text};

/// Runs it, and checks how it fails.
fn fails(kvctl: Kvctl, code: i32, says: &[&str]) {
    let Output { status, stderr, stdout } = run(kvctl);
    let stderr = text(&stderr);
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stdout.is_empty());
    for part in says {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
}

fn wait_for_log(node: &Node, says: &str) {
    eventually(&format!("{} to log {says:?}", node.name), || {
        node.log().contains(says).then_some(())
    });
}

fn certs_of(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("certs")
}

/// A pair of files for a client.
fn signed(ca: &Ca, trusts: &Path, dir: &Path, file: &str, leaf: &Leaf) -> ClientFiles {
    let (cert, key) = ca.sign(dir, file, leaf);
    ClientFiles { ca: Some(trusts.to_owned()), cert: Some(cert), key: Some(key) }
}

#[test]
fn a_secured_cluster_serves_and_tells_of_its_certificates() {
    let cluster = Cluster::secured_with(3, |_| {});
    for via in 0..3 {
        cluster.wait_until_up(via, &["n1", "n2", "n3"]);
    }
    ok(cluster.kvctl(&["put", "k", "v"]));
    assert_eq!(ok(cluster.kvctl_via(2, &["get", "k"])), b"v");
    let list = ok(cluster.kvctl(&["certs", "list", "-o", "json"]));
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    for (position, name) in ["n1", "n2", "n3"].iter().enumerate() {
        let shown = &list["data"][position];
        assert_eq!((&shown["node"], &shown["subject"]), (&(*name).into(), &(*name).into()));
        assert!(shown["issuer"].as_str().unwrap().starts_with("kvd development CA"));
        assert!(shown["not_after"].as_str().unwrap() > shown["not_before"].as_str().unwrap());
    }
    let files = &cluster.files;
    let path = |file: &Option<PathBuf>| file.clone().unwrap();
    let top = Command::new(binary("kvtop"))
        .args(["--once", "--for", "300ms", "--endpoint", &cluster.nodes[1].address])
        .args(["--tls-ca".into(), path(&files.ca)])
        .args(["--tls-cert".into(), path(&files.cert), "--tls-key".into(), path(&files.key)])
        .output()
        .unwrap();
    assert!(text(&top.stdout).contains("3 nodes"), "{}{}", text(&top.stdout), text(&top.stderr));
    // By a profile: its files are beside the config.
    let address = &cluster.nodes[0].address;
    let config = cluster.dir().join("config.toml");
    let tls =
        "{ ca = \"certs/ca.pem\", cert = \"certs/admin.pem\", key = \"certs/admin-key.pem\" }";
    let profile = format!("[profiles.here]\nendpoints = [\"{address}\"]\ntls = {tls}\n");
    fs::write(&config, profile).unwrap();
    let by_profile = Command::new(binary("kvctl"))
        .args(["get", "k", "--profile", "here"])
        .env_clear()
        .env("KVCTL_CONFIG", &config)
        .output()
        .unwrap();
    assert_eq!(by_profile.stdout, b"v", "{}", text(&by_profile.stderr));
}

#[test]
fn who_is_refused_is_told_why_and_so_is_the_nodes_log() {
    let cluster = Cluster::secured_with(1, |_| {});
    let (dir, node) = (cluster.dir(), &cluster.nodes[0]);
    let ca = cluster.files.ca.clone().unwrap();
    let status =
        |files: &ClientFiles| Kvctl::new(dir, &node.address, &["status"]).secured_by(files);

    // Plaintext to a port that speaks TLS.
    fails(status(&ClientFiles::default()), 10, &["error[TLS]", "speaks TLS", "try    --tls-ca"]);
    wait_for_log(node, "it speaks no TLS, and this port nothing else");

    // A CA that did not sign the node's certificate.
    let stranger = Ca::new("somebody else");
    let strange_ca = dir.join("strange-ca.pem");
    put(&strange_ca, stranger.pem());
    let trusts_another = ClientFiles { ca: Some(strange_ca.clone()), ..Default::default() };
    fails(status(&trusts_another), 10, &["no CA trusted here has signed", "another --tls-ca"]);
    wait_for_log(node, "refuses this side's certificate: signed by no CA it trusts");

    // A client's certificate that a CA of nobody's signed.
    let forged = signed(&stranger, &ca, dir, "forged", &Leaf::client("admin"));
    fails(status(&forged), 10, &["refuses this side's certificate", "another --tls-cert"]);
    wait_for_log(node, "shows a certificate that no CA trusted here has signed");

    // Without any it is a client like others: nothing is limited here.
    ok(status(&ClientFiles { ca: Some(ca), ..Default::default() }));
    // Files that are not there, or not what they should be, are told of before anything is sent.
    let absent = ClientFiles { ca: Some("/nonexistent/ca.pem".into()), ..Default::default() };
    fails(status(&absent), 2, &["/nonexistent/ca.pem cannot be read"]);
}

#[test]
fn certificates_that_are_not_good_today_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ca = Ca::new("the CA");
    let ca_file = dir.join("ca.pem");
    put(&ca_file, ca.pem());
    let now = SystemTime::now();
    let [ago, ahead] = [now - Duration::from_secs(7200), now + Duration::from_secs(7200)];
    let expired = |leaf: Leaf| Leaf { from: ago, until: now - Duration::from_secs(3600), ..leaf };
    let early = |leaf: Leaf| Leaf { from: now + Duration::from_secs(3600), until: ahead, ..leaf };
    let elsewhere = Leaf { names: vec!["db1.example.net".into()], ..Leaf::client("db1") };

    // What a server shows: no kvd starts with such certificates, so another server shows them.
    for (file, leaf, says) in [
        ("expired", expired(Leaf::node("n1")), "has expired 60 min ago"),
        ("early", early(Leaf::node("n1")), "is not valid yet"),
        ("elsewhere", elsewhere, "is for db1.example.net, not for 127.0.0.1"),
    ] {
        let (cert, key) = ca.sign(dir, file, &leaf);
        let address = serve_tls(&cert, &key);
        let files = ClientFiles { ca: Some(ca_file.clone()), ..Default::default() };
        let said = says.replace("is for", "shows a certificate for");
        fails(Kvctl::new(dir, &address, &["status"]).secured_by(&files), 10, &[&said]);
    }

    // What a client shows.
    let mut node = Node::new(dir, "n1");
    make_certs(&dir.join("certs"), 1, &[]);
    ca.sign(dir, "n1", &Leaf::node("n1"));
    node.secure(dir);
    node.start();
    for (file, leaf, log) in [
        ("late", expired(Leaf::client("admin")), "it shows a certificate that has expired"),
        ("soon", early(Leaf::client("admin")), "it shows a certificate that is not valid yet"),
    ] {
        let files = signed(&ca, &ca_file, dir, file, &leaf);
        let status = Kvctl::new(dir, &node.address, &["status"]).secured_by(&files);
        fails(status, 10, &["refuses this side's certificate"]);
        wait_for_log(&node, log);
    }
}

/// A server that shows this certificate to who connects.
fn serve_tls(cert: &Path, key: &Path) -> String {
    let provider = proto::tls::provider();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates(cert).unwrap(), key_for(key, cert).unwrap())
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let config = Arc::new(config);
        for stream in listener.incoming().take(8) {
            let Ok(mut stream) = stream else { return };
            let Ok(mut tls) = rustls::ServerConnection::new(Arc::clone(&config)) else { return };
            let _ = tls.complete_io(&mut stream); // the client goes
        }
    });
    address
}

#[test]
fn tls_to_a_port_in_the_clear_is_told_so() {
    let mut cluster = Cluster::start(1);
    let certs = cluster.dir().join("certs");
    make_certs(&certs, 1, &["admin"]);
    cluster.files = client_files(&certs, "admin");
    fails(cluster.kvctl(&["status"]), 10, &["speaks no TLS", "without --tls-ca"]);
    wait_for_log(&cluster.nodes[0], "it speaks TLS, and this port does not");
}

#[test]
fn a_node_that_cannot_be_secured_does_not_start_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (ca, other) = (Ca::new("the CA"), Ca::new("another CA"));
    put(&dir.join("ca.pem"), ca.pem());
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    ca.sign(dir, "good", &Leaf::node("n1"));
    ca.sign(dir, "expired", &Leaf { from: now - 2 * hour, until: now - hour, ..Leaf::node("n1") });
    ca.sign(dir, "early", &Leaf { from: now + hour, until: now + 2 * hour, ..Leaf::node("n1") });
    ca.sign(dir, "client", &Leaf { names: vec!["app".into()], ..Leaf::client("app") });
    other.sign(dir, "foreign", &Leaf::node("n1"));
    fs::copy(dir.join("good.pem"), dir.join("swapped.pem")).unwrap();
    fs::copy(dir.join("client-key.pem"), dir.join("swapped-key.pem")).unwrap();
    fs::write(dir.join("empty.pem"), "").unwrap();
    fs::copy(dir.join("good-key.pem"), dir.join("empty-key.pem")).unwrap();
    for (file, says) in [
        ("expired", "has expired 60 min ago"),
        ("early", "is not valid yet: by the clock of this machine it will be in"),
        ("client", "is no node's certificate: among its names (app) there is no node.kvd.internal"),
        ("foreign", "was signed by \"another CA\", which is not in"),
        ("swapped", "is not the certificate of the key given with it"),
        ("empty", "has no certificate in PEM form"),
        ("absent", "absent.pem cannot be read"),
    ] {
        let files = client_files(dir, file);
        let refused = Command::new(binary("kvd"))
            .env_clear()
            .args(["--listen", "127.0.0.1:0"])
            .args(["--data-dir".into(), dir.join("data")])
            .args(["--tls-ca".into(), files.ca.unwrap()])
            .args(["--tls-cert".into(), files.cert.unwrap()])
            .args(["--tls-key".into(), files.key.unwrap()])
            .output()
            .unwrap();
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(says) && said.contains(&format!("{file}.pem")), "{file}: {said}");
        assert!(!dir.join("data").exists(), "nothing is made");
    }
}

#[test]
fn only_a_node_is_taken_for_a_node() {
    let cluster = Cluster::secured_with(1, |_| {});
    // A client, however well known, cannot speak as one.
    let dial = cluster.dial();
    let address = cluster.nodes[0].address.clone();
    let refused = cluster.block_on(async {
        let channel = dial.channel(&address, Duration::from_secs(10), |it| it).await.unwrap();
        ReplicaClient::new(channel).identify(IdentifyRequest {}).await.unwrap_err()
    });
    let detail = proto::error::detail(&refused).unwrap();
    assert_eq!(detail.code(), ErrorCode::Stranger);
    assert!(detail.why.contains("no node's certificate"), "{detail:?}");

    // Who signs for clients cannot make nodes, whatever names it signs.
    let clients = Ca::new("CA of clients");
    let client_ca = cluster.dir().join("client-ca.pem");
    put(&client_ca, clients.pem());
    let certs = certs_of(&cluster);
    let mut node = Node::new(cluster.dir(), "n9");
    make_certs(&certs, 9, &[]);
    node.secure(&certs);
    node.env.push(("KVD_TLS_CLIENT_CA", client_ca.display().to_string()));
    node.start();
    let ca = certs.join("ca.pem");
    let files = signed(&clients, &ca, cluster.dir(), "posing", &Leaf::node("n1"));
    let posing = Dial { tls: ClientTls::load(&files).unwrap(), from: None };
    let refused = cluster.block_on(async {
        let at = &node.address;
        let channel = posing.channel(at, Duration::from_secs(10), |it| it).await.unwrap();
        ReplicaClient::new(channel).identify(IdentifyRequest {}).await.unwrap_err()
    });
    assert_eq!(proto::error::detail(&refused).unwrap().code(), ErrorCode::Stranger);

    // A node of another CA, and one that speaks in the clear, cannot be made members.
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("certs");
    make_certs(&other, 1, &[]);
    let mut foreign = Node::new(dir.path(), "n1");
    foreign.secure(&other);
    foreign.start();
    let mut clear = Node::new(dir.path(), "clear");
    clear.start();
    for (node, why) in [(&foreign, "no CA trusted here has signed"), (&clear, "speaks no TLS")] {
        let add = format!("x={}", node.address);
        fails(cluster.kvctl(&["nodes", "add", &add, "--yes"]), 6, &[&node.address, why]);
    }
    wait_for_log(&foreign, "refuses this side's certificate");
}

/// Nodes and clients trust these, from their next look at the file on.
fn trust(dir: &Path, cas: &[&Ca]) {
    let all: Vec<&str> = cas.iter().map(|ca| ca.pem()).collect();
    put(&dir.join("ca.pem"), &all.concat());
}

#[test]
fn certificates_are_replaced_under_load_and_no_request_fails() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    fs::create_dir(&certs).unwrap();
    let (old, new) = (Ca::new("the old CA"), Ca::new("the new CA"));
    trust(&certs, &[&old]);
    let names = ["n1", "n2", "n3", "admin"];
    names.iter().for_each(|name| drop(old.sign(&certs, name, &Leaf::node(name))));
    let files = client_files(&certs, "admin");
    let mut cluster = Cluster::blank_with(3, |node| {
        node.secure(&certs);
        // Connections end of themselves meanwhile too.
        node.env.push(("KVD_CONNECTION_AGE", "3s".into()));
    });
    cluster.files = files.clone();
    let cluster = cluster.init();
    for via in 0..3 {
        cluster.wait_until_up(via, &names[..3]);
    }
    // Clients trust both from the beginning, as they have to before nodes show new certificates.
    let both = dir.path().join("both.pem");
    put(&both, &[old.pem(), new.pem()].concat());
    let both = ClientFiles { ca: Some(both), ..files };
    // These show none of their own, which would have to be replaced in the middle.
    let nameless = ClientFiles { ca: both.ca.clone(), ..Default::default() };
    let dial = Dial { tls: ClientTls::load(&nameless).unwrap(), from: None };
    let load =
        Load::start(&cluster.nodes, Options { dial, per_second: Some(300), ..Options::default() });
    let pass = |more: usize| {
        let enough = load.begun() + more;
        eventually("the load to go on", || (load.begun() >= enough).then_some(()));
    };
    let reload = |step: &str| {
        let reloaded = ok(cluster.kvctl(&["certs", "reload"]).secured_by(&both));
        assert_eq!(text(&reloaded).lines().count(), 4, "{step}: {}", text(&reloaded));
        pass(600);
    };
    pass(300);
    trust(&certs, &[&old, &new]);
    reload("both are trusted");
    names.iter().for_each(|name| drop(new.sign(&certs, name, &Leaf::node(name))));
    reload("the new are shown");
    trust(&certs, &[&new]);
    // By the signal, this time.
    cluster.nodes.iter().for_each(|node| node.signal(Signal::HUP));
    cluster.nodes.iter().for_each(|node| {
        eventually("it to be read again", || {
            (node.log().matches("read again: certificate of").count() == 3).then_some(())
        });
    });
    pass(600);
    let shown = ok(cluster.kvctl(&["certs", "list", "-o", "tsv"]).secured_by(&both));
    assert_eq!(text(&shown).matches("the new CA").count(), 3, "{}", text(&shown));
    // What is not right is not taken, and what is in force stays.
    put(&certs.join("n2.pem"), "not a certificate");
    let partly = run(cluster.kvctl(&["certs", "reload"]).secured_by(&both));
    assert_eq!(partly.status.code(), Some(12), "{}", text(&partly.stderr));
    assert!(text(&partly.stdout).contains("n2.pem has no certificate"), "{}", text(&partly.stdout));
    pass(300);
    let summary = Summary::of(&load.stop());
    for kind in ["get", "put", "delete"] {
        let counts = summary.of_kind(kind);
        assert!(counts.ok > 20, "too few to say anything\n{summary}");
        assert_eq!(counts.failed + counts.indeterminate, 0, "{kind}s failed\n{summary}");
    }
    let down = |node: &Node| node.log().contains(" down: ");
    assert!(!cluster.nodes.iter().any(down), "a node was taken for dead meanwhile");
}

#[test]
fn connections_in_the_clear_are_made_anew_too_and_no_request_fails() {
    let cluster = Cluster::start_with(3, |node| {
        node.env.push(("KVD_CONNECTION_AGE", "1s".into()));
    });
    for via in 0..3 {
        cluster.wait_until_up(via, &["n1", "n2", "n3"]);
    }
    let broken = |node: &Node| node.log().matches("the link to").count();
    let before: Vec<usize> = cluster.nodes.iter().map(broken).collect();
    let load = Load::start(&cluster.nodes, Options { per_second: Some(200), ..Options::default() });
    eventually("the load to go on", || (load.begun() > 1200).then_some(()));
    let summary = Summary::of(&load.stop());
    for kind in ["get", "put", "delete"] {
        let counts = summary.of_kind(kind);
        assert_eq!(counts.failed + counts.indeterminate, 0, "{kind}s failed\n{summary}");
    }
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert_eq!(broken(node), before, "a link broke: {}", node.log());
    }
}

const ACCESS: &str = r#"
admin = { "*" = "admin" }
orders = { orders = "write", default = "read" }
"#;

#[test]
fn what_each_client_may_do_stands_in_a_file_and_what_admins_do_in_another() {
    let dir = tempfile::tempdir().unwrap();
    let access = dir.path().join("access.toml");
    fs::write(&access, ACCESS).unwrap();
    let path = access.display().to_string();
    let cluster = Cluster::secured_with(3, |node| node.env.push(("KVD_ACCESS", path.clone())));
    let certs = certs_of(&cluster);
    make_certs(&certs, 0, &["orders", "nobody"]);
    let by = |who: &str, args: &[&str]| cluster.kvctl(args).secured_by(&client_files(&certs, who));
    ok(by("admin", &["keyspaces", "create", "orders"]));
    ok(by("admin", &["put", "k", "v"]));

    assert_eq!(ok(by("orders", &["get", "k"])), b"v");
    fails(
        by("orders", &["put", "k", "w"]),
        10,
        &["orders has no right to write in keyspace default"],
    );
    fails(by("orders", &["delete", "k"]), 10, &["no right to write"]);
    ok(by("orders", &["put", "-k", "orders", "o", "1"]));
    assert_eq!(ok(by("orders", &["get", "-k", "orders", "o"])), b"1");
    ok(by("orders", &["status"]));
    for args in [
        &["quorum", "set", "--r", "1", "--yes"][..],
        &["keyspaces", "create", "mine"],
        &["nodes", "drain", "n2", "--yes"],
        &["scrub", "start"],
        &["hints", "pause"],
        &["certs", "reload"],
    ] {
        fails(by("orders", args), 10, &["error[NOT_PERMITTED]", "orders is no admin"]);
    }
    fails(by("nobody", &["get", "k"]), 10, &["NOT_PERMITTED"]);
    fails(by("nobody", &["status"]), 10, &["nobody is not in the access file"]);
    let unknown = ClientFiles { ca: cluster.files.ca.clone(), ..Default::default() };
    let nameless = cluster.kvctl(&["get", "k"]).secured_by(&unknown);
    fails(nameless, 10, &["CERTIFICATE_WANTED", "--tls-cert"]);

    // Rights are changed live; a file that cannot be meant changes nothing.
    fs::write(&access, ACCESS.replace("default = \"read\"", "default = \"write\"")).unwrap();
    ok(by("admin", &["certs", "reload"]));
    ok(by("orders", &["put", "k", "w"]));
    fs::write(&access, "orders = { default = \"write\" }").unwrap();
    let refused = run(by("admin", &["certs", "reload"]));
    assert_eq!(refused.status.code(), Some(8));
    assert!(text(&refused.stdout).contains("nobody an admin"), "{}", text(&refused.stdout));
    ok(by("admin", &["scrub", "start", "--node", "n1"]));

    let audit = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
    let lines: Vec<serde_json::Value> = cluster
        .nodes
        .iter()
        .flat_map(|node| {
            let text = fs::read_to_string(node.data_dir.join("audit.jsonl")).unwrap_or_default();
            text.lines().map(audit).collect::<Vec<_>>()
        })
        .collect();
    let is_there = |who: &str, what: &str, outcome: &str| {
        lines
            .iter()
            .any(|line| line["who"] == who && line["what"] == what && line["outcome"] == outcome)
    };
    assert!(is_there("admin", "create keyspace", "done"), "{lines:#?}");
    assert!(is_there("orders", "create keyspace", "NOT_PERMITTED"), "{lines:#?}");
    assert!(is_there("orders", "drain", "NOT_PERMITTED") && is_there("admin", "scrub", "done"));
    assert!(!lines.iter().any(|line| line["what"] == "get"), "requests are not in it");
}

#[test]
fn who_watches_sees_no_more_once_that_right_is_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let access = dir.path().join("access.toml");
    fs::write(&access, ACCESS).unwrap();
    let path = access.display().to_string();
    let cluster = Cluster::secured_with(1, |node| node.env.push(("KVD_ACCESS", path.clone())));
    let certs = certs_of(&cluster);
    make_certs(&certs, 0, &["orders"]);
    let dial = Dial { tls: ClientTls::load(&client_files(&certs, "orders")).unwrap(), from: None };
    let address = [cluster.nodes[0].address.clone()];
    let client = cluster.block_on(Client::connect_by(&dial, &address, Duration::from_secs(10)));
    let ask = WatchClusterRequest { interval_ms: 250, ..Default::default() };
    let mut admin = client.unwrap().admin();
    let mut views = cluster.block_on(admin.watch_cluster(ask)).unwrap().into_inner();
    assert!(cluster.block_on(views.message()).unwrap().is_some());
    fs::write(&access, "admin = { \"*\" = \"admin\" }").unwrap();
    ok(cluster.kvctl(&["certs", "reload"]));
    let refused = eventually("the watch to end", || cluster.block_on(views.message()).err());
    let detail = proto::error::detail(&refused).unwrap();
    assert_eq!(detail.code(), ErrorCode::NotPermitted, "{refused:?}");
}

#[test]
fn a_connection_does_not_outlive_the_trust_in_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    fs::create_dir(&certs).unwrap();
    let (nodes, clients) = (Ca::new("CA of nodes"), Ca::new("CA of clients"));
    trust(&certs, &[&nodes]);
    nodes.sign(&certs, "n1", &Leaf::node("n1"));
    nodes.sign(&certs, "admin", &Leaf::node("admin"));
    let client_ca = certs.join("client-ca.pem");
    put(&client_ca, clients.pem());
    let mut cluster = Cluster::blank_with(1, |node| {
        node.secure(&certs);
        node.env.push(("KVD_TLS_CLIENT_CA", client_ca.display().to_string()));
    });
    cluster.files = client_files(&certs, "admin");
    let cluster = cluster.init();
    let files = signed(&clients, &certs.join("ca.pem"), dir.path(), "app", &Leaf::client("app"));
    let dial = Dial { tls: ClientTls::load(&files).unwrap(), from: None };
    let address = [cluster.nodes[0].address.clone()];
    let client = cluster.block_on(Client::connect_by(&dial, &address, Duration::from_secs(10)));
    let client = client.unwrap();
    let get = || {
        let ask = proto::v1::GetRequest { key: b"k".as_slice().into(), ..Default::default() };
        cluster.block_on(async { client.kv().get(ask).await })
    };
    get().unwrap();
    put(&client_ca, Ca::new("another").pem());
    ok(cluster.kvctl(&["certs", "reload"]));
    eventually("the old connection to end", || get().is_err().then_some(()));
    let why = get().unwrap_err();
    assert!(
        format!("{why:?}").contains("refuses this side's certificate"),
        "it cannot come back: {why:?}"
    );
}
