//! Suspects: events that make the bridge fail, found by counting and put away after three tries.
//!
//! A panic while something is worked on gives its receipt back, and the broker delivers again; here
//! it is counted against the event (while it is routed) or the delivery (after that). A crash that
//! ends the process cannot be caught. So after an unclean stop the pipeline is *careful*: it takes
//! one at a time, each noted in the store before it is touched, and what was in hand when the process
//! died again has one try more against it. As things go well more are taken at a time, and after
//! [`WELL`], or [`LONGEST`], the notes are removed and normal running begins, in which nothing is written
//! and one flag is read for each message; as long as anybody has tries against it, a map is asked.
//!
//! What has three tries against it is dead-lettered when it comes next, with reason `poison`. A
//! later success clears its tries, and so does a day. A stop with `kill -9` counts only against what was in hand just
//! then, for no longer than its [`TURN`]: waiting for a receiver is not what a bridge dies of.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::panics;
use crate::event::{Event, EventId};
use crate::meters::Meters;
use crate::store::{Store, StoreError, Suspect};
use crate::subscription::Uid;

/// So many tries against it, and it is poison.
const TRIES: u32 = 3;
/// Suspects remembered; beyond that those with the fewest tries are forgotten.
const MOST: usize = 1_000;
/// How many are in hand at a time, by how many went well.
const STEPS: [(usize, usize); 3] = [(4, 1), (16, 4), (WELL, 16)];
/// So many went well, and the pipeline is careful no more.
const WELL: usize = 64;
/// No longer than this is the pipeline careful with what comes, however slow disk and receivers are.
const LONGEST: Duration = Duration::from_secs(10);
/// How long one that is in hand may hold up those after it.
const TURN: Duration = Duration::from_millis(500);
/// So long after the last of them, tries are forgotten: it came to an end elsewhere, or under
/// another id.
const MEMORY: SignedDuration = SignedDuration::from_hours(24);
/// Notes are removed together with what comes within this time.
const TOGETHER: Duration = Duration::from_millis(20);

/// See the module.
pub struct Suspects {
    store: Arc<Store>,
    meters: Arc<Meters>,
    /// Whether there is anything to look up: careful, or somebody has tries against it.
    watching: AtomicBool,
    state: Mutex<State>,
    pace: watch::Sender<usize>,
    /// Something has left, or the pipeline is careful no more.
    freed: Notify,
    /// One set of notes is written after another.
    noting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    against: BTreeMap<String, Against>,
    care: Option<Care>,
    /// Whose notes have to be written.
    changed: BTreeSet<String>,
}

/// What speaks against one.
#[derive(Clone, Copy)]
struct Against {
    tries: u32,
    last: Timestamp,
}

#[derive(Default)]
struct Care {
    well: usize,
    /// When the first was taken.
    since: Option<Instant>,
    in_hand: HashSet<String>,
}

impl State {
    /// Nothing speaks against these any more.
    fn clear(&mut self, which: impl Fn(&str, &Against) -> bool) {
        let cleared = self.against.extract_if(.., |key, it| which(key, it));
        self.changed.extend(cleared.map(|(key, _)| key));
    }

    /// An event that is resolved as a whole clears its deliveries too.
    fn clear_event(&mut self, event: &str) {
        let range = (Bound::Included(event), Bound::Unbounded);
        let candidates = self.against.range::<str, _>(range).map(|(key, _)| key);
        let of_event = |key: &&String| matches!(key.as_bytes().get(event.len()), None | Some(b'/'));
        let cleared: Vec<String> = candidates
            .take_while(|key| key.starts_with(event))
            .filter(of_event)
            .cloned()
            .collect();
        for key in cleared {
            self.against.remove(&key);
            self.changed.insert(key);
        }
    }
}

impl Care {
    fn at_a_time(&self) -> usize {
        let step = STEPS.iter().find(|(until, _)| self.well < *until);
        step.map_or(usize::MAX, |(_, at_a_time)| *at_a_time)
    }
}

/// What the intake gets for one message while anything is looked up. Dropped when all its
/// deliveries are resolved, or one of them is given up.
pub struct Pass {
    suspects: Arc<Suspects>,
    key: String,
    resolved: bool,
    /// Ends its turn, where there are turns.
    _turn: Option<AbortOnDropHandle<()>>,
}

impl Suspects {
    pub fn new(store: Arc<Store>, meters: Arc<Meters>) -> Arc<Self> {
        panics::witness();
        Arc::new(Self {
            store,
            meters,
            watching: AtomicBool::new(false),
            state: Mutex::default(),
            pace: watch::channel(usize::MAX).0,
            freed: Notify::new(),
            noting: tokio::sync::Mutex::default(),
        })
    }

    /// How many messages may be taken at a time for now.
    pub fn pace(&self) -> watch::Receiver<usize> {
        self.pace.subscribe()
    }

