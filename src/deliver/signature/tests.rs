//! What is common to the tests of schemes, and vectors that others have published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use proptest::prelude::*;

use super::mac::Mac;
use super::*;
use crate::event::EventId;
use crate::subscription::{Encoding, Hash, HmacScheme, KeyForm, SignedUrl};

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

/// <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>
#[test]
fn github_as_its_documentation_has_it() {
    let mut request = request("https://h/", "text/plain", b"Hello, World!");
    let secret = "It's a Secret to Everybody";
    sign_at(&preset("github"), &[secret], AT * 1000, &mut request);
    assert_eq!(
        request.headers["x-hub-signature-256"],
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    );
    assert_eq!(request.headers["x-github-event"], "order");
    let delivery = request.headers["x-github-delivery"].to_str().unwrap();
    assert_eq!(delivery.parse::<uuid::Uuid>().unwrap().get_version_num(), 5);
}

/// <https://developer.atlassian.com/cloud/jira/platform/webhooks/#secure-admin-webhooks>
#[test]
fn jira_as_its_documentation_has_it() {
    let mut request = request("https://h/", "text/plain", b"Hello World!");
    let secret = "It's a Secret to Everybody";
    sign_at(&preset("jira"), &[secret], AT * 1000, &mut request);
    assert_eq!(
        request.headers["x-hub-signature"],
        "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"
    );
    assert_eq!(check(&preset("jira"), secret, &request, AT), Ok(()));
}

#[test]
fn headers_say_what_the_event_is() {
    for (name, expected) in [
        (
            "shopify",
            "x-shopify-topic: orders.created, x-shopify-shop-domain: shop, \
             x-shopify-api-version: 2025-10, x-shopify-webhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek",
        ),
        (
            "woocommerce",
            "x-wc-webhook-source: shop, x-wc-webhook-topic: orders.created, \
             x-wc-webhook-resource: orders, x-wc-webhook-event: created, x-wc-webhook-id: 1, \
             x-wc-webhook-delivery-id: msg_p5jXN8AQM9LWM0D4loKWxJek",
        ),
        (
            "jira",
            "x-atlassian-webhook-identifier: msg_p5jXN8AQM9LWM0D4loKWxJek",
        ),
    ] {
        let mut request = request("https://h/", "application/json", b"{}");
        sign_at(&preset(name), &[TEXT], AT * 1000, &mut request);
        for header in expected.split(", ") {
            let (header, value) = header.split_once(": ").unwrap();
            assert_eq!(request.headers[header], value, "{name}");
        }
    }
}

fn hmac(hash: Hash, encoding: Encoding, signed: &str) -> HmacScheme {
    HmacScheme {
        header: HeaderName::from_static("x-sig"),
        prefix: "p ".into(),
        hash,
        encoding,
        key: KeyForm::Text,
        signed: signed.parse().unwrap(),
        id_header: HeaderName::from_static("x-id"),
        timestamp_header: HeaderName::from_static("x-time"),
        unit: TimeUnit::Milliseconds,
        url: SignedUrl::default(),
    }
}

