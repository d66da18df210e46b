//! Instances of a group have the same subscriptions, and know the same of endpoints.

use std::time::{Duration, Instant};

use futures_util::future::join;
use lapin::options::QueueDeleteOptions;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::registration_support::{
    Came, KEY, OTHER_KEY, SOON, ask, config, get, post, publish, to,
};
use crate::support::bridge::Bridge;
use crate::support::brokers::{self, Own};
use crate::support::bus::{Bus, Kind};
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const ALL: &str = "/v1/subscriptions";
const CRM: &str = "/v1/subscriptions/crm";
/// What one does is on the other within a second; within this where the machine has much else to do.
const PROMPTLY: Duration = Duration::from_secs(10);

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::Bus::kafka(super::brokers::env("HOOKBRIDGE_TEST_KAFKA"), 1).await).await;
            })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::Bus::rabbitmq(super::brokers::env("HOOKBRIDGE_TEST_AMQP")).await).await;
            })*
        }
    };
}

on_both!(
    what_one_makes_the_other_delivers,
    of_two_at_the_same_time_one_is_first,
    an_empty_data_dir_catches_up,
    what_an_endpoint_has_said_is_known_to_all,
    a_name_that_is_used_again_is_found_after_a_restart,
    a_new_key_on_one_takes_nothing_out_of_force_on_the_other,
    a_log_that_is_lost_under_a_running_instance_is_filled_again,
    a_pause_outlives_a_config_that_only_one_has,
);

fn config_of(bus: &Bus) -> String {
    format!(
        "{}store_key: '{KEY}'\n",
        bus.config("").replace("subscriptions:\n", "")
    )
}

/// The same, of an instance that takes nothing.
fn without_sources(config: &str) -> String {
    let lines = config.lines().filter(|line| !line.starts_with("sources:"));
    lines.map(|line| format!("{line}\n")).collect()
}

async fn two(one: &str, other: &str) -> (Bridge, Bridge) {
    let (one, other) = join(Bridge::start(one), Bridge::start(other)).await;
    join(one.ready(), other.ready()).await
}

/// All subscriptions, as far as they are the same everywhere.
async fn all(bridge: &Bridge) -> Value {
    let page = get(bridge, ALL).await.with(200).body;
    let mut all = page["subscriptions"].clone();
    for one in all.as_array_mut().expect("a list") {
        one["parked"] = Value::Null;
    }
    all
}

async fn same_within(one: &Bridge, other: &Bridge, within: Duration) {
    eventually("both have the same", within, async || {
        (all(one).await == all(other).await).then_some(())
    })
    .await;
}

async fn state_of(bridge: &Bridge, which: &str) -> Value {
    get(bridge, which).await.with(200).body["state"].clone()
}

async fn on_the_other(other: &Bridge, which: &str) -> Came {
    eventually("the other has it", PROMPTLY, async || {
        let seen = get(other, which).await;
        (seen.status == 200).then_some(seen)
    })
    .await
}

