//! `hookbridge validate`: every problem of a config file, each at its line and column.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{self, Format};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config file.
    #[arg(
        long,
        short,
        env = "HOOKBRIDGE_CONFIG",
        default_value = "hookbridge.yaml"
    )]
    config: PathBuf,
    /// human, json (one object a line) or github (annotations).
    #[arg(long, default_value = "human", value_parser = parse_format)]
    format: Format,
}

fn parse_format(name: &str) -> Result<Format, String> {
    Format::from_name(name).ok_or_else(|| "one of human, json, github".to_owned())
}

/// 0 when the config is good, 78 when it is not.
pub fn run(args: &Args) -> ExitCode {
    let colour = std::io::stdout().is_terminal();
    let (said, good) = config::validate(&args.config, args.format, colour, &|name| {
        std::env::var(name).ok()
    });
    print!("{said}");
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(78)
    }
}
