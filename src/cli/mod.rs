//! The command line: one file per command, and what they share (`admin`, `desk`, `exit`, `help`,
//! `progress`, `settings`, `signing`).

mod admin;
mod desk;
mod exit;
mod help;
mod progress;
mod settings;
mod signing;

mod attempts;
mod completions;
mod dead;
mod demo;
mod doctor;
mod echo;
mod init;
pub mod listen;
mod log;
mod man;
mod parked;
mod pause;
mod preset;
mod reload;
mod replay;
mod run;
mod schema;
mod send;
mod sign;
mod subscription;
mod tap;
mod test;
mod topology;
mod trace;
mod validate;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

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
    /// List what was attempted, the newest first.
    Attempts(attempts::Args),
    /// Print what a shell needs to complete commands and options.
    Completions(completions::Args),
    /// List, show, retry, drop and export dead letters.
    Dead(dead::Args),
    /// Show all of it in a few seconds: deliveries, retries, a dead letter sent again.
    Demo,
    /// Look at brokers, endpoints and this machine, and say what is wrong.
    Doctor(doctor::Args),
    /// Print the config as it takes effect: defaults filled in, secrets masked.
    Echo(echo::Args),
    /// Write a starting config.
    Init(init::Args),
    /// Receive webhooks, check their signatures and print them.
    Listen(listen::Args),
    /// Show what a running bridge logs, or have it log something else.
    Log(log::Args),
    /// Print or write manual pages.
    Man(man::Args),
    /// Show what waits on the brokers, bring it forward, or drop it.
    Parked(parked::Args),
    /// Take nothing from a source, or from all of them, until they are resumed.
    Pause(pause::Args),
    /// List the adapters for Slack, PagerDuty and others; print the template of one.
    Preset(preset::Args),
    /// Have a running bridge read its config again, and print what has changed.
    Reload(reload::Args),
    /// Send what a source made in a span of time again, to one subscription.
    Replay(replay::Args),
    /// Take from a source again, or from all of them.
    Resume(pause::Args),
    /// Run the bridge. Without --config: an embedded broker in ./data, for trying it out.
    Run(run::Args),
    /// Print the JSON Schema of the config, for editors, or the API's description.
    Schema(schema::Args),
    /// Publish an event to a broker of the config.
    Send(send::Args),
    /// Print the headers that a delivery of a body would have.
    Sign(sign::Args),
    /// List, make, change and remove subscriptions of the running bridge.
    Subscription(subscription::Args),
    /// Show requests as they are sent, and their answers, while it runs.
    Tap(tap::Args),
    /// Carry out the tests of the config: messages in, the expected requests out.
    Test(test::Args),
    /// Print what the config needs on the brokers; remove what is left over there.
    Topology(topology::Args),
    /// Show what became of an event: attempts, and where each delivery is now.
    Trace(trace::Args),
    /// Check a config file and print every problem with its place.
    Validate(validate::Args),
    /// Check the signature of a request: 0 when it is right, 1 when it is not.
    Verify(verify::Args),
}

/// What the command line understands.
pub fn command() -> clap::Command {
    help::grouped(Cli::command())
}

/// Runs the command that was asked for. Wrong usage exits with 64.
pub fn main() -> ExitCode {
    let parsed = command()
        .try_get_matches()
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = match parsed {
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
        Command::Attempts(args) => run_small(attempts::run(args)),
        Command::Completions(args) => ended(completions::run(&args)),
        Command::Dead(args) => run_small(dead::run(args)),
        Command::Demo => run_small(demo::run()),
        Command::Doctor(args) => run_small(doctor::run(args)),
        Command::Echo(args) => ended(echo::run(&args)),
        Command::Init(args) => ended(init::run(&args)),
        Command::Listen(args) => run_small(listen::run(args)),
        Command::Log(args) => run_small(log::run(args)),
        Command::Man(args) => ended(man::run(&args)),
        Command::Parked(args) => run_small(parked::run(args)),
        Command::Pause(args) => run_small(pause::pause(args)),
        Command::Preset(args) => ended(preset::run(&args)),
        Command::Reload(args) => run_small(reload::run(args)),
        Command::Replay(args) => run_small(replay::run(args)),
        Command::Resume(args) => run_small(pause::resume(args)),
        Command::Run(args) => run::run(args),
        Command::Schema(args) => ended(schema::run(&args)),
        Command::Send(args) => run_small(run::send(args)),
        Command::Sign(args) => ended(sign::run(args)),
        Command::Subscription(args) => run_small(subscription::run(args)),
        Command::Tap(args) => run_small(tap::run(args)),
        Command::Test(args) => ended(test::run(&args)),
        Command::Topology(args) => run_small(topology::run(args)),
        Command::Trace(args) => run_small(trace::run(args)),
        Command::Validate(args) => validate::run(&args),
        Command::Verify(args) => ended(verify::run(args)),
    }
}

/// Runs a command that needs no more than a small runtime.
fn run_small(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    ended(match runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(error.into()),
    })
}

fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| exit::report(&error))
}
