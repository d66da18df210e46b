//! Shared: all instances of a group have the same subscriptions, and know the same of endpoints.
//!
//! They share a log on a broker ([`crate::broker::state`]). Whatever changes is told there, confirmed,
//! and read back in the order of the log by everybody, who told it among them; what holds is decided
//! by that order alone ([`fold`]), written down in the store, and put in force ([`follow`]). So the
//! store is what came of the log, and can be thrown away. What is left to be done beside that is
//! [`tend`]'s: telling what endpoints have said of themselves, and that this instance is there.

mod bookmark;
mod fold;
mod follow;
mod judge;
mod peers;
mod said;
mod tend;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

use super::{Refused, Settings};
use crate::broker::state::{Keeping, Record, StateLog};
use crate::broker::{self, Broker};
use crate::pipeline::Prepared;
use crate::store::Store;
use crate::subscription::Uid;
use bookmark::Bookmark;
use fold::{Buried, Verdict};
use peers::Peers;
pub(super) use said::What;
use said::{Said, unique};

/// How long a record that is confirmed may take to be read, while records are read.
const READ_BACK: Duration = Duration::from_secs(10);
/// However long records are not read.
const READ_BACK_AT_ALL: Duration = Duration::from_secs(300);
/// What an instance tells of itself now and then is looked for with more patience: nobody waits for it.
const MARK_BY: Duration = Duration::from_secs(60);
/// How long a change waits for an instance that has just been started.
const PATIENCE: Duration = Duration::from_secs(5);
/// Keys whose last record is not what is in force. More than anybody has time to repair.
const MOST_MISLED: usize = 10_000;

/// Where a group keeps what it shares, and who we are in it.
pub struct Sharing {
    pub broker: Arc<dyn Broker>,
    pub instance: Arc<str>,
    /// Of the parts of the config that are to be the same everywhere.
    pub config: String,
    pub meters: SharingMeters,
}

/// What is counted of it.
#[derive(Debug, Clone, Default)]
pub struct SharingMeters {
    /// 1 while this instance knows what the others know.
    pub in_step: Gauge,
    /// Instances with another config.
    pub differ: Gauge,
    /// Subscriptions that are kept and not in force.
    pub unusable: Gauge,
}

/// See the module.
pub(super) struct Shared {
    broker: Arc<str>,
    log: Arc<dyn StateLog>,
    /// This process, in what it tells.
    me: String,
    /// How records are read; changed with `folding` held.
    settings: Mutex<Settings>,
    waiting: Mutex<HashMap<String, Waiting>>,
    progress: watch::Sender<Progress>,
    /// It has known once what the others know, and takes events since.
    has_begun: AtomicBool,
    /// Held while records are folded, and while the config changes.
    folding: tokio::sync::Mutex<Folding>,
    /// Whether it is held by something else than the folding.
    is_still: watch::Sender<bool>,
    /// Everything is to be read once more.
    reread: Notify,
    /// What this instance has last told of itself, and when, until it is read.
    mark: Mutex<Option<(String, Instant)>>,
    /// There is something to be told.
    work: Notify,
    peers: Peers,
    meters: SharingMeters,
}

/// Somebody waits for what comes of their record.
struct Waiting {
    verdict: oneshot::Sender<Verdict>,
    prepared: Option<Box<Prepared>>,
}

/// How far this instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    /// It does not know yet what the others know, and maybe why.
    Behind(Option<String>),
    InStep,
}

/// What is remembered between records.
#[derive(Default)]
struct Folding {
    /// Where to go on reading; `None`: at the first record.
    bookmark: Option<Bookmark>,
    buried: Buried,
    /// Since when, and whether it was this instance that told so.
    misled: BTreeMap<String, (Instant, bool)>,
    names: BTreeSet<String>,
    /// What this instance says once more, by its key.
    saying_again: HashMap<String, SayingAgain>,
    length: Length,
    /// The store has changed while all was read, and what is in force has not.
    is_ahead: bool,
}

/// A record that is on its way, and whether another of its key has come first.
struct SayingAgain {
    id: String,
    is_late: bool,
}

/// How much has been read since everything was last said.
#[derive(Default)]
struct Length {
    read_bytes: u64,
    /// Where it began.
    begun: HashMap<String, u64>,
    since: u64,
    /// Not enough before it is so long: twice what there was to say when that was last added up.
    enough: u64,
}

impl Shared {
    pub fn new(sharing: Sharing, settings: Settings) -> Self {
        let Sharing {
            broker,
            instance,
            config,
            meters,
        } = sharing;
        Self {
            broker: broker.name().clone(),
            log: broker.state(),
            me: unique(),
            settings: Mutex::new(settings),
            waiting: Mutex::default(),
            progress: watch::channel(Progress::Behind(None)).0,
            has_begun: AtomicBool::new(false),
            folding: tokio::sync::Mutex::default(),
            is_still: watch::channel(false).0,
            reread: Notify::new(),
            mark: Mutex::default(),
            work: Notify::new(),
            peers: Peers::new(instance, config, meters.differ.clone()),
            meters,
        }
    }

