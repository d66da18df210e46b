//! Producing: a record is sent when the cluster has confirmed it, or refused within the deadline.
//!
//! Idempotent and with `acks=all`. A refusal may be of a record that was written after all: a
//! duplicate is fine, a loss is not. A producer that has become useless for good is replaced.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::client::{Apart, Connection, Quiet, fatal};
use super::clock::Clock;
use crate::broker::Refused;

/// How long one record may take to be confirmed.
const DEADLINE: Duration = Duration::from_secs(10);
/// The library gives up before we do, so that nothing is sent after it was refused.
const GIVE_UP: Duration = Duration::from_secs(9);
/// How long a record waits for others to go with it.
const LINGER: Duration = Duration::from_millis(1);
/// Between looks at a full queue.
const QUEUE_FULL: Duration = Duration::from_millis(10);

type Client = FutureProducer<Quiet>;

pub struct Producer {
    broker: Arc<str>,
    connection: Connection,
    linger: Duration,
    live: Mutex<Apart<Client>>,
    clock: Arc<Clock>,
}

/// One record. No payload is a tombstone.
#[derive(Default)]
pub struct Record<'a> {
    pub topic: &'a str,
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    pub headers: Option<OwnedHeaders>,
    /// Whether the topic is one of ours, whose records the broker stamps.
    pub stamped: bool,
}

impl Producer {
    pub fn new(
        broker: Arc<str>,
        connection: Connection,
        clock: Arc<Clock>,
    ) -> anyhow::Result<Self> {
        Self::lingering(LINGER, broker, connection, clock)
    }

    /// For one record after the other: none waits for more to go with it.
    pub fn at_once(
        broker: Arc<str>,
        connection: Connection,
        clock: Arc<Clock>,
    ) -> anyhow::Result<Self> {
        Self::lingering(Duration::ZERO, broker, connection, clock)
    }

    fn lingering(
        linger: Duration,
        broker: Arc<str>,
        connection: Connection,
        clock: Arc<Clock>,
    ) -> anyhow::Result<Self> {
        let live = connect(&connection, linger)?;
        Ok(Self {
            broker,
            connection,
            linger,
            live: Mutex::new(Apart::new(live)),
            clock,
        })
    }

    /// The live client, for questions about metadata.
    pub fn client(&self) -> Client {
        Client::clone(&self.live.lock().unwrap_or_else(|p| p.into_inner()))
    }

    /// Sends and waits until the record is confirmed: its partition and offset.
    pub async fn send(&self, record: Record<'_>) -> Result<(i32, i64), Refused> {
        let client = self.client();
        let deadline = Instant::now() + DEADLINE;
        let Record {
            topic,
            partition,
            key,
            payload,
            headers,
            stamped,
        } = record;
        let size_bytes = payload.map_or(0, <[u8]>::len);
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic);
        record.partition = partition;
        record.key = key;
        record.payload = payload;
        record.headers = headers;
        let confirmation = loop {
            match client.send_result(record) {
                Ok(confirmation) => break confirmation,
                Err((KafkaError::MessageProduction(Code::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    record = back;
                    sleep(QUEUE_FULL).await;
                }
                Err((error, _)) => return Err(self.refused(&client, topic, &error, size_bytes)),
            }
        };
        match timeout_at(deadline, confirmation).await {
            Ok(Ok(Ok(delivered))) => {
                if stamped && let Some(broker_ms) = delivered.timestamp.to_millis() {
                    self.clock.observe(broker_ms, Instant::now());
                }
                Ok((delivered.partition, delivered.offset))
            }
            Ok(Ok(Err((error, _)))) => Err(self.refused(&client, topic, &error, size_bytes)),
            Ok(Err(_)) => Err(self.unavailable("the producer was replaced")),
            Err(_) => Err(self.unavailable("no confirmation in time")),
        }
    }

    fn unavailable(&self, why: impl Into<String>) -> Refused {
        Refused::Unavailable {
            broker: self.broker.clone(),
            why: why.into(),
        }
    }

    fn refused(
        &self,
        client: &Client,
        topic: &str,
        error: &KafkaError,
        size_bytes: usize,
    ) -> Refused {
        if let Some(reason) = fatal(client.client()) {
            self.replace(client, &reason);
        }
        let code = error.rdkafka_error_code();
        let why = code.map_or_else(|| error.to_string(), |code| code.to_string());
        match code {
            Some(Code::MessageSizeTooLarge) => Refused::TooLarge {
                broker: self.broker.clone(),
                size_bytes,
            },
            Some(
                Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::InvalidTopic
                | Code::InvalidRecord
                | Code::PolicyViolation,
            ) => Refused::Rejected {
                broker: self.broker.clone(),
                why: format!("topic {topic}: {why}"),
            },
            _ => self.unavailable(why),
        }
    }

    /// A new client in the place of `broken`, unless somebody has done it already.
    fn replace(&self, broken: &Client, reason: &str) {
        let mut live = self.live.lock().unwrap_or_else(|p| p.into_inner());
        if live.client().native_ptr() != broken.client().native_ptr() {
            return;
        }
        warn!(broker = %self.broker, reason, "the producer cannot go on and is replaced");
        match connect(&self.connection, self.linger) {
            Ok(client) => *live = Apart::new(client),
            Err(error) => warn!(broker = %self.broker, %error, "no new producer could be made"),
        }
    }
}

fn connect(connection: &Connection, linger: Duration) -> anyhow::Result<Client> {
    let mut config = connection.producer(GIVE_UP);
    config.set("linger.ms", linger.as_millis().to_string());
    Ok(config.create_with_context(Quiet)?)
}
