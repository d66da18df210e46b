//! Loading: subscriptions of the API read from the store, at the start and whenever the config has
//! changed, and what has to be kept up in the background.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::shared::{Shared, Sharing};
use super::{Listed, Mistake, Read, Refused, Registry, Settings, document, opened, sealed};
use crate::pipeline::{Pipeline, Prepared};
use crate::store::{Changes, KeyError, Registered, Store, StoreError};
use crate::subscription::{Spec, Subscription, Uid};

/// Read at once; what they refer to is read anew for each so many.
const AT_ONCE: usize = 1_000;
/// Nothing is kept up later than this.
const LOOK: Duration = Duration::from_secs(60);

/// Why subscriptions of the API cannot be loaded. Each is kept as it is.
#[derive(Debug, thiserror::Error)]
pub enum NotLoaded {
    #[error(
        "subscription `{name}`, which was made over the API, cannot be opened: {why}. Add the key that it was sealed with to `store_key`, behind the one that is to seal"
    )]
    Sealed { name: String, why: KeyError },
    #[error("the store cannot be read: {0}")]
    Store(#[from] StoreError),
    #[error("{0:#}")]
    Config(anyhow::Error),
}

/// What a load has found.
#[derive(Default)]
pub(super) struct Loaded {
    usable: Vec<Prepared>,
    unusable: BTreeMap<(String, String), Listed>,
    expiring: BTreeMap<Uid, Timestamp>,
}

impl Registry {
    /// Over a store and a pipeline, into which it puts these subscriptions of the config and its own.
    pub fn open(
        store: Arc<Store>,
        pipeline: Arc<Pipeline>,
        settings: Settings,
        of_config: Vec<Subscription>,
        sharing: Sharing,
    ) -> Result<Arc<Self>, NotLoaded> {
        let remembered = store.all_remembered()?.into_iter().collect();
        let registry = Self {
            shared: Shared::new(sharing, settings.clone()),
            store,
            pipeline,
            settings: tokio::sync::Mutex::new(settings),
            unusable: Mutex::default(),
            expiring: Mutex::default(),
            remembered: Mutex::new(remembered),
            news: Notify::new(),
            resealing: AtomicBool::new(true),
        };
        let settings = registry
            .settings
            .try_lock()
            .expect("nobody else has it yet");
        let Loaded {
            usable,
            unusable,
            expiring,
        } = load(&registry.store, &registry.pipeline, &settings)?;
        let installed = registry.pipeline.install_with(of_config, usable);
        installed.map_err(NotLoaded::Config)?;
        registry.installed(unusable, expiring);
        drop(settings);
        Ok(Arc::new(registry))
    }

    /// A config that has changed: its subscriptions are reconciled with the store, and those of the API
    /// are read by it. Where that fails the one before stays in force.
    pub async fn reload(
        &self,
        new: Settings,
        specs: &BTreeMap<Arc<str>, Spec>,
        compiled: impl FnOnce(&Store) -> anyhow::Result<Vec<Subscription>>,
    ) -> anyhow::Result<Changes> {
        let mut settings = self.settings.lock().await;
        let still = self.shared.still().await;
        // What the store holds of the API is not what is in force while all of the log is read: that
        // stays, and is read by the new config when this instance has caught up.
        let is_ahead = still.is_ahead();
        // There may be very many, and deliveries go on meanwhile.
        let (store, pipeline) = (self.store.clone(), self.pipeline.clone());
        let loading = move || match is_ahead {
            true => Ok((None, new)),
            false => load(&store, &pipeline, &new).map(|loaded| (Some(loaded), new)),
        };
        let (loaded, new) = tokio::task::spawn_blocking(loading).await??;
        let changes = self.store.reconcile(specs).await?;
        let of_config = compiled(&self.store)?;
        let pipeline = self.pipeline.clone();
        match loaded {
            None => {
                let installing = move || pipeline.replace_of_config(of_config);
                tokio::task::spawn_blocking(installing).await??;
            }
            Some(Loaded {
                usable,
                unusable,
                expiring,
            }) => {
                let installing = move || pipeline.install_with(of_config, usable);
                tokio::task::spawn_blocking(installing).await??;
                self.installed(unusable, expiring);
            }
        }
        self.shared.read_by(new.clone());
        drop(still);
        *settings = new;
        self.resealing.store(true, Ordering::Relaxed);
        self.news.notify_one();
        Ok(changes)
    }

    /// Makes what the store holds all that there is of the API.
    pub(super) async fn read_again(&self, settings: Settings) -> Result<(), NotLoaded> {
        let (store, pipeline) = (self.store.clone(), self.pipeline.clone());
        let loading = move || {
            let Loaded {
                usable,
                unusable,
                expiring,
            } = load(&store, &pipeline, &settings)?;
            pipeline.replace_registered(usable);
            Ok((unusable, expiring))
        };
        let loaded: Result<_, NotLoaded> = tokio::task::spawn_blocking(loading)
            .await
            .map_err(|why| NotLoaded::Config(why.into()))?;
        let (unusable, expiring) = loaded?;
        self.installed(unusable, expiring);
        Ok(())
    }

