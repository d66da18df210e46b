//! The journal: what was attempted, what came of it, and where a delivery went then.
//!
//! A bounded ring on disk, for people who ask after an event: attempts, parks, dead letters, events
//! that matched nothing, and what operators ordered. [`Journal`] is the one sink. Writing to it costs the path an append
//! to a buffer in memory under a short lock; a thread of its own groups what is there into blocks
//! and commits them about once a second. Nothing waits for that thread: when it cannot keep up or
//! its disk fails, records are dropped and counted, and deliveries go on. A crash loses the records
//! of the last second and leaves a file that opens.
//!
//! What a record means, and what else is known of a delivery, is put together by `operations`.

mod read;
mod record;
mod ring;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use redb::Database;
use tokio::sync::mpsc;

pub use read::{Cursor, Page, Query, Status};
pub use record::{Attempted, Deed, Entry, Exchange, Then, What};
pub use ring::Unreadable;
pub use writer::AUDIT_TYPE;

use crate::attempt::Attempt;
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::Event;
use crate::meters::JournalMeters;

/// The file in the data folder.
pub const FILE: &str = "attempts.redb";
/// Records waiting to be written, in bytes; more are dropped.
const PENDING_BYTES: usize = 8 << 20;
/// The writer is woken early when this much waits.
const WAKE_BYTES: usize = 1 << 20;
/// How long a reader waits for what is in memory to be written.
const FLUSH: Duration = Duration::from_secs(3);
/// Events that matched nothing are recorded up to so many a second: a source may have little else.
const UNMATCHED_PER_SECOND: u32 = 100;

/// How the journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
    pub keep: Duration,
    /// Of all blocks; the file may be somewhat larger.
    pub max_bytes: u64,
    /// Requests are kept too: method, headers and the start of the body.
    pub bodies: bool,
    /// Which instance writes.
    pub instance: Arc<str>,
}

/// The sink for attempts, and where they are read. Cloning shares it.
#[derive(Clone, Default)]
pub struct Journal(Option<Arc<Open>>);

struct Open {
    shared: Arc<Shared>,
    bodies: bool,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the path, the writer and readers share.
struct Shared {
    pending: Mutex<Pending>,
    /// There is something to write.
    work: Condvar,
    /// Something was written.
    written: Condvar,
    db: RwLock<Option<Arc<Database>>>,
    meters: JournalMeters,
}

#[derive(Default)]
struct Pending {
    buffer: Vec<u8>,
    /// How often a reader has asked for everything to be written, and up to which time it was.
    asked: u64,
    done: u64,
    closing: bool,
    unmatched: (i64, u32),
}

impl Journal {
    /// A journal that keeps nothing, as the default does.
    pub fn off() -> Self {
        Self(None)
    }

    /// Starts the writer. What it cannot open it says in the log, and tries again; the caller goes
    /// on. Records go to `audit` too, as far as it has room.
    pub fn start(
        settings: Settings,
        meters: JournalMeters,
        audit: Option<mpsc::Sender<Entry>>,
    ) -> std::io::Result<Self> {
        Self::start_with(settings, meters, audit, Box::new(ring::open_private))
    }

