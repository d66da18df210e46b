use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{BackendError, Builder, DatabaseError, StorageBackend, StorageError};

use super::*;
use crate::attempt::{Answer, ErrorClass, Failure, Outcome};
use crate::delivery::Progress;
use crate::event::{EventId, Headers, Origin, Place};
use crate::subscription::Uid;

fn event(id: &str) -> Arc<Event> {
    Arc::new(Event {
        id: EventId::from_outside(id.as_bytes()).unwrap(),
        topic: "orders.created".into(),
        kind: "order".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: Bytes::from_static(b"the body of the event"),
        origin: Origin {
            broker: "shop".into(),
            place: Place::Embedded {
                topic: "orders.created".into(),
                sequence: 1,
            },
        },
    })
}

fn delivery(id: &str, subscription: &str, attempts: u32) -> Delivery {
    let uid = Uid::of_config(subscription);
    let now = Timestamp::now();
    let mut delivery = Delivery::first(event(id), subscription.into(), uid, now);
    delivery.progress = Progress {
        attempts,
        ..delivery.progress
    };
    delivery
}

fn answered(status: u16, excerpt: &str) -> Attempt {
    Attempt {
        started_at: Timestamp::now(),
        took: Duration::from_micros(12_345),
        outcome: Outcome::Answered(Answer {
            status,
            retry_after: None,
            limit: None,
            wish: None,
            excerpt: excerpt.to_owned(),
        }),
    }
}

fn settings(folder: &tempfile::TempDir) -> Settings {
    Settings {
        path: folder.path().join(FILE),
        keep: Duration::from_secs(3600),
        max_bytes: 1 << 30,
        bodies: false,
        instance: "bridge-1".into(),
    }
}

fn started(settings: Settings) -> (Journal, JournalMeters) {
    let meters = JournalMeters::default();
    let journal = Journal::start(settings, meters.clone(), None).unwrap();
    (journal, meters)
}

fn deliver(journal: &Journal, id: &str, subscription: &str) {
    let delivery = delivery(id, subscription, 1);
    let attempt = answered(204, "");
    journal.attempted(&delivery, "https://h", &attempt, Then::Delivered, None);
}

/// All entries, page by page.
fn all(journal: &Journal, query: &Query, limit: usize) -> Vec<Entry> {
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page = journal.page(query, before, limit).unwrap();
        assert!(page.entries.len() <= limit);
        found.extend(page.entries);
        before = page.next;
        if before.is_none() {
            return found;
        }
    }
}

#[test]
fn what_is_recorded_is_read_back_by_event_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = started(settings(&folder));
    let crm = delivery("evt_1", "crm", 1);
    let timeout = Attempt {
        outcome: Outcome::Failed(Failure {
            class: ErrorClass::Timeout,
            detail: "no answer in time".into(),
        }),
        ..answered(0, "")
    };
    let request = Exchange::new("POST", vec![("a".into(), "b".into())], b"{\"a\":1}");
    journal.attempted(&crm, "https://h:1", &timeout, Then::Retry, Some(&request));
    let until: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    journal.parked(&crm, WaitKind::Retry, until, "shop");
    deliver(&journal, "evt_2", "crm");
    let again = delivery("evt_1", "crm", 2);
    let (no, then) = (answered(400, "no"), Then::DeadLetter);
    journal.attempted(&again, "https://h:1", &no, then, None);
    journal.dead(&again, Reason::NoRetry, "shop");
    journal.unmatched(&event("evt_3"), Timestamp::now());

    let entries = journal.of_event("evt_1", 100).unwrap();
    let first = &entries[0];
    assert_eq!(
        first.at.as_microsecond(),
        timeout.started_at.as_microsecond()
    );
    let names = [
        &first.instance,
        &first.event,
        &first.subscription,
        &first.uid,
    ];
    assert_eq!(names, ["bridge-1", "evt_1", "crm", crm.uid.as_str()]);
    assert_eq!(first.delivery, crm.id.as_str());
    let place = [&first.topic, &first.r#type, &first.source, &first.broker];
    assert_eq!(place, ["orders.created", "order", "orders", "shop"]);
    let attempted = |number, outcome: &str, excerpt: &str, then, request| {
        What::Attempt(Attempted {
            attempt: number,
            endpoint: "https://h:1".into(),
            outcome: outcome.into(),
            took_ms: 12.345,
            excerpt: excerpt.into(),
            then,
            request,
        })
    };
    let expected = [
        attempted(
            1,
            "timeout",
            "no answer in time",
            Then::Retry,
            Some(request),
        ),
        What::Parked {
            wait: WaitKind::Retry,
            until,
            on: "shop".into(),
        },
        attempted(2, "400", "no", Then::DeadLetter, None),
        What::Dead {
            reason: "no_retry".into(),
            on: "shop".into(),
        },
    ];
    let whats: Vec<_> = entries.iter().map(|entry| entry.what.clone()).collect();
    assert_eq!(whats, expected);
    let unmatched = journal.of_event("evt_3", 100).unwrap();
    assert_eq!(unmatched[0].what, What::Unmatched);
    for entry in entries {
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }
}