    /// Reads how the last process ended. Before anything is taken.
    pub async fn begin(self: &Arc<Self>) -> Result<(), StoreError> {
        let begun = self.store.begin().await?;
        let mut state = self.lock();
        state.against = begun
            .suspects
            .into_iter()
            .map(|(key, Suspect { tries, last, .. })| (key, Against { tries, last }))
            .collect();
        self.make_room(&mut state, 0);
        self.forget_before(&mut state, Timestamp::now());
        if begun.unclean {
            let care = Care::default();
            warn!(
                suspects = state.against.len(),
                "the last stop was not in order; events are taken a few at a time until {WELL} have gone well"
            );
            self.pace.send_replace(care.at_a_time());
            self.meters.careful.set(1);
            state.care = Some(care);
        }
        self.watch(&state);
        drop(state);
        self.write_soon();
        Ok(())
    }

    /// The process stops in order.
    pub async fn end(&self) -> Result<(), StoreError> {
        {
            let State { care, changed, .. } = &mut *self.lock();
            changed.extend(care.iter_mut().flat_map(|care| care.in_hand.drain()));
        }
        self.write().await?;
        self.store.end().await
    }

    /// Lets a message in, if need be after others have left. `None` in normal running.
    pub async fn enter(self: &Arc<Self>, key: impl FnOnce() -> String) -> Option<Box<Pass>> {
        if !self.watching.load(Ordering::Relaxed) {
            return None;
        }
        let key = key();
        loop {
            let freed = self.freed.notified();
            match self.admit(&key) {
                Entry::Noted => break,
                Entry::Free => return Some(self.pass(key, None)),
                Entry::Twice => return None,
                Entry::Later => freed.await,
            }
        }
        // A store that fails ends the process; nothing is to be done about it here.
        let _ = self.write().await;
        let turn = tokio::spawn({
            let (suspects, key) = (Arc::clone(self), key.clone());
            async move {
                tokio::time::sleep(TURN).await;
                suspects.leave(&key, Left::Overdue);
            }
        });
        Some(self.pass(key, Some(AbortOnDropHandle::new(turn))))
    }

    fn pass(self: &Arc<Self>, key: String, turn: Option<AbortOnDropHandle<()>>) -> Box<Pass> {
        Box::new(Pass {
            suspects: Arc::clone(self),
            key,
            resolved: false,
            _turn: turn,
        })
    }

    fn admit(&self, key: &str) -> Entry {
        let mut state = self.lock();
        let State {
            against,
            care,
            changed,
        } = &mut *state;
        let Some(care) = care else {
            return Entry::Free;
        };
        if care.in_hand.contains(key) {
            return Entry::Twice;
        }
        // A suspect goes alone, so that nobody else is counted with it.
        let is_suspect = |key: &str| against.contains_key(key);
        let alone = is_suspect(key) || care.in_hand.iter().any(|it| is_suspect(it));
        if care.in_hand.len() >= if alone { 1 } else { care.at_a_time() } {
            return Entry::Later;
        }
        care.since.get_or_insert_with(Instant::now);
        care.in_hand.insert(key.to_owned());
        changed.insert(key.to_owned());
        Entry::Noted
    }

    fn leave(self: &Arc<Self>, key: &str, how: Left) {
        let mut state = self.lock();
        if let Left::Well = how {
            state.clear_event(key);
        }
        if let Some(care) = state.care.as_mut()
            && care.in_hand.remove(key)
        {
            care.well = match how {
                Left::Well => care.well + 1,
                // Whatever it waits for, others need not wait for it: the next step.
                Left::Overdue => {
                    let step = STEPS.iter().find(|(until, _)| care.well < *until);
                    step.map_or(care.well, |(until, _)| *until)
                }
                Left::Badly => care.well,
            };
            let took = care.since.map(|since| since.elapsed());
            let over = care.well >= WELL || took >= Some(LONGEST);
            let (well, at_a_time) = match over {
                true => (care.well, usize::MAX),
                false => (care.well, care.at_a_time()),
            };
            state.changed.insert(key.to_owned());
            if over && let Some(care) = state.care.take() {
                state.changed.extend(care.in_hand);
                self.meters.careful.set(0);
                info!(
                    well,
                    ?took,
                    "events go well since the unclean stop; back to normal running"
                );
            }
            self.pace.send_if_modified(|pace| {
                let wider = at_a_time > *pace;
                *pace = (*pace).max(at_a_time);
                wider
            });
        }
        self.watch(&state);
        drop(state);
        self.freed.notify_waiters();
        self.write_soon();
    }

