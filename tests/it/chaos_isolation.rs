//! One endpoint that hangs for ever costs another one nothing that can be measured.

use std::time::{Duration, Instant};

use lapin::BasicProperties;

use crate::path::{Shop, rabbitmq_config, subscription};
use crate::support::bridge::Bridge;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{brokers, unique};

/// Events a second to each of the two.
const RATE: u64 = 100;
const SECONDS: u64 = 5;
/// Longer than the test.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// The 99th percentile and the worst of the times from the publish to the receipt.
async fn latency_of_the_good(beside_a_bad_one: bool) -> (Duration, Duration) {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    let shop = Shop::open(&amqp).await;
    let good = Receiver::accepting().await;
    let bad = Receiver::answering(|_, _| Answer::status(204).after(FOR_EVER)).await;
    let both = subscription("good", "orders.good", &good.url("/"), "")
        + &subscription("bad", "orders.bad", &bad.url("/"), "");
    let config = rabbitmq_config(&amqp, &unique("isolation"), &shop.exchange, &both);
    let _bridge = Bridge::start(&config).await.ready().await;
    let mut clock = tokio::time::interval(Duration::from_secs(1) / RATE as u32);
    let mut published = Vec::new();
    for number in 0..RATE * SECONDS {
        clock.tick().await;
        let id = BasicProperties::default().with_message_id(format!("evt_{number}").into());
        published.push(Instant::now());
        shop.publish("orders.good", b"{}", id.clone()).await;
        if beside_a_bad_one {
            shop.publish("orders.bad", b"{}", id).await;
        }
    }
    let requests = good
        .wait_for(published.len(), Duration::from_secs(30))
        .await;
    let mut took: Vec<Duration> = requests
        .iter()
        .map(|request| {
            let number: usize = request.id["evt_".len()..].parse().expect("our id");
            request.at - published[number]
        })
        .collect();
    assert_eq!(good.by_id().len(), published.len(), "some are missing");
    assert_eq!(bad.count() > 0, beside_a_bad_one);
    took.sort();
    (took[took.len() * 99 / 100], took[took.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_endpoint_does_not_slow_another() {
    // Other tests that run meanwhile may hold up one part of a comparison.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (alone, worst_alone) = latency_of_the_good(false).await;
        let (beside, worst_beside) = latency_of_the_good(true).await;
        println!(
            "p99 alone {alone:?} (worst {worst_alone:?}), beside {beside:?} (worst {worst_beside:?})"
        );
        if beside <= (alone * 4).max(Duration::from_millis(250)) {
            return;
        }
        seen.push(format!("{beside:?} beside, {alone:?} alone"));
    }
    panic!("{seen:?}");
}
