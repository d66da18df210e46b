//! Forms and XML, made of JSON or passed through.

use super::*;

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
