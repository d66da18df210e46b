//! Operations: what people do with deliveries and events after the fact.
//!
//! Dead letters are listed and sent again, parked deliveries brought forward, a span of time
//! replayed. The admin API and the command line call the same functions, so that they cannot
//! differ; what takes long is a [`Job`], which has a rate, shows its progress and can be cancelled.

pub mod dead;
pub mod job;
pub mod retention;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use job::{Job, Jobs, Pace, Report, State};

use crate::broker::Broker;
use crate::delivery::Delivery;
use crate::pipeline::SubscriptionStatus;

/// What the operations work on.
pub struct Operations {
    /// By name in the config.
    pub brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    /// Those whose deliveries are kept on another broker (`retries_on`), so that nothing of ours
    /// lies on them.
    elsewhere: BTreeSet<Arc<str>>,
    known: Arc<Known>,
    pub jobs: Jobs,
}

/// Tells which subscriptions there are now.
pub type Known = dyn Fn() -> Vec<SubscriptionStatus> + Send + Sync;

impl Operations {
    /// Over these brokers, each of which keeps its own deliveries; no subscription is known.
    pub fn new(brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>) -> Arc<Self> {
        Self::knowing(brokers, BTreeSet::new(), Arc::new(Vec::new))
    }

    pub fn knowing(
        brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
        elsewhere: BTreeSet<Arc<str>>,
        known: Arc<Known>,
    ) -> Arc<Self> {
        Arc::new(Self {
            brokers,
            elsewhere,
            known,
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
