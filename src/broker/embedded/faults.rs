//! What happens when the disk fails: everything is refused at once, nothing hangs, and after it
//! heals the broker goes on by itself with nothing lost.

use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU8, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, DatabaseError, StorageBackend};
use tokio::sync::watch;

use super::*;
use crate::broker::parked::{Deed, Unwatched, Whose};
use crate::broker::{Budget, Intake, Receipt, Received, Settlement, Window};
use crate::meters::Meters;

const FINE: u8 = 0;
const FULL: u8 = 1;
const BROKEN: u8 = 2;

/// A file whose writes fail when told to.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    state: Arc<AtomicU8>,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        match self.state.load(Ordering::Acquire) {
            FINE => Ok(()),
            FULL => Err(io::ErrorKind::StorageFull.into()),
            _ => Err(io::Error::other("broken on purpose")),
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

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }
}

struct Fixture {
    broker: Arc<Embedded>,
    disk: Arc<AtomicU8>,
    taken: mpsc::Receiver<Received>,
    due: mpsc::Receiver<Received>,
    _pause: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

fn settings(path: PathBuf) -> Settings {
    Settings {
        name: "here".into(),
        group: "hookbridge".into(),
        path,
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: vec![SourceSettings {
            name: "all".into(),
            topics: vec!["#".parse().unwrap()],
            naming: Naming {
                source: "all".into(),
                topic: None,
                id: None,
                tenant: None,
            },
            meters: Meters::new().of_source("all"),
        }],
    }
}

fn start() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embedded-here.redb");
    let disk = Arc::new(AtomicU8::new(FINE));
    let state = disk.clone();
    let opener = move |path: &std::path::Path| {
        let io = |error| DatabaseError::Storage(redb::StorageError::Io(error));
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = FileBackend::new(options.open(path).map_err(io)?)?;
        let state = state.clone();
        Builder::new().create_with_backend(Disk { file, state })
    };
    let file = File::open_with(path.clone(), Box::new(opener)).unwrap();
    let broker = Embedded::start(settings(path), file).unwrap();
    let (pause, paused) = watch::channel(false);
    let intake = || Intake::new(Window::new(64), Budget::new(1 << 20), paused.clone());
    let ((source, taken), (retries, due), (holds, _)) = (intake(), intake(), intake());
    let intakes = Intakes {
        sources: watch::channel(Arc::new([("all".into(), source)].into())).1,
        retries,
        holds,
        obeyed: Arc::new(|_, _| ()),
    };
    let (stop, drain) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn(broker.clone().run(intakes, stop, drain));
    Fixture {
        broker,
        disk,
        taken,
        due,
        _pause: pause,
        _folder: folder,
    }
}

impl Fixture {
    fn event(id: &str) -> Publication {
        Publication {
            topic: "t".into(),
            id: Some(id.into()),
            body: Bytes::from_static(b"x"),
            ..Publication::default()
        }
    }

    async fn next(&mut self) -> (String, Receipt) {
        let next = timeout(Duration::from_secs(10), self.taken.recv()).await;
        match next.unwrap().unwrap() {
            Received::Event(event, receipt) => (event.id.to_string(), receipt),
            other => panic!("{other:?}"),
        }
    }

