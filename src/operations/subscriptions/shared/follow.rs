//! Following: what is read from the log is judged, written down, and put in force.
//!
//! At its start an instance tells that it is there and reads from the first record on until it reads
//! of itself: it then knows what all others know. The store is compared with what was read, record by
//! record; what it has beside that is taken out, since others have removed it. But when the log is
//! another one than the store was made from (it was lost, or there was none yet), the store is what is
//! left: all of it is told. So it is when the log is lost while instances run: after an interruption
//! they go on only where they find what they have read last. What only a newer release can read leaves what was known before in force;
//! where nothing was, a start waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::bookmark::Bookmark;
use super::judge::{Entering, Outcome, Seen};
use super::said::{About, Said, What, about, key_of, key_of_endpoint, key_of_standing, unique};
use super::{Progress, READ_BACK, lock};
use crate::broker::Refused;
use crate::broker::state::{Entry, Reading};
use crate::operations::subscriptions::load::in_effect;
use crate::operations::subscriptions::{Listed, NotLoaded, Registry, Settings, opened};
use crate::pipeline::Prepared;
use crate::store::{EndpointStanding, Registered, Step, StoreError};
use crate::subscription::Uid;

/// Between tries to read.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Records of the store that are told at once.
const AT_ONCE: usize = 200;

/// What was read while catching up.
#[derive(Default)]
struct Caught {
    seen: Seen,
    /// Keys of which the last record is of a newer release.
    newer: BTreeSet<String>,
}

/// The reading ended, for this reason, and is begun again.
struct Lost(String);

impl From<Refused> for Lost {
    fn from(refused: Refused) -> Self {
        Self(refused.to_string())
    }
}

