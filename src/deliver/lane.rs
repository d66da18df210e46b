//! Lanes: an endpoint's own concurrency, rate, breaker and waiting room.
//!
//! A lane decides *when* a job may start; it never runs, parks or drops one. It is a state machine
//! under a lock: time comes in as an argument, jobs go in by [`Lane::offer`] and come out of
//! [`Lane::finished`] and [`Lane::due`] to be started, or are handed back with the time until the
//! slot that the lane has reserved for them, to be parked that long. So a receiver that is ten times
//! too slow makes the broker hold its deliveries, not spin with them.
//!
//! The rate limiter is our own dozen lines because a lane must *reserve* the next free slot, which
//! the rate limiting crates do not offer.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::adapt::Adapt;
use crate::subscription::{Breaker, Rate};

mod adapt;

/// How long a job may wait in the room before it is handed back.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A reservation is never further away than this: the endpoint may have changed by then.
const FURTHEST_SLOT: Duration = Duration::from_secs(24 * 3600);
/// An endpoint that does not work is asked again after this share of the time that it has not worked
/// for: it goes on soon after a short failure.
const ASKED_SHARE: u32 = 16;
/// For so long only what has not failed before asks it.
const OTHERS_PROBE_FOR: Duration = Duration::from_secs(3);
/// What waits for it is spread over this share of that time.
const SPREAD_SHARE: u32 = 6;
/// The first time it is asked again, and the least spread.
const LEAST_SPREAD: Duration = Duration::from_secs(1);
/// When it has not worked for long, what waits is spread over all of that time but this, so that it
/// does not go round for nothing.
const SOON: Duration = Duration::from_secs(45);
const LONGEST_SPREAD: Duration = Duration::from_secs(300);
/// What waits for it comes one after the other, at least this far apart: so 500 a second go round at most,
/// unless a round would take longer than half an hour.
const APART: Duration = Duration::from_millis(2);
const LONGEST_ROUND: Duration = Duration::from_secs(1_800);
/// Starts that a rate allows at once: those of this much time, and at least one.
const RATE_BURST: Duration = Duration::from_millis(100);

/// The limits of a lane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    pub concurrency: usize,
    /// The concurrency is the most; how many there are is [found out](adapt).
    pub adaptive: bool,
    pub rate: Option<Rate>,
    pub breaker: Breaker,
    /// With no answer for this long to anything that was started, the lane counts as silent: it
    /// lets one probe through at a time.
    pub slow_after: Duration,
}

/// What a lane says to a job.
#[derive(Debug, PartialEq)]
pub enum Offer<J> {
    /// Start it now; [`Lane::finished`] must follow.
    Start(J),
    /// It waits in the room. `wake`: nobody watches the room yet, so the caller must.
    Waiting { wake: bool },
    /// No room at present. Nothing was reserved: offer it again, or call [`Lane::reserve`].
    Full(J),
    /// The lane is shut, or the rate is spent for longer than a job may wait.
    Shut(J),
}

/// What a lane would say to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It would start it, or let it wait in the room.
    Takes,
    Full,
    Shut,
}

/// What the room asks for, to be carried out by who watches it.
#[derive(Debug)]
pub struct Due<J> {
    /// Start these now.
    pub start: Vec<J>,
    /// Park these until the slots reserved for them.
    pub overflow: Vec<(J, Duration)>,
    /// When to ask again; `None` when the room is empty and the watch is over.
    pub next: Option<Instant>,
}

/// How an attempt ended, for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Well,
    Badly,
    /// There was no answer within the deadline.
    Unanswered,
    /// It says nothing about the endpoint.
    Unknown,
}

/// Whether the breaker lets jobs through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// Open for traffic, with so many failures in a row.
    Open { failures: u32 },
    /// Nothing passes until then.
    Shut { until: Instant },
    /// One job is under way to see whether the endpoint works again.
    Probing,
}

/// See the module.
pub struct Lane<J> {
    state: Mutex<State<J>>,
    /// Told whenever a place may have become free.
    freed: Notify,
}

