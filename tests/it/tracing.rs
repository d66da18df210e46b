//! Trace context and spans: what receivers get of a message's trace, and what a collector gets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::trace_states::hookbridge;

const SOON: Duration = Duration::from_secs(30);
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TOPIC: &str = "/v1/topics/orders.created/events";

async fn publish(bridge: &Bridge, id: &str, headers: &[(&str, &str)], kind: &str, body: &str) {
    let url = format!("http://{}{TOPIC}", bridge.admin);
    let request = reqwest::Client::new()
        .post(url)
        .header("content-type", kind);
    let request = match id {
        "" => request,
        id => request.header("hookbridge-id", id),
    };
    let all = headers
        .iter()
        .fold(request, |all, (name, value)| all.header(*name, *value));
    let answer = all.body(body.to_owned()).send().await.unwrap();
    assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
}

fn of<'r>(requests: &'r [Request], id: &str) -> Vec<&'r Request> {
    requests.iter().filter(|request| request.id == id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_s_trace_survives_retries_and_dead_letters() {
    let receiver =
        Receiver::answering(|_, before| Answer::status([503, 400, 204][before.min(2)])).await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "")
        .replace("jitter: 0", "jitter: 0, no_retry: [400]");
    let mut bridge = Bridge::start(&bus.config(&crm)).await.ready().await;
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", "shop=1"),
        ("baggage", "tenant=7"),
    ];
    publish(&bridge, "evt_1", &headers, "application/json", "{}").await;
    let odd = [
        ("traceparent", "00-xyz-01"),
        ("tracestate", "shop=1"),
        ("baggage", "tenant=7"),
    ];
    publish(&bridge, "evt_2", &odd, "application/json", "{}").await;
    receiver.wait_for(4, SOON).await;
    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    eventually("both dead letters are sent again", SOON, async || {
        hookbridge(&bridge, &["dead", "retry", "--all", "--yes"]).await;
        (receiver.count() >= 6).then_some(())
    })
    .await;
    let requests = receiver.wait_for(6, SOON).await;
    for request in of(&requests, "evt_1") {
        for (name, value) in headers {
            assert_eq!(request.headers[name], value, "{:?}", request.headers);
        }
    }
    for request in of(&requests, "evt_2") {
        assert!(!request.headers.contains_key("traceparent"));
        assert!(!request.headers.contains_key("tracestate"));
        assert_eq!(request.headers["baggage"], "tenant=7");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_events_in_a_request_are_of_its_trace_unless_they_have_their_own() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let config = [
        subscription("crm", "orders.*", &receiver.url("/raw"), ""),
        subscription("cloud", "orders.*", &receiver.url("/cloud"), "")
            .replace("endpoint: {", "endpoint: { format: cloudevents,"),
    ];
    let bridge = Bridge::start(&bus.config(&config.concat()))
        .await
        .ready()
        .await;
    let own = PARENT.replace("b7ad", "c8be");
    let lines = [
        json!({ "id": "evt_1", "data": {} }),
        json!({ "id": "evt_2", "data": {}, "headers": { "ce_traceparent": own } }),
        json!({ "id": "evt_3", "data": {}, "headers": { "Traceparent": own } }),
    ];
    let lines = lines.map(|line| line.to_string()).join("\n");
    let headers = [("traceparent", PARENT)];
    publish(&bridge, "", &headers, "application/x-ndjson", &lines).await;
    let requests = receiver.wait_for(6, SOON).await;
    let attribute = |request: &Request| {
        let event: Value = serde_json::from_slice(&request.body).unwrap();
        event["traceparent"].as_str().map(str::to_owned)
    };
    for (id, header, began) in [
        ("evt_1", PARENT, PARENT),
        ("evt_2", PARENT, &*own),
        ("evt_3", &*own, &*own),
    ] {
        let both = of(&requests, id);
        assert_eq!(both.len(), 2, "{id}");
        for request in both {
            assert_eq!(request.headers["traceparent"], header, "{id}");
            if request.path == "/cloud" {
                assert_eq!(attribute(request).as_deref(), Some(began), "{id}");
            }
        }
    }
}

