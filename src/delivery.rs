//! Deliveries: one event for one subscription, and how far it has come.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{Event, EventId, Headers};
use crate::subscription::Uid;

/// One event on its way to one subscription. What is parked on a broker is exactly this.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub event: Arc<Event>,
    /// The subscription's name when the delivery was made, for people and for finding a config-owned one.
    pub subscription: Arc<str>,
    /// The subscription's identity, which is never reused.
    pub uid: Uid,
    /// Whose the subscription was when the delivery was made.
    pub tenant: Option<Arc<str>>,
    pub id: DeliveryId,
    /// 0 at first, one more for each replay of its dead letter.
    pub generation: u32,
    /// The dead letter that this was made of, with another body and so another event id.
    pub replay_of: Option<DeliveryId>,
    pub progress: Progress,
}

impl Delivery {
    /// The same without what may be large: its event's body, headers and properties.
    pub fn slim(&self) -> Self {
        let event = Event {
            body: Bytes::new(),
            headers: Headers::default(),
            properties: Vec::new(),
            ..Event::clone(&self.event)
        };
        Self {
            event: Arc::new(event),
            ..self.clone()
        }
    }

    /// The same for a subscription of this tenant.
    pub fn of_tenant(self, tenant: Option<Arc<str>>) -> Self {
        Self { tenant, ..self }
    }

    /// A first delivery of `event`, taken at `now`.
    pub fn first(event: Arc<Event>, subscription: Arc<str>, uid: Uid, now: Timestamp) -> Self {
        let id = DeliveryId::of(&event.id, &uid);
        Self {
            event,
            subscription,
            uid,
            tenant: None,
            id,
            generation: 0,
            replay_of: None,
            progress: Progress::new(now),
        }
    }
}

/// How far a delivery has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// HTTP attempts made; holds are not attempts.
    pub attempts: u32,
    /// When the event was first taken from its source: `give_up_after` counts from here.
    pub taken_at: Timestamp,
    pub first_attempt_at: Option<Timestamp>,
    pub last_attempt_at: Option<Timestamp>,
    /// The last HTTP status (`503`) or error class (`timeout`).
    pub last_result: Option<String>,
    /// The start of the last response's body, or the error's text, without secrets; 512 bytes at most.
    pub last_excerpt: Option<String>,
    /// Since when it has come back to instances that know no such subscription.
    pub unknown_since: Option<Timestamp>,
}

impl Progress {
    pub fn new(taken_at: Timestamp) -> Self {
        Self {
            attempts: 0,
            taken_at,
            first_attempt_at: None,
            last_attempt_at: None,
            last_result: None,
            last_excerpt: None,
            unknown_since: None,
        }
    }
}

/// Hash of event id and subscription uid, so that a crash makes the same delivery twice, not two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeliveryId(Arc<str>);

impl DeliveryId {
    pub fn of(event: &EventId, uid: &Uid) -> Self {
        Self(Arc::from(
            EventId::hashed("dlv", &[event.as_str().as_bytes(), uid.as_str().as_bytes()]).as_str(),
        ))
    }

    /// Of a test, which is nobody's delivery and another one each time.
    pub fn of_test(event: &EventId, uid: &Uid, at: Timestamp) -> Self {
        let at = at.as_nanosecond().to_be_bytes();
        let parts = [
            event.as_str().as_bytes(),
            uid.as_str().as_bytes(),
            b"test",
            &at,
        ];
        Self(Arc::from(EventId::hashed("dlv", &parts).as_str()))
    }

    /// An id read back from an envelope, which we wrote ourselves.
    pub fn from_envelope(id: &str) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a delivery waits on the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitKind {
    /// An attempt failed and the schedule says when the next one is.
    Retry,
    /// The lane is full, rate-limited or shut, or the subscription is paused. Not an attempt.
    Hold,
}

impl WaitKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Hold => "hold",
        }
    }
}

/// Why a delivery was given up. The names are stored in envelopes and are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// `max_attempts` were made.
    AttemptsExhausted,
    /// `give_up_after` has passed since the event was taken.
    GaveUp,
    /// The answer is listed in `no_retry`.
    NoRetry,
    /// The endpoint is disabled (410, a status of `disable`, or `webhook-delivery: disable`) and `give_up_after` has passed.
    Gone,
    /// The receiver answered `webhook-delivery: abort-message`.
    Aborted,
    /// More than `max_parked` deliveries of this subscription wait on the broker.
    ParkedLimit,
    /// No subscription of this identity is known here, for longer than the grace time.
    SubscriptionUnknown,
    /// The subscription is not enabled.
    SubscriptionDisabled,
    /// The event is not what `decode` of its source says it is, or its schema is not there.
    DecodeFailed,
    /// The body is longer than `max_body`, or not as `schema` says.
    InvalidPayload,
    /// The event is older than `max_age`, which says `then: dead_letter`.
    Stale,
    /// The event matched no subscription and the source says `unmatched: dead_letter`.
    Unmatched,
    /// No HTTP request can be made of it (a header that HTTP cannot carry, for instance).
    Unsendable,
    /// The format cannot make a body of it (it is not JSON, or a template says no).
    RenderFailed,
    /// Larger than the broker takes on a retry tier.
    Unparkable,
    /// The event makes the bridge fail.
    Poison,
    /// A message on one of our own queues or topics that is not a delivery of ours.
    EnvelopeUnreadable,
}

impl Reason {
    pub const ALL: [Self; 17] = [
        Self::AttemptsExhausted,
        Self::GaveUp,
        Self::NoRetry,
        Self::Gone,
        Self::Aborted,
        Self::ParkedLimit,
        Self::SubscriptionUnknown,
        Self::SubscriptionDisabled,
        Self::DecodeFailed,
        Self::InvalidPayload,
        Self::Stale,
        Self::Unmatched,
        Self::Unsendable,
        Self::RenderFailed,
        Self::Unparkable,
        Self::Poison,
        Self::EnvelopeUnreadable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::GaveUp => "gave_up",
            Self::NoRetry => "no_retry",
            Self::Gone => "gone",
            Self::Aborted => "aborted",
            Self::ParkedLimit => "parked_limit",
            Self::SubscriptionUnknown => "subscription_unknown",
            Self::SubscriptionDisabled => "subscription_disabled",
            Self::DecodeFailed => "decode_failed",
            Self::InvalidPayload => "invalid_payload",
            Self::Stale => "stale",
            Self::Unmatched => "unmatched",
            Self::Unsendable => "unsendable",
            Self::RenderFailed => "render_failed",
            Self::Unparkable => "unparkable",
            Self::Poison => "poison",
            Self::EnvelopeUnreadable => "envelope_unreadable",
        }
    }

    /// The reason of this name, as an envelope carries it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back_by_its_name() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
        }
    }
}
