//! Resolving: from the offer to a lane to a durable verdict.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::warn;

use super::batches::Load;
use super::door::Entrance;
use super::egress::Failed;
use super::keeper::Kept;
use super::lanes::EndpointLane;
use super::release::End;
use super::target::Target;
use super::{Job, Pipeline, suspects};
use crate::broker::Wait;
use crate::deliver::lane::{Ended, Gate, Offer};
use crate::delivery::{Reason, WaitKind};
use crate::failpoint;
use crate::verdict::{self, Fate, Signal, Situation, Verdict};

/// How long a delivery to a paused or disabled receiver is held at a time.
pub(super) const STANDING_HOLD: Duration = Duration::from_secs(60);
/// How long one is held whose endpoint fails, while no other endpoint has anything held.
const SOLE_HOLD: Duration = Duration::from_secs(1);

impl Pipeline {
    /// Offers a delivery to its endpoint's lane; what the lane has no place for is held on the
    /// broker. At its `entrance` it may wait for its place.
    pub(super) async fn offer(self: &Arc<Self>, job: Job, mut entrance: Entrance<'_>) {
        let Job {
            delivery, target, ..
        } = &job;
        let key = || suspects::of_delivery(&delivery.event.id, &target.subscription.uid);
        if self.suspects.is_poison(key) {
            tokio::spawn(bury(job, Reason::Poison));
            return;
        }
        if let Some(then) = job.stale() {
            return self.drop_stale(job, then);
        }
        let spec = &job.target.subscription.spec;
        if spec.shadow && spec.enabled && !job.target.is_paused() {
            return self.rehearse(job);
        }
        let lane = self.lane_of(&job.target);
        if job.target.is_paused() || !job.target.subscription.spec.enabled || lane.is_disabled() {
            return self.spawn_hold(job, STANDING_HOLD, &lane);
        }
        if let Some(wait) = job.target.unverified_for(STANDING_HOLD) {
            return self.spawn_hold(job, wait, &lane);
        }
        if self.egress.is_out() {
            return self.keep_in_hand(job, &lane, Instant::now(), None);
        }
        let Some(mut job) = self.admitted(job) else {
            return;
        };
        if self.goes_with_others(&job) {
            return self.gather(job, &lane, entrance).await;
        }
        let since = Instant::now();
        self.comes_in(&mut entrance, &lane, since);
        loop {
            let (now, share) = (Instant::now(), job.ticket.share());
            let spared = job.delivery.progress.attempts > 0 && lane.lane.probes_with_others(now);
            let load = Load::One(job);
            let offered = match spared {
                true => Offer::Shut(load),
                false => lane.lane.offer(load, now, self.lanes.room_left()),
            };
            let (back, is_full) = match offered {
                Offer::Start(load) => return self.start(&lane, load),
                Offer::Waiting { wake } => return self.waits(&lane, wake, share),
                Offer::Full(back) => (back, true),
                Offer::Shut(back) => (back, false),
            };
            job = match back {
                Load::One(job) => job,
                // What was offered is one.
                Load::Many(_) => return,
            };
            let size_bytes = job.delivery.event.size_bytes();
            if self
                .may_wait(&mut entrance, &lane, size_bytes, is_full, since)
                .await
            {
                continue;
            }
            if !is_full && job.target.has_rate() {
                job.target.meters.rate_limited.inc();
            }
            let wait = self.hold_of(&lane, now, || lane.lane.reserve(now));
            return self.spawn_hold(job, wait, &lane);
        }
    }

    /// Has a lane's load sent.
    pub(super) fn start(self: &Arc<Self>, lane: &Arc<EndpointLane>, load: Load) {
        tokio::spawn(self.clone().work(lane.clone(), load));
    }

    /// Notes by which entrance something comes in for a lane.
    pub(super) fn comes_in(
        &self,
        entrance: &mut Entrance<'_>,
        lane: &Arc<EndpointLane>,
        now: Instant,
    ) {
        match entrance {
            Entrance::Source(door) => door.feeds(lane, now),
            Entrance::Holds(_) => self.lanes.holds(&lane.name, now),
            Entrance::Other => {}
        }
    }

