//! `cluster init`: makes a cluster of blank nodes.

use crate::cli::{Init, Policy};
use crate::commands::keyspaces::of_policy;
use crate::commands::nodes::{Node, table};
use crate::commands::status::cluster_line;
use crate::config::Settings;
use crate::confirm::{Question, confirm};
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope};
use proto::profile::with_port;
use proto::v1::{InitClusterRequest, NewMember};

pub(crate) async fn init(settings: &Settings, args: Init) -> Result<Exit, Failure> {
    let request = request(&args)?;
    confirm(settings, question(&args, &request)).await?;
    let mut settings = settings.clone();
    if !settings.endpoints_typed {
        // The first that answers makes the cluster; all must be reachable anyway.
        settings.endpoints = request.members.iter().map(|m| m.address.clone()).collect();
    }
    let view = Connection::unacquainted(&settings)
        .call("cluster init", Kind::Once, |client, budget| {
            let request = timed(request.clone(), budget);
            async move { client.admin().init_cluster(request).await }
        })
        .await?;
    let nodes: Vec<Node> =
        view.nodes.iter().map(|node| Node::of(node, view.observed_at_ms)).collect();
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.cluster.init/v1", &view, nodes),
        heading: cluster_line(&view),
        table: table(&settings, view.observed_at_ms, &view.nodes),
        names: vec![view.name.clone()],
    };
    answer.print(&settings)?;
    Ok(Exit::Ok)
}

fn request(args: &Init) -> Result<InitClusterRequest, Failure> {
    let members = members(&args.members, &args.zone, &args.weight)?;
    let Policy { n, r, w, mode, compression } = args.policy;
    let counts = n.is_some() || r.is_some() || w.is_some();
    let given = counts || mode.is_some() || compression.is_some();
    let n_usual = members.len().min(3) as u32;
    Ok(InitClusterRequest {
        name: args.name.clone(),
        default_keyspace: given.then(|| of_policy("default", &args.policy, n_usual)),
        members,
    })
}

/// Nodes to be, with their zones and weights.
pub(super) fn members(
    named: &[(String, String)],
    zones: &[String],
    weights: &[u32],
) -> Result<Vec<NewMember>, Failure> {
    let zones = for_each("--zone", zones, named.len(), &String::new())?;
    let weights = for_each("--weight", weights, named.len(), &0)?;
    let member = |((name, address), (zone, weight)): (&(String, String), _)| NewMember {
        name: name.clone(),
        address: with_port(address),
        zone,
        weight,
    };
    Ok(named.iter().zip(zones.into_iter().zip(weights)).map(member).collect())
}

/// One value for each member: as many as there are, one for all, or the usual.
fn for_each<T: Clone>(
    flag: &str,
    given: &[T],
    members: usize,
    usual: &T,
) -> Result<Vec<T>, Failure> {
    match given {
        [] => Ok(vec![usual.clone(); members]),
        [one] => Ok(vec![one.clone(); members]),
        many if many.len() == members => Ok(many.to_vec()),
        many => Err(Failure::usage(format!(
            "{flag} has {} values for {members} members; give one for each, or one for all",
            many.len()
        ))),
    }
}

fn question(args: &Init, request: &InitClusterRequest) -> Question {
    let line = |member: &NewMember| {
        let zone = if member.zone.is_empty() { "default" } else { &member.zone };
        let (name, address, weight) = (&member.name, &member.address, member.weight.max(1));
        format!("  {name}  {address}  zone {zone}  weight {weight}")
    };
    let head = format!("cluster {} of {} nodes", args.name, request.members.len());
    Question {
        what: format!("making cluster {}", args.name),
        details: [head].into_iter().chain(request.members.iter().map(line)).collect(),
        ask: "Make it?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Cluster, Command};
    use clap::Parser;

    fn requested(line: &str) -> Result<InitClusterRequest, Failure> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Cluster(Cluster::Init(args)) = cli.command else { panic!("not an init") };
        request(&args)
    }

    #[test]
    fn members_take_their_zones_and_weights_in_order() {
        let asked = requested(
            "kvctl cluster init --name p n1=a:1 n2=b n3=c:3 --zone x,y,z --weight 2 --w 3",
        );
        let asked = asked.unwrap();
        let members: Vec<_> =
            asked.members.iter().map(|m| (m.address.as_str(), m.zone.as_str(), m.weight)).collect();
        assert_eq!(members, [("a:1", "x", 2), ("b:7400", "y", 2), ("c:3", "z", 2)]);
        let keyspace = asked.default_keyspace.unwrap();
        assert_eq!((keyspace.n, keyspace.r, keyspace.w), (3, 2, 3));

        let bare = requested("kvctl cluster init --name p n1=a:1").unwrap();
        assert!(bare.default_keyspace.is_none());
        let uneven = requested("kvctl cluster init --name p n1=a:1 n2=b:1 n3=c:1 --zone x,y");
        assert_eq!(uneven.unwrap_err().exit, Exit::Usage);
    }
}
