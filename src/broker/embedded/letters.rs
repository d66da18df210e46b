//! Dead letters: listed without being disturbed, claimed by one at a time.
//!
//! A claim lives in memory only: a crash returns it. Settled, the letter is out of every list at
//! once and out of the file with the next transaction; dropped, it can be claimed again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable};

use super::writer::LetterKey;
use super::{Declined, LETTERS, Shared, record, tables};
use crate::broker::envelope::{Envelope, Stay};
use crate::broker::{Claim, Letter, Receipt, Token};
use crate::delivery::{Delivery, DeliveryId, Reason};
use crate::event::{Event, EventId, Headers, Origin, Place};
use crate::subscription::Uid;

/// The letters that somebody has taken.
#[derive(Default)]
pub struct Claims {
    last: u64,
    held: HashMap<u64, Held>,
}

struct Held {
    key: LetterKey,
    /// Settled; the transaction that removes it is on its way.
    settled: bool,
}

impl Claims {
    /// The claim's number, or `None` when the letter is claimed already.
    fn hold(&mut self, key: LetterKey) -> Option<u64> {
        if self.held.values().any(|held| held.key == key) {
            return None;
        }
        self.last += 1;
        let settled = false;
        self.held.insert(self.last, Held { key, settled });
        Some(self.last)
    }

    /// Settled: what to remove.
    pub fn remove(&mut self, claim: u64) -> Option<LetterKey> {
        let held = self.held.get_mut(&claim)?;
        held.settled = true;
        Some(held.key.clone())
    }

    /// Returned, or removed for good.
    pub fn forget(&mut self, claim: u64) {
        self.held.remove(&claim);
    }

    fn is_settled(&self, key: &LetterKey) -> bool {
        self.held
            .values()
            .any(|held| held.settled && held.key == *key)
    }
}

/// The oldest letters.
pub async fn list(shared: Arc<Shared>, limit: usize) -> Result<Vec<Letter>, Declined> {
    reading(shared, move |shared, db| {
        let dead = db.begin_read()?.open_table(tables::DEAD)?;
        let mut letters = Vec::new();
        for row in dead.iter()? {
            if letters.len() >= limit {
                break;
            }
            let (key, record) = row?;
            let (dead_at_ms, delivery, generation) = key.value();
            let key = LetterKey {
                dead_at_ms,
                delivery: delivery.to_owned(),
                generation,
            };
            if !shared.claims().is_settled(&key) {
                let record = Bytes::copy_from_slice(record.value());
                letters.push(letter(&shared.name, &key, record));
            }
        }
        Ok(letters)
    })
    .await
}

/// Takes one letter; `None` when it is not there, or somebody else has it.
pub async fn claim(
    shared: Arc<Shared>,
    delivery: String,
    generation: u32,
) -> Result<Option<Claim>, Declined> {
    let answers = shared.clone();
    let found = reading(shared, move |shared, db| {
        // Claimed before it is read: a letter that is being removed is either still claimed by
        // somebody or no longer in a transaction begun after that.
        let at = db.begin_read()?.open_table(tables::DEAD_AT)?;
        let Some(dead_at_ms) = at
            .get((delivery.as_str(), generation))?
            .map(|at| at.value())
        else {
            return Ok(None);
        };
        let key = LetterKey {
            dead_at_ms,
            delivery,
            generation,
        };
        let Some(claim) = shared.claims().hold(key.clone()) else {
            return Ok(None);
        };
        let record = db.begin_read().map_err(redb::Error::from).and_then(|txn| {
            let dead = txn.open_table(tables::DEAD)?;
            let record = dead.get((dead_at_ms, key.delivery.as_str(), generation))?;
            Ok(record.map(|record| Bytes::copy_from_slice(record.value())))
        });
        match record {
            Ok(Some(record)) => Ok(Some((claim, letter(&shared.name, &key, record)))),
            Ok(None) => {
                shared.claims().forget(claim);
                Ok(None)
            }
            Err(error) => {
                shared.claims().forget(claim);
                Err(error)
            }
        }
    })
    .await?;
    Ok(found.map(|(claim, letter)| {
        let token = Token {
            epoch: 0,
            lane: LETTERS,
            position: claim,
        };
        let receipt = Receipt::unbounded(answers, token);
        Claim { letter, receipt }
    }))
}

/// Reads the file beside everything else that goes on.
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
    let read = tokio::time::timeout(super::Embedded::DEADLINE, reading).await;
    match read {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Declined::Unavailable("reading panicked".into())),
        Err(_) => Err(Declined::Unavailable("the disk does not answer".into())),
    }
}

fn letter(broker: &Arc<str>, key: &LetterKey, record: Bytes) -> Letter {
    let envelope = record::read_delivery(record.clone())
        .ok()
        .and_then(|written| Envelope::read(written.headers, written.body).ok());
    match envelope {
        Some(Envelope {
            delivery,
            stay: Stay::Dead { reason, at },
            reference,
        }) => Letter {
            delivery,
            reason,
            dead_at: at,
            has_body: !reference,
        },
        _ => Letter {
            delivery: Delivery {
                id: DeliveryId::from_envelope(&key.delivery),
                generation: key.generation,
                ..unreadable(broker, 0, record)
            },
            reason: Reason::EnvelopeUnreadable,
            dead_at: Timestamp::from_millisecond(key.dead_at_ms.cast_signed()).unwrap_or_default(),
            has_body: true,
        },
    }
}

/// A delivery to nobody, whose body is the record that could not be read.
pub fn unreadable(broker: &Arc<str>, sequence: u64, record: Bytes) -> Delivery {
    let event = Event {
        id: EventId::hashed("raw", &[&sequence.to_be_bytes(), &record]),
        topic: "unreadable".into(),
        kind: "unreadable".into(),
        source: "".into(),
        published_at: None,
        content_type: Some("application/octet-stream".into()),
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: record,
        origin: Origin {
            broker: broker.clone(),
            place: Place::Embedded {
                topic: "unreadable".into(),
                sequence,
            },
        },
    };
    let nobody = Uid::from_stored("");
    Delivery::first(Arc::new(event), "".into(), nobody, Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LetterKey {
        LetterKey {
            dead_at_ms: 1,
            delivery: "d".into(),
            generation: 0,
        }
    }

    #[test]
    fn a_letter_is_claimed_by_one_at_a_time() {
        let mut claims = Claims::default();
        let first = claims.hold(key()).unwrap();
        assert_eq!(claims.hold(key()), None);
        claims.forget(first);
        assert!(claims.hold(key()).is_some());
    }

    #[test]
    fn a_settled_letter_stays_claimed_until_it_is_gone_from_the_file() {
        let mut claims = Claims::default();
        let claim = claims.hold(key()).unwrap();
        assert!(!claims.is_settled(&key()));
        assert_eq!(claims.remove(claim), Some(key()));
        assert!(claims.is_settled(&key()));
        assert_eq!(claims.hold(key()), None);
    }
}
