//! Changing a cluster as an operator does: plans made, applied and waited for.

use crate::eventually;
use crate::process::{Cluster, Node};
use crate::scenario::prepare;
use proto::client::Client;
use proto::v1::{
    ApplyPlanRequest, Change, GetClusterRequest, GetLayoutRequest, LayoutView, MakePlanRequest,
    NewMember, Op, OpState, OpsAction, OpsRequest, Plan, RemoveNode, ReplaceNode, SetKeyspace,
    SetNode, change,
};
use std::time::{Duration, Instant};

/// An operation of a few nodes and keys has to be done within so long.
const DONE_WITHIN: Duration = Duration::from_secs(150);

/// A node more, at a member's address.
pub fn add(node: &Node, zone: &str, weight: u32) -> Change {
    wire(change::Change::Add(new_member(node, zone, weight)))
}

/// A node less.
pub fn remove(node: &str, dead: bool) -> Change {
    wire(change::Change::Remove(RemoveNode { node: node.into(), dead }))
}

/// A node in the place of another.
pub fn replace(node: &str, with: &Node, dead: bool) -> Change {
    let with = Some(new_member(with, "", 0));
    wire(change::Change::Replace(ReplaceNode { node: node.into(), with, dead }))
}

/// A node of another weight.
pub fn reweight(node: &str, weight: u32) -> Change {
    let set = SetNode { node: node.into(), weight: Some(weight), ..SetNode::default() };
    wire(change::Change::Set(set))
}

/// A node of another zone and weight.
pub fn place(node: &str, zone: &str, weight: u32) -> Change {
    let (zone, weight) = (Some(zone.into()), Some(weight));
    wire(change::Change::Set(SetNode { node: node.into(), zone, weight, ..SetNode::default() }))
}

/// So many zones that the copies of a partition have to touch.
pub fn spread(zones: u32) -> Change {
    wire(change::Change::Spread(zones))
}

/// A node in another zone.
pub fn rezone(node: &str, zone: &str) -> Change {
    let set = SetNode { node: node.into(), zone: Some(zone.into()), ..SetNode::default() };
    wire(change::Change::Set(set))
}

/// A keyspace less.
pub fn drop_keyspace(name: &str) -> Change {
    wire(change::Change::DropKeyspace(name.into()))
}

/// A keyspace of other quorums.
pub fn tune(keyspace: &str, n: u32, r: u32, w: u32) -> Change {
    let (n, r, w) = (Some(n), Some(r), Some(w));
    wire(change::Change::SetKeyspace(SetKeyspace { name: keyspace.into(), n, r, w, mode: None }))
}

/// What changes an operation back.
pub fn cancel(op: &Op) -> Change {
    wire(change::Change::Cancel(op.id.clone()))
}

fn wire(change: change::Change) -> Change {
    Change { change: Some(change) }
}

fn new_member(node: &Node, zone: &str, weight: u32) -> NewMember {
    let (name, address) = (node.name.clone(), node.address.clone());
    NewMember { name, address, zone: zone.into(), weight }
}

/// A plan of these changes, made by the node that `client` speaks to.
pub fn plan(cluster: &Cluster, client: &Client, changes: Vec<Change>) -> Plan {
    try_plan(cluster, client, changes).expect("a plan")
}

/// The same, or why not.
pub fn try_plan(
    cluster: &Cluster,
    client: &Client,
    changes: Vec<Change>,
) -> Result<Plan, tonic::Status> {
    let ask = MakePlanRequest { changes };
    cluster.block_on(async { client.admin().make_plan(ask).await }).map(|it| it.into_inner())
}

/// Applies a plan.
pub fn try_apply(
    cluster: &Cluster,
    client: &Client,
    plan: &Plan,
    force: &[&str],
) -> Result<Op, tonic::Status> {
    try_apply_as("", cluster, client, plan, force)
}

/// The same, the operation named by who asks.
pub fn try_apply_as(
    op_id: &str,
    cluster: &Cluster,
    client: &Client,
    plan: &Plan,
    force: &[&str],
) -> Result<Op, tonic::Status> {
    let ask = ApplyPlanRequest {
        changes: plan.changes.clone(),
        digest: plan.digest.clone(),
        op_id: op_id.into(),
        by: "test".into(),
        force: force.iter().map(|force| (*force).to_owned()).collect(),
    };
    cluster.block_on(async { client.admin().apply_plan(ask).await }).map(|it| it.into_inner())
}

