//! Outgoing requests: method, URL, headers and body before they are signed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use url::Url;

/// One HTTP request for one delivery, rendered but not signed. The body is final: what is signed
/// are exactly these bytes.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub method: Method,
    pub url: Arc<Url>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// From the start of the attempt to the last byte of the response that is read.
    pub deadline: Duration,
}
