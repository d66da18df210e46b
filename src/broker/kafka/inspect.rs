//! Inspecting Kafka: nodes, login, our topics, and the topics, offsets and lag of sources.
//!
//! Nothing is made; whether we may make topics is asked by a request that is validated only. Whether we
//! may produce, and what the cluster's clock shows, cannot be asked without producing: where the topic of
//! dead letters is there, it gets a marker as it does at each start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::admin::ConfigResource;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientContext, TopicPartitionList};

use super::client::{ASK, blocking};
use super::commits::committed;
use super::topics::{self, Size, number};
use super::{Kafka, names, wanted};
use crate::broker::inspect::{Node, own_certificate, reach};
use crate::finding::Findings;

mod ours;

const DEFAULT_PORT: u16 = 9092;
/// Partitions whose lag is looked at.
const MOST_PARTITIONS: usize = 500;
/// Reasons of the client library that are kept.
const MOST_REASONS: usize = 20;
/// How long the library is asked for its reasons.
const LISTEN: Duration = Duration::from_millis(300);

/// A partition as the cluster has it.
struct Partition {
    leader: bool,
    replicas: usize,
    in_sync: usize,
}

/// What the cluster says of itself.
struct Cluster {
    nodes: usize,
    topics: BTreeMap<String, Vec<Partition>>,
    refused: BTreeMap<String, Code>,
}

/// Looks at all of the broker.
pub async fn broker(kafka: &Kafka, found: &Findings) {
    if !nodes(kafka, found).await {
        return;
    }
    let cluster = match cluster(kafka).await {
        Ok(cluster) => cluster,
        Err(why) => {
            let advice = if why.contains("uthentication") {
                "check mechanism, user and password of `sasl`"
            } else {
                "the port answers, but not as Kafka does with these settings of `tls` and `sasl`"
            };
            return found
                .problem(format!("the cluster does not let us in: {why}"), advice)
                .await;
        }
    };
    found
        .ok(format!(
            "logged in; {} brokers, {} topics are seen",
            cluster.nodes,
            cluster.topics.len()
        ))
        .await;
    let catalogue = cluster
        .topics
        .iter()
        .map(|(topic, partitions)| (topic.clone(), partitions.len()))
        .collect();
    let sources = kafka.source_topics(&catalogue);
    let size = Size::of(&kafka.admin, &catalogue, &sources)
        .await
        .unwrap_or(Size::SMALLEST);
    ours::topics(kafka, &cluster, size, found).await;
    groups(kafka, found).await;
    for plan in kafka.sources.load().iter() {
        let topics = wanted::topics(&kafka.settings.group, &plan.wanted, catalogue.keys());
        let source = Source {
            name: &plan.settings.name,
            topics: topics.into_iter().collect(),
        };
        source.inspect(kafka, &cluster, found).await;
    }
}

/// Goes to every bootstrap address; `true` when one of them can be talked to.
async fn nodes(kafka: &Kafka, found: &Findings) -> bool {
    let settings = &kafka.settings;
    let elsewhere = settings.properties.contains_key("security.protocol");
    let mut reached = false;
    for address in &settings.bootstrap {
        let (host, port) = host_and_port(address);
        let node = Node {
            host,
            port,
            tls: settings.tls.as_ref(),
            plain: settings.tls.is_none() && !elsewhere,
        };
        reached |= reach(found, &node).await;
    }
    own_certificate(found, settings.tls.as_ref()).await;
    reached
}

fn host_and_port(address: &str) -> (&str, u16) {
    let plain = |host: &str| !host.contains(':') || host.ends_with(']');
    match address.rsplit_once(':') {
        Some((host, port)) if plain(host) => match port.parse() {
            Ok(port) => (unbracketed(host), port),
            Err(_) => (unbracketed(address), DEFAULT_PORT),
        },
        _ => (unbracketed(address), DEFAULT_PORT),
    }
}

fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Keeps what the library says of its troubles: its answer is no more than a timeout.
#[derive(Clone, Default)]
struct Reasons(Arc<Mutex<Vec<String>>>);

impl Reasons {
    fn keep(&self, reason: &str) {
        let mut reasons = self.0.lock().unwrap_or_else(|p| p.into_inner());
        if reasons.len() < MOST_REASONS {
            reasons.push(reason.to_owned());
        }
    }

    /// The one that says most.
    fn best(&self) -> Option<String> {
        let reasons = self.0.lock().unwrap_or_else(|p| p.into_inner());
        let telling = ["uthentication", "SSL", "authoriz"];
        let best = reasons
            .iter()
            .find(|reason| telling.iter().any(|word| reason.contains(word)))
            .or(reasons.first())?;
        // `sasl_ssl://host:port/bootstrap: what happened (after 5ms in state AUTH_REQ)`
        let what = best
            .split_once("/bootstrap: ")
            .map_or(&**best, |(_, what)| what);
        Some(what.split(" (after ").next().unwrap_or(what).to_owned())
    }
}

impl ClientContext for Reasons {
    fn log(&self, _: RDKafkaLogLevel, _: &str, message: &str) {
        self.keep(message);
    }

