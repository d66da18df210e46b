//! Health, version and metrics.

use axum::Json;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::State;

/// What the process is made of, and whether it works. Receivers are not part of it.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    pub components: Vec<Component>,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Component {
    /// Such as `broker shop`, `store` or `config`.
    pub name: String,
    pub state: Condition,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    Ready,
    Starting,
    Down,
}

impl Readiness {
    /// Only when every component is.
    pub fn is_ready(&self) -> bool {
        self.components
            .iter()
            .all(|component| component.state == Condition::Ready)
    }
}

/// The process is alive if it can say so.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "bridge",
    operation_id = "isAlive",
    summary = "Whether the process is alive",
    responses(
        (status = 200, description = "The process is alive", body = String, content_type = "text/plain"),
    ),
)]
pub async fn alive() -> &'static str {
    "ok"
}

#[utoipa::path(
    get,
    path = "/readyz",
    tag = "bridge",
    operation_id = "isReady",
    summary = "Whether everything works",
    responses(
        (status = 200, description = "Everything works", body = super::openapi::ReadinessShown),
        (status = 503, description = "Something does not work", body = super::openapi::ReadinessShown),
    ),
)]
pub async fn ready(Extract(state): Extract<State>) -> Response {
    let readiness = (state.readiness)();
    let ready = readiness.is_ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "ready": ready, "components": readiness.components });
    (status, Json(body)).into_response()
}

#[utoipa::path(
    get,
    path = "/version",
    tag = "bridge",
    operation_id = "showVersion",
    summary = "What runs here",
    responses(
        (status = 200, description = "What runs here", body = super::openapi::VersionShown),
    ),
)]
pub async fn version(Extract(state): Extract<State>) -> Response {
    Json(json!({ "name": "hookbridge", "version": state.version })).into_response()
}

#[utoipa::path(
    get,
    path = "/metrics",
    tag = "bridge",
    operation_id = "showMetrics",
    summary = "Metrics",
    responses(
        (status = 200, description = "In the format of OpenMetrics", body = String, content_type = "application/openmetrics-text"),
    ),
    security(("token" = ["read"])),
)]
pub async fn metrics(Extract(state): Extract<State>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.meters.encode()).into_response()
}
