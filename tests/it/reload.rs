//! Reload: over the API, by itself, under load; sources paused; what is logged.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::Receiver;
use crate::support::{brokers, eventually};

const SOON: Duration = Duration::from_secs(20);

async fn publish(bridge: &Bridge, topic: &str, body: &str) {
    let path = format!("/v1/topics/{topic}/events");
    let (status, answer) = bridge.post(&path, body).await;
    assert_eq!(status, 202, "{answer}");
}

async fn reload(bridge: &Bridge, config: &str) -> (u16, Value) {
    bridge.write_config(config);
    let (status, answer) = bridge.post("/v1/config/reload", "").await;
    (status, serde_json::from_str(&answer).expect("JSON"))
}

/// What `/readyz` notes of the config.
async fn note(bridge: &Bridge) -> Option<String> {
    let (status, text) = bridge.get("/readyz").await;
    assert_eq!(status, 200, "{text}");
    let ready: Value = serde_json::from_str(&text).expect("JSON");
    let components = ready["components"].as_array().expect("a list").clone();
    let mut components = components.into_iter();
    let config = components.find(|one| one["name"] == "config")?;
    Some(config["why"].as_str().expect("a text").to_owned())
}

async fn put(bridge: &Bridge, path: &str, body: Value) -> (u16, Value) {
    let url = format!("http://{}{path}", bridge.admin);
    let answer = reqwest::Client::new().put(url).json(&body).send().await;
    let answer = answer.expect("the admin answers");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

fn command(bridge: &Bridge, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(args)
        .arg("--config")
        .arg(bridge.config_path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_says_what_has_changed_and_what_needs_a_restart() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let url = receiver.url("/");
    let first = bus.config(&(subscription("a", "a", &url, "") + &subscription("b", "b", &url, "")));
    let bridge = Bridge::start(&first).await.ready().await;
    let second = bus
        .config(&(subscription("a", "a.*", &url, "") + &subscription("c", "c", &url, "")))
        .replace(
            "{ orders: { broker: here, topics: ['#'] } }",
            "{ orders: { broker: here, topics: ['#'], max_body: 10 }, more: { broker: here, topics: [x] } }",
        );
    let (status, said) = reload(&bridge, &second).await;
    assert_eq!(status, 200, "{said}");
    let named = |of: &Value, how: &str| of[how].clone();
    assert_eq!(named(&said["subscriptions"], "added"), json!(["c"]));
    assert_eq!(named(&said["subscriptions"], "changed"), json!(["a"]));
    assert_eq!(named(&said["subscriptions"], "removed"), json!(["b"]));
    assert_eq!(named(&said["endpoints"], "added"), json!(["c"]));
    assert_eq!(named(&said["sources"], "added"), json!(["more"]));
    assert_eq!(named(&said["sources"], "changed"), json!(["orders"]));
    assert_eq!(said["needs_restart"], json!(["sources.more"]));
    let noted = note(&bridge).await.expect("a note");
    assert_eq!(noted, "a restart is needed for: sources.more");
    assert_eq!(bridge.metric("hookbridge_config_restart_needed").await, 1.0);
    // What the source asks of its events holds at once.
    publish(&bridge, "c", "0123456789+").await;
    publish(&bridge, "c", "short").await;
    assert_eq!(&receiver.wait_for(1, SOON).await[0].body[..], b"short");

    let (status, said) = reload(&bridge, &second.replace("topics: ['c']", "topcis: ['c']")).await;
    assert_eq!(status, 422, "{said}");
    let detail = said["detail"].as_str().expect("a text");
    assert!(detail.contains("unknown key `topcis`"), "{detail}");
    let errors = said["errors"].as_array().expect("one by one");
    let at = bridge.config_place("topcis");
    assert_eq!(
        (&errors[0]["line"], &errors[0]["column"]),
        (&json!(at.0), &json!(at.1))
    );
    let why = errors[0]["detail"].as_str().expect("a text");
    assert!(why.contains("unknown key `topcis`"), "{why}");
    assert_eq!(errors[0]["help"], "did you mean `topics`?");
    let noted = note(&bridge).await.expect("a note");
    assert!(
        noted.starts_with("the config before stays in force: the file has problems ("),
        "{noted}"
    );
    assert_eq!(bridge.metric("hookbridge_config_reload_failed").await, 1.0);
    publish(&bridge, "c", "still").await;
    receiver.wait_for(2, SOON).await;

    bridge.write_config(&first);
    let told = command(&bridge, &["reload"]);
    assert!(told.contains("subscriptions added: b\n"), "{told}");
    assert_eq!(note(&bridge).await, None);
    assert_eq!(bridge.metric("hookbridge_config_reload_failed").await, 0.0);
    assert!(command(&bridge, &["reload"]).contains("nothing has changed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_file_is_read_again_when_it_has_changed() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let url = receiver.url("/");
    let config =
        |topic: &str| bus.config(&subscription("crm", topic, &url, "")) + "reload: { watch: 1s }\n";
    let bridge = Bridge::start(&config("a")).await.ready().await;
    bridge.write_config(&config("b"));
    eventually("the reload", SOON, async || {
        bridge.log().contains("changed=[\"crm\"]").then_some(())
    })
    .await;
    publish(&bridge, "b", "{}").await;
    receiver.wait_for(1, SOON).await;
    bridge.write_config(&config("b").replace("topics: ['b']", "topcis: ['b']"));
    eventually("the refusal", SOON, async || note(&bridge).await).await;
    bridge.write_config(&config("c"));
    eventually("the next reload", SOON, async || {
        note(&bridge).await.is_none().then_some(())
    })
    .await;
    publish(&bridge, "c", "{}").await;
    receiver.wait_for(2, SOON).await;
    let of = |result: &str| format!("hookbridge_config_reloads_total{{result=\"{result}\"}}");
    assert_eq!(bridge.metric(&of("ok")).await, 2.0);
    assert_eq!(bridge.metric(&of("refused")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_under_load_loses_and_repeats_nothing() {
    const EVENTS: usize = 2_000;
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let url = receiver.url("/");
    let config = |turn: usize| {
        let timeout = format!(", timeout: {}s, max_age: {}h", 5 + turn % 7, 1 + turn % 3);
        let other = format!("orders.other{turn}");
        let source = format!("topics: ['#'], max_body: {}KiB }}", 1 + turn % 5);
        bus.config(
            &(subscription("crm", "orders.created", &url, &timeout)
                + &subscription("other", &other, &url, "")),
        )
        .replace("topics: ['#'] }", &source)
    };
    let bridge = Bridge::start(&config(0)).await.ready().await;
    let publishing = async {
        for batch in 0..EVENTS / 100 {
            let lines: Vec<_> = (0..100)
                .map(|number| format!("{{\"n\": {}}}", batch * 100 + number))
                .collect();
            bus.publish(&bridge, &lines).await;
        }
    };
    let reloading = async {
        let mut turn = 0;
        while receiver.count() < EVENTS {
            turn += 1;
            let (status, said) = reload(&bridge, &config(turn)).await;
            assert_eq!(status, 200, "{said}");
        }
        turn
    };
    let ((), turns) = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(publishing, reloading)
    })
    .await
    .expect("all of it in a minute");
    assert!(turns > 3, "only {turns} reloads");
    receiver.quiet_for(Duration::from_secs(1), SOON).await;
    let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for request in receiver.requests() {
        *seen.entry(request.body.to_vec()).or_default() += 1;
    }
    assert_eq!(seen.len(), EVENTS, "lost");
    assert_eq!(receiver.count(), EVENTS, "repeated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_source_is_not_taken_from() {
    pausing(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_queue_gets_its_messages_back() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    pausing(bus).await;
}

async fn pausing(bus: Bus) {
    let receiver = Receiver::accepting().await;
    let config = bus.config(&subscription("crm", "orders.#", &receiver.url("/"), ""));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 1}".to_owned()]).await;
    receiver.wait_for(1, SOON).await;
    let paused = "hookbridge_intake_paused{source=\"orders\",reason=\"operator\"}";
    let (status, said) = bridge.post("/v1/sources/orders/pause", "").await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(bridge.metric(paused).await, 1.0);
    assert_eq!(bridge.post("/v1/sources/none/pause", "").await.0, 404);
    bus.publish(&bridge, &["{\"n\": 2}".to_owned(), "{\"n\": 3}".to_owned()])
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Also over a restart, which is ready all the same.
    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    assert_eq!(bridge.metric(paused).await, 1.0);
    let (_, sources) = bridge.get("/v1/sources").await;
    assert!(sources.contains("\"paused\":true"), "{sources}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(receiver.count(), 1, "something was taken");
    assert_eq!(command(&bridge, &["resume", "--all"]), "orders: active\n");
    receiver.wait_for(3, SOON).await;
    assert_eq!(bridge.metric(paused).await, 0.0);
    let told = command(&bridge, &["pause", "--source", "orders"]);
    assert!(told.starts_with("orders: paused"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_can_be_changed_while_it_runs() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let config = bus.config(&subscription("crm", "orders.#", &receiver.url("/"), ""));
    let bridge = Bridge::start(&config).await.ready().await;
    assert_eq!(command(&bridge, &["log"]), "info\n");
    publish(&bridge, "orders.created", "{}").await;
    receiver.wait_for(1, SOON).await;
    assert!(!bridge.log().contains("DEBUG"));
    let filter = "info,hookbridge::pipeline=debug";
    let (status, said) = put(&bridge, "/v1/log", json!({ "filter": filter })).await;
    assert_eq!((status, &said["filter"]), (200, &json!(filter)));
    publish(&bridge, "orders.created", "{}").await;
    eventually("a line of debug", SOON, async || {
        bridge.log().contains("DEBUG").then_some(())
    })
    .await;
    for wrong in [
        json!({ "filter": "info,=" }),
        json!({ "filter": "" }),
        json!({ "level": "info" }),
    ] {
        let (status, said) = put(&bridge, "/v1/log", wrong).await;
        assert_eq!(status, 400, "{said}");
    }
    assert_eq!(command(&bridge, &["log"]), format!("{filter}\n"));
    assert_eq!(command(&bridge, &["log", "warn"]), "warn\n");
}
