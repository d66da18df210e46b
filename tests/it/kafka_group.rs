//! Several instances on a real Kafka: joining, leaving, fencing, secured listeners, lost offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use hookbridge::broker::kafka::{Sasl, SaslMechanism, Start};
use hookbridge::broker::{Broker as _, Health, Settlement};
use hookbridge::subscription::{Secret, TlsFiles};
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::producer::FutureRecord;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::kafka_support::*;

/// Counts what both instances take and settles it.
async fn settle_for(rigs: &mut [&mut Rig], seen: &mut BTreeMap<String, u32>, until: usize) {
    let all = async {
        while seen.len() < until {
            for rig in rigs.iter_mut() {
                let taken = timeout(Duration::from_millis(5), rig.event()).await;
                if let Ok((event, receipt)) = taken {
                    *seen.entry(body(&event)).or_default() += 1;
                    receipt.settle(Settlement::Ack);
                }
            }
        }
    };
    timeout(PATIENCE, all)
        .await
        .expect("some events are missing");
}

async fn produce_spread(topic: &str, numbers: std::ops::Range<u32>) {
    let client = producer();
    for n in numbers {
        let text = n.to_string();
        let record = FutureRecord::to(topic).key(&text).payload(&text);
        client.send(record, PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_instance_joins_and_leaves_and_nothing_is_lost() {
    let (topic, group) = (unique("join"), unique("g"));
    create_topic(&topic, 6).await;
    let all = || settings(&group, vec![source("s", &[&topic], Start::Earliest)]);
    let mut seen = BTreeMap::new();
    let mut one = start(all(), 50);
    produce_spread(&topic, 0..300).await;
    settle_for(&mut [&mut one], &mut seen, 200).await;
    let mut two = start(all(), 50);
    two.ready().await;
    // Settled while it is produced: what is in hand for two seconds when partitions move comes twice.
    let mut both = [&mut one, &mut two];
    tokio::join!(
        produce_spread(&topic, 300..900),
        settle_for(&mut both, &mut seen, 700)
    );
    // Both have partitions by now.
    tokio::join!(
        produce_spread(&topic, 900..1_000),
        settle_for(&mut both, &mut seen, 1_000)
    );
    two.stop().await;
    produce_spread(&topic, 1_000..1_200).await;
    settle_for(&mut [&mut one], &mut seen, 1_200).await;
    let twice = seen.values().filter(|count| **count > 1).count();
    assert_eq!(
        twice, 0,
        "everything was settled in time, so nothing comes twice"
    );
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_under_the_same_name_ends_the_first() {
    let (topic, group) = (unique("fence"), unique("g"));
    create_topic(&topic, 1).await;
    let named = || {
        let mut named = settings(&group, vec![source("s", &[&topic], Start::Earliest)]);
        named.instance = Some("same".into());
        named
    };
    let mut one = start(named(), 10);
    one.ready().await;
    produce(&topic, ["x".to_owned()]).await;
    let (_, receipt) = one.event().await;
    receipt.settle(Settlement::Ack);
    let two = start(named(), 10);
    let ended = timeout(PATIENCE, &mut one.task).await.expect("it goes on");
    let error = ended.unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("fence"), "{error:#}");
    two.ready().await;
    two.stop().await;
}

/// The name of the member that instance `same` is for its source (docs/kafka.md).
fn same_member(topic: &str) -> String {
    let wanted = Sha256::digest(format!("{topic}=1\n"));
    format!("same.lake.s.{}", hex::encode(&wanted[..4]))
}

/// A broker that was killed does the same to members that nobody has replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_while_fenced_out_does_not_come_again() {
    let (topic, group) = (unique("fenced"), unique("g"));
    create_topic(&topic, 1).await;
    let mut named = settings(&group, vec![source("s", &[&topic], Start::Earliest)]);
    named.instance = Some("same".into());
    let mut rig = start(named, 20);
    produce(&topic, (0..4).map(|n| n.to_string())).await;
    let mut in_hand = Vec::new();
    for _ in 0..4 {
        in_hand.push(rig.event().await);
    }
    let rival: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("group.id", &group)
        .set("group.instance.id", same_member(&topic))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    rival.subscribe(&[&topic]).unwrap();
    timeout(PATIENCE, rival.recv()).await.unwrap().unwrap();
    let fenced = async {
        while rig.kafka.health() == Health::Ready {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, fenced).await.unwrap();
    drop(rival);
    let (_, unsettled) = in_hand.remove(1);
    for (_, receipt) in in_hand {
        receipt.settle(Settlement::Ack);
    }
    produce(&topic, ["4".to_owned()]).await;
    let mut taken = Vec::new();
    while taken.last().is_none_or(|last| last != "4") {
        let (event, receipt) = rig.event().await;
        taken.push(body(&event));
        receipt.settle(Settlement::Ack);
    }
    assert_eq!(taken, ["1", "4"]);
    drop(unsettled);
    rig.stop().await;
}

#[tokio::test]
async fn a_static_member_takes_up_its_partitions_at_once_after_a_restart() {
    let (topic, group) = (unique("static"), unique("g"));
    create_topic(&topic, 1).await;
    let named = || {
        let mut named = settings(&group, vec![source("s", &[&topic], Start::Earliest)]);
        named.instance = Some("one".into());
        named
    };
    let mut rig = start(named(), 10);
    produce(&topic, ["x".to_owned()]).await;
    let (_, receipt) = rig.event().await;
    receipt.settle(Settlement::Ack);
    rig.stop().await;
    produce(&topic, ["y".to_owned()]).await;
    let since = std::time::Instant::now();
    let mut rig = start(named(), 10);
    let (event, receipt) = rig.event().await;
    assert_eq!(body(&event), "y");
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    receipt.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test]
async fn tls_and_sasl_are_spoken() {
    let (topic, group) = (unique("sasl"), unique("g"));
    create_topic(&topic, 1).await;
    for mechanism in [
        SaslMechanism::Plain,
        SaslMechanism::ScramSha256,
        SaslMechanism::ScramSha512,
    ] {
        let mut secured = settings(&group, vec![source("s", &[&topic], Start::Earliest)]);
        secured.bootstrap = vec![env("HOOKBRIDGE_TEST_KAFKA_SASL")];
        secured.tls = Some(TlsFiles {
            ca: Some(env("HOOKBRIDGE_TEST_CA").into()),
            cert: Some(env("HOOKBRIDGE_TEST_CLIENT_CERT").into()),
            key: Some(env("HOOKBRIDGE_TEST_CLIENT_KEY").into()),
        });
        secured.sasl = Some(Sasl {
            mechanism,
            username: env("HOOKBRIDGE_TEST_KAFKA_USER"),
            password: Secret::new(env("HOOKBRIDGE_TEST_KAFKA_PASSWORD")),
        });
        let mut rig = start(secured, 10);
        produce(&topic, ["x".to_owned()]).await;
        let (_, receipt) = rig.event().await;
        receipt.settle(Settlement::Ack);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_broker_that_is_down_at_the_start_is_tried_for_ever() {
    let mut down = settings(&unique("g"), vec![]);
    down.bootstrap = vec!["127.0.0.1:1".into()];
    let rig = start(down, 10);
    let shown = async {
        while !matches!(rig.kafka.health(), Health::Down { .. }) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, shown).await.unwrap();
    assert!(!rig.task.is_finished());
    rig.stop().await;
}
