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
    /// What is wrong, one by one, and where in the body.
    errors: Vec<Wrong>,
}

/// One thing that is wrong in a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Wrong {
    /// A JSON pointer as a URI's fragment, as in RFC 9457: `#/endpoint/url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// Where it is in a file or in a body of lines, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Wrong {
    /// `pointer` is a plain JSON pointer.
    pub fn new(pointer: &str, detail: String, help: Option<String>) -> Self {
        let mut fragment = "#".to_owned();
        for byte in pointer.bytes() {
            match byte {
                b'"'
                | b'%'
                | b'<'
                | b'>'
                | b'\\'
                | b'^'
                | b'`'
                | b'{'
                | b'|'
                | b'}'
                | b'#'
                | b'['
                | b']'
                | 0..=32
                | 127.. => fragment.push_str(&format!("%{byte:02X}")),
                byte => fragment.push(char::from(byte)),
            }
        }
        Self {
            pointer: Some(fragment),
            line: None,
            column: None,
            detail,
            help,
        }
    }

    /// At a place of a file; both numbers are from 1.
    pub fn in_file(line: usize, column: usize, detail: String, help: Option<String>) -> Self {
        Self {
            pointer: None,
            line: Some(line),
            column: Some(column),
            detail,
            help,
        }
    }

    /// In this line of the body, from 1.
    pub fn on_line(self, line: usize) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }
}

/// What is wrong with a request, as RFC 9457 has it.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub struct Detailed {
    /// `urn:hookbridge:problem:` and a name for programs.
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    /// What is wrong one by one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Wrong>,
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
            errors: Vec::new(),
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

    /// With what is wrong one by one.
    pub fn with(self, errors: Vec<Wrong>) -> Self {
        Self { errors, ..self }
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
        let body = Detailed {
            r#type: format!("urn:hookbridge:problem:{}", self.name),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail,
            errors: self.errors,
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
