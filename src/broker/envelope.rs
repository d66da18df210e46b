//! The envelope: how a delivery is written on a broker, and read back.
//!
//! A parked or dead-lettered message carries the original body byte for byte, the application's
//! headers as they were, and ours beside them, all named `hookbridge-…`, `hookbridge-v` first.
//! What an AMQP broker itself would act upon (`x-…`, `CC`, `BCC`) is kept under another name, so
//! that a copy of ours is never expired, rerouted or dropped because of the original's headers.
//!
//! Versions: this code writes version 1 and reads 1 and, when it exists, 2, so that instances of
//! two releases can share a group. `docs/envelope.md` is the description for people.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;

use crate::delivery::{Delivery, DeliveryId, Progress, Reason, WaitKind};
use crate::event::{Event, EventId, HeaderValue, Headers, Origin};
use crate::subscription::Uid;

/// What all our headers begin with.
const PREFIX: &str = "hookbridge-";
pub const VERSION: &str = "hookbridge-v";
pub const EVENT_ID: &str = "hookbridge-event-id";
pub const DELIVERY_ID: &str = "hookbridge-delivery-id";
pub const GENERATION: &str = "hookbridge-generation";
pub const SUBSCRIPTION: &str = "hookbridge-subscription";
/// Marks a message of the start-up check, which is never a delivery.
pub const PROBE: &str = "hookbridge-probe";
/// The delivery id of the dead letter that this was made of.
const REPLAY_OF: &str = "hookbridge-replay-of";
const UID: &str = "hookbridge-subscription-uid";
const TOPIC: &str = "hookbridge-topic";
const TYPE: &str = "hookbridge-type";
const SOURCE: &str = "hookbridge-source";
/// Whose the event is, and whose the subscription is.
const TENANT: &str = "hookbridge-tenant";
const OWNER: &str = "hookbridge-subscription-tenant";
const ORIGIN: &str = "hookbridge-origin";
const PUBLISHED_AT: &str = "hookbridge-published-at";
const CONTENT_TYPE: &str = "hookbridge-content-type";
const CONTENT_ENCODING: &str = "hookbridge-content-encoding";
const KEY: &str = "hookbridge-key";
const WAIT_KIND: &str = "hookbridge-wait";
const DELAY_MS: &str = "hookbridge-delay-ms";
const REMAINING_MS: &str = "hookbridge-remaining-ms";
const PARKED_AT: &str = "hookbridge-parked-at";
const ATTEMPTS: &str = "hookbridge-attempts";
const TAKEN_AT: &str = "hookbridge-taken-at";
const FIRST_ATTEMPT_AT: &str = "hookbridge-first-attempt-at";
const LAST_ATTEMPT_AT: &str = "hookbridge-last-attempt-at";
const LAST_RESULT: &str = "hookbridge-last-result";
const EXCERPT: &str = "hookbridge-last-excerpt";
const UNKNOWN_SINCE: &str = "hookbridge-unknown-since";
/// Also of what is put among the dead letters without being an envelope.
pub const REASON: &str = "hookbridge-reason";
pub const DEAD_AT: &str = "hookbridge-dead-at";
/// Present on a reference dead letter, whose body the broker would not take.
const REFERENCE: &str = "hookbridge-reference";
/// The length of the JSON that holds the headers, at the front of the body, when they do not fit.
const SPILLED: &str = "hookbridge-spilled-bytes";
/// `hookbridge-kept-<position>-<name>`: an application header that the broker would act upon.
const KEPT: &str = "hookbridge-kept-";
/// `hookbridge-amqp-<name>`: a property of the original message.
const PROPERTY: &str = "hookbridge-amqp-";

/// Headers of ours whose value comes from outside at any length: [`LONG_BYTES`] or more go with the
/// application's when those do not fit.
const FROM_OUTSIDE: [&str; 4] = [TYPE, CONTENT_TYPE, CONTENT_ENCODING, KEY];
const LONG_BYTES: usize = 1_024;

/// In bytes; Kafka's names may be longer, and AMQP's own under another name.
const LONGEST_AMQP_NAME: usize = 255;

/// A delivery with what the broker needs to know about its wait or its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    pub delivery: Delivery,
    pub stay: Stay,
    /// A letter without its body, which was larger than the broker takes.
    pub reference: bool,
}

/// Why the message lies on the broker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stay {
    /// `whole`: the delay that was asked for; `remaining`: what is left when the present tier is over;
    /// `since`: when it was put on this tier, at the latest, by the broker's own clock; on Kafka, when
    /// the wait began that it was parked for on a tier before.
    Parked {
        kind: WaitKind,
        whole: Duration,
        remaining: Duration,
        since: Option<Timestamp>,
    },
    Dead {
        reason: Reason,
        at: Timestamp,
    },
}

