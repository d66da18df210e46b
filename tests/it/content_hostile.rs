//! Content that is made to break something: line ends in names, our own headers forged, letters
//! that somebody moves back to where they came from, filters over what is no JSON.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::path::subscription;
use crate::rabbitmq_support::amqp;
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Kind};
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver, Request};

const WITHIN: Duration = Duration::from_secs(30);
/// What a header would be split by, and what would come of it.
const SPLIT: &str = "a\r\nx-evil: 1\r\n\r\nPOST /evil HTTP/1.1\r\n\0\u{7f}\u{85}b";

/// Parked once and then refused for good, so that each has been through an envelope twice.
async fn refusing() -> Receiver {
    Receiver::answering(|_, before| Answer::status(if before == 0 { 503 } else { 400 })).await
}

fn refused(receiver: &Receiver) -> String {
    subscription("crm", "#", &receiver.url("/in"), "")
        .replace("schedule:", "no_retry: [400], schedule:")
}

/// Each came twice as what it is, no request was made of a part of another, and no line of the log is
/// anybody else's.
fn is_whole(receiver: &Receiver, bridge: &Bridge, bodies: &[&str]) {
    let requests = receiver.requests();
    for body in bodies {
        let of: Vec<_> = requests
            .iter()
            .filter(|it| it.body == body.as_bytes())
            .collect();
        assert_eq!(of.len(), 2, "{body}");
        assert_eq!(of[0].id, of[1].id);
    }
    assert_eq!(requests.len(), 2 * bodies.len());
    for request in &requests {
        assert!(request.verified, "{:?}", request.headers);
        assert_eq!(request.path, "/in");
        assert!(
            !request.headers.contains_key("x-evil"),
            "{:?}",
            request.headers
        );
        assert!(!request.id.contains(char::is_control), "{:?}", request.id);
    }
    let log = bridge.log();
    let forged = log
        .lines()
        .find(|line| line.starts_with("x-evil") || line.starts_with("POST"));
    assert_eq!(forged, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_ends_in_names_split_nothing_on_rabbitmq() {
    let bus = Bus::rabbitmq(amqp()).await;
    let receiver = refusing().await;
    let mut bridge = Bridge::start(&bus.config(&refused(&receiver)))
        .await
        .ready()
        .await;
    let Kind::RabbitMq { shop, .. } = &bus.kind else {
        panic!("it is rabbitmq")
    };
    let text = || AMQPValue::LongString(SPLIT.into());
    let plain = BasicProperties::default;
    let mut headers = FieldTable::default();
    for name in ["traceparent", "type", "ce_id", "hookbridge-event-id", SPLIT] {
        headers.insert(name.into(), text());
    }
    let key = format!("orders.{SPLIT}");
    let messages = [
        ("key", key.as_str(), plain()),
        ("id", "orders.made", plain().with_message_id(SPLIT.into())),
        ("type", "orders.made", plain().with_type(SPLIT.into())),
        (
            "content",
            "orders.made",
            plain()
                .with_content_type(SPLIT.into())
                .with_content_encoding(SPLIT.into()),
        ),
        ("headers", "orders.made", plain().with_headers(headers)),
    ];
    let bodies: Vec<_> = messages.iter().map(|(body, ..)| *body).collect();
    for (body, key, properties) in messages {
        shop.publish(key, body.as_bytes(), properties).await;
    }
    let letters = bus.letters(&mut bridge, bodies.len()).await;
    is_whole(&receiver, &bridge, &bodies);
    assert_eq!(letters.len(), bodies.len());
    let of = |body: &str| {
        letters
            .iter()
            .find(|it| it.body == body.as_bytes())
            .expect("a letter")
    };
    // What the services wrote is kept as they wrote it.
    assert_eq!(of("headers").headers["traceparent"], SPLIT);
    assert_eq!(of("headers").headers[SPLIT], SPLIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_ends_in_names_split_nothing_on_the_embedded_broker() {
    let bus = Bus::embedded();
    let receiver = refusing().await;
    let mut bridge = Bridge::start(&bus.config(&refused(&receiver)))
        .await
        .ready()
        .await;
    let url = |topic: &str| format!("http://{}/v1/topics/{topic}/events", bridge.admin);
    let client = reqwest::Client::new();
    let named = |topic: &str, line: serde_json::Value| {
        let request = client
            .post(url(topic))
            .header("content-type", "application/x-ndjson");
        request.body(format!("{line}\n")).send()
    };
    let answer = named("orders.%0d%0ax-evil:%201", serde_json::json!({ "data": 0 })).await;
    assert_eq!(answer.expect("an answer").status(), 400);
    let lines = [
        serde_json::json!({ "id": SPLIT, "data": 1 }),
        serde_json::json!({ "type": SPLIT, "data": 2 }),
        serde_json::json!({ "key": SPLIT, "data": 3 }),
        serde_json::json!({ "content_type": SPLIT, "data": 4 }),
        serde_json::json!({ "headers": { "traceparent": SPLIT, SPLIT: SPLIT }, "data": 5 }),
    ];
    let mut taken = Vec::new();
    for line in &lines {
        let answer = named("orders.made", line.clone()).await.expect("an answer");
        // Declined with a reason, or taken and then treated as all others are.
        match answer.status().as_u16() {
            202 => taken.push(line["data"].to_string()),
            status => assert_eq!(status, 400, "{:?}", answer.text().await),
        }
    }
    let bodies: Vec<_> = taken.iter().map(String::as_str).collect();
    eventually("all have come twice", WITHIN, async || {
        (receiver.count() >= 2 * bodies.len()).then_some(())
    })
    .await;
    eventually("all are dead letters", WITHIN, async || {
        let dead = "hookbridge_dead_letters_total{subscription=\"crm\",reason=\"no_retry\"}";
        (bridge.metric(dead).await == bodies.len() as f64).then_some(())
    })
    .await;
    is_whole(&receiver, &bridge, &bodies);
    assert_eq!(
        bus.letters(&mut bridge, bodies.len()).await.len(),
        bodies.len()
    );
    assert!(bodies.len() >= 3, "only {bodies:?} were taken");
}

/// A letter that somebody moves back to the exchange is a fresh event under its old id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_moved_back_to_its_source_is_a_fresh_event() {
    let bus = Bus::rabbitmq(amqp()).await;
    let receiver = Receiver::answering(|_, before| match before {
        0 | 1 => Answer::status(400),
        _ => Answer::status(204),
    })
    .await;
    let bridge = Bridge::start(&bus.config(&refused(&receiver)))
        .await
        .ready()
        .await;
    let Kind::RabbitMq { shop, .. } = &bus.kind else {
        panic!("it is rabbitmq")
    };
    let properties = BasicProperties::default().with_message_id("evt_1".into());
    shop.publish("orders.made", b"{\"a\":  1}", properties)
        .await;
    let dead = format!("{}.dead", bus.group);
    for round in 1..=2 {
        receiver.wait_for(round, WITHIN).await;
        let letter = eventually("the letter", WITHIN, async || {
            let options = BasicGetOptions { no_ack: true };
            let got = shop
                .channel
                .basic_get(dead.as_str().into(), options)
                .await
                .expect("read")?;
            // The marker of the start lies there too.
            let headers = got.properties.headers().as_ref()?.inner();
            headers
                .contains_key("hookbridge-subscription")
                .then_some(got.delivery)
        })
        .await;
        shop.publish("orders.made", &letter.data, letter.properties)
            .await;
    }
    let requests = receiver.wait_for(3, WITHIN).await;
    for request in &requests {
        assert_eq!(
            (&request.id[..], &request.body[..]),
            ("evt_1", &b"{\"a\":  1}"[..])
        );
        assert!(request.verified);
    }
    // Each time it was the first attempt of a first life.
    assert_eq!(
        bridge.log().matches("attempt=2").count(),
        0,
        "{}",
        bridge.log()
    );
    let settled = "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
    eventually("three events are settled", WITHIN, async || {
        (bridge.metric(settled).await == 3.0).then_some(())
    })
    .await;
}

/// On each broker: what a filter cannot read matches nothing, and the others get it byte for byte.
async fn odd_content_is_passed_on(bus: Bus, publish: impl AsyncFn(&Bus, &Bridge, &[u8])) {
    let (filtered, all) = (Receiver::accepting().await, Receiver::accepting().await);
    let subscriptions = subscription(
        "filtered",
        "#",
        &filtered.url("/"),
        ", filter: { data.total: { $gte: 1 } }",
    ) + &subscription("all", "#", &all.url("/"), "");
    let bridge = Bridge::start(&bus.config(&subscriptions))
        .await
        .ready()
        .await;
    let deep = "[".repeat(100_000);
    let odd: [&[u8]; 8] = [
        b"",
        b"\xff\xfe\x00",
        b"{\"total\": ",
        b"{\"total\": 1e999}",
        b"{\"total\": \"\xff\"}",
        b"\xef\xbb\xbf{\"total\": 5}",
        deep.as_bytes(),
        b"{\"total\": 5, \"total\": 0}",
    ];
    for body in odd {
        publish(&bus, &bridge, body).await;
    }
    publish(&bus, &bridge, b"{\"total\": 7}").await;
    let requests = all.wait_for(odd.len() + 1, WITHIN).await;
    for body in odd {
        let count = requests
            .iter()
            .filter(|request| request.body == body)
            .count();
        assert_eq!(
            count,
            1,
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(40)])
        );
    }
    // The official library wants a body of UTF-8.
    let is_text = |request: &Request| std::str::from_utf8(&request.body).is_ok();
    assert!(
        requests
            .iter()
            .all(|request| request.verified || !is_text(request))
    );
    eventually("what matches has come", WITHIN, async || {
        (filtered.count_of(|request| &request.body[..] == b"{\"total\": 7}") == 1).then_some(())
    })
    .await;
    let settled = "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
    eventually("all are settled", WITHIN, async || {
        (bridge.metric(settled).await == odd.len() as f64 + 1.0).then_some(())
    })
    .await;
    assert!(
        filtered.count() <= 2,
        "a filter took what is no JSON for a match"
    );
    assert_eq!(bridge.metric("hookbridge_panics_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_content_is_passed_on_from_rabbitmq() {
    let bus = Bus::rabbitmq(amqp()).await;
    odd_content_is_passed_on(bus, async |bus, _, body| {
        let Kind::RabbitMq { shop, .. } = &bus.kind else {
            panic!("it is rabbitmq")
        };
        let mut headers = FieldTable::default();
        let bytes = AMQPValue::ByteArray(b"\xff\x00"[..].into());
        headers.insert("bytes".into(), bytes);
        headers.insert("text".into(), AMQPValue::LongString(b"\xff\xfe"[..].into()));
        headers.insert("nothing".into(), AMQPValue::Void);
        let properties = BasicProperties::default().with_headers(headers);
        shop.publish("orders.made", body, properties).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_content_is_passed_on_from_the_embedded_broker() {
    odd_content_is_passed_on(Bus::embedded(), async |_, bridge, body| {
        let url = format!("http://{}/v1/topics/orders.made/events", bridge.admin);
        let request = reqwest::Client::new().post(url);
        // The bytes of a header need not be UTF-8.
        let value = reqwest::header::HeaderValue::from_bytes(b"\xff\xfe").expect("a value");
        let request = request.header("hookbridge-header-odd", value);
        let answer = request.body(body.to_vec()).send().await.expect("an answer");
        assert_eq!(answer.status(), 202);
    })
    .await;
}
