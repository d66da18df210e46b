//! Records: how an entry lies in a block.
//!
//! Written by hand, field after field, since it is done on the path of every delivery: a length,
//! a version, a kind, then numbers and short texts with their lengths. A reader skips what it does
//! not know.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Outcome};
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::Event;

const VERSION: u8 = 1;
const ATTEMPT: u8 = 1;
const PARKED: u8 = 2;
const DEAD: u8 = 3;
const UNMATCHED: u8 = 4;
const ORDERED: u8 = 5;
const STALE: u8 = 6;

/// Longest name, in bytes: of topics, types, subscriptions.
const NAME_BYTES: usize = 255;
const EXCERPT_BYTES: usize = 512;
/// So much of a request's body is kept.
pub const BODY_BYTES: usize = 64 << 10;
const HEADERS: usize = 64;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Record)]
pub struct Entry {
    pub at: Timestamp,
    /// Which instance wrote it.
    pub instance: String,
    pub event: String,
    /// Empty for an event that matched nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub delivery: String,
    #[serde(default)]
    pub generation: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subscription: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Whose the subscription was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    pub topic: String,
    pub r#type: String,
    pub source: String,
    /// The broker that the event came from.
    pub broker: String,
    #[serde(flatten)]
    pub what: What,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Recorded)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum What {
    Attempt(Attempted),
    /// A broker keeps it until about then.
    Parked {
        wait: WaitKind,
        until: Timestamp,
        on: String,
    },
    /// A broker keeps it among its dead letters.
    Dead {
        reason: String,
        on: String,
    },
    /// No subscription matched the event.
    Unmatched,
    /// The event was older than `max_age`, and the delivery was settled without being sent.
    Stale,
    /// An operator has ordered it, and the broker has done it.
    Ordered {
        deed: Deed,
        on: String,
        /// Under which it was sent again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_generation: Option<u32>,
        /// The event that was made of it by [`Deed::Edited`], or the letter that it was made of.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        other: String,
    },
}

/// What operators order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// Parked, and due at once.
    BroughtForward,
    /// Parked, and gone.
    Dropped,
    /// A dead letter, in its next generation.
    SentAgain,
    /// A dead letter, sent as a new event with another body.
    Edited,
    /// This delivery is that new event's.
    MadeOfLetter,
    /// A dead letter, and gone.
    LetterRemoved,
}

/// An attempt that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Attempt)]
pub struct Attempted {
    /// From 1.
    pub attempt: u32,
    /// Scheme, host and port.
    pub endpoint: String,
    /// The status (`503`) or error class (`timeout`).
    pub outcome: String,
    pub took_ms: f64,
    /// The start of the answer, or the error's text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excerpt: String,
    pub then: Then,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Exchange>,
}

/// What was decided after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    Delivered,
    Retry,
    Hold,
    DeadLetter,
    /// Settled: it was for a shadow, and nothing was sent.
    Shadow,
    /// Nothing: somebody has tried the endpoint.
    Test,
}

/// What was sent, where `bodies` are kept. The signature is not in it: it is made when sending.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Request)]
pub struct Exchange {
    pub method: String,
    /// Values that the config gives are masked.
    pub headers: Vec<(String, String)>,
    /// The start of the body, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The start of the body, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Length of the whole body.
    pub body_bytes: u64,
}

