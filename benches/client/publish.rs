//! The publishing services: makes queues and topics, fills them, or publishes at a rate.
//!
//! `publish KIND ADDRESS TOPIC name=value...` with KIND `rabbitmq`, `kafka`, `admin` (the embedded
//! broker of a running bridge, over its API) or `file` (the embedded broker's file, with no bridge
//! running). `rate=0` is as fast as it goes. Prints how many were confirmed, in how many seconds,
//! and the most that one was published after its turn, in ms.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use hookbridge::broker::embedded::{Embedded, Settings, SourceSettings};
use hookbridge::broker::{Naming, Publication};
use hookbridge::meters::Meters;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};

/// What the others of a set of arguments are, unless they are given.
const DEFAULTS: [(&str, &str); 7] = [
    ("count", "1"),
    ("rate", "0"),
    ("size", "512"),
    ("types", "good"),
    ("first", "0"),
    ("partitions", "8"),
    ("at_once", "2000"),
];

/// What to publish.
struct Order {
    topic: String,
    count: u64,
    /// Events per second; 0 is no limit.
    rate: u64,
    size: usize,
    /// Given to the events in turn.
    types: Vec<String>,
    /// The first sequence number.
    first: u64,
    partitions: i32,
    /// Published and not confirmed at the most.
    at_once: usize,
}

impl Order {
    fn new(topic: &str, pairs: &[&str]) -> Self {
        let value = |name: &str| {
            let given = pairs.iter().filter_map(|pair| pair.split_once('='));
            let mut all = given.chain(DEFAULTS).filter(|(key, _)| *key == name);
            all.next().expect("has a default").1
        };
        let number = |name: &str| -> u64 { value(name).parse().expect("a number") };
        // `many:3` is short for `e0,e1,e2`.
        let types = match value("types").strip_prefix("many:") {
            Some(many) => {
                let many: u32 = many.parse().expect("a number");
                (0..many).map(|n| format!("e{n}")).collect()
            }
            None => value("types").split(',').map(str::to_owned).collect(),
        };
        Self {
            topic: topic.to_owned(),
            count: number("count"),
            rate: number("rate"),
            size: number("size") as usize,
            types,
            first: number("first"),
            partitions: number("partitions") as i32,
            at_once: number("at_once") as usize,
        }
    }

    fn kind(&self, n: u64) -> &str {
        &self.types[n as usize % self.types.len()]
    }

    fn body(&self, n: u64) -> Vec<u8> {
        body(self.first + n, self.size)
    }
}

/// An event that says when it was published. JSON, never shorter than that needs.
pub fn body(number: u64, size: usize) -> Vec<u8> {
    let mut body = format!(
        r#"{{"at":"{:019}","seq":"{number:010}","total":120,"data":""#,
        now_ns()
    )
    .into_bytes();
    body.resize(size.saturating_sub(2).max(body.len()), b'x');
    body.extend(b"\"}");
    body
}

/// When a body of [`body`] was published, and its number.
pub fn stamped(body: &[u8]) -> Option<(u64, u64)> {
    let digits = |from: usize, to: usize| -> Option<u64> {
        std::str::from_utf8(body.get(from..to)?).ok()?.parse().ok()
    };
    body.starts_with(br#"{"at":""#)
        .then(|| Some((digits(7, 26)?, digits(35, 45)?)))?
}

pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_nanos() as u64
}

/// When the next one is to be published, and how far behind that we were.
struct Pace {
    began: Instant,
    rate: u64,
    worst: Duration,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            began: Instant::now(),
            rate,
            worst: Duration::ZERO,
        }
    }

    /// How long until the turn of number `n`, if it has not come.
    fn wait(&mut self, n: u64) -> Option<Duration> {
        if self.rate == 0 {
            return None;
        }
        let turn = Duration::from_nanos(n * 1_000_000_000 / self.rate);
        let since = self.began.elapsed();
        self.worst = self.worst.max(since.saturating_sub(turn));
        turn.checked_sub(since).filter(|left| !left.is_zero())
    }

    fn report(&self, confirmed: u64) {
        let (took, worst) = (self.began.elapsed(), self.worst);
        println!(
            "{confirmed} {:.3} {:.1}",
            took.as_secs_f64(),
            worst.as_secs_f64() * 1e3
        );
    }
}

