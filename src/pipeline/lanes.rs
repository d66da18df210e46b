//! The lanes of all endpoints: made on first use, dropped when idle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Job;
use crate::deliver::lane::{Lane, Limits};
use crate::store::EndpointStanding;
use crate::subscription::{Rate, Subscription};

/// A lane that has been idle for this long is dropped.
const IDLE_AFTER: Duration = Duration::from_secs(300);

/// An endpoint's lane, and whether the endpoint wants anything at all.
pub struct EndpointLane {
    pub name: Arc<str>,
    pub lane: Lane<Job>,
    /// Disabled by a second 410 or by its own wish: nothing is attempted.
    disabled: AtomicBool,
    first_gone_at: Mutex<Option<Timestamp>>,
    last_used: Mutex<Instant>,
}

impl EndpointLane {
    fn new(
        subscription: &Subscription,
        allowed: Option<Rate>,
        standing: &EndpointStanding,
    ) -> Self {
        let now = Instant::now();
        Self {
            name: subscription.endpoint.name.clone(),
            lane: Lane::new(limits_of(subscription, allowed), now),
            disabled: AtomicBool::new(standing.disabled.is_some()),
            first_gone_at: Mutex::new(standing.first_gone_at),
            last_used: Mutex::new(now),
        }
    }

    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    pub fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Relaxed);
        if !disabled {
            self.set_first_gone_at(None);
            self.lane.open();
        }
    }

    pub fn first_gone_at(&self) -> Option<Timestamp> {
        *self
            .first_gone_at
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn set_first_gone_at(&self, at: Option<Timestamp>) {
        *self
            .first_gone_at
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = at;
    }

    pub fn touch(&self, now: Instant) {
        *self
            .last_used
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = now;
    }

    pub fn last_used(&self) -> Instant {
        *self
            .last_used
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// `allowed`: what the endpoint takes by its own word; the lower rate counts.
fn limits_of(subscription: &Subscription, allowed: Option<Rate>) -> Limits {
    let endpoint = &subscription.endpoint;
    Limits {
        slow_after: subscription.spec.slow_after,
        concurrency: endpoint.concurrency,
        adaptive: endpoint.adaptive,
        rate: endpoint
            .rate
            .into_iter()
            .chain(allowed)
            .max_by_key(Rate::interval),
        breaker: endpoint.breaker,
    }
}

/// See the module. All waiting rooms together have a bounded number of places.
pub struct Lanes {
    by_endpoint: Mutex<HashMap<Arc<str>, Arc<EndpointLane>>>,
    waiting: AtomicUsize,
    places: usize,
}

impl Lanes {
    /// `places`: how many deliveries may wait in all rooms together.
    pub fn new(places: usize) -> Self {
        Self {
            by_endpoint: Mutex::default(),
            waiting: AtomicUsize::new(0),
            places: places.max(1),
        }
    }

    /// The lane of the subscription's endpoint; `standing` is asked for when it has to be made.
    pub fn of(
        &self,
        subscription: &Subscription,
        allowed: Option<Rate>,
        standing: impl FnOnce() -> EndpointStanding,
    ) -> Arc<EndpointLane> {
        let mut lanes = self
            .by_endpoint
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(lane) = lanes.get(&subscription.endpoint.name) {
            return lane.clone();
        }
        let lane = Arc::new(EndpointLane::new(subscription, allowed, &standing()));
        lanes.insert(subscription.endpoint.name.clone(), lane.clone());
        lane
    }

    /// The lane of this endpoint if it is in use.
    pub fn get(&self, endpoint: &str) -> Option<Arc<EndpointLane>> {
        self.by_endpoint
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(endpoint)
            .cloned()
    }

    /// After a reload: lanes in use take the new limits over.
    pub fn update(&self, subscription: &Subscription, allowed: Option<Rate>) {
        if let Some(lane) = self.get(&subscription.endpoint.name) {
            lane.lane.set_limits(limits_of(subscription, allowed));
        }
    }

    /// Drops lanes that nothing has used for a while.
    pub fn drop_idle(&self, now: Instant) {
        let mut lanes = self
            .by_endpoint
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        lanes.retain(|_, lane| {
            Arc::strong_count(lane) > 1
                || !lane.lane.is_idle()
                || now.saturating_duration_since(lane.last_used()) < IDLE_AFTER
        });
    }

    pub fn room_left(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < self.places
    }

    pub fn entered_room(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub fn left_room(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}
