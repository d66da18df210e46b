//! Our topics: whether they are there, keep what they are for, and can be written to; and the clock that
//! stamps what is written.

use jiff::Timestamp;
use rdkafka::admin::ConfigResource;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::time::Instant;

use super::{Cluster, is, replication};
use crate::broker::inspect::clocks;
use crate::broker::kafka::topics::{self, Size, Topic, number};
use crate::broker::kafka::{Kafka, names, probe};
use crate::finding::Findings;

/// Says of our topics which are there, whether they are as they should be, and whether we may make the others.
pub async fn topics(kafka: &Kafka, cluster: &Cluster, size: Size, found: &Findings) {
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
        if is_right(topic, config, size, found).await {
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
async fn is_right(topic: &Topic, config: &ConfigResource, size: Size, found: &Findings) -> bool {
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
}