/// A collector: what it was sent, and how it answers.
#[derive(Clone)]
struct Collector {
    address: std::net::SocketAddr,
    got: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    answer: Arc<Mutex<StatusCode>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            got: Arc::default(),
            answer: Arc::new(Mutex::new(StatusCode::OK)),
        };
        let router = Router::new().route("/otel/v1/traces", post(Self::take));
        let router = router.with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    async fn take(
        State(own): State<Self>,
        headers: HeaderMap,
        body: Bytes,
    ) -> (StatusCode, String) {
        let answer = *own.answer.lock().unwrap();
        if answer.is_success() {
            let body = serde_json::from_slice(&body).unwrap();
            own.got.lock().unwrap().push((headers, body));
        }
        (answer, "{}".to_owned())
    }

    fn spans(&self) -> Vec<Value> {
        let got = self.got.lock().unwrap();
        let requests = got
            .iter()
            .flat_map(|(_, body)| body["resourceSpans"].as_array().unwrap());
        let scopes = requests.flat_map(|resource| resource["scopeSpans"].as_array().unwrap());
        let spans = scopes.flat_map(|scope| scope["spans"].as_array().unwrap());
        spans.cloned().collect()
    }

    async fn wait_for(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} spans"), SOON, async || {
            let spans = self.spans();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }

    fn config(&self, more: &str) -> String {
        let address = self.address;
        format!(
            "telemetry: {{ otlp: {{ endpoint: 'http://{address}/otel/', headers: {{ x-key: k1 }}{more} }} }}\n"
        )
    }
}

