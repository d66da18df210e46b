//! Egress: what becomes of deliveries while it is us who cannot reach anybody.
//!
//! Whether it is us is judged by [`Outage`]; this module tells it what attempts have shown, and asks
//! for it: the place that the operator names, or endpoints that have not been tried. A delivery whose
//! attempt fails while we are suspected stays **in hand**, and its verdict with it. When somebody is
//! reached in time, the verdicts are carried out as if nothing had been. When it was us, intake is
//! paused, what is in hand or still comes is not attempted but for one probe every five seconds, and
//! with the first sign of the network everything goes on, the attempts uncounted.
//!
//! What is in hand is bounded by the windows that it was taken through. It is not kept for long: a
//! receipt must not get old, so after half a minute it is held on the broker, but for one delivery
//! for each of a few hosts, which probe. While nothing is wrong all this costs an attempt two atomic
//! operations.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, error, info};
use url::Url;

use super::keeper::Keeper;
use super::lanes::EndpointLane;
use super::release::End;
use super::resolve::ended_of;
use super::sources::Gauges;
use super::{Job, Pipeline};
use crate::attempt::Outcome;
use crate::broker::Wait;
use crate::deliver::lane::Ended;
use crate::deliver::reach;
use crate::delivery::{Progress, WaitKind};
use crate::verdict::Fate;
use crate::verdict::outage::{FEWEST_HOSTS, Next, Outage, PROBE_EVERY, Phase, Sign};

/// How long a delivery is kept in hand while we are out, unless it is to probe.
const IN_HAND: Duration = Duration::from_secs(30);
/// How long those are kept that probe: less than RabbitMQ lets a receipt wait (30 minutes).
const PROBING: Duration = Duration::from_secs(20 * 60);
/// Hosts that a delivery is kept for, to probe with.
const PROBED_HOSTS: usize = 16;
/// Time that what is not kept is held on the broker. Nothing comes back before intake goes on.
const HOLD: Duration = Duration::from_secs(5);
/// Endpoints not tried yet that are asked for a connection at a time.
const ASKED_AT_ONCE: usize = 3;

/// A place outside that takes TCP connections whenever our network works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub host: String,
    pub port: u16,
}

/// A delivery that waits until it is known whether it is us.
pub struct InHand {
    job: Job,
    lane: Arc<EndpointLane>,
    since: Instant,
    /// `None`: it has not been attempted.
    failed: Option<Failed>,
}

/// An attempt that failed as everything does if it is us.
pub struct Failed {
    /// What is to be done when it was not us.
    pub fate: Fate,
    pub ended: Ended,
    /// The delivery's progress without it.
    pub before: Progress,
    pub doubt: Doubt,
}

/// It may be us: the outage, by number, that an attempt may have failed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt(u64);

/// What was in hand, and what to do with it.
pub struct Released {
    jobs: Vec<InHand>,
    /// It was us.
    was_out: bool,
}

/// See the module.
pub struct Egress {
    begun: Instant,
    check: Option<Check>,
    state: Mutex<State>,
    /// Nothing is suspected.
    clear: AtomicBool,
    /// Nothing is to be attempted.
    out: AtomicBool,
    /// Microseconds from `begun` to the last answer that came while nothing was suspected.
    answered_us: AtomicU64,
    changed: Notify,
    keepers: Vec<Arc<Keeper>>,
    /// Of all sources.
    pub gauges: Gauges,
}

struct State {
    outage: Outage,
    in_hand: Vec<InHand>,
    /// Outages that are over.
    ended: u64,
    /// The process ends: what cannot be delivered is taken again by the next one.
    leaving: bool,
    probed: u64,
}

impl Egress {
    /// `keepers`: those whose intakes are to be paused.
    pub fn new(check: Option<Check>, keepers: Vec<Arc<Keeper>>) -> Self {
        let fewest = if check.is_some() { 1 } else { FEWEST_HOSTS };
        Self {
            begun: Instant::now(),
            check,
            state: Mutex::new(State {
                outage: Outage::new(fewest),
                in_hand: Vec::new(),
                ended: 0,
                leaving: false,
                probed: 0,
            }),
            clear: AtomicBool::new(true),
            out: AtomicBool::new(false),
            answered_us: AtomicU64::new(0),
            changed: Notify::new(),
            keepers,
            gauges: Gauges::default(),
        }
    }

