//! Taking: what an AMQP delivery is to the pipeline, or that it only passes on to the next tier.

use std::sync::Arc;

use anyhow::bail;
use bytes::Bytes;
use lapin::message::Delivery as AmqpDelivery;
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::acks::Acks;
use super::connect::Backoff;
use super::consume::Feed;
use super::{RabbitMq, message, probe};
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::{Intake, Token};
use crate::delivery::{Reason, WaitKind};
use crate::event::HeaderValue;

/// An event that a quorum queue has handed out so often is parked first: half of what RabbitMQ 4
/// allows where nothing else is said, and more than it takes to find out that it is poison.
const WORN: i64 = 10;

/// Turns AMQP deliveries into what the pipeline takes.
pub struct Taker<'a> {
    pub broker: &'a Arc<RabbitMq>,
    pub feed: &'a Feed,
    pub queue: Arc<str>,
    pub acks: &'a Arc<Acks>,
}

impl Taker<'_> {
    pub async fn take(&self, delivery: AmqpDelivery, hops: &mut JoinSet<()>) -> anyhow::Result<()> {
        let position = delivery.delivery_tag;
        match self.feed {
            Feed::Source(source, intake) => {
                let is_worn = message::times_returned(&delivery.properties) >= WORN;
                let taken = message::taken(&self.broker.settings.name, &self.queue, delivery);
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
                match is_worn {
                    true => intake.worn(event, self.acks.clone(), token(position), admission),
                    false => intake.event(event, self.acks.clone(), token(position), admission),
                }
            }
            Feed::Due(kind, intake) => {
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
            let (broker, acks, queue) =
                (self.broker.clone(), self.acks.clone(), self.queue.clone());
            let (marker, hop) = (marker.to_owned(), probe::bounces(&headers));
            self.acks.handed_out();
            hops.spawn(async move {
                broker.probe.came_back(&broker, &marker, hop, &queue).await;
                settle(&acks, position);
            });
            return;
        }
        if kind == WaitKind::Retry {
            self.broker.probe.delivery_came();
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
                self.acks.handed_out();
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
                // Not before: a stop may come while there is no room, and nobody has it then.
                let admission = intake.admit(delivery.event.size_bytes()).await;
                self.acks.handed_out();
                intake.due(
                    delivery,
                    kind,
                    self.acks.clone(),
                    token(position),
                    admission,
                );
            }
            Err(unreadable) => {
                error!(queue = %self.queue, %unreadable, "a message on our own queue is not a delivery; it goes to the dead letters as it is");
                let (broker, acks) = (self.broker.clone(), self.acks.clone());
                let mut kept = headers;
                kept.push(
                    envelope::REASON,
                    HeaderValue::text(Reason::EnvelopeUnreadable.as_str()),
                );
                let now = jiff::Timestamp::now().to_string();
                kept.push(envelope::DEAD_AT, HeaderValue::text(now));
                let properties = lapin::BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_headers(message::table_from(&kept));
                self.acks.handed_out();
                hops.spawn(async move {
                    let mut backoff = Backoff::default();
                    let dead = &broker.names.dead;
                    while let Err(refused) =
                        broker.publish_own(dead, &body, properties.clone()).await
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
