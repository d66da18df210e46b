//! The tables of the file, and what opening it makes sure of.
//!
//! All numbers in keys sort as numbers, so a range over a queue is in order of publishing and a
//! range over `due` in order of time. Every value that holds bytes begins with a version
//! (see [`super::record`]).

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::clock::Clock;

/// `format`, `next_sequence`, `bytes` and `clock_drift_ms`.
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Every source that ever had a queue here, and the number that its entries carry.
pub const SOURCES: TableDefinition<&str, u32> = TableDefinition::new("sources");
/// Events by sequence.
pub const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
/// (source, sequence): the event is still to be settled by that source.
pub const QUEUE: TableDefinition<(u32, u64), ()> = TableDefinition::new("queue");
/// (accepted at in ms, sequence), where a retention is set.
pub const PUBLISHED: TableDefinition<(u64, u64), ()> = TableDefinition::new("published");
/// (kind, due in ms, sequence) to the whole delay in ms.
pub const DUE: TableDefinition<(u8, u64, u64), u64> = TableDefinition::new("due");
/// Parked deliveries by sequence.
pub const PARKED: TableDefinition<u64, &[u8]> = TableDefinition::new("parked");
/// What the group shares, by key; see [`super::state`].
pub const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
/// Dead letters by (dead at in ms, delivery id, generation).
pub const DEAD: TableDefinition<(u64, &str, u32), &[u8]> = TableDefinition::new("dead");
/// Where the letter of (delivery id, generation) lies in `dead`.
pub const DEAD_AT: TableDefinition<(&str, u32), u64> = TableDefinition::new("dead_at");

pub const NEXT_SEQUENCE: &str = "next_sequence";
pub const BYTES: &str = "bytes";
pub const CLOCK_DRIFT_MS: &str = "clock_drift_ms";
const FORMAT: &str = "format";
const THIS_FORMAT: u64 = 1;

/// Numbers that every transaction carries forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub next_sequence: u64,
    /// Bytes of all records kept: events, parked deliveries and dead letters.
    pub bytes: u64,
}

/// What a file holds when it is opened.
#[derive(Debug, Default)]
pub struct Contents {
    pub counts: Counts,
    /// Stored numbers of the configured sources, in their order.
    pub source_ids: Vec<u32>,
    /// Numbers of all sources, with those that the config no longer has.
    pub all_source_ids: Vec<u32>,
    /// Events waiting, per configured source.
    pub depths: Vec<i64>,
    /// Names of sources with events waiting that the config no longer has.
    pub stranded: Vec<String>,
}