#[test]
fn pages_are_complete_and_without_repeats_while_more_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = started(settings(&folder));
    for n in 0..2_500 {
        deliver(
            &journal,
            &format!("evt_{n}"),
            if n % 2 == 0 { "crm" } else { "stock" },
        );
        if n % 400 == 0 {
            journal.oldest().unwrap();
        }
    }
    let crm = Query {
        subscription: Some("crm".into()),
        ..Query::default()
    };
    let (mut found, mut before, mut more) = (Vec::new(), None, 10_000);
    loop {
        let page = journal.page(&crm, before, 97).unwrap();
        found.extend(page.entries.into_iter().map(|entry| entry.event));
        deliver(&journal, &format!("evt_{more}"), "crm");
        more += 1;
        before = page.next.map(|next| next.to_string().parse().unwrap());
        if before.is_none() {
            break;
        }
    }
    let expected = (0..2_500).rev().filter(|n| n % 2 == 0);
    let expected: Vec<_> = expected.map(|n| format!("evt_{n}")).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_asked_for_is_what_comes() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = started(settings(&folder));
    let outcomes = [(204, "crm"), (503, "crm"), (404, "stock"), (500, "stock")];
    for (n, (status, subscription)) in outcomes.into_iter().enumerate() {
        let delivery = delivery(&format!("evt_{n}"), subscription, 1);
        let attempt = answered(status, "");
        journal.attempted(&delivery, "https://h", &attempt, Then::Retry, None);
    }
    journal.dead(&delivery("evt_1", "crm", 1), Reason::Gone, "shop");
    let events = |query: Query| -> Vec<String> {
        let entries = all(&journal, &query, 10);
        entries.into_iter().map(|entry| entry.event).collect()
    };
    let status = |status: &str| Query {
        status: Some(status.parse().unwrap()),
        ..Query::default()
    };
    assert_eq!(events(status("5xx")), ["evt_3", "evt_1"]);
    assert_eq!(events(status("404")), ["evt_2"]);
    assert_eq!(events(status("failed")), ["evt_3", "evt_2", "evt_1"]);
    let of = |id: &str| Query {
        id: Some(id.into()),
        attempts_only: true,
        ..Query::default()
    };
    assert_eq!(events(of("evt_1")), ["evt_1"]);
    assert_eq!(
        events(of(delivery("evt_2", "stock", 1).id.as_str())),
        ["evt_2"]
    );
    let until = Query {
        until: Some("2020-01-01T00:00:00Z".parse().unwrap()),
        ..Query::default()
    };
    assert!(events(until).is_empty());
    assert!("6xx".parse::<Status>().is_err());
}

#[test]
fn the_ring_stays_within_its_bytes_and_the_newest_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let small = Settings {
        max_bytes: 2 << 20,
        ..settings(&folder)
    };
    let path = small.path.clone();
    let (journal, meters) = started(small);
    let excerpt = "x".repeat(500);
    for n in 0..40_000 {
        let delivery = delivery(&format!("evt_{n}"), "crm", 1);
        let attempt = answered(503, &excerpt);
        journal.attempted(&delivery, "https://h", &attempt, Then::Retry, None);
        if n % 5_000 == 0 {
            journal.oldest().unwrap();
        }
    }
    assert!(!journal.of_event("evt_39999", 1).unwrap().is_empty());
    assert!(journal.of_event("evt_0", 1).unwrap().is_empty());
    assert_eq!(meters.lost.get(), 0);
    assert!(meters.bytes.get() <= 2 << 20, "{}", meters.bytes.get());
    let kept = all(&journal, &Query::default(), 1_000).len();
    assert!((1_000..4_000).contains(&kept), "{kept}");
    journal.close();
    // A batch is in the file before what it replaces is taken out.
    let size = std::fs::metadata(path).unwrap().len();
    assert!(size < 32 << 20, "{size}");
}

#[test]
fn what_is_too_old_goes() {
    let db = Builder::new().create_with_backend(redb::backends::InMemoryBackend::new());
    let db = db.unwrap();
    let mut ring = ring::Ring::prepare(&db).unwrap();
    let batch = |id: &str| {
        let mut batch = Vec::new();
        record::unmatched(
            &mut batch,
            &event(id),
            "2026-01-01T00:00:00Z".parse().unwrap(),
        );
        batch
    };
    let mut write = |batch: &[u8], now: &str| {
        let limits = ring::Limits {
            now: now.parse().unwrap(),
            keep_us: 3_600 * 1_000_000,
            max_bytes: 1 << 30,
        };
        ring.write(&db, batch, "a", &limits).unwrap();
        read::page(&db, &Query::default(), None, 10)
            .unwrap()
            .entries
            .len()
    };
    assert_eq!(write(&batch("a"), "2026-01-01T00:00:01Z"), 1);
    assert_eq!(write(&batch("b"), "2026-01-01T00:59:59Z"), 2);
    assert_eq!(write(&[], "2026-01-01T01:00:01Z"), 0);
    assert_eq!(ring.bytes, 0);
}

