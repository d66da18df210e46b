//! Parked deliveries on Kafka: an order reaches every instance, those started later, and what lies
//! far behind in a backlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use hookbridge::broker::envelope::Envelope;
use hookbridge::broker::kafka::{Kafka, Settings};
use hookbridge::broker::parked::{Deed, Order, Unwatched, Whose};
use hookbridge::broker::tiers::Tiers;
use hookbridge::broker::upkeep::{Adopted, Known, Upkeep as _};
use hookbridge::broker::{Broker as _, Received, Settlement, Wait};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::{Event, EventId, Headers, Origin, Place};
use hookbridge::subscription::Uid;
use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::producer::FutureRecord;
use tokio::time::timeout;

use crate::kafka_support::*;
use crate::support::eventually;

const LONG: Duration = Duration::from_secs(600);

fn delivery(name: &str) -> Delivery {
    let event = Event {
        id: EventId::random(),
        topic: "orders".into(),
        kind: "orders".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: "x".into(),
        origin: Origin {
            broker: "lake".into(),
            place: Place::Kafka {
                topic: "orders".into(),
                partition: 0,
                offset: 0,
            },
        },
    };
    let uid = Uid::of_config(name);
    Delivery::first(Arc::new(event), name.into(), uid, jiff::Timestamp::now())
}

fn long(group: &str, topic: &str) -> Settings {
    let source = source(
        "orders",
        &[topic],
        hookbridge::broker::kafka::Start::Earliest,
    );
    Settings {
        tiers: Tiers::new([1, 600]).expect("tiers"),
        ..settings(group, vec![source])
    }
}

/// A tier as the bridge makes it, with so many partitions.
async fn create_tier(topic: &str, partitions: i32) {
    let tier = NewTopic::new(topic, partitions, TopicReplication::Fixed(1))
        .set("cleanup.policy", "delete")
        .set("retention.ms", "-1")
        .set("message.timestamp.type", "LogAppendTime");
    let made = admin().create_topics(&[tier], &AdminOptions::new()).await;
    made.expect("kafka is there").remove(0).expect("made");
}

async fn park(kafka: &Arc<Kafka>, name: &str, count: usize) {
    park_in_turn(kafka, &[name], count).await;
}

/// One of each name after the other.
async fn park_in_turn(kafka: &Arc<Kafka>, names: &[&str], count: usize) {
    let wait = Wait {
        kind: WaitKind::Retry,
        delay: LONG,
    };
    let parking = stream::iter(0..count).map(|number| {
        let (kafka, name) = (kafka.clone(), names[number % names.len()]);
        async move { kafka.park(&delivery(name), wait).await }
    });
    let mut parked = parking.buffer_unordered(256);
    while let Some(parked) = parked.next().await {
        parked.expect("parked");
    }
}

async fn order(kafka: &Kafka, deed: Deed, name: &str) -> u64 {
    let whose = Whose::Of {
        uid: Uid::of_config(name),
        name: name.into(),
    };
    let order = Order::new(deed, whose, None);
    let done = kafka.order(&order, &Unwatched::default()).await;
    done.expect("given").count
}

async fn waiting(kafka: &Kafka) -> u64 {
    let rows = kafka.parked().await.expect("listed");
    assert!(rows.iter().all(|row| !row.at_least));
    rows.iter().map(|row| row.count).sum()
}

