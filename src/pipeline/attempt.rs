//! Attempting: the one function that asks the courier to send something.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Level, debug, enabled, warn};

use super::target::Target;
use super::ticket::Ticket;
use super::under_way::UnderWay;
use super::{Job, Pipeline, excerpt};
use crate::attempt::{Attempt, Outcome};
use crate::deliver::{Access, Seen};
use crate::delivery::Delivery;
use crate::event::Facts;
use crate::failpoint;
use crate::journal::{Exchange, Then};
use crate::outgoing::Outgoing;
use crate::render::RenderError;
use crate::subscription::Endpoint;
use crate::verdict::Fate;

/// An attempt, and what was sent where that is kept.
pub struct Made {
    pub attempt: Attempt,
    /// Meanwhile the delivery was parked beside it, and its ticket went with that.
    pub parked_beside: bool,
    pub(super) exchange: Option<Exchange>,
    /// What went over the wire, where somebody listens.
    pub(super) seen: Option<Arc<Seen>>,
}

impl Pipeline {
    /// Renders, signs and sends `job` once, and writes what came of it into its progress.
    pub(super) async fn attempt(&self, job: &mut Job) -> Made {
        let in_flight = InFlight::enter(&self.under_way, job);
        let Job {
            delivery,
            target,
            json,
            ..
        } = &mut *job;
        let spec = &target.subscription.spec;
        let endpoint = &target.subscription.endpoint;
        let mut exchange = None;
        failpoint::reach("render", &delivery.event.body);
        let mut rendered = target
            .renderer
            .render(delivery, json.as_ref(), endpoint, spec.timeout);
        let span = self.spans.requesting(delivery, endpoint);
        if let (Ok(outgoing), Some(span)) = (&mut rendered, &span) {
            span.sign(&mut outgoing.headers, endpoint);
        }
        if let (Ok(outgoing), true) = (&rendered, self.journal.wants_bodies()) {
            exchange = Some(exchange_of(outgoing, endpoint, &outgoing.body));
        }
        let mut seen = self.taps.wanted(delivery);
        let facts = delivery.event.facts();
        let attempt = self
            .send(rendered, target, facts, seen.as_deref_mut())
            .await;
        failpoint::reach("posted", &delivery.event.body);
        let delivered = target.subscription.answers.accept(&attempt.outcome);
        note(delivery, &attempt, delivered);
        if let Some(span) = span {
            span.ended(&attempt, delivered);
        }
        target.meters.duration.observe(attempt.took.as_secs_f64());
        count(target, delivery, &attempt, delivered);
        log(target, delivery, &attempt, delivered);
        job.ticket = in_flight.end();
        Made {
            attempt,
            parked_beside: job.ticket.is_gone(),
            exchange,
            seen: seen.map(Arc::from),
        }
    }

    /// Sends a request, if there is one, and tells what came of it.
    pub(super) async fn send(
        &self,
        rendered: Result<Outgoing, RenderError>,
        target: &Target,
        event: Facts<'_>,
        seen: Option<&mut Seen>,
    ) -> Attempt {
        let endpoint = &target.subscription.endpoint;
        let mut attempt = match rendered {
            Ok(outgoing) => {
                let access = Access {
                    tls: endpoint.tls.as_ref(),
                    auth: endpoint.auth.as_deref(),
                    connect_timeout: target.subscription.spec.connect_timeout,
                };
                self.courier
                    .watched(outgoing, &target.signer, event, access, seen)
                    .await
            }
            Err(why) => Attempt {
                started_at: Timestamp::now(),
                took: std::time::Duration::ZERO,
                outcome: Outcome::Unrenderable(why.to_string()),
            },
        };
        excerpt::mask(&mut attempt.outcome, endpoint);
        attempt
    }

    /// Hands an attempt to the journal, with what was decided then.
    pub(super) fn record(&self, job: &Job, made: &Made, fate: &Fate) {
        let then = match fate {
            Fate::Delivered => Then::Delivered,
            Fate::Retry(_) => Then::Retry,
            Fate::Hold => Then::Hold,
            Fate::DeadLetter(_) => Then::DeadLetter,
        };
        let Made {
            attempt,
            exchange,
            seen,
            ..
        } = made;
        let endpoint = &job.target.endpoint_shown;
        self.journal
            .attempted(&job.delivery, endpoint, attempt, then, exchange.as_ref());
        if let Some(seen) = seen {
            self.taps
                .tell(&job.delivery, &job.target, attempt, then, seen);
        }
    }
}

