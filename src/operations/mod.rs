//! Operations: what people do with deliveries and events after the fact.
//!
//! Dead letters are listed and sent again, parked deliveries brought forward, a span of time
//! replayed. The admin API and the command line call the same functions, so that they cannot
//! differ; what takes long is a [`Job`], which has a rate, shows its progress and can be cancelled.

pub mod job;
pub mod replay;
pub mod sources;
pub mod when;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use job::{Job, Jobs, Pace, Report, State};

use crate::broker::Broker;
use crate::pipeline::Receiver;
use sources::Source;

/// What the operations work on.
pub struct Operations {
    /// By name in the config.
    pub brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    pub sources: BTreeMap<Arc<str>, Source>,
    pub receivers: Arc<dyn Receivers>,
    pub jobs: Jobs,
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

impl Operations {
    /// Over these brokers alone, without sources and subscriptions.
    pub fn new(brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>) -> Arc<Self> {
        Self::over(brokers, BTreeMap::new(), Arc::new(()))
    }

    pub fn over(
        brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
        sources: BTreeMap<Arc<str>, Source>,
        receivers: Arc<dyn Receivers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            brokers,
            sources,
            receivers,
            jobs: Jobs::default(),
        })
    }
}
