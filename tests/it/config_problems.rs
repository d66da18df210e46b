//! What an operator reads who has made mistakes: all of them at once, each at its place, with
//! nothing secret in it.

use std::path::Path;

use hookbridge::config::{self, Config, Format, Problems};

fn parse(text: &str) -> Result<Config, Problems> {
    let env = |name: &str| match name {
        "SET" => Some("hunter2".to_owned()),
        _ => None,
    };
    config::parse(text, "hookbridge.yaml", Path::new("/etc/hookbridge"), &env)
}

/// A config in which `rest` is the only thing that can be wrong.
fn with(rest: &str) -> String {
    format!(
        "group: g\nbrokers:\n  rabbit: {{ rabbitmq: {{ url: amqp://h }} }}\n  lake: {{ kafka: {{ bootstrap: [k] }} }}\n  here: {{ embedded: {{}} }}\n{rest}"
    )
}

/// Messages, without snippets: `line:col message (help)`.
fn said(text: &str) -> String {
    let Err(problems) = parse(text) else {
        return "no problem".to_owned();
    };
    let lines = problems.list().iter().map(|problem| {
        let help = problem
            .help
            .as_deref()
            .map(|help| format!(" ({help})"))
            .unwrap_or_default();
        format!("{}:{} {}{help}", problem.line, problem.col, problem.message)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn several_problems_are_shown_at_once_with_their_lines() {
    let text = "\
group: shop
brokers:
  rabbit:
    rabbitmq: { urls: [\"amqp://user:hunter2@rabbit/%2f\"] }
sources:
  orders:
    broker: rabit
    queue: orders
subscriptions:
  crm:
    topcis: [\"orders.*\"]
    endpoint:
      url: http://user:hunter2@crm.example.com/T0/hunter2
      secret: hunter2
      headers: { host: example.com, authorization: \"Bearer ${env:TOKEN}\" }
    retry: { schedule: [5s, 5 minutes] }
";
    let problems = parse(text).unwrap_err();
    let shown = problems.render(Format::Human, false);
    assert!(!shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!(shown, @r#"
error: there is no broker `rabit`
 --> hookbridge.yaml:7:13
  |
7 |     broker: rabit
  |             ^^^^^
  |
  = help: did you mean `rabbit`?

error: unknown key `topcis` in `crm`
  --> hookbridge.yaml:11:5
   |
11 |     topcis: ["orders.*"]
   |     ^^^^^^
   |
   = help: did you mean `topics`?

error: plain `http:` is refused, since anybody on the way can read and change it
  --> hookbridge.yaml:13:12
   |
13 |       url: http://***@crm.example.com/***
   |            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   |
   = help: use `https:`, or set `delivery: { allow_http: true }`

error: user info in the URL is refused, since URLs are logged everywhere
  --> hookbridge.yaml:13:12
   |
13 |       url: http://***@crm.example.com/***
   |            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   |
   = help: send it as `headers: { authorization: "Basic ..." }`

error: the secret does not begin with `whsec_`
  --> hookbridge.yaml:14:15
   |
14 |       secret: ***
   |               ^^^
   |
   = help: make one with `echo whsec_$(openssl rand -base64 32)`

error: the header `host` is not yours to set
  --> hookbridge.yaml:15:18
   |
15 |       headers: { host: ***, authorization: "***${env:TOKEN}" }
   |                  ^^^^
   |
   = help: it belongs to HTTP, to the signature or to hookbridge

error: the environment variable `TOKEN` is not set
  --> hookbridge.yaml:15:60
   |
  ::: 
15 |       headers: { host: ***, authorization: "***${env:TOKEN}" }
   |                                                ^^^^^^^^^^^^
   |
   = help: set it, or give a default: `${env:TOKEN:-default}`

error: `5 minutes` is not a duration such as `250ms`, `5s`, `1m30s`, `2h` or `4d`
  --> hookbridge.yaml:16:29
   |
16 |     retry: { schedule: [5s, 5 minutes] }
   |                             ^^^^^^^^^

8 problems in hookbridge.yaml
"#);
    insta::assert_snapshot!(problems.render(Format::Json, false), @r#"
{"file":"hookbridge.yaml","line":7,"col":13,"message":"there is no broker `rabit`","help":"did you mean `rabbit`?"}
{"file":"hookbridge.yaml","line":11,"col":5,"message":"unknown key `topcis` in `crm`","help":"did you mean `topics`?"}
{"file":"hookbridge.yaml","line":13,"col":12,"message":"plain `http:` is refused, since anybody on the way can read and change it","help":"use `https:`, or set `delivery: { allow_http: true }`"}
{"file":"hookbridge.yaml","line":13,"col":12,"message":"user info in the URL is refused, since URLs are logged everywhere","help":"send it as `headers: { authorization: \"Basic ...\" }`"}
{"file":"hookbridge.yaml","line":14,"col":15,"message":"the secret does not begin with `whsec_`","help":"make one with `echo whsec_$(openssl rand -base64 32)`"}
{"file":"hookbridge.yaml","line":15,"col":18,"message":"the header `host` is not yours to set","help":"it belongs to HTTP, to the signature or to hookbridge"}
{"file":"hookbridge.yaml","line":15,"col":60,"message":"the environment variable `TOKEN` is not set","help":"set it, or give a default: `${env:TOKEN:-default}`"}
{"file":"hookbridge.yaml","line":16,"col":29,"message":"`5 minutes` is not a duration such as `250ms`, `5s`, `1m30s`, `2h` or `4d`","help":null}
"#);
    insta::assert_snapshot!(problems.render(Format::Github, false), @r#"
::error file=hookbridge.yaml,line=7,col=13::there is no broker `rabit`%0Ahelp: did you mean `rabbit`?
::error file=hookbridge.yaml,line=11,col=5::unknown key `topcis` in `crm`%0Ahelp: did you mean `topics`?
::error file=hookbridge.yaml,line=13,col=12::plain `http:` is refused, since anybody on the way can read and change it%0Ahelp: use `https:`, or set `delivery: { allow_http: true }`
::error file=hookbridge.yaml,line=13,col=12::user info in the URL is refused, since URLs are logged everywhere%0Ahelp: send it as `headers: { authorization: "Basic ..." }`
::error file=hookbridge.yaml,line=14,col=15::the secret does not begin with `whsec_`%0Ahelp: make one with `echo whsec_$(openssl rand -base64 32)`
::error file=hookbridge.yaml,line=15,col=18::the header `host` is not yours to set%0Ahelp: it belongs to HTTP, to the signature or to hookbridge
::error file=hookbridge.yaml,line=15,col=60::the environment variable `TOKEN` is not set%0Ahelp: set it, or give a default: `${env:TOKEN:-default}`
::error file=hookbridge.yaml,line=16,col=29::`5 minutes` is not a duration such as `250ms`, `5s`, `1m30s`, `2h` or `4d`
"#);
}

#[test]
fn the_shape_of_things() {
    insta::assert_snapshot!(said(&with("limits: 5\nsources: []\nendpoints:\nadmin: { listen: [1], listen: 2 }\n")), @r#"
6:9 `limits` is a map, not a number (its keys: `in_flight_bytes`, `due_window`, `shutdown`, `workers`)
7:10 `sources` is a map, not a list
8:1 `endpoints` is a map, not nothing
9:18 `listen` is an address and port such as `127.0.0.1:8400`, not a list
9:23 `listen` is there twice (the first one stands further up in the same map)
"#);
    insta::assert_snapshot!(said(&with("subscriptions:\n  A b: { topics: orders, enabled: maybe, endpoint: true }\n")), @r#"
7:3 `A b` is not a name (a name is a lower-case letter and up to 62 more of `a-z`, `0-9`, `_`, `.` and `-`)
7:18 `topics` is a list, not one value (write `[orders]`)
7:35 `maybe` is not `true` or `false`
7:52 `endpoint` is text, not true or false (put it in quotes if the word is meant)
"#);
    insta::assert_snapshot!(said("- a\n- b\n"), @"1:1 `config` is a map, not a list (its keys: `group`, `instance`, `data_dir`, `state_on`, `store_key`, `admin`, `dead_letters`, `delivery`, `limits`, `attempts`, `reload`, `telemetry`, `tenants`, `brokers`, `sources`, `versions`, `endpoints`, `subscriptions`, `tests`)");
    insta::assert_snapshot!(said(""), @"1:1 `brokers` is missing");
}

#[test]
fn broken_yaml_stands_alone() {
    insta::assert_snapshot!(said("group: g\nbrokers: [\nsources: x\n"), @"2:10 this is not valid YAML: unclosed bracket '['");
    let shown = parse("a:\n  secret: hunter2\n  secrets: hunter2: 3\n")
        .unwrap_err()
        .to_string();
    assert!(!shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!(shown, @r#"
error: this is not valid YAML: mapping values are not allowed in this context
 --> hookbridge.yaml:3:19
  |
 ::: 
3 |   secrets: ***
  |            ^^^

1 problem in hookbridge.yaml
"#);
}

#[test]
fn substitution() {
    insta::assert_snapshot!(said(&with("instance: ${env:NO}\nlimits: { shutdown: \"${env:SET}\", workers: \"${env:SET}\", due_window: \"${env:NO:-12}\" }\n")), @r#"
6:11 the environment variable `NO` is not set (set it, or give a default: `${env:NO:-default}`)
7:21 the value of `${env:SET}` is not a duration such as `250ms`, `5s`, `1m30s`, `2h` or `4d`
7:44 the value of `${env:SET}` is not a whole number from 1 to 64
"#);
    insta::assert_snapshot!(said(&with("admin: { listen: \"127.0.0.1:${file:missing}\", tokens: \"x ${env:SET\" }\n")), @r#"
6:29 the file `missing` cannot be read: there is no such file (a relative path starts at the folder of the config file)
6:58 `${` without `}` (write `$${` for a literal `${`)
"#);
    insta::assert_snapshot!(said(&with("sources: { a: { broker: \"${env:SET}\" } }\nsubscriptions: { s: { topics: [\"${env:SET}\"], sources: [\"${env:SET}\"], endpoint: \"${env:SET}\" } }\n")), @r#"
6:25 there is no broker `${env:SET}` (known here: `rabbit`, `lake`, `here`)
7:57 there is no source `${env:SET}` (known here: `a`, `hookbridge`)
7:82 there is no endpoint `${env:SET}` (write it under `endpoints:`, or in place as `{ url: ..., secret: ... }`)
"#);
}

#[test]
fn admin() {
    insta::assert_snapshot!(said(&with("admin: { listen: 0.0.0.0:8400 }\n")), @"6:18 the admin API may not be open to other machines without `tokens` (add `tokens: [{ name: ..., token: ..., scopes: [read] }]`, or listen on 127.0.0.1)");
    insta::assert_snapshot!(said(&with("admin: { tokens: [{ name: a, token: short, scopes: [raed] }, { name: b, scopes: [] }, { name: c, token: 0123456789abcdef, sha256: x, scopes: [read] }] }\n")), @r#"
6:37 a token has 16 characters or more (make one with `openssl rand -hex 32`)
6:53 `raed` is not a value of `scopes` (did you mean `read`?)
6:62 `token` or `sha256` is missing
6:81 `scopes` is empty
6:123 `token` and `sha256` are both given (keep one of them)
"#);
}

#[test]
fn brokers() {
    insta::assert_snapshot!(said("brokers:\n  a: { rabbitmq: { url: http://h } }\n  b: { kafka: {}, embedded: {} }\n  c: {}\n  d: { rabitmq: { url: x } }\n"), @r#"
2:3 `group` is missing, which names what we make on `a` (add `group: hookbridge` at the top; instances that share the work have the same, others another)
2:25 this is not an `amqp:` or `amqps:` URL (write it as `amqps://user:password@host:5671/vhost`; in user, password and virtual host `/` is `%2f` and `@` is `%40`)
3:19 a broker is of one kind only (give each its own name)
4:3 the kind of broker is missing (one of `rabbitmq`, `kafka`, `embedded`)
5:8 unknown key `rabitmq` in `d` (did you mean `rabbitmq`?)
"#);
    insta::assert_snapshot!(said(&with("").replace("group: g\n", "")), @"2:3 `group` is missing, which names what we make on `rabbit` (add `group: hookbridge` at the top; instances that share the work have the same, others another)");
    insta::assert_snapshot!(said("group: a b\nbrokers:\n  a: { embedded: {}, tiers: [], retries_on: a }\n  b: { embedded: {}, tiers: [1500ms, 0s], retries_on: c }\n  c: { embedded: {}, retries_on: d }\n  e: { embedded: {}, retries_on: cc }\n"), @r#"
1:8 `a b` cannot be a group (up to 100 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`)
3:29 `tiers` is empty
3:45 `a` keeps its retries itself without `retries_on` (leave the key out)
4:30 a tier is a number of whole seconds
4:38 `tiers` must be from 1s to 30d
4:55 `c` has `retries_on` itself (name the broker that keeps them)
5:34 there is no broker `d` (known here: `a`, `b`, `e`)
6:34 there is no broker `cc` (known here: `a`, `b`, `c`)
"#);
    insta::assert_snapshot!(said("group: a\nbrokers:\n  a: { rabbitmq: { urls: [\"amqp://h\"], tls: { cert: c.pem } } }\n  b: { kafka: { bootstrap: [\"kafka://h:1\", \"h:x\"], sasl: { mechanism: plain, username: u } } }\n"), @r#"
3:40 `tls` is for `amqps:` URLs only (change `amqp:` to `amqps:`)
3:47 `cert` without `key` (a client certificate needs both: add `key`)
4:29 `kafka://h:1` is not `host:port` (one broker an item, without a scheme: `["kafka-1:9093", "kafka-2:9093"]`)
4:44 `h:x` is not `host:port` (one broker an item, without a scheme: `["kafka-1:9093", "kafka-2:9093"]`)
4:52 `password` is missing
4:71 `plain` is not a value of `mechanism` (did you mean `PLAIN`?)
"#);
}

/// AMQP has one byte for the length of a name.
#[test]
fn names_longer_than_amqp_has_room_for() {
    let long = "n".repeat(256);
    let bind = format!("[{{ exchange: {long}, key: {long}, arguments: {{ {long}: x }} }}]");
    let source = format!("sources:\n  a: {{ broker: rabbit, queue: {long}, bind: {bind} }}\n");
    insta::assert_snapshot!(said(&with(&source)), @r#"
7:31 a queue's name has 255 bytes at most
7:308 an exchange's name has 255 bytes at most
7:571 a binding's key has 255 bytes at most
7:840 an argument's name has 255 bytes at most
"#);
}

#[test]
fn sources() {
    insta::assert_snapshot!(said(&with("sources:\n  a: { broker: lake, topics: [x, \"^(\", \"a b\"], queue: q }\n  b: { broker: lake, topics: [x, g.dead, g.retry.5], start: tomorrow }\n  c: { broker: rabbit, queue: g.due.retry, topics: [x] }\n  d: { broker: rabbit, queue: q, declare: false, bind: [{ key: x }] }\n  e: { broker: rabbit, queue: q, window: 0, unmatched: drop, id: { header: x, json: y } }\n  f: { broker: here, id: other }\n")), @r#"
7:3 `start` is missing (where a group without offsets begins: `now` (only what comes from now on), `earliest` (all that is there) or a time such as `2026-01-31T12:00:00Z`)
7:34 this is not a regular expression: unclosed group
7:40 `a b` is not a Kafka topic (a regular expression begins with `^`, such as `^billing\..*`)
7:48 `queue` is not for Kafka sources (its broker is Kafka, where there is `topics`, `start`, `ignore_older_than`)
8:31 `x` is taken by source `a` already (subscriptions share a source: name its topics there)
8:34 `g.dead` is one of our own: retries, holds and dead letters are named so by `group` (what waits there comes back by itself; dead letters are replayed)
8:42 `g.retry.5` is one of our own: retries, holds and dead letters are named so by `group` (what waits there comes back by itself; dead letters are replayed)
8:61 `tomorrow` is not a start (`now`, `earliest` or a time such as `2026-01-31T12:00:00Z`)
9:31 `g.due.retry` is one of our own: retries, holds and dead letters are named so by `group` (what waits there comes back by itself; dead letters are replayed)
9:44 `topics` is not for RabbitMQ sources (its broker is RabbitMQ, where there is `queue`, `declare`, `bind`)
10:50 `bind` is for a queue that is declared here (leave out `declare: false`, or bind the queue where it is declared)
10:57 `exchange` is missing
11:31 `q` is taken by source `d` already (subscriptions share a source: name its topics there)
11:42 `0` is not a whole number from 1 to 100000
11:56 `drop` is not a value of `unmatched` (known here: `settle`, `dead_letter`, `hold`)
11:62 `id` has exactly one of `header` and `json` (or is the word `content`)
12:3 `topics` is missing
12:26 `other` is not a value of `id` (`content`, `{ header: x-request-id }` or `{ json: order.id }`)
"#);
}

#[test]
fn endpoints() {
    insta::assert_snapshot!(said(&with("endpoints:\n  a: { url: example.com/x, secret: whsec_c2hvcnQ= }\n  b: { url: \"https://u@h/#f\", signature: standart }\n  c: { url: \"http://127.0.0.1/\", secret: whsec_*, secrets: [] }\n  d: { url: ftp://h, signature: none, method: TRACE, rate: 5, concurrency: 0 }\n  e: { url: \"https://10.0.0.1/\", signature: standard-ed25519, secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, headers: { webhook-id: 1, Hookbridge-X: 2, \"a b\": 3, ok: \"a\\nb\", te: x } }\n  f: { url: https:// }\n")), @r#"
7:13 this is not an absolute URL: relative URL without a base (write it in full, such as `https://example.com/hooks`)
7:36 the key is 5 bytes long, not 24 to 64 (make one with `echo whsec_$(openssl rand -base64 32)`)
8:13 a fragment (`#...`) is never sent (leave it out)
8:13 user info in the URL is refused, since URLs are logged everywhere (send it as `headers: { authorization: "Basic ..." }`)
8:42 `standart` is not a value of `signature` (did you mean `standard`?)
9:13 address 127.0.0.1 is denied: loopback (`delivery.allow_networks`) (open its network on purpose with `delivery: { allow_networks: [...] }`)
9:13 plain `http:` is refused, since anybody on the way can read and change it (use `https:`, or set `delivery: { allow_http: true }`)
9:51 `secret` and `secrets` are both given (keep one of them)
10:13 a URL of another scheme than `https:` (such as `https://example.com/hooks`)
10:47 `TRACE` is not a value of `method` (known here: `POST`, `PUT`, `PATCH`, `DELETE`, `GET`)
10:60 `5` is not a rate such as `50/s` or `100/m`
10:76 `0` is not a whole number from 1 to 10000
11:13 address 10.0.0.1 is denied: private (`delivery.allow_networks`) (open its network on purpose with `delivery: { allow_networks: [...] }`)
11:71 the secret does not begin with `whsk_` (`whsk_` and base64 of the private key)
11:122 the header `webhook-id` is not yours to set (it belongs to HTTP, to the signature or to hookbridge)
11:137 the header `hookbridge-x` is not yours to set (it belongs to HTTP, to the signature or to hookbridge)
11:154 `a b` cannot be the name of a header
11:168 a header's value may not hold control characters
11:176 the header `te` is not yours to set (it belongs to HTTP, to the signature or to hookbridge)
12:3 `secret` is missing: signature `standard` needs one (make one with `echo whsec_$(openssl rand -base64 32)`, or say `signature: none`)
12:13 this is not an absolute URL: empty host (write it in full, such as `https://example.com/hooks`)
"#);
}

#[test]
fn signatures() {
    let config = "endpoints:
  a: { url: https://h, signature: stripe }
  b: { url: https://h, signature: stripe, secret: short }
  c: { url: https://h, signature: { shopify: { topc: x } }, secret: 0123456789abcdef }
  d: { url: https://h, signature: { github: { event: \"{kind}\", delivery: \"{uuid\" } }, secret: 0123456789abcdef }
  e: { url: https://h, signature: { slack: {}, stripe: {} }, secret: 0123456789abcdef }
  f: { url: https://h, signature: { slack: [] }, secret: 0123456789abcdef }
  g: { url: https://h, signature: hmac, secret: 0123456789abcdef }
  h: { url: https://h, signature: { hmac: { prefix: \" x\", hash: md5, signed: \"{id}\" } }, secret: 0123456789abcdef }
  i: { url: https://h, signature: { hmac: { header: host, timestamp_header: \"a b\" } }, secret: 0123456789abcdef }
  j: { url: https://h, signature: { hmac: { header: x-s, key: hex } }, secret: 0123456789abcdeg }
  k: { url: https://h, signature: { twilio: { url: h } }, secret: \"0123456789abcdef \" }
  l: { url: https://h, signature: stripe, secret: 0123456789abcdef, headers: { Stripe-Signature: x, x-hub-signature: x } }
  m: { url: https://h, signature: gitlab, secret: 0123456789abc def }
  n: { url: https://h, signature: { zaper: {} } }
  o: { url: https://h, signature: { hmac: { header: webhook-id, timestamp: milliseconds } }, secret: 0123456789abcdef }
";
    insta::assert_snapshot!(said(&with(config)), @r#"
7:3 `secret` is missing: signature `stripe` needs one (make one with `openssl rand -hex 32`, or say `signature: none`)
8:51 the key is 5 bytes long, not 16 to 256 (make one with `openssl rand -hex 32`)
9:48 unknown key `topc` in `shopify` (did you mean `topic`?)
10:54 `{kind}` is no word here (known here: `id`, `uuid`, `topic`, `topic.first`, `topic.last`, `type`, `source`)
10:74 a brace is not closed; a brace that is meant is written twice
11:24 `signature` has exactly one key, the name of a signature (such as `{ github: { event: "{topic}" } }`)
12:44 `slack` is a map, not a list (write `{}`)
13:35 signature `hmac` does not know its header (write `{ hmac: { header: x-signature } }`)
14:37 `header` is missing
14:53 a prefix has 100 characters at most, all of them visible ASCII, and no space before it
14:65 `md5` is not a value of `hash` (known here: `sha1`, `sha256`, `sha512`)
14:78 a signature that does not cover `{body}` proves nothing about it (such as `{timestamp}.{body}`)
15:53 the header `host` is not free (it belongs to HTTP, to the body or to hookbridge)
15:77 `a b` cannot be the name of a header
16:80 the secret is not hex (make one with `openssl rand -hex 32`)
17:52 this is not an absolute `https:` URL (write it as the receiver has it)
17:67 the secret has a control character in it, or white space around it (make one with `openssl rand -hex 32`)
18:80 the header `stripe-signature` is not yours to set (it belongs to HTTP, to the signature or to hookbridge)
19:51 the token can be sent in a header only when it is visible ASCII (make one with `openssl rand -hex 32`)
20:37 unknown key `zaper` in `signature` (did you mean `zapier`?)
21:37 `webhook-timestamp` counts seconds (give milliseconds a `timestamp_header` of their own)
21:37 signature, id and timestamp need a header each
"#);
}

#[test]
fn subscriptions() {
    let shared = "endpoints: { wh: { url: https://h/, signature: none } }\nsources: { orders: { broker: rabbit, queue: q } }\nsubscriptions:\n";
    insta::assert_snapshot!(said(&with(&format!("{shared}  a: {{ topics: [x], endpoint: wh, concurrency: 2, rate: 5/s }}\n  b: {{ topics: [], endpoint: hw, sources: [order] }}\n  wh: {{ topics: [x], endpoint: {{ url: https://h/, signature: none, rate: 1/s }}, rate: 2/s }}\n  c: {{ endpoint: wh, was: [a, old] }}\n  d: {{ topics: [x], endpoint: wh, was: [old] }}\n"))), @r#"
9:35 `concurrency` belongs to the endpoint, which other subscriptions may share (put `concurrency` on the endpoint under `endpoints:`)
9:51 `rate` belongs to the endpoint, which other subscriptions may share (put `rate` on the endpoint under `endpoints:`)
10:16 `topics` is empty
10:30 there is no endpoint `hw` (did you mean `wh`?)
10:44 there is no source `order` (did you mean `orders`?)
11:3 there is an endpoint `wh` too (an endpoint written in a subscription has the subscription's name: rename one of them, or say `endpoint: <name>`)
11:68 `rate` is given here and in the subscription (keep one of them)
12:3 `topics` is missing
12:28 `a` is still a subscription (a name in `was` is one that no subscription has any more)
13:41 `old` is taken over by `c` already
"#);
    insta::assert_snapshot!(said(&with(&format!("{shared}  a: {{ topics: [x], endpoint: wh, timeout: 1s, connect_timeout: 2s, max_parked: -1, retry: {{ schedule: [], jitter: 2, max_attempts: 0, give_up_after: 5x, success: [], disable: [4xy, 404-400], no_retry: [199, 4xx] }} }}\n  b: {{ topics: [x], endpoint: wh, filter: [1], labels: [x], tenant: A B }}\n"))), @r#"
9:65 `connect_timeout` is longer than `timeout`, which it is a part of (lengthen `timeout`, or shorten this)
9:81 `-1` is not a whole number from 0 to 4294967295
9:104 `schedule` is empty
9:116 `2` is not a number from 0 to 1
9:133 `0` is not a whole number from 1 to 1000
9:151 `5x` is not a duration such as `250ms`, `5s`, `1m30s`, `2h` or `4d`
9:164 `success` is empty
9:178 `4xy` is not a status from 200 to 599, such as `404`, `4xx` or `400-404`
9:183 `404-400` is not a status from 200 to 599, such as `404`, `4xx` or `400-404`
9:204 `199` is not a status from 200 to 599, such as `404`, `4xx` or `400-404`
10:43 `filter` is a map, not a list
10:56 `labels` is a map, not a list
10:69 `A B` is not a tenant's name (a tenant's name is 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `.` and `-`)
"#);
}

/// What makes a request wrong, through the program itself: each mistake at its line and column, and
/// nothing of what was put in.
#[test]
fn validate_names_what_is_wrong_with_signatures_bodies_and_filters() {
    let config = "\
brokers: { here: { embedded: {} } }
endpoints:
  no-secret: { url: https://h/, signature: stripe }
  short-secret: { url: https://h/, signature: github, secret: \"${env:SHORT}\" }
  other-secret: { url: https://h/, secret: \"0123456789abcdef\" }
  no-key: { url: https://h/, signature: standard-ed25519, secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw }
  unknown-format: { url: https://h/, signature: none, format: jsno }
  unknown-settings: { url: https://h/, signature: none, format: { xml: { rot: order } } }
  template:
    url: https://h/
    signature: none
    format:
      template:
        body: |
          { \"total\": {{ data.total }},
            \"id\": {{ data.id } }
  no-jwe-key: { url: https://h/, signature: none, encrypt: { key: \"-----BEGIN PUBLIC KEY-----\" } }
  no-jwk: { url: https://h/, signature: none, encrypt: { key: { kty: EC, crv: P-256, x: AA, y: AA } } }
subscriptions:
  operator: { topics: [x], endpoint: template, filter: { data.total: { $gt: 1, $frobnicate: 2 } } }
  near: { topics: [x], endpoint: template, filter: { $or: [{ topic: x }, { data.a.0: { $exists: true } }] } }
  path: { topics: [x], endpoint: template, filter: { \"data.items[0].sku\": a } }
  regex: { topics: [x], endpoint: template, filter: { data.a: { $regex: \"(\" } } }
  time: { topics: [x], endpoint: template, filter: { time: { $gt: \"${env:SHORT}\" } } }
";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hookbridge.yaml");
    std::fs::write(&path, config).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(["validate", "--json", "--config"])
        .arg(&path)
        .env("SHORT", "hunter2")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!said.contains("hunter2"), "{said}");
    let lines = said.lines().map(|line| {
        let problem: serde_json::Value = serde_json::from_str(line).expect(line);
        let text = |key: &str| problem[key].as_str().unwrap_or("-").to_owned();
        format!("{}:{} {}", problem["line"], problem["col"], text("message"))
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r#"
3:3 `secret` is missing: signature `stripe` needs one
4:63 the key is 7 bytes long, not 16 to 256
5:44 the secret does not begin with `whsec_`
6:67 the secret does not begin with `whsk_`
7:63 `jsno` is not a value of `format`
8:74 unknown key `rot` in `xml`
16:30 syntax error: unexpected `}`, expected end of variable block
17:67 this is neither a JWK nor a public key in PEM (`-----BEGIN PUBLIC KEY-----`)
18:63 `x` of the JWK is missing, or no base64url of a number of the right length
20:80 there is no operator `$frobnicate`; there are $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $startsWith, $endsWith, $contains, $exist, $regex, $or, $and and $not
21:88 there is no operator `$exists`; did you mean `$exist`?
22:54 the entry of a list is a step of its own: `data.items.0.sku`; `\[` is a bracket inside a key
23:65 bad regular expression, unclosed group
24:62 this is not a time such as `2026-01-31T12:00:00Z`
"#);
}

/// A version is written once, for endpoints that differ: what of it does not fit one of them is
/// named there.
#[test]
fn versions_are_held_to_the_endpoints_that_have_them() {
    let versions = "versions:
  v1: { formats: { order.created: xml, order.changed: { form: { field: x } } } }
  v2: { formats: { \"#\": { template: { query: { a: \"{{ id }}\" }, headers: { stripe-signature: x } } } } }
  v3: { formats: { \"#\": { template: { body: \"{}\" } } } }
  v4: { formats: { \"#\": form } }
sources:
  old: { broker: here, topics: [old], version: v1 }
  new: { broker: here, topics: [new], version: v4 }
";
    let key = "secret: 0123456789abcdef";
    insta::assert_snapshot!(said(&with(&format!("{versions}endpoints:
  a: {{ url: https://h/, signature: none, method: GET, version: v1 }}
  b: {{ url: https://h/, signature: stripe, {key}, version: v2 }}
  c: {{ url: https://h/, signature: none, method: GET, version: v3 }}
  d: {{ url: https://h/, signature: none, method: GET, version: v2 }}
  e: {{ url: https://h/, signature: none, method: GET }}
subscriptions:
  from-all: {{ topics: [x], endpoint: e }}
  from-new: {{ topics: [x], endpoint: e, sources: [new] }}
  from-old: {{ topics: [x], sources: [old], endpoint: {{ url: https://h/, signature: none, method: GET }} }}
  of-its-own: {{ topics: [x], sources: [old], endpoint: d }}
"))), @r"
15:64 this version does not fit: `xml` is a body, and a GET has no body (use another `version`, `method` or `signature` here)
16:79 this version does not fit: the template sets the header `stripe-signature`, which belongs to signature `stripe` (use another `version`, `method` or `signature` here)
17:64 this version does not fit: the template has a `body`, and a GET has no body (use another `version`, `method` or `signature` here)
21:28 the version of source `old` does not fit the endpoint: `xml` is a body, and a GET has no body (give the endpoint a `version` of its own, or the subscription other `sources`)
23:44 the version of source `old` does not fit the endpoint: `xml` is a body, and a GET has no body (give the endpoint a `version` of its own, or the subscription other `sources`)
");
}

#[test]
fn a_form_of_a_version_is_that_of_the_endpoint_s_signature() {
    use hookbridge::subscription::{FormFields, Format as Body};

    let config = parse(&with(
        "versions:
  v1: { formats: { a: form, b: { form: { field: x } } } }
sources:
  shop: { broker: here, topics: [x], version: v1 }
endpoints:
  mails: { url: https://h/, signature: mailchimp, secret: 0123456789abcdef, version: v1 }
  calls: { url: https://h/, signature: twilio, secret: 0123456789abcdef }
  others: { url: https://h/, signature: none }
",
    ))
    .unwrap();
    let forms = |endpoint: &str| {
        let payload = &config.endpoints[endpoint].payload;
        let of_source = payload.of_sources.get("shop");
        let version = payload.version.as_ref().or(of_source).unwrap();
        let formats = version.formats.iter();
        formats
            .map(|(_, format)| match format {
                Body::Form(FormFields::Whole(field)) => field.to_string(),
                Body::Form(FormFields::Flat) => "flat".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(forms("mails"), ["mandrill_events", "x"]);
    assert_eq!(forms("calls"), ["flat", "x"]);
    assert_eq!(forms("others"), ["payload", "x"]);
}

#[test]
fn contracts_are_checked_where_they_stand() {
    let subscription = |rest: &str| {
        with(&format!(
            "subscriptions:\n  a:\n    topics: [t]\n    endpoint: {{ url: https://h/, signature: none }}\n    {rest}\n"
        ))
    };
    for (rest, told) in [
        (
            "max_age: { then: bury }",
            "10:22 `bury` is not a value of `then`",
        ),
        ("max_age: { then: settle }", "`after` is missing"),
        ("max_age: 1ms", "10:14 `max_age` must be from 1s to"),
        (
            "schema:\n      type: object\n      properties:\n        total: { type: nubmer }",
            "13:18 this is not a schema: ",
        ),
        (
            "schema: { $ref: https://example.com/s.json }",
            "10:13 a `$ref` leads nowhere: ",
        ),
        (
            "schema: { allOf: [{ $ref: '#' }] }",
            "10:13 this schema leads back to itself",
        ),
        ("schema: '{'", "10:13 the text of `schema` is not JSON"),
        ("schema: [a]", "10:13 `schema` is text, not a list"),
    ] {
        let said = said(&subscription(rest));
        assert!(said.contains(told), "{rest}: {said}");
    }
    let secret = said(&subscription("schema: ${env:SET}"));
    assert!(
        secret.contains("is not JSON") && !secret.contains("hunter2"),
        "{secret}"
    );
    let json = subscription("schema: '{\"type\": \"object\"}'");
    assert_eq!(said(&json), "no problem");
}
