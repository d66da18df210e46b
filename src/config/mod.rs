//! The config: what an operator's YAML file says, checked and ready to be assembled.
//!
//! [`load`] reports every problem at once, each at its line and column. What it returns has no
//! strings left to parse but those of [`Spec`]s, which it has compiled once to check them.

// what the keys are
pub mod keys;
pub mod schema;

// text to tree
mod mask;
mod node;
mod problems;
mod substitute;

// tree to values
mod field;
mod reader;
mod values;

// values to settings, section by section
mod adapters;
mod address;
mod attempts;
mod auth;
mod brokers;
mod cases;
mod decode;
mod endpoints;
mod formats;
mod general;
mod handshakes;
mod payload;
mod registered;
mod signatures;
mod sources;
mod subscriptions;
mod telemetry;
mod templates;
mod tenants;
mod terms;
mod versions;

mod effective;
mod load;
mod whole;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use ipnet::IpNet;
use url::Url;

pub use cases::{Body, Case, Expected, ExpectedError, Message, Signed, Text};
pub use effective::{Effective, effective};
pub use keys::keys;
pub use load::{Loaded, TRY, load, load_tests, validate};
pub use node::Span;
pub use problems::{Format, Problem, Problems};
pub use registered::{Asked, Mistake, One, Referred, shown};
pub use signatures::parse as parse_signature;
pub use substitute::Env;
pub use whole::parse;

pub use crate::broker::kafka::{Sasl, SaslMechanism, Start};
pub use crate::broker::rabbitmq::Binding;
pub use crate::decode::{Coding, Format as SchemaFormat};
pub use crate::pipeline::Unmatched;
pub use crate::subscription::TlsFiles as Tls;

use crate::broker::{IdFrom, TenantFrom, tiers::Tiers};
use crate::subscription::{Auth, Contract, Endpoint, Quotas, Secret, Spec};

/// A whole, valid config.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Names the consumer group and every queue and topic of ours. Default `hookbridge` only where
    /// all brokers are embedded.
    pub group: Arc<str>,
    pub instance: Instance,
    pub data_dir: PathBuf,
    pub admin: Admin,
    pub dead_letters: DeadLetters,
    pub delivery: DeliverySettings,
    pub limits: Limits,
    /// `None`: attempts are not kept.
    pub attempts: Option<Attempts>,
    pub reload: Reload,
    pub telemetry: Telemetry,
    /// What tenants may use.
    pub tenants: Quotas,
    pub brokers: BTreeMap<Arc<str>, Broker>,
    pub sources: BTreeMap<Arc<str>, Source>,
    /// Every endpoint by its name: the shared ones, and those written inside a subscription under
    /// the subscription's name.
    pub endpoints: BTreeMap<Arc<str>, Arc<Endpoint>>,
    pub subscriptions: BTreeMap<Arc<str>, Spec>,
    /// What `hookbridge test` carries out, in the order of the file.
    pub tests: Vec<Case>,
    /// The broker that keeps what all instances share, where that is said.
    pub state_on: Option<Arc<str>>,
    /// What seals the secrets of subscriptions made over the API; the first does, all open.
    pub store_keys: Vec<Secret>,
    /// What those subscriptions refer to.
    pub referred: Referred,
}

/// `instance:` or `HOOKBRIDGE_INSTANCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instance {
    /// A random name, kept in `data_dir`.
    Kept,
    Named(Arc<str>),
    /// `auto`: dynamic group membership.
    Auto,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Default 127.0.0.1:8400. Off loopback `tokens` may not be empty.
    pub listen: SocketAddr,
    pub tokens: Vec<AdminToken>,
    /// Largest accepted event over the API; default 16 MiB.
    pub max_event_bytes: usize,
}

/// A bearer token of the admin API; only its SHA-256 is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminToken {
    pub name: String,
    pub sha256: [u8; 32],
    pub scopes: Vec<Scope>,
    /// Whom it acts for; `None`: the operator.
    pub tenant: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Read,
    Publish,
    Replay,
    Admin,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetters {
    /// How long they are kept; `None`: for ever.
    pub retention: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeliverySettings {
    /// Plain `http:` URLs are refused unless true.
    pub allow_http: bool,
    /// Otherwise denied address ranges, opened on purpose.
    pub allow_networks: Vec<IpNet>,
    /// What takes a TCP connection whenever our network works.
    pub egress_check: Option<Place>,
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Bytes of all messages in flight; default 256 MiB.
    pub in_flight_bytes: usize,
    /// Messages in flight of the retries, and of the holds, per broker; default 256 each.
    pub due_window: usize,
    /// How long a graceful stop may take; default 30 s.
    pub shutdown: Duration,
    /// Worker threads of the runtime that delivers; see docs/decisions.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_bytes: 256 << 20,
            due_window: 256,
            shutdown: Duration::from_secs(30),
            workers: 1,
        }
    }
}

