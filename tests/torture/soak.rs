//! The soak: RabbitMQ and Kafka in one bridge for as long as is asked, a fault every few seconds.
//!
//! Each event goes to one subscription: good, flaky, slow or dead. What the receivers saw is kept as
//! counts by event, since half an hour of requests would fill the memory of the judge; each request
//! is checked as it comes. The bridge itself is killed in the first sixth only, so that the memory
//! of one process can be compared over the rest.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};

use crate::producer::{Producer, body, number_in};
use crate::proxy::{Mode, Proxy};
use crate::support::bridge::Bridge;
use crate::support::brokers::Own;
use crate::support::bus::{Bus, Kind};
use crate::support::{SECRET, unique};
use crate::world::{Chance, Kind as Which, own, resident_kib, socket};

/// Events a second of both brokers together.
const RATE: usize = 500;
/// On RabbitMQ each producer has one event under way at a time.
const RABBITMQ_PRODUCERS: usize = 5;
/// Numbers of one producer's events.
const NUMBERS: usize = 1_000_000;
const DRAINED_WITHIN: Duration = Duration::from_secs(240);
const CLASSES: [&str; 4] = ["good", "flaky", "slow", "dead"];
/// What was in flight when a fault struck may be repeated: the windows of two sources, and of what
/// was due on two brokers.
const DUPLICATES_A_FAULT: usize = 6 * 256;
/// The last part may use so much more than the first one did: caches and the allocator's pools.
const MORE_THAN_BEFORE: f64 = 1.15;
const MORE_KIB: u64 = 16 * 1024;

/// Which subscription an event is for.
fn class_of(number: usize) -> usize {
    match number % 20 {
        0..14 => 0,
        14..17 => 1,
        17..19 => 2,
        _ => 3,
    }
}

pub fn topic_of(number: usize) -> &'static str {
    ["orders.good", "orders.flaky", "orders.slow", "orders.dead"][class_of(number)]
}

/// What the receivers saw, by event.
struct Ledger {
    answered: Vec<AtomicU8>,
    delivered: AtomicUsize,
    duplicates: AtomicUsize,
    requests: AtomicUsize,
    /// The good one answers 503 to all.
    out_of_order: AtomicBool,
    spurious: Mutex<Vec<String>>,
}

impl Ledger {
    fn new(producers: usize) -> Self {
        Self {
            answered: (0..producers * NUMBERS).map(|_| AtomicU8::new(0)).collect(),
            delivered: AtomicUsize::new(0),
            duplicates: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            out_of_order: AtomicBool::new(false),
            spurious: Mutex::default(),
        }
    }

    fn is_delivered(&self, number: usize) -> bool {
        self.answered[number].load(Ordering::SeqCst) > 0
    }

    fn wrong(&self, what: String) {
        let mut spurious = self.spurious.lock().unwrap();
        if spurious.len() < 100 {
            spurious.push(what);
        }
    }
}

async fn receive(
    State(ledger): State<Arc<Ledger>>,
    uri: Uri,
    headers: HeaderMap,
    sent: Bytes,
) -> StatusCode {
    let turn = ledger.requests.fetch_add(1, Ordering::SeqCst);
    let path = uri.path().trim_start_matches('/');
    let Some(number) = number_in(&sent).filter(|number| *number < ledger.answered.len()) else {
        ledger.wrong(format!("{path} got a body of nobody's"));
        return StatusCode::NO_CONTENT;
    };
    let class = class_of(number);
    let verifier = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
    if body(number).as_bytes() != sent || CLASSES[class] != path {
        ledger.wrong(format!("{path} got event {number}, changed or another's"));
    } else if verifier.verify(&sent, &headers).is_err() {
        ledger.wrong(format!("{path} got event {number} with a bad signature"));
    }
    match class {
        0 if ledger.out_of_order.load(Ordering::SeqCst) => return StatusCode::SERVICE_UNAVAILABLE,
        1 if turn.is_multiple_of(4) => return StatusCode::SERVICE_UNAVAILABLE,
        2 => tokio::time::sleep(Duration::from_millis(200)).await,
        3 => return StatusCode::INTERNAL_SERVER_ERROR,
        _ => {}
    }
    if ledger.answered[number].fetch_add(1, Ordering::SeqCst) > 0 {
        ledger.duplicates.fetch_add(1, Ordering::SeqCst);
    } else {
        ledger.delivered.fetch_add(1, Ordering::SeqCst);
    }
    StatusCode::NO_CONTENT
}

