//! `hookbridge validate`: every problem of a config file, each at its line and column.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};

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
    /// How problems are written: for people, one JSON object a line, or as annotations of a pull
    /// request
    #[arg(long, default_value = "human", value_parser = parse_format())]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

fn parse_format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::NAMES)
        .map(|name| Format::from_name(&name).expect("one of the names"))
}

/// 0 when the config is good, 78 when it is not.
pub fn run(args: &Args) -> ExitCode {
    let colour = std::io::stdout().is_terminal();
    let format = match args.json {
        true => Format::Json,
        false => args.format,
    };
    let (said, good) = config::validate(&args.config, format, colour, &|name| {
        std::env::var(name).ok()
    });
    // Whoever has closed our output early has seen enough; the exit code says the rest.
    let _ = std::io::stdout().write_all(said.as_bytes());
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(78)
    }
}
