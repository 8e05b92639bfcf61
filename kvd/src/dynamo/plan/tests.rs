//! Tests of the planner.

mod histories;

use super::*;
use crate::dynamo::layout::samples::members;
use proptest::prelude::*;

const BITS: u32 = 8;
/// A spread over as many zones as there are.
const WIDE: u8 = 7;

fn fresh(members: &[Member], n: u8) -> Table {
    plan(None, members, n, BITS, WIDE).unwrap()
}

fn loads(table: &Table, members: usize) -> Vec<u32> {
    let mut loads = vec![0; members];
    for partition in 0..table.partitions() {
        for &slot in table.row(partition as u32).iter().filter(|&&slot| slot != EMPTY) {
            loads[usize::from(slot)] += 1;
        }
    }
    loads
}

/// Checks a table from outside and returns the worst load/share in millionths.
fn worst(table: &Table, members: &[Member], n: u8) -> u64 {
    let cap = usize::from(zone_cap(members, n, WIDE).unwrap());
    for partition in 0..table.partitions() {
        let row = table.row(partition as u32);
        assert_eq!(row.len(), usize::from(n));
        for (place, &slot) in row.iter().enumerate() {
            assert!(!row[..place].contains(&slot), "{row:?}");
            let zone = &members[usize::from(slot)].zone;
            let beside = row.iter().filter(|&&s| members[usize::from(s)].zone == *zone);
            assert!(beside.count() <= cap, "{row:?}");
        }
    }
    let fair = fair_shares(members, n, BITS, WIDE).unwrap();
    let loads = loads(table, members.len());
    loads.iter().zip(fair).map(|(&load, fair)| fair.load_ppm(load)).max().unwrap()
}

fn moved(before: &Table, after: &Table) -> usize {
    let rows = 0..before.partitions() as u32;
    rows.map(|p| after.row(p).iter().filter(|s| !before.row(p).contains(s)).count()).sum()
}

/// Checks that the table after a change is fair and that little more moved than had to.
fn changes_little(from: &[Member], to: &[Member]) {
    // Another zone cap breaks up rows that were well before.
    let few = from.len().min(to.len()) < 3;
    if few || zone_cap(from, 3, WIDE) != zone_cap(to, 3, WIDE) {
        return;
    }
    let before = fresh(from, 3).relabelled(from, to);
    let after = plan(Some(&before), to, 3, BITS, WIDE).unwrap();
    assert!(worst(&after, to, 3) <= 1_050_000);
    let mut must = 0;
    let fair = fair_shares(to, 3, BITS, WIDE).unwrap();
    for (load, fair) in loads(&before, to.len()).into_iter().zip(fair) {
        must += fair.ceil().saturating_sub(u64::from(load)) as usize;
    }
    let moved = moved(&before, &after);
    assert!(moved <= must + must / 2 + 16, "{moved} moved, {must} must");
}

fn shares_of(weights: &[u32], zones: &[&str], n: u8) -> Vec<(u64, u64)> {
    let mut members = members(weights, 1, 7);
    for (member, zone) in members.iter_mut().zip(zones) {
        member.zone = (*zone).to_owned();
    }
    let shares = fair_shares(&members, n, BITS, WIDE).unwrap();
    shares.iter().map(|share| (share.floor(), share.ceil())).collect()
}

#[test]
fn shares_follow_weights_until_a_node_or_a_zone_is_full() {
    // 768 over 4 nodes of one zone each: nobody is full.
    let zones = ["a", "b", "c", "d"];
    assert_eq!(shares_of(&[1, 1, 1, 1], &zones, 3), vec![(192, 192); 4]);
    // The heavy one cannot hold a partition twice; the others share the remaining 512.
    let full = (256, 256);
    assert_eq!(shares_of(&[9, 1, 1, 1], &zones, 3), [full, (170, 171), (170, 171), (170, 171)]);
    // Three zones for three copies: a zone holds 256, whatever its weight.
    let zones = ["a", "a", "b", "c"];
    assert_eq!(shares_of(&[3, 1, 1, 1], &zones, 3), [(192, 192), (64, 64), full, full]);
    // Two zones for three copies: b holds two of them, though it has the weight for more.
    let zones = ["a", "b", "b", "b"];
    assert_eq!(shares_of(&[1, 1, 1, 1], &zones, 3), [full, (170, 171), (170, 171), (170, 171)]);
}

#[test]
fn a_zone_of_one_node_makes_the_others_take_more_copies() {
    let mut cluster = members(&[1; 5], 1, 3);
    cluster[0].zone = "alone".into();
    assert_eq!(zone_cap(&cluster, 5, WIDE).unwrap(), 4);
    assert_eq!(worst(&fresh(&cluster, 5), &cluster, 5), 1_000_000);
}

#[test]
fn what_allows_no_table_is_refused() {
    let cluster = members(&[1, 1], 1, 1);
    let refused = |previous, n, bits| plan(previous, &cluster, n, bits, WIDE).unwrap_err();
    assert_eq!(refused(None, 0, BITS), PlanError::NoCopies);
    assert_eq!(refused(None, 3, BITS), PlanError::TooFewMembers { n: 3, members: 2 });
    assert_eq!(refused(None, 1, 21), PlanError::Bits { bits: 21 });
    let coarse = plan(None, &cluster, 1, 4, WIDE).unwrap();
    let other = PlanError::PreviousPartitions { found: 16, expected: 256 };
    assert_eq!(refused(Some(&coarse), 1, BITS), other);
}

