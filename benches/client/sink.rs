//! The receiver: answers POSTs, and knows how many came, when, and of what age.
//!
//! One thread, on every loopback address, so that each `127.x` is a host of its own. The first
//! segment of a path says how it answers, and is counted apart:
//!
//! - `hang` never, `slow` after a second, `fail` with 500 at once, `drip` a byte each 200 ms;
//! - `switch` with 503 between `GET /down` and `GET /up`, and `refuse` with 404;
//! - anything else with 200 and two bytes.
//!
//! `GET /in` is the number of POSTs answered with 200, `GET /stats` all figures as JSON, and
//! `GET /reset` forgets them, `GET /reset/good` those of one kind of path. A body that begins as [`super::publish::body`] writes it has an age.
//! Knows just enough of HTTP/1.1 to find the end of what is sent here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::publish::{now_ns, stamped};

/// Ages that are kept of one class; beyond this many the later ones are not.
const MAX_AGES: usize = 8_000_000;

/// POSTs answered with 200.
static ANSWERED: AtomicU64 = AtomicU64::new(0);
static FIGURES: Mutex<Figures> = Mutex::new(Figures {
    classes: BTreeMap::new(),
    down: false,
    up_at_ns: 0,
});

struct Figures {
    classes: BTreeMap<&'static str, Class>,
    down: bool,
    /// When `GET /up` came last.
    up_at_ns: u64,
}

/// What came to one kind of path.
#[derive(Default)]
struct Class {
    requests: u64,
    answered: u64,
    /// From being published to being here, of those answered with 200.
    ages_us: Vec<u32>,
    /// A bit for each sequence number that was answered with 200.
    seen: Vec<u64>,
    distinct: u64,
    first_ns: u64,
    last_ns: u64,
    /// When the last event came that was published before `GET /up`.
    caught_up_ns: u64,
}

/// How a path answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Good,
    Hang,
    Slow,
    Fail,
    Drip,
    Switch,
    Refuse,
}

impl Manner {
    fn of(path: &[u8]) -> (Self, &'static str) {
        let first = path.get(1..).unwrap_or_default();
        let first = first.split(|b| *b == b'/').next().unwrap_or_default();
        match first {
            b"hang" => (Self::Hang, "hang"),
            b"slow" => (Self::Slow, "slow"),
            b"fail" => (Self::Fail, "fail"),
            b"drip" => (Self::Drip, "drip"),
            b"switch" => (Self::Switch, "switch"),
            b"refuse" => (Self::Refuse, "refuse"),
            b"good" => (Self::Good, "good"),
            _ => (Self::Good, "in"),
        }
    }
}

/// Runs until standard input closes. Prints the ports for HTTP, HTTPS with HTTP/1.1 and HTTPS with
/// HTTP/2, whose authority is written to `ca.pem` in `folder`.
pub fn run(folder: &Path) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let config = tls(folder);
    crate::current_thread().block_on(async {
        let plain = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let http1 = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let http2 = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
        println!("{} {} {}", port(&plain), port(&http1), port(&http2));
        tokio::spawn(secure(http1, config(b"http/1.1")));
        tokio::spawn(secure(http2, config(b"h2")));
        loop {
            if let Some(stream) = accept(&plain).await {
                tokio::spawn(converse(stream));
            }
        }
    });
}

/// A connection, if it is from this machine.
async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    let (stream, from) = listener.accept().await.ok()?;
    let _ = stream.set_nodelay(true);
    from.ip().is_loopback().then_some(stream)
}

