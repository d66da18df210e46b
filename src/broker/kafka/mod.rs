//! Kafka: consumer groups for events, a topic per retry and hold delay, a compacted topic of dead
//! letters.
//!
//! The way of an event: `source` takes it (where a source begins is `start`'s, and whether a topic was
//! made anew is `anew`'s), hands it to the
//! pipeline, and `partition` hears the answer; `watermark` says which offset that allows to
//! commit, and `member` commits it. The way of a parked delivery: `park` produces it to the tier
//! that [`Tiers`] names, `due` reads it back, by the broker's clock (`clock`), and either hands it
//! over or passes it on to the next tier. `orders` tells every instance what people want to become of
//! parked deliveries, `ahead` finds those that are far behind in a backlog, `parked` counts them; both `walk` the tiers outside any group.
//! `letters` goes through dead letters; `topics` makes what is ours on the cluster; `history` reads the
//! past of a source, with the same `reading` of a record as `source`; `watch` says whether the cluster
//! answers.
//!
//! Nothing here waits inside a callback of the client library, and no offset is committed that
//! passes an unsettled event.

mod adopt;
mod ahead;
mod anew;
mod client;
mod clock;
mod commits;
mod due;
mod headers;
mod history;
mod inspect;
mod lane;
mod leaders;
mod letters;
mod member;
mod moves;
mod names;
mod noted;
mod orders;
mod parked;
mod partition;
mod plan;
mod probe;
mod produce;
mod reading;
#[cfg(test)]
mod rebalances;
mod rivals;
mod source;
mod start;
mod state;
mod status;
mod topics;
mod upkeep;
mod waiting;
mod walk;
mod wanted;
mod watch;
mod watchdog;
#[doc(hidden)] // public for the benchmarks alone
pub mod watermark;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use jiff::Timestamp;
use rdkafka::admin::AdminClient;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use client::{Connection, Sasl, SaslMechanism};
pub use plan::SourceSettings;
pub use start::Start;

use super::envelope::{Dialect, Envelope};
use super::parked::{Done, Follow, Order, Waiting};
use super::state::StateLog;
use super::tiers::Tiers;
use super::{
    Broker, Health, History, Intakes, Letters, NotOpened, NotPossible, Publication, Purpose, Reach,
    Refused, Span, Wait, roster,
};
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::{EventId, HeaderValue};
use crate::subscription::TlsFiles;
use client::{Apart, Quiet};
use clock::Clock;
use member::Lost;
use orders::Orders;
use produce::{Producer, Record};
use rivals::Rivals;
use status::Status;

/// Between tries to get ready.
const BACKOFF: Duration = Duration::from_secs(2);
/// Headers above this go in front of the body; Kafka itself only bounds the whole record.
const HEADER_BYTES: usize = 256 << 10;

/// A Kafka cluster as the config says it.
#[derive(Clone)]
pub struct Settings {
    pub name: Arc<str>,
    /// Names the consumer group and every topic of ours.
    pub group: Arc<str>,
    /// For static membership; `None`: dynamic.
    pub instance: Option<Arc<str>>,
    pub bootstrap: Vec<String>,
    /// `Some` turns TLS on.
    pub tls: Option<TlsFiles>,
    pub sasl: Option<Sasl>,
    /// Further librdkafka properties; ours win.
    pub properties: BTreeMap<String, String>,
    pub tiers: Tiers,
    pub sources: Vec<SourceSettings>,
    /// `false` where we may not make topics: ours are only checked.
    pub declare: bool,
    /// Whether the group keeps its state here.
    pub keeps_state: bool,
}

pub struct Kafka {
    /// Its sources are in `sources`.
    settings: Settings,
    connection: Connection,
    sources: ArcSwap<Vec<Arc<plan::Plan>>>,
    admin: topics::Admin,
    producer: Arc<Producer>,
    clock: Arc<Clock>,
    status: Status,
    orders: Arc<Orders>,
    lost: Arc<Lost>,
    /// Counts what came back by a tier.
    came_back: channel::Sender<u64>,
    cluster: OnceLock<Arc<str>>,
}

