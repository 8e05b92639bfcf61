//! The model: what is known of the cluster, what changed between two samples, what happened before.
//!
//! It knows neither the screen nor the network, and time is an argument.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod details;
mod history;
mod lag;
mod log;
mod moves;
mod rates;
mod ring;

pub use details::{Rounds, Wanted, live_elsewhere, worst, worst_lags};
pub use history::{History, Point};
pub use lag::{CHECKED, LAG, LAG_SPAN, Lag, LagTrack};
pub use log::{Entry, Log};
pub use moves::{
    Moves, is_changing, is_moving, is_over, is_there, progress, stuck, summary_progress,
};
pub use rates::{Load, Rates};
pub use ring::{Member, Ring};

use details::Details;
use proto::v1::{ClusterView, KeyspaceView, Membership, NodeState, NodeView};
use rates::Track;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Unix milliseconds.
pub type Millis = u64;

/// Identity of a node: it stays when name or address change.
pub type Uid = Vec<u8>;

/// A node's counters older than this say nothing about now.
pub const STATS_AGE_MAX: Millis = 5_000;

/// Disk use from which a node is marked, and is critical.
pub const DISK: (f64, f64) = (0.70, 0.85);

/// Distance from the fair share from which a node is marked, and is critical.
pub const SHARE: (f64, f64) = (0.10, 0.25);

/// How bad something is. Ordered: the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    Unknown,
    Warn,
    Critical,
}

impl Level {
    /// Of a level on the wire.
    pub fn of(level: proto::v1::Level) -> Self {
        match level {
            proto::v1::Level::Unspecified => Self::Unknown,
            proto::v1::Level::Ok => Self::Ok,
            proto::v1::Level::Degraded => Self::Warn,
            proto::v1::Level::Critical => Self::Critical,
        }
    }

    fn above(value: f64, (warn, critical): (f64, f64)) -> Self {
        if value >= critical {
            Self::Critical
        } else if value >= warn {
            Self::Warn
        } else {
            Self::Ok
        }
    }
}

/// The cluster as one node sees it, with what was learned from earlier samples.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The last sample.
    pub view: ClusterView,
    /// When it came, by this machine's clock.
    pub received_at: Millis,
    /// In order of name, n2 before n10.
    pub nodes: Vec<Node>,
    pub history: History,
    pub log: Log,
    tracks: BTreeMap<Uid, Track>,
    lags: BTreeMap<Uid, LagTrack>,
    details: Details,
}

/// One node, with its rates.
#[derive(Clone, Debug)]
pub struct Node {
    pub uid: Uid,
    pub seen: NodeView,
    /// Its rates; `None` when it gave no two fresh reports in a row.
    pub load: Option<Load>,
    /// Its ring is not the viewpoint's.
    pub ring_differs: bool,
    /// It is the node whose view this is.
    pub viewpoint: bool,
}

impl Cluster {
    /// Begins with a first sample.
    pub fn new(view: ClusterView, now: Millis) -> Self {
        let mut cluster = Self {
            view: ClusterView::default(),
            received_at: now,
            nodes: Vec::new(),
            history: History::default(),
            log: Log::default(),
            tracks: BTreeMap::new(),
            lags: BTreeMap::new(),
            details: Details::default(),
        };
        cluster.view.id.clone_from(&view.id);
        cluster.sample(view, now, 0, true);
        cluster
    }

