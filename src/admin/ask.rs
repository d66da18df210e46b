//! What a request asks, read so that every mistake in it is answered as a [`Problem`].

use axum::body::{Body, to_bytes};
use axum::extract::{self, FromRequestParts};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Bytes of a request that says what is wanted.
pub const MAX_ASK: usize = 64 << 10;

/// The variables of the path.
pub struct Path<T>(pub T);

/// The query; what it may hold is for `T` to say.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match extract::Path::from_request_parts(parts, state).await {
            Ok(extract::Path(read)) => Ok(Self(read)),
            Err(why) => Err(Problem::bad_request(why.body_text())),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match extract::Query::from_request_parts(parts, state).await {
            Ok(extract::Query(read)) => Ok(Self(read)),
            Err(why) => Err(Problem::bad_request(why.body_text())),
        }
    }
}

/// Reads a JSON object of at most `limit` bytes; an empty body is an empty one.
pub async fn read<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, Problem> {
    let body = to_bytes(body, limit)
        .await
        .map_err(|_| Problem::too_large(limit))?;
    let body = match body.trim_ascii() {
        b"" => b"{}",
        body => body,
    };
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(error.to_string()))
}
