use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use proptest::prelude::*;

use super::*;
use crate::event::{EventId, Headers, Origin, Place};
use crate::subscription::{Breaker, CloudEventsMode, Scheme, Setting, Template, TemplateText, Uid};

mod adapters;
mod batches;
mod cloudevents;
mod decoded;
mod forms;
mod templates;

pub(super) const ORDER: &str = r#"{"total":3.50,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]}"#;

pub(super) fn event(body: &str) -> Event {
    Event {
        id: EventId::kept("evt_1").unwrap(),
        topic: "orders.created".into(),
        kind: "order.created".into(),
        source: "shop".into(),
        tenant: None,
        published_at: Some("2026-03-01T12:00:00Z".parse().unwrap()),
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
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

pub(super) fn endpoint(payload: Payload) -> Endpoint {
    Endpoint {
        name: "crm".into(),
        url: Arc::new("https://example.com/in?key=1".parse().unwrap()),
        method: Method::POST,
        headers: None,
        signature: Scheme::None,
        secrets: Vec::new(),
        payload: payload.into(),
        auth: None,
        handshake: None,
        tls: None,
        concurrency: 1,
        adaptive: false,
        rate: None,
        breaker: Breaker::default(),
    }
}

pub(super) fn render(event: Event, endpoint: &Endpoint) -> Result<Outgoing, RenderError> {
    let taken_at = "2026-03-02T00:00:00Z".parse().unwrap();
    let uid = Uid::of_config("crm");
    let delivery = Delivery::first(Arc::new(event), "crm".into(), uid, taken_at);
    let renderer = Renderer::new(endpoint).expect("a good payload");
    renderer.render(&delivery, None, endpoint, Duration::from_secs(15))
}

/// The request as people read it.
pub(super) fn shown(event: Event, payload: Payload) -> String {
    match render(event, &endpoint(payload)) {
        Ok(request) => {
            let mut out = format!("{} {}\n", request.method, request.url);
            for (name, value) in &request.headers {
                out.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            out + "\n" + std::str::from_utf8(&request.body).unwrap()
        }
        Err(why) => format!("cannot: {why}"),
    }
}

fn of_format(format: Format) -> Payload {
    Payload {
        format,
        ..Payload::default()
    }
}

#[test]
fn an_envelope_says_what_and_when() {
    insta::assert_snapshot!(shown(event(ORDER), of_format(Format::Envelope)), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {"type":"order.created","timestamp":"2026-03-01T12:00:00Z","data":{"total":3.50,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]}}
    "#);
}

#[test]
fn an_event_without_a_time_has_that_of_its_take() {
    let event = Event {
        published_at: None,
        ..event("[]")
    };
    let shown = shown(event, of_format(Format::Envelope));
    assert!(
        shown.ends_with(r#"{"type":"order.created","timestamp":"2026-03-02T00:00:00Z","data":[]}"#),
        "{shown}"
    );
}

#[test]
fn an_envelope_of_what_is_no_json_says_so() {
    let shown = shown(event("<order/>"), of_format(Format::Envelope));
    assert_eq!(
        shown,
        "cannot: the body is not JSON, which the format needs"
    );
}

#[test]
fn fields_come_before_the_format() {
    let payload = Payload {
        fields: Some(Fields {
            keep: vec!["data.total".parse().unwrap()],
            ..Default::default()
        }),
        format: Format::Envelope,
        ..Payload::default()
    };
    let shown = shown(event(ORDER), payload);
    assert!(shown.ends_with(r#""data":{"total":3.50}}"#), "{shown}");
}

/// The body alone, or why there is none.
fn body(event: Event, format: Format) -> String {
    match render(event, &endpoint(of_format(format))) {
        Ok(request) => String::from_utf8(request.body.to_vec()).unwrap(),
        Err(why) => format!("cannot: {why}"),
    }
}

fn cloudevents(mode: CloudEventsMode) -> Format {
    let source = Some("/shop".into());
    Format::CloudEvents(CloudEvents { mode, source })
}

/// A few hundred kilobytes of which formats would make gigabytes.
#[test]
fn a_small_body_makes_no_huge_one() {
    let numbers = vec!["0"; 25_000].join(",");
    let bomb = format!("{{\"{}\":[{numbers}]}}", "n".repeat(200_000));
    insta::assert_snapshot!(body(event(&bomb), xml("order")), @"cannot: the body would be longer than 16777216 bytes");
    insta::assert_snapshot!(body(event(&bomb), Format::Form(FormFields::Flat)), @"cannot: the fields are too long");
    let request = render(event(&bomb), &get(Format::Raw));
    insta::assert_snapshot!(request.unwrap_err().to_string(), @"the fields are too long");
    let text = format!("{{\"text\":\"{}\"}}", "n".repeat(10_000));
    let why = of_template(&text, "{{ data.text | replace('n', data.text) }}");
    assert!(
        why.contains("`replace` would make a text that is too long"),
        "{why}"
    );
}

fn xml(root: &str) -> Format {
    Format::Xml(XmlNames {
        root: root.into(),
        item: "item".into(),
    })
}

fn text(text: &str) -> TemplateText {
    TemplateText {
        name: "body".into(),
        text: text.into(),
    }
}

fn template(body: &str) -> Template {
    Template {
        body: Some(text(body)),
        content_type: "application/json".into(),
        headers: Vec::new(),
        query: Vec::new(),
        path: Vec::new(),
        params: [("channel".into(), "#or\"ders".into())].into(),
        adapted: None,
    }
}

fn of_template(json: &str, body_text: &str) -> String {
    body(event(json), Format::Template(Box::new(template(body_text))))
}

#[test]
fn a_version_is_said_and_chooses_the_format() {
    let version = |name: &str, kind: &str, format: Format| {
        Arc::new(crate::subscription::Version {
            name: name.into(),
            formats: vec![(kind.parse().unwrap(), format)],
            deprecated: Some("2026-01-31T00:00:00Z".parse().unwrap()),
            sunset: Some("2027-01-31T00:00:00Z".parse().unwrap()),
        })
    };
    let of_sources = || Arc::new([("shop".into(), version("v2", "order.*", xml("r")))].into());
    let own = Payload {
        version: Some(version("v1", "order.created", Format::Envelope)),
        of_sources: of_sources(),
        ..Payload::default()
    };
    insta::assert_snapshot!(shown(event("1"), own.clone()), @r#"
    POST https://example.com/in?key=1
    content-type: application/json
    webhook-version: v1
    deprecation: @1769817600
    sunset: Sun, 31 Jan 2027 00:00:00 GMT

    {"type":"order.created","timestamp":"2026-03-01T12:00:00Z","data":1}
    "#);
    let of_its_source = Payload {
        version: None,
        ..own
    };
    let by_source = shown(event("1"), of_its_source.clone());
    assert!(by_source.contains("webhook-version: v2"), "{by_source}");
    assert!(by_source.ends_with("<r>1</r>"), "{by_source}");
    let mut other = event("1");
    other.kind = "refund".into();
    let other = shown(other, of_its_source);
    assert!(
        other.contains("webhook-version: v2") && other.ends_with("\n1"),
        "{other}"
    );
}

fn get(format: Format) -> Endpoint {
    Endpoint {
        method: Method::GET,
        ..endpoint(of_format(format))
    }
}

#[test]
fn a_get_has_its_fields_in_the_query() {
    let request = render(event(ORDER), &get(Format::Raw)).unwrap();
    assert!(request.body.is_empty() && !request.headers.contains_key(CONTENT_TYPE));
    let read: Vec<_> = request
        .url
        .query_pairs()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        read.join(" "),
        "key=1 total=3.50 id=12345678901234567890 customer[name]=Ada & \"Bob\" customer[vip]=true items[0][sku]=a items[1][sku]=b items[1][note]="
    );
    let of_envelope = render(event("[1]"), &get(Format::Envelope)).unwrap();
    assert_eq!(
        of_envelope.url.query(),
        Some("key=1&type=order.created&timestamp=2026-03-01T12%3A00%3A00Z&data%5B0%5D=1")
    );
    let why = render(event("<a/>"), &get(Format::Raw)).unwrap_err();
    assert_eq!(
        why.to_string(),
        "the body is not JSON, of which the query would be made"
    );
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(20_000));
    assert!(render(event(&long), &get(Format::Raw)).is_err());
}

#[test]
fn gzip_is_read_back() {
    let payload = Payload {
        format: Format::Envelope,
        gzip: true,
        ..Payload::default()
    };
    let request = render(event(ORDER), &endpoint(payload.clone())).unwrap();
    assert_eq!(request.headers[CONTENT_ENCODING], "gzip");
    assert_eq!(request.headers[CONTENT_TYPE], "application/json");
    let mut read = String::new();
    std::io::Read::read_to_string(
        &mut flate2::read::GzDecoder::new(&request.body[..]),
        &mut read,
    )
    .unwrap();
    assert!(read.starts_with("{\"type\":\"order.created\""), "{read}");

    let mut packed = event("\x1f");
    packed.content_encoding = Some("zstd".into());
    let raw = Payload {
        format: Format::Raw,
        ..payload
    };
    let request = render(packed, &endpoint(raw)).unwrap();
    assert_eq!(request.headers[CONTENT_ENCODING], "zstd");
    assert_eq!(request.body, "\x1f");
}

#[test]
fn what_is_parsed_is_shared() {
    let shared = SharedJson::default();
    let endpoint = endpoint(of_format(xml("r")));
    let uid = Uid::of_config("crm");
    let now = Timestamp::UNIX_EPOCH;
    let delivery = Delivery::first(Arc::new(event("[1]")), "crm".into(), uid, now);
    let renderer = Renderer::new(&endpoint).unwrap();
    assert!(renderer.reads_json());
    renderer
        .render(&delivery, Some(&shared), &endpoint, Duration::ZERO)
        .unwrap();
    // It is not parsed again, whatever it is asked of.
    assert_eq!(shared.of(b"nothing"), Json::parse(b"[1]").as_ref());
}

#[test]
fn an_endpoint_without_any_of_it_reads_nothing() {
    let plain = endpoint(Payload::default());
    assert!(!Renderer::new(&plain).unwrap().reads_json());
    let event = event("{\"a\": 1");
    let sent = render(event.clone(), &plain).unwrap();
    // The very same bytes, and the URL of the endpoint, not copies of them.
    assert_eq!(sent.body.as_ptr(), event.body.as_ptr());
    assert!(Arc::ptr_eq(&sent.url, &plain.url));
}

proptest! {
    #[test]
    fn no_value_adds_a_header_or_leaves_the_host(
        value in prop_oneof!["\\PC{0,20}", "[\\x00-\\x20./:@?#\\\\%a]{0,12}", Just("..".to_owned()), Just("//evil.example/".to_owned()), Just("a\r\nx-evil: 1".to_owned())],
        from_params in any::<bool>(),
    ) {
        let mut template = template("{{ data.v }}");
        let source = match from_params {
            true => "{{ params.v }}",
            false => "{{ data.v }}",
        };
        template.params.insert("v".into(), value.clone().into());
        template.headers = vec![("x-v".parse().unwrap(), text(source))];
        template.query = vec![("v".into(), text(source)), (value.clone().into(), text("x"))];
        template.path = vec![text(source), text(&format!("x{source}"))];
        let json = serde_json::json!({ "v": value }).to_string();
        let endpoint = endpoint(of_format(Format::Template(Box::new(template))));
        if let Ok(request) = render(event(&json), &endpoint) {
            let said = request.headers["x-v"].as_bytes();
            prop_assert!(said.iter().all(|b| (b' '..=b'~').contains(b)), "{:?}", said);
            prop_assert_eq!(request.url.origin(), endpoint.url.origin());
            prop_assert!(request.url.path().starts_with("/in/"), "{}", request.url);
            prop_assert_eq!(request.url.path().matches('/').count(), 3, "{}", request.url);
            prop_assert_eq!(request.url.fragment(), None);
            let read: Vec<_> = request.url.query_pairs().into_owned().collect();
            prop_assert_eq!(&read[1], &("v".to_owned(), value.clone()));
            prop_assert_eq!(&read[2], &(value, "x".to_owned()));
            prop_assert!(request.url.as_str().bytes().all(|b| b.is_ascii_graphic()));
        } else {
            prop_assert!(["", ".", ".."].contains(&&*value) || value.len() > 8000, "{:?}", value);
        }
    }

    #[test]
    fn no_body_makes_a_format_panic(
        body in prop::collection::vec(any::<u8>(), 0..60),
        content_type in prop_oneof![Just(None), Just(Some("application/json")), Just(Some("text/xml")), Just(Some("application/cloudevents+json")), Just(Some("\r\n"))],
    ) {
        for format in [Format::Envelope, cloudevents(CloudEventsMode::Structured), cloudevents(CloudEventsMode::Binary), Format::Form(FormFields::Flat), xml("r")] {
            let mut event = event("");
            event.body = body.clone().into();
            event.content_type = content_type.map(Into::into);
            let _ = render(event.clone(), &endpoint(of_format(format.clone())));
            let _ = render(event, &get(format));
        }
    }
}
