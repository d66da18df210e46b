//! `hookbridge schema`: the JSON Schema of the config, for editors, or the OpenAPI document of the admin
//! API, for clients.

use std::io::Write as _;
use std::process::ExitCode;

use crate::app;
use crate::config::schema;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The OpenAPI document of the admin API instead
    #[arg(long)]
    openapi: bool,
}

/// The schema as it is kept in the repository and written by `init`.
pub fn text() -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&schema::schema())? + "\n")
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = match args.openapi {
        true => app::openapi(),
        false => text()?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
