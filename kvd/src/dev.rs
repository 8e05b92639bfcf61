//! `kvd dev`: a real local cluster for trying things out. Every node is a process of its own; they
//! are stopped together and nothing is restarted behind anyone's back.

use crate::certs;
use crate::config::DevFlags;
use anyhow::{Context, anyhow, bail};
use proto::client::Client;
use proto::dial::Dial;
use proto::tls::{ClientFiles, ClientTls};
use proto::v1::{ClusterView, GetClusterRequest, InitClusterRequest, NewMember, NodeState};
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

const CLUSTER_NAME: &str = "dev";

/// Certificates of a secured one are good for so long.
const CERTS_DAYS: u32 = 365;

/// A node must answer within so long of being started.
const START_MAX: Duration = Duration::from_secs(30);

/// And end within so long of being told to.
const STOP_MAX: Duration = Duration::from_secs(20);

/// What a directory was made with: the layout inside names these addresses.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Made {
    nodes: u16,
    base_port: u16,
    zones: u16,
    #[serde(default)]
    tls: bool,
}

/// Who may do everything in a secured one.
const ADMIN: &str = "admin";

/// Runs the cluster until Ctrl-C.
pub async fn run(flags: DevFlags) -> anyhow::Result<()> {
    std::fs::create_dir_all(&flags.dir)
        .with_context(|| format!("cannot make {}", flags.dir.display()))?;
    let made = settle(&flags)?;
    let secured = made.tls.then(|| secure(&flags.dir, &made)).transpose()?;
    let (ended, mut endings) = mpsc::channel(usize::from(made.nodes));
    let mut stops = Vec::new();
    for index in 0..made.nodes {
        stops.push(start_node(&flags.dir, &made, index, secured.as_ref(), ended.clone())?);
    }
    drop(ended);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let came_up = tokio::select! {
        outcome = bring_up(&made, secured.as_ref()) => outcome.map(|()| true),
        ending = endings.recv() => match ending {
            Some((name, how)) => Err(anyhow!("{name} {how}; see its log above")),
            None => Ok(false),
        },
        _ = interrupt.recv() => Ok(false),
        _ = terminate.recv() => Ok(false),
    };
    let outcome = match came_up {
        Ok(true) => {
            announce(&flags.dir, &made, secured.as_ref());
            let mut left = stops.len();
            loop {
                tokio::select! {
                    _ = interrupt.recv() => break Ok(()),
                    _ = terminate.recv() => break Ok(()),
                    Some((name, how)) = endings.recv() => {
                        left -= 1;
                        say(&format!("{name} {how}. To start it again:  {}", restart_line(&flags.dir, &made, secured.as_ref(), &name)));
                        if left == 0 {
                            break Err(anyhow!("no node is left"));
                        }
                    }
                }
            }
        }
        told_to_stop_or_failed => told_to_stop_or_failed.map(|_| ()),
    };
    drop(stops); // the nodes see their standard input end, and drain
    let all_ended = async { while endings.recv().await.is_some() {} };
    if tokio::time::timeout(STOP_MAX, all_ended).await.is_err() {
        say("some nodes did not stop in time and are killed");
    }
    outcome
}

/// What the directory was made with, or is made with now. The same directory with other flags
/// would be another cluster, and is refused.
fn settle(flags: &DevFlags) -> anyhow::Result<Made> {
    let file = flags.dir.join("dev.toml");
    let Ok(text) = std::fs::read_to_string(&file) else {
        let base_port = flags.base_port.unwrap_or(proto::DEFAULT_PORT);
        if base_port.checked_add(flags.nodes).is_none() {
            bail!(
                "{} nodes from port {base_port} on go past port 65535; choose a lower --base-port",
                flags.nodes
            );
        }
        let made = Made { nodes: flags.nodes, base_port, zones: flags.zones, tls: flags.tls };
        std::fs::write(&file, toml::to_string(&made)?)?;
        return Ok(made);
    };
    let made: Made =
        toml::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    let asked = Made {
        nodes: flags.nodes,
        base_port: flags.base_port.unwrap_or(made.base_port),
        zones: flags.zones,
        tls: flags.tls,
    };
    if asked != made {
        bail!(
            "{} holds a cluster made with --nodes {} --base-port {} --zones {}{}; start it so, or choose another --dir",
            flags.dir.display(),
            made.nodes,
            made.base_port,
            made.zones,
            if made.tls { " --tls" } else { ", without --tls" },
        );
    }
    Ok(made)
}

/// Where the certificates of a secured cluster are.
struct Secured {
    dir: PathBuf,
}

impl Secured {
    fn client(&self) -> anyhow::Result<Option<ClientTls>> {
        let own = certs::Made::of(&self.dir, ADMIN);
        let ca = Some(certs::Made::of(&self.dir, "ca").cert);
        Ok(ClientTls::load(&ClientFiles { ca, cert: Some(own.cert), key: Some(own.key) })?)
    }

    fn args(&self, name: &str) -> Vec<String> {
        let certs::Made { cert, key } = certs::Made::of(&self.dir, name);
        let ca = certs::Made::of(&self.dir, "ca").cert;
        let flags = [("--tls-ca", ca), ("--tls-cert", cert), ("--tls-key", key)];
        flags
            .into_iter()
            .flat_map(|(flag, file)| [flag.to_owned(), file.display().to_string()])
            .collect()
    }
}

/// Makes certificates for every node and an admin, unless they are there.
fn secure(dir: &Path, made: &Made) -> anyhow::Result<Secured> {
    let dir = dir.join("certs");
    let absent = |name: &String| !certs::Made::of(&dir, name).cert.exists();
    let nodes: Vec<String> = (0..made.nodes).map(name).filter(absent).collect();
    let clients: Vec<String> = [ADMIN.to_owned()].into_iter().filter(absent).collect();
    certs::make(&dir, &nodes, &[], &clients, CERTS_DAYS)?;
    Ok(Secured { dir })
}

