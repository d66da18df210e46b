//! The pages of docs/receivers: a real bridge runs the config of each, and the code that the page has
//! in each language believes what was delivered, and refuses it with its body, signature, timestamp,
//! URL, method or the secret changed, without the signature, and ten minutes later.
//!
//! The code is taken from the pages as it stands; tests/receivers/languages feeds it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hookbridge::config;
use hookbridge::deliver::Signer;
use hookbridge::event::EventId;
use hookbridge::outgoing::Outgoing;
use hookbridge::subscription::{Endpoint, Scheme, Secret};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::docs_blocks::blocks;
use crate::receivers::{installed, root};
use crate::support::bridge::Bridge;
use crate::support::receiver::{Receiver, Request};
use crate::support::{SECRET, eventually};

const TEXT: &str = "4f1c2b8d7a6e5930c1d2e3f405162738";
const OTHER_TEXT: &str = "837261504f3e2d1c0395e6a7d8b2c1f4";
const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const WHSK: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
/// The public half: the last 32 of its 64 bytes.
const WHPK: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const OTHER_WHSK: &str = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const OTHER_WHPK: &str = "whpk_e8MHlRjtEdoDNghb9pYpIP+H+zxNYwqbWMthU2dPXdY=";
const BODY: &str =
    r#"{"id":"evt_1","data":{"object":{"total":4711,"name":"\u00e4 & =+"},"list":["b","a"]}}"#;
const HOST: &str = "https://receiver.example.com";
const WITHIN: Duration = Duration::from_secs(60);
const TEN_MINUTES: Duration = Duration::from_secs(600);

/// A page, and what its signature is of.
struct Row {
    page: &'static str,
    signature: &'static str,
    /// The header of a timestamp that is signed.
    timestamp: Option<&'static str>,
    arguments: &'static [&'static str],
    /// Whether old and new secret both sign.
    rotates: bool,
}

const PLAIN: &[&str] = &["body", "headers", "secret"];
const OF_URL: &[&str] = &["url", "body", "headers", "secret"];
const OF_METHOD: &[&str] = &["method", "url", "body", "headers", "secret"];
const OF_TOKEN: &[&str] = &["headers", "secret"];

const fn row(
    page: &'static str,
    signature: &'static str,
    timestamp: Option<&'static str>,
    arguments: &'static [&'static str],
    rotates: bool,
) -> Row {
    Row {
        page,
        signature,
        timestamp,
        arguments,
        rotates,
    }
}

#[rustfmt::skip]
static ROWS: [Row; 19] = [
    row("standard", "webhook-signature", Some("webhook-timestamp"), PLAIN, true),
    row("standard-ed25519", "webhook-signature", Some("webhook-timestamp"), PLAIN, true),
    row("svix", "svix-signature", Some("svix-timestamp"), PLAIN, true),
    row("stripe", "stripe-signature", Some("stripe-signature"), PLAIN, true),
    row("github", "x-hub-signature-256", None, PLAIN, false),
    row("slack", "x-slack-signature", Some("x-slack-request-timestamp"), PLAIN, false),
    row("twilio", "x-twilio-signature", None, OF_URL, false),
    row("shopify", "x-shopify-hmac-sha256", None, PLAIN, false),
    row("woocommerce", "x-wc-webhook-signature", None, PLAIN, false),
    row("intercom", "x-hub-signature", None, PLAIN, false),
    row("mailchimp", "x-mandrill-signature", None, OF_URL, false),
    row("docusign", "x-docusign-signature-1", None, PLAIN, true),
    row("hubspot", "x-hubspot-signature-v3", Some("x-hubspot-request-timestamp"), OF_METHOD, false),
    row("jira", "x-hub-signature", None, PLAIN, false),
    row("trello", "x-trello-webhook", None, OF_URL, false),
    row("asana", "x-hook-signature", None, PLAIN, false),
    row("gitlab", "x-gitlab-token", None, OF_TOKEN, false),
    row("hmac", "x-acme-signature", Some("webhook-timestamp"), PLAIN, false),
    row("unsigned", "authorization", None, OF_TOKEN, false),
];

impl Row {
    fn text(&self) -> String {
        let path = root().join(format!("docs/receivers/{}.md", self.page));
        std::fs::read_to_string(path).expect("the page")
    }

    /// The names of the subscriptions of the page's config.
    fn subscriptions(&self) -> Vec<String> {
        let text = self.text();
        let (_, subscriptions) = config_of(&text);
        let names = subscriptions.lines().filter_map(|line| {
            let name = line.strip_prefix("  ")?.strip_suffix(':')?;
            (!name.starts_with(' ')).then(|| name.to_owned())
        });
        names.collect()
    }

