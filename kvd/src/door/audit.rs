//! What operators did, and what came of it: a line of JSON each, only ever added to. The file is in
//! the data directory of the node that was asked.

use super::session::Session;
use crate::clock;
use proto::error::{code_name, detail};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tonic::Status;

const FILE: &str = "audit.jsonl";

/// The one before it.
const BEFORE: &str = "audit.1.jsonl";

/// A file that has so many bytes becomes the one before, which goes.
const BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Of what callers name and errors say, so many characters.
const TEXT_MAX: usize = 256;

/// The log of one node.
pub struct Audit {
    dir: PathBuf,
    file: Mutex<Option<File>>,
}

#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    who: &'a str,
    from: String,
    what: &'a str,
    /// The plan, operation, node or keyspace it is about.
    on: &'a str,
    /// "done", or the error's code.
    outcome: &'a str,
    why: &'a str,
}

impl Audit {
    /// The log in a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.to_owned(), file: Mutex::new(None) }
    }

    /// Adds one line. What cannot be written is logged instead: that an operator's change is made
    /// depends on the cluster, not on this file.
    pub fn add(
        &self,
        session: Option<&Session>,
        what: &str,
        on: &str,
        outcome: Result<(), &Status>,
    ) {
        let what_of = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
        let detail = outcome.err().and_then(detail);
        let why = match (&detail, outcome) {
            (Some(detail), _) => detail.what.as_str(),
            (None, Err(status)) => status.message(),
            (None, Ok(())) => "",
        };
        let line = Line {
            at_ms: clock::now_ms(),
            who: session.and_then(|session| session.name()).unwrap_or("anybody"),
            from: session.map(|session| session.from.to_string()).unwrap_or_default(),
            what,
            on: &what_of(on),
            outcome: match (&detail, outcome) {
                (_, Ok(())) => "done",
                (Some(detail), Err(_)) => code_name(detail.code()),
                (None, Err(_)) => "FAILED",
            },
            why: &what_of(why),
        };
        let Ok(mut text) = serde_json::to_vec(&line) else { return };
        text.push(b'\n');
        if let Err(error) = self.write(&text, outcome.is_ok()) {
            let line = String::from_utf8_lossy(&text);
            tracing::error!(%error, line = line.trim_end(), "the audit log cannot be written");
        }
    }

    fn write(&self, line: &[u8], sync: bool) -> io::Result<()> {
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join(FILE);
        if let Some(file) = &*open
            && file.metadata()?.len() + line.len() as u64 > BYTES_MAX
        {
            std::fs::rename(&path, self.dir.join(BEFORE))?;
            *open = None;
        }
        let file = match &mut *open {
            Some(file) => file,
            none => none.insert(File::options().create(true).append(true).open(path)?),
        };
        // In one piece, so that a line is there whole or not at all.
        file.write_all(line)?;
        // What was refused changed nothing.
        if sync { file.sync_data() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_was_done_and_what_came_of_it_and_the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path());
        audit.add(None, "drain", "n2", Ok(()));
        audit.add(None, "drain", "n9", Err(&Status::not_found("no such node")));
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["what"], &lines[0]["outcome"]), (&"drain".into(), &"done".into()));
        assert_eq!((&lines[1]["on"], &lines[1]["why"]), (&"n9".into(), &"no such node".into()));

        let full = File::options().append(true).open(dir.path().join(FILE)).unwrap();
        full.set_len(BYTES_MAX).unwrap();
        audit.add(None, "gc", "", Ok(()));
        let size = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size(BEFORE) == BYTES_MAX && size(FILE) < 1000);
        audit.add(None, "gc", "", Ok(()));
        assert!(size(FILE) > 0);
    }
}
