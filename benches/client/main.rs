//! Everything around the bridge in a measurement: the receiver, the publishers and the floors.
//!
//! `benches/run` drives it. By itself, `cargo bench --bench client` compares HTTP clients and
//! runtimes: it runs every variant of [`send`] in a process of its own against the [`sink`] in another
//! one, in interleaved rounds, and prints medians: requests per second, and CPU (user and system,
//! from `/proc/self/stat`) per request of the sending process alone. Each request is a POST of 512
//! bytes, signed with HMAC-SHA256, on kept-alive connections, 64 at once.
//!
//! Numbers and what follows from them: `docs/decisions/0001-http-client-and-runtime.md`.

mod consume;
mod publish;
mod send;
mod sink;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

const AT_ONCE: u64 = 64;
const ROUNDS: usize = 5;
const CLIENTS: [&str; 2] = ["reqwest", "courier"];
const RUNTIMES: [&str; 4] = ["current", "multi1", "multi2", "shards2"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["sink", folder] => sink::run(Path::new(folder)),
        ["send", client, runtime, url, ref pairs @ ..] => send::run(client, runtime, url, pairs),
        ["consume", kind, address, topic, url] => consume::run(kind, address, topic, url),
        ["publish", kind, address, topic, ref pairs @ ..] => {
            publish::run(kind, address, topic, pairs);
        }
        ["make", kind, address, topic, ref pairs @ ..] => {
            publish::make(kind, address, topic, pairs);
        }
        ["remove", kind, address, topic, ref pairs @ ..] => {
            publish::remove(kind, address, topic, pairs);
        }
        // `cargo test --all-targets` runs this without `--bench` and wants no measurement.
        [.., "--bench"] => measure(),
        _ => println!("usage: cargo bench --bench client"),
    }
}

/// Runs all variants in turn, `ROUNDS` times, and prints the medians.
fn measure() {
    let this = std::env::current_exe().expect("the path of this program");
    let mut sink = Command::new(&this)
        .arg("sink")
        .arg(std::env::temp_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the sink starts");
    let mut ports = String::new();
    BufReader::new(sink.stdout.take().expect("a pipe"))
        .read_line(&mut ports)
        .expect("the sink says where it is");
    let port = ports.split(' ').next().unwrap_or_default();
    let url = format!("http://127.0.0.1:{port}/in");
    let variants: Vec<(&str, &str)> = CLIENTS
        .into_iter()
        .flat_map(|client| RUNTIMES.map(|runtime| (client, runtime)))
        .collect();
    let mut results = vec![(Vec::new(), Vec::new()); variants.len()];
    for _ in 0..ROUNDS {
        for ((client, runtime), (rates, costs)) in variants.iter().zip(&mut results) {
            let output = Command::new(&this)
                .args(["send", client, runtime, &url])
                .output()
                .expect("a variant runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>());
            match (numbers.next(), numbers.next()) {
                (Some(Ok(rate)), Some(Ok(cost))) => {
                    rates.push(rate);
                    costs.push(cost);
                }
                _ => panic!("{client} on {runtime}: {text}{output:?}"),
            }
        }
    }
    drop(sink.stdin.take());
    let _ = sink.wait();
    println!("| client | runtime | requests/s | CPU us/request | min to max |");
    println!("|---|---|---:|---:|---|");
    for ((client, runtime), (mut rates, mut costs)) in variants.into_iter().zip(results) {
        rates.sort_by(f64::total_cmp);
        costs.sort_by(f64::total_cmp);
        println!(
            "| {client} | {runtime} | {:.0} | {:.1} | {:.1} to {:.1} |",
            rates[ROUNDS / 2],
            costs[ROUNDS / 2],
            costs[0],
            costs[ROUNDS - 1]
        );
    }
}

fn current_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

fn multi_thread(workers: usize) -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// The most memory that this process has had at once.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.expect("a size in KiB") / 1024.0
}

/// User and system time of this process so far, in steps of 10 ms (the kernel's clock tick).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    // The name in parentheses may hold spaces.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
