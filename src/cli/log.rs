//! `hookbridge log`: what a running bridge logs, and having it log something else.

use std::process::ExitCode;

use super::admin::Admin;
use super::settings::ConfigFile;
use crate::admin::Log;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to log from now on, until the bridge ends: `debug`, `warn`, or by part, such as
    /// `info,hookbridge::pipeline=debug`. Without it what is logged now is printed
    filter: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let admin = Admin::running(&args.config.load()?).await?;
    let log: Log = match args.filter {
        Some(filter) => admin.put("/v1/log", None, &Log { filter }).await?,
        None => admin.get("/v1/log", &[]).await?,
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&log)?),
        false => println!("{}", log.filter),
    }
    Ok(ExitCode::SUCCESS)
}
