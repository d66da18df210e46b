//! Reload: over the API, by itself, under load; sources paused; what is logged.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Kind};
use crate::support::receiver::{Answer, Receiver};
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
        )
        + "limits: { due_window: 9 }\n";
    let (status, said) = reload(&bridge, &second).await;
    assert_eq!(status, 200, "{said}");
    let named = |of: &Value, how: &str| of[how].clone();
    assert_eq!(named(&said["subscriptions"], "added"), json!(["c"]));
    assert_eq!(named(&said["subscriptions"], "changed"), json!(["a"]));
    assert_eq!(named(&said["subscriptions"], "removed"), json!(["b"]));
    assert_eq!(named(&said["endpoints"], "added"), json!(["c"]));
    assert_eq!(named(&said["sources"], "added"), json!(["more"]));
    assert_eq!(named(&said["sources"], "changed"), json!(["orders"]));
    assert_eq!(said["needs_restart"], json!(["limits.due_window"]));
    let noted = note(&bridge).await.expect("a note");
    assert_eq!(noted, "a restart is needed for: limits.due_window");
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
async fn embedded_sources_that_change_under_load_lose_and_repeat_nothing() {
    changing_sources(Bus::embedded(), Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_come_change_and_go_under_load_lose_and_repeat_nothing() {
    let amqp = brokers::env("HOOKBRIDGE_TEST_AMQP");
    // The queue of the other one is there before its source, and keeps what is published meanwhile.
    let (bus, more) = (Bus::rabbitmq(amqp.clone()), Bus::rabbitmq_classic(amqp));
    changing_sources(bus.await, more.await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_come_change_and_go_under_load_lose_and_repeat_nothing() {
    let bootstrap = brokers::env("HOOKBRIDGE_TEST_KAFKA");
    let (bus, more) = (Bus::kafka(bootstrap.clone(), 3), Bus::kafka(bootstrap, 1));
    changing_sources(bus.await, more.await).await;
}

/// Every turn another source comes or goes beside `orders`, which every other turn changes itself, each
/// time while its events are being delivered.
async fn changing_sources(bus: Bus, more: Bus) {
    const TURNS: usize = 4;
    const BATCH: usize = 200;
    let slowly =
        || Receiver::answering(|_, _| Answer::status(204).after(Duration::from_millis(100)));
    let (receiver, other) = (slowly().await, slowly().await);
    let is_there = |turn: usize| turn % 2 == 1;
    let config = |turn: usize| {
        let window = format!(", window: {} }}", 40 + turn / 2);
        let orders = bus.source();
        let orders = orders.strip_suffix(" }").expect("a mapping").to_owned() + &window;
        let mut subscriptions = subscription("crm", "#", &receiver.url("/"), ", sources: [orders]");
        let mut sources = format!("orders: {orders}");
        if is_there(turn) {
            let source = match more.kind {
                Kind::Embedded => "{ broker: here, topics: [more] }".to_owned(),
                _ => more.source(),
            };
            sources += &format!(", more: {source}");
            subscriptions += &subscription("other", "#", &other.url("/"), ", sources: [more]");
        }
        let plain = format!("sources: {{ orders: {} }}", bus.source());
        let config = bus.config(&subscriptions);
        assert!(config.contains(&plain));
        let config = config.replace(&plain, &format!("sources: {{ {sources} }}"));
        match bus.kind {
            // Else what is for the other one would be of this one too.
            Kind::Embedded => config.replace("here, topics: ['#']", "here, topics: ['orders.#']"),
            _ => config,
        }
    };
    let bridge = Bridge::start(&config(0)).await.ready().await;
    let bodies = |of: &str, turn: usize, many: usize| -> Vec<String> {
        let numbers = (turn * many)..((turn + 1) * many);
        numbers
            .map(|n| format!("{{\"n\": \"{of}-{n}\"}}"))
            .collect()
    };
    let mut expected_of_other = 0;
    for turn in 1..=TURNS {
        bus.publish(&bridge, &bodies("orders", turn, BATCH)).await;
        let taken = receiver.count();
        let (status, said) = reload(&bridge, &config(turn)).await;
        assert_eq!(
            (status, &said["needs_restart"]),
            (200, &json!([])),
            "{said}"
        );
        let differing = match is_there(turn) {
            true => "added",
            false => "removed",
        };
        assert_eq!(said["sources"][differing], json!(["more"]), "{said}");
        assert!(taken < turn * BATCH, "nothing was under way");
        if !is_there(turn) {
            // What is taken while it is being stopped goes back, or to nobody where nobody wants it.
            eventually("the end of the source", SOON, async || {
                let log = bridge.log();
                let ended = log
                    .lines()
                    .filter(|line| line.contains("not taken from any more"));
                let ended = ended.filter(|line| line.contains("source=more")).count();
                (ended == turn / 2).then_some(())
            })
            .await;
        }
        if let Kind::Embedded = more.kind {
            for body in bodies("more", turn, 5) {
                // Without a source it is not kept.
                let (status, _) = bridge.post("/v1/topics/more/events", &body).await;
                assert_eq!(status, 202);
            }
            expected_of_other += 5 * usize::from(is_there(turn));
        } else {
            more.publish(&bridge, &bodies("more", turn, 5)).await;
            // What comes meanwhile is taken when it is back.
            expected_of_other = 5 * (turn - usize::from(!is_there(turn)));
        }
        receiver
            .wait_for(turn * BATCH, Duration::from_secs(60))
            .await;
        other
            .wait_for(expected_of_other, Duration::from_secs(60))
            .await;
    }
    receiver.quiet_for(Duration::from_secs(1), SOON).await;
    for (receiver, expected) in [(&receiver, TURNS * BATCH), (&other, expected_of_other)] {
        let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for request in receiver.requests() {
            *seen.entry(request.body.to_vec()).or_default() += 1;
        }
        assert_eq!(seen.len(), expected, "lost");
        assert_eq!(receiver.count(), expected, "repeated");
    }
    let log = bridge.log();
    let stopped = log
        .lines()
        .filter(|line| line.contains("the source is stopped"));
    let orders = stopped
        .filter(|line| line.contains("source=orders"))
        .count();
    assert_eq!(orders, TURNS / 2, "{log}");
    let (_, sources) = bridge.get("/v1/sources").await;
    assert!(!sources.contains("more"), "{sources}");
}

/// Nothing is taken by the old name after the subscription waits for the new one: it would be nobody's.
/// The failpoint makes the time between the two longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_renamed_with_its_subscription_loses_and_repeats_nothing() {
    const EVENTS: usize = 600;
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    let receiver =
        Receiver::answering(|_, _| Answer::status(204).after(Duration::from_millis(5))).await;
    let config = |name: &str| {
        let only = format!(", sources: [{name}]");
        let config = bus.config(&subscription("crm", "#", &receiver.url("/"), &only));
        let source = bus.source();
        let source = source.strip_suffix(" }").expect("a mapping");
        let renamed = format!("sources: {{ {name}: {source}, window: 8 }} }}");
        config.replace(
            &format!("sources: {{ orders: {} }}", bus.source()),
            &renamed,
        )
    };
    let stall = "subscriptions reloaded=stall:config";
    let bridge = Bridge::start_with(&config("first"), "HOOKBRIDGE_FAILPOINTS", stall).await;
    let bridge = bridge.ready().await;
    let bodies: Vec<_> = (0..EVENTS).map(|n| format!("{{\"n\": {n}}}")).collect();
    bus.publish(&bridge, &bodies).await;
    for (turn, name) in ["second", "third", "fourth"].into_iter().enumerate() {
        receiver.wait_for(100 * (turn + 1), SOON).await;
        let (status, said) = reload(&bridge, &config(name)).await;
        assert_eq!(
            (status, &said["needs_restart"]),
            (200, &json!([])),
            "{said}"
        );
        assert!(receiver.count() < EVENTS, "nothing was under way");
    }
    receiver.wait_for(EVENTS, Duration::from_secs(60)).await;
    receiver.quiet_for(Duration::from_secs(1), SOON).await;
    let mut seen: Vec<_> = receiver.requests().into_iter().map(|r| r.body).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(
        (seen.len(), receiver.count()),
        (EVENTS, EVENTS),
        "lost, or repeated"
    );
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
