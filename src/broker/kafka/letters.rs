//! Dead letters: a compacted topic, one key per letter, a tombstone when it is taken away.
//!
//! Listing reads the topic from its beginning to the end it had when the listing began, outside
//! any group, so a letter may be listed as often as one likes. The key is delivery id and
//! generation, so a tombstone names exactly one letter. Taking a letter away is confirmed by the
//! broker after the receipt was settled; until then this process leaves it out by itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tracing::warn;

use super::client::{ASK, Connection, Quiet, blocking};
use super::produce::{Producer, Record};
use super::start::ReaderContext;
use super::{headers, names};
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::{Answer, Claim, Letter, Receipt, Settlement, Token};
use crate::delivery::{Delivery, DeliveryId, Progress, Reason};
use crate::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use crate::subscription::Uid;

/// A scan in which nothing comes for so long is given up.
const SILENCE: Duration = Duration::from_secs(15);
/// Bytes of letters that one listing holds.
const LISTED_BYTES: usize = 64 << 20;
/// How long a tombstone is tried.
const BURY_WITHIN: Duration = Duration::from_secs(120);

/// The key of a letter.
pub fn key(delivery: &str, generation: u32) -> String {
    format!("{delivery}.{generation}")
}

/// Reads the dead letters of `group` (one partition of them, or all) up to the present end and
/// shows each record, tombstones too, until `look` says `false`. Blocks.
pub fn scan(
    connection: &Connection,
    group: &str,
    partition: Option<i32>,
    look: &mut dyn FnMut(&BorrowedMessage<'_>) -> bool,
) -> anyhow::Result<()> {
    let topic = names::dead(group);
    let mut config = connection.reader(group);
    config.set("enable.partition.eof", "true");
    let reader: BaseConsumer<ReaderContext> = config.create_with_context(ReaderContext(Quiet))?;
    let metadata = reader
        .fetch_metadata(Some(&topic), ASK)
        .context("asking for the dead letters' partitions")?;
    let found = metadata
        .topics()
        .first()
        .filter(|t| t.error().is_none())
        .with_context(|| format!("topic {topic} is not there"))?;
    let mut ends = HashMap::new();
    let mut list = TopicPartitionList::new();
    for p in found.partitions() {
        if partition.is_some_and(|only| only != p.id()) {
            continue;
        }
        let (low, high) = reader.fetch_watermarks(&topic, p.id(), ASK)?;
        if low < high {
            list.add_partition_offset(&topic, p.id(), Offset::Offset(low))?;
            ends.insert(p.id(), high);
        }
    }
    if ends.is_empty() {
        return Ok(());
    }
    reader.assign(&list)?;
    let mut heard = Instant::now();
    while !ends.is_empty() {
        if heard.elapsed() > SILENCE {
            bail!("reading topic {topic} came to a stop");
        }
        match reader.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                heard = Instant::now();
                let Some(end) = ends.get(&message.partition()).copied() else {
                    continue;
                };
                if message.offset() < end && !look(&message) {
                    return Ok(());
                }
                if message.offset() + 1 >= end {
                    ends.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
            }
            Some(Err(error)) if heard.elapsed() > SILENCE => return Err(error.into()),
            Some(Err(_)) => {}
        }
    }
    Ok(())
}

/// The letter in a record of the dead-letter topic; `None` for markers of ours.
fn read(message: &BorrowedMessage<'_>, broker: &Arc<str>) -> Option<Letter> {
    let payload = message.payload()?;
    let found = headers::read(message);
    if found.get(envelope::PROBE).is_some() {
        return None;
    }
    let body = Bytes::copy_from_slice(payload);
    match Envelope::read(found.clone(), body.clone()) {
        Ok(Envelope {
            delivery,
            stay: Stay::Dead { reason, at },
            reference,
        }) => Some(Letter {
            delivery,
            reason,
            dead_at: at,
            has_body: !reference,
        }),
        _ => Some(unreadable(message, broker, found, body)),
    }
}

