//! `ring show`: who holds what, and how much of it is live.

use crate::commands::nodes::{deviation_cell, percent, state_cell};
use crate::commands::status::cluster_line;
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope, Format};
use crate::table::Table;
use crate::value::hex;
use proto::token::Token;
use proto::v1::{self, ClusterView, GetLayoutRequest, Keyspace, LayoutView};
use serde::Serialize;

/// Cells of the strip at most; a cell stands for the same number of partitions each.
const STRIP_CELLS: usize = 128;
const STRIP_ROW: usize = 64;

#[derive(Debug, Serialize)]
struct Ring {
    layout: String,
    parents: Vec<String>,
    partition_bits: u32,
    keyspace: String,
    n: u32,
    nodes: Vec<Owner>,
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
struct Owner {
    node: String,
    zone: String,
    weight: u32,
    copies: u32,
    first: u32,
    share_ratio: f64,
    fair_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Partition {
    partition: u32,
    range_start: String,
    range_end: String,
    nodes: Vec<String>,
    live: Option<u8>,
}

pub(crate) async fn show(settings: &Settings, connection: &Connection) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let layout = connection
        .call("reading the layout", Kind::Read, |client, budget| {
            let request = timed(GetLayoutRequest {}, budget);
            async move { client.admin().get_layout(request).await }
        })
        .await?;
    let ring = ring(settings, &view, &layout)?;
    let heading = heading(settings, &view, &ring);
    let partitions = matches!(settings.format, Format::Wide | Format::Tsv);
    let answer = Answer {
        table: if partitions {
            partition_table(&ring)
        } else {
            owner_table(settings, &view, &ring)
        },
        names: ring.nodes.iter().map(|owner| owner.node.clone()).collect(),
        envelope: &Envelope::of_view("kvctl.ring.show/v1", &view, ring),
        heading,
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

fn ring(settings: &Settings, view: &ClusterView, layout: &LayoutView) -> Result<Ring, Failure> {
    let keyspace = keyspace(layout, &settings.keyspace)?;
    let damaged = || Failure::internal("the layout that came contradicts itself");
    let table = layout.tables.iter().find(|table| table.n == keyspace.n).ok_or_else(damaged)?;
    let bits = layout.partition_bits;
    let rows =
        1_usize.checked_shl(bits).filter(|_| (1..=20).contains(&bits)).ok_or_else(damaged)?;
    let sound = table.slots.len() == rows * keyspace.n as usize
        && keyspace.n > 0
        && table.slots.iter().all(|slot| (*slot as usize) < layout.members.len());
    if !sound {
        return Err(damaged());
    }
    // Live copies and fair shares are served for the keyspace "default" only.
    let served = keyspace.n == default_n(view) || keyspace.name == "default";
    let live =
        |partition: usize| served.then(|| view.live_copies.get(partition).copied()).flatten();
    let partitions = table.slots.chunks(keyspace.n as usize).enumerate().map(|(at, slots)| {
        let (first, last) = Token::range(at as u32, bits);
        Partition {
            partition: at as u32,
            range_start: first.to_string(),
            range_end: last.to_string(),
            nodes: slots.iter().map(|slot| layout.members[*slot as usize].name.clone()).collect(),
            live: live(at),
        }
    });
    Ok(Ring {
        layout: layout.layout.as_ref().map(|layout| hex(&layout.id)).unwrap_or_default(),
        parents: layout.parents.iter().map(|parent| hex(parent)).collect(),
        partition_bits: bits,
        keyspace: keyspace.name.clone(),
        n: keyspace.n,
        nodes: owners(view, layout, table, served),
        partitions: partitions.collect(),
    })
}

fn keyspace<'a>(layout: &'a LayoutView, name: &str) -> Result<&'a Keyspace, Failure> {
    let found = layout.keyspaces.iter().find(|keyspace| keyspace.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = layout.keyspaces.iter().map(|k| k.name.as_str()).collect();
        let what = format!("there is no keyspace {name}");
        Failure::new(Exit::NotFound, "KEYSPACE_UNKNOWN", what)
            .why(format!("the layout has: {}", known.join(", ")))
    })
}

fn default_n(view: &ClusterView) -> u32 {
    let keyspaces = view.keyspaces.iter().filter_map(|view| view.keyspace.as_ref());
    let mut default = keyspaces.filter(|keyspace| keyspace.name == "default");
    default.next().map_or(0, |keyspace| keyspace.n)
}

fn owners(view: &ClusterView, layout: &LayoutView, table: &v1::Table, served: bool) -> Vec<Owner> {
    let (mut copies, mut first) = (vec![0; layout.members.len()], vec![0; layout.members.len()]);
    for (position, slot) in table.slots.iter().enumerate() {
        copies[*slot as usize] += 1;
        first[*slot as usize] += u32::from(position % table.n as usize == 0);
    }
    let fair = |name: &str| {
        let node = view.nodes.iter().find(|node| node.name == name);
        node.filter(|_| served).map(|node| node.fair_ratio)
    };
    let all = table.slots.len() as f64;
    let owner = |(slot, member): (usize, &v1::Member)| Owner {
        node: member.name.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        copies: copies[slot],
        first: first[slot],
        share_ratio: f64::from(copies[slot]) / all,
        fair_ratio: fair(&member.name),
    };
    let mut owners: Vec<Owner> = layout.members.iter().enumerate().map(owner).collect();
    owners.sort_by(|a, b| a.node.cmp(&b.node));
    owners
}