/// What a broker does with headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A map, in which some names are instructions.
    Amqp,
    /// A list that the broker does not look at (Kafka, embedded).
    Opaque,
}

/// A message ready to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub headers: Headers,
    pub body: Bytes,
}

/// Why a message is not a delivery of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("no header `{0}`")]
    Missing(&'static str),
    #[error("header `{0}` cannot be read")]
    Malformed(&'static str),
    #[error("envelope version {0} is newer than this release reads")]
    Version(String),
}

/// Whether a header's name is one of ours, which sources may not set.
pub fn is_ours(name: &str) -> bool {
    name.len() >= PREFIX.len()
        && name.as_bytes()[..PREFIX.len()].eq_ignore_ascii_case(PREFIX.as_bytes())
}

impl Envelope {
    pub fn parked(
        delivery: &Delivery,
        kind: WaitKind,
        whole: Duration,
        remaining: Duration,
    ) -> Self {
        Self {
            delivery: delivery.clone(),
            stay: Stay::Parked {
                kind,
                whole,
                remaining,
                since: None,
            },
            reference: false,
        }
    }

    /// The same, parked at this time of the broker's clock at the latest.
    pub fn parked_at(mut self, at: Option<Timestamp>) -> Self {
        if let Stay::Parked { since, .. } = &mut self.stay {
            *since = at;
        }
        self
    }

    pub fn dead(delivery: &Delivery, reason: Reason, at: Timestamp) -> Self {
        Self {
            delivery: delivery.clone(),
            stay: Stay::Dead { reason, at },
            reference: false,
        }
    }

    /// The message to publish. When all headers together exceed `max_header_bytes`, the excerpt goes
    /// first; if that is not enough, the application's headers move to the front of the body, and what
    /// is long among ours because it is so outside (`hookbridge-spilled-bytes` says how much of it they
    /// are). [`Envelope::read`] undoes it.
    pub fn write(&self, dialect: Dialect, max_header_bytes: usize) -> Written {
        let body = if self.reference {
            Bytes::new()
        } else {
            self.delivery.event.body.clone()
        };
        let ours = self.own_headers(true);
        let theirs = self.their_headers(dialect);
        let has_long_names = theirs
            .iter()
            .any(|(name, _)| name.len() > LONGEST_AMQP_NAME);
        let max_header_bytes = match dialect {
            Dialect::Amqp if has_long_names => 0,
            _ => max_header_bytes,
        };
        if ours.size_bytes() + theirs.size_bytes() <= max_header_bytes {
            return Written {
                headers: joined(ours, theirs),
                body,
            };
        }
        let ours = self.own_headers(false);
        if ours.size_bytes() + theirs.size_bytes() <= max_header_bytes {
            return Written {
                headers: joined(ours, theirs),
                body,
            };
        }
        let is_long = |(name, value): &(String, HeaderValue)| {
            FROM_OUTSIDE.contains(&name.as_str()) && value.size_bytes() >= LONG_BYTES
        };
        let (long, short): (Vec<_>, Vec<_>) = ours.0.into_iter().partition(is_long);
        let spilled = serde_json::to_vec(&joined(Headers(long), theirs)).unwrap_or_default();
        let mut headers = Headers(short);
        headers.push(SPILLED, HeaderValue::text(spilled.len().to_string()));
        let mut long_body = BytesMut::with_capacity(spilled.len() + body.len());
        long_body.put_slice(&spilled);
        long_body.put_slice(&body);
        Written {
            headers,
            body: long_body.freeze(),
        }
    }

    fn own_headers(&self, with_excerpt: bool) -> Headers {
        let Delivery {
            event,
            subscription,
            uid,
            tenant,
            id,
            generation,
            replay_of,
            progress,
        } = &self.delivery;
        let mut headers = Headers(Vec::with_capacity(24 + event.headers.0.len()));
        let mut put = |name: &str, value: String| headers.push(name, HeaderValue::text(value));
        put(VERSION, "1".into());
        put(SUBSCRIPTION, subscription.to_string());
        put(UID, uid.to_string());
        put(EVENT_ID, event.id.to_string());
        put(DELIVERY_ID, id.to_string());
        put(GENERATION, generation.to_string());
        put(TOPIC, event.topic.to_string());
        put(TYPE, event.kind.to_string());
        put(SOURCE, event.source.to_string());
        put(
            ORIGIN,
            serde_json::to_string(&event.origin).unwrap_or_default(),
        );
        put(ATTEMPTS, progress.attempts.to_string());
        put(TAKEN_AT, progress.taken_at.to_string());
        match &self.stay {
            Stay::Parked {
                kind,
                whole,
                remaining,
                since,
            } => {
                put(WAIT_KIND, kind.as_str().into());
                put(DELAY_MS, whole.as_millis().to_string());
                put(REMAINING_MS, remaining.as_millis().to_string());
                if let Some(since) = since {
                    put(PARKED_AT, since.to_string());
                }
            }
            Stay::Dead { reason, at } => {
                put(REASON, reason.to_string());
                put(DEAD_AT, at.to_string());
            }
        }
        let optional = [
            (REPLAY_OF, replay_of.as_ref().map(|id| id.to_string())),
            (TENANT, event.tenant.as_deref().map(str::to_owned)),
            (OWNER, tenant.as_deref().map(str::to_owned)),
            (PUBLISHED_AT, event.published_at.map(|t| t.to_string())),
            (
                CONTENT_TYPE,
                event.content_type.as_deref().map(str::to_owned),
            ),
            (
                CONTENT_ENCODING,
                event.content_encoding.as_deref().map(str::to_owned),
            ),
            (
                FIRST_ATTEMPT_AT,
                progress.first_attempt_at.map(|t| t.to_string()),
            ),
            (
                LAST_ATTEMPT_AT,
                progress.last_attempt_at.map(|t| t.to_string()),
            ),
            (UNKNOWN_SINCE, progress.unknown_since.map(|t| t.to_string())),
            (LAST_RESULT, progress.last_result.clone()),
            (
                EXCERPT,
                progress.last_excerpt.clone().filter(|_| with_excerpt),
            ),
            (REFERENCE, self.reference.then(|| "true".to_owned())),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                put(name, value);
            }
        }
        if let Some(key) = &event.key {
            headers.push(KEY, HeaderValue::Bytes(key.clone()));
        }
        headers
    }

    fn their_headers(&self, dialect: Dialect) -> Headers {
        let event = &self.delivery.event;
        let mut headers = Headers(Vec::with_capacity(
            event.headers.0.len() + event.properties.len(),
        ));
        for (position, (name, value)) in event.headers.0.iter().enumerate() {
            let repeated = || {
                event.headers.0[..position]
                    .iter()
                    .any(|(earlier, _)| earlier == name)
            };
            if dialect == Dialect::Amqp && (acted_upon(name) || repeated()) {
                headers.push(format!("{KEPT}{position}-{name}"), value.clone());
            } else {
                headers.push(name.clone(), value.clone());
            }
        }
        for (name, value) in &event.properties {
            headers.push(format!("{PROPERTY}{name}"), value.clone());
        }
        headers
    }

    /// The delivery in a message from one of our own queues or topics.
    pub fn read(headers: Headers, body: Bytes) -> Result<Self, Unreadable> {
        match headers.get(VERSION).and_then(HeaderValue::as_str) {
            Some("1" | "2") => {}
            Some(other) => return Err(Unreadable::Version(other.to_owned())),
            None => return Err(Unreadable::Missing(VERSION)),
        }
        let (headers, body) = unspilled(headers, body)?;
        let ours = Ours(&headers);
        let origin: Origin =
            serde_json::from_str(ours.text(ORIGIN)?).map_err(|_| Unreadable::Malformed(ORIGIN))?;
        let stay = match ours.optional(WAIT_KIND) {
            Some("retry") => ours.parked(WaitKind::Retry)?,
            Some("hold") => ours.parked(WaitKind::Hold)?,
            Some(_) => return Err(Unreadable::Malformed(WAIT_KIND)),
            None => Stay::Dead {
                reason: Reason::from_name(ours.text(REASON)?)
                    .ok_or(Unreadable::Malformed(REASON))?,
                at: ours.parsed(DEAD_AT)?,
            },
        };
        let event = Event {
            id: EventId::kept(ours.text(EVENT_ID)?).ok_or(Unreadable::Malformed(EVENT_ID))?,
            topic: ours.text(TOPIC)?.into(),
            kind: ours.text(TYPE)?.into(),
            source: ours.text(SOURCE)?.into(),
            tenant: ours.optional(TENANT).map(Into::into),
            published_at: ours.optional_parsed(PUBLISHED_AT)?,
            content_type: ours.optional(CONTENT_TYPE).map(Into::into),
            content_encoding: ours.optional(CONTENT_ENCODING).map(Into::into),
            key: headers
                .get(KEY)
                .and_then(HeaderValue::as_bytes)
                .map(Bytes::copy_from_slice),
            properties: prefixed(&headers, PROPERTY),
            headers: their_own(&headers),
            body,
            origin,
        };
        let progress = Progress {
            attempts: ours.parsed(ATTEMPTS)?,
            taken_at: ours.parsed(TAKEN_AT)?,
            first_attempt_at: ours.optional_parsed(FIRST_ATTEMPT_AT)?,
            last_attempt_at: ours.optional_parsed(LAST_ATTEMPT_AT)?,
            last_result: ours.optional(LAST_RESULT).map(str::to_owned),
            last_excerpt: ours.optional(EXCERPT).map(str::to_owned),
            unknown_since: ours.optional_parsed(UNKNOWN_SINCE)?,
        };
        let delivery = Delivery {
            event: event.into(),
            subscription: ours.text(SUBSCRIPTION)?.into(),
            uid: Uid::from_stored(ours.text(UID)?),
            tenant: ours.optional(OWNER).map(Into::into),
            id: DeliveryId::from_envelope(ours.text(DELIVERY_ID)?),
            generation: ours.parsed(GENERATION)?,
            replay_of: ours.optional(REPLAY_OF).map(DeliveryId::from_envelope),
            progress,
        };
        Ok(Self {
            delivery,
            stay,
            reference: ours.optional(REFERENCE).is_some(),
        })
    }
}

