//! A broker that refuses to park: nothing is settled, intake pauses and says so, and goes on.

use std::time::Duration;

use lapin::BasicProperties;

use crate::path::{Shop, rabbitmq_config, subscription};
use crate::support::bridge::Bridge;
use crate::support::brokers::Own;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{eventually, unique};

const SOON: Duration = Duration::from_secs(30);
const GAUGE: &str = "hookbridge_intake_paused{source=\"orders\",reason=";

async fn paused(bridge: &Bridge) -> bool {
    let metrics = bridge.metrics().await;
    metrics
        .lines()
        .any(|line| line.starts_with(GAUGE) && line.ends_with(" 1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_park_loses_nothing() {
    let broker = tokio::task::block_in_place(Own::rabbitmq);
    let amqp = broker.address();
    let shop = Shop::open(&amqp).await;
    let receiver =
        Receiver::answering(|_, before| Answer::status(if before < 1 { 503 } else { 204 })).await;
    let group = unique("parking");
    // A minute, so that only parking can bring them back.
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "")
        .replace("[1s, 1s, 1s]", "[20s, 1s, 1s]");
    let config =
        rabbitmq_config(&amqp, &group, &shop.exchange, &crm).replace("[1s, 2s, 5s]", "[20s]");
    let bridge = Bridge::start(&config).await.ready().await;
    let tier = format!("{group}.retry.20");
    tokio::task::block_in_place(|| broker.ctl(&["delete_queue", &tier]));
    let id = |n: usize| BasicProperties::default().with_message_id(format!("evt_{n}").into());
    for number in 0..20 {
        shop.publish("orders.created", b"{}", id(number)).await;
    }
    receiver.wait_for(1, SOON).await;
    eventually("intake is paused", SOON, async || {
        paused(&bridge).await.then_some(())
    })
    .await;
    assert!(
        bridge.log().contains("intake is paused until it does"),
        "the log says nothing"
    );
    // Whatever brings the tier back: here the bridge's own reconnect.
    tokio::task::block_in_place(|| broker.ctl(&["close_all_connections", "--", "test"]));
    eventually("intake goes on", SOON * 2, async || {
        (!paused(&bridge).await).then_some(())
    })
    .await;
    eventually("all are accepted", SOON * 2, async || {
        let accepted = receiver.count_of(|request| request.answered == 204);
        (accepted >= 20 && receiver.by_id().len() == 20).then_some(())
    })
    .await;
}
