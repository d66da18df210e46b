//! Reading what the receiver answered, as far as we care for it.
//!
//! The status decides as soon as the head is here; a body that is endless, slow or cut off changes
//! nothing. A body longer than [`MAX_BODY_BYTES`] is dropped together with its connection. Nothing
//! is decompressed.

use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::client::{Body, Incoming};
use crate::attempt::{Answer, Wish};

/// So much of a body is read, so that its connection can be used again.
const MAX_BODY_BYTES: usize = 16 << 10;
/// So much of it is kept.
const EXCERPT_BYTES: usize = 512;
/// A longer wait is no wait but an end; policies cut far below it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The answer in `response`, whose body may be read until `deadline`. All that is read of it goes
/// into `shown`, too.
pub(super) async fn read(
    response: Response<Incoming>,
    deadline: Instant,
    now: Timestamp,
    shown: Option<&mut String>,
) -> Answer {
    let (head, body) = response.into_parts();
    let mut start = Vec::new();
    let kept_bytes = match shown {
        Some(_) => MAX_BODY_BYTES,
        None => EXCERPT_BYTES,
    };
    if !body.is_end_stream() {
        // Whether it came to its end or not, the status stands.
        let _ = timeout_at(deadline, read_start(body, &mut start, kept_bytes)).await;
    }
    if let Some(shown) = shown {
        *shown = String::from_utf8_lossy(&start).into_owned();
        start.truncate(EXCERPT_BYTES);
    }
    Answer {
        status: head.status.as_u16(),
        retry_after: retry_after(&head.headers, now),
        limit: limit(head.status, &head.headers, &start),
        wish: wish(&head.headers),
        excerpt: excerpt(&start),
    }
}

/// Reads `body` to its end, its error or the limit, keeping the first `kept_bytes` in `start`.
async fn read_start<B>(mut body: B, start: &mut Vec<u8>, kept_bytes: usize)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut read_bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        read_bytes += data.len();
        let room = kept_bytes - start.len();
        start.extend_from_slice(&data[..data.len().min(room)]);
        if read_bytes > MAX_BODY_BYTES {
            return;
        }
    }
}

/// `start` as text of at most 512 bytes without control characters, for people.
fn excerpt(start: &[u8]) -> String {
    let mut text = String::with_capacity(start.len());
    for c in String::from_utf8_lossy(start).chars() {
        let c = match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => continue,
            c => c,
        };
        if text.len() + c.len_utf8() > EXCERPT_BYTES {
            break;
        }
        text.push(c);
    }
    text
}

/// `Retry-After` as a time from `now`: seconds, or an HTTP-date (RFC 9110, 10.2.3). What is neither
/// is as good as absent; a date that has passed means at once.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Only too many digits are left to go wrong.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let wait = date.duration_since(now.into()).unwrap_or(Duration::ZERO);
    Some(wait.min(MAX_RETRY_AFTER))
}

/// How long until a limit is over, as Discord says it: seconds with a fraction, in
/// `X-RateLimit-Reset-After` and in the JSON of a 429. The header is there without a limit being
/// reached too, unless nothing of it remains.
fn limit(status: StatusCode, headers: &HeaderMap, start: &[u8]) -> Option<Duration> {
    #[derive(serde::Deserialize)]
    struct Limited {
        retry_after: f64,
    }
    let refused = status == StatusCode::TOO_MANY_REQUESTS;
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let reset = text("x-ratelimit-reset-after")
        .filter(|_| refused || text("x-ratelimit-remaining") == Some("0"))
        .and_then(|text| text.parse().ok());
    let said = match refused && start.first() == Some(&b'{') {
        true => serde_json::from_slice::<Limited>(start).ok(),
        false => None,
    };
    let seconds = [reset, said.map(|said| said.retry_after)];
    let waits = seconds.into_iter().flatten().filter_map(|seconds| {
        let wait = Duration::try_from_secs_f64(seconds).ok()?;
        Some(wait.min(MAX_RETRY_AFTER))
    });
    waits.max()
}