    /// Nothing is to be attempted but probes.
    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }

    /// Why we count as cut off, if we do.
    pub fn why_out(&self) -> Option<String> {
        let state = self.lock();
        let Phase::Out { since } = state.outage.phase() else {
            return None;
        };
        let for_s = self.at(Instant::now()).saturating_sub(since).as_secs();
        Some(format!(
            "none of {} hosts can be reached from here, for {for_s} s: intake is paused",
            state.outage.failed().len()
        ))
    }

    /// Takes note of an attempt that was made from `began` to `now`: whether it may have failed
    /// because of us, and what is given back when it has ended an outage.
    fn seen(
        &self,
        host: &str,
        outcome: &Outcome,
        began: Instant,
        now: Instant,
    ) -> (Option<Doubt>, Option<Released>) {
        let Some(sign) = Sign::of(outcome) else {
            return (None, None);
        };
        if sign == Sign::Answered && self.clear.load(Ordering::Relaxed) {
            let us = self.at(now).as_micros() as u64;
            self.answered_us.store(us, Ordering::Relaxed);
            return (None, None);
        }
        let mut state = self.lock();
        let before = state.outage.phase();
        self.catch_up(&mut state);
        let (began, now) = (self.at(began), self.at(now));
        let after = state.outage.observe(host, sign, began, now);
        let doubted = sign == Sign::Unreachable && after != Phase::Clear;
        let doubt = doubted.then_some(Doubt(state.ended));
        (doubt, self.settle(&mut state, before))
    }

    /// Keeps a delivery in hand for as long as it may be us; gives it back when it is not, and
    /// with it whether it was.
    fn keep(&self, one: InHand) -> Option<(InHand, bool)> {
        let mut state = self.lock();
        if state.outage.phase() == Phase::Clear {
            // It may have ended since the attempt.
            let was_out = match &one.failed {
                None => true,
                Some(failed) => failed.doubt != Doubt(state.ended),
            };
            return Some((one, was_out));
        }
        if !state.leaving {
            state.in_hand.push(one);
        }
        None
    }

    /// Carries over what was noted without the lock.
    fn catch_up(&self, state: &mut State) {
        let us = self.answered_us.load(Ordering::Relaxed);
        if us > 0 {
            state.outage.worked(Duration::from_micros(us));
        }
    }

    /// After a change: pauses or goes on, says so, and gives back what is no longer kept.
    fn settle(&self, state: &mut State, before: Phase) -> Option<Released> {
        let after = state.outage.phase();
        if before == after {
            return None;
        }
        let (was_out, is_out) = (is_out(before), is_out(after));
        self.clear.store(after == Phase::Clear, Ordering::Relaxed);
        self.out.store(is_out, Ordering::Relaxed);
        if was_out != is_out {
            for keeper in &self.keepers {
                keeper.hold_back(is_out);
            }
            self.gauges.set(is_out.into());
        }
        state.ended += u64::from(was_out && !is_out);
        if is_out {
            let hosts = state.outage.failed().len();
            error!(
                hosts,
                in_hand = state.in_hand.len(),
                "no receiver can be reached from here: our network or DNS is down; intake is paused, and no attempts are counted"
            );
        } else if was_out {
            info!(
                in_hand = state.in_hand.len(),
                "receivers can be reached again; intake goes on"
            );
        } else {
            debug!(?after, "whether our own network is down");
        }
        self.changed.notify_one();
        (after == Phase::Clear).then(|| Released {
            jobs: std::mem::take(&mut state.in_hand),
            was_out,
        })
    }

    fn change(&self, change: impl FnOnce(&mut Outage, Duration)) -> Option<Released> {
        let mut state = self.lock();
        let before = state.outage.phase();
        self.catch_up(&mut state);
        change(&mut state.outage, self.at(Instant::now()));
        self.settle(&mut state, before)
    }

    /// A delivery to probe with: another host each time, none that nobody wants to be called.
    fn take_probe(&self) -> Option<InHand> {
        let mut state = self.lock();
        let mut hosts = BTreeSet::new();
        let firsts: Vec<usize> = state
            .in_hand
            .iter()
            .enumerate()
            .filter(|(_, one)| one.may_be_sent() && hosts.insert(one.host()))
            .map(|(number, _)| number)
            .collect();
        let turn = state.probed as usize % firsts.len().max(1);
        let chosen = *firsts.get(turn)?;
        state.probed += 1;
        Some(state.in_hand.remove(chosen))
    }

    /// What has been in hand for too long.
    fn take_old(&self, now: Instant) -> Vec<InHand> {
        let mut state = self.lock();
        let mut hosts = BTreeSet::new();
        let (kept, old) = std::mem::take(&mut state.in_hand)
            .into_iter()
            .partition(|one| {
                let age = now.saturating_duration_since(one.since);
                let probes = hosts.len() < PROBED_HOSTS
                    && one.may_be_sent()
                    && hosts.insert(one.host().to_owned());
                age < if probes { PROBING } else { IN_HAND }
            });
        state.in_hand = kept;
        old
    }

    /// Gives up what is in hand, to be taken again from the broker.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.leaving = true;
        state.in_hand.clear();
    }

    fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.begun)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl InHand {
    fn host(&self) -> &str {
        host_of(&self.job.target.subscription.endpoint.url)
    }

    fn may_be_sent(&self) -> bool {
        let target = &self.job.target;
        !target.is_paused()
            && target.subscription.spec.enabled
            && !target.is_unverified()
            && !self.lane.is_disabled()
    }
}

