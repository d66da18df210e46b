//! What a scenario happens in: a broker, a bridge, a good receiver, hostile ones, and a producer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hostile::{Hostile, Mode};
use crate::judge::{Evidence, Report, Subscribed};
use crate::producer::{Events, Producer, number_in};
use crate::proxy::Proxy;
use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::brokers::Own;
use crate::support::bus::{Bus, KAFKAS_LARGEST, Letter};
use crate::support::receiver::{Answer, Receiver};

/// How long all that is owed may take to arrive after the faults.
const DRAINED_WITHIN: Duration = Duration::from_secs(45);
/// Where the numbers of a second producer begin.
pub const APART: usize = 1_000_000;
/// How long nothing new may come before all is held to be over.
const QUIET: Duration = Duration::from_millis(2_500);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Embedded,
    RabbitMq,
    Kafka,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Embedded, Self::RabbitMq, Self::Kafka];
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Embedded => "embedded",
            Self::RabbitMq => "rabbitmq",
            Self::Kafka => "kafka",
        })
    }
}

/// A broker that nobody else uses, since it will be killed.
pub fn own(kind: Kind) -> Option<Arc<Own>> {
    tokio::task::block_in_place(|| match kind {
        Kind::Embedded => None,
        Kind::RabbitMq => Some(Arc::new(Own::rabbitmq())),
        Kind::Kafka => Some(Arc::new(Own::kafka())),
    })
}

/// What was asked for.
pub struct Setting {
    pub scenario: &'static str,
    pub kind: Kind,
    pub seed: u64,
    /// How long events are published while the faults are on.
    pub seconds: Duration,
    /// The longest and the largest, which take minutes.
    pub full: bool,
    pub broker: Option<Arc<Own>>,
}

