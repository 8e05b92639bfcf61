//! `cluster init`: makes a cluster of blank nodes.

use crate::cli::{Init, Policy};
use crate::commands::keyspaces::of_policy;
use crate::commands::nodes::{Node, table};
use crate::commands::status::cluster_line;
use crate::config::{Settings, with_port};
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope, printable};
use proto::v1::{InitClusterRequest, NewMember};
use std::io::{self, BufRead, Write};

pub(crate) async fn init(settings: &Settings, args: Init) -> Result<Exit, Failure> {
    let request = request(&args)?;
    confirm(settings, &args, &request).await?;
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
    let zones = for_each("--zone", &args.zone, args.members.len(), &String::new())?;
    let weights = for_each("--weight", &args.weight, args.members.len(), &0)?;
    let members: Vec<NewMember> = args
        .members
        .iter()
        .zip(zones.into_iter().zip(weights))
        .map(|((name, address), (zone, weight))| NewMember {
            name: name.clone(),
            address: with_port(address),
            zone,
            weight,
        })
        .collect();
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

async fn confirm(
    settings: &Settings,
    args: &Init,
    request: &InitClusterRequest,
) -> Result<(), Failure> {
    if settings.yes {
        return Ok(());
    }
    let command = command_line(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()));
    if settings.unattended {
        let what = format!("making cluster {} needs a confirmation", args.name);
        return Err(Failure::new(Exit::Unconfirmed, "CONFIRMATION_NEEDED", what)
            .why("nobody can be asked: no terminal, CI=true or --no-input")
            .state("nothing was sent")
            .advice(command.clone())
            .field("command", command.into()));
    }
    let mut question = format!("cluster {} of {} nodes\n", args.name, request.members.len());
    for member in &request.members {
        let zone = if member.zone.is_empty() { "default" } else { &member.zone };
        let (name, address, weight) = (&member.name, &member.address, member.weight.max(1));
        question += &format!("  {name}  {address}  zone {zone}  weight {weight}\n");
    }
    let shown: String = question.lines().map(|line| printable(line) + "\n").collect();
    let _ = write!(io::stderr(), "{shown}Make it? [y/N] ");
    // On a thread of its own, so that Ctrl-C is heard while nobody answers.
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    match answer.await {
        Ok(Ok(line)) if ["y", "yes"].contains(&line.trim().to_lowercase().as_str()) => Ok(()),
        _ => Err(Failure::new(Exit::Unconfirmed, "DECLINED", "declined").state("nothing was sent")),
    }
}

/// The same command for a shell, with the confirmation in it.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let words = args.skip(1).filter(|arg| arg != "--no-input").map(|arg| quoted(&arg));
    let words: Vec<String> = ["kvctl".to_owned()].into_iter().chain(words).collect();
    words.join(" ") + " --yes"
}

fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=:.,/@%+[]".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\'', r"'\''"))
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

    #[test]
    fn the_command_to_repeat_can_be_pasted() {
        let args = ["/bin/kvctl", "cluster", "init", "--name", "it's", "n1=a:1"];
        assert_eq!(
            command_line(args.map(str::to_owned).into_iter()),
            r"kvctl cluster init --name 'it'\''s' n1=a:1 --yes"
        );
    }
}
