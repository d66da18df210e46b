//! Messages that are compressed, or written with a schema of a registry: what they say is what filters
//! and formats see, what came is what `raw` sends, and nothing is lost while the registry is away.
//!
//! Messages and registry are those of tests/receivers/registry.py, written by the libraries that
//! services write with; `scripts/setup` installs them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use lapin::BasicProperties;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use crate::receivers::{Receiver as Process, installed, root};
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Kind, TOPIC};
use crate::support::cli::run;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::{SECRET, brokers, eventually};

const WITHIN: Duration = Duration::from_secs(30);

/// The registry, and the messages that it has schemas of.
struct Registry {
    process: Process,
    messages: BTreeMap<String, Vec<u8>>,
}

impl Registry {
    fn start() -> Self {
        Self::start_at(0)
    }

    fn start_at(port: u16) -> Self {
        let mut python = Command::new("python3");
        python
            .arg(root().join("tests/receivers/registry.py"))
            .env("PYTHONPATH", installed("python"))
            .env("PORT", port.to_string());
        let process = Process::start(&mut python);
        let encoded: BTreeMap<String, String> =
            serde_json::from_str(&process.said).expect("messages");
        let decoded = |text: &String| STANDARD.decode(text).expect("base64");
        let messages = encoded
            .iter()
            .map(|(name, text)| (name.clone(), decoded(text)));
        Self {
            messages: messages.collect(),
            process,
        }
    }

    fn message(&self, name: &str) -> &[u8] {
        &self.messages[name]
    }

    /// A source's `decode:`.
    fn decode(&self) -> String {
        decode_at(self.process.port)
    }
}

fn decode_at(port: u16) -> String {
    format!(
        "decode: {{ max_bytes: 1MiB, registry: {{ url: 'http://127.0.0.1:{port}/', timeout: 2s, auth: {{ basic: {{ user: bridge, password: registry-password }} }} }} }}"
    )
}

fn config(sources: &str, subscriptions: &str) -> String {
    format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources:
{sources}
subscriptions:
{subscriptions}"
    )
}

/// A subscription that delivers to a path of its own name.
fn subscription(
    name: &str,
    topic: &str,
    receiver: &Receiver,
    endpoint: &str,
    more: &str,
) -> String {
    let url = receiver.url(&format!("/{name}"));
    format!(
        "  {name}: {{ topics: ['{topic}'], endpoint: {{ url: '{url}', secret: '{SECRET}', {endpoint} }}, retry: {{ schedule: [5s, 5s], jitter: 0 }}{more} }}\n"
    )
}

async fn publish(bridge: &Bridge, topic: &str, headers: &[(&str, &str)], body: &[u8]) {
    let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
    let mut request = reqwest::Client::new().post(url).body(body.to_vec());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.expect("the admin answers");
    assert_eq!(answer.status().as_u16(), 202);
}

fn at<'a>(requests: &'a [Request], path: &str) -> Vec<&'a Request> {
    requests.iter().filter(|it| it.path == path).collect()
}

