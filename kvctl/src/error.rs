//! What a failure says: what happened, why, in what state things are, what to try.

use crate::exit::Exit;
use crate::output::printable;
use proto::v1::{ErrorDetail, Outcome, ReplicaAnswer};
use serde_json::{Map, Value, json};
use std::fmt;
use std::io::{self, Write};
use tonic::Status;

/// A failed command: its exit code and its words.
#[derive(Debug)]
pub(crate) struct Failure {
    pub exit: Exit,
    /// Boxed: a `Result` with it stays small.
    words: Box<Words>,
}

#[derive(Debug, Default)]
struct Words {
    code: &'static str,
    what: String,
    why: String,
    state: String,
    advice: String,
    outcome: Option<Outcome>,
    acks: u32,
    needed: u32,
    replicas: Vec<ReplicaAnswer>,
    /// Lines for people, under `what`.
    lines: Vec<String>,
    /// Fields for scripts, beside `code`.
    fields: Map<String, Value>,
}

/// How a failure is printed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    pub json: bool,
    pub verbose: bool,
    pub color: bool,
}

impl Failure {
    /// A failure with its code and what happened.
    pub(crate) fn new(exit: Exit, code: &'static str, what: impl Into<String>) -> Self {
        let words = Words { code, what: what.into(), ..Words::default() };
        Self { exit, words: Box::new(words) }
    }

    /// Wrong arguments or configuration.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", what)
    }

    /// What cannot happen did.
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::new(Exit::Internal, "INTERNAL", what).advice("please report this")
    }

    /// A local file could not be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(Exit::Internal, "FILE", format!("{}: {error}", path.display()))
    }

    /// A failed call. `doing` names it: "get user:42".
    pub(crate) fn of_status(status: &Status, doing: &str) -> Self {
        let exit = Exit::of_status(status);
        if let Some(detail) = proto::error::detail(status) {
            return Self::of_detail(exit, detail, doing);
        }
        match exit {
            Exit::TimedOut => {
                Self::new(exit, "DEADLINE_EXCEEDED", format!("{doing}: no answer in time"))
                    .advice("a longer --timeout, or kvctl status")
            }
            Exit::Unreachable => {
                Self::new(exit, "CONNECTION_LOST", format!("{doing}: the connection was lost"))
                    .why(proto::client::root_cause(status))
                    .advice("the same command, or another node with --endpoint HOST:PORT")
            }
            _ => Self::new(exit, "INTERNAL", format!("{doing} failed")).why(format!(
                "{:?}: {}",
                status.code(),
                status.message()
            )),
        }
    }

    fn of_detail(exit: Exit, detail: ErrorDetail, doing: &str) -> Self {
        let outcome = Some(detail.outcome()).filter(|o| *o != Outcome::Unspecified);
        let mut failure = Self::new(exit, proto::error::code_name(detail.code()), detail.what);
        let words = &mut failure.words;
        if words.what.is_empty() {
            words.what = format!("{doing} failed");
        }
        words.why = detail.why;
        words.state = detail.state;
        words.advice = detail.advice;
        words.outcome = outcome;
        (words.acks, words.needed) = (detail.acks, detail.needed);
        words.replicas = detail.replicas;
        if words.code == "BLANK" && words.advice.is_empty() {
            words.advice = "kvctl cluster init --name NAME NODE=HOST:PORT…".to_owned();
        }
        failure
    }

    /// Says why.
    pub(crate) fn why(mut self, why: impl Into<String>) -> Self {
        self.words.why = why.into();
        self
    }

    /// Says in what state things are now.
    pub(crate) fn state(mut self, state: impl Into<String>) -> Self {
        self.words.state = state.into();
        self
    }

    /// Says what to try.
    pub(crate) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.words.advice = advice.into();
        self
    }

    /// Adds lines that only people see.
    pub(crate) fn lines(mut self, lines: Vec<String>) -> Self {
        self.words.lines = lines;
        self
    }

    /// Adds a field that only scripts see.
    pub(crate) fn field(mut self, name: &str, value: Value) -> Self {
        self.words.fields.insert(name.to_owned(), value);
        self
    }

    /// Notes that a write may have been stored although nobody said so.
    pub(crate) fn outcome_unknown(mut self) -> Self {
        self.words.outcome = Some(Outcome::Unknown);
        if self.words.state.is_empty() {
            self.words.state =
                "the write may have been stored, or may surface later (outcome: unknown)"
                    .to_owned();
        }
        self
    }

    /// Whether a write may have been stored although nobody said so.
    pub(crate) fn is_outcome_unknown(&self) -> bool {
        self.words.outcome == Some(Outcome::Unknown)
    }

    /// Name of the error: `QUORUM_UNMET`.
    pub(crate) fn code(&self) -> &'static str {
        self.words.code
    }

    /// The error as scripts read it.
    pub(crate) fn to_json(&self) -> Value {
        let words = &self.words;
        let mut error = words.fields.clone();
        error.insert("code".into(), json!(words.code));
        error.insert("what".into(), json!(words.what));
        error.insert("why".into(), json!(words.why));
        error.insert("state".into(), json!(words.state));
        error.insert("try".into(), json!(words.advice));
        error.insert("outcome".into(), json!(words.outcome.map(outcome_name)));
        error.insert("exit".into(), json!(self.exit as u8));
        if words.needed > 0 {
            error.insert("acks".into(), json!(words.acks));
            error.insert("needed".into(), json!(words.needed));
        }
        if !words.replicas.is_empty() {
            let replicas = words.replicas.iter().map(crate::commands::quorum::Replica::of);
            error.insert("replicas".into(), json!(replicas.collect::<Vec<_>>()));
        }
        Value::Object(error)
    }

    /// Prints the failure on stderr and gives the exit code. A reader that went away hears nothing.
    pub(crate) fn report(&self, shape: Shape) -> Exit {
        if self.exit != Exit::BrokenPipe {
            let text = if shape.json {
                format!("{}\n", json!({ "error": self.to_json() }))
            } else {
                self.for_people(shape)
            };
            let _ = io::stderr().write_all(text.as_bytes());
        }
        self.exit
    }

    fn for_people(&self, shape: Shape) -> String {
        let words = &self.words;
        let (on, off) = if shape.color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let what = printable(&words.what);
        let mut text = format!("{on}error[{}]{off}: {what}\n", words.code);
        for line in &words.lines {
            text += &format!("  {}\n", printable(line));
        }
        let mut part = |name: &str, said: &str| {
            if !said.is_empty() {
                text += &format!("  {name:<5}  {}\n", printable(said));
            }
        };
        part("why", &words.why);
        part("state", &words.state);
        part("try", &words.advice);
        if shape.verbose {
            part("exit", &(self.exit as u8).to_string());
            if let Some(outcome) = words.outcome {
                part("write", &format!("outcome {}", outcome_name(outcome)));
            }
            for answer in &words.replicas {
                let replica = crate::commands::quorum::Replica::of(answer);
                part("node", &replica.to_string());
            }
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.what)
    }
}

