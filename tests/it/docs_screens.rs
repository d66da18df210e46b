//! The screens in README.md are what the program prints: each is made anew and compared, with times,
//! ids and ports left out of it.
//!
//! `HOOKBRIDGE_BLESS=1 cargo test --test it docs_screens` writes them anew.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::docs_cli::same_or_bless;
use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const SOON: Duration = Duration::from_secs(20);

fn hookbridge(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("HOOKBRIDGE_CONFIG")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(complaints, "", "{arguments:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Without what differs from run to run.
fn masked(text: &str) -> String {
    let varying = [
        (r"(?m)^ *[0-9]+\.[0-9] s", "TIME"),
        (r"process [0-9]+", "PROCESS"),
        (r"127\.0\.0\.1:[0-9]+", "ADDRESS"),
        (
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?Z?",
            "TIME",
        ),
        (r"dlv_[A-Za-z0-9_-]+", "ID"),
    ];
    varying.iter().fold(text.to_owned(), |text, (from, to)| {
        let from = regex::Regex::new(from).expect("a pattern");
        from.replace_all(&text, *to).into_owned()
    })
}

fn compare(name: &str, screens: &[(&str, String)]) {
    let shown: Vec<_> = screens
        .iter()
        .map(|(command, screen)| format!("$ hookbridge {command}\n{}\n", screen.trim_end()))
        .collect();
    let block = format!("```text\n{}```\n", shown.join("\n"));
    let open = format!("<!-- screen: {name} -->");
    same_or_bless("README.md", &open, &block, |is, should| {
        masked(is) == masked(should)
    });
}

#[test]
fn the_demo() {
    let folder = tempfile::tempdir().expect("a folder");
    compare("demo", &[("demo", hookbridge(folder.path(), &["demo"]))]);
}

#[test]
fn a_mistake_in_a_config() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = "\
brokers: { here: { embedded: {} } }
subscriptions:
  crm:
    topcis: [\"orders.*\"]
    endpoint:
      url: http://crm.example.com/hooks
      secret: ${env:CRM_SECRET}
    retry: { schedule: [5s, 5 minutes] }
";
    std::fs::write(folder.path().join("hookbridge.yaml"), config).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .arg("validate")
        .current_dir(folder.path())
        .env_clear()
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(78));
    let screen = String::from_utf8(output.stdout).expect("text");
    compare("validate", &[("validate", screen)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_dead_letters() {
    let down = Receiver::answering(|_, _| Answer::status(503)).await;
    let picky = Receiver::answering(|_, _| Answer::status(422)).await;
    let to = |name: &str, topic: &str, receiver: &Receiver| {
        let url = receiver.url("/");
        format!(
            "  {name}: {{ topics: ['{topic}'], endpoint: {{ url: '{url}', secret: '{SECRET}' }}, retry: {{ no_retry: [422, 503] }} }}\n"
        )
    };
    let both = to("crm", "orders.created", &down) + &to("billing", "orders.paid", &picky);
    let bridge = Bridge::start(&Bus::embedded().config(&both))
        .await
        .ready()
        .await;
    let publish = async |id: &str, topic: &str| {
        let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
        let request = reqwest::Client::new().post(url).header("hookbridge-id", id);
        let answer = request
            .body("{\"total\": 120}")
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 202);
    };
    let config = bridge.config_path().display().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let dead = |more: &[&str]| {
        let arguments = [&["dead", "list", "--config", &config], more].concat();
        tokio::task::block_in_place(|| hookbridge(folder.path(), &arguments))
    };
    // One after the other, so that they are listed in this order.
    for (count, (id, topic)) in [
        ("order-1001", "orders.created"),
        ("order-1002", "orders.paid"),
        ("order-1003", "orders.created"),
    ]
    .into_iter()
    .enumerate()
    {
        publish(id, topic).await;
        eventually("it is a dead letter", SOON, async || {
            let counted = dead(&["--count"]);
            (counted.trim() == (count + 1).to_string()).then_some(())
        })
        .await;
    }
    compare(
        "dead",
        &[
            ("dead list", dead(&[])),
            ("dead list --group", dead(&["--group"])),
        ],
    );
}
