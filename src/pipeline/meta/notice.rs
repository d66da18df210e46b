//! Notices: what there is to say, and the events that say it, as `docs/meta-events.md` has them.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::letters::Letters;
use crate::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use crate::pipeline::Job;
use crate::store::DisabledBecause;
use crate::subscription::{META_SOURCE, Spec, Subscription, Uid};

pub const FAILING: &str = "hookbridge.endpoint.failing";
pub const RECOVERED: &str = "hookbridge.endpoint.recovered";
pub const DISABLED: &str = "hookbridge.endpoint.disabled";
pub const LETTERS: &str = "hookbridge.dead_letter.created";
pub const DOWN: &str = "hookbridge.broker.down";
pub const UP: &str = "hookbridge.broker.up";

/// The attribute of a CloudEvent, as Kafka spells it: `format: cloudevents` writes it.
const SUBJECT: &str = "ce_subject";

/// Something to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    pub kind: &'static str,
    at: Timestamp,
    subject: Arc<str>,
    /// A line for people.
    pub summary: String,
    pub about: About,
    /// What is there besides the members that every type has.
    says: Value,
}

/// Whom it is about, as far as it decides who is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    pub endpoint: Option<Arc<str>>,
    pub subscription: Option<Uid>,
    /// Of the subscription that it is about, if that has one.
    pub tenant: Option<Arc<str>>,
}

/// The attempt by which something was noticed of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    pub endpoint: Arc<str>,
    /// Scheme, host and port.
    url: String,
    subscription: Arc<str>,
    pub uid: Uid,
    tenant: Option<Arc<str>>,
    /// The status, or the class of the error.
    result: String,
}

impl About {
    /// Whether a subscription is told of it: one that names the source, and is none of those that
    /// it is about. One that has a tenant is told of what is that tenant's, and of nothing else.
    pub fn is_for(&self, subscription: &Subscription) -> bool {
        let Spec {
            sources,
            tenant,
            endpoint,
            ..
        } = &subscription.spec;
        sources.iter().any(|source| **source == *META_SOURCE)
            && (tenant.is_none() || *tenant == self.tenant)
            && self.subscription.as_ref() != Some(&subscription.uid)
            && self.endpoint.as_ref() != Some(endpoint)
    }
}

impl Cause {
    pub fn of(job: &Job) -> Self {
        let Subscription { uid, spec, .. } = &job.target.subscription;
        let result = &job.delivery.progress.last_result;
        Self {
            endpoint: job.target.subscription.endpoint.name.clone(),
            url: job.target.endpoint_shown.clone(),
            subscription: spec.name.clone(),
            uid: uid.clone(),
            tenant: spec.tenant.clone(),
            result: result.clone().unwrap_or_default(),
        }
    }

    fn notice(&self, kind: &'static str, is: &str, more: Value) -> Notice {
        let Self {
            endpoint,
            url,
            subscription,
            uid,
            tenant,
            ..
        } = self;
        let says = json!({
            "endpoint": &**endpoint,
            "url": url,
            "subscription": &**subscription,
            "uid": uid,
        });
        Notice {
            kind,
            at: Timestamp::now(),
            subject: endpoint.clone(),
            summary: format!("endpoint {endpoint} ({url}) {is}"),
            about: About {
                endpoint: Some(endpoint.clone()),
                subscription: None,
                tenant: tenant.clone(),
            },
            says: joined(says, more),
        }
    }
}

impl Notice {
    /// An endpoint's breaker has shut.
    pub fn failing(cause: &Cause) -> Self {
        let result = &cause.result;
        cause.notice(
            FAILING,
            &format!("fails: {result}"),
            json!({ "result": result }),
        )
    }

    /// It works again.
    pub fn recovered(cause: &Cause, since: Timestamp) -> Self {
        let is = format!("works again; it failed since {since:.0}");
        cause.notice(RECOVERED, &is, json!({ "failing_since": since }))
    }

