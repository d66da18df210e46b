//! What is counted of one source.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::labels::{BySource, BySourceOutcome, BySourcePartition, BySourceReason, BySourceResult};
use super::{Meters, handle};

/// The handles of one source.
#[derive(Clone)]
pub struct SourceMeters {
    pub received: Counter,
    pub settled: Counter,
    pub redelivered: Counter,
    /// Deleted on the broker before they were taken.
    pub gone: Counter,
    pub matched: Counter,
    pub unmatched: Counter,
    /// Events whose body a filter looked into, and which was not JSON.
    pub filter_not_json: Counter,
    /// 1 while intake is paused because the broker refuses to park or dead-letter.
    pub paused_by_broker: Gauge,
    /// 1 while intake is paused because nobody can be reached from here.
    pub paused_by_egress: Gauge,
    /// 1 while its schema registry does not answer.
    pub paused_by_registry: Gauge,
    /// 1 while somebody has paused it.
    pub paused_by_operator: Gauge,
    pub decoded: Counter,
    pub undecoded: Counter,
    /// Events that break the source's contract.
    pub invalid: Counter,
    /// Events that do not say whose they are, where the source has tenants.
    pub without_tenant: Counter,
    source: String,
    /// The highest number of a partition whose lag was told; -1: none.
    highest: Arc<AtomicI32>,
    lag: Family<BySourcePartition, Gauge>,
}

impl SourceMeters {
    /// Messages of `partition` not yet settled.
    pub fn lag(&self, partition: i32, messages: i64) {
        let labels = BySourcePartition {
            source: self.source.clone(),
            partition: partition.to_string(),
        };
        self.lag.get_or_create(&labels).set(messages);
        self.highest.fetch_max(partition, Ordering::Relaxed);
    }

    /// It is no longer taken from: a lag that stays as it was would be an alarm for ever.
    pub fn no_lag(&self) {
        for partition in 0..=self.highest.swap(-1, Ordering::Relaxed) {
            self.lag.remove(&BySourcePartition {
                source: self.source.clone(),
                partition: partition.to_string(),
            });
        }
    }
}

impl Meters {
    pub fn of_source(&self, source: &str) -> SourceMeters {
        let by = BySource {
            source: source.to_owned(),
        };
        let outcome = |outcome| BySourceOutcome {
            source: source.to_owned(),
            outcome,
        };
        let result = |result| BySourceResult {
            source: source.to_owned(),
            result,
        };
        let reason = |reason| BySourceReason {
            source: source.to_owned(),
            reason,
        };
        SourceMeters {
            received: handle(&self.received, &by),
            settled: handle(&self.settled, &outcome("settled")),
            redelivered: handle(&self.settled, &outcome("redeliver")),
            gone: handle(&self.gone, &by),
            matched: handle(&self.matched, &result("matched")),
            unmatched: handle(&self.matched, &result("unmatched")),
            filter_not_json: handle(&self.filter_not_json, &by),
            paused_by_broker: handle(&self.paused, &reason("broker_refuses")),
            paused_by_egress: handle(&self.paused, &reason("egress")),
            paused_by_registry: handle(&self.paused, &reason("registry")),
            paused_by_operator: handle(&self.paused, &reason("operator")),
            decoded: handle(&self.decoded, &result("decoded")),
            undecoded: handle(&self.decoded, &result("failed")),
            invalid: handle(&self.invalid, &by),
            without_tenant: handle(&self.without_tenant, &by),
            source: source.to_owned(),
            highest: Arc::new(AtomicI32::new(-1)),
            lag: self.lag.clone(),
        }
    }
}
