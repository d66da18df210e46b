//! `raw`: the broker's bytes, untouched.
//!
//! Nothing is parsed and nothing copied. A header that HTTP cannot carry is left out; it never
//! keeps an event from being delivered.

use std::time::Duration;

use http::HeaderValue;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::headers::{self, value};
use super::{Formed, Piece};
use crate::event::Event;
use crate::outgoing::Outgoing;
use crate::subscription::Endpoint;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The body as it came. Content type and encoding are the message's where they are valid headers,
/// else the type is guessed by [`looks_like_json`]. Headers of the endpoint replace ours.
pub(super) fn raw(event: &Event, endpoint: &Endpoint, deadline: Duration) -> Outgoing {
    let mut headers = headers::of(endpoint);
    headers
        .entry(CONTENT_TYPE)
        .or_insert_with(|| content_type(event));
    if let Some(encoding) = headers::coding(event).and_then(value) {
        headers.entry(CONTENT_ENCODING).or_insert(encoding);
    }
    headers::pass_on_trace(event, &mut headers);
    Outgoing {
        method: endpoint.method.clone(),
        url: endpoint.url.clone(),
        headers,
        body: event.body.clone(),
        deadline,
    }
}

/// The same of what `fields` has left, or with what comes after the format. What was decoded is not
/// asked for where nothing has looked into it.
pub(super) fn form(piece: &Piece<'_>) -> Formed {
    let event = piece.event;
    let (coding, content_type, body) = match &piece.left {
        None => (headers::coding(event), content_type(event), &event.body),
        Some(left) => (piece.coding(), piece.content_type(), &left.bytes),
    };
    Formed {
        content_encoding: coding.and_then(value),
        ..Formed::of(body.clone(), content_type)
    }
}

pub(super) fn content_type(event: &Event) -> HeaderValue {
    typed(event.content_type.as_deref(), &event.body)
}

/// The type that is said of `body`, if it is one, or what it looks like.
pub(super) fn typed(said: Option<&str>, body: &[u8]) -> HeaderValue {
    match said {
        // By far the most frequent.
        Some("application/json") => JSON,
        given => given
            .and_then(value)
            .unwrap_or_else(|| match looks_like_json(body) {
                true => JSON,
                false => BYTES,
            }),
    }
}

