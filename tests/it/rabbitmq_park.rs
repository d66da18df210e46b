//! Parking and dead letters on RabbitMQ, where something is missing, foreign or hostile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hookbridge::broker::parked::{Deed, Order, Unwatched, Whose};
use hookbridge::broker::rabbitmq::{RabbitMq, Settings};
use hookbridge::broker::tiers::Tiers;
use hookbridge::broker::{Publication, Refused, Settlement, Wait};
use hookbridge::delivery::{Delivery, Reason, WaitKind};
use hookbridge::event::{Event, HeaderValue};
use hookbridge::subscription::{Secret, Uid};
use jiff::Timestamp;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::contract::rig::{Rig, SOON, SOURCE};
use crate::rabbitmq_support::*;
use crate::support::brokers::Own;
use crate::support::letters::listed;
use crate::support::{eventually, unique};

fn delivery(event: &Arc<Event>) -> Delivery {
    let uid = Uid::of_config("crm");
    Delivery::first(event.clone(), "crm".into(), uid, Timestamp::now())
}

fn retry_in(seconds: u64) -> Wait {
    Wait {
        kind: WaitKind::Retry,
        delay: Duration::from_secs(seconds),
    }
}

/// A running broker, and a delivery of an event that it took.
async fn parked() -> (Rig, Delivery, String) {
    let (broker, queue, group) = simple();
    let mut rig = Rig::run(broker).await;
    let publication = Publication {
        topic: queue,
        body: "body".into(),
        ..Publication::default()
    };
    rig.broker.publish(publication).await.expect("published");
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    (rig, delivery(&event), group)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tier_is_declared_again_by_who_parks_on_it() {
    let (mut rig, delivery, group) = parked().await;
    let client = Client::open().await;
    client.delete(&format!("{group}.retry.1")).await;
    rig.broker
        .park(&delivery, retry_in(1))
        .await
        .expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, delivery);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_does_not_wait_behind_what_is_due() {
    let (rig, delivery, group) = parked().await;
    let queue = match &delivery.event.origin.place {
        hookbridge::event::Place::Amqp { queue, .. } => queue.to_string(),
        other => panic!("{other:?}"),
    };
    // More than the window, which nobody empties: the marker stays behind them.
    for _ in 0..300 {
        let parked = rig.broker.park(&delivery, Wait::AT_ONCE).await;
        parked.expect("parked");
    }
    rig.stop().await;
    let mut rig = Rig::run(RabbitMq::new(settings(
        &group,
        vec![source(SOURCE, &queue)],
    )))
    .await;
    let publication = Publication {
        topic: queue,
        body: "fresh".into(),
        ..Publication::default()
    };
    rig.broker.publish(publication).await.expect("published");
    assert_eq!(&rig.event().await.0.body[..], b"fresh");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_due_queue_is_declared_again_and_fed() {
    let (mut rig, delivery, group) = parked().await;
    let client = Client::open().await;
    client.delete(&format!("{group}.due.retry")).await;
    rig.ready().await;
    eventually("the due queue is there again", SOON, async || {
        client
            .publish("", &format!("{group}.due.retry"), b"x", with_id("foreign"))
            .await
            .then_some(())
    })
    .await;
    rig.broker
        .park(&delivery, retry_in(1))
        .await
        .expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, delivery);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_of_dead_letters_is_declared_again_by_the_next_letter() {
    let (rig, delivery, group) = parked().await;
    Client::open().await.delete(&format!("{group}.dead")).await;
    rig.broker
        .dead_letter(&delivery, Reason::Gone)
        .await
        .expect("dead-lettered");
    eventually("the letter is listed", SOON, async || {
        (listed(&*rig.broker).await.len() == 1).then_some(())
    })
    .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_message_on_the_due_queue_goes_to_the_dead_letters_as_it_is() {
    let (rig, _, group) = parked().await;
    let client = Client::open().await;
    let mut headers = FieldTable::default();
    headers.insert("colour".into(), AMQPValue::LongString("blue".into()));
    let properties = with_id("foreign").with_headers(headers);
    assert!(
        client
            .publish(
                "",
                &format!("{group}.due.retry"),
                b"not \xff ours",
                properties
            )
            .await
    );
    let letter = eventually("it is among the dead letters", SOON, async || {
        let got = client
            .channel
            .basic_get(
                format!("{group}.dead").into(),
                BasicGetOptions { no_ack: true },
            )
            .await
            .expect("read")?;
        (got.delivery.data == b"not \xff ours").then_some(got.delivery)
    })
    .await;
    let headers = letter.properties.headers().as_ref().expect("headers");
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(text("colour"), "blue");
    assert_eq!(text("hookbridge-reason"), "envelope_unreadable");
    rig.stop().await;
}

/// An original with everything that a broker acts upon is parked for the whole delay, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_original_told_the_broker_is_not_told_again() {
    let (mut rig, delivery, group) = parked().await;
    let bystander = unique("bystander");
    let client = Client::open().await;
    client.declare(&bystander, "classic").await;
    let mut event = Event::clone(&delivery.event);
    event.properties = vec![
        ("delivery_mode".into(), HeaderValue::Int(1)),
        ("expiration".into(), HeaderValue::text("200")),
        ("priority".into(), HeaderValue::Int(9)),
        ("user_id".into(), HeaderValue::text("somebody-else")),
    ];
    // In the order of an AMQP table.
    let death = vec![
        ("count".to_owned(), HeaderValue::Int(1)),
        (
            "queue".to_owned(),
            HeaderValue::text(format!("{group}.due.retry")),
        ),
        ("reason".to_owned(), HeaderValue::text("expired")),
    ];
    event.headers.push(
        "CC",
        HeaderValue::List(vec![HeaderValue::text(bystander.clone())]),
    );
    event
        .headers
        .push("x-death", HeaderValue::List(vec![HeaderValue::Map(death)]));
    let delivery = Delivery {
        event: Arc::new(event),
        ..delivery
    };
    let since = Instant::now();
    rig.broker
        .park(&delivery, retry_in(3))
        .await
        .expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    let waited = since.elapsed();
    receipt.settle(Settlement::Ack);
    assert!(waited >= Duration::from_secs(3), "early: {waited:?}");
    assert_eq!(back, delivery);
    let copy = client
        .channel
        .basic_get(bystander.as_str().into(), BasicGetOptions { no_ack: true })
        .await
        .expect("read");
    assert!(copy.is_none(), "CC was acted upon");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_on_a_tier_of_an_earlier_config_is_listed_and_brought_forward() {
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let with_tiers = |tiers: &[u64]| Settings {
        tiers: Tiers::new(tiers.iter().copied()).expect("tiers"),
        ..settings(&group, vec![source(SOURCE, &queue)])
    };
    let mut rig = Rig::run(RabbitMq::new(with_tiers(&[1, 60]))).await;
    let client = Client::open().await;
    assert!(client.publish("", &queue, b"x", with_id("evt_1")).await);
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    let delivery = delivery(&event);
    let parked = rig.broker.park(&delivery, retry_in(60)).await;
    parked.expect("parked");
    rig.stop().await;
    let mut rig = Rig::run(RabbitMq::new(with_tiers(&[2]))).await;
    eventually("it is listed", SOON, async || {
        let rows = rig.broker.parked().await.expect("listed");
        let row = rows.iter().find(|row| row.tier_seconds == Some(60))?;
        (row.count == 1).then_some(())
    })
    .await;
    let order = Order::new(Deed::Now, Whose::All, None);
    let done = rig.broker.order(&order, &Unwatched::default()).await;
    assert_eq!(done.expect("carried out").count, 1);
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, delivery);
    rig.stop().await;
}

/// The AMQP library panics over names that the protocol has no room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_amqp_has_no_room_for_is_refused() {
    let (rig, ..) = parked().await;
    let long = || "n".repeat(256);
    for (exchange, topic) in [(long(), "k".to_owned()), (String::new(), long())] {
        let publication = Publication {
            exchange,
            topic,
            ..Publication::default()
        };
        let refused = rig.broker.publish(publication).await;
        assert!(
            matches!(refused, Err(Refused::Rejected { .. })),
            "{refused:?}"
        );
    }
    rig.stop().await;
}

/// A type is what a body says it is, and a key what a Kafka record has: either may be larger than a frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_and_a_key_larger_than_a_frame_are_parked_and_dead_lettered() {
    let (mut rig, delivery, _) = parked().await;
    let mut event = Event::clone(&delivery.event);
    event.kind = "t".repeat(200_000).into();
    event.key = Some(vec![0xff; 200_000].into());
    let delivery = Delivery {
        event: Arc::new(event),
        ..delivery
    };
    let parked = rig.broker.park(&delivery, retry_in(1)).await;
    parked.expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    assert_eq!(back, delivery);
    let dead = rig.broker.dead_letter(&back, Reason::GaveUp).await;
    dead.expect("dead-lettered");
    receipt.settle(Settlement::Ack);
    let letters = eventually("the letter is listed", SOON, async || {
        Some(listed(&*rig.broker).await).filter(|letters| letters.len() == 1)
    })
    .await;
    assert_eq!(letters[0].delivery, delivery);
    assert!(letters[0].has_body);
    rig.stop().await;
}

