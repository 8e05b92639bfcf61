//! `nodes add|remove|replace|set|drain|undrain|wait` and `rebalance`: who belongs to the cluster,
//! with what weight, and what each takes on.

use super::cluster::members;
use super::{lag, nodes, propose, safety};
use crate::cli::{
    Add, Apply, Attributes, Drain, Rebalance, Remove, Replace, Set, WaitFor, WaitNode,
};
use crate::config::Settings;
use crate::confirm::{Question, confirm};
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope, note};
use crate::patience::Patience;
use crate::table::Table;
use crate::time::{for_people, now_ms, time_of_day};
use crate::units::counted;
use proto::profile::with_port;
use proto::v1::change::Change as Wanted;
use proto::v1::{
    self, ClusterView, DrainReply, DrainRequest, NewMember, NodeState, NodeView, RemoveNode,
    ReplaceNode, SetNode,
};
use serde::Serialize;
use std::time::{Duration, Instant};

/// A wait says this often where it stands.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// What a drained node has left, as scripts read it.
#[derive(Debug, Serialize)]
struct Drained {
    node: String,
    draining: bool,
    requests: u32,
}

/// What was waited for, as scripts read it.
#[derive(Debug, Serialize)]
struct Waited {
    node: String,
    #[serde(rename = "for")]
    target: &'static str,
    waited_ms: u64,
}

pub(crate) async fn add(
    settings: &Settings,
    connection: &Connection,
    args: Add,
) -> Result<Exit, Failure> {
    let members = members(&args.members, &args.zone, &args.weight)?;
    let wanted = members.into_iter().map(Wanted::Add).collect();
    propose::propose(settings, connection, wanted, args.propose).await
}

pub(crate) async fn remove(
    settings: &Settings,
    connection: &Connection,
    args: Remove,
) -> Result<Exit, Failure> {
    let dead = args.dead;
    let wanted = args.nodes.into_iter().map(|node| Wanted::Remove(RemoveNode { node, dead }));
    propose::propose(settings, connection, wanted.collect(), args.propose).await
}

pub(crate) async fn replace(
    settings: &Settings,
    connection: &Connection,
    args: Replace,
) -> Result<Exit, Failure> {
    let (name, address) = args.with;
    let with = NewMember {
        name,
        address: with_port(&address),
        zone: args.zone.unwrap_or_default(),
        weight: args.weight.unwrap_or_default(),
    };
    let replace = ReplaceNode { node: args.node, with: Some(with), dead: args.dead };
    propose::propose(settings, connection, vec![Wanted::Replace(replace)], args.propose).await
}

pub(crate) async fn set(
    settings: &Settings,
    connection: &Connection,
    args: Set,
) -> Result<Exit, Failure> {
    let Attributes { weight, zone, address } = args.what;
    let address = address.map(|address| with_port(&address));
    let set = SetNode { node: args.node, weight, zone, address };
    propose::propose(settings, connection, vec![Wanted::Set(set)], args.propose).await
}

pub(crate) async fn rebalance(
    settings: &Settings,
    connection: &Connection,
    args: Rebalance,
) -> Result<Exit, Failure> {
    if let Some(threshold) = args.threshold {
        let view = connection.view().await?;
        if let Some(said) = balanced(&view, threshold) {
            return nothing_to_do(settings, connection, &view, &args.apply, &said).await;
        }
    }
    let wanted = vec![Wanted::Rebalance(v1::Rebalance {})];
    propose::change(settings, connection, wanted, None, args.apply, args.throttle).await
}

/// The answer where no plan is worth making: the plan of no changes, and why.
async fn nothing_to_do(
    settings: &Settings,
    connection: &Connection,
    view: &ClusterView,
    apply: &Apply,
    said: &str,
) -> Result<Exit, Failure> {
    note(settings, said);
    let plan = crate::plan_file::Plan::of_nothing(view);
    propose::decide(settings, connection, view, &plan, apply, None).await
}

/// Says so if every node is as near to its fair share as it has to be.
fn balanced(view: &ClusterView, threshold: f64) -> Option<String> {
    let far = |node: &NodeView| match node.fair_ratio {
        fair if fair > 0.0 => (node.share_ratio / fair - 1.0).abs(),
        _ => 0.0,
    };
    let worst = view.nodes.iter().max_by(|a, b| far(a).total_cmp(&far(b)))?;
    let off = far(worst);
    (off <= threshold).then(|| {
        format!("no node is further from its fair share than {}: {:.1}%", worst.name, off * 100.0)
    })
}

