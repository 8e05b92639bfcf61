//! Plans: what changes would do, in a document, and making them if that is still what they do.
//!
//! A plan is kept by whoever asked for it. It names the layout it starts from and, by its digest,
//! the layout it leads to; so it is applied as it was shown or not at all.

use super::errors::{self, Failure};
use super::{Cluster, Node, documents, membership, moves, ops, safety, view};
use crate::clock;
use crate::dynamo::history::History;
use crate::dynamo::layout::{Change, Keyspace, Layout, Member, Mode, Removed, Table};
use crate::dynamo::node::{LayoutId, Uid};
use crate::dynamo::plan::fullest_ppm;
use crate::dynamo::safety::{Loss, least_copies, least_copies_after, loss};
use prost::Message;
use proto::v1::{
    self, ApplyPlanRequest, Level, MakePlanRequest, NewMember, Note, Op, Plan, PlanLoss, PlanNode,
    RemoveNode, ReplaceNode, SetKeyspace, SetNode, change,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Changes in one plan, at most.
const CHANGES_MAX: usize = 1024;

/// Above this a plan says how full a disk would be.
const DISK_HIGH_RATIO: f64 = 0.85;

/// Changing sets of replicas takes at least so long.
const TRANSITION_SECONDS: u64 = 5;

const FORCE_DATA_LOSS: &str = "data-loss";
const FORCE_MINORITY: &str = "minority";

/// Changes understood: what to do, in words, and how it is undone.
#[derive(Default)]
struct Intent {
    changes: Vec<Change>,
    lines: Vec<String>,
    undo: Vec<v1::Change>,
    /// Of nodes that come, their disks.
    disks: BTreeMap<Uid, membership::Disk>,
    /// Nodes that go without giving anything away.
    dead: Vec<Uid>,
    /// The operation under way that is changed back, and tables from before it.
    cancels: String,
    base: Option<(Vec<Member>, BTreeMap<u8, Table>)>,
}

/// What changes would do.
pub async fn make(node: &Arc<Node>, request: MakePlanRequest) -> Result<Plan, Failure> {
    let cluster = node.cluster()?;
    let intent = understand(node, &cluster, &request.changes).await?;
    let child = child(&cluster.history, &intent, Vec::new())?;
    describe(node, &cluster, &intent, request.changes, &child)
}

/// Makes the changes of a plan. Said twice under one name, also at once, it is done once.
pub async fn apply(node: &Arc<Node>, request: ApplyPlanRequest) -> Result<Op, Failure> {
    check_op_id(&request)?;
    let (op_id, digest) = (request.op_id.clone(), changes_digest(&request.changes));
    if let Some(op) = known(node, &op_id, &digest).await? {
        return Ok(op);
    }
    match apply_anew(node, request).await {
        Ok(op) => Ok(op),
        // What came first may have been the same.
        Err(failure) => known(node, &op_id, &digest).await.ok().flatten().ok_or(failure),
    }
}

/// The operation that whoever asks has named so, if there is one.
///
/// # Errors
/// It was of other changes: these are not made under its name.
async fn known(node: &Arc<Node>, op_id: &str, digest: &[u8]) -> Result<Option<Op>, Failure> {
    if op_id.is_empty() {
        return Ok(None);
    }
    if let Some((id, note)) = ops::note(node, op_id)?
        && !note.changes_digest.is_empty()
        && note.changes_digest[..] != *digest
    {
        let why = format!("{op_id} is the name of {}: {}", ops::name_of(id), note.lines.join(", "));
        return Err(errors::plan_refused(why, "another --op-id"));
    }
    ops::find(node, op_id).await
}

/// What was asked for, in short.
fn changes_digest(changes: &[v1::Change]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for change in changes {
        hash.update(change.encode_length_delimited_to_vec());
    }
    hash.finalize()[..16].to_vec()
}

async fn apply_anew(node: &Arc<Node>, request: ApplyPlanRequest) -> Result<Op, Failure> {
    let cluster = node.cluster()?;
    let intent = understand(node, &cluster, &request.changes).await?;
    let bare = child(&cluster.history, &intent, Vec::new())?;
    let plan = describe(node, &cluster, &intent, request.changes, &bare)?;
    if plan.digest != request.digest {
        let why = format!("the plan starts from ring {}, or would lead elsewhere now", {
            plan.base.as_ref().map_or(0, |base| base.depth)
        });
        return Err(errors::plan_stale(why));
    }
    let forced = |name: &str| request.force.iter().any(|force| force == name);
    if let Some(force) = plan.forces.iter().find(|force| !forced(force)) {
        let why = plan.warnings.join("; ");
        return Err(errors::plan_refused(why, &format!("if that is meant: --force={force}")));
    }
    if !forced(FORCE_MINORITY) {
        require_majority(&cluster)?;
    }
    let note = Note {
        changes_digest: changes_digest(&plan.changes).into(),
        op_id: request.op_id,
        by: request.by,
        at_ms: clock::now_ms(),
        lines: intent.lines.clone(),
        undo: intent.undo.clone(),
        cancels: intent.cancels.clone(),
    };
    let base = cluster.layout.id();
    let made = membership::commit(node, |history| {
        if history.head().id() != base {
            return Err(errors::plan_stale("another change came first"));
        }
        child(history, &intent, note.encode_to_vec())
    });
    let id = made.await?;
    let text = format!("{}: {}", ops::name_of(id), intent.lines.join(", "));
    node.events.add(Level::Ok, text);
    ops::find(node, &ops::name_of(id))
        .await?
        .ok_or_else(|| errors::internal("an operation is lost"))
}

fn check_op_id(request: &ApplyPlanRequest) -> Result<(), Failure> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if request.op_id.len() > 64 || !request.op_id.bytes().all(allowed) || request.by.len() > 64 {
        let why = "it has at most 64 of A-Z a-z 0-9 . _ -";
        return Err(errors::argument("the operation's name is not allowed", why));
    }
    Ok(())
}