/// Why a file that redb can read is not one that we can.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("format {0} is newer than this release reads")]
    Format(u64),
    #[error(transparent)]
    Storage(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for Unusable {
    fn from(error: E) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

/// Makes the tables where they are missing, gives sources their numbers, and moves the due times
/// of an earlier run to the present clock. One synced transaction, which also proves that the file
/// can be written.
pub fn prepare(db: &Database, sources: &[&str], clock: &Clock) -> Result<Contents, Unusable> {
    let mut contents = Contents::default();
    let txn = db.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        let format = meta.get(FORMAT)?.map(|value| value.value());
        match format {
            Some(format) if format > THIS_FORMAT => return Err(Unusable::Format(format)),
            _ => meta.insert(FORMAT, THIS_FORMAT)?,
        };
        let number = |name| -> Result<u64, Unusable> {
            Ok(meta.get(name)?.map_or(0, |value| value.value()))
        };
        contents.counts = Counts {
            next_sequence: number(NEXT_SEQUENCE)?.max(1),
            bytes: number(BYTES)?,
        };
        let drift_ms = number(CLOCK_DRIFT_MS)?.cast_signed();
        meta.insert(CLOCK_DRIFT_MS, 0)?;
        txn.open_table(EVENTS)?;
        txn.open_table(PUBLISHED)?;
        txn.open_table(PARKED)?;
        txn.open_table(DEAD)?;
        txn.open_table(DEAD_AT)?;
        txn.open_table(STATE)?;

        let mut table = txn.open_table(SOURCES)?;
        for source in sources {
            contents.source_ids.push(id_of(&mut table, source)?);
        }
        let queue = txn.open_table(QUEUE)?;
        for row in table.iter()? {
            let (name, id) = row?;
            contents.all_source_ids.push(id.value());
            let configured = sources.contains(&name.value());
            if !configured && queue.range(whole_queue(id.value()))?.next().is_some() {
                contents.stranded.push(name.value().to_owned());
            }
        }
        for &id in &contents.source_ids {
            let depth = queue.range(whole_queue(id))?.count();
            contents.depths.push(depth as i64);
        }
        rebase(&mut txn.open_table(DUE)?, drift_ms, clock)?;
    }
    txn.commit()?;
    Ok(contents)
}

/// Sources' numbers.
pub struct Ids {
    /// Of the sources asked for, in their order, each with how many events wait.
    pub of_these: Vec<(u32, i64)>,
    pub all: Vec<u32>,
}

/// The numbers of `sources`; those without get one. One synced transaction.
pub fn give_ids(db: &Database, sources: &[String]) -> Result<Ids, redb::Error> {
    let mut given = Ids {
        of_these: Vec::new(),
        all: Vec::new(),
    };
    let txn = db.begin_write()?;
    {
        let mut table = txn.open_table(SOURCES)?;
        let queue = txn.open_table(QUEUE)?;
        for source in sources {
            let id = id_of(&mut table, source)?;
            let depth = queue.range(whole_queue(id))?.count();
            given.of_these.push((id, depth as i64));
        }
        for row in table.iter()? {
            given.all.push(row?.1.value());
        }
    }
    txn.commit()?;
    Ok(given)
}

/// The number of a source; a new one where it has none.
fn id_of(table: &mut redb::Table<'_, &str, u32>, source: &str) -> Result<u32, redb::Error> {
    if let Some(id) = table.get(source)? {
        return Ok(id.value());
    }
    let mut next = 0;
    for row in table.iter()? {
        next = next.max(row?.1.value() + 1);
    }
    table.insert(source, next)?;
    Ok(next)
}

/// The counts as they were last committed.
pub fn counts(db: &Database) -> Result<Counts, redb::Error> {
    let meta = db.begin_read()?.open_table(META)?;
    let number =
        |name| -> Result<u64, redb::Error> { Ok(meta.get(name)?.map_or(0, |value| value.value())) };
    Ok(Counts {
        next_sequence: number(NEXT_SEQUENCE)?.max(1),
        bytes: number(BYTES)?,
    })
}

pub fn whole_queue(source: u32) -> std::ops::RangeInclusive<(u32, u64)> {
    (source, 0)..=(source, u64::MAX)
}

/// Due times were written by the clock of an earlier run; `drift_ms` is how far the wall clock had
/// gone ahead of it. Nothing waits longer from now on than its own delay.
fn rebase(
    due: &mut redb::Table<'_, (u8, u64, u64), u64>,
    drift_ms: i64,
    clock: &Clock,
) -> Result<(), redb::Error> {
    let now_ms = clock.now_ms();
    let mut moved = Vec::new();
    for row in due.iter()? {
        let (key, delay_ms) = row?;
        let ((kind, due_ms, sequence), delay_ms) = (key.value(), delay_ms.value());
        let right = due_ms
            .saturating_add_signed(drift_ms)
            .min(now_ms.saturating_add(delay_ms));
        if right != due_ms {
            moved.push((kind, due_ms, sequence, right, delay_ms));
        }
    }
    for (kind, due_ms, sequence, right, delay_ms) in moved {
        due.remove((kind, due_ms, sequence))?;
        due.insert((kind, right, sequence), delay_ms)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;
    use redb::{Builder, ReadableTableMetadata};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    /// Due times after opening, of an entry that was written as due at `due_ms`.
    fn reopened(due_ms: u64, delay_ms: u64, drift_ms: i64) -> u64 {
        let db = Builder::new().create_with_backend(InMemoryBackend::new());
        let db = db.unwrap();
        let clock = Clock::at(NOW_MS);
        prepare(&db, &[], &clock).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(DUE)
            .unwrap()
            .insert((0, due_ms, 1), delay_ms)
            .unwrap();
        txn.open_table(META)
            .unwrap()
            .insert(CLOCK_DRIFT_MS, drift_ms.cast_unsigned())
            .unwrap();
        txn.commit().unwrap();
        prepare(&db, &[], &clock).unwrap();
        prepare(&db, &[], &clock).unwrap();
        let due = db.begin_read().unwrap().open_table(DUE).unwrap();
        assert_eq!(due.len().unwrap(), 1);
        due.first().unwrap().unwrap().0.value().1
    }

    #[test]
    fn a_due_time_is_kept_over_a_restart() {
        assert_eq!(reopened(NOW_MS + 5_000, 60_000, 0), NOW_MS + 5_000);
        assert_eq!(reopened(NOW_MS - 5_000, 60_000, 0), NOW_MS - 5_000);
    }

    #[test]
    fn a_wall_clock_set_forward_during_the_earlier_run_makes_nothing_early() {
        // Three hours forward: by the earlier run's clock it is three hours less than now.
        let hours = 3 * 3_600_000;
        let due_ms = NOW_MS - hours + 5_000;
        assert_eq!(
            reopened(due_ms, 60_000, hours.cast_signed()),
            NOW_MS + 5_000
        );
    }

    #[test]
    fn a_wall_clock_set_back_makes_nothing_wait_longer_than_its_own_delay() {
        let between = |delay_ms| {
            let due_ms = reopened(NOW_MS + 3_600_000, delay_ms, 0);
            (NOW_MS..NOW_MS + delay_ms + 1_000).contains(&due_ms)
        };
        assert!(between(60_000));
        assert!(between(1));
    }

    #[test]
    fn sources_keep_their_numbers_whatever_the_order_in_the_config() {
        let db = Builder::new().create_with_backend(InMemoryBackend::new());
        let db = db.unwrap();
        let clock = Clock::at(NOW_MS);
        let ids = |sources: &[&str]| prepare(&db, sources, &clock).unwrap().source_ids;
        assert_eq!(ids(&["a", "b"]), [0, 1]);
        assert_eq!(ids(&["c", "b"]), [2, 1]);
        assert_eq!(ids(&["b", "a", "c"]), [1, 0, 2]);
    }

    #[test]
    fn a_file_of_a_later_format_is_not_touched() {
        let db = Builder::new().create_with_backend(InMemoryBackend::new());
        let db = db.unwrap();
        let clock = Clock::at(NOW_MS);
        prepare(&db, &[], &clock).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(META).unwrap().insert(FORMAT, 2).unwrap();
        txn.commit().unwrap();
        let refused = prepare(&db, &["a"], &clock);
        assert!(matches!(refused, Err(Unusable::Format(2))));
        assert!(db.begin_read().unwrap().open_table(SOURCES).is_ok());
    }
}