/// Headers that say what a request is, and hold no credentials unless the config gives them.
const TELLING: [&str; 8] = [
    "content-type",
    "content-encoding",
    "webhook-version",
    "deprecation",
    "sunset",
    "traceparent",
    "tracestate",
    "baggage",
];

/// The request with `body` as it may be kept: what config and templates give for a header is masked,
/// since most of it are credentials, and so is what a body has of them.
pub(super) fn exchange_of(outgoing: &Outgoing, endpoint: &Endpoint, body: &[u8]) -> Exchange {
    let given = endpoint.headers.as_deref();
    let headers = outgoing.headers.iter().map(|(name, value)| {
        let tells = TELLING.contains(&name.as_str()) || name.as_str().starts_with("ce-");
        let value = match tells && !given.is_some_and(|given| given.contains_key(name)) {
            true => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            false => "***".to_owned(),
        };
        (name.to_string(), value)
    });
    let body = excerpt::without_params(body, endpoint);
    Exchange::new(outgoing.method.as_str(), headers.collect(), &body)
}

/// Keeps the gauge and the list right when an attempt is cancelled or panics. The ticket is in the
/// list meanwhile, and is dropped with it then.
pub(super) struct InFlight<'a> {
    under_way: &'a UnderWay,
    place: Option<usize>,
    target: Arc<Target>,
}

impl<'a> InFlight<'a> {
    pub(super) fn enter(under_way: &'a UnderWay, job: &mut Job) -> Self {
        job.target.meters.in_flight.inc();
        Self {
            place: Some(under_way.enter(job)),
            under_way,
            target: job.target.clone(),
        }
    }

    /// The ticket, or none when somebody has taken it.
    pub(super) fn end(mut self) -> Ticket {
        let place = self.place.take();
        place.map_or_else(Ticket::gone, |place| self.under_way.leave(place))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            drop(self.under_way.leave(place));
        }
        self.target.meters.in_flight.dec();
    }
}

/// Writes an attempt into the delivery's progress.
pub(super) fn note(delivery: &mut Delivery, attempt: &Attempt, delivered: bool) {
    let progress = &mut delivery.progress;
    progress.attempts += 1;
    progress.first_attempt_at.get_or_insert(attempt.started_at);
    progress.last_attempt_at = Some(attempt.started_at);
    if !delivered {
        progress.last_result = Some(attempt.outcome.label());
        progress.last_excerpt =
            Some(attempt.outcome.excerpt().to_owned()).filter(|excerpt| !excerpt.is_empty());
    }
}

/// Counts what came of an attempt for one delivery.
pub(super) fn count(target: &Target, delivery: &Delivery, attempt: &Attempt, delivered: bool) {
    let meters = &target.meters;
    if let Some(tenant) = &target.tenant {
        let meters = tenant.meters();
        let attempts = match delivered {
            true => &meters.delivered,
            false => &meters.failed,
        };
        attempts.inc();
    }
    if !delivered {
        meters.failed(attempt.outcome.status_class());
        return;
    }
    if attempt.outcome.is_success() {
        meters.delivered.inc();
    } else {
        meters.delivered_by(attempt.outcome.status_class());
    }
    let since = delivery
        .event
        .published_at
        .unwrap_or(delivery.progress.taken_at);
    let age = attempt.started_at.duration_since(since).as_secs_f64() + attempt.took.as_secs_f64();
    meters.age.observe(age.max(0.0));
}

/// One line per attempt that is not a first-try success; those only at debug.
fn log(target: &Target, delivery: &Delivery, attempt: &Attempt, delivered: bool) {
    let subscription = &target.subscription.spec.name;
    let (event, number) = (&delivery.event.id, delivery.progress.attempts);
    let took_ms = attempt.took.as_millis() as u64;
    if !delivered {
        let result = attempt.outcome.label();
        let endpoint = target.subscription.endpoint.shown();
        warn!(%subscription, %event, attempt = number, took_ms, %result, %endpoint, excerpt = attempt.outcome.excerpt(), "delivery attempt failed");
    } else if number > 1 {
        tracing::info!(%subscription, %event, attempt = number, took_ms, "delivered after retries");
    } else if enabled!(Level::DEBUG) {
        debug!(%subscription, %event, took_ms, "delivered");
    }
}
