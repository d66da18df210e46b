//! The audit stream: what the journal records, published to a topic as it happens.
//!
//! Best effort: a record is published once, with a deadline, and counted when the broker does not
//! confirm it. The journal hands over only as much as there is room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::broker::{Broker, Publication};
use crate::journal::{AUDIT_TYPE, Entry};

/// Publishes under way at once.
const AT_ONCE: usize = 16;
const DEADLINE: Duration = Duration::from_secs(10);

/// Where the stream goes.
pub struct Audit {
    pub broker: Arc<dyn Broker>,
    /// RabbitMQ only.
    pub exchange: String,
    pub topic: String,
    /// Records that the broker has not confirmed.
    pub unpublished: Counter,
}

impl Audit {
    /// Publishes until the journal is closed.
    pub async fn run(self, records: mpsc::Receiver<Entry>) {
        let failing = AtomicBool::new(false);
        let each = stream::unfold(records, async |mut records| {
            let entry = records.recv().await?;
            Some((entry, records))
        });
        each.for_each_concurrent(AT_ONCE, |entry| self.publish(entry, &failing))
            .await;
    }

    async fn publish(&self, entry: Entry, failing: &AtomicBool) {
        let why = match timeout(DEADLINE, self.broker.publish(self.publication(&entry))).await {
            Ok(Ok(())) => {
                if failing.swap(false, Ordering::Relaxed) {
                    info!(broker = %self.broker.name(), "records of attempts are published again");
                }
                return;
            }
            Ok(Err(refused)) => refused.to_string(),
            Err(_) => "not confirmed in time".to_owned(),
        };
        self.unpublished.inc();
        if !failing.swap(true, Ordering::Relaxed) {
            warn!(broker = %self.broker.name(), topic = %self.topic, %why, "records of attempts cannot be published; they are counted until they can");
        }
    }

    fn publication(&self, entry: &Entry) -> Publication {
        Publication {
            topic: self.topic.clone(),
            exchange: self.exchange.clone(),
            id: Some(uuid::Uuid::now_v7().simple().to_string()),
            kind: Some(AUDIT_TYPE.to_owned()),
            key: Some(entry.event.clone().into()),
            content_type: Some("application/json".to_owned()),
            body: serde_json::to_vec(entry).unwrap_or_default().into(),
            ..Publication::default()
        }
    }
}
