//! Subscriptions: which events go to which endpoint, and how hard we try.
//!
//! A [`Spec`] is what may be stored and shown: it names its endpoint and holds no secret. An
//! [`Endpoint`] is where requests go; it holds secrets, which have no `Debug` form. A
//! [`Subscription`] is both, compiled and ready for the routing snapshot.

mod answers;
mod auth;
mod contract;
mod endpoint;
mod filter;
mod handshake;
mod pattern;
mod payload;
mod retry;
mod scheme;
mod secret;
mod tenant;
mod terms;
mod words;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use answers::{Answers, StatusError, StatusRange, Statuses};
pub use auth::{Auth, Credentials, OAuth2};
pub use contract::{Contract, Schema, SchemaError};
pub use endpoint::{Breaker, Endpoint, Rate, TlsFiles};
pub use filter::{Filter, FilterError, LazyJson, compare_numbers};
pub use handshake::{Challenge, Handshake};
pub use pattern::{Pattern, PatternError, Segment, fits, segments};
pub use payload::{
    Adapted, Batch, CloudEvents, CloudEventsMode, Encryption, FieldPath, FieldPathError, Fields,
    FormFields, Format, Payload, Setting, Step, Template, TemplateText, Version, XmlNames,
};
pub use retry::RetryPolicy;
pub use scheme::{Encoding, Filled, Hash, HmacScheme, KeyForm, Scheme, SignedUrl, TimeUnit};
pub use secret::Secret;
pub use tenant::{LONGEST_TENANT, Labels, Quota, Quotas, TENANT_HELP, is_tenant};
pub use terms::{MaxAge, Stale, Terms};
pub use words::{Part, Word, WordError, Worded};

/// A subscription's identity: `config:<name>` for those of the config file, `api:` and a UUIDv7, never
/// used again, for those made over the API.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Uid(Arc<str>);

impl Uid {
    pub fn of_config(name: &str) -> Self {
        Self(format!("config:{name}").into())
    }

    /// One that nobody has had before.
    pub fn made() -> Self {
        Self(format!("api:{}", uuid::Uuid::now_v7().simple()).into())
    }

    /// Whether the subscription is one of the config file.
    pub fn is_of_config(&self) -> bool {
        self.0.starts_with("config:")
    }

    /// Whether it has the form of those that are made here.
    pub fn is_made(&self) -> bool {
        let own = self.0.strip_prefix("api:").unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        (1..=64).contains(&own.len()) && own.bytes().all(is_plain)
    }

    /// A uid read back from an envelope or the store.
    pub fn from_stored(uid: &str) -> Self {
        Self(uid.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its text, shared: the name of the endpoint that is written in a subscription of the API.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The source of what the bridge itself has to say. It is always there, and only those who name it
/// get its events.
pub const META_SOURCE: &str = "hookbridge";

/// What an operator or a team asked for, without secrets: this is what the store keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    pub name: Arc<str>,
    /// Topic patterns; an event matches when one of them does. At least one.
    pub topics: Vec<String>,
    /// Patterns of the event's type; empty means any.
    #[serde(default)]
    pub types: Vec<String>,
    /// Names of sources; empty means any but [`META_SOURCE`].
    #[serde(default)]
    pub sources: Box<[Arc<str>]>,
    /// The content filter as it was written.
    #[serde(default)]
    pub filter: Option<Box<serde_json::Value>>,
    /// `false`: not matched at all.
    pub enabled: bool,
    /// Matched, rendered and signed, and not sent.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shadow: bool,
    /// What it asks of its events besides, if it asks anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Box<Terms>>,
    /// Earlier names, whose parked deliveries are taken over.
    #[serde(default)]
    pub was: Box<[Arc<str>]>,
    pub retry: Arc<RetryPolicy>,
    /// Total time of one attempt, response included.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// An attempt older than this counts as slow.
    pub slow_after: Duration,
    pub max_parked: MaxParked,
    /// Whose it is; the operator's without one.
    #[serde(default)]
    pub tenant: Option<Arc<str>>,
    #[serde(default)]
    pub labels: Labels,
    /// The endpoint's name: one of the shared ones, or the subscription's own name.
    pub endpoint: Arc<str>,
}

/// How much of one subscription may wait on the broker; beyond it its deliveries are dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxParked {
    pub count: u64,
    pub bytes: u64,
}

impl Default for MaxParked {
    fn default() -> Self {
        Self {
            count: 100_000,
            bytes: 1 << 30,
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Spec {
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    pub const DEFAULT_SLOW_AFTER: Duration = Duration::from_secs(2);
}

/// A subscription ready to be matched and delivered.
pub struct Subscription {
    pub uid: Uid,
    pub spec: Spec,
    pub topics: Box<[Pattern]>,
    pub types: Box<[Pattern]>,
    pub filter: Option<Box<Filter>>,
    /// What the receiver's answers mean.
    pub answers: Arc<Answers>,
    pub endpoint: Arc<Endpoint>,
}

impl Subscription {
    /// Compiles `spec`, which the config has checked already; a problem here names the key.
    pub fn compile(
        uid: Uid,
        mut spec: Spec,
        endpoint: Arc<Endpoint>,
    ) -> Result<Self, CompileError> {
        // A spec that was read from the store has all its values to itself.
        spec.retry = RetryPolicy::shared(spec.retry);
        if spec.endpoint == endpoint.name {
            spec.endpoint = Arc::clone(&endpoint.name);
        }
        if spec.endpoint == spec.name {
            spec.name = Arc::clone(&spec.endpoint);
        }
        let patterns = |key: &'static str, texts: &[String]| {
            texts
                .iter()
                .map(|text| {
                    text.parse()
                        .map_err(|source| CompileError::Pattern { key, source })
                })
                .collect::<Result<Box<[Pattern]>, _>>()
        };
        let topics = patterns("topics", &spec.topics)?;
        let types = patterns("types", &spec.types)?;
        let filter = spec
            .filter
            .as_deref()
            .map(|filter| Filter::compile(filter).map(Box::new))
            .transpose()
            .map_err(CompileError::Filter)?;
        let usual = endpoint.payload.adapted().map(|adapted| &adapted.answers);
        Ok(Self {
            answers: Answers::shared(Answers::of(&spec.retry, usual)),
            uid,
            spec,
            topics,
            types,
            filter,
            endpoint,
        })
    }
}

impl AsRef<Subscription> for Subscription {
    fn as_ref(&self) -> &Subscription {
        self
    }
}

/// Why a stored subscription cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("bad pattern in `{key}`")]
    Pattern {
        key: &'static str,
        source: PatternError,
    },
    #[error("bad `filter`")]
    Filter(#[source] FilterError),
}
