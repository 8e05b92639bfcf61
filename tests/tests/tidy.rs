//! The rules of the tree that no compiler checks: purity, names, and docs that say what is there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::process::binary;

const MEMBERS: [&str; 5] = ["kvctl", "kvd", "kvtop", "proto", "tests"];

/// The line that makes the compiler keep a file's decisions free of clocks, chance and I/O.
const PURITY_LINE: &str = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";

#[test]
fn every_source_file_says_what_it_is() {
    let silent = sources().into_iter().filter(|(_, text)| {
        let first = text.lines().find(|line| !line.trim().is_empty());
        !first.is_some_and(|line| line.starts_with("//!"))
    });
    none("does not begin with `//!`", silent.map(|(path, _)| path));
}

#[test]
fn no_file_is_named_for_nothing() {
    const NOTHING: [&str; 8] =
        ["util", "utils", "common", "helper", "helpers", "types", "misc", "shared"];
    let named = sources().into_iter().filter_map(|(path, _)| {
        let without_ending = path.trim_end_matches(".rs");
        let nothing = without_ending.split('/').any(|part| NOTHING.contains(&part));
        nothing.then_some(path)
    });
    none("is named for nothing in particular", named);
}

#[test]
fn decisions_are_pure() {
    const IMPURE: [&str; 11] = [
        "async ",
        ".await",
        "tokio::",
        "std::fs",
        "std::net",
        "std::env",
        "HashMap",
        "HashSet",
        "Instant::now",
        "SystemTime::now",
        ".elapsed()",
    ];
    let decisions = sources_under("kvd/src/dynamo");
    assert!(decisions.len() > 10, "kvd/src/dynamo has moved");
    none("is impure", with_any(&decisions, &IMPURE));
    let head = read("kvd/src/dynamo/mod.rs");
    let model = read("kvtop/src/state.rs");
    for (path, text) in [("kvd/src/dynamo/mod.rs", head), ("kvtop/src/state.rs", model)] {
        assert!(
            text.lines().any(|line| line == PURITY_LINE),
            "{path} lacks the line {PURITY_LINE}"
        );
    }
}

#[test]
fn one_file_of_the_daemon_reads_time_and_chance() {
    let mut daemon = sources_under("kvd/src");
    daemon.retain(|(path, _)| path != "kvd/src/clock.rs");
    let readings = ["Instant::now", "SystemTime::now", "getrandom"];
    none("reads time or chance itself", with_any(&daemon, &readings));
}

#[test]
fn nothing_is_left_to_be_finished() {
    // In two halves each, or this file would be found.
    let unfinished = [
        concat!("to", "do!("),
        concat!("unimplement", "ed!("),
        concat!("db", "g!("),
        concat!("FIX", "ME"),
    ];
    let found = sources().into_iter().flat_map(|(path, text)| {
        let lines = text.lines().enumerate();
        let left = lines.filter(|(_, line)| unfinished.iter().any(|word| line.contains(word)));
        left.map(|(at, line)| format!("{path}:{}: {}", at + 1, line.trim())).collect::<Vec<_>>()
    });
    none("is left", found);
}

#[test]
fn the_code_map_names_every_file_and_no_other() {
    let map = code_map();
    assert!(map.len() > 50, "the code map is not where this test looks");
    none(
        "is in the code map of docs/architecture.md but not in the tree",
        map.iter().filter(|path| !root().join(path).exists()).cloned(),
    );
    let in_src = |path: &str| path.split('/').nth(1) == Some("src");
    let sources = sources().into_iter().map(|(path, _)| path);
    let contract = files("proto", "proto").into_iter();
    none(
        "is not in the code map of docs/architecture.md",
        sources.filter(|path| in_src(path)).chain(contract).filter(|path| !map.contains(path)),
    );
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let text = read("docs/architecture.md");
    let invariants = items(section(&text, "## Invariants"));
    assert!(invariants.len() > 5, "the invariants are not where this test looks");
    let mut wrong = Vec::new();
    for invariant in &invariants {
        let spans = code_spans(invariant);
        let guards: Vec<&str> = spans.into_iter().filter(|code| code.contains(".rs::")).collect();
        if guards.is_empty() {
            wrong.push(format!("no guard: {invariant}"));
        }
        for guard in guards {
            let (file, test) = guard.split_once("::").unwrap();
            let there = fs::read_to_string(root().join(file))
                .is_ok_and(|code| code.contains(&format!("fn {test}(")));
            if !there {
                wrong.push(format!("no such test: {guard}"));
            }
        }
    }
    none("guards nothing", wrong);
}

#[test]
fn every_link_of_the_docs_leads_somewhere() {
    let mut broken = Vec::new();
    for path in files("", "md") {
        let here = root().join(&path);
        for target in links(&read(&path)) {
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let outside = target.contains("://") || target.starts_with("mailto:");
            let there = match file {
                "" => here.clone(),
                file => here.parent().unwrap().join(file),
            };
            let found = there.exists() && has_heading(&there, heading);
            if !outside && !found {
                broken.push(format!("{path} → {target}"));
            }
        }
    }
    none("leads nowhere", broken);
}

