//! Sources over the API: where events come from, and how far back they can be replayed.

use axum::extract::State as Extract;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::State;
use crate::operations::sources;

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new().route("/v1/sources", get(list))
}

#[utoipa::path(
    get,
    path = "/v1/sources",
    tag = "sources",
    operation_id = "listSources",
    summary = "Sources, and how far back each can be replayed",
    responses(
        (status = 200, description = "All of them", body = super::openapi::SourcesShown),
    ),
    security(("token" = ["read"])),
)]
async fn list(Extract(state): Extract<State>) -> Response {
    let mut sources = sources::list(&state.operations).await;
    for intake in state.control.intakes() {
        let mut found = sources.iter_mut();
        if let Some(source) = found.find(|source| source.name == intake.name) {
            source.paused = intake.paused;
        }
    }
    Json(json!({ "sources": sources })).into_response()
}
