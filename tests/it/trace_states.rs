//! `trace` says where an event's deliveries are, in each state, with a bridge running and without.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{brokers, eventually};

const SOON: Duration = Duration::from_secs(30);

/// What a command printed, and its exit code.
pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

/// Runs the binary with the bridge's config.
pub async fn hookbridge(bridge: &Bridge, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookbridge"));
    command
        .args(arguments)
        .arg("--config")
        .arg(bridge.config_path());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.unwrap().expect("the binary starts");
    Ran {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code(),
    }
}

/// The state of each subscription's delivery, as `trace --json` has it.
async fn states(bridge: &Bridge, what: &str) -> BTreeMap<String, String> {
    let ran = hookbridge(bridge, &["trace", what, "--json"]).await;
    let Ok(trace) = serde_json::from_str::<Value>(&ran.out) else {
        return BTreeMap::new();
    };
    let deliveries = trace["deliveries"].as_array().unwrap().iter();
    deliveries
        .map(|delivery| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let state = text(&delivery["now"]["state"]);
            (text(&delivery["subscription"]), state)
        })
        .collect()
}

async fn until_states(bridge: &Bridge, what: &str, expected: &[(&str, &str)]) {
    let expected = expected.iter().map(|(a, b)| (a.to_string(), b.to_string()));
    let expected: BTreeMap<_, _> = expected.collect();
    let mut last = BTreeMap::new();
    let waited = tokio::time::timeout(SOON, async {
        loop {
            last = states(bridge, what).await;
            if last == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let waited = waited.await;
    assert!(waited.is_ok(), "{last:?} and not {expected:?}");
}

/// Each path is answered in its way.
async fn moody() -> Receiver {
    Receiver::answering(|request, _| match request.path.as_str() {
        "/wait" => Answer::status(503),
        "/refuse" => Answer::status(400),
        "/hang" => Answer::status(204).after(Duration::from_secs(60)),
        _ => Answer::status(204),
    })
    .await
}

fn refusing(name: &str, url: &str) -> String {
    subscription(name, "orders.*", url, "").replace("jitter: 0", "jitter: 0, no_retry: [400]")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_in_each_state() {
    let receiver = moody().await;
    let flaky = Receiver::answering(|_, before| Answer::status([503, 204][before.min(1)])).await;
    let subscriptions = [
        subscription("ok", "orders.*", &receiver.url("/ok"), ""),
        subscription("again", "orders.*", &flaky.url("/"), ""),
        subscription("wait", "orders.*", &receiver.url("/wait"), "")
            .replace("[1s, 1s, 1s]", "[1h]"),
        refusing("refuse", &receiver.url("/refuse")),
        subscription("hang", "orders.*", &receiver.url("/hang"), ", timeout: 50s"),
    ]
    .concat();
    let bus = Bus::embedded();
    let config = format!("limits: {{ shutdown: 1s }}\n{}", bus.config(&subscriptions));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 1}".to_owned()]).await;
    let all = [
        ("ok", "delivered"),
        ("again", "delivered"),
        ("wait", "parked"),
        ("refuse", "dead"),
        ("hang", "in_flight"),
    ];
    until_states(&bridge, "evt_1", &all).await;

    let told = hookbridge(&bridge, &["trace", "evt_1"]).await;
    assert_eq!(told.code, Some(0), "{}", told.err);
    for words in [
        "event evt_1\n  topic orders.created, source orders\n",
        "\n  now: delivered at ",
        "attempt 1: 503 in ",
        "attempt 2: 204 in ",
        "\n  now: parked on here, until about ",
        "\n  now: dead on here since ",
        ", no_retry\n",
        "\n  now: in flight, attempt 1 since ",
    ] {
        assert!(
            told.out.contains(words),
            "{words:?} is missing in\n{}",
            told.out
        );
    }
    // Of the field only the dead letter tells.
    until_states(&bridge, "data.n=1", &all).await;
    let none = hookbridge(&bridge, &["trace", "data.n=2"]).await;
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("no event with data.n=2"), "{}", none.err);
    let bad = hookbridge(&bridge, &["trace", "--where", "nonsense"]).await;
    assert_eq!(bad.code, Some(64), "{}", bad.err);

    let unknown = hookbridge(&bridge, &["trace", "evt_2"]).await;
    assert_eq!(unknown.code, Some(1));
    let why = "nothing is known of event `evt_2`: it may be older than the oldest attempt";
    assert!(unknown.err.contains(why), "{}", unknown.err);

    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    until_states(&bridge, "evt_1", &all[..4]).await;
    let unknown = hookbridge(&bridge, &["trace", "evt_2"]).await;
    assert_eq!(unknown.code, Some(1), "{}", unknown.err);
}

/// One event in all states at once, with a bridge running and without.
async fn in_each_state(bus: Bus) {
    let receiver = moody().await;
    let subscriptions = [
        subscription("ok", "#", &receiver.url("/ok"), ""),
        subscription("wait", "#", &receiver.url("/wait"), "").replace("[1s, 1s, 1s]", "[1h]"),
        refusing("refuse", &receiver.url("/refuse")).replace("orders.*", "#"),
        subscription("hang", "#", &receiver.url("/hang"), ", timeout: 50s"),
    ]
    .concat();
    let config = format!("limits: {{ shutdown: 1s }}\n{}", bus.config(&subscriptions));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 1}".to_owned()]).await;
    let id = receiver.wait_for(1, SOON).await[0].id.clone();
    let all = [
        ("ok", "delivered"),
        ("wait", "parked"),
        ("refuse", "dead"),
        ("hang", "in_flight"),
    ];
    until_states(&bridge, &id, &all).await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    until_states(&bridge, &id, &all[..3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_in_each_state_on_rabbitmq() {
    in_each_state(Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_in_each_state_on_kafka() {
    in_each_state(Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await).await;
}

/// What operators did is no riddle to who asks later.
async fn what_operators_ordered_is_traced(bus: Bus) {
    let receiver = moody().await;
    let parking = |name: &str| {
        subscription(name, "orders.*", &receiver.url("/wait"), "").replace("[1s, 1s, 1s]", "[1h]")
    };
    let subscriptions = [
        parking("wait"),
        parking("soon"),
        refusing("refuse", &receiver.url("/refuse")),
    ]
    .concat();
    let bridge = Bridge::start(&bus.config(&subscriptions))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &["{\"n\": 1}".to_owned()]).await;
    let id = receiver.wait_for(1, SOON).await[0].id.clone();
    let all = [("wait", "parked"), ("soon", "parked"), ("refuse", "dead")];
    until_states(&bridge, &id, &all).await;
    let done = async |arguments: &[&str]| {
        let ran = hookbridge(&bridge, arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.out, ran.err);
    };
    done(&["parked", "drop", "wait", "--yes"]).await;
    done(&["parked", "now", "soon"]).await;
    done(&["dead", "retry", "--all", "--yes"]).await;
    // The next generation is refused as well.
    let all = [("wait", "dropped"), ("soon", "parked"), ("refuse", "dead")];
    until_states(&bridge, &id, &all).await;
    // What was dropped makes room for others under `max_parked`.
    let (_, body) = bridge.get("/v1/subscriptions").await;
    let listed: Value = serde_json::from_str(&body).unwrap();
    let listed = listed["subscriptions"].as_array().unwrap().iter();
    let parked: BTreeMap<_, _> = listed
        .map(|one| {
            (
                one["name"].as_str().unwrap(),
                one["parked"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(parked["wait"], 0, "{parked:?}");
    let told = hookbridge(&bridge, &["trace", &id]).await.out;
    for words in [
        "now: was parked on here, and dropped by an operator at ",
        "dropped from here by an operator\n",
        "made due on here by an operator\n",
        "now: was dead-lettered, and sent again at ",
        " as retry 1\n",
    ] {
        assert!(told.contains(words), "{words:?} is missing in\n{told}");
    }
    done(&["dead", "drop", "--all", "--yes"]).await;
    let all = [
        ("wait", "dropped"),
        ("soon", "parked"),
        ("refuse", "letter_removed"),
    ];
    until_states(&bridge, &id, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_ordered_is_traced_on_embedded() {
    what_operators_ordered_is_traced(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_ordered_is_traced_on_rabbitmq() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    what_operators_ordered_is_traced(bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_ordered_is_traced_on_kafka() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await;
    what_operators_ordered_is_traced(bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_matched_nothing_is_known() {
    let bus = Bus::embedded();
    let none = subscription("crm", "payments.*", "http://127.0.0.1:9/", "");
    let bridge = Bridge::start(&bus.config(&none)).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 7}".to_owned()]).await;
    let told = eventually("it is recorded", SOON, async || {
        let told = hookbridge(&bridge, &["trace", "evt_7"]).await;
        (told.code == Some(0)).then_some(told.out)
    });
    let told = told.await;
    let expected =
        "event evt_7\n  topic orders.created, source orders\n  no subscription matched it\n";
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_journal_dead_letters_are_known_all_the_same() {
    let receiver = moody().await;
    let bus = Bus::embedded();
    let config = bus.config(&refusing("refuse", &receiver.url("/refuse")));
    let config = format!("attempts: {{ enabled: false }}\n{config}");
    let bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 1}".to_owned()]).await;
    until_states(&bridge, "evt_1", &[("refuse", "dead")]).await;
    assert!(!bridge.data_dir().join("attempts.redb").exists());
    let unknown = hookbridge(&bridge, &["trace", "evt_2"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.err.contains("attempts are not kept"),
        "{}",
        unknown.err
    );
    let listed = hookbridge(&bridge, &["attempts"]).await;
    assert_eq!(listed.code, Some(1));
    assert!(
        listed.err.contains("`attempts.enabled` is false"),
        "{}",
        listed.err
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_delivery_on_rabbitmq_is_traced_to_its_queue() {
    let receiver = moody().await;
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    let config = bus.config(&refusing("refuse", &receiver.url("/refuse")));
    let mut bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &["{\"n\": 1}".to_owned()]).await;
    let dead = [("refuse", "dead")];
    until_states(&bridge, "evt_1", &dead).await;
    let place = format!("dead on here ({}.dead) since ", bus.group);
    let told = hookbridge(&bridge, &["trace", "evt_1"]).await.out;
    assert!(told.contains(&place), "{told}");

    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    until_states(&bridge, "evt_1", &dead).await;
    // Without the journal the letter alone tells.
    std::fs::remove_file(bridge.data_dir().join("attempts.redb")).unwrap();
    let told = hookbridge(&bridge, &["trace", "data.n=1"]).await.out;
    assert!(told.contains(&place), "{told}");
    let missing = "1 of 1 attempts are not in this journal";
    assert!(told.contains(missing), "{told}");
    assert!(told.contains("note: there are no attempts yet: "), "{told}");
    assert!(!told.contains("attempts are not kept"), "{told}");
}
