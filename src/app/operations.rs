//! Operations, with what they need to know of the config: beside a bridge, and without one.
//!
//! Without one nothing is taken from the brokers and nothing declared on them. RabbitMQ and Kafka
//! are used beside whatever instances run elsewhere; the embedded broker's file is opened, and is
//! this process's alone for as long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::error;

use super::{Failure, brokers, registry};
use crate::broker::Broker;
use crate::config::Config;
use crate::decode::{self, Decoder};
use crate::delivery::Delivery;
use crate::journal::{Deed, Journal};
use crate::meters::Meters;
use crate::operations::subscriptions::each_kept;
use crate::operations::{Known, Operations};
use crate::pipeline::{Pipeline, Receiver, State, SubscriptionStatus};
use crate::store::Store;
use crate::subscription::{Endpoint, Spec, Subscription, Uid};

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
/// subscriptions it knows what the config says, and the store: those made over the API, paused, disabled.
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

    fn receiver_of(&self, delivery: &Delivery) -> Option<SubscriptionStatus> {
        self.0.subscription_of(delivery)
    }

    fn decoder(&self, source: &str) -> Option<Arc<Decoder>> {
        self.0.decoder(source)
    }

    fn listens(&self) -> bool {
        true
    }

    fn ordered(&self, deed: Deed, delivery: &Delivery, size_bytes: usize) {
        self.0.ordered(deed, delivery, size_bytes);
    }
}

/// The config's subscriptions and those made over the API, and their states; how sources decode.
struct OfConfig {
    described: BTreeMap<Arc<str>, Described>,
    decoders: BTreeMap<Arc<str>, Arc<Decoder>>,
}

struct Described {
    uid: Uid,
    spec: Spec,
    endpoint: Arc<Endpoint>,
    state: State,
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
        let of_config = config.subscriptions.iter().filter_map(|(name, spec)| {
            let endpoint = config.endpoints.get(&spec.endpoint)?.clone();
            Some((Uid::of_config(name), spec.clone(), endpoint))
        });
        let mut all: Vec<_> = of_config.collect();
        if let Some(store) = &store {
            each_kept(store, &registry::settings(config), |record, read| {
                // What cannot be used is not in force with a bridge running either.
                if let Ok(read) = read {
                    all.push((record.uid, read.spec, read.endpoint));
                }
            })?;
        }
        let mut described = BTreeMap::new();
        for (uid, spec, endpoint) in all {
            let state = state_of(&uid, &spec, &endpoint, store.as_ref())?;
            let one = Described {
                uid,
                endpoint,
                state,
                spec,
            };
            described.insert(one.spec.name.clone(), one);
        }
        Ok(Self {
            described,
            decoders: decoders(config),
        })
    }
}

/// Of the sources with `decode:`.
fn decoders(config: &Config) -> BTreeMap<Arc<str>, Arc<Decoder>> {
    let room = decode::Room::new(config.limits.in_flight_bytes / 2);
    let meters = Meters::new();
    let decoding = config.sources.iter().filter_map(|(name, source)| {
        let settings = source.decode.as_ref()?;
        let meters = meters.of_source(name);
        let decoder = brokers::decoder(name, settings, room.clone(), &meters);
        Some((name.clone(), Arc::new(decoder)))
    });
    decoding.collect()
}

fn state_of(
    uid: &Uid,
    spec: &Spec,
    endpoint: &Endpoint,
    store: Option<&Store>,
) -> Result<State, Failure> {
    let key = endpoint.agreement_key();
    if !spec.enabled {
        return Ok(State::Off);
    }
    let Some(store) = store else {
        return Ok(match key {
            Some(_) => State::Unverified,
            None => State::Active,
        });
    };
    let endpoint = store.endpoint_standing(&endpoint.name);
    let endpoint = endpoint.map_err(Failure::store)?;
    let agreed = endpoint.agreed.map(|agreement| agreement.key);
    if endpoint.disabled.is_some() {
        return Ok(State::Disabled);
    }
    let own = store.subscription_standing(uid);
    Ok(match own.map_err(Failure::store)?.paused {
        true => State::Paused,
        false if key.is_some() && key != agreed => State::Unverified,
        false => State::Active,
    })
}

impl Known for OfConfig {
    fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let status = |one: &Described| {
            SubscriptionStatus::of(one.uid.clone(), &one.spec, &one.endpoint, one.state)
        };
        self.described.values().map(status).collect()
    }

    fn receiver(&self, name: &str) -> Option<Receiver> {
        let one = self.described.get(name)?;
        // It has been compiled once to check it.
        let subscription =
            Subscription::compile(one.uid.clone(), one.spec.clone(), one.endpoint.clone()).ok()?;
        Some(Receiver::alone(subscription, one.state))
    }

    fn decoder(&self, source: &str) -> Option<Arc<Decoder>> {
        self.decoders.get(source).cloned()
    }
}
