//! `get`: the values of keys. One value is printed byte for byte; of several none is picked.

use crate::cli::{Get, SiblingChoice};
use crate::commands::quorum::{Quorum, Replica, explanation};
use crate::config::Settings;
use crate::connection::{Connection, Kind, server_ms, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::time::{rfc3339, time_of_day};
use crate::{context, key, value};
use bytes::Bytes;
use proto::v1::{GetReply, GetRequest, Sibling};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// A complete answer, as scripts read it.
#[derive(Debug, Serialize)]
struct Answer {
    schema: &'static str,
    key: String,
    key_b64: String,
    keyspace: String,
    coordinator: String,
    context: String,
    siblings: Vec<SiblingJson>,
    quorum: Quorum,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replicas: Vec<Replica>,
}

#[derive(Debug, Serialize)]
struct SiblingJson {
    value_b64: String,
    size: usize,
    sha256: String,
    dot: Option<Dot>,
    written_at: String,
    context: String,
}

/// The name of a write. Digits as text: they do not fit a script's numbers.
#[derive(Debug, Serialize)]
pub(crate) struct Dot {
    actor: String,
    counter: String,
}

impl Dot {
    pub(crate) fn of(dot: proto::v1::Dot) -> Self {
        Self { actor: format!("{:016x}", dot.actor), counter: dot.counter.to_string() }
    }
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Get,
) -> Result<Exit, Failure> {
    let keys = key::many(args.keys.clone())?;
    check(settings, &args, keys.len())?;
    if let Some(folder) = &args.out_dir {
        std::fs::create_dir_all(folder).map_err(|error| Failure::file(folder, &error))?;
    }
    if let [key] = keys.as_slice() {
        return one(settings, connection, &args, key).await;
    }
    let (mut done, mut failed) = (0, Vec::new());
    for key in &keys {
        match one(settings, connection, &args, key).await {
            Ok(_) => done += 1,
            Err(failure) if failure.exit == Exit::BrokenPipe => return Err(failure),
            Err(failure) => failed.push(failure.report(settings.shape())),
        }
    }
    Ok(Exit::of_many(done, &failed))
}

/// Reads a key and checks what came. `r` overrides the keyspace's.
pub(crate) async fn fetch(
    settings: &Settings,
    connection: &Connection,
    key: &Bytes,
    r: Option<u32>,
    explain: bool,
) -> Result<GetReply, Failure> {
    let doing = format!("get {}", key::show(key));
    let reply = connection
        .call(&doing, Kind::Read, |client, budget| {
            let request = GetRequest {
                keyspace: settings.keyspace.clone(),
                key: key.clone(),
                r,
                timeout_ms: server_ms(budget),
                explain,
            };
            async move { client.kv().get(timed(request, budget)).await }
        })
        .await?;
    for sibling in &reply.siblings {
        value::verify(key, sibling)?;
    }
    Ok(reply)
}

/// The failure of a key with several values, listing them.
pub(crate) fn several(key: &[u8], siblings: &[Sibling], advice: &str) -> Failure {
    let shown = key::show(key);
    let sizes: Vec<String> = siblings.iter().map(|s| value::size(s.value.len() as u64)).collect();
    let width = sizes.iter().map(String::len).max().unwrap_or(0);
    let line = |(number, (sibling, size)): (usize, (&Sibling, &String))| {
        format!(
            "{number}  {size:>width$}  sha256:{}  writer clock {}  {}",
            &value::sha256(&sibling.value)[..12],
            time_of_day(sibling.written_at_ms),
            value::preview(&sibling.value)
        )
    };
    let lines = siblings.iter().zip(&sizes).enumerate().map(line).collect();
    let described = siblings.iter().map(|sibling| {
        serde_json::json!({
            "size": sibling.value.len(),
            "sha256": value::sha256(&sibling.value),
            "written_at": rfc3339(sibling.written_at_ms),
        })
    });
    Failure::new(
        Exit::Conflict,
        "SIBLINGS",
        format!("{shown} has {} concurrent values", siblings.len()),
    )
    .lines(lines)
    .advice(advice)
    .field("key_b64", value::base64(key).into())
    .field("siblings", described.collect::<Vec<_>>().into())
}

/// The failure of a key without a value.
pub(crate) fn not_found(settings: &Settings, key: &[u8]) -> Failure {
    let what = format!("{} has no value in keyspace {}", key::show(key), settings.keyspace);
    Failure::new(Exit::NotFound, "NOT_FOUND", what).field("key_b64", value::base64(key).into())
}

/// Writes a context file, if one is asked for.
pub(crate) fn write_context(path: Option<&Path>, context: &[u8]) -> Result<(), Failure> {
    path.map_or(Ok(()), |path| {
        value::write_file(path, format!("{}\n", context::to_text(context)).as_bytes())
    })
}

/// Combinations that have no meaning.
fn check(settings: &Settings, args: &Get, keys: usize) -> Result<(), Failure> {
    let json = settings.format.is_json();
    if keys > 1 && args.out_dir.is_none() && (!json || args.out.is_some()) {
        return Err(Failure::usage("several keys need --out-dir DIR or -o json"));
    }
    if keys > 1 && args.context_out.is_some() {
        return Err(Failure::usage("--context-out is for one key"));
    }
    let all = args.sibling == Some(SiblingChoice::All);
    if all && args.out_dir.is_none() && (!json || args.out.is_some()) {
        return Err(Failure::usage("--sibling all needs --out-dir DIR or -o json"));
    }
    Ok(())
}

async fn one(
    settings: &Settings,
    connection: &Connection,
    args: &Get,
    key: &Bytes,
) -> Result<Exit, Failure> {
    let reply = fetch(settings, connection, key, args.r, args.explain).await?;
    let to_files = args.out.is_some() || args.out_dir.is_some();
    let print_answer = settings.format.is_json();
    if args.explain && !print_answer {
        let table = explanation(&reply.replicas).aligned(true, settings.color_stderr);
        let _ = io::stderr().write_all(table.as_bytes());
    }
    if reply.siblings.is_empty() {
        write_context(args.context_out.as_deref(), &reply.context)?;
        return Err(not_found(settings, key));
    }
    let chosen = choose(key, &reply.siblings, args.sibling, print_answer && !to_files)?;
    let seen = match chosen {
        // Only what was shown may be replaced by whoever uses the context.
        [only] if reply.siblings.len() > 1 => &only.context,
        _ => &reply.context,
    };
    if to_files {
        write_files(args, key, chosen)?;
    } else if !print_answer {
        print_value(settings, key, &chosen[0].value)?;
    }
    write_context(args.context_out.as_deref(), seen)?;
    if print_answer {
        let answer = Answer {
            schema: "kvctl.get/v1",
            key: key::show(key),
            key_b64: value::base64(key),
            keyspace: settings.keyspace.clone(),
            context: context::to_text(seen),
            siblings: chosen.iter().map(sibling_json).collect(),
            coordinator: reply.coordinator,
            quorum: Quorum::of_get(reply.quorum.unwrap_or_default()),
            replicas: reply.replicas.iter().map(Replica::of).collect(),
        };
        output::print_json(settings, &answer)?;
    }
    Ok(Exit::Ok)
}

/// The siblings that are meant. `complete` says that an answer with all of them is wanted.
fn choose<'a>(
    key: &[u8],
    siblings: &'a [Sibling],
    choice: Option<SiblingChoice>,
    complete: bool,
) -> Result<&'a [Sibling], Failure> {
    let pick = |at: usize| {
        siblings.get(at..=at).ok_or_else(|| {
            let what = format!("{} has no sibling {at}", key::show(key));
            Failure::new(Exit::NotFound, "SIBLING_UNKNOWN", what)
                .why(format!("it has {}, counted from 0", siblings.len()))
        })
    };
    match choice {
        Some(SiblingChoice::All) => Ok(siblings),
        Some(SiblingChoice::Number(at)) => pick(at),
        Some(SiblingChoice::Newest) => {
            let newest = siblings.iter().enumerate().max_by_key(|(_, s)| s.written_at_ms);
            pick(newest.map_or(0, |(at, _)| at))
        }
        None if siblings.len() == 1 || complete => Ok(siblings),
        None => {
            let shown = key::show(key);
            let advice = format!(
                "kvctl get {shown} --sibling 0 | -o json | --sibling all --out-dir D; then kvctl put {shown} VALUE --resolve"
            );
            Err(several(key, siblings, &advice).state("nothing was written to stdout"))
        }
    }
}