struct State<J> {
    limits: Limits,
    adapt: Option<Adapt>,
    gate: Gate,
    running: usize,
    room: VecDeque<(J, Instant)>,
    watched: bool,
    /// Retry-After: nothing starts before, and how long that was.
    held_until: Option<Instant>,
    held_for: Duration,
    /// When the rate has a full burst again (generic cell rate algorithm).
    rate_spent_until: Instant,
    /// Slots before this are reserved for parked jobs.
    reserved_until: Instant,
    /// The turn of the last of those that go round while the endpoint does not work.
    round: Instant,
    /// The first start since the last answer: how long the lane has been silent.
    unanswered_since: Option<Instant>,
    /// When a silent lane let its last probe through.
    probed_at: Option<Instant>,
    /// When the breaker first shut, or the endpoint first asked to be left alone, since it last worked.
    shut_since: Option<Instant>,
    /// Smoothed time of an attempt.
    pace: Duration,
}

impl<J> Lane<J> {
    pub fn new(limits: Limits, now: Instant) -> Self {
        let state = State {
            limits,
            adapt: limits.adaptive.then(|| Adapt::new(limits.concurrency)),
            gate: Gate::Open { failures: 0 },
            running: 0,
            room: VecDeque::new(),
            watched: false,
            held_until: None,
            held_for: Duration::ZERO,
            rate_spent_until: now,
            reserved_until: now,
            round: now,
            unanswered_since: None,
            probed_at: None,
            shut_since: None,
            pace: Duration::from_millis(10),
        };
        Self {
            state: Mutex::new(state),
            freed: Notify::new(),
        }
    }

    /// Offers a job. `room_left`: whether all waiting rooms together still have a place.
    pub fn offer(&self, job: J, now: Instant, room_left: bool) -> Offer<J> {
        let mut state = self.lock();
        if state.room.is_empty() && state.may_start(now) {
            state.start(now);
            return Offer::Start(job);
        }
        if state.shut_until(now).is_some() || state.wait_in_room(now) > LONGEST_WAIT {
            return Offer::Shut(job);
        }
        if !room_left || state.room.len() >= state.places() {
            return Offer::Full(job);
        }
        state.room.push_back((job, now));
        let wake = !std::mem::replace(&mut state.watched, true);
        Offer::Waiting { wake }
    }

    /// What [`Lane::offer`] would say now, for jobs that are not there yet.
    pub fn outlook(&self, now: Instant, room_left: bool) -> Outlook {
        let state = self.lock();
        if state.room.is_empty() && state.may_start(now) {
            Outlook::Takes
        } else if state.shut_until(now).is_some() || state.wait_in_room(now) > LONGEST_WAIT {
            Outlook::Shut
        } else if !room_left || state.room.len() >= state.places() {
            Outlook::Full
        } else {
            Outlook::Takes
        }
    }

    /// The time until the next slot that is free, which is then reserved for who asked.
    pub fn reserve(&self, now: Instant) -> Duration {
        self.lock().reserve(now)
    }

    /// An attempt that was started has ended. The job given back, if any, starts in its place.
    pub fn finished(
        &self,
        ended: Ended,
        took: Duration,
        hold: Option<Duration>,
        now: Instant,
    ) -> Option<J> {
        let mut state = self.lock();
        state.running -= 1;
        state.pace = (state.pace * 7 + took) / 8;
        if let State {
            adapt: Some(adapt),
            running,
            ..
        } = &mut *state
            && ended != Ended::Unknown
        {
            adapt.ended(ended == Ended::Well && hold.is_none(), took, *running);
        }
        state.learn(ended, now);
        if ended != Ended::Unanswered {
            if state.is_silent(now) {
                state.reserved_until = state.reserved_until.min(now);
                state.round = state.round.min(now);
            }
            state.unanswered_since = None;
            state.probed_at = None;
        }
        if let Some(hold) = hold {
            let until = now + hold;
            state.held_until = Some(state.held_until.map_or(until, |held| held.max(until)));
            state.held_for = hold;
            state.shut_since.get_or_insert(now);
        }
        let next = if state.may_start(now) {
            state.room.pop_front()
        } else {
            None
        };
        if next.is_some() {
            state.start(now);
        }
        drop(state);
        self.freed.notify_one();
        next.map(|(job, _)| job)
    }

