//! Publishing to the embedded broker over HTTP.
//!
//! The body is the event, as it is, with its `Content-Type`; `Hookbridge-Id`, `Hookbridge-Key` and
//! `Hookbridge-Type` name it, `Hookbridge-Header-<name>` become its headers (in lower case, as HTTP
//! has them), and `traceparent`, `tracestate` and `baggage` are carried on. With
//! `application/x-ndjson` the body is many events, which are stored all or not at all; those that
//! say nothing of their own trace belong to the request's.
//!
//! The answer is 202 once everything is synced. Publishing is not idempotent: the same id sent
//! twice is two events with one `webhook-id`, which receivers can tell by it.

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::ask::{Path, Query};
use super::problem::Problem;
use super::{State, ndjson};
use crate::broker::Publication;
use crate::broker::embedded::{Declined, Embedded};
use crate::event::context::{BAGGAGE, TRACEPARENT, TRACESTATE};
use crate::event::{HeaderValue, Headers};

/// Headers of tracing, which go on to the receivers.
const CARRIED: [&str; 3] = [TRACEPARENT, TRACESTATE, BAGGAGE];

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// Which embedded broker, where there are several.
    broker: Option<String>,
}

pub async fn no_topic() -> Problem {
    Declined::BadTopic("it is empty").into()
}

#[utoipa::path(
    post,
    path = "/v1/topics/{topic}/events",
    tag = "publishing",
    operation_id = "publish",
    summary = "Publishes an event to an embedded broker; with `application/x-ndjson` many, all or none",
    params(("topic" = String, Path, description = "The topic"), To, ("Hookbridge-Id" = Option<String>, Header, description = "The event's id"), ("Hookbridge-Type" = Option<String>, Header, description = "Its type"), ("Hookbridge-Key" = Option<String>, Header, description = "Its key")),
    request_body(content = super::openapi::EventBody, content_type = "application/json"),
    responses(
        (status = 202, description = "Kept and synced", body = super::openapi::Published),
        (status = 404, description = "There is no such broker"),
        (status = 507, description = "There is no room for it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["publish"])),
)]
pub async fn publish(
    Extract(state): Extract<State>,
    Path(topic): Path<String>,
    Query(to): Query<To>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let broker = broker(&state, to.broker.as_deref())?;
    // Before the body is read, so that nobody sends megabytes in vain.
    broker.check_topic(&topic)?;
    let event = described(&topic, &headers)?;
    let body = read(body, &headers, state.max_event_bytes).await?;

    let kind = event.content_type.as_deref().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/x-ndjson") {
        let mut events = ndjson::read(&topic, &body)?;
        let of_request = event
            .headers
            .iter()
            .filter(|(name, _)| CARRIED.contains(name));
        let of_request: Vec<_> = of_request.collect();
        for event in events.iter_mut().filter(|event| !is_traced(event)) {
            for (name, value) in &of_request {
                event.headers.push(*name, (*value).clone());
            }
        }
        let published = broker.publish_all(events).await?;
        let ids: Vec<_> = published.iter().map(|one| one.id.as_str()).collect();
        let untaken = published.iter().filter(|one| one.sources == 0).count();
        let answer = json!({ "count": published.len(), "ids": ids, "untaken": untaken });
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    let published = broker
        .publish_all(vec![Publication { body, ..event }])
        .await?;
    let answer = published
        .first()
        .map(|one| json!({ "id": one.id, "sources": one.sources }));
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

fn broker<'s>(state: &'s State, name: Option<&str>) -> Result<&'s Embedded, Problem> {
    let brokers = &state.embedded;
    let chosen = name.or(state.default_broker.as_deref());
    let Some(chosen) = chosen else {
        let names: Vec<_> = brokers.keys().map(|name| &**name).collect();
        return Err(if names.is_empty() {
            Problem::not_found("there is no embedded broker in the config")
        } else {
            let names = names.join(", ");
            Problem::bad_request(format!("say which broker: `?broker=` one of {names}"))
        });
    };
    let found = brokers.get(chosen).map(|broker| &**broker);
    found.ok_or_else(|| Problem::not_found(format!("there is no embedded broker `{chosen}`")))
}

/// What the headers say about the event.
fn described(topic: &str, headers: &HeaderMap) -> Result<Publication, Problem> {
    let mut event = Publication {
        topic: topic.to_owned(),
        ..Publication::default()
    };
    for (name, value) in headers {
        let name = name.as_str();
        let text = || {
            let text = std::str::from_utf8(value.as_bytes()).ok();
            text.filter(|text| !text.is_empty())
                .map(str::to_owned)
                .ok_or_else(|| Problem::bad_request(format!("`{name}` is empty or not UTF-8")))
        };
        let bytes = || Bytes::copy_from_slice(value.as_bytes());
        match name.strip_prefix("hookbridge-") {
            Some("id") => event.id = Some(text()?),
            Some("type") => event.kind = Some(text()?),
            Some("key") => event.key = Some(bytes()),
            Some(other) => match other.strip_prefix("header-") {
                Some(own) if !own.is_empty() => push(&mut event.headers, own, bytes()),
                _ => return Err(Problem::bad_request(format!("unknown header `{name}`"))),
            },
            None if CARRIED.contains(&name) => push(&mut event.headers, name, bytes()),
            None if name == "content-type" => event.content_type = Some(text()?),
            None => {}
        }
    }
    Ok(event)
}

/// Whether a line has a trace context of its own, of which nothing is mixed with the request's.
fn is_traced(event: &Publication) -> bool {
    let carried = |name: &str| CARRIED.iter().any(|known| known.eq_ignore_ascii_case(name));
    event.headers.iter().any(|(name, _)| carried(name))
}

fn push(headers: &mut Headers, name: &str, value: Bytes) {
    headers.push(name, HeaderValue::Bytes(value));
}

async fn read(body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, Problem> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "encoded",
            "The body is encoded",
            "send the event without `Content-Encoding`",
        ));
    }
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Problem::too_large(limit));
    }
    // What is announced and not sent is an error of the connection, any other one is the limit.
    to_bytes(body, limit).await.map_err(|error| {
        let over = std::error::Error::source(&error)
            .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        if over {
            Problem::too_large(limit)
        } else {
            Problem::bad_request("the body ended early")
        }
    })
}
