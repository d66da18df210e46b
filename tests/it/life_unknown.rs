//! A delivery that comes back to a bridge that does not know its subscription.

use std::sync::Arc;
use std::time::Duration;

use hookbridge::broker::embedded::{Embedded, Settings as EmbeddedSettings};
use hookbridge::broker::rabbitmq::RabbitMq;
use hookbridge::broker::{Broker, Wait};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::{Event, EventId, Headers, Origin, Place};
use hookbridge::meters::Meters;
use hookbridge::store::{Registered, Step, Store};
use hookbridge::subscription::Uid;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::contract::rig::Rig;
use crate::path::subscription;
use crate::rabbitmq_support::{amqp, settings};
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::Receiver;
use crate::support::{SECRET, eventually};

const WITHIN: Duration = Duration::from_secs(30);

/// One that has been unknown for so long.
fn unknown_for(id: &str, minutes: i64) -> Delivery {
    let event = Event {
        id: EventId::kept(id).expect("an id"),
        topic: "orders.created".into(),
        kind: "orders.created".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: id.to_owned().into(),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders.created".into(),
                sequence: 1,
            },
        },
    };
    let uid = Uid::of_config("forgotten");
    let now = Timestamp::now();
    let mut delivery = Delivery::first(Arc::new(event), "forgotten".into(), uid, now);
    delivery.progress.unknown_since = Some(now - SignedDuration::from_mins(minutes));
    delivery
}

async fn park(broker: &dyn Broker) {
    let wait = Wait {
        kind: WaitKind::Retry,
        delay: Duration::from_secs(1),
    };
    for (id, minutes) in [("lately", 1), ("long_since", 11)] {
        let parked = broker.park(&unknown_for(id, minutes), wait).await;
        parked.expect("parked");
    }
}

/// One is held further, the other a dead letter; neither is sent to anybody.
async fn one_is_held_and_one_is_dead(bus: &Bus, bridge: &mut Bridge, receiver: &Receiver) {
    eventually("one is a dead letter", WITHIN, async || {
        bridge
            .log()
            .contains("no such subscription for")
            .then_some(())
    })
    .await;
    eventually("the other is held", WITHIN, async || {
        let (_, listed) = bridge.get("/v1/parked").await;
        let listed: serde_json::Value = serde_json::from_str(&listed).ok()?;
        let all = listed["parked"].as_array()?.iter();
        let count: u64 = all.filter_map(|one| one["count"].as_u64()).sum();
        (count == 1).then_some(())
    })
    .await;
    let letters = bus.letters(bridge, 1).await;
    let letters: Vec<_> = letters
        .iter()
        .map(|it| (it.reason.as_str(), &it.body[..]))
        .collect();
    assert_eq!(letters, [("subscription_unknown", &b"long_since"[..])]);
    assert_eq!(receiver.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_is_held_for_ten_minutes_and_then_a_dead_letter() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let config = bus.config(&subscription("crm", "#", &receiver.url("/"), ""));
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Embedded::open(EmbeddedSettings {
        name: "here".into(),
        group: bus.group.as_str().into(),
        path: folder.path().join("data/embedded-here.redb"),
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: Vec::new(),
    })
    .expect("opens");
    park(&*broker).await;
    drop(broker);
    let bridge = Bridge::start_in(folder, &config, Vec::new()).await;
    let mut bridge = bridge.ready().await;
    one_is_held_and_one_is_dead(&bus, &mut bridge, &receiver).await;
}

/// Its endpoint is one that the config has no more.
async fn registered(data_dir: &std::path::Path) -> Uid {
    let meters = Meters::new();
    let (bytes, flush) = (meters.store_bytes.clone(), meters.store_flush.clone());
    let store = Store::open(data_dir, bytes, flush).expect("the store");
    let uid = Uid::from_stored("api:0190a0a0a0a07000800000000000a001");
    let now = Timestamp::now();
    let record = Registered {
        uid: uid.clone(),
        name: "forgotten".to_owned(),
        revision: 1,
        made_at: now,
        changed_at: now,
        document: json!({ "name": "forgotten", "topics": ["#"], "endpoint": "shop" }),
        endpoint: None,
        old_until: Vec::new(),
    };
    let (record, answered) = (Box::new(record), None);
    let put = Step::Put { record, answered };
    store.fold(vec![put]).await.expect("kept");
    uid
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_one_that_cannot_be_used_now_waits_until_it_can() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let without = bus.config(&subscription("crm", "elsewhere", &receiver.url("/"), ""));
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    std::fs::create_dir_all(&data_dir).expect("a folder");
    let uid = registered(&data_dir).await;
    let broker = Embedded::open(EmbeddedSettings {
        name: "here".into(),
        group: bus.group.as_str().into(),
        path: data_dir.join("embedded-here.redb"),
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: Vec::new(),
    })
    .expect("opens");
    let waits = Delivery {
        uid,
        ..unknown_for("long_since", 11)
    };
    let wait = Wait {
        kind: WaitKind::Retry,
        delay: Duration::ZERO,
    };
    broker.park(&waits, wait).await.expect("parked");
    drop(broker);
    let bridge = Bridge::start_in(folder, &without, Vec::new()).await;
    let bridge = bridge.ready().await;
    eventually("it is held", WITHIN, async || {
        let (_, listed) = bridge.get("/v1/parked").await;
        listed.contains("\"kind\":\"hold\"").then_some(())
    })
    .await;
    assert!(!bridge.log().contains("no such subscription"));
    let shop = format!(
        "endpoints: {{ shop: {{ url: '{}', secret: '{SECRET}' }} }}\n",
        receiver.url("/shop")
    );
    bridge.reload(&(shop + &without));
    let order = r#"{"subscription": "forgotten"}"#;
    let request = eventually("it is delivered", WITHIN, async || {
        let _ = bridge.post("/v1/parked/now", order).await;
        receiver.requests().pop()
    })
    .await;
    assert_eq!(
        (&*request.path, &request.body[..]),
        ("/shop", &b"long_since"[..])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_is_held_for_ten_minutes_and_then_a_dead_letter_on_rabbitmq() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::rabbitmq(amqp()).await;
    let rig = Rig::run(RabbitMq::new(settings(&bus.group, Vec::new()))).await;
    park(&*rig.broker).await;
    rig.stop().await;
    let config = bus.config(&subscription("crm", "#", &receiver.url("/"), ""));
    let mut bridge = Bridge::start(&config).await.ready().await;
    one_is_held_and_one_is_dead(&bus, &mut bridge, &receiver).await;
}
