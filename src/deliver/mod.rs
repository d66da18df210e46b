//! Delivering: one request, one [`Attempt`].
//!
//! The [`Courier`] signs, sends and reports what came of it, as data. It never retries and never
//! decides: what an answer means is `verdict`'s, how many requests an endpoint gets at once its
//! lane's. One deadline covers everything from resolving the name to the last byte that is read.

mod answer;
mod auth;
pub mod batch;
mod client;
pub mod fetch;
pub mod guard;
mod handshake;
pub mod inspect;
pub mod lane;
pub mod reach;
mod seen;
pub mod signature;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::attempt::{Attempt, ErrorClass, Failure, Outcome};
use crate::event::Facts;
use crate::outgoing::Outgoing;
use crate::subscription::{Auth, TlsFiles};

pub use guard::{AddressPolicy, Denied};
pub use handshake::{Agreed, NotAgreed};
pub use seen::{Seen, SeenAnswer};
pub use signature::{SecretError, Signer};

static PRODUCT: HeaderValue =
    HeaderValue::from_static(concat!("hookbridge/", env!("CARGO_PKG_VERSION")));

/// A deadline beyond this is as good as none.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Makes attempts. One per process, or one per runtime where there are several: connections belong
/// to the runtime that made them.
pub struct Courier {
    policy: Arc<AddressPolicy>,
    clients: client::Clients,
    tokens: auth::Tokens,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    pub tls: Option<&'a Arc<TlsFiles>>,
    pub auth: Option<&'a Auth>,
    /// For TCP and TLS together, within the deadline of the request.
    pub connect_timeout: Duration,
}

impl Courier {
    pub fn new(policy: AddressPolicy) -> Arc<Self> {
        let policy = Arc::new(policy);
        Arc::new(Self {
            clients: client::Clients::new(policy.clone()),
            tokens: auth::Tokens::new(),
            policy,
        })
    }

