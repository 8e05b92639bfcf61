//! Real processes: `kvd` nodes on loopback with data directories of their own, and `kvctl`.

use crate::{eventually, random_bytes};
use proto::client::Client;
use proto::dial::Dial;
use proto::tls::{ClientFiles, ClientTls};
use proto::v1::{ReadCopyReply, ReadCopyRequest};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Path of a binary of this workspace, beside the running test.
///
/// # Panics
/// If it is not built: `cargo test --workspace` builds them all.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let beside = test.parent().and_then(Path::parent).expect("tests are in target/PROFILE/deps");
    let path = beside.join(name);
    assert!(path.exists(), "{} is not built: run cargo test --workspace", path.display());
    path
}

/// One `kvd` process, or the place of one that was stopped.
pub struct Node {
    /// `n1`, `n2`, …
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its data.
    pub data_dir: PathBuf,
    /// Past which it takes no puts. 101, never, unless a test is about that: the machine that runs
    /// the tests may be nearly full.
    pub disk_full_percent: u8,
    /// More of its environment: what a test breaks around it.
    pub env: Vec<(&'static str, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node that was never started, on a port that is free now.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            name: name.into(),
            address: free_address(),
            data_dir: dir.join(name),
            disk_full_percent: 101,
            env: Vec::new(),
            log: dir.join(format!("{name}.log")),
            child: None,
        }
    }

    /// Secures it by the certificate of its name in a directory.
    pub fn secure(&mut self, certs: &Path) {
        let own = client_files(certs, &self.name);
        self.env.retain(|(name, _)| !name.starts_with("KVD_TLS_"));
        let files = [("KVD_TLS_CA", own.ca), ("KVD_TLS_CERT", own.cert), ("KVD_TLS_KEY", own.key)];
        let path = |file: Option<PathBuf>| file.expect("all three").display().to_string();
        self.env.extend(files.map(|(name, file)| (name, path(file))));
    }

    /// Starts the process and waits until it answers.
    pub fn start(&mut self) {
        loop {
            match self.try_start() {
                true => return,
                // Another process took the port between our look and the start.
                false if self.log().contains("cannot listen") && !self.data_dir.exists() => {
                    self.address = free_address();
                }
                false => panic!("{} did not start:\n{}", self.name, self.log()),
            }
        }
    }

    /// Starts the process and waits until it has opened its store and answers, or, then false, has
    /// ended.
    pub fn try_start(&mut self) -> bool {
        let told = self.log().len();
        self.spawn();
        eventually(&format!("{} to answer", self.name), || {
            if self.has_ended().is_some() {
                return Some(false);
            }
            // It takes its port before it opens its store.
            let is_open = self.log()[told..].contains(" listens ");
            (is_open && std::net::TcpStream::connect(&self.address).is_ok()).then_some(true)
        })
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none() || self.has_ended().is_some(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let child = Command::new(binary("kvd"))
            .args(["--listen", &self.address, "--log", "kvd=debug,info"])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--cache-mib", "16"])
            .env("KVD_DISK_FULL_PERCENT", self.disk_full_percent.to_string())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("kvd starts"));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a killed child ends");
        }
    }

    /// SIGTERM, and the exit status it leads to.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        eventually(&format!("{} to stop", self.name), || child.try_wait().expect("it is our child"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("our child can be signalled");
    }

    /// How it ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("it is our child")
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        eventually(&format!("{} to end", self.name), || self.has_ended())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// All it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Several nodes that were made one cluster. Its files are kept when the test fails.
pub struct Cluster {
    /// The nodes, by position: `nodes[0]` is n1.
    pub nodes: Vec<Node>,
    /// What its clients are secured with: nothing, unless it was made so.
    pub files: ClientFiles,
    dir: Option<tempfile::TempDir>,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// `count` nodes, made a cluster by `kvctl cluster init`.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, |_| {})
    }

    /// The same, each node prepared before its first start.
    pub fn start_with(count: usize, prepare: impl FnMut(&mut Node)) -> Self {
        Self::blank_with(count, prepare).init()
    }

    /// The same, secured by certificates that `kvd certs dev` made.
    pub fn secured_with(count: usize, prepare: impl FnMut(&mut Node)) -> Self {
        Self::secured_blank_with(count, prepare).init()
    }

    /// Makes it a cluster.
    pub fn init(self) -> Self {
        let cluster = self;
        let members: Vec<String> =
            cluster.nodes.iter().map(|node| format!("{}={}", node.name, node.address)).collect();
        let init = cluster.kvctl(&["cluster", "init", "--name", "test", "--yes"]);
        let done = run(init.args_of(&members));
        assert!(done.status.success(), "{}", text(&done.stderr));
        cluster
    }

    /// `count` nodes that have not been given a cluster.
    pub fn blank(count: usize) -> Self {
        Self::blank_with(count, |_| {})
    }

    /// The same, each node prepared before its first start.
    pub fn blank_with(count: usize, prepare: impl FnMut(&mut Node)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::blank_in(dir, ClientFiles::default(), count, prepare)
    }

    /// The same, secured by certificates that `kvd certs dev` made.
    pub fn secured_blank_with(count: usize, mut prepare: impl FnMut(&mut Node)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let certs = dir.path().join("certs");
        make_certs(&certs, count, &["admin"]);
        let files = client_files(&certs, "admin");
        Self::blank_in(dir, files, count, |node| {
            node.secure(&certs);
            prepare(node);
        })
    }

    fn blank_in(
        dir: tempfile::TempDir,
        files: ClientFiles,
        count: usize,
        prepare: impl FnMut(&mut Node),
    ) -> Self {
        let mut nodes: Vec<Node> =
            (1..=count).map(|i| Node::new(dir.path(), &format!("n{i}"))).collect();
        nodes.iter_mut().for_each(prepare);
        nodes.iter_mut().for_each(Node::start);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self { nodes, files, dir: Some(dir), runtime: runtime.expect("a runtime") }
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("it is there until the end").path()
    }

    /// `kvctl ARGS`, set to reach the cluster through n1, then the others.
    pub fn kvctl(&self, args: &[&str]) -> Kvctl {
        let all: Vec<&str> = self.nodes.iter().map(|node| node.address.as_str()).collect();
        Kvctl::new(self.dir(), &all.join(","), args).secured_by(&self.files)
    }

    /// `kvctl ARGS`, set to reach only node `position`.
    pub fn kvctl_via(&self, position: usize, args: &[&str]) -> Kvctl {
        Kvctl::new(self.dir(), &self.nodes[position].address, args).secured_by(&self.files)
    }

    /// Runs async code of a test.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// How its clients connect.
    pub fn dial(&self) -> Dial {
        Dial { tls: ClientTls::load(&self.files).expect("the files of clients"), from: None }
    }

    /// A client of node `position`.
    pub fn client(&self, position: usize) -> Client {
        self.try_client(position).expect("the node answers")
    }

    /// A client of node `position`, if it answers.
    pub fn try_client(&self, position: usize) -> Option<Client> {
        let address = [self.nodes[position].address.clone()];
        let dial = self.dial();
        self.block_on(Client::connect_by(&dial, &address, Duration::from_secs(5))).ok()
    }

    /// Waits until node `position` sees exactly these nodes up.
    pub fn wait_until_up(&self, position: usize, up: &[&str]) {
        eventually(&format!("{up:?} to be up for n{}", position + 1), || {
            let list = self.kvctl_via(position, &["nodes", "list", "--state", "up", "-o", "name"]);
            let list = run(list);
            let seen = text(&list.stdout);
            (list.status.success() && seen.split_whitespace().eq(up.iter().copied())).then_some(())
        });
    }

    /// Node `on`'s own copy of a key of keyspace `default`, asked through node `via`.
    pub fn copy(&self, via: usize, on: &str, key: &[u8]) -> ReadCopyReply {
        self.copy_in("default", via, on, key)
    }

    /// The same of a key of any keyspace.
    pub fn copy_in(&self, keyspace: &str, via: usize, on: &str, key: &[u8]) -> ReadCopyReply {
        let (node, keyspace) = (on.into(), keyspace.into());
        let request = ReadCopyRequest { node, keyspace, key: key.to_vec().into() };
        let client = self.client(via);
        self.block_on(async { client.admin().read_copy(request).await })
            .expect("a copy")
            .into_inner()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let log = node.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("--- {} ({}), end of its log:", node.name, node.address);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if let Some(dir) = self.dir.take() {
            eprintln!("--- data and logs are kept in {}", dir.keep().display());
        }
    }
}

