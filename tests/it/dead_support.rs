//! A bridge whose `crm` refuses everything until it is healed, beside a `stock` that takes it all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hookbridge::delivery::Delivery;
use hookbridge::event::{Event, EventId, Headers, Origin, Place};
use hookbridge::subscription::Uid;
use jiff::Timestamp;
use serde_json::Value;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::{Bus, TOPIC};
use crate::support::cli::{self, Ran};
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

pub const SOON: Duration = Duration::from_secs(60);

pub struct Scene {
    pub bridge: Bridge,
    pub bus: Bus,
    pub crm: Receiver,
    pub stock: Receiver,
    pub config: String,
    healed: Arc<AtomicBool>,
    letters: usize,
}

impl Scene {
    /// With `letters` dead letters of `crm`.
    pub async fn new(bus: Bus, letters: usize) -> Self {
        let healed = Arc::new(AtomicBool::new(false));
        let is_healed = healed.clone();
        let crm = Receiver::answering(move |_, _| {
            Answer::status(if is_healed.load(Ordering::Relaxed) {
                204
            } else {
                400
            })
        })
        .await;
        let stock = Receiver::accepting().await;
        let config = config(&bus, &crm, &stock);
        let bridge = Bridge::start(&config).await.ready().await;
        let scene = Self {
            bridge,
            bus,
            crm,
            stock,
            config,
            healed,
            letters,
        };
        let bodies: Vec<_> = (1..=letters)
            .map(|n| format!("{{\"order\": {n}, \"total\": {}}}", n * 10))
            .collect();
        scene.bus.publish(&scene.bridge, &bodies).await;
        eventually("all have died", SOON, async || {
            let died = "hookbridge_dead_letters_total{subscription=\"crm\",reason=\"no_retry\"}";
            let died = scene.bridge.metric(died).await;
            (died >= letters as f64 && scene.stock.count() >= letters).then_some(())
        })
        .await;
        scene
    }

    /// From now on `crm` takes everything.
    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    /// How often each id has come to `crm` since it was healed.
    pub fn taken(&self) -> Vec<usize> {
        let mut by_id = std::collections::BTreeMap::new();
        for request in self.crm.requests() {
            if request.answered == 204 {
                *by_id.entry(request.id).or_insert(0) += 1;
            }
        }
        by_id.into_values().collect()
    }

    /// Everything was taken exactly once since, under the ids of the first time, and by `crm` alone.
    pub async fn assert_all_taken_once(&self) {
        let failed = self.crm.count_of(|request| request.answered == 400);
        self.crm.wait_for(failed + self.letters, SOON).await;
        self.crm.quiet_for(Duration::from_millis(700), SOON).await;
        assert_eq!(self.taken(), vec![1; self.letters]);
        assert_eq!(self.crm.by_id().len(), self.letters, "the ids are kept");
        assert!(self.crm.requests().iter().all(|request| request.verified));
        assert_eq!(self.stock.count(), self.letters, "stock gets nothing again");
    }

    pub async fn dead(&self, arguments: &[&str]) -> Ran {
        let arguments = [&["dead"], arguments].concat();
        cli::run(&self.bridge.config_path(), &arguments).await
    }

    pub async fn count(&self) -> u64 {
        let counted = self.dead(&["list", "--count"]).await;
        counted.ok().trim().parse().expect("a number")
    }

    pub async fn json(&self, path: &str) -> Value {
        let (status, body) = self.bridge.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Ends the bridge, so that commands work on the broker themselves.
    pub async fn stop(&mut self) {
        self.bridge.terminate();
        assert_eq!(self.bridge.exit_code(SOON).await, Some(0));
    }
}

fn config(bus: &Bus, crm: &Receiver, stock: &Receiver) -> String {
    let refusing = subscription("crm", "orders.*", &crm.url("/hooks/secret"), "")
        .replace("jitter: 0", "jitter: 0, no_retry: [400]");
    bus.config(&(refusing + &subscription("stock", "orders.*", &stock.url("/"), "")))
}

/// The lines without what differs from run to run: times and ports; and long ids cut.
pub fn steady(text: &str) -> String {
    let time = regex::Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").expect("a regex");
    let text = time.replace_all(text, "2026-01-01T00:00:00Z");
    let port = regex::Regex::new(r"127\.0\.0\.1:\d+").expect("a regex");
    let text = port.replace_all(&text, "127.0.0.1:1234");
    let id = regex::Regex::new(r"(dlv_[A-Za-z0-9_-]{12})[A-Za-z0-9_-]{10,}").expect("a regex");
    id.replace_all(&text, "$1...").into_owned()
}

/// A first delivery of the order of this number.
pub fn delivery(number: usize, subscription: &str) -> Delivery {
    let event = Event {
        id: EventId::from_outside(format!("evt_{number}").as_bytes()).expect("an id"),
        topic: TOPIC.into(),
        kind: "order".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: Some("application/json".into()),
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: format!("{{\"order\": {number}}}").into(),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: TOPIC.into(),
                sequence: number as u64,
            },
        },
    };
    let uid = Uid::of_config(subscription);
    Delivery::first(Arc::new(event), subscription.into(), uid, Timestamp::now())
}
