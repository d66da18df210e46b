//! Terms: deliveries that are not to be sent because of what their event is, and not because of
//! their receiver.
//!
//! An event that breaks the contract of its source is nobody's letter; one that breaks a
//! subscription's is a letter of that. What was parked is held to both again when it comes back, since a
//! dead letter that is sent again may be as wrong as it was. How old an event is counts whenever a
//! delivery is about to be offered to its lane, or sent.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{debug, warn};

use super::batches::Load;
use super::intake::read_as;
use super::keeper::Keeper;
use super::resolve::bury;
use super::target::Target;
use super::{Job, Pipeline, Ticket, Unmatched};
use crate::delivery::{Delivery, Reason};
use crate::event::Event;
use crate::render::SharedJson;
use crate::subscription::{Contract, LazyJson, Stale};

/// What a source asks of its events, and what becomes of those that nobody wants. A reload may
/// change it while events are taken.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    pub unmatched: Unmatched,
    pub contract: Contract,
}

impl Job {
    /// What becomes of it because its event is too old by now.
    pub(super) fn stale(&self) -> Option<Stale> {
        let terms = self.target.subscription.spec.terms.as_deref()?;
        terms.stale(&self.delivery, Timestamp::now())
    }
}

impl Target {
    /// The contract of its subscription, if that has one.
    pub(super) fn contract(&self) -> Option<&Contract> {
        let terms = self.subscription.spec.terms.as_deref()?;
        Some(&terms.contract).filter(|contract| !contract.is_none())
    }
}

impl Pipeline {
    /// Ends a delivery whose event is too old.
    pub(super) fn drop_stale(&self, job: Job, then: Stale) {
        if then == Stale::DeadLetter {
            tokio::spawn(bury(job, Reason::Stale));
            return;
        }
        let Job {
            delivery,
            target,
            ticket,
            ..
        } = job;
        target.meters.stale();
        self.journal.stale(&delivery, Timestamp::now());
        debug!(subscription = %delivery.subscription, event = %delivery.event.id, delivery = %delivery.id, "older than `max_age`, settled");
        ticket.resolved();
    }

    /// A load without those deliveries whose events are too old; `None` when that is all of them.
    pub(super) fn without_stale(&self, load: Load) -> Option<Load> {
        match load {
            Load::One(job) => match job.stale() {
                Some(then) => {
                    self.drop_stale(job, then);
                    None
                }
                None => Some(Load::One(job)),
            },
            Load::Many(members) => {
                let mut kept = Vec::with_capacity(members.len());
                for member in members {
                    match member.job.stale() {
                        Some(then) => self.drop_stale(member.job, then),
                        None => kept.push(member),
                    }
                }
                (!kept.is_empty()).then_some(Load::Many(kept))
            }
        }
    }

    /// The rules of `source` as they are now.
    pub(super) fn rules(&self, source: &str) -> Option<Arc<Rules>> {
        let sources = self.sources.all();
        sources.get(source).map(|source| source.rules.load_full())
    }

    /// Has `source` follow other rules from its next event on. `false`: there is no such source.
    pub fn set_rules(&self, source: &str, rules: Rules) -> bool {
        let sources = self.sources.all();
        let known = sources.get(source);
        if let Some(known) = known {
            known.rules.store(Arc::new(rules));
        }
        known.is_some()
    }

    /// Whether a schema looks into the bodies of these deliveries.
    pub(super) fn looks_into(&self, job: &Job) -> bool {
        let has_schema = |contract: &Contract| contract.schema.is_some();
        let sources = self.sources.all();
        let source = sources.get(&job.delivery.event.source);
        source.is_some_and(|source| has_schema(&source.rules.load().contract))
            || job.target.contract().is_some_and(has_schema)
    }

    /// Dead-letters a delivery that has come back and breaks a contract; else gives it back.
    pub(super) fn unless_invalid(&self, mut job: Job) -> Option<Job> {
        let rules = self.rules(&job.delivery.event.source);
        let of_source = rules.as_ref().map(|rules| &rules.contract);
        let of_source = of_source.filter(|contract| !contract.is_none());
        let own = job.target.contract();
        if of_source.is_none() && own.is_none() {
            return Some(job);
        }
        let event = &job.delivery.event;
        let body = LazyJson::new(read_as(event, job.json.as_ref()));
        let mut contracts = of_source.into_iter().chain(own);
        let broken = contracts.find_map(|contract| contract.check(event.body.len(), &body).err());
        match broken {
            None => Some(job),
            Some(why) => {
                note(&mut job.delivery, why);
                tokio::spawn(bury(job, Reason::InvalidPayload));
                None
            }
        }
    }

    /// What is wrong with an event that has come back before it was known whom it is for. Nothing,
    /// where nobody wants it.
    pub(super) fn breach_of(&self, event: &Event, json: Option<&SharedJson>) -> Option<String> {
        let rules = self.rules(&event.source)?;
        if rules.contract.is_none() || !self.routes.load().has_candidate(event) {
            return None;
        }
        let body = LazyJson::new(read_as(event, json));
        rules.contract.check(event.body.len(), &body).err()
    }
}

/// What is wrong with an event for each of `targets`; none when it is wrong for nobody.
pub(super) fn breaches(
    event: &Event,
    body: &LazyJson<'_>,
    targets: &[Arc<Target>],
) -> Vec<Option<String>> {
    if !targets.iter().any(|target| target.contract().is_some()) {
        return Vec::new();
    }
    let breach = |target: &Arc<Target>| target.contract()?.check(event.body.len(), body).err();
    targets.iter().map(breach).collect()
}

/// Dead-letters a delivery of an event that breaks the contract of its subscription.
pub(super) fn refuse(mut job: Job, why: String) {
    note(&mut job.delivery, why);
    tokio::spawn(bury(job, Reason::InvalidPayload));
}

/// Dead-letters an event that breaks the contract of its source, as it came.
pub(super) async fn bury_invalid(
    keeper: Arc<Keeper>,
    mut delivery: Delivery,
    ticket: Ticket,
    why: String,
) {
    note(&mut delivery, why);
    let reason = Reason::InvalidPayload;
    keeper.dead_letter(&delivery, reason).await;
    let why = delivery.progress.last_excerpt.as_deref();
    warn!(event = %delivery.event.id, delivery = %delivery.id, %reason, why = why.unwrap_or_default(), origin = %delivery.event.origin, "dead-lettered");
    ticket.resolved();
}

fn note(delivery: &mut Delivery, why: String) {
    delivery.progress.last_result = Some(Contract::RESULT.to_owned());
    delivery.progress.last_excerpt = Some(why);
}