#[test]
fn the_top_level_holds_what_it_should() {
    let expected = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "docs",
        "kvctl",
        "kvd",
        "kvtop",
        "proto",
        "tests",
    ];
    let names = fs::read_dir(root()).unwrap().map(|entry| {
        let name = entry.unwrap().file_name();
        name.into_string().unwrap()
    });
    let found: BTreeSet<String> =
        names.filter(|name| !name.starts_with('.') && name != "target").collect();
    assert!(
        found.iter().eq(expected),
        "the top level holds {found:?}, and should hold {expected:?}"
    );
}

#[test]
fn operating_names_every_flag_of_kvd_and_no_other() {
    let help: BTreeSet<String> = [&["--help"][..], &["dev", "--help"], &["certs", "dev", "--help"]]
        .into_iter()
        .flat_map(|args| {
            let output = Command::new(binary("kvd")).args(args).output().unwrap();
            assert!(output.status.success(), "kvd {args:?} fails");
            let text = String::from_utf8(output.stdout).unwrap();
            let words = text.split_whitespace().filter_map(flag).map(str::to_owned);
            words.collect::<Vec<_>>()
        })
        .collect();
    let text = read("docs/operating.md");
    let named: BTreeSet<String> =
        code_spans(&text).into_iter().flat_map(flags_of_kvd).map(str::to_owned).collect();
    none("is in docs/operating.md, and kvd has no such flag", named.difference(&help).cloned());
    let own = ["--help", "--version"];
    none(
        "is a flag of kvd that docs/operating.md does not name",
        help.difference(&named).filter(|name| !own.contains(&name.as_str())).cloned(),
    );
    let port = proto::DEFAULT_PORT.to_string();
    assert!(text.contains(&port), "docs/operating.md does not name port {port}");
}

// === the tree ===

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file of the workspace, with its text.
fn sources() -> Vec<(String, String)> {
    MEMBERS.into_iter().flat_map(sources_under).collect()
}

fn sources_under(folder: &str) -> Vec<(String, String)> {
    let paths = files(folder, "rs").into_iter();
    paths.map(|path| (path.clone(), read(&path))).collect()
}

/// Paths, from the root on, of the files below `folder` whose name ends in `.ending`. Nothing
/// hidden, nothing built.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = match folder.as_str() {
                "" => name.clone(),
                folder => format!("{folder}/{name}"),
            };
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if Path::new(&name).extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Where code that is neither comment nor test holds one of `words`.
fn with_any(sources: &[(String, String)], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources {
        for (at, line) in code(text) {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                found.push(format!("{path}:{at}: `{word}` in `{}`", line.trim()));
            }
        }
    }
    found
}

/// Numbered lines without comments and without items under `#[cfg(test)]`, which rustfmt ends
/// with a line that begins with `}` or with a `;`.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().enumerate();
    let mut kept = Vec::new();
    while let Some((at, line)) = lines.next() {
        if line == "#[cfg(test)]" {
            lines.find(|(_, line)| {
                line.starts_with('}') || line.ends_with(';') && !line.starts_with(' ')
            });
        } else if !line.trim_start().starts_with("//") {
            kept.push((at + 1, line));
        }
    }
    kept
}

// === the docs ===

/// From one heading to the next of its level.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    let body = &text[start + heading.len()..];
    body.find("\n## ").map_or(body, |end| &body[..end])
}

/// Paths in the first column of the code map's tables.
fn code_map() -> BTreeSet<String> {
    let text = read("docs/architecture.md");
    let rows = section(&text, "## Code map").lines();
    let first = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    first.map(str::to_owned).collect()
}

/// The items of a list, each on one line.
fn items(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("- "), items.last_mut()) {
            (Some(first), _) => items.push(first.to_owned()),
            (None, Some(item)) if line.starts_with(' ') => {
                item.push(' ');
                item.push_str(line.trim());
            }
            _ => {}
        }
    }
    items
}

/// Inline code, and the lines of fenced code.
fn code_spans(text: &str) -> Vec<&str> {
    let mut spans = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            spans.push(line);
        } else {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut targets = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let prose: String = line.split('`').step_by(2).collect();
            let after = prose.split("](").skip(1);
            let found = after.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
            targets.extend(found);
        }
    }
    targets
}

/// Whether a file has the heading that `#name` names, as GitHub makes such names; any file has no
/// name.
fn has_heading(file: &Path, name: &str) -> bool {
    let named = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        title.chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    name.is_empty()
        || fs::read_to_string(file).is_ok_and(|text| {
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            headings.any(|line| named(line) == name)
        })
}

/// The flags of `kvd` in a piece of code: those after the word `kvd`, and those that stand without
/// a command.
fn flags_of_kvd(code: &str) -> Vec<&str> {
    let mut program = "kvd";
    let mut flags = Vec::new();
    for (at, word) in code.split_whitespace().enumerate() {
        match flag(word) {
            Some(flag) if program == "kvd" => flags.push(flag),
            Some(_) => {}
            None if at == 0 || word == "kvd" || word.starts_with("kvctl") => program = word,
            None => {}
        }
    }
    flags
}

/// `--data-dir` of `--data-dir,`.
fn flag(word: &str) -> Option<&str> {
    let start = word.find("--")?;
    let name = &word[start + 2..];
    let end = name.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
    let end = end.unwrap_or(name.len());
    (start <= 1 && end > 0).then(|| &word[start..start + 2 + end])
}

/// Fails with a list of all offenders.
fn none(what: &str, offenders: impl IntoIterator<Item = String>) {
    let offenders: Vec<String> = offenders.into_iter().collect();
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}
