//! Operations: what people do with deliveries and events after the fact.
//!
//! Dead letters are listed and sent again, parked deliveries brought forward, a span of time
//! replayed. The admin API and the command line call the same functions, so that they cannot
//! differ; what takes long is a [`Job`], which has a rate, shows its progress and can be cancelled.

pub mod job;
pub mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use job::{Job, Jobs, Pace, Report, State};

use crate::broker::Broker;

/// What the operations work on.
pub struct Operations {
    /// By name in the config.
    pub brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    pub jobs: Jobs,
}

impl Operations {
    pub fn new(brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>) -> Arc<Self> {
        Arc::new(Self {
            brokers,
            jobs: Jobs::default(),
        })
    }
}
