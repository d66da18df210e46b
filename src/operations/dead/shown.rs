//! A dead letter as it is shown: the JSON of the API, of `--json` and of an export.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::broker::Letter;
use crate::delivery::Reason;
use crate::event::{HeaderValue, Origin};
use crate::pipeline::{State, SubscriptionStatus};

/// See the module. Names are stable.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetter)]
pub struct Shown {
    /// The delivery's id; with `generation` it names the letter.
    pub id: String,
    /// How often it has been sent again.
    pub generation: u32,
    /// The broker that it lies on.
    pub broker: String,
    /// Empty for an event that matched nothing.
    pub subscription: String,
    /// What receivers see as `webhook-id`.
    pub event_id: String,
    pub topic: String,
    pub r#type: String,
    pub source: String,
    pub reason: String,
    /// The last status (`503`) or error class (`timeout`); absent when there was no attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    /// The start of the last response, or the error's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_excerpt: Option<String>,
    pub attempts: u32,
    pub dead_at: Timestamp,
    pub taken_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    /// The letter that this one was made of, with another body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    pub size_bytes: u64,
    /// `false`: the body was too large for the broker, and only its origin is known.
    pub has_body: bool,
    /// Where the event was taken from.
    pub origin: Origin,
    /// Where it would be sent to now; only of a single letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<Receiver>,
    /// Why its subscription would not get it now; only of a single letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Value>,
    /// The application's own, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ShownHeader>,
    /// The body, when it is JSON on one line, as it is byte for byte.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<Value>)]
    pub data: Option<Box<RawValue>>,
    /// The body, when it is other text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The body, when it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
}

/// A header of the event: text, a number, a truth value, or `{"base64": ...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Header)]
pub struct ShownHeader {
    pub name: String,
    pub value: Value,
}

/// Where a letter would be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receiver {
    pub subscription: String,
    pub method: String,
    /// Scheme, host and port; paths are often credentials.
    pub url: String,
    /// `active`, `paused`, `disabled`, `unverified` or `not_enabled`.
    pub state: String,
}

impl Receiver {
    pub(super) fn of(status: &SubscriptionStatus) -> Self {
        let state = match status.state {
            State::Active => "active",
            State::Paused => "paused",
            State::Disabled => "disabled",
            State::Unverified => "unverified",
            State::Off => "not_enabled",
        };
        Self {
            subscription: status.name.to_string(),
            method: status.method.to_string(),
            url: status.url.clone(),
            state: state.to_owned(),
        }
    }
}

impl Shown {
    /// Without headers and body.
    pub fn brief(letter: &Letter, broker: &str) -> Self {
        let Letter {
            delivery,
            reason,
            dead_at,
            has_body,
        } = letter;
        let (event, progress) = (&delivery.event, &delivery.progress);
        let owned = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
        Self {
            id: delivery.id.to_string(),
            generation: delivery.generation,
            broker: broker.to_owned(),
            subscription: delivery.subscription.to_string(),
            event_id: event.id.to_string(),
            topic: event.topic.to_string(),
            r#type: event.kind.to_string(),
            source: event.source.to_string(),
            reason: reason.to_string(),
            last_result: progress.last_result.clone(),
            last_excerpt: progress.last_excerpt.clone(),
            attempts: progress.attempts,
            dead_at: *dead_at,
            taken_at: progress.taken_at,
            first_attempt_at: progress.first_attempt_at,
            last_attempt_at: progress.last_attempt_at,
            published_at: event.published_at,
            replay_of: delivery.replay_of.as_ref().map(|id| id.to_string()),
            content_type: owned(&event.content_type),
            content_encoding: owned(&event.content_encoding),
            size_bytes: event.body.len() as u64,
            has_body: *has_body,
            origin: event.origin.clone(),
            receiver: None,
            unfit: None,
            key: None,
            headers: Vec::new(),
            data: None,
            text: None,
            data_base64: None,
        }
    }

    /// With headers and body.
    pub fn whole(letter: &Letter, broker: &str) -> Self {
        let event = &letter.delivery.event;
        let headers = event.headers.iter().map(|(name, value)| ShownHeader {
            name: name.to_owned(),
            value: plain(value),
        });
        let mut shown = Self {
            key: event.key.as_deref().map(text_or_base64),
            headers: headers.collect(),
            ..Self::brief(letter, broker)
        };
        if letter.has_body {
            shown.take_body(&event.body);
        }
        shown
    }

