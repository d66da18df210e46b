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

use super::client::{ASK, Apart, Quiet, blocking};
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

pub type Admin = Arc<Apart<AdminClient<Quiet>>>;

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

pub fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ASK))
        .operation_timeout(Some(ASK))
}

/// A topic of ours. What is made and what `topology` prints are these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub holds: Holds,
}

/// What a topic of ours holds, which decides how long it keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Dead letters, until a tombstone.
    Letters,
    /// A tier: deliveries that wait for so long.
    Waiting(Duration),
    /// Orders about parked deliveries, the last of each kind.
    Orders,
    /// Nothing: who has its one partition holds the replay lock.
    Lock,
    /// What all instances have in common, the last of each key.
    State,
}

/// All topics of our own; that of the state where it is kept here.
pub fn own(group: &str, tiers: &Tiers, keeps_state: bool) -> Vec<Topic> {
    let mut topics = vec![
        Topic {
            name: names::dead(group),
            holds: Holds::Letters,
        },
        Topic::orders(group),
        Topic::lock(group),
    ];
    topics.extend(keeps_state.then(|| Topic::state(group)));
    let holds = tiers.for_holds();
    for (kind, tiers) in [(WaitKind::Retry, tiers), (WaitKind::Hold, &holds)] {
        topics.extend(tiers.iter().map(|delay| Topic {
            name: names::tier(group, kind, delay),
            holds: Holds::Waiting(delay),
        }));
    }
    topics
}

impl Topic {
    pub fn orders(group: &str) -> Self {
        Self {
            name: names::orders(group),
            holds: Holds::Orders,
        }
    }

    pub fn lock(group: &str) -> Self {
        Self {
            name: names::replay(group),
            holds: Holds::Lock,
        }
    }

    pub fn state(group: &str) -> Self {
        Self {
            name: names::state(group),
            holds: Holds::State,
        }
    }

    /// Whether no broker works without it. What the others are for is refused where they are
    /// missing, and nothing else; but nothing is taken before the state was read.
    pub fn is_needed(&self) -> bool {
        matches!(self.holds, Holds::Letters | Holds::Waiting(_))
    }

    /// How many partitions it has, where our topics are of this size.
    pub fn partitions(&self, size: Size) -> usize {
        if self.is_needed() { size.partitions } else { 1 }
    }

    /// What it is made with, beside its partitions and the cluster's own defaults.
    pub fn settings(&self, size: Size) -> Vec<(&'static str, String)> {
        let (policy, kept_ms) = match self.holds {
            Holds::Letters => ("compact", "-1".to_owned()),
            Holds::Waiting(_) => ("delete", "-1".to_owned()),
            Holds::Orders => {
                let kept_ms = super::orders::KEPT.as_millis().to_string();
                let stamped = ("message.timestamp.type", "LogAppendTime".to_owned());
                let policy = ("cleanup.policy", "compact,delete".to_owned());
                return vec![policy, ("retention.ms", kept_ms), stamped];
            }
            Holds::Lock => return Vec::new(),
            Holds::State => {
                let lag_ms = super::state::KEPT.as_millis().to_string();
                return vec![
                    ("cleanup.policy", "compact".to_owned()),
                    ("min.compaction.lag.ms", lag_ms),
                    ("message.timestamp.type", "LogAppendTime".to_owned()),
                ];
            }
        };
        vec![
            ("cleanup.policy", policy.to_owned()),
            ("retention.ms", kept_ms),
            ("retention.bytes", "-1".to_owned()),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("max.message.bytes", size.max_bytes.to_string()),
        ]
    }

    /// What the cluster is asked to make; `settings` are the topic's own, see [`Topic::settings`].
    pub fn new_topic<'a>(
        &'a self,
        size: Size,
        settings: &'a [(&'static str, String)],
    ) -> NewTopic<'a> {
        let partitions = self.partitions(size) as i32;
        let new = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(-1));
        settings
            .iter()
            .fold(new, |new, (name, value)| new.set(name, value))
    }
}

/// How large our topics are: as wide as the widest source, and a little more per message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub partitions: usize,
    pub max_bytes: u64,
}

