//! Where a source begins that has never been read: decided once, and kept.
//!
//! `start:` is turned into offsets before the first take, for every partition there is, and these
//! are written to the dead-letter topic (a marker per entry of `topics:`, first one wins) and
//! committed. So instances that start together agree, and a crash in between changes nothing.
//! Partitions and topics that appear later begin at 0. A source that began long ago and of which
//! the group has no offset any more is an error that is shown: both beginning anew and skipping
//! would be wrong, and only the operator knows which is less so.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use super::anew::Ids;
use super::client::{ASK, Connection, Quiet, blocking};
use super::commits::{Committed, committed};
use super::produce::{Producer, Record};
use super::topics::Catalogue;
use super::wanted::Wanted;
use super::{headers, letters, names};
use crate::broker::envelope;
use crate::event::{HeaderValue, Headers};

/// Where a group without committed offsets begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Now,
    Earliest,
    At(Timestamp),
}

/// A marker without a commit is a start that was interrupted, within this time; later it means
/// that the offsets were lost.
const INTERRUPTED: Duration = Duration::from_secs(3_600);
/// How long the age of the oldest events is looked for, which is for the log only.
const LOOK: Duration = Duration::from_secs(3);

/// Offsets where partitions began, by topic and partition.
pub type Starts = HashMap<(String, i32), i64>;

/// The decision about one entry of a source's `topics:`.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    at: Timestamp,
    /// Offsets by partition, by topic.
    topics: BTreeMap<String, Vec<i64>>,
    /// What the cluster knew these topics by.
    #[serde(default, skip_serializing_if = "Ids::is_empty")]
    ids: Ids,
}

impl Marker {
    /// Forgets topics that were made anew since: these are read from their beginning.
    fn forget_others(&mut self, ids: &Ids) {
        let Self {
            topics, ids: then, ..
        } = self;
        topics.retain(|topic, _| match (then.get(topic), ids.get(topic)) {
            (Some(then), Some(now)) => then == now,
            _ => true,
        });
    }
}

pub struct Question<'a> {
    pub connection: &'a Connection,
    pub producer: &'a Producer,
    pub group: &'a str,
    pub source: &'a str,
    pub start: Start,
    pub wanted: &'a [Wanted],
    pub catalogue: &'a Catalogue,
    pub ids: &'a Ids,
}

/// Decides where the source's partitions begin that were never read, and commits it.
pub async fn resolve(question: Question<'_>) -> anyhow::Result<Starts> {
    let Question {
        connection,
        producer,
        group,
        source,
        start,
        wanted,
        catalogue,
        ids,
    } = question;
    let entries: Vec<(&Wanted, Vec<(String, i32)>)> = wanted
        .iter()
        .map(|entry| (entry, places(group, entry, catalogue)))
        .collect();
    let all: Vec<_> = entries.iter().flat_map(|(_, p)| p.clone()).collect();
    let committed = ask_committed(connection, group, all.clone()).await?;
    let is_committed = |place: &(String, i32)| committed.get(place).is_some_and(Option::is_some);
    if !entries.iter().any(|(_, p)| p.is_empty()) && all.iter().all(is_committed) {
        return Ok(Starts::new());
    }
    let mut markers = read_markers(connection, group, source, wanted).await?;
    let mut starts = Starts::new();
    for (entry, places) in &entries {
        let begun = places.iter().any(is_committed);
        let marker = match markers.remove(entry.as_str()) {
            Some(mut marker) => {
                marker.forget_others(ids);
                known_or_lost(group, source, &marker, begun)?;
                marker
            }
            None => {
                let topics = if begun {
                    BTreeMap::new()
                } else {
                    decide(connection, group, source, start, places.clone()).await?
                };
                let of_these = |(topic, _): &(&String, &String)| topics.contains_key(*topic);
                let marker = Marker {
                    at: Timestamp::now(),
                    ids: (ids.iter().filter(of_these))
                        .map(|(topic, id)| (topic.clone(), id.clone()))
                        .collect(),
                    topics,
                };
                write_marker(producer, group, source, entry.as_str(), &marker).await?;
                // Another instance may have been first: what it wrote holds.
                read_markers(connection, group, source, wanted)
                    .await?
                    .remove(entry.as_str())
                    .unwrap_or(marker)
            }
        };
        for (topic, offsets) in marker.topics {
            for (partition, offset) in offsets.into_iter().enumerate() {
                starts.insert((topic.clone(), partition as i32), offset);
            }
        }
    }
    let missing: Vec<_> = starts
        .iter()
        .filter(|(place, _)| committed.contains_key(*place) && !is_committed(place))
        .map(|((topic, partition), offset)| (topic.clone(), *partition, *offset))
        .collect();
    commit(connection, group, missing).await?;
    Ok(starts)
}

