//! `hookbridge test`: the messages of `tests:`, and whether what becomes of them is what is expected.
//!
//! Routing, rendering and signing are those of a bridge; there is no broker and no network. What
//! differs is told by path ([`compare`]), for people ([`show`]), as JSON, and as JUnit's XML
//! ([`junit`]).

mod compare;
mod junit;
mod show;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::exit::Exit;
use super::settings::report;
use crate::app;
use crate::config::{self, Case, Config};
use crate::pipeline::Preview;
use compare::Difference;

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
    /// File with `tests:` besides those of the config; may be given more than once
    #[arg(long, value_name = "FILE")]
    tests: Vec<PathBuf>,
    /// Only tests with this in their name; may be given more than once
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,
    /// Also write JUnit's XML, which CI systems read, to this file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The tests of one file.
#[derive(Debug, Serialize)]
struct Suite {
    file: String,
    tests: Vec<Tested>,
}

/// A test and what came of it.
#[derive(Debug, Serialize)]
struct Tested {
    name: Arc<str>,
    passed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Difference>,
    /// Why it could not be carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    took: Duration,
}

/// 0 when all tests pass, 1 when one does not or there is none, 78 when the config or a file of tests
/// has problems.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let env = |name: &str| std::env::var(name).ok();
    let config = config::load(&args.config, &env).map_err(report)?.config;
    let mut files: Vec<(&Path, Vec<Case>)> = vec![(&args.config, config.tests.clone())];
    for path in &args.tests {
        let cases = config::load_tests(path, &env, &config).map_err(report)?;
        files.push((path, cases));
    }
    let preview = app::preview(&config)?;
    let wanted = |case: &Case| {
        let mut words = args.filter.iter();
        args.filter.is_empty() || words.any(|word| case.name.contains(word.as_str()))
    };
    let mut suites = Vec::new();
    for (path, cases) in files {
        let cases = cases.iter().filter(|case| wanted(case));
        let tests: Vec<_> = cases.map(|case| tested(&config, &preview, case)).collect();
        if !tests.is_empty() {
            let file = path.display().to_string();
            suites.push(Suite { file, tests });
        }
    }
    if let Some(path) = &args.junit {
        let text = junit::write(&suites);
        std::fs::write(path, text)
            .map_err(|error| Exit::io(format!("cannot write {}: {error}", path.display())))?;
    }
    let all = || suites.iter().flat_map(|suite| &suite.tests);
    let count = all().count();
    let failed = all().filter(|test| !test.passed).count();
    let mut out = std::io::stdout().lock();
    if args.json {
        let said = json!({ "passed": count - failed, "failed": failed, "suites": suites });
        writeln!(out, "{}", serde_json::to_string_pretty(&said)?)?;
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        out.write_all(show::all(&suites, colour).as_bytes())?;
    }
    if count == 0 {
        let what = match args.filter.is_empty() {
            true => "there are no tests: write some under `tests:`, or name a file with --tests",
            false => "no test has such a name",
        };
        eprintln!("{what}");
    }
    Ok(ExitCode::from(u8::from(failed > 0 || count == 0)))
}

fn tested(config: &Config, preview: &Preview, case: &Case) -> Tested {
    let began = Instant::now();
    let differences = app::event(config, case).and_then(|event| {
        let made = preview.of(&Arc::new(event), case.at);
        compare::all(case, &made)
    });
    let (differences, error) = match differences {
        Ok(differences) => (differences, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    Tested {
        name: case.name.clone(),
        passed: differences.is_empty() && error.is_none(),
        differences,
        error,
        took: began.elapsed(),
    }
}
