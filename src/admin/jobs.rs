//! Jobs over the API: what is at work, how far it is, and asking it to stop.
//!
//! What starts a job answers 202 with its report; `GET /v1/jobs/{id}` shows it until it has ended
//! and for a while after, `DELETE` asks it to stop.

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde_json::json;

use super::State;
use super::ask::Path;
use super::problem::Problem;
use super::tenancy::Caller;
use crate::operations::job::TooMany;
use crate::operations::{Job, Report};

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new()
        .route("/v1/jobs", get(list))
        .route("/v1/jobs/{id}", get(show))
}

/// Needs the scope `replay`.
pub fn stopping() -> Router<State> {
    Router::new().route("/v1/jobs/{id}", delete(cancel))
}

/// The answer to what has started a job, which is its tenant's from now on.
pub fn accepted(job: &Job, caller: &Caller) -> Response {
    if let Some(tenant) = &caller.0 {
        job.belongs_to(tenant.clone());
    }
    (StatusCode::ACCEPTED, Json(job.report())).into_response()
}

/// Refuses more jobs to a tenant that has its share of them.
pub fn room_for(state: &State, caller: &Caller) -> Result<(), Problem> {
    match caller.0.as_deref() {
        Some(tenant) => Ok(state.operations.jobs.room_for(tenant)?),
        None => Ok(()),
    }
}

#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    operation_id = "listJobs",
    summary = "Jobs",
    responses(
        (status = 200, description = "Those at work, and the last hundred that have ended", body = super::openapi::JobsShown),
    ),
    security(("token" = ["read"])),
)]
async fn list(Extract(state): Extract<State>, caller: Caller) -> Response {
    let jobs = state.operations.jobs.list(caller.0.as_deref());
    Json(json!({ "jobs": jobs })).into_response()
}

#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    operation_id = "showJob",
    summary = "One job",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "How far it is", body = Report),
        (status = 404, description = "There is no such thing"),
    ),
    security(("token" = ["read"])),
)]
async fn show(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Report>, Problem> {
    let job = state.operations.jobs.get(&id);
    let job = job.filter(|job| job.is_seen_by(caller.0.as_deref()));
    Ok(Json(job.ok_or_else(unknown)?.report()))
}

#[utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    operation_id = "cancelJob",
    summary = "Asks a job to stop",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "How far it came", body = Report),
        (status = 404, description = "There is no such thing"),
    ),
    security(("token" = ["replay"])),
)]
async fn cancel(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Report>, Problem> {
    let jobs = &state.operations.jobs;
    let job = jobs.get(&id);
    job.filter(|job| job.is_seen_by(caller.0.as_deref()))
        .ok_or_else(unknown)?;
    let report = jobs.cancel(&id).ok_or_else(unknown)?;
    Ok(Json(report))
}

fn unknown() -> Problem {
    Problem::not_found(
        "there is no such job: jobs are forgotten with their process, and after a hundred others",
    )
}

impl From<TooMany> for Problem {
    fn from(too_many: TooMany) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-jobs",
            "Too many jobs are at work",
            too_many.to_string(),
        )
    }
}
