//! Standing: paused subscriptions and disabled endpoints, in memory for the path and in the store
//! for the next start. What an attempt has told is noted there to be told to the other instances.

use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tracing::{error, warn};

use super::handshakes::HandshakeStatus;
use super::lanes::EndpointLane;
use super::meta::Cause;
use super::{Job, Pipeline, Target, target_of};
use crate::delivery::Delivery;
use crate::route::place;
use crate::store::{Disabled, DisabledBecause, EndpointStanding};
use crate::subscription::{Endpoint, Labels, Spec, Subscription, Uid};
use crate::verdict::EndpointNews;

/// What an operator is told of a subscription.
#[derive(Debug, Clone)]
pub struct SubscriptionStatus {
    pub name: Arc<str>,
    pub uid: Uid,
    pub endpoint: Arc<str>,
    /// Scheme, host and port; paths of webhooks are often credentials.
    pub url: String,
    pub method: http::Method,
    pub topics: Vec<String>,
    pub tenant: Option<Arc<str>>,
    pub labels: Labels,
    /// Its earlier names.
    pub was: Vec<Arc<str>>,
    pub state: State,
    /// Of its endpoint, if that has one.
    pub handshake: Option<HandshakeStatus>,
}

impl SubscriptionStatus {
    /// Of a subscription to `endpoint` that is in `state`.
    pub fn of(uid: Uid, spec: &Spec, endpoint: &Endpoint, state: State) -> Self {
        Self {
            name: spec.name.clone(),
            uid,
            endpoint: endpoint.name.clone(),
            url: endpoint.shown(),
            method: endpoint.method.clone(),
            topics: spec.topics.clone(),
            tenant: spec.tenant.clone(),
            labels: spec.labels.clone(),
            was: spec.was.to_vec(),
            state,
            handshake: None,
        }
    }

    /// Whether its endpoint is written in it, and nobody else's.
    pub fn has_own_endpoint(&self) -> bool {
        *self.endpoint == *self.uid.as_str() || self.endpoint == self.name
    }
}

/// Which subscriptions are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of this tenant only.
    pub tenant: Option<Arc<str>>,
    /// With all of these labels.
    pub labels: Vec<(String, String)>,
}

/// Subscriptions that are looked at for one page.
const LOOKED_AT: usize = 20_000;

/// The state of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Active,
    /// Matched and held, until it is resumed.
    Paused,
    /// The endpoint is gone: held, until it is enabled or `give_up_after` is over.
    Disabled,
    /// The endpoint has not agreed to get deliveries: held, until it has or `give_up_after` is over.
    Unverified,
    /// `enabled: false`: not matched.
    Off,
}