    /// What verifies, and what does not.
    fn secrets(&self) -> (&'static str, &'static str) {
        match self.page {
            "standard" | "svix" => (SECRET, OTHER_SECRET),
            "standard-ed25519" => (WHPK, OTHER_WHPK),
            _ => (TEXT, OTHER_TEXT),
        }
    }
}

/// The page's config: what is the same on each page, and the subscriptions.
fn config_of(text: &str) -> (&str, &str) {
    let configs = blocks(text, "yaml");
    assert_eq!(configs.len(), 1);
    let (head, subscriptions) = configs[0].split_once("subscriptions:\n").expect("some");
    (head, subscriptions)
}

fn env(name: &str) -> Option<String> {
    let secret = match name {
        "STANDARD_SECRET" | "SVIX_SECRET" => SECRET,
        "STANDARD_ED25519_SECRET" => WHSK,
        _ => TEXT,
    };
    Some(secret.to_owned())
}

/// A request as its receiver has it, changed or not.
#[derive(Clone, Serialize)]
struct Case {
    name: String,
    method: String,
    url: String,
    headers: BTreeMap<String, String>,
    /// In base64.
    body: String,
    secret: &'static str,
    /// Whether it is to be believed.
    #[serde(skip)]
    is_good: bool,
}

impl Case {
    fn named(&self, what: &str) -> Self {
        let name = self.name.split(',').next().unwrap_or_default();
        Self {
            name: format!("{name}, {what}"),
            is_good: false,
            ..self.clone()
        }
    }

    fn with_header(&self, what: &str, header: &str, value: String) -> Self {
        let mut case = self.named(what);
        case.headers.insert(header.to_owned(), value);
        case
    }
}

fn delivered(name: &str, request: &Request, secret: &'static str, host: &str) -> Case {
    let headers = request.headers.iter().map(|(name, value)| {
        let value = value.to_str().expect("visible ASCII");
        (name.to_string(), value.to_owned())
    });
    let query = request.query.as_deref();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Case {
        name: format!("{name}, as it came"),
        method: "POST".to_owned(),
        url: format!("{host}{}{query}", request.path),
        headers: headers.collect(),
        body: BASE64.encode(&request.body),
        secret,
        is_good: true,
    }
}

/// The case itself, and each change of it that has to be noticed.
fn cases(row: &Row, good: &Case, endpoint: &Endpoint) -> Vec<Case> {
    let mut all = vec![good.clone()];
    let covers = |what: &str| row.arguments.contains(&what);
    if covers("body") {
        let mut case = good.named("another body");
        let body = BASE64.decode(&good.body).expect("base64");
        let text = String::from_utf8(body).expect("text");
        let changed = text.replace("4711", "4712");
        assert_ne!(text, changed);
        case.body = BASE64.encode(changed);
        all.push(case);
        let mut case = good.named("no body");
        case.body = String::new();
        all.push(case);
    }
    let signature = &good.headers[row.signature];
    let at = signature.len() - 8;
    let other = if &signature[at..=at] == "B" { "C" } else { "B" };
    let mut changed = signature.clone();
    changed.replace_range(at..=at, other);
    all.push(good.with_header("another signature", row.signature, changed));
    let begun = signature[..at].to_owned();
    all.push(good.with_header("a shorter signature", row.signature, begun));
    all.push(good.with_header("an empty signature", row.signature, String::new()));
    let mut case = good.named("no signature");
    case.headers.remove(row.signature);
    all.push(case);
    let mut case = good.named("another secret");
    case.secret = row.secrets().1;
    all.push(case);
    if covers("url") {
        let mut case = good.named("another URL");
        case.url = good.url.replace("?a=%2f", "?a=%2F");
        assert_ne!(case.url, good.url);
        all.push(case);
    }
    if covers("method") {
        let mut case = good.named("another method");
        case.method = "PUT".to_owned();
        all.push(case);
    }
    if let Some(header) = row.timestamp {
        let was = &good.headers[header];
        let later = match was.strip_prefix("t=") {
            Some(rest) => {
                let (at, rest) = rest.split_once(',').expect("a list");
                format!("t={},{rest}", at.parse::<i64>().expect("a number") + 1)
            }
            None => (was.parse::<i64>().expect("a number") + 1).to_string(),
        };
        all.push(good.with_header("another timestamp", header, later));
        let none = match was.strip_prefix("t=") {
            Some(rest) => rest.split_once(',').expect("a list").1.to_owned(),
            None => String::new(),
        };
        all.push(good.with_header("no timestamp", header, none));
        let old = Timestamp::now() - TEN_MINUTES;
        let signed = signed_again(good, endpoint, &endpoint.secrets, old);
        all.push(Case {
            is_good: false,
            ..signed.named("ten minutes old")
        });
    }
    if row.rotates {
        let newer = match &endpoint.signature {
            Scheme::Standard | Scheme::Svix => OTHER_SECRET,
            Scheme::StandardEd25519 => OTHER_WHSK,
            _ => OTHER_TEXT,
        };
        let secrets = [vec![Secret::new(newer)], endpoint.secrets.clone()].concat();
        let signed = signed_again(good, endpoint, &secrets, Timestamp::now());
        all.push(Case {
            is_good: true,
            ..signed.named("by a newer secret too")
        });
    }
    all
}

