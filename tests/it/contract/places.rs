//! Places: how brokers of each kind are made for a test, apart from all other tests.

use std::sync::Arc;

use bytes::Bytes;
use hookbridge::broker::tiers::Tiers;
use hookbridge::broker::{Broker, Naming, Publication, embedded, kafka, rabbitmq};
use hookbridge::meters::Meters;
use hookbridge::subscription::{Secret, TlsFiles};
use tempfile::TempDir;

use super::rig::{Rig, SOURCE};
use crate::kafka_support;
use crate::support::{brokers, unique};

/// A kind of broker, with a group and a topic of one test.
pub trait Place {
    /// Another instance of the group. The one before must be stopped where only one may be open.
    fn instance(&self) -> Arc<dyn Broker>;

    /// A second one beside the one that runs, where that can be.
    fn beside(&self, _running: &Rig) -> Arc<dyn Broker> {
        self.instance()
    }

    /// A message that the source takes.
    fn publication(&self, body: impl Into<Bytes>) -> Publication;
}

fn naming() -> Naming {
    Naming {
        source: SOURCE.into(),
        topic: None,
        id: None,
        tenant: None,
    }
}

fn tiers() -> Tiers {
    Tiers::new([1, 8, 30]).expect("tiers")
}

pub struct Embedded {
    folder: TempDir,
}

impl Embedded {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }
}

impl Place for Embedded {
    fn instance(&self) -> Arc<dyn Broker> {
        embedded::Embedded::open(embedded::Settings {
            name: "here".into(),
            group: "hookbridge".into(),
            path: self.folder.path().join("embedded-here.redb"),
            max_bytes: 1 << 30,
            retention: std::time::Duration::ZERO,
            sources: vec![embedded::SourceSettings {
                name: SOURCE.into(),
                topics: vec!["orders.#".parse().expect("a pattern")],
                naming: naming(),
                meters: Meters::new().of_source(SOURCE),
            }],
        })
        .expect("opens")
    }

    /// The file is open in one process alone.
    fn beside(&self, running: &Rig) -> Arc<dyn Broker> {
        running.broker.clone()
    }

    fn publication(&self, body: impl Into<Bytes>) -> Publication {
        Publication {
            topic: "orders.created".into(),
            body: body.into(),
            ..Publication::default()
        }
    }
}

pub struct RabbitMq {
    group: String,
    queue: String,
}

impl RabbitMq {
    pub fn new() -> Self {
        Self {
            group: unique("contract"),
            queue: unique("orders"),
        }
    }
}

impl Place for RabbitMq {
    fn instance(&self) -> Arc<dyn Broker> {
        rabbitmq::RabbitMq::new(rabbitmq::Settings {
            name: "rabbit".into(),
            group: self.group.as_str().into(),
            urls: vec![Secret::new(brokers::env("HOOKBRIDGE_TEST_AMQP"))],
            tls: TlsFiles::default(),
            tiers: tiers(),
            sources: vec![rabbitmq::SourceSettings {
                name: SOURCE.into(),
                queue: self.queue.clone(),
                declare: true,
                bind: Vec::new(),
                naming: naming(),
                meters: Meters::new().of_source(SOURCE),
            }],
            keeps_deliveries: true,
            declare: true,
            keeps_state: true,
        })
    }

    fn publication(&self, body: impl Into<Bytes>) -> Publication {
        Publication {
            topic: self.queue.clone(),
            body: body.into(),
            ..Publication::default()
        }
    }
}

pub struct Kafka {
    group: String,
    topic: String,
}

impl Kafka {
    /// Makes the topic, as the services that publish to it would have.
    pub async fn new() -> Self {
        let kafka = Self {
            group: unique("contract"),
            topic: unique("orders"),
        };
        kafka_support::create_topic(&kafka.topic, 1).await;
        kafka
    }
}

impl Place for Kafka {
    fn instance(&self) -> Arc<dyn Broker> {
        let source = kafka_support::source(SOURCE, &[&self.topic], kafka::Start::Earliest);
        kafka::Kafka::new(kafka::Settings {
            // A static member, whose partitions are there at once for the next process of its name.
            instance: Some("one".into()),
            tiers: tiers(),
            ..kafka_support::settings(&self.group, vec![source])
        })
        .expect("settings that librdkafka takes")
    }

    fn publication(&self, body: impl Into<Bytes>) -> Publication {
        Publication {
            topic: self.topic.clone(),
            body: body.into(),
            ..Publication::default()
        }
    }
}
