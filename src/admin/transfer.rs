//! Subscriptions of the API written out and taken in again, a line each, sealed as they are.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::State;
use super::ask::Query;
use super::problem::{Problem, Wrong};
use super::registration::{of_kind, registry};
use super::tenancy::Caller;
use crate::operations::subscriptions::{Flawed, Imported, Reached, Refused, Registry};

const LINES: &str = "application/x-ndjson";
/// Bytes of an import; a larger one is made in parts.
const MAX_BODY: usize = 16 << 20;

/// Needs the scope `admin`.
pub fn moving() -> Router<State> {
    Router::new()
        .route("/v1/subscriptions/export", get(export))
        .route("/v1/subscriptions/import", post(import))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Whose {
    tenant: Option<String>,
}

#[utoipa::path(
    get,
    path = "/v1/subscriptions/export",
    tag = "subscriptions",
    operation_id = "exportSubscriptions",
    summary = "All subscriptions of the API, a line each, their endpoints sealed as they are",
    params(Whose),
    responses(
        (status = 200, description = "To be kept, and given to `importSubscriptions`", body = super::openapi::ExportedLine, content_type = "application/x-ndjson"),
        (status = 503, description = "The store is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn export(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(whose): Query<Whose>,
) -> Result<Response, Problem> {
    let tenant = caller.about(whose.tenant)?.map(Arc::from);
    let registry = registry(&state)?.clone();
    // What cannot be read at all is a problem, not an answer that breaks off.
    let first = page(&registry, tenant.as_ref(), None);
    if let Err(why) = first {
        return Err(why.into());
    }
    let pages = stream::unfold(Some(first), move |page| {
        let (registry, tenant) = (registry.clone(), tenant.clone());
        async move {
            match page?.transpose()? {
                Ok((lines, last)) => {
                    // Others have their turn between two pages.
                    tokio::task::yield_now().await;
                    let next = self::page(&registry, tenant.as_ref(), Some(&last));
                    Some((Ok(lines), Some(next)))
                }
                Err(why) => Some((Err(why), None)),
            }
        }
    });
    Ok(lines(Body::from_stream(pages)))
}

type Page = Result<Option<(Bytes, Reached)>, Refused>;

fn page(registry: &Registry, tenant: Option<&Arc<str>>, after: Option<&Reached>) -> Page {
    let Some((page, last)) = registry.exported(tenant, after)? else {
        return Ok(None);
    };
    let mut written = Vec::new();
    page.iter().for_each(|line| write(&mut written, line));
    Ok(Some((written.into(), last)))
}

fn write(into: &mut Vec<u8>, line: &impl Serialize) {
    // Texts, numbers and times can be written.
    let _ = serde_json::to_writer(&mut *into, line);
    into.push(b'\n');
}

fn lines(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(LINES)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body).into_response()
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct How {
    /// Check everything and do nothing.
    #[serde(default)]
    dry_run: bool,
    /// What the first line is counted as, where this is a part of a file.
    #[serde(default)]
    first_line: Option<u32>,
    /// As one who acts for this tenant: a line of another one is refused.
    tenant: Option<String>,
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions/import",
    tag = "subscriptions",
    operation_id = "importSubscriptions",
    summary = "Takes in lines of an export: all are checked before the first one is made",
    params(How),
    request_body(content = super::openapi::ExportedLine, content_type = "application/x-ndjson"),
    responses(
        (status = 200, description = "What became of each, a line each, as it is done", body = Imported, content_type = "application/x-ndjson"),
        (status = 413, description = "It is to be made in parts"),
        (status = 415, description = "The body is of another kind"),
        (status = 422, description = "Mistakes, each with its line; nothing was done"),
        (status = 503, description = "The store is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn import(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(how): Query<How>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.about(how.tenant)?.map(Arc::from);
    let registry: &Arc<Registry> = registry(&state)?;
    of_kind(&headers, &[LINES])?;
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The import is too large",
            format!(
                "the body is larger than {MAX_BODY} bytes, or was broken off: import it in parts"
            ),
        )
    })?;
    let before = usize::try_from(how.first_line.unwrap_or(1).saturating_sub(1)).unwrap_or_default();
    let checked = registry.check_lines(body, tenant.clone()).await;
    let checked = checked.map_err(|flawed| refused(flawed, before))?;
    let came = registry.import(checked, how.dry_run, tenant);
    let results = stream::unfold(came, move |mut came| async move {
        let mut imported = came.recv().await?;
        imported.line += before;
        let mut line = Vec::new();
        write(&mut line, &imported);
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), came))
    });
    Ok(lines(Body::from_stream(results)))
}

fn refused(flawed: Vec<Flawed>, before: usize) -> Problem {
    let wrong = flawed.into_iter().map(|Flawed { line, mistake }| {
        Wrong::new(&mistake.pointer, mistake.message, mistake.help).on_line(line + before)
    });
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid",
        "The import has mistakes",
        "nothing was done; `errors` says what is wrong, and where",
    )
    .with(wrong.collect())
}