/// The request as `endpoint` would sign it at another time or with other secrets.
fn signed_again(case: &Case, endpoint: &Endpoint, secrets: &[Secret], at: Timestamp) -> Case {
    let header = |(name, value): (&String, &String)| {
        let name: HeaderName = name.parse().expect("a name");
        (name, HeaderValue::from_str(value).expect("a value"))
    };
    let mut request = Outgoing {
        method: Method::POST,
        url: Arc::new(case.url.parse().expect("a URL")),
        headers: case.headers.iter().map(header).collect::<HeaderMap>(),
        body: BASE64.decode(&case.body).expect("base64").into(),
        deadline: Duration::from_secs(1),
    };
    let id = EventId::kept("evt_1").expect("an id");
    let signer = Signer::new(&endpoint.signature, secrets).expect("good secrets");
    signer.sign((&id).into(), at, &mut request);
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = value.to_str().expect("visible ASCII");
        (name.to_string(), value.to_owned())
    };
    Case {
        headers: request.headers.iter().map(text).collect(),
        ..case.clone()
    }
}

/// What each page's code is to be asked, from deliveries of a real bridge that runs the configs of
/// all pages. One bridge for the tests of all languages.
async fn asked() -> &'static [(&'static Row, Vec<Case>)] {
    static ASKED: OnceCell<Vec<(&'static Row, Vec<Case>)>> = OnceCell::const_new();
    ASKED.get_or_init(deliver).await
}

async fn deliver() -> Vec<(&'static Row, Vec<Case>)> {
    let receiver = Receiver::accepting().await;
    let host = receiver.url("");
    let pages: Vec<_> = ROWS.iter().map(Row::text).collect();
    let to_here = |line: &str| match line.trim_start().strip_prefix("url: ") {
        Some(url) => format!("      url: {}?a=%2f\n", url.replace(HOST, &host)),
        None => format!("{line}\n"),
    };
    let lines = pages.iter().flat_map(|page| config_of(page).1.lines());
    let subscriptions: String = lines.map(to_here).collect();
    let text = format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
{}subscriptions:
{subscriptions}",
        config_of(&pages[0]).0
    );
    // The bridge has an address of its own.
    let here = text.replace("{admin}", "127.0.0.1:1");
    let config = config::parse(&here, "x", Path::new("."), &env)
        .unwrap_or_else(|problems| panic!("{problems}"));
    let variables = text.split("${env:").skip(1).filter_map(|rest| {
        let name = rest.split('}').next()?;
        // Lives as long as the tests do.
        let name: &'static str = name.to_owned().leak();
        Some((name, env(name)?))
    });
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Bridge::start_in(folder, &text, variables.collect()).await;
    let bridge = bridge.ready().await;
    let url = format!("http://{}/v1/topics/orders.created/events", bridge.admin);
    let request = reqwest::Client::new().post(url);
    let request = request.header("content-type", "application/json");
    let answer = request.body(BODY).send().await.expect("the admin answers");
    assert_eq!(answer.status().as_u16(), 202);
    let requests = eventually("a request of each", WITHIN, async || {
        let requests = receiver.requests();
        (requests.len() == config.subscriptions.len()).then_some(requests)
    })
    .await;
    let of_row = |row: &'static Row| {
        let each = row.subscriptions().into_iter().flat_map(|name| {
            let path = format!("/{name}");
            let request = requests.iter().find(|request| request.path == path);
            let request = request.unwrap_or_else(|| panic!("none to {path}"));
            let good = delivered(&name, request, row.secrets().0, &host);
            cases(row, &good, &config.endpoints[name.as_str()])
        });
        (row, each.collect())
    };
    ROWS.iter().map(of_row).collect()
}

