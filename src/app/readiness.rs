//! Readiness: what `/readyz` says, component by component. A dead receiver never flips it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reload::Reloader;
use crate::admin::{Component, Condition, Readiness};
use crate::broker::{Broker, Health};
use crate::operations::subscriptions::Registry;
use crate::pipeline::Pipeline;
use crate::store::Store;

/// A function that looks at all components now.
pub fn of(
    brokers: &BTreeMap<Arc<str>, Arc<dyn Broker>>,
    store: &Arc<Store>,
    pipeline: &Arc<Pipeline>,
    sharing: &Arc<Registry>,
    reloader: &Arc<Reloader>,
) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    let brokers: Vec<_> = brokers.values().cloned().collect();
    let (store, pipeline, reloader) = (store.clone(), pipeline.clone(), reloader.clone());
    let sharing = sharing.clone();
    Arc::new(move || {
        let mut components: Vec<_> = brokers
            .iter()
            .map(|broker| component_of(broker.as_ref()))
            .collect();
        let (state, why) = match store.failure() {
            None => (Condition::Ready, None),
            Some(why) => (Condition::Down, Some(why.to_owned())),
        };
        components.push(Component {
            name: "store".into(),
            state,
            why,
        });
        components.extend(shared(&sharing));
        components.push(egress(pipeline.why_out()));
        let registries = pipeline.registries().into_iter();
        components.extend(registries.map(|(source, why)| registry(&source, why)));
        components.extend(handshakes(&pipeline.unverified()));
        components.extend(config(reloader.note()));
        Readiness { components }
    })
}

/// Brokers by name, and whether each works now.
pub fn brokers_up(
    brokers: &BTreeMap<Arc<str>, Arc<dyn Broker>>,
) -> impl Fn() -> Vec<(String, bool)> + Send + Sync + use<> {
    let brokers: Vec<_> = brokers.values().cloned().collect();
    move || {
        let up = |broker: &Arc<dyn Broker>| broker.health() == Health::Ready;
        let all = brokers.iter();
        all.map(|broker| (broker.name().to_string(), up(broker)))
            .collect()
    }
}

/// Down only while it is us who can reach nobody.
fn egress(why: Option<String>) -> Component {
    let state = match why {
        None => Condition::Ready,
        Some(_) => Condition::Down,
    };
    Component {
        name: "egress".into(),
        state,
        why,
    }
}

/// Down while events of the source wait for it.
fn registry(source: &str, why: Option<String>) -> Component {
    let state = match why {
        None => Condition::Ready,
        Some(_) => Condition::Down,
    };
    Component {
        name: format!("registry {source}"),
        state,
        why,
    }
}

/// Not ready before it is known what the other instances know. That their configs differ is for
/// information only.
fn shared(registry: &Registry) -> Option<Component> {
    let behind = registry.behind().map(|why| (Condition::Starting, why));
    let noted = || registry.differences().map(|why| (Condition::Ready, why));
    behind.or_else(noted).map(|(state, why)| Component {
        name: "state".into(),
        state,
        why: Some(why),
    })
}

/// For information only: an endpoint that does not agree holds up its own deliveries.
fn handshakes(unverified: &[Arc<str>]) -> Option<Component> {
    (!unverified.is_empty()).then(|| Component {
        name: "handshakes".into(),
        state: Condition::Ready,
        why: Some(format!("not agreed yet: {}", unverified.join(", "))),
    })
}

/// For information only: a config is in force, if not the one in the file.
fn config(note: Option<String>) -> Option<Component> {
    note.map(|why| Component {
        name: "config".into(),
        state: Condition::Ready,
        why: Some(why),
    })
}

fn component_of(broker: &dyn Broker) -> Component {
    let (state, why) = match broker.health() {
        Health::Ready => (Condition::Ready, None),
        Health::Starting { why } => (Condition::Starting, Some(why)),
        Health::Down { why } => (Condition::Down, Some(why)),
    };
    Component {
        name: format!("broker {}", broker.name()),
        state,
        why,
    }
}
