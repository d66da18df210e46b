//! Kill -9 of the bridge in the middle of its work: nothing is missing, little is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Letter, TOPIC};
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::{brokers, eventually};

const WITHIN: Duration = Duration::from_secs(120);
const PARTITIONS: usize = 4;

/// A body that says which it is; the spaces are there to be kept.
pub fn body(number: usize) -> String {
    let (number, pad) = (100_000 + number, "x".repeat(300));
    format!("{{\"order\":  {number}, \"pad\": \"{pad}\"}}")
}

pub fn bodies(count: usize) -> Vec<String> {
    (0..count).map(body).collect()
}

fn number_in(body: &[u8]) -> usize {
    let digits: Vec<u8> = body
        .iter()
        .copied()
        .filter(u8::is_ascii_digit)
        .take(6)
        .collect();
    let text = String::from_utf8(digits).expect("ascii");
    text.parse::<usize>().expect("a number") - 100_000
}

/// One in a hundred is refused for good.
pub fn is_bad(number: usize) -> bool {
    number % 100 == 7
}

/// A receiver that refuses some events for good, and one in five once or twice.
pub async fn flaky() -> Receiver {
    Receiver::answering(answer).await
}

/// What [`flaky`] answers when `before` came before it with the same id.
pub fn answer(request: &Request, before: usize) -> Answer {
    let number = number_in(&request.body);
    if is_bad(number) {
        Answer::status(400)
    } else if number.is_multiple_of(5) && before <= number % 2 {
        Answer::status(503)
    } else {
        Answer::status(204)
    }
}

pub fn subscriptions(receiver: &Receiver) -> String {
    subscription("crm", "orders.*", &receiver.url("/"), "").replace(
        "schedule: [1s, 1s, 1s]",
        "schedule: [1s, 1s, 1s, 1s, 1s, 1s], no_retry: [400]",
    )
}

/// Different bodies that were accepted.
pub fn accepted(receiver: &Receiver) -> usize {
    let requests = receiver.requests();
    let bodies: BTreeSet<_> = requests
        .iter()
        .filter(|request| request.answered == 204)
        .map(|request| &request.body)
        .collect();
    bodies.len()
}

/// Waits until all that can be accepted is, and then until nothing more comes.
pub async fn wait_for_all(receiver: &Receiver, count: usize) {
    let good = (0..count).filter(|&number| !is_bad(number)).count();
    wait_until_accepted(receiver, good).await;
}

/// Waits until so many different events are accepted, and then until nothing more comes.
async fn wait_until_accepted(receiver: &Receiver, good: usize) {
    let began = Instant::now();
    let mut last = began;
    eventually("every good event is accepted", WITHIN, async || {
        // Counting all of them is dear; it is enough now and then.
        if last.elapsed() < Duration::from_millis(500) {
            return None;
        }
        last = Instant::now();
        let now = accepted(receiver);
        if now != good && began.elapsed() > Duration::from_secs(30) {
            println!("{now} of {good} accepted after {:?}", began.elapsed());
        }
        (now == good).then_some(())
    })
    .await;
    receiver.quiet_for(Duration::from_secs(3), WITHIN).await;
}

/// Every event is accepted or in the dead letters, untouched, and none is there that nobody
/// published. Returns how many successful deliveries were repeats.
pub fn account(published: &[String], requests: &[Request], letters: &[Letter]) -> usize {
    let expected: BTreeSet<&[u8]> = published.iter().map(|body| body.as_bytes()).collect();
    let mut ids: BTreeMap<&[u8], BTreeSet<&str>> = BTreeMap::new();
    let mut accepted: BTreeMap<&[u8], usize> = BTreeMap::new();
    for request in requests {
        assert!(request.verified, "bad signature: {:?}", request.headers);
        assert!(
            expected.contains(&request.body[..]),
            "spurious or changed: {:?}",
            request.body
        );
        ids.entry(&request.body[..])
            .or_default()
            .insert(&request.id);
        if request.answered == 204 {
            *accepted.entry(&request.body[..]).or_default() += 1;
        }
    }
    let renamed = ids.values().filter(|ids| ids.len() > 1).count();
    assert_eq!(renamed, 0, "events came under several ids");
    let mut dead = BTreeSet::new();
    for letter in letters {
        assert_eq!(letter.reason, "no_retry");
        assert!(expected.contains(&letter.body[..]), "a changed dead letter");
        dead.insert(&letter.body[..]);
    }
    let missing: Vec<_> = expected
        .iter()
        .filter(|body| !accepted.contains_key(**body) && !dead.contains(**body))
        .map(|body| number_in(body))
        .collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {missing:?}",
        missing.len()
    );
    accepted.values().map(|count| count - 1).sum()
}

