//! What every request has in its headers, whatever its body is.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::event::Event;
use crate::event::context::TraceContext;
use crate::subscription::Endpoint;

/// These say how a message travels on one connection, which is the client's to say.
static OF_THE_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The headers of the endpoint, without those that are the client's to set.
pub(super) fn of(endpoint: &Endpoint) -> HeaderMap {
    let mut headers = endpoint.headers.as_deref().cloned().unwrap_or_default();
    if !headers.is_empty() {
        for name in &OF_THE_CONNECTION {
            headers.remove(name);
        }
    }
    headers
}

/// The only headers of a message that are passed on: trace context has to cross us. The others may
/// be internal, and they are in the body's hands if receivers are to have them.
pub(super) fn pass_on_trace(event: &Event, headers: &mut HeaderMap) {
    if !TraceContext::is_likely(event) {
        return;
    }
    for (name, value) in TraceContext::of(event).fields() {
        if let Some(value) = self::value(value) {
            let name = HeaderName::from_static(name);
            headers.entry(name).or_insert(value);
        }
    }
}

/// What has been done to the message's body, for `content-encoding`. AMQP's property of that name has
/// the character set as often as not, which is none of HTTP's codings.
pub(super) fn coding(event: &Event) -> Option<&str> {
    const NONE: [&str; 6] = ["", "identity", "utf-8", "utf8", "us-ascii", "binary"];
    let said = event.content_encoding.as_deref()?.trim();
    let is_none = NONE.iter().any(|none| said.eq_ignore_ascii_case(none));
    Some(said).filter(|_| !is_none)
}

/// `text` as a header's value, if it is one: visible ASCII, spaces and tabs, and not empty.
pub(super) fn value(text: &str) -> Option<HeaderValue> {
    let text = text.trim();
    match !text.is_empty() && text.is_ascii() {
        true => HeaderValue::from_str(text).ok(),
        false => None,
    }
}

/// `text` as a header's value, whatever is in it: what is not visible ASCII is percent-encoded, so
/// that neither a line break nor a NUL can get into a request.
pub(super) fn encoded(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.trim().bytes() {
        match byte {
            b' '..=b'~' => out.push(byte as char),
            _ => percent(byte, &mut out),
        }
    }
    HeaderValue::try_from(out).expect("only visible ASCII is left")
}

pub(super) fn percent(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(DIGITS[usize::from(byte >> 4)] as char);
    out.push(DIGITS[usize::from(byte & 15)] as char);
}
