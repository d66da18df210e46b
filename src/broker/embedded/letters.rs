//! Dead letters: gone through in chunks, each in a reading transaction of its own.
//!
//! The pass ends at the letter that was the last when it began. Removing and sending again go through
//! the writer, a transaction each, and are answered after the sync; the replay lock is a lock of the process, since no other process
//! can have the file open.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::writer::{LetterKey, Work};
use super::{Declined, Shared, clock, record, tables};
use crate::broker::envelope::{Dialect, Envelope};
use crate::broker::letters::{PATIENCE, nothing_to_remove};
use crate::broker::{Broker, Letter, Letters, NotOpened, Purpose, Refused, Wait};
use crate::event::{Headers, Origin, Place};

/// Letters in memory at once, unless they are large.
const CHUNK: usize = 64;
/// Bytes of records after which a chunk takes no more.
const CHUNK_BYTES: usize = 4 << 20;

/// One pass over the dead letters.
pub struct Pass {
    shared: Arc<Shared>,
    total: u64,
    /// The last one when the pass began; `None`: there are none.
    end: Option<LetterKey>,
    /// The one that was read last.
    read: Option<LetterKey>,
    chunk: VecDeque<(LetterKey, Letter)>,
    in_hand: Option<LetterKey>,
    /// Held while letters are changed.
    lock: Option<OwnedMutexGuard<()>>,
}

/// Opens the letters, as far as they reach now.
pub async fn open(shared: Arc<Shared>, purpose: Purpose) -> Result<Pass, NotOpened> {
    let lock = match purpose {
        Purpose::List => None,
        Purpose::Change => {
            let lock = timeout(PATIENCE, shared.replay.clone().lock_owned()).await;
            let busy = |_| NotOpened::Busy("another request to this bridge is at it".into());
            Some(lock.map_err(busy)?)
        }
    };
    let found = reading(shared.clone(), |_, db| {
        let dead = db.begin_read()?.open_table(tables::DEAD)?;
        let end = dead.last()?.map(|(key, _)| LetterKey::from(key.value()));
        Ok((dead.len()?, end))
    });
    let (total, end) = found.await.map_err(|declined| shared.refused(declined))?;
    Ok(Pass {
        shared,
        total,
        end,
        read: None,
        chunk: VecDeque::new(),
        in_hand: None,
        lock,
    })
}

impl Pass {
    async fn read_on(&mut self) -> Result<(), Declined> {
        let Some(end) = self.end.clone() else {
            return Ok(());
        };
        let read = self.read.clone();
        let chunk = reading(self.shared.clone(), move |shared, db| {
            let dead = db.begin_read()?.open_table(tables::DEAD)?;
            let from = match &read {
                Some(read) => Bound::Excluded(read.as_tuple()),
                None => Bound::Unbounded,
            };
            let mut chunk = VecDeque::new();
            let mut bytes = 0;
            for row in dead.range((from, Bound::Included(end.as_tuple())))? {
                let (key, record) = row?;
                let key = LetterKey::from(key.value());
                let record = Bytes::copy_from_slice(record.value());
                bytes += record.len();
                let letter = letter(&shared.name, &key, record);
                chunk.push_back((key, letter));
                if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
                    break;
                }
            }
            Ok(chunk)
        });
        self.chunk = chunk.await?;
        if let Some((last, _)) = self.chunk.back() {
            self.read = Some(last.clone());
        }
        Ok(())
    }
}

#[async_trait]
impl Letters for Pass {
    fn total(&self) -> Option<u64> {
        Some(self.total)
    }

    async fn next(&mut self) -> Result<Option<Letter>, Refused> {
        self.in_hand = None;
        if self.chunk.is_empty() {
            let read = self.read_on().await;
            read.map_err(|declined| self.shared.refused(declined))?;
        }
        Ok(self.chunk.pop_front().map(|(key, letter)| {
            self.in_hand = Some(key);
            letter
        }))
    }

