//! Brokers: from the config's words to the stages' settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tracing::info;

use super::{Failure, state};
use crate::broker::embedded::{self, Embedded};
use crate::broker::kafka::{self, Kafka};
use crate::broker::rabbitmq::{self, RabbitMq};
use crate::broker::upkeep::Upkeep;
use crate::broker::{Broker, Naming};
use crate::config::{self, BrokerKind, Config, Instance};
use crate::decode::{self, DecodeMeters, Decoder};
use crate::deliver::fetch::{self, Fetcher};
use crate::meters::{Meters, SourceMeters};
use crate::operations::sources::{Source, Sources};
use crate::pipeline::{BrokerPlan, Check, OverHttp, Rules, SourcePlan};
use crate::store::Store;
use crate::subscription::Pattern;

/// All brokers of a config, ready to run.
pub struct Built {
    pub plans: Vec<BrokerPlan>,
    pub handles: BTreeMap<Arc<str>, Handle>,
    /// For what is decoded, of all sources.
    pub room: decode::Room,
}

/// A broker of which it is known what it is.
pub enum Handle {
    RabbitMq(Arc<RabbitMq>),
    Kafka(Arc<Kafka>),
    Embedded(Arc<Embedded>),
}

impl Handle {
    pub fn broker(&self) -> Arc<dyn Broker> {
        match self {
            Self::RabbitMq(broker) => broker.clone(),
            Self::Kafka(broker) => broker.clone(),
            Self::Embedded(broker) => broker.clone(),
        }
    }

    /// For what is ours on a broker that others use as well.
    pub fn upkeep(&self) -> Option<Arc<dyn Upkeep>> {
        match self {
            Self::RabbitMq(broker) => Some(broker.clone()),
            Self::Kafka(broker) => Some(broker.clone()),
            Self::Embedded(_) => None,
        }
    }

    pub fn embedded(&self) -> Option<&Arc<Embedded>> {
        match self {
            Self::Embedded(broker) => Some(broker),
            _ => None,
        }
    }

    /// Has it take from the sources that `config` has of it, which run when the pipeline says so. An error
    /// has changed nothing.
    pub async fn set_sources(&self, config: &Config, meters: &Meters) -> anyhow::Result<()> {
        let name = self.broker().name().clone();
        let sources = of_broker(config, &name);
        match self {
            Self::RabbitMq(broker) => {
                let sources = sources.filter_map(|(name, one)| rabbitmq_source(name, one, meters));
                broker.set_sources(sources.collect());
                Ok(())
            }
            Self::Kafka(broker) => {
                let sources = sources.filter_map(|(name, one)| kafka_source(name, one, meters));
                broker.set_sources(sources.collect())
            }
            Self::Embedded(broker) => {
                let sources = sources.map(|(name, one)| embedded_source(name, one, meters));
                let sources = sources.collect::<anyhow::Result<_>>()?;
                Ok(broker.set_sources(sources).await?)
            }
        }
    }
}

/// The sources that are taken from this broker.
fn of_broker<'a>(
    config: &'a Config,
    broker: &'a str,
) -> impl Iterator<Item = (&'a Arc<str>, &'a config::Source)> {
    let all = config.sources.iter();
    all.filter(move |(_, source)| *source.broker == *broker)
}

/// The name under which this instance is a static member of its groups; `None` for a dynamic one.
pub fn instance(config: &Config, store: &Store) -> Option<Arc<str>> {
    match &config.instance {
        Instance::Kept => Some(store.instance_name()),
        Instance::Named(name) => Some(name.clone()),
        Instance::Auto => None,
    }
}

/// Builds every broker with the sources that are taken from it.
pub fn build(
    config: &Config,
    instance: Option<Arc<str>>,
    meters: &Meters,
) -> Result<Built, Failure> {
    // What is decoded is kept beside what came, which may take all of its own budget.
    let room = decode::Room::new(config.limits.in_flight_bytes / 2);
    let mut built = Built {
        plans: Vec::new(),
        handles: BTreeMap::new(),
        room,
    };
    for (name, settings) in &config.brokers {
        let handle = build_one(config, name, settings, instance.clone(), meters)?;
        built.plans.push(BrokerPlan {
            broker: handle.broker(),
            retries_on: settings.retries_on.clone(),
            sources: of_broker(config, name)
                .map(|(name, source)| source_plan(name, source, meters, &built.room))
                .collect(),
            due_window: config.limits.due_window,
        });
        built.handles.insert(name.clone(), handle);
    }
    Ok(built)
}

/// A broker with its sources, of which nothing is taken unless it is run.
pub fn alone(config: &Config, broker: &Arc<str>) -> Result<Arc<dyn Broker>, Failure> {
    let settings = config.brokers.get(broker);
    let settings = settings
        .with_context(|| format!("no broker `{broker}` in the config"))
        .map_err(Failure::Config)?;
    let handle = build_one(config, broker, settings, None, &Meters::new())?;
    Ok(handle.broker())
}

