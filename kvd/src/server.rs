//! All wiring: start, serve, drain, stop.

use crate::api::{AdminService, KvService, ReplicaService};
use crate::cluster::certs::{self, Security};
use crate::cluster::whereabouts::Whereabouts;
use crate::cluster::{
    Node, address, compact, detector, gc, handoff, membership, moves, overload, partitions, repair,
    room, scrub,
};
use crate::config::Config;
use crate::door::access::Access;
use crate::door::room::{Room, RoomLayer};
use crate::door::{Door, Incoming};
use crate::storage::disk::RealDisk;
use crate::storage::identity::{Directory, STORE_DIR};
use crate::storage::{Store, StoreOptions, shards};
use crate::threads::ClientThreads;
use crate::tls::Tls;
use anyhow::{Context, anyhow};
use proto::MESSAGE_BYTES_MAX;
use proto::v1::admin_server::AdminServer;
use proto::v1::kv_server::{self, KvServer};
use proto::v1::replica_server::ReplicaServer;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;

/// Requests under way when the node is told to stop may take so long.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Then connections are given so long to close.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Largest request a client may send, bytes. Well above any value allowed, so that one that is too
/// large is refused in words rather than by the transport.
const CLIENT_REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Streams one connection may have open: half of what a node takes at least, so that there is room for
/// another's. One more waits at the client.
const STREAMS_MAX: u32 = 128;

/// Headers of one request, bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Streams that a client may open and reset before they are taken up. One more ends its connection.
const RESETS_MAX: usize = 20;

/// A request that has not been answered, or not even arrived whole, after so long is cut off: longer
/// than any deadline.
const ANSWER_MAX: Duration = Duration::from_secs(90);

/// Runs one node until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Files that cannot be used are better known before anything is open.
    let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
    let access = config.access.as_deref().map(Access::load).transpose()?.unwrap_or_default();
    allow_open_files(config.limits.connections);
    // The port first: nothing on disk changes if it is taken.
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: is another kvd running? choose another with --listen",
            config.listen
        )
    })?;
    let own_address = match &config.advertise {
        Some(address) => address.clone(),
        None => listener.local_addr()?.to_string(),
    };
    let mut directory = Directory::open(&config.data_dir)?;
    let disk = RealDisk::new(&config.data_dir.join(STORE_DIR))?;
    let options = StoreOptions {
        cache_bytes: config.cache_bytes,
        write_buffer_bytes: config.write_buffer_bytes,
        hint_bytes_max: config.hint_bytes_max,
    };
    let store = Store::open(&mut directory, Arc::new(disk), &options)?;
    abort_on_panic();
    let (incarnation, start) = (directory.incarnation(), directory.start().count);
    let outgoing = outgoing(listener.local_addr()?.ip(), &own_address);
    let security = Security::new(tls.clone(), config.access.clone(), config.limits.age);
    let node = Node::new(directory, own_address, outgoing, store.clone(), security, access);
    tracing::info!(
        address = node.address,
        uid = %node.uid,
        %incarnation,
        start,
        data_dir = %config.data_dir.display(),
        "kvd {} listens", env!("CARGO_PKG_VERSION"),
    );
    tell_how_secure(&config, tls.as_deref());
    node.moves.goes_at(config.transfer_bytes_per_second);
    membership::resume(&node).map_err(|why| anyhow!(why))?;
    match node.cluster() {
        Ok(cluster) => tracing::info!(
            name = node.name(),
            cluster = cluster.layout.cluster_name(),
            ring = cluster.layout.depth(),
            "serving"
        ),
        Err(_) => tracing::info!("blank: waiting to be given a cluster (kvctl cluster init)"),
    }

    node.spawn(detector::run(Arc::clone(&node)));
    node.spawn(scrub::run(Arc::clone(&node), config.scrub));
    node.spawn(partitions::count(Arc::clone(&node)));
    node.spawn(repair::run(Arc::clone(&node), config.repair_every));
    node.spawn(gc::run(Arc::clone(&node), config.gc_after));
    node.spawn(compact::watch(Arc::clone(&node)));
    node.spawn(handoff::run(Arc::clone(&node)));
    node.spawn(moves::run(Arc::clone(&node)));
    node.spawn(moves::sweep(Arc::clone(&node)));
    node.spawn(membership::keep_telling(Arc::clone(&node)));
    node.spawn(address::run(Arc::clone(&node)));
    node.spawn(room::watch(Arc::clone(&node), config.watermarks));
    node.spawn(certs::watch(Arc::clone(&node)));
    node.spawn(overload::watch(Arc::clone(&node)));
    node.spawn(reload_on_hangup(Arc::clone(&node), signal(SignalKind::hangup())?));

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(kv_server::SERVICE_NAME, ServingStatus::Serving).await;
    let whereabouts = Whereabouts::of(Arc::clone(&node));
    whereabouts.first_look().await;
    node.spawn(Arc::clone(&whereabouts).run());
    let door = Door::new(tls, config.limits, whereabouts.clone());
    let _ = node.security.door.set(Arc::clone(&door)); // it has none yet
    let for_clients = ClientThreads::start().context("no threads for clients")?;
    let entrants = door.open(listener, for_clients.handle().clone());
    let (services, room) = (services(&node, health_service)?, Room::new(config.client_bytes));
    let serve = |incoming| serve(Arc::clone(&node), Arc::clone(&room), services.clone(), incoming);
    let serving =
        [tokio::spawn(serve(entrants.nodes)), for_clients.handle().spawn(serve(entrants.clients))];

    let outcome = tokio::select! {
        why = told_to_stop(config.stop_with_stdin) => {
            tracing::info!(why = why?, "draining");
            Ok(())
        }
        () = node.moves.gone() => Ok(()),
        why = storage_stopped(&store) => {
            tracing::error!(why, "storage stopped: this node no longer votes, and exits");
            Err(anyhow!("storage stopped: {why}"))
        }
    };
    health.set_service_status(kv_server::SERVICE_NAME, ServingStatus::NotServing).await;
    if outcome.is_ok() {
        node.drain(DRAIN_MAX).await;
    }
    node.stop.cancel();
    // Whoever still hangs on is cut off.
    let _ = tokio::time::timeout(CLOSE_MAX, futures_util::future::join_all(serving)).await;
    drop(for_clients);
    outcome?;
    let closing = tokio::task::spawn_blocking(move || store.close());
    let Some(mark) = closing.await? else {
        return Err(anyhow!("storage stopped while draining; the next start begins another life"));
    };
    node.directory().stopped_cleanly(mark)?;
    tracing::info!("stopped");
    Ok(())
}