pub(crate) async fn drain(
    settings: &Settings,
    connection: &Connection,
    args: Drain,
) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    nodes::find(&view, &args.node)?;
    let safe = safety::of_nodes(connection).await.ok();
    let safe = safe.and_then(|reply| reply.nodes.into_iter().find(|node| node.node == args.node));
    let details = safe.map(|safe| format!("  safe to stop  {}", safety::words(&safe)));
    let question = Question {
        what: format!("draining {}", args.node),
        details: details.into_iter().collect(),
        ask: format!("Drain {} of {}?", args.node, view.name),
    };
    confirm(settings, question).await?;
    let mut requests = ask(connection, &args.node, true).await?.requests;
    let mut patience = Patience::new(settings.wait_timeout);
    while args.wait && requests > 0 {
        if !patience.pause().await {
            let count = counted(u64::from(requests), "request");
            let what = format!("{} has {count} under way still", args.node);
            return Err(Failure::new(Exit::TimedOut, "WAIT_TIMED_OUT", what)
                .state("it takes no more, and goes on with these")
                .advice(format!("kvctl nodes drain {} --wait --yes", args.node)));
        }
        let reply = ask(connection, &args.node, true).await;
        if let Some(reply) = patience.bear(connection, reply).await? {
            requests = reply.requests;
        }
    }
    print_drained(settings, &view, "kvctl.nodes.drain/v1", args.node, true, requests)
}

pub(crate) async fn undrain(
    settings: &Settings,
    connection: &Connection,
    node: String,
) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    nodes::find(&view, &node)?;
    let question = Question {
        what: format!("undraining {node}"),
        details: Vec::new(),
        ask: format!("Have {node} of {} take client requests again?", view.name),
    };
    confirm(settings, question).await?;
    let requests = ask(connection, &node, false).await?.requests;
    print_drained(settings, &view, "kvctl.nodes.undrain/v1", node, false, requests)
}

async fn ask(connection: &Connection, node: &str, on: bool) -> Result<DrainReply, Failure> {
    let doing = if on { "draining" } else { "undraining" };
    // Draining twice is draining once, so it may be said again.
    connection
        .call(&format!("{doing} {node}"), Kind::Read, |client, budget| {
            let request = timed(DrainRequest { node: node.to_owned(), on }, budget);
            async move { client.admin().drain(request).await }
        })
        .await
}

fn print_drained(
    settings: &Settings,
    view: &ClusterView,
    schema: &'static str,
    node: String,
    draining: bool,
    requests: u32,
) -> Result<Exit, Failure> {
    let mut table = Table::new(&["NODE", "DRAINING", "REQUESTS"]);
    let word = if draining { "yes" } else { "no" };
    table.row(vec![node.as_str().into(), word.into(), requests.to_string().into()]);
    let names = vec![node.clone()];
    let data = Drained { node, draining, requests };
    let envelope = &Envelope::of_view(schema, view, data);
    Answer { envelope, heading: String::new(), table, names }.print(settings)?;
    Ok(Exit::Ok)
}

pub(crate) async fn wait(
    settings: &Settings,
    connection: &Connection,
    args: WaitNode,
) -> Result<Exit, Failure> {
    let start = Instant::now();
    let mut patience = Patience::new(settings.wait_timeout);
    let mut noted = start;
    loop {
        let view = connection.view().await;
        let mut missing = "no node answers".to_owned();
        if let Some(view) = patience.bear(connection, view).await? {
            match lacks(&view, &args)? {
                None => return print_waited(settings, &view, args, start.elapsed()),
                Some(lacking) => missing = lacking,
            }
        }
        if noted.elapsed() >= NOTE_EVERY {
            noted = Instant::now();
            note(settings, &format!("{} {} {missing}", time_of_day(now_ms()), args.node));
        }
        if !patience.pause().await {
            let limit = for_people(settings.wait_timeout.unwrap_or_default());
            let what = format!("{} is not {} after {limit}", args.node, target_name(args.target));
            return Err(Failure::new(Exit::TimedOut, "WAIT_TIMED_OUT", what)
                .why(missing)
                .advice(format!("a longer --timeout, or kvctl nodes show {}", args.node)));
        }
    }
}

/// What is still lacking; none: it is as it was waited for.
fn lacks(view: &ClusterView, args: &WaitNode) -> Result<Option<String>, Failure> {
    if args.target == WaitFor::Left {
        let there = view.nodes.iter().any(|node| node.name == args.node);
        return Ok(there.then(|| "is in the cluster".to_owned()));
    }
    let node = nodes::find(view, &args.node)?;
    Ok(match args.target {
        WaitFor::Up | WaitFor::Left => not_up(node),
        WaitFor::InSync => not_in_sync(view, node),
    })
}