/// Whose delivery it is that carries these headers, without reading the rest.
pub fn owner(headers: &Headers) -> Option<(&str, Uid)> {
    let ours = Ours(headers);
    let name = ours.optional(SUBSCRIPTION)?;
    Some((name, Uid::from_stored(ours.optional(UID)?)))
}

/// What is left to wait of a parked delivery with these headers when its present tier is over.
pub fn remaining(headers: &Headers) -> Duration {
    let remaining = Ours(headers).optional(REMAINING_MS);
    let ms = remaining.and_then(|ms| ms.parse().ok());
    Duration::from_millis(ms.unwrap_or_default())
}

/// Names that RabbitMQ or its plugins act upon.
fn acted_upon(name: &str) -> bool {
    name == "CC" || name == "BCC" || name.starts_with("x-")
}

fn joined(mut ours: Headers, theirs: Headers) -> Headers {
    ours.0.extend(theirs.0);
    ours
}

fn unspilled(mut headers: Headers, mut body: Bytes) -> Result<(Headers, Bytes), Unreadable> {
    let Some(length) = Ours(&headers).optional(SPILLED) else {
        return Ok((headers, body));
    };
    let length: usize = length.parse().map_err(|_| Unreadable::Malformed(SPILLED))?;
    if length > body.len() {
        return Err(Unreadable::Malformed(SPILLED));
    }
    let spilled = body.split_to(length);
    let theirs: Headers =
        serde_json::from_slice(&spilled).map_err(|_| Unreadable::Malformed(SPILLED))?;
    headers.0.extend(theirs.0);
    Ok((headers, body))
}

