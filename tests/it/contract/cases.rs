//! The cases. Each is one promise that the pipeline relies on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookbridge::broker::parked::{Deed, Order, Unwatched, Waiting, Whose};
use hookbridge::broker::state::{Entry, Keeping, Reading, Record};
use hookbridge::broker::{Publication, Settlement, Wait};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::{Event, HeaderValue, Headers};
use hookbridge::subscription::Uid;
use jiff::Timestamp;
use tokio::time::timeout;

use super::places::Place;
use super::rig::{Rig, SOON};
use crate::support::{all_now, eventually};

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
    assert_eq!(all_now(&*rig.broker, WaitKind::Retry).await, 1);
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    assert!(since.elapsed() < Duration::from_secs(20));
    rig.stop().await;
}

/// Two deliveries of `crm` and one of `erp`, parked as retries for eight seconds.
async fn three_parked(rig: &mut Rig, place: &impl Place) -> (Vec<Delivery>, Delivery) {
    let mut parked = Vec::new();
    for (id, name) in [("evt_a", "crm"), ("evt_b", "erp"), ("evt_c", "crm")] {
        let publication = Publication {
            id: Some(id.into()),
            ..place.publication(id)
        };
        let mut of_one = delivery(&one_event(rig, publication).await);
        of_one.subscription = name.into();
        of_one.uid = Uid::of_config(name);
        let wait = wait(WaitKind::Retry, 8);
        rig.broker.park(&of_one, wait).await.expect("parked");
        parked.push(of_one);
    }
    let other = parked.remove(1);
    (parked, other)
}

fn about(deed: Deed, name: &str) -> Order {
    let whose = Whose::Of {
        uid: Uid::of_config(name),
        name: name.into(),
    };
    Order::new(deed, whose, None)
}

pub async fn an_order_brings_forward_what_is_of_one_subscription(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let (crm, erp) = three_parked(&mut rig, &place).await;
    let since = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let hold = Order {
        kind: Some(WaitKind::Hold),
        ..about(Deed::Now, "crm")
    };
    for (order, count) in [(hold, 0), (about(Deed::Now, "crm"), 2)] {
        let done = rig.broker.order(&order, &Unwatched::default()).await;
        assert_eq!(done.expect("carried out").count, count);
    }
    let mut came = Vec::new();
    for _ in 0..2 {
        let (back, receipt) = rig.due(WaitKind::Retry).await;
        receipt.settle(Settlement::Ack);
        came.push(back);
    }
    came.sort_by(|a, b| a.event.id.cmp(&b.event.id));
    assert_eq!(came, crm);
    assert!(
        since.elapsed() < Duration::from_secs(7),
        "not brought forward"
    );
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, erp);
    let waited = since.elapsed();
    assert!(waited >= Duration::from_millis(7_500), "early: {waited:?}");
    // On RabbitMQ the clock is known to a second or two, and the rest passes the shortest tier.
    assert!(waited < Duration::from_secs(14), "late: {waited:?}");
    rig.stop().await;
}

pub async fn an_order_drops_what_is_of_one_subscription(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let (_, erp) = three_parked(&mut rig, &place).await;
    let order = about(Deed::Drop, "crm");
    let done = rig.broker.order(&order, &Unwatched::default()).await;
    assert_eq!(done.expect("carried out").count, 2);
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, erp);
    assert!(
        timeout(Duration::from_secs(3), rig.retries.recv())
            .await
            .is_err(),
        "what was dropped came back"
    );
    eventually("nothing is parked", SOON, async || {
        let parked = rig.broker.parked().await.expect("listed");
        parked.is_empty().then_some(())
    })
    .await;
    rig.stop().await;
}

pub async fn what_is_parked_is_listed_twenty_times_undisturbed(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let (mut crm, erp) = three_parked(&mut rig, &place).await;
    crm.push(erp);
    let since = Instant::now();
    for time in 0..20 {
        let rows = rig.broker.parked().await.expect("listed");
        if since.elapsed() > Duration::from_secs(6) {
            break;
        }
        let count: u64 = rows.iter().map(|row| row.count).sum();
        assert_eq!(count, 3, "at listing {time}");
        assert!(rows.iter().all(|row| row.kind == WaitKind::Retry));
        let of_crm = |row: &&Waiting| {
            let whose = row.subscription.as_ref();
            whose.is_some_and(|(name, uid)| &**name == "crm" && uid.as_str() == "config:crm")
        };
        if rows[0].subscription.is_some() {
            assert_eq!(rows.iter().find(of_crm).map(|row| row.count), Some(2));
            assert!(rows.iter().all(|row| row.next_due > row.oldest));
        }
    }
    let mut came = Vec::new();
    for _ in 0..3 {
        let (back, receipt) = rig.due(WaitKind::Retry).await;
        receipt.settle(Settlement::Ack);
        came.push(back);
    }
    let waited = since.elapsed();
    assert!(waited < Duration::from_secs(12), "late: {waited:?}");
    for parked in crm {
        assert!(came.contains(&parked));
    }
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

pub async fn what_is_told_is_read_in_its_order_from_the_first_on(place: impl Place) {
    let log = place.instance().state();
    let record = |key: &str, body: &str| Record {
        key: key.to_owned(),
        body: (!body.is_empty()).then(|| Bytes::from(body.to_owned())),
    };
    let mut early = log.follow(None).await.expect("made and read");
    for (key, body) in [("a", "1"), ("b", "1"), ("a", "2"), ("b", "")] {
        log.tell(vec![record(key, body)]).await.expect("confirmed");
    }
    let all = ["a1", "b1", "a2", "b"];
    let (read, place) = read_up_to(&mut early, "b").await;
    assert_eq!(read, all);
    drop(early);
    let mut late = log.follow(None).await.expect("read");
    log.tell(vec![record("end", "!")]).await.expect("confirmed");
    let (read, _) = read_up_to(&mut late, "end!").await;
    match log.keeping() {
        // What was replaced is gone at once.
        Keeping::Alone => assert_eq!(read, ["a2", "end!"]),
        _ => assert_eq!(read, ["a1", "b1", "a2", "b", "end!"]),
    }
    drop(late);
    if log.keeping() != Keeping::Alone {
        let mut rest = log.follow(Some(place + 1)).await.expect("read");
        assert_eq!(read_up_to(&mut rest, "end!").await.0, ["end!"]);
    }
    let hundred = (0..100).map(|number| record(&format!("n{number}"), "x"));
    log.tell(hundred.collect()).await.expect("confirmed");
    let mut last = log.follow(None).await.expect("read");
    log.tell(vec![record("end", "?")]).await.expect("confirmed");
    let (read, _) = read_up_to(&mut last, "end?").await;
    let count = read.iter().filter(|one| one.starts_with('n')).count();
    assert_eq!(count, 100);
}

/// What was read up to this record, and where that lies.
async fn read_up_to(reading: &mut Reading, last: &str) -> (Vec<String>, u64) {
    let mut read = Vec::new();
    loop {
        let some = timeout(SOON, reading.next()).await.expect("in time");
        assert!(!some.is_empty(), "it ended after {read:?}");
        for Entry { place, record } in some {
            let body = record.body.unwrap_or_default();
            read.push(format!("{}{}", record.key, String::from_utf8_lossy(&body)));
            if read.last().is_some_and(|read| read == last) {
                return (read, place);
            }
        }
    }
}
