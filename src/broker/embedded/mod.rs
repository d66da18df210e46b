//! The embedded broker: events, waits and dead letters in one redb file, with no broker to run.
//!
//! For trying it out, for tests and for small set-ups. It is as durable as the others: what is
//! confirmed has been synced (in groups, by the one thread in [`writer`]). An event is queued once
//! for each source whose topics match, in the transaction that stores it, and its body goes when the
//! last of them has settled it (and `retention` has passed). Deliveries wait in an index by due
//! time ([`clock`] says by which clock), so there are no tiers here and nothing is early or late by
//! more than the machine is busy. After a restart everything that was not settled is handed out again.

mod change;
mod clock;
#[cfg(test)]
mod faults;
mod file;
mod history;
mod lane;
mod letters;
mod parked;
mod record;
mod shared;
mod state;
mod tables;
mod take;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::envelope::{Dialect, Envelope};
use super::parked::{Done, Follow, Order, Waiting};
use super::state::StateLog;
use super::{
    Broker, Health, History, Intakes, Letters, Naming, NotOpened, NotPossible, Publication,
    Purpose, Reach, Refused, Span, Taken, Wait, roster,
};
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::{EventId, Origin, Place};
use crate::meters::SourceMeters;
use crate::subscription::Pattern;
use clock::Clock;
use file::File;
pub use file::OpenError;
use lane::{Lane, Lanes, Role};
use record::Stored;
use shared::{HOLDS, RETRIES, Shared, kind_number};
use writer::{Accepted, LetterKey, Op, Removal, Work, Writer};

/// Every wait on the writer ends after this.
const DEADLINE: Duration = Duration::from_secs(10);

/// What one embedded broker needs to know.
pub struct Settings {
    /// The broker's name in the config.
    pub name: Arc<str>,
    /// Topics that begin with `<group>.` are ours and refused.
    pub group: Arc<str>,
    /// The file, `<data_dir>/embedded-<name>.redb`.
    pub path: PathBuf,
    /// Publishing is refused beyond this many bytes of records. The file is larger, up to about
    /// twice that. Parked deliveries and dead letters count, but are never refused.
    pub max_bytes: u64,
    /// How long events stay, counted from when they were published, after they are settled.
    pub retention: Duration,
    pub sources: Vec<SourceSettings>,
}

#[cfg(test)]
impl Settings {
    /// A file in `folder`, and no sources.
    fn for_tests(folder: &std::path::Path) -> Self {
        Self {
            name: "here".into(),
            group: "hookbridge".into(),
            path: folder.join("embedded-here.redb"),
            max_bytes: 1 << 20,
            retention: Duration::ZERO,
            sources: Vec::new(),
        }
    }
}

/// A source: a queue of its own in the file, which outlives a restart and a change of topics.
pub struct SourceSettings {
    pub name: Arc<str>,
    pub topics: Vec<Pattern>,
    pub naming: Naming,
    pub meters: SourceMeters,
}

impl SourceSettings {
    /// Its lane; `id`: its number in the file, `depth`: how many events wait.
    fn lane(self, id: u32, depth: i64) -> Arc<Lane> {
        let origin = lane::Origin::Source {
            id,
            name: self.name,
            role: ArcSwap::from_pointee(Role {
                topics: self.topics,
                naming: self.naming,
            }),
            meters: Box::new(self.meters),
        };
        Lane::new(origin, depth)
    }
}

/// The broker. Dropping it finishes what was sent to it and closes the file.
pub struct Embedded {
    shared: Arc<Shared>,
    group: Arc<str>,
    ops: Option<mpsc::Sender<Op>>,
    /// KiB of publications on their way to the writer.
    on_their_way: Arc<Semaphore>,
    /// Topics warned about because no source takes them.
    untaken: Mutex<std::collections::BTreeSet<String>>,
    closed: Mutex<std::sync::mpsc::Receiver<()>>,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The `webhook-id` that it is delivered with, by the rules of the first source that takes it.
    pub id: EventId,
    /// How many sources took it; none: it was not kept.
    pub sources: usize,
}

/// Why something was not stored. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    #[error("bad topic: {0}")]
    BadTopic(&'static str),
    #[error("the broker is full (`max_bytes` is {max_bytes})")]
    Full { max_bytes: u64 },
    #[error("a message of {size_bytes} bytes never fits into `max_bytes`")]
    TooLarge { size_bytes: usize },
    #[error("the disk is full")]
    DiskFull,
    #[error("not available: {0}")]
    Unavailable(String),
}

impl Embedded {
    /// Publications on their way to the writer, in KiB.
    const ON_THEIR_WAY_KIB: usize = 64 << 10;
    /// Longest topic, in bytes.
    pub const MAX_TOPIC_BYTES: usize = 255;
    /// Topics remembered so that each is warned about once.
    const UNTAKEN_TOPICS: usize = 1_000;

