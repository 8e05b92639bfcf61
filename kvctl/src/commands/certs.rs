//! `certs list|reload`: what secures the nodes.

use super::jobs::{self, at, error};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::table::{Cell, Table, Tone};
use crate::time::now_ms;
use proto::tls::span;
use proto::v1::{CertsReply, CertsRequest, CertsView};
use serde::Serialize;

/// A certificate that ends so soon is marked.
const SOON_SECONDS: i64 = 14 * 86_400;

/// One node's certificate, as scripts read it.
#[derive(Debug, Serialize)]
struct CertJson {
    node: String,
    tls: bool,
    subject: Option<String>,
    names: Vec<String>,
    issuer: Option<String>,
    not_before: Option<String>,
    not_after: Option<String>,
    read_at: Option<String>,
    access: bool,
    error: Option<String>,
}

pub(crate) async fn list(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, false, node).await?;
    print(settings, "kvctl.certs.list/v1", &reply)?;
    Ok(Exit::Ok)
}

pub(crate) async fn reload(
    settings: &Settings,
    connection: &Connection,
    node: Option<String>,
) -> Result<Exit, Failure> {
    let reply = ask(connection, true, node).await?;
    print(settings, "kvctl.certs.reload/v1", &reply)?;
    let failed = reply.nodes.iter().filter(|view| !view.error.is_empty()).count();
    Ok(match failed {
        0 => Exit::Ok,
        all if all == reply.nodes.len() => Exit::Refused,
        _ => Exit::Partial,
    })
}

async fn ask(
    connection: &Connection,
    reload: bool,
    node: Option<String>,
) -> Result<CertsReply, Failure> {
    let doing =
        if reload { "having certificates read again" } else { "asking for the certificates" };
    let node = node.unwrap_or_default();
    connection
        .call(doing, Kind::Read, |client, budget| {
            let request = timed(CertsRequest { reload, node: node.clone() }, budget);
            async move { client.admin().certs(request).await }
        })
        .await
}

fn print(settings: &Settings, schema: &'static str, reply: &CertsReply) -> Result<(), Failure> {
    let table = table(&reply.nodes, (now_ms() / 1000) as i64);
    jobs::print(settings, schema, &reply.nodes, |view| &view.node, json, table)
}

fn table(nodes: &[CertsView], now: i64) -> Table {
    let mut table = Table::new(&["NODE", "CERTIFICATE", "ENDS IN", "SIGNED BY", "ACCESS", "ERROR"]);
    for view in nodes {
        let subject = if view.tls { &view.subject } else { "none: not secured" };
        let issuer = if view.tls { &view.issuer } else { "-" };
        let ends = match (view.tls, view.not_after - now) {
            (false, _) => Cell::from("-"),
            (true, ..0) => Cell::toned("it has ended".to_owned(), Tone::Alarm),
            (true, left @ ..SOON_SECONDS) => Cell::toned(span(left as u64), Tone::Alarm),
            (true, left) => span(left as u64).into(),
        };
        table.row(vec![
            view.node.as_str().into(),
            subject.into(),
            ends,
            issuer.into(),
            if view.access { "by file" } else { "everybody" }.into(),
            Cell::toned(view.error.clone(), Tone::Alarm),
        ]);
    }
    table
}

fn json(view: &CertsView) -> CertJson {
    let at_second = |seconds: i64| at(seconds.max(0) as u64 * 1000);
    CertJson {
        node: view.node.clone(),
        tls: view.tls,
        subject: error(&view.subject),
        names: view.names.clone(),
        issuer: error(&view.issuer),
        not_before: at_second(view.not_before),
        not_after: at_second(view.not_after),
        read_at: at(view.read_at_ms),
        access: view.access,
        error: error(&view.error),
    }
}
