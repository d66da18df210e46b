//! Batches: deliveries of a subscription that wait for each other, and go in one request.
//!
//! Where an endpoint has `batch`, a delivery is not offered to its lane by itself. It is handed to
//! the task that gathers for its subscription, which makes its body, so that one of which none can
//! be made fails alone, and puts it with others ([`Gathering`]). What is full, or has waited long
//! enough, is offered to the lane as one [`Load`]: one place, one token of the rate, one request.
//! Each member keeps its own ticket, progress and verdict.
//!
//! What has been attempted goes alone from then on, as an array of one: what a receiver refused may
//! be a single member's fault, and the others are not to be refused with it a second time. So goes
//! what the bridge may have failed at, and what is no JSON. What is only held comes back to its batch.
//!
//! A batch does not wait for what cannot come: while the window that its members were taken through
//! is full and brings no more, and the lane would take it, it is sent as it is.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::door::Entrance;
use super::lanes::EndpointLane;
use super::resolve::STANDING_HOLD;
use super::target::Target;
use super::{Job, Pipeline, suspects};
use crate::deliver::batch::Gathering;
use crate::deliver::lane::{Offer, Outlook};
use crate::failpoint;
use crate::render::{Kin, Part};
use crate::subscription::Batch;

/// How often a window is looked at that may be full.
const LOOK: Duration = Duration::from_millis(20);
/// How long a batch waits for a lane that has become full since its members were let in.
const PATIENCE: Duration = Duration::from_secs(1);

/// A delivery with its body.
pub struct Member {
    pub job: Job,
    pub part: Part,
}

/// What goes in one request.
#[allow(
    clippy::large_enum_variant,
    reason = "most loads are one delivery, which boxing would cost an allocation"
)]
pub enum Load {
    One(Job),
    /// Two or more, or one that waited for others in vain.
    Many(Vec<Member>),
}

impl Load {
    pub fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(members) => members.len(),
        }
    }

    /// How much of their events its deliveries are, in shares of a [ticket](super::ticket::Ticket::share).
    pub fn share(&self) -> usize {
        match self {
            Self::One(job) => job.ticket.share(),
            Self::Many(members) => members.iter().map(|each| each.job.ticket.share()).sum(),
        }
    }

    /// Each delivery by itself.
    pub fn apart(self, mut each: impl FnMut(Job)) {
        match self {
            Self::One(job) => each(job),
            Self::Many(members) => members.into_iter().for_each(|member| each(member.job)),
        }
    }

    pub fn target(&self) -> Option<Arc<Target>> {
        let job = match self {
            Self::One(job) => Some(job),
            Self::Many(members) => members.first().map(|member| &member.job),
        };
        job.map(|job| job.target.clone())
    }
}

/// What goes together: of one kind as bodies, and of one name where headers name the event.
#[derive(PartialEq)]
struct Kind {
    kin: Kin,
    names: Option<[Arc<str>; 3]>,
}

impl Kind {
    fn of(job: &Job, part: &Part) -> Self {
        let event = &job.delivery.event;
        let filled = job.target.subscription.endpoint.signature.filled();
        let names = || [&event.topic, &event.kind, &event.source].map(Arc::clone);
        Self {
            kin: part.kin(),
            names: filled.map(|_| names()),
        }
    }
}

/// Where the deliveries of one subscription wait for each other.
pub struct Gatherer {
    limits: Batch,
    /// To the task that gathers. It ends with this, which all deliveries on their way have.
    inbox: Mutex<Option<mpsc::Sender<Job>>>,
    slot: Mutex<Slot>,
}

/// The slot of a lane that deliveries which are held have together, as they will be one batch.
struct Slot {
    at: Instant,
    places: usize,
}

impl Gatherer {
    pub fn new(limits: Batch) -> Self {
        Self {
            limits,
            inbox: Mutex::default(),
            slot: Mutex::new(Slot {
                at: Instant::now(),
                places: 0,
            }),
        }
    }

