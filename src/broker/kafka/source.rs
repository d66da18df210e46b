//! Taking events: one member of the group per source.
//!
//! A source has a client of its own, so that a full window of one never stands before another's
//! events. A client that its group does not answer is replaced by another.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::bail;
use futures_util::{FutureExt as _, StreamExt as _};
use rdkafka::Offset;
use rdkafka::consumer::{Consumer as _, MessageStream};
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::anew::{self, Ids};
use super::client::Reset;
use super::leaders;
use super::member::{Begin, Member};
use super::noted::{Consumer, Noted};
use super::partition::Pulse;
use super::plan::{Plan, SourceSettings, part};
use super::start::{self, Question, Starts};
use super::topics::{self, Catalogue};
use super::wanted::{self, Wanted};
use super::watchdog::{self, Ended, Watchdog};
use super::{Kafka, names};
use crate::broker::Intake;

mod taking;

/// Between two looks at the member when nothing happens.
const TURN: Duration = Duration::from_millis(50);
/// Messages taken in a row before other tasks get their turn.
const BURST: usize = 64;
/// Between looks for new topics that match a pattern.
const DISCOVER: Duration = Duration::from_secs(5);
const BACKOFF: Duration = Duration::from_secs(2);
/// After an error of the client, so that a repeated one does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(200);

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
        let kafka = self.kafka.clone();
        let part = part(&self.settings().name);
        let mut watchdog = Watchdog::new(&kafka, &part);
        self.kafka.status.starting(&part, "looking where to begin");
        loop {
            let Some(prepared) = self.until_prepared(&part, &stop).await else {
                return Ok(());
            };
            let mut member = self.member(&prepared)?;
            subscribe(&member.consumer, &prepared.topics)?;
            self.kafka.status.ready(&part);
            let consumer = member.consumer.clone();
            let work = async {
                let waited = self
                    .wait_for_loop(&mut member, &prepared, &mut watchdog, &loop_seen, &stop)
                    .await?;
                match waited {
                    Some(ended) => Ok(ended),
                    None => {
                        self.take_all(&mut member, prepared, &mut watchdog, &part, &stop)
                            .await
                    }
                }
            };
            let ended = leaders::watched(&kafka, &part, consumer, work).await;
            match ended {
                Ok(Ended::Stopped) => finish(&mut member, &drain).await,
                Ok(Ended::Unanswered) => {
                    // Nobody hears that it leaves.
                    tokio::spawn(member.close());
                    continue;
                }
                Err(_) => {}
            }
            member.close().await;
            return ended.map(|_| ());
        }
    }

    /// Looks where to begin for as long as it takes; `None` on `stop`.
    async fn until_prepared(&self, part: &str, stop: &CancellationToken) -> Option<Prepared> {
        loop {
            match stop.run_until_cancelled(self.prepare()).await? {
                Ok(ready) => return Some(ready),
                Err(error) => self.kafka.status.down(part, format!("{error:#}")),
            }
            stop.run_until_cancelled(sleep(BACKOFF)).await?;
        }
    }

    fn member(&self, prepared: &Prepared) -> anyhow::Result<Member> {
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
        Member::new(
            self.settings().name.clone(),
            &config,
            prepared.begin(),
            self.kafka.lost.clone(),
            Some(self.settings().meters.clone()),
        )
    }

    /// Joins the group and takes nothing, until the loop is seen (`None`) or something ends it.
    async fn wait_for_loop(
        &self,
        member: &mut Member,
        prepared: &Prepared,
        watchdog: &mut Watchdog,
        loop_seen: &watch::Receiver<bool>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Ended>> {
        member.pause();
        let consumer = member.consumer.clone();
        let pulse = member.pulse.clone();
        let mut stream = consumer.stream();
        let mut turn = ticks(TURN);
        let mut look = ticks(watchdog::LOOK_EVERY);
        let mut loop_seen = loop_seen.clone();
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(Some(Ended::Stopped)),
                // Nobody looks any more: it is being stopped.
                true = async { loop_seen.wait_for(|seen| *seen).await.is_ok() } => {
                    member.resume();
                    return Ok(None);
                }
                () = pulse.wake.notified() => { member.turn(); }
                _ = turn.tick() => { member.turn(); }
                _ = look.tick() => if watchdog.gives_up(member, Some(&prepared.topics)).await {
                    return Ok(Some(Ended::Unanswered));
                },
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
}

/// What the client has at hand after so many messages taken in a row.
pub fn more<'a>(
    stream: &mut MessageStream<'a, Noted>,
    taken: usize,
) -> Option<KafkaResult<BorrowedMessage<'a>>> {
    match taken < BURST {
        true => stream.next().now_or_never()?,
        false => None,
    }
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
fn leave_for_later(member: &Member, message: &BorrowedMessage<'_>) {
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