    /// Whether what the lane has no place for, and came in here, is to be offered again: it has waited
    /// a moment.
    pub(super) async fn may_wait(
        &self,
        entrance: &mut Entrance<'_>,
        lane: &Arc<EndpointLane>,
        size_bytes: usize,
        is_full: bool,
        since: Instant,
    ) -> bool {
        match entrance {
            Entrance::Source(door) => is_full && door.wait(lane, since).await,
            Entrance::Holds(patience) => {
                let now = Instant::now();
                (is_full || lane.lane.fails(now))
                    && self.lanes.holds_nothing_else(&lane.name, now)
                    && !self.leaving.is_cancelled()
                    && patience.wait(lane, size_bytes).await
            }
            Entrance::Other => false,
        }
    }

    /// How long a delivery is held. When all that is held is for one endpoint, which fails, it can
    /// be back soon at no cost.
    pub(super) fn hold_of(
        &self,
        lane: &EndpointLane,
        now: Instant,
        reserve: impl FnOnce() -> Duration,
    ) -> Duration {
        match lane.lane.fails(now) && self.lanes.holds_nothing_else(&lane.name, now) {
            true => SOLE_HOLD,
            false => reserve(),
        }
    }

    /// Deliveries with these shares of their events have come into the lane's room.
    pub(super) fn waits(self: &Arc<Self>, lane: &Arc<EndpointLane>, wake: bool, share: usize) {
        self.lanes.entered_room(share);
        if wake {
            tokio::spawn(self.clone().watch_room(lane.clone()));
        }
    }

    pub(super) fn lane_of(&self, target: &Arc<Target>) -> Arc<EndpointLane> {
        if let Some(lane) = target.lane() {
            return lane;
        }
        let endpoint = &target.subscription.endpoint;
        let lane = self.lanes.of(&target.subscription, target.allowed(), || {
            self.endpoint_standing(&endpoint.name)
        });
        target.remember_lane(&lane);
        lane
    }

    /// Attempts a load, and after it those that waited for its place.
    async fn work(self: Arc<Self>, lane: Arc<EndpointLane>, first: Load) {
        let mut next = Some(first);
        while let Some(mut load) = next.take() {
            let mut place = Place {
                pipeline: &self,
                lane: &lane,
                taken: true,
            };
            let target = load.target();
            let has_terms = |target: &Arc<Target>| target.subscription.spec.terms.is_some();
            if target.as_ref().is_some_and(has_terms) {
                // They may have become too old while they waited.
                load = match self.without_stale(load) {
                    Some(load) => load,
                    None => {
                        next = place.give_back(Ended::Unknown, Duration::ZERO, None);
                        continue;
                    }
                };
            }
            let is_off =
                |target: &Arc<Target>| target.is_paused() || !target.subscription.spec.enabled;
            if lane.is_disabled() || target.as_ref().is_some_and(is_off) {
                // It was disabled or paused while this one waited in the room.
                next = place.give_back(Ended::Unknown, Duration::ZERO, None);
                load.apart(|job| self.hold_standing(job, &lane));
                continue;
            }
            if let Some(wait) = target.and_then(|target| target.unverified_for(STANDING_HOLD)) {
                next = place.give_back(Ended::Unknown, Duration::ZERO, None);
                load.apart(|job| self.spawn_hold(job, wait, &lane));
                continue;
            }
            if self.egress.is_out() {
                next = place.give_back(Ended::Unknown, Duration::ZERO, None);
                load.apart(|job| self.keep_in_hand(job, &lane, Instant::now(), None));
                continue;
            }
            let mut job = match load {
                Load::One(job) => job,
                Load::Many(members) => {
                    // Boxed, so that it is not a part of every other one's future.
                    next = Box::pin(self.send_together(&lane, &mut place, members)).await;
                    continue;
                }
            };
            let (began, before) = (Instant::now(), job.delivery.progress.clone());
            let made = self.attempt(&mut job).await;
            job.pass = None;
            let outcome = &made.attempt.outcome;
            let verdict = self.decide(&job, &lane, outcome);
            let now = Instant::now();
            let doubt = self.observe(&job, outcome, began, now);
            let ended = match doubt {
                // It may be us: the breaker learns it when we know better.
                Some(_) => Ended::Unknown,
                None => ended_of(verdict.signal),
            };
            next = place.give_back(ended, now - began, verdict.hold_lane);
            let gate = self.show_lane(&lane, &job.target, now);
            self.note_gate(&lane, gate, &job);
            if let Some(doubt) = doubt {
                self.record(&job, &made, &Fate::Hold);
                if made.parked_beside {
                    self.ends.note(&job.delivery, End::Uncounted(before));
                    continue;
                }
                let failed = Failed {
                    fate: verdict.fate,
                    ended: ended_of(verdict.signal),
                    before,
                    doubt,
                };
                self.keep_in_hand(job, &lane, now, Some(failed));
                continue;
            }
            self.record(&job, &made, &verdict.fate);
            self.note_endpoint(&lane, &job, verdict.endpoint);
            if made.parked_beside {
                self.ends.note(&job.delivery, End::of(&job, verdict.fate));
                continue;
            }
            self.carry_out(job, verdict.fate, &lane);
        }
        lane.touch(Instant::now());
    }

