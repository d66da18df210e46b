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
    // The first answers come when the alarm is on already.
    let receiver = Receiver::answering(|_, before| match before {
        0 => Answer::status(503).after(Duration::from_secs(5)),
        _ => Answer::status(204),
    })
    .await;
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "");
    let config = rabbitmq_config(&amqp, &unique("parking"), &shop.exchange, &crm);
    let bridge = Bridge::start(&config).await.ready().await;
    let id = |n: usize| BasicProperties::default().with_message_id(format!("evt_{n}").into());
    for number in 0..20 {
        shop.publish("orders.created", b"{}", id(number)).await;
    }
    receiver.wait_for(16, SOON).await;
    let alarm = ["set_vm_memory_high_watermark", "absolute", "1MB"];
    tokio::task::block_in_place(|| broker.ctl(&alarm));
    eventually("intake is paused", SOON, async || {
        paused(&bridge).await.then_some(())
    })
    .await;
    assert!(
        bridge.log().contains("intake is paused until it does"),
        "the log says nothing"
    );
    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "0.8"]));
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
