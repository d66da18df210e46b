//! Dead letters as a plain client of the broker sees them: why, and the body as it was.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::path::{Shop, rabbitmq_config, subscription};
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Kind};
use crate::support::receiver::{Answer, Receiver};
use crate::support::{brokers, eventually, unique};

const SOON: Duration = Duration::from_secs(30);

/// One event is refused with a status of `no_retry`, the other never accepted.
async fn two_letters(bus: Bus) {
    let receiver = Receiver::answering(|request, _| {
        let final_one = request.body.starts_with(b"{\"final\"");
        Answer::status(if final_one { 400 } else { 503 })
    })
    .await;
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "")
        .replace("schedule: [1s, 1s, 1s]", "schedule: [1s], no_retry: [400]");
    let mut bridge = Bridge::start(&bus.config(&crm)).await.ready().await;
    let bodies = [
        "{\"final\":   1, \"text\": \"\u{e9}\"}".to_owned(),
        "{\"again\":   2}".to_owned(),
    ];
    bus.publish(&bridge, &bodies).await;
    receiver.wait_for(3, SOON).await;
    receiver.quiet_for(Duration::from_secs(2), SOON).await;
    assert_eq!(receiver.count(), 3, "once and twice");
    let letters = bus.letters(&mut bridge, 2).await;
    let mut seen: Vec<_> = letters
        .iter()
        .map(|letter| (letter.reason.as_str(), &letter.body[..]))
        .collect();
    seen.sort();
    let expected = [
        ("attempts_exhausted", bodies[1].as_bytes()),
        ("no_retry", bodies[0].as_bytes()),
    ];
    assert_eq!(seen, expected);
    // The embedded broker's file is not read here but through the broker, which knows the version.
    let is_read_plain = !matches!(bus.kind, Kind::Embedded);
    for letter in &letters {
        if is_read_plain {
            assert_eq!(letter.headers["hookbridge-v"], "1");
        }
        assert_eq!(letter.headers["hookbridge-subscription"], "crm");
        let attempts = if letter.reason == "no_retry" {
            "1"
        } else {
            "2"
        };
        assert_eq!(letter.headers["hookbridge-attempts"], attempts);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_keeps_what_was_given_up() {
    two_letters(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_keeps_what_was_given_up() {
    two_letters(Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_keeps_what_was_given_up() {
    two_letters(Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_own_properties_are_on_a_letter() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    let shop = Shop::open(&amqp).await;
    let receiver = Receiver::answering(|_, _| Answer::status(400)).await;
    let group = unique("letters");
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "")
        .replace("jitter: 0", "jitter: 0, no_retry: [400]");
    let config = rabbitmq_config(&amqp, &group, &shop.exchange, &crm);
    let _bridge = Bridge::start(&config).await.ready().await;
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), AMQPValue::LongString("a".into()));
    headers.insert("size".into(), AMQPValue::LongLongInt(-3));
    let properties = BasicProperties::default()
        .with_message_id("evt_1".into())
        .with_content_type("application/octet-stream".into())
        .with_headers(headers);
    let body = [0xff, 0x00, b'x'];
    shop.publish("orders.created", &body, properties).await;
    let queue = format!("{group}.dead");
    let letter = eventually("the letter", SOON, async || {
        let options = BasicGetOptions::default();
        let got = shop.channel.basic_get(queue.as_str().into(), options).await;
        let got = got.expect("the queue is there")?;
        let is_probe = got
            .properties
            .headers()
            .as_ref()
            .is_some_and(|headers| headers.inner().contains_key("hookbridge-probe"));
        if is_probe {
            got.ack(BasicAckOptions::default()).await.expect("acked");
            return None;
        }
        Some(got)
    })
    .await;
    assert_eq!(letter.data, body);
    let headers = letter.properties.headers().clone().expect("headers");
    let headers = headers.inner();
    assert_eq!(headers["tenant"], AMQPValue::LongString("a".into()));
    assert_eq!(headers["size"], AMQPValue::LongLongInt(-3));
    assert_eq!(
        headers["hookbridge-event-id"],
        AMQPValue::LongString("evt_1".into())
    );
}
