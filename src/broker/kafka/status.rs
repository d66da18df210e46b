//! What is known of each part of a broker's work, and the one word that comes of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::broker::Health;

pub struct Status {
    broker: Arc<str>,
    parts: Mutex<BTreeMap<Arc<str>, Health>>,
    away: Mutex<Option<Instant>>,
    silent: Mutex<Option<Instant>>,
}

/// The part that says whether the cluster answers at all.
pub const CLUSTER: &str = "cluster";

impl Status {
    pub fn new(broker: Arc<str>) -> Self {
        Self {
            broker,
            parts: Mutex::default(),
            away: Mutex::default(),
            silent: Mutex::default(),
        }
    }

    /// Notes the state of `part`; a change is logged, a repetition is not.
    pub fn set(&self, part: &str, health: Health) {
        if part == CLUSTER && matches!(health, Health::Down { .. }) {
            *self.away.lock().unwrap_or_else(|p| p.into_inner()) = Some(Instant::now());
        }
        let mut parts = self.parts.lock().unwrap_or_else(|p| p.into_inner());
        let before = parts.insert(part.into(), health.clone());
        drop(parts);
        if before.as_ref() == Some(&health) {
            return;
        }
        match &health {
            Health::Ready => info!(broker = %self.broker, part, "ready"),
            Health::Starting { why } => info!(broker = %self.broker, part, "{why}"),
            Health::Down { why } => warn!(broker = %self.broker, part, "{why}"),
        }
    }

    /// There is no such part any more.
    pub fn forget(&self, part: &str) {
        let mut parts = self.parts.lock().unwrap_or_else(|p| p.into_inner());
        parts.remove(part);
    }

    /// When the cluster was last seen not to answer.
    pub fn last_away(&self) -> Option<Instant> {
        *self.away.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Leaders of partitions do not answer now.
    pub fn silent(&self) {
        *self.silent.lock().unwrap_or_else(|p| p.into_inner()) = Some(Instant::now());
    }

    /// When the cluster was last seen not to answer, or not for all of its partitions.
    pub fn last_troubled(&self) -> Option<Instant> {
        let silent = *self.silent.lock().unwrap_or_else(|p| p.into_inner());
        self.last_away().max(silent)
    }

    pub fn ready(&self, part: &str) {
        self.set(part, Health::Ready);
    }

    pub fn starting(&self, part: &str, why: impl Into<String>) {
        self.set(part, Health::Starting { why: why.into() });
    }

    pub fn down(&self, part: &str, why: impl Into<String>) {
        self.set(part, Health::Down { why: why.into() });
    }

    /// Down if any part is, else starting if any is.
    pub fn overall(&self) -> Health {
        let parts = self.parts.lock().unwrap_or_else(|p| p.into_inner());
        let mut overall = Health::Ready;
        if parts.is_empty() {
            overall = Health::Starting {
                why: "not connected yet".to_owned(),
            };
        }
        for (part, health) in parts.iter() {
            match (health, &overall) {
                (Health::Down { why }, _) => {
                    return Health::Down {
                        why: format!("{part}: {why}"),
                    };
                }
                (Health::Starting { why }, Health::Ready) => {
                    overall = Health::Starting {
                        why: format!("{part}: {why}"),
                    };
                }
                _ => {}
            }
        }
        overall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that has lost its brokers gets no answers either, and is to be replaced all the same.
    #[test]
    fn leaders_that_do_not_answer_are_trouble_though_the_cluster_is_there() {
        let status = Status::new("b".into());
        assert_eq!(status.last_troubled(), None);
        status.silent();
        assert!(status.last_troubled().is_some());
        assert_eq!(status.last_away(), None);
        status.down(CLUSTER, "gone");
        assert_eq!(status.last_troubled(), status.last_away());
    }

    #[test]
    fn the_worst_part_decides() {
        let status = Status::new("b".into());
        assert!(matches!(status.overall(), Health::Starting { .. }));
        status.ready("a");
        assert_eq!(status.overall(), Health::Ready);
        status.starting("b", "waits");
        status.down("c", "broken");
        assert_eq!(
            status.overall(),
            Health::Down {
                why: "c: broken".into()
            }
        );
    }
}
