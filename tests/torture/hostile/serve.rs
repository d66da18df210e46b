//! The process of a hostile receiver: a raw server that answers as no good one would.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{CA, Mode, Said, TlsFault, monotonic};
use crate::support::SECRET;

const FOR_EVER: Duration = Duration::from_secs(3_600);

/// Answers on a port of its own until standard input ends, and says on standard output what came.
pub async fn run(mode: Mode, folder: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let acceptor = match mode {
        Mode::Tls(fault) => Some(acceptor(fault, folder)),
        _ => None,
    };
    if mode == Mode::GzipBomb {
        LazyLock::force(&BOMB);
    }
    Said::Listening(address).say();
    // It ends with the one who asked for it, also when that was killed.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    while let Ok((stream, _)) = listener.accept().await {
        Said::Connected.say();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            match acceptor {
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = one(stream, Mode::Status(204)).await;
                    }
                }
                None => {
                    if let Ok(stream) = one(stream, mode).await
                        && matches!(mode, Mode::ResetBeforeStatus | Mode::ResetAfterHead)
                    {
                        let _ = stream.set_zero_linger();
                    }
                }
            }
        });
    }
}

/// Reads one request and does what the mode says.
async fn one<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, mode: Mode) -> std::io::Result<S> {
    if let Some(request) = read(&mut stream, mode.answered()).await? {
        request.say();
        answer(&mut stream, mode).await?;
    }
    Ok(stream)
}

async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    answered: u16,
) -> std::io::Result<Option<Said>> {
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
            let body = bytes[end + 4..end + 4 + length].to_vec();
            let verifier = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
            let verified = verifier.verify(&body, &headers).is_ok();
            let readable = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
            return Ok(Some(Said::Asked {
                at: monotonic(),
                path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
                headers: headers
                    .iter()
                    .filter_map(|(name, value)| Some((name.to_string(), readable(value)?)))
                    .collect(),
                body,
                verified,
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

/// A certificate with the fault; in the folder is the authority that the bridge is told to believe.
fn acceptor(fault: TlsFault, folder: &Path) -> TlsAcceptor {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let issuer = issuer.expect("an authority");
    std::fs::write(folder.join(CA), issuer.pem()).expect("written");

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
    TlsAcceptor::from(Arc::new(config.expect("a server config")))
}