impl Size {
    /// Where no source says anything else.
    pub const SMALLEST: Self = Self {
        partitions: 1,
        max_bytes: DEFAULT_MESSAGE_BYTES + HEADER_ROOM,
    };

    /// What `sources`, the topics that events come from, ask for.
    pub async fn of(
        admin: &Admin,
        catalogue: &Catalogue,
        sources: &[String],
    ) -> anyhow::Result<Self> {
        let widest = sources
            .iter()
            .filter_map(|topic| catalogue.get(topic))
            .max();
        Ok(Self {
            partitions: widest.map_or(1, |widest| (*widest).clamp(1, MOST_PARTITIONS)),
            max_bytes: largest_message(admin, sources).await? + HEADER_ROOM,
        })
    }
}

/// Makes what is missing of our topics and checks what is there; where we may not make any, what is
/// missing is an error. `sources` are the topics that events come from.
pub async fn ensure(
    admin: &Admin,
    group: &str,
    tiers: &Tiers,
    catalogue: &Catalogue,
    sources: &[String],
    declare: bool,
) -> anyhow::Result<()> {
    let size = Size::of(admin, catalogue, sources).await?;
    let (there, missing): (Vec<_>, Vec<_>) = own(group, tiers, false)
        .into_iter()
        .filter(Topic::is_needed)
        .partition(|topic| catalogue.contains_key(&topic.name));
    if declare {
        create(admin, &missing, size).await?;
    } else if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(|topic| topic.name.as_str()).collect();
        bail!(
            "missing, and not ours to make (`declare: false`): {}; `hookbridge topology` prints what has \
             to be made",
            missing.join(", ")
        );
    }
    check(admin, &there, size.max_bytes).await?;
    let orders = ensure_orders_in(admin, group, catalogue, declare);
    if let Err(error) = orders.await {
        warn!(
            error = format!("{error:#}"),
            "parked deliveries cannot be brought forward or dropped"
        );
    }
    Ok(())
}

/// Makes the topic of orders where it is missing.
pub async fn ensure_orders(admin: &Admin, group: &str, declare: bool) -> anyhow::Result<()> {
    ensure_orders_in(admin, group, &catalogue(admin).await?, declare).await
}

async fn ensure_orders_in(
    admin: &Admin,
    group: &str,
    catalogue: &Catalogue,
    declare: bool,
) -> anyhow::Result<()> {
    let topic = Topic::orders(group);
    if catalogue.contains_key(&topic.name) {
        let found = describe(admin, &[&topic.name]).await?;
        let found = found.into_iter().flatten().next();
        if let Some(fault) = found.and_then(|config| fault(&config, topic.holds)) {
            bail!("topic {}: {fault}", topic.name);
        }
        return Ok(());
    }
    if !declare {
        bail!("topic {} is missing, and not ours to make", topic.name);
    }
    create(admin, &[topic], Size::SMALLEST).await
}

/// Makes the topic of the replay lock where it is missing. Nothing is ever written to it.
pub async fn ensure_lock(admin: &Admin, group: &str, declare: bool) -> anyhow::Result<()> {
    let topic = Topic::lock(group);
    if catalogue(admin).await?.contains_key(&topic.name) {
        return Ok(());
    }
    if !declare {
        bail!("topic {} is missing, and not ours to make", topic.name);
    }
    create(admin, &[topic], Size::SMALLEST).await
}

/// Makes the topic of the state where it is missing, and looks at it where it is there.
pub async fn ensure_state(admin: &Admin, group: &str, declare: bool) -> anyhow::Result<()> {
    let topic = Topic::state(group);
    let name = topic.name.clone();
    if !catalogue(admin).await?.contains_key(&name) {
        if !declare {
            bail!(
                "missing, and not ours to make (`declare: false`): {name}, compacted, with one partition; \
                 `hookbridge topology` prints what has to be made"
            );
        }
        return create(admin, &[topic], Size::SMALLEST).await.with_context(|| {
            format!(
                "the group keeps its state in {name}: allow us `Create` on it, or make it (`hookbridge topology` prints it)"
            )
        });
    }
    let found = describe(admin, &[&name]).await?;
    let found = found.into_iter().flatten().next();
    if let Some(fault) = found.and_then(|config| fault(&config, topic.holds)) {
        bail!("topic {name}: {fault}");
    }
    Ok(())
}

