//! `hookbridge replay`, end to end with the real binary: what was lost comes again to the one who
//! lost it, under the same ids, and nobody else notices.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kafka_support::{bootstrap, create_topic};
use crate::path::subscription;
use crate::replay_history::{committed, produce_minutes};
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::cli::{self, Ran};
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::unique;

const SOON: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(2);

/// Runs `hookbridge replay` with these arguments and the config at `config`.
async fn replay(config: &Path, arguments: &[&str]) -> Ran {
    cli::run(config, &[&["replay"], arguments].concat()).await
}

fn ids(requests: &[Request]) -> BTreeSet<String> {
    requests.iter().map(|request| request.id.clone()).collect()
}

fn minutes(first: Timestamp, count: u64) -> String {
    (first + Duration::from_secs(60 * count)).to_string()
}

/// A topic with an event in each of so many minutes of the past, and a bridge that has delivered
/// them to `crm` (every second one) and to `stock`.
struct Lake {
    group: String,
    topic: String,
    first: Timestamp,
    crm: Receiver,
    stock: Receiver,
    bridge: Bridge,
}

const EVENTS: i32 = 60;

impl Lake {
    async fn delivered() -> Self {
        let (group, topic) = (unique("replay"), unique("orders"));
        create_topic(&topic, 3).await;
        let first = Timestamp::now() - Duration::from_secs(3 * 3_600);
        let body = |n| json!({ "n": n, "even": n % 2 == 0 }).to_string();
        produce_minutes(&[&topic], 3, first, EVENTS, body).await;
        let (crm, stock) = (Receiver::accepting().await, Receiver::accepting().await);
        let both = format!(
            "{}{}",
            subscription(
                "crm",
                "orders",
                &crm.url("/"),
                ", filter: { data.even: true }"
            ),
            subscription("stock", "orders", &stock.url("/"), "")
        );
        let bridge = Bridge::start(&config(&group, &topic, &both))
            .await
            .ready()
            .await;
        crm.wait_for(EVENTS as usize / 2, SOON).await;
        stock.wait_for(EVENTS as usize, SOON).await;
        Self {
            group,
            topic,
            first,
            crm,
            stock,
            bridge,
        }
    }

    /// The committed offsets, when everything is committed.
    async fn committed(&self) -> Vec<String> {
        eventually("all is committed", SOON, async || {
            let now = committed(&self.group, &[&self.topic], 3).await;
            let all = now.values().all(|offset| offset == "Offset(20)");
            all.then(|| now.into_values().collect())
        })
        .await
    }

    fn crm_since(&self, before: usize) -> Vec<Request> {
        self.crm.requests().split_off(before)
    }
}