fn prefixed(headers: &Headers, prefix: &str) -> Vec<(String, HeaderValue)> {
    headers
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
        .collect()
}

/// The application's headers, the kept ones under their own names again.
fn their_own(headers: &Headers) -> Headers {
    let mut theirs = Headers::default();
    for (name, value) in headers.iter() {
        if let Some(kept) = name.strip_prefix(KEPT) {
            let original = kept.split_once('-').map_or(kept, |(_, original)| original);
            theirs.push(original, value.clone());
        } else if !is_ours(name) {
            theirs.push(name, value.clone());
        }
    }
    theirs
}

/// Our own headers, read with errors that name them.
struct Ours<'a>(&'a Headers);

impl<'a> Ours<'a> {
    fn optional(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(HeaderValue::as_str)
    }

    fn text(&self, name: &'static str) -> Result<&'a str, Unreadable> {
        self.optional(name).ok_or(Unreadable::Missing(name))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, Unreadable> {
        self.text(name)?
            .parse()
            .map_err(|_| Unreadable::Malformed(name))
    }

    fn optional_parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, Unreadable> {
        self.optional(name)
            .map(|text| text.parse().map_err(|_| Unreadable::Malformed(name)))
            .transpose()
    }

    fn parked(&self, kind: WaitKind) -> Result<Stay, Unreadable> {
        Ok(Stay::Parked {
            kind,
            whole: Duration::from_millis(self.parsed(DELAY_MS)?),
            remaining: Duration::from_millis(self.parsed(REMAINING_MS)?),
            since: self.optional_parsed(PARKED_AT)?,
        })
    }
}

#[cfg(test)]
mod tests;
