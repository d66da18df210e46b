//! State: a table in the file, the last record of each key.
//!
//! There is one instance, so what is told is also what is read: first what the table holds, then each
//! record after it was synced, in the order of the writer.

use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use redb::ReadableDatabase as _;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use super::tables;
use super::writer::Work;
use super::{Declined, Embedded};
use crate::broker::Refused;
use crate::broker::state::{AHEAD, Entry, Keeping, Reading, Record, StateLog};

/// Records read at once.
const AT_ONCE: usize = 500;

/// Who follows, and how many records they have been told of.
#[derive(Default)]
pub struct Told {
    into: Option<mpsc::Sender<Entry>>,
    place: u64,
}

impl Told {
    /// Hands records over; when nobody follows, that is all right.
    async fn hand_over(&mut self, records: Vec<Record>) {
        let Some(into) = &self.into else { return };
        for record in records {
            self.place += 1;
            let place = self.place;
            if into.send(Entry { place, record }).await.is_err() {
                self.into = None;
                return;
            }
        }
    }
}

#[async_trait]
impl StateLog for Embedded {
    async fn tell(&self, records: Vec<Record>) -> Result<(), Refused> {
        let mut told = self.shared.told.clone().lock_owned().await;
        let asked = self.shared.ask(Work::Tell(records.clone())).await;
        asked.map_err(|declined| self.shared.refused(declined))?;
        told.hand_over(records).await;
        Ok(())
    }

    async fn follow(&self, _: Option<u64>) -> Result<Reading, Refused> {
        let mut told = self.shared.told.clone().lock_owned().await;
        let (into, entries) = mpsc::channel(AHEAD);
        told.into = Some(into);
        // Nothing is told before all that is there was handed over.
        tokio::spawn(hand_over_all(self.shared.clone(), told));
        Ok(Reading::new(entries, CancellationToken::new()))
    }

    fn keeping(&self) -> Keeping {
        Keeping::Alone
    }
}

async fn hand_over_all(shared: Arc<Shared>, mut told: OwnedMutexGuard<Told>) {
    let mut after: Option<String> = None;
    loop {
        let (shared, from) = (shared.clone(), after.clone());
        let read = tokio::task::spawn_blocking(move || some_after(&shared, from.as_deref())).await;
        let Ok(Ok(some)) = read else {
            // Whoever follows hears that it has ended, and begins again.
            told.into = None;
            return;
        };
        let Some(last) = some.last() else { return };
        after = Some(last.key.clone());
        told.hand_over(some).await;
    }
}

fn some_after(shared: &Shared, after: Option<&str>) -> Result<Vec<Record>, Declined> {
    let unavailable = |why: redb::Error| Declined::Unavailable(why.to_string());
    let db = shared.file.get();
    let db = db.ok_or_else(|| Declined::Unavailable("the file is closed".into()))?;
    let read = || -> Result<Vec<Record>, redb::Error> {
        let table = db.begin_read()?.open_table(tables::STATE)?;
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = table.range::<&str>((begin, Bound::Unbounded))?;
        rows.take(AT_ONCE)
            .map(|row| {
                let (key, body) = row?;
                Ok(Record {
                    key: key.value().to_owned(),
                    body: Some(Bytes::copy_from_slice(body.value())),
                })
            })
            .collect()
    };
    let found = read();
    if let Err(failure) = &found {
        shared.fail(failure);
    }
    found.map_err(unavailable)
}
