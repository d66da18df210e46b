//! Subscriptions made over the API: created, changed, removed, their secrets replaced.
//!
//! A caller writes a subscription as the config file would have it, and it is read by the reader of
//! the config ([`Reader`]). It is kept in the store as it was written, its own endpoint sealed, and
//! read again at each start and reload. Those of the config are shown here and changed nowhere but in
//! the config; a name that both have is the config's, and the other one is kept, `unusable`, until one
//! of them is renamed.
//!
//! Everything that changes a subscription goes through one door, [`Registry::carry_out`]: it is told to
//! the group ([`shared`]), made durable, then it is in force, and only then answered. One change after the other, in tasks of their
//! own, so that a caller who hangs up stops nothing halfway.

mod document;
mod listed;
mod load;
mod once;
mod rotation;
mod shared;
mod tenancy;
mod transfer;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{MutexGuard, Notify};
use tracing::info;

use self::shared::{Shared, What};
use crate::deliver::signature::new_secret;
use crate::pipeline::{Pipeline, Prepared};
use crate::store::{KeyError, Keys, Registered, Remembered, Store, StoreError};
use crate::subscription::{Endpoint, Scheme, Spec, Subscription, Uid};

pub use listed::{Cursor, Listed, MOST_ON_A_PAGE, Page, Shown, ShownRegistered};
pub use load::{NotLoaded, each_kept};
pub use once::Once;
pub use rotation::{DEFAULT_OVERLAP, LONGEST_OVERLAP, Rotation};
pub use shared::{Sharing, SharingMeters};
pub use transfer::{Came, Checked, Flawed, Imported, Line, MOST_LINES, Reached};

/// Reads what callers write, by the config that is in force.
pub trait Reader: Send + Sync + 'static {
    /// Reads them one by one; each with its `name`.
    fn read(&self, asked: &[(&Uid, &Value)]) -> Vec<Result<Read, Vec<Mistake>>>;

    /// The signature of a document that says nothing of a secret and needs one.
    fn unsigned(&self, document: &Value) -> Option<Scheme>;

    /// The document as it may be shown.
    fn masked(&self, document: &Value) -> Value;

    /// Whether the config has a subscription of this name.
    fn has(&self, name: &str) -> bool;
}

/// A document that was read.
pub struct Read {
    pub spec: Spec,
    /// Named by the uid where it is written in the document.
    pub endpoint: Arc<Endpoint>,
}

/// Something that is wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// A JSON pointer.
    pub pointer: String,
    pub message: String,
    pub help: Option<String>,
}

/// What the config gives: how documents are read, and what seals secrets.
#[derive(Clone)]
pub struct Settings {
    pub reader: Arc<dyn Reader>,
    pub keys: Keys,
}

/// See the module.
pub struct Registry {
    store: Arc<Store>,
    pipeline: Arc<Pipeline>,
    shared: Shared,
    /// Held by whoever changes something.
    settings: tokio::sync::Mutex<Settings>,
    /// Kept, and not in force.
    unusable: Mutex<BTreeMap<(String, String), Listed>>,
    /// When the next secret of each expires.
    expiring: Mutex<BTreeMap<Uid, Timestamp>>,
    /// Until when answers are remembered.
    remembered: Mutex<BTreeMap<String, Timestamp>>,
    /// There is something new to be kept up.
    news: Notify,
    /// Something may be sealed with an older key.
    resealing: AtomicBool,
}

/// How a change is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Everything is checked and nothing done.
    pub dry_run: bool,
    pub if_match: Precondition,
    /// For which tenant it is asked; without one for the operator.
    pub tenant: Option<Arc<str>>,
}

/// `If-Match`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Whatever it is now.
    #[default]
    None,
    /// It has one of these tags.
    OneOf(Vec<String>),
}

/// What a subscription is to be changed to.
#[derive(Debug, Clone)]
pub enum Edit {
    /// All of it.
    Replace(Value),
    /// A merge patch (RFC 7396).
    Merge(Value),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    pub name: String,
    /// Of subscriptions of the API.
    pub etag: Option<String>,
    /// A [`Shown`].
    pub body: Value,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is no such subscription")]
    Unknown,
    #[error("subscription `{0}` belongs to the config file: change it there and reload")]
    OfConfig(String),
    #[error("there is a subscription `{0}` already")]
    Taken(String),
    #[error("it has been changed since: read it again")]
    Changed,
    #[error("nothing was done")]
    Invalid(Vec<Mistake>),
    #[error(
        "an endpoint of its own holds secrets, and there is no key to seal them with: set `store_key: ${{file:...}}` in the config, or name one of its `endpoints`"
    )]
    NoKey,
    #[error("this `Idempotency-Key` was used for another request")]
    KeyReused,
    #[error("{0}")]
    TooLarge(String),
    /// Its tenant has all that it may have.
    #[error("{0}")]
    Quota(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Unavailable(String),
}

