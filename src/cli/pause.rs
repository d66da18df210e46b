//! `hookbridge pause` and `resume`: sources from which nothing is to be taken for now.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::json;

use super::admin::{Admin, escaped};
use super::settings::ConfigFile;
use crate::operations::settings::Intake;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["all", "source"])))]
pub struct Args {
    /// Every source
    #[arg(long)]
    all: bool,

    /// This source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize, serde::Serialize)]
struct Concerned {
    sources: Vec<Intake>,
}

pub async fn pause(args: Args) -> anyhow::Result<ExitCode> {
    change(args, "pause").await
}

pub async fn resume(args: Args) -> anyhow::Result<ExitCode> {
    change(args, "resume").await
}

async fn change(args: Args, verb: &str) -> anyhow::Result<ExitCode> {
    let admin = Admin::running(&args.config.load()?).await?;
    let path = match &args.source {
        Some(source) => format!("/v1/sources/{}/{verb}", escaped(source)),
        None => format!("/v1/sources/{verb}"),
    };
    let concerned: Concerned = admin.post(&path, &json!({})).await?;
    if args.json {
        println!("{}", serde_json::to_string(&concerned)?);
        return Ok(ExitCode::SUCCESS);
    }
    for Intake { name, paused } in concerned.sources {
        match paused {
            true => println!("{name}: paused, nothing is taken from it until it is resumed"),
            false => println!("{name}: active"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
