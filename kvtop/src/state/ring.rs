//! Who holds what by the layout, for keyspace "default": checked and counted once, when it comes.

use super::{Cluster, Uid};
use proto::v1::LayoutView;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// More partitions than any cluster has: a layout that says so is damaged.
const BITS_MAX: u32 = 24;

/// A member, in its slot of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub uid: Uid,
    pub name: String,
    pub zone: String,
}

/// The table of partitions.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Of the layout.
    pub id: Vec<u8>,
    pub depth: u64,
    pub members: Vec<Member>,
    /// Copies of each partition.
    pub n: usize,
    /// Zones that the copies of a partition should touch.
    pub zones_wanted: usize,
    /// Partitions that touch fewer.
    pub narrow: usize,
    bits: u32,
    slots: Vec<usize>,
}

impl Ring {
    /// `None` if the layout has no keyspace "default" yet, or contradicts itself.
    pub fn of(view: &LayoutView) -> Option<Self> {
        let keyspace = view.keyspaces.iter().find(|keyspace| keyspace.name == "default")?;
        let table = view.tables.iter().find(|table| table.n == keyspace.n)?;
        let (n, bits) = (table.n as usize, view.partition_bits);
        let sound = bits <= BITS_MAX
            && n > 0
            && table.slots.len() == n << bits
            && table.slots.iter().all(|slot| (*slot as usize) < view.members.len());
        if !sound {
            return None;
        }
        let member = |it: &proto::v1::Member| Member {
            uid: if it.uid.is_empty() { it.name.clone().into_bytes() } else { it.uid.to_vec() },
            name: it.name.clone(),
            zone: it.zone.clone(),
        };
        let layout = view.layout.clone().unwrap_or_default();
        let mut ring = Self {
            id: layout.id.to_vec(),
            depth: layout.depth,
            members: view.members.iter().map(member).collect(),
            n,
            zones_wanted: 0,
            narrow: 0,
            bits,
            slots: table.slots.iter().map(|slot| *slot as usize).collect(),
        };
        ring.count_zones(view.spread as usize);
        Some(ring)
    }

    pub fn partitions(&self) -> usize {
        1 << self.bits
    }

    /// Slots of a partition's replicas, in order.
    pub fn row(&self, partition: usize) -> &[usize] {
        &self.slots[partition * self.n..(partition + 1) * self.n]
    }

    pub fn slot(&self, uid: &[u8]) -> Option<usize> {
        self.members.iter().position(|member| member.uid == uid)
    }

    /// Which copy, from 0 on, the member in `slot` has of each partition; `None`: it has none.
    pub fn orders(&self, slot: usize) -> Vec<Option<usize>> {
        let rows = self.slots.chunks(self.n);
        rows.map(|row| row.iter().position(|holder| *holder == slot)).collect()
    }

    /// With whom the member in `slot` shares how many partitions, the most first.
    pub fn shared_with(&self, slot: usize) -> Vec<(&str, usize)> {
        let mut count = vec![0; self.members.len()];
        for row in self.slots.chunks(self.n).filter(|row| row.contains(&slot)) {
            row.iter().for_each(|holder| count[*holder] += 1);
        }
        let others = count.into_iter().enumerate().filter(|(it, count)| *it != slot && *count > 0);
        let mut shared: Vec<(&str, usize)> =
            others.map(|(it, count)| (self.members[it].name.as_str(), count)).collect();
        shared.sort_by_key(|(_, count)| Reverse(*count));
        shared
    }

    /// First digits of a partition's first and last token: as many as tell it from the next.
    pub fn range(&self, partition: usize) -> (String, String) {
        let digits = self.bits.div_ceil(4).max(4) as usize;
        let shift = 4 * digits as u32 - self.bits;
        let (first, next) = ((partition as u64) << shift, (partition as u64 + 1) << shift);
        (format!("{first:0digits$x}"), format!("{:0digits$x}", next - 1))
    }

    fn count_zones(&mut self, spread: usize) {
        let zones: BTreeSet<&str> = self.members.iter().map(|it| it.zone.as_str()).collect();
        let place = |member: &Member| zones.iter().position(|zone| *zone == member.zone);
        let zone_of: Vec<Option<usize>> = self.members.iter().map(place).collect();
        self.zones_wanted = spread.max(1).min(self.n).min(zones.len());
        let touched = |row: &&[usize]| {
            let first = |at: usize| !row[..at].iter().any(|it| zone_of[*it] == zone_of[row[at]]);
            (0..row.len()).filter(|at| first(*at)).count() < self.zones_wanted
        };
        self.narrow = self.slots.chunks(self.n).filter(touched).count();
    }
}

impl Cluster {
    /// Takes in the layout. One that cannot be read changes nothing: the next is asked for.
    pub fn take_layout(&mut self, view: &LayoutView) {
        self.details.ring = Ring::of(view).or(self.details.ring.take());
    }

    /// Who holds what, as last told; the cluster may have another layout by now.
    pub fn ring(&self) -> Option<&Ring> {
        self.details.ring.as_ref()
    }

    /// The layout that is known is not the one of the last sample.
    pub fn ring_is_old(&self) -> bool {
        let id = self.view.layout.as_ref().map(|layout| &layout.id[..]);
        self.ring().map(|ring| &ring.id[..]) != id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Keyspace, Table};

    fn view(zones: [&str; 4], spread: u32, slots: &[u32]) -> LayoutView {
        let member = |(at, zone): (usize, &str)| proto::v1::Member {
            uid: vec![at as u8].into(),
            name: format!("n{}", at + 1),
            zone: zone.into(),
            ..Default::default()
        };
        LayoutView {
            partition_bits: 2,
            members: zones.into_iter().enumerate().map(member).collect(),
            keyspaces: vec![Keyspace { name: "default".into(), n: 2, ..Default::default() }],
            tables: vec![Table { n: 2, slots: slots.to_vec() }],
            spread,
            ..Default::default()
        }
    }

    #[test]
    fn copies_are_counted_by_order_and_by_whom_they_are_shared_with() {
        let ring = Ring::of(&view(["a", "a", "b", "b"], 2, &[0, 2, 2, 1, 3, 2, 0, 1])).unwrap();
        assert_eq!(ring.orders(2), [Some(1), Some(0), Some(1), None]);
        assert_eq!(ring.shared_with(2), [("n1", 1), ("n2", 1), ("n4", 1)]);
        assert_eq!(ring.range(1), ("4000".into(), "7fff".into()));
        assert_eq!((ring.zones_wanted, ring.narrow), (2, 2), "both in b, and both in a");
    }

    #[test]
    fn a_layout_that_contradicts_itself_is_not_shown() {
        let zones = ["a", "b", "c", "d"];
        assert!(Ring::of(&view(zones, 1, &[0, 1])).is_none(), "too few slots");
        assert!(Ring::of(&view(zones, 1, &[0, 1, 0, 1, 0, 1, 0, 4])).is_none(), "nobody there");
        let many = LayoutView { partition_bits: 40, ..view(zones, 1, &[]) };
        assert!(Ring::of(&many).is_none());
        assert!(Ring::of(&LayoutView::default()).is_none());
    }
}
