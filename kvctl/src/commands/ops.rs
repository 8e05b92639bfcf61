//! `ops list|show|wait|pause|resume|throttle|cancel`: what is under way in the cluster.

use super::{op_view, propose, wait};
use crate::cli::{self, Apply};
use crate::commands::op_view::OpJson;
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{self, Answer, Envelope, Format};
use crate::table::{Cell, Table, Tone};
use crate::time::{for_people, now_ms};
use crate::units::of_bytes;
use crate::value::size;
use proto::v1::change::Change as Wanted;
use proto::v1::{ClusterView, Op, OpState, OpsAction, OpsReply, OpsRequest};
use std::time::Duration;

const SCHEMA: &str = "kvctl.ops.show/v1";

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    command: cli::Ops,
) -> Result<Exit, Failure> {
    match command {
        cli::Ops::List => list(settings, connection).await,
        cli::Ops::Show { op } => steer(settings, connection, OpsAction::List, &op, None).await,
        cli::Ops::Wait { op, stall_timeout } => {
            let op = one(connection, &op).await?;
            let view = connection.view().await?;
            let ended = wait::follow(settings, connection, op, stall_timeout).await?;
            print_one(settings, &view, &ended)?;
            Ok(propose::exit_of(&ended))
        }
        cli::Ops::Pause { op } => steer(settings, connection, OpsAction::Pause, &op, None).await,
        cli::Ops::Resume { op } => steer(settings, connection, OpsAction::Resume, &op, None).await,
        cli::Ops::Throttle { op, rate } => {
            steer(settings, connection, OpsAction::Throttle, &op, Some(rate)).await
        }
        cli::Ops::Cancel { op, apply } => cancel(settings, connection, op, apply).await,
    }
}

async fn list(settings: &Settings, connection: &Connection) -> Result<Exit, Failure> {
    let reply = ask(connection, OpsAction::List, "", None).await?;
    let view = connection.view().await?;
    let data: Vec<OpJson> = reply.ops.iter().map(OpJson::of).collect();
    let answer = Answer {
        names: reply.ops.iter().map(|op| op.id.clone()).collect(),
        envelope: &Envelope::of_view("kvctl.ops.list/v1", &view, data),
        heading: String::new(),
        table: table(settings, &reply.ops),
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

/// Does `action` with one operation, and shows it.
async fn steer(
    settings: &Settings,
    connection: &Connection,
    action: OpsAction,
    op: &str,
    rate: Option<u64>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, action, op, rate).await?;
    let op = first(reply, op)?;
    let view = connection.view().await?;
    print_one(settings, &view, &op)?;
    Ok(Exit::Ok)
}

async fn cancel(
    settings: &Settings,
    connection: &Connection,
    op: String,
    apply: Apply,
) -> Result<Exit, Failure> {
    propose::change(settings, connection, vec![Wanted::Cancel(op)], None, apply, None).await
}

/// Asks for operations, or steers them; an empty name is all of them.
pub(super) async fn ask(
    connection: &Connection,
    action: OpsAction,
    op: &str,
    bytes_per_second: Option<u64>,
) -> Result<OpsReply, Failure> {
    let request = OpsRequest { action: action.into(), op: op.to_owned(), bytes_per_second };
    // Steering twice is steering once, so all of it may be said again.
    connection
        .call("asking for operations", Kind::Read, |client, budget| {
            let request = timed(request.clone(), budget);
            async move { client.admin().ops(request).await }
        })
        .await
}

/// The operation of this id or name.
pub(super) async fn one(connection: &Connection, op: &str) -> Result<Op, Failure> {
    first(ask(connection, OpsAction::List, op, None).await?, op)
}

/// The same, if there is one.
pub(super) async fn find(connection: &Connection, op: &str) -> Result<Option<Op>, Failure> {
    match one(connection, op).await {
        Ok(op) => Ok(Some(op)),
        Err(failure) if failure.code() == "OP_UNKNOWN" => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Prints one operation as the answer of the command.
pub(super) fn print_one(settings: &Settings, view: &ClusterView, op: &Op) -> Result<(), Failure> {
    if settings.format == Format::Tsv {
        return output::write(table(settings, std::slice::from_ref(op)).tsv().as_bytes());
    }
    let heading = op_view::heading(settings, op, now_ms());
    if op.pairs.is_empty() && matches!(settings.format, Format::Table | Format::Wide | Format::Raw)
    {
        return output::write(heading.as_bytes());
    }
    let answer = Answer {
        envelope: &Envelope::of_view(SCHEMA, view, OpJson::of(op)),
        heading,
        table: op_view::pairs(settings, op),
        names: vec![op.id.clone()],
    };
    answer.print(settings)
}

/// Prints an operation that is not waited for: to people only what they need to find it again.
pub(super) fn print_started(
    settings: &Settings,
    view: &ClusterView,
    op: &Op,
) -> Result<(), Failure> {
    match settings.format {
        Format::Json | Format::Jsonl | Format::Tsv => print_one(settings, view, op),
        _ => output::write(format!("{}\n", op.id).as_bytes()),
    }
}

fn first(reply: OpsReply, op: &str) -> Result<Op, Failure> {
    reply.ops.into_iter().next().ok_or_else(|| {
        let what = format!("there is no operation {op}");
        Failure::new(Exit::NotFound, "OP_UNKNOWN", what).advice("kvctl ops list")
    })
}

fn table(settings: &Settings, ops: &[Op]) -> Table {
    let mut table = Table::new(&[
        "OP", "STATE", "WHAT", "DONE", "COPIES", "DATA", "RATE", "ETA", "STUCK", "BY", "AGE",
        "+NAMED", "+CLOSED",
    ]);
    let now = now_ms();
    for op in ops {
        let over = op_view::is_over(op);
        let for_ms = |ms: u64| for_people(Duration::from_millis(ms));
        let eta = if op.eta_ms > 0 { for_ms(op.eta_ms) } else { "-".to_owned() };
        let rate = if over { "-".to_owned() } else { format!("{}/s", size(op.bytes_per_second)) };
        table.row(vec![
            op.id.as_str().into(),
            state_cell(settings, op),
            what(op).into(),
            format!("{}%", op_view::progress_percent(op)).into(),
            format!("{}/{}", op.copies_done, op.copies_total).into(),
            of_bytes(op.bytes_done, op.bytes_total).into(),
            rate.into(),
            eta.into(),
            stuck_cell(op),
            op.by.as_str().into(),
            for_ms(now.saturating_sub(op.at_ms)).into(),
            op_view::given_name(op).unwrap_or("-").into(),
            format!("{}/{}", op.transitions_closed, op.transitions_total).into(),
        ]);
    }
    table
}

/// What it changes: its first line, and how many there are besides.
fn what(op: &Op) -> String {
    let first = op.lines.first().cloned().unwrap_or_default();
    match op.lines.len() {
        0 | 1 => first,
        many => format!("{first}, {} more", many - 1),
    }
}

fn state_cell(settings: &Settings, op: &Op) -> Cell {
    let name = op_view::state_name(op.state());
    match op.state() {
        OpState::Running | OpState::Paused if op.needs_attention => {
            let sign = if settings.ascii { "!" } else { "▲" };
            Cell::toned(format!("{name} {sign}"), Tone::Warning)
        }
        OpState::Cancelled => Cell::toned(name, Tone::Warning),
        _ => name.into(),
    }
}

fn stuck_cell(op: &Op) -> Cell {
    match op_view::stuck_count(op) {
        0 => "0".into(),
        stuck => Cell::toned(stuck.to_string(), Tone::Warning),
    }
}
