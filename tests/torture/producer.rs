//! The producer: publishes numbered events, and remembers which of them the broker has confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Confirmation};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::support::bus::{Bus, Kind, TOPIC};
use crate::support::shop::Shop;

const WITHIN: Duration = Duration::from_secs(5);
/// So many at once are published one behind the other.
const BULK: usize = 1_000;
/// So that all numbers have as many digits.
const FIRST: usize = 100_000_000;

/// The body of event `number`; the spaces are there to be kept.
pub fn body(number: usize) -> String {
    let (number, pad) = (FIRST + number, "x".repeat(300));
    format!("{{\"order\":  {number}, \"pad\": \"{pad}\"}}")
}

/// Which event a body belongs to, when it is one of ours.
pub fn number_in(body: &[u8]) -> Option<usize> {
    let digits = body.get(b"{\"order\":  ".len()..)?.get(..9)?;
    let number: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    number.checked_sub(FIRST)
}

/// See the module.
pub struct Producer {
    shared: Arc<Shared>,
    task: Option<tokio::task::JoinHandle<()>>,
}

struct Shared {
    door: tokio::sync::Mutex<Door>,
    /// The topic of an event, when it is not the usual one.
    route: Option<fn(usize) -> &'static str>,
    events: Mutex<Events>,
    /// When each was published.
    times: Mutex<BTreeMap<usize, Instant>>,
    stop: AtomicBool,
}

/// What was issued, and which of it is an obligation.
#[derive(Default, Clone)]
pub struct Events {
    /// The numbers: so many from the first.
    first: usize,
    count: usize,
    pub confirmed: BTreeSet<usize>,
}

impl Events {
    /// Whether these are the bytes of an event that was published.
    pub fn has(&self, bytes: &[u8]) -> bool {
        number_in(bytes).is_some_and(|number| {
            (self.first..self.first + self.count).contains(&number)
                && body(number).as_bytes() == bytes
        })
    }
}

/// An event to publish.
struct Numbered {
    number: usize,
    body: String,
    topic: Option<&'static str>,
}

/// How events get onto the broker.
#[allow(clippy::large_enum_variant, reason = "a run has one")]
enum Door {
    Embedded {
        admin: String,
    },
    RabbitMq {
        amqp: String,
        exchange: String,
        shop: Option<Shop>,
    },
    Kafka {
        producer: FutureProducer,
        bootstrap: String,
        topic: String,
    },
}

fn to_kafka(bootstrap: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "5000")
        .create()
        .expect("a producer")
}

impl Producer {
    pub fn new(bus: &Bus, admin: &str) -> Self {
        Self::with(bus, admin, 0, None)
    }

    /// One of several: its events are numbered from `first`, and go to the topics that `route` says.
    pub fn routed(bus: &Bus, admin: &str, first: usize, route: fn(usize) -> &'static str) -> Self {
        Self::with(bus, admin, first, Some(route))
    }

    fn with(
        bus: &Bus,
        admin: &str,
        first: usize,
        route: Option<fn(usize) -> &'static str>,
    ) -> Self {
        let door = match &bus.kind {
            Kind::Embedded => Door::Embedded {
                admin: admin.to_owned(),
            },
            Kind::RabbitMq { amqp, shop, .. } => Door::RabbitMq {
                amqp: amqp.clone(),
                exchange: shop.exchange.clone(),
                shop: None,
            },
            Kind::Kafka { bootstrap, topic } => Door::Kafka {
                producer: to_kafka(bootstrap),
                bootstrap: bootstrap.clone(),
                topic: topic.clone(),
            },
        };
        let shared = Shared {
            door: tokio::sync::Mutex::new(door),
            route,
            events: Mutex::new(Events {
                first,
                ..Events::default()
            }),
            times: Mutex::default(),
            stop: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            task: None,
        }
    }

    /// Begins to publish `rate` events a second.
    pub fn go(&mut self, rate: usize) {
        let shared = self.shared.clone();
        shared.stop.store(false, Ordering::SeqCst);
        self.task = Some(tokio::spawn(async move {
            let mut clock = tokio::time::interval(Duration::from_millis(100));
            clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            while !shared.stop.load(Ordering::SeqCst) {
                clock.tick().await;
                shared.publish((rate / 10).max(1)).await;
            }
        }));
    }

    pub async fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(task) = self.task.take() {
            task.await.expect("the producer does not panic");
        }
    }

    /// Publishes `count` at once; their numbers, when all were confirmed.
    pub async fn publish(&self, count: usize) -> Option<Vec<usize>> {
        self.shared.publish(count).await
    }

    pub fn events(&self) -> Events {
        self.shared.events.lock().unwrap().clone()
    }

    /// How many were published, confirmed or not.
    pub fn issued(&self) -> usize {
        self.shared.events.lock().unwrap().count
    }

    /// When an event was handed to the broker.
    pub fn published_at(&self, number: usize) -> Option<Instant> {
        let times = self.shared.times.lock().unwrap();
        times.get(&number).copied()
    }

    pub fn confirmed(&self) -> Vec<usize> {
        let events = self.shared.events.lock().unwrap();
        events.confirmed.iter().copied().collect()
    }
}

