//! Dead letters: what lies among them, going through them, and a new life for one.
//!
//! They are gone through once, oldest first, as far as they reached when they were opened, so that
//! what dies meanwhile is left for the next time. Looking disturbs nobody. Changing holds the
//! group's replay lock, one at a time over all instances: two who send letters again at once would
//! send some of them twice. Which letters are meant, and what is done with them, is the callers'
//! business.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use super::envelope::{Envelope, Stay};
use super::{Broker, Refused};
use crate::delivery::{Delivery, DeliveryId, Progress, Reason};
use crate::event::{Event, EventId, Headers, Origin};
use crate::subscription::Uid;

/// How long an opener asks for the replay lock: one that was just given back takes a moment to be free.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A dead letter as it lies on the broker.
#[derive(Debug, Clone)]
pub struct Letter {
    pub delivery: Delivery,
    pub reason: Reason,
    pub dead_at: Timestamp,
    /// `false` for a reference dead letter: only the origin's coordinates, the body was refused.
    pub has_body: bool,
}

impl Letter {
    /// The letter in an envelope; `None` where it is that of a parked delivery.
    pub fn of(envelope: Envelope) -> Option<Self> {
        let Envelope {
            delivery,
            stay: Stay::Dead { reason, at },
            reference,
        } = envelope
        else {
            return None;
        };
        Some(Self {
            delivery,
            reason,
            dead_at: at,
            has_body: !reference,
        })
    }

    /// A message among the dead letters that is not an envelope of ours, shown as what it is.
    pub fn unreadable(
        origin: Origin,
        topic: Arc<str>,
        id: &str,
        headers: Headers,
        body: Bytes,
        dead_at: Timestamp,
    ) -> Self {
        let event = Event {
            id: EventId::from_outside(id.as_bytes()).unwrap_or_else(EventId::random),
            topic: topic.clone(),
            kind: topic,
            source: "".into(),
            tenant: None,
            published_at: None,
            content_type: None,
            content_encoding: None,
            key: None,
            headers,
            properties: Vec::new(),
            body,
            origin,
        };
        Self {
            delivery: Delivery {
                event: Arc::new(event),
                subscription: "".into(),
                uid: Uid::from_stored(""),
                tenant: None,
                id: DeliveryId::from_envelope(id),
                generation: 0,
                replay_of: None,
                progress: Progress::new(dead_at),
            },
            reason: Reason::EnvelopeUnreadable,
            dead_at,
            has_body: true,
        }
    }

    /// Why it cannot be sent again as it is.
    pub fn cannot_be_revived(&self) -> Option<&'static str> {
        if self.reason == Reason::EnvelopeUnreadable {
            return Some("it is not a delivery: nothing says which subscription it was for");
        }
        if !self.has_body {
            return Some(
                "its body was too large for the broker and is not in it: take it from its origin",
            );
        }
        None
    }

    /// The delivery in its next life: the same event and the same id, one generation on, and all of
    /// its progress anew, so that `max_attempts` and `give_up_after` count from `now`.
    pub fn revived(&self, now: Timestamp) -> Result<Delivery, &'static str> {
        match self.cannot_be_revived() {
            Some(why) => Err(why),
            None => Ok(Delivery {
                generation: self.delivery.generation.saturating_add(1),
                progress: Progress::new(now),
                ..self.delivery.clone()
            }),
        }
    }

    /// The same for `broker`, which it lies on.
    pub fn revived_on(&self, broker: &Arc<str>) -> Result<Delivery, Refused> {
        let revived = self.revived(Timestamp::now());
        revived.map_err(|why| Refused::Rejected {
            broker: broker.clone(),
            why: why.into(),
        })
    }

    /// A new event with another body for the same subscription, which says what it was made of.
    pub fn edited(&self, body: Bytes, now: Timestamp) -> Result<Delivery, &'static str> {
        if self.reason == Reason::EnvelopeUnreadable {
            return Err("it is not a delivery: nothing says which subscription it was for");
        }
        let event = Event {
            id: EventId::random(),
            body,
            ..Event::clone(&self.delivery.event)
        };
        let (subscription, uid) = (
            self.delivery.subscription.clone(),
            self.delivery.uid.clone(),
        );
        let first = Delivery::first(Arc::new(event), subscription, uid, now);
        Ok(Delivery {
            replay_of: Some(self.delivery.id.clone()),
            tenant: self.delivery.tenant.clone(),
            ..first
        })
    }
}

