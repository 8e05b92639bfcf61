//! The commands, a file for each noun.

mod certs;
pub(crate) mod check;
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
pub(crate) mod keyspaces;
mod lag;
mod load;
mod locate;
mod members;
mod nodes;
mod op_view;
mod ops;
mod plan;
mod plan_view;
mod policy;
mod progress;
mod propose;
mod put;
pub(crate) mod quorum;
mod repair;
mod ring;
mod safety;
mod scrub;
mod status;
mod tree;
mod version;
mod wait;

use crate::cli::{
    Certs, Cluster, Command, Compact, Gc, Hints, Keyspaces, Nodes, Quorum, Repair, Ring, Scrub,
};
use crate::config::{Settings, TIMEOUT};
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use proto::v1::HintAction;

/// Runs one command.
pub(crate) async fn run(settings: Settings, command: Command) -> Result<Exit, Failure> {
    let settings = patient(settings, &command);
    let connection = Connection::new(&settings);
    let done = dispatch(&settings, &connection, command).await;
    // An answer such as "no such key" comes from a live cluster as well.
    connection.remember().await;
    done
}

/// Of a command that waits, `--timeout` is for the whole of it: one call gets no more than usual,
/// or a node that hangs would be all that was ever asked.
fn patient(settings: Settings, command: &Command) -> Settings {
    let waits = matches!(
        command,
        Command::Check(_) | Command::Rebalance(_) | Command::Plan(_) | Command::Ops(_)
    ) || matches!(command, Command::Nodes(nodes) if !matches!(nodes, Nodes::List { .. } | Nodes::Show { .. }))
        || matches!(command, Command::Keyspaces(Keyspaces::Delete { .. }))
        || matches!(command, Command::Quorum(Quorum::Set { .. }));
    match waits {
        true => Settings { timeout: settings.timeout.min(TIMEOUT), ..settings },
        false => settings,
    }
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
        Command::Check(args) => check::run(settings, connection, args).await,
        Command::Nodes(command) => nodes_command(settings, connection, command).await,
        Command::Ring(Ring::Show { node, lagging, by }) => {
            ring::show(settings, connection, by, ring::Which { node, lagging }).await
        }
        Command::Keyspaces(command) => keyspaces_command(settings, connection, command).await,
        Command::Quorum(command) => policy::run(settings, connection, command).await,
        Command::Rebalance(args) => members::rebalance(settings, connection, args).await,
        Command::Plan(command) => plan::run(settings, connection, command).await,
        Command::Ops(command) => ops::run(settings, connection, command).await,
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
        Command::Certs(Certs::List { node }) => certs::list(settings, connection, node).await,
        Command::Certs(Certs::Reload { node }) => certs::reload(settings, connection, node).await,
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

async fn nodes_command(
    settings: &Settings,
    connection: &Connection,
    command: Nodes,
) -> Result<Exit, Failure> {
    match command {
        Nodes::List { state, zone, sort } => {
            nodes::list(settings, connection, state, zone, sort).await
        }
        Nodes::Show { node } => nodes::show(settings, connection, &node).await,
        Nodes::Add(args) => members::add(settings, connection, args).await,
        Nodes::Remove(args) => members::remove(settings, connection, args).await,
        Nodes::Replace(args) => members::replace(settings, connection, args).await,
        Nodes::Set(args) => members::set(settings, connection, args).await,
        Nodes::Drain(args) => members::drain(settings, connection, args).await,
        Nodes::Undrain { node } => members::undrain(settings, connection, node).await,
        Nodes::Wait(args) => members::wait(settings, connection, args).await,
    }
}

async fn keyspaces_command(
    settings: &Settings,
    connection: &Connection,
    command: Keyspaces,
) -> Result<Exit, Failure> {
    match command {
        Keyspaces::List => keyspaces::list(settings, connection).await,
        Keyspaces::Show { name } => keyspaces::show(settings, connection, &name).await,
        Keyspaces::Create { name, policy, value_bytes_max } => {
            keyspaces::create(settings, connection, name, policy, value_bytes_max).await
        }
        Keyspaces::Delete { name, propose } => {
            keyspaces::delete(settings, connection, name, propose).await
        }
    }
}
