//! What clients asked of a cluster and what came of it, as JSON lines.
//!
//! A file begins with one `begin` line; then every operation has an `invoke` line and at most one
//! of `ok`, `fail` (nothing was stored) and `info` (nobody knows), in the order of their times.
//! An operation without an end is one nobody knows about.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Operations one history holds. At the bound nothing more is invoked: the load ends by itself.
pub const OPS_MAX: usize = 2_000_000;

/// What one run did to one keyspace.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History {
    /// Where it came from.
    pub run: Run,
    /// In the order they were invoked; an operation's id is its place.
    pub ops: Vec<Op>,
}

/// Where a history came from.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The seed of the load.
    pub seed: u64,
    /// The keyspace.
    pub keyspace: String,
    /// Whether it is strict, with R + W > N: whether C2 and C4 apply.
    pub strict: bool,
}

/// One operation. A write that was tried several times under one request id is one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Its place in the history.
    pub id: u64,
    /// Who did it: one session does one operation at a time.
    pub session: u32,
    /// The key.
    pub key: String,
    /// What was asked.
    pub action: Action,
    /// When it was asked, on the clock of the load.
    pub invoked_ns: u64,
    /// When the client had its answer or gave up; an indeterminate write may act after that.
    pub ended_ns: Option<u64>,
    /// The nodes that were asked, one after the other.
    pub nodes: Vec<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Action {
    /// A read at the keyspace's R.
    Get,
    /// A read of all N replicas, after all else.
    Final,
    /// A value that no other operation puts.
    Put {
        /// Names the value and so the write.
        value: String,
        /// What the context covered.
        covers: Vec<Version>,
        /// Names the context; empty: none was sent.
        context: String,
    },
    /// A delete, always with a context: what one without it covers nobody outside knows.
    Delete {
        /// What the context covered.
        covers: Vec<Version>,
        /// Names the context.
        context: String,
    },
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was answered.
    Ok(Answer),
    /// Nothing was stored and nothing sent. Every failed read.
    DefiniteFail(String),
    /// It may have been stored, or may be later.
    Indeterminate(String),
}

/// The answer to a successful operation.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What a read returned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<Version>,
    /// What a write was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dot: Option<Dot>,
    /// Names the context that came with it.
    pub context: String,
}

/// The cluster's name of one stored write: actor and counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Dot {
    /// Who named it.
    pub actor: u64,
    /// Its count.
    pub counter: u64,
}

/// A value as it was stored. One write that was tried twice may be stored under two dots, and only
/// one of them be covered: therefore the dot is part of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    /// The value's name.
    pub value: String,
    /// Where it was read, under which dot.
    pub dot: Dot,
}

impl Op {
    /// Whether it is a put or a delete.
    pub fn is_write(&self) -> bool {
        matches!(self.action, Action::Put { .. } | Action::Delete { .. })
    }

    /// The value a put leaves.
    pub fn value(&self) -> Option<&str> {
        match &self.action {
            Action::Put { value, .. } => Some(value),
            _ => None,
        }
    }

    /// What a write's context covered.
    pub fn covers(&self) -> &[Version] {
        match &self.action {
            Action::Put { covers, .. } | Action::Delete { covers, .. } => covers,
            _ => &[],
        }
    }

    /// The answer, if it was successful.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            _ => None,
        }
    }

    /// When it was successfully answered.
    pub fn ok_ns(&self) -> Option<u64> {
        self.answer().and(self.ended_ns)
    }

    /// Whether a write may be in the store: it was answered, or nobody knows.
    pub fn may_have_been_stored(&self) -> bool {
        !matches!(self.outcome, Outcome::DefiniteFail(_))
    }
}

/// Enough for a person to find it in the file.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Get => write!(f, "the get")?,
            Action::Final => write!(f, "the final read")?,
            Action::Put { value, .. } => write!(f, "the put of {value}")?,
            Action::Delete { .. } => write!(f, "the delete")?,
        }
        write!(f, " (op {}, session {}, from {}", self.id, self.session, seconds(self.invoked_ns))?;
        match (&self.outcome, self.ended_ns) {
            (Outcome::Ok(_), Some(at)) => write!(f, ", answered at {})", seconds(at)),
            (Outcome::DefiniteFail(_), Some(at)) => write!(f, ", refused at {})", seconds(at)),
            (_, Some(at)) => write!(f, ", given up at {})", seconds(at)),
            (_, None) => write!(f, ", no answer)"),
        }
    }
}

