//! A hostile receiver: a raw server that answers as no good one would, and records what it gets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::SECRET;
use crate::support::receiver::Request;

const FOR_EVER: Duration = Duration::from_secs(3_600);

/// What it does to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    HangBeforeHead,
    /// 200 and nothing after the head: a success.
    HangAfterHead,
    /// A byte of the head each 200 ms.
    Drip,
    /// 200, and a body without an end: a success.
    EndlessBody,
    ResetBeforeStatus,
    /// RST after the head of a 200 that announces more: a success.
    ResetAfterHead,
    HeaderFlood,
    EndlessInformational,
    /// 200 with 100 MB of zeros in 100 KB: a success, and nobody opens it.
    GzipBomb,
    Redirect(&'static str),
    /// 429 and this `Retry-After`.
    TooMany(&'static str),
    Status(u16),
    Tls(TlsFault),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TlsFault {
    Expired,
    WrongHost,
    SelfSigned,
    ClientCertificateAsked,
}

impl Mode {
    /// The status that counts, where there is one.
    fn answered(self) -> u16 {
        match self {
            Self::EndlessBody | Self::ResetAfterHead | Self::GzipBomb | Self::HangAfterHead => 200,
            Self::Redirect(_) => 302,
            Self::TooMany(_) => 429,
            Self::Status(status) => status,
            _ => 0,
        }
    }
}

/// See the module. Stops when it is dropped.
pub struct Hostile {
    address: SocketAddr,
    tls: Option<Authority>,
    record: Arc<Record>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Record {
    requests: Mutex<Vec<Request>>,
    connections: Mutex<usize>,
}

struct Authority {
    folder: tempfile::TempDir,
}

impl Hostile {
    pub async fn new(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let record = Arc::new(Record::default());
        let (tls, acceptor) = match mode {
            Mode::Tls(fault) => {
                let (authority, acceptor) = authority(fault);
                (Some(authority), Some(acceptor))
            }
            _ => (None, None),
        };
        if mode == Mode::GzipBomb {
            LazyLock::force(&BOMB);
        }
        let kept = record.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *kept.connections.lock().unwrap() += 1;
                let (kept, acceptor) = (kept.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                let _ = one(stream, Mode::Status(204), &kept).await;
                            }
                        }
                        None => {
                            if let Ok(stream) = one(stream, mode, &kept).await
                                && matches!(mode, Mode::ResetBeforeStatus | Mode::ResetAfterHead)
                            {
                                let _ = stream.set_zero_linger();
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            tls,
            record,
            task,
        }
    }

    /// The keys `url` and `tls` of its endpoint.
    pub fn endpoint(&self) -> String {
        match &self.tls {
            None => format!("url: 'http://{}/'", self.address),
            Some(authority) => {
                let ca: PathBuf = authority.folder.path().join("ca.pem");
                let port = self.address.port();
                let ca = ca.display();
                format!("url: 'https://127.0.0.1:{port}/', tls: {{ ca: '{ca}' }}")
            }
        }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.record.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.record.connections.lock().unwrap()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads one request and does what the mode says.
async fn one<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    mode: Mode,
    record: &Record,
) -> std::io::Result<S> {
    if let Some(request) = read(&mut stream, mode.answered()).await? {
        record.requests.lock().unwrap().push(request);
        answer(&mut stream, mode).await?;
    }
    Ok(stream)
}

async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    answered: u16,
) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut headers = HeaderMap::new();
            for line in head.lines().skip(1) {
                if let Some((name, value)) = line.split_once(':')
                    && let Ok(name) = HeaderName::try_from(name.trim())
                    && let Ok(value) = HeaderValue::try_from(value.trim())
                {
                    headers.append(name, value);
                }
            }
            let text = |name: &str| {
                let value = headers.get(name).and_then(|value| value.to_str().ok());
                value.unwrap_or_default().to_owned()
            };
            let length: usize = text("content-length").parse().unwrap_or(0);
            while bytes.len() < end + 4 + length {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(None),
                    read => bytes.extend(&buffer[..read]),
                }
            }
            let body = Bytes::copy_from_slice(&bytes[end + 4..end + 4 + length]);
            let verifier = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
            return Ok(Some(Request {
                at: Instant::now(),
                path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
                query: None,
                id: text("webhook-id"),
                verified: verifier.verify(&body, &headers).is_ok(),
                headers,
                body,
                answered,
            }));
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            read => bytes.extend(&buffer[..read]),
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mode: Mode,
) -> std::io::Result<()> {
    let head =
        |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}\r\n");
    match mode {
        Mode::HangBeforeHead => tokio::time::sleep(FOR_EVER).await,
        Mode::HangAfterHead => {
            let head = head("200 OK", "content-length: 100\r\n");
            stream.write_all(head.as_bytes()).await?;
            tokio::time::sleep(FOR_EVER).await;
        }
        Mode::Drip => loop {
            for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain([&b'a'; 1_000]) {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        },
        Mode::EndlessBody => {
            let head = head("200 OK", "transfer-encoding: chunked\r\n");
            stream.write_all(head.as_bytes()).await?;
            let chunk = format!("1000\r\n{}\r\n", "x".repeat(4_096));
            loop {
                stream.write_all(chunk.as_bytes()).await?;
            }
        }
        Mode::ResetBeforeStatus => {}
        Mode::ResetAfterHead => {
            let head = head("200 OK", "content-length: 100000\r\n");
            stream.write_all(head.as_bytes()).await?;
            // The head is to be read before the reset throws it away.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Mode::HeaderFlood => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            for number in 0_u64.. {
                let line = format!("x-flood-{number}: {}\r\n", "y".repeat(200));
                stream.write_all(line.as_bytes()).await?;
            }
        }
        Mode::EndlessInformational => loop {
            stream
                .write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                .await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        Mode::GzipBomb => {
            let bomb = &*BOMB;
            let more = format!(
                "content-encoding: gzip\r\ncontent-length: {}\r\n",
                bomb.len()
            );
            stream.write_all(head("200 OK", &more).as_bytes()).await?;
            stream.write_all(bomb).await?;
        }
        Mode::Redirect(to) => {
            let more = format!("location: {to}\r\ncontent-length: 0\r\n");
            stream
                .write_all(head("302 Found", &more).as_bytes())
                .await?;
        }
        Mode::TooMany(after) => {
            let more = format!("retry-after: {after}\r\ncontent-length: 0\r\n");
            stream
                .write_all(head("429 Too Many Requests", &more).as_bytes())
                .await?;
        }
        Mode::Status(status) => {
            let head = head(&format!("{status} X"), "content-length: 0\r\n");
            stream.write_all(head.as_bytes()).await?;
        }
        Mode::Tls(_) => unreachable!("answered once the handshake is over"),
    }
    stream.flush().await
}

/// Made once: the answer is not to wait for it.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let output = std::process::Command::new("sh")
        .args(["-c", "head -c 100000000 /dev/zero | gzip -9"])
        .output();
    output.expect("sh, head and gzip").stdout
});

/// A certificate with the fault, and the authority that the bridge is told to believe.
fn authority(fault: TlsFault) -> (Authority, TlsAcceptor) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let issuer = issuer.expect("an authority");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("written");

    let name = match fault {
        TlsFault::WrongHost => "somebody.else.test",
        _ => "127.0.0.1",
    };
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    if fault == TlsFault::Expired {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    }
    let key = KeyPair::generate().expect("a key");
    let certificate = match fault {
        TlsFault::SelfSigned => params.self_signed(&key),
        _ => params.signed_by(&key, &issuer),
    };
    let certificate = certificate.expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = if fault == TlsFault::ClientCertificateAsked {
        let mut roots = RootCertStore::empty();
        roots.add(issuer.der().clone()).expect("a root");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = builder.with_single_cert(vec![certificate.der().clone()], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a server config")));
    (Authority { folder }, acceptor)
}
