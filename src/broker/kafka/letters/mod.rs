//! Dead letters: a compacted topic, one key per letter, a tombstone when it is taken away.
//!
//! The key is delivery id and generation, so a tombstone names exactly one letter. Going through
//! them is [`pass`]'s, who may change them [`lock`]'s.

mod lock;
mod pass;
mod scan;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::{headers, names};
use crate::broker::Letter;
use crate::broker::envelope::{self, Envelope};
use crate::delivery::Reason;
use crate::event::{EventId, HeaderValue, Headers, Origin, Place};

pub use lock::{Lock, hold};
pub use pass::{alive, open};
pub use scan::scan;

/// The key of a letter.
pub fn key(delivery: &str, generation: u32) -> String {
    format!("{delivery}.{generation}")
}

/// Whether a record is a note or a marker of ours, and no letter.
fn is_marker(message: &BorrowedMessage<'_>) -> bool {
    message
        .headers()
        .is_some_and(|headers| headers.iter().any(|header| header.key == envelope::PROBE))
}

/// The letter in a record of the dead-letter topic.
fn read(message: &BorrowedMessage<'_>, broker: &Arc<str>) -> Letter {
    let found = headers::read(message);
    let body = Bytes::copy_from_slice(message.payload().unwrap_or_default());
    let envelope = Envelope::read(found.clone(), body.clone());
    let letter = envelope.ok().and_then(Letter::of);
    letter.unwrap_or_else(|| unreadable(message, broker, found, body))
}

/// A record that is not an envelope, shown as what it is.
fn unreadable(
    message: &BorrowedMessage<'_>,
    broker: &Arc<str>,
    mut headers: Headers,
    body: Bytes,
) -> Letter {
    let text = |name: &str| headers.get(name).and_then(HeaderValue::as_str);
    let topic: Arc<str> = text(FROM_TOPIC).unwrap_or(message.topic()).into();
    let key = message.key().unwrap_or_default();
    let id = std::str::from_utf8(key)
        .ok()
        .and_then(|key| key.rsplit_once('.'))
        .map_or_else(
            || String::from_utf8_lossy(key).into_owned(),
            |(id, _)| id.to_owned(),
        );
    let dead_at = message
        .timestamp()
        .to_millis()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or_else(Timestamp::now);
    headers
        .0
        .retain(|(name, _)| !UNREADABLE_OURS.contains(&name.as_str()));
    let origin = Origin {
        broker: broker.clone(),
        place: Place::Kafka {
            topic: topic.clone(),
            partition: message.partition(),
            offset: message.offset(),
        },
    };
    Letter::unreadable(origin, topic, &id, headers, body, dead_at)
}

const REASON: &str = "hookbridge-reason";
const FROM_TOPIC: &str = "hookbridge-from-topic";
const FROM_KEY: &str = "hookbridge-from-key";
const UNREADABLE_OURS: [&str; 3] = [REASON, FROM_TOPIC, FROM_KEY];

/// The headers and the key under which a message that is no delivery of ours is put away, as it
/// came. The same message gives the same key.
pub fn put_away(message: &super::waiting::Raw) -> (Headers, String) {
    let mut headers = message.headers.clone();
    headers.push(
        REASON,
        HeaderValue::text(Reason::EnvelopeUnreadable.as_str()),
    );
    headers.push(FROM_TOPIC, HeaderValue::text(message.topic.to_string()));
    if let Some(key) = &message.key {
        headers.push(FROM_KEY, HeaderValue::Bytes(key.clone()));
    }
    let id = EventId::hashed(
        "unreadable",
        &[
            message.topic.as_bytes(),
            &message.partition.to_be_bytes(),
            &message.offset.to_be_bytes(),
            &message.stamp_ms.to_be_bytes(),
        ],
    );
    (headers, key(id.as_str(), 0))
}
