//! With no bridge running: what a command needs to work on the brokers by itself.
//!
//! Nothing is taken from them and nothing declared on them. RabbitMQ and Kafka are used beside
//! whatever instances run elsewhere; the embedded broker's file is opened, and is this process's
//! alone for as long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Failure, brokers};
use crate::config::Config;
use crate::meters::Meters;
use crate::operations::{Operations, Receivers};
use crate::pipeline::{Receiver, State};
use crate::store::Store;
use crate::subscription::{Subscription, Uid};

/// The operations over the broker of `source`, and over the one that keeps its deliveries.
pub fn on_source(config: &Config, source: &str) -> Result<Arc<Operations>, Failure> {
    let sources = brokers::sources(config);
    let mut opened = BTreeMap::new();
    if let Some(found) = sources.get(source) {
        let names: BTreeSet<_> = [&found.broker, &found.keeper].into();
        for name in names {
            opened.insert(name.clone(), brokers::alone(config, name)?);
        }
    }
    let receivers = OfConfig::read(config)?;
    Ok(Operations::over(opened, sources, Arc::new(receivers)))
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
