//! The writer: the thread that brings records to the disk, and gives up on a disk, not on the bridge.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{error, info};

use super::record::{self, Entry, What};
use super::ring::{Limits, Opener, Ring};
use super::{Settings, Shared, WAKE_BYTES};

/// Records wait this long for others to be committed with.
const GROUP: Duration = Duration::from_secs(1);
/// How often old blocks are taken away when there is nothing to write.
const TIDY: Duration = Duration::from_secs(60);
/// After a failure, how long until the file is opened again.
const HEAL: Duration = Duration::from_secs(10);
/// Events of this type are our own audit records: to publish what is said of them would never end.
pub const AUDIT_TYPE: &str = "hookbridge.attempt";

pub struct Writer {
    shared: Arc<Shared>,
    settings: Settings,
    audit: Option<mpsc::Sender<Entry>>,
    opener: Box<Opener>,
    ring: Option<Ring>,
    /// Since the last failure: not before this time again.
    heal_at: Option<Instant>,
    tidied_at: Instant,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        settings: Settings,
        audit: Option<mpsc::Sender<Entry>>,
        opener: Box<Opener>,
    ) -> Self {
        Self {
            shared,
            settings,
            audit,
            opener,
            ring: None,
            heal_at: None,
            tidied_at: Instant::now(),
        }
    }

    /// Until the journal is closed.
    pub fn run(mut self) {
        let shared = self.shared.clone();
        let mut batch = Vec::new();
        self.write(&batch);
        loop {
            let (asked, closing) = next_batch(&shared, &mut batch);
            self.write(&batch);
            self.publish(&batch);
            batch.clear();
            {
                let mut pending = shared.pending();
                pending.done = asked;
            }
            shared.written.notify_all();
            if closing {
                self.close();
                return;
            }
        }
    }

    /// Writes, or counts what is lost. Says a failure once.
    fn write(&mut self, batch: &[u8]) {
        if batch.is_empty() && self.ring.is_some() && self.tidied_at.elapsed() < TIDY {
            return;
        }
        self.tidied_at = Instant::now();
        let waiting = self.heal_at.is_some_and(|at| Instant::now() < at);
        let result = if waiting {
            Err(None)
        } else {
            let tried = catch_unwind(AssertUnwindSafe(|| self.try_write(batch)));
            tried
                .unwrap_or_else(|_| Err("the storage library panicked".into()))
                .map_err(Some)
        };
        match result {
            Ok(()) => {
                if self.heal_at.take().is_some() {
                    info!(path = %self.settings.path.display(), "attempts are kept again");
                }
            }
            Err(why) => {
                let lost = record::split(batch).count() as u64;
                self.shared.meters.lost.inc_by(lost);
                let Some(why) = why else { return };
                if self.heal_at.is_none() {
                    error!(path = %self.settings.path.display(), %why, "attempts cannot be kept; deliveries go on without, and it is tried again");
                }
                self.heal_at = Some(Instant::now() + HEAL);
                self.close();
            }
        }
    }

    fn try_write(&mut self, batch: &[u8]) -> Result<(), String> {
        let db = {
            let db = self.shared.db.read();
            db.unwrap_or_else(PoisonError::into_inner).clone()
        };
        let db = match db {
            Some(db) => db,
            None => {
                let db = (self.opener)(&self.settings.path).map_err(|error| error.to_string())?;
                let db = Arc::new(db);
                self.ring = Some(Ring::prepare(&db).map_err(|error| error.to_string())?);
                let mut shared = self
                    .shared
                    .db
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *shared = Some(db.clone());
                db
            }
        };
        let Some(ring) = &mut self.ring else {
            return Err("it was closed".into());
        };
        let limits = Limits {
            now: Timestamp::now(),
            keep_us: i64::try_from(self.settings.keep.as_micros()).unwrap_or(i64::MAX),
            max_bytes: self.settings.max_bytes,
        };
        ring.write(&db, batch, &self.settings.instance, &limits)
            .map_err(|error| error.to_string())?;
        self.shared.meters.bytes.set(ring.bytes as i64);
        Ok(())
    }

    /// Hands records on to be published, as far as there is room.
    fn publish(&self, batch: &[u8]) {
        let Some(audit) = &self.audit else { return };
        let entries = record::split(batch)
            .filter_map(|record| record::entry(record, &self.settings.instance))
            .filter(|entry| entry.what != What::Unmatched && entry.r#type != AUDIT_TYPE);
        for entry in entries {
            if audit.try_send(entry).is_err() {
                self.shared.meters.unpublished.inc();
            }
        }
    }

    fn close(&mut self) {
        self.ring = None;
        let shared = &self.shared;
        let db = {
            let mut db = shared.db.write().unwrap_or_else(PoisonError::into_inner);
            db.take()
        };
        // Closing a file on a broken disk may panic; there is nothing left to save.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
    }
}

/// Waits for something to do and takes what is there. Gives the request that is met by it, and
/// whether it was the last.
fn next_batch(shared: &Shared, batch: &mut Vec<u8>) -> (u64, bool) {
    let mut pending = shared.pending();
    let mut since = None;
    let began = Instant::now();
    loop {
        if pending.closing || pending.asked > pending.done || pending.buffer.len() >= WAKE_BYTES {
            break;
        }
        let deadline = if pending.buffer.is_empty() {
            began + TIDY
        } else {
            *since.get_or_insert_with(Instant::now) + GROUP
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        pending = shared
            .work
            .wait_timeout(pending, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    std::mem::swap(&mut pending.buffer, batch);
    (pending.asked, pending.closing)
}
