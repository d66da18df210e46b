//! Telling: from a notice to the deliveries of its event.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::brokers::Looked;
use super::lock;
use super::notice::{Cause, Notice};
use crate::broker::{Answer, Budget, Health, Intake, Receipt, Settlement, Token, Wait, Window};
use crate::deliver::lane::Gate;
use crate::delivery::{Delivery, WaitKind};
use crate::event::Event;
use crate::pipeline::door::Entrance;
use crate::pipeline::keeper::Keeper;
use crate::pipeline::lanes::EndpointLane;
use crate::pipeline::suspects::Witness;
use crate::pipeline::target::Target;
use crate::pipeline::{Job, Pipeline, Ticket};
use crate::subscription::LazyJson;

/// Events of which not all deliveries are on a broker yet, or done with. The next ones wait in the
/// queue.
const IN_HAND: usize = 256;
/// How often brokers are looked at, and what was gathered.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest wait on a broker.
const PARK: Duration = Duration::from_secs(1);
/// Stands for a message of no broker.
const TOKEN: Token = Token {
    epoch: 0,
    lane: 0,
    position: 0,
};

/// Where events become deliveries.
pub struct Desk {
    /// All brokers.
    brokers: Vec<Arc<Keeper>>,
    /// Those on which deliveries are kept.
    keeping: Vec<Arc<Keeper>>,
    hall: Intake,
}

impl Desk {
    pub fn new(brokers: Vec<Arc<Keeper>>, keeping: Vec<Arc<Keeper>>, budget: Budget) -> Self {
        let never_paused = watch::channel(false).1;
        let (hall, _) = Intake::new(Window::new(IN_HAND), budget, never_paused);
        Self {
            brokers,
            keeping,
            hall,
        }
    }
}

/// Nobody has the event who could hand it out again.
struct Nobody(Counter);

impl Answer for Nobody {
    fn answer(&self, _: Token, settlement: Settlement) {
        if settlement == Settlement::Redeliver {
            self.0.inc();
        }
    }
}

impl Pipeline {
    /// After an answer to `job`: what the breaker of its endpoint has made of it, and maybe told.
    pub(in crate::pipeline) fn note_gate(&self, lane: &EndpointLane, gate: Gate, job: &Job) {
        let event = &job.delivery.event;
        let cause = || Cause::of(job);
        self.meta.answered(event, &lane.name, gate, cause);
    }

    /// Makes events of what is noticed, for ever.
    pub async fn tell_meta(self: Arc<Self>) {
        let Some(mut taken) = lock(&self.meta.0.taken).take() else {
            return;
        };
        let mut brokers: Vec<_> = self
            .desk
            .brokers
            .iter()
            .map(|keeper| (keeper, Looked::new(keeper.broker.name().clone())))
            .collect();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost_before = 0;
        loop {
            tokio::select! {
                notice = taken.recv() => match notice {
                    Some(notice) => self.tell(&notice).await,
                    None => return,
                },
                _ = look.tick() => {
                    let now = Instant::now();
                    let looks = brokers.iter_mut();
                    let of_brokers =
                        looks.filter_map(|(keeper, looked)| looked.at(&keeper.broker.health(), now));
                    of_brokers.for_each(|notice| {
                        self.meta.note(notice);
                    });
                    self.note_due(now);
                    let lost = self.meta.0.lost.get();
                    if lost > lost_before {
                        warn!(lost = lost - lost_before, "meta-events are lost: there are more than can be told");
                        lost_before = lost;
                    }
                }
            }
        }
    }

    /// Notes what has been gathered for long enough, as far as there is room.
    fn note_due(&self, now: Instant) {
        let meta = &self.meta;
        let room = meta.0.notices.capacity();
        let routes = self.routes.load();
        let is_there = |cause: &Cause| {
            let target = routes.by_uid(&cause.uid);
            target.is_some_and(|target| target.subscription.endpoint.name == cause.endpoint)
        };
        let failing = meta.with_failing(|failing| failing.due(now, is_there, room));
        let letters = lock(&meta.0.letters).due(now, room - failing.len());
        let letters = letters.iter().map(|letters| {
            let target = letters.subscription.as_ref();
            let target = target.and_then(|(_, uid)| routes.by_uid(uid));
            let tenant = target.and_then(|target| target.subscription.spec.tenant.clone());
            Notice::letters(letters, tenant)
        });
        for notice in failing.into_iter().chain(letters) {
            meta.note(notice);
        }
    }

    /// Makes an event, and a delivery of it for each subscription that is to be told.
    async fn tell(self: &Arc<Self>, notice: &Notice) {
        let works = |keeper: &&Arc<Keeper>| keeper.broker.health() == Health::Ready;
        let keeping = &self.desk.keeping;
        let working = keeping.iter().find(works);
        let Some(keeper) = working.or(keeping.first()) else {
            return;
        };
        let event = Arc::new(notice.event(&self.meta.0.instance));
        let targets = self.told(notice, &event);
        if targets.is_empty() {
            return;
        }
        info!(event = %event.id, kind = notice.kind, subscriptions = targets.len(), "{}", notice.summary);
        self.meta.0.told.inc();
        let admission = self.desk.hall.admit(event.size_bytes()).await;
        let nobody = Arc::new(Nobody(self.meta.0.lost.clone()));
        let receipt = Receipt::new(nobody, TOKEN, admission);
        let tickets = Ticket::whole(receipt, None).split(targets.len());
        for (target, ticket) in targets.into_iter().zip(tickets) {
            let job = self.job(&event, target, ticket, keeper);
            if working.is_some() {
                let wait = Wait {
                    kind: WaitKind::Hold,
                    delay: PARK,
                };
                tokio::spawn(self.clone().park(job, wait));
            } else if let Some(job) = self.unless_invalid(job) {
                // Nothing can be kept now: it is the broker that this is about, most likely.
                self.offer(job, Entrance::Other).await;
            }
        }
    }

    /// Who is told.
    fn told(&self, notice: &Notice, event: &Event) -> Vec<Arc<Target>> {
        let (body, mut targets) = (LazyJson::new(&event.body), Vec::new());
        self.routes.load().visit(event, &body, |target| {
            if notice.about.is_for(&target.subscription) {
                targets.push(target.clone());
            }
        });
        targets
    }

    fn job(
        &self,
        event: &Arc<Event>,
        target: Arc<Target>,
        ticket: Ticket,
        keeper: &Arc<Keeper>,
    ) -> Job {
        let subscription = &target.subscription;
        let (name, uid) = (subscription.spec.name.clone(), subscription.uid.clone());
        Job {
            witness: Witness::new(&self.suspects, event, &uid),
            delivery: Delivery::first(event.clone(), name, uid, Timestamp::now())
                .of_tenant(subscription.spec.tenant.clone()),
            target,
            keeper: keeper.clone(),
            ticket,
            pass: None,
            window: self.desk.hall.filling(),
            json: None,
        }
    }
}