    /// What may start besides, where the concurrency has grown.
    pub fn grown(&self, now: Instant) -> Vec<J> {
        let mut state = self.lock();
        let mut more = Vec::new();
        while state.adapt.is_some() && state.may_start(now) {
            let Some((job, _)) = state.room.pop_front() else {
                break;
            };
            state.start(now);
            more.push(job);
        }
        more
    }

    /// Learns how an attempt ended that had been [`finished`](Lane::finished) as unknown.
    pub fn learned(&self, ended: Ended, now: Instant) {
        self.lock().learn(ended, now);
    }

    /// What the room asks for now.
    pub fn due(&self, now: Instant) -> Due<J> {
        let mut state = self.lock();
        let mut due = Due {
            start: Vec::new(),
            overflow: Vec::new(),
            next: None,
        };
        while !state.room.is_empty() && state.may_start(now) {
            if let Some((job, _)) = state.room.pop_front() {
                state.start(now);
                due.start.push(job);
            }
        }
        let shut = state.shut_until(now).is_some();
        while state
            .room
            .front()
            .is_some_and(|(_, since)| shut || now >= *since + LONGEST_WAIT)
        {
            if let Some((job, _)) = state.room.pop_front() {
                let wait = state.reserve(now);
                due.overflow.push((job, wait));
            }
        }
        due.next = state.room.front().map(|(_, since)| {
            let patience = *since + LONGEST_WAIT;
            state
                .next_token(now)
                .map_or(patience, |token| patience.min(token))
        });
        state.watched = due.next.is_some();
        drop(state);
        if !due.overflow.is_empty() || !due.start.is_empty() {
            self.freed.notify_one();
        }
        due
    }

    /// Whether a probe is due, and has not been for long: one that has failed already had better
    /// leave it to another, since the schedule makes it wait the longer, the more often it fails.
    pub fn probes_with_others(&self, now: Instant) -> bool {
        let state = self.lock();
        matches!(state.gate, Gate::Shut { until } if now < until + OTHERS_PROBE_FOR)
    }

    /// Nothing passes but single probes, since the endpoint fails or does not answer.
    pub fn fails(&self, now: Instant) -> bool {
        let state = self.lock();
        let holds = state.is_held(now) || state.limits.rate.is_some();
        state.fails_since(now).is_some() && !holds
    }

    /// Waits until a place may have become free.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Running out of work: places are free and nobody waits for them.
    pub fn is_dry(&self) -> bool {
        let state = self.lock();
        state.room.is_empty() && state.running < state.places()
    }

