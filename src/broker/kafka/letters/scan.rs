//! Reading the topic of dead letters from its beginning to its present end, outside any group.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::names;
use crate::broker::kafka::client::{ASK, Connection, Quiet};
use crate::broker::kafka::start::ReaderContext;

/// A scan in which nothing comes for so long is given up.
pub const SILENCE: Duration = Duration::from_secs(15);

/// A reader that is told where to begin, and hears where a partition ends.
pub fn reader(connection: &Connection, group: &str) -> anyhow::Result<BaseConsumer<ReaderContext>> {
    let mut config = connection.reader(group);
    config.set("enable.partition.eof", "true");
    Ok(config.create_with_context(ReaderContext(Quiet))?)
}

/// Reads the dead letters of `group` (one partition of them, or all) up to the present end and
/// shows each record, tombstones too, until `look` says `false`. Blocks.
pub fn scan(
    connection: &Connection,
    group: &str,
    partition: Option<i32>,
    look: &mut dyn FnMut(&BorrowedMessage<'_>) -> bool,
) -> anyhow::Result<()> {
    let topic = names::dead(group);
    let reader = reader(connection, group)?;
    let metadata = reader
        .fetch_metadata(Some(&topic), ASK)
        .context("asking for the dead letters' partitions")?;
    let found = metadata
        .topics()
        .first()
        .filter(|t| t.error().is_none())
        .with_context(|| format!("topic {topic} is not there"))?;
    let mut ends = HashMap::new();
    let mut list = TopicPartitionList::new();
    for p in found.partitions() {
        if partition.is_some_and(|only| only != p.id()) {
            continue;
        }
        let (low, high) = reader.fetch_watermarks(&topic, p.id(), ASK)?;
        if low < high {
            list.add_partition_offset(&topic, p.id(), Offset::Offset(low))?;
            ends.insert(p.id(), high);
        }
    }
    if ends.is_empty() {
        return Ok(());
    }
    reader.assign(&list)?;
    let mut heard = Instant::now();
    while !ends.is_empty() {
        if heard.elapsed() > SILENCE {
            bail!("reading topic {topic} came to a stop");
        }
        match reader.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                heard = Instant::now();
                let Some(end) = ends.get(&message.partition()).copied() else {
                    continue;
                };
                if message.offset() < end && !look(&message) {
                    return Ok(());
                }
                if message.offset() + 1 >= end {
                    ends.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
            }
            Some(Err(error)) if heard.elapsed() > SILENCE => return Err(error.into()),
            Some(Err(_)) => {}
        }
    }
    Ok(())
}