/// A `kvctl` command about to be run.
pub struct Kvctl {
    command: Command,
    stdin: Vec<u8>,
}

impl Kvctl {
    /// With a home of its own, so that no file of the person who runs the test plays a part.
    pub fn new(home: &Path, endpoints: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary("kvctl"));
        command
            .args(args)
            .env_clear()
            .env("HOME", home)
            .env("KVCTL_ENDPOINTS", endpoints)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self { command, stdin: Vec::new() }
    }

    /// Shows these certificates.
    pub fn secured_by(mut self, files: &ClientFiles) -> Self {
        for (name, file) in [("CA", &files.ca), ("CERT", &files.cert), ("KEY", &files.key)] {
            let name = format!("KVCTL_TLS_{name}");
            match file {
                Some(file) => self.command.env(name, file),
                None => self.command.env_remove(name),
            };
        }
        self
    }

    /// More arguments.
    pub fn args_of(mut self, args: &[String]) -> Self {
        self.command.args(args);
        self
    }

    /// What it reads from standard input.
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }
}

/// Runs it to its end.
pub fn run(kvctl: Kvctl) -> Output {
    let Kvctl { mut command, stdin } = kvctl;
    let mut child = command.stdin(Stdio::piped()).spawn().expect("kvctl starts");
    let mut pipe = child.stdin.take().expect("its standard input is a pipe");
    let writer = std::thread::spawn(move || {
        let _ = pipe.write_all(&stdin); // it may not want it
    });
    let output = child.wait_with_output().expect("kvctl ends");
    writer.join().expect("the writer ends");
    output
}

