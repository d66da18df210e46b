//! Subscriptions as the admin API shows and changes them.

use std::sync::Arc;

use async_trait::async_trait;

use crate::admin::{Change, NotChanged, Subscriptions};
use crate::operations::subscriptions::{Cursor, Listed, Page, Refused, Registry};
use crate::operations::{Operations, parked};
use crate::pipeline::{Pipeline, State, SubscriptionStatus, Wanted};
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

    /// Brings forward what was held for a subscription that takes deliveries again, and for the
    /// others of its endpoint where that was enabled.
    fn release_holds(&self, one: SubscriptionStatus, change: Change) {
        let changed = match change.is_of_endpoint() && !one.has_own_endpoint() {
            true => self.pipeline.subscriptions(),
            false => vec![one.clone()],
        };
        let changed: Vec<_> = changed
            .into_iter()
            .filter(|other| other.state == State::Active && other.endpoint == one.endpoint)
            .collect();
        let operations = self.operations.clone();
        // One after the other: two orders would take each other's messages off the tiers.
        tokio::spawn(async move {
            for one in changed {
                parked::release_holds(&operations, &one.name, one.uid).await;
            }
        });
    }

    fn status(&self, which: &str) -> Option<SubscriptionStatus> {
        match which.contains(':') {
            true => self.pipeline.subscription(&Uid::from_stored(which)),
            false => self.pipeline.subscription_called(which),
        }
    }
}

#[async_trait]
impl Subscriptions for OfPipeline {
    async fn list(&self) -> Vec<Listed> {
        let all = self.pipeline.subscriptions();
        all.into_iter().map(|one| self.listed(one)).collect()
    }

    async fn page(&self, wanted: &Wanted, after: Option<&Cursor>, most: usize) -> Page {
        let after = after.map(Cursor::place);
        // One more tells whether there are more.
        let (found, stopped) = self.pipeline.subscriptions_after(wanted, after, most + 1);
        let mut page: Vec<_> = found.into_iter().map(|one| self.listed(one)).collect();
        let reached = stopped.as_ref();
        let is_reached = |one: &Listed| {
            reached.is_none_or(|(name, uid)| one.place() <= (name.as_str(), uid.as_str()))
        };
        let unusable = self.registry.unusable_after(after).into_iter();
        page.extend(unusable.filter(|one| one.is(wanted) && is_reached(one)));
        page.sort_by(|one, other| one.place().cmp(&other.place()));
        let more = page.len() > most;
        page.truncate(most);
        let next = match stopped {
            Some((name, uid)) if !more => Some(Cursor::at(name, uid)),
            _ => page.last().filter(|_| more).map(Cursor::behind),
        };
        Page { listed: page, next }
    }

    async fn one(&self, which: &str, tenant: Option<&str>) -> Option<Listed> {
        let one = self.status(which)?;
        let is_its = tenant.is_none_or(|tenant| one.tenant.as_deref() == Some(tenant));
        is_its.then(|| self.listed(one))
    }

    async fn parked(&self, tenant: Option<&str>) -> Vec<(Arc<str>, u64)> {
        self.pipeline.parked_of(tenant)
    }

    async fn change(&self, which: &str, change: Change) -> Result<Listed, NotChanged> {
        let before = self.status(which).ok_or(NotChanged::Unknown)?;
        let name = &*before.name;
        let known = match change {
            Change::Pause => told(self.registry.set_paused(before.uid.clone(), true).await),
            Change::Resume => told(self.registry.set_paused(before.uid.clone(), false).await),
            Change::Enable => told(self.registry.enable(before.endpoint.clone()).await),
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
        let now = self.pipeline.subscription(&before.uid);
        let now = now.ok_or(NotChanged::Unknown)?;
        if before.state != State::Active {
            self.release_holds(now.clone(), change);
        }
        Ok(self.listed(now))
    }
}

/// All instances know of it.
fn told(result: Result<(), Refused>) -> anyhow::Result<bool> {
    Ok(result.map(|()| true)?)
}
