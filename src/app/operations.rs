//! Operations, with what they need to know of the config: beside a bridge, and without one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Failure, brokers};
use crate::broker::Broker;
use crate::config::Config;
use crate::operations::Operations;
use crate::pipeline::{Pipeline, State, SubscriptionStatus};
use crate::subscription::Uid;

/// Those of a running bridge, which knows its subscriptions as they are.
pub fn of_pipeline(
    config: &Config,
    brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    pipeline: Arc<Pipeline>,
) -> Arc<Operations> {
    let known = Arc::new(move || pipeline.subscriptions());
    Operations::knowing(brokers, elsewhere(config), known)
}

/// Those of a process that runs no bridge, over the brokers whose names are `wanted`: nothing is
/// taken from them or declared on them. Of subscriptions it knows what the config says.
pub fn operations(
    config: &Config,
    wanted: impl Fn(&str) -> bool,
) -> Result<Arc<Operations>, Failure> {
    let mut built = BTreeMap::new();
    for name in config.brokers.keys().filter(|name| wanted(name)) {
        built.insert(name.clone(), brokers::without_sources(config, name)?);
    }
    let status = |(name, spec): (&Arc<str>, &crate::subscription::Spec)| {
        let endpoint = config.endpoints.get(&spec.endpoint)?;
        let state = match spec.enabled {
            true => State::Active,
            false => State::Off,
        };
        let uid = Uid::of_config(name);
        Some(SubscriptionStatus::of(uid, spec, endpoint, state))
    };
    let known: Vec<_> = config.subscriptions.iter().filter_map(status).collect();
    let known = Arc::new(move || known.clone());
    Ok(Operations::knowing(built, elsewhere(config), known))
}

/// Brokers that keep no deliveries.
fn elsewhere(config: &Config) -> BTreeSet<Arc<str>> {
    let brokers = config.brokers.iter();
    brokers
        .filter(|(_, broker)| broker.retries_on.is_some())
        .map(|(name, _)| name.clone())
        .collect()
}
