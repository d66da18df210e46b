//! Parking and dead letters on a real Kafka.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use hookbridge::broker::kafka::Start;
use hookbridge::broker::{Broker as _, Refused, Settlement, Wait};
use hookbridge::delivery::{Delivery, Reason, WaitKind};
use hookbridge::event::{Event, HeaderValue, Headers};
use hookbridge::subscription::Uid;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::producer::FutureRecord;
use rdkafka::statistics::Statistics;
use rdkafka::{ClientConfig, ClientContext};
use tokio::time::timeout;

use crate::kafka_support::*;
use crate::support::letters::{listed, remove};

const WAIT: Duration = Duration::from_secs(1);

/// A delivery of an event that was taken for real, so that ids and origin are real ones.
async fn delivery(rig: &mut Rig, topic: &str, text: &str) -> Delivery {
    produce(topic, [text.to_owned()]).await;
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    let mut event = Event::clone(&event);
    event.headers = Headers(vec![
        ("tenant".into(), HeaderValue::text("t")),
        (
            "raw".into(),
            HeaderValue::Bytes(Bytes::from_static(b"\xff")),
        ),
    ]);
    let now = jiff::Timestamp::now();
    Delivery::first(Arc::new(event), "crm".into(), Uid::of_config("crm"), now)
}

async fn rig() -> (Rig, String, String) {
    let (topic, group) = (unique("park"), unique("g"));
    create_topic(&topic, 3).await;
    let sources = vec![source("s", &[&topic], Start::Earliest)];
    (start(settings(&group, sources), 100), topic, group)
}

fn wait(kind: WaitKind, delay: Duration) -> Wait {
    Wait { kind, delay }
}

