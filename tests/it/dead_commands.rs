//! `hookbridge dead` as an operator uses it: what it prints, and what it does when something is wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use hookbridge::broker::{Broker as _, embedded};
use hookbridge::delivery::Reason;
use hookbridge::meters::Meters;
use hookbridge::store::{Disabled, DisabledBecause, EndpointStanding, Store, SubscriptionStanding};
use hookbridge::subscription::Uid;
use insta::assert_snapshot;
use jiff::Timestamp;
use serde_json::Value;

use crate::dead_support::{SOON, Scene, delivery, steady};
use crate::path::subscription;
use crate::support::bus::Bus;
use crate::support::{cli, eventually};

async fn scene(letters: usize) -> Scene {
    Scene::new(Bus::embedded(), letters).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_listed_grouped_and_shown() {
    let scene = scene(1).await;
    let listed = scene.dead(&["list"]).await;
    assert_snapshot!(steady(&listed.ok()), @r"
    DIED                  SUBSCRIPTION  REASON    LAST  TOPIC           EVENT    ID
    2026-01-01T00:00:00Z  crm           no_retry  400   orders.created  evt_110  dlv_A5TiCL_BCMD0
    ");
    let grouped = scene.dead(&["list", "--group"]).await;
    assert_snapshot!(steady(&grouped.ok()), @r"
    COUNT  SUBSCRIPTION  REASON    LAST  FIRST DIED            LAST DIED             EXAMPLE           ANSWER
    1      crm           no_retry  400   2026-01-01T00:00:00Z  2026-01-01T00:00:00Z  dlv_A5TiCL_BCMD0
    1 letter, 1 cause
    ");
    let shown = scene.dead(&["show", "dlv_A5TiCL_BCMD0"]).await;
    assert_snapshot!(steady(&shown.ok()), @r#"
    Letter dlv_A5TiCL_BCMD0...
      subscription  crm
      receiver      POST http://127.0.0.1:1234 (active)
      reason        no_retry
      event         evt_110
      type          orders.created
      topic         orders.created
      source        orders
      origin        here: topic orders.created, sequence 1

    History
      2026-01-01T00:00:00Z  published
      2026-01-01T00:00:00Z  taken
      2026-01-01T00:00:00Z  attempt 1: 400
      2026-01-01T00:00:00Z  dead: no_retry

    Body (25 bytes, application/json)
      {
        "order": 1,
        "total": 10
      }

    By hand
      curl -X POST 'http://127.0.0.1:1234/PATH' \
        -H 'content-type: application/json' \
        -H 'webhook-id: evt_110' \
        --data-binary '{"order": 1, "total": 10}'
      (the path is not shown, since it is often a credential; signature and timestamp are missing)
    "#);
    let body = scene.dead(&["show", "evt_110", "--body"]).await;
    assert_eq!(body.ok(), "{\"order\": 1, \"total\": 10}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_the_same_from_the_bridge_and_from_the_file() {
    let mut scene = scene(3).await;
    let reads: [&[&str]; 4] = [
        &["list", "--json"],
        &["list", "--group", "--json"],
        &[
            "list",
            "--count",
            "--json",
            "-subscription:stock",
            "-data.order:2",
        ],
        &["show", "evt_220", "--json"],
    ];
    let mut there = Vec::new();
    for read in reads {
        there.push(scene.dead(read).await.ok());
    }
    assert_eq!(there[2], "{\"count\":2,\"seen\":3}\n");
    let in_use = {
        // A config that differs in its admin address finds the file in use.
        let config = std::fs::read_to_string(scene.bridge.config_path()).unwrap();
        let elsewhere = scene.bridge.data_dir().join("elsewhere.yaml");
        std::fs::write(
            &elsewhere,
            config.replace(&scene.bridge.admin, "127.0.0.1:1"),
        )
        .unwrap();
        cli::run(&elsewhere, &["dead", "list"]).await
    };
    assert_eq!(in_use.code, Some(70), "{}", in_use.err);
    assert!(
        in_use.err.contains("in use by another process"),
        "{}",
        in_use.err
    );
    scene.stop().await;
    for (read, there) in reads.into_iter().zip(there) {
        assert_eq!(scene.dead(read).await.ok(), there, "{read:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other() {
    let scene = scene(5).await;
    let mut orders = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut arguments = vec![
            "list".to_owned(),
            "--json".into(),
            "--limit".into(),
            "2".into(),
        ];
        if let Some(cursor) = &cursor {
            arguments.extend(["--cursor".to_owned(), cursor.clone()]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let page: Value = serde_json::from_str(&scene.dead(&arguments).await.ok()).unwrap();
        let letters = page["letters"].as_array().unwrap();
        assert!(
            !letters.is_empty(),
            "a page is announced only where there is one"
        );
        orders.extend(letters.iter().map(|letter| letter["event_id"].to_string()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    orders.sort();
    let expected: Vec<_> = (1..=5).map(|n| format!("\"evt_{n}{n}0\"")).collect();
    assert_eq!(orders, expected);
    let wrong = scene.dead(&["list", "--cursor", "nonsense"]).await;
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.err.contains("no cursor of ours"), "{}", wrong.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_cannot_be_read_is_shown_with_its_column() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("hookbridge.yaml");
    std::fs::write(&config, "brokers: { here: { embedded: {} } }\n").unwrap();
    let wrong = cli::run(&config, &["dead", "list", "subscription:crm", "reasn:gone"]).await;
    assert_eq!(wrong.code, Some(64));
    assert_snapshot!(wrong.err, @r"
    error: the filter cannot be read at column 18
      subscription:crm reasn:gone
                       ^^^^^ there is no key `reasn`
      did you mean `reason`?
    ");
    for unclear in [&["dead", "retry"], &["dead", "drop"]] {
        let refused = cli::run(&config, unclear).await;
        assert_eq!(refused.code, Some(64));
        assert!(refused.err.contains("--all"), "{}", refused.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_says_what_is_wrong_with_a_request() {
    let scene = scene(1).await;
    let problem = async |path: &str, body: Option<&str>, status: u16| {
        let (was, text) = match body {
            Some(body) => scene.bridge.post(path, body).await,
            None => scene.bridge.get(path).await,
        };
        assert_eq!(was, status, "{path}: {text}");
        let problem: Value = serde_json::from_str(&text).unwrap();
        problem["detail"].as_str().unwrap().to_owned()
    };
    let filter = problem("/v1/dead-letters?filter=reasn:gone", None, 400).await;
    assert!(
        filter.contains("column 1") && filter.contains("`reason`"),
        "{filter}"
    );
    problem("/v1/dead-letters?limit=0", None, 400).await;
    problem("/v1/dead-letters?fliter=x", None, 400).await;
    problem("/v1/dead-letters?broker=lake", None, 404).await;
    problem("/v1/dead-letters/dlv_none", None, 404).await;
    for change in ["/v1/dead-letters/retry", "/v1/dead-letters/drop"] {
        let all = problem(change, Some("{}"), 400).await;
        assert!(all.contains("\"all\": true"), "{all}");
        problem(change, Some(r#"{"filter": "id:x", "all": true}"#), 400).await;
        problem(change, Some(r#"{"filter": "nonsense"}"#), 400).await;
        problem(change, Some("["), 400).await;
    }
    let rate = r#"{"all": true, "rate": "0/s"}"#;
    problem("/v1/dead-letters/retry", Some(rate), 400).await;
    assert_eq!(scene.count().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_bridge_the_store_tells_who_is_disabled_or_paused() {
    let mut scene = scene(1).await;
    scene.stop().await;
    let meters = Meters::new();
    let (bytes, flush) = (meters.store_bytes.clone(), meters.store_flush.clone());
    let store = Store::open(&scene.bridge.data_dir(), bytes, flush).unwrap();
    let gone = EndpointStanding {
        disabled: Some(Disabled {
            reason: DisabledBecause::Gone,
            at: Timestamp::now(),
        }),
        first_gone_at: None,
        ..EndpointStanding::default()
    };
    store.set_endpoint_standing("crm", gone).await.unwrap();
    let stock = Uid::of_config("stock");
    let paused = SubscriptionStanding { paused: true };
    store
        .set_subscription_standing(&stock, paused)
        .await
        .unwrap();
    let in_use = scene.dead(&["list"]).await;
    assert_eq!(in_use.code, Some(70), "{}", in_use.err);
    assert!(in_use.err.contains("in use by"), "{}", in_use.err);
    drop(store);
    let left = scene.dead(&["retry", "--all", "--yes"]).await;
    assert_eq!(left.code, Some(1), "{}", left.err);
    assert_snapshot!(left.out, @r"
    0 letters sent again
    1 left as they were:
      1  subscription `crm` is disabled by its receiver: enable it first
    ");
    let now = cli::run(&scene.bridge.config_path(), &["parked", "now", "stock"]).await;
    assert_eq!(now.code, Some(1), "{}", now.err);
    assert!(now.err.contains("`stock` is paused"), "{}", now.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_whose_subscription_is_gone_or_off_is_left_with_a_message() {
    let mut scene = scene(2).await;
    let off = scene.config.replace("crm: {", "crm: { enabled: false,");
    scene.bridge.reload(&off);
    let left = eventually("it is off", SOON, async || {
        let ran = scene.dead(&["retry", "--all", "--yes", "--dry-run"]).await;
        ran.out.contains("not enabled").then_some(ran)
    })
    .await;
    assert_eq!(left.code, Some(1));
    assert_snapshot!(left.out, @r"
    0 letters would be sent again
    2 left as they were:
      2  subscription `crm` is not enabled
    ");
    let gone = scene.config.replace("  crm: {", "  crn: {");
    scene.bridge.reload(&gone);
    let left = eventually("it is gone", SOON, async || {
        let ran = scene.dead(&["retry", "subscription:crm"]).await;
        ran.out.contains("gone").then_some(ran)
    })
    .await;
    assert_snapshot!(left.out, @r"
    0 letters sent again
    2 left as they were:
      2  subscription `crm` is gone
    ");
    let none = scene.dead(&["list", "subscription:crn"]).await;
    assert_eq!(none.out, "no dead letters\n");
    let strange = scene.dead(&["list", "subscription:stok"]).await;
    assert_eq!(
        strange.err,
        "there is no subscription `stok`: did you mean `stock`?\n"
    );
    let one = scene.dead(&["retry", "--edit", "evt_220"]).await;
    assert_eq!(one.code, Some(1));
    let why = "error: the letter is left where it is: subscription `crm` is gone\n";
    assert_eq!(one.err, why, "nobody edits in vain");
    // Without a bridge the config says the same.
    scene.stop().await;
    let left = scene.dead(&["retry", "--all", "--yes"]).await;
    assert!(left.out.contains("`crm` is gone"), "{}", left.out);
    assert_eq!(scene.count().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_letter_is_a_new_event_that_says_what_it_was_made_of() {
    let scene = scene(2).await;
    scene.heal();
    let editor = scene.bridge.data_dir().join("editor");
    let edit = async |script: &str, more: &[&str]| {
        std::fs::write(&editor, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o700)).unwrap();
        let arguments = [&["dead", "retry", "--edit", "evt_110"], more].concat();
        let mut command = cli::command(&scene.bridge.config_path(), &arguments);
        command
            .env("VISUAL", &editor)
            .env("TMPDIR", scene.bridge.data_dir());
        cli::finished(command).await
    };
    let unchanged = edit("true", &[]).await;
    assert!(
        unchanged.err.contains("nothing was changed"),
        "{}",
        unchanged.err
    );
    let broken = edit("printf x >> \"$1\"", &[]).await;
    assert!(broken.err.contains("no JSON any more"), "{}", broken.err);
    assert_eq!((unchanged.code, broken.code), (Some(1), Some(1)));
    assert_eq!(scene.taken().len(), 0);
    let sent = edit("printf '{\"order\": 1, \"total\": 11}' > \"$1\"", &[]).await;
    assert_eq!(sent.ok(), "1 letter sent again\n");
    let requests = scene.crm.wait_for(3, SOON).await;
    let request = requests.last().unwrap();
    assert_eq!(&request.body[..], b"{\"order\": 1, \"total\": 11}");
    assert!(
        request.verified && !request.id.starts_with("evt_"),
        "{}",
        request.id
    );
    assert_eq!(scene.count().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_s_letters_are_removed() {
    let scene = scene(4).await;
    let asks = scene.dead(&["drop", "data.order:2"]).await;
    assert_eq!(asks.code, Some(64), "nobody can be asked");
    let dry = scene.dead(&["drop", "data.order:2", "--dry-run"]).await;
    assert_eq!(dry.ok(), "1 letter would be removed\n");
    let dropped = scene
        .dead(&["drop", "data.order:2", "--yes", "--json"])
        .await;
    let report: Value = serde_json::from_str(&dropped.ok()).unwrap();
    assert_eq!((&report["done"], &report["seen"]), (&1.into(), &4.into()));
    assert_eq!(scene.count().await, 3);
    let nothing = scene.dead(&["drop", "data.order:2", "--yes"]).await;
    assert_eq!(nothing.code, Some(1));
    assert_snapshot!(nothing.out, @r"
    0 letters removed
    none of 3 letters is meant
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_whole_or_not_there_and_may_be_broken_off() {
    let scene = scene(300).await;
    let file = scene.bridge.data_dir().join("letters.ndjson");
    let path = file.to_str().unwrap();
    let exported = scene.dead(&["export", "--output", path]).await;
    assert_eq!(exported.err, "300 letters exported\n");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 300);
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let nowhere = scene.dead(&["export", "-o", "/nonexistent/letters"]).await;
    assert_eq!(nowhere.code, Some(74), "{}", nowhere.err);
    // Whoever reads has enough after the first line.
    let arguments = ["dead", "export"];
    let mut exporting = cli::command(&scene.bridge.config_path(), &arguments)
        .spawn()
        .unwrap();
    drop(exporting.stdout.take());
    let ended = tokio::task::spawn_blocking(move || exporting.wait_with_output());
    let ended = ended.await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    let left: Vec<_> = std::fs::read_dir(scene.bridge.data_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("unfinished"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(scene.count().await, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_stops_a_retry_between_two_letters() {
    let scene = scene(30).await;
    scene.heal();
    let arguments = ["dead", "retry", "--all", "--yes", "--rate", "10/s"];
    let retrying = cli::command(&scene.bridge.config_path(), &arguments)
        .spawn()
        .unwrap();
    eventually("a few are sent", SOON, async || {
        (scene.taken().len() >= 3).then_some(())
    })
    .await;
    let interrupt = format!("kill -INT {}", retrying.id());
    cli_ok(&interrupt);
    let began = Instant::now();
    let ended = tokio::task::spawn_blocking(move || retrying.wait_with_output());
    let ended = ended.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(ended.status.code(), Some(130));
    let out = String::from_utf8_lossy(&ended.stdout);
    assert!(out.starts_with("cancelled: "), "{out}");
    let sent: u64 = out.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(
        scene.count().await,
        30 - sent,
        "the summary says what was done"
    );
    let again = scene.dead(&["retry", "--all", "--yes"]).await;
    assert_eq!(again.ok(), format!("{} letters sent again\n", 30 - sent));
    scene.assert_all_taken_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_letters_are_sent_again_at_a_rate_with_a_bar() {
    const LETTERS: usize = 10_000;
    // Twenty thousand syncs, one after the other: in memory where there is such a place.
    let memory = Path::new("/dev/shm");
    let folder = match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    bury(LETTERS, &folder.path().join("embedded-here.redb")).await;
    let config = folder.path().join("hookbridge.yaml");
    let text = format!(
        "data_dir: {}\nadmin: {{ listen: 127.0.0.1:1 }}\nbrokers: {{ here: {{ embedded: {{}} }} }}\nsubscriptions:\n{}",
        folder.path().display(),
        subscription("crm", "orders.*", "https://crm.example.com/", ""),
    );
    std::fs::write(&config, text).unwrap();
    let listed = cli::run(&config, &["dead", "list", "--count"]).await;
    assert_eq!(listed.ok(), "10000\n");
    // A terminal of its own, so that there is a bar.
    let binary = env!("CARGO_BIN_EXE_hookbridge");
    let line = format!("{binary} dead retry subscription:crm --yes --rate 5000/s");
    let mut command = Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .env("HOOKBRIDGE_CONFIG", &config)
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    let began = Instant::now();
    let ran = cli::finished(command).await;
    let took = began.elapsed();
    let out = ran.ok();
    assert!(out.contains("10000 letters sent again"), "{out}");
    assert!(out.contains("/10000 looked at, "), "there is a bar: {out}");
    let least = Duration::from_millis(1_990);
    assert!(took >= least, "faster than its rate: {took:?}");
    let listed = cli::run(&config, &["dead", "list", "--count"]).await;
    assert_eq!(listed.ok(), "0\n");
}

/// Makes a file of the embedded broker with so many dead letters of `crm`.
async fn bury(letters: usize, file: &Path) {
    let broker = embedded::Embedded::open(embedded::Settings {
        name: "here".into(),
        group: "hookbridge".into(),
        path: file.to_owned(),
        max_bytes: 1 << 30,
        retention: Duration::ZERO,
        sources: Vec::new(),
    })
    .unwrap();
    let deliveries = (0..letters).map(|number| {
        let (broker, delivery) = (&broker, delivery(number, "crm"));
        async move { broker.dead_letter(&delivery, Reason::GaveUp).await }
    });
    let mut buried = stream::iter(deliveries).buffer_unordered(1_000);
    while let Some(kept) = buried.next().await {
        kept.unwrap();
    }
}

fn cli_ok(line: &str) {
    let status = std::process::Command::new("sh").args(["-c", line]).status();
    assert!(status.unwrap().success(), "{line}");
}
