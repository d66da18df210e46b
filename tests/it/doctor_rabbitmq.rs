//! `hookbridge doctor` against a real RabbitMQ with settings that lose events.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::rabbitmq_support::{Client, amqp, ctl, virtual_host};
use crate::support::command::Command;
use crate::support::unique;

/// A config with one RabbitMQ and one source.
fn config(group: &str, url: &str, source: &str) -> String {
    format!(
        "group: {group}
data_dir: '{{data}}'
brokers: {{ shop: {{ rabbitmq: {{ url: '{url}' }}, tiers: [1s] }} }}
sources: {{ orders: {{ broker: shop, {source}, id: content }} }}
"
    )
}

fn doctor(config: &str) -> Command {
    Command::new(config, &["doctor", "--only", "brokers"])
}

async fn declare(client: &Client, queue: &str, arguments: &[(&str, AMQPValue)]) {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let options = QueueDeclareOptions::durable();
    let declared = client.channel.queue_declare(queue.into(), options, table);
    declared.await.expect("declared");
}

#[tokio::test]
async fn a_broker_that_is_as_it_should_be_passes() {
    let group = unique("doctor");
    let said = doctor(&config(&group, &amqp(), "queue: amq-orders")).run();
    insta::assert_snapshot!(said.text(&[(&group, "GROUP")]), @"");
    assert_eq!(said.code, 0);
}

#[tokio::test]
async fn dangerous_settings_of_queues_are_found() {
    let (vhost, url) = virtual_host();
    let client = Client::open_at(&url).await;
    let quorum = || AMQPValue::LongString("quorum".into());
    let expires = ("x-expires", AMQPValue::LongLongInt(3_600_000));
    // Ours: one that is deleted when it is not used, and a tier that drops what it cannot hold.
    declare(
        &client,
        "g.dead",
        &[("x-queue-type", quorum()), expires.clone()],
    )
    .await;
    declare(&client, "g.retry.1", &[("x-queue-type", quorum())]).await;
    // The source's: everything that loses events.
    let ttl = ("x-message-ttl", AMQPValue::LongLongInt(60_000));
    let length = ("x-max-length", AMQPValue::LongLongInt(100));
    declare(&client, "orders", &[expires, ttl, length]).await;
    client
        .publish("", "orders", b"{}", Default::default())
        .await;
    let said = doctor(&config("g", &url, "queue: orders, declare: false")).run();
    insta::assert_snapshot!(said.text(&[(&vhost, "VHOST")]), @"");
    assert_eq!(said.code, 1);
}

#[tokio::test]
async fn a_policy_that_takes_messages_at_once_is_noticed() {
    let (vhost, url) = virtual_host();
    ctl(&[
        "set_policy",
        "-p",
        &vhost,
        "everything",
        ".*",
        r#"{"message-ttl":500}"#,
    ]);
    let said = doctor(&config("g", &url, "queue: orders")).run();
    let problem = said.line("keeps 0 of 3 messages");
    assert!(problem.starts_with("problem"), "{problem}");
    assert_eq!(said.code, 1);
}

#[tokio::test]
async fn what_does_not_let_us_in_is_named() {
    let wrong_password = amqp().replacen(":hookbridge@", ":not-this-one@", 1);
    let said = doctor(&config("g", &wrong_password, "queue: orders")).run();
    insta::assert_snapshot!(said.text(&[]), @"");
    assert_eq!(said.code, 1);
    assert!(!said.stdout.contains("not-this-one"));

    let no_vhost = amqp().replacen("/%2f", "/nowhere", 1);
    let said = doctor(&config("g", &no_vhost, "queue: orders")).run();
    insta::assert_snapshot!(said.text(&[]), @"");
    assert_eq!(said.code, 1);
}

#[tokio::test]
async fn missing_permissions_are_named() {
    let (vhost, _) = virtual_host();
    let user = unique("reader");
    ctl(&["add_user", &user, "secret"]);
    ctl(&["set_permissions", "-p", &vhost, &user, "^$", "^$", ".*"]);
    let address = amqp();
    let address = address.rsplit_once('@').unwrap().1;
    let address = address.trim_end_matches("/%2f");
    let url = format!("amqp://{user}:secret@{address}/{vhost}");
    let said = doctor(&config("g", &url, "queue: orders")).run();
    insta::assert_snapshot!(said.text(&[(&vhost, "VHOST")]), @"");
    ctl(&["delete_user", &user]);
}

#[tokio::test]
async fn a_broker_that_is_not_there_holds_nobody_up() {
    let said = Command::new(
        &format!(
            "group: g
data_dir: '{{data}}'
brokers:
  gone: {{ rabbitmq: {{ url: 'amqp://user:secret@127.0.0.1:1/' }} }}
  nowhere: {{ kafka: {{ bootstrap: ['no-such-host.invalid:9092'] }} }}
  there: {{ rabbitmq: {{ url: '{}' }}, retries_on: gone }}
",
            amqp()
        ),
        &["doctor", "--only", "brokers", "--json"],
    )
    .run();
    let levels: Vec<_> = said
        .stdout
        .lines()
        .map(|line| {
            let finding: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let text = |name: &str| finding[name].as_str().expect("text").to_owned();
            format!("{} {}", text("subject"), text("level"))
        })
        .collect();
    insta::assert_snapshot!(levels.join("\n"), @"");
    assert_eq!(said.code, 69);
    assert!(!said.stdout.contains("secret"));
}
