//! Tests: a sample, or an event of the past, sent to one subscription's endpoint for somebody to see.
//!
//! An event of the past is looked for among the dead letters, which hold it whole, and then in what its
//! source still has, from about the time on at which the journal first knows of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Operations, Traces, letters};
use crate::broker::Span;
use crate::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use crate::pipeline::{NotTried, SubscriptionStatus, Tried, Turn};

/// How long an event of the past is looked for.
const LOOK: Duration = Duration::from_secs(8);
/// Among the dead letters, of that.
const LETTERS: Duration = Duration::from_secs(4);
/// How long before its first attempt an event was published, the likeliest first.
const BEFORE: [Duration; 3] = [
    Duration::from_secs(10),
    Duration::from_secs(300),
    Duration::from_secs(3_600),
];
/// Events of a source that are looked at for one of them.
const MOST: usize = 200_000;
/// What stands in a sample for what nobody has said.
const UNSAID: &str = "sample";

/// What is sent.
#[derive(Debug, Clone)]
pub enum What {
    /// An event of this id.
    Past(String),
    Sample(Box<Sample>),
}

/// An event that somebody makes up. What is left out is made up here.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// The source that it is said to come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body, as JSON, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub data: Option<Box<RawValue>>,
    /// The body, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The body, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
}

/// Why no test was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTested {
    #[error(transparent)]
    NotTried(#[from] NotTried),
    #[error("event `{id}` is not there to be sent again: {}", .why.join("; "))]
    NoEvent { id: String, why: Vec<String> },
    #[error("its endpoint is the operator's, and may be another one's too")]
    NotIts,
    #[error("{0}")]
    BadSample(String),
}

/// Sends it to the subscription that a name or a uid means, if it is of the `tenant` that asks, if one
/// does. What he is told does not depend on what is there of others.
pub async fn run(
    operations: &Operations,
    traces: &Traces,
    which: &str,
    what: What,
    tenant: Option<&Arc<str>>,
) -> Result<Tried, NotTested> {
    let pipeline = traces.pipeline.as_ref().ok_or(NotTried::Unknown)?;
    let one = pipeline.identity(which);
    let one = one.and_then(|uid| pipeline.subscription(&uid));
    let is_its = |one: &SubscriptionStatus| tenant.is_none() || one.tenant.as_ref() == tenant;
    let one = one.filter(is_its).ok_or(NotTried::Unknown)?;
    if tenant.is_some() && !one.has_own_endpoint() {
        return Err(NotTested::NotIts);
    }
    let turn = Turn::taken(tenant)?;
    let event = match what {
        What::Past(id) => {
            // Whoever asks: of other tenants' events it gets none.
            let whose = Whose {
                event: one.tenant.as_deref(),
                asked_by: tenant.map(|tenant| &**tenant),
            };
            past(operations, traces, &id, whose).await?
        }
        What::Sample(sample) if tenant.is_some() && sample.source.is_some() => {
            let why = "sources are the operator's: leave `source` out";
            return Err(NotTested::BadSample(why.to_owned()));
        }
        What::Sample(sample) => Arc::new(made_up(&one, *sample)?),
    };
    let tried = pipeline.try_out(turn, &one.uid, event).await;
    Ok(tried.map_err(|why| match why {
        NotTried::NoSchema(_) if tenant.is_some() => {
            NotTried::NoSchema("ask the operator".to_owned())
        }
        why => why,
    })?)
}

fn made_up(status: &SubscriptionStatus, sample: Sample) -> Result<Event, NotTested> {
    let Sample {
        id,
        topic,
        r#type,
        source,
        key,
        content_type,
        headers,
        data,
        text,
        data_base64,
    } = sample;
    let topic = topic.unwrap_or_else(|| {
        status
            .topics
            .first()
            .map_or(UNSAID.into(), |it| fitting(it))
    });
    let id = id.unwrap_or_else(|| format!("test_{}", uuid::Uuid::now_v7().simple()));
    let bad = |why: &str| NotTested::BadSample(why.to_owned());
    let id = EventId::from_outside(id.as_bytes()).ok_or_else(|| bad("`id` is empty"))?;
    let now = Timestamp::now();
    let is_json = data.is_some() || (text.is_none() && data_base64.is_none());
    let body = match (data, text, data_base64) {
        (None, None, None) => built_in(now).to_string().into(),
        (Some(data), None, None) => Bytes::copy_from_slice(data.get().as_bytes()),
        (None, Some(text), None) => text.into(),
        (None, None, Some(text)) => {
            let decoded = STANDARD.decode(text);
            decoded
                .map_err(|_| bad("`data_base64` is not base64"))?
                .into()
        }
        _ => {
            return Err(bad(
                "only one of `data`, `text` and `data_base64` is the body",
            ));
        }
    };
    let content_type = content_type.map(Arc::from);
    let headers = headers.into_iter();
    let headers = headers.map(|(name, value)| (name, HeaderValue::text(value)));
    Ok(Event {
        id,
        kind: r#type.unwrap_or_else(|| topic.clone()).into(),
        source: source.unwrap_or_else(|| UNSAID.to_owned()).into(),
        tenant: status.tenant.clone(),
        published_at: Some(now),
        content_type: content_type.or_else(|| is_json.then(|| "application/json".into())),
        content_encoding: None,
        key: key.map(Bytes::from),
        headers: Headers(headers.collect()),
        properties: Vec::new(),
        body,
        origin: Origin {
            broker: UNSAID.into(),
            place: Place::Embedded {
                topic: topic.as_str().into(),
                sequence: 0,
            },
        },
        topic: topic.into(),
    })
}