    /// The time until the lane has a slot for a batch with one more delivery in it.
    fn slot(&self, lane: &EndpointLane, now: Instant) -> Duration {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.places == 0 || slot.at <= now {
            *slot = Slot {
                at: now + lane.lane.reserve(now),
                places: self.limits.count,
            };
        }
        slot.places -= 1;
        slot.at - now
    }
}

impl Pipeline {
    /// Whether a delivery waits for others of its subscription.
    pub(super) fn goes_with_others(&self, job: &Job) -> bool {
        let delivery = &job.delivery;
        job.target.gatherer.is_some()
            && delivery.progress.attempts == 0
            && !self.suspects.is_suspect(|| {
                let uid = &job.target.subscription.uid;
                let of_delivery = suspects::of_delivery(&delivery.event.id, uid);
                [delivery.event.id.to_string(), of_delivery]
            })
    }

    /// Hands a delivery to those of its batch; holds it while the lane has no room for a batch.
    pub(super) async fn gather(
        self: &Arc<Self>,
        job: Job,
        lane: &Arc<EndpointLane>,
        mut entrance: Entrance<'_>,
    ) {
        let target = job.target.clone();
        let Some(gatherer) = &target.gatherer else {
            return;
        };
        let since = Instant::now();
        let size_bytes = job.delivery.event.size_bytes();
        self.comes_in(&mut entrance, lane, since);
        loop {
            let now = Instant::now();
            let is_full = match lane.lane.outlook(now, self.lanes.room_left()) {
                Outlook::Takes => break,
                Outlook::Full => true,
                Outlook::Shut => false,
            };
            if self
                .may_wait(&mut entrance, lane, size_bytes, is_full, since)
                .await
            {
                continue;
            }
            if !is_full && target.has_rate() {
                target.meters.rate_limited.inc();
            }
            let wait = self.hold_of(lane, now, || gatherer.slot(lane, now));
            return self.spawn_hold(job, wait, lane);
        }
        if let Some(job) = self.hand_over(gatherer, job) {
            // More wait than the windows let in.
            self.spawn_hold(job, gatherer.slot(lane, Instant::now()), lane);
        }
    }

    /// Gives the job back when it cannot be taken.
    fn hand_over(self: &Arc<Self>, gatherer: &Gatherer, job: Job) -> Option<Job> {
        let mut inbox = gatherer
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let job = match &*inbox {
            Some(open) => match open.try_send(job) {
                Ok(()) => return None,
                Err(mpsc::error::TrySendError::Full(job)) => return Some(job),
                // Its task has failed.
                Err(mpsc::error::TrySendError::Closed(job)) => job,
            },
            None => job,
        };
        let (sender, jobs) = mpsc::channel(self.windows);
        tokio::spawn(self.clone().gather_from(jobs, gatherer.limits));
        let sent = sender.try_send(job);
        *inbox = Some(sender);
        sent.err().map(mpsc::error::TrySendError::into_inner)
    }

    /// Gathers what comes until its subscription is gone.
    async fn gather_from(self: Arc<Self>, mut jobs: mpsc::Receiver<Job>, limits: Batch) {
        let mut gathering: Gathering<Kind, Member> = Gathering::new(limits);
        let (mut looked, mut grew) = (Instant::now(), false);
        loop {
            let next = gathering.next().map(|next| next.min(looked + LOOK));
            // What has come goes before what is due, which it may still go with.
            let full = tokio::select! {
                biased;
                job = jobs.recv() => match job {
                    Some(job) => {
                        grew = true;
                        let full = self.put_in(&mut gathering, job).await;
                        full.into_iter().chain(gathering.due(Instant::now())).collect()
                    }
                    None => break,
                },
                () = self.leaving.cancelled(), if !gathering.is_empty() => gathering.take_all(),
                () = sleep_until(next.unwrap_or(looked)), if next.is_some() => {
                    let now = Instant::now();
                    let mut full = gathering.due(now);
                    if now >= looked + LOOK {
                        if !grew {
                            full.extend(gathering.take_if(|members| self.is_cut_off(members)));
                        }
                        (looked, grew) = (now, false);
                    }
                    full
                }
            };
            for members in full {
                self.offer_load(Load::Many(members)).await;
            }
        }
        for members in gathering.take_all() {
            self.offer_load(Load::Many(members)).await;
        }
    }

