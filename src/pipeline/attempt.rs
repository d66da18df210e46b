//! Attempting: the one function that asks the courier to send something.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Level, debug, enabled, warn};

use super::target::Target;
use super::{Job, Pipeline};
use crate::attempt::{Attempt, Outcome};
use crate::delivery::Delivery;
use crate::render;

impl Pipeline {
    /// Renders, signs and sends `job` once, and writes what came of it into its progress.
    pub(super) async fn attempt(&self, job: &mut Job) -> Attempt {
        let Job {
            delivery, target, ..
        } = job;
        let spec = &target.subscription.spec;
        let endpoint = &target.subscription.endpoint;
        target.meters.in_flight.inc();
        let _in_flight = InFlight(target.clone());
        let attempt = match render::raw(&delivery.event, endpoint, spec.timeout) {
            Ok(outgoing) => {
                let (event, tls) = (delivery.event.facts(), endpoint.tls.as_ref());
                self.courier
                    .attempt(outgoing, &target.signer, event, tls, spec.connect_timeout)
                    .await
            }
            Err(why) => Attempt {
                started_at: Timestamp::now(),
                took: std::time::Duration::ZERO,
                outcome: Outcome::Unsendable(why),
            },
        };
        note(delivery, &attempt);
        count(target, delivery, &attempt);
        log(target, delivery, &attempt);
        attempt
    }
}

/// Keeps the gauge right when an attempt is cancelled or panics.
struct InFlight(Arc<Target>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.meters.in_flight.dec();
    }
}

fn note(delivery: &mut Delivery, attempt: &Attempt) {
    let progress = &mut delivery.progress;
    progress.attempts += 1;
    progress.first_attempt_at.get_or_insert(attempt.started_at);
    progress.last_attempt_at = Some(attempt.started_at);
    if !attempt.outcome.is_success() {
        progress.last_result = Some(attempt.outcome.label());
        progress.last_excerpt =
            Some(attempt.outcome.excerpt().to_owned()).filter(|excerpt| !excerpt.is_empty());
    }
}

fn count(target: &Target, delivery: &Delivery, attempt: &Attempt) {
    let meters = &target.meters;
    meters.duration.observe(attempt.took.as_secs_f64());
    if !attempt.outcome.is_success() {
        meters.failed(attempt.outcome.status_class());
        return;
    }
    meters.delivered.inc();
    let since = delivery
        .event
        .published_at
        .unwrap_or(delivery.progress.taken_at);
    let age = attempt.started_at.duration_since(since).as_secs_f64() + attempt.took.as_secs_f64();
    meters.age.observe(age.max(0.0));
}

/// One line per attempt that is not a first-try success; those only at debug.
fn log(target: &Target, delivery: &Delivery, attempt: &Attempt) {
    let subscription = &target.subscription.spec.name;
    let (event, number) = (&delivery.event.id, delivery.progress.attempts);
    let took_ms = attempt.took.as_millis() as u64;
    if !attempt.outcome.is_success() {
        let result = attempt.outcome.label();
        let endpoint = target.subscription.endpoint.shown();
        warn!(%subscription, %event, attempt = number, took_ms, %result, %endpoint, excerpt = attempt.outcome.excerpt(), "delivery attempt failed");
    } else if number > 1 {
        tracing::info!(%subscription, %event, attempt = number, took_ms, "delivered after retries");
    } else if enabled!(Level::DEBUG) {
        debug!(%subscription, %event, took_ms, "delivered");
    }
}
