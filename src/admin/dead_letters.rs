//! Dead letters over the API: looked at, exported, sent again, removed.
//!
//! Looking goes through all letters and may take longer than a request is given. An answer that is
//! not there soon is begun with white space, which JSON allows, and goes on with it now and then until
//! it is there; an export is written as it is read. A client that goes away ends the pass.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ask::{MAX_ASK, Path, Query, read};
use super::problem::Problem;
use super::tenancy::Caller;
use super::{State, jobs};
use crate::broker::Refused;
use crate::operations::dead::{self, Choice, Cursor, NotDone, Shown};
use crate::selection::{Mistake, Selection};
use crate::subscription::Rate;

/// Letters on one page.
const MAX_LIMIT: usize = 1_000;
const DEFAULT_LIMIT: usize = 50;
/// After this an answer is begun; a sign of life follows as often.
const PATIENCE: Duration = Duration::from_secs(10);

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new()
        .route("/v1/dead-letters", get(list))
        .route("/v1/dead-letters/groups", get(groups))
        .route("/v1/dead-letters/count", get(count))
        .route("/v1/dead-letters/export", get(export))
        .route("/v1/dead-letters/{id}", get(show))
}

/// Needs the scope `replay`.
pub fn replaying() -> Router<State> {
    Router::new()
        .route("/v1/dead-letters/retry", post(retry))
        .route("/v1/dead-letters/{id}/retry", post(retry_one))
}

/// Needs the scope `admin`.
pub fn removing() -> Router<State> {
    Router::new().route("/v1/dead-letters/drop", post(purge))
}

