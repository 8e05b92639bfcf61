//! `locate`: token, partition and preference list of a key.

use crate::cli::Locate;
use crate::commands::nodes::{state_cell, state_name};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::key;
use crate::output::{Answer, Envelope};
use crate::table::Table;
use crate::value::{base64, hex};
use proto::v1::{LocateReply, LocateRequest};
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Located {
    key: String,
    key_b64: String,
    keyspace: String,
    token: String,
    partition: u32,
    range_start: String,
    range_end: String,
    preference: Vec<Preferred>,
}

#[derive(Debug, Serialize)]
struct Preferred {
    node: String,
    zone: String,
    address: String,
    state: &'static str,
    fallback: bool,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Locate,
) -> Result<Exit, Failure> {
    let key = key::one(args.key)?;
    let doing = format!("locate {}", key::show(&key));
    let reply = connection
        .call(&doing, Kind::Read, |client, budget| {
            let request = LocateRequest { keyspace: settings.keyspace.clone(), key: key.clone() };
            async move { client.admin().locate(timed(request, budget)).await }
        })
        .await?;
    let heading = format!(
        "key        {}  keyspace {}\ntoken      {}\npartition  #{}  tokens {} to {}\n",
        key::show(&key),
        settings.keyspace,
        hex(&reply.token),
        reply.partition,
        short(&reply.range_start),
        short(&reply.range_end),
    );
    let mut envelope = Envelope::bare("kvctl.locate/v1", located(settings, &key, &reply));
    envelope.viewpoint = Some(reply.viewpoint.clone());
    envelope.ring = reply.layout.as_ref().map(|layout| layout.depth.to_string());
    let answer = Answer {
        envelope: &envelope,
        heading,
        table: table(settings, &reply),
        names: reply.preference.into_iter().map(|node| node.node).collect(),
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

/// The digits that tell one partition from the next.
fn short(token: &[u8]) -> String {
    let digits = hex(token);
    digits.get(..8).map_or(digits.clone(), |first| format!("{first}…"))
}

fn table(settings: &Settings, reply: &LocateReply) -> Table {
    let mut table = Table::new(&["RANK", "ROLE", "NODE", "ZONE", "STATE", "ADDRESS"]);
    for (position, node) in reply.preference.iter().enumerate() {
        table.row(vec![
            (position + 1).to_string().into(),
            if node.fallback { "fallback" } else { "replica" }.into(),
            node.node.clone().into(),
            node.zone.clone().into(),
            state_cell(settings, node.state()),
            node.address.clone().into(),
        ]);
    }
    table
}

fn located(settings: &Settings, key: &[u8], reply: &LocateReply) -> Located {
    let preference = reply.preference.iter().map(|node| Preferred {
        node: node.node.clone(),
        zone: node.zone.clone(),
        address: node.address.clone(),
        state: state_name(node.state()),
        fallback: node.fallback,
    });
    Located {
        key: key::show(key),
        key_b64: base64(key),
        keyspace: settings.keyspace.clone(),
        token: hex(&reply.token),
        partition: reply.partition,
        range_start: hex(&reply.range_start),
        range_end: hex(&reply.range_end),
        preference: preference.collect(),
    }
}
