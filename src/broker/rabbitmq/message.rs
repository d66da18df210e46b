//! Messages: AMQP properties and field tables to what the bridge knows, and back.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

use crate::broker::{Publication, Taken};
use crate::delivery::Delivery;
use crate::event::{HeaderValue, Headers, Origin, Place};

/// A message of a source, before it is named.
pub fn taken(broker: &Arc<str>, queue: &Arc<str>, delivery: lapin::message::Delivery) -> Taken {
    let lapin::message::Delivery {
        exchange,
        routing_key,
        properties,
        data,
        ..
    } = delivery;
    let text =
        |value: &Option<ShortString>| value.as_ref().map(|value| Arc::<str>::from(value.as_str()));
    let topic: Arc<str> = routing_key.as_str().into();
    Taken {
        kind: text(properties.kind()).filter(|kind| !kind.is_empty()),
        message_id: properties
            .message_id()
            .as_ref()
            .map(|id| Bytes::copy_from_slice(id.as_str().as_bytes())),
        placed_id: None,
        published_at: properties
            .timestamp()
            .and_then(|seconds| Timestamp::from_second(seconds as i64).ok()),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        key: None,
        headers: properties
            .headers()
            .as_ref()
            .map(headers_from)
            .unwrap_or_default(),
        properties: own_properties(&properties),
        body: Bytes::from(data),
        origin: Origin {
            broker: broker.clone(),
            place: Place::Amqp {
                exchange: exchange.as_str().into(),
                routing_key: topic.clone(),
                queue: queue.clone(),
            },
        },
        topic,
    }
}

/// The properties of the original that the envelope keeps. Content type and encoding and the
/// timestamp are the event's own and not repeated.
fn own_properties(properties: &BasicProperties) -> Vec<(String, HeaderValue)> {
    let texts = [
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
    ];
    let numbers = [
        ("delivery_mode", properties.delivery_mode()),
        ("priority", properties.priority()),
    ];
    let texts = texts.into_iter().filter_map(|(name, value)| {
        value
            .as_ref()
            .map(|value| (name.to_owned(), HeaderValue::text(value.as_str())))
    });
    let numbers = numbers.into_iter().filter_map(|(name, value)| {
        value.map(|value| (name.to_owned(), HeaderValue::Int(i64::from(value))))
    });
    let mut all: Vec<_> = texts.chain(numbers).collect();
    // As an AMQP table has them, so that a delivery read back equals the one that was parked.
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}

/// Properties of a parked or dead-lettered delivery. The original's inert ones are live again; what
/// the broker acts upon (expiration, user id, priority) is only in the envelope.
pub fn properties_of(delivery: &Delivery, headers: &Headers) -> BasicProperties {
    let event = &delivery.event;
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(delivery.id.as_str().into())
        .with_headers(table_from(headers));
    let short = |text: &str| ShortString::try_new(text).ok();
    if let Some(content_type) = event.content_type.as_deref().and_then(short) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(encoding) = event.content_encoding.as_deref().and_then(short) {
        properties = properties.with_content_encoding(encoding);
    }
    if let Some(at) = event.published_at {
        properties = properties.with_timestamp(at.as_second().max(0) as u64);
    }
    for (name, value) in &event.properties {
        let Some(value) = value.as_str().and_then(short) else {
            continue;
        };
        properties = match name.as_str() {
            "correlation_id" => properties.with_correlation_id(value),
            "reply_to" => properties.with_reply_to(value),
            "type" => properties.with_type(value),
            "app_id" => properties.with_app_id(value),
            _ => properties,
        };
    }
    properties
}

pub fn properties_of_publication(publication: &Publication) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_headers(table_from(&publication.headers));
    let short = |text: &Option<String>| {
        text.as_deref()
            .and_then(|text| ShortString::try_new(text).ok())
    };
    if let Some(id) = short(&publication.id) {
        properties = properties.with_message_id(id);
    }
    if let Some(kind) = short(&publication.kind) {
        properties = properties.with_type(kind);
    }
    if let Some(content_type) = short(&publication.content_type) {
        properties = properties.with_content_type(content_type);
    }
    properties
}

/// The headers of a message on one of our own queues. The broker's own (`x-death`,
/// `x-delivery-count`) are left out; an application's `x-…` are kept under other names.
pub fn own_headers(properties: &BasicProperties) -> Headers {
    let mut headers = properties
        .headers()
        .as_ref()
        .map(headers_from)
        .unwrap_or_default();
    headers.0.retain(|(name, _)| !name.starts_with("x-"));
    headers
}

/// A header that a quorum queue adds to what it delivers again.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// How often a quorum queue has handed this out before without an answer.
pub fn times_returned(properties: &BasicProperties) -> i64 {
    let headers = properties.headers().as_ref();
    let count = headers.and_then(|headers| headers.inner().get(DELIVERY_COUNT));
    match count.map(value_from) {
        Some(HeaderValue::Int(count)) => count,
        _ => 0,
    }
}

fn headers_from(table: &FieldTable) -> Headers {
    Headers(
        table
            .inner()
            .iter()
            .filter(|(name, _)| name.as_str() != DELIVERY_COUNT)
            .map(|(name, value)| (name.as_str().to_owned(), value_from(value)))
            .collect(),
    )
}

/// A field table. Names beyond the 255 bytes of AMQP are left out; the envelope has none.
pub fn table_from(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers.iter() {
        if let Ok(name) = ShortString::try_new(name) {
            table.insert(name, value_to(value));
        }
    }
    table
}

fn value_from(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::ShortShortUInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::ShortInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::ShortUInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::LongInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::LongUInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::LongLongInt(value) => HeaderValue::Int(*value),
        AMQPValue::Float(value) => HeaderValue::Float(f64::from(*value)),
        AMQPValue::Double(value) => HeaderValue::Float(*value),
        AMQPValue::DecimalValue(value) => {
            HeaderValue::Float(f64::from(value.value) / 10f64.powi(i32::from(value.scale)))
        }
        AMQPValue::ShortString(value) => HeaderValue::text(value.as_str()),
        AMQPValue::LongString(value) => {
            HeaderValue::Bytes(Bytes::copy_from_slice(value.as_bytes()))
        }
        AMQPValue::ByteArray(value) => HeaderValue::Bytes(Bytes::copy_from_slice(value.as_slice())),
        AMQPValue::FieldArray(items) => {
            HeaderValue::List(items.as_slice().iter().map(value_from).collect())
        }
        AMQPValue::Timestamp(seconds) => HeaderValue::Time(*seconds),
        AMQPValue::FieldTable(table) => HeaderValue::Map(headers_from(table).0),
        AMQPValue::Void => HeaderValue::Null,
    }
}

fn value_to(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bytes(bytes) => AMQPValue::LongString(bytes.to_vec().into()),
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Float(value) => AMQPValue::Double(*value),
        HeaderValue::Time(seconds) => AMQPValue::Timestamp(*seconds),
        HeaderValue::Null => AMQPValue::Void,
        HeaderValue::List(items) => AMQPValue::FieldArray(FieldArray::from(
            items.iter().map(value_to).collect::<Vec<_>>(),
        )),
        HeaderValue::Map(entries) => AMQPValue::FieldTable(table_from(&Headers(entries.clone()))),
    }
}