fn seconds(ns: u64) -> String {
    format!("{:.6} s", ns as f64 / 1e9)
}

// === dots and versions as text ===

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.actor, self.counter)
    }
}

impl From<Dot> for String {
    fn from(dot: Dot) -> Self {
        dot.to_string()
    }
}

impl TryFrom<String> for Dot {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        let (actor, counter) = text.split_once(':').context("a dot is ACTOR:COUNTER")?;
        let hex = |digits| u64::from_str_radix(digits, 16);
        Ok(Self { actor: hex(actor)?, counter: hex(counter)? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.value, self.dot)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        let (value, dot) = text.rsplit_once('@').context("a version is VALUE@ACTOR:COUNTER")?;
        Ok(Self { value: value.to_owned(), dot: Dot::try_from(dot.to_owned())? })
    }
}

// === recording ===

/// A history in the making, shared by all sessions of a load.
pub struct Recorder {
    started: Instant,
    history: Mutex<History>,
}

impl Recorder {
    /// An empty one, whose clock begins now.
    pub fn new(run: Run) -> Self {
        let history = Mutex::new(History { run, ops: Vec::new() });
        Self { started: Instant::now(), history }
    }

    /// Notes that something is about to be asked. None: the history is full, do not ask.
    pub fn invoke(&self, session: u32, key: &str, action: Action) -> Option<u64> {
        let mut history = self.lock();
        if history.ops.len() >= OPS_MAX {
            return None;
        }
        let id = history.ops.len() as u64;
        history.ops.push(Op {
            id,
            session,
            key: key.to_owned(),
            action,
            invoked_ns: self.now_ns(),
            ended_ns: None,
            nodes: Vec::new(),
            outcome: Outcome::Indeterminate("no answer".into()),
        });
        Some(id)
    }

    /// Notes what came of it.
    pub fn end(&self, id: u64, nodes: Vec<String>, outcome: Outcome) {
        let mut history = self.lock();
        let at = self.now_ns();
        let op = &mut history.ops[id as usize];
        (op.ended_ns, op.nodes, op.outcome) = (Some(at), nodes, outcome);
    }

    /// All of it so far.
    pub fn history(&self) -> History {
        self.lock().clone()
    }

    /// How many operations have been invoked.
    pub fn len(&self) -> usize {
        self.lock().ops.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === lines ===

#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line {
    Begin(Run),
    Invoke {
        at_ns: u64,
        op: u64,
        session: u32,
        key: String,
        #[serde(flatten)]
        action: Action,
    },
    Ok {
        at_ns: u64,
        op: u64,
        nodes: Vec<String>,
        #[serde(flatten)]
        answer: Answer,
    },
    Fail {
        at_ns: u64,
        op: u64,
        nodes: Vec<String>,
        why: String,
    },
    Info {
        at_ns: u64,
        op: u64,
        nodes: Vec<String>,
        why: String,
    },
}

impl History {
    /// As JSON lines.
    pub fn to_lines(&self) -> serde_json::Result<String> {
        let mut lines = Vec::new();
        for op in &self.ops {
            lines.push((op.invoked_ns, op.invocation()));
            lines.extend(op.ended_ns.map(|at_ns| (at_ns, op.end(at_ns))));
        }
        lines.sort_by_key(|(at_ns, _)| *at_ns);
        let mut text = serde_json::to_string(&Line::Begin(self.run.clone()))? + "\n";
        for (_, line) in lines {
            text += &serde_json::to_string(&line)?;
            text.push('\n');
        }
        Ok(text)
    }

