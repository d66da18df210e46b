//! Subscriptions over the API: what there is, and pausing, resuming, enabling and verifying one.

use async_trait::async_trait;
use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::State;
use super::ask::Path;
use super::problem::Problem;
use crate::pipeline::HandshakeStatus;

/// What the API needs of those who keep the subscriptions.
#[async_trait]
pub trait Subscriptions: Send + Sync + 'static {
    /// All of them, in the order to be shown in.
    async fn list(&self) -> Vec<Listed>;

    /// Makes the change durably and returns what came of it. A change that changes nothing is fine.
    async fn change(&self, name: &str, change: Change) -> Result<Listed, NotChanged>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Matched and held from now on.
    Pause,
    /// No longer paused.
    Resume,
    /// No longer disabled by its receiver.
    Enable,
    /// Its endpoint is asked now whether it agrees to get deliveries.
    Verify,
}

impl Change {
    /// Whether it concerns all subscriptions of the endpoint.
    pub fn is_of_endpoint(self) -> bool {
        matches!(self, Self::Enable | Self::Verify)
    }
}

/// A subscription as it is shown, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub name: String,
    pub uid: String,
    /// `active`, `paused`, `disabled`, `unverified` or `not_enabled`.
    pub state: &'static str,
    /// Why it is disabled, for instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub topics: Vec<String>,
    /// The endpoint's name.
    pub endpoint: String,
    /// Scheme, host and port; never the path.
    pub url: String,
    /// Of the endpoint, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake: Option<HandshakeStatus>,
    /// Parked by this instance and not seen again.
    pub parked: u64,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotChanged {
    #[error("there is no such subscription")]
    Unknown,
    /// It is in a state that the change does not apply to.
    #[error("{0}")]
    Conflict(String),
    #[error("the store does not take the change: {0}")]
    Unavailable(String),
}

impl From<NotChanged> for Problem {
    fn from(not_changed: NotChanged) -> Self {
        let detail = not_changed.to_string();
        match not_changed {
            NotChanged::Unknown => Self::not_found(detail),
            NotChanged::Conflict(_) => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                "The subscription is not in a state for this",
                detail,
            ),
            NotChanged::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The change cannot be made now",
                detail,
            ),
        }
    }
}

pub async fn list(Extract(state): Extract<State>) -> Response {
    let subscriptions = state.subscriptions.list().await;
    Json(json!({ "subscriptions": subscriptions })).into_response()
}

pub async fn pause(state: Extract<State>, name: Path<String>) -> Result<Json<Listed>, Problem> {
    change(state, name, Change::Pause).await
}

pub async fn resume(state: Extract<State>, name: Path<String>) -> Result<Json<Listed>, Problem> {
    change(state, name, Change::Resume).await
}

pub async fn enable(state: Extract<State>, name: Path<String>) -> Result<Json<Listed>, Problem> {
    change(state, name, Change::Enable).await
}

pub async fn verify(state: Extract<State>, name: Path<String>) -> Result<Json<Listed>, Problem> {
    change(state, name, Change::Verify).await
}

async fn change(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    change: Change,
) -> Result<Json<Listed>, Problem> {
    let changed = state.subscriptions.change(&name, change).await?;
    tracing::info!(subscription = %name, ?change, state = changed.state, "subscription changed over the API");
    Ok(Json(changed))
}
