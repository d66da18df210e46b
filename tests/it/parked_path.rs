//! Parked deliveries, end to end: the command line, a running bridge, receivers.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::{brokers, eventually};

const SOON: Duration = Duration::from_secs(20);
/// The schedule's wait, and a tier.
const WAIT: Duration = Duration::from_secs(12);

/// Says 503 to the first request of each id.
async fn fails_once() -> Receiver {
    Receiver::answering(|_, before| Answer::status(if before == 0 { 503 } else { 204 })).await
}

fn bodies(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{{\"number\":{n}}}")).collect()
}

/// The bus' config with a tier, and a schedule, of [`WAIT`].
fn with_long_tier(bus: &Bus, subscriptions: &str) -> String {
    bus.config(subscriptions)
        .replace("[1s, 2s, 5s]", "[1s, 12s, 60s]")
        .replace("schedule: [1s, 1s, 1s]", "schedule: [12s]")
        // What is brought forward still waits for its lane: here the lane stays open.
        .replace(
            "secret:",
            "breaker: { failures: 10000, cool_down: 1s }, secret:",
        )
}

/// `hookbridge parked ...` with the bridge's config.
fn parked(bridge: &Bridge, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .arg("parked")
        .args(arguments)
        .arg("--config")
        .arg(bridge.config_path())
        .current_dir(bridge.config_path().parent().expect("a folder"))
        .output()
        .expect("the binary starts")
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

async fn listed(bridge: &Bridge) -> Value {
    let (status, text) = bridge.get("/v1/parked").await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("json")
}

fn count(listed: &Value) -> u64 {
    let rows = listed["parked"].as_array().expect("rows");
    rows.iter().filter_map(|row| row["count"].as_u64()).sum()
}

/// How long each id's second request came after its first.
fn waits(requests: &[Request]) -> Vec<Duration> {
    let seconds = requests.iter().enumerate().filter_map(|(at, second)| {
        let first = requests[..at].iter().find(|r| r.id == second.id)?;
        Some(second.at - first.at)
    });
    seconds.collect()
}

async fn one_is_brought_forward_and_the_other_waits(bus: Bus) {
    const COUNT: usize = 10;
    let (a, b) = (fails_once().await, fails_once().await);
    let subscriptions = subscription("a", "orders.*", &a.url("/"), "")
        + &subscription("b", "orders.*", &b.url("/"), "");
    let bridge = Bridge::start(&with_long_tier(&bus, &subscriptions))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &bodies(COUNT)).await;
    a.wait_for(COUNT, SOON).await;
    b.wait_for(COUNT, SOON).await;
    eventually("all are parked", SOON, async || {
        (count(&listed(&bridge).await) == 2 * COUNT as u64).then_some(())
    })
    .await;
    let list = parked(&bridge, &["list"]);
    assert_eq!(list.status.code(), Some(0), "{}", text(&list));
    assert!(text(&list).contains("retry"), "{}", text(&list));
    let now = parked(&bridge, &["now", "a", "--kind", "retry"]);
    assert_eq!(now.status.code(), Some(0), "{}", text(&now));
    assert!(
        text(&now).starts_with("10 parked deliveries due now"),
        "{}",
        text(&now)
    );
    let of_a = waits(&a.wait_for(2 * COUNT, SOON).await);
    assert!(of_a.iter().all(|wait| *wait < WAIT), "{of_a:?}");
    assert_eq!(b.count(), COUNT, "the other's were not to come");
    let of_b = waits(&b.wait_for(2 * COUNT, SOON).await);
    assert!(of_b.iter().all(|wait| *wait >= WAIT), "early: {of_b:?}");
    let latest = WAIT + Duration::from_secs(7);
    assert!(of_b.iter().all(|wait| *wait < latest), "late: {of_b:?}");
    println!(
        "a waited {:?} at most, b {:?}",
        of_a.iter().max(),
        of_b.iter().max()
    );
    eventually("nothing is parked", SOON, async || {
        (count(&listed(&bridge).await) == 0).then_some(())
    })
    .await;
    let list = parked(&bridge, &["list"]);
    assert_eq!(list.status.code(), Some(1), "{}", text(&list));
    assert_eq!(text(&list), "nothing is parked\n");
    assert_eq!((a.count(), b.count()), (2 * COUNT, 2 * COUNT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_brings_one_forward_and_the_other_waits() {
    one_is_brought_forward_and_the_other_waits(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_brings_one_forward_and_the_other_waits() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    one_is_brought_forward_and_the_other_waits(bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_brings_one_forward_and_the_other_waits() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 3).await;
    one_is_brought_forward_and_the_other_waits(bus).await;
}

async fn what_is_held_comes_as_soon_as_it_is_resumed(bus: Bus) {
    let receiver = Receiver::accepting().await;
    let config = with_long_tier(
        &bus,
        &subscription("crm", "orders.*", &receiver.url("/"), ""),
    );
    let bridge = Bridge::start(&config).await.ready().await;
    let (status, _) = bridge.post("/v1/subscriptions/crm/pause", "").await;
    assert_eq!(status, 200);
    bus.publish(&bridge, &bodies(20)).await;
    eventually("all are held", SOON, async || {
        (count(&listed(&bridge).await) == 20).then_some(())
    })
    .await;
    let refused = parked(&bridge, &["now", "crm"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("is paused"), "{}", text(&refused));
    assert_eq!(receiver.count(), 0);
    let resumed = std::time::Instant::now();
    let (status, _) = bridge.post("/v1/subscriptions/crm/resume", "").await;
    assert_eq!(status, 200);
    receiver.wait_for(20, Duration::from_secs(10)).await;
    println!("resumed and delivered within {:?}", resumed.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_resumes_at_once() {
    what_is_held_comes_as_soon_as_it_is_resumed(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_resumes_at_once() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    what_is_held_comes_as_soon_as_it_is_resumed(bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_resumes_at_once() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 3).await;
    what_is_held_comes_as_soon_as_it_is_resumed(bus).await;
}

/// With the bridge stopped the brokers themselves are asked.
async fn dropped_without_a_bridge(bus: Bus) {
    let (a, b) = (fails_once().await, fails_once().await);
    let subscriptions = subscription("a", "orders.*", &a.url("/"), "")
        + &subscription("b", "orders.*", &b.url("/"), "");
    let mut bridge = Bridge::start(&with_long_tier(&bus, &subscriptions))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &bodies(3)).await;
    a.wait_for(3, SOON).await;
    b.wait_for(3, SOON).await;
    eventually("all are parked", SOON, async || {
        (count(&listed(&bridge).await) == 6).then_some(())
    })
    .await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    let asked = parked(&bridge, &["drop", "a"]);
    assert_eq!(asked.status.code(), Some(64), "{}", text(&asked));
    let unknown = parked(&bridge, &["drop", "c", "--yes"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown));
    assert!(
        text(&unknown).contains("no subscription `c`"),
        "{}",
        text(&unknown)
    );
    let dropped = parked(&bridge, &["drop", "a", "--yes", "--json"]);
    assert_eq!(dropped.status.code(), Some(0), "{}", text(&dropped));
    let report: Value = serde_json::from_slice(&dropped.stdout).expect("json");
    assert_eq!(report["state"], "done", "{report}");
    assert_eq!(report["done"], 3, "{report}");
    bridge.start_again().await;
    bridge.wait_ready(Duration::from_secs(40)).await;
    let of_b = waits(&b.wait_for(6, Duration::from_secs(30)).await);
    assert!(of_b.iter().all(|wait| *wait >= WAIT), "early: {of_b:?}");
    assert_eq!(a.count(), 3, "what was dropped came");
    eventually("nothing is parked", SOON, async || {
        (count(&listed(&bridge).await) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_drops_without_a_bridge() {
    dropped_without_a_bridge(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_drops_without_a_bridge() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    dropped_without_a_bridge(bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_drops_without_a_bridge() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 3).await;
    dropped_without_a_bridge(bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_that_is_none_is_refused() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let config = bus.config(&subscription("crm", "orders.*", &receiver.url("/"), ""));
    let bridge = Bridge::start(&config).await.ready().await;
    for (body, status, part) in [
        ("", 400, "say either"),
        ("{}", 400, "say either"),
        (r#"{"all":true,"subscription":"crm"}"#, 400, "say either"),
        (r#"{"al":true}"#, 400, "unknown field"),
        (
            r#"{"subscription":"nobody"}"#,
            404,
            "no subscription `nobody`",
        ),
        (r#"{"all":true,"broker":"far"}"#, 404, "no broker `far`"),
        (r#"{"all":true}"#, 202, "parked_drop"),
    ] {
        let (answered, text) = bridge.post("/v1/parked/drop", body).await;
        assert_eq!(answered, status, "{body}: {text}");
        assert!(text.contains(part), "{body}: {text}");
    }
    assert_eq!(bridge.get("/v1/parked?broker=far").await.0, 404);
}
