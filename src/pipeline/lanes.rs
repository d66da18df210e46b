//! The lanes of all endpoints: made on first use, dropped when idle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::batches::Load;
use super::ticket::Ticket;
use crate::deliver::lane::{Lane, Limits};
use crate::store::EndpointStanding;
use crate::subscription::{Rate, Subscription};

/// A lane that has been idle for this long is dropped.
const IDLE_AFTER: Duration = Duration::from_secs(300);

/// An endpoint's lane, and whether the endpoint wants anything at all.
pub struct EndpointLane {
    pub name: Arc<str>,
    pub lane: Lane<Load>,
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

    /// Makes it as this says.
    pub fn follow(&self, standing: &EndpointStanding) {
        let disabled = standing.disabled.is_some();
        if disabled != self.is_disabled() {
            self.set_disabled(disabled);
        }
        self.set_first_gone_at(standing.first_gone_at);
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

/// For this long after it was due a delivery that was held may still be in the queue of what is due.
const STILL_DUE: Duration = Duration::from_secs(30);

/// Until when which endpoint has deliveries held, of the two for which that is longest: enough to
/// know whether one is the only one. An estimate: other instances hold deliveries too, of which this
/// one learns when they come back.
#[derive(Default)]
struct Held {
    most: Option<(Arc<str>, Instant)>,
    others: Option<Instant>,
}

impl Held {
    fn note(&mut self, endpoint: &Arc<str>, until: Instant) {
        match &mut self.most {
            Some((most, its)) if most == endpoint => *its = until.max(*its),
            Some((_, its)) if until <= *its => self.others = self.others.max(Some(until)),
            before => {
                let replaced = before.replace((endpoint.clone(), until));
                self.others = self.others.max(replaced.map(|(_, its)| its));
            }
        }
    }

    fn is_alone(&self, endpoint: &str, now: Instant) -> bool {
        let over = |until: Instant| until + STILL_DUE <= now;
        let mine = |(most, until): &(Arc<str>, Instant)| **most == *endpoint || over(*until);
        self.most.as_ref().is_none_or(mine) && self.others.is_none_or(over)
    }
}

/// See the module. All waiting rooms together have places for a bounded number of events; a delivery
/// that shares its event with others takes as much less.
pub struct Lanes {
    by_endpoint: Mutex<HashMap<Arc<str>, Arc<EndpointLane>>>,
    held: Mutex<Held>,
    /// In shares of events.
    waiting: AtomicUsize,
    places: usize,
}

impl Lanes {
    /// `places`: how many events may wait in all rooms together.
    pub fn new(places: usize) -> Self {
        Self {
            by_endpoint: Mutex::default(),
            held: Mutex::default(),
            waiting: AtomicUsize::new(0),
            places: places.max(1) * Ticket::WHOLE,
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

    /// A delivery to this endpoint is held until then.
    pub fn holds(&self, endpoint: &Arc<str>, until: Instant) {
        self.lock_held().note(endpoint, until);
    }

    /// Whether no other endpoint has deliveries held, as far as is known here.
    pub fn holds_nothing_else(&self, endpoint: &str, now: Instant) -> bool {
        self.lock_held().is_alone(endpoint, now)
    }

    fn lock_held(&self) -> MutexGuard<'_, Held> {
        self.held
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn room_left(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < self.places
    }

    /// Whether half of the places are left, which those that need not wait here leave to the others.
    pub fn half_is_left(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < self.places / 2
    }

    /// Deliveries with these [shares](Ticket::share) of their events wait.
    pub fn entered_room(&self, share: usize) {
        self.waiting.fetch_add(share, Ordering::Relaxed);
    }

    pub fn left_room(&self, share: usize) {
        self.waiting.fetch_sub(share, Ordering::Relaxed);
    }
}