impl Kafka {
    /// A broker that connects when it is run or asked. Errors are the config's: a property that
    /// does not exist, a file that cannot be read, a pattern that does not compile, a topic twice.
    pub fn new(mut settings: Settings) -> anyhow::Result<Arc<Self>> {
        let connection = Connection {
            bootstrap: settings.bootstrap.clone(),
            tls: settings.tls.clone(),
            sasl: settings.sasl.clone(),
            properties: settings.properties.clone(),
        };
        let sources = plan::plans(&settings.group, std::mem::take(&mut settings.sources))?;
        let clock = Arc::new(Clock::new());
        let admin: AdminClient<Quiet> = connection
            .admin()
            .create_with_context(Quiet)
            .context("Kafka client")?;
        let producer = Arc::new(Producer::new(
            settings.name.clone(),
            connection.clone(),
            clock.clone(),
        )?);
        Ok(Arc::new(Self {
            status: Status::new(settings.name.clone()),
            connection,
            sources: ArcSwap::from_pointee(sources),
            admin: Arc::new(Apart::new(admin)),
            producer,
            clock,
            orders: Arc::default(),
            lost: Arc::default(),
            came_back: channel::channel(0).0,
            cluster: OnceLock::new(),
            settings,
        }))
    }

    /// Notes other sources than it has. Those that run are not touched: the pipeline says when they are to
    /// follow. Errors are the config's, as in [`Kafka::new`]; then nothing has changed.
    pub fn set_sources(&self, sources: Vec<SourceSettings>) -> anyhow::Result<()> {
        let plans = plan::plans(&self.settings.group, sources)?;
        self.sources.store(Arc::new(plans));
        Ok(())
    }

    /// A source as it is noted now.
    fn source(&self, name: &str) -> Option<Arc<plan::Plan>> {
        let sources = self.sources.load();
        let found = sources.iter().find(|plan| &*plan.settings.name == name);
        found.cloned()
    }

    /// The cluster's id, with our topics there and as they should be.
    async fn get_ready(&self) -> anyhow::Result<Arc<str>> {
        let catalogue = topics::catalogue(&self.admin).await?;
        let sources = self.source_topics(&catalogue);
        let Settings {
            group,
            tiers,
            declare,
            ..
        } = &self.settings;
        topics::ensure(&self.admin, group, tiers, &catalogue, &sources, *declare).await?;
        self.cluster_id().await
    }

    /// The cluster's id, asked for once.
    async fn cluster_id(&self) -> anyhow::Result<Arc<str>> {
        if let Some(cluster) = self.cluster.get() {
            return Ok(cluster.clone());
        }
        let admin = self.admin.clone();
        let id = client::blocking(move || {
            admin
                .inner()
                .fetch_cluster_id(client::ASK)
                .context("asking for the cluster's id")
        })
        .await?;
        Ok(self.cluster.get_or_init(|| id.into()).clone())
    }

    /// The topics of `catalogue` that some source wants.
    fn source_topics(&self, catalogue: &topics::Catalogue) -> Vec<String> {
        let all = self.sources.load();
        let sources: BTreeSet<_> = all
            .iter()
            .flat_map(|plan| wanted::topics(&self.settings.group, &plan.wanted, catalogue.keys()))
            .filter(|topic| catalogue.contains_key(topic))
            .collect();
        sources.into_iter().collect()
    }

    /// Something came back by a tier: the loop works.
    fn loop_seen(&self) {
        self.came_back.send_modify(|count| *count += 1);
    }

    /// Parks what is left of a wait on the tier that comes next; `since`: when the wait began, by the
    /// broker's clock, if it was parked before.
    async fn park_rest(
        &self,
        delivery: &Delivery,
        kind: WaitKind,
        rest: Duration,
        whole: Duration,
        since: Option<Timestamp>,
    ) -> Result<(), Refused> {
        let hop = match kind {
            WaitKind::Retry => self.settings.tiers.hop(rest, whole),
            WaitKind::Hold => self.settings.tiers.for_holds().hop(rest, whole),
        };
        let topic = names::tier(&self.settings.group, kind, hop.tier);
        let envelope = Envelope::parked(delivery, kind, whole, hop.remaining).parked_at(since);
        self.put(&topic, None, &envelope).await
    }

    async fn put(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        envelope: &Envelope,
    ) -> Result<(), Refused> {
        put(&self.producer, topic, key, envelope).await
    }

    /// A producer for records that go one after the other, for as long as they do.
    fn producer_at_once(&self) -> anyhow::Result<Producer> {
        let name = self.settings.name.clone();
        Producer::at_once(name, self.connection.clone(), self.clock.clone())
    }

