//! Orders about parked deliveries: written to a small topic, followed by every instance.
//!
//! Tiers are read by all instances of the group, each its own partitions, so an order has to reach
//! them all, and those that are started later. It is a record of `<group>.due.orders` (one partition,
//! compacted), and its append time counts: what was parked up to then is meant, wherever it is met,
//! in memory or far behind in the backlog. There is one rule for each kind, deed and subscription;
//! orders older than two weeks are forgotten, as the topic forgets them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::client::{ASK, Connection, Quiet};
use super::names;
use super::start::ReaderContext;
use crate::broker::parked::{Deed, Order, Whose};
use crate::delivery::WaitKind;
use crate::subscription::Uid;

/// An order counts for so long; the topic keeps it for as long.
pub const KEPT: Duration = Duration::from_secs(14 * 24 * 3_600);
/// Rules in memory; with more the oldest half is forgotten.
const MOST_RULES: usize = 20_000;
const POLL: Duration = Duration::from_millis(200);
/// Between looks for the topic while it is not there, and after an error.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// An order as it is written.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    v: u8,
    kind: WaitKind,
    deed: Deed,
    /// Whose; `None`: everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<Uid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Arc<str>>,
}

impl Written {
    pub fn of(order: &Order, kind: WaitKind) -> Self {
        let (uid, name) = match &order.whose {
            Whose::All => (None, None),
            Whose::Of { uid, name } => (Some(uid.clone()), Some(name.clone())),
        };
        Self {
            v: 1,
            kind,
            deed: order.deed,
            uid,
            name,
        }
    }

    /// A later order about the same takes the place of an earlier one.
    pub fn key(&self) -> String {
        let whose = self.uid.as_ref().map_or("*", Uid::as_str);
        format!("{}.{}.{whose}", self.kind.as_str(), self.deed.as_str())
    }
}

/// The append times in ms of the last orders, by whom they are about.
#[derive(Debug, Default)]
struct Given {
    all: Option<i64>,
    by_uid: HashMap<Uid, i64>,
    by_name: HashMap<Arc<str>, i64>,
}

impl Given {
    fn about(&self, name: &str, uid: &Uid) -> Option<i64> {
        let by_uid = self.by_uid.get(uid).copied();
        let by_name = self.by_name.get(name).copied();
        self.all.max(by_uid).max(by_name)
    }

    fn stamps(&self) -> impl Iterator<Item = i64> {
        let one = self.by_uid.values().chain(self.by_name.values()).copied();
        self.all.into_iter().chain(one)
    }

    /// Forgets what was given up to then.
    fn forget(&mut self, until_ms: i64) {
        self.all = self.all.filter(|given_ms| *given_ms > until_ms);
        self.by_uid.retain(|_, given_ms| *given_ms > until_ms);
        self.by_name.retain(|_, given_ms| *given_ms > until_ms);
    }
}

type Rules = HashMap<(WaitKind, Deed), Given>;

fn stamps(rules: &Rules) -> impl Iterator<Item = i64> {
    rules.values().flat_map(Given::stamps)
}

/// The orders known here.
#[derive(Debug, Default)]
pub struct Orders {
    rules: Mutex<Rules>,
    version: AtomicU64,
    known: AtomicBool,
}

impl Orders {
    /// Changes with every order.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether all orders given before the start have been read.
    pub fn known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// When the last order about `kind` was given.
    pub fn last_about(&self, kind: WaitKind) -> Option<i64> {
        if self.version() == 0 {
            return None;
        }
        let rules = self.rules();
        let of_kind = rules.iter().filter(|((of, _), _)| *of == kind);
        of_kind.flat_map(|(_, given)| given.stamps()).max()
    }

    /// What is to become of a delivery parked at `stamp_ms`. Dropping goes first: what was parked
    /// before both orders was to be dropped by one of them.
    pub fn about(&self, kind: WaitKind, stamp_ms: i64, name: &str, uid: &Uid) -> Option<Deed> {
        if self.version() == 0 {
            return None;
        }
        let rules = self.rules();
        [Deed::Drop, Deed::Now].into_iter().find(|&deed| {
            let given = rules.get(&(kind, deed));
            let given_ms = given.and_then(|given| given.about(name, uid));
            given_ms.is_some_and(|given_ms| stamp_ms <= given_ms)
        })
    }