    /// Takes in the next sample. `opened` tells that it is the first of its stream, whose events
    /// are all that the node kept: their numbers do not continue those of another node.
    pub fn sample(&mut self, view: ClusterView, now: Millis, interval: Millis, opened: bool) {
        if view.id != self.view.id {
            *self = Self::new(view, now);
            return;
        }
        let gap_max = STATS_AGE_MAX + 3 * interval;
        self.log.take(&view, opened, &self.view.viewpoint);
        let before = self.received_at;
        let mut point = Point::new(before, now);
        let members: BTreeSet<Uid> = view.nodes.iter().map(uid_of).collect();
        self.tracks.retain(|uid, _| members.contains(uid));
        self.lags.retain(|uid, _| members.contains(uid));
        for seen in &view.nodes {
            let track = self.lags.entry(uid_of(seen)).or_default();
            track.take(seen.lag.as_ref(), view.observed_at_ms);
        }
        self.nodes = view
            .nodes
            .iter()
            .map(|seen| {
                let load = self.follow(seen, view.observed_at_ms, gap_max, &mut point);
                Node::new(seen, load, &view)
            })
            .collect();
        self.nodes.sort_by(|a, b| by_name(&a.seen.name, &b.seen.name));
        if now.saturating_sub(before) <= gap_max {
            self.history.push(point);
        }
        self.view = view;
        self.received_at = now;
    }

    /// Unix milliseconds on the viewpoint's clock, as far as can be told.
    pub fn viewpoint_now(&self, now: Millis) -> Millis {
        self.view.observed_at_ms.saturating_add(now.saturating_sub(self.received_at))
    }

    /// How a node's lag went lately.
    pub fn lag_track(&self, node: &Node) -> Option<&LagTrack> {
        self.lags.get(&node.uid)
    }

    /// Level of the verdict.
    pub fn level(&self) -> Level {
        self.view.verdict.as_ref().map_or(Level::Unknown, |verdict| Level::of(verdict.level()))
    }

    /// Nodes that are up.
    pub fn up(&self) -> usize {
        self.nodes.iter().filter(|node| node.state() == NodeState::Up).count()
    }

    /// Rates of all nodes that report together, and how many those are.
    pub fn totals(&self) -> (Option<Rates>, usize) {
        let known: Vec<Rates> =
            self.nodes.iter().filter_map(|n| n.load.as_ref()).map(|l| l.rates).collect();
        let sum = known.iter().copied().reduce(|a, b| a + b);
        (sum, known.len())
    }

    /// Partitions of keyspace "default" by number of live copies; `None` while there is none.
    pub fn copies(&self) -> Option<Copies> {
        Copies::of(&self.view)
    }

    fn follow(
        &mut self,
        seen: &NodeView,
        observed_at: Millis,
        gap_max: Millis,
        point: &mut Point,
    ) -> Option<Load> {
        let fresh = seen.state() == NodeState::Up
            && observed_at.saturating_sub(seen.stats_at_ms) <= STATS_AGE_MAX;
        let stats = seen.stats.as_ref().filter(|_| fresh)?;
        let Some(track) = self.tracks.get_mut(&uid_of(seen)) else {
            self.tracks.insert(uid_of(seen), Track::new(stats, seen.stats_at_ms));
            return None;
        };
        let news = track.report(stats, seen.stats_at_ms, gap_max);
        let load = track.load.clone();
        if let Some(load) = &load {
            point.add(load, news);
        }
        load
    }
}

impl Node {
    fn new(seen: &NodeView, load: Option<Load>, view: &ClusterView) -> Self {
        let ring_differs = match (&seen.layout, &view.layout) {
            (Some(its), Some(ours)) => !its.id.is_empty() && its.id != ours.id,
            _ => false,
        };
        Self {
            uid: uid_of(seen),
            load,
            ring_differs,
            viewpoint: seen.name == view.viewpoint,
            seen: seen.clone(),
        }
    }

    pub fn state(&self) -> NodeState {
        self.seen.state()
    }

    pub fn membership(&self) -> Membership {
        self.seen.membership()
    }

    /// Comes or goes.
    pub fn is_passing(&self) -> bool {
        matches!(self.membership(), Membership::Joining | Membership::Leaving)
    }

