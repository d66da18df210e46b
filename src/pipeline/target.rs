//! Targets: a subscription in the routing snapshot, with all that delivering to it needs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::batches::Gatherer;
use super::handshakes::Handshaking;
use super::lanes::EndpointLane;
use super::tenants::Tenant;
use crate::deliver::signature::{SecretError, Signer};
use crate::delivery::Reason;
use crate::meters::{Meters, SubscriptionMeters};
use crate::render::{RenderError, Renderer};
use crate::subscription::{Rate, Subscription};

/// A subscription with its renderer, its signer, its meters and what this instance knows of it.
pub struct Target {
    pub subscription: Subscription,
    pub renderer: Renderer,
    pub signer: Signer,
    /// Scheme, host and port of the endpoint.
    pub endpoint_shown: String,
    pub meters: SubscriptionMeters,
    /// Where its deliveries wait for each other, with `batch`.
    pub gatherer: Option<Gatherer>,
    /// Matched and held.
    pub paused: AtomicBool,
    /// What the endpoint has to agree to before the first delivery.
    pub handshake: Option<Arc<Handshaking>>,
    /// Whose it is.
    pub tenant: Option<Arc<Tenant>>,
    parked: Arc<Parked>,
    lane: Mutex<Weak<EndpointLane>>,
}

/// Why nothing can be delivered to an endpoint; the config has checked it before.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Payload(#[from] RenderError),
}

/// What this instance has parked of one subscription and not yet seen again. An estimate: another
/// instance may have taken it over.
#[derive(Debug, Default)]
pub struct Parked {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Parked {
    /// Whether it is more than this.
    pub fn exceeds(&self, count: u64, bytes: u64) -> bool {
        self.count.load(Ordering::Relaxed) > count || self.bytes.load(Ordering::Relaxed) > bytes
    }

    /// One more; how many there were, and their bytes.
    pub fn add(&self, size_bytes: usize) -> (u64, u64) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(size_bytes as u64, Ordering::Relaxed);
        (count, bytes)
    }

    fn remove(&self, size_bytes: usize) {
        let less = |counter: &AtomicU64, by: u64| {
            // Never below zero: what another instance parked comes back here too.
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                Some(now.saturating_sub(by))
            });
        };
        less(&self.count, 1);
        less(&self.bytes, size_bytes as u64);
    }
}

/// What metrics call it. Labels are names of the config; those who use the API could make any number,
/// so that all of theirs count together.
fn label(subscription: &Subscription) -> &str {
    match subscription.uid.is_of_config() {
        true => &subscription.spec.name,
        false => OF_THE_API,
    }
}

/// No name has parentheses.
const OF_THE_API: &str = "(api)";

impl AsRef<Subscription> for Target {
    fn as_ref(&self) -> &Subscription {
        &self.subscription
    }
}

impl Target {
    pub fn new(
        subscription: Subscription,
        tenant: Option<Arc<Tenant>>,
        paused: bool,
        parked: Arc<Parked>,
        meters: &Meters,
    ) -> Result<Self, Unusable> {
        let endpoint = &subscription.endpoint;
        let signer = Signer::new(&endpoint.signature, &endpoint.secrets)?;
        let renderer = Renderer::new(endpoint)?;
        let meters = meters.of_subscription(label(&subscription));
        Ok(Self {
            endpoint_shown: subscription.endpoint.shown(),
            gatherer: endpoint.payload.batch.map(Gatherer::new),
            subscription,
            renderer,
            signer,
            meters,
            paused: AtomicBool::new(paused),
            handshake: None,
            tenant,
            parked,
            lane: Mutex::new(Weak::new()),
        })
    }

    /// A dead letter was made of one of its deliveries.
    pub fn buried(&self, reason: Reason) {
        self.meters.dead(reason);
        if let Some(tenant) = &self.tenant {
            tenant.meters().dead.inc();
        }
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Whether its endpoint has yet to agree to get deliveries.
    pub fn is_unverified(&self) -> bool {
        let handshake = self.handshake.as_ref();
        handshake.is_some_and(|handshake| !handshake.is_agreed())
    }

    /// How long deliveries are held that come now, `most` at most, because the endpoint has yet to agree.
    pub fn unverified_for(&self, most: Duration) -> Option<Duration> {
        let handshake = self.handshake.as_ref()?;
        (!handshake.is_agreed()).then(|| handshake.hold().min(most))
    }

    pub fn has_rate(&self) -> bool {
        self.subscription.endpoint.rate.is_some() || self.allowed().is_some()
    }

    /// What the endpoint has allowed.
    pub fn allowed(&self) -> Option<Rate> {
        self.handshake.as_ref()?.allowed()
    }

    /// The lane that was used last, if it is still there.
    pub fn lane(&self) -> Option<Arc<EndpointLane>> {
        self.lane
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .upgrade()
    }

    pub fn remember_lane(&self, lane: &Arc<EndpointLane>) {
        *self
            .lane
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::downgrade(lane);
    }

    /// What waits for it.
    pub fn parked(&self) -> Arc<Parked> {
        self.parked.clone()
    }

    /// Counts a parked delivery; `false` when `max_parked` is reached, and then nothing is counted.
    pub fn park(&self, size_bytes: usize) -> bool {
        let limit = self.subscription.spec.max_parked;
        let (count, bytes) = self.parked.add(size_bytes);
        if count < limit.count && bytes < limit.bytes {
            return true;
        }
        self.unpark(size_bytes);
        false
    }

    /// Counts a parked delivery, however many there are.
    pub fn park_anyway(&self, size_bytes: usize) {
        self.parked.add(size_bytes);
    }

    /// How many are parked, as far as this instance knows.
    pub fn parked_count(&self) -> u64 {
        self.parked.count.load(Ordering::Relaxed)
    }

    /// A parked delivery has come back, was dropped, or was not parked after all.
    pub fn unpark(&self, size_bytes: usize) {
        self.parked.remove(size_bytes);
    }
}
