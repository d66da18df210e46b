//! What is counted of one subscription.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{BySubscription, BySubscriptionOutcome, BySubscriptionReason};
use super::{Meters, SizesFamily, handle};
use crate::attempt::Outcome;
use crate::delivery::{Reason, WaitKind};

/// The handles of one subscription.
#[derive(Clone)]
pub struct SubscriptionMeters {
    /// First-try and later successes with a 2xx, by far the most frequent.
    pub delivered: Counter,
    pub duration: Histogram,
    pub age: Histogram,
    pub in_flight: Gauge,
    pub parked_retry: Counter,
    pub parked_hold: Counter,
    /// 0 open for traffic, 1 probing, 2 shut.
    pub breaker: Gauge,
    /// 1 while deliveries are held until the endpoint agrees to get them.
    pub unverified: Gauge,
    /// Where it adapts.
    pub concurrency: Gauge,
    pub rate_limited: Counter,
    subscription: String,
    stale: Family<BySubscription, Counter>,
    attempts: Family<BySubscriptionOutcome, Counter>,
    dead_letters: Family<BySubscriptionReason, Counter>,
    batches: SizesFamily,
}

impl SubscriptionMeters {
    /// An attempt that was not delivered.
    pub fn failed(&self, status_class: &'static str) {
        let labels = BySubscriptionOutcome {
            subscription: self.subscription.clone(),
            outcome: "failed",
            status_class,
        };
        self.attempts.get_or_create(&labels).inc();
    }

    /// A delivery that was rendered and signed, and not sent: it is for a shadow.
    pub fn withheld(&self) {
        let labels = BySubscriptionOutcome {
            subscription: self.subscription.clone(),
            outcome: Outcome::SHADOW,
            status_class: Outcome::SHADOW,
        };
        self.attempts.get_or_create(&labels).inc();
    }

    /// A delivery that was settled without being sent, since its event is too old.
    pub fn stale(&self) {
        let labels = BySubscription {
            subscription: self.subscription.clone(),
        };
        self.stale.get_or_create(&labels).inc();
    }

    /// A request with so many deliveries in it.
    pub fn batched(&self, deliveries: usize) {
        let labels = BySubscription {
            subscription: self.subscription.clone(),
        };
        self.batches
            .get_or_create(&labels)
            .observe(deliveries as f64);
    }

    /// An attempt that was delivered by another answer than a 2xx.
    pub fn delivered_by(&self, status_class: &'static str) {
        let labels = BySubscriptionOutcome {
            subscription: self.subscription.clone(),
            outcome: "delivered",
            status_class,
        };
        self.attempts.get_or_create(&labels).inc();
    }

    pub fn parked(&self, kind: WaitKind) {
        match kind {
            WaitKind::Retry => self.parked_retry.inc(),
            WaitKind::Hold => self.parked_hold.inc(),
        };
    }

    pub fn dead(&self, reason: Reason) {
        let labels = BySubscriptionReason {
            subscription: self.subscription.clone(),
            reason: reason.as_str(),
        };
        self.dead_letters.get_or_create(&labels).inc();
    }
}

impl Meters {
    pub fn of_subscription(&self, subscription: &str) -> SubscriptionMeters {
        let by = BySubscription {
            subscription: subscription.to_owned(),
        };
        let parked = |reason| BySubscriptionReason {
            subscription: subscription.to_owned(),
            reason,
        };
        let delivered = BySubscriptionOutcome {
            subscription: subscription.to_owned(),
            outcome: "delivered",
            status_class: "2xx",
        };
        SubscriptionMeters {
            delivered: handle(&self.attempts, &delivered),
            duration: handle(&self.duration, &by),
            age: handle(&self.age, &by),
            in_flight: handle(&self.in_flight, &by),
            parked_retry: handle(&self.parked, &parked("retry")),
            parked_hold: handle(&self.parked, &parked("hold")),
            breaker: handle(&self.breaker, &by),
            unverified: handle(&self.unverified, &by),
            concurrency: handle(&self.concurrency, &by),
            rate_limited: handle(&self.rate_limited, &by),
            subscription: subscription.to_owned(),
            stale: self.stale.clone(),
            attempts: self.attempts.clone(),
            dead_letters: self.dead_letters.clone(),
            batches: self.batches.clone(),
        }
    }
}
