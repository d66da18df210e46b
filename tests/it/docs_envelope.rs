//! docs/envelope.md lists the headers that the code writes, docs/guarantees.md the reasons.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookbridge::broker::envelope::{Dialect, Envelope};
use hookbridge::delivery::{Delivery, Reason, WaitKind};
use hookbridge::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use hookbridge::subscription::Uid;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The first cells of the table after `mark`, with the cells beside them.
fn table(path: &str, mark: &str) -> Vec<(String, String)> {
    let text = read(path);
    let table = text.split(&format!("<!-- {mark} -->")).nth(1).unwrap();
    let table = table.split("<!-- end -->").next().unwrap();
    table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|row| {
            let mut cells = row
                .split('|')
                .skip(1)
                .map(|cell| cell.trim().trim_matches('`'));
            let mut next = || cells.next().unwrap_or_default().to_owned();
            (next(), next())
        })
        .collect()
}

#[test]
fn the_table_has_the_constants_of_the_source() {
    let code = read("src/broker/envelope.rs");
    let code = code.split("#[cfg(test)]").next().unwrap();
    let constants: BTreeSet<_> = code
        .lines()
        .filter(|line| line.contains("const ") && line.contains(": &str = \""))
        .filter_map(|line| line.split('"').nth(1))
        .filter(|name| *name != "hookbridge-")
        .map(str::to_owned)
        .collect();
    assert!(constants.len() > 25);
    let documented = table("docs/envelope.md", "headers");
    let names: BTreeSet<_> = documented.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), documented.len(), "a header is there twice");
    assert_eq!(names, constants);
}

fn delivery() -> Delivery {
    let event = Event {
        id: EventId::random(),
        topic: "orders.created".into(),
        kind: "order".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers(vec![("x-tenant".to_owned(), HeaderValue::text("a"))]),
        properties: vec![("priority".to_owned(), HeaderValue::Int(3))],
        body: Bytes::from_static(b"{}"),
        origin: Origin {
            broker: "shop".into(),
            place: Place::Amqp {
                exchange: "e".into(),
                routing_key: "k".into(),
                queue: "q".into(),
            },
        },
    };
    let taken_at = "2026-01-02T03:04:06Z".parse().unwrap();
    Delivery::first(
        Arc::new(event),
        "crm".into(),
        Uid::of_config("crm"),
        taken_at,
    )
}

fn names(envelope: &Envelope) -> BTreeSet<String> {
    let written = envelope.write(Dialect::Amqp, 1 << 20);
    written
        .headers
        .0
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn parked_and_dead_ones_have_the_headers_that_the_table_says() {
    let seconds = Duration::from_secs(5);
    let parked = Envelope::parked(&delivery(), WaitKind::Retry, seconds, Duration::ZERO);
    let dead = Envelope::dead(
        &delivery(),
        Reason::GaveUp,
        "2026-01-05T00:00:00Z".parse().unwrap(),
    );
    for (envelope, here) in [(parked, "parked"), (dead, "dead")] {
        let always: BTreeSet<_> = table("docs/envelope.md", "headers")
            .into_iter()
            .filter(|(name, on)| {
                let sometimes = ["hookbridge-unknown-since", "hookbridge-reference"];
                (on == "all" || on == here) && !sometimes.contains(&name.as_str())
            })
            .map(|(name, _)| name)
            .chain(["hookbridge-kept-0-x-tenant", "hookbridge-amqp-priority"].map(str::to_owned))
            .collect();
        assert_eq!(names(&envelope), always, "{here}");
    }
}

#[test]
fn the_origins_shown_are_read_as_such() {
    let text = read("docs/envelope.md");
    let block = text.split("```json\n").nth(1).unwrap();
    let lines: Vec<_> = block.split("\n```").next().unwrap().lines().collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        let origin: Origin = serde_json::from_str(line).unwrap();
        let again: serde_json::Value = serde_json::to_value(&origin).unwrap();
        assert_eq!(
            again,
            serde_json::from_str::<serde_json::Value>(line).unwrap()
        );
    }
}

#[test]
fn every_reason_is_explained() {
    let documented: Vec<_> = table("docs/guarantees.md", "reasons")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let reasons: Vec<_> = Reason::ALL.map(|reason| reason.as_str().to_owned()).into();
    assert_eq!(documented, reasons);
}
