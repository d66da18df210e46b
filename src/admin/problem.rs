//! Problems: every error of the API, as RFC 9457 says.

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::broker::embedded::Declined;

/// An error as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    /// The last part of its `type`; stable, for programs.
    name: &'static str,
    title: &'static str,
    detail: String,
    /// `WWW-Authenticate`, for 401 and 403.
    challenge: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    pub fn new(
        status: StatusCode,
        name: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            name,
            title,
            detail: detail.into(),
            challenge: None,
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request cannot be understood",
            detail,
        )
    }

    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The event is too large",
            format!("the body is larger than {limit_bytes} bytes (`admin.max_event_bytes`)"),
        )
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    pub fn challenging(self, challenge: impl Into<String>) -> Self {
        Self {
            challenge: Some(challenge.into()),
            ..self
        }
    }
}

impl From<Declined> for Problem {
    fn from(declined: Declined) -> Self {
        let detail = declined.to_string();
        match declined {
            Declined::BadTopic(_) => Self::new(
                StatusCode::BAD_REQUEST,
                "bad-topic",
                "Events cannot be published to this topic",
                detail,
            ),
            Declined::TooLarge { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "The event is too large",
                detail,
            ),
            Declined::Full { .. } | Declined::DiskFull => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "full",
                "There is no room for the event",
                detail,
            ),
            Declined::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The broker is not available",
                detail,
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: format!("urn:hookbridge:problem:{}", self.name),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, [(header::CONTENT_TYPE, kind)], body).into_response();
        let challenge = self.challenge.map(HeaderValue::try_from);
        if let Some(Ok(challenge)) = challenge {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

pub async fn no_such_page() -> Problem {
    Problem::not_found("there is nothing at this path")
}

pub async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        "Wrong method",
        "this path does not take this method",
    )
}

/// Ends a request that takes too long, a body that trickles in for instance.
pub async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(super::REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            "The request took too long",
            format!("it was not complete after {} s", super::REQUEST.as_secs()),
        )
        .into_response(),
    }
}