pub fn run(kind: &str, address: &str, topic: &str, pairs: &[&str]) {
    let order = Order::new(topic, pairs);
    match kind {
        "kafka" => to_kafka(address, &order),
        "rabbitmq" => crate::current_thread().block_on(to_rabbitmq(address, &order)),
        "admin" => crate::current_thread().block_on(to_admin(address, order)),
        "file" => crate::multi_thread(2).block_on(to_file(address, order)),
        _ => panic!("no such kind of broker: {kind}"),
    }
}

struct Reports {
    confirmed: AtomicU64,
    refused: AtomicU64,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = match result {
            Ok(_) => &self.confirmed,
            Err(_) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn to_kafka(address: &str, order: &Order) {
    let reports = Reports {
        confirmed: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    };
    // Uncompressed: the same letters over and over shrink as no real body does.
    let producer: ThreadedProducer<Reports> = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("compression.type", "none")
        .set("message.max.bytes", "10000000")
        .set("queue.buffering.max.messages", "100000")
        .create_with_context(reports)
        .expect("a producer");
    let mut pace = Pace::new(order.rate);
    for n in 0..order.count {
        while let Some(wait) = pace.wait(n) {
            std::thread::sleep(wait);
        }
        let body = order.body(n);
        let kind = Header {
            key: "type",
            value: Some(order.kind(n)),
        };
        let content_type = Header {
            key: "content-type",
            value: Some("application/json"),
        };
        // The number of types and of partitions must not divide each other's turns.
        let turn = n / order.types.len() as u64;
        let mut record = BaseRecord::<(), [u8]>::to(&order.topic)
            .payload(&body)
            .partition((turn % order.partitions as u64) as i32)
            .headers(OwnedHeaders::new().insert(kind).insert(content_type));
        while let Err((error, back)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full, "not published");
            std::thread::sleep(Duration::from_millis(2));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(60)).expect("flushed");
    let reports = producer.context();
    assert_eq!(reports.refused.load(Ordering::Relaxed), 0, "not confirmed");
    pace.report(reports.confirmed.load(Ordering::Relaxed));
}

async fn to_rabbitmq(address: &str, order: &Order) {
    let (_connection, channel) = rabbitmq(address).await;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    confirms.await.expect("confirms");
    let mut pace = Pace::new(order.rate);
    let mut confirmed = 0;
    let mut waiting = FuturesUnordered::new();
    for n in 0..order.count {
        while let Some(wait) = pace.wait(n) {
            // tokio's timers are in steps of a millisecond, which would be published in bursts.
            if wait > Duration::from_millis(2) {
                tokio::time::sleep(wait - Duration::from_millis(2)).await;
            } else {
                tokio::task::yield_now().await;
                std::thread::sleep(wait.min(Duration::from_micros(200)));
            }
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(format!("bench-{}", order.first + n).into())
            .with_type(order.kind(n).into());
        let body = order.body(n);
        let topic = order.topic.as_str().into();
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish("".into(), topic, options, &body, properties);
        waiting.push(published.await.expect("published"));
        while waiting.len() >= order.at_once {
            confirmed += settled(waiting.next().await);
        }
        while let Some(Some(one)) = waiting.next().now_or_never() {
            confirmed += settled(Some(one));
        }
    }
    while let Some(one) = waiting.next().await {
        confirmed += settled(Some(one));
    }
    pace.report(confirmed);
}

fn settled(one: Option<lapin::Result<Confirmation>>) -> u64 {
    match one {
        Some(Ok(Confirmation::Ack(None))) => 1,
        other => panic!("not confirmed: {other:?}"),
    }
}

async fn to_admin(address: &str, order: Order) {
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("a client");
    let url = format!("http://{address}/v1/topics/{}/events", order.topic);
    let (order, pace) = (&order, &std::sync::Mutex::new(Pace::new(order.rate)));
    let (client, url) = (&client, &url);
    let one = |n: u64| async move {
        loop {
            let wait = pace.lock().expect("no panic").wait(n);
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => break,
            }
        }
        let answer = client
            .post(url)
            .header("content-type", "application/json")
            .header("hookbridge-type", order.kind(n))
            .header("hookbridge-id", format!("bench-{}", order.first + n))
            .body(order.body(n))
            .send()
            .await;
        let status = answer.expect("an answer").status();
        assert!(status.is_success(), "refused with {status}");
    };
    let mut answers = futures_util::stream::iter((0..order.count).map(one));
    let mut answers = answers.by_ref().buffer_unordered(order.at_once);
    let mut confirmed = 0;
    while answers.next().await.is_some() {
        confirmed += 1;
    }
    pace.lock().expect("no panic").report(confirmed);
}

/// `at_once` publishers, each of which publishes its next when its last has been synced.
async fn to_file(path: &str, order: Order) {
    let naming = Naming {
        source: "bench".into(),
        topic: None,
        id: None,
        tenant: None,
    };
    let source = SourceSettings {
        name: "bench".into(),
        topics: vec!["#".parse().expect("a pattern")],
        naming,
        meters: Meters::new().of_source("bench"),
    };
    let broker = Embedded::open(Settings {
        name: "bench".into(),
        group: "bench".into(),
        path: Path::new(path).to_owned(),
        max_bytes: 8 << 30,
        retention: Duration::ZERO,
        sources: vec![source],
    })
    .expect("the file opens");
    let order = Arc::new(order);
    let next = Arc::new(AtomicU64::new(0));
    let pace = Pace::new(0);
    let publishers: Vec<_> = (0..order.at_once)
        .map(|_| {
            let (broker, order, next) = (broker.clone(), order.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= order.count {
                        return;
                    }
                    let publication = Publication {
                        topic: order.topic.clone(),
                        id: Some(format!("bench-{}", order.first + n)),
                        kind: Some(order.kind(n).to_owned()),
                        content_type: Some("application/json".into()),
                        body: Bytes::from(order.body(n)),
                        ..Publication::default()
                    };
                    let published = broker.publish_all(vec![publication]).await;
                    published.expect("published");
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.expect("no panic");
    }
    pace.report(order.count);
}

/// Makes a queue (`queue=classic` or `quorum`) or a topic.
pub fn make(kind: &str, address: &str, topic: &str, pairs: &[&str]) {
    let order = Order::new(topic, pairs);
    crate::current_thread().block_on(async {
        match kind {
            "rabbitmq" => {
                let (_connection, channel) = rabbitmq(address).await;
                let form = match pairs.contains(&"queue=classic") {
                    true => "classic",
                    false => "quorum",
                };
                let mut arguments = FieldTable::default();
                arguments.insert("x-queue-type".into(), AMQPValue::LongString(form.into()));
                let options = QueueDeclareOptions {
                    durable: true,
                    ..QueueDeclareOptions::default()
                };
                let made = channel.queue_declare(topic.into(), options, arguments);
                made.await.expect("a queue");
            }
            "kafka" => {
                let replication = TopicReplication::Fixed(1);
                let new = NewTopic::new(topic, order.partitions, replication)
                    .set("max.message.bytes", "10000000");
                let admin = kafka(address);
                let made = admin.create_topics([&new], &AdminOptions::new()).await;
                for one in made.expect("an answer") {
                    one.expect("a topic");
                }
            }
            _ => {}
        }
    });
}

/// Removes what [`make`] made, and what is in it. With `group=` and `tiers=` also what a bridge of
/// that group has declared.
pub fn remove(kind: &str, address: &str, topic: &str, pairs: &[&str]) {
    let mut names = vec![topic.to_owned()];
    let value = |name: &str| pairs.iter().find_map(|pair| pair.strip_prefix(name));
    if let Some(group) = value("group=") {
        let tiers = value("tiers=").unwrap_or_default().split(',');
        names.extend(
            tiers.flat_map(|tier| ["retry", "hold"].map(|w| format!("{group}.{w}.{tier}"))),
        );
        let rest = ["due.retry", "due.hold", "due.orders", "dead", "replay"];
        names.extend(rest.map(|rest| format!("{group}.{rest}")));
    }
    crate::current_thread().block_on(async {
        match kind {
            "rabbitmq" => {
                let (_connection, channel) = rabbitmq(address).await;
                for name in names {
                    let name = name.as_str().into();
                    let gone = channel.queue_delete(name, QueueDeleteOptions::default());
                    gone.await.expect("no queue");
                }
            }
            "kafka" => {
                let admin = kafka(address);
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                // Those that were never made are answered with a "no" of their own.
                let gone = admin.delete_topics(&names, &AdminOptions::new()).await;
                gone.expect("an answer");
            }
            _ => {}
        }
    });
}

pub async fn rabbitmq(address: &str) -> (Connection, Channel) {
    let connection = Connection::connect(address, ConnectionProperties::default());
    let connection = connection.await.expect("RabbitMQ answers");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

fn kafka(address: &str) -> AdminClient<DefaultClientContext> {
    let admin = ClientConfig::new()
        .set("bootstrap.servers", address)
        .create();
    admin.expect("an admin client")
}
