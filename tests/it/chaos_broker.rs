//! Kill -9 of the broker in the middle of the work: the bridge recovers by itself, nothing that the
//! broker had confirmed is missing.

use std::time::{Duration, Instant};

use crate::chaos_kill::{account, bodies, flaky, is_bad, subscriptions, wait_for_all};
use crate::support::bridge::Bridge;
use crate::support::brokers::Own;
use crate::support::bus::Bus;
use crate::support::eventually;

const COUNT: usize = 3_000;
const WITHIN: Duration = Duration::from_secs(90);
/// Events in hand at most: a source's window unless the config says otherwise.
const WINDOW: usize = 256;
/// RabbitMQ writes the names of new quorum queues to disk up to three seconds late (a dets table).
/// One that is killed before that starts the queue again from nothing, and without a leader.
pub const NAMES_ON_DISK: Duration = Duration::from_secs(4);

/// Whether the bridge becomes ready within this time.
async fn is_ready(bridge: &Bridge, within: Duration) -> bool {
    let url = format!("http://{}/readyz", bridge.admin);
    let since = Instant::now();
    while since.elapsed() < within {
        let answer = reqwest::get(&url).await.expect("the admin answers");
        if answer.status() == 200 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

async fn its_broker_killed(broker: Own, mut bus: Bus, name: &str) {
    let receiver = flaky().await;
    let mut bridge = Bridge::start(&bus.config(&subscriptions(&receiver)))
        .await
        .ready()
        .await;
    if name.starts_with("rabbitmq") {
        tokio::time::sleep(NAMES_ON_DISK).await;
    }
    let published = bodies(COUNT);
    let (first, second) = published.split_at(COUNT / 2);
    bus.publish(&bridge, first).await;
    eventually("the middle", WITHIN, async || {
        (receiver.count() >= COUNT / 6).then_some(())
    })
    .await;
    tokio::task::block_in_place(|| broker.kill9());
    let at_kill = receiver.count();
    eventually("unreadiness", WITHIN, async || {
        let ready = format!("http://{}/readyz", bridge.admin);
        let answer = reqwest::get(ready).await.expect("the admin answers");
        (answer.status() == 503).then_some(())
    })
    .await;
    tokio::task::block_in_place(|| broker.start_again());
    assert!(
        is_ready(&bridge, WITHIN).await,
        "the bridge does not recover by itself"
    );
    let (back, before) = (Instant::now(), receiver.count());
    bus.reconnect().await;
    bus.publish(&bridge, second).await;
    eventually("a delivery after the broker is back", WITHIN, async || {
        (receiver.count() > before).then_some(())
    })
    .await;
    println!("{name}: delivers again after {:?}", back.elapsed());
    wait_for_all(&receiver, COUNT).await;
    let bad = (0..COUNT).filter(|&number| is_bad(number)).count();
    let letters = bus.letters(&mut bridge, bad).await;
    let repeats = account(&published, &receiver.requests(), &letters);
    println!(
        "{name}: {COUNT} events, {} dead letters, {repeats} repeats, {at_kill} requests at the kill",
        letters.len()
    );
    // The broker may not have noted any answer yet, and what was in hand is delivered without it.
    let bound = at_kill + WINDOW;
    assert!(
        repeats <= bound,
        "{repeats} successful deliveries repeated, {bound} can be"
    );
    bridge.wait_ready(WITHIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_rabbitmq_with_a_classic_queue_was_killed() {
    let broker = tokio::task::block_in_place(Own::rabbitmq);
    let bus = Bus::rabbitmq_classic(broker.address()).await;
    its_broker_killed(broker, bus, "rabbitmq").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_rabbitmq_with_a_quorum_queue_was_killed() {
    let broker = tokio::task::block_in_place(Own::rabbitmq);
    let bus = Bus::rabbitmq(broker.address()).await;
    its_broker_killed(broker, bus, "rabbitmq").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_kafka_was_killed() {
    let broker = tokio::task::block_in_place(Own::kafka);
    let bus = Bus::kafka(broker.address(), 4).await;
    its_broker_killed(broker, bus, "kafka").await;
}
