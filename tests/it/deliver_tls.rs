//! The courier and TLS: whom it believes, and that it never settles for less.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post as on_post;
use hookbridge::attempt::{Attempt, ErrorClass};
use hookbridge::deliver::{Access, Courier, Signer};
use hookbridge::event::EventId;
use hookbridge::subscription::{Scheme, TlsFiles};
use http::Version;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::deliver_http::{class, courier, plain, post};

/// A certificate authority of the test's own, and its files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// What an endpoint's `tls:` says to believe this authority.
    fn believed(&self) -> Option<Arc<TlsFiles>> {
        Some(Arc::new(TlsFiles {
            ca: Some(self.path("ca.pem")),
            cert: None,
            key: None,
        }))
    }

    /// As [`Self::believed`], and with a client certificate of this authority.
    fn with_client_certificate(&self) -> Option<Arc<TlsFiles>> {
        let (cert, key) = self.issue(named(&["bridge.test"]));
        std::fs::write(self.path("cert.pem"), cert.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        Some(Arc::new(TlsFiles {
            ca: Some(self.path("ca.pem")),
            cert: Some(self.path("cert.pem")),
            key: Some(self.path("key.pem")),
        }))
    }

    fn issue(&self, params: CertificateParams) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

fn named(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).unwrap()
}

struct Encrypted {
    tcp: TcpListener,
    tls: TlsAcceptor,
    connections: Arc<AtomicUsize>,
}

