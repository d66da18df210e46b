//! CloudEvents in and out, in each mode.

use super::*;

#[test]
fn a_structured_cloud_event_is_made_of_what_is_known() {
    insta::assert_snapshot!(shown(event(ORDER), of_format(cloudevents(CloudEventsMode::Structured))), @r#"
    POST https://example.com/in?key=1
    content-type: application/cloudevents+json; charset=UTF-8

    {"specversion":"1.0","id":"evt_1","source":"/shop","type":"order.created","time":"2026-03-01T12:00:00Z","datacontenttype":"application/json","data":{"total":3.50,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]}}
    "#);
}

#[test]
fn a_binary_cloud_event_has_its_attributes_in_headers() {
    let mut event = event("[1, 2]");
    event.kind = "order \u{e4}\"%".into();
    insta::assert_snapshot!(shown(event, of_format(cloudevents(CloudEventsMode::Binary))), @r#"
    POST https://example.com/in?key=1
    content-type: application/json
    ce-specversion: 1.0
    ce-id: evt_1
    ce-source: /shop
    ce-type: order%20%C3%A4%22%25
    ce-time: 2026-03-01T12:00:00Z

    [1, 2]
    "#);
}

#[test]
fn a_batch_of_one_is_a_list() {
    let event = Event {
        content_type: Some("text/plain".into()),
        ..event("hello")
    };
    insta::assert_snapshot!(body(event, cloudevents(CloudEventsMode::Batch)), @r#"[{"specversion":"1.0","id":"evt_1","source":"/shop","type":"order.created","time":"2026-03-01T12:00:00Z","datacontenttype":"text/plain","data":"hello"}]"#);
}

#[test]
fn data_that_is_no_text_is_base64() {
    let mut event = event("");
    event.body = Bytes::from_static(b"\xff\x00");
    insta::assert_snapshot!(body(event.clone(), cloudevents(CloudEventsMode::Structured)), @r#"{"specversion":"1.0","id":"evt_1","source":"/shop","type":"order.created","time":"2026-03-01T12:00:00Z","datacontenttype":"application/octet-stream","data_base64":"/wA="}"#);
    event.body = Bytes::new();
    insta::assert_snapshot!(body(event, cloudevents(CloudEventsMode::Structured)), @r#"{"specversion":"1.0","id":"evt_1","source":"/shop","type":"order.created","time":"2026-03-01T12:00:00Z"}"#);
}

#[test]
fn an_event_that_came_in_headers_keeps_its_attributes() {
    for prefix in ["ce_", "cloudEvents_", "cloudEvents:"] {
        let mut event = event("{}");
        for (name, value) in [
            ("specversion", "1.0"),
            ("id", "A 7"),
            ("source", "https://crm.example.com/"),
            ("type", "made"),
            ("subject", "order/7"),
            ("partitionkey", "eu"),
        ] {
            let value = crate::event::HeaderValue::text(value);
            event.headers.push(format!("{prefix}{name}"), value);
        }
        let written = body(event, cloudevents(CloudEventsMode::Structured));
        assert_eq!(
            written,
            r#"{"specversion":"1.0","id":"A 7","source":"https://crm.example.com/","type":"made","time":"2026-03-01T12:00:00Z","subject":"order/7","datacontenttype":"application/json","partitionkey":"eu","data":{}}"#
        );
    }
}

const STRUCTURED: &str = r#"{"specversion":"1.0","id":"7","source":"/s","type":"t","sequence":12,"datacontenttype":"application/vnd.order+json","data":{"card":"4711","total":1.50}}"#;

fn structured(body: &str) -> Event {
    Event {
        content_type: Some("application/cloudevents+json".into()),
        ..event(body)
    }
}

#[test]
fn an_event_that_came_structured_keeps_its_attributes() {
    insta::assert_snapshot!(shown(structured(STRUCTURED), of_format(cloudevents(CloudEventsMode::Binary))), @r#"
    POST https://example.com/in?key=1
    content-type: application/vnd.order+json
    ce-specversion: 1.0
    ce-id: 7
    ce-source: /s
    ce-type: t
    ce-sequence: 12

    {"card":"4711","total":1.50}
    "#);
    let again = body(
        structured(STRUCTURED),
        cloudevents(CloudEventsMode::Structured),
    );
    assert_eq!(again, STRUCTURED);
}

#[test]
fn fields_of_a_structured_event_are_those_of_its_body() {
    let payload = Payload {
        fields: Some(Fields {
            keep: vec!["data.data.total".parse().unwrap()],
            ..Fields::default()
        }),
        format: cloudevents(CloudEventsMode::Structured),
        ..Payload::default()
    };
    let shown = shown(structured(STRUCTURED), payload);
    assert!(shown.ends_with(r#""id":"7","source":"/s","type":"t","datacontenttype":"application/vnd.order+json","data":{"total":1.50}}"#), "{shown}");
}

#[test]
fn what_fields_leave_out_is_in_no_extension_either() {
    let whole = r#"{"specversion":"1.0","id":"7","source":"/s","type":"t","card":"4711","data":1}"#;
    let payload = Payload {
        fields: Some(Fields {
            mask: vec!["data.card".parse().unwrap()],
            ..Fields::default()
        }),
        format: cloudevents(CloudEventsMode::Batch),
        ..Payload::default()
    };
    let shown = shown(structured(whole), payload);
    assert!(shown.contains(r#""card":"***""#), "{shown}");
    let nested = whole.replace("\"4711\"", "{\"number\":\"4711\"}");
    let why = body(
        structured(&nested),
        cloudevents(CloudEventsMode::Structured),
    );
    insta::assert_snapshot!(why, @"cannot: the attribute `card` of the CloudEvent is not a single value");
}

#[test]
fn a_character_set_is_no_coding() {
    let mut text = event("{}");
    text.content_encoding = Some("UTF-8".into());
    let made = body(text.clone(), cloudevents(CloudEventsMode::Structured));
    assert!(made.ends_with(r#""data":{}}"#), "{made}");
    let request = render(text, &endpoint(Payload::default())).unwrap();
    assert!(!request.headers.contains_key(CONTENT_ENCODING));
}

#[test]
fn what_only_says_that_it_is_a_cloud_event_is_none() {
    let why = body(structured("{}"), cloudevents(CloudEventsMode::Structured));
    insta::assert_snapshot!(why, @"cannot: the message says that it is a CloudEvent, and has no `specversion`");
    let mut packed = event("x");
    packed.content_encoding = Some("gzip".into());
    let why = body(packed, cloudevents(CloudEventsMode::Structured));
    insta::assert_snapshot!(why, @"cannot: the body is compressed, which a CloudEvent cannot say of its data");
}