/// What is in it besides.
#[derive(Default)]
pub struct Plan {
    pub hostile: Vec<Mode>,
    /// Between the bridge and its broker.
    pub broker_proxy: bool,
    /// Between the bridge and the good receiver.
    pub receiver_proxy: bool,
    /// How long the good receiver takes for each answer.
    pub answers_after: Duration,
    /// What is said of the hostile ones' subscriptions instead of the usual, where it is.
    pub hostile_more: Option<String>,
    pub hostile_endpoint: Option<&'static str>,
    /// A topic that only they are subscribed to; not `orders.` and one word more, as those of the others are.
    pub hostile_topic: Option<&'static str>,
    /// Further subscriptions, which the scenario itself looks after.
    pub subscriptions: String,
    /// The source's window.
    pub window: Option<usize>,
    /// The tiers that there are where nobody says otherwise, for long waits.
    pub usual_tiers: bool,
    /// Bytes of the largest message that a topic of Kafka takes.
    pub largest: Option<usize>,
    /// `max_bytes:` of the embedded broker.
    pub max_bytes: Option<&'static str>,
    /// `properties:` of the Kafka library.
    pub properties: Option<&'static str>,
    /// The `limits:` of the config.
    pub limits: Option<String>,
    /// Variables of the bridge.
    pub env: Vec<(&'static str, String)>,
    /// Where its folder is.
    pub folder: Option<PathBuf>,
}

/// See the module.
pub struct World {
    pub setting: Setting,
    pub bus: Bus,
    pub bridge: Bridge,
    pub config: String,
    pub good: Receiver,
    pub hostile: Vec<Hostile>,
    pub producer: Producer,
    pub proxy: Option<Proxy>,
    pub most_duplicates: usize,
    pub most_recovery: Duration,
    /// What is parked at the end stays there longer than anybody waits here.
    pub leaves_parked: bool,
    /// What only the hostile ones are owed, when they have a topic of their own.
    pub of_hostile: Option<Events>,
    /// Attempts that the hostile ones' policy allows.
    pub most_attempts: usize,
    /// Thousands of requests under way at once.
    pub connections: u64,
    chance: Chance,
}

/// What the seed decides (splitmix64).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

impl World {
    pub async fn start(setting: Setting, plan: Plan) -> Self {
        let address = setting.broker.as_ref().map(|own| own.address());
        let bus = match (setting.kind, &address) {
            (Kind::RabbitMq, Some(amqp)) => Bus::rabbitmq(amqp.clone()).await,
            (Kind::Kafka, Some(bootstrap)) => {
                let largest = plan.largest.unwrap_or(KAFKAS_LARGEST);
                Bus::kafka_up_to(bootstrap.clone(), 4, largest).await
            }
            _ => Bus::embedded(),
        };
        let after = plan.answers_after;
        let good = Receiver::answering(move |request, before| {
            let number = number_in(&request.body).unwrap_or_default();
            let answer = match number {
                _ if is_refused(number) => Answer::status(400),
                _ if number.is_multiple_of(5) && before == 0 => Answer::status(503),
                _ => Answer::status(204),
            };
            answer.after(after)
        })
        .await;
        let mut proxy = None;
        let mut good_address = good.address;
        if plan.receiver_proxy {
            let between = Proxy::to(good.address).await;
            good_address = between.address;
            proxy = Some(between);
        }
        // Long enough for any fault of ours; the policy itself is not what is looked at here.
        let mut subscriptions = format!(
            "  good: {{ {}, endpoint: {{ url: 'http://{good_address}/', secret: '{SECRET}', breaker: {{ failures: 10, cool_down: 1s }} }}, retry: {{ schedule: [1s], max_attempts: 60, jitter: 0, no_retry: [400] }} }}\n",
            selecting(setting.kind, "orders.*")
        );
        let selection = selecting(setting.kind, plan.hostile_topic.unwrap_or("orders.*"));
        let limits = plan
            .hostile_endpoint
            .unwrap_or("concurrency: 100, breaker: { failures: 10000, cool_down: 1s }");
        let more = plan.hostile_more.as_deref().unwrap_or("timeout: 700ms, connect_timeout: 500ms, slow_after: 100ms, retry: { schedule: [1s], jitter: 0, max_retry_after: 3s }");
        let mut hostile = Vec::new();
        for (number, mode) in plan.hostile.into_iter().enumerate() {
            let one = Hostile::new(mode);
            let endpoint = one.endpoint();
            subscriptions += &format!(
                "  bad-{number}: {{ {selection}, endpoint: {{ {endpoint}, secret: '{SECRET}', {limits} }}, {more} }}\n"
            );
            hostile.push(one);
        }
        subscriptions += &plan.subscriptions;
        let mut config = bus.config(&subscriptions);
        if plan.usual_tiers {
            config = config.replace(", tiers: [1s, 2s, 5s]", "");
        }
        if let Some(window) = plan.window {
            let widened = format!("orders: {{ broker: here, window: {window},");
            config = config.replace("orders: { broker: here,", &widened);
        }
        if let Some(max_bytes) = plan.max_bytes {
            let with = format!("embedded: {{ max_bytes: {max_bytes} }}");
            config = config.replace("embedded: {}", &with);
        }
        if let Some(properties) = plan.properties {
            let with = format!("kafka: {{ properties: {{ {properties} }}, bootstrap:");
            config = config.replace("kafka: { bootstrap:", &with);
        }
        if let Some(limits) = plan.limits {
            config += &format!("limits: {limits}\n");
        }
        if let (true, Some(address)) = (plan.broker_proxy, &address) {
            let target = socket(address);
            let between = match setting.kind {
                Kind::Kafka => Proxy::to_kafka(target).await,
                _ => Proxy::to(target).await,
            };
            config = config.replace(&target.to_string(), &between.address.to_string());
            proxy = Some(between);
        }
        let folder = match &plan.folder {
            Some(within) => tempfile::tempdir_in(within),
            None => tempfile::tempdir(),
        };
        let bridge = Bridge::start_in(folder.expect("a folder"), &config, plan.env).await;
        let bridge = bridge.ready().await;
        let producer = Producer::new(&bus, &bridge.admin);
        Self {
            chance: Chance::new(setting.seed),
            setting,
            bus,
            bridge,
            config,
            good,
            hostile,
            producer,
            proxy,
            most_duplicates: 1_000,
            most_recovery: Duration::from_secs(20),
            leaves_parked: false,
            of_hostile: plan.hostile_topic.map(|_| Events::default()),
            most_attempts: 2,
            connections: 0,
        }
    }

    /// A second producer, whose events are numbered apart and go where `route` says.
    pub fn producer_of(&self, route: fn(usize) -> &'static str) -> Producer {
        Producer::routed(&self.bus, &self.bridge.admin, APART, route)
    }

    pub fn own(&self) -> &Own {
        self.setting.broker.as_deref().expect("a broker of its own")
    }

