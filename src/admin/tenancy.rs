//! Tenancy: for whom a request is made, and what is there for those who act for one tenant.
//!
//! A token with a tenant opens the routes of [`OPEN`], whose handlers show and change what is of this
//! tenant and answer for all else as if it did not exist. Every other route is the operator's: one that
//! is added later is closed until it is named here.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};

use super::problem::Problem;

/// What somebody who acts for a tenant may ask for, by method and route.
const OPEN: [(&str, &str); 39] = [
    ("GET", "/v1/attempts"),
    ("GET", "/v1/attempts/export"),
    ("GET", "/v1/dead-letters"),
    ("POST", "/v1/dead-letters/drop"),
    ("GET", "/v1/dead-letters/count"),
    ("GET", "/v1/dead-letters/export"),
    ("GET", "/v1/dead-letters/groups"),
    ("POST", "/v1/dead-letters/retry"),
    ("GET", "/v1/dead-letters/{id}"),
    ("POST", "/v1/dead-letters/{id}/retry"),
    ("GET", "/v1/events/{id}"),
    ("GET", "/v1/events/{id}/trace"),
    ("GET", "/v1/jobs"),
    ("DELETE", "/v1/jobs/{id}"),
    ("GET", "/v1/jobs/{id}"),
    ("GET", "/v1/parked"),
    ("POST", "/v1/parked/drop"),
    ("POST", "/v1/parked/now"),
    ("GET", "/v1/replays"),
    ("POST", "/v1/replays"),
    ("GET", "/v1/subscriptions"),
    ("POST", "/v1/subscriptions"),
    ("GET", "/v1/subscriptions/export"),
    ("POST", "/v1/subscriptions/import"),
    ("DELETE", "/v1/subscriptions/{name}"),
    ("GET", "/v1/subscriptions/{name}"),
    ("PATCH", "/v1/subscriptions/{name}"),
    ("PUT", "/v1/subscriptions/{name}"),
    ("POST", "/v1/subscriptions/{name}/enable"),
    ("POST", "/v1/subscriptions/{name}/pause"),
    ("POST", "/v1/subscriptions/{name}/resume"),
    ("POST", "/v1/subscriptions/{name}/rotate"),
    ("POST", "/v1/subscriptions/{name}/test"),
    ("POST", "/v1/subscriptions/{name}/verify"),
    ("GET", "/v1/tap"),
    ("HEAD", "/v1/attempts"),
    ("HEAD", "/v1/dead-letters"),
    ("HEAD", "/v1/subscriptions"),
    ("HEAD", "/v1/subscriptions/{name}"),
];

/// Who asks: for this tenant, or for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller(pub Option<Arc<str>>);

/// Whether a route is there for those who act for a tenant.
pub fn is_open(method: &Method, route: &str) -> bool {
    OPEN.contains(&(method.as_str(), route))
}

pub fn operators_only() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "operator-only",
        "This is the operator's",
        "the token acts for one tenant, and this is not of one tenant alone",
    )
}

impl Caller {
    /// The tenant that is asked about: the caller's own, whatever he says.
    pub fn about(&self, asked: Option<String>) -> Result<Option<String>, Problem> {
        match (&self.0, asked) {
            (Some(own), Some(asked)) if **own != *asked => {
                Err(Problem::not_found("there is no such tenant"))
            }
            (Some(own), _) => Ok(Some(own.to_string())),
            (None, asked) => Ok(asked),
        }
    }
}

/// [`access::need`](super::access::need) has noted who it is; where nobody has, nobody is let in.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(operators_only)
    }
}
