//! Operations: plans that were applied, and how far they are. Every node reckons that from what it
//! knows of the layouts, and asks the members how their copies come along.

use super::errors::{self, Failure};
use super::plans::note_in;
use super::{Cluster, Node, documents, membership, moves, survey, view};
use crate::clock;
use crate::dynamo::history::{Config, History};
use crate::dynamo::layout::Layout;
use crate::dynamo::node::{LayoutId, Uid};
use proto::v1::{
    LayoutRef, Level, MoveNode, MovePair, MovesCall, Moving, NodeMoves, Note, Op, OpState,
    OpSummary, OpsAction, OpsReply, OpsRequest, Stuck, answer, call,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nothing got on for so long: somebody should look.
const ATTENTION_AFTER_MS: u64 = 60_000;

/// The name of the operation that made this layout.
pub fn name_of(id: LayoutId) -> String {
    let hex: String = id.to_bytes()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("op-{hex}")
}

/// What is known of the operation of this name, or of its caller's name for it.
pub fn note(node: &Node, name: &str) -> Result<Option<(LayoutId, Note)>, Failure> {
    let cluster = node.cluster()?;
    let mut all = all_notes(&cluster.history);
    let is_one = |(id, note): &(LayoutId, Note)| name_of(*id) == name || note.op_id == name;
    let found = all.iter().position(is_one);
    Ok(found.map(|at| all.swap_remove(at)))
}

fn all_notes(history: &History) -> Vec<(LayoutId, Note)> {
    let open = history.layouts().iter();
    let open = open.filter_map(|layout| Some((layout.id(), note_in(layout)?)));
    let past = history.settled().values().flat_map(|settled| &settled.past);
    let past = past.filter(|past| !past.note.is_empty());
    let past = past.map(|past| (past.id, documents::note_of(&past.note)));
    open.chain(past).collect()
}

/// The operation of this name, if it is known.
pub async fn find(node: &Arc<Node>, name: &str) -> Result<Option<Op>, Failure> {
    let reply = list(node, name).await?;
    Ok(reply.ops.into_iter().next())
}

/// Says how operations are going, or has all of them go otherwise.
pub async fn handle(node: &Arc<Node>, request: OpsRequest) -> Result<OpsReply, Failure> {
    if !request.op.is_empty() && note(node, &request.op)?.is_none() {
        return Err(errors::op_unknown(&request.op));
    }
    let (paused, rate) = match request.action() {
        OpsAction::Unspecified | OpsAction::List => (None, None),
        OpsAction::Pause => (Some(true), None),
        OpsAction::Resume => (Some(false), None),
        OpsAction::Throttle => (None, Some(request.bytes_per_second.unwrap_or(0))),
    };
    if paused.is_some() || rate.is_some() {
        membership::grow(node, |history| Ok(Some(history.with_control(paused, rate)))).await?;
        membership::tell_all(node).await;
        let text = match (paused, rate) {
            (Some(true), _) => "moves are paused".to_owned(),
            (Some(false), _) => "moves go on".to_owned(),
            (_, Some(0)) => "moves have no bound".to_owned(),
            (_, rate) => format!("moves go at {} bytes a second", rate.unwrap_or(0)),
        };
        node.events.add(Level::Ok, text);
    }
    list(node, &request.op).await
}

async fn list(node: &Arc<Node>, name: &str) -> Result<OpsReply, Failure> {
    let cluster = node.cluster()?;
    let history = Arc::clone(&cluster.history);
    let reckoned = tokio::task::spawn_blocking(move || reckon(&history));
    let reckoned = reckoned.await.map_err(|_| errors::internal("reckoning operations failed"))?;
    let surveyed = match cluster.history.is_settled() {
        true => Vec::new(),
        false => ask_all(node, &cluster).await,
    };
    let mut ops: Vec<Op> = Vec::new();
    let cancelled: BTreeSet<String> =
        all_notes(&cluster.history).into_iter().map(|(_, note)| note.cancels).collect();
    for (layout, counts) in cluster.history.layouts().iter().zip(&reckoned) {
        let Some(note) = note_in(layout) else { continue };
        let mut op = begin(node, (layout.id(), layout.depth()), &note, &cancelled);
        running(&cluster, layout, counts, &surveyed, &mut op);
        ops.push(op);
    }
    for (id, settled) in cluster.history.settled() {
        for past in settled.past.iter().filter(|past| !past.note.is_empty()) {
            let note = documents::note_of(&past.note);
            let mut op = begin(node, (past.id, past.depth), &note, &cancelled);
            op.ended_at_ms = past.ended_at_ms;
            ops.push(op);
        }
        // Its own is done too.
        let name = name_of(*id);
        for op in ops.iter_mut().filter(|op| op.id == name) {
            op.ended_at_ms = settled.at_ms.max(op.at_ms);
            if op.state() != OpState::Cancelled {
                op.set_state(OpState::Done);
            }
            (op.eta_ms, op.needs_attention) = (0, false);
        }
    }
    ops.sort_by_key(|op| {
        (std::cmp::Reverse(op.layout.as_ref().map(|it| it.depth)), std::cmp::Reverse(op.at_ms))
    });
    ops.dedup_by(|a, b| a.id == b.id);
    if !name.is_empty() {
        ops.retain(|op| op.id == name || op.op_id == name);
    }
    Ok(OpsReply {
        ops,
        viewpoint: node.name(),
        observed_at_ms: clock::now_ms(),
        layout: Some(view::layout_ref(&cluster.layout)),
    })
}

fn begin(
    node: &Node,
    (id, depth): (LayoutId, u64),
    note: &Note,
    cancelled: &BTreeSet<String>,
) -> Op {
    let is_cancelled = cancelled.contains(&name_of(id));
    let state = if is_cancelled { OpState::Cancelled } else { OpState::Done };
    Op {
        id: name_of(id),
        op_id: note.op_id.clone(),
        by: note.by.clone(),
        at_ms: note.at_ms,
        lines: note.lines.clone(),
        state: state.into(),
        layout: Some(LayoutRef { id: id.to_bytes().to_vec().into(), depth }),
        throttle: moves::rate_in_force(node),
        ..Op::default()
    }
}

/// What is known of the configs that one layout begins.
#[derive(Clone, Debug, Default)]
struct Counts {
    transitions: u64,
    flipped: u64,
    closed: u64,
    copies: u64,
    copies_done: u64,
    /// Copies that a node gets, and of those, that it has; by keyspace and partition.
    by_node: BTreeMap<Uid, (u64, u64)>,
    settled: bool,
}

fn reckon(history: &History) -> Vec<Counts> {
    let mut all = vec![Counts::default(); history.layouts().len()];
    let at = |id: LayoutId| history.layouts().iter().position(|layout| layout.id() == id);
    history.each_open(|_, _, configs| {
        for config in configs.iter().filter(|config| !config.is_initial()) {
            let Some(counts) = at(config.origin).map(|at| &mut all[at]) else { continue };
            count(config, configs, counts);
        }
    });
    for counts in &mut all {
        counts.settled = counts.closed == counts.transitions && counts.copies_done == counts.copies;
    }
    all
}

fn count(config: &Config, configs: &[Config], counts: &mut Counts) {
    let below: Vec<&Config> =
        configs.iter().filter(|other| other.is_below(config, configs)).collect();
    counts.transitions += 1;
    counts.flipped += u64::from(config.flipped);
    counts.closed += u64::from(below.iter().all(|below| below.certified));
    for uid in config.members.iter().filter(|uid| !config.lost.contains(uid)) {
        if below.iter().any(|below| below.members.contains(uid)) {
            continue;
        }
        // Of one that another has outdone nothing more is fetched.
        let done = config.synced.contains(uid) || config.certified;
        let (all, there) = counts.by_node.entry(*uid).or_default();
        (*all, *there) = (*all + 1, *there + u64::from(done));
        counts.copies += 1;
        counts.copies_done += u64::from(done);
    }
}

async fn ask_all(node: &Arc<Node>, cluster: &Cluster) -> Vec<(String, Result<NodeMoves, String>)> {
    let understand = |answer| match answer {
        answer::Body::Moves(moves) => Some(moves),
        _ => None,
    };
    let body = call::Body::Moves(MovesCall {});
    let answers = survey::ask_parties(node, cluster, body, || moves::here(node), understand);
    answers.await
}

/// Fills in how far an operation under way is.
fn running(
    cluster: &Cluster,
    layout: &Layout,
    counts: &Counts,
    surveyed: &[(String, Result<NodeMoves, String>)],
    op: &mut Op,
) {
    (op.copies_total, op.copies_done) = (counts.copies, counts.copies_done);
    op.transitions_total = counts.transitions;
    (op.transitions_flipped, op.transitions_closed) = (counts.flipped, counts.closed);
    if op.state() == OpState::Cancelled {
        return;
    }
    let is_done = counts.settled && layout.id() != cluster.layout.id();
    let state = match cluster.history.control().paused {
        _ if is_done => OpState::Done,
        true => OpState::Paused,
        false => OpState::Running,
    };
    op.set_state(state);
    if is_done {
        return;
    }
    let heard = || surveyed.iter().filter_map(|(_, moves)| moves.as_ref().ok());
    op.unheard =
        surveyed.iter().filter(|(_, moves)| moves.is_err()).map(|(name, _)| name.clone()).collect();
    op.bytes_per_second = heard().map(|moves| moves.bytes_per_second).sum();
    op.bytes_done = heard().flat_map(|it| &it.moves).map(|it| it.bytes_done).sum();
    let begun = heard().flat_map(|it| &it.moves).filter(|it| it.progress_ratio > 0.0);
    let (whole, copies) = begun.fold((0.0, 0.0), |(bytes, copies), it| {
        (bytes + it.bytes_done as f64, copies + it.progress_ratio)
    });
    let bytes_per_copy = if copies > 0.0 { whole / copies } else { 0.0 };
    let total = |copies: u64, done: u64| done.max((bytes_per_copy * copies as f64) as u64);
    op.bytes_total = total(counts.copies, op.bytes_done);
    op.eta_ms = eta_ms(op.bytes_total - op.bytes_done, op.bytes_per_second);
    op.pairs = pairs(cluster, heard());
    for pair in &mut op.pairs {
        pair.bytes_total = total(pair.copies_total, pair.bytes_done);
        pair.eta_ms = eta_ms(pair.bytes_total - pair.bytes_done, pair.bytes_per_second);
    }
    op.stuck = heard().flat_map(|moves| moves.stuck.clone()).collect();
    dedup(&mut op.stuck);
    op.nodes = nodes(cluster, layout, counts);
    let moved_at = heard().map(|it| it.moved_at_ms).max().unwrap_or(0).max(op.at_ms);
    op.needs_attention =
        !op.stuck.is_empty() && clock::now_ms().saturating_sub(moved_at) > ATTENTION_AFTER_MS;
}

/// How long this many bytes take; 0: nobody knows.
fn eta_ms(bytes: u64, per_second: u64) -> u64 {
    bytes.saturating_mul(1000).checked_div(per_second).unwrap_or(0)
}

/// Every node says of one that is down that it is.
fn dedup(stuck: &mut Vec<Stuck>) {
    let mut seen = BTreeSet::new();
    stuck.retain(|it| {
        seen.insert((it.node.clone(), it.from.clone(), it.step.clone(), it.why.clone()))
    });
}

fn pairs<'a>(cluster: &Cluster, heard: impl Iterator<Item = &'a NodeMoves>) -> Vec<MovePair> {
    let mut pairs: BTreeMap<(String, String), MovePair> = BTreeMap::new();
    let name = |uid: &[u8]| Uid::from_slice(uid).map(|uid| cluster.name_of(uid));
    for moves in heard {
        for it in &moves.moves {
            let (from, to) = (name(&it.from_uid).unwrap_or_default(), moves.node.clone());
            let pair = pairs.entry((from.clone(), to.clone())).or_insert_with(|| MovePair {
                from,
                to,
                ..MovePair::default()
            });
            pair.copies_total += 1;
            pair.copies_done += u64::from(it.done);
            pair.bytes_done += it.bytes_done;
            if !it.why.is_empty() {
                pair.why.clone_from(&it.why);
            }
            if it.begun && !it.done {
                pair.moving.push(Moving {
                    keyspace: it.keyspace.clone(),
                    partition: it.partition,
                    bytes_done: it.bytes_done,
                    progress_ratio: it.progress_ratio,
                    state: it.state.clone(),
                });
            }
        }
        for rate in &moves.rates {
            let from = name(&rate.from_uid).unwrap_or_default();
            if let Some(pair) = pairs.get_mut(&(from, moves.node.clone())) {
                pair.bytes_per_second = rate.bytes_per_second;
            }
        }
    }
    pairs.into_values().collect()
}

