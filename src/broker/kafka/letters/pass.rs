//! One pass over the dead letters, in two readings of the topic.
//!
//! The first finds which record of each key is alive: a tombstone may lie far behind its letter. It
//! keeps a hash and an offset for each letter, no bodies. The second, on a thread of its own, begins
//! at the oldest that is alive and hands the letters over as they are asked for: in the order of
//! each partition, the partitions merged by when the letters died. Where the merge would have to
//! hold more than [`AHEAD_BYTES`] to be exact, it is as near as that allows.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use async_trait::async_trait;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::lock::{self, Lock};
use super::scan::scan;
use super::{is_marker, names, read};
use crate::broker::envelope::Envelope;
use crate::broker::kafka::Kafka;
use crate::broker::kafka::client::{Connection, blocking};
use crate::broker::kafka::produce::{Producer, Record};
use crate::broker::kafka::put;
use crate::broker::kafka::walk::{SILENCE, reader};
use crate::broker::letters::nothing_to_remove;
use crate::broker::{Broker, Letter, Letters, NotOpened, Purpose, Refused, Wait};

/// Letters read ahead of the one that is asked for, beside those that the merge holds.
const AHEAD: usize = 16;
/// Bytes of letters that the merge holds.
const AHEAD_BYTES: usize = 8 << 20;

/// One pass over the dead letters.
pub struct Pass {
    broker: Arc<str>,
    topic: String,
    /// Where deliveries are parked that are to be due at once: the shortest tier.
    way_back: String,
    /// For the changes: they go one after the other.
    producer: Option<Producer>,
    total: u64,
    found: mpsc::Receiver<anyhow::Result<Found>>,
    in_hand: Option<(i32, Vec<u8>)>,
    lock: Option<Lock>,
}

/// A letter and where its tombstone goes.
struct Found {
    letter: Letter,
    partition: i32,
    key: Vec<u8>,
}

/// Opens the letters, as far as they reach now.
pub async fn open(kafka: &Kafka, purpose: Purpose) -> Result<Pass, NotOpened> {
    let lock = match purpose {
        Purpose::List => None,
        Purpose::Change => Some(lock::hold(kafka, &kafka.settings.group).await?),
    };
    let (connection, group) = (kafka.connection.clone(), kafka.settings.group.clone());
    let alive = blocking(move || alive(&connection, &group)).await;
    let alive = alive.map_err(|error| kafka.unavailable(&error))?;
    let total = alive.values().map(|offsets| offsets.len() as u64).sum();
    let producer = match purpose {
        Purpose::List => None,
        Purpose::Change => Some(
            kafka
                .producer_at_once()
                .map_err(|error| kafka.unavailable(&error))?,
        ),
    };
    let hop = kafka
        .settings
        .tiers
        .hop(Wait::AT_ONCE.delay, Wait::AT_ONCE.delay);
    let (out, found) = mpsc::channel(AHEAD);
    let stream = Stream {
        connection: kafka.connection.clone(),
        group: kafka.settings.group.clone(),
        broker: kafka.settings.name.clone(),
        unread: alive,
        out,
    };
    tokio::task::spawn_blocking(move || stream.run());
    Ok(Pass {
        broker: kafka.settings.name.clone(),
        topic: names::dead(&kafka.settings.group),
        way_back: names::tier(&kafka.settings.group, Wait::AT_ONCE.kind, hop.tier),
        producer,
        total,
        found,
        in_hand: None,
        lock,
    })
}

impl Pass {
    fn unavailable(&self, why: String) -> Refused {
        Refused::Unavailable {
            broker: self.broker.clone(),
            why,
        }
    }

