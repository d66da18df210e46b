//! Terms: what an event has to be, when its turn comes, for a subscription to take it.
//!
//! Most subscriptions have none, and carry no more than a pointer for it.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Contract;
use crate::delivery::Delivery;

/// What a subscription asks of its events besides what it matches them by.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Terms {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<MaxAge>,
    #[serde(default, skip_serializing_if = "Contract::is_none")]
    pub contract: Contract,
}

/// How old an event may be, and what becomes of one that is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxAge {
    pub after: Duration,
    pub then: Stale,
}

/// What becomes of a delivery whose event is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stale {
    /// Settled, counted and not sent.
    #[default]
    Settle,
    DeadLetter,
}

impl Terms {
    /// As a subscription keeps them.
    pub fn kept(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }

    /// What becomes of `delivery` because its event is too old at `now`; `None` while it is not.
    pub fn stale(&self, delivery: &Delivery, now: Timestamp) -> Option<Stale> {
        let MaxAge { after, then } = self.max_age?;
        (age(delivery, now) > after).then_some(then)
    }
}

/// Since the producer published the event, or since it was taken where that is not known. What
/// somebody has sent again counts from then: that it is old is known to whoever did it.
fn age(delivery: &Delivery, now: Timestamp) -> Duration {
    let is_replay = delivery.generation > 0 || delivery.replay_of.is_some();
    let published = delivery.event.published_at.filter(|_| !is_replay);
    let since = published.unwrap_or(delivery.progress.taken_at);
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::event::{Event, EventId, Headers, Origin, Place};
    use crate::subscription::Uid;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn delivery(published: Option<i64>, taken: i64) -> Delivery {
        let event = Event {
            id: EventId::kept("e1").unwrap(),
            topic: "orders.created".into(),
            kind: "orders.created".into(),
            source: "local".into(),
            tenant: None,
            published_at: published.map(at),
            content_type: None,
            content_encoding: None,
            key: None,
            headers: Headers::default(),
            properties: Vec::new(),
            body: Bytes::new(),
            origin: Origin {
                broker: "here".into(),
                place: Place::Embedded {
                    topic: "orders.created".into(),
                    sequence: 1,
                },
            },
        };
        Delivery::first(
            Arc::new(event),
            "crm".into(),
            Uid::of_config("crm"),
            at(taken),
        )
    }

    fn an_hour(then: Stale) -> Terms {
        Terms {
            max_age: Some(MaxAge {
                after: Duration::from_secs(3600),
                then,
            }),
            ..Terms::default()
        }
    }

    #[test]
    fn an_event_is_as_old_as_its_producer_says() {
        let terms = an_hour(Stale::DeadLetter);
        let old = delivery(Some(0), 3000);
        assert_eq!(terms.stale(&old, at(3600)), None);
        assert_eq!(terms.stale(&old, at(3601)), Some(Stale::DeadLetter));
        let unknown = delivery(None, 3000);
        assert_eq!(terms.stale(&unknown, at(3601)), None);
        assert_eq!(terms.stale(&unknown, at(6601)), Some(Stale::DeadLetter));
        let ahead = delivery(Some(100_000), 0);
        assert_eq!(terms.stale(&ahead, at(0)), None, "a clock that is ahead");
    }

    #[test]
    fn what_is_sent_again_counts_from_then() {
        let terms = an_hour(Stale::Settle);
        let mut again = delivery(Some(0), 90_000);
        assert_eq!(terms.stale(&again, at(90_001)), Some(Stale::Settle));
        again.generation = 1;
        assert_eq!(terms.stale(&again, at(90_001)), None);
        assert_eq!(terms.stale(&again, at(93_601)), Some(Stale::Settle));
    }

    #[test]
    fn without_terms_nothing_is_kept() {
        assert_eq!(Terms::default().kept(), None);
        assert!(an_hour(Stale::Settle).kept().is_some());
    }
}
