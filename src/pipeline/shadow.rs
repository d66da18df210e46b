//! Shadows: deliveries that are rendered and signed as others are, and sent to nobody.
//!
//! For running beside an older sender. A shadow stays away from the lane of its endpoint: it takes no
//! place there and no share of a rate, and it learns nothing of the receiver nor the receiver of it,
//! so that an endpoint that real deliveries go to does not notice. It has one attempt, whatever came
//! of that, and is settled; the journal and the meters have it as others, with `shadow` for a status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::attempt::{exchange_of, note};
use super::{Job, Pipeline, excerpt};
use crate::attempt::{Attempt, Outcome};
use crate::failpoint;
use crate::journal::Then;

impl Pipeline {
    /// Does with a delivery of a shadow all that is done with others but for the sending.
    pub(super) fn rehearse(self: &Arc<Self>, job: Job) {
        tokio::spawn(self.clone().rehearse_now(job));
    }

    async fn rehearse_now(self: Arc<Self>, mut job: Job) {
        let Job {
            delivery,
            target,
            json,
            ..
        } = &mut job;
        let (spec, endpoint) = (&target.subscription.spec, &target.subscription.endpoint);
        failpoint::reach("render", &delivery.event.body);
        let rendered = target
            .renderer
            .render(delivery, json.as_ref(), endpoint, spec.timeout);
        let (mut exchange, mut bytes) = (None, 0);
        if let Ok(outgoing) = &rendered {
            bytes = outgoing.body.len();
            let kept = self.journal.wants_bodies();
            exchange = kept.then(|| exchange_of(outgoing, endpoint, &outgoing.body));
        }
        let mut seen = self.taps.wanted(delivery);
        let mut attempt = match rendered {
            Ok(outgoing) => {
                let (event, auth) = (delivery.event.facts(), endpoint.auth.as_deref());
                let seen = seen.as_deref_mut();
                self.courier
                    .rehearse(outgoing, &target.signer, event, auth, seen)
            }
            Err(why) => Attempt {
                started_at: Timestamp::now(),
                took: Duration::ZERO,
                outcome: Outcome::Unrenderable(why.to_string()),
            },
        };
        excerpt::mask(&mut attempt.outcome, endpoint);
        note(delivery, &attempt, false);
        let (subscription, event) = (&spec.name, &delivery.event.id);
        let shown = &target.endpoint_shown;
        match &attempt.outcome {
            Outcome::Withheld => {
                target.meters.withheld();
                info!(%subscription, %event, endpoint = %shown, bytes, "shadow: rendered and signed, and not sent");
            }
            outcome => {
                target.meters.failed(outcome.status_class());
                let result = outcome.label();
                warn!(%subscription, %event, endpoint = %shown, %result, excerpt = outcome.excerpt(), "shadow: this could not be sent");
            }
        }
        let then = Then::Shadow;
        self.journal
            .attempted(delivery, shown, &attempt, then, exchange.as_ref());
        if let Some(seen) = &seen {
            self.taps.tell(delivery, target, &attempt, then, seen);
        }
        job.ticket.resolved();
    }
}
