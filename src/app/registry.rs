//! Subscriptions made over the API, read by the config that is in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::config::{self, Asked, Config, Referred};
use crate::operations::subscriptions::{Mistake, Read, Reader, Settings};
use crate::store::{Key, Keys};
use crate::subscription::{Endpoint, Scheme, Uid};

/// What a config gives.
pub fn settings(config: &Config) -> Settings {
    let keys = config.store_keys.iter();
    // They have been read once to check them.
    let keys = keys
        .filter_map(|key| Key::read(key.expose()).ok())
        .collect();
    Settings {
        reader: Arc::new(OfConfig {
            referred: config.referred.clone(),
            endpoints: config.endpoints.clone(),
            names: config.subscriptions.keys().cloned().collect(),
        }),
        keys: Keys::new(keys),
    }
}

struct OfConfig {
    referred: Referred,
    endpoints: BTreeMap<Arc<str>, Arc<Endpoint>>,
    /// Of the config's own subscriptions.
    names: BTreeSet<Arc<str>>,
}

impl Reader for OfConfig {
    fn read(&self, asked: &[(&Uid, &Value)]) -> Vec<Result<Read, Vec<Mistake>>> {
        let asked = asked.iter();
        let asked: Vec<_> = asked
            .map(|(uid, document)| Asked { uid, document })
            .collect();
        let read = self.referred.read(&asked).into_iter();
        read.map(|one| match one {
            Ok(one) => self.with_endpoint(one),
            Err(mistakes) => Err(mistakes.into_iter().map(mistake).collect()),
        })
        .collect()
    }

    fn unsigned(&self, document: &Value) -> Option<Scheme> {
        self.referred.unsigned(document)
    }

    fn masked(&self, document: &Value) -> Value {
        config::shown(document)
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

impl OfConfig {
    fn with_endpoint(&self, one: config::One) -> Result<Read, Vec<Mistake>> {
        let config::One { spec, endpoint } = one;
        let shared = || self.endpoints.get(&spec.endpoint).cloned();
        match endpoint.map(Arc::new).or_else(shared) {
            Some(endpoint) => Ok(Read { spec, endpoint }),
            // An endpoint in a subscription of the config is nobody else's, and not known by its name.
            None => Err(vec![Mistake {
                pointer: "/endpoint".to_owned(),
                message: format!("there is no endpoint `{}`", spec.endpoint),
                help: None,
            }]),
        }
    }
}

fn mistake(of: config::Mistake) -> Mistake {
    let config::Mistake {
        pointer,
        message,
        help,
    } = of;
    Mistake {
        pointer,
        message,
        help,
    }
}
