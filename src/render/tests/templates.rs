//! What templates make, refuse and are held to.

use super::*;

#[test]
fn a_template_makes_the_whole_request() {
    let mut template = template(
        "{\n  \"text\": {{ \"Order of \" ~ data.customer.name }},\n  \"items\": [{% for item in data[\"items\"] %}{{ item.sku }}{% if not loop.last %}, {% endif %}{% endfor %}],\n  \"all\": {{ data }},\n  \"of\": {{ [id, topic, type, time, source, version, tenant, headers.tenant, params.channel] }}\n}",
    );
    template.headers = vec![("x-order".parse().unwrap(), text("{{ data.id }}/{{ type }}"))];
    template.query = vec![("total".into(), text("{{ data.total }}&x={{ source }}"))];
    template.path = vec![text("orders"), text("a/{{ data.customer.name }}?#")];
    let mut event = event(ORDER);
    event.tenant = Some("acme".into());
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
      "of": ["evt_1","orders.created","order.created","2026-03-01T12:00:00Z","shop","","acme","tä","#or\"ders"]
    }
    "##);
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
    insta::assert_snapshot!(problem("{{ data.dta }} {{ dta.x }}"), @"1: dta: a name that templates do not know: `dta`; there are id, topic, type, time, source, tenant, headers, data, body, params, version");
    assert_eq!(
        check_template("{% set x = data %}{{ x }}{{ range(3) }}{{ namespace() }}"),
        Ok(())
    );
}
