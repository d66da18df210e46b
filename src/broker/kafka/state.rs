//! State: a compacted topic of one partition, read outside any group.
//!
//! The cluster keeps at least the last record of each key, and every record for a day, so that whoever
//! finds that the last one is not what is in force has time to say so.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::client::{Connection, Quiet, fatal};
use super::produce::Record as Produced;
use super::start::ReaderContext;
use super::{Kafka, names, topics};
use crate::broker::Refused;
use crate::broker::state::{AHEAD, Entry, Keeping, Reading, Record, StateLog};

/// No record goes earlier than this, replaced or not.
pub const KEPT: Duration = Duration::from_secs(24 * 3_600);
const POLL: Duration = Duration::from_millis(250);
/// Records under way at once, of several.
const AT_ONCE: usize = 500;

#[async_trait]
impl StateLog for Kafka {
    async fn tell(&self, records: Vec<Record>) -> Result<(), Refused> {
        let topic = names::state(&self.settings.group);
        for some in records.chunks(AT_ONCE) {
            let told = some.iter().map(|record| {
                self.producer.send(Produced {
                    topic: &topic,
                    partition: Some(0),
                    key: Some(record.key.as_bytes()),
                    payload: record.body.as_deref(),
                    headers: None,
                    stamped: true,
                })
            });
            try_join_all(told).await?;
        }
        Ok(())
    }

    async fn follow(&self, from: Option<u64>) -> Result<Reading, Refused> {
        let Self {
            settings, admin, ..
        } = self;
        topics::ensure_state(admin, &settings.group, settings.declare)
            .await
            .map_err(|error| self.unavailable(&error))?;
        let (into, entries) = mpsc::channel(AHEAD);
        let stop = CancellationToken::new();
        let follower = Follower {
            connection: self.connection.clone(),
            group: settings.group.to_string(),
            from,
            into,
            stop: stop.clone(),
        };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = follower.run() {
                debug!(
                    error = format!("{error:#}"),
                    "the reader of the state ended"
                );
            }
        });
        Ok(Reading::new(entries, stop))
    }

    fn keeping(&self) -> Keeping {
        Keeping::LastOfEach
    }
}

struct Follower {
    connection: Connection,
    group: String,
    from: Option<u64>,
    into: mpsc::Sender<Entry>,
    stop: CancellationToken,
}

impl Follower {
    /// Blocks until it is not wanted any more, or cannot go on.
    fn run(self) -> anyhow::Result<()> {
        let config = self.connection.reader(&names::history_group(&self.group));
        let reader: BaseConsumer<ReaderContext> =
            config.create_with_context(ReaderContext(Quiet))?;
        let begin = match self.from {
            None => Offset::Beginning,
            Some(place) => Offset::Offset(i64::try_from(place)?),
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&names::state(&self.group), 0, begin)?;
        reader.assign(&list)?;
        while !self.stop.is_cancelled() {
            match reader.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let key = message.key().map(|key| String::from_utf8(key.to_vec()));
                    let Some(Ok(key)) = key else {
                        debug!(
                            offset = message.offset(),
                            "a record of the state without a key"
                        );
                        continue;
                    };
                    let entry = Entry {
                        place: message.offset().unsigned_abs(),
                        record: Record {
                            key,
                            body: message.payload().map(Bytes::copy_from_slice),
                        },
                    };
                    if self.into.blocking_send(entry).is_err() {
                        return Ok(());
                    }
                }
                Some(Err(error)) => {
                    if let Some(reason) = fatal(reader.client()) {
                        anyhow::bail!("{reason}");
                    }
                    // Made anew, or not allowed: begun again, it is looked for and says why.
                    if matches!(
                        error.rdkafka_error_code(),
                        Some(
                            Code::UnknownTopicOrPartition
                                | Code::UnknownPartition
                                | Code::UnknownTopic
                                | Code::TopicAuthorizationFailed
                        )
                    ) {
                        return Err(error.into());
                    }
                    debug!(%error, "the reader of the state reports");
                }
            }
        }
        Ok(())
    }
}