    /// Opens or makes the file, repairing it after a crash, and starts the writer.
    pub fn open(settings: Settings) -> Result<Arc<Self>, OpenError> {
        let file = File::open(settings.path.clone())?;
        Self::start(settings, file)
    }

    fn start(settings: Settings, file: File) -> Result<Arc<Self>, OpenError> {
        let Settings {
            name,
            group,
            path,
            max_bytes,
            retention,
            sources,
        } = settings;
        let clock = Clock::start();
        let names: Vec<&str> = sources.iter().map(|source| &*source.name).collect();
        let contents = file.prepare(&names, &clock)?;
        for source in &contents.stranded {
            warn!(broker = %name, %source, "embedded broker: events wait for a source that is no longer in the config; they are kept");
        }
        let mut lanes = vec![
            Lane::new(lane::Origin::Due(WaitKind::Retry), 0),
            Lane::new(lane::Origin::Due(WaitKind::Hold), 0),
        ];
        let stored = contents.source_ids.iter().zip(&contents.depths);
        for (source, (&id, &depth)) in sources.into_iter().zip(stored) {
            lanes.push(source.lane(id, depth));
        }
        let shared = Arc::new(Shared {
            name,
            file,
            clock,
            max_bytes,
            retention,
            lanes: Lanes::new(lanes),
            all_source_ids: ArcSwap::from_pointee(contents.all_source_ids),
            health: Mutex::new(Health::Ready),
            suspect: AtomicBool::new(false),
            answers: Mutex::default(),
            replay: Arc::default(),
            told: Arc::default(),
            outstanding: AtomicUsize::new(0),
            all_answered: Notify::new(),
            woken: AtomicBool::new(false),
            wake: OnceLock::new(),
        });
        let (ops, waiting) = mpsc::channel(writer::GROUP);
        let _ = shared.wake.set(ops.downgrade());
        let writer = Writer::new(shared.clone(), waiting, contents.counts);
        let (done, closed) = std::sync::mpsc::channel();
        let spawned = std::thread::Builder::new()
            .name("embedded-writer".into())
            .spawn(move || {
                writer.run();
                let _ = done.send(());
            });
        spawned.map_err(|source| OpenError::Io { path, source })?;
        Ok(Arc::new(Self {
            shared,
            group,
            ops: Some(ops),
            on_their_way: Arc::new(Semaphore::new(Self::ON_THEIR_WAY_KIB)),
            untaken: Mutex::default(),
            closed: Mutex::new(closed),
        }))
    }

    /// Has other sources than before, from the next publication on. Those that run are not touched: the
    /// pipeline says when they are to follow. What waits for one that is gone is kept. One caller at a
    /// time; an error has changed nothing.
    pub async fn set_sources(&self, sources: Vec<SourceSettings>) -> Result<(), Declined> {
        let lanes = &self.shared.lanes;
        let is_new = |source: &SourceSettings| lanes.of_source(&source.name).is_none();
        let (new, known): (Vec<_>, Vec<_>) = sources.into_iter().partition(is_new);
        let mut more = Vec::new();
        if !new.is_empty() {
            let names = new.iter().map(|source| source.name.to_string()).collect();
            let ids = self.ids_of(names).await?;
            for (source, (id, depth)) in new.into_iter().zip(ids) {
                more.push(source.lane(id, depth));
            }
        }
        for lane in lanes.all().iter() {
            let lane::Origin::Source { name, role, .. } = &lane.origin else {
                continue;
            };
            let now = known.iter().find(|source| source.name == *name);
            let (topics, naming) = match now {
                Some(source) => (source.topics.clone(), source.naming.clone()),
                None => (Vec::new(), role.load().naming.clone()),
            };
            role.store(Arc::new(Role { topics, naming }));
        }
        lanes.extend(more);
        Ok(())
    }

    /// The numbers of these sources in the file, which are given to those that have none, and how many
    /// events wait for each.
    async fn ids_of(&self, names: Vec<String>) -> Result<Vec<(u32, i64)>, Declined> {
        let shared = self.shared.clone();
        let given = tokio::task::spawn_blocking(move || {
            let db = shared.file.get();
            let db = db.ok_or_else(|| Declined::Unavailable("the file is being opened".into()))?;
            let given = tables::give_ids(&db, &names).map_err(|error| {
                shared.fail(&error);
                Declined::Unavailable(error.to_string())
            })?;
            // Before anything is published to them: what a source has still to settle is kept.
            shared.all_source_ids.store(Arc::new(given.all));
            Ok(given.of_these)
        });
        given
            .await
            .unwrap_or_else(|panicked| Err(Declined::Unavailable(panicked.to_string())))
    }

