//! `hookbridge man`: manual pages, made from the same definitions as `--help`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::exit::Exit;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write a page for each command into this folder, which is made if it is missing. Without it
    /// the page of `hookbridge` goes to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.dir {
        Some(dir) => write_all(dir).with_context(|| {
            Exit::io(format!("the pages cannot be written to {}", dir.display()))
        })?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(super::command()).render(&mut page)?;
            std::io::stdout().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_all(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(super::command(), dir)
}
