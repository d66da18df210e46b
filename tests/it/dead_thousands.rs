//! Ten thousand dead letters sent again in one command, at a rate: each comes to the receiver once, and
//! what was not meant lies where it lay. On the embedded broker: see `dead_commands`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookbridge::delivery::Reason;
use hookbridge::{app, config};

use crate::dead_support::delivery;
use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::cli::{self, Ran};
use crate::support::receiver::Receiver;
use crate::support::{brokers, eventually};

const LETTERS: usize = 10_000;
/// Letters of the other subscription.
const OTHERS: usize = 25;
const SOON: Duration = Duration::from_secs(60);

/// A bridge with the letters of two subscriptions that take everything by now.
struct Scene {
    bridge: Bridge,
    crm: Receiver,
    stock: Receiver,
}

impl Scene {
    /// The bridge has ended when this returns: commands work on the broker themselves.
    async fn new(bus: &Bus) -> Self {
        let (crm, stock) = (Receiver::accepting().await, Receiver::accepting().await);
        let subscriptions = ["crm", "stock"].map(|name| {
            let receiver = if name == "crm" { &crm } else { &stock };
            subscription(name, "orders.*", &receiver.url("/"), "")
        });
        let mut bridge = Bridge::start(&bus.config(&subscriptions.concat()))
            .await
            .ready()
            .await;
        bridge.terminate();
        assert_eq!(bridge.exit_code(SOON).await, Some(0));
        let scene = Self { bridge, crm, stock };
        scene.bury().await;
        scene
    }

    /// Puts the letters of both among the dead ones, mixed.
    async fn bury(&self) {
        let loaded = config::load(&self.bridge.config_path(), &|_| None).expect("a good config");
        let operations = app::operations(&loaded.config, |_| true).expect("brokers");
        let broker = operations.brokers["here"].clone();
        let every = LETTERS / OTHERS;
        let all = (0..LETTERS + OTHERS).map(|number| {
            let subscription = if number % (every + 1) == 0 {
                "stock"
            } else {
                "crm"
            };
            let (broker, delivery) = (broker.clone(), delivery(number, subscription));
            async move { broker.dead_letter(&delivery, Reason::GaveUp).await }
        });
        let kept = stream::iter(all).buffer_unordered(500);
        kept.try_collect::<()>().await.expect("all are kept");
    }

    async fn run_bridge(&mut self) {
        self.bridge.start_again().await;
        self.bridge.wait_ready(SOON).await;
    }

    async fn count(&self, filter: &str) -> String {
        let arguments = ["dead", "list", "--count", filter];
        let counted = cli::run(&self.bridge.config_path(), &arguments).await;
        counted.ok().trim().to_owned()
    }

    /// Sends the letters of `crm` again; what was printed, and how long it took.
    async fn retry(&self, seen_on: SeenOn, rate: u32) -> (Ran, Duration) {
        let rate = format!("{rate}/s");
        let arguments = [
            "dead",
            "retry",
            "subscription:crm",
            "--yes",
            "--rate",
            &rate,
        ];
        let config = self.bridge.config_path();
        let command = match seen_on {
            SeenOn::Pipe => cli::command(&config, &arguments),
            SeenOn::Terminal => {
                let binary = env!("CARGO_BIN_EXE_hookbridge");
                let line = format!("{binary} {}", arguments.join(" "));
                let mut command = Command::new("script");
                command
                    .args(["-qec", &line, "/dev/null"])
                    .env("HOOKBRIDGE_CONFIG", &config)
                    .env("TERM", "xterm")
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                command
            }
        };
        let began = Instant::now();
        let ran = cli::finished(command).await;
        let took = began.elapsed();
        println!(
            "{LETTERS} letters sent again in {took:?}, {:.0}/s",
            LETTERS as f64 / took.as_secs_f64()
        );
        (ran, took)
    }

    /// Each letter of `crm` came to it once, and `stock`'s lie where they lay.
    async fn assert_only_crm_got_its_own(&self) {
        let began = Instant::now();
        eventually("all have come", SOON, async || {
            (self.crm.count() >= LETTERS).then_some(())
        })
        .await;
        println!("the last came {:?} later", began.elapsed());
        self.crm.quiet_for(Duration::from_millis(700), SOON).await;
        let by_id = self.crm.by_id();
        assert_eq!(by_id.len(), LETTERS);
        assert!(by_id.values().all(|&times| times == 1), "one came twice");
        assert_eq!(self.stock.count(), 0);
        assert_eq!(self.count("subscription:crm").await, "0");
        assert_eq!(self.count("subscription:stock").await, OTHERS.to_string());
    }
}

/// Where a command's standard error goes.
#[derive(Debug, Clone, Copy)]
enum SeenOn {
    Terminal,
    Pipe,
}

/// The command does it itself, on a terminal of its own so that there is a bar.
async fn with_no_bridge_running(bus: Bus) {
    let mut scene = Scene::new(&bus).await;
    assert_eq!(scene.count("subscription:crm").await, LETTERS.to_string());
    let (ran, took) = scene.retry(SeenOn::Terminal, 5_000).await;
    let out = ran.ok();
    assert!(out.contains("10000 letters sent again"), "{out}");
    assert!(out.contains("/1002"), "there is a bar: {out}");
    let least = Duration::from_millis(1_990);
    assert!(took >= least, "faster than its rate: {took:?}");
    scene.run_bridge().await;
    scene.assert_only_crm_got_its_own().await;
}

/// The bridge does it, while what was sent again is delivered already; lines say how far it is.
async fn with_a_bridge_running(bus: Bus) {
    let mut scene = Scene::new(&bus).await;
    scene.run_bridge().await;
    let (ran, took) = scene.retry(SeenOn::Pipe, 1_500).await;
    assert_eq!(ran.out, "10000 letters sent again\n");
    assert!(!ran.err.contains('\u{1b}'), "no bar: {}", ran.err);
    let line = ran.err.lines().next().unwrap_or_default();
    assert!(line.contains(" of 1002"), "{}", ran.err);
    assert!(
        took >= Duration::from_millis(6_660),
        "faster than its rate: {took:?}"
    );
    scene.assert_only_crm_got_its_own().await;
}

async fn rabbitmq() -> Bus {
    Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await
}

async fn kafka() -> Bus {
    Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_sends_them_by_its_bridge() {
    with_a_bridge_running(rabbitmq().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_sends_them_with_no_bridge() {
    with_no_bridge_running(kafka().await).await;
}