    /// The worst of what is known about it.
    pub fn level(&self) -> Level {
        let state = match self.state() {
            NodeState::Up if self.lost_data() => Level::Warn,
            NodeState::Up => Level::Ok,
            NodeState::Down => Level::Critical,
            NodeState::Suspect => Level::Warn,
            NodeState::Unknown | NodeState::Unspecified => Level::Unknown,
        };
        let ring = if self.ring_differs { Level::Warn } else { Level::Ok };
        let records = match &self.seen.stats {
            Some(stats) if stats.bad_records > 0 => Level::Warn,
            _ => Level::Ok,
        };
        state.max(ring).max(records).max(self.share_level()).max(self.disk_level())
    }

    /// Its share relative to the fair one: -0.12 is 12% too little. `None` without a fair share.
    pub fn deviation(&self) -> Option<f64> {
        let fair = self.seen.fair_ratio;
        (fair > 0.0 && fair.is_finite()).then(|| self.seen.share_ratio / fair - 1.0)
    }

    /// Order by how far it is from its fair share; those that are not up come first of all, then
    /// those that come or go.
    pub fn unfairness(&self) -> (u8, Millis) {
        let rank = match self.state() {
            NodeState::Up => u8::from(self.is_passing()),
            _ => 2,
        };
        let percent = (self.deviation().unwrap_or(0.0).abs() * 100.0).round();
        (rank, percent as Millis)
    }

    pub fn share_level(&self) -> Level {
        // Rounded as it is shown: a node that reads 10% is marked, one that reads 9% is not.
        let shown = |deviation: f64| (deviation.abs() * 100.0).round() / 100.0;
        self.deviation().map_or(Level::Ok, |deviation| Level::above(shown(deviation), SHARE))
    }

    /// Part of its disk in use, as last reported.
    pub fn disk_used(&self) -> Option<f64> {
        let stats = self.seen.stats.as_ref()?;
        let total = stats.disk_total_bytes;
        (total > 0).then(|| total.saturating_sub(stats.disk_free_bytes) as f64 / total as f64)
    }

    pub fn disk_level(&self) -> Level {
        self.disk_used().map_or(Level::Ok, |used| Level::above(used, DISK))
    }
}

/// Live copies of the partitions of keyspace "default".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Copies each partition should have.
    pub n: usize,
    /// With fewer live copies some requests fail.
    pub quorum: usize,
    /// Number of partitions with 0, 1 .. n live copies.
    pub count: Vec<usize>,
}

impl Copies {
    fn of(view: &ClusterView) -> Option<Self> {
        let most = view.live_copies.iter().copied().max()?;
        let settings = default_keyspace(view).and_then(|view| view.keyspace.as_ref());
        let n = settings.map_or(usize::from(most), |keyspace| keyspace.n as usize).clamp(1, 255);
        let quorum = settings.map_or(1, |keyspace| keyspace.r.max(keyspace.w) as usize);
        let mut count = vec![0; n + 1];
        for live in &view.live_copies {
            count[usize::from(*live).min(n)] += 1;
        }
        Some(Self { n, quorum, count })
    }

    pub fn partitions(&self) -> usize {
        self.count.iter().sum()
    }

    /// What `live` copies of a partition mean.
    pub fn level(&self, live: usize) -> Level {
        if live >= self.n {
            Level::Ok
        } else if live >= self.quorum.max(1) {
            Level::Warn
        } else {
            Level::Critical
        }
    }
}

fn default_keyspace(view: &ClusterView) -> Option<&KeyspaceView> {
    view.keyspaces.iter().find(|view| view.keyspace.as_ref().is_some_and(|k| k.name == "default"))
}

fn uid_of(node: &NodeView) -> Uid {
    if node.uid.is_empty() {
        return node.name.clone().into_bytes();
    }
    node.uid.to_vec()
}

/// Names in the order people count: n2 before n10.
pub fn by_name(a: &str, b: &str) -> Ordering {
    let key = |name: &str| {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (stem, number) = name.split_at(name.len() - digits);
        (stem.to_owned(), number.parse::<u64>().ok(), name.to_owned())
    };
    key(a).cmp(&key(b))
}
