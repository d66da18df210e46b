//! Taking: one loop per lane, which reads ahead in order and hands over as the intake admits.
//!
//! A read finds up to 256 messages or 4 MiB and marks them as busy; a stop gives those back that
//! were not handed over. What cannot be read is dead-lettered as it lies there, in the transaction
//! that removes it, so that it is neither lost nor met again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use redb::ReadableDatabase;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::lane::{Lane, Origin};
use super::record::{self, Stored};
use super::{Embedded, Shared, kind_number, letters, tables, taken};
use crate::broker::envelope::Envelope;
use crate::broker::{Intake, Token};
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::{Event, EventId};

const READ_AHEAD: usize = 256;
const READ_AHEAD_BYTES: usize = 4 << 20;
/// How long to wait after a read that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to sleep at most when nothing is known to become due.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A record of a lane, still as bytes.
struct Found {
    sequence: u64,
    /// The key in `due`, for parked deliveries.
    due_ms: u64,
    /// `None` when the queue names an event that is not there.
    record: Option<Bytes>,
}

/// What one read found, and how long there is nothing more.
struct Batch {
    found: Vec<Found>,
    idle: Duration,
}

/// What a record turned out to be.
enum Message {
    Event(Box<Event>),
    Due(Box<Delivery>, WaitKind),
    Unreadable(String),
}

/// Hands over what lane `number` holds until `stop`.
pub async fn run(broker: Arc<Embedded>, number: usize, intake: Intake, stop: CancellationToken) {
    let shared = broker.shared.clone();
    let lane = shared.lanes.get(number);
    while !stop.is_cancelled() {
        let batch = match read(shared.clone(), lane.clone()).await {
            Ok(batch) => batch,
            Err(error) => {
                shared.fail(&error);
                stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                continue;
            }
        };
        if batch.found.is_empty() {
            let idle = tokio::time::timeout(batch.idle, lane.news.notified());
            let _ = stop.run_until_cancelled(idle).await;
            continue;
        }
        let mut found = batch.found.into_iter();
        for one in found.by_ref() {
            let sequence = one.sequence;
            if hand_over(&broker, number, one, &intake, &stop)
                .await
                .is_none()
            {
                lane.untake(sequence);
                break;
            }
        }
        for left in found {
            lane.untake(left.sequence);
        }
    }
}

/// `None` when it was stopped before the message was handed over.
async fn hand_over(
    broker: &Arc<Embedded>,
    number: usize,
    found: Found,
    intake: &Intake,
    stop: &CancellationToken,
) -> Option<()> {
    let shared = &broker.shared;
    let lane = &shared.lanes.get(number);
    let Found {
        sequence, record, ..
    } = found;
    let Some(record) = record else {
        shared.note_answer(shared.removal(number, sequence));
        return Some(());
    };
    let message = message(shared, lane, sequence, record.clone());
    let size_bytes = match &message {
        Message::Event(event) => event.size_bytes(),
        Message::Due(delivery, _) => delivery.event.size_bytes(),
        Message::Unreadable(why) => {
            warn!(broker = %shared.name, sequence, %why, "embedded broker: a record cannot be read and is dead-lettered as it is");
            let id = EventId::hashed("raw", &[&sequence.to_be_bytes(), &record]);
            let (id, now) = (id.as_str(), Timestamp::now());
            let delivery = letters::unreadable(&shared.name, sequence, id, record, now).delivery;
            let instead_of = Some(shared.removal(number, sequence));
            let reason = Reason::EnvelopeUnreadable;
            if let Err(why) = broker.bury(&delivery, reason, instead_of).await {
                warn!(broker = %shared.name, sequence, %why, "embedded broker: dead-lettering failed, trying again");
                lane.give_back(sequence);
            }
            return Some(());
        }
    };
    let admission = stop.run_until_cancelled(intake.admit(size_bytes)).await?;
    let token = Token {
        epoch: 0,
        lane: number as u32,
        position: sequence,
    };
    shared.outstanding.fetch_add(1, Ordering::AcqRel);
    match message {
        Message::Event(event) => {
            if let Origin::Source { meters, .. } = &lane.origin {
                meters.received.inc();
            }
            intake.event(*event, shared.clone(), token, admission);
        }
        Message::Due(delivery, kind) => {
            intake.due(*delivery, kind, shared.clone(), token, admission);
        }
        Message::Unreadable(_) => unreachable!("handled above"),
    }
    Some(())
}

