//! The store on a real disk: what it keeps, what it refuses, and that damage never wipes it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hookbridge::meters::Meters;
use hookbridge::store::{
    Disabled, DisabledBecause, EndpointStanding, OpenError, Owner, Store, StoreError,
    SubscriptionStanding,
};
use hookbridge::subscription::{MaxParked, RetryPolicy, Spec, Uid};
use serde_json::json;
use tempfile::tempdir;

fn open(dir: &Path) -> Result<Store, OpenError> {
    let meters = Meters::new();
    Store::open(dir, meters.store_bytes.clone(), meters.store_flush.clone())
}

pub fn spec(name: &str, topic: &str) -> Spec {
    Spec {
        name: name.into(),
        topics: vec![topic.to_owned()],
        types: Vec::new(),
        sources: Box::default(),
        filter: Some(json!({"data.total": {"$gte": 0.1}}).into()),
        enabled: true,
        shadow: false,
        terms: None,
        was: Default::default(),
        retry: RetryPolicy::shared(RetryPolicy::default()),
        timeout: Spec::DEFAULT_TIMEOUT,
        connect_timeout: Spec::DEFAULT_CONNECT_TIMEOUT,
        slow_after: Spec::DEFAULT_SLOW_AFTER,
        max_parked: MaxParked::default(),
        tenant: None,
        labels: Default::default(),
        endpoint: name.into(),
    }
}

fn specs(entries: &[(&str, &str)]) -> BTreeMap<Arc<str>, Spec> {
    entries
        .iter()
        .map(|(name, topic)| (Arc::from(*name), spec(name, topic)))
        .collect()
}

fn topics(store: &Store) -> Vec<(String, String)> {
    let records = store.subscriptions().unwrap();
    records
        .iter()
        .map(|record| (record.spec.name.to_string(), record.spec.topics[0].clone()))
        .collect()
}

#[tokio::test]
async fn reconciling_says_what_was_added_changed_and_removed() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let changes = store
        .reconcile(&specs(&[("a", "x"), ("b", "x")]))
        .await
        .unwrap();
    assert_eq!(changes.added, ["a".into(), "b".into()]);
    assert!(changes.changed.is_empty() && changes.removed.is_empty());

    drop(store);
    let store = open(dir.path()).unwrap();
    let same = store
        .reconcile(&specs(&[("a", "x"), ("b", "x")]))
        .await
        .unwrap();
    assert!(same.is_empty(), "{same:?}");

    let changes = store
        .reconcile(&specs(&[("b", "y"), ("c", "x")]))
        .await
        .unwrap();
    assert_eq!(changes.added, ["c".into()]);
    assert_eq!(changes.changed, ["b".into()]);
    assert_eq!(changes.removed, ["a".into()]);
    let records = store.subscriptions().unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].uid, Uid::of_config("b"));
    assert_eq!(records[0].owner, Owner::Config);
    assert_eq!(records[0].spec, spec("b", "y"));
}

#[tokio::test]
async fn standings_and_the_instance_name_outlive_the_process() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let name = store.instance_name();
    let at = "2026-01-31T12:00:00Z".parse().unwrap();
    let gone = EndpointStanding {
        disabled: Some(Disabled {
            reason: DisabledBecause::Gone,
            at,
        }),
        first_gone_at: Some(at),
        ..EndpointStanding::default()
    };
    let paused = SubscriptionStanding { paused: true };
    let uid = Uid::of_config("crm");
    store.reconcile(&specs(&[("crm", "x")])).await.unwrap();
    store
        .set_endpoint_standing("crm", gone.clone())
        .await
        .unwrap();
    store
        .set_subscription_standing(&uid, paused.clone())
        .await
        .unwrap();
    drop(store);

    let store = open(dir.path()).unwrap();
    assert_eq!(store.instance_name(), name);
    assert_eq!(store.endpoint_standing("crm").unwrap(), gone);
    assert_eq!(
        store.endpoint_standing("other").unwrap(),
        EndpointStanding::default()
    );
    assert_eq!(store.subscription_standing(&uid).unwrap(), paused);

    store
        .set_endpoint_standing("crm", EndpointStanding::default())
        .await
        .unwrap();
    assert_eq!(
        store.endpoint_standing("crm").unwrap(),
        EndpointStanding::default()
    );
    store.reconcile(&specs(&[])).await.unwrap();
    assert!(
        store.subscription_standing(&uid).unwrap().paused,
        "other instances may have it still"
    );
}

#[tokio::test]
async fn the_store_is_measured() {
    let dir = tempdir().unwrap();
    let meters = Meters::new();
    let store = Store::open(
        dir.path(),
        meters.store_bytes.clone(),
        meters.store_flush.clone(),
    )
    .unwrap();
    store.reconcile(&specs(&[("a", "x")])).await.unwrap();
    assert!(meters.store_bytes.get() > 0);
    assert!(
        meters
            .encode()
            .contains("hookbridge_store_flush_duration_seconds_count 1")
    );
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_and_harms_nothing() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let mut large = specs(&[("a", "x")]);
    large.get_mut("a").unwrap().filter = Some(json!({"data.a": "x".repeat(100_000)}).into());
    let error = store.reconcile(&large).await.unwrap_err().to_string();
    assert!(error.contains("subscription a takes 100"), "{error}");
    assert!(store.failure().is_none());
    store.reconcile(&specs(&[("a", "x")])).await.unwrap();
}

