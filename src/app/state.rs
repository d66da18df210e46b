//! State: which broker keeps what all instances of a group share, and which parts of their configs are
//! to be the same.

use std::sync::Arc;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::{Failure, brokers};
use crate::broker::Broker;
use crate::config::{BrokerKind, Config};
use crate::meters::Meters;
use crate::operations::subscriptions::{Sharing, SharingMeters};
use crate::store::Store;

/// The broker that `state_on` names. Otherwise an embedded one, since its file is one instance's; or
/// else the first, by name, that keeps deliveries.
pub fn keeper(config: &Config) -> Option<&Arc<str>> {
    if let Some(named) = &config.state_on {
        return Some(named);
    }
    let all = || config.brokers.iter();
    let embedded = all().find(|(_, broker)| matches!(broker.kind, BrokerKind::Embedded(_)));
    let keeping = || all().find(|(_, broker)| broker.keeps_deliveries());
    embedded.or_else(keeping).map(|(name, _)| name)
}

/// Whether the broker of this name is the one.
pub fn is_on(config: &Config, name: &str) -> bool {
    keeper(config).is_some_and(|keeper| **keeper == *name)
}

/// What the registry needs to share what it has.
pub fn sharing(
    config: &Config,
    store: &Store,
    meters: &Meters,
    built: &std::collections::BTreeMap<Arc<str>, Arc<dyn Broker>>,
) -> Result<Sharing, Failure> {
    let broker = keeper(config).and_then(|name| built.get(name));
    let broker = broker
        .context("no broker of the config can keep what the group shares")
        .map_err(Failure::Config)?;
    Ok(Sharing {
        broker: broker.clone(),
        instance: brokers::instance(config, store).unwrap_or_else(|| store.instance_name()),
        config: hash(config),
        meters: SharingMeters {
            in_step: meters.state_in_step.clone(),
            differ: meters.config_differs.clone(),
            unusable: meters.unusable.clone(),
        },
    })
}

/// Of what decides how an event is delivered. Left out is what may differ: where an instance listens
/// and keeps its files, its limits, how it reaches brokers; and secrets, of which nothing leaves the
/// process.
pub fn hash(config: &Config) -> String {
    let brokers = config.brokers.iter().map(|(name, broker)| {
        let kind = match broker.kind {
            BrokerKind::RabbitMq(_) => "rabbitmq",
            BrokerKind::Kafka(_) => "kafka",
            BrokerKind::Embedded(_) => "embedded",
        };
        (name, kind, &broker.tiers, &broker.retries_on)
    });
    let brokers: Vec<_> = brokers.collect();
    // Secrets write themselves down as nothing.
    let text = format!(
        "{:?}",
        (
            &config.group,
            keeper(config),
            brokers,
            &config.dead_letters,
            &config.delivery,
            &config.sources,
            &config.endpoints,
            &config.subscriptions,
        )
    );
    hex::encode(&Sha256::digest(text)[..6])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn parsed(text: &str) -> Config {
        config::parse(text, "c.yaml", Path::new(""), &|_| None).unwrap()
    }

    const MIXED: &str = "
group: g
brokers:
  away: { rabbitmq: { url: 'amqp://h' }, retries_on: lake }
  lake: { kafka: { bootstrap: [h] } }
";

    #[test]
    fn the_state_is_where_it_is_said_or_where_deliveries_are() {
        assert_eq!(&**keeper(&parsed(MIXED)).unwrap(), "lake");
        let named = format!("{MIXED}state_on: away\n");
        assert_eq!(&**keeper(&parsed(&named)).unwrap(), "away");
        let embedded = format!("{MIXED}  zoo: {{ embedded: {{}} }}\n");
        assert_eq!(&**keeper(&parsed(&embedded)).unwrap(), "zoo");
        assert!(is_on(&parsed(MIXED), "lake") && !is_on(&parsed(MIXED), "away"));
    }

    #[test]
    fn what_may_differ_makes_no_other_hash() {
        let text = |more: &str, url: &str, secret: &str| {
            format!(
                "{MIXED}{more}subscriptions: {{ a: {{ topics: [x], endpoint: {{ url: '{url}', secret: {secret} }} }} }}\n"
            )
        };
        let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let other_secret = "whsec_NDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let of = |text: &str| hash(&parsed(text));
        let here = of(&text("", "https://h/", secret));
        let more =
            "admin: { listen: 127.0.0.1:9 }\ndata_dir: /x\ninstance: b\nlimits: { workers: 2 }\n";
        assert_eq!(of(&text(more, "https://h/", secret)), here);
        assert_eq!(of(&text("", "https://h/", other_secret)), here);
        assert_ne!(of(&text("", "https://other/", secret)), here);
        assert_ne!(
            of(&text(
                "dead_letters: { retention: 9d }\n",
                "https://h/",
                secret
            )),
            here
        );
    }
}