    fn error(&self, _: KafkaError, reason: &str) {
        self.keep(reason);
    }
}

impl ConsumerContext for Reasons {}

/// Asks for the metadata; the error is the reason that the library gives.
async fn cluster(kafka: &Kafka) -> Result<Cluster, String> {
    let reasons = Reasons::default();
    let config = kafka.connection.reader(&kafka.settings.group);
    let kept = reasons.clone();
    let asked = blocking(move || {
        let asking: BaseConsumer<Reasons> = config.create_with_context(kept)?;
        let metadata = asking.fetch_metadata(None, ASK);
        if metadata.is_err() {
            let _ = asking.poll(LISTEN);
        }
        Ok(read(&metadata?))
    })
    .await;
    asked.map_err(|error| reasons.best().unwrap_or_else(|| format!("{error:#}")))
}

fn read(metadata: &Metadata) -> Cluster {
    let mut cluster = Cluster {
        nodes: metadata.brokers().len(),
        topics: BTreeMap::new(),
        refused: BTreeMap::new(),
    };
    for topic in metadata.topics() {
        if let Some(error) = topic.error() {
            cluster
                .refused
                .insert(topic.name().to_owned(), error.into());
            continue;
        }
        let partitions = topic.partitions().iter().map(|partition| Partition {
            leader: partition.leader() >= 0,
            replicas: partition.replicas().len(),
            in_sync: partition.isr().len(),
        });
        cluster
            .topics
            .insert(topic.name().to_owned(), partitions.collect());
    }
    cluster
}

fn is(config: &ConfigResource, name: &str, value: &str) -> bool {
    let found = config.get(name).and_then(|entry| entry.value.as_deref());
    found == Some(value)
}

/// Says where a topic has no leader, or fewer copies than it should.
async fn replication(topic: &str, cluster: &Cluster, found: &Findings) {
    let Some(partitions) = cluster.topics.get(topic) else {
        return;
    };
    let headless = partitions.iter().filter(|one| !one.leader).count();
    if headless > 0 {
        let what = format!("topic {topic}: {headless} partitions have no leader");
        found
            .problem(
                what,
                "a broker of the cluster is down: nothing is taken from them",
            )
            .await;
    }
    let behind = partitions.iter().filter(|one| one.in_sync < one.replicas);
    let behind = behind.count();
    if behind > 0 {
        let what = format!("topic {topic}: {behind} partitions have copies that are behind");
        found
            .warning(what, "a broker of the cluster is down or slow")
            .await;
    }
    let single = partitions.iter().any(|one| one.replicas < 2);
    if single && cluster.nodes > 1 {
        found
            .warning(
                format!("topic {topic} has one copy"),
                "the loss of one broker loses it: use a replication factor of 3",
            )
            .await;
    }
}

/// Whether we may see our groups, and who is in them.
async fn groups(kafka: &Kafka, found: &Findings) {
    let group = kafka.settings.group.to_string();
    let wanted = [group.clone(), names::tier_group(&group)];
    let admin = kafka.admin.clone();
    let asked = blocking(move || {
        let mut members = Vec::new();
        for group in wanted {
            let listed = admin.inner().fetch_group_list(Some(&group), ASK);
            let listed = listed.with_context(|| format!("asking for group {group}"))?;
            let count = listed.groups().iter().map(|one| one.members().len()).sum();
            members.push((group, count));
        }
        Ok::<Vec<(String, usize)>, anyhow::Error>(members)
    })
    .await;
    match asked {
        Ok(members) => {
            for (group, count) in members {
                found
                    .ok(format!("consumer group {group}: {count} members now"))
                    .await;
            }
        }
        Err(error) => {
            let advice = "allow us `Read` on both groups";
            found.problem(format!("{error:#}"), advice).await;
        }
    }
}

struct Source<'a> {
    name: &'a str,
    topics: Vec<String>,
}

/// How far a topic has been read.
#[derive(Default)]
struct Lag {
    waiting: i64,
    /// Partitions with a committed offset.
    begun: usize,
    /// Partitions whose next event has been deleted.
    lost: usize,
}

