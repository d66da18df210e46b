//! Adopting: what another group has left in its topics becomes the present group's.
//!
//! Only a group that nobody runs any more can be adopted, by one at a time: its replay lock is held
//! meanwhile. A record is written to our own topic and confirmed before it counts as done in the
//! other's: a tier's offset is committed, every second and at the end, whatever ends it; a letter
//! gets its tombstone. Killed and started again, what was moved in the last second may come twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{BorrowedMessage, Message as _, OwnedHeaders};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::client::{ASK, Connection, blocking};
use super::letters::{self, Lock};
use super::parked::Open;
use super::produce::Record;
use super::start::ReaderContext;
use super::upkeep::of_group;
use super::waiting::{Parked, Waiting};
use super::walk::{At, Walked, reader, walk};
use super::watermark::Watermark;
use super::{Kafka, moves, names, topics};
use crate::broker::upkeep::Adopted;

/// Records read ahead of those being written.
const AHEAD: usize = 64;
/// Between commits of what was moved.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

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
    let lock = letters::hold(kafka, group).await?;
    let moved = all(kafka, group, &theirs, &lock).await;
    lock.release().await;
    moved
}

async fn all(
    kafka: &Kafka,
    group: &str,
    theirs: &[(String, usize)],
    lock: &Lock,
) -> anyhow::Result<Adopted> {
    let mut adopted = Adopted::default();
    for (topic, partitions) in theirs {
        if let Some((_, delay)) = names::read_tier(group, topic) {
            let tier = Tier {
                group,
                topic,
                delay,
            };
            tier.adopt(kafka, *partitions, lock, &mut adopted).await?;
        }
    }
    let dead_topic = names::dead(group);
    if theirs.iter().any(|(topic, _)| *topic == dead_topic) {
        dead(kafka, group, lock, &mut adopted).await?;
    }
    Ok(adopted)
}

fn still_locked(lock: &Lock) -> anyhow::Result<()> {
    if lock.is_lost() {
        bail!("the group's replay lock was lost, somebody else may hold it now: begin again");
    }
    Ok(())
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
            let alive = letters::alive(&connection, &group)?;
            return Ok(alive.values().map(|offsets| offsets.len() as u64).sum());
        }
        if topic == names::state(&group) {
            let reader = reader(&connection, &group)?;
            let ends = reader.fetch_watermarks(&topic, 0, ASK);
            let (first, end) = ends.with_context(|| format!("asking for the ends of {topic}"))?;
            return Ok((end - first).unsigned_abs());
        }
        if names::read_tier(&group, &topic).is_none() {
            return Ok(0);
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

/// A tier of theirs.
struct Tier<'a> {
    group: &'a str,
    topic: &'a str,
    delay: Duration,
}

