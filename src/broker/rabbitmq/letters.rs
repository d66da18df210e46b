//! Dead letters in their queue: listing and claiming.
//!
//! Letters are read with `basic.get` and go back when the channel closes. Our dead-letter queue has
//! no delivery limit, so reading never counts against a letter.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use tokio::sync::MutexGuard;
use tokio::time::timeout;
use tracing::warn;

use super::connect::answer;
use super::{RabbitMq, message};
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::{Answer, Claim, Letter, Receipt, Settlement, Token};

/// How long a reader waits for the one before it.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// Up to `limit` letters, oldest first, as they lie in the queue now.
pub async fn list(broker: &RabbitMq, limit: usize) -> anyhow::Result<Vec<Letter>> {
    let _turn = turn(broker).await?;
    let channel = broker.publisher.connection_channel().await?;
    let mut letters = Vec::new();
    let mut seen = Vec::new();
    let mut left = u64::MAX;
    while letters.len() < limit && left > 0 {
        let Some(got) = get(&channel, &broker.names.dead).await? else {
            break;
        };
        // What arrives while we read is left for the next time.
        left = left.saturating_sub(1).min(u64::from(got.message_count));
        let tag = got.delivery.delivery_tag;
        match read(got) {
            Found::Letter(letter) => {
                letters.push(*letter);
                seen.push(tag);
            }
            Found::Foreign => seen.push(tag),
            Found::Marker => clear_away(&channel, tag).await?,
        }
    }
    give_back(&channel, seen).await?;
    close(&channel, "listed").await;
    Ok(letters)
}

/// Takes one letter out; the others go back at once.
pub async fn claim(
    broker: &RabbitMq,
    delivery: &str,
    generation: u32,
) -> anyhow::Result<Option<Claim>> {
    let _turn = turn(broker).await?;
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
        match read(got) {
            Found::Letter(letter)
                if letter.delivery.id.as_str() == delivery
                    && letter.delivery.generation == generation =>
            {
                found = Some((tag, *letter));
                break;
            }
            Found::Letter(_) | Found::Foreign => others.push(tag),
            Found::Marker => clear_away(&channel, tag).await?,
        }
    }
    give_back(&channel, others).await?;
    if found.is_none() {
        close(&channel, "not there").await;
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

/// Waits until no other reader of this instance holds letters.
async fn turn(broker: &RabbitMq) -> anyhow::Result<MutexGuard<'_, ()>> {
    timeout(TURN_DEADLINE, broker.letters.lock())
        .await
        .context("the dead letters are being read by another request")
}

pub async fn get(channel: &Channel, queue: &str) -> anyhow::Result<Option<BasicGetMessage>> {
    answer(
        format!("queue `{queue}` cannot be read"),
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }),
    )
    .await
}

async fn give_back(channel: &Channel, tags: Vec<u64>) -> anyhow::Result<()> {
    let options = BasicNackOptions {
        requeue: true,
        multiple: false,
    };
    for tag in tags {
        answer(
            "a dead letter cannot be given back",
            channel.basic_nack(tag, options),
        )
        .await?;
    }
    Ok(())
}

/// Removes a marker that outlived its check: the broker expires messages at the head only.
async fn clear_away(channel: &Channel, tag: u64) -> anyhow::Result<()> {
    answer(
        "a marker cannot be removed",
        channel.basic_ack(tag, BasicAckOptions::default()),
    )
    .await?;
    Ok(())
}

/// A channel that cannot be closed in time is gone with its connection.
pub async fn close(channel: &Channel, why: &str) {
    let _ = answer(
        "the channel cannot be closed",
        channel.close(200, why.into()),
    )
    .await;
}

/// What lies in the queue of dead letters.
enum Found {
    Letter(Box<Letter>),
    /// Not one of ours, or one that cannot be read: it stays where it is.
    Foreign,
    /// A message of the start-up check.
    Marker,
}

fn read(got: BasicGetMessage) -> Found {
    let headers = message::own_headers(&got.delivery.properties);
    if headers.get(envelope::PROBE).is_some() {
        return Found::Marker;
    }
    match Envelope::read(headers, Bytes::from(got.delivery.data)) {
        Ok(Envelope {
            delivery,
            stay: Stay::Dead { reason, at },
            reference,
        }) => Found::Letter(Box::new(Letter {
            delivery,
            reason,
            dead_at: at,
            has_body: !reference,
        })),
        Ok(_) => Found::Foreign,
        Err(unreadable) => {
            warn!(%unreadable, "a message among the dead letters is not one of ours");
            Found::Foreign
        }
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
                    let acked = channel.basic_ack(token.position, BasicAckOptions::default());
                    answer("not acknowledged", acked).await.map(|_| ())
                }
                Settlement::Redeliver => give_back(&channel, vec![token.position]).await,
            };
            if let Err(error) = answered {
                // The letter goes back by itself with its channel, and may be claimed again.
                warn!(
                    error = format!("{error:#}"),
                    "a claimed dead letter could not be answered"
                );
            }
            close(&channel, "claim answered").await;
        });
    }
}
