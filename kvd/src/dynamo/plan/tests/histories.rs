//! Random histories of a cluster: every table is whole and fair, and no fewer moves lead to it.

use super::super::target::band;
use super::super::{Plan, bits_wanted, mix, plan, scramble};
use super::{loads, moved};
use crate::dynamo::layout::samples;
use crate::dynamo::layout::{Member, Table};
use crate::dynamo::node::Uid;
use crate::dynamo::plan::{fair_shares, zone_cap};
use std::collections::VecDeque;

/// Numbers of chance, the same on each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (scramble(scramble(self.0)) % end as u64) as usize
    }

    fn within(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most + 1 - least)
    }
}

/// A cluster that changes.
struct Cluster {
    chance: Chance,
    members: Vec<Member>,
    /// Members that ever were.
    born: u64,
    zones: usize,
    n: u8,
    bits: u32,
    spread: u8,
    /// Whether the ring is cut finer as the cluster grows.
    grows: bool,
    table: Table,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Add,
    Remove,
    Reweigh,
    Rezone,
    AddTenth,
    ChangeN,
    Double,
    Spread,
}

const STEPS: [Step; 8] = [
    Step::Add,
    Step::Remove,
    Step::Reweigh,
    Step::Rezone,
    Step::AddTenth,
    Step::ChangeN,
    Step::Double,
    Step::Spread,
];

impl Cluster {
    fn new(seed: u64, nodes: usize, bits: Option<u32>) -> Self {
        let mut chance = Chance(scramble(seed));
        let (zones, n) = (chance.within(1, 5), [3, 3, 3, 1, 2, 5][chance.below(6)]);
        let n = (n as usize).min(nodes) as u8;
        let spread = [7, 7, 1, 2, 3][chance.below(5)];
        let grows = bits.is_none();
        let bits = bits.unwrap_or_else(|| bits_wanted(nodes, n, 8));
        let table = Table::new(n, vec![0; usize::from(n) << bits]);
        let (members, born) = (Vec::new(), seed << 20);
        let mut cluster = Self { chance, members, born, zones, n, bits, spread, grows, table };
        (0..nodes).for_each(|_| cluster.add());
        cluster.table = cluster.plan(None);
        cluster.check(None);
        cluster
    }

    fn plan(&self, previous: Option<&Table>) -> Table {
        plan(previous, &self.members, self.n, self.bits, self.spread).unwrap()
    }

    fn add(&mut self) {
        self.born += 1;
        let weight = self.chance.within(1, 8) as u32;
        let mut member = samples::members(&[weight], 1, self.born).remove(0);
        member.zone = self.zone();
        self.members.push(member);
        self.members.sort_by_key(|member| member.uid);
    }

    /// The first zones are the larger ones.
    fn zone(&mut self) -> String {
        let (a, b) = (self.chance.below(self.zones), self.chance.below(self.zones));
        format!("z{}", a.min(b))
    }

    /// Changes something and returns what was before in the slots of now.
    fn change(&mut self, step: Step) -> Table {
        let before = self.members.clone();
        let some = self.chance.below(before.len());
        match step {
            Step::Add => self.add(),
            Step::Remove if before.len() > usize::from(self.n) => drop(self.members.remove(some)),
            Step::Remove => {}
            Step::Reweigh => self.members[some].weight = self.chance.within(1, 8) as u32,
            Step::Rezone => self.members[some].zone = self.zone(),
            Step::AddTenth => (0..before.len().div_ceil(10)).for_each(|_| self.add()),
            Step::ChangeN => self.n = self.chance.within(1, before.len().min(5)) as u8,
            Step::Double => {}
            Step::Spread => self.spread = self.chance.within(1, 4) as u8,
        }
        let wanted = bits_wanted(self.members.len(), self.n, self.bits);
        let finer = self.bits + u32::from(step == Step::Double);
        let finer = finer.max(if self.grows { wanted } else { 0 });
        let mut table = self.table.relabelled(&before, &self.members);
        for _ in self.bits..finer {
            table = doubled(&table);
        }
        self.bits = finer;
        table
    }

