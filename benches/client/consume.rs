//! The floor with a broker: what a team writes by hand. Consume, sign, POST, and say that it is
//! done, 64 at once, in one loop. No routing, no lanes, no retries, no dead letters: an answer that
//! is not 2xx ends it.
//!
//! `consume KIND ADDRESS TOPIC URL` runs until it is killed.

use std::sync::Arc;

use futures_util::stream::FuturesOrdered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::{ClientConfig, Message as _};

use crate::AT_ONCE;
use crate::publish;
use crate::send::Bare;

/// As many as the bridge takes ahead.
const PREFETCH: u16 = 256;

pub fn run(kind: &str, address: &str, topic: &str, url: &str) {
    let bare = Arc::new(Bare::new(url, None));
    crate::multi_thread(1).block_on(async {
        // The loop itself is to run where the library's tasks do.
        let (address, topic) = (address.to_owned(), topic.to_owned());
        let looped = match kind {
            "rabbitmq" => tokio::spawn(from_rabbitmq(address, topic, bare)),
            "kafka" => tokio::spawn(from_kafka(address, topic, bare)),
            _ => panic!("no such kind of broker: {kind}"),
        };
        looped.await.expect("no panic");
    });
}

async fn from_rabbitmq(address: String, queue: String, bare: Arc<Bare>) {
    let (_connection, channel) = publish::rabbitmq(&address).await;
    let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
    qos.await.expect("a prefetch");
    let (tag, options) = ("hard-coded".into(), BasicConsumeOptions::default());
    let consumer = channel
        .basic_consume(queue.into(), tag, options, FieldTable::default())
        .await
        .expect("a consumer");
    let bare = &bare;
    consumer
        .try_for_each_concurrent(AT_ONCE as usize, |delivery| async move {
            let id = delivery.properties.message_id().as_ref();
            let id = id.map_or_else(String::new, |id| id.as_str().to_owned());
            bare.send(id, delivery.data.clone().into()).await;
            delivery.ack(BasicAckOptions::default()).await?;
            Ok(())
        })
        .await
        .expect("RabbitMQ goes on");
}

async fn from_kafka(address: String, topic: String, bare: Arc<Bare>) {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", format!("hard-coded-{topic}"))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "200")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[&topic]).expect("subscribed");
    // In the order taken, so that no offset passes one that is not done.
    let mut posted = FuturesOrdered::new();
    loop {
        tokio::select! {
            message = consumer.recv(), if posted.len() < AT_ONCE as usize => {
                let message = message.expect("Kafka goes on");
                let (partition, offset) = (message.partition(), message.offset());
                let body = message.payload().unwrap_or_default().to_vec();
                let bare = bare.clone();
                posted.push_back(async move {
                    bare.send(format!("{partition}-{offset}"), body.into()).await;
                    (partition, offset)
                });
            }
            Some((partition, offset)) = posted.next() => {
                let stored = consumer.store_offset(&topic, partition, offset);
                stored.expect("the partition is ours");
            }
        }
    }
}
