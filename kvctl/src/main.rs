//! `kvctl`: the scriptable command line of kvd. Parses, runs one command, exits with its code.

mod cli;
mod commands;
mod config;
mod connection;
mod context;
mod error;
mod exit;
mod key;
mod output;
mod seeds;
mod table;
mod time;
mod value;

use crate::config::Settings;
use crate::error::{Failure, Shape};
use crate::exit::Exit;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli_error(&error).into(),
    };
    let settings = match Settings::resolve(&cli.global, &|name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(failure) => return failure.report(early_shape()).into(),
    };
    let exit = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let exit = run(&runtime, settings.clone(), cli.command);
            // A read of stdin that nobody will answer must not hold the process.
            runtime.shutdown_timeout(Duration::from_millis(200));
            exit
        }
        Err(error) => Err(Failure::internal(format!("no async runtime: {error}"))),
    };
    exit.unwrap_or_else(|failure| failure.report(settings.shape())).into()
}

/// Runs the command beside the signals, so that a write to a full pipe cannot keep Ctrl-C away.
/// Ending the runtime drops the command's future, and with it its temporary files.
fn run(
    runtime: &tokio::runtime::Runtime,
    settings: Settings,
    command: cli::Command,
) -> Result<Exit, Failure> {
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            return Err(Failure::internal("signals cannot be caught"));
        };
        let running = tokio::spawn(commands::run(settings, command));
        let stop = running.abort_handle();
        tokio::select! {
            done = running => done.unwrap_or_else(|panic| Err(Failure::internal(panic.to_string()))),
            _ = interrupt.recv() => {
                stop.abort();
                Ok(Exit::Interrupted)
            }
            _ = terminate.recv() => {
                stop.abort();
                Ok(Exit::Terminated)
            }
        }
    })
}

/// Help and version are data and go to stdout; everything else clap says is a usage error.
fn cli_error(error: &clap::Error) -> Exit {
    if error.use_stderr() {
        return error::usage(error, output::json_wanted());
    }
    match output::write(error.render().to_string().as_bytes()) {
        Ok(()) => Exit::Ok,
        Err(failure) => failure.report(early_shape()),
    }
}

/// How errors are printed while the settings are not known.
fn early_shape() -> Shape {
    Shape { json: output::json_wanted(), ..Shape::default() }
}
