//! RabbitMQ: events from queues, retries in TTL queues, dead letters in a queue.
//!
//! Two connections, since an alarm blocks a connection that publishes and acknowledgements must go
//! on: [`consume`] has one for taking and settling, [`publish`] one for parking and dead-lettering.
//! lapin's own recovery is not used: whatever ends a session, [`Broker::run`] builds a new one from
//! scratch, for ever, with backoff ([`topology`] is declared again each time).
//!
//! A tier is a quorum queue with a TTL that dead-letters at least once, through the default
//! exchange, to our due queue; tiers are never read in place. Names: `<group>.retry.<seconds>`,
//! `<group>.hold.<seconds>`, `<group>.due.retry`, `<group>.due.hold`, `<group>.dead`.

mod acks;
mod adopt;
mod clock;
mod connect;
mod consume;
mod failures;
mod greeting;
mod inspect;
mod letters;
mod message;
mod parked;
mod probe;
mod publish;
mod room;
mod state;
mod taker;
mod topology;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use jiff::Timestamp;
use lapin::BasicProperties;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use self::connect::Connector;
use self::greeting::Version;
use self::publish::{Publisher, Target, Unkept};
use super::envelope::{Dialect, Envelope};
use super::parked::{Done, Follow, Order, Waiting};
use super::state::StateLog;
use super::tiers::Tiers;
use super::{
    Broker, Health, History, Intakes, Letters, Naming, NotOpened, NotPossible, Publication,
    Purpose, Reach, Refused, Span, Wait,
};
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::meters::SourceMeters;
use crate::subscription::{Secret, TlsFiles};

pub use self::topology::Names;

/// What a RabbitMQ broker needs to know.
#[derive(Clone)]
pub struct Settings {
    pub name: Arc<str>,
    pub group: Arc<str>,
    /// Tried in turn.
    pub urls: Vec<Secret>,
    pub tls: TlsFiles,
    pub tiers: Tiers,
    pub sources: Vec<SourceSettings>,
    /// `false` where another broker keeps our retries: nothing of ours is declared here.
    pub keeps_deliveries: bool,
    /// `false` where we may not declare: our queues are only checked.
    pub declare: bool,
    /// Whether the group keeps its state here.
    pub keeps_state: bool,
}

/// One source: a queue, and how it is bound.
#[derive(Clone)]
pub struct SourceSettings {
    pub name: Arc<str>,
    pub queue: String,
    /// Declare the queue and its bindings where they are missing.
    pub declare: bool,
    pub bind: Vec<Binding>,
    pub naming: Naming,
    pub meters: SourceMeters,
}

/// A binding of a source's queue to an exchange that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub exchange: String,
    pub key: String,
    /// For headers exchanges.
    pub arguments: BTreeMap<String, String>,
}

/// See the module.
pub struct RabbitMq {
    /// Its sources are in `sources`.
    settings: Settings,
    sources: ArcSwap<Vec<SourceSettings>>,
    names: Names,
    connector: Connector,
    publisher: Publisher,
    probe: probe::Probe,
    clock: clock::Clock,
    health: Mutex<Health>,
    /// Of the server, while a session lasts.
    version: AsyncMutex<Option<Version>>,
    /// One pass over the dead letters at a time: a letter under another reader's eyes is not there.
    letters: Arc<AsyncMutex<()>>,
    /// Consumers' tags must be unique on a connection, and tell instances apart to an operator.
    instance: String,
    /// A session ended because a message could not be decoded: sources have connections of their own.
    isolate: AtomicBool,
}

/// Before a queue that gave a negative confirmation is asked again.
const PAUSES_AFTER_NACK: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

impl RabbitMq {
    pub fn new(mut settings: Settings) -> Arc<Self> {
        let sources = std::mem::take(&mut settings.sources);
        let names = Names::new(&settings.group, &settings.tiers);
        let connector = Connector::new(&settings);
        let publisher = Publisher::new(settings.name.clone(), connector.clone());
        let health = Mutex::new(Health::Starting {
            why: "not connected yet".into(),
        });
        Arc::new(Self {
            sources: ArcSwap::from_pointee(sources),
            settings,
            names,
            connector,
            publisher,
            probe: probe::Probe::new(),
            clock: clock::Clock::default(),
            health,
            version: AsyncMutex::new(None),
            letters: Arc::default(),
            instance: uuid::Uuid::now_v7().simple().to_string(),
            isolate: AtomicBool::new(false),
        })
    }

