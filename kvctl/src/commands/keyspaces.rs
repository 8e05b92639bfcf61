//! `keyspaces list|show|create|delete`: the named policies.

use super::propose;
use crate::cli::{CompressionArg, ModeArg, Policy, Propose};
use crate::config::Settings;
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{Answer, Envelope};
use crate::table::{Cell, Table, Tone};
use crate::value::size;
use proto::VALUE_BYTES_MAX;
use proto::v1::change::Change as Wanted;
use proto::v1::{Compression, CreateKeyspaceRequest, Keyspace, KeyspaceView, Mode};
use serde::Serialize;

/// Copies of a key where nothing else is said.
const N: u32 = 3;

/// A keyspace, as scripts read it. What is not known of a new one is null.
#[derive(Debug, Serialize)]
pub(crate) struct KeyspaceJson {
    name: String,
    n: u32,
    r: u32,
    w: u32,
    mode: &'static str,
    value_bytes_max: String,
    compression: &'static str,
    partitions: Option<u32>,
    gets_fail: Option<u32>,
    puts_fail: Option<u32>,
    no_margin: Option<u32>,
}

impl KeyspaceJson {
    /// A keyspace of the view.
    pub(crate) fn of(view: &KeyspaceView) -> Self {
        Self {
            partitions: Some(view.partitions),
            gets_fail: Some(view.gets_fail),
            puts_fail: Some(view.puts_fail),
            no_margin: Some(view.no_margin),
            ..Self::of_policy(&view.keyspace.clone().unwrap_or_default())
        }
    }

    fn of_policy(keyspace: &Keyspace) -> Self {
        Self {
            name: keyspace.name.clone(),
            n: keyspace.n,
            r: keyspace.r,
            w: keyspace.w,
            mode: mode_name(keyspace.mode()),
            value_bytes_max: limit(keyspace).to_string(),
            compression: compression_name(keyspace.compression()),
            partitions: None,
            gets_fail: None,
            puts_fail: None,
            no_margin: None,
        }
    }
}