fn name(index: u16) -> String {
    format!("n{}", index + 1)
}

fn address(made: &Made, index: u16) -> String {
    format!("127.0.0.1:{}", made.base_port + index)
}

fn zone(made: &Made, index: u16) -> String {
    format!("z{}", index % made.zones + 1)
}

type Ending = (String, String);

/// Starts one node and forwards its log. Dropping what is returned tells it to stop.
fn start_node(
    dir: &Path,
    made: &Made,
    index: u16,
    secured: Option<&Secured>,
    ended: mpsc::Sender<Ending>,
) -> anyhow::Result<tokio::process::ChildStdin> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--stop-with-stdin")
        .args(["--listen", &address(made, index)])
        .arg("--data-dir")
        .arg(dir.join(name(index)))
        .args(secured.map(|it| it.args(&name(index))).unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Out of the terminal's group, so that Ctrl-C comes to them through us, in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take().context("the child has a standard input")?;
    let stderr = child.stderr.take().context("the child has a standard error")?;
    let label = label(index);
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            say(&format!("{label} {line}"));
        }
        let how = how_it_ended(&mut child).await;
        let _ = ended.send((name(index), how)).await; // nobody waits any more
    });
    Ok(stdin)
}

async fn how_it_ended(child: &mut Child) -> String {
    use std::os::unix::process::ExitStatusExt;
    match child.wait().await {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".into(),
        },
        Err(error) => format!("ended: {error}"),
    }
}

/// Waits until every node answers, makes the cluster if they are blank, and waits until each
/// sees all the others up.
async fn bring_up(made: &Made, secured: Option<&Secured>) -> anyhow::Result<()> {
    let dial = Dial { tls: secured.map(Secured::client).transpose()?.flatten(), from: None };
    let mut clients = Vec::new();
    for index in 0..made.nodes {
        clients.push(answering(&dial, &address(made, index)).await?);
    }
    if view(&clients[0]).await?.id.is_empty() {
        let members = (0..made.nodes).map(|index| NewMember {
            name: name(index),
            address: address(made, index),
            zone: zone(made, index),
            weight: 1,
        });
        let request = InitClusterRequest {
            name: CLUSTER_NAME.into(),
            members: members.collect(),
            default_keyspace: None,
        };
        clients[0].admin().init_cluster(request).await.context("the cluster could not be made")?;
    }
    let meeting = async {
        for client in &clients {
            while !view(client).await?.nodes.iter().all(|node| node.state() == NodeState::Up) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        anyhow::Ok(())
    };
    let met = tokio::time::timeout(START_MAX, meeting).await;
    met.with_context(|| format!("the nodes did not meet in {} s", START_MAX.as_secs()))?
}

async fn view(client: &Client) -> anyhow::Result<ClusterView> {
    Ok(client.admin().get_cluster(GetClusterRequest { events_since: u64::MAX }).await?.into_inner())
}

async fn answering(dial: &Dial, address: &str) -> anyhow::Result<Client> {
    let endpoint = [address.to_owned()];
    let trying = async {
        loop {
            if let Ok(client) = Client::connect_by(dial, &endpoint, Duration::from_secs(1)).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answered = tokio::time::timeout(START_MAX, trying).await;
    answered.with_context(|| format!("no answer from {address} in {} s", START_MAX.as_secs()))
}

fn announce(dir: &Path, made: &Made, secured: Option<&Secured>) {
    let nodes: Vec<String> =
        (0..made.nodes).map(|index| format!("{} {}", name(index), address(made, index))).collect();
    say(&format!("cluster {CLUSTER_NAME} is up: {}", nodes.join(", ")));
    say(&format!("data in {}; started again on it, the data is still there", dir.display()));
    let mut exports = Vec::new();
    if made.base_port != proto::DEFAULT_PORT {
        exports.push(format!("KVCTL_ENDPOINTS={}", address(made, 0)));
    }
    if let Some(Secured { dir }) = secured {
        let own = certs::Made::of(dir, ADMIN);
        let ca = certs::Made::of(dir, "ca").cert;
        for (name, file) in [("CA", ca), ("CERT", own.cert), ("KEY", own.key)] {
            exports.push(format!("KVCTL_TLS_{name}={}", file.display()));
        }
    }
    match exports.as_slice() {
        [] => {
            say("try it:  kvctl status    kvctl put greeting hello    kvctl get greeting    kvtop")
        }
        exports => say(&format!(
            "try it:  export {}; kvctl status; kvctl put greeting hello; kvtop",
            exports.join(" ")
        )),
    }
    say("Ctrl-C stops all nodes");
}

fn restart_line(dir: &Path, made: &Made, secured: Option<&Secured>, node: &str) -> String {
    let index = (0..made.nodes).find(|index| name(*index) == node).unwrap_or(0);
    let mut line =
        format!("kvd --data-dir {} --listen {}", dir.join(node).display(), address(made, index));
    for arg in secured.map(|it| it.args(node)).unwrap_or_default() {
        line += &format!(" {arg}");
    }
    line
}

/// The node's name, in its own colour on a terminal.
fn label(index: u16) -> String {
    let colours = [36, 33, 35, 32, 34, 31];
    match std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => format!(
            "\x1b[{}m{:>3}\x1b[0m",
            colours[usize::from(index) % colours.len()],
            name(index)
        ),
        false => format!("{:>3}", name(index)),
    }
}

fn say(line: &str) {
    // A closed terminal must not end the cluster.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
