//! The commands, a file for each noun.

mod cluster;
mod compact;
mod completions;
mod delete;
mod dump;
mod exists;
mod gc;
mod get;
mod help;
mod hints;
mod jobs;
mod keyspaces;
mod lag;
mod load;
mod locate;
mod nodes;
mod progress;
mod put;
pub(crate) mod quorum;
mod repair;
mod ring;
mod scrub;
mod status;
mod tree;
mod version;

use crate::cli::{Cluster, Command, Compact, Gc, Hints, Keyspaces, Nodes, Repair, Ring, Scrub};
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use proto::v1::HintAction;

/// Runs one command.
pub(crate) async fn run(settings: Settings, command: Command) -> Result<Exit, Failure> {
    let connection = Connection::new(&settings);
    let done = dispatch(&settings, &connection, command).await;
    // An answer such as "no such key" comes from a live cluster as well.
    connection.remember().await;
    done
}

async fn dispatch(
    settings: &Settings,
    connection: &Connection,
    command: Command,
) -> Result<Exit, Failure> {
    match command {
        Command::Get(args) => get::run(settings, connection, args).await,
        Command::Put(args) => put::run(settings, connection, args).await,
        Command::Delete(args) => delete::run(settings, connection, args).await,
        Command::Exists(args) => exists::run(settings, connection, args).await,
        Command::Locate(args) => locate::run(settings, connection, args).await,
        Command::Load(args) => load::run(settings, connection, args).await,
        Command::Dump(args) => dump::run(settings, connection, args).await,
        Command::Status => status::run(settings, connection).await,
        Command::Nodes(Nodes::List { state, zone, sort }) => {
            nodes::list(settings, connection, state, zone, sort).await
        }
        Command::Nodes(Nodes::Show { node }) => nodes::show(settings, connection, &node).await,
        Command::Ring(Ring::Show { node, lagging, by }) => {
            ring::show(settings, connection, by, ring::Which { node, lagging }).await
        }
        Command::Keyspaces(Keyspaces::List) => keyspaces::list(settings, connection).await,
        Command::Keyspaces(Keyspaces::Show { name }) => {
            keyspaces::show(settings, connection, &name).await
        }
        Command::Keyspaces(Keyspaces::Create { name, policy, value_bytes_max }) => {
            keyspaces::create(settings, connection, name, policy, value_bytes_max).await
        }
        Command::Scrub(Scrub::Start { node }) => scrub::start(settings, connection, node).await,
        Command::Scrub(Scrub::Status { node }) => scrub::status(settings, connection, node).await,
        Command::Hints(action) => {
            let (action, node, target) = match action {
                Hints::List(of) => (HintAction::List, of.node, of.target),
                Hints::Pause { node } => (HintAction::Pause, node, None),
                Hints::Resume { node } => (HintAction::Resume, node, None),
                Hints::Replay { node } => (HintAction::Replay, node, None),
                Hints::Drop { node, target } => (HintAction::Drop, node, Some(target)),
            };
            hints::run(settings, connection, action, hints::Which { node, target }).await
        }
        Command::Gc(Gc::Run { node }) => gc::run(settings, connection, node).await,
        Command::Gc(Gc::Status { node }) => gc::status(settings, connection, node).await,
        Command::Compact(Compact::Start { node }) => {
            compact::start(settings, connection, node).await
        }
        Command::Compact(Compact::Status { node }) => {
            compact::status(settings, connection, node).await
        }
        Command::Repair(Repair::Start { node }) => repair::start(settings, connection, node).await,
        Command::Repair(Repair::Status { node }) => {
            repair::status(settings, connection, node).await
        }
        Command::Cluster(Cluster::Init(args)) => cluster::init(settings, args).await,
        Command::Completions { shell } => completions::run(shell),
        Command::Version => version::run(settings, connection).await,
        Command::Help { topic } => help::run(&topic),
    }
}
