//! The cases. Each is one promise that the pipeline relies on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookbridge::broker::{Publication, Settlement, Wait};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::{Event, HeaderValue, Headers};
use hookbridge::subscription::Uid;
use jiff::Timestamp;

use super::places::Place;
use super::rig::Rig;

pub fn delivery(event: &Arc<Event>) -> Delivery {
    let mut delivery = Delivery::first(
        event.clone(),
        "crm".into(),
        Uid::of_config("crm"),
        Timestamp::now(),
    );
    delivery.progress.attempts = 3;
    delivery.progress.last_result = Some("503".into());
    delivery
}

fn wait(kind: WaitKind, seconds: u64) -> Wait {
    Wait {
        kind,
        delay: Duration::from_secs(seconds),
    }
}

/// Publishes one event, takes it and settles it: an event to park.
pub async fn one_event(rig: &mut Rig, publication: Publication) -> Arc<Event> {
    rig.broker.publish(publication).await.expect("published");
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    event
}

pub async fn an_event_is_taken_with_all_that_it_carries(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let publication = Publication {
        id: Some("evt_1".into()),
        kind: Some("order.created".into()),
        content_type: Some("application/json".into()),
        headers: Headers(vec![("tenant".into(), HeaderValue::text("a"))]),
        ..place.publication(r#"{"total":120}"#)
    };
    rig.broker.publish(publication).await.expect("published");
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    assert_eq!(event.id.as_str(), "evt_1");
    assert_eq!(&*event.kind, "order.created");
    assert_eq!(event.content_type.as_deref(), Some("application/json"));
    assert_eq!(
        event.headers.get("tenant").and_then(HeaderValue::as_str),
        Some("a")
    );
    assert_eq!(event.body, r#"{"total":120}"#);
    rig.stop().await;
}

pub async fn a_settled_event_does_not_come_again(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    one_event(&mut rig, place.publication("x")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.stop().await;
    let mut next = Rig::run(place.instance()).await;
    next.no_event().await;
    next.stop().await;
}

pub async fn a_dropped_receipt_comes_again(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    rig.broker
        .publish(Publication {
            id: Some("evt_2".into()),
            ..place.publication("x")
        })
        .await
        .expect("published");
    let (first, receipt) = rig.event().await;
    drop(receipt);
    let (again, receipt) = rig.event().await;
    assert_eq!(again.id, first.id);
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

pub async fn an_unsettled_event_comes_to_the_next_instance(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    rig.broker
        .publish(Publication {
            id: Some("evt_3".into()),
            ..place.publication("x")
        })
        .await
        .expect("published");
    let (first, receipt) = rig.event().await;
    rig.stop().await;
    drop(receipt);
    let mut next = Rig::run(place.instance()).await;
    let (again, receipt) = next.event().await;
    assert_eq!(
        (again.id.clone(), again.body.clone()),
        (first.id.clone(), first.body.clone())
    );
    receipt.settle(Settlement::Ack);
    next.stop().await;
}

pub async fn events_settled_out_of_order_leave_only_the_rest(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    for number in 0..10 {
        let publication = Publication {
            id: Some(format!("evt_{number}")),
            ..place.publication("x")
        };
        rig.broker.publish(publication).await.expect("published");
    }
    let mut kept = Vec::new();
    let mut unsettled = BTreeSet::new();
    for number in 0..10 {
        let (event, receipt) = rig.event().await;
        if number % 3 == 0 {
            unsettled.insert(event.id.clone());
            kept.push(receipt);
        } else {
            receipt.settle(Settlement::Ack);
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.stop().await;
    drop(kept);
    let mut next = Rig::run(place.instance()).await;
    let mut again = BTreeSet::new();
    for _ in 0..unsettled.len() {
        let (event, receipt) = next.event().await;
        again.insert(event.id.clone());
        receipt.settle(Settlement::Ack);
    }
    assert_eq!(again, unsettled);
    next.no_event().await;
    next.stop().await;
}

pub async fn a_parked_delivery_comes_back_whole_and_never_early(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let publication = Publication {
        headers: Headers(vec![("tenant".into(), HeaderValue::text("a"))]),
        content_type: Some("application/json".into()),
        ..place.publication("body")
    };
    let parked = delivery(&one_event(&mut rig, publication).await);
    let since = Instant::now();
    rig.broker
        .park(&parked, wait(WaitKind::Retry, 1))
        .await
        .expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    let waited = since.elapsed();
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    assert!(waited >= Duration::from_secs(1), "early: {waited:?}");
    assert!(waited < Duration::from_secs(4), "late: {waited:?}");
    rig.stop().await;
}

pub async fn a_wait_longer_than_a_tier_passes_several(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let parked = delivery(&one_event(&mut rig, place.publication("body")).await);
    let since = Instant::now();
    rig.broker
        .park(&parked, wait(WaitKind::Retry, 3))
        .await
        .expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    assert!(
        since.elapsed() >= Duration::from_secs(3),
        "early: {:?}",
        since.elapsed()
    );
    rig.stop().await;
}

pub async fn a_hold_comes_back_as_a_hold(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let parked = delivery(&one_event(&mut rig, place.publication("body")).await);
    rig.broker
        .park(&parked, wait(WaitKind::Hold, 1))
        .await
        .expect("parked");
    let (back, receipt) = rig.due(WaitKind::Hold).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    rig.stop().await;
}

pub async fn a_parked_delivery_survives_its_instance(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let parked = delivery(&one_event(&mut rig, place.publication("body")).await);
    rig.broker
        .park(&parked, wait(WaitKind::Retry, 2))
        .await
        .expect("parked");
    rig.stop().await;
    let mut next = Rig::run(place.instance()).await;
    let (back, receipt) = next.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    next.stop().await;
}

pub async fn a_tier_is_released(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let parked = delivery(&one_event(&mut rig, place.publication("body")).await);
    let since = Instant::now();
    rig.broker
        .park(&parked, wait(WaitKind::Retry, 30))
        .await
        .expect("parked");
    let released = rig.broker.release(WaitKind::Retry).await.expect("released");
    assert!(
        released.is_none_or(|count| count == 1),
        "{released:?} released"
    );
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    assert!(since.elapsed() < Duration::from_secs(20));
    rig.stop().await;
}

pub async fn a_full_window_takes_no_more(place: impl Place) {
    let mut rig = Rig::run_with_window(place.instance(), 2).await;
    for number in 0..4 {
        let publication = Publication {
            id: Some(format!("evt_{number}")),
            ..place.publication("x")
        };
        rig.broker.publish(publication).await.expect("published");
    }
    let (_, first) = rig.event().await;
    let (_, second) = rig.event().await;
    rig.no_event().await;
    first.settle(Settlement::Ack);
    let (_, third) = rig.event().await;
    rig.no_event().await;
    second.settle(Settlement::Ack);
    third.settle(Settlement::Ack);
    let (_, fourth) = rig.event().await;
    fourth.settle(Settlement::Ack);
    rig.stop().await;
}

pub async fn hostile_content_is_taken_and_parked_as_it_is(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let hostile = [
        (Bytes::new(), vec![]),
        (
            Bytes::from_static(b"\xff\xfe\x00not utf-8"),
            vec![(
                "bin".to_owned(),
                HeaderValue::Bytes(Bytes::from_static(b"\xff\x00")),
            )],
        ),
        (
            Bytes::from_static(b"{\"broken\": "),
            vec![("crlf".to_owned(), HeaderValue::text("a\r\nx: y"))],
        ),
        (
            Bytes::from(vec![b'x'; 1 << 20]),
            vec![
                ("x-death".to_owned(), HeaderValue::text("z")),
                ("CC".to_owned(), HeaderValue::text("other")),
            ],
        ),
    ];
    for (number, (body, headers)) in hostile.into_iter().enumerate() {
        let publication = Publication {
            id: Some(format!("evt_{number}")),
            // `CC` must be a list for RabbitMQ to take it; it goes through the parking path only.
            headers: Headers(
                headers
                    .iter()
                    .filter(|(name, _)| name != "CC" && name != "x-death")
                    .cloned()
                    .collect(),
            ),
            ..place.publication(body.clone())
        };
        let mut event = (*one_event(&mut rig, publication).await).clone();
        assert_eq!(event.body, body);
        event.headers = Headers(headers);
        let parked = delivery(&Arc::new(event));
        rig.broker
            .park(&parked, wait(WaitKind::Retry, 1))
            .await
            .expect("parked");
        let (back, receipt) = rig.due(WaitKind::Retry).await;
        receipt.settle(Settlement::Ack);
        assert_eq!(back, parked);
    }
    rig.stop().await;
}
