//! Replays over the API: a span of time of a source, again, to one subscription.

use axum::extract::State as Extract;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::tenancy::Caller;
use super::{State, jobs};
use crate::broker::{NotPossible, Span};
use crate::operations::replay::{self, NotStarted, Request};
use crate::selection::{Selection, when};

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new().route("/v1/replays", get(list))
}

/// Needs the scope `replay`.
pub fn starting() -> Router<State> {
    Router::new().route("/v1/replays", post(start))
}

#[derive(Deserialize, utoipa::ToSchema)]
#[schema(as = ReplayOrder)]
#[serde(deny_unknown_fields)]
struct Wanted {
    source: String,
    subscription: String,
    /// RFC 3339, or how long ago.
    since: String,
    /// Now, where it is missing.
    until: Option<String>,
    /// `50/s`.
    rate: Option<String>,
    filter: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

#[utoipa::path(
    get,
    path = "/v1/replays",
    tag = "replays",
    operation_id = "listReplays",
    summary = "Replays",
    responses(
        (status = 200, description = "Those at work, and those that are remembered", body = super::openapi::ReplaysShown),
    ),
    security(("token" = ["read"])),
)]
async fn list(Extract(state): Extract<State>, caller: Caller) -> Response {
    let mut all = state.operations.jobs.list(caller.0.as_deref());
    all.retain(|job| replay::OPERATIONS.contains(&&*job.operation));
    Json(json!({ "replays": all })).into_response()
}

#[utoipa::path(
    post,
    path = "/v1/replays",
    tag = "replays",
    operation_id = "startReplay",
    summary = "Sends what a source made in a span of time again, to one subscription",
    request_body(content = Wanted),
    responses(
        (status = 202, description = "The job that does it", body = crate::operations::Report),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "The subscription takes no deliveries now"),
        (status = 422, description = "This cannot be replayed"),
        (status = 429, description = "Too many jobs are at work"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["replay"])),
)]
async fn start(
    Extract(state): Extract<State>,
    caller: Caller,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(wanted) = wanted.map_err(|error| Problem::bad_request(error.body_text()))?;
    if let Some(tenant) = caller.0.as_deref() {
        let name = &wanted.subscription;
        let known = state.subscriptions.one(name, Some(tenant)).await;
        if known.is_none_or(|known| known.name != *name) {
            return Err(NotStarted::UnknownSubscription(name.clone()).into());
        }
    }
    jobs::room_for(&state, &caller)?;
    let now = Timestamp::now();
    let filter = Selection::parse(wanted.filter.as_deref().unwrap_or_default(), now);
    let request = request(wanted, filter?, now).map_err(Problem::bad_request)?;
    let job = replay::start(&state.operations, request).await?;
    Ok(jobs::accepted(&job, &caller))
}

fn request(wanted: Wanted, filter: Selection, now: Timestamp) -> Result<Request, String> {
    let Wanted {
        source,
        subscription,
        since,
        until,
        rate,
        filter: _,
        dry_run,
    } = wanted;
    let named =
        |name: &str, text: &str| when::parse(text, now).map_err(|why| format!("`{name}`: {why}"));
    Ok(Request {
        source,
        subscription,
        span: Span {
            since: named("since", &since)?,
            until: until.map_or(Ok(now), |until| named("until", &until))?,
        },
        rate: rate.map(|rate| rate.parse()).transpose()?,
        filter,
        dry_run,
    })
}

impl From<NotStarted> for Problem {
    fn from(not_started: NotStarted) -> Self {
        let detail = not_started.to_string();
        let cannot = |name| {
            let title = "This cannot be replayed";
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, name, title, &detail)
        };
        match not_started {
            NotStarted::UnknownSource { .. }
            | NotStarted::UnknownSubscription(_)
            | NotStarted::NotPossible(NotPossible::UnknownSource { .. }) => Self::not_found(detail),
            NotStarted::NotReceiving(_) => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                "The subscription is not in a state for this",
                detail,
            ),
            NotStarted::BadSpan(_) => cannot("bad-range"),
            NotStarted::NotPossible(why) => match why {
                NotPossible::Unavailable(_) => Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    "The broker is not available",
                    detail,
                ),
                NotPossible::Forgotten { .. } => cannot("no-history"),
                _ => cannot("nothing-there"),
            },
            NotStarted::TooMany(too_many) => too_many.into(),
        }
    }
}
