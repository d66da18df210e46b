//! The floor without a broker: a loop of an HTTP client and HMAC, 64 at once, against the sink.
//!
//! `send CLIENT RUNTIME URL name=value...`; the client is `reqwest` (hand-written) or `courier`
//! (ours, with everything that an attempt does).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hookbridge::deliver::{Access, AddressPolicy, Courier, Signer};
use hookbridge::event::EventId;
use hookbridge::outgoing::Outgoing;
use hookbridge::subscription::{Scheme, Secret};
use http::{HeaderMap, HeaderValue, Method};
use sha2::Sha256;
use tokio::runtime::Runtime;

use crate::{AT_ONCE, cpu, current_thread, multi_thread, peak_mib};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const REQUESTS: u64 = 100_000;
const WARM_UP: u64 = 5_000;

/// One variant: warms up, sends, prints requests per second, CPU microseconds per request and the
/// peak of memory in MiB.
///
/// `count` and `size` (of a body, in bytes) are given as `name=value`, and `ca` as the file with
/// the authority that is believed.
pub fn run(client: &str, runtime: &str, url: &str, pairs: &[&str]) {
    let value = |name: &str| {
        let mut given = pairs.iter().filter_map(|pair| pair.split_once('='));
        given.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let number = |name: &str| value(name).map(|n| n.parse::<u64>().expect("a number"));
    let requests = number("count").unwrap_or(REQUESTS);
    let size = number("size").unwrap_or(512) as usize;
    let threads = if runtime == "shards2" { 2 } else { 1 };
    let shards: Vec<(Runtime, Sender)> = (0..threads)
        .map(|_| {
            let runtime = match runtime {
                "multi1" => multi_thread(1),
                "multi2" => multi_thread(2),
                _ => current_thread(),
            };
            let sender = Sender::new(client, url, size, value("ca"));
            (runtime, sender)
        })
        .collect();
    round(&shards, WARM_UP.min(requests / 10));
    let (cpu_before, began) = (cpu(), Instant::now());
    round(&shards, requests);
    let (took, spent) = (began.elapsed(), cpu() - cpu_before);
    println!(
        "{} {} {}",
        requests as f64 / took.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / requests as f64,
        peak_mib()
    );
}

fn round(shards: &[(Runtime, Sender)], requests: u64) {
    let left = Arc::new(AtomicU64::new(requests));
    let at_once = AT_ONCE / shards.len() as u64;
    std::thread::scope(|scope| {
        for (runtime, sender) in shards {
            let left = left.clone();
            scope.spawn(move || {
                runtime.block_on(async move {
                    let workers: Vec<_> = (0..at_once)
                        .map(|_| tokio::spawn(work(sender.clone(), left.clone())))
                        .collect();
                    for worker in workers {
                        worker.await.expect("a worker does not panic");
                    }
                });
            });
        }
    });
}

async fn work(sender: Sender, left: Arc<AtomicU64>) {
    while let Ok(number) =
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
    {
        sender.send(number).await;
    }
}

#[derive(Clone)]
enum Sender {
    Reqwest(Arc<Bare>, Bytes),
    Courier(Arc<Ours>),
}

/// A client that signs as the bridge does, written by hand.
pub struct Bare {
    client: reqwest::Client,
    url: reqwest::Url,
    key: Hmac<Sha256>,
}

struct Ours {
    courier: Arc<Courier>,
    signer: Signer,
    request: Outgoing,
}

impl Sender {
    fn new(client: &str, url: &str, size: usize, ca: Option<&str>) -> Self {
        let body = Bytes::from(vec![b'x'; size]);
        if client == "reqwest" {
            return Self::Reqwest(Arc::new(Bare::new(url, ca)), body);
        }
        let policy = AddressPolicy {
            allow_http: true,
            allow_networks: vec!["127.0.0.0/8".parse().expect("a network")],
        };
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        Self::Courier(Arc::new(Ours {
            courier: Courier::new(policy),
            signer: Signer::new(&Scheme::Standard, &[Secret::new(SECRET)]).expect("a good secret"),
            request: Outgoing {
                method: Method::POST,
                url: Arc::new(url.parse().expect("a URL")),
                headers,
                body,
                deadline: Duration::from_secs(15),
            },
        }))
    }

    async fn send(&self, number: u64) {
        let id = format!("msg_{number:020}");
        match self {
            Self::Reqwest(bare, body) => bare.send(id, body.clone()).await,
            Self::Courier(ours) => {
                let id = EventId::kept(&id).expect("a good id");
                let request = ours.request.clone();
                let access = Access {
                    tls: None,
                    auth: None,
                    connect_timeout: Duration::from_secs(5),
                };
                let attempt = ours.courier.attempt(request, &ours.signer, &id, access);
                let attempt = attempt.await;
                assert!(attempt.outcome.is_success(), "{attempt:?}");
            }
        }
    }
}

impl Bare {
    /// `ca` is a PEM file with one authority, believed instead of the machine's.
    pub fn new(url: &str, ca: Option<&str>) -> Self {
        let key = BASE64
            .decode(SECRET.trim_start_matches("whsec_"))
            .expect("a good secret");
        let mut client = reqwest::Client::builder().no_proxy();
        if let Some(ca) = ca {
            let pem = std::fs::read(ca).expect("the authority's file");
            let authority = reqwest::Certificate::from_pem(&pem).expect("a certificate");
            client = client.tls_certs_only([authority]);
        }
        Self {
            client: client.build().expect("a client"),
            url: url.parse().expect("a URL"),
            key: Hmac::new_from_slice(&key).expect("any key"),
        }
    }

    pub async fn send(&self, id: String, body: Bytes) {
        let timestamp = jiff::Timestamp::now().as_second().to_string();
        let mut mac = self.key.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", &body] {
            mac.update(part);
        }
        let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        let response = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .timeout(Duration::from_secs(15))
            .body(body)
            .send()
            .await
            .expect("an answer");
        assert!(response.status().is_success());
        response.bytes().await.expect("a body");
    }
}
