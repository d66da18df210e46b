//! History: the records of a source's topics between two times, read beside everything else.
//!
//! A client of its own is told which partitions to read, from where; its group, `<group>.history`,
//! is a name for ACLs and quotas and never has a member or an offset. Where a partition begins is
//! asked of the broker (the first record that is not older than the span), where it ends is fixed
//! at the start. Producers may stamp records as they like, so a partition is read a little beyond
//! the end of the span ([`SLACK`]), and each record is held against the span by its own timestamp.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ASK, Connection, Quiet, blocking};
use super::plan::Plan;
use super::reading::Reading;
use super::start::ReaderContext;
use super::{Kafka, names, topics, wanted};
use crate::broker::history::what_there_is;
use crate::broker::{History, Naming, NotPossible, Reach, Refused, Span};
use crate::event::Event;

/// How much later than the span records may lie that were stamped within it.
const SLACK: Duration = Duration::from_secs(600);
/// A reading to which the cluster says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// A second silence, after the cluster has answered, and it is taken for the end.
const SILENCE_AFTER_ANSWER: Duration = Duration::from_secs(10);
/// Records, and bytes of them, that are held at a time.
const AT_ONCE: usize = 256;
const AT_ONCE_BYTES: usize = 4 << 20;
/// How long one look takes in which nothing of the span is met.
const TURN: Duration = Duration::from_secs(1);
/// How long the oldest records are looked for.
const LOOK: Duration = Duration::from_secs(5);

type Reader = BaseConsumer<ReaderContext>;
type Place = (Arc<str>, i32);

/// What one partition has of the span.
#[derive(Debug)]
struct Stretch {
    /// What is there at all, of whatever time.
    low: i64,
    high: i64,
    from: i64,
    /// Not read any more.
    end: i64,
    /// About how many records, without the slack.
    count: u64,
    /// Time of the last event that was given out.
    reached_ms: Option<i64>,
    /// Read to its end, and all of it given out.
    done: bool,
}

/// A client that is dropped on a thread of its own, because that may take long.
struct Client(Option<Reader>);

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(reader) = self.0.take() {
            std::thread::spawn(move || drop(reader));
        }
    }
}

struct Past {
    /// Empty only while a thread reads with it.
    client: Client,
    stretches: BTreeMap<Place, Stretch>,
    span: Span,
    naming: Naming,
    broker: Arc<str>,
    cluster: Arc<str>,
    found: VecDeque<(Place, i64, Event)>,
    /// Partitions whose end was met behind what is in `found`.
    ended: Vec<Place>,
    /// When the cluster last said something.
    heard: Instant,
    /// In the silence since then the cluster was asked whether it is there, and it was.
    answered: bool,
    /// Partition numbers of which the end of a log was met, of whichever topic.
    ends_met: BTreeSet<i32>,
    total: u64,
    notes: Vec<String>,
}

pub async fn open(
    kafka: &Kafka,
    source: &str,
    span: Span,
) -> Result<Box<dyn History>, NotPossible> {
    let plan = plan_of(kafka, source)?;
    let down = |error: anyhow::Error| NotPossible::Unavailable(format!("{error:#}"));
    let cluster = kafka.cluster_id().await.map_err(down)?;
    let there = topics_of(kafka, &plan).await.map_err(down)?;
    let name: Arc<str> = source.into();
    if there.is_empty() {
        let there = "none of its topics exists".to_owned();
        return Err(NotPossible::Nothing { name, there });
    }
    let reader = reader(&kafka.connection, &kafka.settings.group).map_err(down)?;
    let (client, stretches, oldest) = blocking(move || {
        let stretches = stretches(&reader, there, span)?;
        let gone = |stretch: &Stretch| stretch.from == stretch.low && stretch.low > 0;
        let empty = stretches.values().all(|stretch| stretch.count == 0);
        let mut oldest = None;
        if empty || stretches.values().any(gone) {
            oldest = oldest_of(
                &reader,
                stretches.iter().map(|(place, s)| (place, s.low, s.high)),
            )?;
        }
        Ok((Client(Some(reader)), stretches, oldest))
    })
    .await
    .map_err(down)?;
    let total = stretches.values().map(|stretch| stretch.count).sum();
    if total == 0 {
        return Err(match oldest {
            Some(oldest) if span.until <= oldest => NotPossible::TooOld { name, oldest },
            _ => NotPossible::Nothing {
                name,
                there: what_there_is(oldest),
            },
        });
    }
    let settings = &plan.settings;
    let mut notes = Vec::new();
    if let Some(oldest) = oldest.filter(|oldest| span.since < *oldest) {
        notes.push(format!(
            "what the topics no longer have (retention) is gone: {}",
            what_there_is(Some(oldest))
        ));
    }
    if settings.ignore_older_than.is_some() {
        notes.push("`ignore_older_than` of the source does not hold for a replay".to_owned());
    }
    let past = Past {
        client,
        stretches,
        span,
        naming: settings.naming.clone(),
        broker: kafka.settings.name.clone(),
        cluster,
        found: VecDeque::new(),
        ended: Vec::new(),
        heard: Instant::now(),
        answered: false,
        ends_met: BTreeSet::new(),
        total,
        notes,
    };
    past.assign().map_err(down)?;
    Ok(Box::new(past))
}