fn known_or_lost(group: &str, source: &str, marker: &Marker, begun: bool) -> anyhow::Result<()> {
    let age = Timestamp::now().duration_since(marker.at).unsigned_abs();
    if !begun && !marker.topics.is_empty() && age > INTERRUPTED {
        bail!(
            "group `{group}` has read source `{source}` since {}, but the broker has no offsets of \
             it any more: set them (kafka-consumer-groups --reset-offsets) and it goes on",
            marker.at
        );
    }
    Ok(())
}

/// The partitions that `entry` wants.
fn places(group: &str, entry: &Wanted, catalogue: &Catalogue) -> Vec<(String, i32)> {
    catalogue
        .iter()
        .filter(|(topic, _)| entry.wants(group, topic))
        .flat_map(|(topic, partitions)| (0..*partitions as i32).map(|p| (topic.clone(), p)))
        .collect()
}

fn reader(connection: &Connection, group: &str) -> anyhow::Result<BaseConsumer<ReaderContext>> {
    Ok(connection
        .reader(group)
        .create_with_context(ReaderContext(Quiet))?)
}

/// A reader's context: nothing but its log lines.
pub struct ReaderContext(pub Quiet);

impl rdkafka::ClientContext for ReaderContext {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for ReaderContext {}

async fn ask_committed(
    connection: &Connection,
    group: &str,
    places: Vec<(String, i32)>,
) -> anyhow::Result<Committed> {
    if places.is_empty() {
        return Ok(Committed::new());
    }
    let reader = reader(connection, group)?;
    blocking(move || {
        let mut list = TopicPartitionList::with_capacity(places.len());
        for (topic, partition) in &places {
            list.add_partition(topic, *partition);
        }
        committed(&reader, list)
    })
    .await
}

/// The offsets that `start` means now, and a line in the log of what that amounts to.
async fn decide(
    connection: &Connection,
    group: &str,
    source: &str,
    start: Start,
    places: Vec<(String, i32)>,
) -> anyhow::Result<BTreeMap<String, Vec<i64>>> {
    let reader = reader(connection, group)?;
    let source = source.to_owned();
    blocking(move || {
        let mut ends = HashMap::new();
        for (topic, partition) in &places {
            let watermarks = reader
                .fetch_watermarks(topic, *partition, ASK)
                .with_context(|| format!("asking for the ends of {topic}/{partition}"))?;
            ends.insert((topic.clone(), *partition), watermarks);
        }
        let mut at_time = HashMap::new();
        if let Start::At(time) = start
            && !places.is_empty()
        {
            let mut list = TopicPartitionList::new();
            for (topic, partition) in &places {
                list.add_partition_offset(
                    topic,
                    *partition,
                    Offset::Offset(time.as_millisecond()),
                )?;
            }
            let found = reader
                .offsets_for_times(list, ASK)
                .context("asking for offsets of a time")?;
            for element in found.elements() {
                element.error()?;
                if let Offset::Offset(offset) = element.offset() {
                    at_time.insert((element.topic().to_owned(), element.partition()), offset);
                }
            }
        }
        let mut decided: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        let mut waiting = Vec::new();
        for place in &places {
            let (low, high) = ends[place];
            let offset = match start {
                Start::Now => high,
                Start::Earliest => low,
                // Nothing as young as that: the end.
                Start::At(_) => at_time.get(place).copied().unwrap_or(high),
            };
            decided.entry(place.0.clone()).or_default().push(offset);
            if offset < high {
                waiting.push((place.clone(), offset, high));
            }
        }
        let events: i64 = waiting.iter().map(|(_, from, to)| to - from).sum();
        let oldest = oldest(&reader, &waiting);
        info!(
            source,
            events,
            oldest = oldest.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            "first start: so many events, the oldest of that time, are going to be sent"
        );
        Ok(decided)
    })
    .await
}

/// The timestamp of the oldest event that waits, as far as it is found quickly.
fn oldest(
    reader: &BaseConsumer<ReaderContext>,
    waiting: &[((String, i32), i64, i64)],
) -> Option<Timestamp> {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset, _) in waiting {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
            .ok()?;
    }
    reader.assign(&list).ok()?;
    let until = std::time::Instant::now() + LOOK;
    let mut first = HashMap::new();
    while first.len() < waiting.len() && std::time::Instant::now() < until {
        if let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) {
            let place = (message.topic().to_owned(), message.partition());
            first
                .entry(place)
                .or_insert_with(|| message.timestamp().to_millis());
        }
    }
    let millis = first.into_values().flatten().min()?;
    Timestamp::from_millisecond(millis).ok()
}