/// Where connections to other nodes come from: the address this node listens on, if it is the one
/// the others know it by. Then who speaks to whom can be told from outside, by a firewall too.
fn outgoing(listens_on: IpAddr, advertised: &str) -> Option<IpAddr> {
    let advertised: SocketAddr = advertised.parse().ok()?;
    (advertised.ip() == listens_on && !listens_on.is_unspecified()).then_some(listens_on)
}

/// A panic is a bug, and a node in a state nobody thought of must not go on voting.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if !shards::is_guarded() {
            std::process::abort();
        }
    }));
}

/// Every connection is an open file, and so is every file of the store.
fn allow_open_files(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const BESIDE: u64 = 512;
    // Clients, and as much again for nodes.
    let wanted = 2 * connections as u64 + BESIDE;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = now.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..now });
    if raised.is_err() || current < wanted {
        tracing::warn!(
            "the system lets this process open {current} files; {connections} connections want {wanted}: ulimit -n, or --connections-max"
        );
    }
}

/// Says at every start what an operator must not overlook.
fn tell_how_secure(config: &Config, tls: Option<&Tls>) {
    match tls {
        Some(tls) => {
            let facts = &tls.now().facts;
            let names = facts.names.join(", ");
            tracing::info!(certificate = facts.name, names, "connections are secured by TLS");
        }
        None if !config.listen.ip().is_loopback() => tracing::warn!(
            "INSECURE: everybody who can reach {} can read, write and take over this node; see --tls-cert",
            config.listen
        ),
        None => {}
    }
}

/// Reads certificates and access file again whenever told by SIGHUP.
async fn reload_on_hangup(node: Arc<Node>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        // Both outcomes are told in the node's events.
        tokio::task::block_in_place(|| {
            let outcome = certs::reload(&node).map_err(tonic::Status::internal);
            node.audit.add(None, "reload certs by SIGHUP", "", outcome.as_ref().copied());
        });
    }
}

/// All that is served, to whomever.
fn services(
    node: &Arc<Node>,
    health: tonic_health::pb::health_server::HealthServer<
        impl tonic_health::pb::health_server::Health,
    >,
) -> anyhow::Result<Routes> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let node = || Arc::clone(node);
    let kv = KvServer::new(KvService { node: node() });
    let replica = ReplicaServer::new(ReplicaService { node: node() });
    let mut services = Routes::builder();
    services
        .add_service(kv.max_decoding_message_size(CLIENT_REQUEST_BYTES_MAX))
        .add_service(AdminServer::new(AdminService::new(node())))
        .add_service(replica.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(health)
        .add_service(reflection);
    Ok(services.routes())
}

/// Serves who comes in, until the node stops.
async fn serve(
    node: Arc<Node>,
    room: Arc<Room>,
    services: Routes,
    incoming: mpsc::Receiver<std::io::Result<Incoming>>,
) -> Result<(), tonic::transport::Error> {
    let stop = node.stop.clone();
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_header_list_size(Some(HEADER_BYTES_MAX))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .max_connection_age(node.security.link_age * 2)
        .timeout(ANSWER_MAX)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .layer(RoomLayer { room, node })
        .add_routes(services);
    let incoming = ReceiverStream::new(incoming);
    server.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await }).await
}

async fn storage_stopped(store: &Store) -> String {
    let mut stopped = store.stopped();
    let why = stopped.wait_for(Option::is_some).await.map(|why| why.clone());
    why.ok().flatten().unwrap_or_else(|| "its writer ended".into())
}

/// Returns, with the reason, when a signal or the end of standard input says so.
async fn told_to_stop(with_stdin: bool) -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stdin_ended = async {
        if !with_stdin {
            return std::future::pending().await;
        }
        let (mut stdin, mut byte) = (tokio::io::stdin(), [0]);
        while stdin.read(&mut byte).await.is_ok_and(|read| read > 0) {}
    };
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = stdin_ended => "the process that started it is gone",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_come_from_the_address_the_others_know_if_it_is_this_nodes_own() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(outgoing(ip("10.0.0.1"), "10.0.0.1:7400"), Some(ip("10.0.0.1")));
        assert_eq!(outgoing(ip("0.0.0.0"), "10.0.0.1:7400"), None);
        assert_eq!(outgoing(ip("127.0.0.1"), "203.0.113.7:7400"), None, "behind a tunnel");
        assert_eq!(outgoing(ip("10.0.0.1"), "db1.example.net:7400"), None);
    }
}