/// Runs it and returns what it printed.
///
/// # Panics
/// If it fails.
pub fn ok(kvctl: Kvctl) -> Vec<u8> {
    let output = run(kvctl);
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    output.stdout
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Has `kvd certs dev` make certificates: of the nodes `n1` on, and of clients.
pub fn make_certs(dir: &Path, nodes: usize, clients: &[&str]) {
    let mut command = Command::new(binary("kvd"));
    command.args(["certs", "dev", "--out"]).arg(dir);
    command.args((1..=nodes).map(|number| format!("--node=n{number}")));
    command.args(clients.iter().map(|client| format!("--client={client}")));
    let made = command.output().expect("kvd starts");
    assert!(made.status.success(), "{}", text(&made.stderr));
}

/// Where those of `name` are.
pub fn client_files(dir: &Path, name: &str) -> ClientFiles {
    ClientFiles {
        ca: Some(dir.join("ca.pem")),
        cert: Some(dir.join(format!("{name}.pem"))),
        key: Some(dir.join(format!("{name}-key.pem"))),
    }
}

/// Gives a node an address that no client has, as in a network: by it they are told apart where
/// nothing is secured. Nodes are named `n1` on.
///
/// # Panics
/// If it is named otherwise.
pub fn own_address(node: &mut Node) {
    let number: u8 = node.name.trim_start_matches('n').parse().expect("a number after n");
    node.address = node.address.replacen("127.0.0.1:", &format!("127.0.0.{}:", number + 1), 1);
}

/// A loopback address nobody listens on now. Below the range that outgoing connections use, so
/// that the port is still free when a killed node comes back to it.
pub fn free_address() -> String {
    eventually("a free port", || {
        let bytes = random_bytes(2);
        let port = 10_000 + u16::from_be_bytes([bytes[0], bytes[1]]) % 20_000;
        TcpListener::bind(("127.0.0.1", port)).is_ok().then(|| format!("127.0.0.1:{port}"))
    })
}
