//! Lanes: what has been handed out of a queue and is not gone from the file yet.
//!
//! The file says what is to be done, a lane remembers what is being done: a sequence stays in it
//! from the read that found it until the transaction that removed it is synced, so nothing is
//! handed out twice at once. It is bounded by the intake's window and one read-ahead.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::Notify;

use crate::broker::Naming;
use crate::delivery::WaitKind;
use crate::meters::SourceMeters;
use crate::subscription::Pattern;

/// What a lane takes from.
pub enum Origin {
    /// The deliveries of this kind that are due.
    Due(WaitKind),
    /// The queue of a source.
    Source {
        /// As stored, the same in every run.
        id: u32,
        name: Arc<str>,
        /// Another one after a reload.
        role: ArcSwap<Role>,
        meters: Box<SourceMeters>,
    },
}

/// What becomes of events as they are published and taken.
pub struct Role {
    /// None: its source is no longer taken from, and what waits is kept.
    pub topics: Vec<Pattern>,
    pub naming: Naming,
}

impl Role {
    pub fn takes(&self, topic: &str) -> bool {
        self.topics.iter().any(|wanted| wanted.matches(topic))
    }
}

/// One sequence that is being worked on.
#[derive(Debug, Clone, Copy, Default)]
struct Handed {
    /// The key in `due`, for parked deliveries.
    due_ms: u64,
    /// To be handed out again at this time; `None` while somebody has it.
    again: Option<Instant>,
    /// How often it came back unanswered.
    returns: u32,
}

/// The lanes by their numbers, which stay: those of retries and holds, then one for each source, and those
/// that come later at the end.
pub struct Lanes(ArcSwap<Vec<Arc<Lane>>>);

impl Lanes {
    pub fn new(lanes: Vec<Arc<Lane>>) -> Self {
        Self(ArcSwap::from_pointee(lanes))
    }

    pub fn all(&self) -> Guard<Arc<Vec<Arc<Lane>>>> {
        self.0.load()
    }

    pub fn get(&self, number: usize) -> Arc<Lane> {
        self.0.load()[number].clone()
    }

    /// The lane of a source, and its number.
    pub fn of_source(&self, source: &str) -> Option<(usize, Arc<Lane>)> {
        let lanes = self.0.load();
        let mut numbered = lanes.iter().enumerate();
        let found = numbered.find(|(_, lane)| match &lane.origin {
            Origin::Source { name, .. } => **name == *source,
            Origin::Due(_) => false,
        });
        found.map(|(number, lane)| (number, lane.clone()))
    }

    /// Puts these behind those that there are. One caller at a time.
    pub fn extend(&self, more: Vec<Arc<Lane>>) {
        let mut lanes = Vec::clone(&self.0.load());
        lanes.extend(more);
        self.0.store(Arc::new(lanes));
    }
}

pub struct Lane {
    pub origin: Origin,
    /// Something new may be there to be taken.
    pub news: Notify,
    handed: Mutex<HashMap<u64, Handed>>,
    depth: AtomicI64,
}

impl Lane {
    pub fn new(origin: Origin, depth: i64) -> Arc<Self> {
        let lane = Self {
            origin,
            news: Notify::new(),
            handed: Mutex::default(),
            depth: AtomicI64::new(0),
        };
        lane.deepen(depth);
        Arc::new(lane)
    }

    fn handed(&self) -> MutexGuard<'_, HashMap<u64, Handed>> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sequences that a read must pass over. Asked for *before* the read begins: what is removed
    /// between the two is then either in this set or no longer in the file.
    pub fn busy(&self) -> HashSet<u64> {
        let now = Instant::now();
        let handed = self.handed();
        let busy = handed
            .iter()
            .filter(|(_, handed)| handed.again.is_none_or(|again| again > now));
        busy.map(|(&sequence, _)| sequence).collect()
    }

    /// A read found `sequence`; from now on it is busy.
    pub fn take(&self, sequence: u64, due_ms: u64) {
        let mut handed = self.handed();
        let entry = handed.entry(sequence).or_default();
        entry.due_ms = due_ms;
        entry.again = None;
    }

    /// Read ahead and not handed out after all.
    pub fn untake(&self, sequence: u64) {
        self.handed().remove(&sequence);
    }

    /// Somebody had it and gave it back without an answer: 100 ms later at first, 5 s at most.
    pub fn give_back(&self, sequence: u64) {
        if let Some(entry) = self.handed().get_mut(&sequence) {
            let delay = Duration::from_millis(100 << entry.returns.min(6));
            entry.again = Some(Instant::now() + delay.min(Duration::from_secs(5)));
            entry.returns += 1;
        }
        self.news.notify_one();
    }

    pub fn due_of(&self, sequence: u64) -> u64 {
        self.handed()
            .get(&sequence)
            .map_or(0, |handed| handed.due_ms)
    }

    /// Its removal is synced.
    pub fn forget(&self, sequence: u64) {
        self.handed().remove(&sequence);
    }

    /// When the next one that was given back is to be handed out again.
    pub fn next_again(&self) -> Option<Instant> {
        self.handed().values().filter_map(|entry| entry.again).min()
    }

    /// Events waiting in the queue have become more (or fewer).
    pub fn deepen(&self, by: i64) {
        let depth = self.depth.fetch_add(by, Ordering::Relaxed) + by;
        if let Origin::Source { meters, .. } = &self.origin {
            meters.lag(0, depth);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Arc<Lane> {
        Lane::new(Origin::Due(WaitKind::Retry), 0)
    }

    #[test]
    fn what_is_taken_is_busy_until_its_removal_is_synced() {
        let lane = lane();
        lane.take(7, 70);
        assert!(lane.busy().contains(&7));
        assert_eq!(lane.due_of(7), 70);
        lane.forget(7);
        assert!(lane.busy().is_empty());
    }

    #[test]
    fn what_is_given_back_stays_busy_for_a_growing_while() {
        let lane = lane();
        lane.take(7, 0);
        lane.give_back(7);
        assert!(lane.busy().contains(&7));
        let first = lane.next_again().unwrap();
        lane.take(7, 0);
        lane.give_back(7);
        assert!(lane.next_again().unwrap() > first + Duration::from_millis(50));
    }
}
