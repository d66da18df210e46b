//! Topics of a real Kafka that change under a bridge: trimmed, deleted, made anew, widened, and those
//! that are ours.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hookbridge::broker::envelope::Envelope;
use hookbridge::broker::kafka::{Settings, Start};
use hookbridge::broker::tiers::Tiers;
use hookbridge::broker::{Broker as _, Settlement, Wait};
use hookbridge::delivery::{Delivery, Reason, WaitKind};
use hookbridge::event::Event;
use hookbridge::subscription::Uid;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::producer::FutureRecord;
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka_support::*;
use crate::support::eventually;
use crate::support::letters::listed;

const QUIET: Duration = Duration::from_secs(2);

/// The next `count` events, settled.
async fn settled(rig: &mut Rig, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..count {
        let (event, receipt) = rig.event().await;
        all.push(body(&event));
        receipt.settle(Settlement::Ack);
    }
    all
}

async fn delete_topic(topic: &str) {
    let deleted = admin().delete_topics(&[topic], &AdminOptions::new()).await;
    deleted.unwrap().remove(0).unwrap();
}

/// Makes a topic whose namesake may still be on its way out.
async fn create_again(topic: &str, partitions: i32) {
    eventually("the topic is made", PATIENCE, async || {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let made = admin().create_topics(&[new], &AdminOptions::new()).await;
        made.unwrap().remove(0).ok()
    })
    .await;
}

async fn widen(topic: &str, partitions: usize) {
    let new = NewPartitions::new(topic, partitions);
    let made = admin()
        .create_partitions(&[new], &AdminOptions::new())
        .await;
    made.unwrap().remove(0).unwrap();
}

async fn produce_to(topic: &str, partition: i32, body: &str) {
    let client = producer();
    // The producer may not have heard of the partition yet.
    eventually("it is produced", PATIENCE, async || {
        let record = FutureRecord::<(), _>::to(topic)
            .partition(partition)
            .payload(body);
        client.send(record, PATIENCE).await.ok()
    })
    .await;
}

#[tokio::test]
async fn what_retention_took_is_counted_and_the_rest_is_taken() {
    let (topic, group) = (unique("trim"), unique("g"));
    create_topic(&topic, 1).await;
    produce(&topic, (0..5).map(|n| n.to_string())).await;
    let source = source("s", &[&topic], Start::Earliest);
    let gone = source.meters.gone.clone();
    let all = || settings(&group, vec![source.clone()]);
    let mut rig = start(all(), 100);
    settled(&mut rig, 5).await;
    rig.stop().await;
    produce(&topic, (5..20).map(|n| n.to_string())).await;
    let mut below = TopicPartitionList::new();
    let offset = Offset::Offset(12);
    below.add_partition_offset(&topic, 0, offset).unwrap();
    let trimmed = admin().delete_records(&below, &AdminOptions::new()).await;
    trimmed.unwrap();
    let mut rig = start(all(), 100);
    let taken = settled(&mut rig, 8).await;
    let expected: Vec<_> = (12..20).map(|n| n.to_string()).collect();
    assert_eq!(taken, expected);
    assert_eq!(gone.get(), 7);
    assert!(rig.events_until_quiet(QUIET).await.is_empty());
    rig.stop().await;
    produce(&topic, ["20".to_owned()]).await;
    let mut rig = start(all(), 100);
    assert_eq!(settled(&mut rig, 1).await, ["20"]);
    assert_eq!(gone.get(), 7, "counted once");
    rig.stop().await;
}

