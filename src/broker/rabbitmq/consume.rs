//! Consuming: one connection's life, from declaring what is missing to the last acknowledgement.
//!
//! Due queues are fed first; then a marker goes once through the shortest tier and back, and only
//! when that loop is seen to work are sources taken from. A source whose queue is missing or refused
//! is tried again on the same connection, and the others go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::{Stream, StreamExt as _};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, Event};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::acks::Acks;
use super::connect::{Backoff, answer, hang_up};
use super::room::Room;
use super::taker::Taker;
use super::{RabbitMq, SourceSettings, failures, topology};
use crate::broker::{Health, Intake, Intakes, roster};
use crate::delivery::WaitKind;

/// RabbitMQ's own limit for quorum queues.
const MAX_PREFETCH: usize = 2_000;
/// How often a stopping session looks whether all receipts are answered.
const DRAIN_CHECK: Duration = Duration::from_millis(20);
/// How often the state of the feeds becomes the broker's health.
const HEALTH_CHECK: Duration = Duration::from_millis(100);
/// For a goodbye, which nothing depends on.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// A consumer that ran so long has worked: its end starts the backoff anew.
const STEADY: Duration = Duration::from_secs(60);

/// What a consumer feeds.
#[derive(Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there are as many as consumers, and few move"
)]
pub enum Feed {
    Source(Box<SourceSettings>, Intake),
    Due(WaitKind, Intake),
}

impl Feed {
    fn intake(&self) -> &Intake {
        match self {
            Self::Source(_, intake) | Self::Due(_, intake) => intake,
        }
    }
}

/// Connects, feeds the intakes, and returns when the connection has ended or `stop` was answered.
pub async fn session(
    broker: &Arc<RabbitMq>,
    intakes: &Intakes,
    stop: &CancellationToken,
    drain: &CancellationToken,
    backoff: &mut Backoff,
) -> anyhow::Result<()> {
    broker.set_health(Health::Starting {
        why: "connecting".into(),
    });
    let connection = Arc::new(tokio::select! {
        connected = broker.connector.connect("consume") => connected?,
        () = stop.cancelled() => return Ok(()),
    });
    let ended = feed_all(broker, &connection, intakes, stop, drain, backoff).await;
    // Also after an error: consumers of a connection that lingers would keep messages to themselves.
    if connection.status().connected() {
        hang_up(&connection).await;
    }
    ended
}

async fn feed_all(
    broker: &Arc<RabbitMq>,
    connection: &Arc<Connection>,
    intakes: &Intakes,
    stop: &CancellationToken,
    drain: &CancellationToken,
    backoff: &mut Backoff,
) -> anyhow::Result<()> {
    let mut events = connection.events_listener();
    let troubles = Arc::new(Troubles::default());
    let mut feeds = JoinSet::new();
    let feeder = |feed: Feed, name: String, stop: CancellationToken| {
        troubles.set(&name, Trouble::Opening);
        Feeder {
            broker: broker.clone(),
            connection: connection.clone(),
            feed,
            name,
            troubles: troubles.clone(),
            consumers: AtomicU64::new(0),
            stop,
            drain: drain.clone(),
        }
    };
    let feed_due = |kind: WaitKind, intake: &Intake, queue: &str| {
        let feeder = feeder(
            Feed::Due(kind, intake.clone()),
            queue.to_owned(),
            stop.clone(),
        );
        feeder.keep_feeding()
    };
    if broker.settings.keeps_deliveries {
        tokio::select! {
            declared = declare_own(broker, connection) => declared?,
            () = stop.cancelled() => return Ok(()),
        }
        let names = &broker.names;
        feeds.spawn(feed_due(
            WaitKind::Retry,
            &intakes.retries,
            &names.due_retry,
        ));
        feeds.spawn(feed_due(WaitKind::Hold, &intakes.holds, &names.due_hold));
        broker.set_health(Health::Starting {
            why: "checking the loop through a retry tier".into(),
        });
        tokio::select! {
            checked = broker.probe.check(broker) => if let Err(error) = checked {
                return Err(match troubles.health() {
                    Health::Down { why } => error.context(why),
                    _ => error.context("the loop through a retry tier does not work"),
                });
            },
            failed = ended(connection, &mut events) => return Err(failed),
            () = stop.cancelled() => {}
        }
    }
    let feed_source = |name: &Arc<str>, intake: Intake, stop: CancellationToken| {
        let source = broker.source(name)?;
        let feed = Feed::Source(Box::new(source), intake);
        let (feeder, troubles) = (feeder(feed, name.to_string(), stop), troubles.clone());
        let name = name.clone();
        Some(async move {
            feeder.keep_feeding().await;
            troubles.forget(&name);
            Ok(())
        })
    };
    let feeding_sources = roster::keep(intakes.sources.clone(), stop, feed_source);
    tokio::pin!(feeding_sources);
    info!(broker = %broker.settings.name, "rabbitmq connected");
    let (connected_at, mut steady) = (Instant::now(), false);
    let mut check = tokio::time::interval(HEALTH_CHECK);
    let mut sources_are_over = false;
    // With nothing to feed the connection is kept for its health alone.
    while !sources_are_over || !feeds.is_empty() {
        tokio::select! {
            failed = ended(connection, &mut events) => return Err(failed),
            _ = check.tick() => {
                if !connection.status().connected() {
                    bail!("the connection was lost");
                }
                // Not before: a connection that always breaks after its start would be a hot loop.
                if !steady && connected_at.elapsed() > STEADY {
                    steady = true;
                    backoff.succeeded();
                }
                broker.set_health(match broker.publisher.blocked() {
                    Some(why) => Health::Down { why: why.into() },
                    None => troubles.health(),
                });
            }
            fed = &mut feeding_sources, if !sources_are_over => {
                fed.context("a consumer failed")?;
                sources_are_over = true;
            }
            Some(ended) = feeds.join_next() => {
                ended.context("a consumer failed")?;
            }
        }
    }
    Ok(())
}

