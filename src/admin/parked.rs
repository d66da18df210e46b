//! Parked deliveries over the API: what waits, and orders to bring it forward or drop it.

use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::ask::{MAX_ASK, Query, read};
use super::problem::Problem;
use super::tenancy::{self, Caller};
use super::{State, jobs};
use crate::broker::parked::{Deed, Order, Whose};
use crate::delivery::WaitKind;
use crate::operations::parked::{self, Known, Listing, NotOrdered, Seen};
use crate::subscription::Uid;

/// Needs the scope `read`.
pub fn reading() -> Router<State> {
    Router::new().route("/v1/parked", get(list))
}

/// Needs the scope `replay`.
pub fn ordering() -> Router<State> {
    Router::new()
        .route("/v1/parked/now", post(now))
        .route("/v1/parked/drop", post(drop_them))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Which {
    broker: Option<String>,
}

/// An order as it is asked for: of one subscription, or of all.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ParkedOrder)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<String>,
    #[serde(default)]
    pub all: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<WaitKind>,
    /// Also for a subscription that is paused, disabled or not known.
    #[serde(default)]
    pub force: bool,
}

#[utoipa::path(
    get,
    path = "/v1/parked",
    tag = "parked",
    operation_id = "listParked",
    summary = "What waits on the brokers",
    params(Which),
    responses(
        (status = 200, description = "All that waits", body = Listing),
        (status = 404, description = "There is no such thing"),
    ),
    security(("token" = ["read"])),
)]
async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Listing>, Problem> {
    let tenant = caller.0.as_deref();
    let mut listing = match tenant {
        // How much waits on the brokers is of all together.
        Some(_) => Listing::default(),
        None => {
            let listed = parked::list(&state.operations, which.broker.as_deref()).await;
            listed.map_err(|error| Problem::not_found(error.to_string()))?
        }
    };
    let seen = state.subscriptions.parked(tenant).await.into_iter();
    listing.seen_here = seen
        .map(|(subscription, count)| Seen {
            subscription,
            count,
        })
        .collect();
    Ok(Json(listing))
}

#[utoipa::path(
    post,
    path = "/v1/parked/now",
    tag = "parked",
    operation_id = "bringForward",
    summary = "Brings parked deliveries forward",
    request_body(content = Wish),
    responses(
        (status = 202, description = "The job that does it", body = crate::operations::Report),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "The subscription takes no deliveries now"),
        (status = 429, description = "Too many jobs are at work"),
    ),
    security(("token" = ["replay"])),
)]
async fn now(state: Extract<State>, caller: Caller, body: Body) -> Result<Response, Problem> {
    order(state, caller, body, Deed::Now).await
}

#[utoipa::path(
    post,
    path = "/v1/parked/drop",
    tag = "parked",
    operation_id = "dropParked",
    summary = "Drops parked deliveries",
    request_body(content = Wish),
    responses(
        (status = 202, description = "The job that does it", body = crate::operations::Report),
        (status = 404, description = "There is no such thing"),
        (status = 409, description = "The subscription takes no deliveries now"),
        (status = 429, description = "Too many jobs are at work"),
    ),
    security(("token" = ["replay"])),
)]
async fn drop_them(state: Extract<State>, caller: Caller, body: Body) -> Result<Response, Problem> {
    order(state, caller, body, Deed::Drop).await
}

async fn order(
    Extract(state): Extract<State>,
    caller: Caller,
    body: Body,
    deed: Deed,
) -> Result<Response, Problem> {
    let wish: Wish = read(body, MAX_ASK).await?;
    jobs::room_for(&state, &caller)?;
    let whose = match (&wish.subscription, wish.all) {
        (None, true) if caller.0.is_some() => return Err(tenancy::operators_only()),
        (None, true) => Whose::All,
        (Some(name), false) => {
            let known = known(&state, name, caller.0.as_deref()).await;
            // Nobody else's, by whatever name it goes.
            let force = wish.force && (caller.0.is_none() || known.is_some());
            parked::whose(name, known, deed, force)?
        }
        _ => {
            return Err(Problem::bad_request(
                "say either `subscription` or `\"all\": true`",
            ));
        }
    };
    let order = Order::new(deed, whose, wish.kind);
    let started = parked::start(&state.operations, wish.broker.as_deref(), order)
        .map_err(|error| Problem::not_found(error.to_string()))?;
    let job = started?;
    Ok(jobs::accepted(&job, &caller))
}

async fn known(state: &State, name: &str, tenant: Option<&str>) -> Option<Known> {
    let one = state.subscriptions.one(name, tenant).await;
    let one = one.filter(|one| one.name == name)?;
    Some(Known {
        uid: Uid::from_stored(&one.uid),
        halted: match one.state {
            "active" => None,
            "not_enabled" => Some("not enabled"),
            other => Some(other),
        },
    })
}

impl From<NotOrdered> for Problem {
    fn from(not_ordered: NotOrdered) -> Self {
        let detail = not_ordered.to_string();
        match not_ordered {
            NotOrdered::Unknown(_) => Self::not_found(detail),
            NotOrdered::Halted { .. } => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                "The subscription takes no deliveries now",
                detail,
            ),
        }
    }
}
