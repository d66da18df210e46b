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
use super::{Declined, Embedded, Shared, clock, letters, tables, taken};
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
    let oldest = opened.oldest_ms.and_then(clock::timestamp);
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
    let kept_since_ms = clock::wall_ms().saturating_sub(shared.retention_ms());
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
        oldest: oldest_ms.and_then(clock::timestamp),
    })
}

/// The source's lane, where there is a history at all.
fn lane_of(broker: &Embedded, source: &str) -> Result<Arc<Lane>, NotPossible> {
    let Some((_, lane)) = broker.shared.lanes.of_source(source) else {
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
    Ok(lane)
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
        self.reached_ms.and_then(clock::timestamp)
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
        let Origin::Source { role, .. } = &lane.origin else {
            return;
        };
        let role = role.load();
        let size_bytes = record.len();
        match Stored::read(record) {
            Ok(stored) if role.takes(&stored.topic) => {
                let event = role.naming.event(taken(&shared.name, stored, sequence));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{mpsc, watch};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::super::{Settings, SourceSettings};
    use super::*;
    use crate::broker::{
        Broker as _, Budget, Intake, Intakes, Naming, Publication, Receipt, Received, Settlement,
        Window,
    };
    use crate::meters::Meters;

    struct Fixture {
        broker: Arc<Embedded>,
        taken: mpsc::Receiver<Received>,
        stop: CancellationToken,
        run: JoinHandle<anyhow::Result<()>>,
        _pause: watch::Sender<bool>,
        folder: tempfile::TempDir,
    }

    fn start(retention: Duration) -> Fixture {
        start_in(tempfile::tempdir().unwrap(), retention)
    }

    fn start_in(folder: tempfile::TempDir, retention: Duration) -> Fixture {
        let naming = Naming {
            source: "all".into(),
            topic: None,
            id: None,
            tenant: None,
        };
        let settings = Settings {
            retention,
            sources: vec![SourceSettings {
                name: "all".into(),
                topics: vec!["#".parse().unwrap()],
                naming,
                meters: Meters::new().of_source("all"),
            }],
            ..Settings::for_tests(folder.path())
        };
        let broker = Embedded::open(settings).unwrap();
        let (pause, paused) = watch::channel(false);
        let intake = || Intake::new(Window::new(64), Budget::new(1 << 20), paused.clone());
        let ((source, taken), (retries, _), (holds, _)) = (intake(), intake(), intake());
        let intakes = Intakes {
            sources: watch::channel(Arc::new([("all".into(), source)].into())).1,
            retries,
            holds,
            obeyed: Arc::new(|_, _| ()),
        };
        let stop = CancellationToken::new();
        let run = tokio::spawn(broker.clone().run(intakes, stop.clone(), stop.clone()));
        Fixture {
            broker,
            taken,
            stop,
            run,
            _pause: pause,
            folder,
        }
    }

    impl Fixture {
        async fn restarted(self, retention: Duration) -> Self {
            self.stop.cancel();
            self.run.await.unwrap().unwrap();
            drop(self.broker);
            start_in(self.folder, retention)
        }

        async fn publish(&self, ids: impl Iterator<Item = String>) {
            let publication = |id| Publication {
                topic: "t".into(),
                id: Some(id),
                body: Bytes::from(vec![b'x'; 1_000]),
                ..Publication::default()
            };
            let all = ids.map(publication).collect();
            self.broker.publish_all(all).await.unwrap();
        }

        async fn take(&mut self) -> (Arc<Event>, Receipt) {
            let next = timeout(Duration::from_secs(10), self.taken.recv()).await;
            match next.unwrap().unwrap() {
                Received::Event(event, receipt) => (event, receipt),
                other => panic!("{other:?}"),
            }
        }

        /// Publishes so many events and settles them.
        async fn settled(&mut self, count: usize) -> Vec<Arc<Event>> {
            self.publish((0..count).map(|number| format!("e{number}")))
                .await;
            let mut events = Vec::new();
            for _ in 0..count {
                let (event, receipt) = self.take().await;
                receipt.settle(Settlement::Ack);
                events.push(event);
            }
            events
        }

        /// Publishes an event and takes it, without an answer.
        async fn taken(&mut self, id: &str) -> (Arc<Event>, Receipt) {
            self.publish([id.to_owned()].into_iter()).await;
            self.take().await
        }

        async fn past(&self, span: Span) -> Result<Vec<Arc<Event>>, NotPossible> {
            let mut past = self.broker.history("all", span).await?;
            let mut events = Vec::new();
            while let Some(event) = past.next().await? {
                events.push(event);
            }
            Ok(events)
        }

        /// Waits until the index by time has nothing.
        async fn until_unlisted(&self) {
            let emptied = timeout(Duration::from_secs(10), async {
                loop {
                    let db = self.broker.shared.file.get().unwrap();
                    let txn = db.begin_read().unwrap();
                    let published = txn.open_table(tables::PUBLISHED).unwrap();
                    if published.first().unwrap().is_none() {
                        return;
                    }
                    drop((published, txn, db));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            emptied.await.expect("the sweep passes them by");
        }

        /// Number and bytes of the records in the file.
        fn kept(&self) -> (usize, u64) {
            let db = self.broker.shared.file.get().unwrap();
            let events = db.begin_read().unwrap().open_table(tables::EVENTS).unwrap();
            let bytes = tables::counts(&db).unwrap().bytes;
            (events.iter().unwrap().count(), bytes)
        }

        async fn until_kept(&self, count: usize) {
            let emptied = timeout(Duration::from_secs(10), async {
                while self.kept().0 != count {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            emptied.await.expect("the sweep removes them");
        }
    }

    fn everything() -> Span {
        Span {
            since: Timestamp::UNIX_EPOCH,
            until: Timestamp::now() + Duration::from_secs(60),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_past_is_what_was_taken_and_taking_it_again_settles_nothing() {
        let mut fixture = start(Duration::from_secs(3_600));
        let events = fixture.settled(300).await;
        let (waiting, receipt) = fixture.taken("waiting").await;
        let mut all = fixture.past(everything()).await.unwrap();
        assert_eq!(all.pop(), Some(waiting));
        assert_eq!(all, events);
        let more = timeout(Duration::from_millis(200), fixture.taken.recv()).await;
        assert!(
            more.is_err(),
            "what is settled is not taken again: {more:?}"
        );
        drop(receipt);
        let again = timeout(Duration::from_secs(10), fixture.taken.recv()).await;
        assert!(again.is_ok(), "what is not settled still is");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_after_the_beginning_is_not_part_of_it() {
        let mut fixture = start(Duration::from_secs(3_600));
        fixture.settled(3).await;
        let mut past = fixture.broker.history("all", everything()).await.unwrap();
        fixture.settled(3).await;
        let mut count = 0;
        while past.next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!((count, past.total()), (3, 3));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn settled_events_stay_for_the_retention_and_count_until_they_go() {
        let retention = Duration::from_millis(1_500);
        let mut fixture = start(retention);
        let began = std::time::Instant::now();
        let (_, waiting) = fixture.taken("waiting").await;
        fixture.settled(20).await;
        fixture
            .broker
            .shared
            .ask(super::super::Work::Flush)
            .await
            .unwrap();
        let (count, bytes) = fixture.kept();
        if began.elapsed() < retention {
            assert_eq!(count, 21);
            assert!(bytes > 21_000, "{bytes}");
        }
        // Three at a time, once they are old enough, and never one that is still wanted.
        fixture.until_kept(1).await;
        assert!(began.elapsed() >= retention);
        assert!(fixture.kept().1 < 2_000);
        assert_eq!(
            fixture.past(everything()).await.unwrap_err().to_string(),
            "source `all` has no events in this range; it has none at all"
        );
        waiting.settle(Settlement::Ack);
        fixture.until_kept(0).await;
        assert_eq!(fixture.kept().1, 0);
    }

    /// Published under no retention, or passed by under a short one while it was still wanted.
    #[tokio::test(flavor = "multi_thread")]
    async fn events_from_before_the_retention_was_raised_go_too() {
        for earlier in [Duration::ZERO, Duration::from_millis(50)] {
            let fixture = start(earlier);
            fixture.publish(["waiting".to_owned()].into_iter()).await;
            fixture.until_unlisted().await;
            let mut fixture = fixture.restarted(Duration::from_secs(4)).await;
            let (_, receipt) = fixture.take().await;
            receipt.settle(Settlement::Ack);
            fixture.until_kept(0).await;
            assert_eq!(fixture.kept().1, 0);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_span_with_nothing_says_what_there_is() {
        let mut fixture = start(Duration::from_secs(3_600));
        let first = fixture.settled(1).await.remove(0).published_at.unwrap();
        let before = Span {
            since: first - Duration::from_secs(60),
            until: first - Duration::from_secs(30),
        };
        let refused = fixture.past(before).await.unwrap_err();
        assert!(matches!(refused, NotPossible::TooOld { oldest, .. } if oldest == first));
        let after = Span {
            since: first + Duration::from_millis(1),
            until: first + Duration::from_secs(30),
        };
        let refused = fixture.past(after).await.unwrap_err();
        assert!(matches!(refused, NotPossible::Nothing { .. }));
        let exactly = Span {
            since: first,
            until: first + Duration::from_millis(1),
        };
        assert_eq!(fixture.past(exactly).await.unwrap().len(), 1);
        let none = start(Duration::ZERO);
        let refused = none.past(everything()).await.unwrap_err();
        insta::assert_snapshot!(refused, @"broker `here` keeps no event after it was settled, because its `retention` is 0s: with `embedded: { retention: 1d }` it does, from then on");
    }
}
