//! Reading the topic of dead letters from its beginning to its present end, outside any group.

use anyhow::{Context as _, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::message::BorrowedMessage;

use super::names;
use crate::broker::kafka::client::{ASK, Connection};
use crate::broker::kafka::walk::{Stretch, Walked, reader, walk};

/// Reads the dead letters of `group` (one partition of them, or all) up to the present end and
/// shows each record, tombstones too, until `look` says `false`. Blocks.
pub fn scan(
    connection: &Connection,
    group: &str,
    partition: Option<i32>,
    look: &mut dyn FnMut(&BorrowedMessage<'_>) -> bool,
) -> anyhow::Result<()> {
    let topic = names::dead(group);
    let asking = reader(connection, group)?;
    let metadata = asking
        .fetch_metadata(Some(&topic), ASK)
        .context("asking for the dead letters' partitions")?;
    let found = metadata
        .topics()
        .first()
        .filter(|t| t.error().is_none())
        .with_context(|| format!("topic {topic} is not there"))?;
    let mut stretch = Stretch::new();
    for p in found.partitions() {
        if partition.is_some_and(|only| only != p.id()) {
            continue;
        }
        let (low, high) = asking.fetch_watermarks(&topic, p.id(), ASK)?;
        if low < high {
            stretch.insert((topic.clone(), p.id()), (low, high));
        }
    }
    drop(asking);
    match walk(connection, group, stretch, look)? {
        Walked::Whole | Walked::Enough => Ok(()),
        Walked::Silent => bail!("reading topic {topic} came to a stop"),
    }
}