    /// Whether nobody can join these: all places that others could come by are taken, and not
    /// because the lane has no room.
    fn is_cut_off(&self, members: &[Member]) -> bool {
        members.iter().all(|member| member.job.window.is_full())
            && members.first().is_some_and(|first| {
                let lane = self.lane_of(&first.job.target);
                let outlook = lane.lane.outlook(Instant::now(), self.lanes.room_left());
                outlook == Outlook::Takes
            })
    }

    /// Makes the body of a delivery and puts it with the others; what is to be sent now.
    async fn put_in(
        self: &Arc<Self>,
        gathering: &mut Gathering<Kind, Member>,
        job: Job,
    ) -> Vec<Vec<Member>> {
        // A panic is this delivery's, and unwinds with nothing but its job in hand.
        let made = std::panic::catch_unwind(AssertUnwindSafe(move || {
            let (delivery, json) = (&job.delivery, job.json.as_ref());
            failpoint::reach("render", &delivery.event.body);
            let part = job.target.renderer.part(delivery, json);
            (job, part)
        }));
        match made {
            Ok((mut job, Ok(Some(part)))) => {
                // What was decoded is not in the event, and is needed to render it again.
                job.json = job.json.filter(|json| json.decoded().is_some());
                let (kind, bytes) = (Kind::of(&job, &part), part.body().len());
                gathering.add(kind, Member { job, part }, bytes, Instant::now())
            }
            // Of what no body can be made its own attempt says so.
            Ok((job, Ok(None) | Err(_))) => {
                self.offer_load(Load::One(job)).await;
                Vec::new()
            }
            Err(_panicked) => Vec::new(),
        }
    }

    /// Offers what goes in one request to its lane. What the lane has no place for is held, all of it
    /// until one slot.
    async fn offer_load(self: &Arc<Self>, mut load: Load) {
        let Some(target) = load.target() else {
            return;
        };
        let lane = self.lane_of(&target);
        if target.is_paused() || !target.subscription.spec.enabled || lane.is_disabled() {
            return load.apart(|job| self.hold_standing(job, &lane));
        }
        if let Some(wait) = target.unverified_for(STANDING_HOLD) {
            return load.apart(|job| self.spawn_hold(job, wait, &lane));
        }
        let since = Instant::now();
        if self.egress.is_out() {
            return load.apart(|job| self.keep_in_hand(job, &lane, since, None));
        }
        let (count, share) = (load.len(), load.share());
        let (left, is_full) = loop {
            let now = Instant::now();
            match lane.lane.offer(load, now, self.lanes.room_left()) {
                Offer::Start(load) => return self.start(&lane, load),
                Offer::Waiting { wake } => return self.waits(&lane, wake, share),
                Offer::Full(back) if since.elapsed() < PATIENCE => {
                    load = back;
                    let _ = timeout(LOOK, lane.lane.freed()).await;
                }
                Offer::Full(back) => break (back, true),
                Offer::Shut(back) => break (back, false),
            }
        };
        if !is_full && target.has_rate() {
            target.meters.rate_limited.inc_by(count as u64);
        }
        let wait = lane.lane.reserve(Instant::now());
        left.apart(|job| self.spawn_hold(job, wait, &lane));
    }

    /// The same by itself, for those that its future is a part of.
    pub(super) fn offer_later(self: &Arc<Self>, load: Load) {
        let pipeline = self.clone();
        let later: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { pipeline.offer_load(load).await });
        tokio::spawn(later);
    }
}
