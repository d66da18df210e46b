//! RabbitMQ as a test's services and operators use it: a client, its control tool, and raw frames.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hookbridge::broker::Naming;
use hookbridge::broker::rabbitmq::{Binding, RabbitMq, Settings, SourceSettings};
use hookbridge::broker::tiers::Tiers;
use hookbridge::meters::Meters;
use hookbridge::subscription::{Secret, TlsFiles};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::contract::rig::SOURCE;
use crate::support::{brokers, unique};

pub fn amqp() -> String {
    brokers::env("HOOKBRIDGE_TEST_AMQP")
}

/// A source named `name` of a queue that hookbridge declares.
pub fn source(name: &str, queue: &str) -> SourceSettings {
    SourceSettings {
        name: name.into(),
        queue: queue.to_owned(),
        declare: true,
        bind: Vec::new(),
        naming: Naming {
            source: name.into(),
            topic: None,
            id: None,
            tenant: None,
        },
        meters: Meters::new().of_source(name),
    }
}

/// A source of a queue that belongs to others.
pub fn foreign_source(name: &str, queue: &str) -> SourceSettings {
    SourceSettings {
        declare: false,
        ..source(name, queue)
    }
}

pub fn binding(exchange: &str, key: &str, arguments: &[(&str, &str)]) -> Binding {
    Binding {
        exchange: exchange.to_owned(),
        key: key.to_owned(),
        arguments: arguments
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
    }
}

pub fn settings(group: &str, sources: Vec<SourceSettings>) -> Settings {
    Settings {
        name: "rabbit".into(),
        group: group.into(),
        urls: vec![Secret::new(amqp())],
        tls: TlsFiles::default(),
        tiers: Tiers::new([1, 30]).expect("tiers"),
        sources,
        keeps_deliveries: true,
        declare: true,
        keeps_state: false,
    }
}

/// A broker with one source, [`SOURCE`], of a new queue of our own; also the queue and the group.
pub fn simple() -> (Arc<RabbitMq>, String, String) {
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let settings = settings(&group, vec![source(SOURCE, &queue)]);
    (RabbitMq::new(settings), queue, group)
}

/// What services and operators do.
pub struct Client {
    pub channel: Channel,
    _connection: Connection,
}

impl Client {
    pub async fn open() -> Self {
        Self::open_at(&amqp()).await
    }

    pub async fn open_at(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .expect("rabbitmq is there");
        let channel = connection.create_channel().await.expect("a channel");
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .expect("confirms");
        Self {
            channel,
            _connection: connection,
        }
    }

    pub async fn declare(&self, queue: &str, kind: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        self.channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await
            .expect("declared");
    }

    pub async fn exchange(&self, kind: ExchangeKind) -> String {
        let name = unique("shop.events");
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        self.channel
            .exchange_declare(name.as_str().into(), kind, options, FieldTable::default())
            .await
            .expect("an exchange");
        name
    }

    pub async fn delete(&self, queue: &str) {
        self.channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .expect("deleted");
    }

    /// Publishes and waits for the confirmation; whether some queue took the message.
    pub async fn publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> bool {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let confirmation = self
            .channel
            .basic_publish(exchange.into(), key.into(), options, body, properties)
            .await
            .expect("published")
            .await
            .expect("confirmed");
        matches!(confirmation, lapin::Confirmation::Ack(None))
    }
}

pub fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

/// `rabbitmqctl` of the shared broker.
pub fn ctl(arguments: &[&str]) -> String {
    let output = Command::new(brokers::env("HOOKBRIDGE_TEST_RABBITMQ_CTL"))
        .args(arguments)
        .output()
        .expect("rabbitmqctl runs");
    assert!(
        output.status.success(),
        "rabbitmqctl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A virtual host of a test's own, and the URL of it.
pub fn virtual_host() -> (String, String) {
    let name = unique("vhost");
    ctl(&["add_vhost", &name]);
    ctl(&[
        "set_permissions",
        "-p",
        &name,
        "hookbridge",
        ".*",
        ".*",
        ".*",
    ]);
    let url = format!("{}/{name}", amqp().trim_end_matches("/%2f"));
    (name, url)
}

/// Publishes a message to `queue` whose `type` is not UTF-8, which no AMQP library for Rust writes.
pub async fn publish_undecodable(queue: &str) {
    let url = url::Url::parse(&amqp()).expect("a url");
    let address = format!(
        "{}:{}",
        url.host_str().expect("a host"),
        url.port().expect("a port")
    );
    let login = format!(
        "\0{}\0{}",
        url.username(),
        url.password().expect("a password")
    );
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream
        .write_all(b"AMQP\x00\x00\x09\x01")
        .await
        .expect("written");
    read_method(&mut stream, (10, 10)).await;
    let mut start_ok = vec![0, 0, 0, 0];
    start_ok.extend(short(b"PLAIN"));
    start_ok.extend((login.len() as u32).to_be_bytes());
    start_ok.extend(login.as_bytes());
    start_ok.extend(short(b"en_US"));
    method(&mut stream, 0, (10, 11), &start_ok).await;
    read_method(&mut stream, (10, 30)).await;
    // 2047 channels, frames of 128 KiB, no heartbeats.
    method(&mut stream, 0, (10, 31), &[7, 255, 0, 2, 0, 0, 0, 0]).await;
    method(&mut stream, 0, (10, 40), &[1, b'/', 0, 0]).await;
    read_method(&mut stream, (10, 41)).await;
    method(&mut stream, 1, (20, 10), &[0]).await;
    read_method(&mut stream, (20, 11)).await;
    method(&mut stream, 1, (85, 10), &[0]).await;
    read_method(&mut stream, (85, 11)).await;
    let mut publish = vec![0, 0, 0];
    publish.extend(short(queue.as_bytes()));
    publish.push(0);
    method(&mut stream, 1, (60, 40), &publish).await;
    let mut header = vec![0, 60, 0, 0];
    header.extend(1u64.to_be_bytes());
    // The flag of the property `type`.
    header.extend([0x00, 0x20]);
    header.extend(short(b"caf\xe9"));
    frame(&mut stream, 2, 1, &header).await;
    frame(&mut stream, 3, 1, b"x").await;
    read_method(&mut stream, (60, 80)).await;
}

fn short(text: &[u8]) -> Vec<u8> {
    let mut written = vec![text.len() as u8];
    written.extend(text);
    written
}

async fn method(stream: &mut TcpStream, channel: u16, id: (u16, u16), arguments: &[u8]) {
    let mut payload = Vec::new();
    payload.extend(id.0.to_be_bytes());
    payload.extend(id.1.to_be_bytes());
    payload.extend(arguments);
    frame(stream, 1, channel, &payload).await;
}

async fn frame(stream: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    stream.write_all(&frame).await.expect("written");
}

async fn read_method(stream: &mut TcpStream, id: (u16, u16)) {
    let read = async {
        let mut header = [0; 7];
        stream.read_exact(&mut header).await.expect("a frame");
        let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
        let mut payload = vec![0; size + 1];
        stream.read_exact(&mut payload).await.expect("a payload");
        (
            u16::from_be_bytes([payload[0], payload[1]]),
            u16::from_be_bytes([payload[2], payload[3]]),
        )
    };
    let answered = tokio::time::timeout(Duration::from_secs(20), read).await;
    assert_eq!(answered.expect("an answer in time"), id);
}
