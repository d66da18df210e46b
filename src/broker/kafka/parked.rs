//! Parked deliveries on the tiers: counted without a trace, and orders about them given.
//!
//! Whoever reads the tiers carries an order out ([`super::orders`], [`super::due`]). What it is about
//! is counted by reading the tiers, outside any group, from what the tiers' group has committed, less
//! the ranges that the commit says are done, to the end that they had when the count began.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use tracing::info;

use super::client::{ASK, Connection, blocking};
use super::commits::committed;
use super::orders::Written;
use super::produce::Record;
use super::walk::{At, Stretch, Walked, reader, walk};
use super::watermark::Watermark;
use super::{Kafka, headers, names, topics};
use crate::broker::Refused;
use crate::broker::envelope;
use crate::broker::parked::{Done, Follow, Order, Waiting};
use crate::delivery::WaitKind;
use crate::subscription::Uid;

/// How long a count may take; a deeper backlog is counted in part.
const COUNT_WITHIN: Duration = Duration::from_secs(15);

/// What lies on a tier, as its headers say.
struct Lying<'a> {
    kind: WaitKind,
    delay: Duration,
    name: &'a str,
    uid: Uid,
    /// By the broker's clock, in ms since 1970.
    since_ms: i64,
    remaining: Duration,
}

pub async fn list(kafka: &Kafka) -> anyhow::Result<Vec<Waiting>> {
    let places = places(kafka, &[WaitKind::Retry, WaitKind::Hold]).await?;
    let (connection, group) = (kafka.connection.clone(), kafka.settings.group.clone());
    blocking(move || {
        let open = Open::of(&connection, &group, &places)?;
        let mut rows: BTreeMap<(bool, Duration, Arc<str>, Uid), Waiting> = BTreeMap::new();
        let whole = open.count(&connection, &group, &mut |lying| {
            let name: Arc<str> = lying.name.into();
            let whose = (name.clone(), lying.uid.clone());
            let is_hold = lying.kind == WaitKind::Hold;
            let row = rows
                .entry((is_hold, lying.delay, name, lying.uid))
                .or_insert_with(|| Waiting {
                    kind: lying.kind,
                    tier_seconds: Some(lying.delay.as_secs()),
                    subscription: Some(whose),
                    count: 0,
                    at_least: false,
                    oldest: None,
                    next_due: None,
                });
            row.count += 1;
            let due_ms = lying.since_ms + (lying.delay + lying.remaining).as_millis() as i64;
            row.oldest = earlier(row.oldest, lying.since_ms);
            row.next_due = earlier(row.next_due, due_ms);
            true
        })?;
        let mut rows: Vec<_> = rows.into_values().collect();
        for row in &mut rows {
            row.at_least = !whole;
        }
        Ok(rows)
    })
    .await
}

fn earlier(known: Option<Timestamp>, ms: i64) -> Option<Timestamp> {
    let this = Timestamp::from_millisecond(ms).ok();
    match (known, this) {
        (Some(known), Some(this)) => Some(known.min(this)),
        (known, this) => known.or(this),
    }
}

