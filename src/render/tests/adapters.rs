//! What each adapter makes: of an event by itself, and of more than its service takes.

use super::*;
use crate::render::adapters::{ADAPTERS, Adapter, Kind, named};

type Texts<'a> = &'a [(&'a str, &'a str)];
type Pairs<T> = Vec<(T, T)>;

fn format(adapter: &Adapter, texts: Texts<'_>, fields: &[(String, String)]) -> Format {
    let mut settings: Vec<(Arc<str>, Setting)> = Vec::new();
    let mut params = BTreeMap::new();
    for (name, value) in texts {
        let known = adapter.settings.iter().find(|known| known.name == *name);
        match known.expect("a setting").kind {
            Kind::Secret => drop(params.insert((*name).into(), (*value).into())),
            _ => settings.push(((*name).into(), Setting::Text(text(value)))),
        }
    }
    if !fields.is_empty() {
        let known = adapter.settings.iter();
        let mut known = known.filter(|known| known.kind == Kind::Fields);
        let name = known.next().expect("fields").name.into();
        let fields = fields.iter();
        let fields = fields.map(|(name, value)| (name.as_str().into(), text(value)));
        settings.push((name, Setting::Fields(fields.collect())));
    }
    Format::Template(Box::new(adapter.with(settings, params)))
}

/// The request, of `body`, with runs of the same letter and of the same line written shorter.
fn of(body: &str, name: &str, texts: Texts<'_>, fields: &[(String, String)]) -> String {
    let format = format(named(name).expect("an adapter"), texts, fields);
    squeezed(&shown(event(body), of_format(format)))
}

fn squeezed(text: &str) -> String {
    const RUN: usize = 12;
    let mut out = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let mut count = 1;
        while letters.next_if_eq(&letter).is_some() {
            count += 1;
        }
        match count >= RUN && letter.is_alphanumeric() {
            true => out.push_str(&format!("{}<{count} times>", letter.escape_default())),
            false => out.extend(std::iter::repeat_n(letter, count)),
        }
    }
    let mut lines: Vec<(String, usize)> = Vec::new();
    for line in out.lines() {
        match lines.last_mut() {
            Some((last, count)) if last == line => *count += 1,
            _ => lines.push((line.to_owned(), 1)),
        }
    }
    let line = |(line, count): (String, usize)| match count {
        1 => line,
        count => format!("{line} <{count} times>"),
    };
    let lines: Vec<_> = lines.into_iter().map(line).collect();
    lines.join("\n").replace('\u{2026}', "<cut>")
}

fn many(count: usize, name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned()); count]
}

const NONE: &[(String, String)] = &[];

