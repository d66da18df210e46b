//! Inspecting an endpoint: its address, its certificate, and how it takes a signed sample.
//!
//! The guard holds here as for deliveries, and the same code connects and sends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Uri};
use jiff::Timestamp;

use super::{Access, AddressPolicy, Agreed, Courier, Signer, client};
use crate::attempt::{ErrorClass, Failure, Outcome};
use crate::event::{EventId, Facts};
use crate::finding::Findings;
use crate::outgoing::Outgoing;
use crate::subscription::{Endpoint, Scheme};
use crate::tls::certificate;

const CONNECT: Duration = Duration::from_secs(5);
const PING: Duration = Duration::from_secs(15);

/// The type of the event that a ping sends.
pub const PING_TYPE: &str = "hookbridge.ping";

/// Looks at `endpoint` without sending it anything, and with `ping` sends it a signed sample.
pub async fn endpoint(policy: &AddressPolicy, endpoint: &Endpoint, ping: bool, found: &Findings) {
    let shown = endpoint.shown();
    if let Err(denied) = policy.check_url(&endpoint.url) {
        let advice = "the key in brackets opens it on purpose; else the URL has to be another one";
        return found.problem(format!("{shown}: {denied}"), advice).await;
    }
    signature(endpoint, found).await;
    let encrypted = endpoint.url.scheme() == "https";
    if !encrypted {
        let what = format!("{shown}: plain http");
        let advice = "body and signature can be read and changed on the way: use https";
        found.warning(what, advice).await;
    }
    let files = endpoint.tls.as_deref();
    if let Some(path) = files.and_then(|files| files.cert.as_deref()) {
        certificate::tell_of_own(found, path, Timestamp::now()).await;
    }
    let Ok(uri) = Uri::try_from(endpoint.url.as_str()) else {
        let what = format!("{shown}: the URL cannot be sent");
        return found.problem(what, "write it in plain ASCII").await;
    };
    let policy = Arc::new(policy.clone());
    let steps = client::inspect::steps(policy.clone(), &uri, endpoint.tls.clone(), CONNECT).await;
    let now = Timestamp::now();
    match &steps.failure {
        None if encrypted => certificate::tell_of_chain(found, &shown, &steps.chain, now).await,
        None => found.ok(format!("{shown}: TCP works")).await,
        Some(failure) if failure.class == ErrorClass::Tls => {
            let why = &failure.detail;
            certificate::tell_of_disbelief(found, &shown, &steps.chain, why, now).await;
        }
        Some(failure) => return cannot(&shown, failure, found).await,
    }
    handshake(&policy, endpoint, &shown, ping, found).await;
    match endpoint.payload.adapted() {
        Some(adapted) if ping => {
            let name = adapted.name;
            let what = format!("{shown}: not pinged, since `{name}` would take it for a message");
            found.ok(what).await;
        }
        _ if ping => send(policy, endpoint, &shown, found).await,
        _ => {}
    }
}

async fn signature(endpoint: &Endpoint, found: &Findings) {
    if endpoint.signature == Scheme::None && endpoint.payload.adapted().is_none() {
        let what = "requests are not signed (`signature: none`)";
        let advice = "the receiver cannot tell them from anybody's: give it a secret";
        found.warning(what, advice).await;
    }
}

/// With `ping` it is asked, else only said that it will be.
async fn handshake(
    policy: &AddressPolicy,
    endpoint: &Endpoint,
    shown: &str,
    ping: bool,
    found: &Findings,
) {
    let Some(handshake) = &endpoint.handshake else {
        return;
    };
    let kind = handshake.name();
    if !ping {
        let what = format!("{shown}: asked for its agreement (`{kind}`) before the first delivery");
        return found.ok(what).await;
    }
    let courier = Courier::new(policy.clone());
    match courier.shake_hands(endpoint).await {
        Ok(Agreed { rate: None }) => {
            let what = format!("{shown}: agrees to get deliveries (`{kind}`)");
            found.ok(what).await;
        }
        Ok(Agreed { rate: Some(rate) }) => {
            let what = format!("{shown}: agrees to get deliveries (`{kind}`), {rate} at most");
            found.ok(what).await;
        }
        Err(not) => {
            let what = format!(
                "{shown}: does not agree to get deliveries (`{kind}`): {}",
                not.why
            );
            match not.unreachable {
                true => found.unreachable(what, not.advice).await,
                false => found.problem(what, not.advice).await,
            }
        }
    }
}

