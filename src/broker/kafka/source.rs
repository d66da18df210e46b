//! Taking events: one member of the group per source.
//!
//! A source has a client of its own, so that a full window of one never stands before another's
//! events. While a window is full for a moment the next event simply waits in hand; when that
//! takes longer than [`PATIENCE`] the partitions are paused and the client is polled beside the
//! wait, because a member that does not poll is put out of its group, and because pausing throws
//! away what was fetched ahead.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::bail;
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use rdkafka::Offset;
use rdkafka::bindings as native;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::anew::{self, Ids};
use super::client::Reset;
use super::member::{Begin, Consumer, Member};
use super::partition::{Partition, Pulse};
use super::plan::{Plan, SourceSettings, part};
use super::reading::Reading;
use super::start::{self, Question, Starts};
use super::topics::{self, Catalogue};
use super::wanted::{self, Wanted};
use super::{Kafka, names};
use crate::broker::{Admission, Intake};
use crate::event::Event;

/// Between two looks at the member when nothing happens.
const TURN: Duration = Duration::from_millis(50);
/// How long an event waits in hand before its source is paused.
const PATIENCE: Duration = Duration::from_secs(1);
/// Messages taken in a row before other tasks get their turn.
const BURST: usize = 64;
/// Between looks for new topics that match a pattern.
const DISCOVER: Duration = Duration::from_secs(5);
const BACKOFF: Duration = Duration::from_secs(2);
/// After an error of the client, so that a repeated one does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(200);
const LAG_EVERY: Duration = Duration::from_secs(5);

/// A source while it runs.
pub struct Source {
    kafka: Arc<Kafka>,
    plan: Arc<Plan>,
    intake: Intake,
    cluster: Arc<str>,
    /// Topics of which the log already says that old events are ignored.
    said_old: HashSet<Arc<str>>,
}

/// What is known before the first take.
struct Prepared {
    /// What to subscribe to.
    topics: BTreeSet<String>,
    /// Of those that there are.
    partitions: Catalogue,
    ids: Ids,
    /// Where partitions begin that have no offset.
    starts: Arc<Mutex<Starts>>,
}

impl Prepared {
    fn begin(&self) -> Begin {
        let starts = self.starts.clone();
        Arc::new(move |topic, partition| {
            lock(&starts)
                .get(&(topic.to_owned(), partition))
                .map_or(Offset::Beginning, |offset| Offset::Offset(*offset))
        })
    }
}

fn lock(starts: &Mutex<Starts>) -> MutexGuard<'_, Starts> {
    starts.lock().unwrap_or_else(|p| p.into_inner())
}

/// How taking one message ended.
enum Step {
    Next,
    Stopped,
}

impl Source {
    pub fn new(kafka: Arc<Kafka>, plan: Arc<Plan>, intake: Intake, cluster: Arc<str>) -> Self {
        Self {
            kafka,
            plan,
            intake,
            cluster,
            said_old: HashSet::new(),
        }
    }

