//! `hookbridge doctor` and endpoints: addresses, certificates, and the signed ping.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::SECRET;
use crate::support::command::{Command, Said};
use crate::support::receiver::{Answer, Receiver};

/// Runs doctor on these endpoints, off the test's own runtime, which serves them.
async fn doctor(delivery: &str, endpoints: &str, more: &[&str]) -> Said {
    let config = format!(
        "data_dir: '{{data}}'
delivery: {{ {delivery} }}
brokers: {{ here: {{ embedded: {{}} }} }}
endpoints:
{endpoints}"
    );
    let arguments = [&["doctor", "--only", "endpoints"], more].concat();
    let command = Command::new(&config, &arguments);
    let run = tokio::task::spawn_blocking(move || command.run());
    run.await.expect("no panic")
}

/// A server of this certificate that shakes hands and hangs up; also the certificate's file.
async fn tls(days: i64, names: &[&str]) -> (u16, TempDir) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(40 * 86_400)).into();
    let end = Duration::from_secs(days.unsigned_abs() * 86_400 + 3_600);
    params.not_after = match days < 0 {
        true => now - end,
        false => now + end,
    }
    .into();
    let key = KeyPair::generate().expect("a key");
    let cert = params.self_signed(&key).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), cert.pem()).expect("written");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("a config");
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    (port, folder)
}

#[tokio::test]
async fn certificates_are_looked_at() {
    let (soon, ca) = tls(5, &["localhost"]).await;
    let (stranger, _unbelieved) = tls(300, &["localhost"]).await;
    let (over, old_ca) = tls(-3, &["localhost"]).await;
    let (other, other_ca) = tls(300, &["other.test"]).await;
    let endpoint = |name: &str, port: u16, ca: Option<&TempDir>| {
        let tls = ca.map_or(String::new(), |ca| {
            format!(", tls: {{ ca: '{}/ca.pem' }}", ca.path().display())
        });
        format!("  {name}: {{ url: 'https://localhost:{port}/hidden', secret: '{SECRET}'{tls} }}\n")
    };
    let endpoints = [
        endpoint("a-soon", soon, Some(&ca)),
        endpoint("b-stranger", stranger, None),
        endpoint("c-over", over, Some(&old_ca)),
        endpoint("d-other", other, Some(&other_ca)),
    ];
    let said = doctor("allow_networks: [127.0.0.0/8]", &endpoints.concat(), &[]).await;
    let dates = regex::Regex::new(r"\(\d{4}-[^)]*Z\)").unwrap();
    let text = said.text(&[]);
    insta::assert_snapshot!(dates.replace_all(&text, "(WHEN)"), @r#"
    warning     endpoint a-soon: https://localhost:PORT: the certificate expires in 5 days (WHEN)
                -> have it renewed: deliveries fail from then on
    problem     endpoint b-stranger: https://localhost:PORT: the certificate is signed by itself
                -> name its authority in `tls.ca`, or have the server send the whole chain
    problem     endpoint c-over: https://localhost:PORT: the certificate expired 3 days ago
                -> have it renewed
    problem     endpoint d-other: https://localhost:PORT: the certificate is for other.test
                -> use a name that the certificate has, or have one made for this host
    0 ok, 1 warnings, 3 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 1);
    assert!(!said.stdout.contains("hidden"));
}

#[tokio::test]
async fn a_ping_is_signed_and_its_answer_is_told() {
    let receiver = Receiver::answering(|request, _| match request.path.as_str() {
        "/good" => Answer::status(204),
        _ => Answer::status(404),
    })
    .await;
    let endpoint = |name: &str, path: &str| {
        let url = receiver.url(path);
        format!("  {name}: {{ url: '{url}', secret: '{SECRET}' }}\n")
    };
    let endpoints = [endpoint("a-good", "/good"), endpoint("b-moved", "/bad")].concat();
    let delivery = "allow_http: true, allow_networks: [127.0.0.0/8]";
    let quiet = doctor(delivery, &endpoints, &[]).await;
    assert_eq!((quiet.code, receiver.count()), (0, 0), "{quiet:?}");
    let said = doctor(delivery, &endpoints, &["--ping"]).await;
    let took = regex::Regex::new(r"after \d+ ms").unwrap();
    let text = said.text(&[]);
    insta::assert_snapshot!(took.replace_all(&text, "after MS ms"), @r#"
    warning     endpoint a-good: http://127.0.0.1:PORT: plain http
                -> body and signature can be read and changed on the way: use https
    ok          endpoint a-good: http://127.0.0.1:PORT: TCP works
    ok          endpoint a-good: http://127.0.0.1:PORT: ping answered 204 after MS ms
    warning     endpoint b-moved: http://127.0.0.1:PORT: plain http
                -> body and signature can be read and changed on the way: use https
    ok          endpoint b-moved: http://127.0.0.1:PORT: TCP works
    problem     endpoint b-moved: http://127.0.0.1:PORT: ping answered 404 after MS ms
                -> check the path of the URL, and the method
    3 ok, 2 warnings, 1 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 1);
    let requests = receiver.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.verified));
    let body: serde_json::Value = serde_json::from_slice(&requests[0].body).unwrap();
    assert_eq!(body["type"], "hookbridge.ping");
}

#[tokio::test]
async fn the_guard_holds_for_doctor_too() {
    let receiver = Receiver::accepting().await;
    let host = hostname();
    let port = receiver.address.port();
    let endpoints = format!(
        "  a: {{ url: 'https://{host}:{port}/', secret: '{SECRET}' }}
  b: {{ url: 'https://no-such-host.invalid/', secret: '{SECRET}' }}
  c: {{ url: 'https://localhost:1/', secret: '{SECRET}' }}
"
    );
    let said = doctor(
        "allow_networks: [127.77.0.0/16, '::1/128']",
        &endpoints,
        &["--ping"],
    )
    .await;
    assert_eq!(said.code, 69, "{said:?}");
    let denied = said.line("endpoint a");
    assert!(
        denied.starts_with("problem") && denied.contains("is denied"),
        "{denied}"
    );
    assert!(said.line("endpoint b").contains("does not resolve"));
    assert!(said.line("endpoint c").contains("no connection"));
    assert_eq!(receiver.count(), 0);
}

/// This machine's own name, which resolves to an address that is not public.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux");
    name.trim().to_owned()
}
