//! Every format that a release has written is opened, and a newer one is refused and left as it is.
//!
//! tests/fixtures/store has what the stores of releases held, record by record: `<version>-<what>.ndjson`.
//! A file is written once, by the release that it is of (`HOOKBRIDGE_BLESS=1 cargo test --test it store_formats`
//! where it is not there), and never again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hookbridge::meters::Meters;
use hookbridge::store::{
    Agreement, Answer, Disabled, DisabledBecause, EndpointStanding, Key, Keys, OpenError,
    Registered, Remembered, Step, Store, SubscriptionStanding, Suspect,
};
use hookbridge::subscription::{Spec, Uid};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::tempdir;

use crate::store_basics;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store")
}

fn open(dir: &Path) -> Result<Store, OpenError> {
    let meters = Meters::new();
    Store::open(dir, meters.store_bytes.clone(), meters.store_flush.clone())
}

/// One record: its tree, its key, and its bytes in base64.
fn lines(db: &sled::Db) -> Vec<String> {
    let mut all = Vec::new();
    let mut names: Vec<_> = db
        .tree_names()
        .into_iter()
        .map(|name| name.to_vec())
        .collect();
    names.sort();
    for name in names {
        for entry in &db.open_tree(&name).unwrap() {
            let (key, value) = entry.unwrap();
            let line = json!({
                "tree": String::from_utf8_lossy(&name),
                "key": String::from_utf8_lossy(&key),
                "value": BASE64.encode(&value),
            });
            all.push(line.to_string());
        }
    }
    all
}

