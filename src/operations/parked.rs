//! Parked deliveries: what waits, brought forward, or dropped.
//!
//! An order is a job that goes to one broker after the other; what the brokers do with it is told in
//! [`crate::broker::parked`]. When a subscription that was paused or disabled takes deliveries again,
//! those that were held for it are brought forward in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::job::TooMany;
use super::{Job, Operations};
use crate::broker::Broker;
use crate::broker::parked::{Deed, Follow, Order, Unwatched, Waiting, Whose};
use crate::delivery::{Delivery, WaitKind};
use crate::journal;
use crate::pipeline::{self, State, SubscriptionStatus};
use crate::subscription::Uid;

/// A list is complete within this, or a broker is said not to answer.
const LIST_WITHIN: Duration = Duration::from_secs(25);
/// Bringing holds forward in the background is given up after this; they come by themselves.
const HOLDS_WITHIN: Duration = Duration::from_secs(60);
/// With more messages than this to be moved, holds are left to come by themselves.
const MOST_MOVED: u64 = 10_000;

/// A row of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Parked)]
pub struct Row {
    pub broker: Arc<str>,
    pub kind: WaitKind,
    /// The tier's delay, where the broker has tiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier_seconds: Option<u64>,
    /// Where the broker can tell whose they are without being disturbed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    pub count: u64,
    /// There are more: the count was not finished in time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
    /// When the oldest was put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Timestamp>,
    /// When the first one will be due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_due: Option<Timestamp>,
}

/// Everything that is parked, and the brokers that do not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ParkedListing)]
pub struct Listing {
    pub parked: Vec<Row>,
    /// Of each subscription, as far as one instance has seen; for brokers that do not tell whose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen_here: Vec<Seen>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_told: Vec<NotTold>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ParkedSeen)]
pub struct Seen {
    pub subscription: Arc<str>,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = NotTold)]
pub struct NotTold {
    pub broker: Arc<str>,
    pub why: String,
}

/// What is parked on these brokers (on all, without a name).
pub async fn list(operations: &Operations, broker: Option<&str>) -> anyhow::Result<Listing> {
    let mut listing = Listing::default();
    let asked = chosen(operations, broker)?.into_iter();
    // All at once: one that hangs does not use up the others' time.
    let asked = asked.map(async |(name, broker)| {
        let told = timeout(LIST_WITHIN, broker.parked()).await;
        (name, told)
    });
    for (name, told) in join_all(asked).await {
        match told {
            Ok(Ok(rows)) => listing
                .parked
                .extend(rows.into_iter().map(|row| of_broker(&name, row))),
            Ok(Err(refused)) => listing.not_told.push(NotTold {
                broker: name,
                why: refused.to_string(),
            }),
            Err(_) => listing.not_told.push(NotTold {
                broker: name,
                why: format!("no answer within {LIST_WITHIN:?}"),
            }),
        }
    }
    Ok(listing)
}

fn of_broker(broker: &Arc<str>, row: Waiting) -> Row {
    let Waiting {
        kind,
        tier_seconds,
        subscription,
        count,
        at_least,
        oldest,
        next_due,
    } = row;
    let (subscription, uid) = subscription.unzip();
    Row {
        broker: broker.clone(),
        kind,
        tier_seconds,
        subscription,
        uid,
        count,
        at_least,
        oldest,
        next_due,
    }
}

impl Listing {
    /// How many an order is about, and whether all brokers told whose theirs are. Where one did not,
    /// it is the most that they can be.
    pub fn preview(&self, order: &Order, broker: Option<&str>) -> (u64, bool) {
        let rows = self.parked.iter().filter(|row| {
            order.kind.is_none_or(|kind| kind == row.kind)
                && broker.is_none_or(|broker| broker == &*row.broker)
        });
        let (mut count, mut exact) = (0, self.not_told.is_empty());
        for row in rows {
            let meant = match (&row.subscription, &row.uid) {
                (Some(name), Some(uid)) => order.whose.includes_of(uid, name),
                _ => {
                    exact &= order.whose == Whose::All;
                    true
                }
            };
            if meant {
                count += row.count;
                exact &= !row.at_least;
            }
        }
        (count, exact)
    }
}

