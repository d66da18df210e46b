//! A client that makes requests of the API's own description, good and bad ones, and looks whether
//! what comes back is described: no answer is 5xx, and none outside of the schema.
//!
//! The client is schemathesis, which `scripts/setup` installs, with what [`CLIENT`] tells it; its seed is
//! fixed, so that it asks the same again.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::registration_support::{KEY, config, get, post, to};
use crate::support::bridge::Bridge;

const SEED: &str = "20261122";
/// Of each operation, and phase.
const EXAMPLES: &str = "6";
/// It takes most of a minute on a machine that has nothing else to do.
const WITHIN: Duration = Duration::from_secs(300);
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// How lines are written, and that a stream ends.
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/client.py");

fn installed() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/openapi");
    assert!(
        root.join("python.lock").exists(),
        "{} is not there: scripts/setup installs it",
        root.display()
    );
    root.join("python")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_the_answer_is_described() {
    let more = "endpoints: { shared: { url: 'http://127.0.0.1:9/', signature: none } }\n\
                subscriptions:\n  files: { topics: [x], endpoint: shared }\n";
    let bridge = Bridge::start(&config(&[KEY], more)).await.ready().await;
    for name in ["crm", "sales"] {
        let body = to(name, "http://127.0.0.1:9/T0");
        post(&bridge, "/v1/subscriptions", &body).await.with(201);
    }
    let (status, _) = bridge.post("/v1/topics/x/events", "{}").await;
    assert_eq!(status, 202);

    let folder = tempfile::tempdir().expect("a folder");
    let python = installed();
    let began = Instant::now();
    let mut client = Command::new("python3");
    client
        .args([CLIENT, "--no-color"])
        .args(["run", &format!("http://{}/v1/openapi.json", bridge.admin)])
        .args(["--seed", SEED, "--max-examples", EXAMPLES])
        .args(["--checks", CHECKS])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--generation-database", "none", "--request-timeout", "20"])
        .args(["--suppress-health-check", "all", "--continue-on-failure"])
        .env("PYTHONPATH", &python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(folder.path())
        .stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || client.output());
    let output = tokio::time::timeout(WITHIN, running).await;
    let output = output
        .expect("in time")
        .expect("no panic")
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}\n{} s", began.elapsed().as_secs());
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let asked = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("asked "));
    let asked: Value = serde_json::from_str(asked.expect("what was asked")).expect("JSON");
    for what in ["/v1/tap", "/v1/subscriptions/import", "made"] {
        assert!(asked[what].as_u64() > Some(0), "{what}: {asked}");
    }
    // It is whole after all that.
    assert_eq!(bridge.get("/healthz").await.0, 200);
    let dry = "/v1/subscriptions?dry_run=true";
    let body = to("after-all", "http://127.0.0.1:9/");
    let made = post(&bridge, dry, &body).await.with(200);
    assert_eq!(made.body["name"], json!("after-all"));
    let all = get(&bridge, "/v1/subscriptions").await.with(200);
    assert!(all.body["subscriptions"].is_array());
}