pub async fn reach(kafka: &Kafka, source: &str) -> Result<Reach, NotPossible> {
    let plan = plan_of(kafka, source)?;
    let down = |error: anyhow::Error| NotPossible::Unavailable(format!("{error:#}"));
    let there = topics_of(kafka, &plan).await.map_err(down)?;
    let reader = reader(&kafka.connection, &kafka.settings.group).map_err(down)?;
    let oldest = blocking(move || {
        let mut all = Vec::new();
        for place in there {
            let (low, high) = reader.fetch_watermarks(&place.0, place.1, ASK)?;
            all.push((place, low, high));
        }
        oldest_of(
            &reader,
            all.iter().map(|(place, low, high)| (place, *low, *high)),
        )
    });
    let oldest = oldest.await.map_err(down)?;
    Ok(Reach { oldest })
}

fn plan_of(kafka: &Kafka, source: &str) -> Result<Arc<Plan>, NotPossible> {
    kafka
        .source(source)
        .ok_or_else(|| NotPossible::UnknownSource {
            broker: kafka.settings.name.clone(),
            name: source.into(),
        })
}

/// Every partition of the source's topics, those that match its patterns now among them.
async fn topics_of(kafka: &Kafka, plan: &Plan) -> anyhow::Result<Vec<Place>> {
    let catalogue = topics::catalogue(&kafka.admin).await?;
    let group = &kafka.settings.group;
    let topics = wanted::topics(group, &plan.wanted, catalogue.keys());
    let mut places = Vec::new();
    for topic in topics {
        let partitions = catalogue.get(&topic).copied().unwrap_or(0);
        let topic: Arc<str> = topic.into();
        places.extend((0..partitions as i32).map(|number| (topic.clone(), number)));
    }
    Ok(places)
}

fn reader(connection: &Connection, group: &str) -> anyhow::Result<Reader> {
    let mut config = connection.reader(&names::history_group(group));
    config
        .set("enable.partition.eof", "true")
        // What retention takes away while it is read is to be said, not passed over.
        .set("auto.offset.reset", "error")
        // It belongs to no group, and is read as slowly as the operator says.
        .set("max.poll.interval.ms", "86400000");
    Ok(config.create_with_context(ReaderContext(Quiet))?)
}

/// Where each partition has records of the span.
fn stretches(
    reader: &Reader,
    places: Vec<Place>,
    span: Span,
) -> anyhow::Result<BTreeMap<Place, Stretch>> {
    let mut ends = HashMap::new();
    for place in &places {
        let watermarks = reader
            .fetch_watermarks(&place.0, place.1, ASK)
            .with_context(|| format!("asking for the ends of {}/{}", place.0, place.1))?;
        ends.insert(place.clone(), watermarks);
    }
    let late = span.until.checked_add(SLACK).unwrap_or(Timestamp::MAX);
    let since = first_since(reader, &places, span.since)?;
    let until = first_since(reader, &places, span.until)?;
    let slack = first_since(reader, &places, late)?;
    let of = |place: Place| {
        let (low, high) = ends[&place];
        let at = |found: &HashMap<Place, i64>| found.get(&place).map_or(high, |o| (*o).min(high));
        let (from, end) = (at(&since), at(&slack));
        let stretch = Stretch {
            low,
            high,
            from,
            end,
            count: (at(&until) - from).max(0).cast_unsigned(),
            reached_ms: None,
            done: from >= end,
        };
        (place, stretch)
    };
    Ok(places.into_iter().map(of).collect())
}

