//! Operations, with what they need to know of the config: beside a bridge, and without one.
//!
//! Without one nothing is taken from the brokers and nothing declared on them. RabbitMQ and Kafka
//! are used beside whatever instances run elsewhere; the embedded broker's file is opened, and is
//! this process's alone for as long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::error;

use super::{Failure, brokers};
use crate::broker::Broker;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::journal::{Deed, Journal};
use crate::meters::Meters;
use crate::operations::{Known, Operations};
use crate::pipeline::{Pipeline, Receiver, State, SubscriptionStatus};
use crate::store::Store;
use crate::subscription::{Spec, Subscription, Uid};

/// Those of a running bridge, which knows its subscriptions as they are.
pub fn of_pipeline(
    config: &Config,
    brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    pipeline: Arc<Pipeline>,
    journal: Journal,
) -> Arc<Operations> {
    let known = Arc::new(OfPipeline(pipeline));
    let sources = brokers::sources(config);
    Operations::knowing(brokers, elsewhere(config), sources, known, journal)
}

/// Those of a process that runs no bridge, over the brokers whose names are `wanted`. Of
/// subscriptions it knows what the config says, and the store: paused, disabled.
pub fn operations(
    config: &Config,
    wanted: impl Fn(&str) -> bool,
) -> Result<Arc<Operations>, Failure> {
    let mut built = BTreeMap::new();
    for name in config.brokers.keys().filter(|name| wanted(name)) {
        built.insert(name.clone(), brokers::without_sources(config, name)?);
    }
    let known = Arc::new(OfConfig::new(config)?);
    let sources = brokers::sources(config);
    Ok(Operations::knowing(
        built,
        elsewhere(config),
        sources,
        known,
        Journal::off(),
    ))
}

/// The same over the broker of `source`, with its sources, and over the one that keeps its
/// deliveries.
pub fn on_source(config: &Config, source: &str) -> Result<Arc<Operations>, Failure> {
    let sources = brokers::sources(config);
    let mut built = BTreeMap::new();
    if let Some(found) = sources.get(source) {
        let names: BTreeSet<_> = [&found.broker, &found.keeper].into();
        for name in names {
            built.insert(name.clone(), brokers::alone(config, name)?);
        }
    }
    let known = Arc::new(OfConfig::new(config)?);
    Ok(Operations::knowing(
        built,
        elsewhere(config),
        sources,
        known,
        Journal::off(),
    ))
}

/// Brokers that keep no deliveries.
fn elsewhere(config: &Config) -> BTreeSet<Arc<str>> {
    let brokers = config.brokers.iter();
    brokers
        .filter(|(_, broker)| broker.retries_on.is_some())
        .map(|(name, _)| name.clone())
        .collect()
}

/// A running pipeline's subscriptions.
struct OfPipeline(Arc<Pipeline>);

impl Known for OfPipeline {
    fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        self.0.subscriptions()
    }

    fn receiver(&self, name: &str) -> Option<Receiver> {
        self.0.receiver(name).unwrap_or_else(|error| {
            error!(subscription = name, %error, "a subscription in use does not compile");
            None
        })
    }

    fn listens(&self) -> bool {
        true
    }

    fn ordered(&self, deed: Deed, delivery: &Delivery, size_bytes: usize) {
        self.0.ordered(deed, delivery, size_bytes);
    }
}

/// The config's subscriptions, and their states.
struct OfConfig {
    config: Config,
    states: BTreeMap<Arc<str>, State>,
}

impl OfConfig {
    /// The store is let go of again. Without one no bridge has ever run here, and nothing is paused
    /// or disabled.
    fn new(config: &Config) -> Result<Self, Failure> {
        let store = match Store::is_in(&config.data_dir) {
            true => {
                let meters = Meters::new();
                let (bytes, flush) = (meters.store_bytes.clone(), meters.store_flush.clone());
                Some(Store::open(&config.data_dir, bytes, flush)?)
            }
            false => None,
        };
        let mut states = BTreeMap::new();
        for (name, spec) in &config.subscriptions {
            let endpoint = config.endpoints.get(&spec.endpoint);
            let key = endpoint.and_then(|endpoint| endpoint.agreement_key());
            states.insert(name.clone(), state_of(spec, key, store.as_ref())?);
        }
        let config = config.clone();
        Ok(Self { config, states })
    }
}

/// `key`: what the endpoint has to have agreed to.
fn state_of(spec: &Spec, key: Option<String>, store: Option<&Store>) -> Result<State, Failure> {
    if !spec.enabled {
        return Ok(State::Off);
    }
    let Some(store) = store else {
        return Ok(match key {
            Some(_) => State::Unverified,
            None => State::Active,
        });
    };
    let endpoint = store.endpoint_standing(&spec.endpoint);
    let endpoint = endpoint.map_err(Failure::store)?;
    let agreed = endpoint.agreed.map(|agreement| agreement.key);
    if endpoint.disabled.is_some() {
        return Ok(State::Disabled);
    }
    let own = store.subscription_standing(&Uid::of_config(&spec.name));
    Ok(match own.map_err(Failure::store)?.paused {
        true => State::Paused,
        false if key.is_some() && key != agreed => State::Unverified,
        false => State::Active,
    })
}

impl Known for OfConfig {
    fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let status = |(name, state): (&Arc<str>, &State)| {
            let spec = self.config.subscriptions.get(name)?;
            let endpoint = self.config.endpoints.get(&spec.endpoint)?;
            let uid = Uid::of_config(name);
            Some(SubscriptionStatus::of(uid, spec, endpoint, *state))
        };
        self.states.iter().filter_map(status).collect()
    }

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