async fn killed_twice(bus: Bus, name: &str) {
    const COUNT: usize = 5_000;
    let receiver = flaky().await;
    let mut bridge = Bridge::start(&bus.config(&subscriptions(&receiver)))
        .await
        .ready()
        .await;
    let published = bodies(COUNT);
    bus.publish(&bridge, &published).await;
    for at in [1_000, 3_000] {
        eventually("the middle", WITHIN, async || {
            (receiver.count() >= at).then_some(())
        })
        .await;
        bridge.kill9();
        let (before, restarted) = (receiver.count(), Instant::now());
        bridge.start_again().await;
        eventually("the first delivery after a restart", WITHIN, async || {
            (receiver.count() > before).then_some(())
        })
        .await;
        let took = restarted.elapsed();
        println!("{name}: first delivery {took:?} after the restart");
        assert!(took < Duration::from_secs(10), "{took:?} until it goes on");
    }
    wait_for_all(&receiver, COUNT).await;
    let bad = (0..COUNT).filter(|&number| is_bad(number)).count();
    let letters = bus.letters(&mut bridge, bad).await;
    let repeats = account(&published, &receiver.requests(), &letters);
    println!(
        "{name}: {COUNT} events of {TOPIC}, {} dead letters, {repeats} repeats",
        letters.len()
    );
    assert!(repeats <= 1_000, "{repeats} successful deliveries repeated");
}

/// While one receiver hangs with the first event of each partition, another goes on; a kill -9 then.
/// What the other had accepted some time before does not come to it again.
async fn killed_beside_one_that_hangs(bus: Bus, name: &str) {
    const COUNT: usize = 4_000;
    /// All of these are accepted and noted before the rest is published.
    const NOTED: usize = COUNT / 2;
    /// Far longer than the time between two commits.
    const PAUSE: Duration = Duration::from_secs(3);
    let receiver = Receiver::accepting().await;
    let stuck = Receiver::answering(|_, _| Answer::status(204).after(WITHIN)).await;
    let filter = ", filter: { data.head: true }, timeout: 60s";
    let subscriptions = subscription("crm", "orders.*", &receiver.url("/"), "")
        + &subscription("stuck", "orders.*", &stuck.url("/"), filter);
    let mut bridge = Bridge::start(&bus.config(&subscriptions))
        .await
        .ready()
        .await;
    let all = bodies(COUNT);
    let heads = all[..PARTITIONS]
        .iter()
        .map(|body| body.replace("\"pad\"", "\"head\": true, \"pad\""));
    let published: Vec<_> = heads.chain(all[PARTITIONS..].iter().cloned()).collect();
    bus.publish_one_to_each_partition(&bridge, &published[..PARTITIONS])
        .await;
    stuck.wait_for(PARTITIONS, WITHIN).await;
    bus.publish(&bridge, &published[PARTITIONS..NOTED]).await;
    receiver.wait_for(NOTED, WITHIN).await;
    receiver.quiet_for(PAUSE, WITHIN).await;
    bus.publish(&bridge, &published[NOTED..]).await;
    receiver.wait_for(NOTED + NOTED / 4, WITHIN).await;
    bridge.kill9();
    let (before, restarted) = (receiver.count(), Instant::now());
    bridge.start_again().await;
    receiver.wait_for(before + 1, WITHIN).await;
    let took = restarted.elapsed();
    wait_until_accepted(&receiver, COUNT).await;
    // The heads were not settled.
    stuck.wait_for(2 * PARTITIONS, WITHIN / 4).await;
    let repeats = account(&published, &receiver.requests(), &[]);
    // What came after the pause, and the heads themselves.
    let most = before - NOTED + PARTITIONS;
    println!(
        "{name}: killed after {before} of {COUNT} with a hanging receiver at the head of each partition: \
         first delivery {took:?} after the restart, {repeats} repeats, at most {most}"
    );
    assert!(took < Duration::from_secs(10), "{took:?} until it goes on");
    assert!(repeats <= most, "{repeats} successful deliveries repeated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_repeats_little_while_one_receiver_hangs_at_the_head_of_each_partition() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), PARTITIONS as i32).await;
    killed_beside_one_that_hangs(bus, "kafka").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_repeats_little_while_one_receiver_hangs_at_the_head() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    killed_beside_one_that_hangs(bus, "rabbitmq").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_loses_nothing() {
    killed_twice(Bus::embedded(), "embedded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_loses_nothing() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    killed_twice(bus, "rabbitmq").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_loses_nothing() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), PARTITIONS as i32).await;
    killed_twice(bus, "kafka").await;
}