/// When the config file is read again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reload {
    /// How often the file is looked at; `None`: not at all.
    pub watch: Option<Duration>,
}

/// The journal of attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    /// Default 7 d.
    pub keep: Duration,
    /// Default 1 GiB.
    pub max_bytes: u64,
    /// Requests are kept too.
    pub bodies: bool,
    pub publish: Option<Publish>,
}

/// Where records of attempts are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    pub broker: Arc<str>,
    /// Empty: the default one, or none.
    pub exchange: String,
    pub topic: String,
}

/// Whom what is done is told to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Telemetry {
    /// `None`: no spans.
    pub otlp: Option<Otlp>,
}

/// A collector of spans.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// Without `/v1/traces`.
    pub endpoint: Url,
    /// Their values are sensitive.
    pub headers: HeaderMap,
    /// Of events without a trace; default 1.
    pub sample: f64,
}

/// One broker: what is common, and its kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    pub kind: BrokerKind,
    /// Delays of our retry and hold tiers on it.
    pub tiers: Tiers,
    /// `retries_on:` another broker, where we may not create things on this one.
    pub retries_on: Option<Arc<str>>,
    /// `declare: false`: what we need on it is made by others, and only checked; default true.
    pub declare: bool,
}

impl Broker {
    /// Whether tiers and dead letters of ours are on it.
    pub fn keeps_deliveries(&self) -> bool {
        self.retries_on.is_none()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum BrokerKind {
    RabbitMq(RabbitMq),
    Kafka(Kafka),
    Embedded(Embedded),
}

#[derive(Debug, Clone, PartialEq)]
pub struct RabbitMq {
    /// `amqp:` or `amqps:`, tried in turn. May hold a password.
    pub urls: Vec<Secret>,
    pub tls: Tls,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    pub bootstrap: Vec<String>,
    /// `Some` turns TLS on.
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
    /// Further librdkafka properties, for what we have no key for. Ours win.
    pub properties: BTreeMap<String, String>,
}

/// The embedded broker keeps its file in `data_dir`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// How long settled events stay for replay; default none.
    pub retention: Duration,
    /// Nothing more is accepted beyond this; default 1 GiB.
    pub max_bytes: u64,
}

/// Where events come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub broker: Arc<str>,
    pub from: From,
    /// Messages in flight; default 256.
    pub window: usize,
    pub unmatched: Unmatched,
    /// `topic:` replaces the broker's own topic.
    pub topic: Option<Arc<str>>,
    pub id: Option<IdFrom>,
    pub tenant: Option<TenantFrom>,
    pub decode: Option<Decode>,
    /// What bodies of its events have to be.
    pub contract: Contract,
}

/// `decode:` of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Decode {
    pub coding: Coding,
    pub format: SchemaFormat,
    /// Default 16 MiB.
    pub max_bytes: usize,
    pub registry: Option<SchemaRegistry>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SchemaRegistry {
    pub url: Url,
    pub auth: Option<Auth>,
    pub tls: Option<Arc<Tls>>,
    /// Default 5 s.
    pub timeout: Duration,
    /// Schemas kept; default 1000.
    pub cache: usize,
}

/// The broker's side of a source; its kind is the broker's kind.
#[derive(Debug, Clone, PartialEq)]
pub enum From {
    RabbitMq(RabbitMqSource),
    Kafka(KafkaSource),
    Embedded(EmbeddedSource),
}

#[derive(Debug, Clone, PartialEq)]
pub struct RabbitMqSource {
    pub queue: String,
    /// Declare the queue (quorum) and its bindings where they are missing; default true.
    pub declare: bool,
    pub bind: Vec<Binding>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct KafkaSource {
    /// Names, or regular expressions when they begin with `^`.
    pub topics: Vec<String>,
    pub start: Start,
    pub ignore_older_than: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddedSource {
    /// Topic patterns, as in subscriptions.
    pub topics: Vec<String>,
}
