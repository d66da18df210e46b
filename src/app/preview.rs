//! What `test` works with: the subscriptions of a config as a bridge would serve them, and events as
//! its sources would take them.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;

use super::{address_policy, brokers};
use crate::broker::Taken;
use crate::config::{Body, Case, Config, From};
use crate::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use crate::pipeline::Preview;
use crate::subscription::{Subscription, Uid};

/// The subscriptions of the config alone: nothing of what the store of a bridge knows.
pub fn preview(config: &Config) -> anyhow::Result<Preview> {
    let mut all = Vec::new();
    for (name, spec) in &config.subscriptions {
        let endpoint = config.endpoints.get(&spec.endpoint);
        let endpoint =
            endpoint.with_context(|| format!("subscription `{name}` has no endpoint"))?;
        let uid = Uid::of_config(name);
        let compiled = Subscription::compile(uid, spec.clone(), endpoint.clone());
        all.push(compiled.with_context(|| format!("subscription `{name}`"))?);
    }
    let sources = config.sources.iter();
    let contracts = sources.map(|(name, source)| (name.clone(), source.contract.clone()));
    Preview::new(all, address_policy(config), contracts.collect())
}

/// The event that the source of `case` would make of its message.
pub fn event(config: &Config, case: &Case) -> anyhow::Result<Event> {
    let message = &case.message;
    let source = config.sources.get(&message.source);
    let source = source.with_context(|| format!("there is no source `{}`", message.source))?;
    let is_kafka = matches!(source.from, From::Kafka(_));
    let headers = message.headers.iter();
    let headers = headers.map(|(name, text)| (name.clone(), HeaderValue::text(text)));
    let headers = Headers(headers.collect());
    // Kafka has no property of that name.
    let of_header = |name: &str| match is_kafka {
        true => headers.get(name)?.as_str().map(Arc::from),
        false => None,
    };
    let is_json = matches!(message.body, Body::Json(_));
    let given_type = message.content_type.clone();
    let content_type = given_type
        .or_else(|| of_header("content-type"))
        .or_else(|| is_json.then(|| "application/json".into()));
    let given_encoding = message.content_encoding.clone();
    let content_encoding = given_encoding.or_else(|| of_header("content-encoding"));
    let id = message.id.as_deref().and_then(EventId::from_outside);
    let topic = &message.topic;
    let place = match &source.from {
        From::RabbitMq(settings) => Place::Amqp {
            exchange: "".into(),
            routing_key: topic.clone(),
            queue: settings.queue.as_str().into(),
        },
        From::Kafka(_) => Place::Kafka {
            topic: topic.clone(),
            partition: 0,
            offset: 0,
        },
        From::Embedded(_) => Place::Embedded {
            topic: topic.clone(),
            sequence: 1,
        },
    };
    let taken = Taken {
        topic: topic.clone(),
        kind: message.kind.clone(),
        message_id: message.id.clone().filter(|_| !is_kafka),
        // Where a bridge would take a random one: the same on every run.
        placed_id: match is_kafka {
            true => id.or_else(|| EventId::from_outside(case.name.as_bytes())),
            false => EventId::from_outside(case.name.as_bytes()),
        },
        published_at: message.time,
        content_type,
        content_encoding,
        key: message.key.clone(),
        headers,
        properties: Vec::new(),
        body: bytes_of(&message.body)?,
        origin: Origin {
            broker: source.broker.clone(),
            place,
        },
    };
    Ok(brokers::naming(&message.source, source).event(taken))
}

/// A body as it is sent; files are read.
pub fn bytes_of(body: &Body) -> anyhow::Result<Bytes> {
    Ok(match body {
        Body::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        Body::Json(value) => Bytes::from(value.to_string()),
        Body::File(path) => Bytes::from(read(path)?),
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("`body_file` {} cannot be read", path.display()))
}
