//! The bridge dies at each step of the path with work under way: nothing is missing, nothing is
//! spurious, little is repeated.
//!
//! The steps are there with `--features failpoints`, which is how `make test` builds. What a release
//! has of them is nothing.

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use crate::chaos_kill::{account, answer, bodies, is_bad, subscriptions, wait_for_all};
    use crate::support::bridge::Bridge;
    use crate::support::bus::Bus;
    use crate::support::receiver::Receiver;
    use crate::support::{brokers, eventually};

    const WITHIN: Duration = Duration::from_secs(30);
    const COUNT: usize = 3_500;
    /// So many requests are under way at once, as configured where nothing is.
    const AT_ONCE: usize = 16;
    /// The receiver takes its time, so that work is under way at any moment and is not all done before
    /// the last death.
    const TAKES: Duration = Duration::from_millis(20);
    /// What is acknowledged or committed is so after this long at most.
    const COMMITTED_AFTER: Duration = Duration::from_millis(200);

    /// Steps, and at which of the events there. One that dies early and one that gets far take turns,
    /// or what is in hand would die three times in a row and count as poison.
    const DEATHS: [&str; 15] = [
        "take=abort:400",
        "park=abort:10",
        "matched=abort:400",
        "park=soon:10",
        "render=soon:400",
        "parked=abort:10",
        "posted=abort:400",
        "bury=abort:1",
        "delivered=abort:400",
        "bury=soon:1",
        "store=soon:1",
        "due=abort:5",
        "take=abort:200",
        "buried=abort:1",
        "stored=abort:1",
    ];

    async fn killed_at_each_step(bus: Bus, name: &str) {
        let takes_time = Arc::new(AtomicBool::new(true));
        let receiver = Receiver::answering({
            let takes_time = takes_time.clone();
            move |request, before| match takes_time.load(Ordering::Relaxed) {
                true => answer(request, before).after(TAKES),
                false => answer(request, before),
            }
        })
        .await;
        let mut bridge = Bridge::start(&bus.config(&subscriptions(&receiver)))
            .await
            .ready()
            .await;
        let published = bodies(COUNT);
        bus.publish(&bridge, &published).await;
        bridge.kill9();
        let per_commit =
            AT_ONCE * COMMITTED_AFTER.as_millis() as usize / TAKES.as_millis() as usize;
        // That of the first life, which has seen no failpoint.
        let mut bound = AT_ONCE + per_commit;
        for death in DEATHS {
            let (before, began) = (receiver.count(), Instant::now());
            bridge.launch_with("HOOKBRIDGE_FAILPOINTS", death);
            eventually(&format!("{name}: death at {death}"), WITHIN, async || {
                bridge.exited().map(drop)
            })
            .await;
            let requests = receiver.count() - before;
            bound += requests.min(AT_ONCE + per_commit);
            println!(
                "{name}: {death} after {requests} requests, {:?}",
                began.elapsed()
            );
        }
        takes_time.store(false, Ordering::Relaxed);
        bridge.launch_with("HOOKBRIDGE_FAILPOINTS", "");
        bridge.wait_ready(WITHIN).await;
        wait_for_all(&receiver, COUNT).await;
        let bad = (0..COUNT).filter(|&number| is_bad(number)).count();
        let letters = bus.letters(&mut bridge, bad).await;
        let repeats = account(&published, &receiver.requests(), &letters);
        println!("{name}: {COUNT} events, {repeats} repeats, at most {bound}");
        assert!(repeats <= bound, "{repeats} deliveries repeated");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn embedded_survives_death_at_each_step() {
        killed_at_each_step(Bus::embedded(), "embedded").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rabbitmq_survives_death_at_each_step() {
        let bus = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
        killed_at_each_step(bus, "rabbitmq").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn kafka_survives_death_at_each_step() {
        let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 4).await;
        killed_at_each_step(bus, "kafka").await;
    }
}

#[cfg(not(feature = "failpoints"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_feature_the_variable_does_nothing() {
    use crate::support::bridge::Bridge;
    use crate::support::bus::Bus;

    let config = Bus::embedded().config("  {}\n");
    let points = "store=abort:1;stored=abort:1";
    Bridge::start_with(&config, "HOOKBRIDGE_FAILPOINTS", points)
        .await
        .ready()
        .await;
}

#[test]
fn no_build_has_failpoints_unless_it_asks_for_them() {
    let manifest = include_str!("../../Cargo.toml");
    let features = manifest.split("\n[features]\n").nth(1).unwrap();
    let features = features.split("\n[").next().unwrap();
    let on = features
        .lines()
        .find(|line| line.starts_with("default") && line.contains("failpoints"));
    assert_eq!(on, None);
    let release = include_str!("../../Dockerfile");
    assert!(release.contains("cargo build --release"));
    assert!(!release.contains("--features") && !release.contains("--all-features"));
}
