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

#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// Such as `broker shop`, `store` or `config`.
    pub name: String,
    pub state: Condition,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
pub async fn alive() -> &'static str {
    "ok"
}

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

pub async fn version(Extract(state): Extract<State>) -> Response {
    Json(json!({ "name": "hookbridge", "version": state.version })).into_response()
}

pub async fn metrics(Extract(state): Extract<State>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.meters.encode()).into_response()
}