async fn declare_own(broker: &RabbitMq, connection: &Connection) -> anyhow::Result<()> {
    let version = broker.version().await?;
    topology::declare_own(
        connection,
        &broker.own_queues(),
        version,
        broker.settings.declare,
    )
    .await
}

/// Waits for the connection's end and says why. Errors of single channels come by here too.
async fn ended(
    connection: &Connection,
    events: &mut (impl Stream<Item = Event> + Unpin),
) -> anyhow::Error {
    loop {
        match events.next().await {
            Some(Event::Error(error)) if !connection.status().connected() => {
                return anyhow!(error).context("the connection was lost");
            }
            Some(_) => {}
            None => return anyhow!("the connection was lost"),
        }
    }
}

/// Why a feed does not run, while others do.
#[derive(Debug)]
enum Trouble {
    Opening,
    Failed(String),
    /// It runs.
    None,
}

/// What is wrong with single feeds, while the connection itself works.
#[derive(Default)]
struct Troubles(Mutex<BTreeMap<String, Trouble>>);

impl Troubles {
    fn set(&self, feed: &str, trouble: Trouble) {
        self.lock().insert(feed.to_owned(), trouble);
    }

    /// There is no such feed any more.
    fn forget(&self, feed: &str) {
        self.lock().remove(feed);
    }

