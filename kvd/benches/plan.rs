//! How fair the planner is, how much it moves and what it costs: `cargo bench -p kvd --bench plan`.
//!
//! Arguments are numbers of nodes (12 50 200 1000 10000 if none is given). One line for each kind of
//! change, each from the table planned first, and one for twenty changes in a row:
//! `max` and `min`: load over fair share of the fullest and the emptiest node. `moved/LB`: replicas
//! on nodes that did not hold them, over the sum of max(0, fair share after - fair share before):
//! what a plan without rounding has to move. `ms`: planning, median. `table` and `delta`: bytes of the table as u16, and
//! of its changes as varint(gap), varint(slot) each.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use kvd::dynamo::layout::{Member, Table};
use kvd::dynamo::node::Uid;
use kvd::dynamo::plan::{bits_wanted, fair_shares, plan};
use std::collections::BTreeMap;
use std::time::Instant;

const N: u8 = 3;
/// As many zones as there are.
const SPREAD: u8 = 7;

fn main() {
    let args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let mut sizes: Vec<usize> = args.map(|arg| arg.parse().expect("a number of nodes")).collect();
    if sizes.is_empty() {
        sizes = vec![12, 50, 200, 1_000, 10_000];
    }
    println!(
        "{:>6} {:>7} {:>5} {:>7} {:>9} {:>6} {:>6} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "nodes",
        "Q",
        "zones",
        "weights",
        "change",
        "max",
        "min",
        "moved",
        "moved/LB",
        "ms",
        "ms max",
        "table",
        "delta"
    );
    for nodes in sizes {
        for zones in [1, 3, 5] {
            for heaviest in [1, 8] {
                measure(nodes, zones, heaviest);
            }
        }
    }
}

/// Plans a cluster from nothing, then each change of it, then a history.
fn measure(nodes: usize, zones: usize, heaviest: u32) {
    let bits = bits_wanted(nodes, N, 8);
    let members = sorted((0..nodes).map(|i| member(i, zones, heaviest)).collect());
    let joined = |more: usize| {
        let new = (nodes..nodes + more).map(|i| member(i, zones, heaviest));
        sorted(members.iter().cloned().chain(new).collect())
    };
    let mut left = members.clone();
    left.remove(nodes / 2);
    let mut reweighed = members.clone();
    let weight = &mut reweighed[nodes / 3].weight;
    *weight = if *weight > 4 { *weight / 2 } else { *weight * 2 };
    let label = format!(
        "{nodes:>6} {:>7} {zones:>5} {:>7}",
        1 << bits,
        if heaviest == 1 { "equal" } else { "1..8" }
    );
    let first = line(&label, "bootstrap", None, &members, bits);
    let changes = [("+1", joined(1)), ("-1", left), ("reweight", reweighed)];
    for (change, to) in changes.into_iter().chain([("+10%", joined(nodes.div_ceil(10)))]) {
        line(&label, change, Some((&first, &members)), &to, bits);
    }
    history(&label, first, &members, bits, |i| member(i, zones, heaviest));
}

/// Twenty changes one after the other, two joins for each node that leaves and each that changes
/// its weight, and prints what they moved together, the worst ratio of a step, and the extremes.
fn history(
    label: &str,
    mut table: Table,
    members: &[Member],
    bits: u32,
    member: impl Fn(usize) -> Member,
) {
    let (mut members, mut all, mut worst) = (members.to_vec(), Line::default(), 0.0_f64);
    for step in 0..20 {
        let mut to = members.clone();
        let some = (step * 7 + 3) % to.len();
        match step % 4 {
            0 | 2 => to.push(member(1_000_000 + step)),
            1 => drop(to.remove(some)),
            _ => to[some].weight = 1 + to[some].weight % 8,
        }
        let to = sorted(to);
        let (line, next) = change(Some((&table, &members)), &to, bits, 1);
        worst = worst.max(line.moved as f64 / line.must);
        all.add(&line);
        (table, members) = (next, to);
    }
    all.print(label, "20 steps");
    println!("{label}  worst step moved/LB {worst:.3}");
}

/// Measures one plan and prints its line.
fn line(
    label: &str,
    name: &str,
    from: Option<(&Table, &[Member])>,
    to: &[Member],
    bits: u32,
) -> Table {
    let (line, table) = change(from, to, bits, if to.len() > 5_000 { 3 } else { 7 });
    line.print(label, name);
    table
}

/// What one plan, or several, cost.
struct Line {
    max: f64,
    min: f64,
    moved: usize,
    must: f64,
    /// Milliseconds of each run.
    times: Vec<f64>,
    table_bytes: usize,
    delta_bytes: usize,
}

