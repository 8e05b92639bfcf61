//! `help`: of a command, or the exit codes.

use crate::cli::Cli;
use crate::error::Failure;
use crate::exit::{Exit, MEANINGS};
use crate::output;
use crate::table::Table;
use clap::CommandFactory;

pub(crate) fn run(topic: &[String]) -> Result<Exit, Failure> {
    let text = match topic {
        [only] if only == "exit-codes" => exit_codes(),
        path => of_command(path)?,
    };
    output::write(text.as_bytes())?;
    Ok(Exit::Ok)
}

fn exit_codes() -> String {
    let mut table = Table::new(&["CODE", "MEANING"]);
    for (exit, meaning) in MEANINGS {
        table.row(vec![(exit as u8).to_string().into(), meaning.into()]);
    }
    table.aligned(false, false)
}

fn of_command(path: &[String]) -> Result<String, Failure> {
    let mut root = Cli::command();
    root.build();
    let mut command = &mut root;
    for name in path {
        command = command.find_subcommand_mut(name).ok_or_else(|| {
            Failure::usage(format!("there is no help on {}", path.join(" ")))
                .advice("kvctl help, or kvctl help exit-codes")
        })?;
    }
    Ok(command.render_long_help().to_string())
}