#[tokio::test]
async fn a_parked_delivery_comes_back_whole_and_never_early() {
    let (mut rig, topic, _) = rig().await;
    let parked = delivery(&mut rig, &topic, "x").await;
    for (kind, delay, latest) in [
        (WaitKind::Retry, WAIT, 2_000),
        (WaitKind::Hold, WAIT, 2_000),
        // Two stays: 3 s and 1 s.
        (WaitKind::Retry, Duration::from_millis(3_900), 6_500),
    ] {
        let since = Instant::now();
        rig.kafka.park(&parked, wait(kind, delay)).await.unwrap();
        let (due, came_as, receipt) = rig.due().await;
        let waited = since.elapsed();
        assert!(waited >= delay, "{waited:?} is early for {delay:?}");
        assert!(
            waited < Duration::from_millis(latest),
            "{waited:?} is late for {delay:?}"
        );
        assert_eq!((&due, came_as), (&parked, kind));
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_parked_delivery_is_done_by_a_fresh_instance_and_once() {
    let (mut rig, topic, group) = rig().await;
    let parked = delivery(&mut rig, &topic, "x").await;
    for _ in 0..20 {
        rig.kafka
            .park(&parked, wait(WaitKind::Retry, WAIT))
            .await
            .unwrap();
    }
    rig.stop().await;
    tokio::time::sleep(WAIT).await;
    // Other tiers by now: what is parked on the old ones is not stranded.
    let mut other = settings(&group, vec![]);
    other.tiers = hookbridge::broker::tiers::Tiers::new([2]).unwrap();
    let mut rig = start(other.clone(), 100);
    for _ in 0..20 {
        let (due, _, receipt) = rig.due().await;
        assert_eq!(due, parked);
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
    let mut rig = start(other, 100);
    assert!(
        timeout(Duration::from_secs(4), rig.retries.recv())
            .await
            .is_err()
    );
    rig.stop().await;
}

#[tokio::test]
async fn more_than_fits_is_read_ahead_in_parts_and_all_comes() {
    let (mut rig, topic, _) = rig().await;
    let parked = delivery(&mut rig, &topic, "x").await;
    let kafka = rig.kafka.clone();
    let parking = tokio::spawn(async move {
        let wait = wait(WaitKind::Hold, WAIT);
        for _ in 0..40 {
            let all = (0..100).map(|_| kafka.park(&parked, wait));
            for done in futures_util::future::join_all(all).await {
                done.unwrap();
            }
        }
    });
    for n in 0..4_000 {
        let taken = timeout(PATIENCE, rig.holds.recv()).await;
        match taken.unwrap_or_else(|_| panic!("only {n} came")) {
            Some(hookbridge::broker::Received::Due(_, _, receipt)) => {
                receipt.settle(Settlement::Ack)
            }
            other => panic!("{other:?}"),
        }
    }
    parking.await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn a_released_tier_is_due_at_once() {
    let (mut rig, topic, group) = rig().await;
    let parked = delivery(&mut rig, &topic, "x").await;
    rig.stop().await;
    let mut long = settings(&group, vec![]);
    long.tiers = hookbridge::broker::tiers::Tiers::new([1, 600]).unwrap();
    let mut rig = start(long, 100);
    rig.ready().await;
    let hour = Duration::from_secs(600);
    rig.kafka
        .park(&parked, wait(WaitKind::Retry, hour))
        .await
        .unwrap();
    crate::support::all_now(&*rig.kafka, WaitKind::Retry).await;
    let since = Instant::now();
    let (due, _, receipt) = rig.due().await;
    assert_eq!(due, parked);
    assert!(since.elapsed() < Duration::from_secs(20));
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn a_message_on_a_tier_that_is_no_delivery_becomes_a_dead_letter() {
    let (rig, _, group) = rig().await;
    rig.ready().await;
    let tier = format!("{group}.retry.1");
    let stray = FutureRecord::to(&tier).key("k").payload("not ours");
    producer().send(stray, PATIENCE).await.unwrap();
    let letters = timeout(PATIENCE, async {
        loop {
            let letters = listed(&*rig.kafka).await;
            if !letters.is_empty() {
                return letters;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
    .unwrap();
    let letter = &letters[0];
    assert_eq!(letter.reason, Reason::EnvelopeUnreadable);
    assert_eq!(&letter.delivery.event.body[..], b"not ours");
    let id = letter.delivery.id.as_str();
    let removed = remove(&*rig.kafka, |letter| letter.delivery.id.as_str() == id);
    assert_eq!(removed.await, 1);
    assert!(listed(&*rig.kafka).await.is_empty());
    rig.stop().await;
}

/// A reader says how much it fetches before decompression only: eight records of `x` alone would come in a
/// few hundred bytes, however much memory they need.
#[tokio::test]
async fn what_is_kept_is_not_compressed() {
    const SIZE: usize = 256 << 10;
    let (mut rig, topic, group) = rig().await;
    let mut kept = delivery(&mut rig, &topic, "x").await;
    let mut event = Event::clone(&kept.event);
    event.body = Bytes::from(vec![b'x'; SIZE]);
    kept.event = Arc::new(event);
    let all = (0..8).map(|_| rig.kafka.dead_letter(&kept, Reason::GaveUp));
    for dead in join_all(all).await {
        dead.unwrap();
    }
    let received = Received::default();
    let reader: StreamConsumer<Received> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("group.id", unique("reader"))
        .set("auto.offset.reset", "earliest")
        .set("statistics.interval.ms", "50")
        .create_with_context(received.clone())
        .unwrap();
    reader.subscribe(&[&format!("{group}.dead")]).unwrap();
    let read = timeout(PATIENCE, async {
        while received.0.load(Ordering::Relaxed) < 8 * SIZE as u64 {
            let message = timeout(WAIT, reader.recv()).await;
            assert!(!matches!(message, Ok(Err(_))), "{message:?}");
        }
    });
    assert!(read.await.is_ok(), "{received:?} bytes came");
    rig.stop().await;
}

/// How many bytes a client has got from its brokers.
#[derive(Debug, Clone, Default)]
struct Received(Arc<AtomicU64>);

impl ClientContext for Received {
    fn stats(&self, statistics: Statistics) {
        self.0.store(statistics.rx_bytes as u64, Ordering::Relaxed);
    }
}

impl ConsumerContext for Received {}

#[tokio::test]
async fn what_is_too_large_as_it_is_is_parked_compressed() {
    let (mut rig, topic, _) = rig().await;
    let small = delivery(&mut rig, &topic, "x").await;
    let mut event = Event::clone(&small.event);
    // As it may come from a service that compresses.
    event.body = Bytes::from(vec![b'x'; 3 << 20]);
    let large = Delivery {
        event: Arc::new(event),
        ..small
    };
    rig.kafka.dead_letter(&large, Reason::GaveUp).await.unwrap();
    let letters = listed(&*rig.kafka).await;
    assert!(letters[0].has_body);
    assert_eq!(letters[0].delivery.event.body, large.event.body);
    assert_eq!(letters[0].delivery.event.headers, large.event.headers);
    let parked = rig.kafka.park(&large, wait(WaitKind::Retry, WAIT)).await;
    assert!(parked.is_ok(), "{parked:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_letter_too_large_is_kept_without_its_body() {
    let (mut rig, topic, _) = rig().await;
    let small = delivery(&mut rig, &topic, "x").await;
    let mut event = Event::clone(&small.event);
    // Does not compress.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    })
    .take(3 << 20)
    .collect();
    event.body = Bytes::from(noise);
    let large = Delivery {
        event: Arc::new(event),
        ..small
    };
    let parked = rig.kafka.park(&large, wait(WaitKind::Retry, WAIT)).await;
    assert!(
        matches!(parked, Err(Refused::TooLarge { .. })),
        "{parked:?}"
    );
    rig.kafka.dead_letter(&large, Reason::GaveUp).await.unwrap();
    let letters = listed(&*rig.kafka).await;
    assert!(!letters[0].has_body);
    assert_eq!(letters[0].delivery.event.origin, large.event.origin);
    rig.stop().await;
}
