//! Subscriptions as the admin API shows and changes them.

use std::sync::Arc;

use async_trait::async_trait;

use crate::admin::{Change, Listed, NotChanged, Subscriptions};
use crate::operations::{Operations, parked};
use crate::pipeline::{Pipeline, State, SubscriptionStatus};

/// The pipeline, behind what the API needs of it.
pub struct OfPipeline {
    pub pipeline: Arc<Pipeline>,
    pub operations: Arc<Operations>,
}

impl OfPipeline {
    fn listed(&self, status: SubscriptionStatus) -> Listed {
        let parked = self.pipeline.parked_here(&status.name);
        listed(status, parked)
    }

    fn state(&self, name: &str) -> Option<State> {
        let all = self.pipeline.subscriptions();
        all.iter()
            .find(|one| &*one.name == name)
            .map(|one| one.state)
    }

    /// Brings forward what was held for a subscription that takes deliveries again, and for the
    /// others of its endpoint where that was enabled.
    fn release_holds(&self, name: &str, change: Change) {
        let all = self.pipeline.subscriptions();
        let Some(endpoint) = all.iter().find(|one| &*one.name == name) else {
            return;
        };
        let endpoint = endpoint.endpoint.clone();
        let changed: Vec<_> = all
            .into_iter()
            .filter(|one| {
                one.state == State::Active
                    && (&*one.name == name || (change.is_of_endpoint() && one.endpoint == endpoint))
            })
            .collect();
        let operations = self.operations.clone();
        // One after the other: two orders would take each other's messages off the tiers.
        tokio::spawn(async move {
            for one in changed {
                parked::release_holds(&operations, &one.name, one.uid).await;
            }
        });
    }
}

#[async_trait]
impl Subscriptions for OfPipeline {
    async fn list(&self) -> Vec<Listed> {
        let all = self.pipeline.subscriptions();
        all.into_iter().map(|one| self.listed(one)).collect()
    }

    async fn change(&self, name: &str, change: Change) -> Result<Listed, NotChanged> {
        let before = self.state(name);
        let known = match change {
            Change::Pause => self.pipeline.set_paused(name, true).await,
            Change::Resume => self.pipeline.set_paused(name, false).await,
            Change::Enable => self.pipeline.enable(name).await,
            Change::Verify => match self.pipeline.verify(name).await {
                Some(false) => {
                    let why = "its endpoint has no `handshake` in the config";
                    return Err(NotChanged::Conflict(why.to_owned()));
                }
                known => Ok(known.is_some()),
            },
        };
        match known {
            Ok(true) => {}
            Ok(false) => return Err(NotChanged::Unknown),
            Err(error) => return Err(NotChanged::Unavailable(format!("{error:#}"))),
        }
        if before != Some(State::Active) {
            self.release_holds(name, change);
        }
        let now = self
            .pipeline
            .subscriptions()
            .into_iter()
            .find(|subscription| &*subscription.name == name);
        now.map(|one| self.listed(one)).ok_or(NotChanged::Unknown)
    }
}

fn listed(status: SubscriptionStatus, parked: u64) -> Listed {
    let (state, why) = match status.state {
        State::Active => ("active", None),
        State::Paused => ("paused", None),
        State::Disabled => (
            "disabled",
            Some("the endpoint answered 410 twice, or asked for it".to_owned()),
        ),
        State::Unverified => {
            let handshake = status.handshake.as_ref();
            let why = handshake.and_then(|handshake| handshake.why.clone());
            let why = why.unwrap_or_else(|| "the endpoint is being asked".to_owned());
            ("unverified", Some(why))
        }
        State::Off => ("not_enabled", None),
    };
    Listed {
        name: status.name.to_string(),
        uid: status.uid.to_string(),
        state,
        why,
        topics: status.topics,
        endpoint: status.endpoint.to_string(),
        url: status.url,
        handshake: status.handshake,
        parked,
    }
}
