//! `exists`: whether a key has a value, as an exit code.

use crate::cli::Exists;
use crate::commands::get::fetch;
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::{key, output, value};
use serde_json::json;

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Exists,
) -> Result<Exit, Failure> {
    let key = key::one(args.key)?;
    let reply = fetch(settings, connection, &key, args.r, false).await?;
    let exists = !reply.siblings.is_empty();
    if settings.format.is_json() {
        let answer = json!({
            "schema": "kvctl.exists/v1",
            "key": key::show(&key),
            "key_b64": value::base64(&key),
            "keyspace": settings.keyspace,
            "coordinator": reply.coordinator,
            "exists": exists,
            "siblings": reply.siblings.len(),
        });
        output::print_json(settings, &answer)?;
    }
    Ok(if exists { Exit::Ok } else { Exit::NotFound })
}
