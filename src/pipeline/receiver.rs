//! A subscription as those need it who send to it after the fact.

use std::sync::Arc;

use super::standing::State;
use super::target::Parked;
use super::{Pipeline, Target};
use crate::subscription::{CompileError, Subscription};

/// A subscription as it is now, compiled apart from the snapshot.
pub struct Receiver {
    pub subscription: Subscription,
    pub state: State,
    /// What waits on the broker for it; `None` where no bridge runs that takes it off again.
    parked: Option<Arc<Parked>>,
}

impl Receiver {
    /// Of a config, with no bridge running.
    pub fn alone(subscription: Subscription, state: State) -> Self {
        Self {
            subscription,
            state,
            parked: None,
        }
    }

    /// Whether somebody takes off what is parked, as far as this process knows.
    pub fn is_served(&self) -> bool {
        self.parked.is_some()
    }

    /// One more of so many bytes waits on the broker for it, put there past the pipeline.
    pub fn parked(&self, size_bytes: usize) {
        if let Some(parked) = &self.parked {
            parked.add(size_bytes);
        }
    }

    /// Whether so much waits for it already that more should wait outside: half of `max_parked`,
    /// so that its own retries never find it full because of what was added.
    pub fn is_crowded(&self) -> bool {
        let limit = self.subscription.spec.max_parked;
        self.parked
            .as_ref()
            .is_some_and(|parked| parked.exceeds(limit.count / 2, limit.bytes / 2))
    }
}

impl AsRef<Subscription> for Receiver {
    fn as_ref(&self) -> &Subscription {
        &self.subscription
    }
}

impl Pipeline {
    /// The subscription of this name, as it is here and now.
    pub fn receiver(&self, name: &str) -> Result<Option<Receiver>, CompileError> {
        let routes = self.routes.load();
        let Some(target) = routes.by_name(name) else {
            return Ok(None);
        };
        let Subscription {
            uid,
            spec,
            endpoint,
            ..
        } = &target.subscription;
        let subscription = Subscription::compile(uid.clone(), spec.clone(), endpoint.clone())?;
        Ok(Some(Receiver {
            subscription,
            state: self.state_of(target),
            parked: Some(target.parked()),
        }))
    }

    pub(super) fn state_of(&self, target: &Target) -> State {
        let Subscription { spec, endpoint, .. } = &target.subscription;
        if !spec.enabled {
            State::Off
        } else if self.is_disabled(&endpoint.name) {
            State::Disabled
        } else if target.is_paused() {
            State::Paused
        } else if target.is_unverified() {
            State::Unverified
        } else {
            State::Active
        }
    }
}
