//! The torture harness: real bridge processes and real brokers, faults on purpose, and a judge who
//! counts afterwards. What the scenarios are and what each is to show: docs/reliability.md.
//!
//! A producer publishes numbered events; one that the broker has confirmed is an obligation. A
//! receiver records every request, a reader collects the dead letters, and when the faults have
//! stopped and the bridge has drained the judge compares.

mod args;
mod hostile;
mod judge;
mod producer;
mod proxy;
mod scenarios;
mod soak;
#[allow(dead_code, reason = "the integration tests use more of it")]
#[path = "../it/support/mod.rs"]
mod support;
mod world;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use args::Args;
use futures_util::FutureExt as _;
use world::Setting;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if runtime.block_on(hostile::serve_if_told()) {
        return ExitCode::SUCCESS;
    }
    let args = match Args::read(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("{wrong}\n{}", args::USAGE);
            return ExitCode::from(64);
        }
    };
    runtime.block_on(run(args))
}

/// Runs what was asked for, one after another, and says which were broken.
async fn run(args: Args) -> ExitCode {
    if args.soak {
        return match soak::run(args.seed, args.seconds).await {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
    }
    let (mut broken, mut ran) = (Vec::new(), 0);
    println!("{}", judge::HEADING);
    for kind in &args.brokers {
        let due: Vec<_> = scenarios::ALL
            .iter()
            .filter(|scenario| scenario.runs(*kind, &args.scenario))
            .collect();
        if due.is_empty() {
            continue;
        }
        let broker = world::own(*kind);
        for scenario in due {
            let setting = Setting {
                scenario: scenario.name,
                kind: *kind,
                seed: args.seed,
                seconds: args.seconds,
                full: args.full,
                broker: broker.clone(),
            };
            let (name, began) = (format!("{} on {kind}", scenario.name), Instant::now());
            // One that panics is one that failed.
            let run = AssertUnwindSafe((scenario.run)(setting));
            match run.catch_unwind().await {
                Ok(report) => {
                    report.print(began.elapsed());
                    if !report.broken.is_empty() {
                        broken.push(name);
                    }
                }
                Err(_) => {
                    println!("{name}: BROKEN after {:?}: it panicked", began.elapsed());
                    broken.push(name);
                }
            }
            ran += 1;
        }
    }
    if ran == 0 {
        eprintln!("no such scenario; there are:");
        for scenario in scenarios::ALL {
            eprintln!("  {} ({})", scenario.name, scenario.on());
        }
        return ExitCode::from(64);
    }
    println!("{ran} run, {} broken, seed {}", broken.len(), args.seed);
    for name in &broken {
        println!("  broken: {name}");
    }
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
