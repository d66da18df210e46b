//! Intake loops: one for each source, and one each for the retries and holds of a broker.
//!
//! Windows of their own keep them apart: a flood of retries cannot take the places of fresh events,
//! and a source whose lanes are full waits at its own door.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::decoding::{self, PATIENCE, Seen};
use super::door::{Door, Entrance, Patience};
use super::keeper::Keeper;
use super::release::End;
use super::resolve::STANDING_HOLD;
use super::suspects::{self, Witness};
use super::target::Target;
use super::terms::{self, Rules, breaches};
use super::{Job, Pipeline, SourcePlan, Taken, Ticket, Unmatched, target_of};
use crate::broker::{Filling, Receipt, Received, Wait};
use crate::decode::Decoder;
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::Event;
use crate::failpoint;
use crate::render::SharedJson;
use crate::store::Store;
use crate::subscription::{LazyJson, Uid};

/// How long a delivery whose subscription is unknown here is held: during a rolling deploy, or
/// before another instance has its config, the name may still come.
const UNKNOWN_GRACE: Duration = Duration::from_secs(600);
/// How long it is held at a time.
const UNKNOWN_HOLD: Duration = Duration::from_secs(60);
/// How long an unmatched event is held at a time (`unmatched: hold`).
const UNMATCHED_HOLD: Duration = Duration::from_secs(60);
/// How long an event waits that its source has handed out too often.
const RENEWAL: Duration = Duration::from_secs(1);
/// Larger bodies are parsed for each delivery by itself, so that what is parsed and kept while
/// deliveries wait for their turn stays in proportion to the window.
const LARGEST_SHARED_JSON: usize = 256 << 10;
/// Topics of which a warning has been given; more are only counted.
const WARNED_TOPICS: usize = 1_000;

/// One loop that empties one intake.
pub struct Loop {
    what: What,
    keeper: Arc<Keeper>,
    window: Filling,
    taken: Taken,
}

enum What {
    Source(Box<SourcePlan>, Arc<ArcSwap<Rules>>, CancellationToken),
    Due(WaitKind),
}

impl Loop {
    /// `closed`: its source is not to be taken from as it is any more.
    pub fn source(
        source: SourcePlan,
        rules: Arc<ArcSwap<Rules>>,
        closed: CancellationToken,
        keeper: Arc<Keeper>,
        window: Filling,
        taken: Taken,
    ) -> Self {
        Self {
            what: What::Source(Box::new(source), rules, closed),
            keeper,
            window,
            taken,
        }
    }

    pub fn due(kind: WaitKind, keeper: Arc<Keeper>, window: Filling, taken: Taken) -> Self {
        Self {
            what: What::Due(kind),
            keeper,
            window,
            taken,
        }
    }

    /// Takes until the broker has closed the intake.
    pub async fn run(mut self, pipeline: Arc<Pipeline>) {
        match &self.what {
            What::Source(source, rules, closed) => {
                let mut source = Source {
                    pipeline: &pipeline,
                    plan: source,
                    rules: Cache::new(rules.clone()),
                    keeper: &self.keeper,
                    window: &self.window,
                    door: Door::new(Instant::now()),
                    matching: Vec::new(),
                    renewing: false,
                    overdue: 0,
                    warned: BTreeSet::new(),
                };
                while let Some(received) = self.taken.recv().await {
                    match received {
                        // Subscriptions may be changing with the source: the broker hands it out again to
                        // the one that comes instead.
                        Received::Event(..) | Received::Worn(..) if closed.is_cancelled() => {}
                        Received::Event(event, receipt) => source.try_take(event, receipt).await,
                        Received::Worn(event, receipt) => {
                            source.renewing = true;
                            source.try_take(event, receipt).await;
                            source.renewing = false;
                        }
                        Received::Due(delivery, _, receipt) => {
                            let (keeper, window) = (&self.keeper, &self.window);
                            let other = Entrance::Other;
                            take_due(&pipeline, keeper, window, delivery, receipt, other).await;
                        }
                    }
                }
            }
            What::Due(kind) => {
                debug!(broker = %self.keeper.broker.name(), kind = kind.as_str(), "taking what is due");
                let mut patience = Patience::new(Instant::now());
                while let Some(received) = self.taken.recv().await {
                    // A broker hands no event to a due intake; one that did would be asked again.
                    if let Received::Due(delivery, _, receipt) = received {
                        let entrance = match kind {
                            WaitKind::Hold => Entrance::Holds(&mut patience),
                            WaitKind::Retry => Entrance::Other,
                        };
                        let (keeper, window) = (&self.keeper, &self.window);
                        take_due(&pipeline, keeper, window, delivery, receipt, entrance).await;
                    }
                }
            }
        }
    }
}