#[tokio::test]
async fn a_topic_made_anew_under_a_running_bridge_is_taken_from_its_beginning() {
    let (topic, group) = (unique("anew"), unique("g"));
    create_topic(&topic, 1).await;
    let all = || settings(&group, vec![source("s", &[&topic], Start::Earliest)]);
    let mut rig = start(all(), 100);
    produce(&topic, (0..5).map(|n| format!("old {n}"))).await;
    let mut in_hand = Vec::new();
    for _ in 0..5 {
        in_hand.push(rig.event().await);
    }
    let (_, last) = in_hand.pop().unwrap();
    for (_, receipt) in in_hand {
        receipt.settle(Settlement::Ack);
    }
    delete_topic(&topic).await;
    create_again(&topic, 1).await;
    // More than the old one had: where we stood in that is in the middle of this.
    let new: BTreeSet<_> = (0..20).map(|n| format!("new {n}")).collect();
    produce(&topic, new.iter().cloned()).await;
    let mut seen = BTreeSet::new();
    while seen.len() < new.len() {
        let (event, receipt) = rig.event().await;
        seen.insert(body(&event));
        receipt.settle(Settlement::Ack);
    }
    assert_eq!(seen, new);
    // About the record of the old one that had an offset which the new one has too.
    last.settle(Settlement::Ack);
    // What was taken where the old one had stood comes twice.
    for (_, receipt) in rig.events_until_quiet(3 * QUIET).await {
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
    produce(&topic, ["after".to_owned()]).await;
    let mut rig = start(all(), 100);
    assert_eq!(settled(&mut rig, 1).await, ["after"]);
    rig.stop().await;
}

#[tokio::test]
async fn a_topic_made_anew_while_nobody_ran_is_taken_from_its_beginning() {
    let (topic, group) = (unique("anew"), unique("g"));
    create_topic(&topic, 1).await;
    produce(&topic, (0..3).map(|n| format!("old {n}"))).await;
    let all = || settings(&group, vec![source("s", &[&topic], Start::Now)]);
    let rig = start(all(), 100);
    rig.ready().await;
    rig.stop().await;
    delete_topic(&topic).await;
    create_again(&topic, 1).await;
    produce(&topic, (0..5).map(|n| format!("new {n}"))).await;
    let mut rig = start(all(), 100);
    let taken = settled(&mut rig, 5).await;
    assert_eq!(taken, ["new 0", "new 1", "new 2", "new 3", "new 4"]);
    rig.stop().await;
}

#[tokio::test]
async fn a_topic_that_is_missing_at_the_start_is_taken_once_it_is_there() {
    let (topic, group) = (unique("late"), unique("g"));
    let sources = vec![source("s", &[&topic], Start::Now)];
    let mut rig = start(settings(&group, sources), 10);
    rig.ready().await;
    create_topic(&topic, 1).await;
    produce(&topic, ["first".to_owned()]).await;
    assert_eq!(settled(&mut rig, 1).await, ["first"]);
    rig.stop().await;
}

#[tokio::test]
async fn partitions_that_are_added_are_taken_from_their_beginning() {
    let (topic, group) = (unique("wide"), unique("g"));
    create_topic(&topic, 1).await;
    produce(&topic, ["before".to_owned()]).await;
    let sources = vec![source("s", &[&topic], Start::Now)];
    let mut rig = start(settings(&group, sources), 10);
    rig.ready().await;
    widen(&topic, 3).await;
    produce_to(&topic, 2, "third").await;
    produce_to(&topic, 0, "first").await;
    let taken: BTreeSet<_> = settled(&mut rig, 2).await.into_iter().collect();
    assert_eq!(taken, ["first", "third"].map(str::to_owned).into());
    rig.stop().await;
}

/// A delivery of an event that was taken for real.
async fn delivery(rig: &mut Rig, topic: &str) -> Delivery {
    produce(topic, ["x".to_owned()]).await;
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    let now = jiff::Timestamp::now();
    Delivery::first(
        Arc::new(Event::clone(&event)),
        "crm".into(),
        Uid::of_config("crm"),
        now,
    )
}

fn retry(seconds: u64) -> Wait {
    Wait {
        kind: WaitKind::Retry,
        delay: Duration::from_secs(seconds),
    }
}

#[tokio::test]
async fn what_is_parked_comes_due_though_its_tier_is_widened_and_leaves_the_config() {
    let (topic, group) = (unique("tier"), unique("g"));
    create_topic(&topic, 1).await;
    let with = |tiers: &[u64]| Settings {
        tiers: Tiers::new(tiers.iter().copied()).unwrap(),
        ..settings(&group, vec![source("s", &[&topic], Start::Earliest)])
    };
    let mut rig = start(with(&[1, 3]), 100);
    let parked = delivery(&mut rig, &topic).await;
    for _ in 0..10 {
        rig.kafka.park(&parked, retry(3)).await.unwrap();
    }
    widen(&format!("{group}.retry.3"), 4).await;
    for _ in 0..10 {
        rig.kafka.park(&parked, retry(3)).await.unwrap();
    }
    rig.stop().await;
    // Without that tier, and with another one.
    let mut rig = start(with(&[1, 2]), 100);
    for _ in 0..20 {
        let (due, _, receipt) = rig.due().await;
        assert_eq!(due, parked);
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
    // It is there again.
    let mut rig = start(with(&[1, 3]), 100);
    rig.ready().await;
    rig.kafka.park(&parked, retry(3)).await.unwrap();
    let (_, _, receipt) = rig.due().await;
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn a_pattern_takes_nothing_of_ours_and_our_headers_count_for_nothing() {
    let group = unique("g");
    let topic = format!("{group}-orders");
    create_topic(&topic, 1).await;
    let pattern = format!("^{group}");
    let sources = vec![source("s", &[&pattern], Start::Earliest)];
    let mut rig = start(settings(&group, sources), 100);
    let parked = delivery(&mut rig, &topic).await;
    rig.kafka.park(&parked, retry(1)).await.unwrap();
    rig.kafka
        .dead_letter(&parked, Reason::GaveUp)
        .await
        .unwrap();
    let (_, _, receipt) = rig.due().await;
    receipt.settle(Settlement::Ack);
    // As somebody shovels a dead letter back: an event like any other, with its id.
    let envelope = Envelope::dead(&parked, Reason::GaveUp, jiff::Timestamp::now());
    let shovelled = headers_of(&envelope, None);
    let shovelled = FutureRecord::<(), _>::to(&topic)
        .payload("shovelled")
        .headers(shovelled);
    producer().send(shovelled, PATIENCE).await.unwrap();
    // Longer than it takes to look for new topics.
    let all = rig.events_until_quiet(Duration::from_secs(6)).await;
    let bodies: Vec<_> = all.iter().map(|(event, _)| body(event)).collect();
    assert_eq!(bodies, ["shovelled"]);
    let (event, _) = &all[0];
    assert_eq!(event.id, parked.event.id);
    assert!(event.headers.0.is_empty(), "{:?}", event.headers);
    for (_, receipt) in all {
        receipt.settle(Settlement::Ack);
    }
    rig.stop().await;
}

#[tokio::test]
async fn envelopes_of_other_releases_are_read_or_kept_whole() {
    let (topic, group) = (unique("release"), unique("g"));
    create_topic(&topic, 1).await;
    let sources = vec![source("s", &[&topic], Start::Earliest)];
    let mut rig = start(settings(&group, sources), 100);
    let parked = delivery(&mut rig, &topic).await;
    let seconds = Duration::from_secs(1);
    let envelope = Envelope::parked(&parked, WaitKind::Retry, seconds, Duration::ZERO);
    let tier = format!("{group}.retry.1");
    for version in ["2", "3"] {
        let headers = headers_of(&envelope, Some(version));
        let record = FutureRecord::<(), _>::to(&tier)
            .payload("x")
            .headers(headers);
        producer().send(record, PATIENCE).await.unwrap();
    }
    // The next release's is read, with what this one knows of it.
    let (due, _, receipt) = rig.due().await;
    assert_eq!(due, parked);
    receipt.settle(Settlement::Ack);
    // One that is newer still waits among the dead letters, as it came.
    let letters = eventually("the letter is there", PATIENCE, async || {
        let letters = listed(&*rig.kafka).await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert_eq!(letters[0].reason, Reason::EnvelopeUnreadable);
    assert_eq!(&letters[0].delivery.event.body[..], b"x");
    rig.stop().await;
}