/// The subscription that an order names, as those who keep subscriptions know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub uid: Uid,
    /// Why nothing would be sent to it now: `paused`, `disabled`, `not enabled`.
    pub halted: Option<&'static str>,
}

impl Known {
    /// The subscription of this name among all of them.
    pub fn of(all: &[SubscriptionStatus], name: &str) -> Option<Self> {
        let one = all.iter().find(|one| &*one.name == name)?;
        Some(Self {
            uid: one.uid.clone(),
            halted: match one.state {
                State::Active => None,
                State::Paused => Some("paused"),
                State::Disabled => Some("disabled"),
                State::Unverified => Some("not verified yet"),
                State::Off => Some("not enabled"),
            },
        })
    }
}

/// Why an order is not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOrdered {
    #[error("there is no subscription `{0}` (force: deliveries that carry this name all the same)")]
    Unknown(String),
    #[error(
        "subscription `{name}` is {why}: its deliveries would be held again at once (resume or enable it, or force)"
    )]
    Halted { name: String, why: &'static str },
}

/// Whose deliveries an order for subscription `name` is about. Without `force` it has to be known,
/// and to take deliveries when they are to be sent now.
pub fn whose(
    name: &str,
    known: Option<Known>,
    deed: Deed,
    force: bool,
) -> Result<Whose, NotOrdered> {
    let uid = match known {
        Some(Known {
            halted: Some(why), ..
        }) if deed == Deed::Now && !force => {
            return Err(NotOrdered::Halted {
                name: name.to_owned(),
                why,
            });
        }
        Some(known) => known.uid,
        None if force => Uid::of_config(name),
        None => return Err(NotOrdered::Unknown(name.to_owned())),
    };
    Ok(Whose::Of {
        uid,
        name: name.into(),
    })
}

/// Starts carrying out an order on a broker, or on all of them.
pub fn start(
    operations: &Arc<Operations>,
    broker: Option<&str>,
    order: Order,
) -> anyhow::Result<Result<Arc<Job>, TooMany>> {
    let brokers = chosen(operations, broker)?;
    let operation = match order.deed {
        Deed::Now => "parked_now",
        Deed::Drop => "parked_drop",
    };
    info!(order = order.deed.as_str(), whose = ?order.whose, kind = ?order.kind, "an order about parked deliveries");
    let by = operations.clone();
    let started = operations
        .jobs
        .start(operation, |job| carry_out(brokers, order, job, by));
    Ok(started)
}

type Chosen = Vec<(Arc<str>, Arc<dyn Broker>)>;

fn chosen(operations: &Operations, broker: Option<&str>) -> anyhow::Result<Chosen> {
    let all = operations.brokers.iter();
    let chosen: Chosen = all
        .filter(|(name, _)| broker.is_none_or(|only| only == &***name))
        .map(|(name, broker)| (name.clone(), broker.clone()))
        .collect();
    if let Some(name) = broker.filter(|_| chosen.is_empty()) {
        bail!("there is no broker `{name}`");
    }
    Ok(chosen)
}