pub(crate) async fn list(settings: &Settings, connection: &Connection) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let data: Vec<KeyspaceJson> = view.keyspaces.iter().map(KeyspaceJson::of).collect();
    let answer = Answer {
        names: data.iter().map(|keyspace| keyspace.name.clone()).collect(),
        envelope: &Envelope::of_view("kvctl.keyspaces.list/v1", &view, data),
        heading: String::new(),
        table: table(&view.keyspaces),
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

pub(crate) async fn show(
    settings: &Settings,
    connection: &Connection,
    name: &str,
) -> Result<Exit, Failure> {
    let view = connection.view().await?;
    let named = |found: &&KeyspaceView| name_of(found) == name;
    let Some(found) = view.keyspaces.iter().find(named) else {
        let known: Vec<&str> = view.keyspaces.iter().map(name_of).collect();
        let what = format!("there is no keyspace {name}");
        return Err(Failure::new(Exit::NotFound, "KEYSPACE_UNKNOWN", what).why(format!(
            "cluster {} has: {}",
            view.name,
            known.join(", ")
        )));
    };
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.keyspaces.show/v1", &view, KeyspaceJson::of(found)),
        heading: String::new(),
        table: table(std::slice::from_ref(found)),
        names: vec![name.to_owned()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

pub(crate) async fn create(
    settings: &Settings,
    connection: &Connection,
    name: String,
    policy: Policy,
    value_bytes_max: Option<u32>,
) -> Result<Exit, Failure> {
    let keyspace = Keyspace {
        value_bytes_max: value_bytes_max.unwrap_or_default(),
        ..of_policy(&name, &policy, N)
    };
    let doing = format!("creating keyspace {name}");
    let made = connection
        .call(&doing, Kind::Once, |client, budget| {
            let keyspace = Some(keyspace.clone());
            let request = timed(CreateKeyspaceRequest { keyspace }, budget);
            async move { client.admin().create_keyspace(request).await }
        })
        .await?;
    let answer = Answer {
        envelope: &Envelope::bare("kvctl.keyspaces.create/v1", KeyspaceJson::of_policy(&made)),
        heading: String::new(),
        table: policy_table(&made),
        names: vec![made.name.clone()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

pub(crate) async fn delete(
    settings: &Settings,
    connection: &Connection,
    name: String,
    propose: Propose,
) -> Result<Exit, Failure> {
    propose::propose(settings, connection, vec![Wanted::DropKeyspace(name)], propose).await
}

/// The policy the flags describe: R and W are majorities of N unless they are given.
pub(crate) fn of_policy(name: &str, policy: &Policy, n_usual: u32) -> Keyspace {
    let n = policy.n.unwrap_or(n_usual);
    let majority = n / 2 + 1;
    let mode = match policy.mode {
        Some(ModeArg::Strict) => Mode::Strict,
        Some(ModeArg::Sloppy) | None => Mode::Sloppy,
    };
    let compression = match policy.compression {
        Some(CompressionArg::Lz4) => Compression::Lz4,
        Some(CompressionArg::Zstd) => Compression::Zstd,
        Some(CompressionArg::Off) | None => Compression::Off,
    };
    Keyspace {
        name: name.to_owned(),
        n,
        r: policy.r.unwrap_or(majority),
        w: policy.w.unwrap_or(majority),
        mode: mode as i32,
        value_bytes_max: 0,
        compression: compression as i32,
    }
}

fn name_of(view: &KeyspaceView) -> &str {
    view.keyspace.as_ref().map_or("", |keyspace| &keyspace.name)
}

/// A mode as people and scripts read it.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Sloppy => "sloppy",
        Mode::Strict => "strict",
        Mode::Unspecified => "unknown",
    }
}

/// The mode of a name.
pub(crate) fn mode_from_name(name: &str) -> Result<Mode, Failure> {
    match name {
        "sloppy" => Ok(Mode::Sloppy),
        "strict" => Ok(Mode::Strict),
        other => Err(Failure::usage(format!("mode {other} is neither sloppy nor strict"))),
    }
}

fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::Unspecified | Compression::Off => "off",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

fn limit(keyspace: &Keyspace) -> u32 {
    match keyspace.value_bytes_max {
        0 => VALUE_BYTES_MAX,
        limit => limit,
    }
}

fn policy_cells(keyspace: &Keyspace) -> Vec<Cell> {
    vec![
        keyspace.name.clone().into(),
        keyspace.n.to_string().into(),
        keyspace.r.to_string().into(),
        keyspace.w.to_string().into(),
        mode_name(keyspace.mode()).into(),
        size(u64::from(limit(keyspace))).into(),
        compression_name(keyspace.compression()).into(),
    ]
}

fn policy_table(keyspace: &Keyspace) -> Table {
    let mut table = Table::new(&["KEYSPACE", "N", "R", "W", "MODE", "VALUE MAX", "COMPRESSION"]);
    table.row(policy_cells(keyspace));
    table
}

fn table(keyspaces: &[KeyspaceView]) -> Table {
    let mut table = Table::new(&[
        "KEYSPACE",
        "N",
        "R",
        "W",
        "MODE",
        "VALUE MAX",
        "COMPRESSION",
        "PARTITIONS",
        "GETS FAIL",
        "PUTS FAIL",
        "NO MARGIN",
    ]);
    for view in keyspaces {
        let counted = |count: u32, tone: Tone| match count {
            0 => Cell::from("0"),
            count => Cell::toned(count.to_string(), tone),
        };
        let mut row = policy_cells(&view.keyspace.clone().unwrap_or_default());
        row.push(view.partitions.to_string().into());
        row.push(counted(view.gets_fail, Tone::Alarm));
        row.push(counted(view.puts_fail, Tone::Alarm));
        row.push(counted(view.no_margin, Tone::Warning));
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_and_w_are_majorities_unless_they_are_given() {
        let quorum = |policy: Policy| {
            let keyspace = of_policy("k", &policy, 3);
            (keyspace.n, keyspace.r, keyspace.w)
        };
        assert_eq!(quorum(Policy::default()), (3, 2, 2));
        let five = Policy { n: Some(5), w: Some(5), ..Policy::default() };
        assert_eq!(quorum(five), (5, 3, 5));
    }
}
