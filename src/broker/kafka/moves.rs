//! Moves of what lies on a tier to another topic, however long the broker refuses.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::partition::Partition;
use super::produce::Record;
use super::waiting::Raw;
use super::{Kafka, headers, letters, names};
use crate::broker::envelope::{Envelope, Stay};

/// Between tries.
const AGAIN: Duration = Duration::from_secs(1);

/// Parks a delivery on its next tier, however long the broker refuses, then settles the old copy.
pub async fn hop_on(kafka: Arc<Kafka>, envelope: Envelope, partition: Arc<Partition>, offset: i64) {
    let Envelope { delivery, stay, .. } = envelope;
    let Stay::Parked {
        kind,
        whole,
        remaining,
        ..
    } = stay
    else {
        return;
    };
    while !partition.is_closed() {
        match kafka.park_rest(&delivery, kind, remaining, whole).await {
            Ok(()) => return partition.settle(offset),
            Err(error) => {
                warn!(delivery = %delivery.id, %error, "a parked delivery could not be moved on, trying again");
            }
        }
        sleep(AGAIN).await;
    }
}

/// Puts a message that is no delivery of ours among the dead letters, as it came.
pub async fn put_away(kafka: Arc<Kafka>, raw: Raw, partition: Arc<Partition>) {
    let (ours, key) = letters::put_away(&raw);
    let topic = names::dead(&kafka.settings.group);
    warn!(topic = %raw.topic, offset = raw.offset, key, "not a delivery of ours: it becomes a dead letter as it is");
    while !partition.is_closed() {
        let record = Record {
            topic: &topic,
            key: Some(key.as_bytes()),
            payload: Some(&raw.body),
            headers: Some(headers::write(&ours)),
            stamped: true,
            ..Record::default()
        };
        match kafka.producer.send(record).await {
            Ok(_) => return partition.settle(raw.offset),
            Err(error) => warn!(key, %error, "it was refused, trying again"),
        }
        sleep(AGAIN).await;
    }
}