    /// One change, planned and checked; returns how many replicas moved.
    fn step(&mut self, step: Step, exact: bool) -> usize {
        let before = self.change(step);
        self.table = self.plan(Some(&before));
        self.check(Some(&before));
        let moved = moved(&before, &self.table);
        if exact {
            let start = Plan::start(Some(&before), &self.members, self.n, self.bits, self.spread);
            let least = exact_moves(&start, &before);
            assert_eq!(moved, least, "{step:?} of {} nodes, N={}", self.members.len(), self.n);
        }
        moved
    }

    fn check(&self, before: Option<&Table>) {
        let (table, members) = (&self.table, &self.members);
        let cap = usize::from(zone_cap(members, self.n, self.spread).unwrap());
        let zone = |slot: u16| members[usize::from(slot)].zone.as_str();
        for partition in 0..table.partitions() {
            let row = table.row(partition as u32);
            for (place, &slot) in row.iter().enumerate() {
                assert!(!row[..place].contains(&slot), "{row:?}");
                assert!(row.iter().filter(|&&s| zone(s) == zone(slot)).count() <= cap, "{row:?}");
            }
        }
        self.check_loads();
        assert_eq!(*table, self.plan(before), "a second run plans the same");
        assert_eq!(*table, self.plan(Some(table)), "a plan of a planned table moves nothing");
    }

    /// Loads are in the bands that `target.rs` promises.
    fn check_loads(&self) {
        let fair = fair_shares(&self.members, self.n, self.bits, self.spread).unwrap();
        for (load, fair) in loads(&self.table, self.members.len()).into_iter().zip(fair) {
            let (low, high) = band(fair, 1 << self.bits);
            assert!((low..=high).contains(&(load as usize)), "{load} of {fair:?}");
            let ppm = fair.load_ppm(load);
            assert!(ppm <= 1_025_000 || u64::from(load) <= fair.ceil(), "{load} of {fair:?}");
            assert!(ppm >= 920_000 || fair.num < 13 * fair.den, "{load} of {fair:?}");
            if self.grows && self.members.len() >= 50 {
                assert!(ppm <= 1_025_000, "{load} of {fair:?}");
            }
        }
    }
}

/// A ring cut twice as fine: each row becomes two.
fn doubled(table: &Table) -> Table {
    let rows = (0..table.partitions() as u32).flat_map(|p| [table.row(p), table.row(p)]);
    Table::new(table.n(), rows.flatten().copied().collect())
}

fn random_steps(cluster: &mut Cluster, steps: usize, exact: bool) {
    for _ in 0..steps {
        let step = STEPS[cluster.chance.below(STEPS.len())];
        if step != Step::Double || cluster.bits < 8 {
            cluster.step(step, exact);
        }
    }
}

#[test]
fn small_clusters_move_as_little_as_can_be() {
    for seed in 0..900 {
        let mut chance = Chance(seed);
        let bits = chance.within(2, 4) as u32;
        let mut cluster = Cluster::new(seed, chance.within(3, 12), Some(bits));
        random_steps(&mut cluster, 6, true);
    }
}

#[test]
fn forty_nodes_move_as_little_as_can_be() {
    for seed in 1_000..1_010 {
        let mut cluster = Cluster::new(seed, 12 + seed as usize % 29, Some(6));
        random_steps(&mut cluster, 3, true);
    }
}

#[test]
fn histories_of_all_sizes_stay_fair_and_whole() {
    for seed in 2_000..2_120 {
        let mut cluster = Cluster::new(seed, 3 + seed as usize % 38, None);
        random_steps(&mut cluster, 8, false);
    }
    for seed in 3_000..3_020 {
        let mut cluster = Cluster::new(seed, 200, None);
        random_steps(&mut cluster, 4, false);
    }
    let mut cluster = Cluster::new(4_000, 1_000, None);
    random_steps(&mut cluster, 2, false);
}

