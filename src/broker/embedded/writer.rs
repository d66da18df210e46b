//! The writer: the one thread that changes the file, a group of operations per transaction.
//!
//! It takes what waits (up to 1,024 operations) together with all answers to receipts, commits once
//! and answers each operation after the sync. An operation whose asker has given up is passed over.
//! When the file fails, every operation of the group is refused, answers are kept for later (their
//! number is bounded by the windows), and the file is opened again, at most once a second.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::change::Change;
use super::tables::{self, Counts};
use super::{Declined, Shared};
use crate::broker::Health;
use crate::broker::state::Record;
use crate::delivery::WaitKind;

/// Operations per transaction, and waiting for one.
pub const GROUP: usize = 1_024;
/// Answers per transaction.
const ANSWERS: usize = 8_192;
const REOPEN_EVERY: Duration = Duration::from_secs(1);
const SWEEP_EVERY: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });
/// A wall clock that moved by less is not worth a transaction.
const DRIFT_NOTED_MS: u64 = 500;

/// A change to the file that somebody waits for.
pub enum Work {
    Publish(Vec<Accepted>),
    Park {
        kind: WaitKind,
        due_ms: u64,
        delay_ms: u64,
        record: Vec<u8>,
    },
    Dead {
        key: LetterKey,
        record: Vec<u8>,
        /// What the letter is made of, removed in the same transaction.
        instead_of: Option<Removal>,
    },
    /// A letter is done with.
    Forget(LetterKey),
    /// A letter is done with, and parked in its next life: both or neither. Neither where it is gone.
    Revive {
        letter: LetterKey,
        due_ms: u64,
        record: Vec<u8>,
    },
    /// Parked deliveries that are to be due at once.
    Bring(Vec<Place>),
    /// Parked deliveries that are to go.
    Discard(Vec<Place>),
    /// Records of the state, which take the place of those of their keys.
    Tell(Vec<Record>),
    /// Nothing but the answers given so far.
    Flush,
}

/// Where a delivery is parked: its key in `due`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub kind: WaitKind,
    pub due_ms: u64,
    pub sequence: u64,
}

/// An event on its way into the file.
pub struct Accepted {
    /// Positions of the lanes that take it; at least one.
    pub lanes: Vec<usize>,
    pub at_ms: u64,
    pub record: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LetterKey {
    pub dead_at_ms: u64,
    pub delivery: String,
    pub generation: u32,
}

impl LetterKey {
    pub fn as_tuple(&self) -> (u64, &str, u32) {
        (self.dead_at_ms, &self.delivery, self.generation)
    }
}

impl From<(u64, &str, u32)> for LetterKey {
    fn from((dead_at_ms, delivery, generation): (u64, &str, u32)) -> Self {
        Self {
            dead_at_ms,
            delivery: delivery.to_owned(),
            generation,
        }
    }
}

/// Something that is done with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    Event {
        lane: usize,
        sequence: u64,
    },
    Parked {
        lane: usize,
        kind: WaitKind,
        due_ms: u64,
        sequence: u64,
    },
}

/// What is sent to the writer.
pub enum Op {
    Do(Work, oneshot::Sender<Outcome>),
    /// Look around: answers wait, or time has passed.
    Wake,
}