    /// It gets nothing until somebody enables it.
    pub fn disabled(cause: &Cause, because: DisabledBecause) -> Self {
        let (because, words) = match because {
            DisabledBecause::Gone => ("gone", "it is gone"),
            DisabledBecause::Asked => ("asked", "it asked for it"),
        };
        let is = format!("is disabled: {words}. It gets nothing until it is enabled");
        let result = &cause.result;
        cause.notice(
            DISABLED,
            &is,
            json!({ "because": because, "result": result }),
        )
    }

    /// Dead letters of a subscription, or of a source where they have none.
    pub fn letters(letters: &Letters, tenant: Option<Arc<str>>) -> Self {
        let Letters {
            subscription,
            source,
            count,
            reasons,
            first,
            last,
        } = letters;
        let (name, uid) = match subscription {
            Some((name, uid)) => (Some(&**name), Some(uid)),
            None => (None, None),
        };
        let reasons_said: Vec<_> = reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let reasons_said = reasons_said.join(", ");
        let of = match name {
            Some(name) => format!("subscription {name}"),
            None => format!("source {source}"),
        };
        let letters = if *count == 1 { "letter" } else { "letters" };
        Self {
            kind: LETTERS,
            at: Timestamp::now(),
            subject: name.map_or_else(|| source.clone(), Arc::from),
            summary: format!("{count} dead {letters} of {of}: {reasons_said}"),
            about: About {
                endpoint: None,
                subscription: uid.cloned(),
                tenant,
            },
            says: json!({
                "subscription": name,
                "uid": uid,
                "source": name.is_none().then_some(&**source),
                "count": count,
                "reasons": reasons,
                "first": first,
                "last": last,
            }),
        }
    }

    pub fn down(broker: &Arc<str>, since: Timestamp, why: &str) -> Self {
        let (summary, more) = (
            format!("broker {broker} is down: {why}"),
            json!({ "broker": &**broker, "since": since, "why": why }),
        );
        Self::of_broker(DOWN, broker, summary, more)
    }

    pub fn up(broker: &Arc<str>, since: Timestamp) -> Self {
        let (summary, more) = (
            format!("broker {broker} works again; it was down since {since:.0}"),
            json!({ "broker": &**broker, "down_since": since }),
        );
        Self::of_broker(UP, broker, summary, more)
    }

    fn of_broker(kind: &'static str, broker: &Arc<str>, summary: String, says: Value) -> Self {
        Self {
            kind,
            at: Timestamp::now(),
            subject: broker.clone(),
            summary,
            about: About::default(),
            says,
        }
    }

    /// The event that says it.
    pub fn event(&self, instance: &str) -> Event {
        let id = EventId::random();
        let common = json!({
            "type": self.kind,
            "id": id,
            "time": self.at,
            "subject": &*self.subject,
            "instance": instance,
            "tenant": self.about.tenant.as_deref(),
            "summary": self.summary,
        });
        let body = joined(common, self.says.clone());
        let mut headers = Headers::default();
        headers.push(SUBJECT, HeaderValue::text(&*self.subject));
        Event {
            id,
            topic: self.kind.into(),
            kind: self.kind.into(),
            source: META_SOURCE.into(),
            tenant: self.about.tenant.clone(),
            published_at: Some(self.at),
            content_type: Some("application/json".into()),
            content_encoding: None,
            key: None,
            headers,
            properties: Vec::new(),
            body: Bytes::from(body.to_string()),
            // It lies nowhere but where it is parked.
            origin: Origin {
                broker: META_SOURCE.into(),
                place: Place::Embedded {
                    topic: self.kind.into(),
                    sequence: 0,
                },
            },
        }
    }
}

/// Both maps in one.
fn joined(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

#[cfg(test)]
pub fn cause(endpoint: &str) -> Cause {
    Cause {
        endpoint: endpoint.into(),
        url: format!("https://{endpoint}.example.com"),
        subscription: endpoint.into(),
        uid: Uid::of_config(endpoint),
        tenant: Some("acme".into()),
        result: "503".to_owned(),
    }
}
