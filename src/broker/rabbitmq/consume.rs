//! Consuming: one connection's life, from declaring what is missing to the last acknowledgement.
//!
//! Due queues are fed first; then a marker goes once through the shortest tier and back, and only
//! when that loop is seen to work are sources taken from. A source whose queue is missing or refused
//! is tried again on the same connection, and the others go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::acks::Acks;
use super::connect::Backoff;
use super::publish::Target;
use super::{RabbitMq, SourceSettings, message, probe, topology};
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::{Health, Intake, Intakes, Token};
use crate::delivery::{Reason, WaitKind};
use crate::event::HeaderValue;

/// RabbitMQ's own limit for quorum queues.
const MAX_PREFETCH: usize = 2_000;
/// How often a stopping session looks whether all receipts are answered.
const DRAIN_CHECK: Duration = Duration::from_millis(20);

/// What a consumer feeds.
#[derive(Clone)]
enum Feed {
    Source(SourceSettings, Intake),
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
    let troubles = Arc::new(Troubles::default());
    let mut feeds = JoinSet::new();
    let start = |feeds: &mut JoinSet<()>, feed: Feed, name: String| {
        let (broker, connection) = (broker.clone(), connection.clone());
        let (stop, drain, troubles) = (stop.clone(), drain.clone(), troubles.clone());
        // Ready before the bindings are there would invite events that no queue takes.
        troubles.set(&name, Some("consuming has not begun".to_owned()));
        feeds.spawn(async move {
            keep_feeding(&broker, &connection, feed, &name, &troubles, &stop, &drain).await
        });
    };
    if broker.settings.keeps_deliveries {
        topology::declare_own(&connection, &broker.names).await?;
        start(
            &mut feeds,
            Feed::Due(WaitKind::Retry, intakes.retries.clone()),
            broker.names.due_retry.clone(),
        );
        start(
            &mut feeds,
            Feed::Due(WaitKind::Hold, intakes.holds.clone()),
            broker.names.due_hold.clone(),
        );
        broker.set_health(Health::Starting {
            why: "checking the loop through a retry tier".into(),
        });
        tokio::select! {
            checked = broker.probe.check(broker) => checked.context("the loop through a retry tier does not work")?,
            () = stop.cancelled() => {}
        }
    }
    for source in &broker.settings.sources {
        let Some(intake) = intakes.sources.get(&source.name) else {
            continue;
        };
        start(
            &mut feeds,
            Feed::Source(source.clone(), intake.clone()),
            source.name.to_string(),
        );
    }
    info!(broker = %broker.settings.name, "rabbitmq connected");
    backoff.succeeded();
    let mut check = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = check.tick() => {
                if !connection.status().connected() {
                    bail!("the connection was lost");
                }
                broker.set_health(troubles.health());
            }
            ended = feeds.join_next() => match ended {
                Some(Err(panicked)) => return Err(anyhow!(panicked).context("a consumer failed")),
                Some(Ok(())) if feeds.is_empty() => break,
                Some(Ok(())) => {}
                // Nothing is fed: the connection is kept for its health alone.
                None => {
                    stop.cancelled().await;
                    break;
                }
            },
        }
    }
    let _ = connection.close(200, "stopped".into()).await;
    Ok(())
}

/// What is wrong with single sources, while the connection itself works.
#[derive(Default)]
struct Troubles(Mutex<BTreeMap<String, String>>);

impl Troubles {
    fn set(&self, feed: &str, why: Option<String>) {
        let mut troubles = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match why {
            Some(why) => troubles.insert(feed.to_owned(), why),
            None => troubles.remove(feed),
        };
    }

    fn health(&self) -> Health {
        let troubles = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match troubles.iter().next() {
            Some((feed, why)) => Health::Down {
                why: format!("{feed}: {why}"),
            },
            None => Health::Ready,
        }
    }
}

