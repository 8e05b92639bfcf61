//! Questions before something is changed. Asked only where somebody can answer; elsewhere the
//! command that needs no question is printed instead.

use crate::config::Settings;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::printable;
use std::io::{self, BufRead, Write};

/// What is to be confirmed.
pub(crate) struct Question {
    /// What needs the confirmation: "making cluster prod".
    pub what: String,
    /// Lines that say what it is about.
    pub details: Vec<String>,
    /// The question itself, without the choice: "Make it?".
    pub ask: String,
}

/// Refuses if there is nobody to ask and `--yes` is not given.
pub(crate) fn or_refuse(settings: &Settings, what: &str) -> Result<(), Failure> {
    if settings.yes || !settings.unattended {
        return Ok(());
    }
    let command = command_line(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()));
    Err(Failure::new(
        Exit::Unconfirmed,
        "CONFIRMATION_NEEDED",
        format!("{what} needs a confirmation"),
    )
    .why("nobody can be asked: no terminal, CI=true or --no-input")
    .state("nothing was changed")
    .advice(command.clone())
    .field("command", command.into()))
}

/// Goes on only with a yes: the flag, or the answer of somebody at the terminal.
pub(crate) async fn confirm(settings: &Settings, question: Question) -> Result<(), Failure> {
    or_refuse(settings, &question.what)?;
    if settings.yes {
        return Ok(());
    }
    let shown: String = question.details.iter().map(|line| printable(line) + "\n").collect();
    let _ = write!(io::stderr(), "{shown}{} [y/N] ", printable(&question.ask));
    // On a thread of its own, so that Ctrl-C is heard while nobody answers.
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    match answer.await {
        Ok(Ok(line)) if ["y", "yes"].contains(&line.trim().to_lowercase().as_str()) => Ok(()),
        _ => {
            let declined = Failure::new(Exit::Unconfirmed, "DECLINED", "declined");
            Err(declined.state("nothing was changed"))
        }
    }
}

/// The same command for a shell, with the confirmation in it.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let words = args.skip(1).filter(|arg| arg != "--no-input").map(|arg| quoted(&arg));
    let words: Vec<String> = ["kvctl".to_owned()].into_iter().chain(words).collect();
    words.join(" ") + " --yes"
}

fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=:.,/@%+[]".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_repeat_can_be_pasted() {
        let args = ["/bin/kvctl", "cluster", "init", "--name", "it's", "n1=a:1"];
        assert_eq!(
            command_line(args.map(str::to_owned).into_iter()),
            r"kvctl cluster init --name 'it'\''s' n1=a:1 --yes"
        );
    }
}
