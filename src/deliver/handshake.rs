//! Handshakes: asking an endpoint whether it wants our deliveries, before the first one.
//!
//! One request, past the same guard and over the same connections as deliveries, with the endpoint's
//! headers and authorization; what it answers is judged here. When to ask, and what to hold until
//! then, is `pipeline`'s.
//!
//! - `options`: CloudEvents' HTTP 1.1 Web Hooks, section 4
//!   (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md>)
//! - `challenge`: Slack's `url_verification`
//!   (<https://docs.slack.dev/reference/events/url_verification>)
//! - `hook-secret`: Asana's (<https://developers.asana.com/docs/webhooks-guide>)

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};

use super::{Access, Courier, Signer};
use crate::attempt::{ErrorClass, Failure};
use crate::event::{EventId, Facts};
use crate::outgoing::Outgoing;
use crate::subscription::{Challenge, Endpoint, Handshake, Rate, Scheme, Secret};

/// For all of it.
const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// An answer that repeats a challenge is short.
const MAX_ANSWER_BYTES: usize = 16 << 10;
/// What headers that name topic and type say of it.
const CALLED: &str = "hookbridge.handshake";

const ORIGIN: HeaderName = HeaderName::from_static("webhook-request-origin");
const RATE: HeaderName = HeaderName::from_static("webhook-request-rate");
const ALLOWED_ORIGIN: HeaderName = HeaderName::from_static("webhook-allowed-origin");
const ALLOWED_RATE: HeaderName = HeaderName::from_static("webhook-allowed-rate");
const HOOK_SECRET: HeaderName = HeaderName::from_static("x-hook-secret");

/// An endpoint wants our deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreed {
    /// No more than this.
    pub rate: Option<Rate>,
}

/// Why an endpoint has not agreed; for people, without its URL and anything secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotAgreed {
    pub why: String,
    /// What to do about it.
    pub advice: &'static str,
    /// There was no answer at all.
    pub unreachable: bool,
}

impl NotAgreed {
    fn new(why: impl Into<String>, advice: &'static str) -> Self {
        Self {
            why: why.into(),
            advice,
            unreachable: false,
        }
    }
}

impl From<Failure> for NotAgreed {
    fn from(failure: Failure) -> Self {
        let advice = match failure.class {
            ErrorClass::Denied => "open its network on purpose with `delivery.allow_networks`",
            _ => "see that the endpoint runs and can be reached: `hookbridge doctor`",
        };
        Self {
            unreachable: true,
            ..Self::new(
                format!("{}: {}", failure.class.as_str(), failure.detail),
                advice,
            )
        }
    }
}

/// What is asked with.
struct Question<'a> {
    handshake: &'a Handshake,
    /// A text that nobody can guess.
    challenge: String,
    secret: Option<&'a Secret>,
}

impl Courier {
    /// Asks `endpoint` as its handshake says. One without a handshake agrees to everything.
    pub async fn shake_hands(&self, endpoint: &Endpoint) -> Result<Agreed, NotAgreed> {
        let Some(handshake) = endpoint.handshake.as_deref() else {
            return Ok(Agreed::default());
        };
        let question = Question {
            handshake,
            challenge: hex::encode(rand::random::<[u8; 16]>()),
            secret: endpoint.secrets.first(),
        };
        let signer = match handshake {
            Handshake::Challenge(_) => Signer::new(&endpoint.signature, &endpoint.secrets),
            Handshake::Options { .. } | Handshake::HookSecret => Signer::new(&Scheme::None, &[]),
        };
        let signer =
            signer.map_err(|why| NotAgreed::new(why.to_string(), "give it a secret that fits"))?;
        let id = EventId::random();
        let facts = Facts {
            id: &id,
            topic: CALLED,
            kind: CALLED,
            source: "",
        };
        let auth = endpoint.auth.as_deref();
        let request = question.request(endpoint)?;
        let request = self
            .prepare(request, &signer, facts, auth, Timestamp::now())
            .map_err(|outcome| NotAgreed::new(outcome.excerpt(), "check the endpoint's URL"))?;
        let access = Access {
            tls: endpoint.tls.as_ref(),
            auth,
            connect_timeout: CONNECT,
        };
        let asking = async {
            let (response, _) = self.send(request, access, Instant::now()).await?;
            let (head, body) = response.into_parts();
            let body = match handshake {
                Handshake::Challenge(_) => {
                    Limited::new(body, MAX_ANSWER_BYTES).collect().await.ok()
                }
                Handshake::Options { .. } | Handshake::HookSecret => None,
            };
            let body = body.map(|body| body.to_bytes());
            question.judge(head.status, &head.headers, &body.unwrap_or_default())
        };
        let in_vain = Failure {
            class: ErrorClass::Timeout,
            detail: "no answer in time".to_owned(),
        };
        timeout(DEADLINE, asking)
            .await
            .unwrap_or_else(|_| Err(in_vain.into()))
    }
}

