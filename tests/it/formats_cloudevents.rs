//! CloudEvents on real brokers are read in every spelling of their bindings, and leave as they came.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use serde_json::{Value, json};

use crate::kafka_support;
use crate::support::bridge::Bridge;
use crate::support::receiver::{Receiver, Request};
use crate::support::shop::{Shop, rabbitmq_config};
use crate::support::{SECRET, brokers, unique};

const WITHIN: Duration = Duration::from_secs(60);
const STRUCTURED: &str = r#"{"specversion":"1.0","id":"3","source":"/s","type":"made","time":"2026-03-01T12:00:00Z","subject":"order/7","data":[1]}"#;

fn subscription(receiver: &Receiver) -> String {
    let url = receiver.url("/in");
    format!(
        "  crm: {{ topics: ['#'], types: [made], endpoint: {{ url: '{url}', secret: '{SECRET}', format: cloudevents }} }}\n"
    )
}

/// Every event came as the same one, but for its id.
fn all_are_as_they_came(requests: &[Request]) {
    for request in requests {
        assert!(
            request.verified && request.id.starts_with("ce_"),
            "{request:?}"
        );
        let mut event: Value = serde_json::from_slice(&request.body).expect("JSON");
        event["id"].take();
        event["datacontenttype"].take();
        let came = json!({
            "specversion": "1.0", "id": null, "source": "/s", "type": "made",
            "time": "2026-03-01T12:00:00Z", "subject": "order/7", "data": [1], "datacontenttype": null,
        });
        assert_eq!(event, came);
    }
    let ids: std::collections::BTreeSet<_> = requests.iter().map(|request| &request.id).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_s_are_read_in_every_spelling() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    let shop = Shop::open(&amqp).await;
    let receiver = Receiver::accepting().await;
    let config = rabbitmq_config(
        &amqp,
        &unique("ce"),
        &shop.exchange,
        &subscription(&receiver),
    );
    let _bridge = Bridge::start(&config).await.ready().await;
    for (id, prefix) in [("1", "cloudEvents:"), ("2", "cloudEvents_")] {
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("specversion", "1.0"),
            ("id", id),
            ("source", "/s"),
            ("type", "made"),
            ("subject", "order/7"),
        ] {
            let value = AMQPValue::LongString(value.into());
            headers.insert(format!("{prefix}{name}").into(), value);
        }
        // 2026-03-01T12:00:00Z.
        let time = AMQPValue::Timestamp(1_772_366_400);
        headers.insert(format!("{prefix}time").into(), time);
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_headers(headers);
        shop.publish("orders.created", b"[1]", properties).await;
    }
    let properties =
        BasicProperties::default().with_content_type("application/cloudevents+json".into());
    shop.publish("orders.created", STRUCTURED.as_bytes(), properties)
        .await;
    all_are_as_they_came(&receiver.wait_for(3, WITHIN).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_s_are_read_in_every_spelling() {
    let (topic, group) = (unique("ce"), unique("ce"));
    kafka_support::create_topic(&topic, 1).await;
    let receiver = Receiver::accepting().await;
    let config = format!(
        "group: {group}
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ lake: {{ kafka: {{ bootstrap: ['{}'] }}, tiers: [1s, 2s, 5s] }} }}
sources: {{ orders: {{ broker: lake, topics: [{topic}], start: earliest }} }}
subscriptions:
{}",
        kafka_support::bootstrap(),
        subscription(&receiver)
    );
    let _bridge = Bridge::start(&config).await.ready().await;
    let headers = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                let value = Some(*value);
                headers.insert(Header { key, value })
            })
    };
    let binary = |id| {
        headers(&[
            ("ce_specversion", "1.0"),
            ("ce_id", id),
            ("ce_source", "/s"),
            ("ce_type", "made"),
            ("ce_time", "2026-03-01T12:00:00Z"),
            ("ce_subject", "order/7"),
            ("content-type", "application/json"),
        ])
    };
    let structured = headers(&[(
        "Content-Type",
        "application/cloudevents+json; charset=UTF-8",
    )]);
    let producer = kafka_support::producer();
    for (headers, body) in [
        (binary("1"), "[1]"),
        (binary("2"), "[1]"),
        (structured, STRUCTURED),
    ] {
        let record = FutureRecord::<(), _>::to(&topic)
            .payload(body)
            .headers(headers);
        producer.send(record, WITHIN).await.expect("produced");
    }
    all_are_as_they_came(&receiver.wait_for(3, WITHIN).await);
}
