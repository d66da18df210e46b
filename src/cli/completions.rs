//! `hookbridge completions`: what a shell needs to complete commands and options.

use std::io::Write as _;
use std::process::ExitCode;

use clap_complete::Shell;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell: put the output where it looks for completions
    shell: Shell,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Into memory first: clap panics when whoever reads us closes the pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "hookbridge", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
