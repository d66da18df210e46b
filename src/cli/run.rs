//! `hookbridge run`: the bridge itself.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::exit::Exit;
use super::send;
use crate::app::{self, From};
use crate::config::{self, BrokerKind, Config, Format};
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config file. Without one: an embedded broker in ./data and one example subscription.
    #[arg(long, short, env = "HOOKBRIDGE_CONFIG")]
    config: Option<PathBuf>,
    /// How log lines are written to stderr: human or json.
    #[arg(long, env = "HOOKBRIDGE_LOG_FORMAT", default_value = "human", value_parser = parse_format)]
    log_format: telemetry::Format,
}

fn parse_format(name: &str) -> Result<telemetry::Format, String> {
    match name {
        "human" => Ok(telemetry::Format::Human),
        "json" => Ok(telemetry::Format::Json),
        _ => Err("one of human, json".to_owned()),
    }
}

/// 0 after a stop that was asked for; 78 for a config that cannot be used, 74 I/O, 70 storage, 69 a
/// broker that only a restart mends.
pub fn run(args: Args) -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let (config, from) = match &args.config {
        Some(path) => match config::load(path, &env) {
            Ok(config::Loaded { config, path, hash }) => (config, From::File { path, hash }),
            Err(problems) => {
                eprint!(
                    "{}",
                    problems.render(Format::Human, std::io::stderr().is_terminal())
                );
                return ExitCode::from(78);
            }
        },
        None => (Config::default_for_trying(), From::BuiltIn),
    };
    let logging = match telemetry::init(args.log_format, None) {
        Ok(logging) => logging,
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::from(error));
            return ExitCode::from(64);
        }
    };
    app::memory::set_up(config.limits.workers);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.limits.workers)
        .thread_name("hookbridge")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::from(70);
        }
    };
    let ended = runtime.block_on(app::run(config, from));
    // Tasks that are left hold nothing that is not safe to leave; blocking look-ups may take long.
    runtime.shutdown_background();
    drop(logging);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.exit_code();
            eprintln!("error: {:#}", failure.into_error());
            code
        }
    }
}

/// Finds where `send` publishes to: the admin API of a running bridge for an embedded broker, any
/// other broker directly.
pub async fn send(args: send::Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let name = match (&args.broker, config.brokers.len()) {
        (Some(name), _) => name.clone(),
        (None, 1) => config
            .brokers
            .keys()
            .next()
            .map(ToString::to_string)
            .unwrap_or_default(),
        (None, _) => {
            let known = known(&config);
            let message =
                format!("the config has several brokers: say which with --broker ({known})");
            return Err(Exit::usage(message).into());
        }
    };
    let Some(broker) = config.brokers.get(name.as_str()) else {
        let known = known(&config);
        let message = format!("no broker `{name}` in the config: there is {known}");
        return Err(Exit::usage(message).into());
    };
    let target = match broker.kind {
        BrokerKind::Embedded(_) => send::Target::Admin(config.admin.listen),
        BrokerKind::RabbitMq(_) | BrokerKind::Kafka(_) => {
            send::Target::Broker(app::publisher(&config, &name)?)
        }
    };
    send::run(args, target).await
}

fn known(config: &Config) -> String {
    let names: Vec<_> = config
        .brokers
        .keys()
        .map(|name| format!("`{name}`"))
        .collect();
    names.join(", ")
}
