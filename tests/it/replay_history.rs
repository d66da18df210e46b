//! The past of a Kafka source: exactly what it made, by the records' times, and nobody notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hookbridge::broker::kafka::Start;
use hookbridge::broker::{Broker as _, History, NotPossible, Settlement, Span};
use hookbridge::event::Event;
use jiff::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;

use crate::kafka_support::{
    self as kafka, PATIENCE, Rig, admin, create_topic, producer, settings, source, unique,
};
use crate::support::eventually;

/// Produces `count` records, the nth at `first` and n minutes, to one partition after the other.
pub async fn produce_minutes(
    topics: &[&str],
    partitions: i32,
    first: Timestamp,
    count: i32,
    body: impl Fn(i32) -> String,
) {
    let producer = producer();
    for number in 0..count {
        let at = first + Duration::from_secs(60 * number as u64);
        let topic = topics[(number / partitions) as usize % topics.len()];
        let body = body(number);
        let header = Header {
            key: "n",
            value: Some(&*body),
        };
        let record = FutureRecord::<(), _>::to(topic)
            .partition(number % partitions)
            .timestamp(at.as_millisecond())
            .headers(OwnedHeaders::new().insert(header))
            .payload(&body);
        producer.send(record, PATIENCE).await.unwrap();
    }
}

/// What `group` has committed of the topics' partitions.
pub async fn committed(group: &str, topics: &[&str], partitions: i32) -> BTreeMap<String, String> {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", kafka::bootstrap())
        .set("group.id", group)
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..partitions {
            list.add_partition(topic, partition);
        }
    }
    let asked = tokio::task::spawn_blocking(move || consumer.committed_offsets(list, PATIENCE));
    let found = asked.await.unwrap().unwrap();
    let elements = found.elements();
    let place = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        format!("{}/{}", e.topic(), e.partition())
    };
    elements
        .iter()
        .map(|e| (place(e), format!("{:?}", e.offset())))
        .collect()
}

fn span(since: Timestamp, until: Timestamp) -> Span {
    Span { since, until }
}

fn minutes(first: Timestamp, count: u64) -> Timestamp {
    first + Duration::from_secs(60 * count)
}

async fn all(past: &mut dyn History) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    while let Some(event) = past.next().await.unwrap() {
        events.push(event);
    }
    events
}

async fn take_all(rig: &mut Rig, count: usize) -> BTreeMap<String, Arc<Event>> {
    let mut taken = BTreeMap::new();
    for _ in 0..count {
        let (event, receipt) = rig.event().await;
        receipt.settle(Settlement::Ack);
        taken.insert(event.id.to_string(), event);
    }
    taken
}

