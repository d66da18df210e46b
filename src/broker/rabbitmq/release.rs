//! Releasing tiers: what waits on them is moved to the due queue, one by one.

use std::time::Duration;

use bytes::Bytes;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions};

use super::connect::answer;
use super::{RabbitMq, message};
use crate::broker::Refused;
use crate::broker::envelope::{Dialect, Envelope, Stay};
use crate::delivery::WaitKind;

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
    close(&channel, "released").await;
    Ok(moved)
}

async fn release_one(
    broker: &RabbitMq,
    kind: WaitKind,
    got: BasicGetMessage,
) -> Result<(), Refused> {
    let parked = got.delivery;
    let headers = message::own_headers(&parked.properties);
    let due = broker.names.due(kind);
    match Envelope::read(headers, Bytes::from(parked.data.clone())) {
        Ok(envelope) => {
            let now = match envelope.stay {
                Stay::Parked { kind, whole, .. } => Stay::Parked {
                    kind,
                    whole,
                    remaining: Duration::ZERO,
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
            broker.publish_own(due, &written.body, properties).await?;
        }
        // Markers and foreign messages go on as they are; the due side knows what to do with them.
        Err(_) => {
            broker
                .publish_own(due, &parked.data, parked.properties.clone())
                .await?
        }
    }
    answer(
        "a released message cannot be removed from its tier",
        parked.acker.ack(BasicAckOptions::default()),
    )
    .await
    .map_err(|error| broker.unavailable(format!("{error:#}")))?;
    Ok(())
}

async fn get(channel: &Channel, queue: &str) -> anyhow::Result<Option<BasicGetMessage>> {
    answer(
        format!("queue `{queue}` cannot be read"),
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }),
    )
    .await
}

/// A channel that cannot be closed in time is gone with its connection.
async fn close(channel: &Channel, why: &str) {
    let _ = answer(
        "the channel cannot be closed",
        channel.close(200, why.into()),
    )
    .await;
}