    /// After an answer: what may start besides, and what the breaker has made of it, which is given
    /// back.
    pub(super) fn show_lane(
        self: &Arc<Self>,
        lane: &Arc<EndpointLane>,
        target: &Target,
        now: Instant,
    ) -> Gate {
        if target.subscription.endpoint.adaptive {
            self.start_grown(lane, target, now);
        }
        let gate = lane.lane.gate();
        target.meters.breaker.set(match gate {
            Gate::Open { .. } => 0,
            Gate::Probing => 1,
            Gate::Shut { .. } => 2,
        });
        gate
    }

    /// What may start besides, since the receiver takes more at once.
    fn start_grown(self: &Arc<Self>, lane: &Arc<EndpointLane>, target: &Target, now: Instant) {
        let more = lane.lane.grown(now);
        self.lanes.left_room(more.iter().map(Load::share).sum());
        for load in more {
            self.start(lane, load);
        }
        let places = lane.lane.places();
        target.meters.concurrency.set(places as i64);
    }

    pub(super) fn decide(
        &self,
        job: &Job,
        lane: &EndpointLane,
        outcome: &crate::attempt::Outcome,
    ) -> Verdict {
        let answers = &job.target.subscription.answers;
        let delivered = answers.accept(outcome);
        verdict::decide(&Situation {
            outcome,
            progress: &job.delivery.progress,
            policy: &job.target.subscription.spec.retry,
            answers,
            first_gone_at: lane.first_gone_at(),
            now: if delivered {
                job.delivery.progress.taken_at
            } else {
                Timestamp::now()
            },
            jitter: match delivered || matches!(lane.lane.gate(), Gate::Probing) {
                // What probes is alone, and is not to come later than what waits for it.
                true => 0.0,
                false => rand::random(),
            },
        })
    }

    pub(super) fn carry_out(self: &Arc<Self>, job: Job, fate: Fate, lane: &Arc<EndpointLane>) {
        match fate {
            Fate::Delivered => {
                failpoint::reach("delivered", &job.delivery.event.body);
                job.ticket.resolved();
            }
            Fate::Retry(wait) => {
                tokio::spawn(self.clone().park(
                    job,
                    Wait {
                        kind: WaitKind::Retry,
                        delay: wait,
                    },
                ));
            }
            Fate::DeadLetter(reason) => {
                tokio::spawn(bury(job, reason));
            }
            Fate::Hold => self.spawn_hold(job, STANDING_HOLD, lane),
        }
    }

    /// Holds what is for a receiver that is paused or disabled.
    pub(super) fn hold_standing(self: &Arc<Self>, job: Job, lane: &EndpointLane) {
        self.spawn_hold(job, STANDING_HOLD, lane);
    }

    pub(super) fn spawn_hold(self: &Arc<Self>, job: Job, wait: Duration, lane: &EndpointLane) {
        let progress = &job.delivery.progress;
        let spec = &job.target.subscription.spec;
        if verdict::gives_up(progress, &spec.retry, Timestamp::now(), wait) {
            let reason = if !spec.enabled {
                Reason::SubscriptionDisabled
            } else if lane.is_disabled() {
                Reason::Gone
            } else {
                Reason::GaveUp
            };
            tokio::spawn(bury(job, reason));
        } else {
            self.lanes.holds(&lane.name, Instant::now() + wait);
            tokio::spawn(self.clone().park(
                job,
                Wait {
                    kind: WaitKind::Hold,
                    delay: wait,
                },
            ));
        }
    }

