//! `quorum show|set|what-if`: what N, R and W of a keyspace are and what they mean now.

use super::{propose, safety};
use crate::cli::{Propose, Quorum, QuorumFlags};
use crate::commands::keyspaces::mode_name;
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{self, Answer, Envelope, Format, printable};
use crate::table::{Cell, Table, Tone};
use proto::v1::change::Change as Wanted;
use proto::v1::{ClusterView, QuorumMeaning, SafetyReply, SetKeyspace};
use serde::Serialize;

/// What a keyspace's quorum means, as scripts read it.
#[derive(Debug, Serialize)]
struct Meaning {
    n: u32,
    r: u32,
    w: u32,
    mode: &'static str,
    partitions: u32,
    gets_fail: u32,
    puts_fail: u32,
    /// How many more nodes, any, may go down until some fail.
    gets_survive: u32,
    puts_survive: u32,
    overlaps: bool,
}

impl Meaning {
    fn of(meaning: &QuorumMeaning, partitions: u32) -> Self {
        Self {
            n: meaning.n,
            r: meaning.r,
            w: meaning.w,
            mode: mode_name(meaning.mode()),
            partitions,
            gets_fail: meaning.gets_fail,
            puts_fail: meaning.puts_fail,
            gets_survive: meaning.gets_survive,
            puts_survive: meaning.puts_survive,
            overlaps: meaning.overlaps,
        }
    }
}

#[derive(Debug, Serialize)]
struct Show {
    keyspace: String,
    now: Meaning,
}

#[derive(Debug, Serialize)]
struct WhatIf {
    keyspace: String,
    now: Meaning,
    then: Meaning,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    command: Quorum,
) -> Result<Exit, Failure> {
    match command {
        Quorum::Show => show(settings, connection).await,
        Quorum::Set { what, propose } => set(settings, connection, what, propose).await,
        Quorum::WhatIf { what } => what_if(settings, connection, what).await,
    }
}

