//! Operations: what people do with deliveries and events after the fact.
//!
//! Dead letters are listed and sent again, parked deliveries brought forward, a span of time
//! replayed; subscriptions are made and changed. The admin API and the command line call the same functions, so that they cannot
//! differ; what takes long is a [`Job`], which has a rate, shows its progress and can be cancelled.

mod audit;
pub mod dead;
pub mod doctor;
pub mod job;
mod letters;
pub mod parked;
pub mod replay;
pub mod retention;
mod said;
pub mod settings;
pub mod sources;
pub mod subscriptions;
pub mod topology;
pub mod trace;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use audit::Audit;
pub use job::{Job, Jobs, Pace, Report, State};
pub use trace::{Keeper, Traces};

use arc_swap::ArcSwap;

use crate::broker::Broker;
use crate::decode::Decoder;
use crate::delivery::Delivery;
use crate::journal::{self, Journal};
use crate::pipeline::{Receiver, SubscriptionStatus};
use sources::Sources;

/// What the operations work on.
pub struct Operations {
    /// By name in the config.
    pub brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    /// Those whose deliveries are kept on another broker (`retries_on`), so that nothing of ours
    /// lies on them.
    elsewhere: BTreeSet<Arc<str>>,
    sources: ArcSwap<Sources>,
    known: Arc<dyn Known>,
    /// Where it is recorded what was done; off where no bridge runs.
    journal: Journal,
    pub jobs: Jobs,
}

/// Those who know the subscriptions as they are now.
pub trait Known: Send + Sync + 'static {
    fn subscriptions(&self) -> Vec<SubscriptionStatus>;

    /// The subscription of this name, to make deliveries for it.
    fn receiver(&self, name: &str) -> Option<Receiver>;

    /// The subscription that `delivery` is for, as the pipeline would find it when it comes back.
    fn receiver_of(&self, delivery: &Delivery) -> Option<SubscriptionStatus> {
        let all = self.subscriptions();
        let same = all.iter().find(|one| one.uid == delivery.uid);
        let found = same.or_else(|| {
            let was = |one: &&SubscriptionStatus| one.was.contains(&delivery.subscription);
            all.iter().find(was)
        });
        found.filter(|one| one.tenant == delivery.tenant).cloned()
    }

    /// How events of `source` are decoded, if they are.
    fn decoder(&self, _source: &str) -> Option<Arc<Decoder>> {
        None
    }

    /// Whether [`Known::ordered`] is of use to anybody.
    fn listens(&self) -> bool {
        false
    }

    /// This was done to a delivery of so many bytes that waits on a broker, or does so now.
    fn ordered(&self, _: journal::Deed, _: &Delivery, _: usize) {}
}

/// Nobody: for where there are no subscriptions.
impl Known for () {
    fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        Vec::new()
    }

    fn receiver(&self, _: &str) -> Option<Receiver> {
        None
    }
}

impl Operations {
    /// Over these brokers alone, each of which keeps its own deliveries.
    pub fn new(brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>) -> Arc<Self> {
        let journal = Journal::off();
        Self::knowing(
            brokers,
            BTreeSet::new(),
            BTreeMap::new(),
            Arc::new(()),
            journal,
        )
    }

    pub fn knowing(
        brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
        elsewhere: BTreeSet<Arc<str>>,
        sources: Sources,
        known: Arc<dyn Known>,
        journal: Journal,
    ) -> Arc<Self> {
        Arc::new(Self {
            brokers,
            elsewhere,
            sources: ArcSwap::from_pointee(sources),
            known,
            journal,
            jobs: Jobs::default(),
        })
    }

    /// The sources as they are now.
    pub fn sources(&self) -> Arc<Sources> {
        self.sources.load_full()
    }

    /// These are the sources from now on.
    pub fn set_sources(&self, sources: Sources) {
        self.sources.store(Arc::new(sources));
    }

    /// The subscriptions as they are now, by name.
    pub fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        self.known.subscriptions()
    }

    /// The subscription of this name, to make deliveries for it.
    pub fn receiver(&self, name: &str) -> Option<Receiver> {
        self.known.receiver(name)
    }

    /// The subscription that `delivery` is for.
    pub fn receiver_of(&self, delivery: &Delivery) -> Option<SubscriptionStatus> {
        self.known.receiver_of(delivery)
    }

    /// How events of `source` are decoded, if they are.
    pub fn decoder(&self, source: &str) -> Option<Arc<Decoder>> {
        self.known.decoder(source)
    }

    /// The brokers on which deliveries wait and end.
    pub fn keepers(&self) -> impl Iterator<Item = &Arc<dyn Broker>> {
        let here = |(name, _): &(&Arc<str>, _)| !self.elsewhere.contains(*name);
        self.brokers.iter().filter(here).map(|(_, broker)| broker)
    }

    /// Records what was done to a delivery on broker `on` as somebody ordered it, and tells those
    /// who count what waits. `size_bytes` is its event's, whose body may be missing here.
    fn note(
        &self,
        deed: journal::Deed,
        (delivery, size_bytes): (&Delivery, usize),
        on: &str,
        other: &str,
    ) {
        self.journal.ordered(delivery, deed, on, other);
        self.known.ordered(deed, delivery, size_bytes);
    }
}
