//! What befalls the bridge itself.

use std::time::{Duration, Instant};

use crate::judge::Report;
use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::world::{Kind, Plan, Setting, World};

const RATE: usize = 200;
const WITHIN: Duration = Duration::from_secs(30);

/// kill -9 at moments that the seed decides.
pub async fn killed(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    world.producer.go(RATE);
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let moment = world.chance(300) as u32;
        world.part(150 + moment).await;
        world.bridge.kill9();
        let (before, began) = (world.good.count(), Instant::now());
        world.bridge.start_again().await;
        crate::support::eventually("a delivery after the restart", WITHIN, async || {
            (world.good.count() > before).then_some(())
        })
        .await;
        slowest = slowest.max(began.elapsed());
    }
    let mut report = world.judged().await;
    report.must(
        slowest < Duration::from_secs(12),
        &format!("{slowest:?} until the first delivery after a kill"),
    );
    report
}

/// SIGTERM with slow deliveries in flight, and a start on the same data.
pub async fn terminated(setting: Setting) -> Report {
    let plan = Plan {
        answers_after: Duration::from_millis(300),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.producer.go(RATE / 4);
    let mut codes = Vec::new();
    for _ in 0..2 {
        world.part(250).await;
        world.bridge.terminate();
        codes.push(world.bridge.exit_code(WITHIN).await);
        world.bridge.start_again().await;
    }
    world.most_duplicates = 0;
    let mut report = world.judged().await;
    report.must(
        codes.iter().all(|code| *code == Some(0)),
        &format!("exit codes {codes:?}"),
    );
    report
}

/// A second and a third instance join, and leave in good order and by kill -9.
pub async fn joined_and_left(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    world.producer.go(RATE);
    let mut second = Bridge::start(&world.config).await;
    world.part(200).await;
    let mut third = Bridge::start(&world.config).await;
    world.part(400).await;
    second.terminate();
    second.exit_code(WITHIN).await;
    world.part(200).await;
    second.start_again().await;
    world.part(200).await;
    third.kill9();
    world.part(200).await;
    second.kill9();
    world.part(200).await;
    // Kafka waits for the session of the one that was killed.
    world.most_recovery = Duration::from_secs(30);
    world.judged().await
}

/// One of two instances stands still until its broker gives it up, and goes on: the other has taken what
/// was its own, and it settles nothing of that any more.
pub async fn paused(setting: Setting) -> Report {
    // A session of Kafka is over after 10 s; RabbitMQ waits for two or three heartbeats, one each 10 s.
    let (given_up, taken_over) = match setting.kind {
        Kind::Kafka => (Duration::from_secs(14), Duration::from_secs(4)),
        _ => (Duration::from_secs(40), Duration::from_secs(4)),
    };
    let plan = Plan {
        answers_after: Duration::from_millis(50),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    let second = Bridge::start(&world.config).await.ready().await;
    world.producer.go(RATE / 4);
    world.part(500).await;
    world.bridge.signal("STOP");
    tokio::time::sleep(given_up).await;
    let waiting = world.unanswered();
    tokio::time::sleep(taken_over).await;
    let left = waiting.intersection(&world.unanswered()).count();
    world.bridge.signal("CONT");
    world.part(500).await;
    world.goes_on_without(second).await;
    world.part(300).await;
    let mut report = world.judged().await;
    report.note(format!(
        "of {} events that had no answer when the one was given up, {left} had none {} s later",
        waiting.len(),
        taken_over.as_secs()
    ));
    report.must(
        !waiting.is_empty() && left == 0,
        "the other has not taken over what was its own",
    );
    report
}

/// Two instances are replaced one after the other by some with other tiers, and back, under load.
pub async fn upgraded(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    let older = world.config.clone();
    let newer = older.replace("tiers: [1s, 2s, 5s]", "tiers: [1s, 3s]");
    assert_ne!(newer, older);
    world.producer.go(RATE / 2);
    let mut second = Bridge::start(&older).await;
    world.part(200).await;
    for config in [newer, older] {
        second.write_config(&config);
        second.terminate();
        second.exit_code(WITHIN).await;
        second.start_again().await;
        // One of each.
        world.part(200).await;
        world.bridge.write_config(&config);
        world.bridge.terminate();
        world.bridge.exit_code(WITHIN).await;
        world.bridge.start_again().await;
        world.part(200).await;
    }
    world.goes_on_without(second).await;
    world.judged().await
}

/// The endpoint's secret is replaced, the old one kept beside it: all is signed under either.
pub async fn secret_rotated(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    world.producer.go(RATE);
    world.part(300).await;
    let newer = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc";
    let both = format!("secrets: ['{newer}', '{SECRET}']");
    let rotated = world.config.replace(&format!("secret: '{SECRET}'"), &both);
    assert_ne!(rotated, world.config);
    world.bridge.reload(&rotated);
    world.part(300).await;
    let signed_twice = world.good.count_of(|request| {
        let signature = request.headers.get("webhook-signature");
        signature.is_some_and(|value| value.to_str().is_ok_and(|text| text.contains(' ')))
    });
    let mut report = world.judged().await;
    report.must(signed_twice > 0, "nothing was signed with both secrets");
    report
}

/// A second process on the same data says so and ends; the first goes on.
pub async fn same_data(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    world.producer.go(RATE);
    let data = world.bridge.data_dir().display().to_string();
    let config = world.config.replace("{data}", &data);
    let mut second = Bridge::spawn(&config);
    let code = second.exit_code(WITHIN).await;
    world.part(300).await;
    let mut report = world.judged().await;
    report.must(
        code.is_some_and(|code| code != 0),
        &format!("the second exited with {code:?}"),
    );
    report
}