impl Shared {
    async fn publish(&self, count: usize) -> Option<Vec<usize>> {
        let batch: Vec<Numbered> = {
            let mut events = self.events.lock().unwrap();
            let next = events.first + events.count;
            events.count += count;
            let numbered = |number| Numbered {
                number,
                body: body(number),
                topic: self.route.map(|route| route(number)),
            };
            (next..next + count).map(numbered).collect()
        };
        let now = Instant::now();
        let times = batch.iter().map(|event| (event.number, now));
        self.times.lock().unwrap().extend(times);
        let mut door = self.door.lock().await;
        // What is cut off at the deadline may be there all the same, but is owed to nobody.
        let confirmed = tokio::time::timeout(WITHIN, door.publish(&batch))
            .await
            .unwrap_or_default();
        if confirmed.len() < batch.len() {
            door.forget();
        }
        let mut events = self.events.lock().unwrap();
        events.confirmed.extend(&confirmed);
        (confirmed.len() == batch.len()).then_some(confirmed)
    }
}

impl Door {
    /// Those that were confirmed.
    async fn publish(&mut self, batch: &[Numbered]) -> Vec<usize> {
        match self {
            Self::Embedded { admin } => {
                let mut topics: BTreeMap<&str, Vec<&Numbered>> = BTreeMap::new();
                for event in batch {
                    let topic = event.topic.unwrap_or(TOPIC);
                    topics.entry(topic).or_default().push(event);
                }
                let sent = topics
                    .iter()
                    .map(|(topic, events)| publish_to_embedded(admin, topic, events));
                futures_util::future::join_all(sent).await.concat()
            }
            Self::RabbitMq {
                amqp,
                exchange,
                shop,
            } => publish_to_rabbitmq(amqp, exchange, shop, batch).await,
            Self::Kafka {
                producer, topic, ..
            } => {
                let sent: Vec<_> = batch
                    .iter()
                    .filter_map(|event| {
                        let body = &event.body;
                        let record = FutureRecord::to(topic).key(body).payload(body);
                        let typed = Header {
                            key: "type",
                            value: Some(event.topic.unwrap_or(TOPIC)),
                        };
                        // A topic of Kafka for each would be hundreds: see `world::selecting`.
                        let record = record.headers(OwnedHeaders::new().insert(typed));
                        Some((event.number, producer.send_result(record).ok()?))
                    })
                    .collect();
                let mut confirmed = Vec::new();
                for (number, answer) in sent {
                    if matches!(answer.await, Ok(Ok(_))) {
                        confirmed.push(number);
                    }
                }
                confirmed
            }
        }
    }

    /// Takes a new connection next time.
    fn forget(&mut self) {
        match self {
            Self::Embedded { .. } => {}
            Self::RabbitMq { shop, .. } => *shop = None,
            Self::Kafka {
                producer,
                bootstrap,
                ..
            } => {
                let old = std::mem::replace(producer, to_kafka(bootstrap));
                // Its end waits for its threads.
                std::thread::spawn(move || drop(old));
            }
        }
    }
}

async fn publish_to_embedded(admin: &str, topic: &str, batch: &[&Numbered]) -> Vec<usize> {
    let url = format!("http://{admin}/v1/topics/{topic}/events");
    let lines = batch.iter().map(|Numbered { number, body, .. }| {
        format!(
            "{{\"id\":\"evt_{number}\",\"content_type\":\"application/json\",\"data\":{body}}}\n"
        )
    });
    let sent = reqwest::Client::new()
        .post(url)
        .header("content-type", "application/x-ndjson")
        .body(lines.collect::<String>())
        .send();
    match sent.await {
        Ok(answer) if answer.status() == 202 => batch.iter().map(|event| event.number).collect(),
        _ => Vec::new(),
    }
}

/// Mandatory, so that an event that no queue took is owed to nobody; one at a time, so that what
/// comes back belongs to the one that was sent. A thousand at once go one behind the other, to a
/// queue that is there for as long as they do.
async fn publish_to_rabbitmq(
    amqp: &str,
    exchange: &str,
    shop: &mut Option<Shop>,
    batch: &[Numbered],
) -> Vec<usize> {
    if shop.is_none() {
        *shop = Shop::join(amqp, exchange).await.ok();
    }
    let mut confirmed = Vec::new();
    let Some(shop) = shop else { return confirmed };
    let is_bulk = batch.len() >= BULK;
    let mut sent = Vec::new();
    for event in batch {
        let properties = BasicProperties::default()
            .with_message_id(format!("evt_{}", event.number).into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        let options = BasicPublishOptions {
            mandatory: !is_bulk,
            ..BasicPublishOptions::default()
        };
        let published = shop.channel.basic_publish(
            exchange.into(),
            event.topic.unwrap_or(TOPIC).into(),
            options,
            event.body.as_bytes(),
            properties,
        );
        let Ok(published) = published.await else {
            break;
        };
        if is_bulk {
            sent.push((event.number, published));
            continue;
        }
        match published.await {
            Ok(Confirmation::Ack(None)) => confirmed.push(event.number),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    for (number, published) in sent {
        if matches!(published.await, Ok(Confirmation::Ack(None))) {
            confirmed.push(number);
        }
    }
    confirmed
}
