//! Connecting: node URLs in turn, TLS with own authorities, and the backoff between tries.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use lapin::protocol::AMQPSoftError;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use tokio::time::timeout;

use super::{Settings, failures, greeting};
use crate::subscription::{Secret, TlsFiles};

/// How long a connection may take, TLS and handshake included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Heartbeat in seconds where the URL names none; a dead peer is noticed after twice this.
const HEARTBEAT_SECONDS: u16 = 10;
/// How long the broker may take to answer one request (declare, consume, open a channel). A quorum
/// queue that is declared on a busy cluster takes seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// For closing a connection, which nothing depends on.
const GOODBYE: Duration = Duration::from_secs(5);

/// Waits for the broker's answer to one request, and names the request where it fails.
pub async fn answer<T>(
    to: impl Display,
    request: impl Future<Output = lapin::Result<T>>,
) -> anyhow::Result<T> {
    match timeout(ANSWER_DEADLINE, request).await {
        Ok(Ok(answered)) => Ok(answered),
        Ok(Err(error)) => Err(anyhow!(error).context(to.to_string())),
        Err(_) => Err(anyhow!("{to}: no answer within {ANSWER_DEADLINE:?}")),
    }
}

/// Closes a connection. What cannot be closed in time is closed by the broker, when our heartbeats end.
pub async fn hang_up(connection: &Connection) {
    let _ = timeout(GOODBYE, connection.close(200, "done".into())).await;
}

/// Opens connections; cheap to clone.
#[derive(Clone)]
pub struct Connector {
    urls: Arc<[Secret]>,
    next: Arc<AtomicUsize>,
    tls: TlsFiles,
    group: Arc<str>,
}

impl Connector {
    pub fn new(settings: &Settings) -> Self {
        Self {
            urls: settings.urls.clone().into(),
            next: Arc::default(),
            tls: settings.tls.clone(),
            group: settings.group.clone(),
        }
    }

    /// A connection to the first node that answers, beginning after the last one tried. `role`
    /// (`consume`, `publish`) is shown in RabbitMQ's list of connections.
    pub async fn connect(&self, role: &str) -> anyhow::Result<Connection> {
        let mut last = anyhow!("no url is configured");
        for _ in 0..self.urls.len() {
            let turn = self.next.load(Ordering::Relaxed) % self.urls.len();
            match self.connect_to(&self.urls[turn], role).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    self.next.fetch_add(1, Ordering::Relaxed);
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The version of the node that was connected last, as it says itself before the login.
    pub async fn server_version(&self) -> anyhow::Result<greeting::Version> {
        let turn = self.next.load(Ordering::Relaxed) % self.urls.len().max(1);
        let url = self.urls.get(turn).context("no url is configured")?;
        let uri = parsed(url)?;
        let tls = self.tls_config()?;
        timeout(CONNECT_DEADLINE, greeting::version(&uri, &tls))
            .await
            .map_err(|_| anyhow!("no greeting within {CONNECT_DEADLINE:?}"))?
    }

    /// The virtual host that the URLs name.
    pub fn vhost(&self) -> String {
        let first = self.urls.first().and_then(|url| parsed(url).ok());
        first.map_or_else(|| "/".to_owned(), |uri| uri.vhost)
    }

    /// Every node with its address and whether TLS is spoken; `None` for a URL that cannot be read.
    pub fn nodes(&self) -> Vec<Option<(String, u16, bool)>> {
        let node = |url: &Secret| {
            let uri = parsed(url).ok()?;
            let encrypted = uri.scheme == AMQPScheme::AMQPS;
            Some((uri.authority.host, uri.authority.port, encrypted))
        };
        self.urls.iter().map(node).collect()
    }

    pub fn tls_files(&self) -> &TlsFiles {
        &self.tls
    }

    async fn connect_to(&self, url: &Secret, role: &str) -> anyhow::Result<Connection> {
        let mut uri = parsed(url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        let node = format!("{}:{}", uri.authority.host, uri.authority.port);
        let (user, vhost) = (uri.authority.userinfo.username.clone(), uri.vhost.clone());
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("hookbridge {} {role}", self.group).into());
        let tls = self.tls_config()?;
        let runtime = lapin::runtime::default_runtime().context("no runtime for the client")?;
        timeout(
            CONNECT_DEADLINE,
            Connection::connect_uri_with_config(uri, properties, tls, runtime),
        )
        .await
        .map_err(|_| anyhow!("{node} did not answer within {CONNECT_DEADLINE:?}"))?
        .map_err(|error| {
            let what = match failures::soft(&error) {
                Some(AMQPSoftError::ACCESSREFUSED) => {
                    format!("{node} refuses user `{user}`: wrong password, or no such user")
                }
                _ if failures::is_not_allowed(&error) => {
                    format!("{node} does not let user `{user}` into virtual host `{vhost}`")
                }
                _ => format!("{node} cannot be connected"),
            };
            anyhow!(error).context(what)
        })
    }

    fn tls_config(&self) -> anyhow::Result<OwnedTLSConfig> {
        let read = |path: &std::path::Path| {
            std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
        };
        let cert_chain = match &self.tls.ca {
            Some(path) => Some(String::from_utf8(read(path)?).context("the ca file is not PEM")?),
            None => None,
        };
        let identity = match (&self.tls.cert, &self.tls.key) {
            (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 {
                pem: read(cert)?,
                key: read(key)?,
            }),
            _ => None,
        };
        Ok(OwnedTLSConfig {
            identity,
            cert_chain,
        })
    }
}

/// The parse error would quote the URL, and with it the password.
fn parsed(url: &Secret) -> anyhow::Result<AMQPUri> {
    url.expose()
        .parse()
        .map_err(|_| anyhow!("the broker's url cannot be parsed"))
}

/// Delays between tries: 100 ms, doubled up to 10 s, started anew after a success.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(10);

    pub fn next(&mut self) -> Duration {
        let delay = Self::FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(Self::LONGEST);
        self.failures += 1;
        // Instances that lost the same broker do not come back in step.
        delay.mul_f64(1.0 + rand::random::<f64>() / 4.0)
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}