impl Pipeline {
    /// All subscriptions as they are here and now, by name.
    pub fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let routes = self.routes.load();
        routes.iter().map(|target| self.status_of(target)).collect()
    }

    /// At most `most` of those that are wanted, from the first one behind this name and uid on. Where
    /// it has looked at so many that it ends before, the place that it goes on behind.
    pub fn subscriptions_after(
        &self,
        wanted: &Wanted,
        after: Option<(&str, &str)>,
        most: usize,
    ) -> (Vec<SubscriptionStatus>, Option<(String, String)>) {
        let routes = self.routes.load();
        let all: Box<dyn Iterator<Item = &Arc<Target>>> = match &wanted.tenant {
            Some(tenant) => Box::new(routes.of_tenant(tenant, after)),
            None => Box::new(routes.after(after)),
        };
        let mut found = Vec::new();
        for (number, target) in all.enumerate() {
            if found.len() == most {
                break;
            }
            if target.subscription.spec.labels.have(&wanted.labels) {
                found.push(self.status_of(target));
            }
            if number + 1 == LOOKED_AT {
                let (name, uid) = place(&target.subscription);
                return (found, Some((name.to_owned(), uid.to_owned())));
            }
        }
        (found, None)
    }

    /// The subscription that a delivery would be for if it came back now.
    pub fn subscription_of(&self, delivery: &Delivery) -> Option<SubscriptionStatus> {
        let routes = self.routes.load();
        target_of(&routes, delivery).map(|target| self.status_of(target))
    }

    /// What is parked here of each, of one tenant or of all; of those of which there is something.
    pub fn parked_of(&self, tenant: Option<&str>) -> Vec<(Arc<str>, u64)> {
        let routes = self.routes.load();
        let all: Box<dyn Iterator<Item = &Arc<Target>>> = match tenant {
            Some(tenant) => Box::new(routes.of_tenant(tenant, None)),
            None => Box::new(routes.iter()),
        };
        let each = all.map(|target| (&target.subscription.spec.name, target.parked_count()));
        each.filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.clone(), count))
            .collect()
    }

    /// The subscription of this name.
    pub fn subscription_called(&self, name: &str) -> Option<SubscriptionStatus> {
        let routes = self.routes.load();
        routes.by_name(name).map(|target| self.status_of(target))
    }

    /// The subscription of this identity.
    pub fn subscription(&self, uid: &Uid) -> Option<SubscriptionStatus> {
        let routes = self.routes.load();
        routes.by_uid(uid).map(|target| self.status_of(target))
    }

    fn status_of(&self, target: &Target) -> SubscriptionStatus {
        let Subscription {
            uid,
            spec,
            endpoint,
            ..
        } = &target.subscription;
        SubscriptionStatus {
            handshake: target.handshake.as_ref().map(|it| it.status()),
            ..SubscriptionStatus::of(uid.clone(), spec, endpoint, self.state_of(target))
        }
    }

    /// How many deliveries of this subscription were parked here and not seen again. An estimate:
    /// another instance may have taken them over.
    pub fn parked_here(&self, subscription: &str) -> u64 {
        let routes = self.routes.load();
        routes
            .by_name(subscription)
            .map_or(0, |target| target.parked_count())
    }

    /// Takes over what the store says of this subscription: whether it is paused.
    pub fn follow_subscription(&self, uid: &Uid) {
        // It may be changed meanwhile, and then has another target.
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = self.routes.load().by_uid(uid) {
            self.reread_pause(target);
        }
    }

    /// Takes over what the store says of this endpoint: whether it is disabled, and its first 410.
    pub fn follow_endpoint(&self, endpoint: &str) {
        if let Some(lane) = self.lanes.get(endpoint) {
            lane.follow(&self.endpoint_standing(endpoint));
        }
    }

    /// Carries out what the attempt of `job` said about its endpoint.
    pub(super) fn note_endpoint(
        self: &Arc<Self>,
        lane: &Arc<EndpointLane>,
        job: &Job,
        news: EndpointNews,
    ) {
        let now = Timestamp::now();
        let (disabled, first_gone_at) = match news {
            EndpointNews::None => return,
            // An answer to what was sent before it was disabled.
            EndpointNews::FirstGone | EndpointNews::NotGone if lane.is_disabled() => return,
            EndpointNews::FirstGone => {
                lane.set_first_gone_at(Some(now));
                (None, Some(now))
            }
            EndpointNews::NotGone => {
                lane.set_first_gone_at(None);
                (None, None)
            }
            EndpointNews::Gone | EndpointNews::Unwilling => {
                if lane.is_disabled() {
                    return;
                }
                warn!(endpoint = %lane.name, "endpoint disabled: it is gone, or asked for it; `enable` undoes this");
                lane.set_disabled(true);
                let reason = if news == EndpointNews::Gone {
                    DisabledBecause::Gone
                } else {
                    DisabledBecause::Asked
                };
                let event = &job.delivery.event;
                self.meta.disabled(event, reason, || Cause::of(job));
                let disabled = Disabled { reason, at: now };
                (Some(disabled), lane.first_gone_at())
            }
        };
        let (pipeline, name) = (self.clone(), lane.name.clone());
        tokio::spawn(async move {
            let change = move |standing: &mut EndpointStanding| {
                (standing.disabled, standing.first_gone_at) = (disabled, first_gone_at);
            };
            let stored = pipeline.store.note_endpoint_standing(&name, change);
            if let Err(error) = stored.await {
                // In memory it holds; after a restart the endpoint is asked once more.
                error!(endpoint = %name, %error, "the endpoint's state cannot be stored");
            }
        });
    }

    pub(super) fn endpoint_standing(&self, endpoint: &str) -> EndpointStanding {
        self.store.endpoint_standing(endpoint).unwrap_or_else(|error| {
            error!(endpoint, %error, "the endpoint's state cannot be read; it is taken as active");
            EndpointStanding::default()
        })
    }

    pub(super) fn is_disabled(&self, endpoint: &str) -> bool {
        match self.lanes.get(endpoint) {
            Some(lane) => lane.is_disabled(),
            None => self.endpoint_standing(endpoint).disabled.is_some(),
        }
    }
}
