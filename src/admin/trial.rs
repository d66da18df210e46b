//! Tests over the API: a sample, or an event of the past, sent to a subscription's endpoint at once.

use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::State;
use super::ask::{Path, read};
use super::problem::Problem;
use super::tenancy::Caller;
use crate::operations::trial::{self, NotTested, Sample, What};
use crate::pipeline::{NotTried, Tried};

/// Bytes of a request: a sample of up to 1 MiB.
const MAX_BODY: usize = 2 << 20;

/// Needs the scope `admin`.
pub fn sending() -> Router<State> {
    Router::new().route("/v1/subscriptions/{name}/test", post(test))
}

/// What is to be sent; a sample made up here unless it says so.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = TestOrder)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The id of an event that was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Box<Sample>>,
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions/{name}/test",
    tag = "subscriptions",
    operation_id = "testSubscription",
    summary = "Sends a sample or an event of the past to its endpoint, once and at once",
    params(("name" = String, Path, description = "Its name, or its uid")),
    request_body(content = Option<Trial>),
    responses(
        (status = 200, description = "What was sent and what came back, whatever that is", body = Tried),
        (status = 404, description = "There is no such subscription, or no such event any more"),
        (status = 409, description = "Nothing may be sent to it now"),
        (status = 422, description = "The event is not what its source says it is"),
        (status = 429, description = "Too many tests are under way"),
        (status = 503, description = "The schema registry does not answer"),
    ),
    security(("token" = ["admin"])),
)]
async fn test(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Tried>, Problem> {
    let Trial { event, sample } = read(body, MAX_BODY).await?;
    let what = match (event, sample) {
        (Some(id), None) => What::Past(id),
        (None, sample) => What::Sample(sample.unwrap_or_default()),
        (Some(_), Some(_)) => {
            let why = "`event` and `sample` exclude each other";
            return Err(Problem::bad_request(why));
        }
    };
    let tenant = caller.0.as_ref();
    let tried = trial::run(&state.operations, &state.traces, &name, what, tenant);
    Ok(Json(tried.await?))
}

impl From<NotTested> for Problem {
    fn from(not_tested: NotTested) -> Self {
        let detail = not_tested.to_string();
        let title = "No test is sent";
        let refused = |status, name| Self::new(status, name, title, detail.clone());
        match not_tested {
            NotTested::BadSample(_) => Self::bad_request(detail),
            NotTested::NoEvent { .. } => Self::not_found(detail),
            NotTested::NotIts => refused(StatusCode::CONFLICT, "conflict"),
            NotTested::NotTried(why) => match why {
                NotTried::Unknown => Self::not_found(detail),
                NotTried::Unverified | NotTried::Shadow => {
                    refused(StatusCode::CONFLICT, "conflict")
                }
                NotTried::Undecodable(_) => {
                    refused(StatusCode::UNPROCESSABLE_ENTITY, "undecodable")
                }
                NotTried::NoSchema(_) => refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
                NotTried::TooMany => refused(StatusCode::TOO_MANY_REQUESTS, "too-many-tests"),
            },
        }
    }
}
