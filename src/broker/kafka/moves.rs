//! Moves of what lies on a tier to another topic: once, or however long the broker refuses.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::partition::Partition;
use super::produce::Record;
use super::waiting::{Raw, Waiting};
use super::{Kafka, headers, letters, names};
use crate::broker::Refused;
use crate::broker::envelope::{Envelope, Stay};
use crate::broker::parked::Deed;
use crate::delivery::WaitKind;

/// Between tries.
const AGAIN: Duration = Duration::from_secs(1);

/// A record on its way to another topic. One that does not get there, because its task was aborted or
/// has panicked, is given back: nobody else would ever answer for it.
struct Moving {
    partition: Arc<Partition>,
    offset: i64,
    is_done: bool,
}

impl Moving {
    fn new(partition: Arc<Partition>, offset: i64) -> Self {
        Self {
            partition,
            offset,
            is_done: false,
        }
    }

    fn done(mut self) {
        self.is_done = true;
        self.partition.settle(self.offset);
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        if !self.is_done {
            self.partition.give_back(self.offset);
        }
    }
}

/// A record that was to be moved, and that an order was given about meanwhile. Dropped, it is given
/// back.
pub struct Ordered {
    moving: Moving,
    waiting: Waiting,
    deed: Deed,
}

impl Ordered {
    pub fn partition(&self) -> &Arc<Partition> {
        &self.moving.partition
    }

    /// The record, which is its taker's to answer for, and what is to become of it.
    pub fn taken(mut self) -> (Waiting, Deed) {
        self.moving.is_done = true;
        (self.waiting, self.deed)
    }
}

/// Parks a delivery on its next tier, once; what is not parked goes nowhere.
pub async fn hop(kafka: &Kafka, envelope: &Envelope) -> Result<(), Refused> {
    let Stay::Parked {
        kind,
        whole,
        remaining,
        since,
    } = envelope.stay
    else {
        return Ok(());
    };
    kafka
        .park_rest(&envelope.delivery, kind, remaining, whole, since)
        .await
}

/// Parks a delivery on its next tier, however long the broker refuses, then settles the old copy.
/// With a time of the broker's clock it is parked anew, for all that is left of its wait then.
///
/// An order that is given meanwhile is obeyed instead. One that comes when the copy is already on its
/// way finds that on its tier, which says since when it has been parked.
pub async fn hop_on(
    kafka: Arc<Kafka>,
    waiting: Waiting,
    anew_ms: Option<i64>,
    (partition, kind): (Arc<Partition>, WaitKind),
) -> Option<Ordered> {
    let moving = Moving::new(partition, waiting.offset);
    let envelope = waiting.moved(anew_ms)?;
    while !moving.partition.is_closed() {
        if let Some(deed) = waiting.ordered(&kafka.orders, kind) {
            return Some(Ordered {
                moving,
                waiting,
                deed,
            });
        }
        match hop(&kafka, &envelope).await {
            Ok(()) => {
                moving.done();
                return None;
            }
            Err(error) => {
                let delivery = &envelope.delivery.id;
                warn!(%delivery, %error, "a parked delivery could not be moved on, trying again");
            }
        }
        sleep(AGAIN).await;
    }
    None
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
    let moving = Moving::new(partition, raw.offset);
    while !moving.partition.is_closed() {
        match put_among_letters(&kafka, &raw).await {
            Ok(()) => return moving.done(),
            Err(error) => {
                warn!(topic = %raw.topic, offset = raw.offset, %error, "not a delivery of ours, and refused as a dead letter, trying again");
            }
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::watermark::Watermark;
    use super::*;

    #[tokio::test]
    async fn a_move_that_is_aborted_leaves_nothing_in_hand() {
        let mark = Watermark::starting_at(0, "");
        let partition = Partition::new(("t".into(), 0), (1, 0), mark, Arc::default(), None);
        let partition = Arc::new(partition);
        for offset in [0, 1] {
            partition.receive(offset);
        }
        Moving::new(partition.clone(), 1).done();
        let moving = Moving::new(partition.clone(), 0);
        let task = tokio::spawn(async move {
            let _moving = moving;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(partition.in_hand(), 0);
        assert_eq!(partition.take_commit().unwrap().offset, 0);
    }
}
