//! Decoding: when an event is looked into, and what becomes of it where that cannot be done.
//!
//! A fresh event of a source with `decode:` is decoded once, after it is known that somebody could
//! want it and before it is routed, so that filters, formats and templates see what it says. While
//! its schema registry does not answer it waits with its receipt open, and its source with it; no
//! other source does. A receipt must not get old, so after ten minutes what waits is held on the
//! broker, and tried again when it comes back. A delivery that comes back carries the bytes that
//! came, and is decoded again if its endpoint looks into them.
//!
//! What cannot be decoded is dead-lettered as it came. A fresh one is nobody's letter, since nobody
//! knows yet whom it is for: sent again, it is decoded and routed anew.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tracing::warn;
use url::Url;

use super::door::Entrance;
use super::intake::take_unmatched;
use super::keeper::Keeper;
use super::resolve::bury;
use super::suspects::Witness;
use super::{Job, Pipeline, Ticket};
use crate::broker::{Filling, Wait};
use crate::decode::{Decoder, Fetch, Fetched, Problem};
use crate::deliver::fetch::Fetcher;
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::Event;
use crate::render::SharedJson;

/// How long a fresh event waits for its registry: well below the 30 minutes that RabbitMQ lets a
/// receipt wait.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// The same of one that comes back, whose window all sources share.
const PATIENCE_DUE: Duration = Duration::from_secs(1);
/// What an undecodable event has instead of an answer.
const RESULT: &str = "undecodable";

/// A schema registry, asked over HTTP.
pub struct OverHttp(pub Fetcher);

#[async_trait]
impl Fetch for OverHttp {
    async fn get(&self, url: &Url) -> Result<Fetched, String> {
        let (status, body) = self
            .0
            .get(url)
            .await
            .map_err(|failure| format!("{}: {}", failure.class.as_str(), failure.detail))?;
        Ok(Fetched { status, body })
    }
}

/// What is to be done with an event.
pub enum Seen {
    /// To be routed by what it says, where that is not what its bytes say.
    Says(Option<SharedJson>),
    /// It could be for nobody, so there was no need to look.
    ForNobody,
    Undecodable(String),
    NotYet,
}

impl Pipeline {
    /// How events of `source` are decoded, if they are.
    pub fn decoder(&self, source: &str) -> Option<Arc<Decoder>> {
        self.sources.all().get(source)?.decoder.clone()
    }

    /// The sources with a schema registry, and why it cannot be asked where that is so.
    pub fn registries(&self) -> Vec<(Arc<str>, Option<String>)> {
        let sources = self.sources.all();
        let decoders = sources
            .values()
            .filter_map(|source| source.decoder.as_ref());
        let with_registry = decoders.filter(|decoder| decoder.has_registry());
        with_registry
            .map(|decoder| (decoder.source().clone(), decoder.why_waiting()))
            .collect()
    }

    pub(super) async fn look_into(
        &self,
        event: &Event,
        decoder: &Decoder,
        patience: Duration,
    ) -> Seen {
        if !self.routes.load().has_candidate(event) {
            return Seen::ForNobody;
        }
        match decoder.decode(event, patience).await {
            Ok(decoded) => Seen::Says(decoded.map(SharedJson::of_decoded)),
            Err(Problem::Undecodable(why)) => Seen::Undecodable(why),
            Err(Problem::Unavailable(_)) => Seen::NotYet,
        }
    }

    /// Decodes a delivery that has come back and offers it to its lane.
    pub(super) async fn offer_decoded(self: Arc<Self>, mut job: Job, decoder: Arc<Decoder>) {
        let turn = decoder.turn().await;
        let decoded = decoder.decode(&job.delivery.event, PATIENCE_DUE).await;
        drop(turn);
        match decoded {
            Ok(decoded) => {
                job.json = decoded.map(SharedJson::of_decoded);
                if let Some(job) = self.unless_invalid(job) {
                    self.offer(job, Entrance::Other).await;
                }
            }
            Err(Problem::Undecodable(why)) => {
                note(&mut job.delivery, why);
                bury(job, Reason::DecodeFailed).await;
            }
            // Its receiver has no part in this: it is not given up for it.
            Err(Problem::Unavailable(_)) => {
                let wait = Wait {
                    kind: WaitKind::Hold,
                    delay: decoder.next_look(),
                };
                self.park(job, wait).await;
            }
        }
    }

    /// Decodes an event that has come back before it was known whom it is for, and routes it.
    pub(super) async fn route_decoded(
        self: Arc<Self>,
        keeper: Arc<Keeper>,
        window: Filling,
        delivery: Delivery,
        ticket: Ticket,
        _witness: Witness,
    ) {
        let Some(decoder) = self.decoder(&delivery.event.source) else {
            // It has changed meanwhile: the broker hands it out again.
            return;
        };
        let turn = decoder.turn().await;
        let seen = self
            .look_into(&delivery.event, &decoder, PATIENCE_DUE)
            .await;
        drop(turn);
        let json = match seen {
            Seen::Says(json) => json,
            Seen::ForNobody => None,
            Seen::Undecodable(why) => return bury_undecodable(keeper, delivery, ticket, why).await,
            Seen::NotYet => return hold(keeper, delivery, ticket, decoder.next_look()).await,
        };
        let rules = self.rules(&delivery.event.source);
        let unmatched = rules.map_or_else(Default::default, |rules| rules.unmatched);
        take_unmatched(&self, &keeper, &window, delivery, ticket, json, unmatched).await;
    }
}

/// Holds an event that cannot be decoded yet.
pub(super) async fn hold(keeper: Arc<Keeper>, delivery: Delivery, ticket: Ticket, delay: Duration) {
    keeper.hold(&delivery, delay).await;
    ticket.resolved();
}

/// Dead-letters an event that cannot be decoded, as it came.
pub(super) async fn bury_undecodable(
    keeper: Arc<Keeper>,
    mut delivery: Delivery,
    ticket: Ticket,
    why: String,
) {
    note(&mut delivery, why);
    let reason = Reason::DecodeFailed;
    keeper.dead_letter(&delivery, reason).await;
    let why = delivery.progress.last_excerpt.as_deref();
    warn!(event = %delivery.event.id, delivery = %delivery.id, %reason, why = why.unwrap_or_default(), origin = %delivery.event.origin, "dead-lettered");
    ticket.resolved();
}

fn note(delivery: &mut Delivery, why: String) {
    delivery.progress.last_result = Some(RESULT.to_owned());
    delivery.progress.last_excerpt = Some(why);
}
