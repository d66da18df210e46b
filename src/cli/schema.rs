//! `hookbridge schema`: the JSON Schema of the config, for editors.

use std::io::Write as _;
use std::process::ExitCode;

use crate::config::schema;

/// The schema as it is kept in the repository and written by `init`.
pub fn text() -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&schema::schema())? + "\n")
}

pub fn run() -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