fn sibling_json(sibling: &Sibling) -> SiblingJson {
    SiblingJson {
        value_b64: value::base64(&sibling.value),
        size: sibling.value.len(),
        sha256: value::sha256(&sibling.value),
        dot: sibling.dot.map(Dot::of),
        written_at: rfc3339(sibling.written_at_ms),
        context: context::to_text(&sibling.context),
    }
}

fn write_files(args: &Get, key: &[u8], chosen: &[Sibling]) -> Result<(), Failure> {
    if let Some(path) = &args.out {
        return value::write_file(path, &chosen[0].value);
    }
    let Some(folder) = &args.out_dir else {
        return Ok(());
    };
    let name = key::file_name(key);
    if args.sibling != Some(SiblingChoice::All) {
        return value::write_file(&folder.join(name), &chosen[0].value);
    }
    for (number, sibling) in chosen.iter().enumerate() {
        value::write_file(&folder.join(format!("{name}~{number}")), &sibling.value)?;
    }
    Ok(())
}

fn print_value(settings: &Settings, key: &[u8], bytes: &[u8]) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || settings.format == Format::Raw {
        return output::write(bytes);
    }
    if !value::is_text(bytes) {
        let what = format!(
            "the value of {} is binary: {}, sha256 {}",
            key::show(key),
            value::size(bytes.len() as u64),
            value::sha256(bytes)
        );
        return Err(Failure::new(Exit::Refused, "BINARY_TO_TERMINAL", what)
            .advice("--out FILE, or | a program, or -o raw"));
    }
    output::write(bytes)?;
    if bytes.ends_with(b"\n") {
        return Ok(());
    }
    output::write(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn siblings() -> Vec<Sibling> {
        let sibling = |value: &'static str, written_at_ms| Sibling {
            value: Bytes::from_static(value.as_bytes()),
            written_at_ms,
            ..Default::default()
        };
        vec![sibling("a", 2), sibling("b", 3), sibling("c", 1)]
    }

    fn chosen(choice: Option<SiblingChoice>, complete: bool) -> Result<Vec<Bytes>, Exit> {
        choose(b"k", &siblings(), choice, complete)
            .map(|chosen| chosen.iter().map(|sibling| sibling.value.clone()).collect())
            .map_err(|failure| failure.exit)
    }

    #[test]
    fn of_several_values_none_is_picked_unasked() {
        assert_eq!(chosen(None, false), Err(Exit::Conflict));
        assert_eq!(chosen(None, true).unwrap().len(), 3);
        assert_eq!(chosen(Some(SiblingChoice::All), false).unwrap().len(), 3);
        assert_eq!(chosen(Some(SiblingChoice::Newest), false).unwrap(), ["b"]);
        assert_eq!(chosen(Some(SiblingChoice::Number(2)), false).unwrap(), ["c"]);
        assert_eq!(chosen(Some(SiblingChoice::Number(3)), false), Err(Exit::NotFound));
        let one = &siblings()[..1];
        assert_eq!(choose(b"k", one, None, false).unwrap().len(), 1);
    }
}