/// Two sides of a split would each change what the other does not see. That is mended, but it is
/// seldom meant.
fn require_majority(cluster: &Cluster) -> Result<(), Failure> {
    let all = cluster.layout.members().len();
    let ours = cluster.layout.id().to_bytes();
    let agrees = |peer: &&Arc<super::peers::Peer>| {
        let names = peer.layout().is_some_and(|layout| layout.id[..] == ours);
        peer.is_usable() && names && cluster.layout.member(peer.uid).is_some()
    };
    let agreeing = 1 + cluster.peers.values().filter(agrees).count();
    if 2 * agreeing > all {
        return Ok(());
    }
    let why = format!("{agreeing} of {all} nodes are up and know ring {}", cluster.layout.depth());
    let advice = "ask a node on the other side, or if this is all there is: --force=minority";
    Err(errors::plan_refused(why, advice))
}

/// The same for what touches nothing that is there, and that nobody plans: a majority has to be up.
pub fn require_majority_up(cluster: &Cluster) -> Result<(), Failure> {
    let all = cluster.layout.members().len();
    let is_up = |peer: &&Arc<super::peers::Peer>| {
        peer.is_usable() && cluster.layout.member(peer.uid).is_some()
    };
    let up = 1 + cluster.peers.values().filter(is_up).count();
    if 2 * up > all {
        return Ok(());
    }
    let why = format!("{up} of {all} nodes are up as this one sees it");
    Err(errors::plan_refused(why, "ask a node on the other side, or when more are up"))
}

/// What the layout of a keyspace that was made without a plan says of it.
pub fn note_of_keyspace(keyspace: &Keyspace) -> Vec<u8> {
    let note = Note {
        at_ms: clock::now_ms(),
        lines: vec![format!("+ keyspace {}", quorum_text(keyspace))],
        undo: vec![wire(change::Change::DropKeyspace(keyspace.name.clone()))],
        ..Note::default()
    };
    note.encode_to_vec()
}

fn child(history: &History, intent: &Intent, note: Vec<u8>) -> Result<Layout, Failure> {
    let base = intent.base.as_ref().map(|(members, tables)| (&members[..], tables));
    let child = history.head().changed(&intent.changes, note, base);
    child.map_err(|error| errors::plan_refused(error.to_string(), "another plan"))
}

// === understanding ===

async fn understand(
    node: &Arc<Node>,
    cluster: &Cluster,
    asked: &[v1::Change],
) -> Result<Intent, Failure> {
    if asked.is_empty() || asked.len() > CHANGES_MAX {
        let why = format!("a plan has 1 to {CHANGES_MAX} changes, not {}", asked.len());
        return Err(errors::argument("the plan is not allowed", why));
    }
    let mut intent = Intent::default();
    for change in asked {
        let Some(change) = &change.change else {
            return Err(errors::argument("a change is unknown", "a newer kvctl made it"));
        };
        match change {
            change::Change::Undo(op) => {
                for change in undo_of(node, op).await? {
                    understand_one(node, cluster, &change, &mut intent).await?;
                }
                intent.lines.insert(0, format!("undo {op}"));
            }
            change::Change::Cancel(op) => cancel(node, cluster, op, &mut intent).await?,
            other => understand_one(node, cluster, other, &mut intent).await?,
        }
    }
    Ok(intent)
}