    /// Notes other sources than it has. Those that run are not touched: the pipeline says when they are to
    /// follow.
    pub fn set_sources(&self, sources: Vec<SourceSettings>) {
        self.sources.store(Arc::new(sources));
    }

    /// A source as it is noted now.
    fn source(&self, name: &str) -> Option<SourceSettings> {
        let sources = self.sources.load();
        let found = sources.iter().find(|source| &*source.name == name);
        found.cloned()
    }

    fn set_health(&self, health: Health) {
        *self
            .health
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = health;
    }

    fn unavailable(&self, why: impl ToString) -> Refused {
        Refused::Unavailable {
            broker: self.settings.name.clone(),
            why: why.to_string(),
        }
    }

    /// Publishes `delivery` to the tier that its wait starts on, or goes on with.
    async fn park_for(
        &self,
        delivery: &Delivery,
        kind: WaitKind,
        whole: Duration,
        rest: Duration,
    ) -> Result<(), Refused> {
        let hop = match kind {
            WaitKind::Retry => self.settings.tiers.hop(rest, whole),
            WaitKind::Hold => self.settings.tiers.for_holds().hop(rest, whole),
        };
        let envelope = Envelope::parked(delivery, kind, whole, hop.remaining)
            .parked_at(self.clock.at_the_latest());
        self.publish_envelope(&envelope, &self.names.tier(kind, hop.tier))
            .await
    }

    async fn publish_envelope(&self, envelope: &Envelope, queue: &str) -> Result<(), Refused> {
        let room = self
            .publisher
            .header_room()
            .await
            .map_err(|error| self.unavailable(format!("{error:#}")))?;
        let written = envelope.write(Dialect::Amqp, room);
        let properties = message::properties_of(&envelope.delivery, &written.headers);
        self.publish_own(queue, &written.body, properties).await
    }

