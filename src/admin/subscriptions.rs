//! Subscriptions over the API: pausing, resuming, enabling and verifying one, whoever has made it.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;

use super::State;
use super::ask::Path;
use super::problem::Problem;
use super::tenancy::Caller;
use crate::operations::subscriptions::{Cursor, Listed, Page};
use crate::pipeline::Wanted;

/// What the API needs of those who keep the subscriptions.
#[async_trait]
pub trait Subscriptions: Send + Sync + 'static {
    /// All of them, in the order to be shown in.
    async fn list(&self) -> Vec<Listed>;

    /// At most `most` of those that are wanted, of those too that cannot be used, from the first one
    /// behind `after` on, by name.
    async fn page(&self, wanted: &Wanted, after: Option<&Cursor>, most: usize) -> Page;

    /// The one of this name or uid, if it is of the tenant that asks, if one does.
    async fn one(&self, which: &str, tenant: Option<&str>) -> Option<Listed>;

    /// What is parked here of each, as far as it is of the tenant that asks.
    async fn parked(&self, tenant: Option<&str>) -> Vec<(Arc<str>, u64)>;

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

#[utoipa::path(
    post,
    path = "/v1/subscriptions/{name}/pause",
    tag = "subscriptions",
    operation_id = "pauseSubscription",
    summary = "Matches and holds from now on",
    params(("name" = String, Path, description = "Its name, or its uid")),
    responses(
        (status = 200, description = "As it is now", body = Listed),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "Its state does not allow it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
pub async fn pause(
    state: Extract<State>,
    caller: Caller,
    name: Path<String>,
) -> Result<Json<Listed>, Problem> {
    change(state, caller, name, Change::Pause).await
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions/{name}/resume",
    tag = "subscriptions",
    operation_id = "resumeSubscription",
    summary = "Delivers again, what was held as well",
    params(("name" = String, Path, description = "Its name, or its uid")),
    responses(
        (status = 200, description = "As it is now", body = Listed),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "Its state does not allow it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
pub async fn resume(
    state: Extract<State>,
    caller: Caller,
    name: Path<String>,
) -> Result<Json<Listed>, Problem> {
    change(state, caller, name, Change::Resume).await
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions/{name}/enable",
    tag = "subscriptions",
    operation_id = "enableSubscription",
    summary = "Tries an endpoint again that disabled itself",
    params(("name" = String, Path, description = "Its name, or its uid")),
    responses(
        (status = 200, description = "As it is now", body = Listed),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "Its state does not allow it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
pub async fn enable(
    state: Extract<State>,
    caller: Caller,
    name: Path<String>,
) -> Result<Json<Listed>, Problem> {
    change(state, caller, name, Change::Enable).await
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions/{name}/verify",
    tag = "subscriptions",
    operation_id = "verifySubscription",
    summary = "Asks its endpoint now whether it agrees to get deliveries",
    params(("name" = String, Path, description = "Its name, or its uid")),
    responses(
        (status = 200, description = "As it is now", body = Listed),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "Its state does not allow it"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
pub async fn verify(
    state: Extract<State>,
    caller: Caller,
    name: Path<String>,
) -> Result<Json<Listed>, Problem> {
    change(state, caller, name, Change::Verify).await
}

async fn change(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
    change: Change,
) -> Result<Json<Listed>, Problem> {
    if let Some(tenant) = caller.0.as_deref() {
        let one = state.subscriptions.one(&name, Some(tenant)).await;
        let one = one.ok_or(NotChanged::Unknown)?;
        if change.is_of_endpoint() && one.endpoint != one.name {
            let why = "its endpoint is the operator's, and may be another one's too";
            return Err(NotChanged::Conflict(why.to_owned()).into());
        }
    }
    let changed = state.subscriptions.change(&name, change).await?;
    tracing::info!(subscription = %name, ?change, state = changed.state, "subscription changed over the API");
    Ok(Json(changed))
}