fn config(group: &str, topic: &str, subscriptions: &str) -> String {
    let bootstrap = bootstrap();
    format!(
        "group: {group}
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ lake: {{ kafka: {{ bootstrap: ['{bootstrap}'] }}, tiers: [1s, 2s, 5s] }} }}
sources: {{ orders: {{ broker: lake, topics: [{topic}], start: earliest, topic: orders }} }}
subscriptions:
{subscriptions}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_replays_an_hour_to_one_subscription() {
    let mut lake = Lake::delivered().await;
    let offsets = lake.committed().await;
    let before = lake.crm.requests();
    let (since, until) = (minutes(lake.first, 20), minutes(lake.first, 50));
    let range = [
        "--source",
        "orders",
        "--subscription",
        "crm",
        "--since",
        &since,
        "--until",
        &until,
    ];
    let path = lake.bridge.config_path();

    let dry = replay(&path, &[&range[..], &["--dry-run", "--json"]].concat()).await;
    assert_eq!(dry.code, Some(0), "{dry:?}");
    let report: Value = serde_json::from_str(&dry.out).expect("one JSON document");
    assert_eq!(report["operation"], "replay_dry_run");
    assert_eq!(
        (
            &report["total"],
            &report["seen"],
            &report["matched"],
            &report["done"]
        ),
        (&json!(30), &json!(30), &json!(15), &json!(15))
    );

    let said = replay(&path, &[&range[..], &["--rate", "1000/s"]].concat()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let shown = |at: &str| format!("{:.0}", at.parse::<Timestamp>().unwrap());
    assert_eq!(
        said.out,
        format!(
            "orders to crm, from {} to {}: 30 seen, 15 matched, 15 sent\n",
            shown(&since),
            shown(&until)
        )
    );
    lake.crm.wait_for(before.len() + 15, SOON).await;
    lake.crm.quiet_for(QUIET, SOON).await;
    let again = lake.crm_since(before.len());
    let in_range = |request: &&Request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        (20..50).contains(&body["n"].as_i64().unwrap())
    };
    let expected: Vec<_> = before.iter().filter(in_range).cloned().collect();
    assert_eq!(again.len(), 15);
    assert_eq!(
        ids(&again),
        ids(&expected),
        "the same events, by their webhook-id"
    );
    assert!(again.iter().all(|request| request.verified));
    assert_eq!(
        lake.stock.count(),
        EVENTS as usize,
        "nobody else gets anything"
    );
    assert_eq!(lake.committed().await, offsets);

    let one = &["--filter", "data.n:22", "--rate", "10/s"][..];
    let said = replay(&path, &[&range[..], one].concat()).await;
    assert!(
        said.out.ends_with("30 seen, 1 matched, 1 sent\n"),
        "{said:?}"
    );
    lake.crm.wait_for(before.len() + 16, SOON).await;

    // With no bridge running it is parked, and delivered by the next one.
    lake.bridge.terminate();
    assert_eq!(lake.bridge.exit_code(SOON).await, Some(0));
    let said = replay(&path, &[&range[..], &["--rate", "1000/s"]].concat()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.ends_with("30 seen, 15 matched, 15 sent\n"),
        "{said:?}"
    );
    assert!(said.err.contains("no bridge runs here"), "{said:?}");
    assert_eq!(lake.crm.count(), before.len() + 16);
    lake.bridge.start_again().await;
    lake.crm.wait_for(before.len() + 31, SOON).await;
    lake.crm.quiet_for(QUIET, SOON).await;
    assert_eq!(lake.crm.count(), before.len() + 31);
    assert_eq!(lake.stock.count(), EVENTS as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_fills_a_new_subscriber_and_goes_on_after_an_interruption() {
    let lake = Lake::delivered().await;
    let new = Receiver::accepting().await;
    let all = format!(
        "{}{}{}",
        subscription(
            "crm",
            "orders",
            &lake.crm.url("/"),
            ", filter: { data.even: true }"
        ),
        subscription("stock", "orders", &lake.stock.url("/"), ""),
        subscription("new", "orders", &new.url("/"), "")
    );
    lake.bridge.reload(&config(&lake.group, &lake.topic, &all));
    eventually("the new one is known", SOON, async || {
        let (_, known) = lake.bridge.get("/v1/subscriptions").await;
        known.contains("\"new\"").then_some(())
    })
    .await;
    let start = async |since: &str, rate: &str| {
        let wanted =
            json!({ "source": "orders", "subscription": "new", "since": since, "rate": rate });
        let request = reqwest::Client::new()
            .post(format!("http://{}/v1/replays", lake.bridge.admin))
            .json(&wanted);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 202);
        answer.json::<Value>().await.unwrap()
    };
    let ended = async |job: &Value| {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        eventually("the job ends", SOON, async || {
            let report: Value = serde_json::from_str(&lake.bridge.get(&path).await.1).unwrap();
            (report["state"] != "running").then_some(report)
        })
        .await
    };

    let job = start("4h", "20/s").await;
    // Of three partitions with 20 each: all have been begun, whichever came first.
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    eventually("most of it is sent", SOON, async || {
        let report: Value = serde_json::from_str(&lake.bridge.get(&path).await.1).unwrap();
        (report["done"].as_u64() >= Some(42)).then_some(())
    })
    .await;
    let url = format!(
        "http://{}/v1/jobs/{}",
        lake.bridge.admin,
        job["id"].as_str().unwrap()
    );
    reqwest::Client::new().delete(url).send().await.unwrap();
    let report = ended(&job).await;
    assert_eq!(report["state"], "cancelled", "{report}");
    let done = report["done"].as_u64().unwrap();
    assert!((42..EVENTS as u64).contains(&done), "{report}");
    new.quiet_for(QUIET, SOON).await;
    assert_eq!(
        new.count() as u64,
        done,
        "what is counted is sent, and nothing else"
    );

    let reached = report["reached"].as_str().unwrap();
    let report = ended(&start(reached, "1000/s").await).await;
    assert_eq!(report["state"], "done", "{report}");
    new.wait_for(EVENTS as usize, SOON).await;
    new.quiet_for(QUIET, SOON).await;
    assert_eq!(
        ids(&new.requests()),
        ids(&lake.stock.requests()),
        "nothing is missing"
    );
    assert!(
        report["done"].as_u64().unwrap() < EVENTS as u64,
        "it went on from where the first one came to: {report}"
    );
    let (_, listed) = lake.bridge.get("/v1/replays").await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["replays"].as_array().unwrap().len(), 2);
    assert_eq!(lake.stock.count(), EVENTS as usize);
    assert_eq!(lake.crm.count(), EVENTS as usize / 2);
}