impl Question<'_> {
    fn request(&self, endpoint: &Endpoint) -> Result<Outgoing, NotAgreed> {
        let mut headers = endpoint.headers.as_deref().cloned().unwrap_or_default();
        let json = HeaderValue::from_static("application/json");
        let value = |text: &str| {
            let wrong = |_| NotAgreed::new("a header cannot carry what is asked with", "use ASCII");
            HeaderValue::from_str(text).map_err(wrong)
        };
        let (method, body) = match self.handshake {
            Handshake::Options { origin } => {
                headers.insert(ORIGIN, value(origin)?);
                if let Some(rate) = endpoint.rate {
                    headers.insert(RATE, HeaderValue::from(per_minute(rate)));
                }
                (Method::OPTIONS, Bytes::new())
            }
            Handshake::Challenge(challenge) => {
                headers.insert(CONTENT_TYPE, json);
                (Method::POST, self.body(challenge))
            }
            Handshake::HookSecret => {
                let secret = self.secret.map_or("", Secret::expose);
                let mut secret = value(secret)?;
                secret.set_sensitive(true);
                headers.insert(HOOK_SECRET, secret);
                headers.insert(CONTENT_TYPE, json);
                (Method::POST, Bytes::from_static(b"{}"))
            }
        };
        Ok(Outgoing {
            method,
            url: endpoint.url.clone(),
            headers,
            body,
            deadline: DEADLINE,
        })
    }

    fn body(&self, challenge: &Challenge) -> Bytes {
        let mut body = Map::new();
        if let Some(token) = &challenge.token {
            body.insert("token".to_owned(), token.expose().into());
        }
        body.insert(challenge.field.clone(), self.challenge.as_str().into());
        body.insert("type".to_owned(), challenge.kind.as_str().into());
        Bytes::from(Value::from(body).to_string())
    }

    /// What an answer means.
    fn judge(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Agreed, NotAgreed> {
        let said = status.as_u16();
        if !status.is_success() {
            let advice = match said {
                300..=399 => "redirects are not followed: use the URL it points to",
                401 | 403 => "the receiver has to know us, or our token, before it can agree",
                _ => "the receiver has to answer the handshake with 2xx: is it made for this kind?",
            };
            return Err(NotAgreed::new(format!("it answered {said}"), advice));
        }
        match self.handshake {
            Handshake::Options { origin } => allowed(origin, said, headers),
            Handshake::Challenge(challenge) => match self.is_echoed(challenge, body) {
                true => Ok(Agreed::default()),
                false => Err(NotAgreed::new(
                    format!("it answered {said}, and what came back is not the challenge"),
                    "answer with the value of the challenge, as text or as the same member of a JSON object",
                )),
            },
            Handshake::HookSecret => {
                let came = headers.get(HOOK_SECRET);
                let came = came.and_then(|value| value.to_str().ok()).map(Secret::new);
                if came.is_some() && came.as_ref() == self.secret {
                    return Ok(Agreed::default());
                }
                let what = match came {
                    Some(_) => "with another `X-Hook-Secret`",
                    None => "without `X-Hook-Secret`",
                };
                Err(NotAgreed::new(
                    format!("it answered {said} {what}"),
                    "answer with the header `X-Hook-Secret` as it came, and keep it: it signs deliveries",
                ))
            }
        }
    }

    fn is_echoed(&self, challenge: &Challenge, body: &[u8]) -> bool {
        if body.trim_ascii() == self.challenge.as_bytes() {
            return true;
        }
        let Ok(json) = serde_json::from_slice::<Value>(body) else {
            return false;
        };
        let member = json.get(&challenge.field).unwrap_or(&json);
        member.as_str() == Some(self.challenge.as_str())
    }
}