fn read(request: &Request) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_and_formats_see_what_a_message_says_and_raw_sends_what_came() {
    let registry = Registry::start();
    let receiver = Receiver::accepting().await;
    let large = ", filter: { data.total: { $gte: 100 } }";
    let template = r#"format: { template: { body: '{"of": {{ data.customer.name }}}' } }, headers: { x-team: shop }"#;
    let subscriptions = [
        subscription("large", "orders.#", &receiver, "format: envelope", large),
        subscription("raw", "orders.#", &receiver, "", ""),
        subscription("raw-gzip", "orders.avro", &receiver, "gzip: true", ""),
        subscription(
            "of",
            "orders.avro",
            &receiver,
            template,
            ", filter: { data.customer.card: '4711' }",
        ),
        subscription(
            "less",
            "orders.avro",
            &receiver,
            "fields: { keep: [data.state] }",
            "",
        ),
        subscription(
            "event",
            "orders.avro",
            &receiver,
            "format: cloudevents-binary",
            "",
        ),
    ];
    let sources = format!(
        "  shop: {{ broker: here, topics: ['#'], {} }}",
        registry.decode()
    );
    let bridge = Bridge::start(&config(&sources, &subscriptions.concat())).await;
    let bridge = bridge.ready().await;
    let typed = [("content-type", "application/vnd.shop")];
    for (topic, name) in [
        ("orders.avro", "avro"),
        ("orders.small", "avro_small"),
        ("orders.protobuf", "protobuf"),
        ("orders.item", "protobuf_item"),
        ("orders.json", "json"),
    ] {
        publish(&bridge, topic, &typed, registry.message(name)).await;
    }
    let requests = receiver.wait_for(12, WITHIN).await;
    // Their library takes nothing but UTF-8.
    let mut texts = requests.iter().filter(|it| !it.path.starts_with("/raw"));
    assert!(texts.all(|request| request.verified));

    let mut large: Vec<_> = at(&requests, "/large").into_iter().map(read).collect();
    large.sort_by_key(|event| event["type"].to_string());
    let data: Vec<_> = large.iter().map(|event| &event["data"]).collect();
    assert_eq!(
        data,
        [
            &json!({
                "total": 120.5, "customer": {"name": "\u{c4}da \"Bob\"", "card": "4711"},
                "made": "2026-03-01T12:00:00.123Z", "day": "2026-03-01", "at": "23:59:59.5",
                "key": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "state": "PAID", "token": "//4=",
                "marks": [null, 9_007_199_254_740_993_i64, 0.5, "NEW"], "counts": {"a": 1},
            }),
            &json!({"total": 140}),
            &json!({
                "total": 130.25, "customer": {"name": "\u{c4}da \"Bob\""},
                "madeAt": "2026-03-01T12:00:00.123Z", "state": "PAID", "token": "//4=",
                "items": [{"sku": "a", "price": 1.5}, {}], "cents": "9007199254740993",
            }),
        ]
    );
    let avro = at(&requests, "/large");
    let spelled = avro
        .iter()
        .any(|it| it.body.windows(14).any(|part| part == br#""total":120.50"#));
    assert!(spelled, "every digit of a decimal is there");

    let raw = at(&requests, "/raw");
    for name in ["avro", "avro_small", "protobuf", "protobuf_item", "json"] {
        let came = registry.message(name);
        let same = raw.iter().find(|request| request.body[..] == *came);
        let same = same.unwrap_or_else(|| panic!("{name} is not forwarded as it came"));
        assert_eq!(same.headers["content-type"], "application/vnd.shop");
    }
    let [squeezed] = at(&requests, "/raw-gzip")[..] else {
        panic!("one")
    };
    let mut plain = Vec::new();
    let mut decoder = flate2::write::GzDecoder::new(&mut plain);
    decoder.write_all(&squeezed.body).expect("gzip");
    decoder.finish().expect("gzip");
    assert_eq!(plain, registry.message("avro"));
    assert_eq!(
        read(at(&requests, "/of")[0]),
        json!({"of": "\u{c4}da \"Bob\""})
    );
    let less = at(&requests, "/less")[0];
    assert_eq!(read(less), json!({"state": "PAID"}));
    assert_eq!(less.headers["content-type"], "application/json");
    let event = at(&requests, "/event")[0];
    assert_eq!(event.headers["content-type"], "application/json");
    assert_eq!(read(event)["state"], "PAID");

    let asked: BTreeMap<String, u64> = registry.process.results().await;
    assert_eq!(asked.len(), 5, "{asked:?}");
    assert!(asked.values().all(|count| *count == 1), "{asked:?}");
    let decoded = r#"hookbridge_decode_total{source="shop",result="decoded"}"#;
    assert_eq!(bridge.metric(decoded).await, 5.0);
}

async fn letters(bridge: &Bridge, count: usize) -> Vec<Value> {
    eventually(&format!("{count} letters"), WITHIN, async || {
        let (_, text) = bridge.get("/v1/dead-letters/export").await;
        let letters: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        (letters.len() == count).then_some(letters)
    })
    .await
}

/// A message that cannot be decoded: its topic, its headers, its body, and what is wrong with it.
type Undecodable<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], &'a str);

/// The bytes of a letter's event.
fn body_of(letter: &Value) -> Vec<u8> {
    match (&letter["data_base64"], &letter["text"]) {
        (Value::String(encoded), _) => STANDARD.decode(encoded).expect("base64"),
        (_, Value::String(text)) => text.clone().into_bytes(),
        _ => letter["data"].to_string().into_bytes(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_decoded_is_a_dead_letter_as_it_came_until_its_schema_is_there() {
    let registry = Registry::start();
    let receiver = Receiver::accepting().await;
    let subscriptions = subscription(
        "large",
        "orders.#",
        &receiver,
        "format: envelope",
        ", filter: { data.total: { $gte: 100 } }",
    );
    let sources = format!(
        "  shop: {{ broker: here, topics: ['#'], {} }}",
        registry.decode()
    );
    let bridge = Bridge::start(&config(&sources, &subscriptions)).await;
    let bridge = bridge.ready().await;
    let avro = registry.message("avro");
    let missing = registry.message("avro_missing");
    let bomb = gzip(&vec![0; 2 << 20]);
    let zipped = [("hookbridge-header-content-encoding", "gzip")];
    let rows: [Undecodable<'_>; 6] = [
        (
            "missing",
            &[],
            missing,
            "schema 99: the registry does not have it",
        ),
        (
            "cut",
            &[],
            &avro[..avro.len() - 3],
            "schema 1: it ends before the schema does",
        ),
        ("bomb", &zipped, &bomb, "longer than 1048576 bytes"),
        ("plain", &[], br#"{"total":120}"#, "0x7b"),
        ("no-gzip", &zipped, avro, "not valid gzip"),
        (
            "brotli",
            &[("hookbridge-header-content-encoding", "br")],
            avro,
            "neither gzip nor zstd",
        ),
    ];
    for (name, headers, body, _) in &rows {
        publish(&bridge, &format!("orders.{name}"), headers, body).await;
    }
    // Nobody wants this one, so nobody looks into it.
    publish(&bridge, "invoices.made", &[], b"not looked into").await;
    let letters = letters(&bridge, rows.len()).await;
    for (name, _, body, why) in &rows {
        let topic = format!("orders.{name}");
        let letter = letters
            .iter()
            .find(|letter| letter["topic"] == topic.as_str());
        let letter = letter.unwrap_or_else(|| panic!("no letter of {topic}"));
        assert_eq!(letter["reason"], "decode_failed", "{letter}");
        assert!(letter.to_string().contains(why), "{letter}");
        assert_eq!(body_of(letter), *body, "{letter}");
    }
    let failed = r#"hookbridge_decode_total{source="shop",result="failed"}"#;
    assert_eq!(bridge.metric(failed).await, 6.0);
    assert_eq!(receiver.count(), 0);

    let port = registry.process.port;
    let added = reqwest::Client::new().post(format!("http://127.0.0.1:{port}/schemas"));
    added.send().await.expect("the registry answers");
    // What was not there is not asked for again for some seconds.
    let [request] = eventually("the letter is delivered", WITHIN, async || {
        let filter = r#"{"filter": "topic:orders.missing"}"#;
        bridge.post("/v1/dead-letters/retry", filter).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (receiver.count() > 0).then(|| receiver.requests())
    })
    .await
    .try_into()
    .expect("one");
    assert_eq!(read(&request)["data"]["total"], 120.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_registry_is_away_its_source_waits_and_nothing_is_lost() {
    let registry = Registry::start();
    let (port, messages) = (registry.process.port, registry.messages.clone());
    drop(registry);
    let receiver = Receiver::answering(|request, before| {
        let fails = request.path == "/large" && before == 0;
        Answer::status(if fails { 503 } else { 204 })
    })
    .await;
    let subscriptions = subscription(
        "large",
        "orders.*",
        &receiver,
        "format: envelope",
        ", filter: { data.total: { $gte: 100 } }",
    ) + &subscription("note", "notes.*", &receiver, "format: envelope", "");
    let sources = format!(
        "  shop: {{ broker: here, topics: ['orders.*'], {} }}\n  notes: {{ broker: here, topics: ['notes.*'] }}",
        decode_at(port)
    );
    let mut bridge = Bridge::start(&config(&sources, &subscriptions))
        .await
        .ready()
        .await;
    publish(&bridge, "orders.avro", &[], &messages["avro"]).await;
    eventually("the wait is told", WITHIN, async || {
        let (status, text) = bridge.get("/readyz").await;
        (status == 503 && text.contains("registry shop")).then_some(())
    })
    .await;
    let paused = r#"hookbridge_intake_paused{source="shop",reason="registry"}"#;
    assert_eq!(bridge.metric(paused).await, 1.0);
    assert!(bridge.log().contains("the schema registry does not answer"));
    // Another source has its events delivered meanwhile.
    publish(&bridge, "notes.made", &[], b"{}").await;
    let requests = receiver.wait_for(1, WITHIN).await;
    assert_eq!(requests[0].path, "/note");

    let registry = Registry::start_at(port);
    let requests = receiver.wait_for(2, WITHIN).await;
    let first = at(&requests, "/large")[0].clone();
    assert_eq!(read(&first)["data"]["total"], 120.5);
    // It has failed once and is parked: it comes back when nobody knows the schema any more.
    let parked_for = |reason: &str| {
        format!(r#"hookbridge_deliveries_parked_total{{subscription="large",reason="{reason}"}}"#)
    };
    let retried = parked_for("retry");
    eventually("it is parked", WITHIN, async || {
        (bridge.metric(&retried).await >= 1.0).then_some(())
    })
    .await;
    drop(registry);
    bridge.kill9_and_restart().await;
    eventually("the wait is told", WITHIN, async || {
        (bridge.metric(paused).await == 1.0).then_some(())
    })
    .await;
    let held = parked_for("hold");
    eventually("it is held", WITHIN, async || {
        (bridge.metric(&held).await >= 1.0).then_some(())
    })
    .await;
    let _registry = Registry::start_at(port);
    let requests = receiver.wait_for(3, WITHIN).await;
    let again = at(&requests, "/large")[1];
    assert_eq!((&again.id, &again.body), (&first.id, &first.body));
    bridge.wait_ready(WITHIN).await;
    assert_eq!(bridge.metric(paused).await, 0.0);
    letters(&bridge, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_registry_is_asked_of_another_one_after_a_reload() {
    let gone = Registry::start();
    let (port, messages) = (gone.process.port, gone.messages.clone());
    drop(gone);
    let receiver = Receiver::accepting().await;
    let subscriptions = subscription("total", "#", &receiver, "format: envelope", "");
    let with = |decode: &str| {
        let source = format!("  shop: {{ broker: here, topics: ['#'], {decode} }}");
        config(&source, &subscriptions)
    };
    let bridge = Bridge::start(&with(&decode_at(port))).await.ready().await;
    publish(&bridge, "orders.avro", &[], &messages["avro"]).await;
    let paused = r#"hookbridge_intake_paused{source="shop",reason="registry"}"#;
    eventually("it waits", WITHIN, async || {
        (bridge.metric(paused).await == 1.0).then_some(())
    })
    .await;

    let registry = Registry::start();
    bridge.write_config(&with(&registry.decode()));
    let (status, said) = bridge.post("/v1/config/reload", "").await;
    assert_eq!(status, 200, "{said}");
    let requests = receiver.wait_for(1, WITHIN).await;
    assert_eq!(read(&requests[0])["data"]["total"], 120.5);
    bridge.wait_ready(WITHIN).await;
    assert_eq!(bridge.metric(paused).await, 0.0);
    receiver.quiet_for(Duration::from_secs(1), WITHIN).await;
    assert_eq!(receiver.count(), 1, "repeated");
}

/// A compressed message as a service publishes it, with what says so where its broker has it.
async fn send(bus: &Bus, coding: &str, body: &[u8]) {
    match &bus.kind {
        Kind::RabbitMq { shop, .. } => {
            let properties = BasicProperties::default()
                .with_message_id("evt_1".into())
                .with_content_type("application/vnd.shop".into())
                .with_content_encoding(coding.into());
            shop.publish(TOPIC, body, properties).await;
        }
        Kind::Kafka { bootstrap, topic } => {
            let producer: FutureProducer = rdkafka::ClientConfig::new()
                .set("bootstrap.servers", bootstrap)
                .create()
                .expect("a producer");
            let header = |key, value| Header {
                key,
                value: Some(value),
            };
            let headers = OwnedHeaders::new()
                .insert(header("content-encoding", coding))
                .insert(header("content-type", "application/vnd.shop"));
            let record = FutureRecord::<(), _>::to(topic)
                .payload(body)
                .headers(headers);
            let sent = producer.send(record, Duration::from_secs(10));
            sent.await.expect("confirmed");
        }
        Kind::Embedded => unreachable!("it has no such property"),
    }
}

async fn compressed_messages_are_read(bus: Bus) {
    let registry = Registry::start();
    let receiver = Receiver::accepting().await;
    let large = ", filter: { data.total: { $gte: 100 } }";
    let subscriptions = subscription("large", "#", &receiver, "format: envelope", large)
        + &subscription("raw", "#", &receiver, "", "");
    let source = "sources: { orders: { ";
    let config = bus.config(&subscriptions);
    assert!(config.contains(source));
    let config = config.replace(source, &format!("{source}{}, ", registry.decode()));
    let bridge = Bridge::start(&config).await.ready().await;
    let zstd = zstd::encode_all(registry.message("avro"), 3).expect("zstd");
    let gzip = gzip(registry.message("protobuf"));
    let both = [("zstd", zstd), ("gzip", gzip)];
    for (coding, body) in &both {
        send(&bus, coding, body).await;
    }
    let requests = receiver.wait_for(4, WITHIN).await;
    let mut totals: Vec<_> = at(&requests, "/large")
        .into_iter()
        .map(|request| read(request)["data"]["total"].to_string())
        .collect();
    totals.sort();
    assert_eq!(totals, ["120.5", "130.25"]);
    for (coding, body) in &both {
        let raw = at(&requests, "/raw");
        let same = raw.iter().find(|request| request.body[..] == body[..]);
        let same = same.unwrap_or_else(|| panic!("{coding} is not forwarded as it came"));
        assert_eq!(same.headers["content-encoding"], *coding);
        assert_eq!(same.headers["content-type"], "application/vnd.shop");
    }
    letters(&bridge, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_messages_are_read_by_their_content_encoding() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    compressed_messages_are_read(Bus::rabbitmq(amqp).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_messages_are_read_by_their_content_encoding() {
    let bootstrap = brokers::env("HOOKBRIDGE_TEST_KAFKA");
    compressed_messages_are_read(Bus::kafka(bootstrap, 1).await).await;
}

#[test]
fn mistakes_are_told_at_their_places() {
    let sources = [
        "{ broker: here, topics: [a], decode: gzip }",
        "{ broker: here, topics: [b], decode: { content_encoding: brotli } }",
        "{ broker: here, topics: [c], decode: { format: avro } }",
        "{ broker: here, topics: [d], decode: { format: thrift, registry: {} } }",
        "{ broker: here, topics: [e], decode: { registry: { url: 'ftp://r' } } }",
        "{ broker: here, topics: [f], decode: { registry: { url: 'http://u:hunter2@r' } } }",
        "{ broker: here, topics: [g], decode: { max_bytes: 1GiB, registry: { url: 'http://r/?a=1', timeout: 0s, cache: 0 } } }",
        "{ broker: here, topics: [h], decode: { registry: { url: 'http://r', auth: { basic: { user: u } } } } }",
        "{ broker: here, topics: [i], decode: { regisrty: { url: 'http://r' }, format: avro } }",
    ];
    let mut text = "brokers: { here: { embedded: {} } }\nsources:\n".to_owned();
    for (name, source) in ('a'..).zip(sources) {
        text.push_str(&format!("  {name}: {source}\n"));
    }
    let folder = std::path::Path::new("/etc/hookbridge");
    let problems = hookbridge::config::parse(&text, "hookbridge.yaml", folder, &|_| None);
    let problems = problems.expect_err("nine mistakes");
    let shown = problems.render(hookbridge::config::Format::Human, false);
    assert!(!shown.contains("hunter2"), "{shown}");
    let lines: Vec<_> = problems
        .list()
        .iter()
        .map(|problem| format!("{}:{} {}", problem.line, problem.col, problem.message))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    3:43 `decode` is a map, not text
    4:63 `brotli` is not a value of `content_encoding`
    5:45 `format` is of schemas, and there is no `registry` that has them
    6:53 `thrift` is not a value of `format`
    6:61 `url` is missing
    7:62 this is not an `http:` or `https:` URL
    8:62 a user in the URL of a registry is not used
    9:56 `max_bytes` must be from 1 to 268435456 bytes
    9:79 the URL of a registry has neither query nor fragment
    9:105 `timeout` must be from 100ms to 1m
    9:116 `0` is not a whole number from 1 to 100000
    10:82 `password` is missing
    11:45 unknown key `regisrty` in `decode`
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_letters_and_of_replays_see_what_a_message_says() {
    let receiver = Receiver::answering(|_, _| Answer::status(400)).await;
    let url = receiver.url("/");
    let subscriptions = format!(
        "  large: {{ topics: [orders], filter: {{ data.total: {{ $gte: 100 }} }}, retry: {{ max_attempts: 1 }}, \
         endpoint: {{ url: '{url}', signature: none }} }}\n"
    );
    let sources = "  orders: { broker: here, topics: [orders], decode: {} }\n";
    let config = config(sources, &subscriptions);
    let config = config.replace("embedded: {}", "embedded: { retention: 1h }");
    let bridge = Bridge::start(&config).await.ready().await;
    let zipped = [("hookbridge-header-content-encoding", "gzip")];
    for total in [7, 120, 300] {
        let body = gzip(json!({ "total": total }).to_string().as_bytes());
        publish(&bridge, "orders", &zipped, &body).await;
    }
    publish(&bridge, "orders", &zipped, b"no gzip").await;
    let count = async |filter: &str| {
        let path = format!("/v1/dead-letters/count?filter={filter}");
        let (status, answer) = bridge.get(&path).await;
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["count"].as_u64().expect("a number")
    };
    eventually("the letters", WITHIN, async || {
        (count("").await == 3).then_some(())
    })
    .await;
    for (filter, letters) in [
        ("data.total:%3E=100", 2),
        ("data.total:120", 1),
        ("-data.total:120", 2),
        ("subscription:large%20data.total:300", 1),
        ("subscription:other%20data.total:300", 0),
        ("reason:decode_failed%20-data.total:*", 1),
    ] {
        assert_eq!(count(filter).await, letters, "{filter}");
    }
    let replay = async |filter: &str| {
        let mut arguments = vec!["replay", "--source", "orders", "--subscription", "large"];
        arguments.extend(["--since", "1h", "--dry-run", "--json"]);
        if !filter.is_empty() {
            arguments.extend(["--filter", filter]);
        }
        let ran = run(&bridge.config_path(), &arguments).await;
        let report: Value = serde_json::from_str(&ran.out).expect("JSON");
        report["matched"].as_u64().expect("a number")
    };
    assert_eq!(replay("").await, 2, "the subscription's own filter");
    assert_eq!(replay("data.total:>=200").await, 1);
}