    fn health(&self) -> Health {
        let troubles = self.lock();
        let mut opening = None;
        for (feed, trouble) in troubles.iter() {
            match trouble {
                Trouble::Failed(why) => {
                    return Health::Down {
                        why: format!("{feed}: {why}"),
                    };
                }
                Trouble::Opening => opening = Some(format!("opening `{feed}`")),
                Trouble::None => {}
            }
        }
        opening.map_or(Health::Ready, |why| Health::Starting { why })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Keeps one queue's messages coming.
struct Feeder {
    broker: Arc<RabbitMq>,
    connection: Arc<Connection>,
    feed: Feed,
    name: String,
    troubles: Arc<Troubles>,
    /// How many it has had.
    consumers: AtomicU64,
    stop: CancellationToken,
    drain: CancellationToken,
}

impl Feeder {
    /// Feeds until `stop`, or until the connection is gone. A consumer that ends otherwise (its
    /// queue deleted, a channel error) is started again.
    async fn keep_feeding(self) {
        let isolated = self.broker.isolate.load(Ordering::Relaxed);
        let mut backoff = Backoff::default();
        // One at a time where a message cannot be decoded, so that those before it are settled and
        // it alone is left at the head of its queue.
        let mut prefetch = self.feed.intake().window_size().min(MAX_PREFETCH) as u16;
        while !self.stop.is_cancelled() && self.connection.status().connected() {
            if self.is_held() {
                self.wait_while_held().await;
                continue;
            }
            let fed_since = Instant::now();
            let ended = if isolated {
                self.feed_alone(prefetch).await
            } else {
                self.feed_once(&self.connection, prefetch).await
            };
            let Err(error) = ended else { continue };
            if self.stop.is_cancelled() || !self.connection.status().connected() {
                return;
            }
            if fed_since.elapsed() > STEADY {
                backoff.succeeded();
            }
            let why = if failures::is_undecodable(&error) {
                prefetch = 1;
                undecodable(self.queue())
            } else {
                format!("{error:#}")
            };
            let delay = backoff.next();
            warn!(broker = %self.broker.settings.name, feed = self.name, %why, retry_in = ?delay, "consumer ended, starting it again");
            self.troubles.set(&self.name, Trouble::Failed(why));
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn is_held(&self) -> bool {
        *self.feed.intake().held().borrow()
    }

    /// Consumes nothing while the source is paused. What is handed out and not answered is taken for
    /// lost after half an hour, and counted against the message, so it has all been given back.
    async fn wait_while_held(&self) {
        self.troubles.set(&self.name, Trouble::None);
        let mut held = self.feed.intake().held();
        tokio::select! {
            _ = held.wait_for(|held| !held) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Feeds over a connection of its own, which a message that cannot be decoded ends alone.
    async fn feed_alone(&self, prefetch: u16) -> anyhow::Result<()> {
        let connection = self
            .broker
            .connector
            .connect(&format!("consume {}", self.name))
            .await?;
        let mut events = connection.events_listener();
        let fed = tokio::select! {
            biased;
            // It knows more of the connection's end than the consumer does.
            failed = ended(&connection, &mut events) => Err(failed),
            fed = self.feed_once(&connection, prefetch) => fed,
        };
        if connection.status().connected() {
            hang_up(&connection).await;
        }
        fed
    }

    /// Feeds with at most `most` messages under way; with fewer after a crash, until things are seen
    /// to go well, and with fewer while messages are large.
    async fn feed_once(&self, connection: &Connection, most: u16) -> anyhow::Result<()> {
        let intake = self.feed.intake();
        let mut pace = intake.pace();
        let mut allowed = paced(most, *pace.borrow());
        let mut prefetch = allowed;
        let mut room = Room::new(intake.budget_bytes() / 2, Instant::now());
        let (queue, channel, mut consumer) = tokio::select! {
            opened = self.open(connection, prefetch) => opened?,
            () = self.stop.cancelled() => return Ok(()),
        };
        let meters = match &self.feed {
            Feed::Source(source, _) => Some(source.meters.clone()),
            Feed::Due(..) => None,
        };
        let acks = Acks::new(prefetch, meters);
        let mut sender = AbortOnDropHandle::new(tokio::spawn({
            let (acks, channel) = (acks.clone(), channel.clone());
            async move { acks.send(&channel).await }
        }));
        self.troubles.set(&self.name, Trouble::None);
        let taker = Taker {
            broker: &self.broker,
            feed: &self.feed,
            queue: queue.into(),
            acks: &acks,
        };
        let mut hops = JoinSet::new();
        let mut held = intake.held();
        loop {
            tokio::select! {
                ended = &mut sender => return Err(lost(ended, &acks)),
                wider = wider(&mut pace, allowed), if allowed < most => allowed = paced(most, wider),
                () = self.stop.cancelled() => break,
                () = begins(&mut held) => break,
                Some(_) = hops.join_next() => continue,
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) => {
                        room.taken(delivery.data.len(), Instant::now());
                        tokio::select! {
                            taken = taker.take(delivery, &mut hops) => taken?,
                            ended = &mut sender => return Err(lost(ended, &acks)),
                            () = self.stop.cancelled() => break,
                            () = begins(&mut held) => break,
                        }
                    }
                    Some(Err(error)) => return Err(anyhow!(error).context("the consumer failed")),
                    None => bail!("the broker cancelled the consumer (was queue `{queue}` deleted?)"),
                },
            }
            let Some(instead) = room.instead_of(prefetch, allowed) else {
                continue;
            };
            debug!(
                feed = self.name,
                from = prefetch,
                to = instead,
                "another prefetch"
            );
            prefetch = instead;
            acks.batch_for(prefetch);
            // What the old consumer has left comes first; then it ends.
            let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            answer("the consumer cannot be replaced", cancel).await?;
            while let Some(Ok(delivery)) = timeout(CLOSE_DEADLINE, consumer.next())
                .await
                .context("the old consumer does not end")?
            {
                room.taken(delivery.data.len(), Instant::now());
                tokio::select! {
                    taken = taker.take(delivery, &mut hops) => taken?,
                    ended = &mut sender => return Err(lost(ended, &acks)),
                    () = self.stop.cancelled() => break,
                }
            }
            consumer = self.consume(&channel, prefetch).await?;
        }
        // A cancel that fails means that the channel is gone, and with it the consumer.
        let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        let _ = timeout(CLOSE_DEADLINE, cancel).await;
        drain_receipts(&acks, &channel, &self.drain).await;
        // Gives back what it has not handed over, also when the connection goes on without it.
        let _ = timeout(CLOSE_DEADLINE, channel.close(200, "not taking".into())).await;
        Ok(())
    }

    fn queue(&self) -> &str {
        match &self.feed {
            Feed::Source(source, _) => &source.queue,
            Feed::Due(kind, _) => self.broker.names.due(*kind),
        }
    }

    /// Declares what is missing and consumes.
    async fn open(
        &self,
        connection: &Connection,
        prefetch: u16,
    ) -> anyhow::Result<(&str, Channel, Consumer)> {
        let version = self.broker.version().await?;
        let declare = self.broker.settings.declare;
        match &self.feed {
            Feed::Source(source, _) => {
                topology::declare_source(connection, source, version, declare).await?;
            }
            Feed::Due(kind, _) => {
                let names = &self.broker.names;
                topology::declare_due(connection, names, version, *kind, declare).await?;
            }
        }
        let queue = self.queue();
        let channel = answer("no channel", connection.create_channel()).await?;
        let consumer = self.consume(&channel, prefetch).await?;
        Ok((queue, channel, consumer))
    }

    /// The prefetch holds for consumers that are made after it was set.
    async fn consume(&self, channel: &Channel, prefetch: u16) -> anyhow::Result<Consumer> {
        let queue = self.queue();
        answer(
            "no prefetch",
            channel.basic_qos(prefetch, BasicQosOptions::default()),
        )
        .await?;
        // A tag of its own for each consumer: a quorum queue of 3.10 numbers the messages of a tag that
        // is used again on the same channel anew, and the channel dies of it.
        let number = self.consumers.fetch_add(1, Ordering::Relaxed);
        let tag = format!("hookbridge-{}-{}-{number}", self.name, self.broker.instance);
        let consume = channel.basic_consume(
            queue.into(),
            tag.as_str().into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        answer(format!("queue `{queue}` cannot be consumed"), consume).await
    }
}

fn paced(most: u16, pace: usize) -> u16 {
    most.min(u16::try_from(pace).unwrap_or(u16::MAX))
}

/// Waits until more than `allowed` may be taken at a time, and says how many.
async fn wider(pace: &mut watch::Receiver<usize>, allowed: u16) -> usize {
    let wider = pace.wait_for(|pace| *pace > usize::from(allowed)).await;
    match wider.map(|pace| *pace) {
        Ok(pace) => pace,
        // The pipeline is gone; its intakes are then closed too.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until the source is paused.
async fn begins(held: &mut watch::Receiver<bool>) {
    if held.wait_for(|held| *held).await.is_err() {
        // The pipeline is gone; its intakes are then closed too.
        std::future::pending().await
    }
}

/// The channel is gone; the broker delivers again what was not answered on it.
fn lost(ended: Result<anyhow::Error, JoinError>, acks: &Acks) -> anyhow::Error {
    let unanswered = acks.unanswered();
    match ended {
        Ok(error) => error.context(format!(
            "the channel was lost with {unanswered} messages unanswered"
        )),
        Err(panicked) => anyhow!(panicked).context("acknowledging failed"),
    }
}

fn undecodable(queue: &str) -> String {
    format!(
        "the message at the head of queue `{queue}` cannot be decoded: its routing key, type, id or a \
         header name is not UTF-8, which the AMQP client library does not take; move it away with \
         another client (`rabbitmqadmin get queue={queue} ackmode=ack_requeue_false`)"
    )
}

/// Goes on acknowledging until every receipt is answered, or `drain` says that time is up.
async fn drain_receipts(acks: &Acks, channel: &Channel, drain: &CancellationToken) {
    while acks.open() > 0 && !drain.is_cancelled() && channel.status().connected() {
        tokio::time::sleep(DRAIN_CHECK).await;
    }
    acks.send_now(channel).await;
}
