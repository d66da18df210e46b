//! Subscriptions of the API written out and taken in again: after a wipe, under another key, and from
//! every format that a release has written.

use std::path::{Path, PathBuf};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::registration_support::{
    Came, KEY, OTHER_KEY, SOON, ask, config, get, post, publish, to,
};
use crate::support::bridge::Bridge;
use crate::support::cli::{Ran, run};
use crate::support::eventually;
use crate::support::receiver::Receiver;

const ALL: &str = "/v1/subscriptions";
const CRM: &str = "/v1/subscriptions/crm";
const IMPORT: &str = "/v1/subscriptions/import";
const SHARED: &str = "endpoints: { shared: { url: 'http://127.0.0.1:9/', signature: none } }\n";

async fn command(bridge: &Bridge, arguments: &[&str]) -> Ran {
    run(&bridge.config_path(), arguments).await
}

async fn import(bridge: &Bridge, file: &Path) -> Ran {
    command(
        bridge,
        &["subscription", "import", &file.display().to_string()],
    )
    .await
}

async fn export(bridge: &Bridge, file: &Path) {
    let file = file.display().to_string();
    let ran = command(bridge, &["subscription", "export", "--out", &file]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

/// The lines as a body.
async fn send(bridge: &Bridge, path: &str, lines: &str) -> Came {
    let request = Client::new()
        .post(format!("http://{}{path}", bridge.admin))
        .header("content-type", "application/x-ndjson")
        .body(lines.to_owned());
    let answer = request.send().await.expect("an answer");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("text");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Came {
        status,
        headers,
        body,
    }
}

/// All that is shown of all, with their tags.
async fn shown(bridge: &Bridge) -> Vec<(String, Value)> {
    let page = get(bridge, ALL).await.with(200).body;
    let mut all = Vec::new();
    for one in page["subscriptions"].as_array().expect("a list") {
        let path = format!("{ALL}/{}", one["uid"].as_str().expect("a uid"));
        let came = get(bridge, &path).await.with(200);
        all.push((came.header("etag"), came.body));
    }
    all
}

async fn wiped(bridge: &mut Bridge) {
    bridge.kill9();
    std::fs::remove_dir_all(bridge.data_dir()).expect("it is there");
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    assert_eq!(shown(bridge).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_is_there_again_after_a_wipe() {
    let receiver = Receiver::accepting().await;
    let mut bridge = Bridge::start(&config(&[KEY], SHARED)).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &receiver.url("/T0")))
        .await
        .with(201);
    let old = made.body["secret"].as_str().expect("shown once").to_owned();
    let rotated = post(&bridge, &format!("{CRM}/rotate"), &json!({}))
        .await
        .with(200);
    let new = rotated.body["secret"]
        .as_str()
        .expect("shown once")
        .to_owned();
    for name in ["erp", "held"] {
        let body = json!({ "name": name, "topics": ["none"], "endpoint": "shared", "labels": { "a": "b" } });
        post(&bridge, ALL, &body).await.with(201);
    }
    post(&bridge, "/v1/subscriptions/held/pause", &json!({}))
        .await
        .with(200);
    let before = shown(&bridge).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("all.ndjson");
    export(&bridge, &file).await;
    let text = std::fs::read_to_string(&file).expect("written");
    assert_eq!(text.lines().count(), 3);
    assert!(
        !text.contains("/T0") && !text.contains(&old[6..]) && !text.contains(&new[6..]),
        "{text}"
    );

    wiped(&mut bridge).await;
    let dry = command(
        &bridge,
        &[
            "subscription",
            "import",
            "--dry-run",
            &file.display().to_string(),
        ],
    )
    .await;
    assert!(
        dry.err.contains("3 subscriptions would be made"),
        "{}",
        dry.err
    );
    assert_eq!(shown(&bridge).await, []);
    let ran = import(&bridge, &file).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(
        ran.err
            .contains("3 subscriptions made, 0 unchanged, 0 in conflict"),
        "{}",
        ran.err
    );
    assert_eq!(
        shown(&bridge).await,
        before,
        "uids, revisions and times are as they were"
    );
    publish(&bridge, "one").await;
    let request = receiver.wait_for(1, SOON).await.remove(0);
    for secret in [&old, &new] {
        let verifier = Webhook::new(secret).expect("a secret");
        verifier
            .verify(&request.body, &request.headers)
            .expect("signed with it");
    }

    let again = import(&bridge, &file).await;
    assert!(
        again
            .err
            .contains("0 subscriptions made, 3 unchanged, 0 in conflict"),
        "{}",
        again.err
    );
    let patch = json!({ "timeout": "3s" });
    ask(&bridge, Method::PATCH, CRM, Some(&patch), &[])
        .await
        .with(200);
    let third = import(&bridge, &file).await;
    assert_eq!(third.code, Some(1));
    assert!(
        third
            .out
            .contains("`crm`: it is there in another state: revision 3, and 2 in the file"),
        "{}",
        third.out
    );
    assert_eq!(
        get(&bridge, CRM).await.body["subscription"]["timeout"],
        "3s"
    );
    // Its name is another one's by now.
    ask(&bridge, Method::DELETE, "/v1/subscriptions/erp", None, &[])
        .await
        .with(204);
    let body = json!({ "name": "erp", "topics": ["none"], "endpoint": "shared" });
    post(&bridge, ALL, &body).await.with(201);
    let fourth = import(&bridge, &file).await;
    assert!(
        fourth
            .out
            .contains("`erp`: there is a subscription `erp` already"),
        "{}",
        fourth.out
    );
    assert!(
        fourth.err.contains("1 unchanged, 2 in conflict"),
        "{}",
        fourth.err
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_another_key_it_is_sealed_anew() {
    let receiver = Receiver::accepting().await;
    let text = config(&[KEY], SHARED);
    let mut bridge = Bridge::start(&text).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    let secret = made.body["secret"].as_str().expect("shown once").to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("all.ndjson");
    export(&bridge, &file).await;

    let keys = |keys: &str| text.replace(&format!("['{KEY}']"), keys);
    bridge.write_config(&keys(&format!("['{OTHER_KEY}']")));
    wiped(&mut bridge).await;
    let refused = import(&bridge, &file).await;
    assert_eq!(refused.code, Some(1));
    let line: Value =
        serde_json::from_str(&std::fs::read_to_string(&file).expect("there")).expect("one line");
    let id = line["key"].as_str().expect("the key's id");
    let words = format!(
        "line 1, /subscription/endpoint: it is sealed with key {id}, which is not in `store_key`"
    );
    assert!(refused.err.contains(&words), "{}", refused.err);
    assert_eq!(shown(&bridge).await, []);

    bridge.reload(&keys(&format!("['{OTHER_KEY}', '{KEY}']")));
    eventually("the key is there", SOON, async || {
        (import(&bridge, &file).await.code == Some(0)).then_some(())
    })
    .await;
    // And the old one is needed no longer.
    bridge.kill9();
    bridge.write_config(&keys(&format!("['{OTHER_KEY}']")));
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "x").await;
    let request = receiver.wait_for(1, SOON).await.remove(0);
    let verifier = Webhook::new(&secret).expect("a secret");
    verifier
        .verify(&request.body, &request.headers)
        .expect("the same secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_goes_with_the_line_that_it_came_with() {
    let mut bridge = Bridge::start(&config(&[KEY], SHARED)).await.ready().await;
    let body = json!({ "name": "crm", "topics": ["none"], "endpoint": "shared" });
    post(&bridge, ALL, &body).await.with(201);
    let pause = format!("{CRM}/pause");
    post(&bridge, &pause, &json!({})).await.with(200);
    let exported = get(&bridge, &format!("{ALL}/export")).await.with(200).body;
    let paused = exported.to_string();
    let not_paused = {
        let mut line = exported;
        line.as_object_mut().expect("a line").remove("paused");
        line.to_string()
    };
    let result = async |bridge: &Bridge, line: &str| {
        let came = send(bridge, IMPORT, line).await.with(200).body;
        came["result"].as_str().expect("a result").to_owned()
    };
    assert_eq!(result(&bridge, &paused).await, "unchanged");
    let came = send(&bridge, IMPORT, &not_paused).await.with(200).body;
    assert_eq!(came["result"], "conflict");
    let why = came["why"].as_str().expect("a reason");
    assert!(why.contains("paused here and not paused there"), "{why}");

    // What was removed does not come again, and leaves no pause behind.
    ask(&bridge, Method::DELETE, CRM, None, &[]).await.with(204);
    assert_eq!(result(&bridge, &paused).await, "conflict");
    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    assert_eq!(result(&bridge, &not_paused).await, "made");
    assert_eq!(get(&bridge, CRM).await.with(200).body["state"], "active");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_by_lines_and_nothing_is_taken_in() {
    let bridge = Bridge::start(&config(&[KEY], SHARED)).await;
    let line = |name: &str, uid: &str, document: Value| {
        json!({ "format": 1, "subscription": {
            "uid": uid, "name": name, "revision": 1, "document": document,
            "made_at": "2026-11-01T00:00:00Z", "changed_at": "2026-11-01T00:00:00Z",
        } })
        .to_string()
    };
    let good = |name: &str| json!({ "name": name, "topics": ["x"], "endpoint": "shared" });
    let first = line("a", "api:01", good("a"));
    for (bad, pointer, words) in [
        ("{".to_owned(), "#", "no line of an export"),
        (
            "{\"format\":2}".to_owned(),
            "#",
            "written by a newer release (format 2;",
        ),
        (
            line("b", "config:b", good("b")),
            "#/subscription/uid",
            "no uid of the API",
        ),
        (
            line("b", "api:../x", good("b")),
            "#/subscription/uid",
            "no uid of the API",
        ),
        (line("b", "api:01", good("b")), "#/subscription", "twice"),
        (
            line("b", "api:02", good("c")),
            "#/subscription/name",
            "not the one",
        ),
        (
            line(
                "b",
                "api:02",
                json!({ "name": "b", "topics": ["a.**.b"], "endpoint": "shared" }),
            ),
            "#/subscription/document/topics/0",
            "",
        ),
        (
            line(
                "b",
                "api:02",
                json!({ "name": "b", "topics": ["x"], "endpoint": "none" }),
            ),
            "#/subscription/document/endpoint",
            "no endpoint `none`",
        ),
    ] {
        let text = format!("{first}\n\n{bad}\n");
        let refused = send(&bridge, &format!("{IMPORT}?first_line=101"), &text)
            .await
            .with(422);
        assert_eq!(refused.header("content-type"), "application/problem+json");
        let wrong = &refused.body["errors"][0];
        assert_eq!(
            (&wrong["pointer"], &wrong["line"]),
            (&json!(pointer), &json!(103)),
            "{wrong}"
        );
        assert!(
            wrong["detail"].as_str().expect("why").contains(words),
            "{wrong}"
        );
    }
    assert_eq!(post(&bridge, IMPORT, &json!({})).await.status, 415);
    let refused = send(&bridge, IMPORT, &"x".repeat((16 << 20) + 1))
        .await
        .with(413);
    assert_eq!(refused.body["type"], "urn:hookbridge:problem:too-large");
    assert_eq!(
        send(&bridge, &format!("{IMPORT}?dry-run=true"), &first)
            .await
            .status,
        400
    );
    assert_eq!(shown(&bridge).await, []);
    let came = send(&bridge, IMPORT, &first).await.with(200);
    assert_eq!(came.header("content-type"), "application/x-ndjson");
    assert_eq!(
        (&came.body["line"], &came.body["result"]),
        (&json!(1), &json!("made"))
    );
    let exported = get(&bridge, &format!("{ALL}/export")).await.with(200);
    assert_eq!(exported.body["subscription"]["uid"], "api:01");
}

/// A file is written once, by the release that has that format, and never again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_that_was_exported_can_be_imported() {
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/export/1.ndjson");
    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let bridge = Bridge::start(&config(&[KEY], SHARED)).await;
    if std::env::var_os("HOOKBRIDGE_BLESS").is_some() && !fixture.exists() {
        let mut body = to("crm", "http://127.0.0.1:9/T0");
        body["endpoint"]["secret"] = json!(SECRET);
        post(&bridge, ALL, &body).await.with(201);
        let shared = json!({ "name": "erp", "topics": ["x.#"], "endpoint": "shared", "labels": { "team": "a" } });
        post(&bridge, ALL, &shared).await.with(201);
        post(&bridge, "/v1/subscriptions/erp/pause", &json!({}))
            .await
            .with(200);
        std::fs::create_dir_all(fixture.parent().expect("a folder")).expect("made");
        export(&bridge, &fixture).await;
        for name in ["crm", "erp"] {
            ask(&bridge, Method::DELETE, &format!("{ALL}/{name}"), None, &[])
                .await
                .with(204);
        }
    }
    let ran = import(&bridge, &fixture).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let crm = get(&bridge, CRM).await.with(200).body;
    assert_eq!(
        (&crm["state"], &crm["url"]),
        (&json!("active"), &json!("http://127.0.0.1:9"))
    );
    let erp = get(&bridge, "/v1/subscriptions/erp").await.with(200).body;
    assert_eq!(
        (&erp["state"], &erp["subscription"]["labels"]["team"]),
        (&json!("paused"), &json!("a"))
    );
}
