use std::sync::Arc;

use super::*;
use crate::event::Place;

const ROOM: usize = 1 << 20;

fn delivery(headers: Vec<(&str, HeaderValue)>) -> Delivery {
    let event = Event {
        id: EventId::from_outside(b"a.b").unwrap(),
        topic: "orders.created".into(),
        kind: "order".into(),
        source: "orders".into(),
        tenant: None,
        published_at: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        content_type: Some("application/json".into()),
        content_encoding: None,
        key: Some(Bytes::from_static(&[0xff, 0])),
        headers: Headers(
            headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        ),
        properties: vec![("priority".into(), HeaderValue::Int(3))],
        body: Bytes::from_static(b"\xff\x00body"),
        origin: Origin {
            broker: "shop".into(),
            place: Place::Amqp {
                exchange: "e".into(),
                routing_key: "k".into(),
                queue: "q".into(),
            },
        },
    };
    let mut delivery = Delivery::first(
        Arc::new(event),
        "crm".into(),
        Uid::of_config("crm"),
        "2026-01-02T03:04:06Z".parse().unwrap(),
    );
    delivery.progress.attempts = 3;
    delivery.replay_of = Some(DeliveryId::from_envelope("dlv_0"));
    delivery.progress.last_result = Some("503".into());
    delivery.progress.last_excerpt = Some("x".repeat(400));
    delivery
}

fn parked(headers: Vec<(&str, HeaderValue)>) -> Envelope {
    Envelope::parked(
        &delivery(headers),
        WaitKind::Retry,
        Duration::from_secs(90),
        Duration::from_secs(30),
    )
}

fn read(written: Written) -> Envelope {
    Envelope::read(written.headers, written.body).unwrap()
}

#[test]
fn a_parked_delivery_is_read_back_whole() {
    let envelope = parked(vec![
        ("tenant", HeaderValue::text("a")),
        ("tenant", HeaderValue::Int(2)),
    ]);
    assert_eq!(read(envelope.write(Dialect::Opaque, ROOM)), envelope);
}

#[test]
fn a_dead_letter_is_read_back_whole() {
    let at = "2026-01-05T00:00:00Z".parse().unwrap();
    let envelope = Envelope::dead(&delivery(vec![]), Reason::Gone, at);
    assert_eq!(read(envelope.write(Dialect::Amqp, ROOM)), envelope);
}

#[test]
fn what_rabbitmq_acts_upon_is_kept_under_another_name() {
    let envelope = parked(vec![
        (
            "CC",
            HeaderValue::List(vec![HeaderValue::text("other.queue")]),
        ),
        ("x-death", HeaderValue::List(vec![])),
        ("x-delay", HeaderValue::Int(1)),
    ]);
    let written = envelope.write(Dialect::Amqp, ROOM);
    assert!(written.headers.iter().all(|(name, _)| is_ours(name)));
    assert_eq!(read(written), envelope);
}

#[test]
fn the_version_comes_first() {
    assert_eq!(
        parked(vec![]).write(Dialect::Opaque, ROOM).headers.0[0].0,
        VERSION
    );
}

#[test]
fn the_excerpt_goes_first_when_headers_are_too_large() {
    let envelope = parked(vec![("a", HeaderValue::text("b"))]);
    let full = envelope.write(Dialect::Amqp, ROOM).headers.size_bytes();
    let read = read(envelope.write(Dialect::Amqp, full - 1));
    assert_eq!(read.delivery.progress.last_excerpt, None);
    assert_eq!(read.delivery.event, envelope.delivery.event);
}

#[test]
fn headers_that_do_not_fit_travel_in_front_of_the_body() {
    let mut envelope = parked(vec![(
        "big",
        HeaderValue::Bytes(Bytes::from(vec![0xfe; 200_000])),
    )]);
    let written = envelope.write(Dialect::Amqp, 100_000);
    assert!(written.headers.size_bytes() < 100_000);
    envelope.delivery.progress.last_excerpt = None;
    assert_eq!(read(written), envelope);
}

/// Types come out of bodies and keys from Kafka: neither has a limit.
#[test]
fn a_type_and_a_key_that_do_not_fit_travel_in_front_of_the_body_too() {
    let mut envelope = parked(vec![("tenant", HeaderValue::text("a"))]);
    let mut event = Event::clone(&envelope.delivery.event);
    event.kind = "t".repeat(200_000).into();
    event.key = Some(Bytes::from(vec![0xff; 200_000]));
    envelope.delivery.event = Arc::new(event);
    let written = envelope.write(Dialect::Amqp, 100_000);
    assert!(written.headers.size_bytes() < 5_000);
    assert_eq!(written.headers.0[0].0, VERSION);
    envelope.delivery.progress.last_excerpt = None;
    assert_eq!(read(written), envelope);
}

#[test]
fn headers_with_names_too_long_for_amqp_travel_in_front_of_the_body() {
    let (long, kept_as_longer) = ("l".repeat(256), format!("x-{}", "l".repeat(250)));
    let mut envelope = parked(vec![
        (&long, HeaderValue::Int(1)),
        (&kept_as_longer, HeaderValue::Int(2)),
    ]);
    let written = envelope.write(Dialect::Amqp, ROOM);
    assert!(written.headers.iter().all(|(name, _)| name.len() <= 255));
    envelope.delivery.progress.last_excerpt = None;
    assert_eq!(read(written), envelope);
}

#[test]
fn a_newer_version_is_refused_and_the_next_one_read() {
    let mut written = parked(vec![]).write(Dialect::Opaque, ROOM);
    written.headers.0[0].1 = HeaderValue::text("2");
    assert!(Envelope::read(written.headers.clone(), written.body.clone()).is_ok());
    written.headers.0[0].1 = HeaderValue::text("3");
    assert_eq!(
        Envelope::read(written.headers, written.body),
        Err(Unreadable::Version("3".into()))
    );
}

#[test]
fn a_foreign_message_is_unreadable() {
    assert_eq!(
        Envelope::read(Headers::default(), Bytes::new()),
        Err(Unreadable::Missing(VERSION))
    );
}
