//! One transaction of the writer: what an operation or an answer does to the tables.
//!
//! Nothing here commits, waits or tells anybody; [`super::writer`] does.

use redb::ReadableTable;

use super::record::Stored;
use super::tables::{self, Counts};
use super::writer::{Accepted, LetterKey, Outcome, Place, Removal, Work};
use super::{Declined, Shared, kind_number};
use crate::broker::state::Record;
use crate::delivery::WaitKind;

/// Events removed in one transaction, so that nobody waits long for it.
const SWEEP_AT_ONCE: usize = if cfg!(test) { 3 } else { 10_000 };

/// One transaction under way.
pub struct Change<'t> {
    txn: &'t redb::WriteTransaction,
    shared: &'t Shared,
    counts: Counts,
    pub meta: redb::Table<'t, &'static str, u64>,
    events: redb::Table<'t, u64, &'static [u8]>,
    queue: redb::Table<'t, (u32, u64), ()>,
    published: redb::Table<'t, (u64, u64), ()>,
    due: redb::Table<'t, (u8, u64, u64), u64>,
    parked: redb::Table<'t, u64, &'static [u8]>,
    dead: redb::Table<'t, (u64, &'static str, u32), &'static [u8]>,
    dead_at: redb::Table<'t, (&'static str, u32), u64>,
}

impl<'t> Change<'t> {
    pub fn begin(
        txn: &'t redb::WriteTransaction,
        shared: &'t Shared,
        counts: Counts,
    ) -> Result<Self, redb::Error> {
        Ok(Self {
            txn,
            shared,
            counts,
            meta: txn.open_table(tables::META)?,
            events: txn.open_table(tables::EVENTS)?,
            queue: txn.open_table(tables::QUEUE)?,
            published: txn.open_table(tables::PUBLISHED)?,
            due: txn.open_table(tables::DUE)?,
            parked: txn.open_table(tables::PARKED)?,
            dead: txn.open_table(tables::DEAD)?,
            dead_at: txn.open_table(tables::DEAD_AT)?,
        })
    }

    pub fn apply(&mut self, work: &Work) -> Result<Outcome, redb::Error> {
        match work {
            Work::Publish(events) => return self.publish(events),
            Work::Park {
                kind,
                due_ms,
                delay_ms,
                record,
            } => self.park(*kind, *due_ms, *delay_ms, record)?,
            Work::Dead {
                key,
                record,
                instead_of,
            } => {
                if let Some(removal) = instead_of {
                    self.remove(removal)?;
                }
                self.bury(key, record)?;
            }
            Work::Forget(key) => self.forget(key)?,
            Work::Revive {
                letter,
                due_ms,
                record,
            } => {
                // Asked for again after the first answer was not waited for: it has been done.
                if self.dead.get(letter.as_tuple())?.is_some() {
                    self.park(WaitKind::Retry, *due_ms, 0, record)?;
                    self.forget(letter)?;
                }
            }
            Work::Bring(places) => return self.bring(places).map(Ok),
            Work::Discard(places) => return self.discard(places).map(Ok),
            Work::Tell(records) => self.tell(records)?,
            Work::Flush => {}
        }
        Ok(Ok(Vec::new()))
    }

    /// Its table is opened only where there is something to tell.
    fn tell(&mut self, records: &[Record]) -> Result<(), redb::Error> {
        let mut state = self.txn.open_table(tables::STATE)?;
        for record in records {
            match &record.body {
                Some(body) => state.insert(record.key.as_str(), &body[..])?,
                None => state.remove(record.key.as_str())?,
            };
        }
        Ok(())
    }

    fn next_sequence(&mut self) -> u64 {
        let sequence = self.counts.next_sequence;
        self.counts.next_sequence += 1;
        sequence
    }

    /// All of them or none.
    fn publish(&mut self, events: &[Accepted]) -> Result<Outcome, redb::Error> {
        let more: u64 = events.iter().map(|event| event.record.len() as u64).sum();
        let max_bytes = self.shared.max_bytes;
        if self.counts.bytes.saturating_add(more) > max_bytes {
            return Ok(Err(Declined::Full { max_bytes }));
        }
        for event in events {
            let sequence = self.next_sequence();
            self.events.insert(sequence, event.record.as_slice())?;
            for &lane in &event.lanes {
                if let Some(id) = self.shared.source_id(lane) {
                    self.queue.insert((id, sequence), ())?;
                }
            }
            if !self.shared.retention.is_zero() {
                self.published.insert((event.at_ms, sequence), ())?;
            }
        }
        self.counts.bytes += more;
        Ok(Ok(Vec::new()))
    }

    fn park(
        &mut self,
        kind: WaitKind,
        due_ms: u64,
        delay_ms: u64,
        record: &[u8],
    ) -> Result<(), redb::Error> {
        let sequence = self.next_sequence();
        self.due
            .insert((kind_number(kind), due_ms, sequence), delay_ms)?;
        self.parked.insert(sequence, record)?;
        self.counts.bytes += record.len() as u64;
        Ok(())
    }

    /// A letter written twice (a crash between the letter and the answer) is one letter.
    fn bury(&mut self, key: &LetterKey, record: &[u8]) -> Result<(), redb::Error> {
        let name = (key.delivery.as_str(), key.generation);
        let earlier = self.dead_at.insert(name, key.dead_at_ms)?;
        let earlier = earlier.map(|at| at.value());
        if let Some(earlier) = earlier {
            let old = self.dead.remove((earlier, name.0, name.1))?;
            let freed = old.map_or(0, |old| old.value().len() as u64);
            self.counts.bytes = self.counts.bytes.saturating_sub(freed);
        }
        self.dead.insert((key.dead_at_ms, name.0, name.1), record)?;
        self.counts.bytes += record.len() as u64;
        Ok(())
    }

