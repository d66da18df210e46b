//! Subscriptions made over the API: created, changed, removed, their secrets replaced.
//!
//! A caller writes a subscription as the config file would have it, and it is read by the reader of
//! the config ([`Reader`]). It is kept in the store as it was written, its own endpoint sealed, and
//! read again at each start and reload. Those of the config are shown here and changed nowhere but in
//! the config; a name that both have is the config's, and the other one is kept, `unusable`, until one
//! of them is renamed.
//!
//! Everything that changes a subscription goes through one door ([`door`]): it is told to the group
//! ([`shared`]), made durable, then it is in force, and only then answered. One change after the other,
//! in tasks of their own, so that a caller who hangs up stops nothing halfway.

mod document;
mod door;
mod finding;
mod listed;
mod load;
mod once;
mod records;
mod refused;
mod rotation;
mod shared;
mod tenancy;
mod transfer;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::info;

use self::door::{Change, to_its_end};
use self::finding::Found;
use self::records::{answer, keep_secrets, opened, sealed, with_secret};
use self::shared::Shared;
use crate::pipeline::{Pipeline, Prepared};
use crate::store::{Keys, Registered, Store};
use crate::subscription::{Endpoint, Scheme, Spec, Subscription, Uid};

pub use listed::{Cursor, Listed, MOST_ON_A_PAGE, Page, Shown, ShownRegistered};
pub use load::{NotLoaded, each_kept};
pub use once::Once;
pub use refused::Refused;
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

impl Registry {
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
        let answered =
            request.map(|request| request.remembered(&settings.keys, &document, &answer));
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