    /// Takes from when the loop of retries is seen to work until `stop`, then commits until all receipts
    /// are answered or `drain`.
    pub async fn run(
        mut self,
        loop_seen: watch::Receiver<bool>,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let part = part(&self.settings().name);
        self.kafka.status.starting(&part, "looking where to begin");
        let prepared = loop {
            let ready = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                ready = self.prepare() => ready,
            };
            match ready {
                Ok(ready) => break ready,
                Err(error) => self.kafka.status.down(&part, format!("{error:#}")),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(BACKOFF) => {}
            }
        };
        let settings = &self.kafka.settings;
        let instance = settings
            .instance
            .as_ref()
            .map(|i| format!("{i}.{}.{}", settings.name, self.settings().name))
            .map(|name| names::member(&name, &prepared.partitions));
        let config =
            self.kafka
                .connection
                .member(&settings.group, instance.as_deref(), Reset::Error);
        let mut member = Member::new(
            self.settings().name.clone(),
            &config,
            prepared.begin(),
            self.kafka.lost.clone(),
            Some(self.settings().meters.clone()),
        )?;
        subscribe(&member.consumer, &prepared.topics)?;
        self.kafka.status.ready(&part);
        let ended = match self.wait_for_loop(&mut member, loop_seen, &stop).await {
            Ok(()) => self.take_all(&mut member, prepared, &part, &stop).await,
            fatal => fatal,
        };
        if ended.is_ok() {
            finish(&mut member, &drain).await;
        }
        member.close().await;
        ended
    }

    /// Joins the group and takes nothing, until the loop is seen or `stop`.
    async fn wait_for_loop(
        &self,
        member: &mut Member,
        mut loop_seen: watch::Receiver<bool>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        member.pause();
        let consumer = member.consumer.clone();
        let pulse = member.pulse.clone();
        let mut stream = consumer.stream();
        let mut turn = ticks(TURN);
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                // Nobody looks any more: it is being stopped.
                true = async { loop_seen.wait_for(|seen| *seen).await.is_ok() } => {
                    member.resume();
                    return Ok(());
                }
                () = pulse.wake.notified() => { member.turn(); }
                _ = turn.tick() => { member.turn(); }
                message = stream.next() => match message {
                    Some(Ok(message)) => leave_for_later(member, &message),
                    Some(Err(error)) => {
                        if let Some(reason) = member.fatal() {
                            bail!("source `{}` cannot go on: {reason}", self.settings().name);
                        }
                        self.note(member, &error).await?;
                    }
                    None => sleep(AFTER_ERROR).await,
                },
            }
        }
    }

    /// Where partitions begin that have no offset, and what to subscribe to at first.
    async fn prepare(&self) -> anyhow::Result<Prepared> {
        let settings = &self.kafka.settings;
        let catalogue = topics::catalogue(&self.kafka.admin).await?;
        let topics = self.topics(&catalogue)?;
        let there = topics.iter().filter(|topic| catalogue.contains_key(*topic));
        // Without them a topic that was made anew would begin where the old one had been left.
        let ids = anew::ids(&self.kafka.admin, &there.cloned().collect()).await?;
        let starts = start::resolve(Question {
            connection: &self.kafka.connection,
            producer: &self.kafka.producer,
            group: &settings.group,
            source: &self.settings().name,
            start: self.settings().start,
            wanted: &self.plan.wanted,
            catalogue: &catalogue,
            ids: &ids,
        })
        .await?;
        let mut partitions = catalogue;
        partitions.retain(|topic, _| topics.contains(topic));
        Ok(Prepared {
            topics,
            partitions,
            ids,
            starts: Arc::new(Mutex::new(starts)),
        })
    }

    /// The topics of this source; an error when another one of this broker has one of them too.
    fn topics(&self, catalogue: &topics::Catalogue) -> anyhow::Result<BTreeSet<String>> {
        let group = &self.kafka.settings.group;
        let topics = wanted::topics(group, &self.plan.wanted, catalogue.keys());
        for other in self.kafka.sources.load().iter() {
            let (name, wanted) = (&other.settings.name, &other.wanted);
            if *name == self.settings().name {
                continue;
            }
            let shared = topics
                .iter()
                .find(|topic| wanted.iter().any(|wanted| wanted.wants(group, topic)));
            if let Some(topic) = shared {
                bail!("topic {topic} belongs to source `{name}` as well");
            }
        }
        Ok(topics)
    }

    /// What to subscribe to; where there are patterns, new topics are looked for from time to time, as
    /// long as somebody listens.
    fn discover(&self, first: BTreeSet<String>, part: &str) -> watch::Receiver<BTreeSet<String>> {
        let (found, topics) = watch::channel(first);
        if !self.plan.wanted.iter().any(Wanted::is_pattern) {
            return topics;
        }
        let kafka = self.kafka.clone();
        let this = Source::new(
            kafka.clone(),
            self.plan.clone(),
            self.intake.clone(),
            self.cluster.clone(),
        );
        let part = part.to_owned();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = found.closed() => return,
                    () = sleep(DISCOVER) => {}
                }
                let Ok(catalogue) = topics::catalogue(&kafka.admin).await else {
                    continue;
                };
                match this.topics(&catalogue) {
                    // It has ended meanwhile, and says of itself nothing more.
                    _ if found.is_closed() => return,
                    Ok(topics) => {
                        kafka.status.ready(&part);
                        found.send_if_modified(|known| {
                            let new = *known != topics;
                            *known = topics;
                            new
                        });
                    }
                    Err(error) => kafka.status.down(&part, format!("{error:#}")),
                }
            }
        });
        topics
    }

    pub fn settings(&self) -> &SourceSettings {
        &self.plan.settings
    }

    async fn take_all(
        &mut self,
        member: &mut Member,
        prepared: Prepared,
        part: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let consumer = member.consumer.clone();
        let pulse = member.pulse.clone();
        let mut stream = consumer.stream();
        let Prepared {
            topics,
            ids,
            starts,
            partitions: _,
        } = prepared;
        let mut topics = self.discover(topics, part);
        let admin = self.kafka.admin.clone();
        let mut made_anew = anew::follow(admin, &self.settings().name, topics.clone(), ids);
        let mut turn = ticks(TURN);
        let mut lag = ticks(LAG_EVERY);
        loop {
            // What was answered and what the group wants go before new events.
            let message = tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                () = pulse.wake.notified() => {
                    member.turn();
                    continue;
                }
                _ = turn.tick() => {
                    member.turn();
                    continue;
                }
                _ = lag.tick() => {
                    self.measure(member);
                    continue;
                }
                Some(topic) = made_anew.recv() => {
                    lock(&starts).retain(|(of, _), _| *of != topic);
                    self.begin_anew(member, &topic);
                    continue;
                }
                new = changed(&mut topics) => {
                    info!(source = %self.settings().name, topics = new.len(), "topics that match have changed");
                    subscribe(&consumer, &new)?;
                    continue;
                }
                message = stream.next() => message,
            };
            let mut next = message;
            for taken in 1.. {
                match next {
                    Some(Ok(message)) => {
                        if let Step::Stopped = self.take(message, member, stop).await {
                            return Ok(());
                        }
                    }
                    Some(Err(error)) => {
                        if let Some(reason) = member.fatal() {
                            bail!("source `{}` cannot go on: {reason}", self.settings().name);
                        }
                        self.note(member, &error).await?;
                    }
                    None => break,
                }
                if taken == BURST {
                    break;
                }
                next = match stream.next().now_or_never() {
                    Some(next) => next,
                    None => break,
                };
            }
            tokio::task::yield_now().await;
        }
    }

    async fn take(
        &mut self,
        message: BorrowedMessage<'_>,
        member: &mut Member,
        stop: &CancellationToken,
    ) -> Step {
        let offset = message.offset();
        let Some(partition) = member
            .partition(message.topic(), message.partition())
            .cloned()
        else {
            return Step::Next;
        };
        if !partition.receive(offset) {
            return Step::Next;
        }
        self.settings().meters.received.inc();
        if self.too_old(&message, &partition) {
            self.settings().meters.settled.inc();
            partition.settle(offset);
            return Step::Next;
        }
        let event = self.event(&message, &partition);
        drop(message);
        let size = event.size_bytes();
        let admission = match self.intake.try_admit(size) {
            Some(admission) => admission,
            None => match self.wait_for_room(size, member, stop).await {
                Some(admission) => admission,
                None => {
                    partition.give_back(offset);
                    return Step::Stopped;
                }
            },
        };
        let token = partition.token(offset);
        self.intake.event(event, partition, token, admission);
        Step::Next
    }

    /// Room for the event in hand; `None` on `stop`.
    async fn wait_for_room(
        &self,
        size: usize,
        member: &mut Member,
        stop: &CancellationToken,
    ) -> Option<Admission> {
        let intake = self.intake.clone();
        let admit = intake.admit(size);
        tokio::pin!(admit);
        let pulse = member.pulse.clone();
        let mut turn = ticks(TURN);
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            tokio::select! { biased;
                admission = &mut admit => return Some(admission),
                () = stop.cancelled() => return None,
                () = pulse.wake.notified() => { member.turn(); }
                _ = turn.tick() => { member.turn(); }
            }
        }
        member.pause();
        let consumer = member.consumer.clone();
        let mut stream = consumer.stream();
        let mut lag = ticks(LAG_EVERY);
        let admission = loop {
            tokio::select! { biased;
                admission = &mut admit => break Some(admission),
                () = stop.cancelled() => break None,
                () = pulse.wake.notified() => { member.turn(); }
                _ = turn.tick() => { member.turn(); }
                // What is paused falls behind all the same.
                _ = lag.tick() => { self.measure(member); }
                message = stream.next() => match message {
                    // Fetched before the pause took hold: again, later.
                    Some(Ok(message)) => leave_for_later(member, &message),
                    _ => sleep(AFTER_ERROR).await,
                },
            }
        };
        member.resume();
        admission
    }

    fn too_old(&mut self, message: &BorrowedMessage<'_>, partition: &Partition) -> bool {
        let (Some(limit), Some(stamp)) = (
            self.settings().ignore_older_than,
            message.timestamp().to_millis(),
        ) else {
            return false;
        };
        let age_ms = Timestamp::now().as_millisecond() - stamp;
        let old = age_ms > limit.as_millis() as i64;
        if old && self.said_old.insert(partition.topic.clone()) {
            warn!(
                source = %self.settings().name,
                topic = %partition.topic,
                "events older than `ignore_older_than` are settled without being sent"
            );
        }
        old
    }

    fn event(&self, message: &BorrowedMessage<'_>, partition: &Partition) -> Event {
        let read = Reading {
            naming: &self.settings().naming,
            broker: &self.kafka.settings.name,
            cluster: &self.cluster,
        };
        read.event(message, &partition.topic)
    }

    async fn note(
        &self,
        member: &mut Member,
        error: &rdkafka::error::KafkaError,
    ) -> anyhow::Result<()> {
        use rdkafka::error::RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset) => self.find_lost_offsets(member).await?,
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                warn!(source = %self.settings().name, "a topic of this source does not exist (yet)");
            }
            _ => tracing::debug!(source = %self.settings().name, %error, "the client reports"),
        }
        sleep(AFTER_ERROR).await;
        Ok(())
    }

    /// A topic was deleted and made anew: what is in it now is taken from its beginning.
    fn begin_anew(&self, member: &mut Member, topic: &str) {
        let of_topic = |partition: &&Arc<Partition>| &*partition.topic == topic;
        let partitions: Vec<_> = member.partitions().filter(of_topic).cloned().collect();
        warn!(
            source = %self.settings().name,
            topic,
            partitions = partitions.len(),
            "the topic was made anew: taking it from its beginning"
        );
        for partition in partitions {
            member.begin_anew(&partition, 0);
        }
    }

    /// The log no longer has (or never had) the offset that we stand at: retention was shorter
    /// than our absence, or the topic was made anew. What is gone is gone, and is said; what is
    /// left is taken from its beginning.
    async fn find_lost_offsets(&self, member: &mut Member) -> anyhow::Result<()> {
        let partitions: Vec<_> = member.partitions().cloned().collect();
        for partition in partitions {
            let consumer = member.consumer.clone();
            let (topic, number) = (partition.topic.clone(), partition.number);
            let asked = super::client::blocking(move || {
                Ok(consumer.fetch_watermarks(&topic, number, super::client::ASK)?)
            });
            let Ok((low, high)) = asked.await else {
                continue;
            };
            let next = partition.stands_at();
            if (low..=high).contains(&next) {
                continue;
            }
            let gone = (low - next).max(0);
            self.settings().meters.gone.inc_by(gone.unsigned_abs());
            warn!(
                source = %self.settings().name,
                topic = %partition.topic,
                partition = partition.number,
                stood_at = next,
                first = low,
                end = high,
                gone,
                "events are gone from the topic before they were taken (retention, or the topic \
                 was made anew); going on with what is left"
            );
            member.begin_anew(&partition, low);
        }
        Ok(())
    }

    /// Messages behind the end, from what the client knows without asking.
    fn measure(&self, member: &Member) {
        let mut lags = std::collections::BTreeMap::new();
        for partition in member.partitions() {
            if let Some(high) = known_end(&member.consumer, partition) {
                let behind = (high - partition.next()).max(0) + partition.in_hand() as i64;
                *lags.entry(partition.number).or_insert(0) += behind;
            }
        }
        for (number, lag) in lags {
            self.settings().meters.lag(number, lag);
        }
    }
}