/// What is broken for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    BrokerKilled(Side),
    BrokerRestarted(Side),
    BrokerPaused(Side),
    Stalled(Side),
    Cut(Side),
    Reset(Side),
    HalfOpen(Side),
    SlowNetwork(Side),
    MemoryAlarm,
    BridgeKilled,
    BridgeTerminated,
    ReceiverFails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    RabbitMq,
    Kafka,
}

impl Fault {
    const OF_A_BROKER: [fn(Side) -> Self; 8] = [
        Self::BrokerKilled,
        Self::BrokerRestarted,
        Self::BrokerPaused,
        Self::Stalled,
        Self::Cut,
        Self::Reset,
        Self::HalfOpen,
        Self::SlowNetwork,
    ];

    /// One that the seed decides. The bridge is left alone once its memory is looked at.
    fn any(chance: &mut Chance, bridge_too: bool) -> Self {
        let side = [Side::RabbitMq, Side::Kafka][chance.below(2) as usize];
        match chance.below(if bridge_too { 12 } else { 10 }) as usize {
            number @ 0..8 => Self::OF_A_BROKER[number](side),
            8 => Self::MemoryAlarm,
            9 => Self::ReceiverFails,
            10 => Self::BridgeKilled,
            _ => Self::BridgeTerminated,
        }
    }
}

struct Soak {
    rabbitmq: Arc<Own>,
    kafka: Arc<Own>,
    proxies: [Proxy; 2],
    bridge: Bridge,
    ledger: Arc<Ledger>,
    pid: Arc<AtomicU32>,
}

impl Soak {
    fn own(&self, side: Side) -> Arc<Own> {
        match side {
            Side::RabbitMq => self.rabbitmq.clone(),
            Side::Kafka => self.kafka.clone(),
        }
    }

    async fn on(&self, side: Side, act: impl FnOnce(&Own)) {
        let own = self.own(side);
        tokio::task::block_in_place(|| act(&own));
    }

    /// Breaks something for `lasting`, and mends it.
    async fn befalls(&mut self, fault: Fault, lasting: Duration) {
        match fault {
            Fault::BrokerKilled(side) => {
                self.on(side, Own::kill9).await;
                tokio::time::sleep(lasting).await;
                self.on(side, Own::start_again).await;
            }
            Fault::BrokerRestarted(side) => self.on(side, |own| drop(own.call("restart"))).await,
            Fault::BrokerPaused(side) => {
                self.on(side, |own| drop(own.call("pause"))).await;
                tokio::time::sleep(lasting).await;
                self.on(side, |own| drop(own.call("resume"))).await;
            }
            Fault::Stalled(side) => self.network(side, Mode::Stall, lasting).await,
            Fault::Cut(side) => self.network(side, Mode::Cut, lasting).await,
            Fault::Reset(side) => self.network(side, Mode::Reset, lasting).await,
            Fault::SlowNetwork(side) => {
                let mode = Mode::Latency(Duration::from_millis(100));
                self.network(side, mode, lasting).await;
            }
            // Old connections stay dead; those that are made meanwhile live on.
            Fault::HalfOpen(side) => self.proxies[side as usize].half_open(),
            Fault::MemoryAlarm => {
                let level = |level: &'static [&str]| {
                    move |own: &Own| {
                        let mut words = vec!["set_vm_memory_high_watermark"];
                        words.extend(level);
                        own.ctl(&words);
                    }
                };
                self.on(Side::RabbitMq, level(&["absolute", "1"])).await;
                tokio::time::sleep(lasting).await;
                self.on(Side::RabbitMq, level(&["0.6"])).await;
            }
            Fault::BridgeKilled => {
                self.bridge.kill9_and_restart().await;
                self.pid.store(self.bridge.pid(), Ordering::SeqCst);
            }
            Fault::BridgeTerminated => {
                self.bridge.terminate();
                self.bridge.exit_code(Duration::from_secs(60)).await;
                self.bridge.start_again().await;
                self.pid.store(self.bridge.pid(), Ordering::SeqCst);
            }
            Fault::ReceiverFails => {
                self.ledger.out_of_order.store(true, Ordering::SeqCst);
                tokio::time::sleep(lasting).await;
                self.ledger.out_of_order.store(false, Ordering::SeqCst);
            }
        }
    }

    async fn network(&self, side: Side, mode: Mode, lasting: Duration) {
        self.proxies[side as usize].set(mode);
        tokio::time::sleep(lasting).await;
        self.proxies[side as usize].set(Mode::Pass);
    }

    /// What is needed to find out why something did not come, for a look afterwards.
    async fn keep_evidence(&self, seed: u64) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{seed}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, path) in [
            ("readyz", "/readyz"),
            ("parked", "/v1/parked"),
            ("metrics", "/metrics"),
        ] {
            let (_, text) = self.bridge.get(path).await;
            std::fs::write(folder.join(name), text).expect("written");
        }
        std::fs::write(folder.join("log"), self.bridge.log()).expect("written");
        println!("not drained: see {}", folder.display());
        for proxy in &self.proxies {
            println!("{} connections through a proxy", proxy.connections());
        }
    }

    async fn parked(&self) -> u64 {
        let (_, text) = self.bridge.get("/v1/parked").await;
        let listed: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let all = listed["parked"].as_array().into_iter().flatten();
        all.filter_map(|one| one["count"].as_u64()).sum()
    }
}

