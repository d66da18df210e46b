//! A walk through topics of ours, from here to there: outside any group, beside whoever reads them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Connection, Quiet};
use super::start::ReaderContext;

/// A walk in which the cluster says nothing for so long is given up.
pub const SILENCE: Duration = Duration::from_secs(15);

/// A partition of a topic.
pub type At = (String, i32);

/// Where a walk through a partition begins, and the offset before which it ends.
pub type Stretch = HashMap<At, (i64, i64)>;

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Walked {
    /// All of it was looked at.
    Whole,
    /// Whoever looked wanted no more.
    Enough,
    /// The cluster has said nothing for [`SILENCE`].
    Silent,
}

/// A reader that is told where to begin, and hears where a partition ends.
pub fn reader(connection: &Connection, group: &str) -> anyhow::Result<BaseConsumer<ReaderContext>> {
    let mut config = connection.reader(group);
    config.set("enable.partition.eof", "true");
    Ok(config.create_with_context(ReaderContext(Quiet))?)
}

/// Reads these stretches under the name of `group` and shows each record, in the order of its
/// partition, until `look` says `false`. Looking may take as long as it likes. Blocks.
pub fn walk(
    connection: &Connection,
    group: &str,
    stretch: Stretch,
    look: &mut dyn FnMut(&BorrowedMessage<'_>) -> bool,
) -> anyhow::Result<Walked> {
    walk_bearing(SILENCE, connection, group, stretch, look)
}

fn walk_bearing(
    silence: Duration,
    connection: &Connection,
    group: &str,
    mut stretch: Stretch,
    look: &mut dyn FnMut(&BorrowedMessage<'_>) -> bool,
) -> anyhow::Result<Walked> {
    if stretch.is_empty() {
        return Ok(Walked::Whole);
    }
    let reader = reader(connection, group)?;
    let mut list = TopicPartitionList::new();
    for ((topic, partition), (from, _)) in &stretch {
        list.add_partition_offset(topic, *partition, Offset::Offset(*from))?;
    }
    reader.assign(&list)?;
    // The library says of which partition it has met the end, but not of which topic.
    let topics: HashSet<_> = stretch.keys().map(|(topic, _)| topic).collect();
    let one_topic = topics.len() == 1;
    let mut heard = Instant::now();
    while !stretch.is_empty() {
        match reader.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                let place = (message.topic().to_owned(), message.partition());
                if let Some(&(_, end)) = stretch.get(&place) {
                    if message.offset() < end && !look(&message) {
                        return Ok(Walked::Enough);
                    }
                    if message.offset() + 1 >= end {
                        stretch.remove(&place);
                    }
                }
                // Whoever looks slowly is no silence of the cluster.
                heard = Instant::now();
            }
            // What is left of the stretch was compacted away, or is none that is handed over.
            Some(Err(KafkaError::PartitionEOF(partition))) if one_topic => {
                stretch.retain(|(_, number), _| *number != partition);
            }
            Some(Err(error)) if heard.elapsed() > silence => return Err(error.into()),
            Some(Err(_)) | None if heard.elapsed() > silence => return Ok(Walked::Silent),
            Some(Err(_)) | None => {}
        }
    }
    Ok(Walked::Whole)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::*;

    #[test]
    fn a_slow_look_is_not_taken_for_the_end() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let bootstrap = cluster.bootstrap_servers();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .create()
            .unwrap();
        for _ in 0..5 {
            let record = BaseRecord::<(), _>::to("t").partition(0).payload("x");
            producer.send(record).unwrap();
        }
        producer.flush(Duration::from_secs(20)).unwrap();
        let connection = Connection {
            bootstrap: vec![bootstrap],
            tls: None,
            sasl: None,
            properties: BTreeMap::new(),
        };
        let silence = Duration::from_secs(3);
        let stretch = Stretch::from([(("t".to_owned(), 0), (1, 5))]);
        let mut seen = Vec::new();
        let walked = walk_bearing(silence, &connection, "g", stretch, &mut |message| {
            if seen.is_empty() {
                std::thread::sleep(silence + Duration::from_millis(200));
            }
            seen.push(message.offset());
            true
        });
        assert_eq!((walked.unwrap(), seen), (Walked::Whole, vec![1, 2, 3, 4]));
    }
}