fn nodes(cluster: &Cluster, layout: &Layout, counts: &Counts) -> Vec<MoveNode> {
    let parent = layout.parents().first();
    let before =
        parent.and_then(|id| cluster.history.layouts().iter().find(|layout| layout.id() == *id));
    let share = |layout: &Layout, uid: Uid| -> f64 {
        let Some(slot) = layout.slot(uid) else { return 0.0 };
        let copies: u32 =
            layout.tables().keys().map(|n| layout.copies(*n)[usize::from(slot)]).sum();
        let total: usize =
            layout.tables().values().map(|it| it.partitions() * usize::from(it.n())).sum();
        f64::from(copies) / total as f64
    };
    // Of one that ended long ago nobody knows how it was before.
    let Some(before) = before else { return Vec::new() };
    let mut nodes: Vec<MoveNode> = Vec::new();
    for member in cluster.history.members() {
        let uid = member.uid;
        let (was, will) = (share(before, uid), share(layout, uid));
        let (all, there) = counts.by_node.get(&uid).copied().unwrap_or((0, 0));
        let done = if counts.transitions == 0 {
            1.0
        } else {
            counts.closed as f64 / counts.transitions as f64
        };
        let got = if all == 0 { done } else { there as f64 / all as f64 };
        nodes.push(MoveNode {
            node: member.name,
            share_before: was,
            share_now: was + (will - was) * got,
            share_after: will,
            waiting: all - there,
        });
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    nodes
}

/// What is under way, shortly: what every view of the cluster tells.
pub fn summaries(cluster: &Cluster) -> Vec<OpSummary> {
    if cluster.history.is_settled() {
        return Vec::new();
    }
    let paused = cluster.history.control().paused;
    let reckoned = reckon(&cluster.history);
    let mut all = Vec::new();
    for (layout, counts) in cluster.history.layouts().iter().zip(reckoned) {
        let is_done = counts.settled && layout.id() != cluster.layout.id();
        let settled = cluster.history.settled().contains_key(&layout.id());
        let Some(note) = note_in(layout).filter(|_| !is_done && !settled) else { continue };
        all.push(OpSummary {
            id: name_of(layout.id()),
            line: note.lines.first().cloned().unwrap_or_default(),
            at_ms: note.at_ms,
            copies_total: counts.copies,
            copies_done: counts.copies_done,
            paused,
            more_lines: note.lines.len().saturating_sub(1) as u32,
        });
    }
    all
}
