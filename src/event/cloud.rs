//! CloudEvents: what a message says of itself when it is one.
//!
//! In binary mode the attributes are headers, which Kafka spells `ce_id`, AMQP `cloudEvents_id` or
//! `cloudEvents:id`; in structured mode they are members of the body. See
//! <https://github.com/cloudevents/spec/tree/v1.0.2/cloudevents/bindings>.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;

use super::{HeaderValue, Headers};

/// Compared without regard to case, since the libraries differ in it.
const PREFIXES: [&str; 3] = ["ce_", "cloudevents_", "cloudevents:"];
const STRUCTURED: &str = "application/cloudevents+json";

/// The attributes that name an event, as far as they are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub id: Option<String>,
    pub source: Option<String>,
    pub kind: Option<String>,
    pub time: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Structured {
    id: String,
    source: String,
    r#type: String,
    #[serde(default)]
    time: Option<String>,
}

impl Identity {
    /// Of a message with this content type, these headers and this body.
    pub fn of(content_type: Option<&str>, headers: &Headers, body: &[u8]) -> Self {
        if is_structured(content_type) {
            return match serde_json::from_slice::<Structured>(body) {
                Ok(event) => Self {
                    id: Some(event.id),
                    source: Some(event.source),
                    kind: Some(event.r#type),
                    time: event.time.and_then(|time| time.parse().ok()),
                },
                Err(_) => Self::default(),
            };
        }
        let mut found = Self::default();
        for (name, value) in attributes(headers) {
            match &*name {
                "id" => found.id = Some(value.into_owned()),
                "source" => found.source = Some(value.into_owned()),
                "type" => found.kind = Some(value.into_owned()),
                "time" => found.time = value.parse().ok(),
                _ => {}
            }
        }
        found
    }
}

/// Whether a body of this content type is a whole CloudEvent.
pub fn is_structured(content_type: Option<&str>) -> bool {
    let long_enough = content_type.filter(|given| given.len() >= STRUCTURED.len());
    let essence = long_enough.and_then(|given| given.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(STRUCTURED))
}

/// The attributes among `headers`: lower-case names, and values as text.
pub fn attributes(headers: &Headers) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    headers.iter().filter_map(|(name, value)| {
        let name = attribute(name)?;
        let name = match name.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
        Some((name, text(value)?)).filter(|_| is_name)
    })
}

/// The attribute that a header of this name is, in the case in which it came.
pub fn attribute(name: &str) -> Option<&str> {
    let prefix = PREFIXES.iter().find(|prefix| {
        let begins = name.get(..prefix.len());
        begins.is_some_and(|begins| begins.eq_ignore_ascii_case(prefix))
    })?;
    Some(&name[prefix.len()..])
}

fn text(value: &HeaderValue) -> Option<Cow<'_, str>> {
    Some(match value {
        HeaderValue::Bytes(bytes) => Cow::Borrowed(std::str::from_utf8(bytes).ok()?),
        HeaderValue::Bool(is) => Cow::Borrowed(if *is { "true" } else { "false" }),
        HeaderValue::Int(number) => Cow::Owned(number.to_string()),
        HeaderValue::Float(number) => Cow::Owned(number.to_string()),
        HeaderValue::Time(seconds) => {
            let seconds = i64::try_from(*seconds).ok()?;
            Cow::Owned(Timestamp::from_second(seconds).ok()?.to_string())
        }
        HeaderValue::Null | HeaderValue::List(_) | HeaderValue::Map(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&str, HeaderValue)]) -> Headers {
        Headers(
            given
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        )
    }

    #[test]
    fn every_spelling_of_a_header_is_read() {
        let text = |text: &str| HeaderValue::text(text);
        for prefix in ["ce_", "CE_", "cloudEvents_", "cloudEvents:", "cloudevents:"] {
            let name = |attribute| format!("{prefix}{attribute}");
            let found = Identity::of(
                Some("application/json"),
                &headers(&[
                    (&name("id"), text("7")),
                    (&name("source"), text("/shop")),
                    (&name("Type"), text("order.made")),
                    (&name("time"), HeaderValue::Time(1_772_366_400)),
                ]),
                b"{}",
            );
            assert_eq!(found.id.as_deref(), Some("7"), "{prefix}");
            assert_eq!(found.source.as_deref(), Some("/shop"), "{prefix}");
            assert_eq!(found.kind.as_deref(), Some("order.made"), "{prefix}");
            assert_eq!(found.time.unwrap().to_string(), "2026-03-01T12:00:00Z");
        }
    }

    #[test]
    fn a_structured_event_is_read_from_its_body() {
        let body = br#"{"specversion":"1.0","id":"7","source":"/s","type":"t","time":"2026-03-01T13:00:00+01:00","data":1}"#;
        let kind = Some("Application/CloudEvents+JSON; charset=utf-8");
        let found = Identity::of(kind, &Headers::default(), body);
        assert_eq!(found.kind.as_deref(), Some("t"));
        assert_eq!(found.time.unwrap().to_string(), "2026-03-01T12:00:00Z");
        let none = Identity::of(kind, &Headers::default(), b"{}");
        assert_eq!(none, Identity::default());
    }

    #[test]
    fn what_only_looks_like_an_attribute_is_none() {
        let text = |text: &str| HeaderValue::text(text);
        let given = headers(&[
            ("ce_", text("x")),
            ("ce_a b", text("x")),
            ("ce", text("x")),
            ("\u{e4}ce_id", text("x")),
            ("c\u{e4}_id", text("x")),
            ("ce_id", HeaderValue::Null),
        ]);
        assert_eq!(attributes(&given).count(), 0);
    }
}
