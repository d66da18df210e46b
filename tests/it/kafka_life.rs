//! The life of a bridge on a real Kafka: how soon it goes on, and what it knows of subscriptions.

use std::time::{Duration, Instant};

use crate::kafka_support;
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Kind};
use crate::support::receiver::{Answer, Receiver};
use crate::support::{SECRET, brokers, eventually};

const WITHIN: Duration = Duration::from_secs(40);

fn subscription(name: &str, url: &str) -> String {
    format!(
        "  {name}: {{ topics: ['orders.*'], endpoint: {{ url: '{url}', secret: '{SECRET}' }}, retry: {{ schedule: [1s], max_attempts: 60, jitter: 0 }} }}\n"
    )
}

fn bodies(name: &str, count: usize) -> Vec<String> {
    let body = |number| format!("{{\"{name}\": {number}}}");
    (0..count).map(body).collect()
}

/// From the start of the process to the first delivery of what was published meanwhile. On a quiet
/// machine it is less than two seconds, one of which is the tier of the check that retries come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_was_killed_goes_on_within_seconds_under_its_name() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 4).await;
    let config = bus.config(&subscription("crm", &receiver.url("/")));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies("first", 50)).await;
    receiver.wait_for(50, WITHIN).await;
    let mut took = Vec::new();
    for round in 0..3 {
        bridge.kill9();
        bus.publish(&bridge, &bodies(&format!("round {round}"), 50))
            .await;
        let (before, began) = (receiver.count(), Instant::now());
        bridge.launch();
        eventually("a delivery", WITHIN, async || {
            (receiver.count() > before).then_some(())
        })
        .await;
        took.push(began.elapsed());
        receiver.wait_for(before + 50, WITHIN).await;
    }
    println!("kafka: first deliveries {took:?} after a kill -9 and a start");
    took.sort();
    // Other tests run beside it; a session that has to time out takes ten, each time.
    assert!(took[1] < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_of_a_subscription_unknown_here_waits_until_it_is_known() {
    let refusing = Receiver::answering(|_, _| Answer::status(503)).await;
    let accepting = Receiver::accepting().await;
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await;
    let known = |receiver: &Receiver| bus.config(&subscription("crm", &receiver.url("/")));
    let mut bridge = Bridge::start(&known(&refusing)).await.ready().await;
    bus.publish(&bridge, &bodies("n", 3)).await;
    refusing.wait_for(3, WITHIN).await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    // An older config, as in a rolling deploy.
    bridge.write_config(&bus.config(&subscription("erp", &accepting.url("/"))));
    bridge.start_again().await;
    bridge.wait_ready(WITHIN).await;
    eventually("all of it is held", WITHIN, async || {
        let (_, listed) = bridge.get("/v1/parked").await;
        let listed: serde_json::Value = serde_json::from_str(&listed).ok()?;
        let rows = listed["parked"].as_array()?;
        let held = rows.iter().filter(|row| row["kind"] == "hold");
        (held.filter_map(|row| row["count"].as_u64()).sum::<u64>() == 3).then_some(())
    })
    .await;
    assert!(accepting.requests().is_empty());
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    bridge.write_config(&known(&accepting));
    bridge.start_again().await;
    bridge.wait_ready(WITHIN).await;
    // Held for a minute each time, so somebody asks for them.
    let (status, answer) = bridge.post("/v1/parked/now", "{\"all\":true}").await;
    assert_eq!(status, 202, "{answer}");
    let requests = accepting.wait_for(3, WITHIN).await;
    assert!(requests.iter().all(|request| request.verified));
    assert!(bus.letters(&mut bridge, 0).await.is_empty());
}

/// The group keeps a static member's partitions while it restarts, and asks nobody what it wants now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_added_with_a_restart_is_taken() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await;
    let Kind::Kafka { topic, .. } = &bus.kind else {
        unreachable!("it is Kafka")
    };
    let config = bus.config(&subscription("crm", &receiver.url("/")));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies("old", 5)).await;
    receiver.wait_for(5, WITHIN).await;
    let added = format!("{topic}-added");
    kafka_support::create_topic(&added, 2).await;
    kafka_support::produce(&added, bodies("new", 5)).await;
    bridge.write_config(&config.replace(
        &format!("topics: [{topic}]"),
        &format!("topics: [{topic}, {added}]"),
    ));
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    bridge.launch();
    receiver.wait_for(10, WITHIN).await;
    bus.publish(&bridge, &bodies("old", 5)).await;
    receiver.wait_for(15, WITHIN).await;
}
