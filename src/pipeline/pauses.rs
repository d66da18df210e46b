//! Pauses: sources from which somebody wants nothing taken for now.
//!
//! What is in hand goes on, and so does what is parked; what is new stays on its broker, whose
//! limits still apply. It is kept in the store, so that a restart resumes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Mutex, watch};
use tracing::{error, info};

use super::{Feeding, Pipeline, SourcePlan};
use crate::store::{Store, SubscriptionStanding};

/// All sources, by name.
pub struct Pauses(BTreeMap<Arc<str>, Pause>);

struct Pause {
    /// Held by who changes it, so that the store and `held` say the same.
    turn: Mutex<()>,
    held: watch::Sender<bool>,
    gauge: Gauge,
}

impl Pauses {
    pub fn new<'a>(sources: impl Iterator<Item = &'a SourcePlan>, store: &Store) -> Self {
        let pause = |source: &SourcePlan| {
            let standing = store.source_standing(&source.name).unwrap_or_else(|error| {
                error!(source = %source.name, %error, "the source's state cannot be read; it is taken as active");
                SubscriptionStanding::default()
            });
            if standing.paused {
                info!(source = %source.name, "the source is paused: nothing is taken from it until it is resumed");
            }
            let gauge = source.meters.paused_by_operator.clone();
            gauge.set(standing.paused.into());
            let held = watch::channel(standing.paused).0;
            let turn = Mutex::new(());
            (source.name.clone(), Pause { turn, held, gauge })
        };
        Self(sources.map(pause).collect())
    }

    /// The same intakes, which admit nothing while their sources are paused.
    pub fn hold(&self, mut feeding: Feeding) -> Feeding {
        let sources = std::mem::take(&mut feeding.intakes.sources).into_iter();
        let held = sources.map(|(name, intake)| {
            let intake = match self.0.get(&name) {
                Some(pause) => intake.held_by(pause.held.subscribe()),
                None => intake,
            };
            (name, intake)
        });
        feeding.intakes.sources = held.collect();
        feeding
    }
}

impl Pipeline {
    /// All sources, and whether they are paused.
    pub fn intakes(&self) -> Vec<(Arc<str>, bool)> {
        let Pauses(all) = &self.source_pauses;
        let all = all.iter();
        all.map(|(name, pause)| (name.clone(), *pause.held.borrow()))
            .collect()
    }

    /// Pauses or resumes a source, durably. `false` when there is none of this name.
    pub async fn set_source_paused(&self, source: &str, paused: bool) -> anyhow::Result<bool> {
        let Some(pause) = self.source_pauses.0.get(source) else {
            return Ok(false);
        };
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
