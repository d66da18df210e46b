//! Releasing: receipts that get old beside requests that hang.
//!
//! A receiver may take as long as its deadline allows, but not with the places of others. When
//! messages whose requests have had no answer for `slow_after` fill half of a window, the oldest are
//! parked **beside** their running requests, as they will be when the deadline ends them, and their
//! receipts are answered; so is each that has had none for 45 s, however empty the window is. So no
//! receipt gets older than a minute (but for those whose deadline will be the end of them), and a
//! source that has hundreds of hanging receivers goes on for the others. What became of the request is remembered: when it went well, or ended the
//! delivery, the parked copy is met with that when it comes back; when it failed because of us, it is
//! not counted. What is forgotten in between (a restart, another instance, somebody who wants the copy
//! at once) is one duplicate.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;

use super::keeper::Kept;
use super::under_way::Hanging;
use super::{Job, Pipeline};
use crate::attempt::{ErrorClass, Failure, Outcome};
use crate::broker::Wait;
use crate::delivery::{Delivery, DeliveryId, Progress, Reason, WaitKind};
use crate::verdict::{self, Fate, Situation};

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The copy comes back so long after the deadline of the request that runs, at least.
const AFTER_THE_DEADLINE: Duration = Duration::from_secs(1);
/// Ends remembered; the oldest are forgotten, which costs a duplicate each.
const REMEMBERED: usize = 10_000;

/// What a request that has ended means for the copy that was parked beside it.
#[derive(Debug)]
pub enum End {
    /// It ended the delivery, too, with this progress.
    Of(Fate, Progress),
    /// It failed as everything does if it is us: the delivery's progress without it.
    Uncounted(Progress),
}

impl End {
    pub fn of(job: &Job, fate: Fate) -> Self {
        Self::Of(fate, job.delivery.progress.clone())
    }
}

/// How requests ended whose delivery had been parked beside them.
#[derive(Default)]
pub struct Ends(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    ends: HashMap<Which, End>,
    order: VecDeque<Which>,
}

/// A delivery's attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Which {
    delivery: DeliveryId,
    generation: u32,
    attempt: u32,
}

impl Which {
    fn of(delivery: &Delivery) -> Self {
        Self {
            delivery: delivery.id.clone(),
            generation: delivery.generation,
            attempt: delivery.progress.attempts,
        }
    }
}

impl Ends {
    /// Notes how the request of `delivery` ended, where its copy has to know: otherwise that is the
    /// retry.
    pub fn note(&self, delivery: &Delivery, end: End) {
        if let End::Of(Fate::Retry(_) | Fate::Hold, _) = end {
            return;
        }
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let which = Which::of(delivery);
        remembered.order.push_back(which.clone());
        remembered.ends.insert(which, end);
        if remembered.order.len() > REMEMBERED
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.ends.remove(&oldest);
        }
    }

    /// What has become of a delivery that comes back, when that is known.
    pub fn take(&self, delivery: &Delivery) -> Option<End> {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.ends.is_empty() {
            return None;
        }
        let which = Which::of(delivery);
        let end = remembered.ends.remove(&which)?;
        remembered.order.retain(|other| *other != which);
        Some(end)
    }
}

impl Pipeline {
    /// Looks after windows that fill with hanging requests, for ever.
    pub async fn release_old(self: Arc<Self>) {
        let mut clock = tokio::time::interval(LOOK_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let now = Instant::now();
            for (mut count, messages) in self.under_way.to_release(now) {
                // Those that have to stay, because it would be their end, do not keep the younger ones.
                for message in messages {
                    if count == 0 {
                        break;
                    }
                    count -= usize::from(self.release_message(message, now));
                }
            }
        }
    }

    /// Releases the deliveries of a message, those that may be; whether any was.
    fn release_message(self: &Arc<Self>, message: Vec<usize>, now: Instant) -> bool {
        let mut is_any = false;
        for place in message {
            if let Some(hanging) = self.under_way.release(place, |one| parked_until(one, now)) {
                tokio::spawn(self.clone().park_beside(hanging));
                is_any = true;
            }
        }
        is_any
    }

    async fn park_beside(self: Arc<Self>, hanging: Hanging) {
        let Hanging {
            delivery,
            target,
            keeper,
            ticket,
            wait,
            at,
        } = hanging;
        debug!(delivery = %delivery.id, subscription = %delivery.subscription, "no answer yet: parked beside its request");
        target.meters.parked(wait.kind);
        // Without a limit in time it is never given back for being refused.
        if keeper.park(&delivery, wait, None).await == Kept::Parked {
            return ticket.resolved();
        }
        target.unpark(delivery.event.size_bytes());
        // It fits on no tier, so its request has to settle it, which may have ended meanwhile.
        let Some(ticket) = self.under_way.take_back(at, &delivery, ticket) else {
            return;
        };
        let reason = match self.ends.take(&delivery) {
            Some(End::Of(Fate::Delivered, _)) => return ticket.resolved(),
            Some(End::Of(Fate::DeadLetter(reason), _)) => reason,
            _ => Reason::Unparkable,
        };
        keeper.dead_letter(&delivery, reason).await;
        target.buried(reason);
        ticket.resolved();
    }
}

/// As what, and for how long, a delivery is parked whose request has no answer yet: as if its
/// deadline had ended it. `None`: that would be the end of it, or no more may be parked; it stays.
fn parked_until(one: &mut super::under_way::Place, now: Instant) -> Option<Wait> {
    let spec = &one.target.subscription.spec;
    let outcome = Outcome::Failed(Failure {
        class: ErrorClass::Timeout,
        detail: "no answer yet".to_owned(),
    });
    let mut progress = one.delivery.progress.clone();
    progress.attempts += 1;
    progress.first_attempt_at.get_or_insert(one.since);
    progress.last_attempt_at = Some(one.since);
    progress.last_result = Some(outcome.label());
    progress.last_excerpt = Some(outcome.excerpt().to_owned());
    let verdict = verdict::decide(&Situation {
        outcome: &outcome,
        progress: &progress,
        policy: &spec.retry,
        answers: &one.target.subscription.answers,
        first_gone_at: None,
        now: Timestamp::now(),
        jitter: rand::random(),
    });
    let Fate::Retry(delay) = verdict.fate else {
        return None;
    };
    if !one.target.park(one.delivery.event.size_bytes()) {
        return None;
    }
    one.delivery.progress = progress;
    let rest = (one.began + spec.timeout).saturating_duration_since(now);
    Some(Wait {
        kind: WaitKind::Retry,
        delay: delay.max(rest + AFTER_THE_DEADLINE),
    })
}