    /// Signs `request` with the time of now, sends it, and reads the start of the answer.
    pub async fn attempt<'a>(
        &self,
        request: Outgoing,
        signer: &Signer,
        event: impl Into<Facts<'a>>,
        access: Access<'_>,
    ) -> Attempt {
        self.watched(request, signer, event.into(), access, None)
            .await
    }

    /// The same, and notes in `seen` what went over the wire.
    pub async fn watched(
        &self,
        request: Outgoing,
        signer: &Signer,
        event: Facts<'_>,
        access: Access<'_>,
        mut seen: Option<&mut Seen>,
    ) -> Attempt {
        let started_at = Timestamp::now();
        let began = Instant::now();
        let deadline = began + request.deadline.min(FAR);
        let prepared = ready(
            request,
            signer,
            event,
            access.auth,
            &self.policy,
            started_at,
        );
        if let (Ok((request, _)), Some(seen)) = (&prepared, &mut seen) {
            seen.sent = Some(request.clone());
        }
        let outcome = match prepared {
            Ok((request, uri)) => {
                let sending = self.send(as_sent(request, uri), access, began);
                match timeout_at(deadline, sending).await {
                    Ok(Ok((response, token))) => {
                        let mut seen =
                            seen.map(|seen| seen.answer.insert(SeenAnswer::head_of(&response)));
                        let body = seen.as_deref_mut().map(|seen| &mut seen.body);
                        let mut answer = answer::read(response, deadline, started_at, body).await;
                        if let Some(token) = token {
                            auth::mask(&token, &mut answer.excerpt);
                            if let Some(seen) = seen {
                                seen.mask(&token);
                            }
                        }
                        Outcome::Answered(answer)
                    }
                    Ok(Err(failure)) => Outcome::Failed(failure),
                    Err(_) => Outcome::Failed(Failure {
                        class: ErrorClass::Timeout,
                        detail: "no answer in time".to_owned(),
                    }),
                }
            }
            Err(outcome) => outcome,
        };
        Attempt {
            started_at,
            took: began.elapsed(),
            outcome,
        }
    }

    /// Does with `request` all that [`Courier::attempt`] does but for the sending.
    pub fn rehearse(
        &self,
        request: Outgoing,
        signer: &Signer,
        event: Facts<'_>,
        auth: Option<&Auth>,
        seen: Option<&mut Seen>,
    ) -> Attempt {
        let (started_at, began) = (Timestamp::now(), Instant::now());
        let prepared = ready(request, signer, event, auth, &self.policy, started_at);
        let outcome = match prepared {
            Ok((request, _)) => {
                if let Some(seen) = seen {
                    seen.sent = Some(request);
                }
                Outcome::Withheld
            }
            Err(outcome) => outcome,
        };
        Attempt {
            started_at,
            took: began.elapsed(),
            outcome,
        }
    }

    /// The answer, and the token that was shown, if any.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        access: Access<'_>,
        now: Instant,
    ) -> Result<(Response<client::Incoming>, Option<HeaderValue>), Failure> {
        let Access {
            tls,
            auth,
            connect_timeout,
        } = access;
        let Some(Auth::OAuth2(client)) = auth else {
            let sent = self.clients.send(request, tls, connect_timeout, now);
            return Ok((sent.await?, None));
        };
        let way = auth::Way {
            clients: &self.clients,
            policy: &self.policy,
            tls,
            connect_timeout,
        };
        let authorized = |token: &HeaderValue| {
            let mut request = request.clone();
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            request
        };
        let token = self.tokens.get(client, None, way).await?;
        let sending = authorized(&token.header);
        let sent = self.clients.send(sending, tls, connect_timeout, now);
        let response = sent.await?;
        if response.status() != StatusCode::UNAUTHORIZED || token.fresh {
            return Ok((response, Some(token.header)));
        }
        // It may have been revoked before its time.
        let refused = token.header;
        let token = self.tokens.get(client, Some(&refused), way).await?;
        if token.header == refused {
            return Ok((response, Some(refused)));
        }
        let sending = authorized(&token.header);
        let sent = self.clients.send(sending, tls, connect_timeout, now);
        Ok((sent.await?, Some(token.header)))
    }

    /// Whether the host of `url` takes a connection; nothing is sent to it.
    pub async fn reaches(&self, url: &Url) -> bool {
        reach::endpoint(self.policy.clone(), url).await
    }

    fn prepare(
        &self,
        request: Outgoing,
        signer: &Signer,
        event: Facts<'_>,
        auth: Option<&Auth>,
        at: Timestamp,
    ) -> Result<Request<Full<Bytes>>, Outcome> {
        let (request, uri) = ready(request, signer, event, auth, &self.policy, at)?;
        Ok(as_sent(request, uri))
    }
}

fn as_sent(request: Outgoing, uri: Uri) -> Request<Full<Bytes>> {
    let Outgoing {
        method,
        headers,
        body,
        ..
    } = request;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// `request` as it goes out at the time `at`, and where to: signed, and with what `auth` adds to it
/// but for a token that has to be asked for. The error says why it is never sent.
pub fn ready(
    mut request: Outgoing,
    signer: &Signer,
    event: Facts<'_>,
    auth: Option<&Auth>,
    policy: &AddressPolicy,
    at: Timestamp,
) -> Result<(Outgoing, Uri), Outcome> {
    if let Some(Auth::Query { name, key }) = auth {
        let url = Arc::make_mut(&mut request.url);
        url.query_pairs_mut().append_pair(name, key.expose());
    }
    signer.sign(event, at, &mut request);
    policy.check_url(&request.url).map_err(|denied| {
        Outcome::Failed(Failure {
            class: ErrorClass::Denied,
            detail: denied.to_string(),
        })
    })?;
    let uri = Uri::try_from(request.url.as_str())
        .map_err(|error| Outcome::Unsendable(format!("the URL cannot be sent: {error}")))?;
    let headers = &mut request.headers;
    if let Some(Auth::Header(name, value)) = auth {
        headers.insert(name, value.clone());
    }
    headers.entry(USER_AGENT).or_insert_with(|| PRODUCT.clone());
    Ok((request, uri))
}
