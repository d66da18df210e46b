//! The path, end to end with the real binary: an event on a real broker becomes a signed webhook.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::support::bridge::Bridge;
use crate::support::receiver::{Answer, Receiver};
pub use crate::support::shop::{Shop, rabbitmq_config, subscription};
use crate::support::{brokers, eventually, unique};

const WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rabbitmq_event_becomes_a_signed_webhook() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    let shop = Shop::open(&amqp).await;
    let receiver = Receiver::accepting().await;
    let config = rabbitmq_config(
        &amqp,
        &unique("path"),
        &shop.exchange,
        &subscription("crm", "orders.*", &receiver.url("/hooks"), ""),
    );
    let bridge = Bridge::start(&config).await.ready().await;
    let mut headers = FieldTable::default();
    headers.insert(
        "traceparent".into(),
        AMQPValue::LongString("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    );
    let properties = BasicProperties::default()
        .with_message_id("evt_1".into())
        .with_content_type("application/json".into())
        .with_headers(headers);
    shop.publish("orders.created", br#"{"total":  120}"#, properties)
        .await;
    let request = receiver.wait_for(1, WITHIN).await.remove(0);
    assert!(
        request.verified,
        "the official library refuses {:?}",
        request.headers
    );
    assert_eq!(request.id, "evt_1");
    assert_eq!(request.path, "/hooks");
    assert_eq!(&request.body[..], br#"{"total":  120}"#);
    assert_eq!(request.headers["content-type"], "application/json");
    assert_eq!(
        request.headers["user-agent"],
        concat!("hookbridge/", env!("CARGO_PKG_VERSION"))
    );
    assert!(request.headers.contains_key("traceparent"));
    eventually("the event is settled", WITHIN, async || {
        let line =
            "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
        (bridge.metric(line).await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_delivery_is_retried_under_the_same_id_until_it_is_taken() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    let shop = Shop::open(&amqp).await;
    let receiver =
        Receiver::answering(|_, before| Answer::status(if before < 2 { 503 } else { 200 })).await;
    let config = rabbitmq_config(
        &amqp,
        &unique("path"),
        &shop.exchange,
        &subscription("crm", "orders.*", &receiver.url("/"), ""),
    );
    let bridge = Bridge::start(&config).await.ready().await;
    shop.publish(
        "orders.created",
        b"{}",
        BasicProperties::default().with_message_id("evt_2".into()),
    )
    .await;
    let requests = receiver.wait_for(3, WITHIN).await;
    assert!(
        requests
            .iter()
            .all(|request| request.id == "evt_2" && request.verified)
    );
    for pair in requests.windows(2) {
        assert!(
            pair[1].at - pair[0].at >= Duration::from_secs(1),
            "a retry came early"
        );
    }
    assert_eq!(
        bridge
            .metric("hookbridge_deliveries_parked_total{subscription=\"crm\",reason=\"retry\"}")
            .await,
        2.0
    );
}
