//! The admin listener: publishing to the embedded broker, health, metrics, subscriptions and what
//! becomes of their deliveries.
//!
//! Everything it shows or changes is handed to it in [`State`]; it knows no config and holds no
//! state of its own. Errors are RFC 9457 problems (`application/problem+json`), and a request that
//! is refused has stored nothing. On loopback it needs no tokens, so it refuses foreign `Host` and
//! `Origin` headers there: a web page must not reach it through the user's browser.

mod access;
mod ask;
mod attempts;
mod control;
mod dead_letters;
mod door;
mod events;
mod health;
mod jobs;
mod ndjson;
mod openapi;
pub mod parked;
mod problem;
mod registration;
mod replays;
mod sources;
mod strict;
mod subscriptions;
mod tap;
mod tenancy;
mod transfer;
mod trial;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::broker::embedded::Embedded;
use crate::meters::Meters;
use crate::operations::subscriptions::Registry;
use crate::operations::{Operations, Traces};
use crate::pipeline::Taps;
pub use access::{Scope, Token};
pub use control::{Control, Log};
pub use health::{Component, Condition, Readiness};
pub use openapi::{SUBSCRIPTION, document};
pub use registration::Rotate;
pub use subscriptions::{Change, NotChanged, Subscriptions};
pub use trial::Trial;

/// What the admin listener works with.
#[derive(Clone)]
pub struct State {
    /// Shown by `/version`.
    pub version: &'static str,
    pub meters: Arc<Meters>,
    /// The state of the process as it is now; asked for on every `/readyz`.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// The embedded brokers by name.
    pub embedded: BTreeMap<Arc<str>, Arc<Embedded>>,
    /// Where events go when the request names no broker.
    pub default_broker: Option<Arc<str>>,
    pub subscriptions: Arc<dyn Subscriptions>,
    /// Where subscriptions are made and changed; without one there are only those of the config.
    pub registry: Option<Arc<Registry>>,
    pub operations: Arc<Operations>,
    pub traces: Arc<Traces>,
    pub control: Arc<dyn Control>,
    /// Where attempts are listened to.
    pub taps: Taps,
    /// As soon as there is one, everything but health and version needs one.
    pub tokens: Arc<[Token]>,
    /// Largest body of a request.
    pub max_event_bytes: usize,
    /// What [`document`] describes, as JSON.
    pub openapi: bytes::Bytes,
}

/// How long a request may take, its body included.
const REQUEST: Duration = Duration::from_secs(30);
/// How long requests under way may go on after `stop`.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `stop`, then lets what is under way finish for at most five seconds.
pub async fn serve(
    listener: TcpListener,
    state: State,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let on_loopback = listener.local_addr()?.ip().is_loopback();
    let router = router(state, on_loopback);
    let stopping = stop.clone();
    let serving = axum::serve(door::Door::new(listener), router)
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    tokio::select! {
        served = std::future::IntoFuture::into_future(serving) => served,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

fn router(state: State, on_loopback: bool) -> Router {
    let needs = |scope| from_fn_with_state((state.tokens.clone(), scope), access::need);
    let open = Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/version", get(health::version))
        .merge(openapi::reading());
    let read = Router::new()
        .route("/metrics", get(health::metrics))
        .merge(attempts::reading())
        .merge(control::reading())
        .merge(dead_letters::reading())
        .merge(jobs::reading())
        .merge(parked::reading())
        .merge(registration::reading())
        .merge(replays::reading())
        .merge(sources::reading())
        .merge(tap::reading())
        .route_layer(needs(Scope::Read));
    let publish = Router::new()
        .route("/v1/topics/{topic}/events", post(events::publish))
        .route("/v1/topics//events", post(events::no_topic))
        .route_layer(needs(Scope::Publish));
    let replay = jobs::stopping()
        .merge(dead_letters::replaying())
        .merge(parked::ordering())
        .merge(replays::starting())
        .route_layer(needs(Scope::Replay));
    let change = Router::new()
        .route("/v1/subscriptions/{name}/pause", post(subscriptions::pause))
        .route(
            "/v1/subscriptions/{name}/resume",
            post(subscriptions::resume),
        )
        .route(
            "/v1/subscriptions/{name}/enable",
            post(subscriptions::enable),
        )
        .route(
            "/v1/subscriptions/{name}/verify",
            post(subscriptions::verify),
        )
        .merge(control::changing())
        .merge(dead_letters::removing())
        .merge(registration::changing())
        .merge(transfer::moving())
        .merge(trial::sending())
        .route_layer(needs(Scope::Admin));
    let router = open
        .merge(read)
        .merge(publish)
        .merge(replay)
        .merge(change)
        .fallback(problem::no_such_page)
        .method_not_allowed_fallback(problem::wrong_method)
        .with_state(state)
        .layer(from_fn(problem::in_time));
    if on_loopback {
        router.layer(from_fn(access::only_from_here))
    } else {
        router
    }
}
