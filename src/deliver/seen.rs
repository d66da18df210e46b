//! What went over the wire, for somebody who watches. Nothing is masked here but a token that was
//! asked for; the rest is for those who know what the config says of the endpoint.

use http::{HeaderMap, HeaderValue, Response};

use super::auth;
use super::client::Incoming;
use crate::outgoing::Outgoing;

/// One exchange.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// As it was sent: signed, and with its authorization, but for a token.
    pub sent: Option<Outgoing>,
    pub answer: Option<SeenAnswer>,
}

/// What the receiver said.
#[derive(Debug, Clone)]
pub struct SeenAnswer {
    /// Such as `HTTP/1.1`.
    pub version: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The start of the body as text, lossy.
    pub body: String,
}

impl SeenAnswer {
    pub(super) fn head_of(response: &Response<Incoming>) -> Self {
        Self {
            version: format!("{:?}", response.version()),
            status: response.status().as_u16(),
            headers: texts(response.headers()),
            body: String::new(),
        }
    }

    /// Takes out the token that was shown to the receiver, which may have repeated it.
    pub(super) fn mask(&mut self, token: &HeaderValue) {
        auth::mask(token, &mut self.body);
        for (_, value) in &mut self.headers {
            auth::mask(token, value);
        }
    }
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let all = headers.iter();
    all.map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}
