//! Making, showing, changing and removing subscriptions.
//!
//! A body is one subscription in the words of the config, as JSON, with its `name`. Whatever is wrong
//! with it is told at once, each with a JSON pointer. Entity tags are for `If-Match`, so that nobody
//! overwrites what they have not seen.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, State as Extract};
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::State;
use super::ask::{Path, Query};
use super::problem::{Problem, Wrong};
use super::strict::Strict;
use super::tenancy::Caller;
use crate::operations::subscriptions::{
    Answered, Cursor, DEFAULT_OVERLAP, Edit, LONGEST_OVERLAP, MOST_ON_A_PAGE, Once, Page,
    Precondition, Refused, Registry, Rotation, Wish,
};
use crate::pipeline::Wanted;
use crate::selection::when;
use crate::subscription::Secret;

/// Bytes of a subscription.
const MAX_BODY: usize = 1 << 20;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LONGEST_KEY: usize = 255;

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new()
        .route("/v1/subscriptions", get(list))
        .route("/v1/subscriptions/{name}", get(show))
}

/// Needs the scope `admin`.
pub fn changing() -> Router<State> {
    Router::new()
        .route("/v1/subscriptions", post(create))
        .route("/v1/subscriptions/{name}", put(replace))
        .route("/v1/subscriptions/{name}", patch(merge))
        .route("/v1/subscriptions/{name}", delete(remove))
        .route("/v1/subscriptions/{name}/rotate", post(rotate))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Which {
    limit: Option<usize>,
    cursor: Option<String>,
    tenant: Option<String>,
    /// `team:crm`, several with commas between them.
    label: Option<String>,
}

#[utoipa::path(
    get,
    path = "/v1/subscriptions",
    tag = "subscriptions",
    operation_id = "listSubscriptions",
    summary = "All subscriptions, those of the config file too",
    params(Which),
    responses(
        (status = 200, description = "A page, by name", body = super::openapi::SubscriptionsPage),
    ),
    security(("token" = ["read"])),
)]
async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Value>, Problem> {
    let limit = which.limit.unwrap_or(MOST_ON_A_PAGE);
    if !(1..=MOST_ON_A_PAGE).contains(&limit) {
        let detail = format!("`limit` is a number from 1 to {MOST_ON_A_PAGE}");
        return Err(Problem::bad_request(detail));
    }
    let read = |text: &str| {
        let detail = "`cursor` is not one that was handed out with a page";
        Cursor::read(text).ok_or_else(|| Problem::bad_request(detail))
    };
    let after = which.cursor.as_deref().map(read).transpose()?;
    let tenant = caller.about(which.tenant)?;
    let wanted = Wanted {
        tenant: tenant.map(Arc::from),
        labels: labels(which.label.as_deref().unwrap_or_default())?,
    };
    let subscriptions = &state.subscriptions;
    let Page { listed, next } = subscriptions.page(&wanted, after.as_ref(), limit).await;
    let mut answer = json!({ "subscriptions": listed });
    if let Some(next) = next {
        answer["next"] = next.written().into();
    }
    Ok(Json(answer))
}

fn labels(text: &str) -> Result<Vec<(String, String)>, Problem> {
    let each = text.split(',').filter(|label| !label.is_empty());
    each.map(|label| {
        let parts = label.split_once(':');
        let (name, value) = parts.ok_or_else(|| {
            let detail = "`label` is a name and a value such as `team:crm`";
            Problem::bad_request(detail)
        })?;
        Ok((name.to_owned(), value.to_owned()))
    })
    .collect()
}

#[utoipa::path(
    get,
    path = "/v1/subscriptions/{name}",
    tag = "subscriptions",
    operation_id = "showSubscription",
    summary = "One subscription",
    params(("name" = String, Path, description = "Its name, or its uid")),
    responses(
        (status = 200, description = "Secrets are masked", body = crate::operations::subscriptions::Shown),
        (status = 404, description = "There is no such subscription"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["read"])),
)]
async fn show(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let answered = registry(&state)?.show(&name, caller.0.as_ref()).await?;
    Ok(written(StatusCode::OK, answered))
}

/// What every change has: where it is made, and how it is wished for.
struct Asked {
    registry: Arc<Registry>,
    wish: Wish,
}