/// A broker for publishing alone (`hookbridge send`): nothing is taken from it or declared on it.
pub fn publisher(config: &Config, broker: &str) -> anyhow::Result<Arc<dyn Broker>> {
    if !config.brokers.contains_key(broker) {
        anyhow::bail!("no broker `{broker}` in the config");
    }
    without_sources(config, &broker.into()).map_err(Failure::into_error)
}

/// A broker of the config from which nothing is taken.
pub fn without_sources(config: &Config, name: &Arc<str>) -> Result<Arc<dyn Broker>, Failure> {
    let settings = &config.brokers[name];
    let alone = Config {
        sources: BTreeMap::new(),
        ..config.clone()
    };
    let handle = build_one(&alone, name, settings, None, &Meters::new())?;
    Ok(handle.broker())
}

/// The sources, as they are shown and replayed.
pub fn sources(config: &Config) -> Sources {
    let of = |source: &config::Source| {
        let broker = config.brokers.get(&source.broker)?;
        let keeper = broker.retries_on.as_ref().unwrap_or(&source.broker);
        Some(Source {
            broker: source.broker.clone(),
            keeper: keeper.clone(),
            kind: match broker.kind {
                BrokerKind::RabbitMq(_) => "rabbitmq",
                BrokerKind::Kafka(_) => "kafka",
                BrokerKind::Embedded(_) => "embedded",
            },
        })
    };
    let all = config.sources.iter();
    all.filter_map(|(name, source)| Some((name.clone(), of(source)?)))
        .collect()
}

fn build_one(
    config: &Config,
    name: &Arc<str>,
    broker: &config::Broker,
    instance: Option<Arc<str>>,
    meters: &Meters,
) -> Result<Handle, Failure> {
    let sources = || of_broker(config, name);
    match &broker.kind {
        BrokerKind::RabbitMq(settings) => {
            let sources = sources()
                .filter_map(|(name, source)| rabbitmq_source(name, source, meters))
                .collect();
            let settings = rabbitmq_settings(config, name, broker, settings, sources);
            Ok(Handle::RabbitMq(RabbitMq::new(settings)))
        }
        BrokerKind::Kafka(settings) => {
            let sources = sources()
                .filter_map(|(name, source)| kafka_source(name, source, meters))
                .collect();
            let settings = kafka_settings(config, name, broker, settings, sources, instance);
            let kafka = Kafka::new(settings)
                .with_context(|| format!("broker `{name}`"))
                .map_err(Failure::Config)?;
            Ok(Handle::Kafka(kafka))
        }
        BrokerKind::Embedded(settings) => {
            let sources = sources()
                .map(|(name, source)| embedded_source(name, source, meters))
                .collect::<anyhow::Result<_>>()
                .map_err(Failure::Config)?;
            let opened = Embedded::open(embedded::Settings {
                name: name.clone(),
                group: config.group.clone(),
                path: embedded_file(config, name),
                max_bytes: settings.max_bytes,
                retention: settings.retention,
                sources,
            })
            .with_context(|| format!("broker `{name}`"))
            .map_err(Failure::Storage)?;
            Ok(Handle::Embedded(opened))
        }
    }
}

/// Where an embedded broker keeps what it has.
pub(super) fn embedded_file(config: &Config, name: &str) -> PathBuf {
    config.data_dir.join(format!("embedded-{name}.redb"))
}

pub(super) fn rabbitmq_settings(
    config: &Config,
    name: &Arc<str>,
    broker: &config::Broker,
    settings: &config::RabbitMq,
    sources: Vec<rabbitmq::SourceSettings>,
) -> rabbitmq::Settings {
    rabbitmq::Settings {
        name: name.clone(),
        group: config.group.clone(),
        urls: settings.urls.clone(),
        tls: settings.tls.clone(),
        tiers: broker.tiers.clone(),
        sources,
        keeps_deliveries: broker.keeps_deliveries(),
        declare: broker.declare,
        keeps_state: state::is_on(config, name),
    }
}

pub(super) fn kafka_settings(
    config: &Config,
    name: &Arc<str>,
    broker: &config::Broker,
    settings: &config::Kafka,
    sources: Vec<kafka::SourceSettings>,
    instance: Option<Arc<str>>,
) -> kafka::Settings {
    kafka::Settings {
        name: name.clone(),
        group: config.group.clone(),
        instance,
        bootstrap: settings.bootstrap.clone(),
        tls: settings.tls.clone(),
        sasl: settings.sasl.clone(),
        properties: settings.properties.clone(),
        tiers: broker.tiers.clone(),
        sources,
        declare: broker.declare,
        keeps_state: state::is_on(config, name),
    }
}

pub fn naming(name: &Arc<str>, source: &config::Source) -> Naming {
    Naming {
        source: name.clone(),
        topic: source.topic.clone(),
        id: source.id.clone(),
        tenant: source.tenant.clone(),
    }
}

