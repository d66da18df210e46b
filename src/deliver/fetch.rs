//! Fetching: a GET of what the bridge itself needs to know, from a place that its operator names.
//!
//! It goes the way of deliveries, with the same TLS and the same authorization, and unlike them
//! past no address guard: the place is the operator's own, as brokers are, and is most often inside.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{Access, AddressPolicy, Courier, PRODUCT};
use crate::attempt::{ErrorClass, Failure};
use crate::subscription::{Auth, TlsFiles};

/// How one place is asked.
pub struct Fetcher {
    courier: Arc<Courier>,
    settings: Settings,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub auth: Option<Auth>,
    pub tls: Option<Arc<TlsFiles>>,
    /// For all of one request.
    pub timeout: Duration,
    /// Of an answer.
    pub max_bytes: usize,
    /// What answers may be, as the request says it.
    pub accept: &'static str,
}

impl Fetcher {
    pub fn new(settings: Settings) -> Self {
        let networks = ["0.0.0.0/0", "::/0"].iter();
        let everywhere = AddressPolicy {
            allow_http: true,
            allow_networks: networks.filter_map(|net| net.parse().ok()).collect(),
        };
        Self {
            courier: Courier::new(everywhere),
            settings,
        }
    }

    /// The status and the body of what `url` answers. An error says no URL.
    pub async fn get(&self, url: &Url) -> Result<(u16, Bytes), Failure> {
        let deadline = Instant::now() + self.settings.timeout;
        let answer = timeout_at(deadline, self.ask(url));
        answer.await.unwrap_or_else(|_| {
            Err(Failure {
                class: ErrorClass::Timeout,
                detail: "no answer in time".to_owned(),
            })
        })
    }

    async fn ask(&self, url: &Url) -> Result<(u16, Bytes), Failure> {
        let Settings {
            auth,
            tls,
            timeout,
            max_bytes,
            accept,
        } = &self.settings;
        let mut url = url.clone();
        if let Some(Auth::Query { name, key }) = auth {
            url.query_pairs_mut().append_pair(name, key.expose());
        }
        let uri = Uri::try_from(url.as_str()).map_err(|error| protocol(error.to_string()))?;
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.insert(USER_AGENT, PRODUCT.clone());
        if let Some(Auth::Header(name, value)) = auth {
            headers.insert(name, value.clone());
        }
        let access = Access {
            tls: tls.as_ref(),
            auth: auth.as_ref(),
            connect_timeout: *timeout,
        };
        let sent = self.courier.send(request, access, Instant::now());
        let (response, _token) = sent.await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), *max_bytes).collect();
        let body = body
            .await
            .map_err(|_| protocol("the answer broke off, or is too long".to_owned()))?;
        Ok((status, body.to_bytes()))
    }
}

fn protocol(detail: String) -> Failure {
    Failure {
        class: ErrorClass::Protocol,
        detail,
    }
}