    fn unavailable(&self, error: &anyhow::Error) -> Refused {
        Refused::Unavailable {
            broker: self.settings.name.clone(),
            why: format!("{error:#}"),
        }
    }

    /// All of the broker's work, each part in a task of its own, until `stop` and the end of what
    /// is in hand; the first part that cannot go on ends the others.
    async fn work(
        self: Arc<Self>,
        intakes: Intakes,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let stop = stop.child_token();
        let mut parts = JoinSet::new();
        parts.spawn(watch::run(self.clone(), stop.clone()));
        let (this, stop_orders) = (self.clone(), stop.child_token());
        parts.spawn(async move {
            // The thread ends also when nobody waits for it any more, and nobody waits for its end: it
            // may be in a wait of the library's own.
            let _ends = stop_orders.clone().drop_guard();
            let stopped = stop_orders.clone();
            let following = client::blocking(move || {
                let group = &this.settings.group;
                orders::follow(&this.orders, &this.connection, group, &stop_orders);
                Ok(())
            });
            tokio::select! {
                ended = following => ended,
                () = stopped.cancelled() => Ok(()),
            }
        });
        let due = due::Due::new(self.clone(), intakes.clone());
        parts.spawn(due.run(stop.clone(), drain.clone()));
        let this = self.clone();
        let (stop_sources, drain_sources) = (stop.clone(), drain.clone());
        parts.spawn(async move {
            let mut wanted = intakes.sources.clone();
            if wanted.borrow_and_update().is_empty() {
                this.status.ready("retries");
                let some = async { wanted.wait_for(|wanted| !wanted.is_empty()).await.is_ok() };
                if stop_sources.run_until_cancelled(some).await != Some(true) {
                    return Ok(());
                }
            }
            // The sources join their group meanwhile, and take nothing before.
            let (seen, loop_seen) = channel::channel(false);
            let probing = async {
                if probe::until_seen(&this, &stop_sources).await {
                    seen.send_replace(true);
                }
                Ok(())
            };
            let taking =
                this.take_from_sources(&intakes, &loop_seen, &stop_sources, &drain_sources);
            tokio::try_join!(probing, taking).map(|_| ())
        });
        let mut ended = Ok(());
        while let Some(part) = parts.join_next().await {
            let part = part.context("a part of the broker's work ended badly");
            if let Err(error) = part.and_then(|result| result) {
                self.status.down("client", format!("{error:#}"));
                stop.cancel();
                if ended.is_ok() {
                    ended = Err(error);
                }
            }
        }
        ended
    }

    async fn take_from_sources(
        self: &Arc<Self>,
        intakes: &Intakes,
        loop_seen: &channel::Receiver<bool>,
        stop: &CancellationToken,
        drain: &CancellationToken,
    ) -> anyhow::Result<()> {
        let cluster = self.cluster.get().cloned().unwrap_or_default();
        let at_first = intakes.sources.borrow().clone();
        roster::keep(intakes.sources.clone(), stop, |name, intake, stop| {
            let plan = self.source(name)?;
            let is_first = at_first.get(name).is_some_and(|first| first.is(&intake));
            let source = source::Source::new(self.clone(), plan, intake, cluster.clone());
            let (this, name) = (self.clone(), name.clone());
            let (loop_seen, drain) = (loop_seen.clone(), drain.clone());
            Some(async move {
                // Its topics may ask more of ours than those of the others.
                if !is_first && !this.until_ready(&stop).await {
                    return Ok(());
                }
                let meters = source.settings().meters.clone();
                let ended = source.run(loop_seen, stop, drain).await;
                meters.no_lag();
                this.status.forget(&plan::part(&name));
                ended
            })
        })
        .await
    }

    /// Has everything there that is needed; `false` when stopped before that.
    async fn until_ready(&self, stop: &CancellationToken) -> bool {
        loop {
            match stop.run_until_cancelled(self.get_ready()).await {
                None => return false,
                Some(Ok(_)) => {
                    self.status.ready("topics");
                    return true;
                }
                Some(Err(error)) => self.status.down("topics", format!("{error:#}")),
            }
            if stop.run_until_cancelled(sleep(BACKOFF)).await.is_none() {
                return false;
            }
        }
    }
}