impl FromRequestParts<State> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct How {
            #[serde(default)]
            dry_run: bool,
        }
        let Query(how) = Query::<How>::from_request_parts(parts, state).await?;
        let Caller(tenant) = Caller::from_request_parts(parts, state).await?;
        Ok(Self {
            registry: registry(state)?.clone(),
            wish: Wish {
                dry_run: how.dry_run,
                if_match: precondition(&parts.headers)?,
                tenant,
            },
        })
    }
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions",
    tag = "subscriptions",
    operation_id = "makeSubscription",
    summary = "Makes a subscription",
    params(("dry_run" = Option<bool>, Query, description = "Check everything and do nothing"), ("Idempotency-Key" = Option<String>, Header, description = "With the same key and body the answer is the same for a day")),
    request_body(content = super::openapi::SubscriptionWanted, content_type = "application/json"),
    responses(
        (status = 201, description = "Made; `secret` is shown this once", body = crate::operations::subscriptions::Shown, headers(("Location" = String, description = "Where it is"), ("ETag" = String, description = "For `If-Match`"))),
        (status = 200, description = "What would be made (`dry_run`)", body = crate::operations::subscriptions::Shown),
        (status = 409, description = "The name is taken"),
        (status = 413, description = "The body or the subscription is too large"),
        (status = 415, description = "The body is of another kind"),
        (status = 422, description = "Mistakes, each with its JSON pointer"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn create(
    Asked { registry, wish }: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let once = once(&headers)?;
    let document = read(&headers, body, &["application/json"]).await?;
    let dry_run = wish.dry_run;
    let answered = registry.create(document, wish, once).await?;
    let location = format!("/v1/subscriptions/{}", answered.name);
    let mut response = match dry_run {
        true => return Ok(written(StatusCode::OK, answered)),
        false => written(StatusCode::CREATED, answered),
    };
    let location = HeaderValue::try_from(location).expect("names are ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

#[utoipa::path(
    put,
    path = "/v1/subscriptions/{name}",
    tag = "subscriptions",
    operation_id = "replaceSubscription",
    summary = "Replaces a subscription as a whole",
    params(("name" = String, Path, description = "Its name, or its uid"), ("dry_run" = Option<bool>, Query, description = "Check everything and do nothing"), ("If-Match" = Option<String>, Header, description = "An `ETag`: only if nobody has made a change since")),
    request_body(content = super::openapi::SubscriptionWanted, content_type = "application/json"),
    responses(
        (status = 200, description = "As it is now", body = crate::operations::subscriptions::Shown),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "It belongs to the config file, its name is taken, or its state does not allow it"),
        (status = 412, description = "It was changed since"),
        (status = 413, description = "The body or the subscription is too large"),
        (status = 415, description = "The body is of another kind"),
        (status = 422, description = "Mistakes, each with its JSON pointer"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn replace(
    Path(name): Path<String>,
    Asked { registry, wish }: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let document = read(&headers, body, &["application/json"]).await?;
    let answered = registry.change(name, Edit::Replace(document), wish).await?;
    Ok(written(StatusCode::OK, answered))
}

#[utoipa::path(
    patch,
    path = "/v1/subscriptions/{name}",
    tag = "subscriptions",
    operation_id = "changeSubscription",
    summary = "Changes a part of a subscription by a merge patch (RFC 7396)",
    params(("name" = String, Path, description = "Its name, or its uid"), ("dry_run" = Option<bool>, Query, description = "Check everything and do nothing"), ("If-Match" = Option<String>, Header, description = "An `ETag`: only if nobody has made a change since")),
    request_body(content = super::openapi::SubscriptionPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, description = "As it is now", body = crate::operations::subscriptions::Shown),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "It belongs to the config file, its name is taken, or its state does not allow it"),
        (status = 412, description = "It was changed since"),
        (status = 413, description = "The body or the subscription is too large"),
        (status = 415, description = "The body is of another kind"),
        (status = 422, description = "Mistakes, each with its JSON pointer"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn merge(
    Path(name): Path<String>,
    Asked { registry, wish }: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let kinds = ["application/merge-patch+json", "application/json"];
    let patch = read(&headers, body, &kinds).await?;
    let answered = registry.change(name, Edit::Merge(patch), wish).await?;
    Ok(written(StatusCode::OK, answered))
}

#[utoipa::path(
    delete,
    path = "/v1/subscriptions/{name}",
    tag = "subscriptions",
    operation_id = "removeSubscription",
    summary = "Removes a subscription for good",
    params(("name" = String, Path, description = "Its name, or its uid"), ("dry_run" = Option<bool>, Query, description = "Check everything and do nothing"), ("If-Match" = Option<String>, Header, description = "An `ETag`: only if nobody has made a change since")),
    responses(
        (status = 204, description = "Removed for good"),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "It belongs to the config file, its name is taken, or its state does not allow it"),
        (status = 412, description = "It was changed since"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn remove(
    Path(name): Path<String>,
    Asked { registry, wish }: Asked,
) -> Result<StatusCode, Problem> {
    registry.remove(name, wish).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a secret is to be replaced with.
#[derive(Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// How long the old one signs beside it: `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<String>,
    /// One is made where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

#[utoipa::path(
    post,
    path = "/v1/subscriptions/{name}/rotate",
    tag = "subscriptions",
    operation_id = "rotateSecret",
    summary = "Replaces its secret, the old one signing beside it for a while",
    params(("name" = String, Path, description = "Its name, or its uid"), ("dry_run" = Option<bool>, Query, description = "Check everything and do nothing"), ("If-Match" = Option<String>, Header, description = "An `ETag`: only if nobody has made a change since")),
    request_body(content = Option<Rotate>, content_type = "application/json"),
    responses(
        (status = 200, description = "As it is now, with the new `secret` if it was made here", body = crate::operations::subscriptions::Shown),
        (status = 404, description = "There is no such subscription"),
        (status = 409, description = "It belongs to the config file, its name is taken, or its state does not allow it"),
        (status = 412, description = "It was changed since"),
        (status = 413, description = "The body or the subscription is too large"),
        (status = 415, description = "The body is of another kind"),
        (status = 422, description = "Mistakes, each with its JSON pointer"),
        (status = 503, description = "The broker, the store or the journal is not available"),
    ),
    security(("token" = ["admin"])),
)]
async fn rotate(
    Path(name): Path<String>,
    Asked { registry, wish }: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = bytes(body).await?;
    let asked: Rotate = match body.trim_ascii() {
        b"" => Rotate::default(),
        body => {
            of_kind(&headers, &["application/json"])?;
            serde_json::from_slice(body).map_err(|why| Problem::bad_request(why.to_string()))?
        }
    };
    let rotation = Rotation {
        overlap: asked
            .overlap
            .as_deref()
            .map_or(Ok(DEFAULT_OVERLAP), overlap)?,
        secret: asked.secret.map(Secret::new),
    };
    let answered = registry.rotate(name, rotation, wish).await?;
    Ok(written(StatusCode::OK, answered))
}

fn overlap(text: &str) -> Result<Duration, Problem> {
    let wrong = || {
        let days = LONGEST_OVERLAP.as_secs() / 86_400;
        let detail = format!("`overlap` is a duration from `0s` to `{days}d`, such as `24h`");
        let wrong = Wrong::new("/overlap", detail, None);
        invalid().with(vec![wrong])
    };
    let read = when::span(text).ok_or_else(wrong)?;
    (read <= LONGEST_OVERLAP).then_some(read).ok_or_else(wrong)
}

pub(super) fn registry(state: &State) -> Result<&Arc<Registry>, Problem> {
    state.registry.as_ref().ok_or_else(|| {
        let detail = "no subscriptions are kept here";
        Problem::from(Refused::Unavailable(detail.to_owned()))
    })
}

fn written(status: StatusCode, answered: Answered) -> Response {
    let mut response = (status, Json(answered.body)).into_response();
    let headers = response.headers_mut();
    // It may show a secret.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let etag = answered.etag.map(HeaderValue::try_from);
    if let Some(Ok(etag)) = etag {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// The caller's key, if there is one.
fn once(headers: &HeaderMap) -> Result<Option<Once>, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match key.to_str() {
        Ok(text) if !text.is_empty() && text.len() <= LONGEST_KEY => {
            let caller = headers.get(header::AUTHORIZATION);
            let caller = caller.map_or(&b""[..], HeaderValue::as_bytes);
            Ok(Some(Once::new(caller, text)))
        }
        _ => Err(Problem::bad_request(format!(
            "`Idempotency-Key` has 1 to {LONGEST_KEY} visible characters"
        ))),
    }
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let mut tags = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        let text = value
            .to_str()
            .map_err(|_| Problem::bad_request("`If-Match` cannot be read"))?;
        let each = text.split(',').map(|tag| tag.trim().to_owned());
        tags.extend(each.filter(|tag| !tag.is_empty()));
    }
    // One that is there and says nothing comes of a variable that was empty: not a wish for anything.
    if tags.is_empty() && headers.contains_key(header::IF_MATCH) {
        return Err(Problem::bad_request(
            "`If-Match` is there and has no ETag in it",
        ));
    }
    let any = tags.iter().any(|tag| tag == "*");
    Ok(match tags.is_empty() || any {
        true => Precondition::None,
        false => Precondition::OneOf(tags),
    })
}

async fn bytes(body: Body) -> Result<bytes::Bytes, Problem> {
    to_bytes(body, MAX_BODY).await.map_err(|_| {
        too_large(format!(
            "the body is larger than {MAX_BODY} bytes, or was broken off"
        ))
    })
}

/// The JSON of a body that is of one of these kinds.
async fn read(headers: &HeaderMap, body: Body, kinds: &[&str]) -> Result<Value, Problem> {
    of_kind(headers, kinds)?;
    let body = bytes(body).await?;
    let read: Strict = serde_json::from_slice(&body)
        .map_err(|why| Problem::bad_request(format!("this is not JSON: {why}")))?;
    Ok(read.0)
}

pub(super) fn of_kind(headers: &HeaderMap, kinds: &[&str]) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if kinds
        .iter()
        .any(|known| essence.eq_ignore_ascii_case(known))
    {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "wrong-content-type",
        "The body is of another kind",
        format!("send it with `Content-Type: {}`", kinds[0]),
    ))
}

fn too_large(detail: String) -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too-large",
        "The subscription is too large",
        detail,
    )
}

fn invalid() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid",
        "The body has mistakes",
        "nothing was done; `errors` says what is wrong, and where",
    )
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        let conflict = |title| Self::new(StatusCode::CONFLICT, "conflict", title, detail.clone());
        match refused {
            Refused::Unknown => Self::not_found(detail),
            Refused::OfConfig(_) => Self::new(
                StatusCode::CONFLICT,
                "read-only",
                "The subscription cannot be changed here",
                detail,
            ),
            Refused::Taken(_) => conflict("The name is taken"),
            Refused::Conflict(_) => conflict("The subscription is not in a state for this"),
            Refused::Changed => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "changed",
                "The subscription is not what it was",
                detail,
            ),
            Refused::Invalid(mistakes) => {
                let wrong = mistakes
                    .into_iter()
                    .map(|mistake| Wrong::new(&mistake.pointer, mistake.message, mistake.help));
                invalid().with(wrong.collect())
            }
            Refused::NoKey => {
                let wrong = Wrong::new("/endpoint", detail.clone(), None);
                Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "no-store-key",
                    "There is no key to seal secrets with",
                    detail,
                )
                .with(vec![wrong])
            }
            Refused::KeyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The idempotency key was used before",
                detail,
            ),
            Refused::TooLarge(detail) => too_large(detail),
            Refused::Quota(_) => Self::new(
                StatusCode::FORBIDDEN,
                "quota",
                "The tenant may have no more subscriptions",
                detail,
            ),
            Refused::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The change cannot be made now",
                detail,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_from_their_list() {
        let mut headers = HeaderMap::new();
        assert_eq!(precondition(&headers).unwrap(), Precondition::None);
        headers.insert(
            header::IF_MATCH,
            HeaderValue::from_static("\"1-a\", \"2-a\""),
        );
        let tags = ["\"1-a\"", "\"2-a\""].map(str::to_owned).to_vec();
        assert_eq!(precondition(&headers).unwrap(), Precondition::OneOf(tags));
        headers.insert(header::IF_MATCH, HeaderValue::from_static("*"));
        assert_eq!(precondition(&headers).unwrap(), Precondition::None);
    }
}
