//! The life of a subscription: off, paused, disabled, unknown, renamed, edited, rotated, reloaded.

use std::time::Duration;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const SOON: Duration = Duration::from_secs(20);
/// What is held for an unknown subscription is looked at once a minute.
const A_MINUTE: Duration = Duration::from_secs(85);

async fn publish(bridge: &Bridge, topic: &str, body: &str) {
    let path = format!("/v1/topics/{topic}/events");
    let (status, answer) = bridge.post(&path, body).await;
    assert_eq!(status, 202, "{answer}");
}

/// `"name":"crm"` ... `"state":"active"` of one subscription.
async fn state(bridge: &Bridge, name: &str) -> String {
    let (status, text) = bridge.get("/v1/subscriptions").await;
    assert_eq!(status, 200, "{text}");
    let all: serde_json::Value = serde_json::from_str(&text).expect("json");
    let list = all["subscriptions"].as_array().expect("a list");
    let one = list.iter().find(|one| one["name"] == name);
    one.map_or("unknown".to_owned(), |one| {
        one["state"].as_str().expect("a state").to_owned()
    })
}

async fn logged(bridge: &Bridge, part: &str) {
    eventually(&format!("`{part}` in the log"), SOON, async || {
        bridge.log().contains(part).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_comes_when_it_may() {
    let (off, paused) = (Receiver::accepting().await, Receiver::accepting().await);
    let shy = Receiver::answering(|request, _| match &request.body[..] {
        b"first" => Answer::status(200).header("webhook-delivery", "disable"),
        _ => Answer::status(200),
    })
    .await;
    let old = Receiver::answering(|_, _| Answer::status(503)).await;
    let new = Receiver::accepting().await;
    let bus = Bus::embedded();
    let others = subscription("off", "orders.off", &off.url("/"), ", enabled: false")
        + &subscription("paused", "orders.paused", &paused.url("/"), "")
        + &subscription("shy", "orders.shy", &shy.url("/"), "");
    let with_old = others.clone() + &subscription("old", "orders.old", &old.url("/"), "");
    let mut bridge = Bridge::start(&bus.config(&with_old)).await.ready().await;
    assert_eq!(state(&bridge, "off").await, "not_enabled");
    assert_eq!(
        bridge.post("/v1/subscriptions/paused/pause", "").await.0,
        200
    );
    publish(&bridge, "orders.off", "off").await;
    publish(&bridge, "orders.paused", "paused").await;
    publish(&bridge, "orders.shy", "first").await;
    publish(&bridge, "orders.old", "old").await;
    shy.wait_for(1, SOON).await;
    old.wait_for(1, SOON).await;
    eventually("the endpoint is disabled", SOON, async || {
        (state(&bridge, "shy").await == "disabled").then_some(())
    })
    .await;
    publish(&bridge, "orders.shy", "second").await;
    bridge.reload(&bus.config(&others));
    logged(&bridge, "removed=[\"old\"]").await;
    // Long enough for the retry to come back and find nobody.
    tokio::time::sleep(Duration::from_secs(3)).await;

    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    assert_eq!(state(&bridge, "paused").await, "paused");
    assert_eq!(state(&bridge, "shy").await, "disabled");
    let before = (paused.count(), shy.count(), new.count());
    assert_eq!(before, (0, 1, 0), "held things were sent");
    assert_eq!(
        bridge.post("/v1/subscriptions/paused/resume", "").await.0,
        200
    );
    assert_eq!(bridge.post("/v1/subscriptions/shy/enable", "").await.0, 200);
    assert_eq!(state(&bridge, "paused").await, "active");
    assert_eq!(state(&bridge, "shy").await, "active");
    let renamed = others + &subscription("new", "orders.old", &new.url("/"), ", was: [old]");
    bridge.reload(&bus.config(&renamed));
    logged(&bridge, "added=[\"new\"]").await;

    assert_eq!(&paused.wait_for(1, SOON).await[0].body[..], b"paused");
    assert_eq!(&shy.wait_for(2, SOON).await[1].body[..], b"second");
    assert_eq!(&new.wait_for(1, A_MINUTE).await[0].body[..], b"old");
    assert_eq!(off.count(), 0, "a subscription that is off was sent to");
    let dead = bridge.metrics().await;
    let dead = dead
        .lines()
        .filter(|line| line.starts_with("hookbridge_dead_letters_total"));
    assert!(dead.clone().all(|line| line.ends_with(" 0")), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_hold_from_the_next_attempt() {
    const NEW_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let first = Receiver::answering(|_, _| Answer::status(503)).await;
    let second = Receiver::accepting().await;
    let bus = Bus::embedded();
    let slow = |url: &str| {
        subscription("crm", "orders.*", url, "").replace("[1s, 1s, 1s]", "[3s, 3s, 3s]")
    };
    let bridge = Bridge::start(&bus.config(&slow(&first.url("/"))))
        .await
        .ready()
        .await;
    publish(&bridge, "orders.created", "edited").await;
    first.wait_for(1, SOON).await;
    let edited = slow(&second.url("/new")).replace(
        &format!("secret: '{}'", crate::support::SECRET),
        &format!("secrets: ['{NEW_SECRET}', '{}']", crate::support::SECRET),
    );
    bridge.reload(&bus.config(&edited));
    logged(&bridge, "the config is reloaded").await;
    let request = second.wait_for(1, SOON).await.remove(0);
    assert_eq!(first.count(), 1);
    assert_eq!(request.path, "/new");
    assert!(request.verified, "the old secret is still good");
    let verifier = standardwebhooks::Webhook::new(NEW_SECRET).expect("a secret");
    assert!(
        verifier.verify(&request.body, &request.headers).is_ok(),
        "the new secret signs too"
    );
    logged(&bridge, "attempt=2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_file_keeps_the_config_before() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let good = bus.config(&subscription("crm", "orders.*", &receiver.url("/"), ""));
    let bridge = Bridge::start(&good).await.ready().await;
    bridge.reload(&good.replace("topics: ['orders.*']", "topcis: ['orders.*']"));
    logged(&bridge, "the config is not reloaded").await;
    logged(&bridge, "topcis").await;
    bridge.reload(&good.replace("topics: ['orders.*']", "topics: ['orders.#']"));
    logged(&bridge, "changed=[\"crm\"]").await;
    publish(&bridge, "orders.created", "{}").await;
    receiver.wait_for(1, SOON).await;
    let metrics = bridge.metrics().await;
    let reloads: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("hookbridge_config_reloads_total"))
        .collect();
    assert_eq!(reloads.len(), 2, "{reloads:?}");
    assert!(
        reloads.iter().all(|line| line.ends_with(" 1")),
        "{reloads:?}"
    );
}