async fn understand_one(
    node: &Arc<Node>,
    cluster: &Cluster,
    change: &change::Change,
    intent: &mut Intent,
) -> Result<(), Failure> {
    let layout = &cluster.layout;
    match change {
        change::Change::Add(asked) => {
            let member = newcomer(node, cluster, asked, intent).await?;
            intent.lines.push(format!("+ {} {}", member.name, in_words(&member)));
            intent.undo.push(wire(change::Change::Remove(remove(&member.name, false))));
            intent.changes.push(Change::Add(member));
        }
        change::Change::Remove(asked) => {
            let (uid, member) = leaver(node, cluster, &asked.node, asked.dead)?;
            intent.lines.push(format!("- {}{}", asked.node, dead_text(asked.dead)));
            if let Some(member) = member {
                intent.undo.push(wire(change::Change::Add(as_new(&member))));
            }
            if asked.dead {
                intent.dead.push(uid);
            }
            intent.changes.push(Change::Remove { uid, lost: asked.dead });
        }
        change::Change::Replace(asked) => {
            let (uid, before) = leaver(node, cluster, &asked.node, asked.dead)?;
            let before = before.ok_or_else(|| errors::node_unknown(&asked.node))?;
            let mut with = asked.with.clone().unwrap_or_default();
            if with.zone.is_empty() {
                with.zone.clone_from(&before.zone);
            }
            if with.weight == 0 {
                with.weight = before.weight;
            }
            let with = newcomer(node, cluster, &with, intent).await?;
            let dead = dead_text(asked.dead);
            intent.lines.push(format!("{}{dead} → {} {}", asked.node, with.name, in_words(&with)));
            intent.undo.push(wire(change::Change::Replace(ReplaceNode {
                node: with.name.clone(),
                with: Some(as_new(&before)),
                dead: false,
            })));
            if asked.dead {
                intent.dead.push(uid);
            }
            intent.changes.push(Change::Replace { uid, with, lost: asked.dead });
        }
        change::Change::Set(asked) => set_node(layout, asked, intent)?,
        change::Change::CreateKeyspace(asked) => {
            let keyspace = membership::keyspace_from(asked.clone())?;
            intent.lines.push(format!("+ keyspace {}", quorum_text(&keyspace)));
            intent.undo.push(wire(change::Change::DropKeyspace(keyspace.name.clone())));
            intent.changes.push(Change::CreateKeyspace(keyspace));
        }
        change::Change::SetKeyspace(asked) => set_keyspace(layout, asked, intent)?,
        change::Change::DropKeyspace(name) => {
            let keyspace = keyspace_named(layout, name)?;
            intent.lines.push(format!("- keyspace {name}, and all that is in it"));
            intent.undo.push(wire(change::Change::CreateKeyspace(view::wire_keyspace(keyspace))));
            intent.changes.push(Change::DropKeyspace(keyspace.id()));
        }
        change::Change::Rebalance(_) => intent.changes.push(Change::Rebalance),
        change::Change::Spread(zones) => {
            let before = layout.spread();
            let spread = u8::try_from(*zones).unwrap_or(u8::MAX);
            intent.lines.push(format!("spread {before} → {spread} zones"));
            intent.undo.push(wire(change::Change::Spread(before.into())));
            intent.changes.push(Change::Spread(spread));
        }
        change::Change::Undo(_) | change::Change::Cancel(_) => {
            return Err(errors::argument("an undo within an undo", ""));
        }
    }
    Ok(())
}

/// The node at an address, as a member: blank, or one that is just leaving and is to stay.
async fn newcomer(
    node: &Arc<Node>,
    cluster: &Cluster,
    asked: &NewMember,
    intent: &mut Intent,
) -> Result<Member, Failure> {
    let leaving = cluster.history.members().into_iter().find(|member| {
        member.address == asked.address && cluster.layout.member(member.uid).is_none()
    });
    if let Some(member) = leaving {
        let zone = if asked.zone.is_empty() { member.zone } else { asked.zone.clone() };
        let (name, weight) = (asked.name.clone(), asked.weight.max(1));
        return Ok(Member { name, zone, weight, ..member });
    }
    let mut found = membership::identify_all(node, std::slice::from_ref(asked)).await?;
    let found = found.pop().ok_or_else(|| errors::internal("a node was asked and none answered"));
    let (member, disk) = found?;
    intent.disks.insert(member.uid, disk);
    Ok(member)
}

