mod agreement;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Filter, LazyJson};
use crate::event::{Event, EventId, HeaderValue, Headers, Origin, Place};

fn event(body: &str) -> Event {
    let mut headers = Headers::default();
    headers.push("region", HeaderValue::text("eu"));
    headers.push("version", HeaderValue::text("2"));
    headers.push("retries", HeaderValue::Int(3));
    headers.push("x.dotted", HeaderValue::Bool(true));
    headers.push("binary", HeaderValue::Bytes(Bytes::from_static(&[0xff])));
    headers.push("nothing", HeaderValue::Null);
    Event {
        id: EventId::from_outside(b"evt_1").unwrap(),
        topic: "orders.created".into(),
        kind: "com.example.order".into(),
        source: "orders".into(),
        tenant: None,
        published_at: Some("2026-03-01T12:00:00Z".parse().unwrap()),
        content_type: None,
        content_encoding: None,
        key: None,
        headers,
        properties: Vec::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders.created".into(),
                sequence: 1,
            },
        },
    }
}

fn matches_body(filter: Value, body: &str) -> bool {
    let event = event(body);
    Filter::compile(&filter)
        .unwrap()
        .matches(&event, &LazyJson::new(&event.body))
}

fn matches(filter: Value) -> bool {
    matches_body(
        filter,
        r#"{"total":120.5,"name":"Ada","null":null,"items":[{"sku":"a"},{"sku":"b"}],
            "tags":["new","vip"],"a.b":{"0":"zero"},"id":9007199254740993,"paid":true}"#,
    )
}

#[track_caller]
fn refused(filter: Value, path: &str, words: &str) {
    let error = Filter::compile(&filter).unwrap_err();
    assert_eq!(error.path, path, "{error}");
    assert!(error.message.contains(words), "{error}");
}

#[test]
fn each_operator_says_what_it_says() {
    for (condition, wanted) in [
        (json!({"data.total": 120.5}), true),
        (json!({"data.total": "120.5"}), false),
        (json!({"data.total": {"$eq": 120}}), false),
        (json!({"data.total": {"$ne": 120}}), true),
        (json!({"data.total": {"$gt": 120, "$lt": 121}}), true),
        (json!({"data.total": {"$gte": 120.5, "$lte": 120.5}}), true),
        (json!({"data.total": {"$gt": "1"}}), false),
        (json!({"data.id": {"$gt": 9007199254740992u64}}), true),
        (json!({"data.name": {"$in": ["Bob", "Ada"]}}), true),
        (json!({"data.name": {"$nin": ["Bob", "Ada"]}}), false),
        (
            json!({"data.name": {"$startsWith": "A", "$endsWith": "a"}}),
            true,
        ),
        (json!({"data.name": {"$contains": "d"}}), true),
        (json!({"data.tags": {"$contains": "vip"}}), true),
        (json!({"data.tags": {"$contains": "vi"}}), false),
        (json!({"data.tags": ["new", "vip"]}), true),
        (json!({"data.name": {"$regex": "^[A-Z]d"}}), true),
        (json!({"data.name": {"$exist": true}}), true),
        (json!({"data.nobody": {"$exist": false}}), true),
        (json!({"data.null": null}), true),
        (json!({"data.nobody": null}), false),
        (json!({"data.nobody": {"$ne": 1}}), true),
        (json!({"data.paid": true}), true),
        (json!({"data.name": {"$not": {"$startsWith": "B"}}}), true),
        (
            json!({"data.total": {"$or": [{"$lt": 1}, {"$gt": 100}]}}),
            true,
        ),
        (
            json!({"data.total": {"$and": [{"$lt": 1}, {"$gt": 100}]}}),
            false,
        ),
        (json!({"$or": [{"topic": "x"}, {"data.name": "Ada"}]}), true),
        (
            json!({"$and": [{"topic": "x"}, {"data.name": "Ada"}]}),
            false,
        ),
        (json!({"$not": {"topic": "x"}}), true),
        (
            json!({"topic": "orders.created", "data.name": "Bob"}),
            false,
        ),
    ] {
        assert_eq!(matches(condition.clone()), wanted, "{condition}");
    }
}

