//! `tests:`: messages, and what is to become of them.
//!
//! Here they are read and checked against the rest of the config; `hookbridge test` carries them out.
//! Files that they name are read there, so that a bridge runs without them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, Method};
use jiff::Timestamp;

use super::field::Field;
use super::keys;
use super::node::Value;
use super::reader::{Map, suggestion};
use super::versions::date;
use super::{From, Source};
use crate::delivery::Reason;
use crate::subscription::{Pattern, Secret};

/// The time of what has none of its own.
const USUAL_TIME: &str = "2026-01-01T00:00:00Z";

/// A message, and what is to become of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub name: Arc<str>,
    pub message: Message,
    /// When the requests are made.
    pub at: Timestamp,
    /// By subscription: exactly these match.
    pub expect: BTreeMap<Arc<str>, Expected>,
}

/// What a source takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub source: Arc<str>,
    /// Empty where the source has a topic of its own and none is given.
    pub topic: Arc<str>,
    pub kind: Option<Arc<str>>,
    pub id: Option<Bytes>,
    pub time: Option<Timestamp>,
    pub key: Option<Bytes>,
    pub content_type: Option<Arc<str>>,
    pub content_encoding: Option<Arc<str>>,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Text(String),
    Json(serde_json::Value),
    File(PathBuf),
}

/// What a subscription sends; what is `None` may be anything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expected {
    pub method: Option<Method>,
    pub url: Option<Text>,
    pub headers: Vec<(HeaderName, Text)>,
    pub body: Option<Body>,
    pub signature: Option<Signed>,
    /// Nothing is sent.
    pub error: Option<ExpectedError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    Valid,
    Not,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExpectedError {
    pub reason: Reason,
    /// A part of its text.
    pub text: Option<String>,
}

/// A text that may have come from the environment or a file, and so be a credential.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    pub value: Secret,
    /// As it is called where it was put in.
    pub put_in: Option<String>,
}

impl Text {
    fn of(field: Field<'_>, value: &str) -> Self {
        Self {
            value: Secret::new(value),
            put_in: field.is_substituted().then(|| field.shown()),
        }
    }
}

/// What tests refer to.
pub struct Known<'a> {
    /// With those settings that could be read.
    pub sources: Vec<(&'a str, Option<&'a Source>)>,
    pub subscriptions: Vec<&'a str>,
}

pub fn all(field: Field<'_>, known: &Known<'_>) -> Vec<Case> {
    let named = field.named().into_iter();
    named
        .filter_map(|(name, field)| one(name.text, field, known))
        .collect()
}

fn one(name: Arc<str>, field: Field<'_>, known: &Known<'_>) -> Option<Case> {
    let map = field.map(&keys::CASE)?;
    let message = map.need("message").and_then(|field| message(field, known));
    let at = map.take("at").map(date);
    let expect = map.need("expect").map(|field| expect(field, known));
    let message = message?;
    let usual = || message.time.or_else(|| USUAL_TIME.parse().ok());
    Some(Case {
        name,
        at: at.unwrap_or_else(usual)?,
        message,
        expect: expect?,
    })
}

fn message(field: Field<'_>, known: &Known<'_>) -> Option<Message> {
    let map = field.map(&keys::MESSAGE)?;
    let source = source(&map, known);
    let settings = source.as_ref().and_then(|(_, settings)| *settings);
    let topic_field = map.take("topic");
    let topic: Option<Arc<str>> = match topic_field {
        Some(field) => field.text().map(Arc::from),
        None if settings.is_some_and(|source| source.topic.is_some()) => Some("".into()),
        None if source.is_none() => None,
        None => {
            map.need("topic");
            None
        }
    };
    if let (Some(field), Some(settings), Some(topic)) = (topic_field, settings, &topic)
        && !takes(settings, topic)
    {
        let name = source.as_ref().map_or("", |(name, _)| &**name);
        field.note(
            format!("the source `{name}` does not take {}", field.shown()),
            "see its `topics`".to_owned(),
        );
    }
    let text = |key| map.take(key).and_then(|field: Field<'_>| field.text());
    let shared = |key| text(key).map(Arc::<str>::from);
    let bytes = |key| text(key).map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let time = map.take("time").map(date);
    let headers = map.take("headers").map(|field| field.entries());
    let headers = headers.unwrap_or_default().into_iter().filter_map(|entry| {
        let text = entry.text_or_empty()?;
        Some((entry.key.to_owned(), text.to_owned()))
    });
    let message = Message {
        source: source.map(|(name, _)| name).unwrap_or_default(),
        topic: topic.clone().unwrap_or_default(),
        kind: shared("type"),
        id: bytes("id"),
        time: time.flatten(),
        key: bytes("key"),
        content_type: shared("content_type"),
        content_encoding: shared("content_encoding"),
        headers: headers.collect(),
        body: body(&map).unwrap_or_else(|| Body::Text(String::new())),
    };
    topic.map(|_| message)
}

/// The source by its name, or the only one.
fn source<'k>(map: &Map<'_>, known: &Known<'k>) -> Option<(Arc<str>, Option<&'k Source>)> {
    let names = || known.sources.iter().map(|(name, _)| *name);
    let Some(field) = map.take("source") else {
        if let [(only, settings)] = known.sources[..] {
            return Some((only.into(), settings));
        }
        let span = map.span;
        let help = suggestion("", names());
        if !map.means_one_of(&["source"]) {
            map.note(span, "`source` is missing", help);
        }
        return None;
    };
    let wanted = field.name()?;
    let found = known
        .sources
        .iter()
        .find(|(name, _)| **name == *wanted.text);
    if found.is_none() {
        let help = suggestion(&wanted.text, names())
            .unwrap_or_else(|| "write it under `sources:`".to_owned());
        field.note(format!("there is no source {}", wanted.shown), help);
    }
    found.map(|(_, settings)| (wanted.text, *settings))
}

