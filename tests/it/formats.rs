//! What a real bridge sends in each format is read back by other libraries than the one that wrote
//! it, with the signature of what came verified first; what cannot be rendered is a dead letter.
//!
//! The receiver is tests/receivers/formats.py; `scripts/setup` installs what it needs.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::receivers::{Receiver, installed, root};
use crate::support::bridge::Bridge;
use crate::support::receiver::Receiver as Recording;
use crate::support::{SECRET, eventually};

const WITHIN: Duration = Duration::from_secs(30);
const ORDER: &str = r#"{"total":3.50,"customer":{"name":"\u00c4da & \"Bob\"","card":"4711"},"items":[{"sku":"a"},{"@id":2,"sku":"<b>"}]}"#;

fn receiver() -> Receiver {
    let mut python = Command::new("python3");
    python
        .arg(root().join("tests/receivers/formats.py"))
        .env("PYTHONPATH", installed("python"));
    Receiver::start(&mut python)
}

fn config(subscriptions: &str) -> String {
    format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
versions: {{ v1: {{ formats: {{ '#': envelope }}, deprecated: 2026-01-31, sunset: 2027-01-31 }} }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ shop: {{ broker: here, topics: ['#'] }} }}
subscriptions:
{subscriptions}"
    )
}

/// A subscription to `topic` that delivers to a path of its own name.
fn subscription(name: &str, topic: &str, port: u16, rest: &str) -> String {
    format!(
        "  {name}: {{ topics: ['{topic}'], endpoint: {{ url: 'http://127.0.0.1:{port}/{name}', secret: '{SECRET}', {rest} }}, retry: {{ schedule: [1s], max_attempts: 1 }} }}\n"
    )
}