    fn note(&self, written: Written, stamp_ms: i64) {
        let Written {
            v: _,
            kind,
            deed,
            uid,
            name,
        } = written;
        let mut rules = self.rules();
        let later = |known: &mut i64| *known = stamp_ms.max(*known);
        let given = rules.entry((kind, deed)).or_default();
        match uid {
            None => given.all = given.all.max(Some(stamp_ms)),
            Some(uid) => {
                later(given.by_uid.entry(uid).or_insert(stamp_ms));
                if let Some(name) = name {
                    later(given.by_name.entry(name).or_insert(stamp_ms));
                }
            }
        }
        let forgotten_ms = stamp_ms - KEPT.as_millis() as i64;
        rules
            .values_mut()
            .for_each(|given| given.forget(forgotten_ms));
        let mut stamps: Vec<_> = stamps(&rules).collect();
        if stamps.len() > MOST_RULES {
            stamps.sort_unstable();
            let middle = stamps[stamps.len() / 2];
            rules.values_mut().for_each(|given| given.forget(middle));
        }
        drop(rules);
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

/// Reads all orders and goes on reading until `stop`. Blocks.
pub fn follow(orders: &Orders, connection: &Connection, group: &str, stop: &CancellationToken) {
    let mut trouble = Trouble::default();
    while !stop.is_cancelled() {
        if let Err(error) = read(orders, connection, group, stop, &mut trouble) {
            trouble.is(&format!("{error:#}"));
        }
        pause(stop);
    }
}

/// Why orders cannot be read, said once until they can.
#[derive(Default)]
struct Trouble(bool);

impl Trouble {
    fn is(&mut self, error: &str) {
        match std::mem::replace(&mut self.0, true) {
            false => warn!(
                error,
                "orders about parked deliveries cannot be read, so none is carried out here; trying again"
            ),
            true => debug!(error, "orders about parked deliveries still cannot be read"),
        }
    }

    fn is_over(&mut self) {
        if std::mem::take(&mut self.0) {
            info!("orders about parked deliveries can be read again");
        }
    }
}

fn pause(stop: &CancellationToken) {
    let until = std::time::Instant::now() + LOOK_AGAIN;
    while !stop.is_cancelled() && std::time::Instant::now() < until {
        std::thread::sleep(POLL);
    }
}

fn read(
    orders: &Orders,
    connection: &Connection,
    group: &str,
    stop: &CancellationToken,
    trouble: &mut Trouble,
) -> anyhow::Result<()> {
    let topic = names::orders(group);
    let mut config = connection.reader(group);
    config.set("enable.partition.eof", "true");
    let reader: BaseConsumer<ReaderContext> = config.create_with_context(ReaderContext(Quiet))?;
    loop {
        let found = reader
            .fetch_metadata(Some(&topic), ASK)
            .context("asking for the topic of orders")?;
        let is_there = found
            .topics()
            .iter()
            .any(|t| t.error().is_none() && !t.partitions().is_empty());
        if is_there {
            break;
        }
        let refused = found.topics().iter().find_map(|t| t.error());
        if let Some(code) = refused.map(Code::from).filter(|code| is_forbidden(*code)) {
            anyhow::bail!("topic {topic}: {code}");
        }
        // No topic, no orders.
        trouble.is_over();
        orders.known.store(true, Ordering::Release);
        pause(stop);
        if stop.is_cancelled() {
            return Ok(());
        }
    }
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Beginning)?;
    reader.assign(&list)?;
    while !stop.is_cancelled() {
        match reader.poll(POLL) {
            None => {}
            Some(Ok(message)) => {
                trouble.is_over();
                let written = message.payload().map(serde_json::from_slice::<Written>);
                match (written, message.timestamp().to_millis()) {
                    (Some(Ok(written)), Some(stamp_ms)) => orders.note(written, stamp_ms),
                    (None, _) => {}
                    _ => debug!(offset = message.offset(), "an order that cannot be read"),
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                trouble.is_over();
                orders.known.store(true, Ordering::Release);
            }
            Some(Err(error)) => {
                if let Some(reason) = super::client::fatal(reader.client()) {
                    anyhow::bail!("{reason}");
                }
                match error.rdkafka_error_code() {
                    // Not a cluster that is away, which is said elsewhere.
                    Some(code) if is_forbidden(code) => trouble.is(&error.to_string()),
                    _ => debug!(%error, "the reader of orders reports"),
                }
            }
        }
    }
    Ok(())
}

fn is_forbidden(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use super::super::waiting::{Parked, Waiting};
    use super::*;
    use crate::broker::envelope::Envelope;
    use crate::delivery::Delivery;
    use crate::event::{EventId, Headers, Origin, Place};

    fn order(deed: Deed, whose: &str) -> Written {
        let whose = match whose {
            "*" => Whose::All,
            name => Whose::Of {
                uid: Uid::of_config(name),
                name: name.into(),
            },
        };
        Written::of(&Order::new(deed, whose, None), WaitKind::Retry)
    }

    fn about(orders: &Orders, name: &str, stamp_ms: i64) -> Option<Deed> {
        orders.about(WaitKind::Retry, stamp_ms, name, &Uid::of_config(name))
    }

    #[test]
    fn an_order_is_about_what_was_parked_before_it() {
        let orders = Orders::default();
        orders.note(order(Deed::Now, "crm"), 1_000);
        assert_eq!(about(&orders, "crm", 1_000), Some(Deed::Now));
        assert_eq!(about(&orders, "crm", 1_001), None);
        assert_eq!(about(&orders, "erp", 900), None);
        let hold = orders.about(WaitKind::Hold, 900, "crm", &Uid::of_config("crm"));
        assert_eq!(hold, None);
        let renamed = orders.about(WaitKind::Retry, 900, "crm", &Uid::from_stored("x"));
        assert_eq!(renamed, Some(Deed::Now), "by its name");
    }

    #[test]
    fn a_later_order_to_send_revives_nothing_that_was_dropped() {
        let orders = Orders::default();
        orders.note(order(Deed::Drop, "crm"), 1_000);
        orders.note(order(Deed::Now, "*"), 2_000);
        assert_eq!(about(&orders, "crm", 500), Some(Deed::Drop));
        assert_eq!(about(&orders, "crm", 1_500), Some(Deed::Now));
        assert_eq!(about(&orders, "erp", 500), Some(Deed::Now));
    }

    #[test]
    fn old_orders_are_forgotten_and_there_are_only_so_many() {
        let orders = Orders::default();
        orders.note(order(Deed::Drop, "crm"), 1_000);
        let later = 1_000 + KEPT.as_millis() as i64;
        orders.note(order(Deed::Now, "erp"), later);
        assert_eq!(about(&orders, "crm", 500), None);
        for n in 0..MOST_RULES as i64 {
            orders.note(order(Deed::Now, &format!("s{n}")), later + n);
        }
        assert!(stamps(&orders.rules()).count() <= MOST_RULES);
    }

    #[test]
    fn an_order_is_about_what_was_moved_to_another_tier_meanwhile() {
        let event = crate::event::Event {
            id: EventId::random(),
            topic: "t".into(),
            kind: "t".into(),
            source: "s".into(),
            tenant: None,
            published_at: None,
            content_type: None,
            content_encoding: None,
            key: None,
            headers: Headers::default(),
            properties: Vec::new(),
            body: "x".into(),
            origin: Origin {
                broker: "b".into(),
                place: Place::Kafka {
                    topic: "t".into(),
                    partition: 0,
                    offset: 0,
                },
            },
        };
        let uid = Uid::of_config("crm");
        let delivery = Delivery::first(event.into(), "crm".into(), uid, jiff::Timestamp::now());
        let seconds = Duration::from_secs(10);
        let lying = |envelope, stamp_ms| Waiting {
            offset: 0,
            stamp_ms,
            due_ms: stamp_ms + 10_000,
            bytes: 1,
            parked: Parked::Delivery(Box::new(envelope)),
        };
        let parked = Envelope::parked(&delivery, WaitKind::Retry, seconds, seconds);
        let first = lying(parked.clone(), 1_000);
        let second = lying(first.moved(None).unwrap(), 11_000);
        let third = lying(second.moved(Some(15_000)).unwrap(), 16_000);
        let orders = Orders::default();
        orders.note(order(Deed::Now, "crm"), 5_000);
        for moved in [first, second, third] {
            assert_eq!(moved.ordered(&orders, WaitKind::Retry), Some(Deed::Now));
        }
        // Parked by an attempt since.
        let fresh = lying(parked, 16_000);
        assert_eq!(fresh.ordered(&orders, WaitKind::Retry), None);
    }

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let written = order(Deed::Drop, "crm");
        assert_eq!(written.key(), "retry.drop.config:crm");
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"kind":"retry","deed":"drop","uid":"config:crm","name":"crm"}"#
        );
        assert_eq!(serde_json::from_str::<Written>(&text).unwrap(), written);
    }
}