/// Takes what is due here until nothing comes for two seconds.
async fn all_due(rig: &mut Rig) -> Vec<Delivery> {
    let mut all = Vec::new();
    while let Ok(Some(received)) = timeout(Duration::from_secs(2), rig.retries.recv()).await {
        let Received::Due(delivery, _, receipt) = received else {
            panic!("not due");
        };
        receipt.settle(Settlement::Ack);
        all.push(delivery);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_reaches_both_instances_and_one_that_starts_later() {
    let (topic, group) = (unique("orders"), unique("g"));
    create_topic(&topic, 1).await;
    // Wider than all else of the group together, so that both instances get some of it.
    create_tier(&format!("{group}.retry.600"), 8).await;
    let mut one = start(long(&group, &topic), 200);
    one.ready().await;
    let mut two = start(long(&group, &topic), 200);
    two.ready().await;
    // Somebody who runs no bridge gives the orders.
    let outside = Kafka::new(long(&group, &topic)).expect("settings");
    park(&outside, "erp", 50).await;
    assert_eq!(waiting(&outside).await, 50);
    // Both take part as soon as the group has given both some of the partitions.
    let (mut of_one, mut of_two) = (0, 0);
    for round in 0..15 {
        for _ in 0..20 {
            park(&outside, "crm", 1).await;
        }
        let began = Instant::now();
        assert_eq!(order(&outside, Deed::Now, "crm").await, 20, "{round}");
        let (first, second) = tokio::join!(all_due(&mut one), all_due(&mut two));
        println!(
            "{} and {} due in {:?}",
            first.len(),
            second.len(),
            began.elapsed()
        );
        assert_eq!(first.len() + second.len(), 20);
        let mut all = first.iter().chain(&second);
        assert!(all.all(|due| &*due.subscription == "crm"));
        of_one += first.len();
        of_two += second.len();
        if of_one > 0 && of_two > 0 {
            break;
        }
    }
    assert!(of_one > 0 && of_two > 0, "one took all");
    eventually("the others are left", PATIENCE, async || {
        (waiting(&outside).await == 50).then_some(())
    })
    .await;
    // Parked after the order: not meant by it.
    park(&one.kafka, "crm", 10).await;
    assert!(all_due(&mut one).await.is_empty());
    one.stop().await;
    two.stop().await;
    // Given while nobody runs.
    assert_eq!(order(&outside, Deed::Drop, "erp").await, 50);
    assert_eq!(order(&outside, Deed::Now, "erp").await, 50);
    assert_eq!(order(&outside, Deed::Now, "crm").await, 10);
    let mut three = start(long(&group, &topic), 200);
    three.ready().await;
    let (due, _, receipt) = three.due().await;
    receipt.settle(Settlement::Ack);
    let mut all = all_due(&mut three).await;
    all.push(due);
    assert_eq!(all.len(), 10);
    assert!(all.iter().all(|due| &*due.subscription == "crm"));
    eventually("nothing is left", PATIENCE, async || {
        (waiting(&outside).await == 0).then_some(())
    })
    .await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_reaches_far_behind_a_backlog() {
    let (topic, group) = (unique("orders"), unique("g"));
    create_topic(&topic, 1).await;
    let mut rig = start(long(&group, &topic), 200);
    rig.ready().await;
    // More than is read ahead.
    park(&rig.kafka, "erp", 9_000).await;
    park(&rig.kafka, "crm", 300).await;
    let began = Instant::now();
    assert_eq!(order(&rig.kafka, Deed::Now, "crm").await, 300);
    let (due, _, receipt) = rig.due().await;
    receipt.settle(Settlement::Ack);
    println!("the first was due after {:?}", began.elapsed());
    let mut all = all_due(&mut rig).await;
    all.push(due);
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|due| &*due.subscription == "crm"));
    eventually("the others are left", PATIENCE, async || {
        (waiting(&rig.kafka).await == 9_000).then_some(())
    })
    .await;
    rig.stop().await;
    let mut again = start(long(&group, &topic), 200);
    again.ready().await;
    assert!(all_due(&mut again).await.is_empty(), "delivered twice");
    order(&again.kafka, Deed::Drop, "erp").await;
    eventually("nothing is left", PATIENCE, async || {
        (waiting(&again.kafka).await == 0).then_some(())
    })
    .await;
    assert!(all_due(&mut again).await.is_empty());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_order_picked_from_between_others_does_not_come_again_after_a_restart() {
    let (topic, group) = (unique("orders"), unique("g"));
    create_topic(&topic, 1).await;
    let mut rig = start(long(&group, &topic), 200);
    rig.ready().await;
    // More than is read ahead, and many more gaps than a commit's metadata has room for.
    const EACH: u64 = 5_000;
    park_in_turn(&rig.kafka, &["erp", "crm"], 2 * EACH as usize).await;
    assert_eq!(order(&rig.kafka, Deed::Now, "crm").await, EACH);
    let mut sent = 0;
    while sent < EACH {
        let (due, _, receipt) = rig.due().await;
        assert_eq!(&*due.subscription, "crm");
        receipt.settle(Settlement::Ack);
        sent += 1;
    }
    eventually("the others are left", PATIENCE, async || {
        (waiting(&rig.kafka).await == EACH).then_some(())
    })
    .await;
    rig.stop().await;
    let mut again = start(long(&group, &topic), 200);
    again.ready().await;
    let twice = all_due(&mut again).await;
    assert_eq!(twice.len(), 0, "delivered twice");
    assert_eq!(waiting(&again.kafka).await, EACH);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_reaches_what_is_on_its_way_to_another_tier() {
    let (topic, group) = (unique("orders"), unique("g"));
    create_topic(&topic, 1).await;
    let mut rig = start(long(&group, &topic), 200);
    rig.ready().await;
    // So small that nothing gets there: what is to go there is tried again and again.
    let tier = format!("{group}.retry.600");
    let small = AlterConfig::new(ResourceSpecifier::Topic(&tier)).set("max.message.bytes", "100");
    let altered = admin().alter_configs([&small], &AdminOptions::new()).await;
    altered.expect("kafka is there").remove(0).expect("altered");
    let seconds = Duration::from_secs(601);
    for name in ["crm", "erp"] {
        let envelope = Envelope::parked(&delivery(name), WaitKind::Retry, seconds, LONG);
        let shorter = format!("{group}.retry.1");
        let record = FutureRecord::<(), _>::to(&shorter)
            .payload("x")
            .headers(headers_of(&envelope, None));
        producer().send(record, PATIENCE).await.expect("produced");
    }
    // Over by then is the wait on the shorter one.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(order(&rig.kafka, Deed::Now, "crm").await, 1);
    let (due, _, receipt) = rig.due().await;
    assert_eq!(&*due.subscription, "crm");
    receipt.settle(Settlement::Ack);
    assert_eq!(order(&rig.kafka, Deed::Drop, "erp").await, 1);
    eventually("nothing is left", PATIENCE, async || {
        (waiting(&rig.kafka).await == 0).then_some(())
    })
    .await;
    assert!(all_due(&mut rig).await.is_empty());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_delivery_of_ours_does_not_stop_an_adoption() {
    let (topic, old, new) = (unique("orders"), unique("old"), unique("new"));
    create_topic(&topic, 1).await;
    let rig = start(long(&old, &topic), 200);
    rig.ready().await;
    rig.stop().await;
    let left = Kafka::new(long(&old, &topic)).expect("settings");
    park(&left, "crm", 20).await;
    produce(&format!("{old}.retry.600"), ["not ours".to_owned()]).await;
    park(&left, "crm", 20).await;
    let adopter = Kafka::new(long(&new, &topic)).expect("settings");
    let adopted = adopter.adopt(&old, &Known::default()).await;
    assert_eq!(
        adopted.expect("adopted"),
        Adopted {
            parked: 40,
            dead: 1
        }
    );
    assert_eq!((waiting(&left).await, waiting(&adopter).await), (0, 40));
    let again = adopter.adopt(&old, &Known::default()).await;
    assert_eq!(again.expect("adopted"), Adopted::default());
}
