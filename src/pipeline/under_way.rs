//! Attempts under way: for whoever asks where a delivery is just now, and for [`super::release`],
//! which takes the tickets of those that hang.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::keeper::Keeper;
use super::target::Target;
use super::ticket::Ticket;
use super::{Job, Pipeline};
use crate::broker::{Filling, Wait};
use crate::delivery::Delivery;

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

    /// What hangs in windows of which half does: how many messages would make it a quarter, and the
    /// places of each, the oldest message first.
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
            if messages.len() * 2 < size {
                continue;
            }
            let mut messages: Vec<_> = messages.into_values().collect();
            messages.sort_unstable_by_key(|places| places.iter().min().copied());
            let count = messages.len() - size / 4;
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
    /// Has its ticket still, and no answer for longer than is usual, in a window that fills.
    fn hangs(&self, now: Instant) -> bool {
        let slow_after = self.target.subscription.spec.slow_after;
        !self.ticket.is_gone()
            && !self.stays
            && now.saturating_duration_since(self.began) >= slow_after
            && self.window.is_half_full()
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
            endpoint: self.target.endpoint_shown.clone(),
            topic: event.topic.to_string(),
            r#type: event.kind.to_string(),
            source: event.source.to_string(),
            attempt: delivery.progress.attempts + 1,
            since: self.since,
        }
    }
}
