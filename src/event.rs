//! Events: what a broker message becomes inside the bridge.
//!
//! An [`Event`] is immutable and shared (`Arc<Event>`) by all deliveries made of it, so its body is
//! held once however many subscriptions match. Bytes are never interpreted here: a header that is
//! not UTF-8 or a body that is not JSON is an ordinary event.

pub mod cloud;
pub mod context;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One message of a source, with the names that the bridge gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Sent as `webhook-id`; the same on every attempt, after restarts and to every subscription.
    pub id: EventId,
    /// The routing key on RabbitMQ, the topic on Kafka, or `topic:` of the source.
    pub topic: Arc<str>,
    /// The CloudEvents type, else AMQP `type`, else a Kafka header `type`, else the topic.
    pub kind: Arc<str>,
    /// The configured source that took the event.
    pub source: Arc<str>,
    /// Whose it is, where its source says how that is told and the message does.
    pub tenant: Option<Arc<str>>,
    /// When the producer says that it published, if it says so.
    pub published_at: Option<Timestamp>,
    pub content_type: Option<Arc<str>>,
    pub content_encoding: Option<Arc<str>>,
    /// The Kafka key; `None` is the null key.
    pub key: Option<Bytes>,
    /// The application's own headers, in order, without any of ours.
    pub headers: Headers,
    /// Properties of the broker's protocol that belong to the message (`correlation_id`, `app_id`,
    /// `expiration`, …), by their protocol names. Kept for the envelope; never acted upon.
    pub properties: Vec<(String, HeaderValue)>,
    pub body: Bytes,
    pub origin: Origin,
}

impl Event {
    /// What the event counts for in byte budgets: body, headers and a fixed share for the rest.
    pub fn size_bytes(&self) -> usize {
        self.body.len() + self.headers.size_bytes() + 512
    }

    pub fn facts(&self) -> Facts<'_> {
        Facts {
            id: &self.id,
            topic: &self.topic,
            kind: &self.kind,
            source: &self.source,
        }
    }
}

/// What an event's body says where its source decodes. Made when the event is taken, and kept
/// beside the bytes that came, which stay what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub body: Bytes,
    /// Made of it by a schema, whatever type the message gives its bytes. Else it is the message's
    /// own content, uncompressed.
    pub is_json: bool,
}

/// What a request says of its event outside of the body: the id, and the names that headers of
/// signatures are filled with.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub id: &'a EventId,
    pub topic: &'a str,
    pub kind: &'a str,
    pub source: &'a str,
}

/// An event of which nothing but the id is known.
impl<'a> From<&'a EventId> for Facts<'a> {
    fn from(id: &'a EventId) -> Self {
        let (topic, kind, source) = ("", "", "");
        Self {
            id,
            topic,
            kind,
            source,
        }
    }
}

/// Where an event was taken from, for people: dead letters and logs carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Origin {
    /// The broker's name in the config.
    pub broker: Arc<str>,
    #[serde(flatten)]
    pub place: Place,
}

/// The coordinates of a message in the words of its broker. Data only: nothing settles with these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Amqp {
        exchange: Arc<str>,
        routing_key: Arc<str>,
        queue: Arc<str>,
    },
    Kafka {
        topic: Arc<str>,
        partition: i32,
        offset: i64,
    },
    Embedded {
        topic: Arc<str>,
        sequence: u64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = &self.broker;
        match &self.place {
            Place::Amqp {
                exchange,
                routing_key,
                queue,
            } => {
                write!(
                    f,
                    "{broker}: exchange {exchange:?}, routing key {routing_key:?}, queue {queue:?}"
                )
            }
            Place::Kafka {
                topic,
                partition,
                offset,
            } => {
                write!(
                    f,
                    "{broker}: topic {topic}, partition {partition}, offset {offset}"
                )
            }
            Place::Embedded { topic, sequence } => {
                write!(f, "{broker}: topic {topic}, sequence {sequence}")
            }
        }
    }
}

/// An event's identity, safe in a header and in a signed string: 1 to 128 bytes of
/// `[A-Za-z0-9_-]`, or percent-encoded, so never `.`, CR or LF.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Arc<str>);

