//! Looking ahead: what an order is about may lie behind more records than are held in memory.
//!
//! A reader outside the group goes once through the rest of such partitions, up to what was parked
//! when the order was given, and hands over what the order is about. The partition notes it as in
//! hand beyond what was received ([`Watermark::take_ahead`](super::watermark::Watermark::take_ahead)),
//! so that it is not handed out again when the group's own reader comes by.

use std::sync::Arc;

use rdkafka::message::Message as _;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::waiting::Waiting;
use super::walk::{SILENCE, Stretch, Walked, walk};
use super::{Kafka, names};
use crate::broker::parked::Deed;

/// Found and not taken over yet.
const FOUND: usize = 16;

/// What a walk meets.
pub enum Met {
    Found(Box<Found>),
    /// The end: all of it was looked at.
    End,
}

/// A record that an order is about.
pub struct Found {
    pub place: (Arc<str>, i32),
    pub waiting: Waiting,
    pub deed: Deed,
}

/// A partition that holds more than is in memory.
pub struct Behind {
    pub place: (Arc<str>, i32),
    /// The first record that is not in memory.
    pub offset: i64,
    /// What was parked up to then is looked at.
    pub given_ms: i64,
}

/// One walk under way. Dropped, it ends.
pub struct LookAhead {
    /// Where it goes.
    pub places: Vec<(Arc<str>, i32)>,
    met: mpsc::Receiver<Met>,
}

impl LookAhead {
    pub fn begin(kafka: &Arc<Kafka>, from: Vec<Behind>) -> Self {
        let (found, met) = mpsc::channel(FOUND);
        let kafka = kafka.clone();
        let places = from.iter().map(|behind| behind.place.clone()).collect();
        info!(broker = %kafka.settings.name, partitions = from.len(), "looking further ahead on the tiers for what an order is about");
        tokio::task::spawn_blocking(move || {
            let early = match look(&kafka, &from, &found) {
                Ok(Walked::Whole) => {
                    let _ = found.blocking_send(Met::End);
                    return;
                }
                Ok(Walked::Enough) => return,
                Ok(Walked::Silent) => format!("the cluster has said nothing for {SILENCE:?}"),
                Err(error) => format!("{error:#}"),
            };
            warn!(broker = %kafka.settings.name, error = early, "looking ahead for what an order is about came to an early end, trying again");
        });
        Self { places, met }
    }
}

/// What is met next; `None` when the walk came to an early end. Waits for ever where nothing is
/// looked for.
pub async fn next_met(look_ahead: &mut Option<LookAhead>) -> Option<Met> {
    match look_ahead {
        Some(LookAhead { met, .. }) => met.recv().await,
        None => std::future::pending().await,
    }
}

fn look(kafka: &Kafka, from: &[Behind], found: &mpsc::Sender<Met>) -> anyhow::Result<Walked> {
    let group = &kafka.settings.group;
    let mut stretch = Stretch::new();
    let mut last_ms = 0;
    for Behind {
        place: (topic, partition),
        offset,
        given_ms,
    } in from
    {
        let (_, high) =
            kafka
                .admin
                .inner()
                .fetch_watermarks(topic, *partition, super::client::ASK)?;
        if *offset < high {
            stretch.insert((topic.to_string(), *partition), (*offset, high));
        }
        last_ms = last_ms.max(*given_ms);
    }
    walk(&kafka.connection, group, stretch, &mut |message| {
        let Some((kind, delay)) = names::read_tier(group, message.topic()) else {
            return true;
        };
        if message
            .timestamp()
            .to_millis()
            .is_none_or(|ms| ms > last_ms)
        {
            return !found.is_closed();
        }
        let topic: Arc<str> = message.topic().into();
        let waiting = Waiting::new(message, &topic, delay);
        let Some(deed) = waiting.ordered(&kafka.orders, kind) else {
            return !found.is_closed();
        };
        let place = (topic, message.partition());
        let of_order = Found {
            place,
            waiting,
            deed,
        };
        found.blocking_send(Met::Found(Box::new(of_order))).is_ok()
    })
}
