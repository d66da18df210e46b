//! `hookbridge echo`: the config as it takes effect, with its defaults filled in.
//!
//! Secrets are masked. What comes from the environment or a file stays as it was written, unless it
//! is a number, a time or the like, which cannot be a secret.

use std::io::Write as _;
use std::process::ExitCode;

use super::settings::ConfigFile;
use crate::config;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,

    /// Print JSON instead of YAML
    #[arg(long)]
    json: bool,
}

/// 0, or 78 when the config has problems, which are printed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let env = |name: &str| std::env::var(name).ok();
    let path = args.config.config.as_deref();
    let effective = config::effective(path, &env).map_err(super::settings::report)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&effective.json())? + "\n",
        false => effective.yaml().to_owned(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