    /// How records are read now.
    pub fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    /// From now on records are read by these. To be called with [`Shared::still`] held.
    pub fn read_by(&self, settings: Settings) {
        *lock(&self.settings) = settings;
    }

    /// Whether it was removed, as far as that is remembered.
    pub async fn is_removed(&self, uid: &Uid) -> bool {
        self.folding.lock().await.buried.has(uid)
    }

    /// Nothing is folded while it is held.
    pub async fn still(&self) -> Still<'_> {
        let folding = self.folding.lock().await;
        self.is_still.send_replace(true);
        Still {
            is_still: &self.is_still,
            folding,
        }
    }

    /// Whether other instances read what is told.
    fn is_alone(&self) -> bool {
        self.log.keeping() == Keeping::Alone
    }

    fn set(&self, progress: Progress) {
        self.meters
            .in_step
            .set((progress == Progress::InStep).into());
        self.progress.send_replace(progress);
    }

    /// Why this instance does not know yet what the others know.
    fn behind(&self) -> Option<String> {
        match &*self.progress.borrow() {
            Progress::InStep => None,
            Progress::Behind(why) => {
                let why = why.as_ref().map(|why| format!(": {why}"));
                Some(format!(
                    "reading what the group has kept on broker `{}`{}",
                    self.broker,
                    why.unwrap_or_default()
                ))
            }
        }
    }

    /// Tells the group, and returns what has come of it: it is in force, or has lost against another.
    pub async fn tell(
        &self,
        what: What,
        prepared: Option<Box<Prepared>>,
    ) -> Result<Verdict, Refused> {
        if let What::Put {
            record, answered, ..
        } = &what
        {
            Store::fits(record, answered.as_deref())?;
        }
        self.caught_up().await?;
        let said = Said::new(&self.me, what);
        let (verdict, told) = oneshot::channel();
        let waits = Waits {
            on: self,
            id: &said.id,
        };
        lock(&self.waiting).insert(said.id.clone(), Waiting { verdict, prepared });
        self.write(vec![said.record()]).await?;
        let read_back = read_back(told, self.is_still.subscribe()).await;
        drop(waits);
        match read_back {
            Some(verdict) => Ok(verdict),
            None => {
                self.reread.notify_one();
                Err(Refused::Unavailable(format!(
                    "broker `{}` has taken the change and does not give it back: it may come into force \
                     later; look, and ask again",
                    self.broker
                )))
            }
        }
    }

    /// Says that this instance is there, which is to be read by all, and here too.
    async fn say_there(&self) -> Result<(), Refused> {
        let said = Said::new(&self.me, What::Instance(self.peers.me()));
        // It may be read before it is known to be written.
        *lock(&self.mark) = Some((said.id.clone(), Instant::now()));
        let written = self.write(vec![said.record()]).await;
        let mut mark = lock(&self.mark);
        match &written {
            Ok(()) => mark.iter_mut().for_each(|(_, at)| *at = Instant::now()),
            Err(_) => *mark = None,
        }
        written
    }

    /// If these were told of itself by this instance, they are read.
    fn has_read(&self, marks: &[String]) {
        let mut mark = lock(&self.mark);
        if mark.as_ref().is_some_and(|(id, _)| marks.contains(id)) {
            *mark = None;
        }
    }

    /// Has everything read once more if what this instance has told of itself should long have been
    /// read: the log that is read may be there no more.
    fn look_for_mark(&self) {
        let mut mark = lock(&self.mark);
        let is_overdue = mark.as_ref().is_some_and(|(_, at)| at.elapsed() > MARK_BY);
        if is_overdue && !*self.is_still.borrow() {
            *mark = None;
            self.reread.notify_one();
        }
    }

    /// So many are kept and not in force.
    pub fn unusable(&self, count: usize) {
        self.meters.unusable.set(count as i64);
    }

    /// How long to leave to other instances what one has to do.
    pub fn turn(&self) -> Duration {
        match self.peers.count(Timestamp::now()) {
            0 => Duration::ZERO,
            _ => Duration::from_millis(rand::random_range(0..2_000)),
        }
    }

    /// Waits a moment for this instance to know what the others know.
    async fn caught_up(&self) -> Result<(), Refused> {
        let mut progress = self.progress.subscribe();
        let caught_up = progress.wait_for(|progress| *progress == Progress::InStep);
        let in_time = matches!(timeout(PATIENCE, caught_up).await, Ok(Ok(_)));
        match self.behind() {
            Some(why) if !in_time => Err(Refused::Unavailable(why)),
            _ => Ok(()),
        }
    }

    async fn write(&self, records: Vec<Record>) -> Result<(), Refused> {
        self.log
            .tell(records)
            .await
            .map_err(|refused| match refused {
                broker::Refused::TooLarge { .. } => Refused::TooLarge(refused.to_string()),
                other => Refused::Unavailable(other.to_string()),
            })
    }
}