fn heading(settings: &Settings, view: &ClusterView, ring: &Ring) -> String {
    let mut text = cluster_line(view);
    text += &format!(
        "layout {}  {} partitions  keyspace {} N={}\n",
        ring.layout.get(..8).unwrap_or(&ring.layout),
        ring.partitions.len(),
        ring.keyspace,
        ring.n,
    );
    let live: Option<Vec<u8>> = ring.partitions.iter().map(|partition| partition.live).collect();
    let Some(live) = live else {
        return text + "live copies  ? (known for keyspace default only)\n";
    };
    let cells = strip(&live, ring.n, signs(settings.ascii));
    let per_cell = live.len().div_ceil(STRIP_CELLS);
    for (row, cells) in cells.chunks(STRIP_ROW).enumerate() {
        let first = row * STRIP_ROW * per_cell;
        text += &format!("  #{first:<6} {}\n", cells.iter().collect::<String>());
    }
    let [all, one, more, none] = signs(settings.ascii);
    text += &format!(
        "  {all} {n}/{n} live  {one} one missing  {more} more missing  {none} none live",
        n = ring.n
    );
    if per_cell > 1 {
        text += &format!("; worst of {per_cell} partitions a cell");
    }
    text + "\n"
}

fn signs(ascii: bool) -> [char; 4] {
    if ascii { ['.', 'o', '!', 'X'] } else { ['·', 'o', '!', '✖'] }
}

/// A sign for each cell: of all N live, one missing, more missing, none live the worst that any of
/// its partitions has.
fn strip(live: &[u8], n: u32, signs: [char; 4]) -> Vec<char> {
    let per_cell = live.len().div_ceil(STRIP_CELLS).max(1);
    let worst = |cell: &[u8]| cell.iter().copied().min().unwrap_or_default();
    let sign = |live: u8| match (n.saturating_sub(u32::from(live)), live) {
        (0, _) => signs[0],
        (_, 0) => signs[3],
        (1, _) => signs[1],
        _ => signs[2],
    };
    live.chunks(per_cell).map(|cell| sign(worst(cell))).collect()
}

fn owner_table(settings: &Settings, view: &ClusterView, ring: &Ring) -> Table {
    let mut table =
        Table::new(&["NODE", "ZONE", "WEIGHT", "STATE", "COPIES", "FIRST", "SHARE", "FAIR", "DEV"]);
    for owner in &ring.nodes {
        let seen = view.nodes.iter().find(|node| node.name == owner.node);
        let dash = || "-".to_owned();
        table.row(vec![
            owner.node.clone().into(),
            owner.zone.clone().into(),
            owner.weight.to_string().into(),
            state_cell(settings, seen.map(v1::NodeView::state).unwrap_or_default()),
            owner.copies.to_string().into(),
            owner.first.to_string().into(),
            percent(owner.share_ratio).into(),
            owner.fair_ratio.map_or_else(dash, percent).into(),
            deviation_cell(settings, owner.share_ratio, owner.fair_ratio.unwrap_or_default()),
        ]);
    }
    table
}

fn partition_table(ring: &Ring) -> Table {
    let mut table = Table::new(&["PARTITION", "RANGE START", "RANGE END", "LIVE", "NODES"]);
    for partition in &ring.partitions {
        let live = partition.live.map_or_else(|| "?".to_owned(), |live| live.to_string());
        table.row(vec![
            partition.partition.to_string().into(),
            partition.range_start.clone().into(),
            partition.range_end.clone().into(),
            live.into(),
            partition.nodes.join(",").into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;
    use proto::v1::{LayoutRef, Member};

    #[test]
    fn a_cell_shows_the_worst_of_its_partitions() {
        let signs = signs(true);
        assert_eq!(strip(&[3, 2, 1, 0], 3, signs), ['.', 'o', '!', 'X']);
        assert_eq!(strip(&[1, 0], 1, signs), ['.', 'X']);
        let mut live = vec![3; 256];
        live[3] = 1;
        let cells = strip(&live, 3, signs);
        assert_eq!((cells.len(), cells[0], cells[1]), (128, '.', '!'));
    }

    fn layout() -> LayoutView {
        let member = |name: &str| Member { name: name.into(), ..Default::default() };
        LayoutView {
            layout: Some(LayoutRef::default()),
            partition_bits: 1,
            members: vec![member("n1"), member("n2"), member("n3")],
            keyspaces: vec![Keyspace { name: "default".into(), n: 2, ..Default::default() }],
            tables: vec![v1::Table { n: 2, slots: vec![0, 1, 2, 0] }],
            ..Default::default()
        }
    }

    #[test]
    fn copies_are_counted_and_partitions_named() {
        let settings = Settings::resolve(&Global::default(), &|_| None).unwrap();
        let ring = ring(&settings, &ClusterView::default(), &layout()).unwrap();
        let counted: Vec<_> = ring.nodes.iter().map(|o| (o.copies, o.first)).collect();
        assert_eq!(counted, [(2, 1), (1, 0), (1, 1)]);
        assert_eq!(ring.partitions[1].nodes, ["n3", "n1"]);
        assert_eq!(ring.partitions[1].range_start, format!("8{}", "0".repeat(31)));
    }

    #[test]
    fn a_layout_that_contradicts_itself_is_refused() {
        let settings = Settings::resolve(&Global::default(), &|_| None).unwrap();
        let mut layout = layout();
        layout.tables[0].slots[3] = 9;
        let failure = ring(&settings, &ClusterView::default(), &layout).unwrap_err();
        assert_eq!(failure.exit, Exit::Internal);
    }
}
