//! Handshakes over a real bridge: what an endpoint is asked, what is held until it agrees, and for how
//! long an agreement holds.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use crate::support::bridge::Bridge;
use crate::support::command::Command;
use crate::support::{SECRET, eventually};

const SOON: Duration = Duration::from_secs(20);
const KEY: &str = "0123456789abcdef";
const OTHER_KEY: &str = "fedcba9876543210";

/// One request as it came.
#[derive(Debug, Clone)]
struct Request {
    at: Instant,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("-")
    }

    fn is_handshake(&self) -> bool {
        self.method == Method::OPTIONS
            || self.headers.contains_key("x-hook-secret")
            || self
                .body
                .windows(16)
                .any(|part| part == b"url_verification")
    }
}

type Answers = dyn Fn(&Request) -> Response + Send + Sync;

/// A receiver that answers handshakes as the test says and everything else with 204.
struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    requests: Mutex<Vec<Request>>,
    answers: Box<Answers>,
}

impl Receiver {
    async fn answering(answers: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            answers: Box::new(answers),
        });
        let router = Router::new().fallback(receive).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            shared,
            task,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn requests(&self, handshakes: bool) -> Vec<Request> {
        let all = self.shared.requests.lock().unwrap();
        all.iter()
            .filter(|request| request.is_handshake() == handshakes)
            .cloned()
            .collect()
    }

    async fn handshakes(&self, count: usize) -> Vec<Request> {
        self.some(true, count).await
    }

    async fn deliveries(&self, count: usize) -> Vec<Request> {
        self.some(false, count).await
    }

    async fn some(&self, handshakes: bool, count: usize) -> Vec<Request> {
        let what = match handshakes {
            true => "handshakes",
            false => "deliveries",
        };
        eventually(&format!("{count} {what}"), SOON, async || {
            let came = self.requests(handshakes);
            (came.len() >= count).then_some(came)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = Request {
        at: Instant::now(),
        method,
        headers,
        body,
    };
    let answer = match request.is_handshake() {
        true => (shared.answers)(&request),
        false => StatusCode::NO_CONTENT.into_response(),
    };
    shared.requests.lock().unwrap().push(request);
    answer
}

fn config(subscriptions: &[(&str, &str, &str)]) -> String {
    let mut text = "data_dir: '{data}'
admin: { listen: '{admin}' }
delivery: { allow_http: true, allow_networks: [127.0.0.0/8] }
brokers: { here: { embedded: {} } }
sources: { shop: { broker: here, topics: ['#'] } }
subscriptions:
"
    .to_owned();
    for (name, url, rest) in subscriptions {
        text.push_str(&format!(
            "  {name}: {{ topics: ['{name}'], endpoint: {{ url: '{url}', {rest} }} }}\n"
        ));
    }
    text
}

async fn publish(bridge: &Bridge, topic: &str, body: &str) {
    let path = format!("/v1/topics/{topic}/events");
    let (status, answer) = bridge.post(&path, body).await;
    assert_eq!(status, 202, "{answer}");
}

async fn subscription(bridge: &Bridge, name: &str) -> Value {
    let (_, text) = bridge.get("/v1/subscriptions").await;
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let list = all["subscriptions"].as_array().expect("a list");
    let one = list.iter().find(|one| one["name"] == name);
    one.expect("the subscription").clone()
}

async fn is_in_state(bridge: &Bridge, name: &str, state: &str) -> Value {
    eventually(&format!("{name} is {state}"), SOON, async || {
        let one = subscription(bridge, name).await;
        (one["state"] == state).then_some(one)
    })
    .await
}

/// Slack's answer.
fn echo(request: &Request) -> Response {
    let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
    let challenge = asked["challenge"].as_str().expect("text").to_owned();
    axum::Json(serde_json::json!({ "challenge": challenge })).into_response()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_delivered_before_the_endpoint_agrees_and_everything_after() {
    let willing = Arc::new(AtomicBool::new(false));
    let receiver = Receiver::answering({
        let willing = willing.clone();
        move |request| match willing.load(Ordering::SeqCst) {
            true => echo(request),
            false => "something else".into_response(),
        }
    })
    .await;
    let rest = format!(
        "secret: '{SECRET}', handshake: {{ challenge: {{ token: t0ken }} }}, headers: {{ x-team: shop }}, auth: {{ bearer: hunter2hunter2 }}"
    );
    let config = config(&[("crm", &receiver.url("/T0K3N/in"), &rest)]);
    let bridge = Bridge::start(&config).await.ready().await;
    let asked = receiver.handshakes(1).await.remove(0);
    assert_eq!(asked.method, Method::POST);
    assert_eq!(asked.header("content-type"), "application/json");
    assert_eq!(asked.header("x-team"), "shop");
    assert_eq!(asked.header("authorization"), "Bearer hunter2hunter2");
    let body: Value = serde_json::from_slice(&asked.body).expect("JSON");
    assert_eq!(body["type"], "url_verification");
    assert_eq!(body["token"], "t0ken");
    let verifier = standardwebhooks::Webhook::new(SECRET).expect("a secret");
    verifier
        .verify(&asked.body, &asked.headers)
        .expect("it is signed");

    publish(&bridge, "crm", "first").await;
    publish(&bridge, "crm", "second").await;
    let held = is_in_state(&bridge, "crm", "unverified").await;
    let why = held["why"].as_str().expect("why");
    assert!(
        why.contains("not the challenge") && why.contains("answer with"),
        "{why}"
    );
    eventually("both are held", SOON, async || {
        (subscription(&bridge, "crm").await["parked"] == 2).then_some(())
    })
    .await;
    let unverified = r#"hookbridge_endpoint_unverified{subscription="crm"}"#;
    assert_eq!(bridge.metric(unverified).await, 1.0);
    let (status, ready) = bridge.get("/readyz").await;
    assert!(
        status == 200 && ready.contains("not agreed yet: crm"),
        "{ready}"
    );
    // It is asked again, later each time.
    let asked = receiver.handshakes(3).await;
    let pause = |at: usize| asked[at].at - asked[at - 1].at;
    assert!(pause(1) >= Duration::from_millis(900) && pause(2) >= Duration::from_millis(1900));
    assert_eq!(
        receiver.requests(false).len(),
        0,
        "delivered before it agreed"
    );

    willing.store(true, Ordering::SeqCst);
    let (status, said) = bridge.post("/v1/subscriptions/crm/verify", "").await;
    assert!(
        status == 200 && said.contains(r#""state":"active""#),
        "{said}"
    );
    let delivered = receiver.deliveries(2).await;
    assert!(delivered.iter().all(|one| one.header("webhook-id") != "-"));
    assert_eq!(bridge.metric(unverified).await, 0.0);
    let attempts = r#"hookbridge_delivery_attempts_total{subscription="crm",outcome="failed""#;
    assert!(
        !bridge.metrics().await.contains(attempts),
        "attempts were burnt"
    );
    let log = bridge.log();
    for part in [
        "has not agreed to get deliveries: they are held",
        "advice=",
        "agrees to get deliveries",
    ] {
        assert!(log.contains(part), "{log}");
    }
    for secret in ["T0K3N", "hunter2", "t0ken", "whsec_"] {
        assert!(
            !log.contains(secret) && !said.contains(secret),
            "{secret}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agreement_outlives_a_restart_and_ends_with_the_url_or_the_secret() {
    let receiver = Receiver::answering(|request| {
        let secret = request.headers["x-hook-secret"].clone();
        ([("x-hook-secret", secret)], StatusCode::OK).into_response()
    })
    .await;
    let with = |path: &str, secret: &str| {
        let rest = format!("secret: '{secret}', signature: asana, handshake: hook-secret");
        config(&[("crm", &receiver.url(path), &rest)])
    };
    let mut bridge = Bridge::start(&with("/a", KEY)).await.ready().await;
    let asked = receiver.handshakes(1).await.remove(0);
    assert_eq!(
        (asked.header("x-hook-secret"), &asked.body[..]),
        (KEY, &b"{}"[..])
    );
    let state = is_in_state(&bridge, "crm", "active").await;
    assert_eq!(state["handshake"]["kind"], "hook-secret");
    assert!(state["handshake"]["agreed_at"].is_string(), "{state}");
    publish(&bridge, "crm", "{}").await;
    let delivered = receiver.deliveries(1).await.remove(0);
    assert_eq!(delivered.header("x-hook-signature").len(), 64);

    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "crm", "{}").await;
    receiver.deliveries(2).await;
    bridge.reload(&with("/a", KEY).replace("topics: ['crm']", "topics: ['crm', more]"));
    eventually("it is reloaded", SOON, async || {
        bridge
            .log()
            .contains("the config is reloaded")
            .then_some(())
    })
    .await;
    assert_eq!(receiver.requests(true).len(), 1, "asked again for nothing");

    bridge.reload(&with("/b", KEY));
    receiver.handshakes(2).await;
    bridge.reload(&with("/b", OTHER_KEY));
    let asked = receiver.handshakes(3).await.remove(2);
    assert_eq!(asked.header("x-hook-secret"), OTHER_KEY);
    is_in_state(&bridge, "crm", "active").await;
    publish(&bridge, "crm", "{}").await;
    receiver.deliveries(3).await;
    let log = bridge.log();
    assert!(!log.contains(KEY) && !log.contains(OTHER_KEY), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_rate_is_kept_to_and_the_lower_one_counts() {
    let receiver = Receiver::answering(|request| {
        let origin = request.headers["webhook-request-origin"].clone();
        let rate = "120".parse().unwrap();
        let headers = [
            ("webhook-allowed-origin", origin),
            ("webhook-allowed-rate", rate),
        ];
        (headers, StatusCode::OK).into_response()
    })
    .await;
    let rest = format!(
        "secret: '{SECRET}', rate: 50/s, handshake: {{ options: {{ origin: events.example.com }} }}"
    );
    // A shadow of the same endpoint asks for nothing, and lifts nothing either.
    let endpoints = format!(
        "endpoints: {{ crm: {{ url: '{}', {rest} }} }}\n",
        receiver.url("/in")
    );
    let crm = "  crm: { topics: [crm], endpoint: crm }\n";
    let shadow = "  crm-next: { topics: [crm], endpoint: crm, shadow: true }\n";
    let config = endpoints + &config(&[]) + crm + shadow;
    let mut bridge = Bridge::start(&config).await.ready().await;
    let asked = receiver.handshakes(1).await.remove(0);
    assert_eq!(asked.method, Method::OPTIONS);
    assert_eq!(asked.header("webhook-request-origin"), "events.example.com");
    assert_eq!(asked.header("webhook-request-rate"), "3000");
    let state = is_in_state(&bridge, "crm", "active").await;
    assert_eq!(state["handshake"]["allowed_rate"], "120/m");
    // The lane of the first delivery, and the one made after a restart from what is kept.
    for round in 0..2 {
        let before = receiver.requests(false).len();
        for _ in 0..4 {
            publish(&bridge, "crm", "{}").await;
        }
        let came = receiver.deliveries(before + 4).await.split_off(before);
        let took = came[3].at - came[0].at;
        // Two a second: the first at once, perhaps with a burst of one.
        assert!(took >= Duration::from_millis(900), "{round}: {took:?}");
        bridge.kill9_and_restart().await;
        bridge.wait_ready(SOON).await;
    }
    assert_eq!(receiver.requests(true).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_wrong_is_said_and_a_taken_back_agreement_holds_again() {
    let willing = Arc::new(AtomicBool::new(true));
    let receiver = Receiver::answering({
        let willing = willing.clone();
        move |_| match willing.load(Ordering::SeqCst) {
            true => [("webhook-allowed-origin", "*")].into_response(),
            false => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        }
    })
    .await;
    let rest = format!("secret: '{SECRET}', handshake: options");
    let none = format!("secret: '{SECRET}'");
    let config = config(&[
        ("crm", &receiver.url("/in"), &rest),
        ("plain", &receiver.url("/plain"), &none),
    ]);
    let bridge = Bridge::start(&config).await.ready().await;
    is_in_state(&bridge, "crm", "active").await;
    let (status, said) = bridge.post("/v1/subscriptions/plain/verify", "").await;
    assert!(
        status == 409 && said.contains("has no `handshake`"),
        "{said}"
    );
    let (status, _) = bridge.post("/v1/subscriptions/nobody/verify", "").await;
    assert_eq!(status, 404);

    willing.store(false, Ordering::SeqCst);
    let (status, said) = bridge.post("/v1/subscriptions/crm/verify", "").await;
    let one: Value = serde_json::from_str(&said).expect("JSON");
    assert!(status == 200 && one["state"] == "unverified", "{said}");
    assert!(
        one["why"].as_str().unwrap().contains("it answered 405"),
        "{said}"
    );
    publish(&bridge, "crm", "{}").await;
    publish(&bridge, "plain", "{}").await;
    receiver.deliveries(1).await;
    let doctor = |arguments: &'static [&'static str]| {
        let command = Command::of(&bridge.config_path(), arguments);
        tokio::task::spawn_blocking(move || command.run())
    };
    let looked = doctor(&["doctor", "--only", "endpoints"]).await.unwrap();
    let line = looked.line("asked for its agreement (`options`)");
    assert!(line.starts_with("ok"), "{line}");
    let pinged = doctor(&["doctor", "--only", "endpoints", "--ping"])
        .await
        .unwrap();
    let line = pinged.line("does not agree to get deliveries");
    assert!(
        line.starts_with("problem") && line.contains("it answered 405"),
        "{line}"
    );
    assert_eq!(pinged.code, 1);

    // It is asked again by itself, and what was held comes.
    let before = receiver.requests(false).len();
    willing.store(true, Ordering::SeqCst);
    receiver.deliveries(before + 1).await;
    is_in_state(&bridge, "crm", "active").await;
}

#[test]
fn a_handshake_that_cannot_be_is_a_problem_of_the_config() {
    let endpoint = |rest: &str| {
        format!(
            "brokers: {{ here: {{ embedded: {{}} }} }}\nendpoints:\n  e: {{ url: 'https://h/', {rest} }}\n"
        )
    };
    let said = |rest: &str| {
        let env = |_: &str| None;
        let parsed =
            hookbridge::config::parse(&endpoint(rest), "x", std::path::Path::new(""), &env);
        let problems = parsed.expect_err(rest);
        let first = &problems.list()[0];
        format!("{}:{} {}", first.line, first.col, first.message)
    };
    let all = [
        said("signature: none, handshake: hook-secret"),
        said("signature: none, handshake: option"),
        said("signature: none, handshake: { options: {}, challenge: {} }"),
        said("signature: none, handshake: { options: { origin: 'a b' } }"),
        said("signature: none, handshake: { challenge: { field: type } }"),
        said("secret: 0123456789abcdef, signature: asana, handshake: { hook-secret: { a: 1 } }"),
    ];
    insta::assert_snapshot!(all.join("\n"), @r"
    3:55 `hook-secret` sends the endpoint's secret, and there is none
    3:55 `option` is not a value of `handshake`
    3:44 `handshake` has exactly one key, the kind of handshake
    3:76 `a b` cannot be an origin
    3:77 the challenge needs a member of its own
    3:99 unknown key `a` in `hook-secret`
    ");
}
