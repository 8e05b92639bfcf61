//! At which addresses the members of the cluster are: where nothing is secured, the only thing that
//! tells a node from a client before it has asked for anything.

use super::{Cluster, Node};
use crate::clock;
use crate::door::Members;
use futures_util::stream::{self, StreamExt};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names are looked up so often, those that were not found sooner, new ones within [`LOOK_EVERY`].
const LOOKUP_EVERY: Duration = Duration::from_secs(60);
const AGAIN_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many at once.
const AT_ONCE: usize = 32;

/// One lookup takes so long at most; what was known of the name stays known after one that failed.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// Addresses of members, of one state of the cluster.
#[derive(Default)]
struct Known {
    /// Which state: see [`Cluster::digest`].
    digest: u64,
    addresses: HashSet<IpAddr>,
}

/// Where a member is that is known by a name.
#[derive(Default)]
struct Name {
    /// When, and whether it was found.
    looked_up: Option<(Instant, bool)>,
    addresses: Vec<IpAddr>,
}

/// Where the members of a node's cluster are.
pub struct Whereabouts {
    node: Arc<Node>,
    known: Mutex<Known>,
    /// Of members known by a name; gone with the member.
    names: Mutex<HashMap<String, Name>>,
}

impl Whereabouts {
    /// Of the members this node knows.
    pub fn of(node: Arc<Node>) -> Arc<Self> {
        Arc::new(Self { node, known: Mutex::default(), names: Mutex::default() })
    }

    /// Looks names up before anybody comes. Whom this does not find in time is found by [`Self::run`]:
    /// a node must not be kept from its work by a server of names.
    pub async fn first_look(&self) {
        let _ = tokio::time::timeout(LOOKUP_MAX, self.look()).await;
    }

    /// Looks names up, as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            self.look().await;
        }
    }

    /// Looks up the names that are due: new ones, old ones, and those that were not found.
    async fn look(&self) {
        let Ok(cluster) = self.node.cluster() else { return };
        let addresses = cluster.peers.values().map(|peer| &peer.address);
        let named: HashSet<&String> =
            addresses.filter(|address| address.parse::<SocketAddr>().is_err()).collect();
        let due: Vec<&String> = {
            let mut names = lock(&self.names);
            names.retain(|name, _| named.contains(name));
            let is_due = |name: &&String| names.get(*name).is_none_or(Name::is_due);
            named.into_iter().filter(is_due).collect()
        };
        let lookups = due.into_iter().map(|name| self.look_up(name));
        stream::iter(lookups).for_each_concurrent(AT_ONCE, |lookup| lookup).await;
    }

    async fn look_up(&self, name: &str) {
        let found = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host(name)).await;
        let found = found.ok().and_then(Result::ok);
        let mut names = lock(&self.names);
        let known = names.entry(name.to_owned()).or_default();
        known.looked_up = Some((clock::now(), found.is_some()));
        if let Some(found) = found {
            known.addresses = found.map(|address| address.ip().to_canonical()).collect();
        }
    }
}

impl Name {
    fn is_due(&self) -> bool {
        self.looked_up.is_none_or(|(at, found)| {
            at.elapsed() >= if found { LOOKUP_EVERY } else { AGAIN_AFTER }
        })
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
            || lock(&self.names).values().any(|name| name.addresses.contains(&address))
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
