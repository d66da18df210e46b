//! Judging: what a batch of records comes to. Nothing is written down or put in force here.
//!
//! What holds of subscriptions is [`fold`]'s to say; of an endpoint, and of whether a subscription is
//! paused, the last record holds.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::fold::{self, Ahead, Known, Verdict, View};
use super::said::{
    About, Said, Unread, What, about, key_of, key_of_endpoint, key_of_standing, log_name,
};
use super::{Folding, SayingAgain, Shared, lock};
use crate::broker::state::Entry;
use crate::operations::subscriptions::{Registry, Settings, opened};
use crate::pipeline::Prepared;
use crate::store::{EndpointStanding, Registered, Remembered, Step, Store, StoreError};
use crate::subscription::Uid;

/// Keys that the log has something in force under, by their hashes.
#[derive(Default)]
pub(super) struct Seen(HashSet<u64>);

impl Seen {
    fn hash(key: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains(&Self::hash(key))
    }

    pub(super) fn set(&mut self, key: &str, is_there: bool) {
        let hash = Self::hash(key);
        match is_there {
            true => self.0.insert(hash),
            false => self.0.remove(&hash),
        };
    }
}

/// The store, of which only what was seen in the log is believed as long as that is being read.
struct Kept<'a> {
    store: &'a Store,
    seen: Option<&'a Seen>,
}

impl Kept<'_> {
    fn is_believed(&self, uid: &Uid) -> bool {
        self.seen.is_none_or(|seen| seen.has(&key_of(uid)))
    }
}

impl View for Kept<'_> {
    type Error = StoreError;

    fn of(&self, uid: &Uid) -> Result<Option<Known>, StoreError> {
        if !self.is_believed(uid) {
            return Ok(None);
        }
        let record = self.store.registered_with(uid)?;
        Ok(record.map(|record| known(&record)))
    }

    fn named(&self, name: &str) -> Result<Option<Uid>, StoreError> {
        let record = self.store.registered_as(name)?;
        let owner = record.map(|record| record.uid);
        Ok(owner.filter(|uid| self.is_believed(uid)))
    }
}

fn known(record: &Registered) -> Known {
    Known {
        name: record.name.clone(),
        revision: record.revision,
    }
}

/// A record, and what was made of it already by who told it.
pub(super) type Entering = (Box<Registered>, Option<Box<Prepared>>);

/// What a batch of records comes to.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) steps: Vec<Step>,
    /// Subscriptions as they are now; `None`: removed.
    pub(super) registered: BTreeMap<Uid, Option<Entering>>,
    pub(super) endpoints: BTreeSet<Arc<str>>,
    pub(super) subscriptions: BTreeSet<Uid>,
    pub(super) remembered: Vec<(String, Timestamp)>,
    pub(super) answers: Vec<(oneshot::Sender<Verdict>, Verdict)>,
    /// Keys, and whether there is something in force under them.
    pub(super) seen: Vec<(String, bool)>,
    /// What this process has said of itself.
    pub(super) marks: Vec<String>,
    /// While the log is read from its beginning: keys, and whether the last record is of a newer
    /// release, which cannot be read here.
    pub(super) newer: Vec<(String, bool)>,
}

impl Registry {
    /// In their order, over what is `seen` while the log is read from its beginning.
    pub(super) fn judge(
        &self,
        entries: Vec<Entry>,
        folding: &mut Folding,
        seen: Option<&Seen>,
    ) -> Result<Outcome, StoreError> {
        let kept = Kept {
            store: &self.store,
            seen,
        };
        let mut judging = Judging {
            registry: self,
            folding,
            ahead: Ahead::of(&kept),
            written: BTreeSet::new(),
            settings: self.shared.settings(),
            is_live: seen.is_none(),
            outcome: Outcome::default(),
        };
        for entry in entries {
            judging.entry(entry)?;
        }
        Ok(judging.outcome)
    }
}

/// A batch under way.
struct Judging<'a> {
    registry: &'a Registry,
    folding: &'a mut Folding,
    ahead: Ahead<'a, Kept<'a>>,
    /// Endpoints whose standing this batch says was told.
    written: BTreeSet<Arc<str>>,
    settings: Settings,
    is_live: bool,
    outcome: Outcome,
}

