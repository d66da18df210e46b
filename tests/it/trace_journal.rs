//! The journal of attempts under a bridge: pages, crashes, a disk that does not take it, secrets,
//! and the audit stream.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use serde_json::Value;

use crate::path::{Shop, subscription};
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver};
use crate::support::refused::{bodies, one_in_ten_refused};
use crate::support::{SECRET, brokers, eventually, unique};
use crate::trace_states::hookbridge;

const SOON: Duration = Duration::from_secs(30);

/// The ids of all attempts, page by page, the newest first.
async fn listed(bridge: &Bridge, limit: usize) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/attempts?limit={limit}{cursor}");
        let (status, text) = bridge.get(&path).await;
        assert_eq!(status, 200, "{text}");
        let page: Value = serde_json::from_str(&text).unwrap();
        let attempts = page["attempts"].as_array().unwrap();
        assert!(attempts.len() <= limit);
        ids.extend(
            attempts
                .iter()
                .map(|a| a["event"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_listed_page_by_page_and_filtered() {
    let (bridge, _receiver) = one_in_ten_refused(250).await;
    let ids = eventually("all are recorded", SOON, async || {
        let ids = listed(&bridge, 40).await;
        (ids.len() >= 250).then_some(ids)
    })
    .await;
    let different: BTreeSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), different.len()), (250, 250));

    let ran = hookbridge(
        &bridge,
        &["attempts", "--status", "4xx", "-n", "1000", "--json"],
    )
    .await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out.lines().count(), 25);
    let ran = hookbridge(&bridge, &["attempts", "--id", "evt_11"]).await;
    let mut lines = ran.out.lines();
    assert!(
        lines.next().unwrap().trim_start().starts_with("TIME"),
        "{}",
        ran.out
    );
    let row: Vec<_> = lines
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .take(4)
        .collect();
    assert_eq!(row, ["crm", "evt_11", "1", "400"]);
    let ran = hookbridge(&bridge, &["attempts", "--subscription", "none"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    for wrong in [
        "limit=0",
        "cursor=x",
        "status=abc",
        "since=today",
        "colour=red",
    ] {
        let (status, text) = bridge.get(&format!("/v1/attempts?{wrong}")).await;
        assert_eq!(status, 400, "{wrong}: {text}");
    }
    let (status, _) = bridge.get("/v1/events/none/trace").await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_bridge_leaves_a_journal_that_opens() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let mut bridge = Bridge::start(&bus.config(&crm)).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 999999}".to_owned()]).await;
    receiver.wait_for(1, SOON).await;
    let (_, told) = bridge.get("/v1/events/evt_999999/trace").await;
    assert!(told.contains("\"delivered\""), "{told}");
    for round in 0..4 {
        let before = receiver.count();
        bus.publish(&bridge, &bodies(300)).await;
        receiver.wait_for(before + 100 + 20 * round, SOON).await;
        bridge.kill9();
        let told = hookbridge(&bridge, &["trace", "evt_999999"]).await;
        assert_eq!(told.code, Some(0), "{}", told.err);
        assert!(told.out.contains("now: delivered"), "{}", told.out);
        bridge.start_again().await;
    }
    let (_, told) = bridge.get("/v1/events/evt_999999/trace").await;
    assert!(told.contains("\"delivered\""), "{told}");
    assert!(!bridge.log().contains("attempts cannot be kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_no_journal_fails_no_delivery() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let data = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", data.path().join("attempts.redb")).unwrap();
    let config = bus
        .config(&crm)
        .replace("{data}", &data.path().display().to_string());
    let bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies(500)).await;
    receiver.wait_for(500, SOON).await;
    let lost = "hookbridge_attempt_records_lost_total";
    eventually("losses are counted", SOON, async || {
        (bridge.metric(lost).await >= 500.0).then_some(())
    })
    .await;
    assert_eq!(bridge.log().matches("attempts cannot be kept").count(), 1);
    let (status, text) = bridge.get("/v1/attempts").await;
    assert_eq!(status, 503, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_the_file() {
    let receiver = Receiver::answering(|_, before| Answer::status([503, 204][before.min(1)])).await;
    let bus = Bus::embedded();
    let url = receiver.url("/hooks/T0K3N-0F-THE-PATH?key=K3Y-0F-THE-QUERY");
    let crm = subscription("crm", "orders.*", &url, "").replace(
        "secret:",
        "headers: { Authorization: 'Bearer T0K3N-0F-A-HEADER' }, secret:",
    );
    let config = format!("attempts: {{ bodies: true }}\n{}", bus.config(&crm));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 4711}".to_owned()]).await;
    receiver.wait_for(2, SOON).await;
    let found = hookbridge(&bridge, &["trace", "data.n=4711", "--json"]).await;
    assert_eq!(found.code, Some(0), "{}", found.err);
    let trace: Value = serde_json::from_str(&found.out).unwrap();
    let request = &trace["deliveries"][0]["steps"][0]["request"];
    assert_eq!(request["body"], "{\"n\": 4711}");
    let headers = request["headers"].to_string();
    assert!(headers.contains("[\"authorization\",\"***\"]"), "{headers}");
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    let file = std::fs::read(bridge.data_dir().join("attempts.redb")).unwrap();
    let has = |text: &str| file.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(has("4711"));
    let secret = SECRET.trim_start_matches("whsec_");
    for word in [
        secret,
        "T0K3N-0F-THE-PATH",
        "K3Y-0F-THE-QUERY",
        "T0K3N-0F-A-HEADER",
    ] {
        assert!(!has(word), "{word}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_stream_is_a_topic_and_does_not_feed_on_itself() {
    let receiver = Receiver::accepting().await;
    let auditor = Receiver::accepting().await;
    let bus = Bus::embedded();
    let subscriptions = subscription("crm", "orders.*", &receiver.url("/"), "")
        + &subscription("auditor", "audit.#", &auditor.url("/"), "");
    let publish = "attempts: { publish: { broker: here, topic: audit.attempts } }";
    let config = format!("{publish}\n{}", bus.config(&subscriptions));
    let bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies(20)).await;
    let requests = auditor.wait_for(20, SOON).await;
    auditor.quiet_for(Duration::from_secs(3), SOON).await;
    assert_eq!(auditor.count(), 20);
    let record: Value = serde_json::from_slice(&requests[0].body).unwrap();
    assert_eq!(record["record"], "attempt");
    assert_eq!(record["subscription"], "crm");
    assert_eq!(record["then"], "delivered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_stream_arrives_on_a_rabbitmq_queue() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    let receiver = Receiver::accepting().await;
    let bus = Bus::rabbitmq(amqp.clone()).await;
    let shop = Shop::open(&amqp).await;
    let queue = unique("audit");
    let options = QueueDeclareOptions::durable();
    let declared =
        shop.channel
            .queue_declare(queue.as_str().into(), options, FieldTable::default());
    declared.await.expect("a queue");
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let publish = format!("attempts: {{ publish: {{ broker: here, topic: {queue} }} }}");
    let config = format!("{publish}\n{}", bus.config(&crm));
    let bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies(1)).await;
    let got = eventually("a record", SOON, async || {
        let options = BasicGetOptions { no_ack: true };
        let got = shop.channel.basic_get(queue.as_str().into(), options).await;
        got.expect("the queue is there")
    })
    .await;
    let record: Value = serde_json::from_slice(&got.data).unwrap();
    assert_eq!(
        (&record["event"], &record["outcome"]),
        (&"evt_1".into(), &"204".into())
    );
    let kind = got.properties.kind().as_ref().expect("a type");
    assert_eq!(kind.as_str(), "hookbridge.attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_stream_arrives_on_a_kafka_topic() {
    let bootstrap = brokers::env("HOOKBRIDGE_TEST_KAFKA");
    let receiver = Receiver::accepting().await;
    let bus = Bus::kafka(bootstrap.clone(), 1).await;
    let audit = unique("audit");
    crate::kafka_support::create_topic(&audit, 1).await;
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let publish = format!("attempts: {{ publish: {{ broker: here, topic: {audit} }} }}");
    let config = format!("{publish}\n{}", bus.config(&crm));
    let bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies(1)).await;
    let consumer: StreamConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &bootstrap)
        .set("group.id", unique("audit"))
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[&audit]).expect("subscribed");
    let message = tokio::time::timeout(SOON, consumer.recv()).await;
    let message = message.expect("in time").expect("a record");
    let record: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
    assert_eq!(record["outcome"], "204");
    assert_eq!(record["subscription"], "crm");
}
