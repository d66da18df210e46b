//! `topology --adopt OLD-GROUP`: what another group has left parked and dead becomes ours.

use std::time::Duration;

use crate::path::subscription;
use crate::rabbitmq_support::amqp;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::command::Command;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{brokers, eventually, unique};

const WITHIN: Duration = Duration::from_secs(40);

/// One delivery is parked and one is dead under one group; another group takes both over.
async fn adopted_by_another_group(mut bus: Bus) {
    // Refuses all until it has moved.
    let (moved, has_moved) = tokio::sync::watch::channel(false);
    let receiver = Receiver::answering(move |_, _| match *has_moved.borrow() {
        true => Answer::status(204),
        false => Answer::status(503),
    })
    .await;
    let waits = |name: &str| {
        subscription(name, "orders.*", &receiver.url("/later"), "")
            .replace("schedule: [1s, 1s, 1s]", "schedule: [5s, 5s]")
    };
    let dies = subscription("dies", "orders.*", &receiver.url("/never"), "")
        .replace("schedule: [1s, 1s, 1s]", "schedule: [1s], max_attempts: 1");
    let subscriptions = [waits("later"), dies].concat();
    let old = bus.group.clone();
    let mut bridge = Bridge::start(&bus.config(&subscriptions))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &[r#"{"n":1}"#.to_owned()]).await;
    receiver.wait_for(2, WITHIN).await;
    eventually("one is parked and one is dead", WITHIN, async || {
        let metrics = bridge.metrics().await;
        let counted = |line: &str| metrics.lines().any(|one| one.starts_with(line));
        let parked = counted("hookbridge_deliveries_parked_total{subscription=\"later\"");
        let dead = counted("hookbridge_dead_letters_total{subscription=\"dies\"");
        (parked && dead).then_some(())
    })
    .await;
    let in_use = Command::of(&bridge.config_path(), &["topology", "--adopt", &old]).run();
    assert_eq!(in_use.code, 1, "{in_use:?}");
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));

    bus.group = unique("adopter");
    bridge.write_config(&bus.config(&subscriptions));
    let adopt = || Command::of(&bridge.config_path(), &["topology", "--adopt", &old]).run();
    // Kafka takes a while to forget the member that was stopped.
    let said = eventually("the group is adopted", WITHIN, async || {
        Some(adopt()).filter(|said| said.code == 0)
    })
    .await;
    assert!(
        said.stdout
            .contains("1 parked deliveries and 1 dead letters"),
        "{said:?}"
    );
    let again = adopt();
    assert!(
        again
            .stdout
            .contains("0 parked deliveries and 0 dead letters"),
        "{again:?}"
    );

    let before = receiver.count();
    moved.send(true).unwrap();
    bridge.start_again().await;
    let requests = receiver.wait_for(before + 1, WITHIN).await;
    let later: Vec<_> = requests[before..]
        .iter()
        .filter(|request| request.path == "/later" && request.answered == 204)
        .collect();
    assert!(!later.is_empty(), "{:?}", &requests[before..]);
    let letters = bus.letters(&mut bridge, 1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(&letters[0].body[..], br#"{"n":1}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rabbitmq() {
    adopted_by_another_group(Bus::rabbitmq(amqp()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_kafka() {
    adopted_by_another_group(Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await).await;
}
