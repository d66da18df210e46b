//! Upkeep: the brokers and endpoints of a config as `doctor` and `topology` look at them, and what
//! can be said of this machine.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use super::brokers;
use crate::broker::kafka::Kafka;
use crate::broker::rabbitmq::RabbitMq;
use crate::broker::upkeep::Upkeep;
use crate::config::{Broker, BrokerKind, Config, From};
use crate::deliver::AddressPolicy;
use crate::finding::{Finding, Level};
use crate::meters::Meters;
use crate::operations::doctor::Check;

/// With less room than this on its disk, `data_dir` is as good as full.
const FULL_BYTES: u64 = 64 << 20;
const LITTLE_BYTES: u64 = 1 << 30;
/// Open files beside those of endpoints: listeners, the store, brokers.
const FILES_OF_OURS: u64 = 256;

/// The broker `name` of the config, not running; `None` for an embedded one, which has nothing that
/// is made by hand. Errors are the config's.
pub fn upkeep(config: &Config, name: &str) -> anyhow::Result<Option<Arc<dyn Upkeep>>> {
    let (name, broker) = config
        .brokers
        .get_key_value(name)
        .with_context(|| format!("no broker `{name}` in the config"))?;
    let meters = Meters::new();
    let sources = config
        .sources
        .iter()
        .filter(|(_, source)| source.broker == *name);
    Ok(match &broker.kind {
        BrokerKind::RabbitMq(settings) => {
            let sources = sources
                .filter_map(|(name, source)| brokers::rabbitmq_source(name, source, &meters))
                .collect();
            let settings = brokers::rabbitmq_settings(config, name, broker, settings, sources);
            Some(RabbitMq::new(settings))
        }
        BrokerKind::Kafka(settings) => {
            let sources = sources
                .filter_map(|(name, source)| brokers::kafka_source(name, source, &meters))
                .collect();
            let settings = brokers::kafka_settings(config, name, broker, settings, sources, None);
            let kafka = Kafka::new(settings).with_context(|| format!("broker `{name}`"))?;
            Some(kafka)
        }
        BrokerKind::Embedded(_) => None,
    })
}

/// All brokers of the config that [`upkeep`] knows.
pub fn all_upkeep(config: &Config) -> anyhow::Result<Vec<Arc<dyn Upkeep>>> {
    let all = config.brokers.keys().map(|name| upkeep(config, name));
    all.filter_map(Result::transpose).collect()
}

/// Which addresses endpoints may have.
pub fn address_policy(config: &Config) -> AddressPolicy {
    AddressPolicy {
        allow_http: config.delivery.allow_http,
        allow_networks: config.delivery.allow_networks.clone(),
    }
}

/// What `doctor` looks at.
pub fn checks(config: &Config, brokers: bool, endpoints: bool) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    if brokers && endpoints {
        checks.push(Check::Said(of_bridge(config)));
    }
    if brokers {
        for (name, broker) in &config.brokers {
            checks.push(match upkeep(config, name)? {
                Some(broker) => Check::Broker(broker),
                None => Check::Said(vec![of_embedded(config, name, broker)]),
            });
        }
    }
    if endpoints {
        checks.extend(config.endpoints.values().cloned().map(Check::Endpoint));
    }
    Ok(checks)
}

fn said(level: Level, what: impl Into<String>, advice: impl Into<Option<&'static str>>) -> Finding {
    Finding {
        level,
        subject: "bridge".to_owned(),
        what: what.into(),
        advice: advice.into().map(str::to_owned),
    }
}

fn of_bridge(config: &Config) -> Vec<Finding> {
    let mut found = vec![data_dir(&config.data_dir)];
    found.extend(free_space(&config.data_dir));
    found.push(admin(config));
    found.push(open_files(config));
    if config.sources.is_empty() {
        let advice = "name one in `sources`";
        found.push(said(Level::Warning, "no source: nothing is taken", advice));
    }
    if config.subscriptions.is_empty() {
        let what = "no subscription in the config: nothing is delivered";
        found.push(said(Level::Warning, what, "name one in `subscriptions`"));
    }
    for (name, source) in &config.sources {
        if matches!(source.from, From::RabbitMq(_)) && source.id.is_none() {
            let what = format!("source {name}: an event without `message_id` gets a random id");
            let advice = "a redelivery of it cannot be recognised by receivers: have publishers set \
                          message_id, or say where the id is with `id:`";
            found.push(said(Level::Warning, what, advice));
        }
    }
    found
}

fn data_dir(dir: &Path) -> Finding {
    let shown = dir.display();
    if !dir.exists() {
        return said(
            Level::Ok,
            format!("{shown} is not there yet: it is made at the start"),
            None,
        );
    }
    // As the bridge writes: a new file, then its name. The lock of a running one does not matter.
    let probe = dir.join(format!("doctor-{}", std::process::id()));
    let tried = std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe));
    match tried {
        Ok(()) => said(Level::Ok, format!("{shown} can be written to"), None),
        Err(error) => said(
            Level::Problem,
            format!("{shown} cannot be written to: {error}"),
            "give it to the user that the bridge runs as",
        ),
    }
}

fn free_space(dir: &Path) -> Option<Finding> {
    let there = dir.ancestors().find(|folder| folder.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    let what = format!("{} MiB free for `data_dir`", free_bytes >> 20);
    Some(if free_bytes < FULL_BYTES {
        said(
            Level::Problem,
            what,
            "make room: the store fails when it is full",
        )
    } else if free_bytes < LITTLE_BYTES {
        said(Level::Warning, what, "make room")
    } else {
        said(Level::Ok, "there is room for `data_dir`", None)
    })
}

fn admin(config: &Config) -> Finding {
    let address = config.admin.listen;
    match config.admin.tokens.len() {
        // Elsewhere than on loopback the config is refused without tokens.
        0 => said(
            Level::Ok,
            format!("admin on {address} without tokens: open to everybody on this machine"),
            None,
        ),
        count => said(
            Level::Ok,
            format!("admin on {address} with {count} tokens"),
            None,
        ),
    }
}

fn open_files(config: &Config) -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let connections: u64 = config
        .endpoints
        .values()
        .map(|endpoint| endpoint.concurrency as u64)
        .sum();
    let needed = connections + FILES_OF_OURS;
    match limit {
        Some(limit) if limit < needed => said(
            Level::Warning,
            format!("{limit} open files are allowed, up to {needed} may be needed"),
            "raise the limit (`LimitNOFILE=` of systemd, `ulimit -n`), or lower `concurrency`",
        ),
        _ => said(Level::Ok, "enough open files are allowed", None),
    }
}

fn of_embedded(config: &Config, name: &str, broker: &Broker) -> Finding {
    let path = super::brokers::embedded_file(config, name);
    let BrokerKind::Embedded(settings) = &broker.kind else {
        unreachable!("asked for embedded brokers only")
    };
    let subject = format!("broker {name}");
    let size_bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
    // The file is up to twice as large as what is in it.
    let full = size_bytes / 2 > settings.max_bytes / 10 * 9;
    let (level, advice) = match full {
        true => (
            Level::Warning,
            Some(
                "nothing is accepted beyond `max_bytes`: raise it, or see why so much waits"
                    .to_owned(),
            ),
        ),
        false => (Level::Ok, None),
    };
    Finding {
        level,
        subject,
        what: format!(
            "embedded: its file has {} MiB, {} MiB may be in it",
            size_bytes >> 20,
            settings.max_bytes >> 20
        ),
        advice,
    }
}