/// Who is to go.
fn leaver(
    node: &Arc<Node>,
    cluster: &Cluster,
    name: &str,
    dead: bool,
) -> Result<(Uid, Option<Member>), Failure> {
    let is_up =
        |uid: &Uid| *uid == node.uid || cluster.peers.get(uid).is_some_and(|peer| peer.is_usable());
    let found = match cluster.layout.member_named(name) {
        Some(member) => (member.uid, Some(member.clone())),
        // It is leaving already, and died over it.
        None if dead => {
            let is_one = |(uid, it): &(&Uid, &Removed)| {
                it.name == name && !it.lost && cluster.peers.contains_key(uid)
            };
            let gone = cluster.layout.removed().iter().find(is_one);
            (*gone.ok_or_else(|| errors::node_unknown(name))?.0, None)
        }
        None => return Err(errors::node_unknown(name)),
    };
    match (dead, is_up(&found.0)) {
        (true, true) => Err(errors::plan_refused(
            format!("{name} is up"),
            "without --dead it gives away what it holds; or stop it first",
        )),
        (false, false) => Err(errors::plan_refused(
            format!("{name} is not up, and cannot give away what it holds"),
            "start it; or with --dead, and see in the plan what is lost",
        )),
        _ => Ok(found),
    }
}

fn set_node(layout: &Layout, asked: &SetNode, intent: &mut Intent) -> Result<(), Failure> {
    let before = layout.member_named(&asked.node);
    let before = before.ok_or_else(|| errors::node_unknown(&asked.node))?;
    let mut after = before.clone();
    let mut said = Vec::new();
    let mut undo = SetNode { node: asked.node.clone(), ..SetNode::default() };
    if let Some(weight) = asked.weight.filter(|weight| *weight != before.weight) {
        said.push(format!("weight {} → {weight}", before.weight));
        (after.weight, undo.weight) = (weight, Some(before.weight));
    }
    if let Some(zone) = asked.zone.clone().filter(|zone| *zone != before.zone) {
        said.push(format!("zone {} → {zone}", before.zone));
        (after.zone, undo.zone) = (zone, Some(before.zone.clone()));
    }
    if let Some(address) = asked.address.clone().filter(|address| *address != before.address) {
        said.push(format!("address {} → {address}", before.address));
        (after.address, undo.address) = (address, Some(before.address.clone()));
    }
    if !said.is_empty() {
        intent.lines.push(format!("{} {}", asked.node, said.join(", ")));
        intent.undo.push(wire(change::Change::Set(undo)));
        intent.changes.push(Change::Set(after));
    }
    Ok(())
}

fn set_keyspace(layout: &Layout, asked: &SetKeyspace, intent: &mut Intent) -> Result<(), Failure> {
    let before = keyspace_named(layout, &asked.name)?;
    let number = |asked: Option<u32>, now: u8| match asked {
        Some(asked) => u8::try_from(asked).unwrap_or(u8::MAX), // refused below
        None => now,
    };
    let mode = match asked.mode.map(v1::Mode::try_from) {
        Some(Ok(v1::Mode::Sloppy)) => Mode::Sloppy,
        Some(Ok(v1::Mode::Strict)) => Mode::Strict,
        _ => before.mode,
    };
    let (n, r, w) =
        (number(asked.n, before.n), number(asked.r, before.r), number(asked.w, before.w));
    let after = Keyspace { n, r, w, mode, ..before.clone() };
    after.check().map_err(|error| membership::layout_refused(&error))?;
    if after != *before {
        intent.lines.push(format!("keyspace {} → {}", quorum_text(before), quorum_text(&after)));
        intent.undo.push(wire(change::Change::SetKeyspace(SetKeyspace {
            name: asked.name.clone(),
            n: Some(before.n.into()),
            r: Some(before.r.into()),
            w: Some(before.w.into()),
            mode: Some(view::wire_keyspace(before).mode),
        })));
        intent.changes.push(Change::SetKeyspace(after));
    }
    Ok(())
}