/// Fewest replicas that have to move from `before` to any table with the targets of `plan`: a
/// min-cost flow by successive shortest paths (Bellman and Ford's, with a queue), on the whole
/// network, written out.
fn exact_moves(plan: &Plan<'_>, before: &Table) -> usize {
    let (nodes, zones, q) = (plan.members.len(), plan.zones.sizes.len(), plan.q);
    let (source, sink) = (0, 1);
    let node = |slot: usize| 2 + slot;
    let zone_of = |partition: usize, zone: usize| 2 + nodes + partition * zones + zone;
    let row = |partition: usize| 2 + nodes + q * zones + partition;
    let mut flow = Flow::new(2 + nodes + q * zones + q);
    for slot in 0..nodes {
        flow.arc(source, node(slot), plan.target[slot], 0);
        for partition in 0..q {
            let moves = !before.row(partition as u32).contains(&(slot as u16));
            let zone = zone_of(partition, plan.zones.of_node(slot));
            flow.arc(node(slot), zone, 1, i64::from(moves));
        }
    }
    for partition in 0..q {
        for zone in 0..zones {
            flow.arc(zone_of(partition, zone), row(partition), plan.zones.cap, 0);
        }
        flow.arc(row(partition), sink, plan.n, 0);
    }
    let (sent, cost) = flow.send_all(source, sink);
    assert_eq!(sent, plan.n * q, "the targets can be met");
    cost as usize
}

struct Arc {
    to: usize,
    left: usize,
    cost: i64,
}

/// Arcs in pairs: each is followed by its reverse.
struct Flow {
    arcs: Vec<Arc>,
    of: Vec<Vec<usize>>,
}

impl Flow {
    fn new(vertices: usize) -> Self {
        Self { arcs: Vec::new(), of: vec![Vec::new(); vertices] }
    }

    fn arc(&mut self, from: usize, to: usize, most: usize, cost: i64) {
        self.of[from].push(self.arcs.len());
        self.arcs.push(Arc { to, left: most, cost });
        self.of[to].push(self.arcs.len());
        self.arcs.push(Arc { to: from, left: 0, cost: -cost });
    }

    fn send_all(&mut self, source: usize, sink: usize) -> (usize, i64) {
        let (mut sent, mut cost) = (0, 0);
        while let Some((path, length)) = self.shortest(source, sink) {
            let most = path.iter().map(|&arc| self.arcs[arc].left).min().unwrap();
            for arc in path {
                self.arcs[arc].left -= most;
                self.arcs[arc ^ 1].left += most;
            }
            sent += most;
            cost += most as i64 * length;
        }
        (sent, cost)
    }

    fn shortest(&self, source: usize, sink: usize) -> Option<(Vec<usize>, i64)> {
        let mut length = vec![i64::MAX; self.of.len()];
        let mut by = vec![usize::MAX; self.of.len()];
        let (mut queue, mut queued) = (VecDeque::from([source]), vec![false; self.of.len()]);
        length[source] = 0;
        while let Some(at) = queue.pop_front() {
            queued[at] = false;
            for &index in &self.of[at] {
                let arc = &self.arcs[index];
                if arc.left > 0 && length[at] + arc.cost < length[arc.to] {
                    (length[arc.to], by[arc.to]) = (length[at] + arc.cost, index);
                    if !std::mem::replace(&mut queued[arc.to], true) {
                        queue.push_back(arc.to);
                    }
                }
            }
        }
        let mut path = Vec::new();
        let mut at = sink;
        while by[at] != usize::MAX {
            path.push(by[at]);
            at = self.arcs[by[at] ^ 1].to;
        }
        (length[sink] < i64::MAX).then_some((path, length[sink]))
    }
}

#[test]
fn a_finer_ring_moves_next_to_nothing() {
    for (seed, nodes) in [(5_000, 12), (5_001, 30), (5_002, 60), (5_003, 200)] {
        let mut cluster = Cluster::new(seed, nodes, None);
        let moved = cluster.step(Step::Double, false);
        // A node that held its share rounded up may hold one too many of twice the share.
        assert!(moved <= nodes, "{moved} moved");
    }
}

#[test]
fn tables_are_the_same_in_every_release() {
    let mut digest = 0;
    for (seed, nodes) in [(6_000, 5), (6_001, 12), (6_002, 40)] {
        let mut cluster = Cluster::new(seed, nodes, None);
        random_steps(&mut cluster, 10, false);
        for partition in 0..cluster.table.partitions() {
            for &slot in cluster.table.row(partition as u32) {
                digest = mix(Uid(u128::from(slot)), digest);
            }
        }
    }
    assert_eq!(digest, 3_981_773_271_579_165_998);
}
