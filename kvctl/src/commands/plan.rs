//! `plan create|show|diff|apply|discard`: several changes as one, kept in a file.

use super::{plan_view, propose, ring};
use crate::change::Change;
use crate::cli::{self, Apply, PlanSource};
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, ClusterName, Envelope, note};
use crate::plan_file::{self, Kept, Plan, SCHEMA};
use crate::table::Table;
use crate::topology::{Difference, Topology};
use proto::v1::change::Change as Wanted;
use proto::v1::{self, ClusterView};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One way in which the cluster is not as declared.
#[derive(Debug, Serialize)]
struct DifferenceJson {
    words: String,
    change: Option<Change>,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    command: cli::Plan,
) -> Result<Exit, Failure> {
    match command {
        cli::Plan::Create { source, out } => create(settings, connection, source, out).await,
        cli::Plan::Show { file } => show(settings, &file),
        cli::Plan::Diff { file, exit_code } => diff(settings, connection, &file, exit_code).await,
        cli::Plan::Apply { file, apply } => self::apply(settings, connection, &file, apply).await,
        cli::Plan::Discard { file } => discard(settings, &file),
    }
}

async fn create(
    settings: &Settings,
    connection: &Connection,
    source: PlanSource,
    out: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let declared = source.file.as_deref().map(Topology::read).transpose()?;
    let view = connection.view().await?;
    let mut changes: Vec<v1::Change> =
        source.undo.map(|op| v1::Change { change: Some(Wanted::Undo(op)) }).into_iter().collect();
    if let Some(declared) = &declared {
        let found = declared.differences(&ring::layout(connection).await?);
        changes.extend(found.into_iter().map(|difference| difference.change));
    }
    let plan = made(connection, &view, changes).await?;
    let document = plan_view::envelope(&view, &plan);
    if let Some(out) = &out {
        plan_file::write(out, &document)?;
    }
    plan_view::print(settings, &document, &view.name)?;
    match out {
        Some(out) => {
            note(settings, &format!("kept; to apply it: kvctl plan apply {}", out.display()))
        }
        None if plan.lines.is_empty() => {}
        None => note(settings, "not kept: --out FILE keeps it for kvctl plan apply"),
    }
    Ok(Exit::Ok)
}

/// The cluster is not asked about changes that there are none of.
async fn made(
    connection: &Connection,
    view: &ClusterView,
    changes: Vec<v1::Change>,
) -> Result<Plan, Failure> {
    if changes.is_empty() {
        return Ok(Plan::of_nothing(view));
    }
    propose::make(connection, changes).await
}

fn show(settings: &Settings, file: &Path) -> Result<Exit, Failure> {
    let kept = Kept::read(file)?;
    let cluster = ClusterName { name: kept.cluster.clone(), id: kept.cluster_id.clone() };
    let document = Envelope {
        cluster: Some(cluster),
        ring: Some(kept.plan.base.ring.clone()),
        ..Envelope::bare(SCHEMA, &kept.plan)
    };
    plan_view::print(settings, &document, &kept.cluster)?;
    Ok(Exit::Ok)
}

async fn diff(
    settings: &Settings,
    connection: &Connection,
    file: &Path,
    exit_code: bool,
) -> Result<Exit, Failure> {
    let declared = Topology::read(file)?;
    let view = connection.view().await?;
    let found = declared.differences(&ring::layout(connection).await?);
    let json = |difference: &Difference| DifferenceJson {
        words: difference.words.clone(),
        change: Change::of_wire(&difference.change),
    };
    let mut table = Table::new(&["DIFFERENCE"]);
    for difference in &found {
        table.row(vec![difference.words.as_str().into()]);
    }
    let data: Vec<DifferenceJson> = found.iter().map(json).collect();
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.plan.diff/v1", &view, data),
        heading: String::new(),
        table,
        names: found.iter().map(|difference| difference.words.clone()).collect(),
    };
    match found.is_empty() && !settings.format.is_json() {
        true => note(settings, &format!("cluster {} is as declared", view.name)),
        false => answer.print(settings)?,
    }
    Ok(if exit_code && !found.is_empty() { Exit::No } else { Exit::Ok })
}

async fn apply(
    settings: &Settings,
    connection: &Connection,
    file: &Path,
    apply: Apply,
) -> Result<Exit, Failure> {
    let kept = Kept::read(file)?;
    if let Some(done) = propose::attach(settings, connection, &apply).await? {
        return Ok(done);
    }
    let view = connection.view().await?;
    kept.check_cluster(&view)?;
    propose::decide(settings, connection, &view, &kept.plan, &apply, None).await
}

/// Only a plan is removed, whatever the name on the command line.
fn discard(settings: &Settings, file: &Path) -> Result<Exit, Failure> {
    let kept = Kept::read(file)?;
    std::fs::remove_file(file).map_err(|error| Failure::file(file, &error))?;
    note(settings, &format!("plan {} is discarded", kept.plan.short_name()));
    Ok(Exit::Ok)
}
