//! `hookbridge topology` prints all that a bridge needs that may not make anything itself.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};

use crate::kafka_support::admin;
use crate::path::{Shop, subscription};
use crate::rabbitmq_support::{amqp, ctl, virtual_host};
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::command::Command;
use crate::support::receiver::Receiver;
use crate::support::{brokers, eventually, unique};

const WITHIN: Duration = Duration::from_secs(30);

/// Waits until the bridge says that something is missing, and that it may not make it.
async fn says_missing(bridge: &Bridge, what: &str) {
    eventually("what is missing is said", WITHIN, async || {
        let (status, said) = bridge.get("/readyz").await;
        let named = said.contains("declare: false") && said.contains(what);
        (status == 503 && named).then_some(())
    })
    .await;
}

#[tokio::test]
async fn imported_definitions_are_all_that_rabbitmq_needs() {
    let (vhost, admin_url) = virtual_host();
    let shop = Shop::open(&admin_url).await;
    // Somebody who may read and write, and make nothing.
    let user = unique("bridge");
    ctl(&["add_user", &user, "secret"]);
    ctl(&["set_permissions", "-p", &vhost, &user, "^$", ".*", ".*"]);
    let address = amqp();
    let address = address.rsplit_once('@').unwrap().1.trim_end_matches("/%2f");
    let receiver = Receiver::accepting().await;
    let config = format!(
        "group: g
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ shop: {{ rabbitmq: {{ url: 'amqp://{user}:secret@{address}/{vhost}' }}, tiers: [1s, 2s], declare: false }} }}
sources: {{ orders: {{ broker: shop, queue: g.orders, bind: [{{ exchange: {}, key: 'orders.#' }}] }} }}
subscriptions:
{}",
        shop.exchange,
        subscription("crm", "orders.*", &receiver.url("/"), "")
    );
    let bridge = Bridge::start(&config).await;
    says_missing(&bridge, "`g.due.retry`, `g.due.hold`, `g.dead`").await;

    let printed = Command::of(&bridge.config_path(), &["topology", "--format", "rabbitmq"]).run();
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let file = bridge.data_dir().join("definitions.json");
    std::fs::write(&file, &printed.stdout).unwrap();
    ctl(&["import_definitions", file.to_str().unwrap()]);

    let bridge = bridge.ready().await;
    let id = lapin::BasicProperties::default().with_message_id("evt_1".into());
    shop.publish("orders.created", b"{}", id).await;
    let requests = receiver.wait_for(1, WITHIN).await;
    assert_eq!(requests[0].id, "evt_1");
    drop(bridge);
    ctl(&["delete_user", &user]);
}

#[tokio::test]
async fn printed_topics_are_all_that_kafka_needs() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 2).await;
    let receiver = Receiver::accepting().await;
    let config = bus
        .config(&subscription("crm", "orders.*", &receiver.url("/"), ""))
        .replace("tiers: [1s, 2s, 5s]", "tiers: [1s], declare: false");
    let bridge = Bridge::start(&config).await;
    says_missing(&bridge, &format!("{}.dead", bus.group)).await;

    let printed = Command::of(&bridge.config_path(), &["topology", "--format", "kafka"]).run();
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let mut made = 0;
    for command in printed.stdout.lines() {
        if command.starts_with("kafka-topics.sh ") {
            create(command).await;
            made += 1;
        }
    }
    assert_eq!(made, 6, "{}", printed.stdout);

    let bridge = bridge.ready().await;
    bus.publish(&bridge, &[r#"{"n":1}"#.to_owned()]).await;
    receiver.wait_for(1, WITHIN).await;
}

/// Does what a command of kafka-topics.sh does.
async fn create(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    let after = |flag: &str| {
        let pairs = words.windows(2);
        pairs
            .filter(|pair| pair[0] == flag)
            .map(|pair| pair[1])
            .collect::<Vec<_>>()
    };
    let (name, partitions) = (after("--topic")[0], after("--partitions")[0]);
    let others = [".replay", ".orders", ".state"];
    let holds_deliveries = !others.iter().any(|end| name.ends_with(end));
    let wide = if holds_deliveries { 2 } else { 1 };
    assert_eq!(
        partitions,
        wide.to_string(),
        "{name}: as wide as the source"
    );
    let new = NewTopic::new(name, wide, TopicReplication::Fixed(-1));
    let settings = after("--config");
    let new = settings.iter().fold(new, |new, setting| {
        let (key, value) = setting.split_once('=').expect("name=value");
        new.set(key, value)
    });
    let made = admin().create_topics(&[new], &AdminOptions::new()).await;
    made.unwrap().remove(0).unwrap();
}

#[test]
fn what_is_printed_for_people() {
    let config = "group: g
data_dir: '{data}'
brokers: { shop: { rabbitmq: { url: 'amqp://user:hush@127.0.0.1:1/shop' }, tiers: [5s] } }
sources:
  orders: { broker: shop, queue: g.orders, bind: [{ exchange: events, key: 'orders.#' }] }
  theirs: { broker: shop, queue: theirs, declare: false }
";
    let said = Command::new(config, &["topology"]).run();
    insta::assert_snapshot!(said.stdout, @r#"
    broker shop
      queue g.due.retry: x-queue-type="quorum"
      queue g.due.hold: x-queue-type="quorum"
      queue g.dead: x-queue-type="quorum"
      queue g.retry.5: x-dead-letter-exchange="" x-dead-letter-routing-key="g.due.retry" x-dead-letter-strategy="at-least-once" x-message-ttl=5000 x-overflow="reject-publish" x-queue-type="quorum"
      queue g.hold.5: x-dead-letter-exchange="" x-dead-letter-routing-key="g.due.hold" x-dead-letter-strategy="at-least-once" x-message-ttl=5000 x-overflow="reject-publish" x-queue-type="quorum"
      queue g.state: x-max-length-bytes=4294967296 x-queue-type="stream" x-stream-max-segment-size-bytes=67108864
      queue g.orders: x-queue-type="quorum"
      binding events -> g.orders: `orders.#`
    "#);
    assert!(said.stderr.contains("printed for RabbitMQ 3.x"));
    assert!(said.stderr.contains("queue `theirs` belongs to others"));
    assert!(!said.stdout.contains("hush") && !said.stderr.contains("hush"));
    assert_eq!(said.code, 0);
}

#[test]
fn what_is_asked_wrongly_is_usage() {
    let config = "group: g
data_dir: '{data}'
brokers: { here: { embedded: {} } }
";
    for arguments in [
        &["topology"][..],
        &["topology", "--broker", "nobody"],
        &["topology", "--prune", "--adopt", "old"],
        &["topology", "--yes"],
    ] {
        let said = Command::new(config, arguments).run();
        assert_eq!(said.code, 64, "{arguments:?}: {}", said.stderr);
    }
}
