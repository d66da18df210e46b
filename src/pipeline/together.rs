//! Together: one request for the members of a batch, and what comes of it for each.
//!
//! The request has an id of its own, made of its members' ids, and it is one attempt: the lane and
//! the breaker see one answer. What the answer means is decided for each member by its own progress,
//! and carried out for each. A batch that is too long (413) is halved and sent on, which counts as an
//! attempt of none of its members.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Level, debug, enabled, info, warn};

use super::attempt::{InFlight, Made, count, exchange_of, note};
use super::batches::{Load, Member};
use super::egress::Failed;
use super::lanes::EndpointLane;
use super::meta;
use super::release::End;
use super::resolve::{Place, ended_of};
use super::target::Target;
use super::{Job, Pipeline};
use crate::attempt::{Answer, Attempt, Outcome};
use crate::deliver::Seen;
use crate::deliver::lane::Ended;
use crate::delivery::Progress;
use crate::event::{EventId, Facts};
use crate::failpoint;
use crate::subscription::{Answers, Statuses};
use crate::verdict::{self, Fate, Situation, Verdict};

/// The receiver takes no body of this length.
const TOO_LONG: u16 = 413;

/// A member after its attempt.
struct Attempted {
    member: Member,
    made: Made,
    verdict: Verdict,
    /// Its progress without the attempt.
    before: Progress,
}

impl Pipeline {
    /// Sends a batch in one request, and carries out what came of it. What starts in its place is
    /// given back.
    pub(super) async fn send_together(
        self: &Arc<Self>,
        lane: &Arc<EndpointLane>,
        place: &mut Place<'_>,
        members: Vec<Member>,
    ) -> Option<Load> {
        let Some(target) = members.first().map(|member| member.job.target.clone()) else {
            return place.give_back(Ended::Unknown, Default::default(), None);
        };
        let began = Instant::now();
        let (attempt, mut all) = self.attempt_together(lane, &target, members).await;
        let now = Instant::now();
        let first = &all[0];
        let (verdict, doubt) = (
            first.verdict,
            self.observe(&first.member.job, &attempt.outcome, began, now),
        );
        let mut ended = ended_of(verdict.signal);
        let shown = if doubt.is_some() {
            Ended::Unknown
        } else {
            ended
        };
        let next = place.give_back(shown, now - began, verdict.hold_lane);
        let gate = self.show_lane(lane, &target, now);
        self.note_gate(lane, gate, spokesman(&all));
        if let Some(doubt) = doubt {
            for one in all {
                self.record(&one.member.job, &one.made, &Fate::Hold);
                if one.made.parked_beside {
                    let end = End::Uncounted(one.before);
                    self.ends.note(&one.member.job.delivery, end);
                    continue;
                }
                let failed = Failed {
                    fate: one.verdict.fate,
                    // The breaker learns of one answer, once.
                    ended: std::mem::replace(&mut ended, Ended::Unknown),
                    before: one.before,
                    doubt,
                };
                self.keep_in_hand(one.member.job, lane, now, Some(failed));
            }
            return next;
        }
        self.note_endpoint(lane, spokesman(&all), verdict.endpoint);
        if is_halved(&target, &attempt, all.len()) {
            let rest = all.split_off(all.len().div_ceil(2));
            for half in [all, rest] {
                self.send_half(half);
            }
            return next;
        }
        for one in all {
            self.record(&one.member.job, &one.made, &one.verdict.fate);
            if one.made.parked_beside {
                let end = End::of(&one.member.job, one.verdict.fate);
                self.ends.note(&one.member.job.delivery, end);
                continue;
            }
            self.carry_out(one.member.job, one.verdict.fate, lane);
        }
        next
    }

    /// Renders, signs and sends the request, and writes what came of it into each progress.
    async fn attempt_together(
        &self,
        lane: &EndpointLane,
        target: &Target,
        mut members: Vec<Member>,
    ) -> (Attempt, Vec<Attempted>) {
        let places: Vec<_> = members
            .iter_mut()
            .map(|member| InFlight::enter(&self.under_way, &mut member.job))
            .collect();
        let (spec, endpoint) = (&target.subscription.spec, &target.subscription.endpoint);
        let first = members[0].job.delivery.event.clone();
        let parts = members.iter().map(|member| &member.part);
        let mut rendered = target.renderer.join(&first, parts, endpoint, spec.timeout);
        let id = batch_id(&members);
        let deliveries = members.iter().map(|member| &member.job.delivery);
        let span = self.spans.requesting_together(&id, deliveries, endpoint);
        if let (Ok(outgoing), Some(span)) = (&mut rendered, &span) {
            span.sign(&mut outgoing.headers, endpoint);
        }
        let mut exchanges = Vec::new();
        if let (Ok(outgoing), true) = (&rendered, self.journal.wants_bodies()) {
            let is_hidden = endpoint.payload.encrypt.is_some();
            let of_each = members.iter().map(|member| match is_hidden {
                true => exchange_of(outgoing, endpoint, &outgoing.body),
                false => exchange_of(outgoing, endpoint, member.part.body()),
            });
            exchanges.extend(of_each);
        }
        let facts = Facts {
            id: &id,
            ..first.facts()
        };
        let mut seen = members
            .iter()
            .find_map(|member| self.taps.wanted(&member.job.delivery));
        let attempt = self
            .send(rendered, target, facts, seen.as_deref_mut())
            .await;
        let seen: Option<Arc<Seen>> = seen.map(Arc::from);
        target.meters.duration.observe(attempt.took.as_secs_f64());
        target.meters.batched(members.len());
        let delivered = target.subscription.answers.accept(&attempt.outcome);
        if let Some(span) = span {
            span.ended(&attempt, delivered);
        }
        log(target, &id, members.len(), &attempt, delivered);
        let mut exchanges = exchanges.into_iter();
        let is_one = members.len() == 1;
        let all = members.into_iter().zip(places).map(|(mut member, place)| {
            let delivery = &mut member.job.delivery;
            failpoint::reach("posted", &delivery.event.body);
            let before = delivery.progress.clone();
            note(delivery, &attempt, delivered);
            count(target, delivery, &attempt, delivered);
            member.job.ticket = place.end();
            member.job.pass = None;
            Attempted {
                made: Made {
                    attempt: attempt.clone(),
                    parked_beside: member.job.ticket.is_gone(),
                    exchange: exchanges.next(),
                    seen: seen.clone(),
                },
                verdict: match is_one {
                    true => self.decide(&member.job, lane, &attempt.outcome),
                    false => self.decide_of_many(&member.job, lane, &attempt.outcome),
                },
                member,
                before,
            }
        });
        let all = all.collect();
        (attempt, all)
    }

