//! Tests of a subscription: a sample or an event of the past sent to its endpoint, and what came back.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::registration_support::{KEY, SOON, ask, config, get, post, publish, to};
use crate::support::bridge::Bridge;
use crate::support::cli::run;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const ALL: &str = "/v1/subscriptions";
const TEST: &str = "/v1/subscriptions/crm/test";

fn header<'a>(message: &'a Value, name: &str) -> Option<&'a str> {
    let headers = message["headers"].as_array().expect("headers");
    let found = headers.iter().find(|header| header[0] == name);
    found.and_then(|header| header[1].as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_is_rendered_signed_and_sent_and_shown_without_secrets() {
    let receiver = Receiver::accepting().await;
    let bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let mut body = to("crm", &receiver.url("/T0K3N0123/B0"));
    body["endpoint"]["headers"] = json!({ "x-key": "hunter2-hunter2" });
    let made = post(&bridge, ALL, &body).await.with(201);
    let secret = made.body["secret"].as_str().expect("shown once");

    let sample = json!({ "sample": { "type": "order.created", "data": { "total": 120 } } });
    let tried = post(&bridge, TEST, &sample).await.with(200);
    let request = receiver.wait_for(1, SOON).await.remove(0);
    assert_eq!(&request.body[..], br#"{"total":120}"#);
    assert_eq!(request.path, "/T0K3N0123/B0");
    assert_eq!(request.headers["webhook-test"], "true");
    let verifier = Webhook::new(secret).expect("a secret");
    verifier
        .verify(&request.body, &request.headers)
        .expect("signed as a delivery");

    assert_eq!(tried.body["accepted"], true);
    let (sent, came) = (&tried.body["request"], &tried.body["response"]);
    assert_eq!(
        (&sent["method"], &sent["body"]),
        (&json!("POST"), &json!("{\"total\":120}"))
    );
    assert_eq!(header(sent, "webhook-test"), Some("true"));
    assert_eq!(header(sent, "x-key"), Some("***"));
    let id = request.headers["webhook-id"].to_str().expect("ASCII");
    assert_eq!(header(sent, "webhook-id"), Some(id));
    assert_eq!(came["status"], 204);
    let text = tried.body.to_string();
    assert!(
        !text.contains("T0K3N0123") && !text.contains("hunter2") && !text.contains(&secret[6..]),
        "{text}"
    );

    // It is logged as what it is.
    let attempts = get(&bridge, &format!("/v1/attempts?id={id}"))
        .await
        .with(200)
        .body;
    assert_eq!(attempts["attempts"][0]["then"], "test");
    let trace = get(&bridge, &format!("/v1/events/{id}/trace"))
        .await
        .with(200)
        .body;
    assert_eq!(trace["deliveries"][0]["now"]["state"], "tested");

    // Without a word a body is made up, for a topic that it matches.
    let tried = post(&bridge, TEST, &json!({})).await.with(200).body;
    let made_up: Value =
        serde_json::from_str(tried["request"]["body"].as_str().expect("text")).expect("JSON");
    assert_eq!(made_up["sample"], true);
    assert_eq!(tried["attempt"]["topic"], "orders.sample");
    for (body, status) in [
        (json!({ "sampel": {} }), 400),
        (json!({ "event": "x", "sample": {} }), 400),
        (json!({ "sample": { "data": 1, "text": "x" } }), 400),
        (json!({ "sample": { "id": "" } }), 400),
        (json!({ "event": "never" }), 404),
    ] {
        let refused = post(&bridge, TEST, &body).await.with(status);
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }
    post(&bridge, "/v1/subscriptions/none/test", &json!({}))
        .await
        .with(404);
    assert_eq!(receiver.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_the_past_is_sent_again_to_whom_one_likes() {
    let (first, second) = (Receiver::accepting().await, Receiver::accepting().await);
    let text = config(&[KEY], "").replace("embedded: {}", "embedded: { retention: 1h }");
    let bridge = Bridge::start(&text).await.ready().await;
    post(&bridge, ALL, &to("crm", &first.url("/")))
        .await
        .with(201);
    publish(&bridge, r#"{"total":  7}"#).await;
    let request = first.wait_for(1, SOON).await.remove(0);
    let id = request.headers["webhook-id"]
        .to_str()
        .expect("ASCII")
        .to_owned();
    let mut later = to("sales", &second.url("/"));
    later["topics"] = json!(["other"]);
    post(&bridge, ALL, &later).await.with(201);
    let ran = run(
        &bridge.config_path(),
        &["subscription", "test", "sales", "--event", &id],
    )
    .await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("> webhook-test: true") && ran.out.contains("< HTTP/1.1 204"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("accepted"), "{}", ran.out);
    let again = second.wait_for(1, SOON).await.remove(0);
    assert_eq!(&again.body[..], br#"{"total":  7}"#);
    assert_eq!(again.headers["webhook-id"].to_str().expect("ASCII"), id);
    assert_eq!(first.count(), 1, "nobody else gets it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_there_to_be_tried_and_what_is_gone_is_said() {
    let refusing = Receiver::answering(|_, _| Answer::status(400)).await;
    let bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let mut body = to("crm", &refusing.url("/"));
    body["retry"] = json!({ "max_attempts": 1 });
    post(&bridge, ALL, &body).await.with(201);
    publish(&bridge, "{\"a\": 1}").await;
    let dead = eventually("a dead letter", SOON, async || {
        let page = get(&bridge, "/v1/dead-letters").await.with(200).body;
        page["letters"][0]["event_id"].as_str().map(str::to_owned)
    })
    .await;
    let tried = post(&bridge, TEST, &json!({ "event": dead }))
        .await
        .with(200)
        .body;
    assert_eq!(
        (&tried["accepted"], &tried["request"]["body"]),
        (&json!(false), &json!("{\"a\": 1}"))
    );
    let page = get(&bridge, "/v1/dead-letters").await.with(200).body;
    assert_eq!(
        page["letters"].as_array().map(Vec::len),
        Some(1),
        "it lies where it was"
    );

    let accepting = Receiver::accepting().await;
    let patch = json!({ "endpoint": { "url": accepting.url("/") } });
    let changed = ask(
        &bridge,
        Method::PATCH,
        "/v1/subscriptions/crm",
        Some(&patch),
        &[],
    )
    .await;
    changed.with(200);
    publish(&bridge, "{}").await;
    let delivered = accepting.wait_for(1, SOON).await.remove(0).id;
    let path = format!("/v1/attempts?id={delivered}");
    eventually("it is recorded", SOON, async || {
        let page = get(&bridge, &path).await.with(200).body;
        (!page["attempts"][0].is_null()).then_some(())
    })
    .await;
    let gone = post(&bridge, TEST, &json!({ "event": delivered }))
        .await
        .with(404)
        .body;
    let detail = gone["detail"].as_str().expect("why");
    assert!(
        detail.contains("is not there to be sent again") && detail.contains("retention"),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_endpoint_answers_to_a_test_changes_nothing() {
    let gone = Receiver::answering(|request, _| match request.headers.get("webhook-test") {
        Some(_) => Answer::status(410).header("webhook-delivery", "disable"),
        None => Answer::status(204),
    })
    .await;
    let shared = format!(
        "endpoints: {{ shared: {{ url: '{}', signature: none, breaker: {{ failures: 1, cool_down: 1h }} }} }}\n\
         subscriptions:\n  files: {{ topics: [files], endpoint: shared }}\n  dark: {{ topics: [files], endpoint: shared, shadow: true }}\n",
        gone.url("/")
    );
    let bridge = Bridge::start(&config(&[KEY], &shared)).await.ready().await;
    let path = "/v1/subscriptions/files/test";
    for _ in 0..3 {
        let tried = post(&bridge, path, &json!({})).await.with(200).body;
        assert_eq!(
            (&tried["accepted"], &tried["response"]["status"]),
            (&json!(false), &json!(410))
        );
    }
    assert_eq!(gone.count(), 3);
    let now = get(&bridge, "/v1/subscriptions/files").await.with(200).body;
    assert_eq!(
        (&now["state"], &now["parked"]),
        (&json!("active"), &json!(0))
    );
    let metrics = bridge.metrics().await;
    assert!(
        !metrics.contains(r#"attempts_total{subscription="files",outcome="failed""#),
        "{metrics}"
    );
    // Neither disabled nor shut: what is really delivered goes on.
    let (status, answer) = bridge.post("/v1/topics/files/events", "{}").await;
    assert_eq!(status, 202, "{answer}");
    gone.wait_for(4, SOON).await;
    // A paused one can be tried; a shadow, of which nothing is sent, cannot.
    post(&bridge, "/v1/subscriptions/files/pause", &json!({}))
        .await
        .with(200);
    post(&bridge, path, &json!({})).await.with(200);
    post(&bridge, "/v1/subscriptions/dark/test", &json!({}))
        .await
        .with(409);
    assert_eq!(gone.count(), 5);

    // The guard and the time of deliveries hold for it.
    let mut far = to("far", &gone.url("/"));
    far["timeout"] = json!("200ms");
    post(&bridge, ALL, &far).await.with(201);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    let patch = json!({ "endpoint": { "url": url } });
    ask(
        &bridge,
        Method::PATCH,
        "/v1/subscriptions/far",
        Some(&patch),
        &[],
    )
    .await
    .with(200);
    let began = std::time::Instant::now();
    let tried = post(&bridge, "/v1/subscriptions/far/test", &json!({}))
        .await
        .with(200)
        .body;
    assert_eq!(
        (&tried["accepted"], &tried["attempt"]["outcome"]),
        (&json!(false), &json!("timeout"))
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    let ran = run(
        &bridge.config_path(),
        &["subscription", "test", "far", "--json"],
    )
    .await;
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let told: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(told["attempt"]["outcome"], "timeout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_makes_something_of_what_is_made_up() {
    let receiver = Receiver::accepting().await;
    let formats = [
        "raw",
        "envelope",
        "cloudevents",
        "cloudevents-binary",
        "cloudevents-batch",
        "form",
        "xml",
    ];
    let each: String = formats
        .iter()
        .map(|format| {
            let url = receiver.url(&format!("/{format}"));
            format!("  {format}: {{ topics: ['a.*'], endpoint: {{ url: '{url}', signature: none, format: {format} }} }}\n")
        })
        .collect();
    let bridge = Bridge::start(&config(&[], &format!("subscriptions:\n{each}")))
        .await
        .ready()
        .await;
    for format in formats {
        let tried = post(&bridge, &format!("{ALL}/{format}/test"), &json!({}))
            .await
            .with(200)
            .body;
        assert_eq!(tried["accepted"], true, "{format}: {tried:#}");
    }
    assert_eq!(receiver.count(), formats.len());
}