/// A store that holds these records, written by nobody of today, and its seal: SHA-256 of each record
/// as four numbers, added up.
fn restored(dir: &Path, lines: &[String]) {
    let store = dir.join("store");
    let mut sum = [0_u64; 4];
    {
        let db = raw(&store);
        for line in lines {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap();
            let value = BASE64.decode(text("value")).unwrap();
            let tree = db.open_tree(text("tree")).unwrap();
            tree.insert(text("key"), value.as_slice()).unwrap();
            let mut hasher = Sha256::new();
            for part in [text("tree").as_bytes(), text("key").as_bytes(), &value] {
                hasher.update((part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
            for (word, bytes) in sum.iter_mut().zip(hasher.finalize().chunks(8)) {
                *word = word.wrapping_add(u64::from_be_bytes(bytes.try_into().unwrap()));
            }
        }
        db.flush().unwrap();
    }
    let seal: String = sum.iter().map(|word| format!("{word:016x}")).collect();
    fs::write(store.join("seal"), seal + "\n").unwrap();
}

/// Whoever had it last may still be letting go of it.
fn raw(store: &Path) -> sled::Db {
    let config = sled::Config::new().path(store).flush_every_ms(None);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match config.open() {
            Ok(db) => return db,
            Err(why) if Instant::now() > until => panic!("{why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn read(name: &str) -> Vec<String> {
    let text = fs::read_to_string(fixtures().join(name));
    let text = text.unwrap_or_else(|why| panic!("{name}: {why}"));
    text.lines().map(str::to_owned).collect()
}

fn spec(name: &str) -> Spec {
    store_basics::spec(name, "orders.*")
}

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

fn keys() -> Keys {
    Keys::new(vec![Key::read(KEY).unwrap()])
}

/// What version 1 has, with and without what registration brought.
async fn written_now(dir: &Path, registered: bool) -> Vec<String> {
    let store = open(dir).unwrap();
    let specs = ["crm", "erp"].map(|name| (Arc::from(name), spec(name)));
    store.reconcile(&specs.into_iter().collect()).await.unwrap();
    let paused = SubscriptionStanding { paused: true };
    let crm = Uid::of_config("crm");
    store
        .set_subscription_standing(&crm, paused.clone())
        .await
        .unwrap();
    store.set_source_standing("orders", paused).await.unwrap();
    let gone = EndpointStanding {
        disabled: Some(Disabled {
            reason: DisabledBecause::Gone,
            at: at("2026-11-01T00:00:00Z"),
        }),
        first_gone_at: Some(at("2026-10-31T23:00:00Z")),
        agreed: Some(Agreement {
            key: "k".to_owned(),
            at: at("2026-10-01T00:00:00Z"),
            per_minute: Some(60),
        }),
    };
    store.set_endpoint_standing("erp", gone).await.unwrap();
    let suspect = Suspect {
        tries: 2,
        last: at("2026-11-01T00:00:00Z"),
        in_hand: false,
    };
    let notes = vec![("evt_1".to_owned(), Some(suspect))];
    store.note_suspects(notes).await.unwrap();
    if registered {
        let uid = Uid::from_stored("api:0190a0a0a0a07000800000000000a001");
        let own = json!({ "url": "https://crm.example.com/T0", "secrets": ["new-secret-0123456789", "old-secret-0123456789"], "signature": "hmac" });
        let record = Registered {
            endpoint: Some(
                keys()
                    .seal(uid.as_str(), own.to_string().as_bytes())
                    .unwrap(),
            ),
            uid,
            name: "sales".to_owned(),
            revision: 3,
            made_at: at("2026-11-01T00:00:00Z"),
            changed_at: at("2026-11-02T00:00:00Z"),
            document: json!({ "name": "sales", "topics": ["orders.*"], "timeout": "3s" }),
            old_until: vec![at("2036-11-02T00:00:00Z")],
        };
        let answered = Remembered {
            request: "ab".repeat(32),
            until: at("2036-11-02T00:00:00Z"),
            answer: Answer::Open(json!({ "name": "sales", "etag": null, "body": {} })),
        };
        let put = Step::Put {
            record: Box::new(record),
            answered: Some(Box::new(("cd".repeat(32), answered))),
        };
        store.fold(vec![put]).await.unwrap();
    }
    drop(store);
    lines(&raw(&dir.join("store")))
}

#[tokio::test]
async fn every_released_format_is_opened() {
    for (name, registered) in [("1-before-registrations", false), ("1-registered", true)] {
        let name = format!("{name}.ndjson");
        let path = fixtures().join(&name);
        if std::env::var_os("HOOKBRIDGE_BLESS").is_some() && !path.exists() {
            let dir = tempdir().unwrap();
            let written = written_now(dir.path(), registered).await;
            let written: Vec<_> = written
                .into_iter()
                // The release before knew no such tree.
                .filter(|line| registered || !line.contains("\"tree\":\"registered\""))
                .collect();
            fs::create_dir_all(fixtures()).unwrap();
            fs::write(&path, written.join("\n") + "\n").unwrap();
        }
        let dir = tempdir().unwrap();
        restored(dir.path(), &read(&name));
        let store = open(dir.path()).unwrap_or_else(|why| panic!("{name}: {why}"));

        let all = store.subscriptions().unwrap();
        assert_eq!(
            all.iter().map(|one| one.spec.clone()).collect::<Vec<_>>(),
            [spec("crm"), spec("erp")]
        );
        assert!(
            store
                .subscription_standing(&Uid::of_config("crm"))
                .unwrap()
                .paused
        );
        assert!(store.source_standing("orders").unwrap().paused);
        let erp = store.endpoint_standing("erp").unwrap();
        assert_eq!(erp.disabled.unwrap().reason, DisabledBecause::Gone);
        assert_eq!(erp.agreed.unwrap().per_minute, Some(60));
        let begun = store.begin().await.unwrap();
        assert_eq!(begun.suspects["evt_1"].tries, 2);

        let made: Result<Vec<_>, _> = store.each_registered().collect();
        let made = made.unwrap();
        assert_eq!(made.len(), usize::from(registered));
        for record in made {
            assert_eq!((&*record.name, record.revision), ("sales", 3));
            assert_eq!(record.document["timeout"], "3s");
            assert_eq!(record.old_until.len(), 1);
            let sealed = record.endpoint.as_ref().unwrap();
            let own = keys().open(record.uid.as_str(), sealed).unwrap();
            assert!(String::from_utf8(own).unwrap().contains("old-secret"));
            assert_eq!(store.registered_as("sales").unwrap(), Some(record));
            assert!(store.remembered(&"cd".repeat(32)).unwrap().is_some());
            assert_eq!(store.registered_after(None, 10).unwrap().len(), 1);
        }
        // What is opened can be written on, and is whole then.
        store.reconcile(&Default::default()).await.unwrap();
        drop(store);
        assert!(
            open(dir.path())
                .unwrap()
                .subscriptions()
                .unwrap()
                .is_empty()
        );
    }
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let newer = |tree: &str, key: &str, value: &[u8]| {
        json!({ "tree": tree, "key": key, "value": BASE64.encode(value) }).to_string()
    };
    for (line, words) in [
        (
            newer("subscriptions", "config:new", b"\x02{}"),
            "subscriptions config:new has record version 2",
        ),
        (
            newer("registered", "uid:api:1", b"\x09{}"),
            "registered uid:api:1 has record version 9",
        ),
        (newer("tenants", "a", b"\x01{}"), "it has a part `tenants`"),
    ] {
        let dir = tempdir().unwrap();
        let mut all = read("1-before-registrations.ndjson");
        all.push(line);
        restored(dir.path(), &all);
        let seal = fs::read_to_string(dir.path().join("store/seal")).unwrap();
        let why = match open(dir.path()) {
            Err(why @ OpenError::Newer { .. }) => why.to_string(),
            Err(other) => panic!("{words}: {other}"),
            Ok(_) => panic!("{words}: it was opened"),
        };
        assert!(
            why.contains(words) && why.contains("start that release again"),
            "{why}"
        );
        assert_eq!(
            fs::read_to_string(dir.path().join("store/seal")).unwrap(),
            seal
        );
        // A copy, since sled keeps its lock on the other one.
        let copy = tempdir().unwrap();
        copied(&dir.path().join("store"), &copy.path().join("store"));
        let db = raw(&copy.path().join("store"));
        let (mut kept, mut should) = (lines(&db), all);
        kept.sort();
        should.sort();
        assert_eq!(kept, should, "{words}");
    }
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copied(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}
