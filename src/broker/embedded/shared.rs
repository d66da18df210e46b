//! What the writer, the takers and the receipts of one embedded broker share.
//!
//! Answers to receipts are collected here without blocking and written by the writer; a failure of
//! the file, whoever meets it, is noted here and mended by the writer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::clock::Clock;
use super::file::File;
use super::lane::{self, Lane, Lanes};
use super::state;
use super::writer::{self, Op, Outcome, Removal, Work};
use super::{DEADLINE, Declined};
use crate::broker::{Answer, Health, Refused, Settlement, Token};
use crate::delivery::WaitKind;

/// What the writer, the takers and the receipts share.
pub struct Shared {
    pub name: Arc<str>,
    pub file: File,
    pub clock: Clock,
    pub max_bytes: u64,
    pub retention: Duration,
    pub lanes: Lanes,
    /// Of every source that the file knows.
    pub all_source_ids: ArcSwap<Vec<u32>>,
    pub health: Mutex<Health>,
    /// The file failed and is to be opened again before it is used.
    pub suspect: AtomicBool,
    pub answers: Mutex<Vec<Removal>>,
    /// Who follows the state; held while something is told.
    pub told: Arc<AsyncMutex<state::Told>>,
    /// The replay lock.
    pub replay: Arc<AsyncMutex<()>>,
    /// Receipts of sources and waits that are not answered yet.
    pub outstanding: AtomicUsize,
    pub all_answered: Notify,
    /// The writer has been woken up and has not looked at the answers since.
    pub woken: AtomicBool,
    /// Weak: the writer ends when the broker is dropped, whoever still holds receipts.
    pub wake: OnceLock<mpsc::WeakSender<Op>>,
}

pub const RETRIES: usize = 0;
pub const HOLDS: usize = 1;

pub fn kind_number(kind: WaitKind) -> u8 {
    match kind {
        WaitKind::Retry => 0,
        WaitKind::Hold => 1,
    }
}

impl Shared {
    pub fn due_lane(&self, kind: WaitKind) -> Arc<Lane> {
        self.lanes.get(match kind {
            WaitKind::Retry => RETRIES,
            WaitKind::Hold => HOLDS,
        })
    }

    /// The stored number of a source's lane.
    pub fn source_id(&self, lane: usize) -> Option<u32> {
        match &self.lanes.all().get(lane)?.origin {
            lane::Origin::Source { id, .. } => Some(*id),
            lane::Origin::Due(_) => None,
        }
    }

    pub fn retention_ms(&self) -> u64 {
        u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX)
    }

    pub fn health(&self) -> Health {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.clone()
    }

    pub fn set_health(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Reading or writing failed: nothing is done with the file until it is opened again.
    pub fn fail(&self, failure: &redb::Error) {
        if !self.suspect.swap(true, Ordering::AcqRel) {
            writer::report(self, failure);
        }
    }

    pub fn collect_answers(&self, at_most: usize) -> Vec<Removal> {
        self.woken.store(false, Ordering::Release);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = answers.len().min(at_most);
        let taken = answers.drain(..count).collect();
        let left = !answers.is_empty();
        drop(answers);
        if left {
            self.wake();
        }
        taken
    }

    pub fn has_answers(&self) -> bool {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        !answers.is_empty()
    }

    pub fn return_answers(&self, mut returned: Vec<Removal>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        returned.append(&mut answers);
        *answers = returned;
    }

    /// Makes the writer look at the answers. A full channel means that it is awake.
    pub fn wake(&self) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(ops) = self.wake.get().and_then(mpsc::WeakSender::upgrade) {
            let _ = ops.try_send(Op::Wake);
        }
    }

    /// A removal is synced.
    pub fn gone(&self, removal: &Removal) {
        let lanes = self.lanes.all();
        match removal {
            Removal::Event { lane, sequence } => {
                lanes[*lane].deepen(-1);
                lanes[*lane].forget(*sequence);
            }
            Removal::Parked { lane, sequence, .. } => lanes[*lane].forget(*sequence),
        }
    }

    /// The removal of what `lane` handed out as `sequence`.
    pub fn removal(&self, lane: usize, sequence: u64) -> Removal {
        let lanes = self.lanes.all();
        match lanes[lane].origin {
            lane::Origin::Due(kind) => Removal::Parked {
                lane,
                kind,
                due_ms: lanes[lane].due_of(sequence),
                sequence,
            },
            lane::Origin::Source { .. } => Removal::Event { lane, sequence },
        }
    }

    /// Gives `work` to the writer and waits until it is synced.
    pub async fn ask(&self, work: Work) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let asked = timeout(DEADLINE, async {
            let ops = self.wake.get()?.upgrade()?;
            ops.send(Op::Do(work, reply)).await.ok()?;
            answer.await.ok()
        });
        match asked.await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(Declined::Unavailable("the writer has ended".into())),
            Err(_) => Err(Declined::Unavailable("the disk does not answer".into())),
        }
    }

    pub fn refused(&self, declined: Declined) -> Refused {
        let broker = self.name.clone();
        let why = declined.to_string();
        match declined {
            Declined::BadTopic(_) | Declined::Full { .. } => Refused::Rejected { broker, why },
            Declined::TooLarge { size_bytes } => Refused::TooLarge { broker, size_bytes },
            Declined::DiskFull | Declined::Unavailable(_) => Refused::Unavailable { broker, why },
        }
    }

    pub fn note_answer(&self, removal: Removal) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(removal);
        drop(answers);
        self.wake();
    }
}

impl Answer for Shared {
    fn answer(&self, token: Token, settlement: Settlement) {
        let (number, sequence) = (token.lane as usize, token.position);
        let lanes = self.lanes.all();
        let lane = &lanes[number];
        match settlement {
            Settlement::Ack => self.note_answer(self.removal(number, sequence)),
            Settlement::Redeliver => lane.give_back(sequence),
        }
        if let lane::Origin::Source { meters, .. } = &lane.origin {
            match settlement {
                Settlement::Ack => meters.settled.inc(),
                Settlement::Redeliver => meters.redelivered.inc(),
            };
        }
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all_answered.notify_waiters();
        }
    }
}