async fn carry_out(
    brokers: Chosen,
    order: Order,
    job: Arc<Job>,
    operations: Arc<Operations>,
) -> anyhow::Result<()> {
    let mut watch = OfJob {
        job: job.clone(),
        total: AtomicU64::new(0),
        operations,
        deed: pipeline::recorded(order.deed),
        on: "".into(),
    };
    let mut failed = None;
    for (name, broker) in brokers {
        if job.cancelled().is_cancelled() {
            break;
        }
        watch.on = name.clone();
        let done = broker.order(&order, &watch).await;
        if let Err(refused) = done.with_context(|| format!("broker `{name}`")) {
            warn!(broker = %name, error = format!("{refused:#}"), "an order about parked deliveries was not carried out");
            failed.get_or_insert(refused);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A job watches an order.
struct OfJob {
    job: Arc<Job>,
    total: AtomicU64,
    operations: Arc<Operations>,
    deed: journal::Deed,
    /// The broker that carries it out.
    on: Arc<str>,
}

impl Follow for OfJob {
    fn expects(&self, more: u64) {
        let before = self.total.fetch_add(more, Ordering::Relaxed);
        self.job.expects(before + more);
    }

    fn saw(&self, meant: bool) {
        self.job.saw();
        if meant {
            self.job.did();
        }
    }

    fn records(&self) -> bool {
        self.operations.known.listens()
    }

    fn did(&self, delivery: &Delivery, size_bytes: usize) {
        let done = (delivery, size_bytes);
        self.operations.note(self.deed, done, &self.on, "");
    }

    fn note(&self, note: String) {
        self.job.note(format!("broker `{}`: {note}", self.on));
    }

    fn cancelled(&self) -> &CancellationToken {
        self.job.cancelled()
    }
}

/// Brings forward what is held for a subscription that takes deliveries again. At best: what cannot
/// be brought forward comes back by itself within a minute.
pub async fn release_holds(operations: &Operations, name: &Arc<str>, uid: Uid) {
    let order = Order {
        most: Some(MOST_MOVED),
        ..Order::new(
            Deed::Now,
            Whose::Of {
                uid,
                name: name.clone(),
            },
            Some(WaitKind::Hold),
        )
    };
    for (broker_name, broker) in &operations.brokers {
        let watch = Unwatched::default();
        let mut ordering = broker.order(&order, &watch);
        let ordered = match timeout(HOLDS_WITHIN, &mut ordering).await {
            // What is being moved just then is moved to its end.
            Err(_) => {
                watch.cancelled().cancel();
                timeout(HOLDS_WITHIN, ordering).await
            }
            in_time => in_time,
        };
        let why = match ordered {
            Ok(Ok(done)) => {
                info!(subscription = %name, broker = %broker_name, count = done.count, "what was held is due now");
                continue;
            }
            Ok(Err(refused)) => refused.to_string(),
            Err(_) => format!("not done within {HOLDS_WITHIN:?}"),
        };
        info!(subscription = %name, broker = %broker_name, %why, "what was held comes back by itself, within a minute");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(halted: Option<&'static str>) -> Option<Known> {
        let uid = Uid::of_config("crm");
        Some(Known { uid, halted })
    }

    #[test]
    fn nothing_is_sent_now_to_who_would_not_get_it() {
        let halted = whose("crm", known(Some("paused")), Deed::Now, false).unwrap_err();
        assert_eq!(
            halted.to_string(),
            "subscription `crm` is paused: its deliveries would be held again at once (resume or enable it, or force)"
        );
        assert!(whose("crm", known(Some("paused")), Deed::Now, true).is_ok());
        assert!(whose("crm", known(Some("paused")), Deed::Drop, false).is_ok());
        assert!(whose("crm", known(None), Deed::Now, false).is_ok());
        let unknown = whose("crm", None, Deed::Drop, false);
        assert_eq!(unknown, Err(NotOrdered::Unknown("crm".into())));
        assert!(whose("crm", None, Deed::Drop, true).is_ok());
    }

    fn row(kind: WaitKind, subscription: Option<&str>, count: u64) -> Row {
        Row {
            broker: "shop".into(),
            kind,
            tier_seconds: Some(60),
            subscription: subscription.map(Into::into),
            uid: subscription.map(Uid::of_config),
            count,
            at_least: false,
            oldest: None,
            next_due: None,
        }
    }

    #[test]
    fn a_preview_says_whether_it_is_exact() {
        let mut listing = Listing {
            parked: vec![
                row(WaitKind::Retry, Some("crm"), 3),
                row(WaitKind::Hold, Some("crm"), 2),
                row(WaitKind::Retry, Some("erp"), 5),
            ],
            ..Listing::default()
        };
        let of_crm = |kind| {
            Order::new(
                Deed::Now,
                whose("crm", known(None), Deed::Now, false).unwrap(),
                kind,
            )
        };
        assert_eq!(listing.preview(&of_crm(None), None), (5, true));
        let retries = of_crm(Some(WaitKind::Retry));
        assert_eq!(listing.preview(&retries, None), (3, true));
        assert_eq!(listing.preview(&retries, Some("other")), (0, true));
        listing.parked.push(row(WaitKind::Retry, None, 10));
        assert_eq!(listing.preview(&retries, None), (13, false));
        let all = Order::new(Deed::Now, Whose::All, None);
        assert_eq!(listing.preview(&all, None), (20, true));
    }
}