fn message(shared: &Shared, lane: &Lane, sequence: u64, record: Bytes) -> Message {
    match &lane.origin {
        Origin::Source { role, .. } => match Stored::read(record) {
            Ok(stored) => {
                let taken = taken(&shared.name, stored, sequence);
                Message::Event(Box::new(role.load().naming.event(taken)))
            }
            Err(why) => Message::Unreadable(why.to_string()),
        },
        Origin::Due(kind) => {
            let written = match record::read_delivery(record) {
                Ok(written) => written,
                Err(why) => return Message::Unreadable(why.to_string()),
            };
            match Envelope::read(written.headers, written.body) {
                Ok(envelope) => Message::Due(Box::new(envelope.delivery), *kind),
                Err(why) => Message::Unreadable(why.to_string()),
            }
        }
    }
}

async fn read(shared: Arc<Shared>, lane: Arc<Lane>) -> Result<Batch, redb::Error> {
    let reading = tokio::task::spawn_blocking(move || read_now(&shared, &lane));
    reading
        .await
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("reading panicked".into())))
}

fn read_now(shared: &Shared, lane: &Lane) -> Result<Batch, redb::Error> {
    let failed = shared.suspect.load(Ordering::Acquire);
    let Some(db) = shared.file.get().filter(|_| !failed) else {
        return Ok(Batch {
            found: Vec::new(),
            idle: PAUSE,
        });
    };
    let busy = lane.busy();
    let txn = db.begin_read()?;
    let (found, mut idle) = match &lane.origin {
        Origin::Source { id, .. } => (read_queue(&txn, *id, &busy)?, LOOK_AGAIN),
        Origin::Due(kind) => read_due(&txn, *kind, &busy, shared)?,
    };
    if let Some(again) = lane.next_again() {
        idle = idle.min(again.saturating_duration_since(Instant::now()));
    }
    for one in &found {
        lane.take(one.sequence, one.due_ms);
    }
    Ok(Batch { found, idle })
}

fn read_queue(
    txn: &redb::ReadTransaction,
    source: u32,
    busy: &HashSet<u64>,
) -> Result<Vec<Found>, redb::Error> {
    let queue = txn.open_table(tables::QUEUE)?;
    let events = txn.open_table(tables::EVENTS)?;
    let mut read = ReadAhead::default();
    for row in queue.range(tables::whole_queue(source))? {
        let sequence = row?.0.value().1;
        if busy.contains(&sequence) {
            continue;
        }
        let record = events.get(sequence)?;
        if read.is_full_with(
            sequence,
            0,
            record.map(|r| Bytes::copy_from_slice(r.value())),
        ) {
            break;
        }
    }
    Ok(read.found)
}

fn read_due(
    txn: &redb::ReadTransaction,
    kind: WaitKind,
    busy: &HashSet<u64>,
    shared: &Shared,
) -> Result<(Vec<Found>, Duration), redb::Error> {
    let due = txn.open_table(tables::DUE)?;
    let parked = txn.open_table(tables::PARKED)?;
    let kind = kind_number(kind);
    let now_ms = shared.clock.now_ms();
    let mut read = ReadAhead::default();
    for row in due.range((kind, 0, 0)..=(kind, u64::MAX, u64::MAX))? {
        let (_, due_ms, sequence) = row?.0.value();
        if due_ms > now_ms {
            return Ok((read.found, shared.clock.until(due_ms).min(LOOK_AGAIN)));
        }
        if busy.contains(&sequence) {
            continue;
        }
        let record = parked.get(sequence)?;
        if read.is_full_with(
            sequence,
            due_ms,
            record.map(|r| Bytes::copy_from_slice(r.value())),
        ) {
            break;
        }
    }
    Ok((read.found, LOOK_AGAIN))
}

#[derive(Default)]
struct ReadAhead {
    found: Vec<Found>,
    bytes: usize,
}

impl ReadAhead {
    fn is_full_with(&mut self, sequence: u64, due_ms: u64, record: Option<Bytes>) -> bool {
        self.bytes += record.as_ref().map_or(0, Bytes::len);
        self.found.push(Found {
            sequence,
            due_ms,
            record,
        });
        self.found.len() >= READ_AHEAD || self.bytes >= READ_AHEAD_BYTES
    }
}
