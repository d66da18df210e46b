//! Partitions whose leaders do not answer.
//!
//! A cluster that has lost most of its nodes still answers for itself, with what the last of them remembers,
//! and a member just gets no more messages. So the leaders of its partitions are asked for their ends: of one
//! after the other, so that it costs little however many there are, and not by the member's own client, which
//! would let go of its connection, and of what comes on it, where an answer is late.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode as Code};
use tokio::time::{Instant, sleep};

use super::Kafka;
use super::client::blocking;
use super::noted::Consumer;

const EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// A node that fails is replaced within the broker's `broker.session.timeout.ms`, 9 s unless set.
const PATIENCE: Duration = Duration::from_secs(15);

/// Does `work` with the member of `part`, whose client is `consumer`; meanwhile the broker's health says
/// where leaders of the member's partitions do not answer.
pub async fn watched<T>(
    kafka: &Kafka,
    part: &str,
    consumer: Arc<Consumer>,
    work: impl Future<Output = T>,
) -> T {
    let part = format!("partitions of {part}");
    let ended = tokio::select! { biased;
        ended = work => ended,
        never = watch(kafka, &part, consumer) => match never {},
    };
    kafka.status.forget(&part);
    ended
}

async fn watch(kafka: &Kafka, part: &str, consumer: Arc<Consumer>) -> Infallible {
    let mut silent: Option<(Partition, Instant)> = None;
    let mut turn: usize = 0;
    loop {
        sleep(EVERY).await;
        turn = turn.wrapping_add(1);
        let (admin, consumer, began) = (kafka.admin.clone(), consumer.clone(), Instant::now());
        let again = silent.as_ref().map(|(partition, _)| partition.clone());
        let asked = blocking(move || {
            let Some((topic, number)) = again.or_else(|| one_of(&consumer, turn)) else {
                return Ok(None);
            };
            drop(consumer);
            let ends = admin
                .inner()
                .fetch_watermarks(&topic, number, ANSWER_WITHIN);
            Ok((!is_answer(ends)).then_some((topic, number)))
        });
        let Ok(Some(partition)) = asked.await else {
            let said = silent.take();
            if said.is_some_and(|(_, since)| since.elapsed() >= PATIENCE) {
                kafka.status.ready(part);
            }
            continue;
        };
        kafka.status.silent();
        let ((topic, number), since) = silent.get_or_insert((partition, began));
        if since.elapsed() >= PATIENCE {
            let why = format!(
                "partition {number} of topic `{topic}` has no leader that answers, and it may not be the only one: \
                 nothing comes of it until it has; `kafka-topics.sh --describe --unavailable-partitions` names all"
            );
            kafka.status.down(part, why);
        }
    }
}

/// Topic and number.
type Partition = (String, i32);

/// One of the member's partitions, each in its turn.
fn one_of(consumer: &Consumer, turn: usize) -> Option<Partition> {
    let assigned = consumer.assignment().ok()?;
    let all = assigned.elements();
    let one = all.get(turn % all.len().max(1))?;
    Some((one.topic().to_owned(), one.partition()))
}

/// Partitions that are gone, or are not for us, have no leader to wait for.
fn is_answer<T>(answer: KafkaResult<T>) -> bool {
    let Err(error) = answer else { return true };
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::TopicAuthorizationFailed
        )
    )
}