/// Whether a message of `topic` can come from `source`, as far as its settings tell.
fn takes(source: &Source, topic: &str) -> bool {
    let pattern = |pattern: &String| {
        let read = pattern.parse::<Pattern>();
        read.is_ok_and(|pattern| pattern.matches(topic))
    };
    let name_or_regex = |text: &String| match text.starts_with('^') {
        true => regex::Regex::new(text).is_ok_and(|regex| regex.is_match(topic)),
        false => text == topic,
    };
    match &source.from {
        From::RabbitMq(_) => true,
        From::Kafka(kafka) => kafka.topics.iter().any(name_or_regex),
        From::Embedded(embedded) => embedded.topics.iter().any(pattern),
    }
}

/// `body`, or `body_file`.
fn body(map: &Map<'_>) -> Option<Body> {
    let (body, file) = (map.take("body"), map.take("body_file"));
    if let (Some(_), Some(file)) = (body, file) {
        let help = "keep one of them".to_owned();
        file.note_key("`body` and `body_file` are both given", help);
    }
    match body {
        Some(field) => match &field.node.value {
            Value::Scalar(scalar) => Some(Body::Text(scalar.text.clone())),
            Value::Null => {
                field.note(
                    "`body` is nothing",
                    "write `\"\"`, or `\"null\"`".to_owned(),
                );
                None
            }
            Value::List(_) | Value::Map(_) => Some(Body::Json(field.node.to_json())),
        },
        None => file.and_then(|file| file.path()).map(Body::File),
    }
}

fn expect(field: Field<'_>, known: &Known<'_>) -> BTreeMap<Arc<str>, Expected> {
    let is_known = |field: Field<'_>, at_key: bool, name: &str, shown: &str| {
        if known.subscriptions.contains(&name) {
            return;
        }
        let message = format!("there is no subscription {shown}");
        let help = suggestion(name, known.subscriptions.iter().copied());
        match at_key {
            true => field.note_key(message, help),
            false => field.note(message, help),
        }
    };
    if !field.is_map() {
        let names = field.list().into_iter();
        return names
            .filter_map(|field| {
                let name = field.name()?;
                is_known(field, false, &name.text, &name.shown);
                Some((name.text, Expected::default()))
            })
            .collect();
    }
    let named = field.named().into_iter();
    named
        .filter_map(|(name, field)| {
            is_known(field, true, &name.text, &name.shown);
            Some((name.text, expected(field)?))
        })
        .collect()
}

fn expected(field: Field<'_>) -> Option<Expected> {
    let map = field.map(&keys::EXPECTED)?;
    let error_field = map.take("error");
    if let Some(error) = error_field {
        let others = ["method", "url", "headers", "body", "body_file", "signature"];
        for key in others.into_iter().filter(|key| map.has(key)) {
            let help = "keep one of them".to_owned();
            error.note_key(
                format!("with an `error` there is no `{key}`: nothing is sent"),
                help,
            );
        }
    }
    let method = map
        .take("method")
        .and_then(|field| field.one_of(&keys::METHODS))
        .and_then(|name| name.parse().ok());
    let url = map.take("url").and_then(|field| {
        let text = field.text()?;
        Some(Text::of(field, text))
    });
    let headers = map.take("headers").map(|field| field.entries());
    let headers = headers.unwrap_or_default().into_iter();
    let headers = headers.filter_map(header).collect();
    let signature = map
        .take("signature")
        .and_then(|field| field.one_of(&keys::SIGNED))
        .map(|word| match word {
            "valid" => Signed::Valid,
            _ => Signed::Not,
        });
    Some(Expected {
        method,
        url,
        headers,
        body: body(&map),
        signature,
        error: error_field.and_then(error),
    })
}

fn header(entry: Field<'_>) -> Option<(HeaderName, Text)> {
    let Ok(name) = HeaderName::from_bytes(entry.key.as_bytes()) else {
        let message = format!("`{}` cannot be the name of a header", entry.key);
        entry.note_key(message, None);
        return None;
    };
    let text = entry.text_or_empty()?;
    Some((name, Text::of(entry, text)))
}

fn error(field: Field<'_>) -> Option<ExpectedError> {
    let (reason, text) = match field.is_map() {
        true => {
            let map = field.map(&keys::EXPECTED_ERROR)?;
            let text = map.take("text").and_then(|field| field.text());
            let reason = map.need("reason");
            (reason, text.map(str::to_owned))
        }
        false => (Some(field), None),
    };
    let reason = reason?.one_of(&keys::ERRORS)?;
    Some(ExpectedError {
        reason: Reason::from_name(reason)?,
        text,
    })
}