/// The same from the wire: properties of a real message survive the way through a tier.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_of_a_real_message_come_back_from_a_tier() {
    let (broker, queue, _) = simple();
    let mut rig = Rig::run(broker).await;
    let mut headers = FieldTable::default();
    let list: FieldArray = vec![AMQPValue::LongString("nowhere".into())].into();
    headers.insert("CC".into(), AMQPValue::FieldArray(list));
    let properties = with_id("evt_1")
        .with_user_id("hookbridge".into())
        .with_expiration("60000".into())
        .with_priority(3)
        .with_correlation_id("c-1".into())
        .with_headers(headers);
    let client = Client::open().await;
    assert!(client.publish("", &queue, b"x", properties).await);
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    let parked = delivery(&event);
    rig.broker.park(&parked, retry_in(1)).await.expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    assert!(
        back.event
            .properties
            .iter()
            .any(|(name, _)| name == "expiration")
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_instances_that_start_at_once_all_see_their_own_marker() {
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let rigs: Vec<_> = (0..3)
        .map(|_| {
            let settings = settings(&group, vec![source(SOURCE, &queue)]);
            Rig::start(RabbitMq::new(settings), 16)
        })
        .collect();
    for rig in &rigs {
        rig.ready().await;
    }
    for rig in rigs {
        rig.stop().await;
    }
}

/// Acknowledgements go on, parks are refused and not queued up, and the alarm's end is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_alarm_refuses_parks_and_lets_acknowledgements_through() {
    let own = tokio::task::spawn_blocking(Own::rabbitmq)
        .await
        .expect("a broker");
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let mut settings = settings(&group, vec![source(SOURCE, &queue)]);
    settings.urls = vec![Secret::new(own.address())];
    let mut rig = Rig::run(RabbitMq::new(settings)).await;
    let client = Client::open_at(&own.address()).await;
    for id in ["evt_1", "evt_2"] {
        assert!(client.publish("", &queue, b"x", with_id(id)).await);
    }
    let (event, first) = rig.event().await;
    let (_, second) = rig.event().await;
    let parked = delivery(&event);
    own.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]);
    for _ in 0..3 {
        let refused = rig.broker.park(&parked, retry_in(1)).await;
        let refused = refused.expect_err("parked during an alarm").to_string();
        assert!(refused.contains("alarm"), "{refused}");
    }
    assert!(rig.down().await.contains("alarm"));
    first.settle(Settlement::Ack);
    second.settle(Settlement::Ack);
    eventually("the events are acknowledged", SOON, async || {
        let counts = own.ctl(&["list_queues", "name", "messages"]);
        counts
            .lines()
            .any(|line| line.split_whitespace().eq([queue.as_str(), "0"]))
            .then_some(())
    })
    .await;
    let connections = own
        .ctl(&["list_connections", "user"])
        .matches("hookbridge")
        .count();
    assert_eq!(connections, 3, "consuming, publishing, and the test's own");
    own.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    eventually("parks are taken again", SOON, async || {
        rig.broker.park(&parked, retry_in(1)).await.ok()
    })
    .await;
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, parked);
    rig.stop().await;
}
