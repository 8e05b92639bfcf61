//! Answers on stdout: one value, printed as a table, JSON, lines, tabs or names. Notes on stderr.

use crate::config::Settings;
use crate::error::Failure;
use crate::exit::Exit;
use crate::table::Table;
use crate::time::rfc3339;
use crate::value::hex;
use clap::ValueEnum;
use proto::v1::ClusterView;
use serde::Serialize;
use std::io::{self, ErrorKind, Write};

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// One JSON document
    Json,
    /// A JSON object a line
    Jsonl,
    /// Tab-separated, every column
    Tsv,
    /// Only names
    Name,
    /// A value's bytes, even to a terminal
    Raw,
}

impl Format {
    /// Whether a program reads the answer, and so the errors.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// When colour is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

/// The envelope of every answer about a cluster.
#[derive(Debug, Serialize)]
pub(crate) struct Envelope<T> {
    pub schema: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub viewpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<String>,
    pub observed_at: String,
    pub data: T,
}

/// A cluster in the envelope.
#[derive(Debug, Serialize)]
pub(crate) struct ClusterName {
    pub name: String,
    pub id: String,
}

impl<T> Envelope<T> {
    /// An answer taken from a view of the cluster.
    pub(crate) fn of_view(schema: &'static str, view: &ClusterView, data: T) -> Self {
        Self {
            schema,
            cluster: Some(ClusterName { name: view.name.clone(), id: hex(&view.id) }),
            viewpoint: Some(view.viewpoint.clone()),
            ring: view.layout.as_ref().map(|layout| layout.depth.to_string()),
            observed_at: rfc3339(view.observed_at_ms),
            data,
        }
    }

    /// An answer that names no more of the cluster than it knows.
    pub(crate) fn bare(schema: &'static str, data: T) -> Self {
        Self {
            schema,
            cluster: None,
            viewpoint: None,
            ring: None,
            observed_at: rfc3339(crate::time::now_ms()),
            data,
        }
    }
}

/// An answer in each of its forms.
pub(crate) struct Answer<'a, T> {
    pub envelope: &'a Envelope<T>,
    /// Text above the table, for people only.
    pub heading: String,
    pub table: Table,
    /// What `-o name` prints, one a line.
    pub names: Vec<String>,
}

impl<T: Serialize> Answer<'_, T> {
    /// Prints the answer in the form that is wanted.
    pub(crate) fn print(&self, settings: &Settings) -> Result<(), Failure> {
        let text = match settings.format {
            Format::Json => pretty(self.envelope)?,
            Format::Jsonl => lines(self.envelope)?,
            Format::Tsv => self.table.tsv(),
            Format::Name => self.names.iter().map(|name| format!("{name}\n")).collect(),
            Format::Table | Format::Raw => self.for_people(settings, false),
            Format::Wide => self.for_people(settings, true),
        };
        write(text.as_bytes())
    }

    fn for_people(&self, settings: &Settings, wide: bool) -> String {
        self.heading.clone() + &self.table.aligned(wide, settings.color_stdout)
    }
}

/// A JSON document with its newline.
pub(crate) fn pretty(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| Failure::internal(error.to_string()))
}

/// A JSON object on one line.
pub(crate) fn one_line(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value);
    text.map(|text| text + "\n").map_err(|error| Failure::internal(error.to_string()))
}

/// Prints a JSON value in the JSON form that is wanted.
pub(crate) fn print_json(settings: &Settings, value: &impl Serialize) -> Result<(), Failure> {
    let text = match settings.format {
        Format::Jsonl => one_line(value)?,
        _ => pretty(value)?,
    };
    write(text.as_bytes())
}

/// The only way to stdout. A reader that went away ends the command quietly.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::new(Exit::BrokenPipe, "BROKEN_PIPE", ""),
        _ => Failure::new(Exit::Internal, "STDOUT", format!("stdout: {error}")),
    })
}

/// A remark on stderr. Nobody reading it is no reason to fail.
pub(crate) fn note(settings: &Settings, text: &str) {
    if !settings.quiet {
        let _ = writeln!(io::stderr(), "{}", printable(text));
    }
}

/// Text from elsewhere, so that it cannot steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => " ".to_owned(),
            c if c.is_control() => format!("\\x{:02x}", c as u32),
            c => c.to_string(),
        })
        .collect()
}

/// Whether errors are to be JSON, for those that come before the arguments are understood.
pub(crate) fn json_wanted() -> bool {
    let args: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    asks_for_json(&args, std::env::var("KVCTL_OUTPUT").ok().as_deref())
}

fn asks_for_json(args: &[String], env: Option<&str>) -> bool {
    let json = |format: &str| format == "json" || format == "jsonl";
    let flag = args.iter().enumerate().find_map(|(at, arg)| match arg.as_str() {
        "-o" | "--output" => args.get(at + 1).map(String::as_str),
        arg => arg
            .strip_prefix("--output=")
            .or_else(|| arg.strip_prefix("-o").filter(|_| !arg.starts_with("--"))),
    });
    flag.or(env).is_some_and(json)
}

/// The envelope on one line; of a list, each element on its own.
fn lines<T: Serialize>(envelope: &Envelope<T>) -> Result<String, Failure> {
    let data = serde_json::to_value(&envelope.data)
        .map_err(|error| Failure::internal(error.to_string()))?;
    match data {
        serde_json::Value::Array(elements) => elements.iter().map(one_line).collect(),
        _ => one_line(envelope),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::LayoutRef;

    #[test]
    fn the_envelope_names_cluster_viewpoint_and_ring() {
        let view = ClusterView {
            name: "prod".into(),
            id: vec![0x5d; 16].into(),
            viewpoint: "n3".into(),
            observed_at_ms: 1_795_442_527_000,
            layout: Some(LayoutRef { depth: 118, ..Default::default() }),
            ..Default::default()
        };
        let envelope = Envelope::of_view("kvctl.test/v1", &view, [1, 2]);
        assert_eq!(
            serde_json::to_value(&envelope).unwrap(),
            serde_json::json!({
                "schema": "kvctl.test/v1",
                "cluster": {"name": "prod", "id": "5d".repeat(16)},
                "viewpoint": "n3",
                "ring": "118",
                "observed_at": "2026-11-23T14:02:07.000Z",
                "data": [1, 2],
            })
        );
        assert_eq!(lines(&envelope).unwrap(), "1\n2\n");
        let bare = serde_json::to_value(Envelope::bare("kvctl.test/v1", "x")).unwrap();
        assert!(bare.get("cluster").is_none() && bare.get("ring").is_none());
    }

    #[test]
    fn json_is_noticed_before_the_arguments_are_understood() {
        let asks = |line: &str, env| {
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            asks_for_json(&args, env)
        };
        assert!(asks("kvctl -o json", None) && asks("kvctl -ojsonl", None));
        assert!(asks("kvctl --output=json", None) && asks("kvctl", Some("json")));
        assert!(!asks("kvctl -o table", Some("json")) && !asks("kvctl --out json", None));
    }
}