impl Tier<'_> {
    async fn adopt(
        &self,
        kafka: &Kafka,
        partitions: usize,
        lock: &Lock,
        adopted: &mut Adopted,
    ) -> anyhow::Result<()> {
        let (connection, group) = (kafka.connection.clone(), self.group.to_owned());
        let (topic, delay) = (Arc::<str>::from(self.topic), self.delay);
        let (open, client) = {
            let (connection, group, topic) = (connection.clone(), group.clone(), topic.clone());
            blocking(move || {
                let open = unsettled(&connection, &group, &topic, partitions)?;
                Ok((open, reader(&connection, &names::tier_group(&group))?))
            })
            .await?
        };
        let Open { stretch, marks } = open;
        let mut settled = Settled {
            client: Arc::new(client),
            marks,
            committed_at: Instant::now(),
        };
        let (to, mut records) = mpsc::channel(AHEAD);
        let reading = tokio::spawn(blocking(move || {
            let group = names::tier_group(&group);
            let walked = walk(&connection, &group, stretch, &mut |message| {
                let waiting = Waiting::new(message, &topic, delay);
                to.blocking_send((message.partition(), waiting)).is_ok()
            })?;
            if walked == Walked::Silent {
                bail!("reading topic {topic} came to a stop");
            }
            Ok(())
        }));
        let moved = async {
            while let Some((partition, waiting)) = records.recv().await {
                still_locked(lock)?;
                let place = (self.topic.to_owned(), partition);
                self.take(kafka, &place, waiting, &mut settled, adopted)
                    .await?;
            }
            anyhow::Ok(())
        };
        let moved = moved.await;
        // Also what came before an error is not to come again.
        let committed = settled.commit().await;
        drop(records);
        moved.and(committed)?;
        reading.await.context("reading ended badly")?
    }

    /// Parks what one record holds for the rest of its wait.
    async fn take(
        &self,
        kafka: &Kafka,
        place: &At,
        waiting: Waiting,
        settled: &mut Settled,
        adopted: &mut Adopted,
    ) -> anyhow::Result<()> {
        let offset = waiting.offset;
        let mark = settled.marks.get_mut(place);
        // What was settled out of order before is not moved again.
        if !mark.is_some_and(|mark| mark.receive(offset)) {
            return Ok(());
        }
        match &waiting.parked {
            Parked::Marker => {}
            Parked::Unreadable(raw) => {
                moves::put_among_letters(kafka, raw).await?;
                adopted.dead += 1;
            }
            Parked::Delivery(_) => {
                // Until the broker's clock is known the tier's delay counts in full: late, never
                // early.
                let stamp_ms = waiting.stamp_ms;
                let now_ms = kafka.clock.reached_ms().unwrap_or(stamp_ms).max(stamp_ms);
                // The orders of this group are not about what was parked in the other.
                if let Some(envelope) = waiting.moved(Some(now_ms)) {
                    moves::hop(kafka, &envelope.parked_at(None)).await?;
                    adopted.parked += 1;
                }
            }
        }
        if let Some(mark) = settled.marks.get_mut(place) {
            mark.settle(offset);
        }
        if settled.committed_at.elapsed() > COMMIT_EVERY {
            settled.commit().await?;
        }
        Ok(())
    }
}

/// What of a tier is done.
struct Settled {
    client: Arc<BaseConsumer<ReaderContext>>,
    marks: HashMap<At, Watermark>,
    committed_at: Instant,
}

impl Settled {
    /// Commits for the tiers' group.
    async fn commit(&mut self) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), mark) in &self.marks {
            let commit = mark.commit();
            let mut element = list.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(commit.offset))?;
            if !commit.metadata.is_empty() {
                element.set_metadata(&commit.metadata);
            }
        }
        if list.count() > 0 {
            let client = self.client.clone();
            blocking(move || {
                let committed = client.commit(&list, CommitMode::Sync);
                committed.context("committing what was moved")
            })
            .await?;
        }
        self.committed_at = Instant::now();
        Ok(())
    }
}

/// A letter on its way.
struct Moved {
    partition: i32,
    key: Option<Bytes>,
    headers: Option<OwnedHeaders>,
    body: Bytes,
}

impl Moved {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let bytes = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        Self {
            partition: message.partition(),
            key: bytes(message.key()),
            headers: message.headers().map(|headers| headers.detach()),
            body: bytes(message.payload()).unwrap_or_default(),
        }
    }
}

async fn dead(
    kafka: &Kafka,
    group: &str,
    lock: &Lock,
    adopted: &mut Adopted,
) -> anyhow::Result<()> {
    let (to, mut records) = mpsc::channel(AHEAD);
    let (connection, of) = (kafka.connection.clone(), group.to_owned());
    let reading = tokio::spawn(blocking(move || {
        let alive = letters::alive(&connection, &of)?;
        letters::scan(&connection, &of, None, &mut |message| {
            let offsets = alive.get(&message.partition());
            let is_alive = offsets.is_some_and(|all| all.binary_search(&message.offset()).is_ok());
            !is_alive || to.blocking_send(Moved::of(message)).is_ok()
        })
    }));
    let (theirs, ours) = (names::dead(group), names::dead(&kafka.settings.group));
    while let Some(record) = records.recv().await {
        still_locked(lock)?;
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
            // Where the letter lies, even if the topic was widened since.
            partition: Some(record.partition),
            key,
            stamped: true,
            ..Record::default()
        };
        kafka.producer.send(tombstone).await?;
        adopted.dead += 1;
    }
    reading.await.context("reading ended badly")?
}
