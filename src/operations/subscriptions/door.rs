//! The door that everything passes which changes a subscription, or how it stands: it is told to the
//! group, made durable, then it is in force, and only then answered.

use std::sync::Arc;

use super::shared::What;
use super::{Refused, Registry};
use crate::pipeline::Prepared;
use crate::store::{Registered, Remembered};
use crate::subscription::Uid;

/// A change that has been checked in full.
pub(super) enum Change {
    Put {
        record: Box<Registered>,
        prepared: Box<Prepared>,
        answered: Option<(String, Remembered)>,
    },
    Remove(Box<Registered>),
}

impl Registry {
    pub(super) async fn put(&self, record: Registered, prepared: Prepared) -> Result<(), Refused> {
        self.carry_out(Change::Put {
            record: Box::new(record),
            prepared: Box::new(prepared),
            answered: None,
        })
        .await
    }

    /// See the module. When it is passed, the change is in the log of the group, in the store,
    /// and in force.
    pub(super) async fn carry_out(&self, change: Change) -> Result<(), Refused> {
        let (name, what, prepared) = match change {
            Change::Put {
                record,
                prepared,
                answered,
            } => {
                let what = What::Put {
                    record: record.clone(),
                    answered: answered.map(Box::new),
                    again: false,
                };
                (record.name, what, Some(prepared))
            }
            Change::Remove(record) => {
                let Registered {
                    uid,
                    revision,
                    name,
                    ..
                } = *record;
                let revision = revision + 1;
                (name, What::Removed { uid, revision }, None)
            }
        };
        self.shared.tell(what, prepared).await?.in_force(name)
    }

    /// Tells the group of a record as it is read by each instance; `again`: of one that it knows.
    pub(super) async fn tell(&self, record: Registered, again: bool) -> Result<(), Refused> {
        let name = record.name.clone();
        let what = What::Put {
            record: Box::new(record),
            answered: None,
            again,
        };
        self.shared.tell(what, None).await?.in_force(name)
    }

    /// Pauses or resumes a subscription, on all instances.
    pub async fn set_paused(self: &Arc<Self>, uid: Uid, paused: bool) -> Result<(), Refused> {
        self.stand(What::Subscription { uid, paused }).await
    }

    /// Lets a disabled endpoint be tried again, by all instances.
    pub async fn enable(self: &Arc<Self>, endpoint: Arc<str>) -> Result<(), Refused> {
        self.stand(What::Endpoint {
            name: endpoint,
            disabled: None,
            first_gone_at: None,
        })
        .await
    }

    async fn stand(self: &Arc<Self>, what: What) -> Result<(), Refused> {
        let registry = self.clone();
        to_its_end(async move { registry.shared.tell(what, None).await.map(drop) }).await
    }
}

/// Does this work whether or not anybody waits for it any longer.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let failed = |error| Refused::Unavailable(format!("the change has failed: {error}"));
    tokio::spawn(work).await.map_err(failed)?
}