/// A source being taken from.
struct Source<'a> {
    pipeline: &'a Arc<Pipeline>,
    plan: &'a SourcePlan,
    rules: Cache<Arc<ArcSwap<Rules>>, Arc<Rules>>,
    keeper: &'a Arc<Keeper>,
    window: &'a Filling,
    door: Door,
    matching: Vec<Arc<Target>>,
    /// What is taken now is parked first, so that its source can forget how often it came.
    renewing: bool,
    /// So many may have waited for their turn as long as one that has waited too long.
    overdue: usize,
    warned: BTreeSet<Arc<str>>,
}

impl Source<'_> {
    /// Takes an event, and counts it against it if that panics.
    async fn try_take(&mut self, event: Arc<Event>, receipt: Receipt) {
        let id = event.id.clone();
        let taken = AssertUnwindSafe(self.take(event, receipt));
        if taken.catch_unwind().await.is_err() {
            self.matching.clear();
            self.pipeline.suspects.panicked(id.to_string());
        }
    }

    async fn take(&mut self, event: Arc<Event>, receipt: Receipt) {
        let suspects = &self.pipeline.suspects;
        let pass = suspects.enter(|| event.id.to_string()).await;
        let span = self.pipeline.spans.consuming(&event);
        let ticket = Ticket::whole(receipt, pass).traced(span);
        if suspects.is_poison(|| event.id.to_string()) {
            return self.bury(event, ticket);
        }
        failpoint::reach("take", &event.body);
        let mut json = None;
        let plan = self.plan;
        if plan.has_tenants && event.tenant.is_none() {
            plan.meters.without_tenant.inc();
        }
        if let Some(decoder) = &plan.decoder {
            let patience = self.patience();
            // Boxed, so that those that are not decoded do not carry it.
            let looking = Box::pin(self.pipeline.look_into(&event, decoder, patience));
            match looking.await {
                Seen::Says(said) => json = said,
                Seen::ForNobody => {
                    return self.unmatched(event, ticket, Timestamp::now()).await;
                }
                Seen::Undecodable(why) => return self.undecodable(event, ticket, why),
                Seen::NotYet => return self.postpone(event, ticket, decoder),
            }
        }
        let breaches = {
            let body = LazyJson::new(read_as(&event, json.as_ref()));
            let routes = self.pipeline.routes.load();
            let contract = &self.rules.load().contract;
            if !contract.is_none() && routes.has_candidate(&event) {
                let length = event.body.len();
                if let Err(why) = contract.check(length, &body) {
                    drop(body);
                    return self.invalid(event, ticket, why);
                }
            }
            routes.matching(&event, &body, &mut self.matching);
            if body.is_unparsable() {
                self.plan.meters.filter_not_json.inc();
            }
            breaches(&event, &body, &self.matching)
        };
        let mut breaches = breaches.into_iter();
        failpoint::reach("matched", &event.body);
        let now = Timestamp::now();
        match self.matching.len() {
            0 => self.unmatched(event, ticket, now).await,
            1 => {
                self.plan.meters.matched.inc();
                let target = self.matching.remove(0);
                let breach = breaches.next().flatten();
                self.deliver(&event, target, ticket, json, breach, now)
                    .await;
            }
            count => {
                self.plan.meters.matched.inc();
                let targets = std::mem::take(&mut self.matching);
                let json = shared_json(&event, json, &targets);
                for (target, ticket) in targets.into_iter().zip(ticket.split(count)) {
                    let json = json.as_ref().map(own_json);
                    let breach = breaches.next().flatten();
                    self.deliver(&event, target, ticket, json, breach, now)
                        .await;
                }
            }
        }
    }

    async fn deliver(
        &mut self,
        event: &Arc<Event>,
        target: Arc<Target>,
        ticket: Ticket,
        json: Option<SharedJson>,
        breach: Option<String>,
        now: Timestamp,
    ) {
        let subscription = &target.subscription;
        let delivery = Delivery::first(
            event.clone(),
            subscription.spec.name.clone(),
            subscription.uid.clone(),
            now,
        )
        .of_tenant(subscription.spec.tenant.clone());
        let job = Job {
            witness: Witness::new(&self.pipeline.suspects, event, &target.subscription.uid),
            delivery,
            target,
            keeper: self.keeper.clone(),
            ticket,
            window: self.window.clone(),
            json,
            pass: None,
        };
        if let Some(why) = breach {
            return terms::refuse(job, why);
        }
        if self.renewing {
            let wait = Wait {
                kind: WaitKind::Hold,
                delay: RENEWAL,
            };
            tokio::spawn(self.pipeline.clone().park(job, wait));
            return;
        }
        let entrance = Entrance::Source(&mut self.door);
        self.pipeline.offer(job, entrance).await;
    }

    /// How long the next event may wait for its schema registry.
    fn patience(&mut self) -> Duration {
        match (self.overdue, self.renewing) {
            (0, false) => PATIENCE,
            (0, true) => Duration::ZERO,
            (overdue, _) => {
                self.overdue = overdue - 1;
                Duration::ZERO
            }
        }
    }

    /// Holds an event on the broker that has waited for its schema registry long enough, and has
    /// those that waited behind it follow. When its source is stopped it is left to be taken again.
    fn postpone(&mut self, event: Arc<Event>, ticket: Ticket, decoder: &Decoder) {
        if decoder.is_leaving() {
            return;
        }
        if self.overdue == 0 && !self.renewing {
            self.overdue = self.window.size();
        }
        let delivery = unaddressed(event, Timestamp::now());
        let (keeper, delay) = (self.keeper.clone(), decoder.next_look());
        tokio::spawn(decoding::hold(keeper, delivery, ticket, delay));
    }

    fn undecodable(&mut self, event: Arc<Event>, ticket: Ticket, why: String) {
        let (keeper, delivery) = (self.keeper.clone(), unaddressed(event, Timestamp::now()));
        tokio::spawn(decoding::bury_undecodable(keeper, delivery, ticket, why));
    }

    fn invalid(&self, event: Arc<Event>, ticket: Ticket, why: String) {
        self.plan.meters.invalid.inc();
        let (keeper, delivery) = (self.keeper.clone(), unaddressed(event, Timestamp::now()));
        tokio::spawn(terms::bury_invalid(keeper, delivery, ticket, why));
    }

    /// Dead-letters an event that the bridge fails at before it is known whom it is for.
    fn bury(&self, event: Arc<Event>, ticket: Ticket) {
        let delivery = unaddressed(event, Timestamp::now());
        let keeper = self.keeper.clone();
        tokio::spawn(async move {
            keeper.dead_letter(&delivery, Reason::Poison).await;
            warn!(event = %delivery.event.id, delivery = %delivery.id, reason = %Reason::Poison, origin = %delivery.event.origin, "dead-lettered");
            ticket.resolved();
        });
    }

    async fn unmatched(&mut self, event: Arc<Event>, ticket: Ticket, now: Timestamp) {
        let unmatched = self.rules.load().unmatched;
        self.plan.meters.unmatched.inc();
        self.pipeline.journal.unmatched(&event, now);
        if self.warned.len() < WARNED_TOPICS && self.warned.insert(event.topic.clone()) {
            warn!(source = %self.plan.name, topic = %event.topic, then = ?unmatched, "no subscription matches events of this topic");
        }
        if unmatched == Unmatched::Settle {
            return ticket.resolved();
        }
        let delivery = unaddressed(event, now);
        let keeper = self.keeper.clone();
        tokio::spawn(keep_unmatched(keeper, delivery, ticket, unmatched));
    }
}