/// `webhook-delivery`, a proposal of Standard Webhooks.
fn wish(headers: &HeaderMap) -> Option<Wish> {
    let text = headers.get("webhook-delivery")?.to_str().ok()?.trim();
    if text.eq_ignore_ascii_case("disable") {
        Some(Wish::Disable)
    } else if text.eq_ignore_ascii_case("abort-message") {
        Some(Wish::Abort)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wait(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        retry_after(&headers, "1994-11-06T08:49:30Z".parse().unwrap())
    }

    #[test]
    fn retry_after_in_seconds_and_dates() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(wait("120"), seconds(120));
        assert_eq!(wait(" 0 "), seconds(0));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), seconds(7));
        assert_eq!(wait("Sunday, 06-Nov-94 08:49:37 GMT"), seconds(7));
        assert_eq!(wait("Sun Nov  6 08:49:37 1994"), seconds(7));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:29 GMT"), seconds(0));
    }

    #[test]
    fn retry_after_out_of_bounds_or_garbage() {
        assert_eq!(wait("1000000000000000000"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait("99999999999999999999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait("Fri, 31 Dec 9999 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        for garbage in ["", "-1", "+1", "1.5", "1e3", "soon", "1 minute", "0x10"] {
            assert_eq!(wait(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn limits_as_discord_says_them() {
        let limited = |status: u16, headers: &[(&'static str, &'static str)], body: &str| {
            let of = |(name, value): &(&'static str, &'static str)| {
                let name = http::HeaderName::from_static(name);
                (name, http::HeaderValue::from_static(value))
            };
            let headers: HeaderMap = headers.iter().map(of).collect();
            let status = StatusCode::from_u16(status).unwrap();
            limit(status, &headers, body.as_bytes()).map(|wait| wait.as_millis())
        };
        let (left, reset) = ("x-ratelimit-remaining", "x-ratelimit-reset-after");
        let body = r#"{"message":"You are being rate limited.","retry_after":0.65,"global":false}"#;
        assert_eq!(limited(429, &[], body), Some(650));
        assert_eq!(limited(429, &[(reset, "1.5")], body), Some(1500));
        assert_eq!(limited(429, &[(reset, "0.25")], "slow down"), Some(250));
        assert_eq!(limited(204, &[(reset, "1.5"), (left, "3")], ""), None);
        assert_eq!(limited(204, &[(reset, "1.5"), (left, "0")], ""), Some(1500));
        assert_eq!(limited(500, &[], body), None);
        for wrong in ["-1", "NaN", "inf", "soon", ""] {
            assert_eq!(limited(429, &[(reset, wrong)], "{}"), None, "{wrong}");
        }
    }

    #[test]
    fn wishes() {
        let wished = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("webhook-delivery", value.parse().unwrap());
            wish(&headers)
        };
        assert_eq!(wished("disable"), Some(Wish::Disable));
        assert_eq!(wished("Abort-Message"), Some(Wish::Abort));
        assert_eq!(wished("enable"), None);
        assert_eq!(wish(&HeaderMap::new()), None);
    }

    #[test]
    fn an_excerpt_is_one_line_of_text() {
        assert_eq!(excerpt(b"no\r\nroom\x1b[31m\0!"), "no  room[31m!");
        assert_eq!(excerpt(b"\xff{}"), "\u{fffd}{}");
    }

    proptest! {
        #[test]
        fn an_excerpt_is_short_whatever_came(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let text = excerpt(&bytes[..bytes.len().min(EXCERPT_BYTES)]);
            prop_assert!(text.len() <= EXCERPT_BYTES);
            prop_assert!(!text.chars().any(char::is_control));
        }

        #[test]
        fn no_retry_after_panics(text in "[ -~]{0,40}") {
            prop_assert!(wait(&text).is_none_or(|wait| wait <= MAX_RETRY_AFTER));
        }
    }
}