    /// Publishes all of `publications` or none, and returns when they are synced. The same id given
    /// twice is two events: receivers tell them apart, or not, by the `webhook-id`.
    pub async fn publish_all(
        &self,
        publications: Vec<Publication>,
    ) -> Result<Vec<Published>, Declined> {
        let mut published = Vec::with_capacity(publications.len());
        let mut accepted = Vec::with_capacity(publications.len());
        let mut size_bytes = 0;
        for publication in publications {
            self.check_topic(&publication.topic)?;
            let (outcome, event) = self.accept(publication);
            published.push(outcome);
            if let Some(event) = event {
                size_bytes += event.record.len();
                accepted.push(event);
            }
        }
        if size_bytes as u64 > self.shared.max_bytes {
            return Err(Declined::TooLarge { size_bytes });
        }
        if accepted.is_empty() {
            return Ok(published);
        }
        let kib = size_bytes.div_ceil(1024).min(Self::ON_THEIR_WAY_KIB) as u32;
        let room = timeout(DEADLINE, self.on_their_way.acquire_many(kib)).await;
        let _room = match room {
            Ok(Ok(room)) => room,
            _ => return Err(Declined::Unavailable("too much is being published".into())),
        };
        self.shared.ask(Work::Publish(accepted)).await?;
        Ok(published)
    }

    /// Whether events may be published to `topic`.
    pub fn check_topic(&self, topic: &str) -> Result<(), Declined> {
        let ours = topic.strip_prefix(&*self.group);
        let why = if topic.is_empty() {
            "it is empty"
        } else if topic.len() > Self::MAX_TOPIC_BYTES {
            "it is longer than 255 bytes"
        } else if topic.chars().any(char::is_control) {
            "it contains control characters"
        } else if ours.is_some_and(|rest| rest.starts_with('.')) {
            "names that begin with the group's are our own"
        } else {
            return Ok(());
        };
        Err(Declined::BadTopic(why))
    }

    fn accept(&self, publication: Publication) -> (Published, Option<Accepted>) {
        let Publication {
            topic,
            exchange: _,
            id,
            kind,
            key,
            content_type,
            headers,
            body,
        } = publication;
        let stored = Stored {
            topic,
            given_id: id.map(Bytes::from),
            placed_id: EventId::random(),
            kind,
            key,
            content_type,
            published_at: Timestamp::now(),
            headers,
            body,
        };
        let mut lanes = Vec::new();
        let mut first_naming = None;
        for (number, lane) in self.shared.lanes.all().iter().enumerate() {
            let lane::Origin::Source { role, .. } = &lane.origin else {
                continue;
            };
            let role = role.load();
            if role.takes(&stored.topic) {
                lanes.push(number);
                first_naming.get_or_insert_with(|| role.naming.clone());
            }
        }
        if lanes.is_empty() {
            self.warn_untaken(&stored.topic);
        }
        let record = stored.write();
        let at_ms = stored.published_at.as_millisecond().max(0).cast_unsigned();
        let naming = first_naming.unwrap_or_else(|| Naming {
            source: "".into(),
            topic: None,
            id: None,
            tenant: None,
        });
        let id = naming.event(taken(&self.shared.name, stored, 0)).id;
        let published = Published {
            id,
            sources: lanes.len(),
        };
        let accepted = (!lanes.is_empty()).then_some(Accepted {
            lanes,
            at_ms,
            record,
        });
        (published, accepted)
    }

    fn warn_untaken(&self, topic: &str) {
        let mut untaken = self.untaken.lock().unwrap_or_else(PoisonError::into_inner);
        if untaken.len() < Self::UNTAKEN_TOPICS && untaken.insert(topic.to_owned()) {
            warn!(broker = %self.shared.name, topic, "no source takes this topic; its events are not kept");
        }
    }

    async fn bury(
        &self,
        delivery: &Delivery,
        reason: Reason,
        instead_of: Option<Removal>,
    ) -> Result<(), Declined> {
        let at = Timestamp::now();
        let written = Envelope::dead(delivery, reason, at).write(Dialect::Opaque, usize::MAX);
        let key = LetterKey {
            dead_at_ms: at.as_millisecond().max(0).cast_unsigned(),
            delivery: delivery.id.as_str().to_owned(),
            generation: delivery.generation,
        };
        let record = record::write_delivery(&written);
        self.shared
            .ask(Work::Dead {
                key,
                record,
                instead_of,
            })
            .await
            .map(drop)
    }