/// A record that is not an envelope, shown as what it is.
fn unreadable(
    message: &BorrowedMessage<'_>,
    broker: &Arc<str>,
    mut headers: Headers,
    body: Bytes,
) -> Letter {
    let text = |name: &str| headers.get(name).and_then(HeaderValue::as_str);
    let topic: Arc<str> = text(FROM_TOPIC).unwrap_or(message.topic()).into();
    let key = message.key().unwrap_or_default();
    let id = std::str::from_utf8(key)
        .ok()
        .and_then(|key| key.rsplit_once('.'))
        .map_or_else(
            || String::from_utf8_lossy(key).into_owned(),
            |(id, _)| id.to_owned(),
        );
    let dead_at = message
        .timestamp()
        .to_millis()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let place = Place::Kafka {
        topic: topic.clone(),
        partition: message.partition(),
        offset: message.offset(),
    };
    headers
        .0
        .retain(|(name, _)| !UNREADABLE_OURS.contains(&name.as_str()));
    let event = Event {
        id: EventId::from_outside(id.as_bytes()).unwrap_or_else(EventId::random),
        topic: topic.clone(),
        kind: topic,
        source: "".into(),
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers,
        properties: Vec::new(),
        body,
        origin: Origin {
            broker: broker.clone(),
            place,
        },
    };
    Letter {
        delivery: Delivery {
            event: Arc::new(event),
            subscription: "".into(),
            uid: Uid::from_stored(""),
            id: DeliveryId::from_envelope(&id),
            generation: 0,
            progress: Progress::new(dead_at),
        },
        reason: Reason::EnvelopeUnreadable,
        dead_at,
        has_body: true,
    }
}

const REASON: &str = "hookbridge-reason";
const FROM_TOPIC: &str = "hookbridge-from-topic";
const FROM_KEY: &str = "hookbridge-from-key";
const UNREADABLE_OURS: [&str; 3] = [REASON, FROM_TOPIC, FROM_KEY];

/// The headers and the key under which a message that is no delivery of ours is put away, as it
/// came. The same message gives the same key.
pub fn put_away(message: &super::due::Raw) -> (Headers, String) {
    let mut headers = message.headers.clone();
    headers.push(
        REASON,
        HeaderValue::text(Reason::EnvelopeUnreadable.as_str()),
    );
    headers.push(FROM_TOPIC, HeaderValue::text(message.topic.to_string()));
    if let Some(key) = &message.key {
        headers.push(FROM_KEY, HeaderValue::Bytes(key.clone()));
    }
    let id = EventId::hashed(
        "unreadable",
        &[
            message.topic.as_bytes(),
            &message.partition.to_be_bytes(),
            &message.offset.to_be_bytes(),
            &message.stamp_ms.to_be_bytes(),
        ],
    );
    (headers, key(id.as_str(), 0))
}

/// Letters in the hands of this process: claimed, or being taken away.
#[derive(Default)]
pub struct Taken(Mutex<HashSet<String>>);

impl Taken {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(|p| p.into_inner())
    }
}

pub struct Letters {
    pub broker: Arc<str>,
    pub group: Arc<str>,
    pub connection: Connection,
    pub producer: Arc<Producer>,
    pub taken: Arc<Taken>,
}

impl Letters {
    /// Up to `limit` letters, oldest first.
    pub async fn list(&self, limit: usize) -> anyhow::Result<Vec<Letter>> {
        let (connection, group, broker) = (
            self.connection.clone(),
            self.group.clone(),
            self.broker.clone(),
        );
        let taken = self.taken.lock().clone();
        blocking(move || {
            // Each round holds a bounded number of candidates; only when tombstones leave too few
            // of them, another round looks behind the places where this one stopped.
            let mut from: HashMap<i32, i64> = HashMap::new();
            let mut listed: Vec<Letter> = Vec::new();
            loop {
                let mut round = Round::new(limit.saturating_sub(listed.len()));
                scan(&connection, &group, None, &mut |message| {
                    round.look(message, &from, &broker);
                    true
                })?;
                let more = round.full_at.clone();
                listed.extend(round.letters(&taken));
                if more.is_empty() || listed.len() >= limit {
                    break;
                }
                from = more;
            }
            listed.sort_by_key(|letter| letter.dead_at);
            listed.truncate(limit);
            Ok(listed)
        })
        .await
    }

