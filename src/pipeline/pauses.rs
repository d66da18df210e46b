//! Pauses: sources from which somebody wants nothing taken for now.
//!
//! What is in hand goes on, and so does what is parked; what is new stays on its broker, whose
//! limits still apply. It is kept in the store, so that a restart resumes nothing.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Mutex, watch};
use tracing::{error, info};

use super::{Pipeline, SourcePlan};
use crate::store::{Store, SubscriptionStanding};

/// Whether a source is paused. It outlives a change of the source.
pub struct Pause {
    /// Held by who changes it, so that the store and `held` say the same.
    turn: Mutex<()>,
    held: watch::Sender<bool>,
    gauge: Gauge,
}

impl Pause {
    pub fn new(source: &SourcePlan, store: &Store) -> Self {
        let standing = store.source_standing(&source.name).unwrap_or_else(|error| {
            error!(source = %source.name, %error, "the source's state cannot be read; it is taken as active");
            SubscriptionStanding::default()
        });
        if standing.paused {
            info!(source = %source.name, "the source is paused: nothing is taken from it until it is resumed");
        }
        let gauge = source.meters.paused_by_operator.clone();
        gauge.set(standing.paused.into());
        Self {
            turn: Mutex::new(()),
            held: watch::channel(standing.paused).0,
            gauge,
        }
    }

    /// While it is true its intake admits nothing.
    pub fn held(&self) -> watch::Receiver<bool> {
        self.held.subscribe()
    }

    /// Its source is no longer taken from.
    pub fn forget(&self) {
        self.gauge.set(0);
    }
}

impl Pipeline {
    /// All sources, and whether they are paused.
    pub fn intakes(&self) -> Vec<(Arc<str>, bool)> {
        let sources = self.sources.all();
        let each = sources.iter();
        each.map(|(name, source)| (name.clone(), *source.pause.held.borrow()))
            .collect()
    }

    /// Pauses or resumes a source, durably. `false` when there is none of this name.
    pub async fn set_source_paused(&self, source: &str, paused: bool) -> anyhow::Result<bool> {
        let known = self.sources.all().get(source).cloned();
        let Some(known) = known else {
            return Ok(false);
        };
        let pause = &known.pause;
        let _turn = pause.turn.lock().await;
        let standing = SubscriptionStanding { paused };
        self.store.set_source_standing(source, standing).await?;
        if pause.held.send_replace(paused) != paused {
            pause.gauge.set(paused.into());
            info!(source, paused, "a source was paused or resumed");
        }
        Ok(true)
    }
}
