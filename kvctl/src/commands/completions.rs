//! `completions`: a shell's completion script.

use crate::cli::Cli;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;

pub(crate) fn run(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvctl", &mut script);
    output::write(&script)?;
    Ok(Exit::Ok)
}