    /// Reads what [`History::to_lines`] wrote.
    pub fn from_lines(text: &str) -> anyhow::Result<Self> {
        let mut run = None;
        let mut ops = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line).with_context(|| format!("line {}", at + 1))?;
            read_line(line, &mut run, &mut ops).with_context(|| format!("line {}", at + 1))?;
        }
        Ok(Self { run: run.context("there is no begin line")?, ops: ops.into_values().collect() })
    }

    /// Writes it to a file.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.to_lines()?).with_context(|| path.display().to_string())
    }

    /// Reads it from a file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::from_lines(&text)
    }
}

impl Op {
    fn invocation(&self) -> Line {
        let (session, key, action) = (self.session, self.key.clone(), self.action.clone());
        Line::Invoke { at_ns: self.invoked_ns, op: self.id, session, key, action }
    }

    fn end(&self, at_ns: u64) -> Line {
        let (op, nodes) = (self.id, self.nodes.clone());
        match self.outcome.clone() {
            Outcome::Ok(answer) => Line::Ok { at_ns, op, nodes, answer },
            Outcome::DefiniteFail(why) => Line::Fail { at_ns, op, nodes, why },
            Outcome::Indeterminate(why) => Line::Info { at_ns, op, nodes, why },
        }
    }
}

fn read_line(line: Line, run: &mut Option<Run>, ops: &mut BTreeMap<u64, Op>) -> anyhow::Result<()> {
    let (id, ended_ns, asked, outcome) = match line {
        Line::Begin(begun) => {
            *run = Some(begun);
            return Ok(());
        }
        Line::Invoke { at_ns, op: id, session, key, action } => {
            let outcome = Outcome::Indeterminate("no answer".into());
            let (invoked_ns, ended_ns, nodes) = (at_ns, None, Vec::new());
            let op = Op { id, session, key, action, invoked_ns, ended_ns, nodes, outcome };
            if ops.insert(id, op).is_some() {
                bail!("op {id} is invoked twice");
            }
            return Ok(());
        }
        Line::Ok { at_ns, op, nodes, answer } => (op, at_ns, nodes, Outcome::Ok(answer)),
        Line::Fail { at_ns, op, nodes, why } => (op, at_ns, nodes, Outcome::DefiniteFail(why)),
        Line::Info { at_ns, op, nodes, why } => (op, at_ns, nodes, Outcome::Indeterminate(why)),
    };
    let op = ops.get_mut(&id).with_context(|| format!("op {id} ends and was never invoked"))?;
    (op.ended_ns, op.nodes, op.outcome) = (Some(ended_ns), asked, outcome);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_survives_the_trip_through_a_file() {
        let recorder = Recorder::new(Run { seed: 7, keyspace: "orders".into(), strict: true });
        let version = |value: &str, counter| Version {
            value: value.into(),
            dot: Dot { actor: u64::MAX, counter },
        };
        let (value, context) = ("w7-1".to_owned(), "c0ffee".to_owned());
        let covers = vec![version("w7-0", 3)];
        let put = Action::Put { value, covers: covers.clone(), context: context.clone() };
        let ids: Vec<u64> = [put, Action::Get, Action::Delete { covers, context }, Action::Final]
            .into_iter()
            .filter_map(|action| recorder.invoke(1, "k \"ü\"", action))
            .collect();
        let nodes = vec!["n1".to_owned(), "n3".to_owned()];
        let dot = Some(Dot { actor: 1, counter: u64::MAX });
        let answer = Answer { dot, ..Default::default() };
        recorder.end(ids[0], nodes.clone(), Outcome::Ok(answer));
        let versions = vec![version("w7-1", 4), version("odd@value", 5)];
        let answer = Answer { versions, context: "c1".into(), ..Default::default() };
        recorder.end(ids[1], nodes.clone(), Outcome::Ok(answer));
        recorder.end(ids[2], nodes, Outcome::DefiniteFail("draining".into()));
        let history = recorder.history();
        let text = history.to_lines().unwrap();
        assert_eq!(text.lines().count(), 1 + 4 + 3, "{text}");
        assert_eq!(History::from_lines(&text).unwrap(), history);
        assert!(History::from_lines("").is_err());
        assert!(History::from_lines(&text.replace("invoke", "invocation")).is_err());
    }
}
