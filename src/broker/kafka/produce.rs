//! Producing: a record is sent when the cluster has confirmed it, or refused within the deadline.
//!
//! Idempotent and with `acks=all`. A refusal may be of a record that was written after all: a
//! duplicate is fine, a loss is not. A producer that has become useless for good is replaced, and so
//! is one that gets nothing confirmed for long: after enough timeouts the library's idempotent
//! producer may never send again, though the cluster answers (librdkafka, issues 3009 and 3720).
//!
//! Records go as they are. A consumer says how much it fetches before decompression only, so a fetch of
//! 256 KiB of what compresses well was hundreds of MiB in memory. What its topic refuses as too large goes
//! once more, compressed and without others: it may have been compressed at its source, or its batch was
//! what was too large.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::sync::OnceCell;
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
/// A client is replaced that has got nothing confirmed for so long, the next one after twice as long. Less
/// than [`GIVE_UP`], so that one that the cluster's return did not mend is replaced when the first record
/// that was sent after it is given up, and not the one after that.
const SILENT: Duration = Duration::from_secs(8);
const LONGEST_SILENCE: Duration = Duration::from_secs(240);
/// Between looks at a full queue.
const QUEUE_FULL: Duration = Duration::from_millis(10);

type Client = FutureProducer<Quiet>;

pub struct Producer {
    plain: Sender,
    /// For what was refused as too large; made with the first of these.
    packed: OnceCell<Sender>,
}

/// How records go.
#[derive(Clone, Copy)]
enum Form {
    /// As they are, with those of so long a time.
    Plain { linger: Duration },
    /// Compressed, each by itself.
    Packed,
}

/// A client, and another one in its place when it has become useless.
struct Sender {
    broker: Arc<str>,
    connection: Connection,
    form: Form,
    live: Mutex<Apart<Client>>,
    silence: Mutex<Silence>,
    clock: Arc<Clock>,
}

/// How long nothing has been confirmed of what was sent.
struct Silence {
    since: Option<Instant>,
    borne: Duration,
}

impl Silence {
    fn none() -> Self {
        Self {
            since: None,
            borne: SILENT,
        }
    }

    fn confirmed(&mut self) {
        if self.since.is_some() || self.borne != SILENT {
            *self = Self::none();
        }
    }

    /// A record was not confirmed in time; whether that has gone on for too long.
    fn timed_out(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let too_long = now.duration_since(since) >= self.borne;
        if too_long {
            self.since = None;
            self.borne = (self.borne * 2).min(LONGEST_SILENCE);
        }
        too_long
    }
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
        Ok(Self {
            plain: Sender::new(Form::Plain { linger }, broker, connection, clock)?,
            packed: OnceCell::new(),
        })
    }

    /// Sends and waits until the record is confirmed: its partition and offset.
    pub async fn send(&self, record: Record<'_>) -> Result<(i32, i64), Refused> {
        let again = Record {
            headers: None,
            ..record
        };
        let (refused, headers) = match self.plain.send(record).await {
            Ok(place) => return Ok(place),
            Err(Failed { refused, headers }) => (refused, headers),
        };
        if !matches!(refused, Refused::TooLarge { .. }) {
            return Err(refused);
        }
        let packed = self.packed.get_or_try_init(async || self.plain.packed());
        let sent = packed.await.map_err(|error| {
            warn!(broker = %self.plain.broker, %error, "no producer could be made that compresses");
            refused
        })?;
        let record = Record { headers, ..again };
        sent.send(record).await.map_err(|failed| failed.refused)
    }
}

/// What was not sent.
struct Failed {
    refused: Refused,
    /// Of the record, where the library has given it back.
    headers: Option<OwnedHeaders>,
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self {
            refused,
            headers: None,
        }
    }
}

impl Sender {
    fn new(
        form: Form,
        broker: Arc<str>,
        connection: Connection,
        clock: Arc<Clock>,
    ) -> anyhow::Result<Self> {
        let live = connect(&connection, form)?;
        Ok(Self {
            broker,
            connection,
            form,
            live: Mutex::new(Apart::new(live)),
            silence: Mutex::new(Silence::none()),
            clock,
        })
    }

    /// The same, for what is too large as it is.
    fn packed(&self) -> anyhow::Result<Self> {
        let (broker, connection) = (self.broker.clone(), self.connection.clone());
        Self::new(Form::Packed, broker, connection, self.clock.clone())
    }

    fn client(&self) -> Client {
        Client::clone(&self.live.lock().unwrap_or_else(|p| p.into_inner()))
    }

    async fn send(&self, record: Record<'_>) -> Result<(i32, i64), Failed> {
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
                Err((error, _)) => {
                    return Err(self.refused(&client, topic, &error, size_bytes).into());
                }
            }
        };
        match timeout_at(deadline, confirmation).await {
            Ok(Ok(Ok(delivered))) => {
                self.silence().confirmed();
                if stamped && let Some(broker_ms) = delivered.timestamp.to_millis() {
                    self.clock.observe(broker_ms, Instant::now());
                }
                Ok((delivered.partition, delivered.offset))
            }
            Ok(Ok(Err((error, record)))) => Err(Failed {
                refused: self.refused(&client, topic, &error, size_bytes),
                headers: record.headers().cloned(),
            }),
            Ok(Err(_)) => Err(self.unavailable("the producer was replaced").into()),
            Err(_) => {
                self.timed_out(&client);
                Err(self.unavailable("no confirmation in time").into())
            }
        }
    }

    fn silence(&self) -> std::sync::MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn timed_out(&self, client: &Client) {
        let too_long = self.silence().timed_out(Instant::now());
        if too_long {
            self.replace(client, "it gets nothing confirmed");
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
        if code == Some(Code::MessageTimedOut) {
            self.timed_out(client);
        }
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
        match connect(&self.connection, self.form) {
            Ok(client) => *live = Apart::new(client),
            Err(error) => warn!(broker = %self.broker, %error, "no new producer could be made"),
        }
    }
}

fn connect(connection: &Connection, form: Form) -> anyhow::Result<Client> {
    let mut config = connection.producer(GIVE_UP);
    match form {
        Form::Plain { linger } => config
            .set("linger.ms", linger.as_millis().to_string())
            .set("compression.type", "none"),
        Form::Packed => config
            .set("linger.ms", "0")
            .set("batch.num.messages", "1")
            .set("compression.type", "zstd"),
    };
    Ok(config.create_with_context(Quiet)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_gets_nothing_confirmed_is_given_up_ever_later() {
        let (mut silence, began) = (Silence::none(), Instant::now());
        let mut given_up = Vec::new();
        for second in 0..900 {
            if silence.timed_out(began + Duration::from_secs(second)) {
                given_up.push(second);
            }
        }
        assert_eq!(given_up, [8, 25, 58, 123, 252, 493, 734]);
        silence.confirmed();
        let now = began + Duration::from_secs(900);
        assert!(!silence.timed_out(now));
        assert!(!silence.timed_out(now + Duration::from_secs(7)));
        silence.confirmed();
        assert!(!silence.timed_out(now + Duration::from_secs(40)));
    }
}
