//! History: settled events that are still kept, by the time at which they were published.
//!
//! An index by time is kept where `retention` is set, and the sweep removes what is older from it.
//! What lies there for one source is there for every source whose topics match, so that a source
//! that was added later has a past as well.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable};
use tracing::warn;

use super::lane::{Lane, Origin};
use super::record::Stored;
use super::{Declined, Embedded, Shared, letters, tables, taken};
use crate::broker::history::what_there_is;
use crate::broker::{History, NotPossible, Reach, Refused, Span};
use crate::event::Event;

/// Records looked at, and bytes held, at a time.
const AT_ONCE: usize = 256;
const AT_ONCE_BYTES: usize = 4 << 20;

/// The key of the index: accepted at in ms, sequence.
type Key = (u64, u64);

struct Past {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    /// Where the next look begins, and where the span ends.
    from: Key,
    to: Key,
    /// What is published from here on is not part of it, whatever the clock says.
    end_sequence: u64,
    found: VecDeque<(u64, Event)>,
    /// Nothing is left behind `found`.
    complete: bool,
    total: u64,
    notes: Vec<String>,
    reached_ms: Option<u64>,
}

/// What opening a history finds out.
struct Opened {
    end_sequence: u64,
    total: u64,
    oldest_ms: Option<u64>,
}

pub async fn open(
    broker: &Embedded,
    source: &str,
    span: Span,
) -> Result<Box<dyn History>, NotPossible> {
    let lane = lane_of(broker, source)?;
    let name: Arc<str> = source.into();
    let shared = broker.shared.clone();
    let (from, to) = ((ms(span.since), 0), (ms(span.until), 0));
    let opened = letters::reading(shared.clone(), move |_, db| {
        let txn = db.begin_read()?;
        let meta = txn.open_table(tables::META)?;
        let next = meta.get(tables::NEXT_SEQUENCE)?;
        let published = txn.open_table(tables::PUBLISHED)?;
        let oldest = published.first()?;
        let total = if from < to {
            published.range(from..to)?.count() as u64
        } else {
            0
        };
        Ok(Opened {
            end_sequence: next.map_or(u64::MAX, |next| next.value()),
            total,
            oldest_ms: oldest.map(|(key, _)| key.value().0),
        })
    })
    .await
    .map_err(|declined| NotPossible::Unavailable(declined.to_string()))?;
    let oldest = opened.oldest_ms.and_then(time);
    if opened.total == 0 {
        return Err(match oldest {
            Some(oldest) if span.until <= oldest => NotPossible::TooOld { name, oldest },
            _ => NotPossible::Nothing {
                name,
                there: what_there_is(oldest),
            },
        });
    }
    let mut notes = Vec::new();
    let kept_since_ms = super::clock::wall_ms().saturating_sub(shared.retention_ms());
    if from.0 < kept_since_ms
        && let Some(oldest) = oldest
    {
        notes.push(format!(
            "what is older than `retention` ({}) is gone: {}",
            shown(shared.retention_ms()),
            what_there_is(Some(oldest))
        ));
    }
    Ok(Box::new(Past {
        shared,
        lane,
        from,
        to,
        end_sequence: opened.end_sequence,
        found: VecDeque::new(),
        complete: false,
        total: opened.total,
        notes,
        reached_ms: None,
    }))
}

pub async fn reach(broker: &Embedded, source: &str) -> Result<Reach, NotPossible> {
    lane_of(broker, source)?;
    let oldest_ms = letters::reading(broker.shared.clone(), |_, db| {
        let published = db.begin_read()?.open_table(tables::PUBLISHED)?;
        let oldest = published.first()?;
        Ok(oldest.map(|(key, _)| key.value().0))
    })
    .await
    .map_err(|declined| NotPossible::Unavailable(declined.to_string()))?;
    Ok(Reach {
        oldest: oldest_ms.and_then(time),
    })
}