/// Feeds until `stop`, or until the connection is gone. A consumer that ends otherwise (its queue
/// deleted, a channel error) is started again.
async fn keep_feeding(
    broker: &Arc<RabbitMq>,
    connection: &Connection,
    feed: Feed,
    name: &str,
    troubles: &Troubles,
    stop: &CancellationToken,
    drain: &CancellationToken,
) {
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() && connection.status().connected() {
        let ended = feed_once(broker, connection, &feed, name, troubles, stop, drain).await;
        if let Err(error) = ended {
            if stop.is_cancelled() || !connection.status().connected() {
                return;
            }
            let why = format!("{error:#}");
            let delay = backoff.next();
            warn!(broker = %broker.settings.name, feed = name, %why, retry_in = ?delay, "consumer ended, starting it again");
            troubles.set(name, Some(why));
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

async fn feed_once(
    broker: &Arc<RabbitMq>,
    connection: &Connection,
    feed: &Feed,
    name: &str,
    troubles: &Troubles,
    stop: &CancellationToken,
    drain: &CancellationToken,
) -> anyhow::Result<()> {
    let queue = match feed {
        Feed::Source(source, _) => {
            topology::declare_source(connection, source).await?;
            source.queue.as_str()
        }
        Feed::Due(kind, _) => broker.names.due(*kind),
    };
    let channel = connection.create_channel().await.context("no channel")?;
    let prefetch = feed.intake().window_size().min(MAX_PREFETCH) as u16;
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await
        .context("no prefetch")?;
    let tag = format!("hookbridge-{name}");
    let mut consumer = channel
        .basic_consume(
            queue.into(),
            tag.as_str().into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("queue `{queue}` cannot be consumed"))?;
    let acks = Acks::new();
    let mut sender = AbortOnDropHandle::new(tokio::spawn({
        let (acks, channel) = (acks.clone(), channel.clone());
        async move { acks.send(&channel).await }
    }));
    troubles.set(name, None);
    let taker = Taker {
        broker,
        feed,
        queue,
        acks: &acks,
    };
    let mut hops = JoinSet::new();
    loop {
        tokio::select! {
            ended = &mut sender => return Err(anyhow!(ended.context("acknowledging failed")?).context("the channel was lost")),
            () = stop.cancelled() => break,
            Some(_) = hops.join_next() => {}
            delivery = consumer.next() => match delivery {
                Some(Ok(delivery)) => {
                    tokio::select! {
                        taken = taker.take(delivery, &mut hops) => taken?,
                        ended = &mut sender => return Err(anyhow!(ended.context("acknowledging failed")?).context("the channel was lost")),
                        () = stop.cancelled() => break,
                    }
                }
                Some(Err(error)) => return Err(anyhow!(error).context("the consumer failed")),
                None => bail!("the broker cancelled the consumer (was queue `{queue}` deleted?)"),
            },
        }
    }
    // A cancel that fails means that the channel is gone, and with it the consumer.
    let _ = channel
        .basic_cancel(tag.as_str().into(), BasicCancelOptions::default())
        .await;
    drain_receipts(&acks, &channel, drain).await;
    Ok(())
}

/// Goes on acknowledging until every receipt is answered, or `drain` says that time is up.
async fn drain_receipts(acks: &Acks, channel: &Channel, drain: &CancellationToken) {
    while acks.open() > 0 && !drain.is_cancelled() && channel.status().connected() {
        tokio::time::sleep(DRAIN_CHECK).await;
    }
    acks.send_now(channel).await;
}

/// Turns AMQP deliveries into what the pipeline takes.
struct Taker<'a> {
    broker: &'a Arc<RabbitMq>,
    feed: &'a Feed,
    queue: &'a str,
    acks: &'a Arc<Acks>,
}

impl Taker<'_> {
    async fn take(&self, delivery: AmqpDelivery, hops: &mut JoinSet<()>) -> anyhow::Result<()> {
        let position = delivery.delivery_tag;
        match self.feed {
            Feed::Source(source, intake) => {
                let taken = message::taken(&self.broker.settings.name, self.queue, delivery);
                if taken.headers.get("x-stream-offset").is_some() {
                    bail!(
                        "queue `{}` is a stream, whose offsets hookbridge does not keep; use a queue",
                        self.queue
                    );
                }
                let event = source.naming.event(taken);
                let admission = intake.admit(event.size_bytes()).await;
                source.meters.received.inc();
                self.acks.handed_out();
                intake.event(event, self.acks.clone(), token(position), admission);
            }
            Feed::Due(kind, intake) => {
                self.acks.handed_out();
                self.take_due(*kind, intake, delivery, hops).await;
            }
        }
        Ok(())
    }

    async fn take_due(
        &self,
        kind: WaitKind,
        intake: &Intake,
        delivery: AmqpDelivery,
        hops: &mut JoinSet<()>,
    ) {
        let position = delivery.delivery_tag;
        let headers = message::own_headers(&delivery.properties);
        if let Some(marker) = headers.get(envelope::PROBE).and_then(HeaderValue::as_str) {
            let (broker, acks, queue) = (
                self.broker.clone(),
                self.acks.clone(),
                self.queue.to_owned(),
            );
            let (marker, hop) = (marker.to_owned(), probe::bounces(&headers));
            hops.spawn(async move {
                broker.probe.came_back(&broker, &marker, hop, &queue).await;
                settle(&acks, position);
            });
            return;
        }
        let body = Bytes::from(delivery.data);
        match Envelope::read(headers.clone(), body.clone()) {
            Ok(Envelope {
                delivery,
                stay: Stay::Parked {
                    whole, remaining, ..
                },
                ..
            }) if !remaining.is_zero() => {
                let (broker, acks) = (self.broker.clone(), self.acks.clone());
                hops.spawn(async move {
                    let mut backoff = Backoff::default();
                    while let Err(refused) = broker.park_for(&delivery, kind, whole, remaining).await {
                        warn!(delivery = %delivery.id, %refused, "a parked delivery cannot go on to its next tier, trying again");
                        tokio::time::sleep(backoff.next()).await;
                    }
                    settle(&acks, position);
                });
            }
            Ok(Envelope { delivery, .. }) => {
                let admission = intake.admit(delivery.event.size_bytes()).await;
                intake.due(
                    delivery,
                    kind,
                    self.acks.clone(),
                    token(position),
                    admission,
                );
            }
            Err(unreadable) => {
                error!(queue = self.queue, %unreadable, "a message on our own queue is not a delivery; it goes to the dead letters as it is");
                let (broker, acks) = (self.broker.clone(), self.acks.clone());
                let mut kept = headers;
                kept.push(
                    "hookbridge-reason",
                    HeaderValue::text(Reason::EnvelopeUnreadable.as_str()),
                );
                let properties = lapin::BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_headers(message::table_from(&kept));
                hops.spawn(async move {
                    let mut backoff = Backoff::default();
                    let dead = &broker.names.dead;
                    while let Err(refused) =
                        broker.publisher.publish(Target::queue(dead), &body, properties.clone()).await
                    {
                        warn!(%refused, "an unreadable message cannot be dead-lettered, trying again");
                        tokio::time::sleep(backoff.next()).await;
                    }
                    settle(&acks, position);
                });
            }
        }
    }
}

fn settle(acks: &Acks, position: u64) {
    use crate::broker::{Answer as _, Settlement};
    acks.answer(token(position), Settlement::Ack);
}

/// Each channel has its own [`Acks`], so a tag alone names a message.
fn token(position: u64) -> Token {
    Token {
        epoch: 0,
        lane: 0,
        position,
    }
}
