//! The topics of ours: made where they are missing, looked at where they are there.
//!
//! A tier that drops records after some days, or believes the producer's timestamps, loses what is
//! parked on it. So a topic that exists with other settings than ours is an error that is shown,
//! and nothing is taken until it is mended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode as Code;
use tracing::{info, warn};

use super::client::{ASK, Quiet, blocking};
use super::names;
use crate::broker::tiers::Tiers;
use crate::delivery::WaitKind;

/// More partitions than this only cost file handles: tiers are read by every instance anyway.
const MOST_PARTITIONS: usize = 12;
/// What our headers may add to a source's largest message.
const HEADER_ROOM: u64 = 64 << 10;
/// Kafka's own default of `max.message.bytes`.
const DEFAULT_MESSAGE_BYTES: u64 = 1_048_588;
/// How much longer than its delay a tier must keep records where it does not keep them for ever.
const SLACK: Duration = Duration::from_secs(14 * 24 * 3_600);

pub type Admin = Arc<AdminClient<Quiet>>;

/// Partition counts by topic.
pub type Catalogue = BTreeMap<String, usize>;

/// Every topic of the cluster that can be seen, with its number of partitions.
pub async fn catalogue(admin: &Admin) -> anyhow::Result<Catalogue> {
    let admin = admin.clone();
    blocking(move || {
        let metadata = admin
            .inner()
            .fetch_metadata(None, ASK)
            .context("asking for the topics")?;
        Ok(metadata
            .topics()
            .iter()
            .filter(|topic| topic.error().is_none())
            .map(|topic| (topic.name().to_owned(), topic.partitions().len()))
            .collect())
    })
    .await
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ASK))
        .operation_timeout(Some(ASK))
}

/// Makes what is missing of our topics and checks what is there. `sources` are the topics that
/// events come from; ours are as wide as the widest of them and take a little more per message.
pub async fn ensure(
    admin: &Admin,
    group: &str,
    tiers: &Tiers,
    catalogue: &Catalogue,
    sources: &[String],
) -> anyhow::Result<()> {
    let partitions = sources
        .iter()
        .filter_map(|topic| catalogue.get(topic))
        .max()
        .map_or(1, |widest| (*widest).clamp(1, MOST_PARTITIONS));
    let max_bytes = largest_message(admin, sources).await? + HEADER_ROOM;
    let mut wanted = vec![(names::dead(group), None)];
    let holds = tiers.for_holds();
    let kinds = [(WaitKind::Retry, tiers), (WaitKind::Hold, &holds)];
    for (kind, tiers) in kinds {
        wanted.extend(
            tiers
                .iter()
                .map(|delay| (names::tier(group, kind, delay), Some(delay))),
        );
    }
    let (there, missing): (Vec<_>, Vec<_>) = wanted
        .into_iter()
        .partition(|(topic, _)| catalogue.contains_key(topic));
    create(admin, &missing, partitions, max_bytes).await?;
    check(admin, &there, max_bytes).await
}

/// Makes the topic of the replay lock where it is missing. Nothing is ever written to it.
pub async fn ensure_lock(admin: &Admin, topic: &str) -> anyhow::Result<()> {
    if catalogue(admin).await?.contains_key(topic) {
        return Ok(());
    }
    let lock = NewTopic::new(topic, 1, TopicReplication::Fixed(-1));
    for made in admin.create_topics([&lock], &options()).await? {
        match made {
            Ok(topic) => info!(topic, "created the topic of the replay lock"),
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                bail!("topic {topic} (one partition, nothing in it) could not be created: {code}")
            }
        }
    }
    Ok(())
}

async fn create(
    admin: &Admin,
    missing: &[(String, Option<Duration>)],
    partitions: usize,
    max_bytes: u64,
) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let max_bytes = max_bytes.to_string();
    let topics: Vec<_> = missing
        .iter()
        .map(|(topic, delay)| {
            let policy = if delay.is_some() { "delete" } else { "compact" };
            NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(-1))
                .set("cleanup.policy", policy)
                .set("retention.ms", "-1")
                .set("retention.bytes", "-1")
                .set("message.timestamp.type", "LogAppendTime")
                .set("max.message.bytes", &max_bytes)
        })
        .collect();
    for made in admin.create_topics(&topics, &options()).await? {
        match made {
            Ok(topic) => info!(topic, partitions, "created a topic of ours"),
            // Another instance was faster.
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => bail!("topic {topic} could not be created: {code}"),
        }
    }
    Ok(())
}

async fn check(
    admin: &Admin,
    there: &[(String, Option<Duration>)],
    max_bytes: u64,
) -> anyhow::Result<()> {
    let topics: Vec<_> = there.iter().map(|(topic, _)| topic.as_str()).collect();
    let configs = describe(admin, &topics).await?;
    for ((topic, delay), config) in there.iter().zip(&configs) {
        let Some(config) = config else {
            warn!(
                topic,
                "the settings of a topic of ours cannot be read, so they are not checked"
            );
            continue;
        };
        if let Some(fault) = fault(config, *delay) {
            bail!("topic {topic}: {fault}");
        }
        if number(config, "max.message.bytes").is_some_and(|bytes| (bytes as u64) < max_bytes) {
            warn!(
                topic,
                needed_bytes = max_bytes,
                "max.message.bytes is smaller than what a source may hold: \
                 larger events become dead letters without a body"
            );
        }
    }
    Ok(())
}

/// What is wrong with a topic of ours; `delay` for a tier, `None` for the dead letters.
fn fault(config: &ConfigResource, delay: Option<Duration>) -> Option<String> {
    let text = |name| config.get(name).and_then(|entry| entry.value.as_deref());
    let policy = text("cleanup.policy").unwrap_or_default();
    let Some(delay) = delay else {
        return (policy != "compact")
            .then(|| format!("cleanup.policy is {policy}, must be compact or letters get lost"));
    };
    if policy != "delete" {
        return Some(format!("cleanup.policy is {policy}, must be delete"));
    }
    if text("message.timestamp.type").is_some_and(|kind| kind != "LogAppendTime") {
        return Some("message.timestamp.type must be LogAppendTime".to_owned());
    }
    if number(config, "retention.bytes").is_some_and(|bytes| bytes != -1) {
        return Some("retention.bytes must be -1".to_owned());
    }
    let enough_ms = (delay + SLACK).as_millis() as i64;
    number(config, "retention.ms")
        .filter(|ms| *ms != -1 && *ms < enough_ms)
        .map(|ms| format!("retention.ms is {ms}, must be -1 or at least {enough_ms}"))
}

fn number(config: &ConfigResource, name: &str) -> Option<i64> {
    config.get(name)?.value.as_deref()?.parse().ok()
}

/// The largest message that any of `topics` takes.
async fn largest_message(admin: &Admin, topics: &[String]) -> anyhow::Result<u64> {
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    Ok(describe(admin, &topics)
        .await?
        .iter()
        .flatten()
        .filter_map(|config| number(config, "max.message.bytes"))
        .max()
        .map_or(DEFAULT_MESSAGE_BYTES, |bytes| bytes.max(0) as u64))
}

/// The settings of `topics`, in their order; `None` where we may not look.
async fn describe(admin: &Admin, topics: &[&str]) -> anyhow::Result<Vec<Option<ConfigResource>>> {
    let mut found = Vec::with_capacity(topics.len());
    for some in topics.chunks(50) {
        let topics: Vec<_> = some.iter().map(|t| ResourceSpecifier::Topic(t)).collect();
        let answer = admin.describe_configs(&topics, &options()).await?;
        found.extend(answer.into_iter().map(Result::ok));
    }
    Ok(found)
}
