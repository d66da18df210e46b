//! Meters: the counters and gauges that stages count with, and the one registry they are in.
//!
//! Names and labels follow `docs/metrics.md`; label values come from config names only, never from
//! traffic. Handles are looked up once, when a subscription or source is made ([`Meters::of_subscription`],
//! [`Meters::of_source`]), and counted with for nanoseconds afterwards.

mod labels;
mod scraped;
mod source;
mod subscription;
mod tenant;

use std::sync::{Arc, Mutex};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use self::labels::{
    ByBroker, ByHash, ByResult, BySource, BySourceOutcome, BySourcePartition, BySourceReason,
    BySourceResult, BySubscription, BySubscriptionOutcome, BySubscriptionReason, ByTenant,
    ByTenantOutcome,
};
use self::scraped::{Brokers, Elsewhere};
pub use self::source::SourceMeters;
pub use self::subscription::SubscriptionMeters;
pub use self::tenant::TenantMeters;

/// What this was built of, where whoever built it has said so.
const COMMIT: &str = match option_env!("HOOKBRIDGE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

type SizesFamily = Family<BySubscription, Histogram, fn() -> Histogram>;
type SecondsFamily = Family<BySubscription, Histogram, fn() -> Histogram>;

/// All metrics of the process.
pub struct Meters {
    registry: Mutex<Registry>,
    received: Family<BySource, Counter>,
    settled: Family<BySourceOutcome, Counter>,
    gone: Family<BySource, Counter>,
    lag: Family<BySourcePartition, Gauge>,
    matched: Family<BySourceResult, Counter>,
    filter_not_json: Family<BySource, Counter>,
    decoded: Family<BySourceResult, Counter>,
    invalid: Family<BySource, Counter>,
    without_tenant: Family<BySource, Counter>,
    tenant_attempts: Family<ByTenantOutcome, Counter>,
    tenant_held: Family<ByTenant, Counter>,
    tenant_dead: Family<ByTenant, Counter>,
    paused: Family<BySourceReason, Gauge>,
    attempts: Family<BySubscriptionOutcome, Counter>,
    duration: SecondsFamily,
    age: SecondsFamily,
    in_flight: Family<BySubscription, Gauge>,
    parked: Family<BySubscriptionReason, Counter>,
    dead_letters: Family<BySubscriptionReason, Counter>,
    breaker: Family<BySubscription, Gauge>,
    unverified: Family<BySubscription, Gauge>,
    concurrency: Family<BySubscription, Gauge>,
    rate_limited: Family<BySubscription, Counter>,
    stale: Family<BySubscription, Counter>,
    batches: SizesFamily,
    refused: Family<ByBroker, Counter>,
    expired: Family<ByBroker, Counter>,
    reloads: Family<ByResult, Counter>,
    reload_failed: Gauge,
    restart_needed: Gauge,
    config: Family<ByHash, Gauge>,
    /// 1 while events are taken a few at a time after an unclean stop.
    pub careful: Gauge,
    /// Panics while an event was worked on.
    pub panics: Counter,
    pub journal: JournalMeters,
    /// Spans that a collector has taken.
    pub spans_exported: Counter,
    /// Spans dropped: the collector was away or too slow.
    pub spans_lost: Counter,
    /// Meta-events that somebody is told.
    pub meta_told: Counter,
    /// Meta-events that were not made, or got lost before a broker had them.
    pub meta_lost: Counter,
    /// What listeners to attempts were too slow for.
    pub tap_lost: Counter,
    /// 1 while this instance knows what its group knows.
    pub state_in_step: Gauge,
    /// Instances of the group with another config.
    pub config_differs: Gauge,
    /// Subscriptions of the API that are kept and not in force.
    pub unusable: Gauge,
    pub store_bytes: Gauge,
    pub store_flush: Histogram,
}

/// What the journal of attempts counts with.
#[derive(Clone, Default)]
pub struct JournalMeters {
    /// Records dropped: the disk was too slow, full or broken.
    pub lost: Counter,
    /// Records not published to the audit stream.
    pub unpublished: Counter,
    /// What the ring holds.
    pub bytes: Gauge,
}

/// The metric of these labels. A function, so that the family's lock is free again when it returns:
/// two look-ups in one expression would otherwise wait for each other.
fn handle<L, M, C>(family: &Family<L, M, C>, labels: &L) -> M
where
    L: Clone + Eq + std::hash::Hash,
    M: Clone,
    C: prometheus_client::metrics::family::MetricConstructor<M>,
{
    family.get_or_create(labels).clone()
}

/// 1 ms to 60 s, in steps of about 2.5.
fn seconds_buckets() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

/// 10 ms to four days: an event's age when it is delivered.
fn age_buckets() -> Histogram {
    Histogram::new([
        0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0, 86_400.0,
        345_600.0,
    ])
}

/// One to ten thousand deliveries.
fn sizes_buckets() -> Histogram {
    Histogram::new([
        1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
    ])
}

impl Meters {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("hookbridge");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let build = Family::<Vec<(String, String)>, Gauge>::default();
        build
            .get_or_create(&vec![
                ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("commit".to_owned(), COMMIT.to_owned()),
            ])
            .set(1);
        registry.register("build_info", "The running release", build);
        let config = Family::<ByHash, Gauge>::default();
        registry.register("config_info", "The config in force", config.clone());
        let duration = SecondsFamily::new_with_constructor(seconds_buckets as fn() -> Histogram);
        registry.register_with_unit(
            "delivery_duration",
            "Time of one attempt",
            Unit::Seconds,
            duration.clone(),
        );
        let age = SecondsFamily::new_with_constructor(age_buckets as fn() -> Histogram);
        registry.register_with_unit(
            "event_age_at_delivery",
            "From the producer's timestamp, or the take, to the 2xx",
            Unit::Seconds,
            age.clone(),
        );
        let store_flush = seconds_buckets();
        registry.register_with_unit(
            "store_flush_duration",
            "Time to sync the store",
            Unit::Seconds,
            store_flush.clone(),
        );
        let store_bytes = Gauge::<i64, _>::default();
        registry.register_with_unit(
            "store",
            "Size of the store on disk",
            Unit::Bytes,
            store_bytes.clone(),
        );
        let journal = JournalMeters::default();
        registry.register_with_unit(
            "attempt_records",
            "Size of the journal of attempts",
            Unit::Bytes,
            journal.bytes.clone(),
        );
        registry.register(
            "attempt_records_lost",
            "Records of attempts that were not kept",
            journal.lost.clone(),
        );
        registry.register(
            "attempt_records_unpublished",
            "Records of attempts that were not published",
            journal.unpublished.clone(),
        );
        Arc::new(Self {
            config,
            received: register!(
                "source_messages_received",
                "Messages taken",
                Family::default()
            ),
            settled: register!(
                "source_messages_settled",
                "Messages answered, by outcome",
                Family::default()
            ),
            gone: register!(
                "source_messages_gone",
                "Messages deleted on the broker before they were taken",
                Family::default()
            ),
            lag: register!(
                "source_lag_messages",
                "Messages behind the end of the partition",
                Family::default()
            ),
            matched: register!("match", "Events routed, by result", Family::default()),
            filter_not_json: register!(
                "filter_not_json",
                "Events whose body a filter looked into, and which was not JSON",
                Family::default()
            ),
            decoded: register!("decode", "Messages decoded, by result", Family::default()),
            invalid: register!(
                "payload_invalid",
                "Events that break the contract of their source",
                Family::default()
            ),
            without_tenant: register!(
                "events_without_tenant",
                "Events that do not say whose they are, of sources with tenants",
                Family::default()
            ),
            tenant_attempts: register!(
                "tenant_delivery_attempts",
                "Attempts of a tenant's deliveries, by outcome",
                Family::default()
            ),
            tenant_held: register!(
                "tenant_deliveries_held",
                "Deliveries held because their tenant has used up what it may",
                Family::default()
            ),
            tenant_dead: register!(
                "tenant_dead_letters",
                "Deliveries of a tenant given up",
                Family::default()
            ),
            paused: register!(
                "intake_paused",
                "1 while intake is paused, by reason",
                Family::default()
            ),
            attempts: register!(
                "delivery_attempts",
                "Attempts, by outcome",
                Family::default()
            ),
            in_flight: register!(
                "deliveries_in_flight",
                "Attempts under way",
                Family::default()
            ),
            parked: register!(
                "deliveries_parked",
                "Deliveries parked on the broker",
                Family::default()
            ),
            dead_letters: register!("dead_letters", "Deliveries given up", Family::default()),
            breaker: register!(
                "breaker_state",
                "0 open for traffic, 1 probing, 2 shut",
                Family::default()
            ),
            unverified: register!(
                "endpoint_unverified",
                "1 while deliveries are held until the endpoint agrees",
                Family::default()
            ),
            concurrency: register!(
                "adaptive_concurrency",
                "Requests that may be under way at once",
                Family::default()
            ),
            batches: register!(
                "batch_deliveries",
                "Deliveries in one request",
                SizesFamily::new_with_constructor(sizes_buckets as fn() -> Histogram)
            ),
            rate_limited: register!(
                "rate_limited",
                "Deliveries that waited for the rate",
                Family::default()
            ),
            stale: register!(
                "deliveries_stale",
                "Deliveries settled without being sent, since their events are too old",
                Family::default()
            ),
            refused: register!(
                "broker_refusals",
                "Parks and dead letters not confirmed",
                Family::default()
            ),
            expired: register!(
                "dead_letters_expired",
                "Dead letters removed because of their retention",
                Family::default()
            ),
            careful: register!(
                "careful",
                "1 while events are taken a few at a time after an unclean stop",
                Gauge::default()
            ),
            spans_exported: register!(
                "spans_exported",
                "Spans that the collector has taken",
                Counter::default()
            ),
            spans_lost: register!(
                "spans_lost",
                "Spans dropped because the collector was away or too slow",
                Counter::default()
            ),
            meta_told: register!(
                "meta_events",
                "Meta-events that somebody is told",
                Counter::default()
            ),
            meta_lost: register!(
                "meta_events_lost",
                "Meta-events that were not made, or got lost before a broker had them",
                Counter::default()
            ),
            tap_lost: register!(
                "tap_lost",
                "Attempts that a listener was too slow for",
                Counter::default()
            ),
            panics: register!(
                "panics",
                "Panics while an event was worked on",
                Counter::default()
            ),
            reloads: register!(
                "config_reloads",
                "Reloads of the config, by result",
                Family::default()
            ),
            reload_failed: register!(
                "config_reload_failed",
                "1 while the config file was refused and the one before is in force",
                Gauge::default()
            ),
            restart_needed: register!(
                "config_restart_needed",
                "Parts of the config that have changed and need a restart",
                Gauge::default()
            ),
            state_in_step: register!(
                "state_in_step",
                "1 while this instance knows what its group knows",
                Gauge::default()
            ),
            config_differs: register!(
                "state_config_differs",
                "Instances of the group whose config differs from this one's",
                Gauge::default()
            ),
            unusable: register!(
                "subscriptions_unusable",
                "Subscriptions made over the API that are kept and not in force",
                Gauge::default()
            ),
            duration,
            age,
            journal,
            store_bytes,
            store_flush,
            registry: Mutex::new(registry),
        })
    }

    /// Parks and dead letters that `broker` did not confirm.
    pub fn refusals(&self, broker: &str) -> Counter {
        handle(
            &self.refused,
            &ByBroker {
                broker: broker.to_owned(),
            },
        )
    }

    /// Dead letters that were removed from `broker` because they were older than their retention.
    pub fn expired(&self, broker: &str) -> Counter {
        handle(
            &self.expired,
            &ByBroker {
                broker: broker.to_owned(),
            },
        )
    }

    /// The config was read again. `waiting`: parts of it that need a restart.
    pub fn reloaded(&self, ok: bool, waiting: usize) {
        self.reload_failed.set((!ok).into());
        self.restart_needed.set(waiting as i64);
        self.reloads
            .get_or_create(&ByResult {
                result: if ok { "ok" } else { "refused" },
            })
            .inc();
    }

    /// The config in force, by the hash of it; there is one at a time.
    pub fn config(&self, hash: &str) {
        self.config.clear();
        let hash = hash.to_owned();
        self.config.get_or_create(&ByHash { hash }).set(1);
    }

    /// Brokers by name, and whether each works, asked with `up` on each scrape.
    pub fn brokers_with(&self, up: impl Fn() -> Vec<(String, bool)> + Send + Sync + 'static) {
        let mut registry = self
            .registry
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        registry.register_collector(Box::new(Brokers(Box::new(up))));
    }

    /// A counter that is kept elsewhere and read with `count` on each scrape.
    pub fn count_with(&self, name: &'static str, help: &'static str, count: fn() -> u64) {
        let mut registry = self
            .registry
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        registry.register_collector(Box::new(Elsewhere { name, help, count }));
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a string does not fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Reason;

    #[test]
    fn counted_things_are_scraped_under_their_documented_names() {
        let meters = Meters::new();
        meters.of_source("orders").received.inc();
        let subscription = meters.of_subscription("crm");
        subscription.delivered.inc();
        subscription.failed("5xx");
        subscription.dead(Reason::Gone);
        meters.count_with("log_lines_lost", "Lines not written", || 7);
        let text = meters.encode();
        for line in [
            r#"hookbridge_source_messages_received_total{source="orders"} 1"#,
            r#"hookbridge_delivery_attempts_total{subscription="crm",outcome="delivered",status_class="2xx"} 1"#,
            r#"hookbridge_delivery_attempts_total{subscription="crm",outcome="failed",status_class="5xx"} 1"#,
            r#"hookbridge_dead_letters_total{subscription="crm",reason="gone"} 1"#,
            "hookbridge_delivery_duration_seconds_bucket",
            "hookbridge_log_lines_lost_total 7",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