    /// Wakes the writer now and then, which notices time passing and mends a failed file.
    async fn keep_awake(self: Arc<Self>, until: CancellationToken) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        while until.run_until_cancelled(every.tick()).await.is_some() {
            self.shared.wake();
        }
    }

    /// Waits until all receipts handed out are answered.
    async fn answered(&self) {
        loop {
            let notified = self.shared.all_answered.notified();
            if self.shared.outstanding.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Embedded {
    /// The file is closed when this returns, unless the disk hangs.
    fn drop(&mut self) {
        self.ops = None;
        let closed = self.closed.get_mut();
        let closed = closed.unwrap_or_else(PoisonError::into_inner);
        let _ = closed.recv_timeout(DEADLINE);
    }
}

/// A stored event as a message of this broker.
fn taken(broker: &Arc<str>, stored: Stored, sequence: u64) -> Taken {
    let topic: Arc<str> = stored.topic.into();
    Taken {
        kind: stored.kind.map(Into::into),
        message_id: stored.given_id,
        placed_id: Some(stored.placed_id),
        published_at: Some(stored.published_at),
        content_type: stored.content_type.map(Into::into),
        content_encoding: None,
        key: stored.key,
        headers: stored.headers,
        properties: Vec::new(),
        body: stored.body,
        origin: Origin {
            broker: broker.clone(),
            place: Place::Embedded {
                topic: topic.clone(),
                sequence,
            },
        },
        topic,
    }
}

#[async_trait]
impl Broker for Embedded {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    async fn run(
        self: Arc<Self>,
        intakes: Intakes,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut takers = JoinSet::new();
        for (number, intake) in [(RETRIES, intakes.retries), (HOLDS, intakes.holds)] {
            takers.spawn(take::run(self.clone(), number, intake, stop.clone()));
        }
        // What a source has handed out stays busy in its lane, whoever takes from it next.
        let take = |name: &Arc<str>, intake, stop| {
            let Some((number, _)) = self.shared.lanes.of_source(name) else {
                error!(broker = %self.shared.name, source = %name, "embedded broker: a source without a lane");
                return None;
            };
            let taking = take::run(self.clone(), number, intake, stop);
            Some(async move {
                taking.await;
                Ok(())
            })
        };
        let awake = drain.child_token();
        let _end = awake.clone().drop_guard();
        let keeper = tokio::spawn(self.clone().keep_awake(awake.clone()));
        let taking = roster::keep(intakes.sources, &stop, take).await;
        while let Some(ended) = takers.join_next().await {
            ended.context("taking events ended")?;
        }
        taking?;
        drain.run_until_cancelled(self.answered()).await;
        let flushed = self.shared.ask(Work::Flush).await;
        awake.cancel();
        let _ = keeper.await;
        if let Err(why) = flushed {
            warn!(broker = %self.shared.name, %why, "embedded broker: the last answers were not written; those events come again");
        }
        Ok(())
    }

    async fn park(&self, delivery: &Delivery, wait: Wait) -> Result<(), Refused> {
        let due_ms = self.shared.clock.due_ms(wait.delay);
        let envelope = Envelope::parked(delivery, wait.kind, wait.delay, Duration::ZERO);
        let work = Work::Park {
            kind: wait.kind,
            due_ms,
            delay_ms: wait.delay.as_nanos().div_ceil(1_000_000) as u64,
            record: record::write_delivery(&envelope.write(Dialect::Opaque, usize::MAX)),
        };
        let parked = self.shared.ask(work).await;
        parked
            .map(drop)
            .map_err(|declined| self.shared.refused(declined))
    }

    async fn dead_letter(&self, delivery: &Delivery, reason: Reason) -> Result<(), Refused> {
        let buried = self.bury(delivery, reason, None).await;
        buried.map_err(|declined| self.shared.refused(declined))
    }

    async fn open_letters(&self, purpose: Purpose) -> Result<Box<dyn Letters>, NotOpened> {
        let pass = letters::open(self.shared.clone(), purpose).await?;
        Ok(Box::new(pass))
    }

    async fn parked(&self) -> Result<Vec<Waiting>, Refused> {
        let listed = parked::list(self.shared.clone(), parked::LOOK_WITHIN).await;
        listed.map_err(|declined| self.shared.refused(declined))
    }

    async fn order(&self, order: &Order, follow: &dyn Follow) -> Result<Done, Refused> {
        let done = parked::carry_out(self, order, follow).await;
        done.map_err(|declined| self.shared.refused(declined))
    }

    async fn publish(&self, publication: Publication) -> Result<(), Refused> {
        let published = self.publish_all(vec![publication]).await;
        published
            .map(drop)
            .map_err(|declined| self.shared.refused(declined))
    }

    async fn history(&self, source: &str, span: Span) -> Result<Box<dyn History>, NotPossible> {
        history::open(self, source, span).await
    }

    async fn reach(&self, source: &str) -> Result<Reach, NotPossible> {
        history::reach(self, source).await
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    fn state(self: Arc<Self>) -> Arc<dyn StateLog> {
        self
    }
}