async fn publish(bridge: &Bridge, topic: &str, headers: &[(&str, &str)], body: &'static str) {
    let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
    let mut request = reqwest::Client::new().post(url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.expect("the admin answers");
    let status = answer.status().as_u16();
    assert_eq!(status, 202, "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_libraries_read_what_was_written() {
    let receiver = receiver();
    let keys: Value = serde_json::from_str(&receiver.said).expect("public keys");
    let template = r#"format: { template: { body: '{"text": {{ "of " ~ data.customer.name }}}', headers: { x-order: '{{ data["items"][1].sku }}' }, query: { total: '{{ data.total }}' }, path: ['{{ data.customer.name }}'] } }"#;
    let mut rows: Vec<(String, String)> = [
        ("envelope", "format: envelope"),
        (
            "fields",
            "fields: { drop: [data.customer.card], mask: [data.items.sku] }",
        ),
        ("template", template),
        ("form", "format: { form: { flatten: true } }, method: PUT"),
        (
            "query",
            "method: GET, fields: { keep: [data.total, data.customer.name] }",
        ),
        ("xml", "format: { xml: { root: order } }"),
        ("gzip", "gzip: true"),
        ("structured", "format: cloudevents"),
        (
            "binary",
            "format: { cloudevents-binary: { source: /shop } }",
        ),
        ("batch", "format: cloudevents-batch"),
        ("version", "version: v1"),
    ]
    .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
    .into();
    for (name, key) in keys.as_object().expect("by name") {
        let rest = format!("encrypt: {{ key: {key}, kid: k1 }}");
        rows.push((format!("jwe-{}", name.to_lowercase()), rest));
    }
    let key = &keys["P-256"];
    let all = format!(
        "fields: {{ keep: [data.total] }}, format: envelope, encrypt: {{ key: {key} }}, gzip: true"
    );
    rows.push(("all".to_owned(), all));
    let subscriptions: String = rows
        .iter()
        .map(|(name, rest)| subscription(name, "orders.*", receiver.port, rest))
        .collect();
    let came = subscription("came", "came", receiver.port, "format: cloudevents");
    let bridge = Bridge::start(&config(&(subscriptions + &came))).await;
    let bridge = bridge.ready().await;
    // As Kafka has it, by way of the API.
    let cloud_event = [
        ("hookbridge-header-ce_specversion", "1.0"),
        ("hookbridge-header-ce_id", "A 7"),
        ("hookbridge-header-ce_source", "https://crm.example.com/"),
        ("hookbridge-header-ce_type", "made"),
        ("hookbridge-header-ce_time", "2026-03-01T12:00:00Z"),
        ("hookbridge-header-ce_subject", "order/7"),
        ("content-type", "application/json"),
    ];
    publish(&bridge, "came", &cloud_event, "[1]").await;
    let id = [
        ("hookbridge-id", "evt_1"),
        ("content-type", "application/json"),
    ];
    publish(&bridge, "orders.created", &id, ORDER).await;
    let read = eventually("everything is read", WITHIN, async || {
        let read = receiver.results::<Value>().await;
        (read.len() == rows.len() + 1).then_some(read)
    })
    .await;

    let order: Value = serde_json::from_str(ORDER).expect("JSON");
    assert_eq!(read["envelope"]["type"], "orders.created");
    assert_eq!(read["envelope"]["data"], order);
    assert_eq!(
        read["fields"],
        json!({"total": 3.5, "customer": {"name": "Äda & \"Bob\""}, "items": [{"sku": "***"}, {"@id": 2, "sku": "***"}]})
    );
    assert_eq!(
        read["template"],
        json!([
            "/template/%C3%84da%20%26%20%22Bob%22?total=3.5",
            "<b>",
            {"text": "of Äda & \"Bob\""}
        ])
    );
    assert_eq!(
        read["form"],
        json!([
            ["total", "3.50"],
            ["customer[name]", "Äda & \"Bob\""],
            ["customer[card]", "4711"],
            ["items[0][sku]", "a"],
            ["items[1][@id]", "2"],
            ["items[1][sku]", "<b>"]
        ])
    );
    assert_eq!(
        read["query"],
        json!([0, [["total", "3.50"], ["customer[name]", "Äda & \"Bob\""]]])
    );
    assert_eq!(
        read["xml"],
        json!(["order", {}, null, [
            ["total", {}, "3.50", []],
            ["customer", {}, null, [["name", {}, "Äda & \"Bob\"", []], ["card", {}, "4711", []]]],
            ["items", {}, null, [["sku", {}, "a", []]]],
            ["items", {"id": "2"}, null, [["sku", {}, "<b>", []]]]
        ]])
    );
    assert_eq!(read["gzip"], order);
    for (name, source) in [("structured", "shop"), ("binary", "/shop")] {
        assert_eq!(
            read[name]["attributes"]["type"], "orders.created",
            "{}",
            read[name]
        );
        assert_eq!(read[name]["attributes"]["source"], source);
        assert_eq!(read[name]["data"], order);
    }
    assert_eq!(read["batch"][0]["data"], order);
    let [id, event] = [&read["came"][0], &read["came"][1]];
    assert!(id.as_str().is_some_and(|id| id.starts_with("ce_")), "{id}");
    assert_eq!(event["data"], json!([1]));
    for (name, value) in [
        ("id", "A 7"),
        ("source", "https://crm.example.com/"),
        ("type", "made"),
        ("time", "2026-03-01 12:00:00+00:00"),
        ("subject", "order/7"),
    ] {
        assert_eq!(event["attributes"][name], value, "{event}");
    }
    assert_eq!(
        read["version"],
        json!(["v1", "@1769817600", "Sun, 31 Jan 2027 00:00:00 GMT"])
    );
    for (name, _) in rows.iter().filter(|(name, _)| name.starts_with("jwe-")) {
        assert_eq!(read[name]["body"], order, "{name}: {}", read[name]);
        assert_eq!(read[name]["header"]["kid"], "k1");
        assert_eq!(read[name]["header"]["cty"], "json");
    }
    assert_eq!(
        read["all"]["body"]["data"],
        json!({"total": 3.5}),
        "{}",
        read["all"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_libraries_read_the_members_of_a_batch() {
    let receiver = receiver();
    let keys: Value = serde_json::from_str(&receiver.said).expect("public keys");
    let key = &keys["P-256"];
    let batch = "batch: { count: 3, within: 30s }";
    let all =
        format!("fields: {{ keep: [data.total] }}, format: envelope, encrypt: {{ key: {key} }}");
    let subscriptions: String = [
        ("gzip", "gzip: true"),
        ("batch", "format: cloudevents-batch"),
        ("all", &format!("{all}, gzip: true")),
    ]
    .map(|(name, rest)| {
        let rest = format!("{rest}, {batch}");
        subscription(name, "orders.*", receiver.port, &rest)
    })
    .concat();
    let bridge = Bridge::start(&config(&subscriptions)).await.ready().await;
    for (id, body) in [
        ("a", r#"{"total":1}"#),
        ("b", r#"{"total":2}"#),
        ("c", r#"{"total":3}"#),
    ] {
        let headers = [("hookbridge-id", id), ("content-type", "application/json")];
        publish(&bridge, "orders.created", &headers, body).await;
    }
    let read = eventually("everything is read", WITHIN, async || {
        let read = receiver.results::<Value>().await;
        (read.len() == 3).then_some(read)
    })
    .await;
    let totals = json!([{"total": 1}, {"total": 2}, {"total": 3}]);
    assert_eq!(read["gzip"], totals);
    for (number, id) in ["a", "b", "c"].iter().enumerate() {
        let event = &read["batch"][number];
        assert_eq!(event["attributes"]["id"], *id, "{}", read["batch"]);
        assert_eq!(event["data"], totals[number]);
        assert_eq!(
            read["all"]["body"][number]["data"], totals[number],
            "{}",
            read["all"]
        );
    }
    assert_eq!(read["all"]["header"]["cty"], "json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_rendered_is_a_dead_letter_as_it_came() {
    let receiver = Recording::accepting().await;
    let port = receiver.address.port();
    let template = r#"format: { template: { body: "{\"a\":\n{{ data.gone }}}" } }"#;
    let subscriptions = subscription("strict", "orders.*", port, template)
        + &subscription("wrapped", "notes.*", port, "format: envelope")
        + &subscription("plain", "#", port, "format: raw");
    let bridge = Bridge::start(&config(&subscriptions)).await.ready().await;
    publish(&bridge, "orders.created", &[], r#"{"b": 1}"#).await;
    publish(&bridge, "notes.made", &[], "no JSON").await;
    let letters = eventually("two letters", WITHIN, async || {
        let (_, text) = bridge.get("/v1/dead-letters/export").await;
        (text.lines().count() == 2).then_some(text)
    })
    .await;
    for (subscription, why, body) in [
        ("strict", "body, line 2: undefined value", r#"{"b": 1}"#),
        (
            "wrapped",
            "the body is not JSON, which the format needs",
            "no JSON",
        ),
    ] {
        let of_it = format!(r#""subscription":"{subscription}""#);
        let mut found = letters.lines().filter(|line| line.contains(&of_it));
        let letter = found
            .next()
            .unwrap_or_else(|| panic!("none of {subscription}: {letters}"));
        for part in [r#""reason":"render_failed""#, why, body] {
            assert!(letter.contains(part), "{letter}");
        }
    }
    // The others of the same events have theirs.
    let requests = receiver.wait_for(2, WITHIN).await;
    assert!(
        requests
            .iter()
            .all(|request| request.verified && request.path == "/plain")
    );
    assert_eq!(
        bridge
            .metric(
                r#"hookbridge_dead_letters_total{subscription="strict",reason="render_failed"}"#
            )
            .await,
        1.0,
        "{}",
        bridge.metrics().await
    );
}
