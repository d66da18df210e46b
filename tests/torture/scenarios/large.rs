//! Large messages for many subscriptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::BasicProperties;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::judge::Report;
use crate::support::bus::Kind;
use crate::support::eventually;
use crate::world::{Plan, Setting, World, selecting};

const SUBSCRIPTIONS: usize = 1_000;
const SIZE: usize = 16 << 20;
/// Beside the one that all subscribe to: more than the budget of 256 MiB, for one of them.
const MORE: usize = 20;

/// Reads requests and throws them away: so many bodies of the right length.
async fn swallow(listener: TcpListener, whole: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let whole = whole.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 256 * 1024];
            let (mut head, mut read) = (Vec::new(), 0);
            loop {
                let Ok(length @ 1..) = stream.read(&mut buffer).await else {
                    return;
                };
                let mut piece = &buffer[..length];
                if read == 0 {
                    head.extend_from_slice(piece);
                    let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
                        continue;
                    };
                    piece = &head[end + 4..];
                }
                read += piece.len();
                if read < SIZE {
                    continue;
                }
                whole.fetch_add(usize::from(read == SIZE), Ordering::SeqCst);
                (read, head) = (0, Vec::new());
                let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// 16 MiB to a thousand subscriptions, and then more at once than the budget of bytes lets in.
pub async fn messages(setting: Setting) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let whole = Arc::new(AtomicUsize::new(0));
    let swallowing = tokio::spawn(swallow(listener, whole.clone()));
    // Unsigned: in a debug build it would be the hashing of 16 GiB that is measured.
    let broker = setting.kind;
    let subscriptions = (0..SUBSCRIPTIONS)
        .map(|number| {
            // What is for one is for the first.
            let topic = if number == 0 { "orders.large.*" } else { "orders.large.all" };
            let selection = selecting(broker, topic);
            format!(
                "  large-{number}: {{ {selection}, timeout: 2m, slow_after: 1m, endpoint: {{ url: 'http://{address}/{number}', signature: none }}, retry: {{ schedule: [1s], jitter: 0 }} }}\n"
            )
        })
        .collect();
    let plan = Plan {
        subscriptions,
        largest: Some(SIZE + (1 << 20)),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.producer.go(20);
    publish(&world, "orders.large.all").await;
    for _ in 0..MORE {
        publish(&world, "orders.large.one").await;
    }
    let owed = SUBSCRIPTIONS + MORE;
    eventually(
        "all large ones have come",
        Duration::from_secs(240),
        async || (whole.load(Ordering::SeqCst) >= owed).then_some(()),
    )
    .await;
    let came = whole.load(Ordering::SeqCst);
    let mut report = world.judged().await;
    report.also(owed, came, came - owed);
    swallowing.abort();
    report
}

async fn publish(world: &World, topic: &str) {
    let body = vec![b'x'; SIZE];
    match &world.bus.kind {
        Kind::RabbitMq { shop, .. } => {
            let id = format!("large-{}", uuid::Uuid::now_v7());
            let properties = BasicProperties::default().with_message_id(id.into());
            shop.publish(topic, &body, properties).await;
        }
        Kind::Kafka {
            bootstrap,
            topic: of_all,
        } => {
            let mut settings = ClientConfig::new();
            settings.set("bootstrap.servers", bootstrap);
            settings.set("message.max.bytes", "100000000");
            let producer: FutureProducer = settings.create().expect("a producer");
            let key = "type";
            let value = Some(topic);
            let headers = OwnedHeaders::new().insert(Header { key, value });
            let record = FutureRecord::to(of_all).key("large").payload(&body);
            let sent = producer.send(record.headers(headers), Duration::from_secs(60));
            sent.await.expect("confirmed");
        }
        Kind::Embedded => {
            let url = format!("http://{}/v1/topics/{topic}/events", world.bridge.admin);
            let client = reqwest::Client::new();
            // A disk that is busy with the one before says no for a while.
            eventually("it is taken", Duration::from_secs(60), async || {
                let sent = client.post(&url).body(body.clone()).send().await;
                let answer = sent.expect("an answer");
                assert!([202, 503].contains(&answer.status().as_u16()), "{answer:?}");
                (answer.status() == 202).then_some(())
            })
            .await;
        }
    }
}