#[test]
fn slack() {
    insta::assert_snapshot!(of(ORDER, "slack", &[], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "text": "order.created\n{\"total\":3.50,\"id\":12345678901234567890,\"customer\":{\"name\":\"Ada &amp; \\\"Bob\\\"\",\"vip\":true},\"items\":[{\"sku\":\"a\",\"tags\":[]},{\"sku\":\"b\",\"note\":null}]}"
    }
    "#);
    let blocks = r#"[{"type": "header", "text": {"type": "plain_text", "text": "{{ "h" * 200 }}"}}{% for n in range(60) %}, {"type": "section", "text": {"type": "mrkdwn", "text": "{{ "s" * 4000 }}"}}{% endfor %}]"#;
    let texts = [
        ("text", "{{ '<' | mrkdwn }}{{ 't' * 50000 }}"),
        ("blocks", blocks),
        ("channel", "#{{ data.customer.name }}"),
    ];
    insta::assert_snapshot!(of(ORDER, "slack", &texts, NONE), @r##"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "text": "&lt;t<39995 times><cut>",
      "channel": "#Ada & \"Bob\"",
      "blocks": [
        {"type":"header","text":{"type":"plain_text","text":"h<149 times><cut>"}},
        {"type":"section","text":{"type":"mrkdwn","text":"s<2999 times><cut>"}}, <48 times>
        {"type":"section","text":{"type":"mrkdwn","text":"s<2999 times><cut>"}}
      ]
    }
    "##);
    insta::assert_snapshot!(of("{}", "slack", &[("blocks", "no list")], NONE), @"cannot: slack.json.j2, line 9: invalid operation: this is not JSON");
}

#[test]
fn discord() {
    insta::assert_snapshot!(of("no JSON at all", "discord", &[], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "allowed_mentions": {"parse": []},
      "embeds": [{
        "title": "order.created",
        "description": "no JSON at all",
        "timestamp": "2026-03-01T12:00:00Z",
        "fields": [
        ]
      }]
    }
    "#);
    let texts = [
        ("title", "{{ 't' * 300 }}"),
        ("description", "{{ 'd' * 5000 }}"),
        ("content", "@everyone {{ 'c' * 3000 }}"),
        ("username", "{{ 'u' * 100 }}"),
    ];
    let fields = many(30, &"n".repeat(300), "{{ 'v' * 2000 }}");
    insta::assert_snapshot!(of("{}", "discord", &texts, &fields), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "content": "@everyone c<1989 times><cut>",
      "username": "u<79 times><cut>",
      "allowed_mentions": {"parse": []},
      "embeds": [{
        "title": "t<255 times><cut>",
        "description": "d<4095 times><cut>",
        "timestamp": "2026-03-01T12:00:00Z",
        "fields": [
          {"name": "n<255 times><cut>", "value": "v<1023 times><cut>", "inline": true},
          {"name": "n<255 times><cut>", "value": "v<111 times><cut>", "inline": true}
        ]
      }]
    }
    "#);
    let short = [("title", "t"), ("description", "d")];
    insta::assert_snapshot!(of("{}", "discord", &short, &many(30, "name", "")), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "allowed_mentions": {"parse": []},
      "embeds": [{
        "title": "t",
        "description": "d",
        "timestamp": "2026-03-01T12:00:00Z",
        "fields": [
          {"name": "name", "value": "-", "inline": true}, <24 times>
          {"name": "name", "value": "-", "inline": true}
        ]
      }]
    }
    "#);
}

#[test]
fn teams() {
    insta::assert_snapshot!(of(ORDER, "teams", &[], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "type": "message",
      "attachments": [{
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": null,
        "content": {
          "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
          "type": "AdaptiveCard",
          "version": "1.4",
          "body": [
            {"type": "TextBlock", "text": "order.created", "weight": "Bolder", "size": "Medium", "wrap": true},
            {"type": "TextBlock", "text": "{\"total\":3.50,\"id\":12345678901234567890,\"customer\":{\"name\":\"Ada & \\\"Bob\\\"\",\"vip\":true},\"items\":[{\"sku\":\"a\",\"tags\":[]},{\"sku\":\"b\",\"note\":null}]}", "wrap": true}
          ]
        }
      }]
    }
    "#);
    let texts = [
        ("title", "{{ 't' * 30000 }}"),
        // Two bytes each.
        ("text", "{{ '\u{e4}' * 30000 }}"),
    ];
    let facts = many(60, &"n".repeat(300), "{{ 'v' * 2000 }}");
    insta::assert_snapshot!(of("{}", "teams", &texts, &facts), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "type": "message",
      "attachments": [{
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": null,
        "content": {
          "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
          "type": "AdaptiveCard",
          "version": "1.4",
          "body": [
            {"type": "TextBlock", "text": "t<997 times><cut>", "weight": "Bolder", "size": "Medium", "wrap": true},
            {"type": "TextBlock", "text": "\u{e4}<8998 times><cut>", "wrap": true},
            {"type": "FactSet", "facts": [
              {"title": "n<97 times><cut>", "value": "v<247 times><cut>"}, <19 times>
              {"title": "n<97 times><cut>", "value": "v<247 times><cut>"}
            ]}
          ]
        }
      }]
    }
    "#);
}

#[test]
fn pagerduty() {
    let key = ("routing_key", "R0UT1NG");
    insta::assert_snapshot!(of(ORDER, "pagerduty", &[key], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "routing_key": "R0UT1NG",
      "event_action": "trigger",
      "dedup_key": "evt_1",
      "payload": {
        "summary": "order.created",
        "source": "shop",
        "severity": "error",
        "timestamp": "2026-03-01T12:00:00Z",
        "class": "order.created",
        "custom_details": {"total":3.50,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]}
      }
    }
    "#);
    let texts = [
        key,
        ("summary", "{{ 's' * 2000 }}"),
        ("source", "{{ 'o' * 2000 }}"),
        ("severity", "{{ 'warning' if data.total else 'info' }}"),
        ("action", "resolve"),
        ("dedup_key", "{{ 'k' * 300 }}"),
    ];
    let large = format!("{{\"total\":1,\"log\":\"{}\"}}", "l".repeat(600_000));
    insta::assert_snapshot!(of(&large, "pagerduty", &texts, NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "routing_key": "R0UT1NG",
      "event_action": "resolve",
      "dedup_key": "k<255 times>",
      "payload": {
        "summary": "s<1023 times><cut>",
        "source": "o<1023 times><cut>",
        "severity": "warning",
        "timestamp": "2026-03-01T12:00:00Z",
        "class": "order.created",
        "custom_details": {"body": "{\"total\":1,\"log\":\"l<479974 times><cut>"}
      }
    }
    "#);
}

#[test]
fn twilio() {
    let numbers = [("to", "+15551234567"), ("from", "+15557654321")];
    insta::assert_snapshot!(of("no & JSON", "twilio", &numbers, NONE), @r"
    POST https://example.com/in?key=1
    content-type: application/x-www-form-urlencoded

    From=%2B15557654321&To=%2B15551234567&Body=order.created+no+%26+JSON
    ");
    let texts = [numbers[0], ("from", "MG0123"), ("text", "{{ 'x' * 2000 }}")];
    insta::assert_snapshot!(of("{}", "twilio", &texts, NONE), @r"
    POST https://example.com/in?key=1
    content-type: application/x-www-form-urlencoded

    MessagingServiceSid=MG0123&To=%2B15551234567&Body=x<1597 times>...
    ");
}

#[test]
fn zapier() {
    insta::assert_snapshot!(of(ORDER, "zapier", &[], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "id": "evt_1",
      "type": "order.created",
      "topic": "orders.created",
      "time": "2026-03-01T12:00:00Z",
      "data": {"total":3.50,"id":12345678901234567890,"customer":{"name":"Ada & \"Bob\"","vip":true},"items":[{"sku":"a","tags":[]},{"sku":"b","note":null}]}
    }
    "#);
    let large = "x".repeat(10_000_000);
    insta::assert_snapshot!(of(&large, "zapier", &[], NONE), @"cannot: zapier.json.j2: the text is too long");
}

#[test]
fn jira() {
    insta::assert_snapshot!(of(ORDER, "jira", &[("project", "OPS")], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "fields": {
        "project": {"key": "OPS"},
        "issuetype": {"name": "Task"},
        "summary": "order.created",
        "description": "{\"total\":3.50,\"id\":12345678901234567890,\"customer\":{\"name\":\"Ada & \\\"Bob\\\"\",\"vip\":true},\"items\":[{\"sku\":\"a\",\"tags\":[]},{\"sku\":\"b\",\"note\":null}]}"
      }
    }
    "#);
    let texts = [
        ("project", "OPS"),
        ("issue_type", "Bug"),
        ("summary", "{{ 's' * 100 }}\n{{ 's' * 300 }}"),
        ("description", "{{ 'd' * 40000 }}"),
    ];
    insta::assert_snapshot!(of(ORDER, "jira", &texts, NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "fields": {
        "project": {"key": "OPS"},
        "issuetype": {"name": "Bug"},
        "summary": "s<100 times> s<153 times><cut>",
        "description": "d<32766 times><cut>"
      }
    }
    "#);
}

#[test]
fn asana() {
    insta::assert_snapshot!(of("<order/>", "asana", &[("project", "1200")], NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "data": {
        "projects": ["1200"],
        "name": "order.created",
        "notes": "<order/>"
      }
    }
    "#);
    let texts = [
        ("project", "1200"),
        ("name", "{{ 'n' * 2000 }}"),
        ("notes", "{{ 'o' * 70000 }}"),
    ];
    insta::assert_snapshot!(of(ORDER, "asana", &texts, NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "data": {
        "projects": ["1200"],
        "name": "n<1023 times><cut>",
        "notes": "o<64999 times><cut>"
      }
    }
    "#);
}

#[test]
fn trello() {
    let keys = [("api_key", "K3Y"), ("token", "T0K3N"), ("list", "5abb")];
    insta::assert_snapshot!(of(ORDER, "trello", &keys, NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json
    authorization: OAuth oauth_consumer_key="K3Y", oauth_token="T0K3N"

    {
      "idList": "5abb",
      "name": "order.created",
      "desc": "{\"total\":3.50,\"id\":12345678901234567890,\"customer\":{\"name\":\"Ada & \\\"Bob\\\"\",\"vip\":true},\"items\":[{\"sku\":\"a\",\"tags\":[]},{\"sku\":\"b\",\"note\":null}]}"
    }
    "#);
    let long = [
        ("name", "{{ 'n' * 20000 }}"),
        ("description", "{{ 'd' * 20000 }}"),
    ];
    insta::assert_snapshot!(of(ORDER, "trello", &[&keys[..], &long].concat(), NONE), @r#"
    POST https://example.com/in?key=1
    content-type: application/json
    authorization: OAuth oauth_consumer_key="K3Y", oauth_token="T0K3N"

    {
      "idList": "5abb",
      "name": "n<16383 times><cut>",
      "desc": "d<16383 times><cut>"
    }
    "#);
}

#[test]
fn jenkins() {
    insta::assert_snapshot!(of("a=b&c", "jenkins", &[], NONE), @r"
    POST https://example.com/in?key=1
    content-type: application/x-www-form-urlencoded

    EVENT_ID=evt_1&EVENT_TYPE=order.created&PAYLOAD=a%3Db%26c
    ");
    let parameters = [
        ("A".to_owned(), "{{ 'a' * 300000 }}".to_owned()),
        ("B C".to_owned(), "{{ 'b' * 300000 }}".to_owned()),
    ];
    insta::assert_snapshot!(of("{}", "jenkins", &[], &parameters), @r"
    POST https://example.com/in?key=1
    content-type: application/x-www-form-urlencoded

    A=a<94991 times>%E2%80%A6&B+C=b<94991 times>%E2%80%A6
    ");
}

#[test]
fn hubspot() {
    let properties = [
        ("email".to_owned(), "{{ data.email }}".to_owned()),
        ("notes".to_owned(), "{{ 'n' * 70000 }}".to_owned()),
    ];
    let body = r#"{"email":"ada@example.com"}"#;
    insta::assert_snapshot!(of(body, "hubspot", &[], &properties), @r#"
    POST https://example.com/in?key=1
    content-type: application/json

    {
      "properties": {
        "email": "ada@example.com",
        "notes": "n<65535 times><cut>"
      }
    }
    "#);
}

/// With every setting that has to be there.
fn least(adapter: &Adapter) -> (Pairs<&'static str>, Pairs<String>) {
    let needed = adapter.settings.iter().filter(|known| known.needed);
    let (fields, texts): (Vec<_>, Vec<_>) = needed.partition(|known| known.kind == Kind::Fields);
    let texts = texts.into_iter().map(|known| (known.name, "needed"));
    let fields = fields.iter().flat_map(|_| many(1, "email", "needed"));
    (texts.collect(), fields.collect())
}

#[test]
fn whatever_comes_is_made_into_what_the_service_reads() {
    for adapter in &ADAPTERS {
        let (texts, fields) = least(adapter);
        let endpoint = endpoint(of_format(format(adapter, &texts, &fields)));
        for body in ["", "{", "\"}],\u{1f600}\n\0", "{\"a\": [1.10]}", "null"] {
            let request = render(event(body), &endpoint).unwrap();
            let name = adapter.name;
            match adapter.content_type {
                "application/json" => {
                    let read = serde_json::from_slice::<serde_json::Value>(&request.body);
                    assert!(read.is_ok(), "{name} of {body:?}: {request:?}");
                }
                _ => assert!(
                    request.body.iter().all(u8::is_ascii_graphic),
                    "{name} of {body:?}: {request:?}"
                ),
            }
        }
    }
}

#[test]
fn what_is_shown_of_an_adapter_is_a_template_that_makes_the_same() {
    for adapter in &ADAPTERS {
        let text = adapter.as_template();
        assert_eq!(check_template(&text), Ok(()), "{text}");
        let (texts, fields) = least(adapter);
        if !fields.is_empty() {
            continue;
        }
        let Format::Template(adapted) = format(adapter, &texts, &[]) else {
            unreachable!("an adapter is a template")
        };
        let params = texts
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        let own = Template {
            body: Some(TemplateText {
                name: "body".into(),
                text: text.as_str().into(),
            }),
            params: params.collect(),
            adapted: None,
            ..*adapted.clone()
        };
        let made = |template| of_format(Format::Template(Box::new(template)));
        assert_eq!(
            shown(event(ORDER), made(own)),
            shown(event(ORDER), made(*adapted)),
            "{}",
            adapter.name
        );
    }
}

#[test]
fn the_rows_are_in_order() {
    for adapter in &ADAPTERS {
        let answers = adapter.answers();
        assert!(answers.success.contains(200) || adapter.name == "pagerduty");
        assert_eq!(adapter.rate().is_none(), adapter.name == "jenkins");
        assert!(adapter.url.starts_with("https://"), "{}", adapter.url);
    }
}

#[test]
fn an_adapter_as_it_is_shown() {
    insta::assert_snapshot!(named("twilio").unwrap().as_template(), @r#"
    {#- twilio: an SMS. Used as

        format:
          template:
            body: ${file:my.twilio.form.j2}
            content_type: application/x-www-form-urlencoded
            params: { ... }

        where `params` may have

          to           The number it goes to, such as `+15551234567`. Needed.
          from         A number of the account, or a messaging service (`MG...`). Needed.
          text         The message.
    -#}
    {%- set text = params.text | default(type ~ " " ~ body) -%}
    {% if params.from[:2] == "MG" %}MessagingServiceSid{% else %}From{% endif %}={{ params.from | form_encode -}}
    &To={{ params.to | form_encode -}}
    &Body={{ text | truncate_to(1600, "...") | form_encode -}}
    "#);
}
