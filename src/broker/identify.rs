//! Naming events: topic, type and id of a message, by the same rules on every broker.
//!
//! A broker fills a [`Taken`] with what its message says; [`Naming::event`] applies the source's
//! rules. Our own headers are stripped here, so a dead letter that somebody shovelled back to a
//! source is a fresh event that keeps its `webhook-id`.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::envelope;
use crate::event::cloud::Identity;
use crate::event::{Event, EventId, HeaderValue, Headers, Origin};
use crate::subscription::{is_tenant, segments};

/// A broker message before it is named.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The routing key or the topic.
    pub topic: Arc<str>,
    /// AMQP `type`.
    pub kind: Option<Arc<str>>,
    /// AMQP `message_id`, or the id given when publishing to the embedded broker.
    pub message_id: Option<Bytes>,
    /// An id that the broker can make from the message's place (Kafka), if it can.
    pub placed_id: Option<EventId>,
    pub published_at: Option<Timestamp>,
    pub content_type: Option<Arc<str>>,
    pub content_encoding: Option<Arc<str>>,
    pub key: Option<Bytes>,
    pub headers: Headers,
    pub properties: Vec<(String, HeaderValue)>,
    pub body: Bytes,
    pub origin: Origin,
}

/// `id:` of a source: where to find an id when the message has none of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdFrom {
    /// A header of this name.
    Header(String),
    /// A dotted path into the JSON body.
    Json(String),
    /// SHA-256 of the body: equal bodies are one event.
    Content,
}

/// `tenant:` of a source: what of a message says whose its event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantFrom {
    /// A header of this name.
    Header(String),
    /// A dotted path into the JSON body.
    Json(String),
    /// A segment of the topic, from 0.
    Segment(usize),
}

/// How a source names its events.
#[derive(Debug, Clone)]
pub struct Naming {
    pub source: Arc<str>,
    /// `topic:` of the source, which replaces the broker's.
    pub topic: Option<Arc<str>>,
    pub id: Option<IdFrom>,
    pub tenant: Option<TenantFrom>,
}

impl Naming {
    /// The event of a message.
    pub fn event(&self, mut taken: Taken) -> Event {
        let shovelled = taken
            .headers
            .get(envelope::EVENT_ID)
            .and_then(HeaderValue::as_str)
            .map(str::to_owned);
        taken.headers.0.retain(|(name, _)| !envelope::is_ours(name));
        let content_type = taken.content_type.as_deref();
        let cloud_event = Identity::of(content_type, &taken.headers, &taken.body);
        let topic = self.topic.clone().unwrap_or_else(|| taken.topic.clone());
        let id = shovelled
            .and_then(|id| EventId::kept(&id))
            .or_else(|| self.id_of(&taken, &cloud_event))
            .unwrap_or_else(EventId::random);
        let tenant = self.tenant.as_ref();
        let tenant = tenant.and_then(|from| from.read(&taken, &topic));
        let kind = cloud_event
            .kind
            .map(Arc::from)
            .or(taken.kind)
            .or_else(|| {
                taken
                    .headers
                    .get("type")
                    .and_then(HeaderValue::as_str)
                    .map(Arc::from)
            })
            .unwrap_or_else(|| topic.clone());
        Event {
            id,
            topic,
            kind,
            source: self.source.clone(),
            tenant,
            published_at: cloud_event.time.or(taken.published_at),
            content_type: taken.content_type,
            content_encoding: taken.content_encoding,
            key: taken.key,
            headers: taken.headers,
            properties: taken.properties,
            body: taken.body,
            origin: taken.origin,
        }
    }

    fn id_of(&self, taken: &Taken, cloud_event: &Identity) -> Option<EventId> {
        if let Some(id) = &cloud_event.id {
            let source = cloud_event.source.as_deref().unwrap_or_default();
            return Some(EventId::hashed("ce", &[source.as_bytes(), id.as_bytes()]));
        }
        if let Some(id) = taken.message_id.as_deref().and_then(EventId::from_outside) {
            return Some(id);
        }
        // `id:` of a source is asked for by its operator, so it goes before what we can derive.
        match &self.id {
            Some(IdFrom::Header(name)) => {
                if let Some(id) = taken
                    .headers
                    .get(name)
                    .and_then(HeaderValue::as_bytes)
                    .and_then(EventId::from_outside)
                {
                    return Some(id);
                }
            }
            Some(IdFrom::Json(path)) => {
                if let Some(id) = json_at(&taken.body, path) {
                    return EventId::from_outside(id.as_bytes());
                }
            }
            Some(IdFrom::Content) => return Some(EventId::hashed("body", &[&taken.body])),
            None => {}
        }
        taken.placed_id.clone()
    }
}

impl TenantFrom {
    /// Whose a message is. What is missing, no name, or said twice and differently is nobody's.
    fn read(&self, taken: &Taken, topic: &str) -> Option<Arc<str>> {
        let tenant: Arc<str> = match self {
            Self::Header(name) => {
                let mut values = taken.headers.iter().filter(|(other, _)| other == name);
                let (_, value) = values.next()?;
                if values.any(|(_, other)| other != value) {
                    return None;
                }
                match value {
                    HeaderValue::Int(number) => number.to_string().into(),
                    value => value.as_str()?.into(),
                }
            }
            Self::Json(path) => json_at(&taken.body, path)?.into(),
            Self::Segment(at) => segments(topic).nth(*at)?.into(),
        };
        is_tenant(&tenant).then_some(tenant)
    }
}