    async fn remove(&mut self) -> Result<(), Refused> {
        let key = match (&self.lock, self.in_hand.take()) {
            (Some(_), Some(key)) => key,
            _ => return Err(nothing_to_remove(&self.shared.name)),
        };
        let removed = self.shared.ask(Work::Forget(key)).await;
        removed
            .map(drop)
            .map_err(|declined| self.shared.refused(declined))
    }

    /// In one transaction: no letter is ever both here and in its next life.
    async fn send_again(&mut self, _: &dyn Broker, letter: &Letter) -> Result<(), Refused> {
        let (Some(_), Some(key)) = (&self.lock, &self.in_hand) else {
            return Err(nothing_to_remove(&self.shared.name));
        };
        let delivery = letter.revived_on(&self.shared.name)?;
        let Wait { kind, delay } = Wait::AT_ONCE;
        let envelope = Envelope::parked(&delivery, kind, delay, delay);
        let work = Work::Revive {
            letter: key.clone(),
            due_ms: self.shared.clock.due_ms(delay),
            record: record::write_delivery(&envelope.write(Dialect::Opaque, usize::MAX)),
        };
        let sent = self.shared.ask(work).await;
        sent.map_err(|declined| self.shared.refused(declined))?;
        self.in_hand = None;
        Ok(())
    }
}

pub async fn reading<T: Send + 'static>(
    shared: Arc<Shared>,
    read: impl FnOnce(&Shared, &redb::Database) -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, Declined> {
    let reading = tokio::task::spawn_blocking(move || {
        let failed = shared.suspect.load(Ordering::Acquire);
        let Some(db) = shared.file.get().filter(|_| !failed) else {
            return Err(Declined::Unavailable(shared.health().to_string()));
        };
        read(&shared, &db).map_err(|error| {
            shared.fail(&error);
            Declined::Unavailable(error.to_string())
        })
    });
    let read = tokio::time::timeout(super::DEADLINE, reading).await;
    match read {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Declined::Unavailable("reading panicked".into())),
        Err(_) => Err(Declined::Unavailable("the disk does not answer".into())),
    }
}

fn letter(broker: &Arc<str>, key: &LetterKey, record: Bytes) -> Letter {
    let written = record::read_delivery(record.clone()).ok();
    let envelope = written.and_then(|written| Envelope::read(written.headers, written.body).ok());
    envelope.and_then(Letter::of).unwrap_or_else(|| {
        let dead_at = clock::timestamp(key.dead_at_ms).unwrap_or_default();
        let mut letter = unreadable(broker, 0, &key.delivery, record, dead_at);
        letter.delivery.generation = key.generation;
        letter
    })
}

/// A letter to nobody, whose body is the record that could not be read.
pub fn unreadable(
    broker: &Arc<str>,
    sequence: u64,
    id: &str,
    record: Bytes,
    dead_at: Timestamp,
) -> Letter {
    let topic: Arc<str> = "unreadable".into();
    let origin = Origin {
        broker: broker.clone(),
        place: Place::Embedded {
            topic: topic.clone(),
            sequence,
        },
    };
    Letter::unreadable(origin, topic, id, Headers::default(), record, dead_at)
}

#[cfg(test)]
mod tests {
    use super::super::{Embedded, Settings};
    use super::*;
    use crate::delivery::Reason;

    /// As by a pass that was not told in time that it was done.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_letter_that_is_sent_again_twice_is_parked_once() {
        let folder = tempfile::tempdir().unwrap();
        let broker = Embedded::open(Settings::for_tests(folder.path())).unwrap();
        let (body, now) = (Bytes::from_static(b"x"), Timestamp::now());
        let dead = unreadable(&"here".into(), 1, "dlv_1", body, now).delivery;
        broker.dead_letter(&dead, Reason::Gone).await.unwrap();
        let opened = open(broker.shared.clone(), Purpose::Change).await;
        let mut pass = opened.unwrap();
        let letter = pass.next().await.unwrap().unwrap();
        let key = pass.in_hand.clone();
        pass.send_again(&*broker, &letter).await.unwrap();
        pass.in_hand = key;
        pass.send_again(&*broker, &letter).await.unwrap();
        let parked = broker.parked().await.unwrap();
        assert_eq!(parked.iter().map(|row| row.count).sum::<u64>(), 1);
    }
}
