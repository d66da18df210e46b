//! What lies in the queue of dead letters.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::message::Delivery as Message;
use tracing::debug;

use crate::broker::Letter;
use crate::broker::envelope::{self, DEAD_AT, Envelope, REASON};
use crate::broker::rabbitmq::message;
use crate::event::{EventId, HeaderValue, Headers, Origin, Place};

/// The letter in a message; `None` for one of the start-up check.
pub fn read(broker: &Arc<str>, queue: &str, message: Message) -> Option<Letter> {
    let headers = message::own_headers(&message.properties);
    if headers.get(envelope::PROBE).is_some() {
        return None;
    }
    let body = Bytes::from(message.data);
    let envelope = Envelope::read(headers.clone(), body.clone());
    if let Err(unreadable) = &envelope {
        debug!(%unreadable, "a message among the dead letters is not one of ours");
    }
    let letter = envelope.ok().and_then(Letter::of);
    Some(letter.unwrap_or_else(|| {
        let id = message.properties.message_id().as_ref();
        let id = id.map(|id| id.as_str().to_owned());
        let sent_at = *message.properties.timestamp();
        unreadable(broker, queue, headers, id, sent_at, body)
    }))
}

/// A message that is not an envelope, shown as what it is.
fn unreadable(
    broker: &Arc<str>,
    queue: &str,
    mut headers: Headers,
    id: Option<String>,
    sent_at: Option<u64>,
    body: Bytes,
) -> Letter {
    let put_away_at = headers
        .get(DEAD_AT)
        .and_then(HeaderValue::as_str)
        .and_then(|at| at.parse().ok());
    // Without any time it counts as new: nobody may take it for old.
    let dead_at = put_away_at
        .or_else(|| Timestamp::from_second(sent_at?.try_into().ok()?).ok())
        .unwrap_or_else(Timestamp::now);
    let id = id
        .filter(|id| !id.is_empty())
        .unwrap_or_else(|| EventId::hashed("raw", &[&body]).as_str().to_owned());
    headers
        .0
        .retain(|(name, _)| name != DEAD_AT && name != REASON);
    let origin = Origin {
        broker: broker.clone(),
        place: Place::Amqp {
            exchange: "".into(),
            routing_key: queue.into(),
            queue: queue.into(),
        },
    };
    Letter::unreadable(origin, "unreadable".into(), &id, headers, body, dead_at)
}