impl Registry {
    /// Follows the log until `stop`, over all that a broker can do. Errors are of the store, and of
    /// what the store holds when this instance has caught up.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) -> Result<(), NotLoaded> {
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        loop {
            let Some(ended) = stop.run_until_cancelled(self.follow_once()).await else {
                return Ok(());
            };
            let (was_in_step, Lost(why)) = ended?;
            if was_in_step {
                pause = FIRST_PAUSE;
            }
            match why == said {
                true => debug!(why, "what the group shares still cannot be read"),
                false => {
                    warn!(broker = %self.shared.broker, why, "what the group shares cannot be read, trying again");
                }
            }
            said.clone_from(&why);
            if self.shared.behind().is_some() {
                self.shared.set(Progress::Behind(Some(why)));
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return Ok(());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits until this instance knows what the others know.
    pub async fn in_step(&self) {
        let mut progress = self.shared.progress.subscribe();
        // It lives as long as we do.
        let _ = progress
            .wait_for(|progress| *progress == Progress::InStep)
            .await;
    }

    /// Why this instance does not know yet what the others know, for readiness.
    pub fn behind(&self) -> Option<String> {
        self.shared.behind()
    }

    /// Whose configs differ from this one's, for readiness.
    pub fn differences(&self) -> Option<String> {
        self.shared.peers.note()
    }

    /// The config of this instance has this hash from now on.
    pub fn now_has(&self, config: String) {
        self.shared.peers.now_has(config);
    }

    /// Reads until it cannot go on; whether it had caught up by then, and why.
    async fn follow_once(&self) -> Result<(bool, Lost), NotLoaded> {
        let shared = &self.shared;
        let bookmark = match shared.behind() {
            Some(_) => None,
            None => shared.folding.lock().await.bookmark,
        };
        let from = bookmark.map(|bookmark| bookmark.place);
        let mut reading = match shared.log.follow(from).await {
            Ok(reading) => reading,
            Err(refused) => return Ok((false, refused.into())),
        };
        *lock(&shared.mark) = None;
        if shared.behind().is_some() {
            if let Err(lost) = self.catch_up(&mut reading).await? {
                return Ok((false, lost));
            }
        } else if let Err(lost) = self.read_on(&mut reading, bookmark).await? {
            return Ok((true, lost));
        }
        loop {
            let some = tokio::select! {
                some = reading.next() => some,
                () = shared.reread.notified() => {
                    shared.set(Progress::Behind(None));
                    return Ok((true, Lost("what was written is not read".to_owned())));
                }
            };
            if some.is_empty() {
                return Ok((true, Lost("the connection was lost".to_owned())));
            }
            let bookmark = shared.folding.lock().await.bookmark;
            if bookmark.is_some_and(|bookmark| !bookmark.is_before(&some)) {
                return Ok((true, self.other_log()));
            }
            self.fold(some, None).await?;
        }
    }

    /// Reads on where the bookmark is, if that lies where it was.
    async fn read_on(
        &self,
        reading: &mut Reading,
        bookmark: Option<Bookmark>,
    ) -> Result<Result<(), Lost>, NotLoaded> {
        // It is there already: nothing has to be told first.
        let read = timeout(READ_BACK, reading.next()).await;
        if read.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(Err(Lost("the connection was lost".to_owned())));
        }
        let behind = bookmark.and_then(|bookmark| bookmark.behind(read.ok()?));
        let Some(some) = behind else {
            return Ok(Err(self.other_log()));
        };
        self.fold(some, None).await?;
        Ok(Ok(()))
    }

    /// What this instance knows may not be in this log: all is read, and what is missing is told.
    fn other_log(&self) -> Lost {
        self.shared.set(Progress::Behind(None));
        Lost(
            "the log is not the one that was read before, or has lost what was read last"
                .to_owned(),
        )
    }

    /// Reads all that there is, and makes the store the same.
    async fn catch_up(&self, reading: &mut Reading) -> Result<Result<(), Lost>, NotLoaded> {
        let shared = &self.shared;
        // Later on it takes what comes anyway, by what it knows.
        let is_first = !shared.has_begun.load(Ordering::Relaxed);
        shared.folding.lock().await.begin_again();
        let before = self.store.log_names()?;
        let mut caught = Caught::default();
        let read = self.read_all(reading, &mut caught, Vec::new(), Vec::new());
        if let Err(lost) = read.await? {
            return Ok(Err(lost));
        }
        let (names, repairs) = {
            let folding = shared.folding.lock().await;
            let misled: Vec<_> = folding.misled.keys().cloned().collect();
            (folding.names.clone(), misled)
        };
        let is_same = !before.is_disjoint(&names);
        if is_first && let Err(lost) = self.understandable(reading, &mut caught, is_same).await? {
            return Ok(Err(lost));
        }
        let left = self.unseen(&caught.seen)?;
        let mut news = Vec::new();
        let mut refill = Vec::new();
        if names.is_empty() {
            news.push(What::Log { name: unique() });
        }
        if !is_same {
            if !left.is_empty() {
                info!(
                    subscriptions = left.len(),
                    "the group knows nothing of what is in this store yet: it is told"
                );
            }
            refill = left;
            news.extend(self.unseen_standings(&caught.seen)?);
        }
        let mut records: Vec<_> = news
            .into_iter()
            .map(|what| Said::new(&shared.me, what).record())
            .collect();
        for key in repairs {
            records.extend(self.repair(&key)?);
        }
        if !records.is_empty() || !refill.is_empty() {
            let read = self.read_all(reading, &mut caught, records, refill);
            if let Err(lost) = read.await? {
                return Ok(Err(lost));
            }
        }
        let mut steps = Vec::new();
        for uid in self.unseen(&caught.seen)? {
            if !is_same && let Some(record) = self.store.registered_with(&uid)? {
                error!(subscription = %record.name, %uid, "this subscription gives way to the one of the same name that another instance has told the group of");
            }
            steps.push(Step::Remove(uid));
        }
        for what in self.unseen_standings(&caught.seen)? {
            steps.push(match what {
                What::Endpoint { name, .. } => Step::Endpoint {
                    name,
                    disabled: None,
                    first_gone_at: None,
                },
                What::Subscription { uid, .. } => Step::Subscription { uid, paused: false },
                _ => continue,
            });
        }
        shared.folding.lock().await.is_ahead |= !steps.is_empty();
        let names = shared.folding.lock().await.names.clone();
        if names != before {
            steps.push(Step::Log(names));
        }
        self.store.fold(steps).await?;
        if shared.folding.lock().await.is_ahead {
            self.read_anew().await?;
        }
        let others = shared.peers.count(Timestamp::now());
        info!(broker = %shared.broker, instances = others + 1, "this instance knows what its group knows");
        shared.has_begun.store(true, Ordering::Relaxed);
        shared.set(Progress::InStep);
        Ok(Ok(()))
    }

    /// Waits for as long as there is something that only a newer release can read and of which there is
    /// nothing here: events that are taken without it would be settled.
    async fn understandable(
        &self,
        reading: &mut Reading,
        caught: &mut Caught,
        is_same: bool,
    ) -> Result<Result<(), Lost>, NotLoaded> {
        let mut said = None;
        loop {
            let mut missing = Vec::new();
            for key in &caught.newer {
                let is_missing = match about(key) {
                    About::Registered(uid) => self.store.registered_with(&uid)?.is_none(),
                    // A store that was made from this log has what was known before, even if that is
                    // nothing.
                    About::Endpoint(_) | About::Subscription(_) => !is_same,
                    About::Instance(_) | About::Other => false,
                };
                if is_missing {
                    missing.push(key.as_str());
                }
            }
            let Some(first) = missing.first() else {
                return Ok(Ok(()));
            };
            let why = format!(
                "records of a newer release cannot be read here, and nothing earlier is known of what they say ({}; `{first}`, for instance): upgrade this instance",
                missing.len(),
            );
            if said.as_ref() != Some(&why) {
                error!(broker = %self.shared.broker, why, "this instance takes nothing");
                self.shared.set(Progress::Behind(Some(why.clone())));
                said = Some(why);
            }
            let some = reading.next().await;
            if some.is_empty() {
                return Ok(Err(Lost("the connection was lost".to_owned())));
            }
            self.fold(some, Some(caught)).await?;
        }
    }

    /// Tells these, those of the store with them, and that we are there; and reads until that comes
    /// back.
    async fn read_all(
        &self,
        reading: &mut Reading,
        caught: &mut Caught,
        records: Vec<crate::broker::state::Record>,
        refill: Vec<Uid>,
    ) -> Result<Result<(), Lost>, NotLoaded> {
        let shared = &self.shared;
        let mark = Said::new(&shared.me, What::Instance(shared.peers.me()));
        let (log, store, me) = (shared.log.clone(), self.store.clone(), shared.me.clone());
        let (id, last) = (mark.id.clone(), mark.record());
        let mut telling = AbortOnDropHandle::new(tokio::spawn(async move {
            if !records.is_empty() {
                log.tell(records).await?;
            }
            for some in refill.chunks(AT_ONCE) {
                let mut records = Vec::with_capacity(some.len());
                for uid in some {
                    // What cannot be read is said when it is loaded.
                    if let Ok(Some(record)) = store.registered_with(uid) {
                        records.push(Said::new(&me, said_of(record, false)).record());
                    }
                }
                log.tell(records).await?;
            }
            log.tell(vec![last]).await
        }));
        let mut told = false;
        loop {
            tokio::select! {
                ended = &mut telling, if !told => match ended {
                    Ok(Ok(())) => told = true,
                    Ok(Err(refused)) => return Ok(Err(refused.into())),
                    Err(panicked) => return Ok(Err(Lost(panicked.to_string()))),
                },
                some = reading.next() => {
                    if some.is_empty() {
                        return Ok(Err(Lost("the connection was lost".to_owned())));
                    }
                    if self.fold(some, Some(caught)).await?.contains(&id) {
                        return Ok(Ok(()));
                    }
                }
            }
        }
    }

    /// Subscriptions of the store that the log has not.
    fn unseen(&self, seen: &Seen) -> Result<Vec<Uid>, StoreError> {
        let all = self.store.each_registered();
        let is_unseen = |uid: &Uid| !seen.has(&key_of(uid));
        all.map(|record| Ok(record?.uid))
            .filter(|uid| uid.as_ref().map_or(true, is_unseen))
            .collect()
    }

    /// What the store knows of endpoints and subscriptions, and the log does not.
    fn unseen_standings(&self, seen: &Seen) -> Result<Vec<What>, StoreError> {
        let mut unseen = Vec::new();
        for (name, standing) in self.store.endpoint_standings()? {
            let is_known = standing.disabled.is_none() && standing.first_gone_at.is_none();
            let is_unsaid = || self.store.unsaid_of(&name).map(|unsaid| unsaid.is_some());
            if !is_known && !seen.has(&key_of_endpoint(&name)) && !is_unsaid()? {
                unseen.push(said_of_endpoint(name.into(), standing));
            }
        }
        for (uid, standing) in self.store.subscription_standings()? {
            if standing.paused && !seen.has(&key_of_standing(&uid)) {
                unseen.push(What::Subscription { uid, paused: true });
            }
        }
        Ok(unseen)
    }

    /// Makes of the store what is in force, after it was changed as a whole.
    async fn read_anew(&self) -> Result<(), NotLoaded> {
        let mut still = self.shared.still().await;
        self.read_again(self.shared.settings()).await?;
        still.catches_up();
        let remembered = self.store.all_remembered()?.into_iter().collect();
        let mut all = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *all = remembered;
        drop(all);
        // What was read may be sealed with an older key.
        self.resealing.store(true, Ordering::Relaxed);
        self.news.notify_one();
        Ok(())
    }

    /// Judges records, writes down what holds, and puts it in force unless we are `catching` up. What
    /// this process has said of itself among them.
    async fn fold(
        &self,
        entries: Vec<Entry>,
        catching: Option<&mut Caught>,
    ) -> Result<Vec<String>, StoreError> {
        let mut folding = self.shared.folding.lock().await;
        let is_live = catching.is_none();
        let last = entries.last().map(Bookmark::at);
        let seen = catching.as_ref().map(|caught| &caught.seen);
        let outcome = self.judge(entries, &mut folding, seen)?;
        let Outcome {
            steps,
            registered,
            endpoints,
            subscriptions,
            remembered,
            answers,
            seen,
            marks,
            newer,
        } = outcome;
        // Also when the reading ends early, and the next one finds nothing that is new to the store.
        folding.is_ahead |= !is_live && !steps.is_empty();
        self.store.fold(steps).await?;
        folding.bookmark = last.or(folding.bookmark);
        self.shared.has_read(&marks);
        if let Some(caught) = catching {
            for (key, is_there) in seen {
                caught.seen.set(&key, is_there);
            }
            for (key, is_newer) in newer {
                match is_newer {
                    true => caught.newer.insert(key),
                    false => caught.newer.remove(&key),
                };
            }
        }
        if is_live {
            let is_registered = !registered.is_empty();
            self.put_in_force(registered);
            for uid in &subscriptions {
                self.pipeline.follow_subscription(uid);
            }
            for endpoint in &endpoints {
                self.pipeline.follow_endpoint(endpoint);
            }
            let mut all = self
                .remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.extend(remembered);
            drop(all);
            if is_registered {
                self.news.notify_one();
            }
        }
        for (waiting, verdict) in answers {
            let _ = waiting.send(verdict);
        }
        Ok(marks)
    }

    /// The second of the two steps; the first is to write it down.
    fn put_in_force(&self, changed: BTreeMap<Uid, Option<Entering>>) {
        if changed.is_empty() {
            return;
        }
        let settings = self.shared.settings();
        let (mut entering, mut leaving) = (Vec::new(), BTreeSet::new());
        for (uid, change) in changed {
            self.now_usable(&uid);
            let Some((record, prepared)) = change else {
                self.expires(&uid, None);
                leaving.insert(uid);
                continue;
            };
            self.expires(&uid, record.old_until.iter().min().copied());
            let understood = match prepared {
                Some(prepared) => Ok(*prepared),
                None => self.understood(&settings, &record),
            };
            match understood {
                Ok(prepared) => entering.push(prepared),
                Err(why) => {
                    self.is_unusable(&record, why);
                    leaving.insert(uid);
                }
            }
        }
        self.pipeline.change(entering, &leaving);
    }

    /// A record that another instance has told of, as it is read here; or why it cannot be used.
    fn understood(&self, settings: &Settings, record: &Registered) -> Result<Prepared, String> {
        let document = opened(&settings.keys, record).map_err(|why| {
            format!("it cannot be opened: {why}; all instances need the same `store_key`")
        })?;
        let (document, _) = in_effect(record, document, Timestamp::now());
        self.prepared_of(settings, record, &document)
    }

    fn is_unusable(&self, record: &Registered, why: String) {
        error!(subscription = %record.name, uid = %record.uid, why, "a subscription that was made over the API cannot be used: it is kept, and matches nothing");
        let key = (record.name.clone(), record.uid.to_string());
        let mut unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        unusable.insert(key, Listed::unusable(record, why));
        self.shared.meters.unusable.set(unusable.len() as i64);
    }

    /// What says of a key what is in force.
    pub(super) fn repair(
        &self,
        key: &str,
    ) -> Result<Option<crate::broker::state::Record>, StoreError> {
        let nothing = || Some(super::said::nothing(key.to_owned()));
        let what = match about(key) {
            About::Registered(uid) => match self.store.registered_with(&uid)? {
                Some(record) => said_of(record, true),
                None => return Ok(nothing()),
            },
            About::Endpoint(name) => {
                let standing = self.store.endpoint_standing(name)?;
                said_of_endpoint(name.into(), standing)
            }
            About::Subscription(uid) => {
                let paused = self.store.subscription_standing(&uid)?.paused;
                What::Subscription { uid, paused }
            }
            About::Instance(_) | About::Other => return Ok(None),
        };
        Ok(Some(Said::new(&self.shared.me, what).record()))
    }
}

pub(super) fn said_of(record: Registered, again: bool) -> What {
    What::Put {
        record: Box::new(record),
        answered: None,
        again,
    }
}

pub(super) fn said_of_endpoint(name: Arc<str>, standing: EndpointStanding) -> What {
    What::Endpoint {
        name,
        disabled: standing.disabled,
        first_gone_at: standing.first_gone_at,
    }
}
