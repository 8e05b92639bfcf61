//! Who took part in a request, for scripts and people.

use crate::table::{Cell, Table, Tone};
use proto::v1::replica_answer::Verdict;
use proto::v1::{self, ReplicaAnswer};
use serde::Serialize;
use std::fmt;

/// The quorum of an answered request. `r` of a get, `w` of a write.
#[derive(Debug, Serialize)]
pub(crate) struct Quorum {
    pub n: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub w: Option<u32>,
    pub replied: Vec<String>,
    pub missing: Vec<String>,
    pub repaired: Vec<String>,
    pub hinted: Vec<String>,
}

impl Quorum {
    /// The quorum of a get.
    pub(crate) fn of_get(quorum: v1::Quorum) -> Self {
        Self {
            n: quorum.n,
            r: Some(quorum.needed),
            w: None,
            replied: quorum.replied,
            missing: quorum.missing,
            repaired: quorum.repaired,
            hinted: quorum.hinted,
        }
    }

    /// The quorum of a put or delete.
    pub(crate) fn of_write(quorum: v1::Quorum) -> Self {
        let needed = quorum.needed;
        Self { r: None, w: Some(needed), ..Self::of_get(quorum) }
    }
}

/// What one replica answered.
#[derive(Debug, Serialize)]
pub(crate) struct Replica {
    pub node: String,
    pub verdict: &'static str,
    pub latency_us: Option<u64>,
    pub clock: String,
    pub error: String,
    pub repaired: bool,
}

impl Replica {
    pub(crate) fn of(answer: &ReplicaAnswer) -> Self {
        let verdict = match answer.verdict() {
            Verdict::Unspecified => "unknown",
            Verdict::Match => "match",
            Verdict::Behind => "behind",
            Verdict::Absent => "absent",
            Verdict::Acked => "acked",
            Verdict::Pending => "pending",
            Verdict::Failed => "failed",
            Verdict::NotAsked => "not_asked",
        };
        let answered = !matches!(answer.verdict(), Verdict::Pending | Verdict::NotAsked);
        Self {
            node: answer.node.clone(),
            verdict,
            latency_us: answered.then_some(answer.latency_us),
            clock: answer.clock.clone(),
            error: answer.error.clone(),
            repaired: answer.repaired,
        }
    }

    fn latency(&self) -> String {
        self.latency_us.map_or_else(|| "-".to_owned(), |us| format!("{:.1}ms", us as f64 / 1e3))
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.node, self.verdict, self.latency())?;
        if !self.error.is_empty() {
            write!(f, " ({})", self.error)?;
        }
        Ok(())
    }
}

/// Every replica's answer, as `--explain` shows it.
pub(crate) fn explanation(answers: &[ReplicaAnswer]) -> Table {
    let mut table = Table::new(&["NODE", "ANSWER", "LATENCY", "REPAIRED", "CLOCK", "ERROR"]);
    for replica in answers.iter().map(Replica::of) {
        let tone = match replica.verdict {
            "match" | "acked" => Tone::Plain,
            "failed" => Tone::Alarm,
            _ => Tone::Warning,
        };
        let latency = replica.latency();
        table.row(vec![
            replica.node.into(),
            Cell::toned(replica.verdict, tone),
            latency.into(),
            if replica.repaired { "yes" } else { "no" }.into(),
            replica.clock.into(),
            replica.error.into(),
        ]);
    }
    table
}
