//! Subscriptions as the admin API shows and changes them.

use std::sync::Arc;

use async_trait::async_trait;

use crate::admin::{Change, NotChanged, Subscriptions};
use crate::operations::subscriptions::{Cursor, Listed, Refused, Registry};
use crate::operations::{Operations, parked};
use crate::pipeline::{Pipeline, State, SubscriptionStatus};
use crate::subscription::Uid;

/// The pipeline, behind what the API needs of it.
pub struct OfPipeline {
    pub pipeline: Arc<Pipeline>,
    pub operations: Arc<Operations>,
    pub registry: Arc<Registry>,
}

impl OfPipeline {
    fn listed(&self, status: SubscriptionStatus) -> Listed {
        let parked = self.pipeline.parked_here(&status.name);
        Listed::of(status, parked)
    }

    fn state(&self, name: &str) -> Option<State> {
        let all = self.pipeline.subscriptions();
        all.iter()
            .find(|one| &*one.name == name)
            .map(|one| one.state)
    }

    /// Has all instances know of it. `false` when there is no subscription of this name.
    async fn stand<F>(
        &self,
        name: &str,
        change: impl FnOnce(SubscriptionStatus) -> F,
    ) -> anyhow::Result<bool>
    where
        F: Future<Output = Result<(), Refused>>,
    {
        let all = self.pipeline.subscriptions();
        match all.into_iter().find(|one| &*one.name == name) {
            Some(one) => Ok(change(one).await.map(|()| true)?),
            None => Ok(false),
        }
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

    async fn page(&self, after: Option<&Cursor>, most: usize) -> Vec<Listed> {
        let after = after.map(Cursor::place);
        let page = self.pipeline.subscriptions_after(after, most);
        let mut page: Vec<_> = page.into_iter().map(|one| self.listed(one)).collect();
        page.extend(self.registry.unusable_after(after));
        page.sort_by(|one, other| one.place().cmp(&other.place()));
        page.truncate(most);
        page
    }

    async fn change(&self, which: &str, change: Change) -> Result<Listed, NotChanged> {
        let by_uid = which.contains(':').then(|| Uid::from_stored(which));
        let by_uid = by_uid.and_then(|uid| self.pipeline.subscription(&uid));
        let name = by_uid.as_ref().map_or(which, |one| &*one.name);
        let before = self.state(name);
        let known = match change {
            Change::Pause => {
                self.stand(name, |one| self.registry.set_paused(one.uid, true))
                    .await
            }
            Change::Resume => {
                self.stand(name, |one| self.registry.set_paused(one.uid, false))
                    .await
            }
            Change::Enable => {
                self.stand(name, |one| self.registry.enable(one.endpoint))
                    .await
            }
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