impl Exchange {
    pub fn new(method: &str, headers: Vec<(String, String)>, body: &[u8]) -> Self {
        let start = &body[..body.len().min(BODY_BYTES)];
        let text = match std::str::from_utf8(start) {
            Ok(text) => Some(text),
            // Cut within a character.
            Err(error) if start.len() < body.len() && error.error_len().is_none() => {
                std::str::from_utf8(&start[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        Self {
            method: method.to_owned(),
            headers,
            body: text.map(str::to_owned),
            body_base64: text.is_none().then(|| STANDARD.encode(start)),
            body_bytes: body.len() as u64,
        }
    }

    /// Whether the body is whole.
    pub fn is_whole(&self) -> bool {
        self.body_bytes <= BODY_BYTES as u64
    }
}

pub fn attempted(
    buffer: &mut Vec<u8>,
    delivery: &Delivery,
    endpoint: &str,
    attempt: &Attempt,
    then: Then,
    exchange: Option<&Exchange>,
) {
    let began = begin(buffer, ATTEMPT, attempt.started_at);
    of_delivery(buffer, delivery);
    number(buffer, delivery.progress.attempts);
    number(
        buffer,
        u32::try_from(attempt.took.as_micros()).unwrap_or(u32::MAX),
    );
    buffer.push(match then {
        Then::Delivered => 0,
        Then::Retry => 1,
        Then::Hold => 2,
        Then::DeadLetter => 3,
        Then::Shadow => 4,
        Then::Test => 5,
    });
    let (status, class) = match &attempt.outcome {
        Outcome::Answered(answer) => (answer.status, ""),
        Outcome::Failed(failure) => (0, failure.class.as_str()),
        Outcome::Unsendable(_) => (0, "unsendable"),
        Outcome::Unrenderable(_) => (0, "unrenderable"),
        Outcome::Invalid(_) => (0, "invalid"),
        Outcome::Withheld => (0, Outcome::SHADOW),
    };
    buffer.extend_from_slice(&status.to_le_bytes());
    text(buffer, class, NAME_BYTES);
    text(buffer, endpoint, NAME_BYTES);
    text(buffer, attempt.outcome.excerpt(), EXCERPT_BYTES);
    let Some(exchange) = exchange else {
        buffer.push(0);
        return end_of(buffer, delivery, began);
    };
    buffer.push(1);
    text(buffer, &exchange.method, NAME_BYTES);
    buffer.push(exchange.headers.len().min(HEADERS) as u8);
    for (name, value) in exchange.headers.iter().take(HEADERS) {
        text(buffer, name, NAME_BYTES);
        text(buffer, value, 2 * EXCERPT_BYTES);
    }
    buffer.extend_from_slice(&exchange.body_bytes.to_le_bytes());
    let (is_text, body) = match (&exchange.body, &exchange.body_base64) {
        (Some(body), _) => (1, body.as_str()),
        (None, body) => (0, body.as_deref().unwrap_or_default()),
    };
    buffer.push(is_text);
    number(buffer, body.len() as u32);
    buffer.extend_from_slice(body.as_bytes());
    end_of(buffer, delivery, began);
}

pub fn parked(
    buffer: &mut Vec<u8>,
    delivery: &Delivery,
    wait: WaitKind,
    until: Timestamp,
    on: &str,
) {
    let began = begin(buffer, PARKED, Timestamp::now());
    of_delivery(buffer, delivery);
    buffer.push(match wait {
        WaitKind::Retry => 0,
        WaitKind::Hold => 1,
    });
    buffer.extend_from_slice(&until.as_microsecond().to_le_bytes());
    text(buffer, on, NAME_BYTES);
    end_of(buffer, delivery, began);
}

pub fn dead(buffer: &mut Vec<u8>, delivery: &Delivery, reason: Reason, on: &str) {
    let began = begin(buffer, DEAD, Timestamp::now());
    of_delivery(buffer, delivery);
    text(buffer, reason.as_str(), NAME_BYTES);
    text(buffer, on, NAME_BYTES);
    end_of(buffer, delivery, began);
}

/// `other`: see [`What::Ordered`].
pub fn ordered(buffer: &mut Vec<u8>, delivery: &Delivery, deed: Deed, on: &str, other: &str) {
    let began = begin(buffer, ORDERED, Timestamp::now());
    of_delivery(buffer, delivery);
    buffer.push(match deed {
        Deed::BroughtForward => 0,
        Deed::Dropped => 1,
        Deed::SentAgain => 2,
        Deed::Edited => 3,
        Deed::MadeOfLetter => 4,
        Deed::LetterRemoved => 5,
    });
    text(buffer, on, NAME_BYTES);
    text(buffer, other, NAME_BYTES);
    end_of(buffer, delivery, began);
}

pub fn stale(buffer: &mut Vec<u8>, delivery: &Delivery, now: Timestamp) {
    let began = begin(buffer, STALE, now);
    of_delivery(buffer, delivery);
    end_of(buffer, delivery, began);
}

pub fn unmatched(buffer: &mut Vec<u8>, event: &Event, now: Timestamp) {
    let began = begin(buffer, UNMATCHED, now);
    common(buffer, event, "", 0, "", "");
    end(buffer, began);
}

fn of_delivery(buffer: &mut Vec<u8>, delivery: &Delivery) {
    let Delivery {
        event,
        subscription,
        uid,
        tenant: _,
        id,
        generation,
        replay_of: _,
        progress: _,
    } = delivery;
    common(
        buffer,
        event,
        id.as_str(),
        *generation,
        subscription,
        uid.as_str(),
    );
}

fn common(
    buffer: &mut Vec<u8>,
    event: &Event,
    delivery: &str,
    generation: u32,
    subscription: &str,
    uid: &str,
) {
    // The ids come first: the writer finds them without reading the rest.
    text(buffer, event.id.as_str(), NAME_BYTES);
    text(buffer, delivery, NAME_BYTES);
    text(buffer, subscription, NAME_BYTES);
    text(buffer, uid, NAME_BYTES);
    number(buffer, generation);
    text(buffer, &event.topic, NAME_BYTES);
    // Empty stands for the topic, which most types are.
    let kind = if event.kind == event.topic {
        ""
    } else {
        &*event.kind
    };
    text(buffer, kind, NAME_BYTES);
    text(buffer, &event.source, NAME_BYTES);
    text(buffer, &event.origin.broker, NAME_BYTES);
}

fn begin(buffer: &mut Vec<u8>, kind: u8, at: Timestamp) -> usize {
    let began = buffer.len();
    buffer.extend_from_slice(&[0, 0, 0, 0, VERSION, kind]);
    buffer.extend_from_slice(&at.as_microsecond().to_le_bytes());
    began
}

/// Ends with the tenant, which older records do not have.
fn end_of(buffer: &mut Vec<u8>, delivery: &Delivery, began: usize) {
    if let Some(tenant) = &delivery.tenant {
        text(buffer, tenant, NAME_BYTES);
    }
    end(buffer, began);
}

fn end(buffer: &mut [u8], began: usize) {
    let length = (buffer.len() - began - 4) as u32;
    buffer[began..began + 4].copy_from_slice(&length.to_le_bytes());
}

fn number(buffer: &mut Vec<u8>, value: u32) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

fn text(buffer: &mut Vec<u8>, value: &str, max_bytes: usize) {
    let value = &value[..value.floor_char_boundary(max_bytes)];
    buffer.extend_from_slice(&(value.len() as u16).to_le_bytes());
    buffer.extend_from_slice(value.as_bytes());
}

/// The records of a batch, each without its length. Ends where the bytes make no sense.
pub fn split(batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (record, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = tail;
        Some(record)
    })
}

/// What the writer wants to know of a record: when, event, delivery and subscription.
pub struct Key<'a> {
    pub at_us: i64,
    pub event: &'a str,
    pub delivery: &'a str,
    pub subscription: &'a str,
}

pub fn key(record: &[u8]) -> Option<Key<'_>> {
    let mut reader = Reader(record);
    reader.header()?;
    Some(Key {
        at_us: reader.signed()?,
        event: reader.text()?,
        delivery: reader.text()?,
        subscription: reader.text()?,
    })
}

/// The entry of a record; `None` for what this release cannot read.
pub fn entry(record: &[u8], instance: &str) -> Option<Entry> {
    let mut reader = Reader(record);
    let kind = reader.header()?;
    let at = reader.time()?;
    let (event, delivery, subscription, uid) = (
        reader.string()?,
        reader.string()?,
        reader.string()?,
        reader.string()?,
    );
    let generation = reader.number()?;
    let (topic, r#type) = (reader.string()?, reader.string()?);
    let r#type = if r#type.is_empty() {
        topic.clone()
    } else {
        r#type
    };
    let (source, broker) = (reader.string()?, reader.string()?);
    let what = match kind {
        ATTEMPT => What::Attempt(reader.attempted()?),
        PARKED => What::Parked {
            wait: match reader.byte()? {
                0 => WaitKind::Retry,
                _ => WaitKind::Hold,
            },
            until: reader.time()?,
            on: reader.string()?,
        },
        DEAD => What::Dead {
            reason: reader.string()?,
            on: reader.string()?,
        },
        UNMATCHED => What::Unmatched,
        STALE => What::Stale,
        ORDERED => reader.ordered(generation)?,
        _ => return None,
    };
    let tenant = reader.string().unwrap_or_default();
    Some(Entry {
        at,
        instance: instance.to_owned(),
        event,
        delivery,
        generation,
        subscription,
        uid,
        tenant,
        topic,
        r#type,
        source,
        broker,
        what,
    })
}

/// What is left of a record.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    /// The kind, if the version is ours.
    fn header(&mut self) -> Option<u8> {
        let [version, kind] = self.take()?;
        (version == VERSION).then_some(kind)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn signed(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.signed()?).ok()
    }

