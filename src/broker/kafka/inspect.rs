//! Inspecting Kafka: nodes, login, our topics, and the topics, offsets and lag of sources.
//!
//! Nothing is made; whether we may make topics is asked by a request that is validated only. Whether we
//! may produce, and what the cluster's clock shows, cannot be asked without producing: where the topic of
//! dead letters is there, it gets a marker as it does at each start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use rdkafka::admin::ConfigResource;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientContext, TopicPartitionList};
use tokio::time::Instant;

use super::client::{ASK, blocking};
use super::commits::committed;
use super::topics::{self, Size, Topic, number};
use super::{Kafka, names, probe, wanted};
use crate::broker::inspect::{Node, clocks, own_certificate, reach};
use crate::finding::Findings;

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
    own_topics(kafka, &cluster, size, found).await;
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

async fn own_topics(kafka: &Kafka, cluster: &Cluster, size: Size, found: &Findings) {
    let settings = &kafka.settings;
    let own = topics::own(&settings.group, &settings.tiers, settings.keeps_state);
    let (there, missing): (Vec<_>, Vec<_>) = own
        .into_iter()
        .partition(|topic| cluster.topics.contains_key(&topic.name));
    let names: Vec<_> = there.iter().map(|topic| topic.name.as_str()).collect();
    let configs = match topics::describe(&kafka.admin, &names).await {
        Ok(configs) => configs,
        Err(error) => {
            let what = format!("the settings of our topics cannot be asked for: {error:#}");
            return found.problem(what, "see the log of the broker").await;
        }
    };
    let (mut right, mut unknown) = (0, 0);
    for (topic, config) in there.iter().zip(&configs) {
        let Some(config) = config else {
            unknown += 1;
            continue;
        };
        if own_topic(topic, config, size, found).await {
            right += 1;
        }
    }
    if right > 0 {
        found
            .ok(format!(
                "{right} topics of ours are there, with our settings"
            ))
            .await;
    }
    if unknown > 0 {
        let what = format!("{unknown} topics of ours are there; their settings cannot be checked");
        found
            .warning(what, "allow us `DescribeConfigs` on them")
            .await;
    }
    for topic in &there {
        replication(&topic.name, cluster, found).await;
    }
    in_sync(&there, &configs, cluster, found).await;
    let dead = names::dead(&settings.group);
    let stamped = |(topic, config): (&Topic, &Option<ConfigResource>)| {
        let config = config.as_ref().filter(|_| topic.name == dead);
        config.is_some_and(|config| is(config, "message.timestamp.type", "LogAppendTime"))
    };
    if there.iter().zip(&configs).any(stamped) {
        clock(kafka, &dead, found).await;
    }
    if missing.is_empty() {
        return;
    }
    if !settings.declare {
        let missing: Vec<_> = missing.iter().map(|topic| topic.name.as_str()).collect();
        let advice = "`declare: false`: have them made; `hookbridge topology` prints them";
        let what = format!("missing: topics {}", missing.join(", "));
        return found.problem(what, advice).await;
    }
    match may_make(kafka, &missing[0], size).await {
        Ok(()) => {
            let count = missing.len();
            let what =
                format!("{count} topics of ours are not there yet: they are made at the start");
            found.ok(what).await;
        }
        Err(why) => {
            let what = format!("we may not make our topics: {why}");
            let advice = "allow us `Create`, or have them made (`hookbridge topology` prints them) and \
                          set `declare: false`";
            found.problem(what, advice).await;
        }
    }
}

