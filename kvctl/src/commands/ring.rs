//! `ring show`: who holds what, how much of it is live, and how far behind.

use crate::cli::RingRows;
use crate::commands::lag;
use crate::commands::nodes::{deviation_cell, node_state_cell, percent, state_cell, state_name};
use crate::commands::status::cluster_line;
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope};
use crate::table::{Cell, Table, Tone};
use crate::value::hex;
use proto::v1::{
    self, ClusterView, GetLayoutRequest, GetPartitionsRequest, Keyspace, LayoutView, NodeState,
    PartitionView, PartitionsReply, ReplicaView,
};
use serde::Serialize;

/// Cells of the strip at most; a cell stands for the same number of partitions each.
const STRIP_CELLS: usize = 128;
const STRIP_ROW: usize = 64;

#[derive(Debug, Serialize)]
struct Ring {
    layout: String,
    parents: Vec<String>,
    partition_bits: u32,
    arc_bits: u32,
    keyspace: String,
    n: u32,
    /// Nodes that could not be asked what they keep for others.
    unheard: Vec<String>,
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
    /// In order of preference.
    nodes: Vec<String>,
    live: u32,
    replicas: Vec<Replica>,
}

/// One copy of a partition, and what it lacks. What is not known is null.
#[derive(Debug, Serialize)]
struct Replica {
    node: String,
    state: &'static str,
    /// Null: none is known, which is 0 only with `lag_known`.
    lag_ms: Option<u64>,
    lag_known: bool,
    keys: String,
    bytes: String,
    checked_ms: Option<u64>,
    differing: String,
}

/// Which partitions.
pub(crate) struct Which {
    /// Those this node holds a copy of.
    pub(crate) node: Option<String>,
    /// Those with a copy that lacks something, or may.
    pub(crate) lagging: bool,
}

pub(crate) async fn show(
    settings: &Settings,
    connection: &Connection,
    by: RingRows,
    which: Which,
) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let layout = layout(connection).await?;
    let keyspace = &keyspace(&layout, &settings.keyspace)?.name;
    let reply = partitions(connection, keyspace, which.node.as_deref()).await?;
    let behind = |replica: &ReplicaView| replica.since_ms > 0 || !replica.known;
    let listed = |p: &&PartitionView| !which.lagging || p.replicas.iter().any(behind);
    let listed: Vec<PartitionView> = reply.partitions.iter().filter(listed).cloned().collect();
    let reply = PartitionsReply { partitions: listed, ..reply };
    let ring = ring(&view, &layout, &reply)?;
    let answer = Answer {
        heading: heading(settings, &view, &ring),
        table: match by {
            RingRows::Partition => partition_table(settings, &reply),
            RingRows::Node => owner_table(settings, &view, &ring),
        },
        names: match by {
            RingRows::Partition => {
                ring.partitions.iter().map(|p| p.partition.to_string()).collect()
            }
            RingRows::Node => ring.nodes.iter().map(|owner| owner.node.clone()).collect(),
        },
        envelope: &Envelope::of_view("kvctl.ring.show/v1", &view, ring),
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

/// The whole layout.
pub(super) async fn layout(connection: &Connection) -> Result<LayoutView, Failure> {
    connection
        .call("reading the layout", Kind::Read, |client, budget| {
            let request = timed(GetLayoutRequest {}, budget);
            async move { client.admin().get_layout(request).await }
        })
        .await
}

/// Every partition of a keyspace, or only those a node holds a copy of.
pub(super) async fn partitions(
    connection: &Connection,
    keyspace: &str,
    node: Option<&str>,
) -> Result<PartitionsReply, Failure> {
    let (keyspace, node) = (keyspace.to_owned(), node.unwrap_or_default().to_owned());
    let request = GetPartitionsRequest { keyspace, node };
    connection
        .call("asking who holds what", Kind::Read, |client, budget| {
            let request = timed(request.clone(), budget);
            async move { client.admin().get_partitions(request).await }
        })
        .await
}

fn ring(view: &ClusterView, layout: &LayoutView, reply: &PartitionsReply) -> Result<Ring, Failure> {
    let keyspace = keyspace(layout, &reply.keyspace)?;
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
    // Fair shares are served for the keyspace "default" only.
    let served = keyspace.n == default_n(view) || keyspace.name == "default";
    let partition = |seen: &PartitionView| Partition {
        partition: seen.partition,
        range_start: hex(&seen.range_start),
        range_end: hex(&seen.range_end),
        nodes: seen.replicas.iter().map(|replica| replica.node.clone()).collect(),
        live: seen.live,
        replicas: seen.replicas.iter().map(|it| Replica::of(it, reply.observed_at_ms)).collect(),
    };
    Ok(Ring {
        layout: layout.layout.as_ref().map(|layout| hex(&layout.id)).unwrap_or_default(),
        parents: layout.parents.iter().map(|parent| hex(parent)).collect(),
        partition_bits: bits,
        arc_bits: reply.arc_bits,
        keyspace: keyspace.name.clone(),
        n: keyspace.n,
        unheard: reply.unheard.clone(),
        nodes: owners(view, layout, table, served),
        partitions: reply.partitions.iter().map(partition).collect(),
    })
}

impl Replica {
    fn of(seen: &ReplicaView, now_ms: u64) -> Self {
        let age = |at: u64| (at > 0).then(|| now_ms.saturating_sub(at));
        Self {
            node: seen.node.clone(),
            state: state_name(seen.state()),
            lag_ms: lag::millis(seen.since_ms, seen.known, now_ms),
            lag_known: seen.known,
            keys: seen.keys.to_string(),
            bytes: seen.bytes.to_string(),
            checked_ms: age(seen.checked_at_ms),
            differing: seen.differing.to_string(),
        }
    }
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
    let bits = ring.partition_bits;
    if bits > ring.arc_bits {
        text += &format!(
            "lag is counted in {} arcs of {} partitions each\n",
            1_u64 << ring.arc_bits.min(63),
            1_u64 << (bits - ring.arc_bits).min(63)
        );
    }
    if !ring.unheard.is_empty() {
        let names = ring.unheard.join(", ");
        text += &format!("not heard: {names}; what they keep for others is not in LAG\n");
    }
    if ring.partitions.len() < 1 << bits.min(20) {
        return text; // the strip is of the whole ring
    }
    let live: Vec<u8> =
        ring.partitions.iter().map(|p| u8::try_from(p.live).unwrap_or(u8::MAX)).collect();
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
            seen.map_or_else(
                || state_cell(settings, NodeState::Unknown),
                |seen| node_state_cell(settings, seen),
            ),
            owner.copies.to_string().into(),
            owner.first.to_string().into(),
            percent(owner.share_ratio).into(),
            owner.fair_ratio.map_or_else(dash, percent).into(),
            deviation_cell(settings, owner.share_ratio, owner.fair_ratio.unwrap_or_default()),
        ]);
    }
    table
}