fn hours_ago(hours: u64) -> Timestamp {
    Timestamp::now() - Duration::from_secs(3_600 * hours)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_what_was_taken_of_every_partition_and_topic() {
    let (one, two) = (unique("past.a"), unique("past.b"));
    let topics = [&*one, &*two];
    for topic in topics {
        create_topic(topic, 3).await;
    }
    let first = hours_ago(5);
    produce_minutes(&topics, 3, first, 60, |n| n.to_string()).await;
    let pattern = format!("^{one}$");
    let group = unique("past");
    let settings = settings(
        &group,
        vec![source("s", &[&pattern, &two], Start::Earliest)],
    );
    let mut rig = kafka::start(settings, 256);
    let taken = take_all(&mut rig, 60).await;
    let before = eventually("all is committed", PATIENCE, async || {
        let now = committed(&group, &topics, 3).await;
        let all = now.values().all(|offset| offset == "Offset(10)");
        all.then_some(now)
    })
    .await;

    let wanted = span(minutes(first, 20), minutes(first, 50));
    let mut past = rig.kafka.history("s", wanted).await.unwrap();
    assert_eq!(past.total(), 30);
    let found = all(&mut *past).await;
    let mut numbers: Vec<u64> = found
        .iter()
        .map(|event| kafka::body(event).parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (20..50).collect::<Vec<_>>());
    for event in &found {
        assert_eq!(taken[event.id.as_str()], *event, "the same in every part");
    }

    assert_eq!(committed(&group, &topics, 3).await, before);
    let own = committed(&format!("{group}.history"), &topics, 3).await;
    assert!(own.values().all(|offset| offset == "Invalid"), "{own:?}");
    let more = rig.events_until_quiet(Duration::from_millis(500)).await;
    assert!(more.is_empty(), "{more:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_lie_out_of_order_are_found_by_their_time() {
    let topic = unique("past");
    create_topic(&topic, 1).await;
    let first = hours_ago(3);
    let producer = producer();
    // Minutes after the first, in the order in which they lie.
    for minute in [0, 10, 7, 30, 9, 31, 25, 60] {
        let body = minute.to_string();
        let record = FutureRecord::<(), _>::to(&topic)
            .timestamp(minutes(first, minute).as_millisecond())
            .payload(&body);
        producer.send(record, PATIENCE).await.unwrap();
    }
    let settings = settings(&unique("past"), vec![source("s", &[&topic], Start::Now)]);
    let kafka = hookbridge::broker::kafka::Kafka::new(settings).unwrap();
    let wanted = span(minutes(first, 7), minutes(first, 26));
    let mut past = kafka.history("s", wanted).await.unwrap();
    let found = all(&mut *past).await;
    let bodies: Vec<_> = found.iter().map(|event| kafka::body(event)).collect();
    assert_eq!(bodies, ["10", "7", "9", "25"]);
    let oldest = kafka.reach("s").await.unwrap().oldest.unwrap();
    assert_eq!(oldest.as_millisecond(), first.as_millisecond());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_topic_no_longer_has_is_said() {
    let topic = unique("past");
    create_topic(&topic, 1).await;
    let first = hours_ago(3);
    produce_minutes(&[&topic], 1, first, 60, |n| n.to_string()).await;
    let mut below = TopicPartitionList::new();
    below
        .add_partition_offset(&topic, 0, rdkafka::Offset::Offset(30))
        .unwrap();
    let options = rdkafka::admin::AdminOptions::new();
    admin().delete_records(&below, &options).await.unwrap();

    let of = |sources| settings(&unique("past"), sources);
    let mut ignoring = source("s", &[&topic], Start::Now);
    ignoring.ignore_older_than = Some(Duration::from_secs(60));
    let nowhere = source("none", &[&unique("nowhere")], Start::Now);
    let kafka = hookbridge::broker::kafka::Kafka::new(of(vec![ignoring, nowhere])).unwrap();
    let refused = |source: &'static str, from: u64, to: u64| {
        let wanted = span(minutes(first, from), minutes(first, to));
        let kafka = kafka.clone();
        async move { kafka.history(source, wanted).await.err().expect("refused") }
    };
    let oldest_at = Timestamp::from_millisecond(minutes(first, 30).as_millisecond()).unwrap();
    assert_eq!(
        refused("s", 0, 20).await,
        NotPossible::TooOld {
            name: "s".into(),
            oldest: oldest_at
        }
    );
    assert_eq!(
        refused("s", 100, 110).await.to_string(),
        format!("source `s` has no events in this range; the oldest event there is of {oldest_at}")
    );
    assert_eq!(
        refused("none", 0, 1).await.to_string(),
        "source `none` has no events in this range; none of its topics exists"
    );
    assert_eq!(
        refused("other", 0, 1).await.to_string(),
        "broker `lake` has no source `other`"
    );
    let wanted = span(minutes(first, 20), minutes(first, 40));
    let mut past = kafka.history("s", wanted).await.unwrap();
    assert_eq!(
        past.notes(),
        [
            format!(
                "what the topics no longer have (retention) is gone: the oldest event there is of {oldest_at}"
            ),
            "`ignore_older_than` of the source does not hold for a replay".to_owned(),
        ]
    );
    assert_eq!(all(&mut *past).await.len(), 10);
    assert_eq!(past.reached().map(|at| at.as_millisecond()), {
        Some(minutes(first, 39).as_millisecond())
    });
}