    /// Parks a delivery and resolves it when the broker has it. While the broker refuses, it stays
    /// here, and when its wait is over before that, it is attempted from here.
    pub(super) async fn park(self: Arc<Self>, job: Job, wait: Wait) {
        failpoint::reach("park", &job.delivery.event.body);
        if job.target.park(job.delivery.event.size_bytes()) {
            self.park_counted(job, wait).await;
        } else {
            bury(job, Reason::ParkedLimit).await;
        }
    }

    /// The same, of one that is counted as parked already.
    pub(super) async fn park_counted(self: Arc<Self>, job: Job, wait: Wait) {
        let size_bytes = job.delivery.event.size_bytes();
        job.target.meters.parked(wait.kind);
        let kept = job.keeper.park(&job.delivery, wait, Some(wait.delay)).await;
        failpoint::reach("parked", &job.delivery.event.body);
        if kept != Kept::Parked {
            job.target.unpark(size_bytes);
        }
        match kept {
            Kept::Parked => job.ticket.resolved(),
            Kept::TooLarge => bury(job, Reason::Unparkable).await,
            Kept::Not => self.offer_again(job),
        }
    }

    /// Breaks the cycle of types that `offer` → `park` → `offer` would be.
    pub(super) fn offer_again(self: &Arc<Self>, job: Job) {
        let pipeline = self.clone();
        let again: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { pipeline.offer(job, Entrance::Other).await });
        tokio::spawn(again);
    }

    /// Watches a lane's waiting room until it is empty: starts what the rate lets through and parks
    /// what has waited too long.
    async fn watch_room(self: Arc<Self>, lane: Arc<EndpointLane>) {
        loop {
            let due = lane.lane.due(Instant::now());
            let overflow = due.overflow.iter().map(|(load, _)| load);
            let left = due.start.iter().chain(overflow).map(Load::share).sum();
            self.lanes.left_room(left);
            for load in due.start {
                self.start(&lane, load);
            }
            for (load, wait) in due.overflow {
                load.apart(|job| self.spawn_hold(job, wait, &lane));
            }
            match due.next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => return,
            }
        }
    }
}

/// What the breaker is told.
pub(super) fn ended_of(signal: Signal) -> Ended {
    match signal {
        Signal::Works => Ended::Well,
        Signal::Unanswered => Ended::Unanswered,
        Signal::Fails => Ended::Badly,
        Signal::Silent => Ended::Unknown,
    }
}

/// Dead-letters a delivery and resolves it when the broker has it.
pub(super) async fn bury(job: Job, reason: Reason) {
    let Job {
        delivery,
        target,
        keeper,
        ticket,
        witness: _witness,
        ..
    } = job;
    failpoint::reach("bury", &delivery.event.body);
    keeper.dead_letter(&delivery, reason).await;
    failpoint::reach("buried", &delivery.event.body);
    target.buried(reason);
    let progress = &delivery.progress;
    warn!(
        subscription = %delivery.subscription, event = %delivery.event.id, delivery = %delivery.id, %reason,
        attempts = progress.attempts, last = progress.last_result.as_deref().unwrap_or("-"), origin = %delivery.event.origin,
        "dead-lettered"
    );
    ticket.resolved();
}

/// A place in a lane. One that is not given back, because its attempt panicked or was cancelled,
/// gives itself back, so that a failing event cannot use a lane up.
pub(super) struct Place<'a> {
    pipeline: &'a Arc<Pipeline>,
    lane: &'a Arc<EndpointLane>,
    taken: bool,
}

impl Place<'_> {
    pub(super) fn give_back(
        &mut self,
        ended: Ended,
        took: Duration,
        hold: Option<Duration>,
    ) -> Option<Load> {
        self.taken = false;
        let next = self.lane.lane.finished(ended, took, hold, Instant::now());
        if let Some(next) = &next {
            self.pipeline.lanes.left_room(next.share());
        }
        next
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.taken {
            return;
        }
        let next = self.give_back(Ended::Unknown, Duration::ZERO, None);
        // Without a runtime the process is ending, and dropping the job asks for its redelivery.
        if let (Some(load), Ok(runtime)) = (next, tokio::runtime::Handle::try_current()) {
            runtime.spawn(self.pipeline.clone().work(self.lane.clone(), load));
        }
    }
}