/// Which letters, in a query.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    filter: String,
    broker: Option<String>,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Paged {
    #[serde(default)]
    filter: String,
    broker: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct On {
    broker: Option<String>,
}

/// What is to be done with which letters.
#[derive(Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterOrder)]
#[serde(deny_unknown_fields)]
struct Change {
    #[serde(default)]
    filter: String,
    broker: Option<String>,
    /// Has to be said where there is no filter.
    #[serde(default)]
    all: bool,
    rate: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// The edited body, if it was edited: as text, or in base64.
#[derive(Default, Deserialize, utoipa::ToSchema)]
#[schema(as = EditedBody)]
#[serde(deny_unknown_fields)]
struct Edited {
    body: Option<String>,
    body_base64: Option<String>,
}

#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    tag = "dead letters",
    operation_id = "listDeadLetters",
    summary = "Dead letters",
    params(Paged),
    responses(
        (status = 200, description = "A page, the oldest first", body = dead::Page),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "Somebody else is at it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    asked: Query<Paged>,
) -> Result<Response, Problem> {
    let Paged {
        filter,
        broker,
        limit,
        cursor,
    } = asked.0;
    let choice = choice(&filter, broker, &caller)?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let why = format!("`limit` is between 1 and {MAX_LIMIT}");
        return Err(Problem::bad_request(why));
    }
    let cursor = cursor.as_deref().map(Cursor::read).transpose()?;
    let work = async move {
        let operations = &state.operations;
        dead::list(operations, &choice, limit, cursor.as_ref()).await
    };
    patiently(work).await
}

#[utoipa::path(
    get,
    path = "/v1/dead-letters/groups",
    tag = "dead letters",
    operation_id = "groupDeadLetters",
    summary = "What dead letters have died of",
    params(Which),
    responses(
        (status = 200, description = "The most frequent first", body = dead::Groups),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "Somebody else is at it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn groups(
    Extract(state): Extract<State>,
    caller: Caller,
    asked: Query<Which>,
) -> Result<Response, Problem> {
    let choice = chosen(asked, &caller)?;
    patiently(async move { dead::groups(&state.operations, &choice).await }).await
}

#[utoipa::path(
    get,
    path = "/v1/dead-letters/count",
    tag = "dead letters",
    operation_id = "countDeadLetters",
    summary = "How many dead letters there are",
    params(Which),
    responses(
        (status = 200, description = "So many", body = dead::Count),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "Somebody else is at it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn count(
    Extract(state): Extract<State>,
    caller: Caller,
    asked: Query<Which>,
) -> Result<Response, Problem> {
    let choice = chosen(asked, &caller)?;
    patiently(async move { dead::count(&state.operations, &choice).await }).await
}

#[utoipa::path(
    get,
    path = "/v1/dead-letters/{id}",
    tag = "dead letters",
    operation_id = "showDeadLetter",
    summary = "One dead letter",
    params(("id" = String, Path, description = "The letter's id, or the start of it"), On),
    responses(
        (status = 200, description = "With headers and body", body = Shown),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "More than one is meant, or somebody else is at it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn show(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    asked: Query<On>,
) -> Result<Response, Problem> {
    let choice = choice("", asked.0.broker, &caller)?;
    patiently(async move { dead::find(&state.operations, &choice, &id).await }).await
}

#[utoipa::path(
    get,
    path = "/v1/dead-letters/export",
    tag = "dead letters",
    operation_id = "exportDeadLetters",
    summary = "All dead letters, a line each",
    params(Which),
    responses(
        (status = 200, description = "All of them, a line each", body = Shown, content_type = "application/x-ndjson"),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "Somebody else is at it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn export(
    Extract(state): Extract<State>,
    caller: Caller,
    asked: Query<Which>,
) -> Result<Response, Problem> {
    let choice = chosen(asked, &caller)?;
    let letters = dead::export(&state.operations, &choice).await?;
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    let lines = stream::unfold(Some(letters), |letters| async {
        let mut letters = letters?;
        let (line, letters) = match line(&mut letters).await? {
            Ok(line) => (Ok(line), Some(letters)),
            Err(refused) => (Err(refused), None),
        };
        Some((line, letters))
    });
    Ok((kind, Body::from_stream(lines)).into_response())
}

/// The next line of an export; an empty one when nothing has come for a while.
async fn line(
    letters: &mut mpsc::Receiver<Result<Shown, Refused>>,
) -> Option<Result<Bytes, Refused>> {
    let Ok(next) = timeout(PATIENCE, letters.recv()).await else {
        return Some(Ok(Bytes::from_static(b"\n")));
    };
    Some(next?.map(|shown| {
        let mut line = serde_json::to_vec(&shown).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }))
}

#[utoipa::path(
    post,
    path = "/v1/dead-letters/retry",
    tag = "dead letters",
    operation_id = "retryDeadLetters",
    summary = "Sends dead letters again",
    request_body(content = Change),
    responses(
        (status = 202, description = "The job that does it", body = crate::operations::Report),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "Somebody else is at it"),
        (status = 429, description = "Too many jobs are at work"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["replay"])),
)]
async fn retry(
    Extract(state): Extract<State>,
    caller: Caller,
    body: Body,
) -> Result<Response, Problem> {
    let ask: Change = read(body, MAX_ASK).await?;
    let choice = explicit(&ask, &caller)?;
    jobs::room_for(&state, &caller)?;
    let rate = ask.rate.as_deref().map(str::parse::<Rate>).transpose();
    let ask = dead::Retry {
        choice,
        rate: rate.map_err(Problem::bad_request)?,
        dry_run: ask.dry_run,
    };
    let job = dead::retry(&state.operations, ask).await?;
    Ok(jobs::accepted(&job, &caller))
}

#[utoipa::path(
    post,
    path = "/v1/dead-letters/drop",
    tag = "dead letters",
    operation_id = "dropDeadLetters",
    summary = "Removes dead letters",
    request_body(content = Change),
    responses(
        (status = 202, description = "The job that does it", body = crate::operations::Report),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "Somebody else is at it"),
        (status = 429, description = "Too many jobs are at work"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn purge(
    Extract(state): Extract<State>,
    caller: Caller,
    body: Body,
) -> Result<Response, Problem> {
    let ask: Change = read(body, MAX_ASK).await?;
    let choice = explicit(&ask, &caller)?;
    jobs::room_for(&state, &caller)?;
    if ask.rate.is_some() {
        return Err(Problem::bad_request("removing has no `rate`"));
    }
    let job = dead::purge(&state.operations, &choice, ask.dry_run).await?;
    Ok(jobs::accepted(&job, &caller))
}

#[utoipa::path(
    post,
    path = "/v1/dead-letters/{id}/retry",
    tag = "dead letters",
    operation_id = "retryDeadLetter",
    summary = "Sends one dead letter again, with another body if one is given",
    params(("id" = String, Path, description = "The letter's id, or the start of it"), On),
    request_body(content = Option<Edited>),
    responses(
        (status = 202, description = "The job that does it", body = crate::operations::Report),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "It is left where it is, more than one is meant, or somebody else is at it"),
        (status = 429, description = "Too many jobs are at work"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["replay"])),
)]
async fn retry_one(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    asked: Query<On>,
    body: Body,
) -> Result<Response, Problem> {
    let choice = choice("", asked.0.broker, &caller)?;
    jobs::room_for(&state, &caller)?;
    // Text may grow to six times its size in JSON, base64 to four thirds.
    let limit = state.max_event_bytes.saturating_mul(2) + MAX_ASK;
    let Edited { body, body_base64 } = read(body, limit).await?;
    let body = match (body, body_base64) {
        (None, None) => None,
        (Some(text), None) => Some(Bytes::from(text)),
        (None, Some(text)) => Some(
            STANDARD
                .decode(text)
                .map_err(|_| Problem::bad_request("`body_base64` is not base64"))?
                .into(),
        ),
        (Some(_), Some(_)) => {
            let why = "`body` and `body_base64` exclude each other";
            return Err(Problem::bad_request(why));
        }
    };
    if body
        .as_ref()
        .is_some_and(|body| body.len() > state.max_event_bytes)
    {
        return Err(Problem::too_large(state.max_event_bytes));
    }
    let job = dead::retry_one(&state.operations, choice, &id, body).await?;
    Ok(jobs::accepted(&job, &caller))
}

