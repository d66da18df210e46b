//! Moves of what lies on a tier to another topic, however long the broker refuses.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::partition::Partition;
use super::produce::Record;
use super::waiting::Raw;
use super::{Kafka, headers, letters, names};
use crate::broker::Refused;
use crate::broker::envelope::{Envelope, Stay};

/// Between tries.
const AGAIN: Duration = Duration::from_secs(1);

/// Parks a delivery on its next tier, once; what is not parked goes nowhere.
pub async fn hop(kafka: &Kafka, envelope: &Envelope) -> Result<(), Refused> {
    let Stay::Parked {
        kind,
        whole,
        remaining,
        ..
    } = envelope.stay
    else {
        return Ok(());
    };
    kafka
        .park_rest(&envelope.delivery, kind, remaining, whole)
        .await
}

/// Parks a delivery on its next tier, however long the broker refuses, then settles the old copy.
pub async fn hop_on(kafka: Arc<Kafka>, envelope: Envelope, partition: Arc<Partition>, offset: i64) {
    while !partition.is_closed() {
        match hop(&kafka, &envelope).await {
            Ok(()) => return partition.settle(offset),
            Err(error) => {
                let delivery = &envelope.delivery.id;
                warn!(%delivery, %error, "a parked delivery could not be moved on, trying again");
            }
        }
        sleep(AGAIN).await;
    }
}

/// Puts a message that is no delivery of ours among the dead letters, as it came, once.
pub async fn put_among_letters(kafka: &Kafka, raw: &Raw) -> Result<(), Refused> {
    let (ours, key) = letters::put_away(raw);
    let record = Record {
        topic: &names::dead(&kafka.settings.group),
        key: Some(key.as_bytes()),
        payload: Some(&raw.body),
        headers: Some(headers::write(&ours)),
        stamped: true,
        ..Record::default()
    };
    kafka.producer.send(record).await?;
    warn!(topic = %raw.topic, offset = raw.offset, key, "not a delivery of ours: it is a dead letter now, as it came");
    Ok(())
}

/// The same, however long the broker refuses; then the message is settled.
pub async fn put_away(kafka: Arc<Kafka>, raw: Raw, partition: Arc<Partition>) {
    while !partition.is_closed() {
        match put_among_letters(&kafka, &raw).await {
            Ok(()) => return partition.settle(raw.offset),
            Err(error) => {
                warn!(topic = %raw.topic, offset = raw.offset, %error, "not a delivery of ours, and refused as a dead letter, trying again");
            }
        }
        sleep(AGAIN).await;
    }
}