/// What `WebHook-Allowed-Origin` and `WebHook-Allowed-Rate` say.
fn allowed(origin: &str, said: u16, headers: &HeaderMap) -> Result<Agreed, NotAgreed> {
    let text = |name: &HeaderName| {
        let value = headers.get(name)?;
        Some(value.to_str().unwrap_or_default().trim())
    };
    let advice = "answer with `WebHook-Allowed-Origin`: the origin that came, or `*`";
    match text(&ALLOWED_ORIGIN) {
        Some("*") => {}
        Some(allowed) if allowed.eq_ignore_ascii_case(origin) => {}
        Some(_) => {
            let why = format!("it answered {said}, and allows another origin than `{origin}`");
            return Err(NotAgreed::new(why, advice));
        }
        None => {
            let why = format!("it answered {said} without `WebHook-Allowed-Origin`");
            return Err(NotAgreed::new(why, advice));
        }
    }
    let rate = match text(&ALLOWED_RATE) {
        None | Some("*") => None,
        Some(count) => {
            let count = count.parse::<u32>().ok().filter(|count| *count > 0);
            let count = count.ok_or_else(|| {
                let why = format!("it answered {said}, and `WebHook-Allowed-Rate` is no number");
                NotAgreed::new(why, "a whole number of requests a minute, or `*`")
            })?;
            let per = Duration::from_secs(60);
            Some(Rate { count, per })
        }
    };
    Ok(Agreed { rate })
}

/// At least one.
fn per_minute(rate: Rate) -> u64 {
    let per_s = rate.per.as_secs().max(1);
    (u64::from(rate.count) * 60 / per_s).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(handshake: Handshake, headers: &[(&'static str, &str)], body: &str) -> String {
        let secret = Secret::new("0123456789abcdef");
        let question = Question {
            handshake: &handshake,
            challenge: "c4a11e".to_owned(),
            secret: Some(&secret),
        };
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        match question.judge(StatusCode::OK, &headers, body.as_bytes()) {
            Ok(Agreed { rate: None }) => "agreed".to_owned(),
            Ok(Agreed { rate: Some(rate) }) => format!("agreed to {rate}"),
            Err(not) => not.why,
        }
    }

    #[test]
    fn an_origin_is_allowed_by_its_name_or_a_star() {
        let options = |headers: &[(&'static str, &str)]| {
            let origin = "bridge.example.com".to_owned();
            judged(Handshake::Options { origin }, headers, "")
        };
        let (origin, rate) = ("webhook-allowed-origin", "webhook-allowed-rate");
        assert_eq!(options(&[(origin, "*")]), "agreed");
        assert_eq!(
            options(&[(origin, "Bridge.example.com"), (rate, "*")]),
            "agreed"
        );
        assert_eq!(options(&[(origin, "*"), (rate, "120")]), "agreed to 120/m");
        assert_eq!(
            options(&[]),
            "it answered 200 without `WebHook-Allowed-Origin`"
        );
        for wrong in ["example.com", "", "*, other"] {
            let said = options(&[(origin, wrong)]);
            assert!(said.contains("another origin"), "{wrong}: {said}");
        }
        for wrong in ["0", "-1", "1.5", "many", "99999999999"] {
            let said = options(&[(origin, "*"), (rate, wrong)]);
            assert!(said.contains("no number"), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_challenge_comes_back_as_text_or_json() {
        let challenge = |body| judged(Handshake::Challenge(Challenge::default()), &[], body);
        for good in [
            "c4a11e",
            " c4a11e\n",
            "\"c4a11e\"",
            "{\"challenge\": \"c4a11e\", \"more\": 1}",
        ] {
            assert_eq!(challenge(good), "agreed", "{good}");
        }
        for wrong in [
            "",
            "ok",
            "c4a11e0",
            "{\"answer\": \"c4a11e\"}",
            "[\"c4a11e\"]",
        ] {
            assert!(challenge(wrong).contains("not the challenge"), "{wrong}");
        }
    }

    #[test]
    fn a_secret_comes_back_in_its_header() {
        let secret = |headers: &[(&'static str, &str)]| judged(Handshake::HookSecret, headers, "");
        assert_eq!(secret(&[("x-hook-secret", "0123456789abcdef")]), "agreed");
        assert!(secret(&[("x-hook-secret", "other")]).contains("another `X-Hook-Secret`"));
        assert!(secret(&[]).contains("without `X-Hook-Secret`"));
    }

    #[test]
    fn a_rate_is_asked_for_by_the_minute() {
        let rate = |text: &str| per_minute(text.parse().unwrap());
        assert_eq!((rate("50/s"), rate("7/m"), rate("30/h")), (3000, 7, 1));
    }
}
