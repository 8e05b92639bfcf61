//! Flags in, exit code out: 0 after a clean stop, 2 for bad flags or configuration, 1 for the rest.

use clap::Parser;
use kvd::config::{CertsCommand, Cli, Command, Config};
use kvd::{certs, dev, server, telemetry};
use std::process::ExitCode;

/// Some hundredths less time for a request than with the system's, and what a flood took is given back.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Dev(flags)) => finish(block_on(dev::run(flags))),
        Some(Command::Certs { what: CertsCommand::Dev(flags) }) => finish(certs::run(&flags)),
        None => match Config::resolve(cli.flags) {
            Ok(config) => node(config),
            Err(error) => fail(&error, 2),
        },
    }
}

fn node(config: Config) -> ExitCode {
    if let Err(error) = telemetry::start_logging(config.log_format, &config.log) {
        return fail(&error, 2);
    }
    finish(block_on(server::run(config)))
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // Not waited for: a thread that reads standard input never ends.
    runtime.shutdown_background();
    outcome
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}"), 1),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("kvd: {error}");
    ExitCode::from(code)
}
