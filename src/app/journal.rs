//! The journal of attempts: started, closed, and put together with what `trace` asks besides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::error;

use super::brokers::{self, publisher};
use crate::broker::Broker;
use crate::config::{BrokerKind, Config};
use crate::journal::{FILE, Journal, Settings};
use crate::meters::Meters;
use crate::operations::{Audit, Keeper, Traces};
use crate::store::Store;

/// Records waiting to be published.
const AUDIT_WAITING: usize = 4_096;
/// How long the last records may take to be written.
const CLOSE: Duration = Duration::from_secs(5);

/// Starts the journal and, where the config says so, publishing what is recorded.
pub fn start(
    config: &Config,
    store: &Store,
    meters: &Meters,
    brokers: &BTreeMap<Arc<str>, Arc<dyn Broker>>,
) -> Journal {
    let Some(attempts) = &config.attempts else {
        return Journal::off();
    };
    let publish = attempts.publish.as_ref();
    let audit = publish.and_then(|publish| {
        let broker = brokers.get(&publish.broker)?.clone();
        let (records, waiting) = mpsc::channel(AUDIT_WAITING);
        let audit = Audit {
            broker,
            exchange: publish.exchange.clone(),
            topic: publish.topic.clone(),
            unpublished: meters.journal.unpublished.clone(),
        };
        tokio::spawn(audit.run(waiting));
        Some(records)
    });
    let settings = Settings {
        path: config.data_dir.join(FILE),
        keep: attempts.keep,
        max_bytes: attempts.max_bytes,
        bodies: attempts.bodies,
        instance: brokers::instance(config, store).unwrap_or_else(|| store.instance_name()),
    };
    Journal::start(settings, meters.journal.clone(), audit).unwrap_or_else(|error| {
        error!(%error, "there is no thread for the journal; attempts are not kept");
        Journal::off()
    })
}

/// Writes the last records.
pub async fn close(journal: Journal) {
    let closing = tokio::task::spawn_blocking(move || journal.close());
    let _ = tokio::time::timeout(CLOSE, closing).await;
}

/// The brokers that keep deliveries, and what ours are called there.
pub fn keepers(
    config: &Config,
    brokers: &BTreeMap<Arc<str>, Arc<dyn Broker>>,
) -> BTreeMap<Arc<str>, Keeper> {
    let keeps = |name: &Arc<str>| config.brokers.get(name).filter(|b| b.keeps_deliveries());
    brokers
        .iter()
        .filter_map(|(name, broker)| {
            let is_embedded = matches!(keeps(name)?.kind, BrokerKind::Embedded(_));
            let keeper = Keeper {
                broker: broker.clone(),
                group: (!is_embedded).then(|| config.group.clone()),
            };
            Some((name.clone(), keeper))
        })
        .collect()
}

/// What a trace is made of, with no bridge running: the journal's file and the brokers themselves.
/// What cannot be read is said with each trace.
pub fn traces(config: &Config) -> Traces {
    let mut notes = Vec::new();
    let path = config.data_dir.join(FILE);
    let journal = match &config.attempts {
        None => Some(Journal::off()),
        Some(_) => match Journal::open_existing(&path, Meters::new().journal.clone()) {
            Ok(journal) => Some(journal),
            Err(error) => {
                notes.push(error.to_string());
                None
            }
        },
    };
    let mut opened = BTreeMap::new();
    for (name, broker) in &config.brokers {
        let file = super::brokers::embedded_file(config, name);
        if matches!(broker.kind, BrokerKind::Embedded(_)) && !file.exists() {
            continue;
        }
        match publisher(config, name) {
            Ok(broker) => {
                opened.insert(name.clone(), broker);
            }
            Err(error) => notes.push(format!("{error:#}")),
        }
    }
    Traces {
        journal,
        keepers: keepers(config, &opened),
        pipeline: None,
        notes,
    }
}
