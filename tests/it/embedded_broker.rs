//! The embedded broker against real files: what is confirmed survives, what is not settled comes
//! again, nothing comes early, and a file that cannot be used says what to do.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookbridge::broker::embedded::{Declined, Embedded, OpenError, Settings, SourceSettings};
use hookbridge::broker::{
    Broker, Budget, Intake, Intakes, Naming, Publication, Receipt, Received, Settlement, Wait,
    Window,
};
use hookbridge::delivery::{Delivery, Reason, WaitKind};
use hookbridge::event::{Event, EventId, HeaderValue, Headers, Origin, Place};
use hookbridge::meters::Meters;
use hookbridge::subscription::Uid;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::letters::{listed, remove};

const SOON: Duration = Duration::from_secs(10);

fn settings(path: &Path, sources: &[(&str, &str)]) -> Settings {
    let meters = Meters::new();
    let source = |&(name, topics): &(&str, &str)| SourceSettings {
        name: name.into(),
        topics: topics.split(' ').map(|t| t.parse().unwrap()).collect(),
        naming: Naming {
            source: name.into(),
            topic: None,
            id: None,
            tenant: None,
        },
        meters: meters.of_source(name),
    };
    Settings {
        name: "here".into(),
        group: "hookbridge".into(),
        path: path.to_owned(),
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: sources.iter().map(source).collect(),
    }
}

/// A broker that runs, and the pipeline's end of its intakes.
struct Running {
    broker: Arc<Embedded>,
    taken: BTreeMap<String, mpsc::Receiver<Received>>,
    due: mpsc::Receiver<Received>,
    held: mpsc::Receiver<Received>,
    stop: CancellationToken,
    drain: CancellationToken,
    run: JoinHandle<anyhow::Result<()>>,
    _pause: watch::Sender<bool>,
}

impl Running {
    fn start(path: &Path, sources: &[(&str, &str)]) -> Self {
        let broker = Embedded::open(settings(path, sources)).unwrap();
        Self::of(broker, sources, 64)
    }

    fn of(broker: Arc<Embedded>, sources: &[(&str, &str)], window: usize) -> Self {
        let (pause, paused) = watch::channel(false);
        let budget = Budget::new(64 << 20);
        let intake = || Intake::new(Window::new(window), budget.clone(), paused.clone());
        let (mut intakes, mut taken) = (BTreeMap::new(), BTreeMap::new());
        for (name, _) in sources {
            let (intake, end) = intake();
            intakes.insert(Arc::from(*name), intake);
            taken.insert(name.to_string(), end);
        }
        let (retries, due) = intake();
        let (holds, held) = intake();
        let intakes = Intakes {
            sources: watch::channel(Arc::new(intakes)).1,
            retries,
            holds,
            obeyed: Arc::new(|_, _| ()),
        };
        let (stop, drain) = (CancellationToken::new(), CancellationToken::new());
        let run = tokio::spawn(broker.clone().run(intakes, stop.clone(), drain.clone()));
        Self {
            broker,
            taken,
            due,
            held,
            stop,
            drain,
            run,
            _pause: pause,
        }
    }

    async fn next(&mut self, source: &str) -> (Arc<Event>, Receipt) {
        let taken = self.taken.get_mut(source).unwrap();
        match timeout(SOON, taken.recv()).await.unwrap().unwrap() {
            Received::Event(event, receipt) => (event, receipt),
            other => panic!("{other:?}"),
        }
    }

    async fn nothing_from(&mut self, source: &str) {
        let taken = self.taken.get_mut(source).unwrap();
        let more = timeout(Duration::from_millis(300), taken.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }

    async fn stop(self) {
        self.stop.cancel();
        let ended = timeout(SOON, self.run).await.expect("draining ends");
        ended.unwrap().unwrap();
    }
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embedded-here.redb");
    (folder, path)
}

fn publication(topic: &str, id: &str, body: &str) -> Publication {
    Publication {
        topic: topic.into(),
        id: Some(id.into()),
        body: Bytes::from(body.to_owned()),
        ..Publication::default()
    }
}

fn delivery(id: &str) -> Delivery {
    let event = Event {
        id: EventId::from_outside(id.as_bytes()).unwrap(),
        topic: "orders.created".into(),
        kind: "order".into(),
        source: "all".into(),
        tenant: None,
        published_at: None,
        content_type: Some("application/json".into()),
        content_encoding: None,
        key: Some(Bytes::from_static(b"\xff\0")),
        headers: Headers(vec![("tenant".into(), HeaderValue::Int(7))]),
        properties: Vec::new(),
        body: Bytes::from_static(b"{\"a\":1}"),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders.created".into(),
                sequence: 1,
            },
        },
    };
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    Delivery::first(Arc::new(event), "crm".into(), Uid::of_config("crm"), now)
}

