//! Control over the API: the config read again, what is logged, sources paused and resumed.

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::State;
use super::ask::{MAX_ASK, Path, read};
use super::problem::{Problem, Wrong};
use crate::operations::settings::{Intake, NotReloaded, Reloaded};

/// What the API needs of those who run the bridge.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Reads the config again, as SIGHUP has it done.
    async fn reload(&self) -> Result<Reloaded, NotReloaded>;

    /// What is logged, as `HOOKBRIDGE_LOG` would say it.
    fn log_filter(&self) -> String;

    /// Has something else logged from now on; the error says what is wrong with the filter.
    fn set_log_filter(&self, filter: &str) -> Result<(), String>;

    /// All sources.
    fn intakes(&self) -> Vec<Intake>;

    /// Pauses or resumes one source, or all, durably. Returns those concerned; `None` when there is
    /// no such source.
    async fn pause(
        &self,
        source: Option<&str>,
        paused: bool,
    ) -> anyhow::Result<Option<Vec<Intake>>>;
}

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new().route("/v1/log", get(log))
}

/// Needs the scope `admin`.
pub fn changing() -> Router<State> {
    Router::new()
        .route("/v1/config/reload", post(reload))
        .route("/v1/log", put(set_log))
        .route("/v1/sources/pause", post(pause_all))
        .route("/v1/sources/resume", post(resume_all))
        .route("/v1/sources/{name}/pause", post(pause))
        .route("/v1/sources/{name}/resume", post(resume))
}

/// What is logged.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub filter: String,
}

#[utoipa::path(
    post,
    path = "/v1/config/reload",
    tag = "bridge",
    operation_id = "reloadConfig",
    summary = "Reads the config again",
    responses(
        (status = 200, description = "What has changed", body = Reloaded),
        (status = 409, description = "It runs without a config file"),
        (status = 422, description = "The file has problems, each with its place"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn reload(Extract(state): Extract<State>) -> Result<Json<Reloaded>, Problem> {
    Ok(Json(state.control.reload().await?))
}

#[utoipa::path(
    get,
    path = "/v1/log",
    tag = "bridge",
    operation_id = "showLog",
    summary = "What is logged",
    responses(
        (status = 200, description = "As `HOOKBRIDGE_LOG` would say it", body = Log),
    ),
    security(("token" = ["read"])),
)]
async fn log(Extract(state): Extract<State>) -> Json<Log> {
    let filter = state.control.log_filter();
    Json(Log { filter })
}

#[utoipa::path(
    put,
    path = "/v1/log",
    tag = "bridge",
    operation_id = "setLog",
    summary = "Has something else logged",
    request_body(content = Log),
    responses(
        (status = 200, description = "What is logged now", body = Log),
    ),
    security(("token" = ["admin"])),
)]
async fn set_log(Extract(state): Extract<State>, body: Body) -> Result<Json<Log>, Problem> {
    let Log { filter } = read(body, MAX_ASK).await?;
    let set = state.control.set_log_filter(&filter);
    set.map_err(Problem::bad_request)?;
    let filter = state.control.log_filter();
    Ok(Json(Log { filter }))
}

#[utoipa::path(
    post,
    path = "/v1/sources/pause",
    tag = "sources",
    operation_id = "pauseSources",
    summary = "Takes nothing from any source from now on",
    responses(
        (status = 200, description = "All of them", body = super::openapi::IntakesShown),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn pause_all(state: Extract<State>) -> Result<Json<Value>, Problem> {
    set_paused(state, None, true).await
}

#[utoipa::path(
    post,
    path = "/v1/sources/resume",
    tag = "sources",
    operation_id = "resumeSources",
    summary = "Takes from all sources again",
    responses(
        (status = 200, description = "All of them", body = super::openapi::IntakesShown),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn resume_all(state: Extract<State>) -> Result<Json<Value>, Problem> {
    set_paused(state, None, false).await
}

#[utoipa::path(
    post,
    path = "/v1/sources/{name}/pause",
    tag = "sources",
    operation_id = "pauseSource",
    summary = "Takes nothing from a source from now on",
    params(("name" = String, Path, description = "The source's name")),
    responses(
        (status = 200, description = "As it is now", body = super::openapi::IntakesShown),
        (status = 404, description = "There is no such source"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn pause(state: Extract<State>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    set_paused(state, Some(&name), true).await
}

#[utoipa::path(
    post,
    path = "/v1/sources/{name}/resume",
    tag = "sources",
    operation_id = "resumeSource",
    summary = "Takes from a source again",
    params(("name" = String, Path, description = "The source's name")),
    responses(
        (status = 200, description = "As it is now", body = super::openapi::IntakesShown),
        (status = 404, description = "There is no such source"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn resume(state: Extract<State>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    set_paused(state, Some(&name), false).await
}

async fn set_paused(
    Extract(state): Extract<State>,
    source: Option<&str>,
    paused: bool,
) -> Result<Json<Value>, Problem> {
    match state.control.pause(source, paused).await {
        Ok(Some(sources)) => Ok(Json(json!({ "sources": sources }))),
        Ok(None) => Err(Problem::not_found("there is no such source")),
        Err(error) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The change cannot be made now",
            format!("{error:#}"),
        )),
    }
}

impl From<NotReloaded> for Problem {
    fn from(why: NotReloaded) -> Self {
        let detail = why.to_string();
        let title = "The config is not reloaded";
        match why {
            NotReloaded::NoFile => Self::new(StatusCode::CONFLICT, "no-config-file", title, detail),
            NotReloaded::Invalid(flaws) => {
                let wrong = flaws
                    .into_iter()
                    .map(|flaw| Wrong::in_file(flaw.line, flaw.column, flaw.message, flaw.help));
                Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid-config",
                    title,
                    detail,
                )
                .with(wrong.collect())
            }
            NotReloaded::Failed(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                title,
                detail,
            ),
        }
    }
}
