use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::*;
use crate::event::{EventId, Headers, Origin, Place};
use crate::subscription::{Breaker, CloudEventsMode, Scheme, Template, TemplateText, Uid};

pub(super) const ORDER: &str = r#"{"total":3.50,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]}"#;

pub(super) fn event(body: &str) -> Event {
    Event {
        id: EventId::kept("evt_1").unwrap(),
        topic: "orders.created".into(),
        kind: "order.created".into(),
        source: "shop".into(),
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
        headers: HeaderMap::new(),
        signature: Scheme::None,
        secrets: Vec::new(),
        payload,
        auth: None,
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

#[test]
fn what_only_says_that_it_is_a_cloud_event_is_none() {
    let why = body(structured("{}"), cloudevents(CloudEventsMode::Structured));
    insta::assert_snapshot!(why, @"cannot: the message says that it is a CloudEvent, and has no `specversion`");
    let mut packed = event("x");
    packed.content_encoding = Some("gzip".into());
    let why = body(packed, cloudevents(CloudEventsMode::Structured));
    insta::assert_snapshot!(why, @"cannot: the body is compressed, which a CloudEvent cannot say of its data");
}

#[test]
fn a_form_has_it_all_in_one_field() {
    let format = Format::Form(FormFields::Whole("payload".into()));
    insta::assert_snapshot!(shown(event(r#"{"a": "ä & b=c"}"#), of_format(format)), @r#"
    POST https://example.com/in?key=1
    content-type: application/x-www-form-urlencoded

    payload=%7B%22a%22%3A+%22%C3%A4+%26+b%3Dc%22%7D
    "#);
}

#[test]
fn a_flat_form_has_a_field_for_each_value() {
    let flat = body(event(ORDER), Format::Form(FormFields::Flat));
    let pairs: Vec<_> = url::form_urlencoded::parse(flat.as_bytes())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    insta::assert_snapshot!(pairs.join("\n"), @r#"
    total=3.50
    id=12345678901234567890
    customer[name]=Ada & "Bob"
    customer[vip]=true
    items[0][sku]=a
    items[1][sku]=b
    items[1][note]=
    "#);
    insta::assert_snapshot!(body(event("7"), Format::Form(FormFields::Flat)), @"cannot: the body is one value, which has no name to be a field of");
    insta::assert_snapshot!(body(event("a=b"), Format::Form(FormFields::Flat)), @"cannot: the body is not JSON, which the format needs");
}

#[test]
fn a_form_that_came_as_one_passes_through() {
    let event = Event {
        content_type: Some("application/x-www-form-urlencoded; charset=utf-8".into()),
        ..event("b=1&a=%20&b=2")
    };
    assert_eq!(body(event, Format::Form(FormFields::Flat)), "b=1&a=%20&b=2");
}

fn xml(root: &str) -> Format {
    Format::Xml(XmlNames {
        root: root.into(),
        item: "item".into(),
    })
}

#[test]
fn json_becomes_xml_by_the_rule() {
    insta::assert_snapshot!(shown(event(ORDER), of_format(xml("order"))), @r#"
    POST https://example.com/in?key=1
    content-type: application/xml; charset=utf-8

    <?xml version="1.0" encoding="UTF-8"?>
    <order><total>3.50</total><id>12345678901234567890</id><customer><name>Ada &amp; &quot;Bob&quot;</name><vip>true</vip></customer><items><sku>a</sku></items><items><sku>b</sku><note/></items></order>
    "#);
}

#[test]
fn xml_has_attributes_texts_and_lists_of_lists() {
    let json = r##"{"@id":7,"@a\"b":"<&\n","@list":[1],"#text":"t]]>","m":[[1,[2]],[],"x"],"":0,"two words":null,"_x0020_":1,"c":"\u0000\r"}"##;
    let written = body(event(json), xml("r"));
    insta::assert_snapshot!(written.lines().nth(1).unwrap(), @"<r id=\"7\" a_x0022_b=\"&lt;&amp;&#10;\"><_x0040_list>1</_x0040_list>t]]&gt;<m><item>1</item><item><item>2</item></item></m><m></m><m>x</m><_>0</_><two_x0020_words/><_x005F_x0020_>1</_x005F_x0020_><c>\u{fffd}&#13;</c></r>");
    let list = body(event(r#"[1,{"a":2},[3]]"#), xml("r"));
    insta::assert_snapshot!(list.lines().nth(1).unwrap(), @"<r><item>1</item><item><a>2</a></item><item><item>3</item></item></r>");
    let scalar = body(event("\"x\""), xml("r"));
    insta::assert_snapshot!(scalar.lines().nth(1).unwrap(), @"<r>x</r>");
}

#[test]
fn xml_passes_through() {
    let given = "\u{feff}<?xml version='1.0'?><o a='1'/>";
    let kept = render(event(given), &endpoint(of_format(xml("r")))).unwrap();
    assert_eq!(kept.body, given);
    assert_eq!(kept.headers[CONTENT_TYPE], "application/xml; charset=utf-8");
    let mut soap = event("anything");
    soap.content_type = Some("application/soap+xml; action=x".into());
    let kept = render(soap, &endpoint(of_format(xml("r")))).unwrap();
    assert_eq!(kept.headers[CONTENT_TYPE], "application/soap+xml; action=x");
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
    }
}

#[test]
fn a_template_makes_the_whole_request() {
    let mut template = template(
        "{\n  \"text\": {{ \"Order of \" ~ data.customer.name }},\n  \"items\": [{% for item in data[\"items\"] %}{{ item.sku }}{% if not loop.last %}, {% endif %}{% endfor %}],\n  \"all\": {{ data }},\n  \"of\": {{ [id, topic, type, time, source, version, headers.tenant, params.channel] }}\n}",
    );
    template.headers = vec![("x-order".parse().unwrap(), text("{{ data.id }}/{{ type }}"))];
    template.query = vec![("total".into(), text("{{ data.total }}&x={{ source }}"))];
    template.path = vec![text("orders"), text("a/{{ data.customer.name }}?#")];
    let mut event = event(ORDER);
    let tenant = crate::event::HeaderValue::text("t\u{e4}");
    event.headers.push("tenant", tenant);
    insta::assert_snapshot!(shown(event, of_format(Format::Template(Box::new(template)))), @r##"
    POST https://example.com/in/orders/a%2FAda%20%26%20%22Bob%22%3F%23?key=1&total=3.5%26x%3Dshop
    content-type: application/json
    x-order: 12345678901234567890/order.created

    {
      "text": "Order of Ada & \"Bob\"",
      "items": ["a", "b"],
      "all": {"total":3.5,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]},
      "of": ["evt_1","orders.created","order.created","2026-03-01T12:00:00Z","shop","","tä","#or\"ders"]
    }
    "##);
}

fn of_template(json: &str, body_text: &str) -> String {
    body(event(json), Format::Template(Box::new(template(body_text))))
}

#[test]
fn what_a_template_cannot_is_said_with_its_line() {
    insta::assert_snapshot!(of_template("{}", "{\"a\":\n  {{ data.gone }}}"), @"cannot: body, line 2: undefined value: `data.gone` is undefined");
    insta::assert_snapshot!(of_template("{}", "{\"a\": {{ data.gone.further }}}"), @"cannot: body, line 1: undefined value: `data.gone` is undefined");
    insta::assert_snapshot!(of_template("{}", "\n\n{{ data | frobnicate }}"), @"cannot: body, line 3: unknown filter: filter frobnicate is unknown");
    insta::assert_snapshot!(of_template("{\"a\":\"x\"}", "{\"a\": \"of {{ data.a }}\"}"), @"cannot: what body makes is not JSON: expected `,` or `}` at line 1 column 12 of it");
    insta::assert_snapshot!(of_template("<a/>", "{\"a\": {{ data }}}"), @"cannot: the body is not JSON, which the format needs");
    insta::assert_snapshot!(of_template("<a/>", "{\"a\": {{ id }}}"), @r#"{"a": "evt_1"}"#);
}

#[test]
fn work_and_output_of_a_template_are_limited() {
    let many = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}1";
    insta::assert_snapshot!(of_template("{}", many), @"cannot: body, line 1: more than 200000 steps");
    let large = "{% for a in range(100) %}{{ \"x\" * 1000000 }}{% endfor %}";
    insta::assert_snapshot!(of_template("{}", large), @"cannot: body: the text is too long");
}

#[test]
fn values_are_escaped_as_the_content_type_needs() {
    let of = |content_type: &str| {
        let template = Template {
            content_type: content_type.into(),
            ..template("{{ data }}")
        };
        body(
            event("\"<a href='x'>&\""),
            Format::Template(Box::new(template)),
        )
    };
    assert_eq!(of("application/vnd.x+json"), "\"<a href='x'>&\"");
    assert_eq!(
        of("application/soap+xml; charset=utf-8"),
        "&lt;a href=&#x27;x&#x27;&gt;&amp;"
    );
    assert_eq!(of("text/plain"), "<a href='x'>&");
}

#[test]
fn mistakes_in_a_template_are_found_before_it_is_used() {
    let problem = |text: &str| {
        let problem = check_template(text).unwrap_err();
        let at = problem.range.map(|range| text[range].to_owned());
        format!(
            "{}: {}: {}: {}",
            problem.line,
            at.unwrap_or_default(),
            problem.kind,
            problem.detail.unwrap_or_default()
        )
    };
    insta::assert_snapshot!(problem("a\n  {{ b c }}"), @"2: c: syntax error: unexpected identifier, expected end of variable block");
    insta::assert_snapshot!(problem("{{ id }}\n{{ data.a.b | upcase }}"), @"2: upcase: unknown filter: filter upcase is unknown");
    insta::assert_snapshot!(problem("{% if x %}"), @"1: %}: syntax error: unexpected end of input, expected end of block");
    insta::assert_snapshot!(problem("{{ data.dta }} {{ dta.x }}"), @"1: dta: a name that templates do not know: `dta`; there are id, topic, type, time, source, headers, data, params, version");
    assert_eq!(
        check_template("{% set x = data %}{{ x }}{{ range(3) }}{{ namespace() }}"),
        Ok(())
    );
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