    fn start_with(
        settings: Settings,
        meters: JournalMeters,
        audit: Option<mpsc::Sender<Entry>>,
        opener: Box<ring::Opener>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            work: Condvar::new(),
            written: Condvar::new(),
            db: RwLock::new(None),
            meters,
        });
        let bodies = settings.bodies;
        let writer = writer::Writer::new(shared.clone(), settings, audit, opener);
        let writer = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run())?;
        Ok(Self(Some(Arc::new(Open {
            shared,
            bodies,
            writer: Mutex::new(Some(writer)),
        }))))
    }

    /// Opens the file of a bridge that is not running, for reading.
    pub fn open_existing(path: &Path, meters: JournalMeters) -> Result<Self, Unreadable> {
        let db = ring::open_existing(path)?;
        Ok(Self(Some(Arc::new(Open {
            shared: Arc::new(Shared {
                pending: Mutex::default(),
                work: Condvar::new(),
                written: Condvar::new(),
                db: RwLock::new(Some(Arc::new(db))),
                meters,
            }),
            bodies: false,
            writer: Mutex::new(None),
        }))))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether an attempt is to come with its [`Exchange`].
    pub fn wants_bodies(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.bodies)
    }

    /// An attempt at `delivery`, counted in its progress already, and what was decided then.
    pub fn attempted(
        &self,
        delivery: &Delivery,
        endpoint: &str,
        attempt: &Attempt,
        then: Then,
        exchange: Option<&Exchange>,
    ) {
        self.push(|buffer| {
            record::attempted(buffer, delivery, endpoint, attempt, then, exchange);
        });
    }

    /// The broker `on` has confirmed that it keeps `delivery` until about then.
    pub fn parked(&self, delivery: &Delivery, wait: WaitKind, until: Timestamp, on: &str) {
        self.push(|buffer| record::parked(buffer, delivery, wait, until, on));
    }

    /// The broker `on` has confirmed the dead letter.
    pub fn dead(&self, delivery: &Delivery, reason: Reason, on: &str) {
        self.push(|buffer| record::dead(buffer, delivery, reason, on));
    }

    /// The broker `on` has confirmed what an operator ordered. `other` is the event that an edited
    /// letter was made into, or the letter that a delivery was made of.
    pub fn ordered(&self, delivery: &Delivery, deed: Deed, on: &str, other: &str) {
        self.push(|buffer| record::ordered(buffer, delivery, deed, on, other));
    }

    /// `delivery` was settled without being sent, since its event is too old.
    pub fn stale(&self, delivery: &Delivery, now: Timestamp) {
        self.push(|buffer| record::stale(buffer, delivery, now));
    }

    /// No subscription matched `event`.
    pub fn unmatched(&self, event: &Event, now: Timestamp) {
        let Some(open) = &self.0 else { return };
        {
            let mut pending = open.shared.pending();
            let (second, count) = &mut pending.unmatched;
            if *second != now.as_second() {
                (*second, *count) = (now.as_second(), 0);
            }
            *count += 1;
            if *count > UNMATCHED_PER_SECOND {
                return;
            }
        }
        self.push(|buffer| record::unmatched(buffer, event, now));
    }

    fn push(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(open) = &self.0 else { return };
        let shared = &open.shared;
        let mut pending = shared.pending();
        let before = pending.buffer.len();
        if before >= PENDING_BYTES {
            drop(pending);
            shared.meters.lost.inc();
            return;
        }
        write(&mut pending.buffer);
        let after = pending.buffer.len();
        drop(pending);
        if before == 0 || (before < WAKE_BYTES && after >= WAKE_BYTES) {
            shared.work.notify_one();
        }
    }

    /// Entries that `query` lets through, the newest first, from `before` on. Blocks on the disk.
    pub fn page(
        &self,
        query: &Query,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, Unreadable> {
        read::page(&*self.readable()?, query, before, limit)
    }

    /// The newest `limit` entries of one event, the oldest of them first. Blocks on the disk.
    pub fn of_event(&self, event: &str, limit: usize) -> Result<Vec<Entry>, Unreadable> {
        let query = Query {
            event: Some(event.to_owned()),
            ..Query::default()
        };
        let db = self.readable()?;
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = read::page(&db, &query, before, limit - found.len())?;
            found.extend(page.entries);
            before = page.next;
            if before.is_none() || found.len() >= limit {
                found.reverse();
                return Ok(found);
            }
        }
    }

    /// When the oldest entry was made; `None` in an empty journal.
    pub fn oldest(&self) -> Result<Option<Timestamp>, Unreadable> {
        read::oldest(&*self.readable()?)
    }

    fn readable(&self) -> Result<Arc<Database>, Unreadable> {
        let open = self.0.as_ref().ok_or(Unreadable::Off)?;
        if lock(&open.writer).is_some() {
            open.shared.flush();
        }
        let db = open.shared.db.read();
        db.unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or(Unreadable::Broken)
    }

    /// Writes what is in memory and ends the writer. Blocks; later records are not kept.
    pub fn close(&self) {
        let Some(open) = &self.0 else { return };
        open.shared.pending().closing = true;
        open.shared.work.notify_one();
        if let Some(writer) = lock(&open.writer).take() {
            let _ = writer.join();
        }
    }
}

/// The entry that [`Journal::attempted`] makes of this, for others than the journal.
pub fn entry_of(
    delivery: &Delivery,
    endpoint: &str,
    attempt: &Attempt,
    then: Then,
    instance: &str,
) -> Option<Entry> {
    let mut buffer = Vec::with_capacity(512);
    record::attempted(&mut buffer, delivery, endpoint, attempt, then, None);
    let record = record::split(&buffer).next()?;
    record::entry(record, instance)
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// Waits until what was recorded before is on disk, or for as long as a reader may wait.
    fn flush(&self) {
        let deadline = Instant::now() + FLUSH;
        let mut pending = self.pending();
        pending.asked += 1;
        let mine = pending.asked;
        self.work.notify_one();
        while pending.done < mine && !pending.closing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            pending = self
                .written
                .wait_timeout(pending, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