async fn undo_of(node: &Arc<Node>, op: &str) -> Result<Vec<change::Change>, Failure> {
    let (_, note) = ops::note(node, op)?.ok_or_else(|| errors::op_unknown(op))?;
    if note.undo.is_empty() {
        let why = format!("{op} changed nothing that can be changed back");
        return Err(errors::plan_refused(why, "another plan"));
    }
    // The last change first.
    Ok(note.undo.into_iter().rev().filter_map(|undo| undo.change).collect())
}

/// Undoes an operation under way. What has not been moved by it is planned from where it still is,
/// so that it stays there.
async fn cancel(
    node: &Arc<Node>,
    cluster: &Cluster,
    op: &str,
    intent: &mut Intent,
) -> Result<(), Failure> {
    let (id, _) = ops::note(node, op)?.ok_or_else(|| errors::op_unknown(op))?;
    let history = &cluster.history;
    let of_op = history.layouts().iter().find(|layout| layout.id() == id);
    let before = of_op.and_then(|layout| layout.parents().first());
    let before = before.and_then(|id| history.layouts().iter().find(|it| it.id() == *id));
    let Some(before) = before else {
        let why = format!("{op} is done");
        return Err(errors::plan_refused(why, &format!("kvctl plan create --undo {op}")));
    };
    for change in undo_of(node, op).await? {
        understand_one(node, cluster, &change, intent).await?;
    }
    intent.lines.insert(0, format!("cancel {}", ops::name_of(id)));
    intent.cancels = ops::name_of(id);
    intent.base = Some(where_copies_are(history, before, id));
    Ok(())
}

/// Tables of where copies can be read now: as before the operation where it has not flipped a
/// partition, and as in the newest layout elsewhere. Slots are positions in all members together.
fn where_copies_are(
    history: &History,
    before: &Layout,
    op: LayoutId,
) -> (Vec<Member>, BTreeMap<u8, Table>) {
    let head = history.head();
    let members = history.members();
    let bits = history.bits();
    let mut tables = BTreeMap::new();
    for keyspace in before.keyspaces().values() {
        if tables.contains_key(&keyspace.n) {
            continue;
        }
        let old = before.tables()[&keyspace.n].doubled_to(bits);
        let old = old.relabelled(before.members(), &members);
        let new = head
            .tables()
            .get(&keyspace.n)
            .map(|table| table.doubled_to(bits).relabelled(head.members(), &members));
        let slots = (0..1_u32 << bits).flat_map(|partition| {
            let configs = history.configs_of(keyspace.id(), partition);
            let has_moved = configs.iter().any(|config| config.origin == op && config.flipped);
            let new = new.as_ref().filter(|_| has_moved);
            new.unwrap_or(&old).row(partition).to_vec()
        });
        tables.insert(keyspace.n, Table::new(keyspace.n, slots.collect()));
    }
    (members, tables)
}

// === words ===

fn keyspace_named<'a>(layout: &'a Layout, name: &str) -> Result<&'a Keyspace, Failure> {
    layout.keyspace(name).ok_or_else(|| {
        let known: Vec<&str> = layout.keyspaces().values().map(|it| it.name.as_str()).collect();
        errors::keyspace_unknown(name, &known)
    })
}

fn wire(change: change::Change) -> v1::Change {
    v1::Change { change: Some(change) }
}

fn remove(name: &str, dead: bool) -> RemoveNode {
    RemoveNode { node: name.to_owned(), dead }
}

fn as_new(member: &Member) -> NewMember {
    NewMember {
        name: member.name.clone(),
        address: member.address.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
    }
}

fn in_words(member: &Member) -> String {
    format!("zone {} weight {} at {}", member.zone, member.weight, member.address)
}

fn dead_text(dead: bool) -> &'static str {
    if dead { " (dead)" } else { "" }
}

fn quorum_text(keyspace: &Keyspace) -> String {
    let mode = match keyspace.mode {
        Mode::Sloppy => "sloppy",
        Mode::Strict => "strict",
    };
    format!("{} N={} R={} W={} {mode}", keyspace.name, keyspace.n, keyspace.r, keyspace.w)
}

// === what it would do ===