/// A body that every format can make something of.
fn built_in(now: Timestamp) -> Value {
    json!({
        "sample": true,
        "message": "A test of this webhook, sent because somebody has asked for it",
        "time": format!("{now:.3}"),
    })
}

/// A topic that a pattern matches.
fn fitting(pattern: &str) -> String {
    let filled = pattern.split('.').map(|part| match part {
        "*" | "#" => UNSAID,
        part => part,
    });
    filled.collect::<Vec<_>>().join(".")
}

/// Which events of the past may be sent, and for whom they are looked for.
#[derive(Debug, Clone, Copy)]
struct Whose<'a> {
    /// Events of this tenant; any without one.
    event: Option<&'a str>,
    /// Who acts for a tenant knows of its own subscriptions' attempts only.
    asked_by: Option<&'a str>,
}

/// The event of this id, as receivers see it in `webhook-id` or as its publisher gave it.
async fn past(
    operations: &Operations,
    traces: &Traces,
    id: &str,
    whose: Whose<'_>,
) -> Result<Arc<Event>, NotTested> {
    let mut ids = vec![id.to_owned()];
    ids.extend(EventId::from_outside(id.as_bytes()).map(|id| id.to_string()));
    ids.dedup();
    let mut why = Vec::new();
    let found = match timeout(LOOK, find(operations, traces, &ids, whose, &mut why)).await {
        Ok(found) => found,
        Err(_) => {
            why.push(format!("it was not found within {} s", LOOK.as_secs()));
            None
        }
    };
    match (whose.asked_by, whose.event) {
        // Names of brokers and what they say are the operator's.
        (Some(_), _) => why = vec!["your tenant has none of this id here".to_owned()],
        (None, Some(tenant)) => {
            why.push(format!("only events of tenant `{tenant}` are sent to it"))
        }
        (None, None) => {}
    }
    found.ok_or_else(|| NotTested::NoEvent {
        id: id.to_owned(),
        why,
    })
}

async fn find(
    operations: &Operations,
    traces: &Traces,
    ids: &[String],
    whose: Whose<'_>,
    why: &mut Vec<String>,
) -> Option<Arc<Event>> {
    let is_it = |event: &Event| {
        let is_its = whose.event.is_none() || event.tenant.as_deref() == whose.event;
        is_its && ids.iter().any(|id| id == event.id.as_str())
    };
    // All at once: a broker that hangs does not use up the others' time, nor the history's.
    let asked = traces.keepers.iter().map(async |(name, keeper)| {
        let first = letters::first(&*keeper.broker, |letter| {
            let event = &letter.delivery.event;
            (letter.has_body && is_it(event)).then(|| event.clone())
        });
        (name, timeout(LETTERS, first).await)
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    while let Some((name, found)) = asked.next().await {
        match found {
            Ok(Ok(Some(event))) => return Some(event),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => why.push(format!("dead letters on {name} cannot be listed: {error}")),
            Err(_) => {
                let seconds = LETTERS.as_secs();
                why.push(format!(
                    "not all dead letters on {name} were looked at within {seconds} s"
                ));
            }
        }
    }
    drop(asked);
    let mut entries = Vec::new();
    for id in ids {
        match traces.entries_of(id).await {
            Ok(found) => entries.extend(found),
            Err(error) => {
                why.push(error.to_string());
                break;
            }
        }
    }
    entries.retain(|entry| whose.asked_by.is_none_or(|tenant| entry.tenant == tenant));
    let Some(first) = entries.iter().min_by_key(|entry| entry.at) else {
        why.push("it is no dead letter, and no attempt of it was recorded here".to_owned());
        return None;
    };
    let sources = operations.sources();
    let source = sources.get(&*first.source);
    let broker = source.and_then(|source| operations.brokers.get(&source.broker));
    let Some(broker) = broker else {
        why.push(format!(
            "its source `{}` is not there any more",
            first.source
        ));
        return None;
    };
    let mut until = first.at + Duration::from_secs(1);
    for before in BEFORE {
        let since = first.at - before;
        let mut past = match broker.history(&first.source, Span { since, until }).await {
            Ok(past) => past,
            Err(error) => {
                let said = error.to_string();
                if !why.contains(&said) {
                    why.push(said);
                }
                until = since;
                continue;
            }
        };
        for _ in 0..MOST {
            match past.next().await {
                Ok(Some(event)) if is_it(&event) => return Some(event),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    why.push(error.to_string());
                    return None;
                }
            }
        }
        until = since;
    }
    if why.is_empty() {
        let hours = "its source has none of this id within an hour of its first attempt";
        why.push(hours.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_fits_its_pattern() {
        for (pattern, topic) in [
            ("orders.created", "orders.created"),
            ("orders.*", "orders.sample"),
            ("#", "sample"),
            ("orders.#.paid", "orders.sample.paid"),
        ] {
            assert_eq!(fitting(pattern), topic);
            let read: crate::subscription::Pattern = pattern.parse().unwrap();
            assert!(read.matches(topic), "{pattern}");
        }
    }
}