    fn bytes(&mut self, length: usize) -> Option<&'a str> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(taken).ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.take().map(u16::from_le_bytes)?;
        self.bytes(length.into())
    }

    fn string(&mut self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    fn ordered(&mut self, generation: u32) -> Option<What> {
        let deed = match self.byte()? {
            0 => Deed::BroughtForward,
            1 => Deed::Dropped,
            2 => Deed::SentAgain,
            3 => Deed::Edited,
            4 => Deed::MadeOfLetter,
            5 => Deed::LetterRemoved,
            _ => return None,
        };
        Some(What::Ordered {
            deed,
            on: self.string()?,
            next_generation: (deed == Deed::SentAgain).then(|| generation.saturating_add(1)),
            other: self.string()?,
        })
    }

    fn attempted(&mut self) -> Option<Attempted> {
        let (attempt, took_us) = (self.number()?, self.number()?);
        let then = match self.byte()? {
            0 => Then::Delivered,
            1 => Then::Retry,
            2 => Then::Hold,
            4 => Then::Shadow,
            5 => Then::Test,
            _ => Then::DeadLetter,
        };
        let status = self.take().map(u16::from_le_bytes)?;
        let class = self.string()?;
        let (endpoint, excerpt) = (self.string()?, self.string()?);
        let request = match self.byte()? {
            0 => None,
            _ => Some(self.exchange()?),
        };
        Some(Attempted {
            attempt,
            endpoint,
            outcome: if status == 0 {
                class
            } else {
                status.to_string()
            },
            took_ms: f64::from(took_us) / 1_000.0,
            excerpt,
            then,
            request,
        })
    }

    fn exchange(&mut self) -> Option<Exchange> {
        let method = self.string()?;
        let mut headers = Vec::new();
        for _ in 0..self.byte()? {
            headers.push((self.string()?, self.string()?));
        }
        let body_bytes = self.take().map(u64::from_le_bytes)?;
        let is_text = self.byte()? == 1;
        let length = self.number()? as usize;
        let body = self.bytes(length)?.to_owned();
        let (body, body_base64) = if is_text {
            (Some(body), None)
        } else {
            (None, Some(body))
        };
        Some(Exchange {
            method,
            headers,
            body,
            body_base64,
            body_bytes,
        })
    }
}
