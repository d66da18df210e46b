//! `hookbridge doctor` against a real Kafka with settings that lose events.

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};

use crate::kafka_support::{admin, bootstrap, create_topic, produce, written};
use crate::support::brokers::env;
use crate::support::command::Command;
use crate::support::unique;

fn config(group: &str, topic: &str) -> String {
    format!(
        "group: {group}
data_dir: '{{data}}'
brokers: {{ lake: {{ kafka: {{ bootstrap: ['{}'] }}, tiers: [1s, 5s] }} }}
sources: {{ orders: {{ broker: lake, topics: [{topic}], start: now }} }}
",
        bootstrap()
    )
}

fn doctor(config: &str) -> Command {
    Command::new(config, &["doctor", "--only", "brokers"])
}

/// How many topics there are is the business of all tests.
fn counted(text: &str) -> String {
    let topics = regex::Regex::new(r"\d+ topics are seen").unwrap();
    topics.replace(text, "N topics are seen").into_owned()
}

async fn create(name: &str, settings: &[(&str, &str)]) {
    let new = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    let new = settings
        .iter()
        .fold(new, |new, (key, value)| new.set(key, value));
    let made = admin().create_topics(&[new], &AdminOptions::new()).await;
    made.unwrap().remove(0).unwrap();
}

#[tokio::test]
async fn dangerous_settings_of_topics_are_found() {
    let (group, topic) = (unique("doctor"), unique("orders"));
    create(
        &topic,
        &[
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "3600000"),
        ],
    )
    .await;
    let tier = |seconds: u32| format!("{group}.retry.{seconds}");
    create(
        &tier(1),
        &[
            ("retention.ms", "3600000"),
            ("message.timestamp.type", "LogAppendTime"),
        ],
    )
    .await;
    create(&tier(5), &[("retention.ms", "-1")]).await;
    create(&format!("{group}.dead"), &[("cleanup.policy", "delete")]).await;
    let said = doctor(&config(&group, &topic)).run();
    let text = said.text(&[(&group, "GROUP"), (&topic, "TOPIC")]);
    insta::assert_snapshot!(counted(&text), @r#"
    ok          broker lake: 127.0.0.1:PORT: TCP works
    ok          broker lake: logged in; 1 brokers, N topics are seen
    problem     broker lake: topic GROUP.dead: cleanup.policy is delete, must be compact or letters get lost
                -> what is parked there is lost: set it right with kafka-configs, the bridge does not start before
    problem     broker lake: topic GROUP.retry.1: retention.ms is 3600000, must be -1 or at least 1209601000
                -> what is parked there is lost: set it right with kafka-configs, the bridge does not start before
    problem     broker lake: topic GROUP.retry.5: message.timestamp.type must be LogAppendTime
                -> what is parked there is lost: set it right with kafka-configs, the bridge does not start before
    ok          broker lake: 5 topics of ours are not there yet: they are made at the start
    ok          broker lake: consumer group GROUP: 0 members now
    ok          broker lake: consumer group GROUP.retry: 0 members now
    warning     broker lake: source orders: topic TOPIC is compacted
                -> of events with the same key only the last is sure to be delivered
    warning     broker lake: source orders: topic TOPIC keeps events for 3600 s only
                -> what is not taken by then is lost: an outage, or a paused intake, lasts longer
    ok          broker lake: source orders: topic TOPIC, 1 partitions: not read yet, begins as `start:` says
    6 ok, 2 warnings, 3 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 1);
}

#[tokio::test]
async fn copies_that_are_missing_are_found_and_the_clock_is_asked_for() {
    let (group, topic) = (unique("doctor"), unique("orders"));
    create_topic(&topic, 1).await;
    let dead = format!("{group}.dead");
    let stamped = ("message.timestamp.type", "LogAppendTime");
    create(&dead, &[("cleanup.policy", "compact"), stamped]).await;
    let few = format!("{group}.retry.1");
    create(
        &few,
        &[
            ("retention.ms", "-1"),
            stamped,
            ("min.insync.replicas", "2"),
        ],
    )
    .await;
    let config = config(&group, &topic);
    let said = doctor(&config).run();
    insta::assert_snapshot!(said.line("min.insync").replace(&group, "GROUP"), @"problem     broker lake: topic GROUP.retry.1: min.insync.replicas is 2, and there are 1 copies");
    assert!(!said.stdout.contains("its clock"), "{}", said.stdout);

    // It was told by a marker; another clock of ours stops the Kafka library's timed waits.
    assert_eq!(written(&dead).await, 1);
}

#[tokio::test]
async fn a_missing_topic_is_a_problem_and_a_new_one_is_not() {
    let (group, topic) = (unique("doctor"), unique("orders"));
    let said = doctor(&config(&group, &topic)).run();
    assert!(said.line("is not there").starts_with("problem"));
    create_topic(&topic, 2).await;
    produce(&topic, ["{}".to_owned()]).await;
    let said = doctor(&config(&group, &topic)).run();
    let text = said.text(&[(&group, "GROUP"), (&topic, "TOPIC")]);
    insta::assert_snapshot!(counted(&text), @r#"
    ok          broker lake: 127.0.0.1:PORT: TCP works
    ok          broker lake: logged in; 1 brokers, N topics are seen
    ok          broker lake: 8 topics of ours are not there yet: they are made at the start
    ok          broker lake: consumer group GROUP: 0 members now
    ok          broker lake: consumer group GROUP.retry: 0 members now
    ok          broker lake: source orders: topic TOPIC, 2 partitions: not read yet, begins as `start:` says
    6 ok, 0 warnings, 0 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 0);
}

#[tokio::test]
async fn a_wrong_password_is_named_as_such() {
    let config = format!(
        "group: g
data_dir: '{{data}}'
brokers: {{ lake: {{ kafka: {{ bootstrap: ['{}'], tls: {{ ca: '{}' }}, sasl: {{ mechanism: SCRAM-SHA-512, username: bridge, password: not-this-one }} }} }} }}
",
        env("HOOKBRIDGE_TEST_KAFKA_SASL"),
        env("HOOKBRIDGE_TEST_CA"),
    );
    let said = doctor(&config).run();
    let days = regex::Regex::new(r"\d+ days left").unwrap();
    insta::assert_snapshot!(days.replace(&said.text(&[]), "N days left"), @r#"
    ok          broker lake: 127.0.0.1:PORT: TLS works; certificate for localhost and 1 more, chain of 2, N days left
    problem     broker lake: the cluster does not let us in: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512
                -> check mechanism, user and password of `sasl`
    1 ok, 0 warnings, 1 problems, 0 unreachable
    "#);
    assert_eq!(said.code, 1);
    assert!(!said.stdout.contains("not-this-one"));
}