impl axum::serve::Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (tcp, peer) = self.tcp.accept().await.unwrap();
            if let Ok(stream) = self.tls.accept(tcp).await {
                self.connections.fetch_add(1, Ordering::SeqCst);
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

struct Server {
    authority: Authority,
    port: u16,
    connections: Arc<AtomicUsize>,
}

/// An https receiver that answers with the HTTP version that it was asked in.
async fn serve(params: CertificateParams, alpn: &[&str], demands_certificate: bool) -> Server {
    let authority = Authority::new();
    let (cert, key) = authority.issue(params);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match demands_certificate {
        true => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        false => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let listener = Encrypted {
        tcp,
        tls: TlsAcceptor::from(Arc::new(config)),
        connections: connections.clone(),
    };
    let app = Router::new().route(
        "/",
        on_post(|version: Version| async move { format!("{version:?}") }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server {
        authority,
        port,
        connections,
    }
}

impl Server {
    async fn attempt(&self, courier: &Courier, tls: Option<Arc<TlsFiles>>) -> Attempt {
        let signer = Signer::new(&Scheme::None, &[]).unwrap();
        let id = EventId::kept("msg_1").unwrap();
        let request = post(&format!("https://localhost:{}/", self.port));
        let access = Access {
            tls: tls.as_ref(),
            ..plain()
        };
        courier.attempt(request, &signer, &id, access).await
    }
}

const BOTH: &[&str] = &["h2", "http/1.1"];

#[tokio::test]
async fn an_authority_of_ones_own_is_believed_when_configured_only() {
    let server = serve(named(&["localhost"]), BOTH, false).await;
    let courier = courier();
    let believed = server.attempt(&courier, server.authority.believed()).await;
    assert!(believed.outcome.is_success(), "{believed:?}");
    let unknown = server.attempt(&courier, None).await;
    assert_eq!(class(&unknown), Some(ErrorClass::Tls), "{unknown:?}");
    assert!(!unknown.outcome.excerpt().is_empty());
    let other = server.attempt(&courier, Authority::new().believed()).await;
    assert_eq!(class(&other), Some(ErrorClass::Tls), "{other:?}");
}

#[tokio::test]
async fn http_2_where_the_server_speaks_it() {
    let server = serve(named(&["localhost"]), BOTH, false).await;
    let courier = courier();
    let tls = server.authority.believed();
    let many = (0..32).map(|_| server.attempt(&courier, tls.clone()));
    for attempt in futures_util::future::join_all(many).await {
        assert!(attempt.outcome.is_success(), "{attempt:?}");
        assert_eq!(attempt.outcome.excerpt(), "HTTP/2.0");
    }
}

#[tokio::test]
async fn one_connection_serves_request_after_request() {
    let server = serve(named(&["localhost"]), BOTH, false).await;
    let courier = courier();
    for _ in 0..10 {
        let attempt = server.attempt(&courier, server.authority.believed()).await;
        assert!(attempt.outcome.is_success(), "{attempt:?}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn http_1_where_it_does_not() {
    for alpn in [&["http/1.1"][..], &[]] {
        let server = serve(named(&["localhost"]), alpn, false).await;
        let attempt = server
            .attempt(&courier(), server.authority.believed())
            .await;
        assert_eq!(attempt.outcome.excerpt(), "HTTP/1.1", "{attempt:?}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_host_or_of_another_time_is_refused() {
    let mut expired = named(&["localhost"]);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut early = named(&["localhost"]);
    early.not_before = rcgen::date_time_ymd(3000, 1, 1);
    for params in [named(&["other.test"]), expired, early] {
        let server = serve(params, BOTH, false).await;
        let attempt = server
            .attempt(&courier(), server.authority.believed())
            .await;
        assert_eq!(class(&attempt), Some(ErrorClass::Tls), "{attempt:?}");
        assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_there_is_one() {
    for alpn in [BOTH, &["http/1.1"]] {
        let server = serve(named(&["localhost"]), alpn, true).await;
        let courier = courier();
        let with = server.authority.with_client_certificate();
        let shown = server.attempt(&courier, with).await;
        assert!(shown.outcome.is_success(), "{shown:?}");
        let without = server.attempt(&courier, server.authority.believed()).await;
        assert_eq!(class(&without), Some(ErrorClass::Tls), "{without:?}");
    }
}

#[tokio::test]
async fn missing_files_are_a_tls_failure_that_names_them() {
    let server = serve(named(&["localhost"]), BOTH, false).await;
    let files = TlsFiles {
        ca: Some("/nowhere/ca.pem".into()),
        cert: None,
        key: None,
    };
    let attempt = server.attempt(&courier(), Some(Arc::new(files))).await;
    assert_eq!(class(&attempt), Some(ErrorClass::Tls), "{attempt:?}");
    assert!(attempt.outcome.excerpt().contains("/nowhere/ca.pem"));
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_or_says_nothing_is_a_tls_failure() {
    for greeting in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, greeting).await;
                kept.push(stream);
            }
        });
        let signer = Signer::new(&Scheme::None, &[]).unwrap();
        let id = EventId::kept("msg_1").unwrap();
        let request = post(&format!("https://127.0.0.1:{port}/"));
        let access = Access {
            connect_timeout: Duration::from_millis(300),
            ..plain()
        };
        let attempt = courier().attempt(request, &signer, &id, access).await;
        assert_eq!(class(&attempt), Some(ErrorClass::Tls), "{attempt:?}");
    }
}

/// `openssl s_server` that speaks no newer version than this one; its port.
struct Outdated {
    server: std::process::Child,
    port: u16,
}

impl Outdated {
    fn start(version: &str, authority: &Authority) -> Self {
        let (cert, key) = authority.issue(named(&["localhost"]));
        std::fs::write(authority.path("old.pem"), cert.pem()).unwrap();
        std::fs::write(authority.path("old.key"), key.serialize_pem()).unwrap();
        let mut server = std::process::Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", version, "-www"])
            // Where it is allowed to be that weak, which is not by default.
            .args(["-cipher", "ALL:@SECLEVEL=0"])
            .args(["-cert", "old.pem", "-key", "old.key"])
            .current_dir(authority.folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("openssl is there");
        let said = std::io::BufReader::new(server.stdout.take().unwrap());
        let port = std::io::BufRead::lines(said)
            .map_while(Result::ok)
            .find_map(|line| {
                line.strip_prefix("ACCEPT ")?
                    .rsplit(':')
                    .next()?
                    .parse()
                    .ok()
            });
        let port = port.expect("it says where it listens");
        Self { server, port }
    }
}

impl Drop for Outdated {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[tokio::test]
async fn a_server_with_tls_1_0_or_1_1_only_is_refused_and_one_with_1_2_is_not() {
    let authority = Authority::new();
    let signer = Signer::new(&Scheme::None, &[]).unwrap();
    let id = EventId::kept("msg_1").unwrap();
    let tls = authority.believed();
    for (version, class_expected) in [
        ("-tls1", Some(ErrorClass::Tls)),
        ("-tls1_1", Some(ErrorClass::Tls)),
        // It answers a POST with nothing that is HTTP, but the handshake is done.
        ("-tls1_2", None),
    ] {
        let old = Outdated::start(version, &authority);
        let request = post(&format!("https://localhost:{}/", old.port));
        let access = Access {
            tls: tls.as_ref(),
            ..plain()
        };
        let attempt = courier().attempt(request, &signer, &id, access).await;
        match class_expected {
            Some(expected) => assert_eq!(class(&attempt), Some(expected), "{version}: {attempt:?}"),
            None => assert_ne!(
                class(&attempt),
                Some(ErrorClass::Tls),
                "{version}: {attempt:?}"
            ),
        }
    }
}