/// The partition's end as of the last fetch.
fn known_end(consumer: &Consumer, partition: &Partition) -> Option<i64> {
    let topic = std::ffi::CString::new(&*partition.topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the name is NUL-terminated, both results are written to.
    let error = unsafe {
        native::rd_kafka_get_watermark_offsets(
            consumer.client().native_ptr(),
            topic.as_ptr(),
            partition.number,
            &raw mut low,
            &raw mut high,
        )
    };
    (error == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}

pub fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn subscribe(consumer: &Consumer, topics: &BTreeSet<String>) -> anyhow::Result<()> {
    if topics.is_empty() {
        return Ok(());
    }
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    Ok(consumer.subscribe(&topics)?)
}

/// The new set of topics; never comes where there are no patterns.
async fn changed(topics: &mut watch::Receiver<BTreeSet<String>>) -> BTreeSet<String> {
    match topics.changed().await {
        Ok(()) => topics.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

/// Marks a message that comes while nothing may be taken as one to fetch again.
pub fn leave_for_later(member: &Member, message: &BorrowedMessage<'_>) {
    if let Some(partition) = member.partition(message.topic(), message.partition())
        && partition.receive(message.offset())
    {
        partition.give_back(message.offset());
    }
}

/// Takes nothing more, and commits until nothing is in hand or `drain`.
pub async fn finish(member: &mut Member, drain: &CancellationToken) {
    member.pause();
    let consumer = member.consumer.clone();
    let pulse: Arc<Pulse> = member.pulse.clone();
    let mut stream = consumer.stream();
    let mut turn = ticks(Duration::from_millis(20));
    while member.in_hand() > 0 {
        tokio::select! { biased;
            () = drain.cancelled() => return,
            () = pulse.wake.notified() => { member.turn(); }
            _ = turn.tick() => { member.turn(); }
            message = stream.next() => {
                if !matches!(message, Some(Ok(_))) {
                    sleep(AFTER_ERROR).await;
                }
            }
        }
    }
}
