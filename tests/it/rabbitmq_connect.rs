//! Connecting to RabbitMQ: TLS, several nodes, and what is said when it cannot be.

use hookbridge::broker::Settlement;
use hookbridge::broker::rabbitmq::RabbitMq;
use hookbridge::subscription::{Secret, TlsFiles};

use crate::contract::rig::{Rig, SOURCE};
use crate::rabbitmq_support::*;
use crate::support::{brokers, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_and_a_client_certificate_of_our_own() {
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let mut settings = settings(&group, vec![source(SOURCE, &queue)]);
    settings.urls = vec![Secret::new(brokers::env("HOOKBRIDGE_TEST_AMQPS"))];
    settings.tls = TlsFiles {
        ca: Some(brokers::env("HOOKBRIDGE_TEST_CA").into()),
        cert: Some(brokers::env("HOOKBRIDGE_TEST_CLIENT_CERT").into()),
        key: Some(brokers::env("HOOKBRIDGE_TEST_CLIENT_KEY").into()),
    };
    let mut rig = Rig::run(RabbitMq::new(settings)).await;
    let client = Client::open().await;
    assert!(client.publish("", &queue, b"x", with_id("evt_1")).await);
    rig.event().await.1.settle(Settlement::Ack);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_an_unknown_authority_is_refused() {
    let mut settings = settings(&unique("rabbit"), Vec::new());
    settings.urls = vec![Secret::new(brokers::env("HOOKBRIDGE_TEST_AMQPS"))];
    let rig = Rig::start(RabbitMq::new(settings), 16);
    let why = rig.down().await;
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_node_serves_where_the_first_is_down() {
    let (group, queue) = (unique("rabbit"), unique("orders"));
    let mut settings = settings(&group, vec![source(SOURCE, &queue)]);
    // Nothing listens on port 1.
    let nowhere = "amqp://hookbridge:hookbridge@127.0.0.1:1/%2f";
    settings.urls = vec![Secret::new(nowhere), Secret::new(amqp())];
    let rig = Rig::run(RabbitMq::new(settings)).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_said_and_not_shown() {
    let mut settings = settings(&unique("rabbit"), Vec::new());
    let wrong = amqp().replacen(":hookbridge@", ":unheard-of@", 1);
    settings.urls = vec![Secret::new(wrong)];
    let rig = Rig::start(RabbitMq::new(settings), 16);
    let why = rig.down().await;
    assert!(why.contains("refuses user `hookbridge`"), "{why}");
    assert!(!why.contains("unheard-of"), "{why}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_virtual_host_is_said() {
    let mut settings = settings(&unique("rabbit"), Vec::new());
    settings.urls = vec![Secret::new(amqp().replace("%2f", "nowhere"))];
    let rig = Rig::start(RabbitMq::new(settings), 16);
    let why = rig.down().await;
    assert!(why.contains("virtual host `nowhere`"), "{why}");
    rig.stop().await;
}