fn chosen(Query(asked): Query<Which>, caller: &Caller) -> Result<Choice, Problem> {
    choice(&asked.filter, asked.broker, caller)
}

fn choice(filter: &str, broker: Option<String>, caller: &Caller) -> Result<Choice, Problem> {
    Ok(Choice {
        selection: Selection::parse(filter, Timestamp::now())?,
        broker: broker.map(Into::into),
        tenant: caller.0.clone(),
    })
}

/// The choice, where it is clear that everything is meant when it is.
fn explicit(ask: &Change, caller: &Caller) -> Result<Choice, Problem> {
    let choice = choice(&ask.filter, ask.broker.clone(), caller)?;
    match (choice.selection.is_everything(), ask.all) {
        (true, false) => Err(Problem::bad_request(
            "there is no `filter`: say `\"all\": true` if every letter is meant",
        )),
        (false, true) => Err(Problem::bad_request(
            "`filter` and `\"all\": true` exclude each other",
        )),
        _ => Ok(choice),
    }
}

/// See the module. An error after the answer was begun breaks it off.
async fn patiently<T: Serialize + Send + 'static>(
    work: impl Future<Output = Result<T, NotDone>> + Send + 'static,
) -> Result<Response, Problem> {
    let mut work = Box::pin(work);
    if let Ok(done) = timeout(PATIENCE, &mut work).await {
        return Ok(Json(done?).into_response());
    }
    let rest = stream::unfold(Some(work), |work| async {
        let mut work = work?;
        match timeout(PATIENCE, &mut work).await {
            Err(_) => Some((Ok(Bytes::from_static(b" ")), Some(work))),
            Ok(Ok(done)) => {
                let json = serde_json::to_vec(&done).unwrap_or_default();
                Some((Ok(json.into()), None))
            }
            Ok(Err(error)) => Some((Err(error), None)),
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, Body::from_stream(rest)).into_response())
}

impl From<Mistake> for Problem {
    fn from(mistake: Mistake) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-filter",
            "The filter cannot be read",
            mistake.to_string(),
        )
    }
}

impl From<NotDone> for Problem {
    fn from(not_done: NotDone) -> Self {
        let detail = not_done.to_string();
        match not_done {
            NotDone::UnknownBroker { .. } | NotDone::NotFound(_) => Self::not_found(detail),
            NotDone::BadCursor => Self::bad_request(detail),
            NotDone::TooMany(too_many) => too_many.into(),
            NotDone::Ambiguous { .. } => Self::new(
                StatusCode::CONFLICT,
                "ambiguous",
                "More than one letter is meant",
                detail,
            ),
            NotDone::Unfit(_) => Self::new(
                StatusCode::CONFLICT,
                "not-sent-again",
                "The letter is left where it is",
                detail,
            ),
            NotDone::Busy(_) => Self::new(
                StatusCode::CONFLICT,
                "busy",
                "Somebody else is at it",
                detail,
            ),
            NotDone::Refused(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The broker is not available",
                detail,
            ),
        }
    }
}