async fn secure(listener: TcpListener, acceptor: TlsAcceptor) {
    loop {
        let Some(stream) = accept(&listener).await else {
            continue;
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return converse(stream).await;
            }
            let service = hyper::service::service_fn(swallow);
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn swallow(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (_, class) = Manner::of(request.uri().path().as_bytes());
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    note(class, &body, true);
    Ok(Response::new(Full::new(Bytes::from_static(b"ok"))))
}

/// One connection of HTTP/1.1.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut buffer = Vec::with_capacity(8192);
    while let Some(head) = head(&mut stream, &mut buffer).await {
        let path_from = buffer.iter().position(|b| *b == b' ').unwrap_or(0) + 1;
        let path = buffer[path_from..head].split(|b| *b == b' ').next();
        let path = path.unwrap_or_default();
        if buffer.starts_with(b"GET ") {
            let told = told(path);
            buffer.drain(..head);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}",
                told.len()
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let (manner, class) = Manner::of(path);
        let whole = head + content_length(&buffer[..head]);
        while buffer.len() < whole {
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let good = match manner {
            Manner::Good => true,
            Manner::Slow => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                true
            }
            Manner::Switch | Manner::Refuse => !FIGURES.lock().expect("no panic").down,
            Manner::Hang | Manner::Fail | Manner::Drip => false,
        };
        note(class, &buffer[head..whole], good);
        buffer.drain(..whole);
        if answer(&mut stream, manner, good).await.is_err() {
            return;
        }
    }
}

/// Reads to the end of a head, which it is the length of.
async fn head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Option<usize> {
    let mut looked_at = 0;
    loop {
        let from = looked_at.min(buffer.len());
        if let Some(end) = buffer[from..].windows(4).position(|w| w == b"\r\n\r\n") {
            return Some(from + end + 4);
        }
        looked_at = buffer.len().saturating_sub(3);
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    let line = head
        .split(|b| *b == b'\n')
        .find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME));
    let value = line.and_then(|line| std::str::from_utf8(&line[NAME.len()..]).ok());
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    manner: Manner,
    good: bool,
) -> std::io::Result<()> {
    match (manner, good) {
        (Manner::Hang, _) => {
            // Until the other side has had enough.
            while stream.read(&mut [0; 1024]).await? > 0 {}
            Err(std::io::ErrorKind::ConnectionAborted.into())
        }
        (Manner::Drip, _) => loop {
            for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain([&b'a'; 1_000]) {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        },
        (Manner::Refuse, false) => {
            let head = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(head).await
        }
        (Manner::Switch, false) => {
            let head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(head).await
        }
        (_, false) => {
            let head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(head).await
        }
        (_, true) => {
            let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(whole).await
        }
    }
}

fn note(class: &'static str, body: &[u8], good: bool) {
    let mut figures = FIGURES.lock().expect("no panic");
    let up_at_ns = figures.up_at_ns;
    let class = figures.classes.entry(class).or_default();
    class.requests += 1;
    if !good {
        return;
    }
    ANSWERED.fetch_add(1, Ordering::Relaxed);
    class.answered += 1;
    let Some((at_ns, number)) = stamped(body) else {
        return;
    };
    let now = now_ns();
    if class.first_ns == 0 {
        class.first_ns = now;
    }
    class.last_ns = now;
    if at_ns < up_at_ns {
        class.caught_up_ns = now;
    }
    let (word, bit) = (number as usize / 64, 1 << (number % 64));
    if class.seen.len() <= word {
        class.seen.resize(word + 1, 0);
    }
    if class.seen[word] & bit == 0 {
        class.seen[word] |= bit;
        class.distinct += 1;
    }
    if class.ages_us.len() < MAX_AGES {
        let age_us = now.saturating_sub(at_ns) / 1_000;
        class
            .ages_us
            .push(u32::try_from(age_us).unwrap_or(u32::MAX));
    }
}

/// The answer to a GET.
fn told(path: &[u8]) -> String {
    let mut figures = FIGURES.lock().expect("no panic");
    match path {
        b"/stats" => figures.json(),
        b"/reset" => {
            figures.classes.clear();
            String::new()
        }
        [b'/', b'r', b'e', b's', b'e', b't', class @ ..] => {
            figures.classes.remove(Manner::of(class).1);
            String::new()
        }
        b"/down" => {
            figures.down = true;
            String::new()
        }
        b"/up" => {
            figures.down = false;
            figures.up_at_ns = now_ns();
            String::new()
        }
        _ => ANSWERED.load(Ordering::Relaxed).to_string(),
    }
}

impl Figures {
    fn json(&self) -> String {
        let up_at_ns = self.up_at_ns;
        let classes = self.classes.iter().map(|(name, class)| {
            let mut ages = class.ages_us.clone();
            ages.sort_unstable();
            let at = |share: f64| {
                let last = ages.len().saturating_sub(1);
                let index = (ages.len() as f64 * share) as usize;
                ages.get(index.min(last)).copied().unwrap_or(0)
            };
            let figures = serde_json::json!({
                "requests": class.requests,
                "answered": class.answered,
                "distinct": class.distinct,
                "ages": ages.len(),
                "p50_us": at(0.5),
                "p99_us": at(0.99),
                "p999_us": at(0.999),
                "max_us": at(1.0),
                "seconds": class.last_ns.saturating_sub(class.first_ns) as f64 / 1e9,
                "caught_up_s": class.caught_up_ns.saturating_sub(up_at_ns) as f64 / 1e9,
            });
            ((*name).to_owned(), figures)
        });
        serde_json::Value::Object(classes.collect()).to_string()
    }
}

/// A certificate for 127.0.0.1; gives an acceptor that speaks one protocol.
fn tls(folder: &Path) -> impl Fn(&[u8]) -> TlsAcceptor {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let issuer = issuer.expect("an authority");
    std::fs::write(folder.join("ca.pem"), issuer.pem()).expect("written");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    move |protocol| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a server config");
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}