impl Judging<'_> {
    fn shared(&self) -> &Shared {
        &self.registry.shared
    }

    fn entry(&mut self, Entry { place, record }: Entry) -> Result<(), StoreError> {
        let key = record.key;
        let Some(body) = record.body else {
            self.is_newer(&key, false);
            return self.nothing(&key);
        };
        self.folding.length.read(body.len());
        let said = match Said::read(&body) {
            Ok(said) => said,
            Err(why) => {
                error!(
                    key,
                    place, %why, "a record of what the group shares is passed over"
                );
                self.unread(key, why);
                return Ok(());
            }
        };
        self.is_newer(&key, false);
        let ours = said.by == self.shared().me;
        let waiting = match ours {
            true => lock(&self.shared().waiting).remove(&said.id),
            false => None,
        };
        let (answer, prepared) = match waiting {
            Some(waiting) => (Some(waiting.verdict), waiting.prepared),
            None => (None, None),
        };
        let verdict = match said.what {
            What::Put {
                record,
                answered,
                again,
            } => self.put(record, answered, again, prepared)?,
            What::Removed { uid, revision } => self.removed(uid, revision)?,
            What::Endpoint {
                name,
                disabled,
                first_gone_at,
            } => {
                let standing = EndpointStanding {
                    disabled,
                    first_gone_at,
                    agreed: None,
                };
                self.endpoint(name, standing, &said.id, answer.is_some())?
            }
            What::Subscription { uid, paused } => self.subscription(uid, paused, &said.id)?,
            What::Instance(peer) => {
                self.shared().peers.heard(peer);
                if ours {
                    self.outcome.marks.push(said.id);
                }
                Verdict::Holds
            }
            What::Log { name } => {
                self.folding.names.insert(name);
                if self.is_live {
                    let names = self.folding.names.clone();
                    self.outcome.steps.push(Step::Log(names));
                }
                Verdict::Holds
            }
            What::Again { begins } => {
                self.folding.length.again(&said.by, begins);
                Verdict::Holds
            }
        };
        match verdict.misleads() {
            true => {
                self.folding.misleads(&key, ours);
                self.shared().work.notify_one();
            }
            false => drop(self.folding.misled.remove(&key)),
        }
        if let Some(answer) = answer {
            self.outcome.answers.push((answer, verdict));
        }
        Ok(())
    }

    /// Somebody may know what it says: what there is here under this key stays.
    fn unread(&mut self, key: String, why: Unread) {
        let is_newer = matches!(why, Unread::Newer(_));
        if is_newer && let Some(name) = log_name(&key) {
            // Of these the key is enough.
            self.folding.names.insert(name.to_owned());
        }
        self.is_newer(&key, is_newer);
        self.outcome.seen.push((key, true));
    }

    fn is_newer(&mut self, key: &str, is_newer: bool) {
        if !self.is_live {
            self.outcome.newer.push((key.to_owned(), is_newer));
        }
    }

    fn put(
        &mut self,
        record: Box<Registered>,
        answered: Option<Box<(String, Remembered)>>,
        again: bool,
        prepared: Option<Box<Prepared>>,
    ) -> Result<Verdict, StoreError> {
        let uid = record.uid.clone();
        // Everywhere: who told it has asked the same.
        if let Err(why) = Store::fits(&record, answered.as_deref()) {
            error!(subscription = %record.name, %uid, %why, "a record of what the group shares is passed over");
            return Ok(Verdict::Changed);
        }
        let next = known(&record);
        let verdict = fold::put(&self.ahead, &self.folding.buried, &uid, &next, again)?;
        if verdict != Verdict::Holds {
            return Ok(verdict);
        }
        let is_fresh = !self.outcome.registered.contains_key(&uid);
        let is_kept = is_fresh
            && self.registry.store.registered_with(&uid)?.as_ref() == Some(&*record)
            && self.is_remembered(answered.as_deref())?
            && self.has_its_name(&uid, &next.name)?;
        let before = self.ahead.of(&uid)?;
        let is_only_resealed = again && before.is_some_and(|it| it.revision == next.revision);
        self.ahead.put(&uid, next)?;
        self.outcome.seen.push((key_of(&uid), true));
        if is_kept {
            return Ok(verdict);
        }
        if let Some((key, remembered)) = answered.as_deref() {
            let until = remembered.until;
            self.outcome.remembered.push((key.clone(), until));
        }
        let step = Step::Put {
            record: record.clone(),
            answered,
        };
        self.outcome.steps.push(step);
        // With a key that this config does not have yet: what is in force is the same.
        let stays = is_only_resealed
            && opened(&self.settings.keys, &record).is_err()
            && self.registry.pipeline.subscription(&uid).is_some();
        if stays {
            warn!(subscription = %record.name, %uid, "this subscription was sealed with a key that is not in `store_key` here: it stays in force until the next start or reload, which needs that key");
            return Ok(verdict);
        }
        self.outcome
            .registered
            .insert(uid, Some((record, prepared)));
        Ok(verdict)
    }

    /// Whether the store leads from the name to the subscription, and goes on to do so: another one may
    /// have had the name before, and what is read of that is written down first.
    fn has_its_name(&self, uid: &Uid, name: &str) -> Result<bool, StoreError> {
        let owner = self.registry.store.registered_as(name)?;
        Ok(!self.ahead.takes_from(uid, name) && owner.is_some_and(|owner| owner.uid == *uid))
    }

    /// Whether there is nothing to remember that is not remembered.
    fn is_remembered(&self, answered: Option<&(String, Remembered)>) -> Result<bool, StoreError> {
        let Some((key, remembered)) = answered else {
            return Ok(true);
        };
        if remembered.until <= Timestamp::now() {
            return Ok(true);
        }
        Ok(self.registry.store.remembered(key)?.is_some())
    }

    fn removed(&mut self, uid: Uid, revision: u64) -> Result<Verdict, StoreError> {
        let verdict = fold::removed(&self.ahead, &uid, revision)?;
        if verdict == Verdict::Holds {
            self.remove(&uid)?;
        }
        if !verdict.misleads() {
            self.folding.buried.add(uid);
        }
        Ok(verdict)
    }

    fn remove(&mut self, uid: &Uid) -> Result<(), StoreError> {
        self.ahead.remove(uid)?;
        self.outcome.steps.push(Step::Remove(uid.clone()));
        self.outcome.registered.insert(uid.clone(), None);
        self.outcome.seen.push((key_of(uid), false));
        Ok(())
    }

    /// The last of an endpoint holds. While ours is on its way it will be the last, unless somebody has
    /// just said otherwise over the API of this instance.
    fn endpoint(
        &mut self,
        name: Arc<str>,
        new: EndpointStanding,
        id: &str,
        is_asked_for: bool,
    ) -> Result<Verdict, StoreError> {
        let key = key_of_endpoint(&name);
        if self.is_late(&key, id) {
            return Ok(Verdict::Changed);
        }
        self.outcome.seen.push((key, true));
        let store = &self.registry.store;
        let unsaid = match self.written.contains(&name) {
            true => None,
            false => store.unsaid_of(&name)?,
        };
        if let Some(unsaid) = unsaid {
            let is_told = unsaid.change == id;
            if is_told || is_asked_for {
                self.written.insert(name.clone());
                // Its lane may have followed somebody else's record in between.
                self.outcome.endpoints.insert(name.clone());
                self.outcome.steps.push(Step::Said {
                    endpoint: name.clone(),
                    change: unsaid.change,
                });
            }
            if !is_asked_for {
                return Ok(Verdict::Holds);
            }
        }
        let now = store.endpoint_standing(&name)?;
        let differs = now.disabled != new.disabled || now.first_gone_at != new.first_gone_at;
        if differs || self.outcome.endpoints.contains(&name) {
            self.outcome.endpoints.insert(name.clone());
            self.outcome.steps.push(Step::Endpoint {
                name,
                disabled: new.disabled,
                first_gone_at: new.first_gone_at,
            });
        }
        Ok(Verdict::Holds)
    }

    /// The last of a subscription holds.
    fn subscription(&mut self, uid: Uid, paused: bool, id: &str) -> Result<Verdict, StoreError> {
        let key = key_of_standing(&uid);
        if self.is_late(&key, id) {
            return Ok(Verdict::Changed);
        }
        self.outcome.seen.push((key, true));
        // Whether or not there is such a one here, or yet: another instance's config may have it.
        let now = self.registry.store.subscription_standing(&uid)?.paused;
        let is_news = now != paused || self.outcome.subscriptions.contains(&uid);
        if !self.folding.buried.has(&uid) && is_news {
            self.outcome.subscriptions.insert(uid.clone());
            self.outcome.steps.push(Step::Subscription { uid, paused });
        }
        Ok(Verdict::Holds)
    }

    /// Whether this is what we said once more, and another has come before it.
    fn is_late(&mut self, key: &str, id: &str) -> bool {
        match self.folding.saying_again.get_mut(key) {
            Some(ours) if ours.id != id => {
                ours.is_late = true;
                false
            }
            Some(_) => {
                let ours = self.folding.saying_again.remove(key);
                ours.is_some_and(|SayingAgain { is_late, .. }| is_late)
            }
            None => false,
        }
    }

    /// There is nothing under this key any more.
    fn nothing(&mut self, key: &str) -> Result<(), StoreError> {
        self.folding.misled.remove(key);
        match about(key) {
            About::Registered(uid) => {
                if self.ahead.of(&uid)?.is_some() {
                    self.remove(&uid)?;
                }
                self.folding.buried.add(uid);
            }
            About::Endpoint(name) => {
                let standing = EndpointStanding::default();
                self.endpoint(name.into(), standing, "", false)?;
            }
            About::Subscription(uid) => {
                self.subscription(uid, false, "")?;
            }
            About::Instance(name) => self.shared().peers.left(name),
            About::Other => {}
        }
        Ok(())
    }
}