fn partition_table(settings: &Settings, reply: &PartitionsReply) -> Table {
    let mut table = Table::new(&["PART", "TOKENS", "REPLICAS", "LIVE", "LAG", "CHECKED"]);
    for seen in &reply.partitions {
        let wanted = reply.n.max(seen.live);
        let live = format!("{}/{wanted}", seen.live);
        let tone = match wanted - seen.live {
            0 => Tone::Plain,
            1 => Tone::Warning,
            _ => Tone::Alarm,
        };
        let down = seen.live < wanted;
        table.row(vec![
            format!("#{}", seen.partition).into(),
            tokens(settings, seen, reply.partition_bits).into(),
            Cell::toned(replicas(settings, seen), if down { tone } else { Tone::Plain }),
            Cell::toned(live, tone),
            worst_lag(seen, reply.observed_at_ms),
            lag::age_cell(oldest_check(seen), reply.observed_at_ms),
        ]);
    }
    table
}

/// `2900…–29ff…`: as many digits as tell the partitions apart, and two more.
fn tokens(settings: &Settings, seen: &PartitionView, bits: u32) -> String {
    let digits = bits.div_ceil(4) as usize + 2;
    let head = |token: &[u8]| hex(token).chars().take(digits).collect::<String>();
    let (first, last) = (head(&seen.range_start), head(&seen.range_end));
    if settings.ascii { format!("{first}..-{last}..") } else { format!("{first}…–{last}…") }
}

/// Names in order, with a sign behind those that are not up.
fn replicas(settings: &Settings, seen: &PartitionView) -> String {
    let [down, suspect] = if settings.ascii { ["X", "!"] } else { ["✖", "▲"] };
    let names = seen.replicas.iter().map(|replica| match replica.state() {
        NodeState::Up => replica.node.clone(),
        NodeState::Down => format!("{}{down}", replica.node),
        NodeState::Suspect => format!("{}{suspect}", replica.node),
        NodeState::Unknown | NodeState::Unspecified => format!("{}?", replica.node),
    });
    names.collect::<Vec<_>>().join(" ")
}

