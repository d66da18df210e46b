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
    insta::assert_snapshot!(said.text(&[(&group, "GROUP")]), @r#"
    ok          broker shop: 127.0.0.1:PORT: TCP works
    ok          broker shop: logged in to virtual host `/`; RabbitMQ 3.10, frames of 131072 bytes
    ok          broker shop: 6 queues of ours are not there yet: they are made at the start
    ok          broker shop: we may declare, publish and consume; policies cannot be seen over AMQP
    ok          broker shop: source orders: queue amq-orders is not there yet: it is made at the start
    5 ok, 0 warnings, 0 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 0);
}

#[tokio::test]
async fn a_clock_that_is_apart_is_noticed() {
    let config = config(&unique("doctor"), &amqp(), "queue: amq-orders");
    for (set, how) in [("-90s", "ahead of ours"), ("+90s", "behind ours")] {
        let said = doctor(&config).at(set).run();
        let line = said.line("its clock is");
        assert!(line.starts_with("warning") && line.ends_with(how), "{line}");
        assert_eq!(said.code, 0);
    }
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
    insta::assert_snapshot!(said.text(&[(&vhost, "VHOST")]), @r#"
    ok          broker shop: 127.0.0.1:PORT: TCP works
    ok          broker shop: logged in to virtual host `VHOST`; RabbitMQ 3.10, frames of 131072 bytes
    problem     broker shop: queue g.dead has x-expires = 3600000
                -> it is deleted with everything parked on it when nobody uses it for so long: delete it when it is empty, and it is made anew
    problem     broker shop: queue g.retry.1 has no x-dead-letter-exchange, no x-dead-letter-routing-key, no x-dead-letter-strategy, no x-message-ttl, no x-overflow
                -> what is parked on it never comes back: delete it when it is empty, and it is made anew
    ok          broker shop: 4 queues of ours are not there yet: they are made at the start
    ok          broker shop: we may declare, publish and consume; policies cannot be seen over AMQP
    ok          broker shop: source orders: queue orders: 1 messages ready, 0 consumers
    problem     broker shop: source orders: queue orders expires (x-expires = 3600000 ms)
                -> it is deleted with its events when the bridge is away for so long: declare it without
    warning     broker shop: source orders: events in queue orders expire after 60000 ms
                -> they are lost then: it has no dead-letter route; pausing and outages last longer
    warning     broker shop: source orders: queue orders drops its oldest events beyond 100
                -> they are lost then: it has no dead-letter route; `x-overflow: reject-publish` would keep them
    warning     broker shop: source orders: queue orders is a classic queue, on one node
                -> a quorum queue outlives the loss of a node
    5 ok, 3 warnings, 3 problems, 0 unreachable
    "#);
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
    insta::assert_snapshot!(said.text(&[]), @r#"
    ok          broker shop: 127.0.0.1:PORT: TCP works
    problem     broker shop: 127.0.0.1:PORT refuses user `hookbridge`: wrong password, or no such user
                -> check user and password in the URL (`%2f` for a `/` in them)
    1 ok, 0 warnings, 1 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 1);
    assert!(!said.stdout.contains("not-this-one"));

    let no_vhost = amqp().replacen("/%2f", "/nowhere", 1);
    let said = doctor(&config("g", &no_vhost, "queue: orders")).run();
    insta::assert_snapshot!(said.text(&[]), @r#"
    ok          broker shop: 127.0.0.1:PORT: TCP works
    problem     broker shop: 127.0.0.1:PORT does not let user `hookbridge` into virtual host `nowhere`
                -> make the virtual host (`rabbitmqctl add_vhost`), or let the user in (`rabbitmqctl set_permissions`); `/` is written `%2f`
    1 ok, 0 warnings, 1 problems, 0 unreachable
    "#);
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
    insta::assert_snapshot!(said.text(&[(&vhost, "VHOST")]), @r#"
    ok          broker shop: 127.0.0.1:PORT: TCP works
    ok          broker shop: logged in to virtual host `VHOST`; RabbitMQ 3.10, frames of 131072 bytes
    ok          broker shop: 6 queues of ours are not there yet: they are made at the start
    problem     broker shop: we may not declare
                -> the user needs configure, write and read permission on our queues, and write on the default exchange
    ok          broker shop: source orders: queue orders is not there yet: it is made at the start
    4 ok, 0 warnings, 1 problems, 0 unreachable
    "#);
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
    insta::assert_snapshot!(levels.join("\n"), @r#"
    broker gone unreachable
    broker nowhere unreachable
    broker there ok
    broker there ok
    "#);
    assert_eq!(said.code, 69);
    assert!(!said.stdout.contains("secret"));
}
