//! Taking from RabbitMQ: queues of all kinds, and what may happen to them meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use hookbridge::broker::rabbitmq::RabbitMq;
use hookbridge::broker::{Health, Settlement};
use hookbridge::subscription::Secret;
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable};

use crate::contract::rig::{OTHER_SOURCE, Rig, SOON, SOURCE};
use crate::rabbitmq_support::*;
use crate::support::{eventually, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_while_it_is_consumed_is_declared_again_and_fed() {
    let (broker, queue, _) = simple();
    let mut rig = Rig::run(broker).await;
    let client = Client::open().await;
    client.delete(&queue).await;
    eventually("the queue takes messages again", SOON, async || {
        client
            .publish("", &queue, b"x", with_id("evt_1"))
            .await
            .then_some(())
    })
    .await;
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    assert_eq!(event.id.as_str(), "evt_1");
    rig.ready().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_queue_of_others_is_named_and_the_other_source_goes_on() {
    let (group, queue, missing) = (unique("rabbit"), unique("orders"), unique("missing"));
    let sources = vec![
        source(SOURCE, &queue),
        foreign_source(OTHER_SOURCE, &missing),
    ];
    let mut rig = Rig::start(RabbitMq::new(settings(&group, sources)), 16);
    let why = rig.down().await;
    assert!(why.contains(&missing), "{why}");
    let client = Client::open().await;
    eventually("the other source's queue is there", SOON, async || {
        client
            .publish("", &queue, b"x", with_id("evt_1"))
            .await
            .then_some(())
    })
    .await;
    rig.event().await.1.settle(Settlement::Ack);
    client.declare(&missing, "quorum").await;
    rig.ready().await;
    client.publish("", &missing, b"x", with_id("evt_2")).await;
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    assert_eq!(&*event.source, OTHER_SOURCE);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classic_queue_of_others_is_consumed_as_it_is() {
    let (group, queue) = (unique("rabbit"), unique("classic"));
    let client = Client::open().await;
    client.declare(&queue, "classic").await;
    client.publish("", &queue, b"x", with_id("evt_1")).await;
    let broker = RabbitMq::new(settings(&group, vec![foreign_source(SOURCE, &queue)]));
    let mut rig = Rig::run(broker).await;
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    assert_eq!(event.id.as_str(), "evt_1");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_headers_exchange_is_bound_by_its_arguments() {
    let client = Client::open().await;
    let exchange = client.exchange(ExchangeKind::Headers).await;
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let mut by_headers = source(SOURCE, &queue);
    by_headers.bind = vec![binding(
        &exchange,
        "",
        &[("x-match", "all"), ("region", "eu")],
    )];
    let mut rig = Rig::run(RabbitMq::new(settings(&group, vec![by_headers]))).await;
    let in_region = |region: &str, id: &str| {
        let mut headers = FieldTable::default();
        headers.insert("region".into(), AMQPValue::LongString(region.into()));
        with_id(id).with_headers(headers)
    };
    let taken = client.publish(&exchange, "", b"x", in_region("us", "evt_us"));
    assert!(!taken.await, "another region's event was routed");
    let taken = client.publish(&exchange, "", b"x", in_region("eu", "evt_eu"));
    assert!(taken.await);
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    assert_eq!(event.id.as_str(), "evt_eu");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_refused_with_a_reason() {
    let (group, queue) = (unique("rabbit"), unique("stream"));
    let client = Client::open().await;
    client.declare(&queue, "stream").await;
    let broker = RabbitMq::new(settings(&group, vec![foreign_source(SOURCE, &queue)]));
    let mut rig = Rig::start(broker, 16);
    let why = eventually("the stream is refused", SOON, async || {
        client.publish("", &queue, b"x", with_id("evt_1")).await;
        match rig.broker.health() {
            Health::Down { why } => Some(why),
            _ => None,
        }
    })
    .await;
    assert!(why.contains("is a stream"), "{why}");
    rig.no_event().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_closed_in_the_middle_of_500_events_lose_none() {
    let (host, url) = virtual_host();
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let mut settings = settings(&group, vec![source(SOURCE, &queue)]);
    settings.urls = vec![Secret::new(url.clone())];
    let mut rig = Rig::run_with_window(RabbitMq::new(settings), 64).await;
    let client = Client::open_at(&url).await;
    for number in 0..500 {
        let id = format!("evt_{number}");
        assert!(client.publish("", &queue, b"x", with_id(&id)).await);
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 500 {
        if seen.len() == 200 {
            ctl(&["close_all_connections", "-p", &host, "a test"]);
        }
        let (event, receipt) = rig.event().await;
        seen.insert(event.id.clone());
        receipt.settle(Settlement::Ack);
    }
    rig.ready().await;
    rig.stop().await;
    ctl(&["delete_vhost", &host]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_decoded_is_named_and_stops_its_own_source_only() {
    let (group, queue, other) = (unique("rabbit"), unique("orders"), unique("others"));
    let sources = vec![source(SOURCE, &queue), source(OTHER_SOURCE, &other)];
    let mut rig = Rig::run(RabbitMq::new(settings(&group, sources))).await;
    let client = Client::open().await;
    client.publish("", &queue, b"x", with_id("evt_1")).await;
    rig.event().await.1.settle(Settlement::Ack);
    publish_undecodable(&queue).await;
    let why = eventually("the queue is named", SOON, async || {
        match rig.broker.health() {
            Health::Down { why } if why.contains("cannot be decoded") => Some(why),
            _ => None,
        }
    })
    .await;
    assert!(why.contains(&queue), "{why}");
    for number in 0..20 {
        let id = format!("evt_other_{number}");
        client.publish("", &other, b"x", with_id(&id)).await;
        let (event, receipt) = rig.event().await;
        receipt.settle(Settlement::Ack);
        assert_eq!(event.id.as_str(), id);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What the log says to do: the message is moved away, and the source goes on.
    client
        .channel
        .queue_purge(queue.as_str().into(), Default::default())
        .await
        .ok();
    client.delete(&queue).await;
    eventually("the queue takes messages again", SOON, async || {
        client
            .publish("", &queue, b"x", with_id("evt_2"))
            .await
            .then_some(())
    })
    .await;
    rig.event().await.1.settle(Settlement::Ack);
    rig.ready().await;
    rig.stop().await;
}
