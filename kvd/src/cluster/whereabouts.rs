//! At which addresses the members of the cluster are: where nothing is secured, the only thing that
//! tells a node from a client before it has asked for anything.

use super::{Cluster, Node};
use crate::clock;
use crate::door::Members;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names are looked up so often, those that are new within [`LOOK_EVERY`].
const LOOKUP_EVERY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One lookup takes so long at most; what was known of the name stays known after one that failed.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// Addresses of members, of one state of the cluster.
#[derive(Default)]
struct Known {
    /// Which state: see [`Cluster::digest`].
    digest: u64,
    addresses: HashSet<IpAddr>,
}

/// Where the members of a node's cluster are.
pub struct Whereabouts {
    node: Arc<Node>,
    known: Mutex<Known>,
    /// Of members known by a name; gone with the member.
    names: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
}

impl Whereabouts {
    /// Of the members this node knows.
    pub fn of(node: Arc<Node>) -> Arc<Self> {
        Arc::new(Self { node, known: Mutex::default(), names: Mutex::default() })
    }

    /// Looks names up, as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let Ok(cluster) = self.node.cluster() else { continue };
            let named: Vec<&str> = cluster
                .peers
                .values()
                .map(|peer| &*peer.address)
                .filter(|address| address.parse::<SocketAddr>().is_err())
                .collect();
            lock(&self.names).retain(|name, _| named.contains(&name.as_str()));
            for name in named {
                let is_fresh = |(at, _): &(Instant, _)| at.elapsed() < LOOKUP_EVERY;
                if !lock(&self.names).get(name).is_some_and(is_fresh) {
                    self.look_up(name).await;
                }
            }
        }
    }

    async fn look_up(&self, name: &str) {
        let found = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host(name)).await;
        let mut names = lock(&self.names);
        let entry = names.entry(name.to_owned()).or_insert_with(|| (clock::now(), Vec::new()));
        entry.0 = clock::now();
        if let Ok(Ok(found)) = found {
            entry.1 = found.map(|address| address.ip().to_canonical()).collect();
        }
    }
}

impl Members for Whereabouts {
    fn has(&self, address: IpAddr) -> bool {
        let Ok(cluster) = self.node.cluster() else { return false };
        let mut known = lock(&self.known);
        if known.digest != cluster.digest {
            *known = Known { digest: cluster.digest, addresses: literal(&cluster) };
        }
        known.addresses.contains(&address)
            || lock(&self.names).values().any(|(_, at)| at.contains(&address))
    }
}

/// Addresses that stand for themselves.
fn literal(cluster: &Cluster) -> HashSet<IpAddr> {
    let parsed = cluster.peers.values().filter_map(|peer| peer.address.parse::<SocketAddr>().ok());
    parsed.map(|address| address.ip().to_canonical()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
