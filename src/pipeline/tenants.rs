//! Tenants: what all endpoints of one may use together.
//!
//! A delivery of a tenant with a rate or a number of deliveries under way at once needs a [`Pass`]
//! before it is offered to its lane, and keeps it until it has been attempted. One that gets none
//! waits here for at most five seconds, and else is held on the broker until the slot that is reserved
//! for it, as a lane does it: that is no attempt. Nobody waits behind it but those of its own tenant.
//! Waiting here takes half of the rooms' places at the most, so that a tenant over its share leaves
//! others theirs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::resolve::STANDING_HOLD;
use super::{Job, Pipeline};
use crate::deliver::lane::LONGEST_WAIT;
use crate::meters::{Meters, TenantMeters};
use crate::subscription::{Quota, Quotas, Subscription};

/// Those of one tenant that wait here at once.
const WAITING: usize = 256;
/// Starts that a rate allows at once: those of this much time, and at least one.
const BURST: Duration = Duration::from_millis(100);
/// A slot is never further away.
const FURTHEST: Duration = Duration::from_secs(3600);
/// Tenants that nobody has any more are dropped when there are so many at least.
const SWEEP_AT: usize = 1_024;

/// One tenant, while it has subscriptions.
pub struct Tenant {
    pub name: Arc<str>,
    /// It has a rate, or so many under way at once.
    is_limited: AtomicBool,
    state: Mutex<State>,
    /// One may begin, perhaps.
    freed: Notify,
    meters: ArcSwap<TenantMeters>,
}

struct State {
    quota: Quota,
    running: usize,
    waiting: usize,
    /// When the rate has a full burst again (generic cell rate algorithm).
    spent_until: Instant,
    /// Slots before this are reserved for held deliveries.
    reserved_until: Instant,
    /// Smoothed time that a pass is kept.
    pace: Duration,
}

/// The right of one delivery to be under way for its tenant. Dropped, it is given back.
pub struct Pass {
    tenant: Arc<Tenant>,
    began: Instant,
}

/// What a tenant says to a delivery.
enum Admission {
    Begins(Pass),
    /// It waits here.
    Waits,
    /// It is held for so long.
    Held(Duration),
}

impl Tenant {
    fn new(name: &str, quota: Quota, meters: TenantMeters) -> Self {
        let now = Instant::now();
        Self {
            name: name.into(),
            is_limited: AtomicBool::new(limits(quota)),
            state: Mutex::new(State {
                quota,
                running: 0,
                waiting: 0,
                spent_until: now,
                reserved_until: now,
                pace: Duration::from_millis(10),
            }),
            freed: Notify::new(),
            meters: ArcSwap::from_pointee(meters),
        }
    }

    pub fn meters(&self) -> arc_swap::Guard<Arc<TenantMeters>> {
        self.meters.load()
    }

    fn set(&self, quota: Quota, meters: TenantMeters) {
        self.lock().quota = quota;
        self.is_limited.store(limits(quota), Ordering::Relaxed);
        self.meters.store(Arc::new(meters));
        self.freed.notify_waiters();
    }

    fn admit(self: &Arc<Self>, now: Instant, room_left: bool) -> Admission {
        let mut state = self.lock();
        if state.waiting == 0 && state.may_begin(now) {
            return Admission::Begins(self.begin(&mut state, now));
        }
        let is_full = !room_left || state.waiting >= WAITING;
        if is_full || state.wait_for_rate(now) > LONGEST_WAIT {
            return Admission::Held(state.reserve(now));
        }
        state.waiting += 1;
        Admission::Waits
    }

    fn begin(self: &Arc<Self>, state: &mut State, now: Instant) -> Pass {
        state.begin(now);
        Pass {
            tenant: self.clone(),
            began: now,
        }
    }

