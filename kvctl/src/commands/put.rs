//! `put`: stores a value in place of what its writer has seen.

use crate::cli::{Causality, OneKey, Put, WriteQuorum};
use crate::commands::get::{Dot, fetch, several, write_context};
use crate::commands::quorum::{Quorum, Replica, explanation};
use crate::config::Settings;
use crate::connection::{Connection, Kind, server_ms, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::{context, key, output, value};
use bytes::Bytes;
use proto::v1::{GetReply, PutRequest, WriteReply};
use serde::Serialize;
use std::io::{self, Write};

/// What a put did, as scripts read it.
#[derive(Debug, Serialize)]
struct Answer {
    schema: &'static str,
    key: String,
    key_b64: String,
    keyspace: String,
    coordinator: String,
    context: String,
    dot: Option<Dot>,
    siblings: u32,
    quorum: Quorum,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replicas: Vec<Replica>,
}

/// A value on its way.
pub(crate) struct Writing<'a> {
    pub key: &'a Bytes,
    pub value: Bytes,
    pub context: Bytes,
    pub explain: bool,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    mut args: Put,
) -> Result<Exit, Failure> {
    let key = key::one(take_key(&mut args)?)?;
    let given = given_context(&args.causality)?;
    let bytes = value::of_put(&mut args).await?;
    let context = match given {
        Some(context) => context,
        None => {
            let current = current(settings, connection, &key).await?.reply;
            replaceable(&key, &current, args.causality.resolve, "put")?;
            current.context
        }
    };
    let write = Writing { key: &key, value: bytes, context, explain: args.explain };
    let reply = send(settings, connection, write, &args.quorum).await?;
    write_context(args.context_out.as_deref(), &reply.context)?;
    report(settings, "kvctl.put/v1", &key, reply)?;
    Ok(Exit::Ok)
}

/// Sends one put. Every try of it carries the same request id, so that it is stored once.
pub(crate) async fn send(
    settings: &Settings,
    connection: &Connection,
    write: Writing<'_>,
    quorum: &WriteQuorum,
) -> Result<WriteReply, Failure> {
    let request_id = request_id()?;
    let doing = format!("put {}", key::show(write.key));
    connection
        .call(&doing, Kind::Write, |client, budget| {
            let request = PutRequest {
                keyspace: settings.keyspace.clone(),
                key: write.key.clone(),
                value: write.value.clone(),
                context: write.context.clone(),
                w: quorum.w,
                strict: strict(quorum),
                timeout_ms: server_ms(budget),
                request_id: request_id.clone(),
                explain: write.explain,
            };
            async move { client.kv().put(timed(request, budget)).await }
        })
        .await
}

/// What a key holds now, and whether R replicas said so.
pub(crate) struct Current {
    pub reply: GetReply,
    pub by_quorum: bool,
}

/// Reads what a write is to replace. One replica will do if R cannot be met: a write must not
/// fail for want of readers, and what it does not see stays as a sibling.
pub(crate) async fn current(
    settings: &Settings,
    connection: &Connection,
    key: &Bytes,
) -> Result<Current, Failure> {
    match fetch(settings, connection, key, None, false).await {
        Ok(reply) => Ok(Current { reply, by_quorum: true }),
        Err(failure) if failure.code() == "QUORUM_UNMET" => {
            let reply = fetch(settings, connection, key, Some(1), false).await?;
            Ok(Current { reply, by_quorum: false })
        }
        Err(failure) => Err(failure),
    }
}

/// Refuses to replace several values unless that is asked for.
pub(crate) fn replaceable(
    key: &[u8],
    current: &GetReply,
    resolve: bool,
    verb: &str,
) -> Result<(), Failure> {
    if current.siblings.len() < 2 || resolve {
        return Ok(());
    }
    let advice = format!(
        "kvctl {verb} {} … --resolve replaces them all; --context @FILE of a get those it showed",
        key::show(key)
    );
    Err(several(key, &current.siblings, &advice).state("nothing was sent"))
}

/// The context the flags name: none means that it is to be read first.
pub(crate) fn given_context(causality: &Causality) -> Result<Option<Bytes>, Failure> {
    match &causality.context {
        Some(flag) => context::from_flag(flag).map(Some),
        None if causality.blind => Ok(Some(Bytes::new())),
        None => Ok(None),
    }
}

/// `--strict`, `--sloppy`, or the keyspace's mode.
pub(crate) fn strict(quorum: &WriteQuorum) -> Option<bool> {
    match (quorum.strict, quorum.sloppy) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// Sixteen random bytes that name one write, however often it is sent.
pub(crate) fn request_id() -> Result<Bytes, Failure> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| Failure::internal(format!("no random numbers: {error}")))?;
    Ok(Bytes::copy_from_slice(&id))
}

/// Says what a write did: nothing, unless somebody wants to know or it left siblings.
pub(crate) fn report(
    settings: &Settings,
    schema: &'static str,
    key: &[u8],
    reply: WriteReply,
) -> Result<(), Failure> {
    if settings.format.is_json() {
        let answer = Answer {
            schema,
            key: key::show(key),
            key_b64: value::base64(key),
            keyspace: settings.keyspace.clone(),
            coordinator: reply.coordinator,
            context: context::to_text(&reply.context),
            dot: reply.dot.map(Dot::of),
            siblings: reply.siblings,
            quorum: Quorum::of_write(reply.quorum.unwrap_or_default()),
            replicas: reply.replicas.iter().map(Replica::of).collect(),
        };
        return output::print_json(settings, &answer);
    }
    if !reply.replicas.is_empty() {
        let table = explanation(&reply.replicas).aligned(true, settings.color_stderr);
        let _ = io::stderr().write_all(table.as_bytes());
    }
    if reply.siblings > 1 {
        let shown = key::show(key);
        let text = format!("note: {shown} now has {} concurrent values", reply.siblings);
        output::note(settings, &text);
    }
    Ok(())
}

/// With `--key-b64` or `--key-hex` the first argument is the value.
fn take_key(args: &mut Put) -> Result<OneKey, Failure> {
    let encoded = args.key_b64.is_some() || args.key_hex.is_some();
    if encoded && args.value.is_some() {
        return Err(Failure::usage("the key is given twice"));
    }
    if encoded {
        args.value = args.key.take();
    }
    Ok(OneKey { key: args.key.take(), key_b64: args.key_b64.take(), key_hex: args.key_hex.take() })
}
