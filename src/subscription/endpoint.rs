//! Endpoints: where requests go, what signs them, and the limits of the lane that serves them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use url::Url;

use super::{Auth, Handshake, Payload, Scheme, Secret};

/// A receiver. Subscriptions that name the same endpoint share its lane, secrets and breaker.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The shared endpoint's name, or the name of the subscription that it is written in.
    pub name: Arc<str>,
    /// May be a credential: only [`Endpoint::shown`] may be logged.
    pub url: Arc<Url>,
    pub method: Method,
    /// Custom headers, if there are any; values are marked sensitive.
    pub headers: Option<Box<HeaderMap>>,
    pub signature: Scheme,
    /// Newest first; all of them sign while one is being rotated.
    pub secrets: Vec<Secret>,
    pub payload: Arc<Payload>,
    pub auth: Option<Box<Auth>>,
    /// What it is asked before the first delivery.
    pub handshake: Option<Box<Handshake>>,
    pub tls: Option<Arc<TlsFiles>>,
    /// Attempts under way at once.
    pub concurrency: usize,
    /// It is the most, and how many there are follows what the receiver can take.
    pub adaptive: bool,
    pub rate: Option<Rate>,
    pub breaker: Breaker,
}

impl Endpoint {
    pub const DEFAULT_CONCURRENCY: usize = 16;

    /// Scheme, host and port: all of a URL that is ever shown, since paths and queries of webhooks
    /// are often credentials.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }
}

/// Scheme, host and port of `url`.
pub fn shown(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Own authorities, and a client certificate with its key, as PEM files: of an endpoint or a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// So many requests in so much time (`50/s`, `100/m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

impl Rate {
    /// Time between two requests.
    pub fn interval(&self) -> Duration {
        self.per / self.count
    }
}

/// As it is written in a config: `50/s`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(f, "{}/{per}", self.count)
    }
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rate such as `50/s` or `100/m`");
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let count: u32 = count.trim().parse().map_err(|_| wrong())?;
        if count == 0 {
            return Err("a rate of 0 would never send anything; use `enabled: false`".into());
        }
        let per = match per.trim() {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        Ok(Self { count, per })
    }
}

/// When a lane shuts: after so many failures in a row, for so long, then one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    pub failures: u32,
    pub cool_down: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 10,
            cool_down: Duration::from_secs(10),
        }
    }
}
