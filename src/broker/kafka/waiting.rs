//! What lies on a tier, in memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Message as _};

use super::headers;
use super::orders::Orders;
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::parked::Deed;
use crate::delivery::{Delivery, WaitKind};
use crate::event::Headers;

/// A message on a tier that is not a delivery of ours, as it came.
pub struct Raw {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub stamp_ms: i64,
    pub key: Option<Bytes>,
    pub headers: Headers,
    pub body: Bytes,
}

/// What lies on a tier.
pub enum Parked {
    Delivery(Box<Envelope>),
    /// A message of the start-up check.
    Marker,
    Unreadable(Box<Raw>),
}

/// A record of a tier, in memory.
pub struct Waiting {
    pub offset: i64,
    /// By the broker's clock, in milliseconds since 1970.
    pub stamp_ms: i64,
    pub due_ms: i64,
    pub bytes: usize,
    pub parked: Parked,
}

impl Waiting {
    pub fn new(message: &BorrowedMessage<'_>, topic: &Arc<str>, delay: Duration) -> Self {
        let stamp_ms = message.timestamp().to_millis().unwrap_or(0);
        Self {
            offset: message.offset(),
            stamp_ms,
            due_ms: stamp_ms + delay.as_millis() as i64,
            bytes: message.payload_len() + 1_024,
            parked: read(message, topic, stamp_ms),
        }
    }

    /// What is still to wait when this stay is over.
    pub fn remaining(&self) -> Duration {
        match &self.parked {
            Parked::Delivery(envelope) => match envelope.stay {
                Stay::Parked { remaining, .. } => remaining,
                Stay::Dead { .. } => Duration::ZERO,
            },
            Parked::Marker | Parked::Unreadable(_) => Duration::ZERO,
        }
    }

    /// The delivery as it is written to its next tier; with a time of the broker's clock, for all that
    /// is left of its wait then.
    pub fn moved(&self, anew_ms: Option<i64>) -> Option<Envelope> {
        let Parked::Delivery(envelope) = &self.parked else {
            return None;
        };
        let mut envelope = Envelope::clone(envelope);
        let since_ms = self.parked_ms();
        if let Stay::Parked {
            remaining, since, ..
        } = &mut envelope.stay
        {
            if let Some(now_ms) = anew_ms {
                let rest_ms = (self.due_ms - now_ms).max(1);
                *remaining += Duration::from_millis(rest_ms.unsigned_abs());
            }
            *since = Timestamp::from_millisecond(since_ms).ok();
        }
        Some(envelope)
    }

    /// When its wait began, by the broker's clock: on this tier, or on one before.
    fn parked_ms(&self) -> i64 {
        let since = match &self.parked {
            Parked::Delivery(envelope) => match envelope.stay {
                Stay::Parked { since, .. } => since,
                Stay::Dead { .. } => None,
            },
            Parked::Marker | Parked::Unreadable(_) => None,
        };
        since.map_or(self.stamp_ms, |since| {
            since.as_millisecond().min(self.stamp_ms)
        })
    }

    /// What an order says about it.
    pub fn ordered(&self, orders: &Orders, kind: WaitKind) -> Option<Deed> {
        let Parked::Delivery(envelope) = &self.parked else {
            return None;
        };
        let Delivery {
            subscription, uid, ..
        } = &envelope.delivery;
        orders.about(kind, self.parked_ms(), subscription, uid)
    }
}

fn read(message: &BorrowedMessage<'_>, topic: &Arc<str>, stamp_ms: i64) -> Parked {
    let found = headers::read(message);
    if found.get(envelope::PROBE).is_some() {
        return Parked::Marker;
    }
    let body = message
        .payload()
        .map(Bytes::copy_from_slice)
        .unwrap_or_default();
    match Envelope::read(found.clone(), body.clone()) {
        Ok(envelope) if matches!(envelope.stay, Stay::Parked { .. }) => {
            Parked::Delivery(Box::new(envelope))
        }
        _ => Parked::Unreadable(Box::new(Raw {
            topic: topic.clone(),
            partition: message.partition(),
            offset: message.offset(),
            stamp_ms,
            key: message.key().map(Bytes::copy_from_slice),
            headers: found,
            body,
        })),
    }
}
