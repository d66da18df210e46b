//! Tokens for receivers that want one: asked for once, used until shortly before they end.
//!
//! OAuth 2.0 client credentials (RFC 6749, section 4.4) with bearer tokens (RFC 6750). Whoever needs a
//! token while another one asks for it waits for that answer, so that a full lane makes one request.
//! The token request goes the way of any other: over our own connections, past the address guard,
//! without redirects.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use url::form_urlencoded;

use super::client::{Clients, Incoming};
use super::guard::AddressPolicy;
use crate::attempt::{ErrorClass, Failure};
use crate::subscription::{Credentials, OAuth2, TlsFiles};

/// Tokens kept; beyond it the one that was used first is asked for again.
const MAX_KEPT: usize = 256;
/// For one token request, within the deadline of the attempt that needs it.
const LONGEST: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Where the server does not say how long a token lasts.
const USUAL_LIFE: Duration = Duration::from_secs(300);
/// A token is not used in this last part of its life, or the last tenth if that is shorter.
const MARGIN: Duration = Duration::from_secs(60);
/// A token that is refused is replaced no more often than this: a receiver that refuses every token
/// is not to be felt by the server that grants them.
const RENEW_EVERY: Duration = Duration::from_secs(30);
/// After a refusal nobody asks again for so long; they are all told the same.
const PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Tokens(Mutex<Vec<(Arc<OAuth2>, Arc<Slot>)>>);

type Slot = tokio::sync::Mutex<State>;

#[derive(Default)]
enum State {
    #[default]
    None,
    Have {
        header: HeaderValue,
        until: Instant,
        /// When one that was refused was replaced.
        renewed: Option<Instant>,
    },
    Refused {
        why: Failure,
        until: Instant,
    },
}

/// What `authorization` says.
pub(super) struct Token {
    pub(super) header: HeaderValue,
    /// Nobody has used it before.
    pub(super) fresh: bool,
}

/// The way that token requests go.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) clients: &'a Clients,
    pub(super) policy: &'a AddressPolicy,
    pub(super) tls: Option<&'a Arc<TlsFiles>>,
    pub(super) connect_timeout: Duration,
}

/// A server's answer (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    token_type: String,
    expires_in: Option<f64>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The token of `client`. One that was `refused` is replaced, if that was not done just before.
    pub(super) async fn get(
        &self,
        client: &Arc<OAuth2>,
        refused: Option<&HeaderValue>,
        way: Way<'_>,
    ) -> Result<Token, Failure> {
        let slot = self.slot(client);
        let mut state = slot.lock().await;
        let now = Instant::now();
        let mut renewed = None;
        match &*state {
            State::Have {
                header,
                until,
                renewed: before,
            } if *until > now => {
                let lately = before.filter(|at| now.duration_since(*at) < RENEW_EVERY);
                if Some(header) != refused || lately.is_some() {
                    return Ok(Token {
                        header: header.clone(),
                        fresh: false,
                    });
                }
                renewed = Some(now);
            }
            State::Refused { why, until } if *until > now => return Err(why.clone()),
            _ => {}
        }
        let asked = timeout(LONGEST, ask(client, way)).await;
        let granted = asked.unwrap_or_else(|_| Err(refusal("no answer in time")));
        match granted {
            Ok((header, life)) => {
                let until = now + life - MARGIN.min(life / 10);
                let token = Token {
                    header: header.clone(),
                    fresh: true,
                };
                *state = State::Have {
                    header,
                    until,
                    renewed,
                };
                Ok(token)
            }
            Err(why) => {
                *state = State::Refused {
                    why: why.clone(),
                    until: Instant::now() + PAUSE,
                };
                Err(why)
            }
        }
    }

    fn slot(&self, client: &Arc<OAuth2>) -> Arc<Slot> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |it: &Arc<OAuth2>| Arc::ptr_eq(it, client) || **it == **client;
        if let Some((_, slot)) = kept.iter().find(|(it, _)| same(it)) {
            return slot.clone();
        }
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        let slot = Arc::<Slot>::default();
        kept.push((client.clone(), slot.clone()));
        slot
    }
}

/// Asks for a token: the header, and how long it may be used.
async fn ask(client: &OAuth2, way: Way<'_>) -> Result<(HeaderValue, Duration), Failure> {
    way.policy
        .check_url(&client.token_url)
        .map_err(|denied| Failure {
            class: ErrorClass::Denied,
            detail: format!("token request: {denied}"),
        })?;
    let request = request(client)?;
    let sending = way
        .clients
        .send(request, way.tls, way.connect_timeout, Instant::now());
    let response = sending.await.map_err(|failure| Failure {
        class: failure.class,
        detail: format!("token request: {}", failure.detail),
    })?;
    granted(response).await
}

fn request(client: &OAuth2) -> Result<Request<Full<Bytes>>, Failure> {
    let uri = Uri::try_from(client.token_url.as_str())
        .map_err(|error| refusal(&format!("the URL cannot be sent: {error}")))?;
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    for (name, value) in [("scope", &client.scope), ("audience", &client.audience)] {
        if let Some(value) = value {
            form.append_pair(name, value);
        }
    }
    if client.credentials == Credentials::Body {
        form.append_pair("client_id", &client.client_id);
        form.append_pair("client_secret", client.client_secret.expose());
    }
    let mut request = Request::new(Full::new(Bytes::from(form.finish())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(CONTENT_TYPE, form);
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if client.credentials == Credentials::Header {
        // Each is form-encoded before they are joined (RFC 6749, section 2.3.1).
        let encoded =
            |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = format!(
            "{}:{}",
            encoded(&client.client_id),
            encoded(client.client_secret.expose())
        );
        let mut basic = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)))
            .map_err(|_| refusal("the credentials cannot be sent"))?;
        basic.set_sensitive(true);
        headers.insert(AUTHORIZATION, basic);
    }
    Ok(request)
}

async fn granted(response: Response<Incoming>) -> Result<(HeaderValue, Duration), Failure> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await;
    let body = body.map_err(|_| refusal("the answer broke off, or is too long"))?;
    let body = body.to_bytes();
    if !status.is_success() {
        // The code of an error is one of a few words; descriptions could repeat what we have sent.
        let code = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let code = code.as_ref().and_then(|body| body.get("error")?.as_str());
        let is_word = |code: &&str| {
            code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        };
        return Err(match code.filter(is_word) {
            Some(code) => refusal(&format!("answered {} {code}", status.as_u16())),
            None => refusal(&format!("answered {}", status.as_u16())),
        });
    }
    let granted: Granted = serde_json::from_slice(&body)
        .map_err(|_| refusal("the answer is not that of a token request"))?;
    if !granted.token_type.eq_ignore_ascii_case("bearer") {
        return Err(refusal("the token is not a bearer token"));
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {}", granted.access_token))
        .map_err(|_| refusal("the token cannot be sent"))?;
    header.set_sensitive(true);
    let life = granted
        .expires_in
        .map(|seconds| seconds.clamp(0.0, 86_400.0));
    Ok((header, life.map_or(USUAL_LIFE, Duration::from_secs_f64)))
}

/// Takes the token out of what a receiver has repeated.
pub(super) fn mask(token: &HeaderValue, excerpt: &mut String) {
    let bare = token.to_str().ok().and_then(|text| text.rsplit(' ').next());
    if let Some(bare) = bare.filter(|bare| !bare.is_empty() && excerpt.contains(bare)) {
        *excerpt = excerpt.replace(bare, "***");
    }
}

fn refusal(why: &str) -> Failure {
    Failure {
        class: ErrorClass::Auth,
        detail: format!("token request: {why}"),
    }
}
