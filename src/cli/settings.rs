//! Which config a command works with.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use super::exit::Exit;
use crate::config::{self, Config, Format, Problems};

/// `--config`, for commands that work without one too.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigFile {
    /// The config file. Without one: the built-in config for trying things out.
    #[arg(long, short, value_name = "FILE", env = "HOOKBRIDGE_CONFIG")]
    pub config: Option<PathBuf>,
}

impl ConfigFile {
    /// The config; its problems are printed to stderr, and the command is to exit with 78.
    pub fn load(&self) -> Result<Config, Exit> {
        let Some(path) = &self.config else {
            return Ok(Config::default_for_trying());
        };
        match config::load(path, &|name| std::env::var(name).ok()) {
            Ok(loaded) => Ok(loaded.config),
            Err(problems) => Err(report(problems)),
        }
    }
}

/// Prints the problems of a config; the command is to exit with 78.
pub fn report(problems: Problems) -> Exit {
    let colour = std::io::stderr().is_terminal();
    eprint!("{}", problems.render(Format::Human, colour));
    Exit::config()
}