/// `n2 3m12s`: the replica that is the furthest behind; one that may be comes before one that is
/// not.
fn worst_lag(seen: &PartitionView, now_ms: u64) -> Cell {
    let age = |replica: &&ReplicaView| match replica.since_ms {
        0 => u64::from(!replica.known),
        since => now_ms.saturating_sub(since).saturating_add(2),
    };
    let Some(worst) = seen.replicas.iter().max_by_key(age) else { return "?".into() };
    let cell = lag::cell(worst.since_ms, worst.known, now_ms);
    if age(&worst) == 0 { cell } else { cell.after(&worst.node) }
}

fn oldest_check(seen: &PartitionView) -> u64 {
    // One that is not known makes the whole unknown, and 0 is the least.
    seen.replicas.iter().map(|replica| replica.checked_at_ms).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;
    use proto::token::Token;
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

    fn reply(partitions: Vec<PartitionView>) -> PartitionsReply {
        PartitionsReply {
            keyspace: "default".into(),
            n: 2,
            partition_bits: 1,
            arc_bits: 10,
            observed_at_ms: 200_000,
            partitions,
            ..Default::default()
        }
    }

    fn partition(partition: u32, replicas: [ReplicaView; 2]) -> PartitionView {
        let (first, last) = Token::range(partition, 1);
        let up = replicas.iter().filter(|replica| replica.state() == NodeState::Up);
        PartitionView {
            partition,
            range_start: first.to_bytes().to_vec().into(),
            range_end: last.to_bytes().to_vec().into(),
            live: up.count() as u32,
            replicas: replicas.into(),
        }
    }

    fn replica(node: &str, state: NodeState, since_ms: u64, known: bool) -> ReplicaView {
        let (node, state) = (node.into(), state.into());
        ReplicaView { node, state, since_ms, known, checked_at_ms: 140_000, ..Default::default() }
    }

    #[test]
    fn copies_are_counted_and_partitions_named() {
        let up = |node| replica(node, NodeState::Up, 0, true);
        let reply =
            reply(vec![partition(0, [up("n1"), up("n2")]), partition(1, [up("n3"), up("n1")])]);
        let ring = ring(&ClusterView::default(), &layout(), &reply).unwrap();
        let counted: Vec<_> = ring.nodes.iter().map(|o| (o.copies, o.first)).collect();
        assert_eq!(counted, [(2, 1), (1, 0), (1, 1)]);
        assert_eq!(ring.partitions[1].nodes, ["n3", "n1"]);
        assert_eq!(ring.partitions[1].range_start, format!("8{}", "0".repeat(31)));
    }

    #[test]
    fn the_worst_replica_is_named_and_what_is_not_known_is_never_0() {
        let settings = Settings::resolve(&Global::default(), &|_| None).unwrap();
        let (up, down) = (NodeState::Up, NodeState::Down);
        let mut rows = vec![
            partition(0, [replica("n1", up, 0, true), replica("n2", down, 8_000, true)]),
            partition(0, [replica("n1", up, 0, false), replica("n2", down, 8_000, false)]),
            partition(1, [replica("n1", up, 0, true), replica("n3", up, 0, false)]),
            partition(1, [replica("n1", up, 0, true), replica("n3", up, 0, true)]),
        ];
        rows[3].replicas[0].checked_at_ms = 0;
        let table = partition_table(&settings, &reply(rows)).tsv();
        let lines: Vec<&str> = table.lines().skip(1).collect();
        assert_eq!(lines[0], "#0\t000…–7ff…\tn1 n2✖\t1/2\tn2 3m12s\t1m00s");
        assert!(lines[1].contains("\tn2 3m12s or more\t"), "{}", lines[1]);
        assert_eq!(lines[2], "#1\t800…–fff…\tn1 n3\t2/2\tn3 ?\t1m00s");
        assert_eq!(lines[3], "#1\t800…–fff…\tn1 n3\t2/2\t0\t?");
    }

    #[test]
    fn a_layout_that_contradicts_itself_is_refused() {
        let mut layout = layout();
        layout.tables[0].slots[3] = 9;
        let failure = ring(&ClusterView::default(), &layout, &reply(Vec::new())).unwrap_err();
        assert_eq!(failure.exit, Exit::Internal);
    }
}
