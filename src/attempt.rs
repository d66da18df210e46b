//! Attempts: what one HTTP exchange told us, as data. Deciding what it means is `verdict`'s.

use std::time::Duration;

use jiff::Timestamp;

/// One HTTP request that was made, or could not be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    pub started_at: Timestamp,
    pub took: Duration,
    pub outcome: Outcome,
}

/// How an attempt ended. A remote "no" is a value, not an error.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The receiver answered with a status line and headers.
    Answered(Answer),
    /// No answer.
    Failed(Failure),
    /// The request cannot be made of this event, now or later (a header that HTTP cannot carry).
    Unsendable(String),
    /// The body cannot be made of this event: it is not what the format needs, or the template says
    /// no.
    Unrenderable(String),
    /// The body is not what its source or subscription wants. Of a preview: on the path nothing is
    /// attempted then.
    Invalid(String),
    /// Rendered and signed, and not sent: it is for a shadow.
    Withheld,
}

impl Outcome {
    /// Stands for a status where nothing was sent on purpose.
    pub const SHADOW: &'static str = "shadow";

    /// Two hundred and something. Whether that is what a subscription takes for delivered, its
    /// answers say.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Answered(answer) if (200..300).contains(&answer.status))
    }

    /// The status (`503`) or the error class (`timeout`), for envelopes and logs.
    pub fn label(&self) -> String {
        match self {
            Self::Answered(answer) => answer.status.to_string(),
            Self::Failed(failure) => failure.class.as_str().to_owned(),
            Self::Unsendable(_) => "unsendable".to_owned(),
            Self::Unrenderable(_) => "unrenderable".to_owned(),
            Self::Invalid(_) => "invalid".to_owned(),
            Self::Withheld => Self::SHADOW.to_owned(),
        }
    }

    /// `2xx` … `5xx`, or the error class: few values, for metric labels.
    pub fn status_class(&self) -> &'static str {
        match self {
            Self::Answered(answer) => match answer.status {
                100..=199 => "1xx",
                200..=299 => "2xx",
                300..=399 => "3xx",
                400..=499 => "4xx",
                _ => "5xx",
            },
            Self::Failed(failure) => failure.class.as_str(),
            Self::Unsendable(_) => "unsendable",
            Self::Unrenderable(_) => "unrenderable",
            Self::Invalid(_) => "invalid",
            Self::Withheld => Self::SHADOW,
        }
    }

    /// What a person wants to see of it; 512 bytes at most, no secrets, no URL.
    pub fn excerpt(&self) -> &str {
        match self {
            Self::Answered(answer) => &answer.excerpt,
            Self::Failed(failure) => &failure.detail,
            Self::Unsendable(why) | Self::Unrenderable(why) | Self::Invalid(why) => why,
            Self::Withheld => "",
        }
    }
}

/// What the receiver said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// From `Retry-After`, seconds or HTTP-date, not yet clamped to any policy. Never negative.
    pub retry_after: Option<Duration>,
    /// How long until a limit of the receiver's is over, as Discord says it: `retry_after` of a 429's
    /// JSON, or `X-RateLimit-Reset-After` of a 429 or of an answer after which nothing is left.
    pub limit: Option<Duration>,
    /// From `webhook-delivery` (Standard Webhooks proposal).
    pub wish: Option<Wish>,
    /// The first 512 bytes of the body as text, lossy.
    pub excerpt: String,
}

/// What a receiver asks for with the response header `webhook-delivery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `disable`: send nothing more to this endpoint.
    Disable,
    /// `abort-message`: give up on this one.
    Abort,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub class: ErrorClass,
    /// For people; without URL and secrets.
    pub detail: String,
}

/// Kinds of failure, as metric labels and in envelopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The name did not resolve, or not in time.
    Dns,
    /// An address the guard denies.
    Denied,
    /// No TCP connection, or not in time.
    Connect,
    Tls,
    /// The total deadline passed.
    Timeout,
    /// The connection broke, or what came was not HTTP.
    Protocol,
    /// The token that the receiver wants was not given to us.
    Auth,
}

impl ErrorClass {
    pub const ALL: [Self; 7] = [
        Self::Dns,
        Self::Denied,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Protocol,
        Self::Auth,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Denied => "denied",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Auth => "auth",
        }
    }
}