fn is_out(phase: Phase) -> bool {
    matches!(phase, Phase::Out { .. })
}

fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

impl Pipeline {
    /// Tells what an attempt has shown. `Some`: it failed as everything does if it is us.
    pub(super) fn observe(
        self: &Arc<Self>,
        job: &Job,
        outcome: &Outcome,
        began: Instant,
        now: Instant,
    ) -> Option<Doubt> {
        let host = host_of(&job.target.subscription.endpoint.url);
        let (doubt, released) = self.egress.seen(host, outcome, began, now);
        if let Some(released) = released {
            self.release(released);
        }
        doubt
    }

    /// Keeps a delivery in hand, with its failed attempt if there was one, while it may be us.
    pub(super) fn keep_in_hand(
        self: &Arc<Self>,
        job: Job,
        lane: &Arc<EndpointLane>,
        since: Instant,
        failed: Option<Failed>,
    ) {
        let one = InHand {
            job,
            lane: lane.clone(),
            since,
            failed,
        };
        if let Some((one, was_out)) = self.egress.keep(one) {
            self.release(Released {
                jobs: vec![one],
                was_out,
            });
        }
    }

    fn release(self: &Arc<Self>, released: Released) {
        for one in released.jobs {
            match one.failed {
                Some(failed) if !released.was_out => {
                    one.lane.lane.learned(failed.ended, Instant::now());
                    self.carry_out(one.job, failed.fate, &one.lane);
                }
                _ => self.offer_again(uncounted(one)),
            }
        }
    }

    /// Finds out whether it is us and when it is over, for ever.
    pub async fn watch_egress(self: Arc<Self>) {
        let egress = &self.egress;
        let mut asked_in = Phase::Clear;
        loop {
            let (phase, next) = {
                let state = egress.lock();
                let phase = state.outage.phase();
                (phase, state.outage.next(egress.at(Instant::now())))
            };
            let is_new = phase != asked_in && matches!(phase, Phase::Suspected { .. });
            asked_in = phase;
            if is_new || matches!(next, Next::Confirm | Next::Probe) {
                if self.somebody_is_reached().await {
                    self.settle_egress(Outage::refute);
                } else if next == Next::Confirm {
                    self.settle_egress(Outage::confirm);
                }
            }
            match next {
                Next::Probe if egress.is_out() => {
                    self.settle_egress(Outage::probed);
                    if let Some(one) = egress.take_probe() {
                        tokio::spawn(self.clone().probe(one));
                    }
                    for one in egress.take_old(Instant::now()) {
                        self.hold_uncounted(one);
                    }
                }
                Next::At(at) => {
                    let wait = at.saturating_sub(egress.at(Instant::now()));
                    let _ = tokio::time::timeout(wait.min(PROBE_EVERY), egress.changed.notified())
                        .await;
                }
                Next::Nothing => egress.changed.notified().await,
                Next::Probe | Next::Confirm => {}
            }
        }
    }

