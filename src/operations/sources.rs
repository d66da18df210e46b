//! Sources, as operators are shown them: which broker, and how far back they can be replayed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Operations;
use crate::broker::NotPossible;

/// How long looking for the oldest event may take, of one source.
const LOOK: Duration = Duration::from_secs(10);

/// What is known of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The broker that its events come from.
    pub broker: Arc<str>,
    /// The broker that keeps its deliveries: another one where it says `retries_on:`.
    pub keeper: Arc<str>,
    /// `rabbitmq`, `kafka` or `embedded`.
    pub kind: &'static str,
}

/// All sources, by name.
pub type Sources = BTreeMap<Arc<str>, Source>;

/// A source as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Source)]
pub struct Listed {
    pub name: String,
    pub broker: String,
    pub kind: String,
    /// Whether time can be replayed.
    pub replay: bool,
    /// Why it cannot, or why that is not known now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The oldest event that is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Timestamp>,
    /// Whether somebody has paused it, where a bridge runs.
    #[serde(default)]
    pub paused: bool,
}

/// All sources, by name.
pub async fn list(operations: &Operations) -> Vec<Listed> {
    let sources = operations.sources();
    let looks = sources.iter().map(|(name, source)| async move {
        let mut listed = Listed {
            name: name.to_string(),
            broker: source.broker.to_string(),
            kind: source.kind.to_owned(),
            replay: false,
            why: None,
            oldest: None,
            paused: false,
        };
        let Some(broker) = operations.brokers.get(&source.broker) else {
            return listed;
        };
        match tokio::time::timeout(LOOK, broker.reach(name)).await {
            Ok(Ok(reach)) => {
                listed.replay = true;
                listed.oldest = reach.oldest;
            }
            Ok(Err(why)) => {
                listed.replay = matches!(why, NotPossible::Unavailable(_));
                listed.why = Some(why.to_string());
            }
            Err(_) => {
                listed.replay = true;
                listed.why = Some("the broker does not say how far back it goes".to_owned());
            }
        }
        listed
    });
    futures_util::future::join_all(looks).await
}