impl Default for Line {
    fn default() -> Self {
        let times = Vec::new();
        Self { max: 0.0, min: 9.9, moved: 0, must: 0.0, times, table_bytes: 0, delta_bytes: 0 }
    }
}

impl Line {
    fn add(&mut self, other: &Self) {
        (self.max, self.min) = (self.max.max(other.max), self.min.min(other.min));
        self.moved += other.moved;
        self.must += other.must;
        self.times.extend(&other.times);
        self.table_bytes = other.table_bytes;
        self.delta_bytes += other.delta_bytes;
    }

    fn print(&self, label: &str, name: &str) {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        println!(
            "{label} {name:>9} {:>6.3} {:>6.3} {:>9} {:>8.3} {:>8.2} {:>8.2} {:>8} {:>8}",
            self.max,
            self.min,
            self.moved,
            self.moved as f64 / self.must,
            times[times.len() / 2],
            times[times.len() - 1],
            self.table_bytes,
            self.delta_bytes,
        );
    }
}

/// Plans a change `runs` times.
fn change(
    from: Option<(&Table, &[Member])>,
    to: &[Member],
    bits: u32,
    runs: usize,
) -> (Line, Table) {
    let before = from.map(|(table, members)| table.relabelled(members, to));
    let mut times = Vec::new();
    let mut table = None;
    for _ in 0..runs {
        let start = Instant::now();
        table = Some(plan(before.as_ref(), to, N, bits, SPREAD).unwrap());
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let table = table.unwrap();
    let (fair, has) = (fair(to, bits), loads(&table, to));
    let ratios = has.iter().zip(&fair).map(|(&load, fair)| load as f64 / fair);
    let (max, min) = ratios.fold((0.0, f64::MAX), |(max, min), x| (x.max(max), x.min(min)));
    let had: BTreeMap<Uid, f64> = from.map_or_else(BTreeMap::new, |(_, members)| {
        members.iter().map(|member| member.uid).zip(self::fair(members, bits)).collect()
    });
    let had = to.iter().map(|member| had.get(&member.uid).copied().unwrap_or_default());
    let must = fair.iter().zip(had).map(|(fair, had)| (fair - had).max(0.0)).sum();
    let moved = moved(before.as_ref(), &table);
    let table_bytes = 2 * usize::from(N) * table.partitions();
    let delta_bytes = delta(before.as_ref(), &table).len();
    (Line { max, min, moved, must, times, table_bytes, delta_bytes }, table)
}

fn member(i: usize, zones: usize, heaviest: u32) -> Member {
    Member {
        uid: Uid((i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)),
        name: format!("n{i}"),
        address: format!("10.0.{}.{}:7400", i / 250, i % 250),
        zone: format!("z{}", i % zones),
        // The uid's own bits are as good as chance.
        weight: 1 + ((i as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32 % heaviest,
    }
}

fn sorted(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_by_key(|member| member.uid);
    members
}

/// Fair shares in replicas.
fn fair(members: &[Member], bits: u32) -> Vec<f64> {
    let fair = fair_shares(members, N, bits, SPREAD).unwrap();
    fair.iter().map(|share| share.num as f64 / share.den as f64).collect()
}

fn rows(table: &Table) -> impl Iterator<Item = &[u16]> {
    (0..table.partitions() as u32).map(|partition| table.row(partition))
}

fn loads(table: &Table, members: &[Member]) -> Vec<usize> {
    let mut loads = vec![0; members.len()];
    for &slot in rows(table).flatten() {
        if let Some(load) = loads.get_mut(usize::from(slot)) {
            *load += 1;
        }
    }
    loads
}

fn moved(before: Option<&Table>, after: &Table) -> usize {
    let Some(before) = before else { return after.partitions() * usize::from(N) };
    let pairs = rows(before).zip(rows(after));
    pairs.map(|(old, new)| new.iter().filter(|slot| !old.contains(slot)).count()).sum()
}

/// The places that changed, as a layout could ship them.
fn delta(before: Option<&Table>, after: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    let mut gap = 0;
    for (partition, row) in (0..).zip(rows(after)) {
        for (place, &slot) in row.iter().enumerate() {
            if before.is_some_and(|before| before.row(partition)[place] == slot) {
                gap += 1;
                continue;
            }
            varint(gap, &mut out);
            varint(u64::from(slot), &mut out);
            gap = 0;
        }
    }
    out
}

/// Seven bits a byte, the lowest first, the top bit set on all but the last (LEB128).
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