async fn keep_unmatched(
    keeper: Arc<Keeper>,
    delivery: Delivery,
    ticket: Ticket,
    unmatched: Unmatched,
) {
    match unmatched {
        Unmatched::DeadLetter => keeper.dead_letter(&delivery, Reason::Unmatched).await,
        Unmatched::Hold | Unmatched::Settle => keeper.hold(&delivery, UNMATCHED_HOLD).await,
    }
    ticket.resolved();
}

/// What is read of an event: its body, or what was decoded of it.
pub(super) fn read_as<'a>(event: &'a Event, json: Option<&'a SharedJson>) -> &'a [u8] {
    let decoded = json.and_then(SharedJson::decoded);
    decoded.map_or(&event.body, |decoded| &decoded.body)
}

/// The share of one of several deliveries in what was read of their event.
fn own_json(json: &SharedJson) -> SharedJson {
    let decoded = json.decoded();
    match decoded.is_some_and(|decoded| decoded.body.len() > LARGEST_SHARED_JSON) {
        true => json.apart(),
        false => json.clone(),
    }
}

/// A place for the body's JSON, where more than one of `targets` may look for it, or for what was
/// `decoded` of it.
fn shared_json(
    event: &Event,
    decoded: Option<SharedJson>,
    targets: &[Arc<Target>],
) -> Option<SharedJson> {
    if decoded.is_some() {
        return decoded;
    }
    let readers = targets.iter().filter(|target| target.renderer.reads_json());
    (event.body.len() <= LARGEST_SHARED_JSON && readers.count() > 1).then(SharedJson::default)
}

