//! The official verifiers of the services that signatures are named after: they believe what a real
//! bridge delivers over HTTP, and refuse it with its body, signature, timestamp or the secret changed.
//!
//! The receivers are those of tests/receivers; `scripts/setup` installs what they need.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::support::bridge::Bridge;
use crate::support::{SECRET, eventually};

const TEXT: &str = "4f1c2b8d7a6e5930c1d2e3f405162738";
const WHSK: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
/// The public half: the last 32 of its 64 bytes.
const WHPK: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";

const JSON: &str = r#"{"id":"evt_1","object":"event","type":"order","data":{"object":{"total":4711,"name":"\u00e4 & =+"}}}"#;
const WITHIN: Duration = Duration::from_secs(60);

/// What a receiver found of one delivery.
#[derive(Debug, Deserialize)]
struct Found {
    accepted: bool,
    why: String,
    /// Whether it refused the delivery with this changed.
    refused: BTreeMap<String, bool>,
}

/// One subscription: its name, which is the path too, its signature with what else the endpoint
/// has, and the topic that it takes.
type Row = (&'static str, &'static str, &'static str);

pub struct Receiver {
    child: Child,
    pub port: u16,
    /// What it has printed after its port.
    pub said: String,
}

impl Receiver {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .env("TEXT", TEXT)
            .env("WHSEC", SECRET)
            .env("WHPK", WHPK)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("it prints its port");
        let (port, said) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let port = port.parse();
        Self {
            child,
            port: port.unwrap_or_else(|_| panic!("the receiver did not start: {line:?}")),
            said: said.to_owned(),
        }
    }

    pub async fn results<T: DeserializeOwned>(&self) -> BTreeMap<String, T> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/results", self.port)).await;
        answer.expect("it answers").json().await.expect("its JSON")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder below target/tools/receivers.
pub fn installed(what: &str) -> PathBuf {
    let path = root().join("target/tools/receivers").join(what);
    let lock = root()
        .join("target/tools/receivers")
        .join(format!("{what}.lock"));
    assert!(
        lock.exists(),
        "{} is not there: scripts/setup installs the verifiers",
        path.display()
    );
    path
}

fn config(port: u16, rows: &[Row]) -> String {
    let subscription = |(name, signature, topic): &Row| {
        let secret = match *signature {
            "standard" | "svix" => SECRET,
            "standard-ed25519" => WHSK,
            _ => TEXT,
        };
        format!(
            "  {name}: {{ topics: ['{topic}.#'], endpoint: {{ url: 'http://127.0.0.1:{port}/{name}?a=%2f', signature: {signature}, secret: '{secret}' }}, retry: {{ schedule: [1s], max_attempts: 1 }} }}\n"
        )
    };
    let subscriptions: String = rows.iter().map(subscription).collect();
    format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ shop: {{ broker: here, topics: ['#'] }} }}
subscriptions:
{subscriptions}"
    )
}

fn form(field: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .append_pair("zeta", "+ &\u{e4}")
        .append_pair(field, JSON)
        .append_pair("Alpha", "")
        .finish()
}

/// Delivers an event of each kind to all of `rows`, and holds every verdict against what is due.
async fn all_believe(receiver: Receiver, rows: &[Row]) {
    let bridge = Bridge::start(&config(receiver.port, rows))
        .await
        .ready()
        .await;
    let client = reqwest::Client::new();
    for (topic, content_type, body) in [
        ("json.created", "application/json", JSON.to_owned()),
        (
            "form.created",
            "application/x-www-form-urlencoded",
            form("payload"),
        ),
        (
            "mandrill.created",
            "application/x-www-form-urlencoded",
            form("mandrill_events"),
        ),
    ] {
        let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
        let request = client.post(url).header("content-type", content_type);
        let answer = request.body(body).send().await.expect("the admin answers");
        assert_eq!(answer.status().as_u16(), 202);
    }
    let found = eventually("every receiver has judged", WITHIN, async || {
        let found: BTreeMap<String, Found> = receiver.results().await;
        (found.len() == rows.len()).then_some(found)
    })
    .await;
    for (name, _, _) in rows {
        let of = &found[*name];
        assert!(of.accepted, "{name}: {}", of.why);
        let believed = of.refused.iter().find(|(_, refused)| !**refused);
        assert_eq!(believed, None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_verifiers_for_python_believe_us_and_nobody_else() {
    let mut python = Command::new("python3");
    python
        .arg(root().join("tests/receivers/receiver.py"))
        .env("PYTHONPATH", installed("python"));
    let rows = [
        ("standard", "standard", "json"),
        ("standard-ed25519", "standard-ed25519", "json"),
        ("svix", "svix", "json"),
        ("stripe", "stripe", "json"),
        ("slack-form", "slack", "form"),
        ("slack-json", "slack", "json"),
        ("twilio-form", "twilio", "form"),
        ("twilio-json", "twilio", "json"),
        ("mailchimp", "mailchimp", "mandrill"),
        ("mailchimp-made", "mailchimp, format: form", "json"),
        ("twilio-made", "twilio, format: form", "json"),
        ("slack-made", "slack, format: form", "json"),
        ("docusign", "docusign", "json"),
        ("jira", "jira", "json"),
        ("trello", "trello", "json"),
        ("asana", "asana", "json"),
        ("gitlab", "gitlab", "json"),
        ("papertrail", "papertrail", "form"),
        ("papertrail-made", "papertrail, format: form", "json"),
        ("zapier", "zapier", "json"),
        ("zoho", "zoho", "json"),
    ];
    all_believe(Receiver::start(&mut python), &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_verifiers_for_node_believe_us_and_nobody_else() {
    // A module is resolved from where the file is that imports it.
    let script = installed("node").join("receiver.mjs");
    std::fs::copy(root().join("tests/receivers/receiver.mjs"), &script).expect("it is copied");
    let rows = [
        ("standard", "standard", "json"),
        ("svix", "svix", "json"),
        ("github", "github", "json"),
        ("github-form", "github", "form"),
        ("github-made", "github, format: form", "json"),
        ("shopify", "shopify", "json"),
        ("woocommerce", "woocommerce", "json"),
        ("intercom", "intercom", "json"),
        ("hubspot", "hubspot", "json"),
        ("twilio-form", "twilio", "form"),
        ("twilio-json", "twilio", "json"),
    ];
    all_believe(Receiver::start(Command::new("node").arg(&script)), &rows).await;
}