fn describe(
    node: &Arc<Node>,
    cluster: &Cluster,
    intent: &Intent,
    changes: Vec<v1::Change>,
    child: &Layout,
) -> Result<Plan, Failure> {
    let layout = &cluster.layout;
    let hash: [u8; 32] = Sha256::digest(child.encode()).into();
    let sizes = Sizes::of(node, cluster).with_newcomers(child, &intent.disks);
    let moved = Moved::between(layout, child);
    let nodes = plan_nodes(cluster, child, &moved, &sizes);
    let mut lines = intent.lines.clone();
    let copies_moved = moved.arriving.values().map(|copies| u64::from(*copies)).sum();
    if lines.is_empty() && copies_moved > 0 {
        lines.push("rebalance".into());
    }
    if lines.is_empty() && intent.changes.iter().all(|change| *change == Change::Rebalance) {
        lines.clear(); // nothing would change
    }
    let bytes_moved = sizes.copy * copies_moved;
    let rate = moves::rate_in_force(node);
    let most = moved.arriving.values().max().copied().unwrap_or(0);
    let seconds = match (rate, moved.transitions) {
        (_, 0) => 0,
        (0, _) => TRANSITION_SECONDS,
        (rate, _) => sizes.copy * u64::from(most) / rate + TRANSITION_SECONDS,
    };
    let (losses, mut warnings) = losses(node, cluster, intent, child);
    let dropped = intent.changes.iter().filter_map(|change| match change {
        Change::DropKeyspace(id) => layout.keyspace_by_id(*id),
        _ => None,
    });
    let dropped = dropped.map(|it| format!("all that is in keyspace {} is lost", it.name));
    let dropped: Vec<String> = dropped.collect();
    let loses = !losses.is_empty() || !dropped.is_empty();
    warnings.extend(dropped);
    let forces = if loses { vec![FORCE_DATA_LOSS.to_owned()] } else { Vec::new() };
    let peak = nodes.iter().map(|it| it.disk_ratio_after).fold(0.0, f64::max);
    check_room(&nodes, &sizes)?;
    let gets_full = |it: &&PlanNode| it.copies_in > 0 && it.disk_ratio_after > DISK_HIGH_RATIO;
    for node in nodes.iter().filter(gets_full) {
        let percent = node.disk_ratio_after * 100.0;
        warnings.push(format!("{}'s disk would be {percent:.0}% full", node.node));
    }
    let shown = child.keyspaces().values().map(|keyspace| keyspace.n).max().unwrap_or(1);
    let fullest = |spread| {
        let ppm = fullest_ppm(child.members(), shown, child.partition_bits(), spread);
        ppm.map_or(0.0, |ppm| ppm as f64 / 1e6)
    };
    let zones: BTreeSet<&String> = child.members().iter().map(|member| &member.zone).collect();
    let more_zones = zones.len() > usize::from(child.spread());
    let zones_now: BTreeSet<&String> = layout.members().iter().map(|it| &it.zone).collect();
    let spread = shown.min(child.spread());
    let asks_for = |change: &Change| matches!(change, Change::Spread(_));
    if zones.len() < spread.into() && intent.changes.iter().any(asks_for) {
        let why = format!("copies were to be in {spread} zones, and there are {}", zones.len());
        return Err(errors::plan_refused(why, "nodes in more zones first, or a smaller spread"));
    }
    if zones.len() < zones_now.len().min(spread.into()) {
        let left = zones.len();
        let noun = if left == 1 { "zone is" } else { "zones are" };
        warnings.push(format!("copies are to be in {spread} zones, and {left} {noun} left"));
    }
    if child.spread() != layout.spread() && fullest(child.spread()) > 1.1 {
        warnings.push(format!(
            "with a spread over {} zones a node would hold {:.2} times what its weight says",
            child.spread(),
            fullest(child.spread())
        ));
    }
    let (up, history) = (safety::up(node, cluster), &cluster.history);
    let live_now = least_copies(history, &up, &[]);
    let live = least_copies(history, &up, &intent.dead);
    let live = live.min(least_copies_after(history, child, &up, &intent.dead));
    Ok(Plan {
        digest: hash[..16].to_vec().into(),
        base: Some(view::layout_ref(layout)),
        cluster: layout.cluster_name().to_owned(),
        changes,
        lines,
        partition_bits_before: layout.partition_bits(),
        partition_bits_after: child.partition_bits(),
        nodes,
        copies_moved,
        copies_total: child
            .tables()
            .values()
            .map(|it| it.partitions() as u64 * u64::from(it.n()))
            .sum(),
        bytes_moved,
        seconds,
        bytes_per_second: rate,
        min_live_copies: live.min(live_now),
        min_live_copies_now: live_now,
        disk_peak_ratio: peak,
        zones_distinct: is_spread(child),
        spread: child.spread().into(),
        fullest_ratio: fullest(child.spread()),
        fullest_ratio_next: if more_zones { fullest(child.spread() + 1) } else { 0.0 },
        warnings,
        losses,
        forces,
        transitions: moved.transitions,
    })
}