/// A file whose writes fail when told to.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn check(&self) -> std::io::Result<()> {
        match self.full.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(std::io::ErrorKind::StorageFull.into()),
        }
    }
}

impl StorageBackend for Disk {
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }

    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }

    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }
}

#[test]
fn a_full_disk_loses_records_only_and_they_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let state = full.clone();
    let opener = move |path: &Path| {
        let io = |error| DatabaseError::Storage(StorageError::Io(error));
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = FileBackend::new(options.open(path).map_err(io)?)?;
        let full = state.clone();
        Builder::new().create_with_backend(Disk { file, full })
    };
    let meters = JournalMeters::default();
    let journal =
        Journal::start_with(settings(&folder), meters.clone(), None, Box::new(opener)).unwrap();
    deliver(&journal, "evt_1", "crm");
    assert_eq!(journal.of_event("evt_1", 10).unwrap().len(), 1);

    full.store(true, Ordering::Release);
    let began = Instant::now();
    for n in 0..20_000 {
        deliver(&journal, &format!("lost_{n}"), "crm");
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    let why = journal.of_event("evt_1", 10).unwrap_err();
    assert!(matches!(why, Unreadable::Broken), "{why}");
    // The last of them are counted when the writer comes to them.
    while meters.lost.get() < 20_000 && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(meters.lost.get(), 20_000);

    full.store(false, Ordering::Release);
    journal.close();
    let (journal, _) = started(settings(&folder));
    assert_eq!(journal.of_event("evt_1", 10).unwrap().len(), 1);
}

#[test]
fn a_file_that_is_no_journal_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), b"not a database at all").unwrap();
    let (journal, meters) = started(settings(&folder));
    deliver(&journal, "evt_1", "crm");
    assert!(journal.of_event("evt_1", 10).is_err());
    journal.close();
    assert_eq!(meters.lost.get(), 1);
    let bytes = std::fs::read(folder.path().join(FILE)).unwrap();
    assert_eq!(bytes, b"not a database at all");
}

#[test]
fn an_open_journal_is_in_use_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = started(settings(&folder));
    journal.oldest().unwrap();
    let path = folder.path().join(FILE);
    let again = Journal::open_existing(&path, JournalMeters::default());
    assert!(matches!(again.err(), Some(Unreadable::InUse(_))));
    deliver(&journal, "evt_1", "crm");
    journal.close();
    let again = Journal::open_existing(&path, JournalMeters::default()).unwrap();
    assert_eq!(again.of_event("evt_1", 10).unwrap().len(), 1);
}

#[test]
fn unmatched_events_are_recorded_up_to_a_rate() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = started(settings(&folder));
    let now = Timestamp::now();
    for n in 0..1_000 {
        journal.unmatched(&event(&format!("evt_{n}")), now);
    }
    let kept = all(&journal, &Query::default(), 500).len();
    assert_eq!(kept, UNMATCHED_PER_SECOND as usize);
}

#[test]
fn a_batch_that_is_cut_or_garbage_is_read_as_far_as_it_goes() {
    let mut batch = Vec::new();
    record::unmatched(&mut batch, &event("evt_1"), Timestamp::now());
    let whole = batch.len();
    record::unmatched(&mut batch, &event("evt_2"), Timestamp::now());
    for cut in 0..batch.len() {
        let entries = record::split(&batch[..cut]).filter_map(|r| record::entry(r, "a"));
        assert_eq!(entries.count(), usize::from(cut >= whole));
    }
    assert!(record::entry(&[9, 9, 9], "a").is_none());
}

/// Run by hand: what a delivery pays, and what the writer does for it.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, meters) = started(settings(&folder));
    let delivery = delivery("01890a5d-ac96-774b-bcce-b302099a8057", "crm", 1);
    let attempt = answered(204, "");
    let count = 1_000_000;
    let mut path = Duration::ZERO;
    for _ in 0..count / 10_000 {
        let began = Instant::now();
        for _ in 0..10_000 {
            journal.attempted(&delivery, "https://h", &attempt, Then::Delivered, None);
        }
        path += began.elapsed();
        std::thread::sleep(Duration::from_millis(100));
    }
    journal.close();
    let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = usage.rsplit(')').next().unwrap().split(' ').collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    eprintln!(
        "on the path {} ns, in all {} ns of CPU a record, {} bytes a record, {} lost",
        path.as_nanos() / count,
        u128::from(ticks) * 10_000_000 / count,
        meters.bytes.get() as u128 / count,
        meters.lost.get()
    );
}