fn marker_key(source: &str, entry: &str) -> String {
    format!("start.{source}.{entry}")
}

async fn write_marker(
    producer: &Producer,
    group: &str,
    source: &str,
    entry: &str,
    marker: &Marker,
) -> anyhow::Result<()> {
    let mut ours = Headers::default();
    ours.push(envelope::PROBE, HeaderValue::text("start"));
    let payload = serde_json::to_vec(marker)?;
    producer
        .send(Record {
            topic: &names::dead(group),
            partition: Some(0),
            key: Some(marker_key(source, entry).as_bytes()),
            payload: Some(&payload),
            headers: Some(headers::write(&ours)),
            stamped: true,
        })
        .await
        .context("writing down where the source begins")?;
    Ok(())
}

/// The markers of the source's entries; of several for one entry, the first.
async fn read_markers(
    connection: &Connection,
    group: &str,
    source: &str,
    wanted: &[Wanted],
) -> anyhow::Result<HashMap<String, Marker>> {
    let keys: HashMap<Vec<u8>, String> = wanted
        .iter()
        .map(|entry| {
            let key = marker_key(source, entry.as_str()).into_bytes();
            (key, entry.as_str().to_owned())
        })
        .collect();
    let (connection, group) = (connection.clone(), group.to_owned());
    blocking(move || {
        let mut markers = HashMap::new();
        letters::scan(&connection, &group, Some(0), &mut |message| {
            if let Some(entry) = message.key().and_then(|key| keys.get(key))
                && let Some(marker) = message
                    .payload()
                    .and_then(|payload| serde_json::from_slice::<Marker>(payload).ok())
            {
                markers.entry(entry.clone()).or_insert(marker);
            }
            true
        })?;
        Ok(markers)
    })
    .await
}

/// Commits for a group that nobody is a member of yet; else the members commit what they get.
async fn commit(
    connection: &Connection,
    group: &str,
    starts: Vec<(String, i32, i64)>,
) -> anyhow::Result<()> {
    if starts.is_empty() {
        return Ok(());
    }
    let reader = reader(connection, group)?;
    blocking(move || {
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for (topic, partition, offset) in &starts {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        if let Err(error) = reader.commit(&list, CommitMode::Sync) {
            debug!(%error, "start offsets are left to the members of the group");
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_holds_for_the_topics_that_it_was_made_for() {
        let text = r#"{"at":"2026-01-02T03:04:05Z","topics":{"a":[5],"b":[7]}}"#;
        let mut marker: Marker = serde_json::from_str(text).unwrap();
        let ids = |of: &[(&str, &str)]| -> Ids {
            let pairs = of
                .iter()
                .map(|(topic, id)| (topic.to_string(), id.to_string()));
            pairs.collect()
        };
        // As an older release has written it: it does not say.
        marker.forget_others(&ids(&[("a", "1"), ("b", "2")]));
        assert_eq!(marker.topics.len(), 2);
        marker.ids = ids(&[("a", "1"), ("b", "2")]);
        marker.forget_others(&ids(&[("a", "1"), ("b", "3")]));
        assert_eq!(marker.topics.into_keys().collect::<Vec<_>>(), ["a"]);
    }
}
