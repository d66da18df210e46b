//! A bus: a broker of any kind, as a test that does not care which sees it.
//!
//! It writes the bridge's config for its kind, publishes as a service would, and reads the dead
//! letters with a plain client of the broker, which knows nothing of the bridge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookbridge::broker::embedded;
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions};
use lapin::types::AMQPValue;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::bridge::Bridge;
use super::shop::Shop;
use super::unique;

/// The topic of every event.
pub const TOPIC: &str = "orders.created";
/// What a topic of Kafka takes unless it is told otherwise, in bytes (`max.message.bytes`).
pub const KAFKAS_LARGEST: usize = 1_048_588;

/// See the module.
pub struct Bus {
    pub group: String,
    pub kind: Kind,
}

/// Which broker, and where on it.
#[allow(clippy::large_enum_variant, reason = "a test has one")]
pub enum Kind {
    Embedded,
    RabbitMq {
        amqp: String,
        shop: Shop,
        /// A classic queue that is there already, instead of a quorum queue of ours.
        classic: bool,
    },
    Kafka {
        bootstrap: String,
        topic: String,
    },
}

/// A dead letter as its broker has it.
#[derive(Debug)]
pub struct Letter {
    pub reason: String,
    pub body: Bytes,
    pub headers: BTreeMap<String, String>,
}

impl Bus {
    pub fn embedded() -> Self {
        Self {
            group: unique("chaos"),
            kind: Kind::Embedded,
        }
    }

    pub async fn rabbitmq(amqp: String) -> Self {
        let shop = Shop::open(&amqp).await;
        Self {
            group: unique("chaos"),
            kind: Kind::RabbitMq {
                amqp,
                shop,
                classic: false,
            },
        }
    }

    /// Like [`Bus::rabbitmq`], with a durable classic queue that the services have declared.
    pub async fn rabbitmq_classic(amqp: String) -> Self {
        Self::rabbitmq_declared(amqp, lapin::types::FieldTable::default()).await
    }

    /// Like [`Bus::rabbitmq`], with a quorum queue of the services that drops what it has handed out
    /// more often than `limit` times.
    pub async fn rabbitmq_limited(amqp: String, limit: i32) -> Self {
        let mut arguments = lapin::types::FieldTable::default();
        let quorum = lapin::types::AMQPValue::LongString("quorum".into());
        arguments.insert("x-queue-type".into(), quorum);
        arguments.insert("x-delivery-limit".into(), limit.into());
        Self::rabbitmq_declared(amqp, arguments).await
    }

    async fn rabbitmq_declared(amqp: String, arguments: lapin::types::FieldTable) -> Self {
        let mut bus = Self::rabbitmq(amqp).await;
        let queue = format!("{}.orders", bus.group);
        if let Kind::RabbitMq { shop, classic, .. } = &mut bus.kind {
            *classic = true;
            let durable = lapin::options::QueueDeclareOptions::durable();
            let declared = shop
                .channel
                .queue_declare(queue.as_str().into(), durable, arguments);
            declared.await.expect("a queue");
            let options = lapin::options::QueueBindOptions::default();
            let exchange = shop.exchange.as_str();
            let bound = shop.channel.queue_bind(
                queue.as_str().into(),
                exchange.into(),
                "orders.#".into(),
                options,
                lapin::types::FieldTable::default(),
            );
            bound.await.expect("a binding");
        }
        bus
    }

    /// Makes a topic of `partitions` partitions.
    pub async fn kafka(bootstrap: String, partitions: i32) -> Self {
        Self::kafka_up_to(bootstrap, partitions, KAFKAS_LARGEST).await
    }