    fn installed(
        &self,
        unusable: BTreeMap<(String, String), Listed>,
        expiring: BTreeMap<Uid, Timestamp>,
    ) {
        for one in unusable.values() {
            let why = one.why.as_deref().unwrap_or_default();
            error!(subscription = %one.name, uid = %one.uid, why, "a subscription that was made over the API cannot be used: it is kept, and matches nothing");
        }
        self.shared.unusable(unusable.len());
        *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = unusable;
        *self.expiring.lock().unwrap_or_else(PoisonError::into_inner) = expiring;
    }

    /// Takes out secrets that have expired, forgets old answers, and seals with the first key what an
    /// older one has sealed; for ever.
    pub async fn keep_up(self: Arc<Self>) {
        self.in_step().await;
        loop {
            let kept_up = async {
                self.reseal().await?;
                self.expire(Timestamp::now()).await?;
                self.forget(Timestamp::now()).await
            };
            let wait = match kept_up.await {
                Ok(()) => self.until_next_expiry(Timestamp::now()).min(LOOK),
                Err(why) => {
                    warn!(error = %why, "subscriptions of the API are not kept up; tried again in a minute");
                    LOOK
                }
            };
            tokio::select! {
                () = self.news.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn until_next_expiry(&self, now: Timestamp) -> Duration {
        let expiring = self.expiring.lock().unwrap_or_else(PoisonError::into_inner);
        let next = expiring.values().min();
        next.map_or(LOOK, |next| {
            // A little later, so that it is over.
            let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
            left + Duration::from_millis(20)
        })
    }

    async fn expire(&self, now: Timestamp) -> Result<(), Refused> {
        let due: Vec<Uid> = {
            let expiring = self.expiring.lock().unwrap_or_else(PoisonError::into_inner);
            let due = expiring.iter().filter(|(_, at)| **at <= now);
            due.map(|(uid, _)| uid.clone()).collect()
        };
        if !due.is_empty() {
            // All instances know of it at the same time, and one is enough.
            tokio::time::sleep(self.shared.turn()).await;
        }
        for uid in due {
            let settings = self.settings.lock().await;
            let Some(record) = self.store.registered_with(&uid)? else {
                continue;
            };
            if !record.old_until.iter().any(|at| *at <= now) {
                continue;
            }
            let old = opened(&settings.keys, &record)?;
            let (new, old_until) = in_effect(&record, old, now);
            let record = Registered {
                revision: record.revision + 1,
                changed_at: now,
                old_until,
                ..record
            };
            let record = sealed(&settings, record, &new)?;
            // Where it is not in force, what has expired goes all the same.
            let name = record.name.clone();
            match self.tell(record, false).await {
                Ok(()) => info!(subscription = %name, %uid, "an old secret has expired"),
                // Another instance was first.
                Err(Refused::Changed) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Seals anew, one by one; changes can come in between.
    async fn reseal(&self) -> Result<(), Refused> {
        if !self.resealing.load(Ordering::Relaxed) {
            return Ok(());
        }
        let keys = self.settings.lock().await.keys.clone();
        let answers = self.reseal_answers(&keys).await?;
        let store = self.store.clone();
        let looking = move || -> Result<Vec<Uid>, StoreError> {
            let is_outdated = |record: &Registered| {
                let sealed = record.endpoint.as_ref();
                sealed.is_some_and(|sealed| !keys.is_current(sealed))
            };
            let mut outdated = Vec::new();
            for record in store.each_registered() {
                let record = record?;
                if is_outdated(&record) {
                    outdated.push(record.uid);
                }
            }
            Ok(outdated)
        };
        let looked = tokio::task::spawn_blocking(looking).await;
        let outdated = looked.map_err(|why| Refused::Unavailable(why.to_string()))??;
        for uid in &outdated {
            let settings = self.settings.lock().await;
            let Some(record) = self.store.registered_with(uid)? else {
                continue;
            };
            // Another instance may have done it.
            if record
                .endpoint
                .as_ref()
                .is_none_or(|sealed| settings.keys.is_current(sealed))
            {
                continue;
            }
            let document = opened(&settings.keys, &record)?;
            let record = sealed(&settings, record, &document)?;
            match self.tell(record, true).await {
                // What has come in between is sealed with the key that it is to be.
                Ok(()) | Err(Refused::Changed) => {}
                Err(other) => return Err(other),
            }
        }
        self.resealing.store(false, Ordering::Relaxed);
        let count = outdated.len() + answers;
        if count > 0 {
            info!(
                count,
                "everything is sealed with the first key of `store_key` now; older ones are needed no longer"
            );
        }
        Ok(())
    }
}

impl Registry {
    /// Ready to be put in force, or why not. Its document is opened already.
    pub(super) fn prepared_of(
        &self,
        settings: &Settings,
        record: &Registered,
        document: &Value,
    ) -> Result<Prepared, String> {
        if settings.reader.has(&record.name) {
            return Err(NAME_OF_CONFIG.to_owned());
        }
        let read = settings.reader.read(&[(&record.uid, document)]).pop();
        let read = read.expect("one was asked for");
        let read = read.map_err(|mistakes| said(&mistakes))?;
        let prepared = self.prepared(&record.uid, read);
        prepared.map_err(|why| format!("{why:#}"))
    }
}

/// Reads all that are kept, and makes them ready.
fn load(store: &Store, pipeline: &Pipeline, settings: &Settings) -> Result<Loaded, NotLoaded> {
    let mut loaded = Loaded::default();
    each_kept(store, settings, |record, read| {
        let prepared = read.and_then(|read| {
            let compiled = Subscription::compile(record.uid.clone(), read.spec, read.endpoint);
            let prepared = compiled.map_err(anyhow::Error::from);
            let prepared = prepared.and_then(|compiled| pipeline.prepare(compiled));
            prepared.map_err(|why| format!("{why:#}"))
        });
        if let Some(next) = record.old_until.iter().min() {
            loaded.expiring.insert(record.uid.clone(), *next);
        }
        match prepared {
            Ok(prepared) => loaded.usable.push(prepared),
            Err(why) => {
                let key = (record.name.clone(), record.uid.to_string());
                let listed = Listed::unusable(&record, why);
                loaded.unusable.insert(key, listed);
            }
        }
    })?;
    Ok(loaded)
}

/// Hands over each that is kept, as it is read by the config, or why it cannot be used. So many are
/// in memory at a time.
pub fn each_kept(
    store: &Store,
    settings: &Settings,
    mut each: impl FnMut(Registered, Result<Read, String>),
) -> Result<(), NotLoaded> {
    let mut records = store.each_registered();
    loop {
        let some: Result<Vec<_>, _> = records.by_ref().take(AT_ONCE).collect();
        let some = some?;
        if some.is_empty() {
            return Ok(());
        }
        let mut documents = Vec::with_capacity(some.len());
        for record in &some {
            let opened = opened(&settings.keys, record).map_err(|why| NotLoaded::Sealed {
                name: record.name.clone(),
                why,
            })?;
            documents.push(in_effect(record, opened, Timestamp::now()).0);
        }
        let asked: Vec<_> = some
            .iter()
            .zip(&documents)
            .map(|(record, document)| (&record.uid, document))
            .collect();
        let read = settings.reader.read(&asked);
        for (record, read) in some.into_iter().zip(read) {
            let read = match settings.reader.has(&record.name) {
                true => Err(NAME_OF_CONFIG.to_owned()),
                false => read.map_err(|mistakes| said(&mistakes)),
            };
            each(record, read);
        }
    }
}

const NAME_OF_CONFIG: &str =
    "the config has a subscription of this name, which is the one in force: rename one of them";

/// The document without secrets that have expired, and until when those are good that are left.
pub fn in_effect(
    record: &Registered,
    mut document: Value,
    now: Timestamp,
) -> (Value, Vec<Timestamp>) {
    let expired = |at: &Timestamp| *at <= now;
    if !record.old_until.iter().any(expired) {
        return (document, record.old_until.clone());
    }
    let mut secrets = document::secrets(&document).into_iter();
    let mut left: Vec<Value> = secrets.next().into_iter().collect();
    let mut until = Vec::new();
    for (number, secret) in secrets.enumerate() {
        match record.old_until.get(number) {
            Some(at) if expired(at) => {}
            Some(at) => {
                left.push(secret);
                until.push(*at);
            }
            None => left.push(secret),
        }
    }
    document::set_secrets(&mut document, left);
    (document, until)
}

fn said(mistakes: &[Mistake]) -> String {
    let each = mistakes
        .iter()
        .map(|mistake| match mistake.pointer.as_str() {
            "" => mistake.message.clone(),
            pointer => format!("{pointer}: {}", mistake.message),
        });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_old_secret_goes_when_its_time_is_over() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (sooner, later) = (at("2026-01-31T12:00:00Z"), at("2026-01-31T18:00:00Z"));
        let document = json!({ "name": "crm", "endpoint": { "secrets": ["a", "b", "c", "d"] } });
        let record = Registered {
            uid: Uid::from_stored("api:1"),
            name: "crm".to_owned(),
            revision: 3,
            made_at: at("2026-01-01T00:00:00Z"),
            changed_at: at("2026-01-31T11:00:00Z"),
            document: Value::Null,
            endpoint: None,
            // Nobody has said anything of the last one.
            old_until: vec![later, sooner],
        };
        let left = |now: &str| {
            let (document, until) = in_effect(&record, document.clone(), at(now));
            (document::secrets(&document), until)
        };
        let of = |secrets: &[&str]| secrets.iter().map(|one| json!(one)).collect::<Vec<_>>();
        let all = (of(&["a", "b", "c", "d"]), vec![later, sooner]);
        assert_eq!(left("2026-01-31T11:59:59Z"), all);
        let without = (of(&["a", "b", "d"]), vec![later]);
        assert_eq!(left("2026-01-31T12:00:00Z"), without);
        assert_eq!(left("2026-02-01T00:00:00Z"), (of(&["a", "d"]), vec![]));
    }
}