/// Writes an envelope to one of our topics, and returns when it is confirmed.
async fn put(
    producer: &Producer,
    topic: &str,
    key: Option<&[u8]>,
    envelope: &Envelope,
) -> Result<(), Refused> {
    let event = &envelope.delivery.event;
    let values = event.headers.iter().map(|(_, value)| value);
    let properties = event.properties.iter().map(|(_, value)| value);
    // AMQP's typed values have no form in a Kafka header: they travel in front of the body.
    let room = match headers::has_typed_values(values.chain(properties)) {
        true => 0,
        false => HEADER_BYTES,
    };
    let written = envelope.write(Dialect::Opaque, room);
    let record = Record {
        topic,
        partition: None,
        key,
        payload: Some(&written.body),
        headers: Some(headers::write(&written.headers)),
        stamped: true,
    };
    producer.send(record).await.map(|_| ())
}

#[async_trait]
impl Broker for Kafka {
    fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    async fn run(
        self: Arc<Self>,
        intakes: Intakes,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        self.status.starting("topics", "connecting");
        if !self.until_ready(&stop).await {
            return Ok(());
        }
        let mut rivals = Rivals::default();
        loop {
            let (intakes, stop, drain) = (intakes.clone(), stop.clone(), drain.clone());
            let ended = self.clone().work(intakes, stop.clone(), drain).await;
            let Err(error) = ended else { return Ok(()) };
            let is_rival = rivals.fenced(Instant::now(), self.status.last_troubled());
            if is_rival || stop.is_cancelled() {
                return Err(error);
            }
            tracing::warn!(broker = %self.settings.name, error = format!("{error:#}"), "the Kafka clients cannot go on and are replaced");
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(BACKOFF) => {}
            }
            self.status.ready("client");
        }
    }

    async fn park(&self, delivery: &Delivery, wait: Wait) -> Result<(), Refused> {
        let Wait { kind, delay } = wait;
        self.park_rest(delivery, kind, delay, delay, None).await
    }

    async fn dead_letter(&self, delivery: &Delivery, reason: Reason) -> Result<(), Refused> {
        let topic = names::dead(&self.settings.group);
        let key = letters::key(delivery.id.as_str(), delivery.generation);
        let mut envelope = Envelope::dead(delivery, reason, Timestamp::now());
        match self.put(&topic, Some(key.as_bytes()), &envelope).await {
            Err(Refused::TooLarge { size_bytes, .. }) => {
                tracing::warn!(
                    delivery = %delivery.id,
                    size_bytes,
                    "larger than the dead letters take: kept without its body"
                );
                envelope.reference = true;
                self.put(&topic, Some(key.as_bytes()), &envelope).await
            }
            sent => sent,
        }
    }

    async fn open_letters(&self, purpose: Purpose) -> Result<Box<dyn Letters>, NotOpened> {
        Ok(Box::new(letters::open(self, purpose).await?))
    }

    async fn parked(&self) -> Result<Vec<Waiting>, Refused> {
        let listed = parked::list(self).await;
        listed.map_err(|error| self.unavailable(&error))
    }

    async fn order(&self, order: &Order, follow: &dyn Follow) -> Result<Done, Refused> {
        parked::carry_out(self, order, follow).await
    }

    async fn publish(&self, publication: Publication) -> Result<(), Refused> {
        let Publication {
            topic,
            exchange: _,
            id,
            kind,
            key,
            content_type,
            mut headers,
            body,
        } = publication;
        if names::is_reserved(&self.settings.group, &topic) {
            return Err(Refused::Rejected {
                broker: self.settings.name.clone(),
                why: format!("topic {topic} belongs to the group itself"),
            });
        }
        if let Some(id) = id.and_then(|id| EventId::from_outside(id.as_bytes())) {
            headers.push(super::envelope::EVENT_ID, HeaderValue::text(id.as_str()));
        }
        for (name, value) in [("type", kind), ("content-type", content_type)] {
            if let Some(value) = value {
                headers.push(name, HeaderValue::text(value));
            }
        }
        let record = Record {
            topic: &topic,
            key: key.as_deref(),
            payload: Some(&body),
            headers: Some(headers::write(&headers)),
            ..Record::default()
        };
        self.producer.send(record).await.map(|_| ())
    }

    async fn history(&self, source: &str, span: Span) -> Result<Box<dyn History>, NotPossible> {
        history::open(self, source, span).await
    }

    async fn reach(&self, source: &str) -> Result<Reach, NotPossible> {
        history::reach(self, source).await
    }

    fn health(&self) -> Health {
        self.status.overall()
    }

    fn state(self: Arc<Self>) -> Arc<dyn StateLog> {
        self
    }
}
