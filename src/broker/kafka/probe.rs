//! The start-up check: a marker goes through the shortest tier and back, and one into the dead
//! letters, before anything is taken.
//!
//! An event that fails must be parked or dead-lettered; finding out that this is not possible only
//! when the first receiver is down would be late. Anything that comes back by a tier shows that
//! the loop works, and so does the tier group's committed offset when another instance reads the
//! partition that the marker went to.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::BaseConsumer;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::client::{Quiet, blocking};
use super::commits::committed;
use super::produce::Record;
use super::start::ReaderContext;
use super::{Kafka, headers, names};
use crate::broker::envelope;
use crate::delivery::WaitKind;
use crate::event::{HeaderValue, Headers};

/// Beyond the tier's delay: joining the group, reading, and what waits before the marker.
const SLACK: Duration = Duration::from_secs(20);
const BACKOFF: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(2);

/// Checks until the loop is seen to work; `false` when stopped before that.
pub async fn until_seen(kafka: &Arc<Kafka>, stop: &CancellationToken) -> bool {
    kafka
        .status
        .starting("retries", "checking that retries come back");
    loop {
        let seen = tokio::select! {
            () = stop.cancelled() => return false,
            seen = once(kafka) => seen,
        };
        match seen {
            Ok(()) => {
                kafka.status.ready("retries");
                return true;
            }
            Err(error) => kafka.status.down("retries", format!("{error:#}")),
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = sleep(BACKOFF) => {}
        }
    }
}

async fn once(kafka: &Arc<Kafka>) -> anyhow::Result<()> {
    let group = &kafka.settings.group;
    let tier = kafka.settings.tiers.shortest();
    let mut came_back = kafka.came_back.subscribe();
    mark(kafka, &names::dead(group))
        .await
        .context("a marker among the dead letters")?;
    let topic = names::tier(group, WaitKind::Retry, tier);
    let (partition, offset) = send(kafka, &topic, None)
        .await
        .context("a marker on the shortest tier")?;
    let seen = async {
        loop {
            if let Ok(Ok(())) = timeout(LOOK, came_back.changed()).await {
                return;
            }
            let read = passed(kafka, &topic, partition, offset).await;
            if read.unwrap_or(false) {
                return;
            }
        }
    };
    timeout(tier + SLACK, seen)
        .await
        .with_context(|| format!("a marker on topic {topic} did not come back"))
}

/// Writes the marker to `dead`, the topic of dead letters, where the next one takes its place.
pub async fn mark(kafka: &Kafka, dead: &str) -> anyhow::Result<()> {
    send(kafka, dead, Some(b"probe")).await.map(drop)
}

async fn send(kafka: &Kafka, topic: &str, key: Option<&[u8]>) -> anyhow::Result<(i32, i64)> {
    let mut ours = Headers::default();
    ours.push(envelope::PROBE, HeaderValue::text("loop"));
    let record = Record {
        topic,
        key,
        payload: Some(b""),
        headers: Some(headers::write(&ours)),
        stamped: true,
        ..Record::default()
    };
    Ok(kafka.producer.send(record).await?)
}

/// Whether the group that reads tiers has passed the offset.
async fn passed(kafka: &Kafka, topic: &str, partition: i32, offset: i64) -> anyhow::Result<bool> {
    let group = names::tier_group(&kafka.settings.group);
    let reader: BaseConsumer<ReaderContext> = kafka
        .connection
        .reader(&group)
        .create_with_context(ReaderContext(Quiet))?;
    let topic = topic.to_owned();
    blocking(move || {
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, partition);
        let found = committed(&reader, list)?;
        Ok(found
            .into_values()
            .flatten()
            .any(|(committed, _)| committed > offset))
    })
    .await
}