/// A change that has been checked in full.
enum Change {
    Put {
        record: Box<Registered>,
        prepared: Box<Prepared>,
        answered: Option<(String, Remembered)>,
    },
    Remove(Box<Registered>),
}

/// Whom a name or a uid means.
enum Found {
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

    /// Makes a subscription, whose document has a `name`.
    pub async fn create(
        self: &Arc<Self>,
        document: Value,
        wish: Wish,
        once: Option<Once>,
    ) -> Result<Answered, Refused> {
        let registry = self.clone();
        to_its_end(async move {
            let mut document = document;
            tenancy::own(&mut document, wish.tenant.as_ref())?;
            let settings = registry.settings.lock().await;
            let before = |once: &Option<Once>| match once {
                Some(once) => registry.answered_before(&settings, once, &document),
                None => Ok(None),
            };
            if let Some(answered) = before(&once)? {
                return Ok(answered);
            }
            let made = registry.create_now(&settings, document.clone(), wish, once.clone());
            match made.await {
                // The same request may have come to another instance just before.
                Err(taken @ Refused::Taken(_)) => before(&once)?.ok_or(taken),
                made => made,
            }
        })
        .await
    }

    async fn create_now(
        &self,
        settings: &Settings,
        document: Value,
        wish: Wish,
        once: Option<Once>,
    ) -> Result<Answered, Refused> {
        let request = once.map(|once| once.of(&document));
        let uid = Uid::made();
        let (document, secret) = with_secret(settings, document);
        let (name, prepared) = self.checked(settings, &uid, &document)?;
        self.free(settings, &name, None)?;
        let now = Timestamp::now();
        let record = Registered {
            uid,
            name,
            revision: 1,
            made_at: now,
            changed_at: now,
            document: Value::Null,
            endpoint: None,
            old_until: Vec::new(),
        };
        let record = sealed(settings, record, &document)?;
        let listed = Listed::of(prepared.status(), 0);
        // What is made for a dry run is nobody's secret.
        let secret = secret.filter(|_| !wish.dry_run);
        let answer = answer(settings, &record, &document, listed, secret);
        if wish.dry_run {
            return Ok(answer);
        }
        let answered = request.map(|request| request.remembered(&settings.keys, &answer));
        let (name, uid) = (record.name.clone(), record.uid.clone());
        let change = Change::Put {
            record: Box::new(record),
            prepared: Box::new(prepared),
            answered: answered.transpose()?,
        };
        self.carry_out(change).await?;
        info!(subscription = %name, %uid, "a subscription was made over the API");
        Ok(answer)
    }

    /// Changes a subscription, or says what that would make of it.
    pub async fn change(
        self: &Arc<Self>,
        which: String,
        edit: Edit,
        wish: Wish,
    ) -> Result<Answered, Refused> {
        let registry = self.clone();
        to_its_end(async move {
            let (settings, before) = registry.turn(&which, &wish).await?;
            let change = registry.change_now(&settings, before, edit, &wish);
            change.await
        })
        .await
    }