/// The config of an embedded broker that keeps what is settled.
fn keeping(bus: &Bus, subscriptions: &str) -> String {
    let config = bus.config(subscriptions);
    config.replace("embedded: {}", "embedded: { retention: 1h }")
}

fn bodies(range: std::ops::Range<i32>) -> Vec<String> {
    range
        .map(|n| json!({ "n": n, "even": n % 2 == 0 }).to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_replays_a_part_to_one_subscription() {
    let bus = Bus::embedded();
    let (crm, stock) = (Receiver::accepting().await, Receiver::accepting().await);
    let both = format!(
        "{}{}",
        subscription(
            "crm",
            "orders.*",
            &crm.url("/"),
            ", filter: { data.even: true }"
        ),
        subscription("stock", "orders.*", &stock.url("/"), "")
    );
    let mut bridge = Bridge::start(&keeping(&bus, &both)).await.ready().await;
    let mut marks = Vec::new();
    for part in 0..3 {
        bus.publish(&bridge, &bodies(part * 10..part * 10 + 10))
            .await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        marks.push(Timestamp::now().to_string());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stock.wait_for(30, SOON).await;
    let before = crm.wait_for(15, SOON).await;
    let range = [
        "--source",
        "orders",
        "--subscription",
        "crm",
        "--since",
        &marks[0],
        "--until",
        &marks[1],
    ];
    let path = bridge.config_path();
    let said = replay(&path, &range).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.ends_with(": 10 seen, 5 matched, 5 sent\n"),
        "{said:?}"
    );
    insta::assert_snapshot!(said.err, @"note: sending at 50 a second: say otherwise with a rate");
    crm.wait_for(20, SOON).await;
    crm.quiet_for(QUIET, SOON).await;
    let again = crm.requests().split_off(15);
    assert_eq!(again.len(), 5);
    let second: Vec<_> = before
        .iter()
        .filter(|request| again.iter().any(|other| other.body == request.body))
        .cloned()
        .collect();
    assert_eq!(ids(&again), ids(&second));
    assert_eq!(stock.count(), 30);

    let (_, sources) = bridge.get("/v1/sources").await;
    let mut sources: Value = serde_json::from_str(&sources).unwrap();
    let oldest = sources["sources"][0]["oldest"].take();
    assert!(oldest.as_str().unwrap() < marks[0].as_str(), "{oldest}");
    assert_eq!(
        sources,
        json!({ "sources": [{ "name": "orders", "broker": "here", "kind": "embedded", "paused": false, "replay": true, "oldest": null }] })
    );

    // Ctrl-C ends it between two events, and it says where to go on.
    let mut slow = cli::command(
        &path,
        &[&["replay"], &range[..], &["--rate", "30/m"]].concat(),
    );
    let slow = slow.spawn().unwrap();
    // After the first one it may not listen for signals yet.
    crm.wait_for(22, SOON).await;
    let pid = slow.id().to_string();
    let asked = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(asked.unwrap().success());
    let ended = tokio::task::spawn_blocking(move || slow.wait_with_output());
    let ended = ended.await.unwrap().unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[1], "cancelled");
    assert!(
        lines[2].contains(" is done: go on with --since 20"),
        "{out}"
    );
    crm.quiet_for(QUIET, SOON).await;
    let before = crm.count();
    assert!(before < 25, "{before}");

    // The file is opened by the command when no bridge has it.
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    let said = replay(&path, &range).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(crm.count(), before);
    bridge.start_again().await;
    crm.wait_for(before + 5, SOON).await;
    crm.quiet_for(QUIET, SOON).await;
    assert_eq!((crm.count(), stock.count()), (before + 5, 30));
}

/// A replay waits outside when much waits for the subscription already, so it has to be counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replay_leaves_on_the_broker_counts_as_parked() {
    let bus = Bus::embedded();
    let crm = Receiver::answering(|_, _| Answer::status(503)).await;
    let later = subscription("crm", "orders.*", &crm.url("/"), "").replace("[1s, 1s, 1s]", "[1h]");
    let bridge = Bridge::start(&keeping(&bus, &later)).await.ready().await;
    bus.publish(&bridge, &bodies(0..10)).await;
    crm.wait_for(10, SOON).await;
    let range = [
        "--source",
        "orders",
        "--subscription",
        "crm",
        "--since",
        "1h",
    ];
    let said = replay(&bridge.config_path(), &range).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    eventually("all are counted", SOON, async || {
        let (_, body) = bridge.get("/v1/subscriptions").await;
        let listed: Value = serde_json::from_str(&body).unwrap();
        (listed["subscriptions"][0]["parked"] == 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_says_why() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let all = format!(
        "{}{}{}",
        subscription("crm", "orders.*", &receiver.url("/"), ""),
        subscription("off", "orders.*", &receiver.url("/"), ", enabled: false"),
        subscription(
            "other",
            "orders.*",
            &receiver.url("/"),
            ", sources: [bills]"
        )
    );
    let config = keeping(&bus, &all).replace(
        "sources: { orders:",
        "sources: { bills: { broker: here, topics: [bills] }, orders:",
    );
    let bridge = Bridge::start(&config).await.ready().await;
    let path = bridge.config_path();
    let refused = async |source: &str, subscription: &str, range: &[&str]| {
        let named = ["--source", source, "--subscription", subscription];
        let said = replay(&path, &[&named[..], range].concat()).await;
        assert_eq!((said.code, &*said.out), (Some(1), ""), "{said:?}");
        said.err
    };
    let day = &[
        "--since",
        "2026-01-31T12:00:00Z",
        "--until",
        "2026-01-31T13:00:00Z",
    ][..];
    insta::assert_snapshot!(refused("orders", "crm", &["--since", "1h"]).await, @"error: This cannot be replayed: source `orders` has no events in this range; it has none at all");
    bus.publish(&bridge, &bodies(0..1)).await;
    receiver.wait_for(1, SOON).await;
    insta::assert_snapshot!(refused("order", "crm", day).await, @"error: Not found: there is no source `order`; there is bills, orders");
    insta::assert_snapshot!(refused("orders", "cmr", day).await, @"error: Not found: there is no subscription `cmr`");
    insta::assert_snapshot!(refused("orders", "off", day).await, @"error: The subscription is not in a state for this: subscription `off` is not enabled (`enabled: false`)");
    insta::assert_snapshot!(refused("orders", "other", day).await, @"error: The subscription is not in a state for this: subscription `other` takes nothing from source `orders` (its `sources`)");
    let empty = &[
        "--since",
        "2026-01-31T13:00:00Z",
        "--until",
        "2026-01-31T13:00:00Z",
    ][..];
    insta::assert_snapshot!(refused("orders", "crm", empty).await, @"error: This cannot be replayed: the range is empty: `since` (2026-01-31T13:00:00Z) is not before `until` (2026-01-31T13:00:00Z)");
    let future = refused("orders", "crm", &["--since", "2126-01-31T13:00:00Z"]).await;
    insta::assert_snapshot!(future.split(", and now").next().unwrap(), @"error: This cannot be replayed: the range begins in the future: `since` is 2126-01-31T13:00:00Z");
    let old = refused("orders", "crm", day).await;
    let (old, rest) = old.split_once(" of ").unwrap();
    insta::assert_snapshot!(old, @"error: This cannot be replayed: the range ends before the oldest event that source `orders` still has, which is");
    assert!(
        rest.ends_with(": what was before is gone (retention)\n"),
        "{rest}"
    );
    bridge.post("/v1/subscriptions/crm/pause", "").await;
    insta::assert_snapshot!(refused("orders", "crm", &["--since", "1h"]).await, @"error: The subscription is not in a state for this: subscription `crm` is paused: resume it first, or what is replayed only waits");
    bridge.post("/v1/subscriptions/crm/resume", "").await;

    // Nothing that matches: that is said, and is not success.
    let none = [
        "--source",
        "orders",
        "--subscription",
        "crm",
        "--since",
        "1h",
        "--filter",
        "data.n:7",
    ];
    let said = replay(&path, &none).await;
    assert_eq!(said.code, Some(1));
    assert!(
        said.out.ends_with("1 seen, 0 matched, 0 sent\nno event of this range is one that the subscription (and the filter) takes\n"),
        "{said:?}"
    );

    let usage = async |range: &[&str]| {
        let named = ["--source", "orders", "--subscription", "crm"];
        let said = replay(&path, &[&named[..], range].concat()).await;
        assert_eq!((said.code, &*said.out), (Some(64), ""), "{said:?}");
        said.err.split("\n\nFor more").next().unwrap().to_owned()
    };
    insta::assert_snapshot!(usage(&["--since", "2026-01-31T12:00"]).await, @"error: invalid value '2026-01-31T12:00' for '--since <TIME>': `2026-01-31T12:00` does not say in which zone: write `2026-01-31T12:00:00Z` for UTC, or an offset such as `2026-01-31T12:00:00+02:00`");
    insta::assert_snapshot!(usage(&["--since", "1h", "--rate", "fast"]).await, @"error: invalid value 'fast' for '--rate <RATE>': `fast` is not a rate such as `50/s` or `100/m`");
    insta::assert_snapshot!(usage(&["--since", "1h", "--filter", "typ:x"]).await, @"
    error: the filter cannot be read at column 1
      typ:x
      ^^^ there is no key `typ`
      did you mean `type`?
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_has_no_past_and_the_message_says_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hookbridge.yaml");
    let data = folder.path().join("data");
    let config = format!(
        "group: g
data_dir: '{}'
admin: {{ listen: '127.0.0.1:1' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ shop: {{ rabbitmq: {{ urls: ['amqp://127.0.0.1:1'] }} }} }}
sources: {{ orders: {{ broker: shop, queue: g.orders, bind: [{{ exchange: e, key: '#' }}] }} }}
subscriptions:
{}",
        data.display(),
        subscription("crm", "orders.*", "http://127.0.0.1:1/", "")
    );
    std::fs::write(&path, config).unwrap();
    let hour = [
        "--source",
        "orders",
        "--subscription",
        "crm",
        "--since",
        "1h",
    ];
    let said = replay(&path, &hour).await;
    assert_eq!((said.code, &*said.out), (Some(1), ""), "{said:?}");
    insta::assert_snapshot!(said.err, @"error: source `orders` is the RabbitMQ queue `g.orders`, and a queue forgets an event as soon as it is acknowledged: there is nothing to replay. What was given up is among the dead letters (`hookbridge dead list`, `hookbridge dead retry`). To replay time, keep the events where they stay: have the services publish to Kafka, or bind a RabbitMQ stream beside the queue, and send again from there");
}