/// What a node gets has to fit on its disk, with a tenth of what is free to spare.
fn check_room(nodes: &[PlanNode], sizes: &Sizes) -> Result<(), Failure> {
    for node in nodes {
        let Some((total, used)) = sizes.by_name.get(&node.node) else { continue };
        let (free, comes) = (total - used, sizes.copy * u64::from(node.copies_in));
        if *total > 0 && comes > free / 10 * 9 {
            let (free, comes) = (free >> 20, comes >> 20);
            let why = format!("{} would get {comes} MiB, and has {free} MiB free", node.node);
            return Err(errors::plan_refused(why, "more nodes, or larger disks"));
        }
    }
    Ok(())
}

/// What is known of how much there is.
struct Sizes {
    /// A copy, on average, bytes.
    copy: u64,
    /// Bytes of each node's disk, and of those, used.
    disks: BTreeMap<Uid, (u64, u64)>,
    /// The same by name.
    by_name: BTreeMap<String, (u64, u64)>,
}

impl Sizes {
    fn of(node: &Node, cluster: &Cluster) -> Self {
        let own = super::peers::node_stats(node);
        let others = cluster.peers.values().filter_map(|peer| Some((peer.uid, peer.stats()?.0)));
        let (mut bytes, mut copies, mut disks) = (0, 0, BTreeMap::new());
        for (uid, stats) in others.chain([(node.uid, own)]) {
            let Some(slot) = cluster.layout.slot(uid) else { continue };
            bytes += stats.data_bytes;
            for n in cluster.layout.tables().keys() {
                copies += u64::from(cluster.layout.copies(*n)[usize::from(slot)]);
            }
            let used = stats.disk_total_bytes.saturating_sub(stats.disk_free_bytes);
            disks.insert(uid, (stats.disk_total_bytes, used));
        }
        let by_name = disks.iter().map(|(uid, disk)| (cluster.name_of(*uid), *disk)).collect();
        Self { copy: bytes / copies.max(1), disks, by_name }
    }
}

impl Sizes {
    /// And of nodes that come.
    fn with_newcomers(mut self, child: &Layout, disks: &BTreeMap<Uid, membership::Disk>) -> Self {
        for (uid, disk) in disks {
            let Some(member) = child.member(*uid) else { continue };
            self.disks.insert(*uid, *disk);
            self.by_name.insert(member.name.clone(), *disk);
        }
        self
    }
}

/// What differs between two layouts.
#[derive(Default)]
struct Moved {
    /// Copies that each node gets.
    arriving: BTreeMap<Uid, u32>,
    /// Partitions of keyspaces whose replicas or quorums change.
    transitions: u64,
}

impl Moved {
    fn between(before: &Layout, after: &Layout) -> Self {
        let mut moved = Self::default();
        let bits = before.partition_bits().max(after.partition_bits());
        let row = |layout: &Layout, n: u8, partition: u32| -> BTreeSet<Uid> {
            let there = partition >> (bits - layout.partition_bits());
            layout.replicas(n, there).map(|member| member.uid).collect()
        };
        let mut counted = BTreeSet::new();
        for (id, keyspace) in after.keyspaces() {
            let Some(old) = before.keyspace_by_id(*id) else { continue };
            let tuned = (old.r, old.w) != (keyspace.r, keyspace.w);
            let counts = counted.insert((old.n, keyspace.n));
            for partition in 0..1 << bits {
                let (was, is) = (row(before, old.n, partition), row(after, keyspace.n, partition));
                moved.transitions += u64::from(tuned || was != is);
                for uid in is.difference(&was).filter(|_| counts) {
                    *moved.arriving.entry(*uid).or_default() += 1;
                }
            }
        }
        moved
    }
}