    async fn change_now(
        &self,
        settings: &Settings,
        before: Registered,
        edit: Edit,
        wish: &Wish,
    ) -> Result<Answered, Refused> {
        let dry_run = wish.dry_run;
        let old = opened(&settings.keys, &before)?;
        let mut new = match edit {
            Edit::Replace(new) => new,
            Edit::Merge(patch) => {
                let mut merged = old.clone();
                document::merge(&mut merged, patch);
                merged
            }
        };
        if let Value::Object(new) = &mut new {
            new.entry("name")
                .or_insert_with(|| before.name.clone().into());
        }
        tenancy::own(&mut new, wish.tenant.as_ref())?;
        tenancy::stays(&new, &old)?;
        document::unmask(&mut new, &settings.reader.masked(&old), &old);
        keep_secrets(settings, &mut new, &old);
        let (new, secret) = with_secret(settings, new);
        if new == old {
            let listed = self.listed(&before);
            return Ok(answer(settings, &before, &old, listed, None));
        }
        let (name, prepared) = self.checked(settings, &before.uid, &new)?;
        self.free(settings, &name, Some(&before.uid))?;
        let old_until = match document::secrets(&new) == document::secrets(&old) {
            true => before.old_until.clone(),
            false => Vec::new(),
        };
        let record = Registered {
            name,
            revision: before.revision + 1,
            changed_at: Timestamp::now(),
            old_until,
            ..before
        };
        let record = sealed(settings, record, &new)?;
        if dry_run {
            let listed = Listed::of(prepared.status(), 0);
            return Ok(answer(settings, &record, &new, listed, None));
        }
        self.put(record.clone(), prepared).await?;
        info!(subscription = %record.name, uid = %record.uid, revision = record.revision, "a subscription was changed over the API");
        let listed = self.listed(&record);
        Ok(answer(settings, &record, &new, listed, secret))
    }

    /// Removes a subscription for good. What is parked for it is dead-lettered when it comes back.
    pub async fn remove(self: &Arc<Self>, which: String, wish: Wish) -> Result<(), Refused> {
        let registry = self.clone();
        to_its_end(async move {
            let (_settings, record) = registry.turn(&which, &wish).await?;
            if wish.dry_run {
                return Ok(());
            }
            let (name, uid) = (record.name.clone(), record.uid.clone());
            registry.carry_out(Change::Remove(Box::new(record))).await?;
            registry.forget_removed(uid.clone());
            info!(subscription = %name, %uid, "a subscription was removed over the API");
            Ok(())
        })
        .await
    }

    /// Those that are kept and not in force, from the first one behind this place on.
    pub fn unusable_after(&self, after: Option<(&str, &str)>) -> Vec<Listed> {
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = |one: &&Listed| after.is_none_or(|after| one.place() > after);
        unusable.values().filter(behind).cloned().collect()
    }

