//! Batches over a real bridge: what fills one, what becomes of its members when it fails or is too
//! long, and that none of them is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::chaos_kill::{account, bodies};
use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::{brokers, eventually};

const WITHIN: Duration = Duration::from_secs(30);
/// No test waits for this to pass.
const LONG: &str = "within: 30s";

/// A subscription with `batch` and more keys of its endpoint.
fn batched(receiver: &Receiver, batch: &str, more: &str) -> String {
    let endpoint = format!("batch: {{ {batch} }}, {more} secret:");
    subscription("crm", "orders.*", &receiver.url("/"), "").replace("secret:", &endpoint)
}

/// The bodies in the array, byte for byte.
fn members(request: &Request) -> Vec<String> {
    let all: Vec<&RawValue> = serde_json::from_slice(&request.body)
        .unwrap_or_else(|error| panic!("{error}: {:?}", request.body));
    all.into_iter().map(|one| one.get().to_owned()).collect()
}

fn sizes(requests: &[Request]) -> Vec<usize> {
    requests
        .iter()
        .map(|request| members(request).len())
        .collect()
}

async fn started(bus: &Bus, subscriptions: &str) -> Bridge {
    Bridge::start(&bus.config(subscriptions))
        .await
        .ready()
        .await
}

/// Waits until so many events of the source are settled.
async fn settled(bridge: &Bridge, count: usize) {
    let line = "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
    eventually("all are settled", WITHIN, async || {
        (bridge.metric(line).await == count as f64).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_count_fills_a_batch_which_has_one_id() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let bridge = started(&bus, &batched(&receiver, &format!("count: 10, {LONG}"), "")).await;
    let published = bodies(30);
    bus.publish(&bridge, &published).await;
    let mut requests = receiver.wait_for(3, WITHIN).await;
    settled(&bridge, 30).await;
    assert_eq!(sizes(&requests), [10, 10, 10]);
    requests.sort_by_key(members);
    let all: Vec<_> = requests.iter().flat_map(members).collect();
    assert_eq!(all, published, "as they were taken, byte for byte");
    let ids: BTreeSet<_> = requests.iter().map(|request| &request.id).collect();
    assert_eq!(ids.len(), 3);
    for request in &requests {
        assert!(request.verified, "{:?}", request.headers);
        assert!(request.id.starts_with("batch_") && !request.id.contains('.'));
        assert_eq!(request.headers["content-type"], "application/json");
    }
    for (line, value) in [
        (
            r#"hookbridge_delivery_attempts_total{subscription="crm",outcome="delivered",status_class="2xx"}"#,
            30.0,
        ),
        (
            r#"hookbridge_delivery_duration_seconds_count{subscription="crm"}"#,
            3.0,
        ),
        (
            r#"hookbridge_batch_deliveries_sum{subscription="crm"}"#,
            30.0,
        ),
        (
            r#"hookbridge_batch_deliveries_count{subscription="crm"}"#,
            3.0,
        ),
        (
            r#"hookbridge_deliveries_in_flight{subscription="crm"}"#,
            0.0,
        ),
    ] {
        assert_eq!(bridge.metric(line).await, value, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_fill_a_batch() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let published = bodies(10);
    let most = 3 * (published[0].len() + 1) + 1;
    let batch = format!("count: 100, bytes: {}, within: 1s", most + 5);
    let bridge = started(&bus, &batched(&receiver, &batch, "")).await;
    bus.publish(&bridge, &published).await;
    settled(&bridge, 10).await;
    let requests = receiver.requests();
    let mut sizes = sizes(&requests);
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 3, 3, 3]);
    assert!(requests.iter().all(|request| request.body.len() <= most));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_ends_the_wait() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let bridge = started(&bus, &batched(&receiver, "count: 100, within: 500ms", "")).await;
    bus.publish(&bridge, &bodies(5)).await;
    let published = Instant::now();
    settled(&bridge, 5).await;
    assert!(published.elapsed() < Duration::from_secs(10));
    assert_eq!(sizes(&receiver.requests()), [5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_smaller_than_the_count_holds_nothing_up() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let config = bus.config(&batched(&receiver, &format!("count: 100, {LONG}"), ""));
    let config = config.replace("topics: ['#'] }", "topics: ['#'], window: 8 }");
    let bridge = Bridge::start(&config).await.ready().await;
    let began = Instant::now();
    bus.publish(&bridge, &bodies(24)).await;
    settled(&bridge, 24).await;
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(sizes(&receiver.requests()), [8, 8, 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_sends_what_waits() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let mut bridge = started(
        &bus,
        &batched(&receiver, &format!("count: 100, {LONG}"), ""),
    )
    .await;
    bus.publish(&bridge, &bodies(5)).await;
    let taken = "hookbridge_source_messages_received_total{source=\"orders\"}";
    eventually("all are taken", WITHIN, async || {
        (bridge.metric(taken).await == 5.0).then_some(())
    })
    .await;
    assert_eq!(receiver.count(), 0);
    let asked = Instant::now();
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(sizes(&receiver.requests()), [5]);
}

/// Every batch fails; each member comes by itself then, under its own id.
async fn a_failure_parks_each_by_itself(bus: Bus) {
    const COUNT: usize = 20;
    let receiver = Receiver::answering(|request, _| {
        Answer::status(if members(request).len() > 1 { 503 } else { 204 })
    })
    .await;
    let bridge = started(&bus, &batched(&receiver, &format!("count: 10, {LONG}"), "")).await;
    let published = bodies(COUNT);
    bus.publish(&bridge, &published).await;
    let singles = |request: &Request| members(request).len() == 1;
    eventually("each comes by itself", WITHIN, async || {
        (receiver.count_of(singles) >= COUNT).then_some(())
    })
    .await;
    settled(&bridge, COUNT).await;
    receiver.quiet_for(Duration::from_secs(1), WITHIN).await;
    let (alone, together): (Vec<_>, Vec<_>) = receiver.requests().into_iter().partition(singles);
    let failed: BTreeSet<_> = together.iter().flat_map(members).collect();
    let delivered: Vec<_> = alone.iter().flat_map(members).collect();
    assert_eq!((together.len(), failed.len()), (2, COUNT));
    assert_eq!(delivered.len(), COUNT, "each once");
    assert_eq!(delivered.into_iter().collect::<BTreeSet<_>>(), failed);
    assert!(
        alone
            .iter()
            .chain(&together)
            .all(|request| request.verified)
    );
    let ids: BTreeSet<_> = alone.iter().map(|request| &request.id).collect();
    assert_eq!(ids.len(), COUNT);
    assert!(ids.iter().all(|id| !id.starts_with("batch_")), "{ids:?}");
    let parked = r#"hookbridge_deliveries_parked_total{subscription="crm",reason="retry"}"#;
    assert_eq!(bridge.metric(parked).await, COUNT as f64);
    let id = alone[0].id.replace('%', "%25");
    let (_, trace) = bridge.get(&format!("/v1/events/{id}/trace")).await;
    for part in [
        r#""attempt":1"#,
        r#""outcome":"503""#,
        r#""attempt":2"#,
        r#""outcome":"204""#,
    ] {
        let packed = trace.replace(": ", ":");
        assert!(packed.contains(part), "no {part}: {trace}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_parks_each_member_by_itself() {
    a_failure_parks_each_by_itself(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_parks_each_member_by_itself() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    a_failure_parks_each_by_itself(bus).await;
}

/// A breaker that shuts holds what it does not let through, which has not been attempted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_held_comes_back_to_a_batch() {
    const COUNT: usize = 100;
    let bus = Bus::embedded();
    let asked = AtomicUsize::new(0);
    let receiver = Receiver::answering(move |_, _| {
        let fails = asked.fetch_add(1, Ordering::Relaxed) < 2;
        Answer::status(if fails { 503 } else { 204 }).after(Duration::from_millis(100))
    })
    .await;
    let more = "concurrency: 1, breaker: { failures: 2, cool_down: 1s },";
    let batch = "count: 5, within: 500ms";
    let bridge = started(&bus, &batched(&receiver, batch, more)).await;
    bus.publish(&bridge, &bodies(COUNT)).await;
    settled(&bridge, COUNT).await;
    eventually("all are accepted", WITHIN, async || {
        let requests = receiver.requests();
        let accepted = requests.iter().filter(|request| request.answered == 204);
        let accepted: BTreeSet<_> = accepted.flat_map(members).collect();
        (accepted.len() == COUNT).then_some(())
    })
    .await;
    let held = r#"hookbridge_deliveries_parked_total{subscription="crm",reason="hold"}"#;
    assert!(
        bridge.metric(held).await >= 20.0,
        "{}",
        bridge.metrics().await
    );
    let sizes = sizes(&receiver.requests());
    let alone = sizes.iter().filter(|size| **size == 1).count();
    assert!(
        alone <= 14,
        "ten of the two that failed, and few more: {sizes:?}"
    );
}

/// What is refused for good is refused for one member, and only that one is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_member_costs_the_others_a_retry_and_nothing_more() {
    let bus = Bus::embedded();
    let bad = bodies(8).remove(3);
    let is_bad = bad.clone();
    let receiver = Receiver::answering(move |request, _| {
        Answer::status(if members(request).contains(&is_bad) {
            400
        } else {
            204
        })
    })
    .await;
    let subscription = batched(&receiver, &format!("count: 8, {LONG}"), "")
        .replace("schedule: [1s, 1s, 1s]", "schedule: [1s], no_retry: [400]");
    let mut bridge = started(&bus, &subscription).await;
    bus.publish(&bridge, &bodies(8)).await;
    receiver.wait_for(9, WITHIN).await;
    let dead = r#"hookbridge_dead_letters_total{subscription="crm",reason="no_retry"}"#;
    eventually("the bad one is dead", WITHIN, async || {
        (bridge.metric(dead).await == 1.0).then_some(())
    })
    .await;
    let letters = bus.letters(&mut bridge, 1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].body, bad);
    assert_eq!(letters[0].headers["hookbridge-attempts"], "2");
    let good = receiver.requests();
    let good: BTreeSet<_> = good
        .iter()
        .filter(|request| request.answered == 204)
        .flat_map(members)
        .collect();
    assert_eq!(good.len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_long_is_halved() {
    let bus = Bus::embedded();
    let receiver = Receiver::answering(|request, _| {
        Answer::status(if members(request).len() > 2 { 413 } else { 204 })
    })
    .await;
    let bridge = started(&bus, &batched(&receiver, &format!("count: 8, {LONG}"), "")).await;
    let published = bodies(8);
    bus.publish(&bridge, &published).await;
    settled(&bridge, 8).await;
    let requests = receiver.requests();
    let mut sizes = sizes(&requests);
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 2, 2, 2, 4, 4, 8]);
    let mut taken: Vec<_> = requests
        .iter()
        .filter(|request| request.answered == 204)
        .flat_map(members)
        .collect();
    taken.sort();
    assert_eq!(taken, published);
    let parked = r#"hookbridge_deliveries_parked_total{subscription="crm",reason="retry"}"#;
    assert_eq!(bridge.metric(parked).await, 0.0);
}

/// What is too long by itself is retried like anything else, and none of the halving counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halving_ends_with_one_whose_attempts_are_its_own() {
    let bus = Bus::embedded();
    let receiver = Receiver::answering(|_, _| Answer::status(413)).await;
    let subscription = batched(&receiver, &format!("count: 4, {LONG}"), "")
        .replace("schedule: [1s, 1s, 1s]", "schedule: [1s]");
    let mut bridge = started(&bus, &subscription).await;
    bus.publish(&bridge, &bodies(4)).await;
    let dead = r#"hookbridge_dead_letters_total{subscription="crm",reason="attempts_exhausted"}"#;
    eventually("all are dead", WITHIN, async || {
        (bridge.metric(dead).await == 4.0).then_some(())
    })
    .await;
    let mut sizes = sizes(&receiver.requests());
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4]);
    let letters = bus.letters(&mut bridge, 4).await;
    let attempts: Vec<_> = letters
        .iter()
        .map(|it| &it.headers["hookbridge-attempts"])
        .collect();
    assert_eq!(attempts, ["2"; 4]);
}

async fn publish(bridge: &Bridge, content_type: &str, body: &str) {
    let url = format!("http://{}/v1/topics/orders.created/events", bridge.admin);
    let request = reqwest::Client::new().post(url).body(body.to_owned());
    let answer = request.header("content-type", content_type).send().await;
    assert_eq!(answer.expect("an answer").status().as_u16(), 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_no_body_can_be_made_goes_alone() {
    let bus = Bus::embedded();
    let (wrapped, plain) = (Receiver::accepting().await, Receiver::accepting().await);
    let batch = format!("count: 2, {LONG}");
    let subscriptions = batched(&wrapped, &batch, "format: envelope,")
        + &batched(&plain, &batch, "").replace("crm:", "plain:");
    let mut bridge = started(&bus, &subscriptions).await;
    publish(&bridge, "application/json", "[1]").await;
    publish(&bridge, "text/plain", "no JSON").await;
    publish(&bridge, "application/json", "[2]").await;
    settled(&bridge, 3).await;
    let requests = wrapped.requests();
    assert_eq!(sizes(&requests), [2]);
    assert!(members(&requests[0])[0].ends_with(r#""data":[1]}"#));
    let mut came: Vec<_> = plain
        .requests()
        .iter()
        .map(|request| {
            let kind = request.headers["content-type"].to_str().unwrap().to_owned();
            (request.body.clone(), kind)
        })
        .collect();
    came.sort();
    let expected = [("[[1],[2]]", "application/json"), ("no JSON", "text/plain")];
    let expected = expected.map(|(body, kind)| (Bytes::from(body), kind.to_owned()));
    assert_eq!(came, expected);
    let letters = bus.letters(&mut bridge, 1).await;
    assert_eq!(
        (letters.len(), letters[0].reason.as_str()),
        (1, "render_failed")
    );
}

/// A member as if it had come by itself.
fn by_itself(requests: &[Request]) -> Vec<Request> {
    let each = |request: &Request| {
        let alone = |body: String| Request {
            id: String::new(),
            body: body.into(),
            ..request.clone()
        };
        members(request).into_iter().map(alone).collect::<Vec<_>>()
    };
    requests.iter().flat_map(each).collect()
}

async fn killed_with_batches_in_flight(bus: Bus, name: &str) {
    const COUNT: usize = 3_000;
    // Some batches fail, so that members are parked too when it is killed.
    let receiver = Receiver::answering(|request, before| {
        let is_one_in_five = request.id.bytes().map(u32::from).sum::<u32>() % 5 == 0;
        let fails = is_one_in_five && before == 0 && members(request).len() > 1;
        Answer::status(if fails { 503 } else { 204 }).after(Duration::from_millis(20))
    })
    .await;
    let batch = "count: 37, bytes: 20KiB, within: 200ms";
    let mut bridge = started(&bus, &batched(&receiver, batch, "")).await;
    let published = bodies(COUNT);
    bus.publish(&bridge, &published).await;
    for at in [20, 50] {
        eventually("the middle", WITHIN, async || {
            (receiver.count() >= at).then_some(())
        })
        .await;
        bridge.kill9_and_restart().await;
    }
    eventually(
        "every event is accepted",
        Duration::from_secs(120),
        async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let requests = receiver.requests();
            let accepted = requests.iter().filter(|request| request.answered == 204);
            let accepted: BTreeSet<_> = accepted.flat_map(members).collect();
            (accepted.len() == COUNT).then_some(())
        },
    )
    .await;
    receiver.quiet_for(Duration::from_secs(2), WITHIN).await;
    let requests = receiver.requests();
    let repeats = account(&published, &by_itself(&requests), &[]);
    let mut of_size: BTreeMap<usize, usize> = BTreeMap::new();
    for size in sizes(&requests) {
        *of_size.entry(size).or_default() += 1;
    }
    println!("{name}: {COUNT} events, {repeats} repeats; requests by members: {of_size:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_loses_no_member_to_a_kill() {
    killed_with_batches_in_flight(Bus::embedded(), "embedded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_loses_no_member_to_a_kill() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    killed_with_batches_in_flight(bus, "rabbitmq").await;
}
