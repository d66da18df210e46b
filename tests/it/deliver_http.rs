//! The courier against real servers on loopback, well-behaved and hostile ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hookbridge::attempt::{Attempt, ErrorClass, Outcome, Wish};
use hookbridge::deliver::signature::{Received, TOLERANCE, verify};
use hookbridge::deliver::{Access, AddressPolicy, Courier, Signer};
use hookbridge::event::EventId;
use hookbridge::outgoing::Outgoing;
use hookbridge::subscription::{Scheme, Secret};
use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const SECOND: Duration = Duration::from_secs(1);

/// Nothing but a time to connect in.
pub fn plain() -> Access<'static> {
    Access {
        tls: None,
        auth: None,
        connect_timeout: 2 * SECOND,
    }
}

/// A courier that may go to loopback.
pub fn courier() -> Arc<Courier> {
    Courier::new(AddressPolicy {
        allow_http: true,
        allow_networks: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
    })
}

pub fn post(url: &str) -> Outgoing {
    Outgoing {
        method: Method::POST,
        url: Arc::new(url.parse().unwrap()),
        headers: HeaderMap::new(),
        body: Bytes::from_static(BODY),
        deadline: 5 * SECOND,
    }
}

pub async fn attempt(courier: &Courier, request: Outgoing) -> Attempt {
    let signer = Signer::new(&Scheme::Standard, &[Secret::new(SECRET)]).unwrap();
    let id = EventId::kept("msg_1").unwrap();
    courier.attempt(request, &signer, &id, plain()).await
}

pub fn class(attempt: &Attempt) -> Option<ErrorClass> {
    match &attempt.outcome {
        Outcome::Failed(failure) => Some(failure.class),
        _ => None,
    }
}

/// A server that treats each connection as `then` says. Also: how many connections there were.
async fn raw_server<F, Fut>(then: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let then = Arc::new(then);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let then = then.clone();
            tokio::spawn(async move { then(stream).await });
        }
    });
    (address, connections)
}

