//! What makes the bridge fail is put away, and a bridge that is killed again and again loses
//! nothing for it. Those that need a failing step run with `--features failpoints`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::chaos_kill::bodies;
#[cfg(feature = "failpoints")]
use crate::chaos_kill::body;
use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{brokers, eventually};

const WITHIN: Duration = Duration::from_secs(60);

fn accepted(receiver: &Receiver) -> BTreeSet<String> {
    let bodies = receiver.requests().into_iter().map(|it| it.body.to_vec());
    bodies
        .map(|body| String::from_utf8(body).unwrap())
        .collect()
}

#[cfg(feature = "failpoints")]
fn one_bad_in(count: usize) -> (Vec<String>, BTreeSet<String>, String) {
    let good = bodies(count);
    let bad = body(count).replace("xxx", "poisonous");
    let mut all = good.clone();
    all.insert(count / 2, bad.clone());
    (all, good.into_iter().collect(), bad)
}

/// Publishes one that fails in this way among others, and accounts for all; how often it died.
#[cfg(feature = "failpoints")]
async fn put_away(bus: Bus, points: &str) -> (Bridge, usize) {
    let receiver = Receiver::accepting().await;
    let config = bus.config(&subscription("crm", "#", &receiver.url("/"), ""));
    let bridge = Bridge::start_with(&config, "HOOKBRIDGE_FAILPOINTS", points).await;
    let mut bridge = bridge.ready().await;
    let (all, good, bad) = one_bad_in(40);
    bus.publish(&bridge, &all).await;
    let mut deaths = 0;
    eventually("the bad one is put away", WITHIN, async || {
        deaths += usize::from(bridge.revive());
        bridge.log().contains("reason=poison").then_some(())
    })
    .await;
    eventually("all good ones are delivered", WITHIN, async || {
        good.is_subset(&accepted(&receiver)).then_some(())
    })
    .await;
    let letters = bus.letters(&mut bridge, 1).await;
    let letters: Vec<_> = letters
        .iter()
        .map(|it| (it.reason.as_str(), &it.body[..]))
        .collect();
    assert_eq!(letters, [("poison", bad.as_bytes())]);
    (bridge, deaths)
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_panics_end_in_the_dead_letters() {
    let (bridge, deaths) = put_away(Bus::embedded(), "render=panic:poisonous").await;
    let log = bridge.log();
    assert_eq!((deaths, log.matches("of=3").count()), (0, 3), "{log}");
    assert!(log.contains("failpoint render (src/failpoint.rs:"), "{log}");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_routing_stops_no_source() {
    let (bridge, deaths) = put_away(Bus::embedded(), "take=panic:poisonous").await;
    let log = bridge.log();
    assert_eq!((deaths, log.matches("of=3").count()), (0, 3), "{log}");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kills_the_process_is_put_away() {
    let (_, deaths) = put_away(Bus::embedded(), "render=abort:poisonous").await;
    // One that nobody watched, and three that were noted.
    assert_eq!(deaths, 4);
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kills_the_process_is_put_away_on_rabbitmq() {
    let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    let (_, deaths) = put_away(bus, "posted=abort:poisonous").await;
    assert!((4..=5).contains(&deaths), "{deaths}");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kills_the_process_is_put_away_on_kafka() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 4).await;
    let (_, deaths) = put_away(bus, "posted=abort:poisonous").await;
    assert!((4..=5).contains(&deaths), "{deaths}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn normal_running_writes_nothing_to_the_store() {
    let bus = Bus::embedded();
    let receiver = Receiver::accepting().await;
    let config = bus.config(&subscription("crm", "#", &receiver.url("/"), ""));
    let mut bridge = Bridge::start(&config).await.ready().await;
    let flushes = "hookbridge_store_flush_duration_seconds_count";
    let before = bridge.metric(flushes).await;
    bus.publish(&bridge, &bodies(200)).await;
    receiver.wait_for(200, WITHIN).await;
    assert_eq!(bridge.metric(flushes).await, before);

    // After an unclean stop it does, and ends doing so.
    bridge.kill9_and_restart().await;
    assert_eq!(bridge.metric("hookbridge_careful").await, 1.0);
    let restarted = Instant::now();
    bus.publish(&bridge, &bodies(500)[200..]).await;
    eventually("normal running", WITHIN, async || {
        (bridge.metric("hookbridge_careful").await == 0.0).then_some(())
    })
    .await;
    println!("careful for {:?}", restarted.elapsed());
    eventually("all are delivered", WITHIN, async || {
        (accepted(&receiver).len() == 500).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = bridge.metric(flushes).await;
    bus.publish(&bridge, &bodies(700)[500..]).await;
    eventually("the rest is delivered", WITHIN, async || {
        (accepted(&receiver).len() == 700).then_some(())
    })
    .await;
    assert_eq!(bridge.metric(flushes).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_order_is_no_crash() {
    let bus = Bus::embedded();
    let mut bridge = Bridge::start(&bus.config("  {}\n")).await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    bridge.start_again().await;
    assert_eq!(bridge.metric("hookbridge_careful").await, 0.0);
}

/// More kills than the queue's delivery limit allows; with one event that is under way at each of
/// them, since its receiver hangs. Without what is done about worn events it is gone by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_on_rabbitmq_costs_no_innocent_event_its_life() {
    const LOOPS: usize = 22;
    const LIMIT: i32 = 20;
    /// Published before the first kill, and for each.
    const FIRST: usize = 250;
    const EACH: usize = 4;
    let bus = Bus::rabbitmq_limited(brokers::env("HOOKBRIDGE_TEST_AMQP"), LIMIT).await;
    let receiver = Receiver::accepting().await;
    let is_up = Arc::new(AtomicBool::new(false));
    let hanging = Receiver::answering({
        let is_up = is_up.clone();
        move |_, _| match is_up.load(Ordering::Relaxed) {
            true => Answer::status(204),
            false => Answer::status(204).after(WITHIN),
        }
    })
    .await;
    let filter = ", filter: { data.hangs: true }, timeout: 60s";
    let subscriptions = subscription("crm", "#", &receiver.url("/"), "")
        + &subscription("hanging", "#", &hanging.url("/"), filter);
    let mut bridge = Bridge::start(&bus.config(&subscriptions))
        .await
        .ready()
        .await;
    let mut all = bodies(FIRST + LOOPS * EACH);
    all[0] = all[0].replace("\"pad\"", "\"hangs\": true, \"pad\"");
    bus.publish(&bridge, &all[..FIRST]).await;
    hanging.wait_for(1, WITHIN).await;
    let began = Instant::now();
    for published in (FIRST..all.len()).step_by(EACH) {
        bridge.kill9();
        bus.publish(&bridge, &all[published..published + EACH])
            .await;
        let (hung, before) = (hanging.count(), receiver.count());
        bridge.launch();
        // The one that hangs, for longer than its turn takes, and some others: what is in hand at three
        // deaths in a row, with nothing gone well between, could not be told from poison.
        eventually("it hangs again, and others go well", WITHIN, async || {
            let asked = hanging.requests();
            let hangs =
                asked.len() > hung && asked.last()?.at.elapsed() > Duration::from_millis(750);
            (hangs && receiver.count() >= before + EACH).then_some(())
        })
        .await;
    }
    println!("{LOOPS} kills in {:?}", began.elapsed());
    assert!(hanging.count() > LIMIT as usize);
    is_up.store(true, Ordering::Relaxed);
    bridge.kill9();
    bridge.start_again().await;
    let since = hanging.count();
    eventually("all are delivered", WITHIN, async || {
        let is_here = hanging.count() > since;
        (is_here && accepted(&receiver).len() == all.len()).then_some(())
    })
    .await;
    assert_eq!(accepted(&hanging), BTreeSet::from([all[0].clone()]));
    let deaths = bridge.log().matches("reason=poison").count();
    assert_eq!(deaths, 0, "innocent events in the dead letters");
}