/// Gives an order to all instances of the group, and counts what it is about.
pub async fn carry_out(kafka: &Kafka, order: &Order, follow: &dyn Follow) -> Result<Done, Refused> {
    let failed = |error: anyhow::Error| kafka.unavailable(&error);
    let group = kafka.settings.group.clone();
    let refused = |why: String| Refused::Rejected {
        broker: kafka.settings.name.clone(),
        why,
    };
    topics::ensure_orders(&kafka.admin, &group, kafka.settings.declare)
        .await
        .map_err(|error| refused(format!("{error:#}")))?;
    let kinds: Vec<_> = order.kinds().collect();
    let places = places(kafka, &kinds).await.map_err(failed)?;
    let connection = kafka.connection.clone();
    // Before the order: what it makes due is done a moment later.
    let open = {
        let (connection, group) = (connection.clone(), group.clone());
        blocking(move || Open::of(&connection, &group, &places)).await
    }
    .map_err(failed)?;
    let topic = names::orders(&group);
    for &kind in &kinds {
        let written = Written::of(order, kind);
        let key = written.key();
        let payload = serde_json::to_vec(&written).unwrap_or_default();
        let record = Record {
            topic: &topic,
            partition: Some(0),
            key: Some(key.as_bytes()),
            payload: Some(&payload),
            stamped: true,
            ..Record::default()
        };
        kafka.producer.send(record).await?;
    }
    info!(broker = %kafka.settings.name, order = order.deed.as_str(), whose = ?order.whose, "an order about parked deliveries is given to all instances");
    let (whose, cancelled) = (order.whose.clone(), follow.cancelled().clone());
    let counting = blocking(move || {
        let (mut meant, mut others) = (0, 0);
        let walked = open.count(&connection, &group, &mut |lying| {
            match whose.includes_of(&lying.uid, lying.name) {
                true => meant += 1,
                false => others += 1,
            }
            !cancelled.is_cancelled()
        });
        Ok((meant, others, walked))
    });
    // The order is given, whatever becomes of the count.
    let (meant, others, walked) = counting.await.unwrap_or_else(|error| (0, 0, Err(error)));
    let why = match walked {
        Ok(true) => None,
        Ok(false) => Some("it was not finished in time".to_owned()),
        Err(error) => Some(format!("{error:#}")),
    };
    if let Some(why) = why {
        info!(broker = %kafka.settings.name, %why, "what the order is about could not be counted to the end");
        follow.note(format!(
            "the order is given, and counts for all; only the count is of a part: {why}"
        ));
    }
    follow.expects(meant + others);
    for number in 0..meant + others {
        follow.saw(number < meant);
    }
    Ok(Done {
        count: meant,
        parked_again: 0,
    })
}

/// The partitions of all tiers of these kinds, whatever the config says now.
async fn places(kafka: &Kafka, kinds: &[WaitKind]) -> anyhow::Result<Vec<At>> {
    let catalogue = topics::catalogue(&kafka.admin).await?;
    let group = &kafka.settings.group;
    let tiers = catalogue.into_iter().filter(|(topic, _)| {
        names::read_tier(group, topic).is_some_and(|(kind, _)| kinds.contains(&kind))
    });
    Ok(tiers
        .flat_map(|(topic, partitions)| (0..partitions as i32).map(move |n| (topic.clone(), n)))
        .collect())
}

/// What nobody has settled of some partitions.
pub struct Open {
    pub stretch: Stretch,
    pub marks: HashMap<At, Watermark>,
}

impl Open {
    /// What the tiers' group has not committed of `places`. Blocks.
    pub fn of(connection: &Connection, group: &str, places: &[At]) -> anyhow::Result<Self> {
        let mut open = Self {
            stretch: Stretch::new(),
            marks: HashMap::new(),
        };
        if places.is_empty() {
            return Ok(open);
        }
        let asker = reader(connection, &names::tier_group(group))?;
        let mut list = TopicPartitionList::new();
        for (topic, partition) in places {
            list.add_partition(topic, *partition);
        }
        let mut known = committed(&asker, list)?;
        for place in places {
            let (low, high) = asker.fetch_watermarks(&place.0, place.1, ASK)?;
            let (offset, metadata) = known
                .remove(place)
                .flatten()
                .unwrap_or_else(|| (low, String::new()));
            let from = offset.max(low);
            if from < high {
                let mark = Watermark::starting_at(offset, &metadata);
                open.marks.insert(place.clone(), mark);
                open.stretch.insert(place.clone(), (from, high));
            }
        }
        Ok(open)
    }

    /// Shows what lies there until `look` says `false`; whether all of it was looked at. Blocks.
    fn count(
        mut self,
        connection: &Connection,
        group: &str,
        look: &mut dyn FnMut(Lying<'_>) -> bool,
    ) -> anyhow::Result<bool> {
        let until = Instant::now() + COUNT_WITHIN;
        let marks = &mut self.marks;
        let walked = walk(connection, group, self.stretch, &mut |message| {
            if Instant::now() >= until {
                return false;
            }
            let place = (message.topic().to_owned(), message.partition());
            let open = marks.get_mut(&place);
            if !open.is_some_and(|mark| mark.receive(message.offset())) {
                return true;
            }
            let Some((kind, delay)) = names::read_tier(group, message.topic()) else {
                return true;
            };
            let found = headers::read(message);
            match envelope::owner(&found) {
                Some((name, uid)) => look(Lying {
                    kind,
                    delay,
                    name,
                    uid,
                    since_ms: message.timestamp().to_millis().unwrap_or_default(),
                    remaining: envelope::remaining(&found),
                }),
                None => true,
            }
        })?;
        Ok(walked == Walked::Whole)
    }
}