impl EventId {
    /// Longest id that is kept as it came, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// An id given from outside: kept when it is `[A-Za-z0-9_-]{1,128}`, else percent-encoded, and
    /// beyond 128 bytes (after encoding) replaced by its SHA-256. `None` for an empty one.
    pub fn from_outside(id: &[u8]) -> Option<Self> {
        if id.is_empty() {
            return None;
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let mut encoded = String::with_capacity(id.len());
        for &byte in id {
            if plain(byte) {
                encoded.push(byte as char);
            } else {
                encoded.push('%');
                encoded.push(
                    char::from_digit(u32::from(byte >> 4), 16)
                        .unwrap_or('0')
                        .to_ascii_uppercase(),
                );
                encoded.push(
                    char::from_digit(u32::from(byte & 15), 16)
                        .unwrap_or('0')
                        .to_ascii_uppercase(),
                );
            }
            if encoded.len() > Self::MAX_BYTES {
                return Some(Self::hashed("id", &[id]));
            }
        }
        Some(Self(encoded.into()))
    }

    /// An id derived from parts that identify the event: `<prefix>_` and the SHA-256 (base64url) of
    /// the length-prefixed parts, so that different parts never give the same bytes to hash.
    pub fn hashed(prefix: &str, parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(format!("{prefix}_{}", URL_SAFE_NO_PAD.encode(hasher.finalize())).into())
    }

    /// A new UUIDv7. Redeliveries of an event with such an id cannot be recognised.
    pub fn random() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string().into())
    }

    /// An id read back from an envelope, already encoded: taken as it is, if it is one of ours.
    pub fn kept(id: &str) -> Option<Self> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'%');
        (!id.is_empty() && id.len() <= Self::MAX_BYTES && id.bytes().all(fits))
            .then(|| Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Message headers in order, duplicates allowed (Kafka has them).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headers(pub Vec<(String, HeaderValue)>);

impl Headers {
    /// The first header of this name; names are compared byte for byte.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value)
    }

    pub fn push(&mut self, name: impl Into<String>, value: HeaderValue) {
        self.0.push((name.into(), value));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub fn size_bytes(&self) -> usize {
        self.0
            .iter()
            .map(|(name, value)| name.len() + 1 + value.size_bytes())
            .sum()
    }
}

/// A header's value: bytes on Kafka, a typed field on AMQP. Integers are carried as 64 bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderValue {
    /// Text or binary; AMQP long strings are not always UTF-8.
    Bytes(Bytes),
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Seconds since 1970 (AMQP timestamp).
    Time(u64),
    Null,
    List(Vec<HeaderValue>),
    Map(Vec<(String, HeaderValue)>),
}

impl HeaderValue {
    pub fn text(value: impl Into<String>) -> Self {
        Self::Bytes(Bytes::from(value.into()))
    }

    /// The value as UTF-8 text, if it is that.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len() + 5,
            Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Time(_) | Self::Null => 9,
            Self::List(items) => 5 + items.iter().map(Self::size_bytes).sum::<usize>(),
            Self::Map(entries) => {
                5 + entries
                    .iter()
                    .map(|(name, value)| name.len() + 1 + value.size_bytes())
                    .sum::<usize>()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_outside_id_is_kept() {
        assert_eq!(
            EventId::from_outside(b"msg_2-A").unwrap().as_str(),
            "msg_2-A"
        );
    }

    #[test]
    fn dots_and_line_breaks_are_percent_encoded() {
        assert_eq!(
            EventId::from_outside(b"a.b\r\n").unwrap().as_str(),
            "a%2Eb%0D%0A"
        );
    }

    #[test]
    fn a_long_id_becomes_a_hash() {
        let id = EventId::from_outside(&[b'x'; 129]).unwrap();
        assert!(id.as_str().starts_with("id_") && id.as_str().len() < 64);
        assert_ne!(id, EventId::from_outside(&[b'x'; 130]).unwrap());
    }

    #[test]
    fn hashed_parts_do_not_run_together() {
        assert_ne!(
            EventId::hashed("k", &[b"ab", b"c"]),
            EventId::hashed("k", &[b"a", b"bc"])
        );
    }

    #[test]
    fn an_empty_id_is_none() {
        assert_eq!(EventId::from_outside(b""), None);
    }
}
