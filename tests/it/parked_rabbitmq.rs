//! Parked deliveries on RabbitMQ: killed in the middle of an order, and very many of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use hookbridge::broker::parked::{Deed, Order, Unwatched, Whose};
use hookbridge::broker::tiers::Tiers;
use hookbridge::broker::{Broker as _, Wait, rabbitmq};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::{Event, EventId, Headers, Origin, Place};
use hookbridge::subscription::{Secret, TlsFiles, Uid};
use serde_json::Value;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{brokers, eventually, unique};

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_loses_nothing() {
    const COUNT: usize = 1_000;
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    let receiver =
        Receiver::answering(|_, before| Answer::status(if before == 0 { 503 } else { 204 })).await;
    // Failures do not shut the lane: what is tested is the way back.
    let config = bus
        .config(&subscription("crm", "orders.*", &receiver.url("/"), ""))
        .replace("[1s, 2s, 5s]", "[1s, 600s]")
        .replace("schedule: [1s, 1s, 1s]", "schedule: [600s]")
        .replace(
            "secret:",
            "breaker: { failures: 10000, cool_down: 1s }, secret:",
        );
    let mut bridge = Bridge::start(&config).await.ready().await;
    let bodies: Vec<_> = (0..COUNT).map(|n| format!("{{\"number\":{n}}}")).collect();
    bus.publish(&bridge, &bodies).await;
    let parked = async |bridge: &Bridge| {
        let (_, text) = bridge.get("/v1/parked").await;
        let listed: Value = serde_json::from_str(&text).expect("json");
        let rows = listed["parked"].as_array().expect("rows").clone();
        let retries = rows.iter().filter(|row| row["kind"] == "retry");
        retries.filter_map(|row| row["count"].as_u64()).sum::<u64>()
    };
    eventually("all are parked", WITHIN, async || {
        (parked(&bridge).await == COUNT as u64).then_some(())
    })
    .await;
    let (status, _) = bridge
        .post("/v1/parked/now", r#"{"subscription":"crm"}"#)
        .await;
    assert_eq!(status, 202);
    eventually("the middle", WITHIN, async || {
        (receiver.count() >= COUNT + 50).then_some(())
    })
    .await;
    bridge.kill9_and_restart().await;
    bridge.wait_ready(WITHIN).await;
    println!("{} were left on the tier", parked(&bridge).await);
    eventually("all are delivered", WITHIN, async || {
        let (status, _) = bridge.post("/v1/parked/now", r#"{"all":true}"#).await;
        assert_eq!(status, 202);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let by_id = receiver.by_id();
        (by_id.len() == COUNT && by_id.values().all(|count| *count >= 2)).then_some(())
    })
    .await;
    let repeats = receiver.count() - 2 * COUNT;
    println!("{repeats} repeats");
    assert!(repeats <= 600, "{repeats} repeats");
}

fn delivery(name: &str) -> Delivery {
    let event = Event {
        id: EventId::random(),
        topic: "orders.created".into(),
        kind: "orders.created".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: vec![b'x'; 512].into(),
        origin: Origin {
            broker: "shop".into(),
            place: Place::Amqp {
                exchange: "e".into(),
                routing_key: "k".into(),
                queue: "q".into(),
            },
        },
    };
    let uid = Uid::of_config(name);
    Delivery::first(Arc::new(event), name.into(), uid, jiff::Timestamp::now())
}

/// Measured: how long it takes to take 10,000 off a tier, half of which are parked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_are_moved_in_seconds() {
    const COUNT: usize = 10_000;
    let broker = rabbitmq::RabbitMq::new(rabbitmq::Settings {
        name: "shop".into(),
        group: unique("many").as_str().into(),
        urls: vec![Secret::new(brokers::env("HOOKBRIDGE_TEST_AMQP"))],
        tls: TlsFiles::default(),
        tiers: Tiers::new([600]).expect("tiers"),
        sources: Vec::new(),
        keeps_deliveries: true,
        declare: true,
        keeps_state: false,
    });
    let wait = Wait {
        kind: WaitKind::Retry,
        delay: Duration::from_secs(600),
    };
    let parking = stream::iter(0..COUNT).map(|n| {
        let (broker, name) = (broker.clone(), if n % 2 == 0 { "crm" } else { "erp" });
        async move { broker.park(&delivery(name), wait).await }
    });
    let refused = parking
        .buffer_unordered(32)
        .filter_map(async |parked| parked.err())
        .count()
        .await;
    assert_eq!(refused, 0);
    for (whose, count, again) in [
        (
            Whose::Of {
                uid: Uid::of_config("crm"),
                name: "crm".into(),
            },
            5_000,
            5_000,
        ),
        (Whose::All, 5_000, 0),
    ] {
        let began = Instant::now();
        let order = Order::new(Deed::Now, whose.clone(), None);
        let done = broker.order(&order, &Unwatched::default()).await;
        let done = done.expect("carried out");
        println!("{whose:?}: {done:?} in {:?}", began.elapsed());
        assert_eq!((done.count, done.parked_again), (count, again));
        assert!(began.elapsed() < Duration::from_secs(40));
    }
}