/// The source's lane, where there is a history at all.
fn lane_of(broker: &Embedded, source: &str) -> Result<Arc<Lane>, NotPossible> {
    let is_it = |lane: &&Arc<Lane>| match &lane.origin {
        Origin::Source { naming, .. } => &*naming.source == source,
        Origin::Due(_) => false,
    };
    let Some(lane) = broker.shared.lanes.iter().find(is_it) else {
        return Err(NotPossible::UnknownSource {
            broker: broker.shared.name.clone(),
            name: source.into(),
        });
    };
    if broker.shared.retention.is_zero() {
        let broker = &broker.shared.name;
        let why = format!(
            "broker `{broker}` keeps no event after it was settled, because its `retention` is 0s: with `embedded: {{ retention: 1d }}` it does, from then on"
        );
        return Err(NotPossible::Forgotten { why });
    }
    Ok(lane.clone())
}

#[async_trait]
impl History for Past {
    fn total(&self) -> u64 {
        self.total
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    async fn next(&mut self) -> Result<Option<Arc<Event>>, Refused> {
        while self.found.is_empty() && !self.complete {
            self.look().await.map_err(|declined| Refused::Unavailable {
                broker: self.shared.name.clone(),
                why: declined.to_string(),
            })?;
        }
        Ok(self.found.pop_front().map(|(at_ms, event)| {
            self.reached_ms = Some(at_ms);
            Arc::new(event)
        }))
    }

    fn reached(&self) -> Option<Timestamp> {
        self.reached_ms.and_then(time)
    }
}

impl Past {
    /// Reads on, as far as is held at once.
    async fn look(&mut self) -> Result<(), Declined> {
        let (lane, from, to, end) = (self.lane.clone(), self.from, self.to, self.end_sequence);
        let look = letters::reading(self.shared.clone(), move |shared, db| {
            let txn = db.begin_read()?;
            let published = txn.open_table(tables::PUBLISHED)?;
            let events = txn.open_table(tables::EVENTS)?;
            let mut looked = Looked::default();
            for (seen, row) in published.range(from..to)?.enumerate() {
                let key = row?.0.value();
                if seen >= AT_ONCE || looked.bytes >= AT_ONCE_BYTES {
                    looked.next = Some(key);
                    break;
                }
                if key.1 >= end {
                    continue;
                }
                if let Some(record) = events.get(key.1)? {
                    looked.add(shared, &lane, key, Bytes::copy_from_slice(record.value()));
                }
            }
            Ok(looked)
        });
        let looked = look.await?;
        self.found = looked.found;
        match looked.next {
            Some(next) => self.from = next,
            None => self.complete = true,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Looked {
    found: VecDeque<(u64, Event)>,
    bytes: usize,
    /// Where there is more.
    next: Option<Key>,
}

impl Looked {
    /// Keeps the event of `record` if it is one of the lane's.
    fn add(&mut self, shared: &Shared, lane: &Lane, (at_ms, sequence): Key, record: Bytes) {
        let Origin::Source { topics, naming, .. } = &lane.origin else {
            return;
        };
        let size_bytes = record.len();
        match Stored::read(record) {
            Ok(stored) if topics.iter().any(|topic| topic.matches(&stored.topic)) => {
                let event = naming.event(taken(&shared.name, stored, sequence));
                self.bytes += size_bytes;
                self.found.push_back((at_ms, event));
            }
            Ok(_) => {}
            Err(why) => {
                warn!(broker = %shared.name, sequence, %why, "embedded broker: a record of the past cannot be read and is left out");
            }
        }
    }
}

fn ms(at: Timestamp) -> u64 {
    at.as_millisecond().max(0).cast_unsigned()
}

fn time(at_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(at_ms.cast_signed()).ok()
}

/// A retention as people write it: in days, hours, minutes or seconds, whichever comes out even.
fn shown(retention_ms: u64) -> String {
    for (unit, unit_ms) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if retention_ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", retention_ms / unit_ms);
        }
    }
    format!("{retention_ms}ms")
}
