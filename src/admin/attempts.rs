//! Attempts over the API: what was recorded, page by page, and what became of one event.

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::ask::{self, Path};
use super::problem::Problem;
use crate::journal::{Cursor, Query, Status, Unreadable};
use crate::operations::trace::{BadField, Field, Trace, Untraced};

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1_000;

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new()
        .route("/v1/attempts", get(list))
        .route("/v1/events/{id}/trace", get(trace))
        .route("/v1/events", get(find))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// An event's or a delivery's.
    id: Option<String>,
    subscription: Option<String>,
    status: Option<String>,
    r#type: Option<String>,
    topic: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn list(
    Extract(state): Extract<State>,
    ask::Query(asked): ask::Query<Filter>,
) -> Result<Json<Value>, Problem> {
    let status = asked.status.map(|status| status.parse::<Status>());
    let cursor = asked.cursor.map(|cursor| cursor.parse::<Cursor>());
    let limit = asked.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MOST {
        return Err(Problem::bad_request(format!("`limit` is 1 to {MOST}")));
    }
    let query = Query {
        event: None,
        id: asked.id,
        subscription: asked.subscription,
        status: status.transpose().map_err(Problem::bad_request)?,
        kind: asked.r#type,
        topic: asked.topic,
        since: asked.since,
        until: asked.until,
        attempts_only: true,
    };
    let cursor = cursor.transpose().map_err(Problem::bad_request)?;
    let page = state.traces.attempts(query, cursor, limit).await?;
    let next = page.next.map(|cursor| cursor.to_string());
    Ok(Json(json!({ "attempts": page.entries, "next": next })))
}

async fn trace(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
) -> Result<Json<Trace>, Problem> {
    Ok(Json(state.traces.of(&id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Having {
    r#where: String,
}

/// The ids of events that have a field.
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