/// The first offset of each partition whose record is not older than `time`; none where all are.
fn first_since(
    reader: &Reader,
    places: &[Place],
    time: Timestamp,
) -> anyhow::Result<HashMap<Place, i64>> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        let at = Offset::Offset(time.as_millisecond().max(0));
        list.add_partition_offset(topic, *partition, at)?;
    }
    let found = reader
        .offsets_for_times(list, ASK)
        .context("asking for offsets of a time")?;
    let mut offsets = HashMap::new();
    for element in found.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert((element.topic().into(), element.partition()), offset);
        }
    }
    Ok(offsets)
}

/// The time of the oldest record, of those partitions that answer in time.
fn oldest_of<'a>(
    reader: &Reader,
    places: impl Iterator<Item = (&'a Place, i64, i64)>,
) -> anyhow::Result<Option<Timestamp>> {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), low, high) in places {
        if low < high {
            list.add_partition_offset(topic, *partition, Offset::Offset(low))?;
        }
    }
    let count = list.count();
    if count == 0 {
        return Ok(None);
    }
    reader.assign(&list)?;
    let until = Instant::now() + LOOK;
    let mut first: HashMap<(String, i32), Option<i64>> = HashMap::new();
    while first.len() < count && Instant::now() < until {
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let place = (message.topic().to_owned(), message.partition());
                let stamp = message.timestamp().to_millis();
                first.entry(place).or_insert(stamp);
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
    reader.assign(&TopicPartitionList::new())?;
    let oldest_ms = first.into_values().flatten().min();
    Ok(oldest_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()))
}

#[async_trait]
impl History for Past {
    fn total(&self) -> u64 {
        self.total
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    async fn next(&mut self) -> Result<Option<Arc<Event>>, Refused> {
        loop {
            if let Some((place, stamp_ms, event)) = self.found.pop_front() {
                if let Some(stretch) = self.stretches.get_mut(&place) {
                    stretch.reached_ms = stretch.reached_ms.max(Some(stamp_ms));
                }
                // Silence is counted from when somebody listens again.
                self.heard = Instant::now();
                return Ok(Some(Arc::new(event)));
            }
            for place in std::mem::take(&mut self.ended) {
                if let Some(stretch) = self.stretches.get_mut(&place) {
                    stretch.done = true;
                }
            }
            if self.stretches.values().all(|stretch| stretch.done) {
                return Ok(None);
            }
            self.read_on().await.map_err(|error| Refused::Unavailable {
                broker: self.broker.clone(),
                why: format!("{error:#}"),
            })?;
        }
    }

    /// The partition that is furthest behind says it; one that is read for its slack only does not.
    fn reached(&self) -> Option<Timestamp> {
        let with_some = |stretch: &&Stretch| !stretch.done && stretch.count > 0;
        let reading = self.stretches.values().filter(with_some);
        let behind = reading.map(|s| s.reached_ms.unwrap_or(self.span.since.as_millisecond()));
        let done = self.stretches.values().filter_map(|s| s.reached_ms);
        let reached_ms = behind.min().or_else(|| done.max())?;
        Timestamp::from_millisecond(reached_ms).ok()
    }
}

impl Past {
    /// Tells the client what to read.
    fn assign(&self) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), stretch) in &self.stretches {
            if !stretch.done {
                list.add_partition_offset(topic, *partition, Offset::Offset(stretch.from))?;
            }
        }
        let reader = self.client.0.as_ref().context("the reader is busy")?;
        Ok(reader.assign(&list)?)
    }

    /// Fills `found`, on a thread that may block.
    async fn read_on(&mut self) -> anyhow::Result<()> {
        let client = Client(self.client.0.take());
        let ends = self.stretches.iter().filter(|(_, stretch)| !stretch.done);
        let look = Look {
            ends: ends.map(|(place, s)| (place.clone(), s.end)).collect(),
            // The library says of which partition it has met the end, but not of which topic.
            one_topic: self.topics() == 1,
            span: self.span,
            heard: self.heard,
            answered: self.answered,
            ends_met: std::mem::take(&mut self.ends_met),
            found: VecDeque::new(),
            ended: Vec::new(),
        };
        let naming = self.naming.clone();
        let (broker, cluster) = (self.broker.clone(), self.cluster.clone());
        let read = blocking(move || {
            let reading = Reading {
                naming: &naming,
                broker: &broker,
                cluster: &cluster,
            };
            let reader = client.0.as_ref().context("an earlier reading failed")?;
            let look = look.read(reader, &reading)?;
            Ok((client, look))
        });
        let (client, look) = read.await?;
        self.client = client;
        self.found = look.found;
        self.ended = look.ended;
        (self.heard, self.answered) = (look.heard, look.answered);
        self.ends_met = look.ends_met;
        Ok(())
    }

    fn topics(&self) -> usize {
        let topics: BTreeSet<_> = self.stretches.keys().map(|(topic, _)| topic).collect();
        topics.len()
    }
}

