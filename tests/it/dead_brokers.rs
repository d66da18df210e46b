//! Dead letters on all three brokers: looking changes nothing, and what is sent again reaches only
//! the subscription that missed it, whoever interrupts.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::dead_support::{SOON, Scene};
use crate::support::bus::Bus;
use crate::support::{brokers, cli, eventually};

async fn rabbitmq() -> Bus {
    Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await
}

async fn kafka() -> Bus {
    Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await
}

/// Listed, counted and exported, often; then sent again to `crm` alone.
async fn looking_changes_nothing_and_a_retry_reaches_who_missed_it(bus: Bus) {
    const LETTERS: usize = 12;
    let scene = Scene::new(bus, LETTERS).await;
    let first = scene.json("/v1/dead-letters").await;
    assert_eq!(first["letters"].as_array().unwrap().len(), LETTERS);
    for _ in 0..50 {
        assert_eq!(scene.json("/v1/dead-letters").await, first);
    }
    let counted = scene
        .json("/v1/dead-letters/count?filter=data.total:>=60")
        .await;
    assert_eq!(counted, json!({ "count": 7, "seen": 12 }));
    let exported = scene.dead(&["export"]).await;
    let mut totals: Vec<_> = exported
        .ok()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|letter| letter["data"]["total"].as_u64().unwrap())
        .collect();
    totals.sort();
    let expected: Vec<_> = (1..=LETTERS as u64).map(|n| n * 10).collect();
    assert_eq!(totals, expected);

    let dry = scene
        .dead(&["retry", "subscription:crm", "--dry-run"])
        .await;
    assert_eq!(dry.ok(), "12 letters would be sent again\n");
    assert_eq!(scene.count().await, 12);
    scene.heal();
    let some = scene
        .dead(&["retry", "data.total:<=50", "--rate", "100/s"])
        .await;
    assert_eq!(some.ok(), "5 letters sent again\n");
    assert_eq!(scene.count().await, 7);
    let rest = scene.dead(&["retry", "--all", "--yes"]).await;
    assert_eq!(rest.ok(), "7 letters sent again\n");
    scene.assert_all_taken_once().await;
    assert_eq!(scene.count().await, 0);
}

/// One of two that retry at once is told so, and may go on when the other has been cancelled.
async fn two_at_once_send_nothing_twice(bus: Bus) {
    let scene = Scene::new(bus, 10).await;
    scene.heal();
    let slowly = r#"{"all": true, "rate": "60/m"}"#;
    let (status, job) = scene.bridge.post("/v1/dead-letters/retry", slowly).await;
    assert_eq!(status, 202, "{job}");
    let second = scene.dead(&["retry", "--all", "--yes"]).await;
    assert_eq!(second.code, Some(1), "{}{}", second.out, second.err);
    assert!(
        second.err.contains("Somebody else is at it"),
        "{}",
        second.err
    );
    let job: serde_json::Value = serde_json::from_str(&job).unwrap();
    let url = format!(
        "http://{}/v1/jobs/{}",
        scene.bridge.admin,
        job["id"].as_str().unwrap()
    );
    let cancelled = reqwest::Client::new().delete(url).send().await.unwrap();
    assert_eq!(cancelled.status(), 200);
    eventually("the second's turn", SOON, async || {
        let again = scene.dead(&["retry", "--all", "--yes"]).await;
        (again.code == Some(0)).then_some(())
    })
    .await;
    scene.assert_all_taken_once().await;
}

/// The command is killed in the middle, with no bridge running, and run again.
async fn killed_in_the_middle_nothing_is_lost_and_one_at_most_repeated(bus: Bus) {
    const LETTERS: usize = 40;
    let mut scene = Scene::new(bus, LETTERS).await;
    scene.heal();
    scene.stop().await;
    let config = scene.bridge.config_path();
    let mut kills = 0;
    loop {
        let arguments = ["dead", "retry", "--all", "--yes", "--rate", "20/s"];
        let mut retrying = cli::command(&config, &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        retrying.kill().unwrap();
        retrying.wait().unwrap();
        kills += 1;
        let left = eventually("the letters are counted", SOON, async || {
            let counted = scene.dead(&["list", "--count"]).await;
            (counted.code == Some(0)).then(|| counted.out.trim().parse::<usize>().unwrap())
        })
        .await;
        assert!(left > 0, "it was done before it was killed");
        if left < LETTERS {
            break;
        }
    }
    // The lock of one that was killed is given back by the broker, in its time.
    eventually("the rest is sent", SOON, async || {
        let again = scene.dead(&["retry", "--all", "--yes"]).await;
        (again.code == Some(0)).then_some(())
    })
    .await;
    scene.bridge.start_again().await;
    scene.bridge.wait_ready(SOON).await;
    eventually("all are taken", SOON, async || {
        (scene.taken().len() == LETTERS).then_some(())
    })
    .await;
    scene.crm.quiet_for(Duration::from_millis(700), SOON).await;
    let repeated = scene.taken().iter().sum::<usize>() - LETTERS;
    assert!(repeated <= kills, "{repeated} repeated by {kills} kills");
    assert_eq!(scene.count().await, 0);
    assert_eq!(scene.stock.count(), LETTERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_is_not_changed_by_looking() {
    looking_changes_nothing_and_a_retry_reaches_who_missed_it(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_is_not_changed_by_looking() {
    looking_changes_nothing_and_a_retry_reaches_who_missed_it(rabbitmq().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_not_changed_by_looking() {
    looking_changes_nothing_and_a_retry_reaches_who_missed_it(kafka().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_lets_one_retry_at_a_time() {
    two_at_once_send_nothing_twice(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_lets_one_retry_at_a_time() {
    two_at_once_send_nothing_twice(rabbitmq().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_lets_one_retry_at_a_time() {
    two_at_once_send_nothing_twice(kafka().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_survives_a_killed_retry() {
    killed_in_the_middle_nothing_is_lost_and_one_at_most_repeated(Bus::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_survives_a_killed_retry() {
    killed_in_the_middle_nothing_is_lost_and_one_at_most_repeated(rabbitmq().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_survives_a_killed_retry() {
    killed_in_the_middle_nothing_is_lost_and_one_at_most_repeated(kafka().await).await;
}