/// The topics of Kafka are named like the routing keys of RabbitMQ.
async fn make_topics(bootstrap: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    let admin: AdminClient<_> = config.create().expect("an admin client");
    for number in [0, 14, 17, 19] {
        let new = NewTopic::new(topic_of(number), 4, TopicReplication::Fixed(1));
        let made = admin.create_topics(&[new], &AdminOptions::new()).await;
        made.expect("kafka is there").remove(0).expect("a topic");
    }
}

fn config(group: &str, amqp: &str, exchange: &str, bootstrap: &str, receiver: &str) -> String {
    let topics: Vec<_> = [0, 14, 17, 19].map(topic_of).into();
    let topics = topics.join(", ");
    let subscriptions: String = CLASSES
        .map(|class| {
            let more = match class {
                "slow" => "concurrency: 64, ",
                "dead" => "breaker: { failures: 10, cool_down: 2s }, ",
                _ => "concurrency: 32, breaker: { failures: 50, cool_down: 1s }, ",
            };
            let retry = match class {
                "dead" => "schedule: [1s, 2s], give_up_after: 20s",
                _ => "schedule: [1s], max_attempts: 100",
            };
            format!("  {class}: {{ topics: ['orders.{class}'], endpoint: {{ {more}url: '{receiver}/{class}', secret: '{SECRET}' }}, retry: {{ {retry}, jitter: 0 }} }}\n")
        })
        .concat();
    format!(
        "group: {group}
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers:
  rabbit: {{ rabbitmq: {{ urls: ['{amqp}'] }}, tiers: [1s, 2s, 5s] }}
  kafka: {{ kafka: {{ bootstrap: ['{bootstrap}'] }}, tiers: [1s, 2s, 5s] }}
sources:
  one: {{ broker: rabbit, queue: {group}.orders, bind: [{{ exchange: {exchange}, key: 'orders.#' }}] }}
  two: {{ broker: kafka, topics: [{topics}], start: earliest }}
subscriptions:
{subscriptions}"
    )
}