async fn create(admin: &Admin, missing: &[Topic], size: Size) -> anyhow::Result<()> {
    let settings: Vec<_> = missing.iter().map(|topic| topic.settings(size)).collect();
    let topics: Vec<_> = missing
        .iter()
        .zip(&settings)
        .map(|(topic, settings)| topic.new_topic(size, settings))
        .collect();
    if topics.is_empty() {
        return Ok(());
    }
    for made in admin.create_topics(&topics, &options()).await? {
        match made {
            Ok(topic) => info!(topic, "created a topic of ours"),
            // Another instance was faster.
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => bail!("topic {topic} could not be created: {code}"),
        }
    }
    Ok(())
}

async fn check(admin: &Admin, there: &[Topic], max_bytes: u64) -> anyhow::Result<()> {
    let names: Vec<_> = there.iter().map(|topic| topic.name.as_str()).collect();
    let configs = describe(admin, &names).await?;
    for (topic, config) in there.iter().zip(&configs) {
        let name = &topic.name;
        let Some(config) = config else {
            warn!(
                topic = name,
                "the settings of a topic of ours cannot be read, so they are not checked"
            );
            continue;
        };
        if let Some(fault) = fault(config, topic.holds) {
            bail!("topic {name}: {fault}");
        }
        if is_small(config, max_bytes) {
            warn!(
                topic = name,
                needed_bytes = max_bytes,
                "max.message.bytes is smaller than what a source may hold: \
                 larger events become dead letters without a body"
            );
        }
    }
    Ok(())
}

/// Whether a topic of ours takes less than what a source may hold.
pub fn is_small(config: &ConfigResource, max_bytes: u64) -> bool {
    number(config, "max.message.bytes").is_some_and(|bytes| (bytes as u64) < max_bytes)
}

/// What is wrong with a topic of ours that holds this.
pub fn fault(config: &ConfigResource, holds: Holds) -> Option<String> {
    let text = |name| config.get(name).and_then(|entry| entry.value.as_deref());
    let policy = text("cleanup.policy").unwrap_or_default();
    let unstamped = || {
        text("message.timestamp.type")
            .is_some_and(|kind| kind != "LogAppendTime")
            .then(|| "message.timestamp.type must be LogAppendTime".to_owned())
    };
    let delay = match holds {
        Holds::Letters => {
            return (policy != "compact").then(|| {
                format!("cleanup.policy is {policy}, must be compact or letters get lost")
            });
        }
        Holds::State => {
            return (policy != "compact").then(|| {
                format!("cleanup.policy is {policy}, must be compact or subscriptions get lost")
            });
        }
        Holds::Orders => return unstamped(),
        Holds::Lock => return None,
        Holds::Waiting(delay) => delay,
    };
    if policy != "delete" {
        return Some(format!("cleanup.policy is {policy}, must be delete"));
    }
    if let Some(unstamped) = unstamped() {
        return Some(unstamped);
    }
    if number(config, "retention.bytes").is_some_and(|bytes| bytes != -1) {
        return Some("retention.bytes must be -1".to_owned());
    }
    let enough_ms = (delay + SLACK).as_millis() as i64;
    number(config, "retention.ms")
        .filter(|ms| *ms != -1 && *ms < enough_ms)
        .map(|ms| format!("retention.ms is {ms}, must be -1 or at least {enough_ms}"))
}

pub fn number(config: &ConfigResource, name: &str) -> Option<i64> {
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
pub async fn describe(
    admin: &Admin,
    topics: &[&str],
) -> anyhow::Result<Vec<Option<ConfigResource>>> {
    let mut found = Vec::with_capacity(topics.len());
    for some in topics.chunks(50) {
        let topics: Vec<_> = some.iter().map(|t| ResourceSpecifier::Topic(t)).collect();
        let answer = admin.describe_configs(&topics, &options()).await?;
        found.extend(answer.into_iter().map(Result::ok));
    }
    Ok(found)
}
