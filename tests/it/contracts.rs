//! Contracts: events that are too old or not as they should be, and subscriptions that send nothing.

use std::time::Duration;

use serde_json::Value;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const SOON: Duration = Duration::from_secs(20);

/// Publishes a CloudEvent of this id and time.
async fn publish(bridge: &Bridge, topic: &str, id: &str, time: jiff::Timestamp, body: &str) {
    let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
    let request = reqwest::Client::new().post(url).body(body.to_owned());
    let request = request
        .header("content-type", "application/json")
        .header("hookbridge-header-ce_specversion", "1.0")
        .header("hookbridge-header-ce_id", id)
        .header("hookbridge-header-ce_source", "test")
        .header("hookbridge-header-ce_type", "order")
        .header("hookbridge-header-ce_time", time.to_string());
    let answer = request.send().await.expect("the admin answers");
    assert_eq!(answer.status().as_u16(), 202);
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn hours_ago(hours: i64) -> jiff::Timestamp {
    now() - jiff::SignedDuration::from_hours(hours)
}

async fn counts(bridge: &Bridge, line: &str, value: f64) {
    eventually(&format!("{line} {value}"), SOON, async || {
        (bridge.metric(line).await == value).then_some(())
    })
    .await;
}

fn stale(subscription: &str) -> String {
    format!("hookbridge_deliveries_stale_total{{subscription=\"{subscription}\"}}")
}

fn dead(subscription: &str, reason: &str) -> String {
    format!("hookbridge_dead_letters_total{{subscription=\"{subscription}\",reason=\"{reason}\"}}")
}

async fn letters(bridge: &Bridge) -> Vec<Value> {
    let (status, text) = bridge.get("/v1/dead-letters").await;
    assert_eq!(status, 200, "{text}");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all["letters"].as_array().expect("a list").clone()
}

/// The deliveries of the only event of a subscription.
async fn traced(bridge: &Bridge, event: &str) -> Vec<Value> {
    let (status, text) = bridge.get(&format!("/v1/events/{event}/trace")).await;
    assert_eq!(status, 200, "{text}");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    trace["deliveries"].as_array().expect("a list").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_too_old_is_not_sent() {
    let receiver = Receiver::accepting().await;
    let slow = Receiver::answering(|_, _| Answer::status(503)).await;
    let bus = Bus::embedded();
    let url = receiver.url("/");
    let config = bus.config(
        &(subscription("any", "orders.#", &url, "")
            + &subscription("settles", "orders.#", &url, ", max_age: 1h")
            + &subscription(
                "buries",
                "orders.#",
                &url,
                ", max_age: { after: 1h, then: dead_letter }",
            )
            + &subscription("waits", "slow", &slow.url("/"), ", max_age: 3s")
                .replace("[1s, 1s, 1s]", "[1s, 5s]")),
    );
    let bridge = Bridge::start(&config).await.ready().await;
    publish(&bridge, "orders.created", "new", now(), "{}").await;
    receiver.wait_for(3, SOON).await;
    publish(&bridge, "orders.created", "old", hours_ago(2), "{}").await;
    let old = receiver.wait_for(4, SOON).await.remove(3).id;
    counts(&bridge, &stale("settles"), 1.0).await;
    counts(&bridge, &dead("buries", "stale"), 1.0).await;
    let deliveries = eventually("the trace", SOON, async || {
        let deliveries = traced(&bridge, &old).await;
        (deliveries.len() == 3).then_some(deliveries)
    })
    .await;
    let of = |name: &str| {
        let mut found = deliveries.iter();
        found.find(|one| one["subscription"] == name).expect("it")
    };
    assert_eq!(of("any")["now"]["state"], "delivered");
    assert_eq!(of("settles")["now"]["state"], "not_sent");
    assert_eq!(of("settles")["now"]["why"], "stale");
    assert_eq!(of("settles")["steps"][0]["record"], "stale");
    assert_eq!(of("buries")["now"]["reason"], "stale");

    // One that waits on the broker is looked at when it comes back: the third attempt is not made.
    publish(&bridge, "slow", "waits", now(), "{}").await;
    slow.wait_for(2, SOON).await;
    counts(&bridge, &stale("waits"), 1.0).await;
    assert_eq!(slow.count(), 2);
    assert_eq!(receiver.count(), 4);

    // Whoever sends a letter again wants it sent.
    let (status, answer) = bridge
        .post("/v1/dead-letters/retry", r#"{"all": true}"#)
        .await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(receiver.wait_for(5, SOON).await[4].id, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_its_contract_becomes_a_dead_letter() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let url = receiver.url("/");
    let total = ", schema: { properties: { total: { type: number, minimum: 0 } } }";
    let config = bus
        .config(
            &(subscription("any", "orders.#", &url, "")
                + &subscription("strict", "orders.#", &url, total)
                + &subscription("short", "orders.#", &url, ", max_body: 20")),
        )
        .replace(
            "topics: ['#'] }",
            "topics: ['#'], schema: { type: object } }",
        );
    let bridge = Bridge::start(&config).await.ready().await;
    publish(&bridge, "orders.created", "good", now(), r#"{"total": 1}"#).await;
    receiver.wait_for(3, SOON).await;
    // For one of them only.
    publish(
        &bridge,
        "orders.created",
        "less",
        now(),
        r#"{"total": -4711}"#,
    )
    .await;
    receiver.wait_for(5, SOON).await;
    counts(&bridge, &dead("strict", "invalid_payload"), 1.0).await;
    let long = format!(r#"{{"total": 1, "more": "{}"}}"#, "x".repeat(40));
    publish(&bridge, "orders.created", "long", now(), &long).await;
    receiver.wait_for(7, SOON).await;
    counts(&bridge, &dead("short", "invalid_payload"), 1.0).await;
    // For everybody: nobody's letters.
    publish(&bridge, "orders.created", "list", now(), "[]").await;
    publish(&bridge, "orders.created", "text", now(), "hello").await;
    // Nobody wants it, so that nobody looks.
    publish(&bridge, "nobody", "unwanted", now(), "hello").await;
    let invalid = "hookbridge_payload_invalid_total{source=\"orders\"}";
    counts(&bridge, invalid, 2.0).await;
    let all = eventually("the letters", SOON, async || {
        let all = letters(&bridge).await;
        (all.len() == 4).then_some(all)
    })
    .await;
    assert!(
        all.iter()
            .all(|letter| letter["reason"] == "invalid_payload")
    );
    let texts: Vec<_> = all.iter().map(Value::to_string).collect();
    for why in [
        "`/total` is not as `/properties/total/minimum` of the schema wants it",
        "20 are allowed",
        "the body as a whole is not as `/type` of the schema wants it",
        "the body is not JSON",
    ] {
        assert!(
            texts.iter().any(|text| text.contains(why)),
            "{why}: {texts:?}"
        );
    }
    assert!(!bridge.log().contains("4711"), "a value is in the log");
    assert_eq!(receiver.count(), 7);

    // Sent again they are looked at again; with another contract they go.
    let looser = config.replace("minimum: 0", "minimum: -9999");
    bridge.reload(&looser.replace("{ type: object } }", "{ type: [object, array] } }"));
    eventually("reloaded", SOON, async || {
        bridge
            .log()
            .contains("the config is reloaded")
            .then_some(())
    })
    .await;
    let (status, answer) = bridge
        .post("/v1/dead-letters/retry", r#"{"all": true}"#)
        .await;
    assert_eq!(status, 202, "{answer}");
    // The one with the total, and the list, which is for three.
    receiver.wait_for(11, SOON).await;
    eventually("what is still wrong is back", SOON, async || {
        (letters(&bridge).await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(receiver.count(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_does_all_but_send() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let shared = format!(
        "endpoints: {{ shop: {{ url: '{}', secret: '{}', rate: 1/h }} }}\n",
        receiver.url("/"),
        crate::support::SECRET
    );
    let rendered = format!(
        "  broken: {{ topics: ['orders.#'], shadow: true, endpoint: {{ url: '{}', secret: '{}', format: {{ template: {{ body: '{{{{ data.missing.more }}}}' }} }} }} }}\n",
        receiver.url("/"),
        crate::support::SECRET
    );
    let real = "  real: { topics: [orders.paid], endpoint: shop }\n";
    let shadow = "  shadow: { topics: ['orders.#'], shadow: true, endpoint: shop }\n";
    let subscriptions = format!("{real}{shadow}{rendered}");
    let config = shared + &bus.config(&subscriptions) + "attempts: { bodies: true }\n";
    let bridge = Bridge::start(&config).await.ready().await;
    for number in 0..20 {
        let id = format!("e{number}");
        publish(&bridge, "orders.created", &id, now(), r#"{"total": 1}"#).await;
    }
    let attempts = |name: &str, outcome: &str, class: &str| {
        format!(
            "hookbridge_delivery_attempts_total{{subscription=\"{name}\",outcome=\"{outcome}\",status_class=\"{class}\"}}"
        )
    };
    counts(&bridge, &attempts("shadow", "shadow", "shadow"), 20.0).await;
    counts(&bridge, &attempts("broken", "failed", "unrenderable"), 20.0).await;
    let settled = "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
    counts(&bridge, settled, 20.0).await;
    assert_eq!(receiver.count(), 0, "a shadow was sent");
    // The endpoint's one request an hour is still there for what is really sent.
    publish(&bridge, "orders.paid", "paid", now(), "{}").await;
    let request = receiver.wait_for(1, SOON).await.remove(0);
    let deliveries = eventually("the trace", SOON, async || {
        let deliveries = traced(&bridge, &request.id).await;
        (deliveries.len() == 3).then_some(deliveries)
    })
    .await;
    let mut of = deliveries.iter();
    let of = of.find(|one| one["subscription"] == "shadow").expect("it");
    assert_eq!(of["now"]["state"], "not_sent");
    assert_eq!(of["now"]["why"], "shadow");
    assert_eq!(of["steps"][0]["outcome"], "shadow");
    assert_eq!(of["steps"][0]["request"]["body"], "{}");
    let (_, listed) = bridge
        .get("/v1/attempts?status=shadow&subscription=shadow")
        .await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["attempts"].as_array().map(Vec::len), Some(21));
    assert_eq!(receiver.count(), 1);
    assert!(letters(&bridge).await.is_empty(), "a shadow leaves letters");
}