    /// Work on `key` has panicked.
    pub fn panicked(self: &Arc<Self>, key: String) {
        self.meters.panics.inc();
        let (mut state, last) = (self.lock(), Timestamp::now());
        if !state.against.contains_key(&key) {
            self.make_room(&mut state, 1);
        }
        let none = Against { tries: 0, last };
        let against = state.against.entry(key.clone()).or_insert(none);
        *against = Against {
            tries: against.tries + 1,
            last,
        };
        let (tries, panic) = (against.tries, panics::last());
        error!(suspect = %key, tries, of = TRIES, %panic, "work on this event panicked; it is delivered again, and dead-lettered as poison after {TRIES} tries");
        state.changed.insert(key);
        self.watch(&state);
        drop(state);
        self.write_soon();
    }

    /// Whether so much speaks against it that it is not tried again.
    pub fn is_poison(&self, key: impl FnOnce() -> String) -> bool {
        self.watching.load(Ordering::Relaxed)
            && self
                .lock()
                .against
                .get(&key())
                .is_some_and(|against| against.tries >= TRIES)
    }

    /// Whether anything speaks against one of `keys`, so that it had better go alone.
    pub fn is_suspect(&self, keys: impl FnOnce() -> [String; 2]) -> bool {
        if !self.watching.load(Ordering::Relaxed) {
            return false;
        }
        let (keys, state) = (keys(), self.lock());
        keys.iter().any(|key| state.against.contains_key(key))
    }

    /// Forgets those that have not failed for a day.
    pub fn forget(self: &Arc<Self>, now: Timestamp) {
        let mut state = self.lock();
        self.forget_before(&mut state, now);
        self.watch(&state);
        drop(state);
        self.write_soon();
    }

    fn forget_before(&self, state: &mut State, now: Timestamp) {
        state.clear(|_, against| now.duration_since(against.last) > MEMORY);
    }

    /// Forgets those with the fewest tries, so that there is room for `more`.
    fn make_room(&self, state: &mut State, more: usize) {
        while state.against.len() + more > MOST {
            let of_least = state.against.iter().min_by_key(|(_, it)| it.tries);
            let Some(least) = of_least.map(|(key, _)| key.clone()) else {
                return;
            };
            state.clear(|it, _| *it == least);
        }
    }

    fn watch(&self, state: &State) {
        let watching = state.care.is_some() || !state.against.is_empty();
        self.watching.store(watching, Ordering::Relaxed);
    }

    fn write_soon(self: &Arc<Self>) {
        // Without a runtime the process is ending.
        if let Ok(runtime) = Handle::try_current()
            && !self.lock().changed.is_empty()
        {
            let suspects = Arc::clone(self);
            runtime.spawn(async move {
                tokio::time::sleep(TOGETHER).await;
                let _ = suspects.write().await;
            });
        }
    }

    /// Writes down what has changed.
    async fn write(&self) -> Result<(), StoreError> {
        let _turn = self.noting.lock().await;
        let notes: Vec<_> = {
            let mut state = self.lock();
            let changed = std::mem::take(&mut state.changed);
            let note = |key: String| {
                let in_hand = state
                    .care
                    .as_ref()
                    .is_some_and(|it| it.in_hand.contains(&key));
                let against = state.against.get(&key).copied();
                let suspect = (in_hand || against.is_some()).then(|| Suspect {
                    tries: against.map_or(0, |it| it.tries),
                    last: against.map_or_else(Timestamp::now, |it| it.last),
                    in_hand,
                });
                (key, suspect)
            };
            changed.into_iter().map(note).collect()
        };
        match notes.is_empty() {
            true => Ok(()),
            false => self.store.note_suspects(notes).await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Entry {
    /// It is in hand, and has to be noted.
    Noted,
    /// The pipeline is not careful.
    Free,
    /// It is in hand already, by another copy.
    Twice,
    Later,
}

enum Left {
    Well,
    Badly,
    /// Its turn is over.
    Overdue,
}

impl Pass {
    /// Everything about it has a durable verdict.
    pub fn resolved(mut self) {
        self.resolved = true;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let how = match self.resolved {
            true => Left::Well,
            false => Left::Badly,
        };
        self.suspects.leave(&self.key, how);
    }
}

/// Goes with a delivery while it is worked on, and sees its panics.
pub struct Witness {
    suspects: Arc<Suspects>,
    event: Arc<Event>,
    uid: Uid,
}

impl Witness {
    pub fn new(suspects: &Arc<Suspects>, event: &Arc<Event>, uid: &Uid) -> Self {
        Self {
            suspects: suspects.clone(),
            event: event.clone(),
            uid: uid.clone(),
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.suspects
                .panicked(of_delivery(&self.event.id, &self.uid));
        }
    }
}

/// The key of a delivery. That of an event is its id, which contains no `/`.
pub fn of_delivery(event: &EventId, uid: &Uid) -> String {
    format!("{event}/{uid}")
}

#[cfg(test)]
mod tests;
