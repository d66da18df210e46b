//! Several who look at dead letters at once, and one that is killed: RabbitMQ and Kafka.
//!
//! The victim is this test binary itself, started with one ignored test.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookbridge::broker::kafka::{Kafka, Start};
use hookbridge::broker::rabbitmq::RabbitMq;
use hookbridge::broker::{Broker, Letter, NotOpened, Purpose, Receipt, Settlement};
use hookbridge::delivery::{Delivery, DeliveryId, Reason};
use hookbridge::event::Event;
use hookbridge::subscription::Uid;
use jiff::Timestamp;
use lapin::BasicProperties;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::time::sleep;

use crate::contract::rig::{Rig, SOON};
use crate::support::eventually;
use crate::support::letters::{listed, remove, rest};
use crate::{kafka_support, rabbitmq_support};

const BROKER: &str = "HOOKBRIDGE_TEST_READER_BROKER";
const GROUP: &str = "HOOKBRIDGE_TEST_READER_GROUP";

fn rabbitmq(group: &str) -> Arc<RabbitMq> {
    RabbitMq::new(rabbitmq_support::settings(group, Vec::new()))
}

fn kafka(group: &str) -> Arc<Kafka> {
    Kafka::new(kafka_support::settings(group, Vec::new())).expect("settings")
}

/// As many dead letters of `event`.
async fn bury(broker: &dyn Broker, event: &Arc<Event>, count: usize) {
    for number in 0..count {
        let crm = Uid::of_config("crm");
        let delivery = Delivery {
            id: DeliveryId::from_envelope(&format!("dlv_{number:05}")),
            ..Delivery::first(event.clone(), "crm".into(), crm, Timestamp::now())
        };
        let buried = broker.dead_letter(&delivery, Reason::Gone).await;
        buried.expect("kept");
    }
}

/// A running RabbitMQ broker with so many letters, and its group.
async fn with_letters(count: usize) -> (Rig, String) {
    let (broker, queue, group) = rabbitmq_support::simple();
    let mut rig = Rig::run(broker).await;
    let client = rabbitmq_support::Client::open().await;
    let properties = BasicProperties::default();
    assert!(client.publish("", &queue, b"x", properties).await);
    let (event, receipt): (Arc<Event>, Receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    bury(&*rig.broker, &event, count).await;
    let broker = &*rig.broker;
    eventually("all are listed", SOON, async || {
        (listed(broker).await.len() == count).then_some(())
    })
    .await;
    (rig, group)
}

fn ids(letters: &[Letter]) -> Vec<&str> {
    letters.iter().map(|l| l.delivery.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_changes_waits_for_what_a_listing_holds() {
    let (rig, group) = with_letters(100).await;
    // In the middle of a chunk; at its end, where nothing is being consumed; and all of it.
    for looked_at in [5, 32, 100] {
        let mut listing = rig
            .broker
            .open_letters(Purpose::List)
            .await
            .expect("opened");
        for _ in 0..looked_at {
            listing.next().await.expect("read").expect("a letter");
        }
        let let_go = tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            drop(listing);
        });
        let other = rabbitmq(&group);
        let mut pass = other.open_letters(Purpose::Change).await.expect("opened");
        let letters = rest(&mut *pass).await;
        assert_eq!(letters.len(), 100, "after {looked_at} were looked at");
        assert_eq!(pass.total(), Some(100), "after {looked_at} were looked at");
        assert!(ids(&letters).is_sorted(), "{:?}", ids(&letters));
        let_go.await.expect("dropped");
    }
    rig.stop().await;
}

/// They come back a few at a time, for seconds after the listing was dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_changes_waits_for_thousands_that_a_listing_gives_back() {
    const COUNT: usize = 3_000;
    let (rig, group) = with_letters(1).await;
    let event = listed(&*rig.broker).await[0].delivery.event.clone();
    let burying = (1..COUNT).map(|number| {
        let (broker, event) = (rig.broker.clone(), event.clone());
        async move {
            let crm = Uid::of_config("crm");
            let delivery = Delivery {
                id: DeliveryId::from_envelope(&format!("dlv_{number:05}")),
                ..Delivery::first(event, "crm".into(), crm, Timestamp::now())
            };
            broker.dead_letter(&delivery, Reason::Gone).await
        }
    });
    let buried = stream::iter(burying).buffer_unordered(32);
    buried.try_collect::<()>().await.expect("all are kept");
    let same: Arc<dyn Broker> = rig.broker.clone();
    for changer in [same, rabbitmq(&group)] {
        let mut listing = rig
            .broker
            .open_letters(Purpose::List)
            .await
            .expect("opened");
        for _ in 0..COUNT / 2 {
            listing.next().await.expect("read").expect("a letter");
        }
        drop(listing);
        let mut pass = changer.open_letters(Purpose::Change).await.expect("opened");
        assert_eq!(pass.total(), Some(COUNT as u64));
        let seen: BTreeSet<_> = rest(&mut *pass)
            .await
            .into_iter()
            .map(|letter| letter.delivery.id.as_str().to_owned())
            .collect();
        assert_eq!(seen.len(), COUNT);
    }
    rig.stop().await;
}