/// RFC 2202 (SHA-1) and RFC 4231 (the others), test case 2.
#[test]
fn hmacs_as_their_rfcs_have_them() {
    for (hash, tag) in [
        (Hash::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        (
            Hash::Sha256,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            Hash::Sha512,
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ] {
        let scheme = Scheme::Hmac(Box::new(hmac(hash, Encoding::Hex, "{body}")));
        let mut request = request("https://h/", "text/plain", b"what do ya want for nothing?");
        sign_at(&scheme, &["Jefe"], AT * 1000, &mut request);
        assert_eq!(request.headers["x-sig"], format!("p {tag}"));
    }
}

#[test]
fn an_hmac_of_ones_own_covers_what_it_says() {
    let how = hmac(
        Hash::Sha256,
        Encoding::Base64,
        "{method} {url} {id} {timestamp} {body}",
    );
    let scheme = Scheme::Hmac(Box::new(how));
    let mut good = request("https://h/a?b", "text/plain", b"body");
    sign_at(&scheme, &["k"], AT * 1000 + 7, &mut good);
    assert_eq!(good.headers["x-time"], (AT * 1000 + 7).to_string());
    assert_eq!(good.headers["x-id"], ID);
    assert_eq!(check(&scheme, "k", &good, AT), Ok(()));
    let changes: [fn(&mut Outgoing); 5] = [
        |request| request.method = Method::PUT,
        |request| request.url = Arc::new("https://h/a?c".parse().unwrap()),
        |request| drop(request.headers.insert("x-id", "other".parse().unwrap())),
        |request| {
            drop(
                request
                    .headers
                    .insert("x-time", "1614265330008".parse().unwrap()),
            )
        },
        |request| request.body = Bytes::from_static(b"Body"),
    ];
    for change in changes {
        let mut changed = good.clone();
        change(&mut changed);
        assert_eq!(
            check(&scheme, "k", &changed, AT),
            Err(VerifyError::Mismatch)
        );
    }
}

#[test]
fn twilio_puts_the_hash_of_what_is_no_form_into_the_query() {
    for (url, sent) in [
        ("https://h/in", "https://h/in?bodySHA256="),
        ("https://h/in?a=%2f", "https://h/in?a=%2f&bodySHA256="),
        ("https://h", "https://h/?bodySHA256="),
    ] {
        let mut scheme = preset("twilio");
        *scheme.signed_url_mut().unwrap() = SignedUrl::written(url);
        let mut request = request(url, "application/json", b"{}");
        sign_at(&scheme, &["0123456789abcdef"], AT * 1000, &mut request);
        let hash = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(request.url.as_str(), format!("{sent}{hash}"));
        let signed = match url.contains('?') {
            true => format!("{url}&bodySHA256={hash}"),
            false => format!("{url}?bodySHA256={hash}"),
        };
        let tag = Mac::new(Hash::Sha1, b"0123456789abcdef").tag([signed.as_bytes()]);
        assert_eq!(
            request.headers["x-twilio-signature"],
            tag.written(Encoding::Base64)
        );
        assert_eq!(
            check(&scheme, "0123456789abcdef", &request, AT),
            Ok(()),
            "{url}"
        );
        request.body = Bytes::from_static(b"[]");
        let changed = check(&scheme, "0123456789abcdef", &request, AT);
        assert_eq!(changed, Err(VerifyError::Mismatch));
    }
}

#[test]
fn a_url_is_signed_as_it_is_written() {
    for name in ["trello", "mailchimp", "hubspot"] {
        let mut scheme = preset(name);
        *scheme.signed_url_mut().unwrap() = SignedUrl::written("https://Public.example.com");
        let mut request = request("https://10.0.0.1/", FORM, b"a=b");
        sign_at(&scheme, &["0123456789abcdef"], AT * 1000, &mut request);
        assert_eq!(check(&scheme, "0123456789abcdef", &request, AT), Ok(()));
        let as_sent = check(&preset(name), "0123456789abcdef", &request, AT);
        assert_eq!(as_sent, Err(VerifyError::Mismatch), "{name}");
        request.url = Arc::new("https://Public.example.com".parse().unwrap());
        assert_eq!(
            check(&preset(name), "0123456789abcdef", &request, AT),
            Err(VerifyError::Mismatch),
            "{name}: written without a path, which a parsed URL has"
        );
    }
}

/// Those with a signature, a secret of theirs, its header, and the header of a signed timestamp.
const SIGNED: [(&str, &str, &str, Option<&str>); 16] = [
    (
        "standard",
        WHSEC,
        "webhook-signature",
        Some("webhook-timestamp"),
    ),
    (
        "standard-ed25519",
        WHSK,
        "webhook-signature",
        Some("webhook-timestamp"),
    ),
    ("svix", WHSEC, "svix-signature", Some("svix-timestamp")),
    ("stripe", TEXT, "stripe-signature", None),
    ("github", TEXT, "x-hub-signature-256", None),
    (
        "slack",
        TEXT,
        "x-slack-signature",
        Some("x-slack-request-timestamp"),
    ),
    ("twilio", TEXT, "x-twilio-signature", None),
    ("shopify", TEXT, "x-shopify-hmac-sha256", None),
    ("woocommerce", TEXT, "x-wc-webhook-signature", None),
    ("intercom", TEXT, "x-hub-signature", None),
    ("docusign", TEXT, "x-docusign-signature-1", None),
    (
        "hubspot",
        TEXT,
        "x-hubspot-signature-v3",
        Some("x-hubspot-request-timestamp"),
    ),
    ("jira", TEXT, "x-hub-signature", None),
    ("trello", TEXT, "x-trello-webhook", None),
    ("asana", TEXT, "x-hook-signature", None),
    ("mailchimp", TEXT, "x-mandrill-signature", None),
];
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_WHSEC: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const WHSK: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const OTHER_WHSK: &str = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const TEXT: &str = "0123456789abcdef";

fn another(secret: &str) -> &'static str {
    match secret {
        WHSEC => OTHER_WHSEC,
        WHSK => OTHER_WHSK,
        _ => "0123456789abcdeg",
    }
}

#[test]
fn rotating_signs_with_both_where_there_is_room_and_else_with_the_newest() {
    for (name, new, header, _) in SIGNED {
        let old = another(new);
        let mut request = request("https://h/", FORM, b"a=b");
        sign_at(&preset(name), &[new, old], AT * 1000, &mut request);
        assert_eq!(check(&preset(name), new, &request, AT), Ok(()), "{name}");
        let lists = ["standard", "standard-ed25519", "svix", "stripe", "docusign"];
        let by_old = check(&preset(name), old, &request, AT);
        assert_eq!(by_old.is_ok(), lists.contains(&name), "{name}");
        let both = verify(
            &preset(name),
            &kept(&[old, new]),
            &Received {
                method: &request.method,
                url: request.url.as_str(),
                headers: &request.headers,
                body: &request.body,
            },
            AT,
            TOLERANCE,
        );
        assert_eq!(both, Ok(()), "{name}");
        assert!(
            sets_header(&preset(name), &header.parse().unwrap()),
            "{name}"
        );
    }
}

#[test]
fn gitlab_sends_the_token_itself() {
    let mut request = request("https://h/", "application/json", b"{}");
    sign_at(&preset("gitlab"), &[TEXT], AT * 1000, &mut request);
    assert_eq!(request.headers["x-gitlab-token"], TEXT);
    assert!(request.headers["x-gitlab-token"].is_sensitive());
    assert_eq!(check(&preset("gitlab"), TEXT, &request, AT), Ok(()));
    let wrong = check(&preset("gitlab"), "0123456789abcdeg", &request, AT);
    assert_eq!(wrong, Err(VerifyError::Mismatch));
    let unsendable = check_secret(&preset("gitlab"), "0123456789abcde\u{e9}");
    assert_eq!(unsendable, Err(SecretError::Token));
}

#[test]
fn a_signed_timestamp_is_judged() {
    for name in [
        "standard",
        "standard-ed25519",
        "svix",
        "stripe",
        "slack",
        "hubspot",
    ] {
        let (_, secret, _, _) = SIGNED.into_iter().find(|row| row.0 == name).unwrap();
        let mut request = request("https://h/", FORM, b"a=b");
        sign_at(&preset(name), &[secret], AT * 1000, &mut request);
        let at = |now| check(&preset(name), secret, &request, now);
        assert_eq!(at(AT + 300), Ok(()), "{name}");
        assert_eq!(at(AT + 301), Err(VerifyError::TooOld(301)), "{name}");
        assert_eq!(at(AT - 301), Err(VerifyError::TooNew(301)), "{name}");
    }
}

#[test]
fn a_body_that_is_no_form_is_not_believed_where_only_forms_are_covered() {
    let mut request = request("https://h/", "application/json", b"{}");
    sign_at(&preset("mailchimp"), &[TEXT], AT * 1000, &mut request);
    assert_eq!(
        check(&preset("mailchimp"), TEXT, &request, AT),
        Err(VerifyError::Uncovered)
    );
    sign_at(&preset("twilio"), &[TEXT], AT * 1000, &mut request);
    request.url = Arc::new("https://h/".parse().unwrap());
    assert_eq!(
        check(&preset("twilio"), TEXT, &request, AT),
        Err(VerifyError::Uncovered)
    );
}

#[test]
fn secrets_are_checked_for_every_scheme() {
    for name in Scheme::NAMES {
        let Some(scheme) = Scheme::from_name(name) else {
            continue;
        };
        let good = SIGNED
            .iter()
            .find(|row| row.0 == name)
            .map_or(TEXT, |row| row.1);
        assert_eq!(check_secret(&scheme, good), Ok(()), "{name}");
        for bad in ["short", "0123456789abcdef\n", " 0123456789abcdef"] {
            let checked = check_secret(&scheme, bad);
            assert_eq!(checked.is_err(), scheme.is_signed(), "{name} {bad:?}");
        }
        let without = Signer::new(&scheme, &[]);
        assert_eq!(without.is_err(), scheme.is_signed(), "{name}");
    }
}

/// What Twilio and Mailchimp sign of a form, put together in the plainest way there is.
fn plainly(vendor: &str, url: &str, body: &[u8]) -> String {
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(body).into_owned() {
        fields.entry(name).or_default().push(value);
    }
    let mut text = url.to_owned();
    for (name, values) in fields {
        let values = match vendor {
            "twilio" => BTreeSet::from_iter(values).into_iter().collect(),
            _ => vec![values.last().unwrap().clone()],
        };
        for value in values {
            text.push_str(&name);
            text.push_str(&value);
        }
    }
    text
}

proptest! {
    // ed25519 takes its time in an unoptimised build.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn anything_changed_is_refused(
        body in "[a-z]{1,9}=[ -~]{1,40}",
        in_body in any::<prop::sample::Index>(),
        in_signature in any::<prop::sample::Index>(),
        flip in 1u8..=127,
        letter in "[A-Za-z0-9]",
        seconds in 1..300i64,
    ) {
        for (name, secret, header, timestamp) in SIGNED {
            let scheme = preset(name);
            let mut good = request("https://h/in?x=1", FORM, body.as_bytes());
            sign_at(&scheme, &[secret], AT * 1000, &mut good);
            prop_assert_eq!(check(&scheme, secret, &good, AT), Ok(()), "{}", name);

            let mut changed = good.clone();
            let mut bytes = body.clone().into_bytes();
            bytes[in_body.index(body.len())] ^= flip;
            let vendor = ["twilio", "mailchimp"].into_iter().find(|vendor| *vendor == name);
            let same = vendor.is_some_and(|vendor| {
                plainly(vendor, "", body.as_bytes()) == plainly(vendor, "", &bytes)
            });
            changed.body = bytes.into();
            prop_assert_eq!(check(&scheme, secret, &changed, AT).is_ok(), same, "body, {}", name);

            let mut changed = good.clone();
            let mut text = good.headers[header].to_str().unwrap().to_owned();
            let at = in_signature.index(text.len());
            if text[at..=at] != letter {
                text.replace_range(at..=at, &letter);
                changed.headers.insert(header, text.parse().unwrap());
                prop_assert!(check(&scheme, secret, &changed, AT).is_err(), "signature, {}", name);
            }

            if let Some(timestamp) = timestamp {
                let mut changed = good.clone();
                let old: i64 = good.headers[timestamp].to_str().unwrap().parse().unwrap();
                changed.headers.insert(timestamp, HeaderValue::from(old + seconds));
                prop_assert_eq!(
                    check(&scheme, secret, &changed, AT),
                    Err(VerifyError::Mismatch),
                    "timestamp, {}", name
                );
            }
            prop_assert_eq!(
                check(&scheme, another(secret), &good, AT),
                Err(VerifyError::Mismatch),
                "secret, {}", name
            );
        }
    }

    #[test]
    fn forms_are_signed_as_simply_as_possible(
        fields in prop::collection::vec(("[a-c]{0,2}", "\\PC{0,3}"), 0..6)
    ) {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&fields)
            .finish();
        let url = "https://h/in?x=1";
        for (name, header) in [("twilio", "x-twilio-signature"), ("mailchimp", "x-mandrill-signature")] {
            let mut request = request(url, FORM, body.as_bytes());
            sign_at(&preset(name), &[TEXT], AT * 1000, &mut request);
            let text = plainly(name, url, body.as_bytes());
            let tag = Mac::new(Hash::Sha1, TEXT.as_bytes()).tag([text.as_bytes()]);
            prop_assert_eq!(&request.headers[header], &tag.written(Encoding::Base64), "{}", name);
        }
    }
}
