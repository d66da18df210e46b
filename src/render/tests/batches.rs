//! Several bodies as one.

use super::*;
use crate::subscription::{Batch, CloudEvents, Pattern, Version, XmlNames};

fn batched(format: Format) -> Payload {
    Payload {
        format,
        batch: Some(Batch::default()),
        ..Payload::default()
    }
}

fn delivery(event: Event) -> Delivery {
    let taken_at = "2026-03-02T00:00:00Z".parse().unwrap();
    Delivery::first(
        Arc::new(event),
        "crm".into(),
        Uid::of_config("crm"),
        taken_at,
    )
}

fn cloud_events(mode: CloudEventsMode) -> Format {
    Format::CloudEvents(CloudEvents { mode, source: None })
}

/// Content type and body of the request of all these.
fn joined(payload: Payload, bodies: &[&str]) -> String {
    let endpoint = endpoint(payload);
    let renderer = Renderer::new(&endpoint).unwrap();
    let deliveries: Vec<_> = bodies.iter().map(|body| delivery(event(body))).collect();
    let parts: Vec<_> = deliveries
        .iter()
        .map(|delivery| renderer.part(delivery, None).unwrap().expect("a part"))
        .collect();
    assert!(parts.windows(2).all(|two| two[0].kin() == two[1].kin()));
    let first = &deliveries[0].event;
    let joined = renderer.join(first, parts.iter(), &endpoint, Duration::from_secs(15));
    let Outgoing { headers, body, .. } = joined.unwrap();
    let kind = headers["content-type"].to_str().unwrap();
    format!("{kind}\n{}", std::str::from_utf8(&body).unwrap())
}

#[test]
fn a_batch_is_an_array_of_the_bodies_as_they_are() {
    insta::assert_snapshot!(joined(batched(Format::Raw), &[" {\"a\":  1}", "2", "[3]"]), @r#"
    application/json
    [ {"a":  1},2,[3]]
    "#);
    insta::assert_snapshot!(joined(batched(Format::Envelope), &["1", "2"]), @r#"
    application/json
    [{"type":"order.created","timestamp":"2026-03-01T12:00:00Z","data":1},{"type":"order.created","timestamp":"2026-03-01T12:00:00Z","data":2}]
    "#);
}

#[test]
fn cloud_events_are_a_cloud_events_batch() {
    let batch = joined(batched(cloud_events(CloudEventsMode::Batch)), &["1", "2"]);
    insta::assert_snapshot!(batch, @r#"
    application/cloudevents-batch+json; charset=UTF-8
    [{"specversion":"1.0","id":"evt_1","source":"shop","type":"order.created","time":"2026-03-01T12:00:00Z","datacontenttype":"application/json","data":1},{"specversion":"1.0","id":"evt_1","source":"shop","type":"order.created","time":"2026-03-01T12:00:00Z","datacontenttype":"application/json","data":2}]
    "#);
    let structured = cloud_events(CloudEventsMode::Structured);
    assert_eq!(joined(batched(structured), &["1", "2"]), batch);
}

#[test]
fn one_by_itself_is_an_array_too_unless_it_is_no_json() {
    let one = |event| shown(event, batched(Format::Raw));
    assert!(one(event("{}")).ends_with("\n[{}]"));
    assert!(one(event("no JSON")).ends_with("\nno JSON"));
    let packed = Event {
        content_encoding: Some("gzip".into()),
        ..event("{}")
    };
    assert!(one(packed).ends_with("\n{}"));
    // Without `batch` the list of one is the format's.
    let mut payload = batched(cloud_events(CloudEventsMode::Batch));
    let with = shown(event("1"), payload.clone());
    payload.batch = None;
    assert_eq!(shown(event("1"), payload), with);
}

#[test]
fn a_batch_is_encrypted_and_compressed_as_a_whole() {
    let payload = Payload {
        gzip: true,
        ..batched(Format::Raw)
    };
    let endpoint = endpoint(payload);
    let renderer = Renderer::new(&endpoint).unwrap();
    let delivery = delivery(event("{}"));
    let part = renderer.part(&delivery, None).unwrap().unwrap();
    let parts = [&part, &part];
    let joined = renderer.join(
        &delivery.event,
        parts.into_iter(),
        &endpoint,
        Duration::ZERO,
    );
    let joined = joined.unwrap();
    assert_eq!(joined.headers["content-encoding"], "gzip");
    let mut text = String::new();
    let mut unpacked = flate2::read::GzDecoder::new(&joined.body[..]);
    std::io::Read::read_to_string(&mut unpacked, &mut text).unwrap();
    assert_eq!(text, "[{},{}]");
}

#[test]
fn only_bodies_of_a_kind_and_a_version_go_together() {
    let mut payload = batched(Format::Raw);
    let version = |name: &str| Version {
        name: name.into(),
        formats: vec![(
            "order.#".parse::<Pattern>().unwrap(),
            cloud_events(CloudEventsMode::Structured),
        )],
        deprecated: None,
        sunset: None,
    };
    let of_sources = [("shop", "v1"), ("depot", "v2"), ("other", "v1")];
    let of_sources = of_sources.map(|(source, name)| (source.into(), Arc::new(version(name))));
    payload.of_sources = Arc::new(of_sources.into_iter().collect());
    let renderer = Renderer::new(&endpoint(payload)).unwrap();
    let kin = |source: &str, kind: &str| {
        let event = Event {
            source: source.into(),
            kind: kind.into(),
            ..event("{}")
        };
        renderer
            .part(&delivery(event), None)
            .unwrap()
            .unwrap()
            .kin()
    };
    assert_eq!(kin("shop", "order.made"), kin("other", "order.gone"));
    assert_ne!(kin("shop", "order.made"), kin("depot", "order.made"));
    assert_ne!(kin("shop", "order.made"), kin("shop", "note"));
}

#[test]
fn a_format_says_why_it_makes_no_batch() {
    let template = |change: fn(&mut Template)| {
        let mut template = Template {
            body: Some(TemplateText {
                name: "body".into(),
                text: "{}".into(),
            }),
            content_type: "application/json".into(),
            headers: Vec::new(),
            query: Vec::new(),
            path: Vec::new(),
            params: Default::default(),
            adapted: None,
        };
        change(&mut template);
        check_batch(&Format::Template(Box::new(template)))
    };
    assert_eq!(template(|_| ()), Ok(()));
    assert!(template(|it| it.body = None).is_err());
    assert!(template(|it| it.content_type = "text/plain".into()).is_err());
    assert!(template(|it| it.path.extend(it.body.clone())).is_err());
    assert_eq!(check_batch(&cloud_events(CloudEventsMode::Batch)), Ok(()));
    assert!(check_batch(&cloud_events(CloudEventsMode::Binary)).is_err());
    assert!(check_batch(&Format::Form(FormFields::Flat)).is_err());
    let (root, item) = ("a".into(), "b".into());
    assert!(check_batch(&Format::Xml(XmlNames { root, item })).is_err());
}
