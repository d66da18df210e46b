//! State: a stream, which keeps its records when they are read.
//!
//! It is written and read over the connection for publishing, on channels of its own. A stream does not
//! compact; whoever writes states everything anew before the oldest segments go ([`BYTES`]).

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connect::answer;
use super::{RabbitMq, topology};
use crate::broker::Refused;
use crate::broker::state::{AHEAD, Entry, Keeping, Reading, Record, StateLog};

/// Beyond this the oldest segments are deleted. A group with so much state that it has to be stated
/// anew within a quarter of it has outgrown a stream.
pub const BYTES: u64 = 4 << 30;
/// Bytes of a segment, which goes as a whole.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// A record may go once the log is this long.
const KEPT_BYTES: u64 = BYTES - 2 * SEGMENT_BYTES;
/// Records on their way to us.
const PREFETCH: u16 = 200;
/// Publishes under way at once, of several records.
const AT_ONCE: usize = 8;
const KEY: &str = "hookbridge-key";
const OFFSET: &str = "x-stream-offset";

#[async_trait]
impl StateLog for RabbitMq {
    async fn tell(&self, records: Vec<Record>) -> Result<(), Refused> {
        let told = stream::iter(records).map(|record| async move {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_headers(headers(&record.key));
            let body = record.body.unwrap_or_default();
            self.publish_own(&self.names.state, &body, properties).await
        });
        let mut told = told.buffer_unordered(AT_ONCE);
        while let Some(one) = told.next().await {
            one?;
        }
        Ok(())
    }

    async fn follow(&self, from: Option<u64>) -> Result<Reading, Refused> {
        let following = follow(self, from).await;
        following.map_err(|error| self.unavailable(format!("{error:#}")))
    }

    fn keeping(&self) -> Keeping {
        Keeping::Newest { bytes: KEPT_BYTES }
    }
}

fn headers(key: &str) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert(KEY.into(), AMQPValue::LongString(key.into()));
    headers
}

async fn follow(broker: &RabbitMq, from: Option<u64>) -> anyhow::Result<Reading> {
    let version = broker.version().await?;
    let declare = broker.settings.declare;
    let names = &broker.names;
    broker
        .publisher
        .beside(async |connection| {
            topology::declare_state(connection, names, version, declare).await
        })
        .await?;
    let channel = broker.publisher.connection_channel().await?;
    let prefetch = channel.basic_qos(PREFETCH, BasicQosOptions::default());
    answer("no prefetch", prefetch).await?;
    let begin = match from {
        None => AMQPValue::LongString("first".into()),
        Some(place) => AMQPValue::LongLongInt(i64::try_from(place)?),
    };
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), begin);
    let consume = channel.basic_consume(
        names.state.as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        arguments,
    );
    let what = format!("the stream `{}` cannot be read", names.state);
    let consumer = answer(what, consume).await?;
    let (into, entries) = mpsc::channel(AHEAD);
    let stop = CancellationToken::new();
    tokio::spawn(feed(channel, consumer, into, stop.clone()));
    Ok(Reading::new(entries, stop))
}

/// Hands over what comes until it is not wanted any more, or the channel ends.
async fn feed(
    channel: Channel,
    mut consumer: Consumer,
    into: mpsc::Sender<Entry>,
    stop: CancellationToken,
) {
    while let Some(Some(came)) = stop.run_until_cancelled(consumer.next()).await {
        let Ok(message) = came else { break };
        let tag = message.delivery_tag;
        match entry(message) {
            Some(entry) => {
                if into.send(entry).await.is_err() {
                    break;
                }
            }
            None => debug!("a message of the state's stream without a key, not ours"),
        }
        // It takes nothing away from a stream; the broker sends more.
        if channel
            .basic_ack(tag, BasicAckOptions::default())
            .await
            .is_err()
        {
            break;
        }
    }
    let _ = answer("not closed", channel.close(200, "done".into())).await;
}

fn entry(message: lapin::message::Delivery) -> Option<Entry> {
    let headers = message.properties.headers().as_ref()?.inner();
    let key = match headers.get(KEY)? {
        AMQPValue::LongString(key) => String::from_utf8(key.as_bytes().to_vec()).ok()?,
        _ => return None,
    };
    let place = match headers.get(OFFSET)? {
        AMQPValue::LongLongInt(place) => u64::try_from(*place).ok()?,
        _ => return None,
    };
    let body = Bytes::from(message.data);
    Some(Entry {
        place,
        record: Record {
            key,
            body: (!body.is_empty()).then_some(body),
        },
    })
}
