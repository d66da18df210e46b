//! Filters as docs/filters.md tells of them: each example holds or does not as it says, each operator
//! has one, and bodies that are not JSON are counted by a real bridge.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hookbridge::config;
use hookbridge::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use hookbridge::subscription::{Filter, LazyJson};
use serde_json::json;

use crate::docs_blocks::blocks;
use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::receiver::Receiver;

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/filters.md");
    std::fs::read_to_string(path).unwrap()
}

/// The message that the examples are about.
fn order(page: &str) -> Event {
    let mut headers = Headers::default();
    headers.push("region", HeaderValue::text("eu"));
    headers.push("priority", HeaderValue::text("7"));
    Event {
        id: EventId::from_outside(b"evt_1").unwrap(),
        topic: "orders.created".into(),
        kind: "order.created".into(),
        source: "shop".into(),
        tenant: None,
        published_at: Some("2026-03-01T12:00:00Z".parse().unwrap()),
        content_type: None,
        content_encoding: None,
        key: None,
        headers,
        properties: Vec::new(),
        body: Bytes::copy_from_slice(blocks(page, "json")[0].as_bytes()),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders.created".into(),
                sequence: 1,
            },
        },
    }
}

/// The rows of both tables: what the row is about, what holds, what does not.
fn rows(page: &str) -> Vec<(String, String, String)> {
    let code = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let tables = page.split("## Bodies").next().unwrap();
    let rows = tables.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.split(" | ").collect::<Vec<_>>())
        .filter(|cells| cells.len() == 4 && !cells[2].contains("holds"))
        .map(|cells| {
            let last = cells[3].strip_suffix(" |").unwrap();
            (code(&cells[0][2..]), code(cells[2]), code(last))
        })
        .collect()
}

/// Whether the filter, written as the config has it, lets `event` through.
fn holds(filter: &str, event: &Event) -> bool {
    let text = format!(
        "brokers: {{ here: {{ embedded: {{}} }} }}\nsubscriptions:\n  s: {{ topics: ['#'], filter: {{ {filter} }}, endpoint: {{ url: 'https://h/', signature: none }} }}\n"
    );
    let config = config::parse(&text, "x", Path::new("."), &|_| None)
        .unwrap_or_else(|problems| panic!("{filter}\n{problems}"));
    let filter = config.subscriptions["s"].filter.as_ref().unwrap();
    let filter = Filter::compile(filter).unwrap();
    filter.matches(event, &LazyJson::new(&event.body))
}

#[test]
fn every_example_holds_or_does_not_as_the_page_says() {
    let page = page();
    let event = order(&page);
    let rows = rows(&page);
    for (what, good, bad) in &rows {
        assert!(holds(good, &event), "{what}: {good}");
        assert!(!holds(bad, &event), "{what}: {bad}");
    }
    assert_eq!(rows.len(), 9 + 17);
}

#[test]
fn every_operator_there_is_has_an_example() {
    let refused = Filter::compile(&json!({"data.x": {"$frobnicate": 1}})).unwrap_err();
    let (_, known) = refused.message.split_once("there are ").unwrap();
    let known = known.replace(" and ", ", ");
    let known: BTreeSet<_> = known.split(", ").map(str::to_owned).collect();
    let rows = rows(&page());
    let shown = rows.into_iter().filter(|(what, ..)| what.starts_with('$'));
    let shown: BTreeSet<_> = shown
        .map(|(what, good, bad)| {
            assert!(good.contains(&what) && bad.contains('$'), "{what}");
            what
        })
        .collect();
    assert_eq!(shown, known);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_not_json_do_not_match_and_are_counted_once_each() {
    let receiver = Receiver::accepting().await;
    let subscription = |name: &str, filter: &str| {
        let url = receiver.url(&format!("/{name}"));
        format!(
            "  {name}: {{ topics: ['#'], {filter} endpoint: {{ url: '{url}', secret: '{SECRET}' }} }}\n"
        )
    };
    let config = format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ shop: {{ broker: here, topics: ['#'] }} }}
subscriptions:
{}{}{}",
        subscription("cheap", "filter: { data.total: { $lt: 100 } },"),
        subscription("dear", "filter: { data.total: { $gte: 100 } },"),
        subscription("all", ""),
    );
    let bridge = Bridge::start(&config).await.ready().await;
    let client = reqwest::Client::new();
    for body in ["total: 3", "<total>3</total>", r#"{"total": 300}"#] {
        let url = format!("http://{}/v1/topics/orders/events", bridge.admin);
        let answer = client.post(url).body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
    }
    let requests = receiver.wait_for(4, Duration::from_secs(30)).await;
    let to = |path: &str| requests.iter().filter(|it| it.path == path).count();
    assert_eq!((to("/cheap"), to("/dear"), to("/all")), (0, 1, 3));
    let counted = r#"hookbridge_filter_not_json_total{source="shop"}"#;
    assert_eq!(bridge.metric(counted).await, 2.0);
}
