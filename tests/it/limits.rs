//! Limits and policies of single subscriptions and sources, with the real binary and the embedded
//! broker, whose dead letters are read from its file once the process has gone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hookbridge::broker::Letter;
use hookbridge::broker::embedded::{Embedded, Settings};
use hookbridge::delivery::Reason;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const WITHIN: Duration = Duration::from_secs(20);

fn embedded_config(source: &str, subscriptions: &str) -> String {
    format!(
        "group: hookbridge
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ local: {{ broker: here, topics: ['#']{source} }} }}
subscriptions:
{subscriptions}"
    )
}

async fn publish(bridge: &Bridge, topic: &str, id: &str) {
    let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
    let answer = reqwest::Client::new()
        .post(url)
        .header("Hookbridge-Id", id)
        .body("{}")
        .send()
        .await
        .expect("published");
    assert_eq!(answer.status(), 202);
}

/// The dead letters in the file of a bridge that has stopped.
async fn letters(bridge: &mut Bridge) -> Vec<Letter> {
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    let broker: Arc<Embedded> = Embedded::open(Settings {
        name: "here".into(),
        group: "hookbridge".into(),
        path: bridge.data_dir().join("embedded-here.redb"),
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: Vec::new(),
    })
    .expect("opens");
    crate::support::letters::listed(&*broker).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_max_parked_a_subscriptions_own_deliveries_are_dead_lettered() {
    let receiver = Receiver::answering(|_, _| Answer::status(503)).await;
    let bad = subscription(
        "crm",
        "orders.*",
        &receiver.url("/"),
        ", max_parked: { count: 3 }",
    )
    .replace("[1s, 1s, 1s]", "[1h]");
    let mut bridge = Bridge::start(&embedded_config("", &bad))
        .await
        .ready()
        .await;
    for number in 0..5 {
        publish(&bridge, "orders.made", &format!("evt_{number}")).await;
    }
    eventually("two dead letters", WITHIN, async || {
        let line = "hookbridge_dead_letters_total{subscription=\"crm\",reason=\"parked_limit\"}";
        (bridge.metric(line).await == 2.0).then_some(())
    })
    .await;
    let letters = letters(&mut bridge).await;
    assert_eq!(letters.len(), 2);
    assert!(
        letters
            .iter()
            .all(|letter| letter.reason == Reason::ParkedLimit)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmatched_event_is_dead_lettered_where_the_source_says_so() {
    let receiver = Receiver::accepting().await;
    let config = embedded_config(
        ", unmatched: dead_letter",
        &subscription("crm", "orders.*", &receiver.url("/"), ""),
    );
    let mut bridge = Bridge::start(&config).await.ready().await;
    publish(&bridge, "users.made", "evt_1").await;
    publish(&bridge, "orders.made", "evt_2").await;
    receiver.wait_for(1, WITHIN).await;
    let letters = letters(&mut bridge).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, Reason::Unmatched);
    assert_eq!(letters[0].delivery.event.id.as_str(), "evt_1");
    assert_eq!(receiver.by_id().keys().collect::<Vec<_>>(), ["evt_2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_holds_the_whole_lane() {
    let receiver = Receiver::answering(|request, before| match request.id.as_str() {
        "evt_first" if before == 0 => Answer::status(429).header("retry-after", 3),
        _ => Answer::status(200),
    })
    .await;
    let config = embedded_config("", &subscription("crm", "#", &receiver.url("/"), ""));
    let bridge = Bridge::start(&config).await.ready().await;
    publish(&bridge, "orders.made", "evt_first").await;
    let first = receiver.wait_for(1, WITHIN).await.remove(0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    publish(&bridge, "orders.made", "evt_second").await;
    let requests = receiver.wait_for(3, WITHIN).await;
    for later in &requests[1..] {
        let waited = later.at - first.at;
        assert!(
            waited >= Duration::from_millis(2_900),
            "{} came {waited:?} after the 429",
            later.id
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_matches_two_subscriptions_is_retried_for_the_one_that_failed() {
    let good = Receiver::accepting().await;
    let flaky =
        Receiver::answering(|_, before| Answer::status(if before == 0 { 500 } else { 204 })).await;
    let both = subscription("good", "orders.#", &good.url("/"), "")
        + &subscription("flaky", "#", &flaky.url("/"), "");
    let bridge = Bridge::start(&embedded_config("", &both))
        .await
        .ready()
        .await;
    publish(&bridge, "orders.made", "evt_1").await;
    flaky.wait_for(2, WITHIN).await;
    eventually("the event is settled", WITHIN, async || {
        let line = "hookbridge_source_messages_settled_total{source=\"local\",outcome=\"settled\"}";
        (bridge.metric(line).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(good.requests().len(), 1);
    assert_eq!(flaky.by_id()["evt_1"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_lets_only_its_events_through() {
    let receiver = Receiver::accepting().await;
    let filtered = subscription(
        "crm",
        "orders.*",
        &receiver.url("/"),
        ", filter: { data.total: { $gte: 100 } }",
    );
    let bridge = Bridge::start(&embedded_config("", &filtered))
        .await
        .ready()
        .await;
    for (id, body) in [
        ("evt_small", "{\"total\": 99}"),
        ("evt_text", "no json"),
        ("evt_large", "{\"total\": 100}"),
    ] {
        let url = format!("http://{}/v1/topics/orders.made/events", bridge.admin);
        let client = reqwest::Client::new();
        client
            .post(url)
            .header("Hookbridge-Id", id)
            .body(body)
            .send()
            .await
            .expect("published");
    }
    eventually("all three are settled", WITHIN, async || {
        let line = "hookbridge_source_messages_settled_total{source=\"local\",outcome=\"settled\"}";
        (bridge.metric(line).await == 3.0).then_some(())
    })
    .await;
    assert_eq!(receiver.by_id().keys().collect::<Vec<_>>(), ["evt_large"]);
}

/// How many requests a receiver had at each, which works on four at a time, each for 100 ms, and lets
/// the rest wait.
type Depths = Arc<Mutex<Vec<usize>>>;

async fn queueing() -> (Receiver, Depths) {
    let depths = Depths::default();
    let seen = depths.clone();
    let places: BinaryHeap<Reverse<Instant>> = (0..4).map(|_| Reverse(Instant::now())).collect();
    let queue = Mutex::new((places, Vec::new()));
    let receiver = Receiver::answering(move |_, _| {
        let (places, answers) = &mut *queue.lock().unwrap();
        let now = Instant::now();
        let Reverse(free) = places.pop().expect("four places");
        let done = free.max(now) + Duration::from_millis(100);
        places.push(Reverse(done));
        answers.retain(|answer| *answer > now);
        answers.push(done);
        seen.lock().unwrap().push(answers.len());
        Answer::status(204).after(done - now)
    });
    (receiver.await, depths)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adaptive_lane_asks_no_more_at_once_than_the_receiver_works_on() {
    const EVENTS: usize = 400;
    let (fixed, fixed_depths) = queueing().await;
    let (adaptive, adaptive_depths) = queueing().await;
    let own = |name: &str, url: &str, more: &str| {
        format!(
            "  {name}: {{ topics: ['#'], concurrency: 32{more}, endpoint: {{ url: '{url}', signature: none }} }}\n"
        )
    };
    let subscriptions = own("fixed", &fixed.url("/"), "")
        + &own("adaptive", &adaptive.url("/"), ", adaptive: true");
    let config = embedded_config(", window: 1000", &subscriptions);
    let bridge = Bridge::start(&config).await.ready().await;
    let events = "{\"data\":{}}\n".repeat(EVENTS);
    let url = format!("http://{}/v1/topics/orders/events", bridge.admin);
    let request = reqwest::Client::new().post(url).body(events);
    let request = request.header("content-type", "application/x-ndjson");
    assert_eq!(request.send().await.expect("published").status(), 202);
    fixed.wait_for(EVENTS, 4 * WITHIN).await;
    adaptive.wait_for(EVENTS, 4 * WITHIN).await;
    // Once it has learned.
    let usual = |depths: &Depths| {
        let mut late = depths.lock().unwrap()[EVENTS / 2..].to_vec();
        late.sort_unstable();
        late[late.len() / 2]
    };
    let (fixed, adaptive) = (usual(&fixed_depths), usual(&adaptive_depths));
    println!("requests at once: fixed {fixed}, adaptive {adaptive}");
    assert!(fixed >= 20 && adaptive <= 12, "{fixed}, {adaptive}");
    let found = bridge.metric("hookbridge_adaptive_concurrency{subscription=\"adaptive\"}");
    assert!((1.0..=16.0).contains(&found.await));
}
