//! Adopting: what another group has left in its topics becomes the present group's.
//!
//! Only a group that nobody runs any more can be adopted. A record is written to our own topic and
//! confirmed before it counts as done in the other's: a tier's offset is committed, a letter gets
//! its tombstone. Interrupted and started again, the one in flight may come twice.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::message::{BorrowedMessage, Message as _, OwnedHeaders};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::client::{Connection, blocking};
use super::parked::Open;
use super::produce::Record;
use super::upkeep::of_group;
use super::walk::{Walked, reader, walk};
use super::{Kafka, headers, letters, names, topics};
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::upkeep::Adopted;

/// Records read ahead of those being written.
const AHEAD: usize = 64;

/// Moves what lies in the topics of `group`.
pub async fn group(kafka: &Kafka, group: &str) -> anyhow::Result<Adopted> {
    if group == &*kafka.settings.group {
        bail!("this is the present group itself");
    }
    let catalogue = topics::catalogue(&kafka.admin).await?;
    let theirs: Vec<_> = of_group(group, &catalogue)
        .map(|(topic, partitions)| (topic.clone(), *partitions))
        .collect();
    if theirs.is_empty() {
        bail!("none of its topics is on broker `{}`", kafka.settings.name);
    }
    let members = kafka.groups().await?;
    for name in [group.to_owned(), names::tier_group(group)] {
        if members.get(&name).is_some_and(|count| *count > 0) {
            bail!(
                "group `{name}` has members: stop the bridge of that group first (Kafka forgets a \
                 stopped one after ten seconds)"
            );
        }
    }
    kafka.get_ready().await?;
    let mut adopted = Adopted::default();
    for (topic, partitions) in &theirs {
        if let Some((_, delay)) = names::read_tier(group, topic) {
            adopted.parked += tier(kafka, group, topic, *partitions, delay).await?;
        }
    }
    if catalogue.contains_key(&names::dead(group)) {
        adopted.dead = dead(kafka, group).await?;
    }
    Ok(adopted)
}

/// How many records of a topic of `group` somebody still waits for.
pub async fn waiting(
    kafka: &Kafka,
    group: &str,
    topic: &str,
    partitions: usize,
) -> anyhow::Result<u64> {
    let (connection, group, topic) = (kafka.connection.clone(), group.to_owned(), topic.to_owned());
    blocking(move || {
        if topic == names::dead(&group) {
            return Ok(live_letters(&connection, &group)?.len() as u64);
        }
        let open = unsettled(&connection, &group, &topic, partitions)?;
        let lengths = open.stretch.values().map(|(from, end)| end - from);
        Ok(lengths.sum::<i64>().unsigned_abs())
    })
    .await
}

/// What the tiers' group has not settled of `topic`. Blocks.
fn unsettled(
    connection: &Connection,
    group: &str,
    topic: &str,
    partitions: usize,
) -> anyhow::Result<Open> {
    let places: Vec<_> = (0..partitions as i32)
        .map(|partition| (topic.to_owned(), partition))
        .collect();
    Open::of(connection, group, &places)
}

/// A record on its way.
struct Moved {
    partition: i32,
    offset: i64,
    stamp_ms: i64,
    key: Option<Bytes>,
    headers: Option<OwnedHeaders>,
    found: crate::event::Headers,
    body: Bytes,
}

impl Moved {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let bytes = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            stamp_ms: message.timestamp().to_millis().unwrap_or(0),
            key: bytes(message.key()),
            headers: message.headers().map(|headers| headers.detach()),
            found: headers::read(message),
            body: bytes(message.payload()).unwrap_or_default(),
        }
    }
}

async fn tier(
    kafka: &Kafka,
    group: &str,
    topic: &str,
    partitions: usize,
    delay: Duration,
) -> anyhow::Result<u64> {
    let (to, mut records) = mpsc::channel(AHEAD);
    let (connection, of, name) = (kafka.connection.clone(), group.to_owned(), topic.to_owned());
    let reading = tokio::spawn(blocking(move || {
        let Open { stretch, mut marks } = unsettled(&connection, &of, &name, partitions)?;
        let reader = names::tier_group(&of);
        let walked = walk(&connection, &reader, stretch, &mut |message| {
            let place = (message.topic().to_owned(), message.partition());
            let mark = marks.get_mut(&place);
            // What was settled out of order before is not moved again.
            let is_open = mark.is_some_and(|mark| mark.receive(message.offset()));
            !is_open || to.blocking_send(Moved::of(message)).is_ok()
        })?;
        if walked == Walked::Silent {
            bail!("reading topic {name} came to a stop");
        }
        Ok(())
    }));
    let (mut moved, mut done) = (0, HashMap::new());
    while let Some(record) = records.recv().await {
        moved += u64::from(park(kafka, &record, topic, delay).await?);
        let next = record.offset + 1;
        done.insert(record.partition, next);
    }
    reading.await.context("reading ended badly")??;
    commit(kafka, group, topic, done).await?;
    Ok(moved)
}

