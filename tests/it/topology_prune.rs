//! What an earlier config has left on a broker is warned about, and `topology --prune` removes it.

use std::time::Duration;

use crate::kafka_support;
use crate::path::{Shop, subscription};
use crate::rabbitmq_support::{Client, amqp, virtual_host};
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::command::{Command, Said};
use crate::support::receiver::Receiver;
use crate::support::{brokers, eventually};

const WITHIN: Duration = Duration::from_secs(30);

async fn prune(bridge: &Bridge, more: &[&str]) -> Said {
    let arguments = [&["topology", "--prune"], more].concat();
    let command = Command::of(&bridge.config_path(), &arguments);
    let run = tokio::task::spawn_blocking(move || command.run());
    run.await.expect("no panic")
}

/// Runs the bridge with `before`, and then with `after` until it has warned.
async fn changed(before: &str, after: &str) -> Bridge {
    let mut bridge = Bridge::start(before).await.ready().await;
    bridge.terminate();
    assert_eq!(bridge.exit_code(WITHIN).await, Some(0));
    bridge.write_config(after);
    bridge.start_again().await;
    bridge.wait_ready(WITHIN).await;
    eventually("what is left over is warned about", WITHIN, async || {
        let log = bridge.log();
        log.contains("left over from an earlier config")
            .then_some(())
    })
    .await;
    bridge
}

#[tokio::test]
async fn rabbitmq_queues_and_bindings_that_nobody_needs_are_removed() {
    let (_, url) = virtual_host();
    let shop = Shop::open(&url).await;
    let receiver = Receiver::accepting().await;
    let config = |tiers: &str, source: &str, key: &str| {
        format!(
            "group: g
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ shop: {{ rabbitmq: {{ url: '{url}' }}, tiers: {tiers} }} }}
sources:
  orders: {{ broker: shop, queue: g.orders, bind: [{{ exchange: {}, key: '{key}' }}] }}
{source}subscriptions:
{}",
            shop.exchange,
            subscription("crm", "orders.*", &receiver.url("/"), "")
        )
    };
    let more = "  more: { broker: shop, queue: g.more }\n";
    let before = config("[1s, 2s]", more, "orders.#");
    let after = config("[1s]", "", "orders.created");
    let bridge = changed(&before, &after).await;
    let client = Client::open_at(&url).await;
    client
        .publish("", "g.more", b"{}", Default::default())
        .await;

    let unasked = prune(&bridge, &[]).await;
    assert_eq!(unasked.code, 64, "{unasked:?}");
    let said = prune(&bridge, &["--yes"]).await;
    let text = said.text(&[(&shop.exchange, "EXCHANGE")]);
    insta::assert_snapshot!(text, @r#"
    remove  broker shop: queue g.hold.2, 0 messages
    keep    broker shop: queue g.more, 1 messages: it is not empty
    remove  broker shop: queue g.retry.2, 0 messages
    remove  broker shop: binding of queue g.orders to exchange EXCHANGE with key `orders.#`
    removed broker shop: queue g.hold.2
    removed broker shop: queue g.retry.2
    removed broker shop: binding of queue g.orders to exchange EXCHANGE with key `orders.#`
    "#);
    assert_eq!(said.code, 1);
    // The binding is gone: what had come by it does not come any more.
    shop.publish("orders.changed", b"{}", Default::default())
        .await;
    shop.publish("orders.created", b"{}", Default::default())
        .await;
    let requests = receiver.wait_for(1, WITHIN).await;
    receiver.quiet_for(Duration::from_millis(300), WITHIN).await;
    assert_eq!((requests.len(), receiver.count()), (1, 1));

    let forced = prune(&bridge, &["--yes", "--force"]).await;
    assert!(forced.stdout.contains("removed broker shop: queue g.more"));
    assert_eq!(forced.code, 0);
    let nothing = prune(&bridge, &[]).await;
    assert_eq!(nothing.stdout, "nothing is left over, as far as is known\n");
    assert_eq!(nothing.code, 0);
}

#[tokio::test]
async fn kafka_tiers_that_nobody_needs_are_removed() {
    let bus = Bus::kafka(brokers::env("HOOKBRIDGE_TEST_KAFKA"), 1).await;
    let receiver = Receiver::accepting().await;
    let config = |tiers: &str| {
        bus.config(&subscription("crm", "orders.*", &receiver.url("/"), ""))
            .replace("tiers: [1s, 2s, 5s]", &format!("tiers: {tiers}"))
    };
    let bridge = changed(&config("[1s, 2s]"), &config("[1s]")).await;
    let said = prune(&bridge, &["--yes"]).await;
    insta::assert_snapshot!(said.text(&[(&bus.group, "GROUP")]), @r#"
    remove  broker here: topic GROUP.hold.2, 0 messages
    remove  broker here: topic GROUP.retry.2, 0 messages
    removed broker here: topic GROUP.hold.2
    removed broker here: topic GROUP.retry.2
    "#);
    assert_eq!(said.code, 0);
    let left = tokio::task::spawn_blocking(|| {
        let admin = kafka_support::admin();
        let metadata = admin
            .inner()
            .fetch_metadata(None, WITHIN)
            .expect("metadata");
        let topics = metadata.topics().iter();
        topics
            .map(|topic| topic.name().to_owned())
            .collect::<Vec<_>>()
    })
    .await
    .unwrap();
    assert!(!left.contains(&format!("{}.retry.2", bus.group)));
    assert!(left.contains(&format!("{}.retry.1", bus.group)));
    assert!(left.contains(&"__consumer_offsets".to_owned()));
}

#[tokio::test]
async fn a_broker_that_is_away_is_said_to_be() {
    let url = amqp();
    let address = url.rsplit_once('@').unwrap().1;
    let config = format!(
        "group: g
data_dir: '{{data}}'
brokers: {{ shop: {{ rabbitmq: {{ url: 'amqp://u:hush@127.0.0.1:1/{}' }} }} }}
",
        address.rsplit_once('/').unwrap().1
    );
    let said = Command::new(&config, &["topology", "--prune"]).run();
    assert_eq!(said.code, 69, "{said:?}");
    assert!(!said.stderr.contains("hush"));
}