    /// The door; see the module. When it is passed, the change is in the log of the group, in the store,
    /// and in force.
    async fn carry_out(&self, change: Change) -> Result<(), Refused> {
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
    async fn tell(&self, record: Registered, again: bool) -> Result<(), Refused> {
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

    fn expires(&self, uid: &Uid, next: Option<Timestamp>) {
        let mut expiring = self.expiring.lock().unwrap_or_else(PoisonError::into_inner);
        match next {
            Some(next) => expiring.insert(uid.clone(), next),
            None => expiring.remove(uid),
        };
    }

    fn now_usable(&self, uid: &Uid) {
        let mut unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        unusable.retain(|(_, other), _| other != uid.as_str());
    }

    async fn put(&self, record: Registered, prepared: Prepared) -> Result<(), Refused> {
        self.carry_out(Change::Put {
            record: Box::new(record),
            prepared: Box::new(prepared),
            answered: None,
        })
        .await
    }

    /// Reads a document in full, up to what deliveries need; its name.
    fn checked(
        &self,
        settings: &Settings,
        uid: &Uid,
        document: &Value,
    ) -> Result<(String, Prepared), Refused> {
        let masks = document::masks_left(document).into_iter();
        let nothing = "`***` stands for a secret, and there is none to keep here";
        let masks: Vec<_> = masks.map(|pointer| Mistake::at(pointer, nothing)).collect();
        if !masks.is_empty() {
            return Err(Refused::Invalid(masks));
        }
        let read = settings.reader.read(&[(uid, document)]).pop();
        let read = read.expect("one was asked for").map_err(Refused::Invalid)?;
        self.has_room(uid, &read.spec)?;
        let name = read.spec.name.to_string();
        let prepared = self.prepared(uid, read);
        let unfit = |why: anyhow::Error| {
            Refused::Invalid(vec![Mistake::at(String::new(), format!("{why:#}"))])
        };
        Ok((name, prepared.map_err(unfit)?))
    }

    fn prepared(&self, uid: &Uid, read: Read) -> anyhow::Result<Prepared> {
        let compiled = Subscription::compile(uid.clone(), read.spec, read.endpoint)?;
        self.pipeline.prepare(compiled)
    }

    /// Whether `name` is nobody's, or `own`.
    fn free(&self, settings: &Settings, name: &str, own: Option<&Uid>) -> Result<(), Refused> {
        if settings.reader.has(name) {
            return Err(Refused::Taken(name.to_owned()));
        }
        match self.store.registered_as(name)? {
            Some(other) if Some(&other.uid) != own => Err(Refused::Taken(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// `tenant`: who asks.
    fn find(
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
    async fn turn(
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

    fn status(&self, uid: &Uid) -> Option<Listed> {
        let status = self.pipeline.subscription(uid)?;
        let parked = self.pipeline.parked_here(&status.name);
        Some(Listed::of(status, parked))
    }

    /// How it is now.
    fn listed(&self, record: &Registered) -> Listed {
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

/// Does this work whether or not anybody waits for it any longer.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let failed = |error| Refused::Unavailable(format!("the change has failed: {error}"));
    tokio::spawn(work).await.map_err(failed)?
}

fn answer(
    settings: &Settings,
    record: &Registered,
    document: &Value,
    listed: Listed,
    secret: Option<String>,
) -> Answered {
    let registered = ShownRegistered {
        made_at: record.made_at,
        changed_at: record.changed_at,
        old_secrets_until: record.old_until.clone(),
        subscription: settings.reader.masked(document),
        secret,
    };
    Answered {
        name: record.name.clone(),
        etag: Some(etag(record)),
        body: written(&Shown {
            listed,
            registered: Some(registered),
        }),
    }
}

fn written(shown: &Shown) -> Value {
    serde_json::to_value(shown).expect("texts, numbers and maps with text keys")
}

/// The tag of this revision of this subscription; one made later under its name has others.
fn etag(record: &Registered) -> String {
    let uid = record.uid.as_str();
    let own = &uid[uid.len().saturating_sub(12)..];
    format!("\"{}-{own}\"", record.revision)
}

/// The document with a new secret where it needs one and says nothing of it, and that secret.
fn with_secret(settings: &Settings, mut document: Value) -> (Value, Option<String>) {
    let scheme = settings.reader.unsigned(&document);
    let secret = scheme.and_then(|scheme| new_secret(&scheme));
    let secret = secret.map(|secret| secret.expose().to_owned());
    if let Some(secret) = &secret {
        document::set_secrets(&mut document, vec![secret.as_str().into()]);
    }
    (document, secret)
}

/// A change that says nothing of secrets keeps those that there are, unless it is signed otherwise.
fn keep_secrets(settings: &Settings, new: &mut Value, old: &Value) {
    let signature = |document: &Value| document::own_endpoint(document)?.get("signature").cloned();
    if settings.reader.unsigned(new).is_some() && signature(new) == signature(old) {
        document::set_secrets(new, document::secrets(old));
    }
}

/// The document as it was written, of what is kept.
fn opened(keys: &Keys, record: &Registered) -> Result<Value, KeyError> {
    let mut document = record.document.clone();
    if let Some(sealed) = &record.endpoint {
        let endpoint = keys.open(record.uid.as_str(), sealed)?;
        document["endpoint"] = serde_json::from_slice(&endpoint).map_err(|_| KeyError::Damaged)?;
    }
    Ok(document)
}

/// `record` of this document. An endpoint of its own is sealed as a whole: not only what is called a
/// secret is one, but often the URL, a header, a text in a template.
fn sealed(
    settings: &Settings,
    mut record: Registered,
    document: &Value,
) -> Result<Registered, Refused> {
    record.document = document.clone();
    record.endpoint = None;
    if document::own_endpoint(document).is_some()
        && let Some(written) = record.document.as_object_mut()
        && let Some(endpoint) = written.remove("endpoint")
    {
        let plain = endpoint.to_string();
        let sealed = settings.keys.seal(record.uid.as_str(), plain.as_bytes());
        record.endpoint = Some(sealed?);
    }
    Store::fits(&record, None)?;
    Ok(record)
}

impl Mistake {
    fn at(pointer: String, message: impl Into<String>) -> Self {
        Self {
            pointer,
            message: message.into(),
            help: None,
        }
    }
}

impl Precondition {
    fn check(&self, record: &Registered) -> Result<(), Refused> {
        match self {
            Self::None => Ok(()),
            Self::OneOf(tags) if tags.iter().any(|tag| *tag == etag(record)) => Ok(()),
            Self::OneOf(_) => Err(Refused::Changed),
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            other => Self::Unavailable(format!("the store does not take it: {other}")),
        }
    }
}

impl From<KeyError> for Refused {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::NoKey => Self::NoKey,
            other => Self::Unavailable(other.to_string()),
        }
    }
}