    async fn healed(&self) {
        self.disk.store(FINE, Ordering::Release);
        let ready = timeout(Duration::from_secs(10), async {
            while self.broker.health() != Health::Ready {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        ready.await.expect("ready again by itself");
    }

    /// Puts `record` into the file behind the broker's back.
    fn plant(&self, change: impl FnOnce(&redb::WriteTransaction)) {
        let db = self.broker.shared.file.get().unwrap();
        let txn = db.begin_write().unwrap();
        change(&txn);
        txn.commit().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_heals_by_itself() {
    let mut fixture = start();
    fixture.broker.publish(Fixture::event("a")).await.unwrap();
    let (id, receipt) = fixture.next().await;
    assert_eq!(id, "a");
    fixture.broker.publish(Fixture::event("b")).await.unwrap();

    fixture.disk.store(FULL, Ordering::Release);
    let refused = fixture.broker.publish_all(vec![Fixture::event("c")]).await;
    assert_eq!(refused, Err(Declined::DiskFull));
    assert!(matches!(fixture.broker.health(), Health::Down { .. }));
    // Answered while the disk is full: kept in memory and written later.
    receipt.settle(Settlement::Ack);
    for _ in 0..3 {
        let refused = fixture.broker.publish(Fixture::event("c")).await;
        assert!(matches!(refused, Err(Refused::Unavailable { .. })));
        tokio::time::sleep(Duration::from_millis(600)).await;
    }

    fixture.healed().await;
    fixture.broker.publish(Fixture::event("d")).await.unwrap();
    for expected in ["b", "d"] {
        let (id, receipt) = fixture.next().await;
        assert_eq!(id, expected);
        receipt.settle(Settlement::Ack);
    }
    let more = timeout(Duration::from_millis(500), fixture.taken.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_disk_fails_everything_at_once_and_keeps_the_answers() {
    let mut fixture = start();
    for n in 0..50 {
        let event = Fixture::event(&n.to_string());
        fixture.broker.publish(event).await.unwrap();
    }
    let mut receipts = Vec::new();
    for _ in 0..50 {
        receipts.push(fixture.next().await.1);
    }
    fixture.disk.store(BROKEN, Ordering::Release);
    for receipt in receipts {
        receipt.settle(Settlement::Ack);
    }
    let started = std::time::Instant::now();
    assert!(fixture.broker.publish(Fixture::event("x")).await.is_err());
    let order = Order::new(Deed::Now, Whose::All, Some(WaitKind::Hold));
    let ordered = fixture.broker.order(&order, &Unwatched::default()).await;
    assert!(ordered.is_err());
    assert!(started.elapsed() < Duration::from_secs(2));

    fixture.healed().await;
    fixture.broker.publish(Fixture::event("y")).await.unwrap();
    // A transaction whose sync failed may be there all the same: `x` may come, an event twice not.
    loop {
        let (id, receipt) = fixture.next().await;
        receipt.settle(Settlement::Ack);
        match id.as_str() {
            "y" => break,
            "x" => {}
            other => panic!("{other} was settled"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_dead_lettered_as_it_is() {
    let mut fixture = start();
    let now_ms = fixture.broker.shared.clock.now_ms();
    fixture.plant(|txn| {
        let event = b"\x07an event of a later release".as_slice();
        let parked = b"\x01\xff\xff\xff\xff".as_slice();
        let mut events = txn.open_table(tables::EVENTS).unwrap();
        events.insert(1 << 40, event).unwrap();
        let mut queue = txn.open_table(tables::QUEUE).unwrap();
        queue.insert((0, 1 << 40), ()).unwrap();
        let mut waiting = txn.open_table(tables::PARKED).unwrap();
        waiting.insert(1 << 41, parked).unwrap();
        let mut due = txn.open_table(tables::DUE).unwrap();
        due.insert((0, now_ms, 1 << 41), 1).unwrap();
    });
    fixture.broker.publish(Fixture::event("a")).await.unwrap();
    let (id, receipt) = fixture.next().await;
    assert_eq!(id, "a");
    receipt.settle(Settlement::Ack);
    let letters = timeout(Duration::from_secs(10), async {
        loop {
            let mut pass = fixture.broker.open_letters(Purpose::List).await.unwrap();
            let mut letters = Vec::new();
            while let Some(letter) = pass.next().await.unwrap() {
                letters.push(letter);
            }
            if letters.len() == 2 {
                return letters;
            }
            fixture
                .broker
                .shared
                .due_lane(WaitKind::Retry)
                .news
                .notify_one();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let letters = letters.await.unwrap();
    let mut bodies: Vec<_> = letters.iter().map(|l| &l.delivery.event.body[..]).collect();
    bodies.sort_unstable();
    assert_eq!(
        bodies,
        [
            b"\x01\xff\xff\xff\xff".as_slice(),
            b"\x07an event of a later release"
        ]
    );
    for letter in &letters {
        assert_eq!(letter.reason, Reason::EnvelopeUnreadable);
    }
    assert!(fixture.due.try_recv().is_err());
    fixture.plant(|txn| {
        let queue = txn.open_table(tables::QUEUE).unwrap();
        use redb::ReadableTable;
        assert!(queue.get((0, 1 << 40)).unwrap().is_none());
    });
}