    /// The same, for messages of up to so many bytes.
    pub async fn kafka_up_to(bootstrap: String, partitions: i32, max_bytes: usize) -> Self {
        let topic = unique("orders");
        let admin: AdminClient<_> = client(&bootstrap).create().expect("an admin client");
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(-1));
        let max_bytes = max_bytes.to_string();
        let new = new.set("max.message.bytes", &max_bytes);
        let made = admin.create_topics(&[new], &AdminOptions::new()).await;
        made.expect("kafka is there")
            .remove(0)
            .expect("a topic is made");
        Self {
            group: unique("chaos"),
            kind: Kind::Kafka { bootstrap, topic },
        }
    }

    /// The node that leads the first partition of its events; 0 where nobody does.
    #[allow(dead_code, reason = "for the torture harness")]
    pub async fn leader(&self) -> usize {
        let Kind::Kafka { bootstrap, topic } = &self.kind else {
            panic!("it is kafka");
        };
        let admin: AdminClient<_> = client(bootstrap).create().expect("an admin client");
        let topic = topic.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let within = Duration::from_secs(10);
            let metadata = admin.inner().fetch_metadata(Some(&topic), within).ok()?;
            let partitions = metadata.topics().first()?.partitions();
            let first = partitions.iter().find(|partition| partition.id() == 0)?;
            usize::try_from(first.leader()).ok()
        });
        asked.await.expect("asked").unwrap_or_default()
    }

    /// The source of its events, as the config has it.
    pub fn source(&self) -> String {
        let group = &self.group;
        match &self.kind {
            Kind::Embedded => "{ broker: here, topics: ['#'] }".to_owned(),
            Kind::RabbitMq { classic: true, .. } => {
                format!("{{ broker: here, queue: {group}.orders, declare: false }}")
            }
            Kind::RabbitMq { shop, .. } => format!(
                "{{ broker: here, queue: {group}.orders, bind: [{{ exchange: {}, key: 'orders.#' }}] }}",
                shop.exchange
            ),
            Kind::Kafka { topic, .. } => {
                format!("{{ broker: here, topics: [{topic}], start: earliest, topic: {TOPIC} }}")
            }
        }
    }

    /// The whole config, with these subscriptions.
    pub fn config(&self, subscriptions: &str) -> String {
        let (group, source) = (&self.group, self.source());
        let broker = match &self.kind {
            Kind::Embedded => "{ embedded: {} }".to_owned(),
            Kind::RabbitMq { amqp, .. } => {
                format!("{{ rabbitmq: {{ urls: ['{amqp}'] }}, tiers: [1s, 2s, 5s] }}")
            }
            Kind::Kafka { bootstrap, .. } => {
                let each = bootstrap.replace(',', "', '");
                format!("{{ kafka: {{ bootstrap: ['{each}'] }}, tiers: [1s, 2s, 5s] }}")
            }
        };
        format!(
            "group: {group}
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {broker} }}
sources: {{ orders: {source} }}
subscriptions:
{subscriptions}"
        )
    }

    /// Publishes all and returns when the broker has confirmed them.
    pub async fn publish(&self, bridge: &Bridge, bodies: &[String]) {
        match &self.kind {
            Kind::Embedded => publish_to_embedded(bridge, bodies).await,
            Kind::RabbitMq { shop, .. } => publish_to_rabbitmq(shop, bodies).await,
            Kind::Kafka { bootstrap, topic } => publish_to_kafka(bootstrap, topic, bodies).await,
        }
    }

    /// Publishes the first to the first partition, and so on; where there are none, as always.
    pub async fn publish_one_to_each_partition(&self, bridge: &Bridge, bodies: &[String]) {
        let Kind::Kafka { bootstrap, topic } = &self.kind else {
            return self.publish(bridge, bodies).await;
        };
        let producer: FutureProducer = client(bootstrap).create().expect("a producer");
        for (partition, body) in bodies.iter().enumerate() {
            let record = FutureRecord::to(topic).key(body).payload(body);
            let sent = producer.send(record.partition(partition as i32), Duration::from_secs(10));
            sent.await.expect("confirmed");
        }
    }

    /// Takes the connection for publishing anew, after the broker was away.
    pub async fn reconnect(&mut self) {
        if let Kind::RabbitMq { amqp, shop, .. } = &mut self.kind {
            let exchange = shop.exchange.clone();
            *shop = super::eventually("rabbitmq answers", Duration::from_secs(30), async || {
                tokio::time::timeout(Duration::from_secs(5), Shop::open(amqp))
                    .await
                    .ok()
            })
            .await;
            shop.exchange = exchange;
        }
    }

    /// All dead letters. Stops the bridge first where the file is its own (embedded).
    pub async fn letters(&self, bridge: &mut Bridge, count: usize) -> Vec<Letter> {
        let within = Duration::from_secs(30);
        match &self.kind {
            Kind::Embedded => {
                bridge.terminate();
                assert_eq!(bridge.exit_code(within).await, Some(0));
                embedded_letters(bridge, &self.group).await
            }
            Kind::RabbitMq { amqp, .. } => {
                let queue = format!("{}.dead", self.group);
                super::eventually("the dead letters are there", within, async || {
                    let letters = rabbitmq_letters(amqp, &queue).await;
                    (letters.len() >= count).then_some(letters)
                })
                .await
            }
            Kind::Kafka { bootstrap, .. } => {
                let topic = format!("{}.dead", self.group);
                super::eventually("the dead letters are there", within, async || {
                    let letters = kafka_letters(bootstrap, &topic).await;
                    (letters.len() >= count).then_some(letters)
                })
                .await
            }
        }
    }
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// What an event is called: the same for the same body, where the broker lets a publisher say.
fn id_of(body: &str) -> String {
    let digits = body.chars().filter(char::is_ascii_digit);
    format!("evt_{}", digits.take(12).collect::<String>())
}

async fn publish_to_embedded(bridge: &Bridge, bodies: &[String]) {
    let url = format!("http://{}/v1/topics/{TOPIC}/events", bridge.admin);
    let client = reqwest::Client::new();
    for chunk in bodies.chunks(1_000) {
        let line = |body: &String| {
            let (id, kind) = (id_of(body), "application/json");
            format!("{{\"id\":\"{id}\",\"content_type\":\"{kind}\",\"data\":{body}}}\n")
        };
        let request = client
            .post(&url)
            .header("content-type", "application/x-ndjson")
            .body(chunk.iter().map(line).collect::<String>());
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
    }
}

