//! Connections: resolve, vet, connect, encrypt, each within its time.
//!
//! A connection is pinned to the addresses that the guard has vetted; the name is not resolved a
//! second time. The addresses are tried in turn, a new one every [`STAGGER`] until one answers
//! (RFC 8305), so that a dead IPv6 route costs a moment and not the attempt.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::inspect::Steps;
use super::resolver::Resolver;
use crate::attempt::{ErrorClass, Failure};
use crate::deliver::guard::{self, AddressPolicy};
use crate::subscription::TlsFiles;
use crate::tls;

const STAGGER: Duration = Duration::from_millis(300);
/// A name with more addresses is tried at the first of them only.
const MAX_ADDRESSES: usize = 8;

/// What the text of an error of TLS begins with when it comes from reading.
pub(super) const TLS_MARK: &str = "tls: ";

/// Makes the connections of one pool.
#[derive(Clone)]
pub(super) struct Connector(Arc<Means>);

struct Means {
    policy: Arc<AddressPolicy>,
    resolver: Arc<Resolver>,
    files: Option<Arc<TlsFiles>>,
    /// Made for the first https connection: reading certificates takes milliseconds.
    tls: OnceCell<TlsConnector>,
    /// For TCP and TLS together; resolving has a budget of its own.
    connect_timeout: Duration,
}

/// Why there is no connection, in the words of an attempt.
#[derive(Debug)]
pub(super) struct ConnectFailure {
    pub(super) class: ErrorClass,
    pub(super) detail: String,
}

impl Connector {
    pub(super) fn new(
        policy: Arc<AddressPolicy>,
        resolver: Arc<Resolver>,
        files: Option<Arc<TlsFiles>>,
        connect_timeout: Duration,
    ) -> Self {
        Self(Arc::new(Means {
            policy,
            resolver,
            files,
            tls: OnceCell::new(),
            connect_timeout,
        }))
    }
}

impl Connector {
    /// Connects as for a request, notes how far it came, and hangs up.
    pub(super) async fn inspect(&self, uri: &Uri) -> Steps {
        let mut steps = Steps {
            addresses: Vec::new(),
            chain: Vec::new(),
            failure: None,
        };
        let inspected = self.0.inspect(uri, &mut steps).await;
        steps.failure = inspected.err().map(|failure| Failure {
            class: failure.class,
            detail: failure.detail,
        });
        steps
    }
}

impl Means {
    async fn inspect(&self, uri: &Uri, steps: &mut Steps) -> Result<(), ConnectFailure> {
        let (host, port, encrypted) = goal(uri)?;
        steps.addresses = self.vetted(host, port).await?;
        let addresses = steps.addresses.clone();
        if !encrypted {
            return self.connect_to(addresses, host, None).await.map(|_| ());
        }
        let files = self.files.clone();
        let config =
            tokio::task::spawn_blocking(move || tls::witnessed_config(files.as_deref())).await;
        let (config, witness) = config
            .map_err(|error| fail(ErrorClass::Tls, error))?
            .map_err(|why| fail(ErrorClass::Tls, why))?;
        let tls = TlsConnector::from(Arc::new(config));
        let connected = self.connect_to(addresses, host, Some(tls)).await;
        steps.chain = witness.chain();
        connected.map(|_| ())
    }

    async fn connect(&self, uri: &Uri) -> Result<Wire, ConnectFailure> {
        let (host, port, encrypted) = goal(uri)?;
        let vetted = self.vetted(host, port).await?;
        let tls = match encrypted {
            true => Some(self.tls().await?),
            false => None,
        };
        self.connect_to(vetted, host, tls).await
    }

    /// Connects to one of the addresses that the guard has let through.
    async fn connect_to(
        &self,
        vetted: Vec<SocketAddr>,
        host: &str,
        tls: Option<TlsConnector>,
    ) -> Result<Wire, ConnectFailure> {
        let deadline = Instant::now() + self.connect_timeout;
        let tcp = timeout_at(deadline, first_to_answer(vetted))
            .await
            .map_err(|_| fail(ErrorClass::Connect, "no connection in time"))?
            .map_err(|error| fail(ErrorClass::Connect, error))?;
        tcp.set_nodelay(true)
            .map_err(|error| fail(ErrorClass::Connect, error))?;
        let Some(tls) = tls else {
            return Ok(Wire::Plain(TokioIo::new(tcp)));
        };
        let name = ServerName::try_from(host.trim_end_matches('.').to_owned())
            .map_err(|_| fail(ErrorClass::Tls, "the host cannot be a certificate's name"))?;
        let stream = timeout_at(deadline, tls.connect(name, tcp))
            .await
            .map_err(|_| fail(ErrorClass::Tls, "no TLS handshake in time"))?
            .map_err(|error| fail(ErrorClass::Tls, error))?;
        Ok(Wire::Tls(TokioIo::new(Box::new(stream))))
    }