/// What is kept of an event of which it is not known whom it is for.
pub(super) fn unaddressed(event: Arc<Event>, now: Timestamp) -> Delivery {
    Delivery::first(event, "".into(), Uid::from_stored("none"), now)
}

/// A delivery whose wait is over: finds its subscription as it is now.
async fn take_due(
    pipeline: &Arc<Pipeline>,
    keeper: &Arc<Keeper>,
    window: &Filling,
    delivery: Delivery,
    receipt: Receipt,
    entrance: Entrance<'_>,
) {
    let witness = Witness::new(&pipeline.suspects, &delivery.event, &delivery.uid);
    let taken = AssertUnwindSafe(offer_due(
        pipeline, keeper, window, delivery, receipt, witness, entrance,
    ));
    // The witness has seen it.
    let _panicked = taken.catch_unwind().await;
}

async fn offer_due(
    pipeline: &Arc<Pipeline>,
    keeper: &Arc<Keeper>,
    window: &Filling,
    mut delivery: Delivery,
    receipt: Receipt,
    witness: Witness,
    entrance: Entrance<'_>,
) {
    let key = || suspects::of_delivery(&delivery.event.id, &delivery.uid);
    let pass = pipeline.suspects.enter(key).await;
    let ticket = Ticket::whole(receipt, pass);
    failpoint::reach("due", &delivery.event.body);
    let decoder = pipeline.decoder(&delivery.event.source);
    if delivery.subscription.is_empty() {
        pipeline.lanes.holds(&delivery.subscription, Instant::now());
        if decoder.is_some() {
            let (by, keeper, window) = (pipeline.clone(), keeper.clone(), window.clone());
            tokio::spawn(by.route_decoded(keeper, window, delivery, ticket, witness));
            return;
        }
        let held = Unmatched::Hold;
        return take_unmatched(pipeline, keeper, window, delivery, ticket, None, held).await;
    }
    let routes = pipeline.routes.load();
    let found = target_of(&routes, &delivery).cloned();
    drop(routes);
    let Some(target) = found else {
        pipeline.lanes.holds(&delivery.subscription, Instant::now());
        let (keeper, store) = (keeper.clone(), pipeline.store.clone());
        tokio::spawn(async move {
            hold_unknown(&keeper, &store, delivery).await;
            ticket.resolved();
        });
        return;
    };
    target.unpark(delivery.event.size_bytes());
    delivery.progress.unknown_since = None;
    let mut job = Job {
        delivery,
        target,
        keeper: keeper.clone(),
        ticket,
        witness,
        window: window.clone(),
        json: None,
        pass: None,
    };
    // What was parked beside its request may have ended with that.
    match pipeline.ends.take(&job.delivery) {
        None => {}
        Some(End::Uncounted(before)) => job.delivery.progress = before,
        Some(End::Of(fate, progress)) => {
            job.delivery.progress = progress;
            let lane = pipeline.lane_of(&job.target);
            return pipeline.carry_out(job, fate, &lane);
        }
    }
    if let Some(then) = job.stale() {
        return pipeline.drop_stale(job, then);
    }
    let is_read = || job.target.renderer.reads_json() || pipeline.looks_into(&job);
    if let Some(decoder) = decoder.filter(|_| is_read()) {
        if matches!(entrance, Entrance::Holds(_)) {
            let endpoint = &job.target.subscription.endpoint.name;
            pipeline.lanes.holds(endpoint, Instant::now());
        }
        // Its registry may keep it waiting, and this loop is for the deliveries of all sources.
        tokio::spawn(pipeline.clone().offer_decoded(job, decoder));
        return;
    }
    if let Some(job) = pipeline.unless_invalid(job) {
        pipeline.offer(job, entrance).await;
    }
}