fn not_up(node: &NodeView) -> Option<String> {
    let state = nodes::state_name(node.state());
    (node.state() != NodeState::Up).then(|| format!("is {state}"))
}

fn not_in_sync(view: &ClusterView, node: &NodeView) -> Option<String> {
    if let Some(words) = not_up(node) {
        return Some(words);
    }
    let membership = nodes::membership_name(node.membership());
    if membership != nodes::MEMBER {
        return Some(format!("is {membership}"));
    }
    match &node.lag {
        Some(lag) if lag.since_ms > 0 => {
            let age = view.observed_at_ms.saturating_sub(lag.since_ms);
            Some(format!("lags {}", for_people(Duration::from_millis(age))))
        }
        Some(lag) if lag::is_known(lag) => None,
        _ => Some("is not known to lack nothing".to_owned()),
    }
}

fn target_name(target: WaitFor) -> &'static str {
    match target {
        WaitFor::Up => "up",
        WaitFor::InSync => "in sync",
        WaitFor::Left => "gone",
    }
}

fn print_waited(
    settings: &Settings,
    view: &ClusterView,
    args: WaitNode,
    waited: Duration,
) -> Result<Exit, Failure> {
    let target = match args.target {
        WaitFor::Up => "up",
        WaitFor::InSync => "in_sync",
        WaitFor::Left => "left",
    };
    let mut table = Table::new(&["NODE", "IS", "WAITED"]);
    let state = target_name(args.target);
    table.row(vec![args.node.as_str().into(), state.into(), for_people(waited).into()]);
    let names = vec![args.node.clone()];
    let waited_ms = waited.as_millis() as u64;
    let data = Waited { node: args.node, target, waited_ms };
    let envelope = &Envelope::of_view("kvctl.nodes.wait/v1", view, data);
    Answer { envelope, heading: String::new(), table, names }.print(settings)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Lag, Membership};

    fn view(node: NodeView) -> ClusterView {
        let name = "n1".to_owned();
        ClusterView {
            nodes: vec![NodeView { name, ..node }],
            observed_at_ms: 60_000,
            ..Default::default()
        }
    }

    fn lacking(node: NodeView, target: WaitFor) -> Option<String> {
        lacks(&view(node), &WaitNode { node: "n1".into(), target }).unwrap()
    }

    #[test]
    fn in_sync_is_a_member_that_is_up_and_known_to_lack_nothing() {
        let up = NodeState::Up as i32;
        let member = Membership::Member as i32;
        let lag = |since_ms, unheard: &[&str]| {
            let unheard = unheard.iter().map(|name| (*name).to_owned()).collect();
            Some(Lag { since_ms, unheard, ..Default::default() })
        };
        let node = |lag| NodeView { state: up, membership: member, lag, ..Default::default() };
        let missing = |node| lacking(node, WaitFor::InSync);
        assert_eq!(missing(node(lag(0, &[]))), None);
        assert_eq!(missing(node(lag(50_000, &[]))).unwrap(), "lags 10s");
        assert_eq!(missing(node(lag(0, &["n2"]))).unwrap(), "is not known to lack nothing");
        assert_eq!(missing(node(None)).unwrap(), "is not known to lack nothing");
        let joining = Membership::Joining as i32;
        let joining = NodeView { membership: joining, ..node(lag(0, &[])) };
        assert_eq!(missing(joining.clone()).unwrap(), "is joining");
        assert_eq!(lacking(joining, WaitFor::Up), None);
        let down = NodeView { state: NodeState::Down as i32, ..node(lag(0, &[])) };
        assert_eq!(missing(down).unwrap(), "is down");
    }

    #[test]
    fn who_is_not_there_has_left_and_is_otherwise_unknown() {
        let empty = ClusterView::default();
        let args = |target| WaitNode { node: "n1".into(), target };
        assert_eq!(lacks(&empty, &args(WaitFor::Left)).unwrap(), None);
        assert_eq!(lacks(&empty, &args(WaitFor::Up)).unwrap_err().exit, Exit::NotFound);
        assert!(lacking(NodeView::default(), WaitFor::Left).is_some());
    }

    #[test]
    fn balance_is_judged_by_the_node_furthest_off() {
        let node = |share_ratio| NodeView { share_ratio, fair_ratio: 0.5, ..Default::default() };
        let view = ClusterView { nodes: vec![node(0.5), node(0.46)], ..Default::default() };
        assert!(balanced(&view, 0.05).is_none());
        assert!(balanced(&view, 0.09).unwrap().contains("8.0%"));
    }
}