#[test]
fn paths_lead_through_objects_arrays_and_dotted_keys() {
    assert!(matches(json!({"data.items.1.sku": "b"})));
    assert!(!matches(json!({"data.items.2.sku": {"$exist": true}})));
    assert!(!matches(json!({"data.items.01.sku": "b"})));
    assert!(matches(json!({"data.a\\.b.0": "zero"})));
    assert!(matches_body(json!({"data.a\\[0]": 1}), r#"{"a[0]": 1}"#));
    assert!(matches_body(json!({"data": [1, 2]}), "[1,2.0]"));
    assert!(matches_body(json!({"data.0": 1}), "[1]"));
}

#[test]
fn headers_are_compared_as_the_filter_types_them() {
    for (condition, wanted) in [
        (json!({"headers.region": "eu"}), true),
        (json!({"headers.version": 2}), true),
        (json!({"headers.version": "2"}), true),
        (json!({"headers.version": {"$gte": 3}}), false),
        (json!({"headers.retries": 3}), true),
        (json!({"headers.retries": "3"}), true),
        (json!({"headers.x.dotted": true}), true),
        (json!({"headers.nothing": null}), true),
        (json!({"headers.binary": {"$exist": true}}), true),
        (json!({"headers.binary": {"$contains": ""}}), false),
        (json!({"headers.Region": {"$exist": false}}), true),
    ] {
        assert_eq!(matches(condition.clone()), wanted, "{condition}");
    }
}

#[test]
fn times_are_compared_as_times() {
    assert!(matches(
        json!({"time": {"$gte": "2026-03-01T13:00:00+01:00"}})
    ));
    assert!(matches(json!({"time": "2026-03-01T12:00:00.000Z"})));
    assert!(!matches(json!({"time": {"$lt": "2026-03-01T12:00:00Z"}})));
}

#[test]
fn a_body_that_is_not_json_decides_nothing() {
    let not_json = "<xml/>";
    assert!(!matches_body(json!({"data.a": 1}), not_json));
    assert!(!matches_body(json!({"data.a": {"$ne": 1}}), not_json));
    assert!(!matches_body(json!({"$not": {"data.a": 1}}), not_json));
    assert!(!matches_body(
        json!({"data.a": {"$exist": false}}),
        not_json
    ));
    assert!(!matches_body(json!({"data": "<xml/>"}), not_json));
    let either = json!({"$or": [{"data.a": 1}, {"topic": "orders.created"}]});
    assert!(matches_body(either, not_json));
}

#[test]
fn the_body_is_parsed_only_when_it_matters() {
    let event = event("<xml/>");
    let body = LazyJson::new(&event.body);
    let decided_before = json!({"data.a": 1, "topic": "other"});
    let filter = Filter::compile(&decided_before).unwrap();
    assert!(filter.needs_data());
    assert!(!filter.matches(&event, &body));
    assert!(!body.is_unparsable(), "nobody had to look");

    let filter = Filter::compile(&json!({"data.a": 1, "topic": "orders.created"})).unwrap();
    assert!(!filter.matches(&event, &body));
    assert!(body.is_unparsable());

    let without = Filter::compile(&json!({"topic": "orders.created"})).unwrap();
    assert!(!without.needs_data());
}

#[test]
fn mistakes_are_named_where_they_are() {
    refused(json!([]), "", "a filter is a map");
    refused(json!({}), "", "leave it out");
    refused(json!({"total": 1}), "/total", "did you mean `data.total`?");
    refused(
        json!({"header.x": 1}),
        "/header.x",
        "did you mean `headers.x`?",
    );
    refused(json!({"body.x": 1}), "/body.x", "did you mean `data.x`?");
    refused(json!({"topics": "x"}), "/topics", "did you mean `topic`?");
    refused(json!({"topic.x": "x"}), "/topic.x", "has no parts");
    refused(json!({"topic": 1}), "/topic", "quotes");
    refused(json!({"headers": 1}), "/headers", "which header");
    refused(json!({"data..x": 1}), "/data..x", "empty step");
    refused(
        json!({"data.items[0].sku": 1}),
        "/data.items[0].sku",
        "`data.items.0.sku`",
    );
    refused(json!({"data.[1]": 1}), "/data.[1]", "`data.1`");
    refused(
        json!({"data.x": {"$gte": true}}),
        "/data.x/$gte",
        "less or greater",
    );
    refused(
        json!({"data.x": {"$exists": true}}),
        "/data.x/$exists",
        "did you mean `$exist`?",
    );
    refused(
        json!({"data.x": {"gte": 1}}),
        "/data.x/gte",
        "did you mean `$gte`?",
    );
    refused(
        json!({"data.x": {"$startwith": "a"}}),
        "/data.x/$startwith",
        "`$startsWith`",
    );
    refused(
        json!({"data.x": {"$frobnicate": 1}}),
        "/data.x/$frobnicate",
        "there are $eq",
    );
    refused(
        json!({"data.x": {"colour": 1}}),
        "/data.x/colour",
        "one path",
    );
    refused(json!({"data.x": {}}), "/data.x", "empty");
    refused(
        json!({"data.x": {"$in": []}}),
        "/data.x/$in",
        "at least one",
    );
    refused(
        json!({"data.x": {"$regex": "("}}),
        "/data.x/$regex",
        "unclosed group",
    );
    refused(
        json!({"data.x": {"$regex": "(\\w{1000}){1000}"}}),
        "/data.x/$regex",
        "more than 256 KiB",
    );
    refused(json!({"time": {"$gt": "soon"}}), "/time/$gt", "not a time");
    refused(
        json!({"time": {"$regex": "x"}}),
        "/time/$regex",
        "compares text",
    );
    refused(json!({"$gte": 1}), "/$gte", "stands under a path");
    refused(
        json!({"$or": [{"topic": "a"}, {"data.a/b": {"$x": 1}}]}),
        "/$or/1/data.a~1b/$x",
        "no operator",
    );
}

#[test]
fn filters_have_limits() {
    let mut nested = json!({"topic": "x"});
    for _ in 0..40 {
        nested = json!({"$not": nested});
    }
    let error = Filter::compile(&nested).unwrap_err();
    assert!(error.message.contains("deeper than 16"), "{error}");
    let many: Vec<u32> = (0..1_001).collect();
    let error = Filter::compile(&json!({"data.x": {"$in": many}})).unwrap_err();
    assert!(error.message.contains("more than 1000"), "{error}");
    let regexes = vec![json!({"data.x": {"$regex": "a"}}); 65];
    let error = Filter::compile(&json!({"$or": regexes})).unwrap_err();
    assert_eq!(error.path, "/$or/64/data.x/$regex");
    assert!(error.message.contains("more than 64"), "{error}");
}