    /// Does something that blocks to the broker.
    pub fn to_broker<T>(&self, act: impl FnOnce(&Own) -> T) -> T {
        tokio::task::block_in_place(|| act(self.own()))
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("planned with a proxy")
    }

    /// A number below `limit` that the seed decides.
    pub fn chance(&mut self, limit: u64) -> u64 {
        self.chance.below(limit)
    }

    /// Waits for a part of the time that was asked for, in thousandths.
    pub async fn part(&self, thousandths: u32) {
        tokio::time::sleep(self.setting.seconds * thousandths / 1_000).await;
    }

    /// Whether the bridge says that it is not ready, within this time.
    pub async fn turns_unready(&self, within: Duration) -> bool {
        let (began, url) = (
            Instant::now(),
            format!("http://{}/readyz", self.bridge.admin),
        );
        while began.elapsed() < within {
            match reqwest::get(&url).await {
                Ok(answer) if answer.status() == 503 => return true,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        false
    }

    /// Whether one of these comes into the bridge's log within this time.
    pub async fn says_within(&self, any: &[&str], within: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < within {
            let log = self.bridge.log();
            if any.iter().any(|said| log.contains(said)) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    /// The faults are over: waits until all is quiet, and judges.
    pub async fn judged(self) -> Report {
        Report::of(&self.evidence().await)
    }

    pub async fn evidence(mut self) -> Evidence {
        let over = Instant::now();
        let recovery = self.fresh_event_arrives(over).await;
        if recovery.is_none() {
            self.bridge.tell_log();
        }
        self.producer.halt().await;
        let mut still_parked = self.drained().await;
        if self.leaves_parked {
            // What is just now on its way from one tier to the next is on neither.
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let now = self.still_parked().await;
                if now.values().sum::<u64>() > still_parked.values().sum() {
                    still_parked = now;
                }
            }
        }
        let metrics = self.bridge.metrics().await;
        let parked = sum(&metrics, "hookbridge_deliveries_parked_total");
        let (peak_kib, descriptors) = used_by(self.bridge.pid());
        let past_the_proxy = self.past_the_proxy();
        let letters = self.letters().await;
        let mut subscribed = vec![Subscribed {
            name: "good".to_owned(),
            events: self.producer.events(),
            requests: self.good.requests(),
            most_attempts: None,
            not_before: None,
        }];
        for (number, hostile) in self.hostile.iter().enumerate() {
            subscribed.push(Subscribed {
                name: format!("bad-{number}"),
                events: match &self.of_hostile {
                    Some(events) => events.clone(),
                    None => self.producer.events(),
                },
                requests: hostile.requests(),
                most_attempts: Some(self.most_attempts),
                not_before: Some(Duration::from_secs(1)),
            });
        }
        Evidence {
            scenario: format!("{:28} {}", self.setting.scenario, self.setting.kind),
            events: self.producer.events(),
            letters,
            subscribed,
            still_parked,
            parked,
            recovery,
            most_recovery: self.most_recovery,
            most_duplicates: self.most_duplicates,
            peak_kib,
            descriptors,
            past_the_proxy,
            connections: self.connections,
        }
    }

    /// All dead letters, once those that the good receiver's refusals owe are there: a letter may still wait
    /// for its confirmation when all requests have been answered.
    async fn letters(&mut self) -> Vec<Letter> {
        let began = Instant::now();
        let owed = self.producer.events().confirmed;
        let owed = owed
            .into_iter()
            .filter(|number| is_refused(*number))
            .count();
        loop {
            let letters = self.bus.letters(&mut self.bridge, 0).await;
            let is_over = began.elapsed() > DRAINED_WITHIN || self.setting.kind == Kind::Embedded;
            if letters.len() >= owed || is_over {
                return letters;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// What shows that the faults of a proxy befell nothing: the bridge went past it.
    fn past_the_proxy(&self) -> Option<String> {
        let proxy = self.proxy.as_ref()?;
        let (bytes, past) = (proxy.bytes(), proxy.bypassed_by(self.bridge.pid()));
        (bytes == 0 || past > 0)
            .then(|| format!("{bytes} bytes through the proxy, {past} connections past it"))
    }

    /// How long after this moment a fresh event comes to the good receiver.
    pub async fn fresh_event_arrives(&self, over: Instant) -> Option<Duration> {
        let mut fresh: Vec<usize> = Vec::new();
        while over.elapsed() < DRAINED_WITHIN {
            if fresh.is_empty() {
                fresh = self.producer.publish(1).await.unwrap_or_default();
            }
            let came = self.good.requests().into_iter().rev().find(|request| {
                number_in(&request.body).is_some_and(|number| fresh.contains(&number))
            });
            if let Some(request) = came {
                return Some(request.at - over);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Waits until each obligation has an answer that ends it, nothing is parked and nothing more
    /// comes; what is parked then, by subscription.
    async fn drained(&self) -> BTreeMap<String, u64> {
        let began = Instant::now();
        let (mut count, mut since) = (0, Instant::now());
        loop {
            let all =
                self.good.count() + self.hostile.iter().map(Hostile::connections).sum::<usize>();
            if all != count {
                (count, since) = (all, Instant::now());
            }
            let parked = self.still_parked().await;
            let is_answered = self.unanswered().is_empty();
            let quiet = since.elapsed() > QUIET;
            if (is_answered && (parked.is_empty() || self.leaves_parked) && quiet)
                || began.elapsed() > DRAINED_WITHIN
            {
                return parked;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The events that the good receiver is owed, and has given no answer to that ends them.
    pub fn unanswered(&self) -> BTreeSet<usize> {
        let requests = self.good.requests();
        let ends = requests.iter().filter(|request| request.answered != 503);
        let ended = ends
            .filter_map(|request| number_in(&request.body))
            .collect();
        let owed = self.producer.events().confirmed;
        owed.difference(&ended).copied().collect()
    }

    /// What the broker keeps of deliveries that wait, by subscription; without one where it does not say.
    pub async fn still_parked(&self) -> BTreeMap<String, u64> {
        let (status, body) = self.bridge.get("/v1/parked").await;
        let listed: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        assert_eq!(status, 200, "{body}");
        let mut parked = BTreeMap::new();
        let all = listed["parked"].as_array().into_iter().flatten();
        for one in all {
            let name = one["subscription"].as_str().unwrap_or_default().to_owned();
            let count = one["count"].as_u64().unwrap_or_default();
            if count > 0 {
                *parked.entry(name).or_default() += count;
            }
        }
        match self.due_on_rabbitmq() {
            0 => {}
            due => *parked.entry(String::new()).or_default() += due,
        }
        parked
    }

    /// What is between two tiers there, which is no tier's any more.
    fn due_on_rabbitmq(&self) -> u64 {
        if self.setting.kind != Kind::RabbitMq || !self.leaves_parked {
            return 0;
        }
        let listed =
            self.to_broker(|own| own.ctl(&["--silent", "list_queues", "name", "messages"]));
        let prefix = format!("{}.due.", self.bus.group);
        let lines = listed.lines().filter(|line| line.starts_with(&prefix));
        let counts = lines.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// A second instance stops for good.
    pub async fn goes_on_without(&mut self, mut second: Bridge) {
        second.terminate();
        second.exit_code(Duration::from_secs(30)).await;
        // Kafka waits for the session of the one that is gone.
        self.most_recovery = Duration::from_secs(30);
    }
}

/// How a subscription selects events of this topic. On Kafka, where all come in one topic, it is what
/// they have as their type.
pub fn selecting(kind: Kind, topic: &str) -> String {
    match kind {
        Kind::Kafka => format!("topics: ['#'], types: ['{topic}']"),
        Kind::Embedded | Kind::RabbitMq => format!("topics: ['{topic}']"),
    }
}

/// The good receiver refuses one in fifty for good, so that there are dead letters.
fn is_refused(number: usize) -> bool {
    number % 50 == 7
}

/// `host:port` in a broker's address.
pub fn socket(address: &str) -> SocketAddr {
    let host = address.rsplit('@').next().unwrap_or(address);
    let host = host.split('/').next().unwrap_or(host);
    host.replace("localhost", "127.0.0.1")
        .parse()
        .unwrap_or_else(|error| panic!("{host}: {error}"))
}

/// The values of all lines of a metric that begin like this.
pub fn sum(metrics: &str, name: &str) -> u64 {
    let values = metrics
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

/// The most memory (VmHWM, in KiB) and the open files of a process.
fn used_by(pid: u32) -> (u64, usize) {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    (memory_kib(pid, "VmHWM:"), open)
}

/// The memory of a process now, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    memory_kib(pid, "VmRSS:")
}

fn memory_kib(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(what))
        .and_then(|rest| rest.trim().split(' ').next()?.parse().ok())
        .unwrap_or_default()
}