/// Even between two chunks, when nothing is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_changes_is_told_of_a_reader_that_does_not_let_go() {
    let (rig, group) = with_letters(100).await;
    let mut listing = rig
        .broker
        .open_letters(Purpose::List)
        .await
        .expect("opened");
    for _ in 0..32 {
        listing.next().await.expect("read").expect("a letter");
    }
    let other = rabbitmq(&group);
    let busy = other.open_letters(Purpose::Change).await.err();
    assert!(matches!(busy, Some(NotOpened::Busy(_))), "{busy:?}");
    listing.close().await;
    let mut pass = other.open_letters(Purpose::Change).await.expect("opened");
    assert_eq!(rest(&mut *pass).await.len(), 100);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_begins_during_a_pass_finds_what_comes_back() {
    let (rig, group) = with_letters(100).await;
    let other = rabbitmq(&group);
    let mut pass = other.open_letters(Purpose::Change).await.expect("opened");
    for _ in 0..40 {
        pass.next().await.expect("read").expect("a letter");
    }
    pass.remove().await.expect("removed");
    let broker = rig.broker.clone();
    let listing = tokio::spawn(async move { listed(&*broker).await.len() });
    sleep(Duration::from_millis(500)).await;
    drop(pass);
    assert_eq!(listing.await.expect("listed"), 99);
    rig.stop().await;
}

/// What was not put there by us is shown, and can be taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_message_among_the_letters_is_listed_and_not_revived() {
    let (rig, group) = with_letters(1).await;
    let client = rabbitmq_support::Client::open().await;
    let queue = format!("{group}.dead");
    let properties = BasicProperties::default().with_message_id("theirs".into());
    assert!(client.publish("", &queue, b"\xff what", properties).await);
    let letters = listed(&*rig.broker).await;
    assert_eq!(letters.len(), 2);
    let foreign = &letters[1];
    assert_eq!(foreign.reason, Reason::EnvelopeUnreadable);
    assert_eq!(foreign.delivery.id.as_str(), "theirs");
    assert_eq!(&foreign.delivery.event.body[..], b"\xff what");
    let refused = rig.broker.revive(foreign).await.expect_err("refused");
    insta::assert_snapshot!(refused, @"broker `rabbit` refused the message: it is not a delivery: nothing says which subscription it was for");
    let removed = remove(&*rig.broker, |letter| {
        letter.reason == Reason::EnvelopeUnreadable
    });
    assert_eq!(removed.await, 1);
    rig.stop().await;
}