    async fn vetted(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectFailure> {
        let addresses = self.addresses(host, port).await?;
        self.policy
            .vet(&addresses)
            .map_err(|denied| fail(ErrorClass::Denied, denied))
    }

    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectFailure> {
        let with_port = |ip: &IpAddr| SocketAddr::new(*ip, port);
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(vec![with_port(&literal)]);
        }
        if guard::is_localhost(host) {
            return Ok(self.policy.loopback().iter().map(with_port).collect());
        }
        let found = self
            .resolver
            .resolve(host)
            .await
            .map_err(|why| fail(ErrorClass::Dns, why))?;
        Ok(found.iter().map(with_port).collect())
    }

    async fn tls(&self) -> Result<TlsConnector, ConnectFailure> {
        let made = self.tls.get_or_try_init(|| async {
            let files = self.files.clone();
            tokio::task::spawn_blocking(move || tls::client_config(files.as_deref()))
                .await
                .map_err(|error| fail(ErrorClass::Tls, error))?
                .map(|config| TlsConnector::from(Arc::new(config)))
                .map_err(|why| fail(ErrorClass::Tls, why))
        });
        made.await.cloned()
    }
}

/// Host, port, and whether TLS is spoken.
fn goal(uri: &Uri) -> Result<(&str, u16, bool), ConnectFailure> {
    let encrypted = uri.scheme() == Some(&Scheme::HTTPS);
    let host = uri
        .host()
        .ok_or_else(|| fail(ErrorClass::Protocol, "the URL has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
    Ok((host, port, encrypted))
}

/// The first of `addresses` that accepts, with a new one tried every [`STAGGER`] or as soon as the
/// one before has failed.
async fn first_to_answer(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    if let [only] = addresses[..] {
        return TcpStream::connect(only).await;
    }
    let mut waiting = alternating(addresses).into_iter();
    let mut under_way = FuturesUnordered::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    loop {
        match waiting.next() {
            Some(address) => under_way.push(TcpStream::connect(address)),
            None if under_way.is_empty() => return Err(last_error),
            None => {}
        }
        tokio::select! {
            // An answer that is there wins over another try.
            biased;
            Some(result) = under_way.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// The first addresses, families taking turns, beginning with the resolver's favourite.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let favourite_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (one, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == favourite_is_v4);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut mixed = Vec::with_capacity(MAX_ADDRESSES);
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] || mixed.len() >= MAX_ADDRESSES {
            mixed.truncate(MAX_ADDRESSES);
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

fn fail(class: ErrorClass, why: impl fmt::Display) -> ConnectFailure {
    ConnectFailure {
        class,
        detail: why.to_string(),
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.as_str(), self.detail)
    }
}

impl std::error::Error for ConnectFailure {}

impl Service<Uri> for Connector {
    type Response = Wire;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, ConnectFailure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let means = self.0.clone();
        Box::pin(async move { means.connect(&uri).await })
    }
}

/// A connection, encrypted or not.
pub(super) enum Wire {
    Plain(TokioIo<TcpStream>),
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf).map_err(marked),
        }
    }
}

/// An alert that comes after the handshake, such as a client certificate that is wanted, is an error
/// of reading, and HTTP/2 hands on no more of it than its text.
fn marked(error: io::Error) -> io::Error {
    match error.get_ref() {
        Some(inner) if inner.is::<rustls::Error>() => {
            io::Error::new(error.kind(), format!("{TLS_MARK}{inner}"))
        }
        _ => error,
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns_and_there_is_an_end() {
        let mixed = alternating(vec![
            address("[2606::1]:1"),
            address("[2606::2]:1"),
            address("[2606::3]:1"),
            address("1.1.1.1:1"),
        ]);
        let ports: Vec<bool> = mixed.iter().map(SocketAddr::is_ipv6).collect();
        assert_eq!(ports, [true, false, true, true]);
        let many = (0..200).map(|n| address(&format!("1.1.1.{n}:1"))).collect();
        assert_eq!(alternating(many).len(), MAX_ADDRESSES);
        assert_eq!(alternating(Vec::new()), []);
    }

    #[tokio::test]
    async fn a_refused_address_is_passed_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shut = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let open = listener.local_addr().unwrap();
        let stream = first_to_answer(vec![shut, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        let error = first_to_answer(vec![shut, shut]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