    /// Whether the letter was one of ours.
    pub fn is_readable(&self) -> bool {
        self.reason != Reason::EnvelopeUnreadable.as_str()
    }

    /// The body, byte for byte; `None` where there is none.
    pub fn body(&self) -> Option<Bytes> {
        if let Some(data) = &self.data {
            return Some(Bytes::copy_from_slice(data.get().as_bytes()));
        }
        if let Some(text) = &self.text {
            return Some(Bytes::copy_from_slice(text.as_bytes()));
        }
        let bytes = STANDARD.decode(self.data_base64.as_ref()?).ok()?;
        Some(bytes.into())
    }

    /// JSON is written as it is when that gives the same bytes back, and no line break.
    fn take_body(&mut self, body: &[u8]) {
        let Ok(text) = std::str::from_utf8(body) else {
            self.data_base64 = Some(STANDARD.encode(body));
            return;
        };
        let is_one_line = !text.contains(['\n', '\r']) && text.trim() == text;
        let raw = is_one_line.then(|| RawValue::from_string(text.to_owned()).ok());
        match raw.flatten() {
            Some(raw) => self.data = Some(raw),
            None => self.text = Some(text.to_owned()),
        }
    }
}

/// `null` is data too.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

fn text_or_base64(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn plain(value: &HeaderValue) -> Value {
    match value {
        HeaderValue::Bytes(bytes) => text_or_base64(bytes),
        HeaderValue::Bool(is) => json!(is),
        HeaderValue::Int(number) => json!(number),
        HeaderValue::Float(number) => json!(number),
        HeaderValue::Time(seconds) => json!(seconds),
        HeaderValue::Null => Value::Null,
        HeaderValue::List(items) => items.iter().map(plain).collect(),
        HeaderValue::Map(entries) => {
            let entries = entries
                .iter()
                .map(|(name, value)| (name.clone(), plain(value)));
            Value::Object(entries.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Letter;
    use crate::event::{Headers, Place};
    use proptest::prelude::*;

    fn letter(body: &[u8]) -> Letter {
        let origin = Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders".into(),
                sequence: 1,
            },
        };
        let mut headers = Headers::default();
        headers.push("tenant", HeaderValue::text("a"));
        headers.push("size", HeaderValue::Int(-3));
        headers.push("raw", HeaderValue::Bytes(Bytes::from_static(&[0xff])));
        let body = Bytes::copy_from_slice(body);
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        Letter::unreadable(origin, "orders".into(), "dlv_1", headers, body, at)
    }

    fn read_back(body: &[u8]) -> (String, Shown) {
        let line = serde_json::to_string(&Shown::whole(&letter(body), "here")).unwrap();
        let shown = serde_json::from_str(&line).unwrap();
        (line, shown)
    }

    #[test]
    fn json_is_shown_as_json_and_everything_else_as_what_it_is() {
        assert!(
            read_back(br#"{"total":  120}"#)
                .0
                .contains(r#""data":{"total":  120}"#)
        );
        assert!(read_back(b"null").0.contains(r#""data":null"#));
        assert!(read_back(b"{\n}").0.contains(r#""text":"{\n}""#));
        assert!(read_back(&[0xff]).0.contains(r#""data_base64":"/w==""#));
    }

    #[test]
    fn headers_keep_their_kinds() {
        let (_, shown) = read_back(b"{}");
        let values: Vec<_> = shown.headers.iter().map(|header| &header.value).collect();
        assert_eq!(
            values,
            [&json!("a"), &json!(-3), &json!({"base64": "/w=="})]
        );
    }

    proptest! {
        #[test]
        fn a_body_comes_back_byte_for_byte_on_one_line(
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                "[ \\n]?(\\{\"a\": ?[0-9.e]{1,6}\\}|\"x\\\\n\"|null|1)[ \\n]?".prop_map(String::into_bytes),
            ]
        ) {
            let (line, shown) = read_back(&body);
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(shown.body(), Some(Bytes::from(body)));
        }
    }
}
