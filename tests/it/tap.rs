//! The live stream of attempts, and what is searched and exported of those that were made.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver};
use crate::support::refused::one_in_ten_refused;
use crate::support::{SECRET, eventually};
use crate::trace_states::hookbridge;

const SOON: Duration = Duration::from_secs(30);

/// A command that goes on, and its lines. Killed when it is dropped.
struct Watching {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    said: mpsc::UnboundedReceiver<String>,
}

impl Watching {
    /// Returns once it listens.
    async fn start(bridge: &Bridge, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(arguments)
            .arg("--config")
            .arg(bridge.config_path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = lines_of(child.stdout.take().unwrap());
        let said = lines_of(child.stderr.take().unwrap());
        let mut watching = Self { child, lines, said };
        let first = tokio::time::timeout(SOON, watching.said.recv()).await;
        let first = first.expect("it listens soon").expect("it listens");
        assert!(first.starts_with("listening"), "{first}");
        watching
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(SOON, self.lines.recv()).await;
        line.expect("a line comes soon").expect("a line")
    }

    /// The lines up to an empty one.
    async fn paragraph(&mut self) -> String {
        let mut all = String::new();
        loop {
            match self.line().await {
                line if line.is_empty() => return all,
                line => all.push_str(&(line + "\n")),
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(from: impl std::io::Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn one(n: usize) -> Vec<String> {
    vec![format!("{{\"n\": {n}}}")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_shows_the_exact_request_and_answer_and_no_credentials() {
    // Both subscriptions send the same id, so that it cannot count by that.
    let tries = AtomicUsize::new(0);
    let receiver = Receiver::answering(move |request, _| {
        let status = match request.path.as_str() {
            "/other" => 204,
            _ => [503, 204][tries.fetch_add(1, Ordering::Relaxed).min(1)],
        };
        // It repeats what it got.
        Answer::status(status)
            .header("x-echo", "Bearer t0k3nt0k3n and /hooks/s3cr3tPath")
            .header("set-cookie", "session=1")
            .body(if status == 503 {
                format!("no /hooks/s3cr3tPath {SECRET}")
            } else {
                String::new()
            })
    })
    .await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/hooks/s3cr3tPath"), "").replace(
        "endpoint: {",
        "endpoint: { headers: { x-api: k3yk3yk3y }, auth: { bearer: t0k3nt0k3n },",
    );
    let other = subscription("other", "orders.*", &receiver.url("/other"), "");
    let bridge = Bridge::start(&bus.config(&(crm + &other)))
        .await
        .ready()
        .await;
    let mut tap = Watching::start(&bridge, &["tap", "--subscription", "crm"]).await;
    bus.publish(&bridge, &one(1)).await;
    let shown = tap.paragraph().await;
    let sent = receiver.wait_for(2, SOON).await;
    let sent = sent
        .iter()
        .find(|request| request.path != "/other")
        .unwrap();
    let signature = sent.headers["webhook-signature"].to_str().unwrap();
    for words in [
        "  crm  evt_1  attempt 1: 503 in ",
        ", retried later\n",
        &format!("\n> POST http://{}/***\n", receiver.address),
        "\n> x-api: ***\n",
        "\n> authorization: ***\n",
        "\n> webhook-id: evt_1\n",
        &format!("\n> webhook-signature: {signature}\n"),
        "\n>\n> {\"n\": 1}\n",
        "\n< HTTP/1.1 503\n",
        "\n< set-cookie: ***\n",
        "\n< x-echo: *** and ***\n",
        "\n<\n< no *** ***\n",
    ] {
        assert!(shown.contains(words), "{words:?} is missing in\n{shown}");
    }
    for secret in ["s3cr3tPath", "t0k3nt0k3n", "k3yk3yk3y", SECRET] {
        assert!(!shown.contains(secret), "{secret}\n{shown}");
    }
    let again = tap.paragraph().await;
    assert!(
        again.contains("  crm  evt_1  attempt 2: 204 in "),
        "{again}"
    );
    assert!(again.contains("\n< HTTP/1.1 204\n"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_goes_on_over_a_reload_and_ends_with_the_bridge() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let config = bus.config(&crm);
    let mut bridge = Bridge::start(&config).await.ready().await;
    let mut json = Watching::start(&bridge, &["attempts", "--follow", "--json"]).await;
    let mut rows = Watching::start(&bridge, &["attempts", "--follow", "--status", "2xx"]).await;
    bridge.reload(&config.replace("jitter: 0", "jitter: 0.1"));
    eventually("the config is reloaded", SOON, async || {
        let reloads = bridge
            .metric("hookbridge_config_reloads_total{result=\"ok\"}")
            .await;
        (reloads == 1.0).then_some(())
    })
    .await;
    bus.publish(&bridge, &one(1)).await;
    let entry: Value = serde_json::from_str(&json.line().await).unwrap();
    assert_eq!(entry["event"], "evt_1");
    assert_eq!(entry["outcome"], "204");
    assert_eq!(entry["record"], "attempt");
    let row = rows.line().await;
    assert!(row.contains("  crm  evt_1  1  204  "), "{row}");
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    let code = eventually("the follower ends", SOON, async || {
        json.child.try_wait().unwrap().map(|status| status.code())
    })
    .await;
    assert_eq!(code, Some(69));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shadow_would_have_sent_is_shown() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let next = subscription("next", "orders.*", &receiver.url("/"), "");
    let next = next.replacen("topics", "shadow: true, topics", 1);
    let bridge = Bridge::start(&bus.config(&next)).await.ready().await;
    let mut tap = Watching::start(&bridge, &["tap", "--status", "shadow"]).await;
    bus.publish(&bridge, &one(1)).await;
    let shown = tap.paragraph().await;
    assert!(shown.contains("\n> webhook-signature: "), "{shown}");
    assert!(!shown.contains("\n< "), "{shown}");
    assert_eq!(receiver.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_told_what_he_missed_and_holds_nobody_up() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let bridge = Bridge::start(&bus.config(&crm)).await.ready().await;
    let url = format!("http://{}/v1/tap", bridge.admin);
    // It reads the beginning and nothing more for now.
    let mut answer = reqwest::get(&url).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut read = String::from_utf8(answer.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(read.contains("event: listening\n"), "{read}");
    let large = "x".repeat(60_000);
    let bodies: Vec<_> = (1..=400)
        .map(|n| format!("{{\"n\": {n}, \"x\": \"{large}\"}}"))
        .collect();
    for some in bodies.chunks(50) {
        bus.publish(&bridge, some).await;
    }
    receiver.wait_for(400, SOON).await;
    let lost = eventually("some are lost to the reader", SOON, async || {
        let lost = bridge.metric("hookbridge_tap_lost_total").await;
        (lost > 0.0).then_some(lost)
    })
    .await;
    let told = tokio::time::timeout(SOON, async {
        let line = |read: &str| {
            let lost = read
                .lines()
                .find_map(|line| line.strip_prefix("data: {\"lost\":"));
            lost.and_then(|rest| rest.trim_end_matches('}').parse::<f64>().ok())
        };
        loop {
            match line(&read) {
                Some(told) => return told,
                None => read.push_str(&String::from_utf8_lossy(
                    &answer.chunk().await.unwrap().unwrap(),
                )),
            }
        }
    });
    let told = told.await.expect("it is told soon");
    assert!(told >= 1.0 && told <= lost, "{told} of {lost}");
    drop(answer);
    let (status, text) = bridge.get("/v1/tap?colour=red").await;
    assert_eq!(status, 400, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_exported_and_dead_letters_found_by_their_reason() {
    let (bridge, _receiver) = one_in_ten_refused(30).await;
    let (_, lines) = eventually("all are recorded", SOON, async || {
        let (status, lines) = bridge.get("/v1/attempts/export?subscription=crm").await;
        assert_eq!(status, 200, "{lines}");
        let entries = lines.lines().filter(|line| !line.is_empty()).count();
        (entries == 30).then_some((entries, lines))
    })
    .await;
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["record"], "attempt");
    let all = hookbridge(&bridge, &["attempts", "--all", "--json"]).await;
    assert_eq!(all.out.lines().count(), 30, "{}", all.err);

    let dead = eventually("the letters are recorded", SOON, async || {
        let (status, page) = bridge.get("/v1/attempts?reason=no_retry").await;
        assert_eq!(status, 200, "{page}");
        let page: Value = serde_json::from_str(&page).unwrap();
        let found = page["attempts"].as_array().unwrap().clone();
        (found.len() == 3).then_some(found)
    })
    .await;
    assert!(
        dead.iter()
            .all(|one| one["record"] == "dead" && one["reason"] == "no_retry")
    );
    let rows = hookbridge(&bridge, &["attempts", "--reason", "no_retry"]).await;
    assert_eq!(
        rows.out.matches("dead-lettered on here").count(),
        3,
        "{}",
        rows.out
    );
    let none = hookbridge(&bridge, &["attempts", "--reason", "gone"]).await;
    assert_eq!(none.code, Some(1));
    let wrong = hookbridge(&bridge, &["attempts", "--reason", "bored"]).await;
    assert_eq!(wrong.code, Some(64), "{}", wrong.err);

    let id = dead[0]["event"].as_str().unwrap();
    let (_, whole) = bridge.get(&format!("/v1/events/{id}")).await;
    let (_, trace) = bridge.get(&format!("/v1/events/{id}/trace")).await;
    assert_eq!(whole, trace);
    assert!(whole.contains("\"dead\""), "{whole}");
    for wrong in [
        "attempts?reason=bored",
        "attempts/export?limit=3",
        "attempts/export?status=x",
    ] {
        let (status, text) = bridge.get(&format!("/v1/{wrong}")).await;
        assert_eq!(status, 400, "{wrong}: {text}");
    }
    let (status, _) = bridge.get("/v1/events/none").await;
    assert_eq!(status, 404);
}