/// One look at what comes next.
struct Look {
    /// The ends of those partitions that are still read.
    ends: BTreeMap<Place, i64>,
    one_topic: bool,
    span: Span,
    heard: Instant,
    answered: bool,
    ends_met: BTreeSet<i32>,
    found: VecDeque<(Place, i64, Event)>,
    ended: Vec<Place>,
}

impl Look {
    /// Reads until there is enough, or for a while. Blocks.
    fn read(mut self, reader: &Reader, reading: &Reading<'_>) -> anyhow::Result<Self> {
        let until = Instant::now() + TURN;
        let mut bytes = 0;
        while self.found.len() < AT_ONCE && bytes < AT_ONCE_BYTES && !self.ends.is_empty() {
            if Instant::now() >= until {
                break;
            }
            // What is there is handed over at once; only for the first of a look is waited.
            let wait = if self.found.is_empty() && self.ended.is_empty() {
                Duration::from_millis(100)
            } else {
                Duration::ZERO
            };
            match reader.poll(wait) {
                Some(Ok(message)) => {
                    (self.heard, self.answered) = (Instant::now(), false);
                    let Some(place) = self.place(message.topic(), message.partition()) else {
                        continue;
                    };
                    let end = self.ends[&place];
                    let stamp_ms = message.timestamp().to_millis();
                    if message.offset() < end
                        && let Some(stamp_ms) = stamp_ms.filter(|ms| self.span.contains_ms(*ms))
                    {
                        let event = reading.event(&message, &place.0);
                        bytes += event.size_bytes();
                        self.found.push_back((place.clone(), stamp_ms, event));
                    }
                    if message.offset() + 1 >= end {
                        self.end(reader, place)?;
                    }
                }
                // The last records of a log may be none that are handed over (transactions).
                Some(Err(KafkaError::PartitionEOF(number))) => {
                    (self.heard, self.answered) = (Instant::now(), false);
                    self.ends_met.insert(number);
                    let met = self.ends.keys().find(|(_, n)| *n == number).cloned();
                    if let Some(place) = met.filter(|_| self.one_topic) {
                        self.end(reader, place)?;
                    }
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => bail!(
                        "events of the range were removed from a topic (retention) while they were read"
                    ),
                    _ => self.bear_silence(reader)?,
                },
                None if wait.is_zero() => break,
                None => self.bear_silence(reader)?,
            }
        }
        Ok(self)
    }

    fn place(&self, topic: &str, number: i32) -> Option<Place> {
        let (place, _) = self.ends.range((Arc::from(topic), number)..).next()?;
        (*place.0 == *topic && place.1 == number).then(|| place.clone())
    }

    /// Nothing more is wanted of this partition.
    fn end(&mut self, reader: &Reader, place: Place) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&place.0, place.1);
        reader.pause(&list)?;
        self.ends.remove(&place);
        self.ended.push(place);
        Ok(())
    }

    /// Nothing has come. After a while that is either the end, where it was met before, or an error.
    fn bear_silence(&mut self, reader: &Reader) -> anyhow::Result<()> {
        let borne = match self.answered {
            true => SILENCE_AFTER_ANSWER,
            false => SILENCE,
        };
        if self.heard.elapsed() < borne {
            return Ok(());
        }
        if !self.ends.keys().all(|(_, n)| self.ends_met.contains(n)) {
            bail!("the cluster has said nothing for {SILENCE:?}");
        }
        if !self.answered {
            // An end that was met may be another topic's; an outage is as silent as the end.
            for (topic, number) in self.ends.keys() {
                let there = reader.fetch_watermarks(topic, *number, ASK);
                there.with_context(|| {
                    format!("the cluster has said nothing of {topic}/{number} for {SILENCE:?}")
                })?;
            }
            (self.heard, self.answered) = (Instant::now(), true);
            return Ok(());
        }
        let ended: Vec<_> = self.ends.keys().cloned().collect();
        for place in ended {
            self.end(reader, place)?;
        }
        Ok(())
    }
}
