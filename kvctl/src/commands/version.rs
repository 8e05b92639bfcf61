//! `version`: of kvctl, and of kvd where a node can be reached.

use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope};
use crate::table::Table;
use serde::Serialize;

const KVCTL: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Serialize)]
struct Version {
    kvctl: &'static str,
    /// Of the node that answered; null if none did.
    kvd: Option<String>,
    node: Option<String>,
}

pub(crate) async fn run(settings: &Settings, connection: &Connection) -> Result<Exit, Failure> {
    let view = connection.view().await.ok();
    let version = Version {
        kvctl: KVCTL,
        kvd: view.as_ref().map(|view| view.version.clone()),
        node: view.as_ref().map(|view| view.viewpoint.clone()),
    };
    let mut table = Table::new(&["PROGRAM", "VERSION", "WHERE"]);
    table.row(vec!["kvctl".into(), KVCTL.into(), "here".into()]);
    if let Some(view) = &view {
        table.row(vec!["kvd".into(), view.version.clone().into(), view.viewpoint.clone().into()]);
    } else {
        table.row(vec!["kvd".into(), "?".into(), "no node reachable".into()]);
    }
    let envelope = match &view {
        Some(view) => Envelope::of_view("kvctl.version/v1", view, version),
        None => Envelope::bare("kvctl.version/v1", version),
    };
    let answer = Answer {
        envelope: &envelope,
        heading: String::new(),
        table,
        names: vec![KVCTL.to_owned()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}
