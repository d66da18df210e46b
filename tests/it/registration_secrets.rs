//! Secrets of subscriptions made over the API: sealed on the disk, replaced with an overlap, and the
//! key that seals them replaced.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use standardwebhooks::Webhook;

use crate::registration_support::{KEY, OTHER_KEY, SOON, ask, config, get, post, publish, to};
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::receiver::{Receiver, Request};

const ALL: &str = "/v1/subscriptions";
const CRM: &str = "/v1/subscriptions/crm";
const ROTATE: &str = "/v1/subscriptions/crm/rotate";

/// Whether a file below `folder` holds `text`.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => holds(&path, text),
            false => std::fs::read(&path)
                .unwrap_or_default()
                .windows(text.len())
                .any(|part| part == text.as_bytes()),
        }
    })
}

fn is_signed_with(request: &Request, secret: &str) -> bool {
    let verifier = Webhook::new(secret).expect("a secret");
    verifier.verify(&request.body, &request.headers).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_disk_nothing_of_them_can_be_read() {
    let mut bridge = Bridge::start(&config(&[KEY], "")).await;
    let url = "http://127.0.0.1:9/T0/credential";
    let mut body = to("crm", url);
    body["endpoint"]["headers"] = json!({ "x-key": "hunter2-hunter2" });
    let once = [("idempotency-key", "k")];
    let made = ask(&bridge, Method::POST, ALL, Some(&body), &once);
    let made = made.await.with(201);
    let secret = made.body["secret"].as_str().expect("shown once");
    let secret = secret.trim_start_matches("whsec_").to_owned();
    let given = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let rotated = post(&bridge, ROTATE, &json!({ "secret": given }))
        .await
        .with(200);
    assert_eq!(rotated.body["secret"], json!(null), "it is known already");
    bridge.kill9();
    let data = bridge.data_dir();
    assert!(
        holds(&data, "127.0.0.1:9") || holds(&data, "api:"),
        "the store is looked at"
    );
    for text in [secret.as_str(), "credential", "hunter2", &given[6..]] {
        assert!(!holds(&data, text), "{text} is on the disk");
    }
    assert!(!bridge.log().contains(&secret) && !bridge.log().contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_secret_signs_until_it_expires() {
    let receiver = Receiver::accepting().await;
    let mut bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    let old = made.body["secret"].as_str().expect("shown once").to_owned();
    let rotated = post(&bridge, ROTATE, &json!({ "overlap": "1h" }))
        .await
        .with(200);
    let new = rotated.body["secret"]
        .as_str()
        .expect("shown once")
        .to_owned();
    assert_eq!(
        rotated.body["old_secrets_until"].as_array().map(Vec::len),
        Some(1)
    );
    publish(&bridge, "both").await;
    let both = receiver.wait_for(1, SOON).await.remove(0);
    assert!(is_signed_with(&both, &old) && is_signed_with(&both, &new));

    // Of two that are older the one goes whose time is over.
    let rotated = post(&bridge, ROTATE, &json!({ "overlap": "1s" }))
        .await
        .with(200);
    let newer = rotated.body["secret"]
        .as_str()
        .expect("shown once")
        .to_owned();
    eventually("one expires", SOON, async || {
        let shown = get(&bridge, CRM).await.with(200).body;
        let until = shown["old_secrets_until"].as_array();
        (until.map(Vec::len) == Some(1)).then_some(())
    })
    .await;
    publish(&bridge, "newer").await;
    let one = receiver.wait_for(2, SOON).await.remove(1);
    assert!(is_signed_with(&one, &newer) && is_signed_with(&one, &old));
    assert!(!is_signed_with(&one, &new));

    // What expires while nothing runs is gone at the start.
    let rotated = post(&bridge, ROTATE, &json!({ "overlap": "1s" }))
        .await
        .with(200);
    let newest = rotated.body["secret"]
        .as_str()
        .expect("shown once")
        .to_owned();
    bridge.kill9();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "newest").await;
    let one = receiver.wait_for(3, SOON).await.remove(2);
    assert!(is_signed_with(&one, &newest) && !is_signed_with(&one, &newer));
    post(&bridge, ROTATE, &json!({ "overlap": "0s" }))
        .await
        .with(200);

    for (body, pointer) in [
        (json!({ "overlap": "soon" }), "#/overlap"),
        (json!({ "overlap": "31d" }), "#/overlap"),
        (json!({ "secret": "short" }), "#/secret"),
    ] {
        assert_eq!(
            post(&bridge, ROTATE, &body).await.with(422).pointers(),
            [pointer]
        );
    }
    post(&bridge, ROTATE, &json!({ "overlp": "1s" }))
        .await
        .with(400);
    for _ in 0..4 {
        post(&bridge, ROTATE, &json!({})).await.with(200);
    }
    post(&bridge, ROTATE, &json!({})).await.with(409);
    post(&bridge, ROTATE, &json!({ "overlap": "0s" }))
        .await
        .with(200);
    assert!(get(&bridge, CRM).await.body["old_secrets_until"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_that_seals_can_be_replaced_and_not_lost() {
    let receiver = Receiver::accepting().await;
    let text = config(&[KEY], "");
    let mut bridge = Bridge::start(&text).await.ready().await;
    let body = to("crm", &receiver.url("/"));
    let once = [("idempotency-key", "k")];
    let made = ask(&bridge, Method::POST, ALL, Some(&body), &once)
        .await
        .with(201);
    let secret = made.body["secret"].as_str().expect("shown once").to_owned();

    let keys = |keys: &str| text.replace(&format!("['{KEY}']"), keys);
    bridge.reload(&keys(&format!("['{OTHER_KEY}', '{KEY}']")));
    eventually("all is sealed anew", SOON, async || {
        let said = "sealed with the first key of `store_key` now";
        bridge.log().contains(said).then_some(())
    })
    .await;
    bridge.kill9();
    bridge.write_config(&keys(&format!("['{OTHER_KEY}']")));
    bridge.start_again().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "x").await;
    let request = receiver.wait_for(1, SOON).await.remove(0);
    assert!(is_signed_with(&request, &secret));
    let again = ask(&bridge, Method::POST, ALL, Some(&body), &once).await;
    assert_eq!(again.with(201).body, made.body);

    // Without it nothing is taken, rather than a subscription be passed over.
    bridge.kill9();
    bridge.write_config(&text);
    bridge.launch();
    assert_eq!(bridge.exit_code(SOON).await, Some(78));
    let log = bridge.log();
    assert!(log.contains("Add the key that it was sealed with"), "{log}");
    bridge.write_config(&keys(&format!("['{OTHER_KEY}']")));
    bridge.start_again().await;
    assert_eq!(get(&bridge, CRM).await.with(200).body["state"], "active");
}
