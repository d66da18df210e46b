//! Attempts under way, for whoever asks where a delivery is just now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Pipeline;
use super::target::Target;
use crate::delivery::{Delivery, DeliveryId};
use crate::event::Event;

/// All attempts under way; as many as the windows let in.
#[derive(Default)]
pub struct UnderWay(Mutex<Places>);

#[derive(Default)]
struct Places {
    taken: Vec<Option<Place>>,
    free: Vec<usize>,
}

struct Place {
    event: Arc<Event>,
    target: Arc<Target>,
    delivery: DeliveryId,
    generation: u32,
    attempt: u32,
    since: Timestamp,
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
    pub fn enter(&self, delivery: &Delivery, target: &Arc<Target>) -> usize {
        let place = Some(Place {
            event: delivery.event.clone(),
            target: target.clone(),
            delivery: delivery.id.clone(),
            generation: delivery.generation,
            attempt: delivery.progress.attempts + 1,
            since: Timestamp::now(),
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

    pub fn leave(&self, at: usize) {
        let mut places = self.lock();
        let left = places.taken[at].take();
        places.free.push(at);
        drop(places);
        // An event may be freed here, and not under the lock.
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipeline {
    /// The attempts at deliveries of `event` that are under way on this instance.
    pub fn under_way(&self, event: &str) -> Vec<Running> {
        let places = self.under_way.lock();
        let of_event = |place: &&Place| place.event.id.as_str() == event;
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
    fn shown(&self) -> Running {
        let subscription = &self.target.subscription;
        Running {
            event: self.event.id.to_string(),
            delivery: self.delivery.to_string(),
            generation: self.generation,
            subscription: subscription.spec.name.to_string(),
            uid: subscription.uid.to_string(),
            endpoint: self.target.endpoint_shown.clone(),
            topic: self.event.topic.to_string(),
            r#type: self.event.kind.to_string(),
            source: self.event.source.to_string(),
            attempt: self.attempt,
            since: self.since,
        }
    }
}