    /// Nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.room.is_empty() && state.running == 0
    }

    /// The time until a running attempt makes room, as far as can be told.
    pub fn next_place(&self, now: Instant) -> Duration {
        let state = self.lock();
        state.pace_now(now) / state.places().max(1) as u32
    }

    pub fn gate(&self) -> Gate {
        self.lock().gate
    }

    /// Takes new limits over; what runs goes on.
    pub fn set_limits(&self, limits: Limits) {
        let mut state = self.lock();
        state.limits = limits;
        match (&mut state.adapt, limits.adaptive) {
            (Some(adapt), true) => adapt.set_most(limits.concurrency),
            (adapt, adaptive) => *adapt = adaptive.then(|| Adapt::new(limits.concurrency)),
        }
    }

    /// Requests that may be under way at once, at present.
    pub fn places(&self) -> usize {
        self.lock().places()
    }

    /// Lets traffic pass again at once (an operator's `enable`).
    pub fn open(&self) {
        let mut state = self.lock();
        state.gate = Gate::Open { failures: 0 };
        state.held_until = None;
        state.works(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<J> State<J> {
    fn places(&self) -> usize {
        self.adapt
            .as_ref()
            .map_or(self.limits.concurrency, Adapt::limit)
    }

    fn may_start(&self, now: Instant) -> bool {
        let gate_lets = match self.gate {
            Gate::Open { .. } => true,
            Gate::Shut { until } => now >= until && self.running == 0,
            Gate::Probing => false,
        };
        gate_lets
            && self.silent_until(now).is_none()
            && self.running < self.places()
            && self.held_until.is_none_or(|held| now >= held)
            && self.next_token(now).is_none()
    }

    fn start(&mut self, now: Instant) {
        if self.running == 0 && self.room.is_empty() {
            // Everybody with an earlier reservation was served or is not coming.
            self.reserved_until = self.reserved_until.min(now);
        }
        self.running += 1;
        if self.is_silent(now) {
            self.probed_at = Some(now);
        }
        self.unanswered_since.get_or_insert(now);
        if let Gate::Shut { .. } = self.gate {
            self.gate = Gate::Probing;
        }
        if let Some(rate) = self.limits.rate {
            self.rate_spent_until = self.rate_spent_until.max(now) + rate.interval();
        }
    }

    /// When the rate has its next token; `None` when it has one now.
    fn next_token(&self, now: Instant) -> Option<Instant> {
        let rate = self.limits.rate?;
        let burst = RATE_BURST.max(rate.interval());
        let at = self.rate_spent_until + rate.interval();
        (at > now + burst).then(|| at - burst)
    }

    /// Something was started, and for `slow_after` nothing was answered.
    fn is_silent(&self, now: Instant) -> bool {
        self.running > 0
            && self
                .unanswered_since
                .is_some_and(|since| now.saturating_duration_since(since) >= self.limits.slow_after)
    }

    /// When a silent lane lets its next probe through; `None` when one may start.
    fn silent_until(&self, now: Instant) -> Option<Instant> {
        if !self.is_silent(now) {
            return None;
        }
        self.probed_at
            .map(|probed| probed + self.limits.slow_after)
            .filter(|&next| next > now)
    }

    /// Until when nothing starts because of the breaker, silence or Retry-After.
    fn shut_until(&self, now: Instant) -> Option<Instant> {
        let gate = match self.gate {
            Gate::Open { .. } => None,
            Gate::Shut { until } => Some(until.max(now)),
            Gate::Probing => Some(now + self.pace),
        };
        let held = self.held_until.filter(|&held| held > now);
        gate.max(held).max(self.silent_until(now))
    }

    /// The time of an attempt, as far as can be told: while nothing is answered it is at least as
    /// long as the silence, so that a hanging endpoint's slots are not reserved at its old pace.
    fn pace_now(&self, now: Instant) -> Duration {
        let silence = self
            .unanswered_since
            .filter(|_| self.running > 0)
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.pace.max(silence.min(self.limits.slow_after))
    }

    /// Time between two starts, at best. While probes go one by one it is theirs.
    fn spacing(&self, now: Instant) -> Duration {
        let mut spacing = self.pace_now(now) / self.places().max(1) as u32;
        if self.is_silent(now) {
            spacing = spacing.max(self.limits.slow_after);
        }
        if !matches!(self.gate, Gate::Open { .. }) {
            spacing = spacing.max(self.cool_down(now));
        } else if self.is_held(now) {
            // Until one is answered well, each may be told the same.
            spacing = spacing.max(self.held_for);
        }
        self.limits
            .rate
            .map_or(spacing, |rate| spacing.max(rate.interval()))
    }

    /// How long a job would wait at the end of the room because of the rate.
    fn wait_in_room(&self, now: Instant) -> Duration {
        match self.limits.rate {
            Some(rate) => {
                let token = self.next_token(now).unwrap_or(now);
                token - now + rate.interval() * self.room.len() as u32
            }
            None => Duration::ZERO,
        }
    }

    fn reserve(&mut self, now: Instant) -> Duration {
        let spacing = self.spacing(now);
        let begin = self.shut_until(now).or(self.next_token(now)).unwrap_or(now);
        let free = begin + spacing * self.room.len() as u32;
        let fails_since = self.fails_since(now);
        let furthest = match fails_since {
            Some(since) => {
                let lasted = now.saturating_duration_since(since);
                let spread = (lasted / SPREAD_SHARE).max(lasted.saturating_sub(SOON));
                begin + spread.clamp(LEAST_SPREAD, LONGEST_SPREAD)
            }
            None => now + FURTHEST_SLOT,
        };
        let slot = (self.reserved_until.max(free) + spacing).min(furthest);
        self.reserved_until = slot;
        match fails_since {
            Some(_) => slot.max(self.turn(begin)) - now,
            None => slot - now,
        }
    }

    /// The next turn of those that go round from `begin`. When they are too many for the longest round its
    /// later half is gone through again, so that they do not come all at once.
    fn turn(&mut self, begin: Instant) -> Instant {
        let next = self.round.max(begin) + APART;
        self.round = match next > begin + LONGEST_ROUND {
            true => begin + LONGEST_ROUND / 2,
            false => next,
        };
        self.round
    }

    /// Since when few jobs or none are let through, if that is so.
    fn fails_since(&self, now: Instant) -> Option<Instant> {
        let silent = self.unanswered_since.filter(|_| self.is_silent(now));
        let shut = self
            .shut_since
            .filter(|_| !matches!(self.gate, Gate::Open { .. }));
        match (silent, shut) {
            (Some(silent), Some(shut)) => Some(silent.min(shut)),
            (one, other) => one.or(other),
        }
    }

    /// How long the breaker keeps the gate shut: the longer the endpoint has not worked, the longer.
    fn cool_down(&self, now: Instant) -> Duration {
        let most = self.limits.breaker.cool_down;
        let since = self.shut_since.unwrap_or(now);
        let lasted = now.saturating_duration_since(since);
        (lasted / ASKED_SHARE).clamp(LEAST_SPREAD.min(most), most)
    }

    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|held| held > now)
    }

    /// The endpoint works: slots that were spread while it did not are free again.
    fn works(&mut self, now: Instant) {
        if self.shut_since.take().is_some() {
            self.reserved_until = self.reserved_until.min(now);
            self.round = self.round.min(now);
        }
    }

    fn learn(&mut self, ended: Ended, now: Instant) {
        let (allowed, cool_down) = (self.limits.breaker.failures, self.cool_down(now));
        self.gate = match (self.gate, ended) {
            (Gate::Open { .. }, Ended::Well) => Gate::Open { failures: 0 },
            (Gate::Open { failures }, Ended::Badly | Ended::Unanswered)
                if failures + 1 >= allowed =>
            {
                Gate::Shut {
                    until: now + cool_down,
                }
            }
            (Gate::Open { failures }, Ended::Badly | Ended::Unanswered) => Gate::Open {
                failures: failures + 1,
            },
            (Gate::Probing, Ended::Well) => Gate::Open { failures: 0 },
            (Gate::Probing, Ended::Badly | Ended::Unanswered) if self.running == 0 => Gate::Shut {
                until: now + cool_down,
            },
            // A probe that says nothing makes room for another one.
            (Gate::Probing, Ended::Unknown) if self.running == 0 => Gate::Shut { until: now },
            // What had started before the gate shut does not open or prolong it, unless it went well.
            (Gate::Shut { .. }, Ended::Well) => Gate::Open { failures: 0 },
            (gate, _) => gate,
        };
        match self.gate {
            Gate::Shut { .. } => {
                self.shut_since.get_or_insert(now);
            }
            Gate::Open { .. } if ended == Ended::Well => self.works(now),
            Gate::Open { .. } | Gate::Probing => {}
        }
    }
}

#[cfg(test)]
mod tests;
