//! A window full of hanging requests: it is emptied for others, and nothing is sent twice.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};

use crate::kafka_support;
use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const WINDOW: usize = 8;
/// What the slow one takes for an answer; its deadline is later.
const TAKES: Duration = Duration::from_secs(6);

async fn publish(bridge: &Bridge, topic: &str, number: usize) {
    let path = format!("/v1/topics/{topic}/events");
    let url = format!("http://{}{path}", bridge.admin);
    let request = reqwest::Client::new().post(url);
    let request = request.header("Hookbridge-Id", format!("{topic}-{number}"));
    let answer = request.body("{}").send().await.expect("published");
    assert_eq!(answer.status(), 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_is_parked_beside_its_request_and_sent_once() {
    let slow = Receiver::answering(|_, _| Answer::status(204).after(TAKES)).await;
    let good = Receiver::accepting().await;
    let (slow_url, good_url) = (slow.url("/"), good.url("/"));
    let bridge = Bridge::start(&format!(
        "group: hookbridge
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ local: {{ broker: here, topics: ['#'], window: {WINDOW} }} }}
subscriptions:
  slow: {{ topics: [slow], timeout: 10s, slow_after: 500ms, endpoint: {{ url: '{slow_url}', secret: '{SECRET}' }} }}
  good: {{ topics: [good], endpoint: {{ url: '{good_url}', secret: '{SECRET}' }} }}
"
    ))
    .await
    .ready()
    .await;
    for number in 0..WINDOW {
        publish(&bridge, "slow", number).await;
    }
    slow.wait_for(WINDOW, Duration::from_secs(5)).await;
    publish(&bridge, "good", 0).await;
    good.wait_for(1, Duration::from_secs(5)).await;
    // The copies come back once the deadlines are over, and are met with what became of the requests.
    eventually("nothing is parked", Duration::from_secs(30), async || {
        let (_, listed) = bridge.get("/v1/parked").await;
        let listed: serde_json::Value = serde_json::from_str(&listed).ok()?;
        let all = listed["parked"].as_array()?.iter();
        let count: u64 = all.filter_map(|one| one["count"].as_u64()).sum();
        (count == 0).then_some(())
    })
    .await;
    slow.quiet_for(Duration::from_millis(1_500), Duration::from_secs(10))
        .await;
    assert_eq!(slow.count(), WINDOW);
    let retries = "hookbridge_deliveries_parked_total{subscription=\"slow\",reason=\"retry\"}";
    assert!(bridge.metric(retries).await > 0.0);
}

/// On Kafka, where the tiers take less than the source: a park beside the request is no end for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_on_no_tier_is_left_to_its_request() {
    let slow = Receiver::answering(|_, _| Answer::status(204).after(TAKES)).await;
    let bus = Bus::kafka(kafka_support::bootstrap(), 1).await;
    let window = format!("start: earliest, window: {WINDOW},");
    let subscription = format!(
        "  slow: {{ topics: ['#'], timeout: 10s, slow_after: 500ms, endpoint: {{ url: '{}', secret: '{SECRET}' }} }}",
        slow.url("/")
    );
    let config = bus
        .config(&subscription)
        .replace("start: earliest,", &window);
    let bridge = Bridge::start(&config).await.ready().await;
    let admin = kafka_support::admin();
    let tiers = [1, 2, 5].map(|seconds| format!("{}.retry.{seconds}", bus.group));
    for tier in &tiers {
        let small = AlterConfig::new(ResourceSpecifier::Topic(tier))
            .set("max.message.bytes", "2000")
            .set("message.timestamp.type", "LogAppendTime");
        let altered = admin.alter_configs([&small], &AdminOptions::new()).await;
        altered.expect("kafka is there").remove(0).expect("altered");
    }
    let before = written(&tiers).await;
    // Of which compression makes little less.
    let large = |number| {
        let filling: String = (0..1_000)
            .map(|_| format!("{:016x}", rand::random::<u64>()))
            .collect();
        format!("{{\"number\":{number},\"filling\":\"{filling}\"}}")
    };
    let bodies: Vec<String> = (0..WINDOW).map(large).collect();
    bus.publish(&bridge, &bodies).await;
    slow.wait_for(WINDOW, Duration::from_secs(40)).await;
    let delivered = "hookbridge_delivery_attempts_total{subscription=\"slow\",outcome=\"delivered\",status_class=\"2xx\"}";
    eventually("all are delivered", Duration::from_secs(40), async || {
        (bridge.metric(delivered).await == WINDOW as f64).then_some(())
    })
    .await;
    let tried = "hookbridge_deliveries_parked_total{subscription=\"slow\",reason=\"retry\"}";
    assert!(bridge.metric(tried).await > 0.0, "none was to be parked");
    let metrics = bridge.metrics().await;
    let dead =
        |line: &&str| line.starts_with("hookbridge_dead_letters_total{subscription=\"slow\"");
    let dead: Vec<&str> = metrics.lines().filter(dead).collect();
    assert!(dead.iter().all(|line| line.ends_with(" 0")), "{dead:?}");
    assert_eq!(slow.count(), WINDOW);
    assert_eq!(written(&tiers).await, before, "a tier has taken some");
}

async fn written(topics: &[String]) -> i64 {
    let mut written = 0;
    for topic in topics {
        written += kafka_support::written(topic).await;
    }
    written
}
