//! Attempts over the API: what was recorded, page by page, and what became of one event.

use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::ask::{self, Path};
use super::problem::Problem;
use super::tenancy::Caller;
use crate::delivery::Reason;
use crate::journal::{Cursor, Entry, Page, Query, Status, Unreadable};
use crate::operations::trace::{BadField, Field, Trace, Untraced};

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1_000;

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new()
        .route("/v1/attempts", get(list))
        .route("/v1/attempts/export", get(export))
        .route("/v1/events/{id}", get(trace))
        .route("/v1/events/{id}/trace", get(trace))
        .route("/v1/events", get(find))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// An event's or a delivery's.
    id: Option<String>,
    subscription: Option<String>,
    tenant: Option<String>,
    status: Option<String>,
    r#type: Option<String>,
    topic: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Of dead letters, which are looked for then.
    reason: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

impl Filter {
    fn query(self, caller: &Caller) -> Result<Query, Problem> {
        let status = self.status.map(|status| status.parse::<Status>());
        Ok(Query {
            event: None,
            id: self.id,
            subscription: self.subscription,
            tenant: caller.about(self.tenant)?,
            status: status.transpose().map_err(Problem::bad_request)?,
            kind: self.r#type,
            topic: self.topic,
            reason: self.reason.as_deref().map(reason).transpose()?,
            since: self.since,
            until: self.until,
            attempts_only: true,
        })
    }
}

fn reason(name: &str) -> Result<Reason, Problem> {
    Reason::from_name(name).ok_or_else(|| {
        let known = Reason::ALL.map(Reason::as_str).join(", ");
        Problem::bad_request(format!("`{name}` is no reason: it is one of {known}"))
    })
}

#[utoipa::path(
    get,
    path = "/v1/attempts",
    tag = "deliveries",
    operation_id = "listAttempts",
    summary = "Attempts that were made",
    params(Filter),
    responses(
        (status = 200, description = "A page, the newest first", body = super::openapi::AttemptsPage),
        (status = 409, description = "Attempts are not kept (`attempts: false`)"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    ask::Query(asked): ask::Query<Filter>,
) -> Result<Json<Value>, Problem> {
    let cursor = asked.cursor.as_deref().map(str::parse::<Cursor>);
    let cursor = cursor.transpose().map_err(Problem::bad_request)?;
    let limit = asked.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MOST {
        return Err(Problem::bad_request(format!("`limit` is 1 to {MOST}")));
    }
    let page = state
        .traces
        .attempts(asked.query(&caller)?, cursor, limit)
        .await?;
    let next = page.next.map(|cursor| cursor.to_string());
    Ok(Json(json!({ "attempts": page.entries, "next": next })))
}

/// All of them, a line each, as they are read. An error on the way breaks it off.
#[utoipa::path(
    get,
    path = "/v1/attempts/export",
    tag = "deliveries",
    operation_id = "exportAttempts",
    summary = "All attempts, a line each; without `limit` and `cursor`",
    params(Filter),
    responses(
        (status = 200, description = "All of them, a line each", body = Entry, content_type = "application/x-ndjson"),
        (status = 409, description = "Attempts are not kept (`attempts: false`)"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn export(
    Extract(state): Extract<State>,
    caller: Caller,
    ask::Query(asked): ask::Query<Filter>,
) -> Result<Response, Problem> {
    if asked.limit.is_some() || asked.cursor.is_some() {
        let why = "an export has no `limit` and no `cursor`: it is all of it";
        return Err(Problem::bad_request(why));
    }
    let query = asked.query(&caller)?;
    // What cannot be read at all is a problem, not an answer that breaks off.
    let first = state.traces.attempts(query.clone(), None, MOST).await?;
    let pages = stream::unfold(Some(Ok(first)), move |page| {
        let (traces, query) = (state.traces.clone(), query.clone());
        async move {
            let page: Page = match page? {
                Ok(page) => page,
                Err(why) => return Some((Err(why), None)),
            };
            let lines = lines(&page.entries);
            let next = match page.next {
                Some(next) => Some(traces.attempts(query, Some(next), MOST).await),
                None => None,
            };
            Some((Ok::<_, Unreadable>(lines), next))
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(pages)).into_response())
}

/// A page without entries is a sign of life: others may follow.
fn lines(entries: &[Entry]) -> Bytes {
    let mut lines = Vec::with_capacity(512 * entries.len() + 1);
    for entry in entries {
        // Texts, numbers and times can be written.
        let _ = serde_json::to_writer(&mut lines, entry);
        lines.push(b'\n');
    }
    if lines.is_empty() {
        lines.push(b'\n');
    }
    lines.into()
}

#[utoipa::path(
    get,
    path = "/v1/events/{id}/trace",
    tag = "deliveries",
    operation_id = "traceEvent",
    summary = "What became of an event; also at `/v1/events/{id}`",
    params(("id" = String, Path, description = "The event's id, as receivers see it in `webhook-id`")),
    responses(
        (status = 200, description = "What is known", body = Trace),
        (status = 404, description = "Nothing is known of it"),
    ),
    security(("token" = ["read"])),
)]
async fn trace(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Trace>, Problem> {
    Ok(Json(state.traces.seen_by(caller.0.as_deref(), &id).await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Having {
    r#where: String,
}

/// The ids of events that have a field.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "deliveries",
    operation_id = "findEvents",
    summary = "Events that have a field",
    params(Having),
    responses(
        (status = 200, description = "Ids of up to 20 events, the newest first", body = super::openapi::EventsFound),
    ),
    security(("token" = ["read"])),
)]
async fn find(
    Extract(state): Extract<State>,
    ask::Query(asked): ask::Query<Having>,
) -> Result<Json<Value>, Problem> {
    let field: Field = asked.r#where.parse()?;
    let (events, notes) = state.traces.with(&field).await;
    Ok(Json(json!({ "events": events, "notes": notes })))
}

impl From<Unreadable> for Problem {
    fn from(why: Unreadable) -> Self {
        let detail = why.to_string();
        match why {
            Unreadable::Off => Self::new(
                StatusCode::CONFLICT,
                "attempts-not-kept",
                "Attempts are not kept",
                detail,
            ),
            _ => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The journal of attempts is not available",
                detail,
            ),
        }
    }
}

impl From<Untraced> for Problem {
    fn from(untraced: Untraced) -> Self {
        Self::not_found(untraced.to_string())
    }
}

impl From<BadField> for Problem {
    fn from(bad: BadField) -> Self {
        Self::bad_request(bad.to_string())
    }
}