    /// The letter of this delivery and generation, unless this process has it in its hands.
    pub async fn claim(&self, delivery: &str, generation: u32) -> anyhow::Result<Option<Claim>> {
        let key = key(delivery, generation);
        if !self.taken.lock().insert(key.clone()) {
            return Ok(None);
        }
        // From here on the grave gives the letter back when it is dropped.
        let grave = Arc::new(Grave {
            topic: names::dead(&self.group),
            key: key.clone(),
            producer: self.producer.clone(),
            taken: self.taken.clone(),
            runtime: tokio::runtime::Handle::current(),
        });
        let (connection, group, broker) = (
            self.connection.clone(),
            self.group.clone(),
            self.broker.clone(),
        );
        let found = blocking(move || {
            let mut found = None;
            scan(&connection, &group, None, &mut |message| {
                if message.key() == Some(key.as_bytes()) {
                    found = read(message, &broker);
                }
                true
            })?;
            Ok(found)
        })
        .await;
        let letter = match found {
            Ok(Some(letter)) => letter,
            Ok(None) => {
                grave.give_back();
                return Ok(None);
            }
            Err(error) => {
                grave.give_back();
                return Err(error);
            }
        };
        let token = Token {
            epoch: 0,
            lane: 0,
            position: 0,
        };
        Ok(Some(Claim {
            letter,
            receipt: Receipt::unbounded(grave, token),
        }))
    }
}

/// The candidates of one pass over the topic.
struct Round {
    most: usize,
    bytes: usize,
    candidates: BTreeMap<Vec<u8>, Letter>,
    /// Where each partition was when there was no room any more.
    full_at: HashMap<i32, i64>,
}

impl Round {
    fn new(wanted: usize) -> Self {
        Self {
            most: wanted.max(1).saturating_mul(2).min(10_000),
            bytes: 0,
            candidates: BTreeMap::new(),
            full_at: HashMap::new(),
        }
    }

    fn look(&mut self, message: &BorrowedMessage<'_>, from: &HashMap<i32, i64>, broker: &Arc<str>) {
        let Some(key) = message.key() else { return };
        if message.payload().is_none() {
            self.remove(key);
            return;
        }
        let partition = message.partition();
        let wanted = match from.is_empty() {
            true => true,
            false => from
                .get(&partition)
                .is_some_and(|first| message.offset() >= *first),
        };
        if !wanted {
            return;
        }
        let full = self.candidates.len() >= self.most || self.bytes >= LISTED_BYTES;
        if full || self.full_at.contains_key(&partition) {
            self.full_at.entry(partition).or_insert(message.offset());
            return;
        }
        if let Some(letter) = read(message, broker) {
            self.remove(key);
            self.bytes += letter.delivery.event.size_bytes();
            self.candidates.insert(key.to_vec(), letter);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(letter) = self.candidates.remove(key) {
            self.bytes -= letter.delivery.event.size_bytes();
        }
    }

    fn letters(self, taken: &HashSet<String>) -> impl Iterator<Item = Letter> {
        self.candidates
            .into_iter()
            .filter(|(key, _)| std::str::from_utf8(key).map_or(true, |key| !taken.contains(key)))
            .map(|(_, letter)| letter)
    }
}

/// Where a claimed letter goes when its receipt is settled.
struct Grave {
    topic: String,
    key: String,
    producer: Arc<Producer>,
    taken: Arc<Taken>,
    runtime: tokio::runtime::Handle,
}

impl Grave {
    fn give_back(&self) {
        self.taken.lock().remove(&self.key);
    }
}

impl Answer for Grave {
    fn answer(&self, _: Token, settlement: Settlement) {
        if settlement == Settlement::Redeliver {
            self.give_back();
            return;
        }
        let (topic, key) = (self.topic.clone(), self.key.clone());
        let (producer, taken) = (self.producer.clone(), self.taken.clone());
        self.runtime.spawn(async move {
            let until = tokio::time::Instant::now() + BURY_WITHIN;
            loop {
                let tombstone = Record {
                    topic: &topic,
                    key: Some(key.as_bytes()),
                    stamped: true,
                    ..Record::default()
                };
                match producer.send(tombstone).await {
                    Ok(_) => break,
                    Err(error) if tokio::time::Instant::now() >= until => {
                        warn!(key, %error, "a dead letter could not be removed: it will be listed again");
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
            taken.lock().remove(&key);
        });
    }
}
