//! What RabbitMQ does not suffer: messages that are too large, receipts that are held too long, and
//! queues that are full.

use std::time::Duration;

use hookbridge::broker::{Publication, Refused};
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::timeout;

use crate::contract::rig::Rig;
use crate::path::{Shop, rabbitmq_config, subscription};
use crate::rabbitmq_support::{Client, simple};
use crate::support::bridge::Bridge;
use crate::support::brokers::Own;
use crate::support::bus::{Bus, Kind};
use crate::support::receiver::{Answer, Receiver};
use crate::support::{eventually, unique};

const WITHIN: Duration = Duration::from_secs(40);

async fn own() -> Own {
    let up = tokio::task::spawn_blocking(Own::rabbitmq);
    up.await.expect("a broker")
}

/// Sets one of the server's numbers, which holds for channels that are opened later.
fn set(own: &Own, name: &str, value: usize) {
    own.ctl(&[
        "eval",
        &format!("application:set_env(rabbit, {name}, {value})."),
    ]);
}

/// The event was taken before the limit was lowered; neither its park nor its dead letter is
/// accepted with its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_to_be_parked_is_a_dead_letter_without_its_body() {
    const LIMIT: usize = 64 << 10;
    let own = own().await;
    let failing = Receiver::answering(|_, _| Answer::status(503)).await;
    let refusing = Receiver::answering(|_, _| Answer::status(400)).await;
    let bus = Bus::rabbitmq(own.address()).await;
    let subscriptions = subscription("failing", "orders.#", &failing.url("/"), "")
        + &subscription("refusing", "orders.#", &refusing.url("/"), "")
            .replace("schedule:", "no_retry: [400], schedule:");
    set(&own, "max_message_size", LIMIT);
    let mut bridge = Bridge::start(&bus.config(&subscriptions))
        .await
        .ready()
        .await;
    let Kind::RabbitMq { shop, .. } = &bus.kind else {
        panic!("it is rabbitmq")
    };
    // This channel is older than the limit.
    let large = "x".repeat(3 * LIMIT);
    for (id, body) in [("large", large.as_str()), ("small", "{}")] {
        let properties = BasicProperties::default().with_message_id(id.into());
        shop.publish("orders.made", body.as_bytes(), properties)
            .await;
    }
    let letters = eventually("all four have ended", WITHIN, async || {
        let letters = bus.letters(&mut bridge, 4).await;
        (letters.len() >= 4).then_some(letters)
    })
    .await;
    let text = |letter: &crate::support::bus::Letter, name: &str| {
        letter.headers.get(name).cloned().unwrap_or_default()
    };
    let mut seen: Vec<_> = letters
        .iter()
        .map(|letter| {
            let of = text(letter, "hookbridge-subscription");
            let id = text(letter, "hookbridge-event-id");
            (id, of, letter.reason.clone(), letter.body.len())
        })
        .collect();
    seen.sort();
    let expected = [
        ("large", "failing", "unparkable", 0),
        ("large", "refusing", "no_retry", 0),
        ("small", "failing", "attempts_exhausted", 2),
        ("small", "refusing", "no_retry", 2),
    ]
    .map(|(id, of, why, size)| (id.to_owned(), of.to_owned(), why.to_owned(), size));
    assert_eq!(seen, expected);
    eventually("the source goes on and owes nothing", WITHIN, async || {
        let line =
            "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
        (bridge.metric(line).await == 2.0).then_some(())
    })
    .await;
    assert_eq!(bridge.get("/readyz").await.0, 200);
}

/// A receipt is held longer than the server suffers: it closes the channel. The bridge takes what
/// comes again, and is done with it once the receiver is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_that_is_held_too_long_costs_a_channel_and_no_event() {
    let own = own().await;
    set(&own, "consumer_timeout", 3_000);
    set(&own, "channel_tick_interval", 500);
    let slow = Receiver::answering(|request, before| match (&request.id[..], before) {
        ("slow", 0) => Answer::status(204).after(Duration::from_secs(9)),
        _ => Answer::status(204),
    })
    .await;
    let shop = Shop::open(&own.address()).await;
    let crm = subscription("crm", "orders.*", &slow.url("/"), ", timeout: 15s");
    let config = rabbitmq_config(&own.address(), &unique("held"), &shop.exchange, &crm);
    let bridge = Bridge::start(&config).await.ready().await;
    let publish = async |id: &str| {
        let properties = BasicProperties::default().with_message_id(id.into());
        shop.publish("orders.made", id.as_bytes(), properties).await;
    };
    publish("slow").await;
    slow.wait_for(1, WITHIN).await;
    for number in 0..20 {
        publish(&format!("quick-{number}")).await;
    }
    eventually("the server has closed the channel", WITHIN, async || {
        bridge
            .log()
            .contains("delivery acknowledgement on channel")
            .then_some(())
    })
    .await;
    eventually("all are there and the queue is empty", WITHIN, async || {
        let counts = own.ctl(&["list_queues", "name", "messages"]);
        // What a group shares stays where it is.
        let left = counts.lines();
        let left = left.filter(|line| line.contains("held-") && !line.contains(".state"));
        let is_empty = left.clone().all(|line| line.trim_end().ends_with("\t0"));
        (is_empty && slow.by_id().len() == 21).then_some(())
    })
    .await;
    let again: usize = slow.by_id().values().map(|count| count - 1).sum();
    assert!((1..=63).contains(&again), "{again} came again");
    bridge.wait_ready(WITHIN).await;
    publish("fresh").await;
    eventually("a fresh one", WITHIN, async || {
        slow.by_id().contains_key("fresh").then_some(())
    })
    .await;
}

/// A queue says no for a moment, as a quorum queue does that is new or changes its leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_says_no_is_asked_again() {
    let (client, queue) = (Client::open().await, unique("narrow"));
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    let reject = AMQPValue::LongString("reject-publish".into());
    arguments.insert("x-overflow".into(), reject);
    let declared = client.channel.queue_declare(
        queue.as_str().into(),
        QueueDeclareOptions::durable(),
        arguments,
    );
    declared.await.expect("declared");
    let rig = Rig::run(simple().0).await;
    let publication = |body: &'static str| Publication {
        topic: queue.clone(),
        body: body.into(),
        ..Publication::default()
    };
    rig.broker
        .publish(publication("first"))
        .await
        .expect("there is room");
    let refused = rig.broker.publish(publication("never")).await;
    assert!(
        matches!(refused, Err(Refused::Rejected { .. })),
        "{refused:?}"
    );
    let mut second = rig.broker.publish(publication("second"));
    let early = timeout(Duration::from_millis(100), &mut second).await;
    assert!(
        early.is_err(),
        "{early:?}, and nothing has been asked again"
    );
    let next = async || {
        let options = BasicGetOptions { no_ack: true };
        let got = client.channel.basic_get(queue.as_str().into(), options);
        got.await.expect("read").map(|got| got.delivery.data)
    };
    assert_eq!(next().await.as_deref(), Some(&b"first"[..]));
    second.await.expect("there is room again");
    assert_eq!(next().await.as_deref(), Some(&b"second"[..]));
    rig.stop().await;
}
