//! Taking from a real Kafka: what arrives, what is taken again, and where a source begins.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use hookbridge::broker::kafka::Start;
use hookbridge::broker::{Broker as _, Health, Publication, Settlement};
use hookbridge::event::{HeaderValue, Headers, Place};
use rdkafka::bindings as native;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;

use crate::kafka_support::*;

const QUIET: Duration = Duration::from_secs(2);

#[tokio::test]
async fn keys_headers_and_odd_messages_arrive_as_they_are() {
    let (topic, group) = (unique("odd"), unique("g"));
    create_topic(&topic, 1).await;
    let client = producer();
    let headers = OwnedHeaders::new()
        .insert(Header {
            key: "tenant",
            value: Some("a"),
        })
        .insert(Header {
            key: "tenant",
            value: Some(&b"\xff\x00"[..]),
        })
        .insert::<str>(Header {
            key: "none",
            value: None,
        });
    let full = FutureRecord::to(&topic)
        .key(&b"\x00key"[..])
        .payload(&b"\xffbody"[..])
        .headers(headers);
    client.send(full, PATIENCE).await.unwrap();
    let tombstone = FutureRecord::<[u8], [u8]>::to(&topic).key(&b"gone"[..]);
    client.send(tombstone, PATIENCE).await.unwrap();
    let plain = FutureRecord::<(), str>::to(&topic).payload("plain");
    client.send(plain, PATIENCE).await.unwrap();
    let raw = OwnedHeaders::new();
    let name = b"bad\xff\xfename";
    // SAFETY: the list is alive, name and value have the lengths given and are copied.
    unsafe {
        let list = std::ptr::from_ref(raw.as_borrowed()).cast_mut().cast();
        let value = b"v".as_ptr().cast();
        native::rd_kafka_header_add(list, name.as_ptr().cast(), name.len() as isize, value, 1);
    }
    let raw = FutureRecord::<(), str>::to(&topic)
        .payload("raw")
        .headers(raw);
    client.send(raw, PATIENCE).await.unwrap();

    let mut rig = start(
        settings(&group, vec![source("s", &[&topic], Start::Earliest)]),
        16,
    );
    let (event, receipt) = rig.event().await;
    assert_eq!(event.key, Some(Bytes::from_static(b"\x00key")));
    assert_eq!(event.body, Bytes::from_static(b"\xffbody"));
    let expected = Headers(vec![
        ("tenant".into(), HeaderValue::text("a")),
        (
            "tenant".into(),
            HeaderValue::Bytes(Bytes::from_static(b"\xff\x00")),
        ),
        ("none".into(), HeaderValue::Null),
    ]);
    assert_eq!(event.headers, expected);
    assert_eq!(&*event.topic, topic);
    let place = Place::Kafka {
        topic: topic.as_str().into(),
        partition: 0,
        offset: 0,
    };
    assert_eq!(event.origin.place, place);
    receipt.settle(Settlement::Ack);

    let (event, receipt) = rig.event().await;
    assert_eq!(
        (event.body.len(), event.key.as_deref()),
        (0, Some(&b"gone"[..]))
    );
    receipt.settle(Settlement::Ack);

    let (event, receipt) = rig.event().await;
    assert_eq!((body(&event).as_str(), &event.key), ("plain", &None));
    receipt.settle(Settlement::Ack);

    let (event, receipt) = rig.event().await;
    assert_eq!(event.headers.0[0].0, "bad%FF%FEname");
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn a_restart_takes_exactly_what_was_not_settled() {
    let (topic, group) = (unique("ooo"), unique("g"));
    create_topic(&topic, 1).await;
    produce(&topic, (0..300).map(|n| n.to_string())).await;
    let all = || settings(&group, vec![source("s", &[&topic], Start::Earliest)]);

    let mut rig = start(all(), 1_000);
    let mut unsettled = BTreeSet::new();
    let mut kept = Vec::new();
    let mut ids = std::collections::BTreeMap::new();
    for _ in 0..300 {
        let (event, receipt) = rig.event().await;
        let n: u32 = body(&event).parse().unwrap();
        ids.insert(n, event.id.clone());
        // The head hangs, and a few behind it.
        if n == 0 || n % 37 == 5 {
            unsettled.insert(n);
            kept.push(receipt);
        } else {
            receipt.settle(Settlement::Ack);
        }
    }
    // Long enough for a commit, then as if it were killed: nothing more is answered.
    tokio::time::sleep(Duration::from_millis(600)).await;
    rig.drain.cancel();
    rig.stop().await;
    drop(kept);

    let mut rig = start(all(), 1_000);
    let again = {
        let mut again = Vec::new();
        again.push(rig.event().await);
        again.extend(rig.events_until_quiet(QUIET).await);
        again
    };
    let numbers: Vec<u32> = again
        .iter()
        .map(|(e, _)| body(e).parse().unwrap())
        .collect();
    assert_eq!(numbers, unsettled.into_iter().collect::<Vec<_>>());
    for (event, _) in &again {
        let n: u32 = body(event).parse().unwrap();
        assert_eq!(
            event.id, ids[&n],
            "an event keeps its id when it comes again"
        );
    }
    for (_, receipt) in again {
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_dropped_receipt_comes_again_and_others_do_not() {
    let (topic, group) = (unique("drop"), unique("g"));
    create_topic(&topic, 1).await;
    produce(&topic, (0..20).map(|n| n.to_string())).await;
    let mut rig = start(
        settings(&group, vec![source("s", &[&topic], Start::Earliest)]),
        100,
    );
    let mut in_flight = None;
    for n in 0..20 {
        let (event, receipt) = rig.event().await;
        assert_eq!(body(&event), n.to_string());
        match n {
            7 => drop(receipt),
            9 => in_flight = Some(receipt),
            _ => receipt.settle(Settlement::Ack),
        }
    }
    let (event, receipt) = rig.event().await;
    assert_eq!(body(&event), "7");
    receipt.settle(Settlement::Ack);
    assert!(rig.events_until_quiet(QUIET).await.is_empty());
    in_flight.unwrap().settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn a_full_window_holds_the_source_back_without_losing_its_place_in_the_group() {
    let (topic, group) = (unique("full"), unique("g"));
    create_topic(&topic, 2).await;
    produce(&topic, (0..500).map(|n| n.to_string())).await;
    let mut rig = start(
        settings(&group, vec![source("s", &[&topic], Start::Earliest)]),
        10,
    );
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(rig.event().await);
    }
    // Past the patience, so the partitions are paused.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(rig.events.try_recv().is_err());
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (event, receipt) in held {
        assert!(seen.insert(body(&event)));
        receipt.settle(Settlement::Ack);
    }
    while seen.len() < 500 {
        let (event, receipt) = rig.event().await;
        assert!(seen.insert(body(&event)), "{} came twice", body(&event));
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
}

#[tokio::test]
async fn now_begins_at_the_end_and_holds_for_what_comes_while_we_are_away() {
    let (topic, group) = (unique("now"), unique("g"));
    create_topic(&topic, 1).await;
    produce(&topic, ["old".to_owned()]).await;
    let all = || settings(&group, vec![source("s", &[&topic], Start::Now)]);
    let rig = start(all(), 10);
    rig.ready().await;
    rig.stop().await;
    produce(&topic, ["while away".to_owned()]).await;
    let mut rig = start(all(), 10);
    let (event, receipt) = rig.event().await;
    assert_eq!(body(&event), "while away");
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn a_time_begins_at_the_first_event_of_that_time() {
    let (topic, group) = (unique("time"), unique("g"));
    create_topic(&topic, 1).await;
    let client = producer();
    let base = jiff::Timestamp::now().as_millisecond() - 100_000;
    for n in 0..5 {
        let text = n.to_string();
        let record = FutureRecord::<(), _>::to(&topic)
            .payload(&text)
            .timestamp(base + n * 1_000);
        client.send(record, PATIENCE).await.unwrap();
    }
    let at = jiff::Timestamp::from_millisecond(base + 2_500).unwrap();
    let mut rig = start(
        settings(&group, vec![source("s", &[&topic], Start::At(at))]),
        10,
    );
    let (event, _receipt) = rig.event().await;
    assert_eq!(body(&event), "3");
    rig.drain.cancel();
    rig.stop().await;
}

#[tokio::test]
async fn old_events_are_settled_without_being_sent() {
    let (topic, group) = (unique("age"), unique("g"));
    create_topic(&topic, 1).await;
    let client = producer();
    let day_ago = jiff::Timestamp::now().as_millisecond() - 86_400_000;
    let old = FutureRecord::<(), str>::to(&topic)
        .payload("old")
        .timestamp(day_ago);
    client.send(old, PATIENCE).await.unwrap();
    produce(&topic, ["young".to_owned()]).await;
    let mut aged = source("s", &[&topic], Start::Earliest);
    aged.ignore_older_than = Some(Duration::from_secs(3_600));
    let mut rig = start(settings(&group, vec![aged]), 10);
    let (event, receipt) = rig.event().await;
    assert_eq!(body(&event), "young");
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn a_new_topic_that_matches_is_taken_from_its_beginning() {
    let (family, group) = (unique("fam"), unique("g"));
    create_topic(&format!("{family}.a"), 1).await;
    let pattern = format!("^{family}\\..*");
    let mut rig = start(
        settings(&group, vec![source("s", &[&pattern], Start::Now)]),
        10,
    );
    rig.ready().await;
    let late = format!("{family}.b");
    create_topic(&late, 1).await;
    produce(&late, ["first".to_owned()]).await;
    let (event, receipt) = rig.event().await;
    assert_eq!(
        (&*event.topic, body(&event).as_str()),
        (late.as_str(), "first")
    );
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn overlapping_sources_are_an_error_that_is_shown() {
    let (topic, group) = (unique("over"), unique("g"));
    create_topic(&topic, 1).await;
    let pattern = format!("^{topic}$");
    let sources = vec![
        source("one", &[&topic], Start::Now),
        source("two", &[&pattern], Start::Now),
    ];
    let rig = start(settings(&group, sources), 10);
    let shown = async {
        loop {
            match rig.kafka.health() {
                Health::Down { why } if why.contains("belongs to source") => return,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, shown).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn a_published_event_keeps_its_id_type_key_and_headers() {
    let (topic, group) = (unique("pub"), unique("g"));
    create_topic(&topic, 1).await;
    let mut rig = start(
        settings(&group, vec![source("s", &[&topic], Start::Earliest)]),
        10,
    );
    rig.ready().await;
    let publication = Publication {
        id: Some("my.id".into()),
        kind: Some("order.made".into()),
        key: Some(Bytes::from_static(b"k")),
        content_type: Some("application/json".into()),
        headers: Headers(vec![("tenant".into(), HeaderValue::text("t"))]),
        ..publication(&topic, "{}")
    };
    rig.kafka.publish(publication).await.unwrap();
    let (event, receipt) = rig.event().await;
    assert_eq!(event.id.as_str(), "my%2Eid");
    assert_eq!(&*event.kind, "order.made");
    assert_eq!(event.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(event.content_type.as_deref(), Some("application/json"));
    assert_eq!(event.headers.get("tenant"), Some(&HeaderValue::text("t")));
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}