    /// Publishes to a queue of ours. One that is gone (deleted, expired by a policy) is declared again.
    async fn publish_own(
        &self,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Refused> {
        let target = Target::queue(queue);
        let mut published = self.publish_to(&target, body, properties.clone()).await;
        if let Err(Unkept::Unroutable) = published {
            warn!(broker = %self.settings.name, queue, "a queue of ours is gone, declaring it again");
            self.declare_again()
                .await
                .map_err(|error| self.unavailable(format!("{error:#}")))?;
            published = self.publish_to(&target, body, properties).await;
        }
        published.map_err(|unkept| self.publisher.refused(unkept, &target))
    }

    /// Publishes. A queue that says no is asked a few times more: a quorum queue that is new, or changes
    /// its leader, does so for a moment. Behind an exchange others may have taken it, and would take it
    /// again.
    async fn publish_to(
        &self,
        target: &Target,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Unkept> {
        let pauses = match target.is_queue() {
            true => &PAUSES_AFTER_NACK[..],
            false => &[],
        };
        for &pause in pauses {
            let published = self.publisher.publish(target, body, properties.clone());
            match published.await {
                Err(Unkept::Nacked) => tokio::time::sleep(pause).await,
                other => return other,
            }
        }
        self.publisher.publish(target, body, properties).await
    }

    /// All queues of our own.
    fn own_queues(&self) -> Vec<topology::Queue> {
        let mut queues = match self.settings.keeps_deliveries {
            true => topology::own(&self.names),
            false => Vec::new(),
        };
        if self.settings.keeps_state {
            queues.push(topology::state(&self.names));
        }
        queues
    }

    async fn declare_again(&self) -> anyhow::Result<()> {
        let version = self.version().await?;
        self.publisher
            .repair(async |connection| {
                let (queues, declare) = (self.own_queues(), self.settings.declare);
                topology::declare_own(connection, &queues, version, declare).await
            })
            .await
    }

    /// The server's version, asked for once per session.
    async fn version(&self) -> anyhow::Result<Version> {
        let mut known = self.version.lock().await;
        match *known {
            Some(version) => Ok(version),
            None => Ok(*known.insert(self.connector.server_version().await?)),
        }
    }
}

impl RabbitMq {
    /// Why there is no history of a queue, and what there is instead.
    fn forgotten(&self, source: &str) -> NotPossible {
        let Some(settings) = self.source(source) else {
            return NotPossible::UnknownSource {
                broker: self.settings.name.clone(),
                name: source.into(),
            };
        };
        let queue = &settings.queue;
        let why = format!(
            "source `{source}` is the RabbitMQ queue `{queue}`, and a queue forgets an event as soon as it is acknowledged: \
             there is nothing to replay. What was given up is among the dead letters \
             (`hookbridge dead list`, `hookbridge dead retry`). To replay time, keep the events where \
             they stay: have the services publish to Kafka, or bind a RabbitMQ stream beside the queue, and send again from there"
        );
        NotPossible::Forgotten { why }
    }
}

#[async_trait]
impl Broker for RabbitMq {
    fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    async fn run(
        self: Arc<Self>,
        intakes: Intakes,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let broker = self.clone();
        let until = stop.clone();
        let _clock = AbortOnDropHandle::new(tokio::spawn(async move {
            if broker.settings.keeps_deliveries && broker.settings.declare {
                clock::keep(&broker, &until).await;
            }
        }));
        let mut backoff = connect::Backoff::default();
        while !stop.is_cancelled() {
            let ended = consume::session(&self, &intakes, &stop, &drain, &mut backoff).await;
            if stop.is_cancelled() {
                break;
            }
            let why = match ended {
                Ok(()) => "the connection ended".to_owned(),
                Err(error) => {
                    if failures::is_undecodable(&error) {
                        self.isolate.store(true, Ordering::Relaxed);
                    }
                    format!("{error:#}")
                }
            };
            // It may be another release when it is back.
            *self.version.lock().await = None;
            let delay = backoff.next();
            warn!(broker = %self.settings.name, %why, retry_in = ?delay, "rabbitmq session ended, connecting again");
            self.set_health(Health::Down { why });
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.cancelled() => {}
            }
        }
        info!(broker = %self.settings.name, "rabbitmq stopped");
        Ok(())
    }

    async fn park(&self, delivery: &Delivery, wait: Wait) -> Result<(), Refused> {
        if wait == Wait::AT_ONCE {
            let envelope = Envelope::parked(delivery, wait.kind, wait.delay, wait.delay);
            let due = self.names.due(wait.kind);
            return self.publish_envelope(&envelope, due).await;
        }
        self.park_for(delivery, wait.kind, wait.delay, wait.delay)
            .await
    }

    async fn dead_letter(&self, delivery: &Delivery, reason: Reason) -> Result<(), Refused> {
        let mut envelope = Envelope::dead(delivery, reason, Timestamp::now());
        match self.publish_envelope(&envelope, &self.names.dead).await {
            Err(Refused::TooLarge { size_bytes, .. }) => {
                warn!(event = %delivery.event.id, size_bytes, "dead letter without its body: the broker takes no message of this size");
                envelope.reference = true;
                self.publish_envelope(&envelope, &self.names.dead).await
            }
            other => other,
        }
    }

    async fn open_letters(&self, purpose: Purpose) -> Result<Box<dyn Letters>, NotOpened> {
        Ok(Box::new(letters::open(self, purpose).await?))
    }

    async fn parked(&self) -> Result<Vec<Waiting>, Refused> {
        parked::list(self).await
    }

    async fn order(&self, order: &Order, follow: &dyn Follow) -> Result<Done, Refused> {
        parked::carry_out(self, order, follow).await
    }

    async fn publish(&self, publication: Publication) -> Result<(), Refused> {
        let properties = message::properties_of_publication(&publication);
        let target = Target::new(&publication.exchange, &publication.topic).ok_or_else(|| {
            Refused::Rejected {
                broker: self.settings.name.clone(),
                why: "an exchange's name and a routing key have 255 bytes at most".into(),
            }
        })?;
        self.publish_to(&target, &publication.body, properties)
            .await
            .map_err(|unkept| self.publisher.refused(unkept, &target))
    }

    async fn history(&self, source: &str, _: Span) -> Result<Box<dyn History>, NotPossible> {
        Err(self.forgotten(source))
    }

    async fn reach(&self, source: &str) -> Result<Reach, NotPossible> {
        Err(self.forgotten(source))
    }

    fn state(self: Arc<Self>) -> Arc<dyn StateLog> {
        self
    }

    fn health(&self) -> Health {
        self.health
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }
}
