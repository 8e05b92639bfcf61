//! A cluster under load, in a sloppy keyspace and in a strict one, to which something is done. After
//! it, and without anybody reading a key, it must come to rest: no hints left, every replica the
//! same, nothing more to repair. Then every value a client was promised must be there, and none that
//! was deleted.

use crate::check;
use crate::eventually;
use crate::load::{Load, Options, Summary};
use crate::process::{Cluster, Node, ok};
use crate::rng::seed_of_run;
use proto::client::Client;
use proto::v1::{
    GetClusterRequest, HintsRequest, LocateRequest, NodeState, ReadCopyRequest, RepairRequest,
};
use std::fmt;
use std::time::{Duration, Instant};

/// N, R and W of both keyspaces, unless a test is about others.
const QUORUM: (u32, u32, u32) = (3, 2, 2);

/// How long a client waits for an answer, both tries together: a machine that stands still for a
/// second or two must not count as a request that failed.
const DEADLINE: Duration = Duration::from_secs(8);

/// Nodes compare so often, and take away a tombstone that all have held for so long: in a test
/// nothing may wait for minutes, and nothing under way lasts longer than the second.
const SETTINGS: [(&str, &str); 2] = [("KVD_REPAIR_EVERY", "3s"), ("KVD_GC_AFTER", "12s")];

/// A load is judged once it has begun what its rate makes of so many seconds: so much that there is
/// some of every kind. One in thirty is a delete.
const ENOUGH_SECONDS: usize = 5;

/// The cluster and its loads.
pub struct Scenario {
    /// The nodes.
    pub cluster: Cluster,
    loads: Vec<Load>,
    n: u32,
    besides: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Ended {
    /// From the end of the load until nothing was left to hand over or to repair.
    pub level_after: Duration,
    /// What clients saw, in the sloppy keyspace.
    pub sloppy: Summary,
    /// The same in the strict one.
    pub strict: Summary,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "level after {:.1} s", self.level_after.as_secs_f64())?;
        writeln!(f, "sloppy:\n{}", self.sloppy)?;
        write!(f, "strict:\n{}", self.strict)
    }
}