    fn still_locked(&self) -> Result<(), Refused> {
        match &self.lock {
            Some(lock) if lock.is_lost() => Err(self.unavailable(
                "the replay lock was lost, somebody else may hold it now: begin again".into(),
            )),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Letters for Pass {
    fn total(&self) -> Option<u64> {
        Some(self.total)
    }

    async fn next(&mut self) -> Result<Option<Letter>, Refused> {
        self.in_hand = None;
        self.still_locked()?;
        match self.found.recv().await {
            Some(Ok(found)) => {
                self.in_hand = Some((found.partition, found.key));
                Ok(Some(found.letter))
            }
            Some(Err(error)) => Err(self.unavailable(format!("{error:#}"))),
            None => Ok(None),
        }
    }

    async fn remove(&mut self) -> Result<(), Refused> {
        self.still_locked()?;
        let (producer, (partition, key)) = match (&self.producer, self.in_hand.take()) {
            (Some(producer), Some(place)) => (producer, place),
            _ => return Err(nothing_to_remove(&self.broker)),
        };
        let tombstone = Record {
            topic: &self.topic,
            // Where the letter lies, even if the topic was widened since.
            partition: Some(partition),
            key: Some(&key),
            stamped: true,
            ..Record::default()
        };
        producer.send(tombstone).await.map(drop)
    }

    async fn send_again(&mut self, _: &dyn Broker, letter: &Letter) -> Result<(), Refused> {
        self.still_locked()?;
        let (Some(producer), Some(_)) = (&self.producer, &self.in_hand) else {
            return Err(nothing_to_remove(&self.broker));
        };
        let delivery = letter.revived_on(&self.broker)?;
        let Wait { kind, delay } = Wait::AT_ONCE;
        let envelope = Envelope::parked(&delivery, kind, delay, delay);
        put(producer, &self.way_back, None, &envelope).await?;
        // Only then: nothing says in which order two partitions get what is on its way to both.
        self.remove().await
    }

    async fn close(&mut self) {
        self.found.close();
        if let Some(lock) = self.lock.take() {
            lock.release().await;
        }
    }
}

/// Offsets of the records that are alive, by partition, ascending.
pub type Alive = BTreeMap<i32, VecDeque<i64>>;

/// The records that no tombstone and no later record of their key has replaced. Blocks.
pub fn alive(connection: &Connection, group: &str) -> anyhow::Result<Alive> {
    let hashes = RandomState::new();
    let mut latest: HashMap<u64, (i32, i64)> = HashMap::new();
    scan(connection, group, None, &mut |message| {
        let Some(key) = message.key() else {
            return true;
        };
        let key = hashes.hash_one((message.partition(), key));
        if message.payload().is_none() || is_marker(message) {
            latest.remove(&key);
        } else {
            latest.insert(key, (message.partition(), message.offset()));
        }
        true
    })?;
    let mut alive = Alive::new();
    for (partition, offset) in latest.into_values() {
        alive.entry(partition).or_default().push_back(offset);
    }
    for offsets in alive.values_mut() {
        offsets.make_contiguous().sort_unstable();
    }
    Ok(alive)
}

/// The second reading.
struct Stream {
    connection: Connection,
    group: Arc<str>,
    broker: Arc<str>,
    /// What is alive and not read yet.
    unread: Alive,
    out: mpsc::Sender<anyhow::Result<Found>>,
}

impl Stream {
    /// Blocks, until all is handed over or nobody wants more.
    fn run(mut self) {
        if let Err(error) = self.read_all() {
            let _ = self.out.blocking_send(Err(error));
        }
    }

    fn read_all(&mut self) -> anyhow::Result<()> {
        self.unread.retain(|_, offsets| !offsets.is_empty());
        if self.unread.is_empty() {
            return Ok(());
        }
        let topic = names::dead(&self.group);
        let reader = reader(&self.connection, &self.group)?;
        let mut list = TopicPartitionList::new();
        for (&partition, offsets) in &self.unread {
            list.add_partition_offset(&topic, partition, Offset::Offset(offsets[0]))?;
        }
        reader.assign(&list)?;
        let mut merge = Merge::default();
        let mut heard = Instant::now();
        loop {
            while let Some(found) = merge.pop(&self.unread) {
                if self.out.blocking_send(Ok(found)).is_err() {
                    return Ok(());
                }
                heard = Instant::now();
            }
            if self.unread.is_empty() {
                return Ok(());
            }
            match reader.poll(Duration::from_millis(200)) {
                None if self.out.is_closed() => return Ok(()),
                None => {}
                Some(Ok(message)) => {
                    heard = Instant::now();
                    if self.is_wanted(message.partition(), message.offset()) {
                        merge.push(found(&message, &self.broker));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    // What is left of it was compacted away meanwhile.
                    self.unread.remove(&partition);
                }
                Some(Err(error)) if heard.elapsed() > SILENCE => return Err(error.into()),
                Some(Err(_)) => {}
            }
            if heard.elapsed() > SILENCE {
                bail!("reading topic {topic} came to a stop");
            }
        }
    }

    fn is_wanted(&mut self, partition: i32, offset: i64) -> bool {
        let Some(offsets) = self.unread.get_mut(&partition) else {
            return false;
        };
        while offsets.front().is_some_and(|&first| first < offset) {
            offsets.pop_front();
        }
        let wanted = offsets.front() == Some(&offset);
        if wanted {
            offsets.pop_front();
        }
        if offsets.is_empty() {
            self.unread.remove(&partition);
        }
        wanted
    }
}

fn found(message: &BorrowedMessage<'_>, broker: &Arc<str>) -> Found {
    Found {
        letter: read(message, broker),
        partition: message.partition(),
        key: message.key().unwrap_or_default().to_vec(),
    }
}

/// Letters that wait for older ones of other partitions.
#[derive(Default)]
struct Merge {
    waiting: BTreeMap<i32, VecDeque<Found>>,
    bytes: usize,
}

impl Merge {
    fn push(&mut self, found: Found) {
        self.bytes += size(&found);
        let waiting = self.waiting.entry(found.partition).or_default();
        waiting.push_back(found);
    }

    /// The oldest, once no partition with something unread can have an older one, or there is no
    /// room to wait for it.
    fn pop(&mut self, unread: &Alive) -> Option<Found> {
        let known = unread
            .keys()
            .all(|partition| self.waiting.contains_key(partition));
        if !known && self.bytes < AHEAD_BYTES {
            return None;
        }
        let oldest = self
            .waiting
            .iter()
            .filter_map(|(partition, waiting)| Some((waiting.front()?.letter.dead_at, *partition)))
            .min()?
            .1;
        let waiting = self.waiting.get_mut(&oldest)?;
        let found = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&oldest);
        }
        self.bytes -= size(&found);
        Some(found)
    }
}

fn size(found: &Found) -> usize {
    found.letter.delivery.event.size_bytes() + 512
}
