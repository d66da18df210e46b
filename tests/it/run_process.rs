//! The process: how it starts, refuses to start, stops, and what it says about itself.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const SOON: Duration = Duration::from_secs(20);

fn to(receiver: &Receiver) -> String {
    Bus::embedded().config(&subscription("crm", "orders.*", &receiver.url("/"), ""))
}

async fn publish(bridge: &Bridge, body: &str) {
    let (status, answer) = bridge.post("/v1/topics/orders.created/events", body).await;
    assert_eq!(status, 202, "{answer}");
}

fn hookbridge(args: &[&str], folder: &std::path::Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_what_is_in_flight() {
    let slow = Receiver::answering(|_, _| Answer::status(204).after(Duration::from_secs(1))).await;
    let mut bridge = Bridge::start(&to(&slow)).await.ready().await;
    for number in 0..5 {
        publish(&bridge, &number.to_string()).await;
    }
    slow.wait_for(5, SOON).await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(slow.count(), 5, "what was finished came again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_leaves_at_once() {
    let hanging =
        Receiver::answering(|_, _| Answer::status(204).after(Duration::from_secs(3_600))).await;
    let mut bridge = Bridge::start(&to(&hanging)).await.ready().await;
    publish(&bridge, "{}").await;
    hanging.wait_for(1, SOON).await;
    bridge.terminate();
    eventually("it is stopping", SOON, async || {
        bridge.log().contains("stopping").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let asked = Instant::now();
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(130));
    assert!(asked.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_data_dir_serves_one_process() {
    let receiver = Receiver::accepting().await;
    let config = to(&receiver);
    let first = Bridge::start(&config).await.ready().await;
    let data = first.data_dir().display().to_string();
    let mut second = Bridge::spawn(&config.replace("{data}", &data));
    assert_eq!(second.exit_code(SOON).await, Some(70));
    assert!(
        second.log().contains("in use by another process"),
        "{}",
        second.log()
    );
    publish(&first, "{}").await;
    receiver.wait_for(1, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_admin_port_is_said() {
    let receiver = Receiver::accepting().await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let mut bridge = Bridge::spawn(&to(&receiver).replace("{admin}", &address));
    assert_eq!(bridge.exit_code(SOON).await, Some(74));
    assert!(bridge.log().contains(&address), "{}", bridge.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_config_starts_nothing() {
    let config = "group: g
data_dir: '{data}'
admin: { listen: '0.0.0.0:0' }
brokers: { here: { embedded: {} } }
sources: { local: { broker: there, topics: ['#'] } }
subscriptions: { crm: { topcis: ['#'], endpoint: { url: 'nonsense', secret: short } } }
";
    let mut bridge = Bridge::spawn(config);
    assert_eq!(bridge.exit_code(SOON).await, Some(78));
    let log = bridge.log();
    for part in [
        "tokens",
        "there",
        "topcis",
        "absolute URL",
        "secret",
        "hookbridge.yaml:5:",
    ] {
        assert!(log.contains(part), "`{part}` is not in:\n{log}");
    }
    assert!(!bridge.data_dir().exists(), "something was started");
    let folder = bridge.config_path();
    let folder = folder.parent().expect("a folder");
    let checked = hookbridge(&["validate", "--config", "hookbridge.yaml"], folder);
    assert_eq!(checked.status.code(), Some(78), "{}", said(&checked));
    assert!(said(&checked).contains("topcis") && said(&checked).contains("there"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_is_said() {
    let receiver = Receiver::accepting().await;
    let mut bridge = Bridge::start(&to(&receiver)).await.ready().await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    let log = bridge.data_dir().join("store/db");
    let mut bytes = std::fs::read(&log).expect("sled's log");
    for byte in bytes.iter_mut().take(4_096) {
        *byte ^= 0xa5;
    }
    std::fs::write(&log, &bytes).expect("damaged");
    let config = std::fs::read_to_string(bridge.config_path()).expect("the config");
    let mut again = Bridge::spawn(&config);
    assert_eq!(again.exit_code(SOON).await, Some(70), "{}", again.log());
    assert!(again.log().contains("damaged"), "{}", again.log());
    assert!(log.exists(), "it was removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_holds_up_nobody_else() {
    let receiver = Receiver::answering(|_, _| Answer::status(503)).await;
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("bound").port();
    drop(closed);
    let config = to(&receiver)
        .replace(
            "brokers: { here: { embedded: {} } }",
            &format!(
                "brokers:\n  here: {{ embedded: {{}} }}\n  away: {{ rabbitmq: {{ urls: ['amqp://a:b@127.0.0.1:{port}'] }} }}"
            ),
        )
        .replace(
            "sources: {",
            "sources: { far: { broker: away, queue: far.orders },",
        );
    let bridge = Bridge::start(&config).await;
    eventually("the embedded broker is ready", SOON, async || {
        let (status, text) = bridge.get("/readyz").await;
        let all: serde_json::Value = serde_json::from_str(&text).ok()?;
        assert_eq!(status, 503);
        let text = all.to_string();
        (text.contains("broker away") && text.contains("ready")).then_some(())
    })
    .await;
    assert_eq!(bridge.get("/healthz").await.0, 200);
    publish(&bridge, "{}").await;
    receiver.wait_for(2, SOON).await;
    eventually("it is tried again", SOON, async || {
        (bridge.log().matches("away").count() >= 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_receiver_leaves_it_ready() {
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", gone.local_addr().expect("bound"));
    drop(gone);
    let config = Bus::embedded().config(&subscription("crm", "orders.*", &url, ""));
    let bridge = Bridge::start(&config).await.ready().await;
    for _ in 0..30 {
        publish(&bridge, "{}").await;
    }
    for _ in 0..20 {
        assert_eq!(bridge.get("/readyz").await.0, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The README's first commands, on the ports that they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_config_it_does_the_main_job() {
    for port in [8400, 8401] {
        if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
            panic!("port {port} is taken by somebody else, and this test is about it: {error}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let start = |args: &[&str], file: &str| {
        let out = std::fs::File::create(folder.path().join(file)).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(args)
            .current_dir(folder.path())
            .env_remove("HOOKBRIDGE_CONFIG")
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a handle"))
            .stderr(out)
            .spawn();
        Ended(child.expect("it starts"))
    };
    let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
    let _run = start(&["run"], "run");
    let _listen = start(&["listen"], "listen");
    eventually("it is ready", SOON, async || {
        let answer = reqwest::get("http://127.0.0.1:8400/readyz").await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    // Log lines are written by a thread of their own.
    eventually("it says how to send", SOON, async || {
        read("run").contains("hookbridge send").then_some(())
    })
    .await;
    let sent = tokio::task::block_in_place(|| {
        hookbridge(
            &[
                "send",
                "orders.created",
                "--id",
                "evt_demo",
                "--data",
                "{\"total\": 120}",
            ],
            folder.path(),
        )
    });
    assert!(sent.status.success(), "{}", said(&sent));
    eventually("listen has printed it", SOON, async || {
        read("listen").contains("evt_demo").then_some(())
    })
    .await;
    assert!(read("listen").contains("verified"), "{}", read("listen"));
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
