//! `hookbridge doctor`: looks at brokers, endpoints and this machine, a line each as it goes.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;

use super::settings::ConfigFile;
use crate::app;
use crate::finding::Finding;
use crate::operations::doctor::{self, Summary};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object a line: level, subject, what, advice.
    #[arg(long)]
    json: bool,
    /// Also send a signed event of type `hookbridge.ping` to every endpoint.
    #[arg(long)]
    ping: bool,
    /// Look at these only.
    #[arg(long, value_enum)]
    only: Option<Only>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Brokers,
    Endpoints,
}

/// 0 when all is well, warnings allowed; 1 with problems; 69 when somebody cannot be reached; 78 for
/// a config that cannot be used.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let (brokers, endpoints) = (
        args.only != Some(Only::Endpoints),
        args.only != Some(Only::Brokers),
    );
    let checks = app::checks(&config, brokers, endpoints)?;
    let policy = app::address_policy(&config);
    let summary = doctor::run(checks, policy, args.ping, |finding| {
        let line = match args.json {
            true => serde_json::to_string(finding)?,
            false => line(finding),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    })
    .await?;
    if !args.json {
        println!("{}", in_words(&summary));
    }
    Ok(ExitCode::from(if summary.unreachable > 0 {
        69
    } else {
        u8::from(summary.problems > 0)
    }))
}

fn line(finding: &Finding) -> String {
    let Finding {
        level,
        subject,
        what,
        advice,
    } = finding;
    match advice {
        Some(advice) => format!("{level:11} {subject}: {what}\n{:11} -> {advice}", ""),
        None => format!("{level:11} {subject}: {what}"),
    }
}

fn in_words(summary: &Summary) -> String {
    let Summary {
        ok,
        warnings,
        problems,
        unreachable,
    } = summary;
    format!("{ok} ok, {warnings} warnings, {problems} problems, {unreachable} unreachable")
}
