//! Delivering: one request, one [`Attempt`].
//!
//! The [`Courier`] signs, sends and reports what came of it, as data. It never retries and never
//! decides: what an answer means is `verdict`'s, how many requests an endpoint gets at once its
//! lane's. One deadline covers everything from resolving the name to the last byte that is read.

mod answer;
mod client;
pub mod guard;
pub mod inspect;
pub mod lane;
pub mod reach;
pub mod signature;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::attempt::{Attempt, ErrorClass, Failure, Outcome};
use crate::event::Facts;
use crate::outgoing::Outgoing;
use crate::subscription::TlsFiles;

pub use guard::{AddressPolicy, Denied};
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
}

impl Courier {
    pub fn new(policy: AddressPolicy) -> Arc<Self> {
        let policy = Arc::new(policy);
        Arc::new(Self {
            clients: client::Clients::new(policy.clone()),
            policy,
        })
    }

    /// Signs `request` with the time of now, sends it, and reads the start of the answer.
    /// `connect_timeout` is for TCP and TLS together, within the request's deadline.
    pub async fn attempt<'a>(
        &self,
        request: Outgoing,
        signer: &Signer,
        event: impl Into<Facts<'a>>,
        tls: Option<&Arc<TlsFiles>>,
        connect_timeout: Duration,
    ) -> Attempt {
        let started_at = Timestamp::now();
        let began = Instant::now();
        let deadline = began + request.deadline.min(FAR);
        let outcome = match self.prepare(request, signer, event.into(), started_at) {
            Ok(request) => {
                let sending = self.clients.send(request, tls, connect_timeout, began);
                match timeout_at(deadline, sending).await {
                    Ok(Ok(response)) => {
                        Outcome::Answered(answer::read(response, deadline, started_at).await)
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

    /// Whether the host of `url` takes a connection; nothing is sent to it.
    pub async fn reaches(&self, url: &Url) -> bool {
        reach::endpoint(self.policy.clone(), url).await
    }

    fn prepare(
        &self,
        mut request: Outgoing,
        signer: &Signer,
        event: Facts<'_>,
        at: Timestamp,
    ) -> Result<Request<Full<Bytes>>, Outcome> {
        signer.sign(event, at, &mut request);
        let Outgoing {
            method,
            url,
            mut headers,
            body,
            deadline: _,
        } = request;
        self.policy.check_url(&url).map_err(|denied| {
            Outcome::Failed(Failure {
                class: ErrorClass::Denied,
                detail: denied.to_string(),
            })
        })?;
        let uri = Uri::try_from(url.as_str())
            .map_err(|error| Outcome::Unsendable(format!("the URL cannot be sent: {error}")))?;
        headers.entry(USER_AGENT).or_insert_with(|| PRODUCT.clone());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }
}
