//! Finding: whom a name or a uid means, for who asks, and how that one is now.

use std::sync::{Arc, PoisonError};

use tokio::sync::MutexGuard;

use super::records::{answer, opened, written};
use super::{Answered, Listed, Refused, Registry, Settings, Shown, Wish};
use crate::store::Registered;
use crate::subscription::Uid;

/// Whom a name or a uid means.
pub(super) enum Found {
    OfConfig(Uid),
    Registered(Box<Registered>),
}

impl Registry {
    /// One subscription, by name or uid.
    /// `tenant`: who asks.
    pub async fn show(&self, which: &str, tenant: Option<&Arc<str>>) -> Result<Answered, Refused> {
        // Not those of whoever changes something, and may wait for a broker.
        let settings = self.shared.settings();
        match self.find(&settings, which, tenant)? {
            Found::OfConfig(uid) => {
                let listed = self.status(&uid).ok_or(Refused::Unknown)?;
                let registered = None;
                Ok(Answered {
                    name: listed.name.clone(),
                    etag: None,
                    body: written(&Shown { listed, registered }),
                })
            }
            Found::Registered(record) => {
                let document = opened(&settings.keys, &record)?;
                let listed = self.listed(&record);
                Ok(answer(&settings, &record, &document, listed, None))
            }
        }
    }

    /// Those that are kept and not in force, from the first one behind this place on.
    pub fn unusable_after(&self, after: Option<(&str, &str)>) -> Vec<Listed> {
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = |one: &&Listed| after.is_none_or(|after| one.place() > after);
        unusable.values().filter(behind).cloned().collect()
    }

    /// `tenant`: who asks.
    pub(super) fn find(
        &self,
        settings: &Settings,
        which: &str,
        tenant: Option<&Arc<str>>,
    ) -> Result<Found, Refused> {
        let found = self.find_any(settings, which)?;
        self.seen_by(tenant, &found)?;
        Ok(found)
    }

    fn find_any(&self, settings: &Settings, which: &str) -> Result<Found, Refused> {
        let uid = Uid::from_stored(which);
        let record = if which.contains(':') {
            if uid.is_of_config() {
                return Ok(Found::OfConfig(uid));
            }
            self.store.registered_with(&uid)?
        } else {
            if settings.reader.has(which) {
                return Ok(Found::OfConfig(Uid::of_config(which)));
            }
            self.store.registered_as(which)?
        };
        record
            .map(|record| Found::Registered(Box::new(record)))
            .ok_or(Refused::Unknown)
    }

    /// The turn to change the one that is meant, which is as the caller has seen it.
    pub(super) async fn turn(
        &self,
        which: &str,
        wish: &Wish,
    ) -> Result<(MutexGuard<'_, Settings>, Registered), Refused> {
        let settings = self.settings.lock().await;
        let record = self.registered(&settings, which, wish.tenant.as_ref())?;
        wish.if_match.check(&record)?;
        Ok((settings, record))
    }

    /// The one that may be changed here.
    fn registered(
        &self,
        settings: &Settings,
        which: &str,
        tenant: Option<&Arc<str>>,
    ) -> Result<Registered, Refused> {
        match self.find(settings, which, tenant)? {
            Found::Registered(record) => Ok(*record),
            Found::OfConfig(uid) => match self.status(&uid) {
                Some(listed) => Err(Refused::OfConfig(listed.name)),
                None => Err(Refused::Unknown),
            },
        }
    }

    pub(super) fn status(&self, uid: &Uid) -> Option<Listed> {
        let status = self.pipeline.subscription(uid)?;
        let parked = self.pipeline.parked_here(&status.name);
        Some(Listed::of(status, parked))
    }

    /// How it is now.
    pub(super) fn listed(&self, record: &Registered) -> Listed {
        self.status(&record.uid).unwrap_or_else(|| {
            let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (record.name.clone(), record.uid.to_string());
            unusable
                .get(&key)
                .cloned()
                .unwrap_or_else(|| Listed::unusable(record, String::new()))
        })
    }
}