/// Over partitions the letters are merged by when they died, and each tombstone finds its letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_many_partitions_come_in_the_order_of_their_death() {
    let (group, topic) = (
        kafka_support::unique("letters"),
        kafka_support::unique("orders"),
    );
    kafka_support::create_topic(&topic, 6).await;
    let source = kafka_support::source("orders", &[&topic], Start::Earliest);
    let settings = kafka_support::settings(&group, vec![source]);
    let mut rig = kafka_support::start(settings, 100);
    rig.ready().await;
    kafka_support::produce(&topic, ["x".to_owned()]).await;
    let (event, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    bury(&*rig.kafka, &event, 500).await;
    let letters = listed(&*rig.kafka).await;
    assert_eq!(letters.len(), 500);
    assert!(letters.is_sorted_by_key(|letter| letter.dead_at));
    let other = kafka(&group);
    let removed = remove(&*other, |letter| letter.delivery.id.as_str() < "dlv_00450");
    assert_eq!(removed.await, 450);
    let left = listed(&*rig.kafka).await;
    assert_eq!(left.len(), 50);
    assert_eq!(left[0].delivery.id.as_str(), "dlv_00450");
    rig.stop().await;
}

/// Whoever joins the lock's group without looking first is not given what somebody has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_never_takes_the_lock_from_its_holder() {
    let group = kafka_support::unique("lock");
    let holder = kafka(&group);
    kafka_support::create_topic(&format!("{group}.dead"), 1).await;
    let mut pass = holder.open_letters(Purpose::Change).await.expect("opened");
    let lock = format!("{group}.replay");
    let newcomers = tokio::task::spawn_blocking(move || {
        let mut newcomers = Vec::new();
        for _ in 0..3 {
            let newcomer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", kafka_support::bootstrap())
                .set("group.id", &lock)
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", "6000")
                .create()
                .expect("a consumer");
            newcomer.subscribe(&[&lock]).expect("subscribed");
            newcomers.push(newcomer);
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                for newcomer in &newcomers {
                    let _ = newcomer.poll(Duration::from_millis(20));
                    assert_eq!(newcomer.assignment().expect("asked").count(), 0);
                }
            }
        }
    });
    newcomers.await.expect("nobody got it");
    assert!(pass.next().await.expect("still its holder").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of the tests below, which start and kill it"]
async fn victim() {
    let (Ok(broker), Ok(group)) = (std::env::var(BROKER), std::env::var(GROUP)) else {
        return;
    };
    let broker: Arc<dyn Broker> = match broker.as_str() {
        "rabbitmq" => rabbitmq(&group),
        _ => kafka(&group),
    };
    let _pass = broker.open_letters(Purpose::Change).await.expect("opened");
    println!("\n@held");
    std::future::pending::<()>().await;
}

fn start_victim(broker: &str, group: &str) -> Child {
    let mut victim = Command::new(std::env::current_exe().expect("this binary"))
        .args([
            "letters_readers::victim",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(BROKER, broker)
        .env(GROUP, group)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let said = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let held = said.map_while(Result::ok).any(|line| line == "@held");
    assert!(held, "the victim ended before it had the lock");
    victim
}

async fn the_lock_of_one_that_was_killed_is_free_soon(
    kind: &'static str,
    broker: Arc<dyn Broker>,
    group: String,
) {
    let starting = tokio::task::spawn_blocking(move || start_victim(kind, &group));
    let mut victim = starting.await.expect("holds the lock");
    let busy = broker.open_letters(Purpose::Change).await.err();
    assert!(matches!(busy, Some(NotOpened::Busy(_))), "{busy:?}");
    if let Some(NotOpened::Busy(holder)) = busy
        && kind == "kafka"
    {
        let says = format!("hookbridge process {} on ", victim.id());
        assert!(holder.contains(&says), "{holder}");
    }
    victim.kill().expect("killed");
    victim.wait().expect("gone");
    let began = Instant::now();
    let pass = eventually("the lock is free", Duration::from_secs(20), async || {
        broker.open_letters(Purpose::Change).await.ok()
    });
    drop(pass.await);
    println!("free after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(13));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_frees_the_lock_of_one_that_was_killed() {
    let (rig, group) = with_letters(3).await;
    the_lock_of_one_that_was_killed_is_free_soon("rabbitmq", rig.broker.clone(), group).await;
    assert_eq!(listed(&*rig.broker).await.len(), 3);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_frees_the_lock_of_one_that_was_killed() {
    let group = kafka_support::unique("lock");
    kafka_support::create_topic(&format!("{group}.dead"), 1).await;
    the_lock_of_one_that_was_killed_is_free_soon("kafka", kafka(&group), group).await;
}
