//! The tour in the README, read as a script: `$ command` lines, each followed by what it prints.
//! In the expected output `[..]` stands for anything within a line and `...` for any lines.

/// One command of the tour and what it should print, standard output and error together.
#[derive(PartialEq, Eq, Debug)]
pub struct Step {
    /// The command, for a shell.
    pub command: String,
    /// The expected lines.
    pub expected: Vec<String>,
}

/// The steps in the `console` blocks of a Markdown text, in order.
pub fn steps(markdown: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in markdown.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match line.strip_prefix("$ ") {
                Some(command) => {
                    steps.push(Step { command: command.to_owned(), expected: Vec::new() });
                }
                None => {
                    if let Some(step) = steps.last_mut() {
                        step.expected.push(line.to_owned());
                    }
                }
            },
            (false, _) => {}
        }
    }
    steps
}

/// Whether `printed` is what was `expected`.
pub fn matches(expected: &[String], printed: &[&str]) -> bool {
    match expected {
        [] => printed.is_empty(),
        [any, rest @ ..] if any == "..." => {
            (0..=printed.len()).any(|n| matches(rest, &printed[n..]))
        }
        [line, rest @ ..] => match printed {
            [first, others @ ..] => line_matches(line, first.trim_end()) && matches(rest, others),
            [] => false,
        },
    }
}

fn line_matches(expected: &str, printed: &str) -> bool {
    match expected.split_once("[..]") {
        None => expected.trim_end() == printed,
        Some((start, rest)) => printed.strip_prefix(start).is_some_and(|printed| {
            let ends = printed.char_indices().map(|(at, _)| at).chain([printed.len()]);
            ends.into_iter().any(|at| line_matches(rest, &printed[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_commands_of_console_blocks() {
        let text = "words\n```console\n$ one\nout\n$ two\n```\n```sh\n$ not\n```\n";
        let found = steps(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Step { command: "one".into(), expected: vec!["out".into()] });
    }

    #[test]
    fn wildcards_stand_for_parts_of_a_line_and_for_lines() {
        let is = |expected: &[&str], printed: &[&str]| {
            let expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
            matches(&expected, printed)
        };
        assert!(is(&["a [..] c", "...", "z"], &["a b c", "y", "z"]));
        assert!(is(&["...", "z"], &["z"]) && is(&["[..]ü[..]"], &["für"]));
        assert!(!is(&["a [..] c"], &["a b d"]) && !is(&["a"], &["a", "b"]) && !is(&["a"], &[]));
    }
}