/// Reports what clap said about the arguments.
pub(crate) fn usage(error: &clap::Error, json: bool) -> Exit {
    if !json {
        let _ = error.print();
        return Exit::Usage;
    }
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.trim().trim_start_matches("error: ").replace('\n', " ");
    let shape = Shape { json, ..Shape::default() };
    Failure::usage(what).advice("kvctl help").report(shape)
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "none",
        Outcome::Applied => "applied",
        Outcome::NotApplied => "not_applied",
        Outcome::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ErrorCode;

    fn unmet() -> Failure {
        let detail = ErrorDetail {
            code: ErrorCode::QuorumUnmet as i32,
            what: "put k needed W=2, got 1".into(),
            why: "n2 is down".into(),
            outcome: Outcome::Unknown as i32,
            acks: 1,
            needed: 2,
            ..Default::default()
        };
        Failure::of_status(&proto::error::status(&detail), "put k")
    }

    #[test]
    fn people_read_what_why_state_and_try() {
        let failure = unmet().advice("kvctl\x1b[2J status");
        assert_eq!(
            failure.for_people(Shape::default()),
            "error[QUORUM_UNMET]: put k needed W=2, got 1\n  why    n2 is down\n  try    kvctl\\x1b[2J status\n"
        );
    }

    #[test]
    fn scripts_read_one_object() {
        let error = unmet().to_json();
        assert_eq!(error["code"], "QUORUM_UNMET");
        assert_eq!(error["outcome"], "unknown");
        assert_eq!((&error["exit"], &error["acks"]), (&json!(5), &json!(1)));
    }

    #[test]
    fn a_lost_write_says_that_its_outcome_is_unknown() {
        let failure = Failure::of_status(&Status::unavailable("gone"), "put k").outcome_unknown();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert_eq!(failure.to_json()["outcome"], "unknown");
    }
}