async fn cannot(shown: &str, failure: &Failure, found: &Findings) {
    let why = &failure.detail;
    match failure.class {
        ErrorClass::Denied => {
            let advice = "the name leads to an address that is not public: open its range with \
                          `delivery.allow_networks` if that is meant";
            found.problem(format!("{shown}: {why}"), advice).await;
        }
        ErrorClass::Dns => {
            let what = format!("{shown}: the name does not resolve: {why}");
            found.unreachable(what, "check the host's name").await;
        }
        _ => {
            let what = format!("{shown}: no connection: {why}");
            found
                .unreachable(what, "ask whoever runs it, or check firewalls")
                .await;
        }
    }
}

async fn send(policy: Arc<AddressPolicy>, endpoint: &Endpoint, shown: &str, found: &Findings) {
    let signer = match Signer::new(&endpoint.signature, &endpoint.secrets) {
        Ok(signer) => signer,
        Err(why) => {
            let what = format!("{shown}: cannot be signed: {why}");
            return found
                .problem(what, "give it a secret that fits its `signature`")
                .await;
        }
    };
    let id = EventId::random();
    let mut headers = endpoint.headers.as_deref().cloned().unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    headers.entry(CONTENT_TYPE).or_insert(json);
    let body = format!(
        "{{\"type\":\"{PING_TYPE}\",\"timestamp\":\"{}\",\"data\":{{}}}}",
        Timestamp::now()
    );
    let request = Outgoing {
        method: endpoint.method.clone(),
        url: endpoint.url.clone(),
        headers,
        body: match endpoint.method {
            Method::GET => Bytes::new(),
            _ => Bytes::from(body),
        },
        deadline: PING,
    };
    let courier = Courier::new(AddressPolicy::clone(&policy));
    let access = Access {
        tls: endpoint.tls.as_ref(),
        auth: endpoint.auth.as_deref(),
        connect_timeout: CONNECT,
    };
    let event = Facts {
        id: &id,
        topic: PING_TYPE,
        kind: PING_TYPE,
        source: "",
    };
    let attempt = courier.attempt(request, &signer, event, access).await;
    let took = attempt.took.as_millis();
    let label = attempt.outcome.label();
    match &attempt.outcome {
        Outcome::Answered(_) if attempt.outcome.is_success() => {
            found
                .ok(format!("{shown}: ping answered {label} after {took} ms"))
                .await;
        }
        Outcome::Answered(answer) => {
            let advice = match answer.status {
                401 | 403 => "does it verify with the same secret, and take other types of events?",
                404 | 405 | 410 => "check the path of the URL, and the method",
                300..=399 => "redirects are not followed: use the URL it points to",
                _ => "an event would be retried: see the log of the receiver",
            };
            let what = format!("{shown}: ping answered {label} after {took} ms");
            found.problem(what, advice).await;
        }
        Outcome::Failed(failure) => {
            let what = format!(
                "{shown}: ping failed after {took} ms: {label}: {}",
                failure.detail
            );
            found
                .unreachable(
                    what,
                    "see the log of the receiver, or of what stands before it",
                )
                .await;
        }
        Outcome::Unsendable(why) | Outcome::Unrenderable(why) | Outcome::Invalid(why) => {
            let what = format!("{shown}: the ping cannot be sent: {why}");
            found.problem(what, "check URL and headers").await;
        }
        // A ping is sent.
        Outcome::Withheld => {}
    }
}
