//! The door of a source: how long a fresh event may wait for a full lane before it is parked.
//!
//! Parking costs the broker two hops and the event at least a second, so waiting is better as long
//! as it harms nobody. It harms nobody when no other lane that this source feeds is running out of
//! work: then the lanes are the bottleneck, and the backlog belongs in the queue it came from. Where
//! another lane does run dry, waiting is limited to a few milliseconds for lanes that are about to
//! make room, out of a budget of two per cent of the time. So a slow receiver's overflow is parked at
//! once, and a burst to a fast one is not.
//!
//! Deliveries that were held come back through a door as well ([`Patience`]). While their endpoint
//! still fails, and nobody else's deliveries are held on this broker, they wait where they are: the
//! rest stays in the broker's queue of what is due, is not sent round again for nothing, and is all
//! there when the endpoint works. Where others have deliveries held, those behind must not wait, and
//! the failing endpoint's are held again.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::EndpointLane;

/// A lane counts as fed by the source for this long after its last event.
const FED_FOR: Duration = Duration::from_secs(10);
/// One look at a full lane lasts at most this long, and is begun only when the budget covers it.
const LOOK: Duration = Duration::from_millis(10);
const LEAST_SWEPT: usize = 64;
/// Longest wait for one event, as for jobs in a waiting room.
const LONGEST: Duration = crate::deliver::lane::LONGEST_WAIT;
/// A lane makes room soon enough to be waited for at others' cost when within this.
const SOON: Duration = Duration::from_millis(2);
/// One look at an endpoint that fails.
const LOOK_AT_FAILING: Duration = Duration::from_millis(25);
/// Deliveries wait at this door one after another for so long.
const LONGEST_RUN: Duration = Duration::from_secs(20);
/// After that deliveries are held again without a wait for this long, so that no receipt gets old.
const WITHOUT_PATIENCE: Duration = Duration::from_millis(250);
/// A larger body is not kept in memory to wait for its endpoint.
const LARGEST_WAITING: usize = 64 << 10;
/// The budget of waits at others' cost, and the share of time by which it grows again.
const BUDGET: Duration = Duration::from_millis(20);
const BUDGET_SHARE: u32 = 50;

/// A lane, and when it was last given something.
struct Fed {
    lane: Weak<EndpointLane>,
    last: Instant,
}

fn address(lane: &Arc<EndpointLane>) -> usize {
    Arc::as_ptr(lane).addr()
}

/// One source's view of the lanes that it feeds.
pub struct Door {
    /// By address; what it points to stays there as long as it is listed.
    fed: HashMap<usize, Fed>,
    /// So many are listed before those are dropped that get nothing any more.
    swept_at: usize,
    budget: Duration,
    budget_at: Instant,
}

impl Door {
    pub fn new(now: Instant) -> Self {
        Self {
            fed: HashMap::new(),
            swept_at: LEAST_SWEPT,
            budget: BUDGET,
            budget_at: now,
        }
    }

    /// Notes that an event of this source goes to `lane`.
    pub fn feeds(&mut self, lane: &Arc<EndpointLane>, now: Instant) {
        if let Some(fed) = self.fed.get_mut(&address(lane)) {
            fed.last = now;
            return;
        }
        if self.fed.len() >= self.swept_at {
            let is_fed = |fed: &mut Fed| now.saturating_duration_since(fed.last) < FED_FOR;
            self.fed.retain(|_, fed| is_fed(fed));
            self.swept_at = (self.fed.len() * 2).max(LEAST_SWEPT);
        }
        let fed = Fed {
            lane: Arc::downgrade(lane),
            last: now,
        };
        self.fed.insert(address(lane), fed);
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
        self.fed.iter().any(|(at, fed)| {
            *at != address(lane)
                && now.saturating_duration_since(fed.last) < FED_FOR
                && fed
                    .lane
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

/// The door of what was held on a broker.
pub struct Patience {
    none_until: Instant,
    /// When the waits began that follow each other, and when the last of them ended.
    run: Option<(Instant, Instant)>,
}

impl Patience {
    pub fn new(now: Instant) -> Self {
        Self {
            none_until: now,
            run: None,
        }
    }

    /// Waits a moment for an endpoint that fails or is full. `false`: hold the delivery again. What
    /// waits behind gets old as well, so it is the run of waits that is limited, not each.
    pub async fn wait(&mut self, lane: &EndpointLane, size_bytes: usize) -> bool {
        let now = Instant::now();
        if size_bytes > LARGEST_WAITING || now < self.none_until {
            return false;
        }
        let goes_on = |last: Instant| now.saturating_duration_since(last) < LOOK_AT_FAILING * 4;
        let run = self.run.filter(|(_, last)| goes_on(*last));
        let began = run.map_or(now, |(began, _)| began);
        if now.saturating_duration_since(began) >= LONGEST_RUN {
            (self.none_until, self.run) = (now + WITHOUT_PATIENCE, None);
            return false;
        }
        let _ = tokio::time::timeout(LOOK_AT_FAILING, lane.lane.freed()).await;
        self.run = Some((began, Instant::now()));
        true
    }
}

/// Where a delivery comes in.
pub enum Entrance<'a> {
    Source(&'a mut Door),
    Holds(&'a mut Patience),
    /// It is not to wait.
    Other,
}