    /// Waits for a pass as long as a delivery may; what it says instead is for how long it is held.
    async fn wait(self: &Arc<Self>) -> Result<Pass, Duration> {
        let until = Instant::now() + LONGEST_WAIT;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let next = {
                let now = Instant::now();
                let mut state = self.lock();
                if state.may_begin(now) {
                    state.waiting -= 1;
                    let pass = self.begin(&mut state, now);
                    let more = state.waiting > 0 && state.may_begin(now);
                    drop(state);
                    if more {
                        self.freed.notify_one();
                    }
                    return Ok(pass);
                }
                if now >= until {
                    state.waiting -= 1;
                    let held = state.reserve(now);
                    drop(state);
                    self.freed.notify_one();
                    return Err(held);
                }
                state
                    .next_token(now)
                    .map_or(until, |token| token.min(until))
            };
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limits(quota: Quota) -> bool {
    quota.rate.is_some() || quota.in_flight.is_some()
}

impl State {
    fn may_begin(&self, now: Instant) -> bool {
        self.has_place() && self.next_token(now).is_none()
    }

    fn has_place(&self) -> bool {
        let most = self.quota.in_flight;
        most.is_none_or(|most| self.running < most as usize)
    }

    fn begin(&mut self, now: Instant) {
        if self.running == 0 && self.waiting == 0 {
            self.reserved_until = self.reserved_until.min(now);
        }
        self.running += 1;
        if let Some(rate) = self.quota.rate {
            self.spent_until = self.spent_until.max(now) + rate.interval();
        }
    }

    /// When the rate has its next token; `None` when it has one now.
    fn next_token(&self, now: Instant) -> Option<Instant> {
        let interval = self.quota.rate?.interval();
        let burst = BURST.max(interval);
        let at = self.spent_until + interval;
        (at > now + burst).then(|| at - burst)
    }

    fn wait_for_rate(&self, now: Instant) -> Duration {
        let Some(rate) = self.quota.rate else {
            return Duration::ZERO;
        };
        let token = self.next_token(now).unwrap_or(now);
        token - now + rate.interval() * self.waiting as u32
    }

    /// The time until the next slot that is free, which is reserved then.
    fn reserve(&mut self, now: Instant) -> Duration {
        let rate = self.quota.rate.map(|rate| rate.interval());
        let places = self.quota.in_flight.map(|most| self.pace / most.max(1));
        let spacing = rate.max(places).unwrap_or_default();
        let begin = self.next_token(now).unwrap_or(now) + spacing * self.waiting as u32;
        let slot = self.reserved_until.max(begin) + spacing;
        // What only waits for a place is not kept from it for long.
        let furthest = match rate {
            Some(_) => FURTHEST,
            None => STANDING_HOLD,
        };
        self.reserved_until = slot.min(now + furthest);
        self.reserved_until - now
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.tenant.lock();
        state.running -= 1;
        state.pace = (state.pace * 7 + self.began.elapsed()) / 8;
        drop(state);
        self.tenant.freed.notify_one();
    }
}

/// All tenants that have subscriptions here.
pub struct Tenants {
    quotas: RwLock<Arc<Quotas>>,
    all: Mutex<HashMap<Arc<str>, Weak<Tenant>>>,
    meters: Arc<Meters>,
}

impl Tenants {
    pub fn new(meters: Arc<Meters>) -> Self {
        Self {
            quotas: RwLock::default(),
            all: Mutex::default(),
            meters,
        }
    }

    pub fn quotas(&self) -> Arc<Quotas> {
        let quotas = self.quotas.read();
        quotas.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tenant of a subscription, which has its name from now on.
    pub fn of(&self, subscription: &mut Subscription) -> Option<Arc<Tenant>> {
        let name = subscription.spec.tenant.as_deref()?;
        let mut all = self.lock();
        let known = all.get(name).and_then(Weak::upgrade);
        let tenant = known.unwrap_or_else(|| {
            if all.len() >= SWEEP_AT && all.len() == all.capacity() {
                all.retain(|_, tenant| tenant.strong_count() > 0);
            }
            let quotas = self.quotas();
            let meters = self.meters.of_tenant(name, quotas.is_named(name));
            let tenant = Arc::new(Tenant::new(name, quotas.of(name), meters));
            all.insert(tenant.name.clone(), Arc::downgrade(&tenant));
            tenant
        });
        subscription.spec.tenant = Some(tenant.name.clone());
        Some(tenant)
    }

    fn set(&self, quotas: Quotas) {
        let quotas = Arc::new(quotas);
        *self.quotas.write().unwrap_or_else(PoisonError::into_inner) = quotas.clone();
        for tenant in self.lock().values().filter_map(Weak::upgrade) {
            let name = &tenant.name;
            let meters = self.meters.of_tenant(name, quotas.is_named(name));
            tenant.set(quotas.of(name), meters);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Tenant>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipeline {
    /// What tenants may use, from now on.
    pub fn set_quotas(&self, quotas: Quotas) {
        self.tenants.set(quotas);
    }

    /// What this tenant may use.
    pub fn quota_of(&self, tenant: &str) -> Quota {
        self.tenants.quotas().of(tenant)
    }

    /// Whether a tenant has so many subscriptions, or more.
    pub fn tenant_has(&self, tenant: &str, count: u32) -> bool {
        let routes = self.routes.load();
        let has = routes.of_tenant(tenant, None).take(count as usize).count();
        has >= count as usize
    }

    /// Gets the delivery the pass that it needs; `None` where it waits for it.
    pub(super) fn admitted(self: &Arc<Self>, mut job: Job) -> Option<Job> {
        let Some(tenant) = &job.target.tenant else {
            return Some(job);
        };
        if job.pass.is_some() || !tenant.is_limited.load(Ordering::Relaxed) {
            return Some(job);
        }
        let room_left = self.lanes.half_is_left();
        match tenant.admit(Instant::now(), room_left) {
            Admission::Begins(pass) => {
                job.pass = Some(Box::new(pass));
                return Some(job);
            }
            Admission::Waits => {
                self.lanes.entered_room(job.ticket.share());
                tokio::spawn(self.clone().wait_for_pass(job));
            }
            Admission::Held(wait) => self.hold_for_tenant(job, wait),
        }
        None
    }

    async fn wait_for_pass(self: Arc<Self>, mut job: Job) {
        let share = job.ticket.share();
        let Some(tenant) = job.target.tenant.clone() else {
            return;
        };
        let waited = tenant.wait().await;
        self.lanes.left_room(share);
        match waited {
            Ok(pass) => {
                job.pass = Some(Box::new(pass));
                self.offer_again(job);
            }
            Err(wait) => self.hold_for_tenant(job, wait),
        }
    }

    fn hold_for_tenant(self: &Arc<Self>, job: Job, wait: Duration) {
        if let Some(tenant) = &job.target.tenant {
            tenant.meters().held.inc();
        }
        let lane = self.lane_of(&job.target);
        self.spawn_hold(job, wait, &lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(quota: Quota) -> Arc<Tenant> {
        let meters = Meters::new().of_tenant("acme", true);
        Arc::new(Tenant::new("acme", quota, meters))
    }

    fn in_flight(most: u32) -> Quota {
        Quota {
            in_flight: Some(most),
            ..Quota::default()
        }
    }

    fn pass(of: &Arc<Tenant>) -> Option<Pass> {
        match of.admit(Instant::now(), true) {
            Admission::Begins(pass) => Some(pass),
            Admission::Waits => {
                of.lock().waiting -= 1;
                None
            }
            Admission::Held(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_under_way_at_once_and_places_are_given_back() {
        let acme = tenant(in_flight(2));
        let (one, two) = (pass(&acme), pass(&acme));
        assert!(one.is_some() && two.is_some() && pass(&acme).is_none());
        drop(one);
        assert!(pass(&acme).is_some());
        drop(two);
        assert_eq!(acme.lock().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_that_is_given_back() {
        let acme = tenant(in_flight(1));
        let first = pass(&acme);
        let Admission::Waits = acme.admit(Instant::now(), true) else {
            panic!("there is room");
        };
        let waiting = tokio::spawn({
            let acme = acme.clone();
            async move { acme.wait().await.is_ok() }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(first);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_held_and_slots_are_spread() {
        let acme = tenant(in_flight(1));
        let _first = pass(&acme);
        let Admission::Waits = acme.admit(Instant::now(), true) else {
            panic!("there is room");
        };
        assert!(acme.wait().await.is_err());
        assert_eq!(acme.lock().waiting, 0);
        let held = |acme: &Arc<Tenant>| match acme.admit(Instant::now(), false) {
            Admission::Held(wait) => wait,
            _ => panic!("there is no room"),
        };
        acme.lock().pace = Duration::from_secs(1);
        let (one, two) = (held(&acme), held(&acme));
        assert_eq!(two - one, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_to_over_a_minute() {
        let rate = "10/s".parse().unwrap();
        let acme = tenant(Quota {
            rate: Some(rate),
            ..Quota::default()
        });
        let mut begun = 0;
        for _ in 0..6_000 {
            begun += u32::from(pass(&acme).is_some());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!((595..=605).contains(&begun), "{begun}");
    }
}