/// Reads up to the end of one request with [`BODY`]; its text, or `None` when the peer has gone.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !text.ends_with(BODY) {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => text.extend_from_slice(&buffer[..read]),
        }
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Answers each request of a connection with the same bytes.
async fn answering(reply: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    raw_server(move |mut stream| async move {
        while request(&mut stream).await.is_some() {
            if stream.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn attempt_at(address: SocketAddr) -> Attempt {
    attempt(&courier(), post(&format!("http://{address}/in?x=1"))).await
}

async fn answer_to(reply: &'static str) -> hookbridge::attempt::Answer {
    let attempt = attempt_at(answering(reply).await.0).await;
    match attempt.outcome {
        Outcome::Answered(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_arrives_is_signed_and_plain() {
    let (sent, mut seen) = tokio::sync::mpsc::channel(1);
    let (address, _) = raw_server(move |mut stream| {
        let sent = sent.clone();
        async move {
            let text = request(&mut stream).await.unwrap();
            sent.send(text).await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let attempt = attempt_at(address).await;
    assert!(attempt.outcome.is_success(), "{attempt:?}");

    let text = seen.recv().await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("POST /in?x=1 HTTP/1.1"));
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.insert(
            name.parse::<http::HeaderName>().unwrap(),
            value.parse().unwrap(),
        );
    }
    let names: std::collections::BTreeSet<_> = headers.keys().map(|n| n.as_str()).collect();
    let expected = [
        "content-length",
        "host",
        "user-agent",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    ];
    assert_eq!(names, expected.into_iter().collect());
    assert!(
        headers["user-agent"]
            .to_str()
            .unwrap()
            .starts_with("hookbridge/")
    );
    let now = attempt.started_at.as_second();
    let secrets = [Secret::new(SECRET)];
    let received = Received {
        method: &Method::POST,
        url: "",
        headers: &headers,
        body: body.as_bytes(),
    };
    verify(&Scheme::Standard, &secrets, &received, now, TOLERANCE).unwrap();
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let (address, connections) =
        answering("HTTP/1.1 302 Found\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n").await;
    let attempt = attempt_at(address).await;
    assert_eq!(attempt.outcome.label(), "302");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_start_of_the_body_is_kept() {
    let answer =
        answer_to("HTTP/1.1 500 Oops\r\ncontent-length: 13\r\n\r\nno\r\nroom \x1b[1m").await;
    assert_eq!(
        (answer.status, answer.excerpt.as_str()),
        (500, "no  room [1m")
    );
}

#[tokio::test]
async fn retry_after_and_wishes_are_read() {
    let answer = answer_to(
        "HTTP/1.1 429 Slow\r\nretry-after: 1000000000000000000\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    assert!(answer.retry_after.unwrap() > Duration::from_secs(86_400 * 365));
    let answer = answer_to("HTTP/1.1 503 No\r\nretry-after: -1\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(answer.retry_after, None);
    let answer =
        answer_to("HTTP/1.1 410 Gone\r\nwebhook-delivery: disable\r\ncontent-length: 0\r\n\r\n")
            .await;
    assert_eq!(answer.wish, Some(Wish::Disable));
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (address, connections) = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let courier = courier();
    for _ in 0..20 {
        let attempt = attempt(&courier, post(&format!("http://{address}/"))).await;
        assert!(attempt.outcome.is_success(), "{attempt:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_died_idle_costs_no_attempt() {
    let (address, connections) = raw_server(|mut stream| async move {
        request(&mut stream).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    })
    .await;
    let courier = courier();
    for _ in 0..5 {
        let attempt = attempt(&courier, post(&format!("http://{address}/"))).await;
        assert!(attempt.outcome.is_success(), "{attempt:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn an_endless_body_is_cut_and_its_connection_dropped() {
    let (closed, mut was_closed) = tokio::sync::mpsc::channel(1);
    let (address, _) = raw_server(move |mut stream| {
        let closed = closed.clone();
        async move {
            request(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            let mut written = 0usize;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {
                written += 4096;
            }
            let _ = closed.send(written).await;
        }
    })
    .await;
    let attempt = attempt_at(address).await;
    assert!(attempt.outcome.is_success());
    assert_eq!(attempt.outcome.excerpt().len(), 512);
    let written = tokio::time::timeout(2 * SECOND, was_closed.recv()).await;
    // What the kernels had buffered may be more than we read.
    assert!(written.unwrap().unwrap() < 16 << 20);
}

#[tokio::test]
async fn a_gzip_bomb_stays_closed() {
    let answer = answer_to(
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x0b\x08z",
    )
    .await;
    assert_eq!((answer.status, answer.excerpt.as_str()), (200, "z"));
}

#[tokio::test]
async fn a_cut_off_body_after_a_2xx_is_a_success() {
    let (address, _) = raw_server(|mut stream| async move {
        request(&mut stream).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            .await;
        let _ = stream.set_zero_linger();
    })
    .await;
    let attempt = attempt_at(address).await;
    assert!(attempt.outcome.is_success(), "{attempt:?}");
}

#[tokio::test]
async fn a_connection_cut_before_the_status_is_a_protocol_failure() {
    let (address, _) = raw_server(|mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 20").await;
    })
    .await;
    assert_eq!(
        class(&attempt_at(address).await),
        Some(ErrorClass::Protocol)
    );
}

#[tokio::test]
async fn hanging_before_or_after_the_head_ends_at_the_deadline() {
    for (reply, label) in [
        ("", "timeout"),
        ("HTTP/1.1 200 OK\r\n", "timeout"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nslow", "200"),
        ("HTTP/1.1 503 No\r\ncontent-length: 10\r\n\r\nslow", "503"),
    ] {
        let (address, _) = answering(reply).await;
        let mut request = post(&format!("http://{address}/"));
        request.deadline = Duration::from_millis(300);
        let attempt = attempt(&courier(), request).await;
        assert_eq!(attempt.outcome.label(), label, "{reply:?}");
        assert!(
            attempt.took >= Duration::from_millis(300) && attempt.took < SECOND,
            "{attempt:?}"
        );
    }
}

#[tokio::test]
async fn one_byte_at_a_time_ends_at_the_deadline() {
    let (address, _) = raw_server(|mut stream| async move {
        request(&mut stream).await;
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: 0123456789\r\n\r\n".chunks(1) {
            if stream.write_all(byte).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let mut request = post(&format!("http://{address}/"));
    request.deadline = Duration::from_millis(300);
    assert_eq!(
        class(&attempt(&courier(), request).await),
        Some(ErrorClass::Timeout)
    );
}

#[tokio::test]
async fn a_flood_of_headers_is_a_protocol_failure() {
    let long: &'static str = Box::leak(
        format!(
            "HTTP/1.1 200 OK\r\nx-long: {}\r\n\r\n",
            "x".repeat(200 << 10)
        )
        .into_boxed_str(),
    );
    let many: &'static str = Box::leak(
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-many: 1\r\n".repeat(200)).into_boxed_str(),
    );
    for reply in [long, many] {
        let attempt = attempt_at(answering(reply).await.0).await;
        assert_eq!(class(&attempt), Some(ErrorClass::Protocol), "{attempt:?}");
    }
}

#[tokio::test]
async fn endless_informational_answers_end() {
    let (address, _) = raw_server(|mut stream| async move {
        request(&mut stream).await;
        while stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut request = post(&format!("http://{address}/"));
    request.deadline = Duration::from_millis(300);
    let attempt = attempt(&courier(), request).await;
    assert!(class(&attempt).is_some(), "{attempt:?}");
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_failure() {
    let attempt = attempt_at(answering("220 smtp.example.com ESMTP\r\n").await.0).await;
    assert_eq!(class(&attempt), Some(ErrorClass::Protocol), "{attempt:?}");
}

#[tokio::test]
async fn nobody_listening_is_a_connect_failure() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let attempt = attempt_at(address).await;
    assert_eq!(class(&attempt), Some(ErrorClass::Connect), "{attempt:?}");
    assert!(!attempt.outcome.excerpt().contains("/in"), "{attempt:?}");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_a_dns_failure() {
    let attempt = attempt(&courier(), post("http://nowhere.invalid/secret-path")).await;
    assert_eq!(class(&attempt), Some(ErrorClass::Dns), "{attempt:?}");
    assert!(!attempt.outcome.excerpt().contains("secret-path"));
}

#[tokio::test]
async fn denied_addresses_get_no_connection() {
    let (address, connections) = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = address.port();
    let strict = Courier::new(AddressPolicy {
        allow_http: true,
        allow_networks: Vec::new(),
    });
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "[::1]",
    ] {
        let attempt = attempt(&strict, post(&format!("http://{host}:{port}/"))).await;
        assert_eq!(
            class(&attempt),
            Some(ErrorClass::Denied),
            "{host}: {attempt:?}"
        );
    }
    let https_only = Courier::new(AddressPolicy::default());
    let attempt = attempt(&https_only, post("http://example.com/")).await;
    assert_eq!(class(&attempt), Some(ErrorClass::Denied));
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

/// The machine's own name mostly resolves to a loopback or private address, through the resolver.
#[tokio::test]
async fn a_name_that_resolves_to_a_denied_address_gets_no_connection() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let Ok(mut addresses) = tokio::net::lookup_host((name, 80)).await else {
        return; // it has no address here
    };
    let private = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(v4) => v4.is_private() || v4.is_loopback(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback(),
    };
    if !addresses.any(private) {
        return; // a public one here
    }
    let strict = Courier::new(AddressPolicy {
        allow_http: true,
        allow_networks: Vec::new(),
    });
    let attempt = attempt(&strict, post(&format!("http://{name}:1/"))).await;
    assert_eq!(class(&attempt), Some(ErrorClass::Denied), "{attempt:?}");
}

#[tokio::test]
async fn localhost_is_the_loopback_that_was_opened() {
    let (address, _) = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let v4_only = Courier::new(AddressPolicy {
        allow_http: true,
        allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
    });
    for host in ["localhost", "localhost.", "a.localhost"] {
        let url = format!("http://{host}:{}/", address.port());
        let attempt = attempt(&v4_only, post(&url)).await;
        assert!(attempt.outcome.is_success(), "{host}: {attempt:?}");
    }
}

#[tokio::test]
async fn ipv6_literals_work() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        return; // no IPv6 here
    };
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    });
    let attempt = attempt_at(address).await;
    assert!(attempt.outcome.is_success(), "{attempt:?}");
}

#[tokio::test]
async fn a_url_that_http_cannot_carry_is_unsendable() {
    let long = format!("http://127.0.0.1/{}", "x".repeat(70_000));
    let attempt = attempt(&courier(), post(&long)).await;
    assert!(
        matches!(attempt.outcome, Outcome::Unsendable(_)),
        "{attempt:?}"
    );
}
