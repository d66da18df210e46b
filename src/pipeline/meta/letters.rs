//! Dead letters, gathered until they are told of: those of a subscription together, and while there
//! are more and more of them once in a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::delivery::{Delivery, DeliveryId, Reason};
use crate::event::EventId;
use crate::subscription::Uid;

/// From the first one until it is told of them.
const GATHER: Duration = Duration::from_secs(5);
/// From then until the next time.
const DISTANCE: Duration = Duration::from_secs(60);
/// Subscriptions and sources at once; of more nothing is told.
const MOST: usize = 10_000;

/// By the subscription's uid, or by the source of what has no subscription.
#[derive(Default)]
pub struct Gathered(BTreeMap<(bool, Arc<str>), Seen>);

struct Seen {
    letters: Option<Letters>,
    /// When they are told of; or, where there are none, forgotten.
    due: Instant,
}

/// Dead letters that are told of together.
#[derive(Debug, Clone, PartialEq)]
pub struct Letters {
    /// Its name when the last of them was made.
    pub subscription: Option<(Arc<str>, Uid)>,
    pub source: Arc<str>,
    pub count: u64,
    pub reasons: BTreeMap<&'static str, u64>,
    pub first: Named,
    pub last: Named,
}

/// Where one is found again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Named {
    delivery: DeliveryId,
    event: EventId,
    at: Timestamp,
}

impl Named {
    fn of(delivery: &Delivery) -> Self {
        Self {
            delivery: delivery.id.clone(),
            event: delivery.event.id.clone(),
            at: Timestamp::now(),
        }
    }
}

impl Gathered {
    /// One more; `false` when there is no room to remember it.
    pub fn add(&mut self, delivery: &Delivery, reason: Reason, now: Instant) -> bool {
        let source = &delivery.event.source;
        let is_addressed = !delivery.subscription.is_empty();
        let subscription =
            is_addressed.then(|| (delivery.subscription.clone(), delivery.uid.clone()));
        let key = match &subscription {
            Some((_, uid)) => (true, uid.text()),
            None => (false, source.clone()),
        };
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            return false;
        }
        let seen = self.0.entry(key).or_insert_with(|| Seen {
            letters: None,
            due: now + GATHER,
        });
        let named = Named::of(delivery);
        let letters = seen.letters.get_or_insert_with(|| Letters {
            subscription: None,
            source: source.clone(),
            count: 0,
            reasons: BTreeMap::new(),
            first: named.clone(),
            last: named.clone(),
        });
        letters.subscription = subscription;
        letters.last = named;
        letters.count += 1;
        *letters.reasons.entry(reason.as_str()).or_default() += 1;
        true
    }

    /// Those to be told of by now, so many at the most; the rest the next time.
    pub fn due(&mut self, now: Instant, most: usize) -> Vec<Letters> {
        let mut due = Vec::new();
        self.0.retain(|_, seen| {
            if now < seen.due || due.len() >= most {
                return true;
            }
            let letters = seen.letters.take();
            let are_some = letters.is_some();
            due.extend(letters);
            seen.due = now + DISTANCE;
            are_some
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::notice::{Notice, UP};
    use super::*;

    fn delivery(subscription: &str) -> Delivery {
        let event = Notice::up(&"rabbit".into(), Timestamp::UNIX_EPOCH).event("one");
        assert_eq!(&*event.kind, UP);
        let uid = Uid::of_config(subscription);
        Delivery::first(Arc::new(event), subscription.into(), uid, Timestamp::now())
    }

    #[test]
    fn those_of_a_subscription_are_told_of_together() {
        let (mut gathered, begin) = (Gathered::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let all = [delivery("crm"), delivery("crm"), delivery("")];
        let reasons = [Reason::NoRetry, Reason::GaveUp, Reason::Unmatched];
        for (one, reason) in all.iter().zip(reasons) {
            assert!(gathered.add(one, reason, begin));
        }
        assert_eq!(gathered.due(at(4), MOST), []);
        assert_eq!(gathered.due(at(5), 0), []);
        let due = gathered.due(at(5), MOST);
        assert_eq!(due.len(), 2);
        let [nobodys, crms] = &due[..] else { panic!() };
        assert_eq!((&nobodys.subscription, nobodys.count), (&None, 1));
        assert_eq!(crms.count, 2);
        assert_eq!(crms.reasons["no_retry"], 1);
        assert_eq!(crms.reasons["gave_up"], 1);
        assert_eq!(crms.first.delivery, all[0].id);
        assert_eq!(crms.last.delivery, all[1].id);
        // The next ones wait for longer.
        assert!(gathered.add(&all[0], Reason::NoRetry, at(7)));
        assert_eq!(gathered.due(at(64), MOST), []);
        assert_eq!(gathered.due(at(65), MOST).len(), 1);
        assert_eq!(gathered.due(at(200), MOST), []);
        assert!(gathered.0.is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_gathered() {
        let (mut gathered, now) = (Gathered::default(), Instant::now());
        for number in 0..MOST {
            assert!(gathered.add(&delivery(&number.to_string()), Reason::GaveUp, now));
        }
        assert!(!gathered.add(&delivery("one more"), Reason::GaveUp, now));
        assert!(gathered.add(&delivery("1"), Reason::GaveUp, now));
    }
}