async fn publish_to_rabbitmq(shop: &Shop, bodies: &[String]) {
    for chunk in bodies.chunks(200) {
        let mut confirms = Vec::new();
        for body in chunk {
            let properties = BasicProperties::default()
                .with_message_id(id_of(body).into())
                .with_content_type("application/json".into())
                .with_delivery_mode(2);
            let (exchange, options) = (shop.exchange.as_str(), BasicPublishOptions::default());
            let published = shop.channel.basic_publish(
                exchange.into(),
                TOPIC.into(),
                options,
                body.as_bytes(),
                properties,
            );
            confirms.push(published.await.expect("published"));
        }
        for confirm in confirms {
            confirm.await.expect("confirmed");
        }
    }
}

async fn publish_to_kafka(bootstrap: &str, topic: &str, bodies: &[String]) {
    let producer: FutureProducer = client(bootstrap)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let mut sent = Vec::new();
    for body in bodies {
        let record = FutureRecord::to(topic).key(body).payload(body);
        sent.push(producer.send_result(record).expect("room for it"));
    }
    for one in sent {
        one.await.expect("an answer").expect("confirmed");
    }
}

async fn embedded_letters(bridge: &Bridge, group: &str) -> Vec<Letter> {
    let broker = embedded::Embedded::open(embedded::Settings {
        name: "here".into(),
        group: group.into(),
        path: bridge.data_dir().join("embedded-here.redb"),
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: Vec::new(),
    })
    .expect("the file opens");
    let letters = super::letters::listed(&*broker).await;
    letters
        .into_iter()
        .map(|letter| Letter {
            reason: letter.reason.to_string(),
            body: letter.delivery.event.body.clone(),
            headers: BTreeMap::from([
                (
                    "hookbridge-subscription".to_owned(),
                    letter.delivery.subscription.to_string(),
                ),
                (
                    "hookbridge-attempts".to_owned(),
                    letter.delivery.progress.attempts.to_string(),
                ),
            ]),
        })
        .collect()
}

async fn rabbitmq_letters(amqp: &str, queue: &str) -> Vec<Letter> {
    let shop = Shop::open(amqp).await;
    let mut letters = Vec::new();
    // Without an answer they go back when the connection ends.
    while let Some(got) = shop
        .channel
        .basic_get(queue.into(), BasicGetOptions::default())
        .await
        .expect("the queue is there")
    {
        let table = got.properties.headers().clone().unwrap_or_default();
        let headers: BTreeMap<_, _> = table
            .inner()
            .iter()
            .map(|(name, value)| {
                let text = match value {
                    AMQPValue::LongString(text) => {
                        String::from_utf8_lossy(text.as_bytes()).into_owned()
                    }
                    other => format!("{other:?}"),
                };
                (name.to_string(), text)
            })
            .collect();
        if headers.contains_key("hookbridge-probe") {
            continue;
        }
        letters.push(Letter {
            reason: headers["hookbridge-reason"].clone(),
            body: got.data.clone().into(),
            headers,
        });
    }
    letters
}

async fn kafka_letters(bootstrap: &str, topic: &str) -> Vec<Letter> {
    let consumer: StreamConsumer = client(bootstrap)
        .set("group.id", unique("letters"))
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let consumer = Arc::new(consumer);
    let asking = {
        let (consumer, topic) = (consumer.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            let timeout = Duration::from_secs(10);
            let metadata = consumer.fetch_metadata(Some(&topic), timeout).ok()?;
            let partitions = metadata.topics().first()?.partitions().len();
            let mut ends = Vec::new();
            for partition in 0..partitions as i32 {
                let (low, high) = consumer.fetch_watermarks(&topic, partition, timeout).ok()?;
                ends.push((partition, low, high));
            }
            Some(ends)
        })
    };
    let Some(mut ends) = asking.await.expect("no panic") else {
        return Vec::new();
    };
    ends.retain(|(_, low, high)| high > low);
    let mut list = TopicPartitionList::new();
    for (partition, ..) in &ends {
        list.add_partition_offset(topic, *partition, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    let mut letters = BTreeMap::new();
    while !ends.is_empty() {
        let Ok(Ok(message)) = tokio::time::timeout(Duration::from_secs(5), consumer.recv()).await
        else {
            break;
        };
        let (partition, offset) = (message.partition(), message.offset());
        ends.retain(|(of, _, high)| *of != partition || offset + 1 < *high);
        let key = message.key().unwrap_or_default().to_vec();
        let Some(body) = message.payload() else {
            letters.remove(&key);
            continue;
        };
        let headers: BTreeMap<_, _> = message
            .headers()
            .map(|headers| {
                let text = |value: Option<&[u8]>| {
                    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
                };
                headers
                    .iter()
                    .map(|header| (header.key.to_owned(), text(header.value)))
                    .collect()
            })
            .unwrap_or_default();
        if headers.contains_key("hookbridge-probe") {
            continue;
        }
        let letter = Letter {
            reason: headers["hookbridge-reason"].clone(),
            body: Bytes::copy_from_slice(body),
            headers,
        };
        letters.insert(key, letter);
    }
    letters.into_values().collect()
}
