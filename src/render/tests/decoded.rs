//! What the event's source has decoded is what is made into bodies; `raw` is what came.

use super::*;

/// A message in a form of its own, which says `{"a":1,"b":2}`.
fn rendered(payload: Payload, is_json: bool) -> Outgoing {
    let mut event = event("\u{1}\u{2}");
    event.content_type = Some("application/vnd.shop+avro".into());
    event.content_encoding = Some("gzip".into());
    let endpoint = endpoint(payload);
    let delivery = Delivery::first(
        Arc::new(event),
        "crm".into(),
        Uid::of_config("crm"),
        Timestamp::UNIX_EPOCH,
    );
    let shared = SharedJson::of_decoded(Decoded {
        body: Bytes::from_static(br#"{"a":1,"b":2}"#),
        is_json,
    });
    let renderer = Renderer::new(&endpoint).unwrap();
    renderer
        .render(&delivery, Some(&shared), &endpoint, Duration::ZERO)
        .unwrap()
}

fn only_a() -> Payload {
    Payload {
        fields: Some(Fields {
            keep: vec!["data.a".parse().unwrap()],
            drop: Vec::new(),
            mask: Vec::new(),
        }),
        ..Payload::default()
    }
}

#[test]
fn what_came_is_sent_as_it_came_while_nothing_looks_into_it() {
    for gzip in [false, true] {
        let payload = Payload {
            gzip,
            ..Payload::default()
        };
        let sent = rendered(payload, true);
        // It is compressed already.
        assert_eq!(sent.body, "\u{1}\u{2}");
        assert_eq!(sent.headers[CONTENT_TYPE], "application/vnd.shop+avro");
        assert_eq!(sent.headers[CONTENT_ENCODING], "gzip");
    }
}

#[test]
fn formats_are_made_of_what_was_decoded() {
    let sent = rendered(of_format(Format::Envelope), true);
    let text = String::from_utf8(sent.body.to_vec()).unwrap();
    assert!(text.ends_with(r#""data":{"a":1,"b":2}}"#), "{text}");
    let structured = CloudEvents {
        mode: CloudEventsMode::Structured,
        source: None,
    };
    let sent = rendered(of_format(Format::CloudEvents(structured)), true);
    let text = String::from_utf8(sent.body.to_vec()).unwrap();
    let end = r#""datacontenttype":"application/json","data":{"a":1,"b":2}}"#;
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn what_is_left_of_it_is_of_its_own_type() {
    let sent = rendered(only_a(), true);
    assert_eq!(sent.body, r#"{"a":1}"#);
    assert_eq!(sent.headers[CONTENT_TYPE], "application/json");
    assert!(!sent.headers.contains_key(CONTENT_ENCODING));
    // One that was only compressed is of the type that the message says.
    let sent = rendered(only_a(), false);
    assert_eq!(sent.headers[CONTENT_TYPE], "application/vnd.shop+avro");
    assert!(!sent.headers.contains_key(CONTENT_ENCODING));
}