async fn show(settings: &Settings, connection: &Connection) -> Result<Exit, Failure> {
    let keyspace = &settings.keyspace;
    let (view, reply) = asked(connection, keyspace, QuorumFlags::default()).await?;
    let now = reply.now.unwrap_or_default();
    let data = Show { keyspace: keyspace.clone(), now: Meaning::of(&now, reply.partitions) };
    let mut table = table();
    table.row(row(keyspace, &now, reply.partitions));
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.quorum.show/v1", &view, data),
        heading: String::new(),
        table,
        names: vec![keyspace.clone()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

async fn what_if(
    settings: &Settings,
    connection: &Connection,
    flags: QuorumFlags,
) -> Result<Exit, Failure> {
    let keyspace = &settings.keyspace;
    let (view, reply) = asked(connection, keyspace, flags).await?;
    let partitions = reply.partitions;
    let (now, then) = (reply.now.unwrap_or_default(), reply.then.unwrap_or_default());
    if matches!(settings.format, Format::Table | Format::Wide | Format::Raw) {
        let said = compared(settings, &now, &then, partitions);
        return output::write(format!("{}\n", printable(&said)).as_bytes()).map(|()| Exit::Ok);
    }
    let data = WhatIf {
        keyspace: keyspace.clone(),
        now: Meaning::of(&now, partitions),
        then: Meaning::of(&then, partitions),
    };
    let mut table = table();
    table.row(row("now", &now, partitions));
    table.row(row("then", &then, partitions));
    let answer = Answer {
        envelope: &Envelope::of_view("kvctl.quorum.what_if/v1", &view, data),
        heading: String::new(),
        table,
        names: vec![keyspace.clone()],
    };
    answer.print(settings)?;
    Ok(Exit::Ok)
}

async fn set(
    settings: &Settings,
    connection: &Connection,
    QuorumFlags { n, r, w, mode }: QuorumFlags,
    propose: Propose,
) -> Result<Exit, Failure> {
    let mode = mode.map(|mode| safety::mode_of(mode).into());
    let set = SetKeyspace { name: settings.keyspace.clone(), n, r, w, mode };
    propose::propose(settings, connection, vec![Wanted::SetKeyspace(set)], propose).await
}

async fn asked(
    connection: &Connection,
    keyspace: &str,
    flags: QuorumFlags,
) -> Result<(ClusterView, SafetyReply), Failure> {
    let reply = safety::of_quorum(connection, keyspace, flags).await?;
    Ok((connection.view().await?, reply))
}

/// What changes from one quorum to another, in one line.
fn compared(
    settings: &Settings,
    now: &QuorumMeaning,
    then: &QuorumMeaning,
    partitions: u32,
) -> String {
    let arrow = if settings.ascii { "->" } else { "→" };
    let share = |failing: u32| format!("{failing}/{partitions}");
    let nodes = |count: u32| format!("{count} node{} down", if count == 1 { "" } else { "s" });
    let yes = |overlaps: bool| if overlaps { "yes" } else { "no" };
    let parts = [
        format!("{} {arrow} {}", quorum(now, then), quorum(then, now)),
        format!("gets failing now {} {arrow} {}", share(now.gets_fail), share(then.gets_fail)),
        format!("puts failing now {} {arrow} {}", share(now.puts_fail), share(then.puts_fail)),
        format!("gets survive {} {arrow} {}", now.gets_survive, nodes(then.gets_survive)),
        format!("puts survive {} {arrow} {}", now.puts_survive, nodes(then.puts_survive)),
        format!("R+W>N {} {arrow} {}", yes(now.overlaps), yes(then.overlaps)),
    ];
    parts.join("   ")
}

/// `W3 strict`: of N, R and W only what the other has otherwise; all if nothing differs.
fn quorum(one: &QuorumMeaning, other: &QuorumMeaning) -> String {
    let numbers = [('N', one.n, other.n), ('R', one.r, other.r), ('W', one.w, other.w)];
    let same = numbers.iter().all(|(_, one, other)| one == other);
    let shown = numbers.iter().filter(|(_, one, other)| same || one != other);
    let mut words: Vec<String> = shown.map(|(name, one, _)| format!("{name}{one}")).collect();
    words.push(mode_name(one.mode()).to_owned());
    words.join(" ")
}

fn table() -> Table {
    Table::new(&[
        "KEYSPACE",
        "N",
        "R",
        "W",
        "MODE",
        "GETS FAIL",
        "PUTS FAIL",
        "GETS SURVIVE",
        "PUTS SURVIVE",
        "R+W>N",
    ])
}

fn row(name: &str, meaning: &QuorumMeaning, partitions: u32) -> Vec<Cell> {
    let failing = |count: u32| match count {
        0 => Cell::from(format!("0/{partitions}")),
        count => Cell::toned(format!("{count}/{partitions}"), Tone::Alarm),
    };
    vec![
        name.into(),
        meaning.n.to_string().into(),
        meaning.r.to_string().into(),
        meaning.w.to_string().into(),
        mode_name(meaning.mode()).into(),
        failing(meaning.gets_fail),
        failing(meaning.puts_fail),
        meaning.gets_survive.to_string().into(),
        meaning.puts_survive.to_string().into(),
        if meaning.overlaps { "yes" } else { "no" }.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;
    use proto::v1::Mode;

    #[test]
    fn only_what_differs_is_named_and_everything_is_compared() {
        let flags = Global { ascii: true, ..Global::default() };
        let settings = Settings::resolve(&flags, &|_| None).unwrap();
        let mode = Mode::Strict as i32;
        let (n, r) = (3, 2);
        let now =
            QuorumMeaning { n, r, w: 3, mode, puts_fail: 32, overlaps: true, ..Default::default() };
        let then = QuorumMeaning { w: 2, puts_fail: 0, puts_survive: 1, ..now };
        assert_eq!(
            compared(&settings, &now, &then, 128),
            "W3 strict -> W2 strict   gets failing now 0/128 -> 0/128   puts failing now 32/128 -> 0/128   \
             gets survive 0 -> 0 nodes down   puts survive 0 -> 1 node down   R+W>N yes -> yes"
        );
        assert_eq!(quorum(&now, &now), "N3 R2 W3 strict");
    }
}