#[test]
fn copies_touch_as_many_zones_as_asked_for() {
    let cap = |zones, n, spread| zone_cap(&members(&[1; 10], zones, 1), n, spread).unwrap();
    assert_eq!([1, 2, 3, 7].map(|spread| cap(5, 3, spread)), [3, 2, 1, 1]);
    assert_eq!([1, 2, 3, 7].map(|spread| cap(2, 3, spread)), [3, 2, 2, 2]);
    assert_eq!([1, 2, 3, 7].map(|spread| cap(5, 5, spread)), [5, 3, 2, 1]);
    let refused = zone_cap(&members(&[1; 10], 5, 1), 3, 0).unwrap_err();
    assert_eq!((refused.clone(), refused.to_string()), {
        (PlanError::NoSpread, "spread=0 would keep copies in no zone".into())
    });
}

#[test]
fn a_lone_node_of_a_third_zone_is_warned_of() {
    let mut cluster = members(&[1; 12], 2, 1);
    cluster[0].zone = "new".into();
    // Two copies in a zone: all hold the same. One: the new node holds a copy of everything, 256
    // where 64 are its share by weight.
    assert_eq!(fullest_ppm(&cluster, 3, BITS, 2).unwrap(), 1_000_000);
    assert_eq!(fullest_ppm(&cluster, 3, BITS, 3).unwrap(), 4_000_000);
}

#[test]
fn a_ring_is_cut_finer_as_the_cluster_grows() {
    let grown = |members| bits_wanted(members, 3, 8);
    assert_eq!([1, 12, 13, 24, 25, 48, 49].map(grown), [8, 8, 9, 9, 10, 10, 11]);
    assert_eq!([1_000, 10_000, 65_535].map(grown), [15, 18, 20]);
    assert_eq!(bits_wanted(3, 3, 12), 12, "a ring is never cut coarser");
    assert_eq!(bits_wanted(65_535, 1, 8), BITS_MAX);
    assert_eq!(bits_wanted(65_535, 1, 31), 31);
}

#[test]
fn a_hundred_nodes_are_fair() {
    let weights: Vec<u32> = (0..100).map(|i| 1 + scramble(i) as u32 % 8).collect();
    for zones in [1, 3, 5, 100] {
        let cluster = members(&weights, zones, 11);
        let table = fresh(&cluster, 3);
        // The lightest should hold 1.6 or so: a whole number is as near as it gets.
        assert!(worst(&table, &cluster, 3) < 1_700_000);
        let fair = fair_shares(&cluster, 3, BITS, WIDE).unwrap();
        for (load, fair) in loads(&table, 100).into_iter().zip(fair) {
            assert!((fair.floor()..=fair.ceil()).contains(&u64::from(load)));
        }
    }
}

#[test]
fn a_plan_of_a_fair_table_moves_nothing() {
    let cluster = members(&[1, 5, 8, 2, 2, 7], 3, 5);
    let table = fresh(&cluster, 3);
    assert_eq!(plan(Some(&table), &cluster, 3, BITS, WIDE).unwrap(), table);
}

#[test]
fn replicas_meet_many_others() {
    let cluster = members(&[1, 1, 1, 1, 1, 1, 8, 8, 8, 8, 8, 8], 3, 2);
    let table = fresh(&cluster, 3);
    let mut sets: Vec<Vec<u16>> = (0..256).map(|p| table.row(p).to_vec()).collect();
    sets.iter_mut().for_each(|set| set.sort_unstable());
    sets.sort_unstable();
    sets.dedup();
    assert!(sets.len() > 24, "{} distinct replica sets", sets.len());
}

prop_compose! {
    /// 3 to 12 nodes of weight 1 to 8 in 1 to 5 zones.
    fn clusters()(
        weights in prop::collection::vec(1u32..=8, 3..=12),
        zones in 1usize..=5,
        seed: u64,
    ) -> Vec<Member> {
        members(&weights, zones, seed)
    }
}

proptest! {
    #[test]
    fn any_small_cluster_is_fair_and_whole(cluster in clusters()) {
        let table = fresh(&cluster, 3);
        prop_assert!(worst(&table, &cluster, 3) <= 1_050_000);
        prop_assert_eq!(&table, &fresh(&cluster, 3));
    }

    #[test]
    fn any_n_makes_a_whole_table(cluster in clusters(), n in 1u8..=7) {
        let n = n.min(cluster.len() as u8);
        worst(&fresh(&cluster, n), &cluster, n);
    }

    #[test]
    fn shares_are_all_replicas(
        weights in prop::collection::vec(1u32..=1_000_000, 3..=40),
        zones in 1usize..=6,
    ) {
        let cluster = members(&weights, zones, 4);
        // No common denominator: compared in millionths of a replica, rounded down.
        let shares = fair_shares(&cluster, 3, BITS, WIDE).unwrap();
        let micro = |s: Share| 1_000_000 * u128::from(s.num) / u128::from(s.den);
        let sum: u128 = shares.iter().map(|&share| micro(share)).sum();
        let all = 3 * 256 * 1_000_000;
        prop_assert!((all - shares.len() as u128..=all).contains(&sum), "{}", sum);
        worst(&fresh(&cluster, 3), &cluster, 3);
    }

    #[test]
    fn a_join_moves_about_the_share_of_the_new_node(cluster in clusters(), new in 0usize..12) {
        let mut fewer = cluster.clone();
        fewer.remove(new % cluster.len());
        changes_little(&fewer, &cluster);
    }

    #[test]
    fn a_leave_moves_about_what_the_node_held(cluster in clusters(), old in 0usize..12) {
        let mut fewer = cluster.clone();
        fewer.remove(old % cluster.len());
        changes_little(&cluster, &fewer);
    }

    #[test]
    fn a_weight_moves_about_what_it_changes(
        cluster in clusters(),
        slot in 0usize..12,
        weight in 1u32..=8,
    ) {
        let mut other = cluster.clone();
        other[slot % cluster.len()].weight = weight;
        changes_little(&cluster, &other);
    }
}
