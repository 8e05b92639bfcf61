//! `delete`: leaves a tombstone in place of what was seen. A missing key is success.

use crate::cli::Delete;
use crate::commands::get::not_found;
use crate::commands::put::{current, given_context, replaceable, report, request_id, strict};
use crate::config::Settings;
use crate::connection::{Connection, Kind, server_ms, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::{key, output, value};
use bytes::Bytes;
use proto::v1::{DeleteRequest, WriteReply};
use serde_json::json;

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Delete,
) -> Result<Exit, Failure> {
    let keys = key::many(args.keys.clone())?;
    let given = given_context(&args.causality)?;
    if keys.len() > 1 && args.causality.context.is_some() {
        return Err(Failure::usage("--context is for one key"));
    }
    if let [key] = keys.as_slice() {
        one(settings, connection, &args, key, given).await?;
        return Ok(Exit::Ok);
    }
    let (mut done, mut failed) = (0, Vec::new());
    for key in &keys {
        match one(settings, connection, &args, key, given.clone()).await {
            Ok(()) => done += 1,
            Err(failure) if failure.exit == Exit::BrokenPipe => return Err(failure),
            Err(failure) => failed.push(failure.report(settings.shape())),
        }
    }
    Ok(Exit::of_many(done, &failed))
}

async fn one(
    settings: &Settings,
    connection: &Connection,
    args: &Delete,
    key: &Bytes,
    given: Option<Bytes>,
) -> Result<(), Failure> {
    let read_first = given.is_none() || args.must_exist;
    let mut context = given.clone().unwrap_or_default();
    if read_first {
        let found = current(settings, connection, key).await?;
        if found.reply.siblings.is_empty() && args.must_exist {
            return Err(not_found(settings, key));
        }
        if given.is_none() {
            // One replica that has nothing proves nothing: the others may have a value.
            if found.reply.siblings.is_empty() && found.by_quorum {
                return nothing_to_delete(settings, key);
            }
            replaceable(key, &found.reply, args.causality.resolve, "delete")?;
            context = found.reply.context;
        }
    }
    let reply = send(settings, connection, args, key, context).await?;
    report(settings, "kvctl.delete/v1", key, reply)
}

async fn send(
    settings: &Settings,
    connection: &Connection,
    args: &Delete,
    key: &Bytes,
    context: Bytes,
) -> Result<WriteReply, Failure> {
    let request_id = request_id()?;
    let doing = format!("delete {}", key::show(key));
    connection
        .call(&doing, Kind::Write, |client, budget| {
            let request = DeleteRequest {
                keyspace: settings.keyspace.clone(),
                key: key.clone(),
                context: context.clone(),
                w: args.quorum.w,
                strict: strict(&args.quorum),
                timeout_ms: server_ms(budget),
                request_id: request_id.clone(),
                explain: args.explain,
            };
            async move { client.kv().delete(timed(request, budget)).await }
        })
        .await
}

fn nothing_to_delete(settings: &Settings, key: &[u8]) -> Result<(), Failure> {
    if !settings.format.is_json() {
        return Ok(());
    }
    let answer = json!({
        "schema": "kvctl.delete/v1",
        "key": key::show(key),
        "key_b64": value::base64(key),
        "keyspace": settings.keyspace,
        "existed": false,
    });
    output::print_json(settings, &answer)
}