/// Parks what one record holds for the rest of its wait; `false` for a marker.
async fn park(kafka: &Kafka, record: &Moved, topic: &str, delay: Duration) -> anyhow::Result<bool> {
    if record.found.get(envelope::PROBE).is_some() {
        return Ok(false);
    }
    let read = Envelope::read(record.found.clone(), record.body.clone());
    let envelope = read.with_context(|| {
        format!(
            "record {}/{} of topic {topic} is not one of ours",
            record.partition, record.offset
        )
    })?;
    let Stay::Parked {
        kind,
        whole,
        remaining,
        ..
    } = envelope.stay
    else {
        bail!("topic {topic} holds a dead letter, which is no place for it");
    };
    // Until the broker's clock is known the tier's delay counts in full: late, never early.
    let waited = kafka
        .clock
        .reached_ms()
        .map_or(0, |now_ms| (now_ms - record.stamp_ms).max(0));
    let rest = remaining + delay.saturating_sub(Duration::from_millis(waited as u64));
    // What is due takes the shortest tier there is: a moment late.
    let rest = rest.max(Duration::from_millis(1));
    kafka
        .park_rest(&envelope.delivery, kind, rest, whole)
        .await?;
    Ok(true)
}

async fn commit(
    kafka: &Kafka,
    group: &str,
    topic: &str,
    done: HashMap<i32, i64>,
) -> anyhow::Result<()> {
    if done.is_empty() {
        return Ok(());
    }
    let committing = reader(&kafka.connection, &names::tier_group(group))?;
    let topic = topic.to_owned();
    blocking(move || {
        let mut list = TopicPartitionList::new();
        for (partition, next) in done {
            list.add_partition_offset(&topic, partition, Offset::Offset(next))?;
        }
        committing
            .commit(&list, CommitMode::Sync)
            .with_context(|| format!("committing what was moved of topic {topic}"))
    })
    .await
}

/// The letters that have no tombstone: where the last record of each key lies. Blocks.
fn live_letters(
    connection: &Connection,
    group: &str,
) -> anyhow::Result<HashMap<Vec<u8>, (i32, i64)>> {
    let mut live = HashMap::new();
    letters::scan(connection, group, None, &mut |message| {
        let Some(key) = message.key() else {
            return true;
        };
        let marker = headers::read(message).get(envelope::PROBE).is_some();
        if message.payload().is_none() {
            live.remove(key);
        } else if !marker {
            live.insert(key.to_vec(), (message.partition(), message.offset()));
        }
        true
    })?;
    Ok(live)
}

async fn dead(kafka: &Kafka, group: &str) -> anyhow::Result<u64> {
    let (to, mut records) = mpsc::channel(AHEAD);
    let (connection, of) = (kafka.connection.clone(), group.to_owned());
    let reading = tokio::spawn(blocking(move || {
        let live = live_letters(&connection, &of)?;
        letters::scan(&connection, &of, None, &mut |message| {
            let place = (message.partition(), message.offset());
            let wanted = message.key().and_then(|key| live.get(key)) == Some(&place);
            !wanted || to.blocking_send(Moved::of(message)).is_ok()
        })
    }));
    let (theirs, ours) = (names::dead(group), names::dead(&kafka.settings.group));
    let mut moved = 0;
    while let Some(record) = records.recv().await {
        let key = record.key.as_deref();
        let letter = Record {
            topic: &ours,
            key,
            payload: Some(&record.body),
            headers: record.headers,
            stamped: true,
            ..Record::default()
        };
        kafka.producer.send(letter).await?;
        let tombstone = Record {
            topic: &theirs,
            key,
            stamped: true,
            ..Record::default()
        };
        kafka.producer.send(tombstone).await?;
        moved += 1;
    }
    reading.await.context("reading ended badly")??;
    Ok(moved)
}