pub(super) fn source_plan(
    name: &Arc<str>,
    source: &config::Source,
    meters: &Meters,
    room: &decode::Room,
) -> SourcePlan {
    SourcePlan {
        name: name.clone(),
        window: source.window,
        rules: rules(source),
        decoder: source.decode.as_ref().map(|decode| {
            let decoder = decoder(name, decode, room.clone(), &meters.of_source(name));
            Arc::new(decoder)
        }),
        has_tenants: source.tenant.is_some(),
        meters: meters.of_source(name),
    }
}

/// What a source asks of its events, and what becomes of those that nobody wants.
pub fn rules(source: &config::Source) -> Rules {
    Rules {
        unmatched: source.unmatched,
        contract: source.contract.clone(),
    }
}

/// What requests to a registry ask for.
const SCHEMAS: &str = "application/vnd.schemaregistry.v1+json, application/json";
/// The text of a schema is in it as a JSON string.
const LARGEST_SCHEMA_ANSWER: usize = 8 << 20;

pub(super) fn decoder(
    source: &Arc<str>,
    settings: &config::Decode,
    room: decode::Room,
    meters: &SourceMeters,
) -> Decoder {
    let registry = settings.registry.as_ref();
    let fetch = registry.map(|registry| -> Arc<dyn decode::Fetch> {
        let fetcher = Fetcher::new(fetch::Settings {
            auth: registry.auth.clone(),
            tls: registry.tls.clone(),
            timeout: registry.timeout,
            max_bytes: LARGEST_SCHEMA_ANSWER,
            accept: SCHEMAS,
        });
        Arc::new(OverHttp(fetcher))
    });
    let settings = decode::Settings {
        source: source.clone(),
        coding: settings.coding,
        format: settings.format,
        max_bytes: settings.max_bytes,
        registry: registry.map(|registry| decode::RegistrySettings {
            url: registry.url.clone(),
            cache: registry.cache,
        }),
    };
    let meters = DecodeMeters {
        decoded: meters.decoded.clone(),
        failed: meters.undecoded.clone(),
        waiting: meters.paused_by_registry.clone(),
    };
    Decoder::new(settings, fetch, room, meters)
}

pub(super) fn rabbitmq_source(
    name: &Arc<str>,
    source: &config::Source,
    meters: &Meters,
) -> Option<rabbitmq::SourceSettings> {
    let config::From::RabbitMq(from) = &source.from else {
        return None;
    };
    Some(rabbitmq::SourceSettings {
        name: name.clone(),
        queue: from.queue.clone(),
        declare: from.declare,
        bind: from.bind.clone(),
        naming: naming(name, source),
        meters: meters.of_source(name),
    })
}

pub(super) fn kafka_source(
    name: &Arc<str>,
    source: &config::Source,
    meters: &Meters,
) -> Option<kafka::SourceSettings> {
    let config::From::Kafka(from) = &source.from else {
        return None;
    };
    Some(kafka::SourceSettings {
        name: name.clone(),
        topics: from.topics.clone(),
        start: from.start,
        ignore_older_than: from.ignore_older_than,
        naming: naming(name, source),
        meters: meters.of_source(name),
    })
}

fn embedded_source(
    name: &Arc<str>,
    source: &config::Source,
    meters: &Meters,
) -> anyhow::Result<embedded::SourceSettings> {
    let topics = match &source.from {
        config::From::Embedded(from) => from
            .topics
            .iter()
            .map(|topic| topic.parse::<Pattern>())
            .collect(),
        _ => Ok(Vec::new()),
    };
    let topics = topics.with_context(|| format!("source `{name}`"))?;
    Ok(embedded::SourceSettings {
        name: name.clone(),
        topics,
        naming: naming(name, source),
        meters: meters.of_source(name),
    })
}

/// What is asked whether our own network works.
pub fn egress_check(config: &Config) -> Option<Check> {
    let place = config.delivery.egress_check.as_ref()?;
    Some(Check {
        host: place.host.clone(),
        port: place.port,
    })
}

/// The admin API's tokens.
pub fn tokens(config: &Config) -> Vec<crate::admin::Token> {
    let scope = |scope: &config::Scope| match scope {
        config::Scope::Read => crate::admin::Scope::Read,
        config::Scope::Publish => crate::admin::Scope::Publish,
        config::Scope::Replay => crate::admin::Scope::Replay,
        config::Scope::Admin => crate::admin::Scope::Admin,
    };
    let token = |token: &config::AdminToken| crate::admin::Token {
        name: token.name.clone(),
        sha256: token.sha256,
        scopes: token.scopes.iter().map(scope).collect(),
        tenant: token.tenant.clone(),
    };
    config.admin.tokens.iter().map(token).collect()
}

/// For those who try it out: the next two commands.
pub fn say_how_to_send(admin: SocketAddr) {
    info!("no config given: events published here go to http://127.0.0.1:8401/");
    info!("receive them in a second terminal:  hookbridge listen");
    info!(
        "send the first one in a third:      hookbridge send orders.created --data '{{\"total\": 120}}'"
    );
    info!(
        "or with curl:                       curl -d '{{\"total\": 120}}' http://{admin}/v1/topics/orders.created/events"
    );
}
