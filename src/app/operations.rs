//! Operations, with what they need to know of the config: beside a bridge, and without one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::subscriptions::OfPipeline;
use super::{Failure, brokers};
use crate::broker::Broker;
use crate::config::Config;
use crate::meters::Meters;
use crate::operations::{Operations, Past, Receivers};
use crate::pipeline::{Pipeline, Receiver, State, SubscriptionStatus};
use crate::store::Store;
use crate::subscription::{Subscription, Uid};

/// Those of a running bridge, which knows its subscriptions as they are.
pub fn of_pipeline(
    config: &Config,
    brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    pipeline: Arc<Pipeline>,
) -> Arc<Operations> {
    let past = Past {
        sources: brokers::sources(config),
        receivers: Arc::new(OfPipeline(pipeline.clone())),
    };
    let known = Arc::new(move || pipeline.subscriptions());
    Operations::knowing(brokers, elsewhere(config), known, past)
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
    Ok(alone(config, built, Past::default()))
}

/// The same for replays, over the broker of `source` and over the one that keeps its deliveries.
/// Whether a subscription is paused or disabled the store knows, and is asked.
pub fn on_source(config: &Config, source: &str) -> Result<Arc<Operations>, Failure> {
    let sources = brokers::sources(config);
    let mut built = BTreeMap::new();
    if let Some(found) = sources.get(source) {
        let names: BTreeSet<_> = [&found.broker, &found.keeper].into();
        for name in names {
            built.insert(name.clone(), brokers::alone(config, name)?);
        }
    }
    let receivers = Arc::new(OfConfig::read(config)?);
    Ok(alone(config, built, Past { sources, receivers }))
}

fn alone(
    config: &Config,
    built: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    past: Past,
) -> Arc<Operations> {
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
    Operations::knowing(built, elsewhere(config), known, past)
}

/// Brokers that keep no deliveries.
fn elsewhere(config: &Config) -> BTreeSet<Arc<str>> {
    let brokers = config.brokers.iter();
    brokers
        .filter(|(_, broker)| broker.retries_on.is_some())
        .map(|(name, _)| name.clone())
        .collect()
}

/// The config's subscriptions, with what the store knows of them.
struct OfConfig {
    config: Config,
    states: BTreeMap<Arc<str>, State>,
}

impl OfConfig {
    fn read(config: &Config) -> Result<Self, Failure> {
        let mut states = BTreeMap::new();
        // Without a data folder no bridge has ever run here, and nothing is paused or disabled.
        let store = match config.data_dir.exists() {
            true => {
                let meters = Meters::new();
                let (bytes, flush) = (meters.store_bytes.clone(), meters.store_flush.clone());
                Some(Store::open(&config.data_dir, bytes, flush)?)
            }
            false => None,
        };
        for (name, spec) in &config.subscriptions {
            let state = match &store {
                _ if !spec.enabled => State::Off,
                None => State::Active,
                Some(store) => {
                    let endpoint = store.endpoint_standing(&spec.endpoint);
                    let own = store.subscription_standing(&Uid::of_config(name));
                    if endpoint.map_err(Failure::store)?.disabled.is_some() {
                        State::Disabled
                    } else if own.map_err(Failure::store)?.paused {
                        State::Paused
                    } else {
                        State::Active
                    }
                }
            };
            states.insert(name.clone(), state);
        }
        Ok(Self {
            config: config.clone(),
            states,
        })
    }
}

impl Receivers for OfConfig {
    fn receiver(&self, name: &str) -> Option<Receiver> {
        let (name, spec) = self.config.subscriptions.get_key_value(name)?;
        let endpoint = self.config.endpoints.get(&spec.endpoint)?.clone();
        // The config has compiled it once to check it.
        let uid = Uid::of_config(name);
        let subscription = Subscription::compile(uid, spec.clone(), endpoint).ok()?;
        let state = self.states.get(name).copied()?;
        Some(Receiver::alone(subscription, state))
    }
}