fn retry_in(delay: Duration) -> Wait {
    Wait {
        kind: WaitKind::Retry,
        delay,
    }
}

const ALL: &[(&str, &str)] = &[("all", "#")];

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_event_is_gone_after_a_restart_and_arrives_as_it_was_published() {
    let (_folder, path) = file();
    let mut running = Running::start(&path, ALL);
    let mut sent = publication("orders.created", "evt-1", "hello");
    sent.key = Some(Bytes::from_static(b"k"));
    sent.kind = Some("order".into());
    sent.content_type = Some("text/plain".into());
    sent.headers = Headers(vec![("tenant".into(), HeaderValue::text("a"))]);
    running.broker.publish(sent.clone()).await.unwrap();
    let (event, receipt) = running.next("all").await;
    assert_eq!(event.id.as_str(), "evt-1");
    assert_eq!(&*event.topic, "orders.created");
    assert_eq!(&*event.kind, "order");
    assert_eq!(event.content_type.as_deref(), Some("text/plain"));
    assert_eq!(
        (&event.key, &event.headers, &event.body),
        (&sent.key, &sent.headers, &sent.body)
    );
    assert!(event.published_at.is_some());
    receipt.settle(Settlement::Ack);
    running.stop().await;

    let mut running = Running::start(&path, ALL);
    running.nothing_from("all").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_settled_comes_again_after_a_restart_whatever_the_order_of_settling() {
    let (_folder, path) = file();
    let mut running = Running::start(&path, ALL);
    for n in 0..10 {
        let event = publication("t", &format!("e{n}"), "x");
        running.broker.publish(event).await.unwrap();
    }
    let mut receipts = Vec::new();
    for n in 0..10 {
        let (event, receipt) = running.next("all").await;
        assert_eq!(event.id.as_str(), format!("e{n}"), "in order of publishing");
        receipts.push(receipt);
    }
    for (n, receipt) in receipts.into_iter().enumerate().rev() {
        if n % 2 == 1 {
            receipt.settle(Settlement::Ack);
        } else {
            std::mem::forget(receipt);
        }
    }
    // Forgotten receipts are never answered: the drain ends by its own token.
    running.drain.cancel();
    running.stop().await;

    let mut running = Running::start(&path, ALL);
    for n in [0, 2, 4, 6, 8] {
        let (event, receipt) = running.next("all").await;
        assert_eq!(event.id.as_str(), format!("e{n}"));
        receipt.settle(Settlement::Ack);
    }
    running.nothing_from("all").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_receipt_brings_the_event_again() {
    let (_folder, path) = file();
    let mut running = Running::start(&path, ALL);
    let event = publication("t", "e", "x");
    running.broker.publish(event).await.unwrap();
    for _ in 0..3 {
        drop(running.next("all").await);
    }
    running.next("all").await.1.settle(Settlement::Ack);
    running.nothing_from("all").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_that_matches_settles_on_its_own() {
    let sources = &[("orders", "orders.*"), ("all", "#")];
    let (_folder, path) = file();
    let mut running = Running::start(&path, sources);
    let published = running
        .broker
        .publish_all(vec![
            publication("orders.created", "a", "x"),
            publication("bills", "b", "x"),
        ])
        .await
        .unwrap();
    let counts: Vec<_> = published.iter().map(|p| p.sources).collect();
    assert_eq!(counts, [2, 1]);
    running.next("orders").await.1.settle(Settlement::Ack);
    running.nothing_from("orders").await;
    let (event, held) = running.next("all").await;
    assert_eq!(event.id.as_str(), "a");
    std::mem::forget(held);
    running.next("all").await.1.settle(Settlement::Ack);
    running.drain.cancel();
    running.stop().await;

    let mut running = Running::start(&path, sources);
    running.nothing_from("orders").await;
    let (event, receipt) = running.next("all").await;
    assert_eq!((event.id.as_str(), &event.body[..]), ("a", &b"x"[..]));
    receipt.settle(Settlement::Ack);
    running.nothing_from("all").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_delivery_comes_back_whole_never_early_and_once() {
    let (_folder, path) = file();
    let mut running = Running::start(&path, ALL);
    let delay = Duration::from_millis(700);
    let started = Instant::now();
    for n in 0..20 {
        let parked = delivery(&format!("e{n}"));
        running.broker.park(&parked, retry_in(delay)).await.unwrap();
    }
    let mut ids = HashSet::new();
    for _ in 0..20 {
        let Some(Received::Due(came, WaitKind::Retry, receipt)) =
            timeout(SOON, running.due.recv()).await.unwrap()
        else {
            panic!("not a retry");
        };
        assert!(started.elapsed() >= delay, "after {:?}", started.elapsed());
        assert_eq!(came, delivery(came.event.id.as_str()));
        ids.insert(came.event.id.clone());
        receipt.settle(Settlement::Ack);
    }
    assert!(started.elapsed() < delay + Duration::from_secs(1));
    assert_eq!(ids.len(), 20);
    running.stop().await;

    let mut running = Running::start(&path, ALL);
    let more = timeout(Duration::from_millis(300), running.due.recv()).await;
    assert!(more.is_err());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_delivery_survives_a_restart_and_waits_no_longer_for_it() {
    let (_folder, path) = file();
    let running = Running::start(&path, ALL);
    let started = Instant::now();
    let delay = Duration::from_millis(1_500);
    let wait = retry_in(delay);
    running.broker.park(&delivery("e"), wait).await.unwrap();
    running.stop().await;

    let mut running = Running::start(&path, ALL);
    let due = timeout(SOON, running.due.recv()).await.unwrap().unwrap();
    // The wall clock is read in whole milliseconds on both sides of the restart.
    assert!(started.elapsed() + Duration::from_millis(2) >= delay);
    assert!(started.elapsed() < delay + Duration::from_secs(1));
    // Dropped unanswered, it comes again.
    drop(due);
    let again = timeout(SOON, running.due.recv()).await.unwrap();
    assert!(matches!(again, Some(Received::Due(..))));
    drop(again);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn releasing_makes_one_kind_due_now_and_says_how_many() {
    let (_folder, path) = file();
    let mut running = Running::start(&path, ALL);
    let hour = Duration::from_secs(3600);
    for n in 0..3 {
        let parked = delivery(&format!("e{n}"));
        let wait = Wait {
            kind: WaitKind::Hold,
            delay: hour,
        };
        running.broker.park(&parked, wait).await.unwrap();
    }
    let retry = delivery("retry");
    running.broker.park(&retry, retry_in(hour)).await.unwrap();
    let released = crate::support::all_now(&*running.broker, WaitKind::Hold).await;
    assert_eq!(released, 3);
    for _ in 0..3 {
        let Some(Received::Due(_, WaitKind::Hold, receipt)) =
            timeout(SOON, running.held.recv()).await.unwrap()
        else {
            panic!("not a hold");
        };
        receipt.settle(Settlement::Ack);
    }
    let early = timeout(Duration::from_millis(200), running.due.recv()).await;
    assert!(early.is_err(), "the retry was not released");
    let released = crate::support::all_now(&*running.broker, WaitKind::Hold).await;
    assert_eq!(released, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_undisturbed_and_stay_removed() {
    let (_folder, path) = file();
    let running = Running::start(&path, ALL);
    let broker = &running.broker;
    let dead = delivery("a");
    broker.dead_letter(&dead, Reason::Gone).await.unwrap();
    // A crash between the letter and its receipt makes the same letter again.
    broker.dead_letter(&dead, Reason::Gone).await.unwrap();
    let other = delivery("b");
    broker.dead_letter(&other, Reason::NoRetry).await.unwrap();
    for _ in 0..50 {
        let letters = listed(&**broker).await;
        let found: Vec<_> = letters.iter().map(|l| (&l.delivery, l.reason)).collect();
        assert_eq!(found, [(&dead, Reason::Gone), (&other, Reason::NoRetry)]);
    }
    let removed = remove(&**broker, |letter| letter.delivery == dead).await;
    assert_eq!(removed, 1);
    assert_eq!(listed(&**broker).await.len(), 1);
    running.stop().await;

    let running = Running::start(&path, ALL);
    let letters = listed(&*running.broker).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].delivery, other);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_max_bytes_publishing_is_refused_until_there_is_room() {
    let (_folder, path) = file();
    let mut settings = settings(&path, ALL);
    settings.max_bytes = 10_000;
    let mut running = Running::of(Embedded::open(settings).unwrap(), ALL, 64);
    let large = || publication("t", "e", &"x".repeat(4_000));
    running.broker.publish(large()).await.unwrap();
    running.broker.publish(large()).await.unwrap();
    let refused = running.broker.publish_all(vec![large()]).await;
    assert_eq!(refused, Err(Declined::Full { max_bytes: 10_000 }));
    let never = publication("t", "e", &"x".repeat(20_000));
    let refused = running.broker.publish_all(vec![never]).await;
    assert!(matches!(refused, Err(Declined::TooLarge { .. })));
    // What is on its way to somebody is never refused.
    running
        .broker
        .dead_letter(&delivery("d"), Reason::Gone)
        .await
        .unwrap();
    for _ in 0..2 {
        running.next("all").await.1.settle(Settlement::Ack);
    }
    let published = timeout(SOON, async {
        while running.broker.publish(large()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    published.await.unwrap();
    running.next("all").await.1.settle(Settlement::Ack);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_topics_are_refused_and_untaken_ones_not_kept() {
    let (_folder, path) = file();
    let running = Running::start(&path, &[("orders", "orders.#")]);
    for topic in ["", "a\nb", "hookbridge.dead", &"x".repeat(256)] {
        let refused = running.broker.publish_all(vec![
            publication("orders.a", "e", "x"),
            publication(topic, "e", "x"),
        ]);
        let refused = refused.await;
        assert!(matches!(refused, Err(Declined::BadTopic(_))), "{topic:?}");
    }
    let untaken = running
        .broker
        .publish_all(vec![publication("bills", "e", "x")]);
    assert_eq!(untaken.await.unwrap()[0].sources, 0);
    let mut running = running;
    running.nothing_from("orders").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opener_and_a_foreign_file_are_told_what_to_do() {
    let (folder, path) = file();
    let first = Embedded::open(settings(&path, ALL)).unwrap();
    let second = Embedded::open(settings(&path, ALL)).err().unwrap();
    assert!(matches!(second, OpenError::InUse { .. }), "{second:?}");
    assert!(second.to_string().contains("in use by another process"));
    drop(first);
    drop(Embedded::open(settings(&path, ALL)).unwrap());

    let foreign = folder.path().join("foreign.redb");
    let bytes = b"not a database".repeat(1_000);
    std::fs::write(&foreign, &bytes).unwrap();
    let refused = Embedded::open(settings(&foreign, ALL)).err().unwrap();
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused:?}");
    assert!(refused.to_string().contains("left as it is"));
    assert_eq!(std::fs::read(&foreign).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishers_share_a_sync() {
    let (_folder, path) = file();
    let broker = Embedded::open(settings(&path, ALL)).unwrap();
    let (publishers, each) = (64, if cfg!(debug_assertions) { 100 } else { 2_000 });
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..publishers {
        let broker = broker.clone();
        tasks.spawn(async move {
            for _ in 0..each {
                let event = Publication {
                    topic: "orders.created".into(),
                    body: Bytes::from(vec![b'x'; 512]),
                    ..Publication::default()
                };
                broker.publish(event).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let took = started.elapsed();
    let rate = f64::from(publishers * each) / took.as_secs_f64();
    println!("published {rate:.0} events/s from {publishers} publishers");

    let mut running = Running::of(broker, ALL, 256);
    let started = Instant::now();
    for _ in 0..publishers * each {
        running.next("all").await.1.settle(Settlement::Ack);
    }
    running.stop().await;
    let rate = f64::from(publishers * each) / started.elapsed().as_secs_f64();
    println!("took and settled {rate:.0} events/s");
}