fn plan_nodes(cluster: &Cluster, child: &Layout, moved: &Moved, sizes: &Sizes) -> Vec<PlanNode> {
    let layout = &cluster.layout;
    let copies = |layout: &Layout, uid: Uid| -> u32 {
        let Some(slot) = layout.slot(uid) else { return 0 };
        layout.tables().keys().map(|n| layout.copies(*n)[usize::from(slot)]).sum()
    };
    let total = |layout: &Layout| -> f64 {
        layout.tables().values().map(|it| (it.partitions() * usize::from(it.n())) as f64).sum()
    };
    let finer = 1 << (child.partition_bits() - layout.partition_bits());
    let all: BTreeSet<Uid> =
        layout.members().iter().chain(child.members()).map(|member| member.uid).collect();
    let mut nodes: Vec<PlanNode> = Vec::with_capacity(all.len());
    for uid in all {
        let (was, is) = (layout.member(uid), child.member(uid));
        let Some(member) = is.or(was) else { continue };
        // As partitions are counted afterwards.
        let (before, after) = (copies(layout, uid) * finer, copies(child, uid));
        let disk = sizes.disks.get(&uid).filter(|(total, _)| *total > 0);
        let change = (f64::from(after) - f64::from(before)) * sizes.copy as f64 / f64::from(finer);
        let fair = is.map_or(0.0, |_| fair_ratio(child, uid));
        nodes.push(PlanNode {
            node: member.name.clone(),
            zone: was.map(|it| it.zone.clone()).unwrap_or_default(),
            zone_after: is.map(|it| it.zone.clone()).unwrap_or_default(),
            weight: was.map_or(0, |it| it.weight),
            weight_after: is.map_or(0, |it| it.weight),
            share_ratio: f64::from(before) / f64::from(finer) / total(layout),
            share_ratio_after: f64::from(after) / total(child),
            fair_ratio_after: fair,
            copies: before,
            copies_after: after,
            copies_in: moved.arriving.get(&uid).copied().unwrap_or(0),
            bytes_after: sizes.copy * u64::from(after) / u64::from(finer),
            disk_ratio: disk.map_or(0.0, |(total, used)| *used as f64 / *total as f64),
            disk_ratio_after: disk
                .map_or(0.0, |(total, used)| (*used as f64 + change.max(0.0)) / *total as f64),
            address: member.address.clone(),
        });
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    nodes
}

/// What a member should hold, of all copies.
fn fair_ratio(layout: &Layout, uid: Uid) -> f64 {
    let Some(slot) = layout.slot(uid) else { return 0.0 };
    let (mut fair, mut total) = (0.0, 0.0);
    for (n, table) in layout.tables() {
        let share = layout.fair_ratio(*n)[usize::from(slot)];
        fair += share.num as f64 / share.den as f64;
        total += (table.partitions() * usize::from(*n)) as f64;
    }
    fair / total
}

/// Whether every partition touches as many zones as it must.
fn is_spread(layout: &Layout) -> bool {
    let zones: BTreeSet<&String> = layout.members().iter().map(|member| &member.zone).collect();
    layout.tables().keys().all(|n| {
        let must = usize::from((*n).min(layout.spread())).min(zones.len());
        (0..layout.partitions()).all(|p| {
            let touched: BTreeSet<&String> = layout.replicas(*n, p).map(|it| &it.zone).collect();
            touched.len() >= must
        })
    })
}

/// What goes with the dead: where fewer replicas are left than together have every write that W of
/// all acknowledged.
fn losses(
    node: &Node,
    cluster: &Cluster,
    intent: &Intent,
    child: &Layout,
) -> (Vec<PlanLoss>, Vec<String>) {
    let (mut losses, mut warnings) = (Vec::new(), Vec::new());
    if intent.dead.is_empty() {
        return (losses, warnings);
    }
    let (up, dead) = (safety::up(node, cluster), intent.dead.iter().copied().collect());
    let names = cluster.names_of(&intent.dead).join(", ");
    let keyspaces = cluster.layout.keyspaces().values();
    for keyspace in keyspaces.filter(|it| child.keyspace_by_id(it.id()).is_some()) {
        let Loss { gone, thin } = loss(&cluster.history, keyspace.id(), &up, &dead);
        if gone + thin > 0 {
            if gone > 0 {
                warnings.push(format!(
                    "{gone} partitions of keyspace {} have no live copy but those of {names}: all \
                     in them is lost",
                    keyspace.name
                ));
            }
            if thin > 0 {
                warnings.push(format!(
                    "in {thin} partitions of keyspace {} a write that only {names} acknowledged \
                     (W={}) is lost",
                    keyspace.name, keyspace.w
                ));
            }
            let keyspace = keyspace.name.clone();
            losses.push(PlanLoss { keyspace, partitions: gone, thin, node: names.clone() });
        }
    }
    (losses, warnings)
}

/// What an operation's layout says of it, if it is one.
pub fn note_in(layout: &Layout) -> Option<Note> {
    (!layout.note().is_empty()).then(|| documents::note_of(layout.note()))
}
