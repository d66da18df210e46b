//! The command line: one file per command, and what they share (`admin`,
//! `desk`, `exit`, `progress`, `settings`).

mod admin;
mod desk;
mod exit;
mod progress;
mod settings;

mod dead;
pub mod listen;
mod replay;
mod run;
mod send;
mod validate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Events from RabbitMQ, Kafka or an embedded broker become signed webhooks.
#[derive(Debug, Parser)]
#[command(name = "hookbridge", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
enum Command {
    /// List, show, retry, drop and export dead letters.
    Dead(dead::Args),
    /// Run the bridge. Without --config: an embedded broker in ./data, for trying it out.
    Run(run::Args),
    /// Receive webhooks, check their signatures and print them.
    Listen(listen::Args),
    /// Send what a source made in a span of time again, to one subscription.
    Replay(replay::Args),
    /// Publish an event to a broker of the config.
    Send(send::Args),
    /// Check a config file and print every problem with its place.
    Validate(validate::Args),
}

/// Runs the command that was asked for. Wrong usage exits with 64.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(64)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Dead(args) => run_small(dead::run(args)),
        Command::Run(args) => run::run(args),
        Command::Listen(args) => run_small(listen::run(args)),
        Command::Replay(args) => run_small(replay::run(args)),
        Command::Send(args) => run_small(run::send(args)),
        Command::Validate(args) => validate::run(&args),
    }
}

/// Runs a command that needs no more than a small runtime.
fn run_small(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| exit::report(&error))
}
