//! The live stream of attempts, as server-sent events: `listening` at first, then `attempt` for each,
//! and `lost` with how many were dropped because the reader is too slow.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::State;
use super::ask;
use super::problem::Problem;
use super::tenancy::Caller;
use crate::journal::{Query, Status};
use crate::pipeline::{Filter, Heard, Tap};
use crate::selection::when;

/// A sign of life, so that neither side takes the other for gone.
const ALIVE: Duration = Duration::from_secs(15);

/// As long may one ask to listen; who says nothing listens until he goes away.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new().route("/v1/tap", get(tap))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Asked {
    id: Option<String>,
    subscription: Option<String>,
    tenant: Option<String>,
    status: Option<String>,
    r#type: Option<String>,
    topic: Option<String>,
    /// Requests and answers, too; they are, unless this is false.
    exchanges: Option<bool>,
    /// It ends after so many attempts.
    limit: Option<u64>,
    /// It ends after so long, such as `30s`.
    r#for: Option<String>,
}

#[utoipa::path(
    get,
    path = "/v1/tap",
    tag = "deliveries",
    operation_id = "tap",
    summary = "Attempts as they are made, with request and answer",
    params(Asked),
    responses(
        (status = 200, description = "Server-sent events: `listening`, then `attempt` for each with an `Exchange`, and `lost`", body = String, content_type = "text/event-stream"),
        (status = 429, description = "Too many listen already"),
    ),
    security(("token" = ["read"])),
)]
async fn tap(
    Extract(state): Extract<State>,
    caller: Caller,
    ask::Query(asked): ask::Query<Asked>,
) -> Result<impl IntoResponse, Problem> {
    let status = asked.status.map(|status| status.parse::<Status>());
    let query = Query {
        id: asked.id,
        subscription: asked.subscription,
        tenant: caller.about(asked.tenant)?,
        status: status.transpose().map_err(Problem::bad_request)?,
        kind: asked.r#type,
        topic: asked.topic,
        attempts_only: true,
        ..Query::default()
    };
    let until = match asked.r#for.as_deref().map(when::span) {
        None => None,
        Some(Some(span)) if span <= LONGEST => Some(Instant::now() + span),
        Some(_) => {
            let why = "`for` is a duration such as `30s`, a day at most";
            return Err(Problem::bad_request(why));
        }
    };
    let left = asked.limit.unwrap_or(u64::MAX);
    let filter = Filter {
        query,
        without_exchanges: asked.exchanges == Some(false),
    };
    let tap = state.taps.listen(filter).ok_or_else(|| {
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-taps",
            "Too many listen already",
            "end another `hookbridge tap` or `attempts --follow` first",
        )
    })?;
    let alive = KeepAlive::new().interval(ALIVE);
    Ok(Sse::new(events(tap, left, until)).keep_alive(alive))
}

/// `left` attempts at the most, and none after `until`.
fn events(
    tap: Tap,
    left: u64,
    until: Option<Instant>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let first = event("listening", &json!({ "listening": true }));
    let rest = stream::unfold((tap, left), move |(mut tap, left)| async move {
        if left == 0 {
            return None;
        }
        let heard = match until {
            Some(until) => timeout_at(until, tap.next()).await.ok()??,
            None => tap.next().await?,
        };
        Some(match heard {
            Heard::Attempt(tapped) => (event("attempt", &*tapped), (tap, left - 1)),
            Heard::Lost(count) => (event("lost", &json!({ "lost": count })), (tap, left)),
        })
    });
    stream::once(std::future::ready(first)).chain(rest).map(Ok)
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    // JSON has no line breaks of its own.
    event.data(serde_json::to_string(data).unwrap_or_default())
}