    fn bring(&mut self, places: &[Place]) -> Result<Vec<bool>, redb::Error> {
        let now_ms = self.shared.clock.now_ms();
        let mut brought = Vec::with_capacity(places.len());
        for place in places {
            let delay_ms = self.take_waiting(place, now_ms)?;
            if let Some(delay_ms) = delay_ms {
                let earlier = (kind_number(place.kind), now_ms, place.sequence);
                self.due.insert(earlier, delay_ms)?;
            }
            brought.push(delay_ms.is_some());
        }
        Ok(brought)
    }

    fn discard(&mut self, places: &[Place]) -> Result<Vec<bool>, redb::Error> {
        let now_ms = self.shared.clock.now_ms();
        let mut gone = Vec::with_capacity(places.len());
        for place in places {
            let was_there = self.take_waiting(place, now_ms)?.is_some();
            if was_there {
                let old = self.parked.remove(place.sequence)?;
                let freed = old.map_or(0, |old| old.value().len() as u64);
                self.counts.bytes = self.counts.bytes.saturating_sub(freed);
            }
            gone.push(was_there);
        }
        Ok(gone)
    }

    /// Takes one out of the index and tells its delay, if it waits there still. Those that are due by
    /// now are on their way already, perhaps in somebody's hands.
    fn take_waiting(&mut self, place: &Place, now_ms: u64) -> Result<Option<u64>, redb::Error> {
        let &Place {
            kind,
            due_ms,
            sequence,
        } = place;
        if due_ms <= now_ms {
            return Ok(None);
        }
        let delay_ms = self.due.remove((kind_number(kind), due_ms, sequence))?;
        Ok(delay_ms.map(|delay_ms| delay_ms.value()))
    }

    pub fn remove(&mut self, removal: &Removal) -> Result<(), redb::Error> {
        match removal {
            Removal::Event { lane, sequence } => {
                let Some(id) = self.shared.source_id(*lane) else {
                    return Ok(());
                };
                let was_there = self.queue.remove((id, *sequence))?.is_some();
                if was_there && !self.is_wanted(*sequence)? {
                    self.settled(*sequence)?;
                }
            }
            Removal::Parked {
                kind,
                due_ms,
                sequence,
                ..
            } => {
                self.due.remove((kind_number(*kind), *due_ms, *sequence))?;
                let old = self.parked.remove(sequence)?;
                let freed = old.map_or(0, |old| old.value().len() as u64);
                self.counts.bytes = self.counts.bytes.saturating_sub(freed);
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: &LetterKey) -> Result<(), redb::Error> {
        let old = self.dead.remove(key.as_tuple())?;
        let freed = old.map_or(0, |old| old.value().len() as u64);
        self.counts.bytes = self.counts.bytes.saturating_sub(freed);
        let name = (key.delivery.as_str(), key.generation);
        let at = self.dead_at.get(name)?.map(|at| at.value());
        if at == Some(key.dead_at_ms) {
            self.dead_at.remove(name)?;
        }
        Ok(())
    }

    /// Whether a source has still to settle it, be it one that the config no longer has.
    fn is_wanted(&self, sequence: u64) -> Result<bool, redb::Error> {
        for &source in self.shared.all_source_ids.load().iter() {
            if self.queue.get((source, sequence))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An event that no source wants any more goes at once, or when its retention is over: then it
    /// has to be in the index that [`Change::sweep`] reads, where it is not if it was accepted under no
    /// retention, or was passed by under a shorter one.
    fn settled(&mut self, sequence: u64) -> Result<(), redb::Error> {
        if self.shared.retention.is_zero() {
            return self.delete_event(sequence);
        }
        let record = self.events.get(sequence)?;
        let at_ms = record.and_then(|record| Stored::accepted_ms(record.value()));
        let retention_ms = self.shared.retention_ms();
        let kept = at_ms.filter(|at| at.saturating_add(retention_ms) > super::clock::wall_ms());
        let Some(at_ms) = kept else {
            return self.delete_event(sequence);
        };
        if self.published.get((at_ms, sequence))?.is_none() {
            self.published.insert((at_ms, sequence), ())?;
        }
        Ok(())
    }

    fn delete_event(&mut self, sequence: u64) -> Result<(), redb::Error> {
        let old = self.events.remove(sequence)?;
        let freed = old.map_or(0, |old| old.value().len() as u64);
        self.counts.bytes = self.counts.bytes.saturating_sub(freed);
        Ok(())
    }

    /// Removes settled events that were accepted before `before_ms`. Those still wanted lose only
    /// their place in this index and are removed when the last source settles them.
    pub fn sweep(&mut self, before_ms: u64) -> Result<(), redb::Error> {
        let mut old = Vec::new();
        for row in self.published.range(..(before_ms, 0))?.take(SWEEP_AT_ONCE) {
            old.push(row?.0.value());
        }
        for key in old {
            self.published.remove(key)?;
            if !self.is_wanted(key.1)? {
                self.delete_event(key.1)?;
            }
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Counts, redb::Error> {
        let Counts {
            next_sequence,
            bytes,
        } = self.counts;
        self.meta.insert(tables::NEXT_SEQUENCE, next_sequence)?;
        self.meta.insert(tables::BYTES, bytes)?;
        Ok(self.counts)
    }
}
