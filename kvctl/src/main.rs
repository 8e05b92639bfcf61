//! `kvctl`: the scriptable command line of kvd. Parses, runs one command, exits with its code.

mod change;
mod cli;
mod commands;
mod config;
mod confirm;
mod connection;
mod context;
mod error;
mod exit;
mod key;
mod output;
mod patience;
mod plan_file;
mod seeds;
mod table;
mod time;
mod topology;
mod units;
mod value;

use crate::config::Settings;
use crate::error::{Failure, Shape};
use crate::exit::Exit;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Longest wait for a command to stop when a signal ends it: it may be in a write nobody reads.
const STOP: Duration = Duration::from_millis(200);

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
            runtime.shutdown_timeout(STOP);
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
        let parting = settings.parting.clone();
        let mut running = tokio::spawn(commands::run(settings, command));
        let exit = tokio::select! {
            done = &mut running => return done.unwrap_or_else(|panic| Err(Failure::internal(panic.to_string()))),
            _ = interrupt.recv() => Exit::Interrupted,
            _ = terminate.recv() => Exit::Terminated,
        };
        running.abort();
        // A bar is taken away with the task, and would take words below it along.
        let _ = tokio::time::timeout(STOP, running).await;
        parting.say();
        Ok(exit)
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
