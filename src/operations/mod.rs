//! Operations: what people do with deliveries and events after the fact.
//!
//! Dead letters are listed and sent again, parked deliveries brought forward, a span of time
//! replayed. The admin API and the command line call the same functions, so that they cannot
//! differ; what takes long is a [`Job`], which has a rate, shows its progress and can be cancelled.

pub mod dead;
pub mod job;
pub mod replay;
pub mod sources;
pub mod when;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use job::{Job, Jobs, Pace, Report, State};

use crate::broker::Broker;
use crate::delivery::Delivery;
use crate::pipeline::{Receiver, SubscriptionStatus};
use sources::Source;

/// What the operations work on.
pub struct Operations {
    /// By name in the config.
    pub brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    /// Those whose deliveries are kept on another broker (`retries_on`), so that nothing of ours
    /// lies on them.
    elsewhere: BTreeSet<Arc<str>>,
    known: Arc<Known>,
    pub past: Past,
    pub jobs: Jobs,
}

/// What replays work on: where events come from, and who gets them.
pub struct Past {
    /// By name in the config.
    pub sources: BTreeMap<Arc<str>, Source>,
    pub receivers: Arc<dyn Receivers>,
}

/// Those who know the subscriptions as they are now.
pub trait Receivers: Send + Sync + 'static {
    /// The subscription of this name.
    fn receiver(&self, name: &str) -> Option<Receiver>;
}

/// Nobody: for where there are no subscriptions.
impl Receivers for () {
    fn receiver(&self, _: &str) -> Option<Receiver> {
        None
    }
}

impl Default for Past {
    /// There is none.
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            receivers: Arc::new(()),
        }
    }
}

/// Tells which subscriptions there are now.
pub type Known = dyn Fn() -> Vec<SubscriptionStatus> + Send + Sync;

impl Operations {
    /// Over these brokers, each of which keeps its own deliveries; no subscription is known.
    pub fn new(brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>) -> Arc<Self> {
        Self::knowing(
            brokers,
            BTreeSet::new(),
            Arc::new(Vec::new),
            Past::default(),
        )
    }

    pub fn knowing(
        brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
        elsewhere: BTreeSet<Arc<str>>,
        known: Arc<Known>,
        past: Past,
    ) -> Arc<Self> {
        Arc::new(Self {
            brokers,
            elsewhere,
            known,
            past,
            jobs: Jobs::default(),
        })
    }

    /// The subscriptions as they are now, by name.
    pub fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        (self.known)()
    }

    /// The brokers on which deliveries wait and end.
    pub fn keepers(&self) -> impl Iterator<Item = &Arc<dyn Broker>> {
        let here = |(name, _): &(&Arc<str>, _)| !self.elsewhere.contains(*name);
        self.brokers.iter().filter(here).map(|(_, broker)| broker)
    }
}

/// The subscription that `delivery` is for, as the pipeline would find it when it comes back.
pub fn receiver_of<'a>(
    delivery: &Delivery,
    known: &'a [SubscriptionStatus],
) -> Option<&'a SubscriptionStatus> {
    let same = known.iter().find(|one| one.uid == delivery.uid);
    same.or_else(|| {
        let was = |one: &&SubscriptionStatus| one.was.contains(&delivery.subscription);
        known.iter().find(was)
    })
}