/// Whether the first and the last byte, white space aside, are those of a JSON object, array or
/// string, or all of it is a number or `true`, `false`, `null`. Reads no more than that.
fn looks_like_json(body: &[u8]) -> bool {
    let space = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let Some(first) = body.iter().position(|b| !space(b)) else {
        return false;
    };
    let last = body.iter().rposition(|b| !space(b)).unwrap_or(first);
    let text = &body[first..=last];
    match (text[0], text[text.len() - 1]) {
        (b'{', b'}') | (b'[', b']') => true,
        (b'"', b'"') => text.len() > 1,
        (b'-' | b'0'..=b'9', b'0'..=b'9') if text.len() <= 64 => std::str::from_utf8(text)
            .is_ok_and(|t| serde_json::from_str::<serde_json::Number>(t).is_ok()),
        _ => matches!(text, b"true" | b"false" | b"null"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::event::{EventId, HeaderValue as Field, Headers, Origin, Place};
    use crate::subscription::{Breaker, Scheme};

    fn event(body: &[u8]) -> Event {
        Event {
            id: EventId::kept("e1").unwrap(),
            topic: "orders".into(),
            kind: "orders".into(),
            source: "local".into(),
            tenant: None,
            published_at: None,
            content_type: None,
            content_encoding: None,
            key: None,
            headers: Headers::default(),
            properties: Vec::new(),
            body: Bytes::copy_from_slice(body),
            origin: Origin {
                broker: "here".into(),
                place: Place::Embedded {
                    topic: "orders".into(),
                    sequence: 1,
                },
            },
        }
    }

    fn endpoint(headers: &[(&str, &str)]) -> Endpoint {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        Endpoint {
            name: "crm".into(),
            url: Arc::new("https://example.com/in".parse().unwrap()),
            method: Method::POST,
            headers: Some(map.into()),
            signature: Scheme::Standard,
            secrets: Vec::new(),
            payload: Default::default(),
            auth: None,
            handshake: None,
            tls: None,
            concurrency: 1,
            adaptive: false,
            rate: None,
            breaker: Breaker::default(),
        }
    }

    fn render(event: &Event, headers: &[(&str, &str)]) -> Outgoing {
        raw(event, &endpoint(headers), Duration::from_secs(15))
    }

    fn typed(content_type: &str, body: &[u8]) -> HeaderValue {
        let mut event = event(body);
        event.content_type = Some(content_type.into());
        render(&event, &[]).headers[CONTENT_TYPE].clone()
    }

    #[test]
    fn the_body_is_the_same_bytes_and_not_a_copy() {
        let event = event(b"\xff\x00 not json");
        let outgoing = render(&event, &[]);
        assert_eq!(outgoing.body, event.body);
        assert_eq!(outgoing.body.as_ptr(), event.body.as_ptr());
        assert_eq!(outgoing.headers[CONTENT_TYPE], "application/octet-stream");
    }

    #[test]
    fn the_messages_own_content_type_is_kept_when_http_can_carry_it() {
        assert_eq!(
            typed("application/cloudevents+json; charset=utf-8", b"x"),
            "application/cloudevents+json; charset=utf-8"
        );
        for hostile in ["text/plain\r\nx-evil: 1", "te\0xt", "\u{e9}", "", "  "] {
            assert_eq!(typed(hostile, b"{}"), "application/json", "{hostile:?}");
        }
    }

    #[test]
    fn json_is_recognised_by_its_ends() {
        for json in [
            " {\"a\":1}\n",
            "[]",
            "\"text\"",
            "-1.5e3",
            "0",
            "true",
            "false ",
            "null",
        ] {
            assert!(looks_like_json(json.as_bytes()), "{json}");
        }
        for other in [
            "",
            " \n",
            "{",
            "\"",
            "text",
            "nothing",
            "12 apples",
            "2026-11-21",
            "1.2.3",
            "<a/>",
            "{}x",
        ] {
            assert!(!looks_like_json(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_endpoints_headers_win_and_connection_headers_are_left_out() {
        let mut event = event(b"{}");
        event.content_encoding = Some("gzip".into());
        let outgoing = render(
            &event,
            &[
                ("content-type", "text/plain"),
                ("x-team", "a"),
                ("x-team", "b"),
                ("content-length", "1"),
                ("transfer-encoding", "chunked"),
                ("connection", "close"),
            ],
        );
        assert_eq!(outgoing.headers[CONTENT_TYPE], "text/plain");
        assert_eq!(outgoing.headers[CONTENT_ENCODING], "gzip");
        assert_eq!(outgoing.headers.get_all("x-team").iter().count(), 2);
        assert_eq!(outgoing.headers.len(), 4);
    }

    #[test]
    fn trace_context_crosses_and_nothing_else_of_the_message_does() {
        let mut event = event(b"{}");
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        event.headers.push("Traceparent", Field::text(trace));
        event.headers.push("tracestate", Field::Int(1));
        event
            .headers
            .push("baggage", Field::text("a=1\r\nx-evil: 1"));
        event.headers.push("x-internal", Field::text("secret"));
        event
            .headers
            .push("webhook-signature", Field::text("v1,forged"));
        let headers = render(&event, &[]).headers;
        assert_eq!(headers["traceparent"], trace);
        assert_eq!(headers.len(), 2, "{headers:?}");
    }

    proptest! {
        #[test]
        fn no_message_is_too_hostile_to_render(
            body in prop::collection::vec(any::<u8>(), 0..50),
            content_type in any::<Option<String>>(),
            encoding in any::<Option<String>>(),
            headers in prop::collection::vec((any::<String>(), prop::collection::vec(any::<u8>(), 0..20)), 0..5),
            trace in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut event = event(&body);
            event.content_type = content_type.map(Into::into);
            event.content_encoding = encoding.map(Into::into);
            for (name, value) in headers {
                event.headers.push(name, Field::Bytes(value.into()));
            }
            event.headers.push("traceparent", Field::Bytes(trace.into()));
            let outgoing = render(&event, &[]);
            prop_assert_eq!(&outgoing.body[..], &body[..]);
            prop_assert!(outgoing.headers.contains_key(CONTENT_TYPE));
        }
    }
}