    /// What the answer to a batch means for one of its members. What the answer says of a request
    /// as such, it may say because of another member: it is no reason yet to give this one up.
    fn decide_of_many(&self, job: &Job, lane: &EndpointLane, outcome: &Outcome) -> Verdict {
        let answers = &job.target.subscription.answers;
        if answers.accept(outcome) || answers.no_retry == Statuses::default() {
            return self.decide(job, lane, outcome);
        }
        let lenient = Answers {
            no_retry: Statuses::default(),
            ..Answers::clone(answers)
        };
        verdict::decide(&Situation {
            outcome,
            progress: &job.delivery.progress,
            policy: &job.target.subscription.spec.retry,
            answers: &lenient,
            first_gone_at: lane.first_gone_at(),
            now: jiff::Timestamp::now(),
            jitter: rand::random(),
        })
    }

    /// Sends on half of a batch that was too long.
    fn send_half(self: &Arc<Self>, half: Vec<Attempted>) {
        let mut members = Vec::with_capacity(half.len());
        for Attempted {
            mut member,
            made,
            before,
            ..
        } in half
        {
            self.record(&member.job, &made, &Fate::Hold);
            if made.parked_beside {
                let end = End::Uncounted(before);
                self.ends.note(&member.job.delivery, end);
                continue;
            }
            member.job.delivery.progress = before;
            members.push(member);
        }
        if !members.is_empty() {
            self.offer_later(Load::Many(members));
        }
    }
}

/// The member whose answer it is taken for: a meta-event, if there is one among them.
fn spokesman(all: &[Attempted]) -> &Job {
    let is_meta = |one: &&Attempted| meta::is_meta(&one.member.job.delivery.event);
    let one = all.iter().find(is_meta).unwrap_or(&all[0]);
    &one.member.job
}

/// Whether the receiver takes no body of this length, and not that it wants to be left alone: then
/// the members go alone, since together they would come back as the same batch.
fn is_halved(target: &Target, attempt: &Attempt, members: usize) -> bool {
    let too_long = |answer: &Answer| answer.status == TOO_LONG && answer.retry_after.is_none();
    matches!(&attempt.outcome, Outcome::Answered(answer) if too_long(answer))
        && members > 1
        && !target.subscription.answers.accept(&attempt.outcome)
}

/// The same for the same members, in whatever order they came. One by itself keeps its own.
fn batch_id(members: &[Member]) -> EventId {
    let ids = members.iter().map(|member| &member.job.delivery.event.id);
    of_members(ids.collect())
}

fn of_members(mut ids: Vec<&EventId>) -> EventId {
    if let [one] = ids[..] {
        return one.clone();
    }
    ids.sort_unstable();
    let ids: Vec<&[u8]> = ids.into_iter().map(|id| id.as_str().as_bytes()).collect();
    EventId::hashed("batch", &ids)
}

/// One line for the request, not one for each member.
fn log(target: &Target, id: &EventId, members: usize, attempt: &Attempt, delivered: bool) {
    let subscription = &target.subscription.spec.name;
    let took_ms = attempt.took.as_millis() as u64;
    if is_halved(target, attempt, members) {
        info!(%subscription, batch = %id, members, took_ms, "the receiver takes no body of this length: the batch is halved");
    } else if !delivered {
        let result = attempt.outcome.label();
        let endpoint = target.subscription.endpoint.shown();
        warn!(%subscription, batch = %id, members, took_ms, %result, %endpoint, excerpt = attempt.outcome.excerpt(), "delivery attempt failed, its members go alone from now on");
    } else if enabled!(Level::DEBUG) {
        debug!(%subscription, batch = %id, members, took_ms, "delivered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Vec<EventId> {
        ids.iter().map(|id| EventId::kept(id).unwrap()).collect()
    }

    #[test]
    fn a_batch_is_called_by_its_members() {
        let id = |of: &[&str]| of_members(ids(of).iter().collect());
        assert_eq!(id(&["a", "b"]), id(&["b", "a"]));
        assert_ne!(id(&["a", "b"]), id(&["ab"]));
        assert_ne!(id(&["a", "b"]), id(&["a", "b", "b"]));
        assert_eq!(id(&["a"]).as_str(), "a");
        let shown = id(&["a", "b"]).to_string();
        assert!(
            shown.starts_with("batch_") && !shown.contains('.'),
            "{shown}"
        );
    }
}
