//! Dead letters in their queue: listing, claiming, and releasing tiers.
//!
//! Letters are read with `basic.get` and go back when the channel closes. Our dead-letter queue has
//! no delivery limit, so reading never counts against a letter.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use tracing::warn;

use super::publish::Target;
use super::{RabbitMq, message};
use crate::broker::envelope::{self, Dialect, Envelope, Stay};
use crate::broker::{Answer, Claim, Letter, Receipt, Refused, Settlement, Token};
use crate::delivery::WaitKind;

/// Up to `limit` letters, oldest first, as they lie in the queue now.
pub async fn list(broker: &RabbitMq, limit: usize) -> anyhow::Result<Vec<Letter>> {
    let channel = broker.publisher.connection_channel().await?;
    let mut letters = Vec::new();
    let mut left = u64::MAX;
    while letters.len() < limit && left > 0 {
        let Some(got) = get(&channel, &broker.names.dead).await? else {
            break;
        };
        // What arrives while we read is left for the next time.
        left = left.saturating_sub(1).min(u64::from(got.message_count));
        letters.extend(letter(got));
    }
    let _ = channel.close(200, "listed".into()).await;
    Ok(letters)
}

/// Takes one letter out; the others go back at once.
pub async fn claim(
    broker: &RabbitMq,
    delivery: &str,
    generation: u32,
) -> anyhow::Result<Option<Claim>> {
    let channel = broker.publisher.connection_channel().await?;
    let mut others = Vec::new();
    let mut found = None;
    let mut left = u64::MAX;
    while left > 0 {
        let Some(got) = get(&channel, &broker.names.dead).await? else {
            break;
        };
        left = left.saturating_sub(1).min(u64::from(got.message_count));
        let tag = got.delivery.delivery_tag;
        match letter(got) {
            Some(letter)
                if letter.delivery.id.as_str() == delivery
                    && letter.delivery.generation == generation =>
            {
                found = Some((tag, letter));
                break;
            }
            _ => others.push(tag),
        }
    }
    for tag in others {
        channel
            .basic_nack(
                tag,
                BasicNackOptions {
                    requeue: true,
                    multiple: false,
                },
            )
            .await?;
    }
    Ok(found.map(|(tag, letter)| {
        let answer = Arc::new(Held {
            channel,
            runtime: tokio::runtime::Handle::current(),
        });
        Claim {
            letter,
            receipt: Receipt::unbounded(
                answer,
                Token {
                    epoch: 0,
                    lane: 0,
                    position: tag,
                },
            ),
        }
    }))
}

/// Moves what waits on the tiers of `kind` to their due queue, each confirmed before it is removed.
pub async fn release(broker: &RabbitMq, kind: WaitKind) -> Result<u64, Refused> {
    let failed = |error: anyhow::Error| broker.unavailable(format!("{error:#}"));
    let channel = broker
        .publisher
        .connection_channel()
        .await
        .map_err(failed)?;
    let mut moved = 0;
    for &delay in broker.names.tiers(kind) {
        let tier = broker.names.tier(kind, delay);
        let mut left = u64::MAX;
        while left > 0 {
            let Some(got) = get(&channel, &tier).await.map_err(failed)? else {
                break;
            };
            left = left.saturating_sub(1).min(u64::from(got.message_count));
            release_one(broker, kind, got).await?;
            moved += 1;
        }
    }
    let _ = channel.close(200, "released".into()).await;
    Ok(moved)
}

async fn release_one(
    broker: &RabbitMq,
    kind: WaitKind,
    got: BasicGetMessage,
) -> Result<(), Refused> {
    let parked = got.delivery;
    let headers = message::own_headers(&parked.properties);
    let due = Target::queue(broker.names.due(kind));
    match Envelope::read(headers, Bytes::from(parked.data.clone())) {
        Ok(envelope) => {
            let now = match envelope.stay {
                Stay::Parked { kind, whole, .. } => Stay::Parked {
                    kind,
                    whole,
                    remaining: std::time::Duration::ZERO,
                },
                dead @ Stay::Dead { .. } => dead,
            };
            let room = broker
                .publisher
                .header_room()
                .await
                .map_err(|e| broker.unavailable(e))?;
            let written = Envelope {
                stay: now,
                ..envelope.clone()
            }
            .write(Dialect::Amqp, room);
            let properties = message::properties_of(&envelope.delivery, &written.headers);
            broker
                .publisher
                .publish(due, &written.body, properties)
                .await?;
        }
        // Markers and foreign messages go on as they are; the due side knows what to do with them.
        Err(_) => {
            broker
                .publisher
                .publish(due, &parked.data, parked.properties.clone())
                .await?
        }
    }
    parked
        .acker
        .ack(BasicAckOptions::default())
        .await
        .map_err(|e| broker.unavailable(e))?;
    Ok(())
}

async fn get(channel: &Channel, queue: &str) -> anyhow::Result<Option<BasicGetMessage>> {
    channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: false })
        .await
        .with_context(|| format!("queue `{queue}` cannot be read"))
}

/// The letter in a message; `None` for a marker of the start-up check or a foreign message.
fn letter(got: BasicGetMessage) -> Option<Letter> {
    let headers = message::own_headers(&got.delivery.properties);
    if headers.get(envelope::PROBE).is_some() {
        return None;
    }
    let envelope = Envelope::read(headers, Bytes::from(got.delivery.data))
        .inspect_err(
            |unreadable| warn!(%unreadable, "a message among the dead letters is not one of ours"),
        )
        .ok()?;
    match envelope.stay {
        Stay::Dead { reason, at } => Some(Letter {
            delivery: envelope.delivery,
            reason,
            dead_at: at,
            has_body: !envelope.reference,
        }),
        Stay::Parked { .. } => None,
    }
}

/// A claimed letter: its channel stays open until it is answered.
struct Held {
    channel: Channel,
    runtime: tokio::runtime::Handle,
}

impl Answer for Held {
    fn answer(&self, token: Token, settlement: Settlement) {
        let channel = self.channel.clone();
        self.runtime.spawn(async move {
            let answered = match settlement {
                Settlement::Ack => {
                    channel
                        .basic_ack(token.position, BasicAckOptions::default())
                        .await
                }
                Settlement::Redeliver => {
                    channel
                        .basic_nack(
                            token.position,
                            BasicNackOptions {
                                requeue: true,
                                multiple: false,
                            },
                        )
                        .await
                }
            };
            if let Err(error) = answered {
                // The letter goes back by itself with its channel, and may be claimed again.
                warn!(%error, "a claimed dead letter could not be answered");
            }
            let _ = channel.close(200, "claim answered".into()).await;
        });
    }
}