/// What the dead letters are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Looked at: disturbs nobody.
    List,
    /// Changed: holds the group's replay lock until dropped, one at a time over all instances.
    Change,
}

/// Why the dead letters were not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotOpened {
    /// Somebody else holds the group's replay lock, or letters.
    #[error("the dead letters are in somebody else's hands: {0}")]
    Busy(String),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Goes through the dead letters once, oldest first, as far as they reached when it was opened.
///
/// Dropping it gives back whatever the broker counts as taken, in its order, and the lock; that is
/// done in the background, and quickly.
#[async_trait]
pub trait Letters: Send {
    /// How many there are to go through, where the broker tells; an upper bound.
    fn total(&self) -> Option<u64>;

    /// The next letter; `None` at the end. An error ends the pass: what was removed is gone, what
    /// was not is there, and a new pass begins with the oldest again.
    async fn next(&mut self) -> Result<Option<Letter>, Refused>;

    /// Takes the letter that `next` returned last away; `Ok` when the broker has confirmed. Only
    /// where it was opened to be changed.
    async fn remove(&mut self) -> Result<(), Refused>;

    /// Gives the letter that `next` returned last, `letter`, a new life on `broker`, whose pass this
    /// is, and takes it away.
    ///
    /// Whoever is killed before, during or after it has lost nothing, and of all letters that were
    /// given to this at most the last one is both here and in its new life. With `Refused` it
    /// is here still. A broker may keep the removal to itself until the next letter is sent again,
    /// [`Letters::next`] has come to its end, or [`Letters::close`] has returned.
    async fn send_again(&mut self, broker: &dyn Broker, letter: &Letter) -> Result<(), Refused> {
        broker.revive(letter).await?;
        self.remove().await
    }

    /// Ends the pass before its end and returns when everything is given back. For a process that
    /// exits: what dropping starts in the background would be cut off.
    async fn close(&mut self) {}
}

/// The answer to a removal that cannot be one.
pub fn nothing_to_remove(broker: &Arc<str>) -> Refused {
    Refused::Rejected {
        broker: broker.clone(),
        why: "no letter is in hand that may be removed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Place;

    fn letter() -> Letter {
        let origin = Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders".into(),
                sequence: 1,
            },
        };
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        let body = Bytes::from_static(b"{}");
        let mut letter = Letter::unreadable(
            origin,
            "orders".into(),
            "dlv_1",
            Headers::default(),
            body,
            at,
        );
        letter.reason = Reason::GaveUp;
        letter.delivery.uid = Uid::of_config("crm");
        letter.delivery.progress.attempts = 9;
        letter.delivery.progress.last_result = Some("503".into());
        letter
    }

    #[test]
    fn a_revived_letter_is_the_same_delivery_with_a_new_budget() {
        let (letter, now) = (letter(), Timestamp::now());
        let revived = letter.revived(now).unwrap();
        assert_eq!(revived.id, letter.delivery.id);
        assert_eq!(revived.event, letter.delivery.event);
        assert_eq!(revived.generation, 1);
        assert_eq!(revived.progress, Progress::new(now));
    }

    #[test]
    fn an_edited_letter_is_another_event_that_says_where_it_is_from() {
        let letter = letter();
        let edited = letter
            .edited(Bytes::from_static(b"[]"), Timestamp::now())
            .unwrap();
        assert_ne!(edited.event.id, letter.delivery.event.id);
        assert_ne!(edited.id, letter.delivery.id);
        assert_eq!(edited.replay_of, Some(letter.delivery.id.clone()));
        assert_eq!((&edited.uid, edited.generation), (&letter.delivery.uid, 0));
        assert_eq!(edited.event.body, "[]");
    }

    #[test]
    fn what_is_no_delivery_or_has_no_body_is_not_revived() {
        let mut bodiless = letter();
        bodiless.has_body = false;
        assert!(bodiless.revived(Timestamp::now()).is_err());
        let mut unreadable = letter();
        unreadable.reason = Reason::EnvelopeUnreadable;
        assert!(unreadable.revived(Timestamp::now()).is_err());
        assert!(unreadable.edited(Bytes::new(), Timestamp::now()).is_err());
    }
}