impl Source<'_> {
    async fn inspect(&self, kafka: &Kafka, cluster: &Cluster, found: &Findings) {
        let name = self.name;
        if self.topics.is_empty() {
            let what = format!("source {name}: no topic matches");
            let advice = "topics that come later are taken when they are there; check the pattern";
            return found.warning(what, advice).await;
        }
        let mut there = Vec::new();
        for topic in &self.topics {
            match (cluster.topics.get(topic), cluster.refused.get(topic)) {
                (Some(_), _) => there.push(topic.as_str()),
                (None, Some(code)) => {
                    let what = format!("source {name}: topic {topic}: {code}");
                    found
                        .problem(what, "allow us `Read` and `Describe` on it")
                        .await;
                }
                (None, None) => {
                    let what = format!("source {name}: topic {topic} is not there");
                    let advice = "make it, check its name, or allow us `Describe` on it";
                    found.problem(what, advice).await;
                }
            }
        }
        let configs = topics::describe(&kafka.admin, &there).await;
        let configs = match configs {
            Ok(configs) => configs,
            Err(error) => {
                let what = format!("source {name}: settings of topics: {error:#}");
                found
                    .warning(what, "look again: their dangers are not checked now")
                    .await;
                Vec::new()
            }
        };
        let mut configs = configs.into_iter();
        for topic in &there {
            replication(topic, cluster, found).await;
            match configs.next() {
                Some(Some(config)) => self.dangers(topic, &config, found).await,
                None => {}
                Some(None) => {
                    let what =
                        format!("source {name}: the settings of topic {topic} cannot be seen");
                    found
                        .warning(what, "allow us `DescribeConfigs` on it")
                        .await;
                }
            }
        }
        for topic in there {
            self.progress(kafka, cluster, topic, found).await;
        }
    }

    async fn dangers(&self, topic: &str, config: &ConfigResource, found: &Findings) {
        let name = self.name;
        let policy = config
            .get("cleanup.policy")
            .and_then(|entry| entry.value.as_deref());
        if policy.is_some_and(|policy| policy.contains("compact")) {
            found
                .warning(
                    format!("source {name}: topic {topic} is compacted"),
                    "of events with the same key only the last is sure to be delivered",
                )
                .await;
        }
        const DAY_MS: i64 = 86_400_000;
        let keeps_ms = number(config, "retention.ms");
        if let Some(ms) = keeps_ms.filter(|ms| (0..DAY_MS).contains(ms)) {
            found
                .warning(
                    format!("source {name}: topic {topic} keeps events for {} s only", ms / 1_000),
                    "what is not taken by then is lost: an outage, or a paused intake, lasts longer",
                )
                .await;
        }
        if number(config, "retention.bytes").is_some_and(|bytes| bytes >= 0) {
            found
                .warning(
                    format!("source {name}: topic {topic} drops events by size (retention.bytes)"),
                    "what is not taken by then is lost",
                )
                .await;
        }
        if is(config, "unclean.leader.election.enable", "true") {
            found
                .warning(
                    format!("source {name}: topic {topic}: unclean.leader.election.enable is true"),
                    "events may be lost, and offsets given twice, when a node fails",
                )
                .await;
        }
    }

    async fn progress(&self, kafka: &Kafka, cluster: &Cluster, topic: &str, found: &Findings) {
        let name = self.name;
        let partitions = cluster.topics.get(topic).map_or(0, Vec::len);
        let group = &kafka.settings.group;
        match lag(kafka, group, topic, partitions).await {
            Err(error) => {
                let what =
                    format!("source {name}: the lag of topic {topic} is not known: {error:#}");
                found
                    .problem(what, "allow us `Describe` on the group and the topic")
                    .await;
            }
            Ok(Lag { begun: 0, .. }) => {
                found
                    .ok(format!(
                        "source {name}: topic {topic}, {partitions} partitions: not read yet, begins as \
                         `start:` says"
                    ))
                    .await;
            }
            Ok(Lag { waiting, lost, .. }) => {
                found
                    .ok(format!(
                        "source {name}: topic {topic}, {partitions} partitions: {waiting} events wait"
                    ))
                    .await;
                if lost > 0 {
                    found
                        .problem(
                            format!(
                                "source {name}: topic {topic}: events of {lost} partitions were deleted \
                                 before they were taken"
                            ),
                            "its retention is shorter than the bridge was away: set the offsets \
                             (kafka-consumer-groups --reset-offsets)",
                        )
                        .await;
                }
            }
        }
    }
}

async fn lag(kafka: &Kafka, group: &str, topic: &str, partitions: usize) -> anyhow::Result<Lag> {
    let config = kafka.connection.reader(group);
    let topic = topic.to_owned();
    blocking(move || {
        let asking: BaseConsumer<Reasons> = config.create_with_context(Reasons::default())?;
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions.min(MOST_PARTITIONS) as i32 {
            list.add_partition(&topic, partition);
        }
        let mut lag = Lag::default();
        for ((topic, partition), at) in committed(&asking, list)? {
            let Some((offset, _)) = at else { continue };
            let (low, high) = asking.fetch_watermarks(&topic, partition, ASK)?;
            lag.begun += 1;
            lag.waiting += (high - offset).max(0);
            lag.lost += usize::from(offset < low);
        }
        Ok(lag)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_addresses_are_read() {
        assert_eq!(host_and_port("a:1"), ("a", 1));
        assert_eq!(host_and_port("a"), ("a", 9092));
        assert_eq!(host_and_port("[::1]:5"), ("::1", 5));
        assert_eq!(host_and_port("[::1]"), ("::1", 9092));
    }

    #[test]
    fn the_reason_that_says_most_is_kept() {
        let reasons = Reasons::default();
        assert_eq!(reasons.best(), None);
        reasons.keep("1/1 brokers are down");
        reasons.keep("sasl_plaintext://h:1/bootstrap: SASL authentication error: no (after 5ms in state AUTH_REQ)");
        assert_eq!(
            reasons.best().as_deref(),
            Some("SASL authentication error: no")
        );
    }
}