/// A string or number at a dotted path of a JSON body.
fn json_at(body: &[u8], path: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let found = path.split('.').try_fold(&value, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        _ => value.get(key),
    })?;
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Place;

    fn taken(headers: &[(&str, &str)], body: &str) -> Taken {
        Taken {
            topic: "orders.created".into(),
            kind: None,
            message_id: None,
            placed_id: None,
            published_at: None,
            content_type: None,
            content_encoding: None,
            key: None,
            headers: Headers(
                headers
                    .iter()
                    .map(|(n, v)| (n.to_string(), HeaderValue::text(*v)))
                    .collect(),
            ),
            properties: Vec::new(),
            body: Bytes::from(body.to_owned()),
            origin: Origin {
                broker: "b".into(),
                place: Place::Embedded {
                    topic: "t".into(),
                    sequence: 1,
                },
            },
        }
    }

    fn naming(id: Option<IdFrom>) -> Naming {
        Naming {
            source: "s".into(),
            topic: None,
            id,
            tenant: None,
        }
    }

    #[test]
    fn a_message_id_is_the_event_id() {
        let event = naming(None).event(Taken {
            message_id: Some("m-1".into()),
            ..taken(&[], "")
        });
        assert_eq!(event.id.as_str(), "m-1");
    }

    #[test]
    fn cloud_events_of_two_sources_have_different_ids() {
        let id = |source| {
            naming(None)
                .event(taken(
                    &[("ce_id", "1"), ("ce_source", source), ("ce_type", "x")],
                    "",
                ))
                .id
        };
        assert_ne!(id("/a"), id("/b"));
    }

    #[test]
    fn a_structured_cloud_event_gives_its_type() {
        let body =
            r#"{"specversion":"1.0","id":"7","source":"/s","type":"order.made","data":{"a":1}}"#;
        let message = Taken {
            content_type: Some("application/cloudevents+json; charset=utf-8".into()),
            ..taken(&[], body)
        };
        assert_eq!(&*naming(None).event(message).kind, "order.made");
    }

    #[test]
    fn the_time_of_a_cloud_event_goes_before_the_message_s() {
        let message = Taken {
            published_at: Some("2020-01-01T00:00:00Z".parse().unwrap()),
            ..taken(&[("cloudEvents:time", "2026-03-01T12:00:00Z")], "")
        };
        let event = naming(None).event(message);
        let time = event.published_at.unwrap();
        assert_eq!(time.to_string(), "2026-03-01T12:00:00Z");
    }

    #[test]
    fn the_type_falls_back_to_the_topic() {
        assert_eq!(&*naming(None).event(taken(&[], "")).kind, "orders.created");
        assert_eq!(&*naming(None).event(taken(&[("type", "t")], "")).kind, "t");
    }

    #[test]
    fn a_shovelled_letter_keeps_its_webhook_id_and_loses_our_headers() {
        let event = naming(None).event(taken(&[(envelope::EVENT_ID, "evt-9"), ("mine", "1")], ""));
        assert_eq!(event.id.as_str(), "evt-9");
        assert_eq!(event.headers.0.len(), 1);
    }

    #[test]
    fn the_json_path_of_a_source_names_the_event() {
        let event = naming(Some(IdFrom::Json("order.items.1".into())))
            .event(taken(&[], r#"{"order":{"items":[1,42]}}"#));
        assert_eq!(event.id.as_str(), "42");
    }

    #[test]
    fn equal_bodies_are_one_event_where_the_source_says_so() {
        let of = |body| naming(Some(IdFrom::Content)).event(taken(&[], body)).id;
        assert_eq!(of("x"), of("x"));
        assert_ne!(of("x"), of("y"));
    }

    fn tenant(from: TenantFrom, message: Taken) -> Option<String> {
        let naming = Naming {
            tenant: Some(from),
            ..naming(None)
        };
        naming.event(message).tenant.map(|it| it.to_string())
    }

    #[test]
    fn whose_an_event_is_is_read_where_the_source_says() {
        let header = || TenantFrom::Header("tenant".into());
        let of = |headers: &[(&str, &str)]| tenant(header(), taken(headers, ""));
        assert_eq!(of(&[("tenant", "acme")]).as_deref(), Some("acme"));
        let number = Taken {
            headers: Headers(vec![("tenant".into(), HeaderValue::Int(42))]),
            ..taken(&[], "")
        };
        assert_eq!(tenant(header(), number).as_deref(), Some("42"));
        let json = || TenantFrom::Json("account.id".into());
        let body = |body| tenant(json(), taken(&[], body));
        assert_eq!(body(r#"{"account":{"id":"a1"}}"#).as_deref(), Some("a1"));
        assert_eq!(body(r#"{"account":{"id":7}}"#).as_deref(), Some("7"));
        let segment = |at| tenant(TenantFrom::Segment(at), taken(&[], ""));
        assert_eq!(segment(0).as_deref(), Some("orders"));
        assert_eq!(segment(2), None);
    }

    #[test]
    fn what_is_missing_or_malformed_is_nobodys() {
        let of = |headers: &[(&str, &str)]| {
            tenant(TenantFrom::Header("tenant".into()), taken(headers, ""))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("Tenant", "acme")]), None);
        for bad in ["", "a b", "acme\n", "(other)"] {
            assert_eq!(of(&[("tenant", bad)]), None, "{bad}");
        }
        assert_eq!(of(&[("tenant", "a"), ("tenant", "b")]), None);
        assert_eq!(
            of(&[("tenant", "a"), ("tenant", "a")]).as_deref(),
            Some("a")
        );
        let json = |body| tenant(TenantFrom::Json("id".into()), taken(&[], body));
        for bad in ["", "no", "{}", r#"{"id":null}"#, r#"{"id":["a"]}"#] {
            assert_eq!(json(bad), None, "{bad}");
        }
    }
}
