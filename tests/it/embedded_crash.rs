//! Kill -9: what the embedded broker has confirmed is there when the file is opened again.
//!
//! The victim is this test binary itself, started with one ignored test, which says on stdout what
//! has been confirmed to it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookbridge::broker::embedded::{Embedded, Settings, SourceSettings};
use hookbridge::broker::{
    Broker, Budget, Intake, Intakes, Naming, Publication, Received, Settlement, Wait, Window,
};
use hookbridge::delivery::{Delivery, Reason, WaitKind};
use hookbridge::meters::Meters;
use hookbridge::subscription::Uid;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const FILE: &str = "HOOKBRIDGE_TEST_CRASH_FILE";
const ROUND: &str = "HOOKBRIDGE_TEST_CRASH_ROUND";

struct Running {
    broker: Arc<Embedded>,
    events: mpsc::Receiver<Received>,
    due: mpsc::Receiver<Received>,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<anyhow::Result<()>>,
    _pause: watch::Sender<bool>,
}

fn start(path: &Path) -> Running {
    let broker = Embedded::open(Settings {
        name: "here".into(),
        group: "hookbridge".into(),
        path: path.to_owned(),
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
    })
    .unwrap();
    let (pause, paused) = watch::channel(false);
    let intake = || Intake::new(Window::new(64), Budget::new(64 << 20), paused.clone());
    let ((source, events), (retries, due), (holds, _)) = (intake(), intake(), intake());
    let intakes = Intakes {
        sources: watch::channel(Arc::new(BTreeMap::from([("all".into(), source)]))).1,
        retries,
        holds,
        obeyed: Arc::new(|_, _| ()),
    };
    let stop = CancellationToken::new();
    let run = broker
        .clone()
        .run(intakes, stop.clone(), CancellationToken::new());
    Running {
        broker,
        events,
        due,
        stop,
        run: tokio::spawn(run),
        _pause: pause,
    }
}

fn said(what: &str, id: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n@{what} {id}").unwrap();
}

/// Publishes; every third event taken is parked, every third dead-lettered, then it is settled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of the test below, which starts and kills it"]
async fn victim() {
    let (Ok(file), Ok(round)) = (std::env::var(FILE), std::env::var(ROUND)) else {
        return;
    };
    let mut running = start(Path::new(&file));
    for publisher in 0..8 {
        let (broker, round) = (running.broker.clone(), round.clone());
        tokio::spawn(async move {
            for n in 0u64.. {
                let id = format!("{round}-{publisher}-{n}");
                let event = Publication {
                    topic: "orders.created".into(),
                    id: Some(id.clone()),
                    body: Bytes::from(vec![b'x'; 512]),
                    ..Publication::default()
                };
                broker.publish(event).await.unwrap();
                said("published", &id);
            }
        });
    }
    let mut count = 0;
    while let Some(Received::Event(event, receipt)) = running.events.recv().await {
        let id = event.id.to_string();
        let (name, uid) = ("crm".into(), Uid::of_config("crm"));
        let delivery = Delivery::first(event, name, uid, Timestamp::now());
        count += 1;
        match count % 3 {
            0 => {
                let wait = Wait {
                    kind: WaitKind::Retry,
                    delay: Duration::from_secs(20),
                };
                running.broker.park(&delivery, wait).await.unwrap();
            }
            1 => {
                let reason = Reason::Gone;
                running.broker.dead_letter(&delivery, reason).await.unwrap();
            }
            // The word is out before the answer can be: it may come again, and need not.
            _ => said("delivered", &id),
        }
        receipt.settle(Settlement::Ack);
    }
}

/// Runs a victim until it has said `lines` things, kills it, and adds what it said.
fn kill_one(
    file: &Path,
    round: usize,
    lines: usize,
    said: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "embedded_crash::victim",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(FILE, file)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut counted = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((what, id)) = line.strip_prefix('@').and_then(|line| line.split_once(' ')) else {
            continue;
        };
        said.entry(what.to_owned())
            .or_default()
            .insert(id.to_owned());
        counted += 1;
        if counted == lines {
            // SIGKILL; what is still in the pipe was said before and counts too.
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(counted >= lines, "the victim ended by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("embedded-here.redb");
    let mut said = BTreeMap::new();
    for round in 0..4 {
        let (file, taken) = (file.clone(), std::mem::take(&mut said));
        let killing = tokio::task::spawn_blocking(move || {
            let mut said = taken;
            kill_one(&file, round, 400 + 150 * round, &mut said);
            said
        });
        said = timeout(Duration::from_secs(60), killing)
            .await
            .unwrap()
            .unwrap();
    }
    let published = said.remove("published").unwrap();
    let mut found: HashSet<String> = said.remove("delivered").unwrap().into_iter().collect();

    let mut running = start(&file);
    crate::support::all_now(&*running.broker, WaitKind::Retry).await;
    for letter in crate::support::letters::listed(&*running.broker).await {
        found.insert(letter.delivery.event.id.to_string());
    }
    let (mut queued, mut parked) = (0, 0);
    loop {
        let received = tokio::select! {
            event = running.events.recv() => event,
            due = running.due.recv() => due,
            () = tokio::time::sleep(Duration::from_secs(1)) => break,
        };
        match received.unwrap() {
            Received::Event(event, receipt) | Received::Worn(event, receipt) => {
                queued += 1;
                found.insert(event.id.to_string());
                receipt.settle(Settlement::Ack);
            }
            Received::Due(delivery, _, receipt) => {
                parked += 1;
                found.insert(delivery.event.id.to_string());
                receipt.settle(Settlement::Ack);
            }
        }
    }
    println!(
        "{} published, {queued} queued, {parked} parked",
        published.len()
    );
    let missing: Vec<_> = published
        .difference(&found.into_iter().collect())
        .cloned()
        .collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {missing:?}",
        missing.len()
    );
    running.stop.cancel();
    timeout(Duration::from_secs(10), running.run)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
