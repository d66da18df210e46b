//! What a delivery costs in the HTTP client, and on which runtime.
//!
//! `cargo bench --bench client` runs every variant in a process of its own against a sink in another
//! one, in interleaved rounds, and prints medians: requests per second, and CPU (user and system,
//! from `/proc/self/stat`) per request of the sending process alone. Each request is a POST of 512
//! bytes, signed with HMAC-SHA256, on kept-alive connections, 64 at once.
//!
//! - `reqwest`: the floor, a hand-written loop of reqwest and HMAC.
//! - `courier`: ours, with everything that an attempt does.
//!
//! `benches/run` uses the sink and the floor of this program beside the whole bridge.
//!
//! Numbers and what follows from them: `docs/decisions/0001-http-client-and-runtime.md`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hookbridge::deliver::{AddressPolicy, Courier, Signer};
use hookbridge::event::EventId;
use hookbridge::outgoing::Outgoing;
use hookbridge::subscription::{Scheme, Secret};
use http::{HeaderMap, HeaderValue, Method};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const BODY_BYTES: usize = 512;
const AT_ONCE: u64 = 64;
const REQUESTS: u64 = 100_000;
const WARM_UP: u64 = 5_000;
const ROUNDS: usize = 5;
const CLIENTS: [&str; 2] = ["reqwest", "courier"];
const RUNTIMES: [&str; 4] = ["current", "multi1", "multi2", "shards2"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["sink"] => sink(),
        ["send", client, runtime, url] => send(client, runtime, url, REQUESTS),
        ["send", client, runtime, url, requests] => {
            send(client, runtime, url, requests.parse().expect("a number"));
        }
        // `cargo test --all-targets` runs this without `--bench` and wants no measurement.
        [.., "--bench"] => measure(),
        _ => println!("usage: cargo bench --bench client"),
    }
}

/// Runs all variants in turn, `ROUNDS` times, and prints the medians.
fn measure() {
    let this = std::env::current_exe().expect("the path of this program");
    let mut sink = Command::new(&this)
        .arg("sink")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the sink starts");
    let mut url = String::new();
    BufReader::new(sink.stdout.take().expect("a pipe"))
        .read_line(&mut url)
        .expect("the sink says where it is");
    let variants: Vec<(&str, &str)> = CLIENTS
        .into_iter()
        .flat_map(|client| RUNTIMES.map(|runtime| (client, runtime)))
        .collect();
    let mut results = vec![(Vec::new(), Vec::new()); variants.len()];
    for _ in 0..ROUNDS {
        for ((client, runtime), (rates, costs)) in variants.iter().zip(&mut results) {
            let output = Command::new(&this)
                .args(["send", client, runtime, url.trim()])
                .output()
                .expect("a variant runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>());
            match (numbers.next(), numbers.next()) {
                (Some(Ok(rate)), Some(Ok(cost))) => {
                    rates.push(rate);
                    costs.push(cost);
                }
                _ => panic!("{client} on {runtime}: {text}{output:?}"),
            }
        }
    }
    drop(sink.stdin.take());
    let _ = sink.wait();
    println!("| client | runtime | requests/s | CPU us/request | min to max |");
    println!("|---|---|---:|---:|---|");
    for ((client, runtime), (mut rates, mut costs)) in variants.into_iter().zip(results) {
        rates.sort_by(f64::total_cmp);
        costs.sort_by(f64::total_cmp);
        println!(
            "| {client} | {runtime} | {:.0} | {:.1} | {:.1} to {:.1} |",
            rates[ROUNDS / 2],
            costs[ROUNDS / 2],
            costs[0],
            costs[ROUNDS - 1]
        );
    }
}

/// POSTs answered by the sink.
static ANSWERED: AtomicU64 = AtomicU64::new(0);

/// Answers every POST with 200 and two bytes, and every GET with the number of POSTs so far, until
/// standard input closes. Knows just enough of HTTP to find the end of what is sent here.
fn sink() {
    let runtime = current_thread();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("http://{}/in", listener.local_addr().expect("an address"));
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(swallow(stream));
            }
        }
    });
}

async fn swallow(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(8192);
    loop {
        let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else {
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        if buffer.starts_with(b"GET ") {
            buffer.drain(..head + 4);
            let count = ANSWERED.load(Ordering::Relaxed).to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}",
                count.len()
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let whole = head + 4 + BODY_BYTES;
        while buffer.len() < whole {
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        buffer.drain(..whole);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        if stream.write_all(answer).await.is_err() {
            return;
        }
        ANSWERED.fetch_add(1, Ordering::Relaxed);
    }
}

/// One variant: warms up, sends, prints requests per second, CPU microseconds per request and the
/// peak of memory in MiB.
fn send(client: &str, runtime: &str, url: &str, requests: u64) {
    let threads = if runtime == "shards2" { 2 } else { 1 };
    let shards: Vec<(Runtime, Sender)> = (0..threads)
        .map(|_| {
            let runtime = match runtime {
                "multi1" => multi_thread(1),
                "multi2" => multi_thread(2),
                _ => current_thread(),
            };
            let sender = Sender::new(client, url);
            (runtime, sender)
        })
        .collect();
    round(&shards, WARM_UP);
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
    Reqwest(Arc<Bare>),
    Courier(Arc<Ours>),
}

struct Bare {
    client: reqwest::Client,
    url: reqwest::Url,
    key: Hmac<Sha256>,
    body: Bytes,
}

struct Ours {
    courier: Arc<Courier>,
    signer: Signer,
    request: Outgoing,
}

impl Sender {
    fn new(client: &str, url: &str) -> Self {
        let body = Bytes::from(vec![b'x'; BODY_BYTES]);
        if client == "reqwest" {
            let key = BASE64
                .decode(SECRET.trim_start_matches("whsec_"))
                .expect("a good secret");
            let client = reqwest::Client::builder().no_proxy().build();
            return Self::Reqwest(Arc::new(Bare {
                client: client.expect("a client"),
                url: url.parse().expect("a URL"),
                key: Hmac::new_from_slice(&key).expect("any key"),
                body,
            }));
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
            Self::Reqwest(bare) => bare.send(id).await,
            Self::Courier(ours) => {
                let id = EventId::kept(&id).expect("a good id");
                let request = ours.request.clone();
                let connect = Duration::from_secs(5);
                let attempt = ours
                    .courier
                    .attempt(request, &ours.signer, &id, None, connect);
                let attempt = attempt.await;
                assert!(attempt.outcome.is_success(), "{attempt:?}");
            }
        }
    }
}

impl Bare {
    async fn send(&self, id: String) {
        let timestamp = jiff::Timestamp::now().as_second().to_string();
        let mut mac = self.key.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", &self.body] {
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
            .body(self.body.clone())
            .send()
            .await
            .expect("an answer");
        assert!(response.status().is_success());
        response.bytes().await.expect("a body");
    }
}

fn current_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

fn multi_thread(workers: usize) -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// The most memory that this process has had at once.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.expect("a size in KiB") / 1024.0
}

/// User and system time of this process so far, in steps of 10 ms (the kernel's clock tick).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    // The name in parentheses may hold spaces.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