#[tokio::test]
async fn a_second_opener_is_refused_here_and_from_another_process() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.reconcile(&specs(&[("a", "x")])).await.unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"));

    let output = child("open", dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("in use by another process"), "{said}");
    assert_eq!(topics(&store), [("a".into(), "x".into())]);
}

#[tokio::test]
async fn a_torn_snapshot_is_repaired() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.reconcile(&specs(&[("a", "x")])).await.unwrap();
    drop(store);
    let torn = dir.path().join("store/snap.00000000000F0000.generating");
    fs::write(&torn, b"torn").unwrap();
    assert_eq!(
        topics(&open(dir.path()).unwrap()),
        [("a".into(), "x".into())]
    );
    assert!(!torn.exists());
}

#[tokio::test]
async fn a_failed_store_says_so_from_then_on_and_is_dropped_without_hanging() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.reconcile(&specs(&[("a", "x")])).await.unwrap();
    fs::rename(dir.path().join("store"), dir.path().join("gone")).unwrap();
    let error = store.reconcile(&specs(&[])).await.unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error}");
    fs::rename(dir.path().join("gone"), dir.path().join("store")).unwrap();
    assert!(matches!(
        store.subscriptions(),
        Err(StoreError::Failed { .. })
    ));
    let again = store.reconcile(&specs(&[])).await;
    assert!(matches!(again, Err(StoreError::Failed { .. })));
    assert!(store.failure().is_some());
}

#[tokio::test]
async fn a_bad_instance_name_is_refused() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("instance"), "two words\n").unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(
        matches!(error, OpenError::BadInstanceName { .. }),
        "{error}"
    );
}

/// Flips one byte in many places, one at a time: the store is refused, or reads right, and its
/// files are still there.
#[tokio::test]
async fn damage_is_refused_or_harmless_and_never_wipes() {
    let dir = tempdir().unwrap();
    let entries = [("a", "x"), ("b", "y"), ("c", "z")];
    let store = open(dir.path()).unwrap();
    store.reconcile(&specs(&entries)).await.unwrap();
    let wanted = topics(&store);
    drop(store);
    let db = dir.path().join("store/db");
    let whole = fs::read(&db).unwrap();
    let written: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
    let (mut refused, mut right) = (0, 0);
    for at in written.iter().step_by(written.len() / 40 + 1) {
        let copy = tempdir().unwrap();
        fs::create_dir(copy.path().join("store")).unwrap();
        for entry in fs::read_dir(dir.path().join("store")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(
                    entry.path(),
                    copy.path().join("store").join(entry.file_name()),
                )
                .unwrap();
            }
        }
        let mut damaged = whole.clone();
        damaged[*at] ^= 0x55;
        fs::write(copy.path().join("store/db"), damaged).unwrap();
        match open(copy.path()).map(|store| store.subscriptions().map(|_| topics(&store))) {
            Ok(Ok(found)) => {
                assert_eq!(found, wanted, "byte {at} was flipped");
                right += 1;
            }
            Ok(Err(_)) | Err(OpenError::Damaged { .. } | OpenError::OtherVersion { .. }) => {
                refused += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
        let left = fs::metadata(copy.path().join("store/db")).unwrap().len();
        assert!(
            left as usize >= whole.len() / 2,
            "byte {at}: {left} bytes left"
        );
    }
    println!("refused {refused}, right {right}");
}

#[tokio::test]
async fn what_was_confirmed_survives_a_kill() {
    let dir = tempdir().unwrap();
    let mut writer = child("write", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let confirmed = dir.path().join("confirmed");
    let started = Instant::now();
    let several = || fs::read_to_string(&confirmed).is_ok_and(|text| text.lines().count() > 5);
    while !several() && started.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    let text = fs::read_to_string(&confirmed).unwrap();
    let last: usize = text
        .lines()
        .filter_map(|line| line.parse().ok())
        .max()
        .unwrap();
    let store = open(dir.path()).unwrap();
    let kept: usize = topics(&store)[0].1.parse().unwrap();
    assert!(kept >= last, "{last} was confirmed, {kept} is there");
}

/// The other process of the tests above: this test executable, running this test alone.
#[tokio::test]
async fn as_a_child() {
    let (Ok(job), Ok(dir)) = (std::env::var("HB_STORE_JOB"), std::env::var("HB_STORE_DIR")) else {
        return;
    };
    let dir = Path::new(&dir);
    match (job.as_str(), open(dir)) {
        ("write", Ok(store)) => {
            let mut confirmed = fs::File::create(dir.join("confirmed")).unwrap();
            for number in 0..100_000 {
                let topic = number.to_string();
                store.reconcile(&specs(&[("a", &topic)])).await.unwrap();
                writeln!(confirmed, "{number}").unwrap();
            }
        }
        (_, opened) => println!(
            "{}",
            opened.err().map_or("opened".into(), |e| e.to_string())
        ),
    }
}

fn child(job: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["store_basics::as_a_child", "--exact", "--nocapture"])
        .env("HB_STORE_JOB", job)
        .env("HB_STORE_DIR", dir);
    command
}
