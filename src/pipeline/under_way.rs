//! Attempts under way: for whoever asks where a delivery is just now, and for [`super::release`],
//! which takes the tickets of those that hang.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::keeper::Keeper;
use super::target::Target;
use super::ticket::Ticket;
use super::{Job, Pipeline};
use crate::broker::{Filling, Wait};
use crate::delivery::Delivery;

/// A receipt becomes no older than a minute: what has had no answer for so long is released however
/// empty its window is. Waiting for a lane comes before it, and parking after.
const OLD: Duration = Duration::from_secs(45);

/// The places of each message, and since when.
type Messages = HashMap<usize, Vec<(Instant, usize)>>;

/// All attempts under way; as many as the windows let in, and what was parked beside its request,
/// which is bounded by the concurrency of the endpoints.
#[derive(Default)]
pub struct UnderWay(Mutex<Places>);

#[derive(Default)]
struct Places {
    taken: Vec<Option<Place>>,
    free: Vec<usize>,
}

/// One attempt.
pub struct Place {
    pub delivery: Delivery,
    pub target: Arc<Target>,
    pub since: Timestamp,
    pub began: Instant,
    keeper: Arc<Keeper>,
    ticket: Ticket,
    window: Filling,
    /// It cannot be parked, so it is not released.
    stays: bool,
}

/// What is parked beside its request.
pub struct Hanging {
    pub delivery: Delivery,
    pub target: Arc<Target>,
    pub keeper: Arc<Keeper>,
    pub ticket: Ticket,
    pub wait: Wait,
    /// The place of its request.
    pub at: usize,
}

/// An attempt that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub event: String,
    pub delivery: String,
    pub generation: u32,
    pub subscription: String,
    pub uid: String,
    /// Whose the subscription is.
    pub tenant: Option<Arc<str>>,
    pub endpoint: String,
    pub topic: String,
    pub r#type: String,
    pub source: String,
    /// From 1.
    pub attempt: u32,
    pub since: Timestamp,
}

impl UnderWay {
    /// Takes the job's ticket; [`UnderWay::leave`] gives it back.
    pub fn enter(&self, job: &mut Job) -> usize {
        let place = Some(Place {
            delivery: job.delivery.clone(),
            target: job.target.clone(),
            since: Timestamp::now(),
            began: Instant::now(),
            keeper: job.keeper.clone(),
            ticket: std::mem::replace(&mut job.ticket, Ticket::gone()),
            window: job.window.clone(),
            stays: false,
        });
        let mut places = self.lock();
        match places.free.pop() {
            Some(at) => {
                places.taken[at] = place;
                at
            }
            None => {
                places.taken.push(place);
                places.taken.len() - 1
            }
        }
    }

    /// The ticket, or none when it was [released](UnderWay::release).
    pub fn leave(&self, at: usize) -> Ticket {
        let mut places = self.lock();
        let left = places.taken[at].take();
        places.free.push(at);
        drop(places);
        // An event may be freed here, and not under the lock.
        left.map_or_else(Ticket::gone, |place| place.ticket)
    }

    /// What hangs in windows of which half does, and what is [`OLD`]: how many messages would make it a
    /// quarter and leave none that is old, and the places of each, the oldest message first.
    pub fn to_release(&self, now: Instant) -> Vec<(usize, Vec<Vec<usize>>)> {
        let places = self.lock();
        let mut windows: HashMap<usize, (usize, Messages)> = HashMap::new();
        for (at, place) in places.taken.iter().enumerate() {
            let Some(place) = place.as_ref().filter(|place| place.hangs(now)) else {
                continue;
            };
            let window = windows.entry(place.window.number());
            let (_, messages) = window.or_insert_with(|| (place.window.size(), HashMap::new()));
            let message = Arc::as_ptr(&place.delivery.event).addr();
            messages.entry(message).or_default().push((place.began, at));
        }
        drop(places);
        let mut old = Vec::new();
        for (size, messages) in windows.into_values() {
            let mut messages: Vec<_> = messages.into_values().collect();
            messages.sort_unstable_by_key(|places| places.iter().min().copied());
            let count = count_to_release(&messages, size, now);
            if count == 0 {
                continue;
            }
            let places = |message: Vec<(Instant, usize)>| message.into_iter().map(|(_, at)| at);
            let messages = messages.into_iter().map(|one| places(one).collect());
            old.push((count, messages.collect()));
        }
        old
    }

