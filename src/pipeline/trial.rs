//! Trials: one request to a subscription's endpoint, because somebody wants to see what comes of it.
//!
//! It is rendered, signed and sent as that of a delivery is, behind the same guard and within the same
//! time, and says what it is in the header [`MARK`]. It is no delivery: it takes no place in a lane, no
//! broker keeps anything of it, and neither the breaker nor the state of the endpoint learns of it. The
//! journal has it, and who listens hears of it, as a `test`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::info;

use super::attempt::{exchange_of, note};
use super::intake::read_as;
use super::tap::Tapped;
use super::{Pipeline, Target};
use crate::attempt::{Attempt, Outcome};
use crate::decode::Problem;
use crate::deliver::Seen;
use crate::delivery::{Delivery, DeliveryId};
use crate::event::Event;
use crate::journal::Then;
use crate::render::SharedJson;
use crate::subscription::{LazyJson, Subscription, Uid};

/// `true` on requests that are tests.
pub const MARK: HeaderName = HeaderName::from_static("webhook-test");
const AT_ONCE: usize = 8;
/// Of these, those of tenants; the others are left to the operator.
const OF_TENANTS: usize = 6;
const OF_A_TENANT: usize = 2;
/// Somebody waits for the answer, and not for as long as a delivery does: with what a search and a
/// schema may take it is less than a request of the API may.
const LONGEST: Duration = Duration::from_secs(15);
/// How long a schema registry may take.
const PATIENCE: Duration = Duration::from_secs(3);

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);
/// For whom tests are under way.
static TENANTS: Mutex<Vec<Arc<str>>> = Mutex::new(Vec::new());

/// One of the tests that may be under way at once, from the search for its event on.
pub struct Turn {
    _place: SemaphorePermit<'static>,
    tenant: Option<Arc<str>>,
}

impl Turn {
    /// `tenant`: for whom it is asked; without one for the operator.
    pub fn taken(tenant: Option<&Arc<str>>) -> Result<Self, NotTried> {
        let place = PLACES.try_acquire();
        let _place = place.map_err(|_| NotTried::TooMany)?;
        if let Some(tenant) = tenant {
            let mut under_way = TENANTS.lock().unwrap_or_else(PoisonError::into_inner);
            let own = under_way.iter().filter(|other| *other == tenant).count();
            if own >= OF_A_TENANT || under_way.len() >= OF_TENANTS {
                return Err(NotTried::TooMany);
            }
            under_way.push(tenant.clone());
        }
        let tenant = tenant.cloned();
        Ok(Self { _place, tenant })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(tenant) = &self.tenant {
            let mut under_way = TENANTS.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = under_way.iter().position(|other| other == tenant) {
                under_way.swap_remove(at);
            }
        }
    }
}

/// What came of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Tried {
    /// Whether a delivery with this answer counts as delivered.
    pub accepted: bool,
    #[serde(flatten)]
    pub exchange: Tapped,
}

/// Why nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTried {
    #[error("there is no such subscription")]
    Unknown,
    #[error("its endpoint has not agreed to get anything: have it asked again (`verify`)")]
    Unverified,
    #[error("it is a shadow (`shadow: true`): nothing is sent of it")]
    Shadow,
    #[error("the event cannot be decoded: {0}")]
    Undecodable(String),
    #[error("the schema registry of its source does not answer: {0}")]
    NoSchema(String),
    #[error("as many tests are under way already as may be at once")]
    TooMany,
}

impl Pipeline {
    /// The identity of the subscription that a name or a uid means.
    pub fn identity(&self, which: &str) -> Option<Uid> {
        let routes = self.routes.load();
        let target = match which.contains(':') {
            true => routes.by_uid(&Uid::from_stored(which)),
            false => routes.by_name(which),
        };
        target.map(|target| target.subscription.uid.clone())
    }

    /// Sends `event` to the endpoint of a subscription once, whether or not that matches it.
    pub async fn try_out(
        &self,
        _turn: Turn,
        uid: &Uid,
        event: Arc<Event>,
    ) -> Result<Tried, NotTried> {
        let target = self.routes.load().by_uid(uid).cloned();
        let target = target.ok_or(NotTried::Unknown)?;
        let Subscription {
            uid,
            spec,
            endpoint,
            ..
        } = &target.subscription;
        if spec.shadow {
            return Err(NotTried::Shadow);
        }
        if target.is_unverified() {
            return Err(NotTried::Unverified);
        }
        let json = self.said_by(&event).await?;
        let now = Timestamp::now();
        let first = Delivery::first(event, spec.name.clone(), uid.clone(), now)
            .of_tenant(spec.tenant.clone());
        let mut delivery = Delivery {
            id: DeliveryId::of_test(&first.event.id, uid, now),
            ..first
        };
        let mut seen = Seen::default();
        let mut exchange = None;
        let attempt = match self.breach(&target, &delivery.event, json.as_ref()) {
            Some(why) => Attempt {
                started_at: now,
                took: Duration::ZERO,
                outcome: Outcome::Invalid(why),
            },
            None => {
                let deadline = spec.timeout.min(LONGEST);
                let rendered = target
                    .renderer
                    .render(&delivery, json.as_ref(), endpoint, deadline);
                let rendered = rendered.map(|mut outgoing| {
                    outgoing
                        .headers
                        .insert(MARK, HeaderValue::from_static("true"));
                    outgoing
                });
                if let (Ok(outgoing), true) = (&rendered, self.journal.wants_bodies()) {
                    exchange = Some(exchange_of(outgoing, endpoint, &outgoing.body));
                }
                let facts = delivery.event.facts();
                self.send(rendered, &target, facts, Some(&mut seen)).await
            }
        };
        let accepted = target.subscription.answers.accept(&attempt.outcome);
        note(&mut delivery, &attempt, accepted);
        let (shown, then) = (&target.endpoint_shown, Then::Test);
        self.journal
            .attempted(&delivery, shown, &attempt, then, exchange.as_ref());
        self.taps.tell(&delivery, &target, &attempt, then, &seen);
        let (subscription, result) = (&spec.name, attempt.outcome.label());
        info!(%subscription, event = %delivery.event.id, endpoint = %shown, %result, "a test was sent, as somebody has asked");
        let exchange = self.taps.shown(&delivery, &target, &attempt, then, &seen);
        let exchange = exchange.expect("an attempt that was just written can be read");
        Ok(Tried { accepted, exchange })
    }

    /// What an event says, where its source decodes.
    async fn said_by(&self, event: &Event) -> Result<Option<SharedJson>, NotTried> {
        let Some(decoder) = self.decoder(&event.source) else {
            return Ok(None);
        };
        match decoder.decode(event, PATIENCE).await {
            Ok(decoded) => Ok(decoded.map(SharedJson::of_decoded)),
            Err(Problem::Undecodable(why)) => Err(NotTried::Undecodable(why)),
            Err(Problem::Unavailable(why)) => Err(NotTried::NoSchema(why)),
        }
    }

    /// What is wrong with an event by the contracts of its source and of the subscription.
    fn breach(&self, target: &Target, event: &Event, json: Option<&SharedJson>) -> Option<String> {
        let rules = self.rules(&event.source);
        let of_source = rules.as_ref().map(|rules| &rules.contract);
        let body = LazyJson::new(read_as(event, json));
        let mut contracts = of_source.into_iter().chain(target.contract());
        contracts.find_map(|contract| contract.check(event.body.len(), &body).err())
    }
}