impl Scenario {
    /// So many nodes, and load on them.
    pub fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |options| options)
    }

    /// The same, with load of another kind.
    pub fn start_with(nodes: usize, change: impl Fn(Options) -> Options) -> Self {
        Self::on(Cluster::start_with(nodes, prepare), change)
    }

    /// On a cluster whose nodes were [`prepare`]d.
    pub fn on(cluster: Cluster, change: impl Fn(Options) -> Options) -> Self {
        Self::with_quorum(cluster, QUORUM, change)
    }

    /// The same, with other N, R and W.
    pub fn with_quorum(
        cluster: Cluster,
        (n, r, w): (u32, u32, u32),
        change: impl Fn(Options) -> Options,
    ) -> Self {
        let [n_arg, r_arg, w_arg] = [n, r, w].map(|number| number.to_string());
        let quorum = ["--n", &n_arg, "--r", &r_arg, "--w", &w_arg];
        if (n, r, w) != QUORUM {
            ok(cluster
                .kvctl(&[&["quorum", "set", "-k", "default", "--yes"], &quorum[..]].concat()));
        }
        let create = ["keyspaces", "create", "strict", "--mode", "strict"];
        ok(cluster.kvctl(&[&create, &quorum[..]].concat()));
        let seed = seed_of_run();
        let sloppy = Options { seed, deadline: DEADLINE, ..Options::default() };
        // Another seed: values of one keyspace that show in the other are then noticed.
        let strict =
            Options { seed: seed + 1, keyspace: "strict".into(), strict: true, ..sloppy.clone() };
        let start = |options| Load::start(&cluster.nodes, change(options));
        let loads = [sloppy, strict].map(start).into();
        let scenario = Self { cluster, loads, n, besides: Vec::new() };
        scenario.pass(200);
        scenario
    }

    /// A test puts this key in the sloppy keyspace, besides those of the load.
    pub fn put_besides(&mut self, key: &str) {
        self.besides.push(key.to_owned());
    }

    /// Waits until `more` operations have been begun in each keyspace from now on.
    pub fn pass(&self, more: usize) {
        let enough: Vec<usize> = self.loads.iter().map(|load| load.begun() + more).collect();
        let done = || self.loads.iter().zip(&enough).all(|(load, enough)| load.begun() >= *enough);
        eventually("the load to go on", || done().then_some(()));
    }

    /// With all nodes up and all links whole again: lets the load end, waits for the cluster to come
    /// to rest, and judges it.
    ///
    /// # Panics
    /// If it does not, or if anything was lost or came back: with the seed, and the history kept.
    pub fn end(mut self) -> Ended {
        let names: Vec<String> = self.cluster.nodes.iter().map(|node| node.name.clone()).collect();
        for via in 0..names.len() {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.cluster.wait_until_up(via, &names);
        }
        let enough = || self.loads.iter().all(|load| load.begun() >= load.rate() * ENOUGH_SECONDS);
        eventually("enough operations to judge", || enough().then_some(()));
        self.loads.iter_mut().for_each(Load::rest);
        let rested = Instant::now();
        let client = self.cluster.client(0);
        self.comes_to_rest(&client);
        let level_after = rested.elapsed();
        self.replicas_are_equal(&client);
        let dir = self.cluster.dir().to_owned();
        let histories = self.loads.drain(..).map(|load| load.stop_and_read_all(self.n));
        let [sloppy, strict] = histories.collect::<Vec<_>>().try_into().expect("two loads");
        for history in [&sloppy, &strict] {
            check::expect_sound(history, &dir);
        }
        let (sloppy, strict) = (Summary::of(&sloppy), Summary::of(&strict));
        let ended = Ended { level_after, sloppy, strict };
        eprintln!("{ended}");
        ended
    }

    /// Waits until no node keeps anything for another or has lost data, and all pairs have compared
    /// twice, from beginning to end, with nothing to repair.
    fn comes_to_rest(&self, client: &Client) {
        eventually("every hint to be handed over", || {
            let ask = HintsRequest::default();
            let hints = self.cluster.block_on(async { client.admin().hints(ask).await }).ok()?;
            let nodes = hints.into_inner().nodes;
            let none = |node: &proto::v1::NodeHints| node.error.is_empty() && node.hints.is_empty();
            nodes.iter().all(none).then_some(())
        });
        eventually("every node to have its vote", || {
            let view = self.view(client)?;
            let votes = |node: &proto::v1::NodeView| {
                let stats = node.stats.as_ref();
                node.state() == NodeState::Up && stats.is_some_and(|stats| !stats.lost_data)
            };
            view.nodes.iter().all(votes).then_some(())
        });
        let mut before = self.rounds(client, false);
        eventually("two rounds of every pair with nothing to repair", || {
            let now = self.rounds(client, true);
            if now.len() != before.len() || now.iter().any(|pair| pair.failed) {
                before = now;
                return None;
            }
            let is_later = |(now, before): (&Pair, &Pair)| now.rounds >= before.rounds + 3;
            if !now.iter().zip(&before).all(is_later) {
                return None;
            }
            let repaired = |pairs: &[Pair]| pairs.iter().map(|pair| pair.repaired).sum::<u64>();
            let quiet = repaired(&now) == repaired(&before);
            before = now;
            quiet.then_some(())
        });
    }

    fn view(&self, client: &Client) -> Option<proto::v1::ClusterView> {
        let ask = GetClusterRequest::default();
        let view = self.cluster.block_on(async { client.admin().get_cluster(ask).await });
        view.ok().map(|view| view.into_inner())
    }

    fn rounds(&self, client: &Client, start: bool) -> Vec<Pair> {
        let ask = RepairRequest { start, ..Default::default() };
        let reply = self.cluster.block_on(async { client.admin().repair(ask).await });
        let Ok(reply) = reply else { return Vec::new() };
        let nodes = reply.into_inner().nodes;
        let pairs = nodes.into_iter().flat_map(|node| {
            let failed = !node.error.is_empty();
            let unasked = failed.then_some(Pair { rounds: 0, repaired: 0, failed });
            let pairs = node.pairs.into_iter().map(|pair| Pair {
                rounds: pair.rounds,
                repaired: pair.repaired,
                failed: !pair.error.is_empty(),
            });
            pairs.chain(unasked).collect::<Vec<_>>()
        });
        pairs.collect()
    }

    /// Every home's own copy of every key is the same, and nobody holds any other.
    fn replicas_are_equal(&self, client: &Client) {
        let mut last = String::new();
        eventually("as many records on all disks as replicas have", || {
            let held = self.held_by_homes(client);
            let view = self.view(client)?;
            let stats = view.nodes.iter().map(|node| Some(node.stats.as_ref()?.keys));
            let found = stats.sum::<Option<u64>>()?;
            let now = format!("replicas have {held}, on all disks are {found}");
            if now != last {
                eprintln!("{now}");
                last = now;
            }
            (held == found).then_some(())
        });
    }

    /// How many copies the homes of all keys hold, those of one key alike.
    fn held_by_homes(&self, client: &Client) -> u64 {
        let mut held = 0;
        for load in &self.loads {
            let keys = load.keys().map(|key| self.copies(client, load.keyspace(), &key));
            let of_load: u64 = keys.sum();
            assert!(of_load > 0, "no replica holds anything of {}", load.keyspace());
            held += of_load;
        }
        held + self.besides.iter().map(|key| self.copies(client, "default", key)).sum::<u64>()
    }

    /// How many of a key's homes hold a copy of it, once all say the same.
    fn copies(&self, client: &Client, keyspace: &str, key: &str) -> u64 {
        let bytes: bytes::Bytes = key.as_bytes().to_vec().into();
        let ask = LocateRequest { keyspace: keyspace.to_owned(), key: bytes.clone() };
        let located = self.cluster.block_on(async { client.admin().locate(ask).await });
        let located = located.expect("where the key is").into_inner();
        let homes = located.preference.iter().filter(|node| !node.fallback);
        let homes: Vec<String> = homes.map(|home| home.node.clone()).collect();
        assert_eq!(homes.len(), self.n as usize, "{keyspace}/{key} is to be on N nodes");
        let copy = |node: &String| {
            let (node, keyspace) = (node.clone(), keyspace.to_owned());
            let ask = ReadCopyRequest { node, keyspace, key: bytes.clone() };
            let copy = self.cluster.block_on(async { client.admin().read_copy(ask).await });
            copy.expect("a copy").into_inner()
        };
        let mut clocks = Vec::new();
        // A tombstone that all have held long enough goes from one node after the other.
        eventually(&format!("{keyspace}/{key} to be the same on {homes:?}"), || {
            let copies: Vec<_> = homes.iter().map(copy).collect();
            let now: Vec<String> = copies.iter().map(|copy| copy.clock.clone()).collect();
            if !clocks.is_empty() && now != clocks {
                eprintln!("{keyspace}/{key} differs, though all pairs match: {now:?}");
            }
            clocks = now;
            let alike = copies.iter().all(|copy| copy.digest == copies[0].digest);
            alike.then(|| copies.iter().filter(|copy| !copy.clock.is_empty()).count() as u64)
        })
    }
}

/// What is counted of a pair's rounds.
struct Pair {
    rounds: u64,
    repaired: u64,
    failed: bool,
}

/// Has a node compare often, and take tombstones away soon.
pub fn prepare(node: &mut Node) {
    node.env.extend(SETTINGS.map(|(name, value)| (name, value.to_owned())));
}
