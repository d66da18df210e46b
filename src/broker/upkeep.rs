//! Upkeep: what people do with a broker's queues and topics beside the path of events.
//!
//! `doctor` looks at them, `topology` prints what is needed, finds what is left over, removes it or
//! takes over what another group has left. Nothing here takes events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::finding::Findings;

/// Something that is made on a broker, by its identity alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thing {
    Queue(String),
    Binding {
        queue: String,
        exchange: String,
        key: String,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        arguments: BTreeMap<String, String>,
    },
    Topic(String),
    /// A consumer group.
    Group(String),
}

/// Something the config needs on a broker, with all that is needed to make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Need {
    Queue {
        vhost: String,
        name: String,
        /// Numbers and texts.
        arguments: BTreeMap<String, serde_json::Value>,
    },
    Binding {
        vhost: String,
        queue: String,
        exchange: String,
        key: String,
        arguments: BTreeMap<String, String>,
    },
    Topic {
        name: String,
        partitions: usize,
        settings: BTreeMap<String, String>,
    },
    /// An entry of an access list: who has to be allowed what.
    Access {
        /// `topic`, `group` or `cluster`.
        resource: String,
        name: String,
        operations: Vec<String>,
    },
}

/// What a broker has to have, and what is not known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub needs: Vec<Need>,
    /// For people: what was assumed because the broker does not say.
    pub notes: Vec<String>,
}

/// What was noted down of earlier starts.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub things: BTreeSet<Thing>,
    /// Names of groups, the present one among them.
    pub groups: BTreeSet<String>,
}

/// Something of ours that the config has no use for any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    pub thing: Thing,
    /// Messages that would be lost with it; `None` where it cannot be told, or it holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    /// Somebody reads it now.
    pub in_use: bool,
}

/// How far an adoption came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Adopted {
    pub parked: u64,
    pub dead: u64,
}

/// See the module. Errors say what could not be done; every call has an end.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// The broker's name in the config.
    fn name(&self) -> &Arc<str>;

    /// Looks at all of it, and says what it saw.
    async fn inspect(&self, found: &Findings);

    /// What the config needs on the broker. Asks the broker for its version and its sizes, and
    /// notes where it does not answer.
    async fn plan(&self) -> Plan;

    /// The names of what is ours by the config, without asking anybody.
    fn ours(&self) -> BTreeSet<Thing>;

    /// What is there, is ours, and is not needed by the config.
    async fn orphans(&self, known: &Known) -> anyhow::Result<Vec<Orphan>>;

    /// Removes one orphan with everything in it.
    async fn remove(&self, orphan: &Thing) -> anyhow::Result<()>;

    /// Moves what is parked and dead under `group` to the present group, each message confirmed
    /// before it is removed. What was moved stays moved when it fails half way.
    async fn adopt(&self, group: &str, known: &Known) -> anyhow::Result<Adopted>;
}

impl Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue {name}"),
            Self::Binding {
                queue,
                exchange,
                key,
                ..
            } => write!(
                f,
                "binding of queue {queue} to exchange {exchange} with key `{key}`"
            ),
            Self::Topic(name) => write!(f, "topic {name}"),
            Self::Group(name) => write!(f, "consumer group {name}"),
        }
    }
}