async fn what_one_makes_the_other_delivers(bus: &Bus) {
    let receiver = Receiver::accepting().await;
    let config = config_of(bus);
    let (maker, taker) = two(&without_sources(&config), &config).await;
    let made = post(&maker, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    let seen = on_the_other(&taker, CRM).await;
    assert_eq!(seen.body["uid"], made.body["uid"]);
    assert_eq!(seen.header("etag"), made.header("etag"));
    bus.publish(&taker, &["{}".to_owned()]).await;
    let came = receiver.wait_for(1, SOON).await;
    let verifier =
        Webhook::new(made.body["secret"].as_str().expect("shown once")).expect("a secret");
    assert!(verifier.verify(&came[0].body, &came[0].headers).is_ok());

    // From the answer of one to its being there on the other; the best of a few, since tests run
    // beside each other.
    let mut best = PROMPTLY;
    for number in 0..5 {
        let name = format!("more{number}");
        let mut body = to(&name, &receiver.url("/"));
        body["topics"] = json!(["nothing"]);
        post(&maker, ALL, &body).await.with(201);
        let began = Instant::now();
        on_the_other(&taker, &format!("{ALL}/{name}")).await;
        best = best.min(began.elapsed());
    }
    println!("the other instance had it after {best:?}");
    assert!(best < Duration::from_secs(1), "{best:?}");

    // One takes from a source that the other does not have.
    for bridge in [&maker, &taker] {
        let (status, ready) = bridge.get("/readyz").await;
        assert_eq!(status, 200, "{ready}");
        assert!(ready.contains("config differs from this one's"), "{ready}");
        assert_eq!(bridge.metric("hookbridge_state_config_differs ").await, 1.0);
        assert!(
            bridge
                .log()
                .contains("run with another config than this one")
        );
    }

    let changed = ask(
        &taker,
        Method::PATCH,
        CRM,
        Some(&json!({ "timeout": "3s" })),
        &[],
    )
    .await
    .with(200);
    post(&maker, &format!("{CRM}/pause"), &Value::Null)
        .await
        .with(200);
    eventually("it is paused on the other", PROMPTLY, async || {
        (state_of(&taker, CRM).await == "paused").then_some(())
    })
    .await;
    let now = get(&maker, CRM).await.with(200);
    assert_eq!(now.header("etag"), changed.header("etag"));
    post(&taker, &format!("{CRM}/resume"), &Value::Null)
        .await
        .with(200);
    same_within(&maker, &taker, PROMPTLY).await;
    assert_eq!(state_of(&maker, CRM).await, "active");

    ask(&maker, Method::DELETE, CRM, None, &[]).await.with(204);
    eventually("it is gone on the other", PROMPTLY, async || {
        (get(&taker, CRM).await.status == 404).then_some(())
    })
    .await;
    let again = post(&taker, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    assert_ne!(again.body["uid"], made.body["uid"]);
    same_within(&maker, &taker, PROMPTLY).await;
}

async fn of_two_at_the_same_time_one_is_first(bus: &Bus) {
    let config = config_of(bus);
    let (one, other) = two(&config, &config).await;
    let url = "http://127.0.0.1:9/";
    for round in 0..5 {
        let name = format!("crm{round}");
        let path = format!("{ALL}/{name}");
        let body = to(&name, url);
        let (a, b) = join(post(&one, ALL, &body), post(&other, ALL, &body)).await;
        let mut statuses = [a.status, b.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{:#} {:#}", a.body, b.body);
        let tag = if a.status == 201 {
            a.header("etag")
        } else {
            b.header("etag")
        };
        same_within(&one, &other, PROMPTLY).await;
        let change = |timeout: &str| json!({ "timeout": timeout });
        let (first, second) = (change("3s"), change("4s"));
        let headers = [("if-match", tag.as_str())];
        let (a, b) = join(
            ask(&one, Method::PATCH, &path, Some(&first), &headers),
            ask(&other, Method::PATCH, &path, Some(&second), &headers),
        )
        .await;
        let mut statuses = [a.status, b.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{:#} {:#}", a.body, b.body);
        let winner = if a.status == 200 { &a } else { &b };
        for bridge in [&one, &other] {
            let tag = winner.header("etag");
            eventually("the first one holds", PROMPTLY, async || {
                let now = get(bridge, &path).await;
                (now.header("etag") == tag).then_some(())
            })
            .await;
            let now = get(bridge, &path).await.body;
            assert_eq!(now["subscription"], winner.body["subscription"]);
        }
    }
    let once = [("idempotency-key", "k")];
    let body = to("erp", url);
    let made = ask(&one, Method::POST, ALL, Some(&body), &once)
        .await
        .with(201);
    eventually("the repetition is known", PROMPTLY, async || {
        let again = ask(&other, Method::POST, ALL, Some(&body), &once).await;
        (again.status == 201 && again.body == made.body).then_some(())
    })
    .await;
    let both = to("both", url);
    let once = [("idempotency-key", "b")];
    let (a, b) = join(
        ask(&one, Method::POST, ALL, Some(&both), &once),
        ask(&other, Method::POST, ALL, Some(&both), &once),
    )
    .await;
    assert_eq!(a.with(201).body, b.with(201).body);
    same_within(&one, &other, PROMPTLY).await;
    assert_eq!(all(&one).await.as_array().map(Vec::len), Some(7));
}

async fn an_empty_data_dir_catches_up(bus: &Bus) {
    let receiver = Receiver::accepting().await;
    let config = config_of(bus);
    let (maker, mut taker) = two(&without_sources(&config), &config).await;
    let mut secret = String::new();
    for name in ["crm", "erp", "gone", "held"] {
        let made = post(&maker, ALL, &to(name, &receiver.url(&format!("/{name}"))))
            .await
            .with(201);
        if name == "crm" {
            secret = made.body["secret"].as_str().expect("shown once").to_owned();
        }
    }
    ask(&taker, Method::DELETE, &format!("{ALL}/gone"), None, &[])
        .await
        .with(204);
    post(&maker, &format!("{ALL}/held/pause"), &Value::Null)
        .await
        .with(200);
    same_within(&maker, &taker, PROMPTLY).await;
    let rotated = post(
        &maker,
        &format!("{CRM}/rotate"),
        &json!({ "overlap": "0s" }),
    )
    .await
    .with(200);
    assert_ne!(rotated.body["secret"], secret.as_str());
    secret = rotated.body["secret"]
        .as_str()
        .expect("shown once")
        .to_owned();
    // Killed right after its answer, and what it had on its disk is lost.
    let last = post(&taker, ALL, &to("last", &receiver.url("/last")))
        .await
        .with(201);
    taker.kill9();
    std::fs::remove_dir_all(taker.data_dir()).expect("wiped");
    taker.start_again().await;
    let mut taker = taker.ready().await;
    same_within(&maker, &taker, PROMPTLY).await;
    assert_eq!(all(&taker).await.as_array().map(Vec::len), Some(4));
    assert_eq!(
        get(&taker, &format!("{ALL}/last")).await.body["uid"],
        last.body["uid"]
    );
    assert_eq!(state_of(&taker, &format!("{ALL}/held")).await, "paused");
    bus.publish(&taker, &["{}".to_owned()]).await;
    let came = receiver.wait_for(3, SOON).await;
    let crm = came
        .iter()
        .find(|request| request.path == "/crm")
        .expect("delivered");
    let verifier = Webhook::new(&secret).expect("a secret");
    assert!(verifier.verify(&crm.body, &crm.headers).is_ok());
    assert!(
        came.iter()
            .all(|request| request.path != "/held" && request.path != "/gone")
    );

    // What was removed meanwhile is gone from a store that has it still.
    taker.kill9();
    ask(&maker, Method::DELETE, &format!("{ALL}/last"), None, &[])
        .await
        .with(204);
    post(&maker, &format!("{ALL}/held/resume"), &Value::Null)
        .await
        .with(200);
    taker.start_again().await;
    let taker = taker.ready().await;
    same_within(&maker, &taker, PROMPTLY).await;
    assert_eq!(get(&taker, &format!("{ALL}/last")).await.status, 404);
    assert_eq!(state_of(&taker, &format!("{ALL}/held")).await, "active");
}

/// What the log still says of those who had the names before does not take them away.
async fn a_name_that_is_used_again_is_found_after_a_restart(bus: &Bus) {
    let mut bridge = Bridge::start(&config_of(bus)).await.ready().await;
    let url = "http://127.0.0.1:9/";
    let make = async |bridge: &Bridge, name: &str| {
        let made = post(bridge, ALL, &to(name, url)).await.with(201);
        made.body["uid"].clone()
    };
    make(&bridge, "crm").await;
    ask(&bridge, Method::DELETE, CRM, None, &[]).await.with(204);
    let crm = make(&bridge, "crm").await;
    let moved = make(&bridge, "erp").await;
    let patch = json!({ "name": "moved" });
    let erp = format!("{ALL}/erp");
    ask(&bridge, Method::PATCH, &erp, Some(&patch), &[])
        .await
        .with(200);
    let erp = make(&bridge, "erp").await;
    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    for (name, uid) in [("crm", &crm), ("moved", &moved), ("erp", &erp)] {
        let found = get(&bridge, &format!("{ALL}/{name}")).await.with(200);
        assert_eq!(found.body["uid"], *uid, "{name}");
        post(&bridge, ALL, &to(name, url)).await.with(409);
    }
}

/// All is sealed anew there, with a key that the other does not have yet.
async fn a_new_key_on_one_takes_nothing_out_of_force_on_the_other(bus: &Bus) {
    let receiver = Receiver::accepting().await;
    let config = config_of(bus);
    let (maker, taker) = two(&without_sources(&config), &config).await;
    post(&maker, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    on_the_other(&taker, CRM).await;
    let keys = format!("store_key: ['{OTHER_KEY}', '{KEY}']");
    let two_keys = |config: &str| config.replace(&format!("store_key: '{KEY}'"), &keys);
    maker.reload(&two_keys(&without_sources(&config)));
    eventually("the other has been told", SOON, async || {
        taker
            .log()
            .contains("not in `store_key` here")
            .then_some(())
    })
    .await;
    bus.publish(&taker, &["{}".to_owned()]).await;
    receiver.wait_for(1, SOON).await;
    taker.reload(&two_keys(&config));
    eventually("it is read with the new key", SOON, async || {
        (get(&taker, CRM).await.status == 200).then_some(())
    })
    .await;
    bus.publish(&taker, &["{}".to_owned()]).await;
    receiver.wait_for(2, SOON).await;
}

async fn what_an_endpoint_has_said_is_known_to_all(bus: &Bus) {
    // It takes what was held for it once it is enabled.
    let receiver = Receiver::answering(|_, before| match before {
        0 => Answer::status(500).header("webhook-delivery", "disable"),
        _ => Answer::status(204),
    })
    .await;
    let config = config_of(bus);
    let (maker, taker) = two(&without_sources(&config), &config).await;
    post(&maker, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    same_within(&maker, &taker, PROMPTLY).await;
    bus.publish(&taker, &["{}".to_owned()]).await;
    receiver.wait_for(1, SOON).await;
    for bridge in [&taker, &maker] {
        eventually("it is disabled", PROMPTLY, async || {
            (state_of(bridge, CRM).await == "disabled").then_some(())
        })
        .await;
    }
    post(&maker, &format!("{CRM}/enable"), &Value::Null)
        .await
        .with(200);
    eventually("it is enabled on the other", PROMPTLY, async || {
        (state_of(&taker, CRM).await == "active").then_some(())
    })
    .await;
}

async fn a_pause_outlives_a_config_that_only_one_has(bus: &Bus) {
    let without = without_sources(&config_of(bus));
    let with = format!(
        "{without}subscriptions:\n  old: {{ topics: ['x'], endpoint: {{ url: 'http://127.0.0.1:9/', signature: none }} }}\n"
    );
    let (one, other) = two(&with, &with).await;
    let old = format!("{ALL}/old");
    post(&one, &format!("{old}/pause"), &Value::Null)
        .await
        .with(200);
    let reloaded = async |bridge: &Bridge, config: &str, status: u16| {
        bridge.reload(config);
        eventually("it is reloaded", SOON, async || {
            (get(bridge, &old).await.status == status).then_some(())
        })
        .await;
    };
    reloaded(&one, &without, 404).await;
    // What the first has told by now the other has read.
    post(&one, ALL, &to("crm", "http://127.0.0.1:9/"))
        .await
        .with(201);
    on_the_other(&other, CRM).await;
    assert_eq!(state_of(&other, &old).await, "paused");
    reloaded(&one, &with, 200).await;
    assert_eq!(state_of(&one, &old).await, "paused");

    // It is forgotten when nobody has it.
    reloaded(&one, &without, 404).await;
    reloaded(&other, &without, 404).await;
    eventually("it is not paused", Duration::from_secs(60), async || {
        reloaded(&one, &with, 200).await;
        if state_of(&one, &old).await == "active" {
            return Some(());
        }
        reloaded(&one, &without, 404).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        None
    })
    .await;
}

/// Deletes what the group shares.
async fn lose_state_of(bus: &Bus) {
    let name = format!("{}.state", bus.group);
    match &bus.kind {
        Kind::RabbitMq { shop, .. } => {
            let options = QueueDeleteOptions::default();
            let deleted = shop.channel.queue_delete(name.as_str().into(), options);
            deleted.await.expect("deleted");
        }
        Kind::Kafka { bootstrap, .. } => {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", bootstrap);
            let admin: AdminClient<_> = config.create().expect("an admin client");
            let deleted = admin.delete_topics(&[&name], &AdminOptions::new()).await;
            let deleted = deleted.expect("kafka is there").remove(0);
            deleted.expect("deleted");
        }
        Kind::Embedded => unreachable!("its file is one instance's"),
    }
}

async fn a_log_that_is_lost_under_a_running_instance_is_filled_again(bus: &Bus) {
    let config = config_of(bus);
    let maker = Bridge::start(&without_sources(&config)).await.ready().await;
    let url = "http://127.0.0.1:9/";
    for name in ["crm", "held"] {
        post(&maker, ALL, &to(name, url)).await.with(201);
    }
    post(&maker, &format!("{ALL}/held/pause"), &Value::Null)
        .await
        .with(200);
    let before = all(&maker).await;
    lose_state_of(bus).await;
    eventually("it is noticed", Duration::from_secs(90), async || {
        let log = maker.log();
        log.contains("the log is not the one that was read before")
            .then_some(())
    })
    .await;
    maker.wait_ready(Duration::from_secs(60)).await;
    assert_eq!(all(&maker).await, before);
    // Who begins now has it from the log.
    let taker = Bridge::start(&config).await.ready().await;
    same_within(&maker, &taker, PROMPTLY).await;
    assert_eq!(state_of(&taker, &format!("{ALL}/held")).await, "paused");
    post(&taker, ALL, &to("erp", url)).await.with(201);
    on_the_other(&maker, &format!("{ALL}/erp")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_broker_nothing_is_changed() {
    let broker = Own::rabbitmq();
    let config = config_of(&Bus::rabbitmq(broker.address()).await);
    let bridge = Bridge::start(&config).await.ready().await;
    post(&bridge, ALL, &to("crm", "http://127.0.0.1:9/"))
        .await
        .with(201);
    let before = all(&bridge).await;
    broker.kill9();
    post(&bridge, ALL, &to("erp", "http://127.0.0.1:9/"))
        .await
        .with(503);
    ask(&bridge, Method::DELETE, CRM, None, &[]).await.with(503);
    post(&bridge, &format!("{CRM}/pause"), &Value::Null)
        .await
        .with(503);
    assert_eq!(all(&bridge).await, before);
    broker.start_again();
    eventually(
        "changes are taken again",
        Duration::from_secs(60),
        async || {
            let made = post(&bridge, ALL, &to("erp", "http://127.0.0.1:9/")).await;
            (made.status == 201 || made.status == 409).then_some(())
        },
    )
    .await;
    assert_eq!(all(&bridge).await.as_array().map(Vec::len), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_lost_beside_the_embedded_broker_comes_back() {
    let receiver = Receiver::accepting().await;
    let mut bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    let began = Instant::now();
    post(&bridge, ALL, &to("erp", &receiver.url("/")))
        .await
        .with(201);
    println!("a change took {:?}", began.elapsed());
    post(&bridge, &format!("{ALL}/erp/pause"), &Value::Null)
        .await
        .with(200);
    bridge.kill9();
    std::fs::remove_dir_all(bridge.data_dir().join("store")).expect("lost");
    bridge.start_again().await;
    let bridge = bridge.ready().await;
    let found = get(&bridge, CRM).await.with(200);
    assert_eq!(found.header("etag"), made.header("etag"));
    assert_eq!(state_of(&bridge, &format!("{ALL}/erp")).await, "paused");
    publish(&bridge, "{}").await;
    let came = receiver.wait_for(1, SOON).await;
    let secret = made.body["secret"].as_str().expect("shown once");
    let verifier = Webhook::new(secret).expect("a secret");
    assert!(verifier.verify(&came[0].body, &came[0].headers).is_ok());
}

/// A log that is lost is filled again by whoever still knows what it held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_lost_is_filled_from_the_store() {
    let mut bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", "http://127.0.0.1:9/"))
        .await
        .with(201);
    bridge.kill9();
    std::fs::remove_file(bridge.data_dir().join("embedded-here.redb")).expect("lost");
    for _ in 0..2 {
        bridge.start_again().await;
        bridge.wait_ready(SOON).await;
        let found = get(&bridge, CRM).await.with(200);
        assert_eq!(found.header("etag"), made.header("etag"));
        bridge.kill9();
        // The second time it comes from the log.
        std::fs::remove_dir_all(bridge.data_dir().join("store")).expect("lost");
    }
}

/// What is under this key in the log of the embedded broker, in whose place this is put.
fn replaced(bridge: &Bridge, key: &str, body: &[u8]) -> Vec<u8> {
    const STATE: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("state");
    let file = bridge.data_dir().join("embedded-here.redb");
    let db = redb::Database::open(file).expect("the file is there");
    let write = db.begin_write().expect("it can be written");
    let mut table = write.open_table(STATE).expect("the table is there");
    let before = table.insert(key, body).expect("written");
    let before = before.expect("it was there").value().to_vec();
    drop(table);
    write.commit().expect("written");
    before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_newer_release_can_read_is_waited_for_by_who_never_knew_it() {
    let receiver = Receiver::accepting().await;
    let mut bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    bridge.kill9();
    let key = format!("registered:{}", made.body["uid"].as_str().expect("a uid"));
    let before = replaced(&bridge, &key, br#"{"v":2,"news":1}"#);

    // What is known of it here stays in force.
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "1").await;
    receiver.wait_for(1, SOON).await;

    bridge.kill9();
    std::fs::remove_dir_all(bridge.data_dir().join("store")).expect("lost");
    bridge.start_again().await;
    let (status, ready) = eventually("it says why it is not ready", SOON, async || {
        let (status, ready) = bridge.get("/readyz").await;
        ready.contains("newer release").then_some((status, ready))
    })
    .await;
    assert_eq!(status, 503, "{ready}");
    assert!(ready.contains(&key), "{ready}");
    assert!(bridge.log().contains("this instance takes nothing"));
    publish(&bridge, "2").await;

    bridge.kill9();
    replaced(&bridge, &key, &before);
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    // What came meanwhile was not settled.
    eventually("it is delivered", SOON, async || {
        let came = receiver.requests();
        came.iter().any(|one| &one.body[..] == b"2").then_some(())
    })
    .await;
}
