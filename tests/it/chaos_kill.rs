//! Kill -9 of the bridge in the middle of its work: nothing is missing, little is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, Letter, TOPIC};
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::{brokers, eventually};

const WITHIN: Duration = Duration::from_secs(120);

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
    Receiver::answering(|request, before| {
        let number = number_in(&request.body);
        if is_bad(number) {
            Answer::status(400)
        } else if number.is_multiple_of(5) && before <= number % 2 {
            Answer::status(503)
        } else {
            Answer::status(204)
        }
    })
    .await
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
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 4).await;
    killed_twice(bus, "kafka").await;
}