    /// Takes the ticket of one that still hangs, if `park` says for how long it may be parked.
    pub fn release(
        &self,
        at: usize,
        park: impl FnOnce(&mut Place) -> Option<Wait>,
    ) -> Option<Hanging> {
        let mut places = self.lock();
        let place = places.taken.get_mut(at)?.as_mut()?;
        if !place.hangs(Instant::now()) {
            return None;
        }
        let before = place.delivery.clone();
        let wait = park(place)?;
        Some(Hanging {
            delivery: std::mem::replace(&mut place.delivery, before),
            target: place.target.clone(),
            keeper: place.keeper.clone(),
            ticket: std::mem::replace(&mut place.ticket, Ticket::gone()),
            wait,
            at,
        })
    }

    /// Gives the ticket of a delivery that could not be parked back to its request, which then has
    /// it for good; `None` says so. If the request has ended, it is the caller's.
    pub fn take_back(&self, at: usize, released: &Delivery, ticket: Ticket) -> Option<Ticket> {
        let mut places = self.lock();
        let place = places.taken.get_mut(at).and_then(Option::as_mut);
        // The released one has counted the attempt that its request has not ended yet.
        let is_its_own = |place: &&mut Place| {
            let running = &place.delivery;
            place.ticket.is_gone()
                && running.id == released.id
                && running.generation == released.generation
                && running.progress.attempts + 1 == released.progress.attempts
        };
        match place.filter(is_its_own) {
            Some(place) => {
                place.ticket = ticket;
                place.stays = true;
                None
            }
            None => Some(ticket),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the messages of a window of `size`, sorted by age, are too many or too old.
fn count_to_release(messages: &[Vec<(Instant, usize)>], size: usize, now: Instant) -> usize {
    let is_old = |places: &&Vec<(Instant, usize)>| {
        let began = places.iter().map(|(began, _)| *began).min();
        began.is_some_and(|began| now.saturating_duration_since(began) >= OLD)
    };
    let old = messages.iter().take_while(is_old).count();
    match messages.len() * 2 >= size {
        true => old.max(messages.len() - size / 4),
        false => old,
    }
}

impl Pipeline {
    /// The attempts at deliveries of `event` that are under way on this instance.
    pub fn under_way(&self, event: &str) -> Vec<Running> {
        let places = self.under_way.lock();
        let of_event = |place: &&Place| place.delivery.event.id.as_str() == event;
        places
            .taken
            .iter()
            .flatten()
            .filter(of_event)
            .map(Place::shown)
            .collect()
    }
}

impl Place {
    /// Has its ticket still, and no answer for longer than is usual in a window that fills, or for
    /// longer than is good in any.
    fn hangs(&self, now: Instant) -> bool {
        let slow_after = self.target.subscription.spec.slow_after;
        let since = now.saturating_duration_since(self.began);
        let is_slow = since >= slow_after && self.window.is_half_full();
        !self.ticket.is_gone() && !self.stays && (is_slow || since >= OLD)
    }

    fn shown(&self) -> Running {
        let (delivery, event) = (&self.delivery, &self.delivery.event);
        let subscription = &self.target.subscription;
        Running {
            event: event.id.to_string(),
            delivery: delivery.id.to_string(),
            generation: delivery.generation,
            subscription: subscription.spec.name.to_string(),
            uid: subscription.uid.to_string(),
            tenant: subscription.spec.tenant.clone(),
            endpoint: self.target.endpoint_shown.clone(),
            topic: event.topic.to_string(),
            r#type: event.kind.to_string(),
            source: event.source.to_string(),
            attempt: delivery.progress.attempts + 1,
            since: self.since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_a_window_or_what_is_old_is_released() {
        let began = Instant::now();
        let now = began + OLD;
        let young = now - Duration::from_secs(3);
        let messages = |old: usize, all: usize| -> Vec<Vec<(Instant, usize)>> {
            let began = |at| if at < old { began } else { young };
            (0..all).map(|at| vec![(began(at), at)]).collect()
        };
        let count = |old, all| count_to_release(&messages(old, all), 8, now);
        assert_eq!([count(0, 3), count(1, 3), count(3, 3)], [0, 1, 3]);
        // Down to a quarter of the window.
        assert_eq!([count(0, 4), count(1, 8), count(7, 8)], [2, 6, 7]);
    }
}