/// `true` where it is as it should be.
async fn own_topic(topic: &Topic, config: &ConfigResource, size: Size, found: &Findings) -> bool {
    let name = &topic.name;
    if let Some(fault) = topics::fault(config, topic.holds) {
        let advice = "what is parked there is lost: set it right with kafka-configs, the bridge does \
                      not start before";
        found
            .problem(format!("topic {name}: {fault}"), advice)
            .await;
        return false;
    }
    if topic.is_needed() && topics::is_small(config, size.max_bytes) {
        found
            .warning(
                format!(
                    "topic {name}: max.message.bytes is below {}",
                    size.max_bytes
                ),
                "larger events become dead letters without a body: raise it",
            )
            .await;
        return false;
    }
    if is(config, "unclean.leader.election.enable", "true") {
        found
            .warning(
                format!("topic {name}: unclean.leader.election.enable is true"),
                "what the broker has confirmed may be lost when a node fails: set it to false",
            )
            .await;
        return false;
    }
    true
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

/// How many copies have to confirm, against how many there are.
#[derive(Debug, PartialEq, Eq)]
enum InSync {
    /// As it should be, or not known.
    Right,
    /// One confirms, and others are there.
    One,
    /// More than there are: nothing can be written.
    TooMany,
}

fn judged(least: Option<i64>, copies: usize) -> InSync {
    match least.and_then(|least| usize::try_from(least).ok()) {
        Some(least) if least > copies => InSync::TooMany,
        Some(1) if copies > 1 => InSync::One,
        _ => InSync::Right,
    }
}

/// Says where what the cluster confirms may be in one copy only, or nothing can be confirmed.
async fn in_sync(
    there: &[Topic],
    configs: &[Option<ConfigResource>],
    cluster: &Cluster,
    found: &Findings,
) {
    let mut one = Vec::new();
    for (topic, config) in there.iter().zip(configs) {
        let name = &topic.name;
        let partitions = cluster.topics.get(name).into_iter().flatten();
        let Some(copies) = partitions.map(|partition| partition.replicas).min() else {
            continue;
        };
        let least = config.as_ref();
        let least = least.and_then(|config| number(config, "min.insync.replicas"));
        match judged(least, copies) {
            InSync::Right => {}
            InSync::One => one.push(name.as_str()),
            InSync::TooMany => {
                let least = least.unwrap_or_default();
                let what = format!(
                    "topic {name}: min.insync.replicas is {least}, and there are {copies} copies"
                );
                let advice = "nothing can be written to it: lower it, or have more copies made";
                found.problem(what, advice).await;
            }
        }
    }
    if let Some(first) = one.first() {
        let others = match one.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more of ours"),
        };
        found
            .warning(
                format!("topic {first}{others}: min.insync.replicas is 1"),
                "what is confirmed may be in one copy, and is lost with it: set it to 2",
            )
            .await;
    }
}

/// Writes a marker among the dead letters, and compares the time that the cluster stamps on it.
async fn clock(kafka: &Kafka, dead: &str, found: &Findings) {
    let began = Instant::now();
    if let Err(error) = probe::mark(kafka, dead).await {
        let what = format!("topic {dead} takes no marker: {error:#}");
        let advice = "allow us `Write` on our topics; see the log of the broker";
        return found.problem(what, advice).await;
    }
    let earliest = kafka.clock.reached_ms().map(Timestamp::from_millisecond);
    if let Some(Ok(earliest)) = earliest {
        // It was stamped at some time on the way there and back.
        let latest = earliest.checked_add(began.elapsed());
        clocks(found, earliest, latest.unwrap_or(earliest)).await;
    }
}

/// Whether the cluster would make `topic` for us, which it is asked without making it.
async fn may_make(kafka: &Kafka, topic: &Topic, size: Size) -> Result<(), String> {
    let settings = topic.settings(size);
    let new = topic.new_topic(size, &settings);
    let options = topics::options().validate_only(true);
    let asked = kafka.admin.create_topics(&[new], &options).await;
    match asked.map_err(|error| error.to_string())?.pop() {
        Some(Err((_, Code::TopicAlreadyExists))) | Some(Ok(_)) | None => Ok(()),
        Some(Err((_, code))) => Err(code.to_string()),
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
    fn what_confirms_is_judged_by_how_many_copies_there_are() {
        for (least, copies, judgement) in [
            (Some(2), 3, InSync::Right),
            (Some(1), 1, InSync::Right),
            (Some(1), 3, InSync::One),
            (Some(2), 1, InSync::TooMany),
            (None, 3, InSync::Right),
        ] {
            assert_eq!(judged(least, copies), judgement, "{least:?} of {copies}");
        }
    }

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