/// Makes a plan of these changes and applies it.
pub fn change(cluster: &Cluster, client: &Client, changes: Vec<Change>) -> Op {
    let plan = plan(cluster, client, changes);
    try_apply(cluster, client, &plan, &[]).expect("an operation")
}

/// How an operation is going.
pub fn op(cluster: &Cluster, client: &Client, id: &str) -> Option<Op> {
    let ask = OpsRequest { op: id.into(), ..OpsRequest::default() };
    let reply = cluster.block_on(async { client.admin().ops(ask).await }).ok()?;
    reply.into_inner().ops.into_iter().next()
}

/// Has moves pause or go on.
pub fn steer(cluster: &Cluster, client: &Client, action: OpsAction) {
    let ask = OpsRequest { action: action.into(), ..OpsRequest::default() };
    cluster.block_on(async { client.admin().ops(ask).await }).expect("moves to be steered");
}

/// Has every node fetch so many bytes a second at most; 0: as many as go.
pub fn throttle(cluster: &Cluster, client: &Client, bytes_per_second: u64) {
    let (action, bytes_per_second) = (OpsAction::Throttle.into(), Some(bytes_per_second));
    let ask = OpsRequest { action, bytes_per_second, ..OpsRequest::default() };
    cluster.block_on(async { client.admin().ops(ask).await }).expect("moves to be throttled");
}

/// Waits until it is done and nothing of what was before counts any more.
///
/// # Panics
/// If it is not in time: with what it waits for.
pub fn wait_until_done(cluster: &Cluster, client: &Client, id: &str) -> Op {
    let until = Instant::now() + DONE_WITHIN;
    loop {
        let last = op(cluster, client, id);
        if let Some(op) = &last
            && matches!(op.state(), OpState::Done | OpState::Cancelled)
            && op.ended_at_ms > 0
        {
            return last.expect("it was just looked at");
        }
        assert!(Instant::now() < until, "not done in time: {last:#?}");
        std::thread::sleep(Duration::from_millis(100)); // between two looks
    }
}

/// Waits until so many copies of an operation are there, of a hundred.
pub fn wait_until_percent(cluster: &Cluster, client: &Client, id: &str, percent: u64) {
    eventually(&format!("{percent} % of {id}"), || {
        let op = op(cluster, client, id)?;
        let there = op.copies_done * 100 >= op.copies_total * percent;
        (there || op.ended_at_ms > 0).then_some(())
    });
}

/// The newest layout that a node knows.
pub fn layout(cluster: &Cluster, client: &Client) -> Option<LayoutView> {
    let reply = cluster.block_on(async { client.admin().get_layout(GetLayoutRequest {}).await });
    reply.ok().map(|layout| layout.into_inner())
}

/// Waits until every node knows the same layout, nothing is under way for any, and it is so.
///
/// # Panics
/// If it is not in time.
pub fn wait_until_settled(
    cluster: &Cluster,
    what: &str,
    is_so: impl Fn(&LayoutView) -> bool,
) -> LayoutView {
    let until = Instant::now() + DONE_WITHIN;
    loop {
        if let Some(layout) = settled(cluster).filter(&is_so) {
            return layout;
        }
        assert!(Instant::now() < until, "not one settled layout everywhere in time, with {what}");
        std::thread::sleep(Duration::from_millis(100)); // between two looks
    }
}

/// The layout that every node knows, if that is one and nothing is under way for any.
fn settled(cluster: &Cluster) -> Option<LayoutView> {
    let mut one: Option<LayoutView> = None;
    for at in 0..cluster.nodes.len() {
        let client = cluster.try_client(at)?;
        let ask = GetClusterRequest::default();
        let view = cluster.block_on(async { client.admin().get_cluster(ask).await }).ok()?;
        let layout = layout(cluster, &client)?;
        let same = one.as_ref().is_none_or(|one| one.layout == layout.layout);
        if !same || !view.into_inner().ops.is_empty() {
            return None;
        }
        one = Some(layout);
    }
    one
}

impl Cluster {
    /// A blank node more, started and prepared, that is no member yet. Returns its position.
    pub fn more(&mut self) -> usize {
        let number = self.nodes.iter().filter_map(|node| node.name[1..].parse::<u32>().ok());
        let number = number.max().unwrap_or(0) + 1;
        let mut node = Node::new(self.dir(), &format!("n{number}"));
        prepare(&mut node);
        node.start();
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Takes a node that has left out of the list, once its process has ended.
    pub fn forget(&mut self, name: &str) -> Node {
        let at = self.nodes.iter().position(|node| node.name == name).expect("it is a node");
        self.nodes.remove(at)
    }
}