/// Nothing is folded until it is dropped.
pub(super) struct Still<'a> {
    is_still: &'a watch::Sender<bool>,
    folding: tokio::sync::MutexGuard<'a, Folding>,
}

impl Still<'_> {
    /// Whether the store is under way to what the others know, and maybe at what was long ago; what
    /// is in force is not.
    pub fn is_ahead(&self) -> bool {
        self.folding.is_ahead
    }

    fn catches_up(&mut self) {
        self.folding.is_ahead = false;
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.is_still.send_replace(false);
    }
}

/// What comes of a record, unless that takes too long. Time in which nothing is folded, because a
/// reload has everything stand still, says nothing of the broker and does not count.
async fn read_back<T>(
    told: oneshot::Receiver<T>,
    mut is_still: watch::Receiver<bool>,
) -> Option<T> {
    let too_long = async {
        loop {
            if is_still.wait_for(|still| !still).await.is_err() {
                return;
            }
            let still_again = is_still.wait_for(|still| *still);
            if !matches!(timeout(READ_BACK, still_again).await, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        verdict = told => verdict.ok(),
        _ = timeout(READ_BACK_AT_ALL, too_long) => None,
    }
}

/// Forgets who waits, also when nobody waits for them.
struct Waits<'a> {
    on: &'a Shared,
    id: &'a str,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        lock(&self.on.waiting).remove(self.id);
    }
}

impl Verdict {
    /// Whether the change of the subscription of this name is in force.
    pub fn in_force(self, name: String) -> Result<(), Refused> {
        match self {
            Self::Holds => Ok(()),
            Self::Changed => Err(Refused::Changed),
            Self::Taken => Err(Refused::Taken(name)),
            Self::Nothing => Err(Refused::Unknown),
        }
    }
}

impl Folding {
    /// At the first record again.
    fn begin_again(&mut self) {
        *self = Self {
            is_ahead: self.is_ahead,
            ..Self::default()
        };
    }

    /// The last record of this key says something else than what is in force.
    fn misleads(&mut self, key: &str, ours: bool) {
        if self.misled.len() < MOST_MISLED {
            self.misled.insert(key.to_owned(), (Instant::now(), ours));
        }
    }
}

impl Length {
    fn read(&mut self, bytes: usize) {
        self.read_bytes += bytes as u64;
        self.since += bytes as u64;
    }

    /// Everything is said once more from here on, or has been.
    fn again(&mut self, by: &str, begins: bool) {
        if begins {
            // Of those that never came to their end none is worth remembering.
            if self.begun.len() >= 8 {
                self.begun.clear();
            }
            self.begun.insert(by.to_owned(), self.read_bytes);
        } else if let Some(begun) = self.begun.remove(by) {
            self.since = self.read_bytes - begun;
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_told_is_waited_for_while_records_are_read() {
        let (_said, told) = oneshot::channel::<()>();
        let began = Instant::now();
        let is_still = watch::channel(false).0;
        assert_eq!(read_back(told, is_still.subscribe()).await, None);
        assert_eq!(began.elapsed(), READ_BACK);
    }

    #[test]
    fn what_is_not_in_force_yet_is_not_forgotten_when_all_is_read_again() {
        let mut folding = Folding {
            is_ahead: true,
            names: BTreeSet::from(["a".to_owned()]),
            ..Folding::default()
        };
        folding.begin_again();
        assert!(folding.is_ahead && folding.names.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_that_takes_long_is_not_held_against_the_broker() {
        let (said, told) = oneshot::channel();
        let is_still = watch::channel(false).0;
        let reading = read_back(told, is_still.subscribe());
        let reloading = async {
            sleep(READ_BACK / 2).await;
            is_still.send_replace(true);
            sleep(6 * READ_BACK).await;
            is_still.send_replace(false);
            sleep(READ_BACK * 3 / 4).await;
            said.send("it holds")
        };
        let (verdict, sent) = tokio::join!(reading, reloading);
        assert_eq!((verdict, sent), (Some("it holds"), Ok(())));

        let (_said, told) = oneshot::channel::<()>();
        is_still.send_replace(true);
        let began = Instant::now();
        assert_eq!(read_back(told, is_still.subscribe()).await, None);
        assert_eq!(began.elapsed(), READ_BACK_AT_ALL);
    }
}
