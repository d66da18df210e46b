//! The door of a source: how long a fresh event may wait for a full lane before it is parked.
//!
//! Parking costs the broker two hops and the event at least a second, so waiting is better as long
//! as it harms nobody. It harms nobody when no other lane that this source feeds is running out of
//! work: then the lanes are the bottleneck, and the backlog belongs in the queue it came from. Where
//! another lane does run dry, waiting is limited to a few milliseconds for lanes that are about to
//! make room, out of a budget of two per cent of the time. So a slow receiver's overflow is parked at
//! once, and a burst to a fast one is not.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::EndpointLane;

/// A lane counts as fed by the source for this long after its last event.
const FED_FOR: Duration = Duration::from_secs(10);
/// One look at a full lane lasts at most this long, and is begun only when the budget covers it.
const LOOK: Duration = Duration::from_millis(10);
/// Longest wait for one event, as for jobs in a waiting room.
const LONGEST: Duration = crate::deliver::lane::LONGEST_WAIT;
/// A lane makes room soon enough to be waited for at others' cost when within this.
const SOON: Duration = Duration::from_millis(2);
/// The budget of waits at others' cost, and the share of time by which it grows again.
const BUDGET: Duration = Duration::from_millis(20);
const BUDGET_SHARE: u32 = 50;

/// One source's view of the lanes that it feeds.
pub struct Door {
    fed: Vec<(Weak<EndpointLane>, Instant)>,
    budget: Duration,
    budget_at: Instant,
}

impl Door {
    pub fn new(now: Instant) -> Self {
        Self {
            fed: Vec::new(),
            budget: BUDGET,
            budget_at: now,
        }
    }

    /// Notes that an event of this source goes to `lane`.
    pub fn feeds(&mut self, lane: &Arc<EndpointLane>, now: Instant) {
        let this = Arc::as_ptr(lane);
        match self.fed.iter_mut().find(|(fed, _)| fed.as_ptr() == this) {
            Some((_, last)) => *last = now,
            None => {
                self.fed
                    .retain(|(_, last)| now.saturating_duration_since(*last) < FED_FOR);
                self.fed.push((Arc::downgrade(lane), now));
            }
        }
    }

    /// Waits a moment for `lane`, which is full, to make room. `false`: do not wait (any longer).
    pub async fn wait(&mut self, lane: &Arc<EndpointLane>, since: Instant) -> bool {
        let now = Instant::now();
        if now.saturating_duration_since(since) >= LONGEST {
            return false;
        }
        let harms = self.another_runs_dry(lane, now);
        let soon = lane.lane.next_place(now) <= SOON;
        self.refill(now);
        if harms && (!soon || self.budget < LOOK) {
            return false;
        }
        let _ = tokio::time::timeout(LOOK, lane.lane.freed()).await;
        if harms {
            self.budget = self.budget.saturating_sub(now.elapsed());
        }
        true
    }

    fn another_runs_dry(&self, lane: &Arc<EndpointLane>, now: Instant) -> bool {
        self.fed.iter().any(|(fed, last)| {
            fed.as_ptr() != Arc::as_ptr(lane)
                && now.saturating_duration_since(*last) < FED_FOR
                && fed
                    .upgrade()
                    .is_some_and(|other| other.lane.is_dry() && !other.is_disabled())
        })
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.budget_at) / BUDGET_SHARE;
        self.budget = (self.budget + earned).min(BUDGET);
        self.budget_at = now;
    }
}
