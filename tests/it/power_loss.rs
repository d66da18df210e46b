//! Power loss, as near as it can be had without a machine to unplug: the bridge is killed and goes on
//! with what was synced by then. What it confirmed has to be there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::chaos_kill::bodies;
use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const WITHIN: Duration = Duration::from_secs(40);
const LOSSES: usize = 3;
const COUNT: usize = 3_000;

/// power_loss.c as a library.
fn library(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/power_loss.c");
    let library = folder.join("power_loss.so");
    let mut compile = Command::new("cc");
    compile
        .args(["-O1", "-shared", "-fPIC", "-pthread", "-o"])
        .arg(&library)
        .arg(source);
    let compiled = compile.arg("-ldl").output().expect("there is a C compiler");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    library
}

/// Publishes one after the other until told to stop, and notes what was confirmed.
fn publishing(
    url: String,
    bodies: Vec<String>,
    confirmed: Arc<Mutex<BTreeSet<String>>>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let client = reqwest::Client::new();
        for body in bodies {
            let sent = client.post(&url).body(body.clone()).send().await;
            match sent {
                Ok(answer) if answer.status() == 202 => confirmed.lock().unwrap().insert(body),
                _ => return,
            };
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_survives_the_loss_of_all_that_was_not_synced() {
    // One in three comes back from a tier, one in five is a dead letter.
    let receiver = Receiver::answering(|request, before| {
        let number: usize = request
            .body
            .iter()
            .filter(|b| b.is_ascii_digit())
            .map(|b| usize::from(b - b'0'))
            .sum();
        Answer::status(match number {
            n if n % 5 == 0 => 400,
            n if n % 3 == 0 && before == 0 => 503,
            _ => 204,
        })
    })
    .await;
    let bus = Bus::embedded();
    let subscriptions = subscription("crm", "orders.*", &receiver.url("/"), "")
        .replace("schedule:", "no_retry: [400], schedule:")
        + &subscription("paused", "others.*", &receiver.url("/"), "");
    let (folder, kept) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let (data, synced) = (folder.path().join("data"), kept.path().join("data"));
    let library = library(kept.path());
    let env = vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("POWER_LOSS_FROM", data.display().to_string()),
        ("POWER_LOSS_TO", synced.display().to_string()),
    ];
    let bridge = Bridge::start_in(folder, &bus.config(&subscriptions), env).await;
    let mut bridge = bridge.ready().await;
    assert_eq!(
        bridge.post("/v1/subscriptions/paused/pause", "").await.0,
        200
    );
    let confirmed = Arc::new(Mutex::new(BTreeSet::new()));
    let mut rest = bodies(COUNT);
    for loss in 0..LOSSES {
        let url = format!("http://{}/v1/topics/orders.created/events", bridge.admin);
        let some = rest.split_off(rest.len() - COUNT / LOSSES);
        let before = confirmed.lock().unwrap().len();
        let publishers: Vec<_> = some
            .chunks(some.len() / 8)
            .map(|part| publishing(url.clone(), part.to_vec(), confirmed.clone()))
            .collect();
        eventually("some are confirmed", WITHIN, async || {
            (confirmed.lock().unwrap().len() > before + 100 + 150 * loss).then_some(())
        })
        .await;
        bridge.kill9();
        for publisher in publishers {
            publisher.await.expect("no panic");
        }
        // What is left is what was synced; the next loss starts from the same.
        std::fs::remove_dir_all(&data).expect("removed");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&synced)
            .arg(&data)
            .status();
        assert!(copied.expect("cp runs").success());
        bridge.start_again().await;
        bridge.wait_ready(WITHIN).await;
    }
    let (_, listed) = bridge.get("/v1/subscriptions").await;
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("json");
    let all = listed["subscriptions"].as_array().expect("a list");
    let paused = all
        .iter()
        .find(|one| one["name"] == "paused")
        .expect("it is there");
    assert_eq!(paused["state"], "paused");
    receiver.quiet_for(Duration::from_secs(8), 2 * WITHIN).await;
    let mut ended: BTreeSet<String> = bus
        .letters(&mut bridge, 0)
        .await
        .into_iter()
        .map(|letter| String::from_utf8_lossy(&letter.body).into_owned())
        .collect();
    let dead = ended.len();
    let accepted = receiver
        .requests()
        .into_iter()
        .filter(|it| it.answered == 204);
    ended.extend(accepted.map(|it| String::from_utf8_lossy(&it.body).into_owned()));
    let confirmed = confirmed.lock().unwrap();
    let missing: Vec<_> = confirmed.difference(&ended).collect();
    println!(
        "{} confirmed, {dead} dead letters, {} missing",
        confirmed.len(),
        missing.len()
    );
    assert!(
        missing.is_empty(),
        "{} are missing: {:.200}",
        missing.len(),
        format!("{missing:?}")
    );
    assert!(dead > 0 && confirmed.len() > 400);
}
