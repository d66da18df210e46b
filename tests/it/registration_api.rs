//! Subscriptions made, shown, changed and removed over the API of a running bridge.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::registration_support::{KEY, SOON, ask, config, get, post, publish, to};
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::receiver::Receiver;

const ALL: &str = "/v1/subscriptions";
const CRM: &str = "/v1/subscriptions/crm";

fn names(page: &Value) -> Vec<&str> {
    let all = page["subscriptions"].as_array().expect("a list");
    all.iter()
        .map(|one| one["name"].as_str().expect("a name"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_is_delivered_changed_and_removed() {
    let (first, second) = (Receiver::accepting().await, Receiver::accepting().await);
    let mut bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &first.url("/T0/B0")))
        .await
        .with(201);
    assert_eq!(made.header("location"), CRM);
    assert_eq!(
        (&made.body["owner"], &made.body["state"]),
        (&json!("api"), &json!("active"))
    );
    let secret = made.body["secret"]
        .as_str()
        .expect("it is shown once")
        .to_owned();
    publish(&bridge, "one").await;
    let request = first.wait_for(1, SOON).await.remove(0);
    let verifier = Webhook::new(&secret).expect("a secret");
    verifier
        .verify(&request.body, &request.headers)
        .expect("signed with it");

    let shown = get(&bridge, CRM).await.with(200);
    assert_eq!(shown.header("etag"), made.header("etag"));
    let text = shown.body.to_string();
    assert!(!text.contains("whsec_") && !text.contains("B0"), "{text}");
    assert_eq!(shown.body["subscription"]["endpoint"]["secret"], "***");

    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "two").await;
    let request = first.wait_for(2, SOON).await.remove(1);
    verifier
        .verify(&request.body, &request.headers)
        .expect("the same secret");

    let patch = json!({ "endpoint": { "url": second.url("/new") } });
    let merge = [("content-type", "application/merge-patch+json")];
    let changed = ask(&bridge, Method::PATCH, CRM, Some(&patch), &merge)
        .await
        .with(200);
    assert_ne!(changed.header("etag"), made.header("etag"));
    assert_eq!(changed.body["uid"], made.body["uid"]);
    publish(&bridge, "three").await;
    let request = second.wait_for(1, SOON).await.remove(0);
    verifier
        .verify(&request.body, &request.headers)
        .expect("the same secret");
    let metrics = bridge.metrics().await;
    let line = r#"hookbridge_delivery_attempts_total{subscription="(api)",outcome="delivered",status_class="2xx"}"#;
    assert!(metrics.contains(line), "names of the API are no labels");
    assert!(!metrics.contains(r#"subscription="crm""#));

    ask(&bridge, Method::DELETE, CRM, None, &[]).await.with(204);
    get(&bridge, CRM).await.with(404);
    publish(&bridge, "four").await;
    let unmatched = r#"hookbridge_match_total{source="orders",result="unmatched"}"#;
    eventually("it matches nothing", SOON, async || {
        (bridge.metric(unmatched).await == 1.0).then_some(())
    })
    .await;
    let again = post(&bridge, ALL, &to("crm", &second.url("/")))
        .await
        .with(201);
    assert_ne!(
        again.body["uid"], made.body["uid"],
        "a name comes again, a uid never"
    );
    assert_eq!((first.count(), second.count()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_by_pointers_and_changes_nothing() {
    let bridge = Bridge::start(&config(&[KEY], "")).await;
    let url = "http://127.0.0.1:9/";
    post(&bridge, ALL, &to("crm", url)).await.with(201);
    let before = get(&bridge, CRM).await;
    let with = |key: &str, value: Value| {
        let mut body = to("new", url);
        body[key] = value;
        body
    };
    for (body, pointer) in [
        (json!({}), "#"),
        (json!([]), "#"),
        (with("name", json!("New")), "#/name"),
        (with("topcs", json!([])), "#/topcs"),
        (with("topics", json!(["a.**.b", 1])), "#/topics/0"),
        (with("topics", json!([])), "#/topics"),
        (with("sources", json!(["order"])), "#/sources/0"),
        (
            with("filter", json!({ "data.total": { "$gtt": 1 } })),
            "#/filter/data.total/$gtt",
        ),
        (with("was", json!(["old"])), "#/was"),
        (with("endpoint", json!("none")), "#/endpoint"),
        (
            with("endpoint", json!({ "url": "http://10.0.0.1/x" })),
            "#/endpoint/url",
        ),
        (
            with("endpoint", json!({ "url": "${env:HOME}" })),
            "#/endpoint/url",
        ),
        (
            with("endpoint", json!({ "url": url, "secret": "whsec_x" })),
            "#/endpoint/secret",
        ),
        (
            with("endpoint", json!({ "url": url, "secret": "***" })),
            "#/endpoint/secret",
        ),
        (
            with("endpoint", json!({ "url": url, "tls": { "ca": "/x" } })),
            "#/endpoint/tls",
        ),
    ] {
        let refused = post(&bridge, ALL, &body).await.with(422);
        assert_eq!(refused.header("content-type"), "application/problem+json");
        assert!(
            refused.pointers().contains(&pointer),
            "{body}: {:#}",
            refused.body
        );
    }
    let patch = json!({ "timeout": "soon", "endpoint": { "rate": "fast" } });
    let refused = ask(&bridge, Method::PATCH, CRM, Some(&patch), &[])
        .await
        .with(422);
    assert_eq!(refused.pointers(), ["#/endpoint/rate", "#/timeout"]);

    let large = json!({ "name": "x".repeat(1 << 20) });
    post(&bridge, ALL, &large).await.with(413);
    let mut heavy = to("heavy", url);
    heavy["filter"] = json!({ "data.a": "x".repeat(110_000) });
    post(&bridge, ALL, &heavy).await.with(413);
    let dry = format!("{ALL}?dry_run=true");
    post(&bridge, &dry, &heavy).await.with(413);
    let text = [("content-type", "text/plain")];
    let new = to("new", url);
    ask(&bridge, Method::POST, ALL, Some(&new), &text)
        .await
        .with(415);
    post(&bridge, &format!("{ALL}?dry-run=true"), &new)
        .await
        .with(400);
    get(&bridge, &format!("{ALL}?cursor=x")).await.with(400);
    get(&bridge, &format!("{ALL}?limit=0")).await.with(400);
    let (status, said) = bridge.post(ALL, "{").await;
    assert_eq!(status, 415, "{said}");
    ask(
        &bridge,
        Method::PUT,
        "/v1/subscriptions/none",
        Some(&new),
        &[],
    )
    .await
    .with(404);
    ask(
        &bridge,
        Method::PUT,
        "/v1/subscriptions/api:1",
        Some(&new),
        &[],
    )
    .await
    .with(404);

    let dry = post(&bridge, &format!("{ALL}?dry_run=true"), &new)
        .await
        .with(200);
    assert_eq!(dry.body["name"], "new");
    assert_eq!(dry.body["secret"], Value::Null);
    let dry = ask(
        &bridge,
        Method::PATCH,
        &format!("{CRM}?dry_run=true"),
        Some(&json!({ "timeout": "1s" })),
        &[],
    )
    .await;
    assert_eq!(dry.with(200).body["subscription"]["timeout"], "1s");

    let after = get(&bridge, CRM).await;
    assert_eq!(
        (after.header("etag"), after.body),
        (before.header("etag"), before.body)
    );
    assert_eq!(names(&get(&bridge, ALL).await.body), ["crm"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_overwrites_what_they_have_not_seen() {
    let receiver = Receiver::accepting().await;
    let bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    let made = post(&bridge, ALL, &to("crm", &receiver.url("/T0")))
        .await
        .with(201);
    let tag = made.header("etag");
    let with = |tag: &str| [("if-match", tag.to_owned())];
    let patch = json!({ "timeout": "3s" });
    let change = async |method: Method, body: Option<&Value>, tag: &str| {
        let [(name, tag)] = with(tag);
        ask(&bridge, method, CRM, body, &[(name, &tag)]).await
    };
    let changed = change(Method::PATCH, Some(&patch), &tag).await.with(200);
    let stale = change(Method::PATCH, Some(&patch), &tag).await.with(412);
    assert_eq!(stale.body["type"], "urn:hookbridge:problem:changed");
    change(Method::DELETE, None, &tag).await.with(412);
    change(Method::DELETE, None, "").await.with(400);
    let tag = changed.header("etag");

    // What was shown can be sent back: what is masked in it stays what it is.
    let mut shown = get(&bridge, CRM).await.body["subscription"].clone();
    shown["timeout"] = json!("4s");
    let replaced = change(Method::PUT, Some(&shown), &tag).await.with(200);
    assert_eq!(replaced.body["secret"], Value::Null, "no other one is made");
    // And without a word of secrets they stay as well.
    let bare = json!({ "topics": ["orders.#"], "endpoint": { "url": receiver.url("/T1") } });
    let tag = replaced.header("etag");
    let renamed = change(Method::PUT, Some(&bare), &tag).await.with(200);
    assert_eq!(renamed.body["name"], "crm");
    publish(&bridge, "x").await;
    let request = receiver.wait_for(1, SOON).await.remove(0);
    assert_eq!(request.path, "/T1");
    let secret = made.body["secret"].as_str().expect("shown");
    let verifier = Webhook::new(secret).expect("a secret");
    verifier
        .verify(&request.body, &request.headers)
        .expect("the first secret");

    let patch = json!({ "name": "sales" });
    let renamed = ask(&bridge, Method::PATCH, CRM, Some(&patch), &[])
        .await
        .with(200);
    assert_eq!(renamed.body["uid"], made.body["uid"]);
    get(&bridge, CRM).await.with(404);
    let by_uid = format!("{ALL}/{}", made.body["uid"].as_str().expect("a uid"));
    assert_eq!(get(&bridge, &by_uid).await.with(200).body["name"], "sales");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_the_configs_stays_the_configs() {
    let receiver = Receiver::accepting().await;
    let own = |name: &str| {
        format!(
            "endpoints: {{ shared: {{ url: '{}', signature: none }} }}\n\
             subscriptions:\n  {name}: {{ topics: [config], endpoint: shared }}\n",
            receiver.url("/shared")
        )
    };
    let text = config(&[KEY], &own("files"));
    let bridge = Bridge::start(&text).await.ready().await;
    let files = "/v1/subscriptions/files";
    let shown = get(&bridge, files).await.with(200);
    assert_eq!(
        (&shown.body["owner"], shown.header("etag")),
        (&json!("config"), String::new())
    );
    for method in [Method::PUT, Method::PATCH, Method::DELETE] {
        let refused = ask(&bridge, method, files, Some(&json!({ "name": "x" })), &[]).await;
        let refused = refused.with(409);
        assert_eq!(refused.body["type"], "urn:hookbridge:problem:read-only");
        let detail = refused.body["detail"].as_str().expect("a detail");
        assert!(detail.contains("config file"), "{detail}");
    }
    let body = json!({ "name": "files", "topics": ["orders.#"], "endpoint": "shared" });
    post(&bridge, ALL, &body).await.with(409);
    let body = json!({ "name": "crm", "topics": ["orders.#"], "endpoint": "shared" });
    let made = post(&bridge, ALL, &body).await.with(201);
    post(&bridge, ALL, &body).await.with(409);
    let rotated = post(&bridge, "/v1/subscriptions/crm/rotate", &json!({}))
        .await
        .with(409);
    assert!(
        rotated.body["detail"]
            .as_str()
            .expect("a detail")
            .contains("config")
    );

    // The config takes the name: its own is in force, the other one is kept.
    let reload = async |text: String, state: &str| {
        bridge.reload(&text);
        let by_uid = format!("{ALL}/{}", made.body["uid"].as_str().expect("a uid"));
        eventually(state, SOON, async || {
            let now = get(&bridge, &by_uid).await.with(200).body;
            (now["state"] == state).then_some(now)
        })
        .await
    };
    let why = reload(text.replace("files:", "crm:"), "unusable").await["why"].clone();
    assert!(why.as_str().expect("why").contains("rename one"), "{why}");
    let all = get(&bridge, ALL).await.body;
    assert_eq!(names(&all), ["crm", "crm"]);
    assert_eq!(get(&bridge, CRM).await.body["owner"], "config");
    publish(&bridge, "to nobody").await;
    reload(text, "active").await;
    publish(&bridge, "to the one of the API").await;
    let requests = receiver.wait_for(1, SOON).await;
    assert_eq!(&requests[0].body[..], b"to the one of the API");
    let refused = bridge.log();
    assert!(refused.contains("cannot be used: it is kept"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other_while_others_come_and_go() {
    let more = "endpoints: { shared: { url: 'http://127.0.0.1:9/', signature: none } }\n\
                subscriptions:\n  b: { topics: [x], endpoint: shared }\n";
    let bridge = Bridge::start(&config(&[], more)).await;
    for name in ["d", "a", "c", "e"] {
        let body = json!({ "name": name, "topics": ["x"], "endpoint": "shared" });
        post(&bridge, ALL, &body).await.with(201);
    }
    let first = get(&bridge, &format!("{ALL}?limit=2")).await.with(200).body;
    assert_eq!(names(&first), ["a", "b"]);
    ask(&bridge, Method::DELETE, "/v1/subscriptions/c", None, &[])
        .await
        .with(204);
    let mut found = Vec::new();
    let mut next = first["next"].as_str().map(str::to_owned);
    while let Some(cursor) = next {
        let page = get(&bridge, &format!("{ALL}?limit=1&cursor={cursor}"))
            .await
            .with(200)
            .body;
        found.extend(names(&page).into_iter().map(str::to_owned));
        next = page["next"].as_str().map(str::to_owned);
    }
    assert_eq!(found, ["d", "e"]);
    // Nothing can be sealed, so nothing is taken that would have to be.
    let refused = post(&bridge, ALL, &to("own", "http://127.0.0.1:9/"))
        .await
        .with(422);
    assert_eq!(refused.pointers(), ["#/endpoint"]);
    assert!(
        refused.body["detail"]
            .as_str()
            .expect("a detail")
            .contains("`store_key:")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_again_is_answered_as_it_was() {
    let mut bridge = Bridge::start(&config(&[KEY], "")).await;
    let body = to("crm", "http://127.0.0.1:9/T0");
    let key = [("idempotency-key", "k-1")];
    let first = ask(&bridge, Method::POST, ALL, Some(&body), &key)
        .await
        .with(201);
    bridge.kill9_and_restart().await;
    let again = ask(&bridge, Method::POST, ALL, Some(&body), &key)
        .await
        .with(201);
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("etag"), first.header("etag"));
    let other = to("other", "http://127.0.0.1:9/T0");
    let refused = ask(&bridge, Method::POST, ALL, Some(&other), &key)
        .await
        .with(422);
    assert_eq!(
        refused.body["type"],
        "urn:hookbridge:problem:idempotency-key-reused"
    );
    let another = [
        ("idempotency-key", "k-1"),
        ("authorization", "Bearer another"),
    ];
    ask(&bridge, Method::POST, ALL, Some(&body), &another)
        .await
        .with(409);
    ask(
        &bridge,
        Method::POST,
        ALL,
        Some(&other),
        &[("idempotency-key", "")],
    )
    .await
    .with(400);
    assert_eq!(names(&get(&bridge, ALL).await.body), ["crm"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_paused_stays_paused_when_it_is_changed() {
    let receiver = Receiver::accepting().await;
    let mut bridge = Bridge::start(&config(&[KEY], "")).await.ready().await;
    post(&bridge, ALL, &to("crm", &receiver.url("/")))
        .await
        .with(201);
    post(&bridge, &format!("{CRM}/pause"), &json!({}))
        .await
        .with(200);
    let patch = json!({ "timeout": "3s" });
    let changed = ask(&bridge, Method::PATCH, CRM, Some(&patch), &[])
        .await
        .with(200);
    assert_eq!(changed.body["state"], "paused");
    bridge.kill9_and_restart().await;
    bridge.wait_ready(SOON).await;
    publish(&bridge, "held").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        (receiver.count(), &get(&bridge, CRM).await.body["state"]),
        (0, &json!("paused"))
    );
    post(&bridge, &format!("{CRM}/resume"), &json!({}))
        .await
        .with(200);
    receiver.wait_for(1, SOON).await;
}