fn is_here(command: &str) -> bool {
    let version = if command == "go" {
        "version"
    } else {
        "--version"
    };
    let found = Command::new(command).arg(version).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: no {command} here; scripts/setup installs it");
    }
    found
}

fn driver(name: &str) -> PathBuf {
    root().join("tests/receivers/languages").join(name)
}

/// The page's code in this language, in a file of this name.
fn snippet(row: &Row, language: &str, path: &Path) {
    let text = row.text();
    let blocks = blocks(&text, language);
    assert_eq!(blocks.len(), 1, "{}: {language}", row.page);
    std::fs::write(path, format!("{}\n", blocks[0])).expect("written");
}

/// Holds what the code of `row` says of each case against what is due.
fn judged(row: &Row, cases: &[Case], command: &mut Command) {
    let asked = serde_json::json!({ "arguments": row.arguments, "cases": cases });
    let output = fed(command, &asked.to_string());
    let page = row.page;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{page}\n{log}");
    let said: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|why| panic!("{page}: {why}\n{output:?}"));
    for case in cases {
        let said = &said[&case.name];
        assert_eq!(said, &Value::from(case.is_good), "{page}: {}", case.name);
    }
}

fn fed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// Has every page's code in `language` judge its cases, each in a process of its own that `run`
/// starts with the file of the code.
async fn all_judge(
    language: &str,
    extension: &str,
    folder: TempDir,
    run: impl Fn(&Path) -> Command,
) {
    for (row, cases) in asked().await {
        let path = folder.path().join(format!("{}.{extension}", row.page));
        snippet(row, language, &path);
        judged(row, cases, &mut run(&path));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_believes_what_is_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    all_judge("python", "py", folder, |path| {
        let mut python = Command::new("python3");
        python.arg(driver("verify.py")).arg(path);
        python.env("PYTHONPATH", installed("python"));
        python
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn javascript_believes_what_is_ours() {
    // A module is resolved from where the file is that imports it.
    let folder = tempfile::tempdir_in(installed("node")).expect("a folder");
    all_judge("js", "mjs", folder, |path| {
        let mut node = Command::new("node");
        node.arg(driver("verify.mjs")).arg(path);
        node
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php_believes_what_is_ours() {
    if !is_here("php") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    all_judge("php", "php", folder, |path| {
        let mut php = Command::new("php");
        php.arg(driver("verify.php")).arg(path);
        php
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ruby_believes_what_is_ours() {
    if !is_here("ruby") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    all_judge("ruby", "rb", folder, |path| {
        let mut ruby = Command::new("ruby");
        ruby.arg(driver("verify.rb")).arg(path);
        ruby
    })
    .await;
}

/// One program with all pages: compiling is what takes time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_believes_what_is_ours() {
    if !is_here("go") {
        return;
    }
    let asked = asked().await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mut imports = String::new();
    let mut pages = String::new();
    for (number, (row, _)) in asked.iter().enumerate() {
        std::fs::create_dir(at(row.page)).expect("made");
        snippet(row, "go", &at(row.page).join("verify.go"));
        imports.push_str(&format!("\tp{number} \"verify/{}\"\n", row.page));
        pages.push_str(&format!("\t\"{}\": p{number}.Verify,\n", row.page));
    }
    let list = format!(
        "package main\n\nimport (\n{imports})\n\nvar pages = map[string]interface{{}}{{\n{pages}}}\n"
    );
    std::fs::write(at("pages.go"), list).expect("written");
    std::fs::copy(driver("verify.go"), at("main.go")).expect("copied");
    std::fs::write(at("go.mod"), "module verify\n\ngo 1.19\n").expect("written");
    let built = Command::new("go")
        .args(["build", "-o", "program", "."])
        .current_dir(folder.path())
        .envs([
            ("CGO_ENABLED", "0"),
            ("GOTOOLCHAIN", "local"),
            ("GOFLAGS", "-mod=mod"),
            ("GOPROXY", "off"),
        ])
        .output()
        .expect("it starts");
    let log = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{log}");
    for (row, cases) in asked {
        judged(row, cases, Command::new(at("program")).arg(row.page));
    }
}

#[test]
fn every_signature_has_a_page_and_every_page_a_row() {
    let mut pages: Vec<_> = ROWS.iter().flat_map(Row::subscriptions).collect();
    pages.retain(|name| name != "twilio-json");
    pages.sort();
    let mut names = Scheme::NAMES.map(str::to_owned).to_vec();
    names.sort();
    assert_eq!(pages, names);
    let files = std::fs::read_dir(root().join("docs/receivers")).expect("a folder");
    assert_eq!(files.count(), ROWS.len());
}
