//! Commits of a group's offsets: sent so that their end is heard, and read back with their metadata.

use std::collections::BTreeMap;

use anyhow::Context as _;
use rdkafka::bindings as native;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use super::client::ASK;

/// Offset and metadata by topic and partition; `None` where nothing is committed.
pub type Committed = BTreeMap<(String, i32), Option<(i64, String)>>;

/// Sends a commit whose answer comes to the consumer's queue, and from there to
/// the context's `commit_callback`. That of `CommitMode::Async` tells nobody how it ended: one that is
/// refused in a rebalance would never be sent again.
pub fn send<C: ConsumerContext>(
    consumer: &impl rdkafka::consumer::Consumer<C>,
    list: &TopicPartitionList,
) -> KafkaResult<()> {
    let client = consumer.client().native_ptr();
    // SAFETY: client and list are alive, and the call takes what it needs of them and of the queue.
    let error = unsafe {
        let queue = native::rd_kafka_queue_get_consumer(client);
        let error =
            native::rd_kafka_commit_queue(client, list.ptr(), queue, None, std::ptr::null_mut());
        native::rd_kafka_queue_destroy(queue);
        error
    };
    match error {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(KafkaError::ConsumerCommit(error.into())),
    }
}

/// The committed offsets of `list` with their metadata. Blocks.
pub fn committed<C: ConsumerContext, T: rdkafka::consumer::Consumer<C>>(
    consumer: &T,
    list: TopicPartitionList,
) -> anyhow::Result<Committed> {
    let found = consumer
        .committed_offsets(list, ASK)
        .context("asking for committed offsets")?;
    let mut committed = Committed::new();
    for element in found.elements() {
        element
            .error()
            .with_context(|| format!("offset of {}/{}", element.topic(), element.partition()))?;
        let place = (element.topic().to_owned(), element.partition());
        let known = match element.offset() {
            Offset::Offset(offset) => Some((offset, metadata(&found, &place))),
            _ => None,
        };
        committed.insert(place, known);
    }
    Ok(committed)
}

/// Commit metadata as text. The library's own accessor panics on what is not UTF-8, and another
/// program may have committed for this group.
fn metadata(list: &TopicPartitionList, (topic, partition): &(String, i32)) -> String {
    // SAFETY: the list is alive and has `cnt` elements; names are NUL-terminated and metadata has
    // `metadata_size` bytes where it is not null.
    unsafe {
        let list = &*list.ptr();
        for index in 0..list.cnt as usize {
            let element = &*list.elems.add(index);
            let name = std::ffi::CStr::from_ptr(element.topic);
            if element.partition == *partition
                && name.to_bytes() == topic.as_bytes()
                && !element.metadata.is_null()
            {
                let bytes = std::slice::from_raw_parts(
                    element.metadata.cast::<u8>(),
                    element.metadata_size,
                );
                return String::from_utf8_lossy(bytes).into_owned();
            }
        }
    }
    String::new()
}