/// Runs it and prints what came of it; whether all held.
pub async fn run(seed: u64, lasting: Duration) -> bool {
    let (rabbitmq, kafka) = (own(Which::RabbitMq), own(Which::Kafka));
    let (rabbitmq, kafka) = (rabbitmq.expect("a broker"), kafka.expect("a broker"));
    let (amqp, bootstrap) = (rabbitmq.address(), kafka.address());
    make_topics(&bootstrap).await;
    let mut on_rabbitmq = Bus::rabbitmq(amqp.clone()).await;
    on_rabbitmq.group = unique("soak");
    let on_kafka = Bus {
        group: on_rabbitmq.group.clone(),
        kind: Kind::Kafka {
            bootstrap: bootstrap.clone(),
            topic: topic_of(0).to_owned(),
        },
    };
    let Kind::RabbitMq { shop, .. } = &on_rabbitmq.kind else {
        unreachable!("made above")
    };
    let proxies = [
        Proxy::to(socket(&amqp)).await,
        Proxy::to_kafka(socket(&bootstrap)).await,
    ];
    let through = |address: &str, proxy: &Proxy| {
        address.replace(&socket(address).to_string(), &proxy.address.to_string())
    };
    let ledger = Arc::new(Ledger::new(RABBITMQ_PRODUCERS + 1));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let receiver = format!("http://{}", listener.local_addr().expect("bound"));
    let router = Router::new().fallback(receive).with_state(ledger.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
    let text = config(
        &on_rabbitmq.group,
        &through(&amqp, &proxies[0]),
        &shop.exchange,
        &through(&bootstrap, &proxies[1]),
        &receiver,
    );
    let bridge = Bridge::start(&text).await.ready().await;
    let pid = Arc::new(AtomicU32::new(bridge.pid()));
    let mut producers: Vec<Producer> = (0..RABBITMQ_PRODUCERS)
        .map(|number| Producer::routed(&on_rabbitmq, "", number * NUMBERS, topic_of))
        .chain([Producer::routed(
            &on_kafka,
            "",
            RABBITMQ_PRODUCERS * NUMBERS,
            topic_of,
        )])
        .collect();
    let (kafkas, rabbits) = producers.split_last_mut().expect("several");
    kafkas.go(RATE / 2);
    rabbits
        .iter_mut()
        .for_each(|each| each.go(RATE / 2 / RABBITMQ_PRODUCERS));

    let began = Instant::now();
    let samples = Arc::new(Mutex::new(Vec::new()));
    let sampling = tokio::spawn(sample(began, pid.clone(), samples.clone()));
    let mut soak = Soak {
        rabbitmq,
        kafka,
        proxies,
        bridge,
        ledger: ledger.clone(),
        pid,
    };
    let mut chance = Chance::new(seed);
    let mut faults: BTreeMap<Fault, usize> = BTreeMap::new();
    println!("   at  fault, and deliveries until then");
    while began.elapsed() < lasting {
        let next = Duration::from_millis(5_000 + chance.below(10_000));
        let fault = Fault::any(&mut chance, began.elapsed() < lasting / 6);
        let lasts = Duration::from_millis(1_000 + chance.below(5_000));
        let (at, delivered) = (began.elapsed(), ledger.delivered.load(Ordering::SeqCst));
        println!(
            "{:5}  {fault:?} for {:.1} s, {delivered}",
            at.as_secs(),
            lasts.as_secs_f64()
        );
        soak.befalls(fault, lasts).await;
        *faults.entry(fault).or_default() += 1;
        tokio::time::sleep(next.saturating_sub(began.elapsed() - at)).await;
    }
    let published_for = began.elapsed();
    for producer in &mut producers {
        producer.halt().await;
    }
    let over = Instant::now();
    let confirmed: Vec<usize> = producers.iter().flat_map(Producer::confirmed).collect();
    let issued: usize = producers.iter().map(Producer::issued).sum();
    let is_open = |number: &&usize| class_of(**number) != 3 && !ledger.is_delivered(**number);
    let mut parked = soak.parked().await;
    while over.elapsed() < DRAINED_WITHIN {
        let open = confirmed.iter().filter(is_open).count();
        parked = soak.parked().await;
        if open == 0 && parked == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let drained = over.elapsed();
    sampling.abort();
    if drained >= DRAINED_WITHIN {
        soak.keep_evidence(seed).await;
    }
    let past = [0, 1].map(|side: usize| {
        let proxy = &soak.proxies[side];
        (proxy.bytes(), proxy.bypassed_by(soak.bridge.pid()))
    });
    let mut letters = on_rabbitmq.letters(&mut soak.bridge, 0).await;
    letters.extend(on_kafka.letters(&mut soak.bridge, 0).await);
    let dead: std::collections::BTreeSet<usize> = letters
        .iter()
        .filter_map(|letter| number_in(&letter.body))
        .collect();
    let strange = letters.iter().filter(|letter| {
        number_in(&letter.body).is_none_or(|number| body(number).as_bytes() != letter.body)
    });
    let strange = strange.count();
    let missing: Vec<_> = confirmed
        .iter()
        .filter(|number| !ledger.is_delivered(**number) && !dead.contains(number))
        .collect();
    let spurious = ledger.spurious.lock().unwrap().clone();
    let duplicates = ledger.duplicates.load(Ordering::SeqCst);
    let struck: usize = faults.values().sum();
    let (first, last, peak) = memory(&samples.lock().unwrap(), published_for);

    let seconds = published_for.as_secs_f64();
    println!(
        "soak: seed {seed}, {seconds:.0} s, {struck} faults, RabbitMQ and Kafka in one bridge"
    );
    println!(
        "  events      {issued} published ({:.0}/s), {} confirmed and owed",
        issued as f64 / seconds,
        confirmed.len()
    );
    println!(
        "  deliveries  {} delivered, {duplicates} duplicates, {} dead letters, {parked} parked at the end",
        ledger.delivered.load(Ordering::SeqCst),
        letters.len()
    );
    println!("  missing     {}", missing.len());
    println!("  spurious    {}", spurious.len() + strange);
    println!(
        "  drained     {:.0} s after the last fault",
        drained.as_secs_f64()
    );
    println!(
        "  memory      median {} MiB after a sixth to a third of the time, {} MiB in the last sixth, peak {} MiB",
        first / 1024,
        last / 1024,
        peak / 1024
    );
    for (fault, count) in &faults {
        println!("  {count:4} x {fault:?}");
    }
    let mut held = true;
    let mut must = |holds: bool, what: String| {
        if !holds {
            println!("    BROKEN {what}");
            held = false;
        }
    };
    let shown: Vec<_> = missing.iter().take(20).collect();
    must(missing.is_empty(), format!("missing: {shown:?}"));
    must(
        spurious.is_empty() && strange == 0,
        format!(
            "spurious: {:?}",
            spurious.iter().take(20).collect::<Vec<_>>()
        ),
    );
    must(parked == 0, format!("{parked} still parked"));
    must(
        duplicates <= struck * DUPLICATES_A_FAULT,
        format!("{duplicates} duplicates of {struck} faults"),
    );
    let allowed = (first as f64 * MORE_THAN_BEFORE) as u64 + MORE_KIB;
    must(
        last <= allowed,
        format!("memory grew to {last} KiB, {allowed} may be"),
    );
    must(
        past.iter().all(|(bytes, past)| *bytes > 0 && *past == 0),
        format!("bytes through the proxies, and connections past them: {past:?}"),
    );
    held
}

/// The bridge's resident memory in KiB, once a second.
async fn sample(began: Instant, pid: Arc<AtomicU32>, samples: Arc<Mutex<Vec<(Duration, u64)>>>) {
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    loop {
        clock.tick().await;
        let kib = resident_kib(pid.load(Ordering::SeqCst));
        if kib > 0 {
            samples.lock().unwrap().push((began.elapsed(), kib));
        }
    }
}

/// The medians of the second and the last sixth of the time, and the most.
fn memory(samples: &[(Duration, u64)], whole: Duration) -> (u64, u64, u64) {
    let median = |from: u32, to: u32| {
        let mut within: Vec<u64> = samples
            .iter()
            .filter(|(at, _)| *at >= whole * from / 6 && *at < whole * to / 6)
            .map(|(_, kib)| *kib)
            .collect();
        within.sort_unstable();
        within.get(within.len() / 2).copied().unwrap_or(0)
    };
    let peak = samples.iter().map(|(_, kib)| *kib).max();
    (median(1, 2), median(5, 6), peak.unwrap_or(0))
}