    /// The process ends: what is in hand only because of an outage, ours or that of a schema
    /// registry, is left to the next one, and what waits for others goes without them.
    pub fn leave_in_hand(&self) {
        self.leaving.cancel();
        self.egress.leave();
        for source in self.sources.all().values() {
            source.leave();
        }
    }

    /// Why we count as cut off from all receivers, if we do.
    pub fn why_out(&self) -> Option<String> {
        self.egress.why_out()
    }

    fn settle_egress(self: &Arc<Self>, change: impl FnOnce(&mut Outage, Duration)) {
        if let Some(released) = self.egress.change(change) {
            self.release(released);
        }
    }

    /// Asks the place that the operator names; without one, endpoints that have not failed, which
    /// would get nothing while intake is paused. With nothing in hand to probe with, those that have
    /// failed are asked as well, or nobody would ever see that they can be reached again.
    async fn somebody_is_reached(&self) -> bool {
        if let Some(check) = &self.egress.check {
            return reach::place(&check.host, check.port).await;
        }
        let untried = {
            let state = self.egress.lock();
            let failed: BTreeSet<_> = match state.in_hand.iter().any(InHand::may_be_sent) {
                true => state.outage.failed().cloned().collect(),
                false => BTreeSet::new(),
            };
            let routes = self.routes.load();
            let mut hosts = BTreeSet::new();
            let mut urls: Vec<Arc<Url>> = routes
                .iter()
                .filter(|target| target.subscription.spec.enabled && !target.is_paused())
                .map(|target| &target.subscription.endpoint.url)
                .filter(|url| !failed.contains(host_of(url)) && hosts.insert(host_of(url)))
                .cloned()
                .collect();
            if !urls.is_empty() {
                let turn = rand::random_range(0..urls.len());
                urls.rotate_left(turn);
            }
            urls.truncate(ASKED_AT_ONCE);
            urls
        };
        let mut asked = tokio::task::JoinSet::new();
        for url in untried {
            let courier = self.courier.clone();
            asked.spawn(async move { courier.reaches(&url).await });
        }
        while let Some(answer) = asked.join_next().await {
            if answer.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// Attempts one delivery beside its lane, which has nothing to do at present.
    async fn probe(self: Arc<Self>, one: InHand) {
        let (lane, since, mut job) = (one.lane.clone(), one.since, uncounted(one));
        // It may have been in hand for longer than its `max_age`.
        if let Some(then) = job.stale() {
            return self.drop_stale(job, then);
        }
        let (began, before) = (Instant::now(), job.delivery.progress.clone());
        let made = self.attempt(&mut job).await;
        let outcome = &made.attempt.outcome;
        let verdict = self.decide(&job, &lane, outcome);
        let doubt = self.observe(&job, outcome, began, Instant::now());
        let ended = ended_of(verdict.signal);
        if let Some(doubt) = doubt {
            self.record(&job, &made, &Fate::Hold);
            if made.parked_beside {
                return self.ends.note(&job.delivery, End::Uncounted(before));
            }
            let failed = Failed {
                fate: verdict.fate,
                ended,
                before,
                doubt,
            };
            return self.keep_in_hand(job, &lane, since, Some(failed));
        }
        self.record(&job, &made, &verdict.fate);
        lane.lane.learned(ended, Instant::now());
        self.note_gate(&lane, lane.lane.gate(), &job);
        self.note_endpoint(&lane, &job, verdict.endpoint);
        if made.parked_beside {
            return self.ends.note(&job.delivery, End::of(&job, verdict.fate));
        }
        self.carry_out(job, verdict.fate, &lane);
    }

    fn hold_uncounted(self: &Arc<Self>, one: InHand) {
        let wait = Wait {
            kind: WaitKind::Hold,
            delay: HOLD,
        };
        let job = uncounted(one);
        // `max_parked` is about receivers that fail, and this one has not.
        job.target.park_anyway(job.delivery.event.size_bytes());
        tokio::spawn(self.clone().park_counted(job, wait));
    }
}

/// The delivery as it was before its attempt, which was in vain because of us.
fn uncounted(one: InHand) -> Job {
    let mut job = one.job;
    if let Some(failed) = one.failed {
        job.delivery.progress = failed.before;
    }
    job
}