/// An event that was held before it was known whom it is for, or dead-lettered and sent again:
/// routed, as what `json` says where it was decoded. What matches nothing is `unmatched`.
pub(super) async fn take_unmatched(
    pipeline: &Arc<Pipeline>,
    keeper: &Arc<Keeper>,
    window: &Filling,
    delivery: Delivery,
    ticket: Ticket,
    json: Option<SharedJson>,
    unmatched: Unmatched,
) {
    if let Some(why) = pipeline.breach_of(&delivery.event, json.as_ref()) {
        tokio::spawn(terms::bury_invalid(keeper.clone(), delivery, ticket, why));
        return;
    }
    let mut targets = Vec::new();
    let breaches = {
        let body = LazyJson::new(read_as(&delivery.event, json.as_ref()));
        let routes = pipeline.routes.load();
        routes.matching(&delivery.event, &body, &mut targets);
        breaches(&delivery.event, &body, &targets)
    };
    if targets.is_empty() {
        if unmatched == Unmatched::Settle {
            return ticket.resolved();
        }
        tokio::spawn(keep_unmatched(keeper.clone(), delivery, ticket, unmatched));
        return;
    }
    let tickets = ticket.split(targets.len());
    let json = shared_json(&delivery.event, json, &targets);
    let mut breaches = breaches.into_iter();
    for (target, ticket) in targets.into_iter().zip(tickets) {
        let subscription = &target.subscription;
        let mut own = Delivery::first(
            delivery.event.clone(),
            subscription.spec.name.clone(),
            subscription.uid.clone(),
            delivery.progress.taken_at,
        )
        .of_tenant(subscription.spec.tenant.clone());
        own.generation = delivery.generation;
        let job = Job {
            witness: Witness::new(&pipeline.suspects, &own.event, &own.uid),
            delivery: own,
            target,
            keeper: keeper.clone(),
            ticket,
            window: window.clone(),
            json: json.as_ref().map(own_json),
            pass: None,
        };
        match breaches.next().flatten() {
            Some(why) => terms::refuse(job, why),
            None => pipeline.offer(job, Entrance::Other).await,
        }
    }
}

async fn hold_unknown(keeper: &Arc<Keeper>, store: &Store, mut delivery: Delivery) {
    // One of the API that the config of the day does not allow is kept, and so is what waits for it.
    if matches!(store.registered_with(&delivery.uid), Ok(Some(_)) | Err(_)) {
        delivery.progress.unknown_since = None;
        return keeper.hold(&delivery, STANDING_HOLD).await;
    }
    let now = Timestamp::now();
    let since = *delivery.progress.unknown_since.get_or_insert(now);
    let unknown_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if unknown_for >= UNKNOWN_GRACE {
        warn!(subscription = %delivery.subscription, delivery = %delivery.id, "no such subscription for {UNKNOWN_GRACE:?}, dead-lettered");
        keeper
            .dead_letter(&delivery, Reason::SubscriptionUnknown)
            .await;
    } else {
        keeper.hold(&delivery, UNKNOWN_HOLD).await;
    }
}