fn attribute(span: &Value, key: &str) -> Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|one| one["key"] == key);
    let value = found.and_then(|one| one["value"].as_object()?.values().next());
    value.cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_a_span_for_the_event_and_one_for_each_attempt() {
    let receiver = Receiver::answering(|_, before| Answer::status([503, 204][before.min(1)])).await;
    let collector = Collector::start().await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/s3cr3tPath"), "");
    let config = format!("{}{}", collector.config(""), bus.config(&crm));
    let bridge = Bridge::start(&config).await.ready().await;
    let headers = [("traceparent", PARENT), ("tracestate", "shop=1")];
    publish(&bridge, "evt_1", &headers, "application/json", "{}").await;
    let requests = receiver.wait_for(2, SOON).await;
    let spans = collector.wait_for(3).await;
    let of_kind =
        |kind: u64| -> Vec<&Value> { spans.iter().filter(|span| span["kind"] == kind).collect() };
    let (consumers, mut clients) = (of_kind(5), of_kind(3));
    assert_eq!((consumers.len(), clients.len()), (1, 2), "{spans:?}");
    let consumer = consumers[0];
    assert_eq!(consumer["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(consumer["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(consumer["name"], "process orders.created");
    assert_eq!(attribute(consumer, "hookbridge.source"), "orders");
    assert_eq!(attribute(consumer, "messaging.message.id"), "evt_1");
    clients.sort_by_key(|span| span["startTimeUnixNano"].as_str().unwrap().to_owned());
    for (client, request) in clients.iter().zip(&requests) {
        assert_eq!(client["parentSpanId"], consumer["spanId"]);
        assert_eq!(client["traceState"], "shop=1");
        let sent = request.headers["traceparent"].to_str().unwrap();
        let span = client["spanId"].as_str().unwrap();
        assert_eq!(
            sent,
            format!("00-0af7651916cd43dd8448eb211c80319c-{span}-01")
        );
        assert_eq!(request.headers["tracestate"], "shop=1");
        let took = |end: &str| client[end].as_str().unwrap().parse::<u64>().unwrap();
        assert!(took("startTimeUnixNano") < took("endTimeUnixNano"));
    }
    assert_eq!(attribute(clients[0], "http.response.status_code"), "503");
    assert_eq!(attribute(clients[0], "error.type"), "503");
    assert_eq!(clients[0]["status"]["code"], 2);
    assert_eq!(attribute(clients[1], "http.request.resend_count"), "1");
    assert_eq!(clients[1]["status"], json!({}));
    let got = collector.got.lock().unwrap();
    assert!(got.iter().all(|(headers, _)| headers["x-key"] == "k1"));
    let all = got
        .iter()
        .map(|(_, body)| body.to_string())
        .collect::<String>();
    assert!(!all.contains("s3cr3tPath"), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_say_whose_the_event_is() {
    let receiver = Receiver::accepting().await;
    let collector = Collector::start().await;
    let bus = Bus::embedded();
    let url = receiver.url("/");
    let crm = subscription("crm", "orders.*", &url, "");
    let template = r#"format: { template: { body: "{{ [id, tenant] }}" } },"#;
    let told = subscription("told", "orders.*", &url, "")
        .replace("endpoint: {", &format!("endpoint: {{ {template}"));
    let of_source = "orders: { broker: here,";
    let config = bus.config(&[crm, told].concat());
    assert!(config.contains(of_source), "{config}");
    let config = config.replace(
        of_source,
        &format!("{of_source} tenant: {{ header: x-tenant }},"),
    );
    let bridge = Bridge::start(&format!("{}{config}", collector.config(""))).await;
    let bridge = bridge.ready().await;
    let kind = "application/json";
    let header = [("hookbridge-header-x-tenant", "acme")];
    publish(&bridge, "evt_1", &header, kind, "{}").await;
    publish(&bridge, "evt_2", &[], kind, "{}").await;
    let requests = receiver.wait_for(4, SOON).await;
    for span in collector.wait_for(6).await {
        let wanted = match attribute(&span, "messaging.message.id").as_str() {
            Some("evt_1") => json!("acme"),
            _ => Value::Null,
        };
        assert_eq!(attribute(&span, "hookbridge.tenant"), wanted, "{span}");
    }
    // A template may tell it; nothing else does.
    let mut bodies: Vec<_> = requests
        .iter()
        .map(|it| String::from_utf8_lossy(&it.body))
        .collect();
    bodies.sort();
    assert_eq!(
        bodies,
        [r#"["evt_1","acme"]"#, r#"["evt_2",""]"#, "{}", "{}"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_samples_leaves_no_span_and_goes_on_as_it_came() {
    let receiver = Receiver::accepting().await;
    let collector = Collector::start().await;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let config = format!("{}{}", collector.config(", sample: 0"), bus.config(&crm));
    let bridge = Bridge::start(&config).await.ready().await;
    let not = format!("{}00", &PARENT[..53]);
    let json = "application/json";
    publish(&bridge, "evt_1", &[("traceparent", &not)], json, "{}").await;
    publish(&bridge, "evt_2", &[], json, "{}").await;
    publish(&bridge, "evt_3", &[("traceparent", PARENT)], json, "{}").await;
    let requests = receiver.wait_for(3, SOON).await;
    let spans = collector.wait_for(2).await;
    assert!(
        spans
            .iter()
            .all(|span| attribute(span, "messaging.message.id") == "evt_3")
    );
    assert_eq!(
        of(&requests, "evt_1")[0].headers["traceparent"],
        not.as_str()
    );
    assert!(
        !of(&requests, "evt_2")[0]
            .headers
            .contains_key("traceparent")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_spans_and_no_delivery() {
    let receiver = Receiver::accepting().await;
    let collector = Collector::start().await;
    *collector.answer.lock().unwrap() = StatusCode::BAD_REQUEST;
    let bus = Bus::embedded();
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let config = format!("{}{}", collector.config(""), bus.config(&crm));
    let bridge = Bridge::start(&config).await.ready().await;
    let bodies: Vec<_> = (1..=50).map(|n| format!("{{\"n\": {n}}}")).collect();
    bus.publish(&bridge, &bodies).await;
    receiver.wait_for(50, SOON).await;
    eventually("spans are counted as lost", SOON, async || {
        let lost = bridge.metric("hookbridge_spans_lost_total").await;
        (lost >= 100.0).then_some(())
    })
    .await;
    *collector.answer.lock().unwrap() = StatusCode::OK;
    publish(&bridge, "evt_99", &[], "application/json", "{}").await;
    collector.wait_for(2).await;
    eventually("what was taken is counted", SOON, async || {
        let taken = bridge.metric("hookbridge_spans_exported_total").await;
        (taken == 2.0).then_some(())
    })
    .await;
    let log = bridge.log();
    assert_eq!(log.matches("takes no spans").count(), 1, "{log}");
    assert_eq!(log.matches("takes spans again").count(), 1, "{log}");
}