pub struct Writer {
    shared: Arc<Shared>,
    ops: mpsc::Receiver<Op>,
    counts: Counts,
    /// The drift that the file knows; `None` after it was opened again, which makes the next
    /// transaction write it and so prove that the file can be written.
    noted_drift_ms: Option<i64>,
    reopened_at: Instant,
    swept_at: Instant,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, ops: mpsc::Receiver<Op>, counts: Counts) -> Self {
        Self {
            shared,
            ops,
            counts,
            noted_drift_ms: Some(0),
            reopened_at: Instant::now(),
            swept_at: Instant::now(),
        }
    }

    /// Works until every sender is gone and what they sent is done, then closes the file.
    pub fn run(mut self) {
        while let Some(first) = self.ops.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(op) = next {
                match op {
                    Op::Do(work, reply) if !reply.is_closed() => group.push((work, reply)),
                    Op::Do(..) | Op::Wake => {}
                }
                next = (group.len() < GROUP)
                    .then(|| self.ops.try_recv().ok())
                    .flatten();
            }
            self.work(group);
        }
        while self.shared.has_answers() && !self.shared.suspect.load(Ordering::Acquire) {
            self.work(Vec::new());
        }
        self.shared.file.close();
    }

    fn work(&mut self, group: Vec<(Work, oneshot::Sender<Outcome>)>) {
        self.mend();
        // Answers are collected after the operations: one that came too late to wake us up found
        // the channel full of operations, and those have been taken before this line.
        let answers = self.shared.collect_answers(ANSWERS);
        let failed = self.shared.suspect.load(Ordering::Acquire);
        let Some(db) = self.shared.file.get().filter(|_| !failed) else {
            self.shared.return_answers(answers);
            let why = self.shared.health().to_string();
            for (_, reply) in group {
                let _ = reply.send(Err(Declined::Unavailable(why.clone())));
            }
            return;
        };
        let (works, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let done = catch_unwind(AssertUnwindSafe(|| self.commit(&db, &works, &answers)));
        drop(db);
        match done {
            Ok(Ok(committed)) => {
                self.counts = committed.counts;
                self.after(&works, &committed.outcomes, &answers);
                for (reply, outcome) in replies.into_iter().zip(committed.outcomes) {
                    let _ = reply.send(outcome);
                }
            }
            Ok(Err(failure)) => self.failed(answers, replies, &failure),
            Err(_) => self.failed(
                answers,
                replies,
                &redb::Error::Corrupted("writing panicked".into()),
            ),
        }
    }

    /// Opens the file again after it failed.
    fn mend(&mut self) {
        let suspect = self.shared.suspect.load(Ordering::Acquire);
        let due = self.reopened_at.elapsed() >= REOPEN_EVERY;
        if !suspect || !due {
            return;
        }
        self.reopened_at = Instant::now();
        let file = &self.shared.file;
        let opened = file.reopen().map_err(|error| error.to_string());
        let counted = opened.and_then(|()| {
            let db = file.get().ok_or("closed")?;
            tables::counts(&db).map_err(|error| error.to_string())
        });
        match counted {
            Ok(counts) => {
                self.counts = counts;
                self.noted_drift_ms = None;
                self.shared.suspect.store(false, Ordering::Release);
                info!(broker = %self.shared.name, "embedded broker: the file is open again");
            }
            Err(why) => self.shared.set_health(Health::Down { why }),
        }
    }

    fn failed(
        &self,
        answers: Vec<Removal>,
        replies: Vec<oneshot::Sender<Outcome>>,
        failure: &redb::Error,
    ) {
        self.shared.return_answers(answers);
        self.shared.fail(failure);
        let declined = match failure {
            redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
                Declined::DiskFull
            }
            other => Declined::Unavailable(other.to_string()),
        };
        for reply in replies {
            let _ = reply.send(Err(declined.clone()));
        }
    }

    fn commit(
        &mut self,
        db: &Database,
        works: &[Work],
        answers: &[Removal],
    ) -> Result<Committed, redb::Error> {
        let drift_ms = self.shared.clock.drift_ms();
        let drifted = self
            .noted_drift_ms
            .is_none_or(|noted| drift_ms.abs_diff(noted) >= DRIFT_NOTED_MS);
        let sweep_before = self.sweep_before(db)?;
        let mut committed = Committed {
            counts: self.counts,
            outcomes: Vec::with_capacity(works.len()),
        };
        if works.is_empty() && answers.is_empty() && !drifted && sweep_before.is_none() {
            return Ok(committed);
        }
        let txn = db.begin_write()?;
        {
            let mut change = Change::begin(&txn, &self.shared, self.counts)?;
            for answer in answers {
                change.remove(answer)?;
            }
            for work in works {
                committed.outcomes.push(change.apply(work)?);
            }
            if let Some(before_ms) = sweep_before {
                change.sweep(before_ms)?;
            }
            if drifted {
                let drift_ms = drift_ms.cast_unsigned();
                change.meta.insert(tables::CLOCK_DRIFT_MS, drift_ms)?;
            }
            committed.counts = change.finish()?;
        }
        txn.commit()?;
        if drifted {
            self.noted_drift_ms = Some(drift_ms);
        }
        if self.shared.health() != Health::Ready {
            self.shared.set_health(Health::Ready);
        }
        Ok(committed)
    }

    /// Events accepted before this are due for removal, if there are any and it is time to look.
    fn sweep_before(&mut self, db: &Database) -> Result<Option<u64>, redb::Error> {
        if self.swept_at.elapsed() < SWEEP_EVERY {
            return Ok(None);
        }
        let retention_ms = self.shared.retention_ms();
        let before_ms = super::clock::wall_ms().saturating_sub(retention_ms);
        let published = db.begin_read()?.open_table(tables::PUBLISHED)?;
        let oldest = published.first()?.map(|(key, _)| key.value().0);
        if oldest.is_some_and(|oldest| oldest < before_ms) {
            return Ok(Some(before_ms));
        }
        self.swept_at = Instant::now();
        Ok(None)
    }

    /// Tells the lanes what the synced transaction has changed.
    fn after(&self, works: &[Work], outcomes: &[Outcome], answers: &[Removal]) {
        let shared = &self.shared;
        for answer in answers {
            shared.gone(answer);
        }
        let lanes = shared.lanes.all();
        let mut deeper = vec![0; lanes.len()];
        for (work, outcome) in works.iter().zip(outcomes) {
            match (work, outcome) {
                (_, Err(_)) | (Work::Flush | Work::Forget(_) | Work::Tell(_), _) => {}
                (Work::Publish(events), Ok(_)) => {
                    for &lane in events.iter().flat_map(|event| &event.lanes) {
                        deeper[lane] += 1;
                    }
                }
                (Work::Park { kind, .. }, Ok(_)) => shared.due_lane(*kind).news.notify_one(),
                (Work::Revive { .. }, Ok(_)) => {
                    shared.due_lane(WaitKind::Retry).news.notify_one();
                }
                (Work::Bring(places), Ok(_)) => {
                    for kind in [WaitKind::Retry, WaitKind::Hold] {
                        if places.iter().any(|place| place.kind == kind) {
                            shared.due_lane(kind).news.notify_one();
                        }
                    }
                }
                (Work::Discard(_), Ok(_)) => {}
                (Work::Dead { instead_of, .. }, Ok(_)) => {
                    if let Some(removal) = instead_of {
                        shared.gone(removal);
                    }
                }
            }
        }
        for (lane, more) in lanes.iter().zip(deeper) {
            if more > 0 {
                lane.deepen(more);
                lane.news.notify_one();
            }
        }
    }
}

/// Of an order, for each of its places whether there was anything to do; of other work nothing.
pub type Outcome = Result<Vec<bool>, Declined>;

struct Committed {
    counts: Counts,
    outcomes: Vec<Outcome>,
}

/// Says once per failure what happened, for logs and `/readyz`.
pub fn report(shared: &Shared, failure: &redb::Error) {
    let why = match failure {
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
            "the disk is full; free some space, nothing else is needed".to_owned()
        }
        other => other.to_string(),
    };
    let path = shared.file.path().display();
    error!(broker = %shared.name, %path, %why, "embedded broker: the file failed, opening it again");
    shared.set_health(Health::Down { why });
}
