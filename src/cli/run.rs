//! `hookbridge run`: the bridge itself.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::app::{self, From};
use crate::broker::Publication;
use crate::config::{self, Config, Format};
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config file. Without one: an embedded broker in ./data and one example subscription.
    #[arg(long, short, env = "HOOKBRIDGE_CONFIG")]
    config: Option<PathBuf>,
    /// How log lines are written to stderr: human or json.
    #[arg(long, env = "HOOKBRIDGE_LOG_FORMAT", default_value = "human", value_parser = telemetry::Format::from_name)]
    log_format: telemetry::Format,
}

/// 0 after a stop that was asked for; 78 for a config that cannot be used, 74 I/O, 70 storage, 69 a
/// broker that only a restart mends.
pub fn run(args: Args) -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let (config, from) = match &args.config {
        Some(path) => match config::load(path, &env) {
            Ok(loaded) => (loaded.config, From::File(path.clone())),
            Err(problems) => {
                eprint!("{}", problems.render(Format::Human, std::io::stderr().is_terminal()));
                return ExitCode::from(78);
            }
        },
        None => (Config::default_for_trying(), From::BuiltIn),
    };
    telemetry::init(args.log_format, None);
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
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.exit_code();
            eprintln!("error: {:#}", failure.into_error());
            code
        }
    }
}

/// Publishes one event to an external broker, for `send`.
pub async fn publish(config: &Config, broker: &str, publication: Publication) -> anyhow::Result<()> {
    let broker = app::publisher(config, broker)?;
    Ok(broker.publish(publication).await?)
}
