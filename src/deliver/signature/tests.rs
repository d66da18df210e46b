//! What is common to the tests of schemes, and vectors that others have published.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;

use super::*;
use crate::event::EventId;

pub(super) const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
pub(super) const AT: i64 = 1_614_265_330;

/// A request of `body` to `url`, not signed.
pub(super) fn request(url: &str, content_type: &str, body: &[u8]) -> Outgoing {
    let content_type = HeaderValue::from_str(content_type).unwrap();
    Outgoing {
        method: Method::POST,
        url: Arc::new(url.parse().unwrap()),
        headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]),
        body: Bytes::copy_from_slice(body),
        deadline: Duration::from_secs(1),
    }
}

pub(super) fn kept(secrets: &[&str]) -> Vec<Secret> {
    secrets.iter().copied().map(Secret::new).collect()
}

/// Signs `request` at `at`, in milliseconds since 1970.
pub(super) fn sign_at(scheme: &Scheme, secrets: &[&str], at: i64, request: &mut Outgoing) {
    let id = EventId::kept(ID).unwrap();
    let event = Facts {
        id: &id,
        topic: "orders.created",
        kind: "order",
        source: "shop",
    };
    let at = Timestamp::from_millisecond(at).unwrap();
    Signer::new(scheme, &kept(secrets))
        .unwrap()
        .sign(event, at, request);
}

pub(super) fn check(
    scheme: &Scheme,
    secret: &str,
    request: &Outgoing,
    now: i64,
) -> Result<(), VerifyError> {
    let received = Received {
        method: &request.method,
        url: request.url.as_str(),
        headers: &request.headers,
        body: &request.body,
    };
    verify(scheme, &kept(&[secret]), &received, now, TOLERANCE)
}

fn preset(name: &str) -> Scheme {
    Scheme::from_name(name).unwrap()
}

const FORM: &str = "application/x-www-form-urlencoded";

/// <https://docs.slack.dev/authentication/verifying-requests-from-slack>
#[test]
fn slack_as_its_documentation_has_it() {
    let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
        &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner\
        &command=%2Fwebhook-collect&text=\
        &response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN\
        &trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let secret = "8f742231b10e8888abcd99yyyzzz85a5";
    let at = 1_531_420_618;
    let mut request = request("https://h/slack", FORM, body);
    sign_at(&preset("slack"), &[secret], at * 1000, &mut request);
    assert_eq!(request.headers["x-slack-request-timestamp"], "1531420618");
    assert_eq!(
        request.headers["x-slack-signature"],
        "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    );
    assert_eq!(check(&preset("slack"), secret, &request, at), Ok(()));
}

/// The parameters of twilio-python's `tests/unit/test_request_validator.py`, in another order.
#[test]
fn twilio_as_its_library_has_it() {
    let body = b"From=%2B14158675309&To=%2B18005551212&CallSid=CA1234567890ABCDE\
        &Caller=%2B14158675309&Digits=1234";
    let url = "https://mycompany.com/myapp.php?foo=1&bar=2";
    let mut request = request(url, FORM, body);
    sign_at(&preset("twilio"), &["12345"], AT * 1000, &mut request);
    assert_eq!(
        request.headers["x-twilio-signature"],
        "RSOYDt4T1cUTdK1PDd93/VVr8B8="
    );
    assert_eq!(request.url.as_str(), url);
    assert_eq!(check(&preset("twilio"), "12345", &request, AT), Ok(()));
}
